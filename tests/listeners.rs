//! Where clients connect: addresses of every kind, what each listener offers, and who is behind a load balancer.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::process::Command;

use bson::{Bson, Document, doc};
use mongodb::Client;
use mongomux::app::Drained;
use mongomux::config::Address;
use mongomux::sandbox::wire_client::WireClient;
use support::certificates::{Authority, TlsClient, Wish};
use support::hold::eventually;
use support::proxy::{Proxy, configured};
use support::{connect, raw};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

async fn offered(address: &Address) -> Vec<Bson> {
    let mut client = WireClient::connect(address).await.unwrap();
    let hello = doc! { "hello": 1, "compression": ["zlib", "zstd", "snappy"] };
    let reply = client.command("admin", hello).await.unwrap();
    reply.get_array("compression").cloned().unwrap_or_default()
}

async fn whats_my_uri(client: &mut WireClient) -> String {
    client.command("admin", doc! { "whatsmyuri": 1 }).await.unwrap().get_str("you").unwrap().to_owned()
}

#[tokio::test]
async fn clients_come_over_ipv4_ipv6_and_unix_sockets() {
    let deployment = support::standalone().await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("proxy.sock");
    let path = socket.display();
    let proxy = configured(&format!(
        "upstream = \"{}\"\nlisten = [\"127.0.0.1:0\", \"[::1]:0\", \"unix:{path}\"]\n\
         [[listener]]\nlisten = [\"[::1]:0\", \"127.0.0.1:0\"]\ncompressors = [\"snappy\", \"zlib\"]\n",
        deployment.uri()
    ))
    .await;
    let addresses = proxy.addresses();
    assert_eq!(addresses.len(), 5);
    for (index, address) in addresses.iter().enumerate() {
        let mut client = connect(address).await;
        let id = i32::try_from(index).unwrap();
        client.command("db", doc! { "insert": "c", "documents": [{ "_id": id }] }).await.unwrap();
        let found = client.command("db", doc! { "count": "c" }).await.unwrap();
        assert_eq!(found.get_i32("n").unwrap(), id + 1, "{address}");
        let you = whats_my_uri(&mut client).await;
        match address {
            Address::Tcp { host, .. } if host == "::1" => assert!(you.starts_with("[::1]:"), "{you}"),
            Address::Tcp { .. } => assert!(you.starts_with("127.0.0.1:"), "{you}"),
            Address::Unix(_) => assert_eq!(you, "anonymous unix socket"),
        }
        // On one machine nothing is offered, unless the listener says so: then in the client's order.
        let expected: &[Bson] = if index < 3 { &[] } else { &["zlib".into(), "snappy".into()] };
        assert_eq!(offered(address).await, expected, "{address}");
    }
    // A driver as it comes from the application.
    let escaped = path.to_string().replace('/', "%2F");
    for uri in [format!("mongodb://{}/", addresses[1]), format!("mongodb://{escaped}/")] {
        let driver = Client::with_uri_str(&uri).await.unwrap();
        let collection = driver.database("db").collection::<Document>("c");
        assert_eq!(collection.count_documents(doc! {}).await.unwrap(), 5, "{uri}");
    }
    assert_eq!(proxy.drain().await, Drained::Cleanly);
    assert!(!socket.exists(), "its file is gone with the listener");
}

/// A listener that expects headers, and one that does not.
async fn behind_a_balancer(uri: &str, settings: &str) -> Proxy {
    configured(&format!(
        "{settings}\nupstream = \"{uri}\"\nlisten = \"127.0.0.1:0\"\nproxy_protocol = true\n\
         [[listener]]\nlisten = \"127.0.0.1:0\"\n"
    ))
    .await
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2 by the letter of its specification: command and family, and what follows.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

fn closed(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("mongomux_client_connections_closed_total{{reason=\"{reason}\"}}"))
}

