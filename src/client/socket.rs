//! One client's socket: whole messages in, replies out, and nothing held while it is idle.
//!
//! All sockets are read into one scratch buffer per thread. A message that arrives whole is copied out of it once; only
//! what is cut short stays with the socket.
//!
//! Every message is charged to the memory budget before its body is read: with its announced length, and a compressed one
//! with that of the message inside as well. While there is plenty of room one read takes whatever has come. Else it takes the
//! head of one message only, and the rest once that is charged: until then the client's bytes wait in the system, and in the
//! end the client itself. Charged is not allocated: buffers grow with the bytes that arrive, never with what a header claims.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::Cache;
use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::ends::Ends;
use super::pace::Pace;
use super::registry::{Registry, Slot};
use super::shared::ClientLimits;
use super::spare;
use super::tls_socket::RecordStalled;
use crate::admission::{MemoryBudget, Reservation};
use crate::auth::Identity;
use crate::config::ClientConfig;
use crate::config::limits::{SCRATCH_BUFFER_BYTES, UNAUTHENTICATED_MESSAGE_BYTES};
use crate::reply::ClientMetadata;
use crate::telemetry::labels::ClientClosed;
use crate::wire::{Frame, FrameError, HEADER_LEN, MessageHeader, OpCode, op_compressed};

/// The start of a message that tells how much memory it needs and how it is to be answered: header and flags, or header and
/// sizes of a compressed one. So much of one message a socket may hold without a charge; `max_clients` bounds that.
const HEAD_BYTES: usize = HEADER_LEN + op_compressed::PREFIX_LEN;

/// Of a large message no more than this is read at once, so that others have their turn.
const LARGE_READ_BYTES: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BUFFER_BYTES].into_boxed_slice());
}

/// What a client sent.
#[derive(Debug)]
pub enum Incoming {
    /// A whole message, within the memory budget as long as the reservation is held. For a compressed one that covers the
    /// message inside, too.
    Message(Frame, Reservation),
    /// A message that found no memory. It was read to its end and thrown away, but for its first bytes.
    TooMuch {
        /// Header and, for an OP_MSG, flags.
        head: Frame,
        /// What it takes from memory, bytes.
        needed_bytes: usize,
    },
}

/// Why no further message comes.
#[derive(Debug, thiserror::Error)]
pub enum ReadEnd {
    /// The client closed its socket, or it broke.
    #[error("the client left")]
    Left,
    /// The client sent what is no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Nothing came for too long; says how long nothing was to be expected.
    #[error("nothing came for too long")]
    Timeout(ClientClosed),
    /// The client is idle, and is to go to the next process.
    #[error("to go to the next process")]
    ToldToGo,
    /// We close it: the session says why.
    #[error("closed by the proxy")]
    Closed(ClientClosed),
}

/// What bounds the sockets of a listener's clients.
pub struct SocketBounds {
    /// Sizes and times, as they are now.
    pub limits: Arc<ClientLimits>,
    /// Memory of all.
    pub memory: Arc<MemoryBudget>,
    /// Longest wait for memory before a message is shed.
    pub room_timeout: Box<dyn Fn() -> Duration + Send + Sync>,
    /// Who is to go.
    pub registry: Arc<Registry>,
}

/// A client's socket.
pub struct ClientSocket<S> {
    stream: S,
    /// What has arrived of messages that are not whole, or not yet wanted. Without capacity while empty.
    pending: BytesMut,
    /// Boxed, as an idle socket and one whose messages come in one piece have none.
    held: Option<Box<Held>>,
    /// When the first whole message must be there; `None` once it was.
    handshake_deadline: Option<Instant>,
    /// Only small messages are taken: the client has still to log in.
    small: bool,
    /// Nothing was there at the last look.
    idle: bool,
    /// Where it is listed, once it is.
    slot: Option<Slot>,
    bounds: Arc<SocketBounds>,
    /// Those of the bounds, at hand: they are looked at several times for each message.
    limits: Cache<Arc<ClientLimits>, Arc<ClientConfig>>,
}

