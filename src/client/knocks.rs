//! How often a client may send something that has still to log in: a few messages at once, and a few each second. Pure.
//!
//! A log-in takes at most four, a monitor sends one every half second at the most. Four bytes each, as every socket has one.

use std::time::Duration;

use crate::config::limits::{KNOCKS_AT_ONCE, KNOCKS_PER_SECOND};

/// One part in so many of a second, which is the unit of the times below: a `u32` of them lasts for a year, after which nobody is held up.
const TICKS_PER_SECOND: u32 = 128;

/// What each message takes.
const COST: u32 = TICKS_PER_SECOND / KNOCKS_PER_SECOND;

/// When what was sent so far is paid for, as ticks since the listener began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Knocks(u32);

impl Knocks {
    /// Counts a message; false if it is one too many. `since` is the time since the listener began.
    pub(super) fn admit(&mut self, since: Duration) -> bool {
        let now = u32::try_from(since.as_millis() * u128::from(TICKS_PER_SECOND) / 1000).unwrap_or(u32::MAX);
        let paid = self.0.max(now).saturating_add(COST);
        let admitted = paid.saturating_sub(now) <= KNOCKS_AT_ONCE * COST;
        if admitted {
            self.0 = paid;
        }
        admitted
    }
}

const _: () = assert!(KNOCKS_PER_SECOND > 0 && COST * KNOCKS_PER_SECOND == TICKS_PER_SECOND, "no fractions");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_so_many_each_second() {
        let (mut knocks, start) = (Knocks::default(), Duration::from_secs(1_000_000));
        for _ in 0..KNOCKS_AT_ONCE {
            assert!(knocks.admit(start));
        }
        assert!(!knocks.admit(start));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| knocks.admit(later)).count(), usize::try_from(KNOCKS_PER_SECOND).unwrap());
    }

    #[test]
    fn monitors_pass_for_ever() {
        let mut knocks = Knocks::default();
        for half_second in 0..10_000 {
            assert!(knocks.admit(Duration::from_millis(500) * half_second));
        }
    }
}
