//! Check-out and check-in around [`PoolState`], and guards that cannot forget either.
//!
//! Establishing and closing take time and belong to `maintain`, waiting for a connection to `checking_out`: nothing here waits.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backoff::Backoff;
pub use super::bound::ClusterBound;
use super::checking_out::CheckingOut;
use super::connection::{Connection, Greeting, Interrupt};
use super::handshake::Dialer;
use super::health::Health;
use super::holders::{Holding, Owned as _};
use super::in_use::{InUse, Replace, Use, Work};
use super::lines;
use super::own::{Observed, OwnConnections};
use super::pool_state::{CheckOut, Held, PoolCounts, PoolState, PoolStatus, Woken};
use super::settings::PoolSettings;
use super::shortage::Shortage;
use super::usage::PoolUsage;
use crate::admission::{Claim, Gradient, Lane};
use crate::auth::{Identity, UserId};
use crate::config::Address;
use crate::tasks::Tasks;
use crate::telemetry::EventKind;
use crate::telemetry::labels::{ConnectionClosed, Label};
use crate::telemetry::metrics::{Metrics, ServerMetrics};

/// Why a command got no connection. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckOutError {
    /// The pool was cleared: the command is to be routed anew.
    #[error("the pool was cleared")]
    Cleared,
    /// The pool is closed: its server has left.
    #[error("the pool is closed")]
    Closed,
    /// Waited too long.
    #[error("no connection became free in time")]
    Timeout,
    /// Waited too long for a queue that stands.
    #[error("the queue stands")]
    Shed,
}

/// How a pool stands, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSnapshot {
    /// Whether it gives out connections.
    pub status: PoolStatus,
    /// Connections by state.
    pub counts: PoolCounts,
    /// Bounds in force.
    pub min_pool_size: u32,
    /// Bounds in force.
    pub max_pool_size: u32,
    /// Commands in flight at once, at most; those that wait for data come on top where it adapts.
    pub limit: u32,
    /// Connections that may be in use at once as things stand, those of commands that wait for data included.
    pub most_in_use: u32,
    /// Why no further one may; `None` while one may.
    pub shortage: Option<Shortage>,
    /// Connections in use by lane, in the order of [`Label::ALL`].
    pub in_use: [u32; <Lane as Label>::ALL.len()],
    /// Waiting commands by lane, in the order of [`Label::ALL`].
    pub waiting: [usize; <Lane as Label>::ALL.len()],
    /// When the one that waits longest began.
    pub oldest: Option<Instant>,
    /// How long those who wait now will take, at the pace of late; `None` while nothing is known of that.
    pub drains_in: Option<Duration>,
    /// Established so far.
    pub created: u64,
    /// Why the last attempt to connect failed, if none succeeded since.
    pub last_connect_error: Option<String>,
}

/// What one tenant has of a pool, and how it fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantSnapshot {
    /// Which, among those of the cluster.
    pub id: u16,
    /// Connections in use.
    pub active: u32,
    /// Commands that wait.
    pub waiting: usize,
    /// Commands that got a connection.
    pub served: u64,
    /// How long half of them waited for it at most.
    pub wait_median: Duration,
    /// How long 99 of 100 waited at most.
    pub wait_p99: Duration,
    /// How long it held its connections of late, on average.
    pub held: Duration,
}

/// What one user has of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserSnapshot {
    /// Which.
    pub user: UserId,
    /// Its connections.
    pub holding: Holding,
    /// Its commands that wait.
    pub waiting: usize,
}

/// Hears what a server says when a connection to it is established.
pub type Greeted = dyn Fn(&Address, &Greeting) + Send + Sync;

/// Hears which user a server does not take; true when that is the end of its log-in with us.
pub type LogInRefused = dyn Fn(&Address, &Arc<Identity>) -> bool + Send + Sync;

