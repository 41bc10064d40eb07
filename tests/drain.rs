//! How the program starts and ends: signals, exit codes, and what it says meanwhile.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::wire_client::{Request, WireClient, WireError};
use support::hold::eventually;
use support::program::Program;
use support::{connect, new_lsid};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, timeout};

/// A configuration file.
struct File(TempDir);

impl File {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mongomux.toml"), text).unwrap();
        Self(directory)
    }

    fn path(&self) -> String {
        self.0.path().join("mongomux.toml").to_str().unwrap().to_owned()
    }
}

fn run(uri: &str, settings: &str) -> (Program, File) {
    let file = File::new(settings);
    (Program::run(&["--config", &file.path(), uri]), file)
}

async fn nobody_listens(address: &Address) -> bool {
    TcpStream::connect(address.to_string()).await.is_err()
}

async fn is_closed(client: &mut WireClient) -> bool {
    let closed = timeout(support::PATIENCE, client.read_message()).await.expect("an end");
    matches!(closed, Err(WireError::Closed { .. } | WireError::Io(_)))
}

/// A find that the server answers only after a minute; returns once the server has it.
async fn hang(server: &mongomux::sandbox::mongod::Mongod, client: &mut WireClient) -> i32 {
    let block = doc! { "failCommands": ["find"], "blockConnection": true, "blockTimeMS": 60_000 };
    support::fail_command(server, 1, block).await;
    let id = client.send(&Request::new("test", doc! { "find": "hangs" })).await.unwrap();
    let mut direct = support::client(server).await;
    eventually("the find on the server", async || {
        let pipeline = [doc! { "$currentOp": {} }, doc! { "$match": { "command.find": "hangs" } }];
        let ask = doc! { "aggregate": 1, "pipeline": pipeline.to_vec(), "cursor": {} };
        !support::first_batch(&direct.command("admin", ask).await.unwrap()).is_empty()
    })
    .await;
    id
}

fn insert(number: i64, lsid: &Document) -> Document {
    doc! {
        "insert": "c", "documents": [{ "_id": number }],
        "lsid": lsid, "txnNumber": 1_i64, "startTransaction": true, "autocommit": false,
    }
}

#[tokio::test]
async fn open_sockets_are_served_until_their_clients_leave() {
    let deployment = support::standalone().await;
    let (mut program, _file) = run(&deployment.uri(), "");
    let address = program.address().await;
    let (mut first, mut second) = (connect(&address).await, connect(&address).await);
    first.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    program.terminate();
    let asked = Instant::now();
    program.line("draining").await;
    eventually("a closed listener", async || nobody_listens(&address).await).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "closed after {:?}", asked.elapsed());
    for number in 2..20 {
        let client = if number % 2 == 0 { &mut first } else { &mut second };
        client.command("test", doc! { "insert": "c", "documents": [{ "_id": number }] }).await.unwrap();
        client.command("admin", doc! { "hello": 1 }).await.expect("hello says nothing of it");
    }
    drop(first);
    assert_eq!(second.command("test", doc! { "count": "c" }).await.unwrap().get_i32("n").ok(), Some(19));
    drop(second);
    let left = Instant::now();
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 0, "{log}");
    assert!(left.elapsed() < Duration::from_secs(4), "ended after {:?}", left.elapsed());
}

#[tokio::test]
async fn idle_sockets_and_their_hellos_keep_nobody() {
    let deployment = support::standalone().await;
    let (mut program, _file) = run(&deployment.uri(), "drain_quiet_ms = 400");
    let address = program.address().await;
    let (mut idle, mut monitor) = (connect(&address).await, connect(&address).await);
    program.terminate();
    let asked = Instant::now();
    let greeted = async {
        while monitor.command("admin", doc! { "hello": 1 }).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ((), (code, log, _)) = tokio::join!(greeted, program.ended());
    assert_eq!(code, 0, "{log}");
    assert!((400..8_000).contains(&asked.elapsed().as_millis()), "ended after {:?}", asked.elapsed());
    assert!(is_closed(&mut idle).await);
}

#[tokio::test]
async fn what_is_cut_off_shows_in_the_exit_code() {
    let deployment = support::replica_set(1).await;
    let settings = "drain_timeout_ms = 1_000\ndrain_quiet_ms = 100";
    let lsid = new_lsid();
    let end = |name: &str| doc! { name: 1, "lsid": &lsid, "txnNumber": 1_i64, "autocommit": false };

    let (mut program, _file) = run(&deployment.uri(), settings);
    let mut client = connect(&program.address().await).await;
    client.command("test", doc! { "create": "c" }).await.unwrap();
    client.command("test", insert(1, &lsid)).await.unwrap();
    program.terminate();
    let asked = Instant::now();
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 3, "an open transaction: {log}");
    assert!(asked.elapsed() >= Duration::from_millis(900), "it had {:?} to end", asked.elapsed());
    assert!(is_closed(&mut client).await);

    let (mut program, _file) = run(&deployment.uri(), settings);
    let mut client = connect(&program.address().await).await;
    client.command("admin", end("abortTransaction")).await.unwrap();
    hang(&deployment.members()[0], &mut client).await;
    program.terminate();
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 3, "a command in flight: {log}");

    let (mut program, _file) = run(&deployment.uri(), "drain_quiet_ms = 100");
    let lsid = new_lsid();
    let mut client = connect(&program.address().await).await;
    client.command("test", insert(2, &lsid)).await.unwrap();
    program.terminate();
    program.line("draining").await;
    let commit = doc! { "commitTransaction": 1, "lsid": &lsid, "txnNumber": 1_i64, "autocommit": false };
    client.command("admin", commit).await.expect("an open transaction can always commit");
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 0, "{log}");
}

