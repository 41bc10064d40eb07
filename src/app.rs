//! The program as a whole: builds the parts bottom up, runs them, and drains them in reverse.

mod certificates;
mod clusters;
pub mod connect;
mod doors;
mod files;
mod listeners;
mod reconfigure;
pub mod service;
mod take_over;
mod upgrade;
mod upgrade_socket;
pub mod user_add;

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bson::oid::ObjectId;
use tokio::sync::watch;
use tokio::time::Instant;

use self::certificates::Certificates;
use self::doors::Doors;
use self::files::Files;
use self::listeners::{Listeners, bound_or_given};
pub use self::upgrade::UpgradeError;
use self::upgrade::{Door, Relief, Role};
use crate::admin::{self, Access, Admin, AdminTokens, ReloadAnswer, SAMPLE_INTERVAL};
use crate::admission::MemoryBudget;
use crate::auth::Identities;
use crate::client::shared::{Activity, ClientLimits};
use crate::client::{BindError, ClientShared, GivenSockets, Places, Shift};
use crate::config::system::read_secret;
use crate::config::{Address, AdminAccess, Config, ConfigError, ConfigErrors, MemoryShares, Times};
use crate::reload::Reload;
use crate::tasks::Tasks;
use crate::telemetry::labels::CertificateSide;
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{EventKind, Events};
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, Liveness};
pub use files::{all_mistakes, check};
pub use reconfigure::Load;
use reconfigure::Reconfigure;

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
    /// Files that the configuration names, and everything that is wrong with them.
    #[error(transparent)]
    Files(#[from] ConfigErrors),
    /// Another process is there, and cannot be taken over from.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
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
    /// Whose turn it is to accept.
    shift: watch::Sender<Shift>,
    places: Arc<Places>,
    /// Its listeners, and whether their clients' sockets can come from another process.
    listeners: Vec<(Arc<ClientShared>, bool)>,
    bound: Vec<Door>,
    /// The next process, once it has relieved this one.
    relief: Arc<Mutex<Option<Relief>>>,
    /// Has the files of the configuration read again.
    reload: Reload,
    reconfigure: Arc<Reconfigure>,
    times: watch::Sender<Times>,
}

