//! The first moments of a new primary: it takes writes at once, and acknowledges those by majority only when the other
//! members follow it, up to a second later.
//!
//! Until then such writes would hold every connection of its pool, and reads that could be answered at once would wait behind
//! them. So writes by majority get half of the pool, until one of them has been acknowledged.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, TryAcquireError};

use super::long_polls::Place;
use super::pool::lock;
use crate::admission::shares::half_of;

/// The share of writes by majority in the pool of one server.
#[derive(Debug)]
pub struct Settling {
    in_progress: AtomicBool,
    /// Closed while the server is settled.
    free: Mutex<Arc<Semaphore>>,
    places: AtomicUsize,
}

/// Whether a write may go on.
#[derive(Debug)]
pub enum Turn {
    /// In this place.
    Place(Place),
    /// All places are taken.
    Wait,
    /// The server is settled: nobody needs a place.
    Settled,
}

impl Settling {
    /// Half of `max_in_flight`, and one at least. Settled until [`Settling::begin`].
    pub fn new(max_in_flight: u32) -> Self {
        let free = Semaphore::new(0);
        free.close();
        let settling =
            Self { in_progress: AtomicBool::new(false), free: Mutex::new(Arc::new(free)), places: AtomicUsize::new(0) };
        settling.resize(max_in_flight);
        settling
    }

    /// Half of another number, from the next [`Settling::begin`] on.
    pub fn resize(&self, max_in_flight: u32) {
        let places = usize::try_from(half_of(max_in_flight)).unwrap_or(Semaphore::MAX_PERMITS);
        self.places.store(places, Ordering::Relaxed);
    }

    /// False almost always, which costs one load to know.
    pub fn in_progress(&self) -> bool {
        self.in_progress.load(Ordering::Relaxed)
    }

    /// The server has become the primary.
    pub fn begin(&self) {
        let mut free = lock(&self.free);
        if free.is_closed() {
            *free = Arc::new(Semaphore::new(self.places.load(Ordering::Relaxed)));
            self.in_progress.store(true, Ordering::Relaxed);
        }
    }

    /// A write by majority was acknowledged, or the server is no primary any more: whoever waits goes on.
    pub fn end(&self) {
        let free = lock(&self.free);
        self.in_progress.store(false, Ordering::Relaxed);
        free.close();
    }

    /// A place, if one is free and nobody was first.
    pub fn try_enter(&self) -> Turn {
        let free = lock(&self.free).clone();
        match free.try_acquire_owned() {
            Ok(permit) => Turn::Place(Place(permit)),
            Err(TryAcquireError::NoPermits) => Turn::Wait,
            Err(TryAcquireError::Closed) => Turn::Settled,
        }
    }

    /// Waits for a place, first come, first served; `None` when the server has settled.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped leaves the line.
    pub async fn enter(&self) -> Option<Place> {
        let free = lock(&self.free).clone();
        free.acquire_owned().await.ok().map(Place)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn writes_get_half_until_the_server_has_settled() {
        let settling = Settling::new(5);
        assert!(!settling.in_progress() && matches!(settling.try_enter(), Turn::Settled));
        assert!(matches!(settling.enter().now_or_never(), Some(None)));
        for _ in 0..2 {
            settling.begin();
            assert!(settling.in_progress());
            let taken: Vec<Turn> = (0..3).map(|_| settling.try_enter()).collect();
            assert!(matches!(taken[..], [Turn::Place(_), Turn::Place(_), Turn::Wait]), "{taken:?}");
            // No news, and no further places.
            settling.begin();
            let (mut first, mut second) = (Box::pin(settling.enter()), Box::pin(settling.enter()));
            assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
            drop(taken);
            assert!(matches!((&mut first).now_or_never(), Some(Some(_))));
            let _taken = (settling.try_enter(), settling.try_enter());
            let mut third = Box::pin(settling.enter());
            assert!((&mut third).now_or_never().is_none());
            settling.end();
            assert!(matches!((&mut third).now_or_never(), Some(None)), "whoever waits goes on");
            assert!(!settling.in_progress() && matches!(settling.try_enter(), Turn::Settled));
        }
        assert_eq!(Settling::new(1).places.into_inner(), 1, "one at least");
    }
}
