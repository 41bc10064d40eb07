//! The TOML file: every key to its place, with all mistakes of the file. Only what can be told from a key and its value
//! is checked here; what depends on other keys or sources is checked in `build.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::limits::{self, Limit};
use super::{Address, ConfigError, Namespace, Presentation, Profile, Retry};
use crate::telemetry::logs::redact;

/// A value, and where it was said.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) place: String,
    pub(super) key: String,
}

impl<T> Found<T> {
    /// A mistake in this value.
    pub(super) fn error(&self, problem: String) -> ConfigError {
        ConfigError { place: self.place.clone(), key: self.key.clone(), problem }
    }
}

/// Limits by key; `None` for a value that was refused, so that it causes no further mistakes.
pub(super) type Values = BTreeMap<&'static str, Found<Option<u64>>>;

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct FileConfig {
    pub(super) profile: Option<Profile>,
    pub(super) admin: Option<Found<Address>>,
    pub(super) program: Values,
    /// Keys at top level; meaningful when there are no named clusters.
    pub(super) single: FileCluster,
    /// `[clusters.NAME]`, by name.
    pub(super) named: BTreeMap<String, FileCluster>,
}

/// What the file says about one cluster.
#[derive(Debug, Default)]
pub(super) struct FileCluster {
    /// Where its table begins.
    pub(super) place: String,
    pub(super) listen: Option<Found<Vec<Address>>>,
    pub(super) upstream: Option<Found<String>>,
    pub(super) presentation: Option<Presentation>,
    pub(super) retry: Option<Retry>,
    pub(super) degraded_reads: Vec<Namespace>,
    pub(super) allow_unauthenticated_clients: bool,
    pub(super) values: Values,
}

const PROGRAM_KEYS: &[&str] = &["profile", "admin", "clusters"];
const CLUSTER_KEYS: &[&str] = &[
    "listen",
    "upstream",
    "presentation",
    "retry",
    "degraded_reads",
    "allow_unauthenticated_clients",
    "auth",
    "queue_discipline",
    "fair_by",
    "transaction_idle_timeout_ms",
];

/// Reads a file; `None` if it is no TOML. Mistakes are added to `errors` in the order of their lines.
pub(super) fn read(name: &str, text: &str, errors: &mut Vec<ConfigError>) -> Option<FileConfig> {
    let mut reader = Reader { name, text, mistakes: Vec::new() };
    let (table, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        // The library's own report shows the line, which may hold a password.
        reader.refuse(error.span().unwrap_or_default(), "", format!("no valid TOML: {}", error.message()));
    }
    let file = syntax.is_empty().then(|| reader.file(table.get_ref()));
    reader.mistakes.sort_by_key(|&(start, _)| start);
    errors.extend(reader.mistakes.into_iter().map(|(_, error)| error));
    file
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    /// With the offset of each, for sorting.
    mistakes: Vec<(usize, ConfigError)>,
}

