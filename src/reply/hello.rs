//! hello and its elder names, built from scratch for whoever asks.
//!
//! Nothing of an upstream hello is copied: one field too many and a driver looks for servers that it cannot reach. There
//! is no `topologyVersion`, so no driver ever waits for a streamed hello and none is sent. Logins inside a hello
//! (`saslSupportedMechs`, `speculativeAuthenticate`) are ignored like every unknown field.

use std::sync::Arc;

use bson::oid::ObjectId;
use bson::raw::{RawArrayBuf, RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};

use super::errors::{self, ErrorReply};
use super::local::check_api;
use super::metadata::ClientMetadata;
use crate::config::{Address, ShownSet};
use crate::wire::document::{Element, Elements, kind};
use crate::wire::{Compressor, MalformedDocument};

/// Largest BSON document, bytes.
const MAX_BSON_OBJECT_SIZE: i32 = 16_777_216;
/// Most statements in one write.
const MAX_WRITE_BATCH_SIZE: i32 = 100_000;
/// How long an idle session lives on a server, minutes.
const SESSION_TIMEOUT_MINUTES: i32 = 30;

/// What clients take us for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Shown {
    /// In front of a replica set or a sharded cluster: drivers send read preferences, retryable writes, transactions.
    Mongos,
    /// In front of a standalone, which knows none of these.
    Standalone,
    /// A replica set of one member, which is us: for clients whose connection string names one.
    ReplicaSet,
}

/// The same for all processes and times, so that to no driver one of us is a stale primary. Servers write their term behind
/// these first four bytes: this is the greatest of that form, which no real primary reaches.
const ELECTION_ID: ObjectId = ObjectId::from_bytes([0x7F, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]);
/// As [`ELECTION_ID`]. Drivers compare it first below wire version 17, later only where the other one is equal.
const SET_VERSION: i32 = 1;

/// What a hello says about us; the same for all clients of a listener until the upstream changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Must never change while a client socket is open: drivers drop a server of another type for good.
    pub presentation: Shown,
    /// Name and address of the set that [`Shown::ReplicaSet`] shows.
    pub shown_set: Option<Arc<ShownSet>>,
    /// Lowest wire version that is spoken.
    pub min_wire_version: i32,
    /// Highest wire version that all upstream members speak; at least 9, so that drivers rely on our labels.
    pub max_wire_version: i32,
    /// Fixed for the life of the process; clients behind a load balancer tell processes apart by it.
    pub service_id: ObjectId,
    /// What is offered to clients; their order wins.
    pub compressors: Compressors,
    /// Largest message that clients may send: drivers split their batches by it.
    pub max_message_bytes: i32,
}

/// What one client socket has told about itself; small, since there are thousands.
#[derive(Debug, Clone, Default)]
pub struct ClientState {
    /// Application and driver, once told.
    pub metadata: Option<Arc<ClientMetadata>>,
    /// A hello got past its metadata: from now on the metadata cannot change.
    pub hello_seen: bool,
    /// The connection string says `loadBalanced=true`.
    pub load_balanced: bool,
    /// The driver backs off and retries on our overload labels.
    pub backpressure: bool,
    /// What was agreed on for this socket, in the client's order.
    pub compressors: Compressors,
}

/// Compressors without duplicates, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compressors([Option<Compressor>; Compressor::ALL.len()]);

impl Compressors {
    /// True when `compressor` is one of them.
    pub fn contains(self, compressor: Compressor) -> bool {
        self.iter().any(|ours| ours == compressor)
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = Compressor> {
        self.0.into_iter().flatten()
    }

    /// Appends one that is not there yet.
    fn push(&mut self, compressor: Compressor) {
        // Room for each kind once, so a new one always finds an empty place.
        if !self.contains(compressor)
            && let Some(place) = self.0.iter_mut().find(|place| place.is_none())
        {
            *place = Some(compressor);
        }
    }

    /// True when nothing will be compressed.
    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }
}

impl FromIterator<Compressor> for Compressors {
    fn from_iter<I: IntoIterator<Item = Compressor>>(compressors: I) -> Self {
        let mut set = Self::default();
        compressors.into_iter().for_each(|compressor| set.push(compressor));
        set
    }
}

