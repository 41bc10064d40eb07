//! The samples in `config/` are what they claim to be: valid, with the values of their profile in force, and the full
//! one with every key, its default and its range.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mongomux::config::keys::{self, Place};
use mongomux::config::system::{Text, read_file};
use mongomux::config::{Address, ClusterConfig, Config, Presentation, Profile, Retry, Sources};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn sample(name: &str) -> Text {
    read_file(&directory().join(name)).unwrap_or_else(|error| panic!("{error}"))
}

fn load(file: Option<Text>) -> Config {
    let (config, warnings) =
        Config::load(&Sources { file, ..Sources::default() }).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(warnings, [], "a sample should not need a warning");
    config
}

/// The sample with the `#` taken away in front of every key; prose has a space behind its `#`.
fn uncommented(name: &str) -> Text {
    let sample = sample(name);
    let lines = sample.text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
        _ => line,
    });
    Text { text: lines.collect::<Vec<_>>().join("\n"), name: sample.name.clone() }
}

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

#[test]
fn every_sample_is_valid() {
    let mut count = 0;
    for entry in std::fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "mongomux.schema.json" {
            continue;
        }
        assert!(name.ends_with(".toml"), "{name}");
        load(Some(sample(&name)));
        load(Some(uncommented(&name)));
        count += 1;
    }
    // One per profile, all keys, several clusters.
    assert_eq!(count, Profile::ALL.len() + 2);
}

#[test]
fn every_profile_has_a_sample_with_its_values_in_force_and_in_its_comments() {
    for &profile in Profile::ALL {
        let name = format!("{profile}.toml");
        let (asked, _) = Config::load(&Sources { profile: Some(profile), ..Sources::default() }).unwrap();
        assert_eq!(format!("{:?}", load(Some(sample(&name)))), format!("{asked:?}"), "{name}");
        let said: toml::Table = uncommented(&name).text.parse().unwrap();
        for limit in keys::limits(Place::Cluster).chain(keys::limits(Place::Program)) {
            let told = said.get(limit.key).and_then(toml::Value::as_integer);
            assert_eq!(told, profile.value(limit).map(|value| i64::try_from(value).unwrap()), "{name}: {}", limit.key);
        }
    }
}

#[test]
fn the_full_sample_says_the_defaults_of_every_key() {
    let defaults = format!("{:?}", load(None));
    assert_eq!(format!("{:?}", load(Some(sample("mongomux.toml")))), defaults, "as it is, it changes nothing");
    let full_text = sample("mongomux.toml").text.clone();
    let full = uncommented("mongomux.toml");
    assert_eq!(format!("{:?}", load(Some(full.clone()))), defaults);

    let table: toml::Table = full.text.parse().unwrap();
    let said = |key: &str| match key.split_once('.') {
        Some((outer, inner)) => table.get(outer)?.get(inner),
        None => table.get(key),
    };
    for limit in keys::limits(Place::Cluster).chain(keys::limits(Place::Program)) {
        let value = said(limit.key).and_then(toml::Value::as_integer);
        assert_eq!(value, i64::try_from(limit.default).ok(), "{}", limit.key);
    }
    // Those that have no default are shown with an example, in a line that is none of the file even without its `#`.
    for key in keys::all() {
        let forms = [format!("#{} = ", key.name), format!(" {} = ", key.name), format!("[[{}]]", key.name)];
        let shown = forms.iter().any(|form| full_text.contains(form));
        assert!(shown || matches!(key.place, Place::ClusterTable | Place::ListenerTable), "{}", key.name);
        let default = key.default().filter(|_| !matches!(key.place, Place::Tenant | Place::Priority));
        if let (Some(default), Some(said)) = (default, said(key.name)) {
            assert_eq!(*said, default, "{}", key.name);
        }
    }
}

