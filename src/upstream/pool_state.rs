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

#[cfg(test)]
mod model;

use std::time::Duration;

use foldhash::{HashSet, HashSetExt as _};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::holders::{Holders, Owned};
use crate::admission::claim::{Entry, Mean};
use crate::admission::codel::Codel;
use crate::admission::fair_line::Pick;
use crate::admission::shares::{InUse, Shares};
use crate::admission::tenant_use::TenantTable;
use crate::admission::{Claim, Lane, Ticket, UserQueues, WaitQueue};
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

/// What commands may begin that go on with no transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnShare {
    /// Any of them.
    pub(super) others: bool,
    /// Those that may have to wait for its locks.
    pub(super) locks: bool,
}

/// Between two looks at the queue, in numbers of its places.
#[derive(Debug, Clone, Copy)]
struct Patrol {
    /// Those before this one know that they wait for long.
    told: u64,
    /// Those before this one were there at the last look.
    seen: u64,
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

    /// A connection was established in so long.
    pub fn took_to_connect(&mut self, time: Duration) {
        self.connect_time.add(time);
    }

    /// How long that takes.
    pub fn connect_time(&self) -> Mean {
        self.connect_time
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

    /// How long those who wait now will take, if each holds a connection as long as commands did of late, and as far as they may
    /// wait at all; `None` before the first did.
    pub fn drains_in(&self) -> Option<Duration> {
        let turns = count(self.queue.len()) / self.limit.max(1);
        let drains_in = self.tenants.mean_held().map(|held| held.saturating_mul(turns));
        let patience = self.codel.as_ref().and_then(Codel::patience);
        drains_in.map(|drains_in| drains_in.min(patience.unwrap_or(drains_in)))
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

    fn may_begin(&self, claim: Claim) -> bool {
        let (shares, own) = (self.shares(), self.own_share(claim.user));
        shares.allow(claim.lane, &self.in_use)
            && (claim.lane == Lane::Transaction || own.others)
            && (claim.lane != Lane::Regular
                || (!claim.locks || shares.allow_locks() && own.locks) && self.tenants.has_room(claim.tenant))
    }

    /// What a user with a bound of its own may do while it has a transaction open: as of the whole pool, of its own connections one
    /// is for that.
    pub(super) fn own_share(&self, user: UserId) -> OwnShare {
        let bound = self.own_bound(user).filter(|_| self.open_transactions > 0);
        let Some((most, holding)) =
            bound.map(|most| (most, self.holders.of(user))).filter(|(_, holding)| holding.transactions > 0)
        else {
            return OwnShare { others: true, locks: true };
        };
        let idle = self.available.iter().filter(|connection| connection.user() == user).count();
        let in_use = holding.open - count(idle);
        OwnShare { others: most == 1 || in_use + 1 < most, locks: most > 1 }
    }

    /// What there is to share now.
    pub fn shares(&self) -> Shares {
        let open = || count(self.available.len()) + self.in_use.total();
        let reach = if self.bounds.contended { open() } else { u32::MAX };
        let (limit, most) = (self.most_in_use(), self.bounds.max_in_flight);
        Shares { limit, most, reach, open_transactions: self.open_transactions }
    }

    /// Takes an available connection for the pool's own use (a probe or a ping), whatever the status.
    pub fn borrow_available(&mut self) -> Option<C> {
        let connection = self.available.pop()?;
        self.begin(Lane::Background.into(), Duration::ZERO);
        Some(connection)
    }

    /// The bound on the connections of that user, if it has one: the service has that of the pool.
    pub(super) fn own_bound(&self, user: UserId) -> Option<u32> {
        self.bounds.max_user_connections.filter(|_| user != UserId::SERVICE)
    }

    /// True while the share of the proxy's own work lets it have one more.
    pub fn may_borrow(&self) -> bool {
        self.shares().allow(Lane::Background, &self.in_use)
    }

    /// Joins the queue. Returns who is to be woken: those who have waited too long in a queue that stands.
    pub fn enqueue(&mut self, claim: Claim, now: Instant, waker: W) -> (Ticket, Woken<W>) {
        debug_assert!(self.status == PoolStatus::Ready, "nobody waits for a pool that gives out nothing");
        let ticket = self.queue.push(claim, now, waker);
        (ticket, self.shed_late(now))
    }

    /// Looks how the queue does, where somebody wants to know, and refuses who has waited too long for that.
    fn shed_late(&mut self, now: Instant) -> Woken<W> {
        let mut woken = Woken::new();
        let shares = self.shares();
        let Some(codel) = &mut self.codel else { return woken };
        loop {
            let pick = Pick { may_lock: shares.allow_locks(), newest_first: false, tenants: &self.tenants };
            // Who may not go whatever is free says nothing about how the queue does.
            let oldest = self.queue.oldest_regular(pick);
            let head = oldest.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
            // Whoever has just come is not an empty queue.
            codel.observe(if oldest.is_some() { head.max(Duration::from_nanos(1)) } else { head }, now);
            let late = oldest.filter(|_| codel.patience().is_some_and(|patience| head > patience));
            let Some((ticket, _)) = late else { return woken };
            let Some(entry) = self.queue.remove(ticket) else { return woken };
            codel.refused();
            self.shed.insert(ticket);
            woken.push(entry.waiter);
        }
    }

    /// Joins the queue again at the old place, `since` then: what was handed over had died. Returns who is to be woken.
    ///
    /// # Errors
    /// The status, when that is not [`PoolStatus::Ready`] any more.
    pub fn rejoin(&mut self, ticket: Ticket, since: Instant, now: Instant, waker: W) -> Result<Woken<W>, PoolStatus> {
        if self.status != PoolStatus::Ready {
            return Err(self.status);
        }
        self.queue.rejoin(ticket, since, waker);
        Ok(self.hand_over(now))
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

    /// Commands that may be in flight at once, beside those that wait for data: these keep no server busy.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Sets [`PoolState::limit`], `max_in_flight` at most. Returns who is to be woken: there may be room for more now.
    pub fn set_limit(&mut self, limit: u32, now: Instant) -> Woken<W> {
        self.limit = limit.min(self.bounds.max_in_flight);
        self.hand_over(now)
    }

    /// Connections that are in use beside those of commands that wait for data.
    pub fn busy(&self) -> u32 {
        self.in_use.total() - self.in_use.of(Lane::Await)
    }

    /// Connections that may be in use at once as things stand, those of commands that wait for data included.
    pub fn most_in_use(&self) -> u32 {
        self.limit.saturating_add(self.in_use.of(Lane::Await)).min(self.bounds.max_in_flight)
    }

    /// True when all others share one connection, as another one is kept for a transaction.
    pub fn is_cramped(&self) -> bool {
        let shares = self.shares();
        shares.kept() > 0 && shares.limit.min(shares.reach) - shares.kept() == 1
    }

    /// True when the pool can do with one connection less: nobody waits, and what is idle is not all kept for a transaction.
    pub fn can_spare_idle(&self) -> bool {
        self.queue.is_empty() && count(self.available.len()) > self.shares().kept()
    }

    /// True when the pool needs a connection although others need theirs: it has none, or a transaction waits for one.
    pub fn is_in_need(&self) -> bool {
        self.counts().total() == 0 || self.queue.lane_len(Lane::Transaction) > 0
    }

    /// True when the pool can give one up for another that is in need: it has more, beside what is kept for transactions.
    pub fn can_give(&self) -> bool {
        self.counts().total() > 1 + self.shares().kept()
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
            None if !self.shed.is_empty() && self.shed.remove(&ticket) => Waiting::Shed,
            None => Waiting::Evicted(self.status),
        }
    }

    /// Somebody has joined. True when that calls for [`PoolState::patrol`] again, from time to time.
    pub fn begin_patrol(&mut self) -> bool {
        let begins = self.patrol.is_none();
        if begins {
            let next = self.queue.next_sequence();
            self.patrol = Some(Patrol { told: next.saturating_sub(1), seen: next });
        }
        begins
    }

    /// There will be no looks at the queue any more.
    pub fn end_patrol(&mut self) {
        self.patrol_has_ended = true;
    }

    /// True when who waits has to see to its own time from the start.
    pub fn patrol_has_ended(&self) -> bool {
        self.patrol_has_ended
    }

    /// True while looks at the queue are to be made.
    pub fn is_patrolled(&self) -> bool {
        self.patrol.is_some()
    }

    /// Who was there at the last look already and waits still: each is named once.
    pub fn patrol(&mut self) -> Vec<W>
    where
        W: Clone,
    {
        let Some(Patrol { told, seen }) = self.patrol else { return Vec::new() };
        let next = Patrol { told: seen, seen: self.queue.next_sequence() };
        self.patrol = (!self.queue.is_empty()).then_some(next);
        self.queue.between(told..seen).cloned().collect()
    }

    /// Who waits.
    pub fn waiting(&self) -> Vec<W>
    where
        W: Clone,
    {
        self.queue.between(0..u64::MAX).cloned().collect()
    }

    /// True when no further connection can be established, whoever waits.
    pub fn is_full(&self) -> bool {
        self.counts().total() >= self.bounds.max_pool_size
    }

    /// Leaves the queue. A connection that was handed over meanwhile comes back: the caller checks it in.
    #[must_use]
    pub fn leave(&mut self, ticket: Ticket) -> Option<C> {
        if self.queue.remove(ticket).is_none() {
            self.shed.remove(&ticket);
        }
        let index = self.handed.iter().position(|(handed, _)| *handed == ticket)?;
        Some(self.handed.swap_remove(index).1)
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

    /// Takes a place for a connection to be established; returns for which user, and its generation. `None` when there is no
    /// place, or no use for one more.
    pub fn start_connecting(&mut self) -> Option<(UserId, u64)> {
        let user = if self.has_room() { self.wanted_for()? } else { return None };
        Some((user, self.reserve_place(user)))
    }

    /// As [`PoolState::start_connecting`] for a connection of the service that nobody asked for: a probe, or the replacement of
    /// one whose lifetime is over.
    pub fn start_extra(&mut self) -> Option<u64> {
        self.has_room().then(|| self.reserve_place(UserId::SERVICE))
    }

    /// As [`PoolState::start_extra`], whatever else is being established: attempts to reach a server that is down must not
    /// keep the one out that finds it back.
    pub fn start_recheck(&mut self) -> Option<u64> {
        let room = self.status != PoolStatus::Closed && self.counts().total() < self.bounds.max_pool_size;
        room.then(|| self.reserve_place(UserId::SERVICE))
    }

    /// True while the bounds of this pool let one more be established.
    pub fn has_room(&self) -> bool {
        self.status != PoolStatus::Closed
            && self.counts().total() < self.bounds.max_pool_size
            && self.pending < self.bounds.max_connecting
    }

    /// True while more connections would be used, bounds aside.
    pub fn wants_connection(&self) -> bool {
        self.wanted_for().is_some()
    }

    fn wanted_for(&self) -> Option<UserId> {
        if self.status != PoolStatus::Ready {
            return None;
        }
        if let Some((user, _)) = self.neediest(false) {
            return Some(user);
        }
        let counts = self.counts();
        let open = counts.available + counts.in_use + counts.pending;
        (open < self.bounds.min_pool_size).then_some(UserId::SERVICE)
    }

    /// True when a place can only be had from another user, and not as many are on their way as can be used at once.
    pub(super) fn may_turn_over(&self) -> bool {
        let no_place = self.is_held_up || self.is_full();
        self.status == PoolStatus::Ready
            && self.may_connect
            && no_place
            && self.turned_over < self.bounds.max_connecting
    }

    /// Says whether connections can be established now.
    pub fn set_may_connect(&mut self, may_connect: bool, now: Instant) {
        self.may_connect = may_connect;
        self.holders.forget_held_off(now);
    }

    /// Nothing is established for that user until then.
    pub fn hold_off(&mut self, user: UserId, until: Instant) {
        self.holders.hold_off(user, until);
    }

    /// Says whether a bound over all pools is in the way of taking a place.
    pub fn set_held_up(&mut self, is_held_up: bool) {
        self.is_held_up = is_held_up;
    }

    /// Gives an idle connection of one user up for another one in need. Returns how many: one, or none.
    pub fn turn_over(&mut self, now: Instant) -> u32 {
        let Some(index) = self.idle_to_give(now) else { return 0 };
        let connection = self.available.remove(index);
        self.end(connection);
        self.turned_over += 1;
        1
    }

    /// Evicts those who wait for a connection of that user, as none can be had.
    pub fn evict_user(&mut self, user: UserId) -> Vec<W> {
        self.queue.drain_user(user)
    }

    fn reserve_place(&mut self, user: UserId) -> u64 {
        self.pending += 1;
        self.turned_over = self.turned_over.saturating_sub(1);
        self.holders.began(user);
        debug_assert!(self.counts().total() <= self.bounds.max_pool_size);
        self.generation
    }

    /// A place taken by `start_connecting` has its connection. Returns who is to be woken.
    pub fn connected(&mut self, connection: C, generation: u64, now: Instant) -> Woken<W> {
        self.pending -= 1;
        self.holders.connected(connection.user());
        let own = Held { claim: Lane::Background.into(), time: None };
        self.begin(own.claim, Duration::ZERO);
        if self.is_stale(generation) || self.is_over_bound() {
            return self.discard(connection, own, now);
        }
        // It is new, so that its user has it for a while.
        self.release(own);
        self.available.push(connection);
        self.hand_over(now)
    }

    /// A place taken by `start_connecting` is free again: there never was a socket.
    pub fn connect_failed(&mut self, user: UserId) {
        self.pending -= 1;
        self.holders.failed(user);
    }

    /// A place taken by `start_connecting` had a socket that is being closed. It stays taken until [`PoolState::closed`].
    pub fn connect_broken(&mut self, user: UserId) {
        self.pending -= 1;
        self.holders.failed(user);
        self.closing += 1;
    }

    /// A closing connection is gone: its place is free.
    pub fn closed(&mut self) {
        self.closing -= 1;
        if self.is_held_up {
            // The place is for whoever is first in line, who may be another pool; who needs one here asks again.
            self.is_held_up = false;
            self.turned_over = self.turned_over.saturating_sub(1);
        }
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
            if count(self.available.len()) + self.in_use.total() + self.pending <= least {
                break;
            }
            if expired(&mut self.available[index]) {
                let connection = self.available.remove(index);
                self.end(connection);
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
        for (ticket, connection) in std::mem::take(&mut self.handed) {
            self.release(Held { claim: ticket.claim, time: None });
            self.end(connection);
        }
        for connection in std::mem::take(&mut self.available) {
            self.end(connection);
        }
    }

    /// Gives what is available to whoever may have it, in the order of the queue. More than one can go after one has come:
    /// it may have been what several bounds were waiting for.
    fn hand_over(&mut self, now: Instant) -> Woken<W> {
        let mut woken = self.shed_late(now);
        let newest_first = self.codel.as_ref().is_some_and(Codel::stands);
        while self.status == PoolStatus::Ready && !self.available.is_empty() && !self.queue.is_empty() {
            let Some((ticket, entry)) = self.next_to_go(newest_first) else { break };
            let Some(connection) = self.take_available(ticket.claim.user) else { break };
            self.begin(ticket.claim, now.saturating_duration_since(entry.since));
            self.handed.push((ticket, connection));
            woken.push(entry.waiter);
        }
        woken
    }

    /// Takes the next one out of the queue of a user that has an available connection: of those who may go, who has waited
    /// longest, transactions first.
    fn next_to_go(&mut self, newest_first: bool) -> Option<(Ticket, Entry<W>)> {
        let (shares, in_use) = (self.shares(), self.in_use);
        let mut users = SmallVec::<[UserId; 4]>::new();
        for connection in self.available.iter().rev() {
            let user = connection.user();
            if !users.contains(&user) && self.queue.of(user).is_some_and(|queue| !queue.is_empty()) {
                users.push(user);
            }
        }
        let turns: &[bool] = if users.len() > 1 {
            users.sort_by_key(|user| self.queue.of(*user).and_then(WaitQueue::oldest));
            &[true, false]
        } else {
            &[false]
        };
        for only_transactions in turns {
            for user in &users {
                let own = self.own_share(*user);
                let pick = Pick { may_lock: shares.allow_locks() && own.locks, newest_first, tenants: &self.tenants };
                let allowed = |lane| {
                    (lane == Lane::Transaction || !only_transactions && own.others) && shares.allow(lane, &in_use)
                };
                if let Some(next) = self.queue.pop(*user, allowed, pick) {
                    return Some(next);
                }
            }
        }
        None
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("a pool holds far fewer than 2^32 connections and waiters")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REGULAR: Claim = Claim {
        lane: Lane::Regular,
        level: Level::Normal,
        locks: false,
        tenant: Tenant::COMMON,
        user: UserId::SERVICE,
    };

    const BOUNDS: PoolBounds = PoolBounds {
        max_pool_size: 4,
        min_pool_size: 1,
        max_user_connections: None,
        max_connecting: 2,
        max_in_flight: 4,
        discipline: QueueDiscipline::Fifo,
        contended: false,
    };

    /// A connection of the model: its number and its generation.
    type Fake = (u32, u64);

    fn ready_pool(connections: u32) -> PoolState<Fake, u32> {
        let mut pool = PoolState::new(BOUNDS);
        pool.ready();
        for number in 0..connections {
            let generation = pool.start_extra().unwrap();
            assert!(pool.connected((number, generation), generation, Instant::now()).is_empty());
        }
        pool
    }

    fn back(pool: &mut PoolState<Fake, u32>, connection: Fake) -> Vec<u32> {
        pool.check_in(connection, 0, REGULAR.into(), Instant::now()).into_vec()
    }

    #[test]
    fn the_connection_used_last_is_used_next() {
        let mut pool = ready_pool(2);
        let CheckOut::Now(last) = pool.check_out(REGULAR) else { panic!("two are available") };
        assert_eq!(last.0, 1);
        back(&mut pool, last);
        assert_eq!(pool.check_out(REGULAR), CheckOut::Now((1, 0)));
    }

    #[test]
    fn newcomers_do_not_overtake_who_waits() {
        let mut pool = ready_pool(1);
        let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("one is available") };
        assert_eq!(pool.check_out(REGULAR), CheckOut::Wait);
        let ticket = pool.enqueue(REGULAR, Instant::now(), 7).0;
        assert_eq!(back(&mut pool, connection), [7]);
        assert_eq!(pool.check_out(REGULAR), CheckOut::Wait, "the connection is promised");
        assert_eq!(pool.poll(ticket, |_| {}), Waiting::Handed((0, 0)));
    }

    #[test]
    fn a_waiter_that_leaves_passes_its_connection_on() {
        let mut pool = ready_pool(1);
        let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("one is available") };
        let (first, second) = (pool.enqueue(REGULAR, Instant::now(), 1).0, pool.enqueue(REGULAR, Instant::now(), 2).0);
        assert_eq!(back(&mut pool, connection), [1]);
        let orphan = pool.leave(first).unwrap();
        assert_eq!(back(&mut pool, orphan), [2]);
        assert_eq!(pool.poll(second, |_| {}), Waiting::Handed((0, 0)));
    }

    #[test]
    fn how_long_the_queue_takes_follows_from_how_long_commands_take() {
        let (mut pool, now) = (ready_pool(1), Instant::now());
        let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("one is available") };
        (0..8).for_each(|number| drop(pool.enqueue(REGULAR, now, number)));
        assert_eq!(pool.drains_in(), None, "nothing is known");
        let held = Held { claim: REGULAR, time: Some(Duration::from_millis(100)) };
        pool.check_in(connection, 0, held, now);
        pool.enqueue(REGULAR, now, 8);
        assert_eq!(pool.drains_in(), Some(Duration::from_millis(200)), "eight wait for four connections");
    }

    #[test]
    fn a_queue_that_stands_refuses_who_has_waited_too_long_and_takes_the_newest() {
        let ms = Duration::from_millis;
        let discipline = QueueDiscipline::Codel { target: ms(20), interval: ms(500) };
        let mut pool: PoolState<Fake, u32> = PoolState::new(PoolBounds { discipline, ..BOUNDS });
        pool.ready();
        let (mut now, generation) = (Instant::now(), pool.start_extra().unwrap());
        assert!(pool.connected((0, generation), generation, now).is_empty());
        let CheckOut::Now(mut connection) = pool.check_out(REGULAR) else { panic!("one is available") };
        let (mut waits, mut refused, mut served) = (Vec::new(), Vec::new(), Vec::new());
        // Twice as many come as can go.
        for number in 0..600 {
            let (ticket, late) = pool.enqueue(REGULAR, now, number);
            refused.extend(late);
            waits.push((ticket, number));
            now += ms(5);
            if number % 2 == 1 {
                let mut woken = pool.check_in(connection, generation, REGULAR.into(), now).into_vec();
                let next = woken.pop().unwrap();
                refused.extend(woken);
                let (ticket, _) = waits[next as usize];
                let Waiting::Handed(handed) = pool.poll(ticket, |_| {}) else { panic!("{next} was woken") };
                (connection, _) = (handed, served.push(next));
            }
        }
        assert_eq!(served[..99], (0..99).collect::<Vec<_>>(), "in order as long as it may be a burst");
        assert_eq!(served[110..], (221..600).step_by(2).collect::<Vec<_>>(), "then the newest");
        assert!(refused.len() > 250 && refused.is_sorted(), "{refused:?}");
        assert_eq!(pool.queue().len() + refused.len() + served.len(), 600);
        assert_eq!(pool.poll(waits[refused[0] as usize].0, |_| {}), Waiting::Shed);
        assert_eq!(pool.leave(waits[refused[1] as usize].0), None);
        assert_eq!(pool.shed.len(), refused.len() - 2, "whoever knows is forgotten");
        let (held, now) = (Held { claim: REGULAR, time: Some(ms(1_000)) }, Instant::now());
        pool.check_in(connection, generation, held, now);
        (0..8).for_each(|number| drop(pool.enqueue(REGULAR, now, number)));
        assert_eq!(pool.drains_in(), Some(ms(40)), "nobody waits longer");
    }

    #[test]
    fn who_waits_since_before_the_last_look_is_named_once() {
        let mut pool = ready_pool(0);
        let join = |pool: &mut PoolState<Fake, u32>, waiter| {
            pool.enqueue(REGULAR, Instant::now(), waiter);
            pool.begin_patrol()
        };
        assert!(join(&mut pool, 1) && pool.is_patrolled());
        assert!(!join(&mut pool, 2), "looks are made already");
        assert_eq!(pool.patrol(), [1], "the other one has come since");
        assert!(!join(&mut pool, 3));
        assert_eq!([pool.patrol(), pool.patrol(), pool.patrol()], [vec![2], vec![3], vec![]]);
        assert_eq!(pool.waiting(), [1, 2, 3]);
        pool.evict();
        assert!(pool.patrol().is_empty() && !pool.is_patrolled(), "nobody waits");
        assert!(join(&mut pool, 4));
    }

    #[test]
    fn clearing_makes_stale_pauses_and_evicts() {
        let mut pool = ready_pool(2);
        let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("two are available") };
        let CheckOut::Now(other) = pool.check_out(REGULAR) else { panic!("two are available") };
        let ticket = pool.enqueue(REGULAR, Instant::now(), 9).0;
        let behind = pool.enqueue(REGULAR, Instant::now(), 8).0;
        assert_eq!(back(&mut pool, other), [9]);
        assert_eq!(pool.clear(), [8]);
        assert_eq!(pool.poll(ticket, |_| {}), Waiting::Evicted(PoolStatus::Paused), "handed over, and not taken yet");
        assert_eq!(pool.poll(behind, |_| {}), Waiting::Evicted(PoolStatus::Paused));
        assert_eq!(pool.check_out(REGULAR), CheckOut::Unavailable(PoolStatus::Paused));
        assert_eq!(pool.rejoin(ticket, Instant::now(), Instant::now(), 9), Err(PoolStatus::Paused));
        assert!(back(&mut pool, connection).is_empty());
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
            pool.enqueue(REGULAR, Instant::now(), waiter);
        }
        assert!(pool.start_connecting().is_some());
        assert_eq!(pool.start_connecting(), None, "two at once");
    }

