//! What is told of commands on their way: a line for each at TRACE, with the messages and keys of the drivers' logging
//! specification, and one for each that took long. Names only: neither values nor filters of a command are ever told.

use std::fmt::Display;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::Level;

use super::ends::Ends;
use super::exchange::Exchange;
use super::session::Session;
use crate::admission::Lane;
use crate::config::Address;
use crate::config::limits::SLOW_COMMAND;
use crate::reply::ReplyFacts;
use crate::telemetry::logs::{COMMAND, SLOW};
use crate::upstream::lines::milliseconds;
use crate::upstream::{Operation, PooledConnection};
use crate::wire::op_msg::reply_document;

/// The shortest time that can be slow: a command that took less is not looked at any further.
const LEAST_SLOW: Duration = Duration::from_millis(SLOW_COMMAND.min);

/// How a command ended, for whoever reads why it took long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// A server answered, with so many bytes.
    Answered(usize),
    /// The proxy answered with an error.
    Refused,
    /// Its client has left.
    Abandoned,
}

/// Whose command it is.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    number: i64,
    ends: &'a Ends,
}

/// True when lines for each command are wanted.
fn is_wanted() -> bool {
    tracing::enabled!(target: COMMAND, Level::TRACE)
}

/// It is about to be sent.
pub(super) fn started(who: Who<'_>, exchange: &Exchange, operation: &Operation, connection: &PooledConnection) {
    if !is_wanted() {
        return;
    }
    let server = &operation.server().address;
    tracing::trace!(
        target: COMMAND, client = who.number, peer = %who.ends, commandName = exchange.command.told_name(&exchange.frame),
        databaseName = exchange.command.told_database(&exchange.frame), requestId = exchange.reply_to.request_id,
        driverConnectionId = connection.id, serverConnectionId = connection.greeting.connection_id,
        serverHost = %server.host(), serverPort = server.port(), "Command started"
    );
}

/// Its reply is there, as the server sent it.
pub(super) fn answered(
    who: Who<'_>,
    exchange: &Exchange,
    operation: &Operation,
    connection: &PooledConnection,
    took: Duration,
) {
    if !is_wanted() {
        return;
    }
    let facts = reply_document(connection.reply()).and_then(|(_, document)| ReplyFacts::read(document).ok());
    let server = &operation.server().address;
    match facts {
        Some(facts) if !facts.ok => {
            failed(
                who,
                exchange,
                operation,
                connection,
                took,
                &format_args!("code {}", facts.code.unwrap_or_default()),
            );
        }
        _ => tracing::trace!(
            target: COMMAND, client = who.number, peer = %who.ends, commandName = exchange.command.told_name(&exchange.frame),
            databaseName = exchange.command.told_database(&exchange.frame), requestId = exchange.reply_to.request_id,
            driverConnectionId = connection.id, serverConnectionId = connection.greeting.connection_id,
            serverHost = %server.host(), serverPort = server.port(), durationMS = milliseconds(took),
            "Command succeeded"
        ),
    }
}

/// The server has refused it, or there is no reply.
pub(super) fn failed(
    who: Who<'_>,
    exchange: &Exchange,
    operation: &Operation,
    connection: &PooledConnection,
    took: Duration,
    failure: &dyn Display,
) {
    let server = &operation.server().address;
    tracing::trace!(
        target: COMMAND, client = who.number, peer = %who.ends, commandName = exchange.command.told_name(&exchange.frame),
        databaseName = exchange.command.told_database(&exchange.frame), requestId = exchange.reply_to.request_id,
        driverConnectionId = connection.id, serverConnectionId = connection.greeting.connection_id,
        serverHost = %server.host(), serverPort = server.port(), durationMS = milliseconds(took), %failure,
        "Command failed"
    );
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// For lines about its commands.
    pub(super) fn who(&self) -> Who<'_> {
        Who { number: self.number(), ends: &self.ends }
    }

    /// Says so where it took long. Who waits for data is meant to take long.
    pub(super) fn tell_if_slow(&self, exchange: &Exchange, server: Option<&Address>, ended: Ended, now: Instant) {
        let took = now.saturating_duration_since(exchange.started);
        if took >= LEAST_SLOW && exchange.claim.lane != Lane::Await {
            self.tell_if_over(exchange, server, ended, took);
        }
    }

    fn tell_if_over(&self, exchange: &Exchange, server: Option<&Address>, ended: Ended, took: Duration) {
        if exchange.cluster.config().slow_command.is_none_or(|limit| took < limit) {
            return;
        }
        self.shared.metrics.slow_commands.inc();
        let (command, frame) = (&exchange.command, &exchange.frame);
        let (ended, reply_bytes) = match ended {
            Ended::Answered(bytes) => ("answered", Some(bytes)),
            Ended::Refused => ("refused", None),
            Ended::Abandoned => ("abandoned", None),
        };
        let waited = took.saturating_sub(exchange.upstream);
        tracing::info!(
            target: SLOW, client = self.number(), peer = %self.ends, application = self.application.name(), cluster = exchange.cluster.name,
            server = server.map(tracing::field::display), commandName = command.told_name(frame),
            databaseName = command.told_database(frame), collection = command.collection(frame),
            options = command.option_names(frame), transaction = command.session.in_transaction, ended,
            durationMS = milliseconds(took), serverMS = milliseconds(exchange.upstream),
            waitedMS = milliseconds(waited), reply_bytes, "slow command"
        );
    }
}
