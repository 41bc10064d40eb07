//! The bookkeeping of one pool: places, available connections, who waits. No sockets, no clock, no lock.
//!
//! ```text
//!            start_connecting          connected            check_out
//!   (free) ───────────────► pending ───────────► available ◄─────────► in use
//!      ▲                      │ connect_failed       │ clear, retire      │ discard, stale
//!      └──────────────────────┴───────── closed ◄── closing ◄─────────────┘
//! ```
//!
//! An attempt to connect that failed after there was a socket goes from pending to closing.
//!
//! Invariant: available + in use + pending + closing <= `max_pool_size`. A connection keeps its place while it is
//! closing, until the server has noticed or a second has passed: a server that hangs must not collect connections.
//! Words and states are those of the CMAP specification ("connection-monitoring-and-pooling").

use tokio::time::Instant;

use crate::admission::{Lane, Ticket, WaitQueue};

/// Whether the pool gives out connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolStatus {
    /// The server is not known to be up: check-outs fail at once, so that the command can be routed anew.
    Paused,
    /// Normal.
    Ready,
    /// For good.
    Closed,
}

/// Bounds of one pool, all counting connections.
#[derive(Debug, Clone, Copy)]
pub struct PoolBounds {
    /// Open at once, all states together.
    pub max_pool_size: u32,
    /// Kept open without demand.
    pub min_pool_size: u32,
    /// Being established at once.
    pub max_connecting: u32,
    /// In use at once.
    pub max_in_flight: u32,
}

/// Outcome of [`PoolState::check_out`].
#[derive(Debug, PartialEq, Eq)]
pub enum CheckOut<C> {
    /// Take this one.
    Now(C),
    /// None is free, or others were first: join the queue.
    Wait,
    /// The pool is not [`PoolStatus::Ready`].
    Unavailable(PoolStatus),
}

/// Where a waiter stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Waiting<C> {
    /// A connection was handed over.
    Handed(C),
    /// Still in the queue.
    Queued,
    /// The pool was cleared or closed meanwhile.
    Evicted(PoolStatus),
}

/// How full a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolCounts {
    /// Open and idle.
    pub available: u32,
    /// Checked out.
    pub in_use: u32,
    /// Being established.
    pub pending: u32,
    /// Closed by us and not yet gone.
    pub closing: u32,
}

impl PoolCounts {
    /// Places taken.
    pub fn total(&self) -> u32 {
        self.available + self.in_use + self.pending + self.closing
    }
}

/// One pool. `C` is a connection, `W` wakes a waiter.
#[derive(Debug)]
pub struct PoolState<C, W> {
    bounds: PoolBounds,
    status: PoolStatus,
    generation: u64,
    /// The one used last is last, and taken first: the others may become idle.
    available: Vec<C>,
    in_use: u32,
    pending: u32,
    closing: u32,
    /// To be closed by the maintenance task; counted in `closing`.
    discarded: Vec<C>,
    queue: WaitQueue<W>,
    /// Handed to waiters that were not polled since; counted in `in_use`.
    handed: Vec<(Ticket, C)>,
}

impl<C, W> PoolState<C, W> {
    /// An empty pool, paused.
    pub fn new(bounds: PoolBounds) -> Self {
        Self {
            bounds,
            status: PoolStatus::Paused,
            generation: 0,
            available: Vec::new(),
            in_use: 0,
            pending: 0,
            closing: 0,
            discarded: Vec::new(),
            queue: WaitQueue::new(),
            handed: Vec::new(),
        }
    }

    /// Status.
    pub fn status(&self) -> PoolStatus {
        self.status
    }

    /// Rises with every [`PoolState::clear`]; connections of an older one are stale.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Bounds in force.
    pub fn bounds(&self) -> &PoolBounds {
        &self.bounds
    }

    /// The wait queue, to look at.
    pub fn queue(&self) -> &WaitQueue<W> {
        &self.queue
    }

    /// How full the pool is.
    pub fn counts(&self) -> PoolCounts {
        PoolCounts {
            available: count(self.available.len()),
            in_use: self.in_use,
            pending: self.pending,
            closing: self.closing,
        }
    }

