//! The series that `/history` tells and the page draws: a quarter of an hour at a fixed step, in rings that all have the same
//! points in time. Servers come and go: one that was not there at a time has no point there, and is forgotten with its last one.
//!
//! Memory: a point of a server or cluster takes 28 bytes, one of the proxy 100, so a server costs 5 kB and a cluster with
//! [`MAX_SERVERS`] 330 kB at most, however long it runs.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::config::Address;

/// From one point to the next: short enough to see a burst, long enough that a quantile says something.
pub const STEP: Duration = Duration::from_secs(5);

/// A quarter of an hour: what somebody who was woken wants to see.
pub const POINTS: usize = 180;

/// Of a cluster, as many servers are remembered; of more, those that left first are forgotten. A large sharded cluster has as
/// many mongos, and in an environment that gives out new addresses each pod leaves one behind.
pub const MAX_SERVERS: usize = 64;

/// A pool, or all pools of a cluster, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Commands that wait.
    pub waiting: u32,
    /// How long the one that has waited longest has, milliseconds.
    pub oldest_ms: u32,
    /// Connections in use.
    pub active: u32,
    /// Connections that are open and unused.
    pub idle: u32,
    /// Connections that are being established.
    pub pending: u32,
    /// Commands that have ended since the point before, a second; unknown at the first one.
    pub rate: Option<f32>,
}

/// Milliseconds that half, 95 and 99 of a hundred did not exceed since the point before.
pub type Quantiles = [Option<f32>; 3];

/// The proxy at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProxyPoint {
    /// Client sockets.
    pub clients: u32,
    /// Commands that ended, a second.
    pub commands: Option<f32>,
    /// Those of them that failed.
    pub failed: Option<f32>,
    /// Those of them that were refused.
    pub refused: Option<f32>,
    /// How long commands took.
    pub command: Quantiles,
    /// How long they waited for a connection.
    pub wait: Quantiles,
    /// How long they spent in the proxy.
    pub overhead: Quantiles,
}

/// What is noted of one cluster at one moment.
pub struct ClusterPoint {
    /// Client sockets.
    pub clients: u32,
    /// All its pools.
    pub load: Load,
    /// The pools of the servers that are there.
    pub servers: Vec<(Address, Load)>,
}

/// The last points of something, `None` where it was not there.
#[derive(Debug, Clone)]
struct Ring<T>(VecDeque<Option<T>>);

impl<T> Ring<T> {
    /// Of something that was not there at the last `missed` points.
    fn after(missed: usize) -> Self {
        Self((0..missed.min(POINTS - 1)).map(|_| None).collect())
    }

    fn push(&mut self, point: Option<T>) {
        if self.0.len() == POINTS {
            self.0.pop_front();
        }
        self.0.push_back(point);
    }

    /// Points that have passed since it was there.
    fn absent_for(&self) -> usize {
        self.0.iter().rev().take_while(|point| point.is_none()).count()
    }

    fn column<V>(&self, value: impl Fn(&T) -> V) -> Vec<Option<V>> {
        self.0.iter().map(|point| point.as_ref().map(&value)).collect()
    }
}

#[derive(Debug, Default)]
struct ClusterSeries {
    loads: Ring<(u32, Load)>,
    servers: BTreeMap<Address, Ring<Load>>,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self::after(0)
    }
}

