//! One throw-away `mongod`: its process, port, data and log, all gone when the value is dropped.
//!
//! It can be killed, paused, stopped and restarted over the same data and port, which is what failure tests need. The
//! process ends with us in every ending: a destructor where one runs, a guardian process where none does.
//! Replica sets are made of these in [`super::deployment`]; where the program comes from is [`super::find`]'s business.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use bson::doc;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Duration, Instant, sleep, timeout, timeout_at};

use super::find::FindError;
use super::guardian::Guardian;
use super::wire_client::WireClient;
use crate::config::Address;

/// Below the range that systems take local ports of outgoing connections from, so that a restarted server finds its port
/// free again while thousands of clients connect.
const PORTS: Range<u16> = 20_000..32_000;

/// Ports tried for a server. Each that fails costs next to nothing, or a start when a foreign program was faster.
const PORT_ATTEMPTS: usize = 100;

/// What `mongod` exits with when it cannot listen (`EXIT_NET_ERROR`); the line that says so is not among the last of its log.
const CANNOT_LISTEN: i32 = 48;

/// Longest wait for a server to accept. A start takes half a second, a recovery a few, a busy machine ten times that.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a starting server is looked at; there is no event to wait for.
const START_POLL: Duration = Duration::from_millis(20);

/// Longest wait for a server told to stop; then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait of a destructor for a killed process.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// The log entry "Waiting for connections": proof that the port is ours, where a mere connect might reach another server.
const LISTENING: &str = "\"id\":23016,";

/// Lines of the log in an error.
const LOG_LINES: usize = 12;

/// How a server is started.
#[derive(Debug, Clone)]
pub struct MongodOptions {
    /// The program; see [`super::find::mongod`].
    pub program: PathBuf,
    /// Member of this replica set; `None` for a standalone.
    pub replica_set: Option<String>,
    /// Clients must authenticate, members do with this key. Until the first user is made, the server lets anyone on
    /// loopback make it.
    pub key: Option<String>,
    /// `enableTestCommands`: fail points and other means of tests.
    pub test_commands: bool,
    /// Further arguments, after all others.
    pub arguments: Vec<String>,
}

impl MongodOptions {
    /// A standalone without authentication and without test commands.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        Self { program, replica_set: None, key: None, test_commands: false, arguments: Vec::new() }
    }
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum MongodError {
    /// There is no program to run.
    #[error(transparent)]
    Find(#[from] FindError),
    /// A file or the process could not be created.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The process ended while starting.
    #[error("mongod ended while starting ({status}); the end of its log:\n{log}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        log: String,
    },
    /// It runs, but accepts no commands.
    #[error("mongod does not accept after {} s; the end of its log:\n{log}", START_TIMEOUT.as_secs())]
    NotReady {
        /// Its last lines.
        log: String,
    },
    /// A command of the set-up failed.
    #[error("{what}: {source}")]
    Command {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: super::wire_client::WireError,
    },
    /// The members did not reach the expected state in time.
    #[error("{what} after {} s; the end of a member's log:\n{log}", .waited.as_secs())]
    NoElection {
        /// What is missing.
        what: &'static str,
        /// How long was waited.
        waited: Duration,
        /// Last lines of the first member's log.
        log: String,
    },
}

pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> MongodError {
    move |source| MongodError::Io { what, source }
}

/// A running (or killed, or paused) server. Dropping it kills the process and removes its files.
#[derive(Debug)]
pub struct Mongod {
    options: MongodOptions,
    claim: PortClaim,
    process: Option<Child>,
    starts: usize,
    guardian: Option<Guardian>,
    /// Data, key file and logs.
    directory: TempDir,
}

