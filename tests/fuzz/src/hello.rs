//! Greetings: what a client says of itself, and what a server does.

use bson::oid::ObjectId;
use bson::{DateTime, RawDocument, RawDocumentBuf};
use mongomux::reply::errors::MAX_MESSAGE_BYTES;
use mongomux::reply::log_in::{Authenticate, Continue, Speculative, Start, in_hello};
use mongomux::reply::{ClientState, Compressors, ErrorReply, Facts, Shown, Socket, hello};
use mongomux::topology::ServerKind;
use mongomux::topology::description::Hello;
use mongomux::wire::{Compressor, Elements};

/// All that may ever stand in a hello of ours: one field more, and a driver looks for servers that it cannot reach.
const FIELDS: [&str; 26] = [
    "helloOk",
    "setName",
    "setVersion",
    "hosts",
    "primary",
    "me",
    "secondary",
    "electionId",
    "lastWrite",
    "isWritablePrimary",
    "ismaster",
    "msg",
    "serviceId",
    "maxBsonObjectSize",
    "maxMessageSizeBytes",
    "maxWriteBatchSize",
    "localTime",
    "logicalSessionTimeoutMinutes",
    "connectionId",
    "minWireVersion",
    "maxWireVersion",
    "readOnly",
    "compression",
    "saslSupportedMechs",
    "speculativeAuthenticate",
    "ok",
];

/// The first byte chooses what we are and under which name we are greeted, the others are the greeting; and, in another turn,
/// what a server says of itself, or what a client says that logs in.
pub fn check(data: &[u8]) {
    let Some((choice, document)) = data.split_first() else { return };
    let name = ["hello", "isMaster", "ismaster"][usize::from(choice >> 3) % 3];
    let facts = facts(*choice);
    let mut state = ClientState::default();
    let socket = Socket { connection_id: i64::from(*choice), dialled: "127.0.0.1:27016" };
    let now = DateTime::from_millis(1_700_000_000_000);
    let greet = |state: &mut ClientState| hello(document, name, &facts, state, socket, now);
    match greet(&mut state) {
        Ok(reply) => {
            says_what_it_may(&reply, &facts);
            assert!(state.hello_seen);
            assert!(state.compressors.iter().all(|one| facts.compressors.contains(one)), "only what was offered");
            if let Some(metadata) = &state.metadata {
                let told = [Some(&metadata.driver_name), Some(&metadata.driver_version), metadata.platform.as_ref()];
                assert!(metadata.application.as_ref().is_none_or(|name| name.len() <= 128));
                assert!(told.into_iter().flatten().map(|text| text.len()).sum::<usize>() <= 1024);
                assert!(greet(&mut state).is_err(), "nobody is somebody else later");
            }
        }
        Err(error) => is_told(&error),
    }
    logs_in(document, name);
    server(document);
}

fn facts(choice: u8) -> Facts {
    Facts {
        presentation: [Shown::Mongos, Shown::Standalone, Shown::ReplicaSet][usize::from(choice) % 3],
        shown_set: None,
        min_wire_version: 0,
        max_wire_version: 17,
        service_id: ObjectId::from_bytes([7; 12]),
        compressors: Compressor::ALL.into_iter().take(usize::from(choice >> 6)).collect::<Compressors>(),
        max_message_bytes: 48_000_000,
    }
}

fn says_what_it_may(reply: &RawDocumentBuf, facts: &Facts) {
    let names: Vec<&str> = reply.iter().map(|element| element.unwrap().0.as_str()).collect();
    assert!(names.iter().all(|name| FIELDS.contains(name)), "{names:?}");
    assert_eq!(reply.get_i32("maxWireVersion").unwrap(), facts.max_wire_version);
    assert_eq!(reply.get_f64("ok").unwrap().to_bits(), 1.0_f64.to_bits());
    // As one of us would read it, had it another of us as its server.
    let kind = Hello::read(reply).kind;
    let balanced = reply.get("serviceId").unwrap().is_some();
    match facts.presentation {
        Shown::Standalone | Shown::ReplicaSet if !balanced => assert_eq!(kind, ServerKind::Standalone),
        _ => assert_eq!(kind, ServerKind::Mongos),
    }
}

/// Errors have a bound, and are documents.
fn is_told(error: &ErrorReply) {
    assert!(error.message.len() <= MAX_MESSAGE_BYTES);
    let document = error.to_document();
    assert_eq!(document.get_f64("ok").unwrap().to_bits(), 0.0_f64.to_bits());
    assert!(document.iter().all(|element| element.is_ok()));
}

fn logs_in(document: &[u8], name: &str) {
    match in_hello(document, name) {
        Ok((mechanisms, speculative)) => {
            assert!(mechanisms.is_none_or(|user| user.contains('.')));
            match speculative.and_then(Speculative::read) {
                Some(Speculative::Start(start, _)) => assert!(start.payload.bytes.expose().len() <= document.len()),
                Some(Speculative::Authenticate(asked)) => assert!(asked.mechanism.len() <= document.len()),
                None => {}
            }
        }
        Err(error) => is_told(&error),
    }
    let sound = Elements::new(document).is_ok_and(|mut elements| elements.all(|element| element.is_ok()));
    let asked = [
        Start::read(document).map(|start| start.payload.bytes.expose().len()),
        Continue::read(document).map(|further| further.payload.bytes.expose().len()),
        Authenticate::read(document).map(|asked| asked.mechanism.len()),
    ];
    for asked in asked {
        match asked {
            Ok(length) => assert!(sound && length <= document.len()),
            Err(error) => is_told(&error),
        }
    }
}

fn server(document: &[u8]) {
    let Ok(reply) = RawDocument::from_bytes(document) else { return };
    let hello = Hello::read(reply);
    let ok = reply.iter().map_while(Result::ok).any(|(name, _)| name.as_str() == "ok");
    assert!(ok || hello.kind == ServerKind::Unknown, "nothing is sent to who does not say that it is well");
    let in_a_set = matches!(hello.kind, ServerKind::RsPrimary | ServerKind::RsSecondary | ServerKind::RsArbiter);
    assert!(!in_a_set || hello.set_name.is_some());
}
