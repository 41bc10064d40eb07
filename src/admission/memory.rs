//! The bound on all buffered messages together: requests that are not sent yet, replies that are not delivered yet.
//!
//! The limit is divided into shares ([`MemoryShares`]) and every byte is set aside in one of them, so that the sum is within
//! the limit whatever happens. A message is charged with its announced length before its body is read: what was begun can be
//! finished, and nobody waits for memory while he holds what others need. Three kinds wait in three lines, each of them first
//! come, first served; a free share that nobody waits for is lent to the others.
//!
//! While there is room, setting bytes aside and giving them back are a few operations on atomics.
//!
//! Not counted is what other limits bound: the head of a message per client socket, up to a kilobyte of room beside a small
//! request and what is kept of such room for the next ones (`client/spare.rs`), the buffer that each upstream connection keeps,
//! and what exists within one step of one thread (a message while it is copied, an answer of ours while it is written).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::{Mutex, MutexGuard, Notify};

use crate::config::MemoryShares;
use crate::config::limits::SMALL_MESSAGE_BYTES;

/// Who asks for memory: each kind has a share and a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Reply,
    /// A request of at most [`SMALL_MESSAGE_BYTES`].
    Small,
}

impl Kind {
    const COUNT: usize = 3;

    fn of_request(bytes: usize) -> Self {
        if bytes <= SMALL_MESSAGE_BYTES { Self::Small } else { Self::Request }
    }

    /// Where it takes memory from, in this order. Its own share cannot be taken by others, but for that of requests.
    fn sources(self) -> &'static [Self] {
        match self {
            Self::Request => &[Self::Request],
            Self::Reply => &[Self::Reply, Self::Request],
            Self::Small => &[Self::Request, Self::Small],
        }
    }
}

/// A part of the limit, and who waits for it.
#[derive(Debug)]
struct Share {
    size: usize,
    free: AtomicUsize,
    /// How many stand in the line.
    waiting: AtomicUsize,
    /// The head of the line holds it and looks for memory; the lock is fair, so the others follow in order.
    turn: Mutex<()>,
}

impl Share {
    fn new(size: usize) -> Self {
        Self { size, free: AtomicUsize::new(size), waiting: AtomicUsize::new(0), turn: Mutex::new(()) }
    }

    fn nobody_waits(&self) -> bool {
        self.waiting.load(SeqCst) == 0
    }

    /// Takes `bytes` if `spare` more stay free.
    fn take(&self, bytes: usize, spare: usize) -> bool {
        let take = |free: usize| free.checked_sub(bytes).filter(|rest| *rest >= spare);
        self.free.fetch_update(SeqCst, SeqCst, take).is_ok()
    }
}

/// All message bytes of the process.
#[derive(Debug)]
pub struct MemoryBudget {
    /// By [`Kind`].
    shares: [Share; Kind::COUNT],
    limit: usize,
    largest_request: usize,
    /// How many wait in all lines: nobody has to be told of freed memory while it is 0.
    waiting: AtomicUsize,
    /// Tells the heads of the lines to look again. Each looks after it has joined: in the one order of `SeqCst`, who frees
    /// memory sees the waiter, or the waiter sees the memory.
    freed: Notify,
}

