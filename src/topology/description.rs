//! The topology at one moment, in the words of the SDAM specification, and how a `hello` reply reads.
//!
//! Nothing here changes by itself: how news change a description is in `state`, where they come from in `monitor`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::raw::RawBsonRef;
use bson::{DateTime, RawDocument};
use tokio::time::Instant;

use crate::config::Address;

/// Servers named in one error text; a sharded cluster may have hundreds of mongos.
const MAX_SERVERS_IN_TEXT: usize = 8;

/// What kind of deployment the servers form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopologyKind {
    /// No server has told yet.
    #[default]
    Unknown,
    /// One server: a standalone, or whatever `directConnection` names.
    Single,
    /// A replica set whose primary is not known.
    ReplicaSetNoPrimary,
    /// A replica set with a primary.
    ReplicaSetWithPrimary,
    /// Mongos in front of shards.
    Sharded,
}

/// What a server says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerKind {
    /// A mongod outside of any replica set.
    Standalone,
    /// A router of a sharded cluster.
    Mongos,
    /// A replica set's primary.
    RsPrimary,
    /// A replica set's secondary.
    RsSecondary,
    /// A voting member without data.
    RsArbiter,
    /// A member that takes no commands: hidden, starting up, recovering.
    RsOther,
    /// A mongod with a replica set's name that is in no set, or not any more.
    RsGhost,
    /// Not reached, or not to be trusted until it is heard again.
    #[default]
    Unknown,
}

impl ServerKind {
    /// True for servers that answer reads.
    pub fn is_data_bearing(self) -> bool {
        matches!(self, Self::Standalone | Self::Mongos | Self::RsPrimary | Self::RsSecondary)
    }

    /// In words, for logs and error texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Mongos => "mongos",
            Self::RsPrimary => "primary",
            Self::RsSecondary => "secondary",
            Self::RsArbiter => "arbiter",
            Self::RsOther => "hidden, starting or recovering member",
            Self::RsGhost => "member of no replica set",
            Self::Unknown => "unknown",
        }
    }
}

/// Orders what one server process says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopologyVersion {
    /// The server process.
    pub process_id: ObjectId,
    /// Rises with each change that process reports.
    pub counter: i64,
}

impl TopologyVersion {
    /// True when both come from the same process and `self` was said earlier. Different processes cannot be compared: the
    /// other one may be the restarted server.
    pub fn is_older_than(self, other: Self) -> bool {
        self.process_id == other.process_id && self.counter < other.counter
    }

    /// Reads the value of `topologyVersion` in a `hello` or error reply.
    pub fn read(document: &RawDocument) -> Option<Self> {
        let process_id = document.get_object_id("processId").ok()?;
        let counter = document.get("counter").ok().flatten().and_then(integer)?;
        Some(Self { process_id, counter })
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerDescription {
    /// How it is dialled, and how members of its set call it.
    pub address: Address,
    /// What it says it is.
    pub kind: ServerKind,
    /// Its replica set.
    pub set_name: Option<String>,
    /// Its tags, sorted by name.
    pub tags: Vec<(String, String)>,
    /// Smallest wire version it speaks.
    pub min_wire_version: i32,
    /// Largest wire version it speaks.
    pub max_wire_version: i32,
    /// `maxBsonObjectSize`, bytes.
    pub max_bson_object_size: i32,
    /// `maxMessageSizeBytes`.
    pub max_message_size: i32,
    /// `maxWriteBatchSize`, statements.
    pub max_write_batch_size: i32,
    /// `logicalSessionTimeoutMinutes`; absent where there are no sessions.
    pub logical_session_timeout_minutes: Option<i32>,
    /// Moving average; `None` while it is unknown.
    pub round_trip_time: Option<Duration>,
    /// `lastWrite.lastWriteDate`, by the server's clock.
    pub last_write: Option<DateTime>,
    /// When its last `hello` reply came in, by our clock.
    pub last_update: Option<Instant>,
    /// Of its last `hello` reply.
    pub topology_version: Option<TopologyVersion>,
    /// Why it is unknown.
    pub error: Option<String>,
    /// Unknown only because our own connections have reason to doubt it: what monitoring still takes it for. It will be
    /// known again, or lost, in a moment.
    pub suspected: Option<ServerKind>,
    /// Times that monitoring lost this server. A pool clears itself when this rises.
    pub heartbeat_failures: u64,
    /// Those of them where the server did not answer in time: also connections in use are then dead.
    pub heartbeat_timeouts: u64,
}

impl ServerDescription {
    /// A server nobody has heard of yet; sizes are the specification's defaults.
    pub fn unknown(address: Address) -> Self {
        Self {
            address,
            kind: ServerKind::Unknown,
            set_name: None,
            tags: Vec::new(),
            min_wire_version: 0,
            max_wire_version: 0,
            max_bson_object_size: 16 * 1024 * 1024,
            max_message_size: 48_000_000,
            max_write_batch_size: 100_000,
            logical_session_timeout_minutes: None,
            round_trip_time: None,
            last_write: None,
            last_update: None,
            topology_version: None,
            error: None,
            suspected: None,
            heartbeat_failures: 0,
            heartbeat_timeouts: 0,
        }
    }

    /// True when it was reached and has said what it is.
    pub fn is_known(&self) -> bool {
        self.kind != ServerKind::Unknown
    }
}

/// `127.0.0.1:1: Connection refused (os error 111)`, or what the server is.
impl fmt::Display for ServerDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.error {
            Some(error) => error.as_str(),
            None if self.is_known() => self.kind.name(),
            None => "no answer yet",
        };
        write!(f, "{}: {state}", self.address)
    }
}

