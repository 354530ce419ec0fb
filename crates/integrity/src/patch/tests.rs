//! The patch rules against the model.

use super::model::{
    COPIES, FUNCTIONS, Memory, TRACED, TRACERS, branch, contents, divided_at, forged, invariant,
    is_tracers, manifest_words, sites,
};
use super::*;
use abi::manifest::Site;
use proptest::prelude::*;
use std::format;
use std::vec;
use std::vec::Vec;
use zerocopy::IntoBytes;

struct Text {
    words: Vec<u64>,
    memory: Memory,
}

impl Text {
    /// Every site holds its first allowed content; all else is int3.
    fn new() -> Self {
        let mut text = Self { words: manifest_words(), memory: Memory::new() };
        for site in sites() {
            text.set(&site, &contents(&site)[0]);
        }
        text
    }
    fn set(&mut self, site: &Site, content: &[u8]) {
        let start = site.offset as usize;
        self.memory.text[start..start + content.len()].copy_from_slice(content);
    }
    fn get(&self, site: &Site) -> &[u8] {
        &self.memory.text[site.offset as usize..][..usize::from(site.length)]
    }
    fn judge(&mut self, offset: u64, bytes: &[u8]) -> Result<Legal, Refused> {
        self.judge_under(Patching::ALL, offset, bytes)
    }
    fn judge_under(
        &mut self,
        allowed: Patching,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Legal, Refused> {
        let manifest = Manifest::resident(self.words.as_bytes()).unwrap();
        judge(&manifest, allowed, &mut self.memory, offset, bytes)
    }
    /// Judges a write and performs it if it is legal.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Legal, Refused> {
        let legal = self.judge(offset, bytes)?;
        let start = usize::try_from(offset).unwrap();
        self.memory.text[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(legal)
    }
}

/// The ways in which the kernel may write the tail, as ranges of the site.
fn tail_writes(site: &Site) -> Vec<Vec<Range<usize>>> {
    let length = usize::from(site.length);
    let mut ways = vec![vec![1..length]];
    if let Some(middle) = divided_at(site).filter(|_| !is_tracers(site)) {
        ways.push(vec![1..middle, middle..length]);
        ways.push(vec![middle..length, 1..middle]);
    }
    if length == 6 {
        ways.push(vec![1..5, 2..6]);
    }
    ways
}

#[test]
fn the_kernel_gets_from_every_content_to_every_other() {
    let mut text = Text::new();
    for site in sites() {
        let start = u64::from(site.offset);
        for (from, to) in
            contents(&site).iter().flat_map(|a| contents(&site).into_iter().map(move |b| (a, b)))
        {
            for way in tail_writes(&site) {
                let context = format!("{site:?} {from:x?} {to:x?} {way:?}");
                text.set(&site, from);
                assert_eq!(text.write(start, &[0xcc]), Ok(Legal::Breakpoint), "{context}");
                for range in way {
                    let step = text.write(start + range.start as u64, &to[range]);
                    assert!(matches!(step, Ok(Legal::Tail | Legal::Unchanged)), "{context}");
                }
                assert_eq!(text.write(start, &to[..1]), Ok(Legal::Opcode), "{context}");
                assert_eq!(text.get(&site), to);
            }
        }
    }
}

#[test]
fn writing_without_the_protocol_is_refused() {
    let mut text = Text::new();
    for site in sites() {
        let start = u64::from(site.offset);
        let (from, to) = (&contents(&site)[0], &contents(&site)[1]);
        let length = from.len();
        assert_eq!(text.judge(start, to), Err(Refused::IllegalStep));
        assert_eq!(text.judge(start, from), Ok(Legal::Unchanged));
        if from[1..] != to[1..] {
            assert_eq!(text.judge(start + 1, &to[1..]), Err(Refused::IllegalStep));
        }
        let past = [&from[..], &[0x90]].concat();
        assert_eq!(text.judge(start, &past), Err(Refused::AcrossSite));
        assert_eq!(text.judge(start - 1, &past), Err(Refused::AcrossSite));
        assert_eq!(text.judge(start - 1, &[0xcc]), Err(Refused::NoSite));
        assert_eq!(text.judge(start + length as u64, &[0xcc]), Err(Refused::NoSite));
    }
}

#[test]
fn a_condition_stays_what_it_is() {
    let mut text = Text::new();
    for site in sites().into_iter().filter(|site| site.length == 6) {
        let start = u64::from(site.offset);
        let mut other = contents(&site)[1].clone();
        other[1] ^= 1;
        text.write(start, &[0xcc]).unwrap();
        for end in 2..=6 {
            assert_eq!(text.judge(start + 1, &other[1..end]), Err(Refused::IllegalBytes));
        }
    }
}

#[test]
fn unknown_and_unreadable_contents_are_left_alone() {
    let mut text = Text::new();
    for site in sites() {
        let start = u64::from(site.offset);
        let mut empty =
            Text { memory: Memory { text: vec![], elsewhere: vec![] }, words: manifest_words() };
        assert_eq!(empty.judge(start, &[0xcc]), Err(Refused::Unreadable));
        text.set(&site, &vec![0x11; usize::from(site.length)]);
        assert_eq!(text.judge(start, &[0xcc]), Err(Refused::UnknownContent));
        // A known opcode does not make a known content.
        text.set(&site, &contents(&site)[0][..1]);
        assert_eq!(text.judge(start, &[0xcc]), Err(Refused::UnknownContent));
    }
}

#[test]
fn what_looks_legal_is_refused() {
    let mut text = Text::new();
    for site in sites() {
        let start = u64::from(site.offset);
        for content in forged(&site) {
            text.set(&site, &content);
            assert_eq!(text.judge(start, &[0xcc]), Err(Refused::UnknownContent), "{content:x?}");
            text.set(&site, &[&[0xcc], &content[1..]].concat());
            assert_eq!(text.judge(start, &content[..1]), Err(Refused::IllegalBytes));
            text.set(&site, &[0xcc, 0x1f, 0x44, 0, 0]);
            let tail = text.judge(start + 1, &content[1..]);
            // A jump has the tail of a call, and becomes none.
            let refused =
                if content[0] == 0xe9 { Ok(Legal::Tail) } else { Err(Refused::IllegalBytes) };
            assert_eq!(tail, refused, "{site:?} {content:x?}");
            // Places of the tracer take their tail in one piece.
            for end in 2..4 {
                text.set(&site, &[0xcc, 0x1f, 0x44, 0, 0]);
                let part = &contents(&site)[0][1..end];
                assert_eq!(text.judge(start + 1, part), Err(Refused::IllegalBytes));
            }
        }
    }
}

#[test]
fn a_call_of_a_copy_is_judged_at_every_step() {
    let mut text = Text::new();
    let site = sites().into_iter().find(|site| site.kind == TRACED).unwrap();
    let start = u64::from(site.offset);
    let call = branch(&[0xe8], &site, COPIES[0]);
    text.set(&site, &call);
    assert_eq!(text.judge(start, &[0xcc]), Ok(Legal::Breakpoint));
    text.memory.elsewhere[0].1[5] ^= 1;
    assert_eq!(text.judge(start, &[0xcc]), Err(Refused::UnknownContent));
    text.set(&site, &[&[0xcc], &call[1..]].concat());
    assert_eq!(text.judge(start, &[0xe8]), Err(Refused::IllegalBytes));
}

#[test]
fn each_kind_can_be_denied() {
    let none = Patching {
        jump_label: false,
        static_call: false,
        ftrace: false,
        kprobes: false,
        livepatch: false,
    };
    let mut text = Text::new();
    for site in sites() {
        let allowed = match SiteKind::from_number(site.kind) {
            Some(SiteKind::JumpLabel) => Patching { jump_label: true, ..none },
            Some(SiteKind::TracerCall) | None => Patching { ftrace: true, ..none },
            Some(_) => Patching { static_call: true, ..none },
        };
        let others = Patching {
            jump_label: !allowed.jump_label,
            static_call: !allowed.static_call,
            ftrace: !allowed.ftrace,
            ..Patching::ALL
        };
        let start = u64::from(site.offset);
        assert_eq!(text.judge_under(allowed, start, &[0xcc]), Ok(Legal::Breakpoint));
        assert_eq!(text.judge_under(others, start, &[0xcc]), Err(Refused::Policy));
    }
}

#[test]
fn live_patches_can_be_denied_by_themselves() {
    let denied = Patching { livepatch: false, ..Patching::ALL };
    let mut text = Text::new();
    for site in sites().into_iter().filter(is_tracers) {
        let start = u64::from(site.offset);
        // The tracer's own call, or one of a copy, which calls that function.
        let traced = site.kind == TRACED;
        let live = branch(&[0xe8], &site, if traced { COPIES[0] } else { FUNCTIONS[1].into() });
        let other = branch(&[0xe8], &site, if traced { TRACERS[0].start } else { FUNCTIONS[2] });
        for (content, allowed, legal) in
            [(&live, Patching::ALL, true), (&live, denied, false), (&other, denied, true)]
        {
            text.set(&site, &[&[0xcc], &contents(&site)[0][1..]].concat());
            let tail = text.judge_under(allowed, start + 1, &content[1..]);
            assert_eq!(tail.is_ok(), legal, "{site:?} {content:x?}");
            text.set(&site, &[&[0xcc], &content[1..]].concat());
            assert_eq!(text.judge_under(allowed, start, &[0xe8]).is_ok(), legal);
        }
    }
}

/// A batch: each step is made at all places before the next one (`text_poke_bp_batch`).
#[test]
fn a_batch_of_patches_goes_through() {
    let mut text = Text::new();
    let sites = sites();
    let last = |site: &Site| contents(site).pop().unwrap();
    for site in &sites {
        assert_eq!(text.write(site.offset.into(), &[0xcc]), Ok(Legal::Breakpoint));
    }
    for site in &sites {
        let tail = text.write(u64::from(site.offset) + 1, &last(site)[1..]);
        assert!(matches!(tail, Ok(Legal::Tail | Legal::Unchanged)), "{site:?} {tail:?}");
    }
    for site in &sites {
        assert_eq!(text.write(site.offset.into(), &last(site)[..1]), Ok(Legal::Opcode));
    }
    assert!(sites.iter().all(|site| text.get(site) == last(site)));
}

#[test]
fn covers_agrees_with_a_search() {
    let words = manifest_words();
    let manifest = Manifest::resident(words.as_bytes()).unwrap();
    let sites = sites();
    for near in [sites[0].offset, sites[5].offset, sites[sites.len() - 1].offset] {
        for offset in u64::from(near) - 20..u64::from(near) + 20 {
            for length in 0..20 {
                let touched =
                    sites.iter().any(|s| u64::from(s.offset) < offset + length && offset < s.end());
                assert_eq!(covers(&manifest, offset, length), touched && length > 0);
            }
        }
    }
    assert!(covers(&manifest, 0, u64::MAX));
    assert!(!covers(&manifest, u64::MAX, u64::MAX));
}

/// A write near a site: mostly pieces of allowed contents, sometimes anything.
fn any_write() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let pick = any::<prop::sample::Index>;
    let noise = prop::option::weighted(0.2, any::<[u8; 8]>());
    (pick(), pick(), 0usize..6, 1usize..8, noise, any::<bool>()).prop_map(
        |(site, content, start, length, noise, breakpoint)| {
            let sites = sites();
            let site = site.get(&sites);
            let contents = [contents(site), forged(site)].concat();
            let content = content.get(&contents);
            let start = start.min(content.len() - 1);
            let end = (start + length).min(content.len());
            let mut piece = match noise {
                Some(bytes) => bytes[..length].to_vec(),
                None if length == 7 => vec![0xcc],
                None => content[start..end].to_vec(),
            };
            let start = if length == 7 { 0 } else { start };
            if start == 0 && breakpoint {
                piece[0] = 0xcc;
            }
            (u64::from(site.offset) + start as u64, piece)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No sequence of accepted writes leaves what the module promises.
    #[test]
    fn accepted_writes_keep_the_invariant(
        only in any::<prop::sample::Index>(),
        writes in prop::collection::vec(any_write(), 500),
    ) {
        let mut text = Text::new();
        let sites = sites();
        // All writes go to the site at `only`, so that they meet each other.
        let only = only.get(&sites);
        for (offset, bytes) in writes {
            let within = sites.iter().rfind(|s| u64::from(s.offset) <= offset).unwrap();
            let offset = offset - u64::from(within.offset) + u64::from(only.offset);
            if text.write(offset, &bytes).is_ok() {
                prop_assert!(invariant(only, text.get(only)), "{:?} {:x?}", only, text.get(only));
            }
        }
        for site in &sites {
            prop_assert!(site == only || text.get(site) == contents(site)[0]);
        }
    }
}
