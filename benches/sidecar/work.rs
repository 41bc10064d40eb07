//! Requests, encoded beforehand, and how replies are judged.

use bson::{Bson, Document, RawBsonRef, RawDocument, doc, oid::ObjectId};
use mongomux::sandbox::wire_client::{HEADER_BYTES, OP_MSG, Request, WireClient, WireError};

use super::cases::{COMMANDS, Command, Kind};

/// Where the documents are, and where new ones go.
const DATABASE: &str = "sidecar";
const INSERTED: &str = "inserted";

/// The opcode of a reply of old.
const OP_REPLY: i32 = 1;

/// Request id and number of the request that is answered, within a message.
const REQUEST_ID: std::ops::Range<usize> = 4..8;
const RESPONSE_TO: std::ops::Range<usize> = 8..12;

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
    /// As [`Expected::Ok`]; some proxies answer with the message of old, whatever the question came in.
    Greeting,
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
        Self::of(match command.kind {
            Kind::Ping => return ping(),
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
        })
    }

    fn of(requests: Vec<Prepared>) -> Self {
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
        let Some((op_code, reply)) = reply_to(asked.request_id, message) else { return false };
        match &self.requests[asked.prepared].expected {
            Expected::Greeting => true,
            _ if op_code != OP_MSG => false,
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

/// The document of a message that answers this request with `ok: 1`, and the kind of message.
fn reply_to(request_id: i32, message: &[u8]) -> Option<(i32, &RawDocument)> {
    let field = |range| message.get(range).and_then(|bytes: &[u8]| Some(i32::from_le_bytes(bytes.try_into().ok()?)));
    let op_code = field(12..HEADER_BYTES).filter(|_| field(RESPONSE_TO) == Some(request_id))?;
    let document = match op_code {
        // No flags, and one section of kind 0.
        OP_MSG => message[HEADER_BYTES..].strip_prefix(&[0; 5])?,
        // Flags, a cursor's id and two numbers.
        OP_REPLY => message.get(HEADER_BYTES + 20..)?,
        _ => return None,
    };
    let document = RawDocument::from_bytes(document).ok()?;
    let is_ok = matches!(document.get("ok"), Ok(Some(RawBsonRef::Double(1.0) | RawBsonRef::Int32(1))));
    is_ok.then_some((op_code, document))
}

/// The first message of a driver.
pub fn hello(application: &str) -> Work {
    let metadata = doc! {
        "application": { "name": application },
        "driver": { "name": "mongomux sidecar bench", "version": env!("CARGO_PKG_VERSION") },
        "os": { "type": std::env::consts::OS },
    };
    // By the name of old, as drivers do who do not know whom they talk to; mongobetween does not know the new one.
    let hello = doc! { "isMaster": 1, "helloOk": true, "client": metadata };
    Work::of(vec![Prepared::new("admin", hello, None, Expected::Greeting)])
}

/// The first command of a new client.
pub fn ping() -> Work {
    Work::of(vec![Prepared::new("admin", doc! { "ping": 1 }, None, Expected::Ok)])
}
