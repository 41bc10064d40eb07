//! What the proxy tells at two moments, and what that says about the time between them. No I/O here.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::admin::stats::Stats;
use crate::operate::series::{Histogram, Scrape};

/// What was told at one moment.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    pub(super) at: Instant,
    pub(super) stats: Stats,
    pub(super) scrape: Scrape,
    /// What has happened, newest first, where the proxy tells.
    pub(super) events: Option<Value>,
}

/// What `top` shows of one interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Frame {
    /// When it ended, RFC 3339.
    pub(super) time: String,
    /// What has happened in it.
    pub(super) rates: Rates,
    /// Whose commands they were; the busiest first.
    pub(super) applications: Vec<Application>,
    /// How things stand at its end.
    pub(super) stats: Stats,
    /// Newest first.
    #[serde(skip)]
    pub(super) events: Option<Value>,
}

/// What has happened in an interval. Times are of what ended in it; `null` when nothing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rates {
    /// As long was it.
    pub(super) seconds: f64,
    pub(super) commands_per_second: f64,
    /// With an error of a server's.
    pub(super) failed_per_second: f64,
    /// With an error of the proxy's own.
    pub(super) refused_per_second: f64,
    /// Commands as their clients saw them.
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    /// The servers' share.
    pub(super) upstream_p99_ms: Option<f64>,
    /// Of those that waited.
    pub(super) wait_p99_ms: Option<f64>,
    /// Upstream connections that were made.
    pub(super) connects_per_second: f64,
    /// At its end.
    pub(super) queue: usize,
}

/// Whoever takes turns with others, on all servers together.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Application {
    /// Empty for those that say none.
    pub(super) name: String,
    pub(super) commands_per_second: f64,
    /// Connections in use.
    pub(super) active: u32,
    pub(super) waiting: usize,
    /// Since the start, on the server where it is longest.
    pub(super) wait_p99_ms: f64,
    /// As long does it hold a connection, on the server where it is longest.
    pub(super) held_ms: f64,
}

impl Frame {
    /// What happened from `before` to `after`.
    pub(super) fn between(before: &Moment, after: &Moment, time: String) -> Self {
        let elapsed = after.at.duration_since(before.at).max(Duration::from_millis(1)).as_secs_f64();
        // After a restart counters begin anew.
        let restarted = after.stats.uptime_seconds < before.stats.uptime_seconds;
        let per_second = |name: &str, label: Option<(&str, &str)>| {
            let earlier = if restarted { 0.0 } else { before.scrape.sum(name, label) };
            (after.scrape.sum(name, label) - earlier).max(0.0) / elapsed
        };
        let came = |name: &str| -> Histogram { after.scrape.histogram(name).since(&before.scrape.histogram(name)) };
        let ms = |share: f64, came: &Histogram| came.quantile(share).map(|seconds| seconds * 1_000.0);
        let commands = came("mongomux_command_seconds");
        let rates = Rates {
            seconds: elapsed,
            commands_per_second: per_second("mongomux_commands_total", None),
            failed_per_second: per_second("mongomux_commands_total", Some(("outcome", "failed"))),
            refused_per_second: per_second("mongomux_commands_total", Some(("outcome", "refused"))),
            p50_ms: ms(0.5, &commands),
            p99_ms: ms(0.99, &commands),
            upstream_p99_ms: ms(0.99, &came("mongomux_upstream_seconds")),
            wait_p99_ms: ms(0.99, &came("mongomux_wait_queue_seconds")),
            connects_per_second: per_second("mongomux_upstream_connections_created_total", None),
            queue: after.stats.clusters.iter().fold(0, |sum, cluster| sum.saturating_add(cluster.wait_queue.length)),
        };
        let applications = applications(&before.stats, &after.stats, elapsed);
        Self { time, rates, applications, stats: after.stats.clone(), events: after.events.clone() }
    }
}

