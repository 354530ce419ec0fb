//! How many lines the warden may write: a guest that provokes violations must not fill the channel.

/// Lines in each period.
const MOST: u32 = 20;
/// Seconds of a period.
const SECONDS: u64 = 10;
/// Ticks of a period where nobody knows how many there are in a second.
const TICKS: u64 = 1 << 34;

/// Counts lines.
pub struct Pace {
    period: u64,
    since: u64,
    written: u32,
    left_out: u32,
}

impl Pace {
    /// Nothing was written so far.
    pub fn new(ticks_per_second: u64) -> Self {
        let ticks = ticks_per_second.saturating_mul(SECONDS);
        Self { period: if ticks == 0 { TICKS } else { ticks }, since: 0, written: 0, left_out: 0 }
    }

    /// How many lines were left out in the period that is over, if one is, and more than none.
    pub fn turn(&mut self, now: u64) -> Option<u32> {
        if now.saturating_sub(self.since) < self.period {
            return None;
        }
        self.since = now;
        self.written = 0;
        Some(core::mem::take(&mut self.left_out)).filter(|lines| *lines > 0)
    }

    /// Whether one more line may be written.
    pub fn allows(&mut self) -> bool {
        if self.written == MOST {
            self.left_out = self.left_out.saturating_add(1);
            return false;
        }
        self.written += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_left_out_is_told_once() {
        let mut pace = Pace::new(100);
        assert_eq!(pace.turn(5), None);
        assert_eq!((0..30).filter(|_| pace.allows()).count(), 20);
        assert_eq!(pace.turn(999), None);
        assert_eq!(pace.turn(1000), Some(10));
        assert!(pace.allows());
        assert_eq!(pace.turn(2000), None);
    }

    proptest! {
        /// No period has more lines than it may have, and each line is written or told of.
        #[test]
        fn no_period_has_more(steps in prop::collection::vec(0_u64..200, 0..400)) {
            let (mut pace, mut now, mut told) = (Pace::new(10), 0, 0);
            let (mut written, mut in_period, mut period) = (0, 0, 0);
            for step in &steps {
                now += step;
                let was = pace.since;
                told += pace.turn(now).unwrap_or(0);
                if pace.since != was {
                    prop_assert!(now - period >= 100);
                    (in_period, period) = (0, now);
                }
                if pace.allows() {
                    written += 1;
                    in_period += 1;
                }
                prop_assert!(in_period <= MOST);
            }
            let all = u32::try_from(steps.len()).unwrap();
            prop_assert_eq!(written + told + pace.left_out, all);
        }
    }
}
