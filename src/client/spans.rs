//! Spans of commands, for OpenTelemetry: one for each time that a command was sent, and one for each that never was. Only with
//! the feature `otel`.

use tokio::time::Instant;

use super::exchange::Exchange;
use super::shared::ClientShared;
use crate::command::Handling;
use crate::config::Address;
use crate::reply::ReplyFacts;
use crate::telemetry::otlp::CommandSpan;
use crate::upstream::{Operation, PooledConnection};
use crate::wire::op_msg::reply_document;

/// How a span ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End<'a> {
    /// With the reply in the connection.
    Answered,
    /// With an error of our own.
    Failed(&'a str),
}

/// The command was sent over `connection` then.
pub(super) fn tell_sent(
    shared: &ClientShared,
    exchange: &Exchange,
    operation: &Operation,
    connection: &PooledConnection,
    sent: Instant,
    end: End<'_>,
) {
    if !shared.metrics.spans.are_wanted() || exchange.command.is_sensitive(&exchange.frame) {
        return;
    }
    let facts = match end {
        End::Answered => reply_document(connection.reply()).and_then(|(_, reply)| ReplyFacts::read(reply).ok()),
        End::Failed(_) => None,
    };
    let opened = facts.as_ref().and_then(|facts| facts.cursor_id).filter(|&id| id != 0);
    tell(
        shared,
        exchange,
        CommandSpan {
            sent: Some(sent),
            server: Some(host_and_port(&operation.server().address)),
            connection: Some((connection.id, connection.greeting.connection_id)),
            cursor: asked_for(exchange).or(opened),
            code: facts.as_ref().filter(|facts| !facts.ok).map(|facts| facts.code.unwrap_or_default()),
            error: match end {
                End::Answered => None,
                End::Failed(why) => Some(why),
            },
            ..unsent(exchange)
        },
    );
}

/// It was never sent, or not for the last time.
pub(super) fn tell_unsent(shared: &ClientShared, exchange: &Exchange, why: &str) {
    if shared.metrics.spans.are_wanted() && !exchange.command.is_sensitive(&exchange.frame) {
        tell(shared, exchange, CommandSpan { error: Some(why), ..unsent(exchange) });
    }
}

fn tell(shared: &ClientShared, exchange: &Exchange, span: CommandSpan<'_>) {
    let parent = exchange.command.trace_context(&exchange.frame);
    shared.metrics.spans.tell(CommandSpan { parent, ..span });
}

fn unsent(exchange: &Exchange) -> CommandSpan<'_> {
    let (command, frame) = (&exchange.command, &exchange.frame);
    CommandSpan {
        parent: None,
        name: command.told_name(frame),
        database: command.told_database(frame),
        collection: command.collection(frame),
        began: exchange.unsent_since,
        sent: None,
        ended: Instant::now(),
        server: None,
        connection: None,
        cursor: asked_for(exchange),
        transaction_number: command.session.transaction_number,
        code: None,
        error: None,
    }
}

fn asked_for(exchange: &Exchange) -> Option<i64> {
    if exchange.command.spec.handling == Handling::GetMore { exchange.command.cursor_id(&exchange.frame) } else { None }
}

fn host_and_port(address: &Address) -> (String, Option<u16>) {
    (address.host().into_owned(), address.port())
}
