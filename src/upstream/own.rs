//! Connections that belong to one client. While its commands are only observed, each goes over one that nobody else uses, as
//! without a proxy: established when it is first needed, kept as long as the client is there, never waited for in a queue.
//!
//! The pool of their server knows of them and does not count them. They share its generation, its breaker, its pace and its
//! lifetimes; no bound of it holds for them but `max_connecting`, of which they have as many as the pool. There is one per client
//! and server at most, so `max_clients` bounds them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::attempt::{self, REFUSED_PAUSE, UserRefused};
use super::cluster::Cluster;
use super::connection::Connection;
use super::handshake::ConnectError;
use super::holders::Owned as _;
use super::lines;
use super::permits;
use super::pool::{CheckOutError, Pool, PooledConnection, Shared, lock, unavailable};
use super::pool_state::PoolStatus;
use super::usage::PoolUsage;
use crate::admission::Claim;
use crate::auth::UserId;
use crate::config::{PoolingConfig, PoolingMode};
use crate::telemetry::labels::ConnectionClosed;

/// A breaker tells nobody that it has closed: it is looked at this often while a client waits for it.
const BREAKER_LOOK: Duration = Duration::from_millis(100);

/// Those of one client, that are not in use now.
pub struct OwnConnections {
    client: i64,
    /// One per server at most.
    idle: Mutex<Vec<(Pool, Box<Connection>)>>,
}

/// What a pool knows of those to its server.
pub(super) struct Observed {
    /// From the moment that they are established until the server has noticed their end.
    open: AtomicU32,
    created: AtomicU64,
    pub(super) usage: PoolUsage,
    connecting: Arc<Semaphore>,
}

/// Why one ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As one of the pool would.
    AsPooled(ConnectionClosed),
    /// Nobody is there to use it.
    ClientLeft,
    /// Its client shares connections now.
    Shares,
}

impl End {
    const fn words(self) -> &'static str {
        match self {
            Self::AsPooled(reason) => lines::reason_of(reason),
            Self::ClientLeft => "The client that the connection belonged to has left",
            Self::Shares => "The client that the connection belonged to shares connections now",
        }
    }
}

impl OwnConnections {
    /// None yet, of the client of that number.
    pub fn new(client: i64) -> Arc<Self> {
        Arc::new(Self { client, idle: Mutex::default() })
    }

    /// The one to the server of `pool`, if it is there and of use.
    pub fn take(self: &Arc<Self>, pool: &Pool, claim: Claim, now: Instant) -> Option<PooledConnection> {
        let mut connection = {
            let mut idle = lock(&self.idle);
            let at = idle.iter().position(|(of, _)| of.is(pool))?;
            idle.swap_remove(at).1
        };
        let of_another = connection.user() != claim.user;
        let unfit = of_another.then_some(ConnectionClosed::Turnover).or_else(|| pool.unfit(&mut connection, now));
        if let Some(reason) = unfit {
            pool.close_own(connection, End::AsPooled(reason));
            return None;
        }
        Some(self.lend(pool, connection, claim, now))
    }

    /// Establishes one to the server of `pool`, when that is its turn and the server may be asked.
    ///
    /// # Errors
    /// [`CheckOutError::Timeout`] at `until`; [`CheckOutError::Cleared`] and [`CheckOutError::Closed`] when the command is to be
    /// routed anew, as the server cannot be had now.
    ///
    /// # Cancel safety
    /// A future that is dropped leaves nothing behind.
    pub async fn connect(
        self: &Arc<Self>,
        pool: &Pool,
        claim: Claim,
        until: Instant,
    ) -> Result<PooledConnection, CheckOutError> {
        let connected = timeout_at(until, self.connect_in_turn(pool, claim.user)).await;
        let connection = connected.unwrap_or(Err(CheckOutError::Timeout))?;
        Ok(self.lend(pool, connection, claim, Instant::now()))
    }

    async fn connect_in_turn(self: &Arc<Self>, pool: &Pool, user: UserId) -> Result<Box<Connection>, CheckOutError> {
        let (shared, parts) = (&pool.0, &pool.0.parts);
        let turn = shared.observed.connecting.acquire().await.map_err(|_| CheckOutError::Closed)?;
        let not_before = lock(&shared.pace).not_before;
        sleep_until(not_before).await;
        if !attempt::may_dial(shared, Instant::now()) {
            drop(turn);
            tokio::time::sleep(BREAKER_LOOK).await;
            return Err(CheckOutError::Cleared);
        }
        let generation = shared.generation()?;
        let (started, limit) = (Instant::now(), shared.settings().config.connect_timeout);
        lines::connection_created(&parts.address);
        let dialled = tokio::time::timeout(limit, parts.dialer.connect(&parts.address, user)).await;
        let attempt = dialled.unwrap_or(Err(ConnectError::Timeout(limit)));
        // Others need it: what is waited for below is about this user.
        drop(turn);
        parts.health.connected(attempt::outcome(&attempt));
        match attempt {
            Ok(connection) => {
                let owner = Some(Arc::downgrade(self));
                let connection = attempt::succeeded(pool, connection, generation, started.elapsed(), owner);
                shared.observed.open.fetch_add(1, Ordering::Relaxed);
                shared.observed.created.fetch_add(1, Ordering::Relaxed);
                parts.server_metrics.own_connections_created.inc();
                Ok(connection)
            }
            Err(error) => {
                lines::connection_failed(&parts.address, &error);
                match attempt::user_refused(pool, user, &error) {
                    Some(UserRefused::Revoked) => {}
                    Some(UserRefused::ForNow) => tokio::time::sleep(REFUSED_PAUSE).await,
                    None => attempt::failed(pool, &error),
                }
                Err(CheckOutError::Cleared)
            }
        }
    }

