//! The cap and what hides behind it: many sockets over few connections, and none of the clients can tell.
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{MORE_TO_COME, Request, WireClient, WireError};
use mongomux::telemetry::labels::CommandLabel;
use mongomux::upstream::in_use::Use;
use support::counts::Bound;
use support::hold::{Hold, eventually, hold_finds, hold_finds_whatever_happens, hold_inserts};
use support::proxy::proxy;
use support::{connect, fail_command, fail_nothing, first_batch, next_batch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// One connection, and nobody is given up for waiting.
const ONE: &str = "max_pool_size = 1\nmin_pool_size = 1\nwait_queue_timeout_ms = 60000\n";

/// Far above what an answer takes on a busy machine, far below every limit of [`ONE`].
const AT_ONCE: Duration = Duration::from_secs(5);

/// Occupies a connection with a `find` that the server holds.
async fn occupy<'a>(server: &'a Mongod, proxy: &Address) -> (Hold<'a>, WireClient) {
    let hold = hold_finds(server, "test.held").await;
    let mut client = connect(proxy).await;
    client.send(&Request::new("test", doc! { "find": "held" })).await.unwrap();
    hold.reaches(1).await;
    (hold, client)
}

fn insert(id: i32) -> Document {
    doc! { "insert": "c", "documents": [{ "_id": id }] }
}

async fn ids(client: &mut WireClient) -> Vec<i32> {
    let found = client.command("test", doc! { "find": "c", "sort": { "_id": 1 } }).await.unwrap();
    first_batch(&found).iter().map(|document| document.get_i32("_id").unwrap()).collect()
}

/// A client that works and comes back as a new socket now and then, until it is told to stop. Of errors it accepts only
/// that the server could not be reached, which a connection that was cut is worth.
async fn worker(address: Address, stop: Arc<AtomicBool>, done: Arc<AtomicU64>, name: usize) {
    let mut turn = name;
    while !stop.load(Ordering::Relaxed) {
        let mut client = connect(&address).await;
        for _ in 0..name % 7 + 1 {
            turn += 1;
            let command = if turn.is_multiple_of(3) {
                doc! { "insert": "load", "documents": [{}] }
            } else {
                doc! { "find": "load", "limit": 1 }
            };
            match client.command("test", command).await {
                Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                Err(WireError::Command { code: 6, .. }) => 0,
                Err(error) => panic!("{error}"),
            };
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_never_counts_more_connections_than_the_bound() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    // The shortest lifetime and idle time there are: connections are replaced all the time.
    let settings = "max_pool_size = 4\nmin_pool_size = 2\nmax_connecting = 4\nmax_lifetime_ms = 1000\n\
                    max_idle_time_ms = 100\nwait_queue_timeout_ms = 60000\n[breaker]\nconsecutive_failures = 1000\n\
                    success_rate_percent = 0";
    let proxy = proxy(&deployment.uri(), settings).await;
    let bound = Bound::watch(server).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for name in 0..100 {
        workers.spawn(worker(proxy.address().clone(), stop.clone(), done.clone(), name));
    }
    // A storm of clears: the server cuts connections in the middle of commands, while new ones are being opened.
    for round in 1..=8 {
        let before = done.load(Ordering::Relaxed);
        let created = proxy.created();
        fail_command(server, 2, doc! { "failCommands": ["find"], "closeConnection": true, "appName": "mongomux" })
            .await;
        eventually("the pool is filled again, and work goes on", async || {
            proxy.created() > created && done.load(Ordering::Relaxed) > before + 50
        })
        .await;
        // Slow ones as well, so that some are in use when the next clear comes.
        if round % 3 == 0 {
            let slow = doc! { "failCommands": ["insert"], "blockConnection": true, "blockTimeMS": 50 };
            fail_command(server, 10, slow).await;
        }
    }
    // Long enough for lifetimes to end under load.
    let aged = r#"mongomux_upstream_connections_closed_total{reason="lifetime",server=""#;
    let aged = format!("{aged}{}\"}}", server.address());
    eventually("connections were replaced for their age", async || proxy.metric(&aged) >= 4.0).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    fail_nothing(server).await;
    assert!(bound.samples() > 50, "{}", bound.samples());
    assert!(bound.most() <= 4, "{} in {} samples", bound.most(), bound.samples());
    assert!(bound.most() >= 3, "the pool was hardly used: {}", bound.most());
    assert!(support::connections(server, "mongomux monitor").await <= 2);
    proxy.settles().await;
}

#[tokio::test]
async fn an_unacknowledged_write_comes_before_the_next_command_of_its_socket() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "max_pool_size = 2\nmin_pool_size = 2").await;
    let hold = hold_inserts(server, "test.c").await;
    let mut client = connect(proxy.address()).await;
    for id in 1..=3 {
        let mut write = insert(id);
        write.insert("writeConcern", doc! { "w": 0 });
        client.send(&Request::new("test", write).flags(MORE_TO_COME)).await.unwrap();
    }
    let find = client.send(&Request::new("test", doc! { "find": "c" })).await.unwrap();
    hold.reaches(1).await;
    // There is a second connection, on which the others could overtake the first.
    let counts = proxy.pool().unwrap().counts;
    assert_eq!((counts.in_use, counts.available, proxy.waiting()), (1, 1, 0));
    hold.release().await;
    let found = client.receive(find).await.unwrap().document().unwrap();
    assert_eq!(first_batch(&found), [doc! { "_id": 1 }, doc! { "_id": 2 }, doc! { "_id": 3 }]);
    proxy.settles().await;
}

