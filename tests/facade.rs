//! What the proxy says in its own name: hello in every form, logins that are not needed, its own pools, refusals.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bson::spec::BinarySubtype;
use bson::{Bson, Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::{Request, WireClient};
use mongomux::tasks::Tasks;
use support::proxy::{Proxy, proxy};
use support::raw;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Duration, timeout};

/// Longest wait for something that is expected.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for an answer that must not come.
const A_WHILE: Duration = Duration::from_millis(300);

/// Fields by which a driver would take us for a member of a replica set, or follow the server's own topology.
const UPSTREAM_ONLY: [&str; 14] = [
    "setName",
    "setVersion",
    "hosts",
    "passives",
    "arbiters",
    "primary",
    "me",
    "secondary",
    "electionId",
    "lastWrite",
    "topologyVersion",
    "isreplicaset",
    "$clusterTime",
    "operationTime",
];

fn metadata() -> Document {
    doc! { "driver": { "name": "test", "version": "1" }, "os": { "type": "test" } }
}

fn code(reply: &Document) -> i32 {
    reply.get_i32("code").unwrap_or_default()
}

/// Every way to ask, with whether it is called hello.
fn forms() -> Vec<(Vec<u8>, bool)> {
    let mut forms = Vec::new();
    for value in [Bson::from(1), Bson::from(1.0), Bson::from(true), Bson::from(1_i64)] {
        for name in ["hello", "isMaster", "ismaster"] {
            let with = |mut command: Document| {
                command.insert("client", metadata());
                // Of drivers to come.
                command.extend(doc! { "backpressure": "2", "noSuchField": { "a": [1] }, "speculativeAuthenticate": { "saslStart": 1 } });
                command
            };
            let is_hello = name == "hello";
            forms.push((raw::command(with(doc! { name: value.clone(), "$db": "admin" })), is_hello));
            forms.push((raw::query("admin.$cmd", &with(doc! { name: value.clone() })), is_hello));
            let inner = with(doc! { name: value.clone() });
            let wrapped = doc! { "$query": inner, "$readPreference": { "mode": "primaryPreferred" } };
            forms.push((raw::query("other.$cmd", &wrapped), is_hello));
        }
    }
    forms
}

#[track_caller]
fn is_shown(hello: &Document, is_hello: bool, mongos: bool) {
    let writable = if is_hello { "isWritablePrimary" } else { "ismaster" };
    assert!(hello.get_bool(writable).unwrap(), "{hello}");
    assert!(!hello.contains_key(if is_hello { "ismaster" } else { "isWritablePrimary" }), "{hello}");
    assert_eq!(hello.get_str("msg").ok(), mongos.then_some("isdbgrid"), "{hello}");
    assert_eq!(hello.get_f64("ok").unwrap(), 1.0);
    for (field, value) in [
        ("maxBsonObjectSize", 16_777_216),
        ("maxMessageSizeBytes", 48_000_000),
        ("maxWriteBatchSize", 100_000),
        ("logicalSessionTimeoutMinutes", 30),
        ("minWireVersion", 0),
        ("maxWireVersion", 17),
    ] {
        assert_eq!(hello.get_i32(field).unwrap(), value, "{field}");
    }
    hello.get_datetime("localTime").unwrap();
    for field in UPSTREAM_ONLY.into_iter().chain(["serviceId", "helloOk", "speculativeAuthenticate"]) {
        assert!(!hello.contains_key(field), "{field} in {hello}");
    }
}

#[tokio::test]
async fn hello_in_every_form_shows_a_mongos() {
    let deployment = support::replica_set(1).await;
    // Fewer than there are, and in another order than the client's.
    let proxy = proxy(&deployment.uri(), "compressors = [\"snappy\", \"zstd\"]").await;
    let mut connection_ids = Vec::new();
    for (bytes, is_hello) in forms() {
        let mut socket = raw::connect(proxy.address()).await;
        let hello = raw::exchange(&mut socket, &bytes).await;
        is_shown(&hello, is_hello, true);
        connection_ids.push(hello.get_i32("connectionId").unwrap());
    }
    assert!(connection_ids.is_sorted_by(|a, b| a < b), "each socket has its number: {connection_ids:?}");

    let mut client = WireClient::connect(proxy.address()).await.unwrap();
    let hello_ok = client.command("admin", doc! { "isMaster": 1, "helloOk": true }).await.unwrap();
    assert!(hello_ok.get_bool("helloOk").unwrap());
    let agreed = doc! { "hello": 1, "compression": ["zstd", "noop", "zlib", "lz4", "snappy"] };
    let agreed = client.command("admin", agreed).await.unwrap();
    assert_eq!(agreed.get_array("compression").unwrap(), &[Bson::from("zstd"), Bson::from("snappy")]);
    // No command of the data path was needed for any of it.
    assert_eq!(proxy.metric("mongomux_commands_total{command=\"other\",outcome=\"completed\"}"), 0.0);
}

