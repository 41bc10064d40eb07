//! What an operator orders while clients work: each order does what it says, can be given again, and costs no client anything
//! that it did not ask for.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Document, doc};
use futures_util::FutureExt as _;
use mongomux::sandbox::wire_client::{Request, WireClient};
use serde_json::{Value, json};
use support::hold::{eventually, hold_finds};
use support::ledger::{Books, Load, keep};
use support::proxy::{Proxy, proxy};
use support::{code_and_labels, connect, first_batch, new_lsid};
use tokio::time::{Duration, timeout};

/// Far above what anything takes that waits for nobody.
const AT_ONCE: Duration = Duration::from_secs(20);

const SETTINGS: &str = "max_pool_size = 6\nserver_selection_timeout_ms = 30_000\nlocal_threshold_ms = 60_000";

async fn order(proxy: &Proxy, path: &str, body: Value) -> (u16, Value) {
    support::json(proxy.admin_address(), "POST", path, &body.to_string()).await
}

/// As [`order`], for one that is obeyed.
async fn obeyed(proxy: &Proxy, path: &str, body: Value) -> Value {
    let (status, answer) = order(proxy, path, body).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

async fn events(proxy: &Proxy, kind: &str) -> usize {
    let (_, events) = support::json(proxy.admin_address(), "GET", &format!("/events?kind={kind}"), "").await;
    events.as_array().unwrap().len()
}

/// Nobody was told of any trouble, and everything is there once.
async fn assert_unharmed(books: &Books, uri: &str) {
    assert_eq!(books.audit(uri).await, [""; 0]);
    assert_eq!(books.notes.errors, [""; 0]);
    assert_eq!((books.unknown(), books.refused()), ((0, 0), 0));
}

fn created(proxy: &Proxy) -> u64 {
    proxy.pool().unwrap().created
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_notices_a_gentle_order() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), SETTINGS).await;
    let load = Load { drivers: 2, workers: 6, retrying: 4, plain: 10, ..Load::default() };
    let books = keep(proxy.address(), &load, async |ledger| {
        ledger.progress(50).await;
        for round in 0..2 {
            obeyed(&proxy, "/admin/pause", json!({})).await;
            eventually("all wait", async || proxy.pool().unwrap().counts.in_use == 0).await;
            assert_eq!(
                obeyed(&proxy, "/admin/resume", json!({"cluster": "default"})).await["resumed"],
                json!(["default"])
            );
            ledger.progress(50).await;
            obeyed(&proxy, "/admin/pause", json!({"database": "ledger", "timeoutMs": 300})).await;
            ledger.progress(50).await;
            // All of them, one after the other, and never more than may be.
            let before = created(&proxy);
            let answer = obeyed(&proxy, "/admin/reconnect", json!({})).await;
            let connections = answer["reconnecting"][0]["connections"].as_u64().unwrap();
            assert!((1..=6).contains(&connections), "{answer}");
            eventually("all are new", async || created(&proxy) >= before + connections).await;
            ledger.progress(50).await;
            for mode in ["idle", "soft"] {
                let (before, open) = (created(&proxy), proxy.pool().unwrap().counts);
                let cleaned = obeyed(&proxy, "/admin/cleanup", json!({"mode": mode})).await;
                if mode == "soft" {
                    let gone = cleaned["closed"].as_u64().unwrap() + cleaned["ending"].as_u64().unwrap();
                    assert!(gone > 0 && gone <= 6, "{cleaned} of {open:?}");
                    eventually("new ones", async || created(&proxy) > before).await;
                }
                ledger.progress(50).await;
            }
            obeyed(&proxy, "/health/database", json!({"action": "cleanup"})).await;
            let server = deployment.members()[0].address();
            obeyed(&proxy, &format!("/admin/breakers/{server}/reset"), json!({})).await;
            ledger.progress(50).await;
            proxy.assert_bound();
            assert!(events(&proxy, "paused").await > round && events(&proxy, "resumed").await > round);
        }
    })
    .await;
    assert_unharmed(&books, &deployment.uri()).await;
}

/// Commands in flight are told so, with what lets drivers send them again; nothing is lost or done twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_clean_up_costs_what_is_in_flight_and_no_more() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), SETTINGS).await;
    let load = Load { drivers: 2, workers: 6, retrying: 4, plain: 0, ..Load::default() };
    let books = keep(proxy.address(), &load, async |ledger| {
        for _ in 0..5 {
            ledger.progress(40).await;
            let before = created(&proxy);
            obeyed(&proxy, "/admin/cleanup", json!({"mode": "hard"})).await;
            eventually("new ones", async || created(&proxy) > before).await;
        }
        ledger.progress(40).await;
        let stats = support::json(proxy.admin_address(), "GET", "/stats", "").await.1;
        assert_eq!(
            stats["clusters"][0]["servers"][0]["breaker"],
            json!("closed"),
            "an order is no failure of the server"
        );
    })
    .await;
    assert_eq!(books.audit(&deployment.uri()).await, [""; 0]);
    assert_eq!(books.notes.errors, [""; 0], "drivers sent again");
}

