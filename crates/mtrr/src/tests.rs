//! Against the manual's definition, page by page.

use super::*;
use addr::Gfn;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Registers as firmware leaves them.
#[derive(Clone, Debug)]
struct Registers {
    address_bits: u32,
    /// Base and mask, as written.
    variable: Vec<(u64, u64)>,
    fixed: [u64; 11],
    default: u64,
    cap_fixed: bool,
}

impl Registers {
    fn values(&self) -> BTreeMap<u32, u64> {
        let cap = self.variable.len() as u64 | u64::from(self.cap_fixed) << 8;
        let mut values = BTreeMap::from([(0xfe, cap), (0x2ff, self.default)]);
        for (index, (base, mask)) in (0x200..).step_by(2).zip(&self.variable) {
            values.extend([(index, *base), (index + 1, *mask)]);
        }
        let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26f);
        values.extend(fixed.zip(self.fixed));
        values
    }

    fn types(&self) -> Result<Option<MemoryTypes>, MtrrError> {
        let values = self.values();
        MemoryTypes::of_mtrrs(|number| values[&number], self.address_bits)
    }

    /// The number of the type at a physical address, by sections 12.11.2 and 12.11.4.
    fn at(&self, address: u64) -> u64 {
        if self.cap_fixed && self.default >> 10 & 1 == 1 && address < 0x10_0000 {
            let (register, block) = match address {
                0..0x8_0000 => (0, address >> 16),
                0x8_0000..0xc_0000 => (1 + (address >> 17 & 1), address >> 14 & 7),
                _ => (3 + (address >> 15 & 7), address >> 12 & 7),
            };
            return self.fixed[usize::try_from(register).unwrap()] >> (8 * block) & 0xff;
        }
        let bits = (1 << self.address_bits) - 0x1000;
        let hits = |(base, mask): &&(u64, u64)| {
            mask >> 11 & 1 == 1 && address & mask & bits == base & mask & bits
        };
        let mut types: Vec<_> =
            self.variable.iter().filter(hits).map(|(base, _)| base & 0xff).collect();
        types.sort_unstable();
        types.dedup();
        match types[..] {
            [] => self.default & 0xff,
            [one] => one,
            [4, 6] => 4,
            _ => 0,
        }
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop::sample::select(&[0_u64, 1, 4, 5, 6][..])
}

/// A range of a power of two bytes, small ones near the start of memory where they meet the fixed
/// ones.
fn variable(address_bits: u32) -> impl Strategy<Value = (u64, u64)> {
    (12..=address_bits, 0_u64..64, number(), prop::bool::weighted(0.8)).prop_map(
        move |(log, place, memory_type, valid)| {
            let all = (1_u64 << address_bits) - 1;
            let base = (place << log) & all;
            let mask = all & !((1 << log) - 1);
            (base | memory_type, mask | u64::from(valid) << 11)
        },
    )
}

fn registers() -> impl Strategy<Value = Registers> {
    prop::sample::select(&[32_u32, 36, 40, 52][..]).prop_flat_map(move |address_bits| {
        let variable = prop::collection::vec(variable(address_bits), 0..=10);
        let fixed = prop::array::uniform11(prop::array::uniform8(number()));
        let switches = (number(), any::<bool>(), any::<bool>());
        (variable, fixed, switches).prop_map(move |(variable, fixed, switches)| {
            let (default, fixed_on, cap_fixed) = switches;
            let fixed =
                fixed.map(|eight| eight.iter().rev().fold(0, |all, number| all << 8 | number));
            let default = default | u64::from(fixed_on) << 10 | 1 << 11;
            Registers { address_bits, variable, fixed, default, cap_fixed }
        })
    })
}

proptest! {
    /// Each page of the first 2 MiB, both sides of every edge above, and random ones.
    #[test]
    fn every_page_has_the_type_that_the_manual_gives(
        registers in registers(), random in prop::collection::vec(any::<u64>(), 20),
    ) {
        let types = registers.types().unwrap().unwrap();
        let last = (1_u64 << (registers.address_bits - 12)) - 1;
        let edges = registers.variable.iter().flat_map(|(base, mask)| {
            let start = base >> 12;
            let count = 1_u64.checked_shl((mask >> 12).trailing_zeros()).unwrap_or(0);
            let end = start + count;
            [start.wrapping_sub(1), start, end.wrapping_sub(1), end]
        });
        for page in (0..512).chain(edges).chain(random).map(|page| page & last) {
            let found = types.at(Gfn::new(page)) as u64;
            prop_assert_eq!(found, registers.at(page << 12), "page {:#x}", page);
        }
    }

    /// Runs cover the range, in order, agree with the type of each page, and none could be longer.
    #[test]
    fn runs_are_the_fewest_of_one_type(
        registers in registers(), start in 0_u64..300, count in 0_u64..2000,
    ) {
        let types = registers.types().unwrap().unwrap();
        let range = FrameRange::with_count(Gfn::new(start), count);
        let mut expected: Vec<(FrameRange<_>, MemoryType)> = Vec::new();
        for frame in range.iter() {
            let memory_type = types.at(frame);
            match expected.last_mut() {
                Some((run, last)) if *last == memory_type => run.end = frame.plus(1),
                _ => expected.push((FrameRange::with_count(frame, 1), memory_type)),
            }
        }
        prop_assert_eq!(types.runs(range).collect::<Vec<_>>(), expected);
    }

    /// The same at the largest scale: edges only, since there are too many pages.
    #[test]
    fn runs_of_all_memory_join_up(registers in registers()) {
        let types = registers.types().unwrap().unwrap();
        let end = Gfn::new(1 << (registers.address_bits - 12));
        let mut at = Gfn::new(0);
        let mut last = None;
        for (run, memory_type) in types.runs(FrameRange::new(at, end)) {
            prop_assert_eq!(run.start, at);
            prop_assert!(!run.is_empty());
            prop_assert_ne!(Some(memory_type), last);
            prop_assert_eq!(types.at(run.start), memory_type);
            prop_assert_eq!(types.at(Gfn::new(run.end.raw() - 1)), memory_type);
            (at, last) = (run.end, Some(memory_type));
        }
        prop_assert_eq!(at, end);
    }

    /// Any registers at all: an answer, and no panic.
    #[test]
    fn arbitrary_registers_are_judged(
        cap in any::<u64>(), default in any::<u64>(), values in any::<[u64; 7]>(),
    ) {
        let read = |number| match number {
            0xfe => cap,
            0x2ff => default,
            number => values[number as usize % 7],
        };
        if let Ok(types) = MemoryTypes::of_mtrrs(read, 52) {
            prop_assert_eq!(types.is_some(), default >> 11 & 1 == 1);
        }
    }
}

