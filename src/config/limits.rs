//! Every bound of the program: default, unit, range, reason.
//!
//! The first half are the bounds an operator can set, as [`Limit`]s under the key they have in the file; what each means to an
//! operator is told in the tables of `keys.rs`, from which reading, checking and suggesting keys follow. The
//! second half is fixed. What depends on something else is tied to it by a const assertion at the end. How values of
//! several sources are merged is not here but in `layers.rs`.

use std::time::Duration;

/// A bound that can be configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Key in the file; a dot stands for a sub-table.
    pub key: &'static str,
    /// Unit of the three numbers.
    pub unit: &'static str,
    /// In force when no source says anything; 0 may be outside of the range, see `zero`.
    pub default: u64,
    /// Smallest value accepted.
    pub min: u64,
    /// Largest value accepted.
    pub max: u64,
    /// What 0 means where it lies outside of the range: `off`, `never`, `none`; `None` refuses it.
    pub zero: Option<&'static str>,
}

impl Limit {
    const fn new(key: &'static str, unit: &'static str, default: u64, min: u64, max: u64) -> Self {
        assert!(min <= default && default <= max, "the default lies outside of its own range");
        Self { key, unit, default, min, max, zero: None }
    }

    /// Accepts 0 as well, with a meaning of its own.
    const fn or_zero(mut self, meaning: &'static str) -> Self {
        assert!(self.min > 0, "0 lies in the range already");
        self.zero = Some(meaning);
        self
    }

    /// Like [`Self::or_zero`], and 0 is the default.
    const fn off_by_default(key: &'static str, unit: &'static str, meaning: &'static str, min: u64, max: u64) -> Self {
        let mut limit = Self::new(key, unit, min, min, max).or_zero(meaning);
        limit.default = 0;
        limit
    }

    /// True if an operator may ask for `value`.
    pub const fn accepts(&self, value: u64) -> bool {
        (self.min <= value && value <= self.max) || (value == 0 && self.zero.is_some())
    }

    /// The accepted values in words: `1 to 10000 connections`.
    pub fn range(&self) -> String {
        let range = format!("{} to {} {}", self.min, self.max, self.unit);
        self.zero.map_or_else(|| range.clone(), |meaning| format!("0 ({meaning}) or {range}"))
    }
}

pub(super) const MS: &str = "ms";
pub(super) const BYTES: &str = "bytes";
const CONNECTIONS: &str = "connections";
const COMMANDS: &str = "commands";

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

// ---- per cluster ----

/// Upstream connections per server. One CPU core of a server is kept busy by a handful, so ten is plenty for most.
/// MongoDB reads 0 as "no limit", which is what this program exists to prevent.
pub const MAX_POOL_SIZE: Limit = Limit::new("max_pool_size", CONNECTIONS, 10, 1, 10_000);
/// Over all servers of a cluster. None by default: a cluster rarely has more servers than the operator expects.
pub const MAX_UPSTREAM_CONNECTIONS: Limit =
    Limit::off_by_default("max_upstream_connections", CONNECTIONS, "none", 1, 100_000);
/// Sidecars that share the servers, to reckon what all of them may open together. Unset: they are counted by their connections
/// where the service's user may look at those.
pub const FLEET_SIZE: Limit = Limit::off_by_default("fleet_size", "sidecars", "as seen", 1, 100_000);
/// Clients whose commands share connections: all, as that is what the program is for. Less is for a team that switches step by
/// step.
pub const POOLED_CLIENTS: Limit = Limit::new("pooled_clients_percent", "percent", 100, 0, 100);
/// Of one user, per server, where clients log in as users of MongoDB. None by default: whoever is alone may have all, and gives up
/// what others need.
pub const MAX_USER_CONNECTIONS: Limit =
    Limit::off_by_default("max_user_connections", CONNECTIONS, "none", 1, MAX_POOL_SIZE.max);