/// What a pool is made of.
pub struct PoolParts {
    /// The server.
    pub address: Address,
    /// What it begins with.
    pub settings: PoolSettings,
    /// Makes connections.
    pub dialer: Arc<dyn Dialer>,
    /// Bound over all servers of the cluster.
    pub cluster_bound: Arc<ClusterBound>,
    /// The server's breaker.
    pub health: Arc<Health>,
    /// Hears what servers say when a connection is established.
    pub greeted: Arc<Greeted>,
    /// Hears of users that a server does not take.
    pub refused: Arc<LogInRefused>,
    /// Where maintenance runs.
    pub tasks: Tasks,
    /// Metrics of the server.
    pub server_metrics: Arc<ServerMetrics>,
    /// Metrics of all.
    pub metrics: Arc<Metrics>,
}

/// The connections of one server. Clones share them.
#[derive(Clone)]
pub struct Pool(pub(super) Arc<Shared>);

pub(super) type State = PoolState<Box<Connection>, Waker>;

pub(super) struct Shared {
    pub(super) parts: PoolParts,
    pub(super) settings: ArcSwap<PoolSettings>,
    state: Mutex<State>,
    /// Where the bound on connections in use adapts. Locked before `state`, so that its last word is the one in force.
    pub(super) gradient: Option<Mutex<Gradient>>,
    /// No more may be in use: saves a look for all others.
    two_at_most: AtomicBool,
    /// Tells the maintenance task that there is something to do.
    pub(super) work: Notify,
    pub(super) pace: Mutex<Pace>,
    open: Mutex<Vec<OpenConnection>>,
    usage: PoolUsage,
    /// Beside the pool: those of clients whose commands are only observed.
    pub(super) observed: Observed,
    last_id: AtomicU64,
    /// Checked out since the last ping.
    pub(super) used: AtomicBool,
    /// The server is to be greeted now, whatever back-off and breaker say.
    pub(super) recheck: AtomicBool,
    /// It is being greeted.
    pub(super) rechecking: AtomicBool,
    /// One that is to be replaced came back, and was kept until its successor is there.
    pub(super) kept: AtomicBool,
    /// The next such one goes when it comes back: its successor is there, or has no room beside it.
    pub(super) let_go: AtomicBool,
    /// New, or back after an outage, and not warm yet: other servers that suit as well get the load.
    pub(super) recovering: AtomicBool,
}

/// What can be seen of a connection, and done to it, while somebody else has it.
struct OpenConnection {
    id: u64,
    interrupt: Arc<Interrupt>,
    in_use: Arc<InUse>,
    /// Whose own it is, if it is not of the pool.
    owner: Option<Weak<OwnConnections>>,
}

/// When the next attempt to connect may be made.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) backoff: Backoff,
    pub(super) not_before: Instant,
    pub(super) last_error: Option<String>,
}

impl Pool {
    /// A paused pool; `maintain::run` has to be spawned for it.
    pub fn new(parts: PoolParts) -> Self {
        let settings = parts.settings.clone();
        let (max_in_flight, gradient) = (settings.most_in_flight(), settings.gradient());
        let limit = gradient.as_ref().map_or(max_in_flight, Gradient::limit);
        let mut state = PoolState::new(settings.bounds(parts.cluster_bound.is_limited()));
        let nobody = state.set_limit(limit, Instant::now());
        debug_assert!(nobody.is_empty(), "nobody waits for a pool that is being made");
        parts.server_metrics.connections_max.set(i64::from(settings.config.max_pool_size));
        parts.server_metrics.in_flight_limit.set(i64::from(limit));
        let backoff = Backoff::new(settings.reconnect);
        lines::pool_created(&parts);
        let observed = Observed::new(settings.config.max_connecting);
        Self(Arc::new(Shared {
            parts,
            settings: ArcSwap::from_pointee(settings),
            state: Mutex::new(state),
            gradient: gradient.map(Mutex::new),
            two_at_most: AtomicBool::new(max_in_flight <= 2),
            work: Notify::new(),
            pace: Mutex::new(Pace { backoff, not_before: Instant::now(), last_error: None }),
            open: Mutex::default(),
            usage: PoolUsage::default(),
            observed,
            last_id: AtomicU64::new(0),
            used: AtomicBool::new(false),
            recheck: AtomicBool::new(false),
            rechecking: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            let_go: AtomicBool::new(false),
            recovering: AtomicBool::new(true),
        }))
    }

