//! Open connections as the server itself counts them: the one witness the proxy cannot influence.

use std::collections::BTreeMap;

use bson::{Bson, Document, doc};

use super::wire_client::{WireClient, WireError};

/// Application name of the proxy's data connections.
pub const DATA: &str = "mongomux";

/// Application name of the proxy's monitoring connections.
pub const MONITOR: &str = "mongomux monitor";

/// Larger than any number of connections seen here, so that one batch holds them all.
const BATCH: i32 = 100_000;

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
