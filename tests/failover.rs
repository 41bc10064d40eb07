//! Trouble upstream is, to a client, a slow command or one labelled error on a socket that stays open.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::sync::Arc;

use bson::{Document, doc};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use mongodb::options::{Acknowledgment, WriteConcern};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{Request, WireClient};
use mongomux::topology::ServerKind;
use support::bystanders::stand_by;
use support::hold::eventually;
use support::ledger::{self, Load};
use support::proxy::{Proxy, proxy};
use support::relay::{Fault, Relay};
use support::{assert_cloaked, code_and_labels, connect, first_batch, new_lsid, relayed};
use tokio::time::{Duration, Instant, timeout};

const RETRYABLE_WRITE: &str = "RetryableWriteError";
const TRANSIENT: &str = "TransientTransactionError";

/// A monitor waits this long for a late heartbeat.
const HASTY: &str = "connect_timeout_ms = 500\nserver_selection_timeout_ms = 30_000";

#[tokio::test]
async fn a_killed_standalone_is_waited_for() {
    let mut deployment = support::standalone().await;
    let settings = "server_selection_timeout_ms = 30_000\nwait_queue_timeout_ms = 30_000";
    let proxy = proxy(&deployment.uri(), settings).await;
    let server = deployment.members()[0].address();
    let events =
        |event: &str| proxy.metric(&format!("mongomux_server_events_total{{event=\"{event}\",server=\"{server}\"}}"));
    let concern = WriteConcern::builder().w(Acknowledgment::Nodes(1)).journal(true).build();
    let load = Load { drivers: 0, retrying: 0, probes: 0, plain: 20, concern, ..Load::default() };
    let books = ledger::keep(proxy.address(), &load, async |ledger| {
        ledger.progress(100).await;
        deployment.member(0).kill().await.unwrap();
        // Sent while nobody is there: it waits and runs.
        let mut client = connect(proxy.address()).await;
        let insert = Request::new("test", doc! { "insert": "waited", "documents": [{ "_id": 1 }] });
        let id = client.send(&insert).await.unwrap();
        assert!(timeout(Duration::from_millis(300), client.receive(id)).await.is_err(), "there is nobody to ask");
        deployment.member(0).restart().await.unwrap();
        let restarted = Instant::now();
        let reply = client.receive(id).await.unwrap().document().unwrap();
        assert_eq!(reply.get_i32("n").ok(), Some(1), "{reply}");
        assert!(restarted.elapsed() < Duration::from_secs(5), "noticed after {:?}", restarted.elapsed());
        ledger.progress(200).await;
    })
    .await;
    assert_eq!(["connected", "disconnected", "reconnected"].map(events), [1.0; 3]);
    assert!(events("error") >= 1.0);
    let wrong = books.audit(&deployment.uri()).await;
    assert!(wrong.is_empty() && books.notes.errors.is_empty(), "{wrong:#?} {:#?}", books.notes.errors);
    // At most what was in flight: the others waited, and none was refused.
    assert!(books.unknown().1 <= load.plain && books.refused() == 0, "{books:?}");
}

#[tokio::test]
async fn a_step_down_ends_neither_connections_nor_cursors() {
    let deployment = support::replica_set(3).await;
    let proxy = proxy(&deployment.uri(), "server_selection_timeout_ms = 30_000").await;
    let mut client = connect(proxy.address()).await;
    let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": id }).collect();
    client.command("test", doc! { "insert": "many", "documents": documents }).await.unwrap();
    let found = client.command("test", doc! { "find": "many", "batchSize": 2 }).await.unwrap();
    let cursor = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    let primary = &deployment.members()[deployment.await_primary().await.unwrap()];
    let pool_of_it = || {
        let servers = proxy.clusters()[0].servers();
        servers.into_iter().find(|server| *server.address == primary.address()).expect("a member")
    };
    let before = pool_of_it();

    let mut admin = support::client(primary).await;
    let step_down = doc! { "replSetStepDown": 60, "secondaryCatchUpPeriodSecs": 5, "force": true };
    admin.command("admin", step_down).await.unwrap();
    // For a moment it was neither primary nor secondary.
    let topology = || proxy.clusters()[0].topology();
    eventually("it is a secondary", async || {
        topology().servers[&primary.address()].kind == ServerKind::RsSecondary && topology().primary().is_some()
    })
    .await;
    let more = doc! { "getMore": cursor, "collection": "many", "batchSize": 2 };
    client.command("test", more).await.expect("the cursor is where it was");
    assert!(Arc::ptr_eq(&before, &pool_of_it()), "the same pool");
}

