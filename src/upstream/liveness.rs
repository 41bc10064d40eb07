//! How soon a socket tells that its other side is gone without a word: a host that lost power, a firewall that forgot the
//! flow. Without this the system takes some 15 minutes for what was sent, and for ever for a socket that only waits.
//!
//! Two clocks work together. Keep-alive asks a silent peer; TCP_USER_TIMEOUT ends a socket of which nothing was acknowledged
//! for that long, be it a request or such a question. The kernel counts no questions once the latter is set, so it must leave
//! time for several of them: the loss of one packet is not a death.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::config::limits::{
    CLIENT_KEEPALIVE, CLIENT_UNACKNOWLEDGED, KEEPALIVE_INTERVAL, UPSTREAM_KEEPALIVE, UPSTREAM_UNACKNOWLEDGED,
};

/// The times of one kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// A peer is asked when it has been silent for this long, and then every [`KEEPALIVE_INTERVAL`].
    pub keepalive: Duration,
    /// The socket ends when nothing was acknowledged for this long.
    pub unacknowledged: Duration,
}

impl Liveness {
    /// Of connections to servers.
    pub const UPSTREAM: Self = Self { keepalive: UPSTREAM_KEEPALIVE, unacknowledged: UPSTREAM_UNACKNOWLEDGED };

    /// Of clients' sockets. A client that is there and does not read is `stall_timeout`'s business: the system would end its
    /// socket as well, so it is given longer.
    pub fn of_clients(stall_timeout: Duration) -> Self {
        let unacknowledged = CLIENT_UNACKNOWLEDGED.max(stall_timeout + KEEPALIVE_INTERVAL);
        Self { keepalive: CLIENT_KEEPALIVE, unacknowledged }
    }

    /// Sets the times of a TCP socket. Those of one that listens are passed on to the sockets that it accepts.
    ///
    /// # Errors
    /// The system's.
    pub fn watch(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        let keepalive = TcpKeepalive::new().with_time(self.keepalive).with_interval(KEEPALIVE_INTERVAL);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(self.unacknowledged))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn both_clocks_are_set() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        Liveness::UPSTREAM.watch(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), UPSTREAM_KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UPSTREAM_UNACKNOWLEDGED));
    }

    #[test]
    fn a_client_that_stands_still_is_judged_by_us_first() {
        assert_eq!(Liveness::of_clients(Duration::from_secs(30)).unacknowledged, CLIENT_UNACKNOWLEDGED);
        let patient = Duration::from_secs(3_600);
        assert!(Liveness::of_clients(patient).unacknowledged > patient);
    }
}
