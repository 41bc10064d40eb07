//! What a client gets to read: the proxy's own answers and errors, and upstream errors that must be rewritten.
//!
//! Everything here is pure: documents in, documents out. Which of them is sent when is the client session's business.

pub mod errors;
pub mod matrix;

pub use errors::{ErrorReply, Labels, StateChangeKind};
pub use matrix::{OperationKind, Situation, answer};
