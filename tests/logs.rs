//! The log of the running program: what it says of connections, servers and commands, and that orders change what it says.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::WireClient;
use serde_json::{Value, json};
use support::program::Program;

/// The lines of a JSON log of this target, with that message.
fn lines(log: &str, target: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
    lines.filter(|line| line["target"] == target && line["message"] == message).collect()
}

async fn address(program: &Program, line: &str) -> Address {
    let line: Value = serde_json::from_str(&program.line(line).await).unwrap();
    line["address"].as_str().unwrap_or_else(|| panic!("{line}")).parse().unwrap()
}

struct Running {
    program: Program,
    clients: Address,
    admin: Address,
}

async fn run(deployment: &Deployment, settings: &str, more: &[&str]) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mongomux.toml");
    std::fs::write(&file, settings).unwrap();
    let uri = deployment.uri();
    let arguments = [&["--log-format", "json", "--config", file.to_str().unwrap(), &uri], more].concat();
    let program = Program::run(&arguments);
    let (clients, admin) = (address(&program, "\"listening\"").await, address(&program, "\"admin port\"").await);
    Running { program, clients, admin }
}

async fn level(admin: &Address, body: &str) -> (u16, Value) {
    let answer = support::http(admin, "POST", "/admin/log", body).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

/// Of a metric that the page has.
fn value(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    line.trim().parse().unwrap()
}

/// A command that takes its time, and one that is sent while that has the only connection.
async fn one_behind_the_other(client: &mut WireClient, slow: Document, other: &mut WireClient, admin: &Address) {
    let (one, two) = tokio::join!(client.command("test", slow), async {
        support::hold::eventually("a command upstream", async || {
            support::http(admin, "GET", "/metrics", "").await.contains("state=\"in_use\"} 1")
        })
        .await;
        other.command("test", doc! { "count": "c" }).await
    });
    one.unwrap();
    two.unwrap();
}

async fn end(mut program: Program) -> String {
    program.terminate();
    program.ended().await.1
}

#[tokio::test]
async fn connections_servers_and_commands_are_told_as_drivers_tell_them() {
    let deployment = support::standalone().await;
    let Running { program, clients, .. } = run(&deployment, "min_pool_size = 0", &["--log", "trace"]).await;
    let mut client = WireClient::connect_as(&clients, "shop").await.unwrap();
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": "geheim" }] }).await.unwrap();
    client.reply("test", doc! { "insert": "c", "documents": [{ "_id": "geheim" }] }).await.unwrap();
    client.reply("test", doc! { "find": "c", "filter": { "$geheim": 1 } }).await.unwrap();
    let log = end(program).await;
    assert!(!log.contains("geheim"), "values are not told");

    let server = deployment.members()[0].address();
    let (host, port) = (json!(server.host()), json!(server.port()));
    let one = |target: &str, message: &str| {
        let found = lines(&log, target, message);
        let line = found.first().unwrap_or_else(|| panic!("no {message:?} in\n{log}")).clone();
        (line, found.len())
    };
    for (target, message, level) in [
        ("mongomux::connection", "Connection pool created", "DEBUG"),
        ("mongomux::connection", "Connection pool ready", "DEBUG"),
        ("mongomux::connection", "Connection created", "DEBUG"),
        ("mongomux::connection", "Connection ready", "DEBUG"),
        ("mongomux::connection", "Connection checkout started", "TRACE"),
        ("mongomux::connection", "Connection checked out", "TRACE"),
        ("mongomux::connection", "Connection checked in", "TRACE"),
        ("mongomux::topology", "Starting server monitoring", "DEBUG"),
        ("mongomux::topology", "Server heartbeat started", "DEBUG"),
        ("mongomux::topology", "Server heartbeat succeeded", "DEBUG"),
        ("mongomux::server_selection", "Server selection succeeded", "TRACE"),
        ("mongomux::command", "Command started", "TRACE"),
        ("mongomux::command", "Command succeeded", "TRACE"),
        ("mongomux::command", "Command failed", "TRACE"),
    ] {
        let (line, _) = one(target, message);
        assert_eq!((&line["level"], &line["serverHost"], &line["serverPort"]), (&json!(level), &host, &port), "{line}");
    }
    one("mongomux::topology", "Starting topology monitoring");
    one("mongomux::topology", "Topology description changed");
    one("mongomux::server_selection", "Server selection started");
    let (ready, _) = one("mongomux::connection", "Connection ready");
    assert!(
        ready["durationMS"].as_f64().unwrap() > 0.0 && ready["serverConnectionId"].as_i64().unwrap() > 0,
        "{ready}"
    );
    let started = lines(&log, "mongomux::command", "Command started");
    let names: Vec<_> = started.iter().map(|line| line["commandName"].as_str().unwrap()).collect();
    assert_eq!(names, ["insert", "insert", "find"]);
    let (first, succeeded) = one("mongomux::command", "Command succeeded");
    assert_eq!(succeeded, 2, "with write errors, too");
    for key in ["requestId", "driverConnectionId", "serverConnectionId", "databaseName", "peer", "client"] {
        assert_eq!(first[key], started[0][key], "{key}: {first}");
    }
    assert_eq!((&first["databaseName"], &first["driverConnectionId"]), (&json!("test"), &ready["driverConnectionId"]));
    let (failed, count) = one("mongomux::command", "Command failed");
    assert_eq!((&failed["commandName"], &failed["failure"], count), (&json!("find"), &json!("code 2"), 1), "{failed}");
}

#[tokio::test]
async fn lines_of_a_lost_server_say_why_connections_are_closed() {
    let mut deployment = support::standalone().await;
    let levels = "info,mongomux::connection=debug";
    let Running { program, clients, .. } = run(&deployment, "min_pool_size = 1", &["--log", levels]).await;
    let mut client = support::connect(&clients).await;
    client.command("test", doc! { "ping": 1 }).await.unwrap();
    program.line("Connection ready").await;
    deployment.member(0).kill().await.unwrap();
    program.line("Connection pool cleared").await;
    program.line("Connection closed").await;
    let log = end(program).await;
    let cleared = lines(&log, "mongomux::connection", "Connection pool cleared");
    assert!(!cleared.is_empty(), "{log}");
    let closed = lines(&log, "mongomux::connection", "Connection closed");
    let known =
        ["An error occurred while using the connection", "Connection became stale because the pool was cleared"];
    assert!(known.contains(&closed[0]["reason"].as_str().unwrap()), "{}", closed[0]);
    assert!(lines(&log, "mongomux::topology", "Server heartbeat started").is_empty(), "only what was asked for");
}

#[tokio::test]
async fn orders_change_what_is_logged_and_take_it_back() {
    let deployment = support::standalone().await;
    let Running { program, clients, admin } = run(&deployment, "", &["--log", "warn,mongomux::app=info"]).await;
    let mut client = support::connect(&clients).await;
    let first = "warn,mongomux::app=info";
    let told = "info,mongomux::command=trace";
    let body = json!({ "level": told }).to_string();
    assert_eq!(level(&admin, &body).await, (200, json!({ "level": told, "before": first })));
    assert_eq!(
        level(&admin, &body).await,
        (200, json!({ "level": told, "before": told })),
        "once more changes nothing"
    );
    client.command("test", doc! { "count": "told" }).await.unwrap();
    program.line("Command succeeded").await;
    let (status, answer) = level(&admin, r#"{"level": "loud"}"#).await;
    assert!(status == 400 && answer["error"].as_str().unwrap().contains("expected one of off, error"), "{answer}");
    let reset = json!({ "level": first, "before": told });
    assert_eq!(level(&admin, r#"{"level": null}"#).await, (200, reset));
    client.command("test", doc! { "distinct": "silent", "key": "a" }).await.unwrap();
    let log = end(program).await;
    let commands = lines(&log, "mongomux::command", "Command started");
    let names: Vec<_> = commands.iter().map(|line| line["commandName"].as_str().unwrap()).collect();
    assert_eq!(names, ["count"]);
    assert_eq!(lines(&log, "audit", "admin order").len(), 4, "orders are told at any level");
}

#[tokio::test]
async fn a_command_that_the_proxy_gives_up_is_told_with_its_server_and_whose_time_it_took() {
    let deployment = support::standalone().await;
    let settings = "slow_command_ms = 1000\ncommand_timeout_ms = 1500";
    let Running { program, clients, admin } = run(&deployment, settings, &["--log", "trace"]).await;
    let mut client = WireClient::connect_as(&clients, "shop").await.unwrap();
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    let sleep = doc! { "find": "c", "filter": { "$where": "sleep(20000) || true" } };
    let reply = client.reply("test", sleep).await.unwrap();
    assert_eq!(reply.get_f64("ok").unwrap(), 0.0, "{reply}");
    let page = support::http(&admin, "GET", "/metrics", "").await;
    let log = end(program).await;
    let server = deployment.members()[0].address();
    let failed = &lines(&log, "mongomux::command", "Command failed");
    let [failed] = &failed[..] else { panic!("{failed:#?}") };
    assert_eq!((&failed["commandName"], &failed["serverPort"]), (&json!("find"), &json!(server.port())));
    assert_eq!(failed["failure"], "no answer within 1500 ms");
    let slow = &lines(&log, "mongomux::slow", "slow command")[0];
    assert_eq!((&slow["ended"], &slow["server"]), (&json!("refused"), &json!(server.to_string())), "{slow}");
    let milliseconds = |key: &str| slow[key].as_f64().unwrap_or_else(|| panic!("{key}: {slow}"));
    assert!(milliseconds("serverMS") >= 1_500.0, "the time was the server's: {slow}");
    let told = lines(&log, "mongomux::client::answer", "answered with an error");
    assert!(told[0]["client"].as_i64().is_some_and(|number| number > 0), "{told:#?}");
    let value = |name: &str| value(&page, name);
    assert!(value("mongomux_upstream_seconds_sum{command=\"find\"}") >= 1.5, "{page}");
}

#[tokio::test]
async fn what_commands_wait_for_is_no_overhead() {
    let deployment = support::standalone().await;
    let Running { program, clients, admin } = run(&deployment, "max_pool_size = 1\nmin_pool_size = 1", &[]).await;
    let mut client = WireClient::connect_as(&clients, "shop").await.unwrap();
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    let mut other = WireClient::connect_as(&clients, "behind").await.unwrap();
    let slow = doc! { "find": "c", "filter": { "$where": "sleep(4000) || true" } };
    one_behind_the_other(&mut client, slow, &mut other, &admin).await;
    let page = support::http(&admin, "GET", "/metrics", "").await;
    let value = |name: &str| value(&page, name);
    let (waited, ours) = (value("mongomux_wait_queue_seconds_sum"), value("mongomux_overhead_seconds_sum"));
    let parts = value("mongomux_upstream_seconds_sum{command=\"count\"}") + waited + ours;
    let whole = value("mongomux_command_seconds_sum{command=\"count\"}");
    assert_eq!(value("mongomux_overhead_seconds_count"), 3.0, "{page}");
    assert!(waited > 0.5 && ours < waited / 2.0, "waited {waited} s, ours {ours} s");
    assert!(whole <= parts + 0.001, "{whole} s is more than its parts, {parts} s");
    drop(program);
}

#[tokio::test]
async fn slow_commands_are_told_without_what_they_say() {
    let deployment = support::standalone().await;
    let settings = "slow_command_ms = 1000\nmax_pool_size = 1\nmin_pool_size = 1";
    let Running { program, clients, admin } = run(&deployment, settings, &[]).await;
    let mut client = WireClient::connect_as(&clients, "shop").await.unwrap();
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    let sleep = doc! { "$where": "sleep(4000) || 'geheim'" };
    let slow = doc! { "find": "c", "filter": sleep, "sort": { "geheim": 1 }, "comment": "geheim" };
    let mut other = WireClient::connect_as(&clients, "behind").await.unwrap();
    one_behind_the_other(&mut client, slow, &mut other, &admin).await;
    let page = support::http(&admin, "GET", "/metrics", "").await;
    assert!(page.contains("mongomux_slow_commands_total 2"), "{page}");
    let log = end(program).await;
    assert!(!log.contains("geheim"), "values are not told");
    let told = lines(&log, "mongomux::slow", "slow command");
    let of = |name: &str| told.iter().find(|line| line["commandName"] == name).unwrap_or_else(|| panic!("{told:#?}"));
    let (find, count) = (of("find"), of("count"));
    assert_eq!((told.len(), &find["level"], &find["ended"]), (2, &json!("INFO"), &json!("answered")));
    assert_eq!((&find["databaseName"], &find["collection"]), (&json!("test"), &json!("c")));
    assert_eq!((&find["options"], &find["application"]), (&json!("filter,sort,comment"), &json!("shop")));
    assert_eq!(
        (&find["transaction"], &find["server"]),
        (&json!(false), &json!(deployment.members()[0].address().to_string()))
    );
    let milliseconds = |line: &Value, key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"));
    assert!(milliseconds(find, "serverMS") >= 4_000.0 && find["reply_bytes"].as_u64().unwrap() > 16, "{find}");
    // It waited for the only connection.
    assert!(milliseconds(count, "waitedMS") > milliseconds(count, "serverMS"), "{count}");
    for line in [find, count] {
        let parts = milliseconds(line, "serverMS") + milliseconds(line, "waitedMS");
        assert!((milliseconds(line, "durationMS") - parts).abs() < 0.01, "{line}");
    }
}
