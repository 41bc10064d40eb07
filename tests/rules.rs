//! The proxy's own rules: what a listener refuses, on a real server, and changes of them while clients work.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Bson, Document, doc};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::{MORE_TO_COME, Request, WireClient};
use serde_json::Value;
use support::proxy::{Proxy, proxy};
use support::{code_and_labels, connect, http, new_lsid, raw};

/// A set of one member with data, and a proxy with rules.
async fn start(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let mut direct = support::client(&deployment.members()[0]).await;
    for (database, collection) in [("shop", "c"), ("shop", "secrets"), ("vault", "v")] {
        let documents: Vec<Document> = (0..5).map(|id| doc! { "_id": id, "of": collection }).collect();
        let insert = doc! { "insert": collection, "documents": documents, "writeConcern": { "w": "majority" } };
        direct.command(database, insert).await.unwrap();
    }
    let proxy = proxy(&deployment.uri(), settings).await;
    (deployment, proxy)
}

/// Data in the server, which nothing refused may change.
async fn everything(deployment: &Deployment) -> Vec<Document> {
    let mut direct = support::client(&deployment.members()[0]).await;
    let mut all = Vec::new();
    for database in ["shop", "vault"] {
        let hashed = direct.command(database, doc! { "dbHash": 1 }).await.unwrap();
        all.push(hashed.get_document("collections").unwrap().clone());
    }
    let mut users = direct.command("admin", doc! { "usersInfo": 1 }).await.unwrap();
    ["operationTime", "$clusterTime"].into_iter().for_each(|field| drop(users.remove(field)));
    all.push(users);
    all
}

#[track_caller]
fn assert_unauthorized(reply: &Document, rule: &str) {
    assert_eq!((reply.get_f64("ok").unwrap(), code_and_labels(reply)), (0.0, (13, Vec::new())), "{reply}");
    assert_eq!(reply.get_str("codeName").unwrap(), "Unauthorized");
    assert!(reply.get_str("errmsg").unwrap().contains(rule), "{rule}: {reply}");
}