    #[test]
    fn a_higher_limit_hands_over_and_a_lower_one_lets_nobody_on_but_takes_nothing() {
        let mut pool = ready_pool(3);
        let now = Instant::now();
        assert!(pool.set_limit(1, now).is_empty());
        let CheckOut::Now(first) = pool.check_out(REGULAR) else { panic!("one may be in use") };
        assert_eq!(pool.check_out(REGULAR), CheckOut::Wait);
        let tickets = [1, 2].map(|waiter| pool.enqueue(REGULAR, now, waiter).0);
        assert_eq!(pool.set_limit(2, now).into_vec(), [1]);
        assert!(matches!(pool.poll(tickets[0], |_| {}), Waiting::Handed(_)));
        assert!(pool.set_limit(1, now).is_empty());
        assert_eq!((pool.busy(), pool.limit()), (2, 1));
        assert!(back(&mut pool, first).is_empty(), "one is in use still");
        assert_eq!(pool.set_limit(100, now).into_vec(), [2]);
        assert_eq!(pool.limit(), BOUNDS.max_in_flight);
    }

    #[test]
    fn who_waits_for_data_does_not_count_against_the_limit() {
        let mut pool = ready_pool(3);
        assert!(pool.set_limit(1, Instant::now()).is_empty());
        assert!(matches!(pool.check_out(Lane::Await.into()), CheckOut::Now(_)));
        assert!(matches!(pool.check_out(REGULAR), CheckOut::Now(_)), "a server is not busy with who waits");
        assert_eq!((pool.busy(), pool.check_out(REGULAR)), (1, CheckOut::Wait));
    }

