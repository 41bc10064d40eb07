//! Command + pins + topology → where to. Selection among several servers is `topology`'s.

use std::sync::Arc;

use tokio::time::Instant;

use super::pins::Pins;
use crate::command::{Command, Handling};
use crate::config::Address;
use crate::topology::{Criteria, ServerDescription, ServerKind, TopologyDescription};
use crate::wire::Frame;

/// Where a command goes.
#[derive(Debug)]
pub enum Route<'a> {
    /// To this server and no other.
    Server(Arc<Address>),
    /// To this server, unless it turns out in a moment that it is gone: it is suspect.
    Await(Arc<Address>),
    /// To whichever server suits.
    Select(Criteria<'a>),
    /// Nowhere: what it belongs to is gone.
    Lost(Lost),
}

/// What is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// The cursor: unknown, or its server cannot be reached.
    Cursor,
    /// The transaction: this server, where it ran, takes no writes any more.
    Transaction(Arc<Address>),
}

/// Decides where `command` goes.
pub fn route<'a>(
    command: &'a Command,
    frame: &Frame,
    pins: &mut Pins,
    topology: &TopologyDescription,
    now: Instant,
) -> Route<'a> {
    if command.spec.handling == Handling::GetMore {
        let pinned = command.cursor_id(frame).and_then(|id| pins.cursor(id, now)).map(|pin| pin.server.clone());
        return cursor_route(pinned, topology);
    }
    if let Some(transaction) = command.session.transaction()
        && !command.session.starts_transaction
        && let Some(server) = pins.transaction(transaction, now)
    {
        let usable = |it: &ServerDescription| topology.is_usable(it) && it.kind != ServerKind::RsSecondary;
        let in_doubt = suspected_as(topology, &server).is_some_and(|kind| kind != ServerKind::RsSecondary);
        return match (topology.servers.get(&server).is_some_and(usable), command.spec.handling) {
            (true, _) => Route::Server(server),
            (false, _) if in_doubt => Route::Await(server),
            // Another primary, or mongos, knows how the transaction ended, or that it did not.
            (false, Handling::EndTransaction) => Route::Select(Criteria::Write),
            (false, _) => Route::Lost(Lost::Transaction(server)),
        };
    }
    match &command.read_preference {
        Some(preference) if command.secondary_ok(frame) => Route::Select(Criteria::Read(preference)),
        _ => Route::Select(Criteria::Write),
    }
}

fn cursor_route<'a>(pinned: Option<Arc<Address>>, topology: &TopologyDescription) -> Route<'a> {
    match pinned {
        Some(server) if topology.servers.get(&server).is_some_and(|server| topology.is_usable(server)) => {
            Route::Server(server)
        }
        Some(server) if suspected_as(topology, &server).is_some() => Route::Await(server),
        Some(_) => Route::Lost(Lost::Cursor),
        // Made before we started, or not at all: where there is one server only, that one knows.
        None if topology.servers.len() == 1 => Route::Select(Criteria::Write),
        None => Route::Lost(Lost::Cursor),
    }
}

/// What a server was that our own connections doubt and monitoring does not.
fn suspected_as(topology: &TopologyDescription, server: &Address) -> Option<ServerKind> {
    topology.servers.get(server)?.suspected.filter(|kind| kind.is_data_bearing())
}

#[cfg(test)]
mod tests {
    use bson::{Bson, doc};

    use super::*;
    use crate::command::TransactionId;
    use crate::routing::{CursorLife, CursorPin};
    use crate::telemetry::Applications;
    use crate::topology::TopologyKind;
    use crate::wire::encode;

    fn address(port: u16) -> Address {
        Address::tcp("127.0.0.1", port)
    }

    fn topology(servers: &[(u16, ServerKind)]) -> TopologyDescription {
        let describe = |(port, kind): &(u16, ServerKind)| {
            let description = ServerDescription { kind: *kind, ..ServerDescription::unknown(address(*port)) };
            (address(*port), description)
        };
        TopologyDescription {
            kind: TopologyKind::ReplicaSetWithPrimary,
            servers: servers.iter().map(describe).collect(),
            ..TopologyDescription::default()
        }
    }

    fn where_to(document: bson::Document, pins: &mut Pins, topology: &TopologyDescription) -> String {
        let mut frame = encode::op_msg(1, 0, &bson::RawDocumentBuf::try_from(&document).unwrap());
        let command = Command::parse(&mut frame).unwrap();
        match route(&command, &frame, pins, topology, Instant::now()) {
            Route::Server(server) => server.to_string(),
            Route::Await(server) => format!("wait for {server}"),
            Route::Select(Criteria::Write) => "write".to_owned(),
            Route::Select(Criteria::PrimaryElseSecondary) => "degraded".to_owned(),
            Route::Select(Criteria::Read(_)) => "read".to_owned(),
            Route::Lost(Lost::Cursor) => "lost cursor".to_owned(),
            Route::Lost(Lost::Transaction(server)) => format!("lost transaction on {server}"),
        }
    }