impl Reader<'_> {
    fn place(&self, span: &Range<usize>) -> String {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        format!("{}:{line}", self.name)
    }

    fn refuse(&mut self, span: Range<usize>, key: &str, problem: String) {
        let place = self.place(&span);
        self.mistakes.push((span.start, ConfigError { place, key: key.to_owned(), problem }));
    }

    fn file(&mut self, table: &DeTable<'_>) -> FileConfig {
        let mut file = FileConfig::default();
        let several = table.contains_key("clusters");
        for (key, value) in table {
            let name: &str = key.get_ref();
            match name {
                "profile" => file.profile = self.text_of(name, value).and_then(|text| self.parsed(name, value, text)),
                "admin" => {
                    let admin = self.text_of(name, value).and_then(|text| self.parsed(name, value, text));
                    file.admin = admin.map(|admin| self.found(name, value, admin));
                }
                "clusters" => file.named = self.clusters(value),
                _ => {
                    if let Some(limit) = limit_named(limits::PROGRAM, name) {
                        self.limit(limit, name, value, &mut file.program);
                    } else if several && is_cluster_key(name) {
                        let problem = "belongs into each [clusters.NAME] table, as there are such tables".to_owned();
                        self.refuse(key.span(), name, problem);
                    } else {
                        self.cluster_key("", key, value, &mut file.single);
                    }
                }
            }
        }
        file
    }

    fn clusters(&mut self, value: &Spanned<DeValue<'_>>) -> BTreeMap<String, FileCluster> {
        let mut clusters = BTreeMap::new();
        let Some(tables) = value.get_ref().as_table() else {
            self.refuse(value.span(), "clusters", format!("found {}, expected [clusters.NAME] tables", Shown(value)));
            return clusters;
        };
        if tables.is_empty() || tables.len() > limits::MAX_CLUSTERS {
            let problem = format!("found {} clusters, expected 1 to {}", tables.len(), limits::MAX_CLUSTERS);
            self.refuse(value.span(), "clusters", problem);
        }
        for (key, value) in tables {
            let name = key.get_ref().to_string();
            let path = format!("clusters.{name}");
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if name.is_empty() || name.len() > limits::MAX_CLUSTER_NAME_BYTES || !name.bytes().all(plain) {
                let max = limits::MAX_CLUSTER_NAME_BYTES;
                self.refuse(key.span(), &path, format!("a name has 1 to {max} letters, digits, `-` or `_`"));
            }
            let Some(table) = value.get_ref().as_table() else {
                self.refuse(value.span(), &path, format!("found {}, expected a table", Shown(value)));
                continue;
            };
            let mut cluster = FileCluster { place: self.place(&key.span()), ..FileCluster::default() };
            for (key, value) in table {
                self.cluster_key(&format!("{path}."), key, value, &mut cluster);
            }
            clusters.insert(name, cluster);
        }
        clusters
    }

    /// One key of a cluster; `prefix` is what stands before it in messages.
    fn cluster_key(
        &mut self,
        prefix: &str,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        out: &mut FileCluster,
    ) {
        let name: &str = key.get_ref();
        let path = format!("{prefix}{name}");
        match name {
            "listen" => {
                let addresses = self.list(&path, value, "addresses", 1..=limits::MAX_LISTENERS);
                out.listen = addresses.map(|addresses| self.found(&path, value, addresses));
            }
            "upstream" => {
                let text = self.text_of(&path, value).map(str::to_owned);
                out.upstream = text.map(|text| self.found(&path, value, text));
            }
            "presentation" => {
                let choices = [
                    ("auto", Presentation::Auto),
                    ("mongos", Presentation::Mongos),
                    ("standalone", Presentation::Standalone),
                ];
                out.presentation = self.choice(&path, value, &choices);
            }
            "retry" => {
                out.retry = self.choice(&path, value, &[("driver", Retry::Driver), ("proxy", Retry::Proxy)]);
            }
            "degraded_reads" => {
                let namespaces = self.list(&path, value, "namespaces", 0..=limits::MAX_DEGRADED_NAMESPACES);
                out.degraded_reads = namespaces.unwrap_or_default();
            }
            "allow_unauthenticated_clients" => match value.get_ref().as_bool() {
                Some(allow) => out.allow_unauthenticated_clients = allow,
                None => self.refuse(value.span(), &path, format!("found {}, expected true or false", Shown(value))),
            },
            "auth" => self.only(&path, value, "none"),
            "queue_discipline" => self.only(&path, value, "fifo"),
            "fair_by" => self.only(&path, value, "application"),
            "transaction_idle_timeout_ms" => {
                if integer(value) != Some(0) {
                    self.refuse(value.span(), &path, format!("found {}, only 0 (off) is supported yet", Shown(value)));
                }
            }
            _ if is_table_of_limits(name) => self.limit_table(prefix, name, value, out),
            _ => match limit_named(limits::CLUSTER, name) {
                Some(limit) => self.limit(limit, &path, value, &mut out.values),
                None => self.unknown(prefix, name, key.span()),
            },
        }
    }

    /// `[breaker]` and `[reconnect]`.
    fn limit_table(&mut self, prefix: &str, name: &str, value: &Spanned<DeValue<'_>>, out: &mut FileCluster) {
        let Some(table) = value.get_ref().as_table() else {
            self.refuse(value.span(), &format!("{prefix}{name}"), format!("found {}, expected a table", Shown(value)));
            return;
        };
        for (key, value) in table {
            let name = format!("{name}.{}", key.get_ref());
            match limit_named(limits::CLUSTER, &name) {
                Some(limit) => self.limit(limit, &format!("{prefix}{name}"), value, &mut out.values),
                None => self.unknown(prefix, &name, key.span()),
            }
        }
    }

    fn limit(&mut self, limit: &'static Limit, path: &str, value: &Spanned<DeValue<'_>>, out: &mut Values) {
        let accepted = integer(value).and_then(|value| u64::try_from(value).ok()).filter(|&value| limit.accepts(value));
        if accepted.is_none() {
            self.refuse(value.span(), path, format!("found {}, expected {}", Shown(value), limit.range()));
        }
        out.insert(limit.key, self.found(path, value, accepted));
    }

    fn found<T>(&self, path: &str, at: &Spanned<DeValue<'_>>, value: T) -> Found<T> {
        Found { value, place: self.place(&at.span()), key: path.to_owned() }
    }

    fn text_of<'v>(&mut self, path: &str, value: &'v Spanned<DeValue<'_>>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.refuse(value.span(), path, format!("found {}, expected a text in quotes", Shown(value)));
        }
        text
    }

    fn parsed<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        text: &str,
    ) -> Option<T> {
        text.parse().map_err(|error: T::Err| self.refuse(value.span(), path, error.to_string())).ok()
    }

    /// A list of texts, or one of them by itself; `what` they are, and how many there may be.
    fn list<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        what: &str,
        counts: RangeInclusive<usize>,
    ) -> Option<Vec<T>> {
        let one = std::slice::from_ref(value);
        let values: &[Spanned<DeValue<'_>>] = value.get_ref().as_array().map_or(one, |array| array);
        if !counts.contains(&values.len()) {
            let (found, least, most) = (values.len(), counts.start(), counts.end());
            self.refuse(value.span(), path, format!("found {found} {what}, expected {least} to {most}"));
            return None;
        }
        let parsed: Vec<Option<T>> = values
            .iter()
            .map(|value| self.text_of(path, value).and_then(|text| self.parsed(path, value, text)))
            .collect();
        parsed.into_iter().collect()
    }

    fn choice<T: Copy>(&mut self, path: &str, value: &Spanned<DeValue<'_>>, choices: &[(&str, T)]) -> Option<T> {
        let chosen = choices.iter().find(|(name, _)| value.get_ref().as_str() == Some(name));
        if chosen.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.refuse(value.span(), path, format!("found {}, expected {}", Shown(value), names.join(" or ")));
        }
        chosen.map(|&(_, chosen)| chosen)
    }

    fn only(&mut self, path: &str, value: &Spanned<DeValue<'_>>, supported: &str) {
        if value.get_ref().as_str() != Some(supported) {
            self.refuse(value.span(), path, format!("found {}, only \"{supported}\" is supported yet", Shown(value)));
        }
    }

    fn unknown(&mut self, prefix: &str, name: &str, span: Range<usize>) {
        let inside = !prefix.is_empty();
        if inside && (PROGRAM_KEYS.contains(&name) || limit_named(limits::PROGRAM, name).is_some()) {
            let problem = "holds for the whole program: it stands at the top of the file, before all tables".to_owned();
            return self.refuse(span, &format!("{prefix}{name}"), problem);
        }
        let limits = limits::CLUSTER.iter().chain(if inside { &[] } else { limits::PROGRAM }).map(|limit| limit.key);
        let known = limits.chain(CLUSTER_KEYS.iter().chain(if inside { &[] } else { PROGRAM_KEYS }).copied());
        let hint = nearest(name, known).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
        self.refuse(span, &format!("{prefix}{name}"), format!("unknown key{hint}"));
    }
}

