//! Files that are read again when they have changed: certificates, users, credentials.
//!
//! They are looked at every few seconds, by what the path leads to: secrets are often mounted as links that are switched all
//! at once, which a watch on the file itself would miss. A SIGHUP has them all read at once, changed or not.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::tasks::Tasks;

/// A change is seen this late at most.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Tells who watches files to read them now. Clones share it.
#[derive(Debug, Clone)]
pub struct Reload(watch::Sender<u64>);

impl Default for Reload {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Reload {
    /// All files are to be read now.
    pub fn now(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Calls `read` whenever one of `files` has changed, and when all are to be read. It says itself what went wrong, and keeps
    /// what it had then.
    pub fn watch(&self, files: Vec<PathBuf>, tasks: &Tasks, mut read: impl FnMut() + Send + 'static) {
        if files.is_empty() {
            return;
        }
        let (mut asked, tasks_of_it) = (self.0.subscribe(), tasks.clone());
        let mut seen = look(&files);
        tasks.spawn("watch files", async move {
            loop {
                // Nothing is lost when an arm loses: the watch keeps its newest value, and files are looked at anew.
                let told = tokio::select! {
                    told = asked.changed() => told.is_ok(),
                    () = tokio::time::sleep(LOOK_INTERVAL) => false,
                    () = tasks_of_it.cancelled() => return,
                };
                let now = look(&files);
                if told || now != seen {
                    seen = now;
                    read();
                }
            }
        });
    }
}

/// What tells one content from another without reading it; `None` while there is no such file.
type Look = Vec<Option<(u64, Option<SystemTime>, u64)>>;

fn look(files: &[PathBuf]) -> Look {
    files.iter().map(|file| look_at(file)).collect()
}

fn look_at(file: &Path) -> Option<(u64, Option<SystemTime>, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(file).ok()?;
    Some((found.len(), found.modified().ok(), found.ino()))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn files_are_read_again_when_they_change_or_appear_and_when_told() {
        let (directory, tasks, reload) = (tempfile::tempdir().unwrap(), Tasks::new(), Reload::default());
        let files: Vec<PathBuf> = ["a", "b"].iter().map(|name| directory.path().join(name)).collect();
        std::fs::write(&files[0], "one").unwrap();
        let (told, mut reads) = mpsc::channel(8);
        reload.watch(files.clone(), &tasks, move || told.try_send(()).unwrap());
        tokio::time::sleep(10 * LOOK_INTERVAL).await;
        assert!(reads.try_recv().is_err(), "nothing has changed");
        std::fs::write(&files[0], "three").unwrap();
        reads.recv().await.unwrap();
        std::fs::write(&files[1], "").unwrap();
        reads.recv().await.unwrap();
        // As secrets are mounted: a link that is switched, to a file as old and as long.
        let other = directory.path().join("c");
        std::fs::write(&other, "three").unwrap();
        std::fs::rename(&other, &files[0]).unwrap();
        reads.recv().await.unwrap();
        assert!(reads.try_recv().is_err());
        let before = tokio::time::Instant::now();
        reload.now();
        reads.recv().await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO, "at once");
        tasks.cancel();
        assert_eq!(tasks.join_all(Duration::from_secs(1)).await, 0);
    }
}
