//! One run: a set of servers, the proxy without its sockets, clients, faults; all of it in one thread, under one seed and a clock
//! that stands still while anybody works.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bson::oid::ObjectId;
use futures_util::FutureExt as _;
use futures_util::future::{Either, join_all, select};
use mongomux::admission::{Lane, MemoryBudget};
use mongomux::auth::UserId;
use mongomux::client::facade::{self, Offer};
use mongomux::client::session::Session;
use mongomux::client::shared::{Activity, ClientLimits};
use mongomux::client::{ClientShared, Clusters, Ends, Places};
use mongomux::config::system::{Sources, Text};
use mongomux::config::{Address, Config, Databases, MemoryShares};
use mongomux::tasks::Tasks;
use mongomux::telemetry::metrics::Metrics;
use mongomux::topology::Monitor;
use mongomux::upstream::handshake::{ConnectError, Dialer, UpstreamDialer};
use mongomux::upstream::{Cluster, Connection};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::PANIC;
use crate::chance::Chance;
use crate::client;
use crate::faults;
use crate::network::{End, Far, Network};
use crate::server;
use crate::set::{Bounds, Set};
use crate::truth::Truth;
use crate::watch::Watch;

/// The proxy looks at its invariants so often.
const LOOK: Duration = Duration::from_millis(50);

/// Who waits beside an idle connection at so many looks in a row was not woken.
const IDLE_LOOKS: u32 = 4;

/// The same, once nobody disturbs it.
const CALM_LOOK: Duration = Duration::from_secs(5);

/// All clients are done by then, whatever has happened.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// After the last fault, a command of a new client is answered within this.
const RECOVERY: Duration = Duration::from_secs(90);

/// What a run is made of.
pub(crate) struct Plan {
    pub(crate) max_pool_size: usize,
    pub(crate) max_upstream_connections: Option<usize>,
    pub(crate) wait_queue_timeout: Duration,
    pub(crate) server_selection_timeout: Duration,
    pub(crate) retry_by_proxy: bool,
    pub(crate) clients: usize,
    pub(crate) commands: usize,
    /// Of a hundred replies, so many are not what they should be.
    mangled_percent: u64,
    /// What a pipe holds, bytes; by chance if that is not said.
    pipe_bytes: Option<usize>,
    settings: String,
}

impl Plan {
    fn draw(chance: &Chance) -> Self {
        let max_pool_size = 1 + chance.below(4);
        let min_pool_size = chance.below(max_pool_size + 1);
        let max_upstream_connections = chance.percent(25).then(|| 3 + chance.below(4));
        let wait_queue_timeout = chance.ms(200..5_000);
        let server_selection_timeout = chance.ms(1_000..15_000);
        let retry_by_proxy = chance.percent(40);
        let mut settings = format!(
            "max_pool_size = {max_pool_size}\nmin_pool_size = {min_pool_size}\nwait_queue_timeout_ms = {}\n\
             server_selection_timeout_ms = {}\nwait_queue_size = {}\nretry = \"{}\"\n",
            wait_queue_timeout.as_millis(),
            server_selection_timeout.as_millis(),
            chance.pick(&[2, 10, 4_000]),
            if retry_by_proxy { "proxy" } else { "driver" },
        );
        let mut maybe = |percent, text: &dyn Fn() -> String| {
            if chance.percent(percent) {
                settings.push_str(&text());
                settings.push('\n');
            }
        };
        maybe(20, &|| format!("command_timeout_ms = {}", chance.range(1_000..5_000)));
        maybe(20, &|| format!("socket_timeout_ms = {}", chance.range(1_000..5_000)));
        maybe(20, &|| format!("transaction_idle_timeout_ms = {}", chance.range(1_000..5_000)));
        maybe(20, &|| format!("max_in_flight = {}", 1 + chance.below(max_pool_size)));
        maybe(20, &|| "max_lifetime_ms = 60000".to_owned());
        maybe(20, &|| "max_idle_time_ms = 1000".to_owned());
        maybe(30, &|| format!("queue_discipline = \"{}\"", chance.pick(&["fifo", "codel"])));
        if let Some(most) = max_upstream_connections {
            settings.push_str(&format!("max_upstream_connections = {most}\n"));
        }
        Self {
            max_pool_size,
            max_upstream_connections,
            wait_queue_timeout,
            server_selection_timeout,
            retry_by_proxy,
            clients: 2 + chance.below(8),
            commands: 5 + chance.below(20),
            mangled_percent: chance.pick(&[0, 0, 1, 3]),
            pipe_bytes: None,
            settings,
        }
    }

