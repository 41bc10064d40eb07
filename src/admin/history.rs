//! How pools were used over the last minutes: a bounded ring of samples, and what lies between two of them.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::ApplicationId;
use crate::telemetry::labels::{ConnectionClosed, Label as _};
use crate::upstream::shortage::Shortage;
use crate::upstream::usage::UsageTotals;

/// From one sample to the next.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

/// Intervals that are remembered: five minutes, long enough for a load to show its face and short enough to forget it.
pub const INTERVALS: usize = 30;

/// Fewer intervals say nothing: a minute, in which a program that has just started is busy with itself.
const LEAST_INTERVALS: usize = 6;

/// Of one interval, as many applications are remembered: the one that holds more than half is among them.
pub const HOLDERS: usize = 8;

/// The last samples of something.
#[derive(Debug, Clone)]
pub struct Ring<T>(VecDeque<T>);

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Ring<T> {
    /// Adds a sample; the oldest makes room.
    pub fn push(&mut self, sample: T) {
        if self.0.len() > INTERVALS {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The newest and the one so many intervals before it; `None` while there are fewer.
    pub fn over(&self, intervals: usize) -> Option<(&T, &T)> {
        let before = self.0.len().checked_sub(intervals + 1)?;
        Some((self.0.get(before)?, self.0.back()?))
    }

    /// The newest and the oldest, once they say something.
    pub fn whole(&self) -> Option<(&T, &T)> {
        let intervals = self.0.len().checked_sub(1)?;
        if intervals < LEAST_INTERVALS { None } else { self.over(intervals) }
    }

    /// The newest and the one before, as far back as is enough to say something.
    pub fn lately(&self) -> Option<(&T, &T)> {
        self.over(LEAST_INTERVALS)
    }

    /// True once it goes back as far as it can.
    pub fn is_full(&self) -> bool {
        self.0.len() > INTERVALS
    }

    /// Each sample but the first with the one before it.
    pub fn pairs(&self) -> impl Iterator<Item = (&T, &T)> {
        self.0.iter().zip(self.0.iter().skip(1))
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

/// A server's pool at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSample {
    /// When.
    pub at: Instant,
    /// What has grown; the time held includes that of connections in use.
    pub totals: UsageTotals,
    /// Commands that have ended which went over connections of their clients' own.
    pub own_commands: u64,
    /// Connections established so far.
    pub created: u64,
    /// Connections closed so far, in the order of the reasons.
    pub closed: [u64; ConnectionClosed::ALL.len()],
    /// Connections that are open, in use or not.
    pub open: u32,
    /// The most that were in use at once since the sample before.
    pub peak: u32,
    /// Connections that commands may use at once, those that wait for data included.
    pub limit: u32,
    /// Commands in flight at once, as learnt from the server; those that wait for data come on top.
    pub adapted: u32,
    /// Who has held connections since the sample before, and how long: those that held most, and all together.
    pub holders: Vec<(ApplicationId, Duration)>,
    /// Of all of them.
    pub held_by_all: Duration,
}

impl PoolSample {
    /// That have ended so far, whatever they went over.
    pub fn commands(&self) -> u64 {
        self.totals.ended + self.own_commands
    }

    /// Notes who has held connections, of which there may be many.
    pub fn hold(&mut self, mut holders: Vec<(ApplicationId, Duration)>) {
        self.held_by_all = holders.iter().map(|(_, held)| *held).sum();
        holders.sort_by_key(|(_, held)| std::cmp::Reverse(*held));
        holders.truncate(HOLDERS);
        self.holders = holders;
    }
}

/// The clients of a cluster at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSample {
    /// When.
    pub at: Instant,
    /// Sockets that were opened so far.
    pub opened: u64,
    /// Commands that went to its servers so far.
    pub commands: u64,
}

/// What lies between two samples of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Period {
    /// How long it is.
    pub length: Duration,
    /// Commands that ended in it.
    pub commands: u64,
    /// Connections in use, on average.
    pub in_use: f64,
    /// Commands that had to wait, by what they were short of.
    pub waits_for: [u64; Shortage::ALL.len()],
    /// How long they waited, all together.
    pub waited: Duration,
}

impl Period {
    /// Between these two.
    pub fn between((first, last): (&PoolSample, &PoolSample)) -> Self {
        let length = last.at.saturating_duration_since(first.at).max(Duration::from_millis(1));
        let held = last.totals.held.saturating_sub(first.totals.held);
        Self {
            length,
            commands: last.totals.ended.saturating_sub(first.totals.ended),
            in_use: held.as_secs_f64() / length.as_secs_f64(),
            waits_for: std::array::from_fn(|index| last.totals.waits[index].saturating_sub(first.totals.waits[index])),
            waited: last.totals.waited.saturating_sub(first.totals.waited),
        }
    }

    /// Commands a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn rate(&self) -> f64 {
        self.commands as f64 / self.length.as_secs_f64()
    }

    /// How long a command held its connection, on average, seconds; 0 where there was none.
    pub fn held_seconds(&self) -> f64 {
        if self.commands == 0 { 0.0 } else { self.in_use / self.rate() }
    }

    /// Commands that had to wait.
    pub fn waits(&self) -> u64 {
        self.waits_for.iter().sum()
    }

    /// What most of those who had to wait were short of, where that has a name, and how many they were.
    pub fn shortage(&self) -> Option<(Shortage, u64)> {
        let named = Shortage::ALL.into_iter().filter(|shortage| *shortage != Shortage::Other);
        let most = named.map(|shortage| (shortage, self.waits_for[shortage.index()])).max_by_key(|(_, waits)| *waits);
        most.filter(|(_, waits)| *waits > 0)
    }

    /// Commands that were waiting, on average.
    pub fn waiting(&self) -> f64 {
        self.waited.as_secs_f64() / self.length.as_secs_f64()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A pool of ten that nobody has used, seconds after `start`.
    pub(in crate::admin) fn sample(start: Instant, seconds: u64) -> PoolSample {
        PoolSample {
            at: start + Duration::from_secs(seconds),
            totals: UsageTotals::default(),
            own_commands: 0,
            created: 2,
            closed: [0; ConnectionClosed::ALL.len()],
            open: 2,
            peak: 0,
            limit: 10,
            adapted: 10,
            holders: Vec::new(),
            held_by_all: Duration::ZERO,
        }
    }

    #[test]
    fn a_ring_says_nothing_before_its_minute_and_forgets_after_five() {
        let mut ring = Ring::default();
        for number in 0..=INTERVALS {
            assert_eq!(ring.whole().is_some(), number > LEAST_INTERVALS, "{number}");
            assert!(!ring.is_full());
            ring.push(number);
        }
        assert_eq!((ring.whole(), ring.lately()), (Some((&0, &30)), Some((&24, &30))));
        ring.push(31);
        assert_eq!((ring.whole(), ring.is_full(), ring.iter().count()), (Some((&1, &31)), true, 31));
        assert_eq!(ring.pairs().count(), INTERVALS);
        assert!(ring.pairs().all(|(before, after)| before + 1 == *after));
        assert_eq!(ring.over(31), None);
    }

    #[test]
    fn a_period_is_what_has_grown_in_it() {
        let start = Instant::now();
        let (first, mut last) = (sample(start, 0), sample(start, 10));
        let (held, waits) = (Duration::from_secs(40), [200, 0, 0, 0, 300, 0, 500]);
        last.totals = UsageTotals { ended: 1_000, held, waits, waited: Duration::from_secs(5) };
        let period = Period::between((&first, &last));
        assert_eq!((period.in_use, period.rate(), period.waiting()), (4.0, 100.0, 0.5));
        assert_eq!((period.waits(), period.shortage()), (1_000, Some((Shortage::Tenant, 300))));
        assert!((period.held_seconds() - 0.04).abs() < 1e-9);
        let nothing = Period::between((&first, &first));
        assert_eq!((nothing.in_use, nothing.rate(), nothing.held_seconds()), (0.0, 0.0, 0.0));
    }

    #[test]
    fn the_largest_holders_are_remembered_and_all_are_summed() {
        let mut it = sample(Instant::now(), 0);
        let id = |index| ApplicationId::from_index(index).unwrap();
        it.hold((0..20).map(|index| (id(index), Duration::from_secs(index as u64))).collect());
        assert_eq!((it.holders.len(), it.holders[0]), (HOLDERS, (id(19), Duration::from_secs(19))));
        assert_eq!(it.held_by_all, Duration::from_secs(190));
    }
}