async fn order(proxy: &Proxy, body: &str) -> Value {
    let answer = http(proxy.admin_address(), "POST", "/admin/rules", body).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// Everything that a server has a command for, by the server's own list: with `read_only` nothing of it changes data. What
/// may pass is listed here once more, apart from the table that decides.
#[tokio::test]
async fn of_all_the_commands_of_a_server_only_reads_pass() {
    const PASS: &[&str] = &[
        "aggregate",
        "availableQueryOptions",
        "buildInfo",
        "buildinfo",
        "collStats",
        "collstats",
        "connPoolStats",
        "connectionStatus",
        "count",
        "currentOp",
        "dataSize",
        "datasize",
        "dbHash",
        "dbhash",
        "dbStats",
        "dbstats",
        "distinct",
        "explain",
        "features",
        "filemd5",
        "find",
        "getCmdLineOpts",
        "getDefaultRWConcern",
        "getDiagnosticData",
        "getFreeMonitoringStatus",
        "getLog",
        "getMore",
        "getParameter",
        "hello",
        "hostInfo",
        "isMaster",
        "ismaster",
        "listCollections",
        "listCommands",
        "listDatabases",
        "listIndexes",
        "lockInfo",
        "mapReduce",
        "mapreduce",
        "ping",
        "planCacheListFilters",
        "replSetGetConfig",
        "replSetGetRBID",
        "replSetGetStatus",
        "rolesInfo",
        "serverStatus",
        "shardingState",
        "top",
        "usersInfo",
        "validate",
        "validateDBMetadata",
        "whatsmyuri",
        "isdbgrid",
        "getShardMap",
        "getShardVersion",
        "getClusterParameter",
        "getnonce",
        // About sessions, cursors and operations, never about data.
        "abortTransaction",
        "commitTransaction",
        "endSessions",
        "killCursors",
        "killOp",
        "killSessions",
        "refreshSessions",
        "startSession",
        // Logging in, which the proxy answers.
        "authenticate",
        "logout",
        "saslContinue",
        "saslStart",
    ];
    let (deployment, proxy) = start("read_only = true").await;
    let mut direct = support::client(&deployment.members()[0]).await;
    let listed = direct.command("admin", doc! { "listCommands": 1 }).await.unwrap();
    let names: Vec<String> = listed.get_document("commands").unwrap().keys().cloned().collect();
    assert!(names.len() > 200, "{} commands", names.len());
    let before = everything(&deployment).await;
    let mut client = connect(proxy.address()).await;
    let mut refused = 0;
    for name in &names {
        let reply = client.reply("shop", doc! { name: "c" }).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let rule = reply.get_str("errmsg").unwrap_or_default().contains("not allowed by read_only");
        let (code, _) = code_and_labels(&reply);
        let other =
            rule || code == 59 || reply.get_str("errmsg").unwrap_or_default().contains("not allowed through the proxy");
        assert_eq!(!PASS.contains(&name.as_str()), other, "{name}: {reply}");
        refused += usize::from(rule);
    }
    assert_eq!(everything(&deployment).await, before);
    assert_eq!(proxy.metric("mongomux_refused_total{reason=\"read_only\"}"), refused as f64);
    assert!(refused > 60, "{refused}");
}

#[tokio::test]
async fn a_listener_for_reading_reads_and_never_writes() {
    let (deployment, proxy) = start("read_only = true").await;
    let before = everything(&deployment).await;
    let mut client = connect(proxy.address()).await;
    let aggregate = |stages: Vec<Document>| doc! { "aggregate": "c", "pipeline": stages, "cursor": {} };
    for write in [
        doc! { "insert": "c", "documents": [{}] },
        doc! { "update": "c", "updates": [{ "q": {}, "u": { "$set": { "a": 1 } }, "multi": true }] },
        doc! { "delete": "c", "deletes": [{ "q": {}, "limit": 0 }] },
        doc! { "findAndModify": "c", "query": {}, "remove": true },
        doc! { "findandmodify": "c", "query": {}, "remove": true },
        aggregate(vec![doc! { "$out": "new" }]),
        aggregate(vec![doc! { "$merge": { "into": "new" } }]),
        doc! { "mapReduce": "c", "map": "function(){emit(1,1)}", "reduce": "function(k,v){return 1}", "out": "new" },
        doc! { "create": "new" },
        doc! { "createIndexes": "c", "indexes": [{ "key": { "of": 1 }, "name": "of" }] },
        doc! { "dropIndexes": "c", "index": "*" },
        doc! { "deleteIndexes": "c", "index": "*" },
        doc! { "collMod": "c", "validationLevel": "off" },
        doc! { "convertToCapped": "c", "size": 1_000 },
        doc! { "drop": "c" },
        doc! { "dropDatabase": 1 },
        doc! { "createUser": "u", "pwd": "p", "roles": [] },
        doc! { "noSuchCommand": 1 },
    ] {
        assert_unauthorized(&client.reply("shop", write).await.unwrap(), "read_only");
    }
    let rename = doc! { "renameCollection": "shop.c", "to": "shop.new" };
    assert_unauthorized(&client.reply("admin", rename).await.unwrap(), "read_only");
    let apply = doc! { "applyOps": [{ "op": "d", "ns": "shop.c", "o": { "_id": 0 } }] };
    assert_unauthorized(&client.reply("admin", apply).await.unwrap(), "read_only");

    // A pipeline in a sequence, which some server might take for the field.
    let body = raw::body(&doc! { "aggregate": "c", "cursor": {}, "$db": "shop" });
    let hidden = raw::op_msg(0, &[&body, &raw::sequence("pipeline", &[doc! { "$out": "new" }])]);
    let mut socket = raw::connect(proxy.address()).await;
    assert_unauthorized(&raw::exchange(&mut socket, &hidden).await, "read_only");

    // Nobody waits for an answer to these, and none comes.
    let insert = doc! { "insert": "c", "documents": [{ "_id": "unacknowledged" }], "writeConcern": { "w": 0 } };
    client.send(&Request::new("shop", insert).flags(MORE_TO_COME)).await.unwrap();

    // Reads, of every kind.
    let lsid = new_lsid();
    let in_transaction = |mut command: Document, first: bool| {
        command.extend(doc! { "lsid": lsid.clone(), "txnNumber": 1_i64, "autocommit": false });
        if first {
            command.insert("startTransaction", true);
        }
        command
    };
    let ok = async |client: &mut WireClient, database: &str, command: Document| {
        let reply = client.reply(database, command.clone()).await.unwrap();
        assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{command}: {reply}");
        reply
    };
    ok(&mut client, "shop", in_transaction(doc! { "find": "c" }, true)).await;
    let write = in_transaction(doc! { "insert": "c", "documents": [{}] }, false);
    assert_unauthorized(&client.reply("shop", write).await.unwrap(), "read_only");
    ok(&mut client, "shop", in_transaction(doc! { "find": "secrets" }, false)).await;
    ok(&mut client, "admin", in_transaction(doc! { "commitTransaction": 1 }, false)).await;
    let reply = ok(&mut client, "shop", doc! { "find": "c", "batchSize": 2 }).await;
    let cursor = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
    ok(&mut client, "shop", doc! { "getMore": cursor, "collection": "c", "batchSize": 1 }).await;
    ok(&mut client, "shop", doc! { "killCursors": "c", "cursors": [cursor] }).await;
    let remove = doc! { "delete": "c", "deletes": [{ "q": {}, "limit": 0 }] };
    ok(&mut client, "shop", doc! { "explain": remove, "verbosity": "executionStats" }).await;
    let out = aggregate(vec![doc! { "$out": "new" }]);
    ok(&mut client, "shop", doc! { "explain": out, "verbosity": "executionStats" }).await;
    let inline = doc! {
        "mapReduce": "c", "map": "function(){emit(1,1)}", "reduce": "function(k,v){return 1}", "out": { "inline": 1 }
    };
    ok(&mut client, "shop", inline).await;
    ok(&mut client, "admin", doc! { "aggregate": 1, "pipeline": [{ "$currentOp": {} }], "cursor": {} }).await;
    assert_eq!(everything(&deployment).await, before);
    assert_eq!(proxy.metric("mongomux_shed_total{reason=\"unacknowledged\"}"), 1.0);
}

#[tokio::test]
async fn what_is_denied_is_not_to_be_had_by_another_name() {
    let rules = "deny_namespaces = [\"shop.secrets\", \"vault.*\"]\ndeny_commands = [\"mapReduce\", \"distinct\"]";
    let (deployment, proxy) = start(rules).await;
    let mut direct = support::client(&deployment.members()[0]).await;
    let listed = direct.command("shop", doc! { "listCollections": 1, "filter": { "name": "secrets" } }).await.unwrap();
    let uuid = support::first_batch(&listed)[0].get_document("info").unwrap().get("uuid").unwrap().clone();
    let by_uuid = direct.command("shop", doc! { "find": uuid.clone() }).await.unwrap();
    assert_eq!(support::first_batch(&by_uuid).len(), 5, "a server finds it by its UUID");

    let mut client = connect(proxy.address()).await;
    let aggregate = |stages: Vec<Document>| doc! { "aggregate": "c", "pipeline": stages, "cursor": {} };
    let before = everything(&deployment).await;
    for (database, command) in [
        ("shop", doc! { "find": "secrets" }),
        ("shop", doc! { "find": uuid.clone() }),
        ("shop", doc! { "count": uuid }),
        ("shop", doc! { "explain": { "find": "secrets" }, "verbosity": "executionStats" }),
        ("shop", doc! { "insert": "secrets", "documents": [{}] }),
        ("shop", doc! { "aggregate": 1, "pipeline": [{ "$changeStream": {} }], "cursor": {} }),
        ("shop", aggregate(vec![doc! { "$unionWith": "secrets" }])),
        ("shop", aggregate(vec![doc! { "$unionWith": { "coll": "c", "pipeline": [{ "$unionWith": "secrets" }] } }])),
        (
            "shop",
            aggregate(vec![
                doc! { "$facet": { "a": [{ "$lookup": { "from": "secrets", "pipeline": [], "as": "x" } }] } },
            ]),
        ),
        ("shop", aggregate(vec![doc! { "$out": { "db": "vault", "coll": "v" } }])),
        ("shop", aggregate(vec![doc! { "$merge": "secrets" }])),
        ("shop", doc! { "create": "view", "viewOn": "c", "pipeline": [{ "$unionWith": "secrets" }] }),
        ("shop", doc! { "dropDatabase": 1 }),
        ("admin", doc! { "renameCollection": "shop.secrets", "to": "shop.open" }),
        ("admin", doc! { "renameCollection": "shop.c", "to": "vault.c" }),
        ("vault", doc! { "find": "v" }),
        ("vault", doc! { "listCollections": 1 }),
        ("admin", doc! { "applyOps": [{ "op": "d", "ns": "vault.v", "o": { "_id": 0 } }] }),
    ] {
        let reply = client.reply(database, command.clone()).await.unwrap();
        assert_unauthorized(&reply, "deny_namespaces");
    }
    for command in [
        doc! { "mapreduce": "c", "map": "function(){}", "reduce": "function(){}", "out": { "inline": 1 } },
        doc! { "distinct": "c", "key": "of" },
        doc! { "explain": { "distinct": "c", "key": "of" } },
    ] {
        assert_unauthorized(&client.reply("shop", command).await.unwrap(), "deny_commands");
    }
    // A cursor from elsewhere, continued under a false name: the server knows which collection it is of.
    let opened = direct.command("shop", doc! { "find": "secrets", "batchSize": 1 }).await.unwrap();
    let cursor = opened.get_document("cursor").unwrap().get_i64("id").unwrap();
    let more = |collection: &str| doc! { "getMore": cursor, "collection": collection };
    assert_unauthorized(&client.reply("shop", more("secrets")).await.unwrap(), "deny_namespaces");
    for other in ["c", "$cmd.aggregate"] {
        let reply = client.reply("shop", more(other)).await.unwrap();
        assert_eq!(reply.get_i32("code").unwrap(), 13, "{reply}");
    }
    assert_eq!(everything(&deployment).await, before);

    let found = client.reply("shop", aggregate(vec![doc! { "$unionWith": "c" }])).await.unwrap();
    assert_eq!(support::first_batch(&found).len(), 10);
    let listed = client.reply("shop", doc! { "listCollections": 1 }).await.unwrap();
    assert_eq!(support::first_batch(&listed).len(), 2);
    assert_eq!(proxy.metric("mongomux_refused_total{reason=\"command\"}"), 3.0);
    assert_eq!(proxy.metric("mongomux_refused_total{reason=\"namespace\"}"), 19.0);
}

#[tokio::test]
async fn rules_change_under_clients_that_work_and_what_is_open_can_end() {
    let (deployment, proxy) = start("").await;
    let mut client = connect(proxy.address()).await;
    let lsid = new_lsid();
    let in_transaction = |mut command: Document, number: i64, first: bool| {
        command.extend(doc! { "lsid": lsid.clone(), "txnNumber": number, "autocommit": false });
        if first {
            command.insert("startTransaction", true);
        }
        command
    };
    let insert = |id: &str| doc! { "insert": "c", "documents": [{ "_id": id }] };
    client.reply("shop", in_transaction(insert("in a transaction"), 1, true)).await.unwrap();

    let address = proxy.address().to_string();
    let answer = order(&proxy, &format!(r#"{{"listener": "{address}", "readOnly": true}}"#)).await;
    assert_eq!(answer["listeners"][0]["rules"]["readOnly"], true);
    let reply = client.reply("shop", in_transaction(insert("too late"), 1, false)).await.unwrap();
    assert_unauthorized(&reply, "read_only");
    let commit = in_transaction(doc! { "commitTransaction": 1 }, 1, false);
    assert_eq!(client.reply("admin", commit).await.unwrap().get_f64("ok").unwrap(), 1.0);
    assert_unauthorized(&client.reply("shop", insert("refused")).await.unwrap(), "read_only");
    let stats = http(proxy.admin_address(), "GET", "/stats", "").await;
    let stats: Value = serde_json::from_str(stats.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(stats["listeners"][0]["address"], address);
    assert_eq!(stats["listeners"][0]["rules"]["readOnly"], true);

    // Lists are put in place of those that were there; what is not named stays.
    order(&proxy, r#"{"denyCommands": ["count"], "readOnly": false}"#).await;
    order(&proxy, r#"{"denyNamespaces": ["shop.secrets"]}"#).await;
    assert_unauthorized(&client.reply("shop", doc! { "count": "c" }).await.unwrap(), "deny_commands");
    assert_unauthorized(&client.reply("shop", doc! { "find": "secrets" }).await.unwrap(), "deny_namespaces");
    order(&proxy, r#"{"denyCommands": [], "denyNamespaces": []}"#).await;
    let counted = client.reply("shop", doc! { "count": "c" }).await.unwrap();
    assert_eq!(counted.get_i32("n").unwrap(), 6, "the transaction's document and no other: {counted}");
    client.reply("shop", insert("again")).await.unwrap();

    for (body, what) in [
        (r#"{"listener": "127.0.0.1:1", "readOnly": true}"#, "expected one of"),
        (r#"{"readonly": true}"#, "unknown field"),
        (&format!("{{\"denyCommands\": [\"{}\"]}}", "x".repeat(70_000)), "length limit"),
    ] {
        let answer = http(proxy.admin_address(), "POST", "/admin/rules", body).await;
        assert!(answer.starts_with("HTTP/1.1 4") && answer.contains(what), "{answer}");
    }
    drop(deployment);
}

/// The table of what is dangerous through a shared connection, row by row.
#[tokio::test]
async fn what_is_dangerous_is_refused_without_any_rule() {
    let (deployment, proxy) = start("").await;
    let before = everything(&deployment).await;
    let mut client = connect(proxy.address()).await;
    let mut refused = 0.0;
    for command in [
        doc! { "killSessions": [] },
        doc! { "killAllSessions": [] },
        doc! { "killAllSessionsByPattern": [] },
        doc! { "fsync": 1 },
        doc! { "fsync": 1, "lock": true },
        doc! { "fsyncUnlock": 1 },
        doc! { "shutdown": 1 },
        doc! { "replSetStepDown": 1 },
        doc! { "replSetFreeze": 1 },
        doc! { "replSetReconfig": {} },
        doc! { "replSetInitiate": {} },
        doc! { "replSetMaintenance": 1 },
        doc! { "replSetSyncFrom": "a:1" },
        doc! { "replSetResizeOplog": 1 },
        doc! { "replSetAbortPrimaryCatchUp": 1 },
        doc! { "logRotate": 1 },
        doc! { "sleep": 1 },
        doc! { "testDeadlock": 1 },
        doc! { "godinsert": "c", "obj": {} },
        doc! { "usersInfo": 1, "showCredentials": true },
        doc! { "usersInfo": 1, "showCredentials": 1 },
        doc! { "usersInfo": 1, "showCredentials": 0.5 },
        doc! { "usersInfo": 1, "showCredentials": Bson::Decimal128("1".parse().unwrap()) },
        doc! { "ping": 1, "$audit": {} },
        doc! { "ping": 1, "$client": {} },
        doc! { "ping": 1, "$configTime": {} },
        doc! { "ping": 1, "$configServerState": {} },
        doc! { "ping": 1, "$replData": 1 },
    ] {
        let reply = client.reply("admin", command.clone()).await.unwrap();
        assert_eq!(code_and_labels(&reply), (13, Vec::new()), "{command}: {reply}");
        refused += 1.0;
    }
    for name in
        ["coordinateCommitTransaction", "prepareTransaction", "_shardsvrMoveRange", "_flushRoutingTableCacheUpdates"]
    {
        let reply = client.reply("admin", doc! { name: 1 }).await.unwrap();
        assert_eq!(code_and_labels(&reply), (59, Vec::new()), "{name}: {reply}");
        refused += 1.0;
    }
    let token = [&[2], &doc! {}.to_vec().unwrap()[..]].concat();
    let with_token = raw::op_msg(0, &[&raw::body(&doc! { "ping": 1, "$db": "admin" }), &token]);
    let mut socket = raw::connect(proxy.address()).await;
    assert_eq!(raw::exchange(&mut socket, &with_token).await.get_i32("code").unwrap(), 13);
    assert_eq!(proxy.metric("mongomux_refused_total{reason=\"listed\"}"), refused);
    assert_eq!(everything(&deployment).await, before);
    let reply = client.reply("admin", doc! { "usersInfo": 1, "showCredentials": false }).await.unwrap();
    assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{reply}");
}