#[tokio::test]
async fn a_balancer_tells_whose_connection_it_passes_on() {
    let deployment = support::standalone().await;
    let proxy = behind_a_balancer(&deployment.uri(), "").await;
    let ipv4 = [&[192, 0, 2, 7, 10, 0, 0, 1][..], &4711_u16.to_be_bytes(), &27017_u16.to_be_bytes()].concat();
    let source = "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let ipv6 = [&source[..], &[0; 16], &4712_u16.to_be_bytes(), &27017_u16.to_be_bytes()].concat();
    // With a field that nobody knows behind the addresses.
    let longer = [&ipv4[..], &[0xEA, 0, 3, 1, 2, 3]].concat();
    for (header, expected) in [
        (header(0x21, 0x11, &ipv4), "192.0.2.7:4711"),
        (header(0x21, 0x21, &ipv6), "[2001:db8::7]:4712"),
        (header(0x21, 0x11, &longer), "192.0.2.7:4711"),
        // The balancer's own connection, to see if we are there.
        (header(0x20, 0x00, &[]), "127.0.0.1:"),
        (header(0x20, 0x11, &ipv4), "127.0.0.1:"),
    ] {
        let mut client = WireClient::connect(proxy.address()).await.unwrap();
        client.send_raw(&header).await.unwrap();
        client.hello("balanced").await.unwrap();
        let you = whats_my_uri(&mut client).await;
        assert!(you == expected || expected.ends_with(':') && you.starts_with(expected), "{you} for {expected}");
        client.command("db", doc! { "count": "c" }).await.unwrap();
    }
    // Header and first command in one piece, and byte by byte.
    let ping = raw::command(doc! { "ping": 1, "$db": "admin" });
    for chunk in [usize::MAX, 1] {
        let mut socket = raw::connect(proxy.address()).await;
        for bytes in [header(0x21, 0x11, &ipv4), ping.clone()].concat().chunks(chunk) {
            socket.write_all(bytes).await.unwrap();
        }
        assert_eq!(raw::next_document(&mut socket).await.get_f64("ok").unwrap(), 1.0);
    }
    // The other listener of the process expects none.
    connect(&proxy.addresses()[1]).await.command("db", doc! { "count": "c" }).await.unwrap();
    assert_eq!(closed(&proxy, "proxy_header"), 0.0);
}

