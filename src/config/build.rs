//! From sources to [`Config`], and what depends on what. No I/O.
//!
//! Which source of a limit wins is decided in `layers.rs`; for listeners (`listeners.rs`), the admin port and the connection
//! string itself the order is flag (or environment), file, default.

mod cluster;

use std::path::PathBuf;

use super::effective::{Effective, Settings, word_of};
use super::file::{AuthKind, FileCluster, FileConfig, FileListener};
use super::keys::Place;
use super::layers::{Layers, ms, saturating_usize};
use super::limits::{self, Limit};
use super::listeners::{Listeners, UsualAuth};
use super::reader::{Found, Said, Values};
use super::shares::MemoryShares;
use super::{
    Address, AdminAccess, Auth, ClientCertificates, ClientConfig, ClusterConfig, Config, ConfigError, ListenerConfig,
    ListenerTls, Profile, Sources, Warning,
};

/// The port next to the server's own.
pub const DEFAULT_LISTEN: (&str, u16) = ("127.0.0.1", 27016);
/// Metrics, probes and the page.
pub const DEFAULT_ADMIN: (&str, u16) = ("127.0.0.1", 9627);
/// A server on this machine.
pub const DEFAULT_UPSTREAM: &str = "mongodb://127.0.0.1:27017";
/// Name of the only cluster, where it has none.
pub const DEFAULT_CLUSTER: &str = "default";

/// The configuration, unless something is missing without which none can be made. Mistakes are added to `errors`.
pub(super) fn build(
    sources: &Sources,
    file: FileConfig,
    errors: &mut Vec<ConfigError>,
) -> (Option<Config>, Vec<Warning>) {
    let FileConfig {
        profile,
        admin,
        admin_token_file,
        admin_probes_only,
        upgrade_socket,
        reload_on_change,
        admin_tls,
        otlp_endpoint,
        program,
        said,
        single,
        clusters,
        listeners,
    } = file;
    let profile = sources.profile.or(profile).unwrap_or_default();
    let mut builder = Builder {
        sources,
        profile,
        errors,
        warnings: Vec::new(),
        queue_bytes: Vec::new(),
        looked_up: Vec::new(),
        log_ins: false,
        effective: Effective::default(),
    };
    let clusters = builder.named(if clusters.is_empty() { vec![single] } else { clusters });
    let admin = builder.address("admin", sources.admin.clone(), admin, DEFAULT_ADMIN);
    let tls = admin_tls.built_for_admin(&admin.value, builder.errors);
    let access = builder.admin_access(&admin, tls.as_ref(), admin_token_file, admin_probes_only);
    let listeners = builder.listeners(&clusters, listeners, &admin);
    builder.log_ins = listeners.iter().any(|listener| !matches!(listener.auth, Auth::None));
    let clusters = builder.clusters(clusters);
    builder.can_look_up(clusters.as_deref().unwrap_or_default());
    let otlp_endpoint = builder.otlp_endpoint(otlp_endpoint);
    builder.effective.program = builder.program_settings(&program, &said, &admin, tls.as_ref());
    let mut config = builder.program(clusters, listeners, (admin.value, access, tls), &program);
    if let Some(config) = &mut config {
        config.upgrade_socket = sources.upgrade_socket.clone().or(upgrade_socket.map(|found| found.value));
        let watched = sources.file.as_ref().filter(|_| reload_on_change).map(|file| PathBuf::from(&file.name));
        config.reload_on_change = watched.into_iter().collect();
        config.otlp_endpoint = otlp_endpoint;
    }
    (config, builder.warnings)
}

struct Builder<'a> {
    sources: &'a Sources,
    profile: Profile,
    errors: &'a mut Vec<ConfigError>,
    warnings: Vec<Warning>,
    /// What was asked for as `wait_queue_bytes`; the memory that bounds it is not known at once.
    queue_bytes: Vec<Found<Option<u64>>>,
    /// Where it was said of which cluster that clients are users of it.
    looked_up: Vec<(String, Found<()>)>,
    /// Whether clients log in, to any listener.
    log_ins: bool,
    /// What is known of it so far.
    effective: Effective,
}

