//! Transactions whose statements travel over different upstream connections.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::time::Duration as StdDuration;

use bson::{Document, doc};
use futures_util::future::join_all;
use mongodb::error::{TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::{Client, ClientSession};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{Request, WireClient, WireError};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::hold::{eventually, hold_inserts};
use support::proxy::{Proxy, proxy};
use support::relay::{Fault, Relay};
use support::statements::Raw;
use tokio::time::{Duration, timeout};

const DATABASE: &str = "transactions";

/// Longest wait for something that is expected.
const PATIENCE: Duration = Duration::from_secs(40);

async fn pair(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), settings).await;
    let mut client = support::connect(proxy.address()).await;
    for collection in ["c", "accounts"] {
        client.command(DATABASE, doc! { "create": collection }).await.unwrap();
    }
    (deployment, proxy)
}

fn insert(id: i32) -> Document {
    doc! { "insert": "c", "documents": [{ "_id": id }] }
}

async fn count(client: &mut WireClient) -> usize {
    support::first_batch(&client.command(DATABASE, doc! { "find": "c" }).await.unwrap()).len()
}

/// Transactions that are open and cursors, as the proxy counts them.
fn open(proxy: &Proxy) -> (usize, usize) {
    let (cursors, transactions) = proxy.clusters()[0].pins.lock().unwrap().count();
    (transactions, cursors)
}

/// Which upstream connections carried the statements of a transaction, by the server's numbers of them.
async fn upstream_connection(client: &mut WireClient, raw: &Raw) -> i64 {
    let mine = doc! { "$match": { "lsid.id": raw.lsid.get("id").unwrap(), "type": "idleSession" } };
    let pipeline = vec![doc! { "$currentOp": { "idleSessions": true, "allUsers": true } }, mine];
    let aggregate = doc! { "aggregate": 1, "pipeline": pipeline, "cursor": {} };
    let found = support::first_batch(&client.command("admin", aggregate).await.unwrap());
    assert_eq!(found.len(), 1, "an open transaction is one idle session: {found:?}");
    found[0].get("connectionId").and_then(|id| id.as_i64().or(id.as_i32().map(i64::from))).expect("a connection")
}

#[tokio::test]
async fn a_transaction_is_visible_when_it_is_committed_and_only_then() {
    let (_deployment, proxy) = pair("max_pool_size = 2").await;
    let mut outside = support::connect(proxy.address()).await;
    let raw = Raw::new();
    assert_eq!(open(&proxy), (0, 0));
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(support::connect(proxy.address()).await);
    }
    sockets[0].command(DATABASE, raw.first(insert(1))).await.unwrap();
    assert_eq!(open(&proxy), (1, 0), "pinned from its first statement on");
    // Its statements may come over any socket, as over those of a driver's pool to a mongos.
    sockets[1].command(DATABASE, raw.next(insert(2))).await.unwrap();
    let seen = sockets[2].command(DATABASE, raw.next(doc! { "find": "c", "batchSize": 1 })).await.unwrap();
    let cursor = seen.get_document("cursor").unwrap().get_i64("id").unwrap();
    assert_eq!(open(&proxy), (1, 1), "a cursor within it");
    let more = raw.next(doc! { "getMore": cursor, "collection": "c" });
    assert_eq!(support::next_batch(&sockets[0].command(DATABASE, more).await.unwrap()).len(), 1);
    assert_eq!(count(&mut outside).await, 0, "isolated");
    raw.end(&mut sockets[1], "commitTransaction").await.unwrap();
    assert_eq!(open(&proxy), (0, 0));
    assert_eq!(count(&mut outside).await, 2);
    // A commit may be asked for again, by whoever did not hear the answer.
    for socket in &mut sockets {
        raw.end(socket, "commitTransaction").await.unwrap();
    }
    assert_eq!(open(&proxy), (0, 0));
    let late = outside.command(DATABASE, raw.next(insert(3))).await.unwrap_err();
    assert_eq!(late.code(), Some(256), "TransactionCommitted: {late}");
    assert_eq!(count(&mut outside).await, 2);
}

