//! Who asks for much takes nothing from who asks for little: tenants share a pool by weight, levels go one after the other and
//! leave nobody out, and those who wait for data leave the pool to those who do not.
//!
//! What is asserted are shares of what was served, and waits as the proxy itself has measured them: never a time of a client.
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]
#![allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
#![allow(clippy::print_stdout, reason = "tells the counts")]

mod support;

use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;

use bson::{Document, doc};
use futures_util::future::join_all;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::{Request, WireClient};
use mongomux::upstream::pool::TenantSnapshot;
use serde_json::Value;
use support::hold::hold_finds;
use support::open_loop::{Answer, Socket};
use support::proxy::{Proxy, proxy};
use support::{PATIENCE, connect, fail_command, next_batch, raw};
use tokio::time::timeout;

const DATABASE: &str = "fairness";

/// Of the pool that all compete for.
const CONNECTIONS: usize = 10;

/// For which each command holds its connection, at the least.
const HELD_MS: i32 = 10;

/// Far more than can have a connection.
const FLOOD: usize = 300;

/// As many as it takes to ask for half of the pool.
const VICTIM: usize = 10;

/// Served to the one that is looked at; long enough for shares to be what they are.
const COMMANDS: usize = 500;

async fn pair(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let server = &deployment.members()[0];
    let documents = [doc! { "_id": 1 }];
    support::client(server)
        .await
        .command(DATABASE, doc! { "insert": "c", "documents": documents.to_vec() })
        .await
        .unwrap();
    let held = doc! {
        "failCommands": ["find"], "blockConnection": true, "blockTimeMS": HELD_MS, "appName": "mongomux",
    };
    fail_command(server, 0, held).await;
    let pool =
        format!("max_pool_size = {CONNECTIONS}\nmin_pool_size = {CONNECTIONS}\nwait_queue_timeout_ms = 600000\n");
    let proxy = proxy(&deployment.uri(), &format!("{pool}{settings}")).await;
    (deployment, proxy)
}

/// An application, and how much it asks for.
struct Application {
    name: &'static str,
    host: Ipv4Addr,
    sockets: usize,
    find: Document,
}

fn application(name: &'static str, sockets: usize) -> Application {
    let find = doc! { "find": "c", "filter": { "_id": 1 }, "$db": DATABASE };
    Application { name, host: Ipv4Addr::LOCALHOST, sockets, find }
}

/// All sockets of all applications send one command after the other until [`COMMANDS`] of the first application are served;
/// how many each has got by then.
async fn compete<const N: usize>(proxy: &Proxy, applications: [Application; N]) -> [usize; N] {
    let (counts, result) = (RefCell::new([0; N]), Cell::new(None));
    let mut sockets = Vec::new();
    for (index, Application { name, host, sockets: count, find }) in applications.into_iter().enumerate() {
        for _ in 0..count {
            let socket = Socket::open_from(host, proxy.address(), name).await;
            sockets.push((index, socket, raw::command(find.clone())));
        }
    }
    let all = join_all(sockets.into_iter().map(async |(index, mut socket, find)| {
        while result.get().is_none() {
            assert_eq!(socket.exchange(&find).await, Answer::Served);
            let mut counts = counts.borrow_mut();
            counts[index] += 1;
            if counts[0] == COMMANDS && result.get().is_none() {
                result.set(Some(*counts));
            }
        }
    }));
    timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("{:?} after {PATIENCE:?}", counts.borrow()));
    println!("served: {:?}", result.get().unwrap());
    result.get().unwrap()
}

/// What the first has got of all.
fn share<const N: usize>(counts: [usize; N]) -> f64 {
    counts[0] as f64 / counts.iter().sum::<usize>() as f64
}

/// What the proxy has seen of a tenant.
fn seen(proxy: &Proxy, name: &str) -> TenantSnapshot {
    let cluster = &proxy.clusters()[0];
    let all = cluster.servers()[0].pool.tenants();
    let tenants = cluster.tenants.lock().unwrap();
    all.into_iter().find(|tenant| tenants.name(tenant.id).0 == name).unwrap_or_else(|| panic!("{name} was not there"))
}

#[tokio::test]
async fn a_flood_leaves_others_their_half() {
    let (_deployment, proxy) = pair("").await;
    let counts = compete(&proxy, [application("victim", VICTIM), application("flood", FLOOD)]).await;
    assert!((0.4..0.6).contains(&share(counts)), "{counts:?}");
    // Half of its sockets wait for the other half. What is held is a mean of late, and noise between the two is no fault.
    let (victim, flood) = (seen(&proxy, "victim"), seen(&proxy, "flood"));
    assert!(victim.wait_median < 3 * victim.held, "{victim:?}");
    assert!(flood.wait_median > 10 * flood.held, "{flood:?}");
    proxy.settles().await;
}