#[tokio::test]
async fn hello_shows_a_standalone_as_what_it_is() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), "").await;
    for (bytes, is_hello) in forms() {
        let hello = raw::exchange(&mut raw::connect(proxy.address()).await, &bytes).await;
        is_shown(&hello, is_hello, false);
    }
    // Which drivers rely on: no retryable writes, no transactions.
    let lsid = doc! { "id": bson::Binary { subtype: BinarySubtype::Uuid, bytes: vec![1; 16] } };
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }], "lsid": lsid, "txnNumber": 1_i64 };
    let mut client = support::connect(proxy.address()).await;
    assert_eq!(client.command("facade", insert).await.unwrap_err().code(), Some(20));
}

#[tokio::test]
async fn a_load_balanced_client_gets_a_service_id_and_others_none() {
    let deployment = support::replica_set(1).await;
    let first = proxy(&deployment.uri(), "").await;
    let second = proxy(&deployment.uri(), "").await;
    let service_id = async |proxy: &Proxy| {
        let mut client = WireClient::connect(proxy.address()).await.unwrap();
        let hello = client.command("admin", doc! { "hello": 1, "loadBalanced": true }).await.unwrap();
        assert_eq!(hello.get_str("msg").unwrap(), "isdbgrid");
        hello.get_object_id("serviceId").unwrap()
    };
    assert_eq!(service_id(&first).await, service_id(&first).await, "the same for every socket");
    assert_ne!(service_id(&first).await, service_id(&second).await, "another after a restart");
    let mut client = WireClient::connect(first.address()).await.unwrap();
    let hello = client.command("admin", doc! { "hello": 1, "loadBalanced": false }).await.unwrap();
    assert!(!hello.contains_key("serviceId"));
}

/// Code and its name of each reply to commands on one socket.
async fn conversation(address: &Address, commands: &[Document]) -> Vec<(i32, String)> {
    let mut client = WireClient::connect(address).await.unwrap();
    let mut codes = Vec::new();
    for command in commands {
        let reply = client.reply("admin", command.clone()).await.unwrap();
        let name = reply.get_str("codeName").unwrap_or_default().to_owned();
        codes.push((reply.get_i32("code").unwrap_or_default(), name));
    }
    codes
}

