//! Commands as applications and their drivers send them, and some that are wrong.

use bson::{Bson, Document, doc};

use crate::generate::{BOOKS, COLLECTIONS, DATABASE, Generator, SCRATCH, Sent, TRANSACTED, captured};
use crate::mask::Compare;

/// How long a write may take where transactions are open, in milliseconds.
const TRANSACTED_MILLIS: i32 = 1500;

/// Fields of a hello that do not follow from what the proxy presents itself as.
const HELLO: &[&str] = &[
    "isWritablePrimary",
    "ismaster",
    "helloOk",
    "maxBsonObjectSize",
    "maxMessageSizeBytes",
    "maxWriteBatchSize",
    "localTime",
    "logicalSessionTimeoutMinutes",
    "minWireVersion",
    "maxWireVersion",
    "readOnly",
    "ok",
    "code",
    "codeName",
    "compression",
];

impl Generator {
    pub fn collection(&mut self) -> &'static str {
        match self.below(20) {
            0 => "missing",
            1 => "view",
            _ => self.pick(&COLLECTIONS),
        }
    }

    pub fn filter(&mut self) -> Document {
        let id = self.below(60);
        match self.below(40) {
            0..16 => doc! {},
            16..28 => doc! { "_id": id },
            28 | 29 => doc! { "a": { "$gt": id % 7 } },
            30 | 31 => doc! { "$or": [{ "_id": id }, { "a": id % 7 }] },
            32 => doc! { "arr": { "$elemMatch": { "$gt": id } } },
            33 => doc! { "b": { "$regex": "^x" }, "c.d": { "$exists": id < 30 } },
            34 | 35 => doc! { "_id": { "$in": [id, id + 1, "none"] } },
            36 => doc! { "$expr": { "$eq": ["$a", id % 7] } },
            37 => doc! { "a": { "$nothing": 1 } },
            38 => doc! { "$text": { "$search": "x" } },
            _ => doc! { "c.d": { "$exists": self.chance(50) } },
        }
    }

    pub fn document(&mut self) -> Document {
        let (id, number) = (self.below(60), self.below(9));
        let mut document =
            doc! { "_id": id, "a": number, "b": self.pick(&["x", "y", "ünï", ""]), "arr": [number, "z"] };
        match self.below(12) {
            0 => drop(document.remove("_id")),
            1 => drop(document.insert("_id", doc! { "k": id })),
            2 => drop(document.insert("_id", Bson::Array(vec![Bson::Null]))),
            3 => drop(document.insert("$odd", 1)),
            4 => drop(document.insert("c", doc! { "d": { "e": [1.5, Bson::Null, true, i64::from(id)] } })),
            5 => drop(document.insert("when", bson::DateTime::from_millis(1_000_000 + i64::from(id)))),
            6 => drop(document.insert("long", "0123456 ".repeat(self.index(300)))),
            _ => {}
        }
        document
    }

    pub fn update(&mut self) -> Bson {
        let number = self.below(9);
        let update = match self.below(15) {
            0..3 => doc! { "$set": { "a": number } },
            3..5 => doc! { "$inc": { "a": number } },
            5 => doc! { "$inc": { "b": 1 } },
            6 => doc! { "$push": { "arr": { "$each": [number, 2], "$slice": -5 } } },
            7 => doc! { "$unset": { "c": 1 }, "$setOnInsert": { "new": true } },
            8 => doc! { "b": "replaced", "a": number },
            9 => doc! { "$nothing": { "a": 1 } },
            10 => doc! { "$set": { "_id": number } },
            11 => doc! { "$rename": { "c": "e" } },
            12 => doc! {},
            13 => return Bson::from(vec![doc! { "$set": { "a": { "$add": ["$a", 1] } } }, doc! { "$unset": "c" }]),
            _ => doc! { "$set": { "arr.$[element]": number } },
        };
        Bson::from(update)
    }

    fn update_statement(&mut self) -> Document {
        let mut statement = doc! { "q": self.filter(), "u": self.update() };
        self.maybe(&mut statement, 30, "multi", |it| Bson::from(it.chance(50)));
        self.maybe(&mut statement, 30, "upsert", |it| Bson::from(it.chance(70)));
        self.maybe(&mut statement, 10, "arrayFilters", |_| Bson::from(vec![doc! { "element": { "$gt": 1 } }]));
        self.maybe(&mut statement, 10, "hint", Self::hint);
        self.maybe(&mut statement, 5, "collation", Self::collation);
        statement
    }

    pub fn maybe(&mut self, document: &mut Document, percent: i32, name: &str, value: impl FnOnce(&mut Self) -> Bson) {
        if self.chance(percent) {
            let value = value(self);
            document.insert(name, value);
        }
    }

    fn hint(&mut self) -> Bson {
        self.pick(&[
            Bson::from(doc! { "_id": 1 }),
            Bson::from("_id_"),
            Bson::from("a_1"),
            Bson::from(doc! { "$natural": 1 }),
            5.into(),
        ])
    }

    fn collation(&mut self) -> Bson {
        let choices =
            [doc! { "locale": "en", "strength": 2 }, doc! { "locale": "simple" }, doc! { "locale": "xx" }, doc! {}];
        Bson::from(self.pick(&choices))
    }

    fn small(&mut self) -> Bson {
        let choices =
            [Bson::Int32(0), Bson::Int32(1), Bson::Int32(2), Bson::Int64(3), Bson::Double(2.0), Bson::Int32(101)];
        let odd = [Bson::Int32(-1), Bson::Double(1.5), Bson::from("two"), Bson::Null, Bson::Int64(1 << 40)];
        if self.chance(90) { self.pick(&choices) } else { self.pick(&odd) }
    }

    pub fn find(&mut self, collection: &str) -> Document {
        let mut find = doc! { "find": collection };
        self.maybe(&mut find, 70, "filter", |it| Bson::from(it.filter()));
        self.maybe(&mut find, 60, "batchSize", Self::small);
        self.maybe(&mut find, 40, "sort", |it| {
            Bson::from(it.pick(&[doc! { "_id": 1 }, doc! { "a": -1, "_id": 1 }, doc! { "a": "up" }]))
        });
        self.maybe(&mut find, 20, "projection", |it| {
            let choices =
                [doc! { "a": 1 }, doc! { "_id": 0, "b": 0 }, doc! { "a": 1, "b": 0 }, doc! { "arr": { "$slice": 1 } }];
            Bson::from(it.pick(&choices))
        });
        self.maybe(&mut find, 15, "limit", Self::small);
        self.maybe(&mut find, 15, "skip", Self::small);
        self.maybe(&mut find, 10, "singleBatch", |it| Bson::from(it.chance(50)));
        self.maybe(&mut find, 8, "hint", Self::hint);
        self.maybe(&mut find, 8, "collation", Self::collation);
        self.maybe(&mut find, 5, "returnKey", |it| Bson::from(it.chance(50)));
        self.maybe(&mut find, 5, "showRecordId", |it| Bson::from(it.chance(50)));
        self.maybe(&mut find, 5, "noCursorTimeout", |_| Bson::from(true));
        self.maybe(&mut find, 5, "allowDiskUse", |_| Bson::from(true));
        self.maybe(&mut find, 5, "tailable", |it| Bson::from(it.chance(50)));
        self.maybe(&mut find, 3, "awaitData", |_| Bson::from(true));
        self.maybe(&mut find, 5, "let", |_| Bson::from(doc! { "x": 1 }));
        self.maybe(&mut find, 3, "min", |_| Bson::from(doc! { "_id": 3 }));
        find
    }

    fn stage(&mut self) -> Vec<Document> {
        let number = self.below(9);
        match self.below(27) {
            0..4 => vec![doc! { "$match": self.filter() }],
            4 => vec![doc! { "$group": { "_id": "$a", "n": { "$sum": 1 } } }, doc! { "$sort": { "_id": 1 } }],
            5 => vec![doc! { "$sort": { "a": 1, "_id": -1 } }],
            6 => vec![doc! { "$limit": i64::from(number) }],
            7 => vec![doc! { "$skip": number }],
            8 => vec![doc! { "$project": { "a": 1, "twice": { "$multiply": ["$a", 2] } } }],
            9 => vec![doc! { "$addFields": { "sum": { "$add": ["$a", "$b"] } } }],
            10 => vec![doc! { "$unwind": "$arr" }],
            11 => vec![doc! { "$lookup": { "from": "c1", "localField": "a", "foreignField": "_id", "as": "joined" } }],
            12 => vec![
                doc! { "$facet": { "n": [{ "$count": "n" }], "first": [{ "$sort": { "_id": 1 } }, { "$limit": 1 }] } },
            ],
            13 => vec![doc! { "$bucket": { "groupBy": "$a", "boundaries": [0, 3, 6], "default": "other" } }],
            14 => vec![doc! { "$count": "count" }],
            15 => vec![doc! { "$unionWith": "c2" }],
            16 => vec![doc! { "$replaceRoot": { "newRoot": { "it": "$_id" } } }],
            17 => vec![doc! { "$setWindowFields": {
                "sortBy": { "_id": 1 }, "output": { "n": { "$sum": 1, "window": { "documents": ["unbounded", "current"] } } },
            } }],
            18 => vec![doc! { "$graphLookup": {
                "from": "c1", "startWith": "$a", "connectFromField": "a", "connectToField": "_id", "as": "g", "maxDepth": 0,
            } }],
            19 => vec![doc! { "$unset": ["b", "c"] }],
            20 => vec![doc! { "$redact": { "$cond": [{ "$gt": ["$a", 3] }, "$$KEEP", "$$PRUNE"] } }],
            21 => vec![doc! { "$nothing": 1 }],
            22 => vec![doc! { "$match": 1 }],
            23 => vec![doc! { "$bucketAuto": { "groupBy": "$_id", "buckets": 2 } }],
            24 => vec![doc! { "$sortByCount": "$b" }, doc! { "$sort": { "_id": 1 } }],
            25 => vec![doc! { "$collStats": { "count": {} } }, doc! { "$project": { "count": 1 } }],
            _ => vec![
                doc! { "$indexStats": {} },
                doc! { "$project": { "_id": "$name", "key": 1 } },
                doc! { "$sort": { "_id": 1 } },
            ],
        }
    }

    fn output(&mut self) -> Document {
        let matched = self.pick(&["replace", "keepExisting", "merge", "fail", "burn"]);
        match self.below(5) {
            0 => doc! { "$out": "out" },
            1 => doc! { "$out": { "db": SCRATCH, "coll": "out" } },
            2 => doc! { "$merge": { "into": "c3", "whenMatched": matched, "whenNotMatched": "insert" } },
            3 => doc! { "$merge": "c2" },
            _ => doc! { "$out": 5 },
        }
    }

    pub fn aggregate(&mut self, collection: &str, may_write: bool) -> Document {
        let mut pipeline = Vec::new();
        for _ in 0..self.below(4) {
            pipeline.extend(self.stage());
        }
        if may_write && self.chance(10) {
            pipeline.push(self.output());
        }
        let mut aggregate = doc! { "aggregate": collection, "pipeline": pipeline };
        let mut cursor = doc! {};
        self.maybe(&mut cursor, 60, "batchSize", Self::small);
        self.maybe(&mut aggregate, 97, "cursor", |_| Bson::from(cursor));
        self.maybe(&mut aggregate, 5, "let", |_| Bson::from(doc! { "x": 1 }));
        self.maybe(&mut aggregate, 5, "collation", Self::collation);
        self.maybe(&mut aggregate, 5, "hint", Self::hint);
        self.maybe(&mut aggregate, 5, "allowDiskUse", |it| Bson::from(it.chance(50)));
        self.maybe(&mut aggregate, 3, "explain", |_| Bson::from(true));
        aggregate
    }

    pub fn read(&mut self) -> Sent {
        let collection = self.collection();
        let mut body = match self.below(20) {
            0..8 => self.find(collection),
            8..13 => self.aggregate(collection, true),
            13 => {
                let mut count = doc! { "count": collection, "query": self.filter() };
                self.maybe(&mut count, 30, "limit", Self::small);
                self.maybe(&mut count, 20, "hint", Self::hint);
                count
            }
            14 => {
                doc! { "distinct": self.pick(&COLLECTIONS), "key": self.pick(&["a", "b", "arr", "c.d", ""]), "query": self.filter() }
            }
            15 | 16 => {
                let inner = match self.below(5) {
                    0 => doc! { "count": collection, "query": self.filter() },
                    1 => doc! { "update": collection, "updates": [self.update_statement()] },
                    2 => self.aggregate(collection, true),
                    3 => doc! { "explain": { "find": collection } },
                    _ => self.find(collection),
                };
                let mut explain = doc! { "explain": inner };
                let verbosity = ["queryPlanner", "executionStats", "allPlansExecution", "all"];
                self.maybe(&mut explain, 60, "verbosity", |it| Bson::from(it.pick(&verbosity)));
                explain
            }
            17 => return self.list(),
            18 => doc! { "dataSize": format!("{DATABASE}.{collection}"), "estimate": self.chance(50) },
            _ => {
                let stages = [doc! { "$documents": [{ "x": 1 }, { "x": 2 }, { "x": 3 }] }];
                doc! { "aggregate": 1, "pipeline": &stages[..], "cursor": { "batchSize": self.below(3) } }
            }
        };
        self.maybe(&mut body, 15, "readConcern", Self::read_concern);
        self.sent(DATABASE, body)
    }

    pub fn read_concern(&mut self) -> Bson {
        let level = self.pick(&["local", "available", "majority", "linearizable", "snapshot", "eventual"]);
        match self.below(12) {
            0 => Bson::from(doc! {}),
            1 => Bson::from(5),
            2 => Bson::from(doc! { "level": 5 }),
            3 => Bson::from(
                doc! { "level": level, "afterClusterTime": bson::Timestamp { time: u32::MAX, increment: 1 } },
            ),
            4..7 if !self.times.is_empty() => {
                let time = self.pick(&self.times.clone());
                Bson::from(doc! { "level": level, "afterClusterTime": captured(time) })
            }
            7 if !self.times.is_empty() => {
                let time = self.pick(&self.times.clone());
                Bson::from(doc! { "level": "snapshot", "atClusterTime": captured(time) })
            }
            8 => Bson::from(doc! { "level": level, "more": 1 }),
            _ => Bson::from(doc! { "level": level }),
        }
    }

    pub fn write_concern(&mut self) -> Bson {
        let concerns = [
            doc! { "w": 1 },
            doc! { "w": "majority" },
            doc! { "w": 1, "j": true },
            doc! { "w": 0 },
            doc! { "w": 3, "wtimeout": 20 },
            doc! { "w": "nobody" },
            doc! { "w": -1 },
            doc! { "w": {} },
            doc! { "w": { "dc": 1 } },
            doc! { "j": "yes" },
            doc! { "wtimeout": "long" },
            doc! { "more": 1 },
            doc! { "w": 100 },
            doc! {},
        ];
        match self.below(20) {
            0 => Bson::from(5),
            1..8 => Bson::from(doc! { "w": 1 }),
            _ => Bson::from(self.pick(&concerns)),
        }
    }

    pub fn write(&mut self) -> Sent {
        let mut collection = self.collection();
        let transacted = self.chance(4);
        if transacted {
            collection = self.pick(&TRANSACTED);
        }
        let body = self.write_body(collection);
        let mut sent = self.sent(if transacted { BOOKS } else { DATABASE }, body);
        if transacted {
            // What waits for an open transaction waits until then; the other ones take less on any machine.
            sent.body.insert("maxTimeMS", TRANSACTED_MILLIS);
            // Whether a server that gives up waits for its write concern still depends on the moment.
            sent.compare =
                Compare::Only(&["n", "nModified", "value", "writeErrors", "ok", "code", "codeName", "errmsg"]);
        }
        if self.chance(40) {
            let concern = self.write_concern();
            sent.body.insert("writeConcern", concern);
        }
        self.as_sequence(&mut sent);
        // Drivers send unacknowledged writes that way, and any command may come that way.
        // Such a write waits for a transaction without end, whatever its limit is.
        if !transacted && self.chance(8) {
            sent.body.insert("writeConcern", doc! { "w": 0 });
            (sent.flags, sent.barrier) = (2, true);
        }
        sent
    }

    /// Takes the statements out of the body, as drivers do.
    pub fn as_sequence(&mut self, sent: &mut Sent) {
        let Some(field) = ["documents", "updates", "deletes"].into_iter().find(|field| sent.body.contains_key(field))
        else {
            return;
        };
        if self.chance(50)
            && let Some(Bson::Array(statements)) = sent.body.remove(field)
        {
            let statements = statements.into_iter().filter_map(|it| it.as_document().cloned()).collect();
            sent.sequences.push((field.to_owned(), statements));
            sent.sequences_first = self.chance(50);
        }
    }

    pub fn write_body(&mut self, collection: &str) -> Document {
        let count = if self.chance(4) { 0 } else { 1 + self.below(4) };
        let mut body = match self.below(10) {
            0..4 => doc! { "insert": collection, "documents": (0..count).map(|_| self.document()).collect::<Vec<_>>() },
            4..7 => {
                doc! { "update": collection, "updates": (0..count).map(|_| self.update_statement()).collect::<Vec<_>>() }
            }
            7 => {
                let statements = (0..count).map(|_| doc! { "q": self.filter(), "limit": self.pick(&[0, 1, 1, 2]) });
                doc! { "delete": collection, "deletes": statements.collect::<Vec<_>>() }
            }
            _ => {
                let name = self.pick(&["findAndModify", "findandmodify"]);
                let mut modify = doc! { name: collection, "query": self.filter() };
                let removes = self.chance(20);
                self.maybe(&mut modify, if removes { 95 } else { 3 }, "remove", |_| Bson::from(true));
                self.maybe(&mut modify, if removes { 3 } else { 95 }, "update", Self::update);
                self.maybe(&mut modify, 40, "new", |it| Bson::from(it.chance(50)));
                self.maybe(&mut modify, 30, "upsert", |it| Bson::from(it.chance(50)));
                self.maybe(&mut modify, 30, "sort", |_| Bson::from(doc! { "_id": -1 }));
                self.maybe(&mut modify, 20, "fields", |_| Bson::from(doc! { "a": 1 }));
                return modify;
            }
        };
        self.maybe(&mut body, 40, "ordered", |it| Bson::from(it.chance(40)));
        self.maybe(&mut body, 10, "bypassDocumentValidation", |it| Bson::from(it.chance(50)));
        body
    }

    pub fn list(&mut self) -> Sent {
        let batch = doc! { "batchSize": self.below(4) };
        let body = match self.below(8) {
            0 | 1 => doc! { "listIndexes": self.collection(), "cursor": batch },
            2 => doc! { "listCollections": 1, "filter": { "name": self.collection() } },
            3 => doc! { "listCollections": 1, "nameOnly": true, "cursor": batch },
            4 => doc! { "listCollections": 1, "cursor": batch, "authorizedCollections": self.chance(50) },
            5 => {
                doc! { "listDatabases": 1, "nameOnly": self.chance(50), "filter": { "name": self.pick(&["main", "none"]) } }
            }
            6 => doc! { "listDatabases": 1, "nameOnly": true, "filter": 5 },
            _ => doc! { "listIndexes": 5 },
        };
        let unordered = body.contains_key("listCollections") && !body.contains_key("filter");
        let database = if body.contains_key("listDatabases") && self.chance(90) { "admin" } else { DATABASE };
        let mut sent = self.sent(database, body);
        if unordered {
            sent.compare = Compare::BatchSize;
        }
        sent
    }

    pub fn definition(&mut self) -> Sent {
        let collection = self.collection();
        self.made += 1;
        let made = format!("made{}", self.made % 8);
        let other = format!("made{}", (self.made + 3) % 8);
        let index = self.pick(&[
            doc! { "key": { "a": 1 }, "name": "a_1" },
            doc! { "key": { "a": 1 }, "name": "other" },
            doc! { "key": { "b": -1, "a": 1 }, "name": "b_a", "partialFilterExpression": { "a": { "$gt": 1 } } },
            doc! { "key": { "b": "text" }, "name": "text" },
            doc! { "key": { "a": 1 }, "name": "unique", "unique": true },
            doc! { "key": { "when": 1 }, "name": "ttl", "expireAfterSeconds": 2_000_000_000 },
            doc! { "key": { "a": "sideways" }, "name": "bad" },
            doc! { "key": { "a": 1 } },
            doc! { "key": { "b": "hashed" }, "name": "hashed" },
        ]);
        let (database, mut body) = match self.below(22) {
            0..4 => (DATABASE, doc! { "createIndexes": collection, "indexes": [index] }),
            4..6 => (DATABASE, doc! { "dropIndexes": collection, "index": self.pick(&["a_1", "b_a", "none", "*"]) }),
            6 => (SCRATCH, doc! { "create": made }),
            7 => (
                SCRATCH,
                doc! { "create": made, "validator": { "a": { "$type": "int" } }, "validationLevel": "moderate" },
            ),
            8 => (SCRATCH, doc! { "create": made, "capped": self.chance(50), "size": self.small() }),
            9 => (SCRATCH, doc! { "create": made, "viewOn": other, "pipeline": [{ "$match": {} }] }),
            10 => (SCRATCH, doc! { "create": made, "timeseries": { "timeField": "when" } }),
            11..13 => (SCRATCH, doc! { "drop": made }),
            13 => (SCRATCH, doc! { "dropDatabase": 1 }),
            14 => {
                let drop_target = self.chance(50);
                let names = (format!("{SCRATCH}.{made}"), format!("{SCRATCH}.{other}"));
                ("admin", doc! { "renameCollection": names.0, "to": names.1, "dropTarget": drop_target })
            }
            15 => (SCRATCH, doc! { "collMod": made, "validator": { "a": 1 } }),
            16 => (
                DATABASE,
                doc! { "collMod": collection, "index": { "name": "ttl", "expireAfterSeconds": 2_100_000_000 } },
            ),
            17 => (SCRATCH, doc! { "insert": made, "documents": [self.document()] }),
            18 => (SCRATCH, doc! { "convertToCapped": made, "size": 1000 }),
            19 => (SCRATCH, doc! { "collStats": made }),
            20 => (SCRATCH, doc! { "validate": made }),
            _ => (SCRATCH, doc! { "dbStats": 1, "scale": self.pick(&[1, 1024, 0]) }),
        };
        self.maybe(&mut body, 15, "writeConcern", Self::write_concern);
        let mut sent = self.sent(database, body);
        if ["collStats", "dbStats", "validate"].iter().any(|name| sent.body.contains_key(name)) {
            sent.compare = Compare::Only(&[
                "ns", "count", "nindexes", "capped", "ok", "code", "errmsg", "valid", "nrecords", "db",
            ]);
        }
        sent
    }

    /// What is asked of a server rather than of its data.
    pub fn about_the_server(&mut self) -> Sent {
        let comment = format!("own{}", self.below(1000));
        let own_operations = doc! {
            "aggregate": 1, "comment": comment.clone(), "cursor": {}, "pipeline": [
                { "$currentOp": { "localOps": true } }, { "$match": { "command.comment": comment } },
                { "$project": { "op": 1, "ns": 1, "type": 1, "command.aggregate": 1, "command.$db": 1 } },
            ],
        };
        let body = self.pick(&[
            doc! { "ping": 1 },
            doc! { "ping": "" },
            doc! { "buildInfo": 1 },
            doc! { "buildinfo": 1 },
            own_operations,
            doc! { "connectionStatus": 1 },
            doc! { "connectionStatus": 1, "showPrivileges": true },
            doc! { "getParameter": 1, "featureCompatibilityVersion": 1 },
            doc! { "getParameter": 1, "nothing": 1 },
            doc! { "getDefaultRWConcern": 1 },
            doc! { "getLastError": 1 },
            doc! { "listCommands": 1 },
            doc! { "usersInfo": 1 },
            doc! { "usersInfo": "nobody" },
            doc! { "rolesInfo": 1 },
            doc! { "isdbgrid": 1 },
            doc! { "listShards": 1 },
            doc! { "enableSharding": "main" },
            doc! { "shardCollection": "main.c0", "key": { "_id": 1 } },
            doc! { "killOp": 1, "op": 99_999_999 },
            doc! { "killOp": 1, "op": "x" },
            doc! { "setParameter": 1, "nothing": 1 },
            doc! { "refreshSessions": [self.sessions[0].lsid()] },
            doc! { "refreshSessions": 5 },
            doc! { "endSessions": [self.sessions[1].lsid()] },
            doc! { "killSessions": [{ "id": 5 }] },
            doc! { "madeUp": 1 },
            doc! { "Find": "c0" },
            doc! { "IsMaster": 1 },
            doc! { "getPrevError": 1 },
            doc! { "resetError": 1 },
            doc! { "_madeUp": 1 },
            doc! { "bulkWrite": 1, "ops": [], "nsInfo": [] },
            doc! { "mapReduce": "c0", "map": "function(){}", "reduce": "function(){}", "out": "x", "nothing": 1 },
            doc! { "profile": -1 },
            doc! { "features": 1 },
            doc! { "availableQueryOptions": 1 },
            doc! { "replSetTest": 1 },
            doc! { "": 1 },
            doc! {},
        ]);
        let database = if self.chance(70) { "admin" } else { DATABASE };
        let mut sent = self.sent(database, body);
        if sent.is_local() {
            sent.compare = Compare::Local;
        }
        sent
    }

    /// Greetings, and the messages of another age.
    pub fn legacy_or_hello(&mut self) -> Sent {
        let mut hello = doc! { self.pick(&["hello", "isMaster", "ismaster"]): self.pick(&[Bson::from(1), true.into(), 1.0.into()]) };
        self.maybe(&mut hello, 30, "helloOk", |_| Bson::from(true));
        self.maybe(&mut hello, 20, "client", |it| {
            let whole = doc! { "driver": { "name": "d", "version": "1" }, "os": { "type": "t" } };
            Bson::from(it.pick(&[whole, doc! {}, doc! { "driver": 5 }]))
        });
        self.maybe(&mut hello, 10, "compression", |_| Bson::from(vec!["none"]));
        self.maybe(&mut hello, 10, "backpressure", |_| Bson::from("2"));
        self.maybe(&mut hello, 20, "apiVersion", |it| it.pick(&[Bson::from("1"), "2".into(), 1.into()]));
        self.maybe(&mut hello, 10, "apiStrict", |it| it.pick(&[Bson::from(true), 1.into()]));
        if self.chance(50) {
            let mut sent = self.sent("admin", hello);
            sent.compare = Compare::Only(HELLO);
            return sent;
        }
        let other = self.pick(&[doc! { "ping": 1 }, doc! { "find": "c0" }, doc! { "madeUp": 1 }, doc! {}]);
        let namespace = self.pick(&["admin.$cmd", "main.$cmd", "main.c0", "main", ""]);
        let greets = self.chance(40);
        let mut sent = self.sent("admin", if greets { hello } else { other });
        sent.body.remove("$db");
        (sent.query, sent.compare) = (Some(if greets { "main.$cmd" } else { namespace }), Compare::Only(HELLO));
        if !greets {
            (sent.compare, sent.barrier) = (Compare::Whole, true);
        }
        sent
    }
}
