//! Requests against a plain model, frame by frame, and a fuzzer that mutates whole guests.

use super::*;
use crate::list::{Buffer, EXEC, IMMUTABLE, MOST_PAGES, READ, WRITE};
use addr::Gpa;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

const FRAMES: u64 = 40;

fn range(start: u64, end: u64) -> FrameRange<GuestPhysical> {
    FrameRange::new(Gfn::new(start), Gfn::new(end))
}

/// Two pieces of RAM with a hole between them.
fn ram() -> [FrameRange<GuestPhysical>; 2] {
    [range(0, 16), range(24, FRAMES)]
}

fn is_ram(frame: u64) -> bool {
    frame < 16 || (24..FRAMES).contains(&frame)
}

#[derive(Clone, Debug, PartialEq)]
struct Pages(Vec<Page>);

impl Gate for Pages {
    fn page(&self, frame: Gfn) -> Option<Page> {
        let page = self.0.get(usize::try_from(frame.raw()).unwrap()).copied();
        page.filter(|_| is_ram(frame.raw()))
    }
    fn set(&mut self, run: FrameRange<GuestPhysical>, page: Page) {
        assert!(!run.is_empty());
        let before = self.page(run.start);
        for frame in run.iter() {
            assert!(is_ram(frame.raw()), "it was told to change a device");
            assert_eq!(self.page(frame), before, "a run is not alike");
            self.0[usize::try_from(frame.raw()).unwrap()] = page;
        }
    }
}

/// A list of these entries in one page.
fn read<'a>(buffer: &'a mut Buffer, entries: &[[u64; 3]]) -> Result<List<'a>, Refusal> {
    let mut words = vec![0, 0, entries.len() as u64];
    words.extend(entries.iter().flatten());
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    buffer.read(Gpa::new(4096), |at, to| {
        let start = usize::try_from(at.raw()).unwrap() - 4096;
        to.copy_from_slice(&bytes[start..start + to.len()]);
        true
    })
}

fn request(pages: &mut Pages, rules: Rules, entries: &[[u64; 3]]) -> Result<(), Refusal> {
    let mut buffer = Buffer::new();
    protect(&read(&mut buffer, entries)?, &ram(), rules, pages)
}

const VERIFY: Rules =
    Rules { execute_only: false, separates_execution: true, exec: HekiExec::Verify };
const TRUST: Rules = Rules { exec: HekiExec::Trust, ..VERIFY };
const DENY: Rules = Rules { exec: HekiExec::Deny, ..VERIFY };

fn all(state: PageState) -> Pages {
    Pages(vec![Page::new(state); usize::try_from(FRAMES).unwrap()])
}

fn kernel(pages: &Pages, frame: u64) -> Rights {
    pages.page(Gfn::new(frame)).unwrap().allows(View::Kernel)
}

const R: Rights = Rights::READ;
const RW: Rights = Rights::READ.union(Rights::WRITE);
const RX: Rights = Rights::READ.union(Rights::EXECUTE);

#[test]
fn rights_are_taken_away_and_given_back() {
    let mut pages = all(PageState::Data);
    for (permissions, rights) in [(READ, R), (READ | WRITE, RW), (READ | EXEC, RX), (READ, R)] {
        request(&mut pages, TRUST, &[[0x2000, 0x4000, permissions]]).unwrap();
        assert_eq!([1, 2, 3, 4].map(|frame| kernel(&pages, frame)), [RW, rights, rights, RW]);
    }
}

#[test]
fn immutable_is_for_ever() {
    let mut pages = all(PageState::Data);
    request(&mut pages, VERIFY, &[[0x2000, 0x4000, READ | IMMUTABLE]]).unwrap();
    for permissions in [READ, READ | WRITE, READ | IMMUTABLE] {
        let again = request(&mut pages, VERIFY, &[[0x1000, 0x3000, permissions]]);
        assert_eq!(again, Err(Refusal::NotPermitted));
    }
    assert_eq!([1, 2, 3].map(|frame| kernel(&pages, frame)), [RW, R, R]);
}

