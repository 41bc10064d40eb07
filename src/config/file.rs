//! The TOML file: every key to its place, with all mistakes of the file. Only what can be told from a key and its value
//! is checked here; what depends on other keys or sources is checked in `build.rs` and `listeners.rs`.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::compressors::CompressorName;
use super::databases::DatabasePattern;
use super::fairness::{FairBy, PriorityRule, TenantRule};
use super::limits::{self, Limit};
use super::reader::{Found, Reader, Shown, Values, nearest};
use super::tls::{self, FileTls};
use super::{Address, ConfigError, Namespace, Presentation, Profile, Retry, Rules};

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct FileConfig {
    pub(super) profile: Option<Profile>,
    pub(super) admin: Option<Found<Address>>,
    pub(super) admin_token_file: Option<Found<PathBuf>>,
    pub(super) admin_probes_only: Option<Found<bool>>,
    pub(super) admin_tls: FileTls,
    pub(super) program: Values,
    /// Keys at top level; meaningful when there are no `[[cluster]]` tables.
    pub(super) single: FileCluster,
    /// `[[cluster]]`, in the order of the file.
    pub(super) clusters: Vec<FileCluster>,
    /// `[[listener]]`, in the order of the file.
    pub(super) listeners: Vec<FileListener>,
}

/// What the file says about one cluster.
#[derive(Debug, Default)]
pub(super) struct FileCluster {
    /// Where its table begins.
    pub(super) place: String,
    /// What stands before its keys in messages.
    pub(super) prefix: String,
    pub(super) name: Option<Found<String>>,
    pub(super) upstream: Option<Found<Zeroizing<String>>>,
    pub(super) upstream_password_file: Option<Found<PathBuf>>,
    pub(super) presentation: Option<Found<Presentation>>,
    pub(super) replica_set_name: Option<Found<String>>,
    pub(super) advertised_address: Option<Found<Address>>,
    pub(super) retry: Option<Retry>,
    pub(super) degraded_reads: Vec<Namespace>,
    pub(super) codel: bool,
    pub(super) fair_by: Option<FairBy>,
    pub(super) tenants: Vec<TenantRule>,
    pub(super) priorities: Vec<PriorityRule>,
    pub(super) adaptive_limit: bool,
    /// Of its own listener.
    pub(super) listener: FileListener,
    pub(super) values: Values,
}

/// What the file says about one listener.
#[derive(Debug, Default)]
pub(super) struct FileListener {
    /// Where its table begins.
    pub(super) place: String,
    /// What stands before its keys in messages.
    pub(super) prefix: String,
    pub(super) listen: Option<Found<Vec<Address>>>,
    pub(super) cluster: Option<Found<String>>,
    pub(super) databases: Vec<(DatabasePattern, Found<String>)>,
    pub(super) compressors: Option<Found<Vec<CompressorName>>>,
    pub(super) proxy_protocol: Option<Found<bool>>,
    pub(super) allow_unauthenticated_clients: bool,
    pub(super) auth: Option<Found<AuthKind>>,
    pub(super) users_file: Option<Found<PathBuf>>,
    pub(super) rules: Rules,
    /// Where the first of its rules stands.
    pub(super) first_rule: Option<Found<()>>,
    pub(super) tls: FileTls,
}

/// What `auth` says; with its file that makes [`super::Auth`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AuthKind {
    None,
    Users,
    Upstream,
}

const PROGRAM_KEYS: &[&str] = &["profile", "admin", "admin_token_file", "admin_probes_only", "cluster", "listener"];
/// Of a listener, where a cluster has one of its own.
const LISTENER_KEYS: &[&str] = &[
    "listen",
    "compressors",
    "proxy_protocol",
    "allow_unauthenticated_clients",
    "auth",
    "users_file",
    "read_only",
    "allow_commands",
    "deny_commands",
    "allow_namespaces",
    "deny_namespaces",
];
/// Of a `[[listener]]` beside those.
const ROUTING_KEYS: &[&str] = &["cluster", "databases"];
const CLUSTER_KEYS: &[&str] = &[
    "upstream",
    "upstream_password_file",
    "presentation",
    "replica_set_name",
    "advertised_address",
    "retry",
    "degraded_reads",
    "adaptive_limit",
    "queue_discipline",
    "fair_by",
    "tenant",
    "priority",
];

