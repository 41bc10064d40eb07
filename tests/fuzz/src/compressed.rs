//! Compressed messages: what is inside is what was put in, and never more than it may be.

use mongomux::wire::{Compressor, DecompressError, Deflation, Frame, HEADER_LEN, OpCode, op_compressed};

use super::allocations;

/// Largest message inside, bytes.
const LIMIT: usize = 64 * 1024;

/// What a decompressor works with, far below what a false size would take.
const WORKSPACE_BYTES: usize = 1 << 20;

/// The first byte chooses the limit, the others are the body of an OP_COMPRESSED; and, in another turn, a message to be
/// compressed.
pub fn check(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    opened(body, LIMIT >> (choice % 8));
    for compressor in Compressor::ALL {
        round_trip(body, Deflation { compressor, zlib_level: u32::from(choice % 10) });
    }
}

fn opened(body: &[u8], limit: usize) {
    let frame = Frame::build(3, 4, OpCode::Compressed, body);
    let announced = op_compressed::inflated_bytes(frame.body(), limit);
    let opened = allocations::within(limit + WORKSPACE_BYTES, || op_compressed::decompress(&frame, limit));
    let (inside, compressor) = match (opened, announced) {
        (Ok(opened), Ok(announced)) => {
            assert_eq!(opened.0.bytes().len(), announced, "memory was charged for what came");
            opened
        }
        (Err(DecompressError::Data(_)), Ok(_)) => return,
        (Err(error), announced) => return assert_eq!(announced, Err(error)),
        (Ok(_), Err(error)) => panic!("a message is opened that cannot be: {error}"),
    };
    assert!(inside.bytes().len() <= limit);
    assert_eq!(inside.header().length, inside.bytes().len());
    assert_eq!((inside.header().request_id, inside.header().response_to), (3, 4));
    assert_ne!(inside.header().op_code, OpCode::Compressed, "none in another");
    let again = op_compressed::compress(inside.bytes(), compressor, usize::MAX);
    let (again, _) = op_compressed::open(&again, limit).unwrap();
    assert_eq!(again, inside.bytes());
}

fn round_trip(body: &[u8], how: Deflation) {
    let message = Frame::build(5, 6, OpCode::Msg, body);
    let bound = op_compressed::compressed_bound(body.len(), how.compressor);
    let wrapped = op_compressed::compress(message.bytes(), how, usize::MAX);
    assert!(wrapped.len() <= bound, "{} bytes are over the bound {bound}", wrapped.len());
    assert_eq!(i32::from_le_bytes(wrapped[12..HEADER_LEN].try_into().unwrap()), OpCode::Compressed.to_wire());
    let (opened, compressor) = op_compressed::open(&wrapped, message.bytes().len()).unwrap();
    assert_eq!((&*opened, compressor), (message.bytes(), how.compressor));
    let smaller = message.bytes().len().saturating_sub(1);
    assert!(body.is_empty() || op_compressed::open(&wrapped, smaller).is_err(), "one byte over the limit");
    let too_long = op_compressed::compress(message.bytes(), how, wrapped.len() - 1);
    assert_eq!(too_long, message.bytes(), "what does not fit stays as it is");
}
