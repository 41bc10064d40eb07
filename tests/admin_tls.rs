//! TLS on the admin port: who has a certificate may give orders, who has none gets probes and metrics.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::path::Path;

use mongomux::config::Address;
use support::certificates::{Authority, TlsClient, Wish, replace};
use support::hold::eventually;
use support::program::Program;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TOKEN: &str = "a-token-0123456789abcdef";
const ORDER: &str = "X-Mongomux: 1\r\nContent-Type: application/json\r\n";
const NOTHING: &str = "";

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// Sends a request and returns the status; an error when there is no answer to it.
async fn ask(client: &TlsClient, admin: &Address, line: &str, headers: &str, body: &str) -> std::io::Result<u16> {
    let Address::Tcp { port, .. } = admin else { panic!("{admin} is not TCP") };
    let mut stream = client.connect(&Address::tcp("127.0.0.1", *port)).await?;
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: proxy.example:{port}\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer}")).parse().unwrap())
}

async fn admin_address(program: &Program) -> Address {
    let line = program.line("admin port").await;
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("address="));
    address.unwrap_or_else(|| panic!("no address in {line}")).parse().unwrap()
}

/// A port that others could reach, in front of nothing; `settings` go into the file.
struct Exposed {
    program: Program,
    admin: Address,
    _file: tempfile::NamedTempFile,
}

async fn exposed(settings: &str) -> Exposed {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), settings).unwrap();
    let arguments = ["run", "--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0", "--config"];
    let program = Program::start(
        &[&arguments[..], &[file.path().to_str().unwrap(), "mongodb://127.0.0.1:1/", "--log", "debug"]].concat(),
    );
    let admin = admin_address(&program).await;
    Exposed { program, admin, _file: file }
}

fn tls(certificate: &Path, more: &str) -> String {
    format!("admin_tls = true\nadmin_tls_certificate_key_file = \"{}\"\n{more}\n", certificate.display())
}

fn authorities(file: &Path) -> String {
    format!("admin_tls_ca_file = \"{}\"\n", file.display())
}

fn tokens(authority: &Authority) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let file = authority.path("tokens");
    std::fs::write(&file, TOKEN).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    format!("admin_token_file = \"{}\"\n", file.display())
}

/// What all the audit says of an order.
fn audit(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("admin order")).collect()
}

#[tokio::test]
async fn a_certificate_opens_what_others_may_not_see_and_is_named_by_the_audit() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let own = authority.sign("own.pem", &Wish::default());
    let list = authority.revoke("list.pem", 666);
    let more = authorities(&authority.file()) + &format!("admin_tls_crl_file = \"{}\"", list.display());
    let Exposed { mut program, admin, _file } = exposed(&tls(&own, &more)).await;
    let nobody = TlsClient::new(&authority);
    let operator = TlsClient::new(&authority)
        .shows(authority.sign("operator.pem", &Wish { name: "an operator", ..Wish::default() }));
    for open in ["GET /livez", "GET /metrics"] {
        assert_eq!(ask(&nobody, &admin, open, NOTHING, NOTHING).await.unwrap(), 200, "{open}");
    }
    let mode = r#"{"mode": "read-only"}"#;
    assert_eq!(ask(&nobody, &admin, "GET /stats", NOTHING, NOTHING).await.unwrap(), 403);
    assert_eq!(ask(&nobody, &admin, "GET /stats", &bearer(TOKEN), NOTHING).await.unwrap(), 403, "there are no tokens");
    assert_eq!(ask(&nobody, &admin, "POST /admin/mode", ORDER, mode).await.unwrap(), 403);
    assert_eq!(ask(&operator, &admin, "GET /stats", NOTHING, NOTHING).await.unwrap(), 200);
    assert_eq!(ask(&operator, &admin, "POST /admin/mode", NOTHING, mode).await.unwrap(), 403, "a page could send this");
    assert_eq!(ask(&operator, &admin, "POST /admin/mode", ORDER, mode).await.unwrap(), 200);
    // Who shows a bad one is not served at all, not even probes.
    for (what, certificate) in [
        ("of others", stranger.sign("x.pem", &Wish::default())),
        ("old", authority.sign("old.pem", &Wish { until: 2020, ..Wish::default() })),
        ("revoked", authority.sign("revoked.pem", &Wish { number: 666, ..Wish::default() })),
    ] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let shows = Some(certificate.clone());
            let client = TlsClient { shows, version: Some(version), ..TlsClient::new(&authority) };
            ask(&client, &admin, "GET /livez", NOTHING, NOTHING).await.expect_err(what);
            ask(&client, &admin, "POST /admin/drain", ORDER, NOTHING).await.expect_err(what);
        }
    }
    // Neither is who does not trust us, nor who speaks no TLS.
    ask(&TlsClient::new(&stranger), &admin, "GET /livez", NOTHING, NOTHING).await.unwrap_err();
    let Address::Tcp { port, .. } = &admin else { panic!("{admin}") };
    let mut plain = TcpStream::connect(("127.0.0.1", *port)).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Bytes of ours that nobody has read may make it a reset.
    drop(plain.read_to_end(&mut answer).await);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    program.line("TLS handshakes with the admin port fail").await;
    assert_eq!(ask(&operator, &admin, "POST /admin/drain", ORDER, NOTHING).await.unwrap(), 202);
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 0, "{log}");
    let audit = audit(&log);
    let expected = [
        ("status=403", "by=\"nobody that was admitted\""),
        ("status=403", "by=\"nobody that was admitted\""),
        ("status=200", "by=\"certificate CN=an operator\""),
        ("status=202", "by=\"certificate CN=an operator\""),
    ];
    assert_eq!(audit.len(), expected.len(), "{audit:#?}");
    for (line, (status, by)) in audit.iter().zip(expected) {
        assert!(line.contains(status) && line.contains(by), "{line}");
    }
    assert!(!log.contains("tokens travel in the clear"), "{log}");
}

