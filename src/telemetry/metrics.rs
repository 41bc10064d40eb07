//! Every metric, in one table ([`Metrics`] and [`Metrics::new`]), handed down as a struct.
//!
//! Each combination of label values is looked up once, when the metric is made, and kept in an array that the label
//! enums index: counting a command is an atomic addition, without a hash or a lock. It also makes each known value
//! appear with 0 from the first scrape on. Metrics of one server are the same, once per server: [`ServerMetrics`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::applications::Applications;
use super::events::Events;
use super::labels::{
    BreakerLabel, CertificateSide, ClientClosed, ClientState, CommandLabel, ConnectionClosed, ConnectionState,
    EventKind, Label, Lane, LogInMechanism, LogInOutcome, LongHeldKind, Outcome, PinKind, RefusedReason, RetryReason,
    ServerEvent, ServerState, ShedReason, Side, TransactionEnd, TripLabel,
};

/// First part of every name of ours; the process metrics have the names that every exporter gives them.
pub const PREFIX: &str = "mongomux";

/// From a point read in memory (100 µs) to a report that runs for a minute; beyond it, how long does not matter.
/// Steps of three keep 26 commands at 12 buckets each.
const COMMAND_BUCKETS: &[f64] = &[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0];
/// Our own share of a command: some 5 µs of work when nothing is wrong; what reaches milliseconds is a fault to look
/// for.
const OVERHEAD_BUCKETS: &[f64] =
    &[0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.0001, 0.000_25, 0.0005, 0.001, 0.005, 0.025, 0.1, 1.0];
/// Waits: the defaults end at 5 s for a connection and 15 s for a server, so 20 s for both.
const WAIT_BUCKETS: &[f64] =
    &[0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0];
/// Loopback without TLS takes a millisecond, another continent with SCRAM half a second; the default timeout is 10 s.
const CONNECT_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Servers end transactions after 60 s and idle cursors after 600 s.
const PIN_BUCKETS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];

/// One metric for each value of the label `L`: `by[label]`.
pub struct By<L, M> {
    each: Box<[M]>,
    label: PhantomData<L>,
}

impl<L: Label, M> By<L, M> {
    fn each(make: impl FnMut(&'static str) -> M) -> Self {
        Self { each: L::ALL.iter().map(|label| label.as_str()).map(make).collect(), label: PhantomData }
    }
}

impl<L: Label, M> Index<L> for By<L, M> {
    type Output = M;

    fn index(&self, label: L) -> &M {
        &self.each[label.index()]
    }
}

/// One metric for each pair of label values: `by[(a, b)]`.
pub struct ByPair<A, B, M>(By<A, By<B, M>>);

impl<A: Label, B: Label, M> Index<(A, B)> for ByPair<A, B, M> {
    type Output = M;

    fn index(&self, (a, b): (A, B)) -> &M {
        &self.0[a][b]
    }
}

/// Everything that is counted. What the help texts in [`Metrics::new`] say is not repeated here.
#[expect(missing_docs, reason = "each field is described by the help text of its metric")]
pub struct Metrics {
    registry: Registry,
    servers: Arc<ServerTable>,

    /// Whose clients make all that work: shown by name, never as a label.
    pub applications: Applications,
    /// The last things that happened.
    pub events: Arc<Events>,
    pub client_connections: By<ClientState, IntGauge>,
    pub client_connections_surplus: IntGauge,
    pub client_connections_opened: IntCounter,
    pub client_connections_closed: By<ClientClosed, IntCounter>,
    pub log_ins: ByPair<LogInMechanism, LogInOutcome, IntCounter>,
    pub upstream_connect_seconds: Histogram,
    pub wait_queue_seconds: Histogram,
    pub wait_queue_oldest_seconds: Gauge,
    wait_queue_bytes: IntGaugeVec,
    pub shed: By<ShedReason, IntCounter>,
    pub refused: By<RefusedReason, IntCounter>,
    pub commands: ByPair<CommandLabel, Outcome, IntCounter>,
    pub command_seconds: By<CommandLabel, Histogram>,
    pub upstream_seconds: By<CommandLabel, Histogram>,
    pub overhead_seconds: Histogram,
    pub slow_commands: IntCounter,
    #[cfg(feature = "otel")]
    pub spans: super::otlp::Spans,
    pub retries: By<RetryReason, IntCounter>,
    pub pins: By<PinKind, IntGauge>,
    pub pin_seconds: Histogram,
    pub long_held: By<LongHeldKind, IntGauge>,
    pub transactions_ended: By<TransactionEnd, IntCounter>,
    pub received_bytes: By<Side, IntCounter>,
    pub sent_bytes: By<Side, IntCounter>,
    pub buffered_bytes: IntGauge,
    pub buffered_bytes_max: IntGauge,
    pub tls_certificate_expiry: By<CertificateSide, IntGauge>,
    config_reload_success: IntGauge,
    config_reload_timestamp_seconds: Gauge,
}

impl Metrics {
    /// All metrics at 0, for one cluster: there the series of a server have no other label than their contract says.
    pub fn new() -> Arc<Self> {
        Self::with_servers(false)
    }

