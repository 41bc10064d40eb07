//! What may go with any command, and what may be wrong with any message.

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};

use crate::generate::{DATABASE, Generator, Sent};
use crate::mask::Compare;

/// Commands whose time limit is a wait, so that a wrong one would be waited for.
const WAITING: [&str; 1] = ["getMore"];

impl Generator {
    /// Arguments that every command takes, other ways to send it, and sometimes a fault.
    pub fn embellish(&mut self, sent: &mut Sent) {
        let waits = WAITING.iter().any(|name| sent.body.contains_key(name));
        if sent.query.is_some() {
            return;
        }
        self.maybe(&mut sent.body, 10, "comment", |it| it.anything());
        if self.chance(4) {
            sent.body.insert("apiVersion", self.pick(&[Bson::from("1"), "1".into(), "1".into(), "2".into(), 1.into()]));
        }
        if self.chance(2) {
            sent.body.insert("apiStrict", self.pick(&[Bson::from(true), false.into(), 1.into(), Bson::Null]));
        }
        if self.chance(1) {
            sent.body.insert("apiDeprecationErrors", self.pick(&[Bson::from(true), false.into(), "x".into()]));
        }
        if sent.is_local() {
            return;
        }
        self.maybe(&mut sent.body, 8, "$readPreference", Self::preference);
        if !waits && !sent.body.contains_key("maxTimeMS") && self.chance(4) {
            let limits = [
                Bson::Int32(60_000),
                Bson::Int64(70_000),
                Bson::Double(80_000.0),
                Bson::Int32(0),
                Bson::Int32(-1),
                Bson::Double(90_000.5),
                Bson::Int64(i64::from(i32::MAX)),
                Bson::Int64(1 << 31),
                Bson::from("x"),
                Bson::Null,
                Bson::Double(f64::NAN),
                Bson::Double(-0.5),
                Bson::Boolean(true),
                Bson::Double(1e300),
                Bson::Int64(i64::MAX),
            ];
            sent.body.insert("maxTimeMS", self.pick(&limits));
        }
        if self.chance(5) && !sent.body.contains_key("lsid") {
            let session = self.session();
            sent.body.insert("lsid", self.sessions[session].lsid());
        }
        if self.chance(15) {
            sent.compressor = Some(self.pick(&[1, 2, 3]));
        } else if self.chance(5) {
            sent.checksum = Some(if self.chance(90) { 0 } else { 1 });
            sent.barrier = true;
        }
        // Whoever asks for a stream of replies gets single ones through the proxy, as a server may answer, too.
        if !waits && self.chance(3) {
            sent.flags |= 1 << 16;
        }
        if self.chance(1) && !sent.body.contains_key("maxTimeMS") {
            (sent.flags, sent.barrier) = (sent.flags | 2, true);
        }
        if self.chance(4) {
            self.spoil(sent);
        }
    }

    fn preference(&mut self) -> Bson {
        let mode = self.pick(&["primary", "primaryPreferred", "secondaryPreferred", "nearest", "primary"]);
        let mut preference = doc! { "mode": mode };
        // Nobody has tags, and a server that is asked directly does not look at them: the proxy would look for one that has.
        self.maybe(&mut preference, 10, "tags", |_| Bson::from(vec![doc! {}]));
        self.maybe(&mut preference, 10, "maxStalenessSeconds", |it| {
            it.pick(&[Bson::Int32(120), Bson::Int32(-1), Bson::Int64(90)])
        });
        self.maybe(&mut preference, 10, "hedge", |it| it.pick(&[Bson::from(doc! { "enabled": true }), doc! {}.into()]));
        if self.chance(5) {
            self.pick(&[Bson::from(5), doc! {}.into(), doc! { "mode": 5 }.into(), doc! { "mode": "somewhere" }.into()])
        } else {
            preference.into()
        }
    }

