//! Sockets that listen, for clients and for the admin port: bound before anything else starts, or [given](super::given) by
//! whoever had them before.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use super::given::{GivenSocket, Listening};
use crate::config::Address;
use crate::config::limits::UNSENT_BYTES;
use crate::upstream::Liveness;

/// Connections that the system completes before we accept them: enough for a storm of thousands.
const BACKLOG: u32 = 4096;

/// Pause after a failed accept, which mostly means that open files have run out.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why an address cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct BindError {
    address: Address,
    #[source]
    error: io::Error,
}

/// A socket that listens.
#[derive(Debug)]
pub struct BoundSocket {
    socket: Socket,
    address: Address,
    /// After the socket, as nobody can connect to a file that nobody listens behind.
    file: Option<SocketFile>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Accepted {
    /// Over TCP, and from where.
    Tcp(TcpStream, SocketAddr),
    /// Over a unix socket.
    Unix(UnixStream),
}

/// The file of a unix socket leaves with its listener, unless somebody else listens there as well, or has put another one in
/// its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and number of the file; `None` if they cannot be told.
    identity: Option<(u64, u64)>,
    ours: AtomicBool,
}

impl SocketFile {
    fn new(path: &Path, ours: bool) -> Self {
        Self { path: path.to_owned(), identity: identity(path), ours: AtomicBool::new(ours) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if *self.ours.get_mut() && self.identity.is_some() && identity(&self.path) == self.identity {
            // Somebody else has removed it just now: fine as well.
            std::fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl BoundSocket {
    /// Takes the address. A unix socket whose listener has died is replaced; who may connect to it is decided by the umask,
    /// which usually leaves its owner alone.
    ///
    /// # Errors
    /// [`BindError`] names the address and what the system said.
    pub async fn bind(address: &Address, liveness: Liveness) -> Result<Self, BindError> {
        let bound = match address {
            Address::Tcp { host, port } => bind_tcp(host, *port, liveness).await,
            Address::Unix(path) => bind_unix(path).await,
        };
        bound.map_err(|error| BindError { address: address.clone(), error })
    }

    /// Goes on with a socket that listens already. Its file, if it has one, is its giver's until [`Self::own_file`].
    ///
    /// # Errors
    /// [`BindError`]: the system does not let us wait for connections on it.
    pub fn given(given: GivenSocket, liveness: Liveness) -> Result<Self, BindError> {
        let GivenSocket { listening, address, .. } = given;
        let (file, socket) = match listening {
            Listening::Tcp(listener) => {
                prepare(&listener, &address, liveness);
                (None, listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)).map(Socket::Tcp))
            }
            Listening::Unix(listener) => {
                let file = match &address {
                    Address::Unix(path) => Some(SocketFile::new(path, false)),
                    Address::Tcp { .. } => None,
                };
                (file, listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)).map(Socket::Unix))
            }
        };
        match socket {
            Ok(socket) => Ok(Self { socket, address, file }),
            Err(error) => Err(BindError { address, error }),
        }
    }

    /// The same socket once more, for another process. It listens as long as one of them is open.
    ///
    /// # Errors
    /// Open files have run out.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Socket::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// Whether the file of a unix socket goes with this one, or another process listens there.
    pub fn own_file(&self, ours: bool) {
        if let Some(file) = &self.file {
            file.ours.store(ours, Ordering::Relaxed);
        }
    }

    /// True when the file of a unix socket goes with this one.
    pub fn owns_file(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.ours.load(Ordering::Relaxed))
    }

    /// Where it listens, with the port that the system chose if it was asked to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system's; mostly that open files have run out.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was not accepted stays in the system's queue.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
            Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

async fn bind_tcp(host: &str, port: u16, liveness: Liveness) -> io::Result<BoundSocket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for sockets of the run before.
        socket.set_reuseaddr(true)?;
        prepare(&socket, &address, liveness);
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => {
                let local = listener.local_addr()?;
                let address = Address::tcp(local.ip().to_string(), local.port());
                return Ok(BoundSocket { socket: Socket::Tcp(listener), address, file: None });
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sets what is passed on to the sockets that are accepted, so that it costs no call for each client.
fn prepare(socket: &impl AsFd, address: &impl std::fmt::Display, liveness: Liveness) {
    // Without it they serve as well; it only shows later who has stopped reading.
    if let Err(error) = SockRef::from(socket).set_tcp_notsent_lowat(UNSENT_BYTES) {
        tracing::debug!(%address, %error, "cannot set TCP_NOTSENT_LOWAT");
    }
    if let Err(error) = liveness.watch(socket) {
        tracing::warn!(%address, %error, "clients that vanish will be noticed late");
    }
}

async fn bind_unix(path: &Path) -> io::Result<BoundSocket> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path).await => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }?;
    let file = Some(SocketFile::new(path, true));
    Ok(BoundSocket { socket: Socket::Unix(listener), address: Address::Unix(path.to_owned()), file })
}

/// A socket file that nobody listens behind. Anything else at that path is somebody's and stays.
async fn is_dead(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path).await.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVENESS: Liveness = Liveness { keepalive: Duration::from_secs(77), unacknowledged: Duration::from_secs(99) };

    #[tokio::test]
    async fn what_is_accepted_tells_when_its_client_is_gone() {
        for host in ["127.0.0.1", "::1"] {
            let listener = BoundSocket::bind(&Address::tcp(host, 0), LIVENESS).await.unwrap();
            let Address::Tcp { host, port } = listener.address() else { panic!("TCP was asked for") };
            let _client = TcpStream::connect((host.as_str(), *port)).await.unwrap();
            let Accepted::Tcp(stream, _) = listener.accept().await.unwrap() else { panic!("TCP was asked for") };
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap(), "{host}");
            assert_eq!(socket.tcp_keepalive_time().unwrap(), LIVENESS.keepalive);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(LIVENESS.unacknowledged));
        }
    }

    #[tokio::test]
    async fn a_unix_socket_removes_its_own_file_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let first = BoundSocket::bind(&Address::Unix(path.clone()), LIVENESS).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = BoundSocket::bind(&Address::Unix(path.clone()), LIVENESS).await.unwrap();
        drop(first);
        UnixStream::connect(&path).await.expect("the file of the second one is left alone");
        drop(second);
        assert!(!path.exists());
    }
}
