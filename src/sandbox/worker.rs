//! One client socket of the load: what an application would do, each answer checked against what it must be.
//!
//! A worker owns a range of `_id`s and knows every document in it; a document is a function of seed, `_id` and counter, so
//! it can be compared byte for byte without being kept. A reply meant for another socket cannot pass. Steps: insert and
//! read back, delete, aggregate, a cursor of several batches, a retryable write sent twice, transactions committed and
//! aborted.

use std::collections::VecDeque;
use std::sync::Arc;

use bson::raw::{RawBsonRef, RawDocument};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, timeout};

use super::load::{Connected, Counters, Shared};
use super::wire_client::{Message, Request, WireClient, WireError, succeeded};
use crate::config::Address;

/// Database and collection of the load.
const DATABASE: &str = "sandbox";
const COLLECTION: &str = "life";

/// Application name of the load's sockets.
const APPLICATION: &str = "sandbox";

/// Documents a worker keeps: more than three batches of a cursor, and a few megabytes for all workers together.
const KEPT_DOCUMENTS: usize = 8;
const BATCH: i32 = 2;

/// Longest payload, bytes.
const MAX_PAYLOAD: usize = 400;

/// Longest wait for a reply: more than the proxy may take for any command by its defaults.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Mean pause after a failure, where the usual one is shorter.
const BACK_OFF: Duration = Duration::from_millis(500);

/// What went wrong with a step.
#[derive(Debug)]
enum Fault {
    /// No answer, or one that says no; the socket is of use only in the second case.
    Error { what: String, socket_is_fine: bool },
    /// The answer to something else.
    Wrong(String),
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Protocol(what) => Self::Wrong(what),
            WireError::Command { .. } => Self::Error { what: error.to_string(), socket_is_fine: true },
            _ => Self::Error { what: error.to_string(), socket_is_fine: false },
        }
    }
}

fn wrong<T>(what: String) -> Result<T, Fault> {
    Err(Fault::Wrong(what))
}

/// A document that is known to be in the collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    id: i64,
    counter: i32,
}

#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    random: SmallRng,
    socket: Option<(WireClient, Connected)>,
    /// Oldest first, ids ascending without a gap in what the collection holds from the first one on.
    kept: VecDeque<Kept>,
    next_id: i64,
    /// First id that belongs to the next worker.
    end_id: i64,
    session: Document,
    next_transaction: i64,
    served: bool,
}

/// Makes the collection, on a direct connection to the primary: a transaction cannot use one that has just come to be.
pub(super) async fn prepare(primary: &Address) -> Result<(), WireError> {
    let mut client = WireClient::connect_as(primary, APPLICATION).await?;
    let create = doc! { "create": COLLECTION, "writeConcern": { "w": "majority" } };
    client.command(DATABASE, create).await.map(drop)
}

impl Worker {
    pub(super) fn new(index: u32, shared: Arc<Shared>) -> Self {
        let seed = shared.options.seed ^ (u64::from(index) << 32);
        let mut random = SmallRng::seed_from_u64(seed);
        let session = new_session(&mut random);
        let next_id = i64::from(index) << 32;
        let end_id = next_id + (1 << 32);
        let kept = VecDeque::new();
        Self { shared, random, socket: None, kept, next_id, end_id, session, next_transaction: 1, served: false }
    }