/// What a socket holds in the middle of a message or of several.
struct Held {
    /// Memory for what is in `pending` beyond the first message, or for all of it while that is not charged.
    ahead: Option<Reservation>,
    /// Memory for the first message, all that it will need.
    charge: Option<Reservation>,
    /// The first message found no memory.
    discarding: Option<Discarding>,
    /// Of the first message, once it is charged or discarded.
    pace: Pace,
}

/// A message of which all but the head is thrown away.
struct Discarding {
    head: Frame,
    /// Bytes that are still to come.
    missing: usize,
    needed_bytes: usize,
}

/// The first message in `pending`, once its head is there.
struct First {
    length: usize,
    needed_bytes: usize,
}

/// What to do next.
enum Next {
    Return(Incoming),
    Read,
    Wait(First),
}

/// What one read has brought.
enum Filled {
    End,
    Message(Frame, Reservation),
    Some,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientSocket<S> {
    /// Wraps a socket that was just accepted.
    pub fn new(stream: S, bounds: Arc<SocketBounds>) -> Self {
        let mut limits = Cache::new(bounds.limits.clone());
        let handshake_deadline = Some(Instant::now() + limits.load().handshake_timeout);
        Self {
            stream,
            pending: BytesMut::new(),
            held: None,
            handshake_deadline,
            small: false,
            idle: false,
            slot: None,
            bounds,
            limits,
        }
    }

    /// Lists the client of that number, whose task is the one that polls.
    pub fn enlist(&mut self, number: i64, ends: &Ends, context: &Context<'_>) {
        debug_assert!(self.slot.is_none(), "a client is listed once");
        self.slot = Some(self.bounds.registry.enter(number, ends, context.waker().clone()));
    }

    /// Shows what the client has told of itself.
    pub fn greeted(&self, metadata: Arc<ClientMetadata>) {
        if let Some(slot) = self.slot {
            self.bounds.registry.greeted(slot, metadata);
        }
    }

    /// Shows who the client has logged in as.
    pub fn is_user(&self, user: Option<Arc<Identity>>) {
        if let Some(slot) = self.slot {
            self.bounds.registry.is_user(slot, user);
        }
    }

    /// True when an operator has ended this client. Its socket looks then as if the client had left.
    pub fn is_killed(&self) -> bool {
        self.bounds.registry.is_killed(self.slot)
    }

    /// Takes only small messages from here on, or all again.
    pub fn only_small(&mut self, small: bool) {
        self.small = small;
    }

    /// The next message must be there by then: the client is in the middle of a log-in.
    pub fn expect_by(&mut self, deadline: Instant) {
        self.handshake_deadline = Some(deadline);
    }

    /// The largest message that is taken, bytes, and what may be inside of a compressed one.
    pub fn max_message_bytes(&mut self) -> usize {
        let most = self.limits.load().max_message_bytes;
        if self.small { most.min(UNAUTHENTICATED_MESSAGE_BYTES) } else { most }
    }

    /// The next message.
    ///
    /// # Errors
    /// [`ReadEnd`]: the socket is to be closed.
    ///
    /// # Cancel safety
    /// Safe: what has arrived stays in the socket. A wait for memory that is dropped starts at the end of the line again.
    pub async fn next(&mut self) -> Result<Incoming, ReadEnd> {
        loop {
            if self.is_killed() {
                return Err(ReadEnd::Left);
            }
            // Ends before any wait: what is matched on would be room in the task of every idle client.
            let first = match self.look() {
                Ok(Next::Return(incoming)) => return Ok(incoming),
                Ok(Next::Wait(first)) => Some(first),
                Ok(Next::Read) => None,
                Err(end) => return Err(end),
            };
            if let Some(first) = first {
                // Boxed, as this is rare.
                Box::pin(self.wait_for_room(first)).await?;
                continue;
            }
            let filled = match self.deadline() {
                None => self.fill().await,
                // Boxed, so that the thousands who wait without a deadline do not carry room for a timer.
                Some((deadline, reason)) => Box::pin(tokio::time::timeout_at(deadline, self.fill()))
                    .await
                    .unwrap_or(Err(ReadEnd::Timeout(reason))),
            };
            match filled? {
                Filled::End => return Err(ReadEnd::Left),
                Filled::Message(frame, charge) => {
                    self.handshake_deadline = None;
                    return Ok(Incoming::Message(frame, charge));
                }
                Filled::Some => {}
            }
        }
    }

    /// Resolves when the client has left. Bytes that arrive meanwhile are kept for [`ClientSocket::next`], a few only:
    /// beyond them the client has to wait, and that it left is seen later.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn left(&mut self) {
        std::future::poll_fn(|context| self.poll_left(context)).await;
    }

