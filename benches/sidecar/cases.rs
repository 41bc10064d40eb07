//! What is asked, and how: a case is a command and a shape of load.

use std::fmt;
use std::str::FromStr;

use bson::{Bson, Document, RawDocument, doc, oid::ObjectId};
use mongomux::sandbox::wire_client::{HEADER_BYTES, OP_MSG, Request, WireClient, WireError};

/// Where the documents are, and where new ones go.
const DATABASE: &str = "sidecar";
const INSERTED: &str = "inserted";

/// Request id and number of the request that is answered, within a message.
const REQUEST_ID: std::ops::Range<usize> = 4..8;
const RESPONSE_TO: std::ops::Range<usize> = 8..12;

/// Different documents that are asked for in turn, so that a reply for somebody else is seen: many small ones, and large
/// ones that the server can still hold in its cache.
const SMALL_DOCUMENTS: i32 = 1_000;
const LARGE_DOCUMENTS: i32 = 64;
const HUGE_DOCUMENTS: i32 = 8;

/// Requests in flight where it is not all sockets or one.
const IN_FLIGHT: usize = 64;

/// Arrivals per second of the open loop.
const ARRIVALS: f64 = 2_500.0;

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ping,
    /// By `_id`, in a collection of this many documents of so many bytes.
    Find {
        bytes: usize,
        documents: i32,
    },
    Insert {
        bytes: usize,
    },
}

/// All commands; the first one is what a new client asks.
pub const COMMANDS: [Command; 6] = [
    Command { name: "ping", kind: Kind::Ping },
    Command { name: "find-100B", kind: Kind::Find { bytes: 100, documents: SMALL_DOCUMENTS } },
    Command { name: "find-16KiB", kind: Kind::Find { bytes: 16 << 10, documents: LARGE_DOCUMENTS } },
    Command { name: "find-1MB", kind: Kind::Find { bytes: 1_000_000, documents: HUGE_DOCUMENTS } },
    Command { name: "insert-100B", kind: Kind::Insert { bytes: 100 } },
    Command { name: "insert-16KiB", kind: Kind::Insert { bytes: 16 << 10 } },
];

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Closed loop: so many in flight, always on the same sockets.
    Same(usize),
    /// Closed loop: so many in flight, each on the next socket that has none. What thousands of clients that are idle most
    /// of the time look like.
    Turn(usize),
    /// Closed loop: every socket has one in flight.
    All,
    /// Poisson arrivals, so many a second, over all sockets.
    Open(f64),
}

/// A command in a shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    pub command: Command,
    pub shape: Shape,
}

/// What is measured unless something else is asked for: what the targets are about first.
pub const DEFAULT_CASES: &str = "find-100B@64,insert-100B@64,find-100B@turn,insert-100B@turn,find-100B@open,\
    find-16KiB@64,insert-16KiB@64,ping@64,find-100B@1,find-100B@all,find-1MB@64";

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.command.name;
        match self.shape {
            Shape::Same(sockets) => write!(f, "{name}@{sockets}"),
            Shape::Turn(_) => write!(f, "{name}@turn"),
            Shape::All => write!(f, "{name}@all"),
            Shape::Open(_) => write!(f, "{name}@open"),
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<_> = COMMANDS.iter().map(|command| command.name).collect();
        let refuse = || format!("{text} is not one of {}, and @turn, @all, @open or @SOCKETS", names.join(", "));
        let (name, shape) = text.split_once('@').ok_or_else(refuse)?;
        let command = *COMMANDS.iter().find(|command| command.name == name).ok_or_else(refuse)?;
        let shape = match shape {
            "turn" => Shape::Turn(IN_FLIGHT),
            "all" => Shape::All,
            "open" => Shape::Open(ARRIVALS),
            sockets => Shape::Same(sockets.parse().ok().filter(|sockets| *sockets > 0).ok_or_else(refuse)?),
        };
        Ok(Self { command, shape })
    }
}

