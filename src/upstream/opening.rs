//! Opening a compressed reply that came whole: at once, or elsewhere while the connection waits for it.

use bytes::BytesMut;

use crate::admission::Reservation;
use crate::tasks::{Computing, compute};
use crate::wire::{Compressor, DecompressError, op_compressed};

/// A reply that is being opened. Dropped in the middle of the work it leaves the memory with it until that is done.
pub(super) type Opening = Computing<Opened>;

/// What became of a compressed reply, with the memory for both of its forms.
pub(super) struct Opened {
    /// As it came.
    pub(super) message: BytesMut,
    /// What it holds of the memory budget; nothing if it is small.
    pub(super) room: Option<Reservation>,
    /// The message inside.
    pub(super) inside: Result<(BytesMut, Compressor), DecompressError>,
}

/// Opens it here and now.
pub(super) fn open(message: BytesMut, room: Option<Reservation>, max_message_bytes: usize) -> Opened {
    let inside = op_compressed::open(&message, max_message_bytes);
    Opened { message, room, inside }
}

/// Opens it elsewhere.
pub(super) fn start(message: BytesMut, room: Option<Reservation>, max_message_bytes: usize) -> Opening {
    compute(move || open(message, room, max_message_bytes))
}
