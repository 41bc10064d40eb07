//! Each leg has a compression of its own: a client's is the client's choice, the upstream's that of the connection string.
//! What is the same on both goes on in the same bytes.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::sync::{Arc, Mutex};

use bson::{Bson, Document, doc};
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::tasks::Tasks;
use support::hold::{eventually, hold_finds};
use support::proxy::{Proxy, proxy};
use support::raw::{self, compressor};
use support::tap::Tap;
use support::{PATIENCE, first_batch, scripted};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const NAMES: [&str; 4] = ["none", "snappy", "zlib", "zstd"];

/// One connection, so that all that is said is said over it.
const ONE: &str = "max_pool_size = 1\nmin_pool_size = 1\n";

/// The compressor of this name as a message names it.
fn id(name: &str) -> Option<u8> {
    NAMES.iter().position(|it| *it == name).filter(|id| *id > 0).map(|id| u8::try_from(id).unwrap())
}

fn option(name: &str) -> String {
    id(name).map(|_| format!("&compressors={name}")).unwrap_or_default()
}

/// A standalone, a tap in front of it, and a proxy that knows the tap.
async fn tapped(deployment: &Deployment, options: &str) -> (Tap, Proxy) {
    let tap = Tap::start(deployment.members()[0].address());
    let proxy = proxy(&tap.uri(options), ONE).await;
    (tap, proxy)
}

/// A command as its client sends it.
fn request(command: Document, compressor: Option<u8>) -> Vec<u8> {
    let message = raw::command(command);
    compressor.map_or(message.clone(), |compressor| raw::compressed(&message, compressor))
}

/// Sends a message and returns the whole reply.
async fn ask(socket: &mut TcpStream, message: &[u8]) -> Vec<u8> {
    timeout(PATIENCE, async {
        let (mut read, mut write) = socket.split();
        let (sent, reply) = tokio::join!(write.write_all(message), scripted::read_message(&mut read));
        sent.unwrap();
        reply.expect("a reply")
    })
    .await
    .expect("a reply in time")
}

/// Words in a document that compress well, and noise that does not.
fn documents(count: i32, text: usize, noise: usize) -> Vec<Document> {
    let noise = |_| bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: random(noise) };
    (0..count).map(|id| doc! { "_id": id, "words": "mongomux ".repeat(text / 9), "noise": noise(id) }).collect()
}

fn random(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rand::fill(&mut bytes[..]);
    bytes
}

fn used(proxy: &Proxy) -> usize {
    proxy.clusters()[0].memory.used()
}

#[tokio::test]
async fn every_pair_of_compressors_carries_the_same_and_what_is_alike_goes_on_as_it_came() {
    let deployment = support::standalone().await;
    for upstream in NAMES {
        let (tap, proxy) = tapped(&deployment, &option(upstream)).await;
        for client in NAMES {
            let what = format!("{client} to {upstream}");
            let collection = format!("{client}_{upstream}");
            let mut socket = raw::connect(proxy.address()).await;
            let inserted = documents(10, 2_000, 100);
            let insert = request(doc! { "insert": &collection, "documents": &inserted, "$db": "test" }, id(client));
            let reply = ask(&mut socket, &insert).await;
            assert_eq!(raw::document_of(&reply).get_i32("n").unwrap(), 10, "{what}");
            assert_eq!(compressor(&reply), id(client), "{what}");

            let find = doc! { "find": &collection, "sort": { "_id": 1 }, "maxTimeMS": 60_000, "$db": "test" };
            let find = request(find, id(client));
            let reply = ask(&mut socket, &find).await;
            assert_eq!(first_batch(&raw::document_of(&reply)), inserted, "{what}");
            assert_eq!(compressor(&reply), id(client), "{what}");
            assert_eq!(reply[8..12], raw::REQUEST.to_le_bytes(), "{what}");

            let [sent_insert, sent_find] = ["insert", "find"].map(|name| tap.requests(name).pop().unwrap());
            for sent in [&sent_insert, &sent_find] {
                assert_eq!(compressor(sent), id(upstream), "{what}");
                assert_ne!(sent[4..8], raw::REQUEST.to_le_bytes(), "{what}: a number of the connection's own");
            }
            let replied = tap.reply_to(&sent_find);
            assert_eq!(compressor(&replied), id(upstream), "{what}");
            // The wait for an answer takes less than a millisecond of maxTimeMS or is taken off it: nothing waited here.
            assert_eq!(sent_insert[8..] == insert[8..], client == upstream, "{what}");
            assert_eq!(replied[12..] == reply[12..], client == upstream, "{what}");
            eventually("all memory given back", async || used(&proxy) == 0).await;
        }
        for monitoring in tap.monitoring() {
            let hello = raw::document_of(&monitoring);
            assert!(hello.get_array("compression").map_or(true, |list| list.is_empty()), "{hello}");
        }
        assert!(!tap.monitoring().is_empty());
    }
}