impl MemoryBudget {
    /// With nothing in use.
    pub fn new(shares: MemoryShares) -> Arc<Self> {
        let MemoryShares { requests, replies, small } = shares;
        Arc::new(Self {
            shares: [requests, replies, small].map(Share::new),
            limit: shares.limit(),
            largest_request: shares.largest_request(),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// For tests in which the limit does not matter.
    #[cfg(test)]
    pub(crate) fn plenty() -> Arc<Self> {
        Self::new(MemoryShares::of(crate::config::limits::MEMORY_LIMIT_BYTES.default))
    }

    /// Bytes in use now; never more than the limit.
    pub fn used(&self) -> usize {
        let free: usize = self.shares.iter().map(|share| share.free.load(SeqCst)).sum();
        self.limit.saturating_sub(free)
    }

    /// The bound in force.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The largest reply that finds room, if only after a wait.
    pub fn largest_reply(&self) -> usize {
        self.share(Kind::Reply).size
    }

    /// Sets bytes aside for a read of unknown contents, if there is plenty: no request waits, and one of the largest
    /// would fit afterwards.
    pub fn try_read_ahead(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let share = self.share(Kind::Request);
        let taken = share.nobody_waits() && share.take(bytes, self.largest_request);
        taken.then(|| Reservation { budget: self.clone(), source: Kind::Request, bytes })
    }

    /// Sets bytes aside for a request, if that many are free and nobody waits for them.
    pub fn try_request(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.try_reserve(Kind::of_request(bytes), bytes)
    }

    /// Sets bytes aside for a request; waits until that many are free, and returns `None` if there will never be so many.
    ///
    /// # Cancel safety
    /// Dropping the future reserves nothing and leaves the line.
    pub async fn request(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let kind = Kind::of_request(bytes);
        if bytes > self.share(kind).size { None } else { Some(self.reserve(kind, bytes).await) }
    }

    /// Sets bytes aside for a reply, if that many are free and nobody waits for them.
    pub fn try_reply(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.try_reserve(Kind::Reply, bytes)
    }

    /// Sets bytes aside for a reply; waits until that many are free. Not more than [`Self::largest_reply`], which is
    /// what replies have to be checked against.
    ///
    /// # Cancel safety
    /// Dropping the future reserves nothing and leaves the line.
    pub async fn reply(self: &Arc<Self>, bytes: usize) -> Reservation {
        self.reserve(Kind::Reply, bytes.min(self.largest_reply())).await
    }

    fn try_reserve(self: &Arc<Self>, kind: Kind, bytes: usize) -> Option<Reservation> {
        if self.share(kind).nobody_waits() { self.take(kind, bytes) } else { None }
    }

    async fn reserve(self: &Arc<Self>, kind: Kind, bytes: usize) -> Reservation {
        if let Some(reservation) = self.try_reserve(kind, bytes) {
            return reservation;
        }
        let _head = Place::join(self, kind).head().await;
        loop {
            // Made before the look, so that memory freed in between is not missed.
            let freed = self.freed.notified();
            if let Some(reservation) = self.take(kind, bytes) {
                return reservation;
            }
            freed.await;
        }
    }

    /// From its own share, or from one that is lent because nobody waits for it.
    fn take(self: &Arc<Self>, kind: Kind, bytes: usize) -> Option<Reservation> {
        let source = kind.sources().iter().copied().find(|&source| {
            let share = self.share(source);
            (source == kind || share.nobody_waits()) && share.take(bytes, 0)
        })?;
        Some(Reservation { budget: self.clone(), source, bytes })
    }

    fn share(&self, kind: Kind) -> &Share {
        &self.shares[kind as usize]
    }

    fn give_back(&self, source: Kind, bytes: usize) {
        if bytes > 0 {
            self.share(source).free.fetch_add(bytes, SeqCst);
            self.tell();
        }
    }

    /// Something has changed for those who wait.
    fn tell(&self) {
        if self.waiting.load(SeqCst) > 0 {
            self.freed.notify_waiters();
        }
    }
}

/// A place in a line. When it is left, the next one has its turn, and the share may be lent again if that was the last.
struct Place<'a> {
    budget: &'a MemoryBudget,
    share: &'a Share,
}

impl<'a> Place<'a> {
    fn join(budget: &'a MemoryBudget, kind: Kind) -> Self {
        let share = budget.share(kind);
        share.waiting.fetch_add(1, SeqCst);
        budget.waiting.fetch_add(1, SeqCst);
        Self { budget, share }
    }

    /// The turn first, so that it is dropped first: whoever is next looks for himself.
    async fn head(self) -> (MutexGuard<'a, ()>, Self) {
        (self.share.turn.lock().await, self)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.share.waiting.fetch_sub(1, SeqCst);
        self.budget.waiting.fetch_sub(1, SeqCst);
        self.budget.tell();
    }
}

/// Bytes set aside; dropping it frees them.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    source: Kind,
    bytes: usize,
}

impl Reservation {
    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frees what is above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let freed = self.cut(bytes);
        self.budget.give_back(self.source, freed);
    }

    /// Keeps `bytes` and hands out the rest.
    pub fn split_off(&mut self, bytes: usize) -> Self {
        let bytes = self.cut(bytes);
        Self { budget: self.budget.clone(), source: self.source, bytes }
    }

    /// Keeps `bytes` at most; the rest is the caller's.
    fn cut(&mut self, bytes: usize) -> usize {
        let rest = self.bytes.saturating_sub(bytes);
        self.bytes -= rest;
        rest
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.source, self.bytes);
    }
}

#[cfg(test)]
mod tests;