#[tokio::test]
async fn an_aborted_transaction_leaves_nothing_and_takes_no_more_statements() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let mut client = support::connect(proxy.address()).await;
    let mut outside = support::connect(proxy.address()).await;
    let mut direct = support::client(&deployment.members()[0]).await;
    let mut raw = Raw::new();
    client.command(DATABASE, raw.first(insert(1))).await.unwrap();
    raw.end(&mut client, "abortTransaction").await.unwrap();
    assert_eq!(open(&proxy), (0, 0));
    let late = client.command(DATABASE, raw.next(insert(2))).await.unwrap_err();
    assert_eq!(late.code(), Some(251), "{late}");
    assert!(late.has_label(TRANSIENT_TRANSACTION_ERROR));
    assert_eq!(count(&mut outside).await, 0);

    // One that the server aborts by itself is over as well, also for a drain that waits for open transactions.
    client.command(DATABASE, doc! { "insert": "accounts", "documents": [{ "_id": 1 }] }).await.unwrap();
    let change = doc! { "update": "accounts", "updates": [{ "q": { "_id": 1 }, "u": { "$inc": { "n": 1 } } }] };
    let (winner, loser) = (Raw::new(), Raw::new());
    client.command(DATABASE, winner.first(change.clone())).await.unwrap();
    outside.command(DATABASE, loser.first(doc! { "find": "c" })).await.unwrap();
    assert_eq!(open(&proxy).0, 2);
    let conflict = outside.command(DATABASE, loser.next(change)).await.unwrap_err();
    assert_eq!(conflict.code(), Some(112), "{conflict}");
    assert_eq!(open(&proxy).0, 1);
    assert_eq!(loser.end(&mut outside, "abortTransaction").await.unwrap_err().code(), Some(251));
    winner.end(&mut client, "commitTransaction").await.unwrap();
    assert_eq!(open(&proxy).0, 0);

    // What else goes wrong is the server's to tell, and its codes and labels pass.
    let twin = Raw::new();
    raw.number = 2;
    for (what, command) in [
        ("statement without a start", raw.next(insert(3))),
        ("start", raw.first(insert(4))),
        ("start again", raw.first(insert(5))),
        ("old number", Raw { number: 1, ..raw.clone() }.next(insert(6))),
        ("new number without a start", Raw { number: 7, ..raw.clone() }.next(insert(7))),
        ("next start", Raw { number: 8, ..raw.clone() }.first(insert(8))),
        ("command that is not allowed", Raw { number: 8, ..raw.clone() }.next(doc! { "count": "c" })),
        ("after an error", Raw { number: 8, ..raw.clone() }.next(insert(9))),
        ("start of one that fails", Raw { number: 9, ..raw.clone() }.first(doc! { "insert": "c", "documents": [] })),
        (
            "read preference",
            Raw { number: 10, ..raw.clone() }.first(doc! { "find": "c", "$readPreference": { "mode": "secondary" } }),
        ),
    ] {
        let mut theirs = command.clone();
        theirs.insert("lsid", twin.lsid.clone());
        // The same documents in a collection of their own, as the open transactions would conflict.
        if theirs.contains_key("insert") {
            theirs.insert("insert", "accounts");
        }
        let found = client.reply(DATABASE, command).await.unwrap();
        let expected = direct.reply(DATABASE, theirs).await.unwrap();
        assert_eq!(found.get_i32("code").ok(), expected.get_i32("code").ok(), "{what}: {found} and {expected}");
        assert_eq!(found.get_array("errorLabels").ok(), expected.get_array("errorLabels").ok(), "{what}");
    }
    for lsid in [&raw.lsid, &twin.lsid] {
        direct.command("admin", doc! { "killSessions": [lsid.clone()] }).await.unwrap();
    }
}

