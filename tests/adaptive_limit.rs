//! With `adaptive_limit` a server is given as many commands at once as it can do, not as many as there are connections. Only
//! limits and counts are judged, never times.
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bson::{Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::mongod::Mongod;
use support::hold::eventually;
use support::proxy::{Proxy, proxy};
use support::{connect, fail_command, fail_nothing, first_batch};
use tokio::task::JoinSet;

/// Clients that ask again as soon as they have their answer.
struct Crowd {
    over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Crowd {
    async fn gather(address: &Address, count: usize, command: &Document) -> Self {
        let (over, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        for _ in 0..count {
            let mut client = connect(address).await;
            let (over, answers, command) = (over.clone(), answers.clone(), command.clone());
            clients.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let reply = client.command("test", command.clone()).await.unwrap();
                    assert_eq!(first_batch(&reply), [doc! { "_id": 1 }]);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { over, answers, clients }
    }

    fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    async fn leave(self) {
        self.over.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
    }
}

fn limit(proxy: &Proxy) -> u32 {
    proxy.pool().map_or(0, |pool| pool.limit)
}

fn gauge(proxy: &Proxy, server: &Mongod) -> f64 {
    proxy.metric(&format!("mongomux_in_flight_limit{{server=\"127.0.0.1:{}\"}}", server.port()))
}

/// A find that takes its time on the server, and one of its tickets meanwhile.
fn slow_find() -> Document {
    doc! { "find": "c", "filter": { "$where": "sleep(40); return true" } }
}

/// As long takes every find from now on, and nothing keeps one from going on beside the others. So long that what a busy
/// machine adds is little of it: half as much more would be taken for a crowd.
async fn block_finds(server: &Mongod, ms: i32) {
    let slow = doc! { "failCommands": ["find"], "blockConnection": true, "blockTimeMS": ms };
    fail_command(server, 0, slow).await;
}

/// So many reads are carried out side by side by the server, the others wait for a ticket.
async fn set_tickets(server: &Mongod, count: i32) {
    let command = doc! { "setParameter": 1, "wiredTigerConcurrentReadTransactions": count };
    support::client(server).await.command("admin", command).await.unwrap();
}

async fn one_document(server: &Mongod) {
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }] };
    support::client(server).await.command("test", insert).await.unwrap();
}

#[tokio::test]
async fn a_server_gets_as_many_commands_as_it_can_do_and_more_once_it_can_do_more() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    one_document(server).await;
    set_tickets(server, 5).await;
    // Its interpreter is slow at first.
    for _ in 0..10 {
        support::client(server).await.command("test", slow_find()).await.unwrap();
    }
    let proxy =
        proxy(&deployment.uri(), "adaptive_limit = true\nmax_pool_size = 40\nwait_queue_timeout_ms = 60000").await;
    let crowd = Crowd::gather(proxy.address(), 60, &slow_find()).await;
    eventually("it has learnt", async || crowd.answers() >= 600).await;
    for look in 650..1_000 {
        eventually("they go on", async || crowd.answers() >= look).await;
        let limit = limit(&proxy);
        assert!((2..=30).contains(&limit), "{limit} commands at once for a server that can do 5");
        assert!(proxy.pool().unwrap().counts.total() <= 40);
    }
    crowd.leave().await;
    let before = limit(&proxy);
    assert_eq!(gauge(&proxy, server), f64::from(before));
    let stats = support::http(proxy.admin_address(), "GET", "/stats", "").await;
    assert!(stats.contains("\"limit\":"), "{stats}");
    block_finds(server, 40).await;
    let crowd = Crowd::gather(proxy.address(), 60, &doc! { "find": "c" }).await;
    eventually("it gets more", async || limit(&proxy) > before + 2).await;
    crowd.leave().await;
    proxy.settles().await;
}

#[tokio::test]
async fn the_pool_grows_under_load_and_shrinks_when_it_is_over() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    one_document(server).await;
    let settings = "adaptive_limit = true\nmax_pool_size = 20\nmax_in_flight = 16\nmax_idle_time_ms = 500";
    let proxy = proxy(&deployment.uri(), settings).await;
    block_finds(server, 100).await;
    eventually("the minimum is open", async || proxy.pool().is_some_and(|pool| pool.counts.available == 2)).await;
    assert_eq!((limit(&proxy), gauge(&proxy, server)), (2, 2.0));
    let crowd = Crowd::gather(proxy.address(), 40, &doc! { "find": "c" }).await;
    eventually("all are used that may be", async || limit(&proxy) == 16).await;
    eventually("with a connection for each", async || proxy.pool().unwrap().counts.in_use == 16).await;
    assert_eq!(gauge(&proxy, server), 16.0);
    fail_nothing(server).await;
    crowd.leave().await;
    eventually("the pool is small again", async || proxy.pool().unwrap().counts.total() == 2).await;
    proxy.settles().await;
}

#[tokio::test]
async fn a_limit_that_does_not_adapt_is_shown_as_it_is() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    for (settings, shown) in [("", 10.0), ("max_pool_size = 7\nmax_in_flight = 3", 3.0)] {
        let proxy = proxy(&deployment.uri(), settings).await;
        let mut client = connect(proxy.address()).await;
        for _ in 0..30 {
            client.command("test", doc! { "find": "c" }).await.unwrap();
        }
        assert_eq!(gauge(&proxy, server), shown, "{settings}");
    }
}
