//! How many idle clients may go to the next process now.
//!
//! Clients are told by being woken: whoever is idle then takes a leave, and goes. Who has something to do goes on with it and is
//! asked again later. Nothing is added to the path of a command but one look at a flag when a client becomes idle.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Leaves that nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    /// Clients are to go at all.
    going: AtomicBool,
    count: AtomicUsize,
    /// Also those go that have only just become idle.
    hurry: AtomicBool,
}

impl Leaves {
    /// Gives so many. Those that nobody took before are void.
    pub(super) fn give(&self, count: usize, hurry: bool) {
        self.count.store(count, Ordering::Relaxed);
        self.hurry.store(hurry, Ordering::Relaxed);
        self.going.store(true, Ordering::Release);
    }

    /// A client has nothing to do, for a while already if it was `idle` before: true when it goes.
    pub(super) fn take(&self, idle: bool) -> bool {
        if !self.going.load(Ordering::Acquire) || !idle && !self.hurry.load(Ordering::Relaxed) {
            return false;
        }
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_go_than_may_and_who_is_busy_goes_last() {
        let leaves = Leaves::default();
        assert!(!leaves.take(true), "nobody has to go");
        leaves.give(2, false);
        assert_eq!([false, true, true, true].map(|idle| leaves.take(idle)), [false, true, true, false]);
        leaves.give(3, false);
        leaves.give(1, true);
        assert!(leaves.take(false) && !leaves.take(true));
    }
}
