//! A server that suits the command and one of its connections: at once where both are there and the mode lets it on, else
//! after a wait that `wait_queue_size` bounds by count and the command's deadlines by time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::degraded::{self, Found};
use super::exchange::{Exchange, Share};
use super::held;
use crate::admission::{AdmitError, Lane, Newcomer, Permit};
use crate::reply::errors::{self, ErrorReply};
use crate::reply::{OperationKind, Situation};
use crate::routing::{Lost, Route, route};
use crate::upstream::pool::lock;
use crate::upstream::{CheckOutError, Cluster, Operation, OwnConnections, PooledConnection, SelectError, Server, Turn};

/// After a pool was cleared the command is routed anew, but never in a tight loop.
const REROUTE_PAUSE: Duration = Duration::from_millis(5);

/// Why a command was not carried out by a server.
pub(super) enum Refusal {
    /// By the matrix of situation and operation.
    Situation(Situation),
    /// For a reason of its own.
    Reply(ErrorReply),
    /// Nobody is there any more.
    Left,
}

impl From<Situation> for Refusal {
    fn from(situation: Situation) -> Self {
        Self::Situation(situation)
    }
}

/// What is there now.
pub(super) enum Now {
    /// A server and a connection.
    Connection(Operation, PooledConnection),
    /// A server that has no connection for the command now.
    Full(Found),
    /// No server, or none that the command may go to now.
    Nothing,
}

/// A command that waits: since when, and its place in the count of those who do.
pub(super) struct Wait {
    began: Instant,
    /// None for who has connections of its own: there are no more of those than clients.
    _permit: Option<Permit>,
}

/// A server and a connection, if both are there now.
pub(super) fn acquire_now(exchange: &mut Exchange, now: Instant) -> Result<Now, Refusal> {
    if let Some(error) = exchange.revoked() {
        return Err(Refusal::Reply(error));
    }
    if !held::passes(exchange)? {
        return Ok(Now::Nothing);
    }
    let Some(found) = find_server(exchange, now)? else { return Ok(Now::Nothing) };
    if let Some(own) = &exchange.own {
        let Some(connection) = own.take(&found.operation.server().pool, exchange.claim, now) else {
            return Ok(Now::Nothing);
        };
        has_waited(exchange, &found, Duration::ZERO);
        return Ok(Now::Connection(found.operation, connection));
    }
    if !try_enter(exchange, found.operation.server()) {
        return Ok(Now::Nothing);
    }
    match found.operation.server().pool.try_check_out(exchange.claim, now) {
        Ok(Some(connection)) => {
            has_waited(exchange, &found, Duration::ZERO);
            Ok(Now::Connection(found.operation, connection))
        }
        Ok(None) => Ok(Now::Full(found)),
        Err(_) => Ok(Now::Nothing),
    }
}

/// It has its connection, after so long.
fn has_waited(exchange: &mut Exchange, found: &Found, waited: Duration) {
    exchange.waited += waited;
    exchange.cluster.metrics.wait_queue_seconds.observe(waited.as_secs_f64());
    degraded::stand_in(exchange, found);
}

/// Takes a place, if the command may only use a share of the pool; false when it has to wait for one.
fn try_enter(exchange: &mut Exchange, server: &Server) -> bool {
    match exchange.needs_place(server) {
        None => true,
        Some(Share::LongPolls) => {
            exchange.place = server.long_polls.try_enter();
            exchange.place.is_some()
        }
        Some(Share::Settling) => match server.settling.try_enter() {
            Turn::Place(place) => {
                exchange.place = Some(place);
                true
            }
            Turn::Wait => false,
            Turn::Settled => true,
        },
    }
}

/// As [`try_enter`], waiting.
///
/// # Cancel safety
/// Safe: a waiter that is dropped leaves the line.
async fn enter(exchange: &mut Exchange, server: &Server) {
    match exchange.needs_place(server) {
        None => {}
        Some(Share::LongPolls) => exchange.place = Some(server.long_polls.enter().await),
        Some(Share::Settling) => exchange.place = server.settling.enter().await,
    }
}

