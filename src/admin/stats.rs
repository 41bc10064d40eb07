//! What `/stats` and `/health/database` tell, as serde structs: made of snapshots, without HTTP and without a clock.
//!
//! The structs can be read back, for the commands that show them. Names in JSON are the contract with dashboards and
//! scripts: what is in it stays, new names may come.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::advice;
use super::history::{PoolSample, Ring};
use super::long_held::{LongHeldStats, Look};
use super::pooling::PoolingStats;
use super::rules::ListenerStats;
use super::sampler::{self, ClusterHistory};
use super::suspicions::at_a_look;
use super::tenants::TenantStats;
use super::trends::{self, Trends};
use super::users::UserStats;
use crate::breaker::BreakerState;
use crate::telemetry::labels::{ConnectionClosed, Label as _, Lane, ServerEvent};
use crate::telemetry::metrics::ServerMetrics;
use crate::topology::{ServerDescription, ServerKind};
use crate::upstream::Cluster;
use crate::upstream::fleet::FleetView;
use crate::upstream::pool::{PoolSnapshot, lock};
use crate::upstream::pool_state::PoolStatus;

/// How something does, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Serves, and nothing is to be done.
    Healthy,
    /// Serves, and something is wrong or short.
    Degraded,
    /// Does not serve.
    Down,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Of this program.
    pub version: String,
    /// Since it started.
    pub uptime_seconds: u64,
    /// True from the order to drain on.
    pub draining: bool,
    /// Client sockets beyond `max_clients`, whose commands are answered that there is no room.
    pub surplus_clients: usize,
    /// Requests and replies that are buffered.
    #[serde(default)]
    pub memory: MemoryStats,
    /// In the order of the configuration.
    pub clusters: Vec<ClusterStats>,
    /// Likewise.
    #[serde(default)]
    pub listeners: Vec<ListenerStats>,
}

/// One cluster; numbers are of all its servers together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStats {
    /// As configured.
    pub name: String,
    /// The connection string, without its credentials.
    pub upstream: String,
    /// `normal`, `read-only` or `maintenance`: how far it serves, by order of the operator.
    pub mode: String,
    /// What waits for the time being, by order of the operator: all of it, or databases.
    #[serde(default)]
    pub paused: Vec<PauseStats>,
    /// Down when writes find no server, degraded when any server is not healthy.
    pub status: Status,
    /// Why it is down, with the servers named.
    pub problem: Option<String>,
    /// Release series of the server that takes writes, else of any; `None` while it is unknown.
    pub server_version: Option<String>,
    /// The worst of its servers' breakers.
    #[serde(default)]
    pub breaker: String,
    /// Connections.
    #[serde(flatten)]
    pub connections: Connections,
    /// Commands that wait, those that wait for a server included.
    pub wait_queue: WaitQueueStats,
    /// As many may wait.
    pub wait_queue_size: usize,
    /// Cursors and transactions that are bound to its servers.
    pub pins: PinStats,
    /// Client sockets.
    pub clients: usize,
    /// How far they share connections.
    #[serde(default)]
    pub pooling: PoolingStats,
    /// All sidecars together, and what the servers take.
    #[serde(default)]
    pub fleet: FleetStats,
    /// What to do, in plain words; empty when nothing is.
    pub recommendations: Vec<String>,
    /// Ordered by address.
    pub servers: Vec<ServerStats>,
}

