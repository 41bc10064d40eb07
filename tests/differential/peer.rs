//! One of the two sides: sockets to a server, or to the proxy in front of its twin, and what came back over them.

use bson::{Document, doc};
use mongomux::config::Address;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::error::Elapsed;
use tokio::time::{Duration, timeout};

use crate::support::raw::{self, Opened};
use crate::support::scripted;

/// Nothing here takes so long, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Number of the ping that follows a message which may get no answer, or more than one.
const PING: i32 = 0x600D;

/// What a message brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// In order.
    pub replies: Vec<Opened>,
    /// The socket is closed.
    pub closed: bool,
}

/// One side.
pub struct Peer {
    address: Address,
    sockets: Vec<TcpStream>,
}

impl Peer {
    /// As many sockets, of which nobody has said hello.
    pub async fn connect(address: &Address, sockets: usize) -> Self {
        let mut peer = Self { address: address.clone(), sockets: Vec::new() };
        for _ in 0..sockets {
            peer.sockets.push(raw::connect(address).await);
        }
        peer
    }

    /// Its address as servers write it into texts.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// Sends `message` over one of the sockets and takes its one reply; with `barrier`, all that comes before the answer to
    /// a ping sent behind it. A socket that was closed is to be replaced.
    ///
    /// # Errors
    /// It hangs.
    pub async fn exchange(&mut self, socket: usize, message: &[u8], barrier: bool) -> Result<Outcome, Elapsed> {
        let exchange = async {
            let stream = &mut self.sockets[socket];
            let mut bytes = message.to_vec();
            if barrier {
                let mut ping = raw::command(doc! { "ping": 1, "$db": "admin" });
                ping[4..8].copy_from_slice(&PING.to_le_bytes());
                bytes.extend_from_slice(&ping);
            }
            // A peer that closes at once does not let us write to the end; what it said before can still be read.
            let _written = stream.write_all(&bytes).await.is_ok();
            let mut outcome = Outcome::default();
            loop {
                let Some(reply) = scripted::read_message(stream).await else {
                    outcome.closed = true;
                    return outcome;
                };
                if barrier && reply[8..12] == PING.to_le_bytes() {
                    return outcome;
                }
                outcome.replies.push(raw::opened(&reply));
                if !barrier {
                    return outcome;
                }
            }
        };
        timeout(PATIENCE, exchange).await
    }

    /// Another socket in the place of this one.
    pub async fn replace(&mut self, socket: usize) {
        self.sockets[socket] = raw::connect(&self.address).await;
    }

    /// Runs a command that is not part of the comparison.
    pub async fn run(&mut self, database: &str, mut command: Document) -> Document {
        command.insert("$db", database);
        let outcome = self.exchange(0, &raw::command(command), false).await.expect("an answer");
        Document::from_reader(&outcome.replies[0].document[..]).unwrap()
    }
}
