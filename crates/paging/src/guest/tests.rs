//! The guest walker against tables that this crate wrote, and against random junk.

use super::{GuestLeaf, VisitError, WalkError, visit_kernel_half, visit_user_half, walk};
use crate::tests::memory::FakeMemory;
use crate::tests::model::{case, leaves_of};
use crate::tests::run;
use crate::{ENTRIES, PageTable, TableMemory, X86_64};
use addr::{Frame, Gpa, Gva};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

type Tables = BTreeMap<u64, Box<[u64; ENTRIES]>>;

/// What the copy function of a visit reads from.
fn copy(tables: &Tables) -> impl Fn(Gpa, &mut [u64; ENTRIES]) -> bool {
    |at, buffer| match tables.get(&at.raw()) {
        Some(table) => {
            *buffer = **table;
            true
        }
        None => false,
    }
}

/// What a walk reads from.
fn read(tables: &Tables) -> impl Fn(Gpa) -> Option<u64> {
    |at| Some(tables.get(&at.frame().start().raw())?[at.offset() / 8])
}

fn leaves(
    tables: &Tables,
    root: Gpa,
    levels: u8,
    start: Gva,
    budget: u64,
) -> (Vec<GuestLeaf>, Result<super::Visited, VisitError>) {
    let mut buffers = Box::new([[0; ENTRIES]; 5]);
    let mut leaves = Vec::new();
    let add = |run: GuestLeaf| leaves.extend(run.each());
    let end = visit_kernel_half(root, levels, start, budget, &mut buffers, copy(tables), add);
    (leaves, end)
}

/// The tables of a page table, and, for five levels, one more whose halves' outermost entries lead
/// to them.
fn tables_of(table: &PageTable<X86_64>, memory: &FakeMemory, levels: u8) -> (Tables, Gpa) {
    let linked = crate::tests::model::tables_of::<X86_64>(memory, table.root());
    let page = |frame| Box::new(core::array::from_fn(|index| memory.read(frame, index)));
    let mut tables: Tables =
        linked.into_keys().map(|frame| (frame.start().raw(), page(frame))).collect();
    let root = Gpa::new(table.root().start().raw());
    if levels == 4 {
        return (tables, root);
    }
    let mut top = Box::new([0; ENTRIES]);
    top[0] = root.raw() | 7;
    top[ENTRIES - 1] = root.raw() | 7;
    tables.insert(0x1000, top);
    (tables, Gpa::new(0x1000))
}

/// The indices that hostile software writes to.
const INDICES: &[usize] = &[0, 1, 255, 256, 257, 300, 511];

/// An entry that hostile software might write: one of few addresses, any flags.
fn junk() -> impl Strategy<Value = u64> {
    let flags =
        prop::sample::select([0, 1, 3, 7, 0x81, 0x87, 1 << 63 | 1, 0x7f << 52 | 7].as_slice());
    (0_u64..6, flags).prop_map(|(table, flags)| table << 12 | flags)
}

