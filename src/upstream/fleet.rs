//! The fleet of sidecars, as far as one of them can see it: how many there are, how many connections they may open together, and
//! how many the servers take. The bound of each is no bound of all; this says so before the servers do.
//!
//! Servers are asked now and then, over connections that are there anyway. Where the service's user may not ask, nothing is known,
//! and that is all: it is no fault of anybody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::raw::{RawArrayBuf, RawDocument, RawDocumentBuf};
use bson::{RawBsonRef, rawdoc};
use tokio::time::Instant;

use super::cluster::{Cluster, Server};
use super::errand::Errand;
use super::handshake::DRIVER_NAME;
use super::pool::lock;
use crate::admission::Lane;
use crate::auth::UserId;
use crate::config::Address;
use crate::telemetry::EventKind;
use crate::topology::ServerKind;

/// Servers are asked this often; a fleet grows no faster than it is deployed.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// The first look: soon, as a deploy is when it matters, and once the others of the deploy are there as well.
const FIRST_LOOK: Duration = Duration::from_secs(30);

/// Who may not ask is not told so every minute: servers write it into their audit logs.
const DENIED_INTERVAL: Duration = Duration::from_secs(3600);

/// From this share of what a server takes on, percent, it is time to say so.
const NEARLY_FULL_PERCENT: u64 = 80;

/// What a server says of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerRoom {
    /// Open, whoever's they are.
    pub current: u64,
    /// As many may be.
    pub limit: u64,
}

impl ServerRoom {
    /// What is open in what may be, percent.
    fn share(&self) -> Option<u64> {
        self.current.saturating_mul(100).checked_div(self.limit)
    }
}

/// How the number of sidecars is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetSource {
    /// From the configuration.
    Configured,
    /// By their connections to a server.
    Seen,
    /// It is not.
    Unknown,
}

impl FleetSource {
    /// The name in `/stats`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Seen => "seen",
            Self::Unknown => "unknown",
        }
    }
}

/// What is known of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetView {
    /// Sidecars.
    pub size: Option<u64>,
    /// How that is known.
    pub source: FleetSource,
    /// As many connections may each of them open to one server.
    pub cap: u64,
    /// The server that takes least, and its room: the first that the fleet could fill.
    pub tightest: Option<(Address, ServerRoom)>,
    /// The server that has least room left, by its share in use.
    pub fullest: Option<(Address, ServerRoom)>,
}

impl FleetView {
    /// As many connections may all of them open to one server.
    pub fn wanted(&self) -> Option<u64> {
        self.size.map(|size| size.saturating_mul(self.cap))
    }

    /// The share of that in what the server takes, percent.
    pub fn share(&self) -> Option<u64> {
        let (_, room) = self.tightest.as_ref()?;
        self.wanted()?.saturating_mul(100).checked_div(room.limit)
    }

    /// What is to be done before the server is full; `None` while there is nothing.
    pub fn warning(&self) -> Option<CapWarning> {
        if let (Some(size), Some(wanted), Some(share), Some((server, ServerRoom { limit, .. }))) =
            (self.size, self.wanted(), self.share(), &self.tightest)
            && share > NEARLY_FULL_PERCENT
        {
            let cap = self.cap;
            let words = format!(
                "{size} sidecars of {cap} connections each may open {wanted} to {server}, {share} % of the {limit} that it \
                 takes: lower max_pool_size, or run fewer sidecars."
            );
            return Some(CapWarning { server: server.clone(), words });
        }
        let (server, room @ ServerRoom { current, limit }) = self.fullest.as_ref()?;
        let in_use = room.share()?;
        (in_use > NEARLY_FULL_PERCENT).then(|| {
            let words = format!(
                "{current} connections are open to {server}, {in_use} % of the {limit} that it takes: find out whose they are \
                 with currentOp."
            );
            CapWarning { server: server.clone(), words }
        })
    }
}

/// A server is nearly full, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapWarning {
    /// Which.
    pub server: Address,
    /// What is wrong with it, and what to do.
    pub words: String,
}

