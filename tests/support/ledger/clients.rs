//! The clients of a [ledger](super): those of the Rust driver, raw sockets that send again as drivers do, and raw sockets
//! whose writes nobody sends again.
//!
//! The raw ones insert without an `_id`: a write that ran twice is there twice, where one of the driver fails with a
//! duplicate key.

use std::sync::Arc;

use bson::{Document, doc};
use mongodb::Database;
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::event::EventHandler;
use mongodb::event::cmap::{CmapEvent, ConnectionClosedReason};
use mongodb::event::command::CommandEvent;
use mongodb::event::sdam::SdamEvent;
use mongodb::options::{ClientOptions, ReadPreference, SelectionCriteria};
use mongomux::config::Address;
use mongomux::sandbox::wire_client::WireClient;
use tokio::time::{Duration, Instant};

use super::{COUNTERS, DATABASE, ENTRIES, Kind, Ledger, Load};
use crate::support::{assert_cloaked, code_and_labels, connect, first_batch, new_lsid};

const RETRYABLE_WRITE: &str = "RetryableWriteError";
/// Stands where certainly nothing was sent.
const NOT_SENT: [&str; 2] = ["SystemOverloadedError", "RetryableError"];

/// What trouble upstream may be answered with: unreachable, its `maxTimeMS` is over, not as durable as asked, no answer in
/// time, interrupted, overloaded.
const TROUBLE: [i32; 6] = [6, 50, 64, 89, 11601, 462];

/// The answer to a write.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    /// `refused` when it certainly was not executed.
    Failed {
        why: String,
        refused: bool,
    },
}

/// The answer to a read of at most one document.
#[derive(Debug)]
pub(super) enum Found {
    Document(Document),
    Nothing,
    Failed(String),
}

pub(super) enum Client {
    Driver(Database),
    Raw(Box<Raw>),
}

/// One socket.
pub(super) struct Raw {
    socket: WireClient,
    concern: Document,
    max_time: Option<Duration>,
    /// Of retryable writes.
    session: Option<(Document, i64)>,
}

/// A client of the driver whose events go into the ledger.
pub(super) async fn driver(address: &Address, load: &Load, ledger: &Arc<Ledger>) -> mongodb::Client {
    let mut options = ClientOptions::parse(format!("mongodb://{address}/")).await.expect("a connection string");
    let size = u32::try_from(load.workers).expect("a small number");
    (options.min_pool_size, options.max_pool_size) = (Some(size), Some(size));
    options.write_concern = Some(load.concern.clone());
    let of_pool = ledger.clone();
    options.cmap_event_handler = Some(EventHandler::callback(move |event| match event {
        CmapEvent::PoolCleared(_) => of_pool.notes().pools_cleared += 1,
        // The end of the test is no loss.
        CmapEvent::ConnectionClosed(closed) if !matches!(closed.reason, ConnectionClosedReason::PoolClosed) => {
            of_pool.notes().sockets_lost += 1;
        }
        _ => {}
    }));
    let of_servers = ledger.clone();
    options.sdam_event_handler = Some(EventHandler::callback(move |event| {
        if let SdamEvent::ServerDescriptionChanged(change) = event
            && change.new_description.server_type() == mongodb::ServerType::Unknown
        {
            of_servers.notes().servers_lost += 1;
        }
    }));
    let of_commands = ledger.clone();
    options.command_event_handler = Some(EventHandler::callback(move |event| {
        let took = match event {
            CommandEvent::Succeeded(command) => command.duration,
            CommandEvent::Failed(command) => command.duration,
            _ => return,
        };
        of_commands.took(took, false);
    }));
    mongodb::Client::with_options(options).expect("valid options")
}

impl Ledger {
    fn took(&self, took: Duration, limited: bool) {
        let mut notes = self.notes();
        let slowest = if limited { &mut notes.slowest_limited } else { &mut notes.slowest };
        *slowest = took.max(*slowest);
    }
}

/// Errors other than trouble upstream are faults: a duplicate key, a lost socket, a lost server.
fn why(error: &Error) -> Result<String, String> {
    match &*error.kind {
        ErrorKind::Command(command) if TROUBLE.contains(&command.code) => Ok(error.to_string()),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) if TROUBLE.contains(&concern.code) => {
            Ok(error.to_string())
        }
        _ => Err(error.to_string()),
    }
}

impl Client {
    pub(super) async fn raw(address: &Address, load: &Load, kind: Kind) -> Self {
        let concern = bson::serialize_to_document(&load.concern).expect("a write concern");
        let session = (kind == Kind::Retrying).then(|| (new_lsid(), 0));
        let max_time = load.max_time.filter(|_| kind == Kind::Plain);
        Self::Raw(Box::new(Raw { socket: connect(address).await, concern, max_time, session }))
    }

    pub(super) async fn insert(&mut self, ledger: &Ledger, entry: Document) -> Result<Answer, String> {
        match self {
            Self::Driver(database) => answer(database.collection(ENTRIES).insert_one(entry).await),
            Self::Raw(raw) => raw.write(ledger, doc! { "insert": ENTRIES, "documents": [entry] }).await,
        }
    }

