//! One client: its messages one after the other, each answered before the next is looked at.
//!
//! The loop reads as the path of a message. What goes upstream is in `execute`, all that is not simply passed on in `aside`.

use std::sync::Arc;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::aside::Aside;
use super::caller::Caller;
use super::desks::Desks;
use super::ends::Ends;
use super::exchange::Exchange;
use super::knocks::Knocks;
use super::leaving::{ClientStream, Going};
use super::load_balanced::OpenCursors;
use super::log_in::LogIn;
use super::misfits::Doings;
use super::places::Place;
use super::shared::{BusyClient, ClientShared};
use super::socket::{ClientSocket, Incoming, ReadEnd};
use super::spare;
use super::transactions::OpenTransactions;
use crate::admission::Reservation;
use crate::auth::{Identity, UserId};
use crate::command::{Command, Handling, LocalCommand, SessionFields};
use crate::reply::{ClientState, Shown};
use crate::telemetry::Application;
use crate::telemetry::labels::{ClientClosed, Side};
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, OwnConnections};
use crate::wire::{Compressor, Frame, FrameError, OpCode};

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
    /// Connections that only it uses, once there was a command that was to be observed only.
    own: Option<Arc<OwnConnections>>,
    pub(super) place: Place,
}

/// A session that has served a message.
pub struct Served<S> {
    /// `None` once the next process has its socket.
    session: Option<Box<Session<S>>>,
    /// Why it was the last one.
    end: Option<ClientClosed>,
}

/// What is to be done about a message.
#[expect(clippy::large_enum_variant, reason = "the large one is the common one, and boxing it costs an allocation")]
pub(super) enum Plan {
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
            own: None,
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
        S: ClientStream,
    {
        async move {
            std::future::poll_fn(|context| {
                self.socket.enlist(self.place.number(), &self.ends, context);
                Poll::Ready(())
            })
            .await;
            if let Some(metadata) = &self.state.metadata {
                // It was greeted by the process before.
                self.socket.greeted(metadata.clone());
            }
            let reason = loop {
                let message = self.socket.next().await;
                let mut desk = desks.take(self, message);
                let served = std::future::poll_fn(|context| desk.poll(context)).await;
                desks.give_back(desk);
                let Some(session) = served.session else { return ClientClosed::HandedOver };
                self = session;
                if let Some(reason) = served.end {
                    break reason;
                }
            };
            self.end_what_was_pinned();
            let reason = match reason {
                ClientClosed::ClientLeft if self.socket.is_killed() => ClientClosed::Killed,
                reason => reason,
            };
            if reason == ClientClosed::ClientLeft {
                self.left();
            } else {
                self.socket.part().await;
            }
            reason
        }
    }

    /// Serves one message.
    pub(super) async fn serve(mut self: Box<Self>, message: Result<Incoming, ReadEnd>) -> Served<S>
    where
        S: ClientStream,
    {
        if matches!(message, Err(ReadEnd::ToldToGo)) {
            return match self.go() {
                Going::Stays(session) => Served { session: Some(session), end: None },
                Going::HandedOver => Served { session: None, end: None },
                Going::Closes(mut session) => {
                    // Boxed, as this is rare.
                    Box::pin(session.close_gently()).await;
                    Served { session: Some(session), end: Some(ClientClosed::Drain) }
                }
            };
        }
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
        Served { session: Some(self), end }
    }

    fn closed(&self, end: &ReadEnd) -> ClientClosed {
        match end {
            ReadEnd::Left => ClientClosed::ClientLeft,
            ReadEnd::Timeout(reason) | ReadEnd::Closed(reason) => *reason,
            ReadEnd::ToldToGo => ClientClosed::Drain,
            ReadEnd::Frame(FrameError::Tls) => {
                if let Some(clients) = self.shared.tls_on_plain.happened(Instant::now()) {
                    tracing::warn!(peer = %self.ends, clients, "clients speak TLS to a listener without: closed");
                }
                ClientClosed::Tls
            }
            ReadEnd::Frame(error) => {
                tracing::debug!(client = self.number(), peer = %self.ends, %error, "closing a client that does not speak the protocol");
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
            tracing::debug!(client = self.number(), peer = %self.ends, "closing a client that sends too much before it has logged in");
            return Plan::End(ClientClosed::Unauthenticated);
        }
        match frame.header().op_code {
            OpCode::Msg => self.plan_op_msg(frame, reservation, None),
            OpCode::Compressed => Plan::aside(Aside::Compressed(frame, reservation)),
            _ => Plan::aside(Aside::Legacy(frame, reservation)),
        }
    }

    pub(super) fn plan_op_msg(
        &mut self,
        mut frame: Frame,
        reservation: Reservation,
        compressor: Option<Compressor>,
    ) -> Plan {
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
            && cluster.unknown_here(&command, &frame).is_none()
        {
            let cluster = cluster.clone();
            let own = self.own_for(&cluster, &command, &frame);
            return Plan::Execute(Exchange::new(
                command,
                frame,
                reply_to,
                reservation,
                &self.shared,
                cluster,
                self.caller(own),
            ));
        }
        Plan::aside(Aside::Command(command, frame, reply_to, reservation))
    }

    /// Its number among all clients of the process.
    pub(super) fn number(&self) -> i64 {
        self.place.number()
    }

    pub(super) fn caller(&self, own: Option<Arc<OwnConnections>>) -> Caller<'_> {
        Caller { state: &self.state, ends: &self.ends, identity: self.identity.as_ref(), own }
    }

    /// The connections of its own, for a command that goes over one of them instead of over a shared one.
    pub(super) fn own_for(
        &mut self,
        cluster: &Cluster,
        command: &Command,
        frame: &Frame,
    ) -> Option<Arc<OwnConnections>> {
        if cluster.pools_all() {
            return None;
        }
        let pooling = &cluster.config().pooling;
        // The end of a transaction is sent to no database of its own.
        let named =
            command.spec.handling == Handling::EndTransaction || pooling.pools_database(command.database(frame));
        if named && pooling.pools_client(self.number()) {
            return None;
        }
        Some(self.own.get_or_insert_with(|| OwnConnections::new(self.place.number())).clone())
    }

    /// Over whose connections its commands go.
    pub(super) fn upstream_user(&self) -> UserId {
        self.identity.as_ref().map_or(UserId::SERVICE, |identity| identity.upstream)
    }

    /// True when it has logged in and servers cannot tell it from other users.
    pub(super) fn shares_connections(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.shares_connections())
    }

    /// A command has been answered, whoever by. `waited` is known of those only that got a connection: with them goes what is left,
    /// which is ours.
    pub(super) fn observe(&self, exchange: &Exchange, got_through: bool) {
        let (whole, metrics) = (exchange.started.elapsed(), &self.shared.metrics);
        metrics.command_seconds[exchange.label].observe(whole.as_secs_f64());
        metrics.upstream_seconds[exchange.label].observe(exchange.upstream.as_secs_f64());
        if got_through {
            let ours = whole.saturating_sub(exchange.upstream).saturating_sub(exchange.waited);
            metrics.overhead_seconds.observe(ours.as_secs_f64());
        }
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
