//! The cursor: walks a range and keeps its place in the tables, so that it reads one entry per
//! page and not one per level.

use crate::run::run_length;
use crate::span::{Span, unfold};
use crate::{Entry, Format, Leaf, Level, TableMemory};
use addr::{FrameRange, Hfn};
use core::marker::PhantomData;

/// Walks what a range is mapped to, in order, holes left out. Made by
/// [`PageTable::cursor`](crate::PageTable::cursor).
#[derive(Debug)]
pub struct Cursor<'a, F, M> {
    memory: &'a M,
    /// The tables from the root, at the end, down to the one of level `level`, which `page` is in.
    path: [Hfn; 4],
    level: Level,
    root: Level,
    /// Pages yet to be walked.
    rest: Span,
    format: PhantomData<F>,
}

impl<'a, F: Format, M: TableMemory> Cursor<'a, F, M> {
    /// At the start of `span`, all of which the table of level `root` translates.
    pub(crate) fn new(memory: &'a M, table: Hfn, root: Level, span: Span) -> Self {
        Self { memory, path: [table; 4], level: root, root, rest: span, format: PhantomData }
    }

    /// Goes past an entry of the current table, to `page`, and up if the table ends there.
    #[inline]
    fn advance(&mut self, page: u64) {
        self.rest.start = page;
        while self.level.index(page) == 0 && self.level < self.root {
            let Some(above) = self.level.above() else { return };
            self.level = above;
        }
    }
}

impl<F: Format, M: TableMemory> Cursor<'_, F, M> {
    /// Looks at the entry for the next page, in a table of level `level`, which is the current one,
    /// and goes on behind it or down.
    #[inline(always)]
    fn step(&mut self, level: Level) -> Option<(FrameRange<F::Input>, Leaf<F>)> {
        let page = self.rest.start;
        let table = self.path[level.depth()];
        let end = (page | (level.frames() - 1)) + 1;
        let index = level.index(page);
        let entry = self.memory.read(table, index);
        match F::decode(entry, level) {
            Entry::Empty => self.advance(end),
            Entry::Table(next) | Entry::Shared(next) => {
                self.level = level.below()?;
                self.path[self.level.depth()] = next;
            }
            Entry::Leaf { frame, rights } => {
                let frame = frame.plus(page % level.frames());
                let most = (self.rest.end - page).div_ceil(level.frames());
                let count = run_length(self.memory, (table, level), index, entry, most);
                let end = end + (count as u64 - 1) * level.frames();
                let part = end.min(self.rest.end) - page;
                self.advance(end);
                let range = FrameRange::with_count(unfold::<F>(page), part);
                return Some((range, Leaf { frame, rights, level }));
            }
        }
        None
    }
}

impl<F: Format, M: TableMemory> Iterator for Cursor<'_, F, M> {
    /// Pages of the range that leaves of one size map to consecutive frames with equal rights, and
    /// where the first of them leads. Such a run may end anywhere, but not within a leaf.
    type Item = (FrameRange<F::Input>, Leaf<F>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while self.rest.start < self.rest.end {
            // Nearly all steps are in the lowest tables: known there, the level costs no time.
            let found = match self.level {
                Level::Page4K => self.step(Level::Page4K),
                level => self.step(level),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }
}
