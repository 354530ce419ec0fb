//! The page table itself.

use crate::change::Change;
use crate::collapse::collapse_below;
use crate::map::Mapping;
use crate::removed::free_tree;
use crate::span::{Span, fold, unfold};
use crate::{Entry, Flushed, Format, Level, PagingError, Removed, TableMemory};
use addr::{Frame, FrameRange, Hfn};
use core::fmt;
use core::marker::PhantomData;

/// Number of frames in the 52-bit physical space.
const PHYSICAL_FRAMES: u64 = 1 << 40;

/// A page table of format `F`. All its methods take the memory that it was made with.
///
/// Dropping it leaks its pages; [`PageTable::destroy`] returns them.
#[derive(Debug)]
pub struct PageTable<F: Format> {
    root: Hfn,
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
        let root = memory.allocate().ok_or(PagingError::OutOfMemory)?;
        Ok(Self { root, format: PhantomData })
    }

    /// Frame of the root table, for CR3, nCR3 or an [`Eptp`](crate::Eptp). It stays the same as long as the table lives.
    pub fn root(&self) -> Hfn {
        self.root
    }

    /// Maps the pages of `input` to as many frames from `output` on, with the largest leaves that
    /// alignment and `largest` allow (`Top` allows as much as `Page1G`). No flush is due: CPUs do
    /// not remember the absence of a translation.
    ///
    /// # Errors
    /// `AlreadyMapped`, `OutOfRange`, `OutOfMemory`; nothing was changed.
    pub fn map<M: TableMemory>(
        &mut self,
        memory: &mut M,
        input: FrameRange<F::Input>,
        output: Hfn,
        rights: F::Rights,
        largest: Level,
    ) -> Result<(), PagingError> {
        let span = Span::new::<F>(input)?;
        if output.checked_add(input.count()).is_none_or(|end| end.raw() > PHYSICAL_FRAMES) {
            let (start, end) = (input.start.raw(), input.end.raw());
            return Err(PagingError::OutOfRange { start, end });
        }
        Mapping { span, output, rights, largest }.run::<F, M>(memory, self.root)
    }

    /// Unmaps the pages of `range`; those that are not mapped stay so. Large leaves are split at
    /// the edges, tables that become empty are unlinked.
    ///
    /// # Errors
    /// `OutOfRange`, `OutOfMemory` (a split takes up to four tables); nothing was changed.
    pub fn unmap<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: FrameRange<F::Input>,
    ) -> Result<Removed<F>, PagingError> {
        Change::run(memory, self.root, Span::new::<F>(range)?, None)
    }

    /// Gives the pages of `range`, all of which must be mapped, new rights. Large leaves are split
    /// at the edges only, and only where rights differ; small ones are left to
    /// [`PageTable::collapse`].
    ///
    /// # Errors
    /// `NotMapped`, `OutOfRange`, `OutOfMemory` (splits take up to four tables); nothing was
    /// changed.
    pub fn protect<M: TableMemory>(
        &mut self,
        memory: &mut M,
        range: FrameRange<F::Input>,
        rights: F::Rights,
    ) -> Result<Removed<F>, PagingError> {
        Change::run(memory, self.root, Span::new::<F>(range)?, Some(rights))
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
        let span = Span::new::<F>(range)?;
        let mut removed = Removed::new();
        collapse_below(memory, &mut removed, self.root, Level::Top, span, largest);
        Ok(removed)
    }

    /// Where `page` leads; `None` if it is not mapped.
    pub fn walk<M: TableMemory>(&self, memory: &M, page: Frame<F::Input>) -> Option<Leaf<F>> {
        let page = fold::<F>(page.raw())?;
        let (mut table, mut level) = (self.root, Level::Top);
        loop {
            match F::decode(memory.read(table, level.index(page)), level) {
                Entry::Empty => return None,
                Entry::Leaf { frame, rights } => {
                    let frame = frame.plus(page % level.frames());
                    return Some(Leaf { frame, rights, level });
                }
                Entry::Table(next) => (table, level) = (next, level.below()?),
            }
        }
    }

    /// Calls `f` for every leaf, in the order of the pages.
    pub fn visit<M: TableMemory>(
        &self,
        memory: &M,
        mut f: impl FnMut(FrameRange<F::Input>, Leaf<F>),
    ) {
        visit_table::<F, M>(memory, self.root, Level::Top, Span::ALL, &mut f);
    }

    /// Returns all table pages, the root included.
    pub fn destroy<M: TableMemory>(self, memory: &mut M, _flushed: Flushed) {
        free_tree::<F, M>(memory, self.root, Level::Top);
    }
}

fn visit_table<F: Format, M: TableMemory>(
    memory: &M,
    table: Hfn,
    level: Level,
    span: Span,
    f: &mut impl FnMut(FrameRange<F::Input>, Leaf<F>),
) {
    for slot in span.slots(level) {
        match (F::decode(memory.read(table, slot.index), level), level.below()) {
            (Entry::Leaf { frame, rights }, _) => {
                let range = FrameRange::with_count(unfold::<F>(slot.base), level.frames());
                f(range, Leaf { frame, rights, level });
            }
            (Entry::Table(next), Some(below)) => {
                visit_table::<F, M>(memory, next, below, slot.part, f);
            }
            _ => {}
        }
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
