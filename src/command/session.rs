//! The fields that tie a command to a logical session and to a transaction.

use crate::auth::UserId;

/// A logical session. As on a server, those of two users are two, even if they are called the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    /// The UUID in `lsid.id`.
    pub id: [u8; 16],
    /// Who uses it.
    pub user: UserId,
}

impl From<[u8; 16]> for SessionId {
    /// Of the service's own user.
    fn from(id: [u8; 16]) -> Self {
        Self { id, user: UserId::SERVICE }
    }
}

/// A transaction, as both peers name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId {
    /// The session that it runs in.
    pub session: SessionId,
    /// Its number in that session; a higher one ends all before it.
    pub number: i64,
}

/// Session fields of one command, and who has sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionFields {
    /// Who has sent the command; [`UserId::SERVICE`] where nobody logs in.
    pub user: UserId,
    /// `lsid.id`
    pub session: Option<SessionId>,
    /// `txnNumber`
    pub transaction_number: Option<i64>,
    /// `startTransaction: true`
    pub starts_transaction: bool,
    /// `autocommit: false`, which every command of a transaction carries.
    pub in_transaction: bool,
}

impl SessionFields {
    /// Says who has sent the command, and so whose session it is.
    pub fn set_user(&mut self, user: UserId) {
        self.user = user;
        if let Some(session) = &mut self.session {
            session.user = user;
        }
    }

    /// The transaction that the command belongs to, if all three fields say so.
    pub fn transaction(&self) -> Option<TransactionId> {
        match (self.in_transaction, self.session, self.transaction_number) {
            (true, Some(session), Some(number)) => Some(TransactionId { session, number }),
            _ => None,
        }
    }

    /// True when the server keeps the command from being applied twice.
    pub fn is_retryable(&self) -> bool {
        self.transaction_number.is_some() && !self.in_transaction
    }
}
