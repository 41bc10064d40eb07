//! What an operator orders a cluster to do while commands run. Each order can be given again, and then finds nothing left to do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::cluster::{Cluster, Server};
use super::in_use::Replace;
use super::pool::Pool;
use crate::admission::{Mode, TooManyPauses};
use crate::config::{Address, ClusterConfig};
use crate::telemetry::labels::{ConnectionClosed, EventKind};

/// A connection that nobody used for so long is not needed by the clients that are still to leave.
const LEFT_WORK_IDLE_TIME: Duration = Duration::from_secs(1);

/// How far connections are to be cleaned up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cleanup {
    /// Those that are idle, beyond the minimum.
    Idle,
    /// All, when they are idle: at once, or as soon as their command has ended.
    Soft,
    /// All at once. Commands in flight fail, with what their drivers may retry.
    Hard,
}

impl fmt::Display for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Soft => "soft",
            Self::Hard => "hard",
        })
    }
}

/// What an order has done to the connections of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cleaned {
    /// Were idle, and are closed.
    pub closed: u32,
    /// Are in use or being established, and end when they are free; by a hard one, now.
    pub ending: u32,
}

impl Cluster {
    /// Puts another mode in force; returns the one before.
    pub fn switch_mode(&self, to: Mode) -> Mode {
        let before = self.mode.switch(to);
        self.wake_waiting();
        before
    }

    /// Has new commands wait, those of a database or all, until it goes on: by order, or after `timeout`.
    ///
    /// # Errors
    /// [`TooManyPauses`]
    pub fn pause(&self, database: Option<&str>, timeout: Option<Duration>) -> Result<(), TooManyPauses> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        self.mode.pauses(|pauses| pauses.pause(database, until))?;
        self.wake_waiting();
        Ok(())
    }

    /// Has commands that were paused go on: those of a database, or all.
    pub fn resume(&self, database: Option<&str>) {
        self.mode.pauses(|pauses| pauses.resume(database));
        self.wake_waiting();
    }

    /// Another process does the work more and more: no connection is kept that nobody needs, so that both together have hardly
    /// more than one has.
    pub fn leave_work(&self) {
        let mut config = ClusterConfig::clone(&self.config());
        config.pool.min_pool_size = 0;
        config.pool.max_idle_time = config.pool.max_idle_time.min(LEFT_WORK_IDLE_TIME);
        self.reconfigure(config);
        for server in self.servers() {
            server.pool.clean_up(Cleanup::Idle);
        }
    }

    fn wake_waiting(&self) {
        self.servers().iter().for_each(|server| server.pool.wake_waiting());
    }

    /// Ends pauses whose time is over, as long as the program runs.
    pub(super) async fn end_pauses(self: Arc<Self>) {
        let mut orders = self.mode.subscribe();
        loop {
            let next = orders.borrow_and_update().pauses.next_end();
            let over = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            // Nothing is lost when an arm loses: the watch keeps its newest value, and a time that is over stays so.
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return },
                () = over => {
                    let now = Instant::now();
                    tracing::info!(cluster = %self.name, "a pause has ended by its own time");
                    let told = "goes on, since the time of a pause is over";
                    self.metrics.events.record(EventKind::Resumed, Some(&self.name), None, told);
                    self.mode.pauses(|pauses| pauses.expire(now));
                    self.wake_waiting();
                }
                () = self.tasks.cancelled() => return,
            }
        }
    }

    /// The servers that an order is meant for: the one at that address, or all.
    pub fn servers_at(&self, address: Option<&Address>) -> Vec<Arc<Server>> {
        let meant = |server: &Arc<Server>| address.is_none_or(|address| *address == *server.address);
        self.servers().into_iter().filter(meant).collect()
    }
}

impl Pool {
    /// Has all connections replaced, one by one, within the bounds; returns how many.
    pub fn reconnect(&self) -> usize {
        let replaced = self.0.replace(Replace::Any);
        self.0.work.notify_one();
        replaced
    }

