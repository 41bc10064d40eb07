//! Watches the upstream servers with the `mongodb` crate and publishes what it finds.
//!
//! The crate's client is here for discovery and monitoring only: it has no credential and no pool, and no command of it ever
//! reaches a server. Its peculiarities, and what is done about them:
//!
//! - Events must be taken by a synchronous callback, which alone keeps them in order. A panic in it would end all events
//!   silently: `Shared::update` is total.
//! - A monitor that lost its server sleeps a whole `heartbeat_frequency`. While a server selection waits, it looks every
//!   500 ms: so as long as anybody waits for a server ([`Monitor::waiting`]) we hold a selection that no server satisfies.
//! - Round-trip times are published only together with other changes; a selection sees the current ones.
//! - A server that does not fit the connection string is dropped, and with the last one monitoring ends for good, silently:
//!   then the reason is published and a new client is built, with back-off, as after failures of DNS or of TLS files.
//! - TLS files are read once per client. When they have changed, a new client is built beside the old one and takes over once
//!   it has found servers, so that nobody notices; until it has, the old one goes on ([`Monitor::renew`]).

use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{RawDocumentBuf, doc};
use futures_util::FutureExt as _;
use mongodb::event::EventHandler;
use mongodb::event::sdam::{SdamEvent, TopologyDescription as TheirTopology, TopologyType};
use mongodb::options::SelectionCriteria;
use mongodb::{Client, ServerInfo, ServerType};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::description::{Hello, ServerDescription, ServerKind, TopologyDescription, TopologyKind, TopologyVersion};
use super::state::{News, TopologyState};
use crate::config::uri::{Credential, Upstream, UriError, address, driver_words};
use crate::config::{Address, BackoffConfig};
use crate::tasks::Tasks;
use crate::telemetry::logs::TOPOLOGY;

/// A held selection is renewed this often; the number only has to be large.
const HOLD: Duration = Duration::from_secs(3600);
/// Between held selections that ended early, as they do while the servers' versions are not supported.
const HOLD_AGAIN: Duration = Duration::from_millis(500);
/// Closing a client takes milliseconds, but with SRV it waits for the driver's DNS task to wake up: up to a minute.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A client that is to take over has this long beside the time for connecting.
const SUCCESSOR_GRACE: Duration = Duration::from_secs(1);

/// How to watch.
#[derive(Debug, Clone, Copy)]
pub struct MonitorSettings {
    /// Between heartbeats, at least 500 ms.
    pub heartbeat_frequency: Duration,
    /// Longest wait for a monitoring connection, and for a reply on it. A hung server is noticed after this plus
    /// `heartbeat_frequency`.
    pub connect_timeout: Duration,
    /// Between attempts to begin, where DNS, TLS files or the servers found do not fit the connection string.
    pub rebuild: BackoffConfig,
    /// What tells this program from others like it, to whoever looks at a server's connections.
    pub instance: ObjectId,
}

/// As servers are told which instance it is: `platform` of a client's metadata.
pub fn platform(instance: ObjectId) -> String {
    format!("instance {instance}")
}

/// Knows the topology of one upstream; clones share it. It runs until [`Monitor::shutdown`] or the end of its tasks.
#[derive(Debug, Clone)]
pub struct Monitor(Arc<Shared>);

/// Held by whoever waits for a suitable server: while there is one, lost servers are looked for every 500 ms.
#[derive(Debug)]
pub struct WaitingGuard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    published: watch::Sender<Arc<TopologyDescription>>,
    /// How many [`WaitingGuard`]s there are; told when this becomes zero or stops being so.
    waiting: watch::Sender<usize>,
    /// Told when a new client is to take over.
    renew: Notify,
    stop: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
}

#[derive(Debug)]
struct Inner {
    state: TopologyState,
    /// Number of the driver's client that is heard; the others are not.
    generation: u64,
    /// The last number that was given to one.
    issued: u64,
    /// The one that is to take over as soon as it knows the servers.
    successor: Option<u64>,
    credential: Option<Credential>,
}

