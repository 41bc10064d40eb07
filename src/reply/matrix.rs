//! What a command gets when no server answered it: situation × operation → error, in one `match`.
//!
//! The rule behind the labels: `SystemOverloadedError` with `RetryableError` makes a driver send *any* command again, so
//! the pair stands only where certainly nothing was sent. Once the last byte of a request may have reached the server,
//! the outcome is unknown, and only `RetryableWriteError` on what carries a `txnNumber` is safe.
//!
//! Whether the proxy tries again itself before it answers is decided in `retry`. Two situations have no row: hello is
//! answered whatever happens, and while the proxy drains commands are served as ever.

use std::sync::Arc;
use std::time::Duration;

use super::errors::{Code, ErrorReply, Labels, StateChangeKind, code};
use crate::admission::AdmitError;
use crate::config::Address;
use crate::upstream::Load;

/// What a command is to its driver once it failed: the columns of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Changes nothing, outside a transaction.
    Read,
    /// Write with `txnNumber`, outside a transaction.
    RetryableWrite,
    /// Everything else that may change something: writes without `txnNumber`, DDL, unknown commands.
    Write,
    /// Next batch of a cursor outside a transaction; a batch that got lost cannot be asked for again.
    GetMore {
        /// The cursor is a change stream, which drivers can resume.
        change_stream: bool,
    },
    /// Statement of an open transaction, its getMores included.
    InTransaction,
    /// commitTransaction or abortTransaction, both idempotent.
    CommitOrAbort,
    /// Nobody waits for an answer (w: 0).
    Unacknowledged,
}

/// Why a command got no answer from a server: the rows of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Situation {
    /// Refused at the door: the wait queue is full.
    #[error("{refusal}; {}", load.holders)]
    QueueFull {
        /// What is full.
        refusal: AdmitError,
        /// How busy the cluster is.
        load: Arc<Load>,
    },
    /// The client is one of those beyond `max_clients`, or beyond `max_clients_per_address`.
    #[error(
        "{clients} clients are connected{}, and the commands of {limit} are carried out",
        if *of_address { " from this address" } else { "" }
    )]
    ClientsFull {
        /// Clients connected.
        clients: usize,
        /// As many may have commands upstream.
        limit: usize,
        /// Both are about the client's address alone.
        of_address: bool,
    },
    /// Waited as long as it may for a connection.
    #[error("waited {waited:.1?} for a connection to {server}, with {waiting} commands waiting; {}", load.holders)]
    QueueTimeout {
        /// Where the command was to go.
        server: Address,
        /// How long it waited.
        waited: Duration,
        /// Commands that go on waiting.
        waiting: usize,
        /// How busy the cluster is.
        load: Arc<Load>,
    },
    /// Refused before its time was over, since a queue stands that drains too slowly for all.
    #[error("waited {waited:.1?} for a connection to {server} in a queue that stands; {}", load.holders)]
    QueueStands {
        /// Where the command was to go.
        server: Address,
        /// How long it waited.
        waited: Duration,
        /// How busy the cluster is.
        load: Arc<Load>,
    },
    /// The request does not fit into what is left of the memory for buffered messages.
    #[error("a request of {needed_bytes} bytes does not fit into the {limit_bytes} bytes for buffered messages")]
    RequestOverMemory {
        /// Size of the request, bytes.
        needed_bytes: usize,
        /// `memory_limit_bytes`.
        limit_bytes: usize,
    },
    /// The wait alone was as long as the command may take.
    #[error("maxTimeMS of {} ms was over before the command was sent", max_time.as_millis())]
    MaxTimeExpiredInQueue {
        /// The command's `maxTimeMS`.
        max_time: Duration,
    },
    /// The breaker of every suitable server is open.
    #[error("{why}")]
    BreakerOpen {
        /// Which servers, and what happened to them.
        why: String,
    },
    /// Refused by order of the operator: it may write.
    #[error("the proxy is in read-only mode, and this command may write")]
    ReadOnly,
    /// Refused or held in vain by order of the operator: it is new.
    #[error("the proxy is in maintenance mode and starts nothing new{}", in_vain(*waited))]
    Maintenance {
        /// How long it has waited.
        waited: Duration,
    },
    /// No server that the command could go to appeared in time.
    #[error("no suitable server{}: {why}", within(*waited))]
    NoSuitableServer {
        /// How long server selection waited.
        waited: Duration,
        /// What was looked for and what is known.
        why: String,
    },
    /// TCP, TLS, hello or authentication towards the server failed.
    #[error("cannot connect to {server}: {why}")]
    ConnectFailed {
        /// Where.
        server: Address,
        /// What happened.
        why: String,
    },
    /// The server that holds the cursor or transaction is no longer part of the topology.
    #[error("{server} has left the topology")]
    ServerLeft {
        /// The server that was remembered.
        server: Address,
    },
    /// The connection died before the request was written to its last byte: the server cannot have executed it.
    #[error("the connection to {server} broke while the request was written: {why}")]
    NotWritten {
        /// Where.
        server: Address,
        /// What happened.
        why: String,
    },
    /// The connection died between the last byte of the request and the last byte of the reply.
    #[error("the connection to {server} broke before its reply was complete: {why}")]
    NoReply {
        /// Where.
        server: Address,
        /// What happened.
        why: String,
    },
    /// `command_timeout_ms` or `socket_timeout_ms` was over; the connection was closed.
    #[error("{server} did not answer within {limit:.1?}")]
    UpstreamTimeLimit {
        /// Where.
        server: Address,
        /// The limit that was over.
        limit: Duration,
    },
    /// The reply does not fit into what is left of the memory for buffered messages.
    #[error("a reply of {needed_bytes} bytes from {server} does not fit into the {limit_bytes} bytes for messages")]
    ReplyOverMemory {
        /// Where it came from.
        server: Address,
        /// Size of the reply, bytes.
        needed_bytes: usize,
        /// `memory_limit_bytes`.
        limit_bytes: usize,
    },
}

