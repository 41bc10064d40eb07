//! SIGHUP, and files that change: what the program says of it, and that one kind of file does not hide the trouble of another.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bson::doc;
use mongomux::config::Address;
use support::certificates::{Authority, TlsClient, Wish, replace};
use support::hold::eventually;
use support::http;
use support::program::Program;

async fn admin_address(program: &Program) -> Address {
    let line = program.line("admin port").await;
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("address="));
    address.unwrap_or_else(|| panic!("no address in {line}")).parse().unwrap()
}

async fn has(admin: &Address, line: &str) -> bool {
    http(admin, "GET", "/metrics", "").await.lines().any(|it| it == line)
}

fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn a_hang_up_reads_certificates_and_leaves_open_sockets_alone() {
    let deployment = support::standalone().await;
    let (old, new) = (Authority::new(), Authority::new());
    let own = old.sign("own.pem", &Wish::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("tls = true\ntls_certificate_key_file = \"{}\"\n", own.display())).unwrap();
    let mut program = Program::run(&["--config", file.path().to_str().unwrap(), &deployment.uri()]);
    let address = program.address().await;
    let mut open = TlsClient::new(&old).greeted(&address).await.unwrap();
    // Also what has not changed, at the time that is asked for.
    program.hang_up();
    program.line("TLS files were read again").await;
    TlsClient::new(&old).greeted(&address).await.unwrap();
    let (text, key) = new.signed(&Wish::default());
    replace(&own, &(text + &key));
    program.hang_up();
    eventually("the new one is shown", async || TlsClient::new(&new).greeted(&address).await.is_ok()).await;
    TlsClient::new(&old).greeted(&address).await.unwrap_err();
    open.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    drop(open);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn the_last_reading_of_every_file_counts() {
    let authority = Authority::new();
    let client = authority.sign("client.pem", &Wish::default());
    let upstream = authority.sign("upstream.pem", &Wish::default());
    let [users, tokens, password] = ["users.toml", "tokens", "password"].map(|name| authority.path(name));
    secret(&users, "[[user]]\nname = \"a\"\npassword = \"b\"\n");
    secret(&tokens, "a-token-0123456789abcdef");
    secret(&password, "a password");
    let settings = format!(
        "upstream = \"mongodb://service@127.0.0.1:1/?tls=true&tlsCertificateKeyFile={}\"\n\
         upstream_password_file = \"{}\"\nauth = \"users\"\nusers_file = \"{}\"\nadmin_token_file = \"{}\"\n\
         tls = true\ntls_certificate_key_file = \"{}\"\n",
        upstream.display(),
        password.display(),
        users.display(),
        tokens.display(),
        client.display(),
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), settings).unwrap();
    let mut program = Program::run(&["--config", file.path().to_str().unwrap()]);
    let port = admin_address(&program).await;
    let (good, bad) = ("mongomux_config_reload_success 1", "mongomux_config_reload_success 0");
    assert!(has(&port, good).await, "what it starts with was read");
    for (path, broken) in [(&client, ""), (&upstream, ""), (&users, "[[user"), (&tokens, "short"), (&password, "\n")] {
        let text = std::fs::read_to_string(path).unwrap();
        let path_text = path.to_str().unwrap();
        secret(path, broken);
        for told in 1..=2 {
            // All others are read well each time.
            program.hang_up();
            eventually("it is said", async || {
                let log = program.log();
                log.lines().filter(|line| line.contains("ERROR") && line.contains(path_text)).count() >= told
            })
            .await;
            eventually(path_text, async || has(&port, bad).await).await;
        }
        secret(path, &text);
        program.hang_up();
        eventually(&format!("{path_text} is right"), async || has(&port, good).await).await;
    }
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}
