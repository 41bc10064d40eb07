//! A small OP_MSG client, the independent judge of the proxy: it shares no line with the codec in `wire`.
//!
//! One socket, requests sent and replies received as separate steps, so that a test can pipeline, send half a message
//! or hang up between the two. Every length and every `responseTo` is checked. Deliberately absent: compression,
//! pooling, discovery and retries. A client without a reply in flight holds about one kilobyte.

use std::fmt;
use std::io;

use bson::{Document, RawDocument, doc};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Address;

/// Bytes of a message header.
pub const HEADER_BYTES: usize = 16;

/// Opcode of every message this client sends.
pub const OP_MSG: i32 = 2013;

/// Flag bit: a CRC-32C follows the sections.
pub const CHECKSUM_PRESENT: u32 = 1;

/// Flag bit: no reply is expected (request), or another reply follows (reply).
pub const MORE_TO_COME: u32 = 1 << 1;

/// Flag bit: the server may send several replies to this request.
pub const EXHAUST_ALLOWED: u32 = 1 << 16;

/// Largest reply taken: 48,000,000 bytes, what every server announces, and 16 KiB for the server's own fields.
const MAX_MESSAGE_BYTES: usize = 48_000_000 + 16 * 1024;

/// Asked for at once while reading; most replies fit, and it is all that 10,000 waiting clients hold each.
const READ_BYTES: usize = 1024;

/// A read buffer that grew beyond this is given back once it is empty.
const KEPT_BUFFER_BYTES: usize = 16 * 1024;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket could not be opened, read or written.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// The other side closed the socket.
    #[error("closed by the other side with {unread_bytes} bytes of an unfinished message")]
    Closed {
        /// 0 when it closed between messages.
        unread_bytes: usize,
    },
    /// What arrived is no correct message, or answers another request.
    #[error("wrong reply: {0}")]
    Protocol(String),
    /// The request could not be encoded.
    #[error("request: {0}")]
    Request(#[source] bson::error::Error),
    /// The command was answered with `ok: 0`.
    #[error("command failed with {code} {code_name}: {message}")]
    Command {
        /// The server's error code; 0 when it gave none.
        code: i32,
        /// The code's name; may be empty.
        code_name: String,
        /// `errmsg`.
        message: String,
        /// The whole reply, for its labels and the rest.
        reply: Box<Document>,
    },
}

impl WireError {
    /// The server's error code, where there is one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Command { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True when the reply carries this error label.
    pub fn has_label(&self, label: &str) -> bool {
        let Self::Command { reply, .. } = self else { return false };
        reply.get_array("errorLabels").is_ok_and(|labels| labels.iter().any(|entry| entry.as_str() == Some(label)))
    }
}

/// The sixteen bytes in front of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole message, these sixteen included.
    pub message_length: i32,
    /// The sender's number of this message.
    pub request_id: i32,
    /// The number of the message this one answers.
    pub response_to: i32,
    /// 2013 for OP_MSG, 1 for OP_REPLY, 2012 for OP_COMPRESSED.
    pub op_code: i32,
}

/// One whole message as it arrived.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its header, decoded.
    pub header: Header,
    /// The whole message, header included.
    pub bytes: Bytes,
}

impl Message {
    /// The flag bits of an OP_MSG.
    pub fn flags(&self) -> Result<u32, WireError> {
        let bytes = self.bytes.get(HEADER_BYTES..HEADER_BYTES + 4);
        bytes.map(|mut bytes| bytes.get_u32_le()).ok_or_else(|| protocol("an OP_MSG without flag bits"))
    }

    /// The document of an OP_MSG that is one kind-0 section and nothing else, as every reply is.
    pub fn raw_document(&self) -> Result<&RawDocument, WireError> {
        if self.header.op_code != OP_MSG {
            return Err(protocol(format!("opcode {} where OP_MSG was expected", self.header.op_code)));
        }
        let checksum = if self.flags()? & CHECKSUM_PRESENT == 0 { 0 } else { 4 };
        let body = self.bytes.get(HEADER_BYTES + 4..self.bytes.len().saturating_sub(checksum)).unwrap_or_default();
        match body.split_first() {
            // `from_bytes` refuses a document that is shorter or longer than its own length says.
            Some((0, document)) => {
                RawDocument::from_bytes(document).map_err(|error| protocol(format!("BSON: {error}")))
            }
            Some((kind, _)) => Err(protocol(format!("a section of kind {kind} where kind 0 was expected"))),
            None => Err(protocol("an OP_MSG without a section")),
        }
    }

