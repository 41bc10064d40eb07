//! One command on its way: what it is, what is known about its tries, and what it holds until it has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::caller::Caller;
use super::long_poll::LongPoll;
use super::packing::Form;
use super::session::ReplyTo;
use super::shared::{ClientShared, InFlight};
use super::transactions::StatementGuard;
use crate::admission::mode::Bearing;
use crate::admission::{Claim, Lane, Reservation};
use crate::auth::Identity;
use crate::command::{Command, Effect, Handling};
use crate::config::{Address, ClusterConfig};
use crate::reply::{Attempted, OperationKind, Situation};
use crate::reply::{ErrorReply, log_in};
use crate::telemetry::labels::CommandLabel;
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, OwnConnections, Place, Server};
use crate::wire::Frame;

/// One command on its way.
pub(super) struct Exchange {
    pub(super) command: Command,
    /// Who has sent it.
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) frame: Frame,
    /// Where it is carried out.
    pub(super) cluster: Arc<Cluster>,
    /// How it goes over the connection that it has got.
    pub(super) form: Form,
    pub(super) reply_to: ReplyTo,
    pub(super) kind: OperationKind,
    pub(super) label: CommandLabel,
    /// What it asks a pool with.
    pub(super) claim: Claim,
    pub(super) started: Instant,
    /// `maxTimeMS` after arrival.
    pub(super) deadline: Option<Instant>,
    /// Longest that a server may take to answer, as it was configured on arrival.
    pub(super) command_timeout: Option<Duration>,
    /// Since when it waits to be sent: its arrival, or the last time that a server had it.
    pub(super) unsent_since: Instant,
    /// Attempts since then that were not written whole.
    pub(super) attempts: u16,
    /// Was sent again already, after it had been written whole.
    pub(super) resent: bool,
    /// A server may have carried it out before, for all that is known.
    pub(super) may_be_done: bool,
    /// The server that the last attempt failed on.
    pub(super) failed: Option<Arc<Address>>,
    /// As long has it been with servers, and as long it has waited to get there.
    pub(super) upstream: Duration,
    pub(super) waited: Duration,
    /// Its wait for data, where it is known to wait for data.
    pub(super) poll: Option<Box<LongPoll>>,
    /// It continues a cursor that nobody here knows.
    pub(super) cursor_unknown: bool,
    /// Its place among the statements of its transaction that are on their way.
    pub(super) statement: Option<Box<StatementGuard>>,
    /// The connections of its client's own, if it goes over one of them: it is observed only.
    pub(super) own: Option<Arc<OwnConnections>>,
    /// Its place in the share of the pool that it is kept to, while it is upstream.
    pub(super) place: Option<Place>,
    /// Memory for the request, and the counts of what is under way: held until the command has ended.
    _held: (Reservation, InFlight),
}

impl Exchange {
    pub(super) fn new(
        command: Command,
        mut frame: Frame,
        reply_to: ReplyTo,
        reservation: Reservation,
        shared: &Arc<ClientShared>,
        cluster: Arc<Cluster>,
        client: Caller<'_>,
    ) -> Self {
        command.clear_flags(&mut frame);
        let started = Instant::now();
        let (kind, mut claim, cursor_unknown) = classify(&command, &frame, &cluster, started);
        let config = cluster.config();
        let command_timeout = config.command_timeout;
        (claim.tenant, claim.level) = client.stands(&cluster, &config.fairness, || command.database(&frame));
        drop(config);
        let identity = client.identity.cloned();
        if let Some(identity) = &identity {
            claim.user = identity.upstream;
        }
        let lane = claim.lane;
        // Long polls do not keep a drain from ending.
        let in_flight = shared.activity.begin(lane == Lane::Await);
        let deadline = command.max_time().map(|time| started + time);
        // Who has a connection of its own may wait on the server for as long as it likes.
        let takes_turns = lane == Lane::Await && client.own.is_none();
        let poll = if takes_turns { LongPoll::new(&command, &frame, &cluster, started) } else { None };
        Self {
            label: CommandLabel::of(command.spec.name),
            command,
            identity,
            frame,
            cluster,
            form: Form::Plain,
            reply_to,
            kind,
            claim,
            started,
            deadline,
            command_timeout,
            unsent_since: started,
            attempts: 0,
            resent: false,
            may_be_done: false,
            failed: None,
            upstream: Duration::ZERO,
            waited: Duration::ZERO,
            poll,
            cursor_unknown,
            statement: None,
            own: client.own,
            place: None,
            _held: (reservation, in_flight),
        }
    }

    /// It has ended: what is left is its message.
    pub(super) fn into_frame(self) -> Frame {
        self.frame
    }

    /// The share of the server's pool that it has to have a place in, and has not; almost always none.
    pub(super) fn needs_place(&self, server: &Server) -> Option<Share> {
        if self.place.is_some() || self.own.is_some() {
            None
        } else if self.claim.lane == Lane::Await {
            Some(Share::LongPolls)
        } else if server.settling.in_progress() && self.awaits_majority() {
            Some(Share::Settling)
        } else {
            None
        }
    }

    /// A write that its server acknowledges only when other members have it. One of a transaction is acknowledged at once.
    pub(super) fn awaits_majority(&self) -> bool {
        matches!(self.kind, OperationKind::Write | OperationKind::RetryableWrite)
            && self.command.awaits_majority(&self.frame)
    }