impl Builder<'_> {
    /// The clusters with their names: one may do without.
    fn named(&mut self, clusters: Vec<FileCluster>) -> Vec<(String, FileCluster)> {
        let only = clusters.len() == 1;
        let mut named: Vec<(String, FileCluster)> = Vec::new();
        for cluster in clusters {
            let name = match &cluster.name {
                Some(name) => {
                    if let Some((_, first)) = named.iter().find(|(other, _)| *other == name.value) {
                        let problem = format!(
                            "found {:?}, which is the name of the cluster at {} already",
                            name.value, first.place
                        );
                        self.errors.push(name.error(problem));
                    }
                    name.value.clone()
                }
                None if only => DEFAULT_CLUSTER.to_owned(),
                None => {
                    self.missing(&cluster, "name", "missing: each of several clusters needs one");
                    continue;
                }
            };
            named.push((name, cluster));
        }
        named
    }

    fn missing(&mut self, cluster: &FileCluster, key: &str, problem: &str) {
        let key = format!("{}{key}", cluster.prefix);
        self.errors.push(ConfigError { place: cluster.place.clone(), key, problem: problem.to_owned() });
    }

    fn listeners(
        &mut self,
        clusters: &[(String, FileCluster)],
        tables: Vec<FileListener>,
        admin: &Found<Address>,
    ) -> Vec<ListenerConfig> {
        let usual = |file: &FileListener| UsualAuth { auth: file.auth.clone(), users_file: file.users_file.clone() };
        let named = clusters.iter().map(|(name, cluster)| (name.clone(), usual(&cluster.listener)));
        let mut listeners = Listeners::new(self.sources, named.collect());
        let alone = clusters.len() == 1 && tables.is_empty();
        for (name, cluster) in clusters {
            listeners.of_cluster(name, &cluster.listener, alone, self.errors);
        }
        for table in tables {
            listeners.of_table(table, self.errors);
        }
        // One whose name is wrong somewhere is not to be blamed for that as well.
        if self.errors.is_empty() {
            for name in listeners.unreached() {
                let cluster = clusters.iter().find(|(other, _)| other == name).map(|(_, cluster)| cluster);
                let place = cluster.map(|cluster| cluster.place.clone()).unwrap_or_default();
                let problem = "no listener leads to it: expected `listen` here, or its name in a [[listener]] table";
                let key = format!("cluster[{name}]");
                self.errors.push(ConfigError { place, key, problem: problem.to_owned() });
            }
        }
        for (_, cluster) in clusters {
            // With `users` it may be meant for listeners that say so themselves.
            let FileListener { auth, users_file, .. } = &cluster.listener;
            let read = auth.as_ref().is_some_and(|auth| auth.value == AuthKind::Users);
            if let Some(file) = users_file.as_ref().filter(|_| !read) {
                self.errors.push(file.error("is read with auth = \"users\" only".to_owned()));
            }
        }
        self.looked_up = listeners.looked_up();
        self.effective.listeners = listeners.effective();
        listeners.apart(admin, self.errors)
    }

    /// The value of `low`, which must not be above that of `high`. Asked for, it is a mistake there; otherwise it is
    /// lowered.
    fn below(&mut self, layers: &Layers<'_>, low: &Limit, high: &Limit) -> u64 {
        let (value, bound) = (layers.value(low), layers.value(high));
        match layers.asked(low) {
            Some(asked) if value > bound && layers.is_sound(high) => {
                let problem = format!("found {value}, expected at most {}, which is {bound}", high.key);
                self.errors.push(asked.error(problem));
            }
            _ => (),
        }
        value.min(bound)
    }

    fn address(
        &mut self,
        key: &str,
        flag: Option<Address>,
        file: Option<Found<Address>>,
        (host, port): (&str, u16),
    ) -> Found<Address> {
        let flag = flag.map(|flag| Found::of(self.sources.origin(key), key, flag));
        flag.or(file).unwrap_or_else(|| Found::of("default", key, Address::tcp(host, port)))
    }

    /// Where telemetry goes, if this program can send any.
    fn otlp_endpoint(&mut self, file: Option<Found<String>>) -> Option<String> {
        let given = self.sources.otlp_endpoint.clone();
        let given = given
            .map(|endpoint| Found::of(self.sources.origin("otlp_endpoint"), "otlp_endpoint", endpoint))
            .or(file)?;
        if !cfg!(feature = "otel") {
            let problem =
                "this program was built without the feature otel: leave it out, or build with --features otel";
            self.errors.push(given.error(problem.to_owned()));
        }
        Some(given.value)
    }

    /// Who may ask for more than probes and metrics.
    fn admin_access(
        &mut self,
        admin: &Found<Address>,
        tls: Option<&ListenerTls>,
        tokens: Option<Found<PathBuf>>,
        probes_only: Option<Found<bool>>,
    ) -> AdminAccess {
        let tokens = self.sources.admin_token_file.clone().or(tokens.map(|found| found.value));
        let certificates = tls.is_some_and(|tls| tls.client_certificates != ClientCertificates::None);
        let asked = probes_only.filter(|found| found.value);
        let probes_only = self.sources.admin_probes_only || asked.is_some();
        if tokens.is_some() && tls.is_none() && !admin.value.is_loopback() {
            self.warnings.push(Warning(format!(
                "{}: {}: tokens travel in the clear to `{}`, where others may read and use them: set admin_tls = true, or let \
                 TLS end right before the port",
                admin.place, admin.key, admin.value
            )));
        }
        if tokens.is_some() || certificates {
            if probes_only {
                let key = if tokens.is_some() {
                    "admin_token_file, whose tokens"
                } else {
                    "admin_tls_ca_file, whose certificates"
                };
                let at = asked
                    .unwrap_or_else(|| Found::of(self.sources.origin("admin_probes_only"), "admin_probes_only", true));
                self.errors.push(at.error(format!("found beside {key} would open nothing")));
            }
            return AdminAccess::Proven { tokens, certificates };
        }
        if probes_only {
            return AdminAccess::ProbesOnly;
        }
        if !admin.value.is_loopback() {
            self.errors.push(admin.error(format!(
                "found `{}`, which other machines may reach: expected a loopback address, a unix socket, admin_token_file = \
                 \"FILE\" for whoever knows a token, admin_tls_ca_file = \"FILE\" for whoever has a certificate, or \
                 admin_probes_only = true, where everybody gets probes and metrics and nobody more (--admin-token-file, \
                 --admin-probes-only)",
                admin.value
            )));
        }
        AdminAccess::Loopback
    }

    /// What is in force of the keys that the program has once, as far as it does not depend on others.
    fn program_settings(
        &self,
        file: &Values,
        said: &Said,
        admin: &Found<Address>,
        tls: Option<&ListenerTls>,
    ) -> Settings {
        let none = Values::new();
        let layers = Layers { uri: &none, file, profile: self.profile };
        let mut settings = Settings::of(&[Place::Program], said, Some(&layers));
        let Sources { profile, admin_token_file, admin_probes_only, upgrade_socket, otlp_endpoint, .. } = self.sources;
        if let Some(profile) = profile {
            settings.set("profile", profile.name(), self.sources.origin("profile"));
        }
        settings.set("admin", admin.value.to_string(), &admin.place);
        for (key, file) in [("admin_token_file", admin_token_file), ("upgrade_socket", upgrade_socket)] {
            if let Some(file) = file {
                settings.set(key, file.display().to_string(), self.sources.origin(key));
            }
        }
        if let Some(endpoint) = otlp_endpoint {
            settings.set("otlp_endpoint", endpoint.clone(), self.sources.origin("otlp_endpoint"));
        }
        if *admin_probes_only {
            settings.set("admin_probes_only", true, self.sources.origin("admin_probes_only"));
        }
        if let Some(tls) = tls {
            settings.set_unless_said(said, "admin_tls_min_version", word_of(tls.min_version), "default");
        }
        settings
    }

    fn program(
        &mut self,
        mut clusters: Option<Vec<ClusterConfig>>,
        listeners: Vec<ListenerConfig>,
        (admin, admin_access, admin_tls): (Address, AdminAccess, Option<ListenerTls>),
        file: &Values,
    ) -> Option<Config> {
        let none = Values::new();
        let layers = Layers { uri: &none, file, profile: self.profile };
        let memory_limit = match (layers.asked(&limits::MEMORY_LIMIT_BYTES), self.sources.container_memory_bytes) {
            (None, Some(container)) => (container / limits::CONTAINER_SHARE)
                .clamp(limits::MEMORY_LIMIT_BYTES.min, limits::MEMORY_LIMIT_BYTES.default),
            _ => layers.value(&limits::MEMORY_LIMIT_BYTES),
        };
        let max_message = self.max_message(&layers, memory_limit);
        self.room_for_compressed(clusters.as_deref().unwrap_or_default(), memory_limit);
        let most_waiting = memory_limit / 2;
        for cluster in clusters.iter_mut().flatten() {
            cluster.wait_queue_bytes = cluster.wait_queue_bytes.min(saturating_usize(most_waiting));
        }
        for Found { value, place, key } in &self.queue_bytes {
            if let Some(value) = value.filter(|value| *value > most_waiting) {
                let memory = limits::MEMORY_LIMIT_BYTES.key;
                self.warnings.push(Warning(format!(
                    "{place}: {key}: found {value}, of which {most_waiting} count: half of {memory}, which is {memory_limit}"
                )));
            }
        }
        let drain_quiet = self.below(&layers, &limits::DRAIN_QUIET, &limits::DRAIN_TIMEOUT);
        let Effective { program: settings, clusters: tables, .. } = &mut self.effective;
        settings.adjust(limits::MEMORY_LIMIT_BYTES.key, memory_limit, "but half of the container's memory");
        settings.adjust(limits::MAX_MESSAGE_BYTES.key, max_message, "but what memory_limit_bytes has room for");
        settings.adjust(limits::DRAIN_QUIET.key, drain_quiet, "but at most drain_timeout_ms");
        for (table, cluster) in tables.iter_mut().zip(clusters.iter().flatten()) {
            let bytes = cluster.wait_queue_bytes as u64;
            table.settings.adjust(limits::WAIT_QUEUE_BYTES.key, bytes, "but at most half of memory_limit_bytes");
        }
        let drain_quiet = ms(drain_quiet);
        Some(Config {
            clusters: clusters?,
            listeners,
            admin,
            admin_access,
            otlp_endpoint: None,
            admin_tls,
            client: ClientConfig {
                max_clients: layers.size(&limits::MAX_CLIENTS),
                max_clients_per_address: layers
                    .count_or_off(&limits::MAX_CLIENTS_PER_ADDRESS)
                    .map(|most| saturating_usize(most.into())),
                idle_timeout: layers.duration_or_off(&limits::CLIENT_IDLE_TIMEOUT),
                handshake_timeout: layers.duration(&limits::HANDSHAKE_TIMEOUT),
                failed_log_ins: layers.count_or_off(&limits::FAILED_LOG_INS),
                stall_timeout: layers.duration(&limits::CLIENT_STALL_TIMEOUT),
                max_message_bytes: saturating_usize(max_message),
            },
            memory_limit_bytes: saturating_usize(memory_limit),
            times: super::Times {
                monitor_interval: layers.duration(&limits::MONITOR_INTERVAL),
                drain_timeout: layers.duration(&limits::DRAIN_TIMEOUT),
                drain_quiet,
            },
            reload_on_change: Vec::new(),
            upgrade_socket: None,
            worker_threads: layers.size(&limits::WORKER_THREADS),
            effective: std::mem::take(&mut self.effective),
        })
    }

    /// A reply that comes compressed takes memory in both forms, and the largest one must find room as well.
    fn room_for_compressed(&mut self, clusters: &[ClusterConfig], memory_limit: u64) {
        let needed = 2 * limits::LARGEST_REPLY_BYTES;
        if MemoryShares::of(memory_limit).replies as u64 >= needed {
            return;
        }
        for cluster in clusters.iter().filter(|cluster| !cluster.upstream.compression.compressors.is_empty()) {
            let (key, least) = (limits::MEMORY_LIMIT_BYTES.key, MemoryShares::least_for_replies_of(needed));
            let problem = format!("{key} is {memory_limit}, expected at least {least}, or no compressors");
            let place = format!("connection string of cluster {}", cluster.name);
            self.errors.push(ConfigError { place, key: "compressors".to_owned(), problem });
        }
    }

    /// One message must fit into what requests may take of the memory. The rule of [`Self::below`], but the limit may come
    /// from the container.
    fn max_message(&mut self, layers: &Layers<'_>, memory_limit: u64) -> u64 {
        let limit = &limits::MAX_MESSAGE_BYTES;
        let value = layers.value(limit);
        let most = MemoryShares::of(memory_limit).largest_request() as u64;
        if value > most && layers.is_sound(&limits::MEMORY_LIMIT_BYTES) {
            let key = limits::MEMORY_LIMIT_BYTES.key;
            match layers.asked(limit) {
                Some(asked) => {
                    let problem = format!(
                        "found {value}, expected at most {most}, as {key} is {memory_limit} and others need room"
                    );
                    self.errors.push(asked.error(problem));
                }
                None => self.warnings.push(Warning(format!(
                    "messages are limited to {most} bytes instead of {value}, as {key} leaves no room for more"
                ))),
            }
        }
        value.min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::Text;
    use super::super::{CredentialFile, ShownSet};
    use super::*;

    /// Sources that consist of a file.
    fn file(text: &str) -> Sources {
        let file = Text { name: "mongomux.toml".to_owned(), text: text.to_owned() };
        Sources { file: Some(file), ..Sources::default() }
    }

    fn with_uri(sources: Sources, uri: &str) -> Sources {
        let upstream = Text { name: "connection string".to_owned(), text: uri.to_owned() };
        Sources { upstream: Some(upstream), ..sources }
    }

    fn loaded(sources: &Sources) -> (Config, Vec<String>) {
        let (config, warnings) = Config::load(sources).unwrap_or_else(|errors| panic!("{errors}"));
        (config, warnings.iter().map(Warning::to_string).collect())
    }

    fn addresses(config: &Config) -> Vec<String> {
        config.listeners.iter().map(|listener| listener.listen.to_string()).collect()
    }

    fn cluster(sources: &Sources) -> ClusterConfig {
        loaded(sources).0.clusters.remove(0)
    }

    fn mistakes(sources: &Sources) -> Vec<String> {
        Config::load(sources).map_or_else(|errors| errors.0.iter().map(ConfigError::to_string).collect(), |_| vec![])
    }

    #[test]
    fn nothing_said_gives_the_defaults() {
        let (config, warnings) = loaded(&Sources::default());
        assert_eq!(warnings, [""; 0]);
        assert_eq!(config.clusters.len(), 1);
        assert_eq!(config.clusters[0].name, "default");
        assert_eq!(addresses(&config), ["127.0.0.1:27016"]);
        assert_eq!(config.admin, Address::tcp("127.0.0.1", 9627));
        assert!(config.clusters[0].upstream.redacted.contains("127.0.0.1:27017"));
        assert_eq!(config.memory_limit_bytes, 512 << 20);
        let shown = config.to_string();
        assert!(shown.contains("cluster default: mongodb://127.0.0.1:27017"), "{shown}");
        assert!(shown.contains("listener 127.0.0.1:27016 -> default\n"), "{shown}");
    }

    #[test]
    fn three_mistakes_of_three_sources_make_three_lines() {
        let sources = Sources {
            listen: vec![Address::tcp("0.0.0.0", 27016)],
            ..with_uri(file("wait_queue_size = 0"), "mongodb://db/?maxPoolSize=10001")
        };
        let errors = Config::load(&sources).err().unwrap().to_string();
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), 3, "{errors}");
        assert_eq!(lines[0], "mongomux.toml:1: wait_queue_size: found 0, expected 1 to 1000000 commands");
        assert!(lines[1].starts_with("command line or environment: listen: found `0.0.0.0:27016`"), "{errors}");
        assert_eq!(lines[2], "connection string: maxPoolSize: found 10001, expected 1 to 10000 connections");
    }

    #[test]
    fn connection_string_beats_file_beats_profile_beats_default() {
        let production = |sources| Sources { profile: Some(Profile::Production), ..sources };
        for (sources, idle_ms) in [
            (Sources::default(), 30_000),
            (production(Sources::default()), 45_000),
            (production(file("max_idle_time_ms = 40000")), 40_000),
            (production(with_uri(file("max_idle_time_ms = 40000"), "mongodb://db/?maxIdleTimeMS=35000")), 35_000),
            (with_uri(file("profile = \"production\""), "mongodb://db/?maxIdleTimeMS=35000"), 35_000),
        ] {
            assert_eq!(cluster(&sources).pool.max_idle_time, ms(idle_ms));
        }
    }

    #[test]
    fn flags_beat_the_file() {
        let text =
            "listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\nprofile = \"low\"\nupstream = \"mongodb://file\"";
        let (config, _) = loaded(&file(text));
        assert_eq!(addresses(&config), ["127.0.0.1:1"]);
        assert_eq!(config.admin, Address::tcp("127.0.0.1", 2));
        assert_eq!(config.clusters[0].pool.max_pool_size, 20);
        assert!(config.clusters[0].upstream.redacted.contains("file"));
        let flags = Sources {
            listen: vec![Address::tcp("127.0.0.1", 3), Address::tcp("127.0.0.1", 4)],
            admin: Some(Address::tcp("127.0.0.1", 5)),
            profile: Some(Profile::Worker),
            ..with_uri(file(text), "mongodb://flag\n")
        };
        let (config, _) = loaded(&flags);
        assert_eq!(addresses(&config), ["127.0.0.1:3", "127.0.0.1:4"]);
        assert_eq!(config.admin, Address::tcp("127.0.0.1", 5));
        assert_eq!(config.clusters[0].pool.max_pool_size, 5);
        assert!(config.clusters[0].upstream.redacted.contains("flag"));
    }

    #[test]
    fn every_option_of_the_connection_string_reaches_its_key() {
        let uri = "mongodb://db/?maxPoolSize=11&minPoolSize=3&maxConnecting=4&maxIdleTimeMS=5000&waitQueueTimeoutMS=6000\
                   &serverSelectionTimeoutMS=7000&connectTimeoutMS=8000&socketTimeoutMS=9000&heartbeatFrequencyMS=10001\
                   &localThresholdMS=12";
        let cluster = cluster(&with_uri(Sources::default(), uri));
        let pool = &cluster.pool;
        assert_eq!((pool.max_pool_size, pool.min_pool_size, pool.max_connecting), (11, 3, 4));
        assert_eq!((pool.max_idle_time, pool.connect_timeout), (ms(5_000), ms(8_000)));
        assert_eq!((cluster.wait_queue_timeout, cluster.server_selection_timeout), (ms(6_000), ms(7_000)));
        assert_eq!((cluster.pool.socket_timeout, cluster.heartbeat_frequency), (Some(ms(9_000)), ms(10_001)));
        assert_eq!(cluster.local_threshold, ms(12));
    }

    #[test]
    fn a_minimum_nobody_asked_for_gives_way_and_another_is_a_mistake() {
        let sized = |sources: &Sources| {
            let pool = cluster(sources).pool;
            (pool.min_pool_size, pool.max_pool_size)
        };
        assert_eq!(sized(&file("max_pool_size = 1")), (1, 1));
        assert_eq!(sized(&file("profile = \"high-availability\"\nmax_pool_size = 50")), (50, 50));
        assert_eq!(sized(&with_uri(file("profile = \"medium\""), "mongodb://db/?maxPoolSize=4")), (4, 4));
        assert_eq!(
            mistakes(&file("max_pool_size = 5\nmin_pool_size = 6")),
            ["mongomux.toml:2: min_pool_size: found 6, expected at most max_pool_size, which is 5"]
        );
        assert_eq!(
            mistakes(&with_uri(file("min_pool_size = 3"), "mongodb://db/?maxPoolSize=2")),
            ["mongomux.toml:1: min_pool_size: found 3, expected at most max_pool_size, which is 2"]
        );
        assert_eq!(
            mistakes(&with_uri(Sources::default(), "mongodb://db/?minPoolSize=11")),
            ["connection string: minPoolSize: found 11, expected at most max_pool_size, which is 10"]
        );
    }

    #[test]
    fn a_shown_replica_set_has_a_name_that_is_known_at_the_start() {
        let set = |text: &str, uri: &str| cluster(&with_uri(file(text), uri)).shown_set.unwrap();
        let shown = "presentation = \"replica-set\"\n";
        let named = format!("{shown}replica_set_name = \"other\"\nadvertised_address = \"Proxy.example:27016\"");
        let address = Some(Address::tcp("proxy.example", 27016));
        let expected = |name: &str, address| ShownSet { name: name.to_owned(), address };
        assert_eq!(set(shown, "mongodb://db/?replicaSet=rs0"), expected("rs0", None));
        assert_eq!(set(&named, "mongodb://db/?replicaSet=rs0"), expected("other", address.clone()));
        assert_eq!(set(&named, "mongodb://db"), expected("other", address));
        for (text, uri, word) in [
            (
                shown,
                "mongodb://a,b",
                "mongomux.toml:1: presentation: found \"replica-set\", which needs replica_set_name",
            ),
            (&format!("{shown}replica_set_name = \"\""), "mongodb://a", "replica_set_name: found a name of 0 bytes"),
            (&format!("{shown}replica_set_name = \"{}\"", "x".repeat(129)), "mongodb://a", "of 129 bytes"),
            (&format!("{named}\n").replace(":27016", ":0"), "mongodb://a", "advertised_address: found port 0"),
            ("replica_set_name = \"a\"", "mongodb://a", "only with presentation = \"replica-set\""),
            ("presentation = \"mongos\"\nadvertised_address = \"a:1\"", "mongodb://a", "only with presentation"),
        ] {
            let told = mistakes(&with_uri(file(text), uri));
            assert!(told.len() == 1 && told[0].contains(word), "{text}: {told:?}");
        }
        assert_eq!(cluster(&file("presentation = \"mongos\"")).shown_set, None);
    }

    #[test]
    fn compressors_need_room_for_replies_in_both_forms() {
        let with =
            |limit: u64| with_uri(file(&format!("memory_limit_bytes = {limit}")), "mongodb://db/?compressors=zstd");
        let least = 8 * limits::LARGEST_REPLY_BYTES;
        loaded(&with(least));
        let told = mistakes(&with(least - 4));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].contains("compressors: memory_limit_bytes is") && told[0].contains(&least.to_string()),
            "{told:?}"
        );
        loaded(&with_uri(file("memory_limit_bytes = 42000000"), "mongodb://db"));
    }

    #[test]
    fn a_refused_value_is_not_blamed_twice() {
        assert_eq!(mistakes(&file("max_pool_size = 0\nmin_pool_size = 200")).len(), 1);
        assert_eq!(mistakes(&file("memory_limit_bytes = 1\nmax_message_bytes = 48000000")).len(), 1);
    }

    #[test]
    fn pairs_that_depend_on_each_other_are_checked() {
        assert_eq!(
            mistakes(&file(
                "drain_quiet_ms = 2\ndrain_timeout_ms = 1\nmemory_limit_bytes = 50000000\nmax_message_bytes = 30000000\n\
                 [breaker]\nopen_initial_ms = 70000\n[reconnect]\ninitial_ms = 50\nmax_ms = 10\n"
            )),
            [
                "mongomux.toml:6: breaker.open_initial_ms: found 70000, expected at most breaker.open_max_ms, which is 60000",
                "mongomux.toml:8: reconnect.initial_ms: found 50, expected at most reconnect.max_ms, which is 10",
                "mongomux.toml:4: max_message_bytes: found 30000000, expected at most 22560282, as memory_limit_bytes is 50000000 and others need room",
                "mongomux.toml:1: drain_quiet_ms: found 2, expected at most drain_timeout_ms, which is 1",
            ]
        );
        // Defaults give way to what was asked for.
        let (config, _) = loaded(&file("drain_timeout_ms = 1000\nreconnect.max_ms = 10"));
        assert_eq!((config.times.drain_quiet, config.clusters[0].reconnect.initial), (ms(1_000), ms(10)));
    }

    #[test]
    fn half_of_a_small_container_is_ours_unless_the_file_says_otherwise() {
        let container = |bytes, sources| Sources { container_memory_bytes: Some(bytes), ..sources };
        let memory = |sources: &Sources| loaded(sources).0.memory_limit_bytes;
        assert_eq!(memory(&container(1 << 40, Sources::default())), 512 << 20);
        assert_eq!(memory(&container(256 << 20, Sources::default())), 128 << 20);
        assert_eq!(memory(&container(256 << 20, file("memory_limit_bytes = 100000000"))), 100_000_000);
        let (config, warnings) = loaded(&container(128 << 20, Sources::default()));
        assert_eq!((config.memory_limit_bytes, config.client.max_message_bytes), (64 << 20, 34_589_952));
        assert_eq!(config.clusters[0].wait_queue_bytes, 32 << 20, "requests that are refused have to be read as well");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        // Half of it is too little for one message each way: the least that works instead.
        for tiny in [1 << 20, 64 << 20] {
            let (config, _) = loaded(&container(tiny, Sources::default()));
            assert_eq!(config.memory_limit_bytes as u64, limits::MEMORY_LIMIT_BYTES.min);
            assert!(config.client.max_message_bytes as u64 >= limits::MAX_MESSAGE_BYTES.min);
        }
    }

    #[test]
    fn a_password_stands_in_the_connection_string_or_in_a_file() {
        let with = |uri: &str| file(&format!("upstream = \"{uri}\"\nupstream_password_file = \"/run/secret\"\n"));
        let (config, _) = loaded(&with("mongodb://service@db,other/?authSource=x"));
        let cluster = &config.clusters[0];
        assert_eq!(cluster.credential_file, Some(CredentialFile::Password("/run/secret".into())));
        let credential = cluster.upstream.credential.as_ref().unwrap();
        assert_eq!((credential.username.as_deref(), credential.source.as_str()), (Some("service"), "x"));
        let place = "mongomux.toml:2: upstream_password_file: the connection string";
        assert_eq!(
            mistakes(&with("mongodb://db")),
            [format!("{place} names no user: expected mongodb://USER@..., with the password in this file")]
        );
        assert_eq!(
            mistakes(&with("mongodb://service:hunter2@db")),
            [format!("{place} has a password already: expected one of both")]
        );
        let (config, _) =
            loaded(&Sources { upstream_file: Some("u".into()), ..with_uri(Sources::default(), "mongodb://a:b@db") });
        assert_eq!(config.clusters[0].credential_file, Some(CredentialFile::ConnectionString("u".into())));
        let (config, _) =
            loaded(&Sources { upstream_file: Some("u".into()), ..with_uri(Sources::default(), "mongodb://db") });
        assert_eq!(config.clusters[0].credential_file, None);
    }

    #[test]
    fn zero_means_off_or_never() {
        let text = "socket_timeout_ms = 0\ncommand_timeout_ms = 0\nmax_in_flight = 0\nmax_upstream_connections = 0\n\
                    client_idle_timeout_ms = 0\nmax_idle_time_ms = 0\nmax_lifetime_ms = 0\nlong_held_ms = 0\n\
                    transaction_idle_timeout_ms = 0\n";
        let (config, _) = loaded(&Sources { profile: Some(Profile::Serverless), ..file(text) });
        let cluster = &config.clusters[0];
        assert_eq!((cluster.pool.socket_timeout, cluster.command_timeout, cluster.max_in_flight), (None, None, None));
        assert_eq!((cluster.max_upstream_connections, config.client.idle_timeout), (None, None));
        assert_eq!((cluster.pool.max_idle_time, cluster.pool.max_lifetime), (limits::NEVER, limits::NEVER));
        assert_eq!((cluster.long_held, cluster.transaction_idle_timeout), (limits::NEVER, None));
    }

    #[test]
    fn listeners_that_others_reach_need_an_explicit_word() {
        let text = "listen = [\"127.0.0.1:1\", \"0.0.0.0:2\", \"unix:/run/a\", \"db.example.net:3\", \"[::1]:4\"]";
        let told = mistakes(&file(text));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("mongomux.toml:1: listen: found `0.0.0.0:2`"), "{told:?}");
        assert!(told[0].contains("allow_unauthenticated_clients = true"), "{told:?}");
        assert_eq!(mistakes(&file(&format!("{text}\nallow_unauthenticated_clients = true"))), [""; 0]);
        assert_eq!(mistakes(&Sources { allow_unauthenticated_clients: true, ..file(text) }), [""; 0]);
        assert_eq!(mistakes(&file(&format!("{text}\nallow_unauthenticated_clients = false"))).len(), 2);
    }

    #[test]
    fn an_admin_port_that_others_reach_says_who_may_use_it() {
        let open = "admin = \"0.0.0.0:1\"\n";
        let told = mistakes(&file(open));
        assert!(told.len() == 1 && told[0].starts_with("mongomux.toml:1: admin: found `0.0.0.0:1`"), "{told:?}");
        let access = |sources: &Sources| loaded(sources).0.admin_access;
        let tokens = AdminAccess::Proven { tokens: Some("/tokens".into()), certificates: false };
        assert_eq!(access(&file("")), AdminAccess::Loopback);
        assert_eq!(access(&file("admin = \"unix:/a\"")), AdminAccess::Loopback);
        assert_eq!(access(&file("admin_token_file = \"/tokens\"")), tokens);
        assert_eq!(access(&file("admin_probes_only = true")), AdminAccess::ProbesOnly);
        assert_eq!(access(&file(&format!("{open}admin_token_file = \"/tokens\""))), tokens);
        assert_eq!(access(&file(&format!("{open}admin_probes_only = true"))), AdminAccess::ProbesOnly);
        let flags = Sources { admin_token_file: Some("/tokens".into()), ..file("admin_token_file = \"/other\"") };
        assert_eq!(access(&flags), tokens, "a flag beats the file");
        assert_eq!(access(&Sources { admin_probes_only: true, ..file(open) }), AdminAccess::ProbesOnly);
        let both = mistakes(&file("admin_token_file = \"/tokens\"\nadmin_probes_only = true"));
        assert!(both.len() == 1 && both[0].starts_with("mongomux.toml:2: admin_probes_only"), "{both:?}");
        assert_eq!(mistakes(&Sources { admin_probes_only: true, ..file("admin_token_file = \"/tokens\"") }).len(), 1);
    }

    #[test]
    fn several_clusters_have_pools_of_their_own_and_must_say_what_they_are() {
        let text = "profile = \"low\"\n[[cluster]]\nname = \"b\"\nlisten = \"127.0.0.1:1\"\nupstream = \"mongodb://a\"\n\
                    max_pool_size = 3\n[[cluster]]\nname = \"a\"\nlisten = \"127.0.0.1:2\"\n\
                    upstream = \"mongodb://b/?maxPoolSize=4\"\n";
        let (config, _) = loaded(&file(text));
        let pools: Vec<_> = config.clusters.iter().map(|it| (it.name.as_str(), it.pool.max_pool_size)).collect();
        assert_eq!(pools, [("b", 3), ("a", 4)], "in the order of the file");
        assert_eq!(
            mistakes(&file("[[cluster]]\nname = \"a\"\n[[cluster]]\nmax_pool_size = 3\n[[cluster]]\nname = \"a\"\n")),
            [
                "mongomux.toml:3: cluster[2].name: missing: each of several clusters needs one",
                "mongomux.toml:6: cluster[a].name: found \"a\", which is the name of the cluster at mongomux.toml:1 already",
                "mongomux.toml:1: cluster[a].upstream: missing: with several clusters nothing can be assumed",
                "mongomux.toml:5: cluster[a].upstream: missing: with several clusters nothing can be assumed",
            ]
        );
        let flags = Sources { listen: vec![Address::tcp("127.0.0.1", 3)], ..with_uri(file(text), "mongodb://c") };
        let told = mistakes(&flags);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].ends_with("which cluster is meant? The file has several, so it must be said there"),
            "{told:?}"
        );
    }

    #[test]
    fn one_table_is_as_good_as_keys_at_the_top() {
        let (config, _) = loaded(&file("[[cluster]]\nmax_pool_size = 3"));
        assert_eq!((config.clusters[0].name.as_str(), config.clusters[0].pool.max_pool_size), ("default", 3));
        assert_eq!(addresses(&config), ["127.0.0.1:27016"]);
        let flags = Sources { listen: vec![Address::tcp("127.0.0.1", 3)], ..file("[[cluster]]\nname = \"users\"") };
        let (config, _) = loaded(&with_uri(flags, "mongodb://flag"));
        assert_eq!((config.clusters[0].name.as_str(), addresses(&config)), ("users", vec!["127.0.0.1:3".to_owned()]));
        assert!(config.clusters[0].upstream.redacted.contains("flag"));
    }

    #[test]
    fn a_wrong_connection_string_is_told_with_its_place_and_without_its_password() {
        let told = mistakes(&file("max_clients = 0\nupstream = \"mysql://root:hunter2@db\"\n"));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[1].starts_with("mongomux.toml:2: upstream: "), "{told:?}");
        assert!(!told.concat().contains("hunter2"), "{told:?}");
    }

    #[test]
    fn no_limit_is_no_option_for_the_pool() {
        for uri in
            ["mongodb://db/?maxPoolSize=0", "mongodb://db/?waitQueueTimeoutMS=0", "mongodb://db/?connectTimeoutMS=0"]
        {
            let told = mistakes(&with_uri(Sources::default(), uri));
            assert_eq!(told.len(), 1, "{uri}: {told:?}");
            assert!(told[0].starts_with("connection string: "), "{told:?}");
        }
    }

    #[test]
    fn ignored_options_of_the_connection_string_are_warned_about() {
        let (_, warnings) = loaded(&with_uri(Sources::default(), "mongodb://db/?readPreference=secondary"));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].starts_with("connection string: ") && warnings[0].contains("readPreference"),
            "{warnings:?}"
        );
    }

    #[test]
    fn every_profile_is_in_force() {
        // max, min, idle, wait, in flight, command limit; as documented.
        let rows = [
            (Profile::Default, 10, 2, 30_000, 5_000, None, None),
            (Profile::Development, 10, 2, 60_000, 5_000, None, None),
            (Profile::Low, 20, 2, 30_000, 5_000, None, None),
            (Profile::Medium, 50, 10, 30_000, 5_000, None, None),
            (Profile::High, 200, 50, 30_000, 5_000, None, None),
            (Profile::Production, 200, 50, 45_000, 5_000, None, None),
            (Profile::HighAvailability, 300, 100, 30_000, 5_000, None, None),
            (Profile::Constrained, 20, 5, 30_000, 3_000, None, None),
            (Profile::Worker, 5, 1, 30_000, 5_000, None, None),
            (Profile::Serverless, 5, 0, 30_000, 10_000, Some(3), Some(6_000)),
        ];
        assert_eq!(rows.len(), Profile::ALL.len());
        for (profile, max, min, idle, wait, in_flight, command) in rows {
            let cluster = cluster(&Sources { profile: Some(profile), ..Sources::default() });
            assert_eq!((cluster.pool.max_pool_size, cluster.pool.min_pool_size), (max, min), "{profile}");
            assert_eq!((cluster.pool.max_idle_time, cluster.wait_queue_timeout), (ms(idle), ms(wait)), "{profile}");
            assert_eq!((cluster.max_in_flight, cluster.command_timeout), (in_flight, command.map(ms)), "{profile}");
            assert_eq!(cluster.pool.connect_timeout, ms(10_000), "{profile}");
        }
    }
}
