//! Cursors belong to a server, not to a socket: any client socket and any upstream connection continues them.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeSet;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use futures_util::future::join_all;
use mongomux::config::Address;
use mongomux::config::limits::MAX_CURSOR_PINS;
use mongomux::routing::{CursorLife, CursorPin};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{EXHAUST_ALLOWED, MORE_TO_COME, Request, WireClient, WireError};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::hold::{eventually, hold_finds, hold_inserts};
use support::proxy::{Proxy, proxy};
use support::raw;
use support::relay::{Fault, Relay};
use tokio::io::AsyncWriteExt;
use tokio::time::{Duration, Instant, timeout};

/// Longest wait for something that is expected.
const PATIENCE: Duration = Duration::from_secs(20);

const DATABASE: &str = "cursors";

/// Number of a compressor in an OP_COMPRESSED.
const SNAPPY: u8 = 1;

async fn pair(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), settings).await;
    (deployment, proxy)
}

async fn fill(address: &Address, collection: &str, count: i32, bytes: usize) {
    let documents: Vec<Document> = (0..count).map(|id| doc! { "_id": id, "a": "x".repeat(bytes) }).collect();
    let insert = Request::new(DATABASE, doc! { "insert": collection }).sequence("documents", documents);
    let reply = support::connect(address).await.exchange(&insert).await.unwrap().document().unwrap();
    assert_eq!(reply.get_i32("n").unwrap(), count, "{reply}");
}

fn cursor_id(reply: &Document) -> i64 {
    reply.get_document("cursor").unwrap().get_i64("id").unwrap()
}

async fn open(client: &mut WireClient, find: Document) -> i64 {
    let id = cursor_id(&client.command(DATABASE, find).await.unwrap());
    assert_ne!(id, 0, "the cursor has more than one batch");
    id
}

fn get_more(id: i64, collection: &str, batch: i32) -> Document {
    doc! { "getMore": id, "collection": collection, "batchSize": batch }
}

/// Cursors that the server holds open, asked of it directly.
async fn open_cursors(server: &Mongod) -> i64 {
    let status = support::client(server).await.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let open = status.get_document("metrics").unwrap().get_document("cursor").unwrap().get_document("open").unwrap();
    open.get_i64("total").unwrap()
}