    /// All metrics at 0, for several clusters: the series of a server have the cluster as a label as well, since two may have
    /// the same server, and each sees it with its own eyes.
    pub fn by_cluster() -> Arc<Self> {
        Self::with_servers(true)
    }

    fn with_servers(by_cluster: bool) -> Arc<Self> {
        let registry = Registry::new();
        let table = Table(&registry);
        registry.register(Box::new(ProcessCollector::for_self())).expect("nobody else has registered it");
        let version = opts("build_info", "1, with the version of this program as its label.");
        table.add(IntGauge::with_opts(version.const_label("version", env!("CARGO_PKG_VERSION")))).set(1);

        let waiting = opts("wait_queue_bytes", "Requests of commands that wait, of all servers of a cluster.");
        let clusters: &[&str] = if by_cluster { &["cluster"] } else { &[] };
        let wait_queue_bytes = table.add(IntGaugeVec::new(waiting, clusters));
        if !by_cluster {
            // The only one is there from the start on.
            wait_queue_bytes.with_label_values(clusters).set(0);
        }
        let events = Arc::<Events>::default();
        Arc::new(Self {
            applications: Applications::default(),
            wait_queue_bytes,
            servers: Arc::new(ServerTable::new(&table, by_cluster, events.clone())),
            events,
            client_connections: table.gauges("client_connections", "Client sockets that are open."),
            client_connections_surplus: table.gauge(
                "client_connections_surplus",
                "Client sockets beyond max_clients, whose commands are answered that there is no room.",
            ),
            client_connections_opened: table.counter("client_connections_opened_total", "Client sockets accepted."),
            client_connections_closed: table.counters("client_connections_closed_total", "Client sockets closed."),
            log_ins: table.counter_pairs("logins_total", "Log-ins of clients, by how they ended."),
            upstream_connect_seconds: table.histogram(
                "upstream_connect_seconds",
                "Time to establish an upstream connection: TCP, TLS, hello and authentication.",
                CONNECT_BUCKETS,
            ),
            wait_queue_seconds: table.histogram(
                "wait_queue_seconds",
                "Time that commands waited for a connection, or for a server to have one of.",
                WAIT_BUCKETS,
            ),
            wait_queue_oldest_seconds: table
                .float_gauge("wait_queue_oldest_seconds", "Longest wait so far of a command that waits, whatever for."),
            shed: table.counters("shed_total", "Commands refused for lack of room."),
            refused: table.counters("refused_total", "Commands refused by a rule, whoever sent them."),
            commands: table.counter_pairs("commands_total", "Commands, by how they ended."),
            command_seconds: table.histograms(
                "command_seconds",
                "Time from a whole request to the last byte of its reply, as its client saw it.",
                COMMAND_BUCKETS,
            ),
            upstream_seconds: table.histograms(
                "upstream_seconds",
                "Time from sending a request upstream to the last byte of the reply.",
                COMMAND_BUCKETS,
            ),
            #[cfg(feature = "otel")]
            spans: super::otlp::Spans::new(table.counter(
                "spans_dropped_total",
                "Spans that were not exported, as there was no room or nobody took them.",
            )),
            slow_commands: table.counter("slow_commands_total", "Commands that took longer than slow_command_ms."),
            overhead_seconds: table.histogram(
                "overhead_seconds",
                "Time of answered commands beside waiting and upstream; with what slow clients take to read the reply.",
                OVERHEAD_BUCKETS,
            ),
            retries: table.counters("retries_total", "Commands that the proxy sent again."),
            pins: table.gauges("pins", "Cursors and transactions that are bound to a server."),
            pin_seconds: table.histogram(
                "pin_seconds",
                "Time for which cursors and transactions were bound.",
                PIN_BUCKETS,
            ),
            long_held: table.gauges("long_held", "What has been held for longer than long_held_ms."),
            transactions_ended: table.counters("transactions_ended_total", "Transactions that the proxy has aborted."),
            received_bytes: table.counters("received_bytes_total", "Bytes read from sockets."),
            sent_bytes: table.counters("sent_bytes_total", "Bytes written to sockets."),
            buffered_bytes: table.gauge("buffered_bytes", "Memory that requests and replies take now."),
            buffered_bytes_max: table.gauge("buffered_bytes_max", "The bound of that memory: memory_limit_bytes."),
            tls_certificate_expiry: table.gauges(
                "tls_certificate_expiry_timestamp_seconds",
                "Unix time at which the first of our certificates of that side expires; 0 without one.",
            ),
            config_reload_success: table
                .gauge("config_reload_success", "1 if the last reading of each file of the configuration succeeded."),
            config_reload_timestamp_seconds: table.float_gauge(
                "config_reload_timestamp_seconds",
                "Unix time at which the configuration in force was loaded.",
            ),
            registry,
        })
    }

