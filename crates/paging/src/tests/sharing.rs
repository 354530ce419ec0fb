//! Two tables and a subtree that both may link to, against one plain map for each of the three;
//! after every store all three are walked at every page of interest.

use super::history::Replay;
use super::memory::FakeMemory;
use super::model::{self, Case, Model, Op, TestFormat, release};
use crate::{Level, PageTable, PagingError};
use addr::{Frame, FrameRange, Hfn};
use proptest::prelude::*;
use std::vec::Vec;

const G1: u64 = Level::Page1G.frames();

/// What is done to which: 0 and 1 are the tables, 2 is the subtree.
#[derive(Clone, Debug)]
pub enum Step<R> {
    Change(usize, Op<R>),
    Link(usize),
    Unlink(usize),
}

/// Points, and the steps.
pub type Steps<R> = (Vec<u64>, Vec<Step<R>>);

/// The second gigabyte of a case is what the subtree covers.
pub fn case<F: TestFormat>() -> impl Strategy<Value = Steps<F::Rights>> {
    let kinds = prop::collection::vec((0..6_usize, 0..2_usize), 12);
    (model::case::<F>(12), kinds).prop_map(|(Case { mut points, ops }, kinds)| {
        let base = points[0];
        points.extend([base + G1, base + 2 * G1]);
        points.sort_unstable();
        points.dedup();
        let mut steps = Vec::new();
        for (op, (kind, table)) in ops.into_iter().zip(kinds) {
            steps.push(Step::Change(kind % 3, op));
            match kind {
                0 | 1 => steps.push(Step::Link(table)),
                2 | 3 => steps.push(Step::Unlink(table)),
                _ => {}
            }
        }
        (points, steps)
    })
}

/// The three, and what they should say.
struct World<F: TestFormat> {
    memory: FakeMemory,
    /// Two tables and the subtree.
    tables: [PageTable<F>; 3],
    models: [Model<F>; 3],
    linked: [bool; 2],
    /// What the subtree covers.
    shared: FrameRange<F::Input>,
}

/// What a page leads to.
type Target<F> = Option<(u64, <F as crate::Format>::Rights)>;

impl<F: TestFormat> World<F> {
    fn new(points: &[u64]) -> Self {
        let mut memory = FakeMemory::new();
        let first = Frame::new(points[0] + G1);
        let mut table = || PageTable::new(&mut memory).unwrap();
        let (a, b) = (table(), table());
        let mut subtree = PageTable::new_subtree(&mut memory, first, Level::Page2M).unwrap();
        let mut models = [(); 3].map(|()| Model::new(points));
        let shared = FrameRange::with_count(first, G1);
        // Something to see from the start.
        let rights = F::rights()[1];
        subtree.map(&mut memory, shared, Hfn::new(G1), rights, Level::Page2M).unwrap();
        models[2].fill(shared, G1, rights);
        Self { memory, tables: [a, b, subtree], models, linked: [false; 2], shared }
    }

    /// What each of the three should say of a page.
    fn expected(&self, page: u64) -> [Target<F>; 3] {
        let shared = self.models[2].lookup(page);
        let table = |index: usize| {
            let links = self.linked[index] && self.shared.contains(Frame::new(page));
            if links { shared } else { self.models[index].lookup(page) }
        };
        [table(0), table(1), shared]
    }

    fn walk(&self, memory: &FakeMemory, page: u64) -> [Target<F>; 3] {
        [0, 1, 2].map(|index| {
            let leaf = self.tables[index].walk(memory, Frame::new(page));
            leaf.map(|leaf| (leaf.frame.raw(), leaf.rights))
        })
    }

    /// What the step should answer; does it to the models if that is success.
    fn expect(&mut self, step: &Step<F::Rights>) -> bool {
        match step {
            Step::Change(index, op) => {
                let range = self.models[*index].range_of(op);
                let outside = range.start < self.shared.start || range.end > self.shared.end;
                let refused = match index {
                    2 => outside && !range.is_empty(),
                    _ => {
                        let collapses = matches!(op, Op::Collapse(..));
                        !collapses && self.linked[*index] && range.overlaps(self.shared)
                    }
                };
                !refused && self.models[*index].apply(op).is_ok()
            }
            Step::Link(index) => {
                let free = !self.linked[*index] && !self.models[*index].maps_any(self.shared);
                self.linked[*index] |= free;
                free
            }
            Step::Unlink(index) => core::mem::take(&mut self.linked[*index]),
        }
    }