    #[test]
    fn a_cursor_goes_to_its_server_whatever_that_is_now() {
        let mut pins = Pins::default();
        let pin = CursorPin {
            user: crate::auth::UserId::SERVICE,
            server: Arc::new(address(2)),
            awaits_data: false,
            change_stream: false,
            life: CursorLife::Session,
            application: Applications::default().unnamed(),
            caught_up: None,
        };
        pins.pin_cursor(77, pin, Instant::now()).unwrap();
        let get_more = |id: Bson| doc! {"getMore": id, "collection": "c", "$db": "d"};
        let set = topology(&[(1, ServerKind::RsPrimary), (2, ServerKind::RsSecondary)]);
        assert_eq!(where_to(get_more(77_i64.into()), &mut pins, &set), "127.0.0.1:2");
        assert_eq!(where_to(get_more(78_i64.into()), &mut pins, &set), "lost cursor");
        let down = topology(&[(1, ServerKind::RsPrimary), (2, ServerKind::Unknown)]);
        assert_eq!(where_to(get_more(77_i64.into()), &mut pins, &down), "lost cursor");
        let single = topology(&[(1, ServerKind::RsPrimary)]);
        assert_eq!(where_to(get_more(78_i64.into()), &mut pins, &single), "write");
        assert_eq!(where_to(get_more(5_i32.into()), &mut pins, &single), "write", "the server names the wrong type");
    }

    #[test]
    fn a_transaction_stays_with_its_server_and_ends_anywhere() {
        let mut pins = Pins::default();
        let session = bson::Uuid::from_bytes([4; 16]);
        let transaction = TransactionId { session: [4; 16].into(), number: 3 };
        pins.pin_transaction(transaction, Arc::new(address(1)), Instant::now()).unwrap();
        let statement = |name: &str| {
            doc! {name: "c", "$db": "d", "lsid": {"id": session}, "txnNumber": 3_i64, "autocommit": false}
        };
        let set = topology(&[(1, ServerKind::RsPrimary), (2, ServerKind::RsSecondary)]);
        assert_eq!(where_to(statement("find"), &mut pins, &set), "127.0.0.1:1");
        assert_eq!(where_to(statement("commitTransaction"), &mut pins, &set), "127.0.0.1:1");
        let moved = topology(&[(1, ServerKind::RsSecondary), (2, ServerKind::RsPrimary)]);
        assert_eq!(where_to(statement("find"), &mut pins, &moved), "lost transaction on 127.0.0.1:1");
        assert_eq!(where_to(statement("commitTransaction"), &mut pins, &moved), "write");
        let mut start = statement("find");
        start.insert("startTransaction", true);
        assert_eq!(where_to(start, &mut pins, &set), "write");
    }

    #[test]
    fn what_lives_on_a_suspect_server_waits_for_it() {
        let mut pins = Pins::default();
        let pin = CursorPin {
            user: crate::auth::UserId::SERVICE,
            server: Arc::new(address(1)),
            awaits_data: false,
            change_stream: false,
            life: CursorLife::Session,
            application: Applications::default().unnamed(),
            caught_up: None,
        };
        pins.pin_cursor(77, pin, Instant::now()).unwrap();
        let transaction = TransactionId { session: [4; 16].into(), number: 3 };
        pins.pin_transaction(transaction, Arc::new(address(1)), Instant::now()).unwrap();
        let more = || doc! {"getMore": 77_i64, "collection": "c", "$db": "d"};
        let statement = |name: &str| {
            let session = bson::Uuid::from_bytes([4; 16]);
            doc! {name: "c", "$db": "d", "lsid": {"id": session}, "txnNumber": 3_i64, "autocommit": false}
        };
        let mut suspect = |kind| {
            let mut set = topology(&[(1, ServerKind::Unknown), (2, ServerKind::RsPrimary)]);
            set.servers.get_mut(&address(1)).unwrap().suspected = Some(kind);
            [more(), statement("find"), statement("commitTransaction")].map(|it| where_to(it, &mut pins, &set))
        };
        assert_eq!(suspect(ServerKind::RsPrimary), ["wait for 127.0.0.1:1"; 3]);
        let demoted = suspect(ServerKind::RsSecondary);
        assert_eq!(demoted[0], "wait for 127.0.0.1:1");
        assert_eq!(demoted[1], "lost transaction on 127.0.0.1:1");
        assert_eq!(demoted[2], "write");
    }

    #[test]
    fn read_preference_counts_for_reads_only() {
        let mut pins = Pins::default();
        let set = topology(&[(1, ServerKind::RsPrimary)]);
        let with_preference = |name: &str| doc! {name: "c", "$db": "d", "$readPreference": {"mode": "secondary"}};
        assert_eq!(where_to(with_preference("find"), &mut pins, &set), "read");
        for name in ["insert", "findAndModify", "createIndexes", "madeUp"] {
            assert_eq!(where_to(with_preference(name), &mut pins, &set), "write", "{name}");
        }
        assert_eq!(where_to(doc! {"find": "c", "$db": "d"}, &mut pins, &set), "write");
    }
}
