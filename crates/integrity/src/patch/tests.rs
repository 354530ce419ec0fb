//! The model: a byte array for the text and, for each site, a list of all its allowed contents,
//! written out from the rules without the code under test.

use super::*;
use abi::manifest::{Header, MAGIC, Site, Span, Table, VERSION};
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
/// The tracers, each in a page of its own.
pub const TRACERS: [Span; 2] =
    [Span { start: 0x25_0000, end: 0x25_0040 }, Span { start: 0x25_1000, end: 0x25_1060 }];
/// Where, from its start, a tracer calls; and loads what it passes; and where the second tests.
pub const CALL_AT: usize = 0x20;
pub const LOAD_AT: usize = 0x10;
pub const TEST_AT: usize = 0x30;
/// Copies of the first and the second tracer, far from the image and so close to it that the
/// distance is negative.
pub const COPIES: [i64; 2] = [0x1000_0000, -0x2000];
/// A copy in which one byte differs.
const FORGERY: i64 = 0x1000_2000;
/// Not in the manifest: what `sites` calls the places of the tracer.
const TRACED: u8 = 0;

/// One site of each kind away from page boundaries, and one for each way a boundary can divide it.
fn sites() -> Vec<Site> {
    let kinds = [
        (SiteKind::JumpLabel as u8, 2),
        (SiteKind::JumpLabel as u8, 5),
        (SiteKind::StaticCall as u8, 5),
        (SiteKind::StaticTailCall as u8, 5),
        (SiteKind::StaticConditional as u8, 6),
        (SiteKind::TracerCall as u8, 5),
        (TRACED, 5),
    ];
    let mut sites = Vec::new();
    let mut page = 0x1_0000;
    for (kind, length) in kinds {
        for before in 0..u32::from(length) {
            page += 0x1000;
            // No byte on the first page; then 1, 2, ... bytes.
            let offset = if before == 0 { page + 0x123 } else { page - before };
            let is_jump = kind == SiteKind::JumpLabel as u8;
            let target = if is_jump { offset + 0x62 } else { LINKED_TARGET };
            sites.push(Site { offset, target, kind, length, reserved: 0 });
        }
    }
    for tracer in TRACERS {
        let offset = tracer.start + u32::try_from(CALL_AT).unwrap();
        let kind = SiteKind::TracerCall as u8;
        sites.push(Site { offset, target: LINKED_TARGET, kind, length: 5, reserved: 0 });
    }
    sites.sort_by_key(|site| site.offset);
    sites
}

