//! Clients that go to the next process. Their sockets are handed over as they are, between two messages, so that their drivers
//! notice nothing and nothing can cross on its way: what a client has sent and nobody has read is read there.
//!
//! Where there is more to a socket than the system knows, as with TLS, or more to a client than can be told, as with a log-in, it
//! is closed instead, while it is idle. That can cross a request on its way, of which no part is executed then; drivers send again
//! what can be sent again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::ends::Ends;
use super::session::Session;
use super::tls_socket::TlsSocket;
use crate::config::Address;
use crate::reply::Shown;

/// A client that is told of the end closes its own within a round trip. One that does not loses what it sends meanwhile, which
/// was not to be executed anyway.
const PARTING: Duration = Duration::from_secs(1);

/// What a session runs over.
pub trait ClientStream: AsyncRead + AsyncWrite + Unpin + Send + Sized + 'static {
    /// There is nothing more to it than a socket.
    const IS_PLAIN: bool;

    /// The socket once more, for another process. `None` if there is more to it, or open files have run out.
    fn duplicate(&self) -> Option<OwnedFd>;

    /// True when something has come that nobody has read yet, or the other end is closed.
    fn has_unread(&self) -> bool;
}

impl ClientStream for TcpStream {
    const IS_PLAIN: bool = true;

    fn duplicate(&self) -> Option<OwnedFd> {
        self.as_fd().try_clone_to_owned().ok()
    }

    fn has_unread(&self) -> bool {
        peeks(&SockRef::from(self))
    }
}

impl ClientStream for UnixStream {
    const IS_PLAIN: bool = true;

    fn duplicate(&self) -> Option<OwnedFd> {
        self.as_fd().try_clone_to_owned().ok()
    }

    fn has_unread(&self) -> bool {
        peeks(&SockRef::from(self))
    }
}

/// A pipe within the process, for who measures a session without a kernel.
impl ClientStream for DuplexStream {
    const IS_PLAIN: bool = false;

    fn duplicate(&self) -> Option<OwnedFd> {
        None
    }

    fn has_unread(&self) -> bool {
        true
    }
}

impl ClientStream for TlsSocket {
    const IS_PLAIN: bool = false;

    fn duplicate(&self) -> Option<OwnedFd> {
        None
    }

    fn has_unread(&self) -> bool {
        self.is_within_record() || peeks(&SockRef::from(self.tcp()))
    }
}

fn peeks(socket: &SockRef<'_>) -> bool {
    // It does not block: nothing there is an error.
    socket.peek(&mut [std::mem::MaybeUninit::uninit()]).is_ok()
}

/// The next process, as sessions see it.
#[derive(Debug)]
pub struct Successor {
    takes: mpsc::Sender<Departure>,
    /// Listeners whose clients it goes on with.
    listeners: BTreeSet<Address>,
}

impl Successor {
    /// It takes clients of `listeners`.
    pub fn new(takes: mpsc::Sender<Departure>, listeners: BTreeSet<Address>) -> Self {
        Self { takes, listeners }
    }
}

/// A client on its way to the next process.
#[derive(Debug)]
pub struct Departure {
    /// Its socket.
    pub socket: OwnedFd,
    /// What is known of it.
    pub client: Traveller,
}

/// What is known of a client beside its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traveller {
    /// The listener that it came to.
    pub listener: Address,
    pub(super) ends: TravellersEnds,
    /// What it was told that we are, and up to which wire version.
    pub(super) told: Option<(Shown, i32)>,
    pub(super) metadata: Option<TravellersMetadata>,
    pub(super) hello_seen: bool,
    pub(super) backpressure: bool,
    /// Names.
    pub(super) compressors: Vec<String>,
}

/// As [`Ends`], of sockets that can be handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TravellersEnds {
    Tcp { peer: SocketAddr, local: SocketAddr },
    Unix(PathBuf),
}

/// As [`crate::reply::ClientMetadata`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TravellersMetadata {
    pub(super) application: Option<Box<str>>,
    pub(super) driver_name: Box<str>,
    pub(super) driver_version: Box<str>,
    pub(super) platform: Option<Box<str>>,
}

/// What becomes of a client that is told to go.
pub(super) enum Going<S> {
    /// It has something open here, or the next process is busy: it is told again later.
    Stays(Box<Session<S>>),
    /// The next process has its socket.
    HandedOver,
    /// To be closed.
    Closes(Box<Session<S>>),
}

impl<S: ClientStream> Session<S> {
    /// The client is between two messages and goes, if it can.
    pub(super) fn go(mut self: Box<Self>) -> Going<S> {
        if !self.transactions.have_ended() || !self.cursors.are_none() {
            return Going::Stays(self);
        }
        let shared = self.shared.clone();
        let Some(successor) = shared.activity.successor.get() else { return Going::Stays(self) };
        if successor.takes.is_closed() {
            // The next process has gone, and whoever is closed here would find nobody.
            return Going::Stays(self);
        }
        let Some(client) = self.traveller() else { return self.closes_unless_asked() };
        if !S::IS_PLAIN || !successor.listeners.contains(&client.listener) {
            return self.closes_unless_asked();
        }
        // Without room, or where the other process has gone meanwhile, it is served here.
        let Ok(room) = successor.takes.try_reserve() else { return Going::Stays(self) };
        let Some(socket) = self.socket.stream().duplicate() else { return Going::Stays(self) };
        // Nothing more is read here, and what happens to it is not told to this process any more.
        drop(self);
        room.send(Departure { socket, client });
        Going::HandedOver
    }

    /// A request that is there already is served first.
    fn closes_unless_asked(self: Box<Self>) -> Going<S> {
        if self.socket.stream().has_unread() { Going::Stays(self) } else { Going::Closes(self) }
    }

    /// What the next process has to know. `None` where that cannot be told: of who has logged in, and of clients that take us for
    /// a load balancer, which know each process by a number of its own.
    fn traveller(&self) -> Option<Traveller> {
        if self.shared.log_ins.is_some() || self.state.load_balanced {
            return None;
        }
        let ends = match &self.ends {
            Ends::Tcp { peer, local } => TravellersEnds::Tcp { peer: *peer, local: *local },
            Ends::Unix(path) => TravellersEnds::Unix(path.clone()),
            Ends::Tls(_) => return None,
        };
        let metadata = self.state.metadata.as_ref().map(|metadata| TravellersMetadata {
            application: metadata.application.clone(),
            driver_name: metadata.driver_name.clone(),
            driver_version: metadata.driver_version.clone(),
            platform: metadata.platform.clone(),
        });
        Some(Traveller {
            listener: self.shared.listener.clone(),
            ends,
            told: self.told,
            metadata,
            hello_seen: self.state.hello_seen,
            backpressure: self.state.backpressure,
            compressors: self.state.compressors.iter().map(|compressor| compressor.name().to_owned()).collect(),
        })
    }

    /// Tells the client that nothing more comes, and waits for it to close its end: were that done by the system because of
    /// bytes that nobody has read, the client might not get the end of its last reply.
    pub(super) async fn close_gently(&mut self) {
        self.end_what_was_pinned();
        self.socket.part().await;
        // Who does not close in time is closed all the same.
        drop(tokio::time::timeout(PARTING, self.socket.until_closed()).await);
    }
}
