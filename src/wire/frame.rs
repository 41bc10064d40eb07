//! One whole message, cut from a stream of bytes.
//!
//! Reading, growing and waiting are the caller's: `decode` says "read more" by returning `None`.

use bytes::{BufMut, Bytes, BytesMut};

use super::header::{HEADER_LEN, MessageHeader, OpCode};
use super::op_compressed::Compressor;

/// Why bytes from a socket are no message of this protocol. The sender is at fault and its socket is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is impossible or over the limit.
    #[error("message length {found} is outside 16 to {limit}")]
    Length {
        /// What the header says.
        found: i32,
        /// The largest length that is allowed, bytes.
        limit: usize,
    },
    /// Somebody begins to speak TLS.
    #[error("what came is TLS, and the listener speaks none")]
    Tls,
}

/// One whole message: header and body as they arrived, in one buffer.
#[derive(Debug)]
pub struct Frame {
    bytes: BytesMut,
    header: MessageHeader,
    /// The compressed form that it came in, as long as that says the same.
    wrapped: Option<Box<Wrapped>>,
    /// The buffer was given by the caller, and is all its own.
    lent: bool,
}

#[derive(Debug)]
struct Wrapped {
    compressor: Compressor,
    bytes: BytesMut,
}

impl Frame {
    /// Cuts the first message off `buffer`; `None` means that more bytes are needed, and `buffer` is untouched.
    ///
    /// # Errors
    /// [`FrameError`] when what has arrived cannot become a message, found as early as the bytes allow.
    pub fn decode(buffer: &mut BytesMut, max_message_bytes: usize) -> Result<Option<Self>, FrameError> {
        match MessageHeader::parse(buffer, max_message_bytes)? {
            Some(header) if header.length <= buffer.len() => {
                Ok(Some(Self::new(buffer.split_to(header.length), header)))
            }
            _ => Ok(None),
        }
    }

    /// Copies the first message out of `bytes`, into an empty buffer that `buffer` gives for so many; `None` means that it is
    /// not whole. The copy is what lets the caller read many sockets into one shared buffer.
    ///
    /// # Errors
    /// As [`Frame::decode`].
    pub fn copy_into(
        buffer: impl FnOnce(usize) -> BytesMut,
        bytes: &[u8],
        max_message_bytes: usize,
    ) -> Result<Option<Self>, FrameError> {
        let Some(header) = MessageHeader::parse(bytes, max_message_bytes)? else { return Ok(None) };
        Ok(bytes.get(..header.length).map(|message| {
            let mut buffer = buffer(header.length);
            buffer.extend_from_slice(message);
            Self { lent: true, ..Self::new(buffer, header) }
        }))
    }

    /// Its buffer, if that is the one that [`Frame::copy_into`] was given: any other may be part of a larger one.
    pub fn into_lent_buffer(self) -> Option<BytesMut> {
        self.lent.then_some(self.bytes)
    }

    /// Builds a message around `body`.
    pub fn build(request_id: i32, response_to: i32, op_code: OpCode, body: &[u8]) -> Self {
        let length = HEADER_LEN.saturating_add(body.len());
        let mut bytes = BytesMut::with_capacity(length);
        bytes.put_i32_le(i32::try_from(length).expect("our own messages stay below the message limit"));
        bytes.put_i32_le(request_id);
        bytes.put_i32_le(response_to);
        bytes.put_i32_le(op_code.to_wire());
        bytes.put_slice(body);
        Self::new(bytes, MessageHeader { length, request_id, response_to, op_code })
    }

    fn new(bytes: BytesMut, header: MessageHeader) -> Self {
        Self { bytes, header, wrapped: None, lent: false }
    }

    /// Keeps the message that this one was inside of, with the same request id. Every change of the body forgets it.
    pub fn keep_wrapped(&mut self, wrapped: Self, compressor: Compressor) {
        self.wrapped = Some(Box::new(Wrapped { compressor, bytes: wrapped.bytes }));
    }

    /// The message that this one came in, if that was compressed so and nothing but the request id has changed since.
    pub fn wrapped(&self, compressor: Compressor) -> Option<&[u8]> {
        self.wrapped.as_ref().filter(|wrapped| wrapped.compressor == compressor).map(|wrapped| &*wrapped.bytes)
    }

    /// The header.
    pub fn header(&self) -> &MessageHeader {
        &self.header
    }

    /// The whole message, header included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message without its header.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }

    /// The message without its header, for patches that keep the length.
    pub(crate) fn body_mut(&mut self) -> &mut [u8] {
        self.wrapped = None;
        self.bytes.get_mut(HEADER_LEN..).unwrap_or_default()
    }

    /// Writes another request id into the header.
    pub fn set_request_id(&mut self, request_id: i32) {
        self.header.request_id = request_id;
        patch_i32(&mut self.bytes, 4, request_id);
        if let Some(wrapped) = &mut self.wrapped {
            patch_i32(&mut wrapped.bytes, 4, request_id);
        }
    }

    /// Writes another response id into the header.
    pub fn set_response_to(&mut self, response_to: i32) {
        self.wrapped = None;
        self.header.response_to = response_to;
        super::encode::set_response_to(&mut self.bytes, response_to);
    }