#[test]
fn the_lock_can_be_narrowed_and_not_widened() {
    let rx = READ | EXEC;
    for (state, permissions, expected) in [
        (PageState::LockedCode, rx | IMMUTABLE, Ok(RX)),
        (PageState::LockedCode, READ, Ok(R)),
        (PageState::LockedCode, rx | WRITE, Err(Refusal::NotPermitted)),
        (PageState::LockedReadOnly, READ | IMMUTABLE, Ok(R)),
        (PageState::LockedReadOnly, READ | WRITE, Err(Refusal::NotPermitted)),
        (PageState::LockedReadOnly, rx, Err(Refusal::NotPermitted)),
    ] {
        for rules in [TRUST, VERIFY, DENY] {
            let mut pages = all(state);
            let answer = request(&mut pages, rules, &[[0x2000, 0x3000, permissions]]);
            assert_eq!(answer.map(|()| kernel(&pages, 2)), expected, "{state:?} {permissions}");
        }
    }
}

#[test]
fn a_request_for_execution_goes_by_the_policy() {
    let data = |rules, permissions| {
        let mut pages = all(PageState::Data);
        request(&mut pages, rules, &[[0x2000, 0x3000, permissions]]).map(|()| pages.0[2])
    };
    let page = |state, withheld| Ok(Page { state, withheld, immutable: false });
    assert_eq!(data(TRUST, READ | EXEC), page(PageState::Code, Rights::WRITE));
    assert_eq!(data(VERIFY, READ | EXEC), page(PageState::Data, Rights::WRITE));
    assert_eq!(data(DENY, READ | EXEC), Err(Refusal::NotPermitted));
    assert_eq!(data(TRUST, READ | WRITE | EXEC), page(PageState::Data, Rights::empty()));
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    let execute_only = Rules { execute_only: true, ..TRUST };
    let single = Rules { separates_execution: false, ..TRUST };
    for (rules, permissions, expected) in [
        (TRUST, EXEC, Err(Refusal::Unsupported)),
        (TRUST, IMMUTABLE, Err(Refusal::Unsupported)),
        (execute_only, EXEC, Ok(())),
        (execute_only, WRITE, Err(Refusal::Unsupported)),
        (execute_only, WRITE | EXEC, Err(Refusal::Unsupported)),
        (execute_only, IMMUTABLE, Err(Refusal::Unsupported)),
        (single, READ, Err(Refusal::Unsupported)),
        (single, READ | WRITE, Err(Refusal::Unsupported)),
        (single, READ | EXEC, Ok(())),
    ] {
        let mut pages = all(PageState::Data);
        assert_eq!(request(&mut pages, rules, &[[0, 0x1000, permissions]]), expected);
    }
}

#[test]
fn ranges_without_ram_are_refused_and_holes_are_not_restricted() {
    let end = FRAMES << 12;
    for (start, end, permissions, expected) in [
        (16 << 12, 24 << 12, READ | WRITE, Err(Refusal::Fault)),
        (end, end + 4096, READ | WRITE, Err(Refusal::Fault)),
        (1 << 63, 0xffff_ffff_ffff_f000, READ | WRITE, Err(Refusal::Fault)),
        (0, 24 << 12, READ, Err(Refusal::Fault)),
        (0, 24 << 12, READ | WRITE | IMMUTABLE, Err(Refusal::Fault)),
        (0, 0xffff_ffff_ffff_f000, READ | WRITE, Ok(())),
    ] {
        let mut pages = all(PageState::Data);
        assert_eq!(request(&mut pages, VERIFY, &[[start, end, permissions]]), expected);
    }
}

