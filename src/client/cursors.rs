//! What sessions remember of cursors: where they live. And the commands that are about what is remembered: `killCursors`,
//! which may concern several servers, and `endSessions`.

use std::collections::HashMap;
use std::sync::Arc;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{RawBson, rawdoc};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::exchange::Exchange;
use super::session::{ReplyTo, Session};
use super::socket::ReadEnd;
use super::transactions::abort_lost_transaction;
use crate::admission::{Lane, Reservation};
use crate::auth::UserId;
use crate::command::{Command, Handling};
use crate::config::Address;
use crate::reply::errors::{self, ErrorReply};
use crate::reply::{Batch, Inspected, StateChangeKind, cluster_time, local};
use crate::routing::{CursorLife, CursorPin, PinError};
use crate::telemetry::labels::{CommandLabel, Outcome};
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, Errand, Operation, Server};
use crate::wire::Frame;
use crate::wire::document::find;
use crate::wire::op_msg::reply_document;

/// The arrays of a killCursors reply.
const KILL_RESULTS: [&str; 4] = ["cursorsKilled", "cursorsNotFound", "cursorsAlive", "cursorsUnknown"];

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Remembers where a new cursor lives, and forgets one that has ended. An error means that the cursor cannot be
    /// continued: it was killed, and the client must not hear of it.
    pub(super) fn follow_cursor(
        &mut self,
        exchange: &Exchange,
        server: &Server,
        inspected: &Inspected,
        reply: &[u8],
    ) -> Option<ErrorReply> {
        let facts = &inspected.facts;
        if exchange.command.spec.handling == Handling::KillCursors {
            if facts.ok {
                let ids = exchange.command.cursors_to_kill(&exchange.frame);
                ids.into_iter().for_each(|id| unpin_cursor(&exchange.cluster, &server.address, id));
            }
            return None;
        }
        if exchange.command.spec.handling == Handling::GetMore {
            let ended = facts.cursor_id == Some(0) || facts.code.is_some_and(errors::cursor_is_gone);
            match exchange.command.cursor_id(&exchange.frame) {
                Some(id) if ended => {
                    self.cursors.ended(id);
                    unpin_cursor(&exchange.cluster, &server.address, id);
                }
                Some(id) if exchange.cursor_unknown && facts.ok => self.adopt_cursor(id, exchange, server, reply),
                _ => {}
            }
            return None;
        }
        let id = facts.cursor_id.filter(|id| *id != 0 && facts.ok)?;
        let pin = CursorPin {
            server: server.address.clone(),
            user: exchange.command.session.user,
            awaits_data: exchange.command.awaits_data,
            change_stream: exchange.command.opens_change_stream,
            life: life(&exchange.command),
            application: self.application.clone(),
            caught_up: None,
        };
        let error = lock(&exchange.cluster.pins).pin_cursor(id, pin, Instant::now()).err()?;
        if let Some(namespace) = reply_document(reply).and_then(|(_, document)| cursor_namespace(document)) {
            kill_in_background(&exchange.cluster, server.address.clone(), exchange.claim.user, namespace, &[id]);
        }
        let why = error.to_string();
        Some(match error {
            PinError::Full { .. } => errors::too_many_pins("cursor", &why),
            PinError::Collision => errors::cursor_collision(&why),
        })
    }

    /// Remembers a cursor from before our start that its server goes on with. Where there is no room it stays unknown.
    fn adopt_cursor(&self, id: i64, exchange: &Exchange, server: &Server, reply: &[u8]) {
        let batch = reply_document(reply).and_then(|(_, document)| Batch::read(document, None));
        let change_stream = batch.is_some_and(|batch| batch.resume_time.is_some());
        let pin = CursorPin {
            server: server.address.clone(),
            user: exchange.command.session.user,
            awaits_data: change_stream || exchange.command.await_time().is_some(),
            change_stream,
            life: life(&exchange.command),
            application: self.application.clone(),
            caught_up: None,
        };
        if let Err(error) = lock(&exchange.cluster.pins).pin_cursor(id, pin, Instant::now()) {
            tracing::debug!(%error, "a cursor from before our start is not remembered");
        }
    }

    /// The reply to a command that was sent whole will never come: what it may have left behind is cleaned up.
    pub(super) fn lost_reply(&mut self, exchange: &Exchange, operation: &Operation) {
        // The batch may have been consumed: nobody knows where the cursor stands.
        self.kill_lost(OpenCursor::of_get_more(operation.server(), exchange), &exchange.cluster);
        abort_lost_transaction(exchange);
    }

    /// A cursor that the client cannot go on with any more.
    pub(super) fn kill_lost(&mut self, cursor: Option<Box<OpenCursor>>, cluster: &Arc<Cluster>) {
        if let Some(cursor) = cursor {
            self.cursors.ended(cursor.id());
            cursor.kill(cluster);
        }
    }

    /// `endSessions`: answered at once and passed on when there is time, so that a thousand clients that leave together
    /// do not take the pool from those that stay.
    pub(super) async fn end_sessions(
        &mut self,
        command: &Command,
        frame: &Frame,
        reply_to: ReplyTo,
    ) -> Result<(), ReadEnd> {
        if let Err(error) = local::check_api(command.document(frame), command.name(frame)) {
            return self.error(command, frame, reply_to, &error, Outcome::Failed).await;
        }
        if let Ok(document) = RawDocumentBuf::from_bytes(command.document(frame).to_vec()) {
            for cluster in self.shared.clusters.all() {
                cluster.run_in_background(Errand::Primary, self.upstream_user(), document.clone());
            }
        }
        self.shared.metrics.commands[(CommandLabel::EndSessions, Outcome::Completed)].inc();
        self.reply(command, reply_to, &local::ok()).await
    }

    /// A command about sessions: carried out by the cluster that the listener leads to, and passed on to the others, for which
    /// nobody waits.
    pub(super) async fn tell_all(
        &mut self,
        command: Command,
        frame: Frame,
        reply_to: ReplyTo,
        reservation: Reservation,
    ) -> Result<(), ReadEnd> {
        let clusters = &self.shared.clusters;
        if let Ok(document) = RawDocumentBuf::from_bytes(command.document(&frame).to_vec()) {
            for cluster in clusters.all().skip(1) {
                cluster.run_in_background(Errand::Primary, self.upstream_user(), document.clone());
            }
        }
        let cluster = clusters.default().clone();
        let own = self.own_for(&cluster, &command, &frame);
        let mut exchange =
            Exchange::new(command, frame, reply_to, reservation, &self.shared, cluster, self.caller(own));
        self.execute(&mut exchange).await
    }

    /// `killCursors`: split by the servers that hold the cursors, and their replies merged.
    pub(super) async fn kill_cursors(
        &mut self,
        command: Command,
        frame: Frame,
        reply_to: ReplyTo,
        reservation: Reservation,
        cluster: Arc<Cluster>,
    ) -> Result<(), ReadEnd> {
        let ids = command.cursors_to_kill(&frame);
        if self.shares_connections() && lock(&cluster.pins).has_of_another(&ids, command.session.user) {
            let error = errors::not_your_cursor("killCursors");
            return self.error(&command, &frame, reply_to, &error, Outcome::Refused).await;
        }
        ids.iter().for_each(|id| self.cursors.ended(*id));
        cluster.learn_of_cursors(&ids, command.session.user).await;
        let groups = lock(&cluster.pins).split(&ids);
        if groups.is_empty() || cluster.servers().len() == 1 {
            // One server has them all, those from before our start, too; and what names none it is to judge.
            let own = self.own_for(&cluster, &command, &frame);
            let mut exchange =
                Exchange::new(command, frame, reply_to, reservation, &self.shared, cluster, self.caller(own));
            return self.execute(&mut exchange).await;
        }
        let begun = command.session.transaction().map(|id| self.begin_statement(id, &cluster)).transpose();
        let _statement = match begun {
            Ok(statement) => statement,
            Err(error) => return self.error(&command, &frame, reply_to, &error, Outcome::Failed).await,
        };
        let mut answer = kill_on_each(&cluster, self.upstream_user(), &command, &frame, &ids, groups).await;
        if self.shared.clusters.are_several() {
            answer = cluster_time::without(answer);
        }
        self.shared.metrics.commands[(CommandLabel::KillCursors, Outcome::Completed)].inc();
        self.reply(&command, reply_to, &answer).await
    }
}

