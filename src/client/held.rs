//! What the mode of the cluster means for a command on its way: it goes on, is refused, or waits for another mode.

use std::time::Duration;

use tokio::sync::watch;

use super::acquire::Refusal;
use super::exchange::Exchange;
use crate::admission::mode::{Bearing, Orders, Ruling};
use crate::reply::Situation;

/// Whether the command goes on now; `false` when it has to wait.
pub(super) fn passes(exchange: &Exchange) -> Result<bool, Refusal> {
    let switch = &exchange.cluster.mode;
    if switch.is_normal() {
        return Ok(true);
    }
    heeds(switch.ask(|orders| rules(orders, exchange)), exchange.unsent_since.elapsed())
}

/// Waits until the command goes on, in the place that it has in the count of waiting commands. Its time is that for finding
/// a server, as there is none for it now.
///
/// # Cancel safety
/// Safe: nothing is held.
pub(super) async fn until_it_passes(exchange: &Exchange, orders: &mut watch::Receiver<Orders>) -> Result<(), Refusal> {
    let another = orders.wait_for(|orders| rules(orders, exchange) != Ruling::Hold);
    let until = exchange.selected_by(&exchange.cluster.config());
    let found = tokio::time::timeout_at(until, another).await;
    let waited = exchange.unsent_since.elapsed();
    match found {
        Ok(Ok(orders)) => heeds(rules(&orders, exchange), waited).map(drop),
        _ => Err(exchange.expired().unwrap_or(Situation::Maintenance { waited }).into()),
    }
}

fn rules(orders: &Orders, exchange: &Exchange) -> Ruling {
    orders.rules(exchange.bearing(), exchange.command.database(&exchange.frame))
}

/// Resolves when the command may not go on any more.
///
/// # Cancel safety
/// Safe: nothing is held, and the watch keeps its newest value.
pub(super) async fn stopped(bearing: Bearing, mut orders: watch::Receiver<Orders>) {
    if orders.wait_for(|orders| orders.rules_waiting(bearing) != Ruling::Pass).await.is_err() {
        std::future::pending().await
    }
}

fn heeds(ruling: Ruling, waited: Duration) -> Result<bool, Refusal> {
    match ruling {
        Ruling::Pass => Ok(true),
        Ruling::Hold => Ok(false),
        Ruling::RefuseWrite => Err(Situation::ReadOnly.into()),
        Ruling::RefuseNew => Err(Situation::Maintenance { waited }.into()),
    }
}
