//! How many commands may be sent again: a share of the recent traffic, with a floor, so that retries help through a
//! hiccup and cannot become the storm that keeps an outage going.

use std::time::Duration;

use tokio::time::Instant;

use super::window::Window;

/// Traffic and retries are counted over this long: as long as the breaker's window, and short enough that a busy hour does
/// not pay for the storm after it.
const WINDOW: Duration = Duration::from_secs(10);

/// One retry for this many commands: a server that fails one command in ten is in trouble that retries do not mend.
const COMMANDS_PER_RETRY: u64 = 10;

/// As many may be retried without any traffic, on average: a quiet proxy must get over a restart, too.
const FLOOR_PER_SECOND: u64 = 10;

/// The budget of one server.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    traffic: Window,
    retries: Window,
}

impl RetryBudget {
    /// Nothing has been sent yet.
    pub fn new() -> Self {
        Self { traffic: Window::new(WINDOW), retries: Window::new(WINDOW) }
    }

    /// A command has ended, however it did.
    pub fn count(&mut self, now: Instant) {
        self.traffic.record(true, now);
    }

    /// Asks for one retry, and takes it if there is one.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let allowed = FLOOR_PER_SECOND * WINDOW.as_secs() + self.traffic.counts(now).total / COMMANDS_PER_RETRY;
        let granted = self.retries.counts(now).total < allowed;
        if granted {
            self.retries.record(true, now);
        }
        granted
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn granted(budget: &mut RetryBudget, asked: usize, now: Instant) -> usize {
        (0..asked).filter(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn without_traffic_there_is_the_floor_and_it_comes_back() {
        let (mut budget, now) = (RetryBudget::new(), Instant::now());
        assert_eq!(granted(&mut budget, 1000, now), 100);
        assert_eq!(granted(&mut budget, 1000, now + WINDOW / 2), 0);
        assert_eq!(granted(&mut budget, 1000, now + WINDOW), 100);
    }

    #[test]
    fn traffic_adds_its_share_and_is_forgotten() {
        let (mut budget, now) = (RetryBudget::new(), Instant::now());
        (0..5000).for_each(|_| budget.count(now));
        assert_eq!(granted(&mut budget, 10_000, now + Duration::from_secs(1)), 600);
        assert_eq!(granted(&mut budget, 10_000, now + 3 * WINDOW), 100, "yesterday's traffic pays for nothing");
    }

    proptest! {
        /// In any stretch of ten seconds there are no more retries than the floor and a tenth of the commands of twice
        /// that time: the ends of both windows may differ by a bucket.
        #[test]
        fn retries_stay_a_share(steps in prop::collection::vec((0_u64..400, 0_usize..300, 0_usize..300), 1..120)) {
            let (mut budget, mut now) = (RetryBudget::new(), Instant::now());
            let (mut commands, mut retries) = (VecDeque::new(), VecDeque::new());
            for (millis, sent, asked) in steps {
                now += Duration::from_millis(millis);
                (0..sent).for_each(|_| budget.count(now));
                commands.extend(std::iter::repeat_n(now, sent));
                let got = granted(&mut budget, asked, now);
                retries.extend(std::iter::repeat_n(now, got));
                while retries.front().is_some_and(|at| now - *at >= WINDOW * 9 / 10) {
                    retries.pop_front();
                }
                while commands.front().is_some_and(|at| now - *at >= 2 * WINDOW) {
                    commands.pop_front();
                }
                prop_assert!(retries.len() <= 100 + commands.len() / 10, "{} of {}", retries.len(), commands.len());
            }
        }
    }
}