    /// Takes an idle connection if there is one and nobody was first.
    ///
    /// # Errors
    /// [`CheckOutError::Cleared`] or [`CheckOutError::Closed`].
    pub fn try_check_out(
        &self,
        claim: impl Into<Claim>,
        now: Instant,
    ) -> Result<Option<PooledConnection>, CheckOutError> {
        let claim = claim.into();
        lines::check_out_started(&self.0.parts.address);
        loop {
            let taken = self.0.state().check_out(claim);
            match taken {
                CheckOut::Now(connection) => {
                    if let Some(connection) = self.vet(connection, claim, now) {
                        return Ok(Some(connection));
                    }
                }
                CheckOut::Wait => return Ok(None),
                CheckOut::Unavailable(status) => {
                    let error = unavailable(status);
                    lines::check_out_failed(&self.0.parts.address, &error, now);
                    return Err(error);
                }
            }
        }
    }

    /// Waits for a connection, first come, first served within the rules of the lanes.
    ///
    /// # Errors
    /// [`CheckOutError`]; nothing was sent then.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped leaves the queue, and passes on what was handed to it meanwhile.
    pub fn check_out(&self, claim: impl Into<Claim>, deadline: Instant) -> CheckingOut<'_> {
        lines::check_out_started(&self.0.parts.address);
        CheckingOut::new(self, claim.into(), Instant::now(), deadline)
    }

    /// As [`Pool::check_out`], for a command that waits since then, as [`Pool::try_check_out`] had none for it.
    pub fn check_out_since(&self, claim: Claim, since: Instant, deadline: Instant) -> CheckingOut<'_> {
        CheckingOut::new(self, claim, since, deadline)
    }

    /// Wakes who waits, to look at what has changed around them; all keep their places.
    pub fn wake_waiting(&self) {
        let waiting = self.0.state().waiting();
        waiting.into_iter().for_each(Waker::wake);
    }

    /// A command was answered after `took`, and its connection is in use still. Where the limit adapts, this is what it
    /// learns from; who waits for data is meant to take long.
    pub fn answered(&self, lane: Lane, took: Duration, now: Instant) {
        let Some(gradient) = self.0.gradient.as_ref().filter(|_| lane != Lane::Await) else { return };
        let mut gradient = lock(gradient);
        let busy = self.0.state().busy();
        if !gradient.answered(took, busy, now) {
            return;
        }
        let limit = gradient.limit();
        let woken = self.0.state().set_limit(limit, now);
        drop(gradient);
        self.0.parts.server_metrics.in_flight_limit.set(i64::from(limit));
        woken.into_iter().for_each(Waker::wake);
        // For those who wait there may be one more to establish.
        self.0.work.notify_one();
    }

    /// True when one of two connections is kept for a transaction: who waits for data must not have the other one for long.
    pub fn is_cramped(&self) -> bool {
        self.0.two_at_most.load(Ordering::Relaxed) && self.0.state().is_cramped()
    }

    /// A transaction begins on the server, of that user.
    pub fn transaction_begun(&self, user: UserId) -> OpenTransaction {
        self.0.state().transaction_begun(user);
        OpenTransaction(self.clone(), user)
    }

    /// Lets check-outs pass; the server is known to be up.
    pub fn ready(&self) {
        if self.0.state().ready() {
            lines::pool_ready(&self.0.parts.address);
        }
        self.0.work.notify_one();
    }

    /// A good heartbeat: back-off starts over. After failures the next attempt still comes at a random time within the
    /// shortest wait: other proxies have heard the same heartbeat.
    pub fn connect_soon(&self) {
        let shared = &self.0;
        let after_outage = shared.is_after_outage();
        let mut pace = lock(&shared.pace);
        pace.backoff.reset();
        let wait =
            if after_outage || pace.last_error.is_some() { pace.backoff.next(fastrand::f64()) } else { Duration::ZERO };
        pace.not_before = pace.not_before.min(Instant::now() + wait);
        drop(pace);
        shared.work.notify_one();
    }

    /// True while there are connections that commands may be sent over, busy or not.
    pub fn has_connections(&self) -> bool {
        let state = self.0.state();
        let counts = state.counts();
        state.status() == PoolStatus::Ready && counts.available + counts.in_use > 0
    }

    /// True until the pool of a server that is new, or back after an outage, is warm.
    pub fn is_recovering(&self) -> bool {
        self.0.recovering.load(Ordering::Relaxed)
    }

    /// Greets the server now, over a connection that counts like all: somebody waits for a server that is suspect or
    /// down.
    pub fn recheck(&self) {
        self.0.recheck.store(true, Ordering::Relaxed);
        self.0.work.notify_one();
    }

    /// The server is lost: makes all connections stale and evicts who waits, to be routed anew. `interrupt_in_use` also fails the commands in
    /// flight: for a server that monitoring found hanging.
    pub fn clear(&self, interrupt_in_use: bool) {
        self.0.recovering.store(true, Ordering::Relaxed);
        self.clear_if(|_| true);
        if interrupt_in_use {
            self.0.interrupt();
        }
    }

    /// As [`Pool::clear`], unless the failed connection was of an older generation: that failure is known already.
    pub fn clear_generation(&self, generation: u64) {
        // One look and one clear under one lock: of two failures side by side, the second is not news.
        self.clear_if(|state| state.generation() == generation);
    }

    fn clear_if(&self, current: impl FnOnce(&State) -> bool) {
        let mut was_ready = false;
        self.end_generation(ConnectionClosed::Stale, |state| {
            was_ready = state.status() == PoolStatus::Ready;
            current(state).then(|| state.clear())
        });
        if was_ready && self.0.state().status() != PoolStatus::Ready {
            let text = "all connections were given up, and who waited was routed anew";
            self.0.parts.server_metrics.happened(EventKind::PoolCleared, text);
        }
    }

    /// A command that was sent then got no answer in time. Idle connections that carried nothing since are closed, as they
    /// may be as dead as the one it was sent over: better than to be handed out and to fail one command after the other.
    pub fn doubt_idle_since(&self, sent: Instant) {
        self.0.retire(0, u32::MAX, ConnectionClosed::Error, |connection| connection.last_used < sent);
        self.0.work.notify_one();
    }

    /// True while a connection of that generation is not stale.
    pub fn is_current(&self, generation: u64) -> bool {
        self.0.state().generation() == generation
    }

    /// Has all connections of the service replaced, one by one, each once there is another one that has logged in.
    pub fn renew(&self) {
        self.0.replace(Replace::OfService);
    }

    /// A user has to log in anew: its connections end, and who waits for one is told.
    pub fn revoke(&self, user: UserId) {
        let is_of_user = |connection: &mut Connection| connection.user() == user && connection.is_revoked();
        self.0.retire(0, u32::MAX, ConnectionClosed::Revoked, is_of_user);
        let evicted = self.0.state().evict_user(user);
        self.wake(evicted);
    }

    /// No connection is established for that user until then.
    pub(super) fn hold_off(&self, user: UserId, until: Instant) {
        self.0.state().hold_off(user, until);
    }

    /// Evicts who waits, so that they are routed anew; connections stay.
    pub fn evict(&self) {
        let evicted = self.0.state().evict();
        self.wake(evicted);
    }

    /// Ends the pool; connections in use end when they come back.
    pub fn close(&self) {
        self.end_generation(ConnectionClosed::PoolClosed, |state| Some(state.close()));
    }

    /// The server is back while connections of before are still open: they count against the bound, so the same pool goes
    /// on. False when there are none, and the pool has ended.
    pub fn reopen(&self) -> bool {
        let reopened = self.0.state().reopen();
        if reopened {
            self.0.recovering.store(true, Ordering::Relaxed);
        }
        reopened
    }

    /// True once a closed pool has no connection left.
    pub fn has_ended(&self) -> bool {
        let state = self.0.state();
        state.status() == PoolStatus::Closed && state.counts().total() == 0
    }

    /// How the pool stands.
    pub fn snapshot(&self) -> PoolSnapshot {
        let last_connect_error = lock(&self.0.pace).last_error.clone();
        let state = self.0.state();
        let (counts, bounds) = (state.counts(), state.bounds());
        PoolSnapshot {
            status: state.status(),
            counts,
            min_pool_size: bounds.min_pool_size,
            max_pool_size: bounds.max_pool_size,
            limit: state.limit(),
            most_in_use: state.most_in_use(),
            shortage: Shortage::of_pool(&state),
            in_use: std::array::from_fn(|lane| state.lanes_in_use().of(Lane::ALL[lane])),
            waiting: std::array::from_fn(|lane| state.queue().lane_len(Lane::ALL[lane])),
            oldest: state.queue().oldest(),
            drains_in: state.drains_in(),
            created: self.0.last_id.load(Ordering::Relaxed).saturating_sub(self.0.observed.created()),
            last_connect_error,
        }
    }

    /// The tenants that have used it.
    pub fn tenants(&self) -> Vec<TenantSnapshot> {
        let state = self.0.state();
        let mut waiting = BTreeMap::<u16, usize>::new();
        for (id, count) in state.queue().tenants() {
            *waiting.entry(id).or_default() += count;
        }
        let used = (0..).zip(state.tenants().all()).map(|(id, used)| TenantSnapshot {
            id,
            active: used.in_use,
            waiting: waiting.remove(&id).unwrap_or_default(),
            served: used.waits.count(),
            wait_median: used.waits.quantile(0.5).unwrap_or_default(),
            wait_p99: used.waits.quantile(0.99).unwrap_or_default(),
            held: used.held.get().unwrap_or_default(),
        });
        let mut all: Vec<TenantSnapshot> = used.filter(|used| used.served > 0 || used.waiting > 0).collect();
        // Those that nobody has served yet.
        all.extend(waiting.into_iter().map(|(id, waiting)| TenantSnapshot {
            id,
            waiting,
            ..TenantSnapshot::default()
        }));
        all
    }

    /// The users that have connections, or wait for one.
    pub fn users(&self) -> Vec<UserSnapshot> {
        let state = self.0.state();
        let waiting = |user| state.queue().of(user).map_or(0, |queue| queue.len());
        let snapshot = |(user, holding)| UserSnapshot { user, holding, waiting: waiting(user) };
        let without = state.queue().users().map(|(user, _)| (user, Holding::default()));
        let without = without.filter(|(user, _)| state.holders().of(*user) == Holding::default());
        state.holders().all().chain(without).map(snapshot).collect()
    }

    /// The connections in use of which it was told what for.
    pub fn uses(&self, now: Instant) -> Vec<Use> {
        let open = lock(&self.0.open);
        let pooled = open.iter().filter(|connection| connection.owner.is_none());
        pooled.filter_map(|connection| connection.in_use.look(now)).collect()
    }

    /// As [`Pool::uses`], of those that belong to one client each.
    pub fn own_uses(&self, now: Instant) -> Vec<Use> {
        let open = lock(&self.0.open);
        let own = open.iter().filter(|connection| connection.owner.is_some());
        own.filter_map(|connection| connection.in_use.look(now)).collect()
    }

    /// How the pool has been used.
    pub fn usage(&self) -> &PoolUsage {
        &self.0.usage
    }

    /// Gives a connection that stands between two messages to the pool, by [`PoolState::check_in`] or
    /// [`PoolState::connected`], and wakes who gets it. A stale one ends here, and one that gives way to another user's.
    pub(super) fn give_back(
        &self,
        connection: Box<Connection>,
        by: impl FnOnce(&mut State, Box<Connection>, u64) -> Woken<Waker>,
    ) {
        let generation = connection.generation;
        let (woken, ended) = {
            let mut state = self.0.state();
            let reason = match state.status() {
                _ if generation == state.generation() && state.is_over_bound() => ConnectionClosed::Shrunk,
                _ if generation == state.generation() => ConnectionClosed::Turnover,
                PoolStatus::Closed => ConnectionClosed::PoolClosed,
                PoolStatus::Paused | PoolStatus::Ready => ConnectionClosed::Stale,
            };
            let closing = state.counts().closing;
            let woken = by(&mut state, connection, generation);
            (woken, (state.counts().closing > closing).then_some(reason))
        };
        woken.into_iter().for_each(Waker::wake);
        if let Some(reason) = ended {
            self.0.parts.server_metrics.closed(reason, 1);
            self.0.work.notify_one();
        }
    }

    /// True when a pool without any connection needs a place of the cluster's bound and this one can spare it. Not asked
    /// twice for the same place.
    fn owes_place(&self) -> bool {
        let bound = &self.0.parts.cluster_bound;
        bound.owes_place() && self.0.state().can_give() && bound.give_place()
    }

    /// True while somebody waits and the bound leaves room for the connection that is established for him: until that is
    /// there, an old one is better than none.
    fn replaces_first(&self) -> bool {
        let state = self.0.state();
        !state.queue().is_empty() && state.counts().total() < state.bounds().max_pool_size
    }

    /// True when a connection that is to be replaced goes as it comes back. One of the service stays until its successor is
    /// there, which the maintenance task sees to: a server that lets nobody in any more must not cost those that work. Where
    /// the bound has no room for both it goes first, and the others stay until the pool is full again. Those of users are not
    /// kept for later; they go one by one.
    fn lets_go(&self, user: UserId) -> bool {
        let (counts, most) = {
            let state = self.0.state();
            (state.counts(), state.bounds().max_pool_size)
        };
        let one_by_one = counts.pending == 0 && counts.closing == 0;
        if user != UserId::SERVICE {
            return one_by_one;
        }
        let goes = self.0.let_go.swap(false, Ordering::Relaxed) || one_by_one && counts.total() >= most;
        if !goes {
            self.0.kept.store(true, Ordering::Relaxed);
        }
        goes
    }

    fn end_generation(&self, reason: ConnectionClosed, end: impl FnOnce(&mut State) -> Option<Vec<Waker>>) {
        let (evicted, closed) = {
            let mut state = self.0.state();
            let before = state.counts().closing;
            let evicted = end(&mut state);
            (evicted, state.counts().closing - before)
        };
        self.0.parts.server_metrics.closed(reason, closed);
        if evicted.is_some() {
            match reason {
                ConnectionClosed::PoolClosed => lines::pool_closed(&self.0.parts.address),
                _ => lines::pool_cleared(&self.0.parts.address),
            }
        }
        self.wake(evicted.unwrap_or_default());
    }

    fn wake(&self, evicted: Vec<Waker>) {
        evicted.into_iter().for_each(Waker::wake);
        self.0.work.notify_one();
    }

    /// Wraps a connection that was just taken for a command, or discards it because it has died meanwhile.
    pub(super) fn vet(&self, connection: Box<Connection>, claim: Claim, now: Instant) -> Option<PooledConnection> {
        let guard = self.guard_alive(connection, claim, now)?;
        if !self.0.used.load(Ordering::Relaxed) {
            self.0.used.store(true, Ordering::Relaxed);
        }
        lines::checked_out(&self.0.parts.address, &guard);
        Some(guard)
    }

    fn guard_alive(&self, connection: Box<Connection>, claim: Claim, now: Instant) -> Option<PooledConnection> {
        let mut guard = PooledConnection::new(connection, claim, Some(now), self);
        if guard.is_alive() {
            return Some(guard);
        }
        // Dead before it was of use to anybody.
        guard.taken = Some((claim, None));
        guard.discard(ConnectionClosed::Error);
        None
    }

    /// As [`Pool::borrow_available`], within the share of what the proxy does for itself.
    pub(super) fn borrow_spare(&self) -> Option<PooledConnection> {
        let allowed = {
            let state = self.0.state();
            state.status() == PoolStatus::Ready && state.may_borrow()
        };
        if allowed { self.borrow_available() } else { None }
    }

    /// Takes an available connection that is alive for the pool's own use: a probe or a ping.
    pub(super) fn borrow_available(&self) -> Option<PooledConnection> {
        loop {
            let connection = self.0.state().borrow_available()?;
            let now = Instant::now();
            if let Some(guard) = self.guard_alive(connection, Lane::Background.into(), now) {
                guard.in_use().begin(Work::OWN, now);
                return Some(guard);
            }
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("address", &self.0.parts.address).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What is in force now.
    pub(super) fn settings(&self) -> arc_swap::Guard<Arc<PoolSettings>> {
        self.settings.load()
    }

    /// Has connections replaced, one by one; returns of how many.
    pub(super) fn replace(&self, whose: Replace) -> usize {
        self.let_go.store(false, Ordering::Relaxed);
        let open = lock(&self.open);
        open.iter().for_each(|connection| connection.in_use.replace(whose));
        open.len()
    }

    /// Fails the commands that are in flight now.
    pub(super) fn interrupt(&self) {
        lock(&self.open).iter().for_each(|connection| connection.interrupt.raise());
    }

    pub(super) fn set_two_at_most(&self, most_in_flight: u32) {
        self.two_at_most.store(most_in_flight <= 2, Ordering::Relaxed);
    }

    /// True for a pool that lost its server and is not warm again.
    pub(super) fn is_after_outage(&self) -> bool {
        self.recovering.load(Ordering::Relaxed) && self.state().generation() > 0
    }

    /// Nothing more is to be established: a pool with its minimum is warm.
    pub(super) fn settle(&self) {
        if !self.recovering.load(Ordering::Relaxed) {
            return;
        }
        let state = self.state();
        let counts = state.counts();
        let warm = counts.available + counts.in_use >= state.bounds().min_pool_size;
        if warm && state.status() == PoolStatus::Ready && !state.wants_connection() {
            self.recovering.store(false, Ordering::Relaxed);
        }
    }

    /// Numbers a connection that was just established, and remembers how to interrupt it.
    /// One of a client's own is counted elsewhere.
    pub(super) fn register(&self, connection: &mut Connection, owner: Option<Weak<OwnConnections>>) {
        connection.id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (id, interrupt, in_use) = (connection.id, connection.interrupt(), connection.in_use().clone());
        if owner.is_none() {
            self.parts.server_metrics.connections_created.inc();
        }
        lock(&self.open).push(OpenConnection { id, interrupt, in_use, owner });
    }

    /// The clients that have connections of their own.
    pub(super) fn owners(&self) -> Vec<Arc<OwnConnections>> {
        lock(&self.open).iter().filter_map(|connection| connection.owner.as_ref()?.upgrade()).collect()
    }

    /// It is closed.
    pub(super) fn unregister(&self, id: u64) {
        lock(&self.open).retain(|connection| connection.id != id);
    }

    /// Closes up to `most` available connections that `expired` names, for that reason, and leaves `least` open.
    pub(super) fn retire(
        &self,
        least: u32,
        most: u32,
        reason: ConnectionClosed,
        mut expired: impl FnMut(&mut Connection) -> bool,
    ) -> u32 {
        let retired = self.state().retire(least, most, |connection| {
            let over = expired(connection);
            if over {
                connection.closed_for = Some(reason);
            }
            over
        });
        self.parts.server_metrics.closed(reason, retired);
        retired
    }

    /// Why a connection ends that nobody has said a reason for.
    pub(super) fn reason_to_close(&self, connection: &Connection) -> ConnectionClosed {
        let state = self.state();
        match state.status() {
            _ if connection.generation == state.generation() => ConnectionClosed::Turnover,
            PoolStatus::Closed => ConnectionClosed::PoolClosed,
            PoolStatus::Paused | PoolStatus::Ready => ConnectionClosed::Stale,
        }
    }

    /// The connection is gone.
    pub(super) fn forget(&self, id: u64) {
        self.unregister(id);
        self.freed();
    }

    /// A place is free that something which is closed now had taken.
    pub(super) fn freed(&self) {
        self.state().closed();
        self.parts.cluster_bound.release();
        self.work.notify_one();
    }
}

/// Locks state whose critical sections are total method calls.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // One that panicked all the same left nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn unavailable(status: PoolStatus) -> CheckOutError {
    match status {
        PoolStatus::Closed => CheckOutError::Closed,
        PoolStatus::Paused | PoolStatus::Ready => CheckOutError::Cleared,
    }
}

