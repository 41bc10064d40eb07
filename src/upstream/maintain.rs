//! One task per pool: establishes what is wanted, closes what was discarded, retires what is idle or old, pings, probes.
//!
//! Establishing and closing run in tasks of their own, so that a server that hangs delays neither the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::rawdoc;
use tokio::time::Instant;

use super::connection::Connection;
use super::handshake::ConnectError;
use super::pool::{Pool, PooledConnection, Shared, lock};
use super::pool_state::PoolStatus;
use crate::breaker::state::ProbeId;
use crate::breaker::{Failure, Outcome};
use crate::telemetry::labels::ConnectionClosed;
use crate::wire::encode;

/// Idle and lifetime limits are looked at this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the pool is closed and its last connection is gone, or the program ends.
pub async fn run(pool: Pool) {
    let shared = pool.0.clone();
    let mut next_ping = Instant::now() + shared.parts.health_check;
    let mut next_sweep = Instant::now();
    loop {
        let now = Instant::now();
        if now >= next_sweep {
            sweep(&pool, now);
            next_sweep = now + SWEEP_INTERVAL;
        }
        if now >= next_ping {
            next_ping = now + shared.parts.health_check;
            if shared.used.swap(false, Ordering::Relaxed) {
                ping_available(&pool, None);
            }
        }
        if let Some(probe) = shared.parts.health.start_probe() {
            start_probe(&pool, probe);
        }
        if shared.recheck.swap(false, Ordering::Relaxed)
            && let Some(generation) = start_extra(&shared)
        {
            establish(&pool, generation, Purpose::Recheck);
        }
        fill(&pool, now);
        close_discarded(&shared);
        {
            let state = shared.state();
            if state.status() == PoolStatus::Closed && state.counts().total() == 0 {
                return;
            }
        }
        // Nothing is lost when an arm loses: `work` keeps a permit, and all state is looked at anew.
        tokio::select! {
            () = shared.work.notified() => {}
            () = tokio::time::sleep_until(next_wake(&shared, next_sweep.min(next_ping))) => {}
            () = shared.parts.cluster_bound.starved.notified() => make_room(&shared),
            () = shared.parts.tasks.cancelled() => return,
        }
    }
}

fn next_wake(shared: &Shared, due: Instant) -> Instant {
    let due = shared.parts.health.next_probe().map_or(due, |probe| due.min(probe));
    let not_before = lock(&shared.pace).not_before;
    if shared.state().wants_connection() && not_before > Instant::now() { due.min(not_before) } else { due }
}

/// Starts as many attempts to connect as are wanted and allowed.
fn fill(pool: &Pool, now: Instant) {
    let shared = &pool.0;
    if now < lock(&shared.pace).not_before || !shared.parts.health.passes() {
        return;
    }
    while shared.state().wants_connection() {
        if !shared.parts.cluster_bound.acquire() {
            if !shared.state().queue().is_empty() {
                shared.parts.cluster_bound.starved.notify_waiters();
            }
            return;
        }
        let started = shared.state().start_connecting();
        match started {
            Some(generation) => establish(pool, generation, Purpose::Demand),
            None => return shared.parts.cluster_bound.release(),
        }
    }
}

/// What a connection is established for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Somebody waits, or fewer than the minimum are open.
    Demand,
    /// To take the place of one whose lifetime is over.
    Replacement,
    /// To find out whether the server is back, for the breaker.
    Probe(ProbeId),
    /// To find out what the server is, for the topology.
    Recheck,
}

/// A place in the pool for a connection to be. Dropping it gives the place back.
struct Place {
    pool: Pool,
    generation: u64,
    taken: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.taken {
            self.pool.0.state().connect_failed();
            self.pool.0.parts.cluster_bound.release();
            self.pool.0.work.notify_one();
        }
    }
}

fn establish(pool: &Pool, generation: u64, purpose: Purpose) {
    let mut place = Place { pool: pool.clone(), generation, taken: false };
    pool.0.parts.tasks.spawn("establish", async move {
        let pool = place.pool.clone();
        let parts = &pool.0.parts;
        let started = Instant::now();
        let limit = parts.config.connect_timeout;
        let attempt = tokio::select! {
            attempt = tokio::time::timeout(limit, parts.dialer.connect(&parts.address)) => {
                attempt.unwrap_or(Err(ConnectError::Timeout(limit)))
            }
            // Ends the program without waiting for a server that does not answer.
            () = parts.tasks.cancelled() => return,
        };
        let outcome = match &attempt {
            Ok(_) => Outcome::Success,
            Err(error) => Outcome::Failure(error.failure()),
        };
        match purpose {
            Purpose::Probe(probe) => parts.health.finish_probe(probe, Some(outcome)),
            Purpose::Demand | Purpose::Replacement => parts.health.record(outcome),
            // A server that is known to be down has failed once, however often somebody looks.
            Purpose::Recheck => {}
        }
        match attempt {
            Ok(connection) => {
                (parts.greeted)(&parts.address, &connection.greeting);
                parts.metrics.upstream_connect_seconds.observe(started.elapsed().as_secs_f64());
                connected(&mut place, connection, purpose);
            }
            Err(error) => {
                drop(place);
                if purpose != Purpose::Recheck {
                    connect_failed(&pool, &error);
                }
            }
        }
    });
}

