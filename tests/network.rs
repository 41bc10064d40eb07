//! A bad network makes commands slow or costs them one labelled error each, and nothing else: no socket, no wrong reply,
//! no connection too many, and it is over when the network is well again.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Document, doc};
use futures_util::future::join_all;
use mongodb::options::{Acknowledgment, WriteConcern};
use mongomux::sandbox::wire_client::{Request, WireClient};
use support::bystanders::stand_by;
use support::hold::{eventually, hold_finds};
use support::ledger::{self, Load};
use support::proxy::Proxy;
use support::relay::network::Way;
use support::relay::{Concerns, End, Fault, Network, Relay};
use support::{PATIENCE, assert_cloaked, code_and_labels, connect, first_batch, new_lsid, next_batch, relayed};
use tokio::time::{Duration, Instant, timeout};

/// Trouble, and the end of it, within a second; waits that are longer than any trouble here.
const SETTINGS: &str = "
    max_pool_size = 8
    min_pool_size = 8
    heartbeat_frequency_ms = 500
    server_selection_timeout_ms = 60_000
    wait_queue_timeout_ms = 60_000
    reconnect.initial_ms = 10
    reconnect.max_ms = 200
    breaker.open_initial_ms = 100
    breaker.open_max_ms = 1_000
";

/// A hanging attempt to connect is given up soon; so is a heartbeat.
const HASTY: &str = "connect_timeout_ms = 500";

/// After trouble everything is to be as before, on a machine that is busy with other things.
const RECOVERY: Duration = Duration::from_secs(10);

type Answer = (i32, Vec<String>);

fn answer(code: i32, labels: &[&str]) -> Answer {
    (code, labels.iter().map(|label| (*label).to_owned()).collect())
}

/// One command of each kind, over a socket of its own, and what it is told when no reply comes.
struct Case {
    client: WireClient,
    database: &'static str,
    command: Document,
    /// The connection broke, or monitoring found the server dead.
    no_reply: Answer,
    /// A time limit of ours is over.
    too_slow: Answer,
}

impl Case {
    async fn ask(&mut self) -> Document {
        let reply = timeout(PATIENCE, self.client.reply(self.database, self.command.clone())).await;
        let reply = reply.unwrap_or_else(|_| panic!("no answer to {}", self.command)).expect("an open socket");
        assert_cloaked(&reply);
        reply
    }
}

/// Find, two inserts, getMore, a statement of a transaction, a commit: each ready to be sent.
async fn cases(proxy: &Proxy) -> Vec<Case> {
    let mut setup = connect(proxy.address()).await;
    let mark = rand::random::<u32>().to_string();
    let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": format!("{mark} {id}") }).collect();
    setup.command("test", doc! { "insert": "many", "documents": documents }).await.unwrap();
    let found = setup.command("test", doc! { "find": "many", "batchSize": 2 }).await.unwrap();
    let cursor = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    let insert = |what: &str| doc! { "insert": "c", "documents": [{ "_id": format!("{mark} {what}") }] };
    let in_transaction = |mut command: Document, lsid: &Document| {
        command.extend(doc! { "lsid": lsid, "txnNumber": 1_i64, "autocommit": false });
        command
    };
    let (open, ending) = (new_lsid(), new_lsid());
    for (lsid, what) in [(&open, "first of open"), (&ending, "first of ending")] {
        let mut first = in_transaction(insert(what), lsid);
        first.insert("startTransaction", true);
        setup.command("test", first).await.unwrap();
    }
    let mut retryable = insert("retryable");
    retryable.extend(doc! { "lsid": new_lsid(), "txnNumber": 1_i64 });
    let (write, transient) = (&["RetryableWriteError"][..], &["TransientTransactionError"][..]);
    let cases = [
        ("test", doc! { "find": "many" }, answer(6, &[]), answer(89, &[])),
        ("test", insert("plain"), answer(6, &[]), answer(89, &[])),
        ("test", retryable, answer(6, write), answer(89, &[])),
        ("test", doc! { "getMore": cursor, "collection": "many", "batchSize": 2 }, answer(43, &[]), answer(43, &[])),
        ("test", in_transaction(insert("second of open"), &open), answer(251, transient), answer(251, transient)),
        ("admin", in_transaction(doc! { "commitTransaction": 1 }, &ending), answer(6, write), answer(89, write)),
    ];
    let mut ready = Vec::new();
    for (database, command, no_reply, too_slow) in cases {
        ready.push(Case { client: connect(proxy.address()).await, database, command, no_reply, too_slow });
    }
    ready
}

