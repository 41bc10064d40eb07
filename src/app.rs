//! The program as a whole: builds the parts bottom up, runs them, and drains them in reverse.

mod certificates;
mod doors;
pub mod user_add;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::oid::ObjectId;
use tokio::sync::watch;
use tokio::time::Instant;

use self::certificates::Certificates;
use self::doors::{Doors, UsersOfFiles};
use crate::admin::{self, Access, Admin, AdminTokens, Ruled, SAMPLE_INTERVAL};
use crate::admission::MemoryBudget;
use crate::auth::Identities;
use crate::client::facade::{self, Offer};
use crate::client::shared::Activity;
use crate::client::{
    BindError, BoundSocket, ClientShared, ClientTls, ClientTlsError, Clusters, Places, RulesInForce, listener,
};
use crate::config::system::read_secret;
use crate::config::{
    Address, AdminAccess, ClientConfig, ClusterConfig, Config, ConfigError, ConfigErrors, ListenerConfig, MemoryShares,
};
use crate::reload::Reload;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
use crate::topology::monitor::{Monitor, MonitorSettings};
use crate::upstream::handshake::UpstreamDialer;
use crate::upstream::pool::lock;
use crate::upstream::rotation::{self, CredentialError};
use crate::upstream::tls::TlsError;
use crate::upstream::{Cluster, Liveness};
pub use doors::check_users;

/// A monitor waits no longer than this for a reply, however long clients' connections may take: it is what tells a hung
/// server from a slow one.
const MONITOR_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A drain looks this often whether it is quiet.
const QUIET_LOOK: Duration = Duration::from_millis(50);

/// Users who have gone are looked for this often.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// At the end of a drain long polls have this long to take their answer along, and what they leave on the servers to be
/// cleaned up.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Longest wait for the tasks that were told to end.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken, or not ours.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The file with a credential.
    #[error("cluster `{cluster}`: {error}")]
    Credential {
        /// Whose.
        cluster: String,
        /// What is wrong.
        error: CredentialError,
    },
    /// The users file.
    #[error(transparent)]
    Users(#[from] ConfigErrors),
    /// The file with the admin port's tokens.
    #[error("admin_token_file: {0}")]
    AdminTokens(ConfigError),
    /// The TLS files of a connection string.
    #[error("cluster `{cluster}`: {error}")]
    Tls {
        /// Whose.
        cluster: String,
        /// What is wrong.
        error: TlsError,
    },
    /// The TLS files of a listener.
    #[error("listener {listen}: {error}")]
    ClientTls {
        /// Where it would listen.
        listen: Address,
        /// What is wrong.
        error: ClientTlsError,
    },
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nobody lost anything.
    Cleanly,
    /// A command or a transaction was cut off.
    CutOff,
}

/// The running program.
pub struct App {
    tasks: Tasks,
    clusters: Vec<Arc<Cluster>>,
    addresses: Vec<Address>,
    admin_address: Address,
    metrics: Arc<Metrics>,
    activity: Arc<Activity>,
    /// True from the order to drain on, whoever gave it.
    draining: watch::Sender<bool>,
    /// Has the files of the configuration read again.
    reload: Reload,
    drain_timeout: Duration,
    drain_quiet: Duration,
}

