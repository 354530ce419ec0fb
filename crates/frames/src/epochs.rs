//! Generations: how it is known that every CPU has flushed since a change.
//!
//! One counter says how often a flush of all CPUs was asked for, and one per CPU up to which
//! request it has flushed. A change made while the counter stands at `n` is forgotten by a CPU that
//! has flushed for request `n + 1` or a later one: requests up to `n` may have been served before
//! the change. So many changes share one flush.
//!
//! All accesses are sequentially consistent: what a CPU stored into page tables before it asks is
//! seen by every walk that a CPU makes after it has read the request.

use core::sync::atomic::{AtomicU64, Ordering};

/// The counters. `CPUS` is the number of CPUs that there may be.
#[derive(Debug)]
pub struct Epochs<const CPUS: usize> {
    requested: AtomicU64,
    /// Request that each CPU has flushed for; [`AWAY`] while it uses no translation.
    served: [AtomicU64; CPUS],
}

/// Stands for every request.
const AWAY: u64 = u64::MAX;

/// A flush that a CPU has to make. Made before the flush, so that it covers no later request.
#[must_use = "flush this CPU's TLB, then say so"]
#[derive(Debug)]
pub struct FlushDue<'a> {
    served: &'a AtomicU64,
    request: u64,
}

impl FlushDue<'_> {
    /// To be called by its CPU when all its translations are flushed.
    pub fn done(self) {
        self.served.store(self.request, Ordering::SeqCst);
    }
}

impl<const CPUS: usize> Epochs<CPUS> {
    /// No request yet, and no CPU that uses translations.
    #[must_use]
    pub const fn new() -> Self {
        Self { requested: AtomicU64::new(0), served: [const { AtomicU64::new(AWAY) }; CPUS] }
    }

    /// The CPU, whose TLB is empty, begins to use translations. Nothing if there is no such CPU.
    pub fn enter(&self, cpu: usize) {
        if let Some(served) = self.served.get(cpu) {
            served.store(self.requested.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    /// The place of a CPU; `None` if there is no such CPU.
    pub fn place(&self, cpu: usize) -> Option<Place<'_>> {
        self.served.get(cpu).map(Place)
    }

    /// The CPU at `place`, which had served `last` when it left, and whose TLB is as it left it, uses
    /// translations again. If there was a request meanwhile, the flush comes first.
    ///
    /// It shows itself before it looks: whoever requests a flush either is seen here, or sees a CPU
    /// that has yet to serve.
    #[inline]
    pub fn come_back<'a>(&self, place: Place<'a>, last: u64) -> Option<FlushDue<'a>> {
        place.appear(last);
        let request = self.requested.load(Ordering::SeqCst);
        (last < request).then_some(FlushDue { served: place.0, request })
    }

    /// Asks all CPUs to flush, after any number of changes, and answers the number of the request.
    pub fn request(&self) -> u64 {
        self.requested.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The flush that the CPU owes, if any.
    pub fn due(&self, cpu: usize) -> Option<FlushDue<'_>> {
        let served = self.served.get(cpu)?;
        let request = self.requested.load(Ordering::SeqCst);
        (served.load(Ordering::SeqCst) < request).then_some(FlushDue { served, request })
    }

    /// A request that every CPU has served, and so all before it.
    pub fn acknowledged(&self) -> u64 {
        let requested = self.requested.load(Ordering::SeqCst);
        let served = self.served.iter().map(|served| served.load(Ordering::SeqCst));
        served.fold(requested, u64::min)
    }

    /// The first request whose service covers a change that has just been made.
    pub fn covering(&self) -> u64 {
        self.requested.load(Ordering::SeqCst) + 1
    }
}

/// Where a CPU notes whether it uses translations; for the way to its guest and back, which is to be
/// short. Used by that CPU only.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a>(&'a AtomicU64);

impl Place<'_> {
    /// The CPU will use no translation until it has emptied its TLB and called [`Epochs::enter`],
    /// or has called [`Epochs::come_back`] with the answer: what it had served until now.
    #[inline]
    pub fn leave(self) -> u64 {
        let last = self.0.load(Ordering::Relaxed);
        // What it did before it left stays before.
        self.0.store(AWAY, Ordering::Release);
        last
    }

    /// The first half of coming back: no translation is used before the second half, which looks for
    /// requests.
    #[inline]
    pub(crate) fn appear(self, last: u64) {
        self.0.swap(last, Ordering::SeqCst);
    }
}

impl<const CPUS: usize> Default for Epochs<CPUS> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
impl<const CPUS: usize> Epochs<CPUS> {
    /// What the counter of a CPU says.
    pub fn served(&self, cpu: usize) -> u64 {
        self.served[cpu].load(Ordering::SeqCst)
    }

    /// For models that keep the counters as numbers.
    pub fn from_parts(requested: u64, served: [u64; CPUS]) -> Self {
        Self { requested: AtomicU64::new(requested), served: served.map(AtomicU64::new) }
    }
}

#[cfg(test)]
impl FlushDue<'_> {
    /// The request.
    pub fn request(&self) -> u64 {
        self.request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_waits_for_the_slowest_cpu() {
        let epochs = Epochs::<3>::new();
        epochs.enter(0);
        epochs.enter(1);
        epochs.enter(9);
        let late = epochs.covering();
        assert!(epochs.due(0).is_none());
        assert_eq!(epochs.request(), late);
        epochs.due(0).unwrap().done();
        assert!(epochs.acknowledged() < late);
        let begun = epochs.due(1).unwrap();
        // A change after the flush has begun is not covered by it.
        let later = epochs.covering();
        epochs.request();
        begun.done();
        assert!((late..later).contains(&epochs.acknowledged()));
        let place = epochs.place(1).unwrap();
        let last = place.leave();
        epochs.due(0).unwrap().done();
        assert_eq!(epochs.acknowledged(), later);
        // What was requested meanwhile is flushed for before anything else.
        let due = epochs.come_back(place, last).unwrap();
        assert!(epochs.acknowledged() < later);
        due.done();
        assert_eq!(epochs.acknowledged(), later);
        let last = place.leave();
        assert!(epochs.come_back(place, last).is_none());
        place.leave();
        epochs.enter(1);
        assert!(epochs.due(1).is_none());
        assert!(epochs.due(3).is_none());
    }
}
