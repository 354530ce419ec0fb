//! Changing, removing and splitting what is mapped: one operation, which brings every page of a
//! span to the same end. Large leaves that reach over an edge of the span are split there.

use crate::lowest;
use crate::memory::Donated;
use crate::span::{Slot, Span, unfold};
use crate::{ENTRIES, Entry, Format, Level, PagingError, Removed, TableMemory};
use addr::Hfn;

/// What is to become of the pages of a span.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum To<R> {
    /// They are mapped no more.
    Nothing,
    /// They have these rights; all are mapped.
    Rights(R),
    /// Their leaves are at most of this level, and say the same as before.
    Leaves(Level),
}

impl<R: Copy + Eq> To<R> {
    /// Whether a leaf of level `level`, of which `slot` is part, must be split.
    fn splits(&self, slot: &Slot, level: Level) -> bool {
        match self {
            Self::Leaves(largest) => level > *largest,
            Self::Nothing | Self::Rights(_) => !slot.whole,
        }
    }

    /// Whether nothing needs to be done to a leaf.
    fn is_met(&self, rights: R, level: Level) -> bool {
        match self {
            Self::Nothing => false,
            Self::Rights(new) => rights == *new,
            Self::Leaves(largest) => level <= *largest,
        }
    }
}

/// A change that is being made.
pub(crate) struct Change<'a, F: Format, M: TableMemory> {
    to: To<F::Rights>,
    memory: Donated<'a, M>,
    /// Tables unlinked on the way.
    removed: Removed<F>,
}

impl<'a, F: Format, M: TableMemory> Change<'a, F, M> {
    /// Changes the pages of the span below `root`, or nothing. `shares`: there are shared subtrees
    /// below it.
    pub fn run(
        memory: &'a mut M,
        (root, level): (Hfn, Level),
        span: Span,
        to: To<F::Rights>,
        shares: bool,
    ) -> Result<Removed<F>, PagingError> {
        let needed = Plan::<F, M> { memory, to, shares }.below(root, level, span)?;
        let memory = Donated::take(memory, needed)?;
        let mut change = Self { to, memory, removed: Removed::new() };
        change.apply(root, level, span)?;
        Ok(change.removed)
    }

    /// Does what was planned.
    fn apply(&mut self, table: Hfn, level: Level, span: Span) -> Result<(), PagingError> {
        let Some(below) = level.below() else {
            match self.to {
                To::Nothing => lowest::unmap(&mut self.memory, table, span),
                To::Rights(rights) => {
                    lowest::protect::<F, _>(&mut self.memory, table, span, rights);
                }
                To::Leaves(_) => {}
            }
            return Ok(());
        };
        for slot in span.slots(level) {
            let new = match F::decode(self.memory.read(table, slot.index), level) {
                Entry::Table(next) => {
                    if !self.apply_below(next, below, slot)? {
                        continue;
                    }
                    0
                }
                Entry::Leaf { rights, .. } if self.to.is_met(rights, level) => continue,
                Entry::Leaf { frame, rights } if self.to.splits(&slot, level) => {
                    let old = Old { base: slot.base, frame, rights };
                    F::table(self.split(below, &old, slot.part)?)
                }
                Entry::Leaf { frame, rights } => self.leaf(frame, level, rights),
                Entry::Empty | Entry::Shared(_) => continue,
            };
            self.memory.write(table, slot.index, new);
        }
        Ok(())
    }

    /// Changes what lies in a lower table, and says whether that table is to be unlinked, which is
    /// then noted already.
    fn apply_below(&mut self, table: Hfn, level: Level, slot: Slot) -> Result<bool, PagingError> {
        let unlinks = self.to == To::Nothing && !self.removed.is_full();
        if !(unlinks && slot.whole) {
            self.apply(table, level, slot.part)?;
        }
        let unlink = self.to == To::Nothing
            && !self.removed.is_full()
            && (slot.whole || is_empty::<F, _>(&self.memory, table, level));
        if unlink {
            self.removed.push(table, level);
        }
        Ok(unlink)
    }

