//! Log lines about pools, connections and server selection, with the messages and keys of the drivers' logging
//! specification, so that what reads the logs of drivers reads ours.
//!
//! What happens once per command is TRACE, all else DEBUG. While a level is off, a line costs a look at a number.

use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use super::handshake::ConnectError;
use super::pool::{CheckOutError, PoolParts};
use crate::config::Address;
use crate::telemetry::labels::ConnectionClosed;
use crate::telemetry::logs::{CONNECTION, SERVER_SELECTION};

/// A time as the specification has it, to the microsecond.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1_000.0
}

pub(super) fn pool_created(parts: &PoolParts) {
    let config = &parts.settings.config;
    tracing::debug!(
        target: CONNECTION, serverHost = %parts.address.host(), serverPort = parts.address.port(),
        maxIdleTimeMS = milliseconds(config.max_idle_time), minPoolSize = config.min_pool_size,
        maxPoolSize = config.max_pool_size, maxConnecting = config.max_connecting,
        "Connection pool created"
    );
}

pub(super) fn pool_ready(address: &Address) {
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(), "Connection pool ready"
    );
}

pub(super) fn pool_cleared(address: &Address) {
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(), "Connection pool cleared"
    );
}

pub(super) fn pool_closed(address: &Address) {
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(), "Connection pool closed"
    );
}

/// A connection gets its number once it is ready.
pub(super) fn connection_created(address: &Address) {
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(), "Connection created"
    );
}

pub(super) fn connection_ready(address: &Address, connection: &Connection, took: Duration) {
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(),
        driverConnectionId = connection.id, serverConnectionId = connection.greeting.connection_id,
        durationMS = milliseconds(took), "Connection ready"
    );
}

/// A connection that never became ready.
pub(super) fn connection_failed(address: &Address, error: &ConnectError) {
    let reason = reason_of(ConnectionClosed::Error);
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(), reason, %error,
        "Connection closed"
    );
}

pub(super) fn connection_closed(address: &Address, connection: &Connection, reason: ConnectionClosed) {
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(),
        driverConnectionId = connection.id, serverConnectionId = connection.greeting.connection_id,
        reason = reason_of(reason), "Connection closed"
    );
}

/// As [`connection_closed`], for one that belongs to a client.
pub(super) fn own_connection_closed(address: &Address, connection: &Connection, reason: &str) {
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(),
        driverConnectionId = connection.id, serverConnectionId = connection.greeting.connection_id, reason,
        "Connection closed"
    );
}

pub(super) fn check_out_started(address: &Address) {
    tracing::trace!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(), "Connection checkout started"
    );
}

pub(super) fn check_out_failed(address: &Address, error: &CheckOutError, since: Instant) {
    let reason = match error {
        CheckOutError::Timeout => "Wait queue timeout elapsed without a connection becoming available",
        CheckOutError::Shed => "Others that came later go first, as the queue stands",
        CheckOutError::Cleared => "Connection pool was cleared",
        CheckOutError::Closed => "Connection pool was closed",
    };
    tracing::debug!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(), reason,
        durationMS = milliseconds(since.elapsed()), "Connection checkout failed"
    );
}

pub(super) fn checked_out(address: &Address, connection: &Connection) {
    tracing::trace!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(),
        driverConnectionId = connection.id, serverConnectionId = connection.greeting.connection_id,
        "Connection checked out"
    );
}

pub(super) fn checked_in(address: &Address, connection: &Connection) {
    tracing::trace!(
        target: CONNECTION, serverHost = %address.host(), serverPort = address.port(),
        driverConnectionId = connection.id, serverConnectionId = connection.greeting.connection_id,
        "Connection checked in"
    );
}

pub(super) fn selection_succeeded(address: &Address) {
    tracing::trace!(
        target: SERVER_SELECTION, serverHost = %address.host(), serverPort = address.port(),
        "Server selection succeeded"
    );
}

pub(super) const fn reason_of(closed: ConnectionClosed) -> &'static str {
    match closed {
        ConnectionClosed::Stale => "Connection became stale because the pool was cleared",
        ConnectionClosed::Idle => {
            "Connection has been available but unused for longer than the configured max idle time"
        }
        ConnectionClosed::Error => "An error occurred while using the connection",
        ConnectionClosed::PoolClosed => "Connection pool was closed",
        ConnectionClosed::Lifetime => "Connection has been open for longer than the configured max lifetime",
        ConnectionClosed::Turnover => "Connection gave its place to one of another user",
        ConnectionClosed::Shrunk => "The maximum size of the connection pool was lowered",
        ConnectionClosed::Ordered => "An operator had the connection closed",
        ConnectionClosed::Revoked => "The user of the connection has to log in again",
    }
}
