//! How a reply gets to its client: made ready in its connection's buffer, written straight out of it, and what a slow client
//! does not take at once taken out, so that the connection goes back before anybody waits.

use bson::RawDocument;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::session::{ReplyTo, Session};
use super::socket::ReadEnd;
use crate::config::Address;
use crate::config::limits::CONNECTION_BUFFER_BYTES;
use crate::reply::{Situation, cluster_time};
use crate::telemetry::labels::Side;
use crate::upstream::{PooledConnection, Reply};
use crate::wire::{Compressor, encode, op_compressed};

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Makes the reply in `connection` the one that the client reads: `rewritten` in its place, for the right request, and
    /// compressed as that was. What is put in its place takes over its memory.
    ///
    /// # Errors
    /// The rewritten reply is larger than the one that came, and there is no memory for it.
    pub(super) fn make_ready(
        &self,
        reply_to: ReplyTo,
        server: &Address,
        rewritten: Option<&RawDocument>,
        connection: &mut PooledConnection,
    ) -> Result<(), Situation> {
        if let Some(document) = rewritten {
            let message = encode::op_msg(reply_to.request_id, reply_to.request_id, document).into_bytes();
            let needed_bytes = message.len();
            if !connection.replace_reply(BytesMut::from(message), None) {
                let limit_bytes = self.shared.bounds.memory.limit();
                return Err(Situation::ReplyOverMemory { server: server.clone(), needed_bytes, limit_bytes });
            }
        }
        if self.shared.clusters.are_several()
            && let Some(length) = cluster_time::take_out(connection.reply_mut())
        {
            connection.shorten_reply(length);
        }
        encode::set_response_to(connection.reply_mut(), reply_to.request_id);
        if let Some(compressor) = reply_to.compressor {
            self.compress_reply(compressor, connection);
        }
        Ok(())
    }

    /// Compresses the reply in its place. A large one needs memory for both forms, and to wait for that while holding one
    /// of them might never end: without it the reply goes out as it is, which is always legal.
    fn compress_reply(&self, compressor: Compressor, connection: &mut PooledConnection) {
        let length = connection.reply().len();
        let room = if length > CONNECTION_BUFFER_BYTES {
            let bound = op_compressed::compressed_bound(length, compressor);
            let Some(room) = self.shared.bounds.memory.try_reply(bound) else { return };
            Some(room)
        } else {
            None
        };
        let limit = self.shared.limits.max_message_bytes;
        let message = op_compressed::compress(connection.reply(), compressor, limit);
        if !connection.replace_reply(message, room) {
            tracing::debug!("no memory for a compressed reply: it goes out as it came");
        }
    }

    /// Writes the reply straight out of its connection.
    pub(super) async fn deliver(&mut self, connection: PooledConnection) -> Result<(), ReadEnd> {
        let reply = connection.reply();
        self.shared.metrics.sent_bytes[Side::Client].inc_by(reply.len() as u64);
        let written = self.socket.write_now(reply).await.map_err(|_| ReadEnd::Left)?;
        if written == reply.len() {
            return Ok(());
        }
        Box::pin(self.deliver_rest(connection, written)).await
    }

    /// Takes what is left of the reply out, gives the connection back and waits for the client. Where there is no memory
    /// for the rest it stays in the connection until there is, as a reply that finds none on its arrival does.
    async fn deliver_rest(&mut self, mut connection: PooledConnection, written: usize) -> Result<(), ReadEnd> {
        // Nothing is lost when an arm loses: who waits for memory leaves the line, the socket keeps its bytes.
        tokio::select! {
            biased;
            () = connection.reserve_rest(written) => {}
            () = self.socket.left() => return Err(ReadEnd::Left),
        }
        let Reply { bytes, reservation: _until_taken } = connection.take_reply(written);
        drop(connection);
        self.socket.write_all(bytes).await
    }
}
