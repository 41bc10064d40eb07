//! Less than everything, by order of the operator.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Document, doc};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::{MORE_TO_COME, Request, WireClient};
use support::hold::{hold_finds, hold_inserts};
use support::proxy::{Proxy, proxy};
use support::relay::{Fault, Relay};
use support::{code_and_labels, connect, first_batch, http, new_lsid, next_batch};
use tokio::time::{Duration, timeout};

const RETRYABLE_WRITE: &str = "RetryableWriteError";
const TRANSIENT: &str = "TransientTransactionError";
const OVERLOADED: [&str; 2] = ["SystemOverloadedError", "RetryableError"];

/// Far below every limit of a test that expects an answer without a wait, far above what it takes on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

async fn order(proxy: &Proxy, body: &str) {
    let answer = http(proxy.admin_address(), "POST", "/admin/mode", body).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A server of one member with a collection, and a proxy.
async fn pair(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), settings).await;
    let documents: Vec<Document> = (0..10).map(|id| doc! { "_id": format!("old {id}") }).collect();
    connect(proxy.address()).await.command("test", doc! { "insert": "c", "documents": documents }).await.unwrap();
    (deployment, proxy)
}

fn insert(id: i32) -> Document {
    doc! { "insert": "c", "documents": [{ "_id": id }] }
}

/// Numbers that were inserted, as the server itself says.
async fn numbers(deployment: &Deployment) -> Vec<i32> {
    let find = doc! { "find": "c", "filter": { "_id": { "$type": "int" } }, "sort": { "_id": 1 } };
    let found = support::client(&deployment.members()[0]).await.command("test", find).await.unwrap();
    first_batch(&found).iter().map(|document| document.get_i32("_id").unwrap()).collect()
}

/// An open transaction that has inserted a number, and an open cursor.
struct Open {
    lsid: Document,
    cursor: i64,
}

impl Open {
    async fn start(client: &mut WireClient, id: i32) -> Self {
        let mut open = Self { lsid: new_lsid(), cursor: 0 };
        let mut first = open.statement(insert(id));
        first.insert("startTransaction", true);
        client.command("test", first).await.unwrap();
        let reply = client.command("test", doc! { "find": "c", "batchSize": 2 }).await.unwrap();
        open.cursor = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
        open
    }

    fn statement(&self, mut command: Document) -> Document {
        command.extend(doc! { "lsid": &self.lsid, "txnNumber": 1_i64, "autocommit": false });
        command
    }

    /// The rest of the cursor, a read and the commit.
    async fn finish(&self, client: &mut WireClient) {
        let more = doc! { "getMore": self.cursor, "collection": "c", "batchSize": 2 };
        assert_eq!(next_batch(&client.command("test", more).await.unwrap()).len(), 2);
        let kill = doc! { "killCursors": "c", "cursors": [self.cursor] };
        let killed = client.command("test", kill).await.unwrap();
        assert_eq!(killed.get_array("cursorsKilled").unwrap().len(), 1, "{killed}");
        client.command("test", self.statement(doc! { "find": "c" })).await.unwrap();
        client.command("admin", self.statement(doc! { "commitTransaction": 1 })).await.unwrap();
        client.command("admin", doc! { "endSessions": [&self.lsid] }).await.unwrap();
    }
}

#[track_caller]
fn assert_writes_blocked(reply: &Document) {
    assert_eq!(code_and_labels(reply), (371, vec![]), "{reply}");
    assert!(reply.get_str("errmsg").unwrap().starts_with("mongomux: the proxy is in read-only mode"), "{reply}");
}

#[track_caller]
fn assert_not_started(reply: &Document, labels: &[&str]) {
    let expected: Vec<String> = labels.iter().chain(&OVERLOADED).map(ToString::to_string).collect();
    assert_eq!(code_and_labels(reply), (6, expected), "{reply}");
    assert!(reply.get_str("errmsg").unwrap().starts_with("mongomux: the proxy is in maintenance mode"), "{reply}");
}

