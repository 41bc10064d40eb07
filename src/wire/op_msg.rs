//! OP_MSG: flag bits and sections, as offsets into a frame.
//!
//! Sections stay where they are and go upstream as they came; only the kind-0 document is looked into, and that by
//! `command`. What the server checks itself (duplicate sequences, a sequence that is also a field) is left to it.

use super::document::document_length;
use super::frame::Frame;
use super::header::{HEADER_LEN, split_cstring, split_i32};

/// Flag bits of OP_MSG.
pub mod flag {
    /// A CRC-32C follows the sections.
    pub const CHECKSUM_PRESENT: u32 = 1;
    /// The sender does not wait for a reply, or more replies follow.
    pub const MORE_TO_COME: u32 = 1 << 1;
    /// The client takes several replies to one request.
    pub const EXHAUST_ALLOWED: u32 = 1 << 16;
    /// Bits that must be understood by the receiver.
    pub const REQUIRED: u32 = 0xFFFF;
}

/// What is wrong with an OP_MSG, in the server's words. The first two close the connection, the others are answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpMsgError {
    /// A flag among bits 0 to 15 that nobody knows.
    #[error("unknown required flag bits {0:#x}")]
    RequiredFlag(u32),
    /// Too short for flags, or the checksum does not match.
    #[error("the message is cut short or its checksum is wrong")]
    Corrupt,
    /// More than one kind-0 section.
    #[error("OP_MSG: multiple body sections")]
    MultipleBodies,
    /// No kind-0 section.
    #[error("OP_MSG messages must have a body")]
    NoBody,
    /// A section kind that nobody knows; where the next section starts is unknown, too.
    #[error("OP_MSG: unknown section kind {0}")]
    UnknownSection(u8),
    /// A security token, which only servers among themselves send.
    #[error("Unsupported Security Token provided")]
    SecurityToken,
    /// A sequence that claims more bytes than there are.
    #[error("OP_MSG: document sequence is longer than its message")]
    Overflow,
    /// A section or document whose length does not fit.
    #[error("OP_MSG: section or document is not terminated where its length says")]
    InvalidBson,
}

/// Where things are in an OP_MSG frame, after the checksum was verified and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpMsg {
    flags: u32,
    /// Offset of the kind-0 document in the frame's body.
    document_start: usize,
    document_length: usize,
}

impl OpMsg {
    /// Checks a message, verifies and strips its checksum, and finds its document.
    ///
    /// # Errors
    /// [`OpMsgError`], each with the answer that the server gives.
    pub fn parse(frame: &mut Frame) -> Result<Self, OpMsgError> {
        let flags = flags(frame.body()).ok_or(OpMsgError::Corrupt)?;
        let unknown = flags & flag::REQUIRED & !(flag::CHECKSUM_PRESENT | flag::MORE_TO_COME);
        if unknown != 0 {
            return Err(OpMsgError::RequiredFlag(unknown));
        }
        if flags & flag::CHECKSUM_PRESENT != 0 {
            strip_checksum(frame)?;
            set_flags(frame, flags & !flag::CHECKSUM_PRESENT);
        }
        let (document_start, document_length) = scan_sections(frame.body())?;
        Ok(Self { flags: flags & !flag::CHECKSUM_PRESENT, document_start, document_length })
    }

    /// True when the sender expects no reply.
    pub fn more_to_come(&self) -> bool {
        self.flags & flag::MORE_TO_COME != 0
    }

