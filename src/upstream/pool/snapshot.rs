//! How a pool stands, who has what of it and what its connections are used for: for people and metrics.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Pool, lock};
use crate::admission::Lane;
use crate::auth::UserId;
use crate::telemetry::labels::Label;
use crate::upstream::holders::Holding;
use crate::upstream::in_use::Use;
use crate::upstream::pool_state::{PoolCounts, PoolStatus};
use crate::upstream::shortage::Shortage;
use crate::upstream::usage::PoolUsage;

/// How a pool stands, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSnapshot {
    /// Whether it gives out connections.
    pub status: PoolStatus,
    /// Connections by state.
    pub counts: PoolCounts,
    /// Bounds in force.
    pub min_pool_size: u32,
    /// Bounds in force.
    pub max_pool_size: u32,
    /// Commands in flight at once, at most; those that wait for data come on top where it adapts.
    pub limit: u32,
    /// Connections that may be in use at once as things stand, those of commands that wait for data included.
    pub most_in_use: u32,
    /// Why no further one may; `None` while one may.
    pub shortage: Option<Shortage>,
    /// Connections in use by lane, in the order of [`Label::ALL`].
    pub in_use: [u32; <Lane as Label>::ALL.len()],
    /// Waiting commands by lane, in the order of [`Label::ALL`].
    pub waiting: [usize; <Lane as Label>::ALL.len()],
    /// When the one that waits longest began.
    pub oldest: Option<Instant>,
    /// How long those who wait now will take, at the pace of late; `None` while nothing is known of that.
    pub drains_in: Option<Duration>,
    /// Established so far.
    pub created: u64,
    /// Why the last attempt to connect failed, if none succeeded since.
    pub last_connect_error: Option<String>,
}

/// What one tenant has of a pool, and how it fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantSnapshot {
    /// Which, among those of the cluster.
    pub id: u16,
    /// Connections in use.
    pub active: u32,
    /// Commands that wait.
    pub waiting: usize,
    /// Commands that got a connection.
    pub served: u64,
    /// How long half of them waited for it at most.
    pub wait_median: Duration,
    /// How long 99 of 100 waited at most.
    pub wait_p99: Duration,
    /// How long it held its connections of late, on average.
    pub held: Duration,
}

/// What one user has of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserSnapshot {
    /// Which.
    pub user: UserId,
    /// Its connections.
    pub holding: Holding,
    /// Its commands that wait.
    pub waiting: usize,
}

impl Pool {
    /// How the pool stands.
    pub fn snapshot(&self) -> PoolSnapshot {
        let last_connect_error = lock(&self.0.pace).last_error.clone();
        let state = self.0.state();
        let (counts, bounds) = (state.counts(), state.bounds());
        PoolSnapshot {
            status: state.status(),
            counts,
            min_pool_size: bounds.min_pool_size,
            max_pool_size: bounds.max_pool_size,
            limit: state.limit(),
            most_in_use: state.most_in_use(),
            shortage: Shortage::of_pool(&state),
            in_use: std::array::from_fn(|lane| state.lanes_in_use().of(Lane::ALL[lane])),
            waiting: std::array::from_fn(|lane| state.queue().lane_len(Lane::ALL[lane])),
            oldest: state.queue().oldest(),
            drains_in: state.drains_in(),
            created: self.0.last_id.load(Ordering::Relaxed).saturating_sub(self.0.observed.created()),
            last_connect_error,
        }
    }

    /// The tenants that have used it.
    pub fn tenants(&self) -> Vec<TenantSnapshot> {
        let state = self.0.state();
        let mut waiting = BTreeMap::<u16, usize>::new();
        for (id, count) in state.queue().tenants() {
            *waiting.entry(id).or_default() += count;
        }
        let used = (0..).zip(state.tenants().all()).map(|(id, used)| TenantSnapshot {
            id,
            active: used.in_use,
            waiting: waiting.remove(&id).unwrap_or_default(),
            served: used.waits.count(),
            wait_median: used.waits.quantile(0.5).unwrap_or_default(),
            wait_p99: used.waits.quantile(0.99).unwrap_or_default(),
            held: used.held.get().unwrap_or_default(),
        });
        let mut all: Vec<TenantSnapshot> = used.filter(|used| used.served > 0 || used.waiting > 0).collect();
        // Those that nobody has served yet.
        all.extend(waiting.into_iter().map(|(id, waiting)| TenantSnapshot {
            id,
            waiting,
            ..TenantSnapshot::default()
        }));
        all
    }

    /// The users that have connections, or wait for one.
    pub fn users(&self) -> Vec<UserSnapshot> {
        let state = self.0.state();
        let waiting = |user| state.queue().of(user).map_or(0, |queue| queue.len());
        let snapshot = |(user, holding)| UserSnapshot { user, holding, waiting: waiting(user) };
        let without = state.queue().users().map(|(user, _)| (user, Holding::default()));
        let without = without.filter(|(user, _)| state.holders().of(*user) == Holding::default());
        state.holders().all().chain(without).map(snapshot).collect()
    }

    /// The connections in use of which it was told what for.
    pub fn uses(&self, now: Instant) -> Vec<Use> {
        let open = lock(&self.0.open);
        let pooled = open.iter().filter(|connection| connection.owner.is_none());
        pooled.filter_map(|connection| connection.in_use.look(now)).collect()
    }

    /// As [`Pool::uses`], of those that belong to one client each.
    pub fn own_uses(&self, now: Instant) -> Vec<Use> {
        let open = lock(&self.0.open);
        let own = open.iter().filter(|connection| connection.owner.is_some());
        own.filter_map(|connection| connection.in_use.look(now)).collect()
    }

    /// How the pool has been used.
    pub fn usage(&self) -> &PoolUsage {
        &self.0.usage
    }
}
