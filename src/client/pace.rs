//! Whether a client goes on in the middle of a message, or stands still. Pure: times are arguments.
//!
//! A byte now and then is no progress: a client that drips would hold the memory for its message as long as it likes.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::limits::LEAST_BYTES_PER_SECOND;

/// How a message moves. In each period of `client_stall_timeout_ms` enough of it has to, or all that is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    period: Duration,
    /// When the period began that has not seen enough yet.
    since: Instant,
    moved: usize,
}

impl Pace {
    pub(super) fn new(period: Duration, now: Instant) -> Self {
        Self { period, since: now, moved: 0 }
    }

    /// Notes that `bytes` have moved; with enough of them the next period begins.
    pub(super) fn moved(&mut self, bytes: usize, now: Instant) {
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= least(self.period) {
            (self.since, self.moved) = (now, 0);
        }
    }

    /// When the client stands still, if nothing moves until then.
    pub(super) fn deadline(&self) -> Instant {
        self.since + self.period
    }
}

/// What has to move in one period, bytes.
fn least(period: Duration) -> usize {
    let bytes = period.as_millis().saturating_mul(LEAST_BYTES_PER_SECOND.into()) / 1000;
    usize::try_from(bytes).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    /// How long a client goes on that moves `bytes` every `pause`; `None` is for ever.
    fn lasts(bytes: usize, pause: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut pace = Pace::new(PERIOD, start);
        let mut now = start;
        for _ in 0..10_000 {
            if now + pause > pace.deadline() {
                return Some(pace.deadline() - start);
            }
            now += pause;
            pace.moved(bytes, now);
        }
        None
    }

    #[test]
    fn a_drip_ends_with_the_first_period_and_a_slow_client_goes_on() {
        assert_eq!(lasts(0, Duration::from_secs(1)), Some(PERIOD));
        assert_eq!(lasts(1, Duration::from_secs(29)), Some(PERIOD));
        assert_eq!(lasts(1, Duration::from_millis(10)), Some(PERIOD));
        assert_eq!(lasts(2_000, Duration::from_secs(1)), Some(PERIOD), "just too little");
        assert_eq!(lasts(2_200, Duration::from_secs(1)), None);
        // The system hands on in lumps: twice the least is enough, however they fall.
        for seconds in 1..=15 {
            assert_eq!(lasts(seconds * 4_096, Duration::from_secs(seconds as u64)), None, "every {seconds} s");
        }
    }

    #[test]
    fn a_pause_is_counted_from_the_last_progress() {
        let start = Instant::now();
        let mut pace = Pace::new(PERIOD, start);
        pace.moved(least(PERIOD) - 1, start + PERIOD / 2);
        assert_eq!(pace.deadline(), start + PERIOD);
        pace.moved(1, start + PERIOD / 2);
        assert_eq!(pace.deadline(), start + PERIOD + PERIOD / 2);
        assert_eq!(least(Duration::from_nanos(1)), 1, "something has to move, however short the period");
    }
}
