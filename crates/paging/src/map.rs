//! Mapping: filling holes of a table.

use crate::lowest;
use crate::memory::Donated;
use crate::span::{Slot, Span, unfold};
use crate::{Entry, Format, Level, PagingError, TableMemory};
use addr::Hfn;
use core::marker::PhantomData;

/// What is to be mapped.
pub(crate) struct Mapping<F: Format> {
    /// Pages to map.
    pub span: Span,
    /// Frame of the first page.
    pub output: Hfn,
    pub rights: F::Rights,
    /// Largest leaf to use.
    pub largest: Level,
    pub format: PhantomData<F>,
}

impl<F: Format> Mapping<F> {
    /// Maps the pages below `root`, or nothing.
    pub fn run<M: TableMemory>(
        &self,
        memory: &mut M,
        (root, level): (Hfn, Level),
    ) -> Result<(), PagingError> {
        let needed = self.plan(memory, root, level, self.span)?;
        self.fill(&mut Donated::take(memory, needed)?, root, level, self.span)
    }

    /// Frame of a page of the span.
    fn frame(&self, page: u64) -> Hfn {
        self.output.plus(page - self.span.start)
    }

    /// Whether one leaf does for an empty entry.
    fn leaf_fits(&self, slot: &Slot, level: Level) -> bool {
        level <= self.largest.min(Level::Page1G)
            && slot.whole
            && self.frame(slot.base).is_aligned(level.frames())
    }

    /// Checks that `span` is a hole below `table`, and counts the tables that mapping it takes.
    fn plan<M: TableMemory>(
        &self,
        memory: &M,
        table: Hfn,
        level: Level,
        span: Span,
    ) -> Result<u64, PagingError> {
        let Some(below) = level.below() else {
            return match lowest::first_leaf::<F, _>(memory, table, span) {
                Some(page) => Err(PagingError::AlreadyMapped { page: unfold::<F>(page).raw() }),
                None => Ok(0),
            };
        };
        let mut needed = 0;
        for slot in span.slots(level) {
            needed += match F::decode(memory.read(table, slot.index), level) {
                Entry::Empty => self.tables_for(&slot, level),
                Entry::Table(next) => self.plan(memory, next, below, slot.part)?,
                Entry::Leaf { .. } | Entry::Shared(_) => {
                    let page = unfold::<F>(slot.part.start).raw();
                    return Err(PagingError::AlreadyMapped { page });
                }
            };
        }
        Ok(needed)
    }

    /// Tables that an empty entry takes.
    fn tables_for(&self, slot: &Slot, level: Level) -> u64 {
        match level.below() {
            None => 0,
            Some(_) if self.leaf_fits(slot, level) => 0,
            Some(Level::Page4K) => 1,
            Some(below) => {
                1 + slot.part.slots(below).map(|slot| self.tables_for(&slot, below)).sum::<u64>()
            }
        }
    }

    /// Does what was planned.
    fn fill<M: TableMemory>(
        &self,
        memory: &mut Donated<'_, M>,
        table: Hfn,
        level: Level,
        span: Span,
    ) -> Result<(), PagingError> {
        let Some(below) = level.below() else {
            lowest::map::<F, _>(memory, table, span, self.frame(span.start), self.rights);
            return Ok(());
        };
        for slot in span.slots(level) {
            let new = match F::decode(memory.read(table, slot.index), level) {
                Entry::Table(next) => {
                    self.fill(memory, next, below, slot.part)?;
                    continue;
                }
                _ if self.leaf_fits(&slot, level) => {
                    F::leaf(self.frame(slot.base), level, self.rights)
                }
                _ => {
                    let next = memory.next()?;
                    self.fill(memory, next, below, slot.part)?;
                    F::table(next)
                }
            };
            memory.write(table, slot.index, new);
        }
        Ok(())
    }
}
