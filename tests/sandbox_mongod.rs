//! The throw-away deployments that every other test and the sandbox stand on.

mod support;

use bson::doc;
use futures_util::FutureExt;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::sandbox::mongod::{Mongod, MongodError, MongodOptions};
use mongomux::sandbox::wire_client::{Request, WireClient};
use tokio::time::{Duration, timeout};

fn runs(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_standalone_starts_answers_and_leaves_nothing() {
    let deployment = support::standalone().await;
    let [server] = deployment.members() else { panic!("one server") };
    let hello = support::client(server).await.hello("test").await;
    assert_eq!(hello.unwrap_err().code(), Some(186), "connected with metadata once already");
    let mut client = support::client(server).await;
    let hello = client.command("admin", doc! { "hello": 1 }).await.unwrap();
    assert!(hello.get_bool("isWritablePrimary").unwrap());
    assert!(!hello.contains_key("setName"));
    assert_eq!(deployment.uri(), format!("mongodb://127.0.0.1:{}/", server.port()));

    let (pid, directory) = (server.pid().unwrap(), server.directory().to_owned());
    assert!(runs(pid) && directory.exists());
    drop(deployment);
    assert!(!runs(pid), "process {pid} is left behind");
    assert!(!directory.exists(), "{} is left behind", directory.display());
}

#[tokio::test]
async fn three_members_elect_replicate_and_fail_over() {
    let mut deployment = support::replica_set(3).await;
    let primary = deployment.primary().await.expect("a primary is there once the set has started");
    let mut client = support::client(&deployment.members()[primary]).await;
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }], "writeConcern": { "w": 3, "wtimeout": 10_000 } };
    assert_eq!(client.command("test", insert).await.unwrap().get_i32("n").unwrap(), 1);

    for member in deployment.members() {
        let _open = WireClient::connect_as(&member.address(), "mongomux").await.unwrap();
        assert_eq!(support::connections(member, "mongomux").await, 1, "counted on secondaries, too");
    }

    deployment.member(primary).kill().await.unwrap();
    let next = deployment.await_primary().await.unwrap();
    assert_ne!(next, primary);
    deployment.member(primary).restart().await.unwrap();
    deployment.await_members().await.unwrap();
    let mut client = support::client(&deployment.members()[primary]).await;
    let find = doc! { "find": "c", "filter": { "_id": 1 }, "$readPreference": { "mode": "secondaryPreferred" } };
    assert_eq!(support::first_batch(&client.command("test", find).await.unwrap()).len(), 1);
}

#[tokio::test]
async fn kill_and_restart_keep_port_and_data() {
    let mut deployment = support::replica_set(1).await;
    let port = deployment.member(0).port();
    let mut client = support::client(deployment.member(0)).await;
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }], "writeConcern": { "w": 1, "j": true } };
    client.command("test", insert).await.unwrap();
    let killed = deployment.member(0).pid().unwrap();
    deployment.member(0).kill().await.unwrap();
    assert!(!runs(killed));
    assert!(client.command("admin", doc! { "ping": 1 }).await.is_err(), "the socket died with the server");
    assert_eq!(deployment.primary().await, None);
    let taken = std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse, "the port stays claimed while nobody listens");

    deployment.member(0).restart().await.unwrap();
    assert_eq!(deployment.member(0).port(), port);
    deployment.await_primary().await.unwrap();
    let mut client = support::client(deployment.member(0)).await;
    let found = client.command("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(support::first_batch(&found).len(), 1);

    deployment.member(0).stop().await.unwrap();
    assert!(deployment.member(0).log_tail(1).contains("\"exitCode\":0"));
}

#[tokio::test]
async fn a_paused_server_hangs_and_goes_on() {
    let deployment = support::standalone().await;
    let [server] = deployment.members() else { panic!("one server") };
    let mut client = support::client(server).await;
    server.pause().await.unwrap();
    let id = client.send(&Request::new("admin", doc! { "ping": 1 })).await.unwrap();
    assert!(timeout(Duration::from_millis(200), client.receive(id)).await.is_err());
    server.resume().unwrap();
    client.receive(id).await.unwrap();
    server.pause().await.unwrap();
    drop(deployment);
}

#[tokio::test]
async fn fail_points_work_and_are_counted() {
    let deployment = support::standalone().await;
    let [server] = deployment.members() else { panic!("one server") };
    support::fail_command(server, 1, doc! { "failCommands": ["find"], "errorCode": 11602 }).await;
    let mut client = support::client(server).await;
    let find = doc! { "find": "c" };
    assert_eq!(client.command("test", find.clone()).await.unwrap_err().code(), Some(11602));
    client.command("test", find).await.unwrap();
}

#[tokio::test]
async fn connections_are_counted_by_application_busy_ones_once() {
    let deployment = support::standalone().await;
    let [server] = deployment.members() else { panic!("one server") };
    let address = server.address();
    let open = |application| WireClient::connect_as(&address, application).map(Result::unwrap);
    let mut data = [open("mongomux").await, open("mongomux").await, open("mongomux").await];
    let _monitor = open("mongomux monitor").await;
    // One of them waits inside a command.
    support::fail_command(server, 1, doc! { "failCommands": ["find"], "blockConnection": true, "blockTimeMS": 60_000 })
        .await;
    data[0].send(&Request::new("test", doc! { "find": "c" })).await.unwrap();
    assert_eq!(support::connections(server, "mongomux").await, 3);
    assert_eq!(support::connections(server, "mongomux monitor").await, 1);
    assert_eq!(support::connections(server, "mongo").await, 0);
}

#[tokio::test]
async fn authentication_can_be_required() {
    let options = DeploymentOptions { auth: true, ..DeploymentOptions::for_tests(1) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    let mut client = support::client(&deployment.members()[0]).await;
    let find = doc! { "find": "c" };
    assert_eq!(client.command("test", find).await.unwrap_err().code(), Some(13));
    support::first_user(&deployment, "admin", "secret").await;
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why_and_leaves_nothing() {
    let program = mongomux::sandbox::find::mongod(None).await.expect("a mongod");
    let mut options = MongodOptions::new(program);
    options.arguments.push("--noSuchOption".to_owned());
    match Mongod::start(options).await {
        Err(MongodError::Ended { log, .. }) => assert!(log.contains("noSuchOption"), "{log}"),
        other => panic!("{other:?}"),
    }
}