    /// The metrics of the server labelled `server` (`host:port`) of a cluster, at 0 if it is new. They leave `/metrics` with
    /// the last holder, so the topology keeps them as long as it knows the server.
    pub fn server(&self, cluster: &str, server: &str) -> Arc<ServerMetrics> {
        let label = self.servers.by_cluster.then(|| cluster.to_owned());
        self.servers.metrics_of(Key { cluster: label, server: server.to_owned() }, cluster)
    }

    /// Notes how large the requests of a cluster's waiting commands are, all together.
    pub fn requests_wait(&self, cluster: &str, bytes: i64) {
        let labels = self.servers.by_cluster.then_some(cluster);
        self.wait_queue_bytes.with_label_values(labels.as_slice()).set(bytes);
    }

    /// Notes that the configuration was loaded, or that it could not be.
    pub fn config_loaded(&self, success: bool, now: SystemTime) {
        self.config_reload_success.set(i64::from(success));
        if success {
            let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.config_reload_timestamp_seconds.set(since.as_secs_f64());
        }
    }

    /// All of them, for what has a format of its own.
    #[cfg(feature = "otel")]
    pub fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.registry.gather()
    }

    /// The body of `/metrics`, in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            // A scrape with a hole says more than none. Writing to a String cannot fail, so neither can this.
            writeln!(text, "# {error}").unwrap_or_default();
        }
        text
    }
}

/// The metrics of one server, in the order of the table in `ServerTable::new`.
#[expect(missing_docs, reason = "each field is described by the help text of its metric")]
pub struct ServerMetrics {
    key: Key,
    cluster: Box<str>,
    table: Arc<ServerTable>,

    pub connections: By<ConnectionState, IntGauge>,
    pub connections_max: IntGauge,
    pub in_flight_limit: IntGauge,
    pub connections_created: IntCounter,
    pub connections_closed: By<ConnectionClosed, IntCounter>,
    pub own_connections: IntGauge,
    pub own_connections_created: IntCounter,
    pub wait_queue_length: By<Lane, IntGauge>,
    pub degraded_reads: IntCounter,
    breaker_state: IntGauge,
    breaker_transitions: By<BreakerLabel, IntCounter>,
    pub breaker_trips: By<TripLabel, IntCounter>,
    pub retries_denied: IntCounter,
    pub server_connections: IntGauge,
    pub server_connections_limit: IntGauge,
    pub events: By<ServerEvent, IntCounter>,
    state: By<ServerState, IntGauge>,
}

impl ServerMetrics {
    /// Notes that a breaker of the server changed to `to`, and that the worst of them is `worst` now.
    pub fn breaker_changed(&self, to: BreakerLabel, worst: BreakerLabel) {
        self.breaker_state.set(i64::try_from(worst.index()).unwrap_or(i64::MAX));
        self.breaker_transitions[to].inc();
    }

    /// Notes that so many connections were closed for that reason; those that were replaced are worth an event.
    pub fn closed(&self, reason: ConnectionClosed, count: u32) {
        self.connections_closed[reason].inc_by(count.into());
        if reason == ConnectionClosed::Lifetime && count > 0 {
            self.happened(EventKind::Refresh, "a connection was too old, or ordered to be replaced, and was closed");
        }
    }

    /// Remembers what has happened to the server.
    pub fn happened(&self, kind: EventKind, text: &str) {
        self.table.log.record(kind, Some(&self.cluster), Some(&self.key.server), text);
    }

