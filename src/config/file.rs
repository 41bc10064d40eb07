//! The TOML file: every key to its place, with all mistakes of the file. Only what can be told from a key and its value
//! is checked here; what depends on other keys or sources is checked in `build.rs` and `listeners.rs`.

mod cluster;
mod listener;

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Place};
use super::reader::{Found, Reader, Said, Values, nearest};
use super::tls::FileTls;
use super::{Address, ConfigError, Profile};
pub(super) use cluster::FileCluster;
pub(super) use listener::{AuthKind, FileListener};

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct FileConfig {
    pub(super) profile: Option<Profile>,
    pub(super) admin: Option<Found<Address>>,
    pub(super) admin_token_file: Option<Found<PathBuf>>,
    pub(super) admin_probes_only: Option<Found<bool>>,
    pub(super) upgrade_socket: Option<Found<PathBuf>>,
    pub(super) reload_on_change: bool,
    pub(super) admin_tls: FileTls,
    pub(super) otlp_endpoint: Option<Found<String>>,
    pub(super) program: Values,
    pub(super) said: Said,
    /// Keys at top level; meaningful when there are no `[[cluster]]` tables.
    pub(super) single: FileCluster,
    /// `[[cluster]]`, in the order of the file.
    pub(super) clusters: Vec<FileCluster>,
    /// `[[listener]]`, in the order of the file.
    pub(super) listeners: Vec<FileListener>,
}

/// What `queue_discipline` says; with its numbers that makes [`super::QueueDiscipline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueKind {
    Fifo,
    Codel,
}

