//! Addresses from which log-ins fail one after the other: they wait longer and longer, so that nobody tries out passwords.
//!
//! All users behind one address share its fate, as no password has told yet who is who. So the wait is short at first and never
//! long, and a log-in that succeeds ends it, if only log-ins of the same user had failed: nobody buys tries at the password of
//! others with an account of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
// The type alone: there are no sockets in `core`.
use core::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::auth::UserName;
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

#[derive(Debug, Clone, Copy)]
struct Failures {
    in_a_row: u32,
    last: Instant,
    /// The hash of the user that all of them were of; `None` where there were several, or nobody could tell.
    user: Option<u64>,
    /// Nothing is looked at before that.
    paused_until: Option<Instant>,
}

/// The addresses, [`MAX_FAILED_LOG_IN_ADDRESSES`] at most.
#[derive(Debug, Default)]
pub(super) struct FailedLogIns {
    of: HashMap<Origin, Failures>,
    users: RandomState,
}

impl FailedLogIns {
    /// True when log-ins from there are to be refused unseen.
    pub(super) fn is_paused(&self, origin: Origin, now: Instant) -> bool {
        self.of.get(&origin).and_then(|failures| failures.paused_until).is_some_and(|until| now < until)
    }

    /// One of `user` has failed. From the `most`th in a row on it begins a pause, twice as long as the last one. Tells how many
    /// there were.
    pub(super) fn failed(&mut self, origin: Origin, user: Option<&UserName>, most: u32, now: Instant) -> u32 {
        if self.of.len() >= MAX_FAILED_LOG_IN_ADDRESSES && !self.of.contains_key(&origin) {
            self.make_room(now);
        }
        let user = user.map(|user| self.users.hash_one(user));
        let first = Failures { in_a_row: 0, last: now, user, paused_until: None };
        let failures = self.of.entry(origin).or_insert(first);
        if is_forgotten(failures, now) {
            *failures = first;
        }
        failures.user = failures.user.filter(|same| Some(*same) == user);
        failures.in_a_row = failures.in_a_row.saturating_add(1);
        failures.last = now;
        if let Some(doublings) = failures.in_a_row.checked_sub(most) {
            let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
            let pause = FAILED_LOG_IN_PAUSE.saturating_mul(factor).min(FAILED_LOG_IN_PAUSE_MAX);
            failures.paused_until = Some(now + pause);
        }
        failures.in_a_row
    }

    /// One of `user` has succeeded, which makes good what failed of the same user.
    pub(super) fn succeeded(&mut self, origin: Origin, user: &UserName) {
        let user = self.users.hash_one(user);
        if self.of.get(&origin).is_some_and(|failures| failures.user == Some(user)) {
            self.of.remove(&origin);
        }
    }

