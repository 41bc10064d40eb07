//! One task per pool: establishes what is wanted, closes what was discarded, retires what is idle or old, pings, probes, and
//! tells who waits for long, which then sets a timer.
//!
//! Establishing and closing run in tasks of their own, so that a server that hangs delays neither the other.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use bson::rawdoc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::attempt::{self, may_dial};
use super::bound::Line;
use super::checking_out::PATROL_INTERVAL;
use super::connection::{Connection, ReceiveError};
use super::handshake::{ConnectError, greet};
use super::health::{Judgement, Probe};
use super::holders::Owned as _;
use super::lines;
use super::pool::{Pool, PooledConnection, Shared, State, lock};
use super::pool_state::PoolStatus;
use super::settings::PoolSettings;
use super::turnover::IDLE_GRACE;
use crate::auth::UserId;
use crate::breaker::{Failure, Outcome};
use crate::config::limits::{CLOSED_MID_COMMAND_GRACE, RECHECK_TIMEOUT, RECOVERY_SPREAD};
use crate::telemetry::labels::ConnectionClosed;
use crate::wire::document::find;
use crate::wire::op_msg::reply_document;
use crate::wire::{Timestamp, encode};

/// Idle and lifetime limits are looked at this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the pool is closed and its last connection is gone, or the program ends.
pub async fn run(pool: Pool) {
    let shared = pool.0.clone();
    let _ends = Ends(&pool);
    let bound = shared.parts.cluster_bound.clone();
    let mut line = Line::new(bound.clone());
    let mut next_ping = Instant::now() + shared.settings().health_check;
    let mut next_sweep = Instant::now();
    let mut no_probe_before = Instant::now();
    let mut probe_waits = false;
    let mut in_need = false;
    let mut next_patrol = None;
    loop {
        let mut starved = pin!(bound.starved());
        // Listens from here on, so that who asks for room while we are busy is heard.
        starved.as_mut().enable();
        let now = Instant::now();
        let swept = now >= next_sweep;
        if swept {
            sweep(&pool, now);
            next_sweep = now + SWEEP_INTERVAL;
        }
        if next_patrol.is_some_and(|due| now >= due) {
            let long_waiting = shared.state().patrol();
            long_waiting.into_iter().for_each(Waker::wake);
            next_patrol = None;
        }
        if next_patrol.is_none() && shared.state().is_patrolled() {
            next_patrol = Some(now + PATROL_INTERVAL);
        }
        if now >= next_ping {
            next_ping = now + shared.settings().health_check;
            if shared.used.swap(false, Ordering::Relaxed) {
                ping_available(&pool, None);
            }
        }
        if now >= no_probe_before {
            probe_waits = shared.parts.health.start_probe().is_some_and(|probe| !start_probe(&pool, probe));
            if probe_waits {
                // Without a place for it, it would be due again at once.
                no_probe_before = now + SWEEP_INTERVAL;
            }
        }
        if shared.recheck.swap(false, Ordering::Relaxed) {
            start_recheck(&pool);
        }
        let may_connect = may_dial(&shared, now);
        let given = {
            let mut state = shared.state();
            state.set_may_connect(may_connect, now);
            state.turn_over(now)
        };
        shared.parts.server_metrics.closed(ConnectionClosed::Turnover, given);
        if fill(&pool, now) || (probe_waits && shared.state().has_room()) {
            // Asked again when the need is new, and now and then: two pools in need would ask each other without end.
            let before = std::mem::replace(&mut in_need, shared.state().is_in_need());
            line.wait(swept || (in_need && !before), in_need);
        } else {
            in_need = false;
            line.leave();
        }
        close_discarded(&shared);
        {
            let state = shared.state();
            if state.status() == PoolStatus::Closed && state.counts().total() == 0 {
                drop(state);
                pool.look_after_own(now);
                return;
            }
        }
        let due = next_patrol.unwrap_or(next_sweep).min(next_sweep).min(next_ping);
        let due = if shared.state().awaits_turnover() { due.min(now + IDLE_GRACE) } else { due };
        // Nothing is lost when an arm loses: `work` keeps a permit, `line` its place, and all state is looked at anew.
        // Biased, as only a request for room would be forgotten: it comes first.
        tokio::select! {
            biased;
            () = starved => make_room(&shared),
            () = shared.parts.tasks.cancelled() => return,
            place = line.place() => {
                probe_waits = false;
                take_place(&pool, place);
            }
            // Something has changed: there may be a place for a probe now.
            () = shared.work.notified() => no_probe_before = Instant::now(),
            () = tokio::time::sleep_until(next_wake(&shared, due, no_probe_before)) => {}
        }
    }
}

