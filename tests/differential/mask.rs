//! When two replies are equal: field by field, in order and with types, but for a short list of what has to differ.

use std::collections::{HashMap, HashSet};

use bson::spec::BinarySubtype;
use bson::{Bson, Document};

use crate::peer::Outcome;

/// Fields whose values differ between any two servers, and why. That they are there, and where, is compared.
const VARYING: &[(&[&str], &str)] = &[
    (&["$clusterTime", "operationTime", "atClusterTime", "opTime", "electionId"], "each server has its own oplog"),
    (&["postBatchResumeToken"], "made of cluster times and of collection ids"),
    (&["localTime", "wallTime", "localUpdateWallClockTime", "millis"], "clocks"),
    (&["serverInfo", "oidMachine"], "which server"),
    (&["sizeOnDisk", "totalSize", "totalSizeMb"], "what of the same documents has been written down at this moment"),
    (
        &["queryPlanner", "executionStats", "stages"],
        "which of several plans is best depends on speed, and on hash tables",
    ),
    (&["maxTimeMS"], "a plan repeats its command, whose time is less by what it has waited for a connection"),
];

/// With these words an error begins that the proxy answers with in a server's place: code, name and labels are a server's,
/// the text says who speaks. Such a reply has no cluster time.
const PROXY: &str = "mongomux: ";

/// Hexadecimal numbers of so many digits in a text are times, or ids of cursors, collections and resume tokens.
const LONG: usize = 9;

/// What one side calls the things that both have.
pub struct Masks {
    cursors: HashMap<i64, usize>,
    /// Those that clients have chosen.
    uuids: HashSet<Vec<u8>>,
    address: String,
}

impl Masks {
    /// Of the side that calls itself `address` in texts, where clients use `uuids`.
    pub fn new(address: String, uuids: HashSet<Vec<u8>>) -> Self {
        Self { cursors: HashMap::new(), uuids, address }
    }

    /// A cursor that this side has made.
    pub fn cursor(&mut self, id: i64, number: usize) {
        self.cursors.insert(id, number);
    }

    /// A reply without what has to differ.
    pub fn mask(&self, document: &Document) -> Document {
        let is_event = document.contains_key("operationType");
        let mut masked = Document::new();
        for (name, value) in document {
            let varies = VARYING.iter().any(|(names, _)| names.contains(&name.as_str()))
                || is_event && matches!(name.as_str(), "_id" | "clusterTime");
            let value = if varies { self::varies() } else { self.value(value) };
            masked.insert(self.text(name), value);
        }
        masked
    }

    fn value(&self, value: &Bson) -> Bson {
        match value {
            Bson::Document(document) => Bson::Document(self.mask(document)),
            Bson::Array(values) => Bson::Array(values.iter().map(|value| self.value(value)).collect()),
            Bson::String(text) => Bson::String(self.text(text)),
            Bson::Int64(number) => match self.cursors.get(number) {
                Some(cursor) => Bson::Symbol(format!("cursor {cursor}")),
                None => value.clone(),
            },
            // Made by the servers, each its own.
            Bson::ObjectId(_) => varies(),
            Bson::Binary(binary) if binary.subtype == BinarySubtype::Uuid && !self.uuids.contains(&binary.bytes) => {
                varies()
            }
            other => other.clone(),
        }
    }

    fn text(&self, text: &str) -> String {
        let text = text.replace(&self.address, "<server>");
        let mut masked = String::with_capacity(text.len());
        let mut word = String::new();
        for character in text.chars().chain(['\0']) {
            if character.is_ascii_hexdigit() || character == '-' {
                word.push(character);
                continue;
            }
            let is_number = word.len() >= LONG && word.contains(|character: char| character.is_ascii_digit());
            // The second half of a time counts what happened in the first.
            let is_increment = masked.ends_with("Timestamp(<number>, ");
            masked.push_str(if is_number || is_increment { "<number>" } else { &word });
            word.clear();
            masked.push(character);
        }
        masked.pop();
        masked
    }
}

fn varies() -> Bson {
    Bson::Symbol("varies".to_owned())
}

