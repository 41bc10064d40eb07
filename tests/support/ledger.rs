//! Clients that write down what they were told, and an audit that holds it against what the servers have.
//!
//! Each writer has entries and a counter of its own, and reads back what was acknowledged: what an entry holds follows from
//! its marker, so that a reply meant for somebody else is seen. What the clients are is in [`clients`].

mod clients;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bson::{Document, doc};
use futures_util::future::{join_all, join3};
use mongodb::options::WriteConcern;
use mongomux::config::Address;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Duration, Instant};

use self::clients::{Answer, Client, Found};
use super::connect;
use super::hold::eventually;

const DATABASE: &str = "ledger";
const ENTRIES: &str = "entries";
const COUNTERS: &str = "counters";

/// Markers of one writer; more than it can ever use.
const MARKERS: usize = 1_000_000;

/// Who works, and how.
#[derive(Debug, Clone)]
pub struct Load {
    /// Clients of the Rust driver.
    pub drivers: usize,
    /// Writers that share one such client, each with a socket.
    pub workers: usize,
    /// Raw sockets that send again as drivers do.
    pub retrying: usize,
    /// Raw sockets whose writes carry no `txnNumber`, so that nobody sends them again.
    pub plain: usize,
    /// Of every write.
    pub concern: WriteConcern,
    /// Raw sockets that read from the primary all the time and write nothing: they tell at once when it serves again.
    pub probes: usize,
    /// `maxTimeMS` of the writes of plain sockets.
    pub max_time: Option<Duration>,
    /// Between two rounds of a writer, which are five commands; on average, and twice that at most.
    pub pause: Duration,
}

impl Default for Load {
    fn default() -> Self {
        let (concern, pause) = (WriteConcern::majority(), Duration::from_millis(20));
        Self { drivers: 3, workers: 10, retrying: 6, plain: 16, probes: 4, concern, max_time: None, pause }
    }
}

impl Load {
    /// Sockets that work at the same time.
    pub fn sockets(&self) -> usize {
        self.drivers * self.workers + self.retrying + self.plain + self.probes
    }
}

/// What a writer was told of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It is there, once, for good.
    Acknowledged,
    /// It may be there, once at most.
    Unknown,
    /// It is not there.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Driver,
    Retrying,
    Plain,
    Probe,
}

/// All writes of one writer, in their order.
#[derive(Debug)]
struct Account {
    writer: usize,
    kind: Kind,
    entries: Vec<Told>,
    increments: Vec<Told>,
}

fn count(told: &[Told], what: Told) -> usize {
    told.iter().filter(|it| **it == what).count()
}

impl Account {
    /// What the counter may be.
    fn allows(&self, value: i64) -> bool {
        let acknowledged = count(&self.increments, Told::Acknowledged);
        let most = acknowledged + count(&self.increments, Told::Unknown);
        usize::try_from(value).is_ok_and(|value| (acknowledged..=most).contains(&value))
    }
}

/// What happens while the writers work; everybody adds to it.
#[derive(Debug, Default)]
pub struct Ledger {
    over: AtomicBool,
    notes: Mutex<Notes>,
}

/// What was noted, by the clients and by the events of the drivers.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// When each write was acknowledged, in this order.
    pub acknowledged: Vec<Instant>,
    /// When a probe was answered by the primary, likewise.
    pub read: Vec<Instant>,
    /// When a command of a writer succeeded, likewise.
    pub succeeded: Vec<Instant>,
    /// Retryable work that failed all the same.
    pub errors: Vec<String>,
    /// What must not happen whatever the trouble: wrong replies, codes that nobody may read, lost writes.
    pub faults: Vec<String>,
    /// Sockets that were closed under a client.
    pub sockets_lost: usize,
    /// Pools that a driver cleared.
    pub pools_cleared: usize,
    /// How often a driver took its server for lost.
    pub servers_lost: usize,
    /// The command without `maxTimeMS` that took longest.
    pub slowest: Duration,
    /// The command with `maxTimeMS` that took longest.
    pub slowest_limited: Duration,
}

