//! Sockets that listen, for clients and for the admin port: bound before anything else starts.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::config::Address;
use crate::config::limits::UNSENT_BYTES;

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
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: RemoveFile },
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Accepted {
    /// Over TCP, and from where.
    Tcp(TcpStream, SocketAddr),
    /// Over a unix socket.
    Unix(UnixStream),
}

/// The file of a unix socket leaves with its listener.
#[derive(Debug)]
struct RemoveFile(PathBuf);

impl Drop for RemoveFile {
    fn drop(&mut self) {
        // Somebody else has removed it already: fine as well.
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

impl BoundSocket {
    /// Takes the address. A unix socket whose listener has died is replaced.
    ///
    /// # Errors
    /// [`BindError`] names the address and what the system said.
    pub async fn bind(address: &Address) -> Result<Self, BindError> {
        let bound = match address {
            Address::Tcp { host, port } => bind_tcp(host, *port).await,
            Address::Unix(path) => bind_unix(path).await,
        };
        bound.map_err(|error| BindError { address: address.clone(), error })
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
            Socket::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<BoundSocket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for sockets of the run before.
        socket.set_reuseaddr(true)?;
        // Passed on to the sockets that are accepted. Without it they serve as well; it only shows later who has stopped
        // reading.
        if let Err(error) = SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES) {
            tracing::debug!(%address, %error, "cannot set TCP_NOTSENT_LOWAT");
        }
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => {
                let local = listener.local_addr()?;
                let address = Address::tcp(local.ip().to_string(), local.port());
                return Ok(BoundSocket { socket: Socket::Tcp(listener), address });
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn bind_unix(path: &Path) -> io::Result<BoundSocket> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path).await => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }?;
    let socket = Socket::Unix { listener, _file: RemoveFile(path.to_owned()) };
    Ok(BoundSocket { socket, address: Address::Unix(path.to_owned()) })
}

/// A socket file that nobody listens behind. Anything else at that path is somebody's and stays.
async fn is_dead(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path).await.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