/// The names by which `/stats` tells tenants, in order.
async fn tenants(proxy: &Proxy) -> Vec<String> {
    let answer = support::http(proxy.admin_address(), "GET", "/stats", "").await;
    let stats: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let tenants = stats["clusters"][0]["servers"][0]["tenants"].as_array().unwrap();
    let mut names: Vec<_> = tenants.iter().map(|tenant| tenant["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn databases_share_alike_whoever_asks() {
    let (_deployment, proxy) = pair("fair_by = \"database\"\n").await;
    let mut flood = application("app", FLOOD);
    flood.find.insert("$db", "other");
    let counts = compete(&proxy, [application("app", VICTIM), flood]).await;
    assert!((0.4..0.6).contains(&share(counts)), "{counts:?}");
    assert_eq!(tenants(&proxy).await, [DATABASE, "other"]);
}

#[tokio::test]
async fn hosts_share_alike_whatever_they_ask() {
    let (_deployment, proxy) = pair("fair_by = \"address\"\n").await;
    let flood = Application { host: Ipv4Addr::new(127, 0, 0, 2), ..application("app", FLOOD) };
    let counts = compete(&proxy, [application("app", VICTIM), flood]).await;
    assert!((0.4..0.6).contains(&share(counts)), "{counts:?}");
    assert_eq!(tenants(&proxy).await, ["127.0.0.1", "127.0.0.2"]);
}

/// A find that the server holds, over a socket of its own.
async fn send_held(proxy: &Proxy, application: &str) -> (WireClient, i32) {
    let mut client = WireClient::connect_as(proxy.address(), application).await.unwrap();
    let request = client.send(&Request::new(DATABASE, doc! { "find": "held" })).await.unwrap();
    (client, request)
}

#[tokio::test]
async fn one_tenant_has_no_more_connections_and_no_more_that_wait_than_it_may() {
    let (deployment, proxy) = pair("tenant_max_in_flight = 3\ntenant_max_waiting = 2\n").await;
    let hold = hold_finds(&deployment.members()[0], &format!("{DATABASE}.held")).await;
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(send_held(&proxy, "greedy").await);
    }
    hold.reaches(3).await;
    for waiting in 1..=2 {
        sent.push(send_held(&proxy, "greedy").await);
        proxy.waits(waiting).await;
    }
    let (mut refused, request) = send_held(&proxy, "greedy").await;
    let refused = timeout(PATIENCE, refused.receive(request)).await.expect("an answer").unwrap().document().unwrap();
    support::assert_overloaded(&refused);
    let message = refused.get_str("errmsg").unwrap();
    assert!(message.contains("2 commands of the same tenant wait, of at most 2;"), "{message}");
    // There are seven connections for all others, of whom each has as much.
    for _ in 0..3 {
        sent.push(send_held(&proxy, "modest").await);
    }
    hold.reaches(6).await;
    assert_eq!((hold.count().await, proxy.waiting(), proxy.shed("tenant")), (6, 2, 1.0));
    hold.release().await;
    for (client, request) in &mut sent {
        let reply = timeout(PATIENCE, client.receive(*request)).await.expect("an answer").unwrap().document().unwrap();
        assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{reply}");
    }
    proxy.settles().await;
}

#[tokio::test]
async fn weights_are_kept() {
    let (_deployment, proxy) = pair("[[tenant]]\nname = \"victim\"\nweight = 3\n").await;
    let counts = compete(&proxy, [application("victim", 2 * VICTIM), application("flood", FLOOD)]).await;
    assert!((0.65..0.85).contains(&share(counts)), "three quarters: {counts:?}");
}

#[tokio::test]
async fn what_one_does_not_ask_for_the_others_have() {
    let (_deployment, proxy) = pair("").await;
    let counts = compete(&proxy, [application("victim", 1), application("flood", FLOOD)]).await;
    let victim = seen(&proxy, "victim");
    // It has the next connection that is free, a tenth of that time away, or all of it where they come free together.
    assert!(victim.wait_median < 2 * victim.held, "{victim:?}");
    // One command at a time is a tenth of the pool at most, and less by its wait; by their number it would be a 300th.
    assert!((0.02..0.11).contains(&share(counts)), "{counts:?}");
    let counts = compete(&proxy, [application("flood", FLOOD), application("gone", 0)]).await;
    assert_eq!(counts, [COMMANDS, 0]);
}

#[tokio::test]
async fn many_tenants_share_alike() {
    let (_deployment, proxy) = pair("").await;
    let counts =
        compete(&proxy, [application("a", 20), application("b", 40), application("c", 80), application("d", 160)])
            .await;
    assert!(counts.iter().all(|count| count.abs_diff(COMMANDS) < COMMANDS / 5), "a quarter each: {counts:?}");
}

/// It is time that is shared, not commands.
#[tokio::test]
async fn who_holds_connections_longer_gets_fewer_commands() {
    let (_deployment, proxy) = pair("").await;
    let slow = Application {
        find: doc! { "find": "c", "filter": { "$where": "sleep(90) || true" }, "$db": DATABASE },
        ..application("flood", FLOOD)
    };
    let counts = compete(&proxy, [application("victim", VICTIM), slow]).await;
    // Half of the time each, whatever a busy machine adds to it; by their number the victim would have a tenth.
    let time = |index: usize, name| counts[index] as f64 * seen(&proxy, name).held.as_secs_f64();
    let (victim, slow) = (time(0, "victim"), time(1, "flood"));
    assert!((0.3..0.7).contains(&(victim / (victim + slow))), "{counts:?}: {victim} s and {slow} s");
}

#[tokio::test]
async fn a_lower_level_gets_little_and_never_nothing() {
    let (_deployment, proxy) = pair("[[priority]]\napplication = \"batch*\"\nlevel = \"low\"\n").await;
    let counts = compete(&proxy, [application("web", 3 * CONNECTIONS), application("batch-7", FLOOD)]).await;
    let left = 1.0 - share(counts);
    assert!((0.03..0.2).contains(&left), "about a tenth is left to the batch: {counts:?}");
    // And all of it while nobody else asks.
    let counts = compete(&proxy, [application("batch-7", FLOOD), application("web", 0)]).await;
    assert_eq!(counts, [COMMANDS, 0]);
}

#[tokio::test]
async fn a_higher_level_passes_all_others() {
    let (_deployment, proxy) = pair("[[priority]]\napplication = \"pager\"\nlevel = \"high\"\n").await;
    let counts = compete(&proxy, [application("pager", 3 * CONNECTIONS), application("web", FLOOD)]).await;
    assert!((0.03..0.2).contains(&(1.0 - share(counts))), "about a tenth is left: {counts:?}");
}

/// A cursor that waits for data, over a socket of its own.
struct Tail {
    client: WireClient,
    collection: &'static str,
    id: i64,
}

impl Tail {
    /// Opens it: a change stream of `plain`, or a tailable cursor of `capped`, which has one document.
    async fn open(proxy: &Proxy, capped: bool) -> Self {
        let mut client = connect(proxy.address()).await;
        let command = if capped {
            doc! { "find": "capped", "tailable": true, "awaitData": true }
        } else {
            doc! { "aggregate": "plain", "pipeline": [{ "$changeStream": {} }], "cursor": {} }
        };
        let reply = client.command(DATABASE, command).await.unwrap();
        let id = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
        Self { client, collection: if capped { "capped" } else { "plain" }, id }
    }

    /// Follows until it has seen so many numbers, which it returns.
    async fn follow(&mut self, count: usize) -> Vec<i32> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let get_more = doc! { "getMore": self.id, "collection": self.collection, "maxTimeMS": 600_000 };
            let reply = self.client.command(DATABASE, get_more).await.unwrap();
            let events = next_batch(&reply);
            seen.extend(
                events.iter().map(|event| event.get_document("fullDocument").unwrap_or(event).get_i32("_id").unwrap()),
            );
        }
        seen
    }
}

