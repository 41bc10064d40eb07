//! What a command is to those who share a pool: in which lane it waits, for whom, and how much it matters.

use std::time::Duration;

use tokio::time::Instant;

use crate::auth::UserId;
pub use crate::config::Level;
pub use crate::telemetry::labels::Lane;

/// Who a command is carried out for, as far as fairness goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant {
    /// Place among the tenants of the cluster.
    pub id: u16,
    /// Share of the connections' time where tenants compete, relative to the weights of the others; 1 at least.
    pub weight: u16,
    /// Commands in flight on one server at most; no pool has as many connections as the type can say.
    pub max_in_flight: u16,
}

impl Tenant {
    /// Everybody where nothing tells them apart, and the proxy itself.
    pub const COMMON: Self = Self { id: 0, weight: 1, max_in_flight: u16::MAX };
}

/// What a command asks a pool with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// With whom it waits.
    pub lane: Lane,
    /// Within that lane; only [`Lane::Regular`] tells levels apart.
    pub level: Level,
    /// The server may keep it waiting for what an open transaction holds, or it begins one itself.
    pub locks: bool,
    /// Whose it is.
    pub tenant: Tenant,
    /// Whose connections it goes over.
    pub user: UserId,
}

impl From<Lane> for Claim {
    /// Of nobody in particular, and free of locks.
    fn from(lane: Lane) -> Self {
        Self { lane, level: Level::Normal, locks: false, tenant: Tenant::COMMON, user: UserId::SERVICE }
    }
}

/// A place among those who wait. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// What it waits for.
    pub claim: Claim,
    /// Order of arrival, in the whole queue.
    pub(super) sequence: u64,
}

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<T> {
    /// For what.
    pub claim: Claim,
    /// Since when.
    pub since: Instant,
    /// What was left to be told when its turn comes.
    pub waiter: T,
}

/// A mean that follows what it is told, each new value weighing a sixteenth.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mean(Option<f64>);

impl Mean {
    /// One more value.
    pub fn add(&mut self, value: Duration) {
        let value = value.as_secs_f64();
        self.0 = Some(self.0.map_or(value, |mean| mean + (value - mean) / 16.0));
    }

    /// The mean; `None` before the first value.
    pub fn get(self) -> Option<Duration> {
        self.0.map(Duration::from_secs_f64)
    }

    /// As [`Mean::get`], in seconds.
    pub fn seconds(self) -> Option<f64> {
        self.0
    }
}