/// What was seen at the last look.
#[derive(Debug, Default)]
pub struct Fleet(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    sidecars: Option<u64>,
    rooms: BTreeMap<Address, ServerRoom>,
    not_before: Option<Instant>,
    /// Sidecars are not to be counted before, where only that is refused.
    census_not_before: Option<Instant>,
    warned: bool,
}

/// What came of a question.
enum Answer<T> {
    Told(T),
    /// The service's user may not ask that, or the server does not know the question.
    Refused(String),
    /// Not this time.
    Nothing,
}

impl Cluster {
    /// What is known of the fleet.
    pub fn fleet(&self) -> FleetView {
        let (seen, config) = (lock(&self.fleet.0), self.config());
        let (size, source) = match (config.fleet_size, seen.sidecars) {
            (Some(size), _) => (Some(size.into()), FleetSource::Configured),
            (None, Some(seen)) => (Some(seen), FleetSource::Seen),
            (None, None) => (None, FleetSource::Unknown),
        };
        let bounds = [Some(config.pool.max_pool_size), config.max_upstream_connections];
        let cap = bounds.into_iter().flatten().min().unwrap_or_default().into();
        // The smallest is full first; of equal ones the one where most are open.
        let tightest = seen.rooms.iter().min_by_key(|(_, room)| (room.limit, std::cmp::Reverse(room.current)));
        let fullest = fullest(&seen.rooms);
        let owned = |found: Option<(&Address, &ServerRoom)>| found.map(|(server, room)| (server.clone(), *room));
        FleetView { size, source, cap, tightest: owned(tightest), fullest: owned(fullest) }
    }

    /// Asks the servers anew, and says when they are nearly full.
    pub async fn look_at_fleet(&self) {
        let now = Instant::now();
        let later = |due: Option<Instant>| due.is_some_and(|due| now < due);
        let may_count = {
            let seen = lock(&self.fleet.0);
            if later(seen.not_before) {
                return;
            }
            !later(seen.census_not_before)
        };
        let mut rooms = BTreeMap::new();
        let mut refused = None;
        let mut fullest: Option<(u64, Arc<Server>)> = None;
        for server in self.servers() {
            match self.room_of(&server).await {
                Answer::Told(room) => {
                    server.metrics.server_connections.set(i64::try_from(room.current).unwrap_or(i64::MAX));
                    server.metrics.server_connections_limit.set(i64::try_from(room.limit).unwrap_or(i64::MAX));
                    rooms.insert((*server.address).clone(), room);
                    if fullest.as_ref().is_none_or(|(most, _)| room.current > *most) {
                        fullest = Some((room.current, server));
                    }
                }
                Answer::Refused(why) => refused = Some(why),
                Answer::Nothing => {}
            }
        }
        if let Some(why) = &refused {
            tracing::info!(
                cluster = %self.name, why,
                "how full the servers are cannot be asked, which takes the role clusterMonitor; it is asked again in an hour"
            );
        }
        let mut sidecars = Answer::Nothing;
        if let (None, true, Some((_, server))) = (self.config().fleet_size, may_count, fullest) {
            sidecars = self.sidecars_at(&server).await;
        }
        if let Answer::Refused(why) = &sidecars {
            tracing::info!(
                cluster = %self.name, why,
                "sidecars cannot be counted, which takes the role clusterMonitor; it is tried again in an hour: fleet_size says how \
                 many there are"
            );
        }
        self.seen(rooms, refused.is_some(), sidecars);
    }

    fn seen(&self, rooms: BTreeMap<Address, ServerRoom>, refused: bool, sidecars: Answer<u64>) {
        let known: Vec<Arc<Server>> = self.servers();
        let news = {
            let mut seen = lock(&self.fleet.0);
            // What could not be asked just now is as it was; what has left is not.
            seen.rooms.retain(|address, _| known.iter().any(|server| *server.address == *address));
            seen.rooms.extend(rooms);
            let in_an_hour = Instant::now() + DENIED_INTERVAL;
            seen.not_before = refused.then_some(in_an_hour);
            match sidecars {
                Answer::Told(count) => seen.sidecars = Some(count),
                Answer::Refused(_) => seen.census_not_before = Some(in_an_hour),
                Answer::Nothing => {}
            }
            seen.warned
        };
        let view = self.fleet();
        let warning = view.warning();
        lock(&self.fleet.0).warned = warning.is_some();
        if let (Some(warning), false) = (warning, news) {
            tracing::warn!(cluster = %self.name, "{}", warning.words);
            let events = &self.metrics.events;
            events.record(EventKind::CapWarning, Some(&self.name), Some(&warning.server.to_string()), &warning.words);
        }
    }

