//! What becomes of one chosen command, of all those that pass.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep};

use super::super::scripted::{self, NAME_BYTES};
use super::End;

const HEADER_BYTES: usize = 16;

/// Between two bytes of [`Fault::Drip`].
const DRIP: Duration = Duration::from_millis(1);

/// Between the halves of [`Fault::LateHalf`].
const LATE: Duration = Duration::from_secs(1);

/// What becomes of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Only the first bytes are read before the connection is reset: the server never hears of it.
    CutRequest,
    /// Read whole, and the connection closes: the server never hears of it, and nobody can know that.
    CloseAfterRequest,
    /// Executed; the connection closes without a reply.
    NoReply,
    /// Executed; the connection closes in the middle of the reply.
    HalfReply,
    /// Executed; a second passes between the halves of the reply.
    LateHalf,
    /// Executed; the connection is reset between the header and the body of the reply.
    ResetAfterHeader,
    /// Executed; the connection is reset in the middle of the reply's body.
    ResetInBody,
    /// Executed; the reply claims to answer another request.
    WrongResponseTo,
    /// Executed; the reply is followed by bytes that nobody asked for.
    TrailingBytes,
    /// Executed; the reply is of another kind than every reply has been for years.
    WrongOpCode,
    /// Executed; the reply announces more bytes than a message may have.
    WrongLength,
    /// Executed; the reply announces fewer bytes than none.
    NegativeLength,
    /// Executed; something else than a message comes in place of the reply.
    Garbage,
    /// Executed; neither a reply nor an end of the connection.
    Silence,
    /// Executed; the reply comes whole, byte by byte.
    Drip,
}

impl Fault {
    /// How a connection may break once the server may have the whole request.
    pub const AFTER_THE_REQUEST: [Self; 11] = [
        Self::CloseAfterRequest,
        Self::NoReply,
        Self::HalfReply,
        Self::ResetAfterHeader,
        Self::ResetInBody,
        Self::WrongResponseTo,
        Self::TrailingBytes,
        Self::WrongOpCode,
        Self::WrongLength,
        Self::NegativeLength,
        Self::Garbage,
    ];

    /// True when the server carries the command out all the same.
    pub fn executes(self) -> bool {
        !matches!(self, Self::CutRequest | Self::CloseAfterRequest)
    }
}

/// What is to happen to which commands.
#[derive(Default)]
pub(super) struct Faults {
    expected: Mutex<VecDeque<(String, Fault, usize)>>,
    reused: AtomicUsize,
}

impl Faults {
    pub(super) fn expect(&self, command: &str, fault: Fault, times: usize) {
        self.expected.lock().expect("nobody panics holding it").push_back((command.to_owned(), fault, times));
    }

    pub(super) fn forget(&self) -> usize {
        self.expected.lock().expect("nobody panics holding it").drain(..).map(|(_, _, times)| times).sum()
    }

    pub(super) fn reused(&self) -> usize {
        self.reused.load(Ordering::Relaxed)
    }

    fn take(&self, command: &str) -> Option<Fault> {
        let mut faults = self.expected.lock().expect("nobody panics holding it");
        let index = faults.iter().position(|(name, _, times)| name == command && *times > 0)?;
        let (_, fault, times) = &mut faults[index];
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            faults.remove(index);
        }
        Some(fault)
    }
}

/// Request and reply, one after the other; `None` at the end of the connection.
pub(super) async fn relay(proxy: &mut DuplexStream, server: &mut TcpStream, faults: &Faults) -> Option<End> {
    loop {
        let request = scripted::read_rest(proxy, Vec::new(), NAME_BYTES).await?;
        let fault = faults.take(&scripted::command_name(&request));
        if fault == Some(Fault::CutRequest) {
            return Some(End::Reset);
        }
        let request = scripted::read_rest(proxy, request, usize::MAX).await?;
        if fault == Some(Fault::CloseAfterRequest) {
            return None;
        }
        server.write_all(&request).await.ok()?;
        if scripted::is_unacknowledged(&request) {
            continue;
        }
        let reply = scripted::read_message(server).await?;
        match fault {
            None => proxy.write_all(&reply).await.ok()?,
            Some(Fault::Drip) => in_pieces(proxy, reply.chunks(1), DRIP).await?,
            Some(Fault::LateHalf) => in_pieces(proxy, reply.chunks(reply.len().div_ceil(2)), LATE).await?,
            Some(fault) => return spoil(proxy, reply, fault, faults).await,
        }
    }
}

async fn in_pieces<'a>(
    proxy: &mut DuplexStream,
    pieces: impl Iterator<Item = &'a [u8]>,
    pause: Duration,
) -> Option<()> {
    for piece in pieces {
        proxy.write_all(piece).await.ok()?;
        sleep(pause).await;
    }
    Some(())
}

/// Says as much of the reply as the fault leaves. A connection that stays open is watched: nobody may use it again.
async fn spoil(proxy: &mut DuplexStream, mut reply: Vec<u8>, fault: Fault, faults: &Faults) -> Option<End> {
    let whole = reply.len();
    match fault {
        Fault::NoReply => return None,
        Fault::HalfReply => reply.truncate(whole / 2),
        Fault::ResetAfterHeader => reply.truncate(HEADER_BYTES),
        Fault::ResetInBody => reply.truncate((HEADER_BYTES + whole) / 2),
        Fault::Silence => reply.clear(),
        Fault::WrongResponseTo => reply[8] ^= 0x55,
        Fault::TrailingBytes => reply.extend_from_slice(b"more"),
        Fault::WrongOpCode => reply[12..16].copy_from_slice(&1_i32.to_le_bytes()),
        Fault::WrongLength => reply[..4].copy_from_slice(&48_000_001_i32.to_le_bytes()),
        Fault::NegativeLength => reply[..4].copy_from_slice(&(-1_i32).to_le_bytes()),
        Fault::Garbage => reply = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        Fault::CutRequest | Fault::CloseAfterRequest | Fault::Drip | Fault::LateHalf => {
            unreachable!("dealt with before")
        }
    }
    proxy.write_all(&reply).await.ok()?;
    match fault {
        Fault::HalfReply => None,
        Fault::ResetAfterHeader | Fault::ResetInBody => Some(End::Reset),
        _ => {
            if proxy.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {
                faults.reused.fetch_add(1, Ordering::Relaxed);
            }
            None
        }
    }
}
