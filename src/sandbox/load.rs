//! The sandbox's load: many client sockets, each with a worker, and what they count.
//!
//! The target rate is shared by all sockets, so more sockets means longer pauses, not more work: thousands of mostly idle
//! sockets are what the proxy is for. The load is open in arrivals and bounded in flight, and the same seed plans the same
//! work.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bson::Document;
use hdrhistogram::Histogram;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};

use super::worker::Worker;
use crate::config::Address;

/// Commands on their way at once, over all sockets: a quarter of the default wait queue, so that a server that pauses
/// for a moment makes clients wait and not fail.
const MAX_IN_FLIGHT: usize = 1_000;

/// Sockets being opened at once, half of what a listener with a short backlog holds.
const MAX_CONNECTING: usize = 64;

/// Shortest mean pause between two steps of a socket, for loads of few sockets.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// Longest wait for workers that were told to stop; a command has given up by then.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Commands of an average step; some take several.
const COMMANDS_PER_STEP: f64 = 1.6;

/// Latencies from one microsecond to one minute, to three digits.
const HIGHEST_LATENCY_MICROS: u64 = 60_000_000;

/// What to do to whom.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the clients connect.
    pub address: Address,
    /// Sockets.
    pub clients: usize,
    /// Commands per second that all sockets together aim at.
    pub commands_per_second: u32,
    /// Seed of everything random.
    pub seed: u64,
    /// Of every write outside transactions; `None` for the server's default.
    pub write_concern: Option<Document>,
}

/// A running load; dropping it cuts it off.
#[derive(Debug)]
pub struct Load {
    workers: JoinSet<()>,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

/// What workers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: LoadOptions,
    /// Mean pause between two steps of one socket.
    pub(super) pause: Duration,
    pub(super) connecting: Semaphore,
    pub(super) in_flight: Semaphore,
    pub(super) counters: Counters,
}