impl App {
    /// Binds every address, then starts. An upstream that cannot be reached does not matter: it is looked for until it
    /// is found.
    ///
    /// # Errors
    /// [`StartError`]; nothing was started then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let (identities, reload) = (Arc::new(Identities::default()), Reload::default());
        let users = UsersOfFiles::read(&config, &identities).await?;
        let mut bound = Vec::new();
        let liveness = Liveness::of_clients(config.client.stall_timeout);
        for listener in config.listeners {
            let tls = listener.tls.as_ref().map(ClientTls::new).transpose();
            let tls = tls.map_err(|error| StartError::ClientTls { listen: listener.listen.clone(), error })?;
            let socket = BoundSocket::bind(&listener.listen, liveness).await?;
            bound.push((listener, socket, tls.map(Arc::new)));
        }
        let tokens = admin_tokens(&config.admin_access)?;
        let admin_listener = BoundSocket::bind(&config.admin, liveness).await?;
        let tasks = Tasks::new();
        let metrics = if config.clusters.len() > 1 { Metrics::by_cluster() } else { Metrics::new() };
        let memory = MemoryBudget::new(MemoryShares::of(config.memory_limit_bytes as u64));
        let activity = Arc::new(Activity::default());
        let limits = Arc::new(config.client.clone());
        let places = Places::new(&config.client, metrics.clone());
        let (draining, _) = watch::channel(false);
        let addresses = bound.iter().map(|(_, socket, _)| socket.address().clone()).collect();
        let certificates = Certificates::new(reload.clone(), metrics.clone(), tasks.clone());
        let mut clusters = Vec::new();
        for cluster in config.clusters {
            let surroundings = Surroundings {
                client: &config.client,
                identities: identities.clone(),
                memory: memory.clone(),
                tasks: &tasks,
                metrics: &metrics,
                reload: &reload,
                certificates: &certificates,
            };
            clusters.push(start_cluster(cluster, surroundings)?);
        }
        let mut doors = Doors::new(users, config.client.failed_log_ins, metrics.clone(), &reload, &tasks);
        let service_id = ObjectId::new();
        let mut listeners = Vec::new();
        for (listener, socket, tls) in bound {
            let behind = behind(&listener, &clusters);
            let offer = Offer {
                presentation: behind.default().config.presentation,
                shown_set: behind.default().config.shown_set.clone().map(Arc::new),
                compressors: facade::compressors(&listener.compressors),
                max_message_bytes: config.client.max_message_bytes,
                service_id,
            };
            let facts = facade::follow(&behind, offer, &tasks);
            let rules = RulesInForce::new(listener.rules);
            let log_ins = doors.of(&listener.auth, behind.default());
            let shared = ClientShared::new(behind, rules.clone(), limits.clone(), facts, activity.clone(), log_ins);
            let (cluster, databases) = (&listener.cluster, &listener.databases);
            let proxied = listener.proxy_protocol;
            let encrypted = tls.is_some();
            tracing::info!(%cluster, %databases, proxied, encrypted, address = %socket.address(), "listening");
            if let Some(tls) = &tls {
                certificates.watch_listener(socket.address(), tls);
            }
            let ruled = Ruled { address: socket.address().clone(), cluster: listener.cluster, rules };
            ruled.warn_of_unknown_commands();
            listeners.push(ruled);
            listen(socket, proxied, tls, &shared, &places, &draining, &tasks);
        }
        let admin_address = admin_listener.address().clone();
        let admin = Admin::new(clusters.clone(), listeners, metrics.clone(), memory, draining.clone());
        admin.keep_history(SAMPLE_INTERVAL, &tasks);
        forget_users(identities, &tasks);
        if let (AdminAccess::Tokens(file), Some(tokens)) = (&config.admin_access, &tokens) {
            follow_tokens(file.clone(), tokens.clone(), &reload, &tasks);
        }
        let probes_only = config.admin_access == AdminAccess::ProbesOnly;
        tracing::info!(address = %admin_address, access = ?config.admin_access, "admin port");
        let access = Access::new(admin_address.clone(), probes_only, tokens);
        tasks.spawn("admin", admin::serve(admin_listener, admin, access, tasks.clone()));
        certificates.warn_in_time();
        admin::log_snapshots(clusters.clone(), config.monitor_interval, &tasks);
        let (drain_timeout, drain_quiet) = (config.drain_timeout, config.drain_quiet);
        Ok(Self {
            tasks,
            clusters,
            addresses,
            admin_address,
            metrics,
            activity,
            draining,
            reload,
            drain_timeout,
            drain_quiet,
        })
    }

    /// Where clients connect; ports are the real ones.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where the admin port listens.
    pub fn admin_address(&self) -> &Address {
        &self.admin_address
    }

    /// The clusters.
    pub fn clusters(&self) -> &[Arc<Cluster>] {
        &self.clusters
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Has certificates, users and credentials read again, changed or not.
    pub fn reload(&self) {
        self.reload.now();
    }

    /// Resolves when somebody else than a signal has ordered a drain.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn drain_requested(&self) {
        let mut draining = self.draining.subscribe();
        // The sender lives as long as we do.
        drop(draining.wait_for(|draining| *draining).await);
    }

    /// Stops to accept, serves the open sockets until they are gone or quiet, at the latest until `drain_timeout_ms` is
    /// over, then answers long polls.
    ///
    /// # Cancel safety
    /// A drain that is dropped has closed the listeners; [`App::cut_off`] tells how things stand.
    pub async fn drain(&self) -> Drained {
        self.draining.send_replace(true);
        let clients = self.activity.clients.load(Ordering::Relaxed);
        tracing::info!(clients, timeout = ?self.drain_timeout, "draining");
        let deadline = Instant::now() + self.drain_timeout;
        // A deadline that passes is not an error: what is left is cut off, and said so.
        let quiet = tokio::time::timeout_at(deadline, self.quiet()).await.is_ok();
        let drained = self.cut_off();
        self.activity.end_long_polls();
        let answered = async {
            while self.activity.long_polls() > 0 || self.clusters.iter().any(|cluster| cluster.errands() > 0) {
                tokio::time::sleep(QUIET_LOOK).await;
            }
        };
        let polls_answered = tokio::time::timeout(LAST_ANSWERS, answered).await.is_ok();
        self.tasks.cancel();
        for cluster in &self.clusters {
            cluster.monitor().shutdown().await;
        }
        let left_running = self.tasks.join_all(LAST_TASKS).await;
        tracing::info!(?drained, quiet, polls_answered, left_running, "drained");
        drained
    }

    /// Whether an end now would cut a command or a transaction off.
    pub fn cut_off(&self) -> Drained {
        let open_transactions: usize = self.clusters.iter().map(|cluster| lock(&cluster.pins).count().1).sum();
        if self.activity.commands().0 == 0 && open_transactions == 0 { Drained::Cleanly } else { Drained::CutOff }
    }

    /// Resolves when the last client has left, or when nothing happened for `drain_quiet_ms`.
    async fn quiet(&self) {
        let mut since = Instant::now();
        let mut seen = self.activity.commands().1;
        loop {
            if self.activity.clients.load(Ordering::Relaxed) == 0 {
                return;
            }
            let (_, begun) = self.activity.commands();
            if begun != seen || self.cut_off() == Drained::CutOff {
                (since, seen) = (Instant::now(), begun);
            }
            if since.elapsed() >= self.drain_quiet {
                return;
            }
            // Either arm only makes us look again.
            tokio::select! {
                () = self.activity.left.notified() => {}
                () = tokio::time::sleep(QUIET_LOOK) => {}
            }
        }
    }
}