impl Case {
    /// In words.
    pub fn title(&self) -> String {
        let command = match self.command.kind {
            Kind::Ping => "ping".to_owned(),
            Kind::Find { bytes, .. } => format!("find {} by _id", size(bytes)),
            Kind::Insert { bytes } => format!("insert {}", size(bytes)),
        };
        let shape = match self.shape {
            Shape::Same(1) => "1 in flight".to_owned(),
            Shape::Same(sockets) => format!("{sockets} in flight on the same sockets"),
            Shape::Turn(in_flight) => format!("{in_flight} in flight, all sockets in turn"),
            Shape::All => "1 in flight on every socket".to_owned(),
            Shape::Open(rate) => format!("{rate}/s over all sockets"),
        };
        format!("{command}, {shape}")
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        1_000_000 => "1 MB".to_owned(),
        1024.. => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

/// A document of exactly so many bytes, like no other.
fn document(id: impl Into<Bson>, bytes: usize, filler: u32) -> Document {
    let mut document = doc! { "_id": id.into(), "text": "" };
    let missing = bytes - document.to_vec().map_or(0, |bytes| bytes.len());
    let letters = (b'a'..=b'z').cycle().skip(filler as usize % 26).step_by(1 + filler as usize % 7);
    document.insert("text", letters.take(missing).map(char::from).collect::<String>());
    document
}

/// Fills the collections that are read from, and makes room for what is inserted, so that nobody waits for a disk.
pub async fn prepare(server: &mut WireClient) -> Result<(), WireError> {
    let room = doc! { "setParameter": 1, "wiredTigerEngineRuntimeConfig": "cache_size=1GB" };
    server.command("admin", room).await?;
    for command in COMMANDS {
        let Kind::Find { bytes, documents } = command.kind else { continue };
        for id in 0..documents {
            let insert = doc! { "insert": command.name, "documents": [document(id, bytes, id.unsigned_abs())] };
            server.command(DATABASE, insert).await?;
        }
    }
    Ok(())
}

/// How many documents there are beyond those that [`prepare`] made; they are removed.
pub async fn take_inserted(server: &mut WireClient) -> Result<u64, WireError> {
    let reply = server.command(DATABASE, doc! { "count": INSERTED }).await?;
    server.command(DATABASE, doc! { "drop": INSERTED }).await.or_else(|error| match error.code() {
        // Nobody has inserted anything.
        Some(26) => Ok(Document::new()),
        _ => Err(error),
    })?;
    Ok(reply.get_i32("n").map_or(0, |n| u64::from(n.unsigned_abs())))
}

/// The requests of one command, encoded beforehand, and what is to be answered.
pub struct Work {
    requests: Vec<Prepared>,
    next: usize,
    next_id: i32,
    /// Documents that were inserted, as the replies say.
    pub inserted: u64,
}

struct Prepared {
    bytes: Vec<u8>,
    /// Where a document to be inserted has its `_id`, which must be a new one each time.
    object_id: Option<usize>,
    expected: Expected,
}

enum Expected {
    Ok,
    /// The reply's `cursor`, byte for byte.
    Cursor(Vec<u8>),
    Inserted,
}

/// What was asked, to judge the reply by.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    request_id: i32,
    prepared: usize,
}

impl Work {
    /// The requests of `command`.
    pub fn new(command: Command) -> Self {
        let requests = match command.kind {
            Kind::Ping => vec![Prepared::new("admin", doc! { "ping": 1 }, None, Expected::Ok)],
            Kind::Find { bytes, documents } => (0..documents)
                .map(|id| {
                    let found = vec![document(id, bytes, id.unsigned_abs())];
                    let namespace = format!("{DATABASE}.{}", command.name);
                    let cursor = doc! { "firstBatch": found, "id": 0_i64, "ns": namespace };
                    let find = doc! { "find": command.name, "filter": { "_id": id }, "limit": 1 };
                    Prepared::new(DATABASE, find, None, Expected::Cursor(encode(&cursor)))
                })
                .collect(),
            Kind::Insert { bytes } => {
                let id = ObjectId::new();
                // Acknowledged by the server's memory: how fast a disk is has no place in this comparison.
                let insert = doc! {
                    "insert": INSERTED, "documents": [document(id, bytes, 0)], "writeConcern": { "w": 1 },
                };
                vec![Prepared::new(DATABASE, insert, Some(id), Expected::Inserted)]
            }
        };
        Self { requests, next: 0, next_id: 1, inserted: 0 }
    }

    /// The next request.
    pub fn next(&mut self) -> (Asked, &[u8]) {
        self.next = (self.next + 1) % self.requests.len();
        self.next_id = self.next_id.wrapping_add(1);
        let request = &mut self.requests[self.next];
        request.bytes[REQUEST_ID].copy_from_slice(&self.next_id.to_le_bytes());
        if let Some(at) = request.object_id {
            request.bytes[at..at + 12].copy_from_slice(&ObjectId::new().bytes());
        }
        (Asked { request_id: self.next_id, prepared: self.next }, &request.bytes)
    }

    /// True when a message is the answer to what was asked, and nothing else.
    pub fn is_answer(&mut self, asked: Asked, message: &[u8]) -> bool {
        let Some(reply) = reply_to(asked.request_id, message) else { return false };
        match &self.requests[asked.prepared].expected {
            Expected::Ok => true,
            Expected::Cursor(expected) => reply.get_document("cursor").is_ok_and(|it| it.as_bytes() == expected),
            Expected::Inserted => {
                let inserted = reply.get_i32("n").is_ok_and(|n| n == 1) && matches!(reply.get("writeErrors"), Ok(None));
                self.inserted += u64::from(inserted);
                inserted
            }
        }
    }
}

impl Prepared {
    fn new(database: &str, command: Document, new_id: Option<ObjectId>, expected: Expected) -> Self {
        let bytes = Request::new(database, command).encode(0).expect("a command of ours");
        let object_id = new_id.map(|id| {
            let at = bytes.windows(12).position(|window| window == id.bytes());
            at.expect("the id of the document in it")
        });
        Self { bytes, object_id, expected }
    }
}

fn encode(document: &Document) -> Vec<u8> {
    document.to_vec().expect("a document of ours")
}

/// The document of an OP_MSG without flags that answers this request with `ok: 1`.
fn reply_to(request_id: i32, message: &[u8]) -> Option<&RawDocument> {
    let field = |range| message.get(range).and_then(|bytes: &[u8]| Some(i32::from_le_bytes(bytes.try_into().ok()?)));
    let is_reply = field(RESPONSE_TO) == Some(request_id)
        && field(12..HEADER_BYTES) == Some(OP_MSG)
        && message.get(HEADER_BYTES..HEADER_BYTES + 5) == Some(&[0; 5]);
    let document = is_reply.then(|| RawDocument::from_bytes(&message[HEADER_BYTES + 5..]).ok()).flatten()?;
    document.get_f64("ok").is_ok_and(|ok| ok == 1.0).then_some(document)
}

/// The first message of a driver.
pub fn hello(application: &str) -> Work {
    let metadata = doc! {
        "application": { "name": application },
        "driver": { "name": "mongomux sidecar bench", "version": env!("CARGO_PKG_VERSION") },
        "os": { "type": std::env::consts::OS },
    };
    let hello = doc! { "hello": 1, "helloOk": true, "client": metadata };
    let requests = vec![Prepared::new("admin", hello, None, Expected::Ok)];
    Work { requests, next: 0, next_id: 1, inserted: 0 }
}