    pub(super) async fn increment(&mut self, ledger: &Ledger, writer: i64) -> Result<Answer, String> {
        let (filter, update) = (doc! { "_id": writer }, doc! { "$inc": { "n": 1_i64 } });
        match self {
            Self::Driver(database) => {
                answer(database.collection::<Document>(COUNTERS).update_one(filter, update).await)
            }
            Self::Raw(raw) => {
                let updates = [doc! { "q": filter, "u": update }];
                raw.write(ledger, doc! { "update": COUNTERS, "updates": &updates[..] }).await
            }
        }
    }

    /// Finds a document on the primary, or on any member.
    pub(super) async fn find(
        &mut self,
        ledger: &Ledger,
        collection: &str,
        filter: &Document,
        anywhere: bool,
    ) -> Result<Found, String> {
        match self {
            Self::Driver(database) => {
                let nearest = ReadPreference::Nearest { options: None };
                let from = if anywhere { nearest } else { ReadPreference::Primary };
                let collection = database.collection::<Document>(collection);
                let find = collection.find_one(filter.clone());
                match find.selection_criteria(SelectionCriteria::ReadPreference(from)).await {
                    Ok(found) => Ok(found.map_or(Found::Nothing, Found::Document)),
                    Err(error) => why(&error).map(Found::Failed),
                }
            }
            Self::Raw(raw) => {
                let mut find = doc! { "find": collection, "filter": filter, "limit": 1, "singleBatch": true };
                if anywhere {
                    find.insert("$readPreference", doc! { "mode": "nearest" });
                }
                raw.read(ledger, &find).await
            }
        }
    }
}

fn answer<T>(result: mongodb::error::Result<T>) -> Result<Answer, String> {
    match result {
        Ok(_) => Ok(Answer::Done),
        // The attempt that was told of may not have been the only one.
        Err(error) => why(&error).map(|why| Answer::Failed { why, refused: false }),
    }
}

impl Raw {
    async fn write(&mut self, ledger: &Ledger, mut command: Document) -> Result<Answer, String> {
        command.insert("writeConcern", &self.concern);
        if let Some(limit) = self.max_time {
            command.insert("maxTimeMS", i64::try_from(limit.as_millis()).expect("a short time"));
        }
        if let Some((lsid, number)) = &mut self.session {
            *number += 1;
            command.extend(doc! { "lsid": &*lsid, "txnNumber": *number });
        }
        let first = self.exchange(ledger, &command).await?;
        let labels = code_and_labels(&first).1;
        let labelled = labels.iter().any(|label| label == RETRYABLE_WRITE);
        match (labelled, self.session.is_some()) {
            (false, false) if !labels.is_empty() && labels != NOT_SENT => Err(format!("odd labels: {first}")),
            (false, _) => judge(&first),
            (true, false) => Err(format!("nobody may send this again: {first}")),
            (true, true) => {
                let first = judge(&first)?;
                let second = judge(&self.exchange(ledger, &command).await?)?;
                Ok(match (first, second) {
                    (Answer::Failed { refused: false, .. }, Answer::Failed { why, .. }) => {
                        Answer::Failed { why, refused: false }
                    }
                    (_, second) => second,
                })
            }
        }
    }

    async fn read(&mut self, ledger: &Ledger, find: &Document) -> Result<Found, String> {
        let mut reply = self.exchange(ledger, find).await?;
        if [6, 89].contains(&code_and_labels(&reply).0) {
            reply = self.exchange(ledger, find).await?;
        }
        match code_and_labels(&reply).0 {
            0 => Ok(first_batch(&reply).pop().map_or(Found::Nothing, Found::Document)),
            code if TROUBLE.contains(&code) => Ok(Found::Failed(reply.to_string())),
            _ => Err(reply.to_string()),
        }
    }

    async fn exchange(&mut self, ledger: &Ledger, command: &Document) -> Result<Document, String> {
        let sent = Instant::now();
        let reply = self.socket.reply(DATABASE, command.clone()).await;
        ledger.took(sent.elapsed(), command.contains_key("maxTimeMS"));
        let reply = reply.map_err(|error| {
            ledger.notes().sockets_lost += 1;
            error.to_string()
        })?;
        assert_cloaked(&reply);
        Ok(reply)
    }
}

fn judge(reply: &Document) -> Result<Answer, String> {
    let failed = |refused| Ok(Answer::Failed { why: reply.to_string(), refused });
    let concern = reply.get_document("writeConcernError").and_then(|error| error.get_i32("code"));
    match (code_and_labels(reply), concern) {
        ((0, _), Ok(code)) if TROUBLE.contains(&code) => failed(false),
        ((0, _), Err(_)) if reply.get_i32("n").is_ok_and(|n| n == 1) && !reply.contains_key("writeErrors") => {
            Ok(Answer::Done)
        }
        ((code, labels), _) if TROUBLE.contains(&code) => {
            failed(NOT_SENT.iter().all(|not_sent| labels.iter().any(|label| label == not_sent)))
        }
        _ => Err(reply.to_string()),
    }
}
