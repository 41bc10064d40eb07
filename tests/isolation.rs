//! The wrong-reply detector: a reply is delivered to the client whose command it answers, or to nobody.
//!
//! Hundreds of clients share five connections. Each request carries a token that its reply must return, in sizes from one
//! byte to a megabyte. Clients pipeline, read slowly, and hang up at every moment in every way a socket can end. What a
//! client does is drawn from a seed, which is printed; `ISOLATION_SEED=<seed>` draws the same again.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]
#![allow(clippy::print_stderr, reason = "the seed, for whoever has to replay a failure")]

mod support;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use bytes::Bytes;
use mongomux::config::Address;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{HEADER_BYTES, Header, MORE_TO_COME, Message, Request};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use support::counts::Bound;
use support::hold::{eventually, hold_finds};
use support::proxy::{Proxy, proxy};
use support::{connect, first_batch};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const POOL: usize = 5;

/// Clients and how often each of them does something. First a crowd, most of which hangs up while it waits. Then so few
/// that most commands are under way when their client leaves, and yet more than there are connections: what one leaves
/// behind in a connection meets the next client at once.
const PHASES: [(usize, usize); 2] = [(300, 12), (12, 120)];

/// Many times what a step takes on a busy machine.
const NO_REPLY: Duration = Duration::from_secs(30);

/// Nobody is to be refused here, and nobody to be given up: what goes wrong is wrong.
const SETTINGS: &str = "max_pool_size = 5\nmin_pool_size = 1\nwait_queue_timeout_ms = 120000";

/// What all clients have seen together.
#[derive(Default)]
struct Report {
    replies: AtomicU64,
    hang_ups: AtomicU64,
    slow: AtomicU64,
    /// The first few.
    faults: Mutex<Vec<Fault>>,
}

impl Report {
    fn fault(&self, fault: Fault) {
        let mut faults = self.faults.lock().unwrap();
        if faults.len() < 20 {
            faults.push(fault);
        }
    }
}

