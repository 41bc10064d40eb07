//! Listeners: those of the `[[listener]]` tables, and those that a cluster's own `listen` is short for. Where each leads, and
//! whether any two of them clash. No I/O.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use toml::Value;

use super::build::DEFAULT_LISTEN;
use super::databases::Databases;
use super::effective::{Settings, Table, word_of};
use super::file::{AuthKind, FileListener};
use super::keys::Place;
use super::reader::{Found, nearest};
use super::{Address, Auth, CompressorName, ConfigError, ListenerConfig, Sources};

/// A listener, and where it was asked for.
pub(super) struct BuiltListener {
    pub(super) config: ListenerConfig,
    /// Where its addresses were said; the value is what it is called.
    pub(super) at: Found<String>,
    /// Where it was said that its clients are users of MongoDB.
    looked_up: Option<Found<()>>,
    effective: Table,
}

/// How the clients of a cluster log in, where their listener says nothing else.
#[derive(Clone, Default)]
pub(super) struct UsualAuth {
    pub(super) auth: Option<Found<AuthKind>>,
    pub(super) users_file: Option<Found<PathBuf>>,
}

/// What there is to be listened for.
pub(super) struct Listeners<'a> {
    sources: &'a Sources,
    /// Names of the clusters, in the order of the configuration, and how their clients log in.
    clusters: Vec<String>,
    usual: Vec<UsualAuth>,
    built: Vec<BuiltListener>,
}

impl<'a> Listeners<'a> {
    pub(super) fn new(sources: &'a Sources, clusters: Vec<(String, UsualAuth)>) -> Self {
        let (clusters, usual) = clusters.into_iter().unzip();
        Self { sources, clusters, usual, built: Vec::new() }
    }

    /// The listeners that stand with a cluster: its `listen`, or that of the flags. `alone` says that there is nothing else
    /// in the file to listen for, so that the default is meant.
    pub(super) fn of_cluster(&mut self, name: &str, own: &FileListener, alone: bool, errors: &mut Vec<ConfigError>) {
        let only = self.clusters.len() == 1;
        let flags = if only { self.sources.listen.as_slice() } else { &[] };
        let listen = match &own.listen {
            _ if !flags.is_empty() => Found::of(self.sources.origin("listen"), "listen", flags.to_vec()),
            Some(listen) => listen.clone(),
            None if alone => {
                let (host, port) = DEFAULT_LISTEN;
                Found::of("default", "listen", vec![Address::tcp(host, port)])
            }
            None => {
                for found in own.stray() {
                    let problem =
                        "belongs into the [[listener]] table, as `listen` does: there is none here".to_owned();
                    errors.push(found.error(problem));
                }
                return;
            }
        };
        self.add(&listen, own, name, Databases::from_iter([]), format!("cluster {name}"), errors);
    }

    /// A `[[listener]]` table.
    pub(super) fn of_table(&mut self, mut table: FileListener, errors: &mut Vec<ConfigError>) {
        let missing = |key: &str, problem: String| ConfigError {
            place: table.place.clone(),
            key: format!("{}{key}", table.prefix),
            problem,
        };
        if table.listen.is_none() {
            errors.push(missing("listen", "missing: one address or several are expected".to_owned()));
        }
        let cluster = match &table.cluster {
            Some(named) => self.known(named, errors),
            None if self.clusters.len() == 1 => Some(self.clusters[0].clone()),
            None => {
                errors.push(missing("cluster", format!("missing: which of {} is meant?", self.names())));
                None
            }
        };
        let mut databases = Vec::new();
        for (pattern, named) in std::mem::take(&mut table.databases) {
            databases.extend(self.known(&named, errors).map(|cluster| (pattern, cluster)));
        }
        if let (Some(listen), Some(cluster)) = (table.listen.take(), cluster) {
            let called = format!("the listener at {}", table.place);
            self.add(&listen, &table, &cluster, databases.into_iter().collect(), called, errors);
        }
    }

