//! The one place that spawns, so that every task hears of the end and is awaited at the end. And the one bound on work that
//! takes the processor for long, see [`compute`].
//!
//! A task costs what tokio takes, and a counted guard of 24 bytes beside its future: client sessions are tasks, and there
//! are thousands of them. So there is no list of tasks here, and nobody is aborted: a task ends itself when it hears
//! [`Tasks::cancelled`]. The tasks inside the `mongodb` crate are its own and end with its client.

use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::AbortOnDropHandle;

/// One for each thread that the machine runs at once. More at a time would take turns and finish no earlier, and those of
/// all clients would be a few among hundreds.
static PROCESSORS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, NonZeroUsize::get))));

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

/// Work that is done elsewhere, and its result. Dropped before its turn the work is never begun, and what it holds is given
/// back; once begun, it is done to its end.
pub type Computing<T> = AbortOnDropHandle<T>;

/// Does work that others should not wait for on a thread that may block, in the order in which it came, and no more at once
/// than there are processors. It goes on whether or not somebody polls for its result, so that nobody holds up the others.
pub fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Computing<T> {
    compute_on(PROCESSORS.clone(), work)
}

fn compute_on<T: Send + 'static>(
    processors: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Computing<T> {
    let in_turn = async move {
        let processor = processors.acquire_owned().await.expect("the semaphore is never closed");
        let working = tokio::task::spawn_blocking(move || {
            let result = work();
            // Not before: whoever asked for it may have gone, the processor is taken all the same.
            drop(processor);
            result
        });
        working.await.expect("it does not panic, and is not aborted once it has begun")
    };
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns, and who waits for the result is a task")]
    AbortOnDropHandle::new(tokio::spawn(in_turn))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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

    #[tokio::test]
    async fn work_waits_for_a_processor_and_keeps_it_until_it_is_done() {
        let processors = Arc::new(Semaphore::new(2));
        let begin = || {
            let (go_on, told) = mpsc::channel::<()>();
            let (say, begun) = tokio::sync::oneshot::channel();
            let work = move || {
                say.send(()).unwrap();
                told.recv().unwrap();
                "done"
            };
            (compute_on(processors.clone(), work), begun, go_on)
        };
        let (first, begun, first_goes_on) = begin();
        begun.await.unwrap();
        assert_eq!(processors.available_permits(), 1);
        let (second, begun, second_goes_on) = begin();
        begun.await.unwrap();
        assert_eq!(processors.available_permits(), 0);
        let (third, third_begun, third_goes_on) = begin();
        let (never, never_begun, _never_goes_on) = begin();
        tokio::task::yield_now().await;
        // Nobody waits for these any more: what has begun keeps its processor, what has not gives all back.
        drop((first, never));
        assert!(never_begun.await.is_err(), "it is not begun");
        assert_eq!(processors.available_permits(), 0);
        first_goes_on.send(()).unwrap();
        third_begun.await.unwrap();
        assert_eq!(processors.available_permits(), 0);
        for (work, goes_on) in [(second, second_goes_on), (third, third_goes_on)] {
            goes_on.send(()).unwrap();
            assert_eq!(work.await.unwrap(), "done");
        }
        assert_eq!(processors.available_permits(), 2);
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_processor_back() {
        let processors = Arc::new(Semaphore::new(1));
        let failed = compute_on(processors.clone(), || panic!("on purpose"));
        assert!(failed.await.is_err());
        assert_eq!(compute_on(processors, || 5).await.unwrap(), 5);
    }

    #[test]
    fn a_task_costs_one_small_guard() {
        assert_eq!(size_of::<Guard>(), 24);
    }
}
