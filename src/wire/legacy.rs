//! The messages before OP_MSG: drivers still greet, and old ones log in, with OP_QUERY; the rest is refused.
//!
//! The documents found here go to the same local answers as those of OP_MSG and come back as OP_REPLY. The codes of
//! the refusals belong to `reply::errors`, the answer itself is built by [`op_reply`].

use bson::RawDocument;

use super::document::{Elements, document_length};
use super::frame::Frame;
use super::header::{OpCode, split_cstring, split_i32};

/// `responseFlags` of OP_REPLY.
pub mod reply_flag {
    /// The query failed and its document is `$err`.
    pub const QUERY_FAILURE: i32 = 2;
    /// Set on every other answer since version 1.6 of the server.
    pub const AWAIT_CAPABLE: i32 = 8;
}

/// Commands that are still served as OP_QUERY.
const SERVED: [&str; 6] = ["hello", "isMaster", "ismaster", "saslStart", "saslContinue", "authenticate"];

/// Of the name of a command that is not served so much is kept, to be told: a client may send one as long as a message.
const MAX_TOLD_NAME_BYTES: usize = 255;

/// What to do about a message that is neither OP_MSG nor OP_COMPRESSED.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Legacy {
    /// A handshake or login command: answer it locally, with [`op_reply`] and [`reply_flag::AWAIT_CAPABLE`].
    Command(LegacyCommand),
    /// Answer with an error; the connection stays open.
    Refused(LegacyFault),
    /// No answer is possible.
    Close,
}

/// Where the document of a served command is in its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegacyCommand {
    name: &'static str,
    start: usize,
    length: usize,
}

impl LegacyCommand {
    /// The name, one of hello, isMaster, ismaster, saslStart, saslContinue, authenticate.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The database that the message names: what stands for `$db`.
    pub fn database<'a>(&self, frame: &'a Frame) -> &'a str {
        let namespace = frame.body().get(4..).and_then(split_cstring).map(|(namespace, _)| namespace);
        let database = namespace.and_then(|namespace| namespace.strip_suffix(b".$cmd"));
        database.and_then(|database| std::str::from_utf8(database).ok()).unwrap_or_default()
    }

    /// The command document; it has no `$db`.
    pub fn document<'a>(&self, frame: &'a Frame) -> &'a [u8] {
        frame.body().get(self.start..self.start.saturating_add(self.length)).unwrap_or_default()
    }
}

/// Why a legacy message is answered with an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LegacyFault {
    /// A query on a collection.
    #[error("OP_QUERY is no longer supported; the driver may require an upgrade")]
    Query,
    /// The next batch of such a query.
    #[error("OP_GET_MORE is no longer supported; the driver may require an upgrade")]
    GetMore,
    /// A command that must be sent as OP_MSG, by the beginning of its name.
    #[error("unsupported OP_QUERY command: {0}; the driver may require an upgrade")]
    Command(String),
    /// The command document is malformed.
    #[error("the OP_QUERY document is not terminated where its length says")]
    InvalidBson,
}

impl LegacyFault {
    /// `responseFlags` of the answer.
    pub fn reply_flags(&self) -> i32 {
        match self {
            Self::Query | Self::GetMore => reply_flag::QUERY_FAILURE,
            Self::Command(_) | Self::InvalidBson => reply_flag::AWAIT_CAPABLE,
        }
    }
}

/// Decides about a legacy message.
pub fn parse(frame: &Frame) -> Legacy {
    match frame.header().op_code {
        OpCode::Query => parse_query(frame.body()).unwrap_or(Legacy::Close),
        OpCode::GetMore if names_collection(frame.body()) => Legacy::Refused(LegacyFault::GetMore),
        OpCode::GetMore => Legacy::Close,
        OpCode::Update | OpCode::Insert | OpCode::Delete | OpCode::KillCursors => Legacy::Close,
        OpCode::Reply | OpCode::Compressed | OpCode::Msg | OpCode::Other(_) => Legacy::Close,
    }
}

/// An OP_REPLY with one document.
pub fn op_reply(request_id: i32, response_to: i32, flags: i32, document: &RawDocument) -> Frame {
    let mut body = Vec::with_capacity(document.as_bytes().len().saturating_add(20));
    body.extend_from_slice(&flags.to_le_bytes());
    // cursorID and startingFrom are 0, numberReturned is 1.
    body.extend_from_slice(&[0; 12]);
    body.extend_from_slice(&1_i32.to_le_bytes());
    body.extend_from_slice(document.as_bytes());
    Frame::build(request_id, response_to, OpCode::Reply, &body)
}

