//! What is sent: drawn from a seed, and from what the replies so far have opened.

use std::collections::HashSet;

use bson::{Bson, Document, doc};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

use crate::mask::Compare;
use crate::sessions::{Cursor, Session};
use crate::support::raw;

/// Where most happens.
pub const DATABASE: &str = "main";

/// A database that may be dropped.
pub const SCRATCH: &str = "scratch";

/// The database of transactions: definitions elsewhere do not wait for them.
pub const BOOKS: &str = "books";

/// Collections that any command may change.
pub const COLLECTIONS: [&str; 4] = ["c0", "c1", "c2", "c3"];

/// Collections that transactions write to. Writes from outside would wait for their end, so they have a limit.
pub const TRANSACTED: [&str; 2] = ["t0", "t1"];

/// Commands that the proxy answers itself.
const LOCAL: [&str; 5] = ["hello", "isMaster", "ismaster", "connectionStatus", "endSessions"];

/// The most cursors that are kept in mind.
const MOST_CURSORS: usize = 40;

/// A command of its own kind after which all sessions end, so that no transaction gets old.
const TIDY_EVERY: usize = 300;

/// Everything that has to be there before the first command, and in which database.
pub fn preparation() -> Vec<(&'static str, Document)> {
    let documents: Vec<Document> =
        (0..30).map(|id| doc! { "_id": id, "a": id % 7, "b": "x", "arr": [id, 1] }).collect();
    let of = |database: &'static str| move |name: &'static str| (database, name);
    let filled = COLLECTIONS.map(of(DATABASE)).into_iter().chain(TRANSACTED.map(of(BOOKS)));
    let filled = filled.map(|(database, name)| (database, doc! { "insert": name, "documents": documents.clone() }));
    let others = [
        doc! { "create": "barrier" },
        doc! { "create": "log", "capped": true, "size": 4096, "max": 30 },
        doc! { "insert": "log", "documents": [{ "n": 0 }] },
        doc! { "create": "view", "viewOn": "c0", "pipeline": [{ "$match": { "a": { "$lt": 5 } } }] },
    ];
    filled.chain(others.map(|command| (DATABASE, command))).collect()
}

/// A message, as it goes to both sides.
#[derive(Debug, Clone)]
pub struct Sent {
    pub socket: usize,
    pub body: Document,
    /// Kind-1 sections.
    pub sequences: Vec<(String, Vec<Document>)>,
    /// They stand before the body.
    pub sequences_first: bool,
    pub flags: u32,
    pub compressor: Option<u8>,
    /// Changed by this, where it is not 0.
    pub checksum: Option<u32>,
    /// An OP_QUERY to this namespace.
    pub query: Option<&'static str>,
    /// One more field at the end, whatever its name.
    pub extra: Option<(String, Bson)>,
    /// A byte of the message that is something else, counted from its end.
    pub damage: Option<(usize, u8)>,
    /// May bring no reply, or more than one.
    pub barrier: bool,
    pub reads_majority: bool,
    pub compare: Compare,
}

impl Sent {
    pub fn name(&self) -> String {
        let name = self.body.keys().next().map_or("", String::as_str);
        let known = name.len() > 2 && name.len() < 24 && name.is_ascii();
        if known && self.damage.is_none() { name.to_owned() } else { "damaged".to_owned() }
    }

    /// Answered by the proxy itself, which judges no other arguments than its own and those of the API.
    pub fn is_local(&self) -> bool {
        LOCAL.contains(&self.name().as_str())
    }

    pub fn describe(&self) -> String {
        let mut short = self.clone();
        short.body = Document::new();
        format!("{}\n  {short:?}", self.body)
    }

