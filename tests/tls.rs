//! TLS on both legs: who is let in and who is not, what is told of it, and certificates that change while all goes on.
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod support;

use std::path::Path;
use std::process::Command;

use bson::{Document, doc};
use mongomux::config::Address;
use mongomux::config::uri::Upstream;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::sandbox::wire_client::WireClient;
use mongomux::upstream::tls::UpstreamTls;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::certificates::{Authority, TlsClient, Wish, replace};
use support::hold::eventually;
use support::proxy::{Proxy, configured, proxy};
use support::{first_batch, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Recovery within a second.
const QUICK: &str = "
    heartbeat_frequency_ms = 500
    reconnect.max_ms = 200
    breaker.open_initial_ms = 100
    breaker.open_max_ms = 500
";

/// Lines of a configuration for a listener with that certificate.
fn listener(certificate: &Path, more: &str) -> String {
    format!("tls = true\ntls_certificate_key_file = \"{}\"\n{more}\n", certificate.display())
}

async fn works(client: &mut WireClient, id: i32) {
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": id }] }).await.unwrap();
    let found = client.command("test", doc! { "find": "c", "filter": { "_id": id } }).await.unwrap();
    assert_eq!(first_batch(&found).len(), 1);
}

fn refused(proxy: &Proxy) -> f64 {
    proxy.metric("mongomux_client_connections_closed_total{reason=\"tls\"}")
}

/// A standalone that takes TLS with a certificate of `authority` only; it serves those without for the set-up, until told
/// otherwise.
async fn encrypted(authority: &Authority, certificate: &Path, more: &[&str]) -> Deployment {
    let mut arguments = vec![
        "--tlsMode=preferTLS".to_owned(),
        format!("--tlsCertificateKeyFile={}", certificate.display()),
        format!("--tlsCAFile={}", authority.file().display()),
    ];
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    let options = DeploymentOptions { arguments, ..DeploymentOptions::for_tests(0) };
    Deployment::start(options).await.unwrap_or_else(support::no_deployment)
}

const WITHOUT_CERTIFICATES: &str = "--tlsAllowConnectionsWithoutCertificates";

async fn require_tls(deployment: &Deployment) {
    let command = doc! { "setParameter": 1, "tlsMode": "requireTLS" };
    support::client(&deployment.members()[0]).await.command("admin", command).await.unwrap();
}

fn upstream(deployment: &Deployment, options: &str) -> String {
    format!("mongodb://{}/?tls=true&{options}", deployment.members()[0].address())
}

#[tokio::test]
async fn both_versions_are_spoken_and_large_messages_arrive_whole() {
    let deployment = support::standalone().await;
    let authority = Authority::new();
    let certificate = authority.sign("own.pem", &Wish::default());
    let proxy = proxy(&deployment.uri(), &listener(&certificate, "")).await;
    for (id, version) in [(1, &rustls::version::TLS12), (2, &rustls::version::TLS13)] {
        let client = TlsClient { version: Some(version), ..TlsClient::new(&authority) };
        let stream = client.connect(proxy.address()).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        let mut client = WireClient::over(stream);
        client.hello("mongomux test").await.unwrap();
        works(&mut client, id).await;
        let text: String = (0..2_000_000_u32).map(|n| char::from(b'a' + u8::try_from(n % 23).unwrap())).collect();
        let documents: Vec<Document> = (0..4).map(|n| doc! { "_id": 10 * id + n, "text": &text }).collect();
        client.command("test", doc! { "insert": "large", "documents": &documents }).await.unwrap();
        let filter = doc! { "_id": { "$gte": 10 * id } };
        let found =
            client.command("test", doc! { "find": "large", "filter": filter, "sort": { "_id": 1 } }).await.unwrap();
        assert!(first_batch(&found) == documents, "the documents come back as they were sent");
    }
}

#[tokio::test]
async fn the_real_driver_connects_and_a_certificate_that_it_does_not_trust_is_refused() {
    let deployment = support::standalone().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let certificate = authority.sign("own.pem", &Wish::default());
    let proxy = proxy(&deployment.uri(), &listener(&certificate, "")).await;
    let uri = |authority: &Authority| {
        format!("{}?tls=true&tlsCAFile={}&serverSelectionTimeoutMS=2000", proxy.uri(), authority.file().display())
    };
    let client = mongodb::Client::with_uri_str(uri(&authority)).await.unwrap();
    let things = client.database("test").collection::<Document>("things");
    things.insert_many((0..500).map(|id| doc! { "_id": id })).await.unwrap();
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 500);
    let client = mongodb::Client::with_uri_str(uri(&other)).await.unwrap();
    client.database("test").run_command(doc! { "ping": 1 }).await.unwrap_err();
    assert!(refused(&proxy) >= 1.0);
}