#[test]
fn the_full_sample_says_the_range_of_every_limit() {
    let text = sample("mongomux.toml").text.clone();
    let lines: Vec<&str> = text.lines().collect();
    for limit in keys::limits(Place::Cluster).chain(keys::limits(Place::Program)) {
        let range = format!("# {}", limit.range());
        let told = lines.windows(2).any(|pair| pair[0] == range && pair[1].starts_with(&format!("#{} = ", limit.key)));
        assert!(told, "{}: {}", limit.key, limit.range());
    }
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let config = load(None);
    assert_eq!(config.admin, Address::tcp("127.0.0.1", 9627));
    assert_eq!(config.client.max_clients, 10_000);
    assert_eq!(config.client.idle_timeout, None);
    assert_eq!(config.client.handshake_timeout, ms(10_000));
    assert_eq!(config.client.stall_timeout, ms(30_000));
    assert_eq!(config.client.max_message_bytes, 48_000_000);
    assert_eq!(config.memory_limit_bytes, 536_870_912);
    assert_eq!(config.times.monitor_interval, ms(45_000));
    assert_eq!((config.times.drain_timeout, config.times.drain_quiet), (ms(25_000), ms(5_000)));

    let [listener] = config.listeners.as_slice() else { panic!("{:?}", config.listeners) };
    assert_eq!((&listener.listen, listener.cluster.as_str()), (&Address::tcp("127.0.0.1", 27016), "default"));
    assert!(listener.databases.is_empty() && listener.compressors.is_empty() && !listener.proxy_protocol);
    let cluster: &ClusterConfig = &config.clusters[0];
    assert!(cluster.upstream.redacted.starts_with("mongodb://127.0.0.1:27017"));
    assert_eq!((cluster.presentation, cluster.retry), (Presentation::Auto, Retry::Driver));
    assert_eq!((cluster.pool.max_pool_size, cluster.pool.min_pool_size, cluster.pool.max_connecting), (10, 2, 2));
    assert_eq!((cluster.pool.max_idle_time, cluster.pool.max_lifetime), (ms(30_000), ms(14_400_000)));
    assert_eq!(cluster.pool.connect_timeout, ms(10_000));
    assert_eq!(cluster.max_upstream_connections, None);
    assert!(cluster.degraded_reads.is_empty());
    assert!(!cluster.adaptive_limit);
    assert_eq!((cluster.wait_queue_timeout, cluster.wait_queue_size), (ms(5_000), 4_000));
    assert_eq!(cluster.server_selection_timeout, ms(15_000));
    assert_eq!((cluster.pool.socket_timeout, cluster.command_timeout, cluster.max_in_flight), (None, None, None));
    assert_eq!((cluster.long_held, cluster.transaction_idle_timeout), (ms(30_000), None));
    assert_eq!((cluster.heartbeat_frequency, cluster.health_check), (ms(10_000), ms(30_000)));
    assert_eq!(cluster.local_threshold, ms(15));
    assert_eq!((cluster.breaker.consecutive_failures, cluster.breaker.minimum_samples), (5, 20));
    assert_eq!((cluster.breaker.success_rate, cluster.breaker.window), (0.5, ms(10_000)));
    assert_eq!((cluster.breaker.open_initial, cluster.breaker.open_max), (ms(1_000), ms(60_000)));
    assert_eq!((cluster.reconnect.initial, cluster.reconnect.max), (ms(100), ms(30_000)));
}

#[test]
fn the_sample_of_two_clusters_has_two() {
    let config = load(Some(sample("two-clusters.toml")));
    let pools: Vec<_> = config.clusters.iter().map(|it| (it.name.as_str(), it.pool.max_pool_size)).collect();
    assert_eq!(pools, [("shop", 40), ("reports", 4)]);
    assert_eq!(config.clusters[1].breaker.consecutive_failures, 3);
    let listeners: Vec<_> =
        config.listeners.iter().map(|it| format!("{} {} {}", it.listen, it.cluster, it.databases)).collect();
    assert_eq!(
        listeners,
        [
            "127.0.0.1:27018 reports ",
            "unix:/tmp/mongomux-reports.sock reports ",
            "127.0.0.1:27016 shop events -> reports, report_* -> reports",
        ]
    );
}
