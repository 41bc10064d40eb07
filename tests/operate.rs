//! The commands of whoever operates a proxy, as programs against the program, in front of a real MongoDB.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use bson::doc;
use mongomux::config::Address;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::sandbox::wire_client::{Request, WireClient};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use serde_json::Value;
use support::certificates::{Authority, Wish};
use support::hold::{eventually, hold_finds};
use support::program::Program;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PASSWORD: &str = "hush:pw/1?#";
const ENCODED: &str = "hush%3Apw%2F1%3F%23";
const TOKEN: &str = "hush-token-0123456789abcdef";

/// Code, what was said on standard error, and on standard output.
type Ended = (i32, String, String);

/// Runs a command to its end.
async fn mongomux(arguments: &[&str]) -> Ended {
    Program::start(arguments).ended().await
}

/// Runs a command against an admin port.
async fn at(admin: &str, arguments: &[&str]) -> Ended {
    mongomux(&[arguments, &["--admin", admin]].concat()).await
}

/// What a command says that is done well.
#[track_caller]
fn said((code, log, output): Ended) -> String {
    assert_eq!(code, 0, "{log}{output}");
    output
}

fn json(ended: Ended) -> Value {
    let output = said(ended);
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// The words of one that failed.
#[track_caller]
fn failed((code, log, output): Ended) -> String {
    assert_eq!((code, output.as_str()), (1, ""), "{log}");
    log
}

async fn admin_address(program: &Program) -> String {
    let line = program.line("admin port").await;
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("address="));
    address.unwrap_or_else(|| panic!("no address in {line}")).to_owned()
}

fn secret(path: PathBuf, text: &str) -> String {
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A proxy in front of a replica set of one, with a client that has worked.
async fn at_work() -> (Deployment, Program, String, WireClient) {
    let deployment = support::replica_set(1).await;
    let program = Program::run(&[&deployment.uri()]);
    let admin = admin_address(&program).await;
    let mut client = WireClient::connect_as(&program.address().await, "shop").await.unwrap();
    client.command("test", doc! { "insert": "c", "documents": [{ "a": 1 }] }).await.unwrap();
    (deployment, program, admin, client)
}

#[tokio::test]
async fn stats_is_a_table_of_this_moment() {
    let (deployment, mut program, admin, client) = at_work().await;
    let server = deployment.members()[0].address().to_string();
    let text = said(at(&admin, &["stats"]).await);
    assert!(text.starts_with("mongomux 0.1.0  up "), "{text}");
    let row = text.lines().find(|line| line.starts_with(&server)).unwrap_or_else(|| panic!("no {server}: {text}"));
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(&cells[1..4], ["primary", "healthy", "0"], "{text}");
    assert!(row.contains("  10    0%  ") && row.contains("closed"), "{text}");
    assert!(text.contains("clients 1") && !text.contains('\x1b'), "no colours in a pipe: {text}");
    let stats = json(at(&admin, &["stats", "--json"]).await);
    assert_eq!(stats["clusters"][0]["servers"][0]["address"], server.as_str());
    // A unix socket, said by a configuration file, is the same.
    drop(client);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn the_port_is_found_by_flag_environment_and_file() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let address = format!("unix:{}", socket.display());
    let file = directory.path().join("mongomux.toml");
    std::fs::write(&file, format!("upstream = \"mongodb://127.0.0.1:1/\"\nadmin = \"{address}\"\n")).unwrap();
    let file = file.to_str().unwrap();
    let mut program = Program::start(&["run", "--listen", "127.0.0.1:0", "--config", file]);
    program.line("admin port").await;
    said(at(&address, &["stats"]).await);
    said(mongomux(&["stats", "--config", file]).await);
    let mut command = Program::command();
    command.env("MONGOMUX_ADMIN", &address).arg("stats");
    let text = said(Program::spawn(command).ended().await);
    assert!(text.contains("down") && text.contains("Connection refused"), "MongoDB is not there: {text}");
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
    let words = failed(mongomux(&["stats", "--config", file]).await);
    assert!(words.contains("nothing listens at unix:") && words.contains("is mongomux running"), "{words}");
}

/// Answers everybody with the same bytes.
async fn stranger(answer: &'static str) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            drop(stream.read(&mut head).await);
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    (address, task)
}

#[tokio::test]
async fn who_cannot_be_asked_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = listener.local_addr().unwrap().to_string();
    drop(listener);
    let words = failed(at(&free, &["stats"]).await);
    assert!(words.contains(&format!("nothing listens at {free} (Connection refused")), "{words}");
    assert!(words.contains("--admin, MONGOMUX_ADMIN or --config"), "{words}");
    for arguments in [&["top", "--json", "--count", "1"][..], &["top"], &["admin", "drain"]] {
        assert!(failed(at(&free, arguments).await).contains("nothing listens"), "{arguments:?}");
    }

    for (answer, arguments, told) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", &["stats"][..], "does not speak HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", &["stats"], "not as mongomux does"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found", &["stats"], "not as mongomux does"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", &["stats"], "not as mongomux does"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"version\":\"9.9.9\"}",
            &["stats"],
            "runs mongomux 9.9.9, and this is 0.1.0",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 34\r\n\r\n{\"error\":\"there is no such path\"}  ",
            &["admin", "reload"],
            "has no /admin/reload: this is version 0.1.0, use the same as the proxy",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 27\r\n\r\n{\"error\":\"no client is 17\"} ",
            &["admin", "kill", "17"],
            "mongomux: no client is 17",
        ),
    ] {
        let (address, task) = stranger(answer).await;
        let words = failed(at(&address, arguments).await);
        assert!(words.contains(told), "{answer}: {words}");
        task.abort();
    }
    let (code, words, _) = mongomux(&["stats", "--admin", "127.0.0.1:0"]).await;
    assert!(code == 2 && words.contains("the log of the proxy tells the real one"), "{code}: {words}");
}

