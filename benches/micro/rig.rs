//! A cluster of one server that is reached through pipes, with all of its connections established, and what runs it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bson::RawDocumentBuf;
use bson::oid::ObjectId;
use mongomux::admission::MemoryBudget;
use mongomux::auth::UserId;
use mongomux::config::system::{Sources, Text};
use mongomux::config::{Address, ClientConfig, Config, MemoryShares};
use mongomux::tasks::Tasks;
use mongomux::telemetry::metrics::Metrics;
use mongomux::topology::description::Hello;
use mongomux::topology::{Monitor, MonitorSettings};
use mongomux::upstream::handshake::{ConnectError, Dialer};
use mongomux::upstream::{Cluster, Connection, Pool};
use tokio::runtime::Runtime;

use crate::support::PATIENCE;
use crate::support::canned::Server;

/// Connections of the pool.
pub(crate) const CONNECTIONS: u32 = 10;

/// What a pipe holds, each way: more than any message here.
pub(crate) const PIPE_BYTES: usize = 64 * 1024;

/// The cluster. Nothing of it runs but while somebody waits on `runtime`.
pub(crate) struct Rig {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) client: ClientConfig,
    pub(crate) tasks: Tasks,
    pub(crate) runtime: Runtime,
}

impl Rig {
    /// With [`CONNECTIONS`] idle connections.
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let tasks = Tasks::new();
        let (cluster, client) = runtime.block_on(async {
            let (cluster, client) = start(&tasks);
            let established = async {
                while cluster
                    .servers()
                    .first()
                    .is_none_or(|server| server.pool.snapshot().counts.available < CONNECTIONS)
                {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(PATIENCE, established).await.expect("connections through pipes");
            (cluster, client)
        });
        Self { cluster, client, tasks, runtime }
    }

    /// The pool of its server.
    pub(crate) fn pool(&self) -> Pool {
        self.cluster.servers()[0].pool.clone()
    }
}

fn start(tasks: &Tasks) -> (Arc<Cluster>, ClientConfig) {
    let server = Server::start(tasks);
    let settings = format!("max_pool_size = {CONNECTIONS}\nmin_pool_size = {CONNECTIONS}\n");
    let file = Some(Text { name: "settings".to_owned(), text: settings });
    let upstream = Some(Text { name: "upstream".to_owned(), text: server.uri() });
    let (mut config, _) = Config::load(&Sources { file, upstream, ..Sources::default() }).expect("a configuration");
    let cluster = config.clusters.remove(0);
    let settings = MonitorSettings {
        heartbeat_frequency: cluster.heartbeat_frequency,
        connect_timeout: cluster.pool.connect_timeout,
        rebuild: cluster.reconnect,
        instance: ObjectId::new(),
    };
    let monitor = Monitor::start(&cluster.upstream, settings, tasks);
    let memory = MemoryBudget::new(MemoryShares::of(config.memory_limit_bytes as u64));
    let pipes =
        Pipes { server, memory: memory.clone(), tasks: tasks.clone(), longest: config.client.max_message_bytes };
    let cluster =
        Cluster::new(cluster, monitor, Arc::new(pipes), Arc::default(), memory, tasks.clone(), Metrics::new());
    cluster.start();
    (cluster, config.client)
}

/// Connects to a server without a socket.
struct Pipes {
    server: Arc<Server>,
    memory: Arc<MemoryBudget>,
    tasks: Tasks,
    longest: usize,
}

impl Dialer for Pipes {
    fn connect<'a>(
        &'a self,
        _: &'a Address,
        _: UserId,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send + 'a>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let server = self.server.clone();
            self.tasks.spawn("canned connection", async move { server.serve(theirs).await });
            let mut connection = Connection::new(Box::new(ours), self.memory.clone(), self.longest);
            let hello = RawDocumentBuf::try_from(self.server.hello()).expect("a document");
            connection.greeting.hello = Hello::read(&hello);
            connection.greeting.max_wire_version = 17;
            Ok(connection)
        })
    }
}