#[tokio::test]
async fn who_waits_for_a_primary_that_hangs_gets_the_next_one() {
    let deployment = support::replica_set(3).await;
    // Monitoring gives the hung one up in 20 s, and everybody has somebody else by then.
    let proxy = proxy(&deployment.uri(), "max_pool_size = 1\nserver_selection_timeout_ms = 30_000").await;
    let primary = &deployment.members()[deployment.await_primary().await.unwrap()];
    let (mut first, mut second) = (connect(proxy.address()).await, connect(proxy.address()).await);
    first.command("test", doc! { "count": "c" }).await.unwrap();
    primary.pause().await.unwrap();
    let count = Request::new("test", doc! { "count": "c" });
    let in_flight = first.send(&count).await.unwrap();
    let pools = || proxy.pools();
    eventually("it is in flight", async || pools().iter().any(|pool| pool.counts.in_use == 1)).await;
    let waiting = second.send(&count).await.unwrap();
    eventually("the other one waits", async || pools().iter().any(|pool| pool.waiting.iter().sum::<usize>() == 1))
        .await;

    let reply = timeout(support::PATIENCE, second.receive(waiting)).await.expect("an answer").unwrap();
    assert_eq!(code_and_labels(&reply.document().unwrap()).0, 0, "{:?}", reply.document());
    assert!(first.receive(in_flight).now_or_never().is_none(), "the hung one has not answered yet");
    primary.resume().unwrap();
    first.receive(in_flight).await.expect("an open socket");
}

const POOL: u32 = 4;

/// Opens all connections that the pool of `server` may have.
async fn fill_pool(proxy: &Proxy, server: &Mongod) {
    eventually("a full pool", async || {
        let servers = proxy.clusters()[0].servers();
        let server = servers.iter().find(|it| *it.address == server.address());
        server.is_some_and(|server| server.pool.snapshot().counts.available == POOL)
    })
    .await;
}

/// Sends what will not be answered, and returns what is, with how long it took.
async fn freed(clients: &mut [WireClient], commands: &[Document]) -> Vec<(Document, Duration)> {
    let sent = Instant::now();
    join_all(clients.iter_mut().zip(commands).map(|(client, command)| async move {
        let reply = timeout(support::PATIENCE, client.reply("test", command.clone())).await;
        (reply.expect("an answer").expect("an open socket"), sent.elapsed())
    }))
    .await
}

#[tokio::test]
async fn commands_on_a_primary_that_hangs_are_freed() {
    let deployment = support::replica_set(3).await;
    // The next primary is elected long before this monitor gives the hung one up.
    let settings = format!("{HASTY}\nheartbeat_frequency_ms = 4_000\nmax_pool_size = {POOL}\nmin_pool_size = {POOL}");
    let proxy = proxy(&deployment.uri(), &settings).await;
    let primary = deployment.primary().await.unwrap();
    let hung = &deployment.members()[primary];
    let mut clients = join_all((0..4).map(|_| connect(proxy.address()))).await;
    fill_pool(&proxy, hung).await;
    let commands = [
        doc! { "find": "c" },
        doc! { "insert": "c", "documents": [{ "_id": 1 }] },
        doc! { "insert": "c", "documents": [{ "_id": 2 }], "lsid": new_lsid(), "txnNumber": 1_i64 },
        doc! { "getMore": 77_i64, "collection": "c" },
    ];
    let scenario = async {
        hung.pause().await.unwrap();
        // The last of them belongs to no cursor that the proxy knows: answered by itself.
        let freed = freed(&mut clients, &commands).await;
        let expected = [(6, vec![]), (6, vec![]), (6, vec![RETRYABLE_WRITE.to_owned()]), (43, vec![])];
        for ((reply, took), expected) in freed.iter().zip(expected) {
            assert_eq!(code_and_labels(reply), expected, "{reply}");
            assert!(*took < Duration::from_secs(10), "{took:?} for {reply}");
        }
        for client in &mut clients {
            // Not by majority: the third member may have to take a write of the hung one back, for which it waits for that.
            let insert = doc! { "insert": "later", "documents": [{ "x": 1 }], "writeConcern": { "w": 1 } };
            client.command("test", insert).await.expect("the others have elected one of them");
        }
        hung.resume().unwrap();
        deployment.await_members().await.unwrap();
        fill_pool(&proxy, hung).await;
        let connections = support::connections(hung, "mongomux").await;
        assert!(connections <= POOL as usize, "{connections} connections");
        let secondary = doc! { "find": "later", "$readPreference": { "mode": "nearest" } };
        join_all(clients.iter_mut().map(|client| client.command("test", secondary.clone()))).await;
    };
    // Fails when the bound does not hold, ends with the scenario.
    tokio::select! {
        () = scenario => {}
        () = proxy.hold_the_bound() => {}
    }
}

