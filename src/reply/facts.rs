//! What the session must know of every reply: one pass over the top-level names, without allocation.
//!
//! Batches of documents are skipped by their length. Whether an error is rewritten is `cloak`'s business; here it is
//! only said whether it is worth asking.

use super::errors::{Labels, StateChangeKind};
use crate::wire::Timestamp;
use crate::wire::document::{Elements, MalformedDocument};

/// What one reply says about itself, its cursor and its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplyFacts {
    /// The command succeeded, though single statements of a write may have failed.
    pub ok: bool,
    /// `code` of a failed command.
    pub code: Option<i32>,
    /// `cursor.id`; 0 when the cursor is exhausted.
    pub cursor_id: Option<i64>,
    /// Some statements of a write failed.
    pub has_write_errors: bool,
    /// The write was done, but its write concern was not satisfied.
    pub has_write_concern_error: bool,
    /// The server's SDAM version, which clients of ours must not see.
    pub has_topology_version: bool,
    /// `errorLabels` as the server set them.
    pub labels: Labels,
    /// `operationTime`: how far the server's data had come.
    pub operation_time: Option<Timestamp>,
}

impl ReplyFacts {
    /// Reads the document of a reply.
    ///
    /// # Errors
    /// [`MalformedDocument`] when the top level does not hold together: the upstream connection cannot be trusted.
    pub fn read(document: &[u8]) -> Result<Self, MalformedDocument> {
        let mut facts = Self::default();
        for element in Elements::new(document)? {
            let element = element?;
            match element.name {
                b"ok" => facts.ok = element.as_truth().unwrap_or(false),
                b"code" => facts.code = element.as_number().and_then(|code| i32::try_from(code).ok()),
                b"cursor" => facts.cursor_id = element.as_document().and_then(cursor_id),
                b"writeErrors" => facts.has_write_errors = true,
                b"writeConcernError" => facts.has_write_concern_error = true,
                b"operationTime" => facts.operation_time = element.as_timestamp(),
                b"topologyVersion" => facts.has_topology_version = true,
                b"errorLabels" => facts.labels = element.as_document().map(labels).unwrap_or_default(),
                _ => {}
            }
        }
        Ok(facts)
    }

    /// True when the reply may hold something that `cloak` has to rewrite.
    pub fn may_need_cloak(&self) -> bool {
        // Without a code drivers judge an error by its text.
        let root = !self.ok && self.code.is_none_or(|code| StateChangeKind::of(code).is_some());
        root || self.has_write_errors || self.has_write_concern_error || self.has_topology_version
    }
}

fn cursor_id(cursor: &[u8]) -> Option<i64> {
    Elements::new(cursor).ok()?.map_while(Result::ok).find(|element| element.name == b"id")?.as_i64()
}

fn labels(array: &[u8]) -> Labels {
    let names = Elements::new(array).into_iter().flatten().map_while(Result::ok);
    names.filter_map(|element| element.as_str()).map(Labels::from_name).fold(Labels::NONE, |set, label| set | label)
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, doc, rawdoc};

    use super::*;

    fn read(document: &RawDocumentBuf) -> ReplyFacts {
        ReplyFacts::read(document.as_bytes()).unwrap()
    }

    #[test]
    fn a_plain_success_needs_nothing() {
        for ok in [rawdoc! {"ok": 1.0}, rawdoc! {"ok": 1}, rawdoc! {"ok": true}, rawdoc! {"n": 1, "ok": 1_i64}] {
            let facts = read(&ok);
            assert_eq!(facts, ReplyFacts { ok: true, ..ReplyFacts::default() });
            assert!(!facts.may_need_cloak());
        }
    }

    #[test]
    fn the_time_of_the_server_is_read() {
        let time = bson::Timestamp { time: 7, increment: 3 };
        assert_eq!(read(&rawdoc! {"ok": 1.0, "operationTime": time}).operation_time, Some(Timestamp((7 << 32) + 3)));
        assert_eq!(read(&rawdoc! {"ok": 1.0, "operationTime": 7_i64}).operation_time, None);
    }

    #[test]
    fn the_cursor_is_found_behind_its_batch() {
        // Documents of the application may say anything.
        let evil = doc! {"id": 1_i64, "cursor": {"id": 2_i64}, "ok": 0.0, "code": 91, "writeErrors": []};
        let cursor = doc! {"firstBatch": vec![evil; 3], "partialResultsReturned": false, "id": 77_i64, "ns": "a.b"};
        let reply = RawDocumentBuf::try_from(&doc! {"cursor": cursor, "ok": 1.0}).unwrap();
        let facts = read(&reply);
        assert_eq!(facts, ReplyFacts { ok: true, cursor_id: Some(77), ..ReplyFacts::default() });
        assert!(!facts.may_need_cloak());
    }

    #[test]
    fn a_batch_is_skipped_by_its_length() {
        // Garbage of the announced length inside the batch is no concern of ours: it is not even looked at.
        let reply = rawdoc! {"cursor": {"firstBatch": [{"x": "0123456789"}], "id": 5_i64}, "ok": 1.0};
        let mut bytes = reply.into_bytes();
        let place = bytes.windows(10).position(|window| window == b"0123456789").unwrap();
        bytes[place - 12..place + 10].fill(0xEE);
        assert_eq!(ReplyFacts::read(&bytes).unwrap().cursor_id, Some(5));
    }

    #[test]
    fn errors_are_read_with_their_labels() {
        let facts = read(&rawdoc! {
            "ok": 0.0, "errmsg": "x", "code": 10107, "topologyVersion": {},
            "errorLabels": ["RetryableWriteError", "New", 5, "TransientTransactionError"],
        });
        assert_eq!(facts.code, Some(10107));
        assert_eq!(facts.labels, Labels::RETRYABLE_WRITE | Labels::TRANSIENT_TRANSACTION);
        assert!(!facts.ok && facts.has_topology_version && facts.may_need_cloak());
    }

    #[test]
    fn only_what_may_tell_of_a_state_change_is_suspect() {
        let suspect = |document| read(&document).may_need_cloak();
        assert!(!suspect(rawdoc! {"ok": 0.0, "code": 11000}));
        assert!(suspect(rawdoc! {"ok": 0.0, "code": 11600}));
        assert!(suspect(rawdoc! {"ok": 0.0, "errmsg": "not master"}));
        assert!(suspect(rawdoc! {"ok": 1.0, "writeErrors": []}));
        assert!(suspect(rawdoc! {"ok": 1.0, "writeConcernError": {"code": 64}}));
    }

    #[test]
    fn no_damaged_byte_causes_a_panic() {
        let reply = rawdoc! {
            "cursor": {"firstBatch": [{"a": 1}], "id": 5_i64}, "errorLabels": ["RetryableWriteError"], "code": 6, "ok": 0.0
        };
        for position in 0..reply.as_bytes().len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut bytes = reply.as_bytes().to_vec();
                bytes[position] = value;
                std::hint::black_box(ReplyFacts::read(&bytes).ok());
            }
        }
    }
}
