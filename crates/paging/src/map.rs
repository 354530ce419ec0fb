//! Mapping: filling holes of a table.

use crate::memory::Reserve;
use crate::span::{Slot, Span};
use crate::{Entry, Format, Level, PagingError, TableMemory};
use addr::Hfn;

/// What is to be mapped.
pub(crate) struct Mapping<R> {
    /// Pages to map.
    pub span: Span,
    /// Frame of the first page.
    pub output: Hfn,
    pub rights: R,
    /// Largest leaf to use.
    pub largest: Level,
}

impl<R: Copy> Mapping<R> {
    /// Maps the pages, or nothing.
    pub fn run<F, M>(&self, memory: &mut M, root: Hfn) -> Result<(), PagingError>
    where
        F: Format<Rights = R>,
        M: TableMemory,
    {
        let needed = self.plan::<F, M>(memory, Some(root), Level::Top, self.span)?;
        let mut reserve = Reserve::fill(memory, needed)?;
        let done = self.fill::<F, M>(memory, &mut reserve, root, Level::Top, self.span);
        reserve.give_back(memory);
        done
    }

    /// Frame of a page of the span.
    fn frame(&self, page: u64) -> Hfn {
        self.output.plus(page - self.span.start)
    }

    /// Whether one leaf does for an empty entry.
    fn leaf_fits(&self, slot: Slot, level: Level) -> bool {
        level <= self.largest.min(Level::Page1G)
            && slot.whole
            && self.frame(slot.base).is_aligned(level.frames())
    }

    /// Checks that `span` is a hole below `table` (`None`: a table yet to be made), and counts the
    /// tables that mapping it takes.
    fn plan<F, M>(
        &self,
        memory: &M,
        table: Option<Hfn>,
        level: Level,
        span: Span,
    ) -> Result<u64, PagingError>
    where
        F: Format<Rights = R>,
        M: TableMemory,
    {
        let mut needed = 0;
        for slot in span.slots(level) {
            let entry = table.map_or(0, |table| memory.read(table, slot.index));
            match (F::decode(entry, level), level.below()) {
                (Entry::Empty, Some(below)) if !self.leaf_fits(slot, level) => {
                    needed += 1 + self.plan::<F, M>(memory, None, below, slot.part)?;
                }
                (Entry::Empty, _) => {}
                (Entry::Table(next), Some(below)) => {
                    needed += self.plan::<F, M>(memory, Some(next), below, slot.part)?;
                }
                (Entry::Leaf { .. } | Entry::Table(_), _) => {
                    let page = crate::span::unfold::<F>(slot.part.start).raw();
                    return Err(PagingError::AlreadyMapped { page });
                }
            }
        }
        Ok(needed)
    }

    /// Does what was planned.
    fn fill<F, M>(
        &self,
        memory: &mut M,
        reserve: &mut Reserve,
        table: Hfn,
        level: Level,
        span: Span,
    ) -> Result<(), PagingError>
    where
        F: Format<Rights = R>,
        M: TableMemory,
    {
        for slot in span.slots(level) {
            let entry = F::decode(memory.read(table, slot.index), level);
            let new = match (entry, level.below()) {
                (Entry::Table(next), Some(below)) => {
                    self.fill::<F, M>(memory, reserve, next, below, slot.part)?;
                    continue;
                }
                (_, Some(below)) if !self.leaf_fits(slot, level) => {
                    let next = reserve.take(memory)?;
                    self.fill::<F, M>(memory, reserve, next, below, slot.part)?;
                    F::table(next)
                }
                _ => F::leaf(self.frame(slot.base), level, self.rights),
            };
            memory.write(table, slot.index, new);
        }
        Ok(())
    }
}