async fn ping(client: &mut WireClient, database: &str) -> Document {
    client.command(database, doc! { "find": "c", "filter": {} }).await.unwrap()
}

#[tokio::test]
async fn a_pause_holds_what_is_new_of_its_database_and_ends_as_it_was_told() {
    let deployment = support::replica_set(1).await;
    let settings = "max_pool_size = 4\nserver_selection_timeout_ms = 1_000\nwait_queue_timeout_ms = 500";
    let proxy = proxy(&deployment.uri(), settings).await;
    let (mut shop, mut other) = (connect(proxy.address()).await, connect(proxy.address()).await);
    shop.command("shop", doc! { "create": "c" }).await.unwrap();
    // What is open goes on.
    let lsid = new_lsid();
    let transaction = |mut command: Document, starts: bool| {
        command.extend(doc! { "lsid": lsid.clone(), "txnNumber": 1_i64, "autocommit": false });
        if starts {
            command.insert("startTransaction", true);
        }
        command
    };
    shop.command("shop", transaction(doc! { "insert": "c", "documents": [{ "_id": 1 }] }, true)).await.unwrap();
    for _ in 0..2 {
        obeyed(&proxy, "/admin/pause", json!({"database": "shop"})).await;
    }
    timeout(AT_ONCE, ping(&mut other, "other")).await.unwrap();
    let goes_on = transaction(doc! { "insert": "c", "documents": [{ "_id": 2 }] }, false);
    timeout(AT_ONCE, shop.command("shop", goes_on)).await.unwrap().unwrap();
    let commit = transaction(doc! { "commitTransaction": 1 }, false);
    timeout(AT_ONCE, shop.command("admin", commit)).await.unwrap().unwrap();
    // Who has waited as long as for a server is told.
    let refused = shop.reply("shop", doc! { "find": "c", "filter": {} }).await.unwrap();
    let (code, labels) = code_and_labels(&refused);
    assert!(code != 0 && labels.contains(&"RetryableError".to_owned()), "{refused}");
    let stats = support::json(proxy.admin_address(), "GET", "/stats", "").await.1;
    assert_eq!(stats["clusters"][0]["paused"], json!([{"database": "shop", "remainingMs": null}]));
    let (status, _) = support::json(proxy.admin_address(), "GET", "/health/database", "").await;
    assert_eq!(status, 200);
    // A pause that ends by itself takes the place of the one that does not.
    obeyed(&proxy, "/admin/pause", json!({"database": "shop", "timeoutMs": 200})).await;
    let held = timeout(AT_ONCE, ping(&mut shop, "shop")).await.unwrap();
    assert_eq!(first_batch(&held).len(), 2);
    assert_eq!(events(&proxy, "resumed").await, 1, "nobody has resumed it");
    obeyed(&proxy, "/admin/pause", json!({})).await;
    assert!(timeout(Duration::from_millis(200), ping(&mut other, "other")).await.is_err(), "all of it is paused");
    for _ in 0..2 {
        obeyed(&proxy, "/admin/resume", json!({})).await;
    }
    let mut third = connect(proxy.address()).await;
    timeout(AT_ONCE, ping(&mut third, "shop")).await.unwrap();
}

/// The alarm for a queue that stands looks at how long somebody has waited, whatever for.
#[tokio::test]
async fn who_is_held_by_a_pause_or_waits_for_a_server_is_as_old_as_the_wait() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "server_selection_timeout_ms = 30_000\nheartbeat_frequency_ms = 500").await;
    let mut client = connect(proxy.address()).await;
    ping(&mut client, "shop").await;
    let ages = async || {
        let stats = support::json(proxy.admin_address(), "GET", "/stats", "").await.1;
        let metrics = support::http(proxy.admin_address(), "GET", "/metrics", "").await;
        let gauge = metrics.lines().find_map(|line| line.strip_prefix("mongomux_wait_queue_oldest_seconds "));
        let queue = &stats["clusters"][0]["waitQueue"];
        (queue["length"].as_u64().unwrap(), queue["oldestMs"].as_u64().unwrap(), gauge.unwrap().parse::<f64>().unwrap())
    };
    let grows = async || {
        let is_old = async || matches!(ages().await, (1, 50.., seconds) if seconds >= 0.05);
        eventually("it has waited", is_old).await;
    };
    assert_eq!(ages().await, (0, 0, 0.0));
    obeyed(&proxy, "/admin/pause", json!({})).await;
    let held = client.send(&Request::new("shop", doc! { "find": "c", "filter": {} })).await.unwrap();
    grows().await;
    obeyed(&proxy, "/admin/resume", json!({})).await;
    timeout(AT_ONCE, client.receive(held)).await.unwrap().unwrap();
    assert_eq!(ages().await, (0, 0, 0.0));

    let mut direct = support::client(&deployment.members()[0]).await;
    direct.command("admin", doc! { "replSetStepDown": 3, "force": true }).await.unwrap();
    let write = Request::new("shop", doc! { "insert": "c", "documents": [{ "a": 1 }] });
    let waits = client.send(&write).await.unwrap();
    grows().await;
    timeout(AT_ONCE, client.receive(waits)).await.unwrap().unwrap();
    eventually("nobody waits", async || ages().await == (0, 0, 0.0)).await;
}

