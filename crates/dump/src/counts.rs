//! Counters for the frames of a dump: one set per piece of memory.

use crate::DumpError;
use crate::memory::MemoryMap;
use addr::{FRAMES_PER_2M, FrameRange, Gfn, GuestPhysical};
use alloc::vec::Vec;
use integrity::Rights;
use integrity::rights::{Counters, storage_bytes};

/// Storage for the counters of every piece.
pub struct Storage(Vec<Vec<u8>>);

/// First frame that a piece is counted from: leaves of 2 MiB stay aligned.
const fn base(frames: FrameRange<GuestPhysical>) -> u64 {
    frames.start.raw() / FRAMES_PER_2M * FRAMES_PER_2M
}

impl Storage {
    /// Storage for one set of counters of all frames.
    ///
    /// # Errors
    /// `Memory`.
    pub fn new(memory: &MemoryMap) -> Result<Self, DumpError> {
        let part = |frames: FrameRange<GuestPhysical>| {
            let length = storage_bytes(frames.end.raw() - base(frames));
            let length = usize::try_from(length).ok()?;
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(length).ok()?;
            bytes.resize(length, 0);
            Some(bytes)
        };
        let parts = memory.pieces().iter().map(|piece| part(piece.frames));
        let parts: Option<Vec<_>> = parts.collect();
        parts.map(Self).ok_or(DumpError::Memory(memory.frames()))
    }
}

/// The counters, zeroed.
pub struct Counts<'a> {
    memory: &'a MemoryMap,
    parts: Vec<(u64, Counters<'a>)>,
}

impl<'a> Counts<'a> {
    /// Counters in this storage, which was made for this memory.
    pub fn new(memory: &'a MemoryMap, storage: &'a mut Storage) -> Self {
        let parts = memory.pieces().iter().zip(&mut storage.0).map(|(piece, bytes)| {
            let base = base(piece.frames);
            (base, Counters::new(piece.frames.end.raw() - base, bytes))
        });
        Self { memory, parts: parts.collect() }
    }

    /// Counts a mapping of `range`; whether the dump has any of it.
    pub fn add(&mut self, range: FrameRange<GuestPhysical>, rights: Rights) -> bool {
        let mut any = false;
        for (number, shared) in self.memory.overlapping(range) {
            let Some((base, counters)) = self.parts.get_mut(number) else { continue };
            let moved = |frame: Gfn| Gfn::new(frame.raw() - *base);
            counters.map(FrameRange::new(moved(shared.start), moved(shared.end)), rights);
            any = true;
        }
        any
    }

    /// What can be done with a frame of piece `number` through any mapping.
    pub fn rights(&self, number: usize, frame: Gfn) -> Rights {
        let part = self.parts.get(number);
        let collective = part.and_then(|(base, counters)| {
            counters.collective(Gfn::new(frame.raw().checked_sub(*base)?))
        });
        collective.map_or(Rights::empty(), |collective| collective.rights())
    }
}