#[tokio::test]
async fn hello_and_local_commands_fail_with_the_codes_of_a_server() {
    let hello = |client: Document| doc! { "hello": 1, "client": client };
    let with = |mut client: Document, extra: Document| {
        client.extend(extra);
        hello(client)
    };
    let of_size = |bytes: usize| {
        let mut client = metadata();
        client.insert("platform", "");
        client.insert("platform", "x".repeat(bytes - client.to_vec().unwrap().len()));
        assert_eq!(client.to_vec().unwrap().len(), bytes);
        hello(client)
    };
    let named = |bytes: usize| with(metadata(), doc! { "application": { "name": "x".repeat(bytes) } });
    let strict = |name: &str| doc! { name: 1, "apiVersion": "1", "apiStrict": true };
    let plain = doc! { "hello": 1 };
    let version = doc! { "processId": bson::oid::ObjectId::new(), "counter": 5_i64 };
    let conversations = [
        vec![hello(metadata()), hello(metadata()), plain.clone()],
        vec![plain.clone(), hello(metadata()), plain.clone()],
        vec![hello(doc! {}), hello(metadata())],
        vec![hello(doc! { "driver": { "name": "a", "version": "b" } }), hello(metadata())],
        vec![hello(doc! { "os": { "type": "a" } }), hello(metadata()), hello(metadata())],
        vec![hello(doc! { "driver": { "name": "a" }, "os": { "type": "a" } })],
        vec![hello(doc! { "driver": 5, "os": { "type": "a" } })],
        vec![doc! { "hello": 1, "client": 5 }],
        vec![doc! { "isMaster": 1, "client": {} }],
        vec![named(128)],
        vec![named(129), named(128)],
        vec![of_size(1024)],
        vec![of_size(1025), of_size(512)],
        vec![doc! { "hello": 1, "topologyVersion": version.clone() }],
        vec![doc! { "hello": 1, "maxAwaitTimeMS": 10 }],
        vec![doc! { "hello": 1, "maxAwaitTimeMS": -1, "topologyVersion": version.clone() }],
        vec![doc! { "hello": 1, "maxAwaitTimeMS": "long", "topologyVersion": version }],
        vec![doc! { "hello": 1, "topologyVersion": 5, "maxAwaitTimeMS": 10 }],
        vec![doc! { "hello": 1, "compression": "zstd" }],
        vec![doc! { "hello": 1, "compression": [5] }],
        vec![doc! { "hello": 1, "apiVersion": "2" }],
        vec![doc! { "hello": 1, "apiVersion": 1 }],
        vec![doc! { "hello": 1, "apiStrict": true }],
        vec![doc! { "hello": 1, "apiVersion": "1", "apiStrict": "yes" }],
        vec![doc! { "hello": 1, "apiVersion": "1", "apiDeprecationErrors": true }],
        vec![strict("hello"), strict("isMaster"), strict("ping"), strict("whatsmyuri"), strict("connPoolStats")],
        vec![strict("getnonce"), strict("connectionStatus"), strict("buildInfo"), strict("logout")],
        vec![doc! { "endSessions": [], "apiVersion": "1", "apiStrict": true }],
        vec![doc! { "saslContinue": 1, "conversationId": 1, "payload": "" }],
        vec![doc! { "noSuchCommand": 1 }, doc! { "IsMaster": 1 }, doc! { "HELLO": 1 }],
        vec![doc! { "whatsmyuri": 1 }, doc! { "connectionStatus": 1 }, doc! { "getnonce": 1 }],
    ];
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "").await;
    let server = deployment.members()[0].address();
    let mut wrong = Vec::new();
    for commands in conversations {
        let (expected, found) =
            (conversation(&server, &commands).await, conversation(proxy.address(), &commands).await);
        if expected != found {
            wrong.push(format!("{commands:?}\n  server {expected:?}\n  proxy  {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn logins_are_told_that_they_are_not_needed() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "").await;
    let mut client = support::connect(proxy.address()).await;
    for command in [
        doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": "n,,n=a,r=b" },
        doc! { "authenticate": 1, "mechanism": "MONGODB-X509" },
    ] {
        let refused = client.reply("admin", command).await.unwrap();
        assert_eq!((code(&refused), refused.get_str("codeName").unwrap()), (334, "MechanismUnavailable"));
        let text = refused.get_str("errmsg").unwrap();
        assert!(text.contains("auth = \"none\"") && text.contains("connection string"), "{text}");
    }
    for (command, code, text) in [
        (doc! { "saslContinue": 1, "conversationId": 1, "payload": "" }, 17, "No SASL session state found"),
        (doc! { "logout": 1 }, 13, "logout requires authentication"),
    ] {
        let refused = client.reply("admin", command).await.unwrap();
        assert_eq!(refused.get_i32("code").unwrap(), code);
        let found = refused.get_str("errmsg").unwrap().to_lowercase();
        assert!(found.contains(&text.to_lowercase()), "{found}");
    }
    // As OP_QUERY, from drivers of old.
    let mut old = raw::connect(proxy.address()).await;
    let sasl = raw::query("admin.$cmd", &doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-1", "payload": "" });
    assert_eq!(raw::exchange(&mut old, &sasl).await.get_i32("code").unwrap(), 334);
}

#[tokio::test]
async fn the_proxy_tells_of_the_clients_own_socket() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "").await;
    let mut socket = raw::connect(proxy.address()).await;
    let uri = raw::exchange(&mut socket, &raw::command(doc! { "whatsmyuri": 1, "$db": "admin" })).await;
    assert_eq!(uri.get_str("you").unwrap(), socket.local_addr().unwrap().to_string());
    let status = doc! { "connectionStatus": 1, "showPrivileges": true, "$db": "admin" };
    let status = raw::exchange(&mut socket, &raw::command(status)).await;
    let nobody = doc! { "authenticatedUsers": [], "authenticatedUserRoles": [], "authenticatedUserPrivileges": [] };
    assert_eq!(status, doc! { "authInfo": nobody, "ok": 1.0 });
    let nonce = raw::exchange(&mut socket, &raw::command(doc! { "getnonce": 1, "$db": "admin" })).await;
    let nonce = nonce.get_str("nonce").unwrap();
    assert!(nonce.len() == 16 && nonce.bytes().all(|digit| digit.is_ascii_hexdigit()), "{nonce}");
}

#[tokio::test]
async fn conn_pool_stats_are_true() {
    let deployment = support::replica_set(1).await;
    let [server] = deployment.members() else { panic!("one server") };
    let proxy = proxy(&deployment.uri(), "max_pool_size = 3\nmin_pool_size = 3\nmax_idle_time_ms = 0").await;
    let mut busy = support::connect(proxy.address()).await;
    let block =
        doc! { "failCommands": ["count"], "blockConnection": true, "blockTimeMS": 60_000, "appName": "mongomux" };
    support::fail_command(server, 1, block).await;
    busy.send(&Request::new("facade", doc! { "count": "c" })).await.unwrap();
    let mut client = support::connect(proxy.address()).await;
    let stats = timeout(PATIENCE, async {
        loop {
            let stats = client.command("admin", doc! { "connPoolStats": 1 }).await.unwrap();
            if stats.get_i32("totalInUse").unwrap() == 1 && stats.get_i32("totalAvailable").unwrap() == 2 {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let stats = stats.await.expect("one busy, two idle");
    assert_eq!(stats.get_i32("totalCreated").unwrap(), 3);
    assert_eq!(support::connections(server, "mongomux").await, 3, "as the server counts them");
    let host = doc! { "inUse": 1, "available": 2, "created": 3, "refreshing": 0, "refreshed": 0 };
    assert_eq!(stats.get_document("hosts").unwrap(), &doc! { server.address().to_string(): host.clone() });
    let pools = stats.get_document("pools").unwrap().values().next().and_then(Bson::as_document).unwrap().clone();
    assert_eq!(pools.get_i32("poolInUse").unwrap(), 1);
    assert_eq!(pools.get_document(server.address().to_string()).unwrap(), &host);
    assert_eq!(stats.get_f64("ok").unwrap(), 1.0);
}

#[tokio::test]
async fn what_would_harm_others_is_refused_and_nothing_else() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "").await;
    let mut client = support::connect(proxy.address()).await;
    for name in [
        "shutdown",
        "replSetStepDown",
        "replSetFreeze",
        "replSetReconfig",
        "replSetInitiate",
        "replSetMaintenance",
        "replSetSyncFrom",
        "replSetResizeOplog",
        "fsync",
        "fsyncUnlock",
        "killAllSessions",
        "killAllSessionsByPattern",
        "logRotate",
        "sleep",
        "testDeadlock",
        "godinsert",
    ] {
        let error = client.command("admin", doc! { name: 1, "lock": true }).await.unwrap_err();
        assert_eq!(error.code(), Some(13), "{name}: {error}");
    }
    for (command, what) in [
        (doc! { "killSessions": [] }, "sessions of everybody"),
        (doc! { "usersInfo": 1, "showCredentials": true }, "SCRAM keys"),
    ] {
        assert_eq!(client.command("admin", command).await.unwrap_err().code(), Some(13), "{what}");
    }
    for name in [
        "_isSelf",
        "_shardsvrMoveRange",
        "replSetHeartbeat",
        "replSetRequestVotes",
        "replSetUpdatePosition",
        "prepareTransaction",
        "coordinateCommitTransaction",
    ] {
        let error = client.command("admin", doc! { name: 1 }).await.unwrap_err();
        assert_eq!(error.code(), Some(59), "{name}: {error}");
    }
    // What is unknown is the server's to judge: its reply carries its cluster time.
    let unknown = client.reply("admin", doc! { "notYetInvented": 1 }).await.unwrap();
    assert_eq!((code(&unknown), unknown.get_str("codeName").unwrap()), (59, "CommandNotFound"));
    assert!(unknown.contains_key("$clusterTime"), "{unknown}");

    let build = client.command("admin", doc! { "buildInfo": 1 }).await.unwrap();
    let mut direct = support::client(&deployment.members()[0]).await;
    assert_eq!(
        build.get_str("version").unwrap(),
        direct.command("admin", doc! { "buildInfo": 1 }).await.unwrap().get_str("version").unwrap()
    );
    let session = client.command("admin", doc! { "startSession": 1 }).await.unwrap();
    let id = session.get_document("id").unwrap().clone();
    assert!(matches!(id.get("id"), Some(Bson::Binary(id)) if id.subtype == BinarySubtype::Uuid), "{id}");
    assert_eq!(session.get_i32("timeoutMinutes").unwrap(), 30);
    client.command("admin", doc! { "refreshSessions": [id.clone()] }).await.unwrap();
    client.command("admin", doc! { "killSessions": [id.clone()] }).await.unwrap();
    let ended = client.command("admin", doc! { "endSessions": [id] }).await.unwrap();
    assert_eq!(ended.get_f64("ok").unwrap(), 1.0);
}

/// A port behind which the server can be exchanged, as if a deployment were replaced on the same host.
struct Port {
    address: Address,
    target: Arc<AtomicU16>,
    replaced: watch::Sender<u32>,
    tasks: Tasks,
}

impl Port {
    async fn new(server: &Address) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::tcp("127.0.0.1", listener.local_addr().unwrap().port());
        let target = Arc::new(AtomicU16::new(port(server)));
        let (replaced, _) = watch::channel(0);
        let (tasks, to, mut cut) = (Tasks::new(), target.clone(), replaced.subscribe());
        let of_each = tasks.clone();
        tasks.spawn("port", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = of_each.cancelled() => return,
                };
                let Ok((mut inside, _)) = accepted else { continue };
                cut.mark_unchanged();
                let (to, mut cut) = (to.load(Ordering::SeqCst), cut.clone());
                of_each.spawn("relay", async move {
                    let Ok(mut outside) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, target, replaced, tasks }
    }

    /// Another server from now on; connections to the old one break.
    fn replace(&self, server: &Address) {
        self.target.store(port(server), Ordering::SeqCst);
        self.replaced.send_modify(|count| *count += 1);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

fn port(address: &Address) -> u16 {
    match address {
        Address::Tcp { port, .. } => *port,
        Address::Unix(path) => panic!("{} is not TCP", path.display()),
    }
}

#[tokio::test]
async fn hello_waits_for_an_upstream_that_was_never_seen() {
    let mut deployment = support::standalone().await;
    deployment.member(0).stop().await.unwrap();
    let proxy = proxy(&deployment.uri(), "").await;
    let mut early = Vec::new();
    for (bytes, is_hello) in forms() {
        let mut socket = raw::connect(proxy.address()).await;
        tokio::io::AsyncWriteExt::write_all(&mut socket, &bytes).await.unwrap();
        early.push((socket, is_hello));
    }
    let mut client = WireClient::connect(proxy.address()).await.unwrap();
    let ping = client.send(&Request::new("admin", doc! { "ping": 1 })).await.unwrap();
    // Neither guessed nor refused.
    assert!(timeout(A_WHILE, raw::next_document(&mut early[0].0)).await.is_err(), "an answer without knowledge");
    // What needs no upstream is answered meanwhile.
    let mut other = WireClient::connect(proxy.address()).await.unwrap();
    timeout(PATIENCE, other.command("admin", doc! { "whatsmyuri": 1 })).await.unwrap().unwrap();
    // One that leaves while it waits is gone.
    drop(early.pop());
    deployment.member(0).restart().await.unwrap();
    for (mut socket, is_hello) in early {
        let hello = timeout(PATIENCE, raw::next_document(&mut socket)).await.expect("it was seen now");
        is_shown(&hello, is_hello, false);
    }
    timeout(PATIENCE, client.receive(ping)).await.unwrap().unwrap();
}

#[tokio::test]
async fn another_kind_of_upstream_closes_those_who_knew_the_old_one() {
    let (before, after) = tokio::join!(support::standalone(), support::replica_set(1));
    let [old, new] = [&before, &after].map(|deployment: &Deployment| deployment.members()[0].address());
    let port = Port::new(&old).await;
    let proxy = proxy(&format!("mongodb://{}/", port.address), "heartbeat_frequency_ms = 500").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = WireClient::connect(proxy.address()).await.unwrap();
        assert!(!client.hello("before").await.unwrap().contains_key("msg"));
        client.command("facade", doc! { "find": "c" }).await.unwrap();
        clients.push(client);
    }
    port.replace(&new);
    // Until the proxy has noticed, a new client is told of the old one; after that of the new one only.
    let shown = timeout(PATIENCE, async {
        loop {
            let mut client = WireClient::connect(proxy.address()).await.unwrap();
            if let Ok(hello) = client.hello("after").await
                && hello.contains_key("msg")
            {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut client = shown.await.expect("the new kind is noticed");
    client.command("facade", doc! { "find": "c" }).await.unwrap();
    let [hello, find, old_form] = clients.as_mut_slice() else { panic!("three clients") };
    hello.send(&Request::new("admin", doc! { "hello": 1 })).await.unwrap();
    find.send(&Request::new("facade", doc! { "find": "c" })).await.unwrap();
    old_form.send_raw(&raw::query("admin.$cmd", &doc! { "isMaster": 1 })).await.unwrap();
    for client in clients {
        let mut client = client;
        let end = timeout(PATIENCE, client.read_message()).await.unwrap();
        assert!(end.is_err(), "a driver must not learn of another kind: {end:?}");
    }
}
