//! Overload is an answer or a wait, never a lost socket: what the queue is bounded by. What the clients are bounded by is in
//! `accepting.rs`, the memory in `memory.rs`.
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]
#![allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]

mod support;

use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{MORE_TO_COME, Request, WireClient};
use support::hold::{Hold, eventually, hold_finds};
use support::large::{sixteen_megabytes, slow_reader};
use support::proxy::{Proxy, proxy};
use support::{assert_overloaded, connect, first_batch, labels};
use tokio::time::{Instant, timeout};

/// Long enough that nothing times out where a test expects to wait.
const PATIENT: &str = "max_pool_size = 1\nmin_pool_size = 1\nwait_queue_timeout_ms = 60000\n";

/// Far below every limit of [`PATIENT`], far above what an answer takes on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// One client occupies the only connection, and `waiting` others wait behind it.
struct Blocked<'a> {
    hold: Hold<'a>,
    holder: WireClient,
    waiters: Vec<WireClient>,
}

impl<'a> Blocked<'a> {
    async fn start(server: &'a Mongod, proxy: &Proxy, waiting: usize) -> Self {
        let hold = hold_finds(server, "test.held").await;
        let mut holder = connect(proxy.address()).await;
        holder.send(&Request::new("test", doc! { "find": "held" })).await.unwrap();
        hold.reaches(1).await;
        let mut waiters = Vec::new();
        for _ in 0..waiting {
            let mut waiter = connect(proxy.address()).await;
            waiter.send(&Request::new("test", doc! { "find": "free" })).await.unwrap();
            waiters.push(waiter);
        }
        proxy.waits(waiting).await;
        Self { hold, holder, waiters }
    }

    /// Lets the connection go; everybody gets an answer.
    async fn release(mut self) {
        self.hold.release().await;
        for client in std::iter::once(&mut self.holder).chain(&mut self.waiters) {
            client.read_message().await.unwrap();
        }
    }
}

fn insert(id: i32) -> Document {
    doc! { "insert": "c", "documents": [{ "_id": id }] }
}

/// Asks the server itself, past the proxy.
async fn ids(server: &Mongod) -> Vec<i32> {
    let find = doc! { "find": "c", "sort": { "_id": 1 } };
    let found = support::client(server).await.command("test", find).await.unwrap();
    first_batch(&found).iter().map(|document| document.get_i32("_id").unwrap()).collect()
}

#[tokio::test]
async fn a_full_queue_is_answered_at_once_and_nothing_is_sent() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}wait_queue_size = 2")).await;
    let blocked = Blocked::start(server, &proxy, 2).await;

    let mut client = connect(proxy.address()).await;
    for id in 1..=3 {
        let reply = timeout(AT_ONCE, client.reply("test", insert(id))).await.expect("an answer at once").unwrap();
        assert_overloaded(&reply);
    }
    assert_eq!(proxy.shed("queue_full"), 3.0);
    assert_eq!(proxy.waiting(), 2, "who was refused waits for nothing");

    blocked.release().await;
    client.command("test", insert(4)).await.unwrap();
    assert_eq!(ids(server).await, [4], "the refused inserts were never executed");
    proxy.settles().await;
}

#[tokio::test]
async fn who_waits_too_long_is_told_so_and_nothing_is_sent() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let settings = "max_pool_size = 1\nmin_pool_size = 1\nwait_queue_timeout_ms = 200";
    let proxy = proxy(&deployment.uri(), settings).await;
    let blocked = Blocked::start(server, &proxy, 0).await;

    let mut client = connect(proxy.address()).await;
    let began = Instant::now();
    let reply = client.reply("test", insert(1)).await.unwrap();
    assert_overloaded(&reply);
    let waited = began.elapsed();
    assert!((Duration::from_millis(200)..AT_ONCE).contains(&waited), "{waited:?}");
    assert_eq!((proxy.shed("queue_timeout"), proxy.waiting()), (1.0, 0));

    blocked.release().await;
    client.command("test", insert(2)).await.unwrap();
    assert_eq!(ids(server).await, [2]);
}

