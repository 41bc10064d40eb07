//! One upstream connection string: its topology, the servers that come and go with it, and what is pinned to them.
//!
//! The topology decides which servers exist and whether their pools give out connections; what our own connections see
//! goes back into the topology. The rules are those of the SDAM specification ("Error handling").

mod server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use self::server::{Operation, Server};
use super::cancels::Cancels;
use super::elsewhere::Elsewhere;
use super::episode::Episode;
use super::errand::Background;
use super::fleet::{self, Fleet};
use super::handshake::Dialer;
use super::health::Health;
use super::lines;
use super::load::LastLoad;
use super::long_polls::LongPolls;
use super::lookout;
use super::maintain;
use super::pool::{ClusterBound, Pool, PoolParts, lock};
use super::settings::{PoolSettings, in_flight};
use super::settling::Settling;
use super::users::UserChanges;
use crate::admission::{Admission, MemoryBudget, ModeSwitch, Tenants};
use crate::auth::Identities;
use crate::config::{Address, ClusterConfig, PoolingMode};
use crate::routing::Pins;
use crate::tasks::Tasks;
use crate::telemetry::EventKind;
use crate::telemetry::labels::{Label as _, ServerEvent};
use crate::telemetry::logs::SERVER_SELECTION;
use crate::telemetry::metrics::Metrics;
use crate::topology::monitor::Monitor;
use crate::topology::{
    Criteria, SelectionFailure, Selector, ServerDescription, ServerKind, TopologyDescription, TopologyKind,
    TopologyVersion,
};

/// While somebody waits for a server that is down or suspect, it is greeted this often: minHeartbeatFrequencyMS.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Pins are searched for expired ones this often.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

/// Open transactions are searched for those without a client, and for idle ones, this often: they hold locks.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(1);

/// Why no server was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// None suited in time; says what is wrong with which server.
    #[error("{0}")]
    NoSuitableServer(String),
    /// Servers suit, and the breaker of each is open; says why.
    #[error("{0}")]
    BreakerOpen(String),
}

/// One upstream connection string at work.
pub struct Cluster {
    /// As configured: its name in logs, metrics and orders.
    pub name: String,
    pub(super) config: ArcSwap<ClusterConfig>,
    /// Whether all commands share connections: saves a look at the configuration for each.
    pub(super) pools_all: AtomicBool,
    /// The bound on waiting commands.
    pub admission: Arc<Admission>,
    /// Who its commands belong to.
    pub tenants: Mutex<Tenants>,
    /// How far it serves now.
    pub mode: ModeSwitch,
    /// What is bound to a server.
    pub pins: Mutex<Pins>,
    /// Another process that may know more of that.
    pub elsewhere: Elsewhere,
    /// The bound on buffered bytes.
    pub memory: Arc<MemoryBudget>,
    /// Where its tasks run.
    pub tasks: Tasks,
    /// Metrics of all.
    pub metrics: Arc<Metrics>,
    /// Clients that are connected to listeners that lead to it.
    pub clients: AtomicUsize,
    /// Those that there have been so far, of listeners that lead to no other cluster: what the others asked cannot be told.
    pub clients_opened: AtomicU64,
    /// The time without a primary, as far as reads were served in it.
    pub degraded: Episode,
    pub(super) last_load: LastLoad,
    pub(super) fleet: Fleet,
    monitor: Monitor,
    dialer: Arc<dyn Dialer>,
    /// Those who have logged in.
    pub identities: Arc<Identities>,
    /// Tells that users were changed through us.
    pub user_changes: Arc<UserChanges>,
    pub(super) bound: Arc<ClusterBound>,
    servers: Mutex<BTreeMap<Address, Arc<Server>>>,
    /// Held while servers are made to agree with the topology.
    pub(super) reconciling: Mutex<()>,
    /// Servers that have left and still have connections, in case they come back: the bound holds for both together.
    leaving: Mutex<BTreeMap<Address, Arc<Server>>>,
    pub(super) background: Background,
    waiting_for_server: AtomicUsize,
    somebody_waits: Notify,
    /// Told when one begins to wait here for what is written on a server.
    pub(super) somebody_parks: Arc<Notify>,
}

