//! Clients log in to the proxy as to a server, and whoever has not gets nothing else.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use bson::{Bson, Document, doc};
use mongomux::auth::users::Verifier;
use mongomux::auth::{ClientNonce, Mechanism, scram::ScramClient};
use mongomux::config::Address;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use support::hold::eventually;
use support::log_in::{Caller, USUAL, Way, logged_in, payload};
use support::proxy::{Proxy, configured};
use support::{first_batch, raw};

const PASSWORD: &str = "correct-horse_7";

const NONCE: &str = "rOprNGfwEbeRWgbNEkqOrOprNGfwEbeR";

const USERS: &str = r#"
    [[user]]
    name = "root"
    password = "correct-horse_7"
    roles = [{ role = "root", db = "admin" }]

    [[user]]
    name = "a=b,c"
    password = "correct-horse_7"
    roles = [{ role = "readWrite", db = "test" }]

    [[user]]
    name = "local"
    database = "test"
    password = "correct-horse_7"
    roles = [{ role = "readWrite", db = "test" }]

    [[user]]
    name = "ldap"
    database = "$external"
    password = "correct-horse_7"
"#;

/// A proxy whose clients are the users of a file, before a server whose users have the same names.
struct Rig {
    server: Deployment,
    proxy: Proxy,
    directory: tempfile::TempDir,
}

impl Rig {
    async fn new(settings: &str) -> Self {
        let options = DeploymentOptions { auth: true, test_commands: false, ..DeploymentOptions::for_tests(0) };
        let server = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
        support::first_user(&server, "root", PASSWORD).await;
        let mut root = logged_in(&server.members()[0].address(), "admin.root", PASSWORD).await;
        for (database, name) in [("admin", "a=b,c"), ("test", "local")] {
            let roles = [doc! { "role": "readWrite", "db": "test" }];
            let create = doc! { "createUser": name, "pwd": PASSWORD, "roles": roles };
            assert_eq!(root.command(database, create).await, doc! { "ok": 1.0 });
        }
        let directory = tempfile::tempdir().unwrap();
        write_users(&directory.path().join("users.toml"), USERS);
        let text = format!(
            "upstream = \"mongodb://root:{PASSWORD}@{}/?directConnection=true\"\nauth = \"users\"\n\
             users_file = \"{}\"\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n{settings}",
            server.members()[0].address(),
            directory.path().join("users.toml").display(),
            directory.path().join("proxy.sock").display(),
        );
        Self { server, proxy: configured(&text).await, directory }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("users.toml")
    }

    fn logins(&self, mechanism: &str, outcome: &str) -> f64 {
        self.proxy.metric(&format!("mongomux_logins_total{{mechanism=\"{mechanism}\",outcome=\"{outcome}\"}}"))
    }

    async fn both(&self) -> [Caller; 2] {
        [Caller::to(&self.server.members()[0].address()).await, Caller::to(self.proxy.address()).await]
    }
}