    /// Cuts the last `count` bytes off, as far as there are any behind the header.
    pub(crate) fn truncate_by(&mut self, count: usize) {
        self.wrapped = None;
        let length = self.bytes.len().saturating_sub(count).max(HEADER_LEN);
        self.bytes.truncate(length);
        self.header.length = length;
        patch_i32(&mut self.bytes, 0, i32::try_from(length).expect("a message only gets shorter here"));
    }

    /// The buffer itself.
    pub fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// Overwrites the little-endian `i32` at `offset`; a place that does not exist is left alone.
fn patch_i32(bytes: &mut [u8], offset: usize, value: i32) {
    if let Some(place) = bytes.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
        *place = value.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 48_000_000;

    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (id, body) in [(1, &b"first"[..]), (2, b""), (3, b"the third one")] {
            bytes.extend_from_slice(Frame::build(id, 0, OpCode::Msg, body).bytes());
        }
        bytes
    }

    fn decode_all(buffer: &mut BytesMut) -> Vec<(i32, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(frame) = Frame::decode(buffer, LIMIT).unwrap() {
            frames.push((frame.header().request_id, frame.body().to_vec()));
        }
        frames
    }

    #[test]
    fn every_split_point_gives_the_same_frames() {
        let bytes = stream();
        let whole = decode_all(&mut BytesMut::from(&bytes[..]));
        assert_eq!(whole.len(), 3);
        for split in 0..=bytes.len() {
            let mut buffer = BytesMut::from(&bytes[..split]);
            let mut frames = decode_all(&mut buffer);
            buffer.extend_from_slice(&bytes[split..]);
            frames.extend(decode_all(&mut buffer));
            assert_eq!(frames, whole, "split at {split}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn truncated_input_asks_for_more_and_loses_nothing() {
        let bytes = Frame::build(1, 0, OpCode::Msg, b"body").bytes().to_vec();
        for length in 0..bytes.len() {
            let mut buffer = BytesMut::from(&bytes[..length]);
            assert!(Frame::decode(&mut buffer, LIMIT).unwrap().is_none());
            assert!(Frame::copy_into(BytesMut::with_capacity, &bytes[..length], LIMIT).unwrap().is_none());
            assert_eq!(buffer, bytes[..length]);
        }
    }

    #[test]
    fn a_length_alone_reserves_nothing() {
        let mut buffer = BytesMut::from(&47_000_000_i32.to_le_bytes()[..]);
        assert!(Frame::decode(&mut buffer, LIMIT).unwrap().is_none());
        assert!(buffer.capacity() < 1024);
    }

    #[test]
    fn a_buffer_goes_back_to_whoever_has_lent_it() {
        let bytes = stream();
        let first = Frame::copy_into(BytesMut::with_capacity, &bytes, LIMIT).unwrap().unwrap();
        assert_eq!((first.body(), first.header().length), (&b"first"[..], 21));
        assert_eq!(first.into_lent_buffer(), Some(BytesMut::from(&bytes[..21])));
        let part = Frame::decode(&mut BytesMut::from(&bytes[..]), LIMIT).unwrap().unwrap();
        assert_eq!(part.into_lent_buffer(), None, "the buffer holds what follows as well");
        assert_eq!(Frame::build(1, 0, OpCode::Msg, b"first").into_bytes(), bytes[..21]);
    }

    #[test]
    fn nothing_is_cut_off_the_header_nor_written_where_there_is_no_place() {
        let mut frame = Frame::build(1, 2, OpCode::Msg, b"1234");
        frame.truncate_by(9);
        assert_eq!((frame.bytes().len(), frame.header().length, frame.body()), (16, 16, &b""[..]));
        let mut short = [1, 2, 3, 4, 5];
        for offset in [2, 5, 6] {
            patch_i32(&mut short, offset, -1);
        }
        assert_eq!(short, [1, 2, 3, 4, 5]);
        patch_i32(&mut short, 1, -1);
        assert_eq!(short, [1, 255, 255, 255, 255]);
    }

    #[test]
    fn ids_and_length_are_patched_in_place() {
        let mut frame = Frame::build(1, 2, OpCode::Msg, b"12345678");
        frame.set_request_id(-7);
        frame.set_response_to(i32::MAX);
        frame.truncate_by(4);
        let again = Frame::copy_into(BytesMut::with_capacity, frame.bytes(), LIMIT).unwrap().unwrap();
        assert_eq!(again.header(), frame.header());
        assert_eq!((again.header().request_id, again.header().response_to), (-7, i32::MAX));
        assert_eq!(again.body(), b"1234");
    }

    #[test]
    fn the_form_that_a_message_came_in_is_forgotten_with_the_first_change_but_of_its_number() {
        let changes: [fn(&mut Frame); 4] = [
            |frame| frame.set_request_id(77),
            |frame| frame.set_response_to(1),
            |frame| frame.truncate_by(1),
            |frame| frame.body_mut()[0] = 1,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut frame = Frame::build(1, 0, OpCode::Msg, b"12345678");
            frame.keep_wrapped(Frame::build(1, 0, OpCode::Compressed, b"packed"), Compressor::Zstd);
            assert!(frame.wrapped(Compressor::Zlib).is_none());
            change(&mut frame);
            let number = frame.wrapped(Compressor::Zstd).map(|wrapped| wrapped[4]);
            assert_eq!(number, (index == 0).then_some(77), "{index}");
        }
    }
}
