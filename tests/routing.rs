//! Every command reaches a server that may carry it out, and what continues one goes where that one went.
//!
//! Which member did what is asked of the members themselves, through their profilers.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bson::{Bson, Document, doc};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::WireClient;
use mongomux::tasks::Tasks;
use support::hold::eventually;
use support::proxy::{Proxy, proxy};
use support::{code_and_labels, connect, first_batch, new_lsid, next_batch, scripted};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Round trips on a busy machine say nothing about who is near; and who finds no server must not wait long.
const SETTINGS: &str = "local_threshold_ms = 60_000\nserver_selection_timeout_ms = 2_000\nmin_pool_size = 0";

/// The tag `dc` of each member.
const CENTRES: [&str; 3] = ["north", "east", "west"];

/// A set of three with tags and profilers, and a proxy that knows of both.
struct Set {
    deployment: Deployment,
    proxy: Proxy,
    primary: usize,
}

impl Set {
    async fn start() -> Self {
        let deployment = support::replica_set(3).await;
        let primary = deployment.primary().await.expect("a primary");
        let mut admin = support::client(&deployment.members()[primary]).await;
        let config = admin.command("admin", doc! { "replSetGetConfig": 1 }).await.unwrap();
        let mut config = config.get_document("config").unwrap().clone();
        for (member, centre) in config.get_array_mut("members").unwrap().iter_mut().zip(CENTRES) {
            let Bson::Document(member) = member else { panic!("{member}") };
            member.insert("tags", doc! { "dc": centre, "on": "loopback" });
        }
        config.insert("version", config.get_i32("version").unwrap() + 1);
        admin.command("admin", doc! { "replSetReconfig": config, "force": true }).await.unwrap();
        for member in deployment.members() {
            let profile = doc! { "profile": 2, "slowms": 0 };
            support::client(member).await.command("test", profile).await.unwrap();
        }
        deployment.await_members().await.unwrap();
        assert_eq!(deployment.primary().await, Some(primary), "no election has a reason here");
        let proxy = proxy(&deployment.uri(), SETTINGS).await;
        eventually("all members with their tags", async || {
            let topology = proxy.clusters()[0].topology();
            let tagged = topology.data_bearing().filter(|server| !server.tags.is_empty()).count();
            tagged == 3 && topology.primary().is_some()
        })
        .await;
        Self { deployment, proxy, primary }
    }

    async fn client(&self) -> WireClient {
        connect(self.proxy.address()).await
    }

    fn secondaries(&self) -> Vec<usize> {
        (0..3).filter(|index| *index != self.primary).collect()
    }

    /// What each member did on a collection of `test` for the proxy, by member: names of commands.
    async fn done(&self, collection: &str) -> Vec<(usize, String)> {
        let mut done = Vec::new();
        for (index, member) in self.deployment.members().iter().enumerate() {
            if member.pid().is_none() {
                continue;
            }
            let filter = doc! { "ns": format!("test.{collection}"), "appName": "mongomux" };
            let find = doc! {
                "find": "system.profile", "filter": filter, "batchSize": 10_000,
                "$readPreference": { "mode": "secondaryPreferred" },
            };
            let reply = support::client(member).await.command("test", find).await.unwrap();
            for entry in first_batch(&reply) {
                let command = entry.get_document("command").ok().and_then(|command| command.keys().next().cloned());
                done.push((index, command.unwrap_or_else(|| entry.get_str("op").unwrap().to_owned())));
            }
        }
        done
    }

    async fn members_that_worked_on(&self, collection: &str) -> BTreeSet<usize> {
        self.done(collection).await.into_iter().map(|(member, _)| member).collect()
    }
}

fn set(members: &[usize]) -> BTreeSet<usize> {
    members.iter().copied().collect()
}

#[tokio::test]
async fn a_replica_set_is_read_and_written_where_each_command_belongs() {
    let mut set = Set::start().await;
    reads_follow_their_preference(&set).await;
    writes_go_to_the_primary_whatever_they_prefer(&set).await;
    impossible_preferences_are_refused(&set).await;
    cursors_are_continued_and_killed_where_they_live(&set).await;
    without_a_primary_only_reads_that_may_go_elsewhere_do(&mut set).await;
}

