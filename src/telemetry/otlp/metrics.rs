//! The metrics of `/metrics` as OTLP has them: the same names, labels as attributes.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
};
use prometheus::proto::{LabelPair, MetricFamily, MetricType};

use super::text;

/// `families` as they are at `now`; they count since `start`. Both in nanoseconds since 1970.
pub(super) fn bridge(families: &[MetricFamily], start: u64, now: u64) -> Vec<Metric> {
    families.iter().filter_map(|family| Some(metric(family, data(family, start, now)?))).collect()
}

fn metric(family: &MetricFamily, data: Data) -> Metric {
    let (name, description) = (family.name().to_owned(), family.help().to_owned());
    let unit = if name.contains("_seconds") {
        "s"
    } else if name.contains("_bytes") {
        "By"
    } else {
        "1"
    };
    Metric { name, description, unit: unit.to_owned(), data: Some(data), ..Metric::default() }
}

fn data(family: &MetricFamily, start: u64, now: u64) -> Option<Data> {
    let numbers = |value: fn(&prometheus::proto::Metric) -> f64| {
        let points = family.get_metric().iter().map(|metric| NumberDataPoint {
            attributes: attributes(metric.get_label()),
            start_time_unix_nano: start,
            time_unix_nano: now,
            value: Some(Value::AsDouble(value(metric))),
            ..NumberDataPoint::default()
        });
        points.collect()
    };
    let cumulative = AggregationTemporality::Cumulative.into();
    match family.get_field_type() {
        MetricType::COUNTER => Some(Data::Sum(Sum {
            data_points: numbers(|metric| metric.get_counter().get_value()),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        })),
        MetricType::GAUGE => Some(Data::Gauge(Gauge { data_points: numbers(|metric| metric.get_gauge().get_value()) })),
        MetricType::HISTOGRAM => {
            let points = family.get_metric().iter().map(|metric| histogram(metric, start, now)).collect();
            Some(Data::Histogram(Histogram { data_points: points, aggregation_temporality: cumulative }))
        }
        // We have none.
        MetricType::SUMMARY | MetricType::UNTYPED => None,
    }
}

fn histogram(metric: &prometheus::proto::Metric, start: u64, now: u64) -> HistogramDataPoint {
    let histogram = metric.get_histogram();
    let (count, mut below) = (histogram.get_sample_count(), 0);
    let (mut bucket_counts, mut explicit_bounds) = (Vec::new(), Vec::new());
    for bucket in histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite()) {
        // Prometheus counts all up to the bound, OTLP those between two.
        let up_to = bucket.cumulative_count().max(below);
        bucket_counts.push(up_to - below);
        explicit_bounds.push(bucket.upper_bound());
        below = up_to;
    }
    // What is observed between two looks may be in the one and not in the other.
    let count = count.max(below);
    bucket_counts.push(count - below);
    HistogramDataPoint {
        attributes: attributes(metric.get_label()),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count,
        sum: Some(histogram.get_sample_sum()),
        bucket_counts,
        explicit_bounds,
        ..HistogramDataPoint::default()
    }
}

fn attributes(labels: &[LabelPair]) -> Vec<KeyValue> {
    labels.iter().map(|label| text(label.name(), label.value())).collect()
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

    use super::*;

    #[test]
    fn each_kind_becomes_its_own() {
        let registry = Registry::new();
        let counters = IntCounterVec::new(Opts::new("a_total", "A."), &["side"]).unwrap();
        let gauge = IntGauge::new("b_bytes", "B.").unwrap();
        let histogram = prometheus::Histogram::with_opts(HistogramOpts::new("c_seconds", "C.").buckets(vec![1.0, 2.0]));
        let histogram = histogram.unwrap();
        registry.register(Box::new(counters.clone())).unwrap();
        registry.register(Box::new(gauge.clone())).unwrap();
        registry.register(Box::new(histogram.clone())).unwrap();
        counters.with_label_values(&["client"]).inc_by(3);
        gauge.set(-7);
        [0.5, 1.5, 1.5, 9.0].into_iter().for_each(|value| histogram.observe(value));
        let metrics = bridge(&registry.gather(), 1, 2);
        let [a, b, c] = &metrics[..] else { panic!("{metrics:?}") };
        assert_eq!([&a.name, &b.name, &c.name], ["a_total", "b_bytes", "c_seconds"]);
        assert_eq!(
            (a.description.as_str(), [&a.unit, &b.unit, &c.unit]),
            ("A.", [&"1".to_owned(), &"By".to_owned(), &"s".to_owned()])
        );
        let Some(Data::Sum(sum)) = &a.data else { panic!("{a:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
        let point = &sum.data_points[0];
        assert_eq!((&point.attributes, &point.value), (&vec![text("side", "client")], &Some(Value::AsDouble(3.0))));
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1, 2));
        let Some(Data::Gauge(gauge)) = &b.data else { panic!("{b:?}") };
        assert_eq!(gauge.data_points[0].value, Some(Value::AsDouble(-7.0)));
        let Some(Data::Histogram(histogram)) = &c.data else { panic!("{c:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((&point.bucket_counts, &point.explicit_bounds), (&vec![1, 2, 1], &vec![1.0, 2.0]));
        assert_eq!((point.count, point.sum), (4, Some(12.5)));
    }
}