#[tokio::test]
async fn an_unacknowledged_write_gives_its_connection_back() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), ONE).await;
    let mut writer = connect(proxy.address()).await;
    let mut other = connect(proxy.address()).await;
    for id in 1..=20 {
        let mut write = insert(id);
        write.insert("writeConcern", doc! { "w": 0 });
        writer.send(&Request::new("test", write).flags(MORE_TO_COME)).await.unwrap();
        timeout(AT_ONCE, other.command("admin", doc! { "ping": 1 })).await.expect("a free connection").unwrap();
    }
    // Any command may carry the flag, one that fails, too.
    writer.send(&Request::new("test", doc! { "noSuchCommand": 1 }).flags(MORE_TO_COME)).await.unwrap();
    assert_eq!(ids(&mut writer).await, (1..=20).collect::<Vec<_>>());
    assert_eq!(proxy.created(), 1);
}

#[tokio::test]
async fn a_read_whose_client_left_is_interrupted_and_its_connection_replaced() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), ONE).await;
    let (hold, client) = occupy(server, proxy.address()).await;
    let began = Instant::now();
    client.reset().unwrap();
    // The fail point is still on: only an interrupt ends the command.
    hold.reaches(0).await;
    assert!(began.elapsed() >= Duration::from_millis(400), "a read that may end soon is not interrupted at once");
    let mut other = connect(proxy.address()).await;
    timeout(AT_ONCE, other.command("admin", doc! { "ping": 1 })).await.expect("a new connection").unwrap();
    assert_eq!(proxy.created(), 2);
    proxy.settles().await;
    assert_eq!(proxy.pool().unwrap().counts.available, 1);
    assert_eq!(support::connections(server, "mongomux").await, 1);
    hold.release().await;
}

#[tokio::test]
async fn a_connection_that_was_cut_off_keeps_its_place_until_the_server_can_have_noticed() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), ONE).await;
    let hold = hold_finds_whatever_happens(server, "test.held").await;
    let mut client = connect(proxy.address()).await;
    let sent = Instant::now();
    client.send(&Request::new("test", doc! { "find": "held" })).await.unwrap();
    hold.reaches(1).await;
    client.reset().unwrap();
    let mut other = connect(proxy.address()).await;
    other.command("admin", doc! { "ping": 1 }).await.unwrap();
    // Half a second of patience with the read, and one second for the server: it hangs, and must not collect connections.
    assert!(sent.elapsed() >= Duration::from_millis(1500), "{:?}", sent.elapsed());
    assert_eq!((hold.count().await, proxy.created()), (1, 2));
    hold.release().await;
    eventually("the server has noticed", async || support::connections(server, "mongomux").await == 1).await;
}