/// What a request makes of one frame, as plainly as can be: the rights of the kernel afterwards.
fn model(page: Page, permissions: u64, rules: Rules) -> Result<Rights, ()> {
    let has = |bit| permissions & bit != 0;
    if page.immutable {
        return Err(());
    }
    let mut most = match page.state {
        PageState::Own | PageState::Published => return Err(()),
        PageState::Data if has(EXEC) && rules.exec == HekiExec::Deny => return Err(()),
        PageState::Data if has(EXEC) && !has(WRITE) && rules.exec == HekiExec::Trust => {
            vec![READ, EXEC]
        }
        PageState::Data => vec![READ, WRITE],
        PageState::Code => vec![READ, EXEC],
        PageState::Released => vec![READ, WRITE, EXEC],
        PageState::LockedCode | PageState::LockedReadOnly => {
            let text = page.state == PageState::LockedCode;
            let now: Vec<u64> = [(READ, Rights::READ), (EXEC, Rights::EXECUTE)]
                .into_iter()
                .filter(|(bit, right)| (text || *bit == READ) && !page.withheld.contains(*right))
                .map(|(bit, _)| bit)
                .collect();
            if [READ, WRITE, EXEC].into_iter().any(|bit| has(bit) && !now.contains(&bit)) {
                return Err(());
            }
            now
        }
    };
    most.retain(|bit| has(*bit));
    let mut rights = Rights::empty();
    rights.set(Rights::READ, most.contains(&READ));
    rights.set(Rights::WRITE, most.contains(&WRITE));
    rights.set(Rights::EXECUTE, most.contains(&EXEC));
    Ok(rights)
}

