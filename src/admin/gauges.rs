//! Gauges that nobody keeps up to date while nobody looks: they are read from the pools at each scrape.

use std::sync::Arc;

use tokio::time::Instant;

use super::long_held::Look;
use crate::admission::MemoryBudget;
use crate::telemetry::Metrics;
use crate::telemetry::labels::{ConnectionState, Label, Lane, LongHeldKind, PinKind};
use crate::upstream::Cluster;
use crate::upstream::pool::lock;

/// Sets the gauges of pools, queues, pins and memory.
pub fn refresh(clusters: &[Arc<Cluster>], metrics: &Metrics, memory: &MemoryBudget, now: Instant) {
    // Who waits for a server, or for the end of a pause, is in no pool.
    let mut oldest = clusters.iter().filter_map(|cluster| cluster.admission.oldest()).min();
    let mut looks = Vec::new();
    for (cluster, server) in
        clusters.iter().flat_map(|cluster| cluster.servers().into_iter().map(move |it| (cluster, it)))
    {
        looks.push(Look::at(cluster, &server, now));
        let pool = server.pool.snapshot();
        let connections = &server.metrics.connections;
        connections[ConnectionState::Available].set(pool.counts.available.into());
        connections[ConnectionState::InUse].set(pool.counts.in_use.into());
        connections[ConnectionState::Pending].set(pool.counts.pending.into());
        server.metrics.own_connections.set(server.pool.own_connections().0.into());
        server.metrics.connections_max.set(pool.max_pool_size.into());
        server.metrics.in_flight_limit.set(pool.limit.into());
        for (lane, waiting) in Lane::ALL.iter().zip(pool.waiting) {
            server.metrics.wait_queue_length[*lane].set(gauge(waiting));
        }
        oldest = oldest.into_iter().chain(pool.oldest).min();
    }
    let longest = oldest.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
    metrics.wait_queue_oldest_seconds.set(longest);

    for &kind in LongHeldKind::ALL {
        metrics.long_held[kind].set(gauge(looks.iter().map(|look| look.count(kind)).sum()));
    }
    let (mut cursors, mut transactions) = (0, 0);
    for cluster in clusters {
        metrics.requests_wait(&cluster.name, gauge(cluster.admission.bytes()));
        let (more_cursors, more_transactions) = lock(&cluster.pins).count();
        cursors += more_cursors;
        transactions += more_transactions;
    }
    metrics.pins[PinKind::Cursor].set(gauge(cursors));
    metrics.pins[PinKind::Transaction].set(gauge(transactions));
    metrics.buffered_bytes.set(gauge(memory.used()));
    metrics.buffered_bytes_max.set(gauge(memory.limit()));
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