async fn kill_on_each(
    cluster: &Arc<Cluster>,
    user: UserId,
    command: &Command,
    frame: &Frame,
    all: &[i64],
    groups: Vec<(Option<Arc<Address>>, Vec<i64>)>,
) -> RawDocumentBuf {
    let mut results: [Vec<i64>; KILL_RESULTS.len()] = Default::default();
    let mut refused = None;
    for (server, ids) in groups {
        let reply = match &server {
            Some(server) => {
                let split = with_cursors(command.document(frame), &ids);
                cluster.run(Errand::Server(server.clone()), user, Lane::Transaction, &split).await
            }
            None => None,
        };
        match reply {
            Some(reply) if reply.get_f64("ok").ok() == Some(1.0) => {
                for (name, result) in KILL_RESULTS.iter().zip(&mut results) {
                    let items = reply.get_array(name).into_iter().flatten().filter_map(Result::ok);
                    items.filter_map(RawBsonRef::as_i64).for_each(|id| result.push(id));
                }
            }
            // The command itself is wrong, for instance one of its other fields: they are as they were.
            Some(reply) if !is_state_change(&reply) => {
                refused = Some(reply);
                continue;
            }
            // Unknown to us, or on a server that is gone and took them along.
            _ => results[1].extend(&ids),
        }
        // Its client goes on with none of them, whatever has become of them.
        if let Some(server) = server {
            ids.into_iter().for_each(|id| unpin_cursor(cluster, &server, id));
        }
    }
    if let Some(refused) = refused {
        return refused;
    }
    // As one server would list them.
    let places: HashMap<i64, usize> = all.iter().enumerate().rev().map(|(place, id)| (*id, place)).collect();
    let [killed, not_found, alive, unknown] = results.map(|mut ids| {
        ids.sort_by_key(|id| places.get(id));
        ids.into_iter().map(RawBson::Int64).collect::<RawArrayBuf>()
    });
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("cursorsKilled"), killed);
    document.append(cstr!("cursorsNotFound"), not_found);
    document.append(cstr!("cursorsAlive"), alive);
    document.append(cstr!("cursorsUnknown"), unknown);
    document.append(cstr!("ok"), 1.0);
    document
}