    /// One connection to each server, and nothing that goes wrong by itself.
    pub(crate) fn of_one_connection() -> Self {
        let (wait_queue_timeout, server_selection_timeout) = (Duration::from_secs(5), Duration::from_secs(5));
        Self {
            max_pool_size: 1,
            max_upstream_connections: None,
            wait_queue_timeout,
            server_selection_timeout,
            retry_by_proxy: false,
            clients: 2,
            commands: 0,
            mangled_percent: 0,
            // A message takes many polls.
            pipe_bytes: Some(40),
            settings: "max_pool_size = 1\nmin_pool_size = 1\nserver_selection_timeout_ms = 5000\n".to_owned(),
        }
    }

    fn config(&self) -> Config {
        let file = Some(Text { name: "settings".to_owned(), text: self.settings.clone() });
        let uri = "mongodb://a:27017,b:27017,c:27017/?replicaSet=rs".to_owned();
        let upstream = Some(Text { name: "upstream".to_owned(), text: uri });
        let (config, _) = Config::load(&Sources { file, upstream, ..Sources::default() })
            .unwrap_or_else(|errors| panic!("{errors}\n{}", self.settings));
        config
    }
}

pub(crate) struct World {
    pub(crate) set: Arc<Set>,
    pub(crate) plan: Plan,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) chance: Chance,
    shared: Arc<ClientShared>,
    places: Arc<Places>,
    tasks: Tasks,
    /// Sockets of clients that there have been, so far: each has a port of its own.
    links: AtomicUsize,
    /// No more faults.
    pub(crate) calm: AtomicBool,
}

/// What the last looks saw.
#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    /// Since how many looks somebody waits beside an idle connection, and the generation of the pool.
    servers: BTreeMap<Address, (u32, u64)>,
}

/// Connects without sockets.
struct Sockets {
    set: Arc<Set>,
    upstream: UpstreamDialer,
}

impl Dialer for Sockets {
    fn connect<'a>(
        &'a self,
        address: &'a Address,
        user: UserId,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send + 'a>> {
        Box::pin(async move {
            let socket = server::connect(&self.set, self.set.number_of(address)).await.map_err(ConnectError::Dial)?;
            self.upstream.connect_over(Box::new(socket), user).await
        })
    }
}