#[tokio::test]
async fn read_only_refuses_what_may_write_and_nothing_else() {
    let (deployment, proxy) = pair("").await;
    let server = &deployment.members()[0];
    let mut client = connect(proxy.address()).await;
    let open = Open::start(&mut client, 1).await;
    order(&proxy, r#"{"mode": "read-only"}"#).await;

    let retryable = doc! { "insert": "c", "documents": [{ "_id": 2 }], "lsid": new_lsid(), "txnNumber": 1_i64 };
    for write in [
        insert(2),
        retryable,
        doc! { "update": "c", "updates": [{ "q": {}, "u": { "$set": { "x": 1 } }, "multi": true }] },
        doc! { "delete": "c", "deletes": [{ "q": {}, "limit": 0 }] },
        doc! { "findAndModify": "c", "query": {}, "remove": true },
        doc! { "aggregate": "c", "pipeline": [{ "$out": "copy" }], "cursor": {} },
        doc! { "aggregate": "c", "pipeline": [{ "$merge": { "into": "copy" } }], "cursor": {} },
        doc! { "createIndexes": "c", "indexes": [{ "key": { "x": 1 }, "name": "x" }] },
        doc! { "drop": "c" },
        doc! { "createUser": "u", "pwd": "p", "roles": [] },
        doc! { "madeUp": 1 },
        open.statement(insert(2)),
    ] {
        assert_writes_blocked(&client.reply("test", write).await.unwrap());
    }
    let dropped = proxy.shed("unacknowledged");
    client.send(&Request::new("test", insert(2)).flags(MORE_TO_COME)).await.unwrap();
    for (database, goes_on) in [
        ("test", doc! { "find": "c" }),
        ("test", doc! { "aggregate": "c", "pipeline": [{ "$match": {} }], "cursor": {} }),
        ("test", doc! { "listCollections": 1 }),
        ("admin", doc! { "ping": 1 }),
        ("admin", doc! { "hello": 1 }),
        ("admin", doc! { "serverStatus": 1 }),
        ("admin", doc! { "currentOp": 1 }),
        ("admin", doc! { "replSetGetStatus": 1 }),
        ("admin", doc! { "getLog": "global" }),
        ("admin", doc! { "getCmdLineOpts": 1 }),
        ("admin", doc! { "usersInfo": 1 }),
        ("admin", doc! { "killOp": 1, "op": 1 }),
    ] {
        client.command(database, goes_on.clone()).await.unwrap_or_else(|error| panic!("{goes_on}: {error}"));
    }
    assert_eq!(proxy.shed("unacknowledged"), dropped + 1.0);
    open.finish(&mut client).await;
    assert_eq!(numbers(&deployment).await, [1], "the open transaction was committed, and nothing else was written");

    // A driver reports it, and does not try again.
    let refused = || proxy.metric("mongomux_commands_total{command=\"insert\",outcome=\"refused\"}");
    let before = refused();
    let driver = mongodb::Client::with_uri_str(proxy.uri()).await.unwrap();
    let things = driver.database("test").collection::<Document>("c");
    let error = things.insert_one(doc! { "_id": 3 }).await.unwrap_err();
    let mongodb::error::ErrorKind::Command(told) = error.kind.as_ref() else { panic!("{error}") };
    assert_eq!((told.code, told.code_name.as_str(), refused()), (371, "UserWritesBlocked", before + 1.0));

    // It has the shape of the server's own.
    let ours = client.reply("test", doc! { "drop": "c" }).await.unwrap();
    let mut direct = support::client(server).await;
    direct.command("admin", doc! { "setUserWriteBlockMode": 1, "global": true }).await.unwrap();
    let theirs = direct.reply("test", doc! { "drop": "c" }).await.unwrap();
    direct.command("admin", doc! { "setUserWriteBlockMode": 1, "global": false }).await.unwrap();
    for name in ["ok", "code", "codeName"] {
        assert_eq!(ours.get(name), theirs.get(name));
    }
    order(&proxy, r#"{"mode": "normal", "cluster": "default"}"#).await;
    client.command("test", insert(4)).await.unwrap();
    assert_eq!(numbers(&deployment).await, [1, 4]);
}

#[tokio::test]
async fn a_write_that_was_sent_before_the_switch_is_seen_through() {
    let deployment = support::replica_set(1).await;
    let relay = Relay::start(deployment.members()[0].address());
    let proxy = proxy(&relay.uri(), "retry = \"proxy\"").await;
    let mut client = connect(proxy.address()).await;
    let hold = hold_inserts(&deployment.members()[0], "test.c").await;
    relay.next("insert", Fault::NoReply, 1);
    let mut retryable = insert(1);
    retryable.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64 });
    let sent = client.send(&Request::new("test", retryable)).await.unwrap();
    hold.reaches(1).await;
    order(&proxy, r#"{"mode": "read-only"}"#).await;
    hold.release().await;
    let reply = client.receive(sent).await.unwrap().document().unwrap();
    assert_eq!((reply.get_i32("n").ok(), relay.forget_faults()), (Some(1), 0), "{reply}");
    assert_eq!(numbers(&deployment).await, [1]);
    assert_writes_blocked(&client.reply("test", insert(2)).await.unwrap());
}

/// One connection, and patience.
const ONE: &str = "max_pool_size = 1\nmin_pool_size = 1\nwait_queue_timeout_ms = 60_000\n\
                   server_selection_timeout_ms = 60_000\n";

#[tokio::test]
async fn a_switch_is_obeyed_by_who_waits_for_a_connection() {
    let (deployment, proxy) = pair(ONE).await;
    let hold = hold_finds(&deployment.members()[0], "test.held").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(connect(proxy.address()).await);
    }
    let [holder, reader, writer] = &mut clients[..] else { unreachable!() };
    let held = holder.send(&Request::new("test", doc! { "find": "held" })).await.unwrap();
    hold.reaches(1).await;
    let read = reader.send(&Request::new("test", doc! { "find": "c" })).await.unwrap();
    proxy.waits(1).await;
    writer.send(&Request::new("test", insert(1))).await.unwrap();
    proxy.waits(2).await;

    order(&proxy, r#"{"mode": "read-only"}"#).await;
    let refused = timeout(AT_ONCE, writer.read_message()).await.expect("at once").unwrap();
    assert_writes_blocked(&refused.document().unwrap());
    assert_eq!(proxy.waiting(), 1, "the read keeps its place");
    order(&proxy, r#"{"mode": "normal"}"#).await;
    let written = writer.send(&Request::new("test", insert(2))).await.unwrap();
    proxy.waits(2).await;

    order(&proxy, r#"{"mode": "maintenance"}"#).await;
    hold.release().await;
    holder.receive(held).await.expect("what was sent is answered");
    // A commit is open work: it overtakes all that is held, and finds the connection free.
    let commit = doc! { "commitTransaction": 1, "lsid": new_lsid(), "txnNumber": 1_i64, "autocommit": false };
    assert_eq!(holder.reply("admin", commit).await.unwrap().get_i32("code").unwrap(), 251);
    assert_eq!((proxy.waiting(), numbers(&deployment).await), (2, vec![]), "held, although the connection is free");
    order(&proxy, r#"{"mode": "normal"}"#).await;
    reader.receive(read).await.unwrap();
    writer.receive(written).await.unwrap();
    assert_eq!((proxy.waiting(), numbers(&deployment).await), (0, vec![2]));
}

#[tokio::test]
async fn maintenance_holds_what_is_new_and_lets_finish_what_is_open() {
    let settings = "wait_queue_size = 5\nserver_selection_timeout_ms = 60_000";
    let (deployment, proxy) = pair(settings).await;
    let mut client = connect(proxy.address()).await;
    let open = Open::start(&mut client, 1).await;
    order(&proxy, r#"{"mode": "maintenance"}"#).await;
    let ready = http(proxy.admin_address(), "GET", "/readyz", "").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("default: maintenance mode"), "{ready}");

    // A new client is greeted; what it asks for waits.
    let mut held = Vec::new();
    let mut first = insert(2);
    first.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64, "autocommit": false, "startTransaction": true });
    for command in [doc! { "ping": 1 }, doc! { "find": "c" }, insert(3), insert(4), first] {
        let mut client = connect(proxy.address()).await;
        let id = client.send(&Request::new("test", command)).await.unwrap();
        held.push((client, id));
    }
    proxy.waits(5).await;
    let mut late = connect(proxy.address()).await;
    let refused = late.reply("test", insert(5)).await.unwrap();
    assert_eq!(code_and_labels(&refused), (462, OVERLOADED.map(str::to_owned).to_vec()), "the bound holds");
    // Who leaves frees its place at once, and so does who has no more time.
    drop(held.remove(2));
    proxy.waits(4).await;
    let mut impatient = insert(6);
    impatient.insert("maxTimeMS", 200);
    assert_eq!(late.reply("test", impatient).await.unwrap().get_i32("code").unwrap(), 50);
    proxy.waits(4).await;
    open.finish(&mut client).await;
    assert_eq!(numbers(&deployment).await, [1]);

    order(&proxy, r#"{"mode": "normal"}"#).await;
    for (mut client, id) in held {
        let reply = client.receive(id).await.unwrap().document().unwrap();
        assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{reply}");
    }
    assert_eq!(proxy.waiting(), 0);
    let ready = http(proxy.admin_address(), "GET", "/readyz", "").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert_eq!(numbers(&deployment).await, [1, 4], "what was held was done once, what was refused never");
}

#[tokio::test]
async fn maintenance_refuses_what_it_does_not_hold() {
    let (deployment, proxy) = pair("server_selection_timeout_ms = 60_000").await;
    let mut client = connect(proxy.address()).await;
    let open = Open::start(&mut client, 1).await;
    let mut waiting = Vec::new();
    order(&proxy, r#"{"mode": "maintenance", "hold": true}"#).await;
    for id in [2, 3] {
        let mut client = connect(proxy.address()).await;
        client.send(&Request::new("test", insert(id))).await.unwrap();
        waiting.push(client);
    }
    proxy.waits(2).await;
    order(&proxy, r#"{"mode": "maintenance", "hold": false}"#).await;
    for mut client in waiting {
        let reply = timeout(AT_ONCE, client.read_message()).await.expect("at once").unwrap();
        assert_not_started(&reply.document().unwrap(), &[]);
    }
    let retryable = doc! { "insert": "c", "documents": [{ "_id": 4 }], "lsid": new_lsid(), "txnNumber": 1_i64 };
    let mut first = insert(5);
    first.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64, "autocommit": false, "startTransaction": true });
    let cases = [
        (doc! { "find": "c" }, &[][..]),
        (insert(4), &[]),
        (retryable, &[RETRYABLE_WRITE, "NoWritesPerformed"]),
        (first, &[TRANSIENT]),
    ];
    for (command, labels) in cases {
        let reply = timeout(AT_ONCE, client.reply("test", command)).await.expect("at once").unwrap();
        assert_not_started(&reply, labels);
    }
    open.finish(&mut client).await;

    // From one mode to another: the held write may not run in that one either, the held read may.
    order(&proxy, r#"{"mode": "maintenance"}"#).await;
    let (mut reader, mut writer) = (connect(proxy.address()).await, connect(proxy.address()).await);
    let read = reader.send(&Request::new("test", doc! { "find": "c" })).await.unwrap();
    let write = writer.send(&Request::new("test", insert(6))).await.unwrap();
    proxy.waits(2).await;
    order(&proxy, r#"{"mode": "read-only"}"#).await;
    let found = reader.receive(read).await.unwrap().document().unwrap();
    assert_eq!(first_batch(&found).len(), 11, "{found}");
    assert_writes_blocked(&writer.receive(write).await.unwrap().document().unwrap());
    assert_eq!((proxy.waiting(), numbers(&deployment).await), (0, vec![1]));
}

#[tokio::test]
async fn who_is_held_for_too_long_is_told_why() {
    let (deployment, proxy) = pair("server_selection_timeout_ms = 300").await;
    let mut client = connect(proxy.address()).await;
    order(&proxy, r#"{"mode": "maintenance"}"#).await;
    let reply = client.reply("test", insert(1)).await.unwrap();
    assert_not_started(&reply, &[]);
    assert!(reply.get_str("errmsg").unwrap().contains("waited "), "{reply}");
    assert_eq!((proxy.waiting(), numbers(&deployment).await), (0, vec![]));
}
