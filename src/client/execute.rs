//! The path of one command through upstream: acquire a connection, send, receive, relay.
//!
//! Where nothing has to be waited for, it runs straight through. Whatever fails before the request was written whole is
//! tried again on a server selected anew, within the command's deadline; after that the driver decides, on our labels.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::abandoned::{self, Abandoned};
use super::acquire::{self, Now, Refusal, Wait, acquire_now};
use super::cursors::OpenCursor;
use super::degraded::Found;
use super::exchange::Exchange;
use super::packing::Form;
use super::session::Session;
use super::shared::ClientShared;
use super::socket::ReadEnd;
#[cfg(feature = "otel")]
use super::spans;
use super::told::{self, Ended};
use crate::admission::{AdmitError, Lane};
use crate::breaker::{self, Outcome};
use crate::command::Handling;
use crate::config::Address;
use crate::reply::errors;
use crate::reply::retry::Failure;
use crate::reply::{
    Labels, OperationKind, ReplyFacts, Situation, StateChange, StateChangeAnswer, StateChangeKind, answer,
    answer_state_change, inspect, retry,
};
use crate::routing::pins::Room;
use crate::telemetry::EventKind;
use crate::telemetry::labels::{self, ClientClosed, ShedReason, Side};
use crate::topology::TopologyVersion;
use crate::upstream::in_use::Work;
use crate::upstream::pool::lock;
use crate::upstream::{Operation, PooledConnection, ReceiveError};
use crate::wire::Compressor;

/// From the second attempt on that could not be written whole, the next one waits this long, doubling up to
/// [`LONGEST_PAUSE`]: a server that takes a hello and breaks at every command is not to be hammered.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A server gets this much longer than `maxTimeMS` to say itself that the time is over.
const MAX_TIME_GRACE: Duration = Duration::from_secs(1);

/// Why a command has failed whose reply nobody waits for any more.
const CLIENT_LEFT: &str = "its client has left";

/// What became of one attempt.
enum Attempt {
    /// The client has its reply.
    Delivered,
    /// To be tried again, after a pause.
    Again(Duration),
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Carries a command out and delivers its reply, the server's or ours.
    pub(super) async fn execute(&mut self, exchange: &mut Exchange) -> Result<(), ReadEnd> {
        if let Err(error) = self.use_transaction(exchange) {
            return Box::pin(self.refused(exchange, Refusal::Reply(error))).await;
        }
        let mut now = exchange.started;
        loop {
            if let Some(poll) = &exchange.poll
                && exchange.place.is_none()
            {
                exchange.place = poll.try_enter(now);
                if exchange.place.is_none() {
                    if let Err(refusal) = Box::pin(self.await_turn(exchange)).await {
                        return Box::pin(self.refused(exchange, refusal)).await;
                    }
                    now = Instant::now();
                }
            }
            let acquired = match acquire_now(exchange, now) {
                Ok(Now::Connection(operation, connection)) => Ok((operation, connection)),
                Ok(Now::Full(found)) => self.take_turn(exchange, found, now).await,
                // Boxed: to be without a server is the exception, and a desk should not have room for it.
                Ok(Now::Nothing) => Box::pin(self.acquire(exchange, None)).await,
                Err(refusal) => Err(refusal),
            };
            let attempt = match acquired {
                Ok((operation, connection)) => self.attempt(exchange, operation, connection).await,
                Err(refusal) => Err(Failed::Refused(refusal)),
            };
            match attempt {
                Ok(Attempt::Delivered) => return Ok(()),
                Ok(Attempt::Again(Duration::ZERO)) => {}
                Ok(Attempt::Again(pause)) => {
                    // Others need it meanwhile.
                    exchange.place = None;
                    exchange.waited += pause;
                    Box::pin(tokio::time::sleep(pause)).await;
                }
                Err(Failed::Refused(refusal)) => return Box::pin(self.refused(exchange, refusal)).await,
                Err(Failed::Client(end)) => return Err(end),
            }
            now = Instant::now();
        }
    }

