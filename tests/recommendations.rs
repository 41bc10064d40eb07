//! What `/stats` recommends comes from what happened, and of a pool that is well nothing is said.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::doc;
use mongomux::admin::Admin;
use mongomux::sandbox::wire_client::WireClient;
use mongomux::tasks::Tasks;
use mongomux::upstream::Cluster;
use support::hold::eventually;
use support::proxy::{Proxy, configured, proxy};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Duration;

/// In the place of ten seconds: six of them make the shortest time that says something.
const INTERVAL: Duration = Duration::from_millis(200);

/// Clients of an application that ask, each one thing after the other, until `over`.
async fn crowd(set: &mut JoinSet<()>, proxy: &Proxy, application: &str, clients: usize, over: &Arc<AtomicBool>) {
    for _ in 0..clients {
        let mut client = WireClient::connect_as(proxy.address(), application).await.unwrap();
        let over = over.clone();
        set.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let find = doc! { "find": "c", "filter": { "$where": "sleep(2) || true" } };
                client.command("test", find).await.unwrap();
            }
        });
    }
}

/// Twenty clients on one connection, and beside them four on ten, of the same server.
#[tokio::test]
async fn a_pool_that_is_too_small_asks_for_more_and_one_that_is_well_for_nothing() {
    let deployment = support::standalone().await;
    // Where applications take turns, none of them holds more than its share.
    let small = proxy(&deployment.uri(), "max_pool_size = 1\nmin_pool_size = 1\nfair_by = \"none\"").await;
    let well = proxy(&deployment.uri(), "max_pool_size = 10").await;
    let mut client = support::connect(well.address()).await;
    client.command("test", doc! { "insert": "c", "documents": [{}] }).await.unwrap();

    let clusters = vec![small.clusters()[0].clone(), well.clusters()[0].clone()];
    let memory = clusters[0].memory.clone();
    let admin =
        Admin::new(clusters, Vec::new(), small.metrics().clone(), memory, watch::Sender::default(), Arc::default());
    let tasks = Tasks::new();
    let (over, mut set) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    crowd(&mut set, &small, "shop", 15, &over).await;
    crowd(&mut set, &small, "search", 5, &over).await;
    crowd(&mut set, &well, "shop", 4, &over).await;
    admin.keep_history(INTERVAL, &tasks);

    let said = |cluster: usize| admin.stats().clusters[cluster].servers[0].recommendations.clone();
    let asks = |said: &[String]| {
        said.len() == 2
            && said[0].contains("of the commands waited for one of 1 connections")
            && said[0].contains("Raise max_pool_size to 10")
            && said[1].contains("was by the application `shop`")
    };
    eventually("the small pool asks for more", async || asks(&said(0))).await;
    assert_eq!(said(1), [""; 0]);
    over.store(true, Ordering::Relaxed);
    set.join_all().await;
    tasks.cancel();
    assert_eq!(tasks.join_all(Duration::from_secs(5)).await, 0);
}

/// What clients of several clusters ask of one of them says nothing about their sockets.
#[tokio::test]
async fn sockets_are_counted_where_the_commands_on_them_are() {
    let proxy = configured(
        "[[cluster]]\nname = \"a\"\nupstream = \"mongodb://127.0.0.1:1\"\n\
         [[cluster]]\nname = \"b\"\nupstream = \"mongodb://127.0.0.1:1\"\n\
         [[listener]]\nlisten = \"127.0.0.1:0\"\ncluster = \"a\"\ndatabases = { b = \"b\" }\n\
         [[listener]]\nlisten = \"127.0.0.1:0\"\ncluster = \"b\"\n",
    )
    .await;
    let [both, only] = proxy.addresses() else { panic!("two listeners") };
    let mut clients = Vec::new();
    for address in [both, both, only] {
        clients.push(TcpStream::connect(address.to_string()).await.unwrap());
    }
    let count = |count: fn(&Cluster) -> u64| proxy.clusters().iter().map(|it| count(it)).collect::<Vec<_>>();
    let are_there = async || count(|cluster| cluster.clients.load(Ordering::Relaxed) as u64) == [2, 3];
    eventually("all are accepted", are_there).await;
    let are_counted = async || count(|cluster| cluster.clients_opened.load(Ordering::Relaxed)) == [0, 1];
    eventually("those of one cluster are counted", are_counted).await;
}
