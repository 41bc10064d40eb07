//! How the proxy's own answers go out; those of servers have `deliver`.

use bson::raw::RawDocument;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::session::{ReplyTo, Session};
use super::socket::ReadEnd;
use crate::command::Command;
use crate::reply::errors::ErrorReply;
use crate::telemetry::labels::{CommandLabel, Outcome, Side};
use crate::wire::{Compressor, Frame, encode, op_compressed};

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Counts an error and sends it, unless the client waits for nothing.
    pub(super) async fn error(
        &mut self,
        command: &Command,
        frame: &Frame,
        reply_to: ReplyTo,
        error: &ErrorReply,
        outcome: Outcome,
    ) -> Result<(), ReadEnd> {
        tracing::debug!(client = self.number(), peer = %self.ends, command = command.told_name(frame), error = %error.message, "answered with an error");
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
        op_compressed::compress(message, compressor, self.shared.limits.load().max_message_bytes).freeze()
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
}