/// Wipes what is known of users who have gone.
fn forget_users(identities: Arc<Identities>, tasks: &Tasks) {
    let (cancelled, mut due) = (tasks.clone(), tokio::time::interval(FORGET_INTERVAL));
    tasks.spawn("forget users", async move {
        loop {
            // Nothing is lost when an arm loses: a tick that is due stays due.
            tokio::select! {
                now = due.tick() => identities.expire(now),
                () = cancelled.cancelled() => return,
            }
        }
    });
}

/// The tokens of the admin port, where it has some.
fn admin_tokens(access: &AdminAccess) -> Result<Option<Arc<AdminTokens>>, StartError> {
    let AdminAccess::Tokens(file) = access else { return Ok(None) };
    let text = read_secret(file).map_err(StartError::AdminTokens)?;
    let tokens = AdminTokens::parse(&text);
    tokens.map(|tokens| Some(Arc::new(tokens))).map_err(|error| StartError::AdminTokens(not_tokens(file, &error)))
}

fn not_tokens(file: &Path, error: &dyn std::fmt::Display) -> ConfigError {
    ConfigError { place: file.display().to_string(), key: String::new(), problem: error.to_string() }
}

/// Reads the tokens again when their file has changed.
fn follow_tokens(file: PathBuf, tokens: Arc<AdminTokens>, reload: &Reload, tasks: &Tasks) {
    reload.watch(vec![file.clone()], tasks, move || {
        let replaced =
            read_secret(&file).and_then(|text| tokens.replace(&text).map_err(|error| not_tokens(&file, &error)));
        match replaced {
            Ok(count) => tracing::info!(file = %file.display(), count, "tokens of the admin port were read again"),
            Err(error) => tracing::warn!(%error, "tokens of the admin port stay as they were"),
        }
    });
}