impl Mongod {
    /// Starts a server on a free port of 127.0.0.1 and waits until it accepts commands.
    ///
    /// # Cancel safety
    /// Dropping the future kills what it started.
    pub async fn start(options: MongodOptions) -> Result<Self, MongodError> {
        let directory = tempfile::Builder::new().prefix("mongomux-mongod-").tempdir();
        let directory = directory.map_err(io_error("temporary directory"))?;
        let guardian = Guardian::of(directory.path());
        let claim = PortClaim::new().map_err(io_error("free port"))?;
        let mut server = Self { options, claim, process: None, starts: 0, guardian, directory };
        fs::create_dir(server.data()).map_err(io_error("data directory"))?;
        if let Some(key) = &server.options.key {
            write_key(&server.key_file(), key).map_err(io_error("key file"))?;
        }
        for _ in 1..PORT_ATTEMPTS {
            match server.launch().await {
                Err(MongodError::Ended { status, .. }) if status.code() == Some(CANNOT_LISTEN) => {
                    server.claim = PortClaim::new().map_err(io_error("free port"))?;
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
        server.launch().await.map(|()| server)
    }

    /// Where it listens.
    pub fn address(&self) -> Address {
        Address::tcp(Ipv4Addr::LOCALHOST.to_string(), self.port())
    }

    /// The port on 127.0.0.1; stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.claim.port
    }

    /// Id of the running process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    /// Directory of data and logs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The last `lines` lines the current (or latest) process wrote.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// SIGKILL: as a crash or a power cut of the process. Nothing happens when it does not run.
    pub async fn kill(&mut self) -> Result<(), MongodError> {
        if let Some(process) = &mut self.process {
            process.kill().await.map_err(io_error("kill mongod"))?;
            self.forget();
        }
        Ok(())
    }

    /// SIGTERM, and waits for the clean end; a server that takes longer than 30 s is killed.
    pub async fn stop(&mut self) -> Result<(), MongodError> {
        self.signal(Signal::TERM)?;
        if let Some(process) = &mut self.process {
            match timeout(STOP_TIMEOUT, process.wait()).await {
                Ok(ended) => ended.map(drop).map_err(io_error("stop mongod"))?,
                Err(_) => process.kill().await.map_err(io_error("kill mongod"))?,
            }
            self.forget();
        }
        Ok(())
    }

    /// Starts it again over the same data and port, and waits until it accepts; kills it first if it still runs.
    pub async fn restart(&mut self) -> Result<(), MongodError> {
        self.kill().await?;
        self.launch().await
    }

    /// SIGSTOP: the process hangs, its sockets stay open. Until [`Mongod::resume`]. Returns once every thread has stopped.
    pub async fn pause(&self) -> Result<(), MongodError> {
        self.signal(Signal::STOP)?;
        while self.pid().is_some_and(has_running_threads) {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// SIGCONT: goes on after [`Mongod::pause`].
    pub fn resume(&self) -> Result<(), MongodError> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), MongodError> {
        let pid = self.pid().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(()) };
        kill_process(pid, signal).map_err(|error| io_error("signal mongod")(error.into()))
    }

    async fn launch(&mut self) -> Result<(), MongodError> {
        self.starts += 1;
        let log = File::create(self.log_file()).map_err(io_error("log file"))?;
        let errors = log.try_clone().map_err(io_error("log file"))?;
        let mut command = Command::new(&self.options.program);
        command.args(self.arguments()).stdin(Stdio::null()).stdout(log).stderr(errors);
        // Its own process group: Ctrl-C in the terminal is for us, and we decide when the server ends.
        command.process_group(0).kill_on_drop(true);
        let process = self.process.insert(command.spawn().map_err(io_error("start mongod"))?);
        if let Some(guardian) = &mut self.guardian {
            guardian.guard(process.id());
        }
        let ready = self.await_ready().await;
        if ready.is_err() {
            self.kill().await?;
        }
        ready
    }

    async fn await_ready(&mut self) -> Result<(), MongodError> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut listening = false;
        while Instant::now() < deadline {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait().map_err(io_error("wait for mongod"))?
            {
                return Err(MongodError::Ended { status, log: self.log_tail(LOG_LINES) });
            }
            listening = listening || self.log().contains(LISTENING);
            if listening && matches!(timeout_at(deadline, self.ping()).await, Ok(true)) {
                return Ok(());
            }
            sleep(START_POLL).await;
        }
        Err(MongodError::NotReady { log: self.log_tail(LOG_LINES) })
    }

    async fn ping(&self) -> bool {
        match WireClient::connect(&self.address()).await {
            Ok(mut client) => client.command("admin", doc! { "ping": 1 }).await.is_ok(),
            Err(_) => false,
        }
    }

    fn arguments(&self) -> Vec<String> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut arguments = vec!["--dbpath".to_owned(), path(self.data()), format!("--port={}", self.port())];
        arguments.extend(
            [
                "--bind_ip=127.0.0.1",
                "--wiredTigerCacheSizeGB=0.25",
                // Journal files of 100 MB are made when needed, not two ahead.
                "--wiredTigerEngineConfigString=log=(prealloc=false)",
                "--setParameter=diagnosticDataCollectionEnabled=false",
                // A primary told to stop waits 15 s for its clients by default.
                "--setParameter=shutdownTimeoutMillisForSignaledShutdown=100",
            ]
            .map(str::to_owned),
        );
        // One that is killed would leave its socket file in /tmp.
        if !self.options.arguments.iter().any(|argument| argument.starts_with("--unixSocketPrefix")) {
            arguments.push("--nounixsocket".to_owned());
        }
        if let Some(name) = &self.options.replica_set {
            arguments.extend([format!("--replSet={name}"), "--oplogSize=128".to_owned()]);
        }
        if self.options.key.is_some() {
            arguments.extend(["--auth".to_owned(), "--keyFile".to_owned(), path(self.key_file())]);
        }
        if self.options.test_commands {
            arguments.push("--setParameter=enableTestCommands=1".to_owned());
        }
        arguments.extend(self.options.arguments.iter().cloned());
        arguments
    }

