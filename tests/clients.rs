//! Who is connected is told as it is, and whoever is ended ends as if it had left by itself: nothing of it stays, and nobody
//! else notices.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use bson::{Document, doc};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{Request, WireClient, WireError};
use serde_json::{Value, json};
use support::PATIENCE;
use support::hold::{eventually, hold_finds, hold_inserts};
use support::large::{all, sixteen_megabytes, slow_reader};
use support::proxy::{Proxy, proxy};
use support::statements::Raw;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

const DATABASE: &str = "clients";

async fn pair(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), settings).await;
    let mut client = support::connect(proxy.address()).await;
    client.command(DATABASE, doc! { "create": "c" }).await.unwrap();
    (deployment, proxy)
}

async fn named(proxy: &Proxy, application: &str) -> WireClient {
    WireClient::connect_as(proxy.address(), application).await.unwrap()
}

async fn get(proxy: &Proxy, path: &str) -> Value {
    let (status, body) = support::json(proxy.admin_address(), "GET", path, "").await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// The clients of an application, oldest first.
async fn listed(proxy: &Proxy, application: &str) -> Vec<Value> {
    let clients = get(proxy, &format!("/clients?list=1&limit=10000&application={application}")).await;
    clients["clients"].as_array().unwrap().clone()
}

async fn id_of(proxy: &Proxy, application: &str) -> u64 {
    let [client] = &listed(proxy, application).await[..] else { panic!("one client of {application}") };
    client["id"].as_u64().unwrap()
}

async fn kill(proxy: &Proxy, id: u64) -> (u16, Value) {
    support::json(proxy.admin_address(), "POST", &format!("/admin/clients/{id}/kill"), "").await
}

async fn await_gone(proxy: &Proxy, application: &str) {
    eventually("the client is gone", async || listed(proxy, application).await.is_empty()).await;
}

fn killed(proxy: &Proxy) -> f64 {
    proxy.metric("mongomux_client_connections_closed_total{reason=\"killed\"}")
}

#[track_caller]
fn assert_closed<T: std::fmt::Debug>(outcome: Result<T, WireError>) {
    assert!(matches!(outcome, Err(WireError::Closed { .. } | WireError::Io(_))), "{outcome:?}");
}

/// A number below `serverStatus` of a server.
async fn status(server: &Mongod, path: [&str; 2]) -> i64 {
    let status = support::client(server).await.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let value = status.get_document(path[0]).unwrap().get(path[1]).unwrap();
    value.as_i64().or(value.as_i32().map(i64::from)).unwrap()
}

/// What runs on a server, as far as `filter` names it.
async fn operations(server: &Mongod, filter: Document) -> Vec<bson::Bson> {
    let mut ask = doc! { "currentOp": true };
    ask.extend(filter);
    let answer = support::client(server).await.command("admin", ask).await.unwrap();
    answer.get_array("inprog").unwrap().clone()
}

#[tokio::test]
async fn clients_are_told_by_what_they_have_told_of_themselves() {
    let (deployment, proxy) = pair("").await;
    let mut shop = Vec::new();
    for _ in 0..3 {
        shop.push(named(&proxy, "shop").await);
    }
    let mail = named(&proxy, "mail").await;
    // Its hello tells where it listed: the number that it was told is the number of the list.
    let mut stranger = WireClient::connect(proxy.address()).await.unwrap();
    stranger.command("admin", doc! { "ping": 1 }).await.unwrap();
    let hold = hold_finds(&deployment.members()[0], "clients.c").await;
    shop[1].send(&Request::new(DATABASE, doc! { "find": "c" })).await.unwrap();
    hold.reaches(1).await;

    let told = get(&proxy, "/clients").await;
    let groups = told["groups"].as_array().unwrap();
    let sum: u64 = groups.iter().map(|group| group["clients"].as_u64().unwrap()).sum();
    assert_eq!((told["total"].as_u64().unwrap(), &told["otherClients"]), (sum, &json!(0)), "{told}");
    assert!(told.get("clients").is_none(), "{told}");
    let address = proxy.address().to_string();
    let group = |application: &str| groups.iter().find(|group| group["application"] == application).unwrap().clone();
    for (application, clients, active) in [("shop", 3, 1), ("mail", 1, 0), ("", 1, 0)] {
        let group = group(application);
        assert_eq!((&group["clients"], &group["active"]), (&json!(clients), &json!(active)), "{group}");
        assert_eq!((&group["listener"], &group["cluster"]), (&json!(address), &json!("default")), "{group}");
    }
    assert_ne!((&group("shop")["driver"], &group("shop")["driverVersion"]), (&json!(""), &json!("")));
    assert_eq!(group("")["driver"], "", "it has said no hello");
    let states: Vec<String> =
        listed(&proxy, "shop").await.iter().map(|client| client["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["idle", "active", "idle"]);
    hold.release().await;
    eventually("it is idle again", async || listed(&proxy, "shop").await[1]["state"] == "idle").await;

    let limited = get(&proxy, "/clients?list=1&limit=2").await;
    let ids: Vec<u64> =
        limited["clients"].as_array().unwrap().iter().map(|client| client["id"].as_u64().unwrap()).collect();
    assert!(ids.len() == 2 && ids[0] < ids[1], "{limited}");
    assert_eq!(limited["total"], told["total"]);
    drop((shop, mail));
    await_gone(&proxy, "shop").await;
    await_gone(&proxy, "mail").await;
    let (wrong, body) = support::json(proxy.admin_address(), "GET", "/clients?lst=1", "").await;
    assert!(wrong == 400 && body["error"].as_str().unwrap().contains("lst"), "{body}");
}

#[tokio::test]
async fn the_number_of_a_client_is_the_connection_id_of_its_hello() {
    let (_deployment, proxy) = pair("").await;
    let mut client = WireClient::connect(proxy.address()).await.unwrap();
    let hello = client.hello("numbered").await.unwrap();
    let told = hello.get("connectionId").and_then(|id| id.as_i64().or(id.as_i32().map(i64::from))).unwrap();
    assert_eq!(id_of(&proxy, "numbered").await, told.unsigned_abs());
}

#[tokio::test]
async fn an_idle_client_is_ended_and_nobody_else() {
    let (_deployment, proxy) = pair("").await;
    let (mut shop, mut mail) = (named(&proxy, "shop").await, named(&proxy, "mail").await);
    let id = id_of(&proxy, "shop").await;
    let (status, answer) = kill(&proxy, id).await;
    assert_eq!((status, answer), (200, json!({"killed": true, "id": id})));
    let ended = timeout(PATIENCE, shop.read_message()).await.expect("it is woken");
    assert_closed(ended);
    await_gone(&proxy, "shop").await;
    let (status, answer) = kill(&proxy, id).await;
    let known = answer["error"].as_str().unwrap();
    assert_eq!(status, 404);
    assert!(known.contains(&format!("no client {id} is connected, it has left")), "{known}");
    let (status, answer) = kill(&proxy, 1_000_000).await;
    assert!(status == 404 && answer["error"].as_str().unwrap().contains("there was none so far"), "{answer}");
    assert_eq!(support::json(proxy.admin_address(), "POST", "/admin/clients/x/kill", "").await.0, 400);
    mail.command(DATABASE, doc! { "find": "c" }).await.unwrap();
    assert_eq!(killed(&proxy), 1.0);
    let events = get(&proxy, "/events?kind=client_killed").await;
    let text = events[0]["text"].as_str().unwrap();
    assert!(text.starts_with(&format!("client {id} of the application \"shop\" at 127.0.0.1:")), "{text}");
    let orders = get(&proxy, "/events?kind=action&limit=9").await;
    assert!(orders.to_string().contains(&format!("/admin/clients/{id}/kill by ")), "{orders}");
}

#[tokio::test]
async fn an_application_is_ended_as_a_whole() {
    let (_deployment, proxy) = pair("").await;
    let mut shop = vec![named(&proxy, "shop").await, named(&proxy, "shop").await];
    let mut mail = named(&proxy, "mail").await;
    let order = async |body: &str| support::json(proxy.admin_address(), "POST", "/admin/clients/kill", body).await;
    assert_eq!(order(r#"{"application": "shop"}"#).await, (200, json!({"killed": 2})));
    for client in &mut shop {
        assert_closed(timeout(PATIENCE, client.read_message()).await.expect("it is woken"));
    }
    await_gone(&proxy, "shop").await;
    assert_eq!(order(r#"{"application": "shop"}"#).await, (200, json!({"killed": 0})), "again is no mistake");
    let (status, answer) = order(r#"{"app": "mail"}"#).await;
    assert!(status == 400 && answer["error"].as_str().unwrap().contains(r#"{"application": "NAME"}"#), "{answer}");
    mail.command(DATABASE, doc! { "find": "c" }).await.unwrap();
}

/// Its transaction is aborted once the server is done with its last statement, and what it held is free.
#[tokio::test]
async fn in_the_middle_of_a_command_it_ends_as_a_client_that_vanishes() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut shop = named(&proxy, "shop").await;
    let transaction = Raw::new();
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }] };
    shop.command(DATABASE, transaction.first(insert)).await.unwrap();
    assert_eq!(status(server, ["transactions", "currentOpen"]).await, 1);
    let hold = hold_finds(server, "clients.c").await;
    shop.send(&Request::new(DATABASE, transaction.next(doc! { "find": "c" }))).await.unwrap();
    hold.reaches(1).await;

    assert_eq!(kill(&proxy, id_of(&proxy, "shop").await).await.0, 200);
    assert_closed(timeout(PATIENCE, shop.read_message()).await.expect("it is woken"));
    await_gone(&proxy, "shop").await;
    hold.release().await;
    let aborted = async || status(server, ["transactions", "currentOpen"]).await == 0;
    eventually("its transaction is aborted", aborted).await;
    let free = || proxy.clusters()[0].servers()[0].pool.snapshot().counts.in_use == 0;
    eventually("its connection is free", async || free()).await;
    let mut other = named(&proxy, "mail").await;
    let found = other.command(DATABASE, doc! { "find": "c" }).await.unwrap();
    assert_eq!(support::first_batch(&found), Vec::<Document>::new(), "nothing of it was committed");
    assert_eq!(killed(&proxy), 1.0);
    assert_eq!(proxy.metric("mongomux_commands_total{command=\"find\",outcome=\"abandoned\"}"), 1.0);
}

/// What it reads for long in a transaction is ended on the server as well, and so is the transaction.
#[tokio::test]
async fn a_long_statement_of_a_transaction_is_interrupted() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut shop = named(&proxy, "shop").await;
    let documents: Vec<Document> = (0..1_000).map(|id| doc! { "_id": id }).collect();
    shop.command(DATABASE, doc! { "insert": "c", "documents": documents }).await.unwrap();
    let transaction = Raw::new();
    let insert = doc! { "insert": "c", "documents": [{ "_id": -1 }] };
    shop.command(DATABASE, transaction.first(insert)).await.unwrap();
    // Longer than anybody here is patient.
    let find = doc! { "find": "c", "filter": { "$where": "sleep(200) || true" } };
    shop.send(&Request::new(DATABASE, transaction.next(find))).await.unwrap();
    let runs = async || !operations(server, doc! { "op": "query", "ns": "clients.c" }).await.is_empty();
    eventually("it runs", runs).await;

    assert_eq!(kill(&proxy, id_of(&proxy, "shop").await).await.0, 200);
    eventually("it is interrupted", async || !runs().await).await;
    let aborted = async || status(server, ["transactions", "currentOpen"]).await == 0;
    eventually("its transaction is aborted", aborted).await;
}

/// A write that was sent runs to its end, and a cursor that nobody will read is killed.
#[tokio::test]
async fn what_was_sent_is_not_undone_and_leaves_nothing_open() {
    let (deployment, proxy) = pair("max_pool_size = 2").await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut filling = named(&proxy, "filling").await;
    let documents: Vec<Document> = (0..200).map(|id| doc! { "_id": id }).collect();
    filling.command(DATABASE, doc! { "insert": "c", "documents": documents }).await.unwrap();

    let mut writer = named(&proxy, "writer").await;
    let hold = hold_inserts(server, "clients.c").await;
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1_000 }] };
    writer.send(&Request::new(DATABASE, insert)).await.unwrap();
    hold.reaches(1).await;
    assert_eq!(kill(&proxy, id_of(&proxy, "writer").await).await.0, 200);
    await_gone(&proxy, "writer").await;
    hold.release().await;
    let written = async || {
        let found = filling.command(DATABASE, doc! { "find": "c", "filter": { "_id": 1_000 } }).await.unwrap();
        support::first_batch(&found).len() == 1
    };
    eventually("the write is there", written).await;

    let mut reader = named(&proxy, "reader").await;
    let hold = hold_finds(server, "clients.c").await;
    reader.send(&Request::new(DATABASE, doc! { "find": "c", "batchSize": 2 })).await.unwrap();
    hold.reaches(1).await;
    assert_eq!(kill(&proxy, id_of(&proxy, "reader").await).await.0, 200);
    hold.release().await;
    await_gone(&proxy, "reader").await;
    let none_open = async || {
        let status = support::client(server).await.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
        let cursors = status.get_document("metrics").unwrap().get_document("cursor").unwrap();
        cursors.get_document("open").unwrap().get_i64("total").unwrap() == 0
    };
    eventually("its cursor is killed", none_open).await;
}

#[tokio::test]
async fn one_that_waits_in_the_queue_leaves_it_and_is_never_carried_out() {
    let (deployment, proxy) = pair("max_pool_size = 1\nmin_pool_size = 1\nwait_queue_timeout_ms = 60000").await;
    let [server] = deployment.members() else { panic!("one server") };
    let (mut holder, mut waiter) = (named(&proxy, "holder").await, named(&proxy, "waiter").await);
    let hold = hold_finds(server, "clients.c").await;
    let find = holder.send(&Request::new(DATABASE, doc! { "find": "c" })).await.unwrap();
    hold.reaches(1).await;
    let insert = doc! { "insert": "c", "documents": [{ "_id": 7 }] };
    waiter.send(&Request::new(DATABASE, insert)).await.unwrap();
    let waiting = || proxy.clusters()[0].admission.waiting();
    eventually("it waits", async || waiting() == 1).await;
    assert_eq!(kill(&proxy, id_of(&proxy, "waiter").await).await.0, 200);
    eventually("it waits no more", async || waiting() == 0).await;
    assert_closed(timeout(PATIENCE, waiter.read_message()).await.expect("it is woken"));
    hold.release().await;
    holder.receive(find).await.unwrap();
    let found = holder.command(DATABASE, doc! { "find": "c" }).await.unwrap();
    assert_eq!(support::first_batch(&found), Vec::<Document>::new());
}

#[tokio::test]
async fn one_that_does_not_read_its_reply_is_ended_as_well() {
    let deployment = support::standalone().await;
    sixteen_megabytes(&deployment.members()[0]).await;
    let proxy = proxy(&deployment.uri(), "client_stall_timeout_ms = 600000").await;
    let mut reader = slow_reader(proxy.address(), all()).await;
    eventually("its reply waits for it", async || {
        proxy.metric("mongomux_commands_total{command=\"find\",outcome=\"completed\"}") == 1.0
    })
    .await;
    let [client] = &listed(&proxy, "").await[..] else { panic!("one client") };
    assert_eq!(client["state"], "active");
    assert_eq!(kill(&proxy, client["id"].as_u64().unwrap()).await.0, 200);
    eventually("it is gone", async || listed(&proxy, "").await.is_empty()).await;
    assert_eq!(killed(&proxy), 1.0);
    let mut rest = Vec::new();
    // What was on its way still comes, and then the end, in either form.
    let ended = timeout(PATIENCE, reader.read_to_end(&mut rest)).await.expect("its socket is closed");
    assert!(rest.len() < 16_000_000, "{} bytes, {ended:?}", rest.len());
    eventually("its memory is free", async || proxy.clusters()[0].memory.used() == 0).await;
}

/// Clients that are ended all the time, beside others that are not: what was acknowledged is there, and nobody else is touched.
#[tokio::test]
async fn under_load_only_those_are_touched_that_are_ended() {
    const CLIENTS: usize = 12;
    const ROUNDS: usize = 150;
    let (deployment, proxy) = pair("max_pool_size = 3").await;
    let proxy = Arc::new(proxy);
    let (next, acknowledged) = (Arc::new(AtomicI32::new(0)), Arc::new(Mutex::new(BTreeSet::new())));
    let over = Arc::new(AtomicBool::new(false));
    let mut set = JoinSet::new();
    for client in 0..CLIENTS {
        let (proxy, next, acknowledged, over) = (proxy.clone(), next.clone(), acknowledged.clone(), over.clone());
        let mortal = client % 2 == 0;
        set.spawn(async move {
            let application = if mortal { "mortal" } else { "calm" };
            let mut ended = 0_usize;
            let mut socket = named(&proxy, application).await;
            while !over.load(Ordering::Relaxed) {
                let id = next.fetch_add(1, Ordering::Relaxed);
                let insert = doc! { "insert": "c", "documents": [{ "_id": id }] };
                match socket.command(DATABASE, insert).await {
                    Ok(reply) => {
                        assert_eq!(reply.get_i32("n").unwrap(), 1, "{reply}");
                        acknowledged.lock().unwrap().insert(id);
                        let find = doc! { "find": "c", "filter": { "_id": id } };
                        match socket.command(DATABASE, find).await {
                            Ok(found) => assert_eq!(support::first_batch(&found), [doc! { "_id": id }]),
                            Err(error) => {
                                assert!(mortal, "{error}");
                                ended += 1;
                                socket = named(&proxy, application).await;
                            }
                        }
                    }
                    Err(error) => {
                        assert!(mortal && error.code().is_none(), "{error}");
                        ended += 1;
                        socket = named(&proxy, application).await;
                    }
                }
            }
            ended
        });
    }
    let mut told = 0;
    for _ in 0..ROUNDS {
        for client in listed(&proxy, "mortal").await.iter().take(2) {
            told += u64::from(kill(&proxy, client["id"].as_u64().unwrap()).await.0 == 200);
        }
    }
    over.store(true, Ordering::Relaxed);
    let mut ended = 0;
    while let Some(one) = set.join_next().await {
        ended += one.unwrap();
    }
    assert!(ended >= ROUNDS / 2, "{ended} of {told} that were told to go have noticed");
    eventually("nobody is left", async || get(&proxy, "/clients").await["total"] == 0).await;
    let mut client = support::connect(proxy.address()).await;
    let everything = doc! { "find": "c", "batchSize": 1_000_000 };
    let there = support::first_batch(&client.command(DATABASE, everything).await.unwrap());
    let there: BTreeSet<i32> = there.iter().map(|document| document.get_i32("_id").unwrap()).collect();
    assert!(acknowledged.lock().unwrap().is_subset(&there), "something that was acknowledged is not there");
    let created = proxy.clusters()[0].servers()[0].pool.snapshot();
    assert!(created.counts.total() <= 3, "{created:?}");
    drop(deployment);
}
