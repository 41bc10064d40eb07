//! Another configuration for a running program: all of it or nothing, told as it is, and no client notices.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::doc;
use mongomux::config::Address;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::Request;
use serde_json::{Value, json};
use support::certificates::replace;
use support::hold::{eventually, hold_finds};
use support::ledger::{Load, keep};
use support::program::Program;
use support::{code_and_labels, connect, http};
use tempfile::TempDir;
use tokio::time::timeout;

/// The program with a file of its own, in front of a real replica set.
struct Rig {
    deployment: Deployment,
    program: Program,
    address: Address,
    admin: Address,
    directory: TempDir,
}

impl Rig {
    async fn start(settings: &str) -> Self {
        let deployment = support::replica_set(1).await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mongomux.toml");
        std::fs::write(&file, settings).unwrap();
        let program = Program::run(&["--config", file.to_str().unwrap(), &deployment.uri()]);
        let address = program.address().await;
        let line = program.line("admin port").await;
        let admin = line.split_whitespace().find_map(|word| word.strip_prefix("address=")).unwrap().parse().unwrap();
        Self { deployment, program, address, admin, directory }
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("mongomux.toml")
    }

    /// Writes the file anew, without a moment in which it is half there.
    fn write(&self, settings: &str) {
        replace(&self.file(), settings);
    }

    async fn reload(&self) -> (u16, Value) {
        support::json(&self.admin, "POST", "/admin/reload", "{}").await
    }

    /// Loads other settings, which are sound; returns the answer.
    async fn load(&self, settings: &str) -> Value {
        self.write(settings);
        let (status, answer) = self.reload().await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn stats(&self) -> Value {
        support::json(&self.admin, "GET", "/stats", "").await.1["clusters"][0].clone()
    }

    async fn metric(&self, name: &str) -> String {
        let page = http(&self.admin, "GET", "/metrics", "").await;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).to_owned()
    }

    async fn config(&self, key: &str) -> Value {
        let (_, effective) = support::json(&self.admin, "GET", "/config", "").await;
        let settings = effective["clusters"][0]["settings"].clone();
        settings[key]["value"].clone()
    }
}