#[tokio::test]
async fn a_short_read_whose_client_left_ends_and_its_connection_stays() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), ONE).await;
    for round in 1.. {
        let began = Instant::now();
        let (hold, client) = occupy(server, proxy.address()).await;
        let created = proxy.created();
        drop(client);
        eventually("the client is gone", async || proxy.clients_closed("client_left") == f64::from(round)).await;
        hold.release().await;
        proxy.settles().await;
        // On a machine that is too busy for a short read, once more.
        if began.elapsed() < Duration::from_millis(400) || round == 20 {
            assert_eq!(proxy.created(), created);
            break;
        }
    }
}

#[tokio::test]
async fn a_write_whose_client_left_completes_and_its_connection_goes_back() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), ONE).await;
    let hold = hold_inserts(server, "test.c").await;
    let mut client = connect(proxy.address()).await;
    client.send(&Request::new("test", insert(1))).await.unwrap();
    hold.reaches(1).await;
    client.reset().unwrap();
    eventually("the client is gone", async || proxy.clients_closed("client_left") == 1.0).await;
    // Longer than any read would be left alone: a write is left alone for good.
    sleep(Duration::from_millis(1200)).await;
    assert_eq!((hold.count().await, proxy.pool().unwrap().counts.in_use), (1, 1));
    hold.release().await;
    let mut other = connect(proxy.address()).await;
    assert_eq!(ids(&mut other).await, [1]);
    assert_eq!(proxy.created(), 1, "the connection was not closed");
    proxy.settles().await;
}

#[tokio::test]
async fn a_command_whose_client_left_while_it_waited_is_never_sent() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), ONE).await;
    let (hold, mut holder) = occupy(server, proxy.address()).await;
    let mut leaving = connect(proxy.address()).await;
    leaving.send(&Request::new("test", insert(1))).await.unwrap();
    proxy.waits(1).await;
    drop(leaving);
    proxy.waits(0).await;
    hold.release().await;
    holder.read_message().await.unwrap();
    assert_eq!(ids(&mut holder).await, [0; 0]);
}

#[tokio::test]
async fn a_cursor_is_continued_and_killed_from_other_sockets() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), "max_pool_size = 3").await;
    let mut first = connect(proxy.address()).await;
    let documents: Vec<Document> = (0..10).map(|id| doc! { "_id": id }).collect();
    first.command("test", doc! { "insert": "c", "documents": documents }).await.unwrap();
    let find = doc! { "find": "c", "sort": { "_id": 1 }, "batchSize": 2 };
    let mut cursors = Vec::new();
    for _ in 0..2 {
        let opened = first.command("test", find.clone()).await.unwrap();
        cursors.push(opened.get_document("cursor").unwrap().get_i64("id").unwrap());
    }
    // The socket that opened them leaves; they stay.
    drop(first);
    eventually("the client is gone", async || proxy.clients_closed("client_left") == 1.0).await;
    assert_eq!(proxy.pinned(), (2, 0));

    let mut second = connect(proxy.address()).await;
    let mut third = connect(proxy.address()).await;
    let get_more = |batch: i32| doc! { "getMore": cursors[0], "collection": "c", "batchSize": batch };
    let batch = next_batch(&second.command("test", get_more(2)).await.unwrap());
    assert_eq!(batch, [doc! { "_id": 2 }, doc! { "_id": 3 }]);
    let batch = next_batch(&third.command("test", get_more(100)).await.unwrap());
    assert_eq!(batch.len(), 6);
    assert_eq!(proxy.pinned(), (1, 0), "the first is at its end");
    let kill = doc! { "killCursors": "c", "cursors": [cursors[1]] };
    let killed = second.command("test", kill).await.unwrap();
    assert_eq!(killed.get_array("cursorsKilled").unwrap(), &[cursors[1].into()]);
    assert_eq!(proxy.pinned(), (0, 0));
    let gone = doc! { "getMore": cursors[1], "collection": "c" };
    assert_eq!(third.command("test", gone).await.unwrap_err().code(), Some(43));
}