    /// Waits for a connection of a server that was found, as long as the client does.
    async fn take_turn(
        &mut self,
        exchange: &mut Exchange,
        found: Found,
        now: Instant,
    ) -> Result<(Operation, PooledConnection), Refusal> {
        let Some(wait) = acquire::begin_wait(exchange, now)? else {
            // It may go to another one once it may wait.
            drop(found);
            return Box::pin(self.acquire(exchange, None)).await;
        };
        match acquire::take_turn(exchange, found, &wait, |context| self.socket.poll_left(context)).await? {
            Some(acquired) => Ok(acquired),
            None => Box::pin(self.acquire(exchange, Some(wait))).await,
        }
    }

    /// Waits for a server and a connection, as long as the client does.
    async fn acquire(
        &mut self,
        exchange: &mut Exchange,
        wait: Option<Wait>,
    ) -> Result<(Operation, PooledConnection), Refusal> {
        // A write that nobody waits for is carried out although its client has hung up, as a server would do it.
        let waited_for = exchange.kind != OperationKind::Unacknowledged;
        // Nothing is lost when an arm loses: a waiter that is dropped leaves the queue, the socket keeps its bytes.
        tokio::select! {
            acquired = acquire::acquire(exchange, wait) => acquired,
            () = self.socket.left(), if waited_for => Err(Refusal::Left),
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
        if let Some((how, room)) = exchange.choose_form(&connection, &self.shared) {
            Box::pin(exchange.pack_elsewhere(how, room, &self.shared)).await;
        }
        let sent = Instant::now();
        let (command, waits) = (Some(exchange.label), exchange.claim.lane == Lane::Await);
        connection.in_use().begin(Work { command, application: self.application.id(), waits }, sent);
        let limit = self.limit(exchange, sent);
        told::started(self.who(), exchange, &operation, &connection);
        let waited_for = exchange.kind != OperationKind::Unacknowledged;
        // A request that loses was not written whole and is never executed: its connection is closed.
        let written = tokio::select! {
            biased;
            written = connection.send(exchange.message()) => written,
            () = self.socket.left(), if waited_for => {
                exchange.upstream += sent.elapsed();
                told::failed(self.who(), exchange, &operation, &connection, sent.elapsed(), &CLIENT_LEFT);
                return Err(Failed::Refused(Refusal::Left));
            }
            limit = over(limit) => return Err(self.too_slow(exchange, &operation, &connection, sent, limit).into()),
        };
        if let Err(error) = written {
            told::failed(self.who(), exchange, &operation, &connection, sent.elapsed(), &error.0);
            return self.not_written(exchange, &operation, &connection, &error.0.to_string());
        }
        self.shared.metrics.sent_bytes[Side::Upstream].inc_by(exchange.message().len() as u64);
        exchange.form = Form::Plain;
        // Nothing is lost when an arm loses: what has arrived of the reply stays in the connection, which is finished by
        // a task of its own or closed. Biased, so that a reply that is there counts more than a client that just left.
        let received = tokio::select! {
            biased;
            received = connection.receive() => received,
            () = self.socket.left() => {
                let cluster = exchange.cluster.clone();
                let left = Instant::now();
                exchange.upstream += left.duration_since(sent);
                told::failed(self.who(), exchange, &operation, &connection, left.duration_since(sent), &CLIENT_LEFT);
                self.tell_if_slow(exchange, Some(&operation.server().address), Ended::Abandoned, left);
                #[cfg(feature = "otel")]
                spans::tell_sent(&self.shared, exchange, &operation, &connection, sent, spans::End::Failed("abandoned"));
                abandoned::finish(cluster, Abandoned::new(exchange, operation, connection, sent, self.application.clone()));
                self.shared.metrics.commands[(exchange.label, labels::Outcome::Abandoned)].inc();
                return Err(Failed::Client(ReadEnd::Left));
            }
            limit = over(limit) => return Err(self.too_slow(exchange, &operation, &connection, sent, limit).into()),
            () = long_polls_end(&self.shared, exchange.claim.lane) => {
                exchange.upstream += sent.elapsed();
                told::failed(self.who(), exchange, &operation, &connection, sent.elapsed(), &"the proxy ends");
                self.lost_reply(exchange, &operation);
                let id = exchange.command.cursor_id(&exchange.frame).unwrap_or_default();
                return Err(Failed::Refused(Refusal::Reply(errors::cursor_not_found(id))));
            }
        };
        exchange.place = None;
        if let Err(ReceiveError::Silent(limit)) = received {
            return Err(self.too_slow(exchange, &operation, &connection, sent, limit).into());
        }
        let answered = Instant::now();
        let took = answered.duration_since(sent);
        exchange.upstream += took;
        if let Err(error) = received {
            told::failed(self.who(), exchange, &operation, &connection, took, &error);
            #[cfg(feature = "otel")]
            spans::tell_sent(&self.shared, exchange, &operation, &connection, sent, spans::End::Failed("network"));
            return self.no_reply(exchange, &operation, &connection, &error);
        }
        if exchange.own.is_none() {
            operation.server().pool.answered(exchange.claim.lane, took, answered);
        }
        told::answered(self.who(), exchange, &operation, &connection, took);
        #[cfg(feature = "otel")]
        spans::tell_sent(&self.shared, exchange, &operation, &connection, sent, spans::End::Answered);
        let mut undelivered = None;
        let verdict = self.judge(exchange, &operation, &mut connection, answered, &mut undelivered)?;
        if !matches!(verdict, Verdict::Again) {
            let ended = Ended::Answered(connection.reply().len());
            self.tell_if_slow(exchange, Some(&operation.server().address), ended, answered);
        }
        let delivered = match verdict {
            Verdict::Again => return Ok(Attempt::Again(Duration::ZERO)),
            Verdict::Nothing => {
                // The client will never know the id of a new one.
                if exchange.command.spec.handling != Handling::GetMore {
                    self.kill_lost(undelivered.take(), &exchange.cluster);
                }
                Ok(())
            }
            Verdict::Reply(compressor) => self.deliver(connection, compressor).await,
        };
        self.observe(exchange, true);
        if let Err(end) = delivered {
            self.kill_lost(undelivered, &exchange.cluster);
            return Err(Failed::Client(end));
        }
        self.delivered(undelivered, &exchange.cluster);
        Ok(Attempt::Delivered)
    }

    /// Makes the message ready for this connection, and pins a transaction that begins with it.
    fn prepare(
        &mut self,
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
        if let Some(poll) = &mut exchange.poll {
            let wait = poll.asks(connection.greeting.max_wire_version, Instant::now());
            exchange.command.set_await_time(&mut exchange.frame, wait);
        }
        if exchange.command.session.starts_transaction
            && let Some(transaction) = exchange.command.session.transaction()
        {
            let address = operation.server().address.clone();
            let pinned = {
                let mut pins = lock(&exchange.cluster.pins);
                let pinned = pins.pin_transaction(transaction, address, Instant::now());
                // Before its connection goes to anybody else.
                pinned.map(|()| {
                    pins.keep_room(transaction, || {
                        Room::new(operation.server().pool.transaction_begun(exchange.claim.user))
                    })
                })
            };
            pinned.map_err(|error| {
                Failed::Refused(Refusal::Reply(errors::too_many_pins("transaction", &error.to_string())))
            })?;
            // Of the transaction as it is pinned now: it may have had the number of one that has ended.
            exchange.statement = None;
            self.use_transaction(exchange).map_err(|error| Failed::Refused(Refusal::Reply(error)))?;
        }
        if exchange.command.spec.name == "commitTransaction"
            && let Some(transaction) = exchange.command.session.transaction()
        {
            lock(&exchange.cluster.pins).commit_is_sent(transaction);
        }
        exchange.frame.set_request_id(connection.next_request_id());
        Ok(())
    }

    /// The request was not written whole: it cannot have been executed, and is tried again while time and budget last.
    fn not_written(
        &self,
        exchange: &mut Exchange,
        operation: &Operation,
        connection: &PooledConnection,
        why: &str,
    ) -> Result<Attempt, Failed> {
        let server = operation.server();
        self.broke(exchange, operation, connection, why);
        exchange.attempts = exchange.attempts.saturating_add(1);
        let in_time = Instant::now() < exchange.sent_by(&exchange.cluster.config());
        if in_time && self.again(exchange, operation, Failure::NotWritten) {
            let doubled = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(exchange.attempts.into()).unwrap_or(u32::MAX));
            let pause = if exchange.attempts > 1 { doubled.min(LONGEST_PAUSE) } else { Duration::ZERO };
            return Ok(Attempt::Again(pause));
        }
        Err(Situation::NotWritten { server: (*server.address).clone(), why: why.to_owned() }.into())
    }

