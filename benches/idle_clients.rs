//! What an idle client costs: resident memory of the program with 2,000 and with 10,000 client sockets that have all
//! greeted and worked once, beyond a bare start; and again after 2,000 of them have worked in turn.
//!
//! `cargo bench --bench idle_clients`. Needs a `mongod` as the tests do, and about 10,500 descriptors per process.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints its result")]

use std::error::Error;
use std::process::Stdio;
use std::time::Duration;

use bson::doc;
use mongomux::config::Address;
use mongomux::sandbox::census;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::WireClient;
use tokio::process::{Child, Command};

const FIRST: usize = 2_000;
const ALL: usize = 10_000;
const ACTIVE: usize = 2_000;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure())
}

async fn measure() -> Result<(), Box<dyn Error>> {
    let deployment = Deployment::replica_set(1).await?;
    let (address, mut proxy) = start(&deployment.uri()).await?;
    // The first client makes what is made lazily, which is not an idle client's.
    drop(connect(&address).await?);
    let bare = resident_kib(&proxy);
    println!("bare start: {bare} KiB resident");
    let mut clients = Vec::new();
    for target in [FIRST, ALL] {
        while clients.len() < target {
            clients.push(connect(&address).await?);
        }
        report(&format!("{target} idle clients"), resident_kib(&proxy), bare, target);
    }
    for _ in 0..ROUNDS {
        for client in &mut clients[..ACTIVE] {
            work(client).await?;
        }
    }
    report(&format!("after {ACTIVE} of them worked {ROUNDS} times"), resident_kib(&proxy), bare, ALL);
    let mut server = WireClient::connect(&deployment.members()[0].address()).await?;
    server.hello("mongomux bench").await?;
    let seen = census::take(&mut server).await?;
    println!("upstream data connections as the server counts them: {}", seen.get("mongomux").copied().unwrap_or(0));
    proxy.kill().await?;
    Ok(())
}

async fn start(uri: &str) -> Result<(Address, Child), Box<dyn Error>> {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let (listen, admin) = (free()?.to_string(), free()?.to_string());
    let program = Command::new(env!("CARGO_BIN_EXE_mongomux"))
        .args(["run", "--log", "warn", "--listen", &listen, "--admin", &admin, uri])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let address: Address = listen.parse()?;
    for _ in 0..100 {
        if connect(&address).await.is_ok() {
            return Ok((address, program));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("the program does not answer".into())
}

/// A client that has greeted and worked once.
async fn connect(address: &Address) -> Result<WireClient, Box<dyn Error>> {
    let mut client = WireClient::connect(address).await?;
    client.hello("mongomux bench").await?;
    work(&mut client).await?;
    Ok(client)
}

async fn work(client: &mut WireClient) -> Result<(), Box<dyn Error>> {
    client.command("bench", doc! {"find": "things", "filter": {"_id": 1}, "limit": 1}).await?;
    Ok(())
}

fn report(what: &str, resident: u64, bare: u64, clients: usize) {
    let each = resident.saturating_sub(bare) * 1024 / clients as u64;
    println!("{what}: {resident} KiB resident, {each} bytes per client beyond a bare start");
}

fn resident_kib(program: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
