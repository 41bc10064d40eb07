//! One upstream connection: one command at a time, and it always knows whether it stands between two messages.
//!
//! A connection that stopped in the middle of a message, in either direction, is never used again: nobody could tell
//! whose bytes come next. It is marked before the first byte and cleared after the last.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::holders::Owned;
use super::in_use::InUse;
use super::opening::{self, Opening};
use super::own::OwnConnections;
use crate::admission::{Claim, MemoryBudget, Reservation};
use crate::auth::{Identity, UserId};
use crate::config::limits::{CLOSED_MID_COMMAND_GRACE, CONNECTION_BUFFER_BYTES};
use crate::telemetry::labels::ConnectionClosed;
use crate::topology::description::Hello;
use crate::wire::{
    Compressor, DecompressError, Deflation, FrameError, HEADER_LEN, MessageHeader, OpCode, op_compressed,
};

/// What a connection runs over: TCP, TLS, a unix socket, or a pipe in a test.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// Why a request was not written.
#[derive(Debug, thiserror::Error)]
#[error("the request was not written whole: {0}")]
pub struct SendError(#[source] pub io::Error);

/// Why a reply did not come. The request was written whole: what became of it is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The socket broke.
    #[error("the connection broke before the reply was whole: {0}")]
    Io(#[from] io::Error),
    /// The server closed it.
    #[error("the server closed the connection before the reply was whole")]
    Closed,
    /// What came is no message.
    #[error("malformed reply: {0}")]
    Frame(#[from] FrameError),
    /// It is compressed, and cannot be opened within what a reply may take.
    #[error("compressed reply: {0}")]
    Compressed(#[from] DecompressError),
    /// A message, but not the answer to our request.
    #[error("unexpected message: op code {op_code}, response to {response_to}, expected {expected}")]
    Unexpected {
        /// Its op code.
        op_code: i32,
        /// The request it claims to answer.
        response_to: i32,
        /// The request that waits.
        expected: i32,
    },
    /// More came than the one reply that was asked for.
    #[error("{0} bytes follow the reply that nobody asked for")]
    TrailingBytes(usize),
    /// Monitoring found the server dead.
    #[error("monitoring found the server unreachable")]
    Interrupted,
    /// Nothing came for as long as the server may be silent.
    #[error("the server was silent for {} ms", .0.as_millis())]
    Silent(Duration),
}

/// Wakes a command that waits for a server which monitoring has found dead.
#[derive(Debug, Default)]
pub struct Interrupt {
    raised: AtomicBool,
    waker: AtomicWaker,
}

impl Interrupt {
    /// Fails the command in flight, now or as soon as there is one.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        if self.raised.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// What the server told about itself when the connection was established.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Greeting {
    /// The server's number of this connection.
    pub connection_id: i64,
    /// What it said about itself, for the topology.
    pub hello: Hello,
    /// Its `maxWireVersion`.
    pub max_wire_version: i32,
    /// Round trip of the hello, without connecting.
    pub round_trip_time: Option<Duration>,
}

/// One upstream connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    /// Reply that is being received, once its head is there.
    expected: Option<Expected>,
    /// A large reply that came whole is being opened.
    opening: Option<Opening>,
    /// The form in which the reply in `buffer` came, if that was compressed.
    packed: Option<Packed>,
    /// For all that is held of the reply, unless that is little.
    reservation: Option<Reservation>,
    request_id: i32,
    between_messages: bool,
    interrupt: Arc<Interrupt>,
    in_use: Arc<InUse>,
    memory: Arc<MemoryBudget>,
    max_message_bytes: usize,
    /// Number of the connection in its pool, from 1.
    pub id: u64,
    /// Of the pool when establishment began.
    pub generation: u64,
    /// Who is logged in; `None` for whoever the connection string names, or nobody.
    pub identity: Option<Arc<Identity>>,
    /// When it was established.
    pub established: Instant,
    /// When it was last given back.
    pub last_used: Instant,
    /// For what it was checked out, and when, if for a command; `None` while it is available.
    pub(super) taken: Option<(Claim, Option<Instant>)>,
    /// The client that it belongs to, if it is not of the pool; told while it is in use.
    pub(super) owner: Option<Arc<OwnConnections>>,
    /// When it is to be replaced.
    pub expires: Instant,
    /// Why it is being closed, if that is known before its pool has taken it back.
    pub(super) closed_for: Option<ConnectionClosed>,
    /// Longest silence of the server in the middle of a message; `None` for no limit.
    pub socket_timeout: Option<Duration>,
    /// How requests may be compressed, as agreed with the server; replies come compressed only then.
    pub compression: Option<Deflation>,
    /// What the server said.
    pub greeting: Greeting,
}

/// What the head of a reply announces.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// Bytes of the whole message.
    length: usize,
    /// Bytes of the message inside, if it is compressed.
    inside: Option<usize>,
}

impl Expected {
    /// What it takes from memory. A compressed one is kept until it is known in which form its client reads it.
    fn needed_bytes(self) -> usize {
        self.length.saturating_add(self.inside.unwrap_or(0))
    }
}

/// A reply as it came, compressed.
#[derive(Debug)]
struct Packed {
    compressor: Compressor,
    bytes: BytesMut,
}

/// A reply that was taken whole out of its connection.
#[derive(Debug)]
pub struct Reply {
    /// The whole message.
    pub bytes: BytesMut,
    /// Keeps it within the memory bound.
    pub reservation: Option<Reservation>,
}

impl Owned for Connection {
    fn user(&self) -> UserId {
        self.identity.as_ref().map_or(UserId::SERVICE, |identity| identity.id)
    }

    fn established(&self) -> Instant {
        self.established
    }

    fn last_used(&self) -> Instant {
        self.last_used
    }
}

impl Connection {
    /// Wraps a stream that nothing was sent on yet. Numbers and times are the pool's to set. A reply for which there can
    /// never be memory is as malformed as one over `max_message_bytes`.
    pub fn new(stream: Box<dyn Stream>, memory: Arc<MemoryBudget>, max_message_bytes: usize) -> Self {
        let now = Instant::now();
        Self {
            stream,
            buffer: BytesMut::new(),
            expected: None,
            opening: None,
            packed: None,
            reservation: None,
            request_id: 0,
            between_messages: true,
            interrupt: Arc::default(),
            in_use: Arc::new(InUse::new(now)),
            max_message_bytes: max_message_bytes.min(memory.largest_reply()),
            memory,
            id: 0,
            generation: 0,
            identity: None,
            established: now,
            last_used: now,
            taken: None,
            owner: None,
            expires: now + Duration::from_secs(u64::from(u32::MAX)),
            closed_for: None,
            socket_timeout: None,
            compression: None,
            greeting: Greeting::default(),
        }
    }

    /// A request id that this connection has not used lately.
    pub fn next_request_id(&mut self) -> i32 {
        self.request_id = self.request_id.wrapping_add(1);
        self.request_id
    }

    /// True when neither a request nor a reply is under way, so that the next command may use it.
    pub fn is_between_messages(&self) -> bool {
        self.between_messages && !self.interrupt.raised.load(Ordering::Acquire)
    }

    /// When it was checked out for a command; when it was last given back if it is not in use for one.
    pub fn taken_at(&self) -> Instant {
        self.taken.and_then(|(_, since)| since).unwrap_or(self.last_used)
    }

    /// Fails the command in flight from outside.
    pub fn interrupt(&self) -> Arc<Interrupt> {
        self.interrupt.clone()
    }

    /// True when who is logged in has to log in anew, which a connection cannot.
    pub fn is_revoked(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.is_revoked())
    }

    /// What it is in use for, to be told and looked at.
    pub fn in_use(&self) -> &Arc<InUse> {
        &self.in_use
    }

    /// Says that what came over this connection makes no sense: it is not used again.
    pub fn distrust(&mut self) {
        self.between_messages = false;
    }

    /// False when it cannot carry a command: it is in the middle of a message, it was interrupted, the server has closed
    /// it, or has sent bytes that nobody asked for, or whoever is logged in has to do so anew. Looks without waiting.
    pub fn is_alive(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let look = std::future::poll_fn(|context| Pin::new(&mut self.stream).poll_read(context, &mut buffer));
        // Unconstrained: a task that has used up its budget would be told "pending" of a dead socket too.
        let silent = tokio::task::unconstrained(look).now_or_never().is_none();
        silent && self.is_between_messages() && !self.is_revoked()
    }

    /// Writes one whole message, which must carry the id that [`Connection::next_request_id`] gave last.
    ///
    /// # Errors
    /// [`SendError`]: the server cannot have executed the request, as it did not get all of it. Also when monitoring found
    /// the server dead while it took nothing any more, and when it took nothing for `socket_timeout`.
    ///
    /// # Cancel safety
    /// None: a connection whose future was dropped is between messages only if nothing was written.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        debug_assert!(self.between_messages, "one command at a time");
        // The last reply must not be taken for the next one.
        self.clear_reply();
        self.between_messages = false;
        // Almost always all of it at once: no timer, and no room for the waiting.
        let written = std::future::poll_fn(|context| Poll::Ready(self.write_now(context, message)));
        match written.await.map_err(SendError)? {
            None => Ok(()),
            Some(written) => Box::pin(self.send_rest(&message[written..])).await.map_err(SendError),
        }
    }

    /// What the stream takes without waiting; `None` when that is all of it, and flushed.
    fn write_now(&mut self, context: &mut Context<'_>, message: &[u8]) -> io::Result<Option<usize>> {
        let stream = Pin::new(&mut self.stream);
        let written = match stream.poll_write(context, message) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < message.len() || Pin::new(&mut self.stream).poll_flush(context)?.is_pending() {
            return Ok(Some(written));
        }
        Ok(None)
    }

    async fn send_rest(&mut self, mut rest: &[u8]) -> io::Result<()> {
        let limit = self.socket_timeout;
        while !rest.is_empty() {
            match unless_silent(limit, self.write_some(rest))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?
            {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => rest = &rest[written..],
            }
        }
        unless_silent(limit, self.stream.flush()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::future::poll_fn(|context| match Pin::new(&mut self.stream).poll_write(context, bytes) {
            // Looked at second, so that an error means that not all was written.
            Poll::Pending => self.interrupt.poll(context).map(|()| Err(io::ErrorKind::ConnectionAborted.into())),
            written => written,
        })
        .await
    }

    /// Takes the reply to the last request whole, and opens it if it is compressed.
    ///
    /// # Errors
    /// [`ReceiveError`]; the connection is not usable then.
    ///
    /// # Cancel safety
    /// Safe: what has arrived stays in the connection, and the next call continues.
    pub async fn receive(&mut self) -> Result<(), ReceiveError> {
        let mut eof = false;
        loop {
            if let Some(opening) = &mut self.opening {
                // Boxed, as few replies are so large.
                let opened = Box::pin(opening).await.map_err(io::Error::other)?;
                return self.opened(opened);
            }
            if self.expected.is_none() {
                self.expected = self.announced()?;
                if let Some(expected) = self.expected {
                    self.make_room(expected).await;
                }
            }
            match self.expected {
                Some(expected) if self.buffer.len() > expected.length => {
                    return Err(ReceiveError::TrailingBytes(self.buffer.len() - expected.length));
                }
                Some(expected) if self.buffer.len() == expected.length => {
                    let Some(inside) = expected.inside else {
                        self.between_messages = true;
                        return Ok(());
                    };
                    let (message, room) = (std::mem::take(&mut self.buffer), self.reservation.take());
                    if !op_compressed::takes_long_to_open(expected.length, inside) {
                        return self.opened(opening::open(message, room, self.max_message_bytes));
                    }
                    self.opening = Some(opening::start(message, room, self.max_message_bytes));
                    continue;
                }
                _ if eof => return Err(ReceiveError::Closed),
                Some(_) => {}
                None => self.buffer.reserve(CONNECTION_BUFFER_BYTES - self.buffer.len()),
            }
            eof = 0
                == match self.socket_timeout {
                    None => self.fill().await?,
                    limit => Box::pin(unless_silent(limit, self.fill())).await.map_err(ReceiveError::Silent)??,
                };
        }
    }

    /// Sends `message` and returns the reply document's message: for the handshake, pings and clean-up.
    ///
    /// # Errors
    /// As [`Connection::send`] and [`Connection::receive`].
    pub async fn exchange(&mut self, message: &[u8]) -> Result<&[u8], ReceiveError> {
        self.send(message).await.map_err(|SendError(error)| error)?;
        self.receive().await?;
        Ok(self.reply())
    }

    /// True from the first byte of a reply on, until [`Connection::clear_reply`].
    pub fn has_reply(&self) -> bool {
        !self.buffer.is_empty() || self.opening.is_some()
    }

    /// The reply that [`Connection::receive`] has taken, opened, until [`Connection::clear_reply`].
    pub fn reply(&self) -> &[u8] {
        &self.buffer
    }

    /// Bytes of the reply as it came.
    pub fn received_bytes(&self) -> usize {
        self.packed.as_ref().map_or(self.buffer.len(), |packed| packed.bytes.len())
    }

    /// Leaves one form of a reply that came compressed: the one that it came in if `compressor` made it, else the message
    /// inside. True for the former.
    pub fn choose_form(&mut self, compressor: Option<Compressor>) -> bool {
        let Some(mut packed) = self.packed.take() else { return false };
        let as_it_came = compressor == Some(packed.compressor);
        if !as_it_came && self.buffer.len() <= CONNECTION_BUFFER_BYTES {
            // Copied, to keep the buffer that is read into.
            packed.bytes.clear();
            packed.bytes.extend_from_slice(&self.buffer);
        }
        if as_it_came || self.buffer.len() <= CONNECTION_BUFFER_BYTES {
            self.buffer = packed.bytes;
        }
        self.reservation.iter_mut().for_each(|room| room.shrink_to(self.buffer.len()));
        as_it_came
    }

    /// As [`Connection::reply`], to patch the header.
    pub fn reply_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Cuts the reply off at `length`, where that is shorter.
    pub fn shorten_reply(&mut self, length: usize) {
        self.buffer.truncate(length);
    }

    /// Forgets the reply and keeps its buffer, unless that is larger than what every connection may keep.
    pub fn clear_reply(&mut self) {
        self.expected = None;
        self.opening = None;
        self.reservation = None;
        if let Some(packed) = self.packed.take() {
            self.buffer = packed.bytes;
        }
        if self.buffer.capacity() > 2 * CONNECTION_BUFFER_BYTES {
            self.buffer = BytesMut::new();
        } else {
            self.buffer.clear();
        }
    }

    /// Puts `message` in the place of the reply, with its memory: that of the reply, or `room`. False when neither is
    /// enough and there is no more now; nothing changes then.
    pub fn replace_reply(&mut self, message: BytesMut, room: Option<Reservation>) -> bool {
        if message.len() <= CONNECTION_BUFFER_BYTES {
            // Copied, to keep the buffer here.
            self.clear_reply();
            self.buffer.extend_from_slice(&message);
            return true;
        }
        let enough = |room: &mut Reservation| room.bytes() >= message.len();
        let room = self.reservation.take_if(enough).or_else(|| room.filter(|room| room.bytes() >= message.len()));
        let Some(mut room) = room.or_else(|| self.memory.try_reply(message.len())) else { return false };
        room.shrink_to(message.len());
        (self.buffer, self.reservation, self.packed) = (message, Some(room), None);
        true
    }

    /// Sets memory aside for what is left of the reply once it is taken out, if it has none yet.
    ///
    /// # Cancel safety
    /// Safe: nothing changes before the memory is there.
    pub async fn reserve_rest(&mut self, delivered: usize) {
        if self.reservation.is_none() {
            self.reservation = Some(self.memory.reply(self.buffer.len().saturating_sub(delivered)).await);
        }
    }

    /// Hands the rest of the reply out, so that the connection can go on to the next command. A small one is copied, to
    /// keep the buffer here; a large one leaves with its buffer. `delivered` bytes of it need no copy.
    pub fn take_reply(&mut self, delivered: usize) -> Reply {
        let reservation = self.reservation.take();
        let bytes = if self.buffer.len() > CONNECTION_BUFFER_BYTES {
            std::mem::take(&mut self.buffer).split_off(delivered)
        } else {
            BytesMut::from(&self.buffer[delivered..])
        };
        self.clear_reply();
        Reply { bytes, reservation }
    }

    /// Ends the connection and waits until the server has noticed, at most [`CLOSED_MID_COMMAND_GRACE`].
    pub async fn close(self) {
        let mut rest = [0; 4096];
        let noticed = async {
            let mut stream = self.stream;
            if stream.shutdown().await.is_err() {
                return;
            }
            // Reading to the end tells when the server has let go.
            while tokio::io::AsyncReadExt::read(&mut stream, &mut rest).await.is_ok_and(|read| read > 0) {}
        };
        // Elapsed means that the server hangs; its place has been kept long enough.
        if tokio::time::timeout(CLOSED_MID_COMMAND_GRACE, noticed).await.is_err() {
            tracing::debug!(connection = self.id, "the server did not notice a closed connection in time");
        }
    }

    /// What the bytes that are there announce, once they tell how much memory it takes.
    fn announced(&self) -> Result<Option<Expected>, ReceiveError> {
        let Some(header) = MessageHeader::parse(&self.buffer, self.max_message_bytes)? else { return Ok(None) };
        self.check(&header)?;
        let length = header.length;
        if header.op_code != OpCode::Compressed {
            return Ok(Some(Expected { length, inside: None }));
        }
        if self.buffer.len() < length.min(HEADER_LEN + op_compressed::PREFIX_LEN) {
            return Ok(None);
        }
        // Both forms at once, as two replies with one each could wait for each other.
        let limit = self.max_message_bytes.min(self.memory.largest_reply().saturating_sub(length));
        let inside = op_compressed::inflated_bytes(&self.buffer[HEADER_LEN..], limit)?;
        Ok(Some(Expected { length, inside: Some(inside) }))
    }

    fn check(&self, header: &MessageHeader) -> Result<(), ReceiveError> {
        let kind = header.op_code == OpCode::Msg || header.op_code == OpCode::Compressed && self.compression.is_some();
        if kind && header.response_to == self.request_id {
            return Ok(());
        }
        Err(self.unexpected(header.op_code, header.response_to))
    }

    fn unexpected(&self, op_code: OpCode, response_to: i32) -> ReceiveError {
        ReceiveError::Unexpected { op_code: op_code.to_wire(), response_to, expected: self.request_id }
    }

    /// Takes a reply that was opened, or could not be.
    fn opened(&mut self, opened: opening::Opened) -> Result<(), ReceiveError> {
        self.opening = None;
        self.reservation = opened.room;
        let (inside, compressor) = opened.inside?;
        if let Some(header) = MessageHeader::parse(&inside, self.max_message_bytes)?
            && header.op_code != OpCode::Msg
        {
            return Err(self.unexpected(header.op_code, header.response_to));
        }
        self.buffer = inside;
        self.packed = Some(Packed { compressor, bytes: opened.message });
        self.between_messages = true;
        Ok(())
    }

    /// Makes the buffer large enough for a whole message. What is above the buffer that every connection keeps comes
    /// out of the memory budget, all of it at once, so that two half-read replies cannot wait for each other.
    ///
    /// # Cancel safety
    /// Safe: nothing changes before the memory is there. A caller that was dropped here reads the head again.
    async fn make_room(&mut self, expected: Expected) {
        let needed_bytes = expected.needed_bytes();
        if needed_bytes > CONNECTION_BUFFER_BYTES && self.reservation.is_none() {
            self.reservation = self.memory.try_reply(needed_bytes);
        }
        if needed_bytes > CONNECTION_BUFFER_BYTES && self.reservation.is_none() {
            // Forgotten while waiting, so that a dropped future leaves the head to be read again.
            let expected = self.expected.take();
            // Boxed, as replies hardly ever have to wait.
            self.reservation = Some(Box::pin(self.memory.reply(needed_bytes)).await);
            self.expected = expected;
        }
        self.buffer.reserve(expected.length - self.buffer.len().min(expected.length));
    }

    /// Reads what has arrived, at most to the end of the message once its length is known.
    ///
    /// # Cancel safety
    /// Safe: a read that completes is in the buffer.
    async fn fill(&mut self) -> Result<usize, ReceiveError> {
        std::future::poll_fn(|context| {
            match poll_read_buf(Pin::new(&mut self.stream), context, &mut self.buffer) {
                // Looked at second, so that a reply which has come is not lost.
                Poll::Pending => self.interrupt.poll(context).map(|()| Err(ReceiveError::Interrupted)),
                read => read.map_err(ReceiveError::Io),
            }
        })
        .await
    }
}

/// Waits for some progress, no longer than `limit` if there is one, which is then the error.
async fn unless_silent<T>(limit: Option<Duration>, progress: impl Future<Output = T>) -> Result<T, Duration> {
    match limit {
        None => Ok(progress.await),
        Some(limit) => tokio::time::timeout(limit, progress).await.map_err(|_| limit),
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("generation", &self.generation)
            .field("between_messages", &self.between_messages)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