/// The server that the command goes to now; `None` when waiting may help.
fn find_server(exchange: &Exchange, now: Instant) -> Result<Option<Found>, Refusal> {
    let cluster = &exchange.cluster;
    let topology = cluster.topology();
    if exchange.asks_for_anothers_cursor() {
        return Err(Refusal::Reply(errors::not_your_cursor("getMore")));
    }
    let route = route(&exchange.command, &exchange.frame, &mut lock(&cluster.pins), &topology, now);
    match route {
        Route::Await(_) => Ok(None),
        Route::Server(address) => match cluster.operation_on(&address) {
            Some(operation) if operation.server().passes() => Ok(Some(operation.into())),
            Some(_) => Err(Situation::BreakerOpen { why: cluster.refusal() }.into()),
            None => Err(Situation::ServerLeft { server: (*address).clone() }.into()),
        },
        Route::Select(criteria) => {
            let chosen = degraded::try_select(exchange, criteria);
            chosen.map_err(|error| no_server(error, Duration::ZERO).into())
        }
        Route::Lost(Lost::Cursor) => {
            let id = exchange.command.cursor_id(&exchange.frame).unwrap_or_default();
            Err(Refusal::Reply(errors::cursor_not_found(id)))
        }
        Route::Lost(Lost::Transaction(server)) => Err(Situation::ServerLeft { server: (*server).clone() }.into()),
    }
}

/// The permission to wait, if that takes no waiting itself.
pub(super) fn begin_wait(exchange: &Exchange, began: Instant) -> Result<Option<Wait>, Refusal> {
    if exchange.kind == OperationKind::Unacknowledged {
        return Ok(None);
    }
    Ok(Some(Wait { began, _permit: Some(admit_now(exchange, began)?) }))
}

