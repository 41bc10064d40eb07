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
//! Invariant: available + in use + pending + closing <= `max_pool_size`, but for what was there when that was lowered. A connection keeps its place while it is
//! closing, until the server has noticed or a second has passed: a server that hangs must not collect connections.
//! Who gets a free one is decided by the lanes' shares (`admission::shares`) and the order of the wait queue: nobody waits for
//! whom they leave a connection.
//!
//! Words and states are those of the CMAP specification ("connection-monitoring-and-pooling").

mod establishing;
#[cfg(test)]
mod model;
mod sharing;
#[cfg(test)]
mod tests;
mod waiting;

use std::time::Duration;

use foldhash::{HashSet, HashSetExt as _};
use smallvec::SmallVec;
use tokio::time::Instant;

use self::waiting::Patrol;
use super::holders::{Holders, Owned};
use crate::admission::claim::Mean;
use crate::admission::codel::Codel;
use crate::admission::shares::InUse;
use crate::admission::tenant_use::TenantTable;
use crate::admission::{Claim, Lane, Ticket, UserQueues};
#[cfg(test)]
use crate::admission::{Level, Tenant};
use crate::auth::UserId;
use crate::config::QueueDiscipline;

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
    /// Open at once of one user, those being established included; `None` for no bound of its own.
    pub max_user_connections: Option<u32>,
    /// Being established at once.
    pub max_connecting: u32,
    /// In use at once.
    pub max_in_flight: u32,
    /// In which order those go who wait.
    pub discipline: QueueDiscipline,
    /// Other pools may have the places for connections that this one has not: a bound over all of them is in force.
    pub contended: bool,
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
    /// The queue stands, and it has waited too long for that.
    Shed,
}

/// What a connection was in use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Whose it was.
    pub claim: Claim,
    /// For how long, if by a command.
    pub time: Option<Duration>,
}

impl From<Claim> for Held {
    fn from(claim: Claim) -> Self {
        Self { claim, time: None }
    }
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
    in_use: InUse,
    pending: u32,
    closing: u32,
    /// To be closed by the maintenance task; counted in `closing`.
    discarded: Vec<C>,
    queue: UserQueues<W>,
    /// Of available, in use and pending, by user.
    holders: Holders,
    /// Given up for another user, whose connection has not been begun.
    turned_over: u32,
    /// A server that can be reached, as far as is known: nothing is given up for what cannot be had.
    may_connect: bool,
    connect_time: Mean,
    /// Places are left here, and a bound over all pools is in the way of taking one.
    is_held_up: bool,
    /// Handed to waiters that were not polled since; counted in `in_use`.
    handed: Vec<(Ticket, C)>,
    tenants: TenantTable,
    codel: Option<Codel>,
    /// Who was refused since it was polled.
    shed: HashSet<Ticket>,
    /// Looks at the queue are made; `None` while nobody waits.
    patrol: Option<Patrol>,
    /// There are none any more.
    patrol_has_ended: bool,
    /// On the server.
    open_transactions: u32,
    /// See [`PoolState::limit`]; `max_in_flight` unless it was set.
    limit: u32,
}

fn codel(discipline: QueueDiscipline) -> Option<Codel> {
    match discipline {
        QueueDiscipline::Fifo => None,
        QueueDiscipline::Codel { target, interval } => Some(Codel::new(target, interval)),
    }
}

/// Who is to be woken: mostly nobody or one.
pub type Woken<W> = SmallVec<[W; 1]>;

