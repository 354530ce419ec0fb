//! Where the frames of a machine lie in its dump: pieces in order, none overlapping.

use crate::DumpError;
use crate::headers::Load;
use addr::{FrameRange, Gfn, Gpa, GuestPhysical, PAGE_SHIFT, PAGE_SIZE};
use alloc::vec::Vec;

/// First address that no CPU has.
const END: u64 = 1 << 52;

/// Consecutive frames that are consecutive in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The frames.
    pub frames: FrameRange<GuestPhysical>,
    /// Position of the first in the file.
    pub offset: u64,
}

/// All memory that a dump holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    pieces: Vec<Piece>,
    frames: u64,
    missing: u64,
}

impl MemoryMap {
    /// Puts the pieces in order. Of two that overlap, the one that begins first counts; incomplete
    /// frames, and those behind the end of the file, are left out.
    ///
    /// # Errors
    /// They describe more memory than the file has bytes.
    pub fn new(loads: &[Load], length: u64) -> Result<Self, DumpError> {
        let mut missing = 0;
        let mut found: Vec<Piece> = Vec::new();
        for load in loads {
            let Some(end) = load.start.checked_add(load.length).filter(|end| *end <= END) else {
                return Err(DumpError::Damaged("it describes memory that no CPU can address"));
            };
            let skipped = load.start.next_multiple_of(PAGE_SIZE) - load.start;
            let offset = load.offset.saturating_add(skipped);
            let start = (load.start + skipped) >> PAGE_SHIFT;
            let promised = (end >> PAGE_SHIFT).saturating_sub(start);
            let count = promised.min(length.saturating_sub(offset) >> PAGE_SHIFT);
            missing += promised - count;
            if count > 0 {
                let frames = FrameRange::with_count(Gfn::new(start), count);
                found.push(Piece { frames, offset });
            }
        }
        found.sort_unstable_by_key(|piece| (piece.frames.start, piece.offset));
        let mut pieces: Vec<Piece> = Vec::new();
        for mut piece in found {
            let end = pieces.last().map_or(Gfn::new(0), |last| last.frames.end);
            if piece.frames.start < end {
                let covered = end.raw() - piece.frames.start.raw();
                piece.frames.start = end;
                piece.offset += covered << PAGE_SHIFT;
            }
            if piece.frames.is_empty() {
                continue;
            }
            match pieces.last_mut() {
                Some(last) if last.continues_in(&piece) => last.frames.end = piece.frames.end,
                _ => pieces.push(piece),
            }
        }
        let frames = pieces.iter().map(|piece| piece.frames.count()).sum();
        if frames > length >> PAGE_SHIFT {
            return Err(DumpError::Damaged("two addresses have the same place in the file"));
        }
        if frames == 0 {
            return Err(DumpError::Damaged("it holds no whole frame"));
        }
        Ok(Self { pieces, frames, missing })
    }

    /// All pieces in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Number of frames.
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Number of frames that the headers promise and the file does not hold.
    pub const fn missing(&self) -> u64 {
        self.missing
    }

    /// The pieces that share frames with `range`, by number, and the frames that they share.
    pub fn overlapping(
        &self,
        range: FrameRange<GuestPhysical>,
    ) -> impl Iterator<Item = (usize, FrameRange<GuestPhysical>)> {
        let first = self.pieces.partition_point(|piece| piece.frames.end <= range.start);
        let pieces = self.pieces.iter().enumerate().skip(first);
        pieces.take_while(move |(_, piece)| piece.frames.start < range.end).map(
            move |(number, piece)| {
                let start = piece.frames.start.max(range.start);
                (number, FrameRange::new(start, piece.frames.end.min(range.end)))
            },
        )
    }

    /// Position in the file of `length` bytes, if one piece holds them all.
    pub fn offset_of(&self, at: Gpa, length: u64) -> Option<u64> {
        let (number, _) = self.overlapping(FrameRange::with_count(at.frame(), 1)).next()?;
        let piece = self.pieces.get(number)?;
        let inside = at.raw() - piece.frames.start.start().raw();
        let room = (piece.frames.count() << PAGE_SHIFT) - inside;
        (length <= room).then(|| piece.offset + inside)
    }
}

impl Piece {
    fn continues_in(&self, next: &Self) -> bool {
        self.frames.end == next.frames.start
            && self.offset + (self.frames.count() << PAGE_SHIFT) == next.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn loads() -> impl Strategy<Value = Vec<Load>> {
        let load = (0_u64..40 << 11, 0_u64..20 << 11, 0_u64..40 << 11);
        let load = load.prop_map(|(start, length, offset)| Load {
            start: start * 2,
            length: length * 2,
            offset,
        });
        prop::collection::vec(load, 1..8)
    }

    proptest! {
        /// The model: frame by frame, the first piece in order that has it.
        #[test]
        fn frames_are_where_a_search_finds_them(loads in loads(), length in 0_u64..1 << 18) {
            let map = MemoryMap::new(&loads, length);
            let mut sorted = loads.clone();
            sorted.sort_by_key(|load| (load.start.div_ceil(PAGE_SIZE), load.offset
                + load.start.next_multiple_of(PAGE_SIZE) - load.start));
            let mut model = BTreeMap::new();
            for load in &sorted {
                for frame in load.start.div_ceil(PAGE_SIZE)..(load.start + load.length) / PAGE_SIZE {
                    let offset = load.offset + frame * PAGE_SIZE - load.start;
                    if offset + PAGE_SIZE <= length {
                        model.entry(frame).or_insert(offset);
                    }
                }
            }
            let Ok(map) = map else {
                prop_assert!(model.is_empty() || model.len() as u64 > length / PAGE_SIZE);
                return Ok(());
            };
            prop_assert_eq!(map.frames(), model.len() as u64);
            for frame in 0..100 {
                let at = Gpa::new(frame * PAGE_SIZE + 8);
                prop_assert_eq!(map.offset_of(at, 8), model.get(&frame).map(|at| at + 8));
            }
            for pair in map.pieces().windows(2) {
                prop_assert!(pair[0].frames.end <= pair[1].frames.start);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let load = |start, length| [Load { start, length, offset: 0 }];
        assert!(MemoryMap::new(&load(1 << 52, 4096), 4096).is_err());
        assert!(MemoryMap::new(&load(u64::MAX, u64::MAX), 4096).is_err());
        assert!(MemoryMap::new(&load(0, 4096), 0).is_err());
        let cut = MemoryMap::new(&load(0, 8192), 4096).unwrap();
        assert_eq!((cut.frames(), cut.missing()), (1, 1));
    }
}