    /// The bytes for one side, with what that side has called things.
    pub fn encode(&self, side: usize, captured: &[[Bson; 2]]) -> Vec<u8> {
        let body = resolve(&self.body, side, captured);
        if let Some(namespace) = self.query {
            return raw::query(namespace, &body);
        }
        let mut bytes = raw::body(&body);
        if let Some((name, value)) = &self.extra {
            let element = doc! { name: value.clone() }.to_vec().unwrap();
            bytes.pop();
            bytes.extend_from_slice(&element[4..]);
            let length = i32::try_from(bytes.len() - 1).unwrap();
            bytes[1..5].copy_from_slice(&length.to_le_bytes());
        }
        let mut sections: Vec<Vec<u8>> =
            self.sequences.iter().map(|(name, documents)| raw::sequence(name, documents)).collect();
        sections.insert(if self.sequences_first { sections.len() } else { 0 }, bytes);
        let sections: Vec<&[u8]> = sections.iter().map(Vec::as_slice).collect();
        let mut message = raw::op_msg(self.flags, &sections);
        if let Some(error) = self.checksum {
            message[16] |= 1;
            message = raw::with_checksum(message, error);
        }
        if let Some((from_end, byte)) = self.damage {
            let place = message.len() - 1 - from_end % (message.len() - 20);
            message[place] = byte;
        }
        match self.compressor {
            Some(compressor) => raw::compressed(&message, compressor),
            None => message,
        }
    }
}

/// A placeholder for what a side calls something, see [`Generator::captured`].
pub fn captured(slot: usize) -> Bson {
    Bson::Symbol(format!("#{slot}"))
}

fn resolve(document: &Document, side: usize, captured: &[[Bson; 2]]) -> Document {
    document.iter().map(|(name, value)| (name.clone(), resolve_value(value, side, captured))).collect()
}

fn resolve_value(value: &Bson, side: usize, captured: &[[Bson; 2]]) -> Bson {
    match value {
        Bson::Document(document) => Bson::Document(resolve(document, side, captured)),
        Bson::Array(values) => values.iter().map(|value| resolve_value(value, side, captured)).collect(),
        Bson::Symbol(slot) => match slot.strip_prefix('#').and_then(|slot| slot.parse::<usize>().ok()) {
            Some(slot) => captured[slot][side].clone(),
            None => value.clone(),
        },
        other => other.clone(),
    }
}

/// Draws one message after the other.
pub struct Generator {
    random: SmallRng,
    sockets: usize,
    steps: usize,
    /// What both sides call something: ids of cursors, resume tokens, times.
    captured: Vec<[Bson; 2]>,
    pub cursors: Vec<Cursor>,
    /// Slots of resume tokens and of operation times.
    pub tokens: Vec<usize>,
    pub times: Vec<usize>,
    pub sessions: Vec<Session>,
    /// Retryable writes that were sent, to be sent again.
    pub retryable: Vec<Sent>,
    /// Collections made so far by commands that name new ones.
    pub made: usize,
}

