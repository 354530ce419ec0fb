//! Permission counters: over all aliases of a frame in the guest's own page tables, how many can
//! read it, write it, execute it. They are filled by a walk and kept up to date by the changes of
//! the tables.
//!
//! One byte holds the three counters of a 4 KiB frame, and there is one more such byte for every
//! 2 MiB and for every 1 GiB, whose counts are for each frame inside. What a frame has is the sum of
//! the three, so a leaf of any size is one byte changed. How a mapping was divided when it was
//! counted does not matter: where a part of it goes, its count moves down to the smaller parts
//! first, which changes no sum.
//!
//! What always holds: the rights that the counters show are at least those that there are. A
//! counter that has reached its limit stays there, since nobody knows any more how many there are;
//! a new count puts that right.

mod batch;
mod lanes;
#[cfg(test)]
mod tests;

use crate::Rights;
use addr::{FrameRange, Gfn, GuestPhysical};
pub use batch::Batch;
use batch::Single;
use core::hint::black_box;
use core::ops::Range;
use lanes::{LANES, add_to_all, changed, count_of, increment_of, none, remove_from_all, some_of};

/// Parts of a byte's span that have a byte of their own, one level below.
const PARTS: usize = 512;
/// Levels: 4 KiB, 2 MiB, 1 GiB.
const LEVELS: usize = 3;

/// The counters of one frame. From a limit on, a count only says that there is an alias or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collective {
    /// Aliases that can read; exact below 7.
    pub readable: u8,
    /// Aliases that can write; exact below 7.
    pub writable: u8,
    /// Aliases that can execute; exact below 3.
    pub executable: u8,
}

impl Collective {
    /// What can be done through any alias.
    pub fn rights(self) -> Rights {
        let granted = |count, right| if count > 0 { right } else { Rights::empty() };
        granted(self.readable, Rights::READ)
            | granted(self.writable, Rights::WRITE)
            | granted(self.executable, Rights::EXECUTE)
    }

    /// Whether the frame can be written and executed, through the same alias or two.
    pub const fn conflicts(self) -> bool {
        self.writable > 0 && self.executable > 0
    }
}

/// Numbers of frames, by what all aliases together allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Some alias can write them.
    pub writable: u64,
    /// Some alias can write them, and some alias, maybe another, can execute them.
    pub conflicting: u64,
}

/// A change took away what was never counted: the caller missed a change before it. Nothing was
/// taken away where nothing was counted, so what the counters show is still not too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{frames} frames lost a mapping that was never counted: count all mappings again")]
pub struct Uncounted {
    /// Number of frames, each once for every right.
    pub frames: u64,
}

/// Bytes of storage for the counters of frames 0 to `frames`: 1 + 1/512 + 1/512² for each.
pub const fn storage_bytes(frames: u64) -> u64 {
    let large = frames.div_ceil(PARTS as u64);
    frames.saturating_add(large).saturating_add(large.div_ceil(PARTS as u64))
}

/// Counters for frames 0 to some number of a guest.
pub struct Counters<'a> {
    levels: [&'a mut [u8]; LEVELS],
}

impl<'a> Counters<'a> {
    /// Zeroed counters for `frames` frames, or as many as `storage` has room for; see
    /// [`storage_bytes`].
    pub fn new(frames: u64, storage: &'a mut [u8]) -> Self {
        let fitting = storage.len() / (PARTS + 2) * PARTS;
        let wanted = usize::try_from(frames).unwrap_or(usize::MAX);
        let enough = storage_bytes(frames) <= storage.len() as u64;
        let frames = if enough { wanted } else { fitting.saturating_sub(PARTS).min(wanted) };
        storage.fill(0);
        let (small, rest) = storage.split_at_mut(frames);
        let (large, rest) = rest.split_at_mut(frames.div_ceil(PARTS));
        let (huge, _) = rest.split_at_mut(frames.div_ceil(PARTS).div_ceil(PARTS));
        Self { levels: [small, large, huge] }
    }

    /// Counts a mapping with `rights` of every frame of `range`. Frames past the end of the
    /// storage (devices, say) are left out, here and below.
    #[inline]
    pub fn map(&mut self, range: FrameRange<GuestPhysical>, rights: Rights) {
        let one = increment_of(rights);
        if let Some(byte) = self.single(range) {
            *byte = changed(*byte, one, 0);
            return;
        }
        self.map_parts(range, one);
    }

    fn map_parts(&mut self, range: FrameRange<GuestPhysical>, one: u8) {
        for (level, part) in self.parts(range) {
            if let Some(bytes) = self.bytes(level, part) {
                add_to_all(bytes, one);
            }
        }
    }

