//! The keys of a listener, whether it has a table of its own or stands with its cluster.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use toml::Spanned;
use toml::de::DeValue;

use crate::config::compressors::CompressorName;
use crate::config::databases::DatabasePattern;
use crate::config::keys::{self, Place};
use crate::config::limits;
use crate::config::reader::{Found, Reader, Said};
use crate::config::tls::FileTls;
use crate::config::{Address, Rules};

/// What the file says about one listener.
#[derive(Debug, Default)]
pub(in crate::config) struct FileListener {
    /// Where its table begins.
    pub(in crate::config) place: String,
    /// What stands before its keys in messages.
    pub(in crate::config) prefix: String,
    pub(in crate::config) listen: Option<Found<Vec<Address>>>,
    pub(in crate::config) cluster: Option<Found<String>>,
    pub(in crate::config) databases: Vec<(DatabasePattern, Found<String>)>,
    pub(in crate::config) compressors: Option<Found<Vec<CompressorName>>>,
    pub(in crate::config) proxy_protocol: Option<Found<bool>>,
    pub(in crate::config) allow_unauthenticated_clients: bool,
    pub(in crate::config) auth: Option<Found<AuthKind>>,
    pub(in crate::config) users_file: Option<Found<PathBuf>>,
    pub(in crate::config) rules: Rules,
    /// Where the first of its rules stands.
    pub(in crate::config) first_rule: Option<Found<()>>,
    pub(in crate::config) tls: FileTls,
    pub(in crate::config) said: Said,
}

/// What `auth` says; with its file that makes [`crate::config::Auth`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum AuthKind {
    None,
    Users,
    Upstream,
}

impl Reader<'_> {
    pub(super) fn listeners(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<FileListener> {
        let mut listeners = Vec::new();
        for (index, (place, table)) in
            self.tables("listener", value, limits::MAX_LISTENER_TABLES).into_iter().enumerate()
        {
            let prefix = format!("listener[{}].", index + 1);
            let mut listener = FileListener { place, prefix: prefix.clone(), ..FileListener::default() };
            for (key, value) in table {
                let name: &str = key.get_ref();
                let path = format!("{prefix}{name}");
                if let Some(known) = keys::named(Place::ListenerTable, name) {
                    self.note(known, value, &mut listener.said);
                }
                match name {
                    "cluster" => {
                        let text = self.text_of(&path, value).map(str::to_owned);
                        listener.cluster = text.map(|text| self.found(&path, value, text));
                    }
                    "databases" => listener.databases = self.databases(&path, value),
                    _ if keys::named(Place::Listener, name).is_some()
                        && self.listener_key(&path, name, value, &mut listener) => {}
                    _ if keys::named(Place::Cluster, name).is_some() || keys::is_table_of_numbers(name) => {
                        let problem = "is a key of a cluster, not of a listener".to_owned();
                        self.refuse(key.span(), &path, problem);
                    }
                    _ => self.unknown(&prefix, name, key.span(), &[Place::ListenerTable, Place::Listener]),
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

    /// A key of a listener; false if there is none of that name.
    pub(super) fn listener_key(
        &mut self,
        path: &str,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        out: &mut FileListener,
    ) -> bool {
        if let Some(known) = keys::named(Place::Listener, name) {
            self.note(known, value, &mut out.said);
        }
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
            "auth" => out.auth = self.choice(path, value).map(|chosen| self.found(path, value, chosen)),
            "users_file" => {
                let file = self.text_of(path, value).map(PathBuf::from);
                out.users_file = file.map(|file| self.found(path, value, file));
            }
            "allow_unauthenticated_clients" => {
                out.allow_unauthenticated_clients = self.flag(path, value).unwrap_or(false);
            }
            _ => return self.rule_key(path, name, value, out) || self.tls_key(path, name, value, &mut out.tls),
        }
        true
    }

    fn rule_key(&mut self, path: &str, name: &str, value: &Spanned<DeValue<'_>>, out: &mut FileListener) -> bool {
        let rules = &mut out.rules;
        match name {
            "read_only" => rules.read_only = self.flag(path, value).unwrap_or(false),
            "allow_commands" => rules.allow_commands = self.rule(path, value, "commands").into(),
            "deny_commands" => rules.deny_commands = self.rule(path, value, "commands").into(),
            "allow_namespaces" => rules.allow_namespaces = self.rule(path, value, "namespaces").into(),
            "deny_namespaces" => rules.deny_namespaces = self.rule(path, value, "namespaces").into(),
            _ => return false,
        }
        out.first_rule.get_or_insert_with(|| self.found(path, value, ()));
        true
    }

    /// A list of a listener's rules.
    fn rule<T: FromStr<Err: Display>>(&mut self, path: &str, value: &Spanned<DeValue<'_>>, what: &str) -> Vec<T> {
        self.list(path, value, what, 1..=limits::MAX_RULE_ENTRIES).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{mistakes, sound};
    use super::*;

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
}
