//! No secret leaves the program through anything it says: with passwords and tokens in every place where they can stand, and
//! trouble of every kind, all that it says at the highest log level is searched for them.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bson::spec::BinarySubtype;
use bson::{Binary, doc};
use mongomux::config::system::{Sources, Text};
use mongomux::config::{Address, Config};
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::sandbox::wire_client::WireClient;
use support::program::Program;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PASSWORD: &str = "geheim:pw/1?#";
const ENCODED: &str = "geheim%3Apw%2F1%3F%23";
const TOKEN: &str = "geheim-token-0123456789abcdef";
const WRONG_TOKEN: &str = "geheim-wrong-0123456789abcdef";
/// What applications send and store.
const VALUE: &str = "geheim-value-of-a-document";

/// All of the above, and what they look like in the encodings that they travel in.
fn assert_silent(place: &str, said: &str) {
    let of_plain = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let encoded = of_plain(&format!("\0app\0{PASSWORD}"));
    for secret in ["geheim", PASSWORD, ENCODED, TOKEN, WRONG_TOKEN, VALUE, encoded.as_str()] {
        if let Some(at) = said.find(secret) {
            let from = said[..at].rfind('\n').map_or(0, |at| at + 1);
            panic!("{secret} in {place}: {}", said[from..].lines().next().unwrap_or_default());
        }
    }
}

