//! What a pool is told by the configuration, and what becomes of it when that changes while commands run.
//!
//! A pool grows when somebody needs it to. It shrinks at once as far as connections are idle; those in use go when they come
//! back, and until then there are more than the new bound, and never more than there were.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::pool::{Pool, lock};
use super::pool_state::PoolBounds;
use crate::admission::Gradient;
use crate::config::{BackoffConfig, ClusterConfig, PoolConfig, PoolingConfig, QueueDiscipline};
use crate::telemetry::labels::ConnectionClosed;

/// What the configuration says about each pool of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Sizes and times.
    pub config: PoolConfig,
    /// In use at once, if that is to be less than the pool.
    pub max_in_flight: Option<u32>,
    /// In which order those go who wait.
    pub discipline: QueueDiscipline,
    /// Learns from the server how many may be in use at once, up to that. What a pool has begun with stays.
    pub adaptive_limit: bool,
    /// Pings a pool in use this often.
    pub health_check: Duration,
    /// Pace after failures to connect.
    pub reconnect: BackoffConfig,
    /// Which commands share the connections.
    pub pooling: PoolingConfig,
}

impl PoolSettings {
    /// As a cluster has them.
    pub fn of(config: &ClusterConfig) -> Self {
        Self {
            config: config.pool.clone(),
            max_in_flight: config.max_in_flight,
            discipline: config.queue_discipline,
            adaptive_limit: config.adaptive_limit,
            health_check: config.health_check,
            reconnect: config.reconnect,
            pooling: config.pooling.clone(),
        }
    }

    /// Commands that may have a connection at once.
    pub fn most_in_flight(&self) -> u32 {
        let size = self.config.max_pool_size;
        self.max_in_flight.unwrap_or(size).min(size)
    }

    pub(super) fn gradient(&self) -> Option<Gradient> {
        self.adaptive_limit.then(|| Gradient::new(self.config.min_pool_size, self.most_in_flight()))
    }

    pub(super) fn bounds(&self, contended: bool) -> PoolBounds {
        let PoolConfig { max_pool_size, min_pool_size, max_user_connections, max_connecting, .. } = self.config;
        PoolBounds {
            max_pool_size,
            min_pool_size,
            max_user_connections,
            max_connecting,
            max_in_flight: self.most_in_flight(),
            discipline: self.discipline,
            contended,
        }
    }
}

/// Commands that one server of a cluster can be given at once.
pub(super) fn in_flight(config: &ClusterConfig) -> u32 {
    let bounds = [config.max_in_flight, config.max_upstream_connections];
    bounds.into_iter().flatten().fold(config.pool.max_pool_size, u32::min)
}

impl Cluster {
    /// Puts another configuration of the same upstream in force, for its pools, its queue and its breakers, while commands run.
    /// What can be had by a restart only is to be as before: the upstream and what monitors it, the name, what clients are shown.
    pub fn reconfigure(&self, config: ClusterConfig) {
        // No server is to come meanwhile, and to have neither.
        let _no_server_comes = lock(&self.reconciling);
        let switches = self.config().pooling != config.pooling;
        self.config.store(Arc::new(config));
        if switches {
            self.tell_pooling();
        }
        let config = self.config();
        self.admission.set_limits(config.wait_queue_size, config.wait_queue_bytes);
        lock(&self.tenants).reconfigure(config.fairness.clone());
        self.bound.set_limit(config.max_upstream_connections, &self.tasks);
        let in_flight = in_flight(&config);
        for server in self.servers().iter().chain(&self.leaving()) {
            server.pool.reconfigure(PoolSettings::of(&config));
            server.health.reconfigure(&config.breaker);
            server.long_polls.resize(in_flight, &self.tasks);
            server.settling.resize(in_flight);
        }
    }
}