#[tokio::test]
async fn who_does_not_say_whose_connection_it_is_is_closed_and_counted() {
    let deployment = support::standalone().await;
    let proxy = behind_a_balancer(&deployment.uri(), "max_clients = 2").await;
    let hello = raw::command(doc! { "hello": 1, "$db": "admin" });
    let bad: [Vec<u8>; 6] = [
        hello.clone(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 27017\r\n".to_vec(),
        header(0x11, 0x11, &[0; 12]),
        header(0x21, 0x11, &[0; 11]),
        header(0x21, 0x11, &[0; 1 << 10]),
        header(0x21, 0x77, &[0; 12]),
    ];
    for (count, bytes) in (1_i32..).zip(bad) {
        let mut socket = raw::connect(proxy.address()).await;
        socket.write_all(&[bytes, hello.clone()].concat()).await.unwrap();
        assert!(raw::ends(&mut socket).await, "number {count} is closed, and nothing is answered");
        eventually("it is counted", async || closed(&proxy, "proxy_header") == f64::from(count)).await;
    }
    assert_eq!(closed(&proxy, "client_left"), 0.0, "none of them became a client");
    // Their places are free again.
    let mut client = WireClient::connect(proxy.address()).await.unwrap();
    client.send_raw(&header(0x20, 0, &[])).await.unwrap();
    client.hello("the next one").await.unwrap();
}

#[tokio::test]
async fn the_header_comes_before_the_handshake() {
    let deployment = support::standalone().await;
    let authority = Authority::new();
    let own = authority.sign("own.pem", &Wish::default());
    let settings = format!("tls = true\ntls_certificate_key_file = \"{}\"", own.display());
    let proxy = behind_a_balancer(&deployment.uri(), &settings).await;
    let ipv4 = [&[192, 0, 2, 7, 10, 0, 0, 1][..], &4711_u16.to_be_bytes(), &27017_u16.to_be_bytes()].concat();
    let tls = TlsConnector::from(TlsClient::new(&authority).config());
    let name = || "127.0.0.1".try_into().unwrap();
    let mut stream = TcpStream::connect(proxy.address().to_string()).await.unwrap();
    stream.write_all(&header(0x21, 0x11, &ipv4)).await.unwrap();
    let mut client = WireClient::over(tls.connect(name(), stream).await.unwrap());
    client.hello("balanced").await.unwrap();
    assert_eq!(whats_my_uri(&mut client).await, "192.0.2.7:4711");
    client.command("db", doc! { "count": "c" }).await.unwrap();
    // Neither is taken for the other.
    TlsClient::new(&authority).connect(proxy.address()).await.unwrap_err();
    eventually("a header is missing", async || closed(&proxy, "proxy_header") == 1.0).await;
    let mut plain = raw::connect(proxy.address()).await;
    let hello = raw::command(doc! { "hello": 1, "$db": "admin" });
    plain.write_all(&[header(0x21, 0x11, &ipv4), hello].concat()).await.unwrap();
    eventually("TLS is missing", async || closed(&proxy, "tls") == 1.0).await;
}

#[tokio::test]
async fn a_header_has_to_come_in_time() {
    let deployment = support::standalone().await;
    let proxy = behind_a_balancer(&deployment.uri(), "handshake_timeout_ms = 150").await;
    for sent in [0, 5, 16, 20] {
        let mut socket = raw::connect(proxy.address()).await;
        socket.write_all(&header(0x21, 0x11, &[0; 12])[..sent]).await.unwrap();
        assert!(raw::ends(&mut socket).await, "after {sent} bytes");
    }
    eventually("all are counted", async || closed(&proxy, "handshake_timeout") == 4.0).await;
}

/// The seconds until the system asks the peer of each socket whose ports, its own and its peer's, are `wanted`.
fn keepalives(wanted: impl Fn(&str, &str) -> bool) -> Vec<f64> {
    let output =
        Command::new("ss").args(["-tnoH"]).output().expect("`ss` of iproute2 shows the sockets of this machine");
    let text = String::from_utf8(output.stdout).unwrap();
    let timers = text.lines().filter_map(|line| {
        let mut ports = line.split_whitespace().skip(3).filter_map(|address| Some(address.rsplit_once(':')?.1));
        let (own, peer) = (ports.next()?, ports.next()?);
        let (_, timer) = line.split_once("timer:(keepalive,").filter(|_| wanted(own, peer))?;
        let time = timer.split(',').next()?;
        // `1min58sec`, `9.8sec`, `850ms`
        let (minutes, rest) = time.split_once("min").unwrap_or(("0", time));
        let (number, unit) = rest.strip_suffix("ms").map_or((rest.trim_end_matches("sec"), 1.0), |ms| (ms, 0.001));
        Some(minutes.parse::<f64>().unwrap() * 60.0 + number.parse().unwrap_or(0.0) * unit)
    });
    timers.collect()
}

#[tokio::test]
async fn the_system_asks_silent_peers_on_both_sides() {
    let deployment = support::standalone().await;
    let proxy = configured(&format!("upstream = \"{}\"\nlisten = \"127.0.0.1:0\"\n", deployment.uri())).await;
    let mut client = raw::connect(proxy.address()).await;
    raw::exchange(&mut client, &raw::command(doc! { "find": "c", "$db": "db" })).await;
    let ours = client.local_addr().unwrap().port().to_string();
    let asked = || keepalives(|_, peer| peer == ours);
    let soon =
        |times: &[f64], least: f64, most: f64| times.iter().filter(|time| (least..=most).contains(*time)).count();
    eventually("the client's socket is watched", async || soon(&asked(), 60.0, 120.0) == 1).await;
    // Sockets of the monitor are the driver's business: asked every two minutes.
    let server = deployment.members()[0].port().to_string();
    let upstream = || keepalives(|_, peer| peer == server);
    eventually("the connections upstream are watched", async || soon(&upstream(), 0.0, 10.0) >= 2).await;
}
