//! Commands whose client left before the reply came. Their connection is not poisoned by that: the reply is taken and
//! thrown away, and the cursor in it killed. A read that takes long is cut off instead, which interrupts it on the
//! server; a few per second only, as each costs a new connection. Writes run to their end either way.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::cursors::OpenCursor;
use super::exchange::Exchange;
use super::transactions::{OpenTransactions, StatementGuard, end_transaction, ends_transaction};
use crate::command::{Handling, TransactionId};
use crate::reply::{OperationKind, inspect};
use crate::telemetry::Application;
use crate::telemetry::labels::ConnectionClosed;
use crate::upstream::holders::Owned as _;
use crate::upstream::{Cluster, Operation, Place, PooledConnection, Server};

/// A read that has run for this long without its client is interrupted.
const CANCEL_AFTER: Duration = Duration::from_millis(500);

/// What is left of a command without a client.
pub(super) struct Abandoned {
    operation: Operation,
    connection: PooledConnection,
    sent: Instant,
    interruptible: bool,
    /// Whose it was, to be shown as long as it holds the connection.
    application: Application,
    /// A place among those who wait for data is taken until the server is done.
    place: Option<Place>,
    /// The cursor that a getMore was for.
    cursor: Option<Box<OpenCursor>>,
    /// The transaction that it belongs to, and how the command is handled in it.
    transaction: Option<(TransactionId, Handling)>,
    /// Not to be aborted before the server is done with this statement of it.
    in_use: (OpenTransactions, Option<Box<StatementGuard>>),
}

impl Abandoned {
    pub(super) fn new(
        exchange: &mut Exchange,
        operation: Operation,
        connection: PooledConnection,
        sent: Instant,
        application: Application,
    ) -> Self {
        let command = &exchange.command;
        let cursor = OpenCursor::of_get_more(operation.server(), exchange);
        // Of the others the server goes on whatever we do. In a transaction it ends that as well, as it does when a client goes
        // that is connected to it.
        let interruptible = matches!(exchange.kind, OperationKind::Read | OperationKind::InTransaction)
            && !command.may_write()
            && matches!(command.spec.name, "find" | "aggregate" | "count" | "distinct");
        let transaction = command.session.transaction().map(|id| (id, command.spec.handling));
        let mut in_use = OpenTransactions::default();
        if let Some((id, _)) = transaction {
            in_use.uses(id, &exchange.cluster);
        }
        let in_use = (in_use, exchange.statement.take());
        let place = exchange.place.take();
        Self { operation, connection, sent, interruptible, application, place, cursor, transaction, in_use }
    }
}

/// Takes the reply that nobody waits for, in a task of its own.
pub(super) fn finish(cluster: Arc<Cluster>, abandoned: Abandoned) {
    cluster.tasks.clone().spawn("abandoned command", async move {
        let Abandoned { operation, mut connection, sent, mut interruptible, .. } = abandoned;
        // Taken until the server is done, whatever its answer.
        let _until_done = (abandoned.place, abandoned.in_use, abandoned.application);
        if connection.is_own() && (interruptible || abandoned.cursor.is_some()) && !connection.has_reply() {
            // Without a proxy its socket would be closed now, and it has nobody else to serve.
            connection.discard(ConnectionClosed::Error);
            if let Some(cursor) = abandoned.cursor {
                cursor.kill(&cluster);
            }
            return;
        }
        let received = loop {
            // Nothing is lost when an arm loses: the connection goes back or is closed, as it stands. Biased, so that a
            // reply that is there is not lost: it may leave a cursor open.
            tokio::select! {
                biased;
                received = connection.receive() => break received.map_err(|error| error.to_string()),
                () = patience(operation.server(), sent), if interruptible => {
                    if !connection.has_reply() {
                        connection.discard(ConnectionClosed::Error);
                        return;
                    }
                    // The server is done and sends its reply: nothing is left to interrupt.
                    interruptible = false;
                }
                () = cluster.tasks.cancelled() => return,
            }
        };
        let server = operation.server();
        let inspected = match received {
            Ok(()) => inspect(connection.reply(), false).ok(),
            Err(why) => {
                if connection.is_own() {
                    cluster.own_network_error(server, connection.generation, &why);
                } else {
                    cluster.network_error(server, connection.generation, &why);
                }
                None
            }
        };
        if let (Some((id, handling)), Some(inspected)) = (abandoned.transaction, &inspected)
            && ends_transaction(handling, &inspected.facts)
        {
            end_transaction(&cluster, id);
        }
        let left_open = || OpenCursor::of(server, connection.user(), inspected.as_ref()?, connection.reply());
        if let Some(cursor) = abandoned.cursor.or_else(left_open) {
            cursor.kill(&cluster);
        }
    });
}

/// Resolves when a read that was sent then, and that nobody waits for, is to be interrupted.
async fn patience(server: &Server, sent: Instant) {
    tokio::time::sleep_until(sent + CANCEL_AFTER).await;
    while !server.cancels.may_cancel(Instant::now()) {
        tokio::time::sleep(CANCEL_AFTER).await;
    }
}