type Name<'a> = Spanned<Cow<'a, str>>;

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
            if let Some(known) = keys::named(Place::Program, name) {
                self.note(known, value, &mut file.said);
                if !self.program_key(name, value, &mut file) {
                    self.unknown("", name, key.span(), &[Place::Program]);
                }
            } else if several && keys::is_of_clusters(name) {
                let problem = "belongs into the [[cluster]] tables, as there are such tables".to_owned();
                self.refuse(key.span(), name, problem);
            } else {
                self.cluster_key("", key, value, &mut file.single);
            }
        }
        file
    }

    /// A key of the program; false if there is none of that name.
    fn program_key(&mut self, name: &str, value: &Spanned<DeValue<'_>>, file: &mut FileConfig) -> bool {
        match name {
            "profile" => file.profile = self.choice(name, value),
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
            "otlp_endpoint" => {
                let endpoint = self.text_of(name, value).map(str::to_owned);
                file.otlp_endpoint = endpoint.map(|endpoint| self.found(name, value, endpoint));
            }
            "upgrade_socket" => {
                let path = self.text_of(name, value).map(PathBuf::from);
                file.upgrade_socket = path.map(|path| self.found(name, value, path));
            }
            "reload_on_change" => file.reload_on_change = self.flag(name, value).unwrap_or_default(),
            "cluster" => file.clusters = self.clusters(value),
            "listener" => file.listeners = self.listeners(value),
            _ => match keys::limit(Place::Program, name) {
                Some(limit) => self.limit(limit, name, value, &mut file.program),
                None => return self.admin_tls_key(name, value, &mut file.admin_tls),
            },
        }
        true
    }

    /// A key that may not stand behind `prefix`, where those of `places` may.
    pub(super) fn unknown(&mut self, prefix: &str, name: &str, span: Range<usize>, places: &[Place]) {
        let problem = if !prefix.is_empty() && keys::named(Place::Program, name).is_some() {
            "holds for the whole program: it stands at the top of the file, before all tables".to_owned()
        } else {
            // Those of tables by themselves as well: `breaker` of `breaker.window_ms`.
            let known = places.iter().flat_map(|&place| keys::at(place)).map(|key| key.name);
            let known = known.flat_map(|name| [Some(name), name.split_once('.').map(|(table, _)| table)]).flatten();
            let hint = nearest(name, known).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
            format!("unknown key{hint}")
        };
        self.refuse(span, &format!("{prefix}{name}"), problem);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fairness::{FairBy, Level, PriorityRule, TenantBounds, TenantRule};
    use super::super::keys::{Item, Key, Kind};
    use super::super::limits;
    use super::*;

    pub(super) fn mistakes(text: &str) -> Vec<String> {
        let mut errors = Vec::new();
        read("mongomux.toml", text, &mut errors);
        errors.iter().map(ConfigError::to_string).collect()
    }

    pub(super) fn sound(text: &str) -> FileConfig {
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

    /// Something that the key may say.
    fn example(key: &Key) -> String {
        match key.kind {
            Kind::Number(limit) => limit.max.to_string(),
            Kind::Flag => "true".to_owned(),
            Kind::Choice { words, .. } => format!("\"{}\"", words()[0]),
            Kind::Text { .. } => "\"a\"".to_owned(),
            Kind::ConnectionString { default } => format!("\"{default}\""),
            Kind::File => "\"/a\"".to_owned(),
            Kind::Address { .. } => "\"127.0.0.1:1\"".to_owned(),
            Kind::List { of: Item::Address, .. } => "[\"unix:/a\"]".to_owned(),
            Kind::List { of: Item::Compressor, .. } => "[\"zstd\"]".to_owned(),
            Kind::List { of: Item::Command, .. } => "[\"read\"]".to_owned(),
            Kind::List { of: Item::Namespace, .. } => "[\"a.*\"]".to_owned(),
            Kind::List { of: Item::Database, .. } => "[\"a*\"]".to_owned(),
            Kind::Databases => "{ a = \"b\" }".to_owned(),
            Kind::Tables { of, .. } => {
                let keys = of.iter().flat_map(|&place| keys::at(place));
                let keys: Vec<String> = keys.map(|key| format!("{} = {}", key.name, example(key))).collect();
                format!("[{{ {} }}]", keys.join(", "))
            }
        }
    }

    #[test]
    fn what_the_table_has_is_read_where_it_may_stand_and_nowhere_else() {
        use Place::{Cluster, ClusterTable, Listener, ListenerTable, Priority, Program, Tenant};
        for (header, places) in [
            ("", &[Program, Cluster, Listener][..]),
            ("[[cluster]]\n", &[Cluster, ClusterTable, Listener]),
            ("[[listener]]\n", &[Listener, ListenerTable]),
            ("[[tenant]]\nname = \"a\"\n", &[Tenant]),
            ("[[priority]]\napplication = \"a\"\nlevel = \"low\"\n", &[Priority]),
        ] {
            for key in keys::all() {
                let text = format!("{header}{} = {}\n", key.name, example(key));
                let beside = places.iter().find_map(|&place| keys::named(place, key.name));
                let told = mistakes(&text);
                match beside {
                    Some(known) if known.place == key.place => {
                        let twice = text.matches(&format!("\n{} = ", key.name)).count() > 1;
                        assert!(told.is_empty() || twice, "{text}{told:?}");
                    }
                    // Something else of that name may stand there.
                    Some(_) => {}
                    None => assert_eq!(told.len(), 1, "{text}{told:?}"),
                }
            }
        }
    }

    #[test]
    fn every_limit_is_accepted_at_both_ends_and_refused_beyond() {
        for limit in keys::limits(Place::Cluster).chain(keys::limits(Place::Program)) {
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
            ("braker", "breaker"),
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
                "mongomux.toml:3: queue_discipline: found \"lifo\", expected \"fifo\" or \"codel\", did you mean \"fifo\"?",
            ]
        );
    }

    #[test]
    fn choices_name_what_can_be_chosen() {
        assert_eq!(
            mistakes("presentation = \"mongo\"\nretry = true\nprofile = \"huge\"\nadmin = \"9627\"\nlisten = []\n"),
            [
                "mongomux.toml:1: presentation: found \"mongo\", expected \"auto\" or \"mongos\" or \"standalone\" or \"replica-set\", \
                 did you mean \"mongos\"?",
                "mongomux.toml:2: retry: found true, expected \"driver\" or \"proxy\"",
                "mongomux.toml:3: profile: found \"huge\", expected \"default\" or \"development\" or \"low\" or \"medium\" or \
                 \"high\" or \"production\" or \"high-availability\" or \"constrained\" or \"worker\" or \"serverless\"",
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
