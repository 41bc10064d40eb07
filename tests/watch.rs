//! What an operator sees is what is: `/stats` while everything moves, `/events` of what has happened, `connPoolStats` in any
//! shell, and how full the servers are.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Bson, Document, doc};
use mongomux::admin::stats::{Health, Stats};
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::sandbox::wire_client::{Request, WireClient};
use serde_json::{Value, json};
use support::hold::{eventually, hold_finds};
use support::proxy::{Proxy, proxy};
use tokio::task::JoinSet;

async fn get(proxy: &Proxy, path: &str) -> Value {
    let (status, body) = support::json(proxy.admin_address(), "GET", path, "").await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

async fn stats(proxy: &Proxy) -> Stats {
    serde_json::from_value(get(proxy, "/stats").await).unwrap()
}

/// Kinds and texts of what has happened, oldest first.
async fn events(proxy: &Proxy, query: &str) -> Vec<(String, String)> {
    let told = get(proxy, &format!("/events{query}")).await;
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    told.as_array().unwrap().iter().rev().map(|event| (text(event, "kind"), text(event, "text"))).collect()
}

/// Reads and writes, one after the other, until `over`; what an election does to them is not what this is about.
fn crowd(proxy: &Proxy, clients: usize, over: &Arc<AtomicBool>) -> JoinSet<usize> {
    let mut set = JoinSet::new();
    for number in 0..clients {
        let (address, over) = (proxy.address().clone(), over.clone());
        set.spawn(async move {
            let mut client = WireClient::connect_as(&address, "crowd").await.unwrap();
            let mut done = 0;
            while !over.load(Ordering::Relaxed) {
                let command = match number % 3 {
                    0 => doc! { "insert": "c", "documents": [{ "by": i32::try_from(number).unwrap() }] },
                    1 => doc! { "find": "c", "filter": { "$where": "sleep(1) || true" }, "limit": 3 },
                    _ => doc! { "find": "c", "limit": 5, "$readPreference": { "mode": "secondaryPreferred" } },
                };
                done += usize::from(client.reply("watch", command).await.unwrap().get_f64("ok").unwrap() == 1.0);
            }
            done
        });
    }
    set
}

/// The numbers of one answer fit together.
fn check(stats: &Stats) {
    for cluster in &stats.clusters {
        let sum = |count: fn(&mongomux::admin::stats::Connections) -> u32| -> u32 {
            cluster.servers.iter().map(|server| count(&server.connections)).sum()
        };
        let all = cluster.connections;
        assert_eq!(
            (all.active, all.idle, all.pending, all.closing, all.max, all.min),
            (
                sum(|it| it.active),
                sum(|it| it.idle),
                sum(|it| it.pending),
                sum(|it| it.closing),
                sum(|it| it.max),
                sum(|it| it.min)
            ),
        );
        for server in &cluster.servers {
            let it = server.connections;
            assert!(it.active + it.idle + it.pending + it.closing <= it.max, "{it:?}");
            assert_eq!(it.utilization, it.active * 100 / it.max, "{it:?}");
            assert!(it.min <= it.max && server.limit <= it.max, "{server:?}");
            let queue = server.wait_queue;
            assert!(queue.length > 0 || queue.oldest_ms == 0, "{queue:?}");
            assert!(queue.length == 0 || it.active > 0 || it.idle < it.max, "{server:?}");
            assert!(server.churn.closed <= server.churn.created && server.churn.replaced <= server.churn.closed);
            assert!(server.churn.created - server.churn.closed <= u64::from(it.max), "{server:?}");
            assert_eq!(server.breaker == "closed", server.breaker_reason.is_none(), "{server:?}");
        }
        assert_eq!(all.utilization, (all.active * 100).checked_div(all.max).unwrap_or_default());
        // Who waits for a server, or for the end of an order, waits at none.
        let oldest = cluster.servers.iter().map(|server| server.wait_queue.oldest_ms).max();
        assert!(Some(cluster.wait_queue.oldest_ms) >= oldest, "{:?}", cluster.wait_queue);
        assert!(cluster.wait_queue.length <= cluster.wait_queue_size);
    }
    assert!(stats.memory.used_bytes <= stats.memory.limit_bytes, "{:?}", stats.memory);
}

/// On threads of its own, so that an answer is put together while pools change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_adds_up_while_everything_moves() {
    const LOOKS: usize = 300;
    let deployment = support::replica_set(3).await;
    let proxy = proxy(&deployment.uri(), "max_pool_size = 4\nmax_lifetime_ms = 1000\nmax_idle_time_ms = 200").await;
    let over = Arc::new(AtomicBool::new(false));
    let set = crowd(&proxy, 18, &over);
    let is_connected = async || stats(&proxy).await.clusters[0].clients >= 18;
    eventually("all are connected", is_connected).await;
    for look in 0..LOOKS {
        if look == LOOKS / 3 {
            let primary = deployment.await_primary().await.unwrap();
            let mut direct = support::client(&deployment.members()[primary]).await;
            drop(direct.command("admin", doc! { "replSetStepDown": 2, "force": true }).await);
        }
        let now = stats(&proxy).await;
        check(&now);
        let health: Health = serde_json::from_value(get(&proxy, "/health/database").await).unwrap();
        let pool = health.database.connection_pool;
        assert_eq!((pool.max, pool.utilization), (now.clusters[0].connections.max, pool.active * 100 / pool.max));
    }
    let load = stats(&proxy).await;
    assert!(load.clusters[0].clients >= 18 && load.clusters[0].server_version.as_deref() == Some("6.0"), "{load:?}");
    over.store(true, Ordering::Relaxed);
    let done: usize = set.join_all().await.into_iter().sum();
    assert!(done > 100, "there was load: {done}");
    // At rest each connection that was ever established is either there or closed.
    let at_rest = async || {
        let now = stats(&proxy).await;
        let is_accounted = |server: &mongomux::admin::stats::ServerStats| {
            let open = u64::from(server.connections.active + server.connections.idle);
            server.churn.created - server.churn.closed == open
        };
        now.clusters[0].clients == 0
            && now.memory.used_bytes == 0
            && now.clusters[0].connections.active == 0
            && now.clusters[0].servers.iter().all(is_accounted)
    };
    eventually("all is accounted for", at_rest).await;
    let replaced: u64 = stats(&proxy).await.clusters[0].servers.iter().map(|server| server.churn.replaced).sum();
    assert!(replaced > 0, "lifetimes were over");
    assert!(!events(&proxy, "?kind=refresh").await.is_empty());
    let roles = events(&proxy, "?kind=role").await;
    // Who steps down may be seen in between, neither primary nor secondary.
    let told = |is_told: &dyn Fn(&str) -> bool| roles.iter().any(|(_, role)| is_told(role));
    let stepped_down = told(&|role| role.ends_with(", was primary"));
    assert!(stepped_down && told(&|role| role == "is primary now, was secondary"), "{roles:?}");
}

