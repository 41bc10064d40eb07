//! Semaphores whose number of permits changes while they are in use.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::tasks::Tasks;

/// Gives `semaphore`, which has `from` permits in all, `to` of them. Those that are taken and are too many go when they are given
/// back, before anybody else who has come later gets one; nobody waits for that.
pub(crate) fn resize(semaphore: &Arc<Semaphore>, from: usize, to: usize, tasks: &Tasks) {
    if let Some(more) = to.checked_sub(from) {
        semaphore.add_permits(more);
        return;
    }
    let less = from - to;
    let taken = less - semaphore.forget_permits(less);
    let Some(taken) = u32::try_from(taken).ok().filter(|taken| *taken > 0) else { return };
    let (semaphore, ends) = (semaphore.clone(), tasks.clone());
    tasks.spawn("take permits back", async move {
        // What was taken when an arm loses is given back, at the end of the program.
        tokio::select! {
            permits = semaphore.acquire_many_owned(taken) => permits.into_iter().for_each(|permits| permits.forget()),
            () = ends.cancelled() => {}
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn permits_that_are_taken_go_when_they_come_back() {
        let (semaphore, tasks) = (Arc::new(Semaphore::new(4)), Tasks::new());
        let mut taken: Vec<_> = (0..3).map(|_| semaphore.clone().try_acquire_owned().unwrap()).collect();
        resize(&semaphore, 4, 1, &tasks);
        tokio::task::yield_now().await;
        assert_eq!(semaphore.available_permits(), 0);
        let mut late = Box::pin(semaphore.clone().acquire_owned());
        assert!((&mut late).now_or_never().is_none());
        for _ in 0..2 {
            drop(taken.pop());
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!((&mut late).now_or_never().is_none(), "what is too much goes first");
        }
        drop(taken.pop());
        drop(late.await.unwrap());
        assert_eq!(semaphore.available_permits(), 1);
        resize(&semaphore, 1, 3, &tasks);
        assert_eq!(semaphore.available_permits(), 3);
        assert_eq!(tasks.join_all(Duration::from_secs(1)).await, 0);
    }
}