fn in_vain(waited: Duration) -> String {
    if waited.is_zero() { String::new() } else { format!("; waited {waited:.1?} in vain") }
}

fn within(waited: Duration) -> String {
    if waited.is_zero() { String::new() } else { format!(" within {waited:.1?}") }
}

impl Situation {
    /// How long those who wait will take, where that is what is wrong and it is known.
    fn drains_in(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { load, .. } | Self::QueueTimeout { load, .. } | Self::QueueStands { load, .. } => {
                load.drains_in
            }
            _ => None,
        }
    }

    /// True where the answer to some command says that nothing was sent, or that nothing was written.
    pub fn is_certain_of_nothing_sent(&self) -> bool {
        let row = row(self);
        row.write.1.contains(NOT_SENT) || row.retryable_write.1.contains(NOTHING_WRITTEN)
    }

    /// True once the last byte of the request may have reached the server: the outcome is unknown.
    pub fn after_complete_write(&self) -> bool {
        match self {
            Self::QueueFull { .. }
            | Self::ClientsFull { .. }
            | Self::QueueTimeout { .. }
            | Self::QueueStands { .. }
            | Self::RequestOverMemory { .. }
            | Self::MaxTimeExpiredInQueue { .. }
            | Self::BreakerOpen { .. }
            | Self::ReadOnly
            | Self::Maintenance { .. }
            | Self::NoSuitableServer { .. }
            | Self::ConnectFailed { .. }
            | Self::ServerLeft { .. }
            | Self::NotWritten { .. } => false,
            Self::NoReply { .. } | Self::UpstreamTimeLimit { .. } | Self::ReplyOverMemory { .. } => true,
        }
    }
}

/// One cell: what the client reads.
type Cell = (Code, Labels);

/// One row, a cell for every kind of operation that is answered at all.
struct Row {
    read: Cell,
    retryable_write: Cell,
    write: Cell,
    /// `ResumableChangeStreamError` in here is meant for change streams only.
    get_more: Cell,
    in_transaction: Cell,
    commit_or_abort: Cell,
}