impl World {
    pub(crate) fn build(chance: Chance, plan: Plan, truth: Truth) -> Arc<Self> {
        let mut config = plan.config();
        truth.note(format_args!("{} clients, {} commands each\n{}", plan.clients, plan.commands, plan.settings));
        let bounds = Bounds { of_server: plan.max_pool_size, of_all: plan.max_upstream_connections };
        let addresses = ["a", "b", "c"].map(|host| Address::tcp(host, 27017));
        let set = Set::new(
            &addresses,
            chance.clone(),
            truth,
            bounds,
            Network::new(chance.clone(), plan.pipe_bytes),
            plan.mangled_percent,
        );
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let memory = MemoryBudget::new(MemoryShares::of(config.memory_limit_bytes as u64));
        let cluster = config.clusters.remove(0);
        let monitor = Monitor::idle(&cluster.upstream);
        let most = config.client.max_message_bytes;
        let upstream =
            UpstreamDialer::new(&cluster.upstream, None, monitor.clone(), Arc::default(), memory.clone(), most);
        let dialer = Arc::new(Sockets { set: set.clone(), upstream });
        Watch::start(&set, monitor.clone());
        let cluster = Cluster::new(cluster, monitor, dialer, Arc::default(), memory, tasks.clone(), metrics.clone());
        cluster.start();
        let offer = Offer {
            presentation: cluster.config().presentation,
            shown_set: None,
            compressors: facade::compressors(&[]),
            max_message_bytes: most,
            service_id: ObjectId::from_bytes(chance.bytes()),
        };
        let clusters = Clusters::new(cluster.clone(), Databases::from_iter([]));
        let facts = facade::follow(&clusters, offer, &tasks);
        let places = Places::new(&config.client, metrics);
        let limits = Arc::new(ClientLimits::from_pointee(config.client));
        let nowhere = Address::tcp("127.0.0.1", 0);
        let activity = Arc::new(Activity::default());
        let shared = ClientShared::new(nowhere, clusters, Arc::default(), limits, facts, activity, None);
        let (links, calm) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { set, plan, cluster, chance, shared, places, tasks, links, calm })
    }

    pub(crate) fn truth(&self) -> &Truth {
        &self.set.truth
    }

    /// A new client: its end of a link to a session. `cancel` drops the session wherever it is.
    pub(crate) async fn connect(&self, client: usize, cancel: Arc<Notify>) -> End {
        let (far, session) = self.session(client).await;
        self.shared.activity.sessions.spawn("client", async move {
            let session = std::pin::pin!(session);
            match select(session, std::pin::pin!(cancel.notified())).await {
                Either::Left(_) | Either::Right(_) => {}
            }
        });
        far
    }

    /// A new client, whose session ends after so many polls, counted from when `armed` is set.
    pub(crate) async fn connect_for(
        &self,
        client: usize,
        polls: usize,
        armed: Arc<AtomicBool>,
    ) -> (End, Arc<AtomicBool>) {
        let (far, session) = self.session(client).await;
        let tell = Arc::new(AtomicBool::new(false));
        let told = tell.clone();
        self.shared.activity.sessions.spawn("client", Dropped { session: Some(Box::pin(session)), polls, armed, tell });
        (far, told)
    }

    async fn session(&self, client: usize) -> (End, impl Future<Output = ()> + Send + 'static + use<>) {
        let (near, far) = self.set.network.link(Far::Client(client));
        let link = self.links.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + link).expect("few clients");
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let ends = Ends::Tcp { peer, local: SocketAddr::from((Ipv4Addr::LOCALHOST, 27016)) };
        let session = Session::new(near, ends, self.shared.clone(), self.places.take().await);
        (far, session.run(Arc::default()).map(drop))
    }

    /// What must hold at all times.
    fn look(&self, seen: &mut Seen) {
        let (before, now) = (seen.at.replace(Instant::now()), Instant::now());
        // An open transaction has room kept for it.
        let transactions = self.cluster.pins.lock().expect("nobody panics").count().1;
        for server in self.cluster.servers() {
            let snapshot = server.pool.snapshot();
            let counts = snapshot.counts;
            let nothing_lacks = snapshot.shortage.is_none() && transactions == 0 && counts.available > 0;
            let waits = nothing_lacks && snapshot.waiting[Lane::Regular as usize] > 0;
            let (looks, generation) = seen.servers.entry((*server.address).clone()).or_default();
            *looks = if waits { *looks + 1 } else { 0 };
            while !server.pool.is_current(*generation) {
                *generation += 1;
                let member = &self.set.members[self.set.number_of(&server.address)];
                member.state().cleared = before.map(|before| (before, now));
            }
            if *looks == IDLE_LOOKS {
                self.truth().broken(format_args!("somebody waits for {} beside an idle connection", server.address));
            }
            let open = counts.available + counts.in_use + counts.pending;
            if open as usize > self.plan.max_pool_size {
                self.truth().broken(format_args!("the pool of {} has {open} connections", server.address));
            }
        }
    }

    /// What is left once all clients have left and nothing happens any more.
    fn leaks(&self) -> Vec<String> {
        let cluster = &self.cluster;
        let mut leaks = Vec::new();
        let mut nothing_of = |what: &str, count: usize| {
            if count > 0 {
                leaks.push(format!("{what}: {count}"));
            }
        };
        for server in cluster.servers() {
            let snapshot = server.pool.snapshot();
            nothing_of("connections in use", snapshot.counts.in_use as usize);
            nothing_of("connections that are being established", snapshot.counts.pending as usize);
            nothing_of("commands that wait for a connection", snapshot.waiting.iter().sum());
            nothing_of("commands under way on a server", server.operations() as usize);
        }
        nothing_of("commands in the queue", cluster.admission.waiting());
        nothing_of("bytes in the queue", cluster.admission.bytes());
        nothing_of("commands under way", self.shared.activity.commands().0);
        nothing_of("sessions", self.shared.activity.sessions.running());
        nothing_of("bytes of memory", cluster.memory.used());
        nothing_of("pins of transactions", cluster.pins.lock().expect("nobody panics").count().1);
        nothing_of("transactions that are open on servers", self.set.open_transactions().len());
        // Where many share one connection, a kill may wait behind others for longer than it is waited for.
        let one_for_all = self.plan.max_pool_size == 1 || self.plan.max_upstream_connections.is_some();
        if self.plan.commands == 0 || !one_for_all {
            nothing_of("cursors that nobody knows", self.truth().lost_cursors(&self.set.open_cursors()).len());
        }
        leaks
    }

    /// The proxy does something for itself now and then, but not all the time.
    pub(crate) async fn look_for_leaks(&self) {
        for _ in 0..100 {
            if self.leaks().is_empty() {
                return;
            }
            sleep(LOOK).await;
        }
        self.leaks().iter().for_each(|leak| self.truth().broken(format_args!("left are {leak}")));
    }

    /// Transactions whose clients have left are aborted, long before servers do that.
    async fn look_for_orphans(&self) {
        for _ in 0..100 {
            if self.set.open_transactions().is_empty() {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
        let open = self.set.open_transactions().join(", ");
        self.truth().broken(format_args!("transactions of clients that have left are still open: {open}"));
    }

    async fn run(self: &Arc<Self>) {
        let world = self.clone();
        self.set.tasks.spawn("look", async move {
            let mut seen = Seen::default();
            while !world.set.tasks.is_cancelled() {
                world.look(&mut seen);
                let pause = if world.calm.load(Ordering::Relaxed) { CALM_LOOK } else { LOOK };
                sleep(pause).await;
            }
        });
        let clients = (0..self.plan.clients).map(|number| client::run(self.clone(), number));
        let clients = join_all(clients);
        let faults = faults::run(self.clone());
        let over = async {
            // Clients outlast the faults, or the other way round.
            let clients = std::pin::pin!(clients);
            match select(clients, std::pin::pin!(faults)).await {
                Either::Left(_) => {}
                Either::Right(((), clients)) => drop(clients.await),
            }
        };
        if timeout(PATIENCE, over).await.is_err() {
            self.truth().broken(format_args!("clients still wait after {} s", PATIENCE.as_secs()));
        }
        self.calm.store(true, Ordering::Relaxed);
        faults::heal(self).await;
        let probe = client::probe(self.clone(), self.plan.clients);
        if timeout(RECOVERY, probe).await.is_err() {
            let problem = self.cluster.not_ready().unwrap_or_default();
            self.truth().broken(format_args!("no write went through within {} s: {problem}", RECOVERY.as_secs()));
        }
        self.look_for_orphans().await;
        // Whoever is silent in the middle of a message is closed.
        sleep(Duration::from_secs(130)).await;
        self.look_for_leaks().await;
        self.end().await;
    }

    /// Makes the account, and ends the proxy.
    pub(crate) async fn end(&self) {
        self.truth().settle();
        self.tasks.cancel();
        self.set.tasks.cancel();
        let left = self.tasks.join_all(Duration::from_secs(60)).await;
        if left > 0 {
            self.truth().broken(format_args!("{left} tasks do not end"));
        }
    }
}

/// A session that ends in the middle.
struct Dropped<F> {
    session: Option<Pin<Box<F>>>,
    /// Polls that are left to it.
    polls: usize,
    /// They count from now on.
    armed: Arc<AtomicBool>,
    /// Told when it was dropped before its end.
    tell: Arc<AtomicBool>,
}

impl<F: Future<Output = ()>> Future for Dropped<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let armed = self.armed.load(Ordering::Relaxed);
        if !armed || self.polls > 0 {
            let session = self.session.as_mut().expect("it is polled no more once it was dropped");
            if session.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
        }
        if armed && self.polls <= 1 {
            self.session = None;
            self.tell.store(true, Ordering::Relaxed);
            return Poll::Ready(());
        }
        if armed {
            self.polls -= 1;
        }
        Poll::Pending
    }
}

