//! The path of one command through upstream: route, admit, check out, send, receive, relay.
//!
//! Where nothing has to be waited for, it runs straight through. Whatever fails before the request was written whole is
//! tried again on a server selected anew, within the command's deadline; after that the driver decides, on our labels.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::abandoned::{self, Abandoned};
use super::cursors::{OpenCursor, brought_nothing};
use super::session::{ReplyTo, Session};
use super::shared::{BusyClient, ClientShared, InFlight};
use super::socket::ReadEnd;
use crate::admission::{AdmitError, Lane, Permit, Reservation};
use crate::breaker::{Failure, Outcome as Health};
use crate::command::{Command, Effect, Handling};
use crate::config::{Address, Retry};
use crate::reply::errors::{self, ErrorReply};
use crate::reply::{OperationKind, Situation, StateChange, StateChangeKind, answer, inspect};
use crate::routing::{Lost, Route, route};
use crate::telemetry::labels::{ClientClosed, CommandLabel, Outcome, RetryReason, ShedReason, Side};
use crate::topology::TopologyVersion;
use crate::upstream::pool::lock;
use crate::upstream::{CheckOutError, LongPoll, Operation, PooledConnection, ReceiveError, Reply, SelectError};
use crate::wire::{Frame, encode};

/// How often a command is tried that could not be written whole.
const MAX_ATTEMPTS: u32 = 3;

/// A server gets this much longer than `maxTimeMS` to say itself that the time is over.
const MAX_TIME_GRACE: Duration = Duration::from_secs(1);

/// After a pool was cleared the command is routed anew, but never in a tight loop.
const REROUTE_PAUSE: Duration = Duration::from_millis(5);

/// One command on its way.
pub(super) struct Exchange {
    pub(super) command: Command,
    pub(super) frame: Frame,
    pub(super) reply_to: ReplyTo,
    pub(super) kind: OperationKind,
    label: CommandLabel,
    lane: Lane,
    started: Instant,
    /// `maxTimeMS` after arrival.
    deadline: Option<Instant>,
    attempts: u32,
    /// Was sent whole once already.
    resent: bool,
    /// The server that the last attempt failed on.
    failed: Option<Arc<Address>>,
    upstream: Duration,
    /// The right to wait for data, while it does.
    pub(super) long_poll: Option<LongPoll>,
    /// Memory for the request, and the counts of what is under way: held until the command has ended.
    _held: (Reservation, InFlight, BusyClient),
}

/// Why a command was not carried out by a server.
pub(super) enum Refusal {
    /// By the matrix of situation and operation.
    Situation(Situation),
    /// For a reason of its own.
    Reply(ErrorReply),
    /// Nobody is there any more.
    Left,
}

/// What became of one attempt.
enum Attempt {
    /// The client has its reply.
    Delivered,
    /// To be tried again.
    Again,
}

impl From<Situation> for Refusal {
    fn from(situation: Situation) -> Self {
        Self::Situation(situation)
    }
}

impl Exchange {
    pub(super) fn new(
        command: Command,
        mut frame: Frame,
        reply_to: ReplyTo,
        reservation: Reservation,
        shared: &Arc<ClientShared>,
    ) -> Self {
        command.clear_flags(&mut frame);
        let started = Instant::now();
        let (kind, lane) = classify(&command, &frame, shared, started);
        // Long polls do not keep a drain from ending.
        let in_flight = shared.activity.begin(lane == Lane::Await);
        let deadline = command.max_time().map(|time| started + time);
        Self {
            label: CommandLabel::of(command.spec.name),
            command,
            frame,
            reply_to,
            kind,
            lane,
            started,
            deadline,
            attempts: 0,
            resent: false,
            failed: None,
            upstream: Duration::ZERO,
            long_poll: None,
            _held: (reservation, in_flight, BusyClient::new(shared)),
        }
    }

    /// How long it wants to wait for data still.
    fn waits_further(&self) -> Option<Duration> {
        let wait = self.command.await_time().filter(|_| self.lane == Lane::Await)?;
        wait.checked_sub(self.started.elapsed()).filter(|remaining| *remaining >= Duration::from_millis(1))
    }