/// What is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PauseStats {
    /// The database; `None` for all of the cluster.
    pub database: Option<String>,
    /// It goes on by itself after this, milliseconds; `None` where somebody has to say so.
    pub remaining_ms: Option<u64>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStats {
    /// Where it is.
    pub address: String,
    /// Whether commands get through to it.
    pub status: Status,
    /// What it says it is: `primary`, `secondary`, `mongos`, ...
    pub role: String,
    /// Release series (`8.0`), told by its wire version; `None` while it is unknown, or not one we can name.
    pub server_version: Option<String>,
    /// Connections.
    #[serde(flatten)]
    pub connections: Connections,
    /// Commands that it is given at once, at most; learnt from it where `adaptive_limit` is on.
    pub limit: u32,
    /// Commands that wait for one of its connections.
    pub wait_queue: WaitQueueStats,
    /// Who has and wants its connections, by what for; in a fixed order.
    #[serde(default)]
    pub lanes: Vec<LaneStats>,
    /// `closed`, `half_open` or `open`.
    pub breaker: String,
    /// Why it is not closed; `None` while it is.
    pub breaker_reason: Option<String>,
    /// What has happened to it since it was found.
    pub events: EventCounts,
    /// Cursors and transactions that are bound to it.
    pub pins: PinStats,
    /// Clients that have a command at it, under way or waiting; what the proxy asks for itself counts as well.
    #[serde(default)]
    pub clients: u32,
    /// How its connections come and go.
    #[serde(default)]
    pub churn: ChurnStats,
    /// Who shares its connections; those first that were served most.
    pub tenants: Vec<TenantStats>,
    /// Where users have connections of their own: those first that have or want most.
    pub users: Vec<UserStats>,
    /// What has been held for long.
    pub long_held: LongHeldStats,
    /// Why monitoring does not reach it, else why the last attempt to connect failed.
    pub error: Option<String>,
    /// What to do, in plain words; empty when nothing is.
    pub recommendations: Vec<String>,
}

/// Connections by state, and their bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// In use.
    pub active: u32,
    /// Open and unused.
    pub idle: u32,
    /// Being established.
    pub pending: u32,
    /// Closed by us and not yet gone: they count against the bound.
    pub closing: u32,
    /// Kept open without demand.
    pub min: u32,
    /// The bound in force.
    pub max: u32,
    /// Share of `max` that is active, percent, rounded down.
    pub utilization: u32,
}

/// A share of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStats {
    /// `transaction`, `regular`, `await` or `background`.
    pub lane: String,
    /// Connections in use.
    pub active: u32,
    /// Commands that wait for one.
    pub waiting: usize,
}

impl LaneStats {
    fn of(pool: &PoolSnapshot) -> Vec<Self> {
        let lanes = Lane::ALL.iter().zip(pool.in_use).zip(pool.waiting);
        lanes.map(|((lane, active), waiting)| Self { lane: lane.as_str().to_owned(), active, waiting }).collect()
    }
}

/// Who waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitQueueStats {
    /// Commands.
    pub length: usize,
    /// How long the one that has waited longest has, milliseconds; 0 when none does. Of a server: for one of its connections. Of
    /// a cluster: for whatever, a server and the end of a pause included, long polls excepted that wait for nothing else.
    pub oldest_ms: u64,
    /// Their requests, of a cluster: there they have a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
}

/// Memory that requests and replies take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStats {
    /// Now.
    pub used_bytes: usize,
    /// At most.
    pub limit_bytes: usize,
}

/// How connections come and go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChurnStats {
    /// Established since the server was found.
    pub created: u64,
    /// Closed since then, for whatever reason.
    pub closed: u64,
    /// Of these, closed for their age, or as an operator had them replaced.
    pub replaced: u64,
    /// Of late.
    pub created_per_minute: f64,
    /// Likewise.
    pub closed_per_minute: f64,
}

impl ChurnStats {
    /// `ring` tells of the last minutes, where there were any.
    fn of(metrics: &ServerMetrics, ring: Option<&Ring<PoolSample>>) -> Self {
        let closed = |reason: &ConnectionClosed| metrics.connections_closed[*reason].get();
        let (created_per_minute, closed_per_minute) = ring.map(trends::churn_per_minute).unwrap_or_default();
        Self {
            created: metrics.connections_created.get(),
            closed: ConnectionClosed::ALL.iter().map(closed).sum(),
            replaced: closed(&ConnectionClosed::Lifetime),
            created_per_minute,
            closed_per_minute,
        }
    }
}

