//! `docs/metrics.md` says what `/metrics` says: it is written from the registry, and this test fails where the two differ.
//!
//! Names, types, help texts, labels and their values come from the program. What to look at comes from the table below, which
//! must know every metric and no other.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use mongomux::telemetry::Metrics;

/// Set, the page is written instead of compared.
const WRITE: &str = "MONGOMUX_WRITE_DOCS";

const PAGE: &str = "docs/metrics.md";

/// Stands for whatever server there is.
const SERVER: &str = "db1.example:27017";

const INTRODUCTION: &str = "\
# Metrics

<!-- Written by tests/docs.rs from the program's registry; MONGOMUX_WRITE_DOCS=1 cargo test --test docs -->

`GET /metrics` on the admin port, in Prometheus' text format, open to everybody who reaches the port.

<!-- run -->
```console
$ curl -s http://127.0.0.1:9627/metrics | grep '^mongomux_upstream_connections'
mongomux_upstream_connections{server=\"db1.example:27017\",state=\"available\"} ...
mongomux_upstream_connections{server=\"db1.example:27017\",state=\"in_use\"} ...
mongomux_upstream_connections_closed_total{...
```

* Units are base units: seconds, bytes. Counters end in `_total` and start at 0 with the process.
* Every metric is there from the first scrape on, each known label value at 0, so `rate()` misses no first event.
* Label values come from closed sets, which are listed here, but for `server` (`host:port`, as the topology names it) and `cluster`
  (its name in the configuration). What clients send never becomes a label. With several clusters the metrics of a server and
  `mongomux_wait_queue_bytes` have `cluster` as well.
