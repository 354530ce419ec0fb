//! Ranges of pages as tables see them: 36-bit page numbers, without the sign extension of
//! canonical addresses, cut up into the entries of one table.

use crate::{Format, Level, PagingError};
use addr::{Frame, FrameRange};

/// Bits in a page number: 48 bits of input less 12 of offset.
const BITS: u32 = 36;
/// Bits in the page number of a 64-bit address.
const FULL_BITS: u32 = 64 - addr::PAGE_SHIFT;

/// Pages `[start, end)`, `end <= 2^36`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub start: u64,
    pub end: u64,
}

/// One entry of a table and the part of a span that lies in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Index of the entry, 0 to 511.
    pub index: usize,
    /// First page of the entry.
    pub base: u64,
    /// The pages of the span in the entry.
    pub part: Span,
    /// Whether they are all pages of the entry.
    pub whole: bool,
}

impl Span {
    /// All pages.
    pub const ALL: Self = Self { start: 0, end: 1 << BITS };

    /// The span of a range of the format's input space.
    pub fn new<F: Format>(range: FrameRange<F::Input>) -> Result<Self, PagingError> {
        let (start, end) = (range.start.raw(), range.end.raw());
        if range.is_empty() {
            return Ok(Self { start: 0, end: 0 });
        }
        let (Some(first), Some(last)) = (fold::<F>(start), fold::<F>(end - 1)) else {
            return Err(PagingError::OutOfRange { start, end });
        };
        // The halves fold to neighbours; what lies between them must not get lost.
        if last - first != end - 1 - start {
            return Err(PagingError::OutOfRange { start, end });
        }
        Ok(Self { start: first, end: last + 1 })
    }

    /// The span of one entry.
    pub const fn of_entry(base: u64, level: Level) -> Self {
        Self { start: base, end: base + level.frames() }
    }

    /// Number of entries of level `level` that the span touches.
    pub const fn count(self, level: Level) -> u64 {
        self.end.div_ceil(level.frames()) - (self.start >> level.frame_shift())
    }

    /// Whether all pages of `other` are in the span.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The entries, of a table of level `level` that spans all of `self`, that the span touches.
    pub fn slots(self, level: Level) -> impl Iterator<Item = Slot> {
        let first = self.start >> level.frame_shift();
        let end = self.end.div_ceil(level.frames());
        (first..end).map(move |number| {
            let base = number << level.frame_shift();
            let part = self.within(Self::of_entry(base, level));
            let whole = part.end - part.start == level.frames();
            Slot { index: level.index(base), base, part, whole }
        })
    }

    /// The part of `self` inside `other`, which overlaps it.
    fn within(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }
}

/// A page number as tables see it; `None` if no table can translate the page.
pub(crate) fn fold<F: Format>(page: u64) -> Option<u64> {
    let folded = page & (Span::ALL.end - 1);
    (unfold::<F>(folded).raw() == page).then_some(folded)
}

/// The page of the input space behind a number that tables see.
pub(crate) fn unfold<F: Format>(folded: u64) -> Frame<F::Input> {
    let upper_half = F::SIGN_EXTENDED && folded >> (BITS - 1) != 0;
    let extension = (1 << FULL_BITS) - Span::ALL.end;
    Frame::new(if upper_half { folded | extension } else { folded })
}