#[tokio::test]
async fn a_health_check_needs_neither_a_token_nor_mongodb() {
    let mut program = Program::run(&["--admin-probes-only", "mongodb://127.0.0.1:1/"]);
    let admin = admin_address(&program).await;
    assert!(failed(at(&admin, &["stats"]).await).contains("refuses (403)"));
    said(at(&admin, &["admin", "livez"]).await);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
    failed(at(&admin, &["admin", "livez"]).await);
}

#[tokio::test]
async fn tokens_and_certificates_open_a_port_that_others_reach() {
    let authority = Authority::new();
    let own = authority.sign("own.pem", &Wish::default());
    let operator = authority.sign("operator.pem", &Wish { name: "an operator", ..Wish::default() });
    let tokens = secret(authority.path("tokens"), &format!("# ours\n{TOKEN}\n"));
    let settings = format!(
        "upstream = \"mongodb://127.0.0.1:1/\"\nadmin = \"0.0.0.0:0\"\nadmin_token_file = \"{tokens}\"\nadmin_tls = true\n\
         admin_tls_certificate_key_file = \"{}\"\nadmin_tls_ca_file = \"{}\"\n",
        own.display(),
        authority.file().display()
    );
    let file = secret(authority.path("mongomux.toml"), &settings);
    let mut program = Program::start(&["run", "--listen", "127.0.0.1:0", "--config", &file]);
    // The address that it listens at, as an environment has it for the proxy: whoever listens everywhere is here as well.
    let admin = admin_address(&program).await;
    assert!(admin.starts_with("0.0.0.0:"), "{admin}");
    let (ca, operator) = (authority.file(), operator.to_str().unwrap().to_owned());
    let ca = ca.to_str().unwrap();
    said(at(&admin, &["stats", "--admin-ca", ca, "--admin-token-file", &tokens]).await);
    said(at(&admin, &["stats", "--admin-ca", ca, "--admin-cert", &operator]).await);
    let words = failed(at(&admin, &["stats", "--admin-ca", ca]).await);
    assert!(words.contains("refuses (401)") && words.contains("--admin-token-file"), "{words}");
    let wrong = secret(authority.path("wrong"), "another-token-0123456789abcdef");
    let words = failed(at(&admin, &["stats", "--admin-ca", ca, "--admin-token-file", &wrong]).await);
    assert!(words.contains("none of the proxy's admin_token_file") && !words.contains("another-token"), "{words}");
    let words = failed(at(&format!("https://{admin}"), &["stats", "--admin-token-file", &tokens]).await);
    assert!(words.contains("--admin-ca FILE"), "signed by nobody that everybody knows: {words}");
    let words = failed(at(&admin, &["stats", "--admin-token-file", &tokens]).await);
    assert!(words.contains("wants https://") && !words.contains(TOKEN), "{words}");
    let open = secret(authority.path("open"), TOKEN);
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, words, _) = at(&admin, &["stats", "--admin-token-file", &open]).await;
    assert!(code == 2 && words.contains("chmod 600") && !words.contains(TOKEN), "{code}: {words}");
    // And a port without it.
    let mut plain = Program::run(&["mongodb://127.0.0.1:1/"]);
    let words = failed(at(&admin_address(&plain).await, &["stats", "--admin-ca", ca]).await);
    assert!(words.contains("does the port speak TLS?"), "{words}");
    for program in [&mut program, &mut plain] {
        program.terminate();
        assert_eq!(program.ended().await.0, 0);
    }
}