impl Monitor {
    /// Knows who to authenticate as and no servers: for a dialer that is there for a moment only.
    pub fn idle(upstream: &Upstream) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(Inner {
                state: TopologyState::default(),
                generation: 0,
                issued: 0,
                successor: None,
                credential: upstream.credential.clone(),
            }),
            published: watch::Sender::default(),
            waiting: watch::Sender::default(),
            renew: Notify::new(),
            stop: watch::Sender::default(),
            stopped: watch::Sender::default(),
        }))
    }

    /// Begins to watch. Needs a running runtime.
    pub fn start(upstream: &Upstream, settings: MonitorSettings, tasks: &Tasks) -> Self {
        let Self(shared) = Self::idle(upstream);
        let watcher =
            Watcher { shared: Arc::clone(&shared), upstream: upstream.clone(), settings, tasks: tasks.clone() };
        tasks.spawn("monitor", watcher.run());
        Self(shared)
    }

    /// A receiver of every new description.
    pub fn subscribe(&self) -> watch::Receiver<Arc<TopologyDescription>> {
        self.0.published.subscribe()
    }

    /// The latest description.
    pub fn current(&self) -> Arc<TopologyDescription> {
        self.0.published.borrow().clone()
    }

    /// Says that somebody waits for a suitable server, until the guard is dropped.
    pub fn waiting(&self) -> WaitingGuard {
        self.0.waiting.send_if_modified(|count| {
            *count += 1;
            *count == 1
        });
        WaitingGuard(Arc::clone(&self.0))
    }

    /// Reports that a connection of ours to this server failed, or got a state-change error with this `topologyVersion`.
    /// The server counts as unknown until a newer heartbeat, or until [`Self::heard`] clears it. Returns whether it is
    /// suspect now and was not before.
    pub fn suspect(&self, address: &Address, reason: &str, topology_version: Option<TopologyVersion>) -> bool {
        self.0.update(|inner| inner.state.suspect(address, reason, topology_version))
    }

    /// Reports a `hello` reply that a connection of ours got: clears a suspicion, or raises one when it contradicts the
    /// monitor. The round trip is to be told where it was measured on an established connection.
    pub fn heard(&self, address: &Address, hello: Hello, round_trip: Option<Duration>) {
        let now = Instant::now();
        self.0.update(|inner| inner.state.heard(address, hello, round_trip, now));
    }

    /// Takes in what somebody else has learnt who watches the servers: for a monitor that is [`Self::idle`] otherwise.
    pub fn learn(&self, news: News) {
        let now = Instant::now();
        self.0.update(|inner| inner.state.learn(news, now));
    }

    /// What is wrong and with which server, in plain words; `None` while writes find a server.
    pub fn problem(&self) -> Option<String> {
        self.0.published.borrow().problem()
    }

    /// Who to authenticate as: the connection string's credential, with the source that DNS told.
    pub fn credential(&self) -> Option<Credential> {
        self.0.lock().credential.clone()
    }

    /// The TLS files have changed: watches with what is in them now, as soon as servers are found with it.
    pub fn renew(&self) {
        self.0.renew.notify_one();
    }

    /// Ends monitoring and closes its connections, which takes at most two seconds. The last description stays.
    ///
    /// # Cancel safety
    /// Monitoring ends even when this is dropped.
    pub async fn shutdown(&self) {
        self.0.stop.send_replace(true);
        let mut stopped = self.0.stopped.subscribe();
        let ended = stopped.wait_for(|stopped| *stopped);
        if tokio::time::timeout(2 * CLOSE_TIMEOUT, ended).await.is_err() {
            tracing::warn!("monitoring did not end in time");
        }
    }
}

impl Drop for WaitingGuard {
    fn drop(&mut self) {
        self.0.waiting.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and publishes what follows from it; the lock makes publications as ordered as changes.
    fn update<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.lock();
        let result = change(&mut inner);
        let new = Arc::new(inner.state.effective());
        let old = self.published.send_replace(Arc::clone(&new));
        drop(inner);
        log_changes(&old, &new);
        result
    }

