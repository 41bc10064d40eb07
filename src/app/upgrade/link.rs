//! What two processes say to each other while one takes over from the other: lines of JSON over a unix socket, some of which
//! come with a file descriptor. Nobody but the same user is listened to.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::client::leaving::Traveller;
use crate::config::Address;
use crate::routing::pins::MovedCursor;
use crate::upstream::elsewhere::{Question, Told};

/// Changed when an older process would not understand a newer one; then the newer one does not take over.
pub(super) const VERSION: u32 = 2;

/// Far more than any line is: the longest are cursors, a hundred at a time.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// Of what is read at once.
const READ_BYTES: usize = 16 * 1024;

/// That have come before the end of their message: one read can bring the end of a message and the beginning of the next.
const MAX_SOCKETS: usize = 2;

/// The other process reads at once, or hangs.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

/// Whether a listening socket is one of clients, of the admin port, or the one that these lines go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::app) enum Role {
    Clients,
    Admin,
    Upgrade,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is", content = "of")]
pub(super) enum Message {
    /// The new process: who it is.
    Hello { version: u32, pid: u32 },
    /// The old one: why the new one cannot take over. The old one goes on.
    Refused(String),
    /// The old one: a listening socket, which comes along.
    Listener { role: Role, address: Address, owns_file: bool },
    /// The old one: that were all.
    ThatIsAll,
    /// The new one: it would serve clients from now on, and goes on with the sockets of these listeners. Others listen at `kept`.
    Ready { usable: bool, takes_clients_of: Vec<Address>, kept: Vec<Address> },
    /// The old one: the new one is to begin.
    Go,
    /// The new one: it begins. Only now the old one stops to accept.
    Begun,
    /// The old one: a client, whose socket comes along.
    Client(Box<Traveller>),
    /// Either.
    Question { number: u64, cluster: String, question: Question },
    /// Either.
    Answer { number: u64, told: Told },
    /// The old one, at its end: cursors that are open still.
    Cursors { cluster: String, cursors: Vec<MovedCursor> },
    /// The old one: its last word.
    Ended,
}

impl Message {
    fn comes_with_socket(&self) -> bool {
        matches!(self, Self::Listener { .. } | Self::Client(_))
    }
}

/// Both directions of a link.
pub(super) fn split(stream: UnixStream) -> (Reader, Writer) {
    let stream = Arc::new(stream);
    (Reader { stream: stream.clone(), bytes: Vec::new(), sockets: VecDeque::new() }, Writer { stream })
}

/// True when the process at the other end belongs to our user, or to the administrator.
fn is_ours(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

pub(in crate::app) struct Writer {
    stream: Arc<UnixStream>,
}

impl Writer {
    /// Sends a message, with the socket that belongs to it.
    ///
    /// # Errors
    /// The other process is gone, or does not read.
    pub(super) async fn send(&mut self, message: &Message, socket: Option<OwnedFd>) -> io::Result<()> {
        debug_assert_eq!(message.comes_with_socket(), socket.is_some());
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let sending = async {
            let (mut sent, mut socket) = (0, socket);
            while sent < line.len() {
                let rest = &line[sent..];
                let write = || send_some(&self.stream, rest, socket.as_ref().map(|socket| socket.as_fd()));
                sent += self.stream.async_io(Interest::WRITABLE, write).await?;
                // It goes with the first byte.
                socket = None;
            }
            Ok(())
        };
        tokio::time::timeout(SEND_PATIENCE, sending).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

pub(in crate::app) struct Reader {
    stream: Arc<UnixStream>,
    bytes: Vec<u8>,
    /// Those of messages that are not there to their end, in order.
    sockets: VecDeque<OwnedFd>,
}

impl Reader {
    /// Who is at the other end, which is to be one of ours: sockets are given to nobody else, and taken from nobody else.
    ///
    /// # Errors
    /// It belongs to another user.
    pub(super) fn check_peer(&self) -> io::Result<()> {
        let peer = self.stream.peer_cred()?.uid();
        if is_ours(peer, rustix::process::geteuid().as_raw()) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it belongs to user {peer}")))
    }

    /// The next message; `None` when the other process has closed its end.
    ///
    /// # Errors
    /// The socket broke, or what came is no message.
    ///
    /// # Cancel safety
    /// Safe: what has come is kept.
    pub(super) async fn receive(&mut self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let message: Message = serde_json::from_slice(&self.bytes[..end])?;
                self.bytes.drain(..=end);
                let socket = if message.comes_with_socket() { self.sockets.pop_front() } else { None };
                if message.comes_with_socket() && socket.is_none() {
                    return Err(io::Error::other("a message came without its socket"));
                }
                return Ok(Some((message, socket)));
            }
            if self.bytes.len() > MAX_LINE_BYTES {
                return Err(io::Error::other("a message is too long"));
            }
            if self.sockets.len() > MAX_SOCKETS {
                return Err(io::Error::other("sockets come without their messages"));
            }
            let (stream, bytes, sockets) = (&self.stream, &mut self.bytes, &mut self.sockets);
            if stream.async_io(Interest::READABLE, || receive_some(stream, bytes, sockets)).await? == 0 {
                return Ok(None);
            }
        }
    }
}

fn send_some(stream: &UnixStream, bytes: &[u8], socket: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let sockets: Vec<BorrowedFd<'_>> = socket.into_iter().collect();
    if !sockets.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("there is room for one socket"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)?)
}

