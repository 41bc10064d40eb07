//! State-change errors of the upstream, rewritten as a mongos rewrites them.
//!
//! A client that reads "not primary" or "shutting down" marks its one server, which is us, as unknown and may clear its
//! pool. So these errors become `HostUnreachable`: retried by the same rules, blamed on nobody. Labels stay as the
//! server set them, and the topology hears of the original. Called only for replies that
//! [`may_need_cloak`](super::ReplyFacts::may_need_cloak).

use bson::oid::ObjectId;
use bson::raw::RawDocumentBuf;

use super::errors::{StateChangeKind, code, scrub};
use crate::wire::document::{Element, Elements, find, kind};

/// What server monitoring must hear of a rewritten error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateChange {
    /// The original code.
    pub code: i32,
    /// What kind of change it tells.
    pub kind: StateChangeKind,
    /// The command failed as a whole; else some of it was done, or all of it with its durability in doubt.
    pub refused: bool,
    /// `processId` and `counter` of the server's `topologyVersion`, by which an outdated error is recognised.
    pub topology_version: Option<(ObjectId, i64)>,
}

/// A rewritten reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Cloaked {
    /// What the client reads instead.
    pub document: RawDocumentBuf,
    /// `None` when only a text or a stray `topologyVersion` had to go.
    pub state_change: Option<StateChange>,
}

/// Rewrites the document of a reply: in its root, in `writeErrors` and in `writeConcernError`, and in the batch where
/// `bulk_write` says that the batch holds the results of its statements. `None` when the reply is to go out as it came,
/// which is also so for one that is malformed.
pub fn cloak(document: &[u8], bulk_write: bool) -> Option<Cloaked> {
    let mut rewriter = Rewriter { changed: false, bulk_write, root: None, write_concern: None, statement: None };
    let rewritten = rewriter.document(document, Place::Root)?;
    if !rewriter.changed {
        return None;
    }
    let code = rewriter.root.or(rewriter.write_concern).or(rewriter.statement);
    let state_change = code.and_then(|code| {
        Some(StateChange {
            code,
            kind: StateChangeKind::of(code)?,
            refused: rewriter.root.is_some(),
            topology_version: find(document, b"topologyVersion").and_then(|element| topology_version(&element)),
        })
    });
    Some(Cloaked { document: RawDocumentBuf::from_bytes(rewritten).ok()?, state_change })
}

/// Where in a reply a document stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    /// The cursor of a bulkWrite.
    Cursor,
    /// An array of documents, one for each statement or for each that failed.
    Statements,
    Statement,
    WriteConcern,
}

/// Copies a reply, changing as it goes, and remembers the original codes by place.
struct Rewriter {
    changed: bool,
    bulk_write: bool,
    root: Option<i32>,
    write_concern: Option<i32>,
    /// Of the first such statement.
    statement: Option<i32>,
}

impl Rewriter {
    /// The document with everything rewritten that must be. Recurses into the known places only.
    fn document(&mut self, document: &[u8], place: Place) -> Option<Vec<u8>> {
        let code = find(document, b"code").and_then(|element| element.as_number());
        let code = code.and_then(|code| i32::try_from(code).ok());
        let original = code.filter(|code| StateChangeKind::of(*code).is_some());
        match place {
            Place::Root => self.root = original,
            Place::WriteConcern => self.write_concern = original,
            Place::Statement => self.statement = self.statement.or(original),
            Place::Cursor | Place::Statements => {}
        }
        let is_error = place != Place::Root || find(document, b"ok").and_then(|ok| ok.as_truth()) == Some(false);
        let scrubs = is_error && (original.is_some() || code.is_none());

        let mut copy = vec![0; 4];
        for element in Elements::new(document).ok()? {
            let element = element.ok()?;
            // With its type, which that of a code or of its name may not have been.
            let rewritten = match (element.name, place) {
                (b"code", _) if original.is_some() => {
                    Some((kind::INT32, code::HOST_UNREACHABLE.number.to_le_bytes().to_vec()))
                }
                (b"codeName", _) if original.is_some() => Some((kind::STRING, string(code::HOST_UNREACHABLE.name)?)),
                (b"errmsg", _) if scrubs => self.scrubbed(&element),
                (b"topologyVersion", Place::Root) => {
                    self.changed = true;
                    continue;
                }
                (b"writeErrors", Place::Root) => self.inner(&element, Place::Statements)?,
                (b"writeConcernError", Place::Root) => self.inner(&element, Place::WriteConcern)?,
                (b"cursor", Place::Root) if self.bulk_write => self.inner(&element, Place::Cursor)?,
                (b"firstBatch" | b"nextBatch", Place::Cursor) => self.inner(&element, Place::Statements)?,
                (_, Place::Statements) => self.inner(&element, Place::Statement)?,
                _ => None,
            };
            let (kind, value) =
                rewritten.as_ref().map_or((element.kind, element.value), |(kind, value)| (*kind, value));
            copy.push(kind);
            copy.extend_from_slice(element.name);
            copy.push(0);
            copy.extend_from_slice(value);
        }
        copy.push(0);
        self.changed |= original.is_some();
        let length = i32::try_from(copy.len()).ok()?;
        copy.get_mut(..4)?.copy_from_slice(&length.to_le_bytes());
        Some(copy)
    }

