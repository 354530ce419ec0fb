//! The model: a plain map from page to (frame, rights).
//!
//! To reach 1 GiB leaves without a million keys, a case first draws the only page numbers at which
//! its ranges may begin and end. All pages between two neighbours of these share one fate, so the
//! map holds the first of them for all.

use crate::{Ept, EptRights, Removed, TableMemory};
use crate::{Format, HostRights, Leaf, Level, Npt, NptRights, PageTable, PagingError, X86_64};
use addr::{Frame, FrameRange, Hfn};
use core::fmt::Debug;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::memory::FakeMemory;

const M2: u64 = Level::Page2M.frames();
const G1: u64 = Level::Page1G.frames();

/// A format with what a test must know of it.
pub trait TestFormat: Format + Debug {
    /// First pages of the regions to test in.
    const BASES: &'static [u64];
    /// All rights.
    fn rights() -> Vec<Self::Rights>;
}

impl TestFormat for X86_64 {
    /// The start, a crossing between entries of the root, the upper half, the last 4 GiB.
    const BASES: &'static [u64] =
        &[0, (1 << 27) - 2 * G1, (1 << 52) - (1 << 35), (1 << 52) - 4 * G1];
    fn rights() -> Vec<HostRights> {
        use HostRights as R;
        [R::READ, R::READ_WRITE, R::READ_EXECUTE, R::DEVICE, R { user: true, ..R::READ }].into()
    }
}

impl TestFormat for Npt {
    const BASES: &'static [u64] = &[0, (1 << 27) - 2 * G1, (1 << 36) - 4 * G1];
    fn rights() -> Vec<NptRights> {
        crate::format::tests::all_npt_rights()
    }
}

impl TestFormat for Ept {
    const BASES: &'static [u64] = Npt::BASES;
    fn rights() -> Vec<EptRights> {
        crate::format::tests::all_ept_rights()
    }
}

/// An operation; ranges are indices of points.
#[derive(Clone, Debug)]
pub enum Op<R> {
    /// Output is the range plus this many frames.
    Map(Frames, u64, R, Level),
    Unmap(Frames),
    Protect(Frames, R),
    Split(Frames, Level),
    Collapse(Frames, Level),
}

/// Two indices of points, in either order.
pub type Frames = (prop::sample::Index, prop::sample::Index);

/// A test case.
#[derive(Clone, Debug)]
pub struct Case<R> {
    /// In ascending order.
    pub points: Vec<u64>,
    pub ops: Vec<Op<R>>,
}

pub fn case<F: TestFormat>(ops: usize) -> impl Strategy<Value = Case<F::Rights>> {
    let rights = || prop::sample::select(F::rights());
    let level = || prop::sample::select([Level::Page4K, Level::Page2M, Level::Page1G].as_slice());
    let large = || prop::sample::select([Level::Page2M, Level::Page1G, Level::Top].as_slice());
    let shift = || prop::sample::select([0, 0, 0, 3 * G1, 5 * M2, 7].as_slice());
    let range = any::<Frames>;
    let op = prop_oneof![
        3 => (range(), shift(), rights(), large()).prop_map(|(a, s, r, l)| Op::Map(a, s, r, l)),
        1 => (range(), shift(), rights(), level()).prop_map(|(a, s, r, l)| Op::Map(a, s, r, l)),
        2 => range().prop_map(Op::Unmap),
        4 => (range(), rights()).prop_map(|(a, r)| Op::Protect(a, r)),
        1 => (range(), level()).prop_map(|(a, l)| Op::Split(a, l)),
        2 => (range(), large()).prop_map(|(a, l)| Op::Collapse(a, l)),
    ];
    let small = || prop::sample::select([0, 0, 0, 1, 2, 255, 510, 511].as_slice());
    let point = (0..4_u64, small(), small()).prop_map(|(g, m, k)| g * G1 + m * M2 + k);
    let points = (prop::sample::select(F::BASES), prop::collection::vec(point, 4..10));
    let points = points.prop_map(|(base, offsets)| {
        let mut points: Vec<u64> = offsets.iter().map(|offset| base + offset).collect();
        points.push(base);
        points.push(base + 4 * G1);
        points.sort_unstable();
        points.dedup();
        points
    });
    (points, prop::collection::vec(op, 1..ops)).prop_map(|(points, ops)| Case { points, ops })
}

/// Pages `[start, end)` that lead to as many frames from `frame` on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run<R> {
    pub start: u64,
    pub end: u64,
    pub frame: u64,
    pub rights: R,
}