#[tokio::test]
async fn commands_on_a_standalone_that_hangs_are_freed() {
    let deployment = support::standalone().await;
    let [server] = deployment.members() else { panic!("one server") };
    let settings = format!("{HASTY}\nheartbeat_frequency_ms = 500\nmax_pool_size = {POOL}\nmin_pool_size = {POOL}");
    let proxy = proxy(&deployment.uri(), &settings).await;
    let mut clients = join_all((0..3).map(|_| connect(proxy.address()))).await;
    fill_pool(&proxy, server).await;
    let scenario = async {
        server.pause().await.unwrap();
        let commands = [doc! { "find": "c" }, doc! { "insert": "c", "documents": [{ "_id": 1 }] }, doc! { "ping": 1 }];
        for (reply, took) in freed(&mut clients, &commands).await {
            assert_eq!(code_and_labels(&reply), (6, vec![]), "{reply}");
            assert!(took < Duration::from_secs(10), "{took:?}");
        }
        // Waits for the server, and nobody hears of it.
        let id = clients[0].send(&Request::new("test", doc! { "count": "c" })).await.unwrap();
        server.resume().unwrap();
        let reply = clients[0].receive(id).await.unwrap().document().unwrap();
        assert_eq!(code_and_labels(&reply).0, 0, "{reply}");
        fill_pool(&proxy, server).await;
        assert!(support::connections(server, "mongomux").await <= POOL as usize);
    };
    tokio::select! {
        () = scenario => {}
        () = proxy.hold_the_bound() => {}
    }
}

/// Every second command fails in some of these tests.
const NO_BREAKER: &str = "[breaker]\nconsecutive_failures = 1000\nsuccess_rate_percent = 0";

/// And nobody else notices.
#[tokio::test]
async fn a_reply_that_got_lost_is_told_with_the_right_labels() {
    let (deployment, relay, proxy) = relayed(NO_BREAKER).await;
    tokio::select! {
        () = lose_replies(&deployment, &relay, &proxy) => {}
        () = stand_by(&proxy) => {}
        () = proxy.hold_the_bound() => {}
    }
    proxy.settles().await;
    assert_eq!(proxy.clients_closed("proxy"), 0.0);
    assert_eq!(relay.reused(), 0, "a connection that had broken was used again");
}

async fn lose_replies(deployment: &Deployment, relay: &Relay, proxy: &Proxy) {
    let mut client = connect(proxy.address()).await;
    let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": id }).collect();
    client.command("test", doc! { "insert": "many", "documents": documents }).await.unwrap();
    client.command("test", doc! { "create": "c" }).await.unwrap();
    let plain = |code: i32| (code, Vec::<String>::new());
    let labelled = |code: i32, label: &str| (code, vec![label.to_owned()]);
    for (round, fault) in (0_i64..).zip(Fault::AFTER_THE_REQUEST) {
        let lsid = new_lsid();
        let mut lose = async |database: &str, command: Document| {
            let name = command.keys().next().unwrap().clone();
            relay.next(&name, fault, 1);
            let reply = client.reply(database, command).await.expect("an open socket");
            assert_eq!(relay.forget_faults(), 0, "{fault:?} was met by {name}");
            let text = reply.get_str("errmsg").unwrap().to_owned();
            if reply.get_i32("code").ok() == Some(6) {
                assert!(text.starts_with("mongomux: ") && text.contains(&relay.address().to_string()), "{text}");
            }
            code_and_labels(&reply)
        };
        assert_eq!(lose("test", doc! { "find": "many" }).await, plain(6), "{fault:?}");
        let plain_insert = doc! { "insert": "c", "documents": [{ "_id": format!("plain {round}") }] };
        assert_eq!(lose("test", plain_insert).await, plain(6), "{fault:?}");
        let insert = doc! {
            "insert": "c", "documents": [{ "_id": round }], "lsid": &lsid, "txnNumber": 1_i64,
        };
        assert_eq!(lose("test", insert.clone()).await, labelled(6, RETRYABLE_WRITE), "{fault:?}");
        assert_eq!(lose("admin", doc! { "fancy": 1 }).await, plain(6), "{fault:?}");
        // Executed once, the first time or now.
        let again = client.command("test", insert).await.unwrap();
        assert_eq!(again.get_i32("n").ok(), Some(1), "{again}");
        let count = doc! { "count": "c", "query": { "_id": { "$in": [round, format!("plain {round}")] } } };
        let there = if fault.executes() { 2 } else { 1 };
        assert_eq!(client.command("test", count).await.unwrap().get_i32("n").ok(), Some(there), "{fault:?}");

        lost_get_more(deployment, relay, &mut client, fault).await;
        lost_statement(relay, &mut client, fault, round).await;
    }
}