impl ClusterSeries {
    fn push(&mut self, point: ClusterPoint) {
        let before = self.loads.0.len();
        self.loads.push(Some((point.clients, point.load)));
        let mut now: BTreeMap<Address, Load> = point.servers.into_iter().collect();
        for (address, ring) in &mut self.servers {
            ring.push(now.remove(address));
        }
        for (address, load) in now {
            let mut ring = Ring::after(before);
            ring.push(Some(load));
            self.servers.insert(address, ring);
        }
        self.servers.retain(|_, ring| ring.absent_for() < ring.0.len());
        while self.servers.len() > MAX_SERVERS {
            let longest = self.servers.iter().max_by_key(|(_, ring)| ring.absent_for());
            let Some(address) = longest.map(|(address, _)| address.clone()) else { break };
            self.servers.remove(&address);
        }
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Series {
    times: VecDeque<Instant>,
    proxy: Ring<ProxyPoint>,
    clusters: Vec<ClusterSeries>,
}

impl Series {
    /// Adds a point; `clusters` are always the same, in the same order.
    pub fn push(&mut self, now: Instant, proxy: ProxyPoint, clusters: Vec<ClusterPoint>) {
        if self.times.len() == POINTS {
            self.times.pop_front();
        }
        self.times.push_back(now);
        self.proxy.push(Some(proxy));
        self.clusters.resize_with(clusters.len(), ClusterSeries::default);
        for (series, point) in self.clusters.iter_mut().zip(clusters) {
            series.push(point);
        }
    }

    /// As it is told, `names` being those of the clusters.
    pub fn told(&self, names: &[&str], now: Instant) -> History {
        let clusters = names.iter().zip(&self.clusters).map(|(name, series)| ClusterHistory {
            name: (*name).to_owned(),
            clients: series.loads.column(|(clients, _)| *clients),
            load: LoadHistory::of(&series.loads, |(_, load)| load),
            servers: series
                .servers
                .iter()
                .map(|(address, ring)| ServerHistory {
                    address: address.to_string(),
                    load: LoadHistory::of(ring, |load| load),
                })
                .collect(),
        });
        let proxy = &self.proxy;
        History {
            step_seconds: STEP.as_secs(),
            seconds_ago: self.times.iter().map(|at| now.saturating_duration_since(*at).as_secs()).collect(),
            clients: proxy.column(|it| it.clients),
            commands_per_second: flat(proxy.column(|it| it.commands)),
            failed_per_second: flat(proxy.column(|it| it.failed)),
            refused_per_second: flat(proxy.column(|it| it.refused)),
            latency: LatencyHistory {
                command: QuantileHistory::of(proxy, |it| &it.command),
                wait: QuantileHistory::of(proxy, |it| &it.wait),
                overhead: QuantileHistory::of(proxy, |it| &it.overhead),
            },
            clusters: clusters.collect(),
        }
    }
}

/// One value for each point in time, oldest first.
type Column<T> = Vec<Option<T>>;

/// The body of `/history`: all columns have as many values as `seconds_ago`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// From one point to the next.
    pub step_seconds: u64,
    /// When the points are of.
    pub seconds_ago: Vec<u64>,
    /// Client sockets.
    pub clients: Column<u32>,
    /// Commands that ended.
    pub commands_per_second: Column<f32>,
    /// Those of them that failed.
    pub failed_per_second: Column<f32>,
    /// Those of them that were refused.
    pub refused_per_second: Column<f32>,
    /// Of commands.
    pub latency: LatencyHistory,
    /// In the order of the configuration.
    pub clusters: Vec<ClusterHistory>,
}

/// What commands spent their time with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatencyHistory {
    /// All of it, without `getMore`, which may wait for data.
    pub command: QuantileHistory,
    /// For a connection; of those commands only that had to.
    pub wait: QuantileHistory,
    /// In the proxy.
    pub overhead: QuantileHistory,
}

/// Quantiles of what ended since the point before.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuantileHistory {
    /// Of half of them.
    pub p50_ms: Column<f32>,
    /// Of 95 of a hundred.
    pub p95_ms: Column<f32>,
    /// Of 99 of a hundred.
    pub p99_ms: Column<f32>,
}

