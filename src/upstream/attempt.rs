//! What an attempt to connect tells of its server, whomever the connection is for: the breaker, the pace of further attempts, the
//! topology, metrics and log hear of it.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use super::handshake::ConnectError;
use super::lines;
use super::own::OwnConnections;
use super::pool::{Pool, Shared, lock};
use crate::auth::UserId;
use crate::breaker::Outcome;
use crate::config::limits::LIFETIME_JITTER_PERCENT;
use crate::telemetry::EventKind;
use crate::telemetry::labels::{Label as _, ServerEvent};

/// A user that a server has not taken is not tried again there before this: a secondary may not know yet what has changed.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// As the breaker counts it.
pub(super) fn outcome(attempt: &Result<Connection, ConnectError>) -> Outcome {
    match attempt {
        // The server works: it is the user that it does not take.
        Err(error) if error.refused_user().is_some() => Outcome::Success,
        Ok(_) => Outcome::Success,
        Err(error) => Outcome::Failure(error.failure()),
    }
}

/// True unless the last attempt failed a short while ago, or several did.
pub(super) fn may_dial(shared: &Shared, now: Instant) -> bool {
    now >= lock(&shared.pace).not_before && shared.parts.health.all_closed()
}

/// There is a connection; returns it with what its pool gives it. `owner`: whose own it is.
pub(super) fn succeeded(
    pool: &Pool,
    connection: Connection,
    generation: u64,
    took: Duration,
    owner: Option<Weak<OwnConnections>>,
) -> Box<Connection> {
    let shared = &pool.0;
    (shared.parts.greeted)(&shared.parts.address, &connection.greeting);
    shared.parts.metrics.upstream_connect_seconds.observe(took.as_secs_f64());
    let mut connection = Box::new(connection);
    shared.register(&mut connection, owner);
    connection.generation = generation;
    let settings = shared.settings();
    connection.socket_timeout = settings.config.socket_timeout;
    let lifetime = settings.config.max_lifetime;
    let jitter = lifetime * LIFETIME_JITTER_PERCENT / 100;
    connection.expires = Instant::now() + lifetime - jitter.mul_f64(fastrand::f64());
    lines::connection_ready(&shared.parts.address, &connection, took);
    let after_outage = shared.is_after_outage();
    let mut pace = lock(&shared.pace);
    pace.backoff.reset();
    pace.last_error = None;
    if !after_outage {
        pace.not_before = Instant::now();
    }
    connection
}

/// How a server has not taken a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserRefused {
    /// It has to log in with us anew.
    Revoked,
    /// The next attempt may find that the server knows it.
    ForNow,
}

/// `Some` when the server works and does not take that user.
pub(super) fn user_refused(pool: &Pool, user: UserId, error: &ConnectError) -> Option<UserRefused> {
    let identity = error.refused_user()?;
    let parts = &pool.0.parts;
    tracing::info!(server = %parts.address, %error, "a user is not taken");
    parts.server_metrics.happened(EventKind::User, &format!("a user is not taken: {error}"));
    pool.hold_off(user, Instant::now() + REFUSED_PAUSE);
    if !(parts.refused)(&parts.address, identity) {
        return Some(UserRefused::ForNow);
    }
    pool.revoke(user);
    Some(UserRefused::Revoked)
}

/// There is none, and the next attempt has to wait.
pub(super) fn failed(pool: &Pool, error: &ConnectError) {
    let shared = &pool.0;
    let (first, wait) = {
        let mut pace = lock(&shared.pace);
        let wait = pace.backoff.next(fastrand::f64());
        pace.not_before = Instant::now() + wait;
        let text = error.to_string();
        let first = pace.last_error.as_ref() != Some(&text);
        pace.last_error = Some(text);
        (first, wait)
    };
    shared.parts.server_metrics.events[ServerEvent::Error].inc();
    // The same failure again and again is worth one line, not one per attempt.
    if first {
        let event = ServerEvent::Error.as_str();
        tracing::warn!(server = %shared.parts.address, event, %error, retry_after = ?wait, "cannot connect");
        shared.parts.server_metrics.happened(EventKind::Error, &format!("cannot connect: {error}"));
    } else {
        tracing::debug!(server = %shared.parts.address, %error, retry_after = ?wait, "cannot connect");
    }
    if !shared.parts.health.all_closed() && !pool.has_connections() {
        pool.evict();
    }
    shared.work.notify_one();
}
