//! Messages as a driver sends them and as a server answers them, always the same, and a server that gives nothing but these: for
//! measurements in which nothing else may vary.

use std::sync::Arc;

use bson::oid::ObjectId;
use bson::{Binary, Bson, DateTime, Document, Timestamp, doc, spec::BinarySubtype};
use mongomux::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{raw, scripted};

/// The collection in which finds find little.
pub const SMALL: &str = "small";

/// The collection in which they find much.
pub const LARGE: &str = "large";

/// The id of the session in which all is done.
pub const SESSION: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// Bytes of the document that is in `collection`, or of one to put there.
pub fn bytes_in(collection: &str) -> usize {
    if collection == LARGE { 16 * 1024 } else { 100 }
}

/// A hello as PyMongo greets with.
pub fn hello() -> Vec<u8> {
    let driver = doc! { "name": "PyMongo", "version": "4.16.0" };
    let os = doc! { "type": "Linux", "name": "Linux", "architecture": "x86_64", "version": "6.1" };
    let client = doc! { "driver": driver, "os": os, "platform": "CPython 3.11", "application": { "name": "bench" } };
    raw::command(doc! { "hello": 1, "helloOk": true, "client": client, "$db": "admin" })
}

/// A ping.
pub fn ping() -> Vec<u8> {
    raw::command(with_session(doc! { "ping": 1 }))
}

/// A find of one document.
pub fn find(collection: &str) -> Vec<u8> {
    raw::command(with_session(find_one(collection)))
}

/// [`find`], from wherever it is.
pub fn find_anywhere(collection: &str) -> Vec<u8> {
    let mut find = with_session(find_one(collection));
    find.insert("$readPreference", doc! { "mode": "primaryPreferred" });
    raw::command(find)
}

/// [`find`], as a later statement of a transaction.
pub fn statement(collection: &str) -> Vec<u8> {
    let mut find = with_session(find_one(collection));
    find.insert("txnNumber", 1_i64);
    find.insert("autocommit", false);
    raw::command(find)
}

/// An insert that may be retried, of one document in a section of its own.
pub fn insert(collection: &str) -> Vec<u8> {
    let mut insert = with_session(doc! { "insert": collection, "ordered": true });
    insert.insert("txnNumber", 1_i64);
    let documents = [document(bytes_in(collection))];
    raw::op_msg(0, &[&raw::body(&insert), &raw::sequence("documents", &documents)])
}

/// For more of a cursor.
pub fn get_more(cursor: i64) -> Vec<u8> {
    raw::command(with_session(doc! { "getMore": cursor, "collection": SMALL, "batchSize": 100 }))
}

/// The reply to [`find`].
pub fn found(collection: &str) -> Vec<u8> {
    let batch = vec![document(bytes_in(collection))];
    reply(doc! { "cursor": { "firstBatch": batch, "id": 0_i64, "ns": format!("bench.{collection}") } })
}

fn find_one(collection: &str) -> Document {
    doc! { "find": collection, "filter": { "_id": 7 }, "limit": 1, "singleBatch": true }
}

/// What drivers add to a command.
fn with_session(mut command: Document) -> Document {
    let id = Binary { subtype: BinarySubtype::Uuid, bytes: SESSION.to_vec() };
    command.insert("lsid", doc! { "id": id });
    command.insert("$clusterTime", cluster_time());
    command.insert("$db", "bench");
    command
}

/// What a member of a set adds to a reply.
fn reply(mut fields: Document) -> Vec<u8> {
    fields.insert("ok", 1.0);
    fields.insert("$clusterTime", cluster_time());
    fields.insert("operationTime", TIME);
    raw::command(fields)
}

/// One of exactly so many bytes.
fn document(bytes: usize) -> Document {
    let mut document = doc! { "_id": 7, "text": "" };
    let rest = bytes - document.to_vec().expect("a document").len();
    document.insert("text", "x".repeat(rest));
    document
}

const TIME: Timestamp = Timestamp { time: 1_700_000_000, increment: 1 };

fn cluster_time() -> Document {
    let hash = Binary { subtype: BinarySubtype::Generic, bytes: vec![0; 20] };
    doc! { "clusterTime": TIME, "signature": { "hash": hash, "keyId": 0_i64 } }
}

fn op_time() -> Document {
    doc! { "ts": TIME, "t": 1_i64 }
}

/// What the primary of a set of one says about itself; no `topologyVersion`, so that it is polled.
pub fn primary(port: u16) -> Document {
    let me = format!("127.0.0.1:{port}");
    let date = Bson::DateTime(DateTime::from_millis(1_700_000_000_000));
    let last_write = doc! {
        "opTime": op_time(), "lastWriteDate": &date, "majorityOpTime": op_time(), "majorityWriteDate": &date,
    };
    doc! {
        "hosts": [&me], "setName": "rs0", "setVersion": 1, "ismaster": true, "isWritablePrimary": true,
        "secondary": false, "primary": &me, "me": &me, "electionId": election(), "lastWrite": last_write,
        "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
        "localTime": date, "logicalSessionTimeoutMinutes": 30, "connectionId": 1, "helloOk": true,
        "minWireVersion": 0, "maxWireVersion": 17, "readOnly": false, "ok": 1.0,
    }
}

fn election() -> ObjectId {
    ObjectId::from_bytes([0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1])
}

/// A primary that answers at once, and always the same.
pub struct Server {
    port: u16,
    hello: Document,
    done: Vec<u8>,
    written: Vec<u8>,
    small: Vec<u8>,
    large: Vec<u8>,
}

impl Server {
    /// Listens on a port of its own until the runtime ends.
    pub fn start(tasks: &Tasks) -> Arc<Self> {
        let (listener, port) = scripted::listen(None);
        let server = Arc::new(Self {
            port,
            hello: primary(port),
            done: reply(doc! {}),
            written: reply(doc! { "n": 1, "electionId": election(), "opTime": op_time() }),
            small: found(SMALL),
            large: found(LARGE),
        });
        let (served, connections) = (server.clone(), tasks.clone());
        tasks.spawn("canned server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("an option that all sockets have");
                let served = served.clone();
                connections.spawn("canned connection", async move { served.serve(stream).await });
            }
        });
        server
    }

    /// How to reach it, with heartbeats so far apart that a measurement is over before the next one.
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?replicaSet=rs0&heartbeatFrequencyMS=600000", self.port)
    }

    /// What it says to a hello.
    pub fn hello(&self) -> &Document {
        &self.hello
    }

    /// Answers until the other side is gone.
    pub async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        while let Some(request) = scripted::read_message(&mut stream).await {
            let mut reply = self.answer(&request);
            reply[8..12].copy_from_slice(&request[4..8]);
            if stream.write_all(&reply).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        if raw::op_code(request) == raw::OP_QUERY {
            // The first hello of a monitor.
            return raw::reply(&self.hello);
        }
        match scripted::command_name(request).as_str() {
            name if scripted::is_hello(name) => raw::command(self.hello.clone()),
            // The type of the first element, its name and the length of its value stand before that.
            "find" if request[scripted::DOCUMENT_OFFSET + 14..].starts_with(LARGE.as_bytes()) => self.large.clone(),
            "find" => self.small.clone(),
            "insert" => self.written.clone(),
            _ => self.done.clone(),
        }
    }
}
