//! Sharing: one subtree, linked by several tables at the same place.
//!
//! A subtree is a [`PageTable`] of its own that does not start at the top; it alone changes what
//! lies in it. The tables that link to it only read. It counts its links and they count what they
//! link to, so that neither can be destroyed while the other needs it.

use crate::memory::Donated;
use crate::span::Span;
use crate::{Entry, Format, Level, PageTable, PagingError, Removed, TableMemory};
use addr::{Frame, Hfn};

impl<F: Format> PageTable<F> {
    /// An empty subtree, for other tables to link to: a table of level `level`, below `Top`, that
    /// translates the 512 entries from the page `first` on.
    ///
    /// # Errors
    /// `OutOfRange` if `level` is `Top` or `first` is not where such a table begins;
    /// `OutOfMemory`.
    pub fn new_subtree<M: TableMemory>(
        memory: &mut M,
        first: Frame<F::Input>,
        level: Level,
    ) -> Result<Self, PagingError> {
        let bad = PagingError::OutOfRange { start: first.raw(), end: first.raw() };
        let above = level.above().ok_or(bad)?;
        let page = crate::span::fold::<F>(first.raw()).ok_or(bad)?;
        if !first.is_aligned(above.frames()) {
            return Err(bad);
        }
        Self::with_root(memory, level, Span::of_entry(page, above))
    }

    /// Number of tables that link to this subtree, not counting through which others.
    pub const fn links(&self) -> u32 {
        self.links
    }

    /// Makes this table translate the pages of `subtree` as `subtree` does, now and after every
    /// change of it. Until [`PageTable::unlink`], a flush that a change of `subtree` needs must
    /// reach the CPUs that use this table too. No flush is due now.
    ///
    /// # Errors
    /// `AlreadyMapped`: something is mapped there, or an empty table is in the way, which
    /// [`PageTable::collapse`] takes out. `OutOfRange`: the pages lie outside this table, or
    /// `subtree` is no subtree. `OutOfMemory`. Nothing was changed.
    pub fn link<M: TableMemory>(
        &mut self,
        memory: &mut M,
        subtree: &mut Self,
    ) -> Result<(), PagingError> {
        let above = self.entry_level(subtree)?;
        let page = subtree.span.start;
        let (table, level, entry) = self.descend(memory, page, above);
        if entry != Entry::Empty {
            return Err(PagingError::AlreadyMapped { page: subtree.first_page() });
        }
        // From the link up, so that the last store makes it appear.
        let mut memory = Donated::take(memory, level as u64 - above as u64)?;
        let (mut link, mut at) = (F::shared(subtree.root), above);
        while at < level {
            let next = memory.next()?;
            memory.write(next, at.index(page), link);
            link = F::table(next);
            at = at.above().unwrap_or(level);
        }
        memory.write(table, level.index(page), link);
        self.shares += 1;
        subtree.links += 1;
        Ok(())
    }

    /// Unmaps the pages of `subtree` from this table; `subtree` keeps them. Tables that become
    /// empty stay for [`PageTable::collapse`].
    ///
    /// # Errors
    /// `NotMapped` if this table does not link to `subtree`, `OutOfRange` as for
    /// [`PageTable::link`]. Nothing was changed.
    pub fn unlink<M: TableMemory>(
        &mut self,
        memory: &mut M,
        subtree: &mut Self,
    ) -> Result<Removed<F>, PagingError> {
        let above = self.entry_level(subtree)?;
        let page = subtree.span.start;
        let (table, level, entry) = self.descend(memory, page, above);
        if level != above || entry != Entry::Shared(subtree.root) {
            return Err(PagingError::NotMapped { page: subtree.first_page() });
        }
        memory.write(table, level.index(page), 0);
        self.shares -= 1;
        subtree.links -= 1;
        Ok(Removed::new())
    }

    /// The entry for `page` at level `stop`, or the one above it where this table's own tables
    /// end; and where it is.
    fn descend<M: TableMemory>(
        &self,
        memory: &M,
        page: u64,
        stop: Level,
    ) -> (Hfn, Level, Entry<F::Rights>) {
        let (mut table, mut level) = (self.root, self.level);
        loop {
            let entry = F::decode(memory.read(table, level.index(page)), level);
            match (&entry, level.below()) {
                (Entry::Table(next), Some(below)) if level > stop => {
                    (table, level) = (*next, below);
                }
                _ => return (table, level, entry),
            }
        }
    }

    /// Level of the entry that can link to `subtree`.
    fn entry_level(&self, subtree: &Self) -> Result<Level, PagingError> {
        let inside = self.span.start <= subtree.span.start && subtree.span.end <= self.span.end;
        let level = subtree.level.above().filter(|level| inside && *level <= self.level);
        level.ok_or(PagingError::OutOfRange {
            start: subtree.first_page(),
            end: subtree.first_page() + (subtree.span.end - subtree.span.start),
        })
    }
}
