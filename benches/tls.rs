//! What TLS costs: processor time of a command with TLS on either leg, on both and on neither, with small documents and with
//! large ones; and how long clients that all
//! connect at once take to be served, what that costs, and how much memory each of them holds then.
//!
//! `cargo bench --bench tls`. Needs a `mongod` as the tests do, and `openssl` for a key of RSA. `MONGOMUX_STORM` (2,000 clients),
//! `MONGOMUX_COMMANDS` (20,000 in each slice) and `MONGOMUX_ROUNDS` (5) change the load. Load, server and program share the
//! machine.
//!
//! Ends with 1 when somebody got no answer, or when one of the bounds of `docs/tls.md` is not kept.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints its result")]
#![allow(clippy::cast_precision_loss, reason = "small numbers")]

#[path = "sidecar/accounting.rs"]
#[allow(unreachable_pub, dead_code, reason = "the other bench's, of which this one uses a part")]
mod accounting;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use accounting::Process;
use bson::{Document, doc};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use mongomux::config::Address;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::sandbox::wire_client::WireClient;
use rustls::ClientConfig;
use support::certificates::{Authority, TlsClient, Wish};
use support::program::Program;
use tokio::time::{Instant, sleep};

const DATABASE: &str = "bench";
const DOCUMENTS: i32 = 1_000;

/// Collections, with the bytes of a document's text, and how many of the commands are sent: they all take about as long.
const SIZES: [(&str, usize, usize); 2] = [("small", 80, 1), ("large", 16 * 1024, 2)];

/// Clients that send commands.
const CLIENTS: usize = 64;

/// Clients of a storm that are on their way at once: as many as a backlog holds.
const AT_ONCE: usize = 1_000;

/// For what a start or a storm leaves to do.
const REST: Duration = Duration::from_secs(1);

/// TLS on both legs costs at most so much more.
const MOST: f64 = 1.5;
/// Each client of a storm holds at most so much.
const MOST_KIB: f64 = 40.0;
/// All of them are served within.
const MOST_TIME: Duration = Duration::from_secs(10);

/// A proxy, and how to connect to it.
struct Target {
    name: &'static str,
    _program: Program,
    process: Process,
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    _configuration: tempfile::NamedTempFile,
}

/// What all targets are made of.
struct Setting {
    program: PathBuf,
    deployment: Deployment,
    authority: Authority,
}