/// Sums that are moved between accounts in transactions never change in total, whoever looks and when.
#[tokio::test]
async fn fifty_clients_move_money_over_two_connections() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    const ACCOUNTS: i32 = 40;
    const CLIENTS: u64 = 50;
    const MOVES: usize = 6;
    let accounts: Vec<Document> = (0..ACCOUNTS).map(|id| doc! { "_id": id, "sum": 1000 }).collect();
    let mut setup = support::connect(proxy.address()).await;
    setup.command(DATABASE, doc! { "insert": "accounts", "documents": accounts }).await.unwrap();
    let seed: u64 = rand::random();
    let movers = (0..CLIENTS).map(|number| {
        let address = proxy.address().clone();
        async move {
            let mut random = SmallRng::seed_from_u64(seed.wrapping_add(number));
            let mut client = support::connect(&address).await;
            let mut raw = Raw::new();
            let mut moved = 0;
            while moved < MOVES {
                raw.number += 1;
                let (from, to) = (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS));
                let amount = random.random_range(1..100);
                let finished = transfer(&mut client, &raw, from, to, amount).await;
                match finished {
                    Ok(()) => moved += 1,
                    Err(error) => assert!(error.has_label(TRANSIENT_TRANSACTION_ERROR), "seed {seed}: {error}"),
                }
            }
        }
    });
    let auditor = async {
        let mut client = support::connect(proxy.address()).await;
        let mut raw = Raw::new();
        for _ in 0..30 {
            raw.number += 1;
            let mut find = raw.first(doc! { "find": "accounts" });
            find.insert("readConcern", doc! { "level": "snapshot" });
            let found = support::first_batch(&client.command(DATABASE, find).await.unwrap());
            raw.end(&mut client, "commitTransaction").await.unwrap();
            let total: i32 = found.iter().map(|account| account.get_i32("sum").unwrap()).sum();
            assert_eq!(total, ACCOUNTS * 1000, "seed {seed}: a look in between");
            assert!(support::connections(&deployment.members()[0], "mongomux").await <= 2);
        }
    };
    timeout(PATIENCE, async { tokio::join!(join_all(movers), auditor) }).await.expect("open transactions always go on");
    assert_eq!(open(&proxy), (0, 0), "none is left behind, though many were aborted by conflicts");
    let found = support::first_batch(&setup.command(DATABASE, doc! { "find": "accounts" }).await.unwrap());
    assert_eq!(found.iter().map(|account| account.get_i32("sum").unwrap()).sum::<i32>(), ACCOUNTS * 1000);
    let moves: i32 = found.iter().map(|account| account.get_i32("moves").unwrap_or_default()).sum();
    assert_eq!(moves, i32::try_from(CLIENTS).unwrap() * 6 * 2, "seed {seed}: every move once on both sides");
}

async fn transfer(client: &mut WireClient, raw: &Raw, from: i32, to: i32, amount: i32) -> Result<(), WireError> {
    let change = |id: i32, by: i32| {
        doc! { "update": "accounts", "updates": [{ "q": { "_id": id }, "u": { "$inc": { "sum": by, "moves": 1 } } }] }
    };
    let moved = async {
        client.command(DATABASE, raw.first(change(from, -amount))).await?;
        client.command(DATABASE, raw.next(change(to, amount))).await?;
        raw.end(client, "commitTransaction").await
    };
    match moved.await {
        Ok(_) => Ok(()),
        Err(error) => {
            // As drivers do; the server has mostly done so itself, and says so.
            let aborted = raw.end(client, "abortTransaction").await;
            assert!(aborted.is_ok() || aborted.is_err_and(|error| error.code() == Some(251)));
            Err(error)
        }
    }
}

#[tokio::test]
async fn statements_travel_over_different_connections() {
    let (_deployment, proxy) = pair("max_pool_size = 3\nmin_pool_size = 3\nmax_idle_time_ms = 0").await;
    let raw = Raw::new();
    let mut client = support::connect(proxy.address()).await;
    let mut watcher = support::connect(proxy.address()).await;
    client.command(DATABASE, raw.first(insert(0))).await.unwrap();
    let mut used = std::collections::BTreeSet::from([upstream_connection(&mut watcher, &raw).await]);
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(support::connect(proxy.address()).await);
    }
    for id in 1..20 {
        // With others under way at the same time, the next statement finds another connection.
        let ping = others.iter_mut().map(|other| other.command("admin", doc! { "ping": 1 }));
        let (pings, statement) = tokio::join!(join_all(ping), client.command(DATABASE, raw.next(insert(id))));
        pings.into_iter().for_each(|ping| drop(ping.unwrap()));
        statement.unwrap();
        used.insert(upstream_connection(&mut watcher, &raw).await);
    }
    raw.end(&mut client, "commitTransaction").await.unwrap();
    assert!(used.len() > 1, "all statements used connection {used:?}");
    assert_eq!(count(&mut watcher).await, 20);
}

async fn driver(proxy: &Proxy) -> Client {
    Client::with_uri_str(proxy.uri()).await.unwrap()
}

