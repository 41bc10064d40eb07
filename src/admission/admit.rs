//! The bounds on commands of a cluster that wait, for a server and for a connection alike: how many, of how many bytes, and
//! how many of one tenant.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::line::Line;

/// The last part of this many of the queue is for tenants that have less in it than an equal share: however many one of
/// them sends, the others are let on.
const LAST_PART: usize = 10;

/// Why a command may not wait. Nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// As many wait as may.
    #[error("{waiting} of at most {limit} commands wait")]
    QueueFull {
        /// Commands that wait.
        waiting: usize,
        /// `wait_queue_size`
        limit: usize,
    },
    /// The requests of those that wait are as large as they may be, all together.
    #[error("{waiting} commands wait with {bytes} of at most {limit} bytes")]
    BytesFull {
        /// Commands that wait.
        waiting: usize,
        /// Their requests.
        bytes: usize,
        /// `wait_queue_bytes`
        limit: usize,
    },
    /// As many of the same tenant wait as may.
    #[error("{waiting} commands of the same tenant wait, of at most {limit}")]
    TenantFull {
        /// Commands of the tenant that wait.
        waiting: usize,
        /// Its `max_waiting`, or what is left to it of a queue that is almost full.
        limit: usize,
    },
}

/// What one more would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Newcomer {
    /// Whose it is.
    pub tenant: u16,
    /// Commands of the tenant that may wait.
    pub max_waiting: usize,
    /// Tenants that there are.
    pub tenants: usize,
    /// Size of its request.
    pub bytes: usize,
    /// Since when it waits; `None` for one that is meant to wait and whose time says nothing.
    pub since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    bytes: usize,
    tenants: Vec<usize>,
    limits: Limits,
    /// Since when those wait whose time counts, by the number of their permit.
    since: Line<Instant>,
    next: u64,
    /// How many of those in line may still be asked whether they can use what has come free. Here, as a look that finds
    /// nothing and a place that comes free must not pass each other.
    asked: usize,
}

impl Waiting {
    fn of(&self, tenant: u16) -> usize {
        self.tenants.get(usize::from(tenant)).copied().unwrap_or_default()
    }

    fn refusal(&self, newcomer: Newcomer) -> Option<AdmitError> {
        let limits = self.limits;
        let (waiting, limit) = (self.count, limits.count);
        if waiting >= limit {
            return Some(AdmitError::QueueFull { waiting, limit });
        }
        // One that is larger than all may be together is let on when nobody else waits.
        if waiting > 0 && self.bytes.saturating_add(newcomer.bytes) > limits.bytes {
            return Some(AdmitError::BytesFull { waiting, bytes: self.bytes, limit: limits.bytes });
        }
        let (waiting, share) = (self.of(newcomer.tenant), (limit / newcomer.tenants.max(1)).max(1));
        let almost_full = self.count >= limit - limit / LAST_PART;
        let limit = if almost_full { newcomer.max_waiting.min(share) } else { newcomer.max_waiting };
        (waiting >= limit).then_some(AdmitError::TenantFull { waiting, limit })
    }

    /// Returns the number of the permit.
    fn add(&mut self, newcomer: Newcomer) -> u64 {
        self.count += 1;
        self.bytes += newcomer.bytes;
        let index = usize::from(newcomer.tenant);
        if index >= self.tenants.len() {
            self.tenants.resize(index + 1, 0);
        }
        self.tenants[index] += 1;
        let number = self.next;
        self.next += 1;
        if let Some(since) = newcomer.since {
            self.since.insert(number, since);
        }
        number
    }

    /// Whether the first in line is to be asked if it can use what has come free; not when all have been asked.
    fn ask_next(&mut self) -> bool {
        let asks = self.asked > 0;
        self.asked = self.asked.saturating_sub(1);
        asks
    }