    /// A mapping with `rights` of every frame of `range` is gone.
    ///
    /// # Errors
    /// [`Uncounted`]; the rest of the range was changed all the same.
    pub fn unmap(
        &mut self,
        range: FrameRange<GuestPhysical>,
        rights: Rights,
    ) -> Result<(), Uncounted> {
        self.update(range, rights, Rights::empty())
    }

    /// A mapping of every frame of `range` has changed its rights.
    ///
    /// # Errors
    /// As for [`Counters::unmap`].
    #[inline]
    pub fn update(
        &mut self,
        range: FrameRange<GuestPhysical>,
        from: Rights,
        to: Rights,
    ) -> Result<(), Uncounted> {
        let (more, less) = (increment_of(to - from), increment_of(from - to));
        if let Some(byte) = self.single(range)
            && some_of(*byte) & less == less
        {
            *byte = changed(*byte, more, less);
            return Ok(());
        }
        self.update_parts(range, from, to)
    }

    /// As [`Counters::update`] for each of these in order; answers the frames that were uncounted.
    fn update_singles(&mut self, singles: &[Single]) -> u64 {
        let [small, ..] = &self.levels;
        let byte = |single: &Single| small.get(usize::try_from(single.frame.raw()).ok()?).copied();
        // Nothing stands between these loads: all bytes are on their way from memory at once.
        black_box(singles.iter().filter_map(byte).fold(0, |all, byte| all | byte));
        let mut uncounted = 0;
        for Single { frame, from, to } in singles {
            let range = FrameRange::with_count(*frame, 1);
            if let Err(Uncounted { frames }) = self.update(range, *from, *to) {
                uncounted += frames;
            }
        }
        uncounted
    }

    fn update_parts(
        &mut self,
        range: FrameRange<GuestPhysical>,
        from: Rights,
        to: Rights,
    ) -> Result<(), Uncounted> {
        self.map_parts(range, increment_of(to - from));
        let mut frames = 0;
        for (level, part) in self.parts(range) {
            for right in (from - to).iter() {
                frames += self.take(level, part.clone(), increment_of(right));
            }
        }
        if frames == 0 { Ok(()) } else { Err(Uncounted { frames }) }
    }

    /// The counters of `frame`; `None` outside of the storage.
    pub fn collective(&self, frame: Gfn) -> Option<Collective> {
        let index = usize::try_from(frame.raw()).ok()?;
        let [small, large, huge] = &self.levels;
        let bytes =
            [*small.get(index)?, *large.get(index / PARTS)?, *huge.get(index / PARTS / PARTS)?];
        let sum = |right| bytes.iter().map(|byte| count_of(*byte, right)).sum();
        Some(Collective {
            readable: sum(Rights::READ),
            writable: sum(Rights::WRITE),
            executable: sum(Rights::EXECUTE),
        })
    }

    /// All frames in order.
    pub fn iter(&self) -> impl Iterator<Item = (Gfn, Collective)> {
        (0..).map(Gfn::new).map_while(|frame| Some((frame, self.collective(frame)?)))
    }

