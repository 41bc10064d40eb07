//! One server of a cluster: its pool, its breaker, and what follows from what the topology says of it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::breaker::Outcome;
use crate::config::Address;
use crate::telemetry::EventKind;
use crate::telemetry::labels::{Label as _, ServerEvent, ServerState};
use crate::telemetry::metrics::ServerMetrics;
use crate::topology::{ServerDescription, ServerKind};
use crate::upstream::cancels::Cancels;
use crate::upstream::health::{Health, Judgement};
use crate::upstream::long_polls::LongPolls;
use crate::upstream::pool::{Pool, lock};
use crate::upstream::settling::Settling;

/// One server of a cluster.
pub struct Server {
    /// Where it is.
    pub address: Arc<Address>,
    /// Its connections.
    pub pool: Pool,
    /// Its breaker.
    pub health: Arc<Health>,
    /// Its metrics.
    pub metrics: Arc<ServerMetrics>,
    /// Who may wait for data on it.
    pub long_polls: Arc<LongPolls>,
    /// Whether it has just become the primary, and who may write to it then.
    pub settling: Settling,
    /// How many reads without a client may be interrupted on it.
    pub cancels: Cancels,
    /// Commands that were routed to it and have not ended: `operationCount` of the server-selection specification.
    pub(super) operations: AtomicU32,
    pub(super) seen: Mutex<Seen>,
}

/// What was already acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    kind: ServerKind,
    failures: u64,
    timeouts: u64,
    update: Option<Instant>,
    /// Reached now; `None` when it never was.
    reached: Option<bool>,
    /// What it was when it was heard of last.
    heard: Option<ServerKind>,
}

impl Seen {
    /// What has happened to the server since `before`; a suspicion of ours is not worth an event.
    fn event_since(&self, before: &Self) -> Option<ServerEvent> {
        match (before.reached, self.reached) {
            (None, Some(true)) => Some(ServerEvent::Connected),
            (Some(false), Some(true)) => Some(ServerEvent::Reconnected),
            (Some(true), Some(false)) => Some(ServerEvent::Disconnected),
            _ => None,
        }
    }

    /// What it was and what it is, where that is not the same; that nothing is heard of it meanwhile is no change.
    fn role_change_since(&self, before: &Self) -> Option<(ServerKind, ServerKind)> {
        before.heard.zip(self.heard).filter(|(was, is)| was != is)
    }
}

impl Server {
    /// Commands and errands that were routed to it and have not ended.
    pub fn operations(&self) -> u32 {
        self.operations.load(Ordering::Relaxed)
    }

    /// True while commands may go to it: commands do not fail there, and there is a connection or one can be had.
    pub fn passes(&self) -> bool {
        // Almost always by the first look, which is one lock for each command.
        self.health.all_closed() || self.health.closed(Judgement::Commands) && self.pool.has_connections()
    }

    /// An operator wants no traffic there; who waits is routed anew.
    pub fn trip(&self) {
        self.health.trip();
        self.pool.evict();
    }

    /// Commands under way; as good as full while its pool is not warm, so that others get the load where they can.
    pub(super) fn load(&self) -> u32 {
        let warming = if self.pool.is_recovering() { u32::MAX / 2 } else { 0 };
        warming.saturating_add(self.operations())
    }

    /// A command was answered, or failed. Who waits for a server whose breaker opens is routed anew.
    pub fn command_ended(&self, outcome: Outcome, now: Instant) {
        if self.health.command_ended(outcome, now) {
            self.pool.evict();
        }
    }

    /// Acts upon what is known of it now.
    pub(super) fn follow(&self, description: &ServerDescription) {
        let (before, now) = {
            let mut seen = lock(&self.seen);
            let reached = match (description.is_known(), description.suspected) {
                (true, _) => Some(true),
                (false, Some(_)) => seen.reached,
                (false, None) => seen.reached.map(|_| false),
            };
            let now = Seen {
                kind: description.kind,
                failures: description.heartbeat_failures,
                timeouts: description.heartbeat_timeouts,
                update: description.last_update,
                reached,
                heard: if description.is_known() { Some(description.kind) } else { seen.heard },
            };
            (std::mem::replace(&mut *seen, now), now)
        };
        self.metrics.state_changed(label(description.kind));
        if let Some(event) = now.event_since(&before) {
            self.metrics.events[event].inc();
            let (name, kind) = (event.as_str(), description.kind.name());
            tracing::info!(server = %self.address, event = name, kind, "{name}");
            let text = match &description.error {
                Some(error) => format!("{name}: {error}"),
                None => format!("{name} as {kind}"),
            };
            self.metrics.happened(event.into(), &text);
        }
        if let Some((was, is)) = now.role_change_since(&before) {
            self.metrics.happened(EventKind::Role, &format!("is {} now, was {}", is.name(), was.name()));
        }
        if now.kind != ServerKind::RsPrimary {
            self.settling.end();
        } else if before.kind != now.kind {
            self.settling.begin();
        }
        if now.failures > before.failures || now.kind != before.kind {
            self.long_polls.disturb();
        }
        if now.failures > before.failures {
            // A server that answers nobody keeps commands in flight waiting for ever; one that refuses does not.
            self.pool.clear(now.timeouts > before.timeouts);
        } else if before.kind.is_data_bearing() && now.kind != before.kind {
            // Who waits is routed anew: the old primary may hang, and never tell.
            self.pool.evict();
        }
        if description.is_known() {
            self.pool.ready();
            if now.update != before.update {
                self.health.heartbeat_succeeded();
                self.pool.connect_soon();
            }
        }
    }
}

/// Counts one command on its server; dropping it counts it out.
pub struct Operation {
    server: Arc<Server>,
}

impl Operation {
    /// Counts it in.
    pub(super) fn on(server: Arc<Server>) -> Self {
        server.operations.fetch_add(1, Ordering::Relaxed);
        Self { server }
    }

    /// The server that the command was routed to.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.server.operations.fetch_sub(1, Ordering::Relaxed);
    }
}

fn label(kind: ServerKind) -> ServerState {
    match kind {
        ServerKind::Unknown => ServerState::Unknown,
        ServerKind::Standalone => ServerState::Standalone,
        ServerKind::Mongos => ServerState::Mongos,
        ServerKind::RsPrimary => ServerState::Primary,
        ServerKind::RsSecondary => ServerState::Secondary,
        ServerKind::RsArbiter => ServerState::Arbiter,
        ServerKind::RsOther => ServerState::Other,
        ServerKind::RsGhost => ServerState::Ghost,
    }
}
