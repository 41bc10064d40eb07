//! Addresses from which log-ins fail one after the other: they wait longer and longer, so that nobody tries out passwords.
//! Pure.
//!
//! All users behind one address share its fate, as no password has told yet who is who. So the wait is short at first and never
//! long, and the first log-in that succeeds ends it.

use std::collections::HashMap;
// The type alone: there are no sockets in `core`.
use core::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::limits::{FAILED_LOG_IN_PAUSE, FAILED_LOG_IN_PAUSE_MAX, MAX_FAILED_LOG_IN_ADDRESSES};

/// Whoever may be one person: an address, or a network of version 6, of which everybody has many; all unix sockets are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Origin(Option<IpAddr>);

impl Origin {
    pub(super) fn of(host: Option<IpAddr>) -> Self {
        const NETWORK: u128 = u128::MAX << 64;
        Self(host.map(|host| match host {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() & NETWORK).into()),
            IpAddr::V4(_) => host,
        }))
    }
}

#[derive(Debug)]
struct Failures {
    in_a_row: u32,
    last: Instant,
    /// Nothing is looked at before that.
    paused_until: Option<Instant>,
}

/// The addresses, [`MAX_FAILED_LOG_IN_ADDRESSES`] at most.
#[derive(Debug, Default)]
pub(super) struct FailedLogIns {
    of: HashMap<Origin, Failures>,
}

impl FailedLogIns {
    /// True when log-ins from there are to be refused unseen.
    pub(super) fn is_paused(&self, origin: Origin, now: Instant) -> bool {
        self.of.get(&origin).and_then(|failures| failures.paused_until).is_some_and(|until| now < until)
    }

    /// One has failed. From the `most`th in a row on it begins a pause, twice as long as the last one. Tells how many there
    /// were.
    pub(super) fn failed(&mut self, origin: Origin, most: u32, now: Instant) -> u32 {
        if self.of.len() >= MAX_FAILED_LOG_IN_ADDRESSES && !self.of.contains_key(&origin) {
            self.make_room(now);
        }
        let failures = self.of.entry(origin).or_insert(Failures { in_a_row: 0, last: now, paused_until: None });
        if is_forgotten(failures, now) {
            failures.in_a_row = 0;
        }
        failures.in_a_row = failures.in_a_row.saturating_add(1);
        failures.last = now;
        if let Some(doublings) = failures.in_a_row.checked_sub(most) {
            let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
            let pause = FAILED_LOG_IN_PAUSE.saturating_mul(factor).min(FAILED_LOG_IN_PAUSE_MAX);
            failures.paused_until = Some(now + pause);
        }
        failures.in_a_row
    }

    /// One has succeeded.
    pub(super) fn succeeded(&mut self, origin: Origin) {
        self.of.remove(&origin);
    }

    /// Those that are over go first, else the one that failed the longest time ago.
    fn make_room(&mut self, now: Instant) {
        self.of.retain(|_, failures| !is_forgotten(failures, now));
        if self.of.len() >= MAX_FAILED_LOG_IN_ADDRESSES
            && let Some(oldest) = self.of.iter().min_by_key(|(_, failures)| failures.last).map(|(origin, _)| *origin)
        {
            self.of.remove(&oldest);
        }
    }
}

/// Long after its last pause an address begins anew.
fn is_forgotten(failures: &Failures, now: Instant) -> bool {
    const MEMORY: Duration = FAILED_LOG_IN_PAUSE_MAX.saturating_mul(4);
    now.saturating_duration_since(failures.last) >= MEMORY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(Some(text.parse().unwrap()))
    }

    #[test]
    fn pauses_begin_at_the_bound_double_and_end() {
        let (mut all, mut now, here) = (FailedLogIns::default(), Instant::now(), origin("10.0.0.1"));
        for _ in 1..10 {
            all.failed(here, 10, now);
            assert!(!all.is_paused(here, now));
        }
        let mut pause = FAILED_LOG_IN_PAUSE;
        for _ in 0..12 {
            all.failed(here, 10, now);
            assert!(all.is_paused(here, now + pause - Duration::from_millis(1)));
            assert!(!all.is_paused(here, now + pause));
            now += pause;
            pause = (2 * pause).min(FAILED_LOG_IN_PAUSE_MAX);
        }
        assert_eq!(pause, FAILED_LOG_IN_PAUSE_MAX);
        assert!(!all.is_paused(origin("10.0.0.2"), now), "others are not concerned");
        all.succeeded(here);
        assert_eq!(all.failed(here, 10, now), 1, "a success clears it");
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let (mut all, now, here) = (FailedLogIns::default(), Instant::now(), origin("10.0.0.1"));
        for _ in 0..9 {
            all.failed(here, 10, now);
        }
        assert_eq!(all.failed(here, 10, now + 4 * FAILED_LOG_IN_PAUSE_MAX), 1);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_newest() {
        let (mut all, now) = (FailedLogIns::default(), Instant::now());
        let many = u32::try_from(MAX_FAILED_LOG_IN_ADDRESSES).unwrap() + 10;
        for number in 0..many {
            all.failed(Origin::of(Some(IpAddr::V4(number.into()))), 1, now + Duration::from_millis(number.into()));
        }
        assert_eq!(all.of.len(), MAX_FAILED_LOG_IN_ADDRESSES);
        let last = now + Duration::from_millis(many.into());
        assert!(!all.is_paused(Origin::of(Some(IpAddr::V4(0.into()))), now));
        assert!(all.of.contains_key(&Origin::of(Some(IpAddr::V4((many - 1).into())))));
        all.failed(origin("::1"), 1, last + 5 * FAILED_LOG_IN_PAUSE_MAX);
        assert_eq!(all.of.len(), 1, "what is over goes first");
    }

    #[test]
    fn a_network_of_version_six_is_one_and_so_are_all_unix_sockets() {
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
        assert_eq!(Origin::of(None), Origin::of(None));
    }
}
