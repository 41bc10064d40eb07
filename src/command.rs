//! What a message asks for: name, database, and the few fields that decide where it goes and what may be done with it.

mod compressing;
pub mod kind;
mod namespaces;
pub mod parse;
pub mod read_preference;
pub mod server_commands;
pub mod session;

pub use compressing::Compressing;
pub use kind::{CommandSpec, Effect, Handling, LocalCommand};
pub use parse::{Command, CommandError, PrimaryRead};
pub use read_preference::{ReadPreference, ReadPreferenceMode};
pub use session::{SessionFields, SessionId, TransactionId};
