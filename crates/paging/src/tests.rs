//! Properties of page tables, for every format, against a plain map; and what single operations cost.

mod examples;
mod history;
pub mod memory;
pub mod model;

use crate::{Ept, Flushed, Level, Npt, PageTable, PagingError, X86_64};
use addr::{Frame, FrameRange};
use memory::FakeMemory;
use model::{Case, Model, TestFormat, case, release, tables_of};
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
        removed.release(memory, Flushed::acknowledged());
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
    let mut leaves = Vec::new();
    table.visit(&memory, |range, leaf| leaves.push((range.start.raw(), leaf)));
    assert_eq!(leaves, model.fewest_leaves());

    let removed = table.unmap(&mut memory, everything::<F>(case)).unwrap();
    removed.release(&mut memory, Flushed::acknowledged());
    collapse_all(&mut table, &mut memory, everything::<F>(case));
    assert_eq!(memory.used(), 1);
    table.destroy(&mut memory, Flushed::acknowledged());
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