/// Appends a run, joined with the last one if it continues it.
pub fn push_run<R: Copy + Eq>(runs: &mut Vec<Run<R>>, run: Run<R>) {
    match runs.last_mut() {
        Some(last)
            if last.end == run.start
                && last.rights == run.rights
                && last.frame + (last.end - last.start) == run.frame =>
        {
            last.end = run.end;
        }
        _ => runs.push(run),
    }
}

/// All that a table translates, in maximal runs.
pub fn runs_of<F: Format>(table: &PageTable<F>, memory: &FakeMemory) -> Vec<Run<F::Rights>> {
    let mut runs = Vec::new();
    for (range, leaf) in table.leaves(memory) {
        let (start, end) = (range.start.raw(), range.end.raw());
        push_run(&mut runs, Run { start, end, frame: leaf.frame.raw(), rights: leaf.rights });
    }
    runs
}

/// The leaves of a table, one by one, with the first page of each.
pub fn leaves_of<F: Format>(table: &PageTable<F>, memory: &FakeMemory) -> Vec<(u64, Leaf<F>)> {
    let mut leaves = Vec::new();
    for (pages, leaf) in table.leaves(memory) {
        let size = leaf.level.frames();
        assert!(pages.start.is_aligned(size) && pages.count().is_multiple_of(size));
        for offset in (0..pages.count()).step_by(usize::try_from(size).unwrap()) {
            let frame = leaf.frame.plus(offset);
            leaves.push((pages.start.raw() + offset, Leaf { frame, ..leaf }));
        }
    }
    leaves
}

/// The model.
#[derive(Clone, Debug)]
pub struct Model<F: TestFormat> {
    points: Vec<u64>,
    pages: BTreeMap<u64, (u64, F::Rights)>,
}

impl<F: TestFormat> Model<F> {
    pub fn new(points: &[u64]) -> Self {
        Self { points: points.to_vec(), pages: BTreeMap::new() }
    }

    /// Where a page leads.
    pub fn lookup(&self, page: u64) -> Option<(u64, F::Rights)> {
        let at = self.points.partition_point(|point| *point <= page).checked_sub(1)?;
        let (frame, rights) = self.pages.get(&self.points[at])?;
        Some((frame + page - self.points[at], *rights))
    }

    /// Whether any page of a range is mapped; both its ends are points.
    pub fn maps_any(&self, range: FrameRange<F::Input>) -> bool {
        self.keys(range).iter().any(|key| self.pages.contains_key(key))
    }

    /// Maps a range, which is a hole.
    pub fn fill(&mut self, range: FrameRange<F::Input>, frame: u64, rights: F::Rights) {
        let output = |key: u64| frame + key - range.start.raw();
        self.pages.extend(self.keys(range).into_iter().map(|key| (key, (output(key), rights))));
    }

    /// The range of an operation.
    pub fn range_of(&self, op: &Op<F::Rights>) -> FrameRange<F::Input> {
        match op {
            Op::Map(range, ..) | Op::Unmap(range) | Op::Protect(range, _) => self.range(*range),
            Op::Split(range, _) | Op::Collapse(range, _) => self.range(*range),
        }
    }

    pub fn range(&self, (a, b): Frames) -> FrameRange<F::Input> {
        let (a, b) = (a.get(&self.points), b.get(&self.points));
        FrameRange::new(Frame::new(*a.min(b)), Frame::new(*a.max(b)))
    }

    fn keys(&self, range: FrameRange<F::Input>) -> Vec<u64> {
        let inside = |page: &&u64| range.contains(Frame::new(**page));
        self.points.iter().filter(inside).copied().collect()
    }

    /// Does the operation on the model: what the table should answer.
    pub fn apply(&mut self, op: &Op<F::Rights>) -> Result<(), PagingError> {
        match op.clone() {
            Op::Map(range, shift, rights, _) => {
                let keys = self.keys(self.range(range));
                if let Some(&page) = keys.iter().find(|key| self.pages.contains_key(key)) {
                    return Err(PagingError::AlreadyMapped { page });
                }
                let output = self.output(self.range(range), shift).raw();
                let first = keys.first().copied().unwrap_or(0);
                self.pages.extend(keys.iter().map(|&key| (key, (output + key - first, rights))));
            }
            Op::Unmap(range) => {
                let keys = self.keys(self.range(range));
                self.pages.retain(|page, _| !keys.contains(page));
            }
            Op::Protect(range, rights) => {
                let keys = self.keys(self.range(range));
                if let Some(&page) = keys.iter().find(|key| !self.pages.contains_key(key)) {
                    return Err(PagingError::NotMapped { page });
                }
                for key in keys {
                    self.pages.entry(key).and_modify(|page| page.1 = rights);
                }
            }
            Op::Split(..) | Op::Collapse(..) => {}
        }
        Ok(())
    }