fn file(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

async fn ask(admin: &Address, request: &str) -> String {
    let mut stream = TcpStream::connect(admin.to_string()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn start(arguments: &[&str], environment: &[(&str, &str)], format: &str) -> Program {
    let mut command = Program::command();
    command.envs(environment.iter().copied()).args(arguments);
    command.args(["--log", "trace", "--log-format", format]);
    Program::spawn(command)
}

async fn address(program: &Program, line: &str) -> Address {
    let line = program.line(line).await;
    let after = line.split("address").nth(1).unwrap().trim_start_matches(['"', ':', '=']);
    after.split(['"', ' ', ',']).next().unwrap().parse().unwrap_or_else(|error| panic!("{line}: {error}"))
}

async fn secured() -> Deployment {
    let options = DeploymentOptions { auth: true, ..DeploymentOptions::for_tests(0) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    support::first_user(&deployment, "app", PASSWORD).await;
    deployment
}

/// Everything that clients and callers can do wrong, and right.
async fn use_it(client: &mut WireClient, admin: &Address) {
    let plain = Binary { subtype: BinarySubtype::Generic, bytes: format!("\0app\0{PASSWORD}").into_bytes() };
    for (database, command) in [
        ("test", doc! { "insert": "c", "documents": [{ "_id": VALUE }] }),
        ("test", doc! { "find": "c", "filter": { "_id": VALUE } }),
        ("test", doc! { "insert": "c", "documents": [{ "_id": VALUE }] }),
        ("test", doc! { "noSuchCommand": VALUE }),
        ("admin", doc! { "createUser": "u", "pwd": PASSWORD, "roles": 5 }),
        ("$external", doc! { "saslStart": 1, "mechanism": "PLAIN", "payload": plain }),
        ("admin", doc! { "getMore": 5_i64, "collection": VALUE }),
        ("admin", doc! { "usersInfo": 1, "showCredentials": true }),
        ("admin", doc! { "ping": 1, "$audit": VALUE }),
    ] {
        drop(client.reply(database, command).await);
    }
    let order = "X-Mongomux: 1\r\nContent-Type: application/json\r\n";
    for token in [TOKEN, WRONG_TOKEN] {
        for (line, body) in [
            ("GET /stats", ""),
            ("GET /metrics", ""),
            ("GET /readyz", ""),
            ("GET /health/database", ""),
            ("GET /no/such/path", ""),
            ("POST /admin/mode", "{\"mode\": 5}"),
            ("POST /admin/rules", "{\"denyCommands\": [\"a b\"]}"),
        ] {
            let length = body.len();
            let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{order}Authorization: Bearer {token}\r\n");
            let answer = ask(admin, &format!("{head}Content-Length: {length}\r\n\r\n{body}")).await;
            assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
            assert_silent(line, &answer);
        }
    }
}

#[tokio::test]
async fn a_running_program_never_tells_a_secret() {
    let deployment = secured().await;
    let directory = tempfile::tempdir().unwrap();
    let server = deployment.members()[0].address().to_string();
    let tokens = file(directory.path(), "tokens", TOKEN);
    let tokens = tokens.to_str().unwrap();
    let run = ["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--admin-token-file", tokens];
    let right = format!("mongodb://app:{ENCODED}@{server}/?authSource=admin");
    let wrong = format!("mongodb://app:geheim-{ENCODED}@{server}/?authSource=admin&serverSelectionTimeoutMS=300");
    let nobody = format!("mongodb://app:{ENCODED}@127.0.0.1:1/?serverSelectionTimeoutMS=300");
    let in_file = file(directory.path(), "uri", &right);
    let config = file(directory.path(), "mongomux.toml", &format!("upstream = \"{right}\"\n"));
    /// Arguments, environment, and the format of the log.
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 6] = [
        (&[], &[("MONGOMUX_UPSTREAM", &right)], "text"),
        (&[], &[("MONGOMUX_UPSTREAM", &wrong)], "json"),
        (&[], &[("MONGOMUX_UPSTREAM", &nobody)], "text"),
        (&["--upstream-file", in_file.to_str().unwrap()], &[], "json"),
        (&["--config", config.to_str().unwrap()], &[], "text"),
        (&[&right], &[], "text"),
    ];
    for (index, (more, environment, format)) in cases.into_iter().enumerate() {
        let mut program = start(&[&run[..], more].concat(), environment, format);
        let (clients, admin) = (address(&program, "listening").await, address(&program, "admin port").await);
        if index != 2 {
            // One that is never found says no hello.
            let mut client = WireClient::connect_as(&clients, "shop").await.unwrap();
            use_it(&mut client, &admin).await;
        } else {
            let mut client = WireClient::connect(&clients).await.unwrap();
            use_it(&mut client, &admin).await;
        }
        if index == 0 {
            // No file of tokens any more, and one again.
            std::fs::write(tokens, "geheim broken token").unwrap();
            program.line("stay as they were").await;
            std::fs::write(tokens, TOKEN).unwrap();
            program.line("were read again").await;
        }
        program.terminate();
        let (_, log, output) = program.ended().await;
        assert!(log.to_lowercase().contains("trace") || log.to_lowercase().contains("debug"), "nothing was logged");
        assert_silent(&format!("the log of case {index}"), &log);
        assert_silent(&format!("the output of case {index}"), &output);
    }
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_told_without_its_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let uris = [
        format!("mongodb://app:{ENCODED}@db/?authSource=admin"),
        format!("mongodb://app:{PASSWORD}@db/"),
        format!("mongodb://app:{ENCODED}@db:port/"),
        format!("mysql://app:{ENCODED}@db/"),
        format!("mongodb://app:{ENCODED}@db/?maxPoolSize=many"),
        format!("mongodb://app:{ENCODED}@db/?option"),
        format!("mongodb://app:{ENCODED}@/"),
        format!("mongodb://app:{ENCODED}%zz@db/"),
        format!("app:{PASSWORD}@db"),
    ];
    for uri in &uris {
        let upstream = format!("upstream = \"{uri}\"\n");
        let broken = format!("upstream = {uri}\nmax_pool_size = 0\n");
        let place = file(directory.path(), "uri", uri);
        let config = file(directory.path(), "good.toml", &upstream);
        let no_toml = file(directory.path(), "bad.toml", &broken);
        let key = file(directory.path(), "key.toml", &format!("max_pool_size = \"{uri}\"\n"));
        for (more, environment) in [
            (vec![uri.as_str()], vec![]),
            (vec![], vec![("MONGOMUX_UPSTREAM", uri.as_str())]),
            (vec!["--upstream-file", place.to_str().unwrap()], vec![]),
            (vec!["--config", config.to_str().unwrap()], vec![]),
            (vec!["--config", no_toml.to_str().unwrap()], vec![]),
            (vec!["--config", key.to_str().unwrap()], vec![]),
        ] {
            let (_, log, output) = start(&[&["check"], &more[..]].concat(), &environment, "text").ended().await;
            assert!(!log.is_empty() || !output.is_empty());
            assert_silent(&format!("the log of `check` with {more:?}"), &log);
            assert_silent(&format!("the output of `check` with {more:?}"), &output);
        }
    }
    let upstream = Some(Text { name: "test".to_owned(), text: uris[0].clone() });
    let sources = Sources { upstream, admin_token_file: Some("/tokens".into()), ..Sources::default() };
    let (config, _) = Config::load(&sources).unwrap();
    assert_silent("Debug of a configuration", &format!("{config:?} {config:#?} {config}"));
    assert_silent("Debug of a credential", &format!("{:?}", config.clusters[0].upstream.credential));
}