async fn lost_get_more(deployment: &Deployment, relay: &Relay, client: &mut WireClient, fault: Fault) {
    let found = client.command("test", doc! { "find": "many", "batchSize": 2 }).await.unwrap();
    let cursor = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    relay.next("getMore", fault, 1);
    let more = doc! { "getMore": cursor, "collection": "many", "batchSize": 2 };
    let reply = client.reply("test", more.clone()).await.unwrap();
    assert_eq!(code_and_labels(&reply), (43, vec![]), "{fault:?}: {reply}");
    // Nobody can go on with it, so it is not left behind.
    let mut direct = support::client(&deployment.members()[0]).await;
    eventually("the end of the lost cursor", async || {
        let open = doc! { "aggregate": 1, "pipeline": [
            { "$currentOp": { "idleCursors": true, "allUsers": true } },
            { "$match": { "cursor.cursorId": cursor } },
        ], "cursor": {} };
        let reply = direct.command("admin", open).await.unwrap();
        first_batch(&reply).is_empty()
    })
    .await;
    assert_eq!(client.command("test", more).await.unwrap_err().code(), Some(43));
}

async fn lost_statement(relay: &Relay, client: &mut WireClient, fault: Fault, round: i64) {
    let lsid = new_lsid();
    let id = format!("in transaction {round}");
    let mut statement = doc! {
        "insert": "c", "documents": [{ "_id": &id }],
        "lsid": &lsid, "txnNumber": 1_i64, "startTransaction": true, "autocommit": false,
    };
    let end = |name: &str, number: i64| {
        let lsid = lsid.clone();
        doc! { name: 1, "lsid": lsid, "txnNumber": number, "autocommit": false }
    };
    relay.next("insert", fault, 1);
    let reply = client.reply("test", statement.clone()).await.unwrap();
    assert_eq!(code_and_labels(&reply), (251, vec![TRANSIENT.to_owned()]), "{fault:?}: {reply}");
    // What drivers do then; the server may or may not know it any more.
    assert_cloaked(&client.reply("admin", end("abortTransaction", 1)).await.unwrap());

    statement.insert("txnNumber", 2_i64);
    client.command("test", statement).await.unwrap();
    relay.next("commitTransaction", fault, 1);
    let reply = client.reply("admin", end("commitTransaction", 2)).await.unwrap();
    assert_eq!(code_and_labels(&reply), (6, vec![RETRYABLE_WRITE.to_owned()]), "{fault:?}: {reply}");
    client.command("admin", end("commitTransaction", 2)).await.expect("committed, once");
    let count = doc! { "count": "c", "query": { "_id": id } };
    assert_eq!(client.command("test", count).await.unwrap().get_i32("n").ok(), Some(1));
}

/// Larger than what sockets take without a reader: its rest has nowhere to go when the connection breaks.
const LARGE: usize = 12 << 20;

fn large_insert(id: i32) -> Document {
    doc! { "insert": "large", "documents": [{ "_id": id, "text": "x".repeat(LARGE) }] }
}

async fn large_ids(client: &mut WireClient) -> Vec<i32> {
    let find = doc! { "find": "large", "projection": { "_id": 1 }, "sort": { "_id": 1 } };
    let reply = client.command("test", find).await.unwrap();
    first_batch(&reply).iter().map(|it| it.get_i32("_id").unwrap()).collect()
}

