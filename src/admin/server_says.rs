//! What `/server` tells: what MongoDB itself says of its connections, asked for in this moment, one server of each cluster.
//!
//! It is asked as the service, over a connection of the pool, by commands that change nothing; what it may not know or has no time
//! for is said in words, and the rest is told.

use std::sync::Arc;
use std::time::Duration;

use bson::{Bson, Document, RawDocument, doc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use crate::admission::Lane;
use crate::auth::UserId;
use crate::config::Address;
use crate::topology::{ServerKind, TopologyDescription};
use crate::upstream::Cluster;
use crate::upstream::errand::Errand;
use crate::wire::document::nests_at_most;

/// For all commands to all clusters; less than a request on the admin port may take.
pub(super) const TIME: Duration = Duration::from_secs(4);

/// As many applications are told of, those with most connections first.
const MAX_APPLICATIONS: i32 = 200;

/// Servers store no documents that nest deeper than this.
const MAX_NESTING: usize = 100;

/// Unauthorized
const UNAUTHORIZED: i32 = 13;

/// Sections of `serverStatus` that are long and about something else.
const LEFT_OUT: &[&str] = &[
    "asserts",
    "batchedDeletes",
    "catalogStats",
    "electionMetrics",
    "extra_info",
    "featureCompatibilityVersion",
    "flowControl",
    "indexBulkBuilder",
    "indexStats",
    "locks",
    "logicalSessionRecordCache",
    "metrics",
    "mirroredReads",
    "network",
    "opLatencies",
    "opcountersRepl",
    "planCache",
    "queryAnalyzers",
    "readConcernCounters",
    "repl",
    "scramCache",
    "security",
    "storageEngine",
    "tcmalloc",
    "tenantMigrations",
    "trafficRecording",
    "transactions",
    "twoPhaseCommitCoordinator",
    "wiredTiger",
];

/// What is told of the section that is asked for.
const TOLD: &[&str] = &["host", "version", "process", "uptime", "connections"];

/// One server.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSays {
    /// Of which cluster.
    pub cluster: String,
    /// Who was asked: who takes writes, else who answers reads.
    pub server: Option<String>,
    /// What monitoring says that it is.
    pub role: String,
    /// Its name, release, age, and connections: `current` are open, `available` are as many as may come.
    pub server_status: Value,
    /// Open connections by application: how many, and how many of them at work.
    pub applications: Value,
    /// Connections that it has itself, to other servers.
    pub conn_pool_stats: Value,
}

/// Asks a server of each cluster, all clusters at once.
pub(super) async fn ask(clusters: &[Arc<Cluster>], deadline: Instant) -> Vec<ServerSays> {
    futures_util::future::join_all(clusters.iter().map(|cluster| ask_one(cluster, deadline))).await
}

async fn ask_one(cluster: &Cluster, deadline: Instant) -> ServerSays {
    let topology = cluster.topology();
    let name = cluster.config().name.clone();
    let Some((address, kind)) = whom(&topology) else {
        let nobody = || json!({"error": cluster.not_ready().unwrap_or_else(|| "no server is known".to_owned())});
        let (server, role) = (None, ServerKind::Unknown.name().to_owned());
        let (server_status, applications, conn_pool_stats) = (nobody(), nobody(), nobody());
        return ServerSays { cluster: name, server, role, server_status, applications, conn_pool_stats };
    };
    let address = Arc::new(address.clone());
    let says = async |command: Document| says(cluster, address.clone(), command, deadline).await;
    let server_status =
        says(server_status()).await.map_or_else(no_answer, |reply| told(&reply, |name| TOLD.contains(&name)));
    let applications = says(connections_by_application(kind)).await.map_or_else(no_answer, |reply| of_batch(&reply));
    let conn_pool_stats = says(doc! { "connPoolStats": 1, "$db": "admin" }).await;
    let conn_pool_stats = conn_pool_stats.map_or_else(no_answer, |reply| {
        told(&reply, |name| !name.starts_with('$') && !["ok", "operationTime", "pools", "replicaSets"].contains(&name))
    });
    let (server, role) = (Some(address.to_string()), kind.name().to_owned());
    ServerSays { cluster: name, server, role, server_status, applications, conn_pool_stats }
}

/// Who takes writes, else who answers reads.
fn whom(topology: &TopologyDescription) -> Option<(&Address, ServerKind)> {
    let kinds = topology.servers.iter().map(|(address, server)| (address, server.kind));
    let rank = |kind: ServerKind| match kind {
        ServerKind::RsPrimary | ServerKind::Standalone | ServerKind::Mongos => 0,
        kind if kind.is_data_bearing() => 1,
        _ => 2,
    };
    kinds.filter(|(_, kind)| rank(*kind) < 2).min_by_key(|(_, kind)| rank(*kind))
}