    /// Notes what the server is now: 1 for `now`, 0 for every other state.
    pub fn state_changed(&self, now: ServerState) {
        for &state in ServerState::ALL {
            self.state[state].set(i64::from(state == now));
        }
    }
}

impl Drop for ServerMetrics {
    fn drop(&mut self) {
        self.table.forget(&self.key);
    }
}

/// Whose metrics they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Where there are several.
    cluster: Option<String>,
    server: String,
}

impl Key {
    /// The values of the labels, `more` last.
    fn values<'a>(&'a self, more: Option<&'a str>) -> Vec<&'a str> {
        self.cluster.as_deref().into_iter().chain([self.server.as_str()]).chain(more).collect()
    }
}

/// The metrics that exist once per server, and who has them.
struct ServerTable {
    by_cluster: bool,
    connections: IntGaugeVec,
    connections_max: IntGaugeVec,
    in_flight_limit: IntGaugeVec,
    connections_created: IntCounterVec,
    connections_closed: IntCounterVec,
    own_connections: IntGaugeVec,
    own_connections_created: IntCounterVec,
    wait_queue_length: IntGaugeVec,
    degraded_reads: IntCounterVec,
    breaker_state: IntGaugeVec,
    breaker_transitions: IntCounterVec,
    breaker_trips: IntCounterVec,
    retries_denied: IntCounterVec,
    server_connections: IntGaugeVec,
    server_connections_limit: IntGaugeVec,
    events: IntCounterVec,
    state: IntGaugeVec,
    /// Beside the numbers.
    log: Arc<Events>,
    /// A server may come back before everybody has let go of it.
    known: Mutex<BTreeMap<Key, Weak<ServerMetrics>>>,
}

