//! The header of the PROXY protocol, version 2, by which a load balancer tells whose connection it passes on.
//!
//! It is read to its last byte and no further. Version 1 is refused: it is text, and where it ends shows only byte by byte.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::config::limits::MAX_PROXY_HEADER_BYTES;

/// Signature, version and command, family, and the length of what follows.
const FIXED_BYTES: usize = 16;

/// How a header of version 2 begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It ended, or broke.
    #[error("the connection ended within its PROXY header: {0}")]
    Ended(#[from] io::Error),
    /// It begins with something else.
    #[error("no PROXY protocol header of version 2")]
    Missing,
    /// Longer than anybody needs.
    #[error("a PROXY header of {0} bytes, at most {MAX_PROXY_HEADER_BYTES} are read")]
    TooLong(usize),
    /// Its fields make no sense.
    #[error("a broken PROXY header")]
    Broken,
}

/// What a header tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Where the client is.
    pub source: SocketAddr,
    /// What it has dialled.
    pub destination: SocketAddr,
}

/// Takes the header off a stream. `None` when it names no address: the sender speaks for itself, as for a health check, or the
/// client is on a unix socket there.
///
/// # Errors
/// [`HeaderError`]; the connection is to be closed.
pub async fn take(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Told>, HeaderError> {
    let mut header = vec![0; FIXED_BYTES];
    stream.read_exact(&mut header).await?;
    if !header.starts_with(SIGNATURE) {
        return Err(HeaderError::Missing);
    }
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([header[FIXED_BYTES - 2], header[FIXED_BYTES - 1]]));
    if length > MAX_PROXY_HEADER_BYTES {
        return Err(HeaderError::TooLong(length));
    }
    header.resize(length, 0);
    stream.read_exact(&mut header[FIXED_BYTES..]).await?;
    let only_v2 = ParseConfig { include_tlvs: false, allow_v1: false, allow_v2: true };
    let (parsed, _) = ProxyHeader::parse(&header, only_v2).map_err(|_| HeaderError::Broken)?;
    Ok(parsed.proxied_address().map(|told| Told { source: told.source, destination: told.destination }))
}

#[cfg(test)]
mod tests {
    use proxy_header::ProxiedAddress;

    use super::*;

    fn told(source: &str) -> Option<Told> {
        let source: SocketAddr = source.parse().unwrap();
        Some(Told { source, destination: SocketAddr::new(source.ip(), 27016) })
    }

    fn encoded(source: &str) -> Vec<u8> {
        let Told { source, destination } = told(source).unwrap();
        let mut bytes = Vec::new();
        let header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
        header.encode_v2(&mut bytes).unwrap();
        bytes
    }

    /// What was read, and what was left.
    async fn read(bytes: &[u8]) -> (Result<Option<Told>, HeaderError>, Vec<u8>) {
        let mut rest = bytes;
        let taken = take(&mut rest).await;
        (taken, rest.to_vec())
    }

    #[tokio::test]
    async fn addresses_of_both_families_are_told_and_nothing_more_is_read() {
        for source in ["192.0.2.7:4711", "[2001:db8::7]:4711"] {
            let mut bytes = encoded(source);
            bytes.extend_from_slice(b"behind");
            let (taken, rest) = read(&bytes).await;
            assert_eq!((taken.unwrap(), rest.as_slice()), (told(source), &b"behind"[..]));
        }
    }

    #[tokio::test]
    async fn a_sender_may_speak_for_itself_and_add_what_it_likes() {
        let mut local = Vec::new();
        ProxyHeader::with_local().encode_v2(&mut local).unwrap();
        assert_eq!(read(&local).await.0.unwrap(), None);
        let mut unix = [SIGNATURE, &[0x21, 0x31, 0, 216]].concat();
        unix.extend([b'x'; 216]);
        assert_eq!(read(&unix).await.0.unwrap(), None);
        // A type that nobody knows, of seven bytes.
        let mut more = encoded("192.0.2.7:4711");
        more.extend([0xEA, 0, 7]);
        more.extend([9; 7]);
        let length = u16::try_from(more.len() - FIXED_BYTES).unwrap();
        more[14..16].copy_from_slice(&length.to_be_bytes());
        let (taken, rest) = read(&more).await;
        assert_eq!((taken.unwrap(), rest.len()), (told("192.0.2.7:4711"), 0));
    }

    #[tokio::test]
    async fn what_is_no_header_is_told_apart() {
        assert!(matches!(read(b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n").await.0, Err(HeaderError::Missing)));
        assert!(matches!(read(&[0; 64]).await.0, Err(HeaderError::Missing)));
        let long = [SIGNATURE, &[0x21, 0x11, 0xFF, 0xFF]].concat();
        assert!(matches!(read(&long).await.0, Err(HeaderError::TooLong(65_551))));
        for (position, value) in [(12, 0x11), (12, 0x22), (13, 0x15), (13, 0x41), (15, 4)] {
            let mut bytes = encoded("192.0.2.7:4711");
            bytes[position] = value;
            assert!(matches!(read(&bytes).await.0, Err(HeaderError::Broken)), "{position}: {value:#x}");
        }
        let whole = encoded("[2001:db8::7]:4711");
        for length in 0..whole.len() {
            assert!(matches!(read(&whole[..length]).await.0, Err(HeaderError::Ended(_))), "cut at {length}");
        }
    }
}
