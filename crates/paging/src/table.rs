//! The page table itself.

use crate::change::{Change, To};
use crate::collapse::collapse_below;
use crate::cursor::Cursor;
use crate::map::Mapping;
use crate::span::{Span, fold, unfold};
use crate::{Due, Flushed, Format, Level, PagingError, Removed, TableMemory};
use addr::{Frame, FrameRange, Hfn};
use core::fmt;
use core::marker::PhantomData;

/// Number of frames in the 52-bit physical space.
const PHYSICAL_FRAMES: u64 = 1 << 40;

/// A page table of format `F`, or a subtree that page tables share. All its methods take the
/// memory that it was made with.
///
/// Dropping it leaks its pages; [`PageTable::destroy`] returns them.
#[derive(Debug)]
pub struct PageTable<F: Format> {
    pub(crate) root: Hfn,
    /// Level of the root: `Top`, except in subtrees.
    pub(crate) level: Level,
    /// The pages that it can translate.
    pub(crate) span: Span,
    /// Tables that link to this one.
    pub(crate) links: u32,
    /// Subtrees that this table links to.
    pub(crate) shares: u32,
    format: PhantomData<F>,
}

/// Where a page leads.
pub struct Leaf<F: Format> {
    /// The frame: of the page that was asked for, or the first of a visited range.
    pub frame: Hfn,
    /// Rights of the page.
    pub rights: F::Rights,
    /// Size of the leaf that maps it.
    pub level: Level,
}

impl<F: Format> PageTable<F> {
    /// An empty table: one page, the root.
    pub fn new<M: TableMemory>(memory: &mut M) -> Result<Self, PagingError> {
        Self::with_root(memory, Level::Top, Span::ALL)
    }

    pub(crate) fn with_root<M: TableMemory>(
        memory: &mut M,
        level: Level,
        span: Span,
    ) -> Result<Self, PagingError> {
        let root = memory.allocate().ok_or(PagingError::OutOfMemory)?;
        Ok(Self { root, level, span, links: 0, shares: 0, format: PhantomData })
    }

    /// Frame of the root table, for CR3, nCR3 or an [`Eptp`](crate::Eptp). It stays the same as
    /// long as the table lives.
    pub fn root(&self) -> Hfn {
        self.root
    }

    /// Maps the pages of `input` to as many frames from `output` on, with the largest leaves that
    /// alignment and `largest` allow (`Top` allows as much as `Page1G`). No flush is due: CPUs do
    /// not remember the absence of a translation.
    ///
    /// # Errors
    /// `AlreadyMapped`, `OutOfRange`, `OutOfMemory` (up to [`PageTable::most_tables`]); nothing was
    /// changed.
    pub fn map<M: TableMemory>(
        &mut self,
        memory: &mut M,
        input: FrameRange<F::Input>,
        output: Hfn,
        rights: F::Rights,
        largest: Level,
    ) -> Result<(), PagingError> {
        let span = self.span_of(input)?;
        if output.checked_add(input.count()).is_none_or(|end| end.raw() > PHYSICAL_FRAMES) {
            let (start, end) = (input.start.raw(), input.end.raw());
            return Err(PagingError::OutOfRange { start, end });
        }
        let mapping = Mapping::<F> { span, output, rights, largest, format: PhantomData };
        mapping.run(memory, (self.root, self.level))
    }

