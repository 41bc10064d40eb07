//! A scripted server behind pipes, its dialer, and a pool in front of it: for the tests of this stage.
//!
//! What the server does with a command stands in the command ([`work`]), so that a test reads in one place. It counts its
//! connections as a real one would: from the dial until it has seen the end.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::{RawDocument, rawdoc};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Connection, ReceiveError};
use super::handshake::{ConnectError, Dialer};
use super::health::Health;
use super::maintain;
use super::pool::{CheckOutError, ClusterBound, Pool, PoolParts, PooledConnection, lock};
use super::pool_state::PoolCounts;
use super::settings::PoolSettings;
use crate::admission::{Lane, MemoryBudget};
use crate::auth::{Identities, UserId};
use crate::config::limits::NEVER;
use crate::config::{Address, BackoffConfig, BreakerConfig, PoolConfig, QueueDiscipline};
use crate::tasks::Tasks;
use crate::telemetry::labels::{ConnectionClosed, Label};
use crate::telemetry::metrics::{Metrics, ServerMetrics};
use crate::wire::{Frame, encode, op_msg};

/// Longest message in these tests.
const MAX_MESSAGE_BYTES: usize = 1_000_000;

pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Until nothing is left to do now: a paused clock moves only then.
pub(super) async fn settle() {
    sleep(ms(1)).await;
}

/// Runs `test` with a paused clock on a thread of its own: false if it failed, or never let the clock move.
pub(super) fn within_ten_seconds(test: impl Future<Output = ()> + Send + 'static) -> bool {
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(test);
        // Nobody listens after ten seconds.
        done.send(()).unwrap_or_default();
    });
    finished.recv_timeout(Duration::from_secs(10)).is_ok()
}

/// What becomes of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dial {
    /// A connection, after that long.
    Accept(Duration),
    /// No socket.
    Refuse,
    /// A socket, and that long after it no handshake.
    Break(Duration),
    /// A socket, and silence.
    Hang,
}

/// What becomes of a ping, or of a hello on a connection that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ping {
    Answer,
    Close,
    Hang,
}

/// Connections open now and at most, as one or several servers see them.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    open: AtomicU32,
    peak: AtomicU32,
}

impl Gauge {
    pub(super) fn peak(&self) -> u32 {
        self.peak.load(Ordering::Relaxed)
    }

    fn enter(&self) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(open, Ordering::Relaxed);
    }
}

/// One connection as the servers count it.
struct Seen([Arc<Gauge>; 2]);