    fn add(
        &mut self,
        listen: &Found<Vec<Address>>,
        own: &FileListener,
        cluster: &str,
        databases: Databases<String>,
        called: String,
        errors: &mut Vec<ConfigError>,
    ) {
        let tls = own.tls.built(&listen.value, errors);
        let auth = self.auth(own, cluster, &databases, errors);
        let of_cluster =
            self.clusters.iter().position(|name| name == cluster).and_then(|at| self.usual[at].auth.as_ref());
        let said = own.auth.as_ref().or(of_cluster).filter(|_| auth == Auth::Upstream).map(Found::place_only);
        let allowed =
            auth != Auth::None || own.allow_unauthenticated_clients || self.sources.allow_unauthenticated_clients;
        for address in &listen.value {
            let near = address.is_loopback();
            if !allowed && !near {
                errors.push(listen.error(format!(
                    "found `{address}`, which other machines may reach, while clients need no password (auth = \"none\"): \
                     expected a loopback address, a unix socket, another `auth`, or allow_unauthenticated_clients = true \
                     (--allow-unauthenticated-clients)"
                )));
            }
            // On one machine the bytes cost less than to compress them.
            let usual = || if near { Vec::new() } else { CompressorName::ALL.to_vec() };
            let config = ListenerConfig {
                listen: address.clone(),
                cluster: cluster.to_owned(),
                databases: databases.clone(),
                compressors: own.compressors.as_ref().map_or_else(usual, |found| found.value.clone()),
                proxy_protocol: own.proxy_protocol.as_ref().is_some_and(|found| found.value),
                auth: auth.clone(),
                rules: own.rules.clone(),
                tls: tls.clone().filter(|_| matches!(address, Address::Tcp { .. })),
            };
            let at = Found { value: called.clone(), place: listen.place.clone(), key: listen.key.clone() };
            let effective = self.in_force(&config, own, listen);
            self.built.push(BuiltListener { config, at, looked_up: said.clone(), effective });
        }
    }

    /// Each key of a listener, and who says so.
    fn in_force(&self, config: &ListenerConfig, own: &FileListener, listen: &Found<Vec<Address>>) -> Table {
        let (name, said) = (config.listen.to_string(), &own.said);
        let mut settings = Settings::of(&[Place::ListenerTable, Place::Listener], said, None);
        settings.set("listen", &*name, &listen.place);
        settings.set_unless_said(said, "cluster", &*config.cluster, "the cluster that it stands with");
        let usual = self.clusters.iter().position(|name| *name == config.cluster).map(|index| &self.usual[index]);
        if let Some(auth) = usual.and_then(|usual| usual.auth.as_ref()) {
            settings.set_unless_said(said, "auth", word_of(auth.value), &auth.place);
        }
        match &config.auth {
            Auth::Users(file) => {
                let place = usual.and_then(|usual| usual.users_file.as_ref()).map_or("", |file| &file.place);
                settings.set_unless_said(said, "users_file", file.display().to_string(), place);
            }
            Auth::None | Auth::Upstream => {
                settings.clear(|key| key == "users_file", "not read without auth = \"users\"")
            }
        }
        if self.sources.allow_unauthenticated_clients {
            let key = "allow_unauthenticated_clients";
            settings.set(key, true, self.sources.origin(key));
        }
        let compressors: Vec<Value> = config.compressors.iter().map(|it| Value::from(it.name())).collect();
        settings.set_unless_said(said, "compressors", compressors, "default");
        match &config.tls {
            Some(tls) => {
                let wanted = word_of(tls.client_certificates.wanted());
                settings.set_unless_said(said, "tls_client_certificates", wanted, "default");
                settings.set_unless_said(said, "tls_min_version", word_of(tls.min_version), "default");
            }
            None if own.tls.is_on() => {
                settings.clear(|key| key.starts_with("tls"), "unix sockets are never encrypted");
            }
            None => {}
        }
        Table { name, settings }
    }

    /// What is in force for each.
    pub(super) fn effective(&self) -> Vec<Table> {
        self.built.iter().map(|built| built.effective.clone()).collect()
    }

