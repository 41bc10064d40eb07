//! Log lines that clients could otherwise write as often as they like: one a minute at most, which says how many it stands for.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const BETWEEN: Duration = Duration::from_secs(60);

/// One kind of line.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    told: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// It has happened: how often since it was told last, if it is to be told now.
    pub fn happened(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.untold += 1;
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < BETWEEN) {
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_others_together() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seldom.happened(start), Some(1));
        assert_eq!(seldom.happened(at(1)), None);
        assert_eq!(seldom.happened(at(59)), None);
        assert_eq!(seldom.happened(at(60)), Some(3));
        assert_eq!(seldom.happened(at(200)), Some(1));
    }
}
