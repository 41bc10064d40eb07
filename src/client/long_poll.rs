//! A `getMore` that waits for data, and how it takes turns: it asks its server when there may be something, for a slice of its
//! time or without waiting there, and to its client that looks like one wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::acquire::{Refusal, waited_in_vain};
use super::catch_up::CatchUp;
use super::cursors::OpenCursor;
use super::exchange::Exchange;
use super::session::Session;
use crate::command::Command;
use crate::reply::{Batch, errors};
use crate::upstream::long_polls::{CEILING, Woken};
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, Place, Server};
use crate::wire::Frame;
use crate::wire::document::find;
use crate::wire::op_msg::reply_document;

/// How long a server waits for data where the `getMore` does not say it.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);

/// With less left it is not worth to ask again.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// Servers from this wire version on, 6.0, take a wait of 0 as it is; for older ones it is none that was given.
const TAKES_NO_WAIT: i32 = 17;

/// One wait for data.
pub(super) struct LongPoll {
    cursor: i64,
    /// Where the cursor lives.
    server: Arc<Server>,
    /// When the client's own wait is over.
    until: Instant,
    batch_size: Option<i64>,
    catch_up: CatchUp,
    /// When it last asked, or began.
    asked: Instant,
    /// How long the server may wait on the question that it has now.
    wait: Duration,
    /// How long it has waited here for something to be written.
    waited: Duration,
}

/// All places were taken for too long.
struct NoPlace {
    waited: Duration,
}

impl LongPoll {
    /// Of a `getMore` whose cursor is known to wait for data; `None` where the server has left or is to judge the command.
    pub(super) fn new(command: &Command, frame: &Frame, cluster: &Cluster, now: Instant) -> Option<Box<Self>> {
        let cursor = command.cursor_id(frame)?;
        let document = command.document(frame);
        let wait = match (command.await_time(), find(document, b"maxTimeMS")) {
            (Some(wait), _) => wait,
            (None, None) => DEFAULT_WAIT,
            (None, Some(_)) => return None,
        };
        let (address, catch_up) = {
            let mut pins = lock(&cluster.pins);
            let pin = pins.cursor(cursor, now).filter(|pin| pin.awaits_data)?;
            (pin.server.clone(), CatchUp::new(pin.change_stream, pin.caught_up, now))
        };
        let server = cluster.server(&address)?;
        server.long_polls.begun(now);
        let batch_size = find(document, b"batchSize").and_then(|size| size.as_number());
        let (until, wait, waited) = (now + wait, Duration::ZERO, Duration::ZERO);
        Some(Box::new(Self { cursor, server, until, batch_size, catch_up, asked: now, wait, waited }))
    }

    /// A place to ask from at once, where there is something to ask for.
    pub(super) fn try_enter(&self, now: Instant) -> Option<Place> {
        if self.waits_here(now) { None } else { self.server.long_polls.try_enter() }
    }

    fn waits_here(&self, now: Instant) -> bool {
        now < self.look_by() && (now < self.catch_up.not_before() || !self.is_due(now))
    }

    /// How long the server may wait now; `None` where whoever waits for data waits here.
    fn slice(&self, now: Instant) -> Option<Duration> {
        self.server.long_polls.slice(now).filter(|_| !self.server.pool.is_cramped())
    }

    /// When it asks whatever it knows.
    fn look_by(&self) -> Instant {
        self.until.min(self.asked + CEILING)
    }

    fn is_due(&self, now: Instant) -> bool {
        let polls = &self.server.long_polls;
        self.slice(now).is_some() || self.catch_up.is_due(polls.newest())
    }

    /// How long the server may wait when it is asked now.
    pub(super) fn asks(&mut self, wire_version: i32, now: Instant) -> Duration {
        let polls = &self.server.long_polls;
        self.catch_up.asks(polls.newest());
        let none = if wire_version >= TAKES_NO_WAIT { Duration::ZERO } else { LEAST_WAIT };
        let remaining = self.until.saturating_duration_since(now);
        self.wait = self.slice(now).map_or(none, |slice| slice.min(remaining)).max(none);
        self.asked = now;
        self.wait
    }

