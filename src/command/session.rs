//! The fields that tie a command to a logical session and to a transaction.

/// A logical session: the UUID in `lsid.id`. The user digest is the server's to add.
pub type SessionId = [u8; 16];

/// A transaction, as both peers name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId {
    /// The session that it runs in.
    pub session: SessionId,
    /// Its number in that session; a higher one ends all before it.
    pub number: i64,
}

/// Session fields of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionFields {
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
