//! The model: a byte array for the text and, for each site, a list of all its allowed contents,
//! written out from the rules without the code under test.

use super::Memory as Seen;
use abi::manifest::{Header, MAGIC, Site, SiteKind, Span, Table, VERSION};
use core::ops::Range;
use std::vec;
use std::vec::Vec;
use zerocopy::{FromZeros, IntoBytes};

pub const TEXT_END: u32 = 0x30_0000;
pub const RETURN_THUNK: u32 = 0x20_0000;
pub const RETURN_ZERO: u32 = 0x20_1000;
pub const FUNCTIONS: [u32; 6] = [0x40, 0x1010, 0x9_1230, 0x12_3450, 0x1f_fff0, 0x2f_0000];
/// What static calls call at link time; in no other list.
pub const LINKED_TARGET: u32 = 0x22_2222;
pub const CONDITION: u8 = 0x84;
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
pub const FORGERY: i64 = 0x1000_2000;
/// A BPF trampoline.
pub const TRAMPOLINE: i64 = 0x1000_3040;
/// Not in the manifest: what `sites` calls the places of the tracer.
pub const TRACED: u8 = 0;

/// One site of each kind away from page boundaries, and one for each way a boundary can divide it.
pub fn sites() -> Vec<Site> {
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
    // What the copies call.
    header.livepatch = FUNCTIONS[1];
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

pub fn branch(opcode: &[u8], site: &Site, target: impl Into<i64>) -> Vec<u8> {
    let distance = target.into() - i64::try_from(site.end()).unwrap();
    let distance = i32::try_from(distance).unwrap().to_le_bytes();
    [opcode, &distance].concat()
}

/// All allowed contents of a site.
pub fn contents(site: &Site) -> Vec<Vec<u8>> {
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
            .chain([TRAMPOLINE])
            .map(|target| branch(&[0xe8], site, target))
            .chain([vec![0x0f, 0x1f, 0x44, 0, 0], branch(&[0xe9], site, TRAMPOLINE)])
            .collect(),
    }
}

/// Contents that look legal, and are not.
pub fn forged(site: &Site) -> Vec<Vec<u8>> {
    match SiteKind::from_number(site.kind) {
        None => {
            let inside = [i64::from(TRACERS[0].start) + 1, COPIES[0] + 1, 0x1000_9000, 0x40];
            let inside = inside.into_iter().chain([TRAMPOLINE + 1]);
            let targets = inside.chain([FORGERY, LINKED_TARGET.into()]);
            let jumps = [COPIES[0], TRACERS[0].start.into()];
            let jumps = jumps.map(|target| branch(&[0xe9], site, target));
            targets.map(|target| branch(&[0xe8], site, target)).chain(jumps).collect()
        }
        Some(SiteKind::TracerCall) => {
            let targets = [i64::from(FUNCTIONS[1]) + 1, COPIES[0]];
            targets.map(|target| branch(&[0xe8], site, target)).into()
        }
        _ => vec![],
    }
}

pub fn is_tracers(site: &Site) -> bool {
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
pub fn divided_at(site: &Site) -> Option<usize> {
    (2..usize::from(site.length)).find(|index| (site.offset as usize + index).is_multiple_of(4096))
}

/// What `patch` promises of the bytes at a site.
pub fn invariant(site: &Site, now: &[u8]) -> bool {
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

impl Seen for Memory {
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
        let mut trampoline =
            vec![0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x50, 0x48, 0x89, 0x5d, 0xc8];
        trampoline.resize(64, 0x90);
        elsewhere.push((TRAMPOLINE, trampoline));
        Self { text, elsewhere }
    }
}
