//! Accepting clients. At the limit nobody is turned away: the next ones wait in the backlog of the system, because a
//! driver that is closed right after it connected takes the server for dead.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::session::Session;
use super::shared::ClientShared;
use crate::config::Address;
use crate::telemetry::labels::{ClientClosed, ClientState};

/// Connections that the system completes before we accept them: enough for a storm of thousands.
const BACKLOG: u32 = 4096;

/// Pause after accept failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "removes the path when it is dropped")] UnixPath),
}

/// Removes the path of a unix socket when the listener closes.
#[derive(Debug)]
struct UnixPath(PathBuf);

impl Drop for UnixPath {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "cannot remove the socket");
        }
    }
}

impl Listener {
    /// Binds `address`.
    ///
    /// # Errors
    /// The system's, with the address in it.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        let bound = match address {
            Address::Tcp { host, port } => bind_tcp(host, *port).await.map(Socket::Tcp),
            Address::Unix(path) => bind_unix(path).map(|socket| Socket::Unix(socket, UnixPath(path.clone()))),
        };
        let socket =
            bound.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
        let address = match &socket {
            Socket::Tcp(listener) => {
                let local = listener.local_addr()?;
                Address::tcp(local.ip().to_string(), local.port())
            }
            Socket::Unix(..) => address.clone(),
        };
        Ok(Self { socket, address })
    }

    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts until the future is dropped, which closes the listener and leaves its clients alone.
    pub async fn serve(self, shared: Arc<ClientShared>, places: Arc<Semaphore>) {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = match &self.socket {
                Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
                    }
                    start(Session::new(stream, peer.to_string().into(), shared.clone()), &shared, place);
                }),
                Socket::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                    start(Session::new(stream, "anonymous unix socket".into(), shared.clone()), &shared, place);
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!(listener = %self.address, %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Runs a session in a task of its own, and counts it.
fn start<S>(session: Session<S>, shared: &Arc<ClientShared>, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let open = OpenClient::new(shared.clone());
    shared.cluster.tasks.spawn(
        "client",
        session.run().map(move |reason| {
            open.closed(reason);
            drop(place);
        }),
    );
}

/// Counts a client from accept to close.
struct OpenClient {
    shared: Arc<ClientShared>,
    reason: ClientClosed,
}

impl OpenClient {
    fn new(shared: Arc<ClientShared>) -> Self {
        shared.metrics.client_connections_opened.inc();
        shared.metrics.client_connections[ClientState::Idle].inc();
        shared.cluster.clients.fetch_add(1, Ordering::Relaxed);
        shared.activity.clients.fetch_add(1, Ordering::Relaxed);
        Self { shared, reason: ClientClosed::Proxy }
    }

    fn closed(mut self, reason: ClientClosed) {
        self.reason = reason;
    }
}

impl Drop for OpenClient {
    fn drop(&mut self) {
        self.shared.metrics.client_connections[ClientState::Idle].dec();
        self.shared.metrics.client_connections_closed[self.reason].inc();
        self.shared.cluster.clients.fetch_sub(1, Ordering::Relaxed);
        self.shared.activity.clients.fetch_sub(1, Ordering::Relaxed);
        self.shared.activity.left.notify_waiters();
    }
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for sockets of the run before.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Binds a path; one that a run before has left behind is replaced, one that somebody serves is not.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}
