//! What a histogram has counted, and what lies between two looks at it: for who wants quantiles of the last seconds and not
//! of all the time since the start.

use prometheus::Histogram;
use prometheus::core::Metric as _;

/// Observations by bucket.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Buckets {
    /// Upper bounds, ascending.
    bounds: Vec<f64>,
    /// One more than there are bounds: the last is of what lies beyond them.
    counts: Vec<u64>,
}

impl Buckets {
    /// Of all these together, which have the same bounds.
    pub fn of<'a>(histograms: impl IntoIterator<Item = &'a Histogram>) -> Self {
        let mut sum = Self::default();
        for histogram in histograms {
            let told = histogram.metric();
            let histogram = told.get_histogram();
            let buckets = histogram.get_bucket();
            if sum.counts.is_empty() {
                sum.bounds = buckets.iter().map(prometheus::proto::Bucket::upper_bound).collect();
                sum.counts = vec![0; buckets.len() + 1];
            }
            // Each tells what lies below its bound, those before it included.
            let cumulative = buckets.iter().map(prometheus::proto::Bucket::cumulative_count);
            let mut below = 0;
            for (count, up_to) in sum.counts.iter_mut().zip(cumulative.chain([histogram.get_sample_count()])) {
                *count += up_to.saturating_sub(below);
                below = up_to;
            }
        }
        sum
    }

    /// What was counted since `before`, an earlier look at the same.
    pub fn since(&self, before: &Self) -> Self {
        let mut counts = self.counts.clone();
        for (count, earlier) in counts.iter_mut().zip(&before.counts) {
            *count = count.saturating_sub(*earlier);
        }
        Self { bounds: self.bounds.clone(), counts }
    }

    /// The value that the share `q` (0 to 1) of them does not exceed, taking those of a bucket as spread evenly in it; beyond the
    /// last bound that bound, as no more is known. `None` where there are none.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let all: u64 = self.counts.iter().sum();
        if all == 0 {
            return None;
        }
        let (rank, mut passed, mut lower) = (q * all as f64, 0.0, 0.0);
        for (&upper, &count) in self.bounds.iter().zip(&self.counts) {
            let count = count as f64;
            if count > 0.0 && passed + count >= rank {
                return Some(lower + (upper - lower) * ((rank - passed) / count).clamp(0.0, 1.0));
            }
            (passed, lower) = (passed + count, upper);
        }
        self.bounds.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;

    use super::*;

    fn histogram(values: &[f64]) -> Histogram {
        let opts = HistogramOpts::new("test_seconds", "For a test.").buckets(vec![1.0, 2.0, 4.0]);
        let histogram = Histogram::with_opts(opts).unwrap();
        values.iter().for_each(|value| histogram.observe(*value));
        histogram
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let buckets = Buckets::of([&histogram(&[0.5, 1.5, 1.5, 1.5, 1.5, 3.0, 3.0, 3.0, 3.0, 3.0])]);
        let told = [0.0, 0.1, 0.3, 0.5, 0.75, 1.0].map(|q| buckets.quantile(q).unwrap());
        assert_eq!(told, [0.0, 1.0, 1.5, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn what_lies_beyond_all_bounds_is_told_as_the_last_of_them() {
        assert_eq!(Buckets::of([&histogram(&[0.5, 100.0, 100.0])]).quantile(0.99), Some(4.0));
        assert_eq!(Buckets::of([&histogram(&[])]).quantile(0.5), None);
        assert_eq!(Buckets::default().quantile(0.5), None);
    }

    #[test]
    fn the_time_before_does_not_count_and_several_are_one() {
        let (first, second) = (histogram(&[0.5; 100]), histogram(&[0.5; 100]));
        let before = Buckets::of([&first, &second]);
        assert_eq!(before.quantile(0.5), Some(0.5));
        first.observe(3.0);
        second.observe(3.0);
        let since = Buckets::of([&first, &second]).since(&before);
        assert_eq!((since.counts.clone(), since.quantile(0.5)), (vec![0, 0, 2, 0], Some(3.0)));
        assert_eq!(before.since(&before).quantile(0.5), None);
    }
}
