//! Who waits for a pool, beside a plain list.

use mongomux::admission::fair_line::Pick;
use mongomux::admission::tenant_use::TenantTable;
use mongomux::admission::{Claim, Lane, Level, Tenant, Ticket, UserQueues};
use mongomux::auth::UserId;
use tokio::time::Instant;

#[path = "../../../src/admission/user_queues/model.rs"]
mod model;

/// Each four bytes are an operation.
pub fn check(data: &[u8]) {
    let operations: Vec<_> =
        data.as_chunks().0.iter().map(|&[what, lane, whom, mask]| (what, lane, whom, mask)).collect();
    model::run(&operations);
}
