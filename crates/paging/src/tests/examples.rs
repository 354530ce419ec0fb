//! Single operations: what they store, take and refuse.

use super::memory::FakeMemory;
use super::model::{leaves_of, tables_of};
use crate::{ENTRIES, Entry, Format};
use crate::{HostRights, Level, Npt, NptExecute, NptRights, PageTable, PagingError, X86_64};
use crate::{Leaf, TableMemory};
use addr::{FrameRange, Gfn, Hfn, Hpn};
use std::vec::Vec;

const G1: u64 = Level::Page1G.frames();

fn guest(start: u64, count: u64) -> FrameRange<addr::GuestPhysical> {
    FrameRange::with_count(Gfn::new(start), count)
}

/// A second stage that maps the first 4 GiB to themselves.
fn identity() -> (PageTable<Npt>, FakeMemory) {
    let mut memory = FakeMemory::new();
    let mut table = PageTable::new(&mut memory).unwrap();
    let all = guest(0, 4 * G1);
    table.map(&mut memory, all, Hfn::new(0), NptRights::ALL, Level::Page1G).unwrap();
    memory.history.clear();
    (table, memory)
}

#[test]
fn a_large_range_takes_few_tables() {
    let (_, memory) = identity();
    assert_eq!(memory.used(), 2);
}

#[test]
fn one_page_is_split_out_of_a_gigabyte_and_put_back() {
    let (mut table, mut memory) = identity();
    let page = guest(G1 + 1000, 1);
    let removed = table.protect(&mut memory, page, NptRights::READ).unwrap();
    assert!(removed.is_empty());
    removed.release(&mut memory, |due| due.acknowledged());
    assert_eq!(memory.used(), 4);
    let leaf = |frame, rights, level| Some(Leaf { frame: Hfn::new(frame), rights, level });
    let (read, all) = (NptRights::READ, NptRights::ALL);
    let at = |table: &PageTable<Npt>, memory: &FakeMemory, page| table.walk(memory, Gfn::new(page));
    assert_eq!(at(&table, &memory, G1 + 1000), leaf(G1 + 1000, read, Level::Page4K));
    assert_eq!(at(&table, &memory, G1 + 1001), leaf(G1 + 1001, all, Level::Page4K));
    assert_eq!(at(&table, &memory, G1 + 5), leaf(G1 + 5, all, Level::Page2M));
    assert_eq!(at(&table, &memory, 5), leaf(5, all, Level::Page1G));

    let removed = table.protect(&mut memory, page, all).unwrap();
    removed.release(&mut memory, |due| due.acknowledged());
    let removed = table.collapse(&mut memory, page, Level::Page1G).unwrap();
    assert_eq!(memory.used(), 4, "freed only after the flush");
    removed.release(&mut memory, |due| due.acknowledged());
    assert_eq!(memory.used(), 2);
    assert_eq!(at(&table, &memory, G1 + 1000), leaf(G1 + 1000, all, Level::Page1G));
}

#[test]
fn equal_rights_store_nothing() {
    let (mut table, mut memory) = identity();
    let removed = table.protect(&mut memory, guest(3, 70), NptRights::ALL).unwrap();
    removed.release(&mut memory, |due| due.acknowledged());
    assert!(memory.history.is_empty());
}

#[test]
fn a_hidden_page_is_not_present_but_remembers_its_frame() {
    let (mut table, mut memory) = identity();
    let removed = table.protect(&mut memory, guest(7, 1), NptRights::NONE).unwrap();
    removed.release(&mut memory, |due| due.acknowledged());
    let last = memory.history.iter().find(|store| store.index == 7 && store.entry & 1 == 0);
    assert!(last.is_some());
    let leaf = table.walk(&memory, Gfn::new(7)).unwrap();
    assert_eq!((leaf.frame, leaf.rights), (Hfn::new(7), NptRights::NONE));
}

#[test]
fn only_leaves_of_supervisor_code_are_no_user_entries() {
    for rights in crate::format::tests::all_npt_rights() {
        let (mut table, mut memory) = identity();
        let removed = table.protect(&mut memory, guest(600, 700), rights).unwrap();
        removed.release(&mut memory, |due| due.acknowledged());
        for (page, (_, level)) in tables_of::<Npt>(&memory, table.root()) {
            for entry in (0..ENTRIES).map(|index| memory.read(page, index)) {
                let is_supervisor_code = matches!(
                    Npt::decode(entry, level),
                    Entry::Leaf { rights, .. } if rights.execute == NptExecute::SupervisorPage
                );
                assert!(entry == 0 || (entry & 4 == 0) == is_supervisor_code, "{rights:?}");
            }
        }
    }
}

