//! What a crowd costs those beside it, with and without the means against it: a flood of 1,900 sockets beside an application with
//! 10, as one tenant and as two; a batch job beside a web application, without priorities and with them.
//!
//! `cargo bench --bench fairness`. Needs a `mongod` as the tests do. It holds each command for 10 ms (a fail point), so that the ten
//! connections are what all compete for. `MONGOMUX_SECONDS` changes the length of each measurement. What change streams cost those
//! who only read is measured in `change_streams.rs`.
//!
//! Ends with 1 when a tenant or a level does not get what it is promised.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints its result")]
#![allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::net::TcpListener;
use std::process::ExitCode;

use bson::doc;
use mongomux::admin::stats::Stats;
use mongomux::admin::tenants::TenantStats;
use mongomux::config::Address;
use mongomux::sandbox::deployment::Deployment;
use support::bench::quantile;
use support::open_loop::Crowd;
use support::program::Program;
use support::{client, fail_command, raw};
use tokio::time::Duration;

const CONNECTIONS: usize = 10;
const HELD_MS: i32 = 10;

/// Sockets of the applications, each with one command at a time.
const FLOOD: usize = 1_900;
const VICTIM: usize = 10;
const BATCH: usize = 200;
const WEB: usize = 20;

/// Two tenants of the same weight, each of which asks for its half: a tenth less for the moments in which it does not.
const HALF: f64 = 0.4;

/// Of its ten sockets five wait for the other five, so each for about as long as a connection is held.
const MOST_WAIT: f64 = 2.0;

/// What a higher level leaves to a lower one: about a tenth.
const LEFT_TO_LOW: std::ops::Range<f64> = 0.03..0.2;

const PRIORITY: &str = "[[priority]]\napplication = \"batch*\"\nlevel = \"low\"\n";

fn main() -> ExitCode {
    support::bench::run(measure())
}

async fn measure() -> Vec<String> {
    let length = Duration::from_secs(std::env::var("MONGOMUX_SECONDS").map_or(5, |seconds| seconds.parse().unwrap()));
    let deployment = Deployment::replica_set(1).await.unwrap();
    let server = &deployment.members()[0];
    client(server).await.command("bench", doc! { "insert": "things", "documents": [{ "_id": 1 }] }).await.unwrap();
    let held = doc! {
        "failCommands": ["find"], "blockConnection": true, "blockTimeMS": HELD_MS, "appName": "mongomux",
    };
    fail_command(server, 0, held).await;
    println!("| who | beside | served/s | p50 / p99 | waited, median | held | share |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut wrong = Vec::new();
    for (settings, who, beside) in [
        ("", ("victim", VICTIM), None),
        ("", ("flood", VICTIM), Some(("flood", FLOOD))),
        ("", ("victim", VICTIM), Some(("flood", FLOOD))),
        ("", ("web", WEB), None),
        ("", ("web", WEB), Some(("batch-7", BATCH))),
        (PRIORITY, ("web", WEB), Some(("batch-7", BATCH))),
    ] {
        let (proxy, admin) = start(&deployment, settings).await;
        let addresses = (&proxy.address().await, &admin);
        let (share, seen) = compete(addresses, who, beside, length, !settings.is_empty()).await;
        let waits = seen.wait_median_ms / seen.held_ms;
        match (who.0, beside) {
            ("victim", Some(_)) if share < HALF => wrong.push(format!("the flood leaves {share:.2} to the victim")),
            ("victim", Some(_)) if waits >= MOST_WAIT => {
                wrong.push(format!("the victim waits, by what it holds: {waits:.1}"))
            }
            ("web", Some(_)) if !settings.is_empty() && !LEFT_TO_LOW.contains(&(1.0 - share)) => {
                wrong.push(format!("web leaves {:.2} to batch", 1.0 - share));
            }
            _ => {}
        }
    }
    wrong
}

/// The program, and where it tells what it has seen.
async fn start(deployment: &Deployment, settings: &str) -> (Program, Address) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let pool = format!("max_pool_size = {CONNECTIONS}\nmin_pool_size = {CONNECTIONS}\n{settings}");
    fs::write(file.path(), pool).unwrap();
    // The log does not tell a port that the program has chosen.
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (config, uri) = (file.path().to_str().unwrap(), deployment.uri());
    let arguments = ["run", "--listen", "127.0.0.1:0", "--admin", &admin, "--log", "info", "--config", config, &uri];
    let proxy = Program::start(&arguments);
    // It has read the file by then.
    proxy.address().await;
    (proxy, admin.parse().unwrap())
}

/// What the program has seen of a tenant.
async fn seen(admin: &Address, name: &str) -> TenantStats {
    let answer = support::http(admin, "GET", "/stats", "").await;
    let stats: Stats = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let tenants = stats.clusters[0].servers[0].tenants.clone();
    tenants.into_iter().find(|tenant| tenant.name == name).unwrap()
}

/// Prints what `who` gets, and returns its share of all that is served, and what the program has seen of it.
async fn compete(
    (proxy, admin): (&Address, &Address),
    (who, sockets): (&str, usize),
    beside: Option<(&str, usize)>,
    length: Duration,
    priority: bool,
) -> (f64, TenantStats) {
    let find = raw::command(doc! { "find": "things", "filter": { "_id": 1 }, "$db": "bench" });
    let crowd = Crowd::open(proxy, who, sockets, vec![find.clone()], 0).await;
    let others = match beside {
        Some((name, sockets)) => Some((Crowd::open(proxy, name, sockets, vec![find], 0).await, sockets)),
        None => None,
    };
    let rest = async {
        match &others {
            Some((others, sockets)) => others.saturate(*sockets, length).await.len(),
            None => 0,
        }
    };
    let (served, rest) = tokio::join!(crowd.saturate(sockets, length), rest);
    let share = served.len() as f64 / (served.len() + rest).max(1) as f64;
    let seen = seen(admin, who).await;
    let millis = |at| quantile(served.clone(), at).as_secs_f64() * 1e3;
    println!(
        "| `{who}`, {sockets} sockets | {}{} | {:.0} | {:.1} / {:.1} ms | {:.1} ms | {:.1} ms | {:.0} % |",
        beside.map_or("nobody".to_owned(), |(name, sockets)| format!("`{name}`, {sockets} sockets")),
        if priority { ", of low priority" } else { "" },
        served.len() as f64 / length.as_secs_f64(),
        millis(0.5),
        millis(0.99),
        seen.wait_median_ms,
        seen.held_ms,
        share * 100.0,
    );
    (share, seen)
}