fn junk_tables() -> impl Strategy<Value = Tables> {
    let entries = prop::collection::vec((prop::sample::select(INDICES), junk()), 0..12);
    prop::collection::vec(entries, 5).prop_map(|tables| {
        let page = |entries: Vec<(usize, u64)>| {
            let mut page = Box::new([0; ENTRIES]);
            entries.into_iter().for_each(|(index, entry)| page[index] = entry);
            page
        };
        (0..).map(|number| number << 12).zip(tables.into_iter().map(page)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn guest_walks_agree_with_the_page_table(
        case in case::<X86_64>(6),
        levels in 4_u8..=5,
    ) {
        let (table, memory, _) = run::<X86_64>(&case, |_, _, _| {});
        let (tables, root) = tables_of(&table, &memory, levels);
        for page in case.points.iter().flat_map(|page| [page.wrapping_sub(1), *page]) {
            let gva = Frame::new(page).start().plus(0x123);
            let expected = table.walk(&memory, Frame::new(page)).map(|leaf| {
                let gpa = Gpa::new(leaf.frame.start().raw() + 0x123);
                (gpa, leaf.level, leaf.rights.write, leaf.rights.execute, leaf.rights.user)
            });
            let found = walk(root, levels, gva, read(&tables)).ok();
            let found = found.map(|t| {
                (t.gpa, t.level, t.rights.write, t.rights.execute, t.rights.user)
            });
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_visit_finds_the_leaves_of_the_upper_half(
        case in case::<X86_64>(6),
        levels in 4_u8..=5,
        start in any::<prop::sample::Index>(),
    ) {
        let (table, memory, _) = run::<X86_64>(&case, |_, _, _| {});
        let (tables, root) = tables_of(&table, &memory, levels);
        let start: Gva = Frame::new(*start.get(&case.points)).start();
        let mut expected = Vec::new();
        for (page, leaf) in leaves_of(&table, &memory) {
            // With five levels the upper half also shows the lower half of the four-level table.
            let upper = page >> 51 != 0;
            let page = 0xffff << 36 | page;
            let last = Frame::<addr::GuestVirtual>::new(page + leaf.level.frames() - 1).start();
            if (upper || levels == 5) && last.plus(0xfff) >= start {
                let r = leaf.rights;
                expected.push((page << 12, leaf.frame.start().raw(), leaf.level, r.write, r.execute, r.user));
            }
        }
        let (found, end) = leaves(&tables, root, levels, start, 1 << 20);
        let found: Vec<_> = found.iter().map(|leaf| {
            let r = leaf.rights;
            (leaf.gva.raw(), leaf.gpa.raw(), leaf.level, r.write, r.execute, r.user)
        }).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(end.unwrap().unreadable, 0);
    }

    #[test]
    fn both_halves_together_are_all_leaves(case in case::<X86_64>(6), levels in 4_u8..=5) {
        let (table, memory, _) = run::<X86_64>(&case, |_, _, _| {});
        let (tables, root) = tables_of(&table, &memory, levels);
        let mut found = Vec::new();
        let mut buffers = Box::new([[0; ENTRIES]; 5]);
        let add = |run: GuestLeaf| {
            found.extend(run.each().map(|leaf| (leaf.gva.raw(), leaf.gpa.raw())));
        };
        visit_user_half(root, levels, 1 << 20, &mut buffers, copy(&tables), add).unwrap();
        prop_assert!(found.iter().all(|(gva, _)| gva >> 63 == 0));
        let (upper, _) = leaves(&tables, root, levels, Gva::new(0), 1 << 20);
        found.extend(upper.iter().map(|leaf| (leaf.gva.raw(), leaf.gpa.raw())));
        let leaves_of_the_table = leaves_of(&table, &memory).into_iter();
        let mut expected: Vec<_> = { leaves_of_the_table }
            .map(|(page, leaf)| (page << 12, leaf.frame.start().raw()))
            .collect();
        if levels == 5 {
            // Its first and last entries lead to the same table of four levels: everything twice.
            let base = |half: u64| half.wrapping_mul(0xffff << 48);
            expected = [0, 1].into_iter().flat_map(|half| {
                expected.iter().map(move |(gva, gpa)| (gva & 0xffff_ffff_ffff | base(half), *gpa))
            }).collect();
        }
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_visit_of_junk_ends_and_agrees_with_walks(
        tables in junk_tables(),
        levels in 4_u8..=5,
        budget in 0_u64..300,
    ) {
        let (found, end) = leaves(&tables, Gpa::new(0), levels, Gva::new(0), budget);
        for pair in found.windows(2) {
            let next = pair[0].gva.checked_add(1 << pair[0].level.shift());
            prop_assert!(next.is_some_and(|next| next <= pair[1].gva));
        }
        for leaf in found.into_iter().take(200) {
            let translation = walk(Gpa::new(0), levels, leaf.gva, read(&tables)).unwrap();
            let found = (leaf.gpa, leaf.level, leaf.rights);
            prop_assert_eq!(found, (translation.gpa, translation.level, translation.rights));
            prop_assert!(leaf.gva.raw() >> 63 == 1);
        }
        if let Ok(visited) = end {
            prop_assert!(visited.tables <= budget);
        }
    }
}

/// Neighbours are joined as far as they go on, whatever accessed and dirty bits say; no further.
#[test]
fn runs_end_where_anything_differs() {
    const BITS: [u64; 5] = [1 << 1, 1 << 2, 1 << 63, 1 << 0, 1 << 30];
    for (differs, at) in BITS.into_iter().flat_map(|bit| (1..40).map(move |at| (bit, at))) {
        let leaf = |index: u64| (0x7_0000_0007 + index * 0x1000) | ((index % 4) << 5);
        let mut last = Box::new([0; ENTRIES]);
        last.iter_mut().zip(0..40).for_each(|(entry, index)| *entry = leaf(index));
        last[usize::try_from(at).unwrap()] ^= differs;
        let link = |at: u64| {
            let mut table = Box::new([0; ENTRIES]);
            table[ENTRIES - 1] = at | 7;
            table
        };
        let tables = [(0, link(0x1000)), (0x1000, link(0x2000)), (0x2000, link(0x3000))];
        let tables: Tables = tables.into_iter().chain([(0x3000, last)]).collect();
        let (mut buffers, mut counts) = (Box::new([[0; ENTRIES]; 5]), Vec::new());
        let (root, start) = (Gpa::new(0), Gva::new(0));
        let add = |run: GuestLeaf| counts.push(run.count);
        visit_kernel_half(root, 4, start, 9, &mut buffers, copy(&tables), add).unwrap();
        let own = u64::from(differs != 1 << 0);
        let expected = [at, own, 39 - at].into_iter().filter(|count| *count > 0);
        assert_eq!(counts, expected.collect::<Vec<_>>());
    }
}

#[test]
fn a_table_that_links_to_itself_uses_up_the_budget() {
    let tables = Tables::from([(0, Box::new([7; ENTRIES]))]);
    let (_, end) = leaves(&tables, Gpa::new(0), 4, Gva::new(0), 1000);
    assert_eq!(end, Err(VisitError::Truncated { budget: 1000 }));
}

#[test]
fn tables_out_of_reach_are_counted() {
    let mut top = Box::new([0; ENTRIES]);
    top[255] = 0x5007;
    top[300] = 0x5007;
    top[301] = 0x6007;
    let (found, end) = leaves(&Tables::from([(0, top)]), Gpa::new(0), 4, Gva::new(0), 10);
    assert!(found.is_empty());
    assert_eq!(end, Ok(super::Visited { tables: 3, unreadable: 2 }));
}

#[test]
fn bad_questions_are_refused() {
    let none = |_| None;
    let gva = Gva::new(0xffff_8000_0000_0000);
    assert_eq!(walk(Gpa::new(0), 3, gva, none), Err(WalkError::Levels(3)));
    let hole = Gva::new(0x8000_0000_0000);
    assert_eq!(walk(Gpa::new(0), 4, hole, none), Err(WalkError::NotCanonical));
    let entry = Gpa::new(0x1000 + 8);
    let unreadable = Err(WalkError::Unreadable { level: 5, entry: Gpa::new(0x1000) });
    assert_eq!(walk(Gpa::new(0x1fff), 5, hole, none), unreadable);
    let absent = walk(Gpa::new(0x1000), 4, Gva::new(1 << 39), |at| (at == entry).then_some(0x80));
    assert_eq!(absent, Err(WalkError::NotPresent { level: 4, entry }));
    let (_, end) = leaves(&Tables::new(), Gpa::new(0), 6, Gva::new(0), 10);
    assert_eq!(end, Err(VisitError::Levels(6)));
}