/// The answer to a command that got none from a server; `None` when nobody waits for one.
pub fn answer(situation: &Situation, kind: OperationKind) -> Option<ErrorReply> {
    let row = row(situation);
    let (code, labels) = match kind {
        OperationKind::Read => row.read,
        OperationKind::RetryableWrite => row.retryable_write,
        OperationKind::Write => row.write,
        OperationKind::GetMore { change_stream: true } => row.get_more,
        OperationKind::GetMore { change_stream: false } => (row.get_more.0, row.get_more.1.without(RESUMABLE)),
        OperationKind::InTransaction => row.in_transaction,
        OperationKind::CommitOrAbort => row.commit_or_abort,
        OperationKind::Unacknowledged => return None,
    };
    let consequence = match code {
        OVERLOADED => "proxy overloaded: ",
        CURSOR_LOST => "the cursor is lost: ",
        TRANSACTION_LOST => "the transaction is lost: ",
        _ => "",
    };
    let base_backoff_ms = if code == OVERLOADED { situation.drains_in().map(backoff) } else { None };
    Some(ErrorReply { labels, base_backoff_ms, ..ErrorReply::new(code, &format!("{consequence}{situation}")) })
}

/// `baseBackoffMS` for a queue that takes so long to drain: whoever comes back then finds room. Drivers wait for a random part
/// of it, doubled with each attempt, and 10 s at most.
fn backoff(drains_in: Duration) -> i32 {
    i32::try_from(drains_in.as_millis()).unwrap_or(i32::MAX).clamp(SHORTEST_BACKOFF_MS, LONGEST_BACKOFF_MS)
}

/// A shorter one is none.
const SHORTEST_BACKOFF_MS: i32 = 10;
/// What drivers take at most.
const LONGEST_BACKOFF_MS: i32 = 10_000;

/// What a client reads when a server answered with a state-change error, which no client may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateChangeAnswer {
    /// The server's error, cloaked, with the labels that the server gave it.
    Cloaked,
    /// 43: the cursor ends with its server, or is a change stream, which starts again elsewhere.
    CursorLost,
    /// Nothing: it does not wait. The write is lost, and counted.
    Dropped,
}

/// The answer to a command that a server met with a state-change error: the last two rows of the matrix.
///
/// Drivers act on the labels, which mongod has set by the same rules: a retryable write and a commit are sent again, a
/// transaction starts over. A server that shuts down takes its cursors along. A change stream resumes by 43 in every driver;
/// by a label only where there is one, which a server does not set when it refuses a getMore before it looks at the cursor.
pub fn answer_state_change(change: StateChangeKind, kind: OperationKind) -> StateChangeAnswer {
    match (change, kind) {
        (_, OperationKind::Unacknowledged) => StateChangeAnswer::Dropped,
        (_, OperationKind::GetMore { change_stream: true }) => StateChangeAnswer::CursorLost,
        (StateChangeKind::Shutdown, OperationKind::GetMore { .. }) => StateChangeAnswer::CursorLost,
        (StateChangeKind::NotPrimary | StateChangeKind::Shutdown, _) => StateChangeAnswer::Cloaked,
    }
}

const OVERLOADED: Code = code::INGRESS_REQUEST_RATE_LIMIT_EXCEEDED;
const UNREACHABLE: Code = code::HOST_UNREACHABLE;
const TIMEOUT: Code = code::NETWORK_TIMEOUT;
const EXPIRED: Code = code::MAX_TIME_MS_EXPIRED;
const WRITES_BLOCKED: Code = code::USER_WRITES_BLOCKED;
const OVER_MEMORY: Code = code::EXCEEDED_MEMORY_LIMIT;
const CURSOR_LOST: Code = code::CURSOR_NOT_FOUND;
const TRANSACTION_LOST: Code = code::NO_SUCH_TRANSACTION;

const NONE: Labels = Labels::NONE;
const NOT_SENT: Labels = Labels::NOT_SENT;
const RETRYABLE_WRITE: Labels = Labels::RETRYABLE_WRITE;
const NOTHING_WRITTEN: Labels = Labels::NO_WRITES_PERFORMED;
const TRANSIENT: Labels = Labels::TRANSIENT_TRANSACTION;
const RESUMABLE: Labels = Labels::RESUMABLE_CHANGE_STREAM;

