//! Commands whose client left before the reply came. Their connection is not poisoned by that: the reply is taken and
//! thrown away, and the cursor in it killed. A read that takes long is cut off instead, which interrupts it on the
//! server; a few per second only, as each costs a new connection. Writes run to their end either way.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::cursors::OpenCursor;
use super::exchange::Exchange;
use super::shared::ClientShared;
use crate::reply::{OperationKind, inspect};
use crate::telemetry::labels::ConnectionClosed;
use crate::upstream::{LongPoll, Operation, PooledConnection};

/// A read that has run for this long without its client is interrupted.
const CANCEL_AFTER: Duration = Duration::from_millis(500);

/// What is left of a command without a client.
pub(super) struct Abandoned {
    operation: Operation,
    connection: PooledConnection,
    sent: Instant,
    interruptible: bool,
    /// A place among those who wait for data is taken until the server is done.
    long_poll: Option<LongPoll>,
    /// The cursor that a getMore was for.
    cursor: Option<Box<OpenCursor>>,
}

impl Abandoned {
    pub(super) fn new(
        exchange: &mut Exchange,
        operation: Operation,
        connection: PooledConnection,
        sent: Instant,
    ) -> Self {
        let command = &exchange.command;
        let cursor = OpenCursor::of_get_more(operation.server(), exchange);
        // Of the others the server goes on whatever we do.
        let interruptible = exchange.kind == OperationKind::Read
            && matches!(command.spec.name, "find" | "aggregate" | "count" | "distinct");
        let long_poll = exchange.long_poll.take();
        Self { operation, connection, sent, interruptible, long_poll, cursor }
    }
}

/// Takes the reply that nobody waits for, in a task of its own.
pub(super) fn finish(shared: &Arc<ClientShared>, abandoned: Abandoned) {
    let shared = shared.clone();
    shared.cluster.tasks.clone().spawn("abandoned command", async move {
        let Abandoned { operation, mut connection, sent, interruptible, long_poll: _until_done, cursor } = abandoned;
        let patience = async {
            tokio::time::sleep_until(sent + CANCEL_AFTER).await;
            while !interruptible || !shared.activity.may_cancel() {
                tokio::time::sleep(CANCEL_AFTER).await;
            }
        };
        // Nothing is lost when an arm loses: the connection goes back or is closed, as it stands.
        let received = tokio::select! {
            received = connection.receive() => received.map_err(|error| error.to_string()),
            () = patience => {
                connection.discard(ConnectionClosed::Error);
                return;
            }
            () = shared.cluster.tasks.cancelled() => return,
        };
        let server = operation.server();
        if let Err(why) = received {
            shared.cluster.network_error(server, connection.generation, &why);
        }
        let left_open = || OpenCursor::of(server, &inspect(connection.reply(), false).ok()?, connection.reply());
        if let Some(cursor) = cursor.or_else(left_open) {
            cursor.kill(&shared);
        }
    });
}