type Key<'a> = Spanned<Cow<'a, str>>;

/// Reads a file; `None` if it is no TOML. Mistakes are added to `errors` in the order of their lines.
pub(super) fn read(name: &str, text: &str, errors: &mut Vec<ConfigError>) -> Option<FileConfig> {
    let mut reader = Reader::new(name, text);
    let (table, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        // The library's own report shows the line, which may hold a password.
        reader.refuse(error.span().unwrap_or_default(), "", format!("no valid TOML: {}", error.message()));
    }
    let file = syntax.is_empty().then(|| reader.file(table.get_ref()));
    errors.extend(reader.into_mistakes());
    file
}

impl Reader<'_> {
    fn file(&mut self, table: &DeTable<'_>) -> FileConfig {
        let mut file = FileConfig::default();
        let several = table.contains_key("cluster");
        for (key, value) in table {
            let name: &str = key.get_ref();
            match name {
                "profile" => file.profile = self.text_of(name, value).and_then(|text| self.parsed(name, value, text)),
                "admin" => {
                    let admin = self.text_of(name, value).and_then(|text| self.parsed(name, value, text));
                    file.admin = admin.map(|admin| self.found(name, value, admin));
                }
                "admin_token_file" => {
                    let path = self.text_of(name, value).map(PathBuf::from);
                    file.admin_token_file = path.map(|path| self.found(name, value, path));
                }
                "admin_probes_only" => {
                    file.admin_probes_only = self.flag(name, value).map(|flag| self.found(name, value, flag));
                }
                "cluster" => file.clusters = self.clusters(value),
                "listener" => file.listeners = self.listeners(value),
                _ if tls::ADMIN_KEYS.contains(&name) => self.admin_tls_key(name, value, &mut file.admin_tls),
                _ => {
                    if let Some(limit) = limit_named(limits::PROGRAM, name) {
                        self.limit(limit, name, value, &mut file.program);
                    } else if several && is_cluster_key(name) {
                        let problem = "belongs into the [[cluster]] tables, as there are such tables".to_owned();
                        self.refuse(key.span(), name, problem);
                    } else {
                        self.cluster_key("", key, value, &mut file.single);
                    }
                }
            }
        }
        file
    }

    fn clusters(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<FileCluster> {
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

    fn listeners(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<FileListener> {
        let mut listeners = Vec::new();
        for (index, (place, table)) in
            self.tables("listener", value, limits::MAX_LISTENER_TABLES).into_iter().enumerate()
        {
            let prefix = format!("listener[{}].", index + 1);
            let mut listener = FileListener { place, prefix: prefix.clone(), ..FileListener::default() };
            for (key, value) in table {
                let name: &str = key.get_ref();
                let path = format!("{prefix}{name}");
                match name {
                    "cluster" => {
                        let text = self.text_of(&path, value).map(str::to_owned);
                        listener.cluster = text.map(|text| self.found(&path, value, text));
                    }
                    "databases" => listener.databases = self.databases(&path, value),
                    _ if is_listener_key(name) => self.listener_key(&path, name, value, &mut listener),
                    _ if is_cluster_key(name) => {
                        let problem = "is a key of a cluster, not of a listener".to_owned();
                        self.refuse(key.span(), &path, problem);
                    }
                    _ => self.unknown(&prefix, name, key.span(), ROUTING_KEYS.iter().copied().chain(listener_keys())),
                }
            }
            listeners.push(listener);
        }
        listeners
    }

    fn databases(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Vec<(DatabasePattern, Found<String>)> {
        let mut databases: Vec<(DatabasePattern, Found<String>)> = Vec::new();
        let Some(table) = self.table(path, value) else { return databases };
        if table.is_empty() || table.len() > limits::MAX_DATABASE_ROUTES {
            let problem = format!("found {} databases, expected 1 to {}", table.len(), limits::MAX_DATABASE_ROUTES);
            self.refuse(value.span(), path, problem);
        }
        for (key, value) in table {
            let path = format!("{path}.{}", key.get_ref());
            let pattern = match key.get_ref().parse::<DatabasePattern>() {
                Ok(pattern) => Some(pattern),
                Err(error) => {
                    self.refuse(key.span(), &path, error.to_string());
                    None
                }
            };
            let cluster = self.text_of(&path, value).map(str::to_owned);
            let (Some(pattern), Some(cluster)) = (pattern, cluster) else { continue };
            let same = |other: &DatabasePattern| other.to_string().eq_ignore_ascii_case(&pattern.to_string());
            if let Some((other, _)) = databases.iter().find(|(other, _)| same(other)) {
                let problem =
                    format!("differs from `{other}` by case only, which no server tells apart: expected one of them");
                self.refuse(key.span(), &path, problem);
            }
            databases.push((pattern, self.found(&path, value, cluster)));
        }
        databases
    }

    /// One of [`listener_keys`].
    fn listener_key(&mut self, path: &str, name: &str, value: &Spanned<DeValue<'_>>, out: &mut FileListener) {
        match name {
            "listen" => {
                let addresses = self.list(path, value, "addresses", 1..=limits::MAX_LISTENERS);
                out.listen = addresses.map(|addresses| self.found(path, value, addresses));
            }
            "compressors" => {
                let compressors = self.list(path, value, "compressors", 0..=CompressorName::ALL.len());
                out.compressors = compressors.map(|compressors| self.found(path, value, compressors));
            }
            "proxy_protocol" => {
                let flag = self.flag(path, value);
                out.proxy_protocol = flag.map(|flag| self.found(path, value, flag));
            }
            "auth" => {
                let choices = [("none", AuthKind::None), ("users", AuthKind::Users), ("upstream", AuthKind::Upstream)];
                out.auth = self.choice(path, value, &choices).map(|chosen| self.found(path, value, chosen));
            }
            "users_file" => {
                let file = self.text_of(path, value).map(PathBuf::from);
                out.users_file = file.map(|file| self.found(path, value, file));
            }
            "allow_unauthenticated_clients" => {
                out.allow_unauthenticated_clients = self.flag(path, value).unwrap_or(false);
            }
            _ if tls::KEYS.contains(&name) => self.tls_key(path, name, value, &mut out.tls),
            _ => {
                let rules = &mut out.rules;
                match name {
                    "read_only" => rules.read_only = self.flag(path, value).unwrap_or(false),
                    "allow_commands" => rules.allow_commands = self.rule(path, value, "commands").into(),
                    "deny_commands" => rules.deny_commands = self.rule(path, value, "commands").into(),
                    "allow_namespaces" => rules.allow_namespaces = self.rule(path, value, "namespaces").into(),
                    _ => rules.deny_namespaces = self.rule(path, value, "namespaces").into(),
                }
                out.first_rule.get_or_insert_with(|| self.found(path, value, ()));
            }
        }
    }

    /// A list of a listener's rules.
    fn rule<T: FromStr<Err: Display>>(&mut self, path: &str, value: &Spanned<DeValue<'_>>, what: &str) -> Vec<T> {
        self.list(path, value, what, 1..=limits::MAX_RULE_ENTRIES).unwrap_or_default()
    }

    /// One key of a cluster, or of its own listener; `prefix` is what stands before it in messages.
    fn cluster_key(&mut self, prefix: &str, key: &Key<'_>, value: &Spanned<DeValue<'_>>, out: &mut FileCluster) {
        let name: &str = key.get_ref();
        let path = format!("{prefix}{name}");
        match name {
            _ if is_listener_key(name) => self.listener_key(&path, name, value, &mut out.listener),
            "upstream" => {
                let text = self.text_of(&path, value).map(|text| Zeroizing::new(text.to_owned()));
                out.upstream = text.map(|text| self.found(&path, value, text));
            }
            "upstream_password_file" => {
                let file = self.text_of(&path, value).filter(|text| !text.is_empty()).map(PathBuf::from);
                out.upstream_password_file = file.map(|file| self.found(&path, value, file));
            }
            "presentation" => {
                let choices = [
                    ("auto", Presentation::Auto),
                    ("mongos", Presentation::Mongos),
                    ("standalone", Presentation::Standalone),
                    ("replica-set", Presentation::ReplicaSet),
                ];
                out.presentation = self.choice(&path, value, &choices).map(|chosen| self.found(&path, value, chosen));
            }
            "replica_set_name" => {
                let text = self.text_of(&path, value).map(str::to_owned);
                out.replica_set_name = text.map(|text| self.found(&path, value, text));
            }
            "advertised_address" => {
                let address = self.text_of(&path, value).and_then(|text| self.parsed(&path, value, text));
                out.advertised_address = address.map(|address| self.found(&path, value, address));
            }
            "retry" => {
                out.retry = self.choice(&path, value, &[("driver", Retry::Driver), ("proxy", Retry::Proxy)]);
            }
            "degraded_reads" => {
                let namespaces = self.list(&path, value, "namespaces", 0..=limits::MAX_DEGRADED_NAMESPACES);
                out.degraded_reads = namespaces.unwrap_or_default();
            }
            "adaptive_limit" => out.adaptive_limit = self.flag(&path, value).unwrap_or_default(),
            "queue_discipline" => {
                out.codel = self.choice(&path, value, &[("fifo", false), ("codel", true)]).unwrap_or_default();
            }
            "fair_by" => {
                let choices = [
                    ("none", FairBy::None),
                    ("application", FairBy::Application),
                    ("user", FairBy::User),
                    ("database", FairBy::Database),
                    ("address", FairBy::Address),
                ];
                out.fair_by = self.choice(&path, value, &choices);
            }
            "tenant" => out.tenants = self.tenants(&path, value),
            "priority" => out.priorities = self.priorities(&path, value),
            _ if is_table_of_limits(name) => self.limit_table(prefix, name, value, out),
            _ => match limit_named(limits::CLUSTER, name) {
                Some(limit) => self.limit(limit, &path, value, &mut out.values),
                None => self.unknown(prefix, name, key.span(), cluster_keys(prefix)),
            },
        }
    }

    /// `[breaker]` and `[reconnect]`.
    fn limit_table(&mut self, prefix: &str, name: &str, value: &Spanned<DeValue<'_>>, out: &mut FileCluster) {
        let Some(table) = self.table(&format!("{prefix}{name}"), value) else { return };
        for (key, value) in table {
            let name = format!("{name}.{}", key.get_ref());
            match limit_named(limits::CLUSTER, &name) {
                Some(limit) => self.limit(limit, &format!("{prefix}{name}"), value, &mut out.values),
                None => self.unknown(prefix, &name, key.span(), cluster_keys(prefix)),
            }
        }
    }

    pub(super) fn unknown(
        &mut self,
        prefix: &str,
        name: &str,
        span: Range<usize>,
        known: impl Iterator<Item = &'static str>,
    ) {
        if !prefix.is_empty() && program_keys().any(|key| key == name) {
            let problem = "holds for the whole program: it stands at the top of the file, before all tables".to_owned();
            return self.refuse(span, &format!("{prefix}{name}"), problem);
        }
        let hint = nearest(name, known).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
        self.refuse(span, &format!("{prefix}{name}"), format!("unknown key{hint}"));
    }
}

/// The keys that may stand where `prefix` does: at the top of the file those of the program as well.
fn cluster_keys(prefix: &str) -> impl Iterator<Item = &'static str> {
    let top = prefix.is_empty();
    let of_tables = if top { None } else { Some("name") };
    let of_cluster = limits::CLUSTER.iter().map(|limit| limit.key).chain(CLUSTER_KEYS.iter().copied());
    of_cluster.chain(listener_keys()).chain(of_tables).chain(program_keys().filter(move |_| top))
}

fn program_keys() -> impl Iterator<Item = &'static str> {
    limits::PROGRAM.iter().map(|limit| limit.key).chain(PROGRAM_KEYS.iter().chain(tls::ADMIN_KEYS).copied())
}

fn listener_keys() -> impl Iterator<Item = &'static str> {
    LISTENER_KEYS.iter().chain(tls::KEYS).copied()
}