* A server's series go when the server leaves the topology.
* Who makes the load, by application, is in [`/stats`](overload.md#fairness), not here: names of applications have no bound.
";

/// A metric, and what to look at when one sees it.
type Advice = (&'static str, &'static str);

/// All of them, in the order of the page.
const SECTIONS: &[(&str, &[Advice])] = &[
    ("Clients", CLIENTS),
    ("Pools", POOLS),
    ("Waiting and refusing", WAITING),
    ("Commands", COMMANDS),
    ("Servers", SERVERS),
    ("Memory and traffic", TRAFFIC),
    ("The program", PROGRAM),
];

const CLIENTS: &[Advice] = &[
    (
        "mongomux_client_connections",
        "The sum against `max_clients`. Many `idle` ones cost some 1.3 KiB each and are what the proxy is for.",
    ),
    (
        "mongomux_client_connections_surplus",
        "Not 0 for long: raise `max_clients` ([overload.md](overload.md#accepting)).",
    ),
    (
        "mongomux_client_connections_opened_total",
        "Its rate beside that of `mongomux_commands_total`: one or two commands for each socket are clients that connect anew for \
         each operation.",
    ),
    (
        "mongomux_client_connections_closed_total",
        "`client_left` and `drain` are ordinary. Any other reason is a setting, or a client, to look at.",
    ),
    (
        "mongomux_logins_total",
        "`failed` and `paused`: wrong credentials, or somebody who tries some. `unavailable`: no server could be asked.",
    ),
];

const POOLS: &[Advice] = &[
    (
        "mongomux_upstream_connections",
        "`in_use` against `mongomux_upstream_connections_max`. Near it for minutes: [tuning.md](tuning.md#max_pool_size).",
    ),
    ("mongomux_upstream_connections_max", "The bound that is in force, after profile, file and connection string."),
    (
        "mongomux_in_flight_limit",
        "Less than `mongomux_upstream_connections_max` only with `max_in_flight` or `adaptive_limit`. One that stays at its least \
         is a slow server.",
    ),
    (
        "mongomux_upstream_connections_created_total",
        "More than some 30 a minute is churn: each costs a handshake and a log-in. The reasons are in the next one.",
    ),
    (
        "mongomux_upstream_connections_closed_total",
        "`error` and `stale` come with trouble at the server or on the way; `idle` with a load that comes and goes (raise \
         `min_pool_size`); `turnover` with more users than places.",
    ),
    (
        "mongomux_upstream_connect_seconds",
        "Its p99 in a good hour. Seconds are name resolution, TLS, or a server that is short of threads.",
    ),
    (
        "mongomux_own_connections",
        "0, unless pooling is switched on step by step: `max_pool_size` does not bound these ([observe.md](observe.md)).",
    ),
    ("mongomux_own_connections_created_total", "How often clients come, while they are observed only."),
];

const WAITING: &[Advice] = &[
    (
        "mongomux_wait_queue_length",
        "Whether it goes back to 0. `transaction` that is not 0 for long is the one to look at first; `await` are change streams and is \
         harmless.",
    ),
    (
        "mongomux_wait_queue_seconds",
        "What the pool adds to latency. The share above 10 ms tells whether `max_pool_size` is short. Who \
         need not wait counts with 0, and who was refused not at all.",
    ),
    (
        "mongomux_wait_queue_oldest_seconds",
        "Rises with the clock while nobody is served: a server that hangs, a pool that is held, an election, a pause that nobody ends. \
         Long polls count only where they wait for a connection. It cannot pass the longest wait that is configured.",
    ),
    ("mongomux_wait_queue_bytes", "Against `wait_queue_bytes`: large inserts that wait."),
    ("mongomux_shed_total", "Each one is an error that an application saw, or a retry that its driver made."),
    ("mongomux_refused_total", "Applications that do what they may not: the rule is in the error that they get."),
    (
        "mongomux_long_held",
        "Which they are is in `/stats`, under `longHeld`, with reason, age and application ([commands.md](commands.md#what-is-held-for-long)).",
    ),
    (
        "mongomux_transactions_ended_total",
        "`orphaned`: applications die within transactions. `idle`: `transaction_idle_timeout_ms` did it.",
    ),
];

const COMMANDS: &[Advice] = &[
    (
        "mongomux_commands_total",
        "The share of `failed` and `refused`. `failed` is an error from upstream, `refused` one of the proxy with nothing sent, \
         `abandoned` a client that left before the answer.",
    ),
    (
        "mongomux_command_seconds",
        "What clients see, of which `mongomux_wait_queue_seconds` and `mongomux_upstream_seconds` are parts. A `getMore` that waits for data takes \
         as long as it is meant to.",
    ),
    ("mongomux_upstream_seconds", "The server's part. When this rises everything behind it does: look at the server."),
    (
        "mongomux_overhead_seconds",
        "Tens of microseconds: what commands wait for is in `mongomux_wait_queue_seconds`. Milliseconds mean that the \
         proxy's thread is full (`process_cpu_seconds_total`) or that clients read slowly.",
    ),
    (
        "mongomux_slow_commands_total",
        "The log has a line for each, with its namespace and where the time went ([logs](logs.md#slow-commands)). Stays 0 while \
         `slow_command_ms` is off.",
    ),
    (
        "mongomux_retries_total",
        "`not_sent` comes with every fail-over and is harmless; the others only with `retry = \"proxy\"`, but for `cleanup`.",
    ),
    (
        "mongomux_pins",
        "Cursors that only grow are never closed by somebody. The tables hold 100,000 cursors and 10,000 transactions.",
    ),
    ("mongomux_pin_seconds", "Transactions of seconds hold locks; cursors of minutes are slow readers."),
    (
        "mongomux_degraded_reads_total",
        "Reads that may have been old: see `degraded_reads` ([degradation.md](degradation.md)).",
    ),
];

const SERVERS: &[Advice] = &[
    ("mongomux_server_state", "A set whose `primary` is nowhere 1; `unknown` for one that should be there."),
    (
        "mongomux_server_events_total",
        "`error` and `disconnected`, server by server: one server, or all of them at once, which is the network.",
    ),
    (
        "mongomux_server_connections",
        "Against the limit beside it, which is the server's: `rate` says nothing, the share does. 0 where nobody may ask.",
    ),
    (
        "mongomux_server_connections_limit",
        "What the server takes, whoever's they are: `maxIncomingConnections`, or less by its files.",
    ),
    (
        "mongomux_breaker_state",
        "2 for more than a moment: the proxy has stopped asking. `/stats` says why (`breakerReason`).",
    ),
    (
        "mongomux_breaker_transitions_total",
        "Open and half-open in turn is a server that takes connections and cannot work.",
    ),
    (
        "mongomux_breaker_trips_total",
        "`success_rate` is a server that half works; `operator` is an order by the admin port.",
    ),
    (
        "mongomux_retries_denied_total",
        "More retries were wanted than the budget has: an outage, not a hiccup ([failover.md](failover.md#who-sends-again)).",
    ),
];

const TRAFFIC: &[Advice] = &[
    ("mongomux_received_bytes_total", "By side: what clients send, and what servers answer."),
    (
        "mongomux_sent_bytes_total",
        "By side. Upstream much less than received from clients is compression, or refusals.",
    ),
    (
        "mongomux_buffered_bytes",
        "Against `memory_limit_bytes`, which it cannot pass. Near it clients are not read on: slow readers of large replies, or a queue of \
         large inserts.",
    ),
    ("mongomux_buffered_bytes_max", "`memory_limit_bytes`, which is half of the container's limit if that is less."),
];

const PROGRAM: &[Advice] = &[
    (
        "mongomux_tls_certificate_expiry_timestamp_seconds",
        "Less than two weeks from now. Certificates are read again by themselves: replace the file ([tls.md](tls.md#new-certificates)).",
    ),
    (
        "mongomux_config_reload_success",
        "0: a file that was to be read again is broken, and what was in force before still is. The log names it.",
    ),
    ("mongomux_config_reload_timestamp_seconds", "Whether a change has arrived on every instance."),
    ("mongomux_build_info", "Which versions run, while an upgrade goes on."),
    ("process_cpu_seconds_total", "Its rate: 1 is one full thread, which is all there is with `worker_threads = 1`."),
    (
        "process_max_fds",
        "Must be above `max_clients`, a tenth more, and the pools; a warning at the start says by how much it is not.",
    ),
    ("process_open_fds", "Against `process_max_fds`."),
    (
        "process_resident_memory_bytes",
        "Some 11 MiB bare, 1.3 KiB for each idle client, and `mongomux_buffered_bytes` ([performance.md](performance.md#idle-clients)).",
    ),
    ("process_start_time_seconds", "A change is a restart."),
    ("process_threads", "Worker threads, and a few that come and go for compression, large messages and passwords."),
    ("process_virtual_memory_bytes", "Nothing: address space is not memory."),
];

/// What the values of a label mean, where their names do not say all.
const VALUES: &[(&str, &[Advice])] = &[
    (
        "mongomux_client_connections_closed_total",
        &[
            ("client_left", "it closed the socket"),
            ("idle", "`client_idle_timeout_ms`"),
            ("stalled", "`client_stall_timeout_ms`, in the middle of a message"),
            ("handshake_timeout", "no whole message within `handshake_timeout_ms`"),
            ("protocol_error", "bytes that are no message of MongoDB"),
            ("proxy_header", "a PROXY protocol header that is missing or broken"),
            ("tls", "a handshake that failed, or TLS where there is none"),
            ("max_clients_per_address", "too many from one address"),
            ("drain", "the program ended"),
            ("unauthenticated", "too much before a log-in"),
            ("revoked", "its user was dropped, or has another password now"),
            ("killed", "an operator ended it"),
            ("handed_over", "not closed at all: the next process goes on with it"),
            ("proxy", "a decision of the proxy that none of the others names"),
        ],
    ),
    (
        "mongomux_logins_total",
        &[
            ("succeeded", "the client is who it says"),
            ("failed", "wrong, or unknown"),
            ("paused", "not looked at, as many of that address failed before"),
            ("unavailable", "nobody could be asked"),
        ],
    ),
    (
        "mongomux_upstream_connections_closed_total",
        &[
            ("stale", "of before the pool was cleared"),
            ("idle", "`max_idle_time_ms`, above `min_pool_size`"),
            ("error", "it broke, or stopped in the middle of a message"),
            ("pool_closed", "its server left, or the program ended"),
            ("lifetime", "`max_lifetime_ms`: the scheduled refresh"),
            ("turnover", "another user got its place"),
            ("revoked", "its user was dropped, or has another password now"),
            ("shrunk", "the bound was lowered"),
            ("ordered", "an operator's clean-up"),
        ],
    ),
    (
        "mongomux_shed_total",
        &[
            ("queue_full", "`wait_queue_size`"),
            ("queue_bytes", "`wait_queue_bytes`"),
            ("tenant", "`tenant_max_waiting`, or `max_waiting` of a tenant"),
            ("queue_timeout", "`wait_queue_timeout_ms` is over"),
            ("queue_stands", "`queue_discipline = \"codel\"`, in a queue that stands"),
            ("memory", "no room within `memory_limit_bytes`"),
            ("max_clients", "a client beyond `max_clients`"),
            ("max_clients_per_address", "a client beyond that bound"),
            ("unacknowledged", "a write with `w: 0`, which can be dropped without a word"),
        ],
    ),
    (
        "mongomux_refused_total",
        &[
            ("listed", "nobody may send it through a shared connection"),
            ("read_only", "`read_only`"),
            ("command", "`allow_commands`, `deny_commands`"),
            ("namespace", "`allow_namespaces`, `deny_namespaces`"),
        ],
    ),
    (
        "mongomux_transactions_ended_total",
        &[
            ("idle", "`transaction_idle_timeout_ms`"),
            ("orphaned", "all its clients had gone for 5 s"),
            ("reply_lost", "a reply to one of its statements was lost"),
        ],
    ),
    (
        "mongomux_retries_total",
        &[
            ("not_sent", "it had not been sent whole, so nothing was done"),
            ("read", "a read whose reply was lost"),
            ("write", "a write that may safely be sent twice"),
            ("commit", "`commitTransaction`"),
            ("abort", "`abortTransaction`"),
            ("cleanup", "cursors and sessions that the proxy ends by itself"),
        ],
    ),
    (
        "mongomux_breaker_trips_total",
        &[
            ("consecutive_failures", "that many in a row"),
            ("success_rate", "too many of the last ones failed"),
            ("probe_failed", "it was half-open, and the probe failed"),
            ("operator", "an order by the admin port"),
        ],
    ),
];

/// A metric as `/metrics` has it.
#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    /// Values of each label, in the order in which the program has them.
    labels: BTreeMap<String, Vec<String>>,
    /// Upper bounds, of a histogram.
    buckets: Vec<String>,
}

