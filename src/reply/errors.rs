//! The only place that knows wire codes: codes with their names, labels, and the errors of the façade.
//!
//! Errors of the façade concern one command and not the upstream; what is answered when the upstream is in trouble is
//! the matrix, in `matrix`. An upstream's own error is data and passes as it is, but for the state-change codes, which
//! `cloak` rewrites.

use std::borrow::Cow;
use std::ops::BitOr;

use bson::raw::{RawArrayBuf, RawDocumentBuf, cstr};
use bson::rawdoc;

use crate::wire::OpMsgError;
use crate::wire::legacy::LegacyFault;

/// Longest `errmsg` in bytes: texts may quote a client's command name or an upstream's message, which have no bound.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// An error code with its name, as the server pairs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// `code` in the reply.
    pub number: i32,
    /// `codeName` in the reply.
    pub name: &'static str,
}

/// The codes that the proxy sends.
pub mod code {
    #![allow(missing_docs, reason = "the names are the server's, or say what the numbered ones stand for")]
    use super::Code;

    const fn code(number: i32, name: &'static str) -> Code {
        Code { number, name }
    }

    pub const BAD_VALUE: Code = code(2, "BadValue");
    pub const HOST_UNREACHABLE: Code = code(6, "HostUnreachable");
    pub const UNAUTHORIZED: Code = code(13, "Unauthorized");
    pub const TYPE_MISMATCH: Code = code(14, "TypeMismatch");
    pub const OVERFLOW: Code = code(15, "Overflow");
    pub const PROTOCOL_ERROR: Code = code(17, "ProtocolError");
    pub const AUTHENTICATION_FAILED: Code = code(18, "AuthenticationFailed");
    pub const ILLEGAL_OPERATION: Code = code(20, "IllegalOperation");
    pub const INVALID_BSON: Code = code(22, "InvalidBSON");
    pub const CURSOR_NOT_FOUND: Code = code(43, "CursorNotFound");
    pub const MAX_TIME_MS_EXPIRED: Code = code(50, "MaxTimeMSExpired");
    pub const COMMAND_NOT_FOUND: Code = code(59, "CommandNotFound");
    pub const NETWORK_TIMEOUT: Code = code(89, "NetworkTimeout");
    pub const EXCEEDED_MEMORY_LIMIT: Code = code(146, "ExceededMemoryLimit");
    pub const CLIENT_METADATA_MISSING_FIELD: Code = code(183, "ClientMetadataMissingField");
    pub const CLIENT_METADATA_APP_NAME_TOO_LARGE: Code = code(184, "ClientMetadataAppNameTooLarge");
    pub const CLIENT_METADATA_DOCUMENT_TOO_LARGE: Code = code(185, "ClientMetadataDocumentTooLarge");
    pub const CLIENT_METADATA_CANNOT_BE_MUTATED: Code = code(186, "ClientMetadataCannotBeMutated");
    pub const NO_SUCH_TRANSACTION: Code = code(251, "NoSuchTransaction");
    pub const OPERATION_NOT_SUPPORTED_IN_TRANSACTION: Code = code(263, "OperationNotSupportedInTransaction");
    pub const API_VERSION_ERROR: Code = code(322, "APIVersionError");
    pub const API_STRICT_ERROR: Code = code(323, "APIStrictError");
    pub const MECHANISM_UNAVAILABLE: Code = code(334, "MechanismUnavailable");
    pub const UNSUPPORTED_OP_QUERY_COMMAND: Code = code(352, "UnsupportedOpQueryCommand");
    pub const USER_WRITES_BLOCKED: Code = code(371, "UserWritesBlocked");
    pub const INGRESS_REQUEST_RATE_LIMIT_EXCEEDED: Code = code(462, "IngressRequestRateLimitExceeded");
    pub const INVALID_BASE64: Code = code(10270, "Location10270");
    pub const WRONG_TYPE: Code = code(13111, "Location13111");
    pub const AWAIT_ARGUMENTS_APART: Code = code(31368, "Location31368");
    pub const MISSING_FIELD: Code = code(40414, "Location40414");
    pub const UNKNOWN_FIELD: Code = code(40415, "Location40415");
    pub const MULTIPLE_BODIES: Code = code(40430, "Location40430");
    pub const UNKNOWN_SECTION: Code = code(40432, "Location40432");
    pub const NO_DATABASE: Code = code(40571, "Location40571");
    pub const NO_BODY: Code = code(40587, "Location40587");
    pub const NEGATIVE_VALUE: Code = code(51024, "Location51024");
    pub const API_ARGUMENTS_WITHOUT_VERSION: Code = code(4_886_600, "Location4886600");
    pub const ANOTHER_USER_OF_ANOTHER_DATABASE: Code = code(5_626_701, "Location5626701");
    pub const ANOTHER_USER: Code = code(5_626_702, "Location5626702");
    pub const LEGACY_OPCODE: Code = code(5_739_101, "Location5739101");
}