    /// Whether to send the command once more: only where that is safe, and while the retry budget lasts.
    fn again(&self, exchange: &mut Exchange, operation: &Operation, failure: Failure) -> bool {
        let Some(reason) = retry(failure, exchange.attempted(), exchange.cluster.config().retry) else { return false };
        if !operation.server().health.may_retry() {
            return false;
        }
        self.shared.metrics.retries[reason].inc();
        exchange.failed = Some(operation.server().address.clone());
        if failure != Failure::NotWritten {
            exchange.resent = true;
            exchange.may_be_done |= failure != Failure::StateChange { refused_at_start: true };
            exchange.was_sent();
        }
        true
    }

    /// When a server that does not answer is given up, and which limit that is.
    fn limit(&self, exchange: &Exchange, sent: Instant) -> Option<(Instant, Duration)> {
        let own = exchange.deadline.map(|deadline| (deadline + MAX_TIME_GRACE, deadline - exchange.started));
        exchange.command_timeout.map(|limit| (sent + limit, limit)).into_iter().chain(own).min()
    }

    fn too_slow(
        &mut self,
        exchange: &mut Exchange,
        operation: &Operation,
        connection: &PooledConnection,
        sent: Instant,
        limit: Duration,
    ) -> Situation {
        let (server, took) = (operation.server(), sent.elapsed());
        exchange.upstream += took;
        exchange.failed = Some(server.address.clone());
        let failure = format_args!("no answer within {} ms", limit.as_millis());
        told::failed(self.who(), exchange, operation, connection, took, &failure);
        #[cfg(feature = "otel")]
        spans::tell_sent(&self.shared, exchange, operation, connection, sent, spans::End::Failed("timeout"));
        tracing::info!(server = %server.address, command = exchange.command.spec.name, ?limit, "no answer in time");
        server.command_ended(Outcome::Failure(breaker::Failure::Timeout), Instant::now());
        server.pool.doubt_idle_since(sent);
        self.lost_reply(exchange, operation);
        Situation::UpstreamTimeLimit { server: (*server.address).clone(), limit }
    }

