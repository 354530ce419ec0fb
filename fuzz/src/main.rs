//! What a hostile kernel can say by Heki's hypercalls, found by coverage: the input is the
//! arguments, the policy and the guest's memory that lists are read from.
//!
//! What must hold for every input: no panic; a bounded number of copies; a refused request changes
//! nothing; an accepted one gives each page no more than was asked for, a locked page no more than
//! it had, and other pages what they had; a pin keeps the value that is there.

#![no_main]

use abi::policy::HekiExec;
use addr::{FrameRange, Gfn, Gpa, GuestPhysical};
use heki::list::{Buffer, MOST_PAGES, Wanted};
use heki::memory::{Gate, Rules, protect};
use heki::{control, control::Request};
use integrity::Rights;
use integrity::pins::ControlPin;
use integrity::state::{Page, PageState, View};
use libfuzzer_sys::fuzz_target;

/// Frames of the guest.
const FRAMES: u64 = 40;
/// Where the input lies in the guest's memory.
const BASE: u64 = 0x1000;
/// Bytes of the input before the guest's memory.
const HEADER: usize = 28;

/// The guest's pages; the hole between its two pieces of RAM has none.
#[derive(Clone, PartialEq)]
struct Pages([Page; FRAMES as usize]);

fn is_ram(frame: Gfn) -> bool {
    frame.raw() < 16 || (24..FRAMES).contains(&frame.raw())
}

impl Pages {
    /// Every kind of page but the hypervisor's, with what earlier requests may have withheld.
    fn new(seed: u8) -> Self {
        let mut pages = [Page::new(PageState::Data); FRAMES as usize];
        for (page, number) in pages.iter_mut().zip((0..).map(|at| seed.wrapping_add(at))) {
            page.state = PageState::ALL[usize::from(number / 3 % 5)];
            page.withheld =
                Rights::from_bits_truncate(if number % 4 == 0 { number / 4 } else { 0 });
            page.immutable = number % 11 == 0;
        }
        Self(pages)
    }
}

impl Gate for Pages {
    fn page(&self, frame: Gfn) -> Option<Page> {
        let page = self.0.get(usize::try_from(frame.raw()).ok()?).copied();
        page.filter(|_| is_ram(frame))
    }

    fn set(&mut self, run: FrameRange<GuestPhysical>, page: Page) {
        let before = self.page(run.start);
        for frame in run.iter() {
            assert!(is_ram(frame) && self.page(frame) == before);
            self.0[frame.raw() as usize] = page;
        }
    }
}

fuzz_target!(|input: &[u8]| {
    if let Some((header, rest)) = input.split_at_checked(HEADER) {
        let word = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let [kind, exec, pages, race] = [24, 25, 26, 27].map(|at| header[at]);
        match kind % 8 {
            0 => pin([word(0), word(8), word(16)], word(8).rotate_left(u32::from(race))),
            _ => request(kind, HekiExec::ALL[usize::from(exec % 3)], pages, race, memory(rest)),
        }
    }
});

/// The guest's memory: three bytes of the input make a word of the kinds that lists are made of,
/// since no fuzzer guesses two entries in a row that make sense.
fn memory(input: &[u8]) -> Vec<u8> {
    let words = input.chunks_exact(3).map(|piece| {
        let value = u64::from(piece[1]) | u64::from(piece[2]) << 8;
        match piece[0] % 4 {
            0 => value % 20,
            1 => value % (FRAMES + 4) << 12,
            2 => BASE + 8 * (value % 1024),
            _ => value << (piece[0] % 49),
        }
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// Hypercall 13.
fn pin([a0, a1, a2]: [u64; 3], value: u64) {
    // The registers are numbered as people do it, which no fuzzer guesses soon.
    let before = ControlPin { must_be_one: value & a2, must_be_zero: !value & a0 };
    for arguments in [[a0, a1, a2], [a0 & 4, a1, a2 & (1 << 63 | 1)]] {
        if let Ok(Request::Pin { pin, .. }) = control::judge(arguments, |_| (value, before)) {
            assert!(pin.allows(value));
            assert_eq!(pin.must_be_one & before.must_be_zero, 0);
            assert_eq!(pin.must_be_zero & before.must_be_one, 0);
        }
    }
}

/// Hypercall 14.
fn request(kind: u8, exec: HekiExec, seed: u8, race: u8, mut memory: Vec<u8>) {
    let rules = Rules { execute_only: kind & 8 != 0, separates_execution: kind & 16 == 0, exec };
    let mut buffer = Buffer::new();
    let mut copies = 0;
    let list = buffer.read(Gpa::new(BASE), |from, to| {
        copies += 1;
        // Another CPU changes the guest's memory between two copies.
        if race & 1 != 0 && !memory.is_empty() {
            let at = usize::from(race) * copies % memory.len();
            memory[at] ^= race;
        }
        let start = from.raw().checked_sub(BASE).and_then(|start| usize::try_from(start).ok());
        let bytes = start.and_then(|start| memory.get(start..)?.get(..to.len()));
        bytes.map(|bytes| to.copy_from_slice(bytes)).is_some()
    });
    assert!(copies <= 2 * MOST_PAGES);
    let Ok(list) = list else { return };
    let wanted: Vec<Wanted> = list.wanted().collect();
    let range = |start, end| FrameRange::new(Gfn::new(start), Gfn::new(end));
    let mut pages = Pages::new(seed);
    let before = pages.clone();
    match protect(&list, &[range(0, 16), range(24, FRAMES)], rules, &mut pages) {
        Err(_) => assert!(pages == before),
        Ok(()) => check(&before, &pages, &wanted, rules),
    }
}

fn check(before: &Pages, after: &Pages, wanted: &[Wanted], rules: Rules) {
    let view = if rules.separates_execution { View::Kernel } else { View::Single };
    for frame in (0..FRAMES).map(Gfn::new).filter(|frame| is_ram(*frame)) {
        let (Some(old), Some(new)) = (before.page(frame), after.page(frame)) else { continue };
        let Some(wanted) = wanted.iter().find(|wanted| wanted.frames.contains(frame)) else {
            assert!(old == new);
            continue;
        };
        let allows = new.allows(view);
        assert!(!old.immutable && old.state.may_become(new.state));
        assert!(wanted.rights.contains(allows & (Rights::READ | Rights::WRITE)));
        assert!(wanted.rights.contains(new.allows(View::Kernel)));
        assert!(rules.execute_only || allows.contains(Rights::READ));
        if old.state.is_locked() {
            assert!(old.allows(view).contains(allows));
        }
        if old.state == PageState::Data && rules.exec != HekiExec::Trust {
            assert!(new.state == PageState::Data);
        }
    }
}