async fn reads_follow_their_preference(it: &Set) {
    let mut client = it.client().await;
    let (primary, secondaries, all) = (set(&[it.primary]), set(&it.secondaries()), set(&[0, 1, 2]));
    let first = it.secondaries()[0];
    let here = |index: usize| doc! { "dc": CENTRES[index] };
    let nowhere = doc! { "dc": "nowhere" };
    let cases: Vec<(&str, Option<Document>, &BTreeSet<usize>)> = vec![
        ("none", None, &primary),
        ("primary", Some(doc! { "mode": "primary" }), &primary),
        ("primary_preferred", Some(doc! { "mode": "primaryPreferred" }), &primary),
        ("secondary", Some(doc! { "mode": "secondary" }), &secondaries),
        ("secondary_preferred", Some(doc! { "mode": "secondaryPreferred" }), &secondaries),
        ("nearest", Some(doc! { "mode": "nearest" }), &all),
        ("fresh", Some(doc! { "mode": "secondary", "maxStalenessSeconds": 120 }), &secondaries),
        ("all_tags", Some(doc! { "mode": "nearest", "tags": [{ "on": "loopback" }] }), &all),
        ("else_primary", Some(doc! { "mode": "secondaryPreferred", "tags": [nowhere.clone()] }), &primary),
        ("else_any", Some(doc! { "mode": "secondary", "tags": [nowhere.clone(), {}] }), &secondaries),
        ("tagged_primary", Some(doc! { "mode": "nearest", "tags": [here(it.primary)] }), &primary),
    ];
    for (name, preference, expected) in &cases {
        let mut find = doc! { "find": *name };
        find.extend(preference.clone().map(|preference| doc! { "$readPreference": preference }).unwrap_or_default());
        // With three to choose from, sixty reads miss one of them once in many billions of runs.
        for _ in 0..60 {
            client.command("test", find.clone()).await.unwrap();
        }
        assert_eq!(it.members_that_worked_on(name).await, **expected, "{name}");
    }
    let only_first = set(&[first]);
    let preference = doc! { "mode": "secondary", "tags": [nowhere, here(first)] };
    let reads = [
        doc! { "find": "tags" },
        doc! { "aggregate": "tags", "pipeline": [{ "$match": { "x": 1 } }], "cursor": {} },
        doc! { "count": "tags" },
        doc! { "distinct": "tags", "key": "x" },
        doc! { "explain": { "find": "tags" } },
    ];
    for mut read in reads {
        read.insert("$readPreference", preference.clone());
        client.command("test", read).await.unwrap();
    }
    let done = it.done("tags").await;
    assert_eq!(done.iter().map(|(member, _)| *member).collect::<BTreeSet<_>>(), only_first, "{done:?}");
    assert!(done.len() >= 5, "{done:?}");
}

async fn writes_go_to_the_primary_whatever_they_prefer(it: &Set) {
    let mut client = it.client().await;
    let writes = [
        doc! { "insert": "written", "documents": [{ "_id": 1, "n": 0 }] },
        doc! { "update": "written", "updates": [{ "q": { "_id": 1 }, "u": { "$inc": { "n": 1 } } }] },
        doc! { "findAndModify": "written", "query": { "_id": 1 }, "update": { "$inc": { "n": 1 } } },
        doc! { "aggregate": "written", "pipeline": [{ "$out": "copied" }], "cursor": {} },
        doc! { "aggregate": "written", "pipeline": [{ "$merge": { "into": "merged" } }], "cursor": {} },
        doc! { "createIndexes": "written", "indexes": [{ "key": { "n": 1 }, "name": "n" }] },
        doc! { "delete": "written", "deletes": [{ "q": { "_id": 1 }, "limit": 1 }] },
    ];
    for mut write in writes {
        write.insert("$readPreference", doc! { "mode": "secondary" });
        client.command("test", write).await.unwrap();
    }
    let done = it.done("written").await;
    assert!(done.iter().all(|(member, _)| *member == it.primary), "{done:?}");
    assert!(done.iter().filter(|(_, command)| command == "aggregate").count() == 2, "{done:?}");
    for copy in ["copied", "merged"] {
        assert_eq!(client.command("test", doc! { "count": copy }).await.unwrap().get_i32("n").unwrap(), 1, "{copy}");
    }
}

