//! The two ends of a client's socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::config::Address;

/// The two ends of a client's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ends {
    /// Of a TCP socket.
    Tcp {
        /// The client's.
        peer: SocketAddr,
        /// Ours.
        local: SocketAddr,
    },
    /// Of a unix socket, whose client has no address.
    Unix(PathBuf),
}

impl Ends {
    /// The address that the client has dialled, as far as we can see: whatever stands in between is not to be seen.
    pub fn dialled(&self) -> String {
        match self {
            Self::Tcp { local, .. } => Address::tcp(local.ip().to_canonical().to_string(), local.port()).to_string(),
            Self::Unix(path) => path.display().to_string(),
        }
    }

    /// The client's host.
    pub fn host(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp { peer, .. } => Some(peer.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }
}

/// The client's address in words.
impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { peer, .. } => peer.fmt(f),
            Self::Unix(_) => f.write_str("anonymous unix socket"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dialled_is_written_as_drivers_write_it() {
        let ends =
            |local: &str| Ends::Tcp { peer: "[::ffff:10.0.0.9]:5".parse().unwrap(), local: local.parse().unwrap() };
        assert_eq!(ends("10.0.0.1:27016").dialled(), "10.0.0.1:27016");
        assert_eq!(ends("[::ffff:10.0.0.1]:27016").dialled(), "10.0.0.1:27016");
        assert_eq!(ends("[::1]:27016").dialled(), "[::1]:27016");
        assert_eq!(ends("[::1]:1").host(), Some("10.0.0.9".parse().unwrap()));
        let unix = Ends::Unix("/run/proxy.sock".into());
        assert_eq!((unix.dialled(), unix.host()), ("/run/proxy.sock".to_owned(), None));
        assert_eq!(unix.to_string(), "anonymous unix socket");
    }
}