/// Waits until the server and the proxy know of `count` cursors.
async fn await_cursors(server: &Mongod, proxy: &Proxy, count: usize, what: &str) {
    let mut seen = (0, 0);
    let reached = timeout(PATIENCE, async {
        loop {
            seen = (open_cursors(server).await, pins(proxy));
            if seen == (i64::try_from(count).unwrap(), count) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let reached = reached.await.is_ok();
    assert!(reached, "{what}: {} cursors on the server and {} pins, not {count}", seen.0, seen.1);
}

fn pins(proxy: &Proxy) -> usize {
    proxy.clusters()[0].pins.lock().unwrap().count().0
}

#[tokio::test]
async fn a_cursor_goes_on_over_any_socket_and_ends_for_all() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(proxy.address(), "c", 1000, 10).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(support::connect(proxy.address()).await);
    }
    let first = clients[0].command(DATABASE, doc! { "find": "c", "batchSize": 7 }).await.unwrap();
    let id = cursor_id(&first);
    let mut seen: BTreeSet<i32> = support::first_batch(&first).iter().map(|d| d.get_i32("_id").unwrap()).collect();
    // The one that opened it leaves.
    clients.remove(0);
    for turn in 0.. {
        let reply = clients[turn % 3].command(DATABASE, get_more(id, "c", 100)).await.unwrap();
        seen.extend(support::next_batch(&reply).iter().map(|d| d.get_i32("_id").unwrap()));
        if cursor_id(&reply) == 0 {
            break;
        }
    }
    assert_eq!(seen.len(), 1000);
    await_cursors(server, &proxy, 0, "an exhausted cursor").await;
    let gone = clients[0].command(DATABASE, get_more(id, "c", 1)).await.unwrap_err();
    assert_eq!(gone.code(), Some(43), "{gone}");
}

#[tokio::test]
async fn unknown_and_killed_cursors_are_told_apart() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(proxy.address(), "c", 100, 10).await;
    let mut client = support::connect(proxy.address()).await;
    let mut other = support::connect(proxy.address()).await;
    for id in [1, i64::MAX, i64::MIN, 0, -1] {
        let direct = support::client(server).await.reply(DATABASE, get_more(id, "c", 1)).await.unwrap();
        let reply = client.reply(DATABASE, get_more(id, "c", 1)).await.unwrap();
        assert_eq!(reply.get_i32("code").ok(), direct.get_i32("code").ok(), "{id}: {reply}");
    }
    // Made behind our back, as before a restart of ours: with one server there is no doubt where it is.
    let find = doc! { "find": "c", "batchSize": 2 };
    let foreign = open(&mut support::client(server).await, find.clone()).await;
    client.command(DATABASE, get_more(foreign, "c", 5)).await.unwrap();
    let killed = client.command(DATABASE, doc! { "killCursors": "c", "cursors": [foreign] }).await.unwrap();
    assert_eq!(killed.get_array("cursorsKilled").unwrap(), &[Bson::from(foreign)]);

    let ids = [open(&mut client, find.clone()).await, open(&mut client, find.clone()).await];
    let kill = doc! { "killCursors": "c", "cursors": [ids[0], 4711_i64, ids[1]], "comment": "all" };
    let mixed = other.command(DATABASE, kill.clone()).await.unwrap();
    let set = |name: &str| -> BTreeSet<i64> {
        mixed.get_array(name).unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
    };
    assert_eq!(set("cursorsKilled"), BTreeSet::from(ids));
    assert_eq!(set("cursorsNotFound"), BTreeSet::from([4711]));
    assert!(set("cursorsAlive").is_empty() && set("cursorsUnknown").is_empty());
    await_cursors(server, &proxy, 0, "killed cursors").await;
    let again = other.command(DATABASE, kill).await.unwrap();
    assert_eq!(again.get_array("cursorsNotFound").unwrap().len(), 3);
    let gone = client.command(DATABASE, get_more(ids[0], "c", 1)).await.unwrap_err();
    assert_eq!(gone.code(), Some(43), "{gone}");

    // What the server refuses is not called "not found".
    let id = open(&mut client, find).await;
    for nonsense in [doc! { "maxTimeMS": "soon" }, doc! { "noSuchField": 1 }, doc! { "lsid": 5 }] {
        let mut kill = doc! { "killCursors": "c", "cursors": [id] };
        kill.extend(nonsense.clone());
        let direct = support::client(server).await.reply(DATABASE, kill.clone()).await.unwrap();
        let reply = client.reply(DATABASE, kill).await.unwrap();
        assert_eq!(code(&reply), code(&direct), "{nonsense}: {reply} and {direct}");
    }
    client.command(DATABASE, get_more(id, "c", 1)).await.unwrap();
}

fn code(reply: &Document) -> i32 {
    reply.get_i32("code").unwrap_or_default()
}

/// The session that a cursor was made in has to be named, and no other.
#[tokio::test]
async fn session_mismatches_are_told_as_by_the_server() {
    let (deployment, proxy) = pair("").await;
    let server = deployment.members()[0].address();
    fill(proxy.address(), "c", 100, 10).await;
    let lsid = |byte: u8| doc! { "id": Binary { subtype: BinarySubtype::Uuid, bytes: vec![byte; 16] } };
    let mut replies = Vec::new();
    for address in [&server, proxy.address()] {
        let mut client = support::connect(address).await;
        let plain = open(&mut client, doc! { "find": "c", "batchSize": 2 }).await;
        let bound = open(&mut client, doc! { "find": "c", "batchSize": 2, "lsid": lsid(1) }).await;
        let mut codes = Vec::new();
        let attempts = [
            (plain, Some(lsid(1)), doc! {}),
            (bound, None, doc! {}),
            (bound, Some(lsid(2)), doc! {}),
            (bound, Some(lsid(1)), doc! { "collection": "another" }),
            (bound, Some(lsid(1)), doc! { "batchSize": -1 }),
            (bound, Some(lsid(1)), doc! { "maxTimeMS": 5 }),
            (bound, Some(lsid(1)), doc! { "txnNumber": 5_i64 }),
            (bound, Some(lsid(1)), doc! {}),
            (plain, None, doc! {}),
        ];
        for (id, lsid, extra) in attempts {
            let mut command = get_more(id, "c", 1);
            command.extend(lsid.map(|lsid| doc! { "lsid": lsid }).unwrap_or_default());
            command.extend(extra);
            let reply = client.reply(DATABASE, command).await.unwrap();
            codes.push((code(&reply), reply.get_str("codeName").unwrap_or_default().to_owned()));
        }
        replies.push(codes);
    }
    assert_eq!(replies[0], replies[1]);
    assert_eq!(replies[0].iter().filter(|(code, _)| *code == 0).count(), 2, "{:?}", replies[0]);
}

