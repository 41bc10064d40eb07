//! Programs that take over from one another.

use std::path::{Path, PathBuf};

use mongomux::config::Address;
use tempfile::TempDir;

use super::program::Program;

/// Programs that follow one another, each with the upgrade socket and the addresses of the one before.
pub struct Place {
    /// Of the deployment.
    pub uri: String,
    directory: TempDir,
    /// The configuration file.
    pub settings: String,
    /// Where clients connect.
    pub listen: String,
    admin: String,
    notify: Option<PathBuf>,
}

impl Place {
    /// Before `uri`, with `settings`.
    pub fn new(uri: &str, settings: &str) -> Self {
        let any = || "127.0.0.1:0".to_owned();
        let (uri, settings, directory) = (uri.to_owned(), settings.to_owned(), tempfile::tempdir().unwrap());
        Self { uri, directory, settings, listen: any(), admin: any(), notify: None }
    }

    /// A directory of its own.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The admin port.
    pub fn admin(&self) -> Address {
        self.admin.parse().unwrap()
    }

    /// Programs tell what they do to who listens there.
    pub fn notifies(&mut self, socket: &Path) {
        self.notify = Some(socket.to_owned());
    }

    /// The upgrade socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("upgrade.sock")
    }

    /// The next program, which may find one.
    pub fn start(&self) -> Program {
        self.start_with(&self.settings, &self.uri)
    }

    /// As [`Place::start`], with a configuration of its own.
    pub fn start_with(&self, settings: &str, uri: &str) -> Program {
        let file = self.directory.path().join("mongomux.toml");
        std::fs::write(&file, settings).unwrap();
        let (file, socket) = (file.to_str().unwrap(), self.socket());
        let socket = socket.to_str().unwrap();
        let arguments = [
            "run",
            "--config",
            file,
            "--upgrade-socket",
            socket,
            "--listen",
            &self.listen,
            "--admin",
            &self.admin,
            uri,
        ];
        let mut command = Program::command();
        command.args(arguments);
        if let Some(notify) = &self.notify {
            command.env("NOTIFY_SOCKET", notify).env("WATCHDOG_USEC", "300000");
        }
        Program::spawn(command)
    }

    /// The first program; where it listens is where the others will.
    pub async fn first(&mut self) -> (Program, Address) {
        let program = self.start();
        let address = program.address().await;
        let line = program.line("admin port").await;
        program.line("the next process can take over").await;
        self.admin = line.split_whitespace().find_map(|word| word.strip_prefix("address=")).unwrap().to_owned();
        self.listen = address.to_string();
        (program, address)
    }

    /// The next program takes over, and the one before ends.
    pub async fn next(&self, before: &mut Program) -> Program {
        let next = self.start();
        next.line("took over").await;
        let (code, log, _) = before.ended().await;
        assert_eq!(code, 0, "{log}\n--- the next one:\n{}", next.log());
        next
    }
}
