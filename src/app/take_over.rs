//! The program between the one before and the next one: it relieves the former and is relieved by the latter, and hands its clients
//! over. What the two say to each other is in [`super::upgrade`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::upgrade::{self, Before, Conversation, Door, Part, Relief, Role, Standing};
use super::{App, Drained, LAST_TASKS, Load, StartError};
use crate::client::arriving::Arrivals;
use crate::client::leaving::Successor;
use crate::client::{BoundSocket, GivenSockets, Shift};
use crate::config::Config;
use crate::telemetry::EventKind;
use crate::upstream::Liveness;
use crate::upstream::pool::lock;

/// While clients are handed over, some are told to go this often.
const HAND_OVER_TICK: Duration = Duration::from_millis(100);

/// Clients have this much of the drain to be handed over, of which the rest is for those that are always busy.
const HAND_OVER_SHARE: f64 = 0.8;

/// Clients on their way to the next process. Beyond that they stay a little longer.
const MAX_DEPARTURES: usize = 64;

impl App {
    /// As [`App::start`], with sockets that listen already; takes over from the process that listens at the upgrade socket if there
    /// is one, and waits there for the next one. Returns whether there was one.
    ///
    /// # Errors
    /// As there, and [`StartError::Upgrade`]; then the process before goes on as if nothing had happened.
    ///
    /// # Cancel safety
    /// Whoever drops it has the process before go on; tasks of this one that have begun end with the program.
    pub async fn start_or_take_over(
        config: Config,
        mut given: GivenSockets,
        load: Box<Load>,
    ) -> Result<(Self, bool), StartError> {
        let Some(path) = config.upgrade_socket.clone() else {
            let app = Self::prepare(config, given, load).await?;
            app.open();
            return Ok((app, false));
        };
        let before = upgrade::find(&path, &mut given, config.times.drain_timeout).await?;
        let liveness = Liveness::of_clients(config.client.stall_timeout);
        let app = Self::prepare(config, given, load).await?;
        let took_over = before.is_some();
        let succeeded = app.succeed(&path, before, liveness).await;
        // What was prepared ends with the program then, which is no fault of any task.
        let (socket, ended) = succeeded.inspect_err(|_| app.tasks.cancel())?;
        app.open();
        app.await_successor(socket, ended);
        Ok((app, took_over))
    }

    /// Comes into the place of the process before, if there is one. Returns where the next one is heard, and what ends when that
    /// before has ended.
    async fn succeed(
        &self,
        path: &Path,
        before: Option<Before>,
        liveness: Liveness,
    ) -> Result<(Arc<BoundSocket>, Option<oneshot::Receiver<()>>), StartError> {
        let Some(mut before) = before else { return Ok((upgrade::bind(path).await?, None)) };
        let socket = match before.upgrade.take() {
            Some(given) => Arc::new(BoundSocket::given(given, liveness)?),
            None => upgrade::bind(path).await?,
        };
        let ended = self.take_over(before, socket.clone()).await?;
        Ok((socket, ended))
    }

    /// Relieves the process before. Returns what ends when that has ended.
    async fn take_over(
        &self,
        mut before: Before,
        upgrade: Arc<BoundSocket>,
    ) -> Result<Option<oneshot::Receiver<()>>, StartError> {
        let usable = before.until_usable(|| self.clusters.iter().all(|it| it.not_ready().is_none())).await?;
        let plain = self.listeners.iter().filter(|(_, plain)| *plain).map(|(shared, _)| shared.clone()).collect();
        let arrivals = Arrivals::new(plain, self.places.clone());
        let sockets: Vec<_> = self.bound.iter().filter_map(|door| door.socket.upgrade()).chain([upgrade]).collect();
        let kept = sockets.iter().map(|socket| socket.address().clone()).collect();
        let (link, owned_files) = before.relieve(usable, arrivals.listeners().cloned().collect(), kept).await?;
        // From here on nobody else removes them.
        sockets.iter().filter(|it| owned_files.contains(it.address())).for_each(|socket| socket.own_file(true));
        tracing::info!(usable, "took over from the process before");
        Ok(link.map(|link| {
            let (ended, told) = oneshot::channel();
            let conversation = Conversation::new(link, self.clusters.clone()).run(Part::Takes(arrivals));
            self.tasks.spawn("talk to the process before", async move {
                conversation.await;
                // Whoever waits for it sees that it is gone.
                drop(ended);
            });
            told
        }))
    }

