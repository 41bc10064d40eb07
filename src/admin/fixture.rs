//! Clusters for the tests of this module, in front of a scripted server or of a port where nobody listens.

use std::sync::Arc;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::rawdoc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::Admin;
use crate::admission::MemoryBudget;
use crate::config::system::Text;
use crate::config::{BackoffConfig, ClusterConfig, Config, Sources};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::topology::monitor::{Monitor, MonitorSettings};
use crate::upstream::Cluster;
use crate::upstream::handshake::UpstreamDialer;
use crate::wire::encode;

const SETTINGS: MonitorSettings = MonitorSettings {
    heartbeat_frequency: Duration::from_millis(500),
    connect_timeout: Duration::from_millis(300),
    rebuild: BackoffConfig { initial: Duration::from_millis(10), max: Duration::from_millis(40) },
    instance: ObjectId::from_bytes([0; 12]),
};

/// A cluster at work, and what it needs.
pub(super) struct Fixture {
    pub(super) cluster: Arc<Cluster>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) memory: Arc<MemoryBudget>,
    pub(super) tasks: Tasks,
}

impl Fixture {
    /// In front of `server`, with a password in the connection string that is to appear nowhere.
    fn new(server: &str, credentials: &str, change: impl FnOnce(&mut ClusterConfig)) -> Self {
        let uri = format!("mongodb://{credentials}{server}/");
        let upstream = Some(Text { name: "test".to_owned(), text: uri });
        let (mut config, _) = Config::load(&Sources { upstream, ..Sources::default() }).unwrap();
        let mut config = config.clusters.remove(0);
        change(&mut config);
        let (tasks, metrics, memory) = (Tasks::new(), Metrics::new(), MemoryBudget::plenty());
        let monitor = Monitor::start(&config.upstream, SETTINGS, &tasks);
        let dialer =
            UpstreamDialer::new(&config.upstream, None, monitor.clone(), Arc::default(), memory.clone(), 1 << 20);
        let cluster = Cluster::new(
            config,
            monitor,
            Arc::new(dialer),
            Arc::default(),
            memory.clone(),
            tasks.clone(),
            metrics.clone(),
        );
        cluster.start();
        Self { cluster, metrics, memory, tasks }
    }

    /// In front of a port where nobody listens; returns once monitoring has noticed.
    pub(super) async fn unreachable(credentials: &str) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        drop(listener);
        let fixture = Self::new(&server, credentials, |_| ());
        let mut topology = fixture.cluster.monitor().subscribe();
        let noticed = topology.wait_for(|topology| topology.servers.values().any(|server| server.error.is_some()));
        tokio::time::timeout(Duration::from_secs(10), noticed).await.unwrap().unwrap();
        // Pools follow the topology a step behind.
        until(|| !fixture.cluster.servers().is_empty()).await;
        (fixture, server)
    }

    /// In front of a standalone that answers hello; returns once the pool has its two connections.
    pub(super) async fn standalone() -> (Self, String) {
        Self::standalone_with(|_| ()).await
    }

    /// As [`Fixture::standalone`], with a configuration that is changed before.
    pub(super) async fn standalone_with(change: impl FnOnce(&mut ClusterConfig)) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let fixture = Self::new(&server, "", change);
        let tasks = fixture.tasks.clone();
        fixture.tasks.spawn("script", async move {
            loop {
                let stream = tokio::select! {
                    () = tasks.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let end = tasks.clone();
                tasks.spawn("scripted connection", async move {
                    tokio::select! {
                        () = end.cancelled() => {}
                        _ = answer_hello(stream) => {}
                    }
                });
            }
        });
        let connected = |counts: crate::upstream::pool_state::PoolCounts| counts.available == 2;
        until(|| fixture.cluster.servers().iter().any(|it| connected(it.pool.snapshot().counts))).await;
        (fixture, server)
    }

    /// Ends all of it, and proves that nothing is left behind.
    pub(super) async fn end(self) {
        self.cluster.monitor().shutdown().await;
        self.tasks.cancel();
        assert_eq!(self.tasks.join_all(Duration::from_secs(5)).await, 0);
    }
}

/// Without any cluster.
pub(super) fn idle_admin() -> Arc<Admin> {
    let (metrics, memory) = (Metrics::new(), MemoryBudget::plenty());
    Admin::new(Vec::new(), Vec::new(), metrics, memory, watch::Sender::default(), Arc::default())
}

/// For what has no event to wait for.
async fn until(done: impl Fn() -> bool) {
    let poll = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), poll).await.expect("it comes about in time");
}

async fn answer_hello(mut stream: TcpStream) -> std::io::Result<()> {
    let hello = rawdoc! {
        "ismaster": true, "helloOk": true, "maxWireVersion": 21, "minWireVersion": 0,
        "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "ok": 1.0,
    };
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header).await?;
        let length = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
        stream.read_exact(&mut vec![0; length - header.len()]).await?;
        let request_id = i32::from_le_bytes(header[4..8].try_into().unwrap());
        stream.write_all(encode::op_msg(0, request_id, &hello).bytes()).await?;
    }
}