fn is_listener_key(name: &str) -> bool {
    listener_keys().any(|key| key == name)
}

fn limit_named(limits: &'static [Limit], key: &str) -> Option<&'static Limit> {
    limits.iter().find(|limit| limit.key == key)
}

fn is_table_of_limits(name: &str) -> bool {
    limits::CLUSTER.iter().any(|limit| limit.key.split_once('.').is_some_and(|(table, _)| table == name))
}

fn is_cluster_key(name: &str) -> bool {
    CLUSTER_KEYS.contains(&name)
        || is_listener_key(name)
        || is_table_of_limits(name)
        || limit_named(limits::CLUSTER, name).is_some()
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !name.is_empty() && name.len() <= limits::MAX_CLUSTER_NAME_BYTES && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::super::fairness::{Level, TenantBounds};
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let mut errors = Vec::new();
        read("mongomux.toml", text, &mut errors);
        errors.iter().map(ConfigError::to_string).collect()
    }

    fn sound(text: &str) -> FileConfig {
        let mut errors = Vec::new();
        let file = read("mongomux.toml", text, &mut errors);
        assert_eq!(errors, []);
        file.unwrap()
    }

    #[test]
    fn three_mistakes_make_three_lines_in_the_order_of_the_file() {
        let text =
            "wait_queue_size = \"many\"\nmax_pool_size = 0\nlisten = \"127.0.0.1:1\"\n[breaker]\nwindow_mss = 1\n";
        assert_eq!(
            mistakes(text),
            [
                "mongomux.toml:1: wait_queue_size: found \"many\", expected 1 to 1000000 commands",
                "mongomux.toml:2: max_pool_size: found 0, expected 1 to 10000 connections",
                "mongomux.toml:5: breaker.window_mss: unknown key, did you mean `breaker.window_ms`?",
            ]
        );
    }

    #[test]
    fn every_limit_is_accepted_at_both_ends_and_refused_beyond() {
        for limit in limits::CLUSTER.iter().chain(limits::PROGRAM) {
            let key = limit.key;
            assert_eq!(mistakes(&format!("{key} = {}", limit.min)), [""; 0], "{key}");
            assert_eq!(mistakes(&format!("{key} = {}", limit.max)), [""; 0], "{key}");
            assert_eq!(mistakes(&format!("{key} = 0")).is_empty(), limit.accepts(0), "{key}");
            for wrong in
                [format!("{}", limit.max + 1), "-1".into(), "\"1\"".into(), "1.5".into(), "true".into(), "[1]".into()]
            {
                let told = mistakes(&format!("{key} = {wrong}"));
                assert_eq!(told.len(), 1, "{key} = {wrong}");
                assert!(told[0].contains(&format!("{key}: found ")) && told[0].contains(&limit.range()), "{}", told[0]);
            }
        }
    }

    #[test]
    fn tenants_and_priorities_are_read_with_all_their_mistakes() {
        let file = sound(
            "fair_by = \"database\"\nqueue_discipline = \"codel\"\n[codel]\ntarget_ms = 7\n\
             [[tenant]]\nname = \"web*\"\nweight = 3\nmax_in_flight = 4\nmax_waiting = 0\n\
             [[priority]]\napplication = \"batch\"\nlevel = \"low\"\n",
        );
        let cluster = file.single;
        let bounds = TenantBounds { weight: Some(3), max_in_flight: Some(4), max_waiting: Some(usize::MAX) };
        assert_eq!(cluster.tenants, [TenantRule { name: "web*".parse().unwrap(), bounds }]);
        assert_eq!(cluster.priorities, [PriorityRule { application: "batch".parse().unwrap(), level: Level::Low }]);
        assert_eq!((cluster.fair_by, cluster.codel), (Some(FairBy::Database), true));
        assert_eq!(
            mistakes(
                "fair_by = \"team\"\n[[tenant]]\nweight = 0\n[[tenant]]\nname = \"a*b\"\nwieght = 1\n[[priority]]\n\
                 application = \"a\"\n[[priority]]\napplication = \"a\"\nlevel = \"top\"\n"
            ),
            [
                "mongomux.toml:1: fair_by: found \"team\", expected \"none\" or \"application\" or \"user\" or \"database\" or \
                 \"address\"",
                "mongomux.toml:2: tenant[1].name: missing",
                "mongomux.toml:3: tenant[1].weight: found 0, expected 1 to 100 shares",
                "mongomux.toml:5: tenant[2].name: found \"a*b\", expected 1 to 128 bytes, a name or its beginning with `*` at \
                 the end",
                "mongomux.toml:6: tenant[2].wieght: unknown key, did you mean `weight`?",
                "mongomux.toml:7: priority[1].level: missing",
                "mongomux.toml:11: priority[2].level: found \"top\", expected \"high\" or \"normal\" or \"low\"",
            ]
        );
    }

    #[test]
    fn near_misses_get_a_suggestion_and_others_none() {
        for (wrong, right) in [
            ("max_pool_sizes", "max_pool_size"),
            ("maxPoolSize", "max_pool_size"),
            ("min-pool-size", "min_pool_size"),
            ("maxIdleTimeMS", "max_idle_time_ms"),
            ("max_idle_time", "max_idle_time_ms"),
            ("presentaton", "presentation"),
            ("max_client", "max_clients"),
            ("uptsream", "upstream"),
            ("clutser", "cluster"),
            ("listners", "listener"),
        ] {
            let told = mistakes(&format!("{wrong} = 1"));
            assert_eq!(told, [format!("mongomux.toml:1: {wrong}: unknown key, did you mean `{right}`?")]);
        }
        assert_eq!(mistakes("zebra = 1"), ["mongomux.toml:1: zebra: unknown key"]);
    }

    #[test]
    fn choices_are_told_where_there_is_none_of_that_name() {
        sound("queue_discipline = \"fifo\"\nfair_by = \"application\"\nauth = \"none\"");
        let told = mistakes("auth = \"scram\"\nfair_by = \"user\"\nqueue_discipline = \"lifo\"\n");
        assert_eq!(
            told,
            [
                "mongomux.toml:1: auth: found \"scram\", expected \"none\" or \"users\" or \"upstream\"",
                "mongomux.toml:3: queue_discipline: found \"lifo\", expected \"fifo\" or \"codel\"",
            ]
        );
    }

    #[test]
    fn choices_name_what_can_be_chosen() {
        assert_eq!(
            mistakes("presentation = \"mongo\"\nretry = true\nprofile = \"huge\"\nadmin = \"9627\"\nlisten = []\n"),
            [
                "mongomux.toml:1: presentation: found \"mongo\", expected \"auto\" or \"mongos\" or \"standalone\" or \"replica-set\"",
                "mongomux.toml:2: retry: found true, expected \"driver\" or \"proxy\"",
                "mongomux.toml:3: profile: found `huge`, expected one of default, development, low, medium, high, production, \
                 high-availability, constrained, worker, serverless",
                "mongomux.toml:4: admin: `9627` is not an address: expected host:port or unix:/path",
                "mongomux.toml:5: listen: found 0 addresses, expected 1 to 16",
            ]
        );
        assert_eq!(mistakes("breaker = 5\nallow_unauthenticated_clients = 1\ncluster = 1").len(), 3);
    }

    #[test]
    fn a_flag_is_true_or_false_for_each_cluster() {
        let file = sound(
            "[[cluster]]\nadaptive_limit = true\n[[cluster]]\nadaptive_limit = false\n[[cluster]]\nname = \"c\"\n",
        );
        assert_eq!(file.clusters.iter().map(|it| it.adaptive_limit).collect::<Vec<_>>(), [true, false, false]);
        let found = ["mongomux.toml:1: adaptive_limit: found 1, expected true or false"];
        assert_eq!(mistakes("adaptive_limit = 1\n"), found);
    }

    #[test]
    fn a_list_of_listeners_may_be_wrong_in_several_places() {
        let file = sound("listen = [\"127.0.0.1:1\", \"unix:/run/a\"]");
        assert_eq!(file.single.listener.listen.unwrap().value.len(), 2);
        assert_eq!(mistakes("listen = [\"127.0.0.1\", 5,\n \"unix:\"]").len(), 3);
    }

    #[test]
    fn namespaces_are_a_list_of_known_forms_and_not_too_long() {
        let named = |text: &str| sound(text).single.degraded_reads.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(named("degraded_reads = [\"shop.catalog\", \"cms.*\", \"*\"]"), ["shop.catalog", "cms.*", "*"]);
        assert_eq!(named("degraded_reads = []"), [""; 0]);
        assert_eq!(named("degraded_reads = \"cms.*\""), ["cms.*"]);
        assert_eq!(
            mistakes("[[cluster]]\ndegraded_reads = [\"cms.*\",\n \"shop\", 7]\n[[cluster]]\ndegraded_reads = true\n"),
            [
                "mongomux.toml:3: cluster[1].degraded_reads: \"shop\" is no namespace: expected \"database.collection\", \
                 \"database.*\" or \"*\"; all of a database is \"shop.*\"",
                "mongomux.toml:3: cluster[1].degraded_reads: found 7, expected a text in quotes",
                "mongomux.toml:5: cluster[2].degraded_reads: found true, expected a text in quotes",
            ]
        );
        let many = |count| format!("degraded_reads = [{}]", "\"a.b\",".repeat(count));
        assert_eq!(named(&many(limits::MAX_DEGRADED_NAMESPACES)).len(), limits::MAX_DEGRADED_NAMESPACES);
        assert_eq!(
            mistakes(&many(limits::MAX_DEGRADED_NAMESPACES + 1)),
            ["mongomux.toml:1: degraded_reads: found 257 namespaces, expected 0 to 256"]
        );
    }

    #[test]
    fn clusters_have_names_and_keys_of_their_own() {
        let file = sound(
            "max_clients = 5\n[[cluster]]\nname = \"a\"\nmax_pool_size = 7\n[cluster.breaker]\nwindow_ms = 500\n\
             [[cluster]]\nname = \"b\"\nlisten = \"unix:/b\"\n",
        );
        let names: Vec<_> = file.clusters.iter().map(|cluster| cluster.name.as_ref().unwrap().value.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(file.clusters[0].values["max_pool_size"].value, Some(7));
        assert_eq!(file.clusters[0].values["breaker.window_ms"].value, Some(500));
        assert_eq!(file.clusters[1].listener.listen.as_ref().unwrap().key, "cluster[b].listen");
        assert_eq!(
            mistakes(
                "max_pool_size = 1\n[[cluster]]\nname = \"a\"\nmax_clients = 1\nmax_poolsize = 2\n\
                 [[cluster]]\nname = \"b c\"\n[[cluster]]\nnam = \"x\"\ndatabases = {}\n"
            ),
            [
                "mongomux.toml:1: max_pool_size: belongs into the [[cluster]] tables, as there are such tables",
                "mongomux.toml:4: cluster[a].max_clients: holds for the whole program: it stands at the top of the file, \
                 before all tables",
                "mongomux.toml:5: cluster[a].max_poolsize: unknown key, did you mean `max_pool_size`?",
                "mongomux.toml:7: cluster[2].name: found \"b c\", a name has 1 to 64 letters, digits, `-` or `_`",
                "mongomux.toml:9: cluster[3].nam: unknown key, did you mean `name`?",
                "mongomux.toml:10: cluster[3].databases: unknown key",
            ]
        );
    }

    #[test]
    fn tables_need_double_brackets_and_there_are_not_too_many() {
        assert_eq!(
            mistakes("[cluster]\nname = \"a\"\n[listener]\n"),
            [
                "mongomux.toml:1: cluster: found a table, expected [[cluster]] tables, in double brackets",
                "mongomux.toml:3: listener: found a table, expected [[listener]] tables, in double brackets",
            ]
        );
        assert_eq!(
            mistakes("cluster = []\nlistener = [1]\n"),
            [
                "mongomux.toml:1: cluster: found 0 [[cluster]] tables, expected 1 to 64",
                "mongomux.toml:2: listener[1]: found 1, expected a table",
            ]
        );
        let many = "[[listener]]\n".repeat(limits::MAX_LISTENER_TABLES + 1);
        assert_eq!(mistakes(&many), ["mongomux.toml:1: listener: found 129 [[listener]] tables, expected 1 to 128"]);
    }

    #[test]
    fn listeners_have_addresses_routes_and_an_offer() {
        let file = sound(
            "[[listener]]\nlisten = [\"127.0.0.1:1\", \"unix:/a\"]\ncluster = \"users\"\nproxy_protocol = true\n\
             databases = { logs = \"logs\", \"audit_*\" = \"logs\" }\ncompressors = [\"zstd\", \"snappy\"]\n\
             [[listener]]\nlisten = \"[::1]:2\"\ncompressors = []\n[listener.databases]\nshop = \"a\"\n",
        );
        let [first, second] = file.listeners.as_slice() else { panic!("two are expected") };
        let routes = |listener: &FileListener| {
            let shown = |(pattern, to): &(DatabasePattern, Found<String>)| format!("{pattern} {}", to.value);
            listener.databases.iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(routes(first), ["audit_* logs", "logs logs"]);
        assert_eq!(routes(second), ["shop a"]);
        assert_eq!(first.compressors.as_ref().unwrap().value, [CompressorName::Zstd, CompressorName::Snappy]);
        assert_eq!(second.compressors.as_ref().unwrap().value, []);
        assert!(first.proxy_protocol.as_ref().unwrap().value && second.proxy_protocol.is_none());
    }

    #[test]
    fn every_mistake_in_a_listener_is_told_with_what_would_be_right() {
        assert_eq!(
            mistakes(
                "[[listener]]\nlisten = []\ncluster = 5\ncompressors = [\"noop\", \"lz4\"]\nproxy_protocol = \"v2\"\n\
                 max_pool_size = 3\nlistn = 1\nmax_clients = 9\n\
                 [listener.databases]\n\"*\" = \"a\"\nadmin = \"a\"\nlogs = 1\nx = \"a\"\nX = \"b\"\n\
                 [[listener]]\ndatabases = {}\n"
            ),
            [
                "mongomux.toml:2: listener[1].listen: found 0 addresses, expected 1 to 16",
                "mongomux.toml:3: listener[1].cluster: found 5, expected a text in quotes",
                "mongomux.toml:4: listener[1].compressors: found \"noop\", which does not compress and which no driver \
                 sends: leave it out",
                "mongomux.toml:4: listener[1].compressors: found \"lz4\", expected \"snappy\", \"zlib\" or \"zstd\"",
                "mongomux.toml:5: listener[1].proxy_protocol: found \"v2\", expected true or false",
                "mongomux.toml:6: listener[1].max_pool_size: is a key of a cluster, not of a listener",
                "mongomux.toml:7: listener[1].listn: unknown key, did you mean `listen`?",
                "mongomux.toml:8: listener[1].max_clients: holds for the whole program: it stands at the top of the file, \
                 before all tables",
                "mongomux.toml:10: listener[1].databases.*: \"*\" names no database: expected a name, or the beginning of \
                 names and a `*`; all that nothing else is said about go to the `cluster` of the listener",
                "mongomux.toml:11: listener[1].databases.admin: \"admin\" names no database: expected a name, or the \
                 beginning of names and a `*`; every cluster has one of this name, and that of the listener's `cluster` is \
                 served",
                "mongomux.toml:12: listener[1].databases.logs: found 1, expected a text in quotes",
                "mongomux.toml:13: listener[1].databases.x: differs from `X` by case only, which no server tells apart: \
                 expected one of them",
                "mongomux.toml:16: listener[2].databases: found 0 databases, expected 1 to 256",
            ]
        );
        let twice = mistakes("[listener.databases]\nlogs = \"a\"\nlogs = \"b\"\n");
        assert!(twice[0].starts_with("mongomux.toml:3: no valid TOML: duplicate key"), "{twice:?}");
    }

    #[test]
    fn a_text_that_is_no_toml_is_told_by_line_without_showing_it() {
        let told = mistakes("max_clients = 5\nupstream = mongodb://root:hunter2@db\n");
        assert!(!told.is_empty());
        assert!(told[0].starts_with("mongomux.toml:2: no valid TOML: "), "{told:?}");
        assert!(!told.concat().contains("hunter2"), "{told:?}");
    }

    #[test]
    fn values_in_messages_hide_passwords_and_stay_short() {
        let told = mistakes("max_pool_size = \"mongodb://root:hunter2@db\"");
        assert!(told[0].contains("mongodb://***@db") && !told[0].contains("hunter2"), "{told:?}");
        let told = mistakes(&format!("max_pool_size = \"{}\"", "x".repeat(1_000)));
        assert!(told[0].len() < 200, "{told:?}");
    }
}