    /// From here on, events of the client in use are not heard any more. Returns the generation of the next one.
    fn retire_client(&self) -> u64 {
        let mut inner = self.lock();
        inner.issued += 1;
        inner.generation = inner.issued;
        inner.successor = None;
        inner.generation
    }

    /// The number of a client that is to take over.
    fn name_successor(&self) -> u64 {
        let mut inner = self.lock();
        inner.issued += 1;
        inner.successor = Some(inner.issued);
        inner.issued
    }

    /// Folds one event of the driver; called on the driver's task. Returns whether no server is left.
    fn on_event(&self, generation: u64, event: SdamEvent) -> bool {
        log_event(&event);
        let Some(news) = news(event) else { return false };
        let now = Instant::now();
        self.update(|inner| {
            if inner.successor == Some(generation)
                && let News::Described(description) = &news
                && knows_its_servers(description)
            {
                inner.generation = generation;
                inner.successor = None;
            }
            if inner.generation != generation {
                return false;
            }
            inner.state.learn(news, now);
            inner.state.is_empty()
        })
    }
}

/// What of an event changes what is known.
fn news(event: SdamEvent) -> Option<News> {
    match event {
        SdamEvent::ServerHeartbeatSucceeded(event) => {
            let reply = RawDocumentBuf::try_from(&event.reply).unwrap_or_default();
            Some(News::Answered(address(&event.server_address), Hello::read(&reply)))
        }
        SdamEvent::ServerHeartbeatFailed(event) => {
            Some(News::Lost { address: address(&event.server_address), timed_out: is_timeout(&event.failure) })
        }
        SdamEvent::TopologyDescriptionChanged(event) => Some(News::Described(describe(&event.new_description))),
        _ => None,
    }
}

/// True once a client has looked at all servers and reached one. Before that it would have them all unknown.
fn knows_its_servers(description: &TopologyDescription) -> bool {
    let mut servers = description.servers.values();
    servers.clone().any(ServerDescription::is_known)
        && servers.all(|server| server.is_known() || server.error.is_some())
}

/// The task behind a [`Monitor`].
struct Watcher {
    shared: Arc<Shared>,
    upstream: Upstream,
    settings: MonitorSettings,
    tasks: Tasks,
}

/// The driver's client with what its events have to tell the watcher.
struct Watched {
    client: Client,
    /// Told when the driver has dropped the last server.
    emptied: Arc<Notify>,
}

