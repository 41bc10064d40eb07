//! A network between two sides: bytes and ends of connections take their time, are held up, and arrive in order or not at
//! all, as with TCP. What is held up passes once the network is well again.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep, sleep_until};

use super::{Concerns, End};

/// A network passes so much at once.
const CHUNK: usize = 16 * 1024;

/// Chunks under way in one direction; with one of 200 ms that is 640 kB/s.
const UNDER_WAY: usize = 8;

/// A direction, seen from the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Requests.
    ToServer,
    /// Replies.
    FromServer,
}

/// How the network is. The default one is perfect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Network {
    /// Every byte takes so long, each way.
    pub delay: Duration,
    /// Bytes per second and connection, each way.
    pub bandwidth: Option<u32>,
    /// Nothing passes this way.
    pub to_server_lost: bool,
    /// Nothing passes this way.
    pub from_server_lost: bool,
    /// Whose connections are like this.
    pub concerns: Concerns,
}

impl Network {
    /// Takes everything in and lets nothing out.
    pub fn black_hole(concerns: Concerns) -> Self {
        Self { to_server_lost: true, from_server_lost: true, concerns, ..Self::default() }
    }

    /// A black hole in one direction.
    pub fn one_way(lost: Way, concerns: Concerns) -> Self {
        let to_server_lost = lost == Way::ToServer;
        Self { to_server_lost, from_server_lost: !to_server_lost, concerns, ..Self::default() }
    }

    /// Far away.
    pub fn far(delay: Duration, concerns: Concerns) -> Self {
        Self { delay, concerns, ..Self::default() }
    }

    fn of(self, monitor: bool) -> Self {
        if self.concerns.includes(monitor) { self } else { Self::default() }
    }

    fn loses(&self, way: Way) -> bool {
        match way {
            Way::ToServer => self.to_server_lost,
            Way::FromServer => self.from_server_lost,
        }
    }
}

/// Lets the proxy talk to `server`, whose end of the network is handed to it. `first` is what the proxy has sent already.
/// `None` when a side has closed its connection.
pub(super) async fn through(
    proxy: &mut TcpStream,
    first: Vec<u8>,
    network: watch::Receiver<Network>,
    monitor: bool,
    server: impl AsyncFnOnce(&mut DuplexStream) -> Option<End>,
) -> Option<End> {
    let (mut near, far) = tokio::io::duplex(CHUNK);
    let (from_proxy, to_proxy) = proxy.split();
    let (from_server, to_server) = tokio::io::split(far);
    let link = |way| Link { network: network.clone(), monitor, way };
    let requests = link(Way::ToServer).carry(std::io::Cursor::new(first).chain(from_proxy), to_server);
    let replies = link(Way::FromServer).carry(from_server, to_proxy);
    let talk = async move {
        let end = server(&mut near).await;
        // What it said last still arrives.
        drop(near);
        end
    };
    let mut ended = std::pin::pin!(async { tokio::join!(talk, replies).0 });
    tokio::select! {
        end = &mut ended => end,
        // The server hears of that, and ends the conversation.
        () = requests => ended.await,
    }
}

/// One direction of one connection.
struct Link {
    network: watch::Receiver<Network>,
    monitor: bool,
    way: Way,
}

impl Link {
    async fn carry(mut self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let (sender, mut under_way) = mpsc::channel(UNDER_WAY);
        let read = async move {
            let mut more = true;
            while more {
                let mut chunk = vec![0; CHUNK];
                let length = from.read(&mut chunk).await.unwrap_or(0);
                chunk.truncate(length);
                // Nothing is the end, which travels like everything else.
                more = length > 0 && sender.send((Instant::now(), chunk)).await.is_ok();
            }
            drop(sender.send((Instant::now(), Vec::new())).await);
        };
        let write = async move {
            let mut taken = true;
            while let Some((sent, chunk)) = under_way.recv().await {
                self.passed(sent, chunk.len()).await;
                // Whoever does not take it any more is sent the rest in vain.
                taken = taken && !chunk.is_empty() && to.write_all(&chunk).await.is_ok();
            }
            drop(to.shutdown().await);
        };
        tokio::join!(read, write);
    }

    /// Until so many bytes that were sent then are there.
    async fn passed(&mut self, sent: Instant, length: usize) {
        loop {
            let network = self.network.borrow_and_update().of(self.monitor);
            let arrives = async {
                if network.loses(self.way) {
                    return std::future::pending().await;
                }
                sleep_until(sent + network.delay).await;
                if let Some(bandwidth) = network.bandwidth {
                    sleep(Duration::from_secs_f64(length as f64 / f64::from(bandwidth))).await;
                }
            };
            tokio::select! {
                () = arrives => return,
                // What is under way is under way in the network as it is now.
                changed = self.network.changed() => if changed.is_err() { return },
            }
        }
    }
}