    /// The kind-0 document.
    pub fn document<'a>(&self, frame: &'a Frame) -> &'a [u8] {
        let end = self.document_start.saturating_add(self.document_length);
        frame.body().get(self.document_start..end).unwrap_or_default()
    }

    /// The kind-0 document, for patches that keep its length.
    pub fn document_mut<'a>(&self, frame: &'a mut Frame) -> &'a mut [u8] {
        let end = self.document_start.saturating_add(self.document_length);
        frame.body_mut().get_mut(self.document_start..end).unwrap_or_default()
    }

    /// The documents of all sequences, each with the name of its sequence.
    pub fn sequence_documents<'a>(&self, frame: &'a Frame) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let document_bytes = self.document_length;
        let mut rest = frame.body().get(4..).unwrap_or_default();
        let sequences = std::iter::from_fn(move || {
            while let Some((kind, section)) = rest.split_first() {
                // Whole and well-formed, or it would have been refused when it was read.
                let sequence = *kind != 0;
                let length = if sequence { sequence_length(section).unwrap_or(section.len()) } else { document_bytes };
                rest = section.get(length..).unwrap_or_default();
                if sequence {
                    return section.get(4..length).and_then(split_cstring);
                }
            }
            None
        });
        sequences.flat_map(|(name, mut documents)| {
            std::iter::from_fn(move || {
                let (document, further) = documents.split_at_checked(document_length(documents).ok()?)?;
                documents = further;
                Some((name, document))
            })
        })
    }

    /// Puts another kind-0 document in the place of the one that is there; flags and other sections stay.
    pub fn replace_document(&mut self, frame: &mut Frame, document: &[u8]) {
        let end = self.document_start.saturating_add(self.document_length);
        let (body, header) = (frame.body(), *frame.header());
        let parts = [body.get(..self.document_start), Some(document), body.get(end..)];
        let body = parts.map(Option::unwrap_or_default).concat();
        *frame = Frame::build(header.request_id, header.response_to, header.op_code, &body);
        self.document_length = document.len();
    }

    /// Clears all flags, in the frame too: upstream always answers, once, and never streams.
    pub fn clear_flags(&self, frame: &mut Frame) {
        if self.flags != 0 {
            set_flags(frame, 0);
        }
    }
}

/// What a reply carries: its flags, and its document in the body of the frame. `None` when it is no sound OP_MSG
/// with one document first, as every server sends it.
pub fn reply_document(message: &[u8]) -> Option<(u32, &[u8])> {
    let body = message.get(HEADER_LEN..)?;
    let flags = flags(body)?;
    let section = body.get(4..)?;
    let (0, document) = section.split_first()? else { return None };
    let document = document.get(..document_length(document).ok()?)?;
    Some((flags, document))
}

