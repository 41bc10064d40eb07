//! The fixed work: a scripted server, always the same bytes, and clients that wait for each reply.
//!
//! Messages are made once and sent as they are but for their numbers, so that nothing but the program varies.

use bson::{Bson, Document, doc};
use mongomux::config::Address;
use mongomux::tasks::Tasks;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, raw, scripted};

const DATABASE: &str = "bench";

/// Clients that send at once where many do.
const CROWD: usize = 64;

/// One kind of work; what is counted is its cost per command, or per client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    Ping,
    #[value(name = "find_100")]
    Find100,
    #[value(name = "find_16k")]
    Find16k,
    #[value(name = "insert_100")]
    Insert100,
    #[value(name = "insert_16k")]
    Insert16k,
    /// Finds of 100 bytes by 64 clients at once, on ten connections: most of them wait for one.
    #[value(name = "find_100_crowd")]
    Find100Crowd,
    /// A client that connects, greets, pings and leaves.
    Visit,
}

impl Case {
    /// As it is written.
    pub(crate) fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).expect("none is skipped").get_name().to_owned()
    }

    /// How often it is done between two dumps; a multiple of [`CROWD`] there.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Find100Crowd => 10 * CROWD,
            Self::Visit => 200,
            _ => 400,
        }
    }

    fn request(self) -> Vec<u8> {
        match self {
            Self::Ping | Self::Visit => raw::command(with_session(doc! { "ping": 1 }, "admin")),
            Self::Find100 | Self::Find100Crowd => find("small"),
            Self::Find16k => find("large"),
            Self::Insert100 => insert(100),
            Self::Insert16k => insert(16 * 1024),
        }
    }
}

/// What drivers add to a command.
fn with_session(mut command: Document, database: &str) -> Document {
    let id = Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: (1..=16).collect() });
    command.insert("lsid", doc! { "id": id });
    command.insert("$clusterTime", cluster_time());
    command.insert("$db", database);
    command
}

fn find(collection: &str) -> Vec<u8> {
    let find = doc! { "find": collection, "filter": { "_id": 7 }, "limit": 1, "singleBatch": true };
    raw::command(with_session(find, DATABASE))
}

/// An insert of one document of so many bytes, in a section of its own.
fn insert(bytes: usize) -> Vec<u8> {
    let mut insert = with_session(doc! { "insert": "things", "ordered": true }, DATABASE);
    insert.insert("txnNumber", 1_i64);
    raw::op_msg(0, &[&raw::body(&insert), &raw::sequence("documents", &[document(bytes)])])
}

/// One of exactly so many bytes.
fn document(bytes: usize) -> Document {
    let empty = doc! { "_id": 7, "text": "" };
    let rest = bytes - empty.to_vec().expect("a document").len();
    doc! { "_id": 7, "text": "x".repeat(rest) }
}

fn cluster_time() -> Document {
    let hash = bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![0; 20] };
    let time = bson::Timestamp { time: 1_700_000_000, increment: 1 };
    doc! { "clusterTime": time, "signature": { "hash": hash, "keyId": 0_i64 } }
}

/// A primary that answers at once, and always the same; ends with its runtime.
pub(crate) struct Server {
    port: u16,
}

impl Server {
    /// Listens on a port of its own.
    pub(crate) fn start(tasks: &Tasks) -> Self {
        let (listener, port) = scripted::listen(None);
        let (tasks, answers) = (tasks.clone(), std::sync::Arc::new(Answers::new(port)));
        tasks.clone().spawn("scripted server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answers = answers.clone();
                tasks.spawn("scripted connection", async move { answers.serve(stream).await });
            }
        });
        Self { port }
    }

    /// For the program. Heartbeats come before and after the work, not within it.
    pub(crate) fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?replicaSet=rs0&heartbeatFrequencyMS=600000", self.port)
    }
}

/// Whole replies, to be numbered.
struct Answers {
    hello: Vec<u8>,
    ok: Vec<u8>,
    written: Vec<u8>,
    small: Vec<u8>,
    large: Vec<u8>,
}

impl Answers {
    fn new(port: u16) -> Self {
        let reply = |mut fields: Document| {
            fields.insert("ok", 1.0);
            fields.insert("$clusterTime", cluster_time());
            fields.insert("operationTime", bson::Timestamp { time: 1_700_000_000, increment: 1 });
            raw::command(fields)
        };
        let found = |bytes| {
            let batch = vec![document(bytes)];
            reply(doc! { "cursor": { "firstBatch": batch, "id": 0_i64, "ns": format!("{DATABASE}.things") } })
        };
        let written = doc! { "n": 1, "electionId": election(), "opTime": op_time() };
        Self {
            hello: reply(primary(port)),
            ok: reply(doc! {}),
            written: reply(written),
            small: found(100),
            large: found(16 * 1024),
        }
    }