/// What all clusters share.
struct Surroundings<'a> {
    client: &'a ClientConfig,
    identities: Arc<Identities>,
    memory: Arc<MemoryBudget>,
    tasks: &'a Tasks,
    metrics: &'a Arc<Metrics>,
    reload: &'a Reload,
    certificates: &'a Certificates,
}

fn start_cluster(mut config: ClusterConfig, surroundings: Surroundings<'_>) -> Result<Arc<Cluster>, StartError> {
    let Surroundings { client, identities, memory, tasks, metrics, reload, certificates } = surroundings;
    let name = config.name.clone();
    if let (Some(file), Some(credential)) = (&config.credential_file, &mut config.upstream.credential) {
        let read = rotation::read(file, credential);
        *credential = read.map_err(|error| StartError::Credential { cluster: name.clone(), error })?;
    }
    for warning in &config.upstream.warnings {
        tracing::warn!(cluster = %config.name, warning);
    }
    tracing::info!(cluster = %config.name, upstream = %config.upstream.redacted, "starting");
    let settings = MonitorSettings {
        heartbeat_frequency: config.heartbeat_frequency,
        connect_timeout: config.pool.connect_timeout.min(MONITOR_CONNECT_TIMEOUT),
        rebuild: config.reconnect,
    };
    let monitor = Monitor::start(&config.upstream, settings, tasks);
    let (told, memory_of_it) = (identities.clone(), memory.clone());
    let dialer = UpstreamDialer::new(&config.upstream, monitor.clone(), told, memory_of_it, client.max_message_bytes);
    let dialer = Arc::new(dialer.map_err(|error| StartError::Tls { cluster: name, error })?);
    if let Some(tls) = dialer.tls() {
        certificates.watch_cluster(&config.name, tls, monitor.clone());
    }
    let followed = config.credential_file.clone().zip(config.upstream.credential.clone());
    let cluster = Cluster::new(config, monitor, dialer.clone(), identities, memory, tasks.clone(), metrics.clone());
    cluster.start();
    if let Some((file, credential)) = followed {
        rotation::follow(file, credential, dialer, cluster.clone(), reload, tasks);
    }
    Ok(cluster)
}

/// The clusters that a listener leads to.
fn behind(listener: &ListenerConfig, clusters: &[Arc<Cluster>]) -> Clusters {
    let named = |name: &String| {
        let found = clusters.iter().find(|cluster| cluster.config.name == *name);
        found.expect("a configuration names clusters that it has").clone()
    };
    Clusters::new(named(&listener.cluster), listener.databases.map(named))
}

fn listen(
    socket: BoundSocket,
    proxied: bool,
    tls: Option<Arc<ClientTls>>,
    shared: &Arc<ClientShared>,
    places: &Arc<Places>,
    draining: &watch::Sender<bool>,
    tasks: &Tasks,
) {
    let (shared, places, mut draining) = (shared.clone(), places.clone(), draining.subscribe());
    tasks.spawn("listen", async move {
        // The listener closes when it loses; its clients have tasks of their own.
        tokio::select! {
            () = listener::serve(socket, proxied, tls, shared, places) => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    });
}