impl Pool {
    /// Puts other settings in force. The bound of the cluster is to be told first.
    pub fn reconfigure(&self, settings: PoolSettings) {
        let (shared, now) = (&self.0, Instant::now());
        let most = settings.most_in_flight();
        // Locked until its limit is in force: what is learnt from a reply meanwhile would be undone.
        let mut gradient = shared.gradient.as_ref().map(lock);
        let limit = gradient.as_mut().map_or(most, |gradient| {
            gradient.set_bounds(settings.config.min_pool_size, most);
            gradient.limit()
        });
        let bounds = settings.bounds(shared.parts.cluster_bound.is_limited());
        lock(&shared.pace).backoff.reconfigure(settings.reconnect);
        shared.set_two_at_most(most);
        let max_pool_size = settings.config.max_pool_size;
        shared.resize_connecting(shared.settings().config.max_connecting, settings.config.max_connecting);
        shared.settings.store(settings.into());
        let (woken, closed) = {
            let mut state = shared.state();
            let before = state.counts().closing;
            let woken = state.set_bounds(bounds, limit, now);
            (woken, state.counts().closing - before)
        };
        drop(gradient);
        let metrics = &shared.parts.server_metrics;
        metrics.connections_max.set(i64::from(max_pool_size));
        metrics.in_flight_limit.set(i64::from(limit));
        metrics.closed(ConnectionClosed::Shrunk, closed);
        woken.into_iter().for_each(Waker::wake);
        shared.work.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use tokio::time::sleep;

    use super::*;
    use crate::upstream::pool::{ClusterBound, PooledConnection};
    use crate::upstream::scripted::{Rig, Setup, ms};

    fn resize(rig: &Rig, max_pool_size: u32, max_in_flight: Option<u32>) {
        let settings = PoolSettings::clone(&rig.pool.0.settings());
        let config = PoolConfig { max_pool_size, ..settings.config };
        rig.pool.reconfigure(PoolSettings { config, max_in_flight, ..settings });
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_shrinks_at_once_where_it_is_idle_and_else_as_connections_come_back() {
        let rig = Setup::new(0, 6).start();
        drop(rig.check_out_many(6).await);
        resize(&rig, 4, None);
        assert_eq!((rig.counts().available, rig.closed(ConnectionClosed::Shrunk)), (4, 2));
        let mut connections = rig.check_out_many(4).await;
        resize(&rig, 1, None);
        for in_use in [3, 2, 1] {
            drop(connections.pop());
            assert_eq!((rig.counts().in_use, rig.counts().available), (in_use, 0));
        }
        drop(connections);
        assert_eq!((rig.counts().available, rig.closed(ConnectionClosed::Shrunk)), (1, 5));
        sleep(ms(1_100)).await;
        assert_eq!((rig.server.open(), rig.server.peak()), (1, 6));
        rig.end().await;
    }

    /// A connection for who has waited for a while already, and looks around no more by himself, when other bounds come.
    async fn waits_for_bounds(rig: &Rig, max_pool_size: u32, max_in_flight: Option<u32>) -> PooledConnection {
        let grows = async {
            sleep(ms(100)).await;
            assert_eq!(rig.waiting(), 1);
            resize(rig, max_pool_size, max_in_flight);
            Instant::now()
        };
        let (connection, grown) = tokio::join!(rig.check_out(), grows);
        assert!(grown.elapsed() < ms(10), "{:?}", grown.elapsed());
        connection.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_when_a_bound_grows() {
        let mut setup = Setup::new(0, 1);
        setup.max_in_flight = Some(1);
        let rig = setup.start();
        let first = rig.check_out().await.unwrap();
        let second = waits_for_bounds(&rig, 3, Some(2)).await;
        // There is one more, and only the bound on what is in flight keeps it.
        let third = waits_for_bounds(&rig, 3, None).await;
        drop(third);
        resize(&rig, 3, Some(2));
        let third = waits_for_bounds(&rig, 3, None).await;
        assert_eq!(rig.server.peak(), 3);
        drop((first, second, third));
        rig.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_bound_over_all_servers_is_kept_as_it_changes() {
        let bound = ClusterBound::new(Some(6));
        let rigs: Vec<Rig> = (0..2)
            .map(|_| {
                let mut setup = Setup::new(0, 3);
                setup.bound = bound.clone();
                setup.start()
            })
            .collect();
        let tasks = &rigs[0].tasks;
        let open = || rigs.iter().map(|rig| rig.counts().total()).sum::<u32>();
        let in_use = [rigs[0].check_out_many(3).await, rigs[1].check_out_many(3).await];
        assert_eq!((open(), bound.open()), (6, 6));
        bound.set_limit(Some(3), tasks);
        // One of those that were to go may stay after all.
        bound.set_limit(Some(4), tasks);
        assert_eq!(bound.open(), 6, "in use");
        drop(in_use);
        sleep(ms(5_000)).await;
        assert!(open() <= 4, "{}", open());
        assert_eq!(bound.open(), open());
        let held = [rigs[0].check_out_many(2).await, rigs[1].check_out_many(2).await];
        let mut waits = pin!(rigs[0].check_out());
        assert!(waits.as_mut().now_or_never().is_none());
        sleep(ms(1_000)).await;
        assert_eq!(open(), 4);
        bound.set_limit(Some(5), tasks);
        drop(waits.await.unwrap());
        assert_eq!((open(), bound.open()), (5, 5));
        drop(held);
        for rig in &rigs {
            rig.end().await;
        }
    }
}
