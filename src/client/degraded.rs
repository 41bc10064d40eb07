//! Reads that a secondary answers while there is no primary, where the operator has agreed to that: which ones, and how
//! they are told of. What they find is real and may be old.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::exchange::Exchange;
use super::shared::ClientShared;
use crate::topology::{Criteria, ServerKind};
use crate::upstream::{Operation, SelectError};

/// Counts the reads of the time without a primary that goes on.
#[derive(Debug, Default)]
pub struct Episode {
    reads: AtomicU64,
}

impl Episode {
    /// Counts one read; true when it is the first one.
    fn begins(&self) -> bool {
        self.reads.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// How many reads there were, once, when the episode is over; `None` while there is none.
    fn ends(&self) -> Option<u64> {
        // A look before the write: almost always there is none.
        if self.reads.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.reads.swap(0, Ordering::Relaxed)).filter(|reads| *reads > 0)
    }
}

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
    fn in_place_of_the_primary(shared: &ClientShared, operation: Operation) -> Self {
        let topology = shared.cluster.topology();
        let kind = topology.servers.get(&*operation.server().address).map(|server| server.kind);
        let stands_in = kind == Some(ServerKind::RsSecondary);
        if !stands_in {
            primary_found(shared);
        }
        Self { operation, stands_in }
    }
}

/// A server that suits now, by what was asked for or by what does without a primary; `Ok(None)` when waiting may help.
pub(super) fn try_select(
    shared: &ClientShared,
    exchange: &Exchange,
    asked: Criteria<'_>,
) -> Result<Option<Found>, SelectError> {
    let (cluster, failed) = (&shared.cluster, exchange.failed.as_deref());
    let found = cluster.try_select(asked, failed);
    match (asked, &found) {
        (Criteria::Write, Ok(Some(_))) => primary_found(shared),
        // Only now, as it costs another look into the command.
        (Criteria::Write, _) if may_do_without(shared, exchange) => {
            let found = cluster.try_select(Criteria::PrimaryElseSecondary, failed)?;
            return Ok(found.map(|operation| Found::in_place_of_the_primary(shared, operation)));
        }
        _ => {}
    }
    Ok(found?.map(Found::from))
}

/// As [`try_select`], and waits until there is one.
///
/// # Cancel safety
/// Safe, as [`Cluster::select`](crate::upstream::Cluster::select) is.
pub(super) async fn select(
    shared: &ClientShared,
    exchange: &Exchange,
    asked: Criteria<'_>,
    deadline: Instant,
) -> Result<Found, SelectError> {
    let (cluster, failed) = (&shared.cluster, exchange.failed.as_deref());
    if !matches!(asked, Criteria::Write) {
        return cluster.select(asked, failed, deadline).await.map(Found::from);
    }
    if may_do_without(shared, exchange) {
        let operation = cluster.select(Criteria::PrimaryElseSecondary, failed, deadline).await?;
        return Ok(Found::in_place_of_the_primary(shared, operation));
    }
    let operation = cluster.select(asked, failed, deadline).await?;
    primary_found(shared);
    Ok(operation.into())
}

/// Whether the operator has agreed to old data for this command.
fn may_do_without(shared: &ClientShared, exchange: &Exchange) -> bool {
    let agreed = &shared.cluster.config.degraded_reads;
    let read = if agreed.is_empty() { None } else { exchange.command.primary_read(&exchange.frame) };
    // A join reads collections that it names somewhere within: all of the database must have been agreed to.
    read.is_some_and(|read| match read.joins {
        true => agreed.names_all_of(read.database),
        false => agreed.names(read.database, read.collection),
    })
}

/// Makes the message of a read ready for the secondary that stands in for the primary, and tells of it.
pub(super) fn stand_in(shared: &ClientShared, exchange: &mut Exchange, found: &Found) {
    if !found.stands_in {
        return;
    }
    let (cluster, server) = (&shared.cluster, found.operation.server());
    exchange.command.allow_secondary(&mut exchange.frame);
    server.metrics.degraded_reads.inc();
    if shared.degraded.begins() {
        let why = cluster.not_ready().unwrap_or_default();
        tracing::info!(cluster = %cluster.config.name, why, "no primary: secondaries answer degraded reads");
    }
    tracing::debug!(server = %server.address, command = exchange.command.spec.name, "degraded read");
}

fn primary_found(shared: &ClientShared) {
    if let Some(reads) = shared.degraded.ends() {
        tracing::info!(cluster = %shared.cluster.config.name, reads, "a primary again: no more degraded reads");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_begins_once_and_ends_once() {
        let episode = Episode::default();
        assert_eq!(episode.ends(), None);
        for _ in 0..2 {
            assert!(episode.begins());
            assert!(!episode.begins() && !episode.begins());
            assert_eq!((episode.ends(), episode.ends()), (Some(3), None));
        }
    }
}
