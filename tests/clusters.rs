//! Several clusters in one process: each command goes to the cluster of its database, nothing of one reaches the other, and
//! none waits for another.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bson::{Bson, Document, Timestamp, doc};
use futures_util::future::join_all;
use mongodb::Client;
use mongodb::options::{ReadConcern, SelectionCriteria, SessionOptions};
use mongomux::config::Address;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::{Request, WireClient};
use support::hold::{eventually, hold_finds};
use support::proxy::{Proxy, configured};
use support::{PATIENCE, connect, first_batch, http, new_lsid, next_batch, scripted};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// One listener in front of two clusters, with `settings` for the second one.
async fn front(users: &str, logs: &str, settings: &str) -> Proxy {
    configured(&format!(
        "[[cluster]]\nname = \"users\"\nupstream = \"{users}\"\n\
         [[cluster]]\nname = \"logs\"\nupstream = \"{logs}\"\n{settings}\n\
         [[listener]]\nlisten = \"127.0.0.1:0\"\ncluster = \"users\"\n\
         databases = {{ logs = \"logs\", \"audit_*\" = \"logs\", audit_of_users = \"users\" }}\n"
    ))
    .await
}

async fn two_sets() -> (Deployment, Deployment, Proxy) {
    let (users, logs) = tokio::join!(support::replica_set(1), support::replica_set(1));
    let proxy = front(&users.uri(), &logs.uri(), "").await;
    (users, logs, proxy)
}

