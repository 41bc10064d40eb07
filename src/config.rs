//! Everything that can be configured, validated: whoever holds a [`Config`] need not check it again.
//!
//! [`Sources`] are gathered first (`system.rs`: files, the container's limits). Then [`Config::load`] reads the file
//! (`file.rs`, `reader.rs`), lays connection string over file over profile (`profile.rs`) over defaults (`limits.rs`), all in
//! `layers.rs`, and checks what depends on each other (`build.rs`, `listeners.rs`), without any I/O. Mistakes are collected, so that
//! all are told at once.

pub mod address;
mod build;
mod choices;
pub mod compressors;
pub mod databases;
pub mod effective;
pub mod fairness;
mod file;
pub mod keys;
mod layers;
pub mod limits;
mod listeners;
pub mod namespaces;
pub mod pooling;
mod presentation;
pub mod profile;
mod reader;
pub mod rules;
pub mod shares;
mod sharing;
pub mod system;
pub mod tls;
pub mod uri;
pub mod users_file;
mod vain;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use address::Address;
pub use build::{DEFAULT_ADMIN, DEFAULT_CLUSTER, DEFAULT_LISTEN, DEFAULT_UPSTREAM};
pub use compressors::CompressorName;
pub use databases::Databases;
pub use effective::{Difference, Effective, difference};
pub use fairness::{FairBy, FairnessConfig, Level};
pub use namespaces::{Namespace, Namespaces};
pub use pooling::{PoolingConfig, PoolingMode};
pub use profile::Profile;
pub(crate) use reader::nearest;
pub use rules::{CommandName, Commands, Rules};
pub use shares::MemoryShares;
pub use system::Sources;
pub use tls::{ClientCertificates, ListenerTls, TlsVersion};

/// The whole program's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// At least one; each has its own topology and pools. Names differ.
    pub clusters: Vec<ClusterConfig>,
    /// At least one for each cluster.
    pub listeners: Vec<ListenerConfig>,
    /// Where the admin port listens.
    pub admin: Address,
    /// Who may ask for what there.
    pub admin_access: AdminAccess,
    /// Where spans and metrics go, if anywhere; OpenTelemetry's own variables may say so as well.
    pub otlp_endpoint: Option<String>,
    /// How its sockets are encrypted, if they are.
    pub admin_tls: Option<ListenerTls>,
    /// Limits of the client side, shared by all clusters.
    pub client: ClientConfig,
    /// All buffered messages together, bytes.
    pub memory_limit_bytes: usize,
    /// When the program looks at itself, and how it ends.
    pub times: Times,
    /// The files that all of this was read from are read again when they change.
    pub reload_on_change: Vec<PathBuf>,
    /// Where the next process finds this one, to take over from it; and this one the process before.
    pub upgrade_socket: Option<PathBuf>,
    /// Threads that clients and servers are served on.
    pub worker_threads: usize,
    /// All of it as the operator sees it: each key, and who says what it says.
    pub effective: Effective,
}

/// When the program looks at itself, and how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Pool snapshots to the log and the search for stuck pins happen this often.
    pub monitor_interval: Duration,
    /// Longest time from the first signal to the end.
    pub drain_timeout: Duration,
    /// How long nothing may be in flight before a drain ends early.
    pub drain_quiet: Duration,
}

/// Who may ask for what on the admin port, where probes and metrics are for everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAccess {
    /// Whoever is on this machine, where the port listens nowhere else.
    Loopback,
    /// Whoever shows that it may: there are tokens, certificates or both.
    Proven {
        /// Whoever knows a token of this file.
        tokens: Option<PathBuf>,
        /// Whoever has a certificate that an authority of the port's TLS has signed.
        certificates: bool,
    },
    /// Nobody gets more than that.
    ProbesOnly,
}

/// One address where clients connect, and where their commands go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Where clients connect.
    pub listen: Address,
    /// Name of the cluster that has all that `databases` says nothing about.
    pub cluster: String,
    /// Names of the clusters that have these databases.
    pub databases: Databases<String>,
    /// What clients are offered.
    pub compressors: Vec<CompressorName>,
    /// Every connection begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// How clients prove who they are.
    pub auth: Auth,
    /// What they may do, until somebody changes it.
    pub rules: Rules,
    /// How its sockets are encrypted, if they are.
    pub tls: Option<ListenerTls>,
}

/// A file that the credential for upstream stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialFile {
    /// The whole connection string, of which the credential is read again.
    ConnectionString(PathBuf),
    /// The password of the user that the connection string names.
    Password(PathBuf),
}

impl CredentialFile {
    /// Where it is.
    pub fn path(&self) -> &PathBuf {
        match self {
            Self::ConnectionString(path) | Self::Password(path) => path,
        }
    }
}