/// What came out of a run.
pub(crate) struct Outcome {
    /// The same for the same run.
    #[cfg_attr(not(tokio_unstable), expect(dead_code, reason = "runs are the same there only"))]
    pub(crate) hash: u64,
    /// What broke a promise, with the story before it.
    pub(crate) verdict: Result<(), String>,
    /// Commands that servers got.
    pub(crate) delivered: u64,
}

/// Runs one seed to its end. `order` decides in which order tokio looks at what is ready at the same time, where that can be
/// chosen.
pub(crate) fn run(seed: u64, order: u64, aloud: bool, lines: usize) -> Outcome {
    fastrand::seed(seed);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&[seed.to_le_bytes(), order.to_le_bytes()].concat()));
    #[cfg(not(tokio_unstable))]
    assert_eq!(order, 0, "this build cannot choose it");
    runtime.build().expect("a runtime").block_on(async {
        let chance = Chance::new(seed);
        let plan = Plan::draw(&chance);
        let world = World::build(chance, plan, Truth::new(aloud));
        world.run().await;
        if let Some(panic) = PANIC.take() {
            world.truth().broken(format_args!("{panic}"));
        }
        let delivered = world.truth().facts().delivered.values().map(|count| u64::from(*count)).sum();
        Outcome { hash: world.truth().hash(), verdict: world.truth().verdict(lines), delivered }
    })
}
