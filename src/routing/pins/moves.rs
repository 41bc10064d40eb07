//! Pins that go from one process to another, where one takes over from the other: both know some, and a driver with sockets to
//! both sends over any of them.
//!
//! A cursor is known to both afterwards: whichever of them sees it end forgets it, and to the other it expires. What was told once is
//! not told again, so that nobody hears anew of a cursor that has ended with him. A transaction is known to one at a time, so that
//! no process takes it for abandoned while it goes on in the other.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{CursorLife, CursorPin, PinError, PinnedCursor, Pins};
use crate::auth::UserId;
use crate::command::TransactionId;
use crate::config::Address;
use crate::telemetry::Application;
use crate::wire::Timestamp;

/// A cursor's pin without what means something in one process only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedCursor {
    /// The server's number of it.
    pub id: i64,
    /// The server that made it.
    pub server: Address,
    /// See [`CursorPin`].
    pub awaits_data: bool,
    /// See [`CursorPin`].
    pub change_stream: bool,
    /// See [`CursorPin`].
    pub life: CursorLife,
    /// See [`CursorPin`].
    pub caught_up: Option<Timestamp>,
}

/// An open transaction's pin, likewise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedTransaction {
    /// Where it runs.
    pub server: Address,
    /// How long it has been open.
    pub open_for: Duration,
    /// Its server may have heard of a commit.
    pub commit_sent: bool,
}

impl Pins {
    /// True when a cursor is known here.
    pub fn knows_cursor(&self, id: i64) -> bool {
        self.cursors.contains_key(&id)
    }

    /// True when a transaction is known here, or one that came after it.
    pub fn knows_transaction(&self, id: TransactionId) -> bool {
        self.transactions.get(&id.session).is_some_and(|pin| pin.number >= id.number)
    }

    /// What is known of a cursor, for the other process. Nobody's but the service's own: users have other numbers there.
    pub fn tell_cursor(&mut self, id: i64) -> Option<MovedCursor> {
        let cursor = self.cursors.get_mut(&id).filter(|cursor| cursor.pin.user == UserId::SERVICE)?;
        cursor.told = true;
        Some(moved(id, cursor))
    }

    /// As [`Pins::tell_cursor`], of all cursors that it was not told of.
    pub fn tell_cursors(&mut self) -> Vec<MovedCursor> {
        let untold = |cursor: &PinnedCursor| cursor.pin.user == UserId::SERVICE && !cursor.told;
        let cursors = self.cursors.iter_mut().filter(|(_, cursor)| untold(cursor));
        cursors
            .map(|(id, cursor)| {
                cursor.told = true;
                moved(*id, cursor)
            })
            .collect()
    }

    /// Remembers a cursor of the other process.
    ///
    /// # Errors
    /// As [`Pins::pin_cursor`].
    pub fn hear_of_cursor(
        &mut self,
        moved: MovedCursor,
        application: Application,
        now: Instant,
    ) -> Result<(), PinError> {
        let MovedCursor { id, server, awaits_data, change_stream, life, caught_up } = moved;
        let (user, server) = (UserId::SERVICE, Arc::new(server));
        let pin = CursorPin { server, user, awaits_data, change_stream, life, application, caught_up };
        self.pin_cursor(id, pin, now)
    }

    /// Hands an open transaction over: it is not known here any more, and nobody here will end it.
    pub fn hand_over_transaction(&mut self, id: TransactionId, now: Instant) -> Option<MovedTransaction> {
        self.open_transaction(id)?;
        let pin = self.transactions.remove(&id.session)?;
        let (open_for, commit_sent) = (now.duration_since(pin.since), pin.statements.commit_was_sent());
        Some(MovedTransaction { server: (*pin.server).clone(), open_for, commit_sent })
    }