impl Ledger {
    /// The notes so far, to be read or added to.
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so many more writes are acknowledged.
    pub async fn progress(&self, by: usize) {
        let count = || self.notes().acknowledged.len();
        let before = count();
        eventually("writes are acknowledged", async || count() >= before + by).await;
    }

    /// How long after `moment` the first probe was answered and the first write acknowledged, once both are.
    pub async fn first_after(&self, moment: Instant) -> (Duration, Duration) {
        let first = |times: &[Instant]| times.iter().rev().take_while(|at| **at > moment).last().copied();
        let both = || {
            let notes = self.notes();
            Some((first(&notes.read)? - moment, first(&notes.acknowledged)? - moment))
        };
        eventually("the primary reads and writes", async || both().is_some()).await;
        both().expect("it was there a moment ago")
    }
}

/// What all writers were told, once they are done.
#[derive(Debug)]
pub struct Books {
    accounts: Vec<Account>,
    /// What was noted on the way.
    pub notes: Notes,
}

/// Lets the clients of `load` work through the proxy at `address` until `trouble` is over.
pub async fn keep(address: &Address, load: &Load, trouble: impl AsyncFnOnce(&Ledger)) -> Books {
    let ledger = Arc::<Ledger>::default();
    let mut clients = Vec::new();
    for _ in 0..load.drivers {
        let client = clients::driver(address, load, &ledger).await;
        clients.extend((0..load.workers).map(|_| (Kind::Driver, Client::Driver(client.database(DATABASE)))));
    }
    for (kind, sockets) in [(Kind::Retrying, load.retrying), (Kind::Plain, load.plain)] {
        for _ in 0..sockets {
            clients.push((kind, Client::raw(address, load, kind).await));
        }
    }
    open(address, clients.len()).await;
    let writers = (0..).zip(clients).map(|(id, (kind, client))| {
        let account = Account { writer: id, kind, entries: Vec::new(), increments: Vec::new() };
        Writer { account, client, ledger: &ledger }.work(load.pause)
    });
    let probes = (0..load.probes).map(|_| probe(address, load, &ledger));
    let trouble = async {
        trouble(&ledger).await;
        ledger.over.store(true, Ordering::Relaxed);
    };
    let (accounts, _, ()) = join3(join_all(writers), join_all(probes), trouble).await;
    let notes = ledger.notes().clone();
    Books { accounts, notes }
}

/// Between two reads of a probe.
const PROBE_PAUSE: Duration = Duration::from_millis(10);