    /// [`Message::raw_document`], decoded.
    pub fn document(&self) -> Result<Document, WireError> {
        Document::try_from(self.raw_document()?).map_err(|error| protocol(format!("BSON: {error}")))
    }
}

/// What to send: flag bits, the kind-0 document and any kind-1 sections.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Flag bits; a checksum is not computed for [`CHECKSUM_PRESENT`].
    pub flags: u32,
    /// The command, `$db` included.
    pub body: Document,
    /// Kind-1 sections: identifier and documents.
    pub sequences: Vec<(String, Vec<Document>)>,
}

impl Request {
    /// `command` on `database`, without flags or sequences.
    pub fn new(database: &str, mut command: Document) -> Self {
        command.insert("$db", database);
        Self { body: command, ..Self::default() }
    }

    /// With these flag bits.
    #[must_use]
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    /// With one more kind-1 section.
    #[must_use]
    pub fn sequence(mut self, identifier: &str, documents: Vec<Document>) -> Self {
        self.sequences.push((identifier.to_owned(), documents));
        self
    }

    /// The message's bytes; its length is filled in whatever it is, so that too large ones can be sent on purpose.
    pub fn encode(&self, request_id: i32) -> Result<Vec<u8>, WireError> {
        let mut message = Vec::with_capacity(256);
        for field in [0, request_id, 0, OP_MSG] {
            message.extend_from_slice(&field.to_le_bytes());
        }
        message.extend_from_slice(&self.flags.to_le_bytes());
        message.push(0);
        self.body.to_writer(&mut message).map_err(WireError::Request)?;
        for (identifier, documents) in &self.sequences {
            message.push(1);
            let start = message.len();
            message.extend_from_slice(&[0; 4]);
            message.extend_from_slice(identifier.as_bytes());
            message.push(0);
            for document in documents {
                document.to_writer(&mut message).map_err(WireError::Request)?;
            }
            patch_length(&mut message, start);
        }
        patch_length(&mut message, 0);
        Ok(message)
    }
}