/// Two kinds of error by which a server says that it can no longer do what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateChangeKind {
    /// It is not, or no longer, the primary; its connections stay good.
    NotPrimary,
    /// It is about to end; its connections will close.
    Shutdown,
}

impl StateChangeKind {
    /// The kind of an upstream's error code, `None` for all codes that say nothing about the server itself.
    pub fn of(code: i32) -> Option<Self> {
        match code {
            // PrimarySteppedDown, NotWritablePrimary, InterruptedDueToReplStateChange, NotPrimaryNoSecondaryOk,
            // NotPrimaryOrSecondary, LegacyNotPrimary.
            189 | 10107 | 11602 | 13435 | 13436 | 10058 => Some(Self::NotPrimary),
            // InterruptedAtShutdown, ShutdownInProgress.
            11600 | 91 => Some(Self::Shutdown),
            _ => None,
        }
    }
}

/// True for the codes with which a server refuses a command before it has begun with it; the others may also interrupt one
/// that has done a part.
pub fn refuses_at_start(code: i32) -> bool {
    // NotWritablePrimary, NotPrimaryNoSecondaryOk, NotPrimaryOrSecondary, LegacyNotPrimary.
    matches!(code, 10107 | 13435 | 13436 | 10058)
}

/// The `errorLabels` that mean something to drivers, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Labels(u8);

impl Labels {
    /// No label.
    pub const NONE: Self = Self(0);
    /// Send the same `txnNumber` again, once.
    pub const RETRYABLE_WRITE: Self = Self(1);
    /// Start the transaction over.
    pub const TRANSIENT_TRANSACTION: Self = Self(1 << 1);
    /// Resume the change stream.
    pub const RESUMABLE_CHANGE_STREAM: Self = Self(1 << 2);
    /// With [`Self::RETRYABLE_WRITE`]: report an earlier attempt's error rather than this one.
    pub const NO_WRITES_PERFORMED: Self = Self(1 << 3);
    /// Back off before anything is sent again.
    pub const SYSTEM_OVERLOADED: Self = Self(1 << 4);
    /// Certainly not executed: any command may be sent again.
    pub const RETRYABLE: Self = Self(1 << 5);
    /// The pair that makes drivers back off and send again whatever it was.
    pub const NOT_SENT: Self = Self(Self::SYSTEM_OVERLOADED.0 | Self::RETRYABLE.0);

    /// What says that this attempt has changed nothing.
    pub const NOTHING_DONE: Self = Self(Self::NO_WRITES_PERFORMED.0 | Self::RETRYABLE.0);

    const NAMES: [(Self, &'static str); 6] = [
        (Self::RETRYABLE_WRITE, "RetryableWriteError"),
        (Self::TRANSIENT_TRANSACTION, "TransientTransactionError"),
        (Self::RESUMABLE_CHANGE_STREAM, "ResumableChangeStreamError"),
        (Self::NO_WRITES_PERFORMED, "NoWritesPerformed"),
        (Self::SYSTEM_OVERLOADED, "SystemOverloadedError"),
        (Self::RETRYABLE, "RetryableError"),
    ];

    /// True when all of `other` are in the set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when at least one of `other` is in the set.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// True for the empty set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set without those of `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The label of that name; empty for names we do not act on.
    pub fn from_name(name: &str) -> Self {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map_or(Self::NONE, |(label, _)| label)
    }

    /// The names as they stand in a reply.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(label, _)| self.contains(*label)).map(|(_, name)| name)
    }
}

impl BitOr for Labels {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An error in the proxy's own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    /// `code` and `codeName`.
    pub code: Code,
    /// `errmsg`, with the prefix that tells our errors from a server's.
    pub message: String,
    /// `errorLabels`; absent when empty.
    pub labels: Labels,
    /// `baseBackoffMS`, a hint for drivers that back off, milliseconds.
    pub base_backoff_ms: Option<i32>,
}