#[tokio::test]
async fn top_writes_one_object_per_interval_with_what_has_happened_in_it() {
    let (deployment, mut program, admin, mut client) = at_work().await;
    let hold = hold_finds(&deployment.members()[0], "test.held").await;
    let mut held = WireClient::connect_as(&program.address().await, "reports").await.unwrap();
    let (find, top) = tokio::join!(held.command("test", doc! { "find": "held" }), async {
        hold.reaches(1).await;
        let mut top = Program::start(&["top", "--json", "--count", "2", "--interval", "500ms", "--admin", &admin]);
        // Something is counted in whichever interval it falls.
        for _ in 0..50 {
            client.command("test", doc! { "find": "c" }).await.unwrap();
        }
        let ended = top.ended().await;
        hold.release().await;
        ended
    });
    find.unwrap();
    let text = said(top);
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2, "{text}");
    for object in &objects {
        assert!(object["rates"]["seconds"].as_f64().unwrap() >= 0.5, "{object}");
        assert_eq!(object["stats"]["clusters"][0]["active"], 1, "{object}");
        let reports = object["applications"].as_array().unwrap().iter().find(|it| it["name"] == "reports");
        assert_eq!(reports.unwrap()["active"], 1, "{object}");
        assert!(object["time"].as_str().unwrap().ends_with('Z'));
    }
    let words = failed(at(&admin, &["top", "--count", "1"]).await);
    assert!(words.contains("cannot draw on the terminal") && words.contains("--json"), "a pipe is none: {words}");
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn orders_are_carried_out_or_refused_in_the_servers_words() {
    let (_deployment, mut program, admin, mut client) = at_work().await;
    let insert = doc! { "insert": "c", "documents": [{ "a": 1 }] };
    let text = said(at(&admin, &["admin", "mode", "read-only"]).await);
    assert_eq!(text, "clusters: default\nmode: read-only\n");
    let events = said(at(&admin, &["admin", "events", "--kind", "mode", "--limit", "1"]).await);
    assert!(events.lines().count() == 1 && events.contains("  mode  default  is read-only now"), "{events}");
    let order = said(at(&admin, &["admin", "events", "--kind", "action", "--limit", "1"]).await);
    assert!(order.trim_end().ends_with(": read-only for default"), "{order}");
    let words = failed(at(&admin, &["admin", "events", "--kind", "moods"]).await);
    assert!(words.contains("expected one of connected"), "{words}");
    assert_eq!(client.command("test", insert.clone()).await.unwrap_err().code(), Some(371));
    assert!(said(at(&admin, &["stats"]).await).contains("mode read-only"));
    let answer = json(at(&admin, &["admin", "--json", "mode", "normal", "--cluster", "default"]).await);
    assert_eq!(answer["mode"], "normal");
    let words = failed(at(&admin, &["admin", "mode", "normal", "--cluster", "shop"]).await);
    assert!(words.contains(r#"cluster: found "shop", expected one of ["default"]"#), "{words}");

    let text = said(at(&admin, &["admin", "rules", "--deny-commands", "insert"]).await);
    assert!(text.contains("denyCommands: insert"), "{text}");
    assert_eq!(client.command("test", insert.clone()).await.unwrap_err().code(), Some(13));
    let words = failed(at(&admin, &["admin", "rules", "--deny-commands", "getMore"]).await);
    assert!(words.contains("always passed"), "{words}");
    let stats = said(at(&admin, &["stats"]).await);
    assert!(stats.contains("denied commands: insert"), "{stats}");
    said(at(&admin, &["admin", "rules", "--deny-commands", ""]).await);
    client.command("test", insert).await.unwrap();

    drop(client);
    said(at(&admin, &["admin", "drain"]).await);
    assert_eq!(program.ended().await.0, 0, "it was ended by nothing else");
    let audit = program.log().lines().filter(|line| line.contains("admin order")).count();
    assert_eq!(audit, 7, "each left a line: {}", program.log());
}

#[tokio::test]
async fn a_pause_is_seen_wherever_one_looks_and_one_of_no_database_is_refused() {
    let (_deployment, mut program, admin, client) = at_work().await;
    for name in ["", "a.b", "a b", &"long".repeat(16)] {
        let words = failed(at(&admin, &["admin", "pause", "--database", name]).await);
        assert!(words.contains("database: found") && words.contains("no database can be called"), "{words}");
    }
    said(at(&admin, &["admin", "pause", "--database", "shop", "--timeout", "1h"]).await);
    said(at(&admin, &["admin", "pause"]).await);
    for command in ["stats", "diag"] {
        let text = said(at(&admin, &[command]).await);
        for words in ["  paused  paused (database shop) for another", "New commands are held by order, until somebody"]
        {
            assert!(text.contains(words), "{command}: {words}: {text}");
        }
    }
    said(at(&admin, &["admin", "resume"]).await);
    let text = said(at(&admin, &["stats"]).await);
    assert!(!text.contains("paused") && !text.contains("by order"), "{text}");
    drop(client);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn a_pause_can_be_waited_for_until_nothing_runs() {
    let (deployment, mut program, admin, mut client) = at_work().await;
    let pause = |timeout: &str| {
        Program::start(&["admin", "pause", "--wait", "--timeout", timeout, "--json", "--admin", &admin])
    };
    let quiet = json(pause("60s").ended().await);
    assert_eq!((&quiet["paused"], &quiet["inFlight"]), (&serde_json::json!(["default"]), &0.into()));
    said(at(&admin, &["admin", "resume"]).await);

    // A command in flight, and a transaction with nothing on its way.
    let hold = hold_finds(&deployment.members()[0], "test.c").await;
    let held = client.send(&Request::new("test", doc! { "find": "c", "filter": {} })).await.unwrap();
    hold.reaches(1).await;
    let told = failed(pause("300ms").ended().await);
    assert!(
        told.contains("the pause is over before all was quiet: 1 commands in flight, 0 open transactions"),
        "{told}"
    );
    let mut other = WireClient::connect(&program.address().await).await.unwrap();
    let lsid = support::new_lsid();
    let insert = doc! { "insert": "d", "documents": [{ "_id": 1 }], "lsid": lsid.clone(), "txnNumber": 1_i64,
    "autocommit": false, "startTransaction": true };
    other.command("test", insert).await.unwrap();
    let mut waits = pause("60s");
    let paused =
        async || json(at(&admin, &["stats", "--json"]).await)["clusters"][0]["paused"] != serde_json::json!([]);
    eventually("it is paused", paused).await;
    hold.release().await;
    client.receive(held).await.unwrap();
    let still = tokio::time::timeout(std::time::Duration::from_millis(500), waits.ended()).await;
    assert!(still.is_err(), "a transaction is open: {still:?}");
    let commit = doc! { "commitTransaction": 1, "lsid": lsid, "txnNumber": 1_i64, "autocommit": false };
    other.command("admin", commit).await.unwrap();
    assert_eq!(json(waits.ended().await)["inFlight"], 0);
    said(at(&admin, &["admin", "resume"]).await);

    // Somebody else resumes.
    let lsid = support::new_lsid();
    let insert = doc! { "insert": "d", "documents": [{ "_id": 2 }], "lsid": lsid.clone(), "txnNumber": 1_i64,
    "autocommit": false, "startTransaction": true };
    other.command("test", insert).await.unwrap();
    let mut waits = pause("60s");
    eventually("it is paused", paused).await;
    said(at(&admin, &["admin", "resume"]).await);
    assert!(failed(waits.ended().await).contains("the pause is over before all was quiet"));
    let abort = doc! { "abortTransaction": 1, "lsid": lsid, "txnNumber": 1_i64, "autocommit": false };
    other.command("admin", abort).await.unwrap();
    drop((client, other));
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn who_is_connected_is_listed_and_ended_by_id_or_application() {
    let (_deployment, mut program, admin, mut shop) = at_work().await;
    let address = program.address().await;
    let mut reports = Vec::new();
    for _ in 0..2 {
        reports.push(WireClient::connect_as(&address, "reports & more").await.unwrap());
    }
    let groups = said(at(&admin, &["admin", "clients"]).await);
    assert!(groups.contains("reports & more") && !groups.contains("state"), "{groups}");
    let list = ["admin", "clients", "--list", "--application", "reports & more", "--json"];
    let told = json(at(&admin, &list).await);
    let listed = told["clients"].as_array().unwrap();
    assert_eq!((listed.len(), &told["total"]), (2, &2.into()), "{told}");
    let some = json(at(&admin, &["admin", "clients", "--list", "--limit", "1", "--json"]).await);
    assert_eq!(some["clients"].as_array().unwrap().len(), 1, "{some}");

    let id = listed[0]["id"].to_string();
    assert_eq!(json(at(&admin, &["admin", "kill", &id, "--json"]).await)["killed"], true);
    let words = failed(at(&admin, &["admin", "kill", &id]).await);
    assert!(words.contains("it has left"), "{words}");
    let answer = json(at(&admin, &["admin", "kill", "--application", "reports & more", "--json"]).await);
    assert_eq!(answer["killed"], 1);
    for mut client in reports {
        assert!(client.command("test", doc! { "ping": 1 }).await.is_err(), "its socket is closed");
    }
    shop.command("test", doc! { "ping": 1 }).await.unwrap();
    drop(shop);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn a_reload_tells_every_mistake_and_the_log_goes_back_to_what_it_was() {
    let deployment = support::replica_set(1).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mongomux.toml");
    std::fs::write(&file, "").unwrap();
    let mut program = Program::run(&["--config", file.to_str().unwrap(), &deployment.uri()]);
    let admin = admin_address(&program).await;
    std::fs::write(&file, "max_pool_sise = 3\nretry = 7\n").unwrap();
    let words = failed(at(&admin, &["admin", "reload"]).await);
    for mistake in ["mongomux.toml:1: max_pool_sise: unknown key, did you mean", "mongomux.toml:2: retry: found 7"] {
        assert!(words.lines().any(|line| line.contains(mistake)), "{mistake}: {words}");
    }
    let answer = json(at(&admin, &["admin", "--json", "log", "warn,mongomux::connection=debug"]).await);
    assert_eq!((&answer["level"], &answer["before"]), (&"warn,mongomux::connection=debug".into(), &"info".into()));
    let answer = json(at(&admin, &["admin", "--json", "log", "default"]).await);
    assert_eq!(answer["level"], "info");
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn who_reads_no_further_ends_it_without_a_word() {
    let (_deployment, mut program, admin, client) = at_work().await;
    let top = Program::command()
        .args(["top", "--json", "--interval", "100ms", "--admin", &admin])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut top = top.unwrap();
    let mut first = [0; 1];
    let mut output = top.stdout.take().unwrap();
    output.read_exact(&mut first).await.unwrap();
    drop(output);
    let ended = top.wait_with_output().await.unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
    drop(client);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

/// A terminal: the end that a program has, and ours.
fn terminal() -> (OwnedFd, tokio::fs::File) {
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    rustix::pty::unlockpt(&ours).unwrap();
    let name = rustix::pty::ptsname(&ours, Vec::new()).unwrap();
    let theirs = std::fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(name.to_str().unwrap());
    rustix::termios::tcsetwinsize(&ours, Winsize { ws_row: 30, ws_col: 110, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (theirs.unwrap().into(), std::fs::File::from(ours).into())
}

fn modes(terminal: &OwnedFd) -> String {
    format!("{:?}", rustix::termios::tcgetattr(terminal).unwrap())
}

/// `top` on that terminal, once it has drawn.
async fn top_on(admin: &str, theirs: &OwnedFd, ours: &mut tokio::fs::File) -> tokio::process::Child {
    let end = || std::process::Stdio::from(theirs.try_clone().unwrap());
    let mut command = Program::command();
    command.env("TERM", "xterm").args(["top", "--admin", admin]);
    let top = command.stdin(end()).stdout(end()).stderr(end()).kill_on_drop(true).spawn().unwrap();
    let mut drawn = Vec::new();
    let is_there = async {
        while !String::from_utf8_lossy(&drawn).contains("default") {
            ours.read_buf(&mut drawn).await.unwrap();
        }
    };
    tokio::time::timeout(support::PATIENCE, is_there).await.unwrap_or_else(|_| panic!("nothing is drawn"));
    top
}

#[tokio::test]
async fn top_gives_the_terminal_back_however_it_ends() {
    let (_deployment, _program, admin, _client) = at_work().await;
    for signal in [None, Some(Signal::TERM), Some(Signal::HUP), Some(Signal::INT), Some(Signal::QUIT)] {
        let (theirs, mut ours) = terminal();
        let before = modes(&theirs);
        let mut top = top_on(&admin, &theirs, &mut ours).await;
        assert_ne!(modes(&theirs), before, "it has taken the terminal");
        match signal {
            Some(signal) => kill_process(Pid::from_raw(top.id().unwrap().cast_signed()).unwrap(), signal).unwrap(),
            None => ours.write_all(b"q").await.unwrap(),
        }
        let ended = tokio::time::timeout(support::PATIENCE, top.wait()).await.unwrap().unwrap();
        assert_eq!((ended.code(), modes(&theirs)), (Some(0), before), "{signal:?}");
        drop(theirs);
        let mut rest = Vec::new();
        // Ends with an error, as nobody has the other end any more.
        while ours.read_buf(&mut rest).await.is_ok_and(|bytes| bytes > 0) {}
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.contains("\x1b[?1049l") && rest.contains("\x1b[?25h"), "screen and cursor, {signal:?}: {rest:?}");
    }
    let (theirs, mut ours) = terminal();
    let mut top = top_on(&admin, &theirs, &mut ours).await;
    drop((theirs, ours));
    let ended = tokio::time::timeout(support::PATIENCE, top.wait()).await.unwrap().unwrap();
    assert_eq!(ended.signal(), None, "no abort where the terminal has gone");
}

/// A deployment that asks for log-ins, its proxy, and every secret that either has.
struct Secured {
    _deployment: Deployment,
    program: Program,
    admin: String,
    tokens: String,
    _directory: tempfile::TempDir,
}

async fn secured(user: &str) -> Secured {
    let options = DeploymentOptions { auth: true, ..DeploymentOptions::for_tests(1) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    support::first_user(&deployment, "root", PASSWORD).await;
    let member = deployment.members()[0].address().clone();
    let mut root = WireClient::connect_as(&member, "mongomux test").await.unwrap();
    support::log_in::log_in(&mut root, "admin.root", PASSWORD).await;
    let create = doc! { "createUser": "plain", "pwd": PASSWORD, "roles": [{ "role": "readWrite", "db": "test" }] };
    root.command("admin", create).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let tokens = secret(path("tokens"), TOKEN);
    let users = secret(path("users.toml"), &format!("[[user]]\nname = \"app\"\npassword = \"{PASSWORD}\"\n"));
    let settings = format!("auth = \"users\"\nusers_file = \"{users}\"\nadmin_token_file = \"{tokens}\"\n");
    let file = secret(path("mongomux.toml"), &settings);
    let uri = deployment.uri().replace("mongodb://", &format!("mongodb://{user}:{ENCODED}@"));
    let program = Program::run(&["--config", &file, &uri]);
    let admin = admin_address(&program).await;
    let mut client = WireClient::connect_as(&program.address().await, "shop").await.unwrap();
    support::log_in::log_in(&mut client, "admin.app", PASSWORD).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "a": 1 }] }).await.unwrap();
    Secured { _deployment: deployment, program, admin, tokens, _directory: directory }
}

fn assert_no_secret(text: &str) {
    for secret in ["hush", PASSWORD, ENCODED, TOKEN] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn a_bundle_has_what_a_ticket_needs_and_no_secret() {
    let mut all = secured("root").await;
    let arguments = ["diag", "--server", "--admin-token-file", &all.tokens];
    let text = said(at(&all.admin, &arguments).await);
    assert_no_secret(&text);
    for title in [
        "versions",
        "the machine that this was run on",
        "configuration in force",
        "servers, topology",
        "the proxy's process",
        "pools",
        "queue",
        "pins",
        "commands",
        "clients by application",
        "recent events",
        "what MongoDB says",
    ] {
        assert!(text.lines().any(|line| line.starts_with(&format!("== {title}"))), "{title}: {text}");
    }
    assert!(text.contains("      max_pool_size: 10 (default)\n"), "{text}");
    assert!(text.contains("openFilesHard") && text.contains("upstream_connections_created_total"), "{text}");
    let bundle = json(at(&all.admin, &[&arguments[..], &["--json"]].concat()).await);
    assert_no_secret(&bundle.to_string());
    let cluster = &bundle["server"]["clusters"][0];
    assert!(cluster["serverStatus"]["connections"]["current"].as_i64().unwrap() >= 1, "{cluster}");
    let applications = cluster["applications"].as_array().unwrap();
    let ours = applications.iter().find(|it| it["application"] == "mongomux").unwrap_or_else(|| panic!("{cluster}"));
    assert!(ours["connections"].as_i64().unwrap() >= 1 && ours["active"] == 1, "the one that asked: {cluster}");
    assert!(cluster["connPoolStats"]["totalInUse"].is_number(), "{cluster}");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ticket");
    let output = ["--output", file.to_str().unwrap()];
    assert_eq!(said(at(&all.admin, &[&arguments[..], &output].concat()).await), "");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&file).unwrap().contains("== versions =="));
    let words = failed(at(&all.admin, &[&arguments[..], &output].concat()).await);
    assert!(words.contains("File exists"), "nothing is overwritten: {words}");
    all.program.terminate();
    assert_eq!(all.program.ended().await.0, 0);
}

#[tokio::test]
async fn what_the_proxys_user_may_not_know_is_said_and_the_rest_is_told() {
    let mut all = secured("plain").await;
    let bundle = json(at(&all.admin, &["diag", "--server", "--json", "--admin-token-file", &all.tokens]).await);
    let cluster = &bundle["server"]["clusters"][0];
    assert!(
        cluster["serverStatus"]["error"].as_str().unwrap().contains("grant it the role clusterMonitor"),
        "{cluster}"
    );
    assert!(cluster["server"].is_string() && bundle["stats"]["clusters"][0]["servers"][0]["address"].is_string());
    assert_no_secret(&bundle.to_string());
    all.program.terminate();
    assert_eq!(all.program.ended().await.0, 0);
}

#[tokio::test]
async fn a_bundle_without_a_proxy_tells_of_the_machine() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = format!("unix:{}", Path::new(directory.path()).join("none").display());
    let (code, _, text) = at(&nobody, &["diag", "--server"]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("openFilesHard") && text.contains("not to be had: nothing listens at unix:"), "{text}");
    let (code, _, text) = at(&nobody, &["diag", "--json"]).await;
    let bundle: Value = serde_json::from_str(&text).unwrap();
    assert!(code == 1 && bundle["machine"]["kernel"].is_string() && bundle["stats"]["unavailable"].is_string());
}

/// Without a server that answers, whoever asks is told so in time, and the one who asks next is not kept waiting for ever.
#[tokio::test]
async fn mongodb_that_is_not_there_is_said() {
    let mut program = Program::run(&["mongodb://127.0.0.1:1/"]);
    let admin: Address = admin_address(&program).await.parse().unwrap();
    let answer = support::http(&admin, "GET", "/server", "").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"server\":null"), "{answer}");
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}