/// Of which a client must not hear.
fn is_state_change(reply: &RawDocument) -> bool {
    reply.get_i32("code").is_ok_and(|code| StateChangeKind::of(code).is_some())
}

/// The command with other cursors in it.
fn with_cursors(document: &[u8], ids: &[i64]) -> RawDocumentBuf {
    let mut copy = RawDocumentBuf::new();
    let Ok(document) = RawDocument::from_bytes(document) else { return copy };
    for (name, value) in document.iter().map_while(Result::ok) {
        if name == cstr!("cursors") {
            copy.append(name, ids.iter().copied().map(RawBson::Int64).collect::<RawArrayBuf>());
        } else {
            copy.append(name, value);
        }
    }
    copy
}

/// A cursor that is open on its server, and that its client may not be able to continue.
pub(super) struct OpenCursor {
    server: Arc<Address>,
    /// Over whose connections it can be killed.
    user: UserId,
    namespace: (String, String),
    id: i64,
}

impl OpenCursor {
    /// The cursor that a reply leaves open.
    pub(super) fn of(server: &Server, user: UserId, inspected: &Inspected, reply: &[u8]) -> Option<Box<Self>> {
        let id = inspected.facts.cursor_id.filter(|id| *id != 0 && inspected.facts.ok)?;
        let namespace = reply_document(reply).and_then(|(_, document)| cursor_namespace(document))?;
        Some(Box::new(Self { server: server.address.clone(), user, namespace, id }))
    }

