//! The statements of a transaction as raw commands, which may go over any socket.

use bson::{Document, doc};
use mongomux::sandbox::wire_client::{WireClient, WireError};

use super::new_lsid;

/// A session with a transaction number, for raw commands.
#[derive(Clone)]
pub struct Raw {
    pub lsid: Document,
    pub number: i64,
}

impl Raw {
    /// The first one of a new session.
    pub fn new() -> Self {
        Self { lsid: new_lsid(), number: 1 }
    }

    /// The command as its first statement.
    pub fn first(&self, command: Document) -> Document {
        let mut command = self.next(command);
        command.insert("startTransaction", true);
        command
    }

    /// The command as a later statement.
    pub fn next(&self, mut command: Document) -> Document {
        command.extend(doc! { "lsid": self.lsid.clone(), "txnNumber": self.number, "autocommit": false });
        command
    }

    /// Commits or aborts it.
    pub async fn end(&self, client: &mut WireClient, name: &str) -> Result<Document, WireError> {
        client.command("admin", self.next(doc! { name: 1 })).await
    }
}