async fn probe(address: &Address, load: &Load, ledger: &Ledger) {
    let mut client = Client::raw(address, load, Kind::Probe).await;
    while !ledger.over.load(Ordering::Relaxed) {
        match client.find(ledger, COUNTERS, &doc! { "_id": 0_i64 }, false).await {
            Ok(Found::Document(_)) => ledger.notes().read.push(Instant::now()),
            Ok(Found::Failed(why)) => ledger.notes().errors.push(format!("probe: {why}")),
            Ok(Found::Nothing) => ledger.notes().faults.push("a probe found nothing".to_owned()),
            Err(fault) => return ledger.notes().faults.push(format!("probe: {fault}")),
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
}

/// Makes the empty collections.
async fn open(address: &Address, writers: usize) {
    let mut client = connect(address).await;
    let majority = doc! { "w": "majority" };
    let index = doc! { "key": { "marker": 1 }, "name": "marker" };
    let indexes = doc! { "createIndexes": ENTRIES, "indexes": [index], "writeConcern": &majority };
    client.command(DATABASE, indexes).await.expect("an index");
    let counters: Vec<Document> = (0..writers).map(|id| doc! { "_id": number(id), "n": 0_i64 }).collect();
    let insert = doc! { "insert": COUNTERS, "documents": counters, "writeConcern": majority };
    client.command(DATABASE, insert).await.expect("counters");
}

fn number(index: usize) -> i64 {
    i64::try_from(index).expect("a small number")
}

fn entry(marker: i64) -> Document {
    let mut random = SmallRng::seed_from_u64(marker.cast_unsigned());
    let payload: String = (0..random.random_range(1..40)).map(|_| format!("{:08x}", random.random::<u32>())).collect();
    doc! { "marker": marker, "payload": payload }
}

/// Whether a document is the entry of that marker, whatever its `_id`.
fn is_entry(document: &Document, marker: i64) -> bool {
    entry(marker).iter().all(|(name, value)| document.get(name) == Some(value))
}

struct Writer<'a> {
    account: Account,
    client: Client,
    ledger: &'a Ledger,
}

impl Writer<'_> {
    /// Writes and reads until told to stop, or until something happens that must not.
    async fn work(mut self, pause: Duration) -> Account {
        // Not all at the same moment, and not again after trouble that all waited out together.
        let mut random = SmallRng::seed_from_u64(self.account.writer as u64);
        let mut pauses = || pause.mul_f64(random.random_range(0.0..2.0));
        tokio::time::sleep(pauses()).await;
        while !self.ledger.over.load(Ordering::Relaxed) {
            if let Err(fault) = self.round().await {
                self.ledger.notes().faults.push(format!("{:?} {}: {fault}", self.account.kind, self.account.writer));
                break;
            }
            tokio::time::sleep(pauses()).await;
        }
        self.account
    }

    async fn round(&mut self) -> Result<(), String> {
        let marker = number(self.account.writer * MARKERS + self.account.entries.len());
        let answer = self.client.insert(self.ledger, entry(marker)).await?;
        let told = self.note(&answer, "insert");
        self.account.entries.push(told);
        if told == Told::Acknowledged {
            let filter = doc! { "marker": marker };
            match self.find(ENTRIES, &filter, false).await? {
                Found::Document(found) if is_entry(&found, marker) => {}
                Found::Failed(why) => self.error("find", &why),
                other => return Err(format!("entry {marker} was acknowledged, found {other:?}")),
            }
            // Wherever it comes from; not every member need have it yet.
            match self.find(ENTRIES, &filter, true).await? {
                Found::Nothing => {}
                Found::Document(found) if is_entry(&found, marker) => {}
                Found::Failed(why) => self.error("find anywhere", &why),
                other => return Err(format!("entry {marker} is somewhere {other:?}")),
            }
        }
        let writer = number(self.account.writer);
        let answer = self.client.increment(self.ledger, writer).await?;
        let told = self.note(&answer, "increment");
        self.account.increments.push(told);
        match self.find(COUNTERS, &doc! { "_id": writer }, false).await? {
            Found::Document(found) if found.get_i64("_id").is_ok_and(|id| id == writer) => {
                let n = found.get_i64("n").unwrap_or(-1);
                let allowed = self.account.allows(n);
                allowed.then_some(()).ok_or_else(|| format!("the counter reads {n} after {}", self.account.tally()))
            }
            Found::Failed(why) => {
                self.error("find counter", &why);
                Ok(())
            }
            other => Err(format!("the counter reads {other:?}")),
        }
    }

    async fn find(&mut self, collection: &str, filter: &Document, anywhere: bool) -> Result<Found, String> {
        let found = self.client.find(self.ledger, collection, filter, anywhere).await?;
        if !matches!(found, Found::Failed(_)) {
            self.ledger.notes().succeeded.push(Instant::now());
        }
        Ok(found)
    }

    fn note(&self, answer: &Answer, what: &str) -> Told {
        match answer {
            Answer::Done => {
                let mut notes = self.ledger.notes();
                notes.acknowledged.push(Instant::now());
                notes.succeeded.push(Instant::now());
                Told::Acknowledged
            }
            Answer::Failed { why, refused } => {
                if self.account.kind != Kind::Plain {
                    self.error(what, why);
                }
                if *refused { Told::Refused } else { Told::Unknown }
            }
        }
    }

    fn error(&self, what: &str, why: &str) {
        let text = format!("{:?} {}: {what}: {why}", self.account.kind, self.account.writer);
        self.ledger.notes().errors.push(text);
    }
}

