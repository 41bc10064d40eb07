//! Messages that are not simply passed on: refused or local commands, those that all clusters have to hear, and whatever is no OP_MSG or no
//! command at all.

use tokio::io::{AsyncRead, AsyncWrite};

use super::exchange::Exchange;
use super::places::Crowd;
use super::session::{Plan, ReplyTo, Session};
use super::socket::ReadEnd;
use crate::admission::{Lane, Reservation};
use crate::command::parse::expects_reply;
use crate::command::{Command, CommandError, Forbidden, Handling, LocalCommand};
use crate::reply::errors;
use crate::reply::{OperationKind, Situation, answer};
use crate::tasks::compute;
use crate::telemetry::labels::{ClientClosed, CommandLabel, Outcome, RefusedReason, ShedReason};
use crate::wire::legacy::{Legacy, LegacyCommand, op_reply, reply_flag};
use crate::wire::{Compressor, Frame, OpCode, OpMsgError, legacy, op_compressed};
use bson::raw::RawDocumentBuf;

/// A message that is not simply passed on, with its memory.
pub(super) enum Aside {
    TooMuch { head: Frame, needed_bytes: usize },
    Compressed(Frame, Reservation),
    Legacy(Frame, Reservation),
    Bad(Frame, ReplyTo, CommandError, Reservation),
    Command(Command, Frame, ReplyTo, Reservation),
    Forbidden(Command, Frame, ReplyTo, Forbidden, Reservation),
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// What is not the common case.
    pub(super) async fn aside(&mut self, aside: Option<Box<Aside>>) -> Result<(), ReadEnd> {
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
        if let Ok(cluster) = self.shared.clusters.of(&command, &frame)
            && let Some(question) = cluster.unknown_here(&command, &frame)
        {
            let cluster = cluster.clone();
            cluster.ask_elsewhere(question).await;
        }
        match command.spec.handling {
            Handling::Local(local) => self.local(local, &command, &frame, reply_to).await,
            Handling::Pass | Handling::GetMore | Handling::EndTransaction if command.refusal(&frame).is_none() => {
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
        let own = self.own_for(&cluster, &command, &frame);
        let mut exchange =
            Exchange::new(command, frame, reply_to, reservation, &self.shared, cluster, self.caller(own));
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
        let client = self.number();
        let protocol_error = |error: &dyn std::fmt::Display| {
            tracing::debug!(client, peer = %self.ends, %error, "closing a client that sent a broken compressed message");
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
}