    /// How the clients of a listener log in: as it says itself, or else its cluster. Mistakes count as if nobody could.
    fn auth(
        &self,
        own: &FileListener,
        cluster: &str,
        databases: &Databases<String>,
        errors: &mut Vec<ConfigError>,
    ) -> Auth {
        let usual = self.clusters.iter().position(|name| name == cluster).map(|index| self.usual[index].clone());
        let usual = usual.unwrap_or_default();
        let (auth, file) = (own.auth.as_ref().or(usual.auth.as_ref()), own.users_file.as_ref());
        match auth.map_or(AuthKind::None, |auth| auth.value) {
            AuthKind::Users => match file.or(usual.users_file.as_ref()) {
                Some(file) => Auth::Users(file.value.clone()),
                None => {
                    let problem = "\"users\" needs `users_file`, the file that has them".to_owned();
                    errors.extend(auth.map(|auth| auth.error(problem)));
                    Auth::Users(PathBuf::new())
                }
            },
            kind => {
                // That of a cluster may be for other listeners.
                let usual = usual.users_file.as_ref().map(|file| &file.key);
                if let Some(file) = file.filter(|file| Some(&file.key) != usual) {
                    errors.push(file.error("is read with auth = \"users\" only".to_owned()));
                }
                let several = databases.destinations().any(|to| to != cluster);
                match auth {
                    Some(auth) if kind == AuthKind::Upstream && several => {
                        let problem = "found \"upstream\", and `databases` leads to other clusters: each has users of its own, so \
                                       expected \"users\", or a listener for each cluster";
                        errors.push(auth.error(problem.to_owned()));
                        Auth::Upstream
                    }
                    _ if kind == AuthKind::Upstream => Auth::Upstream,
                    _ => Auth::None,
                }
            }
        }
    }

    /// The name of a cluster that there is.
    fn known(&self, named: &Found<String>, errors: &mut Vec<ConfigError>) -> Option<String> {
        if self.clusters.contains(&named.value) {
            return Some(named.value.clone());
        }
        let near = nearest(&named.value, self.clusters.iter().map(String::as_str));
        let hint =
            near.map_or_else(|| format!("expected {}", self.names()), |near| format!("did you mean \"{near}\"?"));
        let shown: String = named.value.chars().take(60).collect();
        errors.push(named.error(format!("found {shown:?}, which is no cluster's name, {hint}")));
        None
    }

    fn names(&self) -> String {
        self.clusters.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    }

    /// Clusters that no listener leads to: their connections would be for nobody.
    pub(super) fn unreached(&self) -> impl Iterator<Item = &String> {
        let reached = |name: &String| {
            let leads = |it: &ListenerConfig| it.cluster == *name || it.databases.destinations().any(|to| to == name);
            self.built.iter().any(|built| leads(&built.config))
        };
        self.clusters.iter().filter(move |name| !reached(name))
    }

    /// Where it was said of which cluster that clients are users of it.
    pub(super) fn looked_up(&self) -> Vec<(String, Found<()>)> {
        let mut all: Vec<(String, Found<()>)> = Vec::new();
        for built in &self.built {
            let Some(said) = &built.looked_up else { continue };
            if !all.iter().any(|(_, other)| (&other.place, &other.key) == (&said.place, &said.key)) {
                all.push((built.config.cluster.clone(), said.clone()));
            }
        }
        all
    }

    /// All of them, once no two listen at one address, nor at that of the admin port.
    pub(super) fn apart(self, admin: &Found<Address>, errors: &mut Vec<ConfigError>) -> Vec<ListenerConfig> {
        let listeners = self.built.iter().map(|built| (&built.config.listen, &built.at));
        let admin_at = Found { value: "the admin port".to_owned(), place: admin.place.clone(), key: admin.key.clone() };
        let mut taken: Vec<(&Address, &str)> = Vec::new();
        for (address, at) in listeners.chain([(&admin.value, &admin_at)]) {
            if let Some((other, owner)) = taken.iter().find(|(other, _)| overlap(other, address)) {
                let problem = format!("found `{address}`, expected an address apart from `{other}` of {owner}");
                errors.push(at.error(problem));
            }
            taken.push((address, &at.value));
        }
        self.built.into_iter().map(|built| built.config).collect()
    }
}

/// True if one of two listeners would find the other in its place. Port 0 finds a place of its own.
fn overlap(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Tcp { host, port }, Address::Tcp { host: other, port: other_port }) => {
            port == other_port && *port != 0 && (host == other || takes_in(host, other) || takes_in(other, host))
        }
        _ => a == b,
    }
}