impl Account {
    fn tally(&self) -> String {
        let of = |what| count(&self.increments, what);
        format!("{} acknowledged, {} unknown, {} refused", of(Told::Acknowledged), of(Told::Unknown), of(Told::Refused))
    }
}

impl Books {
    /// Writes whose outcome nobody told: of clients that send again, and of those that do not.
    pub fn unknown(&self) -> (usize, usize) {
        let of = |plain: bool| {
            let accounts = self.accounts.iter().filter(|account| (account.kind == Kind::Plain) == plain);
            accounts.map(|it| count(&it.entries, Told::Unknown) + count(&it.increments, Told::Unknown)).sum()
        };
        (of(false), of(true))
    }

    /// Writes of which the clients were told that they were not done.
    pub fn refused(&self) -> usize {
        self.accounts.iter().map(|it| count(&it.entries, Told::Refused) + count(&it.increments, Told::Refused)).sum()
    }

    /// Holds what the clients were told against what the servers at `uri` have, asked directly; returns what must not be.
    pub async fn audit(&self, uri: &str) -> Vec<String> {
        let mut wrong = self.notes.faults.clone();
        for (count, what) in [
            (self.notes.sockets_lost, "sockets were closed under a client"),
            (self.notes.pools_cleared, "pools of drivers were cleared"),
            (self.notes.servers_lost, "times a driver took the proxy for lost"),
        ] {
            if count > 0 {
                wrong.push(format!("{count} {what}"));
            }
        }
        let database = mongodb::Client::with_uri_str(uri).await.expect("a driver").database(DATABASE);
        let entries = read_all(&database, ENTRIES).await;
        let counters = read_all(&database, COUNTERS).await;
        let mut found = BTreeMap::<i64, usize>::new();
        for document in &entries {
            let marker = document.get_i64("marker").unwrap_or(-1);
            *found.entry(marker).or_default() += 1;
            if !is_entry(document, marker) {
                wrong.push(format!("entry {marker} is not what was written"));
            }
        }
        for account in &self.accounts {
            let first = account.writer * MARKERS;
            for (index, told) in account.entries.iter().enumerate() {
                let times = found.remove(&number(first + index)).unwrap_or_default();
                let right = match told {
                    Told::Acknowledged => times == 1,
                    Told::Unknown => times <= 1,
                    Told::Refused => times == 0,
                };
                if !right {
                    wrong.push(format!(
                        "{:?} {}: entry {index}, {told:?}, is there {times} times",
                        account.kind, account.writer
                    ));
                }
            }
            let counter = counters.iter().find(|it| it.get_i64("_id").is_ok_and(|id| id == number(account.writer)));
            let n = counter.and_then(|counter| counter.get_i64("n").ok()).unwrap_or(-1);
            if !account.allows(n) {
                let tally = account.tally();
                wrong.push(format!("{:?} {}: the counter is {n} after {tally}", account.kind, account.writer));
            }
            if count(&account.increments, Told::Acknowledged) == 0 {
                wrong.push(format!("{:?} {} did nothing", account.kind, account.writer));
            }
        }
        wrong.extend(found.keys().map(|marker| format!("nobody wrote entry {marker}")));
        wrong
    }
}

async fn read_all(database: &mongodb::Database, collection: &str) -> Vec<Document> {
    let mut cursor = database.collection::<Document>(collection).find(doc! {}).await.expect("a cursor");
    let mut all = Vec::new();
    while cursor.advance().await.expect("a batch") {
        all.push(cursor.deserialize_current().expect("a document"));
    }
    all
}