impl ServerTable {
    fn new(table: &Table<'_>, by_cluster: bool, log: Arc<Events>) -> Self {
        let first = by_cluster.then_some("cluster");
        let all = |labels: &[&'static str]| -> Vec<&str> { first.into_iter().chain(labels.iter().copied()).collect() };
        let gauges = |name, help, labels: &[&'static str]| table.add(IntGaugeVec::new(opts(name, help), &all(labels)));
        let counters =
            |name, help, labels: &[&'static str]| table.add(IntCounterVec::new(opts(name, help), &all(labels)));
        Self {
            by_cluster,
            connections: gauges(
                "upstream_connections",
                "Upstream connections, by state.",
                &["server", ConnectionState::NAME],
            ),
            connections_max: gauges("upstream_connections_max", "The bound of upstream connections.", &["server"]),
            in_flight_limit: gauges(
                "in_flight_limit",
                "How many commands the server is given at once; learnt from it where adaptive_limit is on.",
                &["server"],
            ),
            connections_created: counters(
                "upstream_connections_created_total",
                "Upstream connections that were begun to be established.",
                &["server"],
            ),
            connections_closed: counters(
                "upstream_connections_closed_total",
                "Upstream connections closed.",
                &["server", ConnectionClosed::NAME],
            ),
            own_connections: gauges(
                "own_connections",
                "Connections of clients whose commands are only observed, one each: no bound holds for them.",
                &["server"],
            ),
            own_connections_created: counters(
                "own_connections_created_total",
                "Connections that were established for one client only.",
                &["server"],
            ),
            wait_queue_length: gauges(
                "wait_queue_length",
                "Commands that wait for a connection.",
                &["server", Lane::NAME],
            ),
            degraded_reads: counters(
                "degraded_reads_total",
                "Reads of the primary that were sent to this secondary, as there was no primary.",
                &["server"],
            ),
            breaker_state: gauges("breaker_state", "0: closed, 1: half-open, 2: open.", &["server"]),
            breaker_transitions: counters(
                "breaker_transitions_total",
                "Changes of a breaker, by its new state.",
                &["server", BreakerLabel::NAME],
            ),
            breaker_trips: counters(
                "breaker_trips_total",
                "Times that a breaker opened, by the reason.",
                &["server", TripLabel::NAME],
            ),
            retries_denied: counters(
                "retries_denied_total",
                "Commands that the proxy would have sent again, had the retry budget not been used up.",
                &["server"],
            ),
            server_connections: gauges(
                "server_connections",
                "Connections that are open to the server, whoever's they are, as it says itself; 0 while that is unknown.",
                &["server"],
            ),
            server_connections_limit: gauges(
                "server_connections_limit",
                "As many connections may be open to the server, as it says itself; 0 while that is unknown.",
                &["server"],
            ),
            events: counters(
                "server_events_total",
                "What happened to the server: connected, error, disconnected, reconnected.",
                &["server", ServerEvent::NAME],
            ),
            state: gauges(
                "server_state",
                "1 for what the server is now, 0 for every other state.",
                &["server", ServerState::NAME],
            ),
            log,
            known: Mutex::new(BTreeMap::new()),
        }
    }

    fn metrics_of(self: &Arc<Self>, key: Key, cluster: &str) -> Arc<ServerMetrics> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = known.get(&key).and_then(Weak::upgrade) {
            return metrics;
        }
        let (only, with) = (key.values(None), |more| key.values(Some(more)));
        let metrics = Arc::new(ServerMetrics {
            connections: By::each(|state| self.connections.with_label_values(&with(state))),
            connections_max: self.connections_max.with_label_values(&only),
            in_flight_limit: self.in_flight_limit.with_label_values(&only),
            connections_created: self.connections_created.with_label_values(&only),
            connections_closed: By::each(|reason| self.connections_closed.with_label_values(&with(reason))),
            own_connections: self.own_connections.with_label_values(&only),
            own_connections_created: self.own_connections_created.with_label_values(&only),
            wait_queue_length: By::each(|lane| self.wait_queue_length.with_label_values(&with(lane))),
            degraded_reads: self.degraded_reads.with_label_values(&only),
            breaker_state: self.breaker_state.with_label_values(&only),
            breaker_transitions: By::each(|to| self.breaker_transitions.with_label_values(&with(to))),
            breaker_trips: By::each(|reason| self.breaker_trips.with_label_values(&with(reason))),
            retries_denied: self.retries_denied.with_label_values(&only),
            server_connections: self.server_connections.with_label_values(&only),
            server_connections_limit: self.server_connections_limit.with_label_values(&only),
            events: By::each(|event| self.events.with_label_values(&with(event))),
            state: By::each(|state| self.state.with_label_values(&with(state))),
            key: key.clone(),
            cluster: cluster.into(),
            table: Arc::clone(self),
        });
        known.insert(key, Arc::downgrade(&metrics));
        metrics
    }

    /// Removes what the last holder left behind, unless the server has come back in the meantime: then the new holder
    /// counts on in the same metrics.
    fn forget(&self, key: &Key) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(key).is_some_and(|metrics| metrics.strong_count() > 0) {
            return;
        }
        known.remove(key);
        remove::<ConnectionState, _>(&self.connections, key);
        remove_one(&self.connections_max, &key.values(None));
        remove_one(&self.in_flight_limit, &key.values(None));
        remove_one(&self.connections_created, &key.values(None));
        remove::<ConnectionClosed, _>(&self.connections_closed, key);
        remove_one(&self.own_connections, &key.values(None));
        remove_one(&self.own_connections_created, &key.values(None));
        remove::<Lane, _>(&self.wait_queue_length, key);
        remove_one(&self.degraded_reads, &key.values(None));
        remove_one(&self.breaker_state, &key.values(None));
        remove::<BreakerLabel, _>(&self.breaker_transitions, key);
        remove::<TripLabel, _>(&self.breaker_trips, key);
        remove_one(&self.retries_denied, &key.values(None));
        remove_one(&self.server_connections, &key.values(None));
        remove_one(&self.server_connections_limit, &key.values(None));
        remove::<ServerEvent, _>(&self.events, key);
        remove::<ServerState, _>(&self.state, key);
    }
}

fn remove<L: Label, T: MetricVecBuilder>(metrics: &MetricVec<T>, key: &Key) {
    for label in L::ALL {
        remove_one(metrics, &key.values(Some(label.as_str())));
    }
}

fn remove_one<T: MetricVecBuilder>(metrics: &MetricVec<T>, values: &[&str]) {
    // The only error is that it is not there, which is what we want.
    metrics.remove_label_values(values).unwrap_or_default();
}

/// Makes metrics and puts them into the registry.
struct Table<'a>(&'a Registry);

