//! Cluster time, taken out of replies.
//!
//! Each cluster has a time of its own, signed with its own keys: what a driver learns from one it would send to the next one,
//! which then fails the command or runs ahead of itself. Where one listener leads to several clusters, its clients therefore
//! hear of no time at all.

use bson::RawDocumentBuf;

use crate::wire::HEADER_LEN;
use crate::wire::document;
use crate::wire::op_msg::reply_document;

/// The fields by which drivers learn of it.
const FIELDS: [&[u8]; 2] = [b"$clusterTime", b"operationTime"];

/// Header, flags, and the kind of the section.
const BEFORE_DOCUMENT: usize = HEADER_LEN + 5;

/// Takes cluster time out of a whole reply message, in its place. Returns its new length; `None` when there is nothing to
/// take out, or more than one document, which no server sends.
pub fn take_out(message: &mut [u8]) -> Option<usize> {
    let (_, found) = reply_document(message)?;
    let length = found.len();
    let start = message.len().checked_sub(length).filter(|start| *start == BEFORE_DOCUMENT)?;
    let left = document::take_out(message.get_mut(start..)?, &FIELDS).ok().filter(|left| *left < length)?;
    let length = start + left;
    *message.first_chunk_mut()? = i32::try_from(length).ok()?.to_le_bytes();
    Some(length)
}

/// A document without cluster time.
pub fn without(document: RawDocumentBuf) -> RawDocumentBuf {
    let mut bytes = document.clone().into_bytes();
    let Ok(length) = document::take_out(&mut bytes, &FIELDS) else { return document };
    bytes.truncate(length);
    RawDocumentBuf::from_bytes(bytes).unwrap_or(document)
}

#[cfg(test)]
mod tests {
    use bson::{Document, Timestamp, doc, rawdoc};

    use super::*;
    use crate::wire::{Frame, encode};

    fn with_times(mut document: Document) -> RawDocumentBuf {
        let time = Timestamp { time: 5, increment: 6 };
        document.insert("$clusterTime", doc! {"clusterTime": time, "signature": {"keyId": 7_i64}});
        document.insert("operationTime", time);
        RawDocumentBuf::try_from(&document).unwrap()
    }

    #[test]
    fn a_reply_loses_its_times_and_nothing_else() {
        let inner = doc! {"cursor": {"firstBatch": [{"operationTime": 1, "$clusterTime": 2}], "id": 0_i64}, "ok": 1.0};
        let mut message = encode::op_msg(3, 4, &with_times(inner.clone())).bytes().to_vec();
        let length = take_out(&mut message).unwrap();
        message.truncate(length);
        let frame = Frame::copy_into(bytes::BytesMut::with_capacity, &message, 1 << 20).unwrap().unwrap();
        assert_eq!((frame.header().length, frame.header().request_id, frame.header().response_to), (length, 3, 4));
        let expected = encode::op_msg(3, 4, &RawDocumentBuf::try_from(&inner).unwrap());
        assert_eq!(frame.bytes(), expected.bytes());
        assert_eq!(take_out(&mut message), None, "once");
    }

    #[test]
    fn what_has_no_times_stays_as_it_is() {
        let mut message = encode::op_msg(3, 4, &rawdoc! {"ok": 1.0, "n": 1}).bytes().to_vec();
        let before = message.clone();
        assert_eq!(take_out(&mut message), None);
        assert_eq!(message, before);
        for length in 0..message.len() {
            assert_eq!(take_out(&mut message[..length]), None, "cut short");
        }
        // The last bytes look like the document, and are not where it is.
        let document = with_times(doc! {"ok": 1.0});
        let mut twice = [encode::op_msg(3, 4, &document).bytes(), document.as_bytes()].concat();
        let before = twice.clone();
        assert_eq!(take_out(&mut twice), None);
        assert_eq!(twice, before);
    }

    #[test]
    fn a_document_of_our_own_loses_them_as_well() {
        assert_eq!(without(with_times(doc! {"ok": 0.0, "code": 5})), rawdoc! {"ok": 0.0, "code": 5});
        assert_eq!(without(rawdoc! {"ok": 1.0}), rawdoc! {"ok": 1.0});
    }
}
