//! What goes on over several commands: sessions, transactions, retryable writes, cursors.

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};

use crate::generate::{BOOKS, COLLECTIONS, DATABASE, Generator, SCRATCH, Sent, TRANSACTED, captured};
use crate::mask::{Compare, succeeded};

/// Longest wait for data that is asked for.
const AWAIT_MILLIS: i32 = 15;

/// The most retryable writes that are kept in mind.
const MOST_RETRYABLE: usize = 8;

/// A logical session.
#[derive(Debug, Clone)]
pub struct Session {
    pub id: [u8; 16],
    number: i64,
    open: bool,
}

impl Session {
    pub fn new(id: [u8; 16]) -> Self {
        Self { id, number: 0, open: false }
    }

    pub fn lsid(&self) -> Document {
        doc! { "id": Binary { subtype: BinarySubtype::Uuid, bytes: self.id.to_vec() } }
    }

    pub fn end(&mut self) {
        self.open = false;
    }
}

/// An open cursor, and what its getMore has to name.
#[derive(Debug, Clone)]
pub struct Cursor {
    slot: usize,
    database: String,
    collection: String,
    session: Document,
    awaits_data: bool,
    is_stream: bool,
    compare: Compare,
}

impl Cursor {
    pub fn new(slot: usize, database: &str, collection: &str, opened_by: &Document) -> Self {
        let names = ["lsid", "txnNumber", "autocommit", "apiVersion", "apiStrict", "apiDeprecationErrors"];
        let session = opened_by.iter().filter(|(name, _)| names.contains(&name.as_str()));
        let first_stage = opened_by.get_array("pipeline").ok().and_then(|stages| stages.first()?.as_document());
        let is_stream = first_stage.is_some_and(|stage| stage.contains_key("$changeStream"));
        let truth = |name| opened_by.get_bool(name).unwrap_or(false);
        Self {
            slot,
            database: database.to_owned(),
            collection: collection.to_owned(),
            session: session.map(|(name, value)| (name.clone(), value.clone())).collect(),
            awaits_data: is_stream || truth("tailable") && truth("awaitData"),
            is_stream,
            compare: if collection == "$cmd.listCollections" { Compare::BatchSize } else { Compare::Whole },
        }
    }
}

impl Generator {
    pub fn session(&mut self) -> usize {
        let sessions = self.sessions.len();
        self.index(sessions)
    }

    /// A write with a number that makes it repeatable, or one that was sent before.
    pub fn retryable_write(&mut self) -> Sent {
        if self.chance(40) && !self.retryable.is_empty() {
            let place = self.index(self.retryable.len());
            let mut again = self.retryable[place].clone();
            again.socket = self.sent(DATABASE, doc! {}).socket;
            return again;
        }
        let collection = self.pick(&COLLECTIONS);
        let body = if self.chance(95) { self.write_body(collection) } else { self.find(collection) };
        let mut sent = self.sent(DATABASE, body);
        // Half of them are none of transactions, which a new number ends.
        let session = self.sessions.len() / 2 + self.index(self.sessions.len() / 2);
        let session = &mut self.sessions[session];
        session.number += 1;
        session.open = false;
        let (lsid, number) = (session.lsid(), session.number);
        sent.body.extend(doc! { "lsid": lsid, "txnNumber": number - i64::from(self.chance(8)) });
        self.maybe(&mut sent.body, 20, "writeConcern", Self::write_concern);
        self.as_sequence(&mut sent);
        if self.retryable.len() == MOST_RETRYABLE {
            self.retryable.remove(0);
        }
        self.retryable.push(sent.clone());
        sent
    }