fn flags(body: &[u8]) -> Option<u32> {
    body.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn set_flags(frame: &mut Frame, flags: u32) {
    if let Some(place) = frame.body_mut().first_chunk_mut() {
        *place = flags.to_le_bytes();
    }
}

fn strip_checksum(frame: &mut Frame) -> Result<(), OpMsgError> {
    let (message, checksum) = frame.bytes().split_last_chunk::<4>().ok_or(OpMsgError::Corrupt)?;
    // Flags and checksum may not overlap.
    if message.len() < HEADER_LEN.saturating_add(4) || crc32c::crc32c(message) != u32::from_le_bytes(*checksum) {
        return Err(OpMsgError::Corrupt);
    }
    frame.truncate_by(4);
    Ok(())
}

/// Offset and length of the one kind-0 document in `body`.
fn scan_sections(body: &[u8]) -> Result<(usize, usize), OpMsgError> {
    let mut document = None;
    let mut rest = body.get(4..).unwrap_or_default();
    while let Some((kind, section)) = rest.split_first() {
        let length = match kind {
            0 => {
                // Before its length is looked at, as on the server.
                if document.is_some() {
                    return Err(OpMsgError::MultipleBodies);
                }
                let length = document_length(section).map_err(|_| OpMsgError::InvalidBson)?;
                document = Some((body.len().saturating_sub(section.len()), length));
                length
            }
            1 => sequence_length(section)?,
            2 => return Err(OpMsgError::SecurityToken),
            kind => return Err(OpMsgError::UnknownSection(*kind)),
        };
        rest = section.get(length..).unwrap_or_default();
    }
    document.ok_or(OpMsgError::NoBody)
}

/// Length of the document sequence at the start of `section`, when its documents fill it exactly.
fn sequence_length(section: &[u8]) -> Result<usize, OpMsgError> {
    let (length, _) = split_i32(section).ok_or(OpMsgError::Overflow)?;
    let length = usize::try_from(length).map_err(|_| OpMsgError::Overflow)?;
    let sequence = section.get(4..length).ok_or(OpMsgError::Overflow)?;
    let (_, mut documents) = split_cstring(sequence).ok_or(OpMsgError::Overflow)?;
    while !documents.is_empty() {
        let length = document_length(documents).map_err(|_| OpMsgError::InvalidBson)?;
        documents = documents.get(length..).unwrap_or_default();
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use bson::{doc, rawdoc};

    use super::*;
    use crate::wire::OpCode;

    fn message(flags: u32, sections: &[&[u8]]) -> Frame {
        let mut body = flags.to_le_bytes().to_vec();
        sections.iter().for_each(|section| body.extend_from_slice(section));
        Frame::build(1, 0, OpCode::Msg, &body)
    }

    fn document(name: &str) -> Vec<u8> {
        let mut section = vec![0];
        section.extend_from_slice(&doc! {name: 1, "$db": "test"}.to_vec().unwrap());
        section
    }

    fn sequence(name: &str, documents: usize) -> Vec<u8> {
        let mut content = name.as_bytes().to_vec();
        content.push(0);
        (0..documents).for_each(|_| content.extend_from_slice(rawdoc! {"x": 1}.as_bytes()));
        let mut section = vec![1];
        section.extend_from_slice(&i32::try_from(content.len() + 4).unwrap().to_le_bytes());
        section.extend_from_slice(&content);
        section
    }

    #[test]
    fn the_document_is_found_wherever_it_stands() {
        let (first, last) = (document("insert"), sequence("documents", 3));
        let empty = sequence("updates", 0);
        for sections in [vec![&first[..]], vec![&first, &last], vec![&last, &first], vec![&last, &first, &empty]] {
            let mut frame = message(0, &sections);
            let op_msg = OpMsg::parse(&mut frame).unwrap();
            assert_eq!(op_msg.document(&frame), &first[1..]);
            assert_eq!(op_msg.sequence_documents(&frame).count(), if sections.len() > 1 { 3 } else { 0 });
        }
    }

    #[test]
    fn a_document_is_replaced_wherever_it_stands_and_nothing_else_is() {
        let (old, new, last) = (document("insert"), document("something longer"), sequence("documents", 3));
        for flags in [0, flag::MORE_TO_COME] {
            for at in 0..3 {
                let mut sections = vec![&last[..], &last];
                sections.insert(at, &old);
                let mut frame = message(flags, &sections);
                let mut op_msg = OpMsg::parse(&mut frame).unwrap();
                op_msg.replace_document(&mut frame, &new[1..]);
                sections[at] = &new;
                assert_eq!(frame.bytes(), message(flags, &sections).bytes());
                assert_eq!(OpMsg::parse(&mut frame), Ok(op_msg));
            }
        }
    }

    #[test]
    fn faults_are_named_as_the_server_names_them() {
        let (body, sequence) = (document("ping"), sequence("documents", 1));
        let mut cut = sequence.clone();
        cut[1] += 1;
        let parse = |flags, sections: &[&[u8]]| OpMsg::parse(&mut message(flags, sections)).unwrap_err();
        assert_eq!(parse(0, &[&body, &body]), OpMsgError::MultipleBodies);
        assert_eq!(parse(0, &[]), OpMsgError::NoBody);
        assert_eq!(parse(0, &[&sequence]), OpMsgError::NoBody);
        assert_eq!(parse(0, &[&body, &[9, 1, 2]]), OpMsgError::UnknownSection(9));
        assert_eq!(parse(0, &[&[2, 1], &body]), OpMsgError::SecurityToken);
        assert_eq!(parse(0, &[&body[..body.len() - 1]]), OpMsgError::InvalidBson);
        assert_eq!(parse(0, &[&cut, &body]), OpMsgError::InvalidBson);
        assert_eq!(parse(0, &[&body, &sequence[..sequence.len() - 1]]), OpMsgError::Overflow);
        assert_eq!(parse(0, &[&body, &[0]]), OpMsgError::MultipleBodies);
        assert_eq!(parse(1 << 2, &[&body]), OpMsgError::RequiredFlag(4));
        assert_eq!(parse(1 << 15, &[&body]), OpMsgError::RequiredFlag(1 << 15));
        assert_eq!(OpMsg::parse(&mut Frame::build(1, 0, OpCode::Msg, &[])).unwrap_err(), OpMsgError::Corrupt);
    }

    #[test]
    fn optional_flags_are_ignored_and_cleared() {
        assert_eq!(flag::EXHAUST_ALLOWED, 1 << 16, "as in the protocol");
        let mut frame = message(1 << 31 | flag::EXHAUST_ALLOWED | flag::MORE_TO_COME, &[&document("ping")]);
        let op_msg = OpMsg::parse(&mut frame).unwrap();
        assert!(op_msg.more_to_come());
        op_msg.clear_flags(&mut frame);
        assert_eq!(flags(frame.body()), Some(0));
    }

    #[test]
    fn documents_of_sequences_come_with_the_name_of_theirs_and_in_their_order() {
        let (first, last) = (sequence("ops", 2), sequence("nsInfo", 1));
        let mut frame = message(0, &[&first, &document("bulkWrite"), &last]);
        let op_msg = OpMsg::parse(&mut frame).unwrap();
        let expected = rawdoc! {"x": 1};
        let found: Vec<_> = op_msg.sequence_documents(&frame).collect();
        assert_eq!(found, [&b"ops"[..], b"ops", b"nsInfo"].map(|name| (name, expected.as_bytes())));
    }

    #[test]
    fn a_patch_of_the_document_leaves_all_else() {
        let (body, last) = (document("ping"), sequence("documents", 1));
        let mut frame = message(0, &[&last, &body]);
        let before = frame.bytes().to_vec();
        let op_msg = OpMsg::parse(&mut frame).unwrap();
        assert!(!op_msg.more_to_come());
        op_msg.clear_flags(&mut frame);
        assert_eq!(frame.bytes(), before);
        op_msg.document_mut(&mut frame).fill(0xEE);
        let start = before.len() - body.len() + 1;
        assert_eq!(frame.bytes()[..start], before[..start]);
        assert!(frame.bytes()[start..].iter().all(|byte| *byte == 0xEE));
    }

    #[test]
    fn the_document_of_a_reply_is_found_if_it_comes_first() {
        let (body, last) = (document("ok"), sequence("documents", 1));
        let found = |flags, sections: &[&[u8]]| {
            reply_document(message(flags, sections).bytes()).map(|(flags, document)| (flags, document.to_vec()))
        };
        assert_eq!(found(flag::MORE_TO_COME, &[&body, &last]), Some((flag::MORE_TO_COME, body[1..].to_vec())));
        assert_eq!(found(0, &[&last, &body]), None);
        assert_eq!(found(0, &[&body[..body.len() - 1]]), None);
        assert_eq!(found(0, &[]), None);
        assert_eq!(reply_document(&message(0, &[&body]).bytes()[..18]), None);
    }

    #[test]
    fn flags_and_checksum_do_not_overlap() {
        // Nothing but flags, which are right as the checksum of what is before them.
        let mut frame = Frame::build(1, 0, OpCode::Msg, &flag::CHECKSUM_PRESENT.to_le_bytes());
        assert_eq!(OpMsg::parse(&mut frame), Err(OpMsgError::Corrupt));
        let mut signed = bytes::BytesMut::from(message(flag::CHECKSUM_PRESENT, &[&[0; 4]]).bytes());
        let (message, _) = signed.split_at(20);
        let checksum = crc32c::crc32c(message).to_le_bytes();
        signed[20..].copy_from_slice(&checksum);
        let mut frame = Frame::decode(&mut signed, 1_000).unwrap().unwrap();
        assert_eq!(OpMsg::parse(&mut frame), Err(OpMsgError::NoBody), "the shortest that can be signed");
    }

    #[test]
    fn a_checksum_is_verified_and_stripped() {
        let plain = message(0, &[&document("ping")]);
        let mut frame = message(flag::CHECKSUM_PRESENT, &[&document("ping"), &[0; 4]]);
        let unsigned = frame.bytes()[..frame.bytes().len() - 4].to_vec();
        let mut signed = bytes::BytesMut::from(&unsigned[..]);
        signed.extend_from_slice(&crc32c::crc32c(&unsigned).to_le_bytes());
        assert_eq!(OpMsg::parse(&mut frame), Err(OpMsgError::Corrupt));
        let mut frame = Frame::decode(&mut signed, 1000).unwrap().unwrap();
        OpMsg::parse(&mut frame).unwrap();
        assert_eq!(frame.bytes(), plain.bytes());
    }
}