    fn anything(&mut self) -> Bson {
        let values = [
            Bson::Null,
            Bson::from(1),
            Bson::from(-1),
            Bson::from(1.5),
            Bson::from("text"),
            Bson::from(true),
            Bson::from(doc! {}),
            Bson::from(doc! { "a": { "$b": 1 } }),
            Bson::Array(vec![]),
            Bson::Array(vec![1.into(), "x".into()]),
            Bson::from(1_i64 << 40),
            Bson::Undefined,
            Bson::MinKey,
            Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2] }),
            Bson::JavaScriptCode("f".to_owned()),
            Bson::DateTime(bson::DateTime::from_millis(1)),
            Bson::Timestamp(bson::Timestamp { time: 1, increment: 1 }),
        ];
        self.pick(&values)
    }

    /// One thing wrong with a sound message.
    fn spoil(&mut self, sent: &mut Sent) {
        let waits = WAITING.iter().any(|name| sent.body.contains_key(name));
        let place = self.index(sent.body.len());
        let name = sent.body.keys().nth(place).unwrap().clone();
        // The twin of a value that stands for two is not the same.
        let is_plain = !format!("{:?}", sent.body).contains("Symbol(");
        // Damage can make a session that nobody knows; its transaction ends through the proxy with the socket, directly when its
        // time is over.
        let starts = sent.body.contains_key("startTransaction");
        // A time of 1 ms is over or not by chance; odd ones are among the limits above.
        let wait = name == "maxTimeMS";
        match self.below(11) {
            0 if !wait => drop(sent.body.remove(&name)),
            1 | 2 if !wait => drop(sent.body.insert(&name, self.anything())),
            3 => drop(sent.body.insert("nothing", self.anything())),
            4 => drop(sent.body.insert("$nothing", self.anything())),
            5 if !wait => sent.extra = sent.body.get(&name).map(|value| (name.clone(), value.clone())),
            6 if !wait => {
                // What comes first names the command.
                let value = sent.body.remove(&name).unwrap();
                let rest = std::mem::take(&mut sent.body);
                sent.body = doc! { name: value };
                sent.body.extend(rest);
            }
            7 => sent.sequences.push(("more".to_owned(), vec![doc! { "a": 1 }])),
            8 => drop(sent.body.insert(
                "$db",
                self.pick(&[Bson::from(""), "a.b".into(), "a b".into(), "$external".into(), "x".repeat(70).into()]),
            )),
            9 if is_plain && !starts && !waits && sent.checksum.is_none() => {
                sent.damage = Some((self.index(4000), self.pick(&[0, 1, 2, 3, 5, 0x10, 0x41, 0x7F, 0x80, 0xFF])));
                // Somewhere it says how long something is, and what comes then is anything: to read on would hang.
                sent.barrier = true;
                sent.flags &= 2;
                sent.compare = Compare::Damaged;
            }
            _ => drop(sent.body.insert("writeConcern", self.write_concern())),
        }
        // Without its filter it lists all, in an order of the server's own.
        if sent.damage.is_none() && sent.body.contains_key("listCollections") {
            sent.compare = Compare::Only(&["ok", "code", "codeName"]);
        }
    }

    /// Sections that do not fit together.
    pub fn malformed(&mut self) -> Sent {
        let mut sent = self.sent(DATABASE, doc! { "insert": "c0" });
        let documents: Vec<Document> = (0..2).map(|_| self.document()).collect();
        match self.below(6) {
            0 => {
                sent.sequences = vec![("documents".to_owned(), documents.clone()), ("documents".to_owned(), documents)]
            }
            1 => {
                sent.body.insert("documents", documents.clone());
                sent.sequences = vec![("documents".to_owned(), documents)];
            }
            2 => sent.sequences = vec![("documents".to_owned(), vec![])],
            3 => sent.sequences = vec![("Documents".to_owned(), documents)],
            4 => sent.flags = self.pick(&[1 << 17, 1 << 31, 1 << 2, 1 << 15]),
            _ => sent.body = doc! { "$db": DATABASE, "insert": "c0", "documents": documents },
        }
        sent.sequences_first = self.chance(50);
        sent.barrier = true;
        sent
    }
}
