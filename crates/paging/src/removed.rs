//! Table pages between being unlinked and being free.
//!
//! A CPU may hold a pointer to an unlinked table in its paging-structure caches and walk it until
//! its TLB is flushed (AMD APM volume 2, section 5.5.2; Intel SDM volume 3, section 5.10.3). So
//! the pages stay as they are, entries included, until the code that flushed all CPUs says so.

use crate::{ENTRIES, Entry, Format, Level, TableMemory};
use addr::Hfn;
use core::marker::PhantomData;

/// Witness that no CPU uses a translation from before the change any more.
#[derive(Debug)]
pub struct Flushed(());

impl Flushed {
    /// Only two places may make one: the shootdown code, after every CPU that can use the table
    /// has acknowledged a flush that began after the change; and code that knows that no CPU has
    /// ever used the table.
    #[must_use]
    pub const fn acknowledged() -> Self {
        Self(())
    }
}

/// Most subtrees that one [`Removed`] holds.
const CAPACITY: usize = 64;

/// What a change leaves behind: translations that CPUs may still use, and the tables, each with
/// all that hangs below it, that go free once they do not.
///
/// Until it is released, nothing new may be mapped where the change was. Dropping it leaks pages.
#[must_use = "CPUs may still use the old translations: flush them, then call `release`"]
#[derive(Debug)]
pub struct Removed<F: Format> {
    tables: [(Hfn, Level); CAPACITY],
    count: usize,
    format: PhantomData<F>,
}

impl<F: Format> Removed<F> {
    pub(crate) const fn new() -> Self {
        Self { tables: [(Hfn::new(0), Level::Page4K); CAPACITY], count: 0, format: PhantomData }
    }

    /// Whether no table was unlinked. (The flush is due all the same.)
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether there was no room for more tables. Tables that found no room stay linked, empty or
    /// uncollapsed; [`PageTable::collapse`](crate::PageTable::collapse) takes them out later.
    pub const fn is_full(&self) -> bool {
        self.count == CAPACITY
    }

    /// Adds a subtree whose root is a table of level `level`. Needs room.
    pub(crate) fn push(&mut self, table: Hfn, level: Level) {
        if let Some(place) = self.tables.get_mut(self.count) {
            *place = (table, level);
            self.count += 1;
        }
    }

    /// Joins what two changes of the same table left, so that one flush serves both. Gives back
    /// what found no room.
    #[must_use = "what found no room waits for a flush of its own"]
    pub fn join(&mut self, mut other: Self) -> Option<Self> {
        while !self.is_full() && other.count > 0 {
            other.count -= 1;
            if let Some(&(table, level)) = other.tables.get(other.count) {
                self.push(table, level);
            }
        }
        (other.count > 0).then_some(other)
    }

    /// Gives the table pages back. `flushed` must stem from a flush after the change.
    pub fn release<M: TableMemory>(self, memory: &mut M, _flushed: Flushed) {
        for &(table, level) in self.tables.iter().take(self.count) {
            free_tree::<F, M>(memory, table, level);
        }
    }
}

/// What no change leaves behind; for [`Removed::join`].
impl<F: Format> Default for Removed<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// Frees a table and all tables below it.
pub(crate) fn free_tree<F: Format, M: TableMemory>(memory: &mut M, table: Hfn, level: Level) {
    if let Some(below) = level.below() {
        for index in 0..ENTRIES {
            if let Entry::Table(next) = F::decode(memory.read(table, index), level) {
                free_tree::<F, M>(memory, next, below);
            }
        }
    }
    memory.free(table);
}
