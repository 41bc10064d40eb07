//! How a reply gets to its client: made ready in its connection's buffer, written straight out of it, and what a slow client
//! does not take at once taken out, so that the connection goes back before anybody waits. So it does before a large reply is
//! compressed.

use bson::RawDocument;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::session::{ReplyTo, Session};
use super::socket::ReadEnd;
use crate::admission::Reservation;
use crate::config::Address;
use crate::config::limits::CONNECTION_BUFFER_BYTES;
use crate::reply::{Situation, cluster_time};
use crate::tasks::compute;
use crate::telemetry::labels::Side;
use crate::upstream::{PooledConnection, Reply};
use crate::wire::{Compressor, encode, op_compressed};

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Makes the reply in `connection` the one that the client reads: `rewritten` in its place, and for the right request.
    /// What is put in its place takes over its memory. Returns how it is still to be compressed: as the request was, unless it
    /// came in that form.
    ///
    /// # Errors
    /// The rewritten reply is larger than the one that came, and there is no memory for it.
    pub(super) fn make_ready(
        &self,
        reply_to: ReplyTo,
        server: &Address,
        rewritten: Option<&RawDocument>,
        connection: &mut PooledConnection,
    ) -> Result<Option<Compressor>, Situation> {
        let mut as_it_came = false;
        if let Some(document) = rewritten {
            let message = encode::op_msg(reply_to.request_id, reply_to.request_id, document).into_bytes();
            let needed_bytes = message.len();
            if !connection.replace_reply(BytesMut::from(message), None) {
                let limit_bytes = self.shared.bounds.memory.limit();
                return Err(Situation::ReplyOverMemory { server: server.clone(), needed_bytes, limit_bytes });
            }
        } else {
            as_it_came = connection.choose_form(reply_to.compressor.filter(|_| !self.shared.clusters.are_several()));
        }
        if self.shared.clusters.are_several()
            && let Some(length) = cluster_time::take_out(connection.reply_mut())
        {
            connection.shorten_reply(length);
        }
        encode::set_response_to(connection.reply_mut(), reply_to.request_id);
        Ok(reply_to.compressor.filter(|_| !as_it_came))
    }

    /// Writes the reply straight out of its connection, or compresses it first.
    pub(super) async fn deliver(
        &mut self,
        mut connection: PooledConnection,
        compressor: Option<Compressor>,
    ) -> Result<(), ReadEnd> {
        match compressor {
            Some(compressor) if op_compressed::takes_long_to_compress(connection.reply().len(), compressor) => {
                return Box::pin(self.deliver_compressed(connection, compressor)).await;
            }
            Some(compressor) => self.compress_reply(compressor, &mut connection),
            None => {}
        }
        let reply = connection.reply();
        self.shared.metrics.sent_bytes[Side::Client].inc_by(reply.len() as u64);
        let written = self.socket.write_now(reply).await.map_err(|_| ReadEnd::Left)?;
        match written {
            None => Ok(()),
            Some(written) => Box::pin(self.deliver_rest(connection, written)).await,
        }
    }

    /// Compresses the reply in its place.
    fn compress_reply(&self, compressor: Compressor, connection: &mut PooledConnection) {
        let length = connection.reply().len();
        let room = if length > CONNECTION_BUFFER_BYTES {
            let Some(room) = self.room_for_compressed(length, compressor) else { return };
            Some(room)
        } else {
            None
        };
        let limit = self.shared.limits.load().max_message_bytes;
        let message = op_compressed::compress(connection.reply(), compressor, limit);
        if !connection.replace_reply(message, room) {
            tracing::debug!("no memory for a compressed reply: it goes out as it came");
        }
    }

    /// Memory for a second form of a reply. To wait for that while holding the first might never end: without it the reply
    /// goes out as it is, which is always legal.
    fn room_for_compressed(&self, length: usize, compressor: Compressor) -> Option<Reservation> {
        self.shared.bounds.memory.try_reply(op_compressed::compressed_bound(length, compressor))
    }

    /// Compresses a large reply while others go on, after its connection has gone back.
    async fn deliver_compressed(
        &mut self,
        mut connection: PooledConnection,
        compressor: Compressor,
    ) -> Result<(), ReadEnd> {
        let Reply { bytes, mut reservation } = connection.take_reply(0);
        drop(connection);
        let mut message = bytes;
        if let Some(mut room) = self.room_for_compressed(message.len(), compressor) {
            let limit = self.shared.limits.load().max_message_bytes;
            let compress = move || op_compressed::compress(&message, compressor, limit);
            let compressed = compute(compress).await;
            message = compressed.expect("compressing does not panic, and is not aborted while it is waited for");
            room.shrink_to(message.len());
            reservation = Some(room);
        }
        self.shared.metrics.sent_bytes[Side::Client].inc_by(message.len() as u64);
        let written = self.socket.write_all(message).await;
        drop(reservation);
        written
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