#[tokio::test]
async fn a_tailable_cursor_waits_for_data_and_wakes() {
    let (_deployment, proxy) = pair("max_pool_size = 3").await;
    let mut client = support::connect(proxy.address()).await;
    client.command(DATABASE, doc! { "create": "log", "capped": true, "size": 100_000 }).await.unwrap();
    client.command(DATABASE, doc! { "insert": "log", "documents": [{ "_id": 0 }] }).await.unwrap();
    let id = open(&mut client, doc! { "find": "log", "tailable": true, "awaitData": true }).await;
    // Nothing new: an empty batch after the wait that the client asked for, and the cursor lives on.
    let started = Instant::now();
    let mut wait = get_more(id, "log", 10);
    wait.insert("maxTimeMS", 300);
    let reply = client.command(DATABASE, wait.clone()).await.unwrap();
    let waited = started.elapsed();
    assert!(support::next_batch(&reply).is_empty() && cursor_id(&reply) == id, "{reply}");
    assert!(waited >= Duration::from_millis(290) && waited < Duration::from_secs(5), "{waited:?}");

    wait.insert("maxTimeMS", 60_000);
    let request = client.send(&Request::new(DATABASE, wait)).await.unwrap();
    let mut writer = support::connect(proxy.address()).await;
    writer.command(DATABASE, doc! { "insert": "log", "documents": [{ "_id": 1 }] }).await.unwrap();
    let woken = timeout(PATIENCE, client.receive(request)).await.expect("woken by the insert").unwrap();
    assert_eq!(support::next_batch(&woken.document().unwrap()), [doc! { "_id": 1 }]);
}

/// Killed while its client waits: the wait ends with an error, as it does on a server.
#[tokio::test]
async fn a_cursor_that_is_killed_ends_the_wait_for_it() {
    let (deployment, proxy) = pair("max_pool_size = 3").await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut client = support::connect(proxy.address()).await;
    client.command(DATABASE, doc! { "create": "log", "capped": true, "size": 100_000 }).await.unwrap();
    client.command(DATABASE, doc! { "insert": "log", "documents": [{ "_id": 0 }] }).await.unwrap();
    let mut other = support::connect(proxy.address()).await;
    for _ in 0..5 {
        let id = open(&mut client, doc! { "find": "log", "tailable": true, "awaitData": true }).await;
        let mut wait = get_more(id, "log", 10);
        wait.insert("maxTimeMS", 60_000);
        let request = client.send(&Request::new(DATABASE, wait)).await.unwrap();
        eventually("it waits on the server", async || in_use(&mut other).await == 1).await;
        let killed = other.command(DATABASE, doc! { "killCursors": "log", "cursors": [id] }).await.unwrap();
        assert_eq!(killed.get_array("cursorsKilled").unwrap(), &[Bson::from(id)]);
        let reply = timeout(PATIENCE, client.receive(request)).await.expect("the wait ends").unwrap();
        let reply = reply.document().unwrap();
        // Interrupted, or between two slices of its wait.
        assert!([237, 43].contains(&code(&reply)), "{reply}");
    }
    await_cursors(server, &proxy, 0, "cursors that were killed").await;
}