    fn remove(&mut self, newcomer: Newcomer, number: u64) {
        self.since.remove(number);
        self.count -= 1;
        self.bytes -= newcomer.bytes;
        self.tenants[usize::from(newcomer.tenant)] -= 1;
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    count: usize,
    bytes: usize,
}

/// Counts the waiting commands of one cluster.
#[derive(Debug)]
pub struct Admission {
    waiting: Mutex<Waiting>,
    freed: Notify,
    /// Who waits for a permit.
    in_line: AtomicUsize,
}

impl Admission {
    /// Lets at most `count` commands wait, with requests of `bytes` all together.
    pub fn new(count: usize, bytes: usize) -> Arc<Self> {
        let waiting = Mutex::new(Waiting { limits: Limits { count, bytes }, ..Waiting::default() });
        Arc::new(Self { waiting, freed: Notify::new(), in_line: AtomicUsize::new(0) })
    }

    /// Puts other limits in force. Those who wait already stay, and who waits for the right to is asked again.
    pub fn set_limits(&self, count: usize, bytes: usize) {
        let asks_next = {
            let mut waiting = self.lock();
            waiting.limits = Limits { count, bytes };
            waiting.asked = self.in_line.load(Ordering::Relaxed);
            waiting.ask_next()
        };
        if asks_next {
            self.freed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Its critical sections leave nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows one more to wait, as long as it holds the permit.
    ///
    /// # Errors
    /// [`AdmitError`] at a limit; nothing was sent then.
    pub fn admit(self: &Arc<Self>, newcomer: Newcomer) -> Result<Permit, AdmitError> {
        self.admit_of(&mut self.lock(), newcomer)
    }

    fn admit_of(self: &Arc<Self>, waiting: &mut Waiting, newcomer: Newcomer) -> Result<Permit, AdmitError> {
        match waiting.refusal(newcomer) {
            Some(refusal) => Err(refusal),
            None => {
                let number = waiting.add(newcomer);
                Ok(Permit { admission: self.clone(), newcomer, number })
            }
        }
    }

    /// Allows one more to wait whatever the limits say: for what frees others.
    pub fn admit_always(self: &Arc<Self>, newcomer: Newcomer) -> Permit {
        let number = self.lock().add(newcomer);
        Permit { admission: self.clone(), newcomer, number }
    }

    /// As [`Admission::admit`], for who cannot be refused: waits for a place until `deadline`.
    ///
    /// # Errors
    /// [`AdmitError`] at the deadline.
    ///
    /// # Cancel safety
    /// Safe: nothing is held while waiting.
    pub async fn admit_until(self: &Arc<Self>, newcomer: Newcomer, deadline: Instant) -> Result<Permit, AdmitError> {
        let _in_line = InLine::new(self);
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Enabled before the look, so that a place freed in between is not missed.
            freed.as_mut().enable();
            let mut asks_next = false;
            let outcome = {
                let mut waiting = self.lock();
                let outcome = self.admit_of(&mut waiting, newcomer);
                match outcome {
                    // Nobody can use what is not there.
                    Err(AdmitError::QueueFull { .. }) => waiting.asked = 0,
                    // There may be room for the next one, too, or for one that is smaller or somebody else's.
                    _ => asks_next = waiting.ask_next(),
                }
                outcome
            };
            if asks_next {
                self.freed.notify_one();
            }
            let refused = match outcome {
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
        self.lock().count
    }

    /// Since when the one waits that was let on first of those whose time counts.
    pub fn oldest(&self) -> Option<Instant> {
        self.lock().since.first().map(|(_, since)| *since)
    }

    /// How large their requests are, all together.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

/// The right to wait. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    newcomer: Newcomer,
    number: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let admission = &self.admission;
        let asks_next = {
            let mut waiting = admission.lock();
            waiting.remove(self.newcomer, self.number);
            // One after the other, and each once: to wake all of thousands for each place would cost more than the place is worth.
            waiting.asked = admission.in_line.load(Ordering::Relaxed);
            waiting.ask_next()
        };
        if asks_next {
            admission.freed.notify_one();
        }
    }
}

/// One that waits for a permit.
struct InLine<'a>(&'a Admission);

impl<'a> InLine<'a> {
    fn new(admission: &'a Admission) -> Self {
        admission.in_line.fetch_add(1, Ordering::Relaxed);
        Self(admission)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.in_line.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Newcomer = Newcomer { tenant: 0, max_waiting: usize::MAX, tenants: 1, bytes: 10, since: None };

    #[test]
    fn the_limit_holds_and_places_come_back() {
        let admission = Admission::new(2, 1_000);
        let first = admission.admit(ONE).unwrap();
        let _second = admission.admit(ONE).unwrap();
        assert_eq!(admission.admit(ONE).unwrap_err(), AdmitError::QueueFull { waiting: 2, limit: 2 });
        drop(first);
        assert_eq!(admission.waiting(), 1);
        assert!(admission.admit(ONE).is_ok());
    }

    #[test]
    fn the_oldest_is_told_of_those_whose_time_counts() {
        let admission = Admission::new(10, 1_000);
        let start = Instant::now();
        let at = |seconds| start + std::time::Duration::from_secs(seconds);
        let of = |seconds| Newcomer { since: Some(at(seconds)), ..ONE };
        assert_eq!(admission.oldest(), None);
        let _long_poll = admission.admit(ONE).unwrap();
        assert_eq!(admission.oldest(), None, "it is meant to wait");
        let [first, second, third] = [1, 2, 3].map(|seconds| admission.admit(of(seconds)).unwrap());
        let last = admission.admit_always(of(4));
        drop(second);
        assert_eq!(admission.oldest(), Some(at(1)));
        drop(first);
        assert_eq!(admission.oldest(), Some(at(3)));
        drop(third);
        assert_eq!(admission.oldest(), Some(at(4)));
        drop(last);
        assert_eq!((admission.oldest(), admission.waiting()), (None, 1));
    }

    #[test]
    fn bytes_have_a_limit_that_one_alone_may_exceed() {
        let admission = Admission::new(100, 1_000);
        let of = |bytes| Newcomer { bytes, ..ONE };
        let large = admission.admit(of(5_000)).unwrap();
        let full = AdmitError::BytesFull { waiting: 1, bytes: 5_000, limit: 1_000 };
        assert_eq!(admission.admit(of(1)).unwrap_err(), full);
        drop(large);
        let _some = admission.admit(of(600)).unwrap();
        assert!(admission.admit(of(401)).is_err());
        assert!(admission.admit(of(400)).is_ok());
    }

    #[test]
    fn one_tenant_cannot_fill_the_queue_of_all() {
        let admission = Admission::new(100, usize::MAX);
        let of = |tenant| Newcomer { tenant, tenants: 2, ..ONE };
        let mut held: Vec<Permit> = std::iter::from_fn(|| admission.admit(of(1)).ok()).collect();
        assert_eq!(held.len(), 90, "while it is alone in it, all but the last tenth");
        held.extend(std::iter::from_fn(|| admission.admit(of(2)).ok()));
        assert_eq!(held.len(), 100, "the other one has the rest");
        held.truncate(95);
        let full = AdmitError::TenantFull { waiting: 90, limit: 50 };
        assert_eq!(admission.admit(of(1)).unwrap_err(), full, "a place that comes free is the other's as well");
        assert!(admission.admit(of(2)).is_ok());
        let alone = Admission::new(100, usize::MAX);
        assert_eq!(std::iter::from_fn(|| alone.admit(ONE).ok()).take(200).collect::<Vec<_>>().len(), 100);
    }

    #[test]
    fn a_tenant_may_have_a_limit_of_its_own() {
        let admission = Admission::new(100, usize::MAX);
        let of = |tenant| Newcomer { tenant, max_waiting: 2, tenants: 2, ..ONE };
        let [first, _second] = [(); 2].map(|()| admission.admit(of(1)).unwrap());
        assert_eq!(admission.admit(of(1)).unwrap_err(), AdmitError::TenantFull { waiting: 2, limit: 2 });
        assert!(admission.admit(of(2)).is_ok());
        drop(first);
        assert!(admission.admit(of(1)).is_ok(), "a place of its own has come free");
    }

    #[tokio::test(start_paused = true)]
    async fn whom_another_limit_holds_back_does_not_hold_back_the_next_in_line() {
        let admission = Admission::new(10, 100);
        let of = |tenant, bytes| Newcomer { tenant, bytes, max_waiting: 1, tenants: 3, since: None };
        let held = [admission.admit(of(1, 10)).unwrap(), admission.admit(of(2, 80)).unwrap()];
        let until = Instant::now() + std::time::Duration::from_secs(9);
        // Its tenant has all that it may have; too large; and one that fits as soon as the large one has gone.
        let mut line: Vec<_> =
            [of(1, 1), of(3, 95), of(3, 20)].map(|newcomer| Box::pin(admission.admit_until(newcomer, until))).into();
        for waits in &mut line {
            assert!(futures_util::poll!(waits).is_pending());
        }
        let [first, second] = held;
        drop(second);
        let outcome = tokio::time::timeout(std::time::Duration::from_secs(1), futures_util::future::select_all(line));
        let (permit, index, _line) = outcome.await.expect("one can go");
        assert_eq!((permit.is_ok(), index), (true, 2));
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn higher_limits_let_on_who_waits_for_a_place_and_lower_ones_send_nobody_away() {
        let admission = Admission::new(1, 1_000);
        let _held = admission.admit(ONE).unwrap();
        assert_eq!((admission.waiting(), admission.bytes()), (1, 10));
        let until = Instant::now() + std::time::Duration::from_secs(9);
        let [mut first, mut second, mut third] = [(); 3].map(|()| Box::pin(admission.admit_until(ONE, until)));
        for waits in [&mut first, &mut second, &mut third] {
            assert!(futures_util::poll!(waits).is_pending());
        }
        admission.set_limits(3, 1_000);
        let both = tokio::time::timeout(std::time::Duration::from_secs(1), futures_util::future::join(first, second));
        let (first, second) = both.await.expect("there is room for both");
        let _permits = [first.unwrap(), second.unwrap()];
        assert!(futures_util::poll!(&mut third).is_pending());
        admission.set_limits(1, 20);
        assert_eq!((admission.waiting(), admission.bytes()), (3, 30));
        assert_eq!(admission.admit(ONE).unwrap_err(), AdmitError::QueueFull { waiting: 3, limit: 1 });
        admission.set_limits(9, 30);
        assert_eq!(admission.admit(ONE).unwrap_err(), AdmitError::BytesFull { waiting: 3, bytes: 30, limit: 30 });
        assert!(third.await.is_err(), "until its deadline");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_about_a_place_that_somebody_else_has_taken() {
        let admission = Admission::new(1, 1_000);
        let held = admission.admit(ONE).unwrap();
        let until = Instant::now() + std::time::Duration::from_secs(9);
        let [mut first, mut second, mut third] = [(); 3].map(|()| Box::pin(admission.admit_until(ONE, until)));
        for waits in [&mut first, &mut second, &mut third] {
            assert!(futures_util::poll!(waits).is_pending());
        }
        drop(held);
        let _faster = admission.admit(ONE).unwrap();
        assert_eq!(admission.lock().asked, 2, "the others, should the first have no use for it");
        assert!(futures_util::poll!(&mut first).is_pending());
        assert_eq!(admission.lock().asked, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_refused_waits_for_a_place() {
        let admission = Admission::new(1, 1_000);
        let held = admission.admit(ONE).unwrap();
        let soon = Instant::now() + std::time::Duration::from_secs(1);
        assert!(admission.admit_until(ONE, soon).await.is_err());
        assert_eq!(admission.in_line.load(Ordering::Relaxed), 0, "it is not asked any more");
        let waiting = admission.admit_until(ONE, soon + std::time::Duration::from_secs(1));
        let (permit, ()) = tokio::join!(waiting, async { drop(held) });
        assert_eq!(admission.waiting(), 1);
        let beyond = admission.admit_always(ONE);
        assert_eq!(admission.waiting(), 2);
        drop((permit, beyond));
        assert_eq!(admission.waiting(), 0);
    }
}
