//! What is held for long is shown with its reason, and ends by the limits that the operator has set.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::time::Duration as StdDuration;

use bson::{Document, doc};
use mongodb::Client;
use mongodb::error::{RETRYABLE_WRITE_ERROR, TRANSIENT_TRANSACTION_ERROR};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{Request, WireClient};
use mongomux::telemetry::labels::TransactionEnd;
use serde_json::Value;
use support::PATIENCE;
use support::hold::{eventually, hold_finds, hold_inserts};
use support::proxy::{Proxy, proxy};
use support::relay::Fault;
use support::statements::Raw;
use tokio::time::timeout;

const DATABASE: &str = "held";

/// Far more than a busy machine needs between two statements, or for a command that nothing keeps.
const IDLE_LIMIT: &str = "max_pool_size = 3\ntransaction_idle_timeout_ms = 1500";
const COMMAND_LIMIT: &str = "max_pool_size = 4\ncommand_timeout_ms = 2000";

/// Collections `c` and `d`, with documents in each that no limit of the proxy has seen.
async fn pair(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let mut client = support::client(&deployment.members()[0]).await;
    for collection in ["c", "d"] {
        let documents = vec![doc! { "_id": 0 }, doc! { "_id": -1 }, doc! { "_id": -2 }];
        client.command(DATABASE, doc! { "insert": collection, "documents": documents }).await.unwrap();
    }
    let proxy = proxy(&deployment.uri(), settings).await;
    (deployment, proxy)
}

fn insert(id: i32) -> Document {
    doc! { "insert": "c", "documents": [{ "_id": id }] }
}

fn change(id: i32) -> Document {
    doc! { "update": "d", "updates": [{ "q": { "_id": id }, "u": { "$inc": { "n": 1 } }, "upsert": true }] }
}

async fn count(client: &mut WireClient, collection: &str, filter: Document) -> usize {
    support::first_batch(&client.command(DATABASE, doc! { "find": collection, "filter": filter }).await.unwrap()).len()
}

/// How often the server was sent that command.
async fn sent(server: &Mongod, command: &str) -> i64 {
    let status = support::client(server).await.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let commands = status.get_document("metrics").unwrap().get_document("commands").unwrap();
    commands.get_document(command).unwrap().get_i64("total").unwrap()
}

fn ended(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("mongomux_transactions_ended_total{{reason=\"{reason}\"}}"))
}

fn open(proxy: &Proxy) -> usize {
    proxy.clusters()[0].pins.lock().unwrap().count().1
}

#[tokio::test]
async fn an_idle_transaction_is_aborted_and_its_client_starts_over() {
    let (deployment, proxy) = pair(IDLE_LIMIT).await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut client = support::connect(proxy.address()).await;
    let mut raw = Raw::new();
    client.command(DATABASE, raw.first(change(1))).await.unwrap();
    client.command(DATABASE, raw.next(insert(1))).await.unwrap();
    // Waits for the document that the transaction has changed.
    let mut blocked = support::client(server).await;
    let waiting = blocked.send(&Request::new(DATABASE, change(1))).await.unwrap();
    let freed = timeout(PATIENCE, blocked.receive(waiting)).await.expect("its locks are freed").unwrap();
    assert_eq!(freed.document().unwrap().get_i32("n").ok(), Some(1));
    assert_eq!((ended(&proxy, "idle"), ended(&proxy, "orphaned"), open(&proxy)), (1.0, 0.0, 0));

    let commits = sent(server, "commitTransaction").await;
    let late = client.command(DATABASE, raw.next(insert(2))).await.unwrap_err();
    assert!(late.code() == Some(251) && late.has_label(TRANSIENT_TRANSACTION_ERROR), "{late}");
    for _ in 0..2 {
        let commit = raw.end(&mut client, "commitTransaction").await.unwrap_err();
        assert!(commit.code() == Some(251) && commit.has_label(TRANSIENT_TRANSACTION_ERROR), "{commit}");
    }
    assert_eq!(raw.end(&mut client, "abortTransaction").await.unwrap_err().code(), Some(251));
    assert_eq!(sent(server, "commitTransaction").await, commits, "the server never heard of them");
    assert_eq!(count(&mut client, "c", doc! { "_id": { "$gt": 0 } }).await, 0);

    raw.number += 1;
    client.command(DATABASE, raw.first(insert(3))).await.unwrap();
    raw.end(&mut client, "commitTransaction").await.unwrap();
    // A commit that was heard of may be asked for again, however much later.
    let other = Raw::new();
    client.command(DATABASE, other.first(insert(4))).await.unwrap();
    eventually("the other one is idle for too long", async || ended(&proxy, "idle") == 2.0).await;
    raw.end(&mut client, "commitTransaction").await.unwrap();
    assert_eq!(count(&mut client, "c", doc! { "_id": { "$gt": 0 } }).await, 1);
}

