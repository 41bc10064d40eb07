//! Commands of our own: killing cursors that nobody can continue, ending sessions, aborting what was lost.
//!
//! They go through the pools like all others. Those that nobody waits for are bounded, and dropped beyond the bound: the
//! server's own time limits clean up in the end.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::{RawDocument, RawDocumentBuf};
use bson::spec::BinarySubtype;
use bson::{Binary, rawdoc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::cluster::{Cluster, Operation};
use super::in_use::Work;
use super::pool::{CheckOutError, lock};
use crate::admission::{Claim, Lane};
use crate::auth::UserId;
use crate::command::TransactionId;
use crate::config::Address;
use crate::routing::pins::Ended;
use crate::telemetry::ApplicationId;
use crate::telemetry::labels::{CommandLabel, TransactionEnd};
use crate::topology::Criteria;
use crate::wire::{encode, op_msg};

/// Errands under way at once that nobody waits for, per cluster; and as many aborts.
const MAX_BACKGROUND: usize = 64;

/// Longest wait for a connection in the background, where that of commands is not longer: no client waits for it, and what it
/// frees a server would keep for ten minutes. Behind all others in a full pool, it may be long until it has its turn.
const BACKGROUND_WAIT: Duration = Duration::from_secs(30);

/// Before an errand whose pool was cleared, or whose queue stands, tries again.
const CLEARED_PAUSE: Duration = Duration::from_millis(100);

/// An abort waits on the server for the statement that runs, which may be a long one whose connection is gone. It is not
/// to hold a connection as long as that: it comes again later.
const MAX_ABORT_TIME_MS: i32 = 5_000;

/// MaxTimeMSExpired
const MAX_TIME_MS_EXPIRED: i32 = 50;

/// Where an errand goes.
#[derive(Debug, Clone)]
pub enum Errand {
    /// To this server.
    Server(Arc<Address>),
    /// To whichever server takes writes.
    Primary,
    /// As that, or to one that has what was written there, if none does.
    Reading,
}

/// The bounds on errands in the background. Aborts have one of their own: they free locks, and a kill may wait for long.
#[derive(Debug)]
pub struct Background {
    errands: Arc<Semaphore>,
    aborts: Arc<Semaphore>,
}

impl Default for Background {
    fn default() -> Self {
        let [errands, aborts] = [(); 2].map(|()| Arc::new(Semaphore::new(MAX_BACKGROUND)));
        Self { errands, aborts }
    }
}

/// `None` when as many are under way as may be.
fn permit(of: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    of.clone().try_acquire_owned().ok()
}

impl Cluster {
    /// Errands under way that nobody waits for.
    pub fn errands(&self) -> usize {
        2 * MAX_BACKGROUND - self.background.errands.available_permits() - self.background.aborts.available_permits()
    }

    /// Runs a command of our own, over a connection of that user, and returns the server's reply, an error reply included. `None` when there was none.
    ///
    /// # Cancel safety
    /// A future that is dropped after it has sent closes its connection.
    pub async fn run(&self, errand: Errand, user: UserId, lane: Lane, command: &RawDocument) -> Option<RawDocumentBuf> {
        if user != UserId::SERVICE && self.identities.of(user).is_none() {
            return None;
        }
        let selected_by = Instant::now() + self.config().server_selection_timeout;
        let wait = self.config().wait_queue_timeout;
        let wait = if lane == Lane::Background { wait.max(BACKGROUND_WAIT) } else { wait };
        let claim = Claim { user, ..lane.into() };
        let (operation, mut connection) = loop {
            let operation = self.find(&errand, selected_by).await?;
            match operation.server().pool.check_out(claim, selected_by + wait).await {
                Ok(connection) => break (operation, connection),
                // The server has changed its state, and is looked for anew: one that has stepped down has its cursors still. Or
                // the queue stands, which is no reason to leave a cursor open for ten minutes.
                Err(CheckOutError::Cleared | CheckOutError::Shed) => tokio::time::sleep(CLEARED_PAUSE).await,
                Err(_) => return None,
            }
        };
        let message = encode::op_msg(connection.next_request_id(), 0, command);
        let generation = connection.generation;
        let name = command.iter().next().and_then(Result::ok).map_or("", |(name, _)| name.as_str());
        connection.in_use().begin(Work::command(CommandLabel::of(name), ApplicationId::OWN), Instant::now());
        match connection.exchange(message.bytes()).await {
            Ok(reply) => RawDocumentBuf::from_bytes(op_msg::reply_document(reply)?.1.to_vec()).ok(),
            Err(error) => {
                self.network_error(operation.server(), generation, &error.to_string());
                None
            }
        }
    }

    async fn find(&self, errand: &Errand, selected_by: Instant) -> Option<Operation> {
        match errand {
            Errand::Server(address) => {
                // What is to be cleaned up was often left behind by the very failure that made the server suspect.
                self.await_news(address, selected_by).await.ok()?;
                self.operation_on(address)
            }
            Errand::Primary => self.select(Criteria::Write, None, selected_by).await.ok(),
            Errand::Reading => match self.try_select(Criteria::Write, None) {
                Ok(Some(operation)) => Some(operation),
                _ => self.select(Criteria::PrimaryElseSecondary, None, selected_by).await.ok(),
            },
        }
    }

    /// Runs a command of our own that nobody waits for.
    pub fn run_in_background(self: &Arc<Self>, errand: Errand, user: UserId, command: RawDocumentBuf) {
        let Some(permit) = permit(&self.background.errands) else {
            return tracing::debug!("too many clean-up commands under way, one is left out");
        };
        let cluster = self.clone();
        self.in_background(permit, async move {
            cluster.run(errand, user, Lane::Background, &command).await;
        });
    }

    fn in_background(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        errand: impl Future<Output = ()> + Send + 'static,
    ) {
        let cluster = self.clone();
        self.tasks.spawn("errand", async move {
            // Nothing is lost at the end of the program: servers clean up by themselves.
            tokio::select! {
                () = errand => {}
                () = cluster.tasks.cancelled() => {}
            }
            drop(permit);
        });
    }

    /// Aborts a transaction that nobody goes on with and that counts as ended, on its server. Harmless where it has ended
    /// indeed: the server says so. Where it says nothing yet, the transaction is open again, and an orphan.
    pub fn abort_in_background(self: &Arc<Self>, id: TransactionId, ended: Ended) {
        let Ended { server, room, .. } = ended;
        let Some(permit) = permit(&self.background.aborts) else {
            return lock(&self.pins).reopen_transaction(id, room, Instant::now());
        };
        let cluster = self.clone();
        self.in_background(permit, async move {
            // Before others, like an abort of a client: it frees locks. What was kept for the transaction is kept for it.
            // In its own session, as whose user it is.
            let Some(user) = cluster.identities.upstream_of(id.session.user) else {
                // Nobody can log in as it any more: the server ends it after a minute, and nothing is kept for it.
                return;
            };
            let reply = cluster.run(Errand::Server(server), user, Lane::Transaction, &abort_transaction(id)).await;
            if reply.is_none_or(|reply| reply.get_i32("code").is_ok_and(|code| code == MAX_TIME_MS_EXPIRED)) {
                lock(&cluster.pins).reopen_transaction(id, room, Instant::now());
            }
        });
    }

    /// Aborts the open transactions whose sockets are all gone, as many as may be under way; the others come later.
    pub fn abort_orphans(self: &Arc<Self>, now: Instant) {
        let orphans = lock(&self.pins).take_orphans(self.background.aborts.available_permits(), now);
        if orphans.is_empty() {
            return;
        }
        tracing::info!(
            count = orphans.len(),
            oldest_ms = oldest_ms(&orphans),
            "aborting transactions whose clients have gone"
        );
        self.abort_all(orphans, TransactionEnd::Orphaned);
    }

    /// Aborts the open transactions of which no statement has been on its way for too long, as many as may be under way; the
    /// others come later.
    pub fn abort_idle(self: &Arc<Self>, now: Instant) {
        let Some(limit) = self.config().transaction_idle_timeout else { return };
        let idle = lock(&self.pins).take_idle(limit, self.background.aborts.available_permits(), now);
        if idle.is_empty() {
            return;
        }
        tracing::info!(
            count = idle.len(),
            oldest_ms = oldest_ms(&idle),
            "aborting transactions that are idle for too long"
        );
        self.abort_all(idle, TransactionEnd::Idle);
    }

    fn abort_all(self: &Arc<Self>, transactions: Vec<(TransactionId, Ended)>, reason: TransactionEnd) {
        for (id, ended) in transactions {
            self.metrics.pin_seconds.observe(ended.open_for.as_secs_f64());
            self.metrics.transactions_ended[reason].inc();
            self.abort_in_background(id, ended);
        }
    }
}

/// How long the oldest of them was open.
fn oldest_ms(ended: &[(TransactionId, Ended)]) -> u128 {
    ended.iter().map(|(_, ended)| ended.open_for).max().unwrap_or_default().as_millis()
}

fn abort_transaction(id: TransactionId) -> RawDocumentBuf {
    let session = Binary { subtype: BinarySubtype::Uuid, bytes: id.session.id.to_vec() };
    rawdoc! {
        "abortTransaction": 1, "lsid": { "id": session }, "txnNumber": id.number, "autocommit": false,
        "maxTimeMS": MAX_ABORT_TIME_MS, "$db": "admin",
    }
}
