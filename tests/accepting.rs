//! Who connects when there is no room: a few more are accepted and told so, the others wait in the backlog, and nobody is closed.
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod support;

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use mongomux::config::Address;
use mongomux::sandbox::wire_client::{MORE_TO_COME, Request, WireClient};
use support::counts::Bound;
use support::hold::eventually;
use support::proxy::{Proxy, configured, proxy};
use support::{assert_overloaded, first_batch, labels, raw};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// Far above what an answer takes on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// So long is waited for what is not to happen.
const NEVER: Duration = Duration::from_millis(200);

/// A client that found a place and was greeted.
async fn connect(address: &Address) -> WireClient {
    timeout(AT_ONCE, support::connect(address)).await.expect("there is a place")
}

fn opened(proxy: &Proxy) -> f64 {
    proxy.metric("mongomux_client_connections_opened_total")
}

fn surplus(proxy: &Proxy) -> f64 {
    proxy.metric("mongomux_client_connections_surplus")
}

fn insert(id: i32) -> Document {
    doc! { "insert": "c", "documents": [{ "_id": id }] }
}

fn found(reply: &Document) -> Vec<i32> {
    first_batch(reply).iter().map(|document| document.get_i32("_id").unwrap()).collect()
}

#[tokio::test]
async fn a_few_more_are_told_that_there_is_no_room_and_the_others_wait_in_the_backlog() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), "max_clients = 2").await;
    let first = connect(proxy.address()).await;
    let mut second = connect(proxy.address()).await;
    let mut third = connect(proxy.address()).await;
    assert_eq!((opened(&proxy), surplus(&proxy)), (3.0, 1.0));
    let refused = third.reply("test", doc! { "find": "c" }).await.unwrap();
    assert_overloaded(&refused);
    let message = refused.get_str("errmsg").unwrap();
    assert_eq!(message, "mongomux: proxy overloaded: 3 clients are connected, and the commands of 2 are carried out");
    for command in [insert(1), doc! { "ping": 1 }, doc! { "getMore": 5_i64, "collection": "c" }] {
        assert_overloaded(&third.reply("test", command).await.unwrap());
    }
    // What the proxy answers itself is answered, and what it refuses is refused for its own reason.
    for command in [doc! { "hello": 1 }, doc! { "connPoolStats": 1 }, doc! { "endSessions": [] }] {
        third.command("admin", command).await.unwrap();
    }
    let forbidden = third.reply("admin", doc! { "shutdown": 1 }).await.unwrap();
    assert_ne!(forbidden.get_i32("code").unwrap(), 462, "{forbidden}");
    let stats = support::http(proxy.admin_address(), "GET", "/stats", "").await;
    assert!(stats.contains("\"surplusClients\":1"), "{stats}");

    let mut fourth = WireClient::connect(proxy.address()).await.expect("the system accepts");
    let hello = fourth.send(&Request::new("admin", doc! { "hello": 1 })).await.unwrap();
    assert!(timeout(NEVER, fourth.receive(hello)).await.is_err(), "there is no place for it");
    assert_eq!(opened(&proxy), 3.0);

    drop(first);
    timeout(AT_ONCE, fourth.receive(hello)).await.expect("a place was freed").unwrap();
    third.command("test", insert(2)).await.expect("it is one of the two now");
    assert_overloaded(&fourth.reply("test", insert(3)).await.unwrap());
    let reply = second.command("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(found(&reply), [2], "what was refused was never sent");
    assert_eq!((proxy.shed("max_clients"), opened(&proxy), surplus(&proxy)), (5.0, 4.0, 1.0));
    drop((second, third));
    eventually("the last one has all the room there is", async || surplus(&proxy) == 0.0).await;
    fourth.command("test", insert(4)).await.unwrap();
    assert_eq!(proxy.clients_closed("client_left"), 3.0);
    proxy.settles().await;
}

#[tokio::test]
async fn unacknowledged_writes_beyond_the_limit_are_dropped_and_counted() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), "max_clients = 1").await;
    let mut first = connect(proxy.address()).await;
    let mut second = connect(proxy.address()).await;
    let mut write = insert(1);
    write.insert("writeConcern", doc! { "w": 0 });
    second.send(&Request::new("test", write).flags(MORE_TO_COME)).await.unwrap();
    // Answered once that is done with, and the first thing that is answered.
    second.command("admin", doc! { "hello": 1 }).await.unwrap();
    assert_eq!((proxy.shed("unacknowledged"), proxy.shed("max_clients")), (1.0, 0.0));
    assert_eq!(found(&first.command("test", doc! { "find": "c" }).await.unwrap()), [0; 0]);
}

