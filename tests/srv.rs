//! `mongodb+srv` connection strings: servers and options come from DNS.
//!
//! The test runs itself again in namespaces of its own, with a `/etc/resolv.conf` that names the DNS server in here: the
//! machine's resolver is not touched. That takes `unshare`, `mount` and `ip`, and user namespaces, so it is no part of
//! `cargo test`, but a step of `.ci/run`: `cargo test --test srv`.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use bson::doc;
use mongomux::tasks::Tasks;
use support::echo::Echo;
use support::hold::eventually;
use support::proxy::proxy;
use support::{connect, first_batch};
use tokio::net::UdpSocket;

/// Set in the namespaces.
const INSIDE: &str = "MONGOMUX_TEST_INSIDE";

/// Makes the only interface usable and the file given to it the resolver's, and becomes the program given after that.
const ENTER: &str = r#"ip link set lo up && mount --bind "$0" /etc/resolv.conf && exec "$@""#;

#[tokio::test]
async fn servers_and_options_are_found_by_srv_and_txt_records() {
    if std::env::var_os(INSIDE).is_some() {
        let records =
            Arc::new(Records { sharded: [Echo::mongos(), Echo::mongos()], set: support::replica_set(1).await });
        let dns = UdpSocket::bind("127.0.0.1:53").await.unwrap();
        Tasks::new().spawn("dns", serve(dns, records.clone()));
        mongos_are_found_and_reached_by_name(&records).await;
        a_replica_set_is_found_with_its_name(&records).await;
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let resolver = directory.path().join("resolv.conf");
    std::fs::write(&resolver, "nameserver 127.0.0.1\noptions timeout:2\n").unwrap();
    let program = std::env::current_exe().unwrap();
    let mut command = tokio::process::Command::new("unshare");
    command.args(["--map-root-user", "--mount", "--net", "sh", "-c", ENTER]).arg(&resolver).arg(program);
    command.args(["--exact", "servers_and_options_are_found_by_srv_and_txt_records", "--nocapture"]);
    let status = command.env(INSIDE, "1").kill_on_drop(true).status().await;
    assert!(status.unwrap_or_else(|error| panic!("needs unshare: {error}")).success(), "see above");
}

/// Of the two clusters in here.
struct Records {
    sharded: [Echo; 2],
    set: mongomux::sandbox::deployment::Deployment,
}

async fn mongos_are_found_and_reached_by_name(records: &Records) {
    let settings = "local_threshold_ms = 60_000\nheartbeat_frequency_ms = 500";
    let proxy = proxy("mongodb+srv://sharded.mongomux.test/?tls=false", settings).await;
    eventually("both mongos", async || proxy.clusters()[0].topology().data_bearing().count() == 2).await;
    let topology = proxy.clusters()[0].topology();
    let names: BTreeSet<String> = topology.servers.keys().map(ToString::to_string).collect();
    let [first, second] = &records.sharded;
    let expected = [format!("a.mongomux.test:{}", first.port), format!("b.mongomux.test:{}", second.port)];
    assert_eq!(names, BTreeSet::from(expected));
    let mut client = connect(proxy.address()).await;
    for _ in 0..40 {
        client.command("test", doc! { "find": "c" }).await.unwrap();
    }
    assert!(records.sharded.iter().all(|mongos| mongos.seen("find") > 0), "both carry reads");
}

async fn a_replica_set_is_found_with_its_name(records: &Records) {
    let proxy = proxy("mongodb+srv://set.mongomux.test/?tls=false", "").await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    let found = client.command("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(first_batch(&found), [doc! { "_id": 1 }]);
    // From the name in the TXT record on the members say themselves where they are.
    let topology = proxy.clusters()[0].topology();
    assert_eq!(topology.set_name.as_deref(), Some("mongomux"));
    let member = records.set.members()[0].address();
    assert_eq!(topology.servers.keys().collect::<Vec<_>>(), [&member]);
}

impl Records {
    /// The type and the data of the records of a name, if they are of the type asked for.
    fn answers(&self, name: &str, kind: u16) -> Vec<Vec<u8>> {
        match (name, kind) {
            ("_mongodb._tcp.sharded.mongomux.test", SRV) => {
                vec![srv("a.mongomux.test", self.sharded[0].port), srv("b.mongomux.test", self.sharded[1].port)]
            }
            ("_mongodb._tcp.set.mongomux.test", SRV) => vec![srv("c.mongomux.test", self.set.members()[0].port())],
            ("set.mongomux.test", TXT) => vec![label("replicaSet=mongomux")],
            ("a.mongomux.test" | "b.mongomux.test" | "c.mongomux.test", A) => vec![vec![127, 0, 0, 1]],
            _ => Vec::new(),
        }
    }
}

const A: u16 = 1;
const TXT: u16 = 16;
const SRV: u16 = 33;

/// What the questions of a resolver have before the name asked for.
const HEADER_BYTES: usize = 12;

/// Answers each question with what it finds, or with nothing.
async fn serve(socket: UdpSocket, records: Arc<Records>) {
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        socket.send_to(&answer(&buffer[..length], &records), from).await.unwrap();
    }
}

fn answer(query: &[u8], records: &Records) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut rest = &query[HEADER_BYTES..];
    while rest[0] != 0 {
        let (text, after) = rest[1..].split_at(usize::from(rest[0]));
        labels.push(String::from_utf8(text.to_ascii_lowercase()).unwrap());
        rest = after;
    }
    let kind = u16::from_be_bytes([rest[1], rest[2]]);
    let answers = records.answers(&labels.join("."), kind);
    let question = &query[HEADER_BYTES..query.len() - rest.len() + 5];
    // An answer, recursion as it was wished for and available; one question, the answers, and nothing else.
    let mut reply =
        [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::try_from(answers.len()).unwrap(), 0, 0, 0, 0], question].concat();
    for data in answers {
        // The name of the question, its type, class IN, a minute to live.
        reply.extend_from_slice(&[0xC0, 12]);
        reply.extend_from_slice(&kind.to_be_bytes());
        reply.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
        reply.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        reply.extend_from_slice(&data);
    }
    reply
}

fn srv(host: &str, port: u16) -> Vec<u8> {
    let name: Vec<u8> = host.split('.').flat_map(label).chain([0]).collect();
    [&[0, 0, 0, 0][..], &port.to_be_bytes(), &name].concat()
}

fn label(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}
