//! What is measured: no proxy, proxies to compare with, and the program.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use socket2::SockAddr;
use tempfile::TempDir;
use tokio::time::Instant;

use super::accounting::Process;
use super::crowd::Crowd;

/// Longest wait for a process to serve its first client.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(50);

/// What may be measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Direct,
    /// This very program in another role.
    Own(&'static str),
    Haproxy,
    Mongomux(Setup),
    /// A command with `{listen}` and `{upstream}` in it.
    Other(String),
}

/// The program, and what is not at its default.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    pub program: PathBuf,
    /// Clients connect over a unix socket.
    pub unix_clients: bool,
    /// Another connection string than the server's.
    pub upstream: Option<String>,
    pub worker_threads: Option<usize>,
}

impl Setup {
    /// All at its default.
    pub fn plain(program: &Path) -> Self {
        Self { program: program.to_owned(), unix_clients: false, upstream: None, worker_threads: None }
    }
}

/// Something to measure, by a name of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    pub name: String,
    pub kind: Kind,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("NAME=COMMAND, with {listen} and {upstream} in COMMAND")?;
        Ok(Self { name: name.to_owned(), kind: Kind::Other(command.to_owned()) })
    }
}

/// The server that all of them lead to.
#[derive(Debug, Clone)]
pub struct Server {
    pub address: SocketAddr,
    pub uri: String,
    pub process: Process,
}

/// A running proxy, or the server itself. Dropping it kills the proxy.
pub struct Running {
    pub name: String,
    pub address: SockAddr,
    proxy: Option<Child>,
    /// Its configuration and its socket.
    _files: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(proxy) = &mut self.proxy {
            // It may have ended, which was seen by then.
            drop(proxy.kill().and_then(|()| proxy.wait()));
        }
    }
}

impl Running {
    /// The proxy's process, where there is one.
    pub fn process(&self) -> Option<Process> {
        self.proxy.as_ref().map(|proxy| Process::new(proxy.id()))
    }
}

impl Reference {
    /// Starts it for so many clients, and waits until one has been served: what is made for the first one is there.
    pub fn start(&self, server: &Server, clients: usize) -> io::Result<Running> {
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let files = tempfile::Builder::new().prefix("mongomux-bench-").tempdir()?;
        let configuration = files.path().join("configuration");
        let mut address = SockAddr::from(listen);
        let command = match &self.kind {
            Kind::Direct => {
                address = server.address.into();
                None
            }
            Kind::Own(role) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg(role).arg(listen.to_string()).arg(server.address.to_string());
                Some(command)
            }
            Kind::Haproxy => {
                fs::write(&configuration, haproxy(listen, server.address, clients))?;
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(configuration);
                Some(command)
            }
            Kind::Mongomux(setup) => {
                let mut command = Command::new(&setup.program);
                command.args(["run", "--log", "warn", "--admin", "127.0.0.1:0", "--listen"]).env_clear();
                if setup.unix_clients {
                    let socket = files.path().join("socket");
                    command.arg(format!("unix:{}", socket.display()));
                    address = SockAddr::unix(socket)?;
                } else {
                    command.arg(listen.to_string());
                }
                if let Some(threads) = setup.worker_threads {
                    fs::write(&configuration, format!("worker_threads = {threads}\n"))?;
                    command.arg("--config").arg(configuration);
                }
                command.arg(setup.upstream.as_ref().unwrap_or(&server.uri));
                Some(command)
            }
            Kind::Other(template) => {
                let text = template.replace("{listen}", &listen.to_string());
                let text = text.replace("{upstream}", &server.address.to_string());
                let mut words = text.split_whitespace();
                let mut command = Command::new(words.next().unwrap_or_default());
                command.args(words);
                Some(command)
            }
        };
        let start = |mut command: Command| command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.name));
        let proxy = command.map(start).transpose().map_err(named)?;
        let mut running = Running { name: self.name.clone(), address, proxy, _files: files };
        self.await_first_client(&mut running).map_err(named)?;
        Ok(running)
    }

    fn await_first_client(&self, running: &mut Running) -> io::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let Err(error) = Crowd::new()?.grow(1, &running.address, "first client", 1) else { return Ok(()) };
            if let Some(status) = running.proxy.as_mut().map(Child::try_wait).transpose()?.flatten() {
                return Err(io::Error::other(format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(POLL);
        }
    }
}

/// A configuration without anything that costs time: no log, no checks, no statistics. As many threads as there are
/// processors, which is its default.
fn haproxy(listen: SocketAddr, upstream: SocketAddr, clients: usize) -> String {
    // Room for those that are on their way out.
    let connections = clients + clients / 4 + 100;
    format!(
        "global\n  maxconn {connections}\n\
         defaults\n  mode tcp\n  maxconn {connections}\n  \
         timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
         listen mongodb\n  bind {listen}\n  server mongod {upstream}\n"
    )
}

/// Which HAProxy there is, if any.
pub fn haproxy_version() -> Option<String> {
    let output = Command::new("haproxy").arg("-v").output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(ToOwned::to_owned)
}
