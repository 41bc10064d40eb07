//! `mongomux diag`: everything that whoever reads a ticket asks for, gathered without changing anything. What cannot be had is
//! said, and the rest is told; what may be a secret is masked, whoever has let it through.

mod machine;
mod masking;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::page::{Page, Tone};
use super::port::{AskError, Port};
use super::series::Scrape;
use super::{Look, events, readable, stats};
use crate::admin::stats::Stats;

/// One part of it.
struct Section {
    /// In JSON.
    key: &'static str,
    /// What it is about, for people.
    title: &'static str,
    /// What was told, or in words why nothing was.
    told: Result<Value, String>,
    /// For people, where its values are not enough.
    shown: Option<Page>,
}

/// All of it.
pub struct Bundle {
    time: String,
    sections: Vec<Section>,
    /// The proxy itself did not answer.
    alone: bool,
}

/// Metrics by what they are about: all values that are not 0.
const METRICS: &[(&str, &str, &[&str])] = &[
    (
        "process",
        "the proxy's process",
        &[
            "process_open_fds",
            "process_max_fds",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_cpu_seconds_total",
            "process_threads",
            "process_start_time_seconds",
            "mongomux_buffered_bytes",
            "mongomux_config_reload_success",
            "mongomux_config_reload_timestamp_seconds",
        ],
    ),
    (
        "pools",
        "pools: what came and went since the start",
        &[
            "mongomux_upstream_connections",
            "mongomux_upstream_connections_max",
            "mongomux_in_flight_limit",
            "mongomux_upstream_connections_created_total",
            "mongomux_upstream_connections_closed_total",
            "mongomux_upstream_connect_seconds",
            "mongomux_breaker_state",
            "mongomux_breaker_trips_total",
            "mongomux_server_events_total",
        ],
    ),
    (
        "queue",
        "queue: who waits, who waited and who was refused",
        &[
            "mongomux_wait_queue_length",
            "mongomux_wait_queue_bytes",
            "mongomux_wait_queue_oldest_seconds",
            "mongomux_wait_queue_seconds",
            "mongomux_shed_total",
            "mongomux_refused_total",
        ],
    ),
    (
        "pins",
        "pins: cursors and transactions",
        &["mongomux_pins", "mongomux_pin_seconds", "mongomux_long_held", "mongomux_transactions_ended_total"],
    ),
    (
        "commands",
        "commands and client sockets since the start",
        &[
            "mongomux_client_connections",
            "mongomux_client_connections_surplus",
            "mongomux_client_connections_opened_total",
            "mongomux_client_connections_closed_total",
            "mongomux_logins_total",
            "mongomux_commands_total",
            "mongomux_command_seconds",
            "mongomux_upstream_seconds",
            "mongomux_overhead_seconds",
            "mongomux_retries_total",
            "mongomux_retries_denied_total",
            "mongomux_degraded_reads_total",
            "mongomux_received_bytes_total",
            "mongomux_sent_bytes_total",
        ],
    ),
];

/// As `/config` tells it.
const CONFIGURATION: &str = "configuration";

/// Asks for all of it; with `server` for what MongoDB says as well.
pub async fn gather(port: &Port, server: bool) -> Bundle {
    let stats = stats::ask(port).await;
    let alone = matches!(
        stats,
        Err(AskError::Nobody { .. } | AskError::Connect { .. } | AskError::Tls { .. } | AskError::Timeout(_))
    );
    let stats = stats.map_err(|error| error.to_string());
    let mut sections = vec![
        versions(&stats, port),
        Section { key: "machine", title: "the machine that this was run on", told: Ok(machine::look()), shown: None },
        // Whoever does not answer once is not asked again and again.
        plain(CONFIGURATION, "configuration in force", ask(port, "/config", alone).await),
        servers(stats),
    ];
    let scrape =
        if alone { Err("as above".to_owned()) } else { port.text("/metrics").await.map_err(|it| it.to_string()) };
    let scrape = scrape.map(|text| Scrape::parse(&text));
    let of_metrics = METRICS.iter().map(|(key, title, names)| {
        plain(key, title, scrape.as_ref().map(|scrape| scrape.highlights(names)).map_err(Clone::clone))
    });
    sections.extend(of_metrics);
    sections.push(plain("clients", "clients by application and driver", ask(port, "/clients", alone).await));
    let happened = ask(port, "/events", alone).await;
    let shown = happened.as_ref().ok().map(|told| Page { lines: events::lines(Some(told), usize::MAX) });
    sections.push(Section { key: "events", title: "recent events, newest first", told: happened, shown });
    if server {
        sections.push(plain("server", "what MongoDB says of its connections", ask(port, "/server", alone).await));
    }
    for section in &mut sections {
        match &mut section.told {
            Ok(value) => masking::mask(value),
            Err(why) => *why = masking::masked(why),
        }
    }
    Bundle { time: bson::DateTime::now().try_to_rfc3339_string().unwrap_or_default(), sections, alone }
}