    /// The cursor that a getMore asks for.
    pub(super) fn of_get_more(server: &Server, exchange: &Exchange) -> Option<Box<Self>> {
        let (command, frame) = (&exchange.command, &exchange.frame);
        if command.spec.handling != Handling::GetMore {
            return None;
        }
        let id = command.cursor_id(frame)?;
        // Whoever asks for another one's cursor gets nothing, and takes nothing away.
        if lock(&exchange.cluster.pins).has_of_another(&[id], command.session.user) {
            return None;
        }
        let collection = find(command.document(frame), b"collection").and_then(|element| element.as_str());
        // Without a collection there was no getMore for the server either, and killing it there changes nothing.
        let namespace = (command.database(frame).to_owned(), collection.unwrap_or_default().to_owned());
        Some(Box::new(Self { server: server.address.clone(), user: exchange.claim.user, namespace, id }))
    }

    /// The server's number of it.
    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// The client will never read its reply: the batch is lost, and with it the position.
    pub(super) fn kill(self, cluster: &Arc<Cluster>) {
        unpin_cursor(cluster, &self.server, self.id);
        kill_in_background(cluster, self.server, self.user, self.namespace, &[self.id]);
    }
}

/// Kills cursors of one cluster with one command for each collection and server: errands are bounded, and a socket may have
/// left as many as there may be.
pub(super) fn kill_together(cluster: &Arc<Cluster>, cursors: impl IntoIterator<Item = OpenCursor>) {
    let mut together: HashMap<_, Vec<i64>> = HashMap::new();
    for OpenCursor { server, user, namespace, id } in cursors {
        unpin_cursor(cluster, &server, id);
        together.entry((server, user, namespace)).or_default().push(id);
    }
    for ((server, user, namespace), ids) in together {
        kill_in_background(cluster, server, user, namespace, &ids);
    }
}

/// How long the server keeps the cursor that the command has to do with.
fn life(command: &Command) -> CursorLife {
    match (command.no_cursor_timeout, command.session.session) {
        (true, _) => CursorLife::NoTimeout,
        (false, Some(_)) => CursorLife::Session,
        (false, None) => CursorLife::Plain,
    }
}

/// Forgets a cursor of that server which has ended.
fn unpin_cursor(cluster: &Cluster, server: &Address, id: i64) {
    let unpinned = lock(&cluster.pins).unpin_cursor(id, server, Instant::now());
    if let Some((pin, pinned)) = unpinned {
        cluster.metrics.pin_seconds.observe(pinned.as_secs_f64());
        // Somebody may wait here for what it brings.
        if pin.awaits_data
            && let Some(server) = cluster.server(server)
        {
            server.long_polls.disturb();
        }
    }
}

/// Kills cursors that nobody can continue.
fn kill_in_background(
    cluster: &Arc<Cluster>,
    server: Arc<Address>,
    user: UserId,
    namespace: (String, String),
    ids: &[i64],
) {
    let (database, collection) = namespace;
    let ids: RawArrayBuf = ids.iter().copied().map(RawBson::Int64).collect();
    let command = rawdoc! {"killCursors": collection, "cursors": ids, "$db": database};
    cluster.run_in_background(Errand::Server(server), user, command);
}

/// Database and collection of the cursor in a reply.
fn cursor_namespace(reply: &[u8]) -> Option<(String, String)> {
    let cursor = find(reply, b"cursor")?.as_document()?;
    let (database, collection) = find(cursor, b"ns")?.as_str()?.split_once('.')?;
    Some((database.to_owned(), collection.to_owned()))
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[test]
    fn kill_cursors_is_split_without_losing_its_other_fields() {
        let command = rawdoc! {"killCursors": "c", "cursors": [1_i64, 2_i64, 3_i64], "lsid": {"id": 5}, "$db": "d"};
        let split = bson::Document::try_from(with_cursors(command.as_bytes(), &[2])).unwrap();
        assert_eq!(split, doc! {"killCursors": "c", "cursors": [2_i64], "lsid": {"id": 5}, "$db": "d"});
    }

    #[test]
    fn the_namespace_of_a_cursor_may_hold_dots() {
        let reply = rawdoc! {"cursor": {"id": 1_i64, "ns": "db.fs.chunks", "firstBatch": []}, "ok": 1.0};
        assert_eq!(cursor_namespace(reply.as_bytes()), Some(("db".to_owned(), "fs.chunks".to_owned())));
        assert_eq!(cursor_namespace(rawdoc! {"ok": 1.0}.as_bytes()), None);
    }
}
