//! When an event was: events have the time-stamp counter, people have a clock.

use jiff::{SignedDuration, Timestamp};
use std::time::{Duration, Instant};

/// Measured at least so long, the rate is right to about a millionth.
const LEAST: Duration = Duration::from_millis(50);

/// Turns ticks of the time-stamp counter into time. Its rate is measured since it was made.
pub struct Clock {
    started: Instant,
    ticks: u64,
}

impl Clock {
    /// Starts to measure.
    pub fn start() -> Self {
        Self { started: Instant::now(), ticks: hypercall::ticks() }
    }

    /// When the counter had the value `ticks`; waits until the rate is known well enough.
    pub fn at(&self, ticks: u64) -> Timestamp {
        std::thread::sleep(LEAST.saturating_sub(self.started.elapsed()));
        let (elapsed, now, counted) =
            (self.started.elapsed(), Timestamp::now(), hypercall::ticks());
        before(now, elapsed, counted.wrapping_sub(self.ticks), counted.wrapping_sub(ticks))
    }
}

/// The time `ago` ticks before `now`, where `ticks` take as long as `elapsed`. What makes no sense
/// (the counter stood still, or was set by the guest) is `now`.
fn before(now: Timestamp, elapsed: Duration, ticks: u64, ago: u64) -> Timestamp {
    // An event of another CPU, whose counter is a little ahead.
    let ahead = ago.cast_signed() < 0;
    let nanoseconds =
        u128::from(ago).checked_mul(elapsed.as_nanos()).and_then(|n| n.checked_div(ticks.into()));
    let nanoseconds = nanoseconds.and_then(|n| i64::try_from(n).ok()).filter(|_| !ahead);
    let ago = SignedDuration::from_nanos(nanoseconds.unwrap_or(0));
    now.checked_sub(ago).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time() {
        let now: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
        let second = Duration::from_secs(1);
        let at = |ticks, ago| before(now, second, ticks, ago).to_string();
        assert_eq!(at(3_000_000_000, 3_000_000_000 * 3600), "2026-11-25T11:00:00Z");
        assert_eq!(at(1000, 500), "2026-11-25T11:59:59.5Z");
        for (ticks, ago) in [(0, 5), (1000, 5_u64.wrapping_neg()), (1, u64::MAX / 2)] {
            assert_eq!(at(ticks, ago), now.to_string());
        }
    }

    #[test]
    fn the_present_is_now() {
        let clock = Clock::start();
        let at = clock.at(hypercall::ticks());
        let distance = Timestamp::now().duration_since(at).abs();
        assert!(distance < SignedDuration::from_secs(5), "{distance:?}");
    }
}
