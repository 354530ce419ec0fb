//! Replays the stores of an operation one by one, as a CPU that walks the table meanwhile sees
//! them.

use super::memory::FakeMemory;
use super::model::{Run, TestFormat, add_tables, push_run, runs_of, tables_of};
use crate::{ENTRIES, Entry, Level, PageTable, TableMemory};
use addr::Hfn;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

/// Checks that after every store each page translates as before or as after the operation, that no
/// table is written once it was unlinked, and that none was freed that CPUs may walk.
pub fn check<F: TestFormat>(table: &PageTable<F>, before: &FakeMemory, after: &FakeMemory) {
    let old = runs_of(table, before);
    let new = runs_of(table, after);
    let mut linked = tables_of::<F>(before, table.root());
    let mut unlinked = BTreeSet::new();
    assert!(after.freed.iter().all(|page| !linked.contains_key(page)));

    let mut memory = Replay { memory: before.clone() };
    for store in &after.history {
        assert!(!unlinked.contains(&store.table), "writes a table after unlinking it");
        let previous = memory.store(store.table, store.index, store.entry);
        let Some(&(base, level)) = linked.get(&store.table) else { continue };
        let base = base + store.index as u64 * level.frames();

        if let (Entry::Table(gone), Some(below)) = (F::decode(previous, level), level.below()) {
            let mut tables = BTreeMap::new();
            add_tables::<F>(&memory.memory, gone, base, below, &mut tables);
            linked.retain(|table, _| !tables.contains_key(table));
            unlinked.extend(tables.into_keys());
        }
        if let (Entry::Table(next), Some(below)) = (F::decode(store.entry, level), level.below()) {
            add_tables::<F>(&memory.memory, next, base, below, &mut linked);
        }
        let mut now = Vec::new();
        translate::<F>(&memory.memory, store.entry, base, level, &mut now);
        check_span(&old, &new, &now, base, base + level.frames());
    }
    assert_eq!(linked, tables_of::<F>(after, table.root()));
}

/// Memory in which pages spring into being when they are first written.
pub struct Replay {
    pub memory: FakeMemory,
}

impl Replay {
    /// Stores an entry and answers the old one.
    pub fn store(&mut self, table: Hfn, index: usize, entry: u64) -> u64 {
        while !self.memory.is_used(table) {
            self.memory.allocate().unwrap();
        }
        let previous = self.memory.read(table, index);
        self.memory.write(table, index, entry);
        previous
    }
}

/// What one entry translates. Page numbers have 36 bits.
fn translate<F: TestFormat>(
    memory: &FakeMemory,
    entry: u64,
    base: u64,
    level: Level,
    runs: &mut Vec<Run<F::Rights>>,
) {
    match (F::decode(entry, level), level.below()) {
        (Entry::Empty, _) => {}
        (Entry::Leaf { frame, rights }, _) => {
            let end = base + level.frames();
            push_run(runs, Run { start: base, end, frame: frame.raw(), rights });
        }
        (Entry::Table(table) | Entry::Shared(table), below) => {
            let below = below.unwrap();
            for index in 0..ENTRIES {
                let base = base + index as u64 * below.frames();
                translate::<F>(memory, memory.read(table, index), base, below, runs);
            }
        }
    }
}

/// Checks each page of a span: `now` is `old` or `new`.
fn check_span<R: Copy + Eq + core::fmt::Debug>(
    old: &[Run<R>],
    new: &[Run<R>],
    now: &[Run<R>],
    start: u64,
    end: u64,
) {
    // Between two neighbours of these pages nothing changes in any of the three.
    let mut edges = BTreeSet::from([start]);
    for runs in [old, new, now] {
        let from = runs.partition_point(|run| fold(run.end - 1) < start);
        let touching = runs[from..].iter().take_while(|run| fold(run.start) < end);
        edges.extend(touching.flat_map(|run| [fold(run.start), fold(run.end - 1) + 1]));
    }
    for page in edges.into_iter().filter(|page| (start..end).contains(page)) {
        let (old, new, now) = (lookup(old, page), lookup(new, page), lookup(now, page));
        assert!(now == old || now == new, "page {page:#x}: {now:?}, not {old:?} or {new:?}");
    }
}

fn lookup<R: Copy>(runs: &[Run<R>], page: u64) -> Option<(u64, R)> {
    let run = runs.get(runs.partition_point(|run| fold(run.end - 1) < page))?;
    let start = fold(run.start);
    (start <= page).then(|| (run.frame + page - start, run.rights))
}

/// The low 36 bits, which are in order as no case uses both halves.
fn fold(page: u64) -> u64 {
    page & ((1 << 36) - 1)
}