#[tokio::test]
async fn what_happens_to_a_server_is_remembered() {
    let mut deployment = support::standalone().await;
    let settings = "heartbeat_frequency_ms = 500\nreconnect.max_ms = 200\nbreaker.open_initial_ms = 100\nbreaker.open_max_ms = 300";
    let proxy = proxy(&deployment.uri(), settings).await;
    let server = deployment.members()[0].address().to_string();
    let has = async |kind: &str| !events(&proxy, &format!("?kind={kind}&cluster=default")).await.is_empty();
    eventually("it is reached", async || has("connected").await).await;
    let found = events(&proxy, "").await;
    let kinds: Vec<&str> = found.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["server_found", "connected"], "{found:?}");
    assert_eq!(found[1].1, "connected as standalone");
    let all = get(&proxy, "/events").await;
    assert_eq!(
        (&all[0]["server"], &all[0]["cluster"], &all[0]["count"]),
        (&json!(server), &json!("default"), &json!(1))
    );

    deployment.member(0).kill().await.unwrap();
    eventually("it is lost", async || has("disconnected").await).await;
    eventually("its pool is cleared", async || has("pool_cleared").await).await;
    let lost = events(&proxy, "?kind=disconnected").await;
    assert!(lost[0].1.starts_with("disconnected: "), "it says why: {lost:?}");
    deployment.member(0).restart().await.unwrap();
    eventually("it is reached again", async || has("reconnected").await).await;

    let (_, answer) = support::json(proxy.admin_address(), "POST", "/admin/mode", r#"{"mode": "read-only"}"#).await;
    assert_eq!(answer["mode"], "read-only");
    let last = events(&proxy, "?limit=2").await;
    let [mode, action] = &last[..] else { panic!("two events: {last:?}") };
    assert_eq!((mode.0.as_str(), mode.1.as_str()), ("mode", "is read-only now, was normal"));
    assert!(action.0 == "action" && action.1.starts_with("/admin/mode by "), "{action:?}");
    // An order without what orders need is refused, and no event.
    let refused = support::http(proxy.admin_address(), "POST", "/admin/nothing", "").await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
    assert_eq!(events(&proxy, "?limit=2").await, last);
    let (status, wrong) = support::json(proxy.admin_address(), "GET", "/events?kind=outage", "").await;
    assert!(status == 400 && wrong["error"].as_str().unwrap().contains("pool_cleared"), "{wrong}");
    let (status, unknown) = support::json(proxy.admin_address(), "GET", "/events?cluster=shop", "").await;
    let told = r#"cluster: found "shop", expected one of ["default"]"#;
    assert_eq!((status, &unknown["error"]), (404, &json!(told)), "as orders refuse it");
}