/// Nobody looks after who waits any more: each has to see to its own time.
struct Ends<'a>(&'a Pool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.0.state().end_patrol();
        self.0.wake_waiting();
    }
}

fn next_wake(shared: &Shared, due: Instant, no_probe_before: Instant) -> Instant {
    let due = shared.parts.health.next_probe().map_or(due, |probe| due.min(probe.max(no_probe_before)));
    let not_before = lock(&shared.pace).not_before;
    if shared.state().wants_connection() && not_before > Instant::now() { due.min(not_before) } else { due }
}

/// Starts as many attempts to connect as are wanted and allowed. True when commands wait and only the bound of the
/// cluster is in the way.
fn fill(pool: &Pool, now: Instant) -> bool {
    let shared = &pool.0;
    shared.settle();
    while may_dial(shared, now) {
        // The pool's own bounds first: room elsewhere would not help a pool that is full.
        let Some((user, generation)) = shared.state().start_connecting() else { return false };
        let acquired = shared.parts.cluster_bound.acquire();
        {
            let mut state = shared.state();
            state.set_held_up(!acquired);
            if !acquired {
                state.connect_failed(user);
                return !state.queue().is_empty();
            }
        }
        establish(pool, user, generation, Purpose::Demand);
        if shared.is_after_outage() {
            lock(&shared.pace).not_before = now + recovery_gap(&shared.settings()).mul_f64(2.0 * fastrand::f64());
        }
    }
    false
}

/// Mean time between two attempts after an outage.
fn recovery_gap(settings: &PoolSettings) -> Duration {
    (RECOVERY_SPREAD / settings.config.max_pool_size.max(1)).min(settings.reconnect.initial)
}

