//! How many reads without a client are interrupted on one server: a few per second, as each costs it a handshake.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// Reads interrupted per second and server. Far below what a server can greet, and enough that a crowd of clients which
/// gave up does not keep it busy for minutes.
const CANCELS_PER_SECOND: u64 = 5;

/// The budget of one server.
#[derive(Debug)]
pub struct Cancels {
    since: Instant,
    /// The second since then in the upper bits, the count within it in the lowest eight.
    window: AtomicU64,
}

impl Cancels {
    /// A full budget.
    pub fn new(now: Instant) -> Self {
        Self { since: now, window: AtomicU64::new(0) }
    }

    /// Counts one more read to be interrupted within the current second; false when there were enough.
    pub fn may_cancel(&self, now: Instant) -> bool {
        let second = now.duration_since(self.since).as_secs();
        let one_more = |window: u64| {
            let count = if window >> 8 == second { window & 0xFF } else { 0 };
            (count < CANCELS_PER_SECOND).then(|| second << 8 | (count + 1))
        };
        self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_few_per_second_and_each_server_has_its_own() {
        let now = Instant::now();
        let (one, other) = (Cancels::new(now), Cancels::new(now));
        for second in 0..3 {
            let taken = (0..20).filter(|tenth| {
                let now = now + Duration::from_secs(second) + Duration::from_millis(tenth * 45);
                one.may_cancel(now)
            });
            assert_eq!(taken.count(), 5, "in second {second}");
        }
        assert!(other.may_cancel(now + Duration::from_secs(2)));
    }
}