#[tokio::test]
async fn a_request_that_was_not_written_whole_is_sent_again_while_its_time_lasts() {
    let soon = "server_selection_timeout_ms = 1_000\nwait_queue_timeout_ms = 1_000";
    let (_deployment, relay, proxy) = relayed(&format!("retry = \"driver\"\n{soon}\n{NO_BREAKER}")).await;
    let mut client = connect(proxy.address()).await;
    // More often than a fixed number of attempts would allow.
    relay.next("insert", Fault::CutRequest, 4);
    assert_eq!(client.command("test", large_insert(1)).await.unwrap().get_i32("n").ok(), Some(1));
    assert_eq!(relay.forget_faults(), 0);
    assert_eq!(proxy.metric("mongomux_retries_total{reason=\"not_sent\"}"), 4.0);

    relay.next("insert", Fault::CutRequest, 10_000);
    let asked = Instant::now();
    let reply = client.reply("test", large_insert(2)).await.unwrap();
    assert_eq!(code_and_labels(&reply), (6, vec![]), "{}", reply.get_str("errmsg").unwrap());
    assert!(reply.get_str("errmsg").unwrap().contains(&relay.address().to_string()), "{reply}");
    assert!(asked.elapsed() >= Duration::from_secs(1), "given up after {:?}", asked.elapsed());
    let mut retryable = large_insert(3);
    retryable.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64 });
    let reply = client.reply("test", retryable).await.unwrap();
    let nothing_written = vec![RETRYABLE_WRITE.to_owned(), "NoWritesPerformed".to_owned()];
    assert_eq!(code_and_labels(&reply), (6, nothing_written));
    let mut hurried = large_insert(4);
    hurried.insert("maxTimeMS", 300);
    let reply = client.reply("test", hurried).await.unwrap();
    assert!([6, 50].contains(&code_and_labels(&reply).0), "its own deadline: {reply}");
    let tried = 10_000 - relay.forget_faults();
    assert!((9..200).contains(&tried), "with growing pauses in between: {tried}");
    assert_eq!(large_ids(&mut client).await, [1], "the others never arrived");
}

#[tokio::test]
async fn retries_end_with_their_budget() {
    let (_deployment, relay, proxy) = relayed(NO_BREAKER).await;
    let mut clients = join_all((0..20).map(|_| connect(proxy.address()))).await;
    // Without traffic there are a hundred in ten seconds, and each of these would take some forty.
    relay.next("insert", Fault::CutRequest, 10_000);
    let mut commands: Vec<Document> = (0..20).map(large_insert).collect();
    commands.iter_mut().for_each(|command| drop(command.insert("maxTimeMS", 15_000)));
    for (reply, took) in freed(&mut clients, &commands).await {
        assert_eq!(code_and_labels(&reply), (6, vec![]), "{}", reply.get_str("errmsg").unwrap());
        assert!(took < Duration::from_secs(15), "not by its deadline: {took:?}");
    }
    relay.forget_faults();
    let retries = proxy.metric("mongomux_retries_total{reason=\"not_sent\"}");
    assert!((100.0..=210.0).contains(&retries), "{retries}");
    let denied = format!("mongomux_retries_denied_total{{server=\"{}\"}}", relay.address());
    assert_eq!(proxy.metric(&denied), 20.0, "one each");
    assert!(large_ids(&mut clients[0]).await.is_empty());
}

#[tokio::test]
async fn an_unacknowledged_write_that_a_server_refused_at_the_start_is_sent_again_once() {
    let deployment = support::replica_set(1).await;
    let [server] = deployment.members() else { panic!("one server") };
    let proxy = proxy(&deployment.uri(), "").await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "create": "c" }).await.unwrap();
    let count = async |client: &mut WireClient| {
        client.command("test", doc! { "count": "c" }).await.unwrap().get_i32("n").unwrap()
    };
    let refused = |code: i32| doc! { "failCommands": ["insert"], "errorCode": code };
    let write = |documents: Vec<Document>| {
        Request::new("test", doc! { "insert": "c", "documents": documents, "writeConcern": { "w": 0 } }).flags(2)
    };
    support::fail_command(server, 1, refused(10107)).await;
    client.send(&write(vec![doc! {}])).await.unwrap();
    assert_eq!(count(&mut client).await, 1, "sent again");
    // In the middle, or with a part of it done, perhaps; and a second time.
    for (code, times, documents) in [(11602, 1, 1), (91, 1, 1), (10107, 1, 2), (10107, 2, 1)] {
        support::fail_command(server, times, refused(code)).await;
        client.send(&write(vec![doc! {}; documents])).await.unwrap();
        assert_eq!(count(&mut client).await, 1, "{code}, {documents} documents, {times} times");
        support::fail_nothing(server).await;
    }
    assert_eq!(proxy.shed("unacknowledged"), 4.0);
}