/// How long a dropped user, or a changed password, may go unnoticed where it was not us who changed it.
pub const USER_REFRESH: Limit = Limit::new("user_refresh_ms", MS, 30_000, 1_000, HOUR);
/// Kept warm: two, so that the first commands after a quiet time do not wait for a handshake.
pub const MIN_POOL_SIZE: Limit = Limit::new("min_pool_size", CONNECTIONS, 2, 0, MAX_POOL_SIZE.max);
/// Connections being established at once: CMAP's default, so that a restart of the server meets no storm.
pub const MAX_CONNECTING: Limit = Limit::new("max_connecting", CONNECTIONS, 2, 1, 100);
/// Below the 4 to 10 minutes after which balancers and firewalls forget a silent flow.
pub const MAX_IDLE_TIME: Limit = Limit::new("max_idle_time_ms", MS, 30_000, 100, DAY).or_zero("never");
/// Four hours: often enough to follow changed DNS, certificates and balancers, too seldom to be felt.
pub const MAX_LIFETIME: Limit = Limit::new("max_lifetime_ms", MS, 4 * HOUR, 1_000, 7 * DAY).or_zero("never");
/// TCP, TLS, hello and authentication together; the drivers' own default.
pub const CONNECT_TIMEOUT: Limit = Limit::new("connect_timeout_ms", MS, 10_000, 10, 5 * MINUTE);
/// Longest wait for a connection. Whoever waited longer has mostly been given up by a user already.
pub const WAIT_QUEUE_TIMEOUT: Limit = Limit::new("wait_queue_timeout_ms", MS, 5_000, 1, 10 * MINUTE);
/// Waiting commands of a cluster: one each of twice the 2,000 sockets this is built for.
pub const WAIT_QUEUE_SIZE: Limit = Limit::new("wait_queue_size", COMMANDS, 4_000, 1, 1_000_000);
/// Requests of waiting commands together. Of small requests the count is the limit; this is for large ones. One is let on
/// however large it is, when nobody else waits. Half of [`MEMORY_LIMIT_BYTES`] at most, so that who is refused can be read.
pub const WAIT_QUEUE_BYTES: Limit = Limit::new("wait_queue_bytes", BYTES, 256 << 20, 1 << 20, 1 << 40);
/// Of one tenant on one server. Off: shares do more good than fixed bounds.
pub const TENANT_MAX_IN_FLIGHT: Limit =
    Limit::off_by_default("tenant_max_in_flight", COMMANDS, "off", 1, MAX_POOL_SIZE.max);
/// Of one tenant in a cluster. Off: the last tenth of the queue is kept for those who have little in it anyway.
pub const TENANT_MAX_WAITING: Limit =
    Limit::off_by_default("tenant_max_waiting", COMMANDS, "off", 1, WAIT_QUEUE_SIZE.max);
