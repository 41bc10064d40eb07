//! Files that are read again when they have changed: certificates, users, credentials.
//!
//! They are looked at every few seconds, by what the path leads to: secrets are often mounted as links that are switched all
//! at once, which a watch on the file itself would miss. A SIGHUP has them all read at once, changed or not.
//!
//! One metric tells of all of them: it is good when the last reading of each was a success.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// A change is seen this late at most.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Tells who watches files to read them now, and keeps account of how that ended. Clones share it.
#[derive(Clone)]
pub struct Reload {
    asked: watch::Sender<u64>,
    readings: Arc<Readings>,
}

/// How the last reading of each ended. Those of the start were successes: the program would not run otherwise.
struct Readings {
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watches: usize,
    /// By number of the watch.
    failing: BTreeSet<usize>,
}

impl Reload {
    /// Nothing is watched yet, and all has been read.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        metrics.config_loaded(true, SystemTime::now());
        Self { asked: watch::Sender::new(0), readings: Arc::new(Readings { metrics, state: Mutex::default() }) }
    }

    /// All files are to be read now.
    pub fn now(&self) {
        self.asked.send_modify(|count| *count += 1);
    }

    /// One more that is read, by whoever is asked to: the caller tells how that ends.
    pub fn reading(&self) -> Reading {
        Reading { readings: self.readings.clone(), number: self.readings.number() }
    }

    /// Calls `read` whenever one of `files` has changed, once soon after the start, and not when all are to be read; it accounts for
    /// its readings itself.
    pub fn watch_changes<R: Future + Send>(
        &self,
        files: Vec<PathBuf>,
        tasks: &Tasks,
        read: impl FnMut() -> R + Send + 'static,
    ) {
        // What has changed since the start, before anybody looked, would be missed for good: so it is read again once in any case.
        follow(files, None, None, tasks, read);
    }

    /// Calls `read` whenever one of `files` has changed, and when all are to be read; never again before it has ended. It says
    /// itself what went wrong, keeps what it had then, and returns whether it was a success.
    pub fn watch<R: Future<Output = bool> + Send>(
        &self,
        files: Vec<PathBuf>,
        tasks: &Tasks,
        mut read: impl FnMut() -> R + Send + 'static,
    ) {
        let (seen, asked, reading) = (look(&files), self.asked.subscribe(), Arc::new(self.reading()));
        follow(files, Some(seen), Some(asked), tasks, move || {
            let (read, reading) = (read(), reading.clone());
            async move { reading.ended(read.await) }
        });
    }
}

/// Calls `read` when what `files` look like is not what was `seen`, and when it is `asked` for.
fn follow<R: Future + Send>(
    files: Vec<PathBuf>,
    mut seen: Option<Look>,
    mut asked: Option<watch::Receiver<u64>>,
    tasks: &Tasks,
    mut read: impl FnMut() -> R + Send + 'static,
) {
    if files.is_empty() {
        return;
    }
    let tasks_of_it = tasks.clone();
    tasks.spawn("watch files", async move {
        loop {
            // Nothing is lost when an arm loses: the watch keeps its newest value, and files are looked at anew.
            let told = tokio::select! {
                () = is_asked(&mut asked) => true,
                () = tokio::time::sleep(LOOK_INTERVAL) => false,
                () = tasks_of_it.cancelled() => return,
            };
            let now = Some(look(&files));
            if told || now != seen {
                seen = now;
                tokio::select! {
                    _ = read() => {}
                    // What it would have read is of no use any more.
                    () = tasks_of_it.cancelled() => return,
                }
            }
        }
    });
}

/// Resolves when all files are to be read; never for who does not listen to that, and where nobody is left who could ask.
///
/// # Cancel safety
/// Safe: the watch keeps its newest value.
async fn is_asked(asked: &mut Option<watch::Receiver<u64>>) {
    if let Some(asked) = asked
        && asked.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// One of those whose last reading is accounted for.
pub struct Reading {
    readings: Arc<Readings>,
    number: usize,
}

impl Reading {
    /// A reading has ended.
    pub fn ended(&self, success: bool) {
        self.readings.ended(self.number, success);
    }
}

impl Readings {
    fn number(&self) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.watches += 1;
        state.watches
    }

    /// One success does not make up for another's failure.
    fn ended(&self, number: usize, success: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if success {
            state.failing.remove(&number);
        } else {
            state.failing.insert(number);
        }
        self.metrics.config_loaded(state.failing.is_empty(), SystemTime::now());
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
    use std::future::ready;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn files_are_read_again_when_they_change_or_appear_and_when_told() {
        let (directory, tasks, reload) = (tempfile::tempdir().unwrap(), Tasks::new(), Reload::new(Metrics::new()));
        let files: Vec<PathBuf> = ["a", "b"].iter().map(|name| directory.path().join(name)).collect();
        std::fs::write(&files[0], "one").unwrap();
        let (told, mut reads) = mpsc::channel(8);
        reload.watch(files.clone(), &tasks, move || ready(told.try_send(()).is_ok()));
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

    #[tokio::test(start_paused = true)]
    async fn all_is_well_when_the_last_reading_of_each_was_a_success() {
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let reload = Reload::new(metrics.clone());
        let well = || metrics.render().contains("mongomux_config_reload_success 1\n");
        assert!(well(), "what it starts with was read");
        let successes: [Arc<AtomicBool>; 2] = std::array::from_fn(|_| Arc::default());
        let (told, mut reads) = mpsc::channel(8);
        for success in &successes {
            let (success, told) = (success.clone(), told.clone());
            reload.watch(vec!["/nowhere".into()], &tasks, move || {
                let (success, told) = (success.clone(), told.clone());
                async move {
                    told.send(()).await.unwrap();
                    success.load(Ordering::Relaxed)
                }
            });
        }
        for (first, second) in [(true, true), (false, true), (true, false), (false, false), (false, true), (true, true)]
        {
            successes[0].store(first, Ordering::Relaxed);
            successes[1].store(second, Ordering::Relaxed);
            reload.now();
            for _ in &successes {
                reads.recv().await.unwrap();
            }
            // Time goes on only when both have noted it.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(well(), first && second, "{first} {second}");
        }
        tasks.cancel();
        assert_eq!(tasks.join_all(Duration::from_secs(1)).await, 0);
    }
}