fn per_server(relay: &Relay, metric: &str) -> String {
    format!("mongomux_{metric}{{server=\"{}\"}}", relay.address())
}

fn breaker_state(proxy: &Proxy, relay: &Relay) -> f64 {
    proxy.metric(&per_server(relay, "breaker_state"))
}

fn times_opened(proxy: &Proxy, relay: &Relay) -> f64 {
    proxy.metric(&format!("mongomux_breaker_transitions_total{{server=\"{}\",to=\"open\"}}", relay.address()))
}

fn events(proxy: &Proxy, relay: &Relay, event: &str) -> f64 {
    proxy.metric(&format!("mongomux_server_events_total{{event=\"{event}\",server=\"{}\"}}", relay.address()))
}

/// Everything is as before, soon and by itself: the sockets that were there are served, each command at once.
async fn check_recovered(proxy: &Proxy, relay: &Relay, cases: &mut [Case]) {
    let well_again = Instant::now();
    eventually("a closed breaker", async || breaker_state(proxy, relay) == 0.0).await;
    for case in cases {
        case.client.command("test", doc! { "find": "c" }).await.expect("the server is there again");
    }
    assert!(well_again.elapsed() < RECOVERY, "after {:?}", well_again.elapsed());
    proxy.settles().await;
    assert_eq!(proxy.clients_closed("proxy"), 0.0);
    assert_eq!(proxy.clusters()[0].not_ready(), None);
}

/// Runs a scenario while the bound is watched.
async fn within_the_bound(proxy: &Proxy, scenario: impl Future<Output = ()>) {
    tokio::select! {
        () = scenario => {}
        () = proxy.hold_the_bound() => {}
    }
}

#[tokio::test]
async fn a_reply_that_drips_is_delivered_whole() {
    let (_deployment, relay, proxy) = relayed(SETTINGS).await;
    let scenario = async {
        let mut client = connect(proxy.address()).await;
        let text = "drop by drop, ".repeat(20);
        client.command("test", doc! { "insert": "c", "documents": [{ "_id": 1, "text": &text }] }).await.unwrap();
        for case in &mut cases(&proxy).await {
            relay.next(case.command.keys().next().unwrap(), Fault::Drip, 1);
            let reply = case.ask().await;
            assert_eq!(code_and_labels(&reply), answer(0, &[]), "{reply}");
            assert_eq!(relay.forget_faults(), 0);
        }
        relay.next("find", Fault::Drip, 1);
        let asked = Instant::now();
        let reply = client.command("test", doc! { "find": "c", "filter": { "_id": 1 } }).await.unwrap();
        assert_eq!(first_batch(&reply), [doc! { "_id": 1, "text": text }]);
        assert!(asked.elapsed() >= Duration::from_millis(300), "more than 300 bytes: {:?}", asked.elapsed());
    };
    tokio::select! {
        () = scenario => {}
        () = stand_by(&proxy) => {}
        () = proxy.hold_the_bound() => {}
    }
    assert_eq!(proxy.pool().unwrap().counts.closing, 0);
    assert_eq!(times_opened(&proxy, &relay), 0.0);
}