    /// Waits for a process that takes over, once the one before has ended.
    fn await_successor(&self, socket: Arc<BoundSocket>, before_ended: Option<oneshot::Receiver<()>>) {
        tracing::info!(socket = %socket.address(), "the next process can take over");
        let mut doors: Vec<Door> =
            self.bound.iter().map(|door| Door { role: door.role, socket: door.socket.clone() }).collect();
        doors.push(Door::new(Role::Upgrade, &socket));
        let standing = Standing { socket, doors, clusters: self.clusters.clone(), shift: self.shift.clone() };
        let (mut shift, relief, draining) = (self.shift.subscribe(), self.relief.clone(), self.draining.clone());
        self.tasks.spawn("await successor", async move {
            let relieved = async {
                if let Some(ended) = before_ended {
                    // Nothing is ever sent.
                    drop(ended.await);
                }
                standing.until_relieved().await
            };
            // Who negotiates when the program ends by itself sees the link break, and goes on alone. Biased: once relieved it is
            // not our turn either.
            tokio::select! {
                biased;
                next = relieved => {
                    *lock(&relief) = Some(next);
                    draining.send_replace(true);
                }
                () = Shift::until(&mut shift, |shift| shift == Shift::Ending) => {}
            }
        });
    }

    /// True when the next process has taken over, and the drain is a hand-over.
    pub fn is_relieved(&self) -> bool {
        lock(&self.relief).is_some()
    }

    /// The next process accepts already: it gets the clients.
    pub(super) async fn hand_over(&self, relief: Relief) -> Drained {
        let clients = self.activity.clients.load(Ordering::Relaxed);
        let timeout = self.times.borrow().drain_timeout;
        tracing::info!(clients, ?timeout, "handing over");
        self.metrics.events.record(EventKind::Drain, None, None, &format!("{clients} clients go to the next process"));
        self.clusters.iter().for_each(|cluster| cluster.leave_work());
        let (takes, departures) = tokio::sync::mpsc::channel(MAX_DEPARTURES);
        let successor = Successor::new(takes, relief.takes_clients_of.iter().cloned().collect());
        // Only once, as only one process relieves this one.
        drop(self.activity.successor.set(successor));
        let (all_gone, last) = oneshot::channel();
        let (talked, over) = oneshot::channel::<()>();
        let conversation =
            Conversation::with_relief(relief, self.clusters.clone()).run(Part::Gives { departures, last });
        self.tasks.spawn("talk to the next process", async move {
            conversation.await;
            drop(talked);
        });
        let begun = Instant::now();
        let gone = tokio::time::timeout_at(begun + timeout, self.let_go(begun, timeout)).await.is_ok();
        // Cursors are told last. Where the link has broken, nobody hears.
        drop(all_gone);
        drop(tokio::time::timeout(LAST_TASKS, over).await);
        self.end(gone).await
    }

    /// Resolves when the last client has gone to the next process, or has left.
    async fn let_go(&self, begun: Instant, timeout: Duration) {
        let spread_until = begun + timeout.mul_f64(HAND_OVER_SHARE);
        let mut tick = tokio::time::interval(HAND_OVER_TICK);
        loop {
            let now = tick.tick().await;
            let clients = self.activity.clients.load(Ordering::Relaxed);
            if clients == 0 {
                return;
            }
            let ticks = spread_until.saturating_duration_since(now).as_millis() / HAND_OVER_TICK.as_millis();
            let ticks = usize::try_from(ticks).unwrap_or(usize::MAX).max(1);
            for (shared, _) in &self.listeners {
                shared.bounds.registry.let_go(ticks, now >= spread_until);
            }
        }
    }
}