async fn impossible_preferences_are_refused(it: &Set) {
    let mut client = it.client().await;
    for (preference, code) in [
        (doc! { "mode": "secondary", "maxStalenessSeconds": 89 }, 160),
        (doc! { "mode": "primary", "tags": [{ "dc": "east" }] }, 2),
        (doc! { "mode": "somewhere" }, 2),
        // Nobody has such tags: after `server_selection_timeout_ms` that is trouble upstream.
        (doc! { "mode": "secondary", "tags": [{ "dc": "nowhere" }] }, 6),
    ] {
        let find = doc! { "find": "impossible", "$readPreference": preference };
        let reply = client.reply("test", find.clone()).await.unwrap();
        assert_eq!(code_and_labels(&reply), (code, vec![]), "{find} {reply}");
    }
    assert_eq!(it.members_that_worked_on("impossible").await, set(&[]));
    client.command("test", doc! { "ping": 1 }).await.unwrap();
}

async fn cursors_are_continued_and_killed_where_they_live(it: &Set) {
    let mut client = it.client().await;
    let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": id }).collect();
    let concern = doc! { "w": 3, "wtimeout": 20_000 };
    let insert = doc! { "insert": "many", "documents": documents, "writeConcern": concern };
    client.command("test", insert).await.unwrap();
    let open = async |client: &mut WireClient, member: usize| {
        let preference = doc! { "mode": "secondary", "tags": [{ "dc": CENTRES[member] }] };
        let find = doc! { "find": "many", "sort": { "_id": 1 }, "batchSize": 2, "$readPreference": preference };
        let reply = client.command("test", find).await.unwrap();
        assert_eq!(first_batch(&reply).len(), 2);
        reply.get_document("cursor").unwrap().get_i64("id").unwrap()
    };
    let secondaries = it.secondaries();
    let mut cursors = Vec::new();
    for member in &secondaries {
        cursors.push(open(&mut client, *member).await);
        cursors.push(open(&mut client, *member).await);
    }
    // A client's other socket, with another preference or none: only the cursor counts.
    let mut other = it.client().await;
    for cursor in &cursors {
        let more = doc! { "getMore": cursor, "collection": "many", "batchSize": 3 };
        let reply = other.command("test", more).await.unwrap();
        let ids: Vec<i32> = next_batch(&reply).iter().map(|it| it.get_i32("_id").unwrap()).collect();
        assert_eq!(ids, [2, 3, 4]);
    }
    let continued: Vec<usize> =
        it.done("many").await.into_iter().filter(|(_, command)| command == "getMore").map(|(it, _)| it).collect();
    assert_eq!(continued, [secondaries[0], secondaries[0], secondaries[1], secondaries[1]]);

    let (unknown, spared) = (0x7777_i64, cursors.pop().unwrap());
    let mut ids = cursors.clone();
    ids.push(unknown);
    let reply = other.command("test", doc! { "killCursors": "many", "cursors": ids }).await.unwrap();
    let listed = |name: &str| -> BTreeSet<i64> {
        reply.get_array(name).unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
    };
    assert_eq!(listed("cursorsKilled"), cursors.iter().copied().collect());
    assert_eq!(listed("cursorsNotFound"), BTreeSet::from([unknown]));
    assert!(listed("cursorsAlive").is_empty() && listed("cursorsUnknown").is_empty(), "{reply}");
    for (index, cursor) in cursors.iter().enumerate() {
        let member = &it.deployment.members()[secondaries[index / 2]];
        let more = doc! { "getMore": cursor, "collection": "many" };
        let gone = support::client(member).await.command("test", more.clone()).await.unwrap_err();
        assert_eq!(gone.code(), Some(43), "the member itself says so");
        assert_eq!(client.command("test", more).await.unwrap_err().code(), Some(43));
    }
    let more = doc! { "getMore": spared, "collection": "many", "batchSize": 100 };
    let rest = client.command("test", more).await.unwrap();
    assert_eq!(next_batch(&rest).len(), 15, "the one that was not named lives");
}

