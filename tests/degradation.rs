//! Less than everything, by agreement and never by invention: reads without a primary, and the modes of an operator.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Bson, Document, doc};
use futures_util::future::join_all;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{MORE_TO_COME, Request, WireClient};
use support::hold::{eventually, hold_finds, hold_inserts};
use support::proxy::{Proxy, proxy};
use support::relay::{Fault, Relay};
use support::{code_and_labels, connect, fail_command, first_batch, http, new_lsid, next_batch, raw};
use tokio::time::{Duration, timeout};

const RETRYABLE_WRITE: &str = "RetryableWriteError";
const TRANSIENT: &str = "TransientTransactionError";
const OVERLOADED: [&str; 2] = ["SystemOverloadedError", "RetryableError"];

/// Far below every limit of a test that expects an answer without a wait, far above what it takes on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

// ---- reads without a primary ----

/// Who finds no server must not wait long; round trips on a busy machine say nothing about who is near.
const AGREED: &str = "
    degraded_reads = [\"shop.catalog\", \"cms.*\"]
    server_selection_timeout_ms = 3_000
    heartbeat_frequency_ms = 500
    local_threshold_ms = 60_000
    retry = \"proxy\"
";

/// A set of three with data on all members, and a proxy that may read some of it from secondaries.
struct Set {
    deployment: Deployment,
    proxy: Proxy,
    primary: usize,
    /// When the data was written.
    written: Bson,
}

impl Set {
    async fn start() -> Self {
        let deployment = support::replica_set(3).await;
        let primary = deployment.await_primary().await.unwrap();
        let mut direct = support::client(&deployment.members()[primary]).await;
        let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": id }).collect();
        let mut written = Bson::Null;
        for (database, collection) in [("shop", "catalog"), ("shop", "orders"), ("cms", "pages"), ("cms", "parts")] {
            let concern = doc! { "w": 3, "wtimeout": 20_000 };
            let insert = doc! { "insert": collection, "documents": &documents, "writeConcern": concern };
            let reply = direct.command(database, insert).await.unwrap();
            written = reply.get("operationTime").unwrap().clone();
        }
        let proxy = proxy(&deployment.uri(), AGREED).await;
        let set = Self { deployment, proxy, primary, written };
        eventually("all members", async || set.members_known() == 3).await;
        set
    }

    fn members_known(&self) -> usize {
        self.proxy.clusters()[0].topology().data_bearing().count()
    }

    fn secondaries(&self) -> Vec<usize> {
        (0..3).filter(|index| *index != self.primary).collect()
    }

    /// Degraded reads on one member.
    fn degraded_on(&self, member: usize) -> f64 {
        let server = self.deployment.members()[member].address();
        self.proxy.metric(&format!("mongomux_degraded_reads_total{{server=\"{server}\"}}"))
    }

    fn degraded(&self) -> f64 {
        (0..3).map(|member| self.degraded_on(member)).sum()
    }

    async fn client(&self) -> WireClient {
        connect(self.proxy.address()).await
    }

    /// Takes the primary away, and keeps the others from electing one.
    async fn lose_the_primary(&mut self) {
        for member in self.secondaries() {
            freeze(&self.deployment.members()[member], 600).await;
        }
        self.deployment.member(self.primary).kill().await.unwrap();
        eventually("the loss of the primary", async || self.members_known() == 2).await;
    }
}

async fn freeze(member: &Mongod, seconds: i32) {
    let freeze = doc! { "replSetFreeze": seconds };
    support::client(member).await.command("admin", freeze).await.unwrap();
}

/// Reads that were agreed to; all of them ask for the primary.
fn agreed_reads() -> Vec<(&'static str, Document)> {
    vec![
        ("shop", doc! { "find": "catalog" }),
        ("shop", doc! { "find": "catalog", "$readPreference": { "mode": "primary" }, "maxTimeMS": 20_000 }),
        ("shop", doc! { "find": "catalog", "readConcern": { "level": "majority" }, "lsid": new_lsid() }),
        ("shop", doc! { "aggregate": "catalog", "pipeline": [{ "$match": {} }], "cursor": {} }),
        ("shop", doc! { "count": "catalog" }),
        ("shop", doc! { "distinct": "catalog", "key": "_id" }),
        ("cms", doc! { "find": "pages" }),
        ("cms", doc! { "aggregate": "pages", "pipeline": [join("parts")], "cursor": {} }),
    ]
}

fn join(other: &str) -> Document {
    doc! { "$lookup": { "from": other, "localField": "_id", "foreignField": "_id", "as": "joined" } }
}

/// Everything that was written, whoever says so.
#[track_caller]
fn assert_whole(reply: &Document) {
    let found = match (reply.get_i32("n"), reply.get_array("values")) {
        (Ok(n), _) => usize::try_from(n).unwrap(),
        (_, Ok(values)) => values.len(),
        _ => first_batch(reply).len(),
    };
    assert_eq!(found, 20, "{reply}");
}

#[tokio::test]
async fn without_a_primary_a_secondary_answers_what_was_agreed_to() {
    let mut set = Set::start().await;
    while_there_is_a_primary_nothing_changes(&set).await;
    set.lose_the_primary().await;
    agreed_reads_are_answered(&set).await;
    nothing_else_is_answered(&set).await;
    cursors_stay_where_they_were_opened(&set).await;

    let survivor = set.secondaries()[0];
    let lost = set.secondaries()[1];
    set.deployment.member(lost).kill().await.unwrap();
    eventually("the loss of a secondary", async || set.members_known() == 1).await;
    let before = set.degraded_on(survivor);
    let reply = set.client().await.command("shop", doc! { "find": "catalog" }).await.unwrap();
    assert_whole(&reply);
    assert_eq!(set.degraded_on(survivor), before + 1.0);

    set.deployment.member(lost).restart().await.unwrap();
    freeze(&set.deployment.members()[survivor], 0).await;
    set.deployment.await_members().await.unwrap();
    eventually("a primary", async || set.proxy.clusters()[0].topology().primary().is_some()).await;
    while_there_is_a_primary_nothing_changes(&set).await;
    let insert = doc! { "insert": "catalog", "documents": [{ "_id": "new" }] };
    let mut client = set.client().await;
    client.command("shop", insert).await.unwrap();
    let found = client.command("shop", doc! { "find": "catalog", "filter": { "_id": "new" } }).await.unwrap();
    assert_eq!(first_batch(&found).len(), 1, "what was written is read");
}

async fn while_there_is_a_primary_nothing_changes(it: &Set) {
    let before = it.degraded();
    let mut client = it.client().await;
    for (database, read) in agreed_reads() {
        assert_whole(&client.command(database, read).await.unwrap());
    }
    // A primary whose connection broke is in doubt, not gone.
    let primary = it.deployment.await_primary().await.unwrap();
    for _ in 0..5 {
        let broken = doc! { "failCommands": ["find"], "closeConnection": true, "appName": "mongomux" };
        fail_command(&it.deployment.members()[primary], 1, broken).await;
        assert_whole(&client.command("shop", doc! { "find": "catalog" }).await.unwrap());
    }
    assert_eq!(it.degraded(), before);
}

async fn agreed_reads_are_answered(it: &Set) {
    let mut client = it.client().await;
    let before = it.degraded();
    for (count, (database, read)) in agreed_reads().into_iter().enumerate() {
        assert_whole(&client.command(database, read).await.unwrap());
        assert_eq!(it.degraded(), before + f64::from(u32::try_from(count).unwrap()) + 1.0);
    }
    // With a checksum, which does not survive the change of the message.
    let find = raw::op_msg(1, &[&raw::body(&doc! { "find": "catalog", "$db": "shop" })]);
    client.send_raw(&raw::with_checksum(find, 0)).await.unwrap();
    assert_whole(&client.read_message().await.unwrap().document().unwrap());
    // As a driver asks, which sees no more than a mongos.
    let driver = mongodb::Client::with_uri_str(it.proxy.uri()).await.unwrap();
    let catalog = driver.database("shop").collection::<Document>("catalog");
    assert!(catalog.find_one(doc! { "_id": 7 }).await.unwrap().is_some());
    assert_eq!(catalog.count_documents(doc! {}).await.unwrap(), 20);
}

async fn nothing_else_is_answered(it: &Set) {
    let before = it.degraded();
    let after = doc! { "level": "local", "afterClusterTime": &it.written };
    let in_transaction = |mut command: Document| {
        command.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64, "autocommit": false, "startTransaction": true });
        command
    };
    let retryable = doc! { "insert": "catalog", "documents": [{ "_id": 100 }], "lsid": new_lsid(), "txnNumber": 1_i64 };
    let labelled = [RETRYABLE_WRITE, "NoWritesPerformed"];
    let cases: Vec<(Document, i32, &[&str])> = vec![
        (doc! { "find": "orders" }, 6, &[]),
        (doc! { "aggregate": "catalog", "pipeline": [join("orders")], "cursor": {} }, 6, &[]),
        (doc! { "aggregate": "catalog", "pipeline": [{ "$out": "copy" }], "cursor": {} }, 6, &[]),
        (doc! { "aggregate": "catalog", "pipeline": [{ "$changeStream": {} }], "cursor": {} }, 6, &[]),
        (doc! { "find": "catalog", "readConcern": { "level": "linearizable" } }, 6, &[]),
        (doc! { "find": "catalog", "readConcern": after, "lsid": new_lsid() }, 6, &[]),
        (in_transaction(doc! { "find": "catalog" }), 251, &[TRANSIENT]),
        (in_transaction(doc! { "insert": "catalog", "documents": [{ "_id": 101 }] }), 251, &[TRANSIENT]),
        (doc! { "insert": "catalog", "documents": [{ "_id": 102 }] }, 6, &[]),
        (doc! { "findAndModify": "catalog", "query": { "_id": 1 }, "remove": true }, 6, &[]),
        (doc! { "find": "catalog", "maxTimeMS": 500, "readConcern": { "level": "linearizable" } }, 50, &[]),
        (retryable, 6, &labelled),
    ];
    join_all(cases.into_iter().map(async |(command, code, labels)| {
        let reply = it.client().await.reply("shop", command.clone()).await.unwrap();
        let labels = labels.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(code_and_labels(&reply), (code, labels), "{command} {reply}");
    }))
    .await;
    assert_eq!(it.degraded(), before);
    assert_whole(&it.client().await.command("shop", doc! { "find": "catalog" }).await.unwrap());
}

async fn cursors_stay_where_they_were_opened(it: &Set) {
    let (mut client, mut other) = (it.client().await, it.client().await);
    let before: Vec<f64> = (0..3).map(|member| it.degraded_on(member)).collect();
    let mut cursors = Vec::new();
    eventually("cursors on both secondaries", async || {
        let find = doc! { "find": "catalog", "sort": { "_id": 1 }, "batchSize": 2 };
        let reply = client.command("shop", find).await.unwrap();
        cursors.push(reply.get_document("cursor").unwrap().get_i64("id").unwrap());
        it.secondaries().into_iter().all(|member| it.degraded_on(member) > before[member])
    })
    .await;
    for cursor in cursors {
        let more = doc! { "getMore": cursor, "collection": "catalog", "batchSize": 100 };
        let reply = other.command("shop", more).await.unwrap();
        assert_eq!(next_batch(&reply).len(), 18);
    }
    assert_eq!(it.proxy.pinned(), (0, 0));
}

// ---- modes ----

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
