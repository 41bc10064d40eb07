//! Check-out and check-in around [`PoolState`], and guards that cannot forget either.
//!
//! Establishing and closing take time and belong to `maintain`, waiting for a connection to `checking_out`: nothing here waits.

mod guards;
mod snapshot;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use self::guards::{OpenTransaction, PooledConnection};
pub use self::snapshot::{PoolSnapshot, TenantSnapshot, UserSnapshot};
use super::backoff::Backoff;
pub use super::bound::ClusterBound;
use super::checking_out::CheckingOut;
use super::connection::{Connection, Greeting, Interrupt};
use super::handshake::Dialer;
use super::health::Health;
use super::holders::Owned as _;
use super::in_use::{InUse, Replace, Work};
use super::lines;
use super::own::{Observed, OwnConnections};
use super::pool_state::{CheckOut, PoolState, PoolStatus, Woken};
use super::settings::PoolSettings;
use super::usage::PoolUsage;
use crate::admission::{Claim, Gradient, Lane};
use crate::auth::{Identity, UserId};
use crate::config::Address;
use crate::tasks::Tasks;
use crate::telemetry::EventKind;
use crate::telemetry::labels::ConnectionClosed;
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