/// How the clients of a listener prove who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    None,
    /// By the users of a file.
    Users(PathBuf),
    /// As users of MongoDB, which are looked up there; their commands go over connections of their own.
    Upstream,
}

/// One upstream connection string with its servers and pools.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Name in logs, `/stats` and the file; `default` when there is only one without a name.
    pub name: String,
    /// The parsed connection string.
    pub upstream: uri::Upstream,
    /// The file that its credential comes from, and is read again from.
    pub credential_file: Option<CredentialFile>,
    /// Shape of what clients see.
    pub presentation: Presentation,
    /// The replica set that they see, where they are to see one.
    pub shown_set: Option<ShownSet>,
    /// Pool of each server.
    pub pool: PoolConfig,
    /// Which commands share its connections.
    pub pooling: PoolingConfig,
    /// Users of MongoDB who are logged in are looked up this often.
    pub user_refresh: Duration,
    /// Bound over all servers of the cluster.
    pub max_upstream_connections: Option<u32>,
    /// Sidecars that share the servers; `None` for as many as are seen.
    pub fleet_size: Option<u32>,
    /// Waiting commands of the cluster, those waiting for a server included.
    pub wait_queue_size: usize,
    /// Requests of waiting commands together, bytes.
    pub wait_queue_bytes: usize,
    /// Longest wait for a connection.
    pub wait_queue_timeout: Duration,
    /// In which order they go, and who is refused.
    pub queue_discipline: QueueDiscipline,
    /// Who competes with whom.
    pub fairness: FairnessConfig,
    /// Longest wait for a suitable server.
    pub server_selection_timeout: Duration,
    /// Longest run of one command once it was sent.
    pub command_timeout: Option<Duration>,
    /// A command that takes longer, waiting included, is told in the log.
    pub slow_command: Option<Duration>,
    /// What is older is shown as held for long.
    pub long_held: Duration,
    /// An open transaction without a statement on its way is aborted after this long.
    pub transaction_idle_timeout: Option<Duration>,
    /// Commands in flight per server, where that is to be less than the pool.
    pub max_in_flight: Option<u32>,
    /// Learns from each server how many commands it is given at once, up to that.
    pub adaptive_limit: bool,
    /// Server monitoring interval.
    pub heartbeat_frequency: Duration,
    /// Servers this much slower than the fastest still take reads.
    pub local_threshold: Duration,
    /// Ping over a pooled connection, only when the pool is in use.
    pub health_check: Duration,
    /// The breaker of each server.
    pub breaker: BreakerConfig,
    /// Back-off between attempts to connect.
    pub reconnect: BackoffConfig,
    /// Who re-sends after a request was sent.
    pub retry: Retry,
    /// What may be read from a secondary while there is no primary, although the primary was asked for.
    pub degraded_reads: Namespaces,
}

/// In which order waiting commands go, and who is refused before its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueDiscipline {
    /// In order of arrival; nobody is refused early.
    Fifo,
    /// As long as the queue stands, the newest go first, and who has waited for twice the target is refused.
    Codel {
        /// A wait that is none to worry about.
        target: Duration,
        /// A queue stands when for so long everybody has waited longer than that.
        interval: Duration,
    },
}

/// What clients are shown in `hello`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presentation {
    /// Follows the upstream: mongos for a replica set or sharded cluster, standalone for a standalone.
    Auto,
    /// Always a mongos.
    Mongos,
    /// Always a standalone.
    Standalone,
    /// Always a replica set of one member: for clients whose connection string names one.
    ReplicaSet,
}

/// The replica set of one member that clients see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownSet {
    /// What they have to ask for.
    pub name: String,
    /// The member's address, where it is not the one that each of them has dialled.
    pub address: Option<Address>,
}

/// Who re-sends a command whose request was written whole and whose reply is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The driver, on our labels.
    Driver,
    /// Also the proxy, once, where running twice is safe.
    Proxy,
}

/// One server's pool, in the words of the CMAP specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Upstream data connections per server, all kinds included.
    pub max_pool_size: u32,
    /// Kept warm in the background.
    pub min_pool_size: u32,
    /// Of them those of one user, where each has its own.
    pub max_user_connections: Option<u32>,
    /// Connections being established at once.
    pub max_connecting: u32,
    /// Idle connections above the minimum close after this.
    pub max_idle_time: Duration,
    /// Connections are replaced after this, with 10 % jitter.
    pub max_lifetime: Duration,
    /// TCP, TLS, hello and authentication together.
    pub connect_timeout: Duration,
    /// Longest silence of a server in the middle of a command; `None` for no limit.
    pub socket_timeout: Option<Duration>,
}

