//! What is shown is what is in force, with the right origin, without secrets; and what differs is told.

use std::collections::BTreeMap;

use super::super::system::Text;
use super::super::{Address, Config, Profile, Sources};
use super::*;

fn file(text: &str) -> Sources {
    Sources { file: Some(Text { name: "m.toml".to_owned(), text: text.to_owned() }), ..Sources::default() }
}

fn load(sources: &Sources) -> Config {
    Config::load(sources).unwrap_or_else(|errors| panic!("{errors}")).0
}

fn effective(sources: &Sources) -> Effective {
    load(sources).effective
}

fn said(settings: &Settings, key: &str) -> (String, String) {
    let setting = settings.named(key).unwrap_or_else(|| panic!("{key}"));
    (setting.value.as_ref().map(Value::to_string).unwrap_or_default(), setting.origin.clone())
}

fn pair(value: &str, origin: &str) -> (String, String) {
    (value.to_owned(), origin.to_owned())
}

const EVERYTHING: &str = "max_clients = 77\nprofile = \"production\"\n\
    [[cluster]]\nname = \"a\"\nupstream = \"mongodb://db1,db2/?replicaSet=rs0&maxPoolSize=11\"\nlisten = \"127.0.0.1:1\"\n\
    min_pool_size = 3\nbreaker.window_ms = 500\nqueue_discipline = \"codel\"\nauth = \"users\"\nusers_file = \"/u\"\n\
    degraded_reads = \"cms.*\"\ntls = true\ntls_certificate_key_file = \"/c\"\npresentation = \"replica-set\"\n\
    [[cluster.tenant]]\nname = \"web*\"\nweight = 4\n[[cluster.priority]]\napplication = \"b\"\nlevel = \"low\"\n\
    [[cluster]]\nname = \"b\"\nupstream = \"mongodb://db3\"\nadaptive_limit = true\n\
    [[listener]]\nlisten = [\"127.0.0.1:2\", \"unix:/s\"]\ncluster = \"b\"\ndatabases = { \"x_*\" = \"a\" }\nread_only = true\n\
    deny_commands = [\"mapReduce\"]\ntls = true\ntls_certificate_key_file = \"/c\"\ntls_ca_file = \"/ca\"\n";

#[test]
fn used_as_a_file_it_asks_for_the_same() {
    let flags = Sources {
        listen: vec![Address::tcp("127.0.0.1", 5), Address::Unix("/x".into())],
        admin: Some(Address::tcp("127.0.0.1", 6)),
        profile: Some(Profile::HighAvailability),
        container_memory_bytes: Some(300_000_000),
        ..file("max_pool_size = 40\ncodel.interval_ms = 15\n")
    };
    for sources in
        [Sources::default(), file(EVERYTHING), flags, file("drain_timeout_ms = 10\nbreaker.open_max_ms = 20\n")]
    {
        let config = load(&sources);
        let shown = config.effective.to_string();
        let again = load(&file(&shown));
        assert_eq!(format!("{again:?}"), format!("{config:?}"), "{shown}");
        // Said by a file now, and nothing else.
        assert_eq!(difference(&config.effective, &again.effective), [], "{shown}");
    }
}

#[test]
fn each_value_tells_who_says_it() {
    let found = effective(&file(EVERYTHING));
    let [a, b] = found.clusters.as_slice() else { panic!("two are expected") };
    assert_eq!(said(&found.program, "max_clients"), pair("77", "m.toml:1"));
    assert_eq!(said(&found.program, "drain_timeout_ms"), pair("25000", "default"));
    assert_eq!(said(&found.program, "profile"), pair("\"production\"", "m.toml:2"));
    assert_eq!(said(&a.settings, "max_pool_size"), pair("11", "maxPoolSize of the connection string"));
    assert_eq!(said(&a.settings, "min_pool_size"), pair("3", "m.toml:7"));
    assert_eq!(said(&a.settings, "max_idle_time_ms"), pair("45000", "profile production"));
    assert_eq!(said(&a.settings, "breaker.window_ms"), pair("500", "m.toml:8"));
    assert_eq!(said(&a.settings, "replica_set_name"), pair("\"rs0\"", "replicaSet of the connection string"));
    assert_eq!(said(&a.settings, "tenant"), pair("[{ name = \"web*\", weight = 4 }]", "m.toml:16"));
    assert_eq!(said(&b.settings, "adaptive_limit"), pair("true", "m.toml:25"));
    let names: Vec<&str> = found.listeners.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["127.0.0.1:1", "127.0.0.1:2", "unix:/s"]);
    let of = |listener: usize, key| said(&found.listeners[listener].settings, key);
    assert_eq!(of(0, "users_file"), pair("\"/u\"", "m.toml:11"));
    assert_eq!(of(0, "tls_client_certificates"), pair("\"none\"", "default"));
    assert_eq!(of(1, "tls_client_certificates"), pair("\"required\"", "default"));
    assert_eq!(of(1, "auth"), pair("\"none\"", "default"));
    assert_eq!(of(2, "tls"), pair("false", "unix sockets are never encrypted"));
    assert_eq!(of(2, "read_only"), pair("true", "m.toml:30"));
}