/// All sidecars together, as far as one of them knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetStats {
    /// Sidecars; `None` while that is unknown.
    pub size: Option<u64>,
    /// How it is known: `configured`, `seen` or `unknown`.
    pub source: String,
    /// As many connections may each of them open to one server.
    pub cap: u64,
    /// As many may all of them.
    pub wanted: Option<u64>,
    /// As many connections takes the server that is full first; `None` while that is unknown.
    pub server_limit: Option<u64>,
    /// As many are open to it, whoever's they are.
    pub server_connections: Option<u64>,
    /// `wanted` in percent of `server_limit`.
    pub share: Option<u64>,
    /// What to do before it is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

impl FleetStats {
    fn of(view: &FleetView) -> Self {
        let room = view.tightest.as_ref().map(|(_, room)| room);
        Self {
            size: view.size,
            source: view.source.as_str().to_owned(),
            cap: view.cap,
            wanted: view.wanted(),
            server_limit: room.map(|room| room.limit),
            server_connections: room.map(|room| room.current),
            share: view.share(),
            warning: view.warning().map(|it| it.words),
        }
    }
}

/// What has happened to a server, and how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventCounts {
    /// Reached for the first time.
    pub connected: u64,
    /// A connection could not be established, or broke in the middle of a command.
    pub error: u64,
    /// Lost.
    pub disconnected: u64,
    /// Reached again.
    pub reconnected: u64,
}

impl EventCounts {
    fn of(metrics: &ServerMetrics) -> Self {
        let count = |event| metrics.events[event].get();
        Self {
            connected: count(ServerEvent::Connected),
            error: count(ServerEvent::Error),
            disconnected: count(ServerEvent::Disconnected),
            reconnected: count(ServerEvent::Reconnected),
        }
    }
}

/// What is bound to a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinStats {
    /// Open cursors.
    pub cursors: usize,
    /// Open transactions.
    pub transactions: usize,
}

/// The compact form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// MongoDB, as seen from here.
    pub database: DatabaseHealth,
    /// The proxy itself.
    pub connection_manager: ManagerHealth,
    /// When, RFC 3339.
    pub timestamp: String,
}

/// The `database` of [`Health`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseHealth {
    /// True while no cluster is down.
    pub healthy: bool,
    /// Of all clusters.
    pub connection_pool: CompactPool,
}

/// The `connectionPool` of [`Health`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactPool {
    /// In use.
    pub active: u32,
    /// The bound.
    pub max: u32,
    /// Percent.
    pub utilization: u32,
}

/// The `connectionManager` of [`Health`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagerHealth {
    /// True while commands are admitted: not draining, and room in every queue.
    pub healthy: bool,
    /// Commands that wait.
    pub queue_length: usize,
    /// True when somebody waits and connections are at work, so that the queue moves.
    pub is_processing_queue: bool,
}

impl PauseStats {
    fn of((database, until): (Option<&str>, Option<Instant>), now: Instant) -> Self {
        let remaining_ms = until.map(|until| milliseconds(until.saturating_duration_since(now)));
        Self { database: database.map(str::to_owned), remaining_ms }
    }
}

impl fmt::Display for PauseStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("paused")?;
        if let Some(database) = &self.database {
            write!(f, " (database {database})")?;
        }
        match self.remaining_ms {
            Some(ms) => write!(f, " for another {:.0?}", Duration::from_millis(ms)),
            None => Ok(()),
        }
    }
}

impl Connections {
    fn of(pool: &PoolSnapshot) -> Self {
        let counts = pool.counts;
        Self {
            active: counts.in_use,
            idle: counts.available,
            pending: counts.pending,
            closing: counts.closing,
            min: pool.min_pool_size,
            max: pool.max_pool_size,
            utilization: percent(counts.in_use, pool.max_pool_size),
        }
    }