    /// Works until it is told to stop, and then finishes the step it is in.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let shared = Arc::clone(&self.shared);
        // Sockets open at once, as after a deploy; only then do they pause between steps.
        let mut pause = Duration::ZERO;
        loop {
            let pause_now = pause.mul_f64(self.random.random_range(0.0..2.0));
            if timeout(pause_now, stop.wait_for(|stop| *stop)).await.is_ok() {
                return;
            }
            let turn = if self.socket.is_none() { &shared.connecting } else { &shared.in_flight };
            // Only waits are cut off by the stop: half an exchange would count as an error.
            let _permit = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                permit = turn.acquire() => permit,
            };
            let outcome = if self.socket.is_none() { self.connect().await } else { self.step().await };
            pause = shared.pause;
            if let Err(fault) = outcome {
                self.recover(fault);
                pause = pause.max(BACK_OFF);
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Fault> {
        let connect = WireClient::connect_as(&self.shared.options.address, APPLICATION);
        let client = within(REPLY_TIMEOUT, connect).await?;
        self.socket = Some((client, Counters::connected(&self.shared)));
        Ok(())
    }

    async fn step(&mut self) -> Result<(), Fault> {
        if self.kept.len() >= KEPT_DOCUMENTS {
            return self.delete_oldest().await;
        }
        match self.random.random_range(0..100) {
            _ if self.kept.is_empty() => self.insert().await,
            0..4 => self.aggregate().await,
            4..8 => self.read_all().await,
            8..12 => self.update_twice().await,
            12..14 => self.transaction(true).await,
            14..15 => self.transaction(false).await,
            15..55 => self.insert().await,
            _ => {
                let index = self.random.random_range(0..self.kept.len());
                let kept = self.kept[index];
                self.find(doc! { "_id": kept.id }, Document::new(), &[kept]).await
            }
        }
    }

    async fn insert(&mut self) -> Result<(), Fault> {
        let kept = self.new_document();
        self.send_insert(kept, Document::new()).await?;
        self.find(doc! { "_id": kept.id }, Document::new(), &[kept]).await?;
        self.kept.push_back(kept);
        Ok(())
    }

    async fn delete_oldest(&mut self) -> Result<(), Fault> {
        let Some(oldest) = self.kept.front().copied() else { return Ok(()) };
        let deletes = vec![doc! { "q": { "_id": oldest.id }, "limit": 1 }];
        let request = self.write(doc! { "delete": COLLECTION }).sequence("deletes", deletes);
        expect_number(&self.exchange(&request).await?, "n", 1)?;
        self.kept.pop_front();
        Ok(())
    }

    async fn aggregate(&mut self) -> Result<(), Fault> {
        let group = doc! { "_id": null, "count": { "$sum": 1 }, "counters": { "$sum": "$counter" } };
        let pipeline = vec![doc! { "$match": self.range() }, doc! { "$group": group }];
        let command = doc! { "aggregate": COLLECTION, "pipeline": pipeline, "cursor": {} };
        let reply = self.exchange(&Request::new(DATABASE, command)).await?;
        let batch = reply.document().map_err(Fault::from)?;
        let batch = batch.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let count = i32::try_from(self.kept.len()).unwrap_or(i32::MAX);
        let counters: i32 = self.kept.iter().map(|kept| kept.counter).sum();
        let expected = doc! { "_id": null, "count": count, "counters": counters };
        match batch {
            Ok(batch) if batch.as_slice() == [Bson::Document(expected.clone())] => Ok(()),
            other => wrong(format!("aggregate gave {other:?}, not {expected}")),
        }
    }

    /// A cursor over all own documents, a few at a time.
    async fn read_all(&mut self) -> Result<(), Fault> {
        let expected: Vec<Kept> = self.kept.iter().copied().collect();
        let find = doc! { "find": COLLECTION, "filter": self.range(), "sort": { "_id": 1 }, "batchSize": BATCH };
        let mut reply = self.exchange(&Request::new(DATABASE, find)).await?;
        let mut read = 0;
        let mut name = "firstBatch";
        loop {
            let (cursor, count) = self.check_batch(&reply, name, expected.get(read..).unwrap_or_default())?;
            read += count;
            if cursor == 0 {
                break;
            }
            let more = doc! { "getMore": cursor, "collection": COLLECTION, "batchSize": BATCH };
            reply = self.exchange(&Request::new(DATABASE, more)).await?;
            name = "nextBatch";
        }
        if read == expected.len() { Ok(()) } else { wrong(format!("a cursor gave {read} of {}", expected.len())) }
    }

    /// A retryable write, sent again as a driver does that missed the reply: it must count once.
    async fn update_twice(&mut self) -> Result<(), Fault> {
        let index = self.random.random_range(0..self.kept.len());
        let updates = vec![doc! { "q": { "_id": self.kept[index].id }, "u": { "$inc": { "counter": 1 } } }];
        let mut request = self.write(doc! { "update": COLLECTION }).sequence("updates", updates);
        request.body.extend(self.statement());
        for _ in 0..2 {
            let reply = self.exchange(&request).await?;
            expect_number(&reply, "n", 1)?;
            expect_number(&reply, "nModified", 1)?;
        }
        self.kept[index].counter += 1;
        let kept = self.kept[index];
        self.find(doc! { "_id": kept.id }, Document::new(), &[kept]).await
    }

    /// A document inserted and read inside a transaction, and there (or not) after it.
    async fn transaction(&mut self, commit: bool) -> Result<(), Fault> {
        let mut statement = self.statement();
        statement.insert("autocommit", false);
        let result = self.transaction_body(commit, statement.clone()).await;
        if let Err(Fault::Error { socket_is_fine: true, .. }) = &result {
            // As a driver would; the server has usually ended it already, and says so.
            let abort = self.end_of_transaction("abortTransaction", statement);
            if let Err(fault) = self.exchange(&abort).await {
                tracing::trace!(?fault, "abort after a failed transaction");
            }
        }
        result
    }

    async fn transaction_body(&mut self, commit: bool, statement: Document) -> Result<(), Fault> {
        let kept = self.new_document();
        let mut first = statement.clone();
        first.insert("startTransaction", true);
        self.send_insert(kept, first).await?;
        self.find(doc! { "_id": kept.id }, statement.clone(), &[kept]).await?;
        let end = if commit { "commitTransaction" } else { "abortTransaction" };
        let end = self.end_of_transaction(end, statement);
        self.exchange(&end).await?;
        if commit {
            self.kept.push_back(kept);
            self.find(doc! { "_id": kept.id }, Document::new(), &[kept]).await
        } else {
            self.find(doc! { "_id": kept.id }, Document::new(), &[]).await
        }
    }

    fn end_of_transaction(&self, name: &str, statement: Document) -> Request {
        let mut command = doc! { name: 1 };
        command.extend(statement);
        Request::new("admin", command)
    }

    async fn send_insert(&mut self, kept: Kept, statement: Document) -> Result<(), Fault> {
        let documents = vec![self.document(kept)];
        // Statements of a transaction carry no write concern, its end does.
        let request = if statement.is_empty() {
            self.write(doc! { "insert": COLLECTION })
        } else {
            let mut command = doc! { "insert": COLLECTION };
            command.extend(statement);
            Request::new(DATABASE, command)
        };
        expect_number(&self.exchange(&request.sequence("documents", documents)).await?, "n", 1)
    }

    /// Finds by `filter` what must be exactly `expected`.
    async fn find(&mut self, filter: Document, statement: Document, expected: &[Kept]) -> Result<(), Fault> {
        let mut command = doc! { "find": COLLECTION, "filter": filter, "limit": 1, "singleBatch": true };
        command.extend(statement);
        let reply = self.exchange(&Request::new(DATABASE, command)).await?;
        match self.check_batch(&reply, "firstBatch", expected)? {
            (0, count) if count == expected.len() => Ok(()),
            (cursor, count) => wrong(format!("find gave {count} of {} documents, cursor {cursor}", expected.len())),
        }
    }

    /// Sends, waits, and checks what every reply must fulfil.
    async fn exchange(&mut self, request: &Request) -> Result<Message, Fault> {
        let Some((client, _)) = &mut self.socket else {
            return Err(Fault::Error { what: "not connected".to_owned(), socket_is_fine: false });
        };
        let sent = Instant::now();
        let message = within(REPLY_TIMEOUT, client.exchange(request)).await?;
        let raw = message.raw_document()?;
        // Most replies are a success, seen without decoding the rest.
        if !matches!(raw.get("ok"), Ok(Some(RawBsonRef::Double(1.0)))) {
            succeeded(message.document()?)?;
        }
        if let Ok(Some(errors)) = raw.get("writeErrors") {
            return Err(Fault::Error { what: format!("write errors: {errors:?}"), socket_is_fine: true });
        }
        self.shared.counters.command(sent.elapsed());
        if !std::mem::replace(&mut self.served, true) {
            self.shared.counters.served();
        }
        Ok(message)
    }

    /// Compares a batch with the documents it must begin; returns the cursor's id and the number of documents.
    fn check_batch(&self, reply: &Message, name: &str, expected: &[Kept]) -> Result<(i64, usize), Fault> {
        let cursor = reply.raw_document()?.get_document("cursor").map_err(|error| Fault::Wrong(error.to_string()))?;
        let namespace = cursor.get_str("ns").unwrap_or_default();
        if namespace != format!("{DATABASE}.{COLLECTION}") {
            return wrong(format!("a cursor of {namespace}"));
        }
        let batch = cursor.get_array(name).map_err(|error| Fault::Wrong(error.to_string()))?;
        let mut count = 0;
        for value in batch {
            let document = value.ok().and_then(RawBsonRef::as_document).map_or(&[][..], RawDocument::as_bytes);
            let known = expected.get(count).map(|kept| self.document(*kept).to_vec());
            if !matches!(known, Some(Ok(known)) if known == document) {
                return wrong(format!("document {count} of {name} is not the one that was written"));
            }
            count += 1;
        }
        let id = cursor.get_i64("id").map_err(|error| Fault::Wrong(error.to_string()))?;
        Ok((id, count))
    }

    /// After a fault nothing is known about the documents so far: goes on with new ones.
    fn recover(&mut self, fault: Fault) {
        let keep_socket = match fault {
            Fault::Wrong(what) => {
                self.shared.counters.wrong(&what);
                false
            }
            Fault::Error { what, socket_is_fine } => {
                self.shared.counters.error(&what);
                socket_is_fine
            }
        };
        if !keep_socket {
            self.socket = None;
        }
        self.kept.clear();
        self.session = new_session(&mut self.random);
        self.next_transaction = 1;
    }

    fn new_document(&mut self) -> Kept {
        let id = self.next_id;
        self.next_id += 1;
        Kept { id, counter: 0 }
    }

    /// The document of a seed, an id and a counter: always the same bytes.
    fn document(&self, kept: Kept) -> Document {
        let mut random = SmallRng::seed_from_u64(self.shared.options.seed ^ kept.id.cast_unsigned().rotate_left(17));
        let token = format!("{:032x}", random.random::<u128>());
        let mut bytes = vec![0; random.random_range(0..=MAX_PAYLOAD)];
        random.fill(&mut bytes);
        let payload = Binary { subtype: BinarySubtype::Generic, bytes };
        doc! { "_id": kept.id, "token": token, "counter": kept.counter, "payload": payload }
    }

    /// Matches exactly the documents in `kept`.
    fn range(&self) -> Document {
        let first = self.kept.front().map_or(self.next_id, |kept| kept.id);
        doc! { "_id": { "$gte": first, "$lt": self.end_id } }
    }

    fn write(&self, mut command: Document) -> Request {
        if let Some(concern) = &self.shared.options.write_concern {
            command.insert("writeConcern", concern.clone());
        }
        Request::new(DATABASE, command)
    }

    /// Session and number of the next retryable write or transaction.
    fn statement(&mut self) -> Document {
        let number = self.next_transaction;
        self.next_transaction += 1;
        doc! { "lsid": self.session.clone(), "txnNumber": number }
    }
}

fn new_session(random: &mut SmallRng) -> Document {
    doc! { "id": Binary { subtype: BinarySubtype::Uuid, bytes: random.random::<[u8; 16]>().to_vec() } }
}

fn expect_number(reply: &Message, field: &str, expected: i32) -> Result<(), Fault> {
    match reply.raw_document()?.get_i32(field) {
        Ok(number) if number == expected => Ok(()),
        other => wrong(format!("{field} is {other:?}, not {expected}")),
    }
}

async fn within<T>(limit: Duration, exchange: impl Future<Output = Result<T, WireError>>) -> Result<T, Fault> {
    match timeout(limit, exchange).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Fault::Error { what: format!("no reply within {limit:?}"), socket_is_fine: false }),
    }
}
