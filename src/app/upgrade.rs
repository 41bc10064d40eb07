//! One process takes over from another without a client noticing.
//!
//! The old process listens at `upgrade_socket`. The new one finds it there and asks for its listening sockets: they are handed
//! over, as they are, since to bind them anew would lose what has connected and was not accepted yet. The new one builds
//! everything, waits until it has a server that it can use, and says that it is ready; until then nothing has changed for anybody,
//! and if it dies, nothing will. Then the new one is told to begin, and the old one stops to accept once it has heard that it does:
//! there is always one that accepts, and never one that takes the other for gone while it goes on. What is left of the old one is
//! *handed over* a few at a time: the sockets of clients that are idle, with all that is known of them, and in the end its cursors
//! ([`drain`](super::App::drain)). Meanwhile each answers what the other does not know: [`crate::upstream::elsewhere`].
//!
//! ```text
//!  old ── listening sockets ──▶ new           nobody notices anything
//!      ◀──────── ready ───────
//!      ───────── go ─────────▶
//!      ◀──────── begun ───────                the new one accepts, and the old one does not any more
//!      ── clients, one by one ▶
//!      ◀─ questions, answers ─▶
//!      ── cursors, last word ─▶               the old one ends
//! ```

mod after;
mod before;
mod conversation;
mod link;

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};

pub(super) use after::{Relief, Standing};
pub(super) use before::{Before, find};
pub(super) use conversation::{Conversation, Part};
pub(super) use link::Role;
use std::os::unix::fs::PermissionsExt as _;

use crate::client::BoundSocket;
use crate::config::Address;
use crate::upstream::Liveness;

/// Why one process cannot take over from another.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Said by the other one.
    #[error("the process that listens at {socket} does not let this one take over: {why}")]
    Refused {
        /// Where it listens.
        socket: String,
        /// What it says.
        why: String,
    },
    /// It does not answer, or not so that it can be understood.
    #[error("the process that listens at {socket} cannot be taken over from: {error}")]
    Link {
        /// Where it listens.
        socket: String,
        /// What went wrong.
        error: io::Error,
    },
}

/// A listening socket of this process, as long as it is open.
pub(super) struct Door {
    pub(super) role: Role,
    pub(super) socket: Weak<BoundSocket>,
}

impl Door {
    pub(super) fn new(role: Role, socket: &Arc<BoundSocket>) -> Self {
        Self { role, socket: Arc::downgrade(socket) }
    }
}

/// Listens where the next process looks for this one. Nobody but its user may connect.
pub(super) async fn bind(path: &Path) -> Result<Arc<BoundSocket>, crate::client::BindError> {
    let socket = BoundSocket::bind(&Address::Unix(path.to_owned()), Liveness::UPSTREAM).await?;
    // Who has connected before is asked for its user all the same.
    if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
        tracing::warn!(path = %path.display(), %error, "cannot keep others from the upgrade socket: they are refused");
    }
    Ok(Arc::new(socket))
}

#[cfg(test)]
mod tests;