/// All servers of one upstream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TopologyDescription {
    /// What they form.
    pub kind: TopologyKind,
    /// The replica set's name, configured or found.
    pub set_name: Option<String>,
    /// The servers.
    pub servers: BTreeMap<Address, ServerDescription>,
    /// Set when a server is too old or too new; nothing is selected then.
    pub compatibility_error: Option<String>,
    /// Why monitoring itself does not get on: DNS, TLS files, a replica set of another name.
    pub trouble: Option<String>,
}

impl TopologyDescription {
    /// The replica set's primary.
    pub fn primary(&self) -> Option<&ServerDescription> {
        self.servers.values().find(|server| server.kind == ServerKind::RsPrimary)
    }

    /// True while a server may turn out to be the primary in a moment: it is suspect, or was not heard from yet.
    pub fn is_primary_in_doubt(&self) -> bool {
        let in_doubt = |server: &ServerDescription| match server.suspected {
            Some(kind) => kind == ServerKind::RsPrimary,
            None => !server.is_known() && server.error.is_none(),
        };
        self.servers.values().any(in_doubt)
    }

    /// Servers that may answer reads: what wire versions and size limits are about.
    pub fn data_bearing(&self) -> impl Iterator<Item = &ServerDescription> + Clone {
        self.servers.values().filter(|server| server.kind.is_data_bearing())
    }

    /// True when commands may be sent to this server at all. With `directConnection` any kind will do.
    pub fn is_usable(&self, server: &ServerDescription) -> bool {
        match self.kind {
            TopologyKind::Unknown => false,
            TopologyKind::Single => server.is_known(),
            TopologyKind::Sharded => server.kind == ServerKind::Mongos,
            TopologyKind::ReplicaSetNoPrimary | TopologyKind::ReplicaSetWithPrimary => {
                matches!(server.kind, ServerKind::RsPrimary | ServerKind::RsSecondary)
            }
        }
    }

    /// The wire versions that every data-bearing known server speaks, smallest and largest; `None` while there is none.
    pub fn wire_versions(&self) -> Option<(i32, i32)> {
        let smallest = self.data_bearing().map(|server| server.min_wire_version).max()?;
        let largest = self.data_bearing().map(|server| server.max_wire_version).min()?;
        Some((smallest, largest))
    }

    /// The smallest value over the data-bearing known servers, for limits that must hold on each of them.
    pub fn smallest(&self, of: impl Fn(&ServerDescription) -> i32) -> Option<i32> {
        self.data_bearing().map(of).min()
    }

    /// Smallest session timeout; `None` when a data-bearing server has no sessions, or there is no such server.
    pub fn logical_session_timeout_minutes(&self) -> Option<i32> {
        // `None` sorts below every number.
        self.data_bearing().map(|server| server.logical_session_timeout_minutes).min().flatten()
    }

    /// What is wrong, in plain words with the servers named; `None` while writes find a server.
    pub fn problem(&self) -> Option<String> {
        if let Some(error) = &self.compatibility_error {
            return Some(error.clone());
        }
        if let Some(trouble) = &self.trouble {
            return Some(trouble.clone());
        }
        let lacking = match self.kind {
            TopologyKind::ReplicaSetWithPrimary => return None,
            TopologyKind::Single | TopologyKind::Sharded if self.servers.values().any(|it| self.is_usable(it)) => {
                return None;
            }
            TopologyKind::ReplicaSetNoPrimary => "no primary",
            TopologyKind::Sharded => "no mongos",
            TopologyKind::Single | TopologyKind::Unknown => "no server",
        };
        Some(format!("{lacking}: {}", self.summary()))
    }

    /// Every server with what it is or what is wrong with it.
    pub fn summary(&self) -> String {
        let mut texts: Vec<_> = self.servers.values().take(MAX_SERVERS_IN_TEXT).map(ToString::to_string).collect();
        match self.servers.len().saturating_sub(MAX_SERVERS_IN_TEXT) {
            0 if texts.is_empty() => return "none is known yet".to_owned(),
            0 => {}
            more => texts.push(format!("and {more} more")),
        }
        texts.join("; ")
    }
}

