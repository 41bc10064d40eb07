//! The two ends of a client's socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::tls::PeerCertificate;
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
    /// Of a TCP socket that is encrypted.
    Tls(Box<TlsEnds>),
    /// Of a unix socket, whose client has no address.
    Unix(PathBuf),
}

/// The two ends of an encrypted socket; boxed, so that the others have no room for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsEnds {
    /// The client's.
    pub peer: SocketAddr,
    /// Ours.
    pub local: SocketAddr,
    /// What the client has shown, which was verified.
    pub certificate: Option<PeerCertificate>,
}

impl Ends {
    /// Once a handshake is over, in which the client may have shown a certificate.
    pub(super) fn secured(self, certificate: Option<PeerCertificate>) -> Self {
        match self {
            Self::Tcp { peer, local } => Self::Tls(Box::new(TlsEnds { peer, local, certificate })),
            other => other,
        }
    }

    /// True for TLS.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The certificate that the client has shown, which was verified.
    pub fn certificate(&self) -> Option<&PeerCertificate> {
        match self {
            Self::Tls(ends) => ends.certificate.as_ref(),
            Self::Tcp { .. } | Self::Unix(_) => None,
        }
    }

    fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { peer, .. } => Some(*peer),
            Self::Tls(ends) => Some(ends.peer),
            Self::Unix(_) => None,
        }
    }

    /// The address that the client has dialled, as far as we can see: whatever stands in between is not to be seen.
    pub fn dialled(&self) -> String {
        let local = match self {
            Self::Tcp { local, .. } => local,
            Self::Tls(ends) => &ends.local,
            Self::Unix(path) => return path.display().to_string(),
        };
        Address::tcp(local.ip().to_canonical().to_string(), local.port()).to_string()
    }

    /// The client's port; `None` where there are none.
    pub fn port(&self) -> Option<u16> {
        self.peer().map(|peer| peer.port())
    }

    /// The client's host.
    pub fn host(&self) -> Option<IpAddr> {
        self.peer().map(|peer| peer.ip().to_canonical())
    }
}

/// The client's address in words.
impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer() {
            Some(peer) => peer.fmt(f),
            None => f.write_str("anonymous unix socket"),
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
        let certificate = PeerCertificate { subject: "CN=a".to_owned() };
        let secured = ends("10.0.0.1:27016").secured(Some(certificate.clone()));
        assert_eq!((secured.dialled(), secured.host()), ("10.0.0.1:27016".to_owned(), ends("10.0.0.1:1").host()));
        assert_eq!((secured.certificate(), secured.is_encrypted()), (Some(&certificate), true));
        assert!(!ends("10.0.0.1:1").is_encrypted());
        let unix = Ends::Unix("/run/proxy.sock".into());
        assert_eq!((unix.dialled(), unix.host()), ("/run/proxy.sock".to_owned(), None));
        assert_eq!(unix.to_string(), "anonymous unix socket");
    }
}