    /// The earlier of the command's own deadline and `limit` from now.
    fn within(&self, limit: Duration) -> Instant {
        let limit = Instant::now() + limit;
        self.deadline.map_or(limit, |deadline| deadline.min(limit))
    }

    /// `Some` when the command's own deadline is over.
    fn expired(&self) -> Option<Situation> {
        let deadline = self.deadline.filter(|deadline| Instant::now() >= *deadline)?;
        Some(Situation::MaxTimeExpiredInQueue { max_time: deadline - self.started })
    }

    /// What running it a second time would do, when it was sent whole: the reason to count, or nothing.
    fn may_run_twice(&self) -> Option<RetryReason> {
        match (self.kind, self.command.effect()) {
            (OperationKind::Read, _) => Some(RetryReason::Read),
            (OperationKind::RetryableWrite, _) => Some(RetryReason::Write),
            (OperationKind::CommitOrAbort, _) => Some(RetryReason::Commit),
            (OperationKind::Write, Effect::Idempotent) => Some(RetryReason::Cleanup),
            _ => None,
        }
    }
}

/// What the command is to its driver once it fails, and with whom it waits.
fn classify(command: &Command, frame: &Frame, shared: &ClientShared, now: Instant) -> (OperationKind, Lane) {
    let get_more = command.spec.handling == Handling::GetMore;
    let cursor = if get_more { command.cursor_id(frame) } else { None };
    let (awaits_data, change_stream) = cursor
        .and_then(|id| lock(&shared.cluster.pins).cursor(id, now).map(|pin| (pin.awaits_data, pin.change_stream)))
        .unwrap_or_default();
    let kind = if command.unacknowledged {
        OperationKind::Unacknowledged
    } else if command.spec.handling == Handling::EndTransaction {
        OperationKind::CommitOrAbort
    } else if command.session.in_transaction {
        OperationKind::InTransaction
    } else if get_more {
        OperationKind::GetMore { change_stream }
    } else {
        match command.effect() {
            Effect::Read => OperationKind::Read,
            Effect::Write if command.session.is_retryable() => OperationKind::RetryableWrite,
            Effect::Write | Effect::Other | Effect::Idempotent => OperationKind::Write,
        }
    };
    let lane = match kind {
        OperationKind::CommitOrAbort => Lane::Transaction,
        OperationKind::InTransaction if !command.session.starts_transaction => Lane::Transaction,
        OperationKind::GetMore { .. } if awaits_data => Lane::Await,
        _ => Lane::Regular,
    };
    (kind, lane)
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Carries a command out and delivers its reply, the server's or ours.
    pub(super) async fn execute(&mut self, exchange: &mut Exchange) -> Result<(), ReadEnd> {
        loop {
            let acquired = match acquire_now(&self.shared, exchange).transpose() {
                Some(acquired) => acquired,
                // Boxed: waiting is the exception, and idle sessions should not carry room for it.
                None => Box::pin(self.acquire(exchange)).await,
            };
            let attempt = match acquired {
                Ok((operation, connection)) => self.attempt(exchange, operation, connection).await,
                Err(refusal) => Err(Failed::Refused(refusal)),
            };
            match attempt {
                Ok(Attempt::Delivered) => return Ok(()),
                Ok(Attempt::Again) => {}
                Err(Failed::Refused(refusal)) => return Box::pin(self.refused(exchange, refusal)).await,
                Err(Failed::Client(end)) => return Err(end),
            }
        }
    }

    /// Waits for a server and a connection, as long as the client does.
    async fn acquire(&mut self, exchange: &mut Exchange) -> Result<(Operation, PooledConnection), Refusal> {
        let shared = self.shared.clone();
        // Nothing is lost when an arm loses: a waiter that is dropped leaves the queue, the socket keeps its bytes.
        tokio::select! {
            acquired = acquire(&shared, exchange) => acquired,
            () = self.socket.left() => Err(Refusal::Left),
        }
    }

    /// Sends the command over `connection`, takes its reply and delivers it.
    async fn attempt(
        &mut self,
        exchange: &mut Exchange,
        operation: Operation,
        mut connection: PooledConnection,
    ) -> Result<Attempt, Failed> {
        self.prepare(exchange, &operation, &mut connection)?;
        let sent = Instant::now();
        let limit = self.limit(exchange, sent);
        // A request that loses was not written whole and is never executed: its connection is closed.
        let written = tokio::select! {
            biased;
            written = connection.send(exchange.frame.bytes()) => written,
            limit = over(limit) => return Err(self.too_slow(exchange, &operation, limit).into()),
        };
        if let Err(error) = written {
            return self.not_written(exchange, &operation, &connection, &error.0.to_string());
        }
        self.shared.metrics.sent_bytes[Side::Upstream].inc_by(exchange.frame.bytes().len() as u64);
        // Nothing is lost when an arm loses: what has arrived of the reply stays in the connection, which is finished by
        // a task of its own or closed. Biased, so that a reply that is there counts more than a client that just left.
        let received = tokio::select! {
            biased;
            received = connection.receive() => received,
            () = self.socket.left() => {
                abandoned::finish(&self.shared, Abandoned::new(exchange, operation, connection, sent));
                self.shared.metrics.commands[(exchange.label, Outcome::Abandoned)].inc();
                return Err(Failed::Client(ReadEnd::Left));
            }
            limit = over(limit) => return Err(self.too_slow(exchange, &operation, limit).into()),
            () = long_polls_end(&self.shared, exchange.lane) => {
                let id = exchange.command.cursor_id(&exchange.frame).unwrap_or_default();
                return Err(Failed::Refused(Refusal::Reply(errors::cursor_not_found(id))));
            }
        };
        exchange.upstream += sent.elapsed();
        exchange.long_poll = None;
        if let Err(error) = received {
            return self.no_reply(exchange, &operation, &connection, &error);
        }
        let mut undelivered = None;
        let delivered = match self.judge(exchange, &operation, &mut connection, &mut undelivered)? {
            Verdict::Again => return Ok(Attempt::Again),
            Verdict::Nothing => {
                // The client will never know its id.
                if let Some(cursor) = undelivered.take() {
                    cursor.kill(&self.shared);
                }
                Ok(())
            }
            Verdict::AsItCame => self.deliver(connection).await,
            Verdict::Instead(message) => {
                // Free before anybody waits for the client.
                drop(connection);
                Box::pin(self.write(message)).await
            }
        };
        self.observe(exchange.label, exchange.started, exchange.upstream);
        if let Err(end) = delivered {
            if let Some(cursor) = undelivered {
                cursor.kill(&self.shared);
            }
            return Err(Failed::Client(end));
        }
        Ok(Attempt::Delivered)
    }

    /// Makes the message ready for this connection, and pins a transaction that begins with it.
    fn prepare(
        &self,
        exchange: &mut Exchange,
        operation: &Operation,
        connection: &mut PooledConnection,
    ) -> Result<(), Failed> {
        if let Some(deadline) = exchange.deadline {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(Situation::MaxTimeExpiredInQueue { max_time: deadline - exchange.started }.into());
            }
            exchange.command.shrink_max_time(&mut exchange.frame, remaining);
        }
        if let Some(remaining) = exchange.waits_further() {
            let slice = operation.server().long_polls.slice();
            exchange.command.shrink_max_time(&mut exchange.frame, remaining.min(slice));
        }
        if exchange.command.session.starts_transaction
            && let Some(transaction) = exchange.command.session.transaction()
        {
            let address = operation.server().address.clone();
            let pinned = lock(&self.shared.cluster.pins).pin_transaction(transaction, address, Instant::now());
            pinned.map_err(|error| {
                Failed::Refused(Refusal::Reply(errors::too_many_pins("transaction", &error.to_string())))
            })?;
        }
        exchange.frame.set_request_id(connection.next_request_id());
        Ok(())
    }

    /// The request was not written whole: it cannot have been executed and is tried again, a few times.
    fn not_written(
        &self,
        exchange: &mut Exchange,
        operation: &Operation,
        connection: &PooledConnection,
        why: &str,
    ) -> Result<Attempt, Failed> {
        let server = operation.server();
        self.broke(operation, connection, why);
        exchange.attempts += 1;
        exchange.failed = Some(server.address.clone());
        if exchange.attempts < MAX_ATTEMPTS {
            self.shared.metrics.retries[RetryReason::NotSent].inc();
            return Ok(Attempt::Again);
        }
        Err(Situation::NotWritten { server: (*server.address).clone(), why: why.to_owned() }.into())
    }

    /// When a server that does not answer is given up, and which limit that is.
    fn limit(&self, exchange: &Exchange, sent: Instant) -> Option<(Instant, Duration)> {
        let config = &self.shared.cluster.config;
        let own = exchange.deadline.map(|deadline| (deadline + MAX_TIME_GRACE, deadline - exchange.started));
        let configured = [config.command_timeout, config.socket_timeout].into_iter().flatten();
        configured.map(|limit| (sent + limit, limit)).chain(own).min()
    }

    fn too_slow(&self, exchange: &Exchange, operation: &Operation, limit: Duration) -> Situation {
        let server = operation.server();
        tracing::info!(server = %server.address, command = exchange.command.spec.name, ?limit, "no answer in time");
        server.health.record(Health::Failure(Failure::Network));
        self.lost_reply(exchange, operation);
        Situation::UpstreamTimeLimit { server: (*server.address).clone(), limit }
    }

    fn no_reply(
        &self,
        exchange: &mut Exchange,
        operation: &Operation,
        connection: &PooledConnection,
        error: &ReceiveError,
    ) -> Result<Attempt, Failed> {
        let server = operation.server();
        self.broke(operation, connection, &error.to_string());
        if self.resend(exchange, operation) {
            return Ok(Attempt::Again);
        }
        self.lost_reply(exchange, operation);
        Err(Situation::NoReply { server: (*server.address).clone(), why: error.to_string() }.into())
    }

    /// `retry = "proxy"`: whether to send once more what may have been executed, because that is safe.
    fn resend(&self, exchange: &mut Exchange, operation: &Operation) -> bool {
        let Some(reason) = exchange.may_run_twice() else { return false };
        if self.shared.cluster.config.retry != Retry::Proxy || exchange.resent {
            return false;
        }
        self.shared.metrics.retries[reason].inc();
        exchange.resent = true;
        exchange.failed = Some(operation.server().address.clone());
        true
    }

    fn broke(&self, operation: &Operation, connection: &PooledConnection, why: &str) {
        let server = operation.server();
        // Of an older generation: the failure that made it stale was counted already.
        if server.pool.is_current(connection.generation) {
            server.health.record(Health::Failure(Failure::Network));
        }
        self.shared.cluster.network_error(server, connection.generation, why);
    }

    /// Looks at a whole reply, acts on what it says, and decides what the client reads. A cursor that the reply leaves
    /// open goes into `undelivered`.
    fn judge(
        &self,
        exchange: &mut Exchange,
        operation: &Operation,
        connection: &mut PooledConnection,
        undelivered: &mut Option<Box<OpenCursor>>,
    ) -> Result<Verdict, Failed> {
        let server = operation.server();
        let inspected = match inspect(connection.reply()) {
            Ok(inspected) => inspected,
            Err(error) => {
                let why = error.to_string();
                connection.distrust();
                self.broke(operation, connection, &why);
                self.lost_reply(exchange, operation);
                return Err(Situation::NoReply { server: (*server.address).clone(), why }.into());
            }
        };
        server.health.record(Health::Success);
        self.shared.metrics.received_bytes[Side::Upstream].inc_by(connection.reply().len() as u64);
        if let Some(change) = inspected.state_change
            && let Some(again) = self.state_changed(exchange, operation, change)?
        {
            return Ok(again);
        }
        // A slice of its time is over, and nothing came: it gets in line for the next one.
        if exchange.waits_further().is_some() && brought_nothing(&inspected, connection.reply()) {
            return Ok(Verdict::Again);
        }
        if let Some(error) = self.follow_cursor(exchange, server, &inspected, connection.reply()) {
            return Err(Failed::Refused(Refusal::Reply(error)));
        }
        self.follow_transaction(exchange, &inspected);
        *undelivered = OpenCursor::of(server, &inspected, connection.reply());
        let outcome = if inspected.facts.ok { Outcome::Completed } else { Outcome::Failed };
        self.shared.metrics.commands[(exchange.label, outcome)].inc();
        if exchange.command.unacknowledged {
            return Ok(Verdict::Nothing);
        }
        let ReplyTo { request_id, compressor } = exchange.reply_to;
        if let Some(document) = inspected.rewritten {
            return Ok(Verdict::Instead(self.encode(exchange.reply_to, &document)));
        }
        encode::set_response_to(connection.reply_mut(), request_id);
        Ok(match compressor {
            Some(compressor) => Verdict::Instead(self.compress(connection.reply(), compressor)),
            None => Verdict::AsItCame,
        })
    }

    /// The server says that it is not what we took it for.
    fn state_changed(
        &self,
        exchange: &mut Exchange,
        operation: &Operation,
        change: StateChange,
    ) -> Result<Option<Verdict>, Failed> {
        let shutdown = change.kind == StateChangeKind::Shutdown;
        let version = change.topology_version.map(|(process_id, counter)| TopologyVersion { process_id, counter });
        self.shared.cluster.state_change(operation.server(), change.code, shutdown, version);
        if shutdown && matches!(exchange.kind, OperationKind::GetMore { .. }) {
            let id = exchange.command.cursor_id(&exchange.frame).unwrap_or_default();
            return Err(Failed::Refused(Refusal::Reply(errors::cursor_not_found(id))));
        }
        // Not sent again: a batch may have been applied in part, and nothing tells the server that it knows it already.
        if exchange.kind == OperationKind::Unacknowledged {
            self.shared.metrics.shed[ShedReason::Unacknowledged].inc();
        }
        Ok(self.resend(exchange, operation).then_some(Verdict::Again))
    }

    /// Writes the reply straight out of its connection. What a slow client does not take at once is taken out, so that
    /// the connection goes back before anybody waits.
    async fn deliver(&mut self, mut connection: PooledConnection) -> Result<(), ReadEnd> {
        let reply = connection.reply();
        self.shared.metrics.sent_bytes[Side::Client].inc_by(reply.len() as u64);
        let written = self.socket.write_now(reply).await.map_err(|_| ReadEnd::Left)?;
        if written == reply.len() {
            return Ok(());
        }
        let mut rest = connection.take_reply(written);
        drop(connection);
        if rest.reservation.is_none() {
            rest.reservation = self.shared.cluster.memory.try_reserve_reply(rest.bytes.len());
        }
        if rest.reservation.is_none() {
            return Err(ReadEnd::Closed(ClientClosed::Stalled));
        }
        Box::pin(async move {
            let Reply { bytes, reservation } = rest;
            let written = self.socket.write_all(bytes).await;
            drop(reservation);
            written
        })
        .await
    }

    /// Tells the client what became of its command, if it waits for it.
    async fn refused(&mut self, exchange: &Exchange, refusal: Refusal) -> Result<(), ReadEnd> {
        let metrics = &self.shared.metrics;
        let (error, outcome) = match refusal {
            Refusal::Left => {
                metrics.commands[(exchange.label, Outcome::Abandoned)].inc();
                return Err(ReadEnd::Left);
            }
            Refusal::Reply(error) => (Some(error), Outcome::Failed),
            Refusal::Situation(situation) => {
                count_shed(&self.shared, &situation, exchange.kind);
                let outcome = if situation.after_complete_write() { Outcome::Failed } else { Outcome::Refused };
                (answer(&situation, exchange.kind), outcome)
            }
        };
        self.observe(exchange.label, exchange.started, exchange.upstream);
        match error {
            Some(error) => self.error(&exchange.command, &exchange.frame, exchange.reply_to, &error, outcome).await,
            None => {
                self.shared.metrics.commands[(exchange.label, outcome)].inc();
                Ok(())
            }
        }
    }
}

