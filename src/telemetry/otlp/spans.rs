//! One span for each command on its way to a server, by the drivers' OpenTelemetry specification. It is made when the command
//! has ended, so that one which nobody wants costs no more than the question.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use prometheus::IntCounter;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

use super::settings::Sampler;
use super::{number, text};

/// As many spans wait to be sent, some hundred bytes each. OpenTelemetry's default.
const QUEUE: usize = 2_048;

/// The trace goes on: the flag of a `traceparent`.
const SAMPLED: u32 = 1;

/// Where spans go, once there is something that sends them.
#[derive(Debug)]
pub struct Spans {
    queue: OnceLock<(Sender<Span>, Sampler)>,
    /// Of spans for which there was no room, or that nobody took.
    dropped: IntCounter,
}

/// The span that a command was sent in, as W3C's trace context tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the whole trace.
    pub trace_id: [u8; 16],
    /// Of the span.
    pub span_id: [u8; 8],
    /// Whoever began the trace wants it recorded.
    pub sampled: bool,
    /// What others have added; empty where there is none, or none that is sound.
    pub state: String,
}

/// What is told of a command.
#[derive(Debug, Clone)]
pub struct CommandSpan<'a> {
    /// Where its application told that it belongs.
    pub parent: Option<TraceContext>,
    /// As the client wrote it.
    pub name: &'a str,
    /// `$db`
    pub database: &'a str,
    /// Where it is known to be for one.
    pub collection: Option<&'a str>,
    /// It began to wait.
    pub began: Instant,
    /// It had a connection, and was sent over it.
    pub sent: Option<Instant>,
    /// The reply was there, or it was given up.
    pub ended: Instant,
    /// Host and port; a unix socket has none.
    pub server: Option<(String, Option<u16>)>,
    /// Our number of the connection, and the server's.
    pub connection: Option<(u64, i64)>,
    /// That it has opened, or asks for more of.
    pub cursor: Option<i64>,
    /// Of a transaction, or of a write that may be retried.
    pub transaction_number: Option<i64>,
    /// What the server refused it with.
    pub code: Option<i32>,
    /// What kind of failure it was.
    pub error: Option<&'a str>,
}

impl Spans {
    /// Nobody wants any.
    pub(crate) fn new(dropped: IntCounter) -> Self {
        Self { queue: OnceLock::new(), dropped }
    }

    /// Wanted from now on.
    pub(super) fn collect(&self, sampler: Sampler) -> Option<Receiver<Span>> {
        let (sender, receiver) = channel(QUEUE);
        self.queue.set((sender, sampler)).is_ok().then_some(receiver)
    }

    /// False when telling one would be in vain.
    pub fn are_wanted(&self) -> bool {
        self.queue.get().is_some()
    }

    /// Counts some that nobody took.
    pub(super) fn lost(&self, count: usize) {
        self.dropped.inc_by(count as u64);
    }

    /// Tells one, unless it is not to be recorded. Never waits.
    pub fn tell(&self, command: CommandSpan<'_>) {
        let Some((queue, sampler)) = self.queue.get() else { return };
        let parent = command.parent.as_ref();
        let trace_id = parent.map_or_else(rand::random, |parent| parent.trace_id);
        if !sampler.samples(trace_id, parent.map(|parent| parent.sampled)) {
            return;
        }
        if queue.try_send(command.into_span(trace_id)).is_err() {
            self.lost(1);
        }
    }
}

impl CommandSpan<'_> {
    fn into_span(self, trace_id: [u8; 16]) -> Span {
        let (now, clock) = (Instant::now(), since_epoch());
        let at = |instant: Instant| nanoseconds(clock.saturating_sub(now.saturating_duration_since(instant)));
        let on = self.collection.map_or_else(|| self.database.to_owned(), |it| format!("{}.{it}", self.database));
        let mut attributes = vec![
            text("db.system.name", "mongodb"),
            text("db.namespace", self.database),
            text("db.operation.name", self.name),
            text("db.command.name", self.name),
            text("db.query.summary", format!("{} {on}", self.name)),
        ];
        attributes.extend(self.collection.map(|collection| text("db.collection.name", collection)));
        if let Some((host, port)) = self.server {
            attributes.push(text("server.address", host));
            attributes.push(text("network.transport", if port.is_some() { "tcp" } else { "unix" }));
            attributes.extend(port.map(|port| number("server.port", port.into())));
        }
        if let Some((ours, theirs)) = self.connection {
            attributes.push(number("db.mongodb.driver_connection_id", i64::try_from(ours).unwrap_or(i64::MAX)));
            attributes.push(number("db.mongodb.server_connection_id", theirs));
        }
        attributes.extend(self.cursor.map(|cursor| number("db.mongodb.cursor_id", cursor)));
        attributes.extend(self.transaction_number.map(|it| number("db.mongodb.txn_number", it)));
        let code = self.code.map(|code| code.to_string());
        attributes.extend(code.iter().map(|code| text("db.response.status_code", code.as_str())));
        let error = self.error.map(str::to_owned).or(code);
        attributes.extend(error.iter().map(|error| text("error.type", error.as_str())));
        let status = error.map(|message| Status { message, code: StatusCode::Error.into() });
        let sent = self.sent.map(|sent| Event {
            time_unix_nano: at(sent),
            name: "sent".to_owned(),
            attributes: vec![number("mongomux.waited_us", microseconds(sent.saturating_duration_since(self.began)))],
            ..Event::default()
        });
        let (parent_span_id, trace_state) = match self.parent {
            Some(parent) => (parent.span_id.to_vec(), parent.state),
            None => Default::default(),
        };
        Span {
            trace_id: trace_id.to_vec(),
            span_id: rand::random::<[u8; 8]>().to_vec(),
            parent_span_id,
            trace_state,
            flags: SAMPLED,
            name: self.name.to_owned(),
            kind: SpanKind::Client.into(),
            start_time_unix_nano: at(self.began),
            end_time_unix_nano: at(self.ended),
            attributes,
            events: sent.into_iter().collect(),
            status,
            ..Span::default()
        }
    }
}

pub(super) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn microseconds(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn span(parent: Option<TraceContext>) -> CommandSpan<'static> {
        let began = Instant::now();
        CommandSpan {
            parent,
            name: "find",
            database: "shop",
            collection: Some("orders"),
            began,
            sent: Some(began),
            ended: began,
            server: None,
            connection: None,
            cursor: None,
            transaction_number: None,
            code: None,
            error: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_is_dropped_and_counted() {
        let spans = Spans::new(IntCounter::new("dropped", "help").unwrap());
        spans.tell(span(None));
        assert_eq!((spans.are_wanted(), spans.dropped.get()), (false, 0));
        let mut receiver = spans.collect(Sampler { by_parent: true, ratio: 1.0 }).unwrap();
        (0..QUEUE + 5).for_each(|_| spans.tell(span(None)));
        assert_eq!((receiver.len(), spans.dropped.get()), (QUEUE, 5));
        let first = receiver.recv().await.unwrap();
        assert_eq!((first.name.as_str(), first.trace_id.len(), first.parent_span_id.len()), ("find", 16, 0));
        let context = TraceContext { trace_id: [7; 16], span_id: [9; 8], sampled: false, state: String::new() };
        spans.tell(span(Some(context)));
        assert_eq!(receiver.len(), QUEUE - 1, "its parent is not recorded");
    }
}
