//! What a proxy with one server holds, and what that server sees of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mongomux::sandbox::census::{self, DATA};
use mongomux::sandbox::mongod::Mongod;
use mongomux::upstream::pool::PoolSnapshot;
use tokio::task::JoinSet;

use super::client;
use super::hold::eventually;
use super::proxy::Proxy;

impl Proxy {
    /// Commands that wait for a server or a connection.
    pub fn waiting(&self) -> usize {
        self.clusters()[0].admission.waiting()
    }

    /// Bytes of the memory budget in use.
    pub fn buffered(&self) -> usize {
        self.clusters()[0].memory.used()
    }

    /// Pinned cursors and open transactions.
    pub fn pinned(&self) -> (usize, usize) {
        self.clusters()[0].pins.lock().expect("nobody panics with it").count()
    }

    /// The pool of the only server; `None` until that is found.
    pub fn pool(&self) -> Option<PoolSnapshot> {
        self.clusters()[0].servers().first().map(|server| server.pool.snapshot())
    }

    /// Connections established so far.
    pub fn created(&self) -> u64 {
        self.pool().map_or(0, |pool| pool.created)
    }

    /// Commands refused for this reason.
    pub fn shed(&self, reason: &str) -> f64 {
        self.metric(&format!("mongomux_shed_total{{reason=\"{reason}\"}}"))
    }

    /// Client sockets that were closed for this reason.
    pub fn clients_closed(&self, reason: &str) -> f64 {
        self.metric(&format!("mongomux_client_connections_closed_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until exactly `count` commands wait.
    pub async fn waits(&self, count: usize) {
        eventually(&format!("{count} commands wait"), async || self.waiting() == count).await;
    }

    /// Fails when a pool ever has more connections than it may, for as long as it is polled.
    pub async fn hold_the_bound(&self) {
        let mut ticks = tokio::time::interval(Duration::from_millis(2));
        loop {
            ticks.tick().await;
            for server in self.clusters()[0].servers() {
                let pool = server.pool.snapshot();
                assert!(pool.counts.total() <= pool.max_pool_size, "{}: {pool:?}", server.address);
            }
        }
    }

    /// Waits until nothing is under way: no command, no waiter, no byte, and every connection in its place.
    pub async fn settles(&self) {
        let settled = || {
            let pool = self.pool()?;
            let counts = pool.counts;
            let busy = counts.in_use + counts.pending + counts.closing;
            assert!(counts.total() <= pool.max_pool_size, "{counts:?} is over {}", pool.max_pool_size);
            let queued = pool.waiting.iter().sum::<usize>() + self.waiting();
            (busy == 0 && queued == 0 && self.buffered() == 0).then_some(())
        };
        let look = async || settled().is_some();
        if tokio::time::timeout(Duration::from_secs(20), eventually("it settles", look)).await.is_err() {
            panic!("{:?}, {} wait, {} bytes buffered", self.pool(), self.waiting(), self.buffered());
        }
    }
}

/// Counts the proxy's data connections on the server, about every 10 ms, until it is dropped.
pub struct Bound {
    most: Arc<AtomicUsize>,
    samples: Arc<AtomicUsize>,
    _sampler: JoinSet<()>,
}

impl Bound {
    /// Starts to count.
    pub async fn watch(server: &Mongod) -> Self {
        let (most, samples) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (highest, taken) = (most.clone(), samples.clone());
        let mut client = client(server).await;
        let mut sampler = JoinSet::new();
        sampler.spawn(async move {
            loop {
                let connections = census::take(&mut client).await.expect("a count");
                highest.fetch_max(connections.get(DATA).copied().unwrap_or(0), Ordering::Relaxed);
                taken.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { most, samples, _sampler: sampler }
    }

    /// The most that were counted at once.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// How often was counted.
    pub fn samples(&self) -> usize {
        self.samples.load(Ordering::Relaxed)
    }
}
