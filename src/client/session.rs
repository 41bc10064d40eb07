//! One client: its messages one after the other, each answered before the next is looked at.
//!
//! The loop reads as the path of a message. What the proxy answers itself is here; what goes upstream is in `execute`.

use std::sync::Arc;

use bson::raw::{RawDocument, RawDocumentBuf};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::caller::Caller;
use super::desks::Desks;
use super::ends::Ends;
use super::exchange::Exchange;
use super::knocks::Knocks;
use super::load_balanced::OpenCursors;
use super::log_in::LogIn;
use super::misfits::Doings;
use super::places::{Crowd, Place};
use super::shared::{BusyClient, ClientShared};
use super::socket::{ClientSocket, Incoming, ReadEnd};
use super::spare;
use super::transactions::OpenTransactions;
use crate::admission::{Lane, Reservation};
use crate::auth::{Identity, UserId};
use crate::command::parse::expects_reply;
use crate::command::{Command, CommandError, Forbidden, Handling, LocalCommand, SessionFields};
use crate::reply::errors::{self, ErrorReply};
use crate::reply::local::{self, PoolStats};
use crate::reply::{ClientState, Facts, OperationKind, Shown, Situation, Socket, answer, hello};
use crate::tasks::compute;
use crate::telemetry::Application;
use crate::telemetry::labels::{ClientClosed, CommandLabel, Outcome, RefusedReason, ShedReason, Side};
use crate::upstream::pool::lock;
use crate::wire::legacy::{Legacy, LegacyCommand, op_reply, reply_flag};
use crate::wire::{Compressor, Frame, FrameError, OpCode, OpMsgError, encode, legacy, op_compressed};

/// One client and its socket.
pub struct Session<S> {
    pub(super) socket: ClientSocket<S>,
    pub(super) shared: Arc<ClientShared>,
    pub(super) state: ClientState,
    /// What this client was told that we are, which it must never learn otherwise, and up to which wire version: a driver
    /// keeps to what the greeting of a socket said, so more than that is for new sockets.
    pub(super) told: Option<(Shown, i32)>,
    pub(super) ends: Ends,
    pub(super) doings: Doings,
    /// Whose client it is, as far as it has told.
    pub(super) application: Application,
    /// Who it has logged in as.
    pub(super) identity: Option<Arc<Identity>>,
    /// What is known beside that of who logs in.
    pub(super) log_in: Option<Box<LogIn>>,
    pub(super) knocks: Knocks,
    /// Those that it has used and that are open still.
    pub(super) transactions: OpenTransactions,
    /// Those that end with it.
    pub(super) cursors: OpenCursors,
    place: Place,
}

/// A session that has served a message.
pub struct Served<S> {
    session: Box<Session<S>>,
    /// Why it was the last one.
    end: Option<ClientClosed>,
}

/// What is to be done about a message.
#[expect(clippy::large_enum_variant, reason = "the large one is the common one, and boxing it costs an allocation")]
enum Plan {
    /// Carry it out upstream.
    Execute(Exchange),
    /// Anything else; taken out when it is done.
    Aside(Option<Box<Aside>>),
    /// No further message comes.
    End(ClientClosed),
}

impl Plan {
    fn aside(aside: Aside) -> Self {
        Self::Aside(Some(Box::new(aside)))
    }
}

/// A message that is not simply passed on, with its memory.
enum Aside {
    TooMuch { head: Frame, needed_bytes: usize },
    Compressed(Frame, Reservation),
    Legacy(Frame, Reservation),
    Bad(Frame, ReplyTo, CommandError, Reservation),
    Command(Command, Frame, ReplyTo, Reservation),
    Forbidden(Command, Frame, ReplyTo, Forbidden, Reservation),
}