/// What a `hello` reply says about the server itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hello {
    /// What it is.
    pub kind: ServerKind,
    /// `setName`.
    pub set_name: Option<String>,
    /// `topologyVersion`.
    pub topology_version: Option<TopologyVersion>,
    /// `lastWrite.lastWriteDate`.
    pub last_write: Option<DateTime>,
    /// `maxBsonObjectSize`.
    pub max_bson_object_size: Option<i32>,
    /// `maxMessageSizeBytes`.
    pub max_message_size: Option<i32>,
    /// `maxWriteBatchSize`.
    pub max_write_batch_size: Option<i32>,
    /// `logicalSessionTimeoutMinutes`.
    pub logical_session_timeout_minutes: Option<i32>,
}

impl Hello {
    /// Reads a reply. Fields of a wrong type count as absent, and so does everything behind bytes that are no BSON: a
    /// server that talks nonsense ends up with a kind that selects nothing.
    pub fn read(reply: &RawDocument) -> Self {
        let mut hello = Self::default();
        let (mut ok, mut mongos, mut primary, mut secondary, mut arbiter, mut hidden, mut ghost) =
            (false, false, false, false, false, false, false);
        for (key, value) in reply.into_iter().map_while(Result::ok) {
            let flag = value.as_bool() == Some(true);
            match key.as_str() {
                "ok" => ok = integer(value) == Some(1),
                "msg" => mongos = value.as_str() == Some("isdbgrid"),
                // The first reply on a monitoring connection answers the legacy name of the command.
                "isWritablePrimary" | "ismaster" => primary |= flag,
                "secondary" => secondary = flag,
                "arbiterOnly" => arbiter = flag,
                "hidden" => hidden = flag,
                "isreplicaset" => ghost = flag,
                "setName" => hello.set_name = value.as_str().map(ToOwned::to_owned),
                "topologyVersion" => hello.topology_version = value.as_document().and_then(TopologyVersion::read),
                "lastWrite" => {
                    hello.last_write =
                        value.as_document().and_then(|last_write| last_write.get_datetime("lastWriteDate").ok());
                }
                "maxBsonObjectSize" => hello.max_bson_object_size = small_integer(value),
                "maxMessageSizeBytes" => hello.max_message_size = small_integer(value),
                "maxWriteBatchSize" => hello.max_write_batch_size = small_integer(value),
                "logicalSessionTimeoutMinutes" => hello.logical_session_timeout_minutes = small_integer(value),
                _ => {}
            }
        }
        // The order of these is the specification's.
        hello.kind = match hello.set_name {
            _ if !ok => ServerKind::Unknown,
            _ if mongos => ServerKind::Mongos,
            Some(_) if hidden => ServerKind::RsOther,
            Some(_) if primary => ServerKind::RsPrimary,
            Some(_) if secondary => ServerKind::RsSecondary,
            Some(_) if arbiter => ServerKind::RsArbiter,
            Some(_) => ServerKind::RsOther,
            None if ghost => ServerKind::RsGhost,
            None => ServerKind::Standalone,
        };
        hello
    }
}

/// A whole number of any BSON type; servers and proxies differ in which they use.
fn integer(value: RawBsonRef<'_>) -> Option<i64> {
    match value {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number),
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in the range of i32")]
        RawBsonRef::Double(number) if number.fract() == 0.0 && number.abs() <= f64::from(i32::MAX) => {
            Some(number as i64)
        }
        _ => None,
    }
}

