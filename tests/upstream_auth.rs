//! The proxy logs in upstream for its clients, and says what is wrong when it cannot.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use support::hold::eventually;
use support::program::Program;
use support::proxy::{Proxy, proxy};
use support::{connect, first_batch, http, labels};

/// Recovery within a second.
const SETTINGS: &str = "
    heartbeat_frequency_ms = 500
    reconnect.max_ms = 200
    breaker.open_initial_ms = 100
    breaker.open_max_ms = 500
";

const PASSWORD: &str = "correct-horse_7";

/// A standalone that wants passwords, and its administrator.
async fn secured() -> (Deployment, mongodb::Database) {
    let options = DeploymentOptions { auth: true, ..DeploymentOptions::for_tests(0) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    support::first_user(&deployment, "root", "rootpw").await;
    let uri = as_user(&deployment, "root", "rootpw", "directConnection=true");
    let admin = mongodb::Client::with_uri_str(uri).await.unwrap().database("admin");
    (deployment, admin)
}

fn as_user(deployment: &Deployment, user: &str, password: &str, options: &str) -> String {
    format!("mongodb://{user}:{password}@{}/?{options}", deployment.members()[0].address())
}

async fn create_user(database: &mongodb::Database, name: &str, password: &str, mechanisms: &[&str]) {
    let roles = [doc! { "role": "readWrite", "db": "test" }];
    let command = doc! { "createUser": name, "pwd": password, "roles": roles, "mechanisms": mechanisms.to_vec() };
    database.run_command(command).await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

async fn works(proxy: &Proxy, collection: &str) {
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "insert": collection, "documents": [{ "_id": 1 }] }).await.unwrap();
    let found = client.command("test", doc! { "find": collection }).await.unwrap();
    assert_eq!(first_batch(&found).len(), 1);
}

#[tokio::test]
async fn users_of_both_scram_mechanisms_are_logged_in() {
    let (deployment, admin) = secured().await;
    let both = ["SCRAM-SHA-1", "SCRAM-SHA-256"];
    create_user(&admin, "old", PASSWORD, &["SCRAM-SHA-1"]).await;
    create_user(&admin, "new", PASSWORD, &["SCRAM-SHA-256"]).await;
    create_user(&admin, "either", PASSWORD, &both).await;
    create_user(&admin.client().database("elsewhere"), "local", PASSWORD, &both).await;
    create_user(&admin, "odd", "p:/?#[]@ %é", &both).await;
    let cases = [
        ("old", PASSWORD, ""),
        ("old", PASSWORD, "authMechanism=SCRAM-SHA-1"),
        ("new", PASSWORD, ""),
        ("new", PASSWORD, "authMechanism=SCRAM-SHA-256"),
        ("either", PASSWORD, ""),
        ("either", PASSWORD, "authMechanism=SCRAM-SHA-1"),
        ("local", PASSWORD, "authSource=elsewhere"),
        ("odd", "p%3A%2F%3F%23%5B%5D%40%20%25%C3%A9", ""),
    ];
    for (index, (user, password, options)) in cases.into_iter().enumerate() {
        let proxy = proxy(&as_user(&deployment, user, password, options), SETTINGS).await;
        works(&proxy, &format!("c{index}")).await;
        assert_eq!(proxy.clusters()[0].not_ready(), None, "{user} {options}");
        let ready = http(proxy.admin_address(), "GET", "/readyz", "").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_everywhere_and_recovered_from() {
    let (deployment, admin) = secured().await;
    let server = deployment.members()[0].address().to_string();
    create_user(&admin, "changed", "another", &["SCRAM-SHA-1", "SCRAM-SHA-256"]).await;
    // One whose password is wrong, one who is not there yet.
    for user in ["changed", "missing"] {
        let proxy = proxy(&as_user(&deployment, user, PASSWORD, ""), SETTINGS).await;
        let tells = |text: &str| {
            let lower = text.to_lowercase();
            text.contains(&server) && lower.contains("authentication") && lower.contains("failed")
        };
        let mut client = connect(proxy.address()).await;
        let reply = client.reply("test", doc! { "find": "c" }).await.unwrap();
        let text = reply.get_str("errmsg").unwrap();
        assert_eq!(reply.get_i32("code").ok(), Some(6), "{reply}");
        assert_eq!(labels(&reply), ["SystemOverloadedError", "RetryableError"], "{reply}");
        assert!(tells(text) && text.contains(user), "{text}");
        let why = proxy.clusters()[0].not_ready().expect("nobody can be served");
        assert!(tells(&why), "{why}");
        let ready = http(proxy.admin_address(), "GET", "/readyz", "").await;
        assert!(ready.starts_with("HTTP/1.1 503") && tells(&ready), "{ready}");
        for text in [text, &why, &ready] {
            assert!(!text.contains(PASSWORD), "{text}");
        }

        let mend = match user {
            "changed" => admin.run_command(doc! { "updateUser": user, "pwd": PASSWORD }),
            _ => admin.run_command(doc! { "createUser": user, "pwd": PASSWORD, "roles": ["root"] }),
        };
        mend.await.unwrap();
        eventually("recovery", async || proxy.clusters()[0].not_ready().is_none()).await;
        client.command("test", doc! { "find": "c" }).await.unwrap();
        works(&proxy, user).await;
        let ready = http(proxy.admin_address(), "GET", "/readyz", "").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    }
}

#[tokio::test]
async fn a_credential_in_a_file_is_read_again_without_anybody_noticing() {
    let (deployment, admin) = secured().await;
    create_user(&admin, "rotated", "first", &["SCRAM-SHA-256"]).await;
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("password");
    std::fs::write(&secret, "first\n").unwrap();
    let server = deployment.members()[0].address().clone();
    let proxy = support::proxy::configured(&format!(
        "{SETTINGS}\nlisten = \"127.0.0.1:0\"\nupstream = \"mongodb://rotated@{server}\"\nmin_pool_size = 2\n\
         upstream_password_file = {secret:?}\n"
    ))
    .await;
    let mut client = connect(proxy.address()).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    let pool = &proxy.clusters()[0].servers()[0].pool;
    eventually("two connections", async || pool.snapshot().counts.available == 2).await;
    let before = pool.snapshot().created;

    // A wrong one closes nothing that works.
    std::fs::write(&secret, "wrong").unwrap();
    drop(proxy.reload().await);
    eventually("an attempt", async || pool.snapshot().last_connect_error.is_some()).await;
    client.command("test", doc! { "find": "c" }).await.unwrap();
    assert_eq!(pool.snapshot().counts.available, 2);

    admin.run_command(doc! { "updateUser": "rotated", "pwd": "second" }).await.unwrap();
    std::fs::write(&secret, "second").unwrap();
    drop(proxy.reload().await);
    eventually("two new ones", async || {
        let now = pool.snapshot();
        now.created == before + 2 && now.counts.available == 2 && now.counts.total() == 2
    })
    .await;
    client.command("test", doc! { "find": "c" }).await.unwrap();
}

#[tokio::test]
async fn a_client_that_logs_in_is_told_what_to_do() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), "").await;
    let mut client = connect(proxy.address()).await;
    let reply = client.reply("admin", sasl_start()).await.unwrap();
    assert_eq!(reply.get_i32("code").ok(), Some(334), "{reply}");
    let text = reply.get_str("errmsg").unwrap();
    for word in ["remove", "user name", "password", "connection string"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
    client.command("test", doc! { "find": "c" }).await.expect("the socket stays open");

    let uri = format!("mongodb://somebody:{PASSWORD}@{}/?serverSelectionTimeoutMS=2000", proxy.address());
    let driver = mongodb::Client::with_uri_str(uri).await.unwrap();
    let error = driver.database("test").run_command(doc! { "find": "c" }).await.unwrap_err().to_string();
    assert!(error.contains("do not authenticate here"), "{error}");
}