/// How a reply goes out: to which request, and compressed like it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyTo {
    pub(super) request_id: i32,
    pub(super) compressor: Option<Compressor>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// A session on a socket that was just accepted.
    pub fn new(stream: S, ends: Ends, shared: Arc<ClientShared>, place: Place) -> Box<Self> {
        let mut socket = ClientSocket::new(stream, shared.bounds.clone());
        socket.only_small(shared.log_ins.is_some());
        let (state, transactions) = (ClientState::default(), OpenTransactions::default());
        let (cursors, doings) = (OpenCursors::default(), Doings::default());
        let application = shared.metrics.applications.unnamed();
        let (told, identity, log_in, knocks) = (None, None, None, Knocks::default());
        Box::new(Self {
            socket,
            shared,
            state,
            told,
            ends,
            doings,
            application,
            identity,
            log_in,
            knocks,
            transactions,
            cursors,
            place,
        })
    }

    /// Serves the client until it leaves or has to be closed; returns why. Each message at one of `desks`.
    ///
    /// A block: what an async function takes by value is room in the task of every client, idle or not, twice. The session
    /// is boxed, as it goes from hand to hand.
    #[expect(clippy::manual_async_fn, reason = "an async function would hold what it takes twice")]
    pub fn run(mut self: Box<Self>, desks: Arc<Desks<S>>) -> impl Future<Output = ClientClosed> + Send
    where
        S: 'static,
    {
        async move {
            let reason = loop {
                let message = self.socket.next().await;
                let mut desk = desks.take(self, message);
                let served = std::future::poll_fn(|context| desk.poll(context)).await;
                desks.give_back(desk);
                self = served.session;
                if let Some(reason) = served.end {
                    break reason;
                }
            };
            self.end_what_was_pinned();
            if reason == ClientClosed::ClientLeft {
                self.left();
            } else {
                self.socket.part().await;
            }
            reason
        }
    }

    /// Serves one message.
    pub(super) async fn serve(mut self: Box<Self>, message: Result<Incoming, ReadEnd>) -> Served<S> {
        let mut plan = self.plan(message);
        let busy = BusyClient::new(&self.shared);
        let served = match &mut plan {
            Plan::Execute(exchange) => self.execute(exchange).await,
            Plan::Aside(aside) => Box::pin(self.aside(aside.take())).await,
            Plan::End(reason) => Err(ReadEnd::Closed(*reason)),
        };
        drop(busy);
        if let Plan::Execute(exchange) = plan
            && let Some(buffer) = exchange.into_frame().into_lent_buffer()
        {
            spare::give_back(buffer);
        }
        if self.log_in.is_some() {
            self.hurry();
        }
        let end = served.err().map(|end| self.closed(&end));
        Served { session: self, end }
    }

    fn closed(&self, end: &ReadEnd) -> ClientClosed {
        match end {
            ReadEnd::Left => ClientClosed::ClientLeft,
            ReadEnd::Timeout(reason) | ReadEnd::Closed(reason) => *reason,
            ReadEnd::Frame(FrameError::Tls) => {
                if let Some(clients) = self.shared.tls_on_plain.happened(Instant::now()) {
                    tracing::warn!(peer = %self.ends, clients, "clients speak TLS to a listener without: closed");
                }
                ClientClosed::Tls
            }
            ReadEnd::Frame(error) => {
                tracing::debug!(peer = %self.ends, %error, "closing a client that does not speak the protocol");
                ClientClosed::ProtocolError
            }
        }
    }

    /// Decides about a message without waiting: almost all are commands for upstream.
    fn plan(&mut self, next: Result<Incoming, ReadEnd>) -> Plan {
        let (frame, reservation) = match next {
            Ok(Incoming::Message(frame, reservation)) => (frame, reservation),
            Ok(Incoming::TooMuch { head, needed_bytes }) => return Plan::aside(Aside::TooMuch { head, needed_bytes }),
            Err(end) => return Plan::End(self.closed(&end)),
        };
        self.shared.metrics.received_bytes[Side::Client].inc_by(frame.bytes().len() as u64);
        if self.knocks_too_often(frame.bytes().len()) {
            tracing::debug!(peer = %self.ends, "closing a client that sends too much before it has logged in");
            return Plan::End(ClientClosed::Unauthenticated);
        }
        match frame.header().op_code {
            OpCode::Msg => self.plan_op_msg(frame, reservation, None),
            OpCode::Compressed => Plan::aside(Aside::Compressed(frame, reservation)),
            _ => Plan::aside(Aside::Legacy(frame, reservation)),
        }
    }

    fn plan_op_msg(&mut self, mut frame: Frame, reservation: Reservation, compressor: Option<Compressor>) -> Plan {
        let reply_to = ReplyTo { request_id: frame.header().request_id, compressor };
        let mut command = match Command::parse(&mut frame) {
            Ok(command) => command,
            Err(error) => return Plan::aside(Aside::Bad(frame, reply_to, error, reservation)),
        };
        match &self.identity {
            Some(identity) if !identity.is_revoked() => command.session.set_user(identity.id),
            None if self.shared.log_ins.is_none() => {}
            // Who has still to log in has neither session nor transaction, whatever it says: servers look at them no more.
            _ => command.session = SessionFields::default(),
        }
        if self.shared.clusters.are_several() {
            // No client of such a listener has learnt one here, and one of another cluster would do harm.
            command.take_out_cluster_time(&mut frame);
        }
        if command.spec.handling != Handling::Local(LocalCommand::Hello) && self.doings.command() {
            lock(&self.shared.misfits).works(&self.state, &self.ends, Instant::now());
        }
        let passes = match command.spec.handling {
            Handling::Pass | Handling::GetMore => self.place.is_regular(),
            // Frees what others wait for.
            Handling::EndTransaction => true,
            _ => false,
        };
        // First of all, so that who has still to log in learns nothing of the rules.
        let locked_out = self.locked_out(&command, &frame).is_some();
        if !locked_out
            && matches!(command.spec.handling, Handling::Pass | Handling::GetMore)
            && let Some(rule) = self.shared.rules.forbid(&command, &frame)
        {
            return Plan::aside(Aside::Forbidden(command, frame, reply_to, rule, reservation));
        }
        if passes
            && !locked_out
            && command.refusal(&frame).is_none()
            && !self.kind_changed()
            && !self.shared.clusters.all_have_to_hear(&command)
            && let Ok(cluster) = self.shared.clusters.of(&command, &frame)
        {
            let cluster = cluster.clone();
            return Plan::Execute(Exchange::new(
                command,
                frame,
                reply_to,
                reservation,
                &self.shared,
                cluster,
                self.caller(),
            ));
        }
        Plan::aside(Aside::Command(command, frame, reply_to, reservation))
    }

    pub(super) fn caller(&self) -> Caller<'_> {
        Caller { state: &self.state, ends: &self.ends, identity: self.identity.as_ref() }
    }

    /// Over whose connections its commands go.
    pub(super) fn upstream_user(&self) -> UserId {
        self.identity.as_ref().map_or(UserId::SERVICE, |identity| identity.upstream)
    }

    /// True when it has logged in and servers cannot tell it from other users.
    pub(super) fn shares_connections(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.shares_connections())
    }

    /// What is not the common case.
    async fn aside(&mut self, aside: Option<Box<Aside>>) -> Result<(), ReadEnd> {
        let Some(aside) = aside else { return Ok(()) };
        match *aside {
            Aside::TooMuch { head, needed_bytes } => self.too_much(&head, needed_bytes).await,
            Aside::Compressed(frame, reservation) => self.compressed(frame, reservation).await,
            Aside::Legacy(frame, _held) => self.legacy(&frame, None).await,
            Aside::Bad(frame, reply_to, error, _held) => self.bad_command(&frame, reply_to, &error).await,
            Aside::Command(command, frame, reply_to, reservation) => {
                self.command(command, frame, reply_to, reservation).await
            }
            Aside::Forbidden(command, frame, reply_to, rule, _held) => {
                self.count_refused(&command, rule.reason());
                let error = errors::unauthorized(&rule.to_string());
                self.error(&command, &frame, reply_to, &error, Outcome::Refused).await
            }
        }
    }

    /// Counts a command that a rule does not let pass; one whose client waits for nothing is dropped without a word as well.
    fn count_refused(&self, command: &Command, reason: RefusedReason) {
        self.shared.metrics.refused[reason].inc();
        if command.unacknowledged {
            self.shared.metrics.shed[ShedReason::Unacknowledged].inc();
        }
    }

    async fn command(
        &mut self,
        command: Command,
        frame: Frame,
        reply_to: ReplyTo,
        reservation: Reservation,
    ) -> Result<(), ReadEnd> {
        if self.kind_changed() {
            return Err(ReadEnd::Closed(ClientClosed::Proxy));
        }
        if let Some(error) = self.locked_out(&command, &frame) {
            self.error(&command, &frame, reply_to, &error, Outcome::Refused).await?;
            return if self.is_revoked() { Err(ReadEnd::Closed(ClientClosed::Revoked)) } else { Ok(()) };
        }
        match command.spec.handling {
            Handling::Local(local) => self.local(local, &command, &frame, reply_to).await,
            Handling::Pass | Handling::GetMore if command.refusal(&frame).is_none() => {
                self.for_upstream(command, frame, reply_to, reservation).await
            }
            Handling::EndSessions => self.end_sessions(&command, &frame, reply_to).await,
            Handling::KillCursors => match self.shared.clusters.of(&command, &frame).cloned() {
                Ok(cluster) => self.kill_cursors(command, frame, reply_to, reservation, cluster).await,
                Err(error) => self.error(&command, &frame, reply_to, &error, Outcome::Refused).await,
            },
            Handling::Refuse | Handling::Internal | Handling::Pass | Handling::GetMore | Handling::EndTransaction => {
                self.refuse(&command, &frame, reply_to).await
            }
        }
    }

    /// A command for upstream that is not simply passed on: all clusters have to hear it, none is the right one, or its client
    /// is surplus.
    async fn for_upstream(
        &mut self,
        command: Command,
        frame: Frame,
        reply_to: ReplyTo,
        reservation: Reservation,
    ) -> Result<(), ReadEnd> {
        let cluster = match self.shared.clusters.of(&command, &frame) {
            Ok(cluster) => cluster.clone(),
            Err(error) => return self.error(&command, &frame, reply_to, &error, Outcome::Refused).await,
        };
        let regular = self.place.is_regular();
        if regular && self.shared.clusters.all_have_to_hear(&command) {
            return self.tell_all(command, frame, reply_to, reservation).await;
        }
        let mut exchange = Exchange::new(command, frame, reply_to, reservation, &self.shared, cluster, self.caller());
        // What an open transaction sends is never shed: it holds what others wait for.
        if regular || exchange.claim.lane == Lane::Transaction {
            return self.execute(&mut exchange).await;
        }
        let Crowd { clients, limit, of_address } = self.place.crowd();
        let situation = Situation::ClientsFull { clients, limit, of_address };
        self.refused(&exchange, situation.into()).await
    }

    /// A compressed message; its memory is enough for both forms.
    async fn compressed(&mut self, frame: Frame, mut reservation: Reservation) -> Result<(), ReadEnd> {
        let limit = self.socket.max_message_bytes();
        let protocol_error = |error: &dyn std::fmt::Display| {
            tracing::debug!(peer = %self.ends, %error, "closing a client that sent a broken compressed message");
            ReadEnd::Closed(ClientClosed::ProtocolError)
        };
        let inflated_bytes =
            op_compressed::inflated_bytes(frame.body(), limit).map_err(|error| protocol_error(&error))?;
        let takes_long = op_compressed::takes_long_to_open(frame.bytes().len(), inflated_bytes);
        let inflate = move || op_compressed::decompress(&frame, limit).map(|inside| (frame, inside));
        let inflated =
            if takes_long { compute(inflate).await.map_err(|error| protocol_error(&error))? } else { inflate() };
        let (came, (mut frame, compressor)) = inflated.map_err(|error| protocol_error(&error))?;
        if self.shared.goes_on_as_it_came(compressor) {
            frame.keep_wrapped(came, compressor);
        } else {
            drop(came);
            reservation.shrink_to(frame.bytes().len());
        }
        if frame.header().op_code != OpCode::Msg {
            return self.legacy(&frame, Some(compressor)).await;
        }
        match self.plan_op_msg(frame, reservation, Some(compressor)) {
            Plan::Execute(mut exchange) => self.execute(&mut exchange).await,
            // Boxed, as one aside may lead to another, though never to a third: what is inside is no OP_COMPRESSED.
            Plan::Aside(aside) => Box::pin(self.aside(aside)).await,
            Plan::End(reason) => Err(ReadEnd::Closed(reason)),
        }
    }

    /// A command that the proxy answers itself.
    async fn local(
        &mut self,
        local: LocalCommand,
        command: &Command,
        frame: &Frame,
        reply_to: ReplyTo,
    ) -> Result<(), ReadEnd> {
        let (name, document) = (command.name(frame), command.document(frame));
        let answer = match local {
            LocalCommand::Hello => {
                let facts = self.facts().await?;
                self.hello(document, name, &facts).await
            }
            // Where nobody logs in there is nothing to tell of that.
            LocalCommand::ConnectionStatus if self.shared.log_ins.is_none() => self.local_answer(local, document, name),
            LocalCommand::SaslStart
            | LocalCommand::SaslContinue
            | LocalCommand::Authenticate
            | LocalCommand::Logout
            | LocalCommand::ConnectionStatus => {
                Box::pin(self.log_in_command(local, (name, document, command.database(frame)))).await
            }
            _ => self.local_answer(local, document, name),
        };
        let label = CommandLabel::of(command.spec.name);
        match answer {
            Ok(document) => {
                self.shared.metrics.commands[(label, Outcome::Completed)].inc();
                self.reply(command, reply_to, &document).await
            }
            Err(error) => self.error(command, frame, reply_to, &error, Outcome::Failed).await,
        }
    }

    fn local_answer(&self, local: LocalCommand, document: &[u8], name: &str) -> Result<RawDocumentBuf, ErrorReply> {
        local::check_api(document, name)?;
        match local {
            LocalCommand::ConnPoolStats => Ok(local::conn_pool_stats("mongomux", &self.pool_stats())),
            LocalCommand::WhatsMyUri => Ok(local::whatsmyuri(&self.ends.to_string())),
            LocalCommand::ConnectionStatus => Ok(local::connection_status(document)),
            LocalCommand::GetNonce => Ok(local::getnonce(rand::random())),
            LocalCommand::SaslStart
            | LocalCommand::SaslContinue
            | LocalCommand::Authenticate
            | LocalCommand::Logout
            | LocalCommand::Hello => Err(local::login(name)),
        }
    }

    async fn hello(&mut self, document: &[u8], name: &str, facts: &Facts) -> Result<RawDocumentBuf, ErrorReply> {
        let dialled = &self.ends.dialled();
        let socket = Socket { connection_id: self.place.number(), dialled };
        let reply = hello(document, name, facts, &mut self.state, socket, bson::DateTime::now())?;
        if let Some(metadata) = self.state.metadata.take() {
            if let Some(name) = &metadata.application {
                self.application = self.shared.metrics.applications.named(name);
            }
            self.state.metadata = Some(lock(&self.shared.metadata).intern(metadata));
        }
        self.told = Some((facts.presentation, facts.max_wire_version));
        self.greeted();
        if self.shared.log_ins.is_none() {
            return Ok(reply);
        }
        Box::pin(self.with_log_in(&reply, name, document)).await
    }

    /// What we are; waits until the upstream was seen once. A late hello costs a driver one retry, a wrong one the client.
    async fn facts(&mut self) -> Result<Facts, ReadEnd> {
        let mut facts = self.shared.facts.clone();
        loop {
            if let Some(mut facts) = facts.borrow_and_update().clone() {
                if let Some((_, told)) = self.told {
                    facts.max_wire_version = facts.max_wire_version.min(told);
                }
                return Ok(facts);
            }
            // Nothing is lost when an arm loses: the watch keeps its newest value, the socket its bytes.
            tokio::select! {
                changed = facts.changed() => changed.map_err(|_| ReadEnd::Closed(ClientClosed::Proxy))?,
                () = self.socket.left() => return Err(ReadEnd::Left),
            }
        }
    }

    /// True when the upstream has become something else than this client was told: a driver that hears of both drops us
    /// for good, so it must not hear of the new one on this socket.
    fn kind_changed(&self) -> bool {
        self.told.is_some_and(|(told, _)| {
            self.shared.facts.borrow().as_ref().is_some_and(|facts| facts.presentation != told)
        })
    }

    fn pool_stats(&self) -> Vec<PoolStats> {
        let servers = self.shared.clusters.all().flat_map(|cluster| cluster.servers());
        let stats = servers.map(|server| {
            let snapshot = server.pool.snapshot();
            PoolStats {
                server: (*server.address).clone(),
                in_use: snapshot.counts.in_use.into(),
                available: snapshot.counts.available.into(),
                pending: snapshot.counts.pending.into(),
                created: snapshot.created,
                refreshed: 0,
            }
        });
        stats.collect()
    }

    async fn refuse(&mut self, command: &Command, frame: &Frame, reply_to: ReplyTo) -> Result<(), ReadEnd> {
        let name = command.name(frame);
        let listed = match (command.refusal(frame), command.spec.handling) {
            (Some(why), _) => Some(errors::unauthorized(why)),
            (None, Handling::Internal) => Some(errors::command_not_found(name)),
            (None, Handling::Refuse) => Some(errors::not_allowed(name)),
            (None, _) => None,
        };
        if listed.is_some() {
            self.count_refused(command, RefusedReason::Listed);
        }
        let of_no_cluster = || self.shared.clusters.of(command, frame).err();
        let error = listed.or_else(of_no_cluster).unwrap_or_else(|| errors::not_allowed(name));
        self.error(command, frame, reply_to, &error, Outcome::Refused).await
    }

    /// What is wrong with a message that is no command, in the server's words and codes.
    async fn bad_command(&mut self, frame: &Frame, reply_to: ReplyTo, error: &CommandError) -> Result<(), ReadEnd> {
        let close = Err(ReadEnd::Closed(ClientClosed::ProtocolError));
        let reply = match error {
            CommandError::OpMsg(fault) => match errors::op_msg(fault) {
                Some(reply) => reply,
                None => return close,
            },
            CommandError::InvalidBson => errors::invalid_bson(),
            CommandError::NoDatabase => errors::no_database(),
            CommandError::DatabaseType => errors::database_type(),
            CommandError::InternalField(_) => {
                self.shared.metrics.refused[RefusedReason::Listed].inc();
                errors::unauthorized(&error.to_string())
            }
        };
        self.shared.metrics.commands[(CommandLabel::Other, Outcome::Failed)].inc();
        if expects_reply(frame) {
            self.send_document(reply_to, &reply.to_document()).await?;
        }
        // Where the next section starts is unknown: the specification asks to close.
        if matches!(error, CommandError::OpMsg(OpMsgError::UnknownSection(_))) { close } else { Ok(()) }
    }

    async fn too_much(&mut self, head: &Frame, needed_bytes: usize) -> Result<(), ReadEnd> {
        self.shared.metrics.shed[ShedReason::Memory].inc();
        let situation = Situation::RequestOverMemory { needed_bytes, limit_bytes: self.shared.bounds.memory.limit() };
        let answered = match head.header().op_code {
            OpCode::Msg if !expects_reply(head) => None,
            OpCode::Msg | OpCode::Compressed => answer(&situation, OperationKind::Write),
            _ => return Err(ReadEnd::Closed(ClientClosed::ProtocolError)),
        };
        match answered {
            Some(error) => {
                let reply_to = ReplyTo { request_id: head.header().request_id, compressor: None };
                self.send_document(reply_to, &error.to_document()).await
            }
            None => Ok(()),
        }
    }

    async fn legacy(&mut self, frame: &Frame, compressor: Option<Compressor>) -> Result<(), ReadEnd> {
        let (flags, document) = match legacy::parse(frame) {
            Legacy::Command(command) => {
                if self.kind_changed() {
                    return Err(ReadEnd::Closed(ClientClosed::Proxy));
                }
                (reply_flag::AWAIT_CAPABLE, self.legacy_answer(&command, frame).await?)
            }
            Legacy::Refused(fault) => (fault.reply_flags(), errors::legacy(&fault)),
            Legacy::Close => return Err(ReadEnd::Closed(ClientClosed::ProtocolError)),
        };
        let request_id = frame.header().request_id;
        let reply = op_reply(request_id, request_id, flags, &document);
        let bytes = match compressor {
            Some(compressor) => self.compress(reply.bytes(), compressor),
            None => reply.into_bytes(),
        };
        self.write(bytes).await
    }

    async fn legacy_answer(&mut self, command: &LegacyCommand, frame: &Frame) -> Result<RawDocumentBuf, ReadEnd> {
        let document = command.document(frame);
        let answer = match command.name() {
            name @ ("hello" | "isMaster" | "ismaster") => {
                let facts = self.facts().await?;
                self.shared.metrics.commands[(CommandLabel::Hello, Outcome::Completed)].inc();
                self.hello(document, name, &facts).await
            }
            name => {
                let step = match name {
                    "saslStart" => LocalCommand::SaslStart,
                    "saslContinue" => LocalCommand::SaslContinue,
                    _ => LocalCommand::Authenticate,
                };
                Box::pin(self.log_in_command(step, (name, document, command.database(frame)))).await
            }
        };
        Ok(answer.unwrap_or_else(|error| error.to_document()))
    }

    /// Counts an error and sends it, unless the client waits for nothing.
    pub(super) async fn error(
        &mut self,
        command: &Command,
        frame: &Frame,
        reply_to: ReplyTo,
        error: &ErrorReply,
        outcome: Outcome,
    ) -> Result<(), ReadEnd> {
        tracing::debug!(peer = %self.ends, command = command.name(frame), error = %error.message, "answered with an error");
        self.shared.metrics.commands[(CommandLabel::of(command.spec.name), outcome)].inc();
        self.reply(command, reply_to, &error.to_document()).await
    }

    /// Sends a document, unless the client waits for nothing.
    pub(super) async fn reply(
        &mut self,
        command: &Command,
        reply_to: ReplyTo,
        document: &RawDocument,
    ) -> Result<(), ReadEnd> {
        if command.unacknowledged { Ok(()) } else { self.send_document(reply_to, document).await }
    }

    pub(super) async fn send_document(&mut self, reply_to: ReplyTo, document: &RawDocument) -> Result<(), ReadEnd> {
        self.write(self.encode(reply_to, document)).await
    }

    /// The message that answers with `document`.
    pub(super) fn encode(&self, reply_to: ReplyTo, document: &RawDocument) -> Bytes {
        let message = encode::op_msg(reply_to.request_id, reply_to.request_id, document);
        match reply_to.compressor {
            Some(compressor) => self.compress(message.bytes(), compressor),
            None => message.into_bytes(),
        }
    }

    pub(super) fn compress(&self, message: &[u8], compressor: Compressor) -> Bytes {
        op_compressed::compress(message, compressor, self.shared.limits.max_message_bytes).freeze()
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), ReadEnd> {
        self.shared.metrics.sent_bytes[Side::Client].inc_by(bytes.len() as u64);
        let written = self.socket.write_now(&bytes).await.map_err(|_| ReadEnd::Left)?;
        match written {
            None => Ok(()),
            Some(written) => Box::pin(self.write_rest(bytes.slice(written..))).await,
        }
    }

    /// The rest of an answer of our own: it waits for its client, and counts as a reply does meanwhile.
    async fn write_rest(&mut self, rest: Bytes) -> Result<(), ReadEnd> {
        let memory = self.shared.bounds.memory.clone();
        // Nothing is lost when an arm loses: who waits for memory leaves the line, the socket keeps its bytes.
        let _charge = tokio::select! {
            charge = memory.reply(rest.len()) => charge,
            () = self.socket.left() => return Err(ReadEnd::Left),
        };
        self.socket.write_all(rest).await
    }

    /// Time since `started`, in seconds, for a histogram.
    pub(super) fn observe(&self, label: CommandLabel, started: Instant, upstream: std::time::Duration) {
        let whole = started.elapsed();
        let metrics = &self.shared.metrics;
        metrics.command_seconds[label].observe(whole.as_secs_f64());
        metrics.upstream_seconds[label].observe(upstream.as_secs_f64());
        metrics.overhead_seconds.observe(whole.saturating_sub(upstream).as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    fn size_of_result<A, R>(_: impl Fn(A) -> R) -> usize {
        size_of::<R>()
    }

    /// Each byte of the first is a byte per client, whether it works or idles; each of the second one per client at work.
    /// What is rare is boxed.
    #[test]
    fn the_task_of_a_client_is_small() {
        let idle = size_of_result(|session: Box<Session<TcpStream>>| session.run(Arc::default()));
        assert!(size_of::<Session<TcpStream>>() + idle <= 408, "{} + {idle} bytes", size_of::<Session<TcpStream>>());
        let at_work = size_of_result(|session: Box<Session<TcpStream>>| session.serve(Err(ReadEnd::Left)));
        assert!(at_work <= 1_800, "{at_work} bytes");
    }
}