/// The reply to a command, or in words why there is none.
async fn says(
    cluster: &Cluster,
    address: Arc<Address>,
    command: Document,
    deadline: Instant,
) -> Result<Document, String> {
    let name = command.keys().next().cloned().unwrap_or_default();
    let command = bson::RawDocumentBuf::try_from(&command).map_err(|error| format!("{name}: {error}"))?;
    let run = cluster.run(Errand::Server(address), UserId::SERVICE, Lane::Background, &command);
    let reply = match timeout_at(deadline, run).await {
        Ok(Some(reply)) => read(&reply).map_err(|problem| format!("{name}: {problem}"))?,
        Ok(None) => return Err(format!("{name}: the server did not answer, or no connection to it was to be had")),
        Err(_) => return Err(format!("{name}: no answer within {} s, or no connection was free", TIME.as_secs())),
    };
    match reply.get_i32("code") {
        Ok(UNAUTHORIZED) => Err(format!(
            "{name}: the user of the proxy's connection string may not run it: grant it the role clusterMonitor on admin"
        )),
        Ok(code) => Err(format!("{name}: error {code}: {}", reply.get_str("errmsg").unwrap_or_default())),
        Err(_) => Ok(reply),
    }
}

/// What is made of the reply goes down into it by recursion, so it may not be deeper than servers nest what they tell.
fn read(reply: &RawDocument) -> Result<Document, String> {
    if !nests_at_most(MAX_NESTING, reply.as_bytes()) {
        return Err(format!("in the reply more than {MAX_NESTING} documents stand one in the other"));
    }
    Document::try_from(reply).map_err(|error| error.to_string())
}

fn server_status() -> Document {
    let mut command = doc! { "serverStatus": 1 };
    command.extend(LEFT_OUT.iter().map(|section| ((*section).to_owned(), Bson::Int32(0))));
    command.insert("$db", "admin");
    command
}

fn connections_by_application(kind: ServerKind) -> Document {
    let mut current = doc! { "idleConnections": true, "allUsers": true };
    if kind == ServerKind::Mongos {
        // Its own, and not those of the shards.
        current.insert("localOps", true);
    }
    let application = doc! { "$ifNull": ["$appName", { "$ifNull": ["$clientMetadata.application.name", ""] }] };
    doc! {
        "aggregate": 1,
        "pipeline": [
            { "$currentOp": current },
            // Only connections carry the address of a client; the server's own threads do not.
            { "$match": { "connectionId": { "$exists": true }, "client": { "$exists": true } } },
            // An operation and its connection can be two entries.
            { "$group": { "_id": { "application": application, "connection": "$connectionId" }, "active": { "$max": "$active" } } },
            { "$group": {
                "_id": "$_id.application", "connections": { "$sum": 1 }, "active": { "$sum": { "$cond": ["$active", 1, 0] } },
            } },
            { "$sort": { "connections": -1, "_id": 1 } },
            { "$limit": MAX_APPLICATIONS },
            { "$project": { "_id": 0, "application": "$_id", "connections": 1, "active": 1 } },
        ],
        "cursor": { "batchSize": MAX_APPLICATIONS + 1 },
        "maxTimeMS": 3_000,
        // Secondaries are asked as well.
        "$readPreference": { "mode": "primaryPreferred" },
        "$db": "admin",
    }
}

fn no_answer(why: String) -> Value {
    json!({ "error": why })
}

fn told(reply: &Document, wanted: impl Fn(&str) -> bool) -> Value {
    let fields = reply.iter().filter(|(name, _)| wanted(name));
    Value::Object(fields.map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>())
}

fn of_batch(reply: &Document) -> Value {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.map_or(Value::Null, |batch| batch.iter().map(|entry| json!(entry)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_nests_without_end_is_refused_before_it_is_read() {
        let mut deep = doc! {};
        for _ in 1..MAX_NESTING {
            deep = doc! {"a": deep};
        }
        let reply = |document: &Document| bson::RawDocumentBuf::try_from(document).unwrap();
        assert_eq!(read(&reply(&deep)).as_ref(), Ok(&deep));
        // Far more than any stack has room for, were it read.
        let mut deeper = reply(&deep).into_bytes();
        for _ in 0..2_000 {
            let length = i32::try_from(deeper.len() + 7).unwrap();
            deeper = [&length.to_le_bytes(), [3, 0].as_slice(), &deeper, &[0]].concat();
        }
        assert!(read(RawDocument::from_bytes(&deeper).unwrap()).is_err());
    }
}
