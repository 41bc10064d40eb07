//! Buffers for requests that are used again, so that a command costs no allocation.
//!
//! All are of one size, which most requests fit into: so what a request takes of memory is never far from its length, which
//! is what it is charged with. Larger ones have a buffer of their own; to allocate that is little beside copying them.

use std::cell::RefCell;

use bytes::BytesMut;

use crate::config::limits::SPARE_BUFFERS;

/// Room in each.
const ROOM_BYTES: usize = 1_024;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = RefCell::default();
}

/// An empty buffer with room for so many bytes.
pub(super) fn take(bytes: usize) -> BytesMut {
    let spare = if bytes <= ROOM_BYTES { SPARE.with_borrow_mut(Vec::pop) } else { None };
    spare.unwrap_or_else(|| BytesMut::with_capacity(bytes.max(ROOM_BYTES)))
}

/// Keeps a buffer for the next request, if it is one of those and there is room for it.
pub(super) fn give_back(mut buffer: BytesMut) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if buffer.capacity() == ROOM_BYTES && spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_buffer_serves_again_and_a_large_one_does_not() {
        let mut first = take(100);
        let place = first.as_ptr();
        first.extend_from_slice(b"somebody's request");
        give_back(first);
        let again = take(ROOM_BYTES);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        let large = take(ROOM_BYTES + 1);
        assert!(large.capacity() > ROOM_BYTES);
        give_back(large);
        assert_eq!(take(100).capacity(), ROOM_BYTES, "a small request holds no large buffer");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let taken: Vec<BytesMut> = (0..2 * SPARE_BUFFERS).map(|_| take(1)).collect();
        taken.into_iter().for_each(give_back);
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_BUFFERS);
    }
}