    /// As [`ClientSocket::left`].
    pub fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_killed() {
            return Poll::Ready(());
        }
        while self.pending.len() < HEAD_BYTES {
            let read = self.poll_scratch(context, HEAD_BYTES - self.pending.len(), |socket, bytes| {
                socket.pending.extend_from_slice(bytes);
                bytes.len()
            });
            match std::task::ready!(read) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Writes as much of `bytes` as the socket takes now; `None` when that is all of it. Else [`Self::write_all`] has to follow
    /// with the rest, also with none: TLS may have taken all, and hold some of it.
    ///
    /// # Errors
    /// The client has left.
    pub async fn write_now(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        std::future::poll_fn(|context| {
            let written = match Pin::new(&mut self.stream).poll_write(context, bytes) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            if written < bytes.len() || Pin::new(&mut self.stream).poll_flush(context)?.is_pending() {
                return Poll::Ready(Ok(Some(written)));
            }
            Poll::Ready(Ok(None))
        })
        .await
    }

    /// Tells the client that nothing more comes, if that can be said without waiting: over TLS an end without a word looks
    /// like an attack.
    pub async fn part(&mut self) {
        std::future::poll_fn(|context| {
            drop(Pin::new(&mut self.stream).poll_shutdown(context));
            Poll::Ready(())
        })
        .await;
    }

    /// It has had its first message already.
    pub fn is_known(&mut self) {
        self.handshake_deadline = None;
    }

    /// Something went before the first message, and counts against the same time.
    pub fn handshake_until(&mut self, deadline: Instant) {
        self.handshake_deadline = Some(deadline);
    }

    /// Writes all of `bytes`, waiting for a client that reads slowly, as long as it goes on reading.
    ///
    /// # Errors
    /// [`ReadEnd::Left`], or [`ReadEnd::Timeout`] when the client took next to nothing for `client_stall_timeout_ms`.
    pub async fn write_all(&mut self, mut bytes: impl Buf) -> Result<(), ReadEnd> {
        use tokio::io::AsyncWriteExt;

        let stall_timeout = self.limits.load().stall_timeout;
        let mut pace = Pace::new(stall_timeout, Instant::now());
        while bytes.has_remaining() {
            let written = tokio::time::timeout_at(pace.deadline(), self.stream.write_buf(&mut bytes));
            match or_killed(&self.bounds.registry, self.slot, written).await? {
                Ok(Ok(written)) if written > 0 => pace.moved(written, Instant::now()),
                Ok(_) => return Err(ReadEnd::Left),
                Err(_) => return Err(ReadEnd::Timeout(ClientClosed::Stalled)),
            }
        }
        let flushed = tokio::time::timeout(stall_timeout, self.stream.flush());
        match or_killed(&self.bounds.registry, self.slot, flushed).await? {
            Ok(flushed) => flushed.map_err(|_| ReadEnd::Left),
            Err(_) => Err(ReadEnd::Timeout(ClientClosed::Stalled)),
        }
    }

    /// Until when something must come, and what it is called when nothing does.
    fn deadline(&mut self) -> Option<(Instant, ClientClosed)> {
        if let Some(deadline) = self.handshake_deadline {
            return Some((deadline, ClientClosed::HandshakeTimeout));
        }
        match &self.held {
            Some(held) => Some((held.pace.deadline(), ClientClosed::Stalled)),
            None if !self.pending.is_empty() => Some((self.new_pace().deadline(), ClientClosed::Stalled)),
            None => self.limits.load().idle_timeout.map(|timeout| (Instant::now() + timeout, ClientClosed::Idle)),
        }
    }

    /// Looks at what is there: a message that is whole, or whose rest was thrown away, or one that needs memory first.
    fn look(&mut self) -> Result<Next, ReadEnd> {
        if let Some(held) = &mut self.held {
            if let Some(Discarding { head, needed_bytes, .. }) = held.discarding.take_if(|rest| rest.missing == 0) {
                self.tidy();
                self.handshake_deadline = None;
                return Ok(Next::Return(Incoming::TooMuch { head, needed_bytes }));
            }
            if held.discarding.is_some() {
                return Ok(Next::Read);
            }
        }
        let Some(first) = self.first()? else { return Ok(Next::Read) };
        let charged = self.held.as_ref().is_some_and(|held| held.charge.is_some());
        if !charged {
            let Some(charge) = self.bounds.memory.try_request(first.needed_bytes) else { return Ok(Next::Wait(first)) };
            self.charge(&first, charge);
        }
        if self.pending.len() < first.length {
            return Ok(Next::Read);
        }
        let limit = self.max_message_bytes();
        let frame = Frame::decode(&mut self.pending, limit)?;
        let charge = self.held.as_mut().and_then(|held| held.charge.take());
        self.tidy();
        self.handshake_deadline = None;
        Ok(match (frame, charge) {
            (Some(frame), Some(charge)) => Next::Return(Incoming::Message(frame, charge)),
            _ => Next::Read,
        })
    }

    /// The message at the start of `pending`, once enough of it is there to know what it needs.
    fn first(&mut self) -> Result<Option<First>, FrameError> {
        let limit = self.max_message_bytes();
        let Some(header) = MessageHeader::parse(&self.pending, limit)? else { return Ok(None) };
        if self.pending.len() < header.length.min(HEAD_BYTES) {
            return Ok(None);
        }
        let needed_bytes = needed_bytes(&header, &self.pending[HEADER_LEN..], limit);
        Ok(Some(First { length: header.length, needed_bytes }))
    }

    /// Waits until there is memory for the first message, not reading on meanwhile, and throws the message away when that
    /// takes too long.
    async fn wait_for_room(&mut self, first: First) -> Result<(), ReadEnd> {
        let began = Instant::now();
        let SocketBounds { memory, room_timeout, .. } = &*self.bounds;
        let room = tokio::time::timeout(room_timeout(), memory.request(first.needed_bytes));
        let room = or_killed(&self.bounds.registry, self.slot, room).await?;
        if let Some(deadline) = &mut self.handshake_deadline {
            // The client could not go on either.
            *deadline += began.elapsed();
        }
        match room {
            Ok(Some(charge)) => self.charge(&first, charge),
            Ok(None) | Err(_) => self.discard(&first)?,
        }
        Ok(())
    }

    fn charge(&mut self, first: &First, charge: Reservation) {
        let beyond = self.pending.len().saturating_sub(first.length);
        let held = self.hold();
        held.charge = Some(charge);
        held.cover(beyond);
    }

    fn discard(&mut self, first: &First) -> Result<(), ReadEnd> {
        // A copy, so that the buffer goes.
        let mut head = BytesMut::from(&self.pending[..first.length.min(HEAD_BYTES)]);
        let length = i32::try_from(head.len()).unwrap_or(i32::MAX);
        head[..4].copy_from_slice(&length.to_le_bytes());
        let head = Frame::decode(&mut head, HEAD_BYTES)?.ok_or(ReadEnd::Left)?;
        let here = self.pending.len().min(first.length);
        self.pending.advance(here);
        let discarding = Discarding { head, missing: first.length - here, needed_bytes: first.needed_bytes };
        self.hold().discarding = Some(discarding);
        self.tidy();
        Ok(())
    }

    /// What is held, with a pace that begins now.
    fn hold(&mut self) -> &mut Held {
        let pace = self.new_pace();
        let nothing = || Box::new(Held { ahead: None, charge: None, discarding: None, pace });
        let held = self.held.get_or_insert_with(nothing);
        held.pace = pace;
        held
    }

    fn new_pace(&mut self) -> Pace {
        Pace::new(self.limits.load().stall_timeout, Instant::now())
    }

    /// Gives back what is not needed any more.
    fn tidy(&mut self) {
        if self.pending.is_empty() {
            self.pending = BytesMut::new();
        }
        let pending = self.pending.len();
        self.held.take_if(|held| {
            held.cover(pending);
            held.ahead.is_none() && held.charge.is_none() && held.discarding.is_none()
        });
    }

    /// One read.
    ///
    /// # Cancel safety
    /// Safe: a read that completes is kept.
    async fn fill(&mut self) -> Result<Filled, ReadEnd> {
        std::future::poll_fn(|context| self.poll_fill(context)).await
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<Filled, ReadEnd>> {
        if self.is_killed() {
            return Poll::Ready(Ok(Filled::End));
        }
        let limit = self.max_message_bytes();
        let length = MessageHeader::parse(&self.pending, limit)?.map(|header| header.length);
        let read = match (&self.held, length) {
            (Some(held), _) if let Some(rest) = &held.discarding => {
                let most = rest.missing.min(SCRATCH_BUFFER_BYTES);
                self.poll_scratch(context, most, |socket, bytes| Ok(socket.throw_away(bytes.len())))
            }
            (Some(held), Some(length)) if held.charge.is_some() => self.poll_rest(context, length),
            _ => match self.bounds.memory.try_read_ahead(SCRATCH_BUFFER_BYTES + HEAD_BYTES) {
                Some(ahead) => {
                    self.poll_scratch(context, SCRATCH_BUFFER_BYTES, |socket, bytes| socket.absorb(bytes, ahead))
                }
                None => {
                    let head = length.map_or(HEAD_BYTES, |length| length.min(HEAD_BYTES));
                    let most = head.saturating_sub(self.pending.len());
                    self.poll_scratch(context, most, |socket, bytes| Ok(socket.keep(bytes)))
                }
            },
        };
        match read {
            Poll::Ready(Ok(filled)) => {
                self.idle = false;
                Poll::Ready(filled)
            }
            Poll::Ready(Err(error)) if error.get_ref().is_some_and(|inner| inner.is::<RecordStalled>()) => {
                Poll::Ready(Err(ReadEnd::Timeout(ClientClosed::Stalled)))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(ReadEnd::Left)),
            Poll::Pending => self.is_told_to_go(),
        }
    }

    /// Between two messages only, and not before the first.
    fn is_told_to_go(&mut self) -> Poll<Result<Filled, ReadEnd>> {
        let between = self.pending.is_empty() && self.held.is_none() && self.handshake_deadline.is_none();
        if between && self.bounds.registry.may_go(std::mem::replace(&mut self.idle, true)) {
            return Poll::Ready(Err(ReadEnd::ToldToGo));
        }
        Poll::Pending
    }

    /// The socket itself, to look at.
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// Throws away what comes until the client has closed its end too.
    pub(super) async fn until_closed(&mut self) {
        let mut thrown_away = [0; 64];
        while matches!(tokio::io::AsyncReadExt::read(&mut self.stream, &mut thrown_away).await, Ok(1..)) {}
    }

    /// Reads on in a message of `length` bytes that is charged, and not beyond its end.
    fn poll_rest(&mut self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<Result<Filled, ReadEnd>>> {
        let missing = length.saturating_sub(self.pending.len());
        let read = if missing > SCRATCH_BUFFER_BYTES {
            // A large message goes straight to its place, which doubles as it arrives.
            self.pending.reserve(missing.min(self.pending.len().max(SCRATCH_BUFFER_BYTES)));
            let mut room = (&mut self.pending).limit(missing.min(LARGE_READ_BYTES));
            poll_read_buf(Pin::new(&mut self.stream), context, &mut room)
        } else {
            self.poll_scratch(context, missing, |socket, bytes| {
                socket.pending.extend_from_slice(bytes);
                bytes.len()
            })
        };
        read.map_ok(|bytes| Ok(self.moved(bytes)))
    }

    fn throw_away(&mut self, bytes: usize) -> Filled {
        if let Some(rest) = self.held.as_mut().and_then(|held| held.discarding.as_mut()) {
            rest.missing = rest.missing.saturating_sub(bytes);
        }
        self.moved(bytes)
    }

    /// Notes that the first message goes on.
    fn moved(&mut self, bytes: usize) -> Filled {
        if bytes == 0 {
            return Filled::End;
        }
        if let Some(held) = &mut self.held {
            held.pace.moved(bytes, Instant::now());
        }
        Filled::Some
    }

    fn keep(&mut self, bytes: &[u8]) -> Filled {
        self.pending.extend_from_slice(bytes);
        if bytes.is_empty() { Filled::End } else { Filled::Some }
    }

    /// Takes what one read has brought. `ahead` covers it and what is pending.
    fn absorb(&mut self, bytes: &[u8], mut ahead: Reservation) -> Result<Filled, ReadEnd> {
        if bytes.is_empty() {
            return Ok(Filled::End);
        }
        let limit = self.max_message_bytes();
        if self.pending.is_empty()
            && let Some(frame) = Frame::copy_into(spare::take, bytes, limit)?
            && needed_bytes(frame.header(), frame.body(), limit) == frame.bytes().len()
        {
            // The common case: nothing to keep, nothing to charge but what is charged already.
            let beyond = &bytes[frame.bytes().len()..];
            ahead.shrink_to(bytes.len());
            if !beyond.is_empty() {
                let rest = ahead.split_off(frame.bytes().len());
                self.keep_ahead(beyond, rest);
            }
            return Ok(Filled::Message(frame, ahead));
        }
        self.keep_ahead(bytes, ahead);
        Ok(Filled::Some)
    }

    fn keep_ahead(&mut self, bytes: &[u8], ahead: Reservation) {
        self.pending.extend_from_slice(bytes);
        let pending = self.pending.len();
        if pending > HEAD_BYTES {
            let held = self.hold();
            held.ahead = Some(ahead);
            held.cover(pending);
        }
    }

    fn poll_scratch<T>(
        &mut self,
        context: &mut Context<'_>,
        most: usize,
        act: impl FnOnce(&mut Self, &[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(&mut scratch[..most]);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(act(self, buffer.filled()))),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            }
        })
    }
}

impl<S> Drop for ClientSocket<S> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.bounds.registry.leave(slot);
        }
    }
}

/// What `work` comes to, unless the client is ended meanwhile.
async fn or_killed<T>(registry: &Registry, slot: Option<Slot>, work: impl Future<Output = T>) -> Result<T, ReadEnd> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        if registry.is_killed(slot) {
            return Poll::Ready(Err(ReadEnd::Left));
        }
        work.as_mut().poll(context).map(Ok)
    })
    .await
}

impl Held {
    /// Sets `ahead` right for so many bytes; the head of a message needs none.
    fn cover(&mut self, bytes: usize) {
        if bytes > HEAD_BYTES {
            self.ahead.iter_mut().for_each(|ahead| ahead.shrink_to(bytes));
        } else {
            self.ahead = None;
        }
    }
}

/// What a message takes from memory, bytes. `body` is what is there of it behind the header.
fn needed_bytes(header: &MessageHeader, body: &[u8], max_message_bytes: usize) -> usize {
    let inside = match header.op_code {
        // One that cannot be opened is not: whoever tries finds out.
        OpCode::Compressed => op_compressed::inflated_bytes(body, max_message_bytes).unwrap_or(0),
        _ => 0,
    };
    header.length.saturating_add(inside)
}

#[cfg(test)]
mod tests;