impl Drop for Seen {
    fn drop(&mut self) {
        for gauge in &self.0 {
            gauge.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Decides about attempts to connect; hears their number, from 1.
type DialScript = Box<dyn FnMut(u32) -> Dial + Send>;

/// A server that does what a test says.
pub(super) struct Server {
    own: Arc<Gauge>,
    shared: Arc<Gauge>,
    dial: Mutex<DialScript>,
    ping: Mutex<Ping>,
    /// How long it takes to see the end of a connection.
    notice: Mutex<Duration>,
    dialed: Mutex<Vec<Instant>>,
    pub(super) identities: Arc<Identities>,
    pings: AtomicU32,
    /// Closes the connections that are open when it changes.
    kick: watch::Sender<()>,
    tasks: Tasks,
    memory: Arc<MemoryBudget>,
    /// Capacity of the pipe, each way.
    pipe_bytes: usize,
}

impl Server {
    /// Accepts at once and answers. `shared` counts along, for several servers together.
    pub(super) fn new(shared: Arc<Gauge>, pipe_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            own: Arc::default(),
            shared,
            dial: Mutex::new(Box::new(|_| Dial::Accept(Duration::ZERO))),
            ping: Mutex::new(Ping::Answer),
            notice: Mutex::default(),
            dialed: Mutex::default(),
            identities: Arc::default(),
            pings: AtomicU32::new(0),
            kick: watch::Sender::new(()),
            tasks: Tasks::new(),
            memory: MemoryBudget::plenty(),
            pipe_bytes,
        })
    }

    pub(super) fn dials(&self, script: impl FnMut(u32) -> Dial + Send + 'static) {
        *lock(&self.dial) = Box::new(script);
    }

    pub(super) fn answer_pings(&self, ping: Ping) {
        *lock(&self.ping) = ping;
    }

    pub(super) fn notice_after(&self, notice: Duration) {
        *lock(&self.notice) = notice;
    }

    /// Connections that it sees open.
    pub(super) fn open(&self) -> u32 {
        self.own.open.load(Ordering::Relaxed)
    }

    /// Most that it ever saw.
    pub(super) fn peak(&self) -> u32 {
        self.own.peak()
    }

    /// When it was dialed.
    pub(super) fn dialed(&self) -> Vec<Instant> {
        lock(&self.dialed).clone()
    }

    /// Pings and such hellos so far.
    pub(super) fn pings(&self) -> u32 {
        self.pings.load(Ordering::Relaxed)
    }

    /// Closes all connections from its side.
    pub(super) fn kick(&self) {
        self.kick.send_replace(());
    }

    fn accept(self: &Arc<Self>) -> Connection {
        let (ours, theirs) = tokio::io::duplex(self.pipe_bytes);
        let seen = Seen([self.own.clone(), self.shared.clone()]);
        seen.0.iter().for_each(|gauge| gauge.enter());
        let (server, mut kicked) = (self.clone(), self.kick.subscribe());
        self.tasks.spawn("scripted connection", async move {
            let mut stream = theirs;
            tokio::select! {
                () = server.talk(&mut stream) => {}
                _ = kicked.changed() => {}
            }
            drop(seen);
            drop(stream);
        });
        Connection::new(Box::new(ours), self.memory.clone(), MAX_MESSAGE_BYTES)
    }

    /// Until the end of the stream was noticed, or a command says to close.
    async fn talk(&self, stream: &mut DuplexStream) {
        let mut buffer = BytesMut::new();
        loop {
            let Some(request) = Frame::decode(&mut buffer, MAX_MESSAGE_BYTES).unwrap() else {
                if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                    let notice = *lock(&self.notice);
                    return sleep(notice).await;
                }
                continue;
            };
            let (_, command) = op_msg::reply_document(request.bytes()).unwrap();
            let command = RawDocument::from_bytes(command).unwrap();
            let id = request.header().request_id;
            let Ok(number) = command.get_i32("work") else {
                let reply = encode::op_msg(0, id, &rawdoc! {"ok": 1.0, "maxWireVersion": 17});
                self.pings.fetch_add(1, Ordering::Relaxed);
                let ping = *lock(&self.ping);
                match ping {
                    Ping::Answer => drop(stream.write_all(reply.bytes()).await),
                    Ping::Close => return,
                    Ping::Hang => {}
                }
                continue;
            };
            sleep(ms(command.get_i64("take").unwrap().try_into().unwrap())).await;
            let padding = "x".repeat(command.get_i32("padding").unwrap().try_into().unwrap());
            let reply = encode::op_msg(0, id, &rawdoc! {"ok": 1.0, "work": number, "padding": padding});
            let stray = encode::op_msg(0, id.wrapping_add(1), &rawdoc! {"ok": 1.0, "work": number});
            let mut bytes = reply.bytes().to_vec();
            match command.get_str("then").unwrap() {
                "answer" => {}
                "twice" => bytes.extend_from_slice(reply.bytes()),
                "stray" => bytes = stray.bytes().to_vec(),
                "half" => bytes.truncate(bytes.len() / 2),
                "close" | "hang" | "deaf" => bytes.clear(),
                other => panic!("unknown script {other}"),
            }
            // The other side may have left already.
            drop(stream.write_all(&bytes).await);
            match command.get_str("then").unwrap() {
                "close" | "half" => return,
                "deaf" => pending().await,
                _ => {}
            }
        }
    }
}

/// A [`Server`] to connect to.
struct ToServer(Arc<Server>);