/// Which of the fields of a document there are, its parts included; names of hosts and pools are the servers' own.
fn shape(document: &Document, known: &[String]) -> Vec<String> {
    let mut fields = Vec::new();
    for (name, value) in document {
        let name = if known.contains(name) { "HOST" } else { name };
        match value.as_document() {
            Some(part) => fields.extend(shape(part, known).into_iter().map(|inner| format!("{name}.{inner}"))),
            None => fields.push(format!("{name}: {:?}", value.element_type())),
        }
        if value.as_document().is_some_and(Document::is_empty) {
            fields.push(format!("{name}: {{}}"));
        }
    }
    fields.sort();
    fields.dedup();
    fields
}

/// Asked by the official driver, field by field as a member with connections of its own answers.
#[tokio::test]
async fn conn_pool_stats_have_the_shape_of_a_server_and_the_numbers_of_the_pools() {
    let deployment = support::replica_set(3).await;
    let settings = "max_pool_size = 3\nmin_pool_size = 2\nmax_idle_time_ms = 0\nmax_lifetime_ms = 1000";
    let proxy = proxy(&deployment.uri(), settings).await;
    let hosts: Vec<String> = deployment.members().iter().map(|member| member.address().to_string()).collect();
    let client = mongodb::Client::with_uri_str(proxy.uri()).await.unwrap();
    let ours = async || client.database("admin").run_command(doc! { "connPoolStats": 1 }).await.unwrap();
    let refreshed = async || ours().await.get_i32("totalRefreshed").unwrap() >= 2;
    eventually("connections are replaced", refreshed).await;
    let primary = deployment.await_primary().await.unwrap();
    let hold = hold_finds(&deployment.members()[primary], "watch.c").await;
    let mut busy = support::connect(proxy.address()).await;
    busy.send(&Request::new("watch", doc! { "find": "c" })).await.unwrap();
    hold.reaches(1).await;

    let told = ours().await;
    let number = |document: &Document, name: &str| document.get_i32(name).unwrap();
    let by_host = told.get_document("hosts").unwrap();
    let names: Vec<&str> = by_host.keys().map(String::as_str).collect();
    assert_eq!(
        names.iter().map(|name| (*name).to_owned()).collect::<std::collections::BTreeSet<_>>(),
        hosts.iter().cloned().collect()
    );
    let pool = told.get_document("pools").unwrap().get_document("mongomux").unwrap();
    for (total, of_pool, of_host) in [
        ("totalInUse", "poolInUse", "inUse"),
        ("totalAvailable", "poolAvailable", "available"),
        ("totalCreated", "poolCreated", "created"),
        ("totalRefreshing", "poolRefreshing", "refreshing"),
        ("totalRefreshed", "poolRefreshed", "refreshed"),
    ] {
        let sum: i32 = by_host.values().map(|host| number(host.as_document().unwrap(), of_host)).sum();
        assert_eq!((number(&told, total), number(pool, of_pool)), (sum, sum), "{total} in {told}");
        for host in &hosts {
            assert_eq!(pool.get_document(host).unwrap(), by_host.get_document(host).unwrap());
        }
    }
    assert!(number(by_host.get_document(&hosts[primary]).unwrap(), "inUse") >= 1, "{told}");
    assert!(number(&told, "totalCreated") >= number(&told, "totalRefreshed") + number(&told, "totalAvailable"));

    // Members have pools of their own for replication; whichever has, shows all there is to a pool.
    let secondary = (primary + 1) % 3;
    let mut direct = support::client(&deployment.members()[secondary]).await;
    let theirs = direct.command("admin", doc! { "connPoolStats": 1 }).await.unwrap();
    let pools = theirs.get_document("pools").unwrap();
    let with_hosts = pools.iter().find(|(_, pool)| pool.as_document().is_some_and(|pool| pool.len() > 5));
    let (their_pool, _) = with_hosts.expect("a member follows others");
    let known: Vec<String> = hosts.iter().cloned().chain([their_pool.clone(), "mongomux".to_owned()]).collect();
    let part = |stats: &Document, path: &[&str]| {
        let mut stats = stats;
        for name in path {
            stats = stats.get_document(name).unwrap();
        }
        shape(stats, &known)
    };
    assert_eq!(part(&told, &["pools", "mongomux"]), part(&theirs, &["pools", their_pool.as_str()]));
    assert_eq!(part(&told, &["hosts"]), part(&theirs, &["hosts"]));
    let names = |stats: &Document| {
        let own = ["$clusterTime", "operationTime"];
        let mut names: Vec<String> = stats.keys().filter(|name| !own.contains(&name.as_str())).cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&told), names(&theirs));
    let set = told.get_document("replicaSets").unwrap().get_document("mongomux").unwrap();
    let members = set.get_array("hosts").unwrap();
    let primaries: Vec<&str> = members
        .iter()
        .filter_map(Bson::as_document)
        .filter(|member| member.get_bool("ismaster").unwrap())
        .map(|member| member.get_str("addr").unwrap())
        .collect();
    assert_eq!((members.len(), primaries), (3, vec![hosts[primary].as_str()]));
    assert_eq!(number(&told, "numReplicaSetMonitorsCreated"), 1);
    hold.release().await;
}