impl ErrorReply {
    /// An error without labels. The text gets the prefix, loses what old drivers would take for a state change, and is
    /// cut at [`MAX_MESSAGE_BYTES`].
    pub fn new(code: Code, message: &str) -> Self {
        // Cut first: scrubbing a text of unknown length is not for free.
        let cut = message.get(..message.floor_char_boundary(MAX_MESSAGE_BYTES)).unwrap_or_default();
        let mut message = format!("mongomux: {}", scrub(cut));
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        Self { code, message, labels: Labels::NONE, base_backoff_ms: None }
    }

    /// An error in a server's own words: programs and people look for some of them.
    pub fn of_server(code: Code, message: &str) -> Self {
        let cut = message.get(..message.floor_char_boundary(MAX_MESSAGE_BYTES)).unwrap_or_default();
        Self { code, message: cut.to_owned(), labels: Labels::NONE, base_backoff_ms: None }
    }

    /// The document that the client reads.
    pub fn to_document(&self) -> RawDocumentBuf {
        let mut document =
            rawdoc! {"ok": 0.0, "errmsg": &*self.message, "code": self.code.number, "codeName": self.code.name};
        if !self.labels.is_empty() {
            document.append(cstr!("errorLabels"), self.labels.names().collect::<RawArrayBuf>());
        }
        if let Some(milliseconds) = self.base_backoff_ms {
            document.append(cstr!("baseBackoffMS"), milliseconds);
        }
        document
    }
}

/// Replaces the phrases by which drivers recognise a state change where no code tells them.
pub fn scrub(message: &str) -> Cow<'_, str> {
    const PHRASES: [(&str, &str); 2] = [("not master", "not primary"), ("node is recovering", "server is recovering")];
    let mut scrubbed = Cow::Borrowed(message);
    for (phrase, replacement) in PHRASES {
        // Drivers look without regard to case. Lower-casing ASCII keeps all offsets.
        let lower = scrubbed.to_ascii_lowercase();
        let mut rest = 0;
        let mut clean = String::new();
        for (start, found) in lower.match_indices(phrase) {
            clean.push_str(&scrubbed[rest..start]);
            clean.push_str(replacement);
            rest = start.saturating_add(found.len());
        }
        if rest > 0 {
            clean.push_str(&scrubbed[rest..]);
            scrubbed = Cow::Owned(clean);
        }
    }
    scrubbed
}

/// The answer to a malformed OP_MSG; `None` when the connection closes without one.
pub fn op_msg(error: &OpMsgError) -> Option<ErrorReply> {
    let code = match error {
        OpMsgError::RequiredFlag(_) | OpMsgError::Corrupt => return None,
        OpMsgError::MultipleBodies => code::MULTIPLE_BODIES,
        OpMsgError::NoBody => code::NO_BODY,
        OpMsgError::UnknownSection(_) => code::UNKNOWN_SECTION,
        OpMsgError::SecurityToken => code::UNAUTHORIZED,
        OpMsgError::Overflow => code::OVERFLOW,
        OpMsgError::InvalidBson => code::INVALID_BSON,
    };
    Some(ErrorReply::new(code, &error.to_string()))
}

/// The document for a legacy message that is refused; failed queries have a shape of their own.
pub fn legacy(fault: &LegacyFault) -> RawDocumentBuf {
    let code = match fault {
        LegacyFault::Query | LegacyFault::GetMore => {
            let ErrorReply { code, message, .. } = ErrorReply::new(code::LEGACY_OPCODE, &fault.to_string());
            return rawdoc! {"$err": message, "code": code.number, "ok": 0.0};
        }
        LegacyFault::Command(_) => code::UNSUPPORTED_OP_QUERY_COMMAND,
        LegacyFault::InvalidBson => code::INVALID_BSON,
    };
    ErrorReply::new(code, &fault.to_string()).to_document()
}

/// A command document that does not hold together.
pub fn invalid_bson() -> ErrorReply {
    ErrorReply::new(code::INVALID_BSON, "the command is not a well-formed BSON document")
}

/// A command without `$db`.
pub fn no_database() -> ErrorReply {
    ErrorReply::new(code::NO_DATABASE, "OP_MSG requests require a $db argument")
}

/// A `$db` that is no string.
pub fn database_type() -> ErrorReply {
    ErrorReply::new(code::WRONG_TYPE, "field '$db' is the wrong type, expected string")
}

/// A command that the proxy does not know and must not pass, such as those between servers.
pub fn command_not_found(name: &str) -> ErrorReply {
    ErrorReply::new(code::COMMAND_NOT_FOUND, &format!("no such command: '{name}'"))
}