    /// All of them together, `max` bounded by `limit`.
    fn sum(all: impl Iterator<Item = Self>, limit: Option<u32>) -> Self {
        let mut sum = all.fold(Self::default(), |sum, it| Self {
            active: sum.active + it.active,
            idle: sum.idle + it.idle,
            pending: sum.pending + it.pending,
            closing: sum.closing + it.closing,
            min: sum.min + it.min,
            max: sum.max + it.max,
            utilization: 0,
        });
        sum.max = sum.max.min(limit.unwrap_or(u32::MAX));
        sum.utilization = percent(sum.active, sum.max);
        sum
    }
}

/// What is known of one server at one moment.
pub struct ServerFacts<'a> {
    /// Its address in words.
    pub address: String,
    /// What monitoring knows; `None` when it has just left.
    pub description: Option<&'a ServerDescription>,
    /// Its pool.
    pub pool: &'a PoolSnapshot,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Why that is not closed.
    pub breaker_reason: Option<String>,
    /// True while commands get past the breaker.
    pub passes: bool,
    /// What has happened to it.
    pub events: EventCounts,
    /// Cursors and transactions on it.
    pub pins: (usize, usize),
    /// Commands at it.
    pub commands: u32,
    /// How its connections come and go.
    pub churn: ChurnStats,
    /// What is held for what.
    pub look: &'a Look,
    /// What has been held for long.
    pub long_held: LongHeldStats,
    /// What the last minutes say; `None` where there were none.
    pub trends: Option<Trends>,
}

/// Tells of one server.
pub fn of_server(facts: &ServerFacts<'_>, now: Instant) -> ServerStats {
    let ServerFacts { description, pool, .. } = *facts;
    let known = description.is_some_and(ServerDescription::is_known);
    let mut stats = ServerStats {
        address: facts.address.clone(),
        status: Status::Healthy,
        role: description.map_or(ServerKind::Unknown, |server| server.kind).name().to_owned(),
        server_version: description.and_then(|server| release_series(server.max_wire_version)).map(str::to_owned),
        connections: Connections::of(pool),
        limit: pool.limit,
        wait_queue: WaitQueueStats {
            length: pool.waiting.iter().sum(),
            oldest_ms: pool.oldest.map_or(0, |since| milliseconds(now.duration_since(since))),
            bytes: None,
        },
        lanes: LaneStats::of(pool),
        breaker: facts.breaker.as_str().to_owned(),
        breaker_reason: facts.breaker_reason.clone(),
        events: facts.events,
        pins: PinStats { cursors: facts.pins.0, transactions: facts.pins.1 },
        clients: facts.commands,
        churn: facts.churn,
        tenants: Vec::new(),
        users: Vec::new(),
        long_held: facts.long_held.clone(),
        error: description.and_then(|server| server.error.clone()).or_else(|| pool.last_connect_error.clone()),
        recommendations: Vec::new(),
    };
    let all_in_use = pool.shortage.is_some();
    stats.status = if !known || !facts.passes || pool.status != PoolStatus::Ready {
        Status::Down
    } else if facts.breaker != BreakerState::Closed
        || pool.last_connect_error.is_some()
        || (all_in_use && stats.wait_queue.length > 0)
    {
        Status::Degraded
    } else {
        Status::Healthy
    };
    let trends = facts.trends.clone().unwrap_or_default();
    // One cause, one advice: the minutes say more about it than the moment.
    stats.recommendations = advice::for_server(&stats, pool.shortage.filter(|_| !trends.short));
    stats.recommendations.extend(trends.words);
    stats.recommendations.extend(at_a_look(facts.look).iter().map(advice::for_suspicion));
    stats
}

