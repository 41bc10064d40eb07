//! Before it is switched on, pooling can be left out: each client then has a connection of its own, as without a proxy, and is
//! measured. Clients and databases are switched over a few at a time, while they work.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeSet;

use bson::{Document, doc};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use mongomux::config::{ClusterConfig, PoolingConfig};
use mongomux::sandbox::census::DATA;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{Request, WireClient};
use support::elections::Elections;
use support::hold::{eventually, hold_finds, hold_inserts};
use support::ledger::{self, Load};
use support::program::Program;
use support::proxy::{Proxy, proxy};
use support::{connect, connections, fail_point, first_batch, json, next_batch};
use tokio::time::{Duration, timeout};

/// Nothing but what clients bring about: the proxy keeps no connection warm.
const OBSERVE: &str = "pooled_clients_percent = 0\nmin_pool_size = 0\nmax_pool_size = 2\n";

const MORE_TO_COME: u32 = 2;

async fn pair(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), settings).await;
    (deployment, proxy)
}

async fn clients(proxy: &Proxy, count: usize) -> Vec<WireClient> {
    join_all((0..count).map(|_| connect(proxy.address()))).await
}

/// The server's number of the connection that the client's command comes over.
async fn connection(client: &mut WireClient) -> i64 {
    let mark = format!("{:x}", rand::random::<u64>());
    let pipeline = vec![doc! { "$currentOp": {} }, doc! { "$match": { "command.comment": &mark } }];
    let ask = doc! { "aggregate": 1, "pipeline": pipeline, "cursor": {}, "comment": mark };
    let found = first_batch(&client.command("admin", ask).await.unwrap());
    assert_eq!(found.len(), 1, "it sees itself: {found:?}");
    let id = found[0].get("connectionId").unwrap();
    id.as_i64().or(id.as_i32().map(i64::from)).unwrap()
}

/// Connections of clients' own, of all servers.
fn own(proxy: &Proxy) -> u32 {
    proxy.clusters()[0].servers().iter().map(|server| server.pool.own_connections().0).sum()
}

/// Connections that are shared, of all servers.
fn shared(proxy: &Proxy) -> u32 {
    proxy.pools().iter().map(|pool| pool.counts.total()).sum()
}

/// What a reload of the file would put in force.
fn switch(proxy: &Proxy, clients_percent: u32, databases: &[&str]) {
    let cluster = &proxy.clusters()[0];
    let databases = databases.iter().map(|text| text.parse().unwrap()).collect();
    let config: ClusterConfig = (**cluster.config()).clone();
    cluster.reconfigure(ClusterConfig { pooling: PoolingConfig { clients_percent, databases }, ..config });
}

async fn insert(client: &mut WireClient, database: &str, id: i32) {
    client.command(database, doc! { "insert": "c", "documents": [{ "_id": id }] }).await.unwrap();
}

async fn pooling(proxy: &Proxy) -> (serde_json::Value, String) {
    let (_, stats) = json(proxy.admin_address(), "GET", "/stats", "").await;
    let cluster = &stats["clusters"][0];
    (cluster["pooling"].clone(), cluster["recommendations"].to_string())
}

#[tokio::test]
async fn each_client_has_one_connection_and_nobody_waits_for_another() {
    const CLIENTS: usize = 9;
    let (deployment, proxy) = pair(OBSERVE).await;
    let server = &deployment.members()[0];
    let mut clients = clients(&proxy, CLIENTS).await;
    let before = join_all(clients.iter_mut().map(connection)).await;
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), CLIENTS, "one each: {before:?}");
    for _ in 0..3 {
        for (client, before) in clients.iter_mut().zip(&before) {
            insert(client, "test", rand::random()).await;
            assert_eq!(connection(client).await, *before, "always the same");
        }
    }
    assert_eq!((connections(server, DATA).await, own(&proxy), shared(&proxy)), (CLIENTS, 9, 0));

    // More at once than a pool would let.
    let hold = hold_finds(server, "test.c").await;
    let find = Request::new("test", doc! { "find": "c" });
    let mut asked = Vec::new();
    for client in &mut clients {
        asked.push(client.send(&find).await.unwrap());
    }
    hold.reaches(CLIENTS).await;
    assert_eq!(proxy.waiting(), 0);
    assert_eq!(pooling(&proxy).await.0["ownInUse"], CLIENTS);
    hold.release().await;
    for (client, request) in clients.iter_mut().zip(asked) {
        assert!(first_batch(&client.receive(request).await.unwrap().document().unwrap()).len() >= 3 * CLIENTS);
    }

    let (told, advice) = pooling(&proxy).await;
    let expected = serde_json::json!({
        "mode": "observe", "pooledPercent": 0, "pooledDatabases": [], "ownConnections": 9, "ownInUse": 0, "ownInUsePeak": 9,
        "boundHolds": false,
    });
    assert_eq!(told, expected);
    assert!(advice.contains("max_pool_size does not bound the connections: 9 belong to one client each"), "{advice}");
    let page = support::http(proxy.admin_address(), "GET", "/metrics", "").await;
    let series = |name: &str| page.lines().find(|line| line.starts_with(name)).map(str::to_owned).unwrap_or_default();
    assert!(series("mongomux_own_connections{").ends_with(" 9"), "{page}");
    assert!(series("mongomux_own_connections_created_total{").ends_with(" 9"));
    assert!(series("mongomux_upstream_connections_created_total{").ends_with(" 0"));

    drop(clients.split_off(2));
    eventually("they have left with their connections", async || connections(server, DATA).await == 2).await;
    drop(clients);
    eventually("all have", async || connections(server, DATA).await == 0 && own(&proxy) == 0).await;
}