/// A command that would harm other clients or needs a connection of its own.
pub fn not_allowed(name: &str) -> ErrorReply {
    unauthorized(&format!("{name} is not allowed through the proxy; connect to the server directly for it"))
}

/// A refusal with a reason of its own; drivers neither retry it nor think less of the server.
pub fn unauthorized(why: &str) -> ErrorReply {
    ErrorReply::new(code::UNAUTHORIZED, why)
}

/// A cursor of another user, where the server cannot tell them apart.
pub fn not_your_cursor(command: &str) -> ErrorReply {
    unauthorized(&format!("{command}: the cursor was not created by the authenticated user"))
}

/// A transaction of another user, where the server cannot tell them apart; to whoever asks it does not exist.
pub fn not_your_transaction(number: i64) -> ErrorReply {
    let message = format!("Given transaction number {number} does not match any in-progress transactions");
    ErrorReply { labels: Labels::TRANSIENT_TRANSACTION, ..ErrorReply::new(code::NO_SUCH_TRANSACTION, &message) }
}

/// A logout without login.
pub fn not_logged_in() -> ErrorReply {
    unauthorized("command logout requires authentication")
}

/// A login, although clients do not log in here.
pub fn credentials_not_expected() -> ErrorReply {
    ErrorReply::new(
        code::MECHANISM_UNAVAILABLE,
        "clients do not authenticate here: the proxy is configured with auth = \"none\"; remove user name, password \
         and authMechanism from the connection string (URI)",
    )
}

/// The second step of a login without the first.
pub fn no_sasl_session() -> ErrorReply {
    ErrorReply::new(code::PROTOCOL_ERROR, "no SASL session state found; saslContinue must follow saslStart")
}

/// A new cursor or transaction for which there is no room in our tables. Nothing of a transaction was sent; a cursor was
/// made, and is killed.
pub fn too_many_pins(what: &str, why: &str) -> ErrorReply {
    let labels = match what {
        "transaction" => Labels::TRANSIENT_TRANSACTION | Labels::NOT_SENT,
        _ => Labels::NONE,
    };
    ErrorReply {
        labels,
        ..ErrorReply::new(code::INGRESS_REQUEST_RATE_LIMIT_EXCEEDED, &format!("no further {what}: {why}"))
    }
}

/// A new cursor whose id another server uses, too. It is killed; whoever asks again gets one with another id.
pub fn cursor_collision(why: &str) -> ErrorReply {
    ErrorReply::new(code::HOST_UNREACHABLE, &format!("the cursor is lost: {why}"))
}

/// A transaction that we have ended, since its client was idle for too long. Drivers run it again from its start.
pub fn transaction_was_idle(why: &str) -> ErrorReply {
    let message = format!("the transaction is lost: {why}");
    ErrorReply { labels: Labels::TRANSIENT_TRANSACTION, ..ErrorReply::new(code::NO_SUCH_TRANSACTION, &message) }
}

/// True for a code after which a cursor cannot be continued: not found, or killed.
pub fn cursor_is_gone(code: i32) -> bool {
    matches!(code, 43 | 237)
}

/// True for a code after which a transaction cannot be continued: unknown, or overtaken by a newer one of its session.
pub fn transaction_is_gone(code: i32) -> bool {
    matches!(code, 251 | 225)
}

/// A cursor that nobody knows, or that a server took along when it shut down.
pub fn cursor_not_found(id: i64) -> ErrorReply {
    ErrorReply::new(code::CURSOR_NOT_FOUND, &format!("cursor id {id} not found"))
}

/// A statement of a transaction that runs in another cluster than the one that has its database. Nobody sends it again; the
/// transaction itself can go on.
pub fn second_cluster(runs_in: &str, database: &str, belongs_to: &str) -> ErrorReply {
    let message = format!(
        "the transaction runs in cluster `{runs_in}` and the database `{database}` is in cluster `{belongs_to}`: one \
         transaction cannot take in both"
    );
    ErrorReply::new(code::OPERATION_NOT_SUPPORTED_IN_TRANSACTION, &message)
}

/// One command about databases of two clusters. Nobody sends it again.
pub fn two_clusters(command: &str, (database, cluster): (&str, &str), (other, of): (&str, &str)) -> ErrorReply {
    let message = format!(
        "{command} names `{database}` of cluster `{cluster}` and `{other}` of cluster `{of}`: one command cannot take in both"
    );
    ErrorReply::new(code::ILLEGAL_OPERATION, &message)
}