/// When a server's breaker trips and how long it stays open.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerConfig {
    /// Trips after this many failures in a row.
    pub consecutive_failures: u32,
    /// Trips when the share of successes in the window falls below this (0 to 1) ...
    pub success_rate: f64,
    /// ... and the window holds at least this many outcomes.
    pub minimum_samples: u32,
    /// Length of the sliding window.
    pub window: Duration,
    /// First time open; doubles with each further trip ...
    pub open_initial: Duration,
    /// ... up to this.
    pub open_max: Duration,
}

/// Exponential back-off with full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffConfig {
    /// Upper bound of the first wait.
    pub initial: Duration,
    /// Upper bound of every wait.
    pub max: Duration,
}

/// Limits of the client side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// Client sockets whose commands go upstream.
    pub max_clients: usize,
    /// Of these, as many may come from one address.
    pub max_clients_per_address: Option<usize>,
    /// Sockets that send nothing for this long are closed.
    pub idle_timeout: Option<Duration>,
    /// Longest time from accept to the first whole message.
    pub handshake_timeout: Duration,
    /// Log-ins from one address that may fail in a row before further ones wait.
    pub failed_log_ins: Option<u32>,
    /// Longest standstill in the middle of a request or of a reply.
    pub stall_timeout: Duration,
    /// Largest message.
    pub max_message_bytes: usize,
}

impl ClientConfig {
    /// Client sockets open beyond `max_clients`, which are told that there is no room.
    pub fn surplus_clients(&self) -> usize {
        Self::surplus_of(self.max_clients)
    }

    /// As [`ClientConfig::surplus_clients`], of another `max_clients`.
    pub fn surplus_of(max_clients: usize) -> usize {
        max_clients.div_ceil(limits::SURPLUS_CLIENTS_SHARE)
    }
}

impl Config {
    /// The mistakes of a file that can be told from it alone, for when something else cannot be read.
    pub fn mistakes_of(file: &system::Text) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        drop(file::read(&file.name, &file.text, &mut errors));
        errors
    }

    /// Makes a configuration of everything that was said, and of defaults where nothing was.
    ///
    /// # Errors
    /// Every mistake there is, each with its place, key, what was found and what is valid. Only a text that cannot be
    /// read at all, such as a file that is no TOML, hides others: those that depend on what it would have said.
    pub fn load(sources: &Sources) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        Self::attempt(sources).sound()
    }

    /// As [`Config::load`], with what can be made of it beside the mistakes.
    pub fn attempt(sources: &Sources) -> Attempt {
        let mut mistakes = Vec::new();
        let file = match &sources.file {
            Some(file) => file::read(&file.name, &file.text, &mut mistakes),
            None => Some(file::FileConfig::default()),
        };
        let built = file.map(|file| build::build(sources, file, &mut mistakes));
        let (config, warnings) = built.unwrap_or_default();
        Attempt { config, warnings, mistakes }
    }
}

/// A configuration that may have mistakes.
#[derive(Debug)]
pub struct Attempt {
    /// What can be made of it; not to be used where there are mistakes but to look for further ones.
    pub config: Option<Config>,
    /// What works, though hardly as intended.
    pub warnings: Vec<Warning>,
    /// What is wrong.
    pub mistakes: Vec<ConfigError>,
}

impl Attempt {
    /// The configuration, where it can be used.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn sound(self) -> Result<(Config, Vec<Warning>), ConfigErrors> {
        match self.config {
            Some(config) if self.mistakes.is_empty() => Ok((config, self.warnings)),
            _ => Err(ConfigErrors(self.mistakes)),
        }
    }
}

/// What is in force, in a few lines for people; credentials are left out.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cluster in &self.clusters {
            let PoolConfig { min_pool_size, max_pool_size, .. } = cluster.pool;
            writeln!(f, "cluster {}: {}", cluster.name, cluster.upstream.redacted)?;
            writeln!(
                f,
                "  {min_pool_size} to {max_pool_size} connections per server, {} may wait",
                cluster.wait_queue_size
            )?;
        }
        for ListenerConfig { listen, cluster, databases, rules, .. } in &self.listeners {
            let (routed, routes) = (if databases.is_empty() { "" } else { ", but for " }, databases);
            let ruled = if rules.is_empty() { "" } else { ", with rules" };
            writeln!(f, "listener {listen} -> {cluster}{routed}{routes}{ruled}")?;
        }
        write!(f, "admin: {}, at most {} clients", self.admin, self.client.max_clients)
    }
}

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ConfigError {
    /// File and line, or which other source.
    pub place: String,
    /// The key or option in question; empty if it is the source as a whole.
    pub key: String,
    /// What was found and what is valid.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

/// All mistakes, one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Something that works, though hardly as intended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
