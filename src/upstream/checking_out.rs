//! Checking a connection out: one that is free now, or a place in the wait queue until one is handed over or time is over.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::lines;
use super::pool::{CheckOutError, Pool, PooledConnection, unavailable};
use super::pool_state::{CheckOut, Waiting};
use super::shortage::Shortage;
use crate::admission::{Claim, Ticket};

/// Between two looks at the queue: who was there at the last one is woken once, to set a timer of its own. Almost all are
/// served before that, and need none.
pub(super) const PATROL_INTERVAL: Duration = Duration::from_millis(20);

/// A place in the wait queue of a pool, taken with the first poll. Dropping it leaves the queue, and passes on what was
/// handed over meanwhile.
pub struct CheckingOut<'a> {
    pool: &'a Pool,
    claim: Claim,
    since: Instant,
    deadline: Instant,
    /// `None` before the first poll and after the last one.
    place: Option<(Ticket, Shortage)>,
    /// It will be woken once if it waits for long.
    is_looked_after: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<'a> CheckingOut<'a> {
    pub(super) fn new(pool: &'a Pool, claim: Claim, since: Instant, deadline: Instant) -> Self {
        Self { pool, claim, since, deadline, place: None, is_looked_after: false, timer: None }
    }

    /// A look under one lock, so that no connection comes back unnoticed between it and the place in the queue. `None` with a
    /// place.
    fn join(&mut self, waker: &Waker) -> Option<Result<PooledConnection, CheckOutError>> {
        let shared = &self.pool.0;
        loop {
            let mut state = shared.state();
            match state.check_out(self.claim) {
                CheckOut::Now(connection) => {
                    drop(state);
                    if let Some(connection) = self.pool.vet(connection, self.claim, Instant::now()) {
                        return Some(Ok(connection));
                    }
                }
                CheckOut::Wait => {
                    let shortage = Shortage::of_claim(&state, self.claim, shared.parts.cluster_bound.is_exhausted());
                    let (ticket, late) = state.enqueue(self.claim, self.since, waker.clone());
                    // A full pool can do nothing for it, but has to look after who waits long.
                    let notify = state.begin_patrol() || !state.is_full();
                    let waits_long = self.deadline.saturating_duration_since(self.since) > 2 * PATROL_INTERVAL;
                    self.is_looked_after = waits_long && !state.patrol_has_ended();
                    drop(state);
                    late.into_iter().for_each(Waker::wake);
                    self.place = Some((ticket, shortage));
                    if notify {
                        shared.work.notify_one();
                    }
                    return None;
                }
                CheckOut::Unavailable(status) => return Some(Err(unavailable(status))),
            }
        }
    }

    /// What was handed over, unless it has died on the way: then the old place is taken again.
    fn take(&mut self, waker: &Waker) -> Option<Result<PooledConnection, CheckOutError>> {
        let (ticket, shortage) = self.place?;
        let shared = &self.pool.0;
        loop {
            let waiting = shared.state().poll(ticket, |place| place.clone_from(waker));
            let ended = match waiting {
                Waiting::Queued => return None,
                Waiting::Evicted(status) => Err(unavailable(status)),
                Waiting::Shed => {
                    self.pool.usage().waited(self.since.elapsed(), shortage);
                    Err(CheckOutError::Shed)
                }
                Waiting::Handed(connection) => {
                    let now = Instant::now();
                    match self.pool.vet(connection, self.claim, now) {
                        Some(connection) => {
                            self.pool.usage().waited(now.saturating_duration_since(self.since), shortage);
                            Ok(connection)
                        }
                        // Whose connection died on the way does not start over at the end of the queue.
                        None => match shared.state().rejoin(ticket, self.since, now, waker.clone()) {
                            Ok(woken) => {
                                woken.into_iter().for_each(Waker::wake);
                                shared.work.notify_one();
                                continue;
                            }
                            Err(status) => Err(unavailable(status)),
                        },
                    }
                }
            };
            self.place = None;
            return Some(ended);
        }
    }

    fn leave(&mut self) {
        let Some((ticket, _)) = self.place.take() else { return };
        let handed = self.pool.0.state().leave(ticket);
        if let Some(connection) = handed {
            drop(PooledConnection::new(connection, self.claim, None, self.pool));
        }
    }
}

impl Future for CheckingOut<'_> {
    type Output = Result<PooledConnection, CheckOutError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let wait = &mut *self;
        let first = wait.place.is_none();
        let ended = if first { wait.join(context.waker()) } else { wait.take(context.waker()) };
        if let Some(ended) = ended {
            if let Err(error) = &ended {
                lines::check_out_failed(&wait.pool.0.parts.address, error, wait.since);
            }
            return Poll::Ready(ended);
        }
        if first && wait.is_looked_after {
            return Poll::Pending;
        }
        let deadline = wait.deadline;
        let timer = wait.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        std::task::ready!(timer.as_mut().poll(context));
        if let Some((_, shortage)) = wait.place {
            wait.pool.usage().waited(wait.since.elapsed(), shortage);
        }
        wait.leave();
        lines::check_out_failed(&wait.pool.0.parts.address, &CheckOutError::Timeout, wait.since);
        Poll::Ready(Err(CheckOutError::Timeout))
    }
}

impl Drop for CheckingOut<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}
