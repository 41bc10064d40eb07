//! What another process of ours knows that this one does not, where one takes over from the other: while both live, a driver may
//! go on with a cursor or a transaction over a socket to either.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Cluster;
use super::pool::lock;
use crate::auth::UserId;
use crate::command::{Command, Handling, TransactionId};
use crate::routing::pins::{MovedCursor, MovedTransaction, Room};
use crate::wire::Frame;

/// The other process answers within a millisecond, or hangs: then the command goes on with what is known here.
const PATIENCE: Duration = Duration::from_secs(1);

/// Cursors that are asked for at once. Drivers end one at a time.
const MAX_LEARNT: usize = 100;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The cursor of that number.
    Cursor(i64),
    /// A transaction.
    Transaction {
        /// The UUID of its session.
        session: [u8; 16],
        /// Its number in that.
        number: i64,
    },
}

impl Question {
    fn transaction(session: [u8; 16], number: i64) -> TransactionId {
        TransactionId { session: session.into(), number }
    }
}

/// What the other process knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Nothing.
    Nothing,
    /// Of a cursor.
    Cursor(MovedCursor),
    /// Of a transaction, which is not its own any more.
    Transaction(MovedTransaction),
}

/// A question on its way.
#[derive(Debug)]
pub struct Asking {
    /// Name of the cluster.
    pub cluster: String,
    /// What is asked for.
    pub question: Question,
    /// Dropped when the answer was [heard](Cluster::heard), or when there is none.
    pub answered: oneshot::Sender<()>,
}

/// The other process, while there is one.
#[derive(Debug, Default)]
pub struct Elsewhere {
    there: AtomicBool,
    asks: Mutex<Option<mpsc::Sender<Asking>>>,
}

impl Elsewhere {
    /// There is another process from now on, or none any more.
    pub fn set(&self, asks: Option<mpsc::Sender<Asking>>) {
        self.there.store(asks.is_some(), Ordering::Release);
        *lock(&self.asks) = asks;
    }
}

impl Cluster {
    /// What is to be asked for before a command can be routed: it goes on with something that is not known here. `None` almost
    /// always, and at the cost of one atomic.
    pub fn unknown_here(&self, command: &Command, frame: &Frame) -> Option<Question> {
        if !self.elsewhere.there.load(Ordering::Acquire) || command.session.user != UserId::SERVICE {
            return None;
        }
        let pins = lock(&self.pins);
        if command.spec.handling == Handling::GetMore
            && let Some(id) = command.cursor_id(frame)
            && !pins.knows_cursor(id)
        {
            return Some(Question::Cursor(id));
        }
        let id = command.session.transaction().filter(|_| !command.session.starts_transaction)?;
        (!pins.knows_transaction(id)).then_some(Question::Transaction { session: id.session.id, number: id.number })
    }

    /// Learns of cursors that somebody wants to end and that are not known here.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn learn_of_cursors(&self, ids: &[i64], user: UserId) {
        if !self.elsewhere.there.load(Ordering::Acquire) || user != UserId::SERVICE {
            return;
        }
        let unknown: Vec<i64> = {
            let pins = lock(&self.pins);
            ids.iter().copied().filter(|id| !pins.knows_cursor(*id)).take(MAX_LEARNT).collect()
        };
        join_all(unknown.into_iter().map(|id| self.ask_elsewhere(Question::Cursor(id)))).await;
    }

    /// Asks the other process, and waits until what it tells is remembered.
    ///
    /// # Cancel safety
    /// Safe: what it tells is remembered whether or not somebody waits.
    pub async fn ask_elsewhere(&self, question: Question) {
        let Some(asks) = lock(&self.elsewhere.asks).clone() else { return };
        let (answered, heard) = oneshot::channel();
        let asking = Asking { cluster: self.config().name.clone(), question, answered };
        let sent = asks.try_send(asking).is_ok();
        if !sent || tokio::time::timeout(PATIENCE, heard).await.is_err() {
            tracing::warn!(?question, "the other process does not answer");
        }
    }

    /// Answers the other process.
    pub fn tell(&self, question: Question, now: Instant) -> Told {
        let mut pins = lock(&self.pins);
        match question {
            Question::Cursor(id) => pins.tell_cursor(id).map_or(Told::Nothing, Told::Cursor),
            Question::Transaction { session, number } => pins
                .hand_over_transaction(Question::transaction(session, number), now)
                .map_or(Told::Nothing, Told::Transaction),
        }
    }

    /// Remembers what the other process has told.
    pub fn heard(&self, question: Question, told: Told) {
        let now = Instant::now();
        let remembered = match (question, told) {
            (_, Told::Cursor(moved)) => {
                let application = self.metrics.applications.unnamed();
                lock(&self.pins).hear_of_cursor(moved, application, now)
            }
            (Question::Transaction { session, number }, Told::Transaction(moved)) => {
                let id = Question::transaction(session, number);
                let room = self.server(&moved.server).map(|server| server.pool.transaction_begun(UserId::SERVICE));
                let mut pins = lock(&self.pins);
                let taken = pins.take_over_transaction(id, moved, now);
                if let Some(room) = room {
                    pins.keep_room(id, || Room::new(room));
                }
                taken
            }
            (_, Told::Nothing | Told::Transaction(_)) => Ok(()),
        };
        if let Err(error) = remembered {
            tracing::warn!(?question, %error, "what the other process has told is not remembered");
        }
    }
}