    fn lend(
        self: &Arc<Self>,
        pool: &Pool,
        mut connection: Box<Connection>,
        claim: Claim,
        now: Instant,
    ) -> PooledConnection {
        connection.owner = Some(self.clone());
        lines::checked_out(&pool.0.parts.address, &connection);
        PooledConnection::new(connection, claim, Some(now), pool)
    }

    /// Closes the idle one to the server of `pool` if it is of no use any more.
    fn look_after(&self, pool: &Pool, pooling: &PoolingConfig, now: Instant) {
        let shares = pooling.databases.is_empty() && pooling.pools_client(self.client);
        let ended = {
            let mut idle = lock(&self.idle);
            let Some(at) = idle.iter().position(|(of, _)| of.is(pool)) else { return };
            let unfit = pool.unfit(&mut idle[at].1, now).map(End::AsPooled);
            unfit.or(shares.then_some(End::Shares)).map(|end| (idle.swap_remove(at).1, end))
        };
        if let Some((connection, end)) = ended {
            pool.close_own(connection, end);
        }
    }
}

impl Drop for OwnConnections {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        idle.into_iter().for_each(|(pool, connection)| pool.close_own(connection, End::ClientLeft));
    }
}

impl Observed {
    pub(super) fn new(max_connecting: u32) -> Self {
        let connecting = Arc::new(Semaphore::new(max_connecting as usize));
        Self { open: AtomicU32::new(0), created: AtomicU64::new(0), usage: PoolUsage::default(), connecting }
    }

    pub(super) fn created(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn generation(&self) -> Result<u64, CheckOutError> {
        let state = self.state();
        match state.status() {
            PoolStatus::Ready => Ok(state.generation()),
            status => Err(unavailable(status)),
        }
    }

    /// As many connections of clients' own may be established at once.
    pub(super) fn resize_connecting(&self, from: u32, to: u32) {
        permits::resize(&self.observed.connecting, from as usize, to as usize, &self.parts.tasks);
    }
}

impl Pool {
    /// Connections to its server that belong to one client each, and how many of them were in use at once at most.
    pub fn own_connections(&self) -> (u32, u32) {
        let observed = &self.0.observed;
        (observed.open.load(Ordering::Relaxed), observed.usage.peak())
    }

    /// Commands that have ended which went over such connections.
    pub fn own_commands(&self) -> u64 {
        self.0.observed.usage.totals().ended
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Why a connection that is not in use is of no use any more.
    fn unfit(&self, connection: &mut Connection, now: Instant) -> Option<ConnectionClosed> {
        let (status, generation) = {
            let state = self.0.state();
            (state.status(), state.generation())
        };
        if status == PoolStatus::Closed {
            Some(ConnectionClosed::PoolClosed)
        } else if connection.generation != generation {
            Some(ConnectionClosed::Stale)
        } else if connection.is_revoked() {
            Some(ConnectionClosed::Revoked)
        } else if !connection.is_alive() {
            Some(ConnectionClosed::Error)
        } else if now >= connection.expires || connection.in_use().is_to_be_replaced(connection.user()) {
            Some(ConnectionClosed::Lifetime)
        } else {
            None
        }
    }

    /// Takes one back that stands between two messages.
    pub(super) fn take_back(&self, mut connection: Box<Connection>, owner: &OwnConnections, now: Instant) {
        self.0.observed.usage.ended(connection.in_use().end(now));
        connection.clear_reply();
        (connection.last_used, connection.taken) = (now, None);
        match self.unfit(&mut connection, now) {
            Some(reason) => self.close_own(connection, End::AsPooled(reason)),
            None => lock(&owner.idle).push((self.clone(), connection)),
        }
    }

    /// Gives one up that was lent.
    pub(super) fn give_own_up(&self, connection: Box<Connection>, reason: ConnectionClosed, now: Instant) {
        self.0.observed.usage.ended(connection.in_use().end(now));
        self.close_own(connection, End::AsPooled(reason));
    }

    fn close_own(&self, connection: Box<Connection>, end: End) {
        let shared = self.0.clone();
        lines::own_connection_closed(&shared.parts.address, &connection, end.words());
        shared.parts.tasks.clone().spawn("close", async move {
            let id = connection.id;
            connection.close().await;
            shared.unregister(id);
            shared.observed.open.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Closes those that are idle and of no use any more, as nobody may come for them.
    pub(super) fn look_after_own(&self, now: Instant) {
        let owners = self.0.owners();
        let settings = self.0.settings();
        owners.iter().for_each(|owner| owner.look_after(self, &settings.pooling, now));
    }
}

impl Cluster {
    /// True when all commands share connections, which is almost always.
    pub fn pools_all(&self) -> bool {
        self.pools_all.load(Ordering::Relaxed)
    }

    /// Tells how far connections are shared, which is worth a warning while they are not.
    pub(super) fn tell_pooling(&self) {
        let pooling = &self.config().pooling;
        let mode = pooling.mode();
        self.pools_all.store(mode == PoolingMode::Pooled, Ordering::Relaxed);
        let (cluster, percent) = (&self.name, pooling.clients_percent);
        match mode {
            PoolingMode::Pooled => {
                tracing::info!(%cluster, "all commands share connections: max_pool_size bounds them")
            }
            PoolingMode::Partly | PoolingMode::Observe => tracing::warn!(
                %cluster, pooled_clients_percent = percent, pooled_databases = pooling.databases_told(),
                "clients have connections of their own: max_pool_size does not bound how many connections there are"
            ),
        }
    }
}
