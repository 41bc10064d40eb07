//! What the program has once.

use super::Change::{Live, Restart};
use super::Place::{self, Program};
use super::{Choice as _, Key, Kind, words_of};
use crate::config::Profile;
use crate::config::build::DEFAULT_ADMIN;
use crate::config::limits;
use crate::config::tls::TlsVersion;

/// What may stand in a `[[cluster]]`.
const OF_CLUSTERS: &[Place] = &[Place::ClusterTable, Place::Cluster, Place::Listener];
/// What may stand in a `[[listener]]`.
const OF_LISTENERS: &[Place] = &[Place::ListenerTable, Place::Listener];

pub(super) static KEYS: &[Key] = &[
    Key::new(
        Program,
        "profile",
        Kind::Choice { words: words_of::<Profile>, default: Some(Profile::CHOICES[0].0) },
        Live,
        "Values to start from, for what nothing else is said about. Each profile has a sample in `config/`.",
    ),
    Key::new(
        Program,
        "admin",
        Kind::Address { default: Some(DEFAULT_ADMIN) },
        Restart,
        "Where metrics, probes, stats and the page are served.",
    ),
    Key::new(
        Program,
        "admin_token_file",
        Kind::File,
        Restart,
        "Tokens for all but probes and metrics, one per line. Needed where others can reach the admin port; what stands in the file is \
         read again when it changes.",
    ),
    Key::new(
        Program,
        "admin_probes_only",
        Kind::Flag,
        Restart,
        "The admin port serves probes and metrics and nothing else, so that it may listen anywhere without tokens.",
    ),
    Key::new(
        Program,
        "admin_tls",
        Kind::Flag,
        Restart,
        "TLS on the admin port, where it is no unix socket. Its files are read again when they change.",
    ),
    Key::new(
        Program,
        "admin_tls_certificate_key_file",
        Kind::File,
        Restart,
        "PEM file with the certificate of the admin port, those between it and the authority, and its key.",
    ),
    Key::new(
        Program,
        "admin_tls_key_file",
        Kind::File,
        Restart,
        "PEM file with the key of that certificate, where it has a file of its own.",
    ),
    Key::new(
        Program,
        "admin_tls_ca_file",
        Kind::File,
        Restart,
        "PEM file of authorities: a certificate of theirs opens what a token opens.",
    ),
    Key::new(
        Program,
        "admin_tls_crl_file",
        Kind::File,
        Restart,
        "PEM file with lists of certificates that are not valid any more.",
    ),
    Key::new(
        Program,
        "admin_tls_min_version",
        Kind::Choice { words: words_of::<TlsVersion>, default: None },
        Restart,
        "The oldest version of TLS that the admin port speaks, 1.2 unless it says something else.",
    ),
    Key::new(
        Program,
        "otlp_endpoint",
        Kind::Text { what: "http://host:port or https://host:port", most: limits::MAX_ENDPOINT_BYTES },
        Restart,
        "Where spans and metrics go over OTLP/HTTP, as in `http://localhost:4318`. Only with a program that was built with the feature \
         otel.",
    ),
    Key::new(
        Program,
        "upgrade_socket",
        Kind::File,
        Restart,
        "Unix socket over which the next process takes over from this one: its listeners, and then its clients as they become idle.",
    ),
    Key::new(
        Program,
        "reload_on_change",
        Kind::Flag,
        Restart,
        "This file is loaded again when it changes, as by SIGHUP. Off, as an editor may save it half done.",
    ),
    Key::number(
        Program,
        limits::MAX_CLIENTS,
        Live,
        "Client sockets whose commands are carried out. A tenth more are accepted and told that there is no room; the next ones wait in \
         the system's backlog.",
    ),
    Key::number(
        Program,
        limits::MAX_CLIENTS_PER_ADDRESS,
        Restart,
        "Of these, from one address; with IPv6 from one network of 64 bits. A tenth more are told that there is no room, the next ones \
         are closed.",
    ),
    Key::number(
        Program,
        limits::CLIENT_IDLE_TIMEOUT,
        Live,
        "Clients that send nothing for this long are closed. Off, as drivers keep sockets open on purpose.",
    ),
    Key::number(
        Program,
        limits::HANDSHAKE_TIMEOUT,
        Live,
        "Longest time from accept to a client's first whole message.",
    ),
    Key::number(
        Program,
        limits::FAILED_LOG_INS,
        Live,
        "Log-ins from one address that fail one after the other before further ones have to wait: a second, and each time twice as long, \
         up to a minute.",
    ),
    Key::number(
        Program,
        limits::CLIENT_STALL_TIMEOUT,
        Live,
        "Longest standstill of a client in the middle of a request or of a reply, then it is closed.",
    ),
    Key::number(
        Program,
        limits::MAX_MESSAGE_BYTES,
        Restart,
        "Largest message; `hello` announces it. A memory limit below 94 MB leaves room for smaller ones only.",
    ),
    Key::number(
        Program,
        limits::MEMORY_LIMIT_BYTES,
        Restart,
        "All buffered messages together, never exceeded. By default half of the container's limit if that is less.",
    ),
    Key::number(
        Program,
        limits::MONITOR_INTERVAL,
        Live,
        "Pool snapshots go to the log, and what looks stuck or leaked is searched for, this often.",
    ),
    Key::number(
        Program,
        limits::DRAIN_TIMEOUT,
        Live,
        "Longest time from SIGTERM to the end. Kubernetes kills after 30 s.",
    ),
    Key::number(Program, limits::DRAIN_QUIET, Live, "A drain ends early when nothing was in flight for this long."),
    Key::number(
        Program,
        limits::WORKER_THREADS,
        Restart,
        "Threads that clients and servers are served on. One is the cheapest, until it is full.",
    ),
    Key::new(
        Program,
        "cluster",
        Kind::Tables { of: OF_CLUSTERS, most: limits::MAX_CLUSTERS },
        Restart,
        "Clusters, where there are several: each has topology, pools and queue of its own.",
    ),
    Key::new(
        Program,
        "listener",
        Kind::Tables { of: OF_LISTENERS, most: limits::MAX_LISTENER_TABLES },
        Restart,
        "Listeners, where there are others than the one that a cluster's `listen` is short for.",
    ),
];
