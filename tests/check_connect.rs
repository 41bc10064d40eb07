//! `mongomux check --connect`: every step to every server is taken and timed, and where one fails it is said what to look at.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::path::Path;

use bson::doc;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::tasks::Tasks;
use serde_json::Value;
use support::certificates::{Authority, Wish};
use support::program::Program;
use support::scripted::listen;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Of the deployment.
const SET: &str = "mongomux";

/// Exit code, what was said, and the same for programs.
async fn check(uri: &str) -> (i32, String, Value) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "connect_timeout_ms = 1500\n").unwrap();
    let arguments = ["check", "--connect", "--config", file.path().to_str().unwrap(), uri];
    let (code, log, output) = Program::start(&arguments).ended().await;
    let (same, _, json) = Program::start(&[&arguments[..], &["--json"]].concat()).ended().await;
    assert_eq!(code, same, "{log}{output}");
    let json = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {log}{json}"));
    (code, output, json)
}

fn steps(server: &Value) -> Vec<String> {
    let steps = server["steps"].as_array().unwrap().iter();
    steps
        .map(|step| {
            assert!(step["ms"].as_f64().unwrap() >= 0.0);
            step["step"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// The check fails at that step, with these words.
async fn fails(uri: &str, step: &str, words: &[&str]) {
    let (code, output, json) = check(uri).await;
    assert_eq!(code, 1, "{output}");
    let server = &json["clusters"][0]["servers"][0];
    assert_eq!(server["problem"]["step"], step, "{output}");
    assert!(steps(server).iter().any(|taken| taken == step), "{output}");
    for word in words {
        assert!(output.contains(word), "{word}: {output}");
    }
    assert!(output.contains("no server here takes writes"), "{output}");
    assert!(!output.contains("geheim") && !json.to_string().contains("geheim"), "{output}");
}

#[tokio::test]
async fn a_replica_set_is_walked_from_any_of_its_members() {
    let deployment = support::replica_set(2).await;
    let [first, second] = [0, 1].map(|index| deployment.members()[index].address().to_string());
    let (code, output, json) = check(&format!("mongodb://{first}/?replicaSet={SET}")).await;
    assert_eq!(code, 0, "{output}");
    let cluster = &json["clusters"][0];
    assert_eq!(cluster["writable"].as_array().unwrap().len(), 1, "{output}");
    let servers = cluster["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 2, "{output}");
    for server in servers {
        assert_eq!(steps(server), ["DNS", "TCP", "hello", "ping"]);
        assert_eq!(server["problem"], Value::Null);
    }
    assert_eq!((&servers[0]["address"], &servers[0]["namedBy"]), (&first.clone().into(), &"connection string".into()));
    assert_eq!((&servers[1]["address"], &servers[1]["namedBy"]), (&second.into(), &format!("told by {first}").into()));
    assert!(output.contains("writes go to "), "{output}");

    let (code, output, json) = check(&format!("mongodb://{first}/?replicaSet=other")).await;
    assert_eq!(code, 1, "{output}");
    assert_eq!(json["clusters"][0]["servers"][0]["problem"]["step"], "hello");
    assert!(output.contains(&format!("the set is called `{SET}`")) && output.contains("replicaSet=other"), "{output}");
}

#[tokio::test]
async fn members_that_are_called_what_nobody_knows_are_named() {
    let (listener, port) = listen(None);
    let hello = doc! {
        "ok": 1.0, "isWritablePrimary": true, "setName": "rs0", "maxWireVersion": 17, "minWireVersion": 0,
        "hosts": [format!("127.0.0.1:{port}"), "mongo-1.cluster.invalid:27017"],
    };
    let tasks = serve(listener, move |request| support::scripted::answer(request, &hello));
    let (code, output, json) = check(&format!("mongodb://127.0.0.1:{port}/")).await;
    tasks.cancel();
    assert_eq!(code, 1, "{output}");
    let servers = json["clusters"][0]["servers"].as_array().unwrap();
    assert_eq!(servers[0]["problem"], Value::Null, "{output}");
    assert_eq!(servers[1]["problem"]["step"], "DNS", "{output}");
    assert!(output.contains("mongo-1.cluster.invalid:27017 (told by 127.0.0.1:"), "{output}");
    assert!(output.contains("rs.conf()"), "{output}");
}

#[tokio::test]
async fn a_standalone_is_no_member_of_a_set() {
    let deployment = support::standalone().await;
    let address = deployment.members()[0].address();
    let (code, output, _) = check(&format!("mongodb://{address}/")).await;
    assert_eq!(code, 0, "{output}");
    let uri = format!("mongodb://{address}/?replicaSet=rs0");
    let (code, output, _) = check(&uri).await;
    assert!(
        code == 1 && output.contains("a standalone server") && output.contains("leave replicaSet= out"),
        "{output}"
    );
    // One that cannot be reached beside one that can.
    let (code, output, _) = check(&format!("mongodb://{address},no-such-host.invalid/")).await;
    assert!(code == 1 && output.contains("FAILED at DNS"), "{output}");
}

#[tokio::test]
async fn who_is_not_let_in_is_told_where_its_user_was_looked_for() {
    let options = DeploymentOptions { auth: true, ..DeploymentOptions::for_tests(0) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    support::first_user(&deployment, "app", "geheim-1").await;
    let address = deployment.members()[0].address();
    let (code, output, json) = check(&format!("mongodb://app:geheim-1@{address}/")).await;
    assert_eq!(code, 0, "{output}");
    assert_eq!(steps(&json["clusters"][0]["servers"][0]), ["DNS", "TCP", "hello", "authentication", "ping"]);
    let words = ["user, password or database are wrong", "`shop` (authSource=)"];
    fails(&format!("mongodb://app:geheim-2@{address}/?authSource=shop"), "authentication", &words).await;
}

#[tokio::test]
async fn where_nobody_is_or_somebody_else_it_is_said() {
    // Bound and not listening: refused for as long as it is there.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = nobody.local_addr().unwrap().port();
    fails(&format!("mongodb://127.0.0.1:{port}/"), "TCP", &["Connection refused", "nobody listens there"]).await;
    fails("mongodb://no-such-host.invalid/", "DNS", &["the name is not known here"]).await;

    let (listener, port) = listen(None);
    let tasks = serve(listener, |_| b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec());
    let words = ["does not speak MongoDB's protocol", "HTTP"];
    fails(&format!("mongodb://127.0.0.1:{port}/"), "hello", &words).await;
    let words = ["does not speak TLS"];
    fails(&format!("mongodb://127.0.0.1:{port}/?tls=true"), "TLS", &words).await;
    tasks.cancel();

    let (listener, port) = listen(None);
    let tasks = serve(listener, |_| Vec::new());
    let words = ["not done within connect_timeout_ms (1500)", "nobody answers there", "tls=true"];
    fails(&format!("mongodb://127.0.0.1:{port}/"), "hello", &words).await;
    tasks.cancel();
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_refused_with_the_reason() {
    let authority = Authority::new();
    let deployment = encrypted(&authority, &authority.sign("server.pem", &Wish::default())).await;
    let address = deployment.members()[0].address();
    let with = |ca: &Authority| format!("mongodb://{address}/?tls=true&tlsCAFile={}", ca.file().display());
    let (code, output, json) = check(&with(&authority)).await;
    assert_eq!(code, 0, "{output}");
    assert_eq!(steps(&json["clusters"][0]["servers"][0]), ["DNS", "TCP", "TLS", "hello", "ping"]);
    fails(&with(&Authority::new()), "TLS", &["an authority that is not trusted", "tlsCAFile="]).await;
}

#[tokio::test]
async fn a_certificate_of_an_authority_is_told_for_what_it_is() {
    let authority = Authority::new();
    let deployment = encrypted(&authority, &authority.own()).await;
    let uri =
        format!("mongodb://{}/?tls=true&tlsCAFile={}", deployment.members()[0].address(), authority.file().display());
    fails(&uri, "TLS", &["CaUsedAsEndEntity", "one of an authority (CA:TRUE"]).await;
}

/// A server that shows this certificate.
async fn encrypted(authority: &Authority, certificate: &Path) -> Deployment {
    let arguments = vec![
        "--tlsMode=preferTLS".to_owned(),
        format!("--tlsCertificateKeyFile={}", certificate.display()),
        format!("--tlsCAFile={}", authority.file().display()),
        "--tlsAllowConnectionsWithoutCertificates".to_owned(),
    ];
    let options = DeploymentOptions { arguments, ..DeploymentOptions::for_tests(0) };
    Deployment::start(options).await.unwrap_or_else(support::no_deployment)
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_told_first() {
    let (code, log, output) = Program::start(&["check", "--connect", "mongodb://db/?maxPoolSize=0"]).ended().await;
    assert!(code == 2 && output.is_empty() && log.contains("maxPoolSize"), "{code} {log} {output}");
}

/// Answers each message, or whatever else comes, until the tasks are cancelled.
fn serve(listener: TcpListener, answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Tasks {
    let tasks = Tasks::new();
    let (all, ended) = (tasks.clone(), tasks.clone());
    let answer = std::sync::Arc::new(answer);
    tasks.spawn("accept", async move {
        let accepting = async {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, ended) = (answer.clone(), all.clone());
                let exchange = async move {
                    let mut message = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = stream.read(&mut message).await {
                        if stream.write_all(&answer(&message[..length])).await.is_err() {
                            return;
                        }
                    }
                };
                all.spawn("answer", async move {
                    tokio::select! {
                        () = exchange => {}
                        () = ended.cancelled() => {}
                    }
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = ended.cancelled() => {}
        }
    });
    tasks
}
