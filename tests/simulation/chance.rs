//! Where all chance of a run comes from: one seeded generator.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Clones share the generator.
#[derive(Clone)]
pub(crate) struct Chance(Arc<Mutex<fastrand::Rng>>);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    fn with<R>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn range(&self, range: Range<u64>) -> u64 {
        self.with(|rng| rng.u64(range))
    }

    pub(crate) fn below(&self, count: usize) -> usize {
        self.with(|rng| rng.usize(..count))
    }

    pub(crate) fn percent(&self, percent: u64) -> bool {
        self.range(0..100) < percent
    }

    pub(crate) fn ms(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.range(range))
    }

    pub(crate) fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn bytes<const N: usize>(&self) -> [u8; N] {
        self.with(|rng| std::array::from_fn(|_| rng.u8(..)))
    }
}