#[tokio::test]
async fn what_frees_something_is_served_without_room() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "max_clients = 1").await;
    let mut first = connect(proxy.address()).await;
    let documents: Vec<Document> = (0..10).map(|id| doc! { "_id": id }).collect();
    first.command("test", doc! { "insert": "c", "documents": documents }).await.unwrap();
    let opened = first.command("test", doc! { "find": "c", "batchSize": 2 }).await.unwrap();
    let cursor = opened.get_document("cursor").unwrap().get_i64("id").unwrap();
    let in_transaction = |mut command: Document, number: i64| {
        let session = Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![7; 16] });
        command.extend(doc! { "lsid": { "id": session }, "txnNumber": number, "autocommit": false });
        command
    };
    let mut second = connect(proxy.address()).await;
    for (number, end) in [(1, "commitTransaction"), (2, "abortTransaction")] {
        let id = 100 + i32::try_from(number).unwrap();
        let mut begin = in_transaction(insert(id), number);
        begin.insert("startTransaction", true);
        let refused = second.reply("test", begin.clone()).await.unwrap();
        assert_overloaded(&refused);
        assert!(labels(&refused).iter().any(|it| it == "TransientTransactionError"), "{refused}");
        first.command("test", begin).await.unwrap();
        second.command("test", in_transaction(insert(id + 100), number)).await.expect("it holds locks");
        second.command("admin", in_transaction(doc! { end: 1 }, number)).await.unwrap();
    }
    let get_more = doc! { "getMore": cursor, "collection": "c" };
    assert_overloaded(&second.reply("test", get_more).await.unwrap());
    let kill = doc! { "killCursors": "c", "cursors": [cursor] };
    let killed = second.command("test", kill).await.unwrap();
    assert_eq!(killed.get_array("cursorsKilled").unwrap().len(), 1, "{killed}");
    let all = first.command("test", doc! { "find": "c", "filter": { "_id": { "$gte": 100 } } }).await.unwrap();
    assert_eq!(found(&all), [101, 201], "committed, and aborted");
    assert_eq!((proxy.pinned(), surplus(&proxy)), ((0, 0), 1.0));
    proxy.settles().await;
}

#[tokio::test]
async fn who_says_nothing_is_closed_and_frees_its_place_surplus_or_not() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), "max_clients = 1\nhandshake_timeout_ms = 2000").await;
    let hello = raw::command(doc! { "hello": 1, "$db": "admin" });
    let mut silent = raw::connect(proxy.address()).await;
    let mut slow = raw::connect(proxy.address()).await;
    tokio::io::AsyncWriteExt::write_all(&mut slow, &hello[..hello.len() - 1]).await.unwrap();
    eventually("both have a place", async || surplus(&proxy) == 1.0).await;
    // Waits in the backlog until one of them is given up.
    let mut client = connect(proxy.address()).await;
    assert!(raw::ends(&mut silent).await && raw::ends(&mut slow).await);
    eventually("both are counted", async || proxy.clients_closed("handshake_timeout") == 2.0).await;
    client.command("test", doc! { "ping": 1 }).await.expect("nobody else is there");
    assert_eq!(surplus(&proxy), 0.0);
}

#[tokio::test]
async fn a_listener_without_clients_keeps_no_place_from_the_others() {
    let deployment = support::standalone().await;
    let listeners = "listen = [\"127.0.0.1:0\", \"127.0.0.1:0\", \"127.0.0.1:0\"]\nmax_clients = 2\n";
    let proxy = configured(&format!("upstream = \"{}\"\n{listeners}", deployment.uri())).await;
    let [first, second, _] = proxy.addresses() else { panic!("three were asked for") };
    let mut clients = [connect(first).await, connect(first).await, connect(second).await];
    for client in &mut clients[..2] {
        client.command("test", doc! { "ping": 1 }).await.unwrap();
    }
    assert_overloaded(&clients[2].reply("test", doc! { "ping": 1 }).await.unwrap());
}

