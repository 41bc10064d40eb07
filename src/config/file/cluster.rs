//! The keys of a cluster, and those of its own listener with them.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;
use zeroize::Zeroizing;

use super::{FileListener, Name, QueueKind};
use crate::config::fairness::{FairBy, NamePattern, PriorityRule, TenantRule};
use crate::config::keys::{self, Place};
use crate::config::limits;
use crate::config::reader::{Found, Reader, Said, Shown, Values};
use crate::config::{Address, Namespace, Presentation, Retry};

/// What the file says about one cluster.
#[derive(Debug, Default)]
pub(in crate::config) struct FileCluster {
    /// Where its table begins.
    pub(in crate::config) place: String,
    /// What stands before its keys in messages.
    pub(in crate::config) prefix: String,
    pub(in crate::config) name: Option<Found<String>>,
    pub(in crate::config) upstream: Option<Found<Zeroizing<String>>>,
    pub(in crate::config) upstream_password_file: Option<Found<PathBuf>>,
    pub(in crate::config) presentation: Option<Found<Presentation>>,
    pub(in crate::config) replica_set_name: Option<Found<String>>,
    pub(in crate::config) advertised_address: Option<Found<Address>>,
    pub(in crate::config) retry: Option<Retry>,
    pub(in crate::config) degraded_reads: Vec<Namespace>,
    pub(in crate::config) pooled_databases: Vec<NamePattern>,
    pub(in crate::config) codel: bool,
    pub(in crate::config) fair_by: Option<FairBy>,
    pub(in crate::config) tenants: Vec<TenantRule>,
    pub(in crate::config) priorities: Vec<PriorityRule>,
    pub(in crate::config) adaptive_limit: bool,
    /// Of its own listener.
    pub(in crate::config) listener: FileListener,
    pub(in crate::config) values: Values,
    pub(in crate::config) said: Said,
}

impl Reader<'_> {
    pub(super) fn clusters(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<FileCluster> {
        let mut clusters = Vec::new();
        for (index, (place, table)) in self.tables("cluster", value, limits::MAX_CLUSTERS).into_iter().enumerate() {
            // Named in messages as the file names it, as far as that can be.
            let name = table.get("name").and_then(|name| name.get_ref().as_str()).filter(|name| is_name(name));
            let prefix = name.map_or_else(|| format!("cluster[{}].", index + 1), |name| format!("cluster[{name}]."));
            let listener = FileListener { place: place.clone(), prefix: prefix.clone(), ..FileListener::default() };
            let mut cluster = FileCluster { place, prefix: prefix.clone(), listener, ..FileCluster::default() };
            for (key, value) in table {
                match key.get_ref().as_ref() {
                    "name" => cluster.name = self.name(&format!("{prefix}name"), value),
                    _ => self.cluster_key(&prefix, key, value, &mut cluster),
                }
            }
            clusters.push(cluster);
        }
        clusters
    }

    fn name(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Found<String>> {
        let name = self.text_of(path, value)?;
        if !is_name(name) {
            let most = limits::MAX_CLUSTER_NAME_BYTES;
            let problem = format!("found {}, a name has 1 to {most} letters, digits, `-` or `_`", Shown(value));
            self.refuse(value.span(), path, problem);
            return None;
        }
        Some(self.found(path, value, name.to_owned()))
    }

    /// One key of a cluster, or of its own listener; `prefix` is what stands before it in messages.
    pub(super) fn cluster_key(
        &mut self,
        prefix: &str,
        key: &Name<'_>,
        value: &Spanned<DeValue<'_>>,
        out: &mut FileCluster,
    ) {
        let name: &str = key.get_ref();
        let path = format!("{prefix}{name}");
        if let Some(known) = keys::named(Place::Cluster, name) {
            self.note(known, value, &mut out.said);
        }
        let read = if keys::named(Place::Listener, name).is_some() {
            self.listener_key(&path, name, value, &mut out.listener)
        } else if keys::is_table_of_numbers(name) {
            self.limit_table(prefix, name, value, out);
            true
        } else if let Some(limit) = keys::limit(Place::Cluster, name) {
            self.limit(limit, &path, value, &mut out.values);
            true
        } else {
            keys::named(Place::Cluster, name).is_some() && self.word_key(&path, name, value, out)
        };
        if !read {
            self.unknown(prefix, name, key.span(), places(prefix));
        }
    }

    /// A key of a cluster that is no number; false if there is none of that name.
    fn word_key(&mut self, path: &str, name: &str, value: &Spanned<DeValue<'_>>, out: &mut FileCluster) -> bool {
        match name {
            "upstream" => {
                let text = self.text_of(path, value).map(|text| Zeroizing::new(text.to_owned()));
                out.upstream = text.map(|text| self.found(path, value, text));
            }
            "upstream_password_file" => {
                let file = self.text_of(path, value).filter(|text| !text.is_empty()).map(PathBuf::from);
                out.upstream_password_file = file.map(|file| self.found(path, value, file));
            }
            "presentation" => {
                out.presentation = self.choice(path, value).map(|chosen| self.found(path, value, chosen));
            }
            "replica_set_name" => {
                let text = self.text_of(path, value).map(str::to_owned);
                out.replica_set_name = text.map(|text| self.found(path, value, text));
            }
            "advertised_address" => {
                let address = self.text_of(path, value).and_then(|text| self.parsed(path, value, text));
                out.advertised_address = address.map(|address| self.found(path, value, address));
            }
            "retry" => out.retry = self.choice(path, value),
            "degraded_reads" => {
                let namespaces = self.list(path, value, "namespaces", 0..=limits::MAX_DEGRADED_NAMESPACES);
                out.degraded_reads = namespaces.unwrap_or_default();
            }
            "pooled_databases" => {
                let named = self.list(path, value, "databases", 1..=limits::MAX_POOLED_DATABASES);
                out.pooled_databases = named.unwrap_or_default();
            }
            "adaptive_limit" => out.adaptive_limit = self.flag(path, value).unwrap_or_default(),
            "queue_discipline" => out.codel = self.choice(path, value) == Some(QueueKind::Codel),
            "fair_by" => out.fair_by = self.choice(path, value),
            "tenant" => out.tenants = self.tenants(path, value),
            "priority" => out.priorities = self.priorities(path, value),
            _ => return false,
        }
        true
    }

    /// `[breaker]` and `[reconnect]`.
    fn limit_table(&mut self, prefix: &str, name: &str, value: &Spanned<DeValue<'_>>, out: &mut FileCluster) {
        let Some(table) = self.table(&format!("{prefix}{name}"), value) else { return };
        for (key, value) in table {
            let name = format!("{name}.{}", key.get_ref());
            match keys::limit(Place::Cluster, &name) {
                Some(limit) => self.limit(limit, &format!("{prefix}{name}"), value, &mut out.values),
                None => self.unknown(prefix, &name, key.span(), places(prefix)),
            }
        }
    }
}

/// Where the keys stand that may stand behind `prefix`: at the top of the file those of the program as well.
const fn places(prefix: &str) -> &'static [Place] {
    if prefix.is_empty() {
        &[Place::Cluster, Place::Listener, Place::Program]
    } else {
        &[Place::Cluster, Place::Listener, Place::ClusterTable]
    }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !name.is_empty() && name.len() <= limits::MAX_CLUSTER_NAME_BYTES && name.bytes().all(plain)
}
