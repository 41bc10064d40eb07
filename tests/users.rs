//! Clients log in as users of MongoDB, and each user's commands go over connections of its own: rights are the server's business,
//! and what belongs to one user is nobody else's.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::time::Duration;

use bson::{Document, doc};
use mongomux::auth::scram::{ClientNonce, Mechanism, SaltedKeys, ScramClient};
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use support::hold::eventually;
use support::log_in::{Caller, USUAL, logged_in, payload};
use support::proxy::{Proxy, configured};
use support::{first_batch, http};

const PASSWORD: &str = "correct-horse_7";

/// A replica set of one that wants passwords, with three users, and a proxy whose clients are its users.
struct Rig {
    server: Deployment,
    proxy: Proxy,
    /// The administrator, not through the proxy.
    root: Caller,
}

impl Rig {
    async fn new(settings: &str) -> Self {
        let options = DeploymentOptions { auth: true, test_commands: false, ..DeploymentOptions::for_tests(1) };
        let server = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
        support::first_user(&server, "root", PASSWORD).await;
        let mut root = logged_in(&server.members()[0].address(), "admin.root", PASSWORD).await;
        create(&mut root, "lookup", &["userAdminAnyDatabase"]).await;
        create(&mut root, "reader", &["readAnyDatabase"]).await;
        create(&mut root, "writer", &["readWriteAnyDatabase"]).await;
        create(&mut root, "other", &["readWriteAnyDatabase"]).await;
        let text = format!(
            "upstream = \"mongodb://lookup:{PASSWORD}@{}/?directConnection=true\"\nauth = \"upstream\"\nlisten = \"127.0.0.1:0\"\n\
             {settings}",
            server.members()[0].address(),
        );
        Self { server, proxy: configured(&text).await, root }
    }

    async fn through(&self, user: &str) -> Caller {
        logged_in(self.proxy.address(), &format!("admin.{user}"), PASSWORD).await
    }

    async fn directly(&self, user: &str) -> Caller {
        logged_in(&self.server.members()[0].address(), &format!("admin.{user}"), PASSWORD).await
    }

    /// Upstream connections that are open, and by whom.
    async fn connections(&mut self) -> Vec<String> {
        let pipeline =
            vec![doc! { "$currentOp": { "allUsers": true, "idleConnections": true, "idleSessions": false } }];
        let asked = doc! { "aggregate": 1, "pipeline": pipeline, "cursor": { "batchSize": 100_000 } };
        let answer = self.root.command("admin", asked).await;
        let all = answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        let ours = all.iter().filter_map(|op| {
            let op = op.as_document()?;
            let name = op.get_document("clientMetadata").ok()?.get_document("driver").ok()?.get_str("name").ok()?;
            let user = op.get_array("effectiveUsers").ok()?.first()?.as_document()?.get_str("user").ok()?;
            (name == "mongomux").then(|| user.to_owned())
        });
        ours.collect()
    }
}

async fn create(root: &mut Caller, name: &str, roles: &[&str]) {
    let command = doc! { "createUser": name, "pwd": PASSWORD, "roles": roles.to_vec() };
    let answer = root.command("admin", command).await;
    assert_eq!(answer.get_f64("ok").unwrap(), 1.0, "{answer}");
}

/// Logs in with keys that are derived once: they are the same for all sockets of a user, and take long without optimisation.
async fn log_in_again(caller: &mut Caller, user: &str, keys: &mut Option<SaltedKeys>) {
    let client = ScramClient::new(Mechanism::Sha256, user, PASSWORD, ClientNonce::from_random([3; 24])).unwrap();
    let start = doc! {
        "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": payload(&client.client_first(), false),
        "options": { "skipEmptyExchange": true },
    };
    let first = caller.command("admin", start).await;
    let challenge = client.on_server_first(first.get_binary_generic("payload").unwrap()).unwrap();
    let keys = keys.get_or_insert_with(|| challenge.derivation().derive());
    let (proof, _) = challenge.client_final(keys);
    let proof = doc! { "saslContinue": 1, "conversationId": 1, "payload": payload(&proof, false) };
    let last = caller.command("admin", proof).await;
    assert_eq!(last.get_bool("done").ok(), Some(true), "{last}");
}

