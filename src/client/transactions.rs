//! What sessions do about transactions beside carrying their statements: their pins are told who uses them, when they
//! end, and when the reply to a statement was lost.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::exchange::Exchange;
use super::session::Session;
use crate::command::{Handling, TransactionId};
use crate::reply::errors::{self, ErrorReply};
use crate::reply::facts::ReplyFacts;
use crate::reply::{Labels, OperationKind};
use crate::routing::SocketUses;
use crate::routing::pins::{Ended, StatementSerial};
use crate::telemetry::labels::TransactionEnd;
use crate::upstream::Cluster;
use crate::upstream::pool::lock;

/// The open transactions that a socket, or a command that outlived its socket, has used. Dropping it tells their pins
/// that it is gone. Most clients use none, so it is one pointer.
#[derive(Default)]
pub(super) struct OpenTransactions(Option<Box<Uses>>);

/// Those of one cluster. Where a listener leads to several, a socket may have used some of each.
struct Uses {
    cluster: Arc<Cluster>,
    transactions: SocketUses,
    of_others: OpenTransactions,
}

impl OpenTransactions {
    /// A statement of this transaction has come.
    pub(super) fn uses(&mut self, id: TransactionId, cluster: &Arc<Cluster>) {
        let new = || {
            let (transactions, of_others) = (SocketUses::default(), Self::default());
            Box::new(Uses { cluster: cluster.clone(), transactions, of_others })
        };
        let uses = self.0.get_or_insert_with(new);
        if Arc::ptr_eq(&uses.cluster, cluster) {
            uses.transactions.uses(id, &mut lock(&cluster.pins), Instant::now());
        } else {
            uses.of_others.uses(id, cluster);
        }
        self.shrink();
    }

    fn ended(&mut self, id: TransactionId, cluster: &Arc<Cluster>) {
        if let Some(uses) = &mut self.0 {
            if Arc::ptr_eq(&uses.cluster, cluster) {
                uses.transactions.ended(id);
            } else {
                uses.of_others.ended(id, cluster);
            }
        }
        self.shrink();
    }

    /// Nobody can go on with any of them: they are aborted as soon as no statement is on its way.
    pub(super) fn abort_all(&mut self) {
        if let Some(uses) = &mut self.0 {
            uses.transactions.abandon_all(&mut lock(&uses.cluster.pins), Instant::now());
            uses.cluster.abort_orphans(Instant::now());
            uses.of_others.abort_all();
        }
        self.shrink();
    }

    /// True when none of them is open any more.
    pub(super) fn have_ended(&mut self) -> bool {
        if let Some(uses) = &mut self.0 {
            uses.transactions.forget_ended(&lock(&uses.cluster.pins));
            uses.of_others.have_ended();
        }
        self.shrink();
        self.0.is_none()
    }

    /// Leaves out a cluster without any, so that there is nothing again once all have ended.
    fn shrink(&mut self) {
        if let Some(mut empty) = self.0.take_if(|uses| uses.transactions.is_empty()) {
            *self = std::mem::take(&mut empty.of_others);
        }
    }
}

impl Drop for Uses {
    fn drop(&mut self) {
        self.transactions.leave_all(&mut lock(&self.cluster.pins), Instant::now());
    }
}

/// Counts one statement among those of its transaction that are on their way; dropping it counts it out.
pub(super) struct StatementGuard {
    cluster: Arc<Cluster>,
    id: TransactionId,
    serial: StatementSerial,
}

impl Drop for StatementGuard {
    fn drop(&mut self) {
        lock(&self.cluster.pins).statement_ended(self.id, self.serial, Instant::now());
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// The socket counts among those of its command's transaction, from before the command waits until the socket is gone; and
    /// the command among the statements that are on their way, until it has ended.
    ///
    /// # Errors
    /// The transaction was ended by us: the command must not be passed on.
    pub(super) fn use_transaction(&mut self, exchange: &mut Exchange) -> Result<(), ErrorReply> {
        let Some(id) = exchange.command.session.transaction() else { return Ok(()) };
        if exchange.statement.is_none() {
            exchange.statement = self.begin_statement(id, &exchange.cluster)?;
        }
        self.transactions.uses(id, &exchange.cluster);
        Ok(())
    }

    /// Counts a statement of a transaction that is known here.
    ///
    /// # Errors
    /// The transaction was ended by us.
    pub(super) fn begin_statement(
        &self,
        id: TransactionId,
        cluster: &Arc<Cluster>,
    ) -> Result<Option<Box<StatementGuard>>, ErrorReply> {
        if self.shares_connections() && lock(&cluster.pins).is_used_by_another(id.session) {
            return Err(errors::not_your_transaction(id.number));
        }
        let begun = lock(&cluster.pins).statement_begins(id, &self.application, Instant::now());
        let serial = begun.map_err(|was_idle| errors::transaction_was_idle(&was_idle.to_string()))?;
        Ok(serial.map(|serial| Box::new(StatementGuard { cluster: cluster.clone(), id, serial })))
    }

    /// Notes that a transaction has ended: by commit or abort, or because the server says that it is no more.
    pub(super) fn follow_transaction(&mut self, exchange: &Exchange, facts: &ReplyFacts) {
        if let Some(id) = exchange.command.session.transaction()
            && ends_transaction(exchange.command.spec.handling, facts)
        {
            end_transaction(&exchange.cluster, id);
            self.transactions.ended(id, &exchange.cluster);
        }
    }
}

/// Whether a transaction is over after this reply to one of its commands.
pub(super) fn ends_transaction(handling: Handling, facts: &ReplyFacts) -> bool {
    facts.ok && handling == Handling::EndTransaction
        || facts.labels.contains(Labels::TRANSIENT_TRANSACTION)
        || facts.code.is_some_and(errors::transaction_is_gone)
}

/// Notes that a transaction has ended. `None` if it was not open.
pub(super) fn end_transaction(cluster: &Cluster, id: TransactionId) -> Option<Ended> {
    let ended = lock(&cluster.pins).end_transaction(id, Instant::now());
    if let Some(ended) = &ended {
        cluster.metrics.pin_seconds.observe(ended.open_for.as_secs_f64());
    }
    ended
}

/// The reply to a statement will never come. Its client is told that the transaction is lost, and what is left of it on
/// the server holds locks: it is aborted, once. Where the client does so itself, or begins the next transaction, the
/// server tells ours that it comes too late.
pub(super) fn abort_lost_transaction(exchange: &Exchange) {
    if exchange.kind == OperationKind::InTransaction
        && let Some(id) = exchange.command.session.transaction()
        && let Some(ended) = end_transaction(&exchange.cluster, id)
    {
        exchange.cluster.metrics.transactions_ended[TransactionEnd::ReplyLost].inc();
        exchange.cluster.abort_in_background(id, ended);
    }
}
