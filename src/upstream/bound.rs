//! `max_upstream_connections`: the bound over all servers of a cluster, and the line for a place of it.
//!
//! Who is in line gets the next place that is given back. For that, other pools give up idle connections; where there are
//! none, a pool without any connection, or where a transaction waits, gets that of the next command to end elsewhere, so that no
//! server is left out and no transaction stuck.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::tasks::Tasks;

/// The most that a semaphore takes on any platform.
const UNLIMITED: u32 = u32::MAX >> 3;

/// Room for what is open beyond a lowered limit is asked for this often.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Places for connections to all servers of a cluster.
#[derive(Debug)]
pub struct ClusterBound {
    places: Arc<Semaphore>,
    limit: AtomicU32,
    /// Places that are taken.
    open: AtomicU32,
    /// Told when somebody is in line: idle connections elsewhere should make room.
    starved: Notify,
    /// A pool in need is in line: the next connection to be checked in elsewhere makes room.
    owed: AtomicBool,
}

impl ClusterBound {
    /// Allows `limit` connections; `None` leaves it to the pools.
    pub fn new(limit: Option<u32>) -> Arc<Self> {
        let limit = limit.unwrap_or(UNLIMITED).min(UNLIMITED);
        Arc::new(Self {
            places: Arc::new(Semaphore::new(limit as usize)),
            limit: AtomicU32::new(limit),
            open: AtomicU32::new(0),
            starved: Notify::new(),
            owed: AtomicBool::new(false),
        })
    }

    /// Allows another number from now on. Where more are open, idle ones make room, and those in use when they come back.
    pub fn set_limit(self: &Arc<Self>, limit: Option<u32>, tasks: &Tasks) {
        let limit = limit.unwrap_or(UNLIMITED).min(UNLIMITED);
        let before = self.limit.swap(limit, Ordering::Relaxed);
        let more = limit.saturating_sub(before);
        // First those that were to go, and shall not any more: whoever takes them back waits for that number.
        self.places.add_permits(more as usize);
        let less = before.saturating_sub(limit);
        let taken = less - u32::try_from(self.places.forget_permits(less as usize)).unwrap_or(less);
        if taken == 0 {
            return;
        }
        let (bound, ends) = (self.clone(), tasks.clone());
        tasks.spawn("make room", async move {
            let mut places = pin!(bound.places.acquire_many(taken));
            loop {
                bound.starved.notify_waiters();
                bound.owed.store(true, Ordering::Relaxed);
                // Nothing is lost when an arm loses: it stays in line.
                tokio::select! {
                    places = &mut places => {
                        places.into_iter().for_each(SemaphorePermit::forget);
                        break;
                    }
                    () = tokio::time::sleep(ASK_AGAIN) => {}
                    () = ends.cancelled() => break,
                }
            }
            bound.owed.store(false, Ordering::Relaxed);
        });
    }

    /// Connections of all servers that are open, being opened or being closed.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// False where there is no bound.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Relaxed) < UNLIMITED
    }

    /// True while there is no free place.
    pub(super) fn is_exhausted(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// Takes a place if there is one and nobody is in line.
    pub(super) fn acquire(&self) -> bool {
        let acquired = self.places.try_acquire().map(SemaphorePermit::forget).is_ok();
        if acquired {
            self.open.fetch_add(1, Ordering::Relaxed);
        }
        acquired
    }

    /// Takes the place that was waited for in line.
    pub(super) fn take(&self, place: OwnedSemaphorePermit) {
        place.forget();
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives a place back, to whoever is first in line.
    pub(super) fn release(&self) {
        let open = self.open.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(open > 0, "released what was acquired");
        self.places.add_permits(1);
    }

    /// Resolves when somebody asks for room.
    pub(super) fn starved(&self) -> Notified<'_> {
        self.starved.notified()
    }

    /// True when a connection that comes back should make room. Costs one load.
    pub(super) fn owes_place(&self) -> bool {
        self.owed.load(Ordering::Relaxed)
    }

    /// As [`ClusterBound::owes_place`], for one caller only.
    pub(super) fn give_place(&self) -> bool {
        self.owed.swap(false, Ordering::Relaxed)
    }
}

/// Where one pool stands in line for a place.
pub(super) struct Line {
    bound: Arc<ClusterBound>,
    turn: Option<Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>>,
}

impl Line {
    /// Not in line.
    pub(super) fn new(bound: Arc<ClusterBound>) -> Self {
        Self { bound, turn: None }
    }

    /// Joins, or stays where it is. Asks the others for room when it joins, and `again` on demand: nobody may have had any
    /// before. `in_need` says that the pool has no connection at all, or that a transaction waits for one.
    pub(super) fn wait(&mut self, again: bool, in_need: bool) {
        if self.turn.is_none() || again {
            self.bound.starved.notify_waiters();
            self.bound.owed.fetch_or(in_need, Ordering::Relaxed);
        }
        self.turn.get_or_insert_with(|| {
            let place = self.bound.places.clone().acquire_owned();
            Box::pin(place.map(|place| place.expect("the semaphore is never closed")))
        });
    }

    /// Leaves; a place that came meanwhile passes on.
    pub(super) fn leave(&mut self) {
        if self.turn.take().is_some() {
            // Others who need it ask again.
            self.bound.owed.store(false, Ordering::Relaxed);
        }
    }

    /// Waits for a place, for ever when not in line, and leaves with it. It is given back unless [`ClusterBound::take`] takes it.
    ///
    /// # Cancel safety
    /// Safe: the pool stays in line.
    pub(super) async fn place(&mut self) -> OwnedSemaphorePermit {
        let Some(turn) = &mut self.turn else { return std::future::pending().await };
        let place = turn.await;
        self.leave();
        place
    }
}