    fn act(&mut self, step: &Step<F::Rights>) -> Result<(), PagingError> {
        let [a, b, subtree] = &mut self.tables;
        let removed = match step {
            Step::Change(index, op) => {
                let table = [a, b, subtree].into_iter().nth(*index).unwrap();
                self.models[*index].apply_to(op, table, &mut self.memory)?
            }
            Step::Link(index) => {
                let table = if *index == 0 { a } else { b };
                // Without memory it works or changes nothing.
                self.memory.allowance = 0;
                let outcome = table.link(&mut self.memory, subtree);
                self.memory.allowance = usize::MAX;
                match outcome {
                    Err(PagingError::OutOfMemory) => table.link(&mut self.memory, subtree)?,
                    outcome => outcome?,
                }
                None
            }
            Step::Unlink(index) => {
                let table = if *index == 0 { a } else { b };
                Some(table.unlink(&mut self.memory, subtree)?)
            }
        };
        release(removed, &mut self.memory);
        Ok(())
    }
}

pub fn check<F: TestFormat>((points, steps): &Steps<F::Rights>) {
    let mut world = World::<F>::new(points);
    let pages: Vec<u64> = points.iter().flat_map(|&point| [point, point.max(1) - 1]).collect();
    for step in steps {
        world.memory.history.clear();
        let mut replay = Replay { memory: world.memory.clone() };
        let old: Vec<_> = pages.iter().map(|&page| world.expected(page)).collect();
        let outcome = world.act(step);
        assert_eq!(outcome.is_ok(), world.expect(step), "{step:?}: {outcome:?}");
        let new: Vec<_> = pages.iter().map(|&page| world.expected(page)).collect();

        for store in &world.memory.history {
            replay.store(store.table, store.index, store.entry);
            for ((&page, old), new) in pages.iter().zip(&old).zip(&new) {
                let now = world.walk(&replay.memory, page);
                for index in 0..3 {
                    let is_either = now[index] == old[index] || now[index] == new[index];
                    assert!(is_either, "{step:?}, page {page:#x}: {now:?}");
                }
            }
        }
        for (&page, new) in pages.iter().zip(&new) {
            assert_eq!(world.walk(&world.memory, page), *new, "{step:?}, page {page:#x}");
        }
        let links = world.linked.into_iter().map(u32::from).sum::<u32>();
        assert_eq!(world.tables[2].links(), links);
    }
    end(world);
}

/// Nothing goes while it is needed, and everything goes then.
fn end<F: TestFormat>(world: World<F>) {
    let World { mut memory, tables: [a, b, subtree], linked, .. } = world;
    let mut subtree = match subtree.destroy(&mut memory, |due| due.acknowledged()) {
        Ok(()) => {
            assert_eq!(linked, [false; 2]);
            None
        }
        Err(subtree) => Some(subtree),
    };
    for (table, linked) in [a, b].into_iter().zip(linked) {
        let mut table = match table.destroy(&mut memory, |due| due.acknowledged()) {
            Ok(()) => {
                assert!(!linked);
                continue;
            }
            Err(table) => table,
        };
        assert!(linked);
        let removed = table.unlink(&mut memory, subtree.as_mut().unwrap()).unwrap();
        removed.release(&mut memory, |due| due.acknowledged());
        table.destroy(&mut memory, |due| due.acknowledged()).unwrap();
    }
    if let Some(subtree) = subtree {
        subtree.destroy(&mut memory, |due| due.acknowledged()).unwrap();
    }
    assert_eq!(memory.used(), 0);
}

#[test]
fn a_subtree_begins_where_its_entry_begins() {
    let mut memory = FakeMemory::new();
    let mut new = |first, level| {
        PageTable::<crate::Npt>::new_subtree(&mut memory, Frame::new(first), level).map(drop)
    };
    assert_eq!(new(512, Level::Page4K), Ok(()));
    assert_eq!(new(0, Level::Page1G), Ok(()));
    assert!(new(511, Level::Page4K).is_err());
    assert!(new(512, Level::Page2M).is_err());
    assert!(new(0, Level::Top).is_err());
    assert!(new(1 << 36, Level::Page4K).is_err());
}