/// Writes how many bytes `message` holds from `start` on into the four bytes there.
fn patch_length(message: &mut [u8], start: usize) {
    let length = i32::try_from(message.len() - start).unwrap_or(i32::MAX);
    message[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// One socket to a server or to the proxy.
#[derive(Debug)]
pub struct WireClient {
    socket: Socket,
    /// Bytes that arrived and belong to no message handed out yet.
    unread: BytesMut,
    next_request_id: i32,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Other(Box<dyn Stream>),
}

impl Socket {
    fn io(&mut self) -> &mut (dyn Stream + '_) {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
            Self::Other(stream) => stream,
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Stream for S {}

impl WireClient {
    /// Opens a socket; nothing is sent.
    pub async fn connect(address: &Address) -> Result<Self, WireError> {
        let socket = match address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
            Address::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        };
        Ok(Self::with(socket))
    }

    /// Over a stream that is open already: one that is encrypted, for example.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug + 'static) -> Self {
        Self::with(Socket::Other(Box::new(stream)))
    }

    fn with(socket: Socket) -> Self {
        Self { socket, unread: BytesMut::new(), next_request_id: 1 }
    }

    /// Opens a socket and says hello as `application`.
    pub async fn connect_as(address: &Address, application: &str) -> Result<Self, WireError> {
        let mut client = Self::connect(address).await?;
        client.hello(application).await?;
        Ok(client)
    }

    /// The first message of a driver: `hello` with client metadata. Returns the reply.
    pub async fn hello(&mut self, application: &str) -> Result<Document, WireError> {
        let metadata = doc! {
            "application": { "name": application },
            "driver": { "name": "mongomux wire client", "version": env!("CARGO_PKG_VERSION") },
            "os": { "type": std::env::consts::OS },
        };
        self.command("admin", doc! { "hello": 1, "helloOk": true, "client": metadata }).await
    }

    /// Sends a command and takes its reply; `ok: 0` is an error.
    pub async fn command(&mut self, database: &str, command: Document) -> Result<Document, WireError> {
        succeeded(self.exchange(&Request::new(database, command)).await?.document()?)
    }

    /// Sends a command and takes its reply as it is, `ok: 0` included.
    pub async fn reply(&mut self, database: &str, command: Document) -> Result<Document, WireError> {
        self.exchange(&Request::new(database, command)).await?.document()
    }

    /// Sends a request and takes the message that answers it.
    pub async fn exchange(&mut self, request: &Request) -> Result<Message, WireError> {
        let request_id = self.send(request).await?;
        self.receive(request_id).await
    }

    /// Sends a request and returns its number, which the reply names in `responseTo`.
    pub async fn send(&mut self, request: &Request) -> Result<i32, WireError> {
        let request_id = self.next_request_id;
        self.next_request_id = request_id.wrapping_add(1);
        self.send_raw(&request.encode(request_id)?).await?;
        Ok(request_id)
    }

    /// Takes the next message, which must answer request `request_id`.
    ///
    /// # Cancel safety
    /// As [`WireClient::read_message`].
    pub async fn receive(&mut self, request_id: i32) -> Result<Message, WireError> {
        let message = self.read_message().await?;
        match message.header.response_to {
            answered if answered == request_id => Ok(message),
            other => Err(protocol(format!("responseTo {other} where {request_id} was asked"))),
        }
    }

    /// Sends bytes as they are.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.socket.io().write_all(bytes).await?;
        // TLS may have taken all, and hold some of it.
        self.socket.io().flush().await?;
        Ok(())
    }

    /// Takes the next message, whatever it answers.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: what was read waits in the client.
    pub async fn read_message(&mut self) -> Result<Message, WireError> {
        loop {
            let missing = match self.peek_header()? {
                Some((header, length)) if self.unread.len() >= length => {
                    let bytes = self.unread.split_to(length).freeze();
                    if self.unread.is_empty() && length > KEPT_BUFFER_BYTES {
                        self.unread = BytesMut::new();
                    }
                    return Ok(Message { header, bytes });
                }
                Some((_, length)) => length - self.unread.len(),
                None => HEADER_BYTES,
            };
            // Grown as bytes arrive: a length alone makes nobody allocate.
            self.unread.reserve(missing.clamp(READ_BYTES, KEPT_BUFFER_BYTES));
            if self.socket.io().read_buf(&mut self.unread).await? == 0 {
                return Err(WireError::Closed { unread_bytes: self.unread.len() });
            }
        }
    }

    /// Closes with a reset instead of a FIN where the socket is TCP, as a killed machine or a crashed client would.
    pub fn reset(self) -> Result<(), WireError> {
        match self.socket {
            Socket::Tcp(stream) => Ok(stream.set_zero_linger()?),
            Socket::Unix(_) | Socket::Other(_) => Ok(()),
        }
    }

    /// Ends the sending side only.
    pub async fn half_close(&mut self) -> Result<(), WireError> {
        Ok(self.socket.io().shutdown().await?)
    }

    fn peek_header(&self) -> Result<Option<(Header, usize)>, WireError> {
        let Some(mut bytes) = self.unread.get(..HEADER_BYTES) else { return Ok(None) };
        let header = Header {
            message_length: bytes.get_i32_le(),
            request_id: bytes.get_i32_le(),
            response_to: bytes.get_i32_le(),
            op_code: bytes.get_i32_le(),
        };
        match usize::try_from(header.message_length) {
            Ok(length) if (HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(&length) => Ok(Some((header, length))),
            _ => Err(protocol(format!("message length {}", header.message_length))),
        }
    }
}

/// The reply, or the error it tells of.
pub fn succeeded(reply: Document) -> Result<Document, WireError> {
    let ok = reply.get("ok").and_then(|ok| ok.as_f64().or(ok.as_i32().map(f64::from)));
    if ok == Some(1.0) {
        return Ok(reply);
    }
    Err(WireError::Command {
        code: reply.get_i32("code").unwrap_or_default(),
        code_name: reply.get_str("codeName").unwrap_or_default().to_owned(),
        message: reply.get_str("errmsg").unwrap_or_default().to_owned(),
        reply: Box::new(reply),
    })
}

fn protocol(what: impl Into<String>) -> WireError {
    WireError::Protocol(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use tokio::time::{Duration, timeout};

    async fn pair() -> (WireClient, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = WireClient::connect(&Address::tcp("127.0.0.1", port)).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    fn reply(response_to: i32, document: &Document) -> Vec<u8> {
        let mut bytes = Request { body: document.clone(), ..Request::default() }.encode(77).unwrap();
        bytes[8..12].copy_from_slice(&response_to.to_le_bytes());
        bytes
    }

    #[test]
    fn a_minimal_message_has_the_bytes_of_the_specification() {
        let bytes = Request { body: doc! { "a": 1 }, ..Request::default() }.encode(5).unwrap();
        let expected = [
            33, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 221, 7, 0, 0, 0, 0, 0, 0, 0, // header, flags, kind 0
            12, 0, 0, 0, 16, b'a', 0, 1, 0, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
        let bytes = Request::default().sequence("xs", vec![doc! {}]).flags(MORE_TO_COME).encode(5).unwrap();
        assert_eq!(bytes[16..20], [2, 0, 0, 0]);
        assert_eq!(bytes[26..], [1, 12, 0, 0, 0, b'x', b's', 0, 5, 0, 0, 0, 0]);
    }

    #[tokio::test]
    async fn replies_are_found_at_every_split_and_after_a_dropped_read() {
        let (mut client, mut server) = pair().await;
        let both = [reply(1, &doc! { "ok": 1.0, "n": 1 }), reply(2, &doc! { "ok": 1, "n": 2 })].concat();
        for split in 0..both.len() {
            server.write_all(&both[..split]).await.unwrap();
            if split < both.len() / 2 {
                // Polled until it waits, then dropped: what it read must not be lost.
                assert!(timeout(Duration::from_millis(1), client.read_message()).await.is_err());
            }
            server.write_all(&both[split..]).await.unwrap();
            for n in [1, 2] {
                let document = succeeded(client.receive(n).await.unwrap().document().unwrap()).unwrap();
                assert_eq!(document.get_i32("n").unwrap(), n);
            }
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_reply_is_told() {
        let wrong: [(&str, Vec<u8>); 5] = [
            ("responseTo 2 where 1", reply(2, &doc! { "ok": 1 })),
            ("message length 15", [15, 0, 0, 0].iter().chain(&[0; 12]).copied().collect()),
            ("message length -1", [255; 16].to_vec()),
            ("kind 1", {
                let mut bytes = reply(1, &doc! { "ok": 1 });
                bytes[20] = 1;
                bytes
            }),
            ("BSON", {
                let mut bytes = reply(1, &doc! { "ok": 1 });
                bytes[21] += 1;
                bytes
            }),
        ];
        for (expected, bytes) in wrong {
            let (mut client, mut server) = pair().await;
            server.write_all(&bytes).await.unwrap();
            let error = client.command("admin", doc! { "ping": 1 }).await.unwrap_err();
            assert!(matches!(&error, WireError::Protocol(what) if what.contains(expected)), "{expected}: {error}");
        }
        let (mut client, mut server) = pair().await;
        server.write_all(&reply(1, &doc! { "ok": 1 })[..20]).await.unwrap();
        drop(server);
        assert!(matches!(client.read_message().await, Err(WireError::Closed { unread_bytes: 20 })));
    }

    #[tokio::test]
    async fn a_failed_command_keeps_its_code_and_labels() {
        let (mut client, mut server) = pair().await;
        let failed = doc! { "ok": 0.0, "errmsg": "busy", "code": 462, "codeName": "X", "errorLabels": ["A", "B"] };
        server.write_all(&reply(1, &failed)).await.unwrap();
        let error = client.command("admin", doc! { "ping": 1 }).await.unwrap_err();
        assert_eq!(error.code(), Some(462));
        assert!(error.has_label("B") && !error.has_label("C"));
        assert_eq!(error.to_string(), "command failed with 462 X: busy");
    }
}