/// Whatever way a command takes, it has one client.
#[tokio::test]
async fn the_client_of_a_command_is_busy_once() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "").await;
    let clients =
        || ["active", "idle"].map(|state| proxy.metric(&format!("mongomux_client_connections{{state=\"{state}\"}}")));
    let block = doc! {
        "failCommands": ["killCursors"], "blockConnection": true, "blockTimeMS": 1_000, "appName": "mongomux",
    };
    support::fail_command(server, 0, block).await;
    for command in [doc! { "find": "held" }, doc! { "killCursors": "held", "cursors": [5_i64] }] {
        for compressor in NAMES.map(id) {
            let hold = hold_finds(server, "test.held").await;
            let mut socket = raw::connect(proxy.address()).await;
            let mut message = command.clone();
            message.insert("$db", "test");
            socket.write_all(&request(message, compressor)).await.unwrap();
            eventually("it is under way", async || clients()[0] > 0.0).await;
            assert_eq!(clients(), [1.0, 0.0], "{command} with {compressor:?}");
            hold.release().await;
            scripted::read_message(&mut socket).await.expect("a reply");
            drop(socket);
            eventually("its client has left", async || clients() == [0.0, 0.0]).await;
        }
    }
}

/// A message of 15 MB takes other ways: through threads that may block, and through memory that is accounted for.
#[tokio::test]
async fn large_messages_pass_in_every_form() {
    let deployment = support::standalone().await;
    for (client, upstream) in
        [("zstd", "zstd"), ("snappy", "zstd"), ("none", "snappy"), ("zstd", "none"), ("snappy", "snappy")]
    {
        let (tap, proxy) = tapped(&deployment, &option(upstream)).await;
        let mut socket = raw::connect(proxy.address()).await;
        let what = format!("{client} to {upstream}");
        let collection = format!("large_{client}_{upstream}");
        let inserted = documents(1, 9_000_000, 6_000_000);
        let insert = request(doc! { "insert": &collection, "documents": &inserted, "$db": "test" }, id(client));
        let reply = ask(&mut socket, &insert).await;
        assert_eq!(raw::document_of(&reply).get_i32("n").unwrap(), 1, "{what}");
        let find = request(doc! { "find": &collection, "$db": "test" }, id(client));
        let reply = ask(&mut socket, &find).await;
        assert!(first_batch(&raw::document_of(&reply)) == inserted, "{what}");
        assert_eq!(compressor(&reply), id(client), "{what}");
        let sent = tap.requests("insert").pop().unwrap();
        assert_eq!(compressor(&sent), id(upstream), "{what}");
        let replied = tap.reply_to(&tap.requests("find").pop().unwrap());
        assert_eq!(sent[8..] == insert[8..], client == upstream, "{what}");
        assert_eq!(replied[12..] == reply[12..], client == upstream, "{what}");
        drop(socket);
        eventually("all memory given back", async || used(&proxy) == 0).await;
    }
}

#[tokio::test]
async fn what_may_hold_secrets_is_never_compressed_and_little_is_not_worth_it() {
    let deployment = support::standalone().await;
    let (tap, proxy) = tapped(&deployment, "&compressors=zstd").await;
    let mut socket = raw::connect(proxy.address()).await;
    let padding = "x".repeat(2_000);
    for command in [
        doc! { "createUser": "a", "pwd": "secret", "roles": [], "customData": { "a": &padding } },
        doc! { "updateUser": "a", "pwd": "secret", "customData": { "b": &padding } },
        doc! { "copydb": 1, "fromdb": "a", "todb": "b", "comment": &padding },
        doc! { "dropUser": "a" },
        doc! { "ping": 1 },
    ] {
        let name = command.keys().next().unwrap().clone();
        for (form, expected) in [(None, None), (id("zstd"), id("zstd")), (id("snappy"), id("snappy"))] {
            let mut command = command.clone();
            command.insert("$db", "test");
            let reply = ask(&mut socket, &request(command, form)).await;
            assert_eq!(compressor(&reply), expected, "{name}");
            let sent = tap.requests(&name).pop().unwrap();
            let as_it_came = matches!(name.as_str(), "dropUser" | "ping") && form == id("zstd");
            assert_eq!(compressor(&sent), form.filter(|_| as_it_came), "{name} from a client with {form:?}");
        }
    }
    let hellos = tap.requests("hello");
    assert!(!hellos.is_empty() && hellos.iter().all(|hello| compressor(hello).is_none()));
    assert_eq!(raw::document_of(&hellos[0]).get_array("compression").unwrap(), &[Bson::from("zstd")]);
}

