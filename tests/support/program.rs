//! The program as a child whose log can be waited for.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use mongomux::config::Address;
use mongomux::tasks::Tasks;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::PATIENCE;

/// Variable of LLVM's runtime for coverage.
const COUNTERS: &str = "LLVM_PROFILE_FILE";

/// A running program. Dropping it kills it.
pub struct Program {
    child: Child,
    log: watch::Receiver<Vec<String>>,
    /// Once there is no more of it.
    output: watch::Receiver<Option<String>>,
}

impl Program {
    /// `mongomux run` on a port of its own.
    pub fn run(arguments: &[&str]) -> Self {
        let mut all = vec!["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        all.extend_from_slice(arguments);
        Self::start(&all)
    }

    /// Any command.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Self::command();
        command.args(arguments);
        Self::spawn(command)
    }

    /// The program, to which nothing is said yet, not even by our environment.
    pub fn command() -> Command {
        Self::command_of(env!("CARGO_BIN_EXE_mongomux"))
    }

    /// Another program, likewise.
    pub fn command_of(program: &str) -> Command {
        // Where programs count which of their lines are executed, when somebody wants to know.
        let counters = std::env::var_os(COUNTERS).map(|file| (COUNTERS, file));
        let mut command = Command::new(program);
        command.env_clear().envs(counters);
        command
    }

    /// The program as `command` starts it, which may be by way of another one.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let (lines, log) = watch::channel(Vec::new());
        let (all, output) = watch::channel(None);
        let tasks = Tasks::new();
        tasks.spawn("log", follow(child.stderr.take().expect("piped"), lines));
        let mut stdout = child.stdout.take().expect("piped");
        tasks.spawn("output", async move {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).await.expect("a pipe");
            all.send_replace(Some(String::from_utf8_lossy(&bytes).into_owned()));
        });
        Self { child, log, output }
    }

    /// Where its clients connect, once it says so.
    pub async fn address(&self) -> Address {
        let line = self.line("listening").await;
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("address="));
        address.unwrap_or_else(|| panic!("no address in {line}")).parse().expect("an address")
    }

    /// Waits for a line of the log that contains `text`.
    pub async fn line(&self, text: &str) -> String {
        let mut log = self.log.clone();
        let found = timeout(PATIENCE, log.wait_for(|lines| lines.iter().any(|line| line.contains(text)))).await;
        let Ok(Ok(lines)) = found else { panic!("no `{text}` in the log:\n{}", self.log()) };
        lines.iter().find(|line| line.contains(text)).expect("it was there a moment ago").clone()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.borrow().join("\n")
    }

    /// Id of the running process.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a running program")
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("a running program"), signal).expect("a child of ours");
    }

    /// Waits for the end: exit code, log, and what went to standard output.
    pub async fn ended(&mut self) -> (i32, String, String) {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("it does not end:\n{}", self.log())).expect("a child of ours");
        // Everything was said once the pipe is closed.
        while self.log.changed().await.is_ok() {}
        let code = status.code().unwrap_or_else(|| panic!("ended by signal {:?}:\n{}", status.signal(), self.log()));
        let output = self.output.wait_for(Option::is_some).await.expect("it is read to its end").clone();
        (code, self.log(), output.unwrap_or_default())
    }
}

async fn follow(stderr: impl AsyncRead + Unpin, lines: watch::Sender<Vec<String>>) {
    let mut reader = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = reader.next_line().await {
        lines.send_modify(|lines| lines.push(line));
    }
}
