//! Whether the proxy sends a command again itself, before it answers at all: the cells of the matrix that begin with a
//! retry. Time and budget are the caller's.
//!
//! A server cannot execute a message that it did not get whole, so what was not written whole is always tried again. Once
//! the last byte may have arrived, only what is safe to run twice may be sent twice; by default that is left to the
//! driver, which re-sends by the labels of the error, since two layers of retries multiply.

use super::matrix::OperationKind;
use crate::command::Effect;
use crate::config::Retry;
use crate::telemetry::labels::RetryReason;

/// What became of an attempt that brought no reply for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The request was not written to its last byte.
    NotWritten,
    /// It was, and no whole reply came.
    NoReply,
    /// The server answered that it is not what we took it for, or that it shuts down.
    StateChange {
        /// It did nothing: it refused the command as a whole, and the command has one statement only.
        refused_at_start: bool,
    },
}

/// What is to be known of the command.
#[derive(Debug, Clone, Copy)]
pub struct Attempted {
    /// Its column in the matrix.
    pub kind: OperationKind,
    /// What running it does.
    pub effect: Effect,
    /// Tells a commit from an abort.
    pub aborts: bool,
    /// It was sent again already, after it had been written whole.
    pub resent: bool,
}

/// The reason to count when the command is to be sent once more; `None` when it is not.
pub fn retry(failure: Failure, command: Attempted, policy: Retry) -> Option<RetryReason> {
    match failure {
        Failure::NotWritten => Some(RetryReason::NotSent),
        _ if command.resent => None,
        // Nobody else can: its driver does not wait for an answer.
        Failure::StateChange { refused_at_start: true } if command.kind == OperationKind::Unacknowledged => {
            Some(RetryReason::Write)
        }
        _ if policy == Retry::Driver => None,
        Failure::StateChange { refused_at_start: true } if command.kind == OperationKind::Write => {
            Some(may_run_twice(command).unwrap_or(RetryReason::Write))
        }
        Failure::NoReply | Failure::StateChange { .. } => may_run_twice(command),
    }
}

fn may_run_twice(command: Attempted) -> Option<RetryReason> {
    match (command.kind, command.effect) {
        (OperationKind::Read, _) => Some(RetryReason::Read),
        (OperationKind::RetryableWrite, _) => Some(RetryReason::Write),
        (OperationKind::CommitOrAbort, _) if command.aborts => Some(RetryReason::Abort),
        (OperationKind::CommitOrAbort, _) => Some(RetryReason::Commit),
        (OperationKind::Write, Effect::Idempotent) => Some(RetryReason::Cleanup),
        // A getMore moves its cursor, a statement is part of what its transaction will commit.
        (OperationKind::Write | OperationKind::GetMore { .. }, _)
        | (OperationKind::InTransaction | OperationKind::Unacknowledged, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind, effect and whether it is an abort, in the order of the columns below.
    const COLUMNS: [(OperationKind, Effect, bool); 10] = [
        (OperationKind::Read, Effect::Read, false),
        (OperationKind::RetryableWrite, Effect::Write, false),
        (OperationKind::Write, Effect::Write, false),
        (OperationKind::Write, Effect::Other, false),
        (OperationKind::Write, Effect::Idempotent, false),
        (OperationKind::GetMore { change_stream: true }, Effect::Other, false),
        (OperationKind::InTransaction, Effect::Read, false),
        (OperationKind::CommitOrAbort, Effect::Idempotent, false),
        (OperationKind::CommitOrAbort, Effect::Idempotent, true),
        (OperationKind::Unacknowledged, Effect::Write, false),
    ];

    fn row(failure: Failure, policy: Retry, resent: bool) -> String {
        let letters = COLUMNS.map(|(kind, effect, aborts)| {
            match retry(failure, Attempted { kind, effect, aborts, resent }, policy) {
                None => '-',
                Some(RetryReason::NotSent) => 'n',
                Some(RetryReason::Read) => 'r',
                Some(RetryReason::Write) => 'w',
                Some(RetryReason::Commit) => 'c',
                Some(RetryReason::Abort) => 'a',
                Some(RetryReason::Cleanup) => 'k',
            }
        });
        letters.into_iter().collect()
    }

    #[test]
    fn every_cell() {
        let refused = Failure::StateChange { refused_at_start: true };
        let interrupted = Failure::StateChange { refused_at_start: false };
        for resent in [false, true] {
            for policy in [Retry::Driver, Retry::Proxy] {
                assert_eq!(row(Failure::NotWritten, policy, resent), "nnnnnnnnnn");
            }
        }
        for (failure, driver, proxy) in [
            (Failure::NoReply, "----------", "rw--k--ca-"),
            (interrupted, "----------", "rw--k--ca-"),
            (refused, "---------w", "rwwwk--caw"),
        ] {
            assert_eq!(row(failure, Retry::Driver, false), driver, "{failure:?}");
            assert_eq!(row(failure, Retry::Proxy, false), proxy, "{failure:?}");
            assert_eq!(row(failure, Retry::Proxy, true), "----------", "once");
        }
    }
}