impl Generator {
    pub fn new(seed: u64, sockets: usize) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let sessions = (0..6).map(|_| Session::new(random.random())).collect();
        Self {
            random,
            sockets,
            steps: 0,
            captured: Vec::new(),
            cursors: Vec::new(),
            tokens: Vec::new(),
            times: Vec::new(),
            sessions,
            retryable: Vec::new(),
            made: 0,
        }
    }

    pub fn captured(&self) -> &[[Bson; 2]] {
        &self.captured
    }

    /// Ids that it uses for sessions.
    pub fn uuids(&self) -> HashSet<Vec<u8>> {
        self.sessions.iter().map(|session| session.id.to_vec()).collect()
    }

    pub fn below(&mut self, limit: i32) -> i32 {
        self.random.random_range(0..limit)
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.random.random_range(0..length)
    }

    pub fn chance(&mut self, percent: i32) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())].clone()
    }

    /// A command to one of the sockets, nothing special about it.
    pub fn sent(&mut self, database: &str, mut body: Document) -> Sent {
        body.insert("$db", database);
        Sent {
            socket: self.index(self.sockets),
            body,
            sequences: Vec::new(),
            sequences_first: false,
            flags: 0,
            compressor: None,
            checksum: None,
            query: None,
            extra: None,
            damage: None,
            barrier: false,
            reads_majority: false,
            compare: Compare::Whole,
        }
    }

    /// Ends all sessions, with their cursors and transactions.
    pub fn tidy(&mut self) -> Document {
        self.cursors.clear();
        self.sessions.iter_mut().for_each(Session::end);
        let all: Vec<Document> = self.sessions.iter().map(Session::lsid).collect();
        doc! { "killSessions": all }
    }

    pub fn next(&mut self) -> Sent {
        self.steps += 1;
        if self.steps.is_multiple_of(TIDY_EVERY) {
            let tidy = self.tidy();
            return self.sent("admin", tidy);
        }
        let kind = self.below(100);
        let mut sent = match kind {
            0..22 => self.read(),
            22..40 => self.write(),
            40..50 => self.definition(),
            50..55 => self.about_the_server(),
            55..60 => self.retryable_write(),
            60..76 => self.transaction(),
            76..90 => self.cursor(),
            90..95 => self.change_stream(),
            95..97 => self.tailable(),
            97..99 => self.legacy_or_hello(),
            // With one fault, and no other: which of two a server finds first is nobody's business.
            _ => return self.malformed(),
        };
        self.embellish(&mut sent);
        sent.reads_majority |= wants_majority(&sent.body);
        sent
    }

    /// Takes from the replies what later commands use. The number and the ids of a cursor that they opened.
    pub fn observe(&mut self, sent: &Sent, replies: [&Document; 2]) -> Option<(usize, [i64; 2])> {
        self.observe_sessions(sent, replies[0]);
        let both = |path: &dyn Fn(&Document) -> Option<Bson>| Some([path(replies[0])?, path(replies[1])?]);
        if wrote(sent, replies[0])
            && let Some(times) = both(&|reply| reply.get("operationTime").cloned())
        {
            self.times.push(self.captured.len());
            self.captured.push(times);
        }
        let event = |reply: &Document| {
            let batch = reply.get_document("cursor").ok()?.get_array("nextBatch").ok()?;
            let event = batch.last()?.as_document()?;
            event.contains_key("operationType").then(|| event.get("_id").cloned())?
        };
        if let Some(tokens) = both(&event) {
            self.tokens.push(self.captured.len());
            self.captured.push(tokens);
        }
        let id = |reply: &Document| reply.get_document("cursor").ok()?.get_i64("id").ok().filter(|id| *id != 0);
        let ids = [id(replies[0])?, id(replies[1])?];
        if sent.body.contains_key("getMore") {
            return None;
        }
        let slot = self.captured.len();
        self.captured.push(ids.map(Bson::Int64));
        let namespace = replies[0].get_document("cursor").ok()?.get_str("ns").ok()?;
        let (database, collection) = namespace.split_once('.')?;
        if self.cursors.len() == MOST_CURSORS {
            let oldest = self.index(MOST_CURSORS);
            self.cursors.remove(oldest);
        }
        self.cursors.push(Cursor::new(slot, database, collection, &sent.body));
        Some((slot, ids))
    }
}

/// Reads only what a majority has, or starts from there.
fn wants_majority(body: &Document) -> bool {
    let level =
        |document: &Document| document.get_document("readConcern").is_ok_and(|concern| concern.contains_key("level"));
    level(body) || body.get_document("explain").is_ok_and(level)
}

/// Carried out just now and whole, so that the time of the reply is the time of the last document.
fn wrote(sent: &Sent, reply: &Document) -> bool {
    let inserted = reply.get_i32("n").is_ok_and(|count| count > 0);
    let again = ["writeErrors", "writeConcernError", "retriedStmtIds"].iter().any(|name| reply.contains_key(name));
    sent.body.contains_key("insert") && inserted && !again && !sent.body.contains_key("autocommit")
}