/// A server that takes few connections.
async fn small(arguments: &[&str], auth: bool) -> Deployment {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let options = DeploymentOptions { auth, arguments, ..DeploymentOptions::for_tests(0) };
    Deployment::start(options).await.unwrap_or_else(support::no_deployment)
}

async fn warm(proxy: &Proxy) {
    let warm = || {
        let servers = proxy.clusters()[0].servers();
        !servers.is_empty() && servers.iter().all(|server| server.pool.snapshot().counts.available >= 1)
    };
    eventually("there are connections", async || warm()).await;
}

#[tokio::test]
async fn a_fleet_that_could_fill_the_server_is_told_before_it_does() {
    let deployment = small(&["--maxConns", "60"], false).await;
    let server = deployment.members()[0].address().to_string();
    let proxy = proxy(&deployment.uri(), "fleet_size = 12\nmax_pool_size = 5").await;
    let unknown = get(&proxy, "/stats").await["clusters"][0]["fleet"].clone();
    let expected = json!({
        "size": 12, "source": "configured", "cap": 5, "wanted": 60, "serverLimit": null, "serverConnections": null, "share": null,
    });
    assert_eq!(unknown, expected);
    warm(&proxy).await;
    proxy.clusters()[0].look_at_fleet().await;
    let now = stats(&proxy).await;
    let fleet = &now.clusters[0].fleet;
    assert_eq!((fleet.server_limit, fleet.share), (Some(60), Some(100)), "{fleet:?}");
    let status =
        support::client(&deployment.members()[0]).await.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let current = status.get_document("connections").unwrap().get_i32("current").unwrap();
    let seen = i32::try_from(fleet.server_connections.unwrap()).unwrap();
    assert!((1..=current).contains(&seen), "{seen} of {current}");
    let warning = fleet.warning.clone().unwrap();
    assert!(warning.starts_with("12 sidecars of 5 connections each may open 60 to"), "{warning}");
    assert_eq!(now.clusters[0].recommendations, [warning.as_str()]);
    proxy.clusters()[0].look_at_fleet().await;
    let told = get(&proxy, "/events?kind=cap_warning").await;
    let [event] = &told.as_array().unwrap()[..] else { panic!("one event: {told}") };
    assert_eq!((&event["text"], &event["count"]), (&json!(warning), &json!(1)), "it is told once");
    assert_eq!(event["server"], json!(server));
    // The last look may have seen others than the first.
    let seen = stats(&proxy).await.clusters[0].fleet.server_connections.unwrap();
    for (metric, value) in [("mongomux_server_connections_limit", 60.0), ("mongomux_server_connections", seen as f64)] {
        assert_eq!(proxy.metric(&format!("{metric}{{server=\"{server}\"}}")), value, "{metric}");
    }
}