/// With `queue_discipline = "codel"`: a wait that is none to worry about, several times what a command takes.
pub const CODEL_TARGET: Limit = Limit::new("codel.target_ms", MS, 20, 1, MINUTE);
/// A queue stands when for so long everybody has waited longer than the target: bursts are shorter.
pub const CODEL_INTERVAL: Limit = Limit::new("codel.interval_ms", MS, 500, 10, 10 * MINUTE);
/// Longest wait for a suitable server: an election after a crash takes 10 to 12 s, and waiting it out is the point.
pub const SERVER_SELECTION_TIMEOUT: Limit = Limit::new("server_selection_timeout_ms", MS, 15_000, 1, 10 * MINUTE);
/// Silence of a server in the middle of a command. Off: a long command is silent, too.
pub const SOCKET_TIMEOUT: Limit = Limit::off_by_default("socket_timeout_ms", MS, "off", 10, DAY);
/// Longest run of one command once sent. Off: a server sets no limit either.
pub const COMMAND_TIMEOUT: Limit = Limit::off_by_default("command_timeout_ms", MS, "off", 10, DAY);
/// A command that takes longer, waiting included, has a line in the log. Off: what is slow, only its operator knows.
pub const SLOW_COMMAND: Limit = Limit::off_by_default("slow_command_ms", MS, "off", 1, DAY);
/// Commands, cursors and open transactions that are older are listed in `/stats`, counted and told in the log. Long for a
/// request that a person waits for, and time enough to act before servers end a transaction, after 60 s.
pub const LONG_HELD: Limit = Limit::new("long_held_ms", MS, 30_000, 100, DAY).or_zero("never");
/// An open transaction of which no statement is on its way for this long is aborted. Off: an application may take its time,
/// and its server's own limit of 60 s ends it.
pub const TRANSACTION_IDLE_TIMEOUT: Limit = Limit::off_by_default("transaction_idle_timeout_ms", MS, "off", 100, DAY);
/// Commands in flight per server. Off: the pool is the limit.
pub const MAX_IN_FLIGHT: Limit = Limit::off_by_default("max_in_flight", COMMANDS, "off", 1, MAX_POOL_SIZE.max);
/// The drivers' default; their specification forbids less than half a second.
pub const HEARTBEAT_FREQUENCY: Limit = Limit::new("heartbeat_frequency_ms", MS, 10_000, 500, 10 * MINUTE);
/// The drivers' default; at 0 only the fastest server takes reads.
pub const LOCAL_THRESHOLD: Limit = Limit::new("local_threshold_ms", MS, 15, 0, MINUTE);
/// A ping now and then over a pooled connection finds what heartbeats, on their own connection, cannot see.
pub const HEALTH_CHECK: Limit = Limit::new("health_check_ms", MS, 30_000, 100, HOUR);
/// Failures in a row that trip the breaker: Envoy's and Linkerd's order of magnitude.
pub const BREAKER_CONSECUTIVE_FAILURES: Limit = Limit::new("breaker.consecutive_failures", "failures", 5, 1, 1_000);
/// Trips below this share of successes; at 0 never.
pub const BREAKER_SUCCESS_RATE: Limit = Limit::new("breaker.success_rate_percent", "percent", 50, 0, 100);
/// A share of fewer outcomes than this says nothing.
pub const BREAKER_MINIMUM_SAMPLES: Limit = Limit::new("breaker.minimum_samples", "outcomes", 20, 1, 1_000_000);
/// The window in which successes are counted: long enough for the samples, short enough to notice.
pub const BREAKER_WINDOW: Limit = Limit::new("breaker.window_ms", MS, 10_000, 100, 10 * MINUTE);
/// First time open: about as long as a restarted process needs to listen again.
pub const BREAKER_OPEN_INITIAL: Limit = Limit::new("breaker.open_initial_ms", MS, 1_000, 10, 10 * MINUTE);
/// Longest time open: a good heartbeat ends it early, so this is for servers that answer heartbeats and nothing else.
pub const BREAKER_OPEN_MAX: Limit = Limit::new("breaker.open_max_ms", MS, 60_000, 10, HOUR);
/// Upper bound of the first wait between attempts to connect.
pub const RECONNECT_INITIAL: Limit = Limit::new("reconnect.initial_ms", MS, 100, 1, MINUTE);
/// Upper bound of every such wait: what a server that comes back is kept waiting at most.
pub const RECONNECT_MAX: Limit = Limit::new("reconnect.max_ms", MS, 30_000, 1, HOUR);

/// Share of one tenant relative to others.
pub const TENANT_WEIGHT: Limit = Limit::new("weight", "shares", 1, 1, 100);

// ---- of the program ----

/// Client sockets whose commands go upstream; see also [`SURPLUS_CLIENTS_SHARE`]. At 1 to 5 KiB each these are some tens of
/// megabytes; the open-file limit is the other bound.
pub const MAX_CLIENTS: Limit = Limit::new("max_clients", "clients", 10_000, 1, 1_000_000);
/// Of these, from one address; of IPv6 from one network of 64 bits. Off, as with other proxies: beside the application all come
/// from one address, and so do those behind one NAT.
pub const MAX_CLIENTS_PER_ADDRESS: Limit =
    Limit::off_by_default("max_clients_per_address", "clients", "off", 1, MAX_CLIENTS.max);
