//! How often a client may send something that has still to log in: a few messages at once, and a few each second. Pure.
//!
//! A log-in takes at most four, a monitor sends one every half second at the most. Four bytes each, as every socket has one.

use std::time::Duration;

use crate::config::limits::{KNOCKS_AT_ONCE, KNOCKS_PER_SECOND};

/// One part in so many of a second, which is the unit of the times below. A `u32` of them begins anew after a year, as all that
/// is asked is how far two of them are apart.
const TICKS_PER_SECOND: u32 = 128;

/// What each message takes.
const COST: u32 = TICKS_PER_SECOND / KNOCKS_PER_SECOND;

/// What may be owed.
const MOST_OWED: u32 = KNOCKS_AT_ONCE * COST;

/// When what was sent so far is paid for, as ticks since the listener began; zero before the first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Knocks(u32);

impl Knocks {
    /// Counts a message; false if it is one too many. `since` is the time since the listener began.
    pub(super) fn admit(&mut self, since: Duration) -> bool {
        let ticks = since.as_millis() * u128::from(TICKS_PER_SECOND) / 1000;
        let now = u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or_default();
        // More than can be owed is what was paid for long ago.
        let owed = Some(self.0.wrapping_sub(now)).filter(|owed| self.0 != 0 && *owed <= MOST_OWED).unwrap_or_default();
        let admitted = owed + COST <= MOST_OWED;
        if admitted {
            let paid = now.wrapping_add(owed + COST);
            // Zero means another thing, and a tick less is nobody's loss.
            self.0 = if paid == 0 { u32::MAX } else { paid };
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
        const YEAR: u64 = 365 * 24 * 3600;
        // The last one is just before ticks begin anew.
        for start in [0, 1_000_000, 2 * YEAR, u64::from(u32::MAX / TICKS_PER_SECOND)] {
            let (mut knocks, start) = (Knocks::default(), Duration::from_secs(start));
            for _ in 0..KNOCKS_AT_ONCE {
                assert!(knocks.admit(start), "{start:?}");
            }
            assert!(!knocks.admit(start), "{start:?}");
            let later = start + Duration::from_secs(1);
            assert_eq!((0..100).filter(|_| knocks.admit(later)).count(), usize::try_from(KNOCKS_PER_SECOND).unwrap());
        }
    }

    #[test]
    fn monitors_pass_for_ever() {
        let mut knocks = Knocks::default();
        for half_second in 0..10_000 {
            assert!(knocks.admit(Duration::from_millis(500) * half_second));
        }
    }
}