async fn without_a_primary_only_reads_that_may_go_elsewhere_do(it: &mut Set) {
    let (primary, secondaries) = (it.primary, it.secondaries());
    for member in &secondaries {
        let mut member = support::client(&it.deployment.members()[*member]).await;
        member.command("admin", doc! { "replSetFreeze": 600 }).await.unwrap();
    }
    it.deployment.member(primary).kill().await.unwrap();
    let mut client = it.client().await;
    for mode in ["primaryPreferred", "secondary", "secondaryPreferred", "nearest"] {
        let find = doc! { "find": "no_primary", "$readPreference": { "mode": mode } };
        client.command("test", find).await.unwrap_or_else(|error| panic!("{mode}: {error}"));
    }
    assert!(it.members_that_worked_on("no_primary").await.is_subset(&set(&secondaries)));
    let reply = client.reply("test", doc! { "find": "no_primary" }).await.unwrap();
    assert_eq!(code_and_labels(&reply), (6, vec![]), "{reply}");
    let text = reply.get_str("errmsg").unwrap();
    let lost = it.deployment.members()[primary].address().to_string();
    assert!(text.contains("no primary") && text.contains(&lost), "{text}");

    // One that waits long enough sees the next primary.
    let patient = proxy(&it.deployment.uri(), "server_selection_timeout_ms = 30_000").await;
    let mut patient_client = connect(patient.address()).await;
    let insert = doc! { "insert": "no_primary", "documents": [{ "_id": 1 }] };
    let thaw = async {
        for member in &secondaries {
            let mut member = support::client(&it.deployment.members()[*member]).await;
            member.command("admin", doc! { "replSetFreeze": 0 }).await.unwrap();
        }
    };
    let (inserted, ()) = tokio::join!(patient_client.command("test", insert), thaw);
    assert_eq!(inserted.unwrap().get_i32("n").unwrap(), 1);
}

/// A mongos that repeats every command, and says which mongos it is. A command says in its `comment` what else it is
/// answered.
struct Mongos {
    port: u16,
    seen: Arc<Mutex<Vec<Document>>>,
    ended: watch::Sender<bool>,
    /// Lets nobody in but monitoring.
    shut: watch::Sender<bool>,
}

impl Mongos {
    fn start() -> Self {
        let (listener, port) = scripted::listen(None);
        let (ended, shut) = (watch::Sender::new(false), watch::Sender::new(false));
        let mongos = Self { port, seen: Arc::default(), ended, shut };
        let (seen, mut ended, shut) = (mongos.seen.clone(), mongos.ended.subscribe(), mongos.shut.subscribe());
        let tasks = Tasks::new();
        tasks.clone().spawn("mongos", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = ended.wait_for(|ended| *ended) => return,
                };
                let (stream, seen, mut ended, shut) = (accepted.unwrap().0, seen.clone(), ended.clone(), shut.clone());
                tasks.spawn("mongos connection", async move {
                    tokio::select! {
                        () = serve_mongos(stream, port, &seen, shut) => {}
                        _ = ended.wait_for(|ended| *ended) => {}
                    }
                });
            }
        });
        mongos
    }

    fn end(&self) {
        self.ended.send_replace(true);
    }

    fn seen(&self, command: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|document| document.keys().next().is_some_and(|name| name == command)).count()
    }
}