/// Off: drivers keep sockets open on purpose, and an idle one costs a kilobyte.
pub const CLIENT_IDLE_TIMEOUT: Limit = Limit::off_by_default("client_idle_timeout_ms", MS, "off", 100, 7 * DAY);
/// From accept to the first whole message; nobody who speaks the protocol waits that long.
pub const HANDSHAKE_TIMEOUT: Limit = Limit::new("handshake_timeout_ms", MS, 10_000, 100, 10 * MINUTE);
/// Log-ins from one address that fail one after the other before further ones wait, see [`FAILED_LOG_IN_PAUSE`]. More than a
/// person mistypes, and at the waits that follow no password is found by trying.
pub const FAILED_LOG_INS: Limit = Limit::new("failed_log_ins", "log-ins", 10, 1, 100_000).or_zero("off");
/// Standstill in the middle of a request or of a reply, see [`LEAST_BYTES_PER_SECOND`]. It frees memory, not connections:
/// none is held meanwhile.
pub const CLIENT_STALL_TIMEOUT: Limit = Limit::new("client_stall_timeout_ms", MS, 30_000, 100, HOUR);
/// The server's own limit; not less than one largest document (16 MiB and 16 KiB) with its message around it.
pub const MAX_MESSAGE_BYTES: Limit =
    Limit::new("max_message_bytes", BYTES, 48_000_000, (16 << 20) + (16 << 10) + 1024, 48_000_000);
/// All buffered messages together, divided as `shares.rs` says. Half of a container's limit if that is less, see
/// [`CONTAINER_SHARE`]. The least has room for one largest request and one largest reply at once.
pub const MEMORY_LIMIT_BYTES: Limit = Limit::new("memory_limit_bytes", BYTES, 512 << 20, 42_000_000, 1 << 40);
/// Pool snapshot to the log, search for stuck pins: out of step with the minute of most cron jobs.
pub const MONITOR_INTERVAL: Limit = Limit::new("monitor_interval_ms", MS, 45_000, 100, HOUR);
/// Kubernetes kills 30 s after SIGTERM; the rest is for closing down.
pub const DRAIN_TIMEOUT: Limit = Limit::new("drain_timeout_ms", MS, 25_000, 0, HOUR);
/// Quiet for this long means that clients have gone elsewhere; longer than their usual pauses.
pub const DRAIN_QUIET: Limit = Limit::new("drain_quiet_ms", MS, 5_000, 0, HOUR);
/// Threads that clients and servers are served on. On one thread a command is never woken across threads: a second one costs
/// a fifth to a third more CPU for each command, and pays where one is full, see `docs/performance.md`.
pub const WORKER_THREADS: Limit = Limit::new("worker_threads", "threads", 1, 1, 64);

// ---- fixed ----

