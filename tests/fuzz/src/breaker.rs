//! A breaker beside the naive model of its rules.

use std::time::Duration;

use mongomux::breaker::state::PROBE_EXPIRY;
use mongomux::breaker::{Admission, Breaker, BreakerState, Failure, Outcome, ProbeId};
use mongomux::config::BreakerConfig;
use tokio::time::Instant;

#[path = "../../../src/breaker/state/model.rs"]
mod model;

/// Each two bytes are an operation.
pub fn check(data: &[u8]) {
    model::run(data.as_chunks().0.iter().map(|&[what, with]| model::Operation::of((what, with))));
}
