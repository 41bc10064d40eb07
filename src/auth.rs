//! Logging in upstream: SCRAM as MongoDB speaks it, and the command documents that carry it.
//!
//! Nothing here talks to a socket, draws a nonce or chooses a credential: `upstream/handshake.rs` does, and runs the one
//! expensive step, [`KeyDerivation::derive`], where it blocks nobody. The server's half of SCRAM is absent, because
//! clients do not log in to the proxy.

pub mod sasl;
pub mod scram;

use std::fmt;

pub use sasl::{AuthError, Conversation, Step};
pub use scram::{ClientNonce, KeyDerivation, KeyId, Mechanism, SaltedKeys, ScramError};

/// Bytes that give access: no log, error or panic message may show them, so `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}
