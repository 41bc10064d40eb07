//! Commands that wait for data on one server: how many may hold a connection, for how long, and when it is worth to ask.
//!
//! The `getMore` of a change stream or of a tailable cursor keeps its connection until there is data or its time is over. A
//! handful of them would keep everybody else out of a small pool, so they get half of it. As long as they are no more than
//! that, they wait on the server. A crowd waits here instead: each asks the server when something was written since it last
//! did, without waiting there, and in any case now and then. That something was written shows in the `operationTime` of
//! whatever the server answers to anybody; when nobody asks it anything, `lookout` does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::permits;
use crate::admission::shares::half_of;
use crate::tasks::Tasks;
use crate::wire::Timestamp;

/// How long one waits on the server before it looks whether there is a crowd now. Also how long the connection of a client
/// that has left can be held.
const SLICE: Duration = Duration::from_millis(500);

/// A crowd is one until it has been none for so long: between two `getMore`s of one cursor it is not to be missed.
const CROWD_LINGERS: Duration = Duration::from_secs(10);

/// Whoever waits here asks this often in any case, so that nothing depends on what replies tell.
pub const CEILING: Duration = Duration::from_secs(1);

/// Who asked in vain asks again after this at the earliest, doubling while it goes on in vain, ...
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// ... up to so much for each that waits: they ask in vain 5,000 times a second all together at most, where something that
/// is not for them is written all the time. That takes a server half a core.
const PAUSE_PER_POLL: Duration = Duration::from_micros(200);

/// The longest pause, however many wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The long polls of one server.
#[derive(Debug)]
pub struct LongPolls {
    free: Arc<Semaphore>,
    places: AtomicUsize,
    /// There is but one connection: nobody may wait on the server.
    only_connection: AtomicBool,
    under_way: AtomicUsize,
    born: Instant,
    /// Milliseconds after `born`.
    crowded_until: AtomicU64,
    /// The newest operation time of any reply; 0 before the first.
    newest: AtomicU64,
    /// A reply has told a time since the last look.
    heard: AtomicBool,
    parked: AtomicUsize,
    looking: AtomicBool,
    /// How often whoever waits was told to look around.
    disturbed: AtomicU64,
    /// Something was written.
    news: Notify,
    /// There is a reason to look around.
    around: Notify,
    somebody_parks: Arc<Notify>,
}

/// The right to occupy a connection, in a share of its pool. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "frees the place when it is dropped")] pub(super) OwnedSemaphorePermit);

/// Why one who waited goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// To ask the server.
    Due,
    /// To look whether its cursor and its server are there still.
    Disturbed,
}

fn places(max_in_flight: u32) -> usize {
    usize::try_from(half_of(max_in_flight)).unwrap_or(Semaphore::MAX_PERMITS)
}

impl LongPolls {
    /// Half of `max_in_flight` may occupy a connection, and one at least. `somebody_parks` is told when one begins to wait
    /// here.
    pub fn new(max_in_flight: u32, somebody_parks: Arc<Notify>) -> Self {
        let places = places(max_in_flight);
        Self {
            free: Arc::new(Semaphore::new(places)),
            places: AtomicUsize::new(places),
            only_connection: AtomicBool::new(max_in_flight <= 1),
            under_way: AtomicUsize::new(0),
            born: Instant::now(),
            crowded_until: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            looking: AtomicBool::new(false),
            disturbed: AtomicU64::new(0),
            news: Notify::new(),
            around: Notify::new(),
            somebody_parks,
        }
    }

    /// Half of another number may occupy a connection from now on. Those that are too many end as always, soon.
    pub fn resize(&self, max_in_flight: u32, tasks: &Tasks) {
        let places = places(max_in_flight);
        let before = self.places.swap(places, Ordering::Relaxed);
        self.only_connection.store(max_in_flight <= 1, Ordering::Relaxed);
        permits::resize(&self.free, before, places, tasks);
    }

    /// A place, if one is free and nobody was first.
    pub fn try_enter(&self) -> Option<Place> {
        self.free.clone().try_acquire_owned().ok().map(Place)
    }

    /// Waits for a place, first come, first served.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped leaves the line.
    pub async fn enter(&self) -> Place {
        Place(self.free.clone().acquire_owned().await.expect("the semaphore is never closed"))
    }

