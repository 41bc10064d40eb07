//! What sessions do about transactions beside carrying their statements: their pins are told who uses them, when they
//! end, and when the reply to a statement was lost.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::exchange::Exchange;
use super::session::Session;
use crate::command::{Handling, TransactionId};
use crate::reply::errors;
use crate::reply::facts::ReplyFacts;
use crate::reply::{Labels, OperationKind};
use crate::routing::SocketUses;
use crate::routing::pins::Ended;
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

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// The socket counts among those of its command's transaction, from before the command waits until the socket is gone.
    pub(super) fn use_transaction(&mut self, exchange: &Exchange) {
        if let Some(id) = exchange.command.session.transaction() {
            self.transactions.uses(id, &exchange.cluster);
        }
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
        exchange.cluster.abort_in_background(id, ended);
    }
}