    /// A new table that maps what `old` mapped, the pages of `span` changed.
    fn split(&mut self, level: Level, old: &Old<F>, span: Span) -> Result<Hfn, PagingError> {
        let table = self.memory.next()?;
        let frame_at = |page| old.frame.plus(page - old.base);
        let all = Span { start: old.base, end: old.base + level.frames() * ENTRIES as u64 };
        for slot in all.slots(level) {
            self.memory.write(table, slot.index, F::leaf(frame_at(slot.base), level, old.rights));
        }
        for slot in span.slots(level) {
            let frame = frame_at(slot.base);
            let new = match level.below() {
                Some(below) if self.to.splits(&slot, level) => {
                    let old = Old { base: slot.base, frame, rights: old.rights };
                    F::table(self.split(below, &old, slot.part)?)
                }
                _ => self.leaf(frame, level, old.rights),
            };
            self.memory.write(table, slot.index, new);
        }
        Ok(table)
    }

    /// The entry of a leaf after the change.
    fn leaf(&self, frame: Hfn, level: Level, old: F::Rights) -> u64 {
        match self.to {
            To::Nothing => 0,
            To::Rights(new) => F::leaf(frame, level, new),
            To::Leaves(_) => F::leaf(frame, level, old),
        }
    }
}

/// A leaf that is being split.
struct Old<F: Format> {
    base: u64,
    frame: Hfn,
    rights: F::Rights,
}

/// Checks that a change is possible, and counts the tables that its splits take.
struct Plan<'a, F: Format, M> {
    memory: &'a M,
    to: To<F::Rights>,
    /// There may be shared subtrees.
    shares: bool,
}

impl<F: Format, M: TableMemory> Plan<'_, F, M> {
    fn below(&self, table: Hfn, level: Level, span: Span) -> Result<u64, PagingError> {
        let Some(below) = level.below() else {
            // Only a change of rights cares what the leaves are.
            return match self.to {
                To::Rights(_) => match lowest::first_hole::<F, _>(self.memory, table, span) {
                    Some(page) => Err(PagingError::NotMapped { page: unfold::<F>(page).raw() }),
                    None => Ok(0),
                },
                To::Nothing | To::Leaves(_) => Ok(0),
            };
        };
        let mut needed = 0;
        for slot in span.slots(level) {
            let page = || unfold::<F>(slot.part.start).raw();
            needed += match F::decode(self.memory.read(table, slot.index), level) {
                Entry::Empty if matches!(self.to, To::Rights(_)) => {
                    return Err(PagingError::NotMapped { page: page() });
                }
                Entry::Shared(_) => return Err(PagingError::Shared { page: page() }),
                Entry::Table(_) if self.is_clear(&slot, below) => 0,
                Entry::Table(next) => self.below(next, below, slot.part)?,
                Entry::Leaf { rights, .. } if self.to.is_met(rights, level) => 0,
                Entry::Leaf { .. } if self.to.splits(&slot, level) => {
                    tables_to_split(&self.to, below, slot.part)
                }
                Entry::Empty | Entry::Leaf { .. } => 0,
            };
        }
        Ok(needed)
    }

    /// Whether nothing in a table of level `below` can stand in the way or need a split.
    fn is_clear(&self, slot: &Slot, below: Level) -> bool {
        match self.to {
            To::Nothing => below == Level::Page4K || slot.whole && !self.shares,
            To::Rights(_) => false,
            To::Leaves(largest) => below <= largest && (below == Level::Page4K || !self.shares),
        }
    }
}

/// Tables that a leaf above level `level` takes to be split for `span`.
fn tables_to_split<R: Copy + Eq>(to: &To<R>, level: Level, span: Span) -> u64 {
    let further = span.slots(level).filter(|slot| to.splits(slot, level));
    let below = |slot: Slot| level.below().map_or(0, |below| tables_to_split(to, below, slot.part));
    1 + further.map(below).sum::<u64>()
}

/// Whether a table maps nothing and links to nothing.
pub(crate) fn is_empty<F: Format, M: TableMemory>(memory: &M, table: Hfn, level: Level) -> bool {
    (0..ENTRIES).all(|index| F::decode(memory.read(table, index), level) == Entry::Empty)
}