    /// An element that should be a document: rewritten when it is one, else as it is (inner `None`).
    fn inner(&mut self, element: &Element<'_>, place: Place) -> Option<Option<(u8, Vec<u8>)>> {
        match element.as_document() {
            Some(document) => self.document(document, place).map(|copy| Some((element.kind, copy))),
            None => Some(None),
        }
    }

    fn scrubbed(&mut self, element: &Element<'_>) -> Option<(u8, Vec<u8>)> {
        let text = element.as_str()?;
        let scrubbed = scrub(text);
        self.changed |= scrubbed != text;
        Some((kind::STRING, string(&scrubbed)?))
    }
}

/// The value bytes of a string.
fn string(text: &str) -> Option<Vec<u8>> {
    let length = i32::try_from(text.len().checked_add(1)?).ok()?;
    Some([&length.to_le_bytes(), text.as_bytes(), &[0]].concat())
}

fn topology_version(element: &Element<'_>) -> Option<(ObjectId, i64)> {
    let document = element.as_document()?;
    let process_id = find(document, b"processId").filter(|id| id.kind == kind::OBJECT_ID)?;
    let process_id = ObjectId::from_bytes(process_id.value.try_into().ok()?);
    Some((process_id, find(document, b"counter")?.as_i64()?))
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, doc};

    use super::*;

    fn run(document: &Document) -> Option<(Document, Option<i32>)> {
        let cloaked = cloak(&document.to_vec().unwrap(), false)?;
        let code = cloaked.state_change.map(|change| change.code);
        Some((Document::try_from(cloaked.document).unwrap(), code))
    }

    #[test]
    fn a_state_change_in_the_root_becomes_host_unreachable() {
        let process = ObjectId::from_bytes([4; 12]);
        for number in [189, 10107, 13435, 13436, 10058, 11602, 11600, 91] {
            let reply = doc! {
                "topologyVersion": {"processId": process, "counter": 7_i64},
                "ok": 0.0, "errmsg": "not master and node is recovering", "code": number, "codeName": "Whatever",
                "errorLabels": ["RetryableWriteError"], "operationTime": bson::Timestamp { time: 5, increment: 1 },
            };
            let cloaked = cloak(&reply.to_vec().unwrap(), false).unwrap();
            let change = cloaked.state_change.unwrap();
            assert_eq!((change.code, change.topology_version), (number, Some((process, 7))));
            assert_eq!(change.kind == StateChangeKind::Shutdown, [91, 11600].contains(&number));
            let expected = doc! {
                "ok": 0.0, "errmsg": "not primary and server is recovering", "code": 6, "codeName": "HostUnreachable",
                "errorLabels": ["RetryableWriteError"], "operationTime": bson::Timestamp { time: 5, increment: 1 },
            };
            assert_eq!(Document::try_from(cloaked.document).unwrap(), expected);
        }
    }

    #[test]
    fn failed_statements_and_write_concerns_are_rewritten_in_place() {
        let reply = doc! {
            "n": 1,
            "writeErrors": [
                {"index": 0, "code": 11000, "errmsg": "E11000 not master", "keyValue": {"code": 91}},
                {"index": 1, "code": 10107, "codeName": "NotWritablePrimary", "errmsg": "not master"},
            ],
            "writeConcernError": {"code": 91_i64, "codeName": "ShutdownInProgress", "errmsg": "late", "errInfo": {"code": 91}},
            "ok": 1.0,
        };
        let expected = doc! {
            "n": 1,
            "writeErrors": [
                {"index": 0, "code": 11000, "errmsg": "E11000 not master", "keyValue": {"code": 91}},
                {"index": 1, "code": 6, "codeName": "HostUnreachable", "errmsg": "not primary"},
            ],
            "writeConcernError": {"code": 6, "codeName": "HostUnreachable", "errmsg": "late", "errInfo": {"code": 91}},
            "ok": 1.0,
        };
        assert_eq!(run(&reply).unwrap(), (expected, Some(91)));
    }

    #[test]
    fn what_is_written_has_the_type_that_it_is_written_as() {
        for odd in [Bson::Null, Bson::Int32(5), Bson::Timestamp(bson::Timestamp { time: 1, increment: 2 })] {
            let reply = doc! {"ok": 0.0, "code": 91.0, "codeName": odd};
            assert_eq!(run(&reply).unwrap().0, doc! {"ok": 0.0, "code": 6, "codeName": "HostUnreachable"});
        }
        let reply = doc! {"ok": 1.0, "writeErrors": {"code": {"code": 10107}}};
        assert_eq!(run(&reply).unwrap().0, doc! {"ok": 1.0, "writeErrors": {"code": {"code": 6}}});
    }

    #[test]
    fn the_root_speaks_before_write_concern_and_statements() {
        let statement = doc! {"index": 0, "code": 189};
        let only = doc! {"writeErrors": [statement.clone()], "ok": 1.0};
        assert_eq!(run(&only).unwrap().1, Some(189));
        let all = doc! {"writeErrors": [statement], "writeConcernError": {"code": 91}, "code": 11602, "ok": 0.0};
        assert_eq!(run(&all).unwrap().1, Some(11602));
    }

    #[test]
    fn what_is_no_state_change_goes_out_as_it_came() {
        for reply in [
            doc! {"ok": 1.0},
            doc! {"ok": 0.0, "code": 11000, "errmsg": "dup key: \"not master\"", "codeName": "DuplicateKey"},
            doc! {"ok": 1.0, "writeErrors": [{"index": 0, "code": 11000, "errmsg": "x"}]},
            doc! {"ok": 1.0, "writeConcernError": {"code": 64, "errmsg": "waiting"}},
            doc! {"ok": 1.0, "writeErrors": "odd", "writeConcernError": 5},
            doc! {"ok": 0.0, "errmsg": "no code, but harmless"},
            doc! {"ok": 1.0, "cursor": {"firstBatch": [{"code": 10107, "ok": 0.0}], "id": 0_i64}},
        ] {
            assert_eq!(run(&reply), None, "{reply}");
        }
    }

    #[test]
    fn results_of_a_bulk_write_are_rewritten_in_their_batch() {
        for batch in ["firstBatch", "nextBatch"] {
            let reply = |code: i32, text: &str| {
                let mut failed = doc! {"ok": 0.0, "idx": 1, "code": code, "errmsg": text, "n": 0};
                if code == 11602 {
                    failed.insert("codeName", "InterruptedDueToReplStateChange");
                } else {
                    failed.insert("codeName", "HostUnreachable");
                }
                let results = vec![doc! {"ok": 1.0, "idx": 0, "n": 1, "errmsg": "not master"}, failed];
                doc! {"cursor": {"id": 0_i64, batch: results, "ns": "admin.$cmd.bulkWrite"}, "nErrors": 1, "ok": 1.0}
            };
            let original = reply(11602, "not master").to_vec().unwrap();
            let cloaked = cloak(&original, true).unwrap();
            let change = cloaked.state_change.unwrap();
            assert_eq!((change.code, change.refused), (11602, false));
            let mut expected = reply(6, "not primary");
            let results = expected.get_document_mut("cursor").unwrap().get_array_mut(batch).unwrap();
            results[0].as_document_mut().unwrap().insert("errmsg", "not primary");
            assert_eq!(Document::try_from(cloaked.document).unwrap(), expected);
            assert_eq!(cloak(&original, false), None, "the same in a batch of documents is the application's");
        }
    }

    #[test]
    fn a_command_that_failed_as_a_whole_is_told_from_one_that_was_done() {
        let refused =
            |document: Document| cloak(&document.to_vec().unwrap(), false).unwrap().state_change.unwrap().refused;
        assert!(refused(doc! {"ok": 0.0, "code": 10107}));
        assert!(!refused(doc! {"ok": 1.0, "n": 1, "writeConcernError": {"code": 91}}));
        assert!(!refused(doc! {"ok": 1.0, "n": 1, "writeErrors": [{"index": 1, "code": 10107}]}));
    }

    #[test]
    fn texts_without_a_code_and_stray_versions_tell_the_topology_nothing() {
        let text = doc! {"ok": 0.0, "errmsg": "Not Master"};
        assert_eq!(run(&text).unwrap(), (doc! {"ok": 0.0, "errmsg": "not primary"}, None));
        let stray = doc! {"ok": 1.0, "topologyVersion": {"processId": ObjectId::from_bytes([4; 12])}};
        assert_eq!(run(&stray).unwrap(), (doc! {"ok": 1.0}, None));
    }

    #[test]
    fn no_damaged_byte_causes_a_panic() {
        let reply = doc! {
            "ok": 0.0, "code": 91, "codeName": "x", "errmsg": "not master", "writeErrors": [{"code": 189}],
            "topologyVersion": {"processId": ObjectId::from_bytes([4; 12]), "counter": 1_i64},
        };
        let bytes = reply.to_vec().unwrap();
        for position in 0..bytes.len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[position] = value;
                drop(cloak(&damaged, true));
            }
        }
    }
}
