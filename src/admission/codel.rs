//! Controlled delay for the regular lane of one pool, with adaptive LIFO: whether its queue *stands*, and how long anybody
//! may wait while it does.
//!
//! A burst fills a queue and is gone; an overload keeps everybody waiting for as long as a queue is allowed to be, and all
//! that is carried out is late. A queue stands when for a whole interval nobody at its head had waited less than the target.
//! Then the newest go first, and who has waited for twice the target is refused: what is carried out is in time
//! (Nichols and Jacobson, "Controlling queue delay", 2012; Maurer, "Fail at scale", 2015, whose figures are for microseconds).

use std::time::Duration;

use tokio::time::Instant;

/// Watches one queue.
#[derive(Debug)]
pub struct Codel {
    target: Duration,
    interval: Duration,
    /// When this look at the queue ends; `None` before the first.
    until: Option<Instant>,
    /// The shortest wait at its head since the look began.
    least: Duration,
    /// Somebody was refused since the look began.
    refused: bool,
    stands: bool,
}

impl Codel {
    /// Of a queue that does not stand.
    pub fn new(target: Duration, interval: Duration) -> Self {
        Self { target, interval, until: None, least: Duration::MAX, refused: false, stands: false }
    }

    /// So long has the one at the head of the queue waited; zero when nobody is there.
    pub fn observe(&mut self, head: Duration, now: Instant) {
        match self.until {
            Some(until) if now < until => self.least = self.least.min(head),
            // Nothing has happened for long: what was before says nothing any more.
            Some(until) if now >= until + self.interval => *self = Self::new(self.target, self.interval),
            until => {
                self.stands = until.is_some() && (self.refused || self.least.min(head) > self.target);
                self.until = Some(now + self.interval);
                self.least = head;
                self.refused = false;
            }
        }
        // Whoever has overtaken it: an empty queue is none that stands. One that we have emptied ourselves tells nothing.
        self.stands &= !head.is_zero() || self.refused;
    }

    /// Somebody was refused for it: the queue is shorter by our doing, and no sign of less demand.
    pub fn refused(&mut self) {
        self.refused = true;
    }

    /// True while the queue stands.
    pub fn stands(&self) -> bool {
        self.stands
    }

    /// How long anybody may wait now; `None` where only the limit of all is.
    pub fn patience(&self) -> Option<Duration> {
        self.stands.then(|| self.target * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Looks every 5 ms for `time`, at a head that has waited as `head` says.
    fn watch(codel: &mut Codel, now: &mut Instant, time: Duration, mut head: impl FnMut() -> Duration) {
        let end = *now + time;
        while *now < end {
            codel.observe(head(), *now);
            *now += ms(5);
        }
    }

    #[test]
    fn a_burst_is_no_overload() {
        let (mut codel, mut now) = (Codel::new(ms(20), ms(500)), Instant::now());
        for _ in 0..10 {
            watch(&mut codel, &mut now, ms(400), || ms(300));
            assert!(!codel.stands());
            watch(&mut codel, &mut now, ms(100), || ms(1));
            assert_eq!((codel.stands(), codel.patience()), (false, None));
        }
    }

    #[test]
    fn a_queue_stands_after_an_interval_and_until_it_is_empty() {
        let (mut codel, mut now) = (Codel::new(ms(20), ms(500)), Instant::now());
        watch(&mut codel, &mut now, ms(510), || ms(21));
        assert_eq!((codel.stands(), codel.patience()), (true, Some(ms(40))));
        watch(&mut codel, &mut now, ms(5_000), || ms(35));
        assert!(codel.stands(), "as long as it goes on");
        codel.observe(Duration::ZERO, now);
        assert!(!codel.stands());
        watch(&mut codel, &mut now, ms(400), || ms(35));
        assert!(!codel.stands(), "it takes an interval again");
    }

    #[test]
    fn a_long_silence_ends_it() {
        let (mut codel, mut now) = (Codel::new(ms(20), ms(500)), Instant::now());
        watch(&mut codel, &mut now, ms(510), || ms(30));
        codel.refused();
        assert!(codel.stands());
        codel.observe(ms(1), now + ms(1_100));
        assert!(!codel.stands(), "a burst after a pause is no overload");
    }

    #[test]
    fn a_queue_that_was_emptied_by_refusing_goes_on_to_stand() {
        let (mut codel, mut now) = (Codel::new(ms(20), ms(500)), Instant::now());
        watch(&mut codel, &mut now, ms(510), || ms(21));
        for _ in 0..5 {
            codel.refused();
            codel.observe(Duration::ZERO, now);
            watch(&mut codel, &mut now, ms(500), || ms(1));
            assert!(codel.stands());
        }
        codel.refused();
        watch(&mut codel, &mut now, ms(1_010), || ms(1));
        assert!(!codel.stands(), "nobody was refused for an interval, and the head waits less than the target");
    }

    #[test]
    fn a_head_that_waits_less_than_the_target_ends_it_with_the_interval() {
        let (mut codel, mut now) = (Codel::new(ms(20), ms(500)), Instant::now());
        watch(&mut codel, &mut now, ms(1_000), || ms(30));
        assert!(codel.stands());
        watch(&mut codel, &mut now, ms(1_010), || ms(20));
        assert!(!codel.stands());
    }
}
