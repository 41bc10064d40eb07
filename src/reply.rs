//! What a client gets to read: the proxy's own answers and errors, and upstream errors that must be rewritten.
//!
//! Everything here is pure: documents in, documents out. Which of them is sent when is the client session's business.

pub mod batch;
pub mod cloak;
pub mod cluster_time;
pub mod errors;
pub mod facts;
pub mod hello;
pub mod local;
pub mod log_in;
pub mod matrix;
pub mod metadata;
pub mod relay;
pub mod retry;

pub use batch::Batch;
pub use cloak::{Cloaked, StateChange, cloak};
pub use errors::{ErrorReply, Labels, StateChangeKind};
pub use facts::ReplyFacts;
pub use hello::{ClientState, Compressors, Facts, Shown, Socket, hello};
pub use matrix::{OperationKind, Situation, StateChangeAnswer, answer, answer_state_change};
pub use metadata::{ClientMetadata, MetadataPool};
pub use relay::{Inspected, MalformedReply, inspect};
pub use retry::{Attempted, retry};
