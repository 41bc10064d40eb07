//! A server that answers heartbeats and nothing else: commands are refused at once instead of queueing up for it.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Document, doc};
use futures_util::future::join_all;
use mongomux::config::Address;
use mongomux::sandbox::wire_client::WireClient;
use support::hold::eventually;
use support::proxy::{Proxy, proxy};
use support::relay::{Door, Relay};
use support::{code_and_labels, connect, first_batch, new_lsid};
use tokio::time::{Duration, Instant};

/// No connection without demand, so that each is asked for; trouble and recovery within a second.
const SETTINGS: &str = "
    min_pool_size = 0
    max_pool_size = 6
    max_connecting = 2
    connect_timeout_ms = 500
    wait_queue_timeout_ms = 20_000
    reconnect.initial_ms = 10
    reconnect.max_ms = 50
    breaker.open_initial_ms = 200
    breaker.open_max_ms = 400
";

/// Of `max_connecting` in [`SETTINGS`].
const MAX_CONNECTING: usize = 2;

const NOT_SENT: [&str; 2] = ["SystemOverloadedError", "RetryableError"];

fn breaker_state(proxy: &Proxy, server: &Address) -> f64 {
    proxy.metric(&format!("mongomux_breaker_state{{server=\"{server}\"}}"))
}

fn times_opened(proxy: &Proxy, server: &Address) -> f64 {
    proxy.metric(&format!("mongomux_breaker_transitions_total{{server=\"{server}\",to=\"open\"}}"))
}

/// Says hello again and again, on an old socket and on new ones, and fails when one has to wait.
async fn greet(proxy: &Proxy, mut old: WireClient) {
    loop {
        let asked = Instant::now();
        old.command("admin", doc! { "hello": 1 }).await.unwrap();
        connect(proxy.address()).await;
        assert!(asked.elapsed() < Duration::from_secs(2), "hello took {:?}", asked.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn with_more(labels: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = labels.iter().chain(&NOT_SENT).map(|label| (*label).to_owned()).collect();
    all.sort();
    all
}

/// Commands of every kind, with the labels that each is refused with.
fn commands(cursor: i64) -> Vec<(Document, Vec<String>)> {
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }] };
    let mut retryable = insert.clone();
    retryable.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64 });
    let mut statement = insert.clone();
    statement.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64, "startTransaction": true, "autocommit": false });
    vec![
        (doc! { "find": "c" }, with_more(&[])),
        (insert, with_more(&[])),
        (retryable, with_more(&["RetryableWriteError", "NoWritesPerformed"])),
        (statement, with_more(&["TransientTransactionError"])),
        (doc! { "getMore": cursor, "collection": "many" }, with_more(&[])),
        (doc! { "createIndexes": "c", "indexes": [{ "key": { "x": 1 }, "name": "x" }] }, with_more(&[])),
    ]
}

async fn trouble_at_the_door(door: Door, reason: &str) {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let mut relay = Relay::start(server.address());
    let proxy = proxy(&relay.uri(), SETTINGS).await;
    let mut client = connect(proxy.address()).await;
    let documents: Vec<Document> = (0..10).map(|id| doc! { "_id": id }).collect();
    client.command("test", doc! { "insert": "many", "documents": documents }).await.unwrap();
    let found = client.command("test", doc! { "find": "many", "batchSize": 2 }).await.unwrap();
    let cursor = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    eventually("both monitoring connections", async || relay.monitors() >= 2).await;
    let old = connect(proxy.address()).await;

    let scenario = async {
        relay.set_door(door).await;
        relay.cut();
        let dials = relay.dials();
        let commands = commands(cursor);
        let mut clients = join_all(commands.iter().map(|_| connect(proxy.address()))).await;
        let replies = join_all(
            clients.iter_mut().zip(&commands).map(|(client, (command, _))| client.reply("test", command.clone())),
        );
        let asked = Instant::now();
        for (reply, (command, labels)) in replies.await.into_iter().zip(&commands) {
            let reply = reply.expect("an open socket");
            let (code, mut found) = code_and_labels(&reply);
            found.sort();
            assert_eq!((code, &found), (6, labels), "{command}: {reply}");
            let text = reply.get_str("errmsg").unwrap();
            assert!(text.contains(&relay.address().to_string()) && text.contains(reason), "{text}");
        }
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(times_opened(&proxy, relay.address()) >= 1.0);
        assert!(breaker_state(&proxy, relay.address()) > 0.0, "it stays open");
        assert!(relay.most_hanging() <= MAX_CONNECTING, "{} at once", relay.most_hanging());
        // Six commands wait, and five failures trip: what is in flight then may fail as well, and a probe or two.
        assert!(relay.dials() - dials <= 10, "{} attempts", relay.dials() - dials);
        let asked = Instant::now();
        let at_once = client.reply("test", doc! { "find": "c" }).await.unwrap();
        assert_eq!(at_once.get_i32("code").ok(), Some(6), "{at_once}");
        assert!(
            asked.elapsed() < Duration::from_millis(300),
            "an open breaker lets nobody wait: {:?}",
            asked.elapsed()
        );

        relay.set_door(Door::Open).await;
        eventually("a closed breaker", async || breaker_state(&proxy, relay.address()) == 0.0).await;
        let more = doc! { "getMore": cursor, "collection": "many" };
        let rest = client.command("test", more).await.expect("the cursor was not given up");
        assert_eq!(first_batch_or_next(&rest).len(), 8);
        for client in &mut clients {
            client.command("test", doc! { "find": "c" }).await.expect("an open socket and a server again");
        }
    };
    tokio::select! {
        () = scenario => {}
        () = greet(&proxy, old) => {}
    }
}