impl Watcher {
    async fn run(self) {
        let mut failures = 0;
        // The log has each trouble once, not with each attempt.
        let mut told = String::new();
        loop {
            let generation = self.shared.retire_client();
            let begun = Instant::now();
            let built = tokio::select! {
                // A half-done DNS look-up is of no use to anybody.
                () = self.told_to_stop() => break,
                built = self.build(generation) => built,
            };
            let trouble = match built {
                Err(error) => error.to_string(),
                Ok(mut watched) => {
                    let trouble = tokio::select! {
                        // The client is closed below either way, and a successor with the future.
                        () = self.told_to_stop() => None,
                        trouble = self.watch_with_successors(&mut watched) => Some(trouble),
                    };
                    self.shared.retire_client();
                    close(watched.client).await;
                    let Some(trouble) = trouble else { break };
                    trouble
                }
            };
            if begun.elapsed() > self.settings.rebuild.max {
                failures = 0;
                told.clear();
            }
            let pause = pause_after(failures, self.settings.rebuild);
            failures = failures.saturating_add(1);
            if trouble != told {
                tracing::warn!(upstream = %self.upstream.redacted, trouble, "monitoring has to begin anew");
                told.clone_from(&trouble);
            }
            self.shared.update(|inner| inner.state.restart(Some(trouble)));
            tokio::select! {
                () = self.told_to_stop() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.shared.stopped.send_replace(true);
    }

    async fn told_to_stop(&self) {
        let mut stop = self.shared.stop.subscribe();
        tokio::select! {
            // Its sender lives as long as we do.
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.tasks.cancelled() => {}
        }
    }

    async fn build(&self, generation: u64) -> Result<Watched, UriError> {
        let emptied = Arc::new(Notify::new());
        let events = {
            let (shared, emptied) = (Arc::clone(&self.shared), Arc::clone(&emptied));
            EventHandler::callback(move |event| {
                if shared.on_event(generation, event) {
                    emptied.notify_one();
                }
            })
        };
        let MonitorSettings { heartbeat_frequency, connect_timeout, instance, .. } = self.settings;
        let options = self.upstream.monitor_options(heartbeat_frequency, connect_timeout, platform(instance), events);
        let (mut options, credential) = options.await?;
        options.server_selection_timeout = Some(HOLD);
        self.shared.lock().credential = credential;
        let client = Client::with_options(options).map_err(|error| UriError::from_driver(&error))?;
        Ok(Watched { client, emptied })
    }

    /// As [`Self::watch`], with another client whenever the TLS files have changed.
    async fn watch_with_successors(&self, watched: &mut Watched) -> String {
        // When to try again, after a successor that found no server.
        let mut again = None;
        loop {
            let due = async {
                match again {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                trouble = self.watch(watched) => return trouble,
                () = self.shared.renew.notified() => {}
                () = due => {}
            }
            match self.successor().await {
                Ok(successor) => {
                    close(std::mem::replace(watched, successor).client).await;
                    again = None;
                }
                Err(trouble) => {
                    self.shared.lock().successor = None;
                    let upstream = &self.upstream.redacted;
                    tracing::warn!(%upstream, trouble, "monitoring goes on with the TLS files as they were");
                    again = Some(Instant::now() + self.settings.rebuild.max);
                }
            }
        }
    }

    /// A client that has taken over; else says why it has not.
    async fn successor(&self) -> Result<Watched, String> {
        let generation = self.shared.name_successor();
        let successor = self.build(generation).await.map_err(|error| error.to_string())?;
        let mut published = self.shared.published.subscribe();
        let taken_over = async {
            // Taking over publishes what it has found; the sender lives as long as we do.
            while self.shared.lock().generation != generation && published.changed().await.is_ok() {}
        };
        // Whatever it cannot reach has failed by then.
        match tokio::time::timeout(self.settings.connect_timeout + SUCCESSOR_GRACE, taken_over).await {
            Ok(()) => Ok(successor),
            Err(_) => {
                close(successor.client).await;
                Err("no server can be reached with the new ones".to_owned())
            }
        }
    }

    /// Returns, with the reason, when the client has come to a dead end.
    async fn watch(&self, watched: &Watched) -> String {
        let mut waiting = self.shared.waiting.subscribe();
        let period = self.settings.heartbeat_frequency;
        let mut refresh = tokio::time::interval_at(Instant::now() + period, period);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let anybody = *waiting.borrow_and_update() > 0;
            tokio::select! {
                () = watched.emptied.notified() => {
                    let why = self.shared.lock().state.explain_drop();
                    return why.unwrap_or_else(|| "no server is left".to_owned());
                }
                // Only wakes us: the count is read above. Its sender lives as long as we do.
                _ = waiting.changed() => {}
                _ = refresh.tick() => {
                    // The first poll shows every server to the predicate, without any I/O.
                    let _ended: Option<()> = self.select_nothing(&watched.client).now_or_never();
                    self.shared.update(|_| ());
                }
                // When it loses it is dropped, and held again if anybody still waits.
                () = self.hold_selection(&watched.client), if anybody => {}
            }
        }
    }

    /// Keeps sleeping monitors looking every 500 ms for as long as it is polled.
    async fn hold_selection(&self, client: &Client) {
        loop {
            self.select_nothing(client).await;
            tokio::time::sleep(HOLD_AGAIN).await;
        }
    }

    /// A server selection that takes note of every server's round-trip time and never finds one: the command is not sent.
    async fn select_nothing(&self, client: &Client) {
        let shared = Arc::clone(&self.shared);
        let predicate = move |server: &ServerInfo<'_>| {
            if let Some(average) = server.average_round_trip_time() {
                shared.lock().state.round_trip_time(&address(server.address()), average);
            }
            false
        };
        let criteria = SelectionCriteria::Predicate(Arc::new(predicate));
        let admin = client.database("admin");
        let selection = admin.run_command(doc! { "ping": 1 }).selection_criteria(criteria).into_future();
        // It can only end in an error: after `HOLD`, or at once while the servers' versions are not supported.
        drop(selection.await);
    }
}

async fn close(client: Client) {
    let closing = client.clone().shutdown().immediate(true).into_future();
    if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
        tracing::debug!("the driver's client ends in the background");
    }
    drop(client);
}