async fn increment(client: &Client, session: &mut ClientSession) -> mongodb::error::Result<()> {
    let accounts = client.database(DATABASE).collection::<Document>("accounts");
    let found = accounts.find_one(doc! { "_id": 1 }).session(&mut *session).await?.unwrap();
    let sum = found.get_i32("sum").unwrap();
    accounts.update_one(doc! { "_id": 1 }, doc! { "$set": { "sum": sum + 1 } }).session(&mut *session).await?;
    Ok(())
}

/// Read, then write what was read plus one: any lost isolation loses an increment.
#[tokio::test]
async fn fifty_driver_tasks_increment_one_number() {
    let (_deployment, proxy) = pair("max_pool_size = 2").await;
    let client = driver(&proxy).await;
    let accounts = client.database(DATABASE).collection::<Document>("accounts");
    accounts.insert_one(doc! { "_id": 1, "sum": 0 }).await.unwrap();
    let tasks = (0..50).map(|_| {
        let client = client.clone();
        async move {
            let mut session = client.start_session().await.unwrap();
            loop {
                session.start_transaction().await.unwrap();
                let done = increment(&client, &mut session).await;
                if let Err(error) = done {
                    assert!(error.contains_label(TRANSIENT_TRANSACTION_ERROR), "{error}");
                    session.abort_transaction().await.unwrap();
                    // Fifty on one document: whoever lost lets the winner go on.
                    let pause = StdDuration::from_millis(rand::random_range(1..40));
                    tokio::time::sleep(pause).await;
                    continue;
                }
                match session.commit_transaction().await {
                    Ok(()) => return,
                    Err(error) => {
                        assert!(!error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT), "{error}");
                        assert!(error.contains_label(TRANSIENT_TRANSACTION_ERROR), "{error}");
                    }
                }
            }
        }
    });
    timeout(PATIENCE, join_all(tasks)).await.expect("progress");
    let found = accounts.find_one(doc! { "_id": 1 }).await.unwrap().unwrap();
    assert_eq!(found.get_i32("sum").unwrap(), 50);
    assert_eq!(open(&proxy).0, 0);
}

/// With one connection an open transaction goes on, whatever waits in the queue.
#[tokio::test]
async fn a_transaction_gets_through_a_full_queue() {
    let (_deployment, proxy) = pair("max_pool_size = 1\nmin_pool_size = 1\nwait_queue_timeout_ms = 20000").await;
    let mut client = support::connect(proxy.address()).await;
    let raw = Raw::new();
    client.command(DATABASE, doc! { "insert": "accounts", "documents": [{ "_id": 0 }] }).await.unwrap();
    client.command(DATABASE, raw.first(insert(0))).await.unwrap();
    let address = proxy.address().clone();
    let crowd = join_all((0..30).map(|_| {
        let address = address.clone();
        async move {
            let mut client = support::connect(&address).await;
            for _ in 0..6 {
                let slow = doc! { "find": "accounts", "filter": { "$where": "sleep(3) || true" } };
                client.command(DATABASE, slow).await.unwrap();
            }
        }
    }));
    let transaction = async {
        for id in 1..10 {
            client.command(DATABASE, raw.next(insert(id))).await.unwrap();
        }
        raw.end(&mut client, "commitTransaction").await.unwrap();
        tokio::time::Instant::now()
    };
    let everybody = async {
        crowd.await;
        tokio::time::Instant::now()
    };
    let (committed, served) = timeout(PATIENCE, async { tokio::join!(transaction, everybody) }).await.unwrap();
    assert!(committed < served, "the transaction waited for the whole crowd");
}

/// Transactions that are open on the server, and how many `abortTransaction` it was sent.
async fn on_server(server: &Mongod) -> (i64, i64) {
    let status = support::client(server).await.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let transactions = status.get_document("transactions").unwrap();
    let commands = status.get_document("metrics").unwrap().get_document("commands").unwrap();
    let aborts = commands.get_document("abortTransaction").unwrap().get_i64("total").unwrap();
    (transactions.get_i64("currentOpen").unwrap(), aborts)
}

fn change(id: i32) -> Document {
    let update = doc! { "q": { "_id": id }, "u": { "$inc": { "sum": 1 } }, "upsert": true };
    doc! { "update": "accounts", "updates": [update] }
}