/// True if a listener on all addresses, `any`, takes those of `other` as well: that for IPv6 takes all of IPv4, too.
fn takes_in(any: &str, other: &str) -> bool {
    match any.parse::<IpAddr>() {
        Ok(IpAddr::V4(any)) if any.is_unspecified() => other.parse::<Ipv6Addr>().is_err(),
        Ok(IpAddr::V6(any)) => any.is_unspecified(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::Text;
    use super::super::{Config, ConfigError};
    use super::*;

    fn file(text: &str) -> Sources {
        let file = Text { name: "mongomux.toml".to_owned(), text: text.to_owned() };
        Sources { file: Some(file), ..Sources::default() }
    }

    fn listeners(sources: &Sources) -> Vec<ListenerConfig> {
        Config::load(sources).unwrap_or_else(|errors| panic!("{errors}")).0.listeners
    }

    fn mistakes(text: &str) -> Vec<String> {
        let told = |errors: super::super::ConfigErrors| errors.0.iter().map(ConfigError::to_string).collect();
        Config::load(&file(text)).map_or_else(told, |_| Vec::new())
    }

    const TWO: &str = "[[cluster]]\nname = \"users\"\nupstream = \"mongodb://a\"\n\
                       [[cluster]]\nname = \"logs\"\nupstream = \"mongodb://b\"\n";

    #[test]
    fn a_listener_leads_to_its_cluster_and_to_those_of_its_databases() {
        let text = format!(
            "{TWO}listen = \"127.0.0.1:3\"\n[[listener]]\nlisten = [\"127.0.0.1:1\", \"unix:/a\"]\ncluster = \"users\"\n\
             databases = {{ logs = \"logs\", \"audit_*\" = \"logs\", users = \"users\" }}\n"
        );
        let listeners = listeners(&file(&text));
        let shown: Vec<_> =
            listeners.iter().map(|it| format!("{} {} ({})", it.listen, it.cluster, it.databases)).collect();
        let routes = "(logs -> logs, users -> users, audit_* -> logs)";
        assert_eq!(
            shown,
            [
                "127.0.0.1:3 logs ()".to_owned(),
                format!("127.0.0.1:1 users {routes}"),
                format!("unix:/a users {routes}")
            ]
        );
    }

    #[test]
    fn beside_one_cluster_a_listener_needs_no_name() {
        let beside = listeners(&file("listen = \"127.0.0.1:1\"\n[[listener]]\nlisten = \"127.0.0.1:2\"\n"));
        assert_eq!(beside.iter().map(|it| it.cluster.as_str()).collect::<Vec<_>>(), ["default"; 2]);
        let instead = listeners(&file("[[listener]]\nlisten = \"127.0.0.1:2\"\n"));
        assert_eq!(instead.len(), 1, "the default is not listened at as well");
    }

    #[test]
    fn compressors_are_offered_where_others_connect_unless_said_otherwise() {
        let offered = |text: &str, flags: &[Address]| {
            let sources = Sources { listen: flags.to_vec(), allow_unauthenticated_clients: true, ..file(text) };
            listeners(&sources).into_iter().map(|it| (it.compressors.len(), it.proxy_protocol)).collect::<Vec<_>>()
        };
        let everywhere = "listen = [\"127.0.0.1:1\", \"[::1]:1\", \"unix:/a\", \"localhost:2\", \"0.0.0.0:3\"]\n";
        assert_eq!(offered(everywhere, &[]), [(0, false), (0, false), (0, false), (0, false), (3, false)]);
        let asked = "compressors = [\"zstd\"]\nproxy_protocol = true\n";
        assert_eq!(offered(&format!("{asked}{everywhere}"), &[]), [(1, true); 5]);
        assert_eq!(offered(asked, &[Address::tcp("127.0.0.1", 7), Address::tcp("::", 8)]), [(1, true); 2]);
        assert_eq!(offered("compressors = []\nlisten = \"0.0.0.0:1\"", &[]), [(0, false)]);
    }

    #[test]
    fn a_listener_says_how_its_clients_log_in_or_its_cluster_does() {
        let auths = |text: &str| {
            let auths = listeners(&file(text)).into_iter().map(|it| match it.auth {
                Auth::None => "none".to_owned(),
                Auth::Users(file) => file.display().to_string(),
                Auth::Upstream => "upstream".to_owned(),
            });
            auths.collect::<Vec<_>>()
        };
        assert_eq!(auths("auth = \"none\""), ["none"]);
        assert_eq!(auths("auth = \"users\"\nusers_file = \"u\"\nlisten = \"0.0.0.0:1\""), ["u"]);
        assert_eq!(auths("auth = \"upstream\"\nlisten = \"0.0.0.0:1\"\nupstream = \"mongodb://a:b@c\""), ["upstream"]);
        let two = "auth = \"users\"\nusers_file = \"u\"\n[[listener]]\nlisten = \"0.0.0.0:1\"\n\
                   [[listener]]\nlisten = \"127.0.0.1:2\"\nauth = \"none\"\n";
        assert_eq!(auths(two), ["u", "none"]);
        let own = "[[listener]]\nlisten = \"0.0.0.0:1\"\nauth = \"users\"\nusers_file = \"v\"\n";
        assert_eq!(auths(own), ["v"]);
    }

    #[test]
    fn ways_to_log_in_that_cannot_work_are_mistakes() {
        let needs = "mongomux.toml:1: auth: \"users\" needs `users_file`, the file that has them";
        assert_eq!(mistakes("auth = \"users\""), [needs]);
        let only = "is read with auth = \"users\" only";
        assert_eq!(mistakes("users_file = \"u\""), [format!("mongomux.toml:1: users_file: {only}")]);
        let stray = "users_file = \"u\"\n[[listener]]\nlisten = \"127.0.0.1:1\"\n";
        assert_eq!(mistakes(stray), [format!("mongomux.toml:1: users_file: {only}")]);
        assert_eq!(
            mistakes("auth = \"maybe\""),
            ["mongomux.toml:1: auth: found \"maybe\", expected \"none\" or \"users\" or \"upstream\""]
        );
        assert_eq!(
            mistakes("auth = \"upstream\"\nupstream = \"mongodb://a\""),
            [
                "mongomux.toml:1: auth: found \"upstream\", and the connection string of cluster default has no credential: it needs \
              one that may look users up"
            ]
        );
        let routed = format!(
            "{TWO}[[listener]]\nlisten = \"127.0.0.1:1\"\ncluster = \"users\"\ndatabases = {{ a = \"logs\" }}\n\
             auth = \"upstream\"\n"
        );
        let told = mistakes(&routed.replace("//a", "//x:y@a"));
        assert_eq!(
            told,
            [
                "mongomux.toml:11: listener[1].auth: found \"upstream\", and `databases` leads to other clusters: each has users of \
              its own, so expected \"users\", or a listener for each cluster"
            ]
        );
        let two_files = "[[listener]]\nlisten = \"127.0.0.1:1\"\nauth = \"users\"\nusers_file = \"u\"\n\
                         [[listener]]\nlisten = \"127.0.0.1:2\"\nauth = \"users\"\nusers_file = \"v\"\n";
        assert_eq!(mistakes(two_files), [""; 0], "each listener may have users of its own");
    }

    #[test]
    fn where_a_listener_leads_must_be_clear() {
        let told = mistakes(&format!(
            "{TWO}[[listener]]\nlisten = \"127.0.0.1:1\"\ncluster = \"user\"\ndatabases = {{ a = \"log\", b = \"zebra\" }}\n\
             [[listener]]\ndatabases = {{ a = \"logs\" }}\n"
        ));
        assert_eq!(
            told,
            [
                "mongomux.toml:9: listener[1].cluster: found \"user\", which is no cluster's name, did you mean \"users\"?",
                "mongomux.toml:10: listener[1].databases.a: found \"log\", which is no cluster's name, did you mean \"logs\"?",
                "mongomux.toml:10: listener[1].databases.b: found \"zebra\", which is no cluster's name, expected \"users\", \
                 \"logs\"",
                "mongomux.toml:11: listener[2].listen: missing: one address or several are expected",
                "mongomux.toml:11: listener[2].cluster: missing: which of \"users\", \"logs\" is meant?",
            ]
        );
    }

    #[test]
    fn a_cluster_that_no_listener_leads_to_is_a_mistake() {
        let one = format!("{TWO}[[listener]]\nlisten = \"127.0.0.1:1\"\ncluster = \"users\"\n");
        assert_eq!(
            mistakes(&one),
            [
                "mongomux.toml:4: cluster[logs]: no listener leads to it: expected `listen` here, or its name in a [[listener]] \
                 table"
            ]
        );
        assert_eq!(mistakes(TWO).len(), 2);
        assert_eq!(mistakes(&format!("{one}databases = {{ x = \"logs\" }}\n")), [""; 0]);
    }

    #[test]
    fn what_belongs_to_a_listener_needs_one() {
        let stray = mistakes("proxy_protocol = true\ncompressors = []\n[[listener]]\nlisten = \"127.0.0.1:1\"\n");
        let problem = "belongs into the [[listener]] table, as `listen` does: there is none here";
        assert_eq!(
            stray,
            [format!("mongomux.toml:2: compressors: {problem}"), format!("mongomux.toml:1: proxy_protocol: {problem}"),]
        );
    }

    #[test]
    fn each_listener_has_rules_of_its_own_and_they_say_something() {
        let own = listeners(&file(
            "listen = \"127.0.0.1:1\"\nread_only = true\n[[listener]]\nlisten = \"127.0.0.1:2\"\n\
             deny_commands = [\"admin\", \"count\"]\nallow_namespaces = \"shop.*\"\n",
        ));
        let (first, second) = (&own[0].rules, &own[1].rules);
        assert!(first.read_only && first.deny_commands.is_empty() && first.allow_namespaces.is_empty());
        assert!(!second.read_only && second.allow_namespaces.names_all_of("shop"));
        assert_eq!(second.deny_commands.iter().map(ToString::to_string).collect::<Vec<_>>(), ["admin", "count"]);
        let told = mistakes("allow_commands = []\ndeny_commands = [\"getMore\"]\ndeny_namespaces = [\"shop\"]\n");
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("allow_commands: found 0 commands, expected 1 to 256"), "{told:?}");
        assert!(told[1].contains("`getMore` is always passed"), "{told:?}");
        assert!(told[2].contains("all of a database is \"shop.*\""), "{told:?}");
        let stray = mistakes("deny_commands = [\"admin\"]\n[[listener]]\nlisten = \"127.0.0.1:1\"\n");
        assert!(stray[0].contains("deny_commands: belongs into the [[listener]] table"), "{stray:?}");
    }

    #[test]
    fn no_two_listeners_share_an_address() {
        let two =
            |a: &str, b: &str| mistakes(&format!("[[listener]]\nlisten = \"{a}\"\n[[listener]]\nlisten = \"{b}\"\n"));
        assert_eq!(two("127.0.0.1:1", "127.0.0.1:2"), [""; 0]);
        assert_eq!(two("127.0.0.1:1", "[::1]:1"), [""; 0]);
        assert_eq!(two("127.0.0.1:0", "127.0.0.1:0"), [""; 0]);
        assert_eq!(
            two("127.0.0.1:1", "127.0.0.1:1"),
            [
                "mongomux.toml:4: listener[2].listen: found `127.0.0.1:1`, expected an address apart from `127.0.0.1:1` of the \
                 listener at mongomux.toml:1"
            ]
        );
        assert_eq!(two("unix:/a", "unix:/a").len(), 1);
        assert_eq!(two("127.0.0.1:9627", "127.0.0.1:1").len(), 1, "the admin port is taken, too");
        for (a, b, clash) in [
            ("0.0.0.0", "127.0.0.1", true),
            ("0.0.0.0", "::1", false),
            ("::", "::1", true),
            ("::", "127.0.0.1", true),
            ("0.0.0.0", "::", true),
            ("127.0.0.1", "127.0.0.2", false),
        ] {
            let (a, b) = (Address::tcp(a, 9), Address::tcp(b, 9));
            assert_eq!((overlap(&a, &b), overlap(&b, &a)), (clash, clash), "{a} {b}");
        }
    }
}