    async fn room_of(&self, server: &Server) -> Answer<ServerRoom> {
        // All that costs a server time to put together is left out.
        let command = rawdoc! {
            "serverStatus": 1, "wiredTiger": 0, "metrics": 0, "repl": 0, "tcmalloc": 0, "catalogStats": 0, "locks": 0,
            "opLatencies": 0, "transactions": 0, "$db": "admin", "$readPreference": {"mode": "secondaryPreferred"},
        };
        match self.ask(server, &command).await {
            Answer::Told(reply) => room(&reply).map_or(Answer::Nothing, Answer::Told),
            Answer::Refused(why) => Answer::Refused(why),
            Answer::Nothing => Answer::Nothing,
        }
    }

    async fn sidecars_at(&self, server: &Server) -> Answer<u64> {
        let topology = self.topology();
        let is_router = topology.servers.get(&server.address).is_some_and(|it| it.kind == ServerKind::Mongos);
        match self.ask(server, &census(is_router)).await {
            Answer::Told(reply) => count(&reply).map_or(Answer::Nothing, Answer::Told),
            Answer::Refused(why) => Answer::Refused(why),
            Answer::Nothing => Answer::Nothing,
        }
    }

    /// Asks a server that is there and has connections: nobody is waited for, and no sleeping pool is woken, to know how full
    /// it is.
    async fn ask(&self, server: &Server, command: &RawDocument) -> Answer<RawDocumentBuf> {
        let is_known = self.topology().servers.get(&server.address).is_some_and(|it| it.is_known());
        if !is_known || !server.passes() || !server.pool.has_connections() {
            return Answer::Nothing;
        }
        let errand = Errand::Server(server.address.clone());
        let Some(reply) = self.run(errand, UserId::SERVICE, Lane::Background, command).await else {
            return Answer::Nothing;
        };
        if reply.get_f64("ok").ok() == Some(1.0) {
            Answer::Told(reply)
        } else {
            Answer::Refused(reply.get_str("errmsg").unwrap_or("no reason given").to_owned())
        }
    }
}

/// Looks now and then until the tasks are cancelled.
pub(super) async fn run(cluster: Arc<Cluster>) {
    let mut next = FIRST_LOOK;
    loop {
        // Not all sidecars of a deploy at once.
        tokio::time::sleep(next.mul_f64(0.5 + fastrand::f64())).await;
        cluster.look_at_fleet().await;
        next = LOOK_INTERVAL;
    }
}

fn fullest(rooms: &BTreeMap<Address, ServerRoom>) -> Option<(&Address, &ServerRoom)> {
    rooms.iter().max_by_key(|(_, room)| room.share())
}

fn room(status: &RawDocument) -> Option<ServerRoom> {
    let connections = status.get_document("connections").ok()?;
    let number = |name| connections.get(name).ok().flatten().and_then(whole);
    let (current, available) = (number("current")?, number("available")?);
    Some(ServerRoom { current, limit: current.saturating_add(available) })
}

/// Counts those that are behind connections of a proxy such as this: each tells what tells it from the others, with connections that
/// only watch the server as well, so that one which has nothing to do counts too. An older one is at least of some host.
fn census(is_router: bool) -> RawDocumentBuf {
    let mut look = rawdoc! {"idleConnections": true, "allUsers": true};
    if is_router {
        // Else it would ask the shards, who know the router only.
        look.append(bson::raw::cstr!("localOps"), true);
    }
    let host = rawdoc! {"$arrayElemAt": [{"$split": ["$client", ":"]}, 0]};
    let pipeline: RawArrayBuf = [
        rawdoc! {"$currentOp": look},
        rawdoc! {"$match": {"$or": [
            {"clientMetadata.driver.name": DRIVER_NAME},
            // Behind the name of the driver that watches for us.
            {"clientMetadata.driver.name": {"$regex": format!("\\|{DRIVER_NAME}$")}},
        ]}},
        // Behind what that driver says of itself, likewise.
        rawdoc! {"$group": {"_id": {"$arrayElemAt": [{"$split": [{"$ifNull": ["$clientMetadata.platform", host]}, "|"]}, -1]}}},
        rawdoc! {"$count": "sidecars"},
    ]
    .into_iter()
    .collect();
    rawdoc! {
        "aggregate": 1, "pipeline": pipeline, "cursor": {}, "$db": "admin",
        "$readPreference": {"mode": "secondaryPreferred"},
    }
}

