//! Buffers for requests that are used again, so that a command costs no allocation.

use std::cell::RefCell;

use bytes::BytesMut;

use crate::config::limits::SPARE_BUFFERS_BYTES;

/// A new buffer has room for this at least: most requests fit, and it serves for many.
const LEAST_BYTES: usize = 512;

#[derive(Default)]
struct Spare {
    buffers: Vec<BytesMut>,
    /// What they have room for, all together.
    bytes: usize,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

/// An empty buffer with room for so many bytes.
pub(super) fn take(bytes: usize) -> BytesMut {
    let buffer = SPARE.with_borrow_mut(|spare| {
        let buffer = spare.buffers.pop()?;
        spare.bytes -= buffer.capacity();
        Some(buffer)
    });
    match buffer {
        Some(buffer) if buffer.capacity() >= bytes => buffer,
        _ => BytesMut::with_capacity(bytes.max(LEAST_BYTES)),
    }
}

/// Keeps a buffer for the next request, while there is room for it.
pub(super) fn give_back(mut buffer: BytesMut) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.bytes + buffer.capacity() <= SPARE_BUFFERS_BYTES {
            spare.bytes += buffer.capacity();
            spare.buffers.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_serves_again_if_it_is_large_enough() {
        let first = take(100);
        let place = first.as_ptr();
        give_back(first);
        let again = take(LEAST_BYTES);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        give_back(again);
        assert!(take(LEAST_BYTES + 1).capacity() > LEAST_BYTES);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let taken: Vec<BytesMut> = (0..100).map(|_| take(SPARE_BUFFERS_BYTES / 10)).collect();
        taken.into_iter().for_each(give_back);
        SPARE.with_borrow(|spare| {
            assert!((9..=10).contains(&spare.buffers.len()));
            assert_eq!(spare.bytes, spare.buffers.iter().map(BytesMut::capacity).sum::<usize>());
        });
    }
}
