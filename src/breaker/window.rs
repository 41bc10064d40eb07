//! Successes and totals of the recent past, in a ring of time buckets: constant memory, constant time.
//!
//! The window slides by whole buckets, so it covers between nine and ten tenths of its length.

use std::time::Duration;

use tokio::time::Instant;

/// Ten buckets make the window slide in steps of a tenth: fine enough for a rate, cheap enough for every command.
const BUCKETS: usize = 10;

/// Outcomes of some stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// How many went well; never more than `total`.
    pub successes: u64,
    /// How many there were.
    pub total: u64,
}

/// A sliding window of outcomes.
#[derive(Debug, Clone)]
pub struct Window {
    /// How much time one bucket covers; never zero.
    width: Duration,
    buckets: [Counts; BUCKETS],
    /// The bucket of now; the one after it is the oldest.
    newest: usize,
    /// When the newest bucket began; `None` while nothing has been counted.
    began: Option<Instant>,
    /// Always the sum of `buckets`.
    sum: Counts,
}

impl Window {
    /// An empty window over the last `length`.
    pub fn new(length: Duration) -> Self {
        let width = (length / 10).max(Duration::from_nanos(1));
        Self { width, buckets: [Counts::default(); BUCKETS], newest: 0, began: None, sum: Counts::default() }
    }

    /// Counts one outcome. A `now` before the newest bucket falls into the newest bucket.
    pub fn record(&mut self, success: bool, now: Instant) {
        self.slide(now);
        for counts in [&mut self.buckets[self.newest], &mut self.sum] {
            counts.successes += u64::from(success);
            counts.total += 1;
        }
    }

    /// What the window holds at `now`.
    pub fn counts(&mut self, now: Instant) -> Counts {
        self.slide(now);
        self.sum
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets = [Counts::default(); BUCKETS];
        self.sum = Counts::default();
        self.began = None;
    }

    /// Drops the buckets that `now` has left behind: at most all of them, however long the silence was.
    fn slide(&mut self, now: Instant) {
        let mut began = *self.began.get_or_insert(now);
        if now < began + self.width {
            return;
        }
        let mut dropped = 0;
        while now.saturating_duration_since(began) >= self.width {
            if dropped == BUCKETS {
                // Nothing is left whose place in time would matter.
                began = now;
                break;
            }
            began += self.width;
            self.newest = (self.newest + 1) % BUCKETS;
            let oldest = std::mem::take(&mut self.buckets[self.newest]);
            self.sum.successes -= oldest.successes;
            self.sum.total -= oldest.total;
            dropped += 1;
        }
        self.began = Some(began);
    }

    /// Panics where what must hold does not. For tests, those of others included.
    pub fn check_invariants(&self) {
        let mut sum = Counts::default();
        for bucket in &self.buckets {
            assert!(bucket.successes <= bucket.total);
            sum.successes += bucket.successes;
            sum.total += bucket.total;
        }
        assert_eq!(sum, self.sum);
        assert!(self.began.is_some() || self.sum.total == 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(successes: u64, total: u64) -> Counts {
        Counts { successes, total }
    }

    #[test]
    fn outcomes_leave_with_their_bucket() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut window = Window::new(Duration::from_secs(10));
        assert_eq!(window.counts(at(0)), counts(0, 0));
        window.record(true, at(0));
        window.record(false, at(999));
        window.record(true, at(1000));
        assert_eq!(window.counts(at(9999)), counts(2, 3));
        assert_eq!(window.counts(at(10_000)), counts(1, 1));
        assert_eq!(window.counts(at(11_000)), counts(0, 0));
    }

    #[test]
    fn silence_of_any_length_empties_it() {
        let start = Instant::now();
        for silence in [Duration::from_secs(10), Duration::from_secs(11), Duration::from_secs(86_400 * 3650)] {
            let mut window = Window::new(Duration::from_secs(10));
            window.record(false, start);
            assert_eq!(window.counts(start + silence), counts(0, 0), "{silence:?}");
            window.record(true, start + silence);
            assert_eq!(window.counts(start + silence + Duration::from_millis(8999)), counts(1, 1));
        }
    }

    #[test]
    fn time_that_runs_backwards_is_now() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut window = Window::new(Duration::from_secs(10));
        window.record(true, start);
        window.record(false, start - Duration::from_secs(50));
        assert_eq!(window.counts(start - Duration::from_secs(50)), counts(1, 2));
    }

    #[test]
    fn a_window_of_no_length_is_harmless() {
        let start = Instant::now();
        let mut window = Window::new(Duration::ZERO);
        window.record(true, start);
        assert_eq!(window.counts(start), counts(1, 1));
        assert_eq!(window.counts(start + Duration::from_secs(1)), counts(0, 0));
    }

    proptest! {
        /// Against the list of all outcomes: what is younger than nine tenths is in, what is older than the window is out.
        #[test]
        fn covers_between_nine_and_ten_tenths(steps in prop::collection::vec((0u64..3000, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let mut window = Window::new(Duration::from_secs(10));
            let mut outcomes = Vec::new();
            let mut now = 0;
            for (wait, success) in steps {
                now += wait;
                window.record(success, start + Duration::from_millis(now));
                window.check_invariants();
                outcomes.push((now, success));
                let seen = window.counts(start + Duration::from_millis(now));
                let since = |age: u64| {
                    let young = || outcomes.iter().filter(|(at, _)| now - at < age);
                    counts(young().filter(|(_, success)| *success).count() as u64, young().count() as u64)
                };
                let (at_least, at_most) = (since(9000), since(10_000));
                prop_assert!(at_least.total <= seen.total && seen.total <= at_most.total);
                prop_assert!(at_least.successes <= seen.successes && seen.successes <= at_most.successes);
            }
        }
    }
}