/// Exponential, with the upper half of each wait left to chance.
fn pause_after(failures: u32, backoff: BackoffConfig) -> Duration {
    let doubled = backoff.initial.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
    doubled.min(backoff.max).mul_f64(rand::random_range(0.5..=1.0))
}

/// The driver's description in our words; what it does not tell is left at the defaults.
fn describe(theirs: &TheirTopology) -> TopologyDescription {
    let servers = theirs.servers().into_values().map(|info| describe_server(&info));
    TopologyDescription {
        kind: match theirs.topology_type() {
            TopologyType::Single => TopologyKind::Single,
            TopologyType::ReplicaSetNoPrimary => TopologyKind::ReplicaSetNoPrimary,
            TopologyType::ReplicaSetWithPrimary => TopologyKind::ReplicaSetWithPrimary,
            TopologyType::Sharded => TopologyKind::Sharded,
            // LoadBalanced among them: such connection strings are refused.
            _ => TopologyKind::Unknown,
        },
        set_name: theirs.set_name().cloned(),
        servers: servers.map(|server| (server.address.clone(), server)).collect(),
        // Whoever reads it runs us, and knows nothing of a driver inside.
        compatibility_error: theirs.compatibility_error().map(|error| error.replace(DRIVER, "mongomux")),
        trouble: None,
    }
}

fn describe_server(info: &ServerInfo<'_>) -> ServerDescription {
    let mut server = ServerDescription::unknown(address(info.address()));
    server.kind = match info.server_type() {
        ServerType::Standalone => ServerKind::Standalone,
        ServerType::Mongos => ServerKind::Mongos,
        ServerType::RsPrimary => ServerKind::RsPrimary,
        ServerType::RsSecondary => ServerKind::RsSecondary,
        ServerType::RsArbiter => ServerKind::RsArbiter,
        ServerType::RsOther => ServerKind::RsOther,
        ServerType::RsGhost => ServerKind::RsGhost,
        _ => ServerKind::Unknown,
    };
    server.error = info.error().map(|error| if is_timeout(error) { NO_ANSWER.to_owned() } else { driver_words(error) });
    if server.is_known() {
        server.set_name = info.replica_set_name().map(ToOwned::to_owned);
        server.tags = info.tags().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
        server.tags.sort();
        server.min_wire_version = info.min_wire_version().unwrap_or(0);
        server.max_wire_version = info.max_wire_version().unwrap_or(0);
        server.round_trip_time = info.average_round_trip_time();
    }
    server
}

/// What the driver calls itself where it refuses a server's release.
const DRIVER: &str = "this version of the MongoDB Rust driver";

const NO_ANSWER: &str = "no answer in time";

fn is_timeout(error: &mongodb::error::Error) -> bool {
    matches!(error.kind.as_ref(), mongodb::error::ErrorKind::Io(error) if error.kind() == std::io::ErrorKind::TimedOut)
}