#[tokio::test]
async fn hello_is_answered_while_the_pool_is_blocked_and_the_queue_full() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), &format!("{ONE}wait_queue_size = 1")).await;
    let (hold, mut holder) = occupy(server, proxy.address()).await;
    let mut waiter = connect(proxy.address()).await;
    let waiting = waiter.send(&Request::new("admin", doc! { "ping": 1 })).await.unwrap();
    proxy.waits(1).await;
    for _ in 0..20 {
        let began = Instant::now();
        let mut client = connect(proxy.address()).await;
        client.command("admin", doc! { "hello": 1 }).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        // It is full indeed.
        assert_eq!(client.command("admin", doc! { "ping": 1 }).await.unwrap_err().code(), Some(462));
    }
    hold.release().await;
    holder.read_message().await.unwrap();
    waiter.receive(waiting).await.unwrap();
}

/// The commands of the profiled database that carry `comment`, as the server got them.
async fn profiled(server: &Mongod, comment: &str) -> Vec<Document> {
    let find = doc! { "find": "system.profile", "filter": { "command.comment": comment } };
    let found = support::client(server).await.command("profiled", find).await.unwrap();
    first_batch(&found).iter().map(|entry| entry.get_document("command").unwrap().clone()).collect()
}

#[tokio::test]
async fn max_time_shrinks_by_the_wait() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    support::client(server).await.command("profiled", doc! { "profile": 2 }).await.unwrap();
    let proxy = proxy(&deployment.uri(), ONE).await;
    let (hold, _holder) = occupy(server, proxy.address()).await;

    let began = Instant::now();
    let mut client = connect(proxy.address()).await;
    let find = doc! { "find": "c", "maxTimeMS": 60_000, "comment": "waits" };
    let waiting = client.send(&Request::new("profiled", find)).await.unwrap();
    proxy.waits(1).await;
    let waits = Instant::now();
    let mut hasty = connect(proxy.address()).await;
    let find = doc! { "find": "c", "maxTimeMS": 300, "comment": "expires" };
    let expired = hasty.reply("profiled", find).await.unwrap();
    assert_eq!(expired.get_i32("code").unwrap(), 50, "{expired}");
    assert!(!expired.contains_key("errorLabels"), "the time is over, to send it again would not help: {expired}");
    let waited = waits.elapsed();
    assert!((Duration::from_millis(300)..AT_ONCE).contains(&waited), "{waited:?}");

    hold.release().await;
    client.receive(waiting).await.unwrap();
    let seen = profiled(server, "waits").await;
    let [command] = &seen[..] else { panic!("sent once: {seen:?}") };
    let remaining = command.get_i32("maxTimeMS").map_or_else(|_| command.get_i64("maxTimeMS").unwrap(), i64::from);
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap();
    let expected = 60_000 - millis(began.elapsed())..=60_000 - millis(waited);
    assert!(expected.contains(&remaining), "{remaining} is not in {expected:?}");
    assert!(profiled(server, "expires").await.is_empty(), "what expired in the queue was sent");
}

