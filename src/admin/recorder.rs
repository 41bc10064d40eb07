//! Takes a point of the [`series`](super::series) at each step, from what is counted anyway: no command pays for it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::series::{ClusterPoint, History, Load, ProxyPoint, Quantiles, Series};
use crate::config::Address;
use crate::tasks::Tasks;
use crate::telemetry::labels::{ClientState, CommandLabel, Label as _, Outcome};
use crate::telemetry::{Buckets, Metrics};
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, Server};

/// What has grown, as it was at the point before.
#[derive(Debug, Clone)]
struct Totals {
    at: Instant,
    commands: u64,
    failed: u64,
    refused: u64,
    command: Buckets,
    wait: Buckets,
    overhead: Buckets,
}

impl Totals {
    fn of(metrics: &Metrics, at: Instant) -> Self {
        let count = |outcome| CommandLabel::ALL.iter().map(|label| metrics.commands[(*label, outcome)].get()).sum();
        // That of a change stream takes as long as nothing changes.
        let timed = CommandLabel::ALL.iter().filter(|label| **label != CommandLabel::GetMore);
        Self {
            at,
            commands: Outcome::ALL.iter().map(|outcome| -> u64 { count(*outcome) }).sum(),
            failed: count(Outcome::Failed),
            refused: count(Outcome::Refused),
            command: Buckets::of(timed.map(|label| &metrics.command_seconds[*label])),
            wait: Buckets::of([&metrics.wait_queue_seconds]),
            overhead: Buckets::of([&metrics.overhead_seconds]),
        }
    }
}

/// The series, and what the next point is compared with.
#[derive(Debug, Default)]
struct Recording {
    series: Series,
    before: Option<Totals>,
    /// Commands that have ended on each server so far, by cluster.
    ended: Vec<BTreeMap<Address, u64>>,
}

/// The series of all clusters.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Recording>);

impl Recorder {
    /// Takes a point. For one caller only.
    pub fn record(&self, clusters: &[Arc<Cluster>], metrics: &Metrics, now: Instant) {
        let totals = Totals::of(metrics, now);
        let mut recording = lock(&self.0);
        let Recording { series, before, ended } = &mut *recording;
        let since = before.as_ref().map_or(Duration::ZERO, |before| now.saturating_duration_since(before.at));
        ended.resize_with(clusters.len(), BTreeMap::new);
        let points = clusters.iter().zip(ended).map(|(cluster, ended)| cluster_point(cluster, ended, since, now));
        let points = points.collect();
        series.push(now, proxy_point(metrics, before.as_ref(), &totals), points);
        *before = Some(totals);
    }

    /// All there is, as it is told.
    pub fn told(&self, clusters: &[Arc<Cluster>], now: Instant) -> History {
        let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        lock(&self.0).series.told(&names, now)
    }
}

fn proxy_point(metrics: &Metrics, before: Option<&Totals>, totals: &Totals) -> ProxyPoint {
    let clients: i64 = ClientState::ALL.iter().map(|state| metrics.client_connections[*state].get()).sum();
    let clients = u32::try_from(clients).unwrap_or_default();
    let Some(before) = before else { return ProxyPoint { clients, ..ProxyPoint::default() } };
    let since = totals.at.saturating_duration_since(before.at);
    ProxyPoint {
        clients,
        commands: rate(before.commands, totals.commands, since),
        failed: rate(before.failed, totals.failed, since),
        refused: rate(before.refused, totals.refused, since),
        command: quantiles(&totals.command.since(&before.command)),
        wait: quantiles(&totals.wait.since(&before.wait)),
        overhead: quantiles(&totals.overhead.since(&before.overhead)),
    }
}

fn cluster_point(cluster: &Cluster, ended: &mut BTreeMap<Address, u64>, since: Duration, now: Instant) -> ClusterPoint {
    let mut before = std::mem::take(ended);
    let admission = &cluster.admission;
    let (waiting, oldest_ms) = (narrow(admission.waiting()), age_ms(admission.oldest(), now));
    let mut sum = Load { waiting, oldest_ms, ..Load::default() };
    let servers = cluster.servers().into_iter().map(|server| {
        let address = (*server.address).clone();
        let total = server.pool.usage().totals().ended + server.pool.own_commands();
        let rate = before.remove(&address).and_then(|before| rate(before, total, since));
        let load = Load { rate, ..load(&server, now) };
        ended.insert(address.clone(), total);
        sum.oldest_ms = sum.oldest_ms.max(load.oldest_ms);
        sum.active += load.active;
        sum.idle += load.idle;
        sum.pending += load.pending;
        sum.rate = load.rate.map(|rate| rate + sum.rate.unwrap_or_default()).or(sum.rate);
        (address, load)
    });
    let servers = servers.collect();
    ClusterPoint { clients: narrow(cluster.clients.load(Ordering::Relaxed)), load: sum, servers }
}