    #[test]
    fn another_discipline_is_in_force_at_once() {
        let (mut pool, start) = (ready_pool(0), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let discipline =
            QueueDiscipline::Codel { target: Duration::from_millis(20), interval: Duration::from_millis(500) };
        let refused = |pool: &mut PoolState<Fake, u32>, millis| pool.enqueue(REGULAR, at(millis), 0).1.len();
        assert_eq!([0, 600, 1_200].map(|millis| refused(&mut pool, millis)), [0; 3], "in order of arrival nobody is");
        pool.set_bounds(PoolBounds { discipline, ..BOUNDS }, 4, at(1_200));
        refused(&mut pool, 1_300);
        // Other bounds with the same discipline do not begin anew to look at the queue.
        pool.set_bounds(PoolBounds { discipline, max_pool_size: 3, ..BOUNDS }, 4, at(1_300));
        assert_eq!(refused(&mut pool, 1_701), 4, "whoever has waited longer than 40 ms");
        pool.set_bounds(BOUNDS, 4, at(1_701));
        assert_eq!([1_800, 2_400, 3_000].map(|millis| refused(&mut pool, millis)), [0; 3]);
    }

    #[test]
    fn a_smaller_pool_ends_what_was_used_longest_ago_and_what_is_in_use_when_it_is_back() {
        let (mut pool, now) = (ready_pool(4), Instant::now());
        let CheckOut::Now(busy) = pool.check_out(REGULAR) else { panic!("four are available") };
        assert!(!pool.is_over_bound());
        assert!(pool.set_bounds(PoolBounds { max_pool_size: 2, ..BOUNDS }, 9, now).is_empty());
        assert_eq!((pool.available(), pool.limit()), (&[(2, 0)][..], 4));
        assert_eq!(pool.take_discarded(), [(0, 0), (1, 0)]);
        pool.set_bounds(PoolBounds { max_pool_size: 0, ..BOUNDS }, 1, now);
        assert!(pool.is_over_bound() && pool.available().is_empty());
        assert_eq!(pool.limit(), 1);
        back(&mut pool, busy);
        assert_eq!(pool.take_discarded(), [(2, 0), (3, 0)]);
        assert!(!pool.is_over_bound(), "what is closing is on its way out");
        assert_eq!(pool.counts(), PoolCounts { closing: 4, ..PoolCounts::default() });
    }

    #[test]
    fn when_all_is_to_end_nobody_who_waits_is_evicted() {
        let (mut pool, now) = (ready_pool(2), Instant::now());
        let CheckOut::Now(busy) = pool.check_out(REGULAR) else { panic!("two are available") };
        let pending = pool.start_extra().unwrap();
        pool.end_all();
        assert_eq!((pool.generation(), pool.available().len()), (1, 0));
        let ticket = pool.enqueue(REGULAR, now, 5).0;
        assert!(back(&mut pool, busy).is_empty() && pool.connected((7, pending), pending, now).is_empty());
        assert_eq!(pool.take_discarded(), [(0, 0), (1, 0), (7, 0)]);
        assert_eq!(pool.poll(ticket, |_| {}), Waiting::Queued);
        pool.end_all();
        assert_eq!(pool.generation(), 2, "no two are the same");
    }

    #[test]
    fn whoever_rejoins_is_served_at_once_if_something_is_there() {
        let (mut pool, now) = (ready_pool(1), Instant::now());
        let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("one is available") };
        let [first, second] = [1, 2].map(|waiter| pool.enqueue(REGULAR, now, waiter).0);
        assert_eq!(back(&mut pool, connection), [1]);
        let Waiting::Handed(dead) = pool.poll(first, |_| {}) else { panic!("it was woken") };
        assert!(pool.rejoin(first, now, now, 3).unwrap().is_empty(), "nothing is free");
        assert_eq!(back(&mut pool, dead), [3], "before the second");
        assert_eq!(pool.poll(second, |waiter| *waiter = 4), Waiting::Queued);
        assert_eq!(pool.waiting(), [4], "its waker was renewed");
        let connection = pool.leave(first).unwrap();
        assert_eq!(pool.leave(second), None);
        back(&mut pool, connection);
        assert_eq!(pool.rejoin(first, now, now, 6).unwrap().into_vec(), [6]);
    }

