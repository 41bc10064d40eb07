//! Messages byte by byte, right and wrong, and what a peer does with them.
//!
//! Shares no line with the codec in `wire`: it is the judge of it.

use std::io;

use bson::{Document, RawDocument, doc};
use bytes::{Buf, BytesMut};
use mongomux::config::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

/// Number of every request made here.
pub const REQUEST: i32 = 0x0BAD;

/// Number of the ping that follows, to see whether the socket still serves.
const PING: i32 = 0x600D;

/// Opcode of OP_MSG.
pub const OP_MSG: i32 = 2013;

/// Opcode of OP_REPLY.
pub const OP_REPLY: i32 = 1;

/// Opcode of OP_QUERY.
pub const OP_QUERY: i32 = 2004;

/// Opcode of OP_COMPRESSED.
pub const OP_COMPRESSED: i32 = 2012;

/// A peer that does nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A whole message.
pub fn message(op_code: i32, body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(16 + body.len()).unwrap();
    [&header(length, op_code)[..], body].concat()
}

/// A header that says what it is told to.
pub fn header(length: i32, op_code: i32) -> Vec<u8> {
    [length, REQUEST, 0, op_code].into_iter().flat_map(i32::to_le_bytes).collect()
}

/// An OP_MSG of sections.
pub fn op_msg(flags: u32, sections: &[&[u8]]) -> Vec<u8> {
    message(OP_MSG, &[&flags.to_le_bytes()[..], &sections.concat()].concat())
}

/// An OP_MSG with one document.
pub fn command(command: Document) -> Vec<u8> {
    op_msg(0, &[&body(&command)])
}

/// A kind-0 section.
pub fn body(document: &Document) -> Vec<u8> {
    [&[0], &document.to_vec().unwrap()[..]].concat()
}

/// A kind-1 section.
pub fn sequence(identifier: &str, documents: &[Document]) -> Vec<u8> {
    let documents: Vec<u8> = documents.iter().flat_map(|document| document.to_vec().unwrap()).collect();
    let length = i32::try_from(4 + identifier.len() + 1 + documents.len()).unwrap();
    [&[1], &length.to_le_bytes()[..], identifier.as_bytes(), &[0], &documents].concat()
}

/// An OP_QUERY for one document.
pub fn query(namespace: &str, document: &Document) -> Vec<u8> {
    let before = [&[0; 4][..], namespace.as_bytes(), &[0; 5], &(-1_i32).to_le_bytes()].concat();
    message(OP_QUERY, &[before, document.to_vec().unwrap()].concat())
}

/// An OP_REPLY with one document.
pub fn reply(document: &Document) -> Vec<u8> {
    let before = [&[0; 16][..], &1_i32.to_le_bytes()].concat();
    message(OP_REPLY, &[before, document.to_vec().unwrap()].concat())
}

/// Adds the checksum that the flags of an OP_MSG promise, changed by `error`.
pub fn with_checksum(mut message: Vec<u8>, error: u32) -> Vec<u8> {
    let length = i32::try_from(message.len() + 4).unwrap();
    message[..4].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c(&message) ^ error;
    message.extend_from_slice(&checksum.to_le_bytes());
    message
}

/// `message` inside an OP_COMPRESSED.
pub fn compressed(message: &[u8], compressor: u8) -> Vec<u8> {
    let op_code = i32::from_le_bytes(message[12..16].try_into().unwrap());
    let size = i32::try_from(message.len() - 16).unwrap();
    compressed_as(op_code, size, compressor, &deflate(compressor, &message[16..]))
}

/// An OP_COMPRESSED that says what it is told to.
pub fn compressed_as(op_code: i32, size: i32, compressor: u8, data: &[u8]) -> Vec<u8> {
    let prefix = [op_code.to_le_bytes(), size.to_le_bytes()].concat();
    message(OP_COMPRESSED, &[&prefix[..], &[compressor], data].concat())
}