/// Connects on a place of the cluster's bound that was waited for.
fn take_place(pool: &Pool, place: OwnedSemaphorePermit) {
    let shared = &pool.0;
    let demand = shared.state().start_connecting();
    if let Some((user, generation)) = demand {
        shared.parts.cluster_bound.take(place);
        shared.state().set_held_up(false);
        establish(pool, user, generation, Purpose::Demand);
    } else if let Some(probe) = shared.parts.health.start_probe() {
        let extra = shared.state().start_extra();
        match extra {
            Some(generation) => {
                shared.parts.cluster_bound.take(place);
                establish(pool, UserId::SERVICE, generation, Purpose::Probe(probe));
            }
            None => shared.parts.health.finish_probe(probe, None),
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
    /// To find out whether the server is back, for a breaker.
    Probe(Probe),
    /// To find out what the server is, for the topology.
    Recheck,
}

/// A place in the pool for a connection to be. Dropping it gives the place back, unless it was taken.
struct Place {
    pool: Pool,
    user: UserId,
    generation: u64,
    taken: bool,
}

impl Place {
    /// Keeps the place of an attempt that failed after there was a socket, until the server can have noticed the end.
    async fn outlast_socket(mut self) {
        self.taken = true;
        let shared = self.pool.0.clone();
        shared.state().connect_broken(self.user);
        tokio::select! {
            () = tokio::time::sleep(CLOSED_MID_COMMAND_GRACE) => {}
            () = shared.parts.tasks.cancelled() => {}
        }
        shared.freed();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.taken {
            self.pool.0.state().connect_failed(self.user);
            self.pool.0.parts.cluster_bound.release();
            self.pool.0.work.notify_one();
        }
    }
}

fn establish(pool: &Pool, user: UserId, generation: u64, purpose: Purpose) {
    let mut place = Place { pool: pool.clone(), user, generation, taken: false };
    pool.0.parts.tasks.spawn("establish", async move {
        let pool = place.pool.clone();
        let parts = &pool.0.parts;
        let started = Instant::now();
        let connect_timeout = pool.0.settings().config.connect_timeout;
        lines::connection_created(&parts.address);
        let limit = match purpose {
            // Others may come after it, and find the server at once when it is back.
            Purpose::Recheck => connect_timeout.min(RECHECK_TIMEOUT),
            Purpose::Demand | Purpose::Replacement | Purpose::Probe(_) => connect_timeout,
        };
        let connect = async {
            let mut connection = parts.dialer.connect(&parts.address, user).await?;
            if let Purpose::Probe(_) = purpose {
                ping(&mut connection).await?;
            }
            Ok(connection)
        };
        let attempt = tokio::select! {
            attempt = tokio::time::timeout(limit, connect) => attempt.unwrap_or(Err(ConnectError::Timeout(limit))),
            // Ends the program without waiting for a server that does not answer.
            () = parts.tasks.cancelled() => return,
        };
        let outcome = attempt::outcome(&attempt);
        match purpose {
            Purpose::Probe(probe) => parts.health.finish_probe(probe, Some(outcome)),
            Purpose::Demand | Purpose::Replacement => {
                parts.health.connected(outcome);
            }
            // A server that is known to be down has failed once, however often somebody looks.
            Purpose::Recheck => pool.0.rechecking.store(false, Ordering::Relaxed),
        }
        match attempt {
            Ok(connection) => connected(&mut place, connection, purpose, started.elapsed()),
            Err(error) => {
                lines::connection_failed(&parts.address, &error);
                if attempt::user_refused(&pool, user, &error).is_none() && purpose != Purpose::Recheck {
                    attempt::failed(&pool, &error);
                }
                if error.left_nothing() { drop(place) } else { place.outlast_socket().await }
            }
        }
    });
}

fn connected(place: &mut Place, connection: Connection, purpose: Purpose, took: Duration) {
    let (pool, generation) = (place.pool.clone(), place.generation);
    let shared = &pool.0;
    let connection = attempt::succeeded(&pool, connection, generation, took, None);
    shared.state().took_to_connect(took);
    place.taken = true;
    let now = Instant::now();
    pool.give_back(connection, |state, connection, generation| state.connected(connection, generation, now));
    if purpose == Purpose::Replacement {
        retire_over(shared);
    }
    shared.work.notify_one();
}

/// Retires what has died, what is idle too long (above the minimum) or too old (replacement first, where there is room
/// for both).
fn sweep(pool: &Pool, now: Instant) {
    let shared = &pool.0;
    let config = &shared.settings().config;
    // So that the minimum is warm indeed. A look at an idle socket only asks the runtime, not the kernel.
    retire(shared, 0, u32::MAX, ConnectionClosed::Error, |connection, _| !connection.is_alive());
    retire(shared, 0, u32::MAX, ConnectionClosed::Revoked, |connection, _| connection.is_revoked());
    pool.look_after_own(now);
    // Nobody asked for those of users to be kept warm.
    retire(shared, 0, u32::MAX, ConnectionClosed::Idle, |connection, now| {
        connection.user() != UserId::SERVICE && now.duration_since(connection.last_used) >= config.max_idle_time
    });
    retire(shared, config.min_pool_size, u32::MAX, ConnectionClosed::Idle, |connection, now| {
        now.duration_since(connection.last_used) >= config.max_idle_time
    });
    // Those of users are not kept for later: whoever needs one gets a new one.
    retire(shared, 0, u32::MAX, ConnectionClosed::Lifetime, |connection, now| {
        connection.user() != UserId::SERVICE && is_over(connection, now)
    });
    let (expired, pending) = {
        let state = shared.state();
        (state.count_available(|connection| is_over(connection, now)), state.counts().pending)
    };
    let kept = shared.kept.swap(false, Ordering::Relaxed);
    // One at a time, and none while it could not be replaced: an old connection is better than none.
    if expired == 0 && !kept || pending > 0 || !may_dial(shared, now) {
        return;
    }
    match start_extra(shared) {
        Some(generation) => establish(pool, UserId::SERVICE, generation, Purpose::Replacement),
        None => retire_over(shared),
    }
}

/// Closes one that is over: of those that are idle, else the next one that comes back and is to be replaced.
fn retire_over(shared: &Shared) {
    if retire(shared, 0, 1, ConnectionClosed::Lifetime, |connection, now| is_over(connection, now)) == 0 {
        shared.let_go.store(true, Ordering::Relaxed);
    }
}

/// True when it is too old, was logged in with a credential of before, or an operator wants another one in its place.
fn is_over(connection: &Connection, now: Instant) -> bool {
    now >= connection.expires || connection.in_use().is_to_be_replaced(connection.user())
}

fn retire(
    shared: &Shared,
    least: u32,
    most: u32,
    reason: ConnectionClosed,
    expired: impl Fn(&mut Connection, Instant) -> bool,
) -> u32 {
    let now = Instant::now();
    shared.retire(least, most, reason, |connection| expired(connection, now))
}

/// Closes one idle connection, as another pool of the cluster has waiters and may not open any.
fn make_room(shared: &Shared) {
    if shared.state().can_spare_idle() {
        retire(shared, 0, 1, ConnectionClosed::Idle, |_, _| true);
    }
}

fn close_discarded(shared: &Arc<Shared>) {
    // Not in the head of the loop, where the lock would be held as long as that goes on.
    let discarded = shared.state().take_discarded();
    for connection in discarded {
        let pool = shared.clone();
        let reason = connection.closed_for.unwrap_or_else(|| shared.reason_to_close(&connection));
        lines::connection_closed(&shared.parts.address, &connection, reason);
        shared.parts.tasks.spawn("close", async move {
            let id = connection.id;
            connection.close().await;
            pool.forget(id);
        });
    }
}

/// Finds out whether the server is back. Commands are judged over a connection that is there, where there is one;
/// establishing connections by establishing one, unless the pool has all that it may have and they work. False when no
/// bound leaves a place for that.
fn start_probe(pool: &Pool, probe: Probe) -> bool {
    if probe.judgement == Judgement::Commands && ping_available(pool, Some(probe)) {
        return true;
    }
    if let Some(generation) = start_extra(&pool.0) {
        establish(pool, UserId::SERVICE, generation, Purpose::Probe(probe));
        return true;
    }
    let proven = ping_available(pool, Some(probe));
    if !proven {
        pool.0.parts.health.finish_probe(probe, None);
    }
    proven
}

/// Asks the server what it is, for the topology: over a connection that is there, else over a new one. One at a time.
fn start_recheck(pool: &Pool) {
    let shared = &pool.0;
    if shared.rechecking.swap(true, Ordering::Relaxed) {
        return;
    }
    if let Some(connection) = pool.borrow_available() {
        return greet_available(pool, connection);
    }
    let started = start_place(shared, State::start_recheck);
    match started {
        Some(generation) => establish(pool, UserId::SERVICE, generation, Purpose::Recheck),
        // Every place is taken by a command that waits for the server. Monitoring has connections of its own.
        None => shared.rechecking.store(false, Ordering::Relaxed),
    }
}

fn greet_available(pool: &Pool, mut connection: PooledConnection) {
    let pool = pool.clone();
    pool.0.parts.tasks.clone().spawn("recheck", async move {
        let parts = &pool.0.parts;
        let greeting = tokio::select! {
            greeting = tokio::time::timeout(RECHECK_TIMEOUT, greet(&mut connection)) => greeting,
            // Ends the program without waiting for a server that does not answer.
            () = parts.tasks.cancelled() => return,
        };
        drop(connection);
        pool.0.rechecking.store(false, Ordering::Relaxed);
        if let Ok(Ok(greeting)) = greeting {
            (parts.greeted)(&parts.address, &greeting);
        }
        pool.0.work.notify_one();
    });
}

/// A place, where all bounds leave one, for a connection that no command asked for.
fn start_extra(shared: &Shared) -> Option<u64> {
    start_place(shared, State::start_extra)
}

fn start_place(shared: &Shared, start: fn(&mut State) -> Option<u64>) -> Option<u64> {
    if !shared.parts.cluster_bound.acquire() {
        return None;
    }
    let started = start(&mut shared.state());
    if started.is_none() {
        shared.parts.cluster_bound.release();
    }
    started
}

/// Pings over an available connection, for a probe after a hello; false when there is none.
fn ping_available(pool: &Pool, probe: Option<Probe>) -> bool {
    let Some(mut connection) = pool.borrow_available() else { return false };
    let pool = pool.clone();
    pool.0.parts.tasks.clone().spawn("ping", async move {
        let parts = &pool.0.parts;
        let look = async {
            if probe.is_some() {
                greet(&mut connection).await?;
            }
            ping(&mut connection).await?;
            Ok::<_, ConnectError>(())
        };
        let limit = pool.0.settings().config.connect_timeout;
        let answer = tokio::select! {
            answer = tokio::time::timeout(limit, look) => answer,
            // Ends the program without waiting for a server that does not answer.
            () = parts.tasks.cancelled() => return,
        };
        let outcome = match answer {
            Ok(Ok(())) => Outcome::Success,
            Ok(Err(_)) => Outcome::Failure(Failure::Network),
            Err(_) => Outcome::Failure(Failure::Timeout),
        };
        drop(connection);
        match probe {
            Some(probe) => parts.health.finish_probe(probe, Some(outcome)),
            None if parts.health.command_ended(outcome, Instant::now()) => pool.evict(),
            None => {}
        }
        pool.0.work.notify_one();
    });
    true
}

/// Asks for nothing but an answer; returns the time that it tells, as members of a replica set do.
pub(crate) async fn ping(connection: &mut Connection) -> Result<Option<Timestamp>, ReceiveError> {
    let ping = encode::op_msg(connection.next_request_id(), 0, &rawdoc! {"ping": 1, "$db": "admin"});
    let reply = reply_document(connection.exchange(ping.bytes()).await?);
    Ok(reply.and_then(|(_, document)| find(document, b"operationTime")?.as_timestamp()))
}

#[cfg(test)]
mod hours;
#[cfg(test)]
mod tests;