fn connected(place: &mut Place, connection: Connection, purpose: Purpose) {
    let (pool, generation) = (place.pool.clone(), place.generation);
    let shared = &pool.0;
    let mut connection = Box::new(connection);
    shared.register(&mut connection);
    connection.generation = generation;
    let lifetime = shared.parts.config.max_lifetime;
    // Up to a tenth earlier, so that connections opened together are not replaced together.
    connection.expires = Instant::now() + lifetime - lifetime.mul_f64(rand::random::<f64>() / 10.0);
    tracing::debug!(server = %shared.parts.address, connection = connection.id, greeting = ?connection.greeting, "connection ready");
    {
        let mut pace = lock(&shared.pace);
        pace.backoff.reset();
        pace.last_error = None;
    }
    place.taken = true;
    let waker = shared.state().connected(connection, generation);
    waker.into_iter().for_each(std::task::Waker::wake);
    if purpose == Purpose::Replacement {
        retire(shared, 0, 1, ConnectionClosed::Lifetime, |connection, now| now >= connection.expires);
    }
    shared.work.notify_one();
}

fn connect_failed(pool: &Pool, error: &ConnectError) {
    let shared = &pool.0;
    let (first, wait) = {
        let mut pace = lock(&shared.pace);
        let wait = pace.backoff.next(rand::random());
        pace.not_before = Instant::now() + wait;
        let text = error.to_string();
        let first = pace.last_error.as_ref() != Some(&text);
        pace.last_error = Some(text);
        (first, wait)
    };
    // The same failure again and again is worth one line, not one per attempt.
    if first {
        tracing::warn!(server = %shared.parts.address, %error, retry_after = ?wait, "cannot connect");
    } else {
        tracing::debug!(server = %shared.parts.address, %error, retry_after = ?wait, "cannot connect");
    }
    if !shared.parts.health.passes() {
        pool.evict();
    }
    shared.work.notify_one();
}

/// Retires what is idle too long (above the minimum) or too old (replacement first, where there is room for both).
fn sweep(pool: &Pool, now: Instant) {
    let shared = &pool.0;
    let config = &shared.parts.config;
    retire(shared, config.min_pool_size, u32::MAX, ConnectionClosed::Idle, |connection, now| {
        now.duration_since(connection.last_used) >= config.max_idle_time
    });
    let expired = shared.state().count_available(|connection| now >= connection.expires);
    if expired == 0 {
        return;
    }
    match start_extra(shared) {
        Some(generation) => establish(pool, generation, Purpose::Replacement),
        None => retire(shared, 0, 1, ConnectionClosed::Lifetime, |connection, now| now >= connection.expires),
    }
}

fn retire(
    shared: &Shared,
    least: u32,
    most: u32,
    reason: ConnectionClosed,
    expired: impl Fn(&Connection, Instant) -> bool,
) {
    let now = Instant::now();
    let retired = shared.state().retire(least, most, |connection| expired(connection, now));
    shared.parts.server_metrics.connections_closed[reason].inc_by(u64::from(retired));
}

/// Closes one idle connection, as another pool of the cluster has waiters and may not open any.
fn make_room(shared: &Shared) {
    if shared.state().queue().is_empty() {
        retire(shared, 0, 1, ConnectionClosed::Idle, |_, _| true);
    }
}

fn close_discarded(shared: &Arc<Shared>) {
    for connection in shared.state().take_discarded() {
        let pool = shared.clone();
        shared.parts.tasks.spawn("close", async move {
            let id = connection.id;
            connection.close().await;
            pool.forget(id);
        });
    }
}

/// Finds out whether the server is back: over a connection that is there, else over a new one.
fn start_probe(pool: &Pool, probe: ProbeId) {
    if ping_available(pool, Some(probe)) {
        return;
    }
    match start_extra(&pool.0) {
        Some(generation) => establish(pool, generation, Purpose::Probe(probe)),
        None => pool.0.parts.health.finish_probe(probe, None),
    }
}

/// A place, where all bounds leave one, for a connection that no command asked for.
fn start_extra(shared: &Shared) -> Option<u64> {
    if !shared.parts.cluster_bound.acquire() {
        return None;
    }
    let started = shared.state().start_extra();
    if started.is_none() {
        shared.parts.cluster_bound.release();
    }
    started
}

/// Pings over an available connection; false when there is none.
fn ping_available(pool: &Pool, probe: Option<ProbeId>) -> bool {
    let Some(connection) = pool.0.state().borrow_available() else { return false };
    let mut connection = PooledConnection::new(connection, pool.clone());
    let pool = pool.clone();
    pool.0.parts.tasks.clone().spawn("ping", async move {
        let parts = &pool.0.parts;
        let ping = encode::op_msg(connection.next_request_id(), 0, &rawdoc! {"ping": 1, "$db": "admin"});
        let answer = tokio::time::timeout(parts.config.connect_timeout, connection.exchange(ping.bytes())).await;
        let outcome = match answer {
            Ok(Ok(_)) => Outcome::Success,
            Ok(Err(_)) | Err(_) => Outcome::Failure(Failure::Network),
        };
        match probe {
            Some(probe) => parts.health.finish_probe(probe, Some(outcome)),
            None => parts.health.record(outcome),
        }
        drop(connection);
        pool.0.work.notify_one();
    });
    true
}
