//! The program in other set-ups: what each costs beside the plain one, before one server that takes all of them.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use mongomux::sandbox::deployment::Deployment;
use tempfile::TempDir;

use super::measure::PROGRAM;
use super::references::{Kind, Reference, Setup};

/// What is measured of them.
pub const CASES: &str = "find-100B@64,find-16KiB@64,find-100B@open,find-100B@turn";

/// Of a certificate that is its own authority, and of nobody else.
const EXTENSIONS: &str = "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n\
    [name]\nCN = mongomux bench\n\
    [extensions]\nsubjectAltName = IP:127.0.0.1\nbasicConstraints = critical, CA:FALSE\n";

/// Files: what openssl is told and what it makes, and what the server wants in one.
const WISHES: &str = "openssl.cnf";
const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";
const WITH_KEY: &str = "server.pem";

/// What lets one server take TLS and unix sockets as well.
pub struct Ways {
    /// The certificate and the server's sockets.
    directory: TempDir,
}

impl Ways {
    /// Needs `openssl` for a certificate.
    pub fn prepare() -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::Builder::new().prefix("mongomux-bench-").tempdir()?;
        make_certificate(directory.path())?;
        Ok(Self { directory })
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_string_lossy().into_owned()
    }

    /// The server's.
    pub fn arguments(&self) -> Vec<String> {
        vec![
            "--tlsMode=allowTLS".to_owned(),
            format!("--tlsCertificateKeyFile={}", self.file(WITH_KEY)),
            format!("--tlsCAFile={}", self.file(CERTIFICATE)),
            "--tlsAllowConnectionsWithoutCertificates".to_owned(),
            format!("--unixSocketPrefix={}", self.file("")),
        ]
    }

    /// The plain one, and then the others.
    pub fn references(&self, program: &Path, deployment: &Deployment) -> Vec<Reference> {
        let plain = Setup::plain(program);
        let socket = self.file(&format!("mongodb-{}.sock", deployment.members()[0].port()));
        // A host of a connection string has no slashes.
        let over_unix = Some(format!("mongodb://{}/?directConnection=true", socket.replace('/', "%2F")));
        let over_tls = Some(format!("{}&tls=true&tlsCAFile={}", deployment.uri(), self.file(CERTIFICATE)));
        let all = [
            (PROGRAM, plain.clone()),
            ("unix", Setup { unix_clients: true, ..plain.clone() }),
            ("unix-upstream", Setup { upstream: over_unix, ..plain.clone() }),
            ("tls-upstream", Setup { upstream: over_tls.clone(), ..plain.clone() }),
            ("threads-2", Setup { worker_threads: Some(2), ..plain.clone() }),
            ("tls-upstream-threads-2", Setup { upstream: over_tls, worker_threads: Some(2), ..plain }),
        ];
        all.into_iter().map(|(name, setup)| Reference { name: name.to_owned(), kind: Kind::Mongomux(setup) }).collect()
    }
}

/// Makes a key and its certificate.
fn make_certificate(directory: &Path) -> Result<(), Box<dyn Error>> {
    let file = |name| directory.join(name);
    fs::write(file(WISHES), EXTENSIONS)?;
    let mut command = Command::new("openssl");
    command.args("req -x509 -days 30 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1".split(' '));
    command.arg("-config").arg(file(WISHES)).arg("-keyout").arg(file(KEY)).arg("-out").arg(file(CERTIFICATE));
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("openssl: {error}"))?;
    if !output.status.success() {
        return Err(format!("openssl: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    fs::write(file(WITH_KEY), fs::read_to_string(file(KEY))? + &fs::read_to_string(file(CERTIFICATE))?)?;
    Ok(())
}