    /// Counts frames by what all aliases together allow, a word at a time.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let [small, large, huge] = &self.levels;
        for (number, frames) in small.chunks(PARTS).enumerate() {
            let of =
                |level: &[u8], number: usize| level.get(number).map_or(0, |byte| some_of(*byte));
            let whole = of(large, number) | of(huge, number / PARTS);
            let (words, rest) = frames.as_chunks::<LANES>();
            if words.iter().all(|word| *word == [0; LANES]) && rest.is_empty() {
                // Most frames are mapped by large leaves only.
                let (writable, conflicting) = lanes::totals([0; LANES], whole, LANES);
                totals.writable += writable * words.len() as u64;
                totals.conflicting += conflicting * words.len() as u64;
                continue;
            }
            let mut last = [0; LANES];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            for (word, used) in words.iter().map(|word| (word, LANES)).chain([(&last, rest.len())])
            {
                let (writable, conflicting) = lanes::totals(*word, whole, used);
                totals.writable += writable;
                totals.conflicting += conflicting;
            }
        }
        totals
    }

    /// The frames that some alias can write and some alias can execute, in order.
    pub fn conflicts(&self) -> impl Iterator<Item = (Gfn, Collective)> {
        self.iter().filter(|(_, collective)| collective.conflicts())
    }

    /// The bytes that stand for exactly the frames of `range`: as large ones as there are.
    fn parts(
        &self,
        range: FrameRange<GuestPhysical>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let [small, ..] = &self.levels;
        let clamp =
            |frame: Gfn| usize::try_from(frame.raw()).map_or(small.len(), |n| n.min(small.len()));
        let (start, end) = (clamp(range.start), clamp(range.end));
        let (left, inner, right) = around(start..end.max(start));
        let (large_left, huge, large_right) = around(inner);
        let parts = [(0, left), (1, large_left), (2, huge), (1, large_right), (0, right)];
        parts.into_iter().filter(|(_, part)| !part.is_empty())
    }

    /// The byte of the only frame of `range`, which is what most changes are about.
    #[inline]
    fn single(&mut self, range: FrameRange<GuestPhysical>) -> Option<&mut u8> {
        let [small, ..] = &mut self.levels;
        let index = usize::try_from(range.start.raw()).ok()?;
        if range.count() == 1 { small.get_mut(index) } else { None }
    }

    fn bytes(&mut self, level: usize, part: Range<usize>) -> Option<&mut [u8]> {
        self.levels.get_mut(level)?.get_mut(part)
    }

    /// Takes one from a counter of these bytes; gives the number of frames that had none.
    fn take(&mut self, level: usize, part: Range<usize>, one: u8) -> u64 {
        let mut missing = 0;
        let mut start = part.start;
        // Each time around, all bytes up to one that has nothing to give, and then that one.
        while start < part.end {
            let Some(bytes) = self.bytes(level, start..part.end) else { return missing };
            start += remove_from_all(bytes, one);
            if start < part.end {
                missing += self.take_elsewhere(level, start, one);
                start += 1;
            }
        }
        missing
    }

    /// Takes one for a byte that has none: from the byte above it, or from all those below it.
    fn take_elsewhere(&mut self, level: usize, index: usize, one: u8) -> u64 {
        match self.lower(level, index, one) {
            Lowered::Full => 0,
            Lowered::Yes => {
                let bytes = self.bytes(level, index..index + 1);
                bytes.map_or(0, |bytes| u64::from(remove_from_all(bytes, one) == 0))
            }
            Lowered::No => match level.checked_sub(1) {
                // At most 512 bytes, and 512 below each.
                Some(below) => self.take_below(below, index, one),
                None => 1,
            },
        }
    }

    /// Takes one from all parts of a byte, none of which has anything above it.
    fn take_below(&mut self, level: usize, above: usize, one: u8) -> u64 {
        let mut missing = 0;
        for index in self.parts_of(level, above) {
            let taken = self.bytes(level, index..index + 1).map_or(1, |b| remove_from_all(b, one));
            if taken == 0 {
                missing += match level.checked_sub(1) {
                    Some(below) => self.take_below(below, index, one),
                    None => 1,
                };
            }
        }
        missing
    }

    /// Moves one of the count above a byte down to the byte and its neighbours.
    fn lower(&mut self, level: usize, index: usize, one: u8) -> Lowered {
        let (above, parent) = (level + 1, index / PARTS);
        let Some([byte]) = self.bytes(above, parent..parent + 1) else { return Lowered::No };
        if none(*byte, one) {
            match self.lower(above, parent, one) {
                Lowered::Yes => {}
                other => return other,
            }
        }
        let Some([byte]) = self.bytes(above, parent..parent + 1) else { return Lowered::No };
        if lanes::is_full(*byte, one) {
            return Lowered::Full;
        }
        *byte -= one;
        let parts = self.parts_of(level, parent);
        if let Some(bytes) = self.bytes(level, parts) {
            add_to_all(bytes, one);
        }
        Lowered::Yes
    }

    /// The bytes of `level` that a byte above it consists of.
    fn parts_of(&self, level: usize, above: usize) -> Range<usize> {
        let length = self.levels.get(level).map_or(0, |bytes| bytes.len());
        (above * PARTS).min(length)..((above + 1) * PARTS).min(length)
    }
}

/// How a count moved down.
enum Lowered {
    /// By one.
    Yes,
    /// It is full, and stays where it is.
    Full,
    /// There is none.
    No,
}

/// Divides a range into what lies before the first multiple of [`PARTS`], the multiples inside, in
/// units of [`PARTS`], and what lies behind the last.
fn around(range: Range<usize>) -> (Range<usize>, Range<usize>, Range<usize>) {
    let first = range.start.next_multiple_of(PARTS).min(range.end);
    let last = (range.end / PARTS * PARTS).max(first);
    let inner = if first < last { first / PARTS..last / PARTS } else { 0..0 };
    (range.start..first, inner, last..range.end)
}