/// Tells of one cluster.
pub fn of_cluster(cluster: &Cluster, history: &ClusterHistory, now: Instant) -> ClusterStats {
    let (topology, bounds) = (cluster.topology(), sampler::bounds(&cluster.config()));
    let name = |id| cluster.metrics.applications.name(id).map(String::from);
    let servers = cluster.servers().into_iter().map(|server| {
        // One after the other: each takes the same lock, and a guard lives as long as its statement.
        let pins = lock(&cluster.pins).count_on(&server.address);
        let look = Look::at(cluster, &server, now);
        // All numbers of connections and of who waits for one are of one moment.
        let pool = server.pool.snapshot();
        let ring = history.servers.get(&*server.address);
        let facts = ServerFacts {
            address: server.address.to_string(),
            description: topology.servers.get(&*server.address),
            commands: server.operations(),
            churn: ChurnStats::of(&server.metrics, ring),
            pool: &pool,
            breaker: server.health.state(),
            breaker_reason: server.health.trouble(),
            passes: server.passes(),
            events: EventCounts::of(&server.metrics),
            pins,
            long_held: look.stats(name),
            look: &look,
            trends: ring.map(|ring| trends::for_server(ring, bounds, name)),
        };
        let tenants = super::tenants::of_server(cluster, &server);
        let users = super::users::of_server(cluster, &server);
        ServerStats { tenants, users, ..of_server(&facts, now) }
    });
    let servers: Vec<ServerStats> = servers.collect();
    let (cursors, transactions) = lock(&cluster.pins).count();
    let at_servers = servers.iter().map(|server| server.wait_queue.oldest_ms);
    let admitted = cluster.admission.oldest().map(|since| milliseconds(now.saturating_duration_since(since)));
    let wait_queue = WaitQueueStats {
        length: cluster.admission.waiting(),
        oldest_ms: at_servers.chain(admitted).max().unwrap_or_default(),
        bytes: Some(cluster.admission.bytes()),
    };
    let problem = cluster.not_ready();
    let breaker = BreakerState::ALL.iter().rev().map(|state| state.as_str());
    let breaker = breaker.into_iter().find(|state| servers.iter().any(|server| server.breaker == *state));
    let mut stats = ClusterStats {
        name: cluster.name.clone(),
        upstream: cluster.config().upstream.redacted.clone(),
        mode: cluster.mode.mode().to_string(),
        paused: cluster.mode.ask(|orders| orders.pauses.all().map(|pause| PauseStats::of(pause, now)).collect()),
        status: cluster_status(problem.is_some(), &servers),
        problem,
        server_version: version_of(&servers),
        breaker: breaker.unwrap_or(BreakerState::Closed.as_str()).to_owned(),
        connections: Connections::sum(
            servers.iter().map(|server| server.connections),
            cluster.config().max_upstream_connections,
        ),
        wait_queue,
        wait_queue_size: cluster.config().wait_queue_size,
        pins: PinStats { cursors, transactions },
        clients: cluster.clients.load(Ordering::Relaxed),
        pooling: PoolingStats::of(cluster, now),
        fleet: FleetStats::of(&cluster.fleet()),
        recommendations: Vec::new(),
        servers,
    };
    stats.recommendations = advice::for_cluster(&stats);
    stats.recommendations.extend(trends::for_clients(&history.clients));
    stats
}

fn version_of(servers: &[ServerStats]) -> Option<String> {
    let writable = |server: &&ServerStats| server.role == ServerKind::RsPrimary.name();
    let known = |server: &&ServerStats| server.server_version.is_some();
    let server = servers.iter().find(writable).filter(known).or_else(|| servers.iter().find(known));
    server.and_then(|server| server.server_version.clone())
}

fn cluster_status(has_problem: bool, servers: &[ServerStats]) -> Status {
    match has_problem {
        true => Status::Down,
        false if servers.iter().all(|server| server.status == Status::Healthy) => Status::Healthy,
        false => Status::Degraded,
    }
}

