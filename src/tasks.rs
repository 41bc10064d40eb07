//! The one place that spawns, so that every task hears of the end and is awaited at the end.
//!
//! A task costs what tokio takes, and a counted guard of 24 bytes beside its future: client sessions are tasks, and there
//! are thousands of them. So there is no list of tasks here, and nobody is aborted: a task ends itself when it hears
//! [`Tasks::cancelled`]. The tasks inside the `mongodb` crate are its own and end with its client.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::Notify;

/// A handle to the program's tasks; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    running: AtomicUsize,
    /// Told when `running` falls to zero.
    idle: Notify,
    cancelled: AtomicBool,
    /// Told when `cancelled` turns true.
    cancel: Notify,
}

impl Tasks {
    /// No tasks, not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task on the current runtime. The name appears in the log if it panics.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.0.running.fetch_add(1, Ordering::Relaxed);
        let guard = Guard { shared: Arc::clone(&self.0), unfinished: Some(name) };
        // A combinator, not an async block: an async block would hold the future twice.
        let counted = future.map(move |()| guard.finish());
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        drop(tokio::spawn(counted));
    }

    /// Tells every task to end.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.0.cancel.notify_waiters();
    }

    /// True once [`Self::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Resolves when [`Self::cancel`] is called, at once if it was.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn cancelled(&self) {
        // Made before the flag is read, so that a cancel in between is heard.
        let told = self.0.cancel.notified();
        if !self.is_cancelled() {
            told.await;
        }
    }

    /// Tasks that have not ended.
    pub fn running(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Waits until all tasks have ended, at most for `timeout`; returns how many have not.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn join_all(&self, timeout: Duration) -> usize {
        let mut deadline = pin!(tokio::time::sleep(timeout));
        loop {
            let told = self.0.idle.notified();
            if self.running() == 0 {
                return 0;
            }
            tokio::select! {
                // Either arm only wakes us; the count is read afresh.
                () = told => {}
                () = &mut deadline => return self.running(),
            }
        }
    }
}

/// Counts its task out, however it ends.
struct Guard {
    shared: Arc<Shared>,
    /// The task's name until it has finished.
    unfinished: Option<&'static str>,
}

impl Guard {
    fn finish(mut self) {
        self.unfinished = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(task) = self.unfinished
            && !self.shared.cancelled.load(Ordering::Acquire)
        {
            // Without a cancel only a panic, or the end of the runtime, drops a task half-way.
            tracing::error!(task, "task ended half-way");
        }
        if self.shared.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn joining_waits_for_every_task() {
        let tasks = Tasks::new();
        for seconds in 1..=3 {
            tasks.spawn("sleeper", tokio::time::sleep(Duration::from_secs(seconds)));
        }
        assert_eq!(tasks.join_all(Duration::from_millis(1500)).await, 2);
        assert_eq!(tasks.join_all(Duration::from_secs(60)).await, 0);
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_is_heard_before_and_after_listening() {
        let tasks = Tasks::new();
        let listener = tasks.clone();
        tasks.spawn("listener", async move { listener.cancelled().await });
        tokio::task::yield_now().await;
        assert_eq!(tasks.running(), 1);
        tasks.cancel();
        tasks.cancelled().await;
        assert!(tasks.is_cancelled());
        assert_eq!(tasks.join_all(Duration::from_secs(1)).await, 0);
    }

    #[tokio::test]
    async fn a_panic_is_counted_out_and_hurts_nobody_else() {
        let tasks = Tasks::new();
        tasks.spawn("fails", async { panic!("on purpose") });
        assert_eq!(tasks.join_all(Duration::from_secs(5)).await, 0);
    }

    #[test]
    fn a_task_costs_one_small_guard() {
        assert_eq!(size_of::<Guard>(), 24);
    }
}