/// What the client reads.
enum Verdict {
    /// Nothing: it does not wait.
    Nothing,
    /// The reply in the connection, whose header was patched.
    AsItCame,
    /// This message.
    Instead(Bytes),
    /// Nothing yet: the command is tried again.
    Again,
}

/// Why an attempt was the last one.
enum Failed {
    Refused(Refusal),
    Client(ReadEnd),
}

impl From<Situation> for Failed {
    fn from(situation: Situation) -> Self {
        Self::Refused(Refusal::Situation(situation))
    }
}

/// Resolves when `limit` is over; never without one.
async fn over(limit: Option<(Instant, Duration)>) -> Duration {
    match limit {
        Some((at, limit)) => {
            // Boxed, as most commands have no limit and need no timer.
            Box::pin(tokio::time::sleep_until(at)).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Resolves at the end of a drain for a command that waits for data; never for others.
async fn long_polls_end(shared: &ClientShared, lane: Lane) {
    if lane == Lane::Await {
        Box::pin(shared.activity.long_polls_end()).await;
    } else {
        std::future::pending().await
    }
}

/// A server and a connection, if both are there now.
fn acquire_now(
    shared: &ClientShared,
    exchange: &mut Exchange,
) -> Result<Option<(Operation, PooledConnection)>, Refusal> {
    let Some(operation) = find_server(shared, exchange)? else { return Ok(None) };
    if exchange.lane == Lane::Await && exchange.long_poll.is_none() {
        exchange.long_poll = operation.server().long_polls.try_enter();
        if exchange.long_poll.is_none() {
            return Ok(None);
        }
    }
    match operation.server().pool.try_check_out() {
        Ok(Some(connection)) => {
            shared.metrics.wait_queue_seconds.observe(0.0);
            Ok(Some((operation, connection)))
        }
        Ok(None) | Err(_) => Ok(None),
    }
}

/// The server that the command goes to now; `None` when waiting may help.
fn find_server(shared: &ClientShared, exchange: &Exchange) -> Result<Option<Operation>, Refusal> {
    let cluster = &shared.cluster;
    let topology = cluster.topology();
    let route = route(&exchange.command, &exchange.frame, &mut lock(&cluster.pins), &topology, Instant::now());
    match route {
        Route::Await(_) => Ok(None),
        Route::Server(address) => match cluster.operation_on(&address) {
            Some(operation) if operation.server().health.passes() => Ok(Some(operation)),
            Some(_) => Err(Situation::BreakerOpen { why: cluster.refusal() }.into()),
            None => Err(Situation::ServerLeft { server: (*address).clone() }.into()),
        },
        Route::Select(criteria) => {
            let chosen = cluster.try_select(criteria, exchange.failed.as_deref());
            chosen.map_err(|error| no_server(error, Duration::ZERO).into())
        }
        Route::Lost(Lost::Cursor) => {
            let id = exchange.command.cursor_id(&exchange.frame).unwrap_or_default();
            Err(Refusal::Reply(errors::cursor_not_found(id)))
        }
        Route::Lost(Lost::Transaction(server)) => Err(Situation::ServerLeft { server: (*server).clone() }.into()),
    }
}

/// Waits for a server that suits and for one of its connections.
///
/// # Cancel safety
/// Safe: whoever is dropped leaves every queue.
async fn acquire(shared: &ClientShared, exchange: &mut Exchange) -> Result<(Operation, PooledConnection), Refusal> {
    let cluster = &shared.cluster;
    let began = Instant::now();
    let _waits = admit(shared, exchange).await?;
    loop {
        let operation = match find_server(shared, exchange)? {
            Some(operation) => operation,
            None => match wait_for_server(shared, exchange, began).await? {
                Some(operation) => operation,
                None => continue,
            },
        };
        let pool = operation.server().pool.clone();
        let queued = Instant::now();
        let until = exchange.within(cluster.config.wait_queue_timeout);
        if exchange.lane == Lane::Await && exchange.long_poll.is_none() {
            match tokio::time::timeout_at(until, operation.server().long_polls.enter()).await {
                Ok(place) => exchange.long_poll = Some(place),
                Err(_) => return Err(waited_in_vain(shared, &operation, queued).into()),
            }
        }
        match pool.check_out(exchange.lane, until).await {
            Ok(connection) => {
                shared.metrics.wait_queue_seconds.observe(began.elapsed().as_secs_f64());
                return Ok((operation, connection));
            }
            Err(CheckOutError::Cleared | CheckOutError::Closed) => {
                drop(operation);
                if let Some(expired) = exchange.expired() {
                    return Err(expired.into());
                }
                let waited = began.elapsed();
                if waited > cluster.config.server_selection_timeout + cluster.config.wait_queue_timeout {
                    let why = cluster.problem(&cluster.topology());
                    return Err(Situation::NoSuitableServer { waited, why }.into());
                }
                tokio::time::sleep(REROUTE_PAUSE).await;
                cluster.reconcile(&cluster.topology());
            }
            Err(CheckOutError::Timeout) => {
                return Err(exchange.expired().unwrap_or_else(|| waited_in_vain(shared, &operation, queued)).into());
            }
        }
    }
}

/// The permission to wait. Commit and abort always get it: they free what others wait for. An unacknowledged write cannot
/// be refused, so its client waits for the permission, too.
async fn admit(shared: &ClientShared, exchange: &Exchange) -> Result<Permit, Refusal> {
    let admission = &shared.cluster.admission;
    let full = |AdmitError::QueueFull { waiting }: AdmitError| {
        let config = &shared.cluster.config;
        let (limit, connections) = (config.wait_queue_size, config.pool.max_pool_size);
        Refusal::Situation(Situation::QueueFull { waiting, limit, connections })
    };
    match exchange.kind {
        OperationKind::CommitOrAbort => Ok(admission.admit_always()),
        OperationKind::Unacknowledged => {
            let until = exchange.within(shared.cluster.config.wait_queue_timeout);
            admission.admit_until(until).await.map_err(full)
        }
        _ => admission.admit().map_err(full),
    }
}

/// `None` when there is news of the server that the command is bound to: it is to be routed anew.
async fn wait_for_server(
    shared: &ClientShared,
    exchange: &Exchange,
    began: Instant,
) -> Result<Option<Operation>, Refusal> {
    let cluster = &shared.cluster;
    let deadline = exchange.within(cluster.config.server_selection_timeout.saturating_sub(began.elapsed()));
    let topology = cluster.topology();
    let now = Instant::now();
    let route = route(&exchange.command, &exchange.frame, &mut lock(&cluster.pins), &topology, now);
    let found = match route {
        Route::Select(criteria) => cluster.select(criteria, exchange.failed.as_deref(), deadline).await.map(Some),
        Route::Await(server) => cluster.await_news(&server, deadline).await.map(|()| None),
        // The topology has changed since the look before this one.
        Route::Server(_) | Route::Lost(_) => Ok(None),
    };
    found.map_err(|error| match (&error, exchange.expired()) {
        (SelectError::NoSuitableServer(_), Some(expired)) => expired.into(),
        _ => no_server(error, began.elapsed()).into(),
    })
}

fn no_server(error: SelectError, waited: Duration) -> Situation {
    match error {
        SelectError::BreakerOpen(why) => Situation::BreakerOpen { why },
        SelectError::NoSuitableServer(why) => Situation::NoSuitableServer { waited, why },
    }
}

/// No connection in time: because all are busy, or because none can be made.
fn waited_in_vain(shared: &ClientShared, operation: &Operation, queued: Instant) -> Situation {
    let snapshot = operation.server().pool.snapshot();
    let server = (*operation.server().address).clone();
    match snapshot.last_connect_error {
        Some(why) if snapshot.counts.available + snapshot.counts.in_use == 0 => {
            Situation::ConnectFailed { server, why }
        }
        _ => Situation::QueueTimeout {
            server,
            waited: queued.elapsed(),
            connections: snapshot.max_pool_size,
            waiting: shared.cluster.admission.waiting(),
        },
    }
}

fn count_shed(shared: &ClientShared, situation: &Situation, kind: OperationKind) {
    let reason = match situation {
        _ if kind == OperationKind::Unacknowledged && !situation.after_complete_write() => ShedReason::Unacknowledged,
        Situation::QueueFull { .. } => ShedReason::QueueFull,
        Situation::QueueTimeout { .. } => ShedReason::QueueTimeout,
        Situation::RequestOverMemory { .. } => ShedReason::Memory,
        _ => return,
    };
    shared.metrics.shed[reason].inc();
}