async fn databases(deployment: &Deployment) -> BTreeSet<String> {
    let list = doc! { "listDatabases": 1, "nameOnly": true };
    let reply = support::client(&deployment.members()[0]).await.command("admin", list).await.unwrap();
    let names = reply.get_array("databases").unwrap().iter();
    let names = names.map(|database| database.as_document().unwrap().get_str("name").unwrap().to_owned());
    names.filter(|name| !matches!(name.as_str(), "admin" | "config" | "local")).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn insert(count: i32) -> Document {
    let documents: Vec<Document> = (0..count).map(|id| doc! { "_id": id }).collect();
    doc! { "insert": "c", "documents": documents }
}

fn cursor_id(reply: &Document) -> i64 {
    reply.get_document("cursor").unwrap().get_i64("id").unwrap()
}

fn has_time(reply: &Document) -> bool {
    reply.contains_key("$clusterTime") || reply.contains_key("operationTime")
}

#[tokio::test]
async fn a_command_goes_to_the_cluster_of_its_database() {
    let (users, logs, proxy) = two_sets().await;
    let mut client = connect(proxy.address()).await;
    for database in ["app", "logs", "audit_2026", "audit_of_users", "logs_of_others"] {
        client.command(database, insert(3)).await.unwrap();
    }
    assert_eq!(databases(&users).await, set(&["app", "audit_of_users", "logs_of_others"]));
    assert_eq!(databases(&logs).await, set(&["audit_2026", "logs"]));

    // What lists databases is about the first cluster, and a rename about the one of its names.
    let listed = client.command("admin", doc! { "listDatabases": 1, "nameOnly": true }).await.unwrap();
    assert!(!listed.to_string().contains("audit_2026"), "{listed}");
    client.command("admin", doc! { "renameCollection": "logs.c", "to": "audit_2027.d" }).await.unwrap();
    assert_eq!(databases(&logs).await, set(&["audit_2026", "audit_2027"]));
    let across = client.reply("admin", doc! { "renameCollection": "app.c", "to": "logs.c" }).await.unwrap();
    assert_eq!(across.get_i32("code").unwrap(), 20, "{across}");
    let told = across.get_str("errmsg").unwrap();
    assert!(told.contains("`app` of cluster `users`") && told.contains("`logs` of cluster `logs`"), "{told}");
    assert_eq!(databases(&users).await, set(&["app", "audit_of_users", "logs_of_others"]));
}

#[tokio::test]
async fn cursors_live_in_the_cluster_of_their_database() {
    let (_users, _logs, proxy) = two_sets().await;
    let mut client = connect(proxy.address()).await;
    let mut open = Vec::new();
    for database in ["app", "audit_1"] {
        client.command(database, insert(5)).await.unwrap();
        for _ in 0..2 {
            let found = client.command(database, doc! { "find": "c", "batchSize": 2 }).await.unwrap();
            assert_eq!(first_batch(&found).len(), 2);
            open.push((database, cursor_id(&found)));
        }
    }
    // Another socket of the same listener goes on with them.
    let mut other = connect(proxy.address()).await;
    for (database, id) in &open {
        let more = other.command(database, doc! { "getMore": *id, "collection": "c", "batchSize": 2 }).await.unwrap();
        assert_eq!(next_batch(&more).len(), 2, "{database}");
        assert!(!has_time(&more), "{more}");
    }
    for (database, id) in open {
        let wrong = if database == "app" { "logs" } else { "app" };
        let kill = doc! { "killCursors": "c", "cursors": [id] };
        let missed = other.command(wrong, kill.clone()).await.unwrap();
        assert_eq!(missed.get_array("cursorsNotFound").unwrap(), &[Bson::from(id)], "it is not of that database");
        let killed = other.command(database, kill).await.unwrap();
        assert_eq!(killed.get_array("cursorsKilled").unwrap(), &[Bson::from(id)], "{killed}");
        assert!(!has_time(&killed), "{killed}");
    }
}

#[tokio::test]
async fn transactions_run_on_both_and_none_takes_in_both() {
    let (users, logs, proxy) = two_sets().await;
    let client = Client::with_uri_str(proxy.uri()).await.unwrap();
    let collection = |database: &str| client.database(database).collection::<Document>("c");
    for (round, database) in ["app", "logs", "app", "audit_1"].into_iter().enumerate() {
        let id = i32::try_from(round).unwrap();
        let mut session = client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        collection(database).insert_one(doc! { "_id": id }).session(&mut session).await.unwrap();
        collection(database).insert_one(doc! { "_id": id + 10 }).session(&mut session).await.unwrap();
        assert_eq!(collection(database).find_one(doc! { "_id": id }).await.unwrap(), None, "not committed yet");
        // One of the other cluster is refused by name, and the transaction goes on as if it had not been sent.
        let other = if database == "app" { "logs" } else { "app" };
        let refused = collection(other).insert_one(doc! { "_id": "stray" }).session(&mut session).await.unwrap_err();
        assert!(refused.to_string().contains("one transaction cannot take in both"), "{refused}");
        assert!(refused.labels().is_empty(), "nobody is to try again: {:?}", refused.labels());
        if round == 2 {
            session.abort_transaction().await.unwrap();
            assert_eq!(collection(database).find_one(doc! { "_id": id }).await.unwrap(), None);
        } else {
            session.commit_transaction().await.unwrap();
            // Repeated, as drivers do after a lost reply.
            session.commit_transaction().await.unwrap();
            assert!(collection(database).find_one(doc! { "_id": id }).await.unwrap().is_some());
        }
        assert_eq!(collection(other).find_one(doc! { "_id": "stray" }).await.unwrap(), None);
    }
    for deployment in [users, logs] {
        let status = doc! { "serverStatus": 1 };
        let status = support::client(&deployment.members()[0]).await.command("admin", status).await.unwrap();
        let open = status.get_document("transactions").unwrap().get_i64("currentOpen").unwrap();
        assert_eq!(open, 0, "no cluster has a transaction that nobody ends");
    }
}

#[tokio::test]
async fn no_cluster_hears_of_the_time_of_another() {
    let (users, logs, proxy) = two_sets().await;
    // The clock of one is far ahead, as if it had been written to much more.
    let ahead = Timestamp { time: now_seconds() + 200 * 24 * 3600, increment: 1 };
    let mut direct = support::client(&users.members()[0]).await;
    let signature = doc! { "hash": bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![0; 20] }, "keyId": 0_i64 };
    let gossip = doc! { "ping": 1, "$clusterTime": { "clusterTime": ahead, "signature": signature.clone() } };
    direct.command("admin", gossip).await.unwrap();
    direct.command("app", doc! { "insert": "c", "documents": [{ "_id": "tick" }] }).await.unwrap();
    assert!(cluster_time(&users).await >= ahead, "the server has taken it over");

    // A driver gossips what it hears on all its sockets, with sessions and without.
    let client = Client::with_uri_str(proxy.uri()).await.unwrap();
    let options = SessionOptions::builder().causal_consistency(true).build();
    let mut session = client.start_session().with_options(options).await.unwrap();
    for round in 0..5_u32 {
        for database in ["app", "logs"] {
            let collection = client.database(database).collection::<Document>("c");
            collection.insert_one(doc! { "_id": round }).session(&mut session).await.unwrap();
            let majority = ReadConcern::majority();
            let found = collection.find_one(doc! { "_id": round }).read_concern(majority).session(&mut session);
            assert!(found.await.unwrap().is_some());
            let anywhere =
                SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Nearest { options: None });
            let counted = collection.count_documents(doc! {}).selection_criteria(anywhere).await.unwrap();
            assert!(counted > u64::from(round));
            assert!(session.cluster_time().is_none(), "a session has learnt a time: {:?}", session.cluster_time());
        }
    }
    // One that comes anyway, as from a client that knew the cluster before.
    let mut raw = connect(proxy.address()).await;
    let foreign = doc! { "insert": "c", "documents": [{ "_id": "raw" }], "maxTimeMS": 60_000,
    "$clusterTime": { "clusterTime": ahead, "signature": signature } };
    let reply = raw.command("logs", foreign).await.unwrap();
    assert_eq!((reply.get_i32("n").unwrap(), has_time(&reply)), (1, false), "{reply}");
    let failed = raw.reply("logs", doc! { "insert": "c", "documents": [{ "_id": "raw" }] }).await.unwrap();
    assert!(failed.contains_key("writeErrors") && !has_time(&failed), "{failed}");
    assert!(cluster_time(&logs).await < ahead, "the time of one cluster has reached the other");
}