/// What happened so far.
#[derive(Debug)]
pub(super) struct Counters {
    connected: AtomicUsize,
    most_connected: AtomicUsize,
    served: AtomicUsize,
    commands: AtomicU64,
    errors: AtomicU64,
    wrong: AtomicU64,
    latency: Mutex<Latency>,
    first_fault: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Latency {
    interval: Histogram<u64>,
    total: Histogram<u64>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadStats {
    /// Sockets open now.
    pub connected: usize,
    /// Most sockets that were open at once.
    pub most_connected: usize,
    /// Sockets that got at least one answer.
    pub served: usize,
    /// Commands answered, rightly, with success.
    pub commands: u64,
    /// Commands that failed, and sockets that could not be opened.
    pub errors: u64,
    /// Replies that were not the answer to what was asked.
    pub wrong: u64,
    /// The first error or wrong reply, in words.
    pub first_fault: Option<String>,
    /// Median and 99th percentile since the last look, or since the start.
    pub p50: Duration,
    /// See [`LoadStats::p50`].
    pub p99: Duration,
    /// The slowest.
    pub slowest: Duration,
}

impl Load {
    /// Starts the workers; they connect a few at a time.
    pub fn start(options: LoadOptions) -> Self {
        let steps_per_second = f64::from(options.commands_per_second.max(1)) / COMMANDS_PER_STEP;
        let clients = u32::try_from(options.clients).unwrap_or(u32::MAX);
        let pause = Duration::from_secs_f64(f64::from(clients) / steps_per_second).max(MIN_PAUSE);
        let shared = Arc::new(Shared {
            options,
            pause,
            connecting: Semaphore::new(MAX_CONNECTING),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            counters: Counters::new(),
        });
        let (stop, stopped) = watch::channel(false);
        let mut workers = JoinSet::new();
        for index in 0..clients {
            workers.spawn(Worker::new(index, Arc::clone(&shared)).run(stopped.clone()));
        }
        Self { workers, shared, stop }
    }

    /// The counters, with the latencies since the last call of this function.
    pub fn interval(&self) -> LoadStats {
        let counters = &self.shared.counters;
        counters.stats(|latency| {
            let times = times(&latency.interval);
            latency.interval.reset();
            times
        })
    }

    /// Tells the workers to finish what they do, and waits for that. The latencies are those of the whole run.
    pub async fn stop(mut self) -> LoadStats {
        let stats = |counters: &Counters| counters.stats(|latency| times(&latency.total));
        let connected = self.shared.counters.connected.load(Relaxed);
        // Fails only when no worker is left to be told.
        let told = self.stop.send(true).is_ok();
        let finish = async { while self.workers.join_next().await.is_some() {} };
        if told && timeout(STOP_TIMEOUT, finish).await.is_err() {
            let unfinished = self.workers.len();
            self.shared.counters.error(&format!("{unfinished} clients still wait {STOP_TIMEOUT:?} after the end"));
        }
        LoadStats { connected, ..stats(&self.shared.counters) }
    }
}

fn times(histogram: &Histogram<u64>) -> [Duration; 3] {
    [histogram.value_at_quantile(0.5), histogram.value_at_quantile(0.99), histogram.max()].map(Duration::from_micros)
}

impl Counters {
    fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, HIGHEST_LATENCY_MICROS, 3).expect("constant bounds that the crate accepts")
        };
        Self {
            connected: AtomicUsize::new(0),
            most_connected: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            commands: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            latency: Mutex::new(Latency { interval: histogram(), total: histogram() }),
            first_fault: Mutex::new(None),
        }
    }

    /// One more socket is open, until the guard is dropped.
    pub(super) fn connected(shared: &Arc<Shared>) -> Connected {
        let now = shared.counters.connected.fetch_add(1, Relaxed) + 1;
        shared.counters.most_connected.fetch_max(now, Relaxed);
        Connected(Arc::clone(shared))
    }

    /// A socket got its first answer.
    pub(super) fn served(&self) {
        self.served.fetch_add(1, Relaxed);
    }

    /// A command was answered after `elapsed`.
    pub(super) fn command(&self, elapsed: Duration) {
        self.commands.fetch_add(1, Relaxed);
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        latency.interval.saturating_record(micros);
        latency.total.saturating_record(micros);
    }

    /// Something failed.
    pub(super) fn error(&self, what: &str) {
        self.errors.fetch_add(1, Relaxed);
        self.fault("error", what);
    }

    /// A reply was not the answer.
    pub(super) fn wrong(&self, what: &str) {
        self.wrong.fetch_add(1, Relaxed);
        self.fault("wrong reply", what);
    }

    fn fault(&self, kind: &str, what: &str) {
        tracing::debug!(kind, what, "fault seen by a sandbox client");
        let mut first = self.first_fault.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| format!("{kind}: {what}"));
    }

    fn stats(&self, times: impl FnOnce(&mut Latency) -> [Duration; 3]) -> LoadStats {
        let [p50, p99, slowest] = times(&mut self.latency.lock().unwrap_or_else(PoisonError::into_inner));
        LoadStats {
            connected: self.connected.load(Relaxed),
            most_connected: self.most_connected.load(Relaxed),
            served: self.served.load(Relaxed),
            commands: self.commands.load(Relaxed),
            errors: self.errors.load(Relaxed),
            wrong: self.wrong.load(Relaxed),
            first_fault: self.first_fault.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            p50,
            p99,
            slowest,
        }
    }
}

/// Counts one open socket.
#[derive(Debug)]
pub(super) struct Connected(Arc<Shared>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.counters.connected.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_ends_with_the_look_and_the_total_does_not() {
        let counters = Counters::new();
        counters.command(Duration::from_millis(4));
        let interval = |latency: &mut Latency| {
            let times = times(&latency.interval);
            latency.interval.reset();
            times
        };
        assert!(counters.stats(interval).p99 >= Duration::from_millis(4));
        assert_eq!(counters.stats(interval).p99, Duration::ZERO);
        counters.command(Duration::from_secs(3_600));
        let total = counters.stats(|latency| times(&latency.total));
        assert_eq!(total.commands, 2);
        assert!((4_000..4_010).contains(&total.p50.as_micros()), "{total:?}");
        assert!(total.slowest >= Duration::from_secs(59), "what is over the scale counts as its end");
    }

    #[test]
    fn the_first_fault_is_kept() {
        let counters = Counters::new();
        counters.wrong("token of another client");
        counters.error("closed");
        let stats = counters.stats(|_| [Duration::ZERO; 3]);
        assert_eq!((stats.errors, stats.wrong), (1, 1));
        assert_eq!(stats.first_fault.as_deref(), Some("wrong reply: token of another client"));
    }
}
