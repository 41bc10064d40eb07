//! Prometheus' text format as far as `top` needs it: counters and histograms at two moments, and what happened between them. No
//! I/O here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The series of one scrape.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Scrape(Vec<Sample>);

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    /// As they stand there, in braces or not.
    labels: String,
    value: f64,
}

impl Scrape {
    /// Reads it; lines that are none are passed over.
    pub(super) fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}')?),
                None => (series, ""),
            };
            Some(Sample { name: name.to_owned(), labels: labels.to_owned(), value: value.parse().ok()? })
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum of a metric's series that have a label of that value, or of all.
    pub(super) fn sum(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        let meant = |sample: &&Sample| {
            sample.name == name && label.is_none_or(|(name, value)| label_of(&sample.labels, name) == Some(value))
        };
        self.0.iter().filter(meant).map(|sample| sample.value).sum()
    }

    /// What these metrics say where it is not nothing, by their labels; histograms by how many, and by shares of them.
    pub(super) fn highlights(&self, names: &[&str]) -> Value {
        let mut all = Map::new();
        for name in names {
            let of = self.0.iter().filter(|sample| sample.name == *name && sample.value != 0.0);
            let values: Map<String, Value> =
                of.map(|sample| (sample.labels.replace('"', ""), number(sample.value))).collect();
            let seconds = self.histogram(name);
            let short = name.strip_prefix("mongomux_").unwrap_or(name).to_owned();
            match (values.get("").cloned(), seconds.count()) {
                (Some(value), _) => drop(all.insert(short, value)),
                (None, count) if count > 0.0 => {
                    let share = |share| seconds.quantile(share).map(|seconds| json!((seconds * 1e6).round() / 1e6));
                    let told =
                        json!({"count": number(count), "p50": share(0.5), "p90": share(0.9), "p99": share(0.99)});
                    all.insert(short, told);
                }
                (None, _) if !values.is_empty() => drop(all.insert(short, Value::Object(values))),
                (None, _) => {}
            }
        }
        Value::Object(all)
    }

    /// A histogram's counts up to each bound, of all its series together.
    pub(super) fn histogram(&self, name: &str) -> Histogram {
        let bucket = format!("{name}_bucket");
        let mut counts = BTreeMap::new();
        for sample in self.0.iter().filter(|sample| sample.name == bucket) {
            let bound = label_of(&sample.labels, "le").and_then(|text| text.parse::<f64>().ok());
            // Positive numbers are ordered as their bits are.
            let Some(bound) = bound.filter(|bound| *bound >= 0.0) else { continue };
            *counts.entry(bound.to_bits()).or_default() += sample.value;
        }
        Histogram(counts)
    }
}

/// Whole ones as such.
fn number(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "it is whole, and small enough to be exact")]
    let whole = (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64);
    whole.map_or_else(|| json!(value), |whole| json!(whole))
}

fn label_of<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

/// Counts up to bounds, by the bits of the bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Histogram(BTreeMap<u64, f64>);

impl Histogram {
    /// What has come since an earlier one. After a restart counts begin anew.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let restarted = self.0.iter().any(|(bound, count)| *count < earlier.at(*bound));
        let since = |(bound, count): (&u64, &f64)| (*bound, count - if restarted { 0.0 } else { earlier.at(*bound) });
        Self(self.0.iter().map(since).collect())
    }

    fn count(&self) -> f64 {
        self.0.values().last().copied().unwrap_or_default()
    }

    fn at(&self, bound: u64) -> f64 {
        self.0.get(&bound).copied().unwrap_or_default()
    }

    /// The value that a share of all does not exceed, as Prometheus' `histogram_quantile` tells it: by a straight line through
    /// the bucket that it is in. `None` when nothing has come; the last bound where it is beyond that.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let total = Some(self.count()).filter(|total| *total > 0.0)?;
        let rank = share * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            let bound = f64::from_bits(*bound);
            if *count >= rank {
                let inside = count - below;
                let whole = bound.is_finite() && inside > 0.0;
                return Some(if whole { lower + (bound - lower) * (rank - below) / inside } else { lower });
            }
            (lower, below) = (if bound.is_finite() { bound } else { lower }, *count);
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP c Commands.\n# TYPE c counter\nc{command=\"find\",outcome=\"completed\"} 90\n\
                        c{command=\"insert\",outcome=\"completed\"} 8\nc{command=\"insert\",outcome=\"failed\"} 2\n\
                        g 7.5\nh_bucket{command=\"a\",le=\"0.01\"} 50\nh_bucket{command=\"a\",le=\"0.1\"} 90\n\
                        h_bucket{command=\"a\",le=\"+Inf\"} 90\nh_bucket{command=\"b\",le=\"0.01\"} 0\n\
                        h_bucket{command=\"b\",le=\"0.1\"} 9\nh_bucket{command=\"b\",le=\"+Inf\"} 10\nh_count{command=\"a\"} 90\n\
                        broken{ 1\nnonsense\n";

    #[test]
    fn counters_are_summed_over_labels() {
        let scrape = Scrape::parse(PAGE);
        assert_eq!(scrape.sum("c", None), 100.0);
        assert_eq!(scrape.sum("c", Some(("outcome", "completed"))), 98.0);
        assert_eq!(scrape.sum("c", Some(("come", "completed"))), 0.0);
        assert_eq!((scrape.sum("g", None), scrape.sum("nothing", None)), (7.5, 0.0));
    }

    #[test]
    fn highlights_leave_out_what_is_nothing() {
        let page = format!("{PAGE}zero 0\nc{{command=\"count\",outcome=\"failed\"}} 0\n");
        let told = Scrape::parse(&page).highlights(&["c", "g", "h", "zero", "none"]);
        let expected = json!({
            "c": {"command=find,outcome=completed": 90, "command=insert,outcome=completed": 8, "command=insert,outcome=failed": 2},
            "g": 7.5, "h": {"count": 100, "p50": 0.01, "p90": 0.083469, "p99": 0.1},
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn quantiles_are_those_of_what_came_between() {
        let now = Scrape::parse(PAGE).histogram("h");
        let all = now.since(&Histogram::default());
        assert_eq!(all.quantile(0.5), Some(0.01), "50 of 100 are below 10 ms");
        let p90 = all.quantile(0.9).unwrap();
        assert!((p90 - (0.01 + 0.09 * 40.0 / 49.0)).abs() < 1e-9, "{p90}");
        assert_eq!(all.quantile(1.0), Some(0.1), "beyond the last bound nothing is known");
        assert_eq!(now.since(&now).quantile(0.5), None, "nothing came");
        let before =
            Histogram([(0.01_f64.to_bits(), 50.0), (0.1_f64.to_bits(), 99.0), (f64::INFINITY.to_bits(), 99.0)].into());
        assert_eq!(now.since(&before).quantile(0.99), Some(0.1), "only the slow one came");
    }

    #[test]
    fn after_a_restart_counts_begin_anew() {
        let bound = 1.0_f64.to_bits();
        let (before, after) = (Histogram([(bound, 1_000.0)].into()), Histogram([(bound, 4.0)].into()));
        assert_eq!(after.since(&before), after);
    }
}