    async fn serve(&self, mut stream: TcpStream) {
        stream.set_nodelay(true).expect("an option that all sockets have");
        while let Some(request) = scripted::read_message(&mut stream).await {
            let mut reply = self.answer(&request);
            reply[8..12].copy_from_slice(&request[4..8]);
            if stream.write_all(&reply).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        if raw::op_code(request) != raw::OP_MSG {
            // The first hello of a monitor.
            let mut reply = vec![0; 16];
            reply.extend_from_slice(&[8, 0, 0, 0]);
            reply.extend_from_slice(&[0; 12]);
            reply[16 + 4 + 8 + 4] = 1;
            reply.extend_from_slice(&self.hello[scripted::DOCUMENT_OFFSET..]);
            let length = i32::try_from(reply.len()).expect("a short reply");
            reply[..4].copy_from_slice(&length.to_le_bytes());
            reply[12..16].copy_from_slice(&1_i32.to_le_bytes());
            return reply;
        }
        match scripted::command_name(request).as_str() {
            name if scripted::is_hello(name) => self.hello.clone(),
            "find" if scripted::document(request).get_str("find").is_ok_and(|name| name == "large") => {
                self.large.clone()
            }
            "find" => self.small.clone(),
            "insert" => self.written.clone(),
            _ => self.ok.clone(),
        }
    }
}

fn election() -> bson::oid::ObjectId {
    bson::oid::ObjectId::from_bytes([0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1])
}

fn op_time() -> Document {
    doc! { "ts": bson::Timestamp { time: 1_700_000_000, increment: 1 }, "t": 1_i64 }
}

/// What the primary of a set of one says about itself; no `topologyVersion`, so that it is polled.
fn primary(port: u16) -> Document {
    let me = format!("127.0.0.1:{port}");
    doc! {
        "hosts": [&me], "setName": "rs0", "setVersion": 1, "ismaster": true, "isWritablePrimary": true,
        "secondary": false, "primary": &me, "me": &me, "electionId": election(), "helloOk": true, "connectionId": 1,
        "lastWrite": { "opTime": op_time(), "lastWriteDate": bson::DateTime::from_millis(1_700_000_000_000),
            "majorityOpTime": op_time(), "majorityWriteDate": bson::DateTime::from_millis(1_700_000_000_000) },
        "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
        "localTime": bson::DateTime::now(), "logicalSessionTimeoutMinutes": 30,
        "minWireVersion": 0, "maxWireVersion": 17, "readOnly": false,
    }
}

/// The clients of one case.
pub(crate) struct Clients {
    case: Case,
    address: Address,
    request: Vec<u8>,
    sockets: Vec<TcpStream>,
}

impl Clients {
    /// Connects and greets as many as the case takes.
    pub(crate) async fn connect(case: Case, address: &Address) -> Self {
        let number = match case {
            Case::Visit => 0,
            Case::Find100Crowd => CROWD,
            _ => 1,
        };
        let mut sockets = Vec::new();
        for _ in 0..number {
            sockets.push(greet(address).await);
        }
        Self { case, address: address.clone(), request: case.request(), sockets }
    }

    /// Does the work `count` times.
    pub(crate) async fn work(&mut self, count: usize) {
        match self.case {
            Case::Visit => {
                for _ in 0..count {
                    visit(&self.address, &self.request).await;
                }
            }
            _ => {
                for _ in 0..count / self.sockets.len() {
                    // All are sent before any is answered.
                    for socket in &mut self.sockets {
                        socket.write_all(&self.request).await.expect("a socket that the program keeps open");
                    }
                    for socket in &mut self.sockets {
                        reply(socket).await;
                    }
                }
            }
        }
    }
}

async fn greet(address: &Address) -> TcpStream {
    let mut socket = raw::connect(address).await;
    let driver = doc! { "name": "PyMongo", "version": "4.16.0" };
    let os = doc! { "type": "Linux", "name": "Linux", "architecture": "x86_64", "version": "6.1" };
    let client = doc! { "driver": driver, "os": os, "platform": "CPython 3.11", "application": { "name": "counts" } };
    let hello = doc! { "hello": 1, "helloOk": true, "client": client, "$db": "admin" };
    socket.write_all(&raw::command(hello)).await.expect("a new socket");
    reply(&mut socket).await;
    socket
}

async fn visit(address: &Address, ping: &[u8]) {
    let mut socket = greet(address).await;
    socket.write_all(ping).await.expect("a socket that the program keeps open");
    reply(&mut socket).await;
    // Until the program has closed it as well, so that all of its work is done.
    socket.shutdown().await.expect("an open socket");
    assert!(raw::ends(&mut socket).await, "an answer to nothing");
}

/// Reads one reply and fails unless it says that all is well.
async fn reply(socket: &mut TcpStream) {
    let message = timeout(PATIENCE, raw::next_message(socket)).await.expect("a reply");
    assert_eq!(message[8..12], raw::REQUEST.to_le_bytes(), "a reply to somebody else");
    let document = raw::document_of(&message);
    assert!(document.get_f64("ok").is_ok_and(|ok| ok == 1.0), "{document}");
}