#[tokio::test]
async fn who_speaks_tls_to_a_plain_listener_or_the_other_way_round_is_closed_and_counted() {
    let deployment = support::standalone().await;
    let authority = Authority::new();
    let certificate = authority.sign("own.pem", &Wish::default());
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("mongomux.sock");
    let settings = format!(
        "upstream = \"{}\"\n[[listener]]\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n{}[[listener]]\nlisten = \"127.0.0.1:0\"\n",
        deployment.uri(),
        socket.display(),
        listener(&certificate, "")
    );
    let proxy = configured(&settings).await;
    let [encrypted, unix, plain] = proxy.addresses() else { panic!("{:?}", proxy.addresses()) };
    // A unix socket of the same listener is plain.
    works(&mut support::connect(unix).await, 1).await;
    works(&mut support::connect(plain).await, 2).await;
    works(&mut TlsClient::new(&authority).greeted(encrypted).await.unwrap(), 3).await;
    assert_eq!(refused(&proxy), 0.0);
    WireClient::connect_as(encrypted, "plain").await.unwrap_err();
    eventually("the plain client is counted", async || refused(&proxy) == 1.0).await;
    // Read as a message, this hello would be one of 33 MB; and another, one that is over the limit.
    for names in [1, 60] {
        let mut stream = TcpStream::connect(plain.to_string()).await.unwrap();
        let length = 250 * names;
        let mut hello = vec![0x16, 3, 1];
        hello.extend(u16::try_from(length).unwrap().to_be_bytes());
        hello.resize(5 + usize::try_from(length).unwrap(), 0xAB);
        stream.write_all(&hello).await.unwrap();
        let mut rest = Vec::new();
        // Bytes of ours that nobody has read may make it a reset.
        drop(stream.read_to_end(&mut rest).await);
        assert_eq!(rest, [0; 0]);
    }
    TlsClient::new(&authority).connect(plain).await.unwrap_err();
    eventually("those with TLS are counted", async || refused(&proxy) == 4.0).await;
    assert_eq!(proxy.metric("mongomux_client_connections_closed_total{reason=\"handshake_timeout\"}"), 0.0);
}

#[tokio::test]
async fn client_certificates_are_asked_for_and_verified() {
    let deployment = support::standalone().await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let own = authority.sign("own.pem", &Wish::default());
    let good = || Some(authority.sign("good.pem", &Wish::default()));
    let ca = format!("tls_ca_file = \"{}\"\n", authority.file().display());
    let list = authority.revoke("list.pem", 666);
    let cases = [
        ("no certificate", None, false),
        ("a good one", good(), true),
        ("one of others", Some(stranger.sign("x.pem", &Wish::default())), false),
        ("an old one", Some(authority.sign("old.pem", &Wish { until: 2020, ..Wish::default() })), false),
        ("a revoked one", Some(authority.sign("revoked.pem", &Wish { number: 666, ..Wish::default() })), false),
    ];
    for (setting, without) in [("", false), ("tls_client_certificates = \"optional\"\n", true)] {
        let more = format!("{ca}{setting}tls_crl_file = \"{}\"", list.display());
        let proxy = proxy(&deployment.uri(), &listener(&own, &more)).await;
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for (what, shows, served) in &cases {
                let shows = shows.clone();
                let served = *served || (shows.is_none() && without);
                let client = TlsClient { shows, version: Some(version), ..TlsClient::new(&authority) };
                let greeted = client.greeted(proxy.address()).await;
                assert_eq!(greeted.is_ok(), served, "{what}, {setting}: {:?}", greeted.err());
            }
        }
    }
}