fn receive_some(stream: &UnixStream, bytes: &mut Vec<u8>, sockets: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut buffer = [0; READ_BYTES];
    // The system never lets one read run over the socket of a second message.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    bytes.extend_from_slice(&buffer[..received.bytes]);
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_each_with_its_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut writer, mut reader) = (split(ours).1, split(theirs).0);
        let pairs: Vec<_> = (0..40).map(|_| std::os::unix::net::UnixStream::pair().unwrap()).collect();
        let (mut ends, mut others) = (Vec::new(), Vec::new());
        pairs.into_iter().for_each(|(end, other)| {
            ends.push(end);
            others.push(other);
        });
        let sent = async {
            for (number, other) in others.into_iter().enumerate() {
                let address = Address::tcp("h", u16::try_from(number).unwrap());
                let listener = Message::Listener { role: Role::Clients, address, owns_file: false };
                writer.send(&listener, Some(other.into())).await.unwrap();
                // Longer than one read.
                writer.send(&Message::Refused("x".repeat(number * 1000)), None).await.unwrap();
            }
            drop(writer);
        };
        let received = async {
            for (number, end) in ends.iter_mut().enumerate() {
                let (message, socket) = reader.receive().await.unwrap().unwrap();
                let Message::Listener { address, .. } = message else { panic!("{message:?}") };
                assert_eq!(address.to_string(), format!("h:{number}"));
                std::os::unix::net::UnixStream::from(socket.unwrap()).write_all(&[7]).unwrap();
                let mut byte = [0];
                end.read_exact(&mut byte).unwrap();
                let (message, socket) = reader.receive().await.unwrap().unwrap();
                assert!(matches!(message, Message::Refused(why) if why.len() == number * 1000) && socket.is_none());
            }
            assert!(reader.receive().await.unwrap().is_none());
        };
        tokio::join!(sent, received);
    }

    #[tokio::test]
    async fn sockets_without_messages_are_not_kept() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut reader = split(theirs).0;
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        for _ in 0..=MAX_SOCKETS {
            assert_eq!(send_some(&ours, b" ", Some(socket.as_fd())).unwrap(), 1);
        }
        drop(ours);
        assert!(reader.receive().await.is_err(), "not the end that comes later");
    }

    #[test]
    fn nobody_else_is_listened_to() {
        assert!(is_ours(1000, 1000) && is_ours(0, 1000));
        assert!(!is_ours(1001, 1000) && !is_ours(1000, 0));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut reader = split(theirs).0;
        let flood = async { while tokio::io::AsyncWriteExt::write_all(&mut ours, &[b' '; 4096]).await.is_ok() {} };
        tokio::select! {
            () = flood => panic!("somebody reads all of it"),
            received = reader.receive() => assert!(received.is_err()),
        }
    }
}