/// A restart of the proxy forgets where cursors live. Where there is one server only, it makes no difference.
#[tokio::test]
async fn a_cursor_outlives_a_restart_of_the_proxy_in_front_of_one_server() {
    let (deployment, before) = pair("").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(before.address(), "c", 30, 10).await;
    let find = doc! { "find": "c", "batchSize": 5 };
    let mut client = support::connect(before.address()).await;
    let ids = [open(&mut client, find.clone()).await, open(&mut client, find).await];
    drop((client, before));
    let after = proxy(&deployment.uri(), "").await;
    let mut client = support::connect(after.address()).await;
    let rest = client.command(DATABASE, get_more(ids[0], "c", 100)).await.unwrap();
    assert_eq!((support::next_batch(&rest).len(), cursor_id(&rest)), (25, 0));
    let killed = client.command(DATABASE, doc! { "killCursors": "c", "cursors": ids.to_vec() }).await.unwrap();
    assert_eq!(killed.get_array("cursorsKilled").unwrap(), &[Bson::from(ids[1])]);
    assert_eq!(killed.get_array("cursorsNotFound").unwrap(), &[Bson::from(ids[0])]);
    await_cursors(server, &after, 0, "all").await;
}

/// More of those who wait for data than there are connections: nobody is kept out, and all are woken in their turn.
#[tokio::test]
async fn those_who_wait_for_data_leave_connections_to_those_who_do_not() {
    for pool in [1, 3] {
        let (_deployment, proxy) = pair(&format!("max_pool_size = {pool}\nmin_pool_size = 1")).await;
        let mut writer = support::connect(proxy.address()).await;
        writer.command(DATABASE, doc! { "create": "log", "capped": true, "size": 100_000 }).await.unwrap();
        writer.command(DATABASE, doc! { "insert": "log", "documents": [{ "_id": 0 }, { "_id": 1 }] }).await.unwrap();
        let mut waiting = Vec::new();
        for number in 0..6 {
            let mut client = support::connect(proxy.address()).await;
            let find = doc! { "find": "log", "tailable": true, "awaitData": true };
            let id = open(&mut client, find).await;
            let mut wait = get_more(id, "log", 10);
            wait.insert("maxTimeMS", 60_000);
            let request = client.send(&Request::new(DATABASE, wait)).await.unwrap();
            // The last one leaves while it waits, and holds nothing up.
            if number < 5 {
                waiting.push((client, request));
            }
        }
        // One asks for them; the cursor of the one that has left is killed, and the server looked at, over another one.
        let most = (pool - 1).max(1);
        for _ in 0..50 {
            assert!(in_use(&mut writer).await <= most, "of a pool of {pool}");
        }
        let quick = timeout(Duration::from_secs(8), async {
            for _ in 0..20 {
                writer.command(DATABASE, doc! { "find": "log" }).await.unwrap();
            }
            writer.command(DATABASE, doc! { "insert": "log", "documents": [{ "_id": 2 }] }).await.unwrap();
        });
        quick.await.expect("finds do not wait behind those who wait for data");
        let woken = join_all(waiting.iter_mut().map(|(client, request)| client.receive(*request)));
        for message in timeout(PATIENCE, woken).await.expect("all are woken in their turn") {
            assert_eq!(support::next_batch(&message.unwrap().document().unwrap()), [doc! { "_id": 2 }]);
        }
    }
}

#[tokio::test]
async fn an_exhaust_request_is_answered_one_batch_at_a_time() {
    let (deployment, proxy) = pair("max_pool_size = 1\nmin_pool_size = 1").await;
    fill(proxy.address(), "c", 500, 10).await;
    let mut client = support::connect(proxy.address()).await;
    let find = Request::new(DATABASE, doc! { "find": "c", "batchSize": 100 }).flags(EXHAUST_ALLOWED);
    let first = client.exchange(&find).await.unwrap();
    let id = cursor_id(&first.document().unwrap());
    let exhaust = Request::new(DATABASE, get_more(id, "c", 100)).flags(EXHAUST_ALLOWED);
    for _ in 0..3 {
        let reply = client.exchange(&exhaust).await.unwrap();
        assert_eq!(reply.flags().unwrap() & MORE_TO_COME, 0, "nothing follows unasked");
        assert_eq!(support::next_batch(&reply.document().unwrap()).len(), 100);
    }
    // What the server does with the same request, to know that the bit was taken away on purpose.
    let mut direct = support::client(&deployment.members()[0]).await;
    let id = open(&mut direct, doc! { "find": "c", "batchSize": 100 }).await;
    let exhaust = Request::new(DATABASE, get_more(id, "c", 100)).flags(EXHAUST_ALLOWED);
    assert_ne!(direct.exchange(&exhaust).await.unwrap().flags().unwrap() & MORE_TO_COME, 0);
    // No batch of the first is left in the only upstream connection for somebody else to find.
    let mut other = support::connect(proxy.address()).await;
    let count = other.command(DATABASE, doc! { "count": "c" }).await.unwrap();
    assert_eq!(count.get_i32("n").unwrap(), 500);
}