    fn no_reply(
        &mut self,
        exchange: &mut Exchange,
        operation: &Operation,
        connection: &PooledConnection,
        error: &ReceiveError,
    ) -> Result<Attempt, Failed> {
        if exchange.command.changes_users(&exchange.frame) {
            exchange.cluster.user_changes.happened();
        }
        let server = operation.server();
        self.broke(exchange, operation, connection, &error.to_string());
        if self.again(exchange, operation, Failure::NoReply) {
            return Ok(Attempt::Again(Duration::ZERO));
        }
        self.lost_reply(exchange, operation);
        exchange.failed = Some(server.address.clone());
        Err(Situation::NoReply { server: (*server.address).clone(), why: error.to_string() }.into())
    }

    fn broke(&self, exchange: &Exchange, operation: &Operation, connection: &PooledConnection, why: &str) {
        let server = operation.server();
        // Of an older generation: the failure that made it stale was counted already.
        if server.pool.is_current(connection.generation) {
            server.command_ended(Outcome::Failure(breaker::Failure::Network), Instant::now());
        }
        if connection.is_own() {
            exchange.cluster.own_network_error(server, connection.generation, why);
        } else {
            exchange.cluster.network_error(server, connection.generation, why);
        }
    }

    /// Looks at a whole reply, acts on what it says, and decides what the client reads. A cursor that the reply leaves
    /// open goes into `undelivered`.
    fn judge(
        &mut self,
        exchange: &mut Exchange,
        operation: &Operation,
        connection: &mut PooledConnection,
        answered: Instant,
        undelivered: &mut Option<Box<OpenCursor>>,
    ) -> Result<Verdict, Failed> {
        let server = operation.server();
        let bulk_write = exchange.command.lists_bulk_results(&exchange.frame);
        let inspected = match inspect(connection.reply(), bulk_write) {
            Ok(inspected) => inspected,
            Err(error) => {
                let why = error.to_string();
                connection.distrust();
                self.broke(exchange, operation, connection, &why);
                self.lost_reply(exchange, operation);
                return Err(Situation::NoReply { server: (*server.address).clone(), why }.into());
            }
        };
        server.command_ended(Outcome::Success, answered);
        self.shared.metrics.received_bytes[Side::Upstream].inc_by(connection.received_bytes() as u64);
        if let Some(change) = inspected.state_change
            && let Some(instead) = self.state_changed(exchange, operation, change, &inspected.facts)?
        {
            return Ok(instead);
        }
        if exchange.may_be_done
            && exchange.kind != OperationKind::Read
            && !inspected.facts.ok
            && inspected.facts.labels.intersects(Labels::NOTHING_DONE)
        {
            // True of this attempt, and not of the one before.
            let failed = exchange.failed.as_ref().unwrap_or(&server.address);
            let why = "and a server refused it when it was sent again".to_owned();
            return Err(Situation::NoReply { server: (**failed).clone(), why }.into());
        }
        if let Some(time) = inspected.facts.operation_time {
            server.long_polls.heard(time);
        }
        if let Some(poll) = &mut exchange.poll {
            if poll.goes_on(connection.reply(), Instant::now()) {
                exchange.was_sent();
                return Ok(Verdict::Again);
            }
            poll.ends_with(connection.reply(), &exchange.cluster);
        }
        if let Some(error) = self.follow_cursor(exchange, server, &inspected, connection.reply()) {
            return Err(Failed::Refused(Refusal::Reply(error)));
        }
        self.follow_transaction(exchange, &inspected.facts);
        if inspected.facts.ok && exchange.command.changes_users(&exchange.frame) {
            // Before its client hears of it: who logs in from then on is looked up anew.
            exchange.cluster.user_changes.happened();
            let (events, cluster) = (&self.shared.metrics.events, &exchange.cluster.name);
            events.record(EventKind::User, Some(cluster), None, "a client's command has changed users or roles");
        }
        if server.settling.in_progress()
            && inspected.facts.ok
            && !inspected.facts.has_write_concern_error
            && exchange.awaits_majority()
        {
            server.settling.end();
        }
        *undelivered = OpenCursor::of(server, exchange.claim.user, &inspected, connection.reply());
        let outcome = if inspected.facts.ok { labels::Outcome::Completed } else { labels::Outcome::Failed };
        let rewritten = inspected.rewritten.as_deref();
        let verdict = if exchange.command.unacknowledged {
            Verdict::Nothing
        } else {
            match self.make_ready(exchange.reply_to, &server.address, rewritten, connection) {
                Ok(compressor) => Verdict::Reply(compressor),
                Err(situation) => {
                    self.kill_lost(undelivered.take(), &exchange.cluster);
                    return Err(situation.into());
                }
            }
        };
        self.shared.metrics.commands[(exchange.label, outcome)].inc();
        Ok(verdict)
    }