fn write_users(path: &std::path::Path, text: &str) {
    // As an editor does: whole, or not at all.
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn first(user: &str) -> Bson {
    payload(format!("n,,n={user},r={NONCE}").as_bytes(), false)
}

fn start(user: &str) -> Document {
    doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": first(user) }
}

/// With what is random or of one side only taken out: nonces, salts and signatures keep their length, the rest goes.
fn comparable(answer: &Document) -> Document {
    let mut kept = Document::new();
    for (name, value) in answer {
        let value = match (name.as_str(), value) {
            ("payload", Bson::Binary(binary)) => Bson::from(format!("{} bytes", binary.bytes.len())),
            ("payload", Bson::String(text)) => Bson::from(format!("{} characters", text.len())),
            ("nonce", Bson::String(_)) => Bson::from("a number"),
            // A server lists them as its hash table has them.
            ("saslSupportedMechs", Bson::Array(listed)) => {
                let mut names: Vec<&str> = listed.iter().filter_map(Bson::as_str).collect();
                names.sort_unstable();
                names.into()
            }
            ("speculativeAuthenticate", Bson::Document(inner)) => comparable(inner).into(),
            ("topologyVersion" | "localTime" | "connectionId" | "msg", _) => continue,
            (_, value) => value.clone(),
        };
        kept.insert(name, value);
    }
    kept
}

fn code_of(answer: &Document) -> (i32, &str) {
    (answer.get_i32("code").unwrap_or_default(), answer.get_str("codeName").unwrap_or_default())
}

#[tokio::test]
async fn every_way_to_log_in_goes_as_on_a_server() {
    let rig = Rig::new("failed_log_ins = 0\n").await;
    for mechanism in [Mechanism::Sha1, Mechanism::Sha256] {
        for flags in 0..8 {
            let way = Way { mechanism, skip_empty: flags & 1 > 0, legacy: flags & 2 > 0, text: flags & 4 > 0 };
            for user in ["admin.root", "admin.a=b,c", "test.local"] {
                for password in [PASSWORD, "wrong"] {
                    let mut told = Vec::new();
                    for mut caller in rig.both().await {
                        let mut answers = caller.log_in(user, password, way).await;
                        answers.push(caller.command("admin", doc! { "connectionStatus": 1 }).await);
                        told.push(answers.iter().map(comparable).collect::<Vec<_>>());
                    }
                    assert_eq!(told[0], told[1], "{user} {password} {way:?}");
                    let logged_in = told[1].last().unwrap().to_string().contains("user\"");
                    assert_eq!(logged_in, password == PASSWORD, "{:?}", told[1]);
                }
            }
        }
    }
    assert_eq!(rig.logins("SCRAM-SHA-1", "succeeded"), 24.0);
    assert_eq!(rig.logins("SCRAM-SHA-1", "failed"), 24.0);
}

/// One conversation after the other, on a socket each, to both: code, name, text and order of fields are the same.
#[tokio::test]
async fn what_is_wrong_is_told_in_the_servers_words() {
    let rig = Rig::new("failed_log_ins = 0\n").await;
    let sha256 = |extra: Document| {
        let mut command = start("root");
        command.extend(extra);
        command
    };
    let mechanism = |name: Bson| doc! { "saslStart": 1, "mechanism": name, "payload": first("root") };
    let raw_payload =
        |bytes: &[u8]| doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": payload(bytes, false) };
    let with = |text: &str| raw_payload(format!("{text}r={NONCE}").as_bytes());
    let next =
        |id: Bson, bytes: &[u8]| doc! { "saslContinue": 1, "conversationId": id, "payload": payload(bytes, false) };
    let speculative = |inner: Bson| doc! { "hello": 1, "speculativeAuthenticate": inner };
    let begun = |db: &str| {
        let mut inner = start("root");
        inner.insert("db", db);
        inner.insert("options", doc! { "skipEmptyExchange": true });
        Bson::from(inner)
    };
    let status = doc! { "connectionStatus": 1 };
    let mut conversations: Vec<Vec<(&str, Document)>> = vec![
        vec![("admin", next(1.into(), b""))],
        vec![("admin", doc! { "logout": 1 }), ("admin", doc! { "getnonce": 1 }), ("admin", status.clone())],
        vec![("admin", doc! { "connectionStatus": 1, "showPrivileges": true })],
        vec![("admin", mechanism("NOPE".into()))],
        vec![("admin", mechanism("PLAIN".into())), ("$external", mechanism("PLAIN".into()))],
        vec![("admin", mechanism(1.into()))],
        vec![("admin", doc! { "saslStart": 1, "payload": first("root") })],
        vec![("admin", doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-256" })],
        vec![("admin", doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": 1 })],
        vec![("admin", doc! { "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": "*" })],
        vec![("admin", sha256(doc! { "options": 1 }))],
        vec![("admin", sha256(doc! { "options": { "x": 1 } }))],
        vec![("admin", sha256(doc! { "options": { "skipEmptyExchange": 1 } }))],
        vec![("admin", sha256(doc! { "bogus": 1 }))],
        vec![("admin", sha256(doc! { "autoAuthorize": 1 })), ("admin", sha256(doc! { "autoAuthorize": "x" }))],
        vec![("admin", with("y,,n=root,")), ("admin", with("n,a=root,n=root,"))],
        vec![("admin", with("p=tls-unique,,n=root,"))],
        vec![("admin", with("n,,n=a=3Db=2Cc,")), ("admin", with("n,,n=a=b,"))],
        vec![("admin", with("n,,n=,")), ("admin", with("n,,m=x,n=root,")), ("admin", raw_payload(b"n,,n=root,r="))],
        vec![
            ("admin", raw_payload(b"")),
            ("admin", raw_payload(b"garbage")),
            ("admin", raw_payload(b"n,,n=\xff,r=abcdefgh")),
        ],
        vec![("$external", start("root"))],
        vec![("admin", start("root")), ("admin", next(2.into(), b"x")), ("admin", next(1.into(), b"x"))],
        vec![("admin", start("root")), ("admin", next(1.into(), b"garbage")), ("admin", next(1.into(), b""))],
        vec![("admin", start("root")), ("admin", next(1.0.into(), b"x"))],
        vec![("admin", start("root")), ("admin", next("x".into(), b"x"))],
        vec![("admin", start("root")), ("admin", doc! { "saslContinue": 1, "payload": payload(b"", false) })],
        vec![("admin", start("root")), ("admin", doc! { "saslContinue": 1, "conversationId": 1 })],
        vec![("admin", start("root")), ("admin", start("root"))],
        vec![("test", doc! { "find": "x" }), ("test", doc! { "find": 1 })],
        vec![("admin", speculative(begun("admin"))), ("admin", next(1.into(), b"garbage"))],
        vec![(
            "admin",
            speculative(doc! { "saslStart": 1, "mechanism": "NOPE", "payload": first("a"), "db": "admin" }.into()),
        )],
        vec![("admin", speculative(doc! { "authenticate": 1, "mechanism": "MONGODB-X509", "db": "$external" }.into()))],
        vec![("admin", speculative(start("root").into()))],
        vec![("admin", speculative(1.into()))],
        vec![("admin", doc! { "hello": 1, "saslSupportedMechs": 1 })],
        vec![(
            "admin",
            doc! { "saslStart": 1, "mechanism": "NOPE", "payload": first("a"), "apiVersion": "1", "apiStrict": true },
        )],
    ];
    for name in ["admin.root", "admin.a=b,c", "test.local", "root"] {
        conversations.push(vec![("admin", doc! { "hello": 1, "saslSupportedMechs": name })]);
        conversations.push(vec![(
            "admin",
            doc! { "isMaster": 1, "saslSupportedMechs": name, "speculativeAuthenticate": begun("admin") },
        )]);
    }
    for mechanism in [Bson::from("MONGODB-X509"), "MONGODB-CR".into(), "SCRAM-SHA-256".into(), 1.into()] {
        for database in ["admin", "$external"] {
            conversations.push(vec![(database, doc! { "authenticate": 1, "mechanism": &mechanism })]);
        }
    }
    conversations.push(vec![("admin", doc! { "authenticate": 1 })]);
    // The parts of a hello that are about log-ins; the rest is ours.
    let shown = |command: &Document, answer: &Document| {
        let mut shown = comparable(answer);
        if command.keys().next().is_some_and(|name| name == "hello" || name == "isMaster")
            && !answer.contains_key("code")
        {
            shown = shown.into_iter().filter(|(name, _)| name.starts_with('s') || name == "ok").collect();
        }
        shown
    };
    for conversation in conversations {
        let [mut server, mut proxy] = rig.both().await;
        for (database, command) in &conversation {
            let expected = server.command(database, command.clone()).await;
            let found = proxy.command(database, command.clone()).await;
            assert_eq!(shown(command, &found), shown(command, &expected), "{database} {conversation:?}");
        }
    }
}

#[tokio::test]
async fn a_socket_is_one_user_until_it_logs_out() {
    let rig = Rig::new("").await;
    let mut told = Vec::new();
    for mut caller in rig.both().await {
        let mut answers = Vec::new();
        for (user, password) in [
            ("admin.root", PASSWORD),
            ("admin.root", PASSWORD),
            ("admin.a=b,c", PASSWORD),
            ("test.local", PASSWORD),
            ("admin.root", "wrong"),
        ] {
            answers.extend(caller.log_in(user, password, USUAL).await);
            answers.push(caller.command("admin", doc! { "connectionStatus": 1 }).await);
        }
        for (database, command) in [
            ("test", doc! { "logout": 1 }),
            ("admin", doc! { "connectionStatus": 1 }),
            ("admin", doc! { "logout": 1 }),
            ("admin", doc! { "connectionStatus": 1 }),
            ("admin", doc! { "logout": 1 }),
            ("test", doc! { "find": "c" }),
        ] {
            answers.push(caller.command(database, command).await);
        }
        answers.extend(caller.log_in("test.local", PASSWORD, USUAL).await);
        answers.push(caller.command("admin", doc! { "connectionStatus": 1 }).await);
        told.push(answers.iter().map(comparable).collect::<Vec<_>>());
    }
    assert_eq!(told[1], told[0]);
    let codes: Vec<i32> = told[1].iter().map(|answer| code_of(answer).0).filter(|code| *code != 0).collect();
    assert_eq!(codes, [5_626_702, 5_626_701, 18, 13, 13]);
}

#[tokio::test]
async fn a_log_in_that_a_hello_begins_goes_on() {
    let rig = Rig::new("").await;
    let mut caller = Caller::to(rig.proxy.address()).await;
    let client = ScramClient::new(Mechanism::Sha256, "root", PASSWORD, ClientNonce::from_random([3; 24])).unwrap();
    let begin = doc! {
        "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": payload(&client.client_first(), false), "db": "admin",
        "options": { "skipEmptyExchange": true },
    };
    let hello = doc! { "hello": 1, "speculativeAuthenticate": begin, "saslSupportedMechs": "admin.root" };
    let greeted = caller.command("admin", hello).await;
    assert_eq!(greeted.keys().last().unwrap(), "ok");
    let mut answers = vec![greeted.get_document("speculativeAuthenticate").unwrap().clone()];
    // A monitor's question in between changes nothing.
    caller.command("admin", doc! { "hello": 1 }).await;
    caller.go_on(client, "admin", &mut answers, USUAL).await;
    assert_eq!(answers[1].get_bool("done").ok(), Some(true));
    assert_eq!(first_batch(&caller.command("test", doc! { "find": "c" }).await).len(), 0);
}

/// The names that a server knows, one by one: those that it serves are served, the others have its code and its words.
#[tokio::test]
async fn who_has_not_logged_in_gets_what_a_server_gives() {
    let rig = Rig::new("").await;
    let mut root = logged_in(&rig.server.members()[0].address(), "admin.root", PASSWORD).await;
    let known = root.command("admin", doc! { "listCommands": 1 }).await;
    let mut names: Vec<String> = known.get_document("commands").unwrap().keys().cloned().collect();
    names.extend(["nonsense".to_owned(), "Find".to_owned()]);
    // What changes the server's state on the way to its answer, and what is answered by an error before rights are looked at.
    let skipped = [
        "saslStart",
        "saslContinue",
        "authenticate",
        "getLastError",
        "waitForFailPoint",
        "hello",
        "isMaster",
        "ismaster",
        "isdbgrid",
    ];
    let mut compared = 0;
    for name in names.iter().filter(|name| !name.starts_with('_') && !skipped.contains(&name.as_str())) {
        let [mut server, mut proxy] = rig.both().await;
        let expected = server.command("admin", doc! { name: 1 }).await;
        let found = proxy.command("admin", doc! { name: 1 }).await;
        assert_eq!(code_of(&found), code_of(&expected), "{name}: {found}, expected {expected}");
        if expected.get_i32("code").ok() == Some(13) {
            assert_eq!(found.get_str("errmsg").unwrap(), expected.get_str("errmsg").unwrap());
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

#[tokio::test]
async fn commands_go_on_only_after_a_log_in_in_every_form_that_they_come_in() {
    let rig = Rig::new("").await;
    let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }], "$db": "test" };
    let mut caller = Caller::to(rig.proxy.address()).await;
    caller.send(&raw::command(insert.clone())).await;
    assert_eq!(code_of(&caller.answer().await.unwrap()), (13, "Unauthorized"));
    caller.send(&raw::compressed(&raw::command(insert.clone()), 2)).await;
    let mut caller = Caller::to(rig.proxy.address()).await;
    // Nobody waits for an answer to this one.
    caller.send(&raw::op_msg(2, &[&raw::body(&insert)])).await;
    for command in [
        doc! { "getMore": 1_i64, "collection": "c" },
        doc! { "killCursors": "c", "cursors": [1_i64] },
        doc! { "commitTransaction": 1, "lsid": support::new_lsid(), "txnNumber": 1_i64, "autocommit": false },
        doc! { "endSessions": [] },
        doc! { "connPoolStats": 1 },
        doc! { "killAllSessions": [] },
    ] {
        let answer = caller.command("admin", command).await;
        assert_eq!(code_of(&answer), (13, "Unauthorized"), "{answer}");
    }
    let mut caller = logged_in(rig.proxy.address(), "admin.root", PASSWORD).await;
    let count = caller.command("test", doc! { "count": "c" }).await;
    assert_eq!(count.get_i32("n").ok(), Some(0), "nothing was written");
}

#[tokio::test]
async fn unknown_users_look_like_known_ones() {
    let rig = Rig::new("failed_log_ins = 0\n").await;
    let mut asked = Vec::new();
    for user in ["admin.root", "admin.nope"] {
        let mut caller = Caller::to(rig.proxy.address()).await;
        let hello = caller.command("admin", doc! { "hello": 1, "saslSupportedMechs": user }).await;
        let mechanisms = hello.get_array("saslSupportedMechs").unwrap().clone();
        let answers: Vec<Document> = caller.log_in(user, "wrong", USUAL).await.iter().map(comparable).collect();
        asked.push((mechanisms, answers));
    }
    assert_eq!(asked[0], asked[1]);
    assert_eq!(code_of(&asked[1].1[1]), (18, "AuthenticationFailed"));
    // Its salt is the same each time, and another one than that of its neighbour.
    let salt = async |user: &str| {
        let answer = Caller::to(rig.proxy.address()).await.command("admin", start(user)).await;
        let text = String::from_utf8(answer.get_binary_generic("payload").unwrap().clone()).unwrap();
        text.split(",s=").nth(1).unwrap().to_owned()
    };
    assert_eq!(salt("nope").await, salt("nope").await);
    assert_ne!(salt("nope").await, salt("nopf").await);
}

#[tokio::test]
async fn users_that_change_are_told_once_and_closed_and_others_stay() {
    let rig = Rig::new("").await;
    let root = async || logged_in(rig.proxy.address(), "admin.root", PASSWORD).await;
    let [mut changed, mut pings, mut sends] = [root().await, root().await, root().await];
    let [mut asks, mut again] = [root().await, root().await];
    let mut stays = logged_in(rig.proxy.address(), "test.local", PASSWORD).await;
    write_users(&rig.file(), "[[user]]\nname = 1\n");
    drop(rig.proxy.reload().await);
    write_users(&rig.file(), &USERS.replacen("correct-horse_7", "another", 1));
    drop(rig.proxy.reload().await);
    eventually("the new password counts", async || {
        let mut caller = Caller::to(rig.proxy.address()).await;
        caller.log_in("admin.root", "another", USUAL).await.last().unwrap().get_f64("ok").ok() == Some(1.0)
    })
    .await;
    // A hello is answered as ever: monitors hold the same sockets.
    assert_eq!(changed.command("admin", doc! { "hello": 1 }).await.get_f64("ok").ok(), Some(1.0));
    let told = changed.command("test", doc! { "find": "c" }).await;
    assert_eq!(code_of(&told), (13, "Unauthorized"));
    assert!(told.get_str("errmsg").unwrap().contains("log in again"), "{told}");
    assert!(changed.answer().await.is_none(), "closed");
    // What goes upstream before a log-in does not after it.
    let told = pings.command("admin", doc! { "ping": 1 }).await;
    assert_eq!(code_of(&told), (13, "Unauthorized"));
    assert!(pings.answer().await.is_none(), "closed");
    assert_eq!(rig.proxy.metric("mongomux_client_connections_closed_total{reason=\"revoked\"}"), 2.0);
    sends.send(&raw::command(doc! { "hello": 1, "comment": "x".repeat(70_000), "$db": "admin" })).await;
    assert!(sends.answer().await.is_none(), "no more than who has not logged in may send");
    let hello = raw::command(doc! { "hello": 1, "$db": "admin" });
    for _ in 0..200 {
        asks.send(&hello).await;
    }
    let mut answered = 0;
    while asks.answer().await.is_some() {
        answered += 1;
    }
    assert!((32..100).contains(&answered), "{answered}");
    let answers = again.log_in("admin.root", "another", USUAL).await;
    assert_eq!(answers.last().unwrap().get_bool("done").ok(), Some(true), "{answers:?}");
    assert_eq!(stays.command("test", doc! { "find": "c" }).await.get_f64("ok").ok(), Some(1.0));
}

#[tokio::test]
async fn many_failures_from_one_address_make_it_wait() {
    let rig = Rig::new("failed_log_ins = 3\n").await;
    for _ in 0..3 {
        let answers = Caller::to(rig.proxy.address()).await.log_in("admin.root", "wrong", USUAL).await;
        assert_eq!((answers.len(), code_of(answers.last().unwrap()).0), (2, 18));
    }
    let mut caller = Caller::to(rig.proxy.address()).await;
    let answers = caller.log_in("admin.root", PASSWORD, USUAL).await;
    assert_eq!((answers.len(), code_of(&answers[0]).0), (1, 18), "not looked at");
    assert!(rig.logins("SCRAM-SHA-256", "paused") >= 1.0);
    eventually("the pause is over", async || {
        Caller::to(rig.proxy.address()).await.log_in("admin.root", PASSWORD, USUAL).await.len() == 2
    })
    .await;
}

#[tokio::test]
async fn an_account_of_ones_own_buys_no_tries_at_others() {
    let rig = Rig::new("failed_log_ins = 3\n").await;
    let wrong = async || {
        let answers = Caller::to(rig.proxy.address()).await.log_in("admin.root", "wrong", USUAL).await;
        assert_eq!((answers.len(), code_of(answers.last().unwrap()).0), (2, 18));
    };
    wrong().await;
    wrong().await;
    logged_in(rig.proxy.address(), "test.local", PASSWORD).await;
    wrong().await;
    let answers = Caller::to(rig.proxy.address()).await.log_in("test.local", PASSWORD, USUAL).await;
    assert_eq!((answers.len(), code_of(&answers[0]).0), (1, 18), "not looked at");
}

#[tokio::test]
async fn who_is_logged_in_may_try_no_more_often() {
    let rig = Rig::new("").await;
    let mut caller = logged_in(rig.proxy.address(), "test.local", PASSWORD).await;
    let mut command = start("root");
    command.insert("$db", "admin");
    let begin = raw::command(command);
    for _ in 0..200 {
        caller.send(&begin).await;
    }
    let mut begun = 0;
    for _ in 0..200 {
        begun += u32::from(caller.answer().await.unwrap().get_f64("ok").ok() == Some(1.0));
    }
    assert!((28..100).contains(&begun), "{begun}");
    assert_eq!(caller.command("test", doc! { "find": "c" }).await.get_f64("ok").ok(), Some(1.0), "still logged in");
}

#[tokio::test]
async fn nobody_is_looked_up_for_an_address_that_has_to_wait() {
    let rig = Rig::new("failed_log_ins = 1\n").await;
    let verifier = Verifier::derive(Mechanism::Sha1, "one", "x", vec![7; 16], 4096).unwrap().to_text();
    write_users(&rig.file(), &format!("[[user]]\nname = \"one\"\nverifiers = [\"{verifier}\"]\n"));
    drop(rig.proxy.reload().await);
    let mechanisms = async || {
        let hello = doc! { "hello": 1, "saslSupportedMechs": "admin.one" };
        let greeted = Caller::to(rig.proxy.address()).await.command("admin", hello).await;
        greeted.get_array("saslSupportedMechs").unwrap().len()
    };
    eventually("the user is known", async || mechanisms().await == 1).await;
    eventually("nobody looks", async || {
        Caller::to(rig.proxy.address()).await.log_in("admin.nobody", "wrong", USUAL).await;
        mechanisms().await == 2
    })
    .await;
}

/// The server serves a ping to anybody, and looks at no session then.
#[tokio::test]
async fn who_has_not_logged_in_has_no_transaction() {
    let rig = Rig::new("").await;
    let ping = doc! {
        "ping": 1, "lsid": support::new_lsid(), "txnNumber": 1_i64, "autocommit": false, "startTransaction": true,
    };
    let [mut server, mut proxy] = rig.both().await;
    let expected = server.command("admin", ping.clone()).await;
    assert_eq!(proxy.command("admin", ping.clone()).await.get_f64("ok").ok(), expected.get_f64("ok").ok());
    let transactions = || rig.proxy.clusters()[0].pins.lock().unwrap().count().1;
    assert_eq!(transactions(), 0);
    let mut known = logged_in(rig.proxy.address(), "admin.root", PASSWORD).await;
    known.command("admin", ping).await;
    assert_eq!(transactions(), 1, "it would count");
}

#[tokio::test]
async fn who_has_not_logged_in_learns_nothing_of_the_rules() {
    let rig = Rig::new("deny_commands = [\"find\", \"ping\"]\n").await;
    let [mut server, mut proxy] = rig.both().await;
    let find = doc! { "find": "c" };
    assert_eq!(proxy.command("test", find.clone()).await, server.command("test", find.clone()).await);
    let mut known = logged_in(rig.proxy.address(), "admin.root", PASSWORD).await;
    let told = known.command("test", find).await;
    assert!(told.get_str("errmsg").unwrap().contains("deny_commands"), "{told}");
    let told = proxy.command("admin", doc! { "ping": 1 }).await;
    assert!(told.get_str("errmsg").unwrap().contains("deny_commands"), "what is served before is ruled: {told}");
}

#[tokio::test]
async fn names_that_nobody_has_are_refused_like_others() {
    let rig = Rig::new("failed_log_ins = 0\n").await;
    let long = "x".repeat(600);
    for user in [format!("admin.{long}"), format!("{long}.root"), format!("admin.{}", "ä".repeat(300))] {
        let mut caller = Caller::to(rig.proxy.address()).await;
        let hello = caller.command("admin", doc! { "hello": 1, "saslSupportedMechs": &user }).await;
        assert_eq!(hello.get_array("saslSupportedMechs").unwrap().len(), 2);
        let answers = caller.log_in(&user, PASSWORD, USUAL).await;
        assert_eq!((answers.len(), code_of(answers.last().unwrap()).0), (2, 18), "{answers:?}");
    }
}

#[tokio::test]
async fn who_has_not_logged_in_may_send_little() {
    let rig = Rig::new("handshake_timeout_ms = 300\n").await;
    let closed =
        |reason: &str| rig.proxy.metric(&format!("mongomux_client_connections_closed_total{{reason=\"{reason}\"}}"));
    let large = raw::command(doc! { "ping": 1, "comment": "x".repeat(70_000), "$db": "admin" });
    let mut caller = Caller::to(rig.proxy.address()).await;
    caller.send(&large[..100]).await;
    assert!(caller.answer().await.is_none(), "closed over what it announces");
    let mut caller = Caller::to(rig.proxy.address()).await;
    caller.send(&raw::compressed(&large, 2)).await;
    assert!(caller.answer().await.is_none(), "closed over what it would become");
    let mut caller = Caller::to(rig.proxy.address()).await;
    let hello = raw::command(doc! { "hello": 1, "$db": "admin" });
    for _ in 0..200 {
        caller.send(&hello).await;
    }
    let mut answered = 0;
    while caller.answer().await.is_some() {
        answered += 1;
    }
    assert!((32..100).contains(&answered), "{answered}");
    assert_eq!(closed("unauthenticated"), 1.0);
    let mut caller = Caller::to(rig.proxy.address()).await;
    assert_eq!(caller.command("admin", start("root")).await.get_bool("done").ok(), Some(false));
    assert!(caller.answer().await.is_none(), "whoever begins a log-in has to end it");
    assert_eq!(closed("handshake_timeout"), 1.0);
    // None of that holds for whoever is logged in.
    let mut caller = logged_in(rig.proxy.address(), "admin.root", PASSWORD).await;
    caller.send(&large).await;
    assert_eq!(caller.answer().await.unwrap().get_f64("ok").ok(), Some(1.0));
    for _ in 0..200 {
        caller.send(&hello).await;
    }
    for _ in 0..200 {
        assert!(caller.answer().await.is_some());
    }
}

#[tokio::test]
async fn passwords_in_the_clear_are_taken_where_nobody_reads_along() {
    use mongomux::sandbox::wire_client::WireClient;

    let rig = Rig::new("").await;
    let plain = |password: &str| {
        let text = format!("\0ldap\0{password}");
        doc! { "saslStart": 1, "mechanism": "PLAIN", "payload": payload(text.as_bytes(), false) }
    };
    let answer = Caller::to(rig.proxy.address()).await.command("$external", plain(PASSWORD)).await;
    assert_eq!(code_of(&answer), (334, "MechanismUnavailable"), "over TCP in the clear");
    let unix = Address::Unix(rig.directory.path().join("proxy.sock"));
    let mut client = WireClient::connect(&unix).await.unwrap();
    assert_eq!(client.reply("$external", plain("wrong")).await.unwrap().get_i32("code").ok(), Some(18));
    assert_eq!(client.reply("$external", plain(PASSWORD)).await.unwrap().get_bool("done").ok(), Some(true));
    assert_eq!(client.reply("test", doc! { "find": "c" }).await.unwrap().get_f64("ok").ok(), Some(1.0));
}

#[tokio::test]
async fn the_official_driver_logs_in() {
    let rig = Rig::new("").await;
    for options in ["", "authMechanism=SCRAM-SHA-1", "authMechanism=SCRAM-SHA-256", "authSource=admin"] {
        let uri = format!("mongodb://root:{PASSWORD}@{}/?{options}", rig.proxy.address());
        let client = mongodb::Client::with_uri_str(uri).await.unwrap();
        let found = client.database("test").run_command(doc! { "connectionStatus": 1 }).await.unwrap();
        assert!(found.to_string().contains("\"root\""), "{options}: {found}");
        client.database("test").collection::<Document>("d").insert_one(doc! {}).await.unwrap();
    }
    let uri = format!("mongodb://root:wrong@{}/?serverSelectionTimeoutMS=3000", rig.proxy.address());
    let client = mongodb::Client::with_uri_str(uri).await.unwrap();
    let error = client.database("test").run_command(doc! { "ping": 1 }).await.unwrap_err();
    assert!(error.to_string().contains("Authentication failed"), "{error}");
}
