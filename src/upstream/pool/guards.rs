//! What somebody has of a pool, and gives back by dropping it: a connection, and the place that is kept for an open transaction.

use std::ops::{Deref, DerefMut};
use std::task::Waker;

use tokio::time::Instant;

use super::Pool;
use crate::admission::Claim;
use crate::auth::UserId;
use crate::telemetry::labels::ConnectionClosed;
use crate::upstream::connection::Connection;
use crate::upstream::holders::Owned as _;
use crate::upstream::lines;
use crate::upstream::pool_state::Held;

/// A transaction that is open on the server of a pool: one of its connections is kept for such ones, as far as there are
/// several. Dropping it says that the transaction has ended.
pub struct OpenTransaction(pub(super) Pool, pub(super) UserId);

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        let woken = self.0.0.state().transaction_ended(self.1, Instant::now());
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A connection that is checked out. Dropping it checks it in between two messages, and closes it in the middle of one.
pub struct PooledConnection {
    connection: Option<Box<Connection>>,
    pool: Pool,
}

impl PooledConnection {
    pub(in crate::upstream) fn new(
        mut connection: Box<Connection>,
        claim: Claim,
        since: Option<Instant>,
        pool: &Pool,
    ) -> Self {
        connection.taken = Some((claim, since));
        let usage = if connection.owner.is_some() { &pool.0.observed.usage } else { &pool.0.usage };
        usage.began();
        Self { connection: Some(connection), pool: pool.clone() }
    }

    /// Gives the connection up.
    pub fn discard(mut self, reason: ConnectionClosed) {
        if let Some(connection) = self.connection.take() {
            self.give_up(connection, reason, Instant::now());
        }
    }

    /// True for one that belongs to the client whose command it carries.
    pub fn is_own(&self) -> bool {
        self.owner.is_some()
    }

    fn give_up(&self, mut connection: Box<Connection>, reason: ConnectionClosed, now: Instant) {
        if connection.owner.take().is_some() {
            return self.pool.give_own_up(connection, reason, now);
        }
        self.pool.0.usage.ended(connection.in_use().end(now));
        let held = held(&mut connection, now);
        self.pool.0.parts.server_metrics.closed(reason, 1);
        connection.closed_for = Some(reason);
        let woken = self.pool.0.state().discard(connection, held, now);
        woken.into_iter().for_each(Waker::wake);
        self.pool.0.work.notify_one();
    }
}

/// What a connection that comes back was taken for.
fn held(connection: &mut Connection, now: Instant) -> Held {
    let (claim, since) = connection.taken.take().expect("it was told when the guard was made");
    Held { claim, time: since.map(|since| now.duration_since(since)) }
}

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_deref().expect("taken only by what consumes the guard")
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_deref_mut().expect("taken only by what consumes the guard")
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        lines::checked_in(&self.pool.0.parts.address, &connection);
        let now = Instant::now();
        if !connection.is_between_messages() {
            return self.give_up(connection, ConnectionClosed::Error, now);
        }
        if let Some(owner) = connection.owner.take() {
            return self.pool.take_back(connection, &owner, now);
        }
        if now >= connection.expires && !self.pool.replaces_first() {
            return self.give_up(connection, ConnectionClosed::Lifetime, now);
        }
        if connection.in_use().is_to_be_replaced(connection.user()) && self.pool.lets_go(connection.user()) {
            return self.give_up(connection, ConnectionClosed::Lifetime, now);
        }
        if connection.is_revoked() {
            return self.give_up(connection, ConnectionClosed::Revoked, now);
        }
        if self.pool.owes_place() {
            return self.give_up(connection, ConnectionClosed::Idle, now);
        }
        self.pool.0.usage.ended(connection.in_use().end(now));
        connection.clear_reply();
        connection.last_used = now;
        let held = held(&mut connection, now);
        self.pool
            .give_back(connection, |state, connection, generation| state.check_in(connection, generation, held, now));
    }
}

impl std::fmt::Debug for PooledConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PooledConnection").field(&self.connection).finish()
    }
}