#[tokio::test]
async fn what_works_without_a_proxy_works() {
    let (deployment, proxy) = pair(OBSERVE).await;
    let driver = mongodb::Client::with_uri_str(proxy.uri()).await.unwrap();
    let database = driver.database("test");
    let collection = database.collection::<Document>("c");
    collection.insert_many((0..50).map(|id| doc! { "_id": id })).await.unwrap();
    let mut cursor = collection.find(doc! {}).sort(doc! { "_id": 1 }).batch_size(7).await.unwrap();
    for id in 0..50 {
        assert_eq!(cursor.next().await.unwrap().unwrap(), doc! { "_id": id });
    }
    let open = collection.find(doc! {}).batch_size(7).await.unwrap();
    drop(open);
    let pinned = || proxy.pinned();
    eventually("its cursor is killed", async || pinned() == (0, 0)).await;

    let mut session = driver.start_session().await.unwrap();
    for commits in [true, false] {
        session.start_transaction().await.unwrap();
        let document = doc! { "_id": if commits { 100 } else { 101 } };
        collection.insert_one(document).session(&mut session).await.unwrap();
        collection.update_one(doc! { "_id": 0 }, doc! { "$inc": { "n": 1 } }).session(&mut session).await.unwrap();
        if commits {
            session.commit_transaction().await.unwrap();
        } else {
            session.abort_transaction().await.unwrap();
        }
    }
    assert_eq!(collection.find_one(doc! { "_id": 0 }).await.unwrap(), Some(doc! { "_id": 0, "n": 1 }));
    assert_eq!(collection.count_documents(doc! { "_id": { "$gte": 100 } }).await.unwrap(), 1);

    let mut stream = collection.watch().await.unwrap();
    let write = async {
        let mut client = connect(proxy.address()).await;
        let command = doc! { "insert": "c", "documents": [{ "_id": 200 }], "writeConcern": { "w": 0 } };
        client.send(&Request::new("test", command).flags(MORE_TO_COME)).await.unwrap();
        client
    };
    let (event, client) = tokio::join!(timeout(support::PATIENCE, stream.next()), write);
    assert_eq!(event.unwrap().unwrap().unwrap().full_document, Some(doc! { "_id": 200 }));
    drop((stream, cursor, session, client));
    drop((collection, database));
    driver.shutdown().await;
    let server = &deployment.members()[0];
    // What the proxy itself asks for, such as the end of sessions, goes over a shared one.
    eventually("nothing of theirs is left", async || {
        own(&proxy) == 0 && connections(server, DATA).await == shared(&proxy) as usize && proxy.pinned() == (0, 0)
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_data_waits_on_the_server_for_as_long_as_it_likes() {
    const STREAMS: usize = 5;
    let (deployment, proxy) = pair(OBSERVE).await;
    let server = &deployment.members()[0];
    let mut clients = clients(&proxy, STREAMS).await;
    clients[0].command("test", doc! { "create": "watched" }).await.unwrap();
    let mut asked = Vec::new();
    for client in &mut clients {
        let watch = doc! { "aggregate": "watched", "pipeline": [{ "$changeStream": {} }], "cursor": {} };
        let reply = client.command("test", watch).await.unwrap();
        let id = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
        let more = doc! { "getMore": id, "collection": "watched", "maxTimeMS": 600_000 };
        asked.push(client.send(&Request::new("test", more)).await.unwrap());
    }
    let waiting = async || {
        let of = doc! { "$match": { "op": "getmore", "command.collection": "watched", "command.maxTimeMS": 600_000 } };
        let pipeline = vec![doc! { "$currentOp": {} }, of];
        let ask = doc! { "aggregate": 1, "pipeline": pipeline, "cursor": {} };
        first_batch(&support::client(server).await.command("admin", ask).await.unwrap()).len()
    };
    eventually("each asks for its whole time", async || waiting().await == STREAMS).await;
    insert(&mut connect(proxy.address()).await, "test", 1).await;
    let mut writer = connect(proxy.address()).await;
    writer.command("test", doc! { "insert": "watched", "documents": [{ "_id": 1 }] }).await.unwrap();
    for (client, request) in clients.iter_mut().zip(asked) {
        let reply = timeout(support::PATIENCE, client.receive(request)).await.unwrap().unwrap().document().unwrap();
        assert_eq!(next_batch(&reply).len(), 1, "{reply}");
    }
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_read_is_noticed_by_the_server() {
    let (deployment, proxy) = pair(OBSERVE).await;
    let server = &deployment.members()[0];
    let find = Request::new("test", doc! { "find": "c" });
    let hold = hold_finds(server, "test.c").await;
    let mut leaving = clients(&proxy, 3).await;
    for client in &mut leaving {
        client.send(&find).await.unwrap();
    }
    hold.reaches(3).await;
    drop(leaving);
    hold.reaches(0).await;
    eventually("the connections are closed", async || connections(server, DATA).await == 0 && own(&proxy) == 0).await;
    hold.release().await;

    // Its wait for data ends as well, and nobody comes for the cursor.
    let mut leaving = connect(proxy.address()).await;
    let watch = doc! { "aggregate": "c", "pipeline": [{ "$changeStream": {} }], "cursor": {} };
    let reply = leaving.command("test", watch).await.unwrap();
    let id = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
    let more = doc! { "getMore": id, "collection": "c", "maxTimeMS": 600_000 };
    leaving.send(&Request::new("test", more)).await.unwrap();
    let in_use = || proxy.clusters()[0].servers()[0].operations() > 0;
    eventually("it waits on the server", async || in_use()).await;
    drop(leaving);
    eventually("it is over", async || own(&proxy) == 0 && proxy.pinned() == (0, 0)).await;

    // A write runs to its end, and its connection is not given up before.
    let hold = hold_inserts(server, "test.c").await;
    let mut leaving = connect(proxy.address()).await;
    leaving.send(&Request::new("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] })).await.unwrap();
    hold.reaches(1).await;
    drop(leaving);
    let left = || proxy.metric("mongomux_commands_total{command=\"insert\",outcome=\"abandoned\"}");
    eventually("its client has left", async || left() == 1.0).await;
    hold.release().await;
    let mut client = support::client(server).await;
    eventually("it is written", async || {
        first_batch(&client.command("test", doc! { "find": "c" }).await.unwrap()).len() == 1
    })
    .await;
    eventually("its connection is closed", async || own(&proxy) == 0).await;
}

#[tokio::test]
async fn one_that_breaks_takes_no_other_along() {
    let (deployment, proxy) = pair(OBSERVE).await;
    let mut clients = clients(&proxy, 4).await;
    let before = join_all(clients.iter_mut().map(connection)).await;
    let breaks = doc! { "failCommands": ["find"], "closeConnection": true };
    fail_point(&deployment.members()[0], "failCommand", doc! { "times": 1 }.into(), breaks).await;
    let (unlucky, others) = clients.split_first_mut().unwrap();
    unlucky.command("test", doc! { "find": "c" }).await.expect_err("its connection broke");
    assert_ne!(connection(unlucky).await, before[0]);
    assert_eq!(join_all(others.iter_mut().map(connection)).await, before[1..], "each goes on with its own");
}

#[tokio::test]
async fn a_database_is_switched_at_a_time() {
    let (deployment, proxy) =
        pair("pooled_databases = [\"shop\", \"cms_*\"]\nmin_pool_size = 0\nmax_pool_size = 2\n").await;
    let server = &deployment.members()[0];
    let mut clients = clients(&proxy, 4).await;
    for client in &mut clients {
        insert(client, "shop", rand::random()).await;
        insert(client, "cms_de", rand::random()).await;
    }
    assert_eq!((own(&proxy), shared(&proxy)), (0, 1), "one after the other");
    for client in &mut clients {
        insert(client, "shops", rand::random()).await;
    }
    assert_eq!((own(&proxy), shared(&proxy), connections(server, DATA).await), (4, 1, 5));
    // A transaction ends where it is sent to, `admin`, and goes with its statements.
    let before = proxy.clusters()[0].servers()[0].pool.own_commands();
    let transaction = support::statements::Raw::new();
    let first = transaction.first(doc! { "insert": "c", "documents": [{ "_id": "t" }] });
    clients[0].command("shop", first).await.unwrap();
    transaction.end(&mut clients[0], "commitTransaction").await.unwrap();
    assert_eq!(proxy.clusters()[0].servers()[0].pool.own_commands(), before);

    switch(&proxy, 100, &["shop", "shops"]);
    insert(&mut clients[0], "shops", rand::random()).await;
    assert_eq!(own(&proxy), 4, "they are for the other databases");
    switch(&proxy, 100, &[]);
    eventually("nobody needs them", async || own(&proxy) == 0 && connections(server, DATA).await <= 2).await;
    assert_eq!(pooling(&proxy).await.0["boundHolds"], true);
    for client in &mut clients {
        insert(client, "other", rand::random()).await;
    }
    assert_eq!(own(&proxy), 0);
}

#[tokio::test]
async fn what_has_begun_goes_on_when_the_share_changes() {
    let (_deployment, proxy) = pair("min_pool_size = 0\nmax_pool_size = 2\n").await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "create": "c" }).await.unwrap();
    let documents: Vec<Document> = (0..30).map(|id| doc! { "_id": id }).collect();
    client.command("test", doc! { "insert": "many", "documents": documents }).await.unwrap();
    let found = client.command("test", doc! { "find": "many", "batchSize": 1 }).await.unwrap();
    let cursor = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    let transaction = support::statements::Raw::new();
    let insert = |id: i32| doc! { "insert": "c", "documents": [{ "_id": id }] };
    client.command("test", transaction.first(insert(0))).await.unwrap();
    for (number, percent) in [0, 100, 0].into_iter().enumerate() {
        switch(&proxy, percent, &[]);
        let commands = || proxy.clusters()[0].servers()[0].pool.own_commands();
        let before = commands();
        let more = doc! { "getMore": cursor, "collection": "many", "batchSize": 1 };
        assert_eq!(next_batch(&client.command("test", more).await.unwrap()).len(), 1);
        client.command("test", transaction.next(insert(1 + i32::try_from(number).unwrap()))).await.unwrap();
        assert_eq!(commands() - before, if percent == 0 { 2 } else { 0 });
    }
    transaction.end(&mut client, "commitTransaction").await.unwrap();
    assert_eq!(first_batch(&client.command("test", doc! { "find": "c" }).await.unwrap()).len(), 4);
}

#[tokio::test]
async fn an_old_connection_is_replaced_between_two_commands() {
    let (deployment, proxy) = pair(&format!("{OBSERVE}max_lifetime_ms = 1_000\n")).await;
    let mut client = connect(proxy.address()).await;
    let first = connection(&mut client).await;
    eventually("it has another one", async || connection(&mut client).await != first).await;
    eventually("an idle one ends", async || connections(&deployment.members()[0], DATA).await == 0).await;
    connection(&mut client).await;
}

#[tokio::test]
async fn what_an_operator_orders_for_connections_is_meant_for_these_as_well() {
    let (_deployment, proxy) = pair(OBSERVE).await;
    let mut client = connect(proxy.address()).await;
    let mut before = connection(&mut client).await;
    for (path, body) in [("/admin/cleanup", "{\"mode\": \"soft\"}"), ("/admin/reconnect", "{}")] {
        assert_eq!(json(proxy.admin_address(), "POST", path, body).await.0, 200);
        let after = connection(&mut client).await;
        assert_ne!(after, before, "{path}");
        before = after;
    }
    proxy.clusters()[0].servers()[0].pool.clear(false);
    eventually("its server was lost", async || own(&proxy) == 0).await;
}

/// What the ledger found.
async fn assert_clean(deployment: &Deployment, books: &ledger::Books) {
    let wrong = books.audit(&deployment.uri()).await;
    assert!(wrong.is_empty() && books.notes.errors.is_empty(), "{wrong:#?} {:#?}", books.notes.errors);
}

#[tokio::test]
async fn a_primary_that_is_killed_costs_nothing_that_was_acknowledged() {
    let mut deployment = support::replica_set(3).await;
    let settings = format!("{OBSERVE}server_selection_timeout_ms = 30_000\nmax_connecting = 8\n");
    let proxy = proxy(&deployment.uri(), &settings).await;
    let elections = Elections::watch(deployment.members().iter().map(Mongod::address));
    let load = Load { drivers: 1, ..Load::default() };
    let books = ledger::keep(proxy.address(), &load, async |ledger| {
        ledger.progress(200).await;
        assert!(own(&proxy) as usize >= load.sockets(), "each has one");
        let before = elections.current().await;
        let primary = deployment.members().iter().position(|member| member.address() == before.member).unwrap();
        deployment.member(primary).kill().await.unwrap();
        elections.next(&before).await;
        ledger.progress(200).await;
        deployment.member(primary).restart().await.unwrap();
        ledger.progress(200).await;
    })
    .await;
    assert_clean(&deployment, &books).await;
    eventually("nobody is left", async || own(&proxy) == 0).await;
}

#[tokio::test]
async fn clients_that_work_are_switched_over_and_back_without_noticing() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "pooled_clients_percent = 0\nmin_pool_size = 1\nmax_pool_size = 4\n").await;
    let server = &deployment.members()[0];
    let load = Load { drivers: 1, pause: Duration::from_millis(5), ..Load::default() };
    let sockets = load.sockets();
    let data = async || connections(server, DATA).await;
    let books = ledger::keep(proxy.address(), &load, async |ledger| {
        for _ in 0..2 {
            ledger.progress(300).await;
            assert!(data().await >= sockets, "each has one");
            switch(&proxy, 50, &[]);
            eventually("half of them have one", async || {
                let own = own(&proxy) as usize;
                own.abs_diff(sockets / 2) <= 4
            })
            .await;
            ledger.progress(300).await;
            switch(&proxy, 100, &[]);
            eventually("the bound holds", async || own(&proxy) == 0 && data().await <= 4).await;
            ledger.progress(300).await;
            assert!(data().await <= 4, "and goes on to hold");
            switch(&proxy, 0, &[]);
        }
    })
    .await;
    assert_clean(&deployment, &books).await;
    assert_eq!((books.unknown(), books.refused()), ((0, 0), 0));
    proxy.settles().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_had_is_told_as_it_is_with_a_pool() {
    let mut deployment = support::standalone().await;
    let settings = format!("{OBSERVE}server_selection_timeout_ms = 1_000\nwait_queue_timeout_ms = 500\n");
    let [observed, pooled] = [settings.clone(), settings.replace("percent = 0", "percent = 100")];
    let [observed, pooled] = [proxy(&deployment.uri(), &observed).await, proxy(&deployment.uri(), &pooled).await];
    let [mut client, mut other] = [connect(observed.address()).await, connect(pooled.address()).await];
    insert(&mut client, "test", 1).await;
    insert(&mut other, "test", 2).await;
    deployment.member(0).kill().await.unwrap();
    for command in [doc! { "find": "c" }, doc! { "insert": "c", "documents": [{ "_id": 3 }] }] {
        let ask = async |client: &mut WireClient| {
            let reply = timeout(support::PATIENCE, client.reply("test", command.clone())).await.unwrap().unwrap();
            support::code_and_labels(&reply)
        };
        let (ours, theirs) = (ask(&mut client).await, ask(&mut other).await);
        assert_eq!((ours.0, &ours), (6, &theirs), "{command}");
    }
    deployment.member(0).restart().await.unwrap();
    eventually("it is back", async || client.command("test", doc! { "find": "c" }).await.is_ok()).await;
    assert_eq!(own(&observed), 1);
}

#[tokio::test]
async fn at_the_start_and_with_each_switch_the_log_says_whether_the_bound_holds() {
    const WARNING: &str = "max_pool_size does not bound how many connections there are";
    let deployment = support::standalone().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let say = |line: &str| std::fs::write(file.path(), line).unwrap();
    say("pooled_clients_percent = 0\n");
    let path = file.path().to_str().unwrap().to_owned();
    let mut program = Program::run(&["--config", &path, &deployment.uri()]);
    let warned = program.line(WARNING).await;
    assert!(warned.contains("WARN") && warned.contains("pooled_clients_percent=0"), "{warned}");
    program.address().await;
    let count = |text: &str| program.log().lines().filter(|line| line.contains(text)).count();
    for (text, line, times) in [
        ("pooled_clients_percent = 5\npooled_databases = [\"shop\"]\n", WARNING, 2),
        ("", "all commands share connections", 1),
        ("pooled_databases = [\"shop\"]\n", WARNING, 3),
    ] {
        say(text);
        program.hang_up();
        eventually(text, async || count(line) == times).await;
    }
    say("pooled_databases = [\"shop\"]\nmax_pool_size = 3\n");
    program.hang_up();
    program.line("max_pool_size: 10 -> 3").await;
    assert_eq!(count(WARNING), 3, "nothing was switched");
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}