/// A commit of which nobody remembers where its transaction ran. To ask a cluster that never had it would make it look as if
/// it had been aborted. Drivers call the outcome unknown after this code, and do not send the commit again and again.
pub fn commit_of_unknown_cluster() -> ErrorReply {
    let message = "the proxy does not know which of several clusters the transaction ran in: it was restarted, or too much \
                   time has passed; whether the transaction was committed is unknown";
    ErrorReply::new(code::MAX_TIME_MS_EXPIRED, message)
}

/// The abort of a transaction that none of several clusters is known to have. Drivers ignore it.
pub fn transaction_of_no_cluster() -> ErrorReply {
    let message = "the proxy does not know the transaction: nothing of it was sent, or the proxy was restarted since";
    ErrorReply::new(code::NO_SUCH_TRANSACTION, message)
}

/// An argument of the wrong BSON type; `path` names it.
pub fn type_mismatch(path: &str, expected: &str) -> ErrorReply {
    ErrorReply::new(code::TYPE_MISMATCH, &format!("field '{path}' is the wrong type, expected {expected}"))
}

/// Client metadata without a required part.
pub fn metadata_missing(path: &str) -> ErrorReply {
    let message = format!("required field '{path}' is missing in the client metadata document");
    ErrorReply::new(code::CLIENT_METADATA_MISSING_FIELD, &message)
}

/// Client metadata with an application name of `bytes` bytes, over `limit`.
pub fn metadata_app_name_too_large(bytes: usize, limit: usize) -> ErrorReply {
    let message = format!("application.name of {bytes} bytes in the client metadata is over the limit {limit}");
    ErrorReply::new(code::CLIENT_METADATA_APP_NAME_TOO_LARGE, &message)
}

/// A client metadata document of `bytes` bytes, over `limit`.
pub fn metadata_too_large(bytes: usize, limit: usize) -> ErrorReply {
    let message = format!("the client metadata document of {bytes} bytes is over the limit {limit}");
    ErrorReply::new(code::CLIENT_METADATA_DOCUMENT_TOO_LARGE, &message)
}

/// Client metadata in a later hello.
pub fn metadata_sent_again() -> ErrorReply {
    let message = "the client metadata document may only be sent in the first hello";
    ErrorReply::new(code::CLIENT_METADATA_CANNOT_BE_MUTATED, message)
}

/// One of `topologyVersion` and `maxAwaitTimeMS` without the other.
pub fn await_arguments_apart(present: &str, missing: &str) -> ErrorReply {
    ErrorReply::new(code::AWAIT_ARGUMENTS_APART, &format!("a request with '{present}' must include '{missing}'"))
}

/// An argument that may not be negative.
pub fn negative_value(path: &str, value: i64) -> ErrorReply {
    ErrorReply::new(code::NEGATIVE_VALUE, &format!("field '{path}' must be >= 0, actual value {value}"))
}

/// An `apiVersion` other than "1".
pub fn api_version(version: &str) -> ErrorReply {
    ErrorReply::new(code::API_VERSION_ERROR, &format!("cannot accept API version {version}"))
}

/// `apiStrict` with a command that is not in API version 1.
pub fn api_strict(name: &str) -> ErrorReply {
    let message = format!("apiStrict is true, but the command {name} is not in API version 1");
    ErrorReply::new(code::API_STRICT_ERROR, &message)
}

