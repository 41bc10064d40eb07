//! Commands of our own: killing cursors that nobody can continue, ending sessions, aborting what was lost.
//!
//! They go through the pools like all others. Those that nobody waits for are bounded, and dropped beyond the bound: the
//! server's own time limits clean up in the end.

use std::sync::Arc;

use bson::raw::{RawDocument, RawDocumentBuf};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::cluster::Cluster;
use crate::admission::Lane;
use crate::config::Address;
use crate::topology::Criteria;
use crate::wire::{encode, op_msg};

/// Errands under way at once that nobody waits for, per cluster.
const MAX_BACKGROUND: usize = 64;

/// Where an errand goes.
#[derive(Debug, Clone)]
pub enum Errand {
    /// To this server.
    Server(Arc<Address>),
    /// To whichever server takes writes.
    Primary,
}

/// The bound on errands in the background.
#[derive(Debug)]
pub struct Background(Arc<Semaphore>);

impl Default for Background {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_BACKGROUND)))
    }
}

impl Cluster {
    /// Runs a command of our own and returns the server's reply, an error reply included. `None` when there was none.
    ///
    /// # Cancel safety
    /// A future that is dropped after it has sent closes its connection.
    pub async fn run(&self, errand: Errand, lane: Lane, command: &RawDocument) -> Option<RawDocumentBuf> {
        let selected_by = Instant::now() + self.config.server_selection_timeout;
        let operation = match errand {
            Errand::Server(address) => {
                // What is to be cleaned up was often left behind by the very failure that made the server suspect.
                self.await_news(&address, selected_by).await.ok()?;
                self.operation_on(&address)?
            }
            Errand::Primary => self.select(Criteria::Write, None, selected_by).await.ok()?,
        };
        let checked_out_by = Instant::now() + self.config.wait_queue_timeout;
        let mut connection = operation.server().pool.check_out(lane, checked_out_by).await.ok()?;
        let message = encode::op_msg(connection.next_request_id(), 0, command);
        let generation = connection.generation;
        match connection.exchange(message.bytes()).await {
            Ok(reply) => RawDocumentBuf::from_bytes(op_msg::reply_document(reply)?.1.to_vec()).ok(),
            Err(error) => {
                self.network_error(operation.server(), generation, &error.to_string());
                None
            }
        }
    }

    /// Runs a command of our own that nobody waits for.
    pub fn run_in_background(self: &Arc<Self>, errand: Errand, command: RawDocumentBuf) {
        let Ok(permit) = self.background.0.clone().try_acquire_owned() else {
            tracing::debug!("too many clean-up commands under way, one is left out");
            return;
        };
        let cluster = self.clone();
        self.tasks.spawn("errand", async move {
            // Nothing is lost at the end of the program: servers clean up by themselves.
            tokio::select! {
                _ = cluster.run(errand, Lane::Background, &command) => {}
                () = cluster.tasks.cancelled() => {}
            }
            drop(permit);
        });
    }
}