/// A manifest in memory that is aligned for it.
pub fn manifest_words() -> Vec<u64> {
    let (traced, sites): (Vec<_>, Vec<_>) = sites().into_iter().partition(|s| s.kind == TRACED);
    let traced: Vec<u32> = traced.iter().map(|site| site.offset).collect();
    let mut header = Header::new_zeroed();
    let start = u32::try_from(size_of::<Header>()).unwrap();
    let sites_end = start + u32::try_from(sites.as_bytes().len()).unwrap();
    let functions_end = sites_end + u32::try_from(FUNCTIONS.as_bytes().len()).unwrap();
    let end = functions_end + u32::try_from(traced.as_bytes().len()).unwrap();
    header.magic = MAGIC;
    header.version = VERSION;
    header.total_length = end;
    header.resident_length = end;
    header.text = Span { start: 0, end: TEXT_END };
    header.image_end = 0x40_0000;
    header.return_thunk = RETURN_THUNK;
    header.return_zero = RETURN_ZERO;
    header.tracers = TRACERS;
    header.traced = Table { offset: functions_end, count: u32::try_from(traced.len()).unwrap() };
    header.sites = Table { offset: start, count: u32::try_from(sites.len()).unwrap() };
    header.functions = Table { offset: sites_end, count: u32::try_from(FUNCTIONS.len()).unwrap() };
    let mut bytes = Vec::new();
    bytes.extend(header.as_bytes());
    bytes.extend(sites.as_bytes());
    bytes.extend(FUNCTIONS.as_bytes());
    bytes.extend(traced.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
}

fn branch(opcode: &[u8], site: &Site, target: impl Into<i64>) -> Vec<u8> {
    let distance = target.into() - i64::try_from(site.end()).unwrap();
    let distance = i32::try_from(distance).unwrap().to_le_bytes();
    [opcode, &distance].concat()
}

/// All allowed contents of a site.
fn contents(site: &Site) -> Vec<Vec<u8>> {
    let functions = || FUNCTIONS.into_iter().chain([RETURN_THUNK, RETURN_ZERO, LINKED_TARGET]);
    match (SiteKind::from_number(site.kind), site.length) {
        (Some(SiteKind::JumpLabel), 2) => vec![vec![0x66, 0x90], vec![0xeb, 0x60]],
        (Some(SiteKind::JumpLabel), _) => {
            vec![vec![0x0f, 0x1f, 0x44, 0, 0], branch(&[0xe9], site, site.target)]
        }
        (Some(SiteKind::StaticCall), _) => functions()
            .map(|target| branch(&[0xe8], site, target))
            .chain([
                vec![0x0f, 0x1f, 0x44, 0, 0],
                vec![0x2e, 0x2e, 0x2e, 0x31, 0xc0],
                vec![0x66, 0x66, 0x48, 0x31, 0xc0],
            ])
            .collect(),
        (Some(SiteKind::StaticTailCall), _) => functions()
            .map(|target| branch(&[0xe9], site, target))
            .chain([vec![0xc3, 0xcc, 0xcc, 0xcc, 0xcc], vec![0xc3, 0xcc, 0x90, 0x90, 0x90]])
            .collect(),
        (Some(SiteKind::StaticConditional), _) => {
            functions().map(|target| branch(&[0x0f, CONDITION], site, target)).collect()
        }
        (Some(SiteKind::TracerCall), _) => {
            functions().map(|target| branch(&[0xe8], site, target)).collect()
        }
        (None, _) => TRACERS
            .map(|tracer| tracer.start.into())
            .into_iter()
            .chain(COPIES)
            .map(|target| branch(&[0xe8], site, target))
            .chain([vec![0x0f, 0x1f, 0x44, 0, 0]])
            .collect(),
    }
}

/// Contents that look legal, and are not.
fn forged(site: &Site) -> Vec<Vec<u8>> {
    match SiteKind::from_number(site.kind) {
        None => {
            let inside = [i64::from(TRACERS[0].start) + 1, COPIES[0] + 1, 0x1000_9000, 0x40];
            let targets = inside.into_iter().chain([FORGERY, LINKED_TARGET.into()]);
            let jump = branch(&[0xe9], site, COPIES[0]);
            targets.map(|target| branch(&[0xe8], site, target)).chain([jump]).collect()
        }
        Some(SiteKind::TracerCall) => {
            let targets = [i64::from(FUNCTIONS[1]) + 1, COPIES[0]];
            targets.map(|target| branch(&[0xe8], site, target)).into()
        }
        _ => vec![],
    }
}

fn is_tracers(site: &Site) -> bool {
    matches!(SiteKind::from_number(site.kind), None | Some(SiteKind::TracerCall))
}

/// The code of a tracer: any bytes, but for what is found by them.
pub fn tracer(index: usize) -> Vec<u8> {
    let length = TRACERS[index].length();
    let mut code: Vec<u8> = (0..length).map(|at| (at * 7).to_le_bytes()[0] | 1).collect();
    code[LOAD_AT..LOAD_AT + 7].copy_from_slice(&[0x48, 0x8b, 0x15, 1, 2, 3, 4]);
    code[CALL_AT..CALL_AT + 5].copy_from_slice(&[0xe8, 9, 9, 9, 9]);
    if index == 1 {
        code[TEST_AT..TEST_AT + 5].copy_from_slice(&[0x48, 0x85, 0xc0, 0x75, 0x11]);
    }
    code
}

/// What the kernel makes of it at `at`, with a plain return.
pub fn copy(index: usize, at: i64) -> Vec<u8> {
    let mut code = tracer(index);
    let end = at + i64::try_from(CALL_AT).unwrap() + 5;
    let distance = i32::try_from(i64::from(FUNCTIONS[1]) - end).unwrap();
    code[CALL_AT + 1..CALL_AT + 5].copy_from_slice(&distance.to_le_bytes());
    code[LOAD_AT + 3..LOAD_AT + 7].copy_from_slice(&[0x80, 0, 0, 0]);
    if index == 1 {
        code[TEST_AT + 3..TEST_AT + 5].copy_from_slice(&[0x66, 0x90]);
    }
    code.extend([0xc3, 0xcc, 0, 0, 0]);
    // The pointer behind it is no code.
    code.extend([0x11; 8]);
    code
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
        || divided_at(site).filter(|_| !is_tracers(site)).is_some_and(|middle| {
            site.kind != SiteKind::JumpLabel as u8 || (some(1..middle) && some(middle..length))
        });
    some(0..length) || (now[0] == 0xcc && condition && tail)
}

/// Locked text, and code elsewhere.
pub struct Memory {
    pub text: Vec<u8>,
    pub elsewhere: Vec<(i64, Vec<u8>)>,
}

impl super::Memory for Memory {
    fn text(&self, offset: u64, bytes: &mut [u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        bytes.copy_from_slice(self.text.get(start..start + bytes.len())?);
        Some(())
    }
    fn code(&mut self, distance: i64, bytes: &mut [u8]) -> Option<()> {
        self.elsewhere.iter().find_map(|(start, code)| {
            let start = usize::try_from(distance.checked_sub(*start)?).ok()?;
            bytes.copy_from_slice(code.get(start..start + bytes.len())?);
            Some(())
        })
    }
}

impl Memory {
    /// All text is int3 but for the tracers, of which there are copies elsewhere.
    pub fn new() -> Self {
        let mut text = vec![0xcc; TEXT_END as usize];
        for (index, span) in TRACERS.into_iter().enumerate() {
            text[span.start as usize..span.end as usize].copy_from_slice(&tracer(index));
        }
        let mut elsewhere = vec![(COPIES[0], copy(0, COPIES[0])), (COPIES[1], copy(1, COPIES[1]))];
        let mut forgery = copy(0, FORGERY);
        forgery[3] ^= 1;
        elsewhere.push((FORGERY, forgery));
        Self { text, elsewhere }
    }
}

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
    let none = Patching { jump_label: false, static_call: false, ftrace: false };
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
        };
        let start = u64::from(site.offset);
        assert_eq!(text.judge_under(allowed, start, &[0xcc]), Ok(Legal::Breakpoint));
        assert_eq!(text.judge_under(others, start, &[0xcc]), Err(Refused::Policy));
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