/// What must not be.
#[derive(Debug, Clone)]
enum Fault {
    /// A reply that answers somebody else, or is not whole.
    WrongReply(#[expect(dead_code, reason = "printed")] String),
    /// An error, a lost socket, or no reply at all: everybody was to be served.
    Failed(#[expect(dead_code, reason = "printed")] String),
}

/// What a reply must hold.
enum Expected {
    /// One document with the token and a payload made of it, in a batch of this name.
    Document { batch: &'static str, bytes: usize },
    /// As above, with a cursor on which two more wait.
    Cursor { bytes: usize },
    /// An error that names the token.
    Error,
    /// `n: 1`, and nothing else that could be told apart.
    Inserted,
}

/// One request and what its reply must be.
struct Ask {
    request_id: i32,
    token: String,
    message: Vec<u8>,
    expected: Expected,
}

/// The token over and over: a reply that is off by one byte, or holds a part of another, is noticed.
fn payload(token: &str, bytes: usize) -> Binary {
    let mut payload = token.repeat(bytes / token.len() + 1).into_bytes();
    payload.truncate(bytes);
    Binary { subtype: BinarySubtype::Generic, bytes: payload }
}

impl Ask {
    /// What the reply is, if it is what was asked for: the cursor in it, or 0.
    fn check(&self, header: &Header, bytes: &[u8]) -> Result<i64, Fault> {
        let token = &self.token;
        if header.response_to != self.request_id {
            let (other, own) = (header.response_to, self.request_id);
            return Err(Fault::WrongReply(format!("{token}: responseTo {other} where {own} was asked")));
        }
        let message = Message { header: *header, bytes: Bytes::copy_from_slice(bytes) };
        let reply = message.document().map_err(|error| Fault::WrongReply(format!("{token}: {error}")))?;
        self.found_in(&reply).ok_or_else(|| {
            let text = format!("{token}: {}", reply.to_string().chars().take(300).collect::<String>());
            let failed = reply.get_i32("ok").is_ok_and(|ok| ok == 0) || reply.get_f64("ok").is_ok_and(|ok| ok == 0.0);
            // An error names nobody, unless it was somebody's token that was the error.
            if failed && !text.contains("no such command") { Fault::Failed(text) } else { Fault::WrongReply(text) }
        })
    }

    fn found_in(&self, reply: &Document) -> Option<i64> {
        match self.expected {
            Expected::Document { batch, bytes } => self.cursor_in(reply, batch, bytes),
            Expected::Cursor { bytes } => self.cursor_in(reply, "firstBatch", bytes).filter(|id| *id != 0),
            Expected::Error => reply.get_str("errmsg").ok()?.contains(&self.token).then_some(0),
            Expected::Inserted => (reply.get_i32("n").ok()? == 1).then_some(0),
        }
    }

    fn cursor_in(&self, reply: &Document, batch: &str, bytes: usize) -> Option<i64> {
        let cursor = reply.get_document("cursor").ok()?;
        let [Bson::Document(found)] = &cursor.get_array(batch).ok()?[..] else { return None };
        let Some(Bson::Binary(data)) = found.get("data") else { return None };
        let same = found.get_str("_id").ok()? == self.token && *data == payload(&self.token, bytes);
        same.then(|| cursor.get_i64("id").ok())?
    }
}

/// One application socket, replaced by a new one whenever it was hung up.
struct Client {
    name: usize,
    address: Address,
    random: StdRng,
    stream: TcpStream,
    last_request_id: i32,
    report: Arc<Report>,
}

async fn open(address: &Address, narrow: bool) -> TcpStream {
    let Address::Tcp { host, port } = address else { panic!("a TCP proxy") };
    let socket = TcpSocket::new_v4().unwrap();
    if narrow {
        socket.set_recv_buffer_size(32 * 1024).unwrap();
    }
    let stream = socket.connect(format!("{host}:{port}").parse().unwrap()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn decode(header: &[u8]) -> Header {
    let field = |at: usize| i32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    Header { message_length: field(0), request_id: field(4), response_to: field(8), op_code: field(12) }
}

/// Takes one reply, now and then slowly, and checks it; the cursor in it, or 0.
async fn take<R: AsyncRead + Unpin>(
    stream: &mut R,
    random: &mut StdRng,
    report: &Report,
    ask: &Ask,
) -> io::Result<i64> {
    let mut message = vec![0; HEADER_BYTES];
    stream.read_exact(&mut message).await?;
    let header = decode(&message);
    let length = usize::try_from(header.message_length).unwrap_or_default();
    if !(HEADER_BYTES..48_000_000).contains(&length) {
        report.fault(Fault::WrongReply(format!("{}: a message of {} bytes", ask.token, header.message_length)));
        return Err(io::ErrorKind::InvalidData.into());
    }
    message.resize(length, 0);
    let mut rest = &mut message[HEADER_BYTES..];
    if length > 4_000_000 || random.random_bool(0.1) {
        report.slow.fetch_add(1, Ordering::Relaxed);
        for _ in 0..random.random_range(1..10) {
            sleep(Duration::from_millis(random.random_range(1..10))).await;
            let part = random.random_range(0..=rest.len());
            let (now, later) = rest.split_at_mut(part);
            stream.read_exact(now).await?;
            rest = later;
        }
    }
    stream.read_exact(rest).await?;
    report.replies.fetch_add(1, Ordering::Relaxed);
    Ok(ask.check(&header, &message).unwrap_or_else(|fault| {
        report.fault(fault);
        0
    }))
}

impl Client {
    async fn new(name: usize, seed: u64, address: Address, report: Arc<Report>) -> Self {
        let random = StdRng::seed_from_u64(seed.wrapping_add(name as u64));
        let stream = open(&address, name.is_multiple_of(4)).await;
        // Request numbers of different clients do not overlap: a reply that went astray is told by its header alone.
        let last_request_id = i32::try_from(name).unwrap() << 20;
        Self { name, address, random, stream, last_request_id, report }
    }

    async fn run(mut self, steps: usize) {
        for _ in 0..steps {
            let step = timeout(NO_REPLY, self.step()).await;
            if let Err(error) = step.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                self.report.fault(Fault::Failed(format!("client {}: {error}", self.name)));
                self.reconnect().await;
            }
        }
    }

    async fn step(&mut self) -> io::Result<()> {
        match self.random.random_range(0..100) {
            0..35 => self.plain().await,
            35..48 => self.pipelined().await,
            48..60 => self.written_and_read_back().await,
            _ => self.hang_up().await,
        }
    }

    async fn reconnect(&mut self) {
        let narrow = self.random.random_bool(0.25);
        self.stream = open(&self.address, narrow).await;
    }

    fn token(&mut self) -> String {
        self.last_request_id += 1;
        format!("<{}.{}.{:x}>", self.name, self.last_request_id & 0xF_FFFF, self.random.random::<u64>())
    }

    /// From one byte to one megabyte, each order of magnitude as likely as the next.
    fn bytes(&mut self) -> usize {
        let magnitude = 1_usize << self.random.random_range(0..20);
        self.random.random_range(magnitude..=2 * magnitude)
    }

    fn ask(&self, token: &str, request: &Request, expected: Expected) -> Ask {
        let request_id = self.last_request_id;
        Ask { request_id, token: token.to_owned(), message: request.encode(request_id).unwrap(), expected }
    }

    /// A request whose reply returns its token.
    fn any(&mut self) -> Ask {
        let (token, bytes) = (self.token(), self.bytes());
        let document = doc! { "_id": &token, "data": payload(&token, bytes) };
        match self.random.random_range(0..100) {
            0..50 => {
                let echo = doc! { "aggregate": 1, "pipeline": [{ "$documents": [document] }], "cursor": {} };
                let expected = Expected::Document { batch: "firstBatch", bytes };
                self.ask(&token, &Request::new("test", echo), expected)
            }
            50..65 => {
                // The same document three times, one per batch.
                let copies = doc! { "$set": { "copy": [1, 2, 3] } };
                let pipeline = [doc! { "$documents": [document] }, copies, doc! { "$unwind": "$copy" }];
                let echo = doc! { "aggregate": 1, "pipeline": &pipeline[..], "cursor": { "batchSize": 1 } };
                self.ask(&token, &Request::new("test", echo), Expected::Cursor { bytes })
            }
            65..78 => self.ask(&token, &Request::new("test", doc! { token.as_str(): 1 }), Expected::Error),
            _ => {
                let insert = Request::new("test", doc! { "insert": "tokens" }).sequence("documents", vec![document]);
                self.ask(&token, &insert, Expected::Inserted)
            }
        }
    }

    /// Takes long enough to be interrupted when its client leaves.
    fn slow(&mut self) -> Ask {
        let (token, bytes) = (self.token(), self.bytes());
        let literal = doc! { "_id": { "$literal": &token }, "data": { "$literal": payload(&token, bytes) } };
        let find = doc! { "find": "one", "filter": { "$where": "sleep(900) || true" }, "projection": literal };
        self.ask(&token, &Request::new("test", find), Expected::Document { batch: "firstBatch", bytes })
    }

    /// Larger than what the system buffers for one socket.
    fn large(&mut self) -> Ask {
        let (token, bytes) = (self.token(), self.random.random_range(5_000_000..8_000_000));
        let document = doc! { "_id": &token, "data": payload(&token, bytes) };
        let echo = doc! { "aggregate": 1, "pipeline": [{ "$documents": [document] }], "cursor": {} };
        self.ask(&token, &Request::new("test", echo), Expected::Document { batch: "firstBatch", bytes })
    }

    async fn exchange(&mut self, ask: &Ask) -> io::Result<i64> {
        self.stream.write_all(&ask.message).await?;
        take(&mut self.stream, &mut self.random, &self.report, ask).await
    }

    /// One request; a cursor is read to its end, or left half-way.
    async fn plain(&mut self) -> io::Result<()> {
        let ask = match self.random.random_range(0..100) {
            0 => self.slow(),
            1..3 => self.large(),
            _ => self.any(),
        };
        let mut cursor = self.exchange(&ask).await?;
        let Expected::Cursor { bytes } = ask.expected else { return Ok(()) };
        for _ in 0..self.random.random_range(0..3) {
            self.last_request_id += 1;
            let get_more = doc! { "getMore": cursor, "collection": "$cmd.aggregate", "batchSize": 1 };
            let expected = Expected::Document { batch: "nextBatch", bytes };
            let ask = self.ask(&ask.token, &Request::new("test", get_more), expected);
            cursor = self.exchange(&ask).await?;
        }
        Ok(())
    }

    /// An unacknowledged write and a read of it, in one piece: the write has no reply and comes first.
    async fn written_and_read_back(&mut self) -> io::Result<()> {
        let (token, bytes) = (self.token(), self.bytes());
        let document = doc! { "_id": &token, "data": payload(&token, bytes) };
        let write = doc! { "insert": "tokens", "writeConcern": { "w": 0 } };
        let write = Request::new("test", write).sequence("documents", vec![document]).flags(MORE_TO_COME);
        let mut messages = write.encode(self.last_request_id).unwrap();
        self.last_request_id += 1;
        let find = Request::new("test", doc! { "find": "tokens", "filter": { "_id": &token } });
        let ask = self.ask(&token, &find, Expected::Document { batch: "firstBatch", bytes });
        messages.extend_from_slice(&ask.message);
        self.stream.write_all(&messages).await?;
        take(&mut self.stream, &mut self.random, &self.report, &ask).await.map(drop)
    }

    /// Several requests before the first reply is read.
    async fn pipelined(&mut self) -> io::Result<()> {
        let asks: Vec<Ask> = (0..self.random.random_range(2..6)).map(|_| self.any()).collect();
        let Self { stream, random, report, .. } = self;
        let (mut reader, mut writer) = stream.split();
        let writing = async {
            for ask in &asks {
                writer.write_all(&ask.message).await?;
            }
            Ok(())
        };
        let reading = async {
            for ask in &asks {
                take(&mut reader, random, report, ask).await?;
            }
            Ok(())
        };
        // At once: with both directions full each side would wait for the other.
        tokio::try_join!(writing, reading).map(drop)
    }

    /// Leaves at some moment in some way, and comes back as somebody new.
    async fn hang_up(&mut self) -> io::Result<()> {
        let slow = self.random.random_bool(0.03);
        let ask = if slow { self.slow() } else { self.any() };
        let mut received = Vec::new();
        match self.random.random_range(0..4) {
            _ if slow => self.stream.write_all(&ask.message).await?,
            0 => {}
            1 => {
                let part = self.random.random_range(1..ask.message.len());
                self.stream.write_all(&ask.message[..part]).await?;
            }
            2 => {
                self.stream.write_all(&ask.message).await?;
                if self.random.random_bool(0.5) {
                    sleep(Duration::from_millis(self.random.random_range(0..20))).await;
                }
            }
            _ => {
                self.stream.write_all(&ask.message).await?;
                let bytes = match ask.expected {
                    Expected::Document { bytes, .. } | Expected::Cursor { bytes } => bytes,
                    Expected::Error | Expected::Inserted => 1,
                };
                received.resize(self.random.random_range(1..=HEADER_BYTES + bytes), 0);
                self.stream.read_exact(&mut received).await?;
            }
        }
        match self.random.random_range(0..3) {
            0 => {}
            1 => self.stream.set_zero_linger()?,
            _ => {
                self.stream.shutdown().await?;
                // The end, or a reset where the proxy had not read everything.
                drop(self.stream.read_to_end(&mut received).await);
            }
        }
        self.reconnect().await;
        self.report.hang_ups.fetch_add(1, Ordering::Relaxed);
        self.judge(&ask, &received);
        Ok(())
    }

    /// What arrived before the end is the reply, its beginning, or nothing.
    fn judge(&self, ask: &Ask, received: &[u8]) {
        let Some(header) = received.get(..HEADER_BYTES).map(decode) else { return };
        let length = usize::try_from(header.message_length).unwrap_or_default();
        let verdict = if received.len() < length && header.response_to == ask.request_id {
            Ok(0)
        } else {
            ask.check(&header, received)
        };
        if let Err(fault) = verdict {
            self.report.fault(fault);
        }
    }
}

fn seed() -> u64 {
    match std::env::var("ISOLATION_SEED") {
        Ok(seed) => seed.parse().unwrap_or_else(|error| panic!("ISOLATION_SEED={seed}: {error}")),
        Err(_) => rand::random(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reply_reaches_its_own_client_or_nobody() {
    let seed = seed();
    eprintln!("replay with ISOLATION_SEED={seed}");
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    support::client(server).await.command("test", doc! { "insert": "one", "documents": [{}] }).await.unwrap();
    let proxy = proxy(&deployment.uri(), SETTINGS).await;
    let bound = Bound::watch(server).await;
    let report = Arc::new(Report::default());
    let mut name = 0;
    for (count, steps) in PHASES {
        let mut clients = JoinSet::new();
        for _ in 0..count {
            name += 1;
            let client = Client::new(name, seed, proxy.address().clone(), report.clone());
            clients.spawn(async move { client.await.run(steps).await });
        }
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    }
    let Report { replies, hang_ups, slow, faults } = &*report;
    let (replies, hang_ups) = (replies.load(Ordering::Relaxed), hang_ups.load(Ordering::Relaxed));
    eprintln!("{replies} replies checked, {} of them read slowly, {hang_ups} hang-ups", slow.load(Ordering::Relaxed));
    let faults = faults.lock().unwrap().clone();
    assert!(faults.is_empty(), "ISOLATION_SEED={seed}: {faults:#?}");
    assert!(replies > 2_000 && hang_ups > 1_000, "too little happened to prove anything");

    everything_is_back(server, &proxy).await;
    assert!(bound.samples() > 20 && bound.most() <= POOL, "{} in {} samples", bound.most(), bound.samples());
}

/// No connection, byte, place, cursor or client is left behind.
async fn everything_is_back(server: &Mongod, proxy: &Proxy) {
    proxy.settles().await;
    assert_eq!(proxy.cut_off(), mongomux::app::Drained::Cleanly);
    eventually("all clients are gone", async || {
        ["active", "idle"]
            .iter()
            .all(|state| proxy.metric(&format!("mongomux_client_connections{{state=\"{state}\"}}")) == 0.0)
    })
    .await;
    eventually("the server counts what the pool counts", async || {
        let counted = support::connections(server, "mongomux").await;
        counted <= POOL && counted == proxy.pool().unwrap().counts.available as usize
    })
    .await;

    // As many commands at once as there may be, and not one more.
    let hold = hold_finds(server, "test.held").await;
    let mut clients = Vec::new();
    for _ in 0..=POOL {
        let mut client = connect(proxy.address()).await;
        client.send(&Request::new("test", doc! { "find": "held" })).await.unwrap();
        clients.push(client);
    }
    hold.reaches(POOL).await;
    proxy.waits(1).await;
    assert_eq!(hold.count().await, POOL);
    hold.release().await;
    for client in &mut clients {
        client.read_message().await.unwrap();
    }

    // Cursors whose clients left are the server's until they are killed; the proxy remembers no others.
    let idle = doc! { "type": "idleCursor", "ns": "test.$cmd.aggregate" };
    let pipeline = [
        doc! { "$currentOp": { "idleCursors": true, "allUsers": true } },
        doc! { "$match": idle },
        // Not with the commands that opened them, which would be too much for one batch.
        doc! { "$project": { "id": "$cursor.cursorId" } },
    ];
    let aggregate = doc! { "aggregate": 1, "pipeline": &pipeline[..], "cursor": { "batchSize": 100_000 } };
    let idle = support::client(server).await.command("admin", aggregate).await.unwrap();
    let id = |entry: &Document| entry.get_i64("id").unwrap();
    let ids: Vec<i64> = first_batch(&idle).iter().map(id).collect();
    assert!(!ids.is_empty() && proxy.pinned().0 > 0, "some were left half-way");
    assert!(proxy.pinned().0 <= ids.len(), "{} pinned, {} on the server", proxy.pinned().0, ids.len());
    let kill = doc! { "killCursors": "$cmd.aggregate", "cursors": ids };
    clients[0].command("test", kill).await.unwrap();
    assert_eq!(proxy.pinned(), (0, 0));
    proxy.settles().await;
}