#[tokio::test]
async fn a_token_or_a_certificate_is_enough_where_there_are_both() {
    let authority = Authority::new();
    let own = authority.sign("own.pem", &Wish::default());
    let more = authorities(&authority.file()) + &tokens(&authority);
    let Exposed { mut program, admin, _file } = exposed(&tls(&own, &more)).await;
    let nobody = TlsClient::new(&authority);
    let somebody = TlsClient::new(&authority).shows(authority.sign("client.pem", &Wish::default()));
    for (client, headers, expected) in [
        (&nobody, String::new(), 401),
        (&nobody, bearer("wrong-token-0123456789"), 401),
        (&nobody, bearer(TOKEN), 200),
        (&somebody, String::new(), 200),
    ] {
        assert_eq!(ask(client, &admin, "GET /stats", &headers, NOTHING).await.unwrap(), expected, "{headers}");
    }
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn encryption_alone_lets_nobody_in_and_tokens_in_the_clear_are_warned_of() {
    let authority = Authority::new();
    let own = authority.sign("own.pem", &Wish::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tls(&own, NOTHING)).unwrap();
    let path = file.path().to_str().unwrap();
    let (code, log, _) = Program::start(&["run", "--admin", "0.0.0.0:0", "--config", path]).ended().await;
    assert!(code == 2 && log.contains("admin_tls_ca_file"), "{code}: {log}");

    let Exposed { mut program, .. } = exposed(&tokens(&authority)).await;
    let line = program.line("tokens travel in the clear").await;
    assert!(line.contains("WARN") && line.contains("0.0.0.0:0"), "{line}");
    program.terminate();
    assert_eq!(program.ended().await.0, 0);

    // On this machine it encrypts, and asks for nothing more.
    std::fs::write(file.path(), tls(&own, NOTHING)).unwrap();
    let mut program = Program::run(&["--config", path, "mongodb://127.0.0.1:1/"]);
    let admin = admin_address(&program).await;
    let mut stream = TlsClient::new(&authority).connect(&admin).await.unwrap();
    stream.write_all(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn new_files_hold_from_the_next_handshake_on_and_broken_ones_change_nothing() {
    let (old, new) = (Authority::new(), Authority::new());
    let own = old.sign("own.pem", &Wish { until: 3000, ..Wish::default() });
    let trusted = old.path("trusted.pem");
    replace(&trusted, &std::fs::read_to_string(old.file()).unwrap());
    let Exposed { mut program, admin, _file } = exposed(&tls(&own, &authorities(&trusted))).await;
    let of = |authority: &Authority| TlsClient {
        shows: Some(authority.sign("client.pem", &Wish::default())),
        ..TlsClient::new(&old)
    };
    assert_eq!(ask(&of(&old), &admin, "GET /stats", NOTHING, NOTHING).await.unwrap(), 200);
    ask(&of(&new), &admin, "GET /stats", NOTHING, NOTHING).await.unwrap_err();
    replace(&trusted, "no certificate");
    let line = program.line("TLS files cannot be used").await;
    assert!(line.contains("admin port") && line.contains("trusted.pem"), "{line}");
    assert_eq!(ask(&of(&old), &admin, "GET /stats", NOTHING, NOTHING).await.unwrap(), 200);
    replace(&trusted, &std::fs::read_to_string(new.file()).unwrap());
    eventually("the new authority is trusted", async || {
        matches!(ask(&of(&new), &admin, "GET /stats", NOTHING, NOTHING).await, Ok(200))
    })
    .await;
    ask(&of(&old), &admin, "GET /stats", NOTHING, NOTHING).await.unwrap_err();
    let (text, key) = new.signed(&Wish { until: 3500, ..Wish::default() });
    replace(&own, &(text + &key));
    let client = TlsClient { shows: Some(new.sign("client.pem", &Wish::default())), ..TlsClient::new(&new) };
    eventually("the new certificate is shown", async || {
        matches!(ask(&client, &admin, "GET /stats", NOTHING, NOTHING).await, Ok(200))
    })
    .await;
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}