/// And its `maxTimeMS` is over at the server, or here where the server is too far away to say so.
#[tokio::test]
async fn a_server_far_away_is_slow_and_no_more() {
    let (deployment, relay, proxy) = relayed(SETTINGS).await;
    let mut cases = cases(&proxy).await;
    let scenario = async {
        let way = Duration::from_millis(200);
        relay.set_network(Network::far(way, Concerns::All));
        join_all(cases.iter_mut().map(async |case| {
            let asked = Instant::now();
            let reply = case.ask().await;
            assert_eq!(code_and_labels(&reply), answer(0, &[]), "{reply}");
            assert!(asked.elapsed() >= 2 * way && asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        }))
        .await;
        let held = hold_finds(&deployment.members()[0], "test.held").await;
        let client = &mut cases[0].client;
        let mut find = doc! { "find": "held", "maxTimeMS": 300 };
        let reply = client.reply("test", find.clone()).await.unwrap();
        assert_eq!(code_and_labels(&reply), answer(50, &[]), "told by the server: {reply}");
        relay.set_network(Network::far(8 * way, Concerns::All));
        let asked = Instant::now();
        find.insert("maxTimeMS", 100);
        let reply = client.reply("test", find).await.unwrap();
        assert_eq!(code_and_labels(&reply), answer(89, &[]), "the server is too far away: {reply}");
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        held.release().await;
        // Some heartbeats, each of them late.
        relay.set_network(Network::far(way, Concerns::All));
        for _ in 0..5 {
            client.command("test", doc! { "find": "c" }).await.unwrap();
        }
        assert_eq!(events(&proxy, &relay, "disconnected"), 0.0, "heartbeats fail");
        assert_eq!(times_opened(&proxy, &relay), 0.0);
        relay.set_network(Network::default());
    };
    within_the_bound(&proxy, scenario).await;
    check_recovered(&proxy, &relay, &mut cases).await;
}

#[tokio::test]
async fn large_messages_pass_a_narrow_network() {
    let (_deployment, relay, proxy) = relayed(&format!("{SETTINGS}\nsocket_timeout_ms = 20_000")).await;
    let scenario = async {
        relay.set_network(Network { bandwidth: Some(1_000_000), ..Network::default() });
        let documents: Vec<Document> = (0..4).map(|id| doc! { "_id": id, "text": "x".repeat(250_000) }).collect();
        let mut client = connect(proxy.address()).await;
        let asked = Instant::now();
        client.command("test", doc! { "insert": "c", "documents": &documents }).await.unwrap();
        assert!(asked.elapsed() >= Duration::from_millis(700), "{:?}", asked.elapsed());
        let reply = client.command("test", doc! { "find": "c", "sort": { "_id": 1 } }).await.unwrap();
        assert_eq!(first_batch(&reply), documents);
        assert_eq!(events(&proxy, &relay, "disconnected"), 0.0);
    };
    tokio::select! {
        () = scenario => {}
        () = stand_by(&proxy) => {}
        () = proxy.hold_the_bound() => {}
    }
}

/// The network takes everything in and lets nothing out, that of the monitors as well.
async fn lost_in(network: Network, rechecks: usize) {
    let (_deployment, relay, proxy) = relayed(&format!("{SETTINGS}\n{HASTY}")).await;
    let mut cases = cases(&proxy).await;
    idle_pool(&proxy).await;
    let scenario = async {
        let mut late = connect(proxy.address()).await;
        relay.set_network(network);
        let asked = Instant::now();
        join_all(cases.iter_mut().map(async |case| {
            let reply = case.ask().await;
            assert_eq!(code_and_labels(&reply), case.no_reply, "{}: {reply}", case.command);
        }))
        .await;
        assert!(asked.elapsed() < Duration::from_secs(10), "given up after {:?}", asked.elapsed());
        // Who comes now waits, however long it takes.
        let dials = relay.dials();
        let insert = Request::new("test", doc! { "insert": "late", "documents": [{ "_id": 1 }] });
        let id = late.send(&insert).await.unwrap();
        let looked_for = eventually("looks for the server", async || relay.dials() >= dials + rechecks);
        tokio::select! {
            () = looked_for => {}
            reply = late.receive(id) => panic!("nobody is there to answer: {reply:?}"),
        }
        let well_again = Instant::now();
        relay.set_network(Network::default());
        let reply = late.receive(id).await.unwrap().document().unwrap();
        assert_eq!(reply.get_i32("n").ok(), Some(1), "{reply}");
        assert!(well_again.elapsed() < RECOVERY, "found after {:?}", well_again.elapsed());
    };
    within_the_bound(&proxy, scenario).await;
    check_recovered(&proxy, &relay, &mut cases).await;
}

#[tokio::test]
async fn a_black_hole_is_found_and_left_behind() {
    lost_in(Network::black_hole(Concerns::All), 1).await;
}

#[tokio::test]
async fn a_black_hole_that_lasts_is_left_behind_as_soon() {
    lost_in(Network::black_hole(Concerns::All), 12).await;
}

#[tokio::test]
async fn who_has_waited_for_a_server_waits_for_its_breaker_too() {
    let patient = SETTINGS.replace("breaker.open_initial_ms = 100", "breaker.open_initial_ms = 60_000");
    let patient = patient.replace("breaker.open_max_ms = 1_000", "breaker.open_max_ms = 60_000");
    let (_deployment, relay, proxy) = relayed(&format!("{patient}\n{HASTY}")).await;
    idle_pool(&proxy).await;
    let (mut early, mut late) = (connect(proxy.address()).await, connect(proxy.address()).await);
    // Nobody can connect, and monitoring goes on: the breaker opens, for a minute.
    relay.set_network(Network::black_hole(Concerns::Data));
    relay.cut();
    eventually("an open breaker", async || breaker_state(&proxy, &relay) == 2.0).await;
    relay.set_network(Network::black_hole(Concerns::All));
    eventually("the loss of the server", async || proxy.clusters()[0].topology().data_bearing().count() == 0).await;
    let insert = Request::new("test", doc! { "insert": "late", "documents": [{ "_id": 1 }] });
    let id = early.send(&insert).await.unwrap();
    proxy.waits(1).await;
    relay.set_network(Network::black_hole(Concerns::Data));
    eventually("the server is known", async || proxy.clusters()[0].topology().data_bearing().count() == 1).await;
    let reply = late.reply("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(code_and_labels(&reply).0, 6, "who comes now learns it at once: {reply}");
    assert_eq!(proxy.waiting(), 1, "who has waited goes on");
    relay.set_network(Network::default());
    let reply = timeout(PATIENCE, early.receive(id)).await.expect("an answer").unwrap().document().unwrap();
    assert_eq!(reply.get_i32("n").ok(), Some(1), "{reply}");
    eventually("a closed breaker", async || breaker_state(&proxy, &relay) == 0.0).await;
}

#[tokio::test]
async fn replies_that_get_lost_are_found_and_left_behind() {
    lost_in(Network::one_way(Way::FromServer, Concerns::All), 3).await;
}

/// Monitoring sees nothing of it.
async fn lost_with_a_time_limit(network: Network, limit: &str) {
    let (_deployment, relay, proxy) = relayed(&format!("{SETTINGS}\n{HASTY}\n{limit} = 400")).await;
    let mut cases = cases(&proxy).await;
    idle_pool(&proxy).await;
    let scenario = async {
        relay.set_network(network);
        let asked = Instant::now();
        join_all(cases.iter_mut().map(async |case| {
            let reply = case.ask().await;
            assert_eq!(code_and_labels(&reply), case.too_slow, "{}: {reply}", case.command);
        }))
        .await;
        assert!(asked.elapsed() >= Duration::from_millis(400), "{:?}", asked.elapsed());
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        // Until it has been tried in vain often enough for every pause to be the longest.
        eventually("failing probes", async || times_opened(&proxy, &relay) >= 6.0).await;
        let asked = Instant::now();
        let reply = cases[0].ask().await;
        let (code, labels) = code_and_labels(&reply);
        assert_eq!((code, labels.len()), (6, 2), "refused, to come again: {reply}");
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        relay.set_network(Network::default());
    };
    within_the_bound(&proxy, scenario).await;
    check_recovered(&proxy, &relay, &mut cases).await;
}

#[tokio::test]
async fn a_command_limit_answers_what_a_black_hole_took() {
    lost_with_a_time_limit(Network::black_hole(Concerns::Data), "command_timeout_ms").await;
}

/// As long as what the server has to say arrives, monitoring takes it for well: it streams without being asked.
#[tokio::test]
async fn a_socket_limit_answers_requests_that_got_lost() {
    lost_with_a_time_limit(Network::one_way(Way::ToServer, Concerns::All), "socket_timeout_ms").await;
}

/// Opens all connections that the pool may have, and leaves them idle.
async fn idle_pool(proxy: &Proxy) {
    eventually("a full pool", async || proxy.pool().is_some_and(|pool| pool.counts.available == pool.max_pool_size))
        .await;
}

/// What was idle when the server's side went away: errors in a row until a command succeeds, one after the other.
async fn errors_after(end: End, settings: &str) -> usize {
    let (_deployment, relay, proxy) = relayed(&format!("{SETTINGS}\n{HASTY}\n{settings}")).await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    idle_pool(&proxy).await;
    let mut errors = 0;
    let scenario = async {
        relay.end(end, Concerns::Data);
        for _ in 0..20 {
            let reply = client.reply("test", doc! { "find": "c" }).await.expect("an open socket");
            match code_and_labels(&reply) {
                (0, _) => assert_eq!(first_batch(&reply).len(), 1),
                told => {
                    assert!([answer(6, &[]), answer(89, &[])].contains(&told), "{reply}");
                    errors += 1;
                }
            }
        }
    };
    within_the_bound(&proxy, scenario).await;
    proxy.settles().await;
    idle_pool(&proxy).await;
    assert_eq!(relay.reused(), 0);
    errors
}

#[tokio::test]
async fn idle_connections_that_were_closed_cost_nothing() {
    assert_eq!(errors_after(End::Close, "").await, 0);
}

#[tokio::test]
async fn idle_connections_that_were_reset_cost_nothing() {
    assert_eq!(errors_after(End::Reset, "").await, 0);
}

#[tokio::test]
async fn half_open_connections_cost_one_command() {
    assert!(errors_after(End::HalfOpen, "").await <= 1);
}

#[tokio::test]
async fn half_open_connections_that_stay_silent_cost_one_command() {
    assert!(errors_after(End::HalfOpenSilent, "command_timeout_ms = 400").await <= 1);
}

#[tokio::test]
async fn a_network_that_flaps_loses_no_write_and_doubles_none() {
    let (deployment, relay, proxy) = relayed(SETTINGS).await;
    let mut cuts = tokio::time::interval(Duration::from_millis(300));
    let scenario = async {
        let began = Instant::now();
        let mut cut = 0;
        let concern = WriteConcern::builder().w(Acknowledgment::Nodes(1)).journal(true).build();
        let pause = Duration::from_millis(1);
        let load = Load { drivers: 0, retrying: 0, probes: 0, plain: 20, concern, pause, ..Load::default() };
        let books = ledger::keep(proxy.address(), &load, async |ledger| {
            ledger.progress(100).await;
            while began.elapsed() < Duration::from_secs(10) {
                cuts.tick().await;
                // Now and then the monitors' connections as well.
                let concerns = if cut % 5 == 4 { Concerns::All } else { Concerns::Data };
                relay.end(if cut % 2 == 0 { End::Reset } else { End::Close }, concerns);
                cut += 1;
            }
            ledger.progress(200).await;
        })
        .await;
        let wrong = books.audit(&deployment.uri()).await;
        assert!(wrong.is_empty(), "{wrong:#?}");
        let (acknowledged, answers) = (books.notes.acknowledged.len(), books.notes.succeeded.len());
        let (unknown, refused) = (books.unknown().1, books.refused());
        // Each cut costs what was under way, at most.
        assert!(unknown <= cut * 8, "{unknown} unknown of {answers}, {cut} cuts");
        assert!(acknowledged > unknown + refused, "most get through: {acknowledged}, {unknown}, {refused}, {cut} cuts");
        let retries = proxy.metric("mongomux_retries_total{reason=\"not_sent\"}");
        let budget = 10.0 * (began.elapsed().as_secs_f64() + 10.0) + answers as f64 / 10.0;
        assert!(retries <= budget, "{retries} of {budget}");
    };
    within_the_bound(&proxy, scenario).await;
    check_recovered(&proxy, &relay, &mut cases(&proxy).await).await;
}

/// A cursor that lives through a slow and narrow network brings every document once.
#[tokio::test]
async fn a_cursor_brings_each_document_once_over_a_bad_network() {
    let (_deployment, relay, proxy) = relayed(SETTINGS).await;
    let mut client = connect(proxy.address()).await;
    let documents: Vec<Document> = (0..200).map(|id| doc! { "_id": id }).collect();
    client.command("test", doc! { "insert": "c", "documents": &documents }).await.unwrap();
    relay.set_network(Network { delay: Duration::from_millis(20), bandwidth: Some(100_000), ..Network::default() });
    let mut reply = client.command("test", doc! { "find": "c", "sort": { "_id": 1 }, "batchSize": 10 }).await.unwrap();
    let mut found = first_batch(&reply);
    loop {
        let cursor = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
        if cursor == 0 {
            break;
        }
        // Another connection for each batch.
        relay.end(End::Close, Concerns::Data);
        let more = doc! { "getMore": cursor, "collection": "c", "batchSize": 10 };
        reply = client.command("test", more).await.unwrap();
        found.extend(next_batch(&reply));
    }
    assert_eq!(found, documents);
}