impl Health {
    /// The compact form of `stats`.
    pub fn of(stats: &Stats, now: bson::DateTime) -> Self {
        let clusters = &stats.clusters;
        let all = Connections::sum(clusters.iter().map(|cluster| cluster.connections), None);
        let queue_length = clusters.iter().map(|cluster| cluster.wait_queue.length).sum();
        let room = clusters.iter().all(|cluster| cluster.wait_queue.length < cluster.wait_queue_size);
        Self {
            database: DatabaseHealth {
                healthy: clusters.iter().all(|cluster| cluster.status != Status::Down),
                connection_pool: CompactPool { active: all.active, max: all.max, utilization: all.utilization },
            },
            connection_manager: ManagerHealth {
                healthy: room && !stats.draining,
                queue_length,
                is_processing_queue: queue_length > 0 && all.active > 0,
            },
            // Fails for years beyond 9999 only.
            timestamp: now.try_to_rfc3339_string().unwrap_or_default(),
        }
    }
}

/// Servers tell their version to no handshake, but each series speaks up to a wire version of its own.
fn release_series(max_wire_version: i32) -> Option<&'static str> {
    match max_wire_version {
        9 => Some("4.4"),
        13 => Some("5.0"),
        17 => Some("6.0"),
        21 => Some("7.0"),
        25 => Some("8.0"),
        _ => None,
    }
}