#[tokio::test]
async fn two_requests_on_one_socket_are_answered_in_order() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "max_pool_size = 3\nmin_pool_size = 3").await;
    let (hold, mut client) = occupy(server, proxy.address()).await;
    // Behind the one that is held, in one piece: a command for the server, one that the proxy answers, and another.
    let behind = [doc! { "ping": 1 }, doc! { "hello": 1 }, doc! { "buildInfo": 1 }];
    let mut sent = Vec::new();
    for command in behind {
        sent.push(client.send(&Request::new("admin", command)).await.unwrap());
    }
    let other = connect(proxy.address()).await.command("admin", doc! { "ping": 1 }).await;
    other.expect("others are served meanwhile");
    assert_eq!(proxy.pool().unwrap().counts.in_use, 1);
    hold.release().await;
    client.receive(sent[0] - 1).await.unwrap();
    for request_id in sent {
        client.receive(request_id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_idle_clients_cost_no_connection() {
    const CLIENTS: usize = 2_000;
    const ACTIVE: usize = 400;
    // Both ends of each socket are in this process.
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(files > 2 * CLIENTS as u64 + 200, "the limit of open files is {files}");
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "max_clients = 2000").await;
    let bound = Bound::watch(server).await;
    let address = proxy.address();
    let mut clients: Vec<WireClient> = Vec::with_capacity(CLIENTS);
    while clients.len() < CLIENTS {
        clients.extend(futures_util::future::join_all((0..100).map(|_| connect(address))).await);
    }
    let state = |state: &str| proxy.metric(&format!("mongomux_client_connections{{state=\"{state}\"}}"));
    assert_eq!((state("idle"), state("active")), (2000.0, 0.0));
    assert_eq!(proxy.buffered(), 0);

    for turn in clients.chunks_mut(ACTIVE) {
        let work = turn.iter_mut().enumerate().map(async |(index, client)| {
            let expected = i32::try_from(index).unwrap();
            let echo = doc! { "aggregate": 1, "pipeline": [{ "$documents": [{ "_id": expected }] }], "cursor": {} };
            let reply = client.command("test", echo).await.unwrap();
            assert_eq!(first_batch(&reply), [doc! { "_id": expected }]);
        });
        futures_util::future::join_all(work).await;
    }
    assert!(bound.most() <= 10 && bound.samples() > 0, "{}", bound.most());
    proxy.settles().await;
    drop(clients);
    eventually("all have left", async || state("idle") + state("active") == 0.0).await;
}

/// Who looks for stuck commands sees them from outside, those of clients that left as well.
#[tokio::test]
async fn what_a_connection_is_in_use_for_can_be_seen() {
    let deployment = support::replica_set(1).await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "max_pool_size = 2").await;
    let uses = || proxy.clusters()[0].servers()[0].pool.uses(Instant::now());
    let commands = |waits| move |it: &Use| it.work.command.filter(|_| it.work.waits == waits);
    let used_for = || uses().iter().filter_map(commands(false)).collect::<Vec<_>>();
    let hold = hold_inserts(server, "test.held").await;
    let began = Instant::now();
    let mut client = WireClient::connect_as(proxy.address(), "shop").await.unwrap();
    client.send(&Request::new("test", doc! { "insert": "held", "documents": [{}] })).await.unwrap();
    hold.reaches(1).await;
    assert_eq!(used_for(), [CommandLabel::Insert]);
    assert!(uses()[0].age <= began.elapsed());
    drop(client);
    let abandoned = "mongomux_commands_total{command=\"insert\",outcome=\"abandoned\"}";
    eventually("the client is gone", async || proxy.metric(abandoned) == 1.0).await;
    assert_eq!(used_for(), [CommandLabel::Insert]);
    let application = || proxy.metrics().applications.name(uses()[0].work.application);
    assert_eq!(application().as_deref(), Some("shop"));
    assert_eq!(proxy.clusters()[0].servers()[0].operations(), 1);
    hold.release().await;
    eventually("nothing is in use", async || used_for().is_empty()).await;

    // Waiting for data is no sign of trouble.
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "create": "log", "capped": true, "size": 100_000 }).await.unwrap();
    client.command("test", doc! { "insert": "log", "documents": [{}] }).await.unwrap();
    let find = doc! { "find": "log", "tailable": true, "awaitData": true };
    let opened = client.command("test", find).await.unwrap();
    let id = opened.get_document("cursor").unwrap().get_i64("id").unwrap();
    let wait = doc! { "getMore": id, "collection": "log", "maxTimeMS": 60_000 };
    client.send(&Request::new("test", wait)).await.unwrap();
    let waits = || uses().iter().filter_map(commands(true)).collect::<Vec<_>>();
    eventually("it waits", async || waits() == [CommandLabel::GetMore]).await;
    assert_eq!(used_for(), []);
}
