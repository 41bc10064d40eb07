//! What clients take us for beside a mongos and a standalone: a replica set of one member, and a load balancer. And those who
//! look for something else are named.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::{Document, doc};
use futures_util::StreamExt;
use mongodb::Client;
use mongodb::error::ErrorKind;
use mongodb::options::{ClientOptions, ReadPreference, SelectionCriteria};
use mongomux::config::Address;
use mongomux::config::limits::MAX_CURSORS_PER_SOCKET;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{Request, WireClient};
use support::hold::eventually;
use support::program::Program;
use support::proxy::proxy;
use support::{first_batch, new_lsid, raw};
use tokio::time::Duration;

/// Long enough for a driver that finds its server, short for one that does not.
const SELECTION: Duration = Duration::from_secs(3);

const SHOWN: &str = "presentation = \"replica-set\"\nreplica_set_name = \"apps\"\n";

async fn driver(uri: &str, application: &str) -> Client {
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.server_selection_timeout = Some(SELECTION);
    options.app_name = Some(application.to_owned());
    Client::with_options(options).unwrap()
}

async fn ping(client: &Client) -> mongodb::error::Result<Document> {
    client.database("admin").run_command(doc! { "ping": 1 }).await
}

fn is_selection_error(error: &mongodb::error::Error) -> bool {
    matches!(*error.kind, ErrorKind::ServerSelection { .. })
}

#[tokio::test]
async fn a_replica_set_of_one_member_is_shown_to_everybody_and_never_changes() {
    let mut deployment = support::replica_set(3).await;
    let proxy = proxy(&deployment.uri(), SHOWN).await;
    let stable = |mut hello: Document| {
        for field in ["localTime", "connectionId", "lastWrite"] {
            assert!(hello.remove(field).is_some(), "{field}");
        }
        hello
    };
    let ask = async |message: Vec<u8>| raw::exchange(&mut raw::connect(proxy.address()).await, &message).await;
    let hello = stable(ask(raw::command(doc! { "hello": 1, "$db": "admin" })).await);
    let me = proxy.address().to_string();
    for (field, value) in [("setName", "apps"), ("primary", &*me), ("me", &*me)] {
        assert_eq!(hello.get_str(field).unwrap(), value, "{hello}");
    }
    assert_eq!(hello.get_array("hosts").unwrap(), &[me.clone().into()]);
    for field in ["msg", "topologyVersion", "serviceId", "isreplicaset", "passives", "arbiters"] {
        assert!(!hello.contains_key(field), "{field} in {hello}");
    }
    let legacy = stable(ask(raw::query("admin.$cmd", &doc! { "isMaster": 1 })).await);
    assert_eq!((legacy.get_str("setName").unwrap(), legacy.get_str("me").unwrap()), ("apps", &*me));
    // Whatever becomes of the set behind it, its version and its term do not change: no driver sees a stale primary.
    let primary = deployment.await_primary().await.unwrap();
    deployment.member(primary).kill().await.unwrap();
    deployment.await_members().await.unwrap();
    let mut client = support::connect(proxy.address()).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "a": 1 }] }).await.unwrap();
    assert_eq!(stable(ask(raw::command(doc! { "hello": 1, "$db": "admin" })).await), hello);
    // A client that takes us for a load balancer is told nothing of a set.
    let balanced = ask(raw::command(doc! { "hello": 1, "loadBalanced": true, "$db": "admin" })).await;
    assert!(balanced.contains_key("serviceId") && !balanced.contains_key("setName"), "{balanced}");
    assert_eq!(balanced.get_str("msg").unwrap(), "isdbgrid");
}

#[tokio::test]
async fn drivers_that_ask_for_the_set_find_it_and_others_do_not() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), SHOWN).await;
    for uri in [
        format!("mongodb://{}/?replicaSet=apps", proxy.address()),
        format!("mongodb://{}/", proxy.address()),
        format!("mongodb://{}/?directConnection=true", proxy.address()),
        format!("mongodb://{}/?loadBalanced=true", proxy.address()),
    ] {
        let client = driver(&uri, "asks").await;
        let collection = client.database("presentation").collection::<Document>("c");
        collection.drop().await.unwrap();
        collection.insert_one(doc! { "_id": 1 }).await.unwrap_or_else(|error| panic!("{uri}: {error}"));
        let mut session = client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        collection.insert_one(doc! { "_id": 2 }).session(&mut session).await.unwrap();
        session.commit_transaction().await.unwrap();
        assert_eq!(collection.count_documents(doc! {}).await.unwrap(), 2, "{uri}");
        let mut changes = collection.watch().await.unwrap();
        collection.insert_one(doc! { "_id": 3 }).await.unwrap();
        let change = changes.next().await.unwrap().unwrap();
        assert_eq!(change.full_document.unwrap(), doc! { "_id": 3 }, "{uri}");
        let preferred = SelectionCriteria::ReadPreference(ReadPreference::SecondaryPreferred { options: None });
        let found = collection.find_one(doc! { "_id": 3 }).selection_criteria(preferred).await.unwrap();
        assert!(found.is_some(), "{uri}");
    }
    let wrong = driver(&format!("mongodb://{}/?replicaSet=other", proxy.address()), "wrong").await;
    assert!(is_selection_error(&ping(&wrong).await.unwrap_err()));
}