#[tokio::test]
async fn a_long_poll_is_answered_in_the_end() {
    let deployment = support::replica_set(1).await;
    let (mut program, _file) = run(&deployment.uri(), "drain_quiet_ms = 200");
    let mut client = connect(&program.address().await).await;
    let watch = doc! { "aggregate": "c", "pipeline": [{ "$changeStream": {} }], "cursor": {} };
    let opened = client.command("test", watch).await.unwrap();
    let cursor = opened.get_document("cursor").unwrap().get_i64("id").unwrap();
    let more = doc! { "getMore": cursor, "collection": "c", "maxTimeMS": 600_000 };
    let id = client.send(&Request::new("test", more)).await.unwrap();
    assert!(timeout(Duration::from_millis(300), client.receive(id)).await.is_err(), "nothing happens");
    program.terminate();
    let reply = client.receive(id).await.expect("an answer before the end").document().unwrap();
    assert_eq!(reply.get_i32("code").ok(), Some(43), "{reply}");
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 0, "{log}");
    // Its driver watches on elsewhere, over another cursor.
    let mut direct = support::client(&deployment.members()[0]).await;
    let status = direct.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let cursors = status.get_document("metrics").unwrap().get_document("cursor").unwrap();
    assert_eq!(cursors.get_document("open").unwrap().get_i64("total").ok(), Some(0), "{cursors}");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let deployment = support::standalone().await;
    let (mut program, _file) = run(&deployment.uri(), "");
    let mut client = connect(&program.address().await).await;
    hang(&deployment.members()[0], &mut client).await;
    program.terminate();
    program.line("draining").await;
    program.terminate();
    let asked = Instant::now();
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 3, "{log}");
    assert!(asked.elapsed() < Duration::from_secs(3), "ended after {:?}", asked.elapsed());
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for arguments in [
        ["run", "--listen", &address, "--admin", "127.0.0.1:0"],
        ["run", "--listen", "127.0.0.1:0", "--admin", &address],
    ] {
        let (code, log, _) = Program::start(&arguments).ended().await;
        assert_eq!(code, 1, "{log}");
        assert!(log.contains(&address), "{log}");
        assert!(log.to_lowercase().contains("in use"), "{log}");
    }
}

#[tokio::test]
async fn every_mistake_is_told_at_once() {
    let file = File::new("max_pool_size = 0\nmax_pol_size = 3\ndrain_timeout_ms = \"soon\"\nlisten = [\"nowhere\"]\n");
    for command in ["run", "check"] {
        let (code, log, output) = Program::start(&[command, "--config", &file.path()]).ended().await;
        assert_eq!(code, 2, "{log}{output}");
        for mistake in ["mongomux.toml:1", "mongomux.toml:2", "mongomux.toml:3", "mongomux.toml:4"] {
            assert!(log.contains(mistake), "no {mistake} in {log}");
        }
        for key in ["max_pool_size", "max_pol_size", "drain_timeout_ms", "nowhere", "1 to 10000"] {
            assert!(log.contains(key), "no {key} in {log}");
        }
    }
    for flags in [&["run", "--no-such-flag"][..], &["run", "--listen", "nowhere"], &["run", "--profile", "huge"]] {
        let (code, log, _) = Program::start(flags).ended().await;
        assert_eq!(code, 2, "{log}");
        assert!(log.contains(flags.last().unwrap()), "{log}");
    }
    let (code, log, _) = Program::start(&["run", "--config", "/no/such/file.toml"]).ended().await;
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("/no/such/file.toml"), "{log}");
}

#[tokio::test]
async fn check_says_what_is_in_force() {
    let file = File::new("profile = \"low\"\nmax_pool_size = 8\nmax_clients = 1234\n");
    let uri = "mongodb://app:hush-hush@127.0.0.1:27017/?maxPoolSize=7";
    let (code, log, output) = Program::start(&["check", "--config", &file.path(), uri]).ended().await;
    assert_eq!(code, 0, "{log}");
    assert!(["valid", "2 to 7 connections", "1234 clients"].iter().all(|it| output.contains(it)), "{output}");
    assert!(!output.contains("hush-hush") && !log.contains("hush-hush"), "{output}{log}");
}

#[tokio::test]
async fn an_upstream_that_is_not_there_yet_is_waited_for() {
    let mut deployment = support::standalone().await;
    let uri = deployment.uri();
    let server = deployment.member(0).address().to_string();
    deployment.member(0).kill().await.unwrap();
    let (mut program, _file) = run(&uri, "heartbeat_frequency_ms = 500");
    let address = program.address().await;
    let line = program.line("not reached").await;
    assert!(line.contains(&server) && line.contains("Connection refused"), "{line}");
    // What it is nobody knows: the hello waits, the socket stays open.
    let mut early = WireClient::connect(&address).await.unwrap();
    let hello = early.send(&Request::new("admin", doc! { "hello": 1 })).await.unwrap();
    assert!(timeout(Duration::from_millis(300), early.receive(hello)).await.is_err(), "nobody may guess");
    deployment.member(0).restart().await.unwrap();
    let hello = timeout(support::PATIENCE, early.receive(hello)).await.expect("an answer").unwrap();
    assert_eq!(hello.document().unwrap().get_f64("ok").ok(), Some(1.0));
    early.command("test", doc! { "ping": 1 }).await.unwrap();
    program.line("server reached").await;
    drop(early);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
    let count = |words: &str| program.log().lines().filter(|line| line.contains(words)).count();
    assert_eq!((count("server found"), count("server reached")), (1, 1), "each is said once: {}", program.log());
}