async fn serve_mongos(mut stream: TcpStream, port: u16, seen: &Mutex<Vec<Document>>, mut shut: watch::Receiver<bool>) {
    while let Some(message) = scripted::read_message(&mut stream).await {
        let document = scripted::document(&message);
        if !scripted::is_monitor(&document) && scripted::is_hello(&scripted::command_name(&message)) {
            shut.wait_for(|shut| !*shut).await.unwrap();
        }
        let reply = if scripted::is_hello(&scripted::command_name(&message)) {
            scripted::mongos_hello()
        } else {
            seen.lock().unwrap().push(document.clone());
            let more = document.get_document("comment").cloned().unwrap_or_default();
            let mut reply = doc! { "echo": document, "mongos": i32::from(port), "ok": 1.0 };
            reply.extend(more);
            reply
        };
        if stream.write_all(&scripted::answer(&message, &reply)).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_mongos_gets_commands_as_they_are_and_keeps_its_transactions() {
    let mongos = [Mongos::start(), Mongos::start()];
    let uri = format!("mongodb://127.0.0.1:{},127.0.0.1:{}/", mongos[0].port, mongos[1].port);
    let settings = "local_threshold_ms = 60_000\nheartbeat_frequency_ms = 500";
    let proxy = proxy(&uri, settings).await;
    let mut client = connect(proxy.address()).await;
    let hello = client.command("admin", doc! { "hello": 1 }).await.unwrap();
    assert_eq!(hello.get_str("msg").unwrap(), "isdbgrid");
    assert!(!hello.contains_key("setName") && !hello.contains_key("topologyVersion"), "{hello}");
    eventually("both mongos", async || proxy.clusters()[0].topology().data_bearing().count() == 2).await;

    // What a mongos does with a preference is its own business.
    let preference = doc! {
        "mode": "secondary", "tags": [{ "dc": "east" }, {}], "maxStalenessSeconds": 120, "hedge": { "enabled": true },
    };
    let find = doc! { "find": "c", "filter": { "x": 1 }, "$readPreference": preference };
    for _ in 0..40 {
        let reply = client.command("test", find.clone()).await.unwrap();
        let mut expected = find.clone();
        expected.insert("$db", "test");
        assert_eq!(reply.get_document("echo").unwrap(), &expected);
    }
    assert!(mongos.iter().all(|mongos| mongos.seen("find") > 0), "both carry reads");

    let mut homes = BTreeSet::new();
    for number in 1..=30_i64 {
        homes.insert(transaction(&proxy, &mut client, number).await);
    }
    assert_eq!(homes.len(), 2, "transactions are spread");
    assert_eq!(mongos.iter().map(|mongos| mongos.seen("commitTransaction")).sum::<usize>(), 30);

    // A mongos that ends takes no commit along: another one recovers it.
    let mut begin = begin(1, &new_lsid());
    let home = client.command("test", begin.clone()).await.unwrap().get_i32("mongos").unwrap();
    let gone = mongos.iter().find(|mongos| i32::from(mongos.port) == home).unwrap();
    gone.end();
    eventually("the loss of a mongos", async || proxy.clusters()[0].topology().data_bearing().count() == 1).await;
    begin.remove("startTransaction");
    let lost = client.reply("test", begin.clone()).await.unwrap();
    assert_eq!(code_and_labels(&lost), (251, vec!["TransientTransactionError".to_owned()]), "{lost}");
    let mut commit = doc! { "commitTransaction": 1, "recoveryToken": { "recoveryShardId": "shard1" } };
    commit.extend(begin.into_iter().filter(|(name, _)| ["lsid", "txnNumber", "autocommit"].contains(&&**name)));
    let committed = client.command("admin", commit).await.unwrap();
    assert_ne!(committed.get_i32("mongos").unwrap(), home);
    assert!(committed.get_document("echo").unwrap().contains_key("recoveryToken"));
    client.command("test", doc! { "find": "c" }).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_warm_yet_gets_no_load_that_another_can_take() {
    let mongos = [Mongos::start(), Mongos::start()];
    mongos[1].shut.send_replace(true);
    let uri = format!("mongodb://127.0.0.1:{},127.0.0.1:{}/", mongos[0].port, mongos[1].port);
    let proxy = proxy(&uri, "local_threshold_ms = 60_000\nheartbeat_frequency_ms = 500").await;
    let mut client = connect(proxy.address()).await;
    let recovering = || {
        let servers = proxy.clusters()[0].servers();
        servers.iter().filter(|server| server.pool.is_recovering()).count()
    };
    eventually("both mongos", async || proxy.clusters()[0].topology().data_bearing().count() == 2).await;
    eventually("a warm pool", async || recovering() == 1).await;
    for _ in 0..50 {
        client.command("test", doc! { "find": "c" }).await.unwrap();
    }
    assert_eq!((mongos[0].seen("find"), mongos[1].seen("find")), (50, 0));
    mongos[1].shut.send_replace(false);
    eventually("two warm pools", async || recovering() == 0).await;
    for _ in 0..100 {
        client.command("test", doc! { "find": "c" }).await.unwrap();
    }
    assert!(mongos[1].seen("find") > 0, "and then its share");
}

/// Ids are the servers' to choose. Where two choose the same, the second is killed, and the first goes on.
#[tokio::test]
async fn of_two_cursors_with_one_id_the_second_is_killed() {
    let mongos = [Mongos::start(), Mongos::start()];
    let uri = format!("mongodb://127.0.0.1:{},127.0.0.1:{}/", mongos[0].port, mongos[1].port);
    let proxy = proxy(&uri, "local_threshold_ms = 60_000\nheartbeat_frequency_ms = 500").await;
    let mut client = connect(proxy.address()).await;
    let find = doc! { "find": "c", "comment": { "cursor": { "id": 77_i64, "ns": "test.c", "firstBatch": [] } } };
    let first = client.command("test", find.clone()).await.unwrap().get_i32("mongos").unwrap();
    let refused = loop {
        let reply = client.reply("test", find.clone()).await.unwrap();
        if reply.get_f64("ok").unwrap() == 0.0 {
            break reply;
        }
        assert_eq!(reply.get_i32("mongos").unwrap(), first);
    };
    assert_eq!(code_and_labels(&refused), (6, vec![]), "{refused}");
    let [holder, other] = if i32::from(mongos[0].port) == first { [0, 1] } else { [1, 0] };
    eventually("the second is killed", async || mongos[other].seen("killCursors") == 1).await;
    let kill = mongos[other].seen.lock().unwrap().last().cloned().unwrap();
    assert_eq!(kill.get_str("killCursors").unwrap(), "c");
    assert_eq!(kill.get_array("cursors").unwrap(), &[Bson::from(77_i64)]);
    assert_eq!((mongos[holder].seen("killCursors"), proxy.pinned().0), (0, 1));
    for _ in 0..10 {
        let more = client.command("test", doc! { "getMore": 77_i64, "collection": "c" }).await.unwrap();
        assert_eq!(more.get_i32("mongos").unwrap(), first);
    }
}

fn begin(number: i64, lsid: &Document) -> Document {
    doc! {
        "insert": "c", "documents": [{ "_id": number }],
        "lsid": lsid, "txnNumber": number, "startTransaction": true, "autocommit": false,
    }
}

/// Runs a transaction between other commands and over two sockets; returns the mongos that had all of it.
async fn transaction(proxy: &Proxy, client: &mut WireClient, number: i64) -> i32 {
    let lsid = new_lsid();
    let mut other = connect(proxy.address()).await;
    let mut home = BTreeSet::new();
    let mut statement = begin(number, &lsid);
    home.insert(client.command("test", statement.clone()).await.unwrap().get_i32("mongos").unwrap());
    statement.remove("startTransaction");
    for turn in 0..3 {
        let socket = if turn == 1 { &mut *client } else { &mut other };
        socket.command("test", doc! { "count": "c" }).await.unwrap();
        home.insert(socket.command("test", statement.clone()).await.unwrap().get_i32("mongos").unwrap());
    }
    let commit = doc! {
        "commitTransaction": 1, "lsid": lsid, "txnNumber": number, "autocommit": false,
        "recoveryToken": { "recoveryShardId": "shard1" },
    };
    let committed = other.command("admin", commit).await.unwrap();
    home.insert(committed.get_i32("mongos").unwrap());
    assert!(committed.get_document("echo").unwrap().contains_key("recoveryToken"));
    assert_eq!(home.len(), 1, "one mongos has all of a transaction");
    home.into_iter().next().unwrap()
}