fn page() -> impl Strategy<Value = Page> {
    prop_oneof![
        3 => (0_usize..5).prop_map(|state| Page::new(PageState::ALL[state])),
        2 => (0_usize..5, 0_u8..8, prop::bool::weighted(0.1)).prop_map(|(state, bits, immutable)| {
            let withheld = Rights::from_bits_truncate(bits);
            Page { state: PageState::ALL[state], withheld, immutable }
        }),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    (any::<bool>(), 0_usize..3).prop_map(|(execute_only, exec)| Rules {
        execute_only,
        separates_execution: true,
        exec: HekiExec::ALL[exec],
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]
    #[test]
    fn requests_do_what_the_model_does_or_nothing(
        before in prop::collection::vec(page(), usize::try_from(FRAMES).unwrap()),
        uniform in prop::option::weighted(0.7, page()),
        entries in prop::collection::vec(
            (0_u64..FRAMES, 1_u64..10, prop_oneof![1 => 0_u64..16, 2 => Just(3), 2 => Just(5)]),
            0..4,
        ),
        rules in rules(),
    ) {
        let before = uniform.map_or(before, |page| vec![page; usize::try_from(FRAMES).unwrap()]);
        let entries: Vec<[u64; 3]> =
            entries.iter().map(|(start, n, bits)| [start << 12, (start + n) << 12, *bits]).collect();
        let mut pages = Pages(before.clone());
        let answer = request(&mut pages, rules, &entries);
        if answer.is_err() {
            prop_assert_eq!(&pages.0, &before);
        }
        let mut possible = true;
        for (number, [start, end, permissions]) in entries.iter().copied().enumerate() {
            let overlaps = |other: &[u64; 3]| start < other[1] && other[0] < end;
            let readable = permissions & READ != 0
                || (rules.execute_only && permissions & !IMMUTABLE == EXEC);
            let frames = || (start >> 12..end >> 12).filter(|frame| is_ram(*frame));
            let partly = (frames().count() as u64) < (end - start) >> 12;
            let unenforced = permissions & (READ | WRITE | IMMUTABLE) != READ | WRITE;
            possible &= readable && frames().count() > 0 && !(partly && unenforced);
            possible &= !entries.iter().skip(number + 1).any(overlaps);
            for frame in frames() {
                let model = model(before[usize::try_from(frame).unwrap()], permissions, rules);
                possible &= model.is_ok();
                if answer.is_ok() {
                    prop_assert_eq!(Ok(kernel(&pages, frame)), model);
                    let page = pages.page(Gfn::new(frame)).unwrap();
                    prop_assert_eq!(page.immutable, permissions & IMMUTABLE != 0);
                }
            }
        }
        prop_assert_eq!(answer.is_ok(), possible, "{:?}", answer);
        for (frame, page) in before.iter().enumerate() {
            let frame_start = (frame as u64) << 12;
            if !entries.iter().any(|[start, end, _]| (*start..*end).contains(&frame_start)) {
                prop_assert_eq!(&pages.0[frame], page);
            }
        }
    }
}

/// Numbers without a pattern (Marsaglia, "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

/// Words of guest memory that a list is read from; its pages are 16 words long, at any address.
const WORDS: usize = 64;
type Input = [u64; WORDS];
const BASE: u64 = 0x1000;

fn mutate(input: &mut Input, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(WORDS);
        input[at] = match random.below(8) {
            0 => random.next(),
            1 => random.next() % 20,
            2 | 3 => (random.next() % (FRAMES + 4)) << 12,
            4 => BASE + 8 * (random.next() % WORDS as u64),
            5 => input[at] ^ 1 << random.below(64),
            6 => input[random.below(WORDS)],
            _ => [READ, READ | WRITE, READ | EXEC, 15, 0, u64::MAX, !0xfff][random.below(7)],
        };
    }
}

/// Inputs that lead to something new are kept and mutated further.
#[test]
fn hostile_guests_widen_nothing_and_end_soon() {
    const CASES: usize = 2_000_000;
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut corpus: Vec<Input> = vec![[0; WORDS]];
    let mut seen = BTreeSet::new();
    let mut buffer = Buffer::new();
    let mut accepted = 0;
    let mut pages = all(PageState::Data);
    for number in 0..CASES {
        if number % 16 == 0 {
            // A fresh guest, with every kind of page.
            for (frame, page) in pages.0.iter_mut().enumerate() {
                *page = Page::new(PageState::ALL[frame / 3 % 5]);
            }
        }
        let mut input = corpus[random.below(corpus.len())];
        mutate(&mut input, &mut random);
        let rules = Rules {
            execute_only: random.below(2) == 0,
            separates_execution: random.below(8) != 0,
            exec: HekiExec::ALL[random.below(3)],
        };
        let mut copies = 0;
        // One word in 64 changes between two copies.
        let race = random.below(64);
        let list = buffer.read(Gpa::new(BASE), |at, to| {
            copies += 1;
            if race == 0 {
                input[random.below(WORDS)] = (random.next() % 4) << 12;
            }
            let Some(start) = at.raw().checked_sub(BASE) else { return false };
            let bytes = zerocopy::IntoBytes::as_bytes(&input);
            let Ok(start) = usize::try_from(start) else { return false };
            let Some(from) = bytes.get(start..).and_then(|rest| rest.get(..to.len())) else {
                return false;
            };
            to.copy_from_slice(from);
            true
        });
        assert!(copies <= 2 * MOST_PAGES);
        let before = pages.0.clone();
        let (answer, wanted) = match list {
            Err(refusal) => (Err(refusal), vec![]),
            Ok(list) => {
                let wanted: Vec<Wanted> = list.wanted().collect();
                (protect(&list, &ram(), rules, &mut pages), wanted)
            }
        };
        if answer.is_err() {
            assert_eq!(pages.0, before);
        } else {
            accepted += usize::from(!wanted.is_empty());
            check(&before, &pages.0, &wanted);
        }
        let entries = wanted.len().min(8);
        if seen.insert((answer.map_err(|refusal| refusal as u32), copies, entries)) {
            corpus.push(input);
        }
    }
    // It reached what it is there for.
    assert!(accepted > CASES / 100, "{accepted} requests with entries were accepted");
    assert!(corpus.len() > 20, "{} kinds of input", corpus.len());
}

/// After a request that was accepted no frame allows more than was asked for, a locked one no more
/// than before, and one that was not named is what it was.
fn check(before: &[Page], after: &[Page], wanted: &[Wanted]) {
    for (frame, (before, after)) in (0..).map(Gfn::new).zip(before.iter().zip(after)) {
        let Some(wanted) = wanted.iter().find(|wanted| wanted.frames.contains(frame)) else {
            assert_eq!(before, after);
            continue;
        };
        if !is_ram(frame.raw()) {
            assert_eq!(before, after);
            continue;
        }
        assert!(!before.immutable);
        let allows = after.allows(View::Kernel);
        assert!(wanted.rights.contains(allows), "{wanted:?}: {before:?} became {after:?}");
        assert!(before.state.may_become(after.state));
        if before.state.is_locked() {
            assert!(before.allows(View::Kernel).contains(allows));
        }
        if before.state != PageState::Released {
            assert!(!allows.contains(Rights::WRITE | Rights::EXECUTE));
        }
    }
}
