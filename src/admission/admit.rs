//! The bound on how many commands of a cluster wait: for a server and for a connection alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

/// Why a command may not wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// As many wait as may.
    #[error("{waiting} commands wait already, which is the limit")]
    QueueFull {
        /// `wait_queue_size`
        waiting: usize,
    },
}

/// Counts the waiting commands of one cluster.
#[derive(Debug)]
pub struct Admission {
    waiting: AtomicUsize,
    limit: usize,
    freed: Notify,
}

impl Admission {
    /// Lets at most `limit` commands wait.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { waiting: AtomicUsize::new(0), limit, freed: Notify::new() })
    }

    /// Allows one more to wait, as long as it holds the permit.
    ///
    /// # Errors
    /// [`AdmitError::QueueFull`] at the limit; nothing was sent then.
    pub fn admit(self: &Arc<Self>) -> Result<Permit, AdmitError> {
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| (waiting < self.limit).then_some(waiting + 1))
            .map(|_| Permit { admission: self.clone() })
            .map_err(|waiting| AdmitError::QueueFull { waiting })
    }

    /// Allows one more to wait whatever the limit says: for what frees others.
    pub fn admit_always(self: &Arc<Self>) -> Permit {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Permit { admission: self.clone() }
    }

    /// As [`Admission::admit`], for who cannot be refused: waits for a place until `deadline`.
    ///
    /// # Errors
    /// [`AdmitError::QueueFull`] at the deadline.
    ///
    /// # Cancel safety
    /// Safe: nothing is held while waiting.
    pub async fn admit_until(self: &Arc<Self>, deadline: Instant) -> Result<Permit, AdmitError> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Enabled before the look, so that a place freed in between is not missed.
            freed.as_mut().enable();
            let refused = match self.admit() {
                Ok(permit) => return Ok(permit),
                Err(refused) => refused,
            };
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                return Err(refused);
            }
        }
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// The right to wait. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self.admission.waiting.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a permit was counted when it was given");
        self.admission.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_places_come_back() {
        let admission = Admission::new(2);
        let first = admission.admit().unwrap();
        let _second = admission.admit().unwrap();
        assert_eq!(admission.admit().unwrap_err(), AdmitError::QueueFull { waiting: 2 });
        drop(first);
        assert_eq!(admission.waiting(), 1);
        assert!(admission.admit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_refused_waits_for_a_place() {
        let admission = Admission::new(1);
        let held = admission.admit().unwrap();
        let soon = Instant::now() + std::time::Duration::from_secs(1);
        assert!(admission.admit_until(soon).await.is_err());
        let waiting = admission.admit_until(soon + std::time::Duration::from_secs(1));
        let (permit, ()) = tokio::join!(waiting, async { drop(held) });
        assert_eq!(admission.waiting(), 1);
        let beyond = admission.admit_always();
        assert_eq!(admission.waiting(), 2);
        drop((permit, beyond));
    }
}
