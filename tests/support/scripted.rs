//! Messages as a scripted server and a relay read and write them. Shares no line with the proxy's codec.

use bson::{Bson, Document, doc};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpSocket};

/// Bytes in front of the first document: header, flag bits, section kind.
pub const DOCUMENT_OFFSET: usize = 21;

/// As much of a request as tells which command it is.
pub const NAME_BYTES: usize = 128;

/// As many connections wait to be accepted.
pub const BACKLOG: i32 = 128;

/// Reads to the end of a message whose first bytes are in `message` already; `None` when the other side is gone.
pub async fn read_rest(stream: &mut (impl AsyncRead + Unpin), mut message: Vec<u8>, most: usize) -> Option<Vec<u8>> {
    while message.len() < 4 {
        message.push(stream.read_u8().await.ok()?);
    }
    let length = u32::from_le_bytes(message[..4].try_into().expect("four bytes")) as usize;
    let missing = length.min(most).saturating_sub(message.len());
    let start = message.len();
    message.resize(start + missing, 0);
    stream.read_exact(&mut message[start..]).await.ok()?;
    Some(message)
}

/// Reads one whole message.
pub async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    read_rest(stream, Vec::new(), usize::MAX).await
}

/// The first section's document.
pub fn document(message: &[u8]) -> Document {
    Document::from_reader(&message[DOCUMENT_OFFSET..]).expect("an OP_MSG whose first section is its document")
}

/// The command's name; the rest of the message may be missing.
pub fn command_name(message: &[u8]) -> String {
    // Length of the document and type of its first element stand before the name.
    let name = message.get(DOCUMENT_OFFSET + 5..).unwrap_or_default();
    String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// True when the sender waits for no reply.
pub fn is_unacknowledged(message: &[u8]) -> bool {
    message[16] & 2 != 0
}

/// An OP_MSG that answers `request`.
pub fn answer(request: &[u8], document: &Document) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend_from_slice(&1_i32.to_le_bytes());
    message.extend_from_slice(&request[4..8]);
    message.extend_from_slice(&2013_i32.to_le_bytes());
    message.extend_from_slice(&[0; 5]);
    document.to_writer(&mut message).expect("a document");
    let length = u32::try_from(message.len()).expect("a short reply");
    message[..4].copy_from_slice(&length.to_le_bytes());
    message
}

/// What a mongos says about itself; no `topologyVersion`, so that it is polled.
pub fn mongos_hello() -> Document {
    doc! {
        "ismaster": true, "isWritablePrimary": true, "msg": "isdbgrid", "helloOk": true, "connectionId": 1,
        "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
        "localTime": Bson::DateTime(bson::DateTime::now()), "logicalSessionTimeoutMinutes": 30,
        "minWireVersion": 0, "maxWireVersion": 17, "ok": 1.0,
    }
}

/// True for the two names of a hello.
pub fn is_hello(command: &str) -> bool {
    matches!(command, "hello" | "isMaster" | "ismaster")
}

/// True when a hello comes from the monitoring part of the proxy.
pub fn is_monitor(hello: &Document) -> bool {
    let name = hello.get_document("client").and_then(|client| client.get_document("driver")?.get_str("name"));
    name.is_ok_and(|name| name.starts_with("mongo-rust-driver"))
}

/// Listens on a port of 127.0.0.1 that can be bound again later: below those that the system gives to outgoing sockets.
pub fn listen(port: Option<u16>) -> (TcpListener, u16) {
    for _ in 0..100 {
        let port = port.unwrap_or_else(|| rand::random_range(20_000..32_000));
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option that all sockets have");
        let bound = socket.bind(([127, 0, 0, 1], port).into());
        if let Ok(listener) = bound.and_then(|()| socket.listen(BACKLOG.cast_unsigned())) {
            return (listener, port);
        }
    }
    panic!("no port to listen on")
}