/// Flags are for the client's leg: a message that has one is not passed on as it came.
#[tokio::test]
async fn a_message_with_flags_is_compressed_anew() {
    let deployment = support::standalone().await;
    let (tap, proxy) = tapped(&deployment, "&compressors=zlib&zlibCompressionLevel=1").await;
    let mut socket = raw::connect(proxy.address()).await;
    let insert =
        doc! { "insert": "flags", "documents": documents(1, 2_000, 0), "writeConcern": { "w": 0 }, "$db": "test" };
    let unacknowledged = raw::compressed(&raw::op_msg(2, &[&raw::body(&insert)]), 2);
    socket.write_all(&unacknowledged).await.unwrap();
    let count = request(doc! { "count": "flags", "$db": "test" }, id("zlib"));
    assert_eq!(raw::document_of(&ask(&mut socket, &count).await).get_i32("n").unwrap(), 1);
    let sent = tap.requests("insert").pop().unwrap();
    assert_eq!(compressor(&sent), id("zlib"));
    assert_ne!(sent[16..], unacknowledged[16..]);
    let checked = raw::compressed(
        &raw::with_checksum(raw::op_msg(1, &[&raw::body(&doc! { "count": "flags", "$db": "test" })]), 0),
        2,
    );
    assert_eq!(raw::document_of(&ask(&mut socket, &checked).await).get_i32("n").unwrap(), 1);
}

#[tokio::test]
async fn a_server_compresses_as_it_can() {
    for (theirs, ours, expected) in [
        ("disabled", "zstd,snappy", None),
        ("zlib,snappy", "zstd,snappy,zlib", id("snappy")),
        ("zlib", "zlib", id("zlib")),
    ] {
        let arguments = vec![format!("--networkMessageCompressors={theirs}")];
        let options = DeploymentOptions { arguments, ..DeploymentOptions::for_tests(0) };
        let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
        let (tap, proxy) = tapped(&deployment, &format!("&compressors={ours}")).await;
        for client in NAMES {
            let mut socket = raw::connect(proxy.address()).await;
            let reply = ask(&mut socket, &request(doc! { "find": "c", "$db": "test" }, id(client))).await;
            assert_eq!(compressor(&reply), id(client));
            assert_eq!(compressor(&tap.requests("find").pop().unwrap()), expected, "{theirs} of {ours}");
        }
    }
}

/// Answers every find with bytes that a test chooses, and has agreed on zstd if it is told to.
struct Liar {
    port: u16,
    reply: Arc<Mutex<Vec<u8>>>,
}

impl Liar {
    fn start(agrees: bool) -> Self {
        let (listener, port) = scripted::listen(None);
        let liar = Self { port, reply: Arc::default() };
        let (reply, tasks) = (liar.reply.clone(), Tasks::new());
        tasks.clone().spawn("liar", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let reply = reply.clone();
                tasks.spawn("liar's connection", async move { lie(stream, &reply, agrees).await.unwrap_or_default() });
            }
        });
        liar
    }

    fn says(&self, reply: Vec<u8>) {
        *self.reply.lock().unwrap() = reply;
    }
}

async fn lie(mut stream: TcpStream, reply: &Mutex<Vec<u8>>, agrees: bool) -> Option<()> {
    loop {
        let request = scripted::read_message(&mut stream).await?;
        let name = raw::document_of(&request).keys().next().cloned().unwrap_or_default();
        let answer = if scripted::is_hello(&name) {
            let mut hello = scripted::mongos_hello();
            if agrees {
                hello.insert("compression", vec!["zstd"]);
            }
            scripted::answer(&request, &hello)
        } else if name == "find" {
            let mut answer = reply.lock().unwrap().clone();
            answer[8..12].copy_from_slice(&request[4..8]);
            answer
        } else {
            scripted::answer(&request, &doc! { "ok": 1.0 })
        };
        stream.write_all(&answer).await.ok()?;
    }
}

