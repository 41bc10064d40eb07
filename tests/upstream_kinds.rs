//! Upstreams of every kind but the usual one: mongos, servers of other releases, and a server behind a unix socket.
//!
//! Where there is no such server at hand a scripted one says what it is, and repeats what it is told.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeSet;

use bson::{Bson, Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::sandbox::wire_client::{Request, WireClient};
use support::echo::{self, Echo};
use support::hold::eventually;
use support::program::Program;
use support::proxy::{Proxy, proxy};
use support::{code_and_labels, connect, new_lsid, scripted};

/// Whoever is a moment slower is as good.
const SETTINGS: &str = "local_threshold_ms = 60_000\nheartbeat_frequency_ms = 500";

const TRANSIENT: &str = "TransientTransactionError";

/// Two of them, and a proxy that knows both.
async fn two_mongos() -> ([Echo; 2], Proxy) {
    both(Echo::mongos(), Echo::mongos()).await
}

async fn both(first: Echo, second: Echo) -> ([Echo; 2], Proxy) {
    let servers = [first, second];
    let proxy = proxy(&echo::uri(&servers), SETTINGS).await;
    knows(&proxy, 2).await;
    (servers, proxy)
}

async fn knows(proxy: &Proxy, servers: usize) {
    let known = || proxy.clusters()[0].topology().data_bearing().count();
    eventually(&format!("{servers} servers"), async || known() == servers).await;
}

#[tokio::test]
async fn a_mongos_gets_commands_as_they_are_and_keeps_its_transactions() {
    let (mongos, proxy) = two_mongos().await;
    let mut client = connect(proxy.address()).await;
    let hello = client.command("admin", doc! { "hello": 1 }).await.unwrap();
    assert_eq!(hello.get_str("msg").unwrap(), "isdbgrid");
    assert!(!hello.contains_key("setName") && !hello.contains_key("topologyVersion"), "{hello}");

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
    let home = client.command("test", begin.clone()).await.unwrap().get_i32("server").unwrap();
    let gone = mongos.iter().find(|mongos| i32::from(mongos.port) == home).unwrap();
    gone.end();
    knows(&proxy, 1).await;
    begin.remove("startTransaction");
    let lost = client.reply("test", begin.clone()).await.unwrap();
    assert_eq!(code_and_labels(&lost), (251, vec![TRANSIENT.to_owned()]), "{lost}");
    let mut commit = doc! { "commitTransaction": 1, "recoveryToken": { "recoveryShardId": "shard1" } };
    commit.extend(begin.into_iter().filter(|(name, _)| ["lsid", "txnNumber", "autocommit"].contains(&&**name)));
    let committed = client.command("admin", commit).await.unwrap();
    assert_ne!(committed.get_i32("server").unwrap(), home);
    assert!(committed.get_document("echo").unwrap().contains_key("recoveryToken"));
    client.command("test", doc! { "find": "c" }).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_warm_yet_gets_no_load_that_another_can_take() {
    let mongos = [Echo::mongos(), Echo::mongos()];
    mongos[1].shut.send_replace(true);
    let proxy = proxy(&echo::uri(&mongos), SETTINGS).await;
    let mut client = connect(proxy.address()).await;
    let recovering = || {
        let servers = proxy.clusters()[0].servers();
        servers.iter().filter(|server| server.pool.is_recovering()).count()
    };
    knows(&proxy, 2).await;
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
    let (mongos, proxy) = two_mongos().await;
    let mut client = connect(proxy.address()).await;
    let find = doc! { "find": "c", "comment": { "cursor": { "id": 77_i64, "ns": "test.c", "firstBatch": [] } } };
    let first = client.command("test", find.clone()).await.unwrap().get_i32("server").unwrap();
    let refused = loop {
        let reply = client.reply("test", find.clone()).await.unwrap();
        if reply.get_f64("ok").unwrap() == 0.0 {
            break reply;
        }
        assert_eq!(reply.get_i32("server").unwrap(), first);
    };
    assert_eq!(code_and_labels(&refused), (6, vec![]), "{refused}");
    let [holder, other] = if i32::from(mongos[0].port) == first { [0, 1] } else { [1, 0] };
    eventually("the second is killed", async || mongos[other].seen("killCursors") == 1).await;
    let kill = mongos[other].commands("killCursors").remove(0);
    assert_eq!(kill.get_str("killCursors").unwrap(), "c");
    assert_eq!(kill.get_array("cursors").unwrap(), &[Bson::from(77_i64)]);
    assert_eq!((mongos[holder].seen("killCursors"), proxy.pinned().0), (0, 1));
    for _ in 0..10 {
        let more = client.command("test", doc! { "getMore": 77_i64, "collection": "c" }).await.unwrap();
        assert_eq!(more.get_i32("server").unwrap(), first);
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
    home.insert(client.command("test", statement.clone()).await.unwrap().get_i32("server").unwrap());
    statement.remove("startTransaction");
    for turn in 0..3 {
        let socket = if turn == 1 { &mut *client } else { &mut other };
        socket.command("test", doc! { "count": "c" }).await.unwrap();
        home.insert(socket.command("test", statement.clone()).await.unwrap().get_i32("server").unwrap());
    }
    let commit = doc! {
        "commitTransaction": 1, "lsid": lsid, "txnNumber": number, "autocommit": false,
        "recoveryToken": { "recoveryShardId": "shard1" },
    };
    let committed = other.command("admin", commit).await.unwrap();
    home.insert(committed.get_i32("server").unwrap());
    assert!(committed.get_document("echo").unwrap().contains_key("recoveryToken"));
    assert_eq!(home.len(), 1, "one mongos has all of a transaction");
    home.into_iter().next().unwrap()
}

/// What lets another mongos recover a transaction passes both ways as it is, and an abort finds another one, too.
#[tokio::test]
async fn a_recovery_token_passes_and_an_abort_outlives_its_mongos() {
    let (mongos, proxy) = two_mongos().await;
    let mut client = connect(proxy.address()).await;
    let token = doc! { "recoveryShardId": "shard7", "more": [1, { "a": 1.5 }] };
    let lsid = new_lsid();
    let mut statement = begin(4, &lsid);
    statement.insert("comment", doc! { "recoveryToken": token.clone() });
    let begun = client.command("test", statement.clone()).await.unwrap();
    assert_eq!(begun.get_document("recoveryToken").unwrap(), &token);
    let home = begun.get_i32("server").unwrap();
    mongos.iter().find(|mongos| i32::from(mongos.port) == home).unwrap().end();
    knows(&proxy, 1).await;
    let abort = doc! {
        "abortTransaction": 1, "lsid": lsid, "txnNumber": 4_i64, "autocommit": false, "recoveryToken": token.clone(),
    };
    let aborted = client.command("admin", abort).await.unwrap();
    assert_ne!(aborted.get_i32("server").unwrap(), home);
    assert_eq!(aborted.get_document("echo").unwrap().get_document("recoveryToken").unwrap(), &token);
}

#[tokio::test]
async fn reads_and_writes_are_spread_and_cursors_stick() {
    let (mongos, proxy) = two_mongos().await;
    let (mut client, mut other) = (connect(proxy.address()).await, connect(proxy.address()).await);
    for id in 0..40 {
        client.command("test", doc! { "insert": "c", "documents": [{ "_id": id }] }).await.unwrap();
    }
    assert!(mongos.iter().all(|mongos| mongos.seen("insert") > 0), "both take writes");
    let mut homes = Vec::new();
    for id in 1..=40_i64 {
        let cursor = doc! { "id": id, "ns": "test.c", "firstBatch": [] };
        let found = client.command("test", doc! { "find": "c", "comment": { "cursor": cursor } }).await.unwrap();
        homes.push((id, found.get_i32("server").unwrap()));
    }
    assert_eq!(homes.iter().map(|(_, home)| home).collect::<BTreeSet<_>>().len(), 2, "cursors on both");
    for (turn, (id, home)) in homes.iter().cycle().take(120).enumerate() {
        let socket = if turn % 2 == 0 { &mut client } else { &mut other };
        let more = socket.command("test", doc! { "getMore": *id, "collection": "c" }).await.unwrap();
        assert_eq!(more.get_i32("server").unwrap(), *home);
    }
    // Each is asked to kill its own, and what both say is one answer.
    let ids: Vec<i64> = homes.iter().map(|(id, _)| *id).chain([99]).collect();
    let nothing = doc! { "cursorsKilled": [], "cursorsNotFound": [], "cursorsAlive": [], "cursorsUnknown": [] };
    let killed = other.command("test", doc! { "killCursors": "c", "cursors": ids, "comment": nothing }).await.unwrap();
    assert_eq!(killed.get_array("cursorsNotFound").unwrap(), &[Bson::from(99_i64)]);
    for mongos in &mongos {
        let of = |home: i32| homes.iter().filter(move |it| it.1 == home).map(|it| Bson::from(it.0)).collect::<Vec<_>>();
        let kill = mongos.commands("killCursors").remove(0);
        assert_eq!(kill.get_array("cursors").unwrap(), &of(i32::from(mongos.port)));
    }
    assert_eq!(proxy.pinned().0, 0);
}

/// A lost mongos takes its cursors along, and no others.
#[tokio::test]
async fn a_cursor_ends_with_its_mongos() {
    let (mongos, proxy) = two_mongos().await;
    let mut client = connect(proxy.address()).await;
    let mut homes = Vec::new();
    for id in 1..=20_i64 {
        let cursor = doc! { "id": id, "ns": "test.c", "firstBatch": [] };
        let found = client.command("test", doc! { "find": "c", "comment": { "cursor": cursor } }).await.unwrap();
        homes.push((id, found.get_i32("server").unwrap()));
    }
    mongos[0].end();
    knows(&proxy, 1).await;
    for (id, home) in homes {
        let reply = client.reply("test", doc! { "getMore": id, "collection": "c" }).await.unwrap();
        let expected = if home == i32::from(mongos[0].port) { 43 } else { 0 };
        assert_eq!(code_and_labels(&reply), (expected, vec![]), "{reply}");
    }
}

/// A new command with two sequences, whose results are a cursor.
#[tokio::test]
async fn a_bulk_write_and_its_results_stay_on_one_server() {
    let release = doc! { "maxWireVersion": 25 };
    let (first, second) = (Echo::mongos(), Echo::mongos());
    first.says(release.clone());
    second.says(release);
    let (servers, proxy) = both(first, second).await;
    let (mut client, mut other) = (connect(proxy.address()).await, connect(proxy.address()).await);
    let hello = client.command("admin", doc! { "hello": 1 }).await.unwrap();
    assert_eq!(hello.get_i32("maxWireVersion").unwrap(), 25, "so that drivers use it");
    for id in 1..=20_i64 {
        let cursor = doc! { "id": id, "ns": "admin.$cmd.bulkWrite", "firstBatch": [{ "ok": 1.0, "idx": 0, "n": 1 }] };
        let write = doc! { "bulkWrite": 1, "lsid": new_lsid(), "txnNumber": id, "comment": { "cursor": cursor.clone(), "nErrors": 0 } };
        let operations = vec![doc! { "insert": 0, "document": { "_id": id } }];
        let request =
            Request::new("admin", write).sequence("ops", operations).sequence("nsInfo", vec![doc! { "ns": "test.c" }]);
        let written = client.exchange(&request).await.unwrap().document().unwrap();
        assert_eq!(written.get_document("cursor").unwrap(), &cursor);
        let home = written.get_i32("server").unwrap();
        let more = doc! { "getMore": id, "collection": "$cmd.bulkWrite" };
        assert_eq!(other.command("admin", more).await.unwrap().get_i32("server").unwrap(), home);
        let nothing = doc! { "cursorsKilled": [id], "cursorsNotFound": [], "cursorsAlive": [], "cursorsUnknown": [] };
        let kill = doc! { "killCursors": "$cmd.bulkWrite", "cursors": [id], "comment": nothing };
        let killed = other.command("admin", kill).await.unwrap();
        assert_eq!(killed.get_array("cursorsKilled").unwrap(), &[Bson::from(id)]);
        let asked = servers.iter().find(|server| i32::from(server.port) == home).unwrap().commands("killCursors");
        assert_eq!(asked.last().unwrap().get_array("cursors").unwrap(), &[Bson::from(id)]);
    }
    assert!(servers.iter().all(|server| server.seen("bulkWrite") > 0), "both take them");
}

#[tokio::test]
async fn the_oldest_release_is_served_and_older_ones_are_refused_with_the_reason() {
    let oldest = Echo::mongos();
    oldest.says(doc! { "maxWireVersion": 9 });
    let proxy = proxy(&echo::uri(std::slice::from_ref(&oldest)), SETTINGS).await;
    let mut client = connect(proxy.address()).await;
    let hello = client.command("admin", doc! { "hello": 1 }).await.unwrap();
    assert_eq!(hello.get_i32("maxWireVersion").unwrap(), 9);
    client.command("test", doc! { "find": "c" }).await.unwrap();

    let older = Echo::mongos();
    older.says(doc! { "maxWireVersion": 8 });
    let uri = echo::uri(std::slice::from_ref(&older));
    let admin = Address::tcp("127.0.0.1", scripted::listen(None).1);
    let program = Program::start(&["run", "--listen", "127.0.0.1:0", "--admin", &admin.to_string(), &uri]);
    let address = program.address().await;
    let reason = "reports wire version 8, but mongomux requires at least 9 (MongoDB 4.4)";
    program.line(reason).await;
    let mut client = WireClient::connect(&address).await.unwrap();
    let refused = client.reply("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(code_and_labels(&refused), (6, vec![]), "{refused}");
    let text = refused.get_str("errmsg").unwrap();
    assert!(text.starts_with("mongomux: no suitable server: ") && text.contains(reason), "{text}");
    eventually("/readyz says why", async || {
        let answer = support::http(&admin, "GET", "/readyz", "").await;
        answer.starts_with("HTTP/1.1 503") && answer.contains(reason)
    })
    .await;
    assert_eq!(older.seen("find"), 0);
}

/// A set in the middle of an upgrade is what its oldest member is.
#[tokio::test]
async fn an_upgrade_shows_on_new_sockets_once_all_members_have_it() {
    let (primary, secondary) = (Echo::start(doc! {}), Echo::start(doc! {}));
    let hosts: Vec<String> = [&primary, &secondary].map(|server| format!("127.0.0.1:{}", server.port)).to_vec();
    for (server, is_primary, version) in [(&primary, true, 21), (&secondary, false, 17)] {
        let mut hello = scripted::mongos_hello();
        hello.remove("msg");
        hello.extend(doc! {
            "setName": "set", "setVersion": 1, "hosts": hosts.clone(), "primary": hosts[0].clone(),
            "me": format!("127.0.0.1:{}", server.port), "ismaster": is_primary, "isWritablePrimary": is_primary,
            "secondary": !is_primary, "maxWireVersion": version,
            "lastWrite": { "lastWriteDate": bson::DateTime::now() },
        });
        server.says(hello);
    }
    let (servers, proxy) = both(primary, secondary).await;
    let shown = async |client: &mut WireClient| {
        client.command("admin", doc! { "hello": 1 }).await.unwrap().get_i32("maxWireVersion").unwrap()
    };
    let mut old = connect(proxy.address()).await;
    assert_eq!(shown(&mut old).await, 17);
    servers[1].says(doc! { "maxWireVersion": 21 });
    eventually("the upgrade", async || shown(&mut connect(proxy.address()).await).await == 21).await;
    assert_eq!(shown(&mut old).await, 17, "what it was told it may rely on");
    // Releases that nobody has tried are taken for the newest that was.
    servers.iter().for_each(|server| server.says(doc! { "maxWireVersion": 27 }));
    eventually("the newest that is known", async || shown(&mut connect(proxy.address()).await).await == 25).await;
    // A member of an old release joins again: that concerns everybody.
    servers[1].says(doc! { "maxWireVersion": 13 });
    eventually("the downgrade", async || shown(&mut old).await == 13).await;
}

#[tokio::test]
async fn a_server_behind_a_unix_socket_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = format!("--unixSocketPrefix={}", directory.path().display());
    let options = DeploymentOptions { arguments: vec![prefix], ..DeploymentOptions::for_tests(0) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    let [server] = deployment.members() else { panic!("one server") };
    let socket = directory.path().join(format!("mongodb-{}.sock", server.port()));
    let proxy = proxy(&format!("mongodb://{}/", socket.display().to_string().replace('/', "%2F")), "").await;
    let mut client = connect(proxy.address()).await;
    let documents: Vec<Document> = (0..10).map(|id| doc! { "_id": id }).collect();
    client.command("test", doc! { "insert": "c", "documents": documents }).await.unwrap();
    let found = client.command("test", doc! { "find": "c", "batchSize": 4 }).await.unwrap();
    let id = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    let mut other = connect(proxy.address()).await;
    let rest = other.command("test", doc! { "getMore": id, "collection": "c" }).await.unwrap();
    assert_eq!(support::next_batch(&rest).len(), 6);
    let stats = support::http(proxy.admin_address(), "GET", "/stats", "").await;
    assert!(stats.contains(&*socket.to_string_lossy()), "{stats}");
}