#[tokio::test]
async fn the_proxy_sends_again_itself_only_what_is_safe() {
    let (_deployment, relay, proxy) = relayed("retry = \"proxy\"").await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 0, "n": 0 }] }).await.unwrap();
    relay.next("find", Fault::HalfReply, 1);
    client.command("test", doc! { "find": "c" }).await.expect("read again");
    let inc = doc! { "update": "c", "updates": [{ "q": { "_id": 0 }, "u": { "$inc": { "n": 1 } } }] };
    relay.next("update", Fault::HalfReply, 1);
    let mut retryable = inc.clone();
    retryable.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64 });
    client.command("test", retryable).await.expect("the server knows the second copy");
    relay.next("update", Fault::HalfReply, 1);
    let reply = client.reply("test", inc).await.unwrap();
    assert_eq!(code_and_labels(&reply), (6, vec![]), "{reply}");
    let found = client.command("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(first_batch(&found)[0].get_i32("n").ok(), Some(2), "each once");
    relay.next("find", Fault::HalfReply, 2);
    let reply = client.reply("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(code_and_labels(&reply), (6, vec![]), "once more, not again and again: {reply}");
}

#[tokio::test]
async fn what_may_be_done_is_not_called_undone() {
    let (deployment, relay, proxy) = relayed("retry = \"proxy\"").await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 0, "n": 0 }] }).await.unwrap();
    // The first copy is executed and its reply lost; the second one is refused, as by a server that has too much to do.
    relay.next("update", Fault::NoReply, 1);
    let overloaded = doc! {
        "failCommands": ["update"], "errorCode": 462, "errorLabels": ["SystemOverloadedError", "RetryableError"],
    };
    support::fail_point(&deployment.members()[0], "failCommand", doc! { "skip": 1 }.into(), overloaded).await;
    let update = doc! {
        "update": "c", "updates": [{ "q": { "_id": 0 }, "u": { "$inc": { "n": 1 } } }],
        "lsid": new_lsid(), "txnNumber": 1_i64,
    };
    let reply = client.reply("test", update).await.unwrap();
    assert_eq!(code_and_labels(&reply), (6, vec!["RetryableWriteError".to_owned()]), "{reply}");
    support::fail_nothing(&deployment.members()[0]).await;
    let found = client.command("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(first_batch(&found)[0].get_i32("n").ok(), Some(1));
}

#[tokio::test]
async fn what_a_server_had_whole_is_not_told_as_not_written_when_it_cannot_be_sent_again() {
    let soon = "server_selection_timeout_ms = 1_000\nwait_queue_timeout_ms = 1_000";
    let (_deployment, relay, proxy) = relayed(&format!("retry = \"proxy\"\n{soon}\n{NO_BREAKER}")).await;
    let mut client = connect(proxy.address()).await;
    relay.next("insert", Fault::NoReply, 1);
    relay.next("insert", Fault::CutRequest, 10_000);
    // Too large to be written at once; the server's small cache takes no larger one with a `txnNumber`.
    let text = "x".repeat(LARGE / 2);
    let insert = doc! {
        "insert": "large", "documents": [{ "_id": 1, "text": text }], "lsid": new_lsid(), "txnNumber": 1_i64,
    };
    let reply = client.reply("test", insert).await.unwrap();
    assert!(relay.forget_faults() < 10_000, "it was sent again, in vain");
    assert_eq!(code_and_labels(&reply), (6, vec![RETRYABLE_WRITE.to_owned()]), "{reply}");
    assert_eq!(large_ids(&mut client).await, [1], "it was written");
}

#[tokio::test]
async fn doubts_about_a_write_concern_are_cleared_by_a_second_copy_where_that_is_safe() {
    let deployment = support::replica_set(1).await;
    let [server] = deployment.members() else { panic!("one server") };
    let proxy = proxy(&deployment.uri(), "retry = \"proxy\"").await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 0, "n": 0 }] }).await.unwrap();
    let inc = doc! { "update": "c", "updates": [{ "q": { "_id": 0 }, "u": { "$inc": { "n": 1 } } }] };
    let mut retryable = inc.clone();
    retryable.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64 });
    let doubt = doc! {
        "failCommands": ["update"], "writeConcernError": { "code": 10107, "codeName": "NotWritablePrimary", "errmsg": "x" },
    };
    for (update, in_doubt) in [(inc, true), (retryable, false)] {
        support::fail_command(server, 1, doubt.clone()).await;
        let reply = client.reply("test", update).await.unwrap();
        assert_cloaked(&reply);
        assert_eq!(reply.contains_key("writeConcernError"), in_doubt, "{reply}");
    }
    let found = client.command("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(first_batch(&found)[0].get_i32("n").ok(), Some(2), "each once");
}