/// What waits in the queue of a server holds when the whole cluster is paused, and goes on in its place.
#[tokio::test]
async fn who_waits_for_a_connection_is_held_as_well() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "max_pool_size = 1\nmin_pool_size = 1").await;
    let mut waiting = connect(proxy.address()).await;
    waiting.command("shop", doc! { "create": "other" }).await.unwrap();
    let hold = hold_finds(&deployment.members()[0], "shop.held").await;
    let mut holder = connect(proxy.address()).await;
    let held = holder.send(&Request::new("shop", doc! { "find": "held", "filter": {} })).await.unwrap();
    hold.reaches(1).await;
    let waits = waiting.send(&Request::new("shop", doc! { "find": "other", "filter": {} })).await.unwrap();
    proxy.waits(1).await;
    let answer = obeyed(&proxy, "/admin/pause", json!({})).await;
    assert_eq!((&answer["paused"], &answer["inFlight"]), (&json!(["default"]), &json!(1)));
    hold.release().await;
    holder.receive(held).await.unwrap();
    eventually("nothing is in use", async || proxy.pool().unwrap().counts.in_use == 0).await;
    assert!(waiting.receive(waits).now_or_never().is_none(), "paused");
    obeyed(&proxy, "/admin/resume", json!({})).await;
    let reply = timeout(AT_ONCE, waiting.receive(waits)).await.unwrap().unwrap().document().unwrap();
    assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{reply}");
}

#[tokio::test]
async fn a_breaker_that_was_tripped_refuses_until_it_is_reset() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "server_selection_timeout_ms = 500").await;
    let mut client = connect(proxy.address()).await;
    ping(&mut client, "shop").await;
    let server = deployment.members()[0].address().to_string();
    for _ in 0..2 {
        let answer = obeyed(&proxy, &format!("/admin/breakers/{server}/trip"), json!({})).await;
        assert_eq!(answer["breaker"], json!("open"));
    }
    let refused = client.reply("shop", doc! { "find": "c", "filter": {} }).await.unwrap();
    assert_ne!(code_and_labels(&refused).0, 0, "{refused}");
    for _ in 0..2 {
        let answer = obeyed(&proxy, &format!("/admin/breakers/{server}/reset"), json!({})).await;
        assert_eq!(answer["breaker"], json!("closed"));
    }
    timeout(AT_ONCE, ping(&mut client, "shop")).await.unwrap();
}

#[tokio::test]
async fn mistakes_are_told_and_change_nothing() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "max_pool_size = 2").await;
    let mut client = connect(proxy.address()).await;
    ping(&mut client, "shop").await;
    // The pool is kept at two.
    eventually("it is warm", async || created(&proxy) == 2).await;
    for (path, body, status, told) in [
        ("/admin/pause", json!({"cluster": "shop"}), 404, r#"cluster: found "shop", expected one of ["default"]"#),
        (
            "/admin/pause",
            json!({"databse": "shop"}),
            400,
            "unknown field `databse`, expected one of `cluster`, `database`",
        ),
        ("/admin/pause", json!({"timeoutMs": 0}), 400, "timeoutMs: found 0, expected 1 to 3600000 ms"),
        ("/admin/pause", json!({"timeoutMs": "1s"}), 400, "invalid type: string"),
        ("/admin/resume", json!({"cluster": "shop"}), 404, "expected one of [\"default\"]"),
        (
            "/admin/reconnect",
            json!({"server": "nowhere:1"}),
            404,
            "server: found \"nowhere:1\", expected one of [\"127.0.0.1:",
        ),
        ("/admin/reconnect", json!({"server": "nowhere"}), 400, "is not an address: expected host:port"),
        ("/admin/cleanup", json!({}), 400, "missing field `mode`"),
        (
            "/admin/cleanup",
            json!({"mode": "all"}),
            400,
            "unknown variant `all`, expected one of `idle`, `soft`, `hard`",
        ),
        ("/health/database", json!({"action": "heal"}), 400, "unknown variant `heal`"),
        ("/admin/breakers/nowhere:1/reset", json!({}), 404, "expected one of"),
        ("/admin/breakers/nowhere:1/open", json!({}), 404, "expected \"reset\" or \"trip\""),
    ] {
        let (found, answer) = order(&proxy, path, body).await;
        assert_eq!(found, status, "{path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(told), "{path}: {answer}");
    }
    timeout(AT_ONCE, ping(&mut client, "shop")).await.unwrap();
    assert_eq!(created(&proxy), 2);
}