fn row(situation: &Situation) -> Row {
    use Situation as S;
    match situation {
        // Overload. Current drivers back off and send it again, whatever it is; older ones report it. No driver clears
        // its pool. A commit frees what the others wait for, so every driver shall come back with it at once.
        S::QueueFull { .. }
        | S::ClientsFull { .. }
        | S::QueueTimeout { .. }
        | S::QueueStands { .. }
        | S::RequestOverMemory { .. } => Row {
            read: (OVERLOADED, NOT_SENT),
            retryable_write: (OVERLOADED, NOT_SENT),
            write: (OVERLOADED, NOT_SENT),
            get_more: (OVERLOADED, NOT_SENT | RESUMABLE),
            in_transaction: (OVERLOADED, NOT_SENT | TRANSIENT),
            commit_or_abort: (UNREACHABLE, NOT_SENT | RETRYABLE_WRITE),
        },
        // The client's own deadline: drivers report it as their timeout and do not retry. The maxTimeMS of a getMore
        // tells how long to wait for data, so using it up is our delay and not the client's deadline.
        S::MaxTimeExpiredInQueue { .. } => Row {
            read: (EXPIRED, NONE),
            retryable_write: (EXPIRED, NONE),
            write: (EXPIRED, NONE),
            get_more: (TIMEOUT, RESUMABLE),
            in_transaction: (EXPIRED, TRANSIENT),
            commit_or_abort: (EXPIRED, NONE),
        },
        // What a server itself says where it blocks user writes. Drivers report it and send nothing again: waiting does not
        // help before the operator says so. Only what may write comes here.
        S::ReadOnly => Row {
            read: (WRITES_BLOCKED, NONE),
            retryable_write: (WRITES_BLOCKED, NONE),
            write: (WRITES_BLOCKED, NONE),
            get_more: (WRITES_BLOCKED, NONE),
            in_transaction: (WRITES_BLOCKED, NONE),
            commit_or_abort: (WRITES_BLOCKED, NONE),
        },
        // Upstream is in trouble or has to be left alone, nothing was sent. Every driver retries reads and labelled writes,
        // current ones retry anything after a pause. The server may come back, so cursors are not given up.
        S::BreakerOpen { .. } | S::Maintenance { .. } | S::ConnectFailed { .. } => Row {
            read: (UNREACHABLE, NOT_SENT),
            retryable_write: (UNREACHABLE, NOT_SENT | RETRYABLE_WRITE | NOTHING_WRITTEN),
            write: (UNREACHABLE, NOT_SENT),
            get_more: (UNREACHABLE, NOT_SENT | RESUMABLE),
            in_transaction: (UNREACHABLE, NOT_SENT | TRANSIENT),
            commit_or_abort: (UNREACHABLE, NOT_SENT | RETRYABLE_WRITE),
        },
        // Nowhere to go although we waited. Drivers retry reads and labelled writes once; backing off as well would only
        // wait twice. Cursors and transactions are gone: change streams resume, transactions start over.
        S::NoSuitableServer { .. } | S::ServerLeft { .. } => Row {
            read: (UNREACHABLE, NONE),
            retryable_write: (UNREACHABLE, RETRYABLE_WRITE | NOTHING_WRITTEN),
            write: (UNREACHABLE, NONE),
            get_more: (CURSOR_LOST, NONE),
            in_transaction: (TRANSACTION_LOST, TRANSIENT),
            commit_or_abort: (UNREACHABLE, RETRYABLE_WRITE),
        },
        // Sent in part, and so not executed, although we tried again. What belongs to the server that breaks every time is
        // given up: change streams resume, transactions start over.
        S::NotWritten { .. } => Row {
            read: (UNREACHABLE, NONE),
            retryable_write: (UNREACHABLE, RETRYABLE_WRITE | NOTHING_WRITTEN),
            write: (UNREACHABLE, NONE),
            get_more: (CURSOR_LOST, NONE),
            in_transaction: (TRANSACTION_LOST, TRANSIENT),
            commit_or_abort: (UNREACHABLE, RETRYABLE_WRITE),
        },
        // Sent whole: nobody knows what became of it. Drivers retry reads by the code and writes by the label, which stands
        // only where the server recognises the second copy. The batch of a lost getMore may be consumed: 43 is the truth.
        S::NoReply { .. } => Row {
            read: (UNREACHABLE, NONE),
            retryable_write: (UNREACHABLE, RETRYABLE_WRITE),
            write: (UNREACHABLE, NONE),
            get_more: (CURSOR_LOST, NONE),
            in_transaction: (TRANSACTION_LOST, TRANSIENT),
            commit_or_abort: (UNREACHABLE, RETRYABLE_WRITE),
        },
        // Too slow. A second copy of a write would start the same slow statement next to the first: safe is not useful,
        // so no label. Drivers retry reads once, by the code.
        S::UpstreamTimeLimit { .. } => Row {
            read: (TIMEOUT, NONE),
            retryable_write: (TIMEOUT, NONE),
            write: (TIMEOUT, NONE),
            get_more: (CURSOR_LOST, NONE),
            in_transaction: (TRANSACTION_LOST, TRANSIENT),
            commit_or_abort: (TIMEOUT, RETRYABLE_WRITE),
        },
        // Executed, but the reply was thrown away. No driver retries 146, so that a read does not bring the same reply
        // again at once; a labelled write fetches the result that the server recorded.
        S::ReplyOverMemory { .. } => Row {
            read: (OVER_MEMORY, NONE),
            retryable_write: (OVER_MEMORY, RETRYABLE_WRITE),
            write: (OVER_MEMORY, NONE),
            get_more: (CURSOR_LOST, NONE),
            in_transaction: (TRANSACTION_LOST, TRANSIENT),
            commit_or_abort: (OVER_MEMORY, RETRYABLE_WRITE),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reply::errors::MAX_MESSAGE_BYTES;

    /// One of each, with `why` wherever a text comes from outside.
    fn situations(why: &str) -> [Situation; 16] {
        let (server, why) = (Address::tcp("db1", 27017), why.to_owned());
        let (waited, limit) = (Duration::from_millis(5040), Duration::from_secs(6));
        let holders = "10 of at most 10 upstream connections are in use".to_owned();
        let load = Arc::new(Load { holders, drains_in: Some(Duration::from_millis(4_000)) });
        let refusal = AdmitError::QueueFull { waiting: 4_000, limit: 4_000 };
        [
            Situation::QueueFull { refusal, load: load.clone() },
            Situation::ClientsFull { clients: 2117, limit: 2000, of_address: false },
            Situation::QueueTimeout { server: server.clone(), waited, waiting: 37, load: load.clone() },
            Situation::QueueStands { server: server.clone(), waited, load },
            Situation::RequestOverMemory { needed_bytes: 40_000_000, limit_bytes: 536_870_912 },
            Situation::MaxTimeExpiredInQueue { max_time: Duration::from_millis(250) },
            Situation::BreakerOpen { why: "127.0.0.1:1: circuit breaker open: refused".to_owned() },
            Situation::ReadOnly,
            Situation::Maintenance { waited },
            Situation::ConnectFailed { server: server.clone(), why: why.clone() },
            Situation::NoSuitableServer { waited, why: why.clone() },
            Situation::ServerLeft { server: server.clone() },
            Situation::NotWritten { server: server.clone(), why: why.clone() },
            Situation::NoReply { server: server.clone(), why },
            Situation::UpstreamTimeLimit { server: server.clone(), limit },
            Situation::ReplyOverMemory { server, needed_bytes: 16_000_000, limit_bytes: 536_870_912 },
        ]
    }

    const KINDS: [OperationKind; 8] = [
        OperationKind::Read,
        OperationKind::RetryableWrite,
        OperationKind::Write,
        OperationKind::GetMore { change_stream: false },
        OperationKind::GetMore { change_stream: true },
        OperationKind::InTransaction,
        OperationKind::CommitOrAbort,
        OperationKind::Unacknowledged,
    ];

    /// A cell in short: the code, then R, T, C, B for the labels of the matrix and W for NoWritesPerformed.
    fn cell(situation: &Situation, kind: OperationKind) -> String {
        let Some(reply) = answer(situation, kind) else { return "-".to_owned() };
        let letters = reply.labels.names().map(|name| match name {
            "RetryableWriteError" => 'R',
            "TransientTransactionError" => 'T',
            "ResumableChangeStreamError" => 'C',
            "NoWritesPerformed" => 'W',
            "SystemOverloadedError" => 'B',
            "RetryableError" => 'b',
            other => panic!("{other}"),
        });
        // Both halves of the pair or neither.
        format!("{}{}", reply.code.number, letters.collect::<String>()).replace("Bb", "B")
    }

    #[test]
    fn every_cell_of_the_matrix() {
        #[rustfmt::skip]
        let matrix = [
            // read  write+txn  write  getMore  stream   in txn   commit  w:0
            ["462B", "462B",  "462B", "462B", "462CB", "462TB", "6RB",  "-"], // QueueFull
            ["462B", "462B",  "462B", "462B", "462CB", "462TB", "6RB",  "-"], // ClientsFull
            ["462B", "462B",  "462B", "462B", "462CB", "462TB", "6RB",  "-"], // QueueTimeout
            ["462B", "462B",  "462B", "462B", "462CB", "462TB", "6RB",  "-"], // QueueStands
            ["462B", "462B",  "462B", "462B", "462CB", "462TB", "6RB",  "-"], // RequestOverMemory
            ["50",   "50",    "50",   "89",   "89C",   "50T",   "50",   "-"], // MaxTimeExpiredInQueue
            ["6B",   "6RWB",  "6B",   "6B",   "6CB",   "6TB",   "6RB",  "-"], // BreakerOpen
            ["371",  "371",   "371",  "371",  "371",   "371",   "371",  "-"], // ReadOnly
            ["6B",   "6RWB",  "6B",   "6B",   "6CB",   "6TB",   "6RB",  "-"], // Maintenance
            ["6B",   "6RWB",  "6B",   "6B",   "6CB",   "6TB",   "6RB",  "-"], // ConnectFailed
            ["6",    "6RW",   "6",    "43",   "43",    "251T",  "6R",   "-"], // NoSuitableServer
            ["6",    "6RW",   "6",    "43",   "43",    "251T",  "6R",   "-"], // ServerLeft
            ["6",    "6RW",   "6",    "43",   "43",    "251T",  "6R",   "-"], // NotWritten
            ["6",    "6R",    "6",    "43",   "43",    "251T",  "6R",   "-"], // NoReply
            ["89",   "89",    "89",   "43",   "43",    "251T",  "89R",  "-"], // UpstreamTimeLimit
            ["146",  "146R",  "146",  "43",   "43",    "251T",  "146R", "-"], // ReplyOverMemory
        ];
        for (situation, row) in situations("reset").iter().zip(matrix) {
            assert_eq!(KINDS.map(|kind| cell(situation, kind)), row, "{situation:?}");
        }
    }

    #[test]
    fn every_cell_of_state_change_errors() {
        use StateChangeAnswer::{Cloaked, CursorLost, Dropped};
        #[rustfmt::skip]
        let rows = [
            //                           read     write+txn write    getMore     stream      in txn   commit   w:0
            (StateChangeKind::NotPrimary, [Cloaked, Cloaked, Cloaked, Cloaked,    CursorLost, Cloaked, Cloaked, Dropped]),
            (StateChangeKind::Shutdown,   [Cloaked, Cloaked, Cloaked, CursorLost, CursorLost, Cloaked, Cloaked, Dropped]),
        ];
        for (change, row) in rows {
            assert_eq!(KINDS.map(|kind| answer_state_change(change, kind)), row, "{change:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_invites_to_do_twice_what_may_have_been_done(
            which in 0_usize..16,
            kind in 0_usize..8,
            why in ".{0,40}(not master|Node is Recovering|NOT MASTER)?.{0,1500}",
        ) {
            let situation = &situations(&why)[which];
            if let Some(reply) = answer(situation, KINDS[kind]) {
                if situation.after_complete_write() {
                    prop_assert!(!reply.labels.intersects(NOT_SENT | NOTHING_WRITTEN));
                    let safe = matches!(KINDS[kind], OperationKind::RetryableWrite | OperationKind::CommitOrAbort);
                    prop_assert!(safe || !reply.labels.contains(RETRYABLE_WRITE));
                }
                prop_assert!(!reply.labels.contains(RETRYABLE_WRITE | TRANSIENT), "a server never sends both");
                prop_assert!(!reply.labels.contains(NOTHING_WRITTEN) || reply.labels.contains(RETRYABLE_WRITE));
                prop_assert_eq!(reply.labels.intersects(NOT_SENT), reply.labels.contains(NOT_SENT));
                prop_assert_eq!(StateChangeKind::of(reply.code.number), None);
                let message = reply.to_document().get_str("errmsg").unwrap().to_ascii_lowercase();
                prop_assert!(message.starts_with("mongomux: ") && message.len() <= MAX_MESSAGE_BYTES);
                prop_assert!(!message.contains("not master") && !message.contains("node is recovering"));
            }
        }
    }

    #[test]
    fn who_is_refused_for_a_queue_comes_back_when_it_has_drained() {
        let hints = |kind| situations("reset").map(|it| answer(&it, kind).and_then(|reply| reply.base_backoff_ms));
        let read = hints(OperationKind::Read);
        assert_eq!(read[..4], [Some(4_000), None, Some(4_000), Some(4_000)]);
        assert_eq!(read[4..], [None; 12]);
        assert_eq!(hints(OperationKind::CommitOrAbort), [None; 16], "what frees others does not back off");
        assert_eq!([0, 11, 60_000].map(|ms| backoff(Duration::from_millis(ms))), [10, 11, 10_000]);
    }

    #[test]
    fn what_was_sent_whole_may_have_been_done_and_of_what_was_not_the_answers_say_so() {
        let names = |is: fn(&Situation) -> bool| (0..16).filter(|at| is(&situations("reset")[*at])).collect::<Vec<_>>();
        assert_eq!(names(Situation::after_complete_write), [13, 14, 15]);
        // Neither the client's own deadline nor an order says anything about what was sent.
        assert_eq!(names(Situation::is_certain_of_nothing_sent), [0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12]);
    }

    #[test]
    fn who_has_not_waited_is_not_told_of_a_wait() {
        let at_once = Situation::NoSuitableServer { waited: Duration::ZERO, why: "none".to_owned() };
        assert_eq!(at_once.to_string(), "no suitable server: none");
    }

    #[test]
    fn messages_say_what_where_and_how_many() {
        let texts = situations("connection reset").map(|it| answer(&it, OperationKind::Read).unwrap().message);
        let expected = [
            "proxy overloaded: 4000 of at most 4000 commands wait; 10 of at most 10 upstream connections are in use",
            "proxy overloaded: 2117 clients are connected, and the commands of 2000 are carried out",
            "proxy overloaded: waited 5.0s for a connection to db1:27017, with 37 commands waiting; 10 of at most 10 \
             upstream connections are in use",
            "proxy overloaded: waited 5.0s for a connection to db1:27017 in a queue that stands; 10 of at most 10 upstream \
             connections are in use",
            "proxy overloaded: a request of 40000000 bytes does not fit into the 536870912 bytes for buffered messages",
            "maxTimeMS of 250 ms was over before the command was sent",
            "127.0.0.1:1: circuit breaker open: refused",
            "the proxy is in read-only mode, and this command may write",
            "the proxy is in maintenance mode and starts nothing new; waited 5.0s in vain",
            "cannot connect to db1:27017: connection reset",
            "no suitable server within 5.0s: connection reset",
            "db1:27017 has left the topology",
            "the connection to db1:27017 broke while the request was written: connection reset",
            "the connection to db1:27017 broke before its reply was complete: connection reset",
            "db1:27017 did not answer within 6.0s",
            "a reply of 16000000 bytes from db1:27017 does not fit into the 536870912 bytes for messages",
        ];
        assert_eq!(texts, expected.map(|text| format!("mongomux: {text}")));
        let at_once = Situation::Maintenance { waited: Duration::ZERO };
        assert_eq!(at_once.to_string(), "the proxy is in maintenance mode and starts nothing new");
        let lost = answer(&situations("reset")[11], OperationKind::InTransaction).unwrap();
        assert_eq!(lost.message, "mongomux: the transaction is lost: db1:27017 has left the topology");
        let lost = answer(&situations("reset")[11], OperationKind::GetMore { change_stream: false }).unwrap();
        assert_eq!(lost.message, "mongomux: the cursor is lost: db1:27017 has left the topology");
    }
}
