//! The bound on all buffered messages together: requests that are not sent yet, replies that are not delivered yet.
//!
//! Requests may use three quarters of it, so that replies, which free memory by leaving, always find some. Small ones are
//! counted and never refused: hello is among them, and memory that half messages of others hold must not make it fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A whole request up to this size always finds memory. A client has one at a time, so that the limit is exceeded by 4 KiB
/// for each client at most.
const SMALL_REQUEST_BYTES: usize = 4096;

/// All message bytes of the process.
#[derive(Debug)]
pub struct MemoryBudget {
    used: AtomicUsize,
    limit: usize,
    freed: Notify,
}

impl MemoryBudget {
    /// Allows `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit, freed: Notify::new() })
    }

    /// Bytes in use now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The bound in force.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Sets bytes aside for a request that has arrived whole, or says that there are none.
    pub fn admit_request(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        if bytes > SMALL_REQUEST_BYTES {
            return self.reserve_request(bytes);
        }
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Some(Reservation { budget: self.clone(), bytes })
    }

    /// Sets bytes aside for a request that is arriving, or says that there are none.
    pub fn reserve_request(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.take(bytes, self.limit / 4 * 3)
    }

    /// Sets bytes aside for a reply; waits until that many are free.
    ///
    /// # Cancel safety
    /// Dropping the future reserves nothing.
    pub async fn reserve_reply(self: &Arc<Self>, bytes: usize) -> Reservation {
        // One message larger than the whole limit still has to pass, alone.
        let bytes = bytes.min(self.limit);
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Enabled before the look, so that memory freed in between is not missed.
            freed.as_mut().enable();
            if let Some(reservation) = self.take(bytes, self.limit) {
                return reservation;
            }
            freed.await;
        }
    }

    /// Sets bytes aside for a reply, if that many are free.
    pub fn try_reserve_reply(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.take(bytes.min(self.limit), self.limit)
    }

    fn take(self: &Arc<Self>, bytes: usize, limit: usize) -> Option<Reservation> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|after| *after <= limit)
            })
            .ok()
            .map(|_| Reservation { budget: self.clone(), bytes })
    }
}

/// Bytes set aside; dropping it frees them.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: usize,
}

impl Reservation {
    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more for a request that grows; false when there is no more, and nothing changes then.
    pub fn grow_request(&mut self, bytes: usize) -> bool {
        match self.budget.reserve_request(bytes) {
            Some(mut more) => {
                self.bytes += std::mem::take(&mut more.bytes);
                true
            }
            None => false,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
            self.budget.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn requests_leave_room_for_replies() {
        let budget = MemoryBudget::new(100);
        let mut request = budget.reserve_request(70).unwrap();
        assert!(request.grow_request(5));
        assert!(!request.grow_request(1));
        assert!(budget.reserve_request(1).is_none());
        let reply = budget.try_reserve_reply(25).unwrap();
        assert!(budget.try_reserve_reply(1).is_none());
        drop((request, reply));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn small_requests_are_counted_and_never_refused() {
        let budget = MemoryBudget::new(10_000);
        let large = budget.admit_request(7500).unwrap();
        assert!(budget.admit_request(SMALL_REQUEST_BYTES + 1).is_none());
        let small = [(); 3].map(|()| budget.admit_request(SMALL_REQUEST_BYTES).unwrap());
        assert_eq!(budget.used(), 7500 + 3 * SMALL_REQUEST_BYTES);
        assert!(budget.try_reserve_reply(1).is_none() && budget.reserve_request(1).is_none());
        drop((large, small));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_waits_for_memory() {
        let budget = MemoryBudget::new(100);
        let held = budget.try_reserve_reply(80).unwrap();
        let waiting = budget.reserve_reply(50);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        drop(held);
        let reservation = waiting.await;
        assert_eq!(budget.used(), 50);
        drop(reservation);
        let _whole = budget.reserve_reply(1_000_000).await;
        assert_eq!(budget.used(), 100);
    }
}
