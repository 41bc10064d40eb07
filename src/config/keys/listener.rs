//! What each listener has.

use super::Change::{Live, Restart};
use super::Place::{Listener, ListenerTable};
use super::{Item, Key, Kind, words_of};
use crate::config::CompressorName;
use crate::config::file::AuthKind;
use crate::config::limits;
use crate::config::tls::{TlsVersion, Wanted};

/// A list of a listener's rules.
const fn rule(name: &'static str, of: Item, meaning: &'static str) -> Key {
    Key::new(Listener, name, Kind::List { of, least: 1, most: limits::MAX_RULE_ENTRIES }, Live, meaning)
}

pub(super) static KEYS: &[Key] = &[
    Key::new(
        Listener,
        "listen",
        Kind::List { of: Item::Address, least: 1, most: limits::MAX_LISTENERS },
        Restart,
        "Where clients connect. With one cluster and nothing else to listen at, 127.0.0.1:27016.",
    ),
    Key::new(
        ListenerTable,
        "cluster",
        Kind::Text { what: "the name of a cluster", most: limits::MAX_CLUSTER_NAME_BYTES },
        Restart,
        "The cluster that has all databases that `databases` says nothing about. Needed where there are several.",
    ),
    Key::new(
        ListenerTable,
        "databases",
        Kind::Databases,
        Restart,
        "Databases that other clusters have. A name beats every pattern, and of the patterns the longest counts.",
    ),
    Key::new(
        Listener,
        "auth",
        Kind::Choice { words: words_of::<AuthKind>, default: Some("none") },
        Restart,
        "How clients log in: not at all, as users of `users_file`, or as users of MongoDB. What a cluster says holds for its listeners \
         that say nothing else.",
    ),
    Key::new(
        Listener,
        "users_file",
        Kind::File,
        Restart,
        "The users of `auth = \"users\"`, which `mongomux user add` writes. What stands in the file is read again when it changes.",
    ),
    Key::new(
        Listener,
        "allow_unauthenticated_clients",
        Kind::Flag,
        Live,
        "Listen where other machines can connect although clients need no password.",
    ),
    Key::new(
        Listener,
        "compressors",
        Kind::List { of: Item::Compressor, least: 0, most: CompressorName::ALL.len() },
        Restart,
        "What clients are offered to compress with. By default nothing on loopback addresses and unix sockets, and all elsewhere.",
    ),
    Key::new(
        Listener,
        "proxy_protocol",
        Kind::Flag,
        Restart,
        "Every connection must begin with a PROXY protocol header, version 2, which tells where the client really is.",
    ),
    Key::new(
        Listener,
        "tls",
        Kind::Flag,
        Restart,
        "TLS for the TCP addresses; unix sockets are never encrypted. All its files are read again when they change.",
    ),
    Key::new(
        Listener,
        "tls_certificate_key_file",
        Kind::File,
        Restart,
        "PEM file with our certificate, those between it and the authority, and its key. Needed with `tls`.",
    ),
    Key::new(
        Listener,
        "tls_key_file",
        Kind::File,
        Restart,
        "PEM file with the key of that certificate, where it has a file of its own.",
    ),
    Key::new(Listener, "tls_ca_file", Kind::File, Restart, "PEM file of the authorities of clients' certificates."),
    Key::new(
        Listener,
        "tls_client_certificates",
        Kind::Choice { words: words_of::<Wanted>, default: None },
        Restart,
        "Whether clients show certificates: required with `tls_ca_file` and not asked for without it, unless it says something else.",
    ),
    Key::new(
        Listener,
        "tls_crl_file",
        Kind::File,
        Restart,
        "PEM file with lists of certificates of clients that are not valid any more.",
    ),
    Key::new(
        Listener,
        "tls_min_version",
        Kind::Choice { words: words_of::<TlsVersion>, default: None },
        Restart,
        "The oldest version of TLS that clients may speak, 1.2 unless it says something else.",
    ),
    Key::new(
        Listener,
        "read_only",
        Kind::Flag,
        Live,
        "Pass only what is known to read. This rule and the four below can be changed with `POST /admin/rules` as well.",
    ),
    rule("allow_commands", Item::Command, "Pass these commands only, and what ends or continues them."),
    rule("deny_commands", Item::Command, "Refuse these commands."),
    rule("allow_namespaces", Item::Namespace, "Pass only what touches nothing but these."),
    rule("deny_namespaces", Item::Namespace, "Refuse what touches any of these."),
];
