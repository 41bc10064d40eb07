//! Log-ins: SCRAM as MongoDB speaks it, from both ends, and the command documents that carry it upstream.
//!
//! Nothing here talks to a socket, draws a nonce or chooses a credential: `upstream/handshake.rs` does, and runs the one
//! expensive step, [`KeyDerivation::derive`], where it blocks nobody. The server's half, for clients that log in to the proxy, is
//! in [`scram_server`]; what a user is verified with, in [`users`]; the conversation around it is the client's stage.

pub mod identity;
pub mod sasl;
pub mod scram;
pub mod scram_server;
pub mod users;

use std::fmt;

use zeroize::Zeroizing;

pub use identity::{Identities, Identity, LoggedIn, Realm, UpstreamLogin, UserId, UserKeys, UserName};
pub use sasl::{AuthError, Conversation, Step};
pub use scram::{ClientNonce, KeyDerivation, KeyId, Mechanism, SaltedKeys, ScramError};

/// Bytes that give access: no log, error or panic message may show them, so `Debug` does not; and they are wiped when they are
/// dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl Secret {
    /// The bytes, which are not to be kept elsewhere.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}