/// A transaction that is open on the server of a pool: one of its connections is kept for such ones, as far as there are
/// several. Dropping it says that the transaction has ended.
pub struct OpenTransaction(Pool, UserId);

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        let woken = self.0.0.state().transaction_ended(self.1, Instant::now());
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A connection that is checked out. Dropping it checks it in between two messages, and closes it in the middle of one.
pub struct PooledConnection {
    connection: Option<Box<Connection>>,
    pool: Pool,
}

impl PooledConnection {
    pub(super) fn new(mut connection: Box<Connection>, claim: Claim, since: Option<Instant>, pool: &Pool) -> Self {
        connection.taken = Some((claim, since));
        let usage = if connection.owner.is_some() { &pool.0.observed.usage } else { &pool.0.usage };
        usage.began();
        Self { connection: Some(connection), pool: pool.clone() }
    }

    /// Gives the connection up.
    pub fn discard(mut self, reason: ConnectionClosed) {
        if let Some(connection) = self.connection.take() {
            self.give_up(connection, reason, Instant::now());
        }
    }

    /// True for one that belongs to the client whose command it carries.
    pub fn is_own(&self) -> bool {
        self.owner.is_some()
    }

    fn give_up(&self, mut connection: Box<Connection>, reason: ConnectionClosed, now: Instant) {
        if connection.owner.take().is_some() {
            return self.pool.give_own_up(connection, reason, now);
        }
        self.pool.0.usage.ended(connection.in_use().end(now));
        let held = held(&mut connection, now);
        self.pool.0.parts.server_metrics.closed(reason, 1);
        connection.closed_for = Some(reason);
        let woken = self.pool.0.state().discard(connection, held, now);
        woken.into_iter().for_each(Waker::wake);
        self.pool.0.work.notify_one();
    }
}