impl Cluster {
    /// A cluster without servers; they come with the topology, which [`Cluster::start`] follows.
    pub fn new(
        config: ClusterConfig,
        monitor: Monitor,
        dialer: Arc<dyn Dialer>,
        identities: Arc<Identities>,
        memory: Arc<MemoryBudget>,
        tasks: Tasks,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            admission: Admission::new(config.wait_queue_size, config.wait_queue_bytes),
            tenants: Mutex::new(Tenants::new(config.fairness.clone())),
            last_load: LastLoad::default(),
            fleet: Fleet::default(),
            mode: ModeSwitch::default(),
            pins: Mutex::default(),
            elsewhere: Elsewhere::default(),
            memory,
            tasks,
            metrics,
            clients: AtomicUsize::new(0),
            clients_opened: AtomicU64::new(0),
            degraded: Episode::default(),
            monitor,
            dialer,
            identities,
            user_changes: Arc::default(),
            bound: ClusterBound::new(config.max_upstream_connections),
            servers: Mutex::default(),
            reconciling: Mutex::default(),
            leaving: Mutex::default(),
            background: Background::default(),
            waiting_for_server: AtomicUsize::new(0),
            somebody_waits: Notify::new(),
            somebody_parks: Arc::default(),
            pools_all: AtomicBool::new(config.pooling.mode() == PoolingMode::Pooled),
            name: config.name.clone(),
            config: ArcSwap::from_pointee(config),
        })
    }

    /// What is in force now. Cheap, and not meant to be kept: a reload puts another one in its place.
    pub fn config(&self) -> arc_swap::Guard<Arc<ClusterConfig>> {
        self.config.load()
    }

    /// Starts to follow the topology.
    pub fn start(self: &Arc<Self>) {
        if !self.pools_all() {
            self.tell_pooling();
        }
        let cluster = self.clone();
        self.tasks.spawn("follow topology", async move {
            let mut topology = cluster.monitor.subscribe();
            loop {
                topology.borrow_and_update();
                cluster.reconcile();
                // Nothing is lost when an arm loses: the watch keeps its newest value.
                tokio::select! {
                    changed = topology.changed() => if changed.is_err() { return },
                    () = cluster.tasks.cancelled() => return,
                }
            }
        });
        let cluster = self.clone();
        self.tasks.spawn("recheck servers", async move {
            tokio::select! {
                () = cluster.recheck_while_waited_for() => {}
                () = cluster.tasks.cancelled() => {}
            }
        });
        let cluster = self.clone();
        self.tasks.spawn("look for writes", async move {
            tokio::select! {
                () = lookout::run(cluster.clone()) => {}
                () = cluster.tasks.cancelled() => {}
            }
        });
        self.tasks.spawn("end pauses", self.clone().end_pauses());
        let cluster = self.clone();
        self.tasks.spawn("look at the fleet", async move {
            tokio::select! {
                () = fleet::run(cluster.clone()) => {}
                () = cluster.tasks.cancelled() => {}
            }
        });
        let cluster = self.clone();
        self.tasks.spawn("expire pins", async move {
            let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
            let mut orphans = tokio::time::interval(ORPHAN_INTERVAL);
            loop {
                // Nothing is lost when an arm loses: a tick that is due stays due.
                tokio::select! {
                    now = expiry.tick() => lock(&cluster.pins).expire(now),
                    now = orphans.tick() => {
                        cluster.abort_orphans(now);
                        cluster.abort_idle(now);
                    }
                    () = cluster.tasks.cancelled() => return,
                }
            }
        });
    }

    /// What is known about the servers.
    pub fn topology(&self) -> Arc<TopologyDescription> {
        self.monitor.current()
    }

    /// The monitor, for whoever waits for a change.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// All servers, ordered by address.
    pub fn servers(&self) -> Vec<Arc<Server>> {
        lock(&self.servers).values().cloned().collect()
    }

    /// The server at `address`, if it has not left.
    pub fn server(&self, address: &Address) -> Option<Arc<Server>> {
        lock(&self.servers).get(address).cloned()
    }

    /// Counts a command on the server at `address`; `None` when that has left.
    pub fn operation_on(&self, address: &Address) -> Option<Operation> {
        let server = self.server(address)?;
        Some(Operation::on(server))
    }

    /// Chooses a server that suits now; `Ok(None)` means that waiting may help.
    ///
    /// # Errors
    /// [`SelectError`] when waiting would not help.
    pub fn try_select(
        &self,
        criteria: Criteria<'_>,
        failed: Option<&Address>,
    ) -> Result<Option<Operation>, SelectError> {
        let topology = self.monitor.current();
        let servers = lock(&self.servers);
        let config = self.config();
        let selector = Selector {
            refused: &|address| servers.get(address).is_some_and(|server| !server.passes()),
            deprioritised: &|address| failed == Some(address),
            in_flight: &|address| servers.get(address).map_or(0, |server| server.load()),
            heartbeat_frequency: config.heartbeat_frequency,
            local_threshold: config.local_threshold,
            random: &|| (fastrand::u64(..), fastrand::u64(..)),
        };
        tracing::trace!(target: SERVER_SELECTION, selector = ?criteria, "Server selection started");
        match selector.select(&topology, criteria) {
            // Not there yet: the topology is newer than the list, which follows at once.
            Ok(chosen) => Ok(servers.get(&chosen.address).cloned().map(|server| {
                lines::selection_succeeded(&server.address);
                Operation::on(server)
            })),
            Err(SelectionFailure::NoSuitableServer) => Ok(None),
            Err(SelectionFailure::Incompatible) => Err(SelectError::NoSuitableServer(self.problem(&topology))),
            Err(SelectionFailure::AllRefused) => {
                drop(servers);
                Err(SelectError::BreakerOpen(self.refusal()))
            }
        }
    }

    /// Chooses a server, and waits until there is one that suits.
    ///
    /// # Errors
    /// [`SelectError`]; nothing was sent then.
    ///
    /// # Cancel safety
    /// Safe: nothing is held but a count that drops with the future.
    pub async fn select(
        &self,
        criteria: Criteria<'_>,
        failed: Option<&Address>,
        deadline: Instant,
    ) -> Result<Operation, SelectError> {
        // Subscribed before the look, so that a change in between is not missed.
        let mut topology = self.monitor.subscribe();
        let _monitor_hurries = self.monitor.waiting();
        let _waiting = WaitsForServer::new(self);
        let mut waited = false;
        loop {
            let refused = match self.try_select(criteria, failed) {
                Ok(Some(operation)) => return Ok(operation),
                Ok(None) if !waited => {
                    let remaining = deadline.saturating_duration_since(Instant::now());
                    tracing::debug!(
                        target: SERVER_SELECTION, cluster = %self.name, selector = ?criteria,
                        remainingTimeMS = lines::milliseconds(remaining),
                        "Waiting for suitable server to become available"
                    );
                    None
                }
                Ok(None) => None,
                // Whoever has waited for a server until it came back goes on until it is proven to be well.
                Err(refused @ SelectError::BreakerOpen(_)) if waited => Some(refused),
                Err(error) => return Err(error),
            };
            waited = true;
            // A breaker tells nobody that it has closed.
            let look = refused.as_ref().map_or(deadline, |_| deadline.min(Instant::now() + RECHECK_INTERVAL));
            match tokio::time::timeout_at(look, topology.changed()).await {
                Ok(Ok(())) => {}
                Err(_) if look < deadline => {}
                _ => {
                    let none = || SelectError::NoSuitableServer(self.problem(&self.monitor.current()));
                    let failure = refused.unwrap_or_else(none);
                    tracing::debug!(
                        target: SERVER_SELECTION, cluster = %self.name, selector = ?criteria, %failure,
                        "Server selection failed"
                    );
                    return Err(failure);
                }
            }
            topology.borrow_and_update();
            self.reconcile();
        }
    }

    /// Waits until there is news of a server that is suspect; returns at once for all others.
    ///
    /// # Errors
    /// [`SelectError::NoSuitableServer`] when there was none in time.
    ///
    /// # Cancel safety
    /// Safe: nothing is held but counts that drop with the future.
    pub async fn await_news(&self, address: &Address, deadline: Instant) -> Result<(), SelectError> {
        let mut topology = self.monitor.subscribe();
        let _monitor_hurries = self.monitor.waiting();
        let _waiting = WaitsForServer::new(self);
        let told = topology.wait_for(|now| now.servers.get(address).is_none_or(|server| server.suspected.is_none()));
        if !matches!(tokio::time::timeout_at(deadline, told).await, Ok(Ok(_))) {
            return Err(SelectError::NoSuitableServer(self.problem(&self.monitor.current())));
        }
        self.reconcile();
        Ok(())
    }

    /// A connection broke in the middle of a command. The server is asked at once and suspect until it is heard of, unless the
    /// connection is of an older generation: then the failure that made it stale was heard of already.
    pub fn network_error(&self, server: &Server, generation: u64, reason: &str) {
        self.connection_broke(server, generation, reason, false);
    }

    /// As [`Cluster::network_error`], of a connection that belongs to one client. Those of others stay, as they would without a
    /// proxy: whether the server is lost is found out by asking it.
    pub fn own_network_error(&self, server: &Server, generation: u64, reason: &str) {
        self.connection_broke(server, generation, reason, true);
    }

    fn connection_broke(&self, server: &Server, generation: u64, reason: &str, own: bool) {
        if !server.pool.is_current(generation) {
            tracing::debug!(server = %server.address, reason, "stale connection broke");
            return;
        }
        server.metrics.events[ServerEvent::Error].inc();
        tracing::info!(server = %server.address, event = ServerEvent::Error.as_str(), reason, "connection broke");
        server.metrics.happened(EventKind::Error, &format!("a connection broke: {reason}"));
        if !own {
            server.pool.clear_generation(generation);
        }
        self.monitor.suspect(&server.address, reason, None);
        server.pool.recheck();
    }

    /// A server said that it is not what we took it for, or that it shuts down: it is suspect, and asked at once.
    pub fn state_change(&self, server: &Server, code: i32, shutdown: bool, version: Option<TopologyVersion>) {
        if self.monitor.suspect(&server.address, &format!("answered with error {code}"), version) {
            tracing::info!(server = %server.address, code, "server changes its state");
            if shutdown {
                server.pool.clear(false);
            } else {
                server.pool.evict();
            }
            server.pool.recheck();
        }
    }

    /// The servers that have left and whose connections have not all ended.
    pub(super) fn leaving(&self) -> Vec<Arc<Server>> {
        lock(&self.leaving).values().cloned().collect()
    }

    /// What is wrong, in plain words with the servers named.
    pub fn problem(&self, topology: &TopologyDescription) -> String {
        topology.problem().unwrap_or_else(|| format!("no suitable server among {}", topology.summary()))
    }

    /// Why `/readyz` says no: no server for writes, or none that takes connections.
    pub fn not_ready(&self) -> Option<String> {
        let topology = self.monitor.current();
        if let Some(problem) = topology.problem() {
            return Some(problem);
        }
        match self.try_select(Criteria::Write, None) {
            Ok(Some(operation)) => {
                let snapshot = operation.server().pool.snapshot();
                let connected = snapshot.counts.available + snapshot.counts.in_use > 0;
                match snapshot.last_connect_error {
                    Some(error) if !connected => Some(format!("{}: {error}", operation.server().address)),
                    _ => None,
                }
            }
            Ok(None) => Some(self.problem(&topology)),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Which breakers are not closed, and why.
    pub fn refusal(&self) -> String {
        let refused = self.servers().into_iter().filter(|server| !server.passes()).map(|server| {
            let why = server.health.trouble().unwrap_or_default();
            let detail = server.pool.snapshot().last_connect_error.map(|error| format!(" ({error})"));
            format!("{}: circuit breaker open: {why}{}", server.address, detail.unwrap_or_default())
        });
        refused.collect::<Vec<_>>().join("; ")
    }

    /// Makes servers and pools agree with the topology.
    pub fn reconcile(&self) {
        // One after the other, each with what is known then: of two at once, the older view must not come last.
        let _one_at_a_time = lock(&self.reconciling);
        let topology = &*self.topology();
        // Arbiters and the like get no pool: nothing is ever sent there. Of an unknown server nobody knows yet. Who has one
        // keeps it, as a member is something else for the moment of a step-down or a restart: a new pool would open its
        // connections on top of those of the old one that are in use, and cursors there would be lost meanwhile.
        let wanted = |server: &ServerDescription| {
            !server.is_known() || server.kind.is_data_bearing() || topology.kind == TopologyKind::Single
        };
        let kept = |server: &ServerDescription| wanted(server) || server.kind != ServerKind::RsArbiter;
        let gone: Vec<_> = {
            let mut servers = lock(&self.servers);
            let gone = servers.extract_if(.., |address, _| !topology.servers.get(address).is_some_and(kept)).collect();
            for description in topology.servers.values().filter(|server| wanted(server)) {
                servers.entry(description.address.clone()).or_insert_with(|| self.add(&description.address));
            }
            gone
        };
        {
            let mut leaving = lock(&self.leaving);
            leaving.retain(|_, server| !server.pool.has_ended());
            for (address, server) in gone {
                tracing::info!(server = %address, "server left");
                server.metrics.happened(EventKind::ServerLeft, "is no part of the topology any more");
                server.pool.close();
                server.long_polls.disturb();
                leaving.insert(address, server);
            }
        }
        for server in self.servers() {
            if let Some(description) = topology.servers.get(&server.address) {
                server.follow(description);
            }
        }
    }

    fn add(&self, address: &Address) -> Arc<Server> {
        tracing::info!(server = %address, "server found");
        let metrics = self.metrics.server(&self.name, &address.to_string());
        metrics.happened(EventKind::ServerFound, "is part of the topology");
        if let Some(server) = lock(&self.leaving).remove(address).filter(|server| server.pool.reopen()) {
            return server;
        }
        let config = self.config();
        let health = Arc::new(Health::new(address.clone(), &config.breaker, metrics.clone()));
        let monitor = self.monitor.clone();
        let (identities, topology) = (self.identities.clone(), self.monitor.clone());
        let changes = self.user_changes.clone();
        let pool = Pool::new(PoolParts {
            address: address.clone(),
            settings: PoolSettings::of(&config),
            dialer: self.dialer.clone(),
            cluster_bound: self.bound.clone(),
            health: health.clone(),
            greeted: Arc::new(move |address, greeting| {
                monitor.heard(address, greeting.hello.clone(), greeting.round_trip_time);
            }),
            refused: Arc::new(move |address, identity| {
                // What was looked up is of no use any more, whatever has happened.
                changes.happened();
                // A secondary may not know yet of a new password.
                let kind = topology.current().servers.get(address).map(|server| server.kind);
                let has_last_word =
                    matches!(kind, Some(ServerKind::RsPrimary | ServerKind::Standalone | ServerKind::Mongos));
                if has_last_word {
                    identities.revoke(identity);
                }
                has_last_word
            }),
            tasks: self.tasks.clone(),
            server_metrics: metrics.clone(),
            metrics: self.metrics.clone(),
        });
        self.tasks.spawn("maintain pool", maintain::run(pool.clone()));
        let address = Arc::new(address.clone());
        let in_flight = in_flight(&config);
        let (long_polls, settling) = (LongPolls::new(in_flight, self.somebody_parks.clone()), Settling::new(in_flight));
        let (cancels, operations, seen) = (Cancels::new(Instant::now()), AtomicU32::new(0), Mutex::default());
        let long_polls = Arc::new(long_polls);
        Arc::new(Server { address, pool, health, metrics, long_polls, settling, cancels, operations, seen })
    }

    async fn recheck_while_waited_for(&self) {
        loop {
            if self.waiting_for_server.load(Ordering::Relaxed) == 0 {
                self.somebody_waits.notified().await;
                continue;
            }
            let topology = self.monitor.current();
            for server in self.servers() {
                let known = topology.servers.get(&server.address).is_none_or(ServerDescription::is_known);
                if !known || !server.passes() {
                    server.pool.recheck();
                }
            }
            tokio::time::sleep(RECHECK_INTERVAL).await;
        }
    }
}

/// Counts one command that waits for a server.
struct WaitsForServer<'a>(&'a Cluster);

impl<'a> WaitsForServer<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.waiting_for_server.fetch_add(1, Ordering::Relaxed);
        cluster.somebody_waits.notify_one();
        Self(cluster)
    }
}

impl Drop for WaitsForServer<'_> {
    fn drop(&mut self) {
        self.0.waiting_for_server.fetch_sub(1, Ordering::Relaxed);
    }
}