    #[test]
    fn a_pool_is_ready_once_and_is_opened_again_only_while_something_of_it_is_left() {
        let mut pool: PoolState<Fake, u32> = PoolState::new(BOUNDS);
        assert_eq!(pool.status(), PoolStatus::Paused);
        assert!(pool.ready() && !pool.ready());
        assert_eq!(pool.status(), PoolStatus::Ready);
        assert!(!pool.reopen(), "it is open");
        let generation = pool.start_extra().unwrap();
        pool.connected((0, generation), generation, Instant::now());
        let CheckOut::Now(busy) = pool.check_out(REGULAR) else { panic!("one is available") };
        pool.enqueue(REGULAR, Instant::now(), 3);
        assert_eq!((pool.close(), pool.generation()), (vec![3], 1));
        assert!(!pool.ready() && pool.start_extra().is_none() && pool.start_recheck().is_none(), "closed is for good");
        assert_eq!(pool.check_out(REGULAR), CheckOut::Unavailable(PoolStatus::Closed));
        assert!(pool.reopen() && pool.status() == PoolStatus::Paused);
        back(&mut pool, busy);
        assert_eq!(pool.take_discarded(), [(0, 0)], "what is from before is stale");
        pool.closed();
        pool.close();
        assert!(!pool.reopen(), "nobody looks after it any more");
    }