#[tokio::test]
async fn a_cursor_can_always_be_killed() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let documents: Vec<Document> = (0..10).map(|id| doc! { "_id": id }).collect();
    support::client(server).await.command("test", doc! { "insert": "c", "documents": documents }).await.unwrap();
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}wait_queue_size = 1")).await;
    let mut client = connect(proxy.address()).await;
    let found = client.command("test", doc! { "find": "c", "batchSize": 2 }).await.unwrap();
    let id = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    let blocked = Blocked::start(server, &proxy, 1).await;
    assert_overloaded(&connect(proxy.address()).await.reply("test", insert(99)).await.unwrap());

    let kill = Request::new("test", doc! { "killCursors": "c", "cursors": [id] });
    let killing = client.send(&kill).await.unwrap();
    eventually("it waits like the other one", async || proxy.waiting() == 2).await;
    blocked.release().await;
    let killed = client.receive(killing).await.unwrap().document().unwrap();
    assert_eq!(killed.get_array("cursorsKilled").unwrap().len(), 1, "{killed}");
}

#[tokio::test]
async fn large_requests_are_bounded_by_their_bytes_and_a_refusal_says_what_is_going_on() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}wait_queue_bytes = 1048576")).await;
    let large = |id: i32| doc! { "insert": "c", "documents": [{ "_id": id, "text": "x".repeat(700_000) }] };
    connect(proxy.address()).await.command("test", large(0)).await.unwrap();
    let blocked = Blocked::start(server, &proxy, 0).await;
    let (mut first, mut second) = (connect(proxy.address()).await, connect(proxy.address()).await);
    let waiting = first.send(&Request::new("test", large(1))).await.unwrap();
    proxy.waits(1).await;
    let refused = second.reply("test", large(2)).await.unwrap();
    assert_overloaded(&refused);
    let message = refused.get_str("errmsg").unwrap();
    assert!(message.contains("1 commands wait with 700") && message.contains("of at most 1048576 bytes"), "{message}");
    assert!(message.contains("1 of at most 1 upstream connections are in use, by 1 find"), "{message}");
    // The pace of late is known, and the queue is short.
    assert!((10..10_000).contains(&refused.get_i32("baseBackoffMS").unwrap()), "{refused}");
    let small = second.send(&Request::new("test", insert(3))).await.unwrap();
    proxy.waits(2).await;
    blocked.release().await;
    for (client, request) in [(&mut first, waiting), (&mut second, small)] {
        let reply = client.receive(request).await.unwrap().document().unwrap();
        assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{reply}");
    }
    assert_eq!((ids(server).await, proxy.shed("queue_bytes")), (vec![0, 1, 3], 1.0));
}

/// The only connection is held, and inserts come every 20 ms until so many have come, or the first was refused: how many were
/// carried out, and what the others were told.
async fn standing_queue(discipline: &str, most: usize) -> (usize, Vec<Document>) {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}queue_discipline = \"{discipline}\"")).await;
    let blocked = Blocked::start(server, &proxy, 0).await;
    let (mut sent, mut arrivals) = (Vec::new(), tokio::time::interval(Duration::from_millis(20)));
    let refused = || proxy.shed("queue_stands");
    let come = async {
        while sent.len() < most && refused() == 0.0 {
            arrivals.tick().await;
            let mut client = connect(proxy.address()).await;
            let request = client.send(&Request::new("test", insert(i32::try_from(sent.len()).unwrap()))).await.unwrap();
            eventually("it waits", async || proxy.waiting() as f64 + refused() > sent.len() as f64).await;
            sent.push((client, request));
        }
    };
    // A third of the time that a command may wait.
    timeout(Duration::from_secs(20), come).await.expect("somebody is refused");
    let refused = refused();
    blocked.release().await;
    let (mut served, mut told) = (Vec::new(), Vec::new());
    for (number, (client, request)) in sent.iter_mut().enumerate() {
        let reply = timeout(AT_ONCE, client.receive(*request)).await.expect("an answer").unwrap().document().unwrap();
        match reply.get_f64("ok").unwrap() {
            1.0 => served.push(i32::try_from(number).unwrap()),
            _ => told.push(reply),
        }
    }
    assert_eq!(ids(server).await, served, "what was refused was never executed");
    assert!(refused <= told.len() as f64 && proxy.shed("queue_stands") == told.len() as f64, "{refused}: {told:?}");
    assert_eq!(proxy.shed("queue_full") + proxy.shed("queue_timeout"), 0.0);
    proxy.settles().await;
    (served.len(), told)
}

