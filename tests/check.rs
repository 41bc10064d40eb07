//! `mongomux check`: all files that a configuration names are read, and everything that is wrong with them is said at once.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use support::certificates::{Authority, Wish};
use support::program::Program;

fn secret(path: PathBuf, text: &str, mode: u32) -> PathBuf {
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// The files of a configuration that has one of every kind.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    crl: PathBuf,
    upstream: PathBuf,
    upstream_ca: PathBuf,
    password: PathBuf,
    admin: PathBuf,
    admin_ca: PathBuf,
    tokens: PathBuf,
    users: PathBuf,
}

impl Files {
    fn configuration(&self) -> tempfile::NamedTempFile {
        let shown = |path: &Path| path.display().to_string();
        let text = format!(
            "upstream = \"mongodb://service@127.0.0.1:1/?tls=true&tlsCAFile={}&tlsCertificateKeyFile={}\"\n\
             upstream_password_file = \"{}\"\nlisten = [\"127.0.0.1:0\", \"[::1]:0\"]\n\
             tls = true\ntls_certificate_key_file = \"{}\"\ntls_key_file = \"{}\"\ntls_ca_file = \"{}\"\ntls_crl_file = \"{}\"\n\
             auth = \"users\"\nusers_file = \"{}\"\nadmin = \"127.0.0.1:0\"\nadmin_token_file = \"{}\"\nadmin_tls = true\n\
             admin_tls_certificate_key_file = \"{}\"\nadmin_tls_ca_file = \"{}\"\n",
            shown(&self.upstream_ca),
            shown(&self.upstream),
            shown(&self.password),
            shown(&self.certificate),
            shown(&self.key),
            shown(&self.ca),
            shown(&self.crl),
            shown(&self.users),
            shown(&self.tokens),
            shown(&self.admin),
            shown(&self.admin_ca),
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }
}

#[tokio::test]
async fn a_rule_for_a_command_that_is_none_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "deny_commands = [\"dropDatabse\", \"dropDatabase\", \"listindexes\"]\n").unwrap();
    let (code, log, output) = Program::start(&["check", "--config", file.path().to_str().unwrap()]).ended().await;
    assert_eq!(code, 0, "a server may know more commands: {log}{output}");
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(matches!(&warnings[..], [line] if line.contains("not known") && line.contains("dropDatabse")), "{log}");
}

/// What is wrong with values does not hide what is wrong with the files that others name, nor does one value another.
#[tokio::test]
async fn values_and_files_are_told_together() {
    let directory = tempfile::tempdir().unwrap();
    let none = |name: &str| directory.path().join(name).display().to_string();
    let file = directory.path().join("mongomux.toml");
    let text = format!(
        "upstream = \"mongodb://service@127.0.0.1:1/?maxPoolSize=0&minPoolSize=x&foo=1&tlsCAFile={}\"\n\
         upstream_password_file = \"{}\"\nlisten = \"127.0.0.1:0\"\nauth = \"users\"\nusers_file = \"{}\"\n\
         admin = \"127.0.0.1:0\"\nadmin_token_file = \"{}\"\nmax_clients = \"many\"\nwait_queue_timeout_ms = 0\n",
        none("ca.pem"),
        none("password"),
        none("users.toml"),
        none("tokens"),
    );
    std::fs::write(&file, text).unwrap();
    for command in ["check", "run"] {
        let (code, log, output) = Program::start(&[command, "--config", file.to_str().unwrap()]).ended().await;
        assert_eq!(code, 2, "{command}: {log}{output}");
        for told in [
            "maxPoolSize=0",
            "minpoolsize",
            "foo is an invalid option",
            "max_clients: ",
            "wait_queue_timeout_ms: ",
            "ca.pem: No such file",
            "password: cannot be read: No such file",
            "users.toml: cannot be read: No such file",
            "tokens: cannot be read: No such file",
        ] {
            assert_eq!(log.lines().filter(|line| line.contains(told)).count(), 1, "{command}: {told}: {log}");
        }
        assert_eq!(log.lines().filter(|line| !line.is_empty()).count(), 9, "{command}: nothing else: {log}");
    }
}

