//! A direct map for tests: which frames it maps, which blocks by one leaf, and a failure on demand.

use crate::{DirectMap, NoTables};
use addr::{FrameRange, Hfn, HostPhysical};
use std::vec;
use std::vec::Vec;

/// See the module. Frames are numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FakeMap {
    block: u64,
    pub present: Vec<bool>,
    pub large: Vec<bool>,
    /// Frames that hold what was there before the start.
    pub junk: Vec<bool>,
    /// Requests for memory that are still granted.
    pub allowance: u64,
    /// It was told to unmap part of a large leaf, to map what is mapped, or to zero what is not.
    pub misused: bool,
}

impl FakeMap {
    pub fn new(frames: usize, block: usize) -> Self {
        Self {
            block: block as u64,
            present: vec![true; frames],
            large: vec![true; frames / block],
            junk: vec![true; frames],
            allowance: u64::MAX,
            misused: false,
        }
    }

    fn table(&mut self) -> Result<(), NoTables> {
        self.allowance = self.allowance.checked_sub(1).ok_or(NoTables)?;
        Ok(())
    }

    fn block_of(&self, frames: FrameRange<HostPhysical>) -> (usize, bool) {
        let block = frames.start.raw() / self.block;
        assert!(!frames.is_empty() && frames.end.raw() <= (block + 1) * self.block);
        (usize::try_from(block).unwrap(), frames.count() == self.block)
    }

    fn set(&mut self, frames: FrameRange<HostPhysical>, present: bool) {
        for frame in frames.iter() {
            self.present[usize::try_from(frame.raw()).unwrap()] = present;
        }
    }
}

impl DirectMap for FakeMap {
    fn split(&mut self, frames: FrameRange<HostPhysical>) -> Result<(), NoTables> {
        let (block, is_whole) = self.block_of(frames);
        if self.large[block] {
            // A whole block may be part of a larger leaf.
            self.table()?;
            self.large[block] = is_whole;
        }
        Ok(())
    }

    fn unmap(&mut self, frames: FrameRange<HostPhysical>) {
        let (block, is_whole) = self.block_of(frames);
        self.misused |= self.large[block] && !is_whole;
        self.large[block] = false;
        self.set(frames, false);
    }

    fn map(&mut self, frame: Hfn) -> Result<(), NoTables> {
        self.table()?;
        let range = FrameRange::with_count(frame, 1);
        self.misused |= self.present[usize::try_from(frame.raw()).unwrap()];
        self.set(range, true);
        Ok(())
    }

    fn zero(&mut self, frames: FrameRange<HostPhysical>) {
        for frame in frames.iter() {
            let frame = usize::try_from(frame.raw()).unwrap();
            self.misused |= !self.present[frame];
            self.junk[frame] = false;
        }
    }

    fn restore(&mut self, block: FrameRange<HostPhysical>) -> Result<(), NoTables> {
        self.table()?;
        let (number, is_whole) = self.block_of(block);
        assert!(is_whole);
        self.large[number] = true;
        self.set(block, true);
        Ok(())
    }
}