fn first_batch_or_next(reply: &Document) -> Vec<Document> {
    if reply.get_document("cursor").is_ok_and(|cursor| cursor.contains_key("nextBatch")) {
        support::next_batch(reply)
    } else {
        first_batch(reply)
    }
}

#[tokio::test]
async fn a_port_that_refuses() {
    trouble_at_the_door(Door::Refuse, "Connection refused").await;
}

#[tokio::test]
async fn a_port_that_accepts_and_closes() {
    trouble_at_the_door(Door::Close, "the server closed the connection").await;
}

#[tokio::test]
async fn a_port_that_accepts_and_hangs() {
    trouble_at_the_door(Door::Hang, "no connection within 500 ms").await;
}

#[tokio::test]
async fn a_port_that_does_not_answer() {
    trouble_at_the_door(Door::Unanswered, "no connection within 500 ms").await;
}

#[tokio::test]
async fn a_server_that_monitoring_has_lost_as_well_is_waited_for() {
    let mut deployment = support::standalone().await;
    let settings = format!("{SETTINGS}\nserver_selection_timeout_ms = 700");
    let proxy = proxy(&deployment.uri(), &settings).await;
    let mut client = connect(proxy.address()).await;
    let journaled = doc! { "w": 1, "j": true };
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }], "writeConcern": journaled };
    client.command("test", insert).await.unwrap();
    let old = connect(proxy.address()).await;
    let scenario = async {
        let address = deployment.member(0).address();
        deployment.member(0).kill().await.unwrap();
        let insert = doc! { "insert": "c", "documents": [{ "_id": 2 }], "lsid": new_lsid(), "txnNumber": 1_i64 };
        let cases = [(doc! { "find": "c" }, vec![]), (insert, vec!["RetryableWriteError", "NoWritesPerformed"])];
        for (command, labels) in cases {
            let asked = Instant::now();
            let reply = client.reply("test", command).await.unwrap();
            assert!(asked.elapsed() >= Duration::from_millis(600), "it waited only {:?}", asked.elapsed());
            assert!(asked.elapsed() < Duration::from_secs(5), "it waited {:?}", asked.elapsed());
            let labels: Vec<String> = labels.into_iter().map(ToOwned::to_owned).collect();
            assert_eq!(code_and_labels(&reply), (6, labels), "{reply}");
            let text = reply.get_str("errmsg").unwrap();
            assert!(text.contains(&address.to_string()) && text.contains("Connection refused"), "{text}");
        }
        deployment.member(0).restart().await.unwrap();
        eventually("the server", async || proxy.clusters()[0].not_ready().is_none()).await;
        let found = client.command("test", doc! { "find": "c" }).await.unwrap();
        assert_eq!(first_batch(&found).len(), 1);
        assert_eq!(breaker_state(&proxy, &address), 0.0);
    };
    tokio::select! {
        () = scenario => {}
        () = greet(&proxy, old) => {}
    }
}
