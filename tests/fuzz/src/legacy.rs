//! The messages before OP_MSG: what is served of them is whole, and what is refused is told in a few words.

use bson::RawDocument;
use mongomux::reply::errors;
use mongomux::reply::errors::MAX_MESSAGE_BYTES;
use mongomux::wire::legacy::{Legacy, LegacyCommand, op_reply, parse, reply_flag};
use mongomux::wire::{Elements, Frame, HEADER_LEN, OpCode};

/// All but OP_MSG and OP_COMPRESSED, and one that nobody knows.
const OP_CODES: [OpCode; 8] = [
    OpCode::Query,
    OpCode::GetMore,
    OpCode::Update,
    OpCode::Insert,
    OpCode::Delete,
    OpCode::KillCursors,
    OpCode::Reply,
    OpCode::Other(2010),
];

/// The first byte chooses the op code, the others are the body.
pub fn check(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    let op_code = OP_CODES[usize::from(*choice) % OP_CODES.len()];
    let frame = Frame::build(7, 0, op_code, body);
    match parse(&frame) {
        Legacy::Command(command) => {
            assert_eq!(op_code, OpCode::Query);
            is_whole(&command, &frame);
        }
        Legacy::Refused(fault) => {
            assert!(matches!(op_code, OpCode::Query | OpCode::GetMore));
            assert!(fault.to_string().len() <= 2 * MAX_MESSAGE_BYTES, "what is kept of a message has a bound");
            is_answered(&errors::legacy(&fault), fault.reply_flags());
        }
        Legacy::Close => {}
    }
}

/// The document stands in the body, is sound to its end, and begins with its name.
fn is_whole(command: &LegacyCommand, frame: &Frame) {
    let document = command.document(frame);
    let names: Vec<&[u8]> =
        Elements::new(document).unwrap().map(|element| element.expect("sound to its end").name).collect();
    assert_eq!(names.first().copied(), Some(command.name().as_bytes()));
    let within = frame.body().as_ptr_range();
    let its = document.as_ptr_range();
    assert!(within.start <= its.start && its.end <= within.end);
    assert!(
        frame
            .body()
            .windows(command.database(frame).len() + 6)
            .any(|bytes| { bytes.strip_prefix(command.database(frame).as_bytes()) == Some(b".$cmd\0") })
            || command.database(frame).is_empty()
    );
    is_answered(RawDocument::from_bytes(document).unwrap(), reply_flag::AWAIT_CAPABLE);
}

/// An OP_REPLY as a driver reads it.
fn is_answered(document: &RawDocument, flags: i32) {
    let reply = op_reply(8, 7, flags, document);
    let header = reply.header();
    assert_eq!((header.op_code, header.response_to, header.length), (OpCode::Reply, 7, reply.bytes().len()));
    let body = &reply.bytes()[HEADER_LEN..];
    let numbers: Vec<i32> = body.as_chunks::<4>().0[..5].iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
    assert_eq!(numbers, [flags, 0, 0, 0, 1], "flags, no cursor, and one document from the first on");
    assert_eq!(&body[20..], document.as_bytes());
}
