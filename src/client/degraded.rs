//! Reads that a secondary answers while there is no primary, where the operator has agreed to that: which ones, and how
//! they are told of. What they find is real and may be old.

use tokio::time::Instant;

use super::exchange::Exchange;
use crate::topology::{Criteria, ServerKind};
use crate::upstream::{Cluster, Operation, SelectError};

/// A server that was found for a command.
pub(super) struct Found {
    pub(super) operation: Operation,
    /// It is a secondary, in the place of the primary.
    stands_in: bool,
}

impl From<Operation> for Found {
    /// What was asked for.
    fn from(operation: Operation) -> Self {
        Self { operation, stands_in: false }
    }
}

impl Found {
    /// What [`Criteria::PrimaryElseSecondary`] has found just now.
    fn in_place_of_the_primary(cluster: &Cluster, operation: Operation) -> Self {
        let topology = cluster.topology();
        let kind = topology.servers.get(&*operation.server().address).map(|server| server.kind);
        let stands_in = kind == Some(ServerKind::RsSecondary);
        if !stands_in {
            primary_found(cluster);
        }
        Self { operation, stands_in }
    }
}

/// A server that suits now, by what was asked for or by what does without a primary; `Ok(None)` when waiting may help.
pub(super) fn try_select(exchange: &Exchange, asked: Criteria<'_>) -> Result<Option<Found>, SelectError> {
    let (cluster, failed) = (&exchange.cluster, exchange.failed.as_deref());
    let found = cluster.try_select(asked, failed);
    match (asked, &found) {
        (Criteria::Write, Ok(Some(_))) => primary_found(cluster),
        // Only now, as it costs another look into the command.
        (Criteria::Write, _) if may_do_without(exchange) => {
            let found = cluster.try_select(Criteria::PrimaryElseSecondary, failed)?;
            return Ok(found.map(|operation| Found::in_place_of_the_primary(cluster, operation)));
        }
        _ => {}
    }
    Ok(found?.map(Found::from))
}

/// As [`try_select`], and waits until there is one.
///
/// # Cancel safety
/// Safe, as [`Cluster::select`](crate::upstream::Cluster::select) is.
pub(super) async fn select(exchange: &Exchange, asked: Criteria<'_>, deadline: Instant) -> Result<Found, SelectError> {
    let (cluster, failed) = (&exchange.cluster, exchange.failed.as_deref());
    if !matches!(asked, Criteria::Write) {
        return cluster.select(asked, failed, deadline).await.map(Found::from);
    }
    if may_do_without(exchange) {
        let operation = cluster.select(Criteria::PrimaryElseSecondary, failed, deadline).await?;
        return Ok(Found::in_place_of_the_primary(cluster, operation));
    }
    let operation = cluster.select(asked, failed, deadline).await?;
    primary_found(cluster);
    Ok(operation.into())
}

/// Whether the operator has agreed to old data for this command.
fn may_do_without(exchange: &Exchange) -> bool {
    let agreed = &exchange.cluster.config().degraded_reads;
    let read = if agreed.is_empty() { None } else { exchange.command.primary_read(&exchange.frame) };
    // A join reads collections that it names somewhere within: all of the database must have been agreed to.
    read.is_some_and(|read| match read.joins {
        true => agreed.names_all_of(read.database),
        false => agreed.names(read.database, read.collection),
    })
}

/// Makes the message of a read ready for the secondary that stands in for the primary, and tells of it.
pub(super) fn stand_in(exchange: &mut Exchange, found: &Found) {
    if !found.stands_in {
        return;
    }
    let (cluster, server) = (&exchange.cluster, found.operation.server());
    exchange.command.allow_secondary(&mut exchange.frame);
    server.metrics.degraded_reads.inc();
    if cluster.degraded.begins() {
        let why = cluster.not_ready().unwrap_or_default();
        tracing::info!(cluster = %cluster.name, why, "no primary: secondaries answer degraded reads");
    }
    tracing::debug!(server = %server.address, command = exchange.command.spec.name, "degraded read");
}

fn primary_found(cluster: &Cluster) {
    if let Some(reads) = cluster.degraded.ends() {
        tracing::info!(cluster = %cluster.name, reads, "a primary again: no more degraded reads");
    }
}
