//! Commands that the proxy answers itself, hello above all.

use bson::raw::RawDocumentBuf;
use tokio::io::{AsyncRead, AsyncWrite};

use super::session::{ReplyTo, Session};
use super::socket::ReadEnd;
use crate::command::{Command, LocalCommand};
use crate::reply::errors::ErrorReply;
use crate::reply::local::{self, PoolStats};
use crate::reply::{Facts, Socket, hello};
use crate::telemetry::labels::{ClientClosed, CommandLabel, ConnectionClosed, Outcome};
use crate::upstream::pool::lock;
use crate::wire::Frame;

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// A command that the proxy answers itself.
    pub(super) async fn local(
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
            LocalCommand::ConnPoolStats => {
                let followed: Vec<_> = self.shared.clusters.all().map(|cluster| cluster.topology()).collect();
                Ok(local::conn_pool_stats("mongomux", &self.pool_stats(), &followed))
            }
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

    pub(super) async fn hello(
        &mut self,
        document: &[u8],
        name: &str,
        facts: &Facts,
    ) -> Result<RawDocumentBuf, ErrorReply> {
        let dialled = &self.ends.dialled();
        let socket = Socket { connection_id: self.place.number(), dialled };
        let reply = hello(document, name, facts, &mut self.state, socket, bson::DateTime::now())?;
        if let Some(metadata) = self.state.metadata.take() {
            if let Some(name) = &metadata.application {
                self.application = self.shared.metrics.applications.named(name);
            }
            let metadata = lock(&self.shared.metadata).intern(metadata);
            self.socket.greeted(metadata.clone());
            self.state.metadata = Some(metadata);
        }
        self.told = Some((facts.presentation, facts.max_wire_version));
        self.greeted();
        if self.shared.log_ins.is_none() {
            return Ok(reply);
        }
        Box::pin(self.with_log_in(&reply, name, document)).await
    }

    /// What we are; waits until the upstream was seen once. A late hello costs a driver one retry, a wrong one the client.
    pub(super) async fn facts(&mut self) -> Result<Facts, ReadEnd> {
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
    pub(super) fn kind_changed(&self) -> bool {
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
                refreshed: server.metrics.connections_closed[ConnectionClosed::Lifetime].get(),
            }
        });
        stats.collect()
    }
}
