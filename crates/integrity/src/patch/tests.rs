//! The model: a byte array for the text and, for each site, a list of all its allowed contents,
//! written out from the rules without the code under test.

use super::*;
use abi::manifest::{Header, MAGIC, Span, Table, VERSION};
use proptest::prelude::*;
use std::format;
use std::vec;
use std::vec::Vec;
use zerocopy::{FromZeros, IntoBytes};

const TEXT_END: u32 = 0x30_0000;
const RETURN_THUNK: u32 = 0x20_0000;
const RETURN_ZERO: u32 = 0x20_1000;
const FUNCTIONS: [u32; 6] = [0x40, 0x1010, 0x9_1230, 0x12_3450, 0x1f_fff0, 0x2f_0000];
/// What static calls call at link time; in no other list.
const LINKED_TARGET: u32 = 0x22_2222;
const CONDITION: u8 = 0x84;

/// One site of each kind away from page boundaries, and one for each way a boundary can divide it.
fn sites() -> Vec<Site> {
    let kinds = [
        (SiteKind::JumpLabel, 2),
        (SiteKind::JumpLabel, 5),
        (SiteKind::StaticCall, 5),
        (SiteKind::StaticTailCall, 5),
        (SiteKind::StaticConditional, 6),
    ];
    let mut sites = Vec::new();
    let mut page = 0x1_0000;
    for (kind, length) in kinds {
        for before in 0..u32::from(length) {
            page += 0x1000;
            // No byte on the first page; then 1, 2, ... bytes.
            let offset = if before == 0 { page + 0x123 } else { page - before };
            let target = if kind == SiteKind::JumpLabel { offset + 0x62 } else { LINKED_TARGET };
            let kind = kind as u8;
            sites.push(Site { offset, target, kind, length, reserved: 0 });
        }
    }
    sites.sort_by_key(|site| site.offset);
    sites
}