/// On one thread, so that nobody runs between two looks but those whose turn it is.
#[tokio::test]
async fn a_crowd_is_accepted_a_few_at_a_time() {
    const CROWD: u32 = 300;
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), "").await;
    drop(connect(proxy.address()).await);
    let before = opened(&proxy);
    let address = proxy.address().to_string();
    // The system completes them, and nobody has accepted any yet.
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let (mut seen, mut most) = (opened(&proxy), 0.0_f64);
    assert_eq!(seen, before);
    let all = async {
        while seen < before + f64::from(CROWD) {
            tokio::task::yield_now().await;
            let now = opened(&proxy);
            most = most.max(now - seen);
            seen = now;
        }
    };
    timeout(AT_ONCE, all).await.expect("all are accepted");
    assert!(most <= 32.0, "{most} in one turn of all others");
    drop(crowd);
}

/// A find whose answer is known: the asker's number.
async fn ask(client: &mut WireClient, number: i32) -> Result<(), Document> {
    let echo = doc! { "aggregate": 1, "pipeline": [{ "$documents": [{ "_id": number }] }], "cursor": {} };
    let reply = client.reply("test", echo).await.unwrap();
    if reply.get_f64("ok").unwrap() != 1.0 {
        return Err(reply);
    }
    assert_eq!(found(&reply), [number], "an answer for somebody else");
    Ok(())
}