#[tokio::test]
async fn one_broken_connection_ends_neither_cursors_nor_transactions() {
    let (_deployment, relay, proxy) = relayed("").await;
    let (mut client, mut other) = (connect(proxy.address()).await, connect(proxy.address()).await);
    let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": id }).collect();
    client.command("test", doc! { "insert": "many", "documents": documents }).await.unwrap();
    let found = client.command("test", doc! { "find": "many", "batchSize": 2 }).await.unwrap();
    let cursor = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    let lsid = new_lsid();
    let mut statement = doc! {
        "insert": "many", "documents": [{ "_id": 100 }],
        "lsid": &lsid, "txnNumber": 1_i64, "startTransaction": true, "autocommit": false,
    };
    client.command("test", statement.clone()).await.unwrap();

    relay.next("count", Fault::NoReply, 1);
    other.command("test", doc! { "count": "many" }).await.unwrap_err();
    let more = doc! { "getMore": cursor, "collection": "many", "batchSize": 2 };
    client.command("test", more).await.expect("the cursor is where it was");
    relay.next("count", Fault::NoReply, 1);
    other.command("test", doc! { "count": "many" }).await.unwrap_err();
    statement.remove("startTransaction");
    statement.insert("documents", vec![doc! { "_id": 101 }]);
    client.command("test", statement).await.expect("the transaction is where it was");
    relay.next("count", Fault::NoReply, 1);
    other.command("test", doc! { "count": "many" }).await.unwrap_err();
    let commit = doc! { "commitTransaction": 1, "lsid": &lsid, "txnNumber": 1_i64, "autocommit": false };
    client.command("admin", commit).await.expect("and commits");
}

#[tokio::test]
async fn an_old_connection_that_breaks_late_says_nothing_new() {
    let (deployment, relay, proxy) = relayed("").await;
    let (mut client, mut other) = (connect(proxy.address()).await, connect(proxy.address()).await);
    let slow = doc! { "failCommands": ["distinct"], "blockConnection": true, "blockTimeMS": 2_000 };
    support::fail_command(&deployment.members()[0], 1, slow).await;
    relay.next("distinct", Fault::NoReply, 1);
    relay.next("count", Fault::NoReply, 1);
    let distinct = Request::new("test", doc! { "distinct": "c", "key": "x" });
    let id = client.send(&distinct).await.unwrap();
    eventually("the slow command", async || proxy.clusters()[0].servers()[0].pool.snapshot().counts.in_use == 1).await;
    other.command("test", doc! { "count": "c" }).await.unwrap_err();
    other.command("test", doc! { "find": "c" }).await.expect("known again");
    let topology = proxy.clusters()[0].monitor().subscribe();
    let reply = client.receive(id).await.unwrap().document().unwrap();
    assert_eq!(code_and_labels(&reply), (6, vec![]), "{reply}");
    let topology = topology.borrow();
    assert!(topology.servers.values().all(|server| server.suspected.is_none()), "{}", topology.summary());
}

#[tokio::test]
async fn a_false_alarm_is_forgotten_at_once() {
    let deployment = support::replica_set(1).await;
    let [server] = deployment.members() else { panic!("one server") };
    let proxy = proxy(&deployment.uri(), "").await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "find": "c" }).await.unwrap();
    let alarms = [
        doc! { "failCommands": ["find"], "errorCode": 10107 },
        doc! { "failCommands": ["find"], "errorCode": 11602 },
        doc! { "failCommands": ["find"], "errorCode": 91 },
        doc! { "failCommands": ["find"], "errorCode": 11600 },
        doc! { "failCommands": ["find"], "closeConnection": true },
    ];
    for alarm in alarms {
        support::fail_command(server, 1, alarm.clone()).await;
        let reply = client.reply("test", doc! { "find": "c" }).await.unwrap();
        assert_cloaked(&reply);
        assert_eq!(code_and_labels(&reply), (6, vec![]), "{alarm}: {reply}");
        let asked = Instant::now();
        client.command("test", doc! { "find": "c" }).await.unwrap_or_else(|error| panic!("{alarm}: {error}"));
        assert!(asked.elapsed() < Duration::from_secs(2), "{alarm}: {:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn labels_of_the_server_stay_when_its_codes_go() {
    let deployment = support::replica_set(1).await;
    let [server] = deployment.members() else { panic!("one server") };
    let proxy = proxy(&deployment.uri(), "").await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "create": "c" }).await.unwrap();
    for (number, code) in (1_i64..).zip([189, 10107, 13435, 13436, 11602, 91, 11600]) {
        let insert = doc! { "insert": "c", "documents": [{ "_id": number }] };
        let mut retryable = insert.clone();
        retryable.extend(doc! { "lsid": new_lsid(), "txnNumber": number });
        support::fail_command(server, 1, doc! { "failCommands": ["insert"], "errorCode": code }).await;
        let reply = client.reply("test", retryable.clone()).await.unwrap();
        assert_cloaked(&reply);
        assert_eq!(code_and_labels(&reply), (6, vec![RETRYABLE_WRITE.to_owned()]), "{code}: {reply}");
        assert_eq!(client.command("test", retryable).await.unwrap().get_i32("n").ok(), Some(1));

        let mut statement = insert;
        statement.extend(doc! {
            "lsid": new_lsid(), "txnNumber": 1_i64, "startTransaction": true, "autocommit": false,
        });
        support::fail_command(server, 1, doc! { "failCommands": ["insert"], "errorCode": code }).await;
        let reply = client.reply("test", statement).await.unwrap();
        assert_cloaked(&reply);
        assert_eq!(code_and_labels(&reply), (6, vec![TRANSIENT.to_owned()]), "{code}: {reply}");
    }
    // A write that was done, and whose durability is in doubt.
    let concern = doc! { "code": 91, "codeName": "ShutdownInProgress", "errmsg": "not master or node is recovering" };
    support::fail_command(server, 1, doc! { "failCommands": ["insert"], "writeConcernError": concern }).await;
    let reply = client.reply("test", doc! { "insert": "c", "documents": [{ "_id": 1000 }] }).await.unwrap();
    assert_cloaked(&reply);
    let concern = reply.get_document("writeConcernError").unwrap();
    assert_eq!(concern.get_i32("code").ok(), Some(6), "{reply}");
    let text = concern.get_str("errmsg").unwrap();
    assert!(!text.contains("not master") && !text.contains("node is recovering"), "{text}");
    assert_eq!(reply.get_i32("n").ok(), Some(1));
}