fn main() -> ExitCode {
    support::bench::run(measure())
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn measure() -> Vec<String> {
    let authority = Authority::new();
    let certificate = authority.sign("own.pem", &Wish::default());
    let arguments = vec![
        "--tlsMode=allowTLS".to_owned(),
        format!("--tlsCertificateKeyFile={}", certificate.display()),
        format!("--tlsCAFile={}", authority.file().display()),
        "--tlsAllowConnectionsWithoutCertificates".to_owned(),
    ];
    let options = DeploymentOptions { arguments, ..DeploymentOptions::for_tests(0) };
    let deployment = Deployment::start(options).await.unwrap();
    let mut server = support::client(&deployment.members()[0]).await;
    for (collection, bytes, _) in SIZES {
        let documents: Vec<Document> = (0..DOCUMENTS).map(|id| doc! { "_id": id, "text": "x".repeat(bytes) }).collect();
        server.command(DATABASE, doc! { "insert": collection, "documents": documents }).await.unwrap();
    }
    let setting = Setting { program: support::bench::build().unwrap(), deployment, authority };
    let mut wrong = commands(&setting, &certificate).await;
    wrong.extend(storms(&setting, &certificate).await);
    wrong
}

async fn commands(all: &Setting, certificate: &Path) -> Vec<String> {
    let (rounds, count) = (setting("MONGOMUX_ROUNDS", 5), setting("MONGOMUX_COMMANDS", 20_000));
    let targets = [
        all.start("plain", None, false).await,
        all.start("tls upstream", None, true).await,
        all.start("tls clients", Some(certificate), false).await,
        all.start("tls on both", Some(certificate), true).await,
    ];
    let mut clients = Vec::new();
    for target in &targets {
        clients.push(join_all((0..CLIENTS).map(|_| target.greeted())).await);
    }
    let mut wrong = Vec::new();
    for (collection, bytes, share) in SIZES {
        wrong.extend(of_size(&targets, &mut clients, collection, bytes, (rounds, count / share)).await);
    }
    wrong
}

async fn of_size(
    targets: &[Target],
    clients: &mut [Vec<WireClient>],
    collection: &str,
    bytes: usize,
    (rounds, count): (usize, usize),
) -> Vec<String> {
    let mut costs = vec![Vec::new(); targets.len()];
    // The first round is a warm-up.
    for round in 0..=rounds {
        for ((target, clients), costs) in targets.iter().zip(&mut *clients).zip(&mut costs) {
            let before = target.process.cpu().unwrap();
            join_all(clients.iter_mut().map(|client| finds(client, collection, count / CLIENTS))).await;
            let spent = target.process.cpu().unwrap() - before;
            if round > 0 {
                costs.push(spent / u32::try_from(count).unwrap());
            }
        }
    }
    println!("\n| find of {bytes} B, {CLIENTS} clients | CPU per command, us (median of {rounds}) | of plain |");
    println!("| --- | --- | --- |");
    let medians: Vec<f64> = costs.into_iter().map(|it| support::bench::quantile(it, 0.5).as_secs_f64() * 1e6).collect();
    for (target, median) in targets.iter().zip(&medians) {
        println!("| {} | {median:.1} | {:.2} |", target.name, median / medians[0]);
    }
    let ratio = medians[3] / medians[0];
    if ratio > MOST {
        vec![format!("TLS on both legs costs {ratio:.2} times as much as none for {bytes} bytes")]
    } else {
        Vec::new()
    }
}

async fn storms(all: &Setting, certificate: &Path) -> Vec<String> {
    let storm = setting("MONGOMUX_STORM", 2_000);
    let mut wrong = Vec::new();
    println!("\n| {storm} clients at once | all served after, s | CPU of the proxy for each, ms | KiB for each |");
    println!("| --- | --- | --- | --- |");
    let rsa = rsa(&all.authority);
    for (name, certificate, resumes) in [
        ("plain", None, false),
        ("tls, ECDSA P-256", Some(certificate), false),
        ("tls, ECDSA P-256, resumed", Some(certificate), true),
        ("tls, RSA 2048", Some(&*rsa), false),
        ("tls, RSA 2048, resumed", Some(&*rsa), true),
    ] {
        let mut target = all.start(name, certificate, false).await;
        if certificate == Some(&*rsa) {
            target.tls = Some(TlsClient { trusts: rsa.clone(), ..TlsClient::new(&all.authority) }.config());
        }
        if !resumes && let Some(tls) = &mut target.tls {
            let mut config = (**tls).clone();
            config.resumption = rustls::client::Resumption::disabled();
            *tls = Arc::new(config);
        }
        // What the first ones make is there for all, a ticket among it.
        for _ in 0..4 {
            finds(&mut target.greeted().await, "small", 2).await;
        }
        sleep(REST).await;
        let (cpu, kib) = (target.process.cpu().unwrap(), target.process.resident_kib().unwrap());
        let began = Instant::now();
        let served = stream::iter(0..storm).map(|_| async {
            let mut client = target.greeted().await;
            finds(&mut client, "small", 1).await;
            client
        });
        let clients: Vec<WireClient> = served.buffer_unordered(AT_ONCE).collect().await;
        let took = began.elapsed();
        let cpu = (target.process.cpu().unwrap() - cpu).as_secs_f64() * 1e3 / storm as f64;
        sleep(REST).await;
        let each = (target.process.resident_kib().unwrap().saturating_sub(kib)) as f64 / clients.len() as f64;
        println!("| {name} | {:.2} | {cpu:.3} | {each:.1} |", took.as_secs_f64());
        if certificate.is_some() && (took > MOST_TIME || each > MOST_KIB) {
            wrong.push(format!("{name}: {took:?}, {each:.1} KiB for each"));
        }
    }
    wrong
}

impl Setting {
    async fn start(&self, name: &'static str, certificate: Option<&Path>, tls_upstream: bool) -> Target {
        let configuration = tempfile::NamedTempFile::new().unwrap();
        if let Some(certificate) = certificate {
            let text = format!("tls = true\ntls_certificate_key_file = \"{}\"\n", certificate.display());
            std::fs::write(configuration.path(), text).unwrap();
        }
        let mut uri = self.deployment.uri();
        if tls_upstream {
            uri += &format!("?tls=true&tlsCAFile={}", self.authority.file().display());
        }
        let mut command = Command::new(&self.program);
        command
            .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"])
            .arg(configuration.path());
        command.arg(uri).env_clear();
        let program = Program::spawn(command.into());
        let (process, address) = (Process::new(program.pid()), program.address().await);
        let tls = certificate.map(|_| TlsClient::new(&self.authority).config());
        Target { name, _program: program, process, address, tls, _configuration: configuration }
    }
}

impl Target {
    async fn greeted(&self) -> WireClient {
        let mut client = match &self.tls {
            Some(tls) => WireClient::over(support::certificates::connect(tls, &self.address).await.unwrap()),
            None => WireClient::connect(&self.address).await.unwrap(),
        };
        client.hello("mongomux bench").await.unwrap();
        client
    }
}

/// So many finds of one document each, one after the other.
async fn finds(client: &mut WireClient, collection: &str, count: usize) {
    for _ in 0..count {
        let id = rand::random_range(0..DOCUMENTS);
        let find = doc! { "find": collection, "filter": { "_id": id }, "limit": 1 };
        let found = client.command(DATABASE, find).await.unwrap();
        assert!(matches!(&support::first_batch(&found)[..], [it] if it.get_i32("_id").unwrap() == id), "{found}");
    }
}

/// A certificate that is its own authority, with a key of RSA, which rcgen does not make.
fn rsa(authority: &Authority) -> PathBuf {
    let (file, key) = (authority.path("rsa.pem"), authority.path("rsa.key"));
    let mut command = Command::new("openssl");
    command.args(
        "req -x509 -days 30 -nodes -newkey rsa:2048 -subj /CN=bench -addext subjectAltName=IP:127.0.0.1".split(' '),
    );
    command.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"]).arg(&key).arg("-out").arg(&file);
    let output = command.output().unwrap();
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    let both = std::fs::read_to_string(&file).unwrap() + &std::fs::read_to_string(&key).unwrap();
    std::fs::write(&file, both).unwrap();
    file
}