impl<C: Owned, W> PoolState<C, W> {
    /// An empty pool, paused.
    pub fn new(bounds: PoolBounds) -> Self {
        Self {
            bounds,
            status: PoolStatus::Paused,
            generation: 0,
            available: Vec::new(),
            in_use: InUse::default(),
            pending: 0,
            closing: 0,
            discarded: Vec::new(),
            queue: UserQueues::default(),
            holders: Holders::default(),
            turned_over: 0,
            may_connect: true,
            connect_time: Mean::default(),
            is_held_up: false,
            handed: Vec::new(),
            tenants: TenantTable::default(),
            codel: codel(bounds.discipline),
            shed: HashSet::new(),
            patrol: None,
            patrol_has_ended: false,
            open_transactions: 0,
            limit: bounds.max_in_flight,
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

    /// Puts other bounds in force, with [`PoolState::limit`] of them. What is idle beyond them ends at once, those first that were
    /// used longest ago, and what is in use or being established when it is back. Returns who is to be woken.
    pub fn set_bounds(&mut self, bounds: PoolBounds, limit: u32, now: Instant) -> Woken<W> {
        if bounds.discipline != self.bounds.discipline {
            self.codel = codel(bounds.discipline);
        }
        self.bounds = bounds;
        self.limit = limit.min(bounds.max_in_flight);
        while self.is_over_bound() && !self.available.is_empty() {
            let connection = self.available.remove(0);
            self.end(connection);
        }
        self.hand_over(now)
    }

    /// Ends what is idle, and what is in use or being established when it is back. Nobody who waits is evicted.
    pub fn end_all(&mut self) {
        self.generation += 1;
        for connection in std::mem::take(&mut self.available) {
            self.end(connection);
        }
    }

    /// True when more are open or being established than may be: the pool was made smaller, and they were in use.
    pub fn is_over_bound(&self) -> bool {
        let counts = self.counts();
        counts.available + counts.in_use + counts.pending > self.bounds.max_pool_size
    }

    /// The wait queue, to look at.
    pub fn queue(&self) -> &UserQueues<W> {
        &self.queue
    }

    /// What each user has.
    pub fn holders(&self) -> &Holders {
        &self.holders
    }

    /// Those that are idle; the one used last is last.
    pub fn available(&self) -> &[C] {
        &self.available
    }

    /// True while a connection of that user is idle.
    pub fn has_available(&self, user: UserId) -> bool {
        self.available.iter().any(|connection| connection.user() == user)
    }

    /// How full the pool is.
    pub fn counts(&self) -> PoolCounts {
        PoolCounts {
            available: count(self.available.len()),
            in_use: self.in_use.total(),
            pending: self.pending,
            closing: self.closing,
        }
    }

    /// Connections in use by lane.
    pub(super) fn lanes_in_use(&self) -> InUse {
        self.in_use
    }

    /// What each tenant has.
    pub fn tenants(&self) -> &TenantTable {
        &self.tenants
    }

    /// Takes an available connection, unless its lane or its tenant has all that it may have. Nobody is overtaken: as long as
    /// one is available, those who wait are those who may not have it.
    pub fn check_out(&mut self, claim: Claim) -> CheckOut<C> {
        if self.status != PoolStatus::Ready {
            return CheckOut::Unavailable(self.status);
        }
        if self.available.is_empty() || !self.may_begin(claim) {
            return CheckOut::Wait;
        }
        match self.take_available(claim.user) {
            Some(connection) => {
                self.begin(claim, Duration::ZERO);
                CheckOut::Now(connection)
            }
            None => CheckOut::Wait,
        }
    }

    /// That user's connection that was used last.
    fn take_available(&mut self, user: UserId) -> Option<C> {
        let index = self.available.iter().rposition(|connection| connection.user() == user)?;
        Some(self.available.remove(index))
    }

    fn begin(&mut self, claim: Claim, waited: Duration) {
        self.in_use.begin(claim.lane);
        // What the proxy does for itself is nobody's.
        if claim.lane != Lane::Background {
            self.tenants.begin(claim, waited);
        }
    }

    /// Takes an available connection for the pool's own use (a probe or a ping), whatever the status.
    pub fn borrow_available(&mut self) -> Option<C> {
        let connection = self.available.pop()?;
        self.begin(Lane::Background.into(), Duration::ZERO);
        Some(connection)
    }

    /// A transaction of that user is open on the server from now on, until [`PoolState::transaction_ended`].
    pub fn transaction_begun(&mut self, user: UserId) {
        self.open_transactions += 1;
        self.holders.transaction_begun(user);
    }

    /// One less is open. Returns who is to be woken: what was kept for it is for all.
    pub fn transaction_ended(&mut self, user: UserId, now: Instant) -> Woken<W> {
        self.holders.transaction_ended(user);
        debug_assert!(self.open_transactions > 0, "it was counted when it began");
        self.open_transactions = self.open_transactions.saturating_sub(1);
        self.hand_over(now)
    }

    /// Takes a connection back between two commands, from who had claimed it and held it for so long (`None` where that
    /// was no command). Returns who is to be woken. A stale one is discarded.
    pub fn check_in(&mut self, connection: C, generation: u64, held: Held, now: Instant) -> Woken<W> {
        if self.is_stale(generation) {
            return self.discard(connection, held, now);
        }
        let over_bound = self.is_over_bound();
        self.release(held);
        if over_bound {
            self.end(connection);
            return self.hand_over(now);
        }
        self.available.push(connection);
        if self.last_gives_way(now)
            && let Some(connection) = self.available.pop()
        {
            self.turned_over += 1;
            self.end(connection);
        }
        self.hand_over(now)
    }

    fn is_stale(&self, generation: u64) -> bool {
        generation != self.generation || self.status == PoolStatus::Closed
    }

    /// Gives up a connection that was in use. Its place stays taken until [`PoolState::closed`]. Returns who is to be
    /// woken: where fewer may be in use than open, the next waiter can have an available one.
    pub fn discard(&mut self, connection: C, held: Held, now: Instant) -> Woken<W> {
        self.release(held);
        self.end(connection);
        self.hand_over(now)
    }

    /// A connection is to be closed.
    fn end(&mut self, connection: C) {
        self.holders.ended(connection.user());
        self.closing += 1;
        self.discarded.push(connection);
    }

    fn release(&mut self, held: Held) {
        let lane = held.claim.lane;
        self.in_use.end(lane);
        if lane != Lane::Background {
            // Who waits for data says nothing about how long commands take.
            self.tenants.end(held.claim, held.time.filter(|_| lane != Lane::Await));
        }
    }

    /// Number of available connections that `matches` names.
    pub fn count_available(&self, matches: impl Fn(&C) -> bool) -> u32 {
        count(self.available.iter().filter(|connection| matches(connection)).count())
    }

    /// Lets check-outs pass; true when it did not before.
    pub fn ready(&mut self) -> bool {
        let paused = self.status == PoolStatus::Paused;
        if paused {
            self.status = PoolStatus::Ready;
        }
        paused
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
        for (ticket, connection) in std::mem::take(&mut self.handed) {
            self.release(Held { claim: ticket.claim, time: None });
            self.end(connection);
        }
        for connection in std::mem::take(&mut self.available) {
            self.end(connection);
        }
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("a pool holds far fewer than 2^32 connections and waiters")
}
