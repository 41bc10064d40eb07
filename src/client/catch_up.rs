//! How far one long poll is known to have caught up with what was written on its server, and so when it has to ask again.
//!
//! What a server had written when it was asked is in its reply, or in none. So a cursor whose batch was whole has caught up
//! with the newest time that was heard of *before* it asked. A change stream shows only what a majority has: it has caught up
//! no further than its own resume token says.

use std::time::Duration;

use tokio::time::Instant;

use crate::reply::Batch;
use crate::wire::Timestamp;

/// The state of one cursor that waits for data.
#[derive(Debug, Clone, Copy)]
pub(super) struct CatchUp {
    change_stream: bool,
    /// Everything up to here was delivered; `None` where nobody knows.
    caught_up: Option<Timestamp>,
    /// The newest time that was heard of when it last asked.
    asked_at: Option<Timestamp>,
    /// How often in a row it has asked, one time soon after the other, and nothing came.
    in_vain: u32,
    /// The last time when nothing came.
    last_in_vain: Instant,
    not_before: Instant,
}

impl CatchUp {
    /// A new wait of a cursor that has caught up so far.
    pub(super) fn new(change_stream: bool, caught_up: Option<Timestamp>, now: Instant) -> Self {
        Self { change_stream, caught_up, asked_at: None, in_vain: 0, last_in_vain: now, not_before: now }
    }

    /// Whether there may be something, given the newest time that the server has told of.
    pub(super) fn is_due(&self, newest: Option<Timestamp>) -> bool {
        match (self.caught_up, newest) {
            (Some(caught_up), Some(newest)) => newest > caught_up,
            _ => true,
        }
    }

    /// When it may ask again at the earliest.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// It asks now; `newest` is the newest time that the server has told of.
    pub(super) fn asks(&mut self, newest: Option<Timestamp>) {
        self.asked_at = newest;
    }

    /// How far it has caught up with this batch.
    pub(super) fn after(&self, batch: &Batch) -> Option<Timestamp> {
        let asked_at = self.asked_at.filter(|_| batch.is_whole)?;
        if self.change_stream { batch.resume_time.map(|resume_time| resume_time.min(asked_at)) } else { Some(asked_at) }
    }

    /// An empty batch came. Returns how often in a row, where twice within `soon` is a row; the pause that is due then goes
    /// to [`CatchUp::rest_until`].
    pub(super) fn nothing_came(&mut self, batch: &Batch, soon: Duration, now: Instant) -> u32 {
        self.caught_up = self.after(batch);
        let in_a_row = now.duration_since(self.last_in_vain) <= soon;
        self.last_in_vain = now;
        self.in_vain = if in_a_row { self.in_vain.saturating_add(1) } else { 1 };
        self.in_vain
    }

    /// It asks again then at the earliest.
    pub(super) fn rest_until(&mut self, not_before: Instant) {
        self.not_before = not_before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: u64) -> Option<Timestamp> {
        Some(Timestamp(time))
    }

    fn batch(documents: usize, is_whole: bool, resume_time: Option<Timestamp>) -> Batch {
        Batch { documents, is_whole, resume_time }
    }

    #[test]
    fn it_is_due_while_nobody_knows_and_when_something_was_written() {
        let now = Instant::now();
        let unknown = CatchUp::new(true, None, now);
        assert!(unknown.is_due(None) && unknown.is_due(at(5)));
        let known = CatchUp::new(true, at(5), now);
        assert!(known.is_due(at(6)) && known.is_due(None));
        assert!(!known.is_due(at(5)) && !known.is_due(at(4)));
    }

    #[test]
    fn it_has_caught_up_with_what_was_known_before_it_asked() {
        for (change_stream, asked_at, batch, caught_up) in [
            // A reply that tells of a later time says nothing about it: that was written meanwhile.
            (true, at(5), batch(0, true, at(9)), at(5)),
            (true, at(5), batch(0, true, at(5)), at(5)),
            // No majority has it yet.
            (true, at(5), batch(0, true, at(3)), at(3)),
            (true, at(5), batch(0, true, None), None),
            (true, at(5), batch(2, true, at(5)), at(5)),
            // There may be more of the same moment.
            (true, at(5), batch(2, false, at(5)), None),
            (true, None, batch(0, true, at(5)), None),
            (false, at(5), batch(0, true, None), at(5)),
            (false, at(5), batch(2, false, None), None),
        ] {
            let mut catch_up = CatchUp::new(change_stream, None, Instant::now());
            catch_up.asks(asked_at);
            assert_eq!(catch_up.after(&batch), caught_up, "{catch_up:?} {batch:?}");
            assert_eq!(catch_up.nothing_came(&batch, Duration::ZERO, Instant::now()), 1);
            assert_eq!(catch_up.caught_up, caught_up);
        }
    }

    #[test]
    fn repetitions_are_counted_while_they_come_soon() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut catch_up = CatchUp::new(true, None, now);
        let mut nothing_came = |after| catch_up.nothing_came(&batch(0, true, at(1)), ms(100), now + ms(after));
        assert_eq!([0, 5, 105, 206, 210].map(&mut nothing_came), [1, 2, 3, 1, 2]);
    }
}