/// What is known of a client's socket without being told.
#[derive(Debug, Clone, Copy)]
pub struct Socket<'a> {
    /// Its number.
    pub connection_id: i64,
    /// The address that the client has dialled, as far as we can see.
    pub dialled: &'a str,
}

/// The fields of a hello that change its answer.
#[derive(Default)]
struct Request<'a> {
    client: Option<Element<'a>>,
    compression: Option<Element<'a>>,
    topology_version: Option<Element<'a>>,
    max_await_time_ms: Option<Element<'a>>,
    hello_ok: bool,
    load_balanced: bool,
    backpressure: bool,
}

impl<'a> Request<'a> {
    fn read(document: &'a [u8]) -> Result<Self, MalformedDocument> {
        let mut request = Self::default();
        for element in Elements::new(document)? {
            let element = element?;
            match element.name {
                b"client" => request.client = Some(element),
                b"compression" => request.compression = Some(element),
                b"topologyVersion" => request.topology_version = Some(element),
                b"maxAwaitTimeMS" => request.max_await_time_ms = Some(element),
                // Asking is enough: the server does not look at the value either.
                b"helloOk" => request.hello_ok = true,
                b"loadBalanced" => request.load_balanced = element.as_truth() == Some(true),
                // A version as a string, or true.
                b"backpressure" => request.backpressure = element.as_truth() != Some(false),
                _ => {}
            }
        }
        Ok(request)
    }
}

/// Answers `hello`, `isMaster` or `ismaster` (`name`); `document` may come from an OP_MSG or from an OP_QUERY.
///
/// # Errors
/// The errors of the server: for arguments of API versions, for metadata, for waiting on a `topologyVersion`. Metadata
/// that passed stays accepted even if a later argument is wrong, as on the server.
pub fn hello(
    document: &[u8],
    name: &str,
    facts: &Facts,
    state: &mut ClientState,
    socket: Socket<'_>,
    now: bson::DateTime,
) -> Result<RawDocumentBuf, ErrorReply> {
    check_api(document, name)?;
    let request = Request::read(document).map_err(|_| errors::invalid_bson())?;
    // The order of the server: types, metadata, and only then what does not go together.
    check_types(&request, name)?;
    let agreed = request.compression.map(|listed| negotiate(&listed, name, facts.compressors)).transpose()?;
    if let Some(client) = request.client {
        if state.hello_seen {
            return Err(errors::metadata_sent_again());
        }
        state.metadata = Some(Arc::new(ClientMetadata::parse(&client)?));
    }
    state.hello_seen = true;
    check_await(&request)?;
    state.compressors = agreed.unwrap_or(state.compressors);
    state.load_balanced |= request.load_balanced;
    state.backpressure |= request.backpressure;
    Ok(reply(name, &request, facts, state.compressors, socket, now))
}

fn reply(
    name: &str,
    request: &Request<'_>,
    facts: &Facts,
    compressors: Compressors,
    socket: Socket<'_>,
    now: bson::DateTime,
) -> RawDocumentBuf {
    let mut reply = RawDocumentBuf::new();
    if request.hello_ok {
        reply.append(cstr!("helloOk"), true);
    }
    if let Some(set) = &facts.shown_set
        && facts.presentation == Shown::ReplicaSet
        && !request.load_balanced
    {
        show_set(&mut reply, set, socket.dialled, now);
    }
    reply.append(if name == "hello" { cstr!("isWritablePrimary") } else { cstr!("ismaster") }, true);
    // A load balancer has mongos behind it.
    if facts.presentation == Shown::Mongos || request.load_balanced {
        reply.append(cstr!("msg"), "isdbgrid");
    }
    // Without it a driver in load-balanced mode gives up; with it unasked, others would be confused.
    if request.load_balanced {
        reply.append(cstr!("serviceId"), facts.service_id);
    }
    reply.append(cstr!("maxBsonObjectSize"), MAX_BSON_OBJECT_SIZE);
    reply.append(cstr!("maxMessageSizeBytes"), facts.max_message_bytes);
    reply.append(cstr!("maxWriteBatchSize"), MAX_WRITE_BATCH_SIZE);
    reply.append(cstr!("localTime"), now);
    reply.append(cstr!("logicalSessionTimeoutMinutes"), SESSION_TIMEOUT_MINUTES);
    match i32::try_from(socket.connection_id) {
        Ok(short) => reply.append(cstr!("connectionId"), short),
        Err(_) => reply.append(cstr!("connectionId"), socket.connection_id),
    }
    reply.append(cstr!("minWireVersion"), facts.min_wire_version);
    reply.append(cstr!("maxWireVersion"), facts.max_wire_version);
    reply.append(cstr!("readOnly"), false);
    if !compressors.is_empty() {
        reply.append(cstr!("compression"), compressors.iter().map(Compressor::name).collect::<RawArrayBuf>());
    }
    reply.append(cstr!("ok"), 1.0);
    reply
}