    pub fn transaction(&mut self) -> Sent {
        let place = self.session();
        let open = self.sessions[place].open;
        let ends = open && self.chance(25) || !open && self.chance(15);
        if ends {
            let name = self.pick(&["commitTransaction", "commitTransaction", "abortTransaction"]);
            let mut sent = self.sent("admin", doc! { name: 1 });
            self.name_transaction(&mut sent.body, place);
            self.maybe(&mut sent.body, 20, "writeConcern", Self::write_concern);
            if self.chance(5) {
                sent.body.insert("recoveryToken", doc! { "recoveryShardId": "shard" });
            }
            return sent;
        }
        let collection = self.pick(&TRANSACTED);
        let id = self.below(60);
        let body = match self.below(60) {
            // Nothing wrong with these: one error, and the transaction is over.
            0..12 => doc! { "find": collection, "batchSize": self.below(4) },
            12..24 => {
                let statement = doc! { "q": { "_id": id }, "u": { "$inc": { "n": 1 } }, "upsert": self.chance(50) };
                doc! { "update": collection, "updates": [statement] }
            }
            24..30 => doc! { "delete": collection, "deletes": [{ "q": { "_id": id }, "limit": 1 }] },
            30..34 => return self.get_more(true),
            34..38 => self.write_body(collection),
            38..46 => self.find(collection),
            46..49 => {
                let mut aggregate = self.aggregate(collection, false);
                self.maybe(&mut aggregate, 3, "pipeline", |_| Bson::from(vec![doc! { "$out": "x" }]));
                aggregate
            }
            49 => doc! { "distinct": collection, "key": "a" },
            50 => doc! { "count": collection },
            51 => doc! { "drop": "none" },
            52 => doc! { "listCollections": 1, "filter": { "name": "c0" } },
            53 => {
                self.made += 1;
                doc! { "create": format!("transacted{}", self.made) }
            }
            54 => doc! { "ping": 1 },
            55 => doc! { "madeUp": 1 },
            56 => doc! { "explain": { "find": collection } },
            _ => return self.get_more(true),
        };
        let mut sent = self.sent(BOOKS, body);
        if !open {
            self.sessions[place].number += 1;
        }
        self.name_transaction(&mut sent.body, place);
        if !open && self.chance(92) || self.chance(3) {
            sent.body.insert("startTransaction", true);
            self.maybe(&mut sent.body, 30, "readConcern", Self::read_concern);
        } else {
            self.maybe(&mut sent.body, 3, "readConcern", Self::read_concern);
        }
        self.maybe(&mut sent.body, 3, "writeConcern", Self::write_concern);
        self.maybe(&mut sent.body, 3, "maxTimeMS", |_| Bson::from(60_000));
        // All others lie here: what is written commits or aborts with its transaction, so a majority may matter.
        sent.reads_majority = sent.body.contains_key("startTransaction");
        self.as_sequence(&mut sent);
        sent
    }

    fn name_transaction(&mut self, body: &mut Document, place: usize) {
        let (mut lsid, mut number) = (self.sessions[place].lsid(), Bson::from(self.sessions[place].number));
        match self.below(60) {
            0 => number = Bson::from(self.sessions[place].number - 1),
            1 => number = Bson::from(self.sessions[place].number + 1),
            2 => number = Bson::Int32(5),
            3 => number = Bson::Int64(-1),
            4 => lsid = self.sessions[0].lsid(),
            5 => lsid = doc! { "id": 5 },
            _ => {}
        }
        body.extend(doc! { "lsid": lsid, "txnNumber": number, "autocommit": false });
        match self.below(60) {
            0 => drop(body.remove("lsid")),
            1 => drop(body.remove("txnNumber")),
            2 => drop(body.remove("autocommit")),
            3 => drop(body.insert("autocommit", true)),
            4 => drop(body.insert("autocommit", 0)),
            5 => drop(body.insert("startTransaction", false)),
            _ => {}
        }
    }

    /// Follows whether transactions are open, as far as that is told.
    pub fn observe_sessions(&mut self, sent: &Sent, reply: &Document) {
        let (Ok(lsid), Ok(number)) = (sent.body.get_document("lsid"), sent.body.get_i64("txnNumber")) else { return };
        let Some(session) = self.sessions.iter_mut().find(|session| session.lsid() == *lsid) else { return };
        session.number = session.number.max(number);
        let ok = succeeded(reply);
        let ends = ["commitTransaction", "abortTransaction"].iter().any(|name| sent.body.contains_key(name));
        session.open = ok && !ends && sent.body.get_bool("autocommit").is_ok_and(|auto| !auto);
    }

    pub fn cursor(&mut self) -> Sent {
        match self.below(20) {
            0..2 => self.kill_cursors(),
            2..4 => {
                let mut list = self.list();
                self.maybe(&mut list.body, 30, "lsid", |it| Bson::from(it.sessions[3].lsid()));
                list
            }
            4..8 => {
                let collection = self.pick(&COLLECTIONS);
                let mut find = doc! { "find": collection, "batchSize": self.below(4) };
                let session = self.session();
                self.maybe(&mut find, 40, "lsid", |it| Bson::from(it.sessions[session].lsid()));
                self.sent(DATABASE, find)
            }
            _ => self.get_more(false),
        }
    }