fn small_integer(value: RawBsonRef<'_>) -> Option<i32> {
    integer(value).and_then(|number| i32::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn server(port: u16, kind: ServerKind) -> (Address, ServerDescription) {
        let address = Address::tcp("h", port);
        (address.clone(), ServerDescription { kind, ..ServerDescription::unknown(address) })
    }

    #[test]
    fn a_hello_tells_the_kind_of_server() {
        use ServerKind::*;
        let kind = |document: bson::RawDocumentBuf| Hello::read(&document).kind;
        assert_eq!(kind(rawdoc! { "isWritablePrimary": true, "ok": 1 }), Standalone);
        assert_eq!(kind(rawdoc! { "ismaster": true, "msg": "isdbgrid", "ok": 1.0 }), Mongos);
        assert_eq!(kind(rawdoc! { "setName": "a", "isWritablePrimary": true, "ok": 1 }), RsPrimary);
        assert_eq!(kind(rawdoc! { "setName": "a", "ismaster": true, "ok": 1 }), RsPrimary);
        assert_eq!(kind(rawdoc! { "setName": "a", "secondary": true, "ok": 1 }), RsSecondary);
        assert_eq!(kind(rawdoc! { "setName": "a", "secondary": true, "hidden": true, "ok": 1 }), RsOther);
        assert_eq!(kind(rawdoc! { "setName": "a", "arbiterOnly": true, "ok": 1 }), RsArbiter);
        assert_eq!(kind(rawdoc! { "setName": "a", "ismaster": false, "ok": 1 }), RsOther);
        assert_eq!(kind(rawdoc! { "isreplicaset": true, "ok": 1 }), RsGhost);
        assert_eq!(kind(rawdoc! { "isWritablePrimary": true, "ok": 0 }), Unknown);
        assert_eq!(kind(rawdoc! {}), Unknown);
    }

    #[test]
    fn a_hello_tells_limits_staleness_and_version() {
        let (process_id, when) = (ObjectId::new(), DateTime::from_millis(1_700_000_000_123));
        let hello = Hello::read(&rawdoc! {
            "topologyVersion": { "processId": process_id, "counter": 7_i64 },
            "lastWrite": { "lastWriteDate": when },
            "maxBsonObjectSize": 5,
            "maxMessageSizeBytes": 6.0,
            "maxWriteBatchSize": "nonsense",
            "logicalSessionTimeoutMinutes": 30,
            "ok": 1,
        });
        assert_eq!(hello.topology_version, Some(TopologyVersion { process_id, counter: 7 }));
        assert_eq!(hello.last_write, Some(when));
        assert_eq!((hello.max_bson_object_size, hello.max_message_size), (Some(5), Some(6)));
        assert_eq!((hello.max_write_batch_size, hello.logical_session_timeout_minutes), (None, Some(30)));
    }

    #[test]
    fn versions_of_other_processes_are_never_older() {
        let (one, two) = (ObjectId::new(), ObjectId::new());
        let version = |process_id, counter| TopologyVersion { process_id, counter };
        assert!(version(one, 1).is_older_than(version(one, 2)));
        assert!(!version(one, 2).is_older_than(version(one, 2)));
        assert!(!version(one, 1).is_older_than(version(two, 2)));
    }

    #[test]
    fn what_all_members_can_do_is_what_counts() {
        let mut topology = TopologyDescription { kind: TopologyKind::ReplicaSetWithPrimary, ..Default::default() };
        assert_eq!(topology.wire_versions(), None);
        for (port, kind, wire) in [
            (1, ServerKind::RsPrimary, (0, 25)),
            (2, ServerKind::RsSecondary, (6, 21)),
            (3, ServerKind::RsArbiter, (9, 9)),
            (4, ServerKind::Unknown, (0, 0)),
        ] {
            let (address, mut server) = server(port, kind);
            (server.min_wire_version, server.max_wire_version) = wire;
            server.max_message_size = i32::from(port);
            server.logical_session_timeout_minutes = Some(30);
            topology.servers.insert(address, server);
        }
        assert_eq!(topology.wire_versions(), Some((6, 21)));
        assert_eq!(topology.smallest(|server| server.max_message_size), Some(1));
        assert_eq!(topology.logical_session_timeout_minutes(), Some(30));
        topology.servers.get_mut(&Address::tcp("h", 2)).unwrap().logical_session_timeout_minutes = None;
        assert_eq!(topology.logical_session_timeout_minutes(), None);
        assert_eq!(topology.primary().unwrap().address, Address::tcp("h", 1));
        assert_eq!(topology.data_bearing().count(), 2);
    }

    #[test]
    fn problems_name_the_servers() {
        let mut topology = TopologyDescription::default();
        assert_eq!(topology.problem().unwrap(), "no server: none is known yet");
        topology.servers.extend([server(1, ServerKind::RsSecondary), server(2, ServerKind::Unknown)]);
        topology.kind = TopologyKind::ReplicaSetNoPrimary;
        let refused = "Connection refused (os error 111)";
        topology.servers.get_mut(&Address::tcp("h", 2)).unwrap().error = Some(refused.to_owned());
        assert_eq!(topology.problem().unwrap(), format!("no primary: h:1: secondary; h:2: {refused}"));
        topology.kind = TopologyKind::ReplicaSetWithPrimary;
        assert_eq!(topology.problem(), None);
        topology.compatibility_error = Some("too old".to_owned());
        assert_eq!(topology.problem().unwrap(), "too old");
    }

    #[test]
    fn problems_of_big_clusters_stay_short() {
        let mut topology = TopologyDescription { kind: TopologyKind::Sharded, ..Default::default() };
        topology.servers.extend((1..=100).map(|port| server(port, ServerKind::Unknown)));
        let problem = topology.problem().unwrap();
        assert!(
            problem.starts_with("no mongos: h:1: no answer yet; ") && problem.ends_with("; and 92 more"),
            "{problem}"
        );
        topology.servers.extend([server(101, ServerKind::Mongos)]);
        assert_eq!(topology.problem(), None);
    }
}