fn limit_named(limits: &'static [Limit], key: &str) -> Option<&'static Limit> {
    limits.iter().find(|limit| limit.key == key)
}

fn is_table_of_limits(name: &str) -> bool {
    limits::CLUSTER.iter().any(|limit| limit.key.split_once('.').is_some_and(|(table, _)| table == name))
}

fn is_cluster_key(name: &str) -> bool {
    CLUSTER_KEYS.contains(&name) || is_table_of_limits(name) || limit_named(limits::CLUSTER, name).is_some()
}

fn integer(value: &Spanned<DeValue<'_>>) -> Option<i64> {
    let number = value.get_ref().as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A value in a message: short, and without passwords.
struct Shown<'a>(&'a Spanned<DeValue<'a>>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 60;
        match self.0.get_ref() {
            DeValue::String(text) => {
                let short: String = redact(text).chars().take(LONGEST).collect();
                write!(f, "{short:?}")
            }
            DeValue::Integer(number) => match number.radix() {
                10 => f.write_str(number.as_str()),
                radix => write!(f, "{} (base {radix})", number.as_str()),
            },
            DeValue::Float(number) => f.write_str(number.as_str()),
            DeValue::Boolean(flag) => write!(f, "{flag}"),
            DeValue::Datetime(time) => write!(f, "{time}"),
            DeValue::Array(_) => f.write_str("a list"),
            DeValue::Table(_) => f.write_str("a table"),
        }
    }
}

/// The known key that `name` was most likely meant to be, if it is near enough.
fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    // `maxPoolSize` and `max-pool-size` are spellings, not mistakes of letters.
    let plain = |key: &str| key.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let name = plain(name);
    let distance = |key: &str| edit_distance(name.as_bytes(), plain(key).as_bytes());
    let tolerated = 1 + name.len() / 5;
    known.map(|key| (distance(key), key)).filter(|&(distance, _)| distance <= tolerated).min().map(|(_, key)| key)
}