#[tokio::test]
async fn reads_do_not_wait_behind_writes_that_a_new_primary_cannot_acknowledge_yet() {
    let mut deployment = support::replica_set(3).await;
    let settings = "max_pool_size = 4\nserver_selection_timeout_ms = 30_000\nwait_queue_timeout_ms = 30_000";
    let proxy = proxy(&deployment.uri(), settings).await;
    let primary = deployment.primary().await.unwrap();
    let [next, lagging] = [1, 2].map(|step| (primary + step) % 3);
    let mut reader = connect(proxy.address()).await;
    reader.command("test", doc! { "insert": "c", "documents": [{ "_id": 0 }] }).await.unwrap();
    // Votes, and follows nobody.
    let mut direct = support::client(&deployment.members()[lagging]).await;
    direct.command("admin", doc! { "replSetFreeze": 600 }).await.unwrap();
    support::fail_point(&deployment.members()[lagging], "rsSyncApplyStop", "alwaysOn".into(), doc! {}).await;
    deployment.member(primary).kill().await.unwrap();

    let mut writers = join_all((0..12).map(|_| connect(proxy.address()))).await;
    let mut sent = Vec::new();
    for (id, writer) in (1..).zip(&mut writers) {
        let insert = doc! { "insert": "c", "documents": [{ "_id": id }], "lsid": new_lsid(), "txnNumber": 1_i64 };
        sent.push(writer.send(&Request::new("test", insert)).await.unwrap());
    }
    let address = deployment.members()[next].address();
    eventually("writes that wait on the new primary", async || {
        let servers = proxy.clusters()[0].servers();
        let server = servers.iter().find(|server| *server.address == address);
        server.is_some_and(|server| server.settling.in_progress() && server.pool.snapshot().counts.in_use == 2)
    })
    .await;
    for _ in 0..5 {
        let found = timeout(support::PATIENCE, reader.command("test", doc! { "find": "c" })).await;
        assert!(!first_batch(&found.expect("an answer").unwrap()).is_empty());
    }
    // One that waits for nobody passes, too, and proves nothing about the others.
    let unsafe_insert = doc! { "insert": "c", "documents": [{ "_id": 100 }], "writeConcern": { "w": 1 } };
    reader.command("test", unsafe_insert).await.unwrap();
    let servers = proxy.clusters()[0].servers();
    assert!(servers.iter().any(|server| server.settling.in_progress()));

    support::fail_point(&deployment.members()[lagging], "rsSyncApplyStop", "off".into(), doc! {}).await;
    for (writer, id) in writers.iter_mut().zip(sent) {
        let reply =
            timeout(support::PATIENCE, writer.receive(id)).await.expect("an answer").unwrap().document().unwrap();
        assert_eq!(reply.get_i32("n").ok(), Some(1), "{reply}");
    }
    assert!(servers.iter().all(|server| !server.settling.in_progress()), "settled");
}
