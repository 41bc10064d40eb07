//! What cleans up when this process cannot: a shell that waits for our end.
//!
//! A process killed with SIGKILL runs no destructor, and a signal for "parent died" needs either unsafe code or a parent
//! thread that never ends. A pipe needs neither: the shell reads from it, and sees its end when we are gone, in whatever
//! way. Then it kills the process it was told of and removes the directory. Where there is no `sh`, there is no guardian,
//! and only endings that run destructors leave nothing behind.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// The last line that came in names the process to kill; an empty one says that there is none any more.
const SCRIPT: &str = r#"trap '' INT TERM HUP
guarded=
while read -r line; do guarded=$line; done
[ -z "$guarded" ] || kill -KILL "$guarded"
rm -rf -- "$0""#;

/// Guards one directory and at most one process.
#[derive(Debug)]
pub(super) struct Guardian {
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Guardian {
    /// Starts one for `directory`; `None` where that is impossible.
    pub(super) fn of(directory: &Path) -> Option<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).arg(directory);
        // Its own process group: Ctrl-C in the terminal is for us, and the guardian has to outlive us.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        let mut shell = command.spawn().ok()?;
        let stdin = shell.stdin.take();
        Some(Self { shell, stdin })
    }

    /// From now on `process` (or none) ends with us.
    pub(super) fn guard(&mut self, process: Option<u32>) {
        let line = process.map_or_else(|| "\n".to_owned(), |id| format!("{id}\n"));
        if let Some(stdin) = &mut self.stdin
            && let Err(error) = stdin.write_all(line.as_bytes())
        {
            tracing::debug!(%error, "the guardian of a mongod is gone");
        }
    }
}

impl Drop for Guardian {
    /// Lets the shell do its work and waits for it, a matter of milliseconds.
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Err(error) = self.shell.wait() {
            tracing::debug!(%error, "waiting for the guardian of a mongod");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn the_end_of_the_pipe_kills_and_removes() {
        let directory = tempfile::tempdir().unwrap().keep();
        let (mut before, mut guarded) = (sleeper(), sleeper());
        let mut guardian = Guardian::of(&directory).unwrap();
        guardian.guard(Some(before.id()));
        guardian.guard(Some(guarded.id()));
        drop(guardian);
        assert!(!guarded.wait().unwrap().success());
        assert!(!directory.exists());
        assert!(before.try_wait().unwrap().is_none(), "only the last one is guarded");
        before.kill().unwrap();
        before.wait().unwrap();
    }

    #[test]
    fn a_process_that_ended_is_forgotten() {
        let directory = tempfile::tempdir().unwrap().keep();
        let mut process = sleeper();
        let mut guardian = Guardian::of(&directory).unwrap();
        guardian.guard(Some(process.id()));
        guardian.guard(None);
        drop(guardian);
        assert!(process.try_wait().unwrap().is_none());
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