#[tokio::test]
async fn what_is_cut_short_or_stands_still_is_closed_and_an_end_is_said() {
    let deployment = support::standalone().await;
    let authority = Authority::new();
    let certificate = authority.sign("own.pem", &Wish::default());
    let times = "handshake_timeout_ms = 500\nclient_stall_timeout_ms = 500\nclient_idle_timeout_ms = 20000\n";
    let proxy = proxy(&deployment.uri(), &listener(&certificate, times)).await;
    let closed =
        |reason: &str| proxy.metric(&format!("mongomux_client_connections_closed_total{{reason=\"{reason}\"}}"));
    // A handshake that goes on for ever, byte by byte.
    let mut slow = TcpStream::connect(proxy.address().to_string()).await.unwrap();
    slow.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    eventually("the handshake ends", async || closed("handshake_timeout") == 1.0).await;
    // And one after which nothing is said.
    let mut silent = TlsClient::new(&authority).connect(proxy.address()).await.unwrap();
    eventually("its time is over as well", async || closed("handshake_timeout") == 2.0).await;
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0, "we have said goodbye");
    // A record that is begun and not ended, between two messages.
    let mut stream = TlsClient::new(&authority).connect(proxy.address()).await.unwrap();
    stream.write_all(&support::raw::command(doc! { "ping": 1, "$db": "admin" })).await.unwrap();
    let mut head = [0; 16];
    stream.read_exact(&mut head).await.unwrap();
    stream.get_mut().0.write_all(&[23, 3, 3, 0, 100, 1, 2, 3]).await.unwrap();
    eventually("the record is given up", async || closed("stalled") == 1.0).await;
    // One that ends without a word has left, like any other.
    let mut client = TlsClient::new(&authority).connect(proxy.address()).await.unwrap();
    let left = closed("client_left");
    client.get_mut().0.shutdown().await.unwrap();
    eventually("it has left", async || closed("client_left") == left + 1.0).await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_clients_and_open_sockets_stay() {
    let deployment = support::standalone().await;
    let (old, new) = (Authority::new(), Authority::new());
    let certificate = old.sign("own.pem", &Wish { until: 3000, ..Wish::default() });
    let proxy = proxy(&deployment.uri(), &listener(&certificate, "")).await;
    let expiry = || proxy.metric("mongomux_tls_certificate_expiry_timestamp_seconds{side=\"client\"}");
    let success = || proxy.metric("mongomux_config_reload_success");
    let before = expiry();
    let mut open = TlsClient::new(&old).greeted(proxy.address()).await.unwrap();
    // Shared between connections, so that there is a ticket for the next one.
    let with_ticket = TlsClient::new(&old).config();
    let mut first = support::certificates::connect(&with_ticket, proxy.address()).await.unwrap();
    first.write_all(&support::raw::command(doc! { "ping": 1, "$db": "admin" })).await.unwrap();
    first.read_exact(&mut [0; 16]).await.unwrap();
    let second = support::certificates::connect(&with_ticket, proxy.address()).await.unwrap();
    assert_eq!(second.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));

    replace(&certificate, "no certificate");
    drop(proxy.reload().await);
    eventually("the failure shows", async || success() == 0.0).await;
    TlsClient::new(&old).greeted(proxy.address()).await.unwrap();
    assert_eq!(expiry(), before);

    let (text, key) = new.signed(&Wish { until: 3500, ..Wish::default() });
    replace(&certificate, &(text + &key));
    // Nobody has to tell.
    eventually("the new one is in force", async || expiry() > before).await;
    assert_eq!(success(), 1.0);
    works(&mut open, 1).await;
    works(&mut TlsClient::new(&new).greeted(proxy.address()).await.unwrap(), 2).await;
    TlsClient::new(&old).greeted(proxy.address()).await.unwrap_err();
    support::certificates::connect(&with_ticket, proxy.address())
        .await
        .expect_err("no ticket outlives its certificate");
    works(&mut open, 3).await;
}