/// What the driver does to find out, with the messages and keys of its logging specification.
fn log_event(event: &SdamEvent) {
    if !tracing::enabled!(target: TOPOLOGY, tracing::Level::DEBUG) {
        return;
    }
    let milliseconds = |time: Duration| time.as_micros() as f64 / 1_000.0;
    let (message, server, awaited) = match event {
        SdamEvent::TopologyOpening(_) => {
            return tracing::debug!(target: TOPOLOGY, "Starting topology monitoring");
        }
        SdamEvent::TopologyClosed(_) => {
            return tracing::debug!(target: TOPOLOGY, "Stopped topology monitoring");
        }
        SdamEvent::TopologyDescriptionChanged(event) => {
            let (before, now) = (describe(&event.previous_description), describe(&event.new_description));
            let (before, now) = (before.summary(), now.summary());
            return tracing::debug!(
                target: TOPOLOGY, previousDescription = before, newDescription = now, "Topology description changed"
            );
        }
        SdamEvent::ServerHeartbeatSucceeded(event) => {
            let server = address(&event.server_address);
            return tracing::debug!(
                target: TOPOLOGY, serverHost = %server.host(), serverPort = server.port(), awaited = event.awaited,
                durationMS = milliseconds(event.duration), "Server heartbeat succeeded"
            );
        }
        SdamEvent::ServerHeartbeatFailed(event) => {
            let server = address(&event.server_address);
            return tracing::debug!(
                target: TOPOLOGY, serverHost = %server.host(), serverPort = server.port(), awaited = event.awaited,
                durationMS = milliseconds(event.duration), failure = %event.failure, "Server heartbeat failed"
            );
        }
        SdamEvent::ServerHeartbeatStarted(event) => {
            ("Server heartbeat started", address(&event.server_address), Some(event.awaited))
        }
        SdamEvent::ServerOpening(event) => ("Starting server monitoring", address(&event.address), None),
        SdamEvent::ServerClosed(event) => ("Stopped server monitoring", address(&event.address), None),
        _ => return,
    };
    tracing::debug!(target: TOPOLOGY, serverHost = %server.host(), serverPort = server.port(), awaited, "{message}");
}

