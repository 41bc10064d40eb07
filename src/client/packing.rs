//! In which form a request goes upstream: as it came, compressed for its connection, or as it is.
//!
//! What came compressed in the way that the connection has agreed on goes on in the same bytes, unless something in it had to
//! be changed. An uncompressed request is always legal, so where there is no memory for a second form it goes out as it is.

use bytes::BytesMut;

use super::exchange::Exchange;
use super::shared::ClientShared;
use crate::admission::Reservation;
use crate::command::Compressing;
use crate::tasks::compute;
use crate::upstream::Connection;
use crate::wire::{Compressor, Deflation, Frame, OpCode, op_compressed};

/// The form of a request for one connection.
#[derive(Debug, Default)]
pub(super) enum Form {
    /// As it is.
    #[default]
    Plain,
    /// In the bytes that it came in, which this made.
    AsItCame(Compressor),
    /// In bytes of its own.
    Packed(Box<Packed>),
}

/// Compressed for one connection, with the memory for it.
#[derive(Debug)]
pub(super) struct Packed {
    bytes: BytesMut,
    _room: Reservation,
}

impl Exchange {
    /// The bytes to send, in the form that was chosen last.
    pub(super) fn message(&self) -> &[u8] {
        match &self.form {
            Form::Plain => None,
            Form::AsItCame(compressor) => self.frame.wrapped(*compressor),
            Form::Packed(packed) => Some(&*packed.bytes),
        }
        .unwrap_or(self.frame.bytes())
    }

    /// Chooses the form for `connection`; `None` when it is there at once, else how it is to be compressed elsewhere.
    pub(super) fn choose_form(
        &mut self,
        connection: &Connection,
        shared: &ClientShared,
    ) -> Option<(Deflation, Reservation)> {
        self.form = Form::Plain;
        let how = connection.compression?;
        let compressing = Compressing::of(&self.command, &self.frame);
        if compressing != Compressing::Never && self.frame.wrapped(how.compressor).is_some() {
            self.form = Form::AsItCame(how.compressor);
            return None;
        }
        let length = self.frame.bytes().len();
        if !compressing.applies(length) {
            return None;
        }
        let bound = op_compressed::compressed_bound(length, how.compressor);
        let room = shared.bounds.memory.try_request(bound)?;
        if op_compressed::takes_long_to_compress(length, how.compressor) {
            return Some((how, room));
        }
        self.form = pack(&self.frame, how, room, shared.limits.load().max_message_bytes);
        None
    }

    /// Compresses a large request while others go on.
    pub(super) async fn pack_elsewhere(&mut self, how: Deflation, room: Reservation, shared: &ClientShared) {
        let limit = shared.limits.load().max_message_bytes;
        let frame = std::mem::replace(&mut self.frame, Frame::build(0, 0, OpCode::Msg, &[]));
        let packed = compute(move || (pack(&frame, how, room, limit), frame)).await;
        (self.form, self.frame) =
            packed.expect("compressing does not panic, and is not aborted while it is waited for");
    }
}

fn pack(frame: &Frame, how: Deflation, mut room: Reservation, max_message_bytes: usize) -> Form {
    let bytes = op_compressed::compress(frame.bytes(), how, max_message_bytes);
    room.shrink_to(bytes.len());
    Form::Packed(Box::new(Packed { bytes, _room: room }))
}