/// True when an OP_GET_MORE is long enough for a namespace, which is as far as the server reads it.
fn names_collection(body: &[u8]) -> bool {
    body.get(4..).and_then(split_cstring).is_some()
}

/// `None` when the message ends before its document, which the server closes on.
fn parse_query(body: &[u8]) -> Option<Legacy> {
    let (_flags, rest) = split_i32(body)?;
    let (namespace, rest) = split_cstring(rest)?;
    let (_skip, rest) = split_i32(rest)?;
    let (_limit, rest) = split_i32(rest)?;
    // The database does not matter, and a client that only knows OP_QUERY must read why it fails.
    if !namespace.ends_with(b".$cmd") {
        return Some(Legacy::Refused(LegacyFault::Query));
    }
    let start = body.len().checked_sub(rest.len())?;
    Some(command(rest, start).unwrap_or(Legacy::Refused(LegacyFault::InvalidBson)))
}

/// The command at the start of `rest`, which itself starts at `start`; `None` when it is malformed. A projection may
/// follow and is ignored, as by the server.
fn command(rest: &[u8], start: usize) -> Option<Legacy> {
    let mut document = rest.get(..document_length(rest).ok()?)?;
    let mut start = start;
    let mut first = Elements::new(document).ok()?.next();
    // Drivers wrap the command when they send a read preference along.
    if let Some(Ok(element)) = first
        && matches!(element.name, b"$query" | b"query")
        && let Some(inner) = element.as_document()
    {
        document = inner;
        start = start.checked_add(element.offset)?;
        first = Elements::new(document).ok()?.next();
    }
    // Sound to its end, so that whoever reads the document later need not ask.
    if Elements::new(document).ok()?.any(|element| element.is_err()) {
        return None;
    }
    let name = first.and_then(Result::ok).map(|element| element.name).unwrap_or_default();
    let Some(served) = SERVED.into_iter().find(|served| served.as_bytes() == name) else {
        let told = name.get(..MAX_TOLD_NAME_BYTES).unwrap_or(name);
        return Some(Legacy::Refused(LegacyFault::Command(String::from_utf8_lossy(told).into_owned())));
    };
    Some(Legacy::Command(LegacyCommand { name: served, start, length: document.len() }))
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, rawdoc};

    use super::*;

    fn query(namespace: &str, document: &RawDocument) -> Frame {
        let mut body = 4_i32.to_le_bytes().to_vec();
        body.extend_from_slice(namespace.as_bytes());
        body.push(0);
        body.extend_from_slice(&0_i32.to_le_bytes());
        body.extend_from_slice(&(-1_i32).to_le_bytes());
        body.extend_from_slice(document.as_bytes());
        Frame::build(7, 0, OpCode::Query, &body)
    }

    fn refused(name: &str) -> Legacy {
        Legacy::Refused(LegacyFault::Command(name.to_owned()))
    }

    #[test]
    fn greetings_and_logins_are_found_on_any_database() {
        for namespace in ["admin.$cmd", "test.$cmd", "$external.$cmd", "a.b.$cmd"] {
            for name in SERVED {
                let mut document = RawDocumentBuf::new();
                document.append(<&bson::raw::CStr>::try_from(name).unwrap(), 1);
                document.append(bson::raw::cstr!("helloOk"), true);
                let frame = query(namespace, &document);
                let Legacy::Command(command) = parse(&frame) else { panic!("{namespace} {name}") };
                assert_eq!((command.name(), command.document(&frame)), (name, document.as_bytes()));
                assert_eq!(Some(command.database(&frame)), namespace.strip_suffix(".$cmd"));
            }
        }
    }

    #[test]
    fn a_wrapped_command_is_unwrapped_once() {
        for wrapper in ["$query", "query"] {
            let inner = rawdoc! {"ismaster": 1, "helloOk": true};
            let mut document = RawDocumentBuf::new();
            document.append(<&bson::raw::CStr>::try_from(wrapper).unwrap(), &inner);
            document.append(bson::raw::cstr!("$readPreference"), rawdoc! {"mode": "nearest"});
            let frame = query("admin.$cmd", &document);
            let Legacy::Command(command) = parse(&frame) else { panic!("{wrapper}") };
            assert_eq!(command.document(&frame), inner.as_bytes());
        }
        let twice = rawdoc! {"$query": {"$query": {"ismaster": 1}}};
        assert_eq!(parse(&query("admin.$cmd", &twice)), refused("$query"));
    }

    #[test]
    fn other_commands_and_queries_are_told_to_upgrade() {
        assert_eq!(parse(&query("admin.$cmd", &rawdoc! {"ping": 1})), refused("ping"));
        assert_eq!(parse(&query("admin.$cmd", &rawdoc! {"IsMaster": 1})), refused("IsMaster"));
        assert_eq!(parse(&query("admin.$cmd", &rawdoc! {})), refused(""));
        for namespace in ["test.things", "$cmd", "test.$cmd.sys.inprog", ""] {
            assert_eq!(parse(&query(namespace, &rawdoc! {"ismaster": 1})), Legacy::Refused(LegacyFault::Query));
        }
        let get_more = Frame::build(1, 0, OpCode::GetMore, b"\0\0\0\0db.c\0");
        assert_eq!(parse(&get_more), Legacy::Refused(LegacyFault::GetMore));
        assert_eq!(LegacyFault::GetMore.reply_flags(), 2);
        assert_eq!(LegacyFault::Command("ping".into()).reply_flags(), 8);
    }

    #[test]
    fn a_get_more_without_a_namespace_closes_and_each_refusal_has_its_flag() {
        for body in [&b"\0\0\0\0db.c"[..], b"\0\0\0", b""] {
            assert_eq!(parse(&Frame::build(1, 0, OpCode::GetMore, body)), Legacy::Close, "{body:?}");
        }
        assert_eq!(LegacyFault::Query.reply_flags(), reply_flag::QUERY_FAILURE);
        assert_eq!(LegacyFault::InvalidBson.reply_flags(), reply_flag::AWAIT_CAPABLE);
    }

    #[test]
    fn a_wrapper_that_holds_no_document_is_a_command_of_that_name() {
        assert_eq!(parse(&query("admin.$cmd", &rawdoc! {"$query": 1})), refused("$query"));
        assert_eq!(
            parse(&query("admin.$cmd", &rawdoc! {"find": {"hello": 1}})),
            refused("find"),
            "nor is any other one"
        );
    }

    #[test]
    fn of_a_long_name_only_the_beginning_is_kept() {
        let name = "x".repeat(100_000);
        let mut document = RawDocumentBuf::new();
        document.append(<&bson::raw::CStr>::try_from(name.as_str()).unwrap(), 1);
        assert_eq!(parse(&query("admin.$cmd", &document)), refused(&name[..MAX_TOLD_NAME_BYTES]));
    }

    #[test]
    fn what_cannot_be_answered_closes() {
        for code in [0, 1, 99, 2001, 2002, 2003, 2006, 2007, 2010, 2011] {
            let frame = Frame::build(1, 0, OpCode::from_wire(code), query("a.$cmd", &rawdoc! {"hello": 1}).body());
            assert_eq!(parse(&frame), Legacy::Close, "{code}");
        }
    }

    #[test]
    fn truncated_queries_close_or_are_called_malformed() {
        let whole = query("a.$cmd", &rawdoc! {"hello": 1, "client": {"driver": {"name": "x"}}});
        let document_start = 4 + 7 + 8;
        for length in 0..whole.body().len() {
            let cut = Frame::build(1, 0, OpCode::Query, &whole.body()[..length]);
            let expected =
                if length < document_start { Legacy::Close } else { Legacy::Refused(LegacyFault::InvalidBson) };
            assert_eq!(parse(&cut), expected, "{length}");
        }
    }

    #[test]
    fn no_damaged_byte_causes_a_panic() {
        let whole = query("a.$cmd", &rawdoc! {"$query": {"hello": 1, "client": {"driver": {"name": "x"}}}});
        for position in 0..whole.body().len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut body = whole.body().to_vec();
                body[position] = value;
                let frame = Frame::build(1, 0, OpCode::Query, &body);
                if let Legacy::Command(command) = parse(&frame) {
                    assert!(Elements::new(command.document(&frame)).unwrap().all(|element| element.is_ok()));
                }
            }
        }
    }

    #[test]
    fn a_reply_holds_its_one_document() {
        let document = rawdoc! {"ok": 1.0};
        let reply = op_reply(9, 7, reply_flag::AWAIT_CAPABLE, &document);
        assert_eq!((reply.header().op_code, reply.header().response_to), (OpCode::Reply, 7));
        let mut expected = vec![8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        expected.extend_from_slice(document.as_bytes());
        assert_eq!(reply.body(), expected);
    }
}
