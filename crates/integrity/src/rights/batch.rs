//! Changes that come one leaf at a time, and are counted a run at a time.

use super::{Counters, Uncounted};
use crate::Rights;
use addr::{FrameRange, Gfn, GuestPhysical};

/// Collects changes as long as each begins where the one before ended and is otherwise like it.
/// What comes out is the same as if each had been counted by itself; until it is dropped, or ended
/// by [`Batch::finish`], the last run is not counted yet.
#[must_use = "what is uncounted is told by `finish`"]
pub struct Batch<'c, 's> {
    counters: &'c mut Counters<'s>,
    run: FrameRange<GuestPhysical>,
    from: Rights,
    to: Rights,
    /// Frames that lost what they never had.
    uncounted: u64,
}

impl<'s> Counters<'s> {
    /// Begins a batch of changes.
    pub const fn batch(&mut self) -> Batch<'_, 's> {
        let (run, none) = (FrameRange::with_count(Gfn::new(0), 0), Rights::empty());
        Batch { counters: self, run, from: none, to: none, uncounted: 0 }
    }
}

impl Batch<'_, '_> {
    /// As [`Counters::map`].
    #[inline]
    pub fn map(&mut self, range: FrameRange<GuestPhysical>, rights: Rights) {
        self.update(range, Rights::empty(), rights);
    }

    /// As [`Counters::unmap`], but for the error.
    #[inline]
    pub fn unmap(&mut self, range: FrameRange<GuestPhysical>, rights: Rights) {
        self.update(range, rights, Rights::empty());
    }

    /// As [`Counters::update`], but for the error.
    #[inline]
    pub fn update(&mut self, range: FrameRange<GuestPhysical>, from: Rights, to: Rights) {
        if range.is_empty() {
            return;
        }
        if range.start == self.run.end && from == self.from && to == self.to {
            self.run.end = range.end;
            return;
        }
        self.count();
        (self.run, self.from, self.to) = (range, from, to);
    }

    /// Counts what is left.
    ///
    /// # Errors
    /// [`Uncounted`], of all changes together.
    pub fn finish(mut self) -> Result<(), Uncounted> {
        self.count();
        if self.uncounted == 0 { Ok(()) } else { Err(Uncounted { frames: self.uncounted }) }
    }

    #[inline]
    fn count(&mut self) {
        let run = core::mem::replace(&mut self.run, FrameRange::with_count(Gfn::new(0), 0));
        if let Err(Uncounted { frames }) = self.counters.update(run, self.from, self.to) {
            self.uncounted += frames;
        }
    }
}

impl Drop for Batch<'_, '_> {
    fn drop(&mut self) {
        self.count();
    }
}
