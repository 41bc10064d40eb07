//! Open connections as the server itself counts them: the one witness the proxy cannot influence.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bson::{Bson, Document, doc};
use tokio::task::JoinSet;
use tokio::time::{Duration, MissedTickBehavior, interval, timeout};

use super::wire_client::{WireClient, WireError};
use crate::config::Address;

/// Application name of the proxy's data connections.
pub const DATA: &str = "mongomux";

/// Application name of the proxy's monitoring connections.
pub const MONITOR: &str = "mongomux monitor";

/// Larger than any number of connections seen here, so that one batch holds them all.
const BATCH: i32 = 100_000;

/// How often every server is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// Longest wait for one count; a server that hangs is asked again.
const COUNT_TIMEOUT: Duration = Duration::from_secs(5);

/// Counts the open client connections of a server by application name; those without a name are under `""`. The asking
/// connection is among them.
pub async fn take(client: &mut WireClient) -> Result<BTreeMap<String, usize>, WireError> {
    let aggregate = doc! {
        "aggregate": 1,
        "pipeline": [
            { "$currentOp": { "idleConnections": true, "allUsers": true } },
            // Only connections carry the address of a client; the server's own threads do not.
            { "$match": { "connectionId": { "$exists": true }, "client": { "$exists": true } } },
            { "$group": {
                "_id": { "$ifNull": ["$appName", { "$ifNull": ["$clientMetadata.application.name", ""] }] },
                // An operation in progress and its connection are one entry; a set makes sure of it.
                "connections": { "$addToSet": "$connectionId" },
            } },
            { "$project": { "count": { "$size": "$connections" } } },
        ],
        "cursor": { "batchSize": BATCH },
        // Secondaries count, too.
        "$readPreference": { "mode": "secondaryPreferred" },
    };
    let reply = client.command("admin", aggregate).await?;
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let batch = batch.map_err(|error| WireError::Protocol(format!("$currentOp: {error}")))?;
    Ok(batch.iter().filter_map(Bson::as_document).filter_map(entry).collect())
}

fn entry(group: &Document) -> Option<(String, usize)> {
    let count = usize::try_from(group.get_i32("count").ok()?).ok()?;
    Some((group.get_str("_id").ok()?.to_owned(), count))
}

/// What one server saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCount {
    /// The server.
    pub address: Address,
    /// Data connections of the proxy, now and at most.
    pub data: usize,
    /// See [`ServerCount::data`].
    pub most_data: usize,
    /// Most monitoring connections of the proxy.
    pub most_monitor: usize,
    /// How often it was counted.
    pub samples: u64,
}

impl ServerCount {
    /// Not counted yet.
    pub fn new(address: Address) -> Self {
        Self { address, data: 0, most_data: 0, most_monitor: 0, samples: 0 }
    }

    fn add(&mut self, connections: &BTreeMap<String, usize>) {
        let of = |application| connections.get(application).copied().unwrap_or(0);
        self.data = of(DATA);
        self.most_data = self.most_data.max(self.data);
        self.most_monitor = self.most_monitor.max(of(MONITOR));
        self.samples += 1;
    }
}

/// Counts on every server, twice a second, until it is dropped.
#[derive(Debug)]
pub struct Census {
    counts: Arc<Mutex<Vec<ServerCount>>>,
    _tasks: JoinSet<()>,
}

impl Census {
    /// Starts counting over one direct connection per server.
    pub fn start(servers: impl IntoIterator<Item = Address>) -> Self {
        let servers: Vec<Address> = servers.into_iter().collect();
        let counts = Arc::new(Mutex::new(servers.iter().cloned().map(ServerCount::new).collect()));
        let mut tasks = JoinSet::new();
        for (index, address) in servers.into_iter().enumerate() {
            tasks.spawn(count_forever(index, address, Arc::clone(&counts)));
        }
        Self { counts, _tasks: tasks }
    }

    /// The counts so far.
    pub fn counts(&self) -> Vec<ServerCount> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn count_forever(index: usize, address: Address, counts: Arc<Mutex<Vec<ServerCount>>>) {
    let mut client = None;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(COUNT_TIMEOUT, count(&address, &mut client)).await {
            Ok(Ok(connections)) => {
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(server) = counts.get_mut(index) {
                    server.add(&connections);
                }
            }
            // The server may be down, which is a thing to try in a sandbox; the next tick connects anew.
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "not counted");
                client = None;
            }
            Err(_) => client = None,
        }
    }
}

async fn count(address: &Address, client: &mut Option<WireClient>) -> Result<BTreeMap<String, usize>, WireError> {
    let client = match client {
        Some(client) => client,
        None => client.insert(WireClient::connect_as(address, "mongomux sandbox").await?),
    };
    take(client).await
}
