//! What a connection is in use for and since when, to be looked at while somebody else has it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::labels::{CommandLabel, Label as _};

/// In the lowest byte: for the pool itself, no command.
const OWN: u64 = 0xFF;

/// What one connection is in use for.
#[derive(Debug)]
pub struct InUse {
    made: Instant,
    /// 0 while nothing is known; else milliseconds since it was made, plus one, and in the lowest byte what for.
    since: AtomicU64,
}

/// One connection in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// The command; `None` for a ping or a probe of the pool's own.
    pub command: Option<CommandLabel>,
    /// For how long, to the millisecond.
    pub age: Duration,
}

impl InUse {
    /// Not in use.
    pub fn new(now: Instant) -> Self {
        Self { made: now, since: AtomicU64::new(0) }
    }

    /// It carries this command from now on, or is in use for the pool itself.
    pub fn begin(&self, command: Option<CommandLabel>, now: Instant) {
        let what = command.map_or(OWN, |command| command.index() as u64);
        self.since.store((self.milliseconds(now) + 1) << 8 | what, Ordering::Relaxed);
    }

    /// It carries nothing.
    pub fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// How it is in use, if that was told.
    pub fn look(&self, now: Instant) -> Option<Use> {
        let since = self.since.load(Ordering::Relaxed);
        let began = (since >> 8).checked_sub(1)?;
        let what = usize::try_from(since & 0xFF).ok().and_then(|index| CommandLabel::ALL.get(index));
        let age = Duration::from_millis(self.milliseconds(now).saturating_sub(began));
        Some(Use { command: what.copied(), age })
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.made).as_millis()).unwrap_or(u64::MAX >> 9)
    }
}

const _: () = assert!(CommandLabel::ALL.len() < 0xFF, "a command fits into a byte beside the mark of the pool itself");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_can_be_seen() {
        let made = Instant::now();
        let in_use = InUse::new(made);
        assert_eq!(in_use.look(made), None);
        for (after, command) in CommandLabel::ALL.iter().copied().map(Some).chain([None]).enumerate() {
            let began = made + Duration::from_secs(after as u64);
            in_use.begin(command, began);
            let age = Duration::from_millis(1_234);
            assert_eq!(in_use.look(began + age), Some(Use { command, age }));
            in_use.end();
            assert_eq!(in_use.look(began), None);
        }
    }
}