/// A set whose only member and primary for ever is reached at the address that the client has dialled: any other would be one
/// that it may not be able to reach.
fn show_set(reply: &mut RawDocumentBuf, set: &ShownSet, dialled: &str, now: bson::DateTime) {
    let advertised = set.address.as_ref().map(|address| match address {
        Address::Tcp { .. } => address.to_string(),
        Address::Unix(path) => path.display().to_string(),
    });
    let member = advertised.as_deref().unwrap_or(dialled);
    reply.append(cstr!("setName"), set.name.as_str());
    reply.append(cstr!("setVersion"), SET_VERSION);
    reply.append(cstr!("hosts"), [member].into_iter().collect::<RawArrayBuf>());
    reply.append(cstr!("primary"), member);
    reply.append(cstr!("me"), member);
    reply.append(cstr!("secondary"), false);
    reply.append(cstr!("electionId"), ELECTION_ID);
    let time = u32::try_from(now.timestamp_millis() / 1000).unwrap_or(u32::MAX);
    let op_time = rawdoc! { "ts": Timestamp { time, increment: 1 }, "t": 1_i64 };
    let last_write = rawdoc! {
        "opTime": op_time.clone(), "lastWriteDate": now, "majorityOpTime": op_time, "majorityWriteDate": now,
    };
    reply.append(cstr!("lastWrite"), last_write);
}

fn check_types(request: &Request<'_>, name: &str) -> Result<(), ErrorReply> {
    if let Some(element) = request.max_await_time_ms {
        let path = format!("{name}.maxAwaitTimeMS");
        match element.as_number() {
            None => return Err(errors::type_mismatch(&path, "a number")),
            Some(negative @ ..0) => return Err(errors::negative_value(&path, negative)),
            Some(0..) => {}
        }
    }
    if request.topology_version.is_some_and(|element| element.kind != kind::DOCUMENT) {
        return Err(errors::type_mismatch(&format!("{name}.topologyVersion"), "object"));
    }
    Ok(())
}

/// Both arguments together ask to wait for a newer `topologyVersion` than the client has. It cannot have one of ours, so
/// it is answered at once.
fn check_await(request: &Request<'_>) -> Result<(), ErrorReply> {
    match (request.topology_version, request.max_await_time_ms) {
        (Some(_), None) => Err(errors::await_arguments_apart("topologyVersion", "maxAwaitTimeMS")),
        (None, Some(_)) => Err(errors::await_arguments_apart("maxAwaitTimeMS", "topologyVersion")),
        (Some(_), Some(_)) | (None, None) => Ok(()),
    }
}