#[test]
fn what_could_not_be_had_says_why() {
    let sources = Sources {
        container_memory_bytes: Some(300_000_000),
        said_by: BTreeMap::from([("profile".to_owned(), "flag --profile".to_owned())]),
        profile: Some(Profile::HighAvailability),
        ..file("max_pool_size = 50")
    };
    let found = effective(&sources);
    assert_eq!(said(&found.program, "profile"), pair("\"high-availability\"", "flag --profile"));
    let memory = pair("150000000", "default, but half of the container's memory");
    assert_eq!(said(&found.program, "memory_limit_bytes"), memory);
    let bytes = pair("75000000", "default, but at most half of memory_limit_bytes");
    assert_eq!(said(&found.clusters[0].settings, "wait_queue_bytes"), bytes);
    let least = pair("50", "profile high-availability, but at most max_pool_size");
    assert_eq!(said(&found.clusters[0].settings, "min_pool_size"), least);
}

fn upstream(uri: &str) -> Effective {
    let text = Text { name: "connection string".to_owned(), text: uri.to_owned() };
    effective(&Sources { upstream: Some(text), ..Sources::default() })
}

#[test]
fn no_secret_is_shown_and_another_one_is_told_apart() {
    let with = |password: &str| upstream(&format!("mongodb://app:{password}@db/?authSource=shop"));
    let (old, new) = (with("geheim-1"), with("geheim-2"));
    let shown = [old.to_string(), serde_json::to_string(&old).unwrap(), format!("{old:?}")].concat();
    assert!(!shown.contains("geheim") && shown.contains("mongodb://***@db"), "{shown}");
    assert_eq!(difference(&old, &with("geheim-1")), []);
    let [told] = difference(&old, &new).try_into().unwrap();
    assert_eq!((told.path.as_str(), told.live), ("cluster[default].upstream", false));
    assert!(told.to.as_ref().unwrap().as_str().unwrap().ends_with("(with another secret)"), "{told:?}");
    assert!(!format!("{told:?}").contains("geheim"));
    // From a file of its own it is read again.
    let of_file = |password: &str| {
        let text = Text { name: "u".to_owned(), text: format!("mongodb://app:{password}@db/") };
        effective(&Sources { upstream: Some(text), upstream_file: Some("u".into()), ..Sources::default() })
    };
    let [told] = difference(&of_file("geheim-1"), &of_file("geheim-2")).try_into().unwrap();
    assert!(told.live, "{told:?}");
}

#[test]
fn what_differs_is_told_with_what_it_takes() {
    let told = |old: &str, new: &str| -> Vec<String> {
        let found = difference(&effective(&file(old)), &effective(&file(new)));
        let shown = |value: &Option<Value>| value.as_ref().map_or("-".to_owned(), Value::to_string);
        found.iter().map(|it| format!("{} {} {} {}", it.path, shown(&it.from), shown(&it.to), it.live)).collect()
    };
    assert_eq!(told("", "# the same\nmax_clients = 10000\n"), [""; 0]);
    assert_eq!(
        told(
            "max_pool_size = 9\nread_only = true",
            "worker_threads = 2\nmax_pool_size = 12\n[[priority]]\napplication = \"a\"\nlevel = \"low\""
        ),
        [
            "worker_threads 1 2 false",
            "cluster[default].max_pool_size 9 12 true",
            "cluster[default].priority - [{ application = \"a\", level = \"low\" }] true",
            "listener[127.0.0.1:27016].read_only true false true",
        ]
    );
    // Of both, what waits for a restart is as it was.
    let (old, new) =
        (effective(&file("max_pool_size = 9")), effective(&file("max_pool_size = 12\nworker_threads = 2")));
    let in_force = old.taking_over(&new);
    let left: Vec<String> = difference(&in_force, &new).iter().map(ToString::to_string).collect();
    assert_eq!(left, ["worker_threads: 1 -> 2"]);
    let two = "[[cluster]]\nname = \"a\"\nupstream = \"mongodb://a\"\nlisten = \"127.0.0.1:1\"\n\
               [[cluster]]\nname = \"b\"\nupstream = \"mongodb://b\"\nlisten = \"127.0.0.1:2\"\n";
    let one = "[[cluster]]\nname = \"a\"\nupstream = \"mongodb://a\"\nlisten = \"127.0.0.1:1\"\n";
    assert_eq!(told(two, one), ["cluster[b] \"b\" - false", "listener[127.0.0.1:2] \"127.0.0.1:2\" - false"]);
    assert_eq!(told(one, two), ["cluster[b] - \"b\" false", "listener[127.0.0.1:2] - \"127.0.0.1:2\" false"]);
}

#[test]
fn every_key_is_there() {
    let found = effective(&file(EVERYTHING));
    let has = |settings: &Settings, place| {
        for key in keys::at(place).filter(|key| key.place != Place::Program || !matches!(key.kind, Kind::Tables { .. }))
        {
            assert!(settings.named(key.name).is_some(), "{}", key.name);
        }
    };
    has(&found.program, Place::Program);
    [Place::ClusterTable, Place::Cluster].into_iter().for_each(|place| has(&found.clusters[0].settings, place));
    [Place::ListenerTable, Place::Listener].into_iter().for_each(|place| has(&found.listeners[0].settings, place));
}
