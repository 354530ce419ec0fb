//! Properties of page tables, for every format, against a plain map; and what single operations cost.

mod examples;
mod exhaustion;
mod history;
pub mod memory;
pub mod model;
mod sharing;

use crate::{Donated, Ept, Level, MOST_SPLITS, Npt, PageTable, PagingError, X86_64};
use addr::{Frame, FrameRange};
use memory::FakeMemory;
use model::{Case, Model, Op, Run, TestFormat};
use model::{case, leaves_of, push_run, release, tables_of};
use proptest::prelude::*;
use std::vec::Vec;

/// Does all operations of a case on a table and the model, with `observe` around each, and checks
/// the outcome of each.
pub fn run<F: TestFormat>(
    case: &Case<F::Rights>,
    mut observe: impl FnMut(&PageTable<F>, &FakeMemory, &FakeMemory),
) -> (PageTable<F>, FakeMemory, Model<F>) {
    let mut memory = FakeMemory::new();
    let mut table = PageTable::<F>::new(&mut memory).unwrap();
    let mut model = Model::new(&case.points);
    for op in &case.ops {
        memory.history.clear();
        memory.freed.clear();
        let before = memory.clone();
        let outcome = model.apply_to(op, &mut table, &mut memory);
        observe(&table, &before, &memory);
        assert_eq!(outcome.as_ref().map(|_| ()).map_err(|&error| error), model.apply(op));
        if let Ok(removed) = outcome {
            release(removed, &mut memory);
        }
        model.check(&table, &memory);
        assert_eq!(tables_of::<F>(&memory, table.root()).len(), memory.used());
    }
    (table, memory, model)
}

fn everything<F: TestFormat>(case: &Case<F::Rights>) -> FrameRange<F::Input> {
    let (first, last) = (case.points.first().unwrap(), case.points.last().unwrap());
    FrameRange::new(Frame::new(*first), Frame::new(*last))
}

/// Collapses until nothing more can be.
fn collapse_all<F: TestFormat>(
    table: &mut PageTable<F>,
    memory: &mut FakeMemory,
    range: FrameRange<F::Input>,
) {
    loop {
        let removed = table.collapse(memory, range, Level::Page1G).unwrap();
        let again = removed.is_full();
        removed.release(memory, |due| due.acknowledged());
        if !again {
            return;
        }
    }
}

/// The table does what the map does, and neither keeps nor loses a page.
fn matches_the_model<F: TestFormat>(case: &Case<F::Rights>) {
    let (mut table, mut memory, model) = run::<F>(case, |_, _, _| {});

    collapse_all(&mut table, &mut memory, everything::<F>(case));
    model.check(&table, &memory);
    assert_eq!(leaves_of(&table, &memory), model.fewest_leaves());

    let removed = table.unmap(&mut memory, everything::<F>(case)).unwrap();
    removed.release(&mut memory, |due| due.acknowledged());
    collapse_all(&mut table, &mut memory, everything::<F>(case));
    assert_eq!(memory.used(), 1);
    table.destroy(&mut memory, |due| due.acknowledged()).unwrap();
    assert_eq!(memory.used(), 0);
}

/// Whatever allocation fails, the last operation of a case changes nothing and keeps nothing.
fn survives_lack_of_memory<F: TestFormat>(case: &Case<F::Rights>) {
    let (last, first) = case.ops.split_last().unwrap();
    let first = Case { points: case.points.clone(), ops: first.to_vec() };
    let (mut table, mut memory, model) = run::<F>(&first, |_, _, _| {});

    let mut probe = memory.clone();
    probe.allowance = usize::MAX;
    let outcome = model.apply_to(last, &mut table, &mut probe);
    let needed = usize::MAX - probe.allowance;
    if outcome.is_err() {
        assert_eq!(needed, 0);
        return;
    }
    let used = memory.used();
    for allowance in (0..needed.min(20)).chain(needed.saturating_sub(1)..needed) {
        memory.allowance = allowance;
        let outcome = model.apply_to(last, &mut table, &mut memory);
        assert_eq!(outcome.map(|_| ()), Err(PagingError::OutOfMemory));
        assert_eq!(memory.used(), used);
        model.check(&table, &memory);
    }
}

