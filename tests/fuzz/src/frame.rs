//! Cutting messages out of a stream of bytes.
//!
//! However the bytes arrive, the same messages come out, as they came in; a length is believed only when the bytes are there.

use bytes::BytesMut;
use mongomux::wire::{Frame, FrameError, HEADER_LEN};

use super::allocations;

/// The smallest there can be, two that are soon reached, and the one of the product.
const LIMITS: [usize; 4] = [HEADER_LEN, 64, 1024, 48_000_000];

/// Streams up to here are cut at each of their bytes.
const SPLIT_BYTES: usize = 256;

/// What became of a stream.
#[derive(Debug, PartialEq)]
struct Cut {
    messages: Vec<Vec<u8>>,
    rest: Vec<u8>,
    error: Option<FrameError>,
}

/// The first byte chooses the limit, the others are the stream.
pub fn check(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    let limit = LIMITS[usize::from(*choice) % LIMITS.len()];
    let whole = cut([stream], limit);
    let came: Vec<u8> = whole.messages.iter().flatten().chain(&whole.rest).copied().collect();
    assert_eq!(came, stream, "no byte is lost or added");

    assert_eq!(cut(stream.chunks(1), limit), whole, "byte by byte");
    for at in (0..=stream.len()).step_by(stream.len() / SPLIT_BYTES + 1) {
        let (before, after) = stream.split_at(at);
        assert_eq!(cut([before, after], limit), whole, "cut at {at}");
    }
    let first = Frame::copy_into(
        |length| {
            assert!(length <= stream.len(), "room is asked for what has come");
            BytesMut::with_capacity(length)
        },
        stream,
        limit,
    );
    match first {
        Ok(copy) => assert_eq!(copy.map(|copy| copy.bytes().to_vec()).as_ref(), whole.messages.first()),
        Err(error) => assert_eq!((whole.messages.len(), Some(error)), (0, whole.error)),
    }
}

/// Hands the bytes over in these parts, and takes messages out as soon as there are some.
fn cut<'a>(parts: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> Cut {
    let (mut buffer, mut messages, mut error) = (BytesMut::new(), Vec::new(), None);
    for part in parts {
        buffer.extend_from_slice(part);
        while error.is_none() {
            let before = buffer.len();
            // What `split_to` keeps account with, and nothing of the length that is claimed.
            match allocations::within(256, || Frame::decode(&mut buffer, limit)) {
                Ok(Some(frame)) => messages.push(looked_at(frame, limit)),
                Ok(None) => {
                    assert_eq!(buffer.len(), before, "what is not whole stays");
                    break;
                }
                Err(found) => error = Some(found),
            }
        }
    }
    Cut { messages, rest: buffer.to_vec(), error }
}

/// The bytes of a message whose header says what it is.
fn looked_at(mut frame: Frame, limit: usize) -> Vec<u8> {
    let (bytes, header) = (frame.bytes().to_vec(), *frame.header());
    assert_eq!(header.length, bytes.len());
    assert!((HEADER_LEN..=limit).contains(&bytes.len()));
    assert_eq!(frame.body(), &bytes[HEADER_LEN..]);
    assert_eq!(header.op_code.to_wire().to_le_bytes(), bytes[12..16]);
    frame.set_request_id(!header.request_id);
    frame.set_response_to(!header.response_to);
    let changed: Vec<usize> = (0..bytes.len()).filter(|at| frame.bytes()[*at] != bytes[*at]).collect();
    assert_eq!(changed, (4..12).collect::<Vec<_>>(), "the two ids and nothing else");
    bytes
}