/// `abandoned` is nobody's any more. The others lost a socket no later, and whoever has them still goes on.
#[tokio::test]
async fn a_transaction_is_aborted_when_all_its_sockets_have_gone_and_not_before() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    let (abandoned, shared, resumed) = (Raw::new(), Raw::new(), Raw::new());
    let mut leaving = support::connect(proxy.address()).await;
    let mut staying = support::connect(proxy.address()).await;
    for (id, raw) in [(1, &abandoned), (2, &shared), (3, &resumed)] {
        leaving.command(DATABASE, raw.first(change(id))).await.unwrap();
    }
    staying.command(DATABASE, shared.next(change(4))).await.unwrap();
    assert_eq!((on_server(server).await, open(&proxy).0), ((3, 0), 3));
    // Waits for the document that the transaction has changed.
    let mut blocked = support::client(server).await;
    let waiting = blocked.send(&Request::new(DATABASE, change(1))).await.unwrap();
    drop(leaving);
    let mut back = support::connect(proxy.address()).await;
    back.command(DATABASE, resumed.next(change(5))).await.unwrap();

    let freed = timeout(PATIENCE, blocked.receive(waiting)).await.expect("its locks are freed").unwrap();
    assert_eq!(freed.document().unwrap().get_i32("n").ok(), Some(1));
    assert_eq!((on_server(server).await, open(&proxy).0), ((2, 1), 2), "one abort, of the one that is nobody's");
    let late = back.command(DATABASE, abandoned.next(change(6))).await.unwrap_err();
    assert!(late.code() == Some(251) && late.has_label(TRANSIENT_TRANSACTION_ERROR), "{late}");
    staying.command(DATABASE, shared.next(change(7))).await.unwrap();
    shared.end(&mut staying, "commitTransaction").await.unwrap();
    resumed.end(&mut back, "commitTransaction").await.unwrap();
    assert_eq!((on_server(server).await, open(&proxy).0), ((0, 1), 0));
    let found = support::first_batch(&staying.command(DATABASE, doc! { "find": "accounts" }).await.unwrap());
    let ids: std::collections::BTreeSet<i32> = found.iter().map(|found| found.get_i32("_id").unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 7].into());
}

/// More than are aborted at once: the others come a little later, and none is left.
#[tokio::test]
async fn the_transactions_of_a_crowd_that_vanishes_are_all_aborted() {
    let (deployment, proxy) = pair("max_pool_size = 4").await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut crowd = Vec::new();
    for id in 0..4 {
        let mut client = support::connect(proxy.address()).await;
        for number in 0..50 {
            client.command(DATABASE, Raw::new().first(change(50 * id + number))).await.unwrap();
        }
        crowd.push(client);
    }
    assert_eq!((on_server(server).await, open(&proxy).0), ((200, 0), 200));
    drop(crowd);
    eventually("all are aborted", async || on_server(server).await == (0, 200)).await;
    assert_eq!(open(&proxy).0, 0);
}

/// Waits until the proxy has noticed that the client of one such command is gone.
async fn abandons(proxy: &Proxy, command: &str) {
    let metric = format!("mongomux_commands_total{{command=\"{command}\",outcome=\"abandoned\"}}");
    eventually(&metric, async || proxy.metric(&metric) == 1.0).await;
}

/// What the server is still busy with when its client vanishes runs to its end first; a commit is not followed by an abort.
#[tokio::test]
async fn a_transaction_is_not_aborted_under_a_statement_that_runs() {
    let (deployment, proxy) = pair("max_pool_size = 4").await;
    let [server] = deployment.members() else { panic!("one server") };
    let (committed, running, idle) = (Raw::new(), Raw::new(), Raw::new());
    let mut client = support::connect(proxy.address()).await;
    client.command(DATABASE, committed.first(change(1))).await.unwrap();
    let slow = doc! { "failCommands": ["commitTransaction"], "blockConnection": true, "blockTimeMS": 500, "appName": "mongomux" };
    support::fail_command(server, 1, slow).await;
    let commit = committed.next(doc! { "commitTransaction": 1, "writeConcern": { "w": 1 } });
    client.send(&Request::new("admin", commit)).await.unwrap();
    eventually("the commit on its way", async || proxy.pool().unwrap().counts.in_use == 1).await;
    drop(client);
    abandons(&proxy, "commitTransaction").await;

    let hold = hold_inserts(server, "transactions.c").await;
    let mut client = support::connect(proxy.address()).await;
    client.command(DATABASE, running.first(change(2))).await.unwrap();
    client.send(&Request::new(DATABASE, running.next(insert(2)))).await.unwrap();
    hold.reaches(1).await;
    drop(client);
    abandons(&proxy, "insert").await;

    let mut client = support::connect(proxy.address()).await;
    client.command(DATABASE, idle.first(change(3))).await.unwrap();
    drop(client);
    // The last to lose its client is the first to go.
    eventually("one is aborted", async || on_server(server).await.1 == 1).await;
    assert_eq!((on_server(server).await, open(&proxy).0), ((1, 1), 1));
    hold.release().await;
    eventually("so is the other", async || on_server(server).await == (0, 2)).await;
    assert_eq!(open(&proxy).0, 0);
    let mut client = support::connect(proxy.address()).await;
    let found = support::first_batch(&client.command(DATABASE, doc! { "find": "accounts" }).await.unwrap());
    assert_eq!(found.iter().map(|found| found.get_i32("_id").unwrap()).collect::<Vec<_>>(), [1]);
}