/// The reply of a whole message as a document. What a server quotes in a text need not be UTF-8: then only the other
/// fields of an error are looked at.
pub fn document(bytes: &[u8]) -> Document {
    if let Ok(document) = Document::from_reader(bytes) {
        return document;
    }
    let raw = bson::RawDocument::from_bytes(bytes).expect("a reply has a length");
    let mut document = Document::new();
    for name in ["ok", "code", "codeName", "errorLabels"] {
        if let Ok(Some(value)) = raw.get(name) {
            document.insert(name, Bson::try_from(value).expect("sound but for its text"));
        }
    }
    document
}

/// As many characters are shown before and after a difference.
const AROUND: usize = 300;

/// How a command's replies are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Whole.
    Whole,
    /// These fields: all others follow from what the proxy presents itself as.
    Only(&'static [&'static str]),
    /// But for cluster times, which the proxy has none of in the answers that it gives itself.
    Local,
    /// An error for an error: of a message that is damaged, which fault is found first is each reader's own affair, and the
    /// proxy closes a socket where it cannot tell what comes next.
    Damaged,
    /// The order of the batch is each server's own, so of its documents only the number.
    BatchSize,
}

/// Both outcomes as they are compared; `None` when they are equal.
pub fn difference(masks: &[Masks; 2], outcomes: &[Outcome; 2], compare: Compare) -> Option<[String; 2]> {
    let mut texts = [String::new(), String::new()];
    let judged_by_proxy = outcomes[1].replies.iter().any(|reply| {
        let document = document(&reply.document);
        let text = document.get_str("errmsg").or_else(|_| document.get_str("$err"));
        text.is_ok_and(|text| text.starts_with(PROXY))
    });
    for ((masks, outcome), text) in masks.iter().zip(outcomes).zip(&mut texts) {
        for reply in &outcome.replies {
            let mut document = document(&reply.document);
            if compare == Compare::BatchSize {
                count_batch(&mut document);
            }
            let mut document = masks.mask(&document);
            if compare == Compare::Damaged && judged_by_proxy {
                document = document.into_iter().filter(|(name, _)| name == "ok").collect();
            }
            let local = judged_by_proxy || compare == Compare::Local;
            for name in ["$clusterTime", "operationTime"].iter().filter(|_| local) {
                document.remove(name);
            }
            for name in ["errmsg", "$err"].iter().filter(|_| judged_by_proxy) {
                document.remove(name);
            }
            match compare {
                Compare::Whole | Compare::Local | Compare::Damaged | Compare::BatchSize => {}
                Compare::Only(names) => {
                    document = document.into_iter().filter(|(it, _)| names.contains(&&**it)).collect()
                }
            }
            // A server adds a checksum to its reply when the request had one; a reply without is as good.
            let flags = reply.flags & !u32::from(reply.op_code == crate::support::raw::OP_MSG);
            *text += &format!(
                "to {:#x}, op code {}, compressor {:?}, flags {flags}: {document:?}\n",
                reply.response_to, reply.op_code, reply.compressor
            );
        }
        if outcome.closed && !(compare == Compare::Damaged && judged_by_proxy) {
            *text += "closed\n";
        }
    }
    (texts[0] != texts[1]).then(|| excerpts(&texts))
}

/// Where two texts begin to differ, and what is around.
fn excerpts(texts: &[String; 2]) -> [String; 2] {
    let same = texts[0].chars().zip(texts[1].chars()).take_while(|(first, second)| first == second).count();
    texts.each_ref().map(|text| {
        let before = if same > AROUND { "... " } else { "" };
        before.chars().chain(text.chars().skip(same.saturating_sub(AROUND)).take(2 * AROUND)).collect()
    })
}

fn count_batch(reply: &mut Document) {
    let Ok(cursor) = reply.get_document_mut("cursor") else { return };
    for (name, batch) in cursor.iter_mut() {
        if let ("firstBatch" | "nextBatch", Bson::Array(documents)) = (name.as_str(), &batch) {
            *batch = documents.iter().map(|_| Bson::Null).collect();
        }
    }
}

/// True for a command that was carried out.
pub fn succeeded(reply: &Document) -> bool {
    reply.get_f64("ok").is_ok_and(|ok| ok == 1.0)
}