#[tokio::test]
async fn authorities_of_clients_are_read_again() {
    let deployment = support::standalone().await;
    let (old, new) = (Authority::new(), Authority::new());
    let certificate = old.sign("own.pem", &Wish::default());
    let trusted = old.path("trusted.pem");
    replace(&trusted, &std::fs::read_to_string(old.file()).unwrap());
    let proxy =
        proxy(&deployment.uri(), &listener(&certificate, &format!("tls_ca_file = \"{}\"", trusted.display()))).await;
    let client = |of: &Authority| TlsClient::new(&old).shows(of.sign("client.pem", &Wish::default()));
    let mut open = client(&old).greeted(proxy.address()).await.unwrap();
    client(&new).greeted(proxy.address()).await.unwrap_err();
    replace(&trusted, &std::fs::read_to_string(new.file()).unwrap());
    drop(proxy.reload().await);
    eventually("the new one is trusted", async || client(&new).greeted(proxy.address()).await.is_ok()).await;
    client(&old).greeted(proxy.address()).await.unwrap_err();
    works(&mut open, 1).await;
}

#[tokio::test]
async fn a_server_has_to_show_who_it_is() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let good = authority.sign("good.pem", &Wish::default());
    let elsewhere = authority.sign("elsewhere.pem", &Wish { hosts: &["elsewhere.example"], ..Wish::default() });
    let ca = format!("tlsCAFile={}", authority.file().display());
    let wrong_ca = format!("tlsCAFile={}", stranger.file().display());
    // With which options, and what is wrong then.
    type Cases<'a> = &'a [(String, Option<&'a str>)];
    let cases: [(&Path, Cases<'_>); 2] = [
        (
            &good,
            &[
                (ca.clone(), None),
                (wrong_ca.clone(), Some("UnknownIssuer")),
                (format!("{wrong_ca}&tlsAllowInvalidHostnames=true"), Some("UnknownIssuer")),
                (format!("{wrong_ca}&tlsInsecure=true"), None),
                (String::new(), Some("UnknownIssuer")),
            ],
        ),
        (
            &elsewhere,
            &[
                (ca.clone(), Some("not valid for name")),
                (format!("{ca}&tlsAllowInvalidHostnames=true"), None),
                (format!("{ca}&tlsAllowInvalidCertificates=true"), None),
            ],
        ),
    ];
    for (certificate, options) in cases {
        let deployment = encrypted(&authority, certificate, &[WITHOUT_CERTIFICATES]).await;
        require_tls(&deployment).await;
        for (options, problem) in options {
            let uri = upstream(&deployment, options);
            // Our own connections, for themselves: whom the monitor refuses they would never be tried with.
            let tls = UpstreamTls::new(&Upstream::parse(&uri).unwrap().tls.unwrap()).unwrap();
            let stream = TcpStream::connect(deployment.members()[0].address().to_string()).await.unwrap();
            let told = tls.connect("127.0.0.1", stream).await.err().map(|error| error.to_string());
            let as_expected = match problem {
                None => told.is_none(),
                Some(problem) => told.as_ref().is_some_and(|told| told.contains(problem)),
            };
            assert!(as_expected, "{options}: {told:?}");
            let proxy = proxy(&uri, QUICK).await;
            match problem {
                None => {
                    let mut client = support::connect(proxy.address()).await;
                    let reply = client.reply("test", doc! { "find": "c" }).await.unwrap();
                    assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{options}: {reply}");
                }
                Some(problem) => {
                    let mut ready = String::new();
                    eventually(&format!("{options}: {problem}"), async || {
                        ready = http(proxy.admin_address(), "GET", "/readyz", "").await;
                        ready.contains(problem)
                    })
                    .await;
                    assert!(ready.starts_with("HTTP/1.1 503"), "{options}: {ready}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_server_can_be_shown_who_we_are_also_with_an_encrypted_key() {
    let authority = Authority::new();
    let good = authority.sign("good.pem", &Wish::default());
    let deployment = encrypted(&authority, &good, &[]).await;
    require_tls(&deployment).await;
    let (certificate, key) = authority.signed(&Wish { name: "proxy", ..Wish::default() });
    let open = authority.path("open.pem");
    replace(&open, &format!("{key}{certificate}"));
    let plain = authority.path("plain.key");
    replace(&plain, &key);
    let locked =
        openssl(&["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:hu sh", "-in", plain.to_str().unwrap()]);
    let encrypted = authority.path("encrypted.pem");
    replace(&encrypted, &format!("{certificate}{locked}"));
    let ca = format!("tlsCAFile={}", authority.file().display());
    let with = |file: &Path, more: &str| {
        upstream(&deployment, &format!("{ca}&tlsCertificateKeyFile={}{more}", file.display()))
    };
    for uri in [with(&open, ""), with(&encrypted, "&tlsCertificateKeyFilePassword=hu%20sh")] {
        let proxy = proxy(&uri, QUICK).await;
        works(&mut support::connect(proxy.address()).await, i32::try_from(uri.len()).unwrap()).await;
        assert!(proxy.metric("mongomux_tls_certificate_expiry_timestamp_seconds{side=\"upstream\"}") > 0.0);
    }
    let without = proxy(&upstream(&deployment, &ca), QUICK).await;
    eventually("the server refuses", async || {
        without.clusters()[0].monitor().problem().is_some_and(|it| it.contains("server"))
    })
    .await;
    assert!(without.clusters()[0].not_ready().is_some());
}

#[tokio::test]
async fn authorities_of_servers_are_read_again_by_pools_and_by_monitoring() {
    let (old, new) = (Authority::new(), Authority::new());
    let shown = old.sign("server.pem", &Wish::default());
    let mut deployment = encrypted(&old, &shown, &[WITHOUT_CERTIFICATES]).await;
    let trusted = old.path("trusted.pem");
    replace(&trusted, &std::fs::read_to_string(old.file()).unwrap());
    let proxy = proxy(&upstream(&deployment, &format!("tlsCAFile={}", trusted.display())), QUICK).await;
    let mut client = support::connect(proxy.address()).await;
    works(&mut client, 1).await;
    let monitor = proxy.clusters()[0].monitor().clone();
    let failures = || monitor.current().servers.values().map(|server| server.heartbeat_failures).sum::<u64>();
    // Files that fit no server change nothing.
    replace(&trusted, &std::fs::read_to_string(new.file()).unwrap());
    let loaded = || proxy.metric("mongomux_config_reload_timestamp_seconds");
    let before = loaded();
    drop(proxy.reload().await);
    eventually("they are read", async || loaded() > before).await;
    works(&mut client, 2).await;
    assert_eq!((failures(), monitor.problem()), (0, None));
    // Now the server follows: everything has to begin anew with it.
    let (text, key) = new.signed(&Wish::default());
    replace(&shown, &(text + &key));
    deployment.member(0).restart().await.unwrap();
    eventually("all goes on", async || {
        let mut client = support::connect(proxy.address()).await;
        client.reply("test", doc! { "ping": 1 }).await.unwrap().get_f64("ok").unwrap() == 1.0
            && monitor.problem().is_none()
    })
    .await;
    works(&mut client, 3).await;
}

#[tokio::test]
async fn subjects_are_written_as_the_server_writes_them() {
    let authority = Authority::new();
    let server = authority.sign("server.pem", &Wish::default());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let own = path("ca.pem");
    let (ca_key, ca) = (path("ca.key"), own.clone());
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=ca",
        "-keyout",
        &ca_key,
        "-out",
        &ca,
    ]);
    let extensions = path("extensions");
    std::fs::write(&extensions, "basicConstraints = CA:FALSE").unwrap();
    let both = authority.path("both.pem");
    replace(
        &both,
        &format!("{}{}", std::fs::read_to_string(authority.file()).unwrap(), std::fs::read_to_string(&ca).unwrap()),
    );
    let arguments = vec![
        "--tlsMode=preferTLS".to_owned(),
        format!("--tlsCertificateKeyFile={}", server.display()),
        format!("--tlsCAFile={}", both.display()),
    ];
    let options = DeploymentOptions { arguments, ..DeploymentOptions::for_tests(0) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    let address = deployment.members()[0].address();
    let subjects = [
        "/C=DE/O=Shop/OU=Web/CN=plain",
        "/O=a,b/CN=Smith, John",
        "/O=one+two/CN=a\"b\\\\c;d<e>f",
        "/CN= leading and trailing ",
        "/CN=#hash",
        "/O=Käse/CN=Zoë Ünïcode 漢字",
        "/DC=example/DC=net/UID=u1/CN=x",
        "/O=multi/CN=a+OU=b+L=c",
        "/emailAddress=a@example.net/serialNumber=42/title=Dr/GN=Ada/SN=Love/CN=names",
        "/O=equal=sign/CN=a=b",
        "/1.2.3.4.5=own/CN=unknown type",
        "/CN= ",
    ];
    for (index, subject) in subjects.into_iter().enumerate() {
        let (key, request, certificate) = (path("c.key"), path("c.csr"), path("c.crt"));
        openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-utf8",
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        let serial = (index + 1).to_string();
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-days",
            "30",
            "-set_serial",
            &serial,
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ]);
        let shown = openssl(&["x509", "-in", &certificate, "-noout", "-subject", "-nameopt", "RFC2253"]);
        let shown = shown.trim_end_matches('\n').strip_prefix("subject=").unwrap();
        let ours = mongomux::tls::subject::of(&CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
        // What has no name of its own openssl prints as bytes, unlike the server.
        assert!(ours == shown || subject.starts_with("/1.2"), "{subject}: {ours}, not {shown}");
        // The server knows the user by that name, or not at all.
        let with_key = authority.path("with_key.pem");
        replace(&with_key, &(std::fs::read_to_string(&certificate).unwrap() + &std::fs::read_to_string(&key).unwrap()));
        let client = TlsClient::new(&authority).shows(with_key);
        let mut client = client.greeted(&address).await.unwrap();
        let create = doc! { "createUser": &ours, "roles": [{ "role": "read", "db": "test" }] };
        support::connect(&address).await.command("$external", create).await.unwrap();
        let login = client.command("$external", doc! { "authenticate": 1, "mechanism": "MONGODB-X509" }).await;
        assert_eq!(login.unwrap().get_str("user").unwrap(), ours);
    }
}

/// Runs it; returns what it prints.
fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().expect("openssl is needed for this test");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn files_that_cannot_be_are_told_at_the_start() {
    let authority = Authority::new();
    let good = authority.sign("good.pem", &Wish::default());
    let (certificate, _) = authority.signed(&Wish::default());
    let (_, key) = authority.signed(&Wish::default());
    let file = |name: &str, text: &str| {
        let path = authority.path(name);
        replace(&path, text);
        path
    };
    let mixed = file("mixed.pem", &format!("{certificate}{key}"));
    let cases = [
        (authority.path("missing.pem"), "", "missing.pem: No such file"),
        (file("empty.pem", "nothing"), "", "empty.pem: holds no certificate in PEM form"),
        (file("alone.pem", &certificate), "", "alone.pem: holds no private key in PEM form"),
        (mixed, "", "mixed.pem: the private key does not belong to the first certificate in it"),
        (good.clone(), "tls_ca_file = \"/nowhere\"", "/nowhere: No such file"),
        (good, "tls_key_file = \"/nowhere\"", "/nowhere: No such file"),
    ];
    for (certificate, more, told) in cases {
        let text = start_error(&format!("listen = \"127.0.0.1:0\"\n{}", listener(&certificate, more))).await;
        assert!(text.contains(told), "{told}: {text}");
        let uri = format!("mongodb://127.0.0.1:1/?tls=true&tlsCertificateKeyFile={}", certificate.display());
        if more.is_empty() {
            let text = start_error(&format!("listen = \"127.0.0.1:0\"\nupstream = \"{uri}\"\n")).await;
            assert!(text.contains(told), "{told}: {text}");
        }
    }
}

async fn start_error(settings: &str) -> String {
    use mongomux::config::system::{Sources, Text};
    let file = Some(Text { name: "test settings".to_owned(), text: settings.to_owned() });
    let sources = Sources { file, admin: Some(Address::tcp("127.0.0.1", 0)), ..Sources::default() };
    let (config, _) = mongomux::config::Config::load(&sources).unwrap();
    mongomux::app::App::start(config).await.err().expect("it cannot start").to_string()
}