fn percent(part: u32, whole: u32) -> u32 {
    let percent = u64::from(part) * 100 / u64::from(whole.max(1));
    u32::try_from(percent.min(100)).expect("at most 100")
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::super::long_held::tests::look;
    use super::*;
    use crate::config::Address;
    use crate::upstream::pool_state::PoolCounts;
    use crate::upstream::shortage::Shortage;

    pub(in crate::admin) fn pool(in_use: u32, available: u32, waiting: usize) -> PoolSnapshot {
        PoolSnapshot {
            drains_in: None,
            status: PoolStatus::Ready,
            counts: PoolCounts { available, in_use, pending: 0, closing: 0 },
            min_pool_size: 2,
            max_pool_size: 10,
            limit: 10,
            most_in_use: 10,
            shortage: (in_use >= 10).then_some(Shortage::Pool),
            in_use: [0, in_use, 0, 0],
            waiting: [0, waiting, 0, 0],
            oldest: None,
            created: 10,
            last_connect_error: None,
        }
    }

    fn description(kind: ServerKind) -> ServerDescription {
        let address = Address::tcp("db", 27017);
        ServerDescription { kind, max_wire_version: 25, ..ServerDescription::unknown(address) }
    }

    fn facts<'a>(
        description: Option<&'a ServerDescription>,
        pool: &'a PoolSnapshot,
        look: &'a Look,
    ) -> ServerFacts<'a> {
        let address = "db:27017".to_owned();
        ServerFacts {
            address,
            description,
            pool,
            breaker: BreakerState::Closed,
            breaker_reason: None,
            passes: true,
            events: EventCounts { connected: 1, ..EventCounts::default() },
            pins: (3, 1),
            commands: 10,
            churn: ChurnStats { created: 12, closed: 4, replaced: 1, created_per_minute: 1.5, closed_per_minute: 0.5 },
            look,
            long_held: look.stats(|_| None),
            trends: None,
        }
    }

    /// A server of a replica set with so many connections in use and commands waiting.
    pub(in crate::admin) fn server(in_use: u32, waiting: usize) -> ServerStats {
        of_server(
            &facts(Some(&description(ServerKind::RsPrimary)), &pool(in_use, 0, waiting), &look(&[])),
            Instant::now(),
        )
    }

    pub(in crate::admin) fn cluster(servers: Vec<ServerStats>) -> ClusterStats {
        ClusterStats {
            name: "default".to_owned(),
            upstream: "mongodb://db/".to_owned(),
            mode: "normal".to_owned(),
            paused: Vec::new(),
            status: cluster_status(false, &servers),
            problem: None,
            server_version: version_of(&servers),
            breaker: "closed".to_owned(),
            connections: Connections::sum(servers.iter().map(|server| server.connections), None),
            wait_queue: WaitQueueStats {
                length: servers.iter().map(|server| server.wait_queue.length).sum(),
                oldest_ms: 0,
                bytes: Some(0),
            },
            wait_queue_size: 4_000,
            pins: PinStats::default(),
            clients: 2_000,
            pooling: PoolingStats { bound_holds: true, ..PoolingStats::default() },
            fleet: FleetStats::default(),
            recommendations: Vec::new(),
            servers,
        }
    }

    fn stats(clusters: Vec<ClusterStats>) -> Stats {
        Stats {
            version: "0.0.0".to_owned(),
            uptime_seconds: 5,
            draining: false,
            surplus_clients: 0,
            memory: MemoryStats { used_bytes: 7, limit_bytes: 100 },
            clusters,
            listeners: Vec::new(),
        }
    }

    #[test]
    fn a_server_reads_as_documented() {
        let now = Instant::now() + Duration::from_secs(60);
        let (primary, mut snapshot) = (description(ServerKind::RsPrimary), pool(7, 1, 3));
        snapshot.oldest = Some(now - Duration::from_millis(1_234));
        let shown = serde_json::to_value(of_server(&facts(Some(&primary), &snapshot, &look(&[])), now)).unwrap();
        let expected = json!({
            "address": "db:27017", "status": "healthy", "role": "primary", "serverVersion": "8.0",
            "active": 7, "idle": 1, "pending": 0, "closing": 0, "min": 2, "max": 10, "utilization": 70,
            "limit": 10, "waitQueue": {"length": 3, "oldestMs": 1234}, "breaker": "closed", "breakerReason": null,
            "lanes": [
                {"lane": "transaction", "active": 0, "waiting": 0}, {"lane": "regular", "active": 7, "waiting": 3},
                {"lane": "await", "active": 0, "waiting": 0}, {"lane": "background", "active": 0, "waiting": 0},
            ],
            "events": {"connected": 1, "error": 0, "disconnected": 0, "reconnected": 0},
            "pins": {"cursors": 3, "transactions": 1}, "clients": 10,
            "churn": {"created": 12, "closed": 4, "replaced": 1, "createdPerMinute": 1.5, "closedPerMinute": 0.5}, "tenants": [], "users": [], "longHeld": {"count": 0, "items": []},
            "error": null, "recommendations": [],
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_cluster_has_the_documented_keys_and_all_of_it_can_be_read_back() {
        let all = stats(vec![cluster(vec![server(1, 0), server(2, 0)])]);
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Stats>(&text).unwrap(), all);
        let shown: Value = serde_json::from_str(&text).unwrap();
        let cluster = shown["clusters"][0].as_object().unwrap();
        for key in [
            "name",
            "upstream",
            "status",
            "serverVersion",
            "breaker",
            "fleet",
            "pooling",
            "active",
            "idle",
            "pending",
            "min",
            "max",
            "utilization",
            "waitQueue",
            "pins",
            "clients",
            "recommendations",
            "servers",
        ] {
            assert!(cluster.contains_key(key), "{key} is missing in {shown}");
        }
        assert_eq!((&cluster["active"], &cluster["max"], &cluster["utilization"]), (&json!(3), &json!(20), &json!(15)));
        assert_eq!((&shown["uptimeSeconds"], &shown["surplusClients"]), (&json!(5), &json!(0)));
    }

    #[test]
    fn a_cluster_has_the_version_of_who_takes_writes() {
        let of = |role: &str, version: Option<&str>| ServerStats {
            role: role.to_owned(),
            server_version: version.map(str::to_owned),
            ..server(0, 0)
        };
        let (new, old) = (of("secondary", Some("8.0")), of("primary", Some("7.0")));
        assert_eq!(version_of(&[new.clone(), old]).as_deref(), Some("7.0"));
        assert_eq!(version_of(&[of("unknown", None), new]).as_deref(), Some("8.0"));
        assert_eq!(version_of(&[of("unknown", None)]), None);
    }

    #[test]
    fn the_bound_of_a_cluster_bounds_the_sum() {
        let all = [server(5, 0).connections, server(5, 0).connections];
        let sum = Connections::sum(all.into_iter(), Some(10));
        assert_eq!((sum.max, sum.utilization), (10, 100));
    }

    #[test]
    fn status_says_whether_commands_get_through() {
        let now = Instant::now();
        let status = |change: fn(&mut ServerFacts<'_>), pool: &PoolSnapshot, kind: ServerKind| {
            let description = description(kind);
            let look = look(&[]);
            let mut facts = facts(Some(&description), pool, &look);
            change(&mut facts);
            of_server(&facts, now).status
        };
        let same: fn(&mut ServerFacts<'_>) = |_| {};
        let (primary, quiet) = (ServerKind::RsPrimary, pool(0, 2, 0));
        assert_eq!(status(same, &quiet, primary), Status::Healthy);
        assert_eq!(status(same, &quiet, ServerKind::Unknown), Status::Down);
        assert_eq!(status(|facts| facts.description = None, &quiet, primary), Status::Down);
        assert_eq!(status(|facts| facts.passes = false, &quiet, primary), Status::Down);
        assert_eq!(
            status(|facts| facts.breaker = BreakerState::Open, &quiet, primary),
            Status::Degraded,
            "serves still"
        );
        let paused = PoolSnapshot { status: PoolStatus::Paused, ..pool(0, 0, 0) };
        assert_eq!(status(same, &paused, primary), Status::Down);
        let failing = PoolSnapshot { last_connect_error: Some("too many files".to_owned()), ..pool(1, 1, 0) };
        assert_eq!(status(same, &failing, primary), Status::Degraded);
        assert_eq!(status(same, &pool(10, 0, 0), primary), Status::Healthy, "busy is not ill");
        assert_eq!(status(same, &pool(10, 0, 1), primary), Status::Degraded);
        let adapted = |shortage| PoolSnapshot { limit: 2, shortage, ..pool(3, 7, 1) };
        assert_eq!(status(same, &adapted(Some(Shortage::Adaptive)), primary), Status::Degraded);
        assert_eq!(status(same, &adapted(None), primary), Status::Healthy, "two of them only wait for data");
    }

    #[test]
    fn a_cluster_is_as_well_as_its_servers() {
        let ill = ServerStats { status: Status::Down, ..server(0, 0) };
        assert_eq!(cluster_status(false, &[server(0, 0)]), Status::Healthy);
        assert_eq!(cluster_status(false, &[server(0, 0), ill.clone()]), Status::Degraded);
        assert_eq!(cluster_status(true, &[server(0, 0)]), Status::Down);
    }

    #[test]
    fn the_compact_form_is_the_documented_one() {
        let now = bson::DateTime::from_millis(1_700_000_000_000);
        let all = stats(vec![cluster(vec![server(10, 4)])]);
        let expected = json!({
            "database": {"healthy": true, "connectionPool": {"active": 10, "max": 10, "utilization": 100}},
            "connectionManager": {"healthy": true, "queueLength": 4, "isProcessingQueue": true},
            "timestamp": "2023-11-14T22:13:20Z",
        });
        assert_eq!(serde_json::to_value(Health::of(&all, now)).unwrap(), expected);

        let full = ClusterStats { wait_queue_size: 4, ..cluster(vec![server(10, 4)]) };
        assert!(!Health::of(&stats(vec![full]), now).connection_manager.healthy);
        let draining = Stats { draining: true, ..stats(Vec::new()) };
        assert!(!Health::of(&draining, now).connection_manager.healthy);
        let down = ClusterStats { status: Status::Down, ..cluster(Vec::new()) };
        assert!(!Health::of(&stats(vec![down]), now).database.healthy);
    }
}