    /// True when its reply brought nothing and there is time left: the client does not hear of it.
    pub(super) fn goes_on(&mut self, reply: &[u8], now: Instant) -> bool {
        let Some(batch) = self.batch(reply) else { return false };
        let goes_on = batch.documents == 0 && self.until.saturating_duration_since(now) >= LEAST_WAIT;
        if goes_on {
            let polls = &self.server.long_polls;
            let in_vain = self.catch_up.nothing_came(&batch, polls.longest_pause() * 2, now);
            // A server that has waited as it was told to may be asked again at once.
            let waited = self.wait > LEAST_WAIT && now.duration_since(self.asked) >= self.wait / 2;
            self.catch_up.rest_until(if waited { now } else { now + polls.pause(in_vain) });
        }
        goes_on
    }

    /// The client gets this reply: how far the cursor has caught up with it is remembered for its next wait.
    pub(super) fn ends_with(&self, reply: &[u8], cluster: &Cluster) {
        if let Some(batch) = self.batch(reply) {
            lock(&cluster.pins).caught_up(self.cursor, self.catch_up.after(&batch));
        }
    }

    fn batch(&self, reply: &[u8]) -> Option<Batch> {
        Batch::read(reply_document(reply)?.1, self.batch_size)
    }

    /// Waits until there is something to ask for, and a place to ask from. `None` when the server is to say what has become
    /// of its cursor.
    ///
    /// # Cancel safety
    /// Safe: whoever is dropped leaves every line.
    async fn turn(&mut self, cluster: &Cluster) -> Result<Option<Place>, NoPlace> {
        let server = self.server.clone();
        let polls = &server.long_polls;
        let parked = Instant::now();
        let mut sound = true;
        while sound && self.waits_here(Instant::now()) {
            let (not_before, look_by) = (self.catch_up.not_before(), self.look_by());
            let woken = polls.until_due(|_| self.is_due(Instant::now()), not_before, look_by).await;
            sound = woken == Woken::Due || self.is_sound(cluster);
        }
        self.waited += parked.elapsed();
        let queued = Instant::now();
        let (mut place, in_vain) = (std::pin::pin!(polls.enter()), cluster.config().wait_queue_timeout);
        let mut limit = std::pin::pin!(tokio::time::sleep_until(queued + in_vain));
        while sound {
            // Nothing is lost when an arm loses: the place in the line is kept, and the limit.
            tokio::select! {
                place = &mut place => return Ok(Some(place)),
                () = polls.disturbance() => sound = self.is_sound(cluster),
                () = &mut limit => return Err(NoPlace { waited: queued.elapsed() }),
            }
        }
        Ok(None)
    }

    /// Its cursor and its server are what they were.
    fn is_sound(&self, cluster: &Cluster) -> bool {
        let pinned = lock(&cluster.pins).cursor(self.cursor, Instant::now()).is_some();
        let topology = cluster.topology();
        let usable = topology.servers.get(&self.server.address).is_some_and(|server| topology.is_usable(server));
        pinned && usable && self.server.passes()
    }
}

impl Drop for LongPoll {
    fn drop(&mut self) {
        self.server.long_polls.ended(Instant::now());
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// Waits for the turn of a command that waits for data, as long as its client does. What ends the wait for good ends its
    /// cursor: nobody comes back to it.
    pub(super) async fn await_turn(&mut self, exchange: &mut Exchange) -> Result<(), Refusal> {
        let Some(poll) = &mut exchange.poll else { return Ok(()) };
        let (cluster, server) = (exchange.cluster.clone(), poll.server.clone());
        // Nothing is lost when an arm loses: whoever is dropped leaves every line, the socket keeps its bytes.
        let refusal = tokio::select! {
            turn = poll.turn(&cluster) => match turn {
                Ok(place) => {
                    exchange.place = place;
                    exchange.upstream += std::mem::take(&mut poll.waited);
                    return Ok(());
                }
                Err(NoPlace { waited }) => return Err(waited_in_vain(exchange, &server, waited).into()),
            },
            () = self.socket.left() => Refusal::Left,
            () = self.shared.activity.long_polls_end() => Refusal::Reply(errors::cursor_not_found(poll.cursor)),
        };
        if let Some(cursor) = OpenCursor::of_get_more(&server, exchange) {
            cursor.kill(&cluster);
        }
        Err(refusal)
    }
}