#[tokio::test]
async fn five_hundred_who_wait_for_data_leave_the_pool_to_finds() {
    const TAILS: usize = 500;
    const EVENTS: i32 = 5;
    let (_deployment, proxy) = pair("").await;
    let mut writer = connect(proxy.address()).await;
    writer.command(DATABASE, doc! { "create": "plain" }).await.unwrap();
    writer.command(DATABASE, doc! { "create": "capped", "capped": true, "size": 100_000 }).await.unwrap();
    let mut insert = async |number: i32| {
        for collection in ["plain", "capped"] {
            let documents = [doc! { "_id": number }];
            writer.command(DATABASE, doc! { "insert": collection, "documents": documents.to_vec() }).await.unwrap();
        }
    };
    // Of an empty capped collection there is no cursor.
    insert(0).await;
    let mut tails = join_all((0..TAILS).map(|number| Tail::open(&proxy, number % 2 == 0))).await;
    let finds = async {
        for number in 1..=EVENTS {
            compete(&proxy, [application("finder", CONNECTIONS)]).await;
            insert(number).await;
        }
    };
    let follow = join_all(tails.iter_mut().map(|tail| tail.follow(usize::try_from(EVENTS).unwrap())));
    let (followed, ()) = timeout(PATIENCE * 2, async { tokio::join!(follow, finds) }).await.expect("all go on");
    let wanted: Vec<i32> = (1..=EVENTS).collect();
    assert!(followed.iter().all(|seen| *seen == wanted), "{followed:?}");
    // As many finders as connections, of which those who wait for data have half at most, and those only for moments.
    let finder = seen(&proxy, "finder");
    assert!(finder.wait_median < 2 * finder.held, "{finder:?}");
}