#[tokio::test]
async fn an_advertised_address_is_where_drivers_go() {
    let deployment = support::replica_set(1).await;
    let listening = proxy(&deployment.uri(), SHOWN).await;
    let advertised = format!("{SHOWN}advertised_address = \"{}\"", listening.address());
    let other = proxy(&deployment.uri(), &advertised).await;
    let client = driver(&format!("mongodb://{}/?replicaSet=apps", other.address()), "sent on").await;
    ping(&client).await.unwrap();
    let counted =
        |proxy: &support::proxy::Proxy| proxy.metric("mongomux_commands_total{command=\"ping\",outcome=\"completed\"}");
    assert_eq!((counted(&listening), counted(&other)), (1.0, 0.0));
}

/// Says hello like a driver, and hangs up or goes on.
async fn greet(address: &Address, application: &str) -> WireClient {
    WireClient::connect_as(address, application).await.unwrap()
}

#[tokio::test]
async fn who_looks_for_something_else_is_named_once_with_what_to_change() {
    let deployment = support::replica_set(1).await;
    let mut program = Program::run(&[&deployment.uri()]);
    let address = program.address().await;
    // Healthy ones first: short-lived, with a monitor of their own each, and all of them alike.
    for _ in 0..5 {
        let healthy = driver(&format!("mongodb://{address}/"), "healthy").await;
        ping(&healthy).await.unwrap();
        healthy.shutdown().immediate(true).await;
        drop(greet(&address, "raw and healthy").await);
        greet(&address, "raw and healthy").await.command("admin", doc! { "ping": 1 }).await.unwrap();
    }
    // Misfits, each of which is one process that is started again and again.
    for _ in 0..5 {
        let misfit = driver(&format!("mongodb://{address}/?replicaSet=rs0"), "misfit").await;
        assert!(is_selection_error(&ping(&misfit).await.unwrap_err()));
        misfit.shutdown().immediate(true).await;
    }
    let line = program.line("hangs up").await;
    for word in
        ["WARN", "client=127.0.0.1", "misfit", "mongo-rust-driver", "times=3", "replicaSet=", "replica-set", "Mongos"]
    {
        assert!(line.contains(word), "{word}: {line}");
    }
    program.terminate();
    let (_, log, _) = program.ended().await;
    let told: Vec<&str> = log.lines().filter(|line| line.contains("hangs up")).collect();
    assert_eq!(told.len(), 1, "{told:#?}");
}

/// In the set that is shown `localhost` is 127.0.0.1: drivers leave the former at once, whenever they start.
#[tokio::test]
async fn the_healthy_are_not_named_for_hasty_ends_beside_others() {
    let deployment = support::replica_set(1).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SHOWN).unwrap();
    let mut program = Program::run(&["--config", file.path().to_str().unwrap(), &deployment.uri()]);
    let address = program.address().await;
    let port = address.to_string().rsplit(':').next().unwrap().to_owned();
    let mut started = Vec::new();
    for _ in 0..4 {
        let mut options =
            ClientOptions::parse(format!("mongodb://localhost:{port}/?minPoolSize=1&replicaSet=apps")).await.unwrap();
        options.app_name = Some("moves on".to_owned());
        let client = Client::with_options(options).unwrap();
        client.warm_connection_pool().await;
        started.push(client);
    }
    // A socket that has worked, and whoever looks now and then whether we are there.
    let mut pooled = greet(&address, "pooled").await;
    pooled.command("admin", doc! { "ping": 1 }).await.unwrap();
    for _ in 0..4 {
        drop(greet(&address, "pooled").await);
    }
    for _ in 0..3 {
        let misfit = driver(&format!("mongodb://{address}/?replicaSet=other"), "misfit").await;
        assert!(is_selection_error(&ping(&misfit).await.unwrap_err()));
        misfit.shutdown().immediate(true).await;
    }
    let line = program.line("hangs up").await;
    for word in ["misfit", "times=3", "shown=ReplicaSet", "set=\"apps\"", "the name of the set"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    program.terminate();
    let (_, log, _) = program.ended().await;
    assert_eq!(log.lines().filter(|line| line.contains("hangs up")).count(), 1, "{log}");
}

