//! The hypervisor's own frames: a bitmap allocator over one range of host-physical memory.
//!
//! A bit is set while its frame is in use; bits past the end of the range stay set for ever. Every
//! frame is either in use by exactly one owner or free, and `in_use` counts the former.

use addr::{FrameRange, Hfn, HostPhysical};

/// Why the pool refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The bitmap has fewer bits than the range has frames.
    #[error("the pool's bitmap has {words} words but needs {needed}")]
    BitmapTooSmall {
        /// Words that were given.
        words: usize,
        /// Words that the range needs.
        needed: u64,
    },
    /// A frame does not belong to the pool.
    #[error("frame {0:?} is not one of the pool's")]
    Foreign(Hfn),
    /// A frame to be freed is free already.
    #[error("frame {0:?} is free already")]
    NotInUse(Hfn),
    /// A frame to be reserved is in use.
    #[error("frame {0:?} is in use already")]
    InUse(Hfn),
}

/// The allocator. `B` is the storage of the bitmap, such as `&'static mut [u64]`.
#[derive(Debug)]
pub struct Pool<B> {
    range: FrameRange<HostPhysical>,
    bitmap: B,
    /// No word before this one has a free frame.
    first_free: usize,
    in_use: u64,
    most_in_use: u64,
}

const BITS: usize = 64;

/// Words of bitmap that a pool of `frames` frames needs.
pub const fn bitmap_words(frames: u64) -> u64 {
    frames.div_ceil(BITS as u64)
}

impl<B: AsRef<[u64]> + AsMut<[u64]>> Pool<B> {
    /// A pool of the frames of `range`, all free. The bitmap, one bit per frame, is overwritten.
    ///
    /// # Errors
    /// `BitmapTooSmall`.
    pub fn new(range: FrameRange<HostPhysical>, mut bitmap: B) -> Result<Self, PoolError> {
        let words = bitmap.as_mut();
        let needed = bitmap_words(range.count());
        if (words.len() as u64) < needed {
            return Err(PoolError::BitmapTooSmall { words: words.len(), needed });
        }
        let mut left = range.count();
        for word in words {
            *word = if left >= BITS as u64 { 0 } else { u64::MAX << left };
            left = left.saturating_sub(BITS as u64);
        }
        Ok(Self { range, bitmap, first_free: 0, in_use: 0, most_in_use: 0 })
    }

    /// The frames that the pool manages.
    pub fn range(&self) -> FrameRange<HostPhysical> {
        self.range
    }

    /// Frames in use now.
    pub fn in_use(&self) -> u64 {
        self.in_use
    }

    /// Frames free now.
    pub fn available(&self) -> u64 {
        self.range.count() - self.in_use
    }

    /// Most frames that were ever in use at once.
    pub fn most_in_use(&self) -> u64 {
        self.most_in_use
    }

    /// Takes the first free frame. Its contents are whatever they were.
    pub fn allocate(&mut self) -> Option<Hfn> {
        let words = self.bitmap.as_ref();
        let from = words.iter().enumerate().skip(self.first_free);
        let (index, word) = from.into_iter().find(|(_, word)| **word != u64::MAX)?;
        let offset = index * BITS + word.trailing_ones() as usize;
        self.first_free = index;
        self.take(offset, 1);
        Some(self.frame(offset))
    }

    /// Takes the first `count` free frames in a row whose first frame number is a multiple of
    /// `align`. `None` if there are none, or if `count` or `align` is 0. Searches the whole
    /// bitmap: for start-up and rare large buffers.
    pub fn allocate_contiguous(
        &mut self,
        count: u64,
        align: u64,
    ) -> Option<FrameRange<HostPhysical>> {
        let mut start = self.range.start.raw().checked_next_multiple_of(align)?;
        loop {
            let end = start.checked_add(count).filter(|end| *end <= self.range.end.raw())?;
            let run = FrameRange::new(Hfn::new(start), Hfn::new(end));
            let (offset, length) = self.offsets(run).ok().filter(|(_, length)| *length > 0)?;
            match (offset..offset + length).rev().find(|offset| self.is_used(*offset)) {
                None => {
                    self.take(offset, length);
                    return Some(run);
                }
                Some(used) => start = self.frame(used + 1).raw().checked_next_multiple_of(align)?,
            }
        }
    }

    /// Takes given frames, such as those that the hypervisor's image occupies.
    ///
    /// # Errors
    /// `Foreign` or `InUse` for the first frame of which that is true.
    pub fn reserve(&mut self, range: FrameRange<HostPhysical>) -> Result<(), PoolError> {
        let (offset, length) = self.offsets(range)?;
        match (offset..offset + length).find(|offset| self.is_used(*offset)) {
            Some(used) => Err(PoolError::InUse(self.frame(used))),
            None => {
                self.take(offset, length);
                Ok(())
            }
        }
    }

    /// Gives one frame back.
    ///
    /// # Errors
    /// `Foreign`, `NotInUse`.
    pub fn free(&mut self, frame: Hfn) -> Result<(), PoolError> {
        self.free_range(FrameRange::with_count(frame, 1))
    }

    /// Gives frames back, all or none.
    ///
    /// # Errors
    /// `Foreign` or `NotInUse` for the first frame of which that is true.
    pub fn free_range(&mut self, range: FrameRange<HostPhysical>) -> Result<(), PoolError> {
        let (offset, length) = self.offsets(range)?;
        if let Some(free) = (offset..offset + length).find(|offset| !self.is_used(*offset)) {
            return Err(PoolError::NotInUse(self.frame(free)));
        }
        for offset in offset..offset + length {
            self.bitmap.as_mut()[offset / BITS] &= !(1 << (offset % BITS));
        }
        self.first_free = self.first_free.min(offset / BITS);
        self.in_use -= length as u64;
        Ok(())
    }

