//! The MongoDB wire protocol, without I/O: bytes in, views and messages out.
//!
//! Nothing here reads a socket, and nothing here copies a document: a [`Frame`] owns the bytes of one message, all
//! else borrows from it or remembers offsets into it. A length from the wire is an `i32` that is believed only after
//! it was checked against what really arrived. What a command means is the business of `command`.

#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod document;
pub mod encode;
pub mod frame;
pub mod header;
pub mod legacy;
pub mod op_compressed;
pub mod op_msg;

pub use document::{Element, Elements, MalformedDocument, Timestamp};
pub use frame::{Frame, FrameError};
pub use header::{HEADER_LEN, MessageHeader, OpCode};
pub use op_compressed::{Compressor, DecompressError, Deflation};
pub use op_msg::{OpMsg, OpMsgError};
