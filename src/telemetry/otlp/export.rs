//! The tasks that send what has come together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus::proto::MetricFamily;
use prost::Message as _;
use tokio::sync::mpsc::Receiver;
use tokio_rustls::TlsConnector;

use super::http::{self, PostError};
use super::metrics::bridge;
use super::scope;
use super::settings::{CERTIFICATE, Settings, SettingsError, Target};
use super::spans::{nanoseconds, since_epoch};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// Spans in one request. OpenTelemetry's default.
const BATCH: usize = 512;

/// A batch is tried as often, with a pause after each time: no longer than the queue takes what comes meanwhile.
const ATTEMPTS: u32 = 3;

/// The first pause; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// At the end there is no time for more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Reads all metrics.
pub type Gather = dyn Fn() -> Vec<MetricFamily> + Send + Sync;

/// Where one kind of data goes to.
struct Exporter {
    target: Target,
    tls: TlsConnector,
    tasks: Tasks,
}

/// What is to be exported, once there is something to tell.
pub struct Export {
    settings: Settings,
    tls: TlsConnector,
}

impl Export {
    /// Finds out what is wanted; `None` for nothing.
    ///
    /// # Errors
    /// What is wrong with the settings, or with the file of certificates that they name.
    pub fn prepare(
        endpoint: Option<&str>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, SettingsError> {
        let Some(settings) = Settings::read(endpoint, environment)? else { return Ok(None) };
        let tls = http::connector(settings.certificate.as_deref());
        let tls = tls.map_err(|problem| SettingsError { name: CERTIFICATE.to_owned(), problem })?;
        Ok(Some(Self { settings, tls }))
    }

    /// Exports from now on, until the tasks end.
    pub fn start(self, metrics: &Arc<Metrics>, gather: Box<Gather>, tasks: &Tasks) {
        let Self { settings, tls } = self;
        let exporter = |target: Target| Exporter { target, tls: tls.clone(), tasks: tasks.clone() };
        let resource = settings.resource;
        if let Some(target) = settings.traces
            && let Some(receiver) = metrics.spans.collect(settings.sampler)
        {
            let (exporter, resource, metrics) = (exporter(target), resource.clone(), metrics.clone());
            tasks.spawn("export spans", async move {
                send_spans(&exporter, receiver, &resource, &metrics, settings.span_delay).await;
            });
        }
        if let Some(target) = settings.metrics {
            let exporter = exporter(target);
            tasks.spawn("export metrics", async move {
                send_metrics(&exporter, &gather, &resource, settings.metric_interval).await;
            });
        }
    }
}

async fn send_spans(
    exporter: &Exporter,
    mut receiver: Receiver<Span>,
    resource: &Resource,
    metrics: &Metrics,
    delay: Duration,
) {
    let mut cancelled = false;
    while !cancelled {
        // Nothing is lost when an arm loses: spans stay in the queue.
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = full(&receiver) => {}
            () = exporter.tasks.cancelled() => cancelled = true,
        }
        while !receiver.is_empty() {
            let mut spans = Vec::with_capacity(receiver.len().min(BATCH));
            let count = receiver.recv_many(&mut spans, BATCH).await;
            let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() }];
            let of_us = ResourceSpans { resource: Some(resource.clone()), scope_spans, ..ResourceSpans::default() };
            let request = ExportTraceServiceRequest { resource_spans: vec![of_us] };
            if !exporter.send(request.encode_to_vec().into()).await {
                metrics.spans.lost(count);
                if exporter.tasks.is_cancelled() {
                    return metrics.spans.lost(receiver.len());
                }
            }
        }
    }
}

/// Resolves when there is a whole batch, or soon after.
async fn full(receiver: &Receiver<Span>) {
    const LOOK: Duration = Duration::from_millis(100);
    while receiver.len() < BATCH {
        tokio::time::sleep(LOOK).await;
    }
}

async fn send_metrics(exporter: &Exporter, gather: &Gather, resource: &Resource, interval: Duration) {
    let start = nanoseconds(since_epoch());
    let mut cancelled = false;
    while !cancelled {
        // Nothing is lost when an arm loses. The last values are sent at the end.
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = exporter.tasks.cancelled() => cancelled = true,
        }
        let metrics = bridge(&gather(), start, nanoseconds(since_epoch()));
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }];
        let of_us = ResourceMetrics { resource: Some(resource.clone()), scope_metrics, ..ResourceMetrics::default() };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![of_us] };
        exporter.send(request.encode_to_vec().into()).await;
    }
}

impl Exporter {
    /// False when it was not taken.
    async fn send(&self, body: Bytes) -> bool {
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS {
            let the_end = async {
                self.tasks.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            // A request that loses has had its time, whether it began before the end or after it.
            let posted = tokio::select! {
                posted = http::post(&self.target, &self.tls, body.clone()) => posted,
                () = the_end => Err(PostError::Timeout(LAST_WORDS)),
            };
            let Err(error) = posted else { return true };
            if attempt == ATTEMPTS || !error.may_pass() || self.tasks.is_cancelled() {
                tracing::warn!(address = %self.target.url, %error, "telemetry is not taken");
                return false;
            }
            tracing::debug!(address = %self.target.url, %error, "telemetry is not taken yet");
            // Nothing is lost when an arm loses: at the end it is tried once more, without a pause.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.tasks.cancelled() => {}
            }
            pause *= 2;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;
    use crate::telemetry::otlp::spans::tests::span;

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_hangs_does_not_keep_the_program_from_ending() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let environment = |name: &str| (name == "OTEL_METRICS_EXPORTER").then(|| "none".to_owned());
        let export = Export::prepare(Some(&endpoint), &environment).unwrap().unwrap();
        let (metrics, tasks) = (Metrics::new(), Tasks::new());
        export.start(&metrics, Box::new(Vec::new), &tasks);
        while !metrics.spans.are_wanted() {
            tokio::task::yield_now().await;
        }
        (0..3).for_each(|_| metrics.spans.tell(span(None)));
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        // A batch is on its way and gets no answer; others wait behind it.
        (0..5).for_each(|_| metrics.spans.tell(span(None)));
        let cancelled = Instant::now();
        tasks.cancel();
        assert_eq!(tasks.join_all(2 * LAST_WORDS).await, 0, "it has ended");
        assert!(cancelled.elapsed() <= LAST_WORDS, "{:?}", cancelled.elapsed());
        assert!(metrics.render().contains("mongomux_spans_dropped_total 8"), "all are counted");
    }
}
