//! How many commands that wait for data may hold connections of one server, and for how long at a time.
//!
//! The `getMore` of a change stream or of a tailable cursor keeps its connection until there is data or its time is over.
//! A handful of them would keep everybody else out of a small pool. So they get half of it; and as one has to come round
//! while others wait, it asks for a slice of its time only and gets in line again. To the client that looks like one wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A slice where nobody else wants the place: what a server waits by default. Also how long the connection of a client
/// that has left can be held.
const LONGEST_SLICE: Duration = Duration::from_secs(1);

/// A slice in a pool of one connection, which everybody else needs, too.
const ONLY_CONNECTION_SLICE: Duration = Duration::from_millis(100);

/// Below this a slice is all overhead.
const SHORTEST_SLICE: Duration = Duration::from_millis(10);

/// The places of one server.
#[derive(Debug)]
pub struct LongPolls {
    free: Arc<Semaphore>,
    places: u32,
    longest_slice: Duration,
    waiting: AtomicUsize,
}

/// The right to wait on the server, in a share of its pool. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "frees the place when it is dropped")] pub(super) OwnedSemaphorePermit);

impl LongPolls {
    /// Half of `max_in_flight`, and one at least.
    pub fn new(max_in_flight: u32) -> Self {
        let places = half_of(max_in_flight);
        let longest_slice = if max_in_flight > places { LONGEST_SLICE } else { ONLY_CONNECTION_SLICE };
        let free = Arc::new(Semaphore::new(usize::try_from(places).unwrap_or(Semaphore::MAX_PERMITS)));
        Self { free, places, longest_slice, waiting: AtomicUsize::new(0) }
    }

    /// A place, if one is free and nobody was first.
    pub fn try_enter(&self) -> Option<Place> {
        self.free.clone().try_acquire_owned().ok().map(Place)
    }

    /// Waits for a place, first come, first served.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped leaves the line.
    pub async fn enter(&self) -> Place {
        let _counted = Waiting::new(&self.waiting);
        Place(self.free.clone().acquire_owned().await.expect("the semaphore is never closed"))
    }

    /// How long one may wait on the server now, so that each of those in line comes round about once a second.
    pub fn slice(&self) -> Duration {
        let waiting = u32::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let share = self.longest_slice * self.places / self.places.saturating_add(waiting);
        share.clamp(SHORTEST_SLICE, self.longest_slice)
    }
}

/// The share of a pool for commands that their server makes wait: one at least, as they have to come round.
pub(super) fn half_of(max_in_flight: u32) -> u32 {
    (max_in_flight / 2).max(1)
}

/// Counts one in line.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn half_of_the_pool_and_one_at_least() {
        for (max_in_flight, places) in [(1, 1), (2, 1), (3, 1), (10, 5), (201, 100)] {
            let polls = LongPolls::new(max_in_flight);
            let taken: Vec<_> = std::iter::from_fn(|| polls.try_enter()).collect();
            assert_eq!(taken.len(), places, "of {max_in_flight}");
            drop(taken);
            assert!(polls.try_enter().is_some());
        }
    }

    #[test]
    fn slices_get_shorter_with_the_line_and_longer_again() {
        let polls = LongPolls::new(4);
        assert_eq!(polls.slice(), LONGEST_SLICE);
        assert_eq!(LongPolls::new(1).slice(), ONLY_CONNECTION_SLICE);
        let held = (polls.try_enter(), polls.try_enter());
        let mut line: Vec<_> = (0..500).map(|_| Box::pin(polls.enter())).collect();
        for (in_line, (waiter, slice)) in line.iter_mut().zip([667, 500, 400]).enumerate() {
            assert!(waiter.as_mut().now_or_never().is_none());
            assert_eq!(polls.slice().as_millis().abs_diff(slice), u128::from(in_line == 0), "{in_line}");
        }
        line.iter_mut().for_each(|waiter| assert!(waiter.as_mut().now_or_never().is_none()));
        assert_eq!(polls.slice(), SHORTEST_SLICE);
        drop(held);
        assert!(polls.try_enter().is_none(), "those in line were first");
        assert!(line[0].as_mut().now_or_never().is_some());
        drop(line);
        assert_eq!(polls.slice(), LONGEST_SLICE);
    }
}