/// Each tenant of any server, with what it was served since.
fn applications(before: &Stats, after: &Stats, elapsed: f64) -> Vec<Application> {
    let mut served = BTreeMap::new();
    for (place, tenant) in tenants(before) {
        served.insert((place, tenant.name.as_str()), tenant.served);
    }
    let mut all: BTreeMap<&str, Application> = BTreeMap::new();
    for (place, tenant) in tenants(after) {
        // One that was not among those told of has no beginning, so it is left at nothing for once.
        let earlier = served.get(&(place, tenant.name.as_str())).copied().unwrap_or(tenant.served);
        let application = all.entry(&tenant.name).or_default();
        application.name.clone_from(&tenant.name);
        #[expect(clippy::cast_precision_loss, reason = "what is shown has a few digits")]
        let came = tenant.served.saturating_sub(earlier) as f64;
        application.commands_per_second += came / elapsed;
        application.active = application.active.saturating_add(tenant.active);
        application.waiting = application.waiting.saturating_add(tenant.waiting);
        application.wait_p99_ms = application.wait_p99_ms.max(tenant.wait_p99_ms);
        application.held_ms = application.held_ms.max(tenant.held_ms);
    }
    let mut all: Vec<Application> = all.into_values().collect();
    all.sort_by(|a, b| b.commands_per_second.total_cmp(&a.commands_per_second).then_with(|| a.name.cmp(&b.name)));
    all
}

type Place<'a> = (&'a str, &'a str);

fn tenants(stats: &Stats) -> impl Iterator<Item = (Place<'_>, &crate::admin::tenants::TenantStats)> {
    stats.clusters.iter().flat_map(|cluster| {
        cluster.servers.iter().flat_map(move |server| {
            server.tenants.iter().map(move |tenant| ((cluster.name.as_str(), server.address.as_str()), tenant))
        })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two moments, a number of seconds apart, between which a hundred commands came.
    pub(crate) fn moments(seconds: u64) -> (Moment, Moment) {
        let page = |completed: u32, fast: u32, all: u32| {
            format!(
                "mongomux_commands_total{{command=\"find\",outcome=\"completed\"}} {completed}\n\
                 mongomux_commands_total{{command=\"find\",outcome=\"failed\"}} 10\n\
                 mongomux_command_seconds_bucket{{command=\"find\",le=\"0.001\"}} {fast}\n\
                 mongomux_command_seconds_bucket{{command=\"find\",le=\"0.01\"}} {all}\n\
                 mongomux_command_seconds_bucket{{command=\"find\",le=\"+Inf\"}} {all}\n"
            )
        };
        let at = Instant::now();
        let (before, mut after) = (crate::operate::stats::tests::told(), crate::operate::stats::tests::told());
        after.uptime_seconds += seconds;
        after.clusters[0].servers[0].tenants[0].served += 100;
        let before = Moment { at, stats: before, scrape: Scrape::parse(&page(1_000, 900, 1_000)), events: None };
        let at = at + Duration::from_secs(seconds);
        let after = Moment { at, stats: after, scrape: Scrape::parse(&page(1_100, 950, 1_100)), events: None };
        (before, after)
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let (before, after) = moments(2);
        let frame = Frame::between(&before, &after, String::new());
        let rates = frame.rates;
        assert_eq!((rates.commands_per_second, rates.failed_per_second, rates.queue), (50.0, 0.0, 34));
        assert_eq!((rates.p50_ms, rates.wait_p99_ms), (Some(1.0), None));
        assert_eq!(frame.applications[0].name, "shop");
        assert_eq!((frame.applications[0].commands_per_second, frame.applications[0].active), (50.0, 12));
        assert_eq!(frame.applications.len(), 2);
    }

    #[test]
    fn a_restart_makes_no_storm_and_no_hole() {
        let (before, mut after) = moments(1);
        after.stats.uptime_seconds = 0;
        after.scrape = Scrape::parse("mongomux_commands_total{command=\"find\",outcome=\"completed\"} 30\n");
        let rates = Frame::between(&before, &after, String::new()).rates;
        assert_eq!((rates.commands_per_second, rates.p50_ms), (30.0, None));
        let newcomer = {
            let mut stats = after.stats.clone();
            stats.clusters[0].servers[0].tenants[0].name = "new".to_owned();
            applications(&before.stats, &stats, 1.0)
        };
        assert!(newcomer.iter().all(|it| it.commands_per_second == 0.0), "{newcomer:?}");
    }
}