fn count(reply: &RawDocument) -> Option<u64> {
    let batch = reply.get_document("cursor").ok()?.get_array("firstBatch").ok()?;
    let first = batch.into_iter().next()?.ok()?;
    first.as_document()?.get("sidecars").ok().flatten().and_then(whole)
}

fn whole(value: RawBsonRef<'_>) -> Option<u64> {
    let number = value.as_i64().or_else(|| value.as_i32().map(i64::from));
    // Some releases count in doubles.
    #[expect(clippy::cast_possible_truncation, reason = "a cast saturates, and these are numbers of connections")]
    let number = number.or_else(|| value.as_f64().map(|number| number as i64));
    number.and_then(|number| u64::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(size: Option<u64>, cap: u64, room: Option<(u64, u64)>) -> FleetView {
        let room = room.map(|(current, limit)| (Address::tcp("db", 1), ServerRoom { current, limit }));
        FleetView { size, source: FleetSource::Configured, cap, tightest: room.clone(), fullest: room }
    }

    #[test]
    fn it_warns_before_the_fleet_or_anybody_else_fills_the_server() {
        let warning = |view: FleetView| view.warning().map(|it| it.words);
        assert_eq!(warning(view(Some(8), 10, Some((5, 100)))), None, "four fifths are not more than that");
        let said = warning(view(Some(9), 10, Some((5, 100)))).unwrap();
        assert!(said.starts_with("9 sidecars of 10 connections each may open 90 to db:1, 90 % of the 100"), "{said}");
        let said = warning(view(None, 10, Some((81, 100)))).unwrap();
        assert!(said.starts_with("81 connections are open to db:1, 81 %"), "{said}");
        let large = (Address::tcp("large", 1), ServerRoom { current: 190, limit: 200 });
        let said = FleetView { fullest: Some(large.clone()), ..view(Some(1), 10, Some((5, 100))) }.warning().unwrap();
        assert_eq!((said.server, said.words.contains("190 connections are open to large:1, 95 %")), (large.0, true));
        assert_eq!(warning(view(None, 10, Some((80, 100)))), None);
        assert_eq!(warning(view(Some(900), 10, None)), None, "nothing is known of the server");
        assert_eq!((view(Some(9), 10, None).wanted(), view(Some(9), 10, None).share()), (Some(90), None));
        assert_eq!(view(Some(9), 10, Some((0, 0))).share(), None, "no server says that it takes none");
    }

    #[test]
    fn the_fullest_is_the_one_with_the_largest_share_in_use() {
        let rooms = [("a", 10, 20), ("b", 950, 1_000), ("c", 600, 2_000), ("d", 0, 0)];
        let rooms = rooms.map(|(name, current, limit)| (Address::tcp(name, 1), ServerRoom { current, limit }));
        assert_eq!(fullest(&rooms.into()).map(|(server, _)| server.clone()), Some(Address::tcp("b", 1)));
        assert_eq!(fullest(&BTreeMap::new()), None);
    }

    #[test]
    fn numbers_of_all_kinds_are_read() {
        let told = rawdoc! {"connections": {"current": 3, "available": 57_i64, "active": 2}, "ok": 1.0};
        assert_eq!(room(&told), Some(ServerRoom { current: 3, limit: 60 }));
        assert_eq!(room(&rawdoc! {"ok": 1.0}), None);
        let counted = rawdoc! {"cursor": {"firstBatch": [{"sidecars": 4.0}], "id": 0_i64}, "ok": 1.0};
        assert_eq!(count(&counted), Some(4));
        assert_eq!(count(&rawdoc! {"cursor": {"firstBatch": [], "id": 0_i64}}), None);
    }
}