/// Compresses as compressor 1, 2 or 3 does; all others leave the bytes as they are.
pub fn deflate(compressor: u8, bytes: &[u8]) -> Vec<u8> {
    match compressor {
        1 => snap::raw::Encoder::new().compress_vec(bytes).unwrap(),
        2 => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            io::Write::write_all(&mut encoder, bytes).unwrap();
            encoder.finish().unwrap()
        }
        3 => zstd::bulk::compress(bytes, 3).unwrap(),
        _ => bytes.to_vec(),
    }
}

fn inflate(compressor: u8, size: usize, bytes: &[u8]) -> Vec<u8> {
    match compressor {
        1 => snap::raw::Decoder::new().decompress_vec(bytes).unwrap(),
        2 => {
            let mut inflated = Vec::new();
            io::Read::read_to_end(&mut flate2::read::ZlibDecoder::new(bytes), &mut inflated).unwrap();
            inflated
        }
        3 => zstd::bulk::decompress(bytes, size).unwrap(),
        _ => bytes.to_vec(),
    }
}

/// One reply, as far as two servers should agree on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Of the message itself, inside of any compression.
    pub op_code: i32,
    /// How it was compressed.
    pub compressor: Option<u8>,
    /// Flag bits of an OP_MSG, `responseFlags` of an OP_REPLY.
    pub flags: u32,
    /// Names the request.
    pub answers: bool,
    /// The command succeeded.
    pub ok: bool,
    /// `code`, 0 without one.
    pub code: i32,
    /// `codeName`
    pub code_name: String,
}

/// What a peer did after it was sent bytes, up to the answer to a ping that followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// In order.
    pub replies: Vec<Reply>,
    /// Bytes came that are no message.
    pub text: bool,
    /// The socket was closed before the ping was answered.
    pub closed: bool,
}

impl Observed {
    /// Closed without a word.
    pub fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }

    /// One OP_MSG with this error, on a socket that stays open.
    pub fn error(code: i32, code_name: &str) -> Self {
        let code_name = code_name.to_owned();
        let reply = Reply { op_code: OP_MSG, answers: true, code, code_name, ..Reply::default() };
        Self { replies: vec![reply], ..Self::default() }
    }
}

/// Sends `bytes` on a new socket and looks what happens.
pub async fn observe(address: &Address, bytes: &[u8]) -> Observed {
    let mut socket = connect(address).await;
    timeout(PATIENCE, watch(&mut socket, bytes)).await.unwrap_or_else(|_| panic!("{address} hangs on {bytes:02x?}"))
}