impl Dialer for ToServer {
    fn connect<'a>(
        &'a self,
        _: &'a Address,
        user: UserId,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send + 'a>> {
        Box::pin(async move {
            let number = {
                let mut dialed = lock(&self.0.dialed);
                dialed.push(Instant::now());
                u32::try_from(dialed.len()).unwrap()
            };
            let dial = (lock(&self.0.dial))(number);
            match dial {
                Dial::Refuse => Err(ConnectError::Dial(std::io::ErrorKind::ConnectionRefused.into())),
                Dial::Accept(after) => {
                    let mut connection = self.0.accept();
                    connection.identity = self.0.identities.of(user);
                    sleep(after).await;
                    Ok(connection)
                }
                Dial::Break(after) => {
                    let _connection = self.0.accept();
                    sleep(after).await;
                    Err(ConnectError::Hello("no".to_owned()))
                }
                Dial::Hang => {
                    let _connection = self.0.accept();
                    pending().await
                }
            }
        })
    }
}

/// A pool to be, with the defaults of these tests: nothing happens by itself but what a test asks for.
pub(super) struct Setup {
    pub(super) pool: PoolConfig,
    pub(super) max_in_flight: Option<u32>,
    pub(super) discipline: QueueDiscipline,
    pub(super) adaptive_limit: bool,
    pub(super) health_check: Duration,
    pub(super) reconnect: BackoffConfig,
    pub(super) breaker: BreakerConfig,
    pub(super) bound: Arc<ClusterBound>,
    pub(super) server: Arc<Server>,
}

impl Setup {
    pub(super) fn new(min_pool_size: u32, max_pool_size: u32) -> Self {
        Self {
            pool: PoolConfig {
                max_pool_size,
                min_pool_size,
                max_user_connections: None,
                max_connecting: 2,
                max_idle_time: NEVER,
                max_lifetime: NEVER,
                connect_timeout: ms(10_000),
                socket_timeout: None,
            },
            max_in_flight: None,
            discipline: QueueDiscipline::Fifo,
            adaptive_limit: false,
            health_check: NEVER,
            reconnect: BackoffConfig { initial: ms(100), max: ms(30_000) },
            breaker: BreakerConfig {
                consecutive_failures: 5,
                success_rate: 0.5,
                minimum_samples: 20,
                window: ms(10_000),
                open_initial: ms(1_000),
                open_max: ms(60_000),
            },
            bound: ClusterBound::new(None),
            server: Server::new(Arc::default(), 64 * 1024),
        }
    }

    /// A pool that is maintained and still paused.
    pub(super) fn start_paused(self) -> Rig {
        let address = Address::Tcp { host: "scripted".to_owned(), port: 27017 };
        let (tasks, metrics, greeted) = (Tasks::new(), Metrics::new(), Arc::new(AtomicU32::new(0)));
        let server_metrics = metrics.server("default", &address.to_string());
        let health = Arc::new(Health::new(address.clone(), &self.breaker, server_metrics.clone()));
        let greetings = greeted.clone();
        let pool = Pool::new(PoolParts {
            address,
            settings: PoolSettings {
                config: self.pool,
                max_in_flight: self.max_in_flight,
                discipline: self.discipline,
                adaptive_limit: self.adaptive_limit,
                health_check: self.health_check,
                reconnect: self.reconnect,
                pooling: crate::config::PoolingConfig { clients_percent: 100, databases: Vec::new() },
            },
            dialer: Arc::new(ToServer(self.server.clone())),
            cluster_bound: self.bound.clone(),
            health: health.clone(),
            greeted: Arc::new(move |_, _| {
                greetings.fetch_add(1, Ordering::Relaxed);
            }),
            refused: Arc::new({
                let identities = self.server.identities.clone();
                move |_, identity| {
                    identities.revoke(identity);
                    true
                }
            }),
            tasks: tasks.clone(),
            server_metrics: server_metrics.clone(),
            metrics,
        });
        tasks.spawn("maintain pool", maintain::run(pool.clone()));
        Rig { pool, server: self.server, health, tasks, metrics: server_metrics, greeted }
    }

    /// A pool that gives out connections.
    pub(super) fn start(self) -> Rig {
        let rig = self.start_paused();
        rig.pool.ready();
        rig
    }
}