    /// Takes an available connection, unless somebody waits already.
    pub fn check_out(&mut self) -> CheckOut<C> {
        if self.status != PoolStatus::Ready {
            return CheckOut::Unavailable(self.status);
        }
        if !self.queue.is_empty() || self.in_use >= self.bounds.max_in_flight {
            return CheckOut::Wait;
        }
        match self.available.pop() {
            Some(connection) => {
                self.in_use += 1;
                CheckOut::Now(connection)
            }
            None => CheckOut::Wait,
        }
    }

    /// Takes an available connection for the pool's own use (a probe or a ping), whatever the status.
    pub fn borrow_available(&mut self) -> Option<C> {
        let connection = self.available.pop()?;
        self.in_use += 1;
        Some(connection)
    }

    /// Joins the queue.
    pub fn enqueue(&mut self, lane: Lane, now: Instant, waker: W) -> Ticket {
        debug_assert!(self.status == PoolStatus::Ready, "nobody waits for a pool that gives out nothing");
        self.queue.push(lane, now, waker)
    }

    /// Joins the queue again at the old place, `since` then: what was handed over had died. Returns who is to be woken.
    ///
    /// # Errors
    /// The status, when that is not [`PoolStatus::Ready`] any more.
    pub fn rejoin(&mut self, ticket: Ticket, since: Instant, waker: W) -> Result<Option<W>, PoolStatus> {
        if self.status != PoolStatus::Ready {
            return Err(self.status);
        }
        self.queue.rejoin(ticket, since, waker);
        Ok(self.hand_over())
    }

    /// Looks whether a waiter's turn has come; renews its waker if not.
    pub fn poll(&mut self, ticket: Ticket, waker: impl FnOnce(&mut W)) -> Waiting<C> {
        if let Some(index) = self.handed.iter().position(|(handed, _)| *handed == ticket) {
            return Waiting::Handed(self.handed.swap_remove(index).1);
        }
        match self.queue.get_mut(ticket) {
            Some(place) => {
                waker(place);
                Waiting::Queued
            }
            None => Waiting::Evicted(self.status),
        }
    }

    /// Leaves the queue. A connection that was handed over meanwhile comes back: the caller checks it in.
    #[must_use]
    pub fn leave(&mut self, ticket: Ticket) -> Option<C> {
        self.queue.remove(ticket);
        let index = self.handed.iter().position(|(handed, _)| *handed == ticket)?;
        Some(self.handed.swap_remove(index).1)
    }

    /// Takes a connection back between two commands. Returns who is to be woken. A stale one is discarded.
    pub fn check_in(&mut self, connection: C, generation: u64) -> Option<W> {
        if generation != self.generation || self.status == PoolStatus::Closed {
            return self.discard(connection);
        }
        self.in_use -= 1;
        self.available.push(connection);
        self.hand_over()
    }

    /// Gives up a connection that was in use. Its place stays taken until [`PoolState::closed`]. Returns who is to be
    /// woken: where fewer may be in use than open, the next waiter can have an available one.
    pub fn discard(&mut self, connection: C) -> Option<W> {
        self.in_use -= 1;
        self.closing += 1;
        self.discarded.push(connection);
        self.hand_over()
    }

    /// Takes a place for a connection to be established; returns its generation. `None` when there is no place, or
    /// no use for one more.
    pub fn start_connecting(&mut self) -> Option<u64> {
        (self.wants_connection() && self.has_room()).then(|| self.reserve_place())
    }

    /// As [`PoolState::start_connecting`] for a connection that nobody asked for: a probe, or the replacement of one
    /// whose lifetime is over.
    pub fn start_extra(&mut self) -> Option<u64> {
        self.has_room().then(|| self.reserve_place())
    }

    /// As [`PoolState::start_extra`], whatever else is being established: attempts to reach a server that is down must not
    /// keep the one out that finds it back.
    pub fn start_recheck(&mut self) -> Option<u64> {
        let room = self.status != PoolStatus::Closed && self.counts().total() < self.bounds.max_pool_size;
        room.then(|| self.reserve_place())
    }

