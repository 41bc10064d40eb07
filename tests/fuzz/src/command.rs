//! What is read out of a command, and how it is changed on its way.

use std::time::Duration;

use bytes::BytesMut;
use mongomux::command::parse::expects_reply;
use mongomux::command::rules::judge;
use mongomux::command::{Command, Compressing, Handling};
use mongomux::config::{CommandName, Namespaces, Rules};
use mongomux::wire::document::find;
use mongomux::wire::{Element, Elements, Frame, OpCode, OpMsg};

use super::document::built;

/// The first byte says whether the rest is the document of the command or the body of its message.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let body = if choice & 1 != 0 { rest.to_vec() } else { [&[0; 5], rest].concat() };
    let mut frame = Frame::build(1, 0, OpCode::Msg, &body);
    // Without its checksum, which is `op_msg`'s business.
    if OpMsg::parse(&mut frame).is_err() {
        return;
    }
    let came = frame.bytes().to_vec();
    let Ok(command) = Command::parse(&mut frame) else { return };
    assert_eq!(frame.bytes(), came, "to read changes nothing");
    assert_eq!(command.unacknowledged, !expects_reply(&frame));
    assert!(Elements::new(command.document(&frame)).unwrap().all(|element| element.is_ok()), "it is sound to its end");
    is_safe(&command, &frame);
    is_told_in_few_words(&command, &frame);
    rules_only_take_away(&command, &frame);

    loses_cluster_time_only(&frame);
    allows_a_secondary_only(&frame);
    for remaining in [0, 1_500, 90_000_000].map(Duration::from_micros) {
        shrinks_its_time_only(&frame, remaining);
    }
    waits_as_long_as_it_is_told(&frame);
    command.clear_flags(&mut frame);
    assert_eq!(frame.bytes()[20..], came[20..]);
    assert!(expects_reply(&frame), "upstream always answers");
}

/// A command of its own in a frame of its own.
fn again(frame: &Frame) -> (Command, Frame) {
    let mut copy = Frame::copy_into(BytesMut::with_capacity, frame.bytes(), usize::MAX).unwrap().unwrap();
    (Command::parse(&mut copy).expect("what was read once is read again"), copy)
}

/// What goes to a secondary reads, and nothing that waits in a transaction or for the newest writes goes there unasked.
fn is_safe(command: &Command, frame: &Frame) {
    let secondary = command.secondary_ok(frame);
    assert!(!secondary || !command.session.in_transaction);
    assert!(!secondary || !command.may_write() || command.spec.name == "explain", "{}", command.spec.name);
    if let Some(read) = command.primary_read(frame) {
        assert!(secondary && !command.awaits_data && command.read_preference.is_none());
        assert_eq!(read.database, command.database(frame));
        assert!(!command.may_write() && !command.awaits_majority(frame) && !command.has_one_statement(frame));
    }
    assert!(command.max_time().is_none() || command.await_time().is_none());
    let most = Duration::from_millis(i32::MAX.unsigned_abs().into());
    assert!(command.max_time().or(command.await_time()).is_none_or(|time| !time.is_zero() && time <= most));
    assert!(command.cursors_to_kill(frame).len() <= frame.bytes().len() / 8);
    let databases = command.named_databases(frame);
    assert!(databases.iter().map(|database| database.len()).sum::<usize>() <= frame.bytes().len());
    let transaction = command.session.transaction();
    assert!(transaction.is_none_or(|it| command.session.in_transaction && Some(it.session) == command.session.session));
}

/// What goes into logs and onto pages has a bound, and nothing of what lets somebody in.
fn is_told_in_few_words(command: &Command, frame: &Frame) {
    assert!(command.told_name(frame).len() <= 255 && command.told_database(frame).len() <= 255);
    assert!(command.collection(frame).is_none_or(|name| name.len() <= 255));
    let options = command.option_names(frame);
    assert!(options.len() <= 25 * 33, "{options}");
    if command.is_sensitive(frame) {
        assert_eq!((options.as_str(), Compressing::of(command, frame)), ("", Compressing::Never));
    }
}