fn ok(answer: &Document) -> bool {
    answer.get_f64("ok").unwrap() == 1.0
}

fn without_times(mut answer: Document) -> Document {
    for key in ["$clusterTime", "operationTime", "electionId", "opTime"] {
        answer.remove(key);
    }
    answer
}

#[tokio::test]
async fn each_user_sees_what_the_server_itself_answers() {
    let rig = Rig::new("").await;
    for user in ["reader", "writer"] {
        let (mut ours, mut theirs) = (rig.through(user).await, rig.directly(user).await);
        for (database, command) in [
            ("test", doc! { "insert": "c", "documents": [{ "a": 1 }] }),
            ("test", doc! { "find": "c", "filter": { "_id": 99 } }),
            ("admin", doc! { "usersInfo": 1 }),
            ("test", doc! { "dropDatabase": 1, "writeConcern": { "w": 1 } }),
            ("admin", doc! { "serverStatus": 1 }),
            ("admin", doc! { "connectionStatus": 1 }),
            ("test", doc! { "createUser": "x", "pwd": "x", "roles": [] }),
        ] {
            let (our_answer, their_answer) =
                (ours.command(database, command.clone()).await, theirs.command(database, command.clone()).await);
            // What differs from call to call shows nothing.
            if command.contains_key("serverStatus") {
                assert_eq!(ok(&our_answer), ok(&their_answer));
                continue;
            }
            let masked = |answer: Document| {
                let text = without_times(answer).to_string();
                // Each of both has a session and a cluster time of its own in the error's text.
                text.split(", lsid").next().unwrap_or_default().to_owned()
            };
            assert_eq!(masked(our_answer), masked(their_answer), "{user}: {command}");
        }
    }
}

/// A hello begins the log-in by SCRAM-SHA-256 before it knows better, and drivers go on with what it has begun.
#[tokio::test]
async fn a_hello_begins_nothing_that_the_user_cannot_end() {
    let mut rig = Rig::new("").await;
    let old = doc! { "createUser": "old", "pwd": PASSWORD, "roles": [], "mechanisms": ["SCRAM-SHA-1"] };
    assert!(ok(&rig.root.command("admin", old).await));
    let addresses = [rig.proxy.address().clone(), rig.server.members()[0].address()];
    for (user, mechanism) in [("old", "SCRAM-SHA-256"), ("old", "SCRAM-SHA-1"), ("writer", "SCRAM-SHA-256")] {
        let mut told = Vec::new();
        for address in &addresses {
            let mut caller = Caller::to(address).await;
            let first = payload(format!("n,,n={user},r=rOprNGfwEbeRWgbNEkqO").as_bytes(), false);
            let begin = doc! { "saslStart": 1, "mechanism": mechanism, "payload": first, "db": "admin" };
            let name = format!("admin.{user}");
            let hello = doc! { "hello": 1, "saslSupportedMechs": name, "speculativeAuthenticate": begin };
            let answer = caller.command("admin", hello).await;
            told.push((answer.contains_key("speculativeAuthenticate"), answer.contains_key("saslSupportedMechs")));
        }
        assert_eq!(told[0], told[1], "{user}, {mechanism}");
        assert_eq!(told[0].0, (user, mechanism) != ("old", "SCRAM-SHA-256"));
    }
}

