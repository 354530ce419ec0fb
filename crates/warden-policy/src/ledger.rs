//! The violations that the warden was asked about, as far back as they count.

use abi::event::ViolationKind;
use abi::policy::Warden;

/// Before more violations than this count at once, one kind has more than the policy can allow, and
/// the machine was stopped. So nothing that counts is ever overwritten.
const CAPACITY: usize = ViolationKind::COUNT * Warden::MOST as usize;

/// A violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Time-stamp counter when it happened.
    pub time: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// What was attempted.
    pub kind: ViolationKind,
}

/// How many violations count, one that was just entered among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Of its kind.
    pub of_kind: u32,
    /// From its instruction.
    pub from_rip: u32,
}

/// The violations, and how long each counts.
pub struct Ledger {
    /// A ring; the next one goes to `next`.
    entries: [Option<Entry>; CAPACITY],
    next: usize,
    /// Ticks, `None` for ever.
    window: Option<u64>,
    /// The latest time of all. CPUs' counters may differ: what is ahead of it does not go back.
    now: u64,
}

impl Ledger {
    /// An empty one. Each entry counts for `window` ticks of the time-stamp counter, `None` for
    /// ever.
    pub const fn new(window: Option<u64>) -> Self {
        Self { entries: [None; CAPACITY], next: 0, window, now: 0 }
    }

    /// Adds a violation.
    pub fn enter(&mut self, entry: Entry) -> Counts {
        self.now = self.now.max(entry.time);
        if let Some(place) = self.entries.get_mut(self.next) {
            *place = Some(entry);
        }
        self.next = (self.next + 1) % CAPACITY;
        let mut counts = Counts { of_kind: 0, from_rip: 0 };
        for other in self.entries.iter().flatten().filter(|other| self.still_counts(other)) {
            counts.of_kind += u32::from(other.kind == entry.kind);
            counts.from_rip += u32::from(other.rip == entry.rip);
        }
        counts
    }

    fn still_counts(&self, entry: &Entry) -> bool {
        self.window.is_none_or(|window| self.now - entry.time <= window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// All there ever was.
    fn model(all: &[Entry], window: Option<u64>) -> Counts {
        let now = all.iter().map(|entry| entry.time).max().unwrap();
        let last = *all.last().unwrap();
        let counting = || all.iter().filter(|e| window.is_none_or(|w| now - e.time <= w));
        let count = |test: &dyn Fn(&Entry) -> bool| {
            u32::try_from(counting().filter(|entry| test(entry)).count()).unwrap()
        };
        Counts { of_kind: count(&|e| e.kind == last.kind), from_rip: count(&|e| e.rip == last.rip) }
    }

    proptest! {
        /// Until the first kind has more than can be allowed, every count is that of a ledger
        /// without an end.
        #[test]
        fn nothing_that_counts_is_forgotten(
            window in prop::option::of(0_u64..400),
            steps in prop::collection::vec((0_u64..6, -3_i64..4, 0_u64..40, 0..ViolationKind::COUNT), 1..400),
        ) {
            let (mut ledger, mut all, mut time) = (Ledger::new(window), Vec::new(), 0_u64);
            for (step, skew, rip, kind) in steps {
                time += step;
                let entry = Entry { time: time.saturating_add_signed(skew), rip, kind: ViolationKind::ALL[kind] };
                all.push(entry);
                let counts = ledger.enter(entry);
                prop_assert_eq!(counts, model(&all, window));
                if counts.of_kind > Warden::MOST {
                    break;
                }
            }
        }
    }
}
