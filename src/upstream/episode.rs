//! The times without a primary in which secondaries answered reads in its place, so that each is told of once.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the reads of the time without a primary that goes on.
#[derive(Debug, Default)]
pub struct Episode {
    reads: AtomicU64,
}

impl Episode {
    /// Counts one read; true when it is the first one.
    pub fn begins(&self) -> bool {
        self.reads.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// How many reads there were, once, when the episode is over; `None` while there is none.
    pub fn ends(&self) -> Option<u64> {
        // A look before the write: almost always there is none.
        if self.reads.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.reads.swap(0, Ordering::Relaxed)).filter(|reads| *reads > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_begins_once_and_ends_once() {
        let episode = Episode::default();
        assert_eq!(episode.ends(), None);
        for _ in 0..2 {
            assert!(episode.begins());
            assert!(!episode.begins() && !episode.begins());
            assert_eq!((episode.ends(), episode.ends()), (Some(3), None));
        }
    }
}