fn log_changes(old: &TopologyDescription, new: &TopologyDescription) {
    for (address, server) in &new.servers {
        let before = old.servers.get(address);
        let was = before.map_or(ServerKind::Unknown, |before| before.kind);
        match &server.error {
            Some(error) if before.is_none_or(|before| before.error.is_none()) => {
                let what = if was == ServerKind::Unknown { "server not reached" } else { "server lost" };
                tracing::warn!(server = %address, was = was.name(), error, "{what}");
            }
            None if server.is_known() && server.kind != was => {
                // That it is there at all is said by those who begin to use it.
                let what = if was == ServerKind::Unknown { "server reached" } else { "server is of another kind" };
                tracing::info!(server = %address, was = was.name(), kind = server.kind.name(), "{what}");
            }
            _ => {}
        }
    }
    let gone = |server: &&ServerDescription| server.is_known() && !new.servers.contains_key(&server.address);
    for server in old.servers.values().filter(gone) {
        tracing::info!(server = %server.address, "server is no part of the topology any more");
    }
    match &new.compatibility_error {
        Some(error) if new.compatibility_error != old.compatibility_error => {
            tracing::warn!(error, "a server's release is not supported, and nobody is served");
        }
        None if old.compatibility_error.is_some() => tracing::info!("the releases of all servers are supported"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use bson::rawdoc;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const SETTINGS: MonitorSettings = MonitorSettings {
        heartbeat_frequency: Duration::from_millis(500),
        connect_timeout: Duration::from_millis(300),
        rebuild: BackoffConfig { initial: Duration::from_millis(10), max: Duration::from_millis(40) },
        instance: ObjectId::from_bytes([0; 12]),
    };

    /// Answers every message with `hello`, or not at all while it hangs. It tells no `topologyVersion`, so it is polled.
    struct Script {
        hello: Mutex<RawDocumentBuf>,
        hangs: AtomicBool,
        asked: AtomicU32,
    }

    impl Script {
        async fn start(tasks: &Tasks, hello: RawDocumentBuf) -> (Arc<Self>, u16) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let script = Self { hello: Mutex::new(hello), hangs: AtomicBool::new(false), asked: AtomicU32::new(0) };
            let (script, all) = (Arc::new(script), tasks.clone());
            let ours = Arc::clone(&script);
            tasks.spawn("script", async move {
                loop {
                    let stream = tokio::select! {
                        () = all.cancelled() => return,
                        accepted = listener.accept() => accepted.unwrap().0,
                    };
                    let (script, end) = (Arc::clone(&ours), all.clone());
                    all.spawn("scripted connection", async move {
                        tokio::select! {
                            () = end.cancelled() => {}
                            _ = script.serve(stream) => {}
                        }
                    });
                }
            });
            (script, port)
        }

        async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
            loop {
                let mut header = [0; 16];
                stream.read_exact(&mut header).await?;
                let length = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
                stream.read_exact(&mut vec![0; length - header.len()]).await?;
                self.asked.fetch_add(1, Ordering::Relaxed);
                if self.hangs.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                let hello = self.hello.lock().unwrap().clone();
                let mut reply = u32::try_from(16 + 5 + hello.as_bytes().len()).unwrap().to_le_bytes().to_vec();
                reply.extend([0; 4]);
                reply.extend(&header[4..8]);
                reply.extend(2013_u32.to_le_bytes());
                reply.extend([0; 5]);
                reply.extend(hello.as_bytes());
                stream.write_all(&reply).await?;
            }
        }
    }

    fn standalone() -> RawDocumentBuf {
        rawdoc! {
            "ismaster": true, "helloOk": true, "maxWireVersion": 17, "minWireVersion": 0,
            "maxBsonObjectSize": 1000, "maxMessageSizeBytes": 2000, "ok": 1.0,
        }
    }

    fn member(set: &str, port: u16) -> RawDocumentBuf {
        let me = format!("127.0.0.1:{port}");
        rawdoc! {
            "setName": set, "hosts": [me.as_str()], "me": me.as_str(), "primary": me.as_str(), "isWritablePrimary": true,
            "helloOk": true, "maxWireVersion": 17, "minWireVersion": 0, "tags": { "dc": "a" },
            "maxBsonObjectSize": 1000, "maxMessageSizeBytes": 2000, "lastWrite": { "lastWriteDate": bson::DateTime::from_millis(5) }, "ok": 1.0,
        }
    }

    fn start(options: &str, tasks: &Tasks) -> Monitor {
        let upstream = Upstream::parse(&format!("mongodb://127.0.0.1:{options}")).unwrap();
        Monitor::start(&upstream, SETTINGS, tasks)
    }

    /// Waits until the description is as wanted.
    async fn until(monitor: &Monitor, wanted: impl Fn(&TopologyDescription) -> bool) -> Arc<TopologyDescription> {
        let mut receiver = monitor.subscribe();
        let reached = receiver.wait_for(|topology| wanted(topology));
        let Ok(reached) = tokio::time::timeout(Duration::from_secs(10), reached).await else {
            panic!("the topology stays {:?}", monitor.current());
        };
        Arc::clone(&reached.unwrap())
    }

    /// Ends monitor and script, and proves that nothing is left behind.
    async fn end(monitor: Monitor, tasks: &Tasks) {
        monitor.shutdown().await;
        tasks.cancel();
        assert_eq!(tasks.join_all(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn a_server_is_found_described_and_left_in_peace() {
        let tasks = Tasks::new();
        let (script, port) = Script::start(&tasks, standalone()).await;
        *script.hello.lock().unwrap() = member("rs0", port);
        let monitor = start(&format!("{port}/?replicaSet=rs0"), &tasks);
        let topology = until(&monitor, |topology| topology.primary().is_some()).await;
        let primary = topology.primary().unwrap();
        assert_eq!((topology.kind, topology.set_name.as_deref()), (TopologyKind::ReplicaSetWithPrimary, Some("rs0")));
        assert_eq!((primary.max_wire_version, primary.last_write.map(|it| it.timestamp_millis())), (17, Some(5)));
        assert_eq!(primary.tags, [("dc".to_owned(), "a".to_owned())]);
        assert!(primary.round_trip_time.is_some() && primary.last_update.is_some());
        assert_eq!(monitor.problem(), None);
        end(monitor.clone(), &tasks).await;
        assert_eq!(monitor.problem(), None, "the last description stays");
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_problem_with_a_name() {
        let tasks = Tasks::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let monitor = start(&port.to_string(), &tasks);
        until(&monitor, |topology| topology.servers.values().any(|server| server.error.is_some())).await;
        assert_eq!(
            monitor.problem().unwrap(),
            format!("no server: 127.0.0.1:{port}: Connection refused (os error 111)")
        );
        end(monitor, &tasks).await;
    }

    #[tokio::test]
    async fn a_set_of_another_name_is_explained_and_tried_again() {
        let tasks = Tasks::new();
        let (script, port) = Script::start(&tasks, standalone()).await;
        *script.hello.lock().unwrap() = member("rs0", port);
        let monitor = start(&format!("{port}/?replicaSet=rs9"), &tasks);
        let topology = until(&monitor, |topology| topology.trouble.is_some()).await;
        let text = format!("127.0.0.1:{port} belongs to replica set `rs0`, not to `rs9`");
        assert_eq!(topology.problem().unwrap(), text);
        *script.hello.lock().unwrap() = member("rs9", port);
        until(&monitor, |topology| topology.problem().is_none()).await;
        end(monitor, &tasks).await;
    }

    #[tokio::test]
    async fn a_hung_server_counts_as_a_timeout() {
        let tasks = Tasks::new();
        let (script, port) = Script::start(&tasks, standalone()).await;
        let monitor = start(&port.to_string(), &tasks);
        until(&monitor, |topology| topology.problem().is_none()).await;
        script.hangs.store(true, Ordering::Relaxed);
        let topology = until(&monitor, |topology| topology.problem().is_some()).await;
        let server = topology.servers.values().next().unwrap();
        assert_eq!((server.heartbeat_failures, server.heartbeat_timeouts), (1, 1));
        assert_eq!(server.error.as_deref(), Some(NO_ANSWER));
        end(monitor, &tasks).await;
    }

    #[tokio::test]
    async fn a_suspect_is_cleared_by_its_next_heartbeat() {
        let tasks = Tasks::new();
        let (_script, port) = Script::start(&tasks, standalone()).await;
        let monitor = start(&port.to_string(), &tasks);
        until(&monitor, |topology| topology.problem().is_none()).await;
        assert!(monitor.suspect(&Address::tcp("127.0.0.1", port), "connection reset", None));
        assert_eq!(monitor.problem().unwrap(), format!("no server: 127.0.0.1:{port}: connection reset"));
        until(&monitor, |topology| topology.problem().is_none()).await;
        end(monitor, &tasks).await;
    }

    #[tokio::test]
    async fn waiting_makes_monitors_look_more_often() {
        let tasks = Tasks::new();
        let (script, port) = Script::start(&tasks, standalone()).await;
        let upstream = Upstream::parse(&format!("mongodb://127.0.0.1:{port}")).unwrap();
        let slow = MonitorSettings { heartbeat_frequency: Duration::from_secs(600), ..SETTINGS };
        let monitor = Monitor::start(&upstream, slow, &tasks);
        let first = until(&monitor, |topology| topology.problem().is_none()).await;
        let (one, two) = (monitor.waiting(), monitor.waiting());
        drop(one);
        let update = |topology: &TopologyDescription| topology.servers.values().next().unwrap().last_update;
        until(&monitor, |topology| update(topology) > update(&first)).await;
        drop(two);
        // Only the monitor asked: the held selection's command went nowhere.
        assert!(script.asked.load(Ordering::Relaxed) <= 3, "{}", script.asked.load(Ordering::Relaxed));
        end(monitor, &tasks).await;
    }

    #[test]
    fn pauses_double_up_to_the_limit() {
        let backoff = BackoffConfig { initial: Duration::from_millis(100), max: Duration::from_secs(30) };
        for (failures, most) in [(0, 100), (1, 200), (5, 3200), (20, 30_000), (99, 30_000)] {
            let pause = pause_after(failures, backoff);
            let most = Duration::from_millis(most);
            assert!(pause >= most / 2 && pause <= most, "{failures}: {pause:?}");
        }
    }
}
