//! What each cluster has beside a listener of its own.

use super::Change::{Live, Restart};
use super::Place::{self, Cluster, ClusterTable, Priority, Tenant};
use super::{Item, Key, Kind, words_of};
use crate::config::build::DEFAULT_UPSTREAM;
use crate::config::fairness::{Level, MAX_NAME_BYTES};
use crate::config::file::QueueKind;
use crate::config::{FairBy, Presentation, Retry, limits};

const fn number(limit: limits::Limit, meaning: &'static str) -> Key {
    Key::number(Cluster, limit, Live, meaning)
}

const PATTERN: Kind = Kind::Text { what: "a name, or its beginning and `*`", most: MAX_NAME_BYTES + 1 };

pub(super) static KEYS: &[Key] = &[
    Key::new(
        ClusterTable,
        "name",
        Kind::Text { what: "1 to 64 letters, digits, `-` or `_`", most: limits::MAX_CLUSTER_NAME_BYTES },
        Restart,
        "What the cluster is called in logs, in stats and by listeners. Needed where there are several.",
    ),
    Key::new(
        Cluster,
        "upstream",
        Kind::ConnectionString { default: DEFAULT_UPSTREAM },
        Restart,
        "The connection string of MongoDB, whose options win over the keys here. One with a password belongs into the environment or \
         into a file (`--upstream-file`), where another password is taken over live.",
    ),
    Key::new(
        Cluster,
        "upstream_password_file",
        Kind::File,
        Restart,
        "The password of the user that the connection string names without one. What stands in the file is read again when it changes.",
    ),
    Key::new(
        Cluster,
        "presentation",
        Kind::Choice { words: words_of::<Presentation>, default: Some("auto") },
        Restart,
        "What clients are shown: `auto` follows the upstream, `mongos` and `standalone` insist, `replica-set` is for applications whose \
         connection string cannot do without `replicaSet=`.",
    ),
    Key::new(
        Cluster,
        "replica_set_name",
        Kind::Text { what: "a name of 1 to 128 bytes", most: limits::MAX_REPLICA_SET_NAME_BYTES },
        Restart,
        "The set that clients see with `presentation = \"replica-set\"`: the upstream's `replicaSet=` unless it says something else.",
    ),
    Key::new(
        Cluster,
        "advertised_address",
        Kind::Address { default: None },
        Restart,
        "The address of its only member: what each client has dialled unless it says something else.",
    ),
    number(
        limits::MAX_POOL_SIZE,
        "Upstream connections per server, all lanes and all users included. They never become more.",
    ),
    number(limits::MAX_UPSTREAM_CONNECTIONS, "Bound over all servers of the cluster."),
    number(
        limits::POOLED_CLIENTS,
        "To switch step by step: of a hundred clients so many share connections, the others have connections of their own, which no \
         bound holds for. 0 observes only.",
    ),
    Key::new(
        Cluster,
        "pooled_databases",
        Kind::List { of: Item::Database, least: 1, most: limits::MAX_POOLED_DATABASES },
        Live,
        "To switch step by step: only commands of these databases share connections; of all unless it says something else.",
    ),
    number(
        limits::FLEET_SIZE,
        "Proxies that share the servers, for what all of them may open together. As many as the servers see, unless it says \
         something else.",
    ),
    number(
        limits::MAX_USER_CONNECTIONS,
        "Of `max_pool_size` those of one user, where users have connections of their own (`auth = \"upstream\"`).",
    ),
    number(
        limits::USER_REFRESH,
        "Users of MongoDB who are logged in are looked up this often: so long a dropped user or a changed password may go unnoticed.",
    ),
    number(
        limits::MIN_POOL_SIZE,
        "Connections per server that are kept warm, at most `max_pool_size`. With `auth = \"upstream\"` none unless it is said.",
    ),
    number(limits::MAX_CONNECTING, "Connections being established at once, per server."),
    number(limits::MAX_IDLE_TIME, "Idle connections above the minimum close after this."),
    number(limits::MAX_LIFETIME, "Connections are replaced after this, give or take 10 %, between two commands."),
    number(limits::CONNECT_TIMEOUT, "TCP, TLS, hello and authentication together."),
    number(
        limits::WAIT_QUEUE_TIMEOUT,
        "Longest wait of a command for a connection, then it is answered with an overload error.",
    ),
    number(limits::WAIT_QUEUE_SIZE, "Waiting commands of the cluster; beyond it an overload answer at once."),
    number(
        limits::WAIT_QUEUE_BYTES,
        "Requests of waiting commands together; beyond it an overload answer at once. Half of `memory_limit_bytes` at most.",
    ),
    Key::new(
        Cluster,
        "queue_discipline",
        Kind::Choice { words: words_of::<QueueKind>, default: Some("fifo") },
        Live,
        "In which order waiting commands go: as they came, or, while a queue stands, the newest first, with early refusals (CoDel).",
    ),
    number(
        limits::CODEL_TARGET,
        "With `queue_discipline = \"codel\"`: a wait that is none to worry about, several times what a command takes.",
    ),
    number(
        limits::CODEL_INTERVAL,
        "With `queue_discipline = \"codel\"`: a queue stands when for so long everybody waited longer than the target.",
    ),
    Key::new(
        Cluster,
        "fair_by",
        Kind::Choice { words: words_of::<FairBy>, default: Some("application") },
        Live,
        "Who competes with whom for the connections. Each tenant that waits gets an equal share of the connections' time.",
    ),
    number(limits::TENANT_MAX_IN_FLIGHT, "Commands in flight of one tenant on one server."),
    number(limits::TENANT_MAX_WAITING, "Waiting commands of one tenant in the cluster."),
    Key::new(
        Cluster,
        "tenant",
        Kind::Tables { of: &[Place::Tenant], most: limits::MAX_FAIRNESS_RULES },
        Live,
        "Other shares and bounds for some tenants. The first table that matches counts.",
    ),
    Key::new(Tenant, "name", PATTERN, Live, "Whom it is for, by the name that `fair_by` tells tenants apart with."),
    Key::number(Tenant, limits::TENANT_WEIGHT, Live, "Share of the connections' time, relative to the others."),
    Key::number(
        Tenant,
        limits::Limit { key: "max_in_flight", ..limits::TENANT_MAX_IN_FLIGHT },
        Live,
        "Its commands in flight on one server; `tenant_max_in_flight` unless it says something else.",
    ),
    Key::number(
        Tenant,
        limits::Limit { key: "max_waiting", ..limits::TENANT_MAX_WAITING },
        Live,
        "Its waiting commands; `tenant_max_waiting` unless it says something else.",
    ),
    Key::new(
        Cluster,
        "priority",
        Kind::Tables { of: &[Place::Priority], most: limits::MAX_FAIRNESS_RULES },
        Live,
        "Who goes first, whatever `fair_by` says; the lower levels get about a tenth of what there is. The first table that matches counts.",
    ),
    Key::new(
        Priority,
        "application",
        PATTERN,
        Live,
        "Which applications, by the `appName` of their connection strings.",
    ),
    Key::new(
        Priority,
        "level",
        Kind::Choice { words: words_of::<Level>, default: None },
        Live,
        "How much their commands matter.",
    ),
    number(
        limits::SERVER_SELECTION_TIMEOUT,
        "Longest wait for a suitable server. An election takes 10 to 12 s: waiting it out is the point.",
    ),
    number(limits::SOCKET_TIMEOUT, "Longest silence of a server in the middle of a command."),
    number(limits::COMMAND_TIMEOUT, "Longest run of a command once it was sent."),
    number(
        limits::SLOW_COMMAND,
        "A command that takes longer, waiting included, has a line in the log, without its values.",
    ),
    number(
        limits::LONG_HELD,
        "Commands, cursors and open transactions that are older are listed in `/stats`, counted and told in the log.",
    ),
    number(
        limits::TRANSACTION_IDLE_TIMEOUT,
        "An open transaction is aborted when none of its statements is on its way for this long. Leave it off where clients reach the \
         server through several proxies.",
    ),
    number(limits::MAX_IN_FLIGHT, "Commands in flight per server, where that is to be less than the pool."),
    Key::new(
        Cluster,
        "adaptive_limit",
        Kind::Flag,
        Restart,
        "Learns from each server how many commands it is given at once, from `min_pool_size` up to `max_in_flight` and `max_pool_size`.",
    ),
    Key::new(
        Cluster,
        "retry",
        Kind::Choice { words: words_of::<Retry>, default: Some("driver") },
        Live,
        "Who re-sends after a request was sent and no reply came: the driver, or also the proxy, once, where that is safe.",
    ),
    Key::new(
        Cluster,
        "degraded_reads",
        Kind::List { of: Item::Namespace, least: 0, most: limits::MAX_DEGRADED_NAMESPACES },
        Live,
        "Reads of the primary that a secondary may answer while there is no primary. What they find may be old.",
    ),
    Key::number(Cluster, limits::HEARTBEAT_FREQUENCY, Restart, "How often servers are monitored."),
    number(limits::LOCAL_THRESHOLD, "Servers this much slower than the nearest still take reads."),
    number(limits::HEALTH_CHECK, "A ping over a pooled connection this often, only when the pool is in use."),
    number(limits::BREAKER_CONSECUTIVE_FAILURES, "The breaker of a server trips after this many failures in a row."),
    number(limits::BREAKER_SUCCESS_RATE, "It trips as well when fewer commands than this share succeed in the window."),
    number(limits::BREAKER_MINIMUM_SAMPLES, "A window with fewer outcomes than this says nothing."),
    number(limits::BREAKER_WINDOW, "Length of the window."),
    number(limits::BREAKER_OPEN_INITIAL, "How long a breaker stays open the first time; each further trip doubles it."),
    number(limits::BREAKER_OPEN_MAX, "How long a breaker stays open at most. A good heartbeat ends it early."),
    number(
        limits::RECONNECT_INITIAL,
        "Upper bound of the first wait between attempts to connect to a server; each further attempt doubles it.",
    ),
    number(limits::RECONNECT_MAX, "Upper bound of every such wait. A good heartbeat starts over."),
];