    #[test]
    fn clearing_a_closed_pool_leaves_it_closed_and_each_time_makes_stale() {
        let mut pool = ready_pool(1);
        pool.clear();
        pool.clear();
        assert_eq!((pool.generation(), pool.status()), (2, PoolStatus::Paused));
        pool.close();
        pool.clear();
        assert_eq!((pool.generation(), pool.status()), (4, PoolStatus::Closed));
    }

    #[test]
    fn what_finds_a_server_back_waits_for_no_other_attempt() {
        let mut pool = ready_pool(0);
        assert!(pool.has_room());
        assert_eq!([(); 3].map(|()| pool.start_extra().is_some()), [true, true, false], "two at once");
        assert!(!pool.has_room());
        assert_eq!([(); 3].map(|()| pool.start_recheck().is_some()), [true, true, false], "four altogether");
        assert!(pool.is_full());
        pool.connect_failed(UserId::SERVICE);
        assert!(!pool.is_full() && !pool.has_room(), "three are being established");
        pool.connect_broken(UserId::SERVICE);
        assert_eq!((pool.counts().pending, pool.counts().closing), (2, 1));
        pool.connect_failed(UserId::SERVICE);
        assert!(pool.has_room());
    }

    #[test]
    fn connections_are_wanted_up_to_the_minimum_and_for_those_who_wait() {
        let (mut pool, now) = (ready_pool(0), Instant::now());
        pool.set_bounds(PoolBounds { min_pool_size: 2, ..BOUNDS }, 4, now);
        assert!(pool.wants_connection());
        let generation = pool.start_connecting().unwrap().1;
        assert!(pool.wants_connection(), "one is on its way");
        pool.connected((0, generation), generation, now);
        pool.start_connecting();
        assert!(!pool.wants_connection());
        let CheckOut::Now(_busy) = pool.check_out(REGULAR) else { panic!("one is available") };
        assert!(!pool.wants_connection(), "one is in use, one on its way");
        pool.enqueue(REGULAR, now, 1);
        assert!(!pool.wants_connection(), "the one on its way is for that");
        pool.enqueue(REGULAR, now, 2);
        assert!(pool.wants_connection());
        pool.clear();
        assert!(!pool.wants_connection(), "a paused pool asks for nothing");
    }