/// With as many donated pages as are said to suffice, the last operation of a case never lacks
/// memory, whatever others take; and the pages that it does not use come back.
fn donated_pages_suffice<F: TestFormat>(case: &Case<F::Rights>) {
    let (last, first) = case.ops.split_last().unwrap();
    let first = Case { points: case.points.clone(), ops: first.to_vec() };
    let (mut table, mut memory, mut model) = run::<F>(&first, |_, _, _| {});
    let count = match last {
        Op::Map(..) | Op::Split(..) => table.most_tables(model.range_of(last)).unwrap(),
        Op::Unmap(_) | Op::Protect(..) => MOST_SPLITS,
        Op::Collapse(..) => 0,
    };
    memory.allowance = usize::try_from(count).unwrap();
    let mut donated = Donated::take(&mut memory, count).unwrap();
    let outcome = model.apply_to(last, &mut table, &mut donated);
    assert_eq!(outcome.as_ref().map(|_| ()).map_err(|&error| error), model.apply(last));
    release(outcome.ok().flatten(), &mut donated);
    drop(donated);
    assert_eq!(tables_of::<F>(&memory, table.root()).len(), memory.used());
    assert_eq!(Donated::take(&mut memory, 1).err(), Some(PagingError::OutOfMemory));
}

/// A cursor over any range finds what the whole table holds there.
fn cursors_see_their_range<F: TestFormat>(case: &Case<F::Rights>) {
    let (table, memory, _) = run::<F>(case, |_, _, _| {});
    for pair in case.points.windows(3) {
        for (start, end) in [(pair[0], pair[2]), (pair[0] + 1, pair[2]), (pair[0], pair[2] - 1)] {
            let mut inside: Vec<Run<_>> = Vec::new();
            for (page, leaf) in leaves_of(&table, &memory) {
                let run_end = page.wrapping_add(leaf.level.frames()).min(end);
                let (start, skipped) = (page.max(start), start.saturating_sub(page));
                if start < run_end {
                    let (frame, rights) = (leaf.frame.raw() + skipped, leaf.rights);
                    push_run(&mut inside, Run { start, end: run_end, frame, rights });
                }
            }
            let range = FrameRange::new(Frame::new(start), Frame::new(end));
            let mut walked = Vec::new();
            for (pages, leaf) in table.cursor(&memory, range).unwrap() {
                let (start, end) = (pages.start.raw(), pages.end.raw());
                let (frame, rights) = (leaf.frame.raw(), leaf.rights);
                push_run(&mut walked, Run { start, end, frame, rights });
            }
            assert_eq!(walked, inside);
        }
    }
}

macro_rules! properties {
    ($module:ident, $format:ty) => {
        mod $module {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(32))]

                #[test]
                fn a_table_matches_a_plain_map(case in case::<$format>(12)) {
                    matches_the_model::<$format>(&case);
                }

                #[test]
                fn every_store_leaves_each_page_old_or_new(case in case::<$format>(8)) {
                    run::<$format>(&case, history::check);
                }

                #[test]
                fn a_cursor_sees_its_range(case in case::<$format>(8)) {
                    cursors_see_their_range::<$format>(&case);
                }

                #[test]
                fn donations_suffice(case in case::<$format>(6)) {
                    donated_pages_suffice::<$format>(&case);
                }

                #[test]
                fn shared_subtrees_are_seen_by_all(case in sharing::case::<$format>()) {
                    sharing::check::<$format>(&case);
                }

                #[test]
                fn lack_of_memory_changes_nothing(case in case::<$format>(6)) {
                    survives_lack_of_memory::<$format>(&case);
                }
            }
        }
    };
}

properties!(x86_64, X86_64);
properties!(npt, Npt);
properties!(ept, Ept);