    /// One more is under way, until [`LongPolls::ended`].
    pub fn begun(&self, now: Instant) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.crowds(now);
    }

    /// One has ended.
    pub fn ended(&self, now: Instant) {
        self.crowds(now);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    fn crowds(&self, now: Instant) {
        if self.under_way.load(Ordering::Relaxed) > self.places.load(Ordering::Relaxed) {
            self.crowded_until.store(self.millis(now + CROWD_LINGERS), Ordering::Relaxed);
        }
    }

    /// How long one may wait on the server now; `None` in a crowd.
    pub fn slice(&self, now: Instant) -> Option<Duration> {
        let crowd = self.only_connection.load(Ordering::Relaxed)
            || self.under_way.load(Ordering::Relaxed) > self.places.load(Ordering::Relaxed)
            || self.millis(now) < self.crowded_until.load(Ordering::Relaxed);
        (!crowd).then_some(SLICE)
    }

    /// How long one that has asked `in_vain` times in a row waits at least before it asks again.
    pub fn pause(&self, in_vain: u32) -> Duration {
        let doublings = in_vain.saturating_sub(1);
        FIRST_PAUSE.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(self.longest_pause())
    }

    /// The longest that [`LongPolls::pause`] gives now.
    pub fn longest_pause(&self) -> Duration {
        let under_way = u32::try_from(self.under_way.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        PAUSE_PER_POLL.saturating_mul(under_way).clamp(FIRST_PAUSE, LONGEST_PAUSE)
    }

    /// The newest time that the server has told of.
    pub fn newest(&self) -> Option<Timestamp> {
        Some(Timestamp(self.newest.load(Ordering::SeqCst))).filter(|newest| newest.0 > 0)
    }

    /// A reply of the server told of this time.
    pub fn heard(&self, time: Timestamp) {
        let before = self.newest.fetch_max(time.0, Ordering::SeqCst);
        // In one order with who parks and then looks: one of the two sees the other.
        if self.parked.load(Ordering::SeqCst) > 0 {
            self.heard.store(true, Ordering::Relaxed);
            if before < time.0 {
                self.news.notify_waiters();
            }
        }
    }

    /// A cursor or the server is not what it was: whoever waits here looks around.
    pub fn disturb(&self) {
        self.disturbed.fetch_add(1, Ordering::AcqRel);
        self.around.notify_waiters();
    }

    /// Resolves with the next [`LongPolls::disturb`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn disturbance(&self) {
        self.around.notified().await;
    }

    /// True if somebody waits here and no reply has told of a time since the last call.
    pub(super) fn wants_news(&self) -> bool {
        self.parked.load(Ordering::Relaxed) > 0 && !self.heard.swap(false, Ordering::Relaxed)
    }

    /// The right to look for news; `None` while somebody else does.
    pub(super) fn start_looking(self: &Arc<Self>) -> Option<Looking> {
        (!self.looking.swap(true, Ordering::AcqRel)).then(|| Looking(self.clone()))
    }

    /// Waiting here.
    pub fn parked(&self) -> usize {
        self.parked.load(Ordering::Relaxed)
    }

    /// Waits until the server is worth to be asked: when `is_due` says so of the newest time, though not before
    /// `not_before`; at `until` at the latest.
    ///
    /// # Cancel safety
    /// Safe: nothing is held but a count that drops with the future.
    pub async fn until_due(
        &self,
        is_due: impl Fn(Option<Timestamp>) -> bool,
        not_before: Instant,
        until: Instant,
    ) -> Woken {
        let _parked = Parked::new(self);
        let disturbed = self.disturbed.load(Ordering::Acquire);
        loop {
            // Listen from here on, so that what comes after the look is heard.
            let (mut news, mut around) = (std::pin::pin!(self.news.notified()), std::pin::pin!(self.around.notified()));
            around.as_mut().enable();
            if self.disturbed.load(Ordering::Acquire) != disturbed {
                return Woken::Disturbed;
            }
            let now = Instant::now();
            if now >= until {
                return Woken::Due;
            }
            // Who makes a pause is not woken by what is written meanwhile.
            let resting = now < not_before;
            if !resting {
                news.as_mut().enable();
                if is_due(self.newest()) {
                    return Woken::Due;
                }
            }
            let look = if resting { not_before.min(until) } else { until };
            // Nothing is lost when an arm loses: each only makes us look again.
            tokio::select! {
                () = news, if !resting => {}
                () = around => {}
                () = tokio::time::sleep_until(look) => {}
            }
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }
}

/// One looks for news. Dropping it lets the next one.
pub(super) struct Looking(Arc<LongPolls>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Release);
    }
}

/// Counts one that waits here.
struct Parked<'a>(&'a LongPolls);