#[tokio::test]
async fn what_one_user_has_open_is_nobody_elses() {
    let rig = Rig::new("").await;
    let (mut writer, mut other) = (rig.through("writer").await, rig.through("other").await);
    let documents: Vec<Document> = (0..10).map(|id| doc! { "_id": id }).collect();
    assert!(ok(&writer.command("test", doc! { "insert": "c", "documents": documents }).await));

    let found = writer.command("test", doc! { "find": "c", "batchSize": 2 }).await;
    let cursor = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    let stolen = other.command("test", doc! { "getMore": cursor, "collection": "c" }).await;
    assert_eq!(stolen.get_i32("code").ok(), Some(13), "{stolen}");
    let killed = other.command("test", doc! { "killCursors": "c", "cursors": [cursor] }).await;
    assert_eq!(killed.get_i32("code").ok(), Some(13), "{killed}");
    assert!(ok(&writer.command("test", doc! { "getMore": cursor, "collection": "c" }).await));

    // The same session and number are two transactions.
    let session = doc! { "id": bson::Uuid::from_bytes([7; 16]) };
    let statement = |insert: i32| {
        doc! {
            "insert": "c", "documents": [{ "_id": insert }], "lsid": session.clone(), "txnNumber": 1_i64, "autocommit": false,
        }
    };
    let mut begin = statement(100);
    begin.insert("startTransaction", true);
    assert!(ok(&writer.command("test", begin).await));
    let joined = other.command("test", statement(101)).await;
    assert_eq!(joined.get_i32("code").ok(), Some(251), "{joined}");
    let end = doc! { "commitTransaction": 1, "lsid": session, "txnNumber": 1_i64, "autocommit": false };
    let committed = other.command("admin", end.clone()).await;
    assert_eq!(committed.get_i32("code").ok(), Some(251), "{committed}");
    let committed = writer.command("admin", end).await;
    assert!(ok(&committed), "{committed}");
    let count = writer.command("test", doc! { "count": "c", "query": { "_id": { "$gte": 100 } } }).await;
    assert_eq!(count.get_i32("n").ok(), Some(1), "{count}");
    let stats = http(rig.proxy.admin_address(), "GET", "/stats", "").await;
    for user in ["writer@admin", "other@admin"] {
        assert!(stats.contains(&format!("\"name\":\"{user}\",\"open\":1,\"pending\":0,\"waiting\":0")), "{stats}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_transaction_along_as_its_user() {
    let mut rig = Rig::new("").await;
    let mut writer = rig.through("writer").await;
    assert!(ok(&writer.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await));
    let update = doc! { "update": "c", "updates": [{ "q": { "_id": 1 }, "u": { "$set": { "a": 1 } } }] };
    let mut begin = update.clone();
    begin.extend(doc! {
        "lsid": { "id": bson::Uuid::from_bytes([8; 16]) }, "txnNumber": 1_i64, "autocommit": false, "startTransaction": true,
    });
    assert!(ok(&writer.command("test", begin).await));
    drop(writer);
    // Beyond the grace for a socket that comes back; a conflict as long as the transaction is open.
    let mut outside = update;
    outside.insert("maxTimeMS", 500);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(50);
    loop {
        let answer = rig.root.command("test", outside.clone()).await;
        if ok(&answer) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the server itself ends it after a minute: {answer}");
    }
}

#[tokio::test]
async fn a_new_password_counts_at_once_where_the_proxy_carries_it_out() {
    let mut rig = Rig::new("user_refresh_ms = 3600000").await;
    let mut writer = rig.through("writer").await;
    assert!(ok(&writer.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await));
    let mut root = rig.through("root").await;
    let answer = root.command("admin", doc! { "updateUser": "writer", "pwd": "another" }).await;
    assert!(ok(&answer), "{answer}");
    let mut again = Caller::to(rig.proxy.address()).await;
    let refused = again.log_in("admin.writer", PASSWORD, USUAL).await;
    assert_eq!(refused.last().unwrap().get_i32("code").ok(), Some(18), "{refused:?}");
    let mut again = logged_in(rig.proxy.address(), "admin.writer", "another").await;
    assert!(ok(&again.command("test", doc! { "find": "c" }).await));

    // Who had logged in by the old one has to do so again, and so has a user that is dropped.
    let answer = writer.command("test", doc! { "find": "c" }).await;
    assert_eq!(answer.get_i32("code").ok(), Some(13), "{answer}");
    let mut other = rig.through("other").await;
    assert!(ok(&other.command("test", doc! { "find": "c" }).await));
    assert!(ok(&root.command("admin", doc! { "dropUser": "other" }).await));
    eventually("the end of its connections", async || !rig.connections().await.contains(&"other".to_owned())).await;
    let answer = other.command("test", doc! { "find": "c" }).await;
    assert_eq!(answer.get_i32("code").ok(), Some(13), "{answer}");
    assert!(answer.get_str("errmsg").unwrap().contains("log in again"), "{answer}");
    assert_eq!(other.answer().await, None, "the socket is closed");
    let refused = Caller::to(rig.proxy.address()).await.log_in("admin.other", PASSWORD, USUAL).await;
    assert_eq!(refused.last().unwrap().get_i32("code").ok(), Some(18), "{refused:?}");
}

#[tokio::test]
async fn a_user_that_is_made_anew_is_somebody_else() {
    let mut rig = Rig::new("user_refresh_ms = 1000").await;
    let mut old = rig.through("other").await;
    assert!(ok(&old.command("test", doc! { "find": "c" }).await));
    assert!(ok(&rig.root.command("admin", doc! { "dropUser": "other" }).await));
    create(&mut rig.root, "other", &["root"]).await;
    // The same name and password: nothing but what the server stores tells them apart.
    let proxy = rig.proxy.address().clone();
    eventually("what is new is known", async || {
        let mut new = Caller::to(&proxy).await;
        let answers = new.log_in("admin.other", PASSWORD, USUAL).await;
        answers.last().unwrap().get_bool("done").ok() == Some(true)
            && ok(&new.command("admin", doc! { "serverStatus": 1 }).await)
    })
    .await;
    let answer = old.command("admin", doc! { "serverStatus": 1 }).await;
    assert_eq!(answer.get_i32("code").ok(), Some(13), "{answer}");
    assert!(answer.get_str("errmsg").unwrap().contains("log in again"), "{answer}");
}

/// A proxy whose clients are users of a file, before the server of `rig`.
async fn with_file(rig: &Rig, users: &str) -> (Proxy, tempfile::TempDir) {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("users.toml");
    std::fs::write(&file, users).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "upstream = \"mongodb://root:{PASSWORD}@{}/?directConnection=true\"\nauth = \"users\"\nlisten = \"127.0.0.1:0\"\n\
         users_file = {file:?}\n",
        rig.server.members()[0].address()
    );
    (configured(&text).await, directory)
}

/// Where the server cannot tell them apart, the proxy does.
#[tokio::test]
async fn users_of_a_file_that_share_a_credential_do_not_share_what_they_open() {
    let rig = Rig::new("").await;
    let users = "[[user]]\nname = \"a\"\npassword = \"a\"\n[[user]]\nname = \"b\"\npassword = \"b\"\n";
    let (proxy, _directory) = with_file(&rig, users).await;
    let mut a = logged_in(proxy.address(), "admin.a", "a").await;
    let mut b = logged_in(proxy.address(), "admin.b", "b").await;
    let documents: Vec<Document> = (0..10).map(|id| doc! { "_id": id }).collect();
    assert!(ok(&a.command("test", doc! { "insert": "c", "documents": documents }).await));
    let found = a.command("test", doc! { "find": "c", "batchSize": 2 }).await;
    let cursor = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    for command in [doc! { "getMore": cursor, "collection": "c" }, doc! { "killCursors": "c", "cursors": [cursor] }] {
        let answer = b.command("test", command).await;
        assert_eq!(answer.get_i32("code").ok(), Some(13), "{answer}");
    }
    assert!(ok(&a.command("test", doc! { "getMore": cursor, "collection": "c" }).await));

    let session = doc! { "id": bson::Uuid::from_bytes([9; 16]) };
    let insert = |id: i32| {
        doc! {
            "insert": "c", "documents": [{ "_id": id }], "lsid": session.clone(), "txnNumber": 1_i64, "autocommit": false,
        }
    };
    let mut begin = insert(100);
    begin.insert("startTransaction", true);
    assert!(ok(&a.command("test", begin.clone()).await));
    for command in [insert(101), begin] {
        let answer = b.command("test", command).await;
        assert_eq!(answer.get_i32("code").ok(), Some(251), "{answer}");
    }
    let commit = doc! { "commitTransaction": 1, "lsid": session.clone(), "txnNumber": 1_i64, "autocommit": false };
    let answer = b.command("admin", commit.clone()).await;
    assert_eq!(answer.get_i32("code").ok(), Some(251), "{answer}");
    assert!(ok(&a.command("admin", commit).await));
    let count = a.command("test", doc! { "count": "c", "query": { "_id": { "$gte": 100 } } }).await;
    assert_eq!(count.get_i32("n").ok(), Some(1), "{count}");
}

#[tokio::test]
async fn users_of_a_file_may_go_as_users_of_their_own_and_a_wrong_one_disturbs_nobody() {
    let rig = Rig::new("").await;
    let own = |user: &str, password: &str| {
        format!(
            "[[user]]\nname = \"{user}\"\npassword = \"local\"\nupstream = {{ username = \"{user}\", password = \"{password}\" }}\n"
        )
    };
    let users = |password: &str| own("reader", PASSWORD) + &own("writer", password);
    let (proxy, directory) = with_file(&rig, &users("mistyped")).await;
    let mut reader = logged_in(proxy.address(), "admin.reader", "local").await;
    let mut writer = logged_in(proxy.address(), "admin.writer", "local").await;
    let insert = doc! { "insert": "c", "documents": [{ "a": 1 }] };
    let answer = reader.command("test", insert.clone()).await;
    assert_eq!(answer.get_i32("code").ok(), Some(13), "{answer}");
    let answer = writer.command("test", insert.clone()).await;
    assert_eq!(answer.get_i32("code").ok(), Some(13), "{answer}");
    assert_eq!(writer.answer().await, None, "it has to log in again");
    assert!(ok(&reader.command("test", doc! { "find": "c" }).await));
    assert_eq!(proxy.clusters()[0].not_ready(), None);
    assert_eq!(proxy.clusters()[0].refusal(), "", "no breaker opens");

    std::fs::write(directory.path().join("users.toml"), users(PASSWORD)).unwrap();
    drop(proxy.reload().await);
    let address = proxy.address().clone();
    eventually("the corrected password", async || {
        let mut writer = logged_in(&address, "admin.writer", "local").await;
        ok(&writer.command("test", insert.clone()).await)
    })
    .await;
}

#[tokio::test]
async fn a_change_elsewhere_is_noticed_in_time() {
    let mut rig = Rig::new("user_refresh_ms = 1000").await;
    let mut writer = rig.through("writer").await;
    assert!(ok(&writer.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await));
    assert!(ok(&rig.root.command("admin", doc! { "updateUser": "writer", "pwd": "another" }).await));
    eventually("the end of its connections", async || !rig.connections().await.contains(&"writer".to_owned())).await;
    let answer = writer.command("test", doc! { "find": "c" }).await;
    assert_eq!(answer.get_i32("code").ok(), Some(13), "{answer}");
    let mut again = logged_in(rig.proxy.address(), "admin.writer", "another").await;
    assert!(ok(&again.command("test", doc! { "find": "c" }).await));
}

#[tokio::test]
async fn a_user_that_may_not_look_users_up_is_told_of() {
    let rig = Rig::new("").await;
    let text = format!(
        "upstream = \"mongodb://reader:{PASSWORD}@{}/\"\nauth = \"upstream\"\nlisten = \"127.0.0.1:0\"\n",
        rig.server.members()[0].address()
    );
    let proxy = configured(&text).await;
    let answer = Caller::to(proxy.address()).await.log_in("admin.writer", PASSWORD, USUAL).await;
    let answer = answer.last().unwrap();
    assert!(answer.get_str("errmsg").unwrap().contains("viewUser"), "{answer}");
}

/// Many more users than connections: the bound holds on the server, and nobody's answer is another's.
#[tokio::test]
async fn two_hundred_users_share_twenty_connections() {
    const USERS: usize = 200;
    const SOCKETS: usize = 10;
    let mut rig = Rig::new("max_pool_size = 20\nmax_connecting = 8\nwait_queue_timeout_ms = 120000").await;
    assert!(ok(&rig.root.command("admin", doc! { "setParameter": 1, "scramSHA256IterationCount": 5_000 }).await));
    for user in 0..USERS {
        // Nobody else may do anything there.
        let roles = vec![doc! { "role": "readWrite", "db": format!("db{user}") }];
        let command = doc! { "createUser": format!("u{user}"), "pwd": PASSWORD, "roles": roles };
        assert!(ok(&rig.root.command("admin", command).await));
    }
    let mut sockets = Vec::new();
    for user in 0..USERS {
        let name = format!("u{user}");
        let (mut callers, mut keys) = (Vec::new(), None);
        for _ in 0..SOCKETS {
            let mut caller = Caller::to(rig.proxy.address()).await;
            log_in_again(&mut caller, &name, &mut keys).await;
            callers.push(caller);
        }
        sockets.push(callers);
    }
    let mut all = tokio::task::JoinSet::new();
    for (user, callers) in sockets.into_iter().enumerate() {
        for (socket, mut caller) in callers.into_iter().enumerate() {
            all.spawn(async move {
                let database = format!("db{user}");
                for round in 0..3 {
                    let id = format!("{socket}-{round}");
                    let insert =
                        doc! { "insert": "c", "documents": [{ "_id": &id, "user": i64::try_from(user).unwrap() }] };
                    let answer = caller.command(&database, insert).await;
                    assert!(ok(&answer), "{answer}");
                    let found = caller.command(&database, doc! { "find": "c", "filter": { "_id": &id } }).await;
                    assert_eq!(first_batch(&found), [doc! { "_id": &id, "user": i64::try_from(user).unwrap() }]);
                }
            });
        }
    }
    let (mut most, mut looks) = (0, tokio::time::interval(Duration::from_millis(100)));
    while !all.is_empty() {
        let open = rig.connections().await.len();
        most = most.max(open);
        assert!(open <= 20, "{open} upstream connections");
        while let Some(done) = all.try_join_next() {
            done.unwrap();
        }
        looks.tick().await;
    }
    assert!(most >= 10, "{most}: nobody was there to share with");
    for user in 0..USERS {
        let count = rig.root.command(&format!("db{user}"), doc! { "count": "c" }).await;
        assert_eq!(count.get_i32("n").ok(), i32::try_from(SOCKETS * 3).ok());
    }
}

#[tokio::test]
async fn clients_that_are_only_observed_have_connections_of_their_users() {
    let mut rig = Rig::new("pooled_clients_percent = 0\nmax_pool_size = 3\nuser_refresh_ms = 1000\n").await;
    let mut writers = [rig.through("writer").await, rig.through("writer").await, rig.through("other").await];
    for writer in &mut writers {
        assert!(ok(&writer.command("test", doc! { "insert": "c", "documents": [{}] }).await));
    }
    let mut reader = rig.through("reader").await;
    assert_eq!(first_batch(&reader.command("test", doc! { "find": "c" }).await).len(), 3);
    let refused = reader.command("test", doc! { "insert": "c", "documents": [{}] }).await;
    assert_eq!(refused.get_i32("code").ok(), Some(13), "{refused}");
    let mut of_users = rig.connections().await;
    of_users.retain(|user| user != "lookup");
    of_users.sort();
    assert_eq!(of_users, ["other", "reader", "writer", "writer"]);

    // Who logs in as somebody else has another connection.
    assert!(ok(&reader.command("admin", doc! { "logout": 1 }).await));
    reader.log_in("admin.writer", PASSWORD, USUAL).await;
    let inserted = reader.command("test", doc! { "insert": "c", "documents": [{}] }).await;
    assert!(ok(&inserted) && inserted.get_i32("n").ok() == Some(1), "{inserted}");

    // Of who was dropped not even the idle ones are left.
    assert!(ok(&rig.root.command("admin", doc! { "dropUser": "other" }).await));
    eventually("the end of its connections", async || !rig.connections().await.contains(&"other".to_owned())).await;
    let answer = writers[2].command("test", doc! { "find": "c" }).await;
    assert_eq!(answer.get_i32("code").ok(), Some(13), "{answer}");
    assert!(ok(&writers[0].command("test", doc! { "find": "c" }).await));
}