    #[test]
    fn so_many_are_retired_as_may_be_those_used_longest_ago_first_and_the_least_stays() {
        let mut pool = ready_pool(4);
        let even = |connection: &mut Fake| connection.0.is_multiple_of(2);
        assert_eq!(pool.count_available(|connection| connection.0 > 0), 3);
        assert_eq!(pool.retire(4, 9, |_| true), 0);
        assert_eq!(pool.retire(0, 0, |_| true), 0);
        assert_eq!(pool.retire(0, 1, even), 1);
        assert_eq!(pool.available(), [(1, 0), (2, 0), (3, 0)]);
        assert_eq!(pool.take_discarded(), [(0, 0)]);
        pool.closed();
        let CheckOut::Now(_busy) = pool.check_out(REGULAR) else { panic!("three are available") };
        assert!(pool.start_extra().is_some());
        assert_eq!(pool.retire(3, 9, |_| true), 1, "one in use and one on its way are open as well");
        assert_eq!(pool.available(), [(2, 0)]);
        assert_eq!(pool.retire(0, 9, |_| false), 0);
        assert_eq!(pool.retire(0, 9, even), 1);
        assert_eq!(pool.take_discarded(), [(1, 0), (2, 0)]);
    }

    #[test]
    fn what_the_pool_does_for_itself_has_a_share_and_is_nobodys() {
        let mut pool = ready_pool(4);
        assert!(pool.may_borrow());
        let ping = pool.borrow_available().unwrap();
        assert_eq!(ping, (3, 0));
        assert!(!pool.may_borrow(), "a quarter of four");
        assert!(pool.tenants().all().is_empty());
        let own = Held { claim: Lane::Background.into(), time: Some(Duration::from_secs(1)) };
        pool.check_in(ping, 0, own, Instant::now());
        assert!(pool.may_borrow() && pool.tenants().all().is_empty());
        let CheckOut::Now(busy) = pool.check_out(REGULAR) else { panic!("four are available") };
        assert_eq!(pool.tenants().all()[0].in_use, 1);
        back(&mut pool, busy);
        assert_eq!((pool.tenants().all()[0].in_use, pool.tenants().mean_held()), (0, None));
    }

