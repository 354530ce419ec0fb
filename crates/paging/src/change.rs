//! Changing and removing what is mapped: one operation, which gives every page of a span other
//! rights or none at all. Large leaves that reach over an edge of the span are split there.

use crate::memory::Reserve;
use crate::span::{Slot, Span};
use crate::{ENTRIES, Entry, Format, Level, PagingError, Removed, TableMemory};
use addr::Hfn;

/// What is to become of the pages of a span.
pub(crate) struct Change<F: Format> {
    /// New rights; `None` unmaps.
    to: Option<F::Rights>,
    /// Tables to take before the first store.
    reserve: Reserve,
    /// Tables unlinked on the way.
    removed: Removed<F>,
}

impl<F: Format> Change<F> {
    /// Changes the pages of the span, or nothing.
    pub fn run<M: TableMemory>(
        memory: &mut M,
        root: Hfn,
        span: Span,
        to: Option<F::Rights>,
    ) -> Result<Removed<F>, PagingError> {
        let needed = plan::<F, M>(memory, root, Level::Top, span, to)?;
        let reserve = Reserve::fill(memory, needed)?;
        let mut change = Self { to, reserve, removed: Removed::new() };
        let done = change.apply(memory, root, Level::Top, span);
        change.reserve.give_back(memory);
        done.map(|()| change.removed)
    }

    /// Does what was planned.
    fn apply<M: TableMemory>(
        &mut self,
        memory: &mut M,
        table: Hfn,
        level: Level,
        span: Span,
    ) -> Result<(), PagingError> {
        for slot in span.slots(level) {
            let entry = F::decode(memory.read(table, slot.index), level);
            let new = match (entry, level.below()) {
                (Entry::Table(next), Some(below)) => {
                    let unlink = self.apply_below(memory, next, below, slot)?;
                    if !unlink {
                        continue;
                    }
                    0
                }
                (Entry::Leaf { rights, .. }, _) if Some(rights) == self.to => continue,
                (Entry::Leaf { frame, rights }, Some(below)) if !slot.whole => {
                    let old = Old { base: slot.base, frame, rights };
                    F::table(self.split(memory, below, &old, slot.part)?)
                }
                (Entry::Leaf { frame, .. }, _) => self.leaf(frame, level),
                (Entry::Empty | Entry::Table(_), _) => continue,
            };
            memory.write(table, slot.index, new);
        }
        Ok(())
    }

    /// Changes what lies in a lower table, and says whether that table is to be unlinked, which is
    /// then noted already.
    fn apply_below<M: TableMemory>(
        &mut self,
        memory: &mut M,
        table: Hfn,
        level: Level,
        slot: Slot,
    ) -> Result<bool, PagingError> {
        let whole_goes = self.to.is_none() && slot.whole && !self.removed.is_full();
        if !whole_goes {
            self.apply(memory, table, level, slot.part)?;
        }
        let unlink = whole_goes
            || self.to.is_none()
                && !self.removed.is_full()
                && is_empty::<F, M>(memory, table, level);
        if unlink {
            self.removed.push(table, level);
        }
        Ok(unlink)
    }

    /// A new table that maps what `old` mapped, the pages of `span` changed.
    fn split<M: TableMemory>(
        &mut self,
        memory: &mut M,
        level: Level,
        old: &Old<F>,
        span: Span,
    ) -> Result<Hfn, PagingError> {
        let table = self.reserve.take(memory)?;
        let frame_at = |page| old.frame.plus(page - old.base);
        let all = Span { start: old.base, end: old.base + level.frames() * ENTRIES as u64 };
        for slot in all.slots(level) {
            memory.write(table, slot.index, F::leaf(frame_at(slot.base), level, old.rights));
        }
        for slot in span.slots(level) {
            let frame = frame_at(slot.base);
            let new = match level.below() {
                Some(below) if !slot.whole => {
                    let old = Old { base: slot.base, frame, rights: old.rights };
                    F::table(self.split(memory, below, &old, slot.part)?)
                }
                _ => self.leaf(frame, level),
            };
            memory.write(table, slot.index, new);
        }
        Ok(table)
    }

    /// The entry of a leaf after the change.
    fn leaf(&self, frame: Hfn, level: Level) -> u64 {
        self.to.map_or(0, |rights| F::leaf(frame, level, rights))
    }
}

/// A leaf that is being split.
struct Old<F: Format> {
    base: u64,
    frame: Hfn,
    rights: F::Rights,
}

/// Checks that the change is possible, and counts the tables that its splits take.
fn plan<F: Format, M: TableMemory>(
    memory: &M,
    table: Hfn,
    level: Level,
    span: Span,
    to: Option<F::Rights>,
) -> Result<u64, PagingError> {
    let mut needed = 0;
    for slot in span.slots(level) {
        match (F::decode(memory.read(table, slot.index), level), level.below()) {
            (Entry::Empty, _) if to.is_some() => {
                let page = crate::span::unfold::<F>(slot.part.start).raw();
                return Err(PagingError::NotMapped { page });
            }
            (Entry::Table(next), Some(below)) if to.is_some() || !slot.whole => {
                needed += plan::<F, M>(memory, next, below, slot.part, to)?;
            }
            (Entry::Leaf { rights, .. }, _) if Some(rights) == to => {}
            (Entry::Leaf { .. }, below) if !slot.whole => {
                needed += tables_to_split(below, slot.part)
            }
            _ => {}
        }
    }
    Ok(needed)
}

/// Tables that a leaf above level `level` takes to be split at the edges of `span`.
fn tables_to_split(level: Option<Level>, span: Span) -> u64 {
    let Some(level) = level else { return 0 };
    let edges = span.slots(level).filter(|slot| !slot.whole);
    1 + edges.map(|slot| tables_to_split(level.below(), slot.part)).sum::<u64>()
}

/// Whether a table maps nothing and links to nothing.
fn is_empty<F: Format, M: TableMemory>(memory: &M, table: Hfn, level: Level) -> bool {
    (0..ENTRIES).all(|index| F::decode(memory.read(table, index), level) == Entry::Empty)
}