/// What a connection that comes back was taken for.
fn held(connection: &mut Connection, now: Instant) -> Held {
    let (claim, since) = connection.taken.take().expect("it was told when the guard was made");
    Held { claim, time: since.map(|since| now.duration_since(since)) }
}

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_deref().expect("taken only by what consumes the guard")
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_deref_mut().expect("taken only by what consumes the guard")
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        lines::checked_in(&self.pool.0.parts.address, &connection);
        let now = Instant::now();
        if !connection.is_between_messages() {
            return self.give_up(connection, ConnectionClosed::Error, now);
        }
        if let Some(owner) = connection.owner.take() {
            return self.pool.take_back(connection, &owner, now);
        }
        if now >= connection.expires && !self.pool.replaces_first() {
            return self.give_up(connection, ConnectionClosed::Lifetime, now);
        }
        if connection.in_use().is_to_be_replaced(connection.user()) && self.pool.lets_go(connection.user()) {
            return self.give_up(connection, ConnectionClosed::Lifetime, now);
        }
        if connection.is_revoked() {
            return self.give_up(connection, ConnectionClosed::Revoked, now);
        }
        if self.pool.owes_place() {
            return self.give_up(connection, ConnectionClosed::Idle, now);
        }
        self.pool.0.usage.ended(connection.in_use().end(now));
        connection.clear_reply();
        connection.last_used = now;
        let held = held(&mut connection, now);
        self.pool
            .give_back(connection, |state, connection, generation| state.check_in(connection, generation, held, now));
    }
}

impl std::fmt::Debug for PooledConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PooledConnection").field(&self.connection).finish()
    }
}

#[cfg(test)]
mod storm;
#[cfg(test)]
mod tests;