#[tokio::test]
async fn a_queue_that_stands_refuses_long_before_the_limit_of_waits_and_fifo_does_not() {
    let (served, refused) = standing_queue("codel", usize::MAX).await;
    assert!(!refused.is_empty() && served > 0, "{served} served, {refused:?}");
    for reply in &refused {
        assert_overloaded(reply);
        let message = reply.get_str("errmsg").unwrap();
        assert!(message.contains("in a queue that stands; 1 of at most 1 upstream connections"), "{message}");
    }
    let all = served + refused.len();
    assert_eq!(standing_queue("fifo", all).await, (all, vec![]));
}

/// A statement of the transaction of that session.
fn in_transaction(session: u8, mut command: Document, starts: bool) -> Document {
    let session = Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![session; 16] });
    command.extend(doc! { "lsid": { "id": session }, "txnNumber": 1_i64, "autocommit": false });
    if starts {
        command.insert("startTransaction", true);
    }
    command
}

#[tokio::test]
async fn what_an_open_transaction_sends_is_never_shed() {
    let deployment = support::replica_set(1).await;
    let server = &deployment.members()[0];
    support::client(server).await.command("test", doc! { "create": "c" }).await.unwrap();
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}wait_queue_size = 1")).await;
    let mut client = connect(proxy.address()).await;
    client.command("test", in_transaction(1, insert(1), true)).await.unwrap();
    let going_on = ("test", in_transaction(1, insert(2), false));
    let committing = ("admin", in_transaction(1, doc! { "commitTransaction": 1 }, false));
    for (database, command) in [going_on, committing] {
        let blocked = Blocked::start(server, &proxy, 1).await;
        let mut newcomer = connect(proxy.address()).await;
        let refused = newcomer.reply("test", in_transaction(2, insert(3), true)).await.unwrap();
        assert_overloaded(&refused);
        assert!(labels(&refused).iter().any(|it| it == "TransientTransactionError"), "{refused}");
        let request = client.send(&Request::new(database, command)).await.unwrap();
        proxy.waits(2).await;
        blocked.release().await;
        let reply = client.receive(request).await.unwrap().document().unwrap();
        assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{reply}");
    }
    assert_eq!(ids(server).await, [1, 2]);
    assert_eq!(proxy.pinned(), (0, 0));
}

#[tokio::test]
async fn a_commit_overtakes_a_write_that_would_wait_for_its_lock() {
    let deployment = support::replica_set(1).await;
    let server = &deployment.members()[0];
    support::client(server).await.command("test", insert(1)).await.unwrap();
    let proxy = proxy(&deployment.uri(), PATIENT).await;
    let mut client = connect(proxy.address()).await;
    let session = Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![8; 16] });
    let update =
        |value: i32| doc! { "update": "c", "updates": [{ "q": { "_id": 1 }, "u": { "$set": { "v": value } } }] };
    let fields = doc! { "lsid": { "id": session }, "txnNumber": 1_i64, "autocommit": false };
    let mut first = update(1);
    first.extend(fields.clone());
    first.insert("startTransaction", true);
    client.command("test", first).await.unwrap();

    let blocked = Blocked::start(server, &proxy, 0).await;
    let mut outside = connect(proxy.address()).await;
    let writing = outside.send(&Request::new("test", update(2))).await.unwrap();
    proxy.waits(1).await;
    let mut commit = doc! { "commitTransaction": 1 };
    commit.extend(fields);
    let committing = client.send(&Request::new("admin", commit)).await.unwrap();
    proxy.waits(2).await;
    // On one connection the write, sent first, would wait for the transaction's lock and the commit behind it.
    blocked.release().await;
    let both = async {
        client.receive(committing).await.unwrap();
        outside.receive(writing).await.unwrap();
    };
    timeout(AT_ONCE, both).await.expect("the commit goes first");
    let found = outside.command("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(first_batch(&found), [doc! { "_id": 1, "v": 2 }]);
}