fn now_seconds() -> u32 {
    u32::try_from(bson::DateTime::now().timestamp_millis() / 1000).unwrap()
}

async fn cluster_time(deployment: &Deployment) -> Timestamp {
    let reply = support::client(&deployment.members()[0]).await.command("admin", doc! { "ping": 1 }).await.unwrap();
    reply.get_document("$clusterTime").unwrap().get_timestamp("clusterTime").unwrap()
}

#[tokio::test]
async fn a_listener_of_one_cluster_passes_its_time() {
    let users = support::replica_set(1).await;
    let proxy = support::proxy::proxy(&users.uri(), "").await;
    let reply = connect(proxy.address()).await.command("app", insert(1)).await.unwrap();
    assert!(reply.contains_key("$clusterTime") && reply.contains_key("operationTime"), "{reply}");
}

/// Adds finds that will not be answered yet.
fn add_finds(pending: &mut JoinSet<Document>, count: usize, address: &Address) {
    for _ in 0..count {
        let address = address.clone();
        pending.spawn(async move { connect(&address).await.reply("logs", doc! { "find": "c" }).await.unwrap() });
    }
}

#[tokio::test]
async fn one_cluster_never_waits_for_another_whose_queue_is_full() {
    let (users, logs) = tokio::join!(support::replica_set(1), support::replica_set(1));
    let proxy = front(&users.uri(), &logs.uri(), "max_pool_size = 2\nwait_queue_size = 4").await;
    let hold = hold_finds(&logs.members()[0], "logs.c").await;
    let address = proxy.address();
    let mut pending = JoinSet::new();
    add_finds(&mut pending, 2, address);
    hold.reaches(2).await;
    let logs_cluster = &proxy.clusters()[1];
    add_finds(&mut pending, 4, address);
    eventually("four commands wait", async || logs_cluster.admission.waiting() == 4).await;
    let shed = connect(address).await.reply("logs", doc! { "find": "c" }).await.unwrap();
    assert_eq!(shed.get_i32("code").unwrap(), 462, "its own queue is full: {shed}");

    // Far more than the other cluster lets wait, over new sockets and over one that was just refused.
    let mut client = connect(address).await;
    assert_eq!(client.reply("audit_1", doc! { "find": "c" }).await.unwrap().get_i32("code").unwrap(), 462);
    client.command("app", insert(3)).await.unwrap();
    let finds = (0..20).map(|_| async { connect(address).await.command("app", doc! { "find": "c" }).await.unwrap() });
    for found in timeout(PATIENCE, join_all(finds)).await.expect("nobody waits for the other cluster") {
        assert_eq!(first_batch(&found).len(), 3);
    }
    assert_eq!(proxy.clusters()[0].admission.waiting(), 0);
    assert_eq!(logs_cluster.admission.waiting(), 4, "all of them wait still");
    hold.release().await;
    for found in pending.join_all().await {
        assert_eq!(found.get_f64("ok").unwrap(), 1.0, "{found}");
    }
}

