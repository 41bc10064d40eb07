//! How long to wait before the next attempt to connect: exponential back-off with full jitter.
//!
//! Waiting is the caller's. The bound doubles with each failure, the wait is a random part of it, so that many proxies
//! that lost the same server do not return in step.

use std::time::Duration;

use crate::config::BackoffConfig;

/// The back-off of one server.
#[derive(Debug, Clone)]
pub struct Backoff {
    config: BackoffConfig,
    /// Upper bound of the next wait; `config.initial` to `config.max`.
    bound: Duration,
}

impl Backoff {
    /// Nothing has failed yet.
    pub fn new(config: BackoffConfig) -> Self {
        Self { config, bound: config.initial.min(config.max) }
    }

    /// Goes on within other bounds.
    pub fn reconfigure(&mut self, config: BackoffConfig) {
        self.config = config;
        self.bound = self.bound.min(config.max);
    }

    /// An attempt failed: how long to wait before the next one. `random` is drawn evenly from 0 to 1.
    pub fn next(&mut self, random: f64) -> Duration {
        // `max` turns a NaN, on which `mul_f64` would panic, into 0.
        let wait = self.bound.mul_f64(random.clamp(0.0, 1.0).max(0.0));
        self.bound = self.bound.saturating_mul(2).min(self.config.max);
        wait
    }

    /// The server answered (an attempt succeeded, or a heartbeat): start over.
    pub fn reset(&mut self) {
        self.bound = self.config.initial.min(self.config.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(backoff: &mut Backoff, random: f64) -> u128 {
        backoff.next(random).as_millis()
    }

    fn default() -> Backoff {
        Backoff::new(BackoffConfig { initial: Duration::from_millis(100), max: Duration::from_secs(30) })
    }

    #[test]
    fn doubles_up_to_the_maximum_and_starts_over() {
        let mut backoff = default();
        let waits: Vec<u128> = (0..11).map(|_| millis(&mut backoff, 1.0)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(millis(&mut backoff, 1.0), 100);
    }

    #[test]
    fn jitter_is_full() {
        let mut backoff = default();
        assert_eq!(millis(&mut backoff, 0.0), 0);
        assert_eq!(millis(&mut backoff, 0.5), 100);
        assert_eq!(millis(&mut backoff, 0.25), 100);
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let mut backoff = default();
        assert_eq!(millis(&mut backoff, f64::NAN), 0);
        assert_eq!(millis(&mut backoff, -1.0), 0);
        assert_eq!(millis(&mut backoff, f64::INFINITY), 400);
        let mut endless = Backoff::new(BackoffConfig { initial: Duration::from_secs(1), max: Duration::MAX });
        for _ in 0..200 {
            endless.next(0.5);
        }
        let mut inverted = Backoff::new(BackoffConfig { initial: Duration::from_secs(9), max: Duration::from_secs(1) });
        assert_eq!(millis(&mut inverted, 1.0), 1000);
        inverted.reset();
        assert_eq!(millis(&mut inverted, 1.0), 1000);
    }
}
