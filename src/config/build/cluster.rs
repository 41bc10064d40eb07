//! One cluster: its connection string, and what the string, the file and the profile say about it.

use std::time::Duration;

use zeroize::Zeroizing;

use super::{Builder, DEFAULT_UPSTREAM};
use crate::config::effective::{self, Settings};
use crate::config::fairness::TenantBounds;
use crate::config::file::FileCluster;
use crate::config::keys::Place;
use crate::config::layers::{Layers, ms, saturating_u32};
use crate::config::limits;
use crate::config::presentation::shown_set;
use crate::config::reader::{Found, Values};
use crate::config::uri::{self, Upstream, UriOverrides};
use crate::config::vain;
use crate::config::{
    BackoffConfig, BreakerConfig, ClusterConfig, ConfigError, CredentialFile, FairBy, FairnessConfig, PoolConfig,
    PoolingConfig, Presentation, QueueDiscipline, Retry, Warning,
};
use crate::telemetry::logs::redact;

impl Builder<'_> {
    /// `None` if the connection string of any cannot be understood at all.
    pub(super) fn clusters(&mut self, named: Vec<(String, FileCluster)>) -> Option<Vec<ClusterConfig>> {
        let several = named.len() > 1;
        let flags = [
            (self.sources.upstream.is_some(), "upstream"),
            (!self.sources.listen.is_empty(), "listen"),
            (self.sources.allow_unauthenticated_clients, "allow_unauthenticated_clients"),
        ];
        for (_, key) in flags.into_iter().filter(|(given, _)| *given && several) {
            let problem = "which cluster is meant? The file has several, so it must be said there".to_owned();
            self.errors.push(ConfigError { place: self.sources.origin(key).to_owned(), key: key.into(), problem });
        }
        let built: Vec<_> = named.into_iter().map(|(name, file)| self.cluster(name, file, several)).collect();
        built.into_iter().collect()
    }

    /// Users are looked up with the credential of the connection string.
    pub(super) fn can_look_up(&mut self, clusters: &[ClusterConfig]) {
        for (name, said) in self.looked_up.clone() {
            if clusters.iter().any(|cluster| cluster.name == name && cluster.upstream.credential.is_none()) {
                let problem = format!(
                    "found \"upstream\", and the connection string of cluster {name} has no credential: it needs one that may \
                     look users up"
                );
                self.errors.push(said.error(problem));
            }
        }
    }

    fn cluster(&mut self, name: String, file: FileCluster, several: bool) -> Option<ClusterConfig> {
        if several && file.upstream.is_none() {
            self.missing(&file, "upstream", "missing: with several clusters nothing can be assumed");
        }
        let given = self.sources.upstream.as_ref().filter(|_| !several);
        let given = given.map(|given| Found::of(&given.name, "", Zeroizing::new(given.text.trim().to_owned())));
        let said_by = given.as_ref().map(|_| self.sources.origin("upstream").to_owned());
        let upstream = given.or_else(|| file.upstream.clone());
        let mut upstream =
            upstream.unwrap_or_else(|| Found::of("default", "upstream", Zeroizing::new(DEFAULT_UPSTREAM.to_owned())));
        let whole = self.sources.upstream_file.clone().filter(|_| !several).map(CredentialFile::ConnectionString);
        let credential_file = match &file.upstream_password_file {
            Some(password_file) => match uri::without_password(&upstream.value) {
                Ok(filled) => {
                    upstream.value = Zeroizing::new(filled);
                    Some(CredentialFile::Password(password_file.value.clone()))
                }
                Err(error) => {
                    self.errors.push(password_file.error(error.to_string()));
                    None
                }
            },
            None => whole,
        };
        // With mistakes there is one as well: what else is wrong with the cluster is told beside them.
        let (parsed, mistakes) = Upstream::read(&upstream.value);
        let told = mistakes.0.iter().map(|mistake| upstream.error(redact(&mistake.to_string()).into_owned()));
        self.errors.extend(told);
        let parsed = parsed?;
        let credential_file = credential_file.filter(|_| parsed.credential.is_some());
        let origin = said_by.unwrap_or_else(|| upstream.place.clone());
        Some(self.with_upstream(name, file, parsed, credential_file, (&upstream.place, &origin)))
    }

    fn with_upstream(
        &mut self,
        name: String,
        file: FileCluster,
        upstream: Upstream,
        credential_file: Option<CredentialFile>,
        (place, origin): (&str, &str),
    ) -> ClusterConfig {
        self.warnings.extend(upstream.warnings.iter().map(|text| Warning(format!("{place}: {}", redact(text)))));
        let uri = self.uri_values(&upstream.overrides, place);
        let layers = Layers { uri: &uri, file: &file.values, profile: self.profile };
        let max_pool_size = layers.count(&limits::MAX_POOL_SIZE);
        let min_pool_size = saturating_u32(self.below(&layers, &limits::MIN_POOL_SIZE, &limits::MAX_POOL_SIZE));
        // Connections of users are not known before they come, and the proxy's own need not be warm.
        let of_users = self.looked_up.iter().any(|(of, _)| *of == name);
        let min_pool_size = if of_users && layers.asked(&limits::MIN_POOL_SIZE).is_none() { 0 } else { min_pool_size };
        let shown_set = shown_set(&file, upstream.replica_set.as_deref(), self.errors);
        let mut settings = Settings::of(&[Place::ClusterTable, Place::Cluster], &file.said, Some(&layers));
        settings.set_upstream(&upstream, credential_file.is_some(), origin);
        settings.set("name", &*name, file.name.as_ref().map_or("default", |found| &found.place));
        if let Some(set) = &shown_set {
            let origin = "replicaSet of the connection string";
            settings.set_unless_said(&file.said, "replica_set_name", &*set.name, origin);
        }
        self.queue_bytes.extend(layers.asked(&limits::WAIT_QUEUE_BYTES).cloned());
        let cluster = ClusterConfig {
            name,
            upstream,
            credential_file,
            presentation: file.presentation.map_or(Presentation::Auto, |found| found.value),
            shown_set,
            pool: PoolConfig {
                max_pool_size,
                min_pool_size,
                max_user_connections: layers.count_or_off(&limits::MAX_USER_CONNECTIONS),
                max_connecting: layers.count(&limits::MAX_CONNECTING),
                max_idle_time: layers.duration_or_off(&limits::MAX_IDLE_TIME).unwrap_or(limits::NEVER),
                max_lifetime: layers.duration_or_off(&limits::MAX_LIFETIME).unwrap_or(limits::NEVER),
                connect_timeout: layers.duration(&limits::CONNECT_TIMEOUT),
                socket_timeout: layers.duration_or_off(&limits::SOCKET_TIMEOUT),
            },
            pooling: PoolingConfig::new(layers.count(&limits::POOLED_CLIENTS), file.pooled_databases),
            user_refresh: layers.duration(&limits::USER_REFRESH),
            fleet_size: layers.count_or_off(&limits::FLEET_SIZE),
            max_upstream_connections: layers.count_or_off(&limits::MAX_UPSTREAM_CONNECTIONS),
            wait_queue_size: layers.size(&limits::WAIT_QUEUE_SIZE),
            wait_queue_bytes: layers.size(&limits::WAIT_QUEUE_BYTES),
            wait_queue_timeout: layers.duration(&limits::WAIT_QUEUE_TIMEOUT),
            queue_discipline: if file.codel {
                QueueDiscipline::Codel {
                    target: ms(self.below(&layers, &limits::CODEL_TARGET, &limits::CODEL_INTERVAL)),
                    interval: layers.duration(&limits::CODEL_INTERVAL),
                }
            } else {
                QueueDiscipline::Fifo
            },
            fairness: FairnessConfig {
                by: file.fair_by.unwrap_or(FairBy::Application),
                all: TenantBounds {
                    weight: None,
                    max_in_flight: layers
                        .count_or_off(&limits::TENANT_MAX_IN_FLIGHT)
                        .and_then(|most| most.try_into().ok()),
                    max_waiting: layers.count_or_off(&limits::TENANT_MAX_WAITING).and_then(|most| most.try_into().ok()),
                },
                tenants: file.tenants,
                priorities: file.priorities,
            },
            server_selection_timeout: layers.duration(&limits::SERVER_SELECTION_TIMEOUT),
            command_timeout: layers.duration_or_off(&limits::COMMAND_TIMEOUT),
            slow_command: layers.duration_or_off(&limits::SLOW_COMMAND),
            long_held: layers.duration_or_off(&limits::LONG_HELD).unwrap_or(limits::NEVER),
            transaction_idle_timeout: layers.duration_or_off(&limits::TRANSACTION_IDLE_TIMEOUT),
            max_in_flight: layers.count_or_off(&limits::MAX_IN_FLIGHT),
            adaptive_limit: file.adaptive_limit,
            heartbeat_frequency: layers.duration(&limits::HEARTBEAT_FREQUENCY),
            local_threshold: layers.duration(&limits::LOCAL_THRESHOLD),
            health_check: layers.duration(&limits::HEALTH_CHECK),
            breaker: BreakerConfig {
                consecutive_failures: layers.count(&limits::BREAKER_CONSECUTIVE_FAILURES),
                success_rate: f64::from(layers.count(&limits::BREAKER_SUCCESS_RATE)) / 100.0,
                minimum_samples: layers.count(&limits::BREAKER_MINIMUM_SAMPLES),
                window: layers.duration(&limits::BREAKER_WINDOW),
                open_initial: ms(self.below(&layers, &limits::BREAKER_OPEN_INITIAL, &limits::BREAKER_OPEN_MAX)),
                open_max: layers.duration(&limits::BREAKER_OPEN_MAX),
            },
            reconnect: BackoffConfig {
                initial: ms(self.below(&layers, &limits::RECONNECT_INITIAL, &limits::RECONNECT_MAX)),
                max: layers.duration(&limits::RECONNECT_MAX),
            },
            retry: file.retry.unwrap_or(Retry::Driver),
            degraded_reads: file.degraded_reads.into(),
        };
        let why = if of_users { "but users have connections of their own" } else { "but at most max_pool_size" };
        settings.adjust(limits::MIN_POOL_SIZE.key, min_pool_size.into(), why);
        for (limit, in_force, bound) in [
            (limits::BREAKER_OPEN_INITIAL, cluster.breaker.open_initial, limits::BREAKER_OPEN_MAX),
            (limits::RECONNECT_INITIAL, cluster.reconnect.initial, limits::RECONNECT_MAX),
        ] {
            settings.adjust(limit.key, millis(in_force), &format!("but at most {}", bound.key));
        }
        if let QueueDiscipline::Codel { target, .. } = cluster.queue_discipline {
            let why = format!("but at most {}", limits::CODEL_INTERVAL.key);
            settings.adjust(limits::CODEL_TARGET.key, millis(target), &why);
        }
        self.effective.clusters.push(effective::Table { name: cluster.name.clone(), settings });
        let vain = vain::of_cluster(&cluster, &layers, self.log_ins);
        self.warnings.extend(vain.into_iter().map(|text| Warning(format!("cluster {}: {text}", cluster.name))));
        cluster
    }

    /// What the connection string says about limits, checked like the file.
    fn uri_values(&mut self, overrides: &UriOverrides, place: &str) -> Values {
        let count = |value: Option<u32>| value.map(u64::from);
        let given = [
            ("maxPoolSize", &limits::MAX_POOL_SIZE, count(overrides.max_pool_size)),
            ("minPoolSize", &limits::MIN_POOL_SIZE, count(overrides.min_pool_size)),
            ("maxConnecting", &limits::MAX_CONNECTING, count(overrides.max_connecting)),
            ("maxIdleTimeMS", &limits::MAX_IDLE_TIME, overrides.max_idle_time.map(millis)),
            ("waitQueueTimeoutMS", &limits::WAIT_QUEUE_TIMEOUT, overrides.wait_queue_timeout.map(millis)),
            (
                "serverSelectionTimeoutMS",
                &limits::SERVER_SELECTION_TIMEOUT,
                overrides.server_selection_timeout.map(millis),
            ),
            ("connectTimeoutMS", &limits::CONNECT_TIMEOUT, overrides.connect_timeout.map(millis)),
            ("socketTimeoutMS", &limits::SOCKET_TIMEOUT, overrides.socket_timeout.map(millis)),
            ("heartbeatFrequencyMS", &limits::HEARTBEAT_FREQUENCY, overrides.heartbeat_frequency.map(millis)),
            ("localThresholdMS", &limits::LOCAL_THRESHOLD, overrides.local_threshold.map(millis)),
        ];
        let mut values = Values::new();
        for (option, limit, value) in
            given.into_iter().filter_map(|(option, limit, value)| Some((option, limit, value?)))
        {
            let accepted = limit.accepts(value).then_some(value);
            let found = Found { value: accepted, place: place.to_owned(), key: option.to_owned() };
            if accepted.is_none() {
                self.errors.push(found.error(format!("found {value}, expected {}", limit.range())));
            }
            values.insert(limit.key, found);
        }
        values
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