    /// True while the bounds of this pool let one more be established.
    pub fn has_room(&self) -> bool {
        self.status != PoolStatus::Closed
            && self.counts().total() < self.bounds.max_pool_size
            && self.pending < self.bounds.max_connecting
    }

    /// True while more connections would be used, bounds aside.
    pub fn wants_connection(&self) -> bool {
        let open = self.counts().available + self.in_use + self.pending;
        let for_waiters = count(self.queue.len()) > self.pending && self.in_use < self.bounds.max_in_flight;
        self.status == PoolStatus::Ready && (for_waiters || open < self.bounds.min_pool_size)
    }

    fn reserve_place(&mut self) -> u64 {
        self.pending += 1;
        debug_assert!(self.counts().total() <= self.bounds.max_pool_size);
        self.generation
    }

    /// A place taken by `start_connecting` has its connection. Returns who is to be woken.
    pub fn connected(&mut self, connection: C, generation: u64) -> Option<W> {
        self.pending -= 1;
        self.in_use += 1;
        self.check_in(connection, generation)
    }

    /// A place taken by `start_connecting` is free again: there never was a socket.
    pub fn connect_failed(&mut self) {
        self.pending -= 1;
    }

    /// A place taken by `start_connecting` had a socket that is being closed. It stays taken until [`PoolState::closed`].
    pub fn connect_broken(&mut self) {
        self.pending -= 1;
        self.closing += 1;
    }

    /// A closing connection is gone: its place is free.
    pub fn closed(&mut self) {
        self.closing -= 1;
    }

    /// Connections that the maintenance task is to close.
    pub fn take_discarded(&mut self) -> Vec<C> {
        std::mem::take(&mut self.discarded)
    }

    /// Discards up to `most` available connections that `expired` names, those used longest ago first, and not more
    /// than leave `least` open. Returns how many.
    pub fn retire(&mut self, least: u32, most: u32, mut expired: impl FnMut(&mut C) -> bool) -> u32 {
        let (mut index, mut retired) = (0, 0);
        while index < self.available.len() && retired < most {
            if count(self.available.len()) + self.in_use + self.pending <= least {
                break;
            }
            if expired(&mut self.available[index]) {
                let connection = self.available.remove(index);
                self.closing += 1;
                self.discarded.push(connection);
                retired += 1;
            } else {
                index += 1;
            }
        }
        retired
    }

    /// Number of available connections that `matches` names.
    pub fn count_available(&self, matches: impl Fn(&C) -> bool) -> u32 {
        count(self.available.iter().filter(|connection| matches(connection)).count())
    }

    /// Lets check-outs pass.
    pub fn ready(&mut self) {
        if self.status == PoolStatus::Paused {
            self.status = PoolStatus::Ready;
        }
    }

    /// Makes all connections stale, pauses, and evicts who waits. Those in use die when they come back; those handed to a
    /// waiter that was not polled since die at once, and it is evicted like the others.
    pub fn clear(&mut self) -> Vec<W> {
        self.generation += 1;
        if self.status == PoolStatus::Ready {
            self.status = PoolStatus::Paused;
        }
        self.discard_unused();
        self.queue.drain()
    }

    /// Evicts who waits, so that they are routed anew; connections stay.
    pub fn evict(&mut self) -> Vec<W> {
        self.queue.drain()
    }

    /// Ends the pool.
    pub fn close(&mut self) -> Vec<W> {
        self.status = PoolStatus::Closed;
        self.generation += 1;
        self.discard_unused();
        self.queue.drain()
    }

    /// Makes a closed pool an empty, paused one again, unless its last connection is gone and nobody looks after it any
    /// more. What is in use from before stays stale, and keeps its place.
    pub fn reopen(&mut self) -> bool {
        let alive = self.status == PoolStatus::Closed && self.counts().total() > 0;
        if alive {
            self.status = PoolStatus::Paused;
        }
        alive
    }

    fn discard_unused(&mut self) {
        self.in_use -= count(self.handed.len());
        self.closing += count(self.available.len() + self.handed.len());
        self.discarded.append(&mut self.available);
        self.discarded.extend(self.handed.drain(..).map(|(_, connection)| connection));
    }