    /// The next batch of a cursor, mostly as it should be asked for.
    fn get_more(&mut self, of_transaction: bool) -> Sent {
        let fitting: Vec<Cursor> = self
            .cursors
            .iter()
            .filter(|cursor| !of_transaction || cursor.session.contains_key("txnNumber"))
            .cloned()
            .collect();
        if fitting.is_empty() {
            return self.kill_cursors();
        }
        let cursor = self.pick(&fitting);
        let mut more = doc! { "getMore": captured(cursor.slot), "collection": cursor.collection.clone() };
        self.maybe(&mut more, 60, "batchSize", |it| {
            it.pick(&[Bson::Int32(1), Bson::Int64(2), Bson::Double(3.0), Bson::Int32(100)])
        });
        more.extend(cursor.session.clone());
        if cursor.awaits_data {
            more.insert("maxTimeMS", 1 + self.below(AWAIT_MILLIS));
        }
        let mut database = cursor.database.clone();
        match self.below(40) {
            0 => drop(
                more.insert("batchSize", self.pick(&[Bson::Int32(0), Bson::Int32(-1), Bson::from("x"), Bson::Null])),
            ),
            1 => {
                drop(more.insert("collection", self.pick(&[Bson::from("c0"), Bson::from("none"), 5.into(), "".into()])))
            }
            2 => {
                drop(more.insert(
                    "getMore",
                    self.pick(&[Bson::Int32(5), Bson::Double(5.0), Bson::from("x"), Bson::Int64(0)]),
                ))
            }
            3 => drop(more.insert("getMore", Bson::Int64(4711))),
            4 => drop(more.insert("lsid", self.sessions[4].lsid())),
            5 => drop(more.remove("lsid")),
            6 => drop(more.insert("txnNumber", 3_i64)),
            7 => more.extend(doc! { "txnNumber": 3_i64, "autocommit": false }),
            8 => drop(more.remove("autocommit")),
            9 => drop(more.insert("maxTimeMS", 7)),
            10 => drop(more.insert("term", 1_i64)),
            11 => drop(more.insert("nothing", 1)),
            12 => database = SCRATCH.to_owned(),
            13 => drop(more.remove("collection")),
            14 => drop(more.insert("readConcern", doc! { "level": "local" })),
            _ => {}
        }
        let mut sent = self.sent(&database, more);
        (sent.compare, sent.reads_majority) = (cursor.compare, cursor.is_stream);
        sent
    }

    fn kill_cursors(&mut self) -> Sent {
        let mut ids = Vec::new();
        let mut collection = "c0".to_owned();
        for _ in 0..self.below(4) {
            if !self.cursors.is_empty() && self.chance(70) {
                let place = self.index(self.cursors.len());
                // It stays in mind, so that it is asked for and killed again.
                let cursor = if self.chance(30) { self.cursors[place].clone() } else { self.cursors.remove(place) };
                collection.clone_from(&cursor.collection);
                ids.push(captured(cursor.slot));
            } else {
                ids.push(self.pick(&[Bson::Int64(4711), Bson::Int64(0), Bson::Int64(-1), Bson::Int64(i64::MAX)]));
            }
        }
        if self.chance(8) {
            ids.push(self.pick(&[Bson::Int32(5), Bson::from("x"), Bson::Null]));
        }
        let mut kill = doc! { "killCursors": collection, "cursors": ids };
        match self.below(30) {
            0 => drop(kill.insert("cursors", 5)),
            1 => drop(kill.remove("cursors")),
            2 => drop(kill.insert("killCursors", 5)),
            3 => drop(kill.insert("nothing", 1)),
            4 => drop(kill.insert("lsid", self.sessions[2].lsid())),
            _ => {}
        }
        self.sent(DATABASE, kill)
    }

    /// Opens one; the getMores come as for every other cursor, with writes in between.
    pub fn change_stream(&mut self) -> Sent {
        let mut stage = doc! {};
        self.maybe(&mut stage, 30, "fullDocument", |it| {
            Bson::from(it.pick(&["updateLookup", "default", "whenAvailable", "required", "always"]))
        });
        let (tokens, times) = (self.tokens.clone(), self.times.clone());
        match self.below(10) {
            0..4 if !tokens.is_empty() => {
                let option = self.pick(&["resumeAfter", "startAfter"]);
                stage.insert(option, captured(self.pick(&tokens)));
            }
            4..6 if !times.is_empty() => drop(stage.insert("startAtOperationTime", captured(self.pick(&times)))),
            6 => drop(stage.insert("resumeAfter", doc! { "_data": "82" })),
            7 if self.chance(30) => drop(stage.insert("nothing", 1)),
            _ => {}
        }
        let mut pipeline = vec![doc! { "$changeStream": stage }];
        if self.chance(30) {
            pipeline.push(self.pick(&[
                doc! { "$match": { "operationType": "insert" } },
                doc! { "$project": { "documentKey": 1, "operationType": 1 } },
                doc! { "$group": { "_id": 1 } },
            ]));
        }
        let target = self.pick(&[Bson::from("c0"), Bson::from("c1"), Bson::from("view"), Bson::from("missing")]);
        let mut aggregate = doc! { "aggregate": target, "pipeline": pipeline, "cursor": {} };
        self.maybe(&mut aggregate, 40, "lsid", |it| Bson::from(it.sessions[5].lsid()));
        let mut sent = self.sent(DATABASE, aggregate);
        sent.reads_majority = true;
        sent
    }

    /// A cursor on a capped collection, and what it waits for.
    pub fn tailable(&mut self) -> Sent {
        let body = if self.chance(60) {
            doc! { "insert": "log", "documents": [{ "n": self.below(100) }] }
        } else {
            let mut find = doc! { "find": "log", "tailable": true, "awaitData": self.chance(50) };
            self.maybe(&mut find, 30, "batchSize", |it| Bson::from(it.below(3)));
            self.maybe(&mut find, 20, "filter", |_| Bson::from(doc! { "n": { "$lt": 50 } }));
            find
        };
        self.sent(DATABASE, body)
    }
}