    /// Marks free frames as used.
    fn take(&mut self, offset: usize, length: usize) {
        for offset in offset..offset + length {
            self.bitmap.as_mut()[offset / BITS] |= 1 << (offset % BITS);
        }
        self.in_use += length as u64;
        self.most_in_use = self.most_in_use.max(self.in_use);
    }

    fn is_used(&self, offset: usize) -> bool {
        self.bitmap.as_ref()[offset / BITS] >> (offset % BITS) & 1 != 0
    }

    /// The frame of a bit.
    fn frame(&self, offset: usize) -> Hfn {
        self.range.start.plus(offset as u64)
    }

    /// First bit and number of bits of a range, all of which must belong to the pool.
    fn offsets(&self, range: FrameRange<HostPhysical>) -> Result<(usize, usize), PoolError> {
        if range.is_empty() {
            return Ok((0, 0));
        }
        if !self.range.contains(range.start) {
            return Err(PoolError::Foreign(range.start));
        }
        if range.end > self.range.end {
            return Err(PoolError::Foreign(self.range.end));
        }
        let offset = usize::try_from(range.start.raw() - self.range.start.raw());
        match (offset, usize::try_from(range.count())) {
            (Ok(offset), Ok(length)) => Ok((offset, length)),
            _ => Err(PoolError::Foreign(range.start)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    enum Op {
        Allocate,
        Contiguous(u64, u64),
        Reserve(u64, u64),
        Free(u64),
        FreeRange(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let frame = || 90_u64..400;
        prop_oneof![
            6 => Just(Op::Allocate),
            3 => (0_u64..80, 0_u32..7).prop_map(|(count, align)| Op::Contiguous(count, 1 << align)),
            1 => (frame(), 0_u64..40).prop_map(|(start, count)| Op::Reserve(start, count)),
            4 => frame().prop_map(Op::Free),
            2 => (frame(), 0_u64..40).prop_map(|(start, count)| Op::FreeRange(start, count)),
        ]
    }

    fn frames(start: u64, count: u64) -> FrameRange<HostPhysical> {
        FrameRange::with_count(Hfn::new(start), count)
    }

    proptest! {
        #[test]
        fn a_pool_matches_a_plain_set(
            start in 95_u64..130,
            count in 0_u64..260,
            ops in prop::collection::vec(op(), 0..120),
        ) {
            let range = frames(start, count);
            let mut pool = Pool::new(range, vec![0x55; 5]).unwrap();
            let mut free: BTreeSet<u64> = (start..start + count).collect();
            let mut most = 0;
            // The first frame of a run that belongs to the pool but is not as it should be, after
            // any that does not belong.
            let refusal = |free: &BTreeSet<u64>, run: FrameRange<HostPhysical>, wants_free| {
                let foreign = run.iter().find(|frame| !range.contains(*frame));
                let wrong = run.iter().find(|frame| free.contains(&frame.raw()) != wants_free);
                match (foreign, wrong) {
                    (Some(frame), _) => Err(PoolError::Foreign(frame)),
                    (None, Some(frame)) if wants_free => Err(PoolError::InUse(frame)),
                    (None, Some(frame)) => Err(PoolError::NotInUse(frame)),
                    (None, None) => Ok(()),
                }
            };
            for op in ops {
                match op {
                    Op::Allocate => {
                        prop_assert_eq!(pool.allocate().map(Hfn::raw), free.pop_first());
                    }
                    Op::Contiguous(count, align) => {
                        let fits = |first: &u64| {
                            count > 0
                                && first.is_multiple_of(align)
                                && (*first..first + count).all(|frame| free.contains(&frame))
                        };
                        let expected = free.iter().copied().find(fits);
                        let run = pool.allocate_contiguous(count, align);
                        prop_assert_eq!(run, expected.map(|first| frames(first, count)));
                        free.retain(|frame| !run.is_some_and(|run| run.contains(Hfn::new(*frame))));
                    }
                    Op::Reserve(first, count) => {
                        let run = frames(first, count);
                        let outcome = pool.reserve(run);
                        prop_assert_eq!(outcome, refusal(&free, run, true));
                        free.retain(|frame| outcome.is_err() || !run.contains(Hfn::new(*frame)));
                    }
                    Op::Free(frame) => {
                        let outcome = pool.free(Hfn::new(frame));
                        prop_assert_eq!(outcome, refusal(&free, frames(frame, 1), false));
                        if outcome.is_ok() {
                            free.insert(frame);
                        }
                    }
                    Op::FreeRange(first, count) => {
                        let run = frames(first, count);
                        let outcome = pool.free_range(run);
                        prop_assert_eq!(outcome, refusal(&free, run, false));
                        if outcome.is_ok() {
                            free.extend(first..first + count);
                        }
                    }
                }
                most = most.max(count - free.len() as u64);
                prop_assert_eq!(pool.available(), free.len() as u64);
                prop_assert_eq!(pool.in_use(), count - free.len() as u64);
                prop_assert_eq!(pool.most_in_use(), most);
            }
            let rest: Vec<u64> = core::iter::from_fn(|| pool.allocate()).map(Hfn::raw).collect();
            prop_assert_eq!(rest, free.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_bitmap_that_is_too_small_is_refused() {
        let outcome = Pool::new(frames(0, 129), vec![0; 2]).map(|pool| pool.range());
        assert_eq!(outcome, Err(PoolError::BitmapTooSmall { words: 2, needed: 3 }));
    }
}