#[tokio::test]
async fn one_cluster_serves_while_another_hangs_or_is_not_there() {
    let (users, logs) = tokio::join!(support::replica_set(1), support::replica_set(1));
    let proxy = front(&users.uri(), &logs.uri(), "").await;
    let address = proxy.address();
    connect(address).await.command("logs", insert(1)).await.unwrap();
    logs.members()[0].pause().await.unwrap();
    let mut hanging = JoinSet::new();
    add_finds(&mut hanging, 4, address);
    serves(address, &mut hanging).await;
    logs.members()[0].resume().unwrap();

    // Nobody listens there from the start: clients are greeted, and served where somebody is.
    let (listener, port) = scripted::listen(None);
    drop(listener);
    let proxy = front(&users.uri(), &format!("mongodb://127.0.0.1:{port}/?replicaSet=none"), "").await;
    let mut waiting = JoinSet::new();
    add_finds(&mut waiting, 4, proxy.address());
    serves(proxy.address(), &mut waiting).await;
    let stats = http(proxy.admin_address(), "GET", "/stats", "").await;
    let (_, body) = stats.split_once("\r\n\r\n").unwrap();
    let stats: serde_json::Value = serde_json::from_str(body).unwrap();
    let status = |index: usize| (stats["clusters"][index]["name"].clone(), stats["clusters"][index]["status"].clone());
    assert_eq!(status(0), ("users".into(), "healthy".into()));
    assert_eq!(status(1), ("logs".into(), "down".into()));
}

/// Fails if a command for the first cluster waits until one of the others is answered.
async fn serves(address: &Address, others: &mut JoinSet<Document>) {
    let work = async {
        let mut client = connect(address).await;
        let driver = Client::with_uri_str(format!("mongodb://{address}/")).await.unwrap();
        for round in 0..20 {
            client.command("app", doc! { "find": "c", "filter": { "_id": round } }).await.unwrap();
            driver.database("app").collection::<Document>("c").find_one(doc! {}).await.unwrap();
        }
    };
    tokio::select! {
        biased;
        other = others.join_next() => panic!("too late, this was answered before: {other:?}"),
        () = work => {}
    }
}

/// A mongos that says in each reply which one it is, and remembers what it was asked.
struct Told {
    name: &'static str,
    uri: String,
    asked: Arc<Mutex<Vec<Document>>>,
    _tasks: JoinSet<()>,
}

/// The number of every cursor of a bulkWrite there.
const BULK_CURSOR: i64 = 4711;