impl<'a> Parked<'a> {
    fn new(polls: &'a LongPolls) -> Self {
        if polls.parked.fetch_add(1, Ordering::SeqCst) == 0 {
            polls.somebody_parks.notify_one();
        }
        Self(polls)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    fn polls(max_in_flight: u32) -> LongPolls {
        LongPolls::new(max_in_flight, Arc::default())
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn half_of_the_pool_and_one_at_least() {
        for (max_in_flight, places) in [(1, 1), (2, 1), (3, 1), (10, 5), (201, 100)] {
            let polls = polls(max_in_flight);
            let taken: Vec<_> = std::iter::from_fn(|| polls.try_enter()).collect();
            assert_eq!(taken.len(), places, "of {max_in_flight}");
            let mut line = [Box::pin(polls.enter()), Box::pin(polls.enter())];
            assert!(line.iter_mut().all(|waiter| waiter.as_mut().now_or_never().is_none()));
            drop(taken);
            assert!(line[0].as_mut().now_or_never().is_some(), "those in line are first");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_wait_on_the_server_and_a_crowd_does_not() {
        let polls = polls(4);
        let slice = || polls.slice(Instant::now());
        polls.begun(Instant::now());
        polls.begun(Instant::now());
        assert_eq!(slice(), Some(SLICE));
        polls.begun(Instant::now());
        assert_eq!(slice(), None);
        // However long they wait.
        advance(CROWD_LINGERS * 2).await;
        assert_eq!(slice(), None);
        // One that comes back at once is not missed, ...
        polls.ended(Instant::now());
        assert_eq!(slice(), None);
        advance(CROWD_LINGERS).await;
        // ... one that stays away is.
        assert_eq!(slice(), Some(SLICE));
        assert_eq!(self::polls(1).slice(Instant::now()), None, "everybody needs the only connection");
    }

    #[test]
    fn pauses_grow_up_to_what_the_crowd_allows() {
        let polls = polls(4);
        let now = Instant::now();
        (0..5).for_each(|_| polls.begun(now));
        assert_eq!([1, 2, 40].map(|in_vain| polls.pause(in_vain)), [ms(5); 3]);
        (5..500).for_each(|_| polls.begun(now));
        assert_eq!([0, 1, 2, 3, 7, 99].map(|in_vain| polls.pause(in_vain)), [5, 5, 10, 20, 100, 100].map(ms));
        (500..9_000).for_each(|_| polls.begun(now));
        assert_eq!(polls.pause(u32::MAX), LONGEST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_woken_by_what_was_written_and_by_nothing_else() {
        let polls = polls(4);
        polls.heard(Timestamp(5));
        let began = Instant::now();
        let later_than = |time: u64| move |newest: Option<Timestamp>| newest.is_none_or(|newest| newest.0 > time);
        let wait = |time, not_before| polls.until_due(later_than(time), began + ms(not_before), began + ms(800));
        assert_eq!(wait(4, 0).await, Woken::Due);
        assert_eq!(began.elapsed(), ms(0));
        // A pause is kept although it is due already.
        wait(4, 20).await;
        assert_eq!(began.elapsed(), ms(20));
        let mut waiting = Box::pin(wait(5, 0));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(polls.parked(), 1);
        polls.heard(Timestamp(3));
        polls.heard(Timestamp(5));
        assert!((&mut waiting).now_or_never().is_none(), "nothing new");
        polls.heard(Timestamp(6));
        assert_eq!((&mut waiting).now_or_never(), Some(Woken::Due));
        drop(waiting);
        assert_eq!((polls.parked(), polls.newest()), (0, Some(Timestamp(6))));
        // Its own time is over.
        assert_eq!(wait(6, 0).await, Woken::Due);
        assert_eq!(began.elapsed(), ms(800));
        // What is written during a pause counts after it.
        let pause = ms(900);
        let mut resting = Box::pin(polls.until_due(later_than(6), began + pause, began + ms(60_000)));
        assert!((&mut resting).now_or_never().is_none());
        polls.heard(Timestamp(7));
        assert!((&mut resting).now_or_never().is_none());
        assert_eq!(resting.await, Woken::Due);
        assert_eq!(began.elapsed(), pause);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_can_be_told_to_look_around() {
        let polls = polls(4);
        let now = Instant::now();
        polls.heard(Timestamp(1));
        let mut waiting = Box::pin(polls.until_due(|_| false, now, now + ms(900)));
        assert!((&mut waiting).now_or_never().is_none());
        polls.disturb();
        assert_eq!(waiting.now_or_never(), Some(Woken::Disturbed));
        assert!(Box::pin(polls.until_due(|_| false, now, now + ms(900))).now_or_never().is_none(), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn news_is_wanted_while_somebody_waits_and_no_reply_came() {
        let polls = polls(4);
        assert!(!polls.wants_news());
        let now = Instant::now();
        let mut waiting = Box::pin(polls.until_due(|_| false, now, now + ms(900)));
        assert!((&mut waiting).now_or_never().is_none());
        tokio::time::timeout(ms(1), polls.somebody_parks.notified()).await.expect("told");
        assert!(polls.wants_news() && polls.wants_news());
        polls.heard(Timestamp(1));
        assert!(!polls.wants_news());
        assert!(polls.wants_news(), "that was a while ago");
    }
}