    /// The server says that it is not what we took it for. `None` for the reply itself, cloaked.
    fn state_changed(
        &mut self,
        exchange: &mut Exchange,
        operation: &Operation,
        change: StateChange,
        facts: &ReplyFacts,
    ) -> Result<Option<Verdict>, Failed> {
        let shutdown = change.kind == StateChangeKind::Shutdown;
        let version = change.topology_version.map(|(process_id, counter)| TopologyVersion { process_id, counter });
        exchange.cluster.state_change(operation.server(), change.code, shutdown, version);
        let nothing_done = || {
            let refused = change.refused && errors::refuses_at_start(change.code);
            refused
                && (exchange.command.has_one_statement(&exchange.frame)
                    || facts.labels.contains(Labels::NO_WRITES_PERFORMED))
        };
        let failure = Failure::StateChange { refused_at_start: nothing_done() };
        if self.again(exchange, operation, failure) {
            return Ok(Some(Verdict::Again));
        }
        match answer_state_change(change.kind, exchange.kind) {
            StateChangeAnswer::Cloaked => Ok(None),
            StateChangeAnswer::CursorLost => {
                self.lost_reply(exchange, operation);
                let id = exchange.command.cursor_id(&exchange.frame).unwrap_or_default();
                Err(Failed::Refused(Refusal::Reply(errors::cursor_not_found(id))))
            }
            StateChangeAnswer::Dropped => {
                self.shared.metrics.shed[ShedReason::Unacknowledged].inc();
                Ok(None)
            }
        }
    }