/// An OP_MSG that answers a find.
fn found(padding: usize) -> Vec<u8> {
    raw::command(doc! { "ok": 1.0, "cursor": { "id": 0_i64, "ns": "a.b", "firstBatch": ["x".repeat(padding)] } })
}

#[tokio::test]
async fn a_reply_that_cannot_be_opened_costs_its_connection_and_one_error() {
    let liar = Liar::start(true);
    let settings = format!(
        "{ONE}heartbeat_frequency_ms = 500\nreconnect.initial_ms = 1\nreconnect.max_ms = 5\nbreaker.consecutive_failures = 1000\nbreaker.success_rate_percent = 0"
    );
    let proxy = proxy(&format!("mongodb://127.0.0.1:{}/?compressors=zstd", liar.port), &settings).await;
    let mut client = support::connect(proxy.address()).await;
    let find = || doc! { "find": "b" };
    let zeros = raw::deflate(3, &vec![0; 60_000_000]);
    let large = found(300_000);
    let body = |message: &[u8]| raw::deflate(3, &message[16..]);
    let size = |message: &[u8]| i32::try_from(message.len() - 16).unwrap();
    for (what, reply) in [
        ("a bomb that says so", raw::compressed_as(2013, 60_000_000, 3, &zeros)),
        ("a bomb that lies", raw::compressed_as(2013, 100_000, 3, &zeros)),
        ("more than announced", raw::compressed_as(2013, size(&large) - 1, 3, &body(&large))),
        ("less than announced", raw::compressed_as(2013, size(&large) + 1, 3, &body(&large))),
        ("a negative size", raw::compressed_as(2013, -1, 3, &body(&large))),
        ("garbage, large", raw::compressed_as(2013, 100_000, 3, &random(100_000))),
        ("garbage, small", raw::compressed_as(2013, 100, 3, &random(100))),
        ("an unknown compressor", raw::compressed_as(2013, size(&large), 9, &body(&large))),
        ("no compressor", raw::compressed_as(2013, size(&large), 0, &large[16..])),
        ("one inside another", raw::compressed(&raw::compressed(&large, 3), 3)),
        ("a legacy reply inside", raw::compressed_as(1, size(&large), 3, &body(&large))),
        ("no prefix", raw::message(raw::OP_COMPRESSED, &[1, 2, 3])),
    ] {
        liar.says(reply);
        let closed = || {
            proxy.metric(&format!(
                "mongomux_upstream_connections_closed_total{{reason=\"error\",server=\"127.0.0.1:{}\"}}",
                liar.port
            ))
        };
        let before = closed();
        let reply = timeout(PATIENCE, client.reply("a", find())).await.unwrap_or_else(|_| panic!("{what}: no answer"));
        let reply = reply.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(reply.get_i32("code").unwrap_or_default(), 6, "{what}: {reply}");
        // And afterwards all is well, over another connection.
        for padding in [10, 300_000] {
            liar.says(raw::compressed(&found(padding), 3));
            let reply = client.command("a", find()).await.unwrap_or_else(|error| panic!("after {what}: {error}"));
            assert_eq!(first_batch_text(&reply), padding, "{what}");
        }
        assert_eq!(closed() - before, 1.0, "{what}");
        eventually("all memory given back", async || used(&proxy) == 0).await;
    }
}

fn first_batch_text(reply: &Document) -> usize {
    reply.get_document("cursor").unwrap().get_array("firstBatch").unwrap()[0].as_str().unwrap().len()
}

#[tokio::test]
async fn a_compressed_reply_that_nobody_agreed_on_is_not_believed() {
    let liar = Liar::start(false);
    let proxy = proxy(&format!("mongodb://127.0.0.1:{}/?compressors=zstd", liar.port), ONE).await;
    liar.says(raw::compressed(&found(10), 3));
    let mut client = support::connect(proxy.address()).await;
    let reply = timeout(PATIENCE, client.reply("a", doc! { "find": "b" })).await.unwrap().unwrap();
    assert_eq!(reply.get_i32("code").unwrap(), 6, "{reply}");
}