    fn hand_over(&mut self) -> Option<W> {
        if self.status != PoolStatus::Ready || self.in_use >= self.bounds.max_in_flight || self.queue.is_empty() {
            return None;
        }
        let connection = self.available.pop()?;
        let (ticket, waker) = self.queue.pop().expect("the queue was not empty a moment ago");
        self.in_use += 1;
        self.handed.push((ticket, connection));
        Some(waker)
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("a pool holds far fewer than 2^32 connections and waiters")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: PoolBounds = PoolBounds { max_pool_size: 4, min_pool_size: 1, max_connecting: 2, max_in_flight: 4 };

    /// A connection of the model: its number and its generation.
    type Fake = (u32, u64);

    fn ready_pool(connections: u32) -> PoolState<Fake, u32> {
        let mut pool = PoolState::new(BOUNDS);
        pool.ready();
        for number in 0..connections {
            let generation = pool.start_extra().unwrap();
            assert_eq!(pool.connected((number, generation), generation), None);
        }
        pool
    }

    #[test]
    fn the_connection_used_last_is_used_next() {
        let mut pool = ready_pool(2);
        let CheckOut::Now(last) = pool.check_out() else { panic!("two are available") };
        assert_eq!(last.0, 1);
        pool.check_in(last, 0);
        assert_eq!(pool.check_out(), CheckOut::Now((1, 0)));
    }

    #[test]
    fn newcomers_do_not_overtake_who_waits() {
        let mut pool = ready_pool(1);
        let CheckOut::Now(connection) = pool.check_out() else { panic!("one is available") };
        assert_eq!(pool.check_out(), CheckOut::Wait);
        let ticket = pool.enqueue(Lane::Regular, Instant::now(), 7);
        assert_eq!(pool.check_in(connection, 0), Some(7));
        assert_eq!(pool.check_out(), CheckOut::Wait, "the connection is promised");
        assert_eq!(pool.poll(ticket, |_| {}), Waiting::Handed((0, 0)));
    }

    #[test]
    fn a_waiter_that_leaves_passes_its_connection_on() {
        let mut pool = ready_pool(1);
        let CheckOut::Now(connection) = pool.check_out() else { panic!("one is available") };
        let (first, second) =
            (pool.enqueue(Lane::Regular, Instant::now(), 1), pool.enqueue(Lane::Regular, Instant::now(), 2));
        assert_eq!(pool.check_in(connection, 0), Some(1));
        let orphan = pool.leave(first).unwrap();
        assert_eq!(pool.check_in(orphan, 0), Some(2));
        assert_eq!(pool.poll(second, |_| {}), Waiting::Handed((0, 0)));
    }

    #[test]
    fn clearing_makes_stale_pauses_and_evicts() {
        let mut pool = ready_pool(2);
        let CheckOut::Now(connection) = pool.check_out() else { panic!("two are available") };
        let CheckOut::Now(other) = pool.check_out() else { panic!("two are available") };
        let ticket = pool.enqueue(Lane::Regular, Instant::now(), 9);
        let behind = pool.enqueue(Lane::Regular, Instant::now(), 8);
        assert_eq!(pool.check_in(other, 0), Some(9));
        assert_eq!(pool.clear(), [8]);
        assert_eq!(pool.poll(ticket, |_| {}), Waiting::Evicted(PoolStatus::Paused), "handed over, and not taken yet");
        assert_eq!(pool.poll(behind, |_| {}), Waiting::Evicted(PoolStatus::Paused));
        assert_eq!(pool.check_out(), CheckOut::Unavailable(PoolStatus::Paused));
        assert_eq!(pool.rejoin(ticket, Instant::now(), 9), Err(PoolStatus::Paused));
        assert_eq!(pool.check_in(connection, 0), None);
        assert_eq!(pool.take_discarded(), [(0, 0), (1, 0)]);
        assert_eq!(pool.counts(), PoolCounts { closing: 2, ..PoolCounts::default() });
    }

    #[test]
    fn establishment_follows_demand_within_its_pace() {
        let mut pool: PoolState<Fake, u32> = PoolState::new(BOUNDS);
        assert_eq!(pool.start_connecting(), None, "a paused pool asks for nothing");
        pool.ready();
        assert!(pool.start_connecting().is_some(), "the minimum");
        assert_eq!(pool.start_connecting(), None);
        for waiter in 0..10 {
            pool.enqueue(Lane::Regular, Instant::now(), waiter);
        }
        assert!(pool.start_connecting().is_some());
        assert_eq!(pool.start_connecting(), None, "two at once");
    }

    proptest! {
        /// Random lives of a pool; places, owners and waiters are followed one by one.
        #[test]
        fn no_place_and_no_connection_is_lost(
            max in 1_u32..6, in_flight in 1_u32..6, connecting in 1_u32..4,
            operations in prop::collection::vec((0_u8..15, 0_usize..8), 1..400)
        ) {
            let bounds =
                PoolBounds { max_pool_size: max, min_pool_size: max / 2, max_connecting: connecting, max_in_flight: in_flight };
            let mut pool: PoolState<Fake, u32> = PoolState::new(bounds);
            let now = Instant::now();
            let (mut pending, mut used, mut tickets, mut closing) = (Vec::new(), Vec::<Fake>::new(), Vec::new(), 0_u32);
            let mut next = 0;
            for (operation, index) in operations {
                match operation {
                    0 => pool.ready(),
                    1 | 2 => pending.extend(pool.start_connecting()),
                    3 => pending.extend(pool.start_extra()),
                    4 | 5 if !pending.is_empty() => {
                        let generation = pending.swap_remove(index % pending.len());
                        next += 1;
                        pool.connected((next, generation), generation);
                    }
                    6 if !pending.is_empty() => {
                        pending.swap_remove(index % pending.len());
                        pool.connect_failed();
                    }
                    7 | 8 => match pool.check_out() {
                        CheckOut::Now(connection) => used.push(connection),
                        CheckOut::Wait => tickets.push(pool.enqueue(<Lane as crate::telemetry::labels::Label>::ALL[index % 4], now, 0)),
                        CheckOut::Unavailable(_) => {}
                    },
                    9 if !used.is_empty() => {
                        let connection = used.swap_remove(index % used.len());
                        pool.check_in(connection, connection.1);
                    }
                    10 if !used.is_empty() => drop(pool.discard(used.swap_remove(index % used.len()))),
                    11 if !tickets.is_empty() => {
                        let ticket = tickets.swap_remove(index % tickets.len());
                        if let Some(connection) = pool.leave(ticket) {
                            pool.check_in(connection, connection.1);
                        }
                    }
                    12 if index == 0 => drop(pool.clear()),
                    14 if !pending.is_empty() => {
                        pending.swap_remove(index % pending.len());
                        pool.connect_broken();
                        closing += 1;
                    }
                    13 => drop(pool.retire(bounds.min_pool_size, 3, |connection| connection.0 % 2 == 0)),
                    _ => {}
                }
                // Waiters are polled some operations later: what was handed over may be cleared meanwhile.
                if index > 4 {
                    prop_assert!(pool.counts().total() <= max);
                    continue;
                }
                tickets.retain(|ticket| match pool.poll(*ticket, |_| {}) {
                    Waiting::Handed(connection) => { used.push(connection); false }
                    Waiting::Queued => true,
                    Waiting::Evicted(_) => false,
                });
                closing += count(pool.take_discarded().len());
                if operation % 3 == 0 && closing > 0 {
                    closing -= 1;
                    pool.closed();
                }
                let counts = pool.counts();
                prop_assert!(counts.total() <= max);
                prop_assert!(counts.in_use <= in_flight.min(max));
                prop_assert!(counts.pending <= connecting);
                prop_assert_eq!(counts.in_use, count(used.len()));
                prop_assert_eq!(counts.pending, count(pending.len()));
                prop_assert_eq!(counts.closing, closing);
                prop_assert_eq!(pool.queue().len(), tickets.len());
                let distinct: BTreeSet<_> = used.iter().map(|connection| connection.0).collect();
                prop_assert_eq!(distinct.len(), used.len(), "one connection has one owner");
                if pool.status() == PoolStatus::Ready {
                    let free = counts.available > 0 && counts.in_use < in_flight;
                    prop_assert!(!free || tickets.is_empty(), "nobody waits beside a free connection");
                }
            }
        }
    }
}
