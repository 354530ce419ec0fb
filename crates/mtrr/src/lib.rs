//! Memory types: which physical memory is cached how, by the memory type range registers (Intel
//! SDM volume 3A, section 12.11; 11.11 in older editions), or where these are switched off, by the
//! memory map.
//!
//! What always holds: every frame has exactly one type, and the first MiB, where fixed ranges are
//! in force, is theirs alone. Variable ranges are contiguous: what cannot be written as a start and
//! an end is refused.

#![no_std]
#![forbid(unsafe_code)]

mod registers;

use addr::{Frame, FrameRange, GuestPhysical};
use arrayvec::ArrayVec;

/// How memory is cached. The numbers are those of MTRRs and of leaves of extended page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemoryType {
    /// UC.
    Uncacheable = 0,
    /// WC.
    WriteCombining = 1,
    /// WT.
    WriteThrough = 4,
    /// WP.
    WriteProtected = 5,
    /// WB: memory.
    WriteBack = 6,
}

impl MemoryType {
    /// All types.
    pub const ALL: [Self; 5] = [
        Self::Uncacheable,
        Self::WriteCombining,
        Self::WriteThrough,
        Self::WriteProtected,
        Self::WriteBack,
    ];

    /// The type with this number; `None` for a reserved one.
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Uncacheable,
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => return None,
        })
    }

    /// Type of memory in two variable ranges, of these types (section 12.11.4.1). What the manual
    /// leaves undefined is uncacheable, which is right for every kind of memory.
    #[must_use]
    pub const fn overlap(self, other: Self) -> Self {
        match (self, other) {
            (Self::WriteBack, Self::WriteBack) => Self::WriteBack,
            (Self::WriteThrough | Self::WriteBack, Self::WriteThrough | Self::WriteBack) => {
                Self::WriteThrough
            }
            (Self::WriteCombining, Self::WriteCombining) => Self::WriteCombining,
            (Self::WriteProtected, Self::WriteProtected) => Self::WriteProtected,
            _ => Self::Uncacheable,
        }
    }
}

/// Most ranges that are kept: as many as there are numbers for registers.
pub const MOST_RANGES: usize = 40;
/// Blocks of the first MiB that have a type of their own.
const FIXED_BLOCKS: usize = 88;
/// Frames in the first MiB.
const FIXED_FRAMES: u64 = 256;

/// Why the registers cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MtrrError {
    /// A variable range does not lie in one piece.
    #[error("the firmware's MTRR {0} has a mask with holes: update the firmware")]
    Holes(u32),
    /// There are more ranges than the architecture has numbers for.
    #[error("the CPU claims more MTRRs than there can be")]
    TooMany,
}

/// The type of every frame.
#[derive(Clone, Debug)]
pub struct MemoryTypes {
    /// By fixed ranges: the first MiB.
    fixed: Option<[MemoryType; FIXED_BLOCKS]>,
    /// Ranges, which may overlap.
    ranges: ArrayVec<(FrameRange<GuestPhysical>, MemoryType), MOST_RANGES>,
    /// Everything else.
    default: MemoryType,
}

impl MemoryTypes {
    /// The same everywhere.
    pub fn uniform(memory_type: MemoryType) -> Self {
        Self { fixed: None, ranges: ArrayVec::new(), default: memory_type }
    }

    /// Write-back for the first [`MOST_RANGES`] of `ram`, uncacheable for the rest.
    pub fn of_ram(ram: impl IntoIterator<Item = FrameRange<GuestPhysical>>) -> Self {
        let ram = ram.into_iter().map(|range| (range, MemoryType::WriteBack));
        Self { ranges: ram.take(MOST_RANGES).collect(), ..Self::uniform(MemoryType::Uncacheable) }
    }

    /// The type of a frame.
    pub fn at(&self, frame: Frame<GuestPhysical>) -> MemoryType {
        if let Some(fixed) = &self.fixed
            && let Some(&memory_type) = fixed_block(frame).and_then(|block| fixed.get(block))
        {
            return memory_type;
        }
        let covering = self.ranges.iter().filter(|(range, _)| range.contains(frame));
        let types = covering.map(|(_, memory_type)| *memory_type);
        types.reduce(MemoryType::overlap).unwrap_or(self.default)
    }

    /// Cuts a range into the fewest runs of one type, in order.
    pub fn runs(
        &self,
        range: FrameRange<GuestPhysical>,
    ) -> impl Iterator<Item = (FrameRange<GuestPhysical>, MemoryType)> {
        let mut start = range.start;
        core::iter::from_fn(move || {
            if start >= range.end {
                return None;
            }
            let memory_type = self.at(start);
            let mut end = self.next_edge(start, range.end);
            while end < range.end && self.at(end) == memory_type {
                end = self.next_edge(end, range.end);
            }
            let run = FrameRange::new(start, end);
            start = end;
            Some((run, memory_type))
        })
    }

    /// The first frame after `frame` where the type may be another one; at most `end`.
    fn next_edge(
        &self,
        frame: Frame<GuestPhysical>,
        end: Frame<GuestPhysical>,
    ) -> Frame<GuestPhysical> {
        let fixed = self.fixed.is_some() && frame.raw() < FIXED_FRAMES;
        let edges = self.ranges.iter().flat_map(|(range, _)| [range.start, range.end]);
        edges
            .chain(fixed.then(|| frame.plus(1)))
            .filter(|edge| *edge > frame)
            .min()
            .map_or(end, |edge| edge.min(end))
    }
}

/// Index of the fixed block that holds a frame: 8 of 64 KiB, 16 of 16 KiB, 64 of 4 KiB.
fn fixed_block(frame: Frame<GuestPhysical>) -> Option<usize> {
    let block = match frame.raw() {
        frame @ 0..0x80 => frame / 16,
        frame @ 0x80..0xc0 => 8 + (frame - 0x80) / 4,
        frame @ 0xc0..FIXED_FRAMES => 24 + (frame - 0xc0),
        _ => return None,
    };
    usize::try_from(block).ok()
}

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;