    /// The process has been waited for: its id may belong to another one from now on.
    fn forget(&mut self) {
        self.process = None;
        if let Some(guardian) = &mut self.guardian {
            guardian.guard(None);
        }
    }

    fn log(&self) -> String {
        fs::read(self.log_file()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join(format!("mongod-{}.log", self.starts))
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn key_file(&self) -> PathBuf {
        self.directory.path().join("key")
    }
}

impl Drop for Mongod {
    /// Blocks for the few milliseconds a killed process takes to go: its files are removed right after.
    fn drop(&mut self) {
        let Some(process) = &mut self.process else { return };
        if let Err(error) = process.start_kill() {
            tracing::debug!(%error, "killing a mongod that ended before");
        }
        let mut waited = Duration::ZERO;
        while matches!(process.try_wait(), Ok(None)) && waited < REAP_TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
            waited += Duration::from_millis(1);
        }
        self.forget();
    }
}

/// The signal is on its way when the system call returns, and a thread that has not got it yet still answers.
fn has_running_threads(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    // "pid (name) state ...", where the name may hold anything; T is stopped.
    let state = |stat: String| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    let mut states = threads.flatten().filter_map(|thread| state(fs::read_to_string(thread.path().join("stat")).ok()?));
    states.any(|state| !matches!(state, 'T' | 'Z' | 'X'))
}

/// A port of 127.0.0.1 that no other server of ours takes, not even while this one is down.
///
/// The sign is a UDP socket on the same port: whoever wants a claim fails to bind it, a `mongod` does not mind it, and it goes with
/// the process that holds it.
#[derive(Debug)]
struct PortClaim {
    port: u16,
    _sign: UdpSocket,
}

impl PortClaim {
    fn new() -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..PORT_ATTEMPTS {
            let port = rand::random_range(PORTS);
            match UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).and_then(|sign| {
                // Programs that know nothing of claims.
                TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
                Ok(sign)
            }) {
                Ok(sign) => return Ok(Self { port, _sign: sign }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn write_key(path: &Path, key: &str) -> io::Result<()> {
    // The server refuses a key file that others may read.
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, key.as_bytes())
}