    /// Tells the client what became of its command, if it waits for it.
    pub(super) async fn refused(&mut self, exchange: &Exchange, refusal: Refusal) -> Result<(), ReadEnd> {
        let metrics = &self.shared.metrics;
        // Whoever was told to log in again can do that on a new socket only.
        let ends = matches!(refusal, Refusal::Reply(_)) && exchange.revoked().is_some();
        let (error, outcome) = match refusal {
            Refusal::Left => {
                metrics.commands[(exchange.label, labels::Outcome::Abandoned)].inc();
                self.tell_if_slow(exchange, None, Ended::Abandoned, Instant::now());
                return Err(ReadEnd::Left);
            }
            Refusal::Reply(error) => (Some(error), labels::Outcome::Failed),
            // A server had it whole before: what keeps it from being sent again does not make that undone.
            Refusal::Situation(situation)
                if exchange.resent && situation.is_certain_of_nothing_sent() && exchange.failed.is_some() =>
            {
                let why = format!("and it could not be sent again: {situation}");
                let lost = |server: &Arc<Address>| Situation::NoReply { server: (**server).clone(), why };
                (
                    exchange.failed.as_ref().map(lost).and_then(|lost| answer(&lost, exchange.kind)),
                    labels::Outcome::Failed,
                )
            }
            Refusal::Situation(situation) => {
                #[cfg(feature = "otel")]
                if !situation.after_complete_write() {
                    spans::tell_unsent(&self.shared, exchange, situation_name(&situation));
                }
                count_shed(&self.shared, &situation, exchange.kind);
                let outcome =
                    if situation.after_complete_write() { labels::Outcome::Failed } else { labels::Outcome::Refused };
                (answer(&situation, exchange.kind), outcome)
            }
        };
        self.observe(exchange, false);
        self.tell_if_slow(exchange, exchange.failed.as_deref(), Ended::Refused, Instant::now());
        match error {
            Some(error) => self.error(&exchange.command, &exchange.frame, exchange.reply_to, &error, outcome).await?,
            None => self.shared.metrics.commands[(exchange.label, outcome)].inc(),
        }
        if ends { Err(ReadEnd::Closed(ClientClosed::Revoked)) } else { Ok(()) }
    }
}

/// What the client reads.
enum Verdict {
    /// Nothing: it does not wait.
    Nothing,
    /// The reply in the connection, which was made ready for it, and how it is still to be compressed.
    Reply(Option<Compressor>),
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

/// The class of an error, for a span.
#[cfg(feature = "otel")]
fn situation_name(situation: &Situation) -> &'static str {
    match situation {
        Situation::MaxTimeExpiredInQueue { .. } => "timeout",
        Situation::QueueTimeout { .. } => "wait_queue_timeout",
        Situation::NoSuitableServer { .. } => "server_selection_timeout",
        Situation::BreakerOpen { .. } => "breaker_open",
        _ => "refused",
    }
}

fn count_shed(shared: &ClientShared, situation: &Situation, kind: OperationKind) {
    let reason = match situation {
        _ if kind == OperationKind::Unacknowledged && !situation.after_complete_write() => ShedReason::Unacknowledged,
        Situation::QueueFull { refusal, .. } => match refusal {
            AdmitError::QueueFull { .. } => ShedReason::QueueFull,
            AdmitError::BytesFull { .. } => ShedReason::QueueBytes,
            AdmitError::TenantFull { .. } => ShedReason::Tenant,
        },
        Situation::ClientsFull { of_address: true, .. } => ShedReason::MaxClientsPerAddress,
        Situation::ClientsFull { .. } => ShedReason::MaxClients,
        Situation::QueueTimeout { .. } => ShedReason::QueueTimeout,
        Situation::QueueStands { .. } => ShedReason::QueueStands,
        Situation::RequestOverMemory { .. } => ShedReason::Memory,
        _ => return,
    };
    shared.metrics.shed[reason].inc();
}
