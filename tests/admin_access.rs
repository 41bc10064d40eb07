//! Who may ask for what on the admin port, as the program does it: tokens and their rotation, orders and their audit.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use mongomux::config::Address;
use support::program::Program;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const OLD: &str = "old-token-0123456789abcdef";
const NEW: &str = "new-token-fedcba9876543210";
const ORDER: &str = "X-Mongomux: 1\r\nContent-Type: application/json\r\n";

/// Sends a request; returns status and body.
async fn ask(admin: &Address, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let Address::Tcp { port, .. } = admin else { panic!("{admin} is not TCP") };
    let mut stream = TcpStream::connect(("127.0.0.1", *port)).await.unwrap();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: proxy.example:{port}\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

async fn admin_address(program: &Program) -> Address {
    let line = program.line("admin port").await;
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("address="));
    address.unwrap_or_else(|| panic!("no address in {line}")).parse().unwrap()
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A port that others could reach, in front of nothing.
fn exposed(more: &[&str]) -> Program {
    let mut all =
        vec!["run", "--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0", "mongodb://127.0.0.1:1/", "--log", "trace"];
    all.extend_from_slice(more);
    Program::start(&all)
}

#[tokio::test]
async fn a_token_opens_what_others_may_not_see_and_is_rotated_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens");
    write(&file, &format!("{OLD}\n"), 0o640);
    let mut program = exposed(&["--admin-token-file", file.to_str().unwrap()]);
    let admin = admin_address(&program).await;
    for open in ["/livez", "/metrics"] {
        assert_eq!(ask(&admin, "GET", open, "", "").await.0, 200, "{open}");
    }
    for (headers, expected) in [(String::new(), 401), (bearer(NEW), 401), (bearer(OLD), 200)] {
        let (status, body) = ask(&admin, "GET", "/stats", &headers, "").await;
        assert_eq!(status, expected, "{headers}");
        assert!(status == 200 || body.contains("Authorization: Bearer TOKEN"), "{body}");
    }
    // One of each for a time.
    write(&file, &format!("{NEW}\n{OLD}\n"), 0o640);
    program.line("tokens of the admin port were read again").await;
    for token in [OLD, NEW] {
        assert_eq!(ask(&admin, "GET", "/stats", &bearer(token), "").await.0, 200, "{token}");
    }
    // What is no file of tokens changes nothing.
    write(&file, &format!("{OLD}\n"), 0o644);
    program.line("everybody may use it (mode 644)").await;
    write(&file, "short", 0o600);
    program.line("line 1 is no token").await;
    assert_eq!(ask(&admin, "GET", "/stats", &bearer(NEW), "").await.0, 200);
    write(&file, &format!("{NEW}\n"), 0o600);
    program.line("count=1").await;
    assert_eq!(ask(&admin, "GET", "/stats", &bearer(OLD), "").await.0, 401);

    let mode = r#"{"mode": "read-only"}"#;
    assert_eq!(ask(&admin, "POST", "/admin/mode", &bearer(NEW), mode).await.0, 403, "a page could send this");
    assert_eq!(ask(&admin, "POST", "/admin/mode", ORDER, mode).await.0, 401);
    let with_both = bearer(NEW) + ORDER;
    assert_eq!(ask(&admin, "POST", "/admin/mode", &with_both, mode).await.0, 200);
    assert_eq!(ask(&admin, "POST", "/admin/rules", &with_both, r#"{"readOnly": true}"#).await.0, 200);
    assert_eq!(ask(&admin, "POST", "/admin/nothing", &with_both, "").await.0, 404);
    assert_eq!(ask(&admin, "POST", "/admin/drain", &with_both, "").await.0, 202);
    let (code, log, _) = program.ended().await;
    assert_eq!(code, 0, "{log}");
    let audit: Vec<&str> = log.lines().filter(|line| line.contains("admin order")).collect();
    let expected = [
        ("/admin/mode", "status=403", "by=\"nobody that was admitted\""),
        ("/admin/mode", "status=401", "by=\"nobody that was admitted\""),
        ("/admin/mode", "status=200", "by=\"token 1\""),
        ("/admin/rules", "status=200", "readOnly"),
        ("/admin/nothing", "status=404", "obeyed=false"),
        ("/admin/drain", "status=202", "order=\"drain\""),
    ];
    assert_eq!(audit.len(), expected.len(), "{audit:#?}");
    for (line, (path, status, more)) in audit.iter().zip(expected) {
        assert!(line.contains(" audit: ") && line.contains("caller=127.0.0.1:"), "{line}");
        assert!(line.contains(path) && line.contains(status) && line.contains(more), "{line}");
    }
    assert!(!log.contains(OLD) && !log.contains(NEW), "a token in the log");
}

#[tokio::test]
async fn a_port_that_others_reach_says_who_may_use_it_or_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens");
    let (code, log, output) = exposed(&[]).ended().await;
    assert_eq!(code, 2, "{log}{output}");
    assert!(log.contains("admin_token_file") && log.contains("admin_probes_only"), "{log}");

    write(&file, OLD, 0o644);
    for (text, mode, told) in [
        (OLD, 0o644, "everybody may use it (mode 644)"),
        ("# nothing\n", 0o600, "there is no token in it"),
        ("short", 0o600, "line 1 is no token"),
    ] {
        write(&file, text, mode);
        let (code, log, _) = exposed(&["--admin-token-file", file.to_str().unwrap()]).ended().await;
        assert!(code == 2 && log.contains("admin_token_file") && log.contains(told), "{code}: {log}");
    }
    let both = ["--admin-token-file", file.to_str().unwrap(), "--admin-probes-only"];
    assert_eq!(exposed(&both).ended().await.0, 2);

    let mut program = exposed(&["--admin-probes-only"]);
    let admin = admin_address(&program).await;
    assert_eq!(ask(&admin, "GET", "/metrics", "", "").await.0, 200);
    assert_eq!(ask(&admin, "GET", "/stats", "", "").await.0, 403);
    assert_eq!(ask(&admin, "POST", "/admin/drain", ORDER, "").await.0, 403);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn the_audit_is_heard_where_only_warnings_are_asked_for() {
    let mut program = Program::run(&["mongodb://127.0.0.1:1/", "--log", "info"]);
    let admin = admin_address(&program).await;
    // By a name that is not its own: nothing to be had on loopback either.
    assert_eq!(ask(&admin, "GET", "/stats", "", "").await.0, 403);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut program = Program::start(&[
        "run",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        &port.to_string(),
        "mongodb://127.0.0.1:1/",
        "--log",
        "warn",
    ]);
    let admin: Address = port.to_string().parse().unwrap();
    support::hold::eventually("an admin port", async || TcpStream::connect(port).await.is_ok()).await;
    assert_eq!(ask(&admin, "POST", "/admin/drain", ORDER, "").await.0, 403);
    program.line("admin order").await;
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}
