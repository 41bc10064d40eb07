//! Takes a sample of every pool at a fixed pace, for what is said about the last minutes. It runs whether anybody asks or not:
//! who asks wants to hear of the time before.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::history::{ClientSample, PoolSample, Ring};
use super::trends::Bounds;
use crate::config::{Address, ClusterConfig};
use crate::tasks::Tasks;
use crate::telemetry::labels::{ConnectionClosed, Label as _};
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, Server};

/// The last minutes of one cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterHistory {
    /// The pools of the servers that are there.
    pub servers: BTreeMap<Address, Ring<PoolSample>>,
    /// Its clients.
    pub clients: Ring<ClientSample>,
    /// Commands so far, those of servers that have left included.
    commands: u64,
}

impl ClusterHistory {
    fn push(&mut self, cluster: &Cluster, now: Instant) {
        let mut before = std::mem::take(&mut self.servers);
        for server in cluster.servers() {
            let sample = pool_sample(&cluster.config(), &server, now);
            let mut ring = before.remove(&*server.address).unwrap_or_default();
            let last = ring.iter().last().map_or(0, PoolSample::commands);
            if sample.commands() < last {
                // Another pool: its server had left and is back.
                ring = Ring::default();
            }
            self.commands += sample.commands().saturating_sub(last);
            ring.push(sample);
            self.servers.insert((*server.address).clone(), ring);
        }
        let opened = cluster.clients_opened.load(Ordering::Relaxed);
        self.clients.push(ClientSample { at: now, opened, commands: self.commands });
    }
}

/// How a server's pool may grow.
pub fn bounds(config: &ClusterConfig) -> Bounds {
    Bounds {
        min_pool_size: config.pool.min_pool_size,
        max_pool_size: config.pool.max_pool_size,
        max_in_flight: config.max_in_flight,
        max_upstream_connections: config.max_upstream_connections,
    }
}

fn pool_sample(config: &ClusterConfig, server: &Server, now: Instant) -> PoolSample {
    let (usage, snapshot, metrics) = (server.pool.usage(), server.pool.snapshot(), &server.metrics);
    let mut totals = usage.totals();
    let running = server.pool.uses(now).into_iter().filter(|it| it.work.command.is_some());
    totals.held += running.map(|it| it.age).sum::<Duration>();
    let limits = [config.max_in_flight, config.max_upstream_connections];
    let mut sample = PoolSample {
        at: now,
        totals,
        own_commands: server.pool.own_commands(),
        created: snapshot.created,
        closed: std::array::from_fn(|index| metrics.connections_closed[ConnectionClosed::ALL[index]].get()),
        open: snapshot.counts.available + snapshot.counts.in_use,
        peak: usage.take_peak(),
        limit: limits.into_iter().flatten().fold(snapshot.max_pool_size, u32::min),
        adapted: snapshot.limit,
        holders: Vec::new(),
        held_by_all: Duration::ZERO,
    };
    sample.hold(usage.take_holders());
    sample
}

/// The last minutes of all clusters, in their order.
#[derive(Debug, Default)]
pub struct Histories(Mutex<Vec<ClusterHistory>>);

impl Histories {
    /// Takes one sample of each pool. For one caller only.
    pub fn sample(&self, clusters: &[Arc<Cluster>], now: Instant) {
        let mut histories = lock(&self.0);
        histories.resize_with(clusters.len(), ClusterHistory::default);
        for (history, cluster) in histories.iter_mut().zip(clusters) {
            history.push(cluster, now);
        }
    }

    /// That of one cluster.
    pub fn of(&self, cluster: usize) -> ClusterHistory {
        lock(&self.0).get(cluster).cloned().unwrap_or_default()
    }
}

/// Takes samples until the tasks are cancelled, the first one now.
pub fn keep(histories: Arc<Histories>, clusters: Vec<Arc<Cluster>>, interval: Duration, tasks: &Tasks) {
    let cancelled = tasks.clone();
    tasks.spawn("sample pools", async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Nothing is lost when an arm loses: a tick that is due stays due.
            tokio::select! {
                now = ticks.tick() => histories.sample(&clusters, now),
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
    use crate::telemetry::labels::CommandLabel;
    use crate::upstream::in_use::Work;

    #[tokio::test]
    async fn a_sample_tells_of_what_has_ended_and_of_what_is_in_use() {
        let (fixture, _) = Fixture::standalone().await;
        let (clusters, histories) = ([fixture.cluster.clone()], Histories::default());
        let server = fixture.cluster.servers().remove(0);
        let start = Instant::now();
        histories.sample(&clusters, start);
        let (ended, held) = (
            server.pool.try_check_out(Lane::Regular, Instant::now()).unwrap().unwrap(),
            server.pool.try_check_out(Lane::Regular, Instant::now()).unwrap().unwrap(),
        );
        ended.in_use().begin(Work::command(CommandLabel::Find, ApplicationId::UNNAMED), start);
        held.in_use().begin(Work::command(CommandLabel::Find, ApplicationId::UNNAMED), start);
        drop(ended);
        fixture.cluster.clients_opened.fetch_add(7, Ordering::Relaxed);
        let later = start + Duration::from_secs(10);
        histories.sample(&clusters, later);
        let history = histories.of(0);
        let samples: Vec<_> = history.servers[&*server.address].iter().collect();
        let [before, after] = samples[..] else { panic!("two samples: {samples:?}") };
        assert_eq!((before.totals.ended, before.open, before.limit), (0, 2, 10));
        assert_eq!((after.totals.ended, after.peak), (1, 2));
        assert!(after.totals.held >= Duration::from_secs(10), "that of the one in use counts: {:?}", after.totals);
        assert_eq!((after.holders.len(), after.holders[0].0), (1, ApplicationId::UNNAMED));
        let clients: Vec<_> = history.clients.iter().map(|it| (it.opened, it.commands)).collect();
        assert_eq!(clients, [(0, 0), (7, 1)]);
        drop(held);
        fixture.end().await;
    }

    #[tokio::test]
    async fn what_may_be_in_use_is_the_limit_in_force() {
        let (fixture, _) = Fixture::standalone_with(|config| config.max_in_flight = Some(1)).await;
        let server = fixture.cluster.servers().remove(0);
        let held = server.pool.try_check_out(Lane::Regular, Instant::now()).unwrap().unwrap();
        assert_eq!(
            fixture.cluster.load(Instant::now()).holders,
            "1 of at most 1 upstream connections are in use",
            "of ten that there may be"
        );
        let sample = pool_sample(&fixture.cluster.config(), &server, Instant::now());
        assert_eq!((sample.limit, sample.adapted), (1, 1));
        drop(held);
        fixture.end().await;
    }

    #[tokio::test]
    async fn servers_are_remembered_as_long_as_they_are_there() {
        let (fixture, _) = Fixture::standalone().await;
        let histories = Histories::default();
        histories.sample(std::slice::from_ref(&fixture.cluster), Instant::now());
        assert_eq!(histories.of(0).servers.len(), 1);
        histories.sample(&[], Instant::now());
        assert_eq!(histories.of(0).servers.len(), 0);
        fixture.end().await;
    }
}
