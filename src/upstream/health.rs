//! The breaker of one server, shared by all that notice how the server does.
//!
//! Commands pass a closed breaker only. Whether a half-open one may close is found out by the maintenance task of the
//! pool, with a probe of its own: no client's command is the guinea pig.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::breaker::state::ProbeId;
use crate::breaker::{Admission, Breaker, BreakerState, Outcome, Transition};
use crate::config::{Address, BreakerConfig};
use crate::telemetry::labels::BreakerLabel;
use crate::telemetry::metrics::ServerMetrics;

/// How one server does, as the data path sees it.
pub struct Health {
    address: Address,
    breaker: Mutex<Breaker>,
    metrics: Arc<ServerMetrics>,
}

impl Health {
    /// Of a server that nothing is known about.
    pub fn new(address: Address, config: &BreakerConfig, metrics: Arc<ServerMetrics>) -> Self {
        Self { address, breaker: Mutex::new(Breaker::new(config)), metrics }
    }

    /// True while commands may go to the server.
    pub fn passes(&self) -> bool {
        self.state() == BreakerState::Closed
    }

    /// State of the breaker.
    pub fn state(&self) -> BreakerState {
        self.with(|breaker| breaker.state())
    }

    /// A command was answered, or failed; a connection was established, or was not.
    pub fn record(&self, outcome: Outcome) {
        let (now, jitter) = (Instant::now(), rand::random());
        self.change(|breaker| breaker.record(outcome, now, jitter));
    }

    /// When an open breaker is due for a probe: the probe to be made.
    pub fn start_probe(&self) -> Option<ProbeId> {
        let now = Instant::now();
        let (admission, transition) = self.with(|breaker| match breaker.state() {
            BreakerState::Closed => (Admission::Pass, None),
            BreakerState::Open | BreakerState::HalfOpen => breaker.admits(now),
        });
        self.tell(transition);
        match admission {
            Admission::Probe(id) => Some(id),
            Admission::Pass | Admission::Refuse { .. } => None,
        }
    }

    /// How a probe ended; `None` when it could not be made.
    pub fn finish_probe(&self, id: ProbeId, outcome: Option<Outcome>) {
        let (now, jitter) = (Instant::now(), rand::random());
        match outcome {
            Some(outcome) => self.change(|breaker| breaker.probe_finished(id, outcome, now, jitter)),
            None => self.with(|breaker| breaker.probe_abandoned(id)),
        }
    }

    /// Monitoring reached the server.
    pub fn heartbeat_succeeded(&self) {
        self.change(Breaker::heartbeat_succeeded);
    }

    /// When the next probe is due, while the breaker is not closed.
    pub fn next_probe(&self) -> Option<Instant> {
        let now = Instant::now();
        self.with(|breaker| match breaker.state() {
            BreakerState::Closed => None,
            BreakerState::Open | BreakerState::HalfOpen => Some(now + breaker.refuses(now).unwrap_or_default()),
        })
    }

    fn change(&self, act: impl FnOnce(&mut Breaker) -> Option<Transition>) {
        let transition = self.with(act);
        self.tell(transition);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        act(&mut self.breaker.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, transition: Option<Transition>) {
        let Some(Transition { from, to, reason }) = transition else { return };
        self.metrics.breaker_changed(match to {
            BreakerState::Closed => BreakerLabel::Closed,
            BreakerState::HalfOpen => BreakerLabel::HalfOpen,
            BreakerState::Open => BreakerLabel::Open,
        });
        tracing::info!(server = %self.address, from = from.as_str(), to = to.as_str(), ?reason, "breaker changed");
    }
}