#[tokio::test]
async fn sidecars_are_seen_through_the_server() {
    let deployment = support::standalone().await;
    let mut proxies = Vec::new();
    for number in 1..=3_u64 {
        // Two of a kind are two, though they come from one host and say the same of themselves. All but the first, which asks,
        // have nothing to do, and only watch the server.
        let min = u64::from(number == 1);
        let proxy = proxy(&deployment.uri(), &format!("max_pool_size = 5\nmin_pool_size = {min}")).await;
        if number == 1 {
            warm(&proxy).await;
        }
        proxies.push(proxy);
        let look = async || {
            proxies[0].clusters()[0].look_at_fleet().await;
            let fleet = &stats(&proxies[0]).await.clusters[0].fleet;
            (fleet.source.as_str(), fleet.size, fleet.wanted) == ("seen", Some(number), Some(5 * number))
        };
        eventually(&format!("{number} are seen"), look).await;
    }
    assert!(proxies[1..].iter().all(|proxy| proxy.created() == 0), "they had no connections but to watch");
    let fleet = stats(&proxies[0]).await.clusters[0].fleet.clone();
    assert_eq!((fleet.warning, fleet.cap), (None, 5), "a server takes more than that");
}

#[tokio::test]
async fn who_may_not_ask_knows_nothing_and_works_all_the_same() {
    let deployment = small(&[], true).await;
    support::first_user(&deployment, "root", "rootpw").await;
    let address = deployment.members()[0].address();
    let uri = format!("mongodb://root:rootpw@{address}/?directConnection=true");
    let admin = mongodb::Client::with_uri_str(uri).await.unwrap().database("admin");
    let roles = vec![doc! { "role": "readWrite", "db": "watch" }];
    admin.run_command(doc! { "createUser": "app", "pwd": "apppw", "roles": roles }).await.unwrap();
    let proxy = proxy(&format!("mongodb://app:apppw@{address}/?directConnection=true"), "").await;
    warm(&proxy).await;
    for _ in 0..3 {
        proxy.clusters()[0].look_at_fleet().await;
    }
    let asked = proxy.clusters()[0].servers()[0].pool.usage().totals().ended;
    assert_eq!(asked, 1, "once, and not again for an hour");
    let now = stats(&proxy).await;
    let fleet = &now.clusters[0].fleet;
    assert_eq!((fleet.source.as_str(), fleet.size, fleet.server_limit, &fleet.warning), ("unknown", None, None, &None));
    assert_eq!(now.clusters[0].recommendations, [""; 0]);
    assert_eq!(now.clusters[0].breaker, "closed");
    let mut client = support::connect(proxy.address()).await;
    client.command("watch", doc! { "insert": "c", "documents": [{}] }).await.unwrap();
}