    /// Closes connections, as far as `mode` says.
    pub fn clean_up(&self, mode: Cleanup) -> Cleaned {
        let shared = &self.0;
        let cleaned = {
            let mut state = shared.state();
            let before = state.counts();
            let least = state.bounds().min_pool_size;
            match mode {
                Cleanup::Idle => _ = state.retire(least, u32::MAX, |_| true),
                Cleanup::Soft | Cleanup::Hard => state.end_all(),
            }
            let closed = state.counts().closing - before.closing;
            let ending = if mode == Cleanup::Idle { 0 } else { before.in_use + before.pending };
            Cleaned { closed, ending }
        };
        if mode == Cleanup::Hard {
            shared.interrupt();
        }
        shared.parts.server_metrics.closed(ConnectionClosed::Ordered, cleaned.closed);
        shared.work.notify_one();
        cleaned
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::upstream::scripted::{Rig, Setup, Work, ms, work};

    /// Cleans up while the last of three connections is busy for almost a second, as long as a connection that is cut off counts.
    async fn clean_up_beside_a_command(rig: &Rig, mode: Cleanup) -> (Cleaned, bool) {
        let mut connections = rig.check_out_many(3).await;
        let mut busy = connections.pop().unwrap();
        drop(connections);
        let cleans = async {
            sleep(ms(100)).await;
            rig.pool.clean_up(mode)
        };
        let began = Instant::now();
        let (worked, cleaned) = tokio::join!(work(&mut busy, 1, Work::take(900)), cleans);
        assert_eq!(worked.is_err(), began.elapsed() < ms(900), "cut off, or carried out");
        let of_before = busy.id;
        drop(busy);
        sleep(ms(1_100)).await;
        assert!(
            rig.pool.0.state().available().iter().all(|connection| connection.id > of_before) || mode == Cleanup::Idle
        );
        (cleaned, worked.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn a_clean_up_goes_as_far_as_it_is_told_and_no_further() {
        for (mode, cleaned, carried_out) in [
            (Cleanup::Idle, Cleaned { closed: 2, ending: 0 }, true),
            (Cleanup::Soft, Cleaned { closed: 2, ending: 1 }, true),
            (Cleanup::Hard, Cleaned { closed: 2, ending: 1 }, false),
        ] {
            let rig = Setup::new(1, 3).start();
            assert_eq!(clean_up_beside_a_command(&rig, mode).await, (cleaned, carried_out), "{mode:?}");
            assert!(rig.health.all_closed(), "an order is no failure of the server");
            rig.check_serves(3).await;
            assert!(rig.server.peak() <= 3);
            rig.end().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_minimum_outlives_an_idle_clean_up() {
        let rig = Setup::new(2, 5).start();
        drop(rig.check_out_many(5).await);
        assert_eq!(rig.pool.clean_up(Cleanup::Idle), Cleaned { closed: 3, ending: 0 });
        assert_eq!(rig.pool.clean_up(Cleanup::Idle), Cleaned::default(), "nothing is left to do");
        assert_eq!(rig.counts().available, 2);
        sleep(ms(10_000)).await;
        assert_eq!(rig.server.dialed().len(), 5, "they are the same");
        rig.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn all_connections_are_replaced_one_by_one_within_the_bound() {
        let rig = Setup::new(3, 3).start();
        drop(rig.check_out_many(3).await);
        assert_eq!(rig.pool.reconnect(), 3);
        let mut least = 3;
        for _ in 0..1_000 {
            sleep(ms(10)).await;
            least = least.min(rig.counts().available);
        }
        assert!(least >= 2, "{least} were left at one time");
        let connections = rig.check_out_many(3).await;
        assert!(connections.iter().all(|connection| connection.id > 3), "{connections:?}");
        assert_eq!((rig.server.dialed().len(), rig.server.peak()), (6, 3));
        // In use all the time: at the end of each command, one after the other.
        assert_eq!(rig.pool.reconnect(), 3);
        drop(connections);
        assert_eq!((rig.counts().closing, rig.counts().available), (1, 2));
        sleep(ms(10_000)).await;
        assert!(rig.check_out_many(3).await.iter().all(|connection| connection.id > 6));
        assert_eq!(rig.server.peak(), 3);
        rig.end().await;
    }
}