    #[test]
    fn who_waits_for_data_says_nothing_about_how_long_commands_take() {
        let (mut pool, now) = (ready_pool(2), Instant::now());
        for (lane, expected) in [(Lane::Await, None), (Lane::Regular, Some(Duration::from_secs(3)))] {
            let CheckOut::Now(connection) = pool.check_out(lane.into()) else { panic!("two are available") };
            pool.check_in(connection, 0, Held { claim: lane.into(), time: Some(Duration::from_secs(3)) }, now);
            assert_eq!(pool.tenants().mean_held(), expected, "{lane:?}");
        }
    }

    #[test]
    fn where_other_pools_may_have_the_places_only_what_is_open_is_certain() {
        let mut pool = ready_pool(2);
        assert_eq!(pool.shares().reach, u32::MAX);
        pool.set_bounds(PoolBounds { contended: true, ..BOUNDS }, 4, Instant::now());
        assert_eq!(pool.shares().reach, 2);
        let CheckOut::Now(_busy) = pool.check_out(REGULAR) else { panic!("two are available") };
        assert_eq!(pool.shares().reach, 2, "those in use included");
        pool.transaction_begun(UserId::SERVICE);
        assert_eq!(pool.check_out(REGULAR), CheckOut::Wait, "the other one is kept");
        assert!(matches!(pool.check_out(Lane::Transaction.into()), CheckOut::Now(_)));
    }