/// Connects, greets and asks; what it got is told with it.
async fn newcomer(address: &Address, number: i32) -> (i32, WireClient, Result<(), Document>) {
    let mut client = WireClient::connect(address).await.unwrap();
    let hello = client.hello("storm").await.unwrap();
    assert_eq!(hello.get_f64("ok").unwrap(), 1.0, "{hello}");
    let answer = ask(&mut client, number).await;
    (number, client, answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_connects_is_absorbed() {
    const STORM: usize = 5_000;
    const PATRONS: usize = 20;
    const LIMIT: usize = 4_500;
    const SURPLUS: usize = LIMIT / 10;
    // 70 of the storm find no place at first.
    const ROOM: usize = LIMIT + SURPLUS - PATRONS;
    // Both ends of each socket are in this process.
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(files > 2 * STORM as u64 + 500, "the limit of open files is {files}");
    let deployment = support::standalone().await;
    let patient = "wait_queue_size = 10000\nwait_queue_timeout_ms = 60000\nhandshake_timeout_ms = 60000";
    let proxy = proxy(&deployment.uri(), &format!("max_clients = {LIMIT}\n{patient}")).await;
    let bound = Bound::watch(&deployment.members()[0]).await;
    let address = proxy.address();

    // Who is served when it comes is served while it lasts.
    let over = Arc::new(AtomicBool::new(false));
    let mut patrons = tokio::task::JoinSet::new();
    let answers: Arc<Vec<AtomicUsize>> = Arc::new((0..PATRONS).map(|_| AtomicUsize::new(0)).collect());
    for patron in 0..PATRONS {
        let mut client = connect(address).await;
        let (over, answers) = (over.clone(), answers.clone());
        patrons.spawn(async move {
            let number = -i32::try_from(patron).unwrap();
            while !over.load(Ordering::Relaxed) {
                ask(&mut client, number).await.unwrap();
                answers[patron].fetch_add(1, Ordering::Relaxed);
            }
            client
        });
    }
    eventually("all of them are at it", async || answers.iter().all(|count| count.load(Ordering::Relaxed) > 0)).await;
    let before: Vec<usize> = answers.iter().map(|count| count.load(Ordering::Relaxed)).collect();

    let numbers = 1..=i32::try_from(STORM).unwrap();
    let mut storm: FuturesUnordered<_> = numbers.map(|number| newcomer(address, number)).collect();
    let (mut served, mut refused) = (Vec::new(), Vec::new());
    while served.len() + refused.len() < ROOM {
        match storm.next().await.unwrap() {
            (number, client, Ok(())) => served.push((number, client)),
            (number, client, Err(reply)) => {
                assert_overloaded(&reply);
                refused.push((number, client));
            }
        }
    }
    assert_eq!((served.len(), refused.len()), (LIMIT - PATRONS, SURPLUS));
    assert_eq!((opened(&proxy), surplus(&proxy)), ((LIMIT + SURPLUS) as f64, SURPLUS as f64));
    for (patron, before) in before.iter().enumerate() {
        assert!(answers[patron].load(Ordering::Relaxed) > *before, "patron {patron} stood still");
    }

    // Some leave: the others come in, and as many as have left find room.
    let leave = 100;
    served.truncate(served.len() - leave);
    while let Some((number, client, answer)) = storm.next().await {
        assert!(answer.is_err_and(|reply| reply.get_i32("code").unwrap() == 462), "others have waited longer");
        refused.push((number, client));
    }
    eventually("all who left are gone", async || proxy.clients_closed("client_left") == leave as f64).await;
    let again = join_all(refused.iter_mut().map(async |(number, client)| ask(client, *number).await));
    assert_eq!(again.await.iter().filter(|answer| answer.is_ok()).count(), leave, "as many as have left");
    assert_eq!(served.len() + refused.len(), STORM - leave);
    let again = join_all(served.iter_mut().map(async |(number, client)| ask(client, *number).await));
    assert!(again.await.iter().all(Result::is_ok), "who was served stays served");
    over.store(true, Ordering::Relaxed);
    let patrons = patrons.join_all().await;
    assert_eq!(patrons.len(), PATRONS);
    assert!(bound.most() <= 10 && bound.samples() > 0, "{}", bound.most());
    assert_eq!(proxy.clients_closed("client_left"), leave as f64, "nobody was closed");
    let state = |state: &str| proxy.metric(&format!("mongomux_client_connections{{state=\"{state}\"}}"));
    drop((served, refused, patrons));
    eventually("all have left", async || state("idle") + state("active") + surplus(&proxy) == 0.0).await;
    proxy.settles().await;
}

#[tokio::test]
async fn one_address_has_as_many_as_it_may_and_the_others_are_left_alone() {
    let deployment = support::standalone().await;
    let uri = deployment.uri();
    let proxy = configured(&format!(
        "max_clients_per_address = 2\nupstream = \"{uri}\"\nlisten = [\"127.0.0.1:0\"]\n\
         [[listener]]\nlisten = \"127.0.0.1:0\"\nproxy_protocol = true\n"
    ))
    .await;
    let address = proxy.address();
    let first = connect(address).await;
    let mut second = connect(address).await;
    let mut third = connect(address).await;
    let refused = third.reply("test", insert(1)).await.unwrap();
    assert_overloaded(&refused);
    let message = refused.get_str("errmsg").unwrap();
    assert!(message.contains("3 clients are connected from this address, and the commands of 2"), "{message}");
    let mut socket = raw::connect(address).await;
    assert_eq!(timeout(AT_ONCE, socket.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0, "closed");
    assert_eq!(proxy.metric("mongomux_client_connections_closed_total{reason=\"max_clients_per_address\"}"), 1.0);
    assert_eq!(proxy.metric("mongomux_shed_total{reason=\"max_clients_per_address\"}"), 1.0);
    second.command("test", insert(2)).await.unwrap();
    drop(first);
    eventually("the place of the first", async || {
        third.reply("test", insert(3)).await.unwrap().get_f64("ok").unwrap() == 1.0
    })
    .await;

    // Behind a load balancer, which has one address itself with no room left, each client counts by its own.
    let _another = connect(address).await;
    let balanced = &proxy.addresses()[1];
    let from = async |client: [u8; 4]| {
        let header = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &client, &[127, 0, 0, 1], &[0x10, 0, 0x20, 0]];
        let mut socket = raw::connect(balanced).await;
        socket.write_all(&header.concat()).await.unwrap();
        socket
    };
    let ping = raw::command(doc! { "ping": 1, "$db": "admin" });
    let mut kept = Vec::new();
    for _ in 0..2 {
        for client in [[10, 0, 0, 1], [10, 0, 0, 2]] {
            let mut socket = from(client).await;
            assert_eq!(raw::exchange(&mut socket, &ping).await.get_f64("ok").unwrap(), 1.0);
            kept.push(socket);
        }
    }
    let mut surplus = from([10, 0, 0, 1]).await;
    assert_overloaded(&raw::exchange(&mut surplus, &ping).await);
    let mut beyond = from([10, 0, 0, 1]).await;
    assert_eq!(timeout(AT_ONCE, beyond.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0, "closed");
}