#[test]
fn what_finds_no_room_in_removed_is_collected_later() {
    let mut memory = FakeMemory::new();
    let mut table = PageTable::<Npt>::new(&mut memory).unwrap();
    // 150 lowest tables in one gigabyte, the last page of which stays.
    let range = guest(0, 150 * 512);
    table.map(&mut memory, range, Hfn::new(0), NptRights::READ, Level::Page4K).unwrap();
    assert_eq!(memory.used(), 153);
    let first = table.unmap(&mut memory, guest(0, 150 * 512 - 1)).unwrap();
    assert!(first.is_full());
    let mut second = table.collapse(&mut memory, range, Level::Page1G).unwrap();
    assert!(second.is_full());
    let second_rest = second.join(first).unwrap();
    assert_eq!(memory.used(), 153);
    second.release(&mut memory, |due| due.acknowledged());
    second_rest.release(&mut memory, |due| due.acknowledged());
    assert_eq!(memory.used(), 153 - 128);
    let third = table.collapse(&mut memory, range, Level::Page1G).unwrap();
    assert!(!third.is_full());
    third.release(&mut memory, |due| due.acknowledged());
    assert_eq!(memory.used(), 4);
    table.destroy(&mut memory, |due| due.acknowledged()).unwrap();
    assert_eq!(memory.used(), 0);
}

#[test]
fn changes_joined_share_a_flush() {
    let (mut table, mut memory) = identity();
    let mut removed = table.protect(&mut memory, guest(3, 1), NptRights::READ).unwrap();
    let other = table.unmap(&mut memory, guest(0, G1)).unwrap();
    assert!(removed.join(other).is_none());
    assert_eq!(memory.used(), 4);
    removed.release(&mut memory, |due| due.acknowledged());
    assert_eq!(memory.used(), 2);
}

#[test]
fn ranges_that_no_table_expresses_are_refused() {
    let mut memory = FakeMemory::new();
    let mut host = PageTable::<X86_64>::new(&mut memory).unwrap();
    let half = 1 << 35;
    let bad =
        [(half - 1, half + 1), (half, half + 1), (half - 1, (1 << 52) - half + 1), (0, 1 << 52)];
    for (start, end) in bad {
        let range = FrameRange::new(Hpn::new(start), Hpn::new(end));
        let outcome = host.map(&mut memory, range, Hfn::new(0), HostRights::READ, Level::Page4K);
        assert_eq!(outcome, Err(PagingError::OutOfRange { start, end }));
        assert!(host.unmap(&mut memory, range).is_err());
        assert!(host.protect(&mut memory, range, HostRights::READ).is_err());
        assert!(host.collapse(&mut memory, range, Level::Page1G).is_err());
    }
    assert_eq!(host.walk(&memory, Hpn::new(half)), None);

    let mut nested = PageTable::<Npt>::new(&mut memory).unwrap();
    let mut map = |start, count, output| {
        let (range, output) = (guest(start, count), Hfn::new(output));
        nested.map(&mut memory, range, output, NptRights::READ, Level::Page1G)
    };
    assert!(map((1 << 36) - 1, 2, 0).is_err());
    assert!(map(0, 2, (1 << 40) - 1).is_err());
    assert!(map(0, 2, u64::MAX).is_err());
    assert_eq!(map((1 << 36) - 1, 1, (1 << 40) - 1), Ok(()));
    assert_eq!(map(5, 0, 5), Ok(()));
}

#[test]
fn accessed_and_dirty_bits_do_not_hinder_a_collapse() {
    let (mut table, mut memory) = identity();
    let removed = table.protect(&mut memory, guest(512, 1), NptRights::READ).unwrap();
    removed.release(&mut memory, |due| due.acknowledged());
    let removed = table.protect(&mut memory, guest(512, 1), NptRights::ALL).unwrap();
    removed.release(&mut memory, |due| due.acknowledged());
    // What a CPU might leave: each leaf with other accessed and dirty bits.
    for (page, (_, level)) in tables_of::<Npt>(&memory, table.root()) {
        for index in 0..ENTRIES {
            let entry = memory.read(page, index);
            if matches!(Npt::decode(entry, level), Entry::Leaf { .. }) {
                memory.write(page, index, entry & !0x60 | (index as u64 % 4) << 5);
            }
        }
    }
    let removed = table.collapse(&mut memory, guest(512, 1), Level::Page1G).unwrap();
    removed.release(&mut memory, |due| due.acknowledged());
    let leaf = |n| Leaf { frame: Hfn::new(n * G1), rights: NptRights::ALL, level: Level::Page1G };
    let expected: Vec<_> = (0..4).map(|n| (n * G1, leaf(n))).collect();
    assert_eq!(leaves_of(&table, &memory), expected);
}