/// A pool at work, and all that a test wants to look at.
pub(super) struct Rig {
    pub(super) pool: Pool,
    pub(super) server: Arc<Server>,
    pub(super) health: Arc<Health>,
    pub(super) tasks: Tasks,
    pub(super) metrics: Arc<ServerMetrics>,
    pub(super) greeted: Arc<AtomicU32>,
}

impl Rig {
    pub(super) fn counts(&self) -> PoolCounts {
        self.pool.snapshot().counts
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.pool.snapshot().waiting.iter().sum()
    }

    pub(super) fn closed(&self, reason: ConnectionClosed) -> u64 {
        self.metrics.connections_closed[reason].get()
    }

    /// Waits for a connection up to five seconds.
    pub(super) async fn check_out(&self) -> Result<PooledConnection, CheckOutError> {
        self.pool.check_out(Lane::Regular, Instant::now() + ms(5_000)).await
    }

    /// Checks out `number` connections at once.
    pub(super) async fn check_out_many(&self, number: u32) -> Vec<PooledConnection> {
        let mut connections = Vec::new();
        for _ in 0..number {
            connections.push(self.check_out().await.unwrap());
        }
        connections
    }

    /// What must hold whenever nobody has a connection and nothing is under way.
    pub(super) fn check_at_rest(&self) {
        let counts = self.counts();
        assert_eq!((counts.in_use, counts.pending, counts.closing), (0, 0, 0), "{counts:?}");
        assert_eq!(self.waiting(), 0);
        let closed: u64 = ConnectionClosed::ALL.iter().map(|reason| self.closed(*reason)).sum();
        assert_eq!(self.metrics.connections_created.get() - closed, u64::from(counts.available), "metrics");
    }

    /// `number` commands run side by side, each gets its own reply, and nothing is left over.
    pub(super) async fn check_serves(&self, number: u32) {
        let mut connections = self.check_out_many(number).await;
        assert_eq!(self.counts().in_use, number);
        for (index, connection) in (1..).zip(&mut connections) {
            assert_eq!(work(connection, index, Work::default()).await.unwrap(), index);
        }
        drop(connections);
        // Replacements and pings come and go.
        for _ in 0..50 {
            sleep(ms(17)).await;
            let counts = self.counts();
            if counts.total() == counts.available {
                break;
            }
        }
        self.check_at_rest();
    }

    /// Closes the pool; nothing may be left of it.
    pub(super) async fn end(&self) {
        self.pool.close();
        let ended = self.tasks.join_all(ms(60_000)).await;
        assert_eq!(ended, 0, "tasks that have not ended");
        self.server.kick();
        settle().await;
        assert_eq!(self.server.open(), 0);
        assert_eq!(self.counts(), PoolCounts::default());
        self.check_at_rest();
    }
}

/// What the server does with a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// Busy for that long; it notices nothing meanwhile.
    pub(super) take: Duration,
    /// Then: `answer`, answer `twice`, answer something `stray`, break in the `half` of the reply, `close`, `hang` until the
    /// other side closes, or be `deaf` to that too.
    pub(super) then: &'static str,
    /// Bytes that make the reply larger.
    pub(super) padding: i32,
}

impl Default for Work {
    fn default() -> Self {
        Self { take: Duration::ZERO, then: "answer", padding: 0 }
    }
}

impl Work {
    pub(super) fn then(then: &'static str) -> Self {
        Self { then, ..Self::default() }
    }

    pub(super) fn take(milliseconds: u64) -> Self {
        Self { take: ms(milliseconds), ..Self::default() }
    }
}

/// Runs a command; returns the number that came back.
pub(super) async fn work(connection: &mut Connection, number: i32, work: Work) -> Result<i32, ReceiveError> {
    let take = i64::try_from(work.take.as_millis()).unwrap();
    let id = connection.next_request_id();
    let command = rawdoc! {"work": number, "take": take, "then": work.then, "padding": work.padding, "$db": "test"};
    let message = encode::op_msg(id, 0, &command);
    let reply = timeout(ms(3_600_000), connection.exchange(message.bytes())).await.expect("neither reply nor error")?;
    let number = RawDocument::from_bytes(op_msg::reply_document(reply).unwrap().1).unwrap().get_i32("work").unwrap();
    connection.clear_reply();
    Ok(number)
}