/// `apiStrict` or `apiDeprecationErrors` without `apiVersion`.
pub fn api_arguments_without_version() -> ErrorReply {
    let message = "apiStrict and apiDeprecationErrors need apiVersion";
    ErrorReply::new(code::API_ARGUMENTS_WITHOUT_VERSION, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_the_shape_that_drivers_read() {
        let mut reply = ErrorReply::new(code::UNAUTHORIZED, "no");
        let expected = rawdoc! {"ok": 0.0, "errmsg": "mongomux: no", "code": 13, "codeName": "Unauthorized"};
        assert_eq!(reply.to_document(), expected);
        reply.labels = Labels::NOT_SENT | Labels::TRANSIENT_TRANSACTION;
        reply.base_backoff_ms = Some(200);
        let expected = rawdoc! {
            "ok": 0.0, "errmsg": "mongomux: no", "code": 13, "codeName": "Unauthorized",
            "errorLabels": ["TransientTransactionError", "SystemOverloadedError", "RetryableError"],
            "baseBackoffMS": 200,
        };
        assert_eq!(reply.to_document(), expected);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let reply = command_not_found(&"ü".repeat(5000));
        assert!(reply.message.len() <= MAX_MESSAGE_BYTES && reply.message.ends_with('ü'));
        // What the scrub makes longer is cut, too.
        assert!(unauthorized(&"node is recovering".repeat(100)).message.len() <= MAX_MESSAGE_BYTES);
    }

    #[test]
    fn phrases_are_scrubbed_however_often_and_however_written() {
        assert_eq!(scrub("not master; Not Master"), "not primary; not primary");
        assert_eq!(scrub("node is recovering and not mastered"), "server is recovering and not primaryed");
        assert!(matches!(scrub("all is well"), Cow::Borrowed(_)));
    }

    #[test]
    fn faults_have_the_codes_of_the_server() {
        let codes = [
            (OpMsgError::MultipleBodies, Some(40430)),
            (OpMsgError::NoBody, Some(40587)),
            (OpMsgError::UnknownSection(9), Some(40432)),
            (OpMsgError::SecurityToken, Some(13)),
            (OpMsgError::InvalidBson, Some(22)),
            (OpMsgError::RequiredFlag(4), None),
            (OpMsgError::Corrupt, None),
        ];
        for (error, code) in codes {
            assert_eq!(op_msg(&error).map(|reply| reply.code.number), code, "{error}");
        }
        let query = legacy(&LegacyFault::Query);
        assert_eq!(query.get_i32("code").unwrap(), 5_739_101);
        assert!(query.get_str("$err").unwrap().starts_with("mongomux: OP_QUERY"));
        assert_eq!(legacy(&LegacyFault::Command("ping".into())).get_i32("code").unwrap(), 352);
        assert_eq!(legacy(&LegacyFault::InvalidBson).get_i32("code").unwrap(), 22);
    }

    #[test]
    fn codes_say_what_is_the_matter_with_a_server_a_cursor_or_a_transaction() {
        let known = [189, 10107, 11602, 13435, 13436, 10058, 11600, 91, 43, 237, 251, 225, 0, 6, 89, 112];
        let those = |is: fn(i32) -> bool| known.into_iter().filter(|code| is(*code)).collect::<Vec<_>>();
        let change = |kind| known.into_iter().filter(|code| StateChangeKind::of(*code) == kind).collect::<Vec<_>>();
        assert_eq!(change(Some(StateChangeKind::NotPrimary)), [189, 10107, 11602, 13435, 13436, 10058]);
        assert_eq!(change(Some(StateChangeKind::Shutdown)), [11600, 91]);
        assert_eq!(those(refuses_at_start), [10107, 13435, 13436, 10058], "the others may have done a part");
        assert_eq!(those(cursor_is_gone), [43, 237]);
        assert_eq!(those(transaction_is_gone), [251, 225]);
    }

    #[test]
    fn drivers_run_a_transaction_again_that_is_not_there_for_them() {
        for lost in [not_your_transaction(7), transaction_was_idle("idle for 5 s")] {
            assert_eq!((lost.code, lost.labels), (code::NO_SUCH_TRANSACTION, Labels::TRANSIENT_TRANSACTION));
        }
    }

    #[test]
    fn a_new_transaction_without_room_was_not_sent_and_a_new_cursor_was() {
        assert_eq!(too_many_pins("transaction", "").labels, Labels::TRANSIENT_TRANSACTION | Labels::NOT_SENT);
        assert_eq!(too_many_pins("cursor", "").labels, Labels::NONE);
    }

    #[test]
    fn labels_are_sets() {
        let (pair, one) = (Labels::NOT_SENT, Labels::RETRYABLE);
        assert!(pair.contains(one) && pair.contains(pair) && !one.contains(pair) && one.intersects(pair));
        assert!(!pair.intersects(Labels::TRANSIENT_TRANSACTION) && pair.contains(Labels::NONE));
        assert!(Labels::NONE.is_empty() && !one.is_empty() && !pair.intersects(Labels::NONE));
        assert_eq!(pair.without(one), Labels::SYSTEM_OVERLOADED);
        assert_eq!(pair.without(Labels::TRANSIENT_TRANSACTION), pair);
        assert_eq!(one | one, one);
        assert_eq!(Labels::NOTHING_DONE, Labels::NO_WRITES_PERFORMED | Labels::RETRYABLE);
    }

    #[test]
    fn labels_survive_the_round_trip() {
        for bits in 0..64 {
            let labels = Labels(bits);
            assert_eq!(labels.names().map(Labels::from_name).fold(Labels::NONE, BitOr::bitor), labels);
        }
        assert_eq!(Labels::from_name("SomethingNew"), Labels::NONE);
    }
}
