//! What `/stats` tells of the tenants of one server: who has which share of its connections, and how long they wait.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::upstream::pool::{TenantSnapshot, lock};
use crate::upstream::{Cluster, Server};

/// So many are told of, those first that were served most.
const MOST: usize = 20;

/// One tenant on one server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantStats {
    /// As `fair_by` tells them apart; empty for those that say nothing, and all beyond the first thousand.
    pub name: String,
    /// Share relative to others.
    pub weight: u16,
    /// Connections in use.
    pub active: u32,
    /// Commands that wait.
    pub waiting: usize,
    /// Commands that got a connection since the start.
    pub served: u64,
    /// How long half of all since the start waited for it at most, milliseconds.
    pub wait_median_ms: f64,
    /// As long waited 99 of 100 since the start at most, milliseconds.
    pub wait_p99_ms: f64,
    /// How long it held its connections of late, on average, milliseconds: a mean that forgets, unlike the waits.
    pub held_ms: f64,
}

/// The tenants of a server that were served most.
pub(super) fn of_server(cluster: &Cluster, server: &Server) -> Vec<TenantStats> {
    let mut used = server.pool.tenants();
    used.sort_by_key(|tenant| std::cmp::Reverse((tenant.served, tenant.waiting)));
    let tenants = lock(&cluster.tenants);
    let stats = used.into_iter().take(MOST).map(|used| {
        let TenantSnapshot { id, active, waiting, served, wait_median, wait_p99, held } = used;
        let (name, weight) = tenants.name(id);
        TenantStats {
            name: name.to_owned(),
            weight,
            active,
            waiting,
            served,
            wait_median_ms: in_ms(wait_median),
            wait_p99_ms: in_ms(wait_p99),
            held_ms: in_ms(held),
        }
    });
    stats.collect()
}

fn in_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