/// Reads Prometheus' text format, as far as the program writes it.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some((name, labels)) = line.split_once('{') {
            let family = ["", "_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| families.get(name.strip_suffix(suffix)?).map(|_| name.strip_suffix(suffix).unwrap()))
                .unwrap()
                .to_owned();
            let family = families.get_mut(&family).unwrap();
            for pair in labels.split_once('}').unwrap().0.split(',') {
                let (label, value) = pair.split_once('=').unwrap();
                let value = value.trim_matches('"').to_owned();
                let known = if label == "le" {
                    &mut family.buckets
                } else {
                    family.labels.entry(label.to_owned()).or_default()
                };
                if !known.contains(&value) {
                    known.push(value);
                }
            }
        }
    }
    families
}

fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").or_else(|| name.strip_suffix("_max")).unwrap_or(name);
    match () {
        () if name.ends_with("_timestamp_seconds") || name.ends_with("start_time_seconds") => ", Unix time",
        () if name.ends_with("_seconds") => ", seconds",
        () if name.ends_with("_bytes") => ", bytes",
        () => "",
    }
}

/// The section of one metric.
fn section(name: &str, family: &Family, look: &str) -> String {
    let mut text = format!("\n### {name}\n\n{}{}. {}\n", family.kind, unit(name), family.help);
    let meanings = VALUES.iter().find(|(metric, _)| *metric == name).map_or(&[][..], |(_, values)| values);
    let mut plain = Vec::new();
    let mut explained = None;
    for (label, values) in &family.labels {
        if values.len() == meanings.len() && values.iter().all(|value| meanings.iter().any(|(known, _)| known == value))
        {
            explained = Some(label);
            continue;
        }
        let values = if values == &[SERVER] || label == "version" {
            String::new()
        } else {
            format!(": {}", values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "))
        };
        plain.push(format!("`{label}`{values}"));
    }
    assert!(
        meanings.is_empty() || explained.is_some(),
        "VALUES of tests/docs.rs and {name} differ: {:?}",
        family.labels
    );
    if !plain.is_empty() {
        writeln!(text, "\nLabels: {}.", plain.join("; ")).unwrap();
    }
    if let Some(label) = explained {
        write!(text, "\n| `{label}` | |\n| --- | --- |\n").unwrap();
        for (value, meaning) in meanings {
            writeln!(text, "| `{value}` | {meaning} |").unwrap();
        }
    }
    if !family.buckets.is_empty() {
        writeln!(
            text,
            "\nBuckets end at {} s.",
            family.buckets.iter().filter(|b| *b != "+Inf").cloned().collect::<Vec<_>>().join(", ")
        )
        .unwrap();
    }
    writeln!(text, "\nLook at: {look}").unwrap();
    text
}

fn page(families: &BTreeMap<String, Family>) -> String {
    let mut text = INTRODUCTION.to_owned();
    for (title, metrics) in SECTIONS {
        write!(text, "\n## {title}\n").unwrap();
        for (name, look) in *metrics {
            text += &section(name, &families[*name], look);
        }
    }
    text
}

/// The metrics of a program with one cluster and one server.
fn scraped() -> BTreeMap<String, Family> {
    let metrics = Metrics::new();
    let _server = metrics.server("default", SERVER);
    families(&metrics.render())
}

#[test]
fn every_metric_is_explained_once() {
    let known: Vec<&str> = SECTIONS.iter().flat_map(|(_, metrics)| metrics.iter().map(|(name, _)| *name)).collect();
    let unique: BTreeSet<&str> = known.iter().copied().collect();
    assert_eq!(unique.len(), known.len(), "a metric is in SECTIONS twice");
    let scraped = scraped();
    let there: BTreeSet<&str> = scraped.keys().map(String::as_str).collect();
    let missing: Vec<_> = there.difference(&unique).collect();
    let gone: Vec<_> = unique.difference(&there).collect();
    assert!(missing.is_empty() && gone.is_empty(), "SECTIONS in tests/docs.rs: add {missing:?}, remove {gone:?}");
}

#[test]
fn the_metrics_reference_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = page(&scraped());
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, page).unwrap();
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(written.lines().chain(std::iter::repeat(""))).find(|(ours, theirs)| ours != theirs);
    assert!(
        page == written,
        "{PAGE} is not what the program says: write it anew with `{WRITE}=1 cargo test --test docs`. First line that differs: \
         {differs:?}"
    );
}