/// What the client lists and we offer, in the client's order.
fn negotiate(compression: &Element<'_>, name: &str, offered: Compressors) -> Result<Compressors, ErrorReply> {
    let wrong = |expected| errors::type_mismatch(&format!("{name}.compression"), expected);
    if compression.kind != kind::ARRAY {
        return Err(wrong("array"));
    }
    let mut agreed = Compressors::default();
    for element in Elements::new(compression.value).map_err(|_| errors::invalid_bson())? {
        let text = element.map_err(|_| errors::invalid_bson())?.as_str().ok_or_else(|| wrong("array of strings"))?;
        Compressor::from_name(text).into_iter().filter(|one| offered.contains(*one)).for_each(|one| agreed.push(one));
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use bson::{Document, RawDocument, doc};

    use super::*;

    const NOW: bson::DateTime = bson::DateTime::from_millis(1_700_000_000_000);
    const SOCKET: Socket<'_> = Socket { connection_id: 5, dialled: "10.0.0.1:27016" };

    fn facts(presentation: Shown) -> Facts {
        let compressors = [Compressor::Zlib, Compressor::Snappy, Compressor::Zstd].into_iter().collect();
        let service_id = ObjectId::from_bytes([9; 12]);
        let max_message_bytes = 48_000_000;
        let shown_set =
            (presentation == Shown::ReplicaSet).then(|| Arc::new(ShownSet { name: "rs0".into(), address: None }));
        let (min_wire_version, max_wire_version) = (0, 17);
        Facts {
            presentation,
            shown_set,
            min_wire_version,
            max_wire_version,
            service_id,
            compressors,
            max_message_bytes,
        }
    }

    fn ask(request: Document, state: &mut ClientState) -> Result<Document, i32> {
        let name = request.keys().next().unwrap().clone();
        let document = request.to_vec().unwrap();
        match hello(&document, &name, &facts(Shown::Mongos), state, SOCKET, NOW) {
            Ok(reply) => Ok(Document::try_from(reply).unwrap()),
            Err(error) => Err(error.code.number),
        }
    }

    fn first(request: Document) -> Result<Document, i32> {
        ask(request, &mut ClientState::default())
    }

    fn client() -> Document {
        doc! {"application": {"name": "shop"}, "driver": {"name": "PyMongo", "version": "4.20"}, "os": {"type": "Linux"}}
    }

    fn keys(document: &Document) -> Vec<&str> {
        document.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_mongos_is_shown_with_every_field_and_type_that_drivers_check() {
        let expected = doc! {
            "helloOk": true, "isWritablePrimary": true, "msg": "isdbgrid", "maxBsonObjectSize": 16_777_216,
            "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "localTime": NOW,
            "logicalSessionTimeoutMinutes": 30, "connectionId": 5, "minWireVersion": 0, "maxWireVersion": 17,
            "readOnly": false, "ok": 1.0,
        };
        assert_eq!(first(doc! {"hello": 1, "helloOk": true, "$db": "admin"}).unwrap(), expected);
    }

    #[test]
    fn a_standalone_is_shown_without_msg() {
        let request = doc! {"hello": 1}.to_vec().unwrap();
        let standalone = facts(Shown::Standalone);
        let reply = hello(
            &request,
            "hello",
            &standalone,
            &mut ClientState::default(),
            Socket { connection_id: i64::MAX, ..SOCKET },
            NOW,
        )
        .unwrap();
        assert_eq!(reply.get("msg").unwrap(), None);
        assert_eq!(reply.get_i64("connectionId").unwrap(), i64::MAX);
    }

    #[test]
    fn a_replica_set_of_one_member_is_shown_at_the_address_that_was_dialled() {
        let mut shown = facts(Shown::ReplicaSet);
        let ask = |request: Document, facts: &Facts| {
            let reply = hello(&request.to_vec().unwrap(), "hello", facts, &mut ClientState::default(), SOCKET, NOW);
            Document::try_from(reply.unwrap()).unwrap()
        };
        let reply = ask(doc! {"hello": 1}, &shown);
        let op_time = doc! {"ts": Timestamp { time: 1_700_000_000, increment: 1 }, "t": 1_i64};
        let expected = doc! {
            "setName": "rs0", "setVersion": 1, "hosts": ["10.0.0.1:27016"], "primary": "10.0.0.1:27016",
            "me": "10.0.0.1:27016", "secondary": false,
            "electionId": ObjectId::parse_str("7fffffffffffffffffffffff").unwrap(),
            "lastWrite": {"opTime": op_time.clone(), "lastWriteDate": NOW, "majorityOpTime": op_time, "majorityWriteDate": NOW},
            "isWritablePrimary": true, "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000, "localTime": NOW, "logicalSessionTimeoutMinutes": 30, "connectionId": 5,
            "minWireVersion": 0, "maxWireVersion": 17, "readOnly": false, "ok": 1.0,
        };
        assert_eq!(reply, expected);
        let balanced = ask(doc! {"hello": 1, "loadBalanced": true}, &shown);
        assert!(!balanced.contains_key("setName") && balanced.get_str("msg").unwrap() == "isdbgrid", "{balanced}");
        for (address, told) in [
            (Address::tcp("proxy", 1), "proxy:1"),
            (Address::tcp("::1", 1), "[::1]:1"),
            (Address::Unix("/p.sock".into()), "/p.sock"),
        ] {
            shown.shown_set = Some(Arc::new(ShownSet { name: "rs0".into(), address: Some(address) }));
            let reply = ask(doc! {"hello": 1}, &shown);
            assert_eq!((reply.get_str("me").unwrap(), reply.get_str("primary").unwrap()), (told, told));
            assert_eq!(reply.get_array("hosts").unwrap(), &[bson::Bson::from(told)]);
        }
    }

    #[test]
    fn the_elder_names_are_answered_in_their_words() {
        for name in ["isMaster", "ismaster"] {
            let reply = first(doc! {name: true}).unwrap();
            assert!(reply.get_bool("ismaster").unwrap());
            assert!(!reply.contains_key("isWritablePrimary") && !reply.contains_key("helloOk"));
        }
    }

    #[test]
    fn no_reply_makes_a_driver_look_for_a_replica_set_or_stream() {
        let reply = first(doc! {"hello": 1, "topologyVersion": {}, "maxAwaitTimeMS": 10_000_i64}).unwrap();
        for field in ["topologyVersion", "setName", "hosts", "me", "primary", "serviceId", "saslSupportedMechs"] {
            assert!(!reply.contains_key(field), "{field}");
        }
    }

    #[test]
    fn a_load_balanced_client_gets_the_service_id_and_a_mongos() {
        let request = doc! {"hello": 1, "loadBalanced": true}.to_vec().unwrap();
        for presentation in [Shown::Mongos, Shown::Standalone] {
            let mut state = ClientState::default();
            let reply = hello(&request, "hello", &facts(presentation), &mut state, SOCKET, NOW).unwrap();
            assert_eq!(reply.get_object_id("serviceId").unwrap(), ObjectId::from_bytes([9; 12]));
            assert_eq!(reply.get_str("msg").unwrap(), "isdbgrid");
            assert!(state.load_balanced);
        }
        assert!(!first(doc! {"hello": 1, "loadBalanced": false}).unwrap().contains_key("serviceId"));
    }

    #[test]
    fn backpressure_is_remembered_in_both_spellings() {
        for (value, expected) in [(bson::bson!("2"), true), (bson::bson!(true), true), (bson::bson!(false), false)] {
            let mut state = ClientState::default();
            ask(doc! {"hello": 1, "backpressure": value}, &mut state).unwrap();
            assert_eq!(state.backpressure, expected);
        }
    }

    #[test]
    fn compression_is_the_intersection_in_the_clients_order() {
        let listed = |names: &[&str]| first(doc! {"hello": 1, "compression": names.to_vec()}).unwrap();
        let reply = listed(&["zstd", "lz4", "noop", "zlib", "zstd"]);
        assert_eq!(reply.get_array("compression").unwrap(), bson::bson!(["zstd", "zlib"]).as_array().unwrap());
        assert!(!listed(&["lz4"]).contains_key("compression") && !listed(&[]).contains_key("compression"));
        let none = Facts { compressors: Compressors::default(), ..facts(Shown::Mongos) };
        let request = doc! {"hello": 1, "compression": ["zlib"]}.to_vec().unwrap();
        let reply = hello(&request, "hello", &none, &mut ClientState::default(), SOCKET, NOW).unwrap();
        assert_eq!(reply.get("compression").unwrap(), None);
        assert_eq!(first(doc! {"hello": 1, "compression": "zlib"}), Err(14));
        assert_eq!(first(doc! {"hello": 1, "compression": [1]}), Err(14));
    }

    #[test]
    fn a_later_hello_repeats_the_compression_or_renegotiates_it() {
        let mut state = ClientState::default();
        let mut compression = |request| ask(request, &mut state).unwrap().get_array("compression").ok().cloned();
        let zlib = Some(vec![bson::bson!("zlib")]);
        assert_eq!(compression(doc! {"hello": 1, "compression": ["zlib"]}), zlib);
        assert_eq!(compression(doc! {"hello": 1}), zlib);
        assert_eq!(compression(doc! {"hello": 1, "compression": ["snappy"]}), Some(vec![bson::bson!("snappy")]));
        assert_eq!(compression(doc! {"hello": 1, "compression": []}), None);
        assert_eq!(compression(doc! {"hello": 1}), None);
    }

    #[test]
    fn metadata_is_kept_and_cannot_change() {
        let mut state = ClientState::default();
        ask(doc! {"isMaster": 1, "client": client()}, &mut state).unwrap();
        let metadata = state.metadata.clone().unwrap();
        assert_eq!(metadata.application.as_deref(), Some("shop"));
        assert_eq!((&*metadata.driver_name, &*metadata.driver_version), ("PyMongo", "4.20"));
        assert_eq!(ask(doc! {"hello": 1, "client": client()}, &mut state), Err(186));
        ask(doc! {"hello": 1}, &mut state).unwrap();
    }

    #[test]
    fn a_hello_without_metadata_locks_it_and_a_failed_one_does_not() {
        let mut state = ClientState::default();
        ask(doc! {"hello": 1}, &mut state).unwrap();
        assert_eq!(ask(doc! {"hello": 1, "client": client()}, &mut state), Err(186));

        let mut state = ClientState::default();
        assert_eq!(ask(doc! {"hello": 1, "client": {}}, &mut state), Err(183));
        ask(doc! {"hello": 1, "client": client()}, &mut state).unwrap();

        // A wrong type is found before the metadata is, ...
        let mut state = ClientState::default();
        assert_eq!(ask(doc! {"hello": 1, "client": client(), "maxAwaitTimeMS": -1}, &mut state), Err(51024));
        assert_eq!(ask(doc! {"hello": 1, "client": client(), "compression": 1}, &mut state), Err(14));
        ask(doc! {"hello": 1, "client": client()}, &mut state).unwrap();

        // ... arguments that do not go together after it was accepted.
        let mut state = ClientState::default();
        assert_eq!(ask(doc! {"hello": 1, "client": client(), "maxAwaitTimeMS": 1}, &mut state), Err(31368));
        assert_eq!(ask(doc! {"hello": 1, "client": client()}, &mut state), Err(186));
    }

    #[test]
    fn arguments_that_wait_for_changes_are_checked() {
        let version = doc! {"processId": ObjectId::from_bytes([1; 12]), "counter": 3_i64};
        let code = |request: Document| first(request).map(|_| ()).err();
        assert_eq!(code(doc! {"hello": 1, "topologyVersion": version.clone()}), Some(31368));
        assert_eq!(code(doc! {"hello": 1, "maxAwaitTimeMS": 5}), Some(31368));
        assert_eq!(code(doc! {"hello": 1, "maxAwaitTimeMS": -5}), Some(51024));
        assert_eq!(code(doc! {"hello": 1, "maxAwaitTimeMS": "x", "topologyVersion": version.clone()}), Some(14));
        assert_eq!(code(doc! {"hello": 1, "maxAwaitTimeMS": 5, "topologyVersion": "x"}), Some(14));
        assert_eq!(code(doc! {"hello": 1, "maxAwaitTimeMS": 5, "topologyVersion": version}), None);
    }

    #[test]
    fn api_arguments_come_first() {
        assert_eq!(first(doc! {"hello": 1, "apiVersion": "2", "client": {}}), Err(322));
        assert_eq!(first(doc! {"isMaster": 1, "apiVersion": "1", "apiStrict": true}), Err(323));
        first(doc! {"hello": 1, "apiVersion": "1", "apiStrict": true}).unwrap();
    }

    #[test]
    fn unknown_and_login_fields_are_ignored() {
        let request = doc! {"hello": 1, "saslSupportedMechs": "admin.me", "speculativeAuthenticate": {"saslStart": 1},
        "somethingNew": {"a": []}};
        let plain = first(doc! {"hello": 1}).unwrap();
        assert_eq!(keys(&first(request).unwrap()), keys(&plain));
    }

    #[test]
    fn no_damaged_byte_causes_a_panic() {
        let request = doc! {"hello": 1, "client": client(), "compression": ["zlib"], "maxAwaitTimeMS": 1,
        "topologyVersion": {}, "apiVersion": "1", "apiStrict": false, "loadBalanced": true};
        let bytes = request.to_vec().unwrap();
        for position in 0..bytes.len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[position] = value;
                match hello(&damaged, "hello", &facts(Shown::Mongos), &mut ClientState::default(), SOCKET, NOW) {
                    Ok(reply) => assert_eq!(reply.get_f64("ok").unwrap(), 1.0),
                    Err(error) => assert!(RawDocument::from_bytes(error.to_document().as_bytes()).is_ok()),
                }
            }
        }
    }
}
