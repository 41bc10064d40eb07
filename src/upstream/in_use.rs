//! What a connection is in use for and since when, to be looked at while somebody else has it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::auth::UserId;
use crate::telemetry::ApplicationId;
use crate::telemetry::labels::{CommandLabel, Label as _};

/// In the lowest byte: for the pool itself, no command.
const OWN: u64 = 0xFF;

/// In the lowest byte, beside the command: it waits for data.
const WAITS: u64 = 0x80;

/// Bits for what it is in use for; those above tell since when.
const WORK_BITS: u32 = 18;

/// What one connection is in use for.
#[derive(Debug)]
pub struct InUse {
    made: Instant,
    /// 0 while nothing is known; else microseconds since it was made, plus one, the application in ten bits, and in the
    /// lowest byte what for.
    since: AtomicU64,
    /// A [`Replace`], or 0: it is to be replaced when there is another one.
    replaced: AtomicU8,
}

/// What a connection is in use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// The command; `None` for a ping or a probe of the pool's own.
    pub command: Option<CommandLabel>,
    /// Whose command it is.
    pub application: ApplicationId,
    /// It waits for data, and is meant to take long.
    pub waits: bool,
}

impl Work {
    /// A ping or a probe of the pool's own.
    pub const OWN: Self = Self { command: None, application: ApplicationId::OWN, waits: false };

    /// A command that does not wait for data.
    pub fn command(command: CommandLabel, application: ApplicationId) -> Self {
        Self { command: Some(command), application, waits: false }
    }

    fn bits(self) -> u64 {
        let what = self.command.map_or(OWN, |command| command.index() as u64 | if self.waits { WAITS } else { 0 });
        (self.application.index() as u64) << 8 | what
    }

    fn from_bits(bits: u64) -> Option<Self> {
        let application = usize::try_from(bits >> 8 & 0x3FF).ok().and_then(ApplicationId::from_index)?;
        if bits & 0xFF == OWN {
            return Some(Self { application, ..Self::OWN });
        }
        let command = usize::try_from(bits & 0x7F).ok().and_then(|index| CommandLabel::ALL.get(index).copied());
        Some(Self { command, application, waits: bits & WAITS != 0 })
    }
}

/// One connection in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// What for.
    pub work: Work,
    /// For how long, to the microsecond.
    pub age: Duration,
}

/// Whose connections are to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Those that have logged in as the proxy itself.
    OfService = 1,
    /// All.
    Any = 2,
}

impl InUse {
    /// Not in use.
    pub fn new(now: Instant) -> Self {
        Self { made: now, since: AtomicU64::new(0), replaced: AtomicU8::new(0) }
    }

    /// It is to be replaced as soon as there is another one: if it is the service's, or whosever it is.
    pub fn replace(&self, whose: Replace) {
        self.replaced.fetch_max(whose as u8, Ordering::Relaxed);
    }

    /// True once it is to be replaced, where it is one of that user.
    pub fn is_to_be_replaced(&self, user: UserId) -> bool {
        let least = if user == UserId::SERVICE { Replace::OfService } else { Replace::Any };
        self.replaced.load(Ordering::Relaxed) >= least as u8
    }

    /// It carries this from now on.
    pub fn begin(&self, work: Work, now: Instant) {
        self.since.store((self.microseconds(now) + 1) << WORK_BITS | work.bits(), Ordering::Relaxed);
    }

    /// It carries nothing. Returns how it was in use, if that was told.
    pub fn end(&self, now: Instant) -> Option<Use> {
        let ended = self.look(now);
        self.since.store(0, Ordering::Relaxed);
        ended
    }

    /// How it is in use, if that was told.
    pub fn look(&self, now: Instant) -> Option<Use> {
        let since = self.since.load(Ordering::Relaxed);
        let began = (since >> WORK_BITS).checked_sub(1)?;
        let age = Duration::from_micros(self.microseconds(now).saturating_sub(began));
        Some(Use { work: Work::from_bits(since)?, age })
    }

    /// Two years fit in: no connection is older.
    fn microseconds(&self, now: Instant) -> u64 {
        const MOST: u64 = (u64::MAX >> WORK_BITS) - 1;
        u64::try_from(now.duration_since(self.made).as_micros()).unwrap_or(MOST).min(MOST)
    }
}

const _: () = {
    assert!(CommandLabel::ALL.len() < 0x7F, "a command fits into a byte beside the marks");
    assert!(ApplicationId::COUNT <= 0x400, "an application fits into ten bits");
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_can_be_seen() {
        let made = Instant::now();
        let in_use = InUse::new(made);
        assert_eq!((in_use.look(made), in_use.end(made)), (None, None));
        let applications = [0, 1, 2, 77, ApplicationId::COUNT - 1];
        let applications = applications.map(|index| ApplicationId::from_index(index).unwrap());
        let commands = CommandLabel::ALL.iter().flat_map(|command| {
            let of = |application| [false, true].map(|waits| Work { command: Some(*command), application, waits });
            applications.into_iter().flat_map(of)
        });
        for (after, work) in commands.chain([Work::OWN]).enumerate() {
            let began = made + Duration::from_secs(after as u64 * 60 * 60);
            in_use.begin(work, began);
            let age = Duration::from_micros(1_234_567);
            assert_eq!(in_use.look(began + age), Some(Use { work, age }));
            assert_eq!(in_use.end(began + age), Some(Use { work, age }));
            assert_eq!(in_use.look(began), None);
        }
    }

    #[test]
    fn an_age_is_told_for_as_long_as_it_can_be() {
        let made = Instant::now();
        let in_use = InUse::new(made);
        in_use.begin(Work::OWN, made);
        let years = Duration::from_secs(2 * 365 * 24 * 60 * 60);
        assert_eq!(in_use.look(made + years).unwrap().age, years);
    }
}