/// Stands for "never" where a `Duration` is wanted: no process lives to see it, and added to an `Instant` it cannot
/// overflow as `Duration::MAX` would.
pub const NEVER: Duration = Duration::from_millis(10 * 365 * DAY);
/// Beyond `max_clients` one part in this many more are accepted, to be told that there is no room: enough that a driver which
/// wants a few sockets more hears it at once instead of waiting in the backlog, and next to nothing beside the others.
pub const SURPLUS_CLIENTS_SHARE: usize = 10;
/// The default of `memory_limit_bytes` takes one part in this many of a container's limit; sockets and the rest of
/// the program live in the other half.
pub const CONTAINER_SHARE: u64 = 2;
/// The configuration file and the file of a connection string, bytes: more than anybody writes by hand.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// `[[tenant]]` and `[[priority]]` tables of a cluster, each.
pub const MAX_FAIRNESS_RULES: usize = 100;
/// Tenants of one cluster that are told apart; all others share one share.
pub const MAX_TENANTS: usize = 1_000;
/// Rooms for the work on a message that are kept for the next one, each some 2 KB, by each listener for its TCP and for its
/// unix sockets: as many as are often in use at once.
pub const MAX_FREE_DESKS: usize = 256;
/// Buffers of 1 KiB that each thread keeps for the next requests: as many as often wait or are under way at once.
pub const SPARE_BUFFERS: usize = 512;
/// Clusters in one file: each has tasks, listeners and pools of its own.
pub const MAX_CLUSTERS: usize = 64;
/// Addresses in one `listen`.
pub const MAX_LISTENERS: usize = 16;
/// `[[listener]]` tables of one file: one for each cluster, and as many again.
pub const MAX_LISTENER_TABLES: usize = 2 * MAX_CLUSTERS;
/// Entries of one `databases`: patterns are compared one by one for each command.
pub const MAX_DATABASE_ROUTES: usize = 256;
/// Longest name of a database, bytes: the server's own limit.
pub const MAX_DATABASE_BYTES: usize = 63;
/// `[[user]]` tables of a users file, some 250 bytes each with two verifiers: what [`MAX_FILE_BYTES`] has room for.
pub const MAX_FILE_USERS: usize = 4_000;
/// Roles of one user of a users file.
pub const MAX_FILE_ROLES: usize = 100;
/// Longest name of a user, and of the database that holds it, bytes: distinguished names of certificates are the longest.
pub const MAX_USER_NAME_BYTES: usize = 512;
/// How long an address waits after [`FAILED_LOG_INS`] failures in a row. Each further one doubles it ...
pub const FAILED_LOG_IN_PAUSE: Duration = Duration::from_secs(1);
/// ... up to this: everybody behind the address waits, so it is never long.
pub const FAILED_LOG_IN_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Addresses whose failures are counted, some 70 bytes each; beyond them the oldest is forgotten.
pub const MAX_FAILED_LOG_IN_ADDRESSES: usize = 10_000;
/// Log-ins that failed are told in the log this often in one second, the rest only counted: an attack is not to fill a disk.
pub const FAILED_LOG_INS_LOGGED_PER_SECOND: u32 = 10;
/// A message of a client that has still to log in, bytes; a compressed one may have as many inside. A hello takes some hundred,
/// the largest round of a log-in about two thousand.
pub const UNAUTHENTICATED_MESSAGE_BYTES: usize = 64 << 10;
/// Messages that a client which has still to log in may send at once: several times what drivers and shells do ...
pub const KNOCKS_AT_ONCE: u32 = 32;
/// ... and for ever: four times what the most frequent monitor sends.
pub const KNOCKS_PER_SECOND: u32 = 8;
/// Longest name of a cluster, bytes: it is part of log lines and metric labels.
pub const MAX_CLUSTER_NAME_BYTES: usize = 64;
/// Longest name of a replica set that is shown, bytes: far beyond what people write.
pub const MAX_REPLICA_SET_NAME_BYTES: usize = 128;
/// Longest URL of a collector, bytes.
pub const MAX_ENDPOINT_BYTES: usize = 2_048;
/// Entries of `degraded_reads`, compared one by one while there is no primary: who means more names whole databases.
pub const MAX_DEGRADED_NAMESPACES: usize = 256;
/// Entries of `pooled_databases`, compared one by one with each command while there are any: who means more means all.
pub const MAX_POOLED_DATABASES: usize = 64;
/// Longest pause that ends by itself: whoever needs more has time to say so again.
pub const PAUSE_TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);
/// Databases of a cluster that are paused, each by itself: who means more means all.
pub const MAX_PAUSED_DATABASES: usize = 256;
/// Entries of one list of a listener's rules, compared one by one with each command.
pub const MAX_RULE_ENTRIES: usize = 256;
/// Longest namespace, bytes: the server's own limit.
pub const MAX_NAMESPACE_BYTES: usize = 255;
/// A silent server is asked by keep-alive after this long. A command may be silent for hours, so this is how a flow that died
/// under it is told from one that works: well below the 4 to 10 minutes after which firewalls forget.
pub const UPSTREAM_KEEPALIVE: Duration = Duration::from_secs(10);
/// A connection to a server ends when nothing was acknowledged for this long: longer than a network takes to find another way
/// or a virtual machine to move, and time for four questions. The monitor needs 15 s to see a dead *server*; this is for
/// flows that die alone.
pub const UPSTREAM_UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// A silent client is asked by keep-alive after this long, as drivers do with servers. There are thousands.
pub const CLIENT_KEEPALIVE: Duration = Duration::from_secs(120);
/// A client's socket ends when nothing was acknowledged for this long, at the least: it costs a kilobyte and its place among
/// `max_clients`, so there is no hurry.
pub const CLIENT_UNACKNOWLEDGED: Duration = Duration::from_secs(180);
/// From one question of keep-alive to the next.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Questions of keep-alive that a socket outlives unanswered, at the least.
const KEEPALIVE_QUESTIONS: u64 = 4;
/// The header of the PROXY protocol, bytes: addresses of any family take 232, names and certificates of load balancers some
/// hundred.
pub const MAX_PROXY_HEADER_BYTES: usize = 1 << 10;
/// Open files beside client and upstream sockets: listeners, admin port, monitors, epoll, standard streams.
pub const OPEN_FILES_RESERVE: u64 = 128;
/// Servers assumed per cluster when open files are reckoned before any server is known: the usual replica set.
pub const ASSUMED_SERVERS: u64 = 3;
/// A connection closed in the middle of a command counts this long, so that a hanging server does not collect them.
pub const CLOSED_MID_COMMAND_GRACE: Duration = Duration::from_secs(1);
/// After an outage the connections of a pool come back spread over about this long: a server that has just started has other
/// things to do than the handshakes of all its clients at once, and two seconds after its return all is to be as before.
pub const RECOVERY_SPREAD: Duration = Duration::from_secs(1);
/// Longest wait for one answer to the question whether a server is back: some six round trips to another continent. It is
/// asked again every half second.
pub const RECHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// `max_lifetime_ms` varies by this, so that connections opened together are not refreshed together.
pub const LIFETIME_JITTER_PERCENT: u32 = 10;
/// Open cursors remembered per cluster, some 100 bytes each. The server would run out of memory before.
pub const MAX_CURSOR_PINS: usize = 100_000;
/// Open transactions remembered per cluster. Each lives 60 s at most on the server.
pub const MAX_TRANSACTION_PINS: usize = 10_000;
/// A cursor is forgotten after this long without use: the server's `cursorTimeoutMillis` and a margin.
pub const CURSOR_PIN_EXPIRY: Duration = Duration::from_secs(660);
/// An open transaction is aborted when every socket that used it has been gone for this long: a driver that lost its
/// socket has opened another by then, and locks are not held much longer than that.
pub const ORPHANED_TRANSACTION_GRACE: Duration = Duration::from_secs(5);
/// Open transactions that one client's socket is remembered to use. A driver's socket serves one session after the other,
/// so this is far beyond what is seen; those beyond it are left to the server's own limit.
pub const MAX_TRANSACTIONS_PER_SOCKET: usize = 64;
/// Cursors that are killed with the socket of a client that thinks of us as a load balancer. Drivers keep a socket to one
/// cursor, or to those of one transaction.
pub const MAX_CURSORS_PER_SOCKET: usize = 64;
/// Names of applications that are told apart. What is beyond them is one application without a name: where each client has
/// a name of its own, none of them says anything.
pub const MAX_APPLICATIONS: usize = 1_000;
/// Events that are remembered, to be shown: some days of a quiet program, and the last minutes of a very bad one.
pub const MAX_EVENTS: usize = 500;
/// As much of what an event says is kept: a sentence and an error of a server.
pub const EVENT_TEXT_CHARS: usize = 400;
/// Of what has been held for long, this many are listed for each server: the oldest tell the story, the rest is a number.
pub const MAX_LONG_HELD_SHOWN: usize = 20;
/// The largest reply there is, bytes: one document of a server with its message around it.
pub const LARGEST_REPLY_BYTES: u64 = MAX_MESSAGE_BYTES.min;
/// Requests up to this size have a share of the memory for themselves, bytes. A hello takes some hundred.
pub const SMALL_MESSAGE_BYTES: usize = 4096;
/// A client that sends or takes less than this in the middle of a message stands still: while it drips, it holds memory
/// that others wait for. Slower than any line that an application server has; one that is twice as fast is safe, as the
/// system hands on in lumps.
pub const LEAST_BYTES_PER_SECOND: u64 = 2 << 10;
/// What the system may hold of a reply for which its client has no room yet, bytes. Without a bound that is megabytes, and
/// that a slow client goes on reading shows only when a third of it has gone. With this one it shows every 64 KiB.
pub const UNSENT_BYTES: u32 = 128 << 10;
/// One read buffer per thread, shared by all sockets, bytes: idle clients hold none.
pub const SCRATCH_BUFFER_BYTES: usize = 64 << 10;
/// What an upstream connection keeps of its reply buffer between commands, bytes; larger ones are given back.
pub const CONNECTION_BUFFER_BYTES: usize = 32 << 10;
/// Messages up to this size, in both forms, are inflated and deflated where they are, which takes some 100 us; larger ones on
/// a thread that may block.
pub const COMPRESS_INLINE_BYTES: usize = 64 << 10;
/// As [`COMPRESS_INLINE_BYTES`], for deflating with zlib at its usual level: 150 us, and 1,700 us for 64 KiB.
pub const ZLIB_INLINE_BYTES: usize = 8 << 10;
/// Sockets on the admin port at once: two probes, a scraper, and some people. More wait to be accepted.
pub const MAX_ADMIN_CONNECTIONS: usize = 64;
/// One request on the admin port from accept to the last byte of its answer: renders take milliseconds, scrapers wait 10 s.
pub const ADMIN_EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The head of one request on the admin port, bytes.
pub const ADMIN_HEAD_BYTES: usize = 16 << 10;
/// The body of an order to the admin port, bytes: three short fields.
pub const ADMIN_BODY_BYTES: usize = 1 << 10;
/// Groups of clients that `/clients` shows: the largest, beside the number of all others.
pub const MAX_CLIENT_GROUPS: usize = 500;
/// Single clients that `/clients` shows unless it is asked for more.
pub const CLIENTS_SHOWN: usize = 100;
/// The body of an order to change rules, bytes: lists of a thousand short names, or of all the long ones that anybody writes.
pub const ADMIN_RULES_BYTES: usize = 64 << 10;