#[tokio::test]
async fn a_thousand_open_cursors_share_two_connections() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(proxy.address(), "c", 50, 10).await;
    let clients = join_all((0..20).map(|_| async {
        let mut client = support::connect(proxy.address()).await;
        let mut ids = Vec::new();
        for _ in 0..50 {
            ids.push(open(&mut client, doc! { "find": "c", "batchSize": 10, "sort": { "_id": 1 } }).await);
        }
        (client, ids)
    }));
    let mut clients = clients.await;
    await_cursors(server, &proxy, 1000, "open cursors").await;
    assert!(support::connections(server, "mongomux").await <= 2);
    // Everybody goes on with the cursors of the next one.
    let ids: Vec<Vec<i64>> = clients.iter().map(|(_, ids)| ids.clone()).collect();
    join_all(clients.iter_mut().enumerate().map(|(index, (client, _))| {
        let theirs = &ids[(index + 1) % ids.len()];
        async move {
            for id in theirs {
                let reply = client.command(DATABASE, get_more(*id, "c", 40)).await.unwrap();
                let batch = support::next_batch(&reply);
                assert_eq!(
                    batch.first().map(|first| first.get_i32("_id").unwrap()),
                    Some(10),
                    "each has its own place"
                );
                assert_eq!(batch.len(), 40);
            }
        }
    }))
    .await;
    // They stand at their end and do not know it yet.
    await_cursors(server, &proxy, 1000, "cursors at their end").await;
    let (client, _) = &mut clients[0];
    for ids in ids {
        let killed = client.command(DATABASE, doc! { "killCursors": "c", "cursors": ids }).await.unwrap();
        assert_eq!(killed.get_array("cursorsKilled").unwrap().len(), 50);
    }
    await_cursors(server, &proxy, 0, "killed cursors").await;
}

