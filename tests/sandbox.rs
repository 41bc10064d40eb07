//! The sandbox judges what stands between its clients and the server: here the server itself, and a relay that mixes
//! replies up.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use mongomux::config::Address;
use mongomux::sandbox::wire_client::WireClient;
use mongomux::sandbox::{Proxy, ProxyStats, SandboxOptions, Summary, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Duration;

fn options(clients: usize) -> SandboxOptions {
    SandboxOptions {
        clients,
        duration: Some(Duration::from_secs(3)),
        commands_per_second: 1_000,
        seed: Some(7),
        ..SandboxOptions::default()
    }
}

fn proxy_at(address: Address) -> Proxy {
    Proxy {
        address,
        admin: None,
        stats: Box::new(|| ProxyStats { max_pool_size: 10, ..ProxyStats::default() }),
        stop: Box::pin(async {}),
    }
}

fn server(uri: &str) -> Address {
    let hosts = uri.trim_start_matches("mongodb://").split('/').next().unwrap();
    hosts.split(',').next().unwrap().parse().unwrap()
}

async fn sandbox(clients: usize, proxy: impl AsyncFnOnce(Address) -> Address) -> (Summary, String) {
    let mut out = Vec::new();
    let start = |uri: String| async move { Ok::<_, std::io::Error>(proxy_at(proxy(server(&uri)).await)) };
    let summary = run(options(clients), &mut out, start).await.unwrap_or_else(|error| panic!("{error}"));
    (summary, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn a_faithful_path_passes_and_everybody_is_served() {
    let (summary, text) = sandbox(50, async |server| server).await;
    assert!(summary.passed(), "{text}");
    assert_eq!(summary.load.served, 50, "{text}");
    assert!(summary.load.commands > 1_000, "{text}");
    assert!(text.contains("result:                passed"), "{text}");
    assert!(text.contains("\nt=1s clients="), "{text}");
    let process: u32 = text.split("(process ").nth(1).and_then(|rest| rest.split(')').next()).unwrap().parse().unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{process}")).exists(), "mongod {process} is left behind");
}

#[tokio::test]
async fn more_connections_than_the_bound_fail_the_run() {
    let mut held = Vec::new();
    let (summary, text) = sandbox(5, async |server| {
        for _ in 0..11 {
            held.push(WireClient::connect_as(&server, "mongomux").await.unwrap());
        }
        server
    })
    .await;
    assert_eq!(summary.servers[0].most_data, 11);
    assert_eq!((summary.load.errors, summary.load.wrong), (0, 0), "{text}");
    assert!(!summary.passed());
}

#[tokio::test]
async fn replies_of_others_are_found_out() {
    let mut relay = JoinSet::new();
    let (summary, text) = sandbox(20, async |server| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::tcp("127.0.0.1", listener.local_addr().unwrap().port());
        relay.spawn(mix(listener, server));
        address
    })
    .await;
    assert!(summary.load.wrong > 0, "{text}");
    assert!(text.contains("first fault:           wrong reply: "), "{text}");
    assert!(!summary.passed());
}

#[tokio::test]
async fn a_path_that_closes_sockets_shows_errors() {
    let mut relay = JoinSet::new();
    let (summary, text) = sandbox(5, async |_| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::tcp("127.0.0.1", listener.local_addr().unwrap().port());
        relay.spawn(async move { while listener.accept().await.is_ok() {} });
        address
    })
    .await;
    assert!(summary.load.errors > 0, "{text}");
    assert_eq!((summary.load.commands, summary.load.wrong), (0, 0), "{text}");
}

#[tokio::test]
async fn a_proxy_that_does_not_start_ends_the_run_and_the_server() {
    let mut out = Vec::new();
    let mut direct = None;
    let start = |uri: String| {
        direct = Some(server(&uri));
        async { Err::<Proxy, _>("port taken") }
    };
    let error = run(options(1), &mut out, start).await.expect_err("no proxy, no summary");
    assert_eq!(error.to_string(), "the proxy did not start: port taken");
    assert!(WireClient::connect(&direct.unwrap()).await.is_err(), "the server is gone");
}

/// Relays messages, but every 100th reply is the one before, addressed as if it were the right one.
async fn mix(listener: TcpListener, server: Address) {
    let Address::Tcp { host, port } = server else { panic!("a TCP address") };
    let last = Arc::new(Mutex::new(Vec::new()));
    let count = Arc::new(AtomicUsize::new(0));
    let mut sockets = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let upstream = TcpStream::connect((host.as_str(), port)).await.unwrap();
        let (client, upstream) = (client.into_split(), upstream.into_split());
        sockets.spawn(relay_pair(client, upstream, Arc::clone(&last), Arc::clone(&count)));
    }
}

type Halves = (OwnedReadHalf, OwnedWriteHalf);

async fn relay_pair(mut client: Halves, mut upstream: Halves, last: Arc<Mutex<Vec<u8>>>, count: Arc<AtomicUsize>) {
    while let Some(request) = message(&mut client.0).await {
        upstream.1.write_all(&request).await.unwrap();
        let Some(mut reply) = message(&mut upstream.0).await else { return };
        let mut last = last.lock().await;
        let right = reply.clone();
        if count.fetch_add(1, Relaxed) % 100 == 99 {
            let response_to = reply[8..12].to_vec();
            reply.clone_from(&last);
            reply[8..12].copy_from_slice(&response_to);
        }
        *last = right;
        if client.1.write_all(&reply).await.is_err() {
            return;
        }
    }
}

async fn message(socket: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 4];
    socket.read_exact(&mut bytes).await.ok()?;
    let length = usize::try_from(i32::from_le_bytes(bytes[..4].try_into().unwrap())).unwrap();
    bytes.resize(length, 0);
    socket.read_exact(&mut bytes[4..]).await.ok()?;
    Some(bytes)
}