#[tokio::test]
async fn unacknowledged_writes_wait_for_a_place_in_the_queue() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}wait_queue_size = 1")).await;
    let blocked = Blocked::start(server, &proxy, 1).await;

    let mut client = connect(proxy.address()).await;
    client.send(&Request::new("test", unacknowledged(1)).flags(MORE_TO_COME)).await.unwrap();
    let ping = client.send(&Request::new("test", doc! { "find": "c" })).await.unwrap();
    // An ordinary command is refused meanwhile: the queue is full.
    assert_overloaded(&connect(proxy.address()).await.reply("test", insert(9)).await.unwrap());
    blocked.release().await;
    let found = client.receive(ping).await.unwrap().document().unwrap();
    assert_eq!(first_batch(&found), [doc! { "_id": 1 }], "the write was sent, and before the next command");
    assert_eq!(proxy.shed("unacknowledged"), 0.0);
}

#[tokio::test]
async fn unacknowledged_writes_are_dropped_in_the_end_and_counted() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let settings = "max_pool_size = 1\nmin_pool_size = 1\nwait_queue_timeout_ms = 200\nwait_queue_size = 1";
    let proxy = proxy(&deployment.uri(), settings).await;
    let blocked = Blocked::start(server, &proxy, 0).await;

    let mut client = connect(proxy.address()).await;
    for id in 1..=2 {
        client.send(&Request::new("test", unacknowledged(id)).flags(MORE_TO_COME)).await.unwrap();
    }
    // Answered when both are done with, and the first thing that is answered.
    let hello = client.send(&Request::new("admin", doc! { "hello": 1 })).await.unwrap();
    client.receive(hello).await.unwrap();
    assert_eq!(proxy.shed("unacknowledged"), 2.0);
    assert_eq!(proxy.shed("queue_timeout") + proxy.shed("queue_full"), 0.0);
    blocked.release().await;
    client.command("test", insert(3)).await.unwrap();
    assert_eq!(ids(server).await, [3]);
}

fn unacknowledged(id: i32) -> Document {
    let mut command = insert(id);
    command.insert("writeConcern", doc! { "w": 0 });
    command
}

#[tokio::test]
async fn a_cursor_whose_reply_did_not_arrive_is_killed() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    sixteen_megabytes(server).await;
    let proxy = proxy(&deployment.uri(), PATIENT).await;
    let stream = slow_reader(proxy.address(), doc! { "find": "c", "batchSize": 3 }).await;
    stream.readable().await.unwrap();
    assert_eq!(proxy.pinned(), (1, 0));
    stream.set_zero_linger().unwrap();
    drop(stream);
    let idle = [doc! { "$currentOp": { "idleCursors": true } }, doc! { "$match": { "type": "idleCursor" } }];
    let count = doc! { "aggregate": 1, "pipeline": &idle[..], "cursor": {} };
    let mut client = support::client(server).await;
    eventually("the server has killed it", async || {
        first_batch(&client.command("admin", count.clone()).await.unwrap()).is_empty()
    })
    .await;
    assert_eq!(proxy.pinned(), (0, 0));
    assert_eq!(proxy.created(), 1);
    proxy.settles().await;
}

#[tokio::test]
async fn a_server_that_does_not_read_holds_no_command_beyond_its_time() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}command_timeout_ms = 500")).await;
    let mut client = connect(proxy.address()).await;
    client.command("admin", doc! { "ping": 1 }).await.unwrap();
    server.pause().await.unwrap();
    // More than the system buffers on the way.
    let data = || doc! { "data": Binary { subtype: BinarySubtype::Generic, bytes: vec![0; 15_000_000] } };
    let large = Request::new("test", doc! { "insert": "c" }).sequence("documents", vec![data(), data(), data()]);
    let reply = timeout(AT_ONCE, client.exchange(&large)).await.expect("an answer in time").unwrap();
    let reply = reply.document().unwrap();
    assert_eq!(reply.get_f64("ok").unwrap(), 0.0, "{reply}");
    assert_eq!(reply.get_i32("code").unwrap(), 89, "{reply}");
    server.resume().unwrap();
    client.command("admin", doc! { "ping": 1 }).await.unwrap();
    assert_eq!(ids(server).await, [0; 0]);
    proxy.settles().await;
}
