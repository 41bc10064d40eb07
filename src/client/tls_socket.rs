//! A client's socket once the handshake is over: TLS over TCP, and a limit to how long a record may take.
//!
//! What is inside a record shows only when it is there to its end. Who sends the first bytes of one and no more would look as
//! idle as a client that has nothing to say, so the records are watched as they come.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

/// Type, version and length of a record.
const RECORD_HEADER_BYTES: usize = 5;

/// A stream on which somebody else reads TLS records; knows whether the last one is there to its end.
pub(super) struct Records<S> {
    stream: S,
    header: [u8; RECORD_HEADER_BYTES],
    /// Bytes of it that are there.
    header_bytes: usize,
    /// Bytes of the record's body that are still to come.
    missing: usize,
}

impl<S> Records<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, header: [0; RECORD_HEADER_BYTES], header_bytes: 0, missing: 0 }
    }

    fn is_within_one(&self) -> bool {
        self.header_bytes > 0 || self.missing > 0
    }

    fn follow(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            if self.missing > 0 {
                let here = self.missing.min(bytes.len());
                self.missing -= here;
                bytes = &bytes[here..];
                continue;
            }
            self.header[self.header_bytes] = first;
            self.header_bytes += 1;
            bytes = &bytes[1..];
            if self.header_bytes == RECORD_HEADER_BYTES {
                self.missing = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                self.header_bytes = 0;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Records<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.follow(&buffer.filled()[before..]);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Why a read failed: a record was begun and not ended in time.
#[derive(Debug)]
pub(super) struct RecordStalled;

impl fmt::Display for RecordStalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a TLS record stands still")
    }
}

impl std::error::Error for RecordStalled {}

/// A client's socket.
pub struct TlsSocket {
    stream: TlsStream<Records<TcpStream>>,
    stall_timeout: Duration,
    /// Runs while a record is not there to its end and there is nothing else to read.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl TlsSocket {
    pub(super) fn new(stream: TlsStream<Records<TcpStream>>, stall_timeout: Duration) -> Self {
        Self { stream, stall_timeout, stalled: None }
    }

    /// What carries the records.
    pub(super) fn tcp(&self) -> &TcpStream {
        &self.stream.get_ref().0.stream
    }

    /// The beginning of a record has been read, and not its end.
    pub(super) fn is_within_record(&self) -> bool {
        self.stream.get_ref().0.is_within_one()
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        if polled.is_ready() || !this.stream.get_ref().0.is_within_one() {
            this.stalled = None;
            return polled;
        }
        let timeout = this.stall_timeout;
        let stalled = this.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::other(RecordStalled)))
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_followed_to_its_end_however_it_is_cut() {
        let records = [&[23, 3, 3, 0, 4, 1, 2, 3, 4][..], &[21, 3, 3, 0, 0], &[23, 3, 3, 1, 0], &[7; 256]].concat();
        let ends = [9, 14, records.len()];
        for size in 1..records.len() {
            let mut watched = Records::new(());
            let mut seen = 0;
            assert!(!watched.is_within_one());
            for piece in records.chunks(size) {
                watched.follow(piece);
                seen += piece.len();
                assert_eq!(watched.is_within_one(), !ends.contains(&seen), "{size} {seen}");
            }
        }
    }
}
