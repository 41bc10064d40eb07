//! What a proxy holds, and what the servers see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mongomux::config::Address;
use mongomux::sandbox::census::{self, DATA};
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{WireClient, WireError};
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

    /// The pools of all servers.
    pub fn pools(&self) -> Vec<PoolSnapshot> {
        self.clusters()[0].servers().iter().map(|server| server.pool.snapshot()).collect()
    }

    /// Fails when a pool has more connections than it may.
    pub fn assert_bound(&self) {
        for pool in self.pools() {
            assert!(pool.counts.total() <= pool.max_pool_size, "{:?} is over {}", pool.counts, pool.max_pool_size);
        }
    }

    /// [`Proxy::assert_bound`] all the time, for as long as it is polled.
    pub async fn hold_the_bound(&self) {
        let mut ticks = tokio::time::interval(Duration::from_millis(2));
        loop {
            ticks.tick().await;
            self.assert_bound();
        }
    }

    /// Waits until nothing is under way: no command, no waiter, no byte, and every connection in its place.
    pub async fn settles(&self) {
        let settled = || {
            self.assert_bound();
            let pools = self.pools();
            let is_quiet = |pool: &PoolSnapshot| {
                let counts = pool.counts;
                counts.in_use + counts.pending + counts.closing == 0 && pool.waiting.iter().all(|waiting| *waiting == 0)
            };
            !pools.is_empty() && pools.iter().all(is_quiet) && self.waiting() == 0 && self.buffered() == 0
        };
        let look = async || settled();
        if tokio::time::timeout(Duration::from_secs(20), eventually("it settles", look)).await.is_err() {
            panic!("{:?}, {} wait, {} bytes buffered", self.pools(), self.waiting(), self.buffered());
        }
    }
}

/// Counts the proxy's data connections on the server, about every 10 ms while it answers, until it is dropped.
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
        let (mut client, address) = (Some(client(server).await), server.address());
        let mut sampler = JoinSet::new();
        sampler.spawn(async move {
            loop {
                match count(&mut client, &address).await {
                    Ok(connections) => {
                        highest.fetch_max(connections, Ordering::Relaxed);
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                    // It may have been killed; whoever needs samples asks how many there are.
                    Err(_) => client = None,
                }
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

async fn count(client: &mut Option<WireClient>, address: &Address) -> Result<usize, WireError> {
    let client = match client {
        Some(client) => client,
        None => client.insert(WireClient::connect_as(address, "mongomux test").await?),
    };
    Ok(census::take(client).await?.get(DATA).copied().unwrap_or(0))
}