/// A further rule never lets anything pass that did not pass before.
fn rules_only_take_away(command: &Command, frame: &Frame) {
    let list = |text: &str| Namespaces::from(vec![text.parse().unwrap()]);
    let rules = [
        Rules { read_only: true, ..Rules::default() },
        Rules { deny_namespaces: list("a.*"), ..Rules::default() },
        Rules { allow_namespaces: list("d.c"), ..Rules::default() },
        Rules { allow_commands: vec![CommandName::Read].into(), ..Rules::default() },
    ];
    let passes = |rules: &Rules| judge(rules, command, frame).is_ok();
    assert!(passes(&Rules::default()), "without rules everything may be done");
    for one in &rules {
        let both = Rules { read_only: true, deny_namespaces: list("a.*"), ..one.clone() };
        assert!(!passes(&both) || passes(one) && passes(&rules[0]) && passes(&rules[1]));
    }
    let plain =
        matches!(command.spec.name, "find" | "insert" | "update" | "delete" | "aggregate" | "count" | "distinct");
    assert!(!plain || command.database(frame) != "a" || !passes(&rules[1]));
    assert!(!passes(&rules[0]) || !command.may_write() || !matches!(command.spec.handling, Handling::Pass));
}

/// The document without these fields, and what stands in all sequences.
fn but_for(command: &Command, frame: &Frame, names: &[&[u8]]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let elements: Vec<_> = Elements::new(command.document(frame)).unwrap().map(Result::unwrap).collect();
    let kept: Vec<&Element<'_>> = elements.iter().filter(|element| !names.contains(&element.name)).collect();
    let mut copy = Frame::build(1, 0, OpCode::Msg, frame.body());
    let op_msg = OpMsg::parse(&mut copy).unwrap();
    let sequences = op_msg.sequence_documents(&copy).map(|(name, document)| [name, b"\0", document].concat());
    (built(&kept), sequences.collect())
}

fn loses_cluster_time_only(frame: &Frame) {
    let (mut command, mut frame) = again(frame);
    let before = but_for(&command, &frame, &[b"$clusterTime"]);
    command.take_out_cluster_time(&mut frame);
    let (read, frame) = again(&frame);
    assert!(find(read.document(&frame), b"$clusterTime").is_none());
    assert_eq!(but_for(&read, &frame, &[]), before);
}

fn allows_a_secondary_only(frame: &Frame) {
    let (mut command, mut frame) = again(frame);
    if command.primary_read(&frame).is_none() {
        return;
    }
    let before = but_for(&command, &frame, &[b"$readPreference"]);
    command.allow_secondary(&mut frame);
    let once = frame.bytes().to_vec();
    let (read, copy) = again(&frame);
    assert_eq!(but_for(&read, &copy, &[b"$readPreference"]), before);
    assert!(read.read_preference.is_some() && read.secondary_ok(&copy));
    assert_eq!(read.max_time(), command.max_time(), "its time is where it was looked for");
    command.allow_secondary(&mut frame);
    assert_eq!(frame.bytes(), once, "a second time changes nothing more");
    command.shrink_max_time(&mut frame, Duration::from_millis(1));
    let (read, _) = again(&frame);
    assert_eq!(read.max_time(), command.max_time().map(|_| Duration::from_millis(1)), "it is written where it is now");
    assert!(read.read_preference.is_some());
}

fn shrinks_its_time_only(frame: &Frame, remaining: Duration) {
    let (command, mut frame) = again(frame);
    let (before, length) = (but_for(&command, &frame, &[b"maxTimeMS"]), frame.bytes().len());
    command.shrink_max_time(&mut frame, remaining);
    assert_eq!(frame.bytes().len(), length, "in its own place");
    let (read, frame) = again(&frame);
    assert_eq!(but_for(&read, &frame, &[b"maxTimeMS"]), before);
    match (command.max_time(), read.max_time()) {
        (Some(granted), Some(left)) => {
            assert!(left <= granted, "no server gets more than the client grants");
            assert!(left <= remaining.max(Duration::from_millis(1)) + Duration::from_millis(1));
        }
        (granted, left) => assert_eq!(granted, left),
    }
}

fn waits_as_long_as_it_is_told(frame: &Frame) {
    let (mut command, mut frame) = again(frame);
    if command.await_time().is_none() {
        return;
    }
    let before = but_for(&command, &frame, &[b"maxTimeMS"]);
    command.set_await_time(&mut frame, Duration::from_millis(400));
    let (read, frame) = again(&frame);
    assert_eq!(but_for(&read, &frame, &[b"maxTimeMS"]), before);
    assert_eq!(read.await_time(), Some(Duration::from_millis(400)));
}