fn sasl_start() -> Document {
    let payload = Binary { subtype: BinarySubtype::Generic, bytes: format!("\0somebody\0{PASSWORD}").into_bytes() };
    doc! { "saslStart": 1, "mechanism": "PLAIN", "payload": payload }
}

#[tokio::test]
async fn no_log_line_holds_a_password() {
    let (deployment, admin) = secured().await;
    let server = deployment.members()[0].address().to_string();
    create_user(&admin, "app", "another", &["SCRAM-SHA-1", "SCRAM-SHA-256"]).await;
    let directory = tempfile::tempdir().unwrap();
    let (upstream, config) = (directory.path().join("upstream"), directory.path().join("mongomux.toml"));
    std::fs::write(&upstream, as_user(&deployment, "app", PASSWORD, "")).unwrap();
    std::fs::write(&config, SETTINGS).unwrap();
    let (upstream, config) = (upstream.to_str().unwrap(), config.to_str().unwrap());
    let mut program = Program::run(&["--log", "trace", "--config", config, "--upstream-file", upstream]);
    let address = program.address().await;
    let warned = program.line("cannot connect").await;
    let lower = warned.to_lowercase();
    assert!(warned.contains(&server) && lower.contains("authentication") && lower.contains("failed"), "{warned}");

    admin.run_command(doc! { "updateUser": "app", "pwd": PASSWORD }).await.unwrap();
    let mut client = connect(&address).await;
    eventually("recovery", async || {
        client.reply("test", doc! { "find": "c" }).await.unwrap().get_f64("ok").ok() == Some(1.0)
    })
    .await;
    client.reply("admin", sasl_start()).await.unwrap();
    // What applications tell the server is not ours to write down either.
    client.reply("admin", doc! { "createUser": "x", "pwd": "swordfish-9", "roles": [] }).await.unwrap();
    let document = doc! { "_id": 1, "card": "4111-1111" };
    client.command("test", doc! { "insert": "c", "documents": [document] }).await.unwrap();
    drop(client);
    program.terminate();
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 0, "{log}");
    assert!(log.lines().any(|line| line.contains("DEBUG")), "everything was logged");
    for secret in [PASSWORD, "another", "rootpw", "swordfish-9"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