/// Its client hears that the transaction is lost and begins anew; what is left of it does not stand in the way.
#[tokio::test]
async fn a_transaction_that_lost_a_reply_is_aborted_at_once() {
    let deployment = support::replica_set(1).await;
    let [server] = deployment.members() else { panic!("one server") };
    let relay = Relay::start(server.address());
    let proxy = proxy(&relay.uri(), "max_pool_size = 2").await;
    let mut client = support::connect(proxy.address()).await;
    for collection in ["c", "accounts"] {
        client.command(DATABASE, doc! { "create": collection }).await.unwrap();
    }
    let mut raw = Raw::new();
    for (aborts, fault) in (1..).zip([Fault::NoReply, Fault::HalfReply, Fault::WrongResponseTo]) {
        raw.number += 1;
        client.command(DATABASE, raw.first(change(1))).await.unwrap();
        relay.next("insert", fault, 1);
        let lost = client.command(DATABASE, raw.next(insert(1))).await.unwrap_err();
        assert!(lost.code() == Some(251) && lost.has_label(TRANSIENT_TRANSACTION_ERROR), "{fault:?}: {lost}");
        assert_eq!(open(&proxy).0, 0, "{fault:?}");
        eventually("aborted", async || on_server(server).await == (0, aborts)).await;
        support::client(server).await.command(DATABASE, change(1)).await.unwrap();
    }
    // As drivers do: their own abort changes nothing, nor does ours when it comes late.
    let own = raw.end(&mut client, "abortTransaction").await.unwrap_err();
    assert_eq!(own.code(), Some(251), "{own}");
    raw.number += 1;
    client.command(DATABASE, raw.first(change(1))).await.unwrap();
    relay.next("update", Fault::NoReply, 1);
    client.command(DATABASE, raw.next(change(1))).await.unwrap_err();
    raw.number += 1;
    client.command(DATABASE, raw.first(change(1))).await.unwrap();
    eventually("a late abort", async || on_server(server).await.1 == 5).await;
    raw.end(&mut client, "commitTransaction").await.unwrap();
    assert_eq!(on_server(server).await.0, 0);
}

/// The statement that is given up runs on, so the abort waits for it on the server, and comes again.
#[tokio::test]
async fn a_statement_that_took_too_long_is_aborted_when_it_is_done() {
    let (deployment, proxy) = pair("max_pool_size = 3\ncommand_timeout_ms = 1000").await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut client = support::connect(proxy.address()).await;
    let raw = Raw::new();
    client.command(DATABASE, raw.first(change(1))).await.unwrap();
    let hold = hold_inserts(server, "transactions.c").await;
    let lost = client.command(DATABASE, raw.next(insert(1))).await.unwrap_err();
    assert!(lost.code() == Some(251) && lost.has_label(TRANSIENT_TRANSACTION_ERROR), "{lost}");
    assert_eq!(open(&proxy).0, 0);
    // The first abort does not wait for it for long, and has not come for nothing.
    eventually("the first abort gave up", async || open(&proxy).0 == 1).await;
    hold.release().await;
    eventually("aborted", async || on_server(server).await == (0, 2)).await;
    assert_eq!((count(&mut client).await, open(&proxy).0), (0, 0));
}