impl App {
    /// Binds every address, then starts. An upstream that cannot be reached does not matter: it is looked for until it
    /// is found.
    ///
    /// # Errors
    /// [`StartError`]; nothing was started then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let same = config.clone();
        let load = Box::new(move || Ok((same.clone(), Vec::new())));
        let app = Self::prepare(config, GivenSockets::default(), load).await?;
        app.open();
        Ok(app)
    }

    /// As [`App::start`], with sockets that listen already. Nobody is accepted before [`App::open`]. `load` reads the configuration
    /// again, when that is asked for.
    ///
    /// # Errors
    /// As there.
    pub async fn prepare(config: Config, mut given: GivenSockets, load: Box<Load>) -> Result<Self, StartError> {
        let began = config.clone();
        let identities = Arc::new(Identities::default());
        let Files {
            users,
            listeners: listeners_tls,
            clusters: of_clusters,
            admin_tls,
            admin_tokens,
            #[cfg(feature = "otel")]
            export,
        } = Files::read(&config, &identities).await?;
        let mut bound = Vec::new();
        let liveness = Liveness::of_clients(config.client.stall_timeout);
        let wanted: Vec<Address> = config.listeners.iter().map(|listener| listener.listen.clone()).collect();
        let (for_listeners, for_admin) = given.assign(&wanted, &config.admin).await;
        for ((listener, tls), given) in config.listeners.into_iter().zip(listeners_tls).zip(for_listeners) {
            let socket = bound_or_given(&listener.listen, given, liveness).await?;
            bound.push((listener, socket, tls));
        }
        let admin_listener = bound_or_given(&config.admin, for_admin, liveness).await?;
        given.left().for_each(|address| tracing::warn!(%address, "a socket that was given is none of ours: closed"));
        let tasks = Tasks::new();
        let metrics = if config.clusters.len() > 1 { Metrics::by_cluster() } else { Metrics::new() };
        let reload = Reload::new(metrics.clone());
        let memory = MemoryBudget::new(MemoryShares::of(config.memory_limit_bytes as u64));
        let activity = Arc::new(Activity::default());
        let limits = Arc::new(ClientLimits::from_pointee(config.client.clone()));
        let places = Places::new(&config.client, metrics.clone());
        let effective = Arc::new(ArcSwap::from_pointee(config.effective.clone()));
        let (draining, shift) = (watch::Sender::new(false), watch::Sender::new(Shift::Before));
        let addresses = bound.iter().map(|(_, socket, _)| socket.address().clone()).collect();
        let certificates = Certificates::new(reload.clone(), metrics.clone(), tasks.clone());
        // One for all: to clients behind a load balancer, and to servers.
        let service_id = ObjectId::new();
        let mut clusters = Vec::new();
        for (cluster, files) in config.clusters.into_iter().zip(of_clusters) {
            let surroundings = self::clusters::Surroundings {
                client: &config.client,
                identities: identities.clone(),
                memory: memory.clone(),
                tasks: &tasks,
                metrics: &metrics,
                reload: &reload,
                certificates: &certificates,
                service_id,
            };
            clusters.push(self::clusters::start(cluster, files, surroundings));
        }
        let mut doors = Doors::new(users, limits.clone(), metrics.clone(), &reload, &tasks);
        let mut listeners = Listeners::default();
        let surroundings = self::listeners::Surroundings {
            clusters: &clusters,
            limits: &limits,
            activity: &activity,
            places: &places,
            certificates: &certificates,
            shift: &shift,
            tasks: &tasks,
            service_id,
        };
        for (listener, socket, tls) in bound {
            listeners.open(listener, socket, tls, &mut doors, &surroundings);
        }
        #[cfg(feature = "otel")]
        if let Some(export) = export {
            let (clusters, memory, metrics_read) = (clusters.clone(), memory.clone(), metrics.clone());
            let gather = move || {
                admin::gauges::refresh(&clusters, &metrics_read, &memory, Instant::now());
                metrics_read.gather()
            };
            export.start(&metrics, Box::new(gather), &tasks);
        }
        let admin_address = admin_listener.address().clone();
        listeners.doors.push(Door::new(Role::Admin, &admin_listener));
        let admin =
            Admin::new(clusters.clone(), listeners.ruled, metrics.clone(), memory, draining.clone(), effective.clone());
        admin.keep_history(SAMPLE_INTERVAL, &tasks);
        admin.keep_series(admin::STEP, &tasks);
        forget_users(identities, &tasks);
        logs::tell_repeated(&tasks);
        if let (AdminAccess::Proven { tokens: Some(file), .. }, Some(tokens)) = (&config.admin_access, &admin_tokens) {
            follow_tokens(file.clone(), tokens.clone(), metrics.events.clone(), &reload, &tasks);
        }
        if let Some(tls) = &admin_tls {
            certificates.watch_listener(CertificateSide::Admin, "admin port".to_owned(), tls);
        }
        let encrypted = admin_tls.is_some();
        tracing::info!(address = %admin_address, access = ?config.admin_access, encrypted, "admin port");
        let access = admin_access(&config.admin_access, admin_address.clone(), admin_tokens);
        tasks.spawn(
            "admin",
            admin::serve(admin_listener, admin.clone(), access, admin_tls, shift.subscribe(), tasks.clone()),
        );
        certificates.warn_in_time();
        let (times, interval) = watch::channel(config.times);
        admin::log_snapshots(clusters.clone(), move || interval.borrow().monitor_interval, &tasks);
        let parts = reconfigure::Parts {
            clusters: clusters.clone(),
            rules: listeners.rules,
            limits,
            places: places.clone(),
            times: times.clone(),
            metrics: metrics.clone(),
            reading: reload.reading(),
            tasks: tasks.clone(),
            effective,
        };
        let reconfigure = Reconfigure::new(load, began, parts);
        admin.on_reload({
            let (reconfigure, reload) = (reconfigure.clone(), reload.clone());
            Box::new(move || {
                reload.now();
                let reconfigure = reconfigure.clone();
                Box::pin(async move { reconfigure.now().await })
            })
        });
        let changed = reconfigure.clone();
        reload.watch_changes(config.reload_on_change, &tasks, move || {
            let changed = changed.clone();
            async move { changed.now().await.is_ok() }
        });
        follow_order_to_drain(&draining, &shift, &tasks);
        service::keep_alive(&tasks);
        Ok(Self {
            tasks,
            clusters,
            addresses,
            admin_address,
            metrics,
            activity,
            draining,
            shift,
            places,
            listeners: listeners.shared,
            bound: listeners.doors,
            relief: Arc::default(),
            reload,
            reconfigure,
            times,
        })
    }

    /// Accepts clients from now on.
    pub fn open(&self) {
        self.shift.send_if_modified(|shift| {
            let before = *shift == Shift::Before;
            if before {
                *shift = Shift::Ours;
            }
            before
        });
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

    /// Loads the configuration again and puts in force what can be; certificates, users and credentials are read again as well,
    /// changed or not.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration, which changes nothing then.
    ///
    /// # Cancel safety
    /// Safe: what was begun is whole, or nothing.
    pub async fn reload(&self) -> Result<ReloadAnswer, ConfigErrors> {
        self.reload.now();
        self.reconfigure.now().await
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
    /// over, then answers long polls. Where another process has taken over, it gets the clients, a few at a time.
    ///
    /// # Cancel safety
    /// A drain that is dropped has closed the listeners; [`App::cut_off`] tells how things stand.
    pub async fn drain(&self) -> Drained {
        self.draining.send_replace(true);
        let relief = lock(&self.relief).take();
        if let Some(relief) = relief {
            return self.hand_over(relief).await;
        }
        let clients = self.activity.clients.load(Ordering::Relaxed);
        let timeout = self.times.borrow().drain_timeout;
        tracing::info!(clients, ?timeout, "draining");
        let told = format!("no new clients are let in, {clients} are connected");
        self.metrics.events.record(EventKind::Drain, None, None, &told);
        let deadline = Instant::now() + timeout;
        // A deadline that passes is not an error: what is left is cut off, and said so.
        let quiet = tokio::time::timeout_at(deadline, self.quiet()).await.is_ok();
        self.end(quiet).await
    }

    async fn end(&self, quiet: bool) -> Drained {
        self.activity.end_long_polls();
        let answered = async {
            while self.activity.long_polls() > 0 || self.clusters.iter().any(|cluster| cluster.errands() > 0) {
                tokio::time::sleep(QUIET_LOOK).await;
            }
        };
        let polls_answered = tokio::time::timeout(LAST_ANSWERS, answered).await.is_ok();
        // Not earlier: what has ended meanwhile is not cut off, and what has begun is.
        let drained = self.cut_off();
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
        let drain_quiet = self.times.borrow().drain_quiet;
        loop {
            if self.activity.clients.load(Ordering::Relaxed) == 0 {
                return;
            }
            let (_, begun) = self.activity.commands();
            if begun != seen || self.cut_off() == Drained::CutOff {
                (since, seen) = (Instant::now(), begun);
            }
            if since.elapsed() >= drain_quiet {
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

fn not_tokens(file: &Path, error: &dyn std::fmt::Display) -> ConfigError {
    ConfigError { place: file.display().to_string(), key: String::new(), problem: error.to_string() }
}

fn admin_access(config: &AdminAccess, address: Address, tokens: Option<Arc<AdminTokens>>) -> Access {
    let access = Access::new(address, *config == AdminAccess::ProbesOnly, tokens);
    match config {
        AdminAccess::Proven { certificates: true, .. } => access.with_certificates(),
        AdminAccess::Proven { .. } | AdminAccess::Loopback | AdminAccess::ProbesOnly => access,
    }
}

/// Reads the tokens again when their file has changed.
fn follow_tokens(file: PathBuf, tokens: Arc<AdminTokens>, events: Arc<Events>, reload: &Reload, tasks: &Tasks) {
    let watched = vec![file.clone()];
    let read_again = move || {
        let replaced =
            read_secret(&file).and_then(|text| tokens.replace(&text).map_err(|error| not_tokens(&file, &error)));
        match replaced {
            Ok(count) => {
                tracing::info!(file = %file.display(), count, "tokens of the admin port were read again");
                events.record(EventKind::User, None, None, "the tokens of the admin port were read again");
                true
            }
            Err(error) => {
                tracing::error!(%error, "tokens of the admin port stay as they were");
                let told = format!("the tokens of the admin port stay as they were: {error}");
                events.record(EventKind::User, None, None, &told);
                false
            }
        }
    };
    reload.watch(watched, tasks, move || ready(read_again()));
}

/// Nobody is accepted any more once there is an order to drain, whoever gave it.
fn follow_order_to_drain(draining: &watch::Sender<bool>, shift: &watch::Sender<Shift>, tasks: &Tasks) {
    let (mut draining, shift, cancelled) = (draining.subscribe(), shift.clone(), tasks.clone());
    tasks.spawn("follow order to drain", async move {
        // Nothing is lost when an arm loses: the watch keeps its newest value.
        tokio::select! {
            ordered = draining.wait_for(|draining| *draining) => if ordered.is_ok() {
                shift.send_if_modified(|shift| {
                    let accepts = *shift != Shift::Over;
                    if accepts {
                        *shift = Shift::Ending;
                    }
                    accepts
                });
            },
            () = cancelled.cancelled() => {}
        }
    });
}
