//! Lives of a pool.

use std::time::Duration;

use mongomux::admission::{Claim, Lane, Level, Tenant, Ticket};
use mongomux::auth::UserId;
use mongomux::config::QueueDiscipline;
use mongomux::upstream::holders::Owned;
use mongomux::upstream::pool_state::{CheckOut, PoolBounds, PoolState, PoolStatus, Waiting};
use tokio::time::Instant;

#[path = "../../../src/upstream/pool_state/model.rs"]
mod model;

/// The first three bytes are its bounds, each two that follow are an operation.
pub fn check(data: &[u8]) {
    let Some((bounds, operations)) = data.split_first_chunk() else { return };
    let operations: Vec<(u8, u8)> = operations.as_chunks().0.iter().map(|&[what, with]| (what, with)).collect();
    model::live(*bounds, &operations);
}