    /// Unmaps the pages of `range`; those that are not mapped stay so. Large leaves are split at
    /// the edges, tables that become empty are unlinked.
    ///
    /// # Errors
    /// `Shared`, `OutOfRange`, `OutOfMemory` (up to [`MOST_SPLITS`](crate::MOST_SPLITS) tables);
    /// nothing was changed.
    pub fn unmap<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: FrameRange<F::Input>,
    ) -> Result<Removed<F>, PagingError> {
        self.change(memory, range, To::Nothing)
    }

    /// Gives the pages of `range`, all of which must be mapped, new rights. Large leaves are split
    /// at the edges only, and only where rights differ; small ones are left to
    /// [`PageTable::collapse`].
    ///
    /// # Errors
    /// `NotMapped`, `Shared`, `OutOfRange`, `OutOfMemory` (up to
    /// [`MOST_SPLITS`](crate::MOST_SPLITS) tables); nothing was changed.
    pub fn protect<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: FrameRange<F::Input>,
        rights: F::Rights,
    ) -> Result<Removed<F>, PagingError> {
        self.change(memory, range, To::Rights(rights))
    }

    /// Splits the leaves that `range` touches and that are larger than `largest`. The translation
    /// of no page changes.
    ///
    /// # Errors
    /// `Shared`, `OutOfRange`, `OutOfMemory` (up to [`PageTable::most_tables`]); nothing was
    /// changed.
    pub fn split<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: FrameRange<F::Input>,
        largest: Level,
    ) -> Result<Removed<F>, PagingError> {
        self.change(memory, range, To::Leaves(largest))
    }

    fn change<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: FrameRange<F::Input>,
        to: To<F::Rights>,
    ) -> Result<Removed<F>, PagingError> {
        let span = self.span_of(range)?;
        Change::run(memory, (self.root, self.level), span, to, self.shares > 0)
    }

    /// Replaces tables that touch `range` by one larger leaf, at most `largest`, where all their
    /// entries are contiguous and have equal rights, and unlinks empty ones. The translation of no
    /// page changes. If the result [is full](Removed::is_full), there may be more to collapse.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub fn collapse<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: FrameRange<F::Input>,
        largest: Level,
    ) -> Result<Removed<F>, PagingError> {
        let span = self.span_of(range)?;
        let mut removed = Removed::new();
        collapse_below(memory, &mut removed, self.root, self.level, span, largest);
        Ok(removed)
    }

    /// Where `page` leads; `None` if it is not mapped.
    pub fn walk<M: TableMemory>(&self, memory: &M, page: Frame<F::Input>) -> Option<Leaf<F>> {
        let page = fold::<F>(page.raw())?;
        let span = Span { start: page, end: page + 1 };
        if !self.span.contains(span) {
            return None;
        }
        Cursor::<F, M>::new(memory, self.root, self.level, span).next().map(|(_, leaf)| leaf)
    }

    /// Walks the leaves of `range`, in the order of the pages.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub fn cursor<'a, M: TableMemory>(
        &self,
        memory: &'a M,
        range: FrameRange<F::Input>,
    ) -> Result<Cursor<'a, F, M>, PagingError> {
        Ok(Cursor::new(memory, self.root, self.level, self.span_of(range)?))
    }

    /// Walks all leaves, in the order of the pages.
    pub fn leaves<'a, M: TableMemory>(&self, memory: &'a M) -> Cursor<'a, F, M> {
        Cursor::new(memory, self.root, self.level, self.span)
    }

    /// Table pages that suffice to map or split `range`.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub fn most_tables(&self, range: FrameRange<F::Input>) -> Result<u64, PagingError> {
        let span = self.span_of(range)?;
        let levels = [Level::Page2M, Level::Page1G, Level::Top];
        let linking = levels.into_iter().filter(|level| *level <= self.level);
        Ok(linking.map(|level| span.count(level)).sum())
    }

    /// Has `flush` flush the CPUs that have used the table, then returns all its pages, the root
    /// included.
    ///
    /// # Errors
    /// A table that links to a subtree, or is linked, is handed back as it is: unlink first.
    pub fn destroy<M: TableMemory>(
        self,
        memory: &mut M,
        flush: impl for<'a> FnOnce(Due<'a>) -> Flushed<'a>,
    ) -> Result<(), Self> {
        if self.links > 0 || self.shares > 0 {
            return Err(self);
        }
        let mut removed = Removed::<F>::new();
        removed.push(self.root, self.level);
        removed.release(memory, flush);
        Ok(())
    }

    /// Number of the first page that it can translate, in the input space.
    pub(crate) fn first_page(&self) -> u64 {
        unfold::<F>(self.span.start).raw()
    }

    /// The span of a range that the table can translate.
    fn span_of(&self, range: FrameRange<F::Input>) -> Result<Span, PagingError> {
        let span = Span::new::<F>(range)?;
        if range.is_empty() || self.span.contains(span) {
            return Ok(span);
        }
        Err(PagingError::OutOfRange { start: range.start.raw(), end: range.end.raw() })
    }
}

impl<F: Format> Clone for Leaf<F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F: Format> Copy for Leaf<F> {}
impl<F: Format> PartialEq for Leaf<F> {
    fn eq(&self, other: &Self) -> bool {
        (self.frame, self.rights, self.level) == (other.frame, other.rights, other.level)
    }
}
impl<F: Format> Eq for Leaf<F> {}
impl<F: Format> fmt::Debug for Leaf<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.frame, self.rights, self.level)
    }
}