    /// Goes on with a transaction of the other process.
    ///
    /// # Errors
    /// As [`Pins::pin_transaction`].
    pub fn take_over_transaction(
        &mut self,
        id: TransactionId,
        moved: MovedTransaction,
        now: Instant,
    ) -> Result<(), PinError> {
        self.pin_transaction(id, Arc::new(moved.server), now)?;
        if let Some(pin) = self.open_transaction(id) {
            pin.since = now.checked_sub(moved.open_for).unwrap_or(now);
        }
        if moved.commit_sent {
            self.commit_is_sent(id);
        }
        Ok(())
    }
}

fn moved(id: i64, cursor: &PinnedCursor) -> MovedCursor {
    let CursorPin { server, awaits_data, change_stream, life, caught_up, .. } = &cursor.pin;
    let (awaits_data, change_stream) = (*awaits_data, *change_stream);
    MovedCursor { id, server: (**server).clone(), awaits_data, change_stream, life: *life, caught_up: *caught_up }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limits::ORPHANED_TRANSACTION_GRACE;
    use crate::telemetry::Applications;

    fn server() -> Address {
        Address::tcp("127.0.0.1", 1)
    }

    #[test]
    fn a_transaction_is_known_to_one_process_at_a_time() {
        let (mut old, mut new, now) = (Pins::default(), Pins::default(), Instant::now());
        let id = TransactionId { session: [1; 16].into(), number: 4 };
        old.pin_transaction(id, Arc::new(server()), now).unwrap();
        let joined = old.join(id, None, now).unwrap();
        let later = now + Duration::from_secs(3);
        let moved = old.hand_over_transaction(id, later).unwrap();
        assert_eq!(moved, MovedTransaction { server: server(), open_for: Duration::from_secs(3), commit_sent: false });
        // Its socket leaves: nothing is left to be aborted.
        old.leave(id, joined, later);
        assert!(old.take_orphans(9, later + 2 * ORPHANED_TRANSACTION_GRACE).is_empty());
        assert!(!old.knows_transaction(id) && old.hand_over_transaction(id, later).is_none());
        new.take_over_transaction(id, moved, later).unwrap();
        assert_eq!(new.transaction(id, later), Some(Arc::new(server())));
        assert_eq!(new.end_transaction(id, later).unwrap().open_for, Duration::from_secs(3));
        assert!(new.hand_over_transaction(id, later).is_none(), "it has ended");
    }

    #[test]
    fn cursors_of_users_stay() {
        let (mut old, mut new, now) = (Pins::default(), Pins::default(), Instant::now());
        let application = Applications::default().unnamed();
        let pin = |user| CursorPin {
            server: Arc::new(server()),
            user,
            awaits_data: true,
            change_stream: true,
            life: CursorLife::Session,
            application: application.clone(),
            caught_up: None,
        };
        old.pin_cursor(1, pin(UserId::SERVICE), now).unwrap();
        old.pin_cursor(2, pin(UserId::numbered(7)), now).unwrap();
        let told = old.tell_cursors();
        assert_eq!((told.len(), old.tell_cursor(2)), (1, None));
        new.hear_of_cursor(told[0].clone(), application.clone(), now).unwrap();
        assert_eq!(new.cursor(1, now), Some(&pin(UserId::SERVICE)));
    }

    #[test]
    fn a_cursor_that_has_ended_there_is_not_told_again() {
        let (mut old, mut new, now) = (Pins::default(), Pins::default(), Instant::now());
        let application = Applications::default().unnamed();
        let pin = CursorPin {
            server: Arc::new(server()),
            user: UserId::SERVICE,
            awaits_data: false,
            change_stream: false,
            life: CursorLife::Session,
            application: application.clone(),
            caught_up: None,
        };
        for id in [1, 2] {
            old.pin_cursor(id, pin.clone(), now).unwrap();
        }
        // Its client goes on with it over a socket to the new process, to its end.
        new.hear_of_cursor(old.tell_cursor(1).unwrap(), application.clone(), now).unwrap();
        new.unpin_cursor(1, &server(), now).unwrap();
        let told = old.tell_cursors();
        assert_eq!(told.iter().map(|cursor| cursor.id).collect::<Vec<_>>(), [2]);
        assert!(old.knows_cursor(1), "it may be used here as well");
    }
}