/// A manifest in memory that is aligned for it.
fn manifest_words() -> Vec<u64> {
    let sites = sites();
    let mut header = Header::new_zeroed();
    let start = u32::try_from(size_of::<Header>()).unwrap();
    let sites_end = start + u32::try_from(sites.as_bytes().len()).unwrap();
    let end = sites_end + u32::try_from(FUNCTIONS.as_bytes().len()).unwrap();
    header.magic = MAGIC;
    header.version = VERSION;
    header.total_length = end;
    header.resident_length = end;
    header.text = Span { start: 0, end: TEXT_END };
    header.image_end = 0x40_0000;
    header.return_thunk = RETURN_THUNK;
    header.return_zero = RETURN_ZERO;
    header.sites = Table { offset: start, count: u32::try_from(sites.len()).unwrap() };
    header.functions = Table { offset: sites_end, count: u32::try_from(FUNCTIONS.len()).unwrap() };
    let mut bytes = Vec::new();
    bytes.extend(header.as_bytes());
    bytes.extend(sites.as_bytes());
    bytes.extend(FUNCTIONS.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
}

fn branch(opcode: &[u8], site: &Site, target: u32) -> Vec<u8> {
    let distance = i64::from(target) - i64::try_from(site.end()).unwrap();
    let distance = i32::try_from(distance).unwrap().to_le_bytes();
    [opcode, &distance].concat()
}

/// All allowed contents of a site.
fn contents(site: &Site) -> Vec<Vec<u8>> {
    let functions = || FUNCTIONS.into_iter().chain([RETURN_THUNK, RETURN_ZERO, LINKED_TARGET]);
    match (SiteKind::from_number(site.kind).unwrap(), site.length) {
        (SiteKind::JumpLabel, 2) => vec![vec![0x66, 0x90], vec![0xeb, 0x60]],
        (SiteKind::JumpLabel, _) => {
            vec![vec![0x0f, 0x1f, 0x44, 0, 0], branch(&[0xe9], site, site.target)]
        }
        (SiteKind::StaticCall, _) => functions()
            .map(|target| branch(&[0xe8], site, target))
            .chain([
                vec![0x0f, 0x1f, 0x44, 0, 0],
                vec![0x2e, 0x2e, 0x2e, 0x31, 0xc0],
                vec![0x66, 0x66, 0x48, 0x31, 0xc0],
            ])
            .collect(),
        (SiteKind::StaticTailCall, _) => functions()
            .map(|target| branch(&[0xe9], site, target))
            .chain([vec![0xc3, 0xcc, 0xcc, 0xcc, 0xcc], vec![0xc3, 0xcc, 0x90, 0x90, 0x90]])
            .collect(),
        (SiteKind::StaticConditional, _) => {
            functions().map(|target| branch(&[0x0f, CONDITION], site, target)).collect()
        }
        // No write to the function tracer is legal yet.
        (SiteKind::TracerCall, _) => vec![],
    }
}

/// Index of the first byte of the site that is on its second page, if there is one in the tail.
fn divided_at(site: &Site) -> Option<usize> {
    (2..usize::from(site.length)).find(|index| (site.offset as usize + index).is_multiple_of(4096))
}

/// What `patch` promises of the bytes at a site.
fn invariant(site: &Site, now: &[u8]) -> bool {
    let all = contents(site);
    let some = |range: Range<usize>| all.iter().any(|b| b[range.clone()] == now[range.clone()]);
    let length = now.len();
    let condition = site.length != 6 || now[1] == CONDITION;
    let tail = some(1..length)
        || (length == 6 && some(1..5))
        // What more than one unknown byte of a distance leaves open is not modelled.
        || divided_at(site).is_some_and(|middle| {
            site.kind != SiteKind::JumpLabel as u8 || (some(1..middle) && some(middle..length))
        });
    some(0..length) || (now[0] == 0xcc && condition && tail)
}

struct Text {
    words: Vec<u64>,
    bytes: Vec<u8>,
}

impl Text {
    /// Every site holds its first allowed content; all else is int3.
    fn new() -> Self {
        let mut text = Self { words: manifest_words(), bytes: vec![0xcc; TEXT_END as usize] };
        for site in sites() {
            text.set(&site, &contents(&site)[0]);
        }
        text
    }
    fn set(&mut self, site: &Site, content: &[u8]) {
        let start = site.offset as usize;
        self.bytes[start..start + content.len()].copy_from_slice(content);
    }
    fn get(&self, site: &Site) -> &[u8] {
        &self.bytes[site.offset as usize..][..usize::from(site.length)]
    }
    fn judge(&self, offset: u64, bytes: &[u8]) -> Result<Legal, Refused> {
        let manifest = Manifest::resident(self.words.as_bytes()).unwrap();
        let read = |offset| self.bytes.get(usize::try_from(offset).ok()?).copied();
        judge(&manifest, offset, read, bytes)
    }
    /// Judges a write and performs it if it is legal.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Legal, Refused> {
        let legal = self.judge(offset, bytes)?;
        let start = usize::try_from(offset).unwrap();
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(legal)
    }
}

/// The ways in which the kernel may write the tail, as ranges of the site.
fn tail_writes(site: &Site) -> Vec<Vec<Range<usize>>> {
    let length = usize::from(site.length);
    let mut ways = vec![vec![1..length]];
    if let Some(middle) = divided_at(site) {
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
    let text = Text::new();
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
    let manifest_bytes = manifest_words();
    let manifest = Manifest::resident(manifest_bytes.as_bytes()).unwrap();
    for site in sites() {
        let start = u64::from(site.offset);
        assert_eq!(judge(&manifest, start, |_| None, &[0xcc]), Err(Refused::Unreadable));
        text.set(&site, &vec![0x11; usize::from(site.length)]);
        assert_eq!(text.judge(start, &[0xcc]), Err(Refused::UnknownContent));
        // A known opcode does not make a known content.
        text.set(&site, &contents(&site)[0][..1]);
        assert_eq!(text.judge(start, &[0xcc]), Err(Refused::UnknownContent));
    }
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
            let contents = contents(site);
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