impl Table<'_> {
    fn add<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect("names and labels in this file are valid");
        self.0.register(Box::new(metric.clone())).expect("names in this file differ");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(opts(name, help)))
    }

    fn counters<L: Label>(&self, name: &str, help: &str) -> By<L, IntCounter> {
        let all = self.add(IntCounterVec::new(opts(name, help), &[L::NAME]));
        By::each(|value| all.with_label_values(&[value]))
    }

    fn counter_pairs<A: Label, B: Label>(&self, name: &str, help: &str) -> ByPair<A, B, IntCounter> {
        let all = self.add(IntCounterVec::new(opts(name, help), &[A::NAME, B::NAME]));
        ByPair(By::each(|a| By::each(|b| all.with_label_values(&[a, b]))))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(opts(name, help)))
    }

    fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::with_opts(opts(name, help)))
    }

    fn gauges<L: Label>(&self, name: &str, help: &str) -> By<L, IntGauge> {
        let all = self.add(IntGaugeVec::new(opts(name, help), &[L::NAME]));
        By::each(|value| all.with_label_values(&[value]))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(histogram_opts(name, help, buckets)))
    }

    fn histograms<L: Label>(&self, name: &str, help: &str, buckets: &[f64]) -> By<L, Histogram> {
        let all = self.add(HistogramVec::new(histogram_opts(name, help, buckets), &[L::NAME]));
        By::each(|value| all.with_label_values(&[value]))
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(PREFIX)
}

fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).namespace(PREFIX).buckets(buckets.to_vec())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use prometheus::proto::MetricType;

    use super::*;

    /// Name, type, and label values of every metric of the contract; the labels of one metric vary independently.
    fn contract() -> Vec<(&'static str, MetricType, Vec<Vec<String>>)> {
        fn all<L: Label>() -> Vec<String> {
            L::ALL.iter().map(|label| format!("{}=\"{}\"", L::NAME, label.as_str())).collect()
        }
        let server = || vec!["server=\"db:27017\"".to_owned()];
        use MetricType::{COUNTER, GAUGE, HISTOGRAM};
        vec![
            ("client_connections", GAUGE, vec![all::<ClientState>()]),
            ("client_connections_surplus", GAUGE, vec![]),
            ("client_connections_opened_total", COUNTER, vec![]),
            ("client_connections_closed_total", COUNTER, vec![all::<ClientClosed>()]),
            ("logins_total", COUNTER, vec![all::<LogInMechanism>(), all::<LogInOutcome>()]),
            ("upstream_connections", GAUGE, vec![server(), all::<ConnectionState>()]),
            ("upstream_connections_max", GAUGE, vec![server()]),
            ("in_flight_limit", GAUGE, vec![server()]),
            ("upstream_connections_created_total", COUNTER, vec![server()]),
            ("upstream_connections_closed_total", COUNTER, vec![all::<ConnectionClosed>(), server()]),
            ("upstream_connect_seconds", HISTOGRAM, vec![]),
            ("own_connections", GAUGE, vec![server()]),
            ("own_connections_created_total", COUNTER, vec![server()]),
            ("wait_queue_length", GAUGE, vec![all::<Lane>(), server()]),
            ("wait_queue_seconds", HISTOGRAM, vec![]),
            ("wait_queue_oldest_seconds", GAUGE, vec![]),
            ("wait_queue_bytes", GAUGE, vec![]),
            ("shed_total", COUNTER, vec![all::<ShedReason>()]),
            ("refused_total", COUNTER, vec![all::<RefusedReason>()]),
            ("commands_total", COUNTER, vec![all::<CommandLabel>(), all::<Outcome>()]),
            ("command_seconds", HISTOGRAM, vec![all::<CommandLabel>()]),
            ("upstream_seconds", HISTOGRAM, vec![all::<CommandLabel>()]),
            ("overhead_seconds", HISTOGRAM, vec![]),
            ("slow_commands_total", COUNTER, vec![]),
            #[cfg(feature = "otel")]
            ("spans_dropped_total", COUNTER, vec![]),
            ("degraded_reads_total", COUNTER, vec![server()]),
            ("breaker_state", GAUGE, vec![server()]),
            ("breaker_transitions_total", COUNTER, vec![server(), all::<BreakerLabel>()]),
            ("breaker_trips_total", COUNTER, vec![all::<TripLabel>(), server()]),
            ("retries_total", COUNTER, vec![all::<RetryReason>()]),
            ("retries_denied_total", COUNTER, vec![server()]),
            ("server_connections", GAUGE, vec![server()]),
            ("server_connections_limit", GAUGE, vec![server()]),
            ("pins", GAUGE, vec![all::<PinKind>()]),
            ("pin_seconds", HISTOGRAM, vec![]),
            ("long_held", GAUGE, vec![all::<LongHeldKind>()]),
            ("transactions_ended_total", COUNTER, vec![all::<TransactionEnd>()]),
            ("received_bytes_total", COUNTER, vec![all::<Side>()]),
            ("sent_bytes_total", COUNTER, vec![all::<Side>()]),
            ("buffered_bytes", GAUGE, vec![]),
            ("buffered_bytes_max", GAUGE, vec![]),
            ("server_events_total", COUNTER, vec![all::<ServerEvent>(), server()]),
            ("server_state", GAUGE, vec![server(), all::<ServerState>()]),
            ("tls_certificate_expiry_timestamp_seconds", GAUGE, vec![all::<CertificateSide>()]),
            ("config_reload_success", GAUGE, vec![]),
            ("config_reload_timestamp_seconds", GAUGE, vec![]),
        ]
    }

    /// `{a="x",b="y"}` for every combination; Prometheus sorts labels by name, and so do the lists of the contract.
    fn combinations(labels: &[Vec<String>]) -> Vec<String> {
        let sets = labels.iter().fold(vec![String::new()], |sets, values| {
            let with = |set: &String, value: &String| match set.as_str() {
                "" => value.clone(),
                set => format!("{set},{value}"),
            };
            sets.iter().flat_map(|set| values.iter().map(move |value| with(set, value))).collect()
        });
        sets.into_iter().map(|set| if set.is_empty() { set } else { format!("{{{set}}}") }).collect()
    }

    #[test]
    fn the_first_scrape_has_every_metric_with_every_label_at_zero() {
        let metrics = Metrics::new();
        let _server = metrics.server("default", "db:27017");
        let text = metrics.render();
        let lines: BTreeSet<&str> = text.lines().collect();
        for (name, kind, labels) in contract() {
            let suffix = if kind == MetricType::HISTOGRAM { "_count" } else { "" };
            for set in combinations(&labels) {
                let line = format!("mongomux_{name}{suffix}{set} 0");
                assert!(lines.contains(line.as_str()), "missing: {line}");
            }
        }
        assert!(lines.contains(concat!("mongomux_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")));
        assert!(text.contains("\nprocess_resident_memory_bytes ") && text.contains("\nprocess_open_fds "));
    }

    #[test]
    fn there_is_nothing_beside_the_contract() {
        let metrics = Metrics::new();
        let _server = metrics.server("default", "db:27017");
        let mut expected: BTreeSet<String> = contract().iter().map(|(name, ..)| format!("mongomux_{name}")).collect();
        expected.insert("mongomux_build_info".to_owned());
        let families = metrics.registry.gather();
        let ours = families.iter().map(|family| family.name()).filter(|name| name.starts_with("mongomux_"));
        assert_eq!(ours.map(str::to_owned).collect::<BTreeSet<_>>(), expected);
        let kinds: BTreeMap<&str, MetricType> =
            families.iter().map(|family| (family.name(), family.get_field_type())).collect();
        for (name, kind, labels) in contract() {
            assert_eq!(kinds[format!("mongomux_{name}").as_str()], kind, "{name}");
            let samples = families.iter().find(|family| family.name() == format!("mongomux_{name}")).unwrap();
            assert_eq!(samples.get_metric().len(), combinations(&labels).len(), "{name}");
        }
    }

    #[test]
    fn names_follow_prometheus_conventions() {
        let metrics = Metrics::new();
        let _server = metrics.server("default", "db:27017");
        for family in metrics.registry.gather() {
            let name = family.name();
            let kind = family.get_field_type();
            assert!(name.starts_with("mongomux_") || name.starts_with("process_"), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), kind == MetricType::COUNTER, "{name}");
            assert!(kind != MetricType::HISTOGRAM || name.ends_with("_seconds"), "{name}");
            for part in ["_ms", "_millis", "_micros", "_kb", "_mb", "_percent", "_count", "_sum", "_bucket", "_info_"] {
                assert!(!name.ends_with(part), "{name} ends in {part}");
            }
            assert!(family.help().ends_with('.') && family.help().len() > 10, "{name}: {}", family.help());
        }
    }

    #[test]
    fn buckets_ascend() {
        for buckets in [COMMAND_BUCKETS, OVERHEAD_BUCKETS, WAIT_BUCKETS, CONNECT_BUCKETS, PIN_BUCKETS] {
            assert!(buckets.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn what_is_counted_shows_under_its_own_label_only() {
        let metrics = Metrics::new();
        metrics.commands[(CommandLabel::Find, Outcome::Refused)].inc();
        metrics.shed[ShedReason::QueueFull].inc_by(3);
        metrics.command_seconds[CommandLabel::Find].observe(Duration::from_millis(2).as_secs_f64());
        metrics.config_loaded(true, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        metrics.config_loaded(false, UNIX_EPOCH);
        let text = metrics.render();
        for line in [
            "mongomux_commands_total{command=\"find\",outcome=\"refused\"} 1",
            "mongomux_commands_total{command=\"find\",outcome=\"completed\"} 0",
            "mongomux_commands_total{command=\"insert\",outcome=\"refused\"} 0",
            "mongomux_shed_total{reason=\"queue_full\"} 3",
            "mongomux_command_seconds_bucket{command=\"find\",le=\"0.001\"} 0",
            "mongomux_command_seconds_bucket{command=\"find\",le=\"0.003\"} 1",
            "mongomux_config_reload_success 0",
            "mongomux_config_reload_timestamp_seconds 1700000000",
        ] {
            assert!(text.lines().any(|found| found == line), "missing: {line}");
        }
    }

    #[test]
    fn a_server_comes_with_zeros_and_leaves_with_its_last_holder() {
        let metrics = Metrics::new();
        assert!(!metrics.render().contains("server="));
        let first = metrics.server("default", "db:27017");
        let second = metrics.server("default", "db:27017");
        first.connections_created.inc();
        assert_eq!(second.connections_created.get(), 1, "both count in the same place");
        drop(first);
        assert!(metrics.render().contains("mongomux_upstream_connections_created_total{server=\"db:27017\"} 1"));
        drop(second);
        assert!(!metrics.render().contains("server="), "nothing is left behind");
        let again = metrics.server("default", "db:27017");
        assert_eq!(again.connections_created.get(), 0);
    }

    #[test]
    fn several_clusters_count_the_same_server_each_for_itself() {
        let metrics = Metrics::by_cluster();
        let (users, logs) = (metrics.server("users", "db:27017"), metrics.server("logs", "db:27017"));
        users.connections_created.inc();
        logs.breaker_changed(BreakerLabel::Open, BreakerLabel::Open);
        users.state_changed(ServerState::Primary);
        let text = metrics.render();
        for line in [
            "mongomux_upstream_connections_created_total{cluster=\"users\",server=\"db:27017\"} 1",
            "mongomux_upstream_connections_created_total{cluster=\"logs\",server=\"db:27017\"} 0",
            "mongomux_breaker_state{cluster=\"users\",server=\"db:27017\"} 0",
            "mongomux_breaker_state{cluster=\"logs\",server=\"db:27017\"} 2",
            "mongomux_server_state{cluster=\"logs\",server=\"db:27017\",state=\"primary\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "missing: {line}");
        }
        drop(users);
        assert!(!metrics.render().contains("cluster=\"users\""), "each leaves by itself");
        metrics.requests_wait("logs", 7);
        assert!(metrics.render().contains("mongomux_wait_queue_bytes{cluster=\"logs\"} 7"));
        assert!(metrics.render().contains("cluster=\"logs\""));
    }

    #[test]
    fn a_server_that_comes_back_while_its_old_metrics_are_dropped_stays() {
        let metrics = Metrics::new();
        let server = metrics.server("default", "db:27017");
        // The late half of a drop that lost the race against a new holder.
        metrics.servers.forget(&Key { cluster: None, server: "db:27017".to_owned() });
        server.connections_max.set(10);
        assert!(metrics.render().contains("mongomux_upstream_connections_max{server=\"db:27017\"} 10"));
    }

    #[test]
    fn states_are_shown_as_one_of_a_set_and_the_breaker_as_a_number() {
        let metrics = Metrics::new();
        let server = metrics.server("default", "db:27017");
        server.state_changed(ServerState::Primary);
        server.state_changed(ServerState::Secondary);
        server.breaker_changed(BreakerLabel::HalfOpen, BreakerLabel::Open);
        let text = metrics.render();
        for line in [
            "mongomux_server_state{server=\"db:27017\",state=\"primary\"} 0",
            "mongomux_server_state{server=\"db:27017\",state=\"secondary\"} 1",
            "mongomux_breaker_state{server=\"db:27017\"} 2",
            "mongomux_breaker_transitions_total{server=\"db:27017\",to=\"half_open\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "missing: {line}");
        }
    }
}
