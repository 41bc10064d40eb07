//! How a pool is used, in numbers that only grow: whoever looks twice knows what was in between. A few atomic additions for
//! each command.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::in_use::Use;
use super::shortage::Shortage;
use crate::telemetry::ApplicationId;

/// How the connections of one pool have been used.
#[derive(Debug)]
pub struct PoolUsage {
    ended: AtomicU64,
    held_micros: AtomicU64,
    waits: [AtomicU64; Shortage::ALL.len()],
    waited_micros: AtomicU64,
    in_use: AtomicU32,
    peak: AtomicU32,
    /// Microseconds, by application; what was looked at is taken out.
    by_application: Box<[AtomicU64]>,
}

/// What has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsageTotals {
    /// Commands that a connection was checked out for and is back.
    pub ended: u64,
    /// How long they have held their connections, all together.
    pub held: Duration,
    /// Commands that had to wait for a connection, those that got none included, by what they were short of when they came.
    pub waits: [u64; Shortage::ALL.len()],
    /// How long they have waited, all together.
    pub waited: Duration,
}

impl Default for PoolUsage {
    fn default() -> Self {
        Self {
            ended: AtomicU64::new(0),
            held_micros: AtomicU64::new(0),
            waits: std::array::from_fn(|_| AtomicU64::new(0)),
            waited_micros: AtomicU64::new(0),
            in_use: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            by_application: (0..ApplicationId::COUNT).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl PoolUsage {
    /// A connection is checked out.
    pub(super) fn began(&self) {
        let in_use = self.in_use.fetch_add(1, Ordering::Relaxed) + 1;
        if in_use > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(in_use, Ordering::Relaxed);
        }
    }

    /// It is back, and was in use for that, as far as was told.
    pub(super) fn ended(&self, ended: Option<Use>) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        let Some(ended) = ended.filter(|ended| ended.work.command.is_some()) else { return };
        let micros = micros(ended.age);
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.held_micros.fetch_add(micros, Ordering::Relaxed);
        self.by_application[ended.work.application.index()].fetch_add(micros, Ordering::Relaxed);
    }

    /// A command has waited for a connection, in vain or not.
    pub(super) fn waited(&self, waited: Duration, shortage: Shortage) {
        self.waits[shortage.index()].fetch_add(1, Ordering::Relaxed);
        self.waited_micros.fetch_add(micros(waited), Ordering::Relaxed);
    }

    /// What has grown.
    pub fn totals(&self) -> UsageTotals {
        UsageTotals {
            ended: self.ended.load(Ordering::Relaxed),
            held: Duration::from_micros(self.held_micros.load(Ordering::Relaxed)),
            waits: std::array::from_fn(|index| self.waits[index].load(Ordering::Relaxed)),
            waited: Duration::from_micros(self.waited_micros.load(Ordering::Relaxed)),
        }
    }

    /// The most that were in use at once since [`PoolUsage::take_peak`] was called, or ever.
    pub fn peak(&self) -> u32 {
        self.peak.load(Ordering::Relaxed)
    }

    /// The most that were in use at once since the last call. For one caller only, as the next.
    pub fn take_peak(&self) -> u32 {
        self.peak.swap(self.in_use.load(Ordering::Relaxed), Ordering::Relaxed)
    }

    /// How long each application's commands held connections, of those that have ended since the last call.
    pub fn take_holders(&self) -> Vec<(ApplicationId, Duration)> {
        let taken = self.by_application.iter().map(|micros| match micros.load(Ordering::Relaxed) {
            0 => 0,
            _ => micros.swap(0, Ordering::Relaxed),
        });
        let held = taken.enumerate().filter(|(_, micros)| *micros > 0);
        held.filter_map(|(index, micros)| Some((ApplicationId::from_index(index)?, Duration::from_micros(micros))))
            .collect()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Applications;
    use crate::telemetry::labels::CommandLabel;
    use crate::upstream::in_use::Work;

    #[test]
    fn commands_are_counted_with_their_time_and_their_application() {
        let (usage, all) = (PoolUsage::default(), Applications::default());
        let (shop, search) = (all.named("shop").id(), all.named("search").id());
        let ms = Duration::from_millis;
        let used = |application, age| Some(Use { work: Work::command(CommandLabel::Find, application), age: ms(age) });
        (0..4).for_each(|_| usage.began());
        usage.ended(used(shop, 5));
        usage.ended(used(search, 7));
        usage.ended(used(shop, 1));
        usage.ended(Some(Use { work: Work::OWN, age: ms(900) }));
        usage.waited(ms(3), Shortage::InFlight);
        let expected = UsageTotals { ended: 3, held: ms(13), waits: [0, 1, 0, 0, 0, 0, 0], waited: ms(3) };
        assert_eq!(usage.totals(), expected, "a ping is nobody's command");
        assert_eq!(usage.take_holders(), [(shop, ms(6)), (search, ms(7))]);
        assert_eq!(usage.take_holders(), []);
        usage.began();
        usage.ended(None);
        assert_eq!((usage.take_peak(), usage.take_peak()), (4, 0));
        usage.began();
        assert_eq!((usage.take_peak(), usage.take_peak()), (1, 1), "it is in use still");
    }
}