/// Cursors and transactions that are open on the server.
async fn open_on(server: &Mongod) -> (i64, i64) {
    let status = support::client(server).await.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let cursors = status.get_document("metrics").and_then(|it| it.get_document("cursor")?.get_document("open"));
    let transactions = status.get_document("transactions").unwrap();
    (cursors.unwrap().get_i64("total").unwrap(), transactions.get_i64("currentOpen").unwrap())
}

/// A collection with something to find.
async fn twenty(address: &Address) {
    let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": id }).collect();
    let insert = doc! { "insert": "many", "documents": documents };
    support::connect(address).await.command("test", insert).await.unwrap();
}

/// It begins a transaction of its own.
fn first_statement() -> Document {
    doc! {
        "insert": "many", "documents": [{ "in": "a transaction" }], "lsid": new_lsid(), "txnNumber": 1_i64,
        "startTransaction": true, "autocommit": false,
    }
}

/// A socket with two open cursors and an open transaction on it.
async fn with_open_things(address: &Address, load_balanced: bool) -> WireClient {
    let mut client = WireClient::connect(address).await.unwrap();
    client.command("admin", doc! { "hello": 1, "loadBalanced": load_balanced }).await.unwrap();
    for _ in 0..2 {
        let found = client.command("test", doc! { "find": "many", "batchSize": 1 }).await.unwrap();
        let id = found.get_document("cursor").unwrap().get_i64("id").unwrap();
        let more = doc! { "getMore": id, "collection": "many", "batchSize": 1 };
        client.command("test", more).await.unwrap();
    }
    client.command("test", first_statement()).await.unwrap();
    client
}

#[tokio::test]
async fn what_is_pinned_to_a_socket_ends_with_it_at_once_and_nothing_else_does() {
    let deployment = support::replica_set(1).await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "").await;
    twenty(proxy.address()).await;
    let plain = with_open_things(proxy.address(), false).await;
    let staying = with_open_things(proxy.address(), true).await;
    let leaving = with_open_things(proxy.address(), true).await;
    // One that its client has killed is nobody's any more.
    let mut tidy = balanced(proxy.address()).await;
    let id = open_cursor(&mut tidy, "many").await;
    tidy.command("test", doc! { "killCursors": "many", "cursors": [id] }).await.unwrap();
    drop(tidy);
    assert_eq!(open_on(server).await, (6, 3));
    // The transaction of the plain one is left to another socket of its client for some seconds, its cursors for longer.
    drop(plain);
    drop(leaving);
    eventually("what was pinned has ended", async || open_on(server).await == (4, 2)).await;
    let pins = proxy.clusters()[0].pins.lock().unwrap().count();
    assert_eq!(pins, (4, 2));
    drop(staying);
    eventually("the rest of what was pinned", async || open_on(server).await.0 == 2).await;
}

/// A socket of a client that takes us for a load balancer.
async fn balanced(address: &Address) -> WireClient {
    let mut client = WireClient::connect(address).await.unwrap();
    client.command("admin", doc! { "hello": 1, "loadBalanced": true }).await.unwrap();
    client
}

/// The id of a cursor that is left open, of at least two documents.
async fn open_cursor(client: &mut WireClient, collection: &str) -> i64 {
    let found = client.command("test", doc! { "find": collection, "batchSize": 1 }).await.unwrap();
    found.get_document("cursor").unwrap().get_i64("id").unwrap()
}

/// What the server was told to kill since it keeps a profile, one entry for each command.
async fn killed_on(server: &Mongod) -> Vec<(String, Vec<i64>)> {
    let kills = doc! { "find": "system.profile", "filter": { "command.killCursors": { "$exists": true } } };
    let found = support::client(server).await.command("test", kills).await.unwrap();
    let killed = first_batch(&found).into_iter().map(|entry| {
        let command = entry.get_document("command").unwrap();
        let ids = command.get_array("cursors").unwrap().iter().map(|id| id.as_i64().unwrap());
        (command.get_str("killCursors").unwrap().to_owned(), ids.collect())
    });
    let mut killed: Vec<_> = killed.collect();
    killed.sort();
    killed
}