/// The next process looks for this one there, and finds out only when it is too late.
#[tokio::test]
async fn the_upgrade_socket_needs_a_directory_that_it_can_be_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("file"), "no socket").unwrap();
    let long = "s".repeat(108 - directory.path().as_os_str().len() - 1);
    let check =
        async |socket: PathBuf| Program::start(&["check", "--upgrade-socket", socket.to_str().unwrap()]).ended().await;
    for (socket, told) in [
        (path("none/up.sock"), "the directory"),
        (path("file/up.sock"), "is no directory"),
        (path("file"), "is there and no socket"),
        (path(&long), "is 108 bytes long, and a unix socket may have at most 107"),
    ] {
        let (code, log, output) = check(socket).await;
        assert_eq!(code, 2, "{told}: {log}{output}");
        assert!(log.contains("upgrade_socket: ") && log.contains(told), "{told}: {log}");
    }
    for socket in [path("up.sock"), path(&long[1..]), "up.sock".into()] {
        let (code, log, output) = check(socket).await;
        assert_eq!(code, 0, "{log}{output}");
    }
}

#[tokio::test]
async fn every_file_is_read_and_every_mistake_is_said() {
    let authority = Authority::new();
    let (certificate, key) = authority.signed(&Wish::default());
    let path = |name: &str| authority.path(name);
    let good = Files {
        certificate: secret(path("good.crt"), &certificate, 0o644),
        key: secret(path("good.key"), &key, 0o600),
        ca: authority.file(),
        crl: authority.revoke("list.pem", 666),
        upstream: authority.sign("upstream.pem", &Wish::default()),
        upstream_ca: authority.file(),
        password: secret(path("password"), "hush-hush", 0o600),
        admin: authority.sign("admin.pem", &Wish::default()),
        admin_ca: authority.file(),
        tokens: secret(path("tokens"), "a-token-0123456789abcdef", 0o600),
        users: secret(path("users.toml"), "[[user]]\nname = \"a\"\npassword = \"b\"\n", 0o600),
    };
    let configuration = good.configuration();
    let (code, log, output) =
        Program::start(&["check", "--config", configuration.path().to_str().unwrap()]).ended().await;
    assert!(code == 0 && output.contains("valid"), "{code}: {log}{output}");

    let (_, another_key) = authority.signed(&Wish::default());
    let mixed = |name: &str| secret(path(name), &format!("{certificate}{another_key}"), 0o600);
    let bad = Files {
        certificate: path("none.crt"),
        key: secret(path("bad.key"), "no key", 0o600),
        ca: path("none-ca.pem"),
        crl: good.certificate.clone(),
        upstream: mixed("upstream-mixed.pem"),
        upstream_ca: path("none-upstream-ca.pem"),
        password: secret(path("empty"), "\n", 0o600),
        admin: mixed("admin-mixed.pem"),
        admin_ca: good.key.clone(),
        tokens: secret(path("open"), "a-token-0123456789abcdef", 0o644),
        users: secret(path("bad-users.toml"), "[[user]]\nname = 5\n[[user]]\npasword = \"hush-hush\"\n", 0o600),
    };
    let configuration = bad.configuration();
    for command in ["check", "run"] {
        let (code, log, output) =
            Program::start(&[command, "--config", configuration.path().to_str().unwrap()]).ended().await;
        assert_eq!(code, 2, "{command}: {log}{output}");
        for (whose, told) in [
            ("listener 127.0.0.1:0: ", "none.crt: No such file"),
            ("listener 127.0.0.1:0: ", "bad.key: holds no private key in PEM form"),
            ("listener 127.0.0.1:0: ", "none-ca.pem: No such file"),
            ("listener 127.0.0.1:0: ", "good.crt: holds no certificate revocation list"),
            ("cluster `default`: ", "upstream-mixed.pem: the private key does not belong"),
            ("cluster `default`: ", "none-upstream-ca.pem: No such file"),
            ("cluster `default`: ", "empty: is empty, expected a password"),
            ("admin port: ", "admin-mixed.pem: the private key does not belong"),
            ("admin port: ", "good.key: holds no certificate in PEM form"),
            ("admin_token_file: ", "open: everybody may use it (mode 644)"),
            ("bad-users.toml:2: ", "user[1].name"),
            ("bad-users.toml:4: ", "pasword"),
        ] {
            let lines = log.lines().filter(|line| line.contains(whose) && line.contains(told));
            assert_eq!(lines.count(), 1, "{command}: {whose}{told}: {log}");
        }
        assert!(!log.contains("hush-hush") && !output.contains("hush-hush"), "{log}{output}");
    }
}