fn paths(changes: &Value) -> Vec<String> {
    changes.as_array().unwrap().iter().map(|change| change["path"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_shrink_and_grow_and_no_client_notices() {
    let base = "server_selection_timeout_ms = 30_000\nwait_queue_timeout_ms = 30_000\n";
    let mut rig = Rig::start(&format!("{base}max_pool_size = 8")).await;
    let load = Load { drivers: 2, workers: 8, retrying: 4, plain: 10, ..Load::default() };
    let books = keep(&rig.address, &load, async |ledger| {
        ledger.progress(60).await;
        for (size, by_signal) in [(2, false), (6, true), (1, false), (8, true), (3, false)] {
            rig.write(&format!("{base}max_pool_size = {size}\nbreaker.consecutive_failures = {}", size + 1));
            if by_signal {
                rig.program.hang_up();
                eventually("the signal is heard", async || rig.stats().await["max"] == json!(size)).await;
            } else {
                let (status, answer) = rig.reload().await;
                assert_eq!(status, 200, "{answer}");
                let applied = paths(&answer["applied"]);
                for key in ["max_pool_size", "breaker.consecutive_failures"] {
                    assert!(applied.contains(&format!("cluster[default].{key}")), "{answer}");
                }
                assert_eq!(answer["needsRestart"], json!([]));
            }
            eventually("no more than that are open", async || {
                let stats = rig.stats().await;
                let open: u64 =
                    ["active", "idle", "pending", "closing"].iter().map(|it| stats[it].as_u64().unwrap()).sum();
                stats["max"] == json!(size) && open <= size
            })
            .await;
            ledger.progress(60).await;
            let open = rig.stats().await;
            let open: u64 = ["active", "idle", "pending", "closing"].iter().map(|it| open[it].as_u64().unwrap()).sum();
            assert!(open <= size, "{open} of {size}");
            assert_eq!(rig.config("max_pool_size").await, json!(size));
        }
    })
    .await;
    assert_eq!(books.audit(&rig.deployment.uri()).await, [""; 0]);
    assert_eq!(books.notes.errors, [""; 0]);
    assert_eq!((books.unknown(), books.refused()), ((0, 0), 0));
    rig.program.terminate();
    assert_eq!(rig.program.ended().await.0, 0);
}

#[tokio::test]
async fn mistakes_are_all_told_and_nothing_is_changed() {
    let rig = Rig::start("max_pool_size = 4\nmax_clients = 100").await;
    assert_eq!(rig.metric("mongomux_config_reload_success").await, "1");
    rig.write("max_pool_size = 0\nmax_clinets = 7\nwait_queue_size = 9");
    let (status, answer) = rig.reload().await;
    assert_eq!(status, 422, "{answer}");
    let mistakes = answer["mistakes"].as_array().unwrap();
    let told = |text: &str| mistakes.iter().any(|mistake| mistake.as_str().unwrap().contains(text));
    assert!(told("mongomux.toml:1: max_pool_size: found 0, expected 1 to 10000 connections"), "{answer}");
    assert!(told("mongomux.toml:2: max_clinets: unknown key, did you mean `max_clients`?"), "{answer}");
    let stats = rig.stats().await;
    assert_eq!((&stats["max"], &stats["waitQueueSize"]), (&json!(4), &json!(4_000)), "all or nothing");
    assert_eq!(rig.metric("mongomux_config_reload_success").await, "0");
    // Also where only a file that it names is bad.
    rig.write("max_pool_size = 6\ntls = true\ntls_certificate_key_file = \"/no/such/file\"");
    let (status, answer) = rig.reload().await;
    assert!(status == 422 && answer["mistakes"].to_string().contains("/no/such/file"), "{answer}");
    assert_eq!(rig.stats().await["max"], json!(4), "all or nothing");
    let answer = rig.load("max_pool_size = 5\nmax_clients = 100").await;
    assert_eq!(
        answer["applied"],
        json!([{"path": "cluster[default].max_pool_size", "from": 4, "to": 5, "live": true}])
    );
    assert_eq!(rig.metric("mongomux_config_reload_success").await, "1");
    let (_, events) = support::json(&rig.admin, "GET", "/events?kind=reload", "").await;
    assert!(events.as_array().unwrap().len() >= 2, "{events}");
    // The same again changes nothing.
    let again = rig.load("max_pool_size = 5\nmax_clients = 100").await;
    assert_eq!((&again["applied"], &again["needsRestart"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn what_needs_a_restart_is_told_each_time_and_waits() {
    let rig = Rig::start("max_pool_size = 4").await;

    let answer = rig.load("max_pool_size = 3\nworker_threads = 2\npresentation = \"mongos\"").await;
    assert_eq!(paths(&answer["applied"]), ["cluster[default].max_pool_size"]);
    assert_eq!(paths(&answer["needsRestart"]), ["worker_threads", "cluster[default].presentation"]);
    assert_eq!(rig.config("presentation").await, json!("auto"), "what is in force");
    let again = rig.load("max_pool_size = 3\nworker_threads = 2").await;
    assert_eq!((paths(&again["applied"]), paths(&again["needsRestart"])), (vec![], vec!["worker_threads".to_owned()]));
}

#[tokio::test]
async fn times_limits_and_rules_are_those_of_the_file_from_the_next_command_on() {
    let rig =
        Rig::start("max_pool_size = 1\nwait_queue_timeout_ms = 30_000\nserver_selection_timeout_ms = 30_000").await;
    let mut client = connect(&rig.address).await;
    client.command("shop", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    rig.load("max_pool_size = 1\nread_only = true").await;
    let refused = client.reply("shop", doc! { "insert": "c", "documents": [{ "_id": 2 }] }).await.unwrap();
    assert_eq!(code_and_labels(&refused).0, 13, "{refused}");
    // What was ordered stays, until the file says something else.
    let (status, _) = support::json(&rig.admin, "POST", "/admin/rules", r#"{"readOnly": false}"#).await;
    assert_eq!(status, 200);
    rig.load("max_pool_size = 1\nread_only = true\nwait_queue_timeout_ms = 100\nserver_selection_timeout_ms = 100")
        .await;
    client.command("shop", doc! { "insert": "c", "documents": [{ "_id": 3 }] }).await.unwrap();
    let hold = hold_finds(&rig.deployment.members()[0], "shop.held").await;
    let mut holder = connect(&rig.address).await;
    let held = holder.send(&Request::new("shop", doc! { "find": "held", "filter": {} })).await.unwrap();
    hold.reaches(1).await;
    let refused = client.reply("shop", doc! { "find": "c", "filter": {} }).await.unwrap();
    let (code, labels) = code_and_labels(&refused);
    assert!(code != 0 && labels.contains(&"SystemOverloadedError".to_owned()), "{refused}");
    hold.release().await;
    holder.receive(held).await.unwrap();
    drop(holder);
    let answer = rig.load("max_pool_size = 1\nmax_clients = 1").await;
    assert!(paths(&answer["applied"]).contains(&"max_clients".to_owned()), "{answer}");
    let mut late = connect(&rig.address).await;
    let full = late.reply("shop", doc! { "find": "c", "filter": {} }).await.unwrap();
    assert_ne!(code_and_labels(&full).0, 0, "there is no room any more");
    rig.load("max_pool_size = 1\nmax_clients = 10").await;
    late.command("shop", doc! { "find": "c", "filter": {} }).await.unwrap();
    // Who is idle is closed from then on, and a drain is as long as it says.
    rig.load("max_pool_size = 1\nmax_clients = 10\nclient_idle_timeout_ms = 1_000\ndrain_timeout_ms = 2_000").await;
    late.command("shop", doc! { "find": "c", "filter": {} }).await.unwrap();
    let ended = timeout(support::PATIENCE, late.read_message()).await.expect("it is idle for too long");
    assert!(ended.is_err(), "{ended:?}");
    rig.program.terminate();
    let line = rig.program.line("draining").await;
    assert!(line.contains("timeout=2s"), "{line}");
}

async fn is_loaded(rig: &Rig, size: u64) -> bool {
    rig.stats().await["max"] == json!(size)
}

#[tokio::test]
async fn a_file_that_changes_is_loaded_where_that_is_asked_for() {
    let rig = Rig::start("max_pool_size = 4\nreload_on_change = true").await;
    rig.write("max_pool_size = 7\nreload_on_change = true");
    eventually("the change is seen", async || is_loaded(&rig, 7).await).await;
    rig.write("max_pool_size = seven\nreload_on_change = true");
    rig.program.line("the configuration stays as it was").await;
    assert!(is_loaded(&rig, 7).await);
    let other = Rig::start("max_pool_size = 4").await;
    other.write("max_pool_size = 7");
    // As long as the one that watches takes to see another change.
    rig.write("max_pool_size = 9\nreload_on_change = true");
    eventually("the change is seen", async || is_loaded(&rig, 9).await).await;
    assert!(is_loaded(&other, 4).await, "nobody asked for that");
}