/// Levenshtein's distance: letters to insert, drop or change.
fn edit_distance(from: &[u8], to: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        row[0] = left;
        for (j, b) in to.iter().enumerate() {
            left = (diagonal + usize::from(a != b)).min(left + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], left);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
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
            ("clutsers", "clusters"),
        ] {
            let told = mistakes(&format!("{wrong} = 1"));
            assert_eq!(told, [format!("mongomux.toml:1: {wrong}: unknown key, did you mean `{right}`?")]);
        }
        assert_eq!(mistakes("zebra = 1"), ["mongomux.toml:1: zebra: unknown key"]);
    }

    #[test]
    fn what_is_not_supported_yet_is_accepted_only_as_its_default() {
        let defaults =
            "queue_discipline = \"fifo\"\nfair_by = \"application\"\nauth = \"none\"\ntransaction_idle_timeout_ms = 0";
        sound(defaults);
        let told = mistakes(
            "auth = \"scram\"\nfair_by = \"user\"\nqueue_discipline = \"lifo\"\ntransaction_idle_timeout_ms = 1000\n",
        );
        assert_eq!(
            told,
            [
                "mongomux.toml:1: auth: found \"scram\", only \"none\" is supported yet",
                "mongomux.toml:2: fair_by: found \"user\", only \"application\" is supported yet",
                "mongomux.toml:3: queue_discipline: found \"lifo\", only \"fifo\" is supported yet",
                "mongomux.toml:4: transaction_idle_timeout_ms: found 1000, only 0 (off) is supported yet",
            ]
        );
    }

    #[test]
    fn choices_name_what_can_be_chosen() {
        assert_eq!(
            mistakes("presentation = \"mongo\"\nretry = true\nprofile = \"huge\"\nadmin = \"9627\"\nlisten = []\n"),
            [
                "mongomux.toml:1: presentation: found \"mongo\", expected \"auto\" or \"mongos\" or \"standalone\"",
                "mongomux.toml:2: retry: found true, expected \"driver\" or \"proxy\"",
                "mongomux.toml:3: profile: found `huge`, expected one of default, development, low, medium, high, production, \
                 high-availability, constrained, worker, serverless",
                "mongomux.toml:4: admin: `9627` is not an address: expected host:port or unix:/path",
                "mongomux.toml:5: listen: found 0 addresses, expected 1 to 16",
            ]
        );
        assert_eq!(mistakes("breaker = 5\nallow_unauthenticated_clients = 1\nclusters = 1").len(), 3);
    }

    #[test]
    fn a_list_of_listeners_may_be_wrong_in_several_places() {
        let file = sound("listen = [\"127.0.0.1:1\", \"unix:/run/a\"]");
        assert_eq!(file.single.listen.unwrap().value.len(), 2);
        assert_eq!(mistakes("listen = [\"127.0.0.1\", 5,\n \"unix:\"]").len(), 3);
    }

    #[test]
    fn namespaces_are_a_list_of_known_forms_and_not_too_long() {
        let named = |text: &str| sound(text).single.degraded_reads.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(named("degraded_reads = [\"shop.catalog\", \"cms.*\", \"*\"]"), ["shop.catalog", "cms.*", "*"]);
        assert_eq!(named("degraded_reads = []"), [""; 0]);
        assert_eq!(named("degraded_reads = \"cms.*\""), ["cms.*"]);
        assert_eq!(
            mistakes(
                "[clusters.a]\ndegraded_reads = [\"cms.*\",\n \"shop\", 7]\n[clusters.b]\ndegraded_reads = true\n"
            ),
            [
                "mongomux.toml:3: clusters.a.degraded_reads: \"shop\" is no namespace: expected \"database.collection\", \
                 \"database.*\" or \"*\"; all of a database is \"shop.*\"",
                "mongomux.toml:3: clusters.a.degraded_reads: found 7, expected a text in quotes",
                "mongomux.toml:5: clusters.b.degraded_reads: found true, expected a text in quotes",
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
            "max_clients = 5\n[clusters.a]\nmax_pool_size = 7\n[clusters.a.breaker]\nwindow_ms = 500\n[clusters.b]\n",
        );
        assert_eq!(file.named.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(file.named["a"].values["max_pool_size"].value, Some(7));
        assert_eq!(file.named["a"].values["breaker.window_ms"].value, Some(500));
        assert_eq!(
            mistakes("max_pool_size = 1\n[clusters.a]\nmax_clients = 1\nmax_poolsize = 2\n[clusters.\"b c\"]\n"),
            [
                "mongomux.toml:1: max_pool_size: belongs into each [clusters.NAME] table, as there are such tables",
                "mongomux.toml:3: clusters.a.max_clients: holds for the whole program: it stands at the top of the file, \
                 before all tables",
                "mongomux.toml:4: clusters.a.max_poolsize: unknown key, did you mean `max_pool_size`?",
                "mongomux.toml:5: clusters.b c: a name has 1 to 64 letters, digits, `-` or `_`",
            ]
        );
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