/// A TCP socket and nothing sent.
pub async fn connect(address: &Address) -> TcpStream {
    let Address::Tcp { host, port } = address else { panic!("{address} is not TCP") };
    let socket = TcpStream::connect((host.as_str(), *port)).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// Sends a message and returns the document of the next reply, OP_MSG or OP_REPLY.
pub async fn exchange(socket: &mut TcpStream, bytes: &[u8]) -> Document {
    socket.write_all(bytes).await.unwrap();
    timeout(PATIENCE, next_document(socket)).await.expect("a reply")
}

/// The document of the next reply, OP_MSG or OP_REPLY, compressed or not.
pub async fn next_document(socket: &mut TcpStream) -> Document {
    document_of(&next_message(socket).await)
}

/// The next whole message.
pub async fn next_message(socket: &mut TcpStream) -> Vec<u8> {
    let length = socket.read_i32_le().await.unwrap();
    let mut message = length.to_le_bytes().to_vec();
    message.resize(usize::try_from(length).unwrap(), 0);
    socket.read_exact(&mut message[4..]).await.unwrap();
    message
}

/// Opcode of a message.
pub fn op_code(message: &[u8]) -> i32 {
    (&message[12..16]).get_i32_le()
}

/// How a message is compressed, if it is.
pub fn compressor(message: &[u8]) -> Option<u8> {
    (op_code(message) == OP_COMPRESSED).then(|| message[24])
}

/// The first document of an OP_MSG or OP_REPLY, compressed or not.
pub fn document_of(message: &[u8]) -> Document {
    let (mut op_code, mut body) = (op_code(message), message[16..].to_vec());
    if op_code == OP_COMPRESSED {
        let mut rest = &body[..];
        op_code = rest.get_i32_le();
        let size = usize::try_from(rest.get_i32_le()).unwrap();
        body = inflate(rest.get_u8(), size, rest);
    }
    let skip = if op_code == OP_MSG { 5 } else { 20 };
    Document::from_reader(&body[skip..]).unwrap()
}

/// Resolves with true when the peer closes, with false when it sends something.
pub async fn ends(socket: &mut TcpStream) -> bool {
    let read = timeout(PATIENCE, socket.read(&mut [0; 16])).await.expect("the socket ends or brings something");
    matches!(read, Ok(0) | Err(_))
}

async fn watch(socket: &mut TcpStream, bytes: &[u8]) -> Observed {
    let mut ping = command(doc! { "ping": 1, "$db": "admin" });
    ping[4..8].copy_from_slice(&PING.to_le_bytes());
    let mut observed = Observed::default();
    // A peer that closes at once does not let us write to the end; what it said before can still be read.
    let _written = socket.write_all(&[bytes, &ping[..]].concat()).await.is_ok();
    let mut unread = BytesMut::new();
    loop {
        if let Some(length) = unread.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)) {
            match usize::try_from(length) {
                Ok(length) if (16..=48_016_384).contains(&length) => {
                    if unread.len() >= length {
                        let message = unread.split_to(length);
                        if message[8..12] == PING.to_le_bytes() {
                            return observed;
                        }
                        observed.replies.push(read_reply(&message));
                        continue;
                    }
                }
                _ => {
                    observed.text = true;
                    unread.clear();
                }
            }
        }
        if !matches!(socket.read_buf(&mut unread).await, Ok(1..)) {
            observed.closed = true;
            return observed;
        }
    }
}

/// A reply, taken out of any compression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Whose request it answers.
    pub response_to: i32,
    /// Of the message itself, inside of any compression.
    pub op_code: i32,
    /// How it was compressed.
    pub compressor: Option<u8>,
    /// Flag bits of an OP_MSG, `responseFlags` of an OP_REPLY.
    pub flags: u32,
    /// The bytes of its first document.
    pub document: Vec<u8>,
}

/// Takes a whole reply apart.
pub fn opened(message: &[u8]) -> Opened {
    let mut rest = &message[8..];
    let (response_to, mut op_code) = (rest.get_i32_le(), rest.get_i32_le());
    let inflated;
    let mut compressor = None;
    if op_code == OP_COMPRESSED {
        op_code = rest.get_i32_le();
        let size = usize::try_from(rest.get_i32_le()).unwrap();
        let number = rest.get_u8();
        compressor = Some(number);
        inflated = inflate(number, size, rest);
        assert_eq!(inflated.len(), size);
        rest = &inflated;
    }
    let flags = rest.get_u32_le();
    let skip = match op_code {
        OP_MSG => 1,
        1 => 16,
        other => panic!("a reply with opcode {other}"),
    };
    let length = usize::try_from(i32::from_le_bytes(rest[skip..skip + 4].try_into().unwrap())).unwrap();
    Opened { response_to, op_code, compressor, flags, document: rest[skip..skip + length].to_vec() }
}

fn read_reply(message: &[u8]) -> Reply {
    let Opened { response_to, op_code, compressor, flags, document } = opened(message);
    let document = RawDocument::from_bytes(&document).unwrap();
    // Field by field: a server quotes what it got in `errmsg`, even if that is no UTF-8.
    let field = |name| document.get(name).ok().flatten();
    Reply {
        op_code,
        compressor,
        flags,
        answers: response_to == REQUEST,
        ok: field("ok").is_some_and(|ok| ok.as_f64() == Some(1.0) || ok.as_i32() == Some(1)),
        code: field("code").and_then(|code| code.as_i32()).unwrap_or_default(),
        code_name: field("codeName").and_then(|name| name.as_str()).unwrap_or_default().to_owned(),
    }
}