/// Nobody can continue a cursor whose batch was lost, so none is left open for the ten minutes a server would keep it.
#[tokio::test]
async fn the_cursor_of_a_client_that_left_mid_reply_is_killed() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    // More than the buffers of both sockets take: part of a reply is still with the proxy when its client goes.
    fill(proxy.address(), "large", 40, 900_000).await;
    let mut client = support::connect(proxy.address()).await;
    client.send(&Request::new(DATABASE, doc! { "find": "large", "batchSize": 15 })).await.unwrap();
    // Until it has been read whole from the server the client stays.
    await_cursors(server, &proxy, 1, "a cursor whose first batch is on its way").await;
    drop(client);
    await_cursors(server, &proxy, 0, "a client that left in the middle of its first batch").await;

    let mut client = support::connect(proxy.address()).await;
    let id = open(&mut client, doc! { "find": "large", "batchSize": 1 }).await;
    client.send(&Request::new(DATABASE, get_more(id, "large", 15))).await.unwrap();
    let sent = || proxy.metric("mongomux_commands_total{command=\"getMore\",outcome=\"completed\"}");
    timeout(PATIENCE, async {
        while sent() < 1.0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the server has answered");
    client.reset().unwrap();
    await_cursors(server, &proxy, 0, "a client that left in the middle of a later batch").await;
}

#[tokio::test]
async fn a_cursor_that_nobody_asked_to_hear_of_is_killed() {
    let (deployment, proxy) = pair("").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(proxy.address(), "c", 100, 10).await;
    let mut client = support::connect(proxy.address()).await;
    let find = Request::new(DATABASE, doc! { "find": "c", "batchSize": 2 }).flags(MORE_TO_COME);
    client.send(&find).await.unwrap();
    client.command(DATABASE, doc! { "ping": 1 }).await.unwrap();
    await_cursors(server, &proxy, 0, "a find without a reply").await;
    // One that is known already goes on, as it does on a server, though what was not waited for is lost.
    let id = open(&mut client, doc! { "find": "c", "batchSize": 2, "sort": { "_id": 1 } }).await;
    client.send(&Request::new(DATABASE, get_more(id, "c", 2)).flags(MORE_TO_COME)).await.unwrap();
    let rest = client.command(DATABASE, get_more(id, "c", 100)).await.unwrap();
    assert_eq!(support::next_batch(&rest).len(), 96);
}

/// As above, before the server has answered.
/// Whoever waits for a connection is routed anew when its server changes its state; the cursor stays where it is.
#[tokio::test]
async fn a_kill_that_waits_is_not_lost_with_the_queue() {
    let (deployment, proxy) = pair("max_pool_size = 1").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(proxy.address(), "held", 100, 10).await;
    let finds = hold_finds(server, "cursors.held").await;
    let inserts = hold_inserts(server, "cursors.c").await;
    let mut leaving = support::connect(proxy.address()).await;
    leaving.send(&Request::new(DATABASE, doc! { "find": "held", "batchSize": 2 })).await.unwrap();
    finds.reaches(1).await;
    let mut staying = support::connect(proxy.address()).await;
    let insert = Request::new(DATABASE, doc! { "insert": "c", "documents": [{ "x": 1 }] });
    let inserted = staying.send(&insert).await.unwrap();
    proxy.waits(1).await;
    drop(leaving);
    finds.release().await;
    inserts.reaches(1).await;
    // The kill waits behind the insert.
    for order in ["trip", "reset"] {
        let path = format!("/admin/breakers/{}/{order}", server.address());
        let (status, answer) = support::json(proxy.admin_address(), "POST", &path, "{}").await;
        assert_eq!(status, 200, "{answer}");
    }
    inserts.release().await;
    staying.receive(inserted).await.unwrap();
    await_cursors(server, &proxy, 0, "killed").await;
}

#[tokio::test]
async fn the_cursor_of_a_client_that_left_before_the_reply_is_killed() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(proxy.address(), "c", 100, 10).await;
    let slow = |name: &str| doc! { "failCommands": [name], "blockConnection": true, "blockTimeMS": 400, "appName": "mongomux" };
    let mut staying = support::connect(proxy.address()).await;
    for (name, times) in [("find", 5), ("getMore", 5)] {
        let mut leaving = Vec::new();
        for _ in 0..times {
            let mut client = support::connect(proxy.address()).await;
            let id = if name == "getMore" { open(&mut client, doc! { "find": "c", "batchSize": 2 }).await } else { 0 };
            leaving.push((client, id));
        }
        support::fail_command(server, 2, slow(name)).await;
        for (client, id) in &mut leaving {
            let command = if *id == 0 {
                doc! { "find": "c", "batchSize": 2 }
            } else {
                get_more(*id, "c", 2)
            };
            client.send(&Request::new(DATABASE, command)).await.unwrap();
        }
        // Two are blocked on the server, which the one that stays can see.
        timeout(PATIENCE, async {
            while in_use(&mut staying).await < 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .expect("both connections are busy");
        drop(leaving);
        support::fail_nothing(server).await;
        if name == "find" {
            await_cursors(server, &proxy, 0, "clients that left before their first batch").await;
        } else {
            // Those of the commands that never went out are the servers' to time out, as without us.
            let left = timeout(PATIENCE, async {
                while open_cursors(server).await > 3 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            left.await.expect("the cursors whose batch was lost are killed");
        }
    }
    staying.command(DATABASE, doc! { "find": "c" }).await.unwrap();
}

/// A reply that is compressed for its client is lost no other way than one that is not.
#[tokio::test]
async fn the_cursor_of_a_client_that_left_in_a_compressed_reply_is_killed() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    let noise = || Binary {
        subtype: BinarySubtype::Generic,
        bytes: SmallRng::seed_from_u64(1).random_iter().take(900_000).collect(),
    };
    let documents: Vec<Document> = (0..15).map(|id| doc! { "_id": id, "a": noise() }).collect();
    let insert = Request::new(DATABASE, doc! { "insert": "noise" }).sequence("documents", documents);
    support::connect(proxy.address()).await.exchange(&insert).await.unwrap();
    let mut socket = raw::connect(proxy.address()).await;
    let find = raw::command(doc! { "find": "noise", "batchSize": 14, "$db": DATABASE });
    socket.write_all(&raw::compressed(&find, SNAPPY)).await.unwrap();
    await_cursors(server, &proxy, 1, "a cursor whose first batch is on its way").await;
    drop(socket);
    await_cursors(server, &proxy, 0, "a client that left in the middle of a compressed batch").await;
}

/// A read is interrupted when nobody waits for it, but not while its reply is coming: then the cursor is there already.
#[tokio::test]
async fn the_cursor_in_a_reply_that_comes_slowly_to_nobody_is_killed() {
    let deployment = support::replica_set(1).await;
    let [server] = deployment.members() else { panic!("one server") };
    let relay = Relay::start(server.address());
    let proxy = proxy(&relay.uri(), "max_pool_size = 2").await;
    fill(proxy.address(), "c", 100, 10).await;
    let mut client = support::connect(proxy.address()).await;
    relay.next("find", Fault::LateHalf, 1);
    client.send(&Request::new(DATABASE, doc! { "find": "c", "batchSize": 2 })).await.unwrap();
    eventually("the cursor is made", async || open_cursors(server).await == 1).await;
    drop(client);
    await_cursors(server, &proxy, 0, "a client that left while its reply came slowly").await;
}

/// Nothing was sent, so nothing is lost: whoever has the cursor goes on where it stands.
#[tokio::test]
async fn the_cursor_of_a_client_that_left_the_queue_goes_on() {
    let (deployment, proxy) = pair("max_pool_size = 1\nmin_pool_size = 1").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(proxy.address(), "c", 100, 10).await;
    let [mut holding, mut leaving, mut staying] = [
        support::connect(proxy.address()).await,
        support::connect(proxy.address()).await,
        support::connect(proxy.address()).await,
    ];
    let id = open(&mut leaving, doc! { "find": "c", "batchSize": 2, "sort": { "_id": 1 } }).await;
    let hold = hold_finds(server, "cursors.held").await;
    let held = holding.send(&Request::new(DATABASE, doc! { "find": "held" })).await.unwrap();
    hold.reaches(1).await;
    leaving.send(&Request::new(DATABASE, get_more(id, "c", 2))).await.unwrap();
    proxy.waits(1).await;
    drop(leaving);
    proxy.waits(0).await;
    hold.release().await;
    holding.receive(held).await.unwrap();
    let next = support::next_batch(&staying.command(DATABASE, get_more(id, "c", 1)).await.unwrap());
    assert_eq!(next[0].get_i32("_id").ok(), Some(2));
}

/// At the bound no living cursor is forgotten for a new one. The new one is killed, for those who hear of it and those who
/// do not.
#[tokio::test]
async fn a_cursor_that_cannot_be_remembered_is_killed() {
    let (deployment, proxy) = pair("").await;
    let [server] = deployment.members() else { panic!("one server") };
    fill(proxy.address(), "c", 100, 10).await;
    let mut client = support::connect(proxy.address()).await;
    let find = doc! { "find": "c", "batchSize": 2, "sort": { "_id": 1 } };
    let living = open(&mut client, find.clone()).await;
    {
        let address = std::sync::Arc::new(server.address());
        let pin = || CursorPin {
            user: mongomux::auth::UserId::SERVICE,
            server: address.clone(),
            awaits_data: false,
            change_stream: false,
            life: CursorLife::Plain,
            application: proxy.metrics().applications.unnamed(),
            caught_up: None,
        };
        let mut pins = proxy.clusters()[0].pins.lock().unwrap();
        let full = (1..).find(|id| pins.pin_cursor(*id, pin(), Instant::now()).is_err());
        assert_eq!(full, Some(i64::try_from(MAX_CURSOR_PINS).unwrap()), "one is there already");
    }
    let refused = client.command(DATABASE, find.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Some(462), "{refused}");
    client.send(&Request::new(DATABASE, find).flags(MORE_TO_COME)).await.unwrap();
    let next = support::next_batch(&client.command(DATABASE, get_more(living, "c", 1)).await.unwrap());
    assert_eq!(next[0].get_i32("_id").ok(), Some(2));
    eventually("the new ones are killed", async || open_cursors(server).await == 1).await;
    assert_eq!(pins(&proxy), MAX_CURSOR_PINS);
}

async fn in_use(client: &mut WireClient) -> i32 {
    let stats: Result<Document, WireError> = client.command("admin", doc! { "connPoolStats": 1 }).await;
    stats.unwrap().get_i32("totalInUse").unwrap()
}