/// Of two transactions the one that began to be idle later is ended, and the one that waits for its server is not.
#[tokio::test]
async fn a_transaction_with_a_statement_on_its_way_is_not_idle() {
    let (deployment, proxy) = pair(IDLE_LIMIT).await;
    let [server] = deployment.members() else { panic!("one server") };
    let (mut busy, mut idle) = (support::connect(proxy.address()).await, support::connect(proxy.address()).await);
    let (working, forgotten) = (Raw::new(), Raw::new());
    let hold = hold_inserts(server, "held.c").await;
    let slow = busy.send(&Request::new(DATABASE, working.first(insert(1)))).await.unwrap();
    hold.reaches(1).await;
    idle.command(DATABASE, forgotten.first(change(1))).await.unwrap();
    eventually("one is ended", async || ended(&proxy, "idle") == 1.0).await;
    assert_eq!(open(&proxy), 1, "the other one is not");
    hold.release().await;
    let inserted = timeout(PATIENCE, busy.receive(slow)).await.unwrap().unwrap().document().unwrap();
    assert_eq!(inserted.get_i32("n").ok(), Some(1), "{inserted}");
    working.end(&mut busy, "commitTransaction").await.unwrap();
    assert_eq!(count(&mut busy, "c", doc! { "_id": 1 }).await, 1);
}

/// A client that left in the middle of a statement: its server works on, and the transaction is not ended meanwhile.
#[tokio::test]
async fn a_statement_without_its_client_is_on_its_way_as_well() {
    let (deployment, proxy) = pair(IDLE_LIMIT).await;
    let [server] = deployment.members() else { panic!("one server") };
    let (mut leaving, mut idle) = (support::connect(proxy.address()).await, support::connect(proxy.address()).await);
    let (working, forgotten) = (Raw::new(), Raw::new());
    let hold = hold_inserts(server, "held.c").await;
    leaving.send(&Request::new(DATABASE, working.first(insert(1)))).await.unwrap();
    hold.reaches(1).await;
    drop(leaving);
    idle.command(DATABASE, forgotten.first(change(1))).await.unwrap();
    eventually("one is ended", async || ended(&proxy, "idle") == 1.0).await;
    assert_eq!((open(&proxy), ended(&proxy, "orphaned")), (1, 0.0));
    hold.release().await;
    eventually("the other one ends as well", async || open(&proxy) == 0).await;
}

/// The server has committed and nobody has heard of it: to say that the transaction is lost would make its client run it again.
#[tokio::test]
async fn a_transaction_whose_commit_was_sent_is_not_ended() {
    let (_deployment, relay, proxy) = support::relayed(IDLE_LIMIT).await;
    let mut client = support::connect(proxy.address()).await;
    client.command(DATABASE, doc! { "create": "c" }).await.unwrap();
    client.command(DATABASE, doc! { "create": "d" }).await.unwrap();
    let (committed, forgotten) = (Raw::new(), Raw::new());
    client.command(DATABASE, committed.first(insert(1))).await.unwrap();
    relay.next("commitTransaction", Fault::NoReply, 1);
    let lost = committed.end(&mut client, "commitTransaction").await.unwrap_err();
    assert!(lost.code() == Some(6) && lost.has_label(RETRYABLE_WRITE_ERROR), "{lost}");
    client.command(DATABASE, forgotten.first(change(1))).await.unwrap();
    eventually("the other one is ended", async || ended(&proxy, "idle") == 1.0).await;
    committed.end(&mut client, "commitTransaction").await.unwrap();
    assert_eq!(count(&mut client, "c", doc! {}).await, 1);
}

/// As applications write it: the callback runs again.
#[tokio::test]
async fn a_driver_runs_the_transaction_again() {
    let (_deployment, proxy) = pair(IDLE_LIMIT).await;
    let client = Client::with_uri_str(proxy.uri()).await.unwrap();
    let things = client.database(DATABASE).collection::<Document>("c");
    let mut session = client.start_session().await.unwrap();
    let (metrics, mut attempts) = (proxy.metrics().clone(), 0);
    let run = session.start_transaction().and_run(&mut attempts, |session, attempts| {
        let (things, metrics) = (things.clone(), metrics.clone());
        Box::pin(async move {
            **attempts += 1;
            things.insert_one(doc! { "_id": 1 }).session(&mut *session).await?;
            while metrics.transactions_ended[TransactionEnd::Idle].get() == 0 {
                tokio::time::sleep(StdDuration::from_millis(5)).await;
            }
            things.insert_one(doc! { "_id": 2 }).session(&mut *session).await.map(drop)
        })
    });
    timeout(PATIENCE, run).await.expect("it is ended, and run again").unwrap();
    assert_eq!(attempts, 2);
    let mut direct = support::connect(proxy.address()).await;
    assert_eq!(count(&mut direct, "c", doc! { "_id": { "$gt": 0 } }).await, 2);
}