// ---- what depends on what ----

const _: () = {
    assert!(MIN_POOL_SIZE.default <= MAX_POOL_SIZE.default);
    assert!(MIN_POOL_SIZE.max <= MAX_POOL_SIZE.max);
    assert!(MAX_IN_FLIGHT.max <= MAX_POOL_SIZE.max);
    assert!(MAX_POOL_SIZE.max <= MAX_UPSTREAM_CONNECTIONS.max);
    assert!(MAX_UPSTREAM_CONNECTIONS.max <= u32::MAX as u64, "connections are counted in u32");
    assert!(BREAKER_OPEN_INITIAL.default <= BREAKER_OPEN_MAX.default);
    assert!(RECONNECT_INITIAL.default <= RECONNECT_MAX.default);
    assert!(DRAIN_QUIET.default <= DRAIN_TIMEOUT.default);
    assert!(DRAIN_TIMEOUT.default < 30_000, "Kubernetes kills after 30 s");
    assert!(SERVER_SELECTION_TIMEOUT.default > 12_000, "an election takes up to 12 s");
    assert!(MAX_IDLE_TIME.default < 4 * MINUTE, "balancers drop idle flows after 4 minutes");
    assert!(MAX_IDLE_TIME.default <= MAX_LIFETIME.default);
    assert!(MAX_MESSAGE_BYTES.max <= i32::MAX as u64, "a message carries its length as an i32");
    assert!(CONNECTION_BUFFER_BYTES <= SCRATCH_BUFFER_BYTES);
    assert!(ZLIB_INLINE_BYTES <= COMPRESS_INLINE_BYTES);
    assert!((MAX_ADMIN_CONNECTIONS as u64) < OPEN_FILES_RESERVE, "admin sockets are part of the reserve");
    let questions = KEEPALIVE_QUESTIONS * KEEPALIVE_INTERVAL.as_secs();
    assert!(UPSTREAM_KEEPALIVE.as_secs() + questions <= UPSTREAM_UNACKNOWLEDGED.as_secs());
    assert!(CLIENT_KEEPALIVE.as_secs() + questions <= CLIENT_UNACKNOWLEDGED.as_secs());
    assert!(UPSTREAM_KEEPALIVE.as_secs() < 4 * MINUTE / 1_000, "firewalls forget idle flows after 4 minutes");
    assert!(CLIENT_KEEPALIVE.as_secs() < 4 * MINUTE / 1_000, "firewalls forget idle flows after 4 minutes");
    assert!(NEVER.as_millis() > MAX_LIFETIME.max as u128);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_accepts_its_ends_and_zero_only_with_a_meaning() {
        assert!(!MAX_POOL_SIZE.accepts(0) && MAX_POOL_SIZE.accepts(1) && MAX_POOL_SIZE.accepts(10_000));
        assert!(!MAX_POOL_SIZE.accepts(10_001));
        assert!(SOCKET_TIMEOUT.accepts(0) && !SOCKET_TIMEOUT.accepts(9) && SOCKET_TIMEOUT.accepts(10));
        assert_eq!(MAX_POOL_SIZE.range(), "1 to 10000 connections");
        assert_eq!(SOCKET_TIMEOUT.range(), "0 (off) or 10 to 86400000 ms");
    }
}
