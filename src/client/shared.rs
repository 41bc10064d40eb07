//! What all sessions of a listener share, and what those of all listeners do.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::clusters::Clusters;
use super::leaving::Successor;
use super::log_in::LogIns;
use super::misfits::Misfits;
use super::rules::RulesInForce;
use super::socket::SocketBounds;
use crate::config::{Address, ClientConfig};
use crate::reply::{Facts, MetadataPool};
use crate::tasks::Tasks;
use crate::telemetry::labels::ClientState;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::seldom::Seldom;
use crate::upstream::Cluster;
use crate::wire::Compressor;

/// What the configuration says about the client side; a reload puts another one in its place.
pub type ClientLimits = ArcSwap<ClientConfig>;

/// What all sessions of a listener share.
pub struct ClientShared {
    /// The listener.
    pub listener: Address,
    /// Where their commands go.
    pub clusters: Clusters,
    /// What they may do.
    pub rules: Arc<RulesInForce>,
    /// Limits of the client side, as they are now.
    pub limits: Arc<ClientLimits>,
    /// What bounds the sockets.
    pub bounds: Arc<SocketBounds>,
    /// Metrics of all.
    pub metrics: Arc<Metrics>,
    /// What a hello says; `None` until the upstream was seen for the first time.
    pub facts: watch::Receiver<Option<Facts>>,
    /// Applications and drivers, each kept once.
    pub metadata: Mutex<MetadataPool>,
    /// Who seems to look for something else than us.
    pub(super) misfits: Mutex<Misfits>,
    /// Clients that speak TLS where there is none, those that do not where there is, and those that do not agree with us.
    pub(super) tls_on_plain: Seldom,
    pub(super) plain_on_tls: Seldom,
    pub(super) tls_refused: Seldom,
    /// Who is busy, for the drain.
    pub activity: Arc<Activity>,
    /// Where they log in; `None` where they need not.
    pub log_ins: Option<Arc<LogIns>>,
}

impl ClientShared {
    /// Without clients yet.
    pub fn new(
        listener: Address,
        clusters: Clusters,
        rules: Arc<RulesInForce>,
        limits: Arc<ClientLimits>,
        facts: watch::Receiver<Option<Facts>>,
        activity: Arc<Activity>,
        log_ins: Option<Arc<LogIns>>,
    ) -> Arc<Self> {
        let cluster = clusters.default();
        let (metrics, memory) = (cluster.metrics.clone(), cluster.memory.clone());
        let waited_in = cluster.clone();
        let room_timeout = Box::new(move || waited_in.config().wait_queue_timeout);
        let registry = Arc::default();
        let bounds = Arc::new(SocketBounds { limits: limits.clone(), memory, room_timeout, registry });
        let (metadata, misfits) = (Mutex::default(), Mutex::default());
        let [tls_on_plain, plain_on_tls, tls_refused] = std::array::from_fn(|_| Seldom::default());
        Arc::new(Self {
            listener,
            clusters,
            rules,
            limits,
            bounds,
            metrics,
            facts,
            metadata,
            misfits,
            tls_on_plain,
            plain_on_tls,
            tls_refused,
            activity,
            log_ins,
        })
    }

    /// True when upstream connections may have agreed on `compressor`, so that what came in it need not be compressed again.
    pub(super) fn goes_on_as_it_came(&self, compressor: Compressor) -> bool {
        let may_have = |cluster: &Arc<Cluster>| {
            let ours = &cluster.config().upstream.compression.compressors;
            ours.iter().any(|name| Compressor::from(*name) == compressor)
        };
        self.clusters.all().any(may_have)
    }
}

/// How many clients of all listeners there were and are, how busy they are, and whether the program is about to end.
#[derive(Debug, Default)]
pub struct Activity {
    /// Where sessions run. They end with their clients, and those that are left at the end of a drain with the runtime: to
    /// tell thousands of idle ones would cost each of them memory all its life.
    pub sessions: Tasks,
    /// The process that goes on with their sockets.
    pub successor: OnceLock<Successor>,
    /// Client sockets that are open.
    pub clients: AtomicUsize,
    /// Commands between their arrival and the end of their reply; hello and long polls do not count.
    in_flight: AtomicUsize,
    long_polls: AtomicUsize,
    /// Commands that were begun since the start: tells a quiet period from one in which every look was lucky.
    begun: AtomicU64,
    /// Long polls are to be answered now.
    over: AtomicBool,
    over_told: Notify,
    /// Told when a client leaves.
    pub left: Notify,
}

impl Activity {
    /// A command arrived; dropping the guard says that it has ended.
    pub fn begin(self: &Arc<Self>, long_poll: bool) -> InFlight {
        if long_poll {
            self.long_polls.fetch_add(1, Ordering::Relaxed);
        } else {
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            self.begun.fetch_add(1, Ordering::Relaxed);
        }
        InFlight { activity: self.clone(), long_poll }
    }

    /// Long polls under way.
    pub fn long_polls(&self) -> usize {
        self.long_polls.load(Ordering::Relaxed)
    }

    /// Commands under way, and commands begun so far.
    pub fn commands(&self) -> (usize, u64) {
        (self.in_flight.load(Ordering::Relaxed), self.begun.load(Ordering::Relaxed))
    }

    /// The drain is over: long polls are answered.
    pub fn end_long_polls(&self) {
        self.over.store(true, Ordering::Release);
        self.over_told.notify_waiters();
    }

    /// Resolves when long polls are to be answered.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn long_polls_end(&self) {
        // Made before the flag is read, so that a call in between is heard.
        let told = self.over_told.notified();
        if !self.over.load(Ordering::Acquire) {
            told.await;
        }
    }
}

/// One command under way.
#[derive(Debug)]
pub struct InFlight {
    activity: Arc<Activity>,
    long_poll: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let count = if self.long_poll { &self.activity.long_polls } else { &self.activity.in_flight };
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a client as active, and as idle again when dropped.
pub(super) struct BusyClient(Arc<ClientShared>);

impl BusyClient {
    pub(super) fn new(shared: &Arc<ClientShared>) -> Self {
        shared.metrics.client_connections[ClientState::Idle].dec();
        shared.metrics.client_connections[ClientState::Active].inc();
        Self(shared.clone())
    }
}

impl Drop for BusyClient {
    fn drop(&mut self) {
        self.0.metrics.client_connections[ClientState::Active].dec();
        self.0.metrics.client_connections[ClientState::Idle].inc();
    }
}