/// `command_timeout_ms`, for each kind of operation on a real server. The connection is closed, which ends a read on the
/// server; a write goes on there, and is done whatever its client was told.
#[tokio::test]
async fn a_command_that_takes_too_long_is_answered_by_its_kind() {
    let (deployment, proxy) = pair(COMMAND_LIMIT).await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut client = support::connect(proxy.address()).await;

    let hold = hold_finds(server, "held.d").await;
    let read = client.reply(DATABASE, doc! { "find": "d" }).await.unwrap();
    assert_eq!(support::code_and_labels(&read), (89, vec![]), "{read}");
    hold.reaches(0).await;
    hold.release().await;

    let hold = hold_inserts(server, "held.c").await;
    let plain = client.reply(DATABASE, insert(1)).await.unwrap();
    assert_eq!(support::code_and_labels(&plain), (89, vec![]), "{plain}");
    let mut retryable = insert(2);
    retryable.extend(doc! { "lsid": support::new_lsid(), "txnNumber": 1_i64 });
    let retryable = client.reply(DATABASE, retryable).await.unwrap();
    assert_eq!(support::code_and_labels(&retryable), (89, vec![]), "a driver does not start it again: {retryable}");
    let raw = Raw::new();
    client.command(DATABASE, raw.first(change(1))).await.unwrap();
    let statement = client.reply(DATABASE, raw.next(insert(3))).await.unwrap();
    let transient = vec![TRANSIENT_TRANSACTION_ERROR.to_owned()];
    assert_eq!(support::code_and_labels(&statement), (251, transient), "{statement}");
    hold.reaches(3).await;
    hold.release().await;
    let written = doc! { "_id": { "$gt": 0 } };
    eventually("both writes are done", async || count(&mut client, "c", written.clone()).await == 2).await;
    eventually("the transaction is aborted", async || ended(&proxy, "reply_lost") == 1.0 && open(&proxy) == 0).await;

    let opened = client.command(DATABASE, doc! { "find": "d", "batchSize": 1 }).await.unwrap();
    let cursor = opened.get_document("cursor").unwrap().get_i64("id").unwrap();
    let block = doc! { "failCommands": ["getMore"], "blockConnection": true, "blockTimeMS": 30_000 };
    support::fail_command(server, 1, block).await;
    let more = client.reply(DATABASE, doc! { "getMore": cursor, "collection": "d" }).await.unwrap();
    assert_eq!(support::code_and_labels(&more), (43, vec![]), "{more}");
    assert_eq!(count(&mut client, "c", written).await, 2, "what never ended is written once");
}

async fn stats(proxy: &Proxy) -> Value {
    let answer = support::http(proxy.admin_address(), "GET", "/stats", "").await;
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// What each thing is, whose and why: as `what application reason`.
fn shown(stats: &Value) -> Vec<String> {
    let items = stats["clusters"][0]["servers"][0]["longHeld"]["items"].as_array().unwrap();
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or("-").to_owned();
    let mut all: Vec<_> = items
        .iter()
        .map(|item| format!("{} of {}: {}", text(item, "what"), text(item, "application"), text(item, "reason")))
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn what_is_held_for_long_is_shown_with_its_application_and_reason() {
    let (deployment, proxy) = pair("max_pool_size = 4\nlong_held_ms = 200").await;
    let [server] = deployment.members() else { panic!("one server") };
    assert_eq!(shown(&stats(&proxy).await), [""; 0]);
    let mut shop = WireClient::connect_as(proxy.address(), "shop").await.unwrap();
    let mut reports = WireClient::connect_as(proxy.address(), "reports").await.unwrap();
    shop.command(DATABASE, Raw::new().first(change(1))).await.unwrap();
    shop.command(DATABASE, doc! { "find": "d", "batchSize": 1 }).await.unwrap();
    let stream = doc! { "aggregate": "d", "pipeline": [{ "$changeStream": {} }], "cursor": {} };
    reports.command(DATABASE, stream).await.unwrap();
    let hold = hold_finds(server, "held.c").await;
    let slow = reports.send(&Request::new(DATABASE, doc! { "find": "c" })).await.unwrap();
    hold.reaches(1).await;
    let expected = [
        "command of reports: the command runs on the server",
        "cursor of reports: the cursor waits for data, as it is meant to",
        "cursor of shop: the cursor is open and not asked for more",
        "transaction of shop: the transaction is open and idle, and holds its locks",
    ];
    eventually("all are shown", async || shown(&stats(&proxy).await) == expected).await;
    let told = stats(&proxy).await;
    let server_stats = &told["clusters"][0]["servers"][0];
    assert_eq!(server_stats["longHeld"]["count"], 4);
    let advice = server_stats["recommendations"].to_string();
    for part in ["1 transactions are open", "1 cursors are open", "by `find`"] {
        assert!(advice.contains(part), "{part}: {advice}");
    }
    let page = support::http(proxy.admin_address(), "GET", "/metrics", "").await;
    for (what, count) in [("command", 1), ("cursor", 2), ("transaction", 1)] {
        let line = format!("mongomux_long_held{{what=\"{what}\"}} {count}");
        assert!(page.lines().any(|it| it == line), "missing: {line}");
    }
    hold.release().await;
    timeout(PATIENCE, reports.receive(slow)).await.unwrap().unwrap();
    eventually("the command is not", async || shown(&stats(&proxy).await) == expected[1..]).await;
    assert_eq!(StdDuration::from_millis(200), proxy.clusters()[0].config().long_held);
}
