//! Bytes and documents: what needs nothing but a message.

use std::sync::Arc;

use bytes::BytesMut;
use divan::{Bencher, black_box, black_box_drop};
use mongomux::command::{Command, TransactionId};
use mongomux::config::Address;
use mongomux::reply::inspect;
use mongomux::routing::{Pins, route};
use mongomux::topology::{ServerDescription, ServerKind, TopologyDescription, TopologyKind};
use mongomux::wire::{Frame, encode};
use tokio::time::Instant;

use crate::support::canned::{self, LARGE, SMALL};

/// As long as messages get.
const LIMIT: usize = 48_000_000;

fn frame(message: &[u8]) -> Frame {
    Frame::copy_into(bytes::BytesMut::with_capacity, message, LIMIT).expect("a sound message").expect("a whole message")
}

/// What a read has brought, cut into messages until no whole one is left.
#[divan::bench(args = ["find", "16k", "two", "partial"])]
fn decode(bencher: Bencher<'_, '_>, brought: &str) {
    let bytes = match brought {
        "find" => canned::find(SMALL),
        "16k" => canned::insert(LARGE),
        "two" => [canned::find(SMALL), canned::find(SMALL)].concat(),
        "partial" => canned::find(SMALL)[..60].to_vec(),
        other => unreachable!("{other} is not in the list"),
    };
    bencher.with_inputs(|| BytesMut::from(&bytes[..])).bench_local_refs(|buffer| {
        while let Some(frame) = Frame::decode(buffer, LIMIT).expect("sound messages") {
            black_box_drop(frame);
        }
    });
}

/// The common case of a read that has brought one message.
#[divan::bench(args = [SMALL, LARGE])]
fn copy(bencher: Bencher<'_, '_>, collection: &str) {
    let message = canned::insert(collection);
    bencher.bench_local(|| frame(black_box(&message)));
}

/// What a message asks for.
#[divan::bench(args = ["find", "find_anywhere", "insert", "get_more", "statement"])]
fn parse(bencher: Bencher<'_, '_>, command: &str) {
    let message = request(command);
    bencher
        .with_inputs(|| frame(&message))
        .bench_local_refs(|frame| black_box_drop(Command::parse(frame).expect("a sound command")));
}

fn request(command: &str) -> Vec<u8> {
    match command {
        "find" => canned::find(SMALL),
        "find_anywhere" => canned::find_anywhere(SMALL),
        "insert" => canned::insert(SMALL),
        "get_more" => canned::get_more(77),
        "statement" => canned::statement(SMALL),
        other => unreachable!("{other} is not in the list"),
    }
}

/// Where a parsed command goes.
#[divan::bench(args = ["find", "find_anywhere", "statement"])]
fn route_one(bencher: Bencher<'_, '_>, command: &str) {
    let mut frame = frame(&request(command));
    let command = Command::parse(&mut frame).expect("a sound command");
    let address = Address::tcp("127.0.0.1", 27017);
    let server = ServerDescription { kind: ServerKind::RsPrimary, ..ServerDescription::unknown(address.clone()) };
    let topology = TopologyDescription {
        kind: TopologyKind::ReplicaSetWithPrimary,
        servers: [(address.clone(), server)].into(),
        ..TopologyDescription::default()
    };
    let mut pins = Pins::default();
    let now = Instant::now();
    let transaction = TransactionId { session: canned::SESSION.into(), number: 1 };
    pins.pin_transaction(transaction, Arc::new(address), now).expect("room for one");
    bencher.bench_local(|| black_box_drop(route(black_box(&command), &frame, &mut pins, &topology, now)));
}

/// A reply on its way: looked at, and given the id of its client's request.
#[divan::bench(args = [SMALL, LARGE])]
fn relay(bencher: Bencher<'_, '_>, collection: &str) {
    let mut message = canned::found(collection);
    bencher.bench_local(|| {
        black_box_drop(inspect(black_box(&message), false).expect("a sound reply"));
        encode::set_response_to(black_box(&mut message), 77);
    });
}
