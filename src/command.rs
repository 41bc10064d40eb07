//! What a message asks for: name, database, and the few fields that decide where it goes and what may be done with it.

mod compressing;
pub mod kind;
mod namespaces;
pub mod parse;
pub mod read_preference;
pub mod rules;
pub mod server_commands;
pub mod session;
mod summary;
mod touches;
#[cfg(feature = "otel")]
mod trace_context;

pub use compressing::Compressing;
pub use kind::{CommandSpec, Effect, Group, Handling, LocalCommand};
pub use parse::{Command, CommandError, PrimaryRead};
pub use read_preference::{ReadPreference, ReadPreferenceMode};
pub use rules::Forbidden;
pub use session::{SessionFields, SessionId, TransactionId};
