//! What the integration tests share: deployments, clients and fail points.
//!
//! A missing `mongod` is a failure that says what to do, never a test that skips.
#![allow(unreachable_pub, reason = "a module of each test program, written like a library")]
#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test that way")]
#![allow(dead_code, reason = "every test file uses its own part of this one")]

pub mod bench;
pub mod bystanders;
pub mod canned;
pub mod certificates;
pub mod counts;
pub mod echo;
pub mod elections;
pub mod hold;
pub mod large;
pub mod ledger;
pub mod log_in;
pub mod open_loop;
pub mod pair;
pub mod program;
pub mod proxy;
pub mod raw;
pub mod relay;
pub mod scripted;
pub mod statements;
pub mod succession;
pub mod tap;

use bson::{Bson, Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::{Mongod, MongodError};
use mongomux::sandbox::wire_client::WireClient;
use proxy::Proxy;
use relay::Relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Duration;

/// Longest wait for anything that is bound to happen; a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A standalone with test commands.
pub async fn standalone() -> Deployment {
    Deployment::standalone().await.unwrap_or_else(no_deployment)
}

/// A replica set of `members` with test commands and quick elections, all members in step.
pub async fn replica_set(members: usize) -> Deployment {
    Deployment::replica_set(members).await.unwrap_or_else(no_deployment)
}

/// A one-member set behind a relay, and a proxy that knows the relay.
pub async fn relayed(settings: &str) -> (Deployment, Relay, Proxy) {
    let deployment = replica_set(1).await;
    let relay = Relay::start(deployment.members()[0].address());
    let proxy = proxy::proxy(&relay.uri(), settings).await;
    (deployment, relay, proxy)
}

/// The loud end of a test without a server.
#[track_caller]
pub fn no_deployment(error: MongodError) -> Deployment {
    panic!("this test needs a real MongoDB and could not start one: {error}")
}

/// A socket straight to a server, after hello as `mongomux test`.
pub async fn client(server: &Mongod) -> WireClient {
    connect(&server.address()).await
}

/// A socket to a server or a proxy, after hello as `mongomux test`.
pub async fn connect(address: &Address) -> WireClient {
    WireClient::connect_as(address, "mongomux test")
        .await
        .unwrap_or_else(|error| panic!("no client at {address}: {error}"))
}

/// The documents of the first batch of a cursor's reply.
#[track_caller]
pub fn first_batch(reply: &Document) -> Vec<Document> {
    batch(reply, "firstBatch")
}

/// The documents of a later batch.
#[track_caller]
pub fn next_batch(reply: &Document) -> Vec<Document> {
    batch(reply, "nextBatch")
}

#[track_caller]
fn batch(reply: &Document, name: &str) -> Vec<Document> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array(name));
    let batch = batch.unwrap_or_else(|error| panic!("no {name} in {reply}: {error}"));
    batch.iter().filter_map(Bson::as_document).cloned().collect()
}

/// The answer that makes current drivers back off and send again.
#[track_caller]
pub fn assert_overloaded(reply: &Document) {
    assert_eq!(reply.get_f64("ok").unwrap(), 0.0, "{reply}");
    assert_eq!(reply.get_i32("code").unwrap(), 462, "{reply}");
    assert_eq!(reply.get_str("codeName").unwrap(), "IngressRequestRateLimitExceeded");
    for label in ["SystemOverloadedError", "RetryableError"] {
        assert!(labels(reply).iter().any(|it| it == label), "{label} is not in {reply}");
    }
}

/// Sets the `failCommand` fail point on a direct connection for the next `times` matching commands (0: until
/// [`fail_nothing`]). `data` as the server takes it: `failCommands`, `errorCode`, `closeConnection`, `blockConnection`,
/// `blockTimeMS`, `appName`, `errorLabels`, `writeConcernError`.
pub async fn fail_command(server: &Mongod, times: i32, data: Document) {
    let mode = if times == 0 { Bson::from("alwaysOn") } else { Bson::from(doc! { "times": times }) };
    fail_point(server, "failCommand", mode, data).await;
}

/// Ends what [`fail_command`] began.
pub async fn fail_nothing(server: &Mongod) {
    fail_point(server, "failCommand", Bson::from("off"), doc! {}).await;
}

/// Sets any fail point on a direct connection.
pub async fn fail_point(server: &Mongod, name: &str, mode: Bson, data: Document) {
    let command = doc! { "configureFailPoint": name, "mode": mode, "data": data };
    client(server).await.command("admin", command).await.unwrap_or_else(|error| panic!("fail point {name}: {error}"));
}

/// Makes the first user, a root, of a deployment that requires authentication.
pub async fn first_user(deployment: &Deployment, name: &str, password: &str) {
    let primary = deployment.await_primary().await.expect("a primary");
    let command = doc! { "createUser": name, "pwd": password, "roles": ["root"] };
    let mut client = client(&deployment.members()[primary]).await;
    client.command("admin", command).await.unwrap_or_else(|error| panic!("first user: {error}"));
}

/// Sends a request to an admin port, with what orders need; returns the whole answer, the status line first.
pub async fn http(admin: &Address, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(admin.to_string()).await.unwrap();
    let order = "X-Mongomux: 1\r\nContent-Type: application/json\r\n";
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{order}Content-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// As [`http`], for an answer in JSON; returns the status as well.
pub async fn json(admin: &Address, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let answer = http(admin, method, path, body).await;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| serde_json::from_str(body));
    match (status, body) {
        (Some(status), Some(Ok(body))) => (status, body),
        _ => panic!("no JSON from {path}: {answer}"),
    }
}

/// Open connections of `application` as the server counts them.
pub async fn connections(server: &Mongod, application: &str) -> usize {
    mongomux::sandbox::census::take(&mut client(server).await)
        .await
        .unwrap_or_else(|error| panic!("census: {error}"))
        .get(application)
        .copied()
        .unwrap_or(0)
}

/// Codes by which a server says that it is no longer what it was: no client of ours may ever read one.
const STATE_CHANGES: [i32; 8] = [189, 10107, 11602, 13435, 13436, 10058, 11600, 91];

/// Fails when a reply tells of a change of the server's state.
#[track_caller]
pub fn assert_cloaked(reply: &Document) {
    assert!(!reply.contains_key("topologyVersion"), "topologyVersion in {reply}");
    let of = |document: &Document| document.get_i32("code").unwrap_or_default();
    let write_errors = reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document).map(of);
    let concern = reply.get_document("writeConcernError").map(of).ok();
    for code in write_errors.chain(concern).chain([of(reply)]) {
        assert!(!STATE_CHANGES.contains(&code), "a change of state in {reply}");
    }
}

/// The labels of an error reply.
pub fn labels(reply: &Document) -> Vec<String> {
    let labels = reply.get_array("errorLabels").into_iter().flatten();
    labels.filter_map(|label| label.as_str().map(ToOwned::to_owned)).collect()
}

/// Code and labels of an error reply, 0 where it is none.
pub fn code_and_labels(reply: &Document) -> (i32, Vec<String>) {
    (reply.get_i32("code").unwrap_or_default(), labels(reply))
}

/// A session's id as drivers make it.
pub fn new_lsid() -> Document {
    let id = rand::random::<[u8; 16]>().to_vec();
    doc! { "id": bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: id } }
}