impl Bundle {
    /// True when the proxy did not answer at all.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// For people.
    pub fn page(&self, look: Look) -> Page {
        let mut page = Page::default();
        page.line(format!("mongomux diag, {}", self.time), Tone::Title);
        for section in &self.sections {
            page.gap();
            page.line(format!("== {} ==", section.title), Tone::Title);
            match (&section.told, &section.shown) {
                (Err(why), _) => page.item("not to be had: ", why, Tone::Warn, look.width),
                (Ok(_), Some(shown)) if shown.lines.is_empty() => page.line("none", Tone::Faint),
                (Ok(_), Some(shown)) => page.lines.extend(shown.lines.iter().cloned()),
                (Ok(value), None) if section.key == CONFIGURATION => {
                    readable::write(&mut page, &settings(value), look.width);
                }
                (Ok(value), None) => readable::write(&mut page, value, look.width),
            }
        }
        masking::mask_page(&mut page);
        page
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let told = |section: &Section| match &section.told {
            Ok(value) => value.clone(),
            Err(why) => json!({ "unavailable": why }),
        };
        let mut all: Map<String, Value> =
            self.sections.iter().map(|section| (section.key.to_owned(), told(section))).collect();
        all.insert("time".to_owned(), json!(self.time));
        Value::Object(all)
    }
}

/// A new file that only its owner can read: what is in it is no secret, and nobody else's business.
///
/// # Errors
/// It is there already, or cannot be made.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn plain(key: &'static str, title: &'static str, told: Result<Value, String>) -> Section {
    Section { key, title, told, shown: None }
}

async fn ask(port: &Port, path: &str, alone: bool) -> Result<Value, String> {
    if alone { Err("as above".to_owned()) } else { port.get(path).await.map_err(|error| error.to_string()) }
}

/// Each setting in one line, with who says so: there are a hundred of them.
fn settings(told: &Value) -> Value {
    match told {
        Value::Object(fields) => match (fields.get("value"), fields.get("origin").and_then(Value::as_str)) {
            (Some(value), Some(origin)) => json!(format!("{} ({origin})", readable::short(value))),
            _ => fields.iter().map(|(name, value)| (name.clone(), settings(value))).collect(),
        },
        Value::Array(items) => items.iter().map(settings).collect(),
        other => other.clone(),
    }
}

fn versions(stats: &Result<Stats, String>, port: &Port) -> Section {
    let proxy = stats.as_ref().map(
        |stats| json!({"version": stats.version, "uptimeSeconds": stats.uptime_seconds, "draining": stats.draining}),
    );
    let told = json!({
        "diag": {"version": env!("CARGO_PKG_VERSION"), "build": machine::build()},
        "admin": port.address().to_string(),
        "proxy": proxy.unwrap_or_else(|why| json!({ "unavailable": why })),
    });
    plain("versions", "versions", Ok(told))
}

fn servers(stats: Result<Stats, String>) -> Section {
    let (key, title) = ("stats", "servers, topology, queue, pins, tenants, what is held for long");
    match stats {
        Ok(stats) => {
            let mut shown = stats::page(&stats, Look { width: None, colour: false });
            write_details(&mut shown, &stats);
            let told = serde_json::to_value(&stats).map_err(|error| error.to_string());
            Section { key, title, told, shown: Some(shown) }
        }
        Err(why) => plain(key, title, Err(why)),
    }
}

/// What the table of `stats` has no room for.
fn write_details(page: &mut Page, stats: &Stats) {
    for server in stats.clusters.iter().flat_map(|cluster| &cluster.servers) {
        let parts = [
            ("events", json!([server.events])),
            ("tenants", json!(server.tenants)),
            ("users", json!(server.users)),
            ("held for long", json!(server.long_held.items)),
        ];
        for (what, value) in
            parts.into_iter().filter(|(_, value)| value.as_array().is_some_and(|list| !list.is_empty()))
        {
            page.gap();
            page.line(format!("{}: {what}", server.address), Tone::Title);
            readable::write(page, &value, None);
        }
    }
    if !stats.listeners.is_empty() {
        page.gap();
        page.line("listeners and their rules", Tone::Title);
        readable::write(page, &json!(stats.listeners), None);
    }
}