    /// What it is to the mode of the cluster. One that was sent whole before is under way, whatever it is: to answer as if
    /// it had not been sent would be a lie.
    pub(super) fn bearing(&self) -> Bearing {
        if self.resent { Bearing { continues: true, may_write: false } } else { Bearing::of(&self.command) }
    }

    /// Until when it may wait for a server.
    pub(super) fn selected_by(&self, config: &ClusterConfig) -> Instant {
        self.capped(self.unsent_since + config.server_selection_timeout)
    }

    /// Until when it may wait for a connection, if it begins then.
    pub(super) fn checked_out_by(&self, config: &ClusterConfig, begins: Instant) -> Instant {
        self.sent_by(config).min(begins + config.wait_queue_timeout)
    }

    /// Until when it has to be sent, however often it has to be routed anew.
    pub(super) fn sent_by(&self, config: &ClusterConfig) -> Instant {
        self.capped(self.unsent_since + config.server_selection_timeout + config.wait_queue_timeout)
    }

    fn capped(&self, limit: Instant) -> Instant {
        self.deadline.map_or(limit, |deadline| deadline.min(limit))
    }

    /// A server had it whole: what comes now is a new wait.
    pub(super) fn was_sent(&mut self) {
        self.unsent_since = Instant::now();
        self.attempts = 0;
    }

    /// What decides whether it may be sent once more.
    pub(super) fn attempted(&self) -> Attempted {
        let (kind, effect, resent) = (self.kind, self.command.effect(), self.resent);
        Attempted { kind, effect, aborts: self.command.spec.name == "abortTransaction", resent }
    }

    /// True for a getMore of a cursor that another user has made, where a server would take both for the same.
    pub(super) fn asks_for_anothers_cursor(&self) -> bool {
        let shares = self.identity.as_ref().is_some_and(|identity| identity.shares_connections());
        shares
            && self.command.spec.handling == Handling::GetMore
            && self
                .command
                .cursor_id(&self.frame)
                .is_some_and(|id| lock(&self.cluster.pins).has_of_another(&[id], self.command.session.user))
    }

    /// `Some` when who has sent it has to log in again: there is no connection for it any more.
    pub(super) fn revoked(&self) -> Option<ErrorReply> {
        // What a server may have carried out already is not to be answered as if it had not.
        if self.resent {
            return None;
        }
        self.identity.as_ref().filter(|identity| identity.is_revoked()).map(|identity| log_in::revoked(&identity.user))
    }

    /// `Some` when the command's own deadline is over.
    pub(super) fn expired(&self) -> Option<Situation> {
        let deadline = self.deadline.filter(|deadline| Instant::now() >= *deadline)?;
        Some(Situation::MaxTimeExpiredInQueue { max_time: deadline - self.started })
    }
}

/// A share of a pool that some commands are kept to, as their server makes them wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Of those who wait for data.
    LongPolls,
    /// Of writes by majority on a new primary.
    Settling,
}

/// What the command is to its driver once it fails, and with whom it waits.
fn classify(command: &Command, frame: &Frame, cluster: &Cluster, now: Instant) -> (OperationKind, Claim, bool) {
    let get_more = command.spec.handling == Handling::GetMore;
    let cursor = if get_more { command.cursor_id(frame) } else { None };
    let pinned =
        cursor.and_then(|id| lock(&cluster.pins).cursor(id, now).map(|pin| (pin.awaits_data, pin.change_stream)));
    // Of a cursor from before our start only so much is known that a server refuses such a wait for all others.
    let (awaits_data, change_stream) = pinned.unwrap_or_else(|| (command.await_time().is_some(), false));
    let kind = if command.unacknowledged {
        OperationKind::Unacknowledged
    } else if command.spec.handling == Handling::EndTransaction {
        OperationKind::CommitOrAbort
    } else if command.session.in_transaction {
        OperationKind::InTransaction
    } else if get_more {
        OperationKind::GetMore { change_stream }
    } else {
        match command.effect() {
            Effect::Read => OperationKind::Read,
            Effect::Write if command.session.is_retryable() => OperationKind::RetryableWrite,
            Effect::Write | Effect::Other | Effect::Control | Effect::Idempotent => OperationKind::Write,
        }
    };
    let lane = match kind {
        OperationKind::CommitOrAbort => Lane::Transaction,
        OperationKind::InTransaction if !command.session.starts_transaction => Lane::Transaction,
        OperationKind::GetMore { .. } if awaits_data => Lane::Await,
        // Frees what others wait for.
        _ if command.spec.handling == Handling::KillCursors => Lane::Transaction,
        _ => Lane::Regular,
    };
    let writes = matches!(kind, OperationKind::Write | OperationKind::RetryableWrite | OperationKind::Unacknowledged);
    // A transaction that begins is like a write: beside one that overlaps it forever, no write would have its turn.
    let begins = kind == OperationKind::InTransaction && lane == Lane::Regular;
    let locks = begins || writes && matches!(command.effect(), Effect::Write | Effect::Other);
    (kind, Claim { locks, ..lane.into() }, cursor.is_some() && pinned.is_none())
}
