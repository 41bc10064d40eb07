//! OP_MSG as its two ends see it; shares no line with the codec of the proxy, which it judges.

use std::io;

use bson::Document;
use tokio::io::{AsyncRead, AsyncReadExt};

pub(crate) const MORE_TO_COME: u32 = 2;

/// A whole message.
pub(crate) struct Message {
    pub(crate) request_id: i32,
    pub(crate) response_to: i32,
    pub(crate) flags: u32,
    pub(crate) document: Document,
}

/// Why there is no message.
#[derive(Debug)]
pub(crate) enum NoMessage {
    /// The other end closed between two messages.
    Closed,
    /// It closed within one, or the link broke.
    Broken,
    /// That is no message.
    Malformed(String),
}

impl From<io::Error> for NoMessage {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

/// The bytes of a message.
pub(crate) fn encode(request_id: i32, response_to: i32, flags: u32, document: &Document) -> Vec<u8> {
    let document = document.to_vec().expect("a document");
    let length = i32::try_from(21 + document.len()).expect("a small message");
    let mut bytes: Vec<u8> = [length, request_id, response_to, 2013].into_iter().flat_map(i32::to_le_bytes).collect();
    bytes.extend(flags.to_le_bytes());
    bytes.push(0);
    bytes.extend(document);
    bytes
}

/// Reads the next message.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Message, NoMessage> {
    let mut header = [0; 16];
    let first = stream.read(&mut header).await?;
    if first == 0 {
        return Err(NoMessage::Closed);
    }
    stream.read_exact(&mut header[first..]).await?;
    let number = |at: usize| i32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let (length, op_code) = (number(0), number(12));
    if op_code != 2013 || !(26..=1_000_000).contains(&length) {
        return Err(NoMessage::Malformed(format!("op code {op_code} and length {length}")));
    }
    let mut body = vec![0; length as usize - 16];
    stream.read_exact(&mut body).await?;
    let flags = u32::from_le_bytes(body[..4].try_into().expect("four bytes"));
    if body[4] != 0 {
        return Err(NoMessage::Malformed(format!("a section of kind {}", body[4])));
    }
    match Document::from_reader(&body[5..]) {
        Ok(document) => Ok(Message { request_id: number(4), response_to: number(8), flags, document }),
        Err(error) => Err(NoMessage::Malformed(error.to_string())),
    }
}