impl QuantileHistory {
    fn of(ring: &Ring<ProxyPoint>, of: impl Fn(&ProxyPoint) -> &Quantiles) -> Self {
        let [p50_ms, p95_ms, p99_ms] = [0, 1, 2].map(|index| flat(ring.column(|it| of(it)[index])));
        Self { p50_ms, p95_ms, p99_ms }
    }
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterHistory {
    /// As configured.
    pub name: String,
    /// Client sockets.
    pub clients: Column<u32>,
    /// All its pools; those that wait for a server wait here, too.
    #[serde(flatten)]
    pub load: LoadHistory,
    /// Those that are there, and those that were.
    pub servers: Vec<ServerHistory>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerHistory {
    /// Where it is.
    pub address: String,
    /// Its pool.
    #[serde(flatten)]
    pub load: LoadHistory,
}

/// The columns of [`Load`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each column is described at the field of `Load`")]
pub struct LoadHistory {
    pub queue_length: Column<u32>,
    pub oldest_ms: Column<u32>,
    pub active: Column<u32>,
    pub idle: Column<u32>,
    pub pending: Column<u32>,
    pub commands_per_second: Column<f32>,
}

impl LoadHistory {
    fn of<T>(ring: &Ring<T>, load: impl Fn(&T) -> &Load) -> Self {
        Self {
            queue_length: ring.column(|it| load(it).waiting),
            oldest_ms: ring.column(|it| load(it).oldest_ms),
            active: ring.column(|it| load(it).active),
            idle: ring.column(|it| load(it).idle),
            pending: ring.column(|it| load(it).pending),
            commands_per_second: flat(ring.column(|it| load(it).rate)),
        }
    }
}

fn flat<T>(column: Column<Option<T>>) -> Column<T> {
    column.into_iter().map(Option::flatten).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, point: usize) -> Instant {
        start + STEP * u32::try_from(point).unwrap()
    }

    fn load(waiting: u32) -> Load {
        Load { waiting, ..Load::default() }
    }

    fn address(number: usize) -> Address {
        Address::tcp("db", u16::try_from(number).unwrap())
    }

    /// One cluster with these servers, each with as many waiting as its number.
    fn point(servers: &[usize]) -> Vec<ClusterPoint> {
        let servers = servers.iter().map(|number| (address(*number), load(u32::try_from(*number).unwrap())));
        vec![ClusterPoint { clients: 7, load: load(1), servers: servers.collect() }]
    }

    /// Every column has a value for every time.
    fn check_invariants(history: &serde_json::Value) {
        fn lengths(value: &serde_json::Value, of: &mut Vec<usize>) {
            match value {
                serde_json::Value::Object(fields) => fields.values().for_each(|value| lengths(value, of)),
                serde_json::Value::Array(items) if items.first().is_some_and(serde_json::Value::is_object) => {
                    items.iter().for_each(|value| lengths(value, of));
                }
                serde_json::Value::Array(items) => of.push(items.len()),
                _ => {}
            }
        }
        let mut of = Vec::new();
        lengths(history, &mut of);
        let times = history["secondsAgo"].as_array().unwrap().len();
        assert!(of.len() > 20 && of.iter().all(|length| *length == times), "{of:?}");
    }

    #[test]
    fn a_quarter_of_an_hour_is_remembered_and_no_more() {
        let (mut series, start) = (Series::default(), Instant::now());
        for number in 0..POINTS * 2 {
            let proxy = ProxyPoint { clients: u32::try_from(number).unwrap(), ..ProxyPoint::default() };
            series.push(at(start, number), proxy, point(&[1]));
            let told = series.told(&["default"], at(start, number));
            assert_eq!(told.seconds_ago.len(), (number + 1).min(POINTS));
            if number % 50 == 0 {
                check_invariants(&serde_json::to_value(&told).unwrap());
            }
        }
        let told = series.told(&["default"], at(start, POINTS * 2));
        assert_eq!((told.seconds_ago[0], told.seconds_ago[POINTS - 1]), (15 * 60, 5));
        assert_eq!((told.clients[0], told.clients[POINTS - 1]), (Some(180), Some(359)));
        assert_eq!(told.clusters[0].servers[0].load.queue_length, vec![Some(1); POINTS]);
    }

    #[test]
    fn servers_that_come_and_go_have_points_where_they_were() {
        let (mut series, start) = (Series::default(), Instant::now());
        for (number, servers) in [&[1][..], &[1, 2], &[2], &[1, 2]].into_iter().enumerate() {
            series.push(at(start, number), ProxyPoint::default(), point(servers));
        }
        let told = series.told(&["default"], at(start, 3));
        let of = |index: usize| {
            (&*told.clusters[0].servers[index].address, told.clusters[0].servers[index].load.queue_length.clone())
        };
        assert_eq!(of(0), ("db:1", vec![Some(1), Some(1), None, Some(1)]));
        assert_eq!(of(1), ("db:2", vec![None, Some(2), Some(2), Some(2)]));
        check_invariants(&serde_json::to_value(&told).unwrap());
        for number in 4..4 + POINTS {
            series.push(at(start, number), ProxyPoint::default(), point(&[1]));
        }
        let told = series.told(&["default"], at(start, 4 + POINTS));
        assert_eq!(told.clusters[0].servers.len(), 1, "one without a point is forgotten");
    }

    #[test]
    fn of_servers_without_end_those_that_left_first_are_forgotten() {
        let (mut series, start) = (Series::default(), Instant::now());
        for number in 0..POINTS - 1 {
            series.push(at(start, number), ProxyPoint::default(), point(&[0, number + 1]));
            assert!(series.clusters[0].servers.len() <= MAX_SERVERS);
        }
        let known: Vec<_> = series.clusters[0].servers.keys().cloned().collect();
        assert_eq!((known.len(), &known[0]), (MAX_SERVERS, &address(0)), "one that is there stays");
        assert!(known.contains(&address(POINTS - 1)) && !known.contains(&address(1)));
    }

    #[test]
    fn a_point_costs_what_the_head_of_this_file_says() {
        assert!(size_of::<Option<Load>>() <= 28 && size_of::<Option<(u32, Load)>>() <= 32);
        assert!(size_of::<Option<ProxyPoint>>() <= 100, "{}", size_of::<Option<ProxyPoint>>());
    }
}