#[tokio::test]
async fn cursors_that_have_ended_are_forgotten_and_the_others_killed_together() {
    let deployment = support::replica_set(1).await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "").await;
    twenty(proxy.address()).await;
    let mut client = balanced(proxy.address()).await;
    let insert = doc! { "insert": "more", "documents": [{ "_id": 1 }, { "_id": 2 }] };
    client.command("test", insert).await.unwrap();
    for _ in 0..=MAX_CURSORS_PER_SOCKET {
        let id = open_cursor(&mut client, "many").await;
        let rest = client.command("test", doc! { "getMore": id, "collection": "many" }).await.unwrap();
        assert_eq!(rest.get_document("cursor").unwrap().get_i64("id").unwrap(), 0);
    }
    support::client(server).await.command("test", doc! { "profile": 2 }).await.unwrap();
    let mut many = vec![open_cursor(&mut client, "many").await, open_cursor(&mut client, "many").await];
    let more = open_cursor(&mut client, "more").await;
    drop(client);
    eventually("all is ended", async || open_on(server).await.0 == 0).await;
    let mut killed = killed_on(server).await;
    killed.iter_mut().for_each(|(_, ids)| ids.sort_unstable());
    many.sort_unstable();
    assert_eq!(killed, [("many".to_owned(), many), ("more".to_owned(), vec![more])]);
}

#[tokio::test]
async fn a_cursor_that_was_killed_with_a_lost_reply_is_not_killed_again() {
    let deployment = support::replica_set(1).await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "").await;
    twenty(proxy.address()).await;
    support::client(server).await.command("test", doc! { "profile": 2 }).await.unwrap();
    let mut client = balanced(proxy.address()).await;
    let (lost, other) = (open_cursor(&mut client, "many").await, open_cursor(&mut client, "many").await);
    let close = doc! { "failCommands": ["getMore"], "closeConnection": true, "appName": "mongomux" };
    support::fail_command(server, 1, close).await;
    client.command("test", doc! { "getMore": lost, "collection": "many" }).await.unwrap_err();
    eventually("the cursor is killed", async || open_on(server).await.0 == 1).await;
    drop(client);
    eventually("all is ended", async || open_on(server).await.0 == 0).await;
    let mut killed = [("many".to_owned(), vec![lost]), ("many".to_owned(), vec![other])];
    killed.sort();
    assert_eq!(killed_on(server).await, killed);
}

/// As many errands as may be under way, and what holds locks is not left out.
#[tokio::test]
async fn a_pinned_transaction_is_aborted_before_any_cursor_is_killed() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "").await;
    let mut client = balanced(proxy.address()).await;
    client.command("test", first_statement()).await.unwrap();
    for n in 0..MAX_CURSORS_PER_SOCKET {
        let collection = format!("many_{n}");
        let insert = doc! { "insert": &collection, "documents": [{ "_id": 1 }, { "_id": 2 }] };
        client.command("test", insert).await.unwrap();
        open_cursor(&mut client, &collection).await;
    }
    let pins = async || proxy.clusters()[0].pins.lock().unwrap().count();
    assert_eq!(pins().await, (MAX_CURSORS_PER_SOCKET, 1));
    drop(client);
    // All of it is begun at once.
    eventually("its end is noticed", async || pins().await.0 == 0).await;
    assert_eq!(pins().await.1, 0, "a transaction that is left for later");
}

/// The client leaves while a statement of its transaction is on the server.
#[tokio::test]
async fn a_pinned_transaction_ends_once_its_last_statement_is_done() {
    let deployment = support::replica_set(1).await;
    let server = &deployment.members()[0];
    let proxy = proxy(&deployment.uri(), "").await;
    twenty(proxy.address()).await;
    let mut client = with_open_things(proxy.address(), true).await;
    let block = doc! { "failCommands": ["insert"], "blockConnection": true, "blockTimeMS": 700, "appName": "mongomux" };
    support::fail_command(server, 1, block).await;
    client.send(&Request::new("test", first_statement())).await.unwrap();
    eventually("it is there", async || proxy.clusters()[0].pins.lock().unwrap().count().1 == 2).await;
    drop(client);
    eventually("all is ended", async || open_on(server).await == (0, 0)).await;
    let mut look = support::connect(proxy.address()).await;
    let count = look.command("test", doc! { "count": "many" }).await.unwrap();
    assert_eq!(count.get_i32("n").unwrap(), 20, "nothing was committed");
}
