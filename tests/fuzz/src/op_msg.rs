//! The sections of an OP_MSG, beside a reader of them that is as simple as can be.

use mongomux::wire::op_msg::{flag, reply_document};
use mongomux::wire::{Frame, HEADER_LEN, OpCode, OpMsg, OpMsgError};

/// A section as it stands in a message.
enum Section<'a> {
    Document(&'a [u8]),
    Sequence(&'a [u8], Vec<&'a [u8]>),
}

/// The first byte says whether a right checksum follows, the others are the body.
pub fn check(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    let mut frame = message(body, choice & 1 != 0);
    let came = frame.bytes().to_vec();
    let flags = came.get(HEADER_LEN..HEADER_LEN + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
    let parsed = OpMsg::parse(&mut frame);

    let Some(flags) = flags else { return assert_eq!(parsed, Err(OpMsgError::Corrupt)) };
    if flags & flag::REQUIRED & !(flag::CHECKSUM_PRESENT | flag::MORE_TO_COME) != 0 {
        return assert!(matches!(parsed, Err(OpMsgError::RequiredFlag(_))));
    }
    let mut plain = came.clone();
    if flags & flag::CHECKSUM_PRESENT != 0 {
        let Some((message, checksum)) = came.split_last_chunk::<4>().filter(|(message, _)| message.len() >= 20) else {
            return assert_eq!(parsed, Err(OpMsgError::Corrupt));
        };
        if crc32c::crc32c(message).to_le_bytes() != *checksum {
            return assert_eq!(parsed, Err(OpMsgError::Corrupt));
        }
        plain = Frame::build(1, 2, OpCode::Msg, &message[HEADER_LEN..]).bytes().to_vec();
        plain[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&(flags & !flag::CHECKSUM_PRESENT).to_le_bytes());
    }
    let sections = sections(&plain[HEADER_LEN + 4..]);
    let documents = sections.iter().flatten().filter(|section| matches!(section, Section::Document(_))).count();
    let Ok(op_msg) = parsed else { return assert!(sections.is_none() || documents != 1, "{parsed:?}") };
    assert_eq!(frame.bytes(), plain, "without its checksum it is as it came");
    assert_eq!(frame.header().length, plain.len());
    let sections = sections.expect("what we take is made of sections");
    assert_eq!(documents, 1);
    tells_of(&op_msg, &frame, &sections);
    assert_eq!(op_msg.more_to_come(), flags & flag::MORE_TO_COME != 0);
    if let Some(Section::Document(document)) = sections.first() {
        assert_eq!(reply_document(frame.bytes()).map(|(_, found)| found), Some(*document));
    }
    changes_only_what_it_says(op_msg, frame, &sections);
}

fn message(body: &[u8], signed: bool) -> Frame {
    let mut body = body.to_vec();
    if signed && let Some(flags) = body.first_mut() {
        *flags |= 1;
        let length = body.len() + 4;
        body.resize(length, 0);
        let unsigned = Frame::build(1, 2, OpCode::Msg, &body);
        let checksum = crc32c::crc32c(&unsigned.bytes()[..unsigned.bytes().len() - 4]);
        body[length - 4..].copy_from_slice(&checksum.to_le_bytes());
    }
    Frame::build(1, 2, OpCode::Msg, &body)
}

/// `None` when the bytes are not made of sections to their end.
fn sections(mut bytes: &[u8]) -> Option<Vec<Section<'_>>> {
    let mut sections = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        let (section, after) = match kind {
            0 => {
                let (document, after) = document(rest)?;
                (Section::Document(document), after)
            }
            1 => {
                let length = usize::try_from(i32::from_le_bytes(*rest.first_chunk()?)).ok()?;
                let (sequence, after) = rest.split_at_checked(length)?;
                let sequence = sequence.get(4..)?;
                let (name, mut inside) = sequence.split_at_checked(sequence.iter().position(|byte| *byte == 0)?)?;
                inside = &inside[1..];
                let mut documents = Vec::new();
                while !inside.is_empty() {
                    let (document, further) = document(inside)?;
                    documents.push(document);
                    inside = further;
                }
                (Section::Sequence(name, documents), after)
            }
            _ => return None,
        };
        sections.push(section);
        bytes = after;
    }
    Some(sections)
}

fn document(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(i32::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    bytes.split_at_checked(length).filter(|(document, _)| document.len() >= 5)
}

/// What is said of a message is what is in it.
fn tells_of(op_msg: &OpMsg, frame: &Frame, sections: &[Section<'_>]) {
    let mut in_sequences = Vec::new();
    for section in sections {
        match section {
            Section::Document(document) => assert_eq!(op_msg.document(frame), *document),
            Section::Sequence(name, documents) => in_sequences.extend(documents.iter().map(|it| (*name, *it))),
        }
    }
    assert_eq!(op_msg.sequence_documents(frame).collect::<Vec<_>>(), in_sequences);
}

/// A patched message differs where it was patched, and reads as it was written.
fn changes_only_what_it_says(mut op_msg: OpMsg, mut frame: Frame, sections: &[Section<'_>]) {
    let another = bson::rawdoc! {"another": "document"};
    op_msg.replace_document(&mut frame, another.as_bytes());
    op_msg.clear_flags(&mut frame);
    let mut expected = vec![0; 4];
    for section in sections {
        match section {
            Section::Document(_) => {
                expected.push(0);
                expected.extend_from_slice(another.as_bytes());
            }
            Section::Sequence(name, documents) => {
                let length = 4 + name.len() + 1 + documents.iter().map(|document| document.len()).sum::<usize>();
                expected.push(1);
                expected.extend_from_slice(&i32::try_from(length).unwrap().to_le_bytes());
                expected.extend_from_slice(name);
                expected.push(0);
                documents.iter().for_each(|document| expected.extend_from_slice(document));
            }
        }
    }
    assert_eq!(frame.body(), expected);
    assert_eq!(frame.header().length, frame.bytes().len());
    let again = OpMsg::parse(&mut frame).unwrap();
    assert_eq!(again.document(&frame), another.as_bytes());
}