fn load(server: &Server, now: Instant) -> Load {
    let pool = server.pool.snapshot();
    Load {
        waiting: narrow(pool.waiting.iter().sum()),
        oldest_ms: age_ms(pool.oldest, now),
        active: pool.counts.in_use,
        idle: pool.counts.available,
        pending: pool.counts.pending,
        rate: None,
    }
}

fn age_ms(since: Option<Instant>, now: Instant) -> u32 {
    let age = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
    u32::try_from(age.as_millis()).unwrap_or(u32::MAX)
}

/// A second; `None` for a time without length, and where it is less than before: another pool, whose server had left.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn rate(before: u64, now: u64, since: Duration) -> Option<f32> {
    let grown = now.checked_sub(before)?;
    (!since.is_zero()).then(|| figure(grown as f64 / since.as_secs_f64()))
}

fn quantiles(buckets: &Buckets) -> Quantiles {
    [0.5, 0.95, 0.99].map(|q| buckets.quantile(q).map(|seconds| figure(seconds * 1_000.0)))
}

/// With as many digits as somebody reads: what is told is shorter by half.
#[expect(clippy::cast_possible_truncation, reason = "a figure for people")]
fn figure(value: f64) -> f32 {
    ((value * 1_000.0).round() / 1_000.0) as f32
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Takes points until the tasks are cancelled, the first one now.
pub fn keep(
    recorder: Arc<Recorder>,
    clusters: Vec<Arc<Cluster>>,
    metrics: Arc<Metrics>,
    step: Duration,
    tasks: &Tasks,
) {
    let cancelled = tasks.clone();
    tasks.spawn("record series", async move {
        let mut ticks = tokio::time::interval(step);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Nothing is lost when an arm loses: a tick that is due stays due.
            tokio::select! {
                now = ticks.tick() => recorder.record(&clusters, &metrics, now),
                () = cancelled.cancelled() => return,
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;
    use crate::admission::Lane;
    use crate::telemetry::ApplicationId;
    use crate::upstream::in_use::Work;

    #[tokio::test]
    async fn a_point_tells_of_what_was_since_the_one_before_and_of_what_is() {
        let (fixture, address) = Fixture::standalone().await;
        let (clusters, recorder) = ([fixture.cluster.clone()], Recorder::default());
        let (metrics, server) = (&fixture.metrics, fixture.cluster.servers().remove(0));
        let start = Instant::now();
        metrics.command_seconds[CommandLabel::Find].observe(50.0);
        recorder.record(&clusters, metrics, start);

        let check_out = || server.pool.try_check_out(Lane::Regular, Instant::now()).unwrap().unwrap();
        let (ended, _held) = (check_out(), check_out());
        ended.in_use().begin(Work::command(CommandLabel::Find, ApplicationId::UNNAMED), start);
        drop(ended);
        metrics.client_connections[ClientState::Idle].set(5);
        metrics.client_connections[ClientState::Active].set(2);
        metrics.commands[(CommandLabel::Find, Outcome::Completed)].inc_by(70);
        metrics.commands[(CommandLabel::Insert, Outcome::Failed)].inc_by(20);
        metrics.commands[(CommandLabel::Ping, Outcome::Refused)].inc_by(10);
        metrics.command_seconds[CommandLabel::Find].observe(0.002);
        metrics.command_seconds[CommandLabel::GetMore].observe(9.0);
        recorder.record(&clusters, metrics, start + Duration::from_secs(10));

        let told = recorder.told(&clusters, start + Duration::from_secs(12));
        assert_eq!((told.seconds_ago.clone(), told.clients.clone()), (vec![12, 2], vec![Some(0), Some(7)]));
        assert_eq!(told.commands_per_second, [None, Some(10.0)]);
        assert_eq!((told.failed_per_second[1], told.refused_per_second[1]), (Some(2.0), Some(1.0)));
        let p99 = told.latency.command.p99_ms[1].unwrap();
        assert!((1.0..=3.0).contains(&p99), "neither what was before nor what waits for data: {p99}");
        assert_eq!((told.latency.command.p50_ms[0], told.latency.wait.p50_ms[1]), (None, None));
        let [cluster] = &told.clusters[..] else { panic!("{told:?}") };
        assert_eq!((&*cluster.name, &*cluster.servers[0].address), ("default", &*address));
        for load in [&cluster.load, &cluster.servers[0].load] {
            assert_eq!((&load.active[..], &load.idle[..]), (&[Some(0), Some(1)][..], &[Some(2), Some(1)][..]));
            assert_eq!(load.commands_per_second, [None, Some(0.1)]);
        }
        fixture.end().await;
    }

    #[test]
    fn a_pool_that_began_anew_has_no_rate() {
        let second = Duration::from_secs(1);
        assert_eq!((rate(5, 7, second), rate(5, 3, second), rate(5, 7, Duration::ZERO)), (Some(2.0), None, None));
    }
}