    /// Those that are over go, and of the others the tenth that failed the longest time ago: so that a storm of new addresses
    /// does not look at all of them for each.
    fn make_room(&mut self, now: Instant) {
        let mut last: Vec<Instant> = self.of.values().map(|failures| failures.last).collect();
        let tenth = last.len() / 10;
        if tenth >= last.len() {
            return;
        }
        let (_, oldest_kept, _) = last.select_nth_unstable(tenth);
        let oldest_kept = *oldest_kept;
        self.of.retain(|_, failures| failures.last >= oldest_kept && !is_forgotten(failures, now));
        // Where all failed at once none is older than the others.
        if self.of.len() >= MAX_FAILED_LOG_IN_ADDRESSES {
            let mut kept = 0;
            self.of.retain(|_, _| {
                kept += 1;
                kept > tenth
            });
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

    fn user(name: &str) -> UserName {
        UserName { database: "admin".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_success_makes_good_only_what_failed_of_the_same_user() {
        let (now, here) = (Instant::now(), origin("10.0.0.1"));
        let in_a_row = |failed: &[Option<&str>], succeeds: &str| {
            let mut all = FailedLogIns::default();
            for name in failed {
                all.failed(here, name.map(user).as_ref(), 10, now);
            }
            all.succeeded(here, &user(succeeds));
            all.failed(here, Some(&user("x")), 10, now)
        };
        assert_eq!(in_a_row(&[Some("a"), Some("a")], "a"), 1);
        assert_eq!(in_a_row(&[Some("victim"), Some("victim")], "a"), 3);
        assert_eq!(in_a_row(&[Some("a"), Some("victim")], "a"), 3);
        assert_eq!(in_a_row(&[Some("victim"), Some("a")], "a"), 3);
        assert_eq!(in_a_row(&[Some("a"), None, Some("a")], "a"), 4);
        let mut all = FailedLogIns::default();
        all.failed(here, Some(&user("long ago")), 10, now);
        let later = now + 4 * FAILED_LOG_IN_PAUSE_MAX;
        all.failed(here, Some(&user("a")), 10, later);
        all.succeeded(here, &user("a"));
        assert_eq!(all.failed(here, Some(&user("a")), 10, later), 1);
    }

    #[test]
    fn pauses_begin_at_the_bound_double_and_end() {
        let (mut all, mut now, here) = (FailedLogIns::default(), Instant::now(), origin("10.0.0.1"));
        for _ in 1..10 {
            all.failed(here, Some(&user("a")), 10, now);
            assert!(!all.is_paused(here, now));
        }
        let mut pause = FAILED_LOG_IN_PAUSE;
        for _ in 0..12 {
            all.failed(here, Some(&user("a")), 10, now);
            assert!(all.is_paused(here, now + pause - Duration::from_millis(1)));
            assert!(!all.is_paused(here, now + pause));
            now += pause;
            pause = (2 * pause).min(FAILED_LOG_IN_PAUSE_MAX);
        }
        assert_eq!(pause, FAILED_LOG_IN_PAUSE_MAX);
        assert!(!all.is_paused(origin("10.0.0.2"), now), "others are not concerned");
        all.succeeded(here, &user("a"));
        assert_eq!(all.failed(here, Some(&user("a")), 10, now), 1, "a success clears it");
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let (mut all, now, here) = (FailedLogIns::default(), Instant::now(), origin("10.0.0.1"));
        for _ in 0..9 {
            all.failed(here, Some(&user("a")), 10, now);
        }
        assert_eq!(all.failed(here, Some(&user("a")), 10, now + 4 * FAILED_LOG_IN_PAUSE_MAX), 1);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_newest() {
        let (mut all, now) = (FailedLogIns::default(), Instant::now());
        let many = u32::try_from(MAX_FAILED_LOG_IN_ADDRESSES).unwrap() + 10;
        for number in 0..many {
            all.failed(
                Origin::of(Some(IpAddr::V4(number.into()))),
                None,
                1,
                now + Duration::from_millis(number.into()),
            );
        }
        assert_eq!(all.of.len(), MAX_FAILED_LOG_IN_ADDRESSES * 9 / 10 + 10, "room is made for many at once");
        let last = now + Duration::from_millis(many.into());
        assert!(!all.is_paused(Origin::of(Some(IpAddr::V4(0.into()))), now));
        assert!(all.of.contains_key(&Origin::of(Some(IpAddr::V4((many - 1).into())))));
        let fill = |all: &mut FailedLogIns, now| {
            for number in 0..many {
                all.failed(Origin::of(Some(IpAddr::V4((many + number).into()))), None, 1, now);
            }
        };
        fill(&mut all, last);
        assert!(all.of.len() <= MAX_FAILED_LOG_IN_ADDRESSES, "although all failed at once");
        fill(&mut all, last);
        while all.of.len() < MAX_FAILED_LOG_IN_ADDRESSES {
            let number = u32::try_from(all.of.len()).unwrap();
            all.failed(Origin::of(Some(IpAddr::V4((4 * many + number).into()))), None, 1, last);
        }
        all.failed(origin("::1"), None, 1, last + 5 * FAILED_LOG_IN_PAUSE_MAX);
        assert_eq!(all.of.len(), 1, "what is over goes");
    }

    #[test]
    fn a_network_of_version_six_is_one_and_so_are_all_unix_sockets() {
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
        assert_eq!(Origin::of(None), Origin::of(None));
    }
}