const NONE: Registers = Registers {
    address_bits: 40,
    variable: Vec::new(),
    fixed: [0; 11],
    default: 1 << 11 | 6,
    cap_fixed: true,
};

#[test]
fn switched_off_registers_say_nothing() {
    assert!(Registers { default: 6, ..NONE }.types().unwrap().is_none());
    assert!(NONE.types().unwrap().is_some());
}

#[test]
fn uncacheable_wins_and_write_through_beats_write_back() {
    use MemoryType::*;
    for (a, b, both) in [
        (WriteBack, Uncacheable, Uncacheable),
        (WriteCombining, Uncacheable, Uncacheable),
        (WriteThrough, WriteBack, WriteThrough),
        (WriteBack, WriteBack, WriteBack),
        (WriteThrough, WriteThrough, WriteThrough),
        (WriteCombining, WriteCombining, WriteCombining),
        (WriteProtected, WriteProtected, WriteProtected),
        (WriteCombining, WriteBack, Uncacheable),
        (WriteProtected, WriteBack, Uncacheable),
        (WriteProtected, WriteThrough, Uncacheable),
    ] {
        assert_eq!((a.overlap(b), b.overlap(a)), (both, both), "{a:?} {b:?}");
    }
}

/// As firmware leaves a PC with 6 GiB: everything write-back but the hole below 4 GiB.
#[test]
fn a_pc() {
    let hole = (0xc000_0000, 0xff_c000_0000 | 1 << 11);
    let fixed = {
        let mut fixed = [0x0606_0606_0606_0606; 11];
        fixed[2] = 0;
        fixed
    };
    let pc = Registers { variable: [hole].into(), fixed, default: 1 << 11 | 1 << 10 | 6, ..NONE };
    let types = pc.types().unwrap().unwrap();
    let end = Gfn::new(0x18_0000);
    let runs: Vec<_> = types
        .runs(FrameRange::new(Gfn::new(0), end))
        .map(|(run, memory_type)| (run.start.raw(), memory_type))
        .collect();
    use MemoryType::{Uncacheable, WriteBack};
    let expected = [
        (0, WriteBack),
        (0xa0, Uncacheable),
        (0xc0, WriteBack),
        (0xc_0000, Uncacheable),
        (0x10_0000, WriteBack),
    ];
    assert_eq!(runs, expected);
}

#[test]
fn masks_with_holes_are_refused_and_short_ones_completed() {
    let with = |mask: u64| Registers { variable: [(0x8000_0006, mask | 1 << 11)].into(), ..NONE };
    assert_eq!(with(0xff_4000_0000).types().err(), Some(MtrrError::Holes(0)));
    // Made for 36 address bits; this machine has 40.
    let short = Registers { default: 1 << 11, ..with(0xf_c000_0000) };
    let types = short.types().unwrap().unwrap();
    let types = [0x7_ffff, 0x8_0000, 0xb_ffff, 0xc_0000, 0x108_0000]
        .map(|frame| types.at(Gfn::new(frame)) as u8);
    assert_eq!(types, [0, 6, 6, 0, 0]);
    // No mask at all: every address agrees.
    let all = Registers { default: 1 << 11, ..with(0) }.types().unwrap().unwrap();
    assert_eq!(all.at(Gfn::new(0xfff_ffff)), MemoryType::WriteBack);
}

#[test]
fn more_ranges_than_numbers_are_refused() {
    let read = |number| if number == 0xfe { 41 } else { u64::from(number == 0x2ff) << 11 };
    assert_eq!(MemoryTypes::of_mtrrs(read, 40).err(), Some(MtrrError::TooMany));
}

#[test]
fn by_the_memory_map_ram_is_write_back() {
    let ram = [FrameRange::with_count(Gfn::new(1), 5), FrameRange::with_count(Gfn::new(9), 1)];
    let types = MemoryTypes::of_ram(ram);
    let found: Vec<_> = (0..11).map(|frame| types.at(Gfn::new(frame)) as u8).collect();
    assert_eq!(found, [0, 6, 6, 6, 6, 6, 0, 0, 0, 6, 0]);
}
