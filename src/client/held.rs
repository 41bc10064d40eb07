//! What the mode of the cluster means for a command on its way: it goes on, is refused, or waits for another mode.

use std::time::Duration;

use tokio::sync::watch;

use super::acquire::Refusal;
use super::exchange::Exchange;
use crate::admission::mode::{Bearing, Mode, Ruling};
use crate::reply::Situation;

/// Whether the command goes on now; `false` when it has to wait.
pub(super) fn passes(exchange: &Exchange) -> Result<bool, Refusal> {
    let switch = &exchange.cluster.mode;
    if switch.is_normal() {
        return Ok(true);
    }
    heeds(switch.mode(), exchange.bearing(), exchange.unsent_since.elapsed())
}

/// Waits until the command goes on, in the place that it has in the count of waiting commands. Its time is that for finding
/// a server, as there is none for it now.
///
/// # Cancel safety
/// Safe: nothing is held.
pub(super) async fn until_it_passes(exchange: &Exchange, modes: &mut watch::Receiver<Mode>) -> Result<(), Refusal> {
    let bearing = exchange.bearing();
    let another = modes.wait_for(|mode| mode.rules(bearing) != Ruling::Hold);
    let until = exchange.selected_by(&exchange.cluster.config);
    let found = tokio::time::timeout_at(until, another).await;
    let waited = exchange.unsent_since.elapsed();
    match found {
        Ok(Ok(mode)) => heeds(*mode, bearing, waited).map(drop),
        _ => Err(exchange.expired().unwrap_or(Situation::Maintenance { waited }).into()),
    }
}

/// Resolves when the command may not go on any more.
///
/// # Cancel safety
/// Safe: nothing is held, and the watch keeps its newest value.
pub(super) async fn stopped(bearing: Bearing, mut modes: watch::Receiver<Mode>) {
    if modes.wait_for(|mode| mode.rules(bearing) != Ruling::Pass).await.is_err() {
        std::future::pending().await
    }
}

fn heeds(mode: Mode, bearing: Bearing, waited: Duration) -> Result<bool, Refusal> {
    match mode.rules(bearing) {
        Ruling::Pass => Ok(true),
        Ruling::Hold => Ok(false),
        Ruling::RefuseWrite => Err(Situation::ReadOnly.into()),
        Ruling::RefuseNew => Err(Situation::Maintenance { waited }.into()),
    }
}
