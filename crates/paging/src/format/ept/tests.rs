//! What the CPU makes of every right, and the capabilities of real CPUs.

use super::*;
use crate::PageTable;
use crate::tests::memory::FakeMemory;
use std::vec::Vec;

/// A CPU that can do everything (Skylake and later: the low half is 0x06734141).
pub const ABLE: EptCapabilities = EptCapabilities::from_msr(0xf01_0673_4141);

/// Every right.
pub fn all_rights() -> Vec<EptRights> {
    let execute_only = EptData::ExecuteOnly(ABLE.execute_only().unwrap());
    let mut all = Vec::new();
    for data in [EptData::Hidden, execute_only, EptData::Read, EptData::ReadWrite] {
        for execute in 0..4 {
            all.extend(MemoryType::ALL.map(|memory_type| EptRights {
                data,
                supervisor_execute: execute & 1 != 0,
                user_execute: execute & 2 != 0,
                memory_type,
            }));
        }
    }
    all
}

/// What a CPU allows, by the tables of section 29.3.2, written down independently: read, write,
/// supervisor fetch, user fetch. `None`: misconfigured.
fn cpu(entry: u64, level: u8, mode_based: bool, execute_only: bool) -> Option<[bool; 4]> {
    let at = |bit: u32| entry >> bit & 1 != 0;
    let user = if mode_based { at(10) } else { at(2) };
    let allowed = [at(0), at(1), at(2), user];
    if allowed == [false; 4] {
        return Some(allowed);
    }
    let large = at(7);
    let leaf = level == 1 || large;
    let reserved = match (level, leaf) {
        (4, _) => 0xf8,
        (2 | 3, false) => 0x78,
        (3, true) => 0x3fff_f000,
        (2, true) => 0x1f_f000,
        _ => 0,
    };
    let kind = entry >> 3 & 7;
    let bad = !at(0) && at(1)
        || !execute_only && !at(0) && (at(2) || mode_based && at(10))
        || entry & reserved != 0
        || leaf && matches!(kind, 2 | 3 | 7);
    (!bad).then_some(allowed)
}

#[test]
fn leaves_mean_their_rights_and_are_never_misconfigured() {
    let frame = Hfn::new(0x12_3444_0000);
    for rights in all_rights() {
        for (level, number) in [(Level::Page4K, 1), (Level::Page2M, 2), (Level::Page1G, 3)] {
            let entry = Ept::leaf(frame, level, rights);
            let (s, u) = (rights.supervisor_execute, rights.user_execute);
            let [read, write, fetch] = match rights.data {
                EptData::Hidden => [false, false, false],
                EptData::ExecuteOnly(_) => [false, false, true],
                EptData::Read => [true, false, true],
                EptData::ReadWrite => [true, true, true],
            };
            let with = [read, write, fetch && s, fetch && u];
            let without = [read, write, fetch && s, fetch && s];
            assert_eq!(cpu(entry, number, true, true), Some(with), "{rights:?}");
            assert_eq!(cpu(entry, number, false, true), Some(without), "{rights:?}");
            if !matches!(rights.data, EptData::ExecuteOnly(_)) {
                assert_eq!(cpu(entry, number, true, false), Some(with), "{rights:?}");
                assert_eq!(cpu(entry, number, false, false), Some(without), "{rights:?}");
            }
            assert_eq!(entry >> 63, 1);
            assert_eq!(entry >> 6 & 1, 0, "the guest's PAT counts");
            assert_eq!(entry >> 3 & 7, rights.memory_type as u64);
            assert_eq!(entry & 0xf_ffff_ffff_f000, frame.start().raw());
        }
    }
}

#[test]
fn links_take_no_right_away() {
    let entry = Ept::table(Hfn::new((1 << 40) - 1));
    for level in 2..=4 {
        for (mode_based, execute_only) in [(false, false), (true, false), (true, true)] {
            assert_eq!(cpu(entry, level, mode_based, execute_only), Some([true; 4]));
        }
    }
    assert_eq!(entry >> 63, 1);
}

#[test]
fn only_able_cpus_give_the_witness() {
    assert!(EptCapabilities::from_msr(!1).execute_only().is_none());
    assert!(EptCapabilities::from_msr(1).execute_only().is_some());
}

#[test]
fn capabilities_are_read() {
    assert_eq!(ABLE.largest_leaf(), Level::Page1G);
    assert!(ABLE.four_levels() && ABLE.write_back() && ABLE.accessed_dirty());
    assert!(ABLE.invept_single_context() && ABLE.invept_all_contexts());
    // Nehalem: no 1 GiB leaves, no accessed and dirty flags.
    let old = EptCapabilities::from_msr(0xf01_0611_4141);
    assert_eq!(old.largest_leaf(), Level::Page2M);
    assert!(!old.accessed_dirty());
    let none = EptCapabilities::from_msr(0);
    assert_eq!(none.largest_leaf(), Level::Page4K);
    assert!(!none.four_levels() && !none.write_back());
    // The types count only if there is the instruction.
    let no_invept = EptCapabilities::from_msr(1 << 25 | 1 << 26);
    assert!(!no_invept.invept_single_context() && !no_invept.invept_all_contexts());
}

#[test]
fn a_pointer_names_the_root_and_four_levels_of_write_back_memory() {
    let table = PageTable::<Ept>::new(&mut FakeMemory::new()).unwrap();
    let pointer = Eptp::new(table.root(), ABLE).unwrap();
    assert_eq!(pointer.raw(), table.root().start().raw() | 0x1e);
    let refusal = |value| Eptp::new(table.root(), EptCapabilities::from_msr(value));
    assert_eq!(refusal(1 << 14), Err(EptUnsupported::FourLevels));
    assert_eq!(refusal(1 << 6), Err(EptUnsupported::WriteBack));
}
