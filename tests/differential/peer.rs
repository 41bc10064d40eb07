//! One of the two sides: sockets to a server, or to the proxy in front of its twin, and what came back over them.

use bson::{Bson, Document, RawDocument, Utf8Lossy, doc};
use mongomux::config::Address;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::error::Elapsed;
use tokio::time::{Duration, timeout};

use crate::mask;
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
    pub async fn run(&mut self, database: &str, command: Document) -> Document {
        Document::from_reader(&self.reply(database, command).await[..]).unwrap()
    }

    /// What is in a collection, in the order in which it came, or why there is none of that name. Damaged messages store what
    /// is no UTF-8: of a document that has names of this kind it is its length.
    pub async fn contents(&mut self, database: &str, collection: &str) -> Vec<Bson> {
        let find = doc! { "find": collection, "batchSize": 10_000, "sort": { "$natural": 1 } };
        let reply = self.reply(database, find).await;
        let reply = RawDocument::from_bytes(&reply).expect("a reply has a length");
        let Ok(cursor) = reply.get_document("cursor") else { return vec![mask::document(reply.as_bytes()).into()] };
        let documents = cursor.get_array("firstBatch").expect("documents").into_iter();
        let read = documents.map(|document| {
            let document = document.expect("a document").as_document().expect("a document");
            match Utf8Lossy::<Document>::try_from(document) {
                Ok(Utf8Lossy(document)) => Bson::Document(document),
                Err(_) => Bson::String(format!("{} bytes", document.as_bytes().len())),
            }
        });
        read.collect()
    }

    async fn reply(&mut self, database: &str, mut command: Document) -> Vec<u8> {
        command.insert("$db", database);
        let outcome = self.exchange(0, &raw::command(command), false).await.expect("an answer");
        outcome.replies[0].document.clone()
    }
}