impl Told {
    fn start(name: &'static str) -> Self {
        let (listener, port) = scripted::listen(None);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (uri, all) = (format!("mongodb://127.0.0.1:{port}/"), asked.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let asked = all.clone();
                connections.spawn(async move {
                    while let Some(message) = scripted::read_message(&mut stream).await {
                        let reply = if scripted::is_hello(&scripted::command_name(&message)) {
                            scripted::mongos_hello()
                        } else {
                            let command = scripted::document(&message);
                            let reply = reply_of(name, &command);
                            asked.lock().unwrap().push(command);
                            reply
                        };
                        if stream.write_all(&scripted::answer(&message, &reply)).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { name, uri, asked, _tasks: tasks }
    }

    /// The commands of these names so far.
    fn asked(&self, names: &[&str]) -> Vec<Document> {
        let asked = self.asked.lock().unwrap();
        let of_these = |command: &&Document| names.contains(&command.keys().next().map_or("", String::as_str));
        asked.iter().filter(of_these).cloned().collect()
    }
}

fn reply_of(name: &str, command: &Document) -> Document {
    let time = Timestamp { time: 7, increment: 1 };
    let mut reply = match command.keys().next().map(String::as_str) {
        Some("bulkWrite") => doc! { "cursor": { "id": BULK_CURSOR, "ns": "admin.$cmd.bulkWrite", "firstBatch": [] } },
        Some("getMore") => doc! { "cursor": { "id": BULK_CURSOR, "ns": "admin.$cmd.bulkWrite", "nextBatch": [] } },
        Some("killCursors") => doc! { "cursorsKilled": command.get_array("cursors").unwrap().clone() },
        _ => doc! {},
    };
    reply.extend(doc! { "me": name, "$clusterTime": { "clusterTime": time }, "operationTime": time, "ok": 1.0 });
    reply
}

async fn who(client: &mut WireClient, database: &str, command: Document) -> String {
    let reply = client.command(database, command).await.unwrap();
    assert!(!has_time(&reply), "{reply}");
    reply.get_str("me").unwrap().to_owned()
}

#[tokio::test]
async fn commands_on_admin_go_where_they_belong() {
    let (users, logs) = (Told::start("users"), Told::start("logs"));
    let proxy = front(&users.uri, &logs.uri, "").await;
    let mut client = connect(proxy.address()).await;

    // The end of a transaction goes where it began; statements too, whatever else has its session.
    for (database, owner) in [("logs", &logs), ("app", &users), ("audit_x", &logs)] {
        for end in ["commitTransaction", "abortTransaction"] {
            let fields = doc! { "lsid": new_lsid(), "txnNumber": 1_i64, "autocommit": false };
            let with = |mut command: Document| {
                command.extend(fields.clone());
                command
            };
            let first = with(doc! { "insert": "c", "documents": [{}], "startTransaction": true });
            assert_eq!(who(&mut client, database, first.clone()).await, owner.name);
            let other = if database == "app" { "logs" } else { "app" };
            let statement = with(doc! { "find": "c" });
            let refused = client.reply(other, statement.clone()).await.unwrap();
            assert_eq!(refused.get_i32("code").unwrap(), 263, "{refused}");
            let refused = client.reply(other, first).await.unwrap();
            assert_eq!(refused.get_i32("code").unwrap(), 263, "nor may it begin a second time there: {refused}");
            assert_eq!(who(&mut client, database, statement).await, owner.name);
            // Twice: a commit may be repeated.
            for _ in 0..2 {
                assert_eq!(who(&mut client, "admin", with(doc! { end: 1 })).await, owner.name);
            }
        }
    }
    let unknown = doc! { "lsid": new_lsid(), "txnNumber": 9_i64, "autocommit": false };
    let (mut commit, mut abort) = (doc! { "commitTransaction": 1 }, doc! { "abortTransaction": 1 });
    commit.extend(unknown.clone());
    abort.extend(unknown);
    let refused = client.reply("admin", commit).await.unwrap();
    assert_eq!(refused.get_i32("code").unwrap(), 50, "nobody knows how it ended: {refused}");
    assert!(support::labels(&refused).is_empty(), "{refused}");
    let refused = client.reply("admin", abort).await.unwrap();
    assert_eq!(refused.get_i32("code").unwrap(), 251, "there is nothing to lose, and nobody to ask: {refused}");

    // bulkWrite by the namespaces that it names, in either form, and its cursor with it.
    let ops = vec![doc! { "insert": 0, "document": {} }];
    let named = |namespaces: &[&str]| -> Vec<Document> { namespaces.iter().map(|ns| doc! { "ns": *ns }).collect() };
    for (namespace, owner) in [("logs.c", "logs"), ("app.c", "users")] {
        let body = doc! { "bulkWrite": 1, "ops": ops.clone(), "nsInfo": named(&[namespace]) };
        assert_eq!(who(&mut client, "admin", body).await, owner);
        let request = Request::new("admin", doc! { "bulkWrite": 1 });
        let request = request.sequence("ops", ops.clone()).sequence("nsInfo", named(&[namespace, namespace]));
        let reply = client.exchange(&request).await.unwrap().document().unwrap();
        assert_eq!(reply.get_str("me").unwrap(), owner);
        let more = doc! { "getMore": BULK_CURSOR, "collection": "$cmd.bulkWrite" };
        assert_eq!(who(&mut client, "admin", more).await, owner);
        let kill = doc! { "killCursors": "$cmd.bulkWrite", "cursors": [BULK_CURSOR] };
        client.command("admin", kill).await.unwrap();
        let last = if owner == "logs" { &logs } else { &users };
        assert_eq!(last.asked(&["killCursors"]).len(), 1);
    }
    let across = doc! { "bulkWrite": 1, "ops": ops, "nsInfo": named(&["app.c", "logs.c"]) };
    assert_eq!(client.reply("admin", across).await.unwrap().get_i32("code").unwrap(), 20);

    // News of sessions to all; everything else to the first.
    let sessions = vec![new_lsid()];
    for name in ["refreshSessions", "killSessions"] {
        assert_eq!(who(&mut client, "admin", doc! { name: sessions.clone() }).await, "users");
    }
    client.command("admin", doc! { "endSessions": sessions }).await.unwrap();
    for cluster in [&users, &logs] {
        let names = ["refreshSessions", "killSessions", "endSessions"];
        eventually("all clusters have heard of it", async || cluster.asked(&names).len() == 3).await;
    }
    for name in ["serverStatus", "listDatabases", "getParameter", "madeUp"] {
        assert_eq!(who(&mut client, "admin", doc! { name: 1 }).await, "users");
        assert_eq!(who(&mut client, "config", doc! { name: 1 }).await, "users");
    }
    let pools = client.command("admin", doc! { "connPoolStats": 1 }).await.unwrap();
    assert_eq!(pools.get_document("hosts").unwrap().len(), 2, "{pools}");
    for cluster in [&users, &logs] {
        assert!(cluster.asked.lock().unwrap().iter().all(|command| !command.contains_key("$clusterTime")));
    }
}

#[tokio::test]
async fn the_same_server_counts_in_each_cluster_for_itself() {
    let server = Told::start("both");
    let proxy = front(&server.uri, &server.uri, "max_pool_size = 3").await;
    let mut client = connect(proxy.address()).await;
    for database in ["app", "logs"] {
        client.command(database, doc! { "find": "c" }).await.unwrap();
    }
    let address = proxy.clusters()[0].servers()[0].address.to_string();
    let page = async || http(proxy.admin_address(), "GET", "/metrics", "").await;
    let connections = async |cluster: &str| {
        let labels = format!("{{cluster=\"{cluster}\",server=\"{address}\",state=\"available\"}} 2");
        page().await.contains(&format!("mongomux_upstream_connections{labels}\n"))
    };
    for (cluster, most) in [("users", 10), ("logs", 3)] {
        eventually("its pool is filled", async || connections(cluster).await).await;
        let max = format!("mongomux_upstream_connections_max{{cluster=\"{cluster}\",server=\"{address}\"}} {most}\n");
        assert!(page().await.contains(&max), "{max}");
    }
    let pools = client.command("admin", doc! { "connPoolStats": 1 }).await.unwrap();
    let hosts = pools.get_document("hosts").unwrap();
    assert_eq!(hosts.len(), 1, "one host, with the connections of both: {pools}");
    assert_eq!(hosts.get_document(&address).unwrap().get_i32("available").unwrap(), 4, "{pools}");
    assert_eq!(pools.get_i32("totalAvailable").unwrap(), 4, "{pools}");
}

#[tokio::test]
async fn open_transactions_are_kept_in_each_cluster_as_long_as_their_socket_and_no_longer() {
    let (users, logs) = (Told::start("users"), Told::start("logs"));
    let proxy = front(&users.uri, &logs.uri, "").await;
    let begin = async |client: &mut WireClient, database: &str, number: i64| {
        let fields = doc! { "lsid": new_lsid(), "txnNumber": number, "autocommit": false, "startTransaction": true };
        let mut first = doc! { "insert": "c", "documents": [{}] };
        first.extend(fields);
        client.command(database, first).await.unwrap();
    };
    let aborted = |cluster: &Told| -> BTreeSet<i64> {
        let aborts = cluster.asked(&["abortTransaction"]);
        aborts.iter().map(|abort| abort.get_i64("txnNumber").unwrap()).collect()
    };
    let (mut kept, mut lost) = (connect(proxy.address()).await, connect(proxy.address()).await);
    for (number, database) in [(1, "app"), (2, "logs"), (3, "app"), (4, "logs")] {
        begin(&mut kept, database, number).await;
    }
    begin(&mut lost, "app", 5).await;
    begin(&mut lost, "logs", 6).await;
    lost.reset().unwrap();
    eventually("those of the lost socket are aborted", async || {
        !aborted(&users).is_empty() && !aborted(&logs).is_empty()
    })
    .await;
    // By now those of the other one, which are older, would be as well.
    assert_eq!((aborted(&users), aborted(&logs)), (BTreeSet::from([5]), BTreeSet::from([6])));
    kept.reset().unwrap();
    eventually("all are aborted", async || (aborted(&users).len(), aborted(&logs).len()) == (3, 3)).await;
}