    /// First frame to map a range to: its distance from the first point, plus `shift`.
    fn output(&self, range: FrameRange<F::Input>, shift: u64) -> Hfn {
        Hfn::new(range.start.raw() - self.points[0] + shift)
    }

    /// Does the operation on a table.
    pub fn apply_to<M: TableMemory>(
        &self,
        op: &Op<F::Rights>,
        table: &mut PageTable<F>,
        memory: &mut M,
    ) -> Result<Option<Removed<F>>, PagingError> {
        match op.clone() {
            Op::Map(range, shift, rights, largest) => {
                let range = self.range(range);
                table.map(memory, range, self.output(range, shift), rights, largest)?;
                Ok(None)
            }
            Op::Unmap(range) => table.unmap(memory, self.range(range)).map(Some),
            Op::Protect(range, rights) => {
                table.protect(memory, self.range(range), rights).map(Some)
            }
            Op::Split(range, largest) => table.split(memory, self.range(range), largest).map(Some),
            Op::Collapse(range, largest) => {
                table.collapse(memory, self.range(range), largest).map(Some)
            }
        }
    }

    /// What a table should translate, in maximal runs.
    pub fn runs(&self) -> Vec<Run<F::Rights>> {
        let mut runs = Vec::new();
        for pair in self.points.windows(2) {
            if let Some(&(frame, rights)) = self.pages.get(&pair[0]) {
                push_run(&mut runs, Run { start: pair[0], end: pair[1], frame, rights });
            }
        }
        runs
    }

    /// Checks a table by `leaves` and, around all points, by `walk`.
    pub fn check(&self, table: &PageTable<F>, memory: &FakeMemory) {
        assert_eq!(runs_of(table, memory), self.runs());
        for pair in self.points.windows(2) {
            for page in [pair[0], pair[0].midpoint(pair[1]), pair[1] - 1] {
                let expected = self.pages.get(&pair[0]);
                let expected = expected.map(|&(frame, rights)| (frame + page - pair[0], rights));
                let leaf = table.walk(memory, Frame::new(page));
                assert_eq!(leaf.map(|leaf| (leaf.frame.raw(), leaf.rights)), expected);
            }
        }
    }

    /// The fewest leaves that can express the model.
    pub fn fewest_leaves(&self) -> Vec<(u64, Leaf<F>)> {
        let mut leaves = Vec::new();
        for run in self.runs() {
            let mut page = run.start;
            while page < run.end {
                let frame = run.frame + page - run.start;
                let levels = [Level::Page1G, Level::Page2M, Level::Page4K];
                let fits = |level: &Level| {
                    (page | frame).is_multiple_of(level.frames())
                        && page + level.frames() <= run.end
                };
                let level = levels.into_iter().find(fits).unwrap();
                leaves.push((page, Leaf { frame: Hfn::new(frame), rights: run.rights, level }));
                page += level.frames();
            }
        }
        leaves
    }
}

/// Releases what an operation left, if anything.
pub fn release<F: Format, M: TableMemory>(removed: Option<Removed<F>>, memory: &mut M) {
    if let Some(removed) = removed {
        removed.release(memory, |due| due.acknowledged());
    }
}

/// Pages of the table that its root leads to, with the first page and the level of each.
pub fn tables_of<F: Format>(memory: &FakeMemory, root: Hfn) -> BTreeMap<Hfn, (u64, Level)> {
    let mut tables = BTreeMap::new();
    add_tables::<F>(memory, root, 0, Level::Top, &mut tables);
    tables
}

/// Adds a table and all below it. Bases are 36-bit page numbers.
pub fn add_tables<F: Format>(
    memory: &FakeMemory,
    table: Hfn,
    base: u64,
    level: Level,
    tables: &mut BTreeMap<Hfn, (u64, Level)>,
) {
    assert_eq!(tables.insert(table, (base, level)), None, "{table:?} is linked twice");
    let Some(below) = level.below() else { return };
    for index in 0..crate::ENTRIES {
        if let crate::Entry::Table(next) = F::decode(memory.read(table, index), level) {
            let base = base + index as u64 * level.frames();
            add_tables::<F>(memory, next, base, below, tables);
        }
    }
}