    #[test]
    fn a_pool_knows_when_it_is_cramped_and_what_it_can_do_without() {
        let (mut pool, now) = (ready_pool(2), Instant::now());
        let state = |pool: &PoolState<Fake, u32>| {
            (pool.is_cramped(), pool.can_spare_idle(), pool.is_in_need(), pool.can_give())
        };
        assert!(ready_pool(0).is_in_need() && !ready_pool(0).can_give() && !ready_pool(0).can_spare_idle());
        assert_eq!(state(&ready_pool(1)), (false, true, false, false), "the last one is not for others");
        assert_eq!(state(&pool), (false, true, false, true));
        pool.transaction_begun(UserId::SERVICE);
        assert_eq!(state(&pool), (false, true, false, false), "one is kept, and one its own");
        pool.set_limit(2, now);
        assert!(pool.is_cramped(), "all others share one");
        pool.set_bounds(PoolBounds { contended: true, ..BOUNDS }, 4, now);
        assert!(pool.is_cramped(), "two are certain");
        let CheckOut::Now(_busy) = pool.check_out(REGULAR) else { panic!("two are available") };
        assert!(!pool.can_spare_idle(), "what is idle is kept");
        assert_eq!(pool.check_out(REGULAR), CheckOut::Wait);
        pool.enqueue(REGULAR, now, 1);
        assert!(!pool.is_in_need());
        pool.enqueue(Lane::Transaction.into(), now, 2);
        assert!(pool.is_in_need());
        pool.evict();
        pool.transaction_ended(UserId::SERVICE, now);
        assert_eq!(state(&pool), (false, true, false, true));
    }

    #[test]
    fn whoever_waits_sees_to_its_own_time_once_there_are_no_looks_any_more() {
        let mut pool = ready_pool(0);
        assert!(!pool.patrol_has_ended());
        pool.end_patrol();
        assert!(pool.patrol_has_ended());
    }

    proptest! {
        #[test]
        fn no_place_and_no_connection_is_lost(
            max in 1_u8..6, in_flight in 1_u8..6, connecting in 1_u8..4, operations in prop::collection::vec(any::<(u8, u8)>(), 1..400)
        ) {
            model::live([max, in_flight, connecting], &operations);
        }
    }
}
