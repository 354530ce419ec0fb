//! Changes that come one leaf at a time, and are counted a run at a time.
//!
//! Runs of one frame, as where frames are scattered, are collected and counted in one go: each then
//! waits for its byte to come from memory, and a CPU waits for many at once only if little else stands
//! between them.

use super::{Counters, Uncounted};
use crate::Rights;
use addr::{FrameRange, Gfn, GuestPhysical};
use arrayvec::ArrayVec;

/// Most changes of single frames that are collected.
const SINGLES: usize = 64;

/// Collects changes as long as each begins where the one before ended and is otherwise like it.
/// What comes out is the same as if each had been counted by itself; until it is dropped, or ended
/// by [`Batch::finish`], the last run is not counted yet.
#[must_use = "what is uncounted is told by `finish`"]
pub struct Batch<'c, 's> {
    counters: &'c mut Counters<'s>,
    run: FrameRange<GuestPhysical>,
    from: Rights,
    to: Rights,
    /// Changes before the run, in order.
    singles: ArrayVec<Single, SINGLES>,
    /// Frames that lost what they never had.
    uncounted: u64,
}

/// A change of one frame.
pub(super) struct Single {
    pub frame: Gfn,
    pub from: Rights,
    pub to: Rights,
}

impl<'s> Counters<'s> {
    /// Begins a batch of changes.
    pub const fn batch(&mut self) -> Batch<'_, 's> {
        let (run, none) = (FrameRange::with_count(Gfn::new(0), 0), Rights::empty());
        let singles = ArrayVec::new_const();
        Batch { counters: self, run, from: none, to: none, singles, uncounted: 0 }
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
        self.count_all();
        if self.uncounted == 0 { Ok(()) } else { Err(Uncounted { frames: self.uncounted }) }
    }

    #[inline]
    fn count(&mut self) {
        let run = core::mem::replace(&mut self.run, FrameRange::with_count(Gfn::new(0), 0));
        if run.count() == 1 {
            let single = Single { frame: run.start, from: self.from, to: self.to };
            // There is room: it is made as soon as there is none.
            let _ = self.singles.try_push(single);
            if self.singles.is_full() {
                self.count_singles();
            }
            return;
        }
        if run.is_empty() {
            return;
        }
        self.count_singles();
        if let Err(Uncounted { frames }) = self.counters.update(run, self.from, self.to) {
            self.uncounted += frames;
        }
    }

    fn count_singles(&mut self) {
        self.uncounted += self.counters.update_singles(&self.singles);
        self.singles.clear();
    }

    fn count_all(&mut self) {
        self.count();
        self.count_singles();
    }
}

impl Drop for Batch<'_, '_> {
    fn drop(&mut self) {
        self.count_all();
    }
}