/// Waits in the queue of a server that was found. `None` when the command is to be routed anew, or may not go on in the mode
/// that the cluster is in now. `left` is polled beside it: the client leaves.
///
/// # Cancel safety
/// Safe: whoever is dropped leaves the queue.
pub(super) async fn take_turn(
    exchange: &mut Exchange,
    found: Found,
    wait: &Wait,
    mut left: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<Option<(Operation, PooledConnection)>, Refusal> {
    let until = exchange.checked_out_by(&exchange.cluster.config(), wait.began);
    let turn = {
        let mut turn = found.operation.server().pool.check_out_since(exchange.claim, wait.began, until);
        let exchange = &*exchange;
        std::future::poll_fn(move |context| {
            if let Poll::Ready(ended) = Pin::new(&mut turn).poll(context) {
                return Poll::Ready(Ok(Some(ended)));
            }
            // Whoever switches the mode wakes who waits.
            match held::passes(exchange) {
                Ok(true) => left(context).map(|()| Err(Refusal::Left)),
                Ok(false) => Poll::Ready(Ok(None)),
                Err(refusal) => Poll::Ready(Err(refusal)),
            }
        })
        .await
    };
    match turn? {
        Some(Ok(connection)) => {
            let waited = connection.taken_at().saturating_duration_since(wait.began);
            has_waited(exchange, &found, waited);
            Ok(Some((found.operation, connection)))
        }
        Some(Err(CheckOutError::Cleared | CheckOutError::Closed)) => {
            drop(found);
            Box::pin(before_rerouting(exchange)).await?;
            Ok(None)
        }
        None => Ok(None),
        Some(Err(CheckOutError::Shed)) => Err(shed(exchange, found.operation.server(), wait.began.elapsed())),
        Some(Err(CheckOutError::Timeout)) => {
            Err(waited_in_vain(exchange, found.operation.server(), wait.began.elapsed()).into())
        }
    }
}

/// Waits for a mode that lets the command on, for a server that suits and for one of its connections, since `wait` began if
/// it waits already.
///
/// # Cancel safety
/// Safe: whoever is dropped leaves every queue.
pub(super) async fn acquire(
    exchange: &mut Exchange,
    wait: Option<Wait>,
) -> Result<(Operation, PooledConnection), Refusal> {
    let wait = match wait {
        Some(wait) => wait,
        None if exchange.own.is_some() => Wait { began: Instant::now(), _permit: None },
        None => {
            let began = Instant::now();
            Wait { began, _permit: Some(admit(exchange, began).await?) }
        }
    };
    let (bearing, mut orders) = (exchange.bearing(), exchange.cluster.mode.subscribe());
    loop {
        held::until_it_passes(exchange, &mut orders).await?;
        // Nothing is lost when an arm loses: a waiter that is dropped leaves the queue, and the watch keeps its newest
        // value. Whoever goes on in the new mode, too, keeps its place.
        tokio::select! {
            acquired = acquire_in_line(exchange, wait.began) => return acquired,
            () = held::stopped(bearing, orders.clone()) => {}
        }
    }
}

/// As [`acquire`], whatever the mode.
///
/// # Cancel safety
/// Safe: whoever is dropped leaves every queue.
async fn acquire_in_line(exchange: &mut Exchange, began: Instant) -> Result<(Operation, PooledConnection), Refusal> {
    let cluster = exchange.cluster.clone();
    loop {
        let found = match find_server(exchange, Instant::now())? {
            Some(found) => found,
            None => match wait_for_server(exchange).await? {
                Some(found) => found,
                None => continue,
            },
        };
        if let Some(own) = exchange.own.clone() {
            match acquire_own(exchange, found, &own, began).await? {
                Some(acquired) => return Ok(acquired),
                None => continue,
            }
        }
        let operation = &found.operation;
        let pool = operation.server().pool.clone();
        let queued = Instant::now();
        let until = exchange.checked_out_by(&cluster.config(), queued);
        if tokio::time::timeout_at(until, enter(exchange, operation.server())).await.is_err() {
            return Err(waited_in_vain(exchange, operation.server(), queued.elapsed()).into());
        }
        match pool.check_out(exchange.claim, until).await {
            Ok(connection) => {
                has_waited(exchange, &found, began.elapsed());
                return Ok((found.operation, connection));
            }
            Err(CheckOutError::Cleared | CheckOutError::Closed) => {
                drop(found);
                before_rerouting(exchange).await?;
            }
            // Nobody could be told: it joins again, as the newest.
            Err(CheckOutError::Shed)
                if exchange.kind == OperationKind::Unacknowledged
                    && Instant::now() < exchange.sent_by(&cluster.config()) => {}
            Err(CheckOutError::Shed) => return Err(shed(exchange, operation.server(), queued.elapsed())),
            Err(CheckOutError::Timeout) => {
                return Err(waited_in_vain(exchange, operation.server(), queued.elapsed()).into());
            }
        }
    }
}

/// The connection of the client's own to the server that was found, established where there is none. `None` when the command is to
/// be routed anew.
///
/// # Cancel safety
/// Safe: nothing is left behind.
async fn acquire_own(
    exchange: &mut Exchange,
    found: Found,
    own: &Arc<OwnConnections>,
    began: Instant,
) -> Result<Option<(Operation, PooledConnection)>, Refusal> {
    let pool = found.operation.server().pool.clone();
    let until = exchange.sent_by(&exchange.cluster.config());
    let connected = match own.take(&pool, exchange.claim, Instant::now()) {
        Some(connection) => Ok(connection),
        None => own.connect(&pool, exchange.claim, until).await,
    };
    match connected {
        Ok(connection) => {
            has_waited(exchange, &found, began.elapsed());
            return Ok(Some((found.operation, connection)));
        }
        Err(CheckOutError::Cleared | CheckOutError::Closed) if Instant::now() < until => {}
        Err(_) => return Err(not_connected(exchange, found.operation.server(), began.elapsed()).into()),
    }
    drop(found);
    before_rerouting(exchange).await?;
    Ok(None)
}

/// Its pool was cleared: it is to be routed anew after a pause, in which what has happened becomes known.
async fn before_rerouting(exchange: &mut Exchange) -> Result<(), Refusal> {
    if let Some(error) = exchange.revoked() {
        return Err(Refusal::Reply(error));
    }
    // Of the server that it does not go to now.
    exchange.place = None;
    let cluster = &exchange.cluster;
    if let Some(expired) = exchange.expired() {
        return Err(expired.into());
    }
    if Instant::now() >= exchange.sent_by(&cluster.config()) {
        let (waited, why) = (exchange.unsent_since.elapsed(), cluster.problem(&cluster.topology()));
        return Err(Situation::NoSuitableServer { waited, why }.into());
    }
    tokio::time::sleep(REROUTE_PAUSE).await;
    cluster.reconcile();
    Ok(())
}

/// The permission to wait. An unacknowledged write cannot be refused, so its client waits for the permission, too.
async fn admit(exchange: &Exchange, began: Instant) -> Result<Permit, Refusal> {
    if exchange.kind != OperationKind::Unacknowledged || exchange.claim.lane == Lane::Transaction {
        return admit_now(exchange, began);
    }
    let cluster = &exchange.cluster;
    let until = exchange.checked_out_by(&cluster.config(), began);
    cluster.admission.admit_until(newcomer(exchange, began), until).await.map_err(|refusal| full(cluster, refusal))
}

/// As [`admit`], for who can be refused. Statements of open transactions, their ends and killCursors always get it: they free
/// what others wait for, and are no more than there are transactions and sockets.
fn admit_now(exchange: &Exchange, began: Instant) -> Result<Permit, Refusal> {
    let cluster = &exchange.cluster;
    if exchange.claim.lane == Lane::Transaction {
        return Ok(cluster.admission.admit_always(newcomer(exchange, began)));
    }
    cluster.admission.admit(newcomer(exchange, began)).map_err(|refusal| full(cluster, refusal))
}

fn newcomer(exchange: &Exchange, began: Instant) -> Newcomer {
    let (tenant, bytes) = (exchange.claim.tenant.id, exchange.frame.bytes().len());
    // A long poll waits for data that may never come, and for its turn to do so behind others like it.
    let since = (exchange.claim.lane != Lane::Await).then_some(began);
    let tenants = lock(&exchange.cluster.tenants);
    Newcomer { tenant, max_waiting: tenants.max_waiting(tenant), tenants: tenants.count(), bytes, since }
}

fn full(cluster: &Cluster, refusal: AdmitError) -> Refusal {
    Situation::QueueFull { refusal, load: cluster.load(Instant::now()) }.into()
}

/// Its queue stands, and it has waited too long for that.
fn shed(exchange: &Exchange, server: &Server, waited: Duration) -> Refusal {
    let (server, load) = ((*server.address).clone(), exchange.cluster.load(Instant::now()));
    Situation::QueueStands { server, waited, load }.into()
}

/// `None` when there is news of the server that the command is bound to: it is to be routed anew.
async fn wait_for_server(exchange: &Exchange) -> Result<Option<Found>, Refusal> {
    let cluster = &exchange.cluster;
    let deadline = exchange.selected_by(&cluster.config());
    let topology = cluster.topology();
    let now = Instant::now();
    let route = route(&exchange.command, &exchange.frame, &mut lock(&cluster.pins), &topology, now);
    let found = match route {
        Route::Select(criteria) => degraded::select(exchange, criteria, deadline).await.map(Some),
        Route::Await(server) => cluster.await_news(&server, deadline).await.map(|()| None),
        // The topology has changed since the look before this one.
        Route::Server(_) | Route::Lost(_) => Ok(None),
    };
    found.map_err(|error| match (&error, exchange.expired()) {
        (SelectError::NoSuitableServer(_), Some(expired)) => expired.into(),
        _ => no_server(error, exchange.unsent_since.elapsed()).into(),
    })
}

fn no_server(error: SelectError, waited: Duration) -> Situation {
    match error {
        SelectError::BreakerOpen(why) => Situation::BreakerOpen { why },
        SelectError::NoSuitableServer(why) => Situation::NoSuitableServer { waited, why },
    }
}

/// No connection of the client's own in time: the command's own time is over, or none can be made.
fn not_connected(exchange: &Exchange, server: &Server, waited: Duration) -> Situation {
    if let Some(expired) = exchange.expired() {
        return expired;
    }
    let (server, last_error) = ((*server.address).clone(), server.pool.snapshot().last_connect_error);
    let why = last_error.unwrap_or_else(|| format!("others are being established, for {} ms now", waited.as_millis()));
    Situation::ConnectFailed { server, why }
}

/// No connection in time: the command's own time is over, all connections are busy, or none can be made.
pub(super) fn waited_in_vain(exchange: &Exchange, server: &Server, waited: Duration) -> Situation {
    if let Some(expired) = exchange.expired() {
        return expired;
    }
    let snapshot = server.pool.snapshot();
    let server = (*server.address).clone();
    match snapshot.last_connect_error {
        Some(why) if snapshot.counts.available + snapshot.counts.in_use == 0 => {
            Situation::ConnectFailed { server, why }
        }
        _ => Situation::QueueTimeout {
            server,
            waited,
            waiting: exchange.cluster.admission.waiting(),
            load: exchange.cluster.load(Instant::now()),
        },
    }
}
