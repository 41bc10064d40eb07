//! One client's socket: whole messages in, replies out, and nothing held while it is idle.
//!
//! All sockets are read into one scratch buffer per thread. A message that arrives whole is copied out of it once; only
//! what is cut short stays with the socket. Memory grows with the bytes that have arrived, never with the length that a
//! header claims, and counts against the memory budget.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use crate::admission::{MemoryBudget, Reservation};
use crate::config::ClientConfig;
use crate::config::limits::SCRATCH_BUFFER_BYTES;
use crate::telemetry::labels::ClientClosed;
use crate::wire::{Frame, FrameError, MessageHeader};

/// While a command is in flight no more than this is read ahead: enough to see that the client has left.
const READ_AHEAD_BYTES: usize = 4096;

/// Of a large message no more than this is read at once: it counts against the memory budget only once it is here.
const LARGE_READ_BYTES: usize = 256 * 1024;

/// Of a message that is too large for memory this much is kept: header and flags, to know how to answer.
const HEAD_BYTES: usize = 20;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BUFFER_BYTES].into_boxed_slice());
}

/// What a client sent.
#[derive(Debug)]
pub enum Incoming {
    /// A whole message, within the memory budget as long as the reservation is held.
    Message(Frame, Reservation),
    /// A message that found no memory. It was read to its end and thrown away, but for its first bytes.
    TooMuch {
        /// Header and, for an OP_MSG, flags.
        head: Frame,
        /// Size of the message, bytes.
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
    /// We close it: the session says why.
    #[error("closed by the proxy")]
    Closed(ClientClosed),
}

/// A client's socket.
pub struct ClientSocket<S> {
    stream: S,
    /// What has arrived of messages that are not whole, or not yet wanted. Without capacity while empty.
    pending: BytesMut,
    /// Memory for `pending`, while that belongs to a large message.
    reservation: Option<Reservation>,
    /// Bytes of a message without memory that are still to come, with its head.
    discarding: Option<Box<Discarding>>,
    /// When the first whole message must be there; `None` once it was.
    handshake_deadline: Option<Instant>,
    limits: Arc<ClientConfig>,
    memory: Arc<MemoryBudget>,
}

struct Discarding {
    head: BytesMut,
    missing: usize,
    needed_bytes: usize,
}

/// What one read has brought.
enum Filled {
    End,
    Message(Frame),
    Some,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientSocket<S> {
    /// Wraps a socket that was just accepted.
    pub fn new(stream: S, limits: Arc<ClientConfig>, memory: Arc<MemoryBudget>) -> Self {
        let handshake_deadline = Some(Instant::now() + limits.handshake_timeout);
        let (pending, reservation, discarding) = (BytesMut::new(), None, None);
        Self { stream, pending, reservation, discarding, handshake_deadline, limits, memory }
    }

    /// The next message.
    ///
    /// # Errors
    /// [`ReadEnd`]: the socket is to be closed.
    ///
    /// # Cancel safety
    /// Safe: what has arrived stays in the socket.
    pub async fn next(&mut self) -> Result<Incoming, ReadEnd> {
        loop {
            if let Some(incoming) = self.take_pending()? {
                self.handshake_deadline = None;
                return Ok(incoming);
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
                Filled::Message(frame) => {
                    self.handshake_deadline = None;
                    return Ok(self.admit(frame));
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
        std::future::poll_fn(|context| {
            while self.pending.len() < READ_AHEAD_BYTES && self.discarding.is_none() {
                let read = self.poll_scratch(context, READ_AHEAD_BYTES, |socket, bytes| {
                    socket.pending.extend_from_slice(bytes);
                    bytes.len()
                });
                match read {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Writes as much of `bytes` as the socket takes now.
    ///
    /// # Errors
    /// The client has left.
    pub async fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::future::poll_fn(|context| match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(Ok(written)) if written == bytes.len() => {
                match Pin::new(&mut self.stream).poll_flush(context) {
                    // What a TLS session still holds goes out with the rest of the waiting.
                    Poll::Ready(flushed) => Poll::Ready(flushed.map(|()| written)),
                    Poll::Pending => Poll::Ready(Ok(written)),
                }
            }
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Ready(Ok(0)),
        })
        .await
    }

    /// Writes all of `bytes`, waiting for a client that reads slowly, as long as it reads at all.
    ///
    /// # Errors
    /// [`ReadEnd::Left`], or [`ReadEnd::Timeout`] when the client took nothing for `client_stall_timeout_ms`.
    pub async fn write_all(&mut self, mut bytes: impl Buf) -> Result<(), ReadEnd> {
        use tokio::io::AsyncWriteExt;

        while bytes.has_remaining() {
            let written = tokio::time::timeout(self.limits.stall_timeout, self.stream.write_buf(&mut bytes)).await;
            match written {
                Ok(Ok(written)) if written > 0 => {}
                Ok(_) => return Err(ReadEnd::Left),
                Err(_) => return Err(ReadEnd::Timeout(ClientClosed::Stalled)),
            }
        }
        match tokio::time::timeout(self.limits.stall_timeout, self.stream.flush()).await {
            Ok(flushed) => flushed.map_err(|_| ReadEnd::Left),
            Err(_) => Err(ReadEnd::Timeout(ClientClosed::Stalled)),
        }
    }

    /// Until when something must come, and what it is called when nothing does.
    fn deadline(&self) -> Option<(Instant, ClientClosed)> {
        if let Some(deadline) = self.handshake_deadline {
            return Some((deadline, ClientClosed::HandshakeTimeout));
        }
        let now = Instant::now();
        if !self.pending.is_empty() || self.discarding.is_some() {
            return Some((now + self.limits.stall_timeout, ClientClosed::Stalled));
        }
        self.limits.idle_timeout.map(|timeout| (now + timeout, ClientClosed::Idle))
    }

    /// A message that is whole already, or whose rest was thrown away.
    fn take_pending(&mut self) -> Result<Option<Incoming>, ReadEnd> {
        if let Some(discarding) = self.discarding.take_if(|discarding| discarding.missing == 0) {
            let Discarding { mut head, needed_bytes, .. } = *discarding;
            let length = i32::try_from(head.len()).unwrap_or(i32::MAX);
            head[..4].copy_from_slice(&length.to_le_bytes());
            let head = Frame::decode(&mut head, HEAD_BYTES)?.ok_or(ReadEnd::Left)?;
            return Ok(Some(Incoming::TooMuch { head, needed_bytes }));
        }
        if self.pending.is_empty() || self.discarding.is_some() {
            return Ok(None);
        }
        let Some(frame) = Frame::decode(&mut self.pending, self.limits.max_message_bytes)? else {
            self.account()?;
            return Ok(None);
        };
        if self.pending.is_empty() {
            self.pending = BytesMut::new();
        }
        let Some(mut reservation) = self.reservation.take() else { return Ok(Some(self.admit(frame))) };
        // The last read of it was not accounted for yet.
        let needed_bytes = frame.bytes().len();
        let missing = needed_bytes.saturating_sub(reservation.bytes());
        Ok(Some(if missing == 0 || reservation.grow_request(missing) {
            Incoming::Message(frame, reservation)
        } else {
            Incoming::TooMuch { head: frame, needed_bytes }
        }))
    }

    /// Makes what has arrived of a large message count, or starts to throw the message away.
    fn account(&mut self) -> Result<(), ReadEnd> {
        let Some(header) = MessageHeader::parse(&self.pending, self.limits.max_message_bytes)? else { return Ok(()) };
        if header.length <= READ_AHEAD_BYTES || self.pending.len() < HEAD_BYTES {
            return Ok(());
        }
        let held = self.reservation.as_ref().map_or(0, Reservation::bytes);
        let more = self.pending.len().saturating_sub(held);
        let fits = match &mut self.reservation {
            Some(reservation) => reservation.grow_request(more),
            none => {
                *none = self.memory.reserve_request(more);
                none.is_some()
            }
        };
        if !fits {
            self.reservation = None;
            let mut head = std::mem::take(&mut self.pending);
            let missing = header.length - head.len();
            head.truncate(HEAD_BYTES);
            // A copy, so that the large buffer goes.
            let head = BytesMut::from(&head[..]);
            self.discarding = Some(Box::new(Discarding { head, missing, needed_bytes: header.length }));
        }
        Ok(())
    }

    fn admit(&self, frame: Frame) -> Incoming {
        let needed_bytes = frame.bytes().len();
        match self.memory.admit_request(needed_bytes) {
            Some(reservation) => Incoming::Message(frame, reservation),
            None => Incoming::TooMuch { head: frame, needed_bytes },
        }
    }

    /// One read.
    ///
    /// # Cancel safety
    /// Safe: a read that completes is kept.
    async fn fill(&mut self) -> Result<Filled, ReadEnd> {
        std::future::poll_fn(|context| self.poll_fill(context)).await
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<Filled, ReadEnd>> {
        let header = MessageHeader::parse(&self.pending, self.limits.max_message_bytes)?;
        let missing = header.map_or(0, |header| header.length.saturating_sub(self.pending.len()));
        let read = if missing > SCRATCH_BUFFER_BYTES && self.discarding.is_none() {
            // A large message goes straight to its place, which doubles as it arrives.
            self.pending.reserve(missing.min(self.pending.len().max(SCRATCH_BUFFER_BYTES)));
            let mut room = (&mut self.pending).limit(missing.min(LARGE_READ_BYTES));
            let read = poll_read_buf(Pin::new(&mut self.stream), context, &mut room);
            read.map_ok(|read| Ok(if read == 0 { Filled::End } else { Filled::Some }))
        } else {
            self.poll_scratch(context, SCRATCH_BUFFER_BYTES, |socket, bytes| socket.absorb(bytes))
        };
        match read {
            Poll::Ready(Ok(filled)) => Poll::Ready(filled),
            Poll::Ready(Err(_)) => Poll::Ready(Err(ReadEnd::Left)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn absorb(&mut self, mut bytes: &[u8]) -> Result<Filled, ReadEnd> {
        if bytes.is_empty() {
            return Ok(Filled::End);
        }
        if let Some(discarding) = &mut self.discarding {
            let gone = bytes.len().min(discarding.missing);
            discarding.missing -= gone;
            bytes = &bytes[gone..];
        } else if self.pending.is_empty()
            && let Some(frame) = Frame::copy_from(bytes, self.limits.max_message_bytes)?
        {
            self.pending.extend_from_slice(&bytes[frame.bytes().len()..]);
            return Ok(Filled::Message(frame));
        }
        self.pending.extend_from_slice(bytes);
        Ok(Filled::Some)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bson::rawdoc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::wire::{OpCode, encode};

    fn limits() -> Arc<ClientConfig> {
        Arc::new(ClientConfig {
            max_clients: 10,
            idle_timeout: Some(Duration::from_secs(100)),
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            max_message_bytes: 48_000_000,
        })
    }

    fn pair(memory: usize) -> (ClientSocket<DuplexStream>, DuplexStream, Arc<MemoryBudget>) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let memory = MemoryBudget::new(memory);
        (ClientSocket::new(ours, limits(), memory.clone()), theirs, memory)
    }

    fn ping(id: i32) -> Vec<u8> {
        encode::op_msg(id, 0, &rawdoc! {"ping": 1, "$db": "admin"}).bytes().to_vec()
    }

    async fn next_id<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut ClientSocket<S>) -> i32 {
        match socket.next().await.unwrap() {
            Incoming::Message(frame, _) => frame.header().request_id,
            Incoming::TooMuch { .. } => panic!("there is memory"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pipelined_and_split_messages_come_out_in_order() {
        let (mut socket, mut client, memory) = pair(1 << 20);
        let bytes: Vec<u8> = (1..=3).flat_map(ping).collect();
        for split in 0..bytes.len() {
            client.write_all(&bytes[..split]).await.unwrap();
            tokio::time::timeout(Duration::from_secs(1), socket.left()).await.unwrap_err();
            client.write_all(&bytes[split..]).await.unwrap();
            for id in 1..=3 {
                assert_eq!(next_id(&mut socket).await, id, "split at {split}");
            }
        }
        assert_eq!((socket.pending.capacity(), memory.used()), (0, 0), "nothing is held while idle");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_without_memory_is_thrown_away_and_the_next_one_served() {
        // Requests may use three quarters: a little of the message fits, most of it, all but its last byte.
        for limit in [300_000, 1_000_000, 1_333_352] {
            let (mut socket, mut client, memory) = pair(limit);
            let sender = async {
                client.write_all(Frame::build(5, 0, OpCode::Msg, &vec![2; 1_000_000]).bytes()).await.unwrap();
                client.write_all(&ping(6)).await.unwrap();
            };
            let receiver = async {
                let Incoming::TooMuch { head, needed_bytes } = socket.next().await.unwrap() else { panic!("{limit}") };
                assert_eq!((head.header().request_id, needed_bytes), (5, 1_000_016));
                assert_eq!(head.body()[..4], [2; 4], "the flags are kept");
                assert_eq!(memory.used(), 0);
                assert_eq!(next_id(&mut socket).await, 6);
            };
            tokio::join!(sender, receiver);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_counts_as_it_arrives() {
        let (mut socket, mut client, memory) = pair(10_000_000);
        let message = Frame::build(5, 0, OpCode::Msg, &vec![0; 3_000_000]);
        client.write_all(&message.bytes()[..500_000]).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), socket.next()).await.is_err());
        assert!(memory.used() >= 400_000 && memory.used() <= 500_000, "{}", memory.used());
        let (rest, received) = tokio::join!(client.write_all(&message.bytes()[500_000..]), socket.next());
        rest.unwrap();
        let Ok(Incoming::Message(frame, reservation)) = received else { panic!("there is memory") };
        assert_eq!(frame.bytes(), message.bytes());
        assert_eq!(memory.used(), message.bytes().len(), "what one large read brings counts, too");
        drop(reservation);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn each_silence_has_its_own_limit() {
        let (mut socket, mut client, _) = pair(1 << 20);
        let started = Instant::now();
        client.write_all(&ping(1)[..10]).await.unwrap();
        assert!(matches!(socket.next().await, Err(ReadEnd::Timeout(ClientClosed::HandshakeTimeout))));
        assert_eq!(started.elapsed().as_secs(), 10);
        client.write_all(&ping(1)[10..]).await.unwrap();
        assert_eq!(next_id(&mut socket).await, 1);
        assert!(matches!(socket.next().await, Err(ReadEnd::Timeout(ClientClosed::Idle))));
        assert_eq!(started.elapsed().as_secs(), 110);
        client.write_all(&ping(2)[..10]).await.unwrap();
        assert!(matches!(socket.next().await, Err(ReadEnd::Timeout(ClientClosed::Stalled))));
        assert_eq!(started.elapsed().as_secs(), 140);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(100);
        let mut socket = ClientSocket::new(ours, limits(), MemoryBudget::new(1000));
        assert_eq!(socket.write_now(&[1; 1000]).await.unwrap(), 100);
        let mut taken = [0; 50];
        theirs.read_exact(&mut taken).await.unwrap();
        let end = socket.write_all(&[1; 900][..]).await.unwrap_err();
        assert!(matches!(end, ReadEnd::Timeout(ClientClosed::Stalled)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_left_is_noticed_while_its_command_runs() {
        let (mut socket, client, _) = pair(1 << 20);
        assert!(tokio::time::timeout(Duration::from_secs(1), socket.left()).await.is_err());
        drop(client);
        socket.left().await;
        assert!(matches!(socket.next().await, Err(ReadEnd::Left)));
    }
}
