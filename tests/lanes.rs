//! Who holds what others wait for can always go on: statements of an open transaction, its commit and abort, and killCursors
//! have a share of the pool that those who wait cannot take. Without a transaction nobody pays for it.
//!
//! Nobody times out here, so whatever waits for itself hangs, and fails its test by [`PATIENCE`].
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod support;

use std::cell::Cell;

use bson::{Document, doc};
use futures_util::future::{join, join_all};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{Request, WireClient};
use support::hold::{Hold, eventually, hold_finds};
use support::proxy::{Proxy, proxy};
use support::{PATIENCE, connect, first_batch, new_lsid};
use tokio::time::timeout;

/// How many wait for the lock of one transaction.
const UPDATES: usize = 50;

/// The pools for which all of it must hold.
const POOL_SIZES: [u32; 3] = [1, 2, 10];

/// A proxy with a pool of its own, and a database that nobody else uses.
struct Case<'a> {
    server: &'a Mongod,
    proxy: Proxy,
    database: String,
}

impl<'a> Case<'a> {
    async fn new(deployment: &'a Deployment, max_pool_size: u32) -> Self {
        let settings = format!(
            "max_pool_size = {max_pool_size}\nmin_pool_size = {max_pool_size}\nwait_queue_timeout_ms = 600000\n\
             server_selection_timeout_ms = 600000"
        );
        let proxy = proxy(&deployment.uri(), &settings).await;
        let (server, database) = (&deployment.members()[0], format!("lanes_{max_pool_size}"));
        let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": id, "n": 0 }).collect();
        let insert = doc! { "insert": "c", "documents": documents };
        connect(proxy.address()).await.command(&database, insert).await.unwrap();
        Self { server, proxy, database }
    }

    async fn client(&self) -> WireClient {
        connect(self.proxy.address()).await
    }

    /// Holds all reads of `held`.
    async fn hold_finds(&self) -> Hold<'a> {
        hold_finds(self.server, &format!("{}.held", self.database)).await
    }

    /// As the server itself says it.
    async fn value(&self, id: i32) -> i32 {
        let find = doc! { "find": "c", "filter": { "_id": id } };
        let found = support::client(self.server).await.command(&self.database, find).await.unwrap();
        first_batch(&found)[0].get_i32("n").unwrap()
    }

    /// Waits until `count` commands have a connection or wait for one.
    async fn under_way(&self, count: usize) {
        let in_use = || usize::try_from(self.proxy.pool().unwrap().counts.in_use).unwrap();
        let all = || in_use() + self.proxy.waiting();
        eventually(&format!("{count} commands are under way"), async || all() == count).await;
    }

    /// An open transaction that holds the lock of document 0, and [`UPDATES`] that want it.
    async fn locked(&self) -> (Transaction<'_>, Vec<Sent>) {
        let mut transaction = Transaction::new(self).await;
        transaction.run(increment(0)).await;
        let updates = Sent::many(self, &increment(0), UPDATES).await;
        self.under_way(UPDATES).await;
        let pool = self.proxy.pool().unwrap();
        assert!(pool.counts.in_use < pool.max_pool_size, "the share of the transaction: {:?}", pool.counts);
        (transaction, updates)
    }
}

fn increment(id: i32) -> Document {
    doc! { "update": "c", "updates": [{ "q": { "_id": id }, "u": { "$inc": { "n": 1 } } }] }
}

/// A transaction over a socket of its own.
struct Transaction<'a> {
    database: &'a str,
    client: WireClient,
    lsid: Document,
    begun: bool,
}

impl<'a> Transaction<'a> {
    async fn new(case: &'a Case<'_>) -> Self {
        Self { database: &case.database, client: case.client().await, lsid: new_lsid(), begun: false }
    }

    /// The next statement, which succeeds.
    async fn run(&mut self, command: Document) -> Document {
        let command = self.of_it(command);
        timeout(PATIENCE, self.client.command(self.database, command)).await.expect("it goes on").unwrap()
    }

    async fn end(mut self, name: &str) {
        let command = self.of_it(doc! { name: 1 });
        timeout(PATIENCE, self.client.command("admin", command)).await.expect("it ends").unwrap();
    }

    fn of_it(&mut self, mut command: Document) -> Document {
        command.extend(doc! { "lsid": self.lsid.clone(), "txnNumber": 1_i64, "autocommit": false });
        if !std::mem::replace(&mut self.begun, true) {
            command.insert("startTransaction", true);
        }
        command
    }
}

/// A command that was sent, and nothing heard yet.
struct Sent {
    client: WireClient,
    request: i32,
}

impl Sent {
    async fn new(case: &Case<'_>, command: Document) -> Self {
        let mut client = case.client().await;
        let request = client.send(&Request::new(&case.database, command)).await.unwrap();
        Self { client, request }
    }

    async fn many(case: &Case<'_>, command: &Document, count: usize) -> Vec<Self> {
        join_all((0..count).map(|_| Self::new(case, command.clone()))).await
    }

    async fn reply(mut self) -> Document {
        let reply = timeout(PATIENCE, self.client.receive(self.request)).await.expect("an answer").unwrap();
        reply.document().unwrap()
    }
}

async fn all_succeed(updates: Vec<Sent>) {
    for reply in join_all(updates.into_iter().map(Sent::reply)).await {
        assert_eq!((reply.get_f64("ok").unwrap(), reply.get_i32("n").unwrap()), (1.0, 1), "{reply}");
    }
}

#[tokio::test]
async fn a_commit_passes_those_who_wait_for_its_lock() {
    let deployment = support::replica_set(1).await;
    for max_pool_size in POOL_SIZES {
        let case = Case::new(&deployment, max_pool_size).await;
        let (mut transaction, updates) = case.locked().await;
        transaction.run(increment(1)).await;
        transaction.run(doc! { "find": "c" }).await;
        case.under_way(UPDATES).await;
        transaction.end("commitTransaction").await;
        all_succeed(updates).await;
        assert_eq!(case.value(0).await, 1 + i32::try_from(UPDATES).unwrap());
        assert_eq!(case.value(1).await, 1);
        assert_eq!(case.proxy.pinned(), (0, 0));
        case.proxy.settles().await;
    }
}

#[tokio::test]
async fn an_abort_passes_those_who_wait_for_its_lock() {
    let deployment = support::replica_set(1).await;
    for max_pool_size in POOL_SIZES {
        let case = Case::new(&deployment, max_pool_size).await;
        let (transaction, updates) = case.locked().await;
        transaction.end("abortTransaction").await;
        all_succeed(updates).await;
        assert_eq!(case.value(0).await, i32::try_from(UPDATES).unwrap());
        case.proxy.settles().await;
    }
}

#[tokio::test]
async fn a_cursor_is_killed_whoever_waits_for_a_lock() {
    let deployment = support::replica_set(1).await;
    for max_pool_size in POOL_SIZES {
        let case = Case::new(&deployment, max_pool_size).await;
        let mut reader = case.client().await;
        let found = reader.command(&case.database, doc! { "find": "c", "batchSize": 2 }).await.unwrap();
        let id = found.get_document("cursor").unwrap().get_i64("id").unwrap();
        let (transaction, updates) = case.locked().await;
        let kill = reader.command(&case.database, doc! { "killCursors": "c", "cursors": [id] });
        let killed = timeout(PATIENCE, kill).await.expect("it passes").unwrap();
        assert_eq!(killed.get_array("cursorsKilled").unwrap().len(), 1, "{killed}");
        case.under_way(UPDATES).await;
        transaction.end("commitTransaction").await;
        all_succeed(updates).await;
    }
}

#[tokio::test]
async fn on_one_connection_reads_pass_an_open_transaction_and_writes_wait() {
    let deployment = support::replica_set(1).await;
    let case = Case::new(&deployment, 1).await;
    let mut transaction = Transaction::new(&case).await;
    transaction.run(increment(0)).await;
    // Of another document: nobody can know that before it is sent.
    let write = Sent::new(&case, increment(5)).await;
    case.proxy.waits(1).await;
    let mut reader = case.client().await;
    for command in [doc! { "find": "c" }, doc! { "count": "c" }, doc! { "distinct": "c", "key": "n" }] {
        let name = command.keys().next().unwrap().clone();
        let reply = timeout(PATIENCE, reader.command(&case.database, command)).await;
        assert!(reply.is_ok_and(|reply| reply.is_ok()), "{name} is served");
    }
    assert_eq!((case.proxy.waiting(), case.proxy.pool().unwrap().counts.in_use), (1, 0), "the write was not sent");
    assert_eq!(case.value(5).await, 0);
    transaction.run(increment(1)).await;
    transaction.end("commitTransaction").await;
    all_succeed(vec![write]).await;
    assert_eq!(case.value(5).await, 1);
}

/// More transactions at once than connections, each with statements between which all others have theirs.
#[tokio::test]
async fn many_open_transactions_all_commit() {
    const TRANSACTIONS: i32 = 20;
    let deployment = support::replica_set(1).await;
    let case = Case::new(&deployment, 2).await;
    let transactions = join_all((0..TRANSACTIONS).map(async |id| {
        let mut transaction = Transaction::new(&case).await;
        transaction.run(increment(id)).await;
        transaction
    }));
    let mut transactions = timeout(PATIENCE, transactions).await.expect("all begin");
    assert_eq!(case.proxy.pinned().1, 20, "all of them are open");
    // One for each lock, and each has to wait for its transaction.
    let updates = join_all((0..TRANSACTIONS).map(|id| Sent::new(&case, increment(id)))).await;
    case.under_way(updates.len()).await;
    for _ in 0..3 {
        join_all(transactions.iter_mut().zip(0..).map(async |(transaction, id)| {
            transaction.run(doc! { "find": "c", "filter": { "_id": id } }).await;
            transaction.run(increment(id)).await;
        }))
        .await;
    }
    join_all(transactions.into_iter().map(|transaction| transaction.end("commitTransaction"))).await;
    all_succeed(updates).await;
    for id in 0..TRANSACTIONS {
        assert_eq!(case.value(id).await, 5, "document {id}");
    }
    assert_eq!(case.proxy.pinned(), (0, 0));
    case.proxy.settles().await;
}

/// Otherwise transactions that overlap would keep writes from outside waiting for ever.
#[tokio::test]
async fn on_one_connection_transactions_go_one_after_the_other_with_writes_between_them() {
    const TRANSACTIONS: i32 = 20;
    let deployment = support::replica_set(1).await;
    let case = Case::new(&deployment, 1).await;
    let mut first = Transaction::new(&case).await;
    first.run(increment(0)).await;
    let write = Sent::new(&case, increment(0)).await;
    case.under_way(1).await;
    let others = join_all((1..TRANSACTIONS).map(async |id| {
        let mut transaction = Transaction::new(&case).await;
        transaction.run(increment(id)).await;
        transaction.run(increment(id)).await;
        transaction.end("commitTransaction").await;
    }));
    let ends = async {
        case.under_way(20).await;
        assert_eq!(case.proxy.pinned().1, 1, "none begins beside it");
        first.end("commitTransaction").await;
        all_succeed(vec![write]).await;
    };
    timeout(PATIENCE, join(others, ends)).await.expect("everybody has a turn");
    for id in 0..TRANSACTIONS {
        assert_eq!(case.value(id).await, 2, "document {id}");
    }
    assert_eq!(case.proxy.pinned(), (0, 0));
}

/// The queue is never empty when a transaction begins, so the next write is about to go when its lock is taken.
#[tokio::test]
async fn transactions_begin_and_commit_among_writers_that_never_pause() {
    const WRITERS: usize = 10;
    const COMMITS: i32 = 20;
    let deployment = support::replica_set(1).await;
    for max_pool_size in POOL_SIZES {
        let case = Case::new(&deployment, max_pool_size).await;
        let (done, written) = (Cell::new(false), Cell::new(0));
        let writers = join_all((0..WRITERS).map(async |_| {
            let mut client = case.client().await;
            while !done.get() {
                client.command(&case.database, increment(0)).await.unwrap();
                written.set(written.get() + 1);
            }
        }));
        let committer = async {
            let mut committed = 0;
            while committed < COMMITS {
                let mut transaction = Transaction::new(&case).await;
                let first = transaction.of_it(increment(0));
                match transaction.client.command(&case.database, first).await {
                    Ok(_) => {
                        transaction.run(increment(1)).await;
                        transaction.end("commitTransaction").await;
                        committed += 1;
                    }
                    // A writer was first; the server has aborted it.
                    Err(error) => assert!(error.has_label("TransientTransactionError"), "{error}"),
                }
            }
            done.set(true);
        };
        let all = async { tokio::join!(writers, committer) };
        timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("{max_pool_size}: {:?}", case.proxy.pool()));
        assert_eq!(case.value(0).await, COMMITS + written.get());
        assert_eq!(case.value(1).await, COMMITS);
        assert_eq!(case.proxy.pinned(), (0, 0));
        case.proxy.settles().await;
    }
}

#[tokio::test]
async fn an_open_transaction_goes_on_while_five_hundred_wait() {
    const WAITING: usize = 500;
    let deployment = support::replica_set(1).await;
    let case = Case::new(&deployment, 2).await;
    let mut transaction = Transaction::new(&case).await;
    transaction.run(increment(0)).await;
    let updates = Sent::many(&case, &increment(0), WAITING).await;
    case.under_way(WAITING).await;
    for id in 1..20 {
        transaction.run(increment(id)).await;
    }
    assert!(case.proxy.waiting() >= WAITING - 1, "nobody has gone on meanwhile");
    transaction.end("commitTransaction").await;
    all_succeed(updates).await;
    assert_eq!(case.value(0).await, 1 + i32::try_from(WAITING).unwrap());
}

/// Long reads that fill the pool leave the share of an open transaction free as well.
#[tokio::test]
async fn an_open_transaction_goes_on_while_reads_take_long() {
    let deployment = support::replica_set(1).await;
    for max_pool_size in [2, 10] {
        let case = Case::new(&deployment, max_pool_size).await;
        let mut transaction = Transaction::new(&case).await;
        transaction.run(increment(0)).await;
        let hold = case.hold_finds().await;
        let reads = Sent::many(&case, &doc! { "find": "held" }, UPDATES).await;
        hold.reaches(usize::try_from(max_pool_size).unwrap() - 1).await;
        case.under_way(UPDATES).await;
        transaction.run(increment(1)).await;
        transaction.end("commitTransaction").await;
        // Nobody needs it now.
        hold.reaches(usize::try_from(max_pool_size).unwrap()).await;
        hold.release().await;
        for reply in join_all(reads.into_iter().map(Sent::reply)).await {
            assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{reply}");
        }
        case.proxy.settles().await;
    }
}

#[tokio::test]
async fn an_idle_lane_costs_nothing() {
    let deployment = support::replica_set(1).await;
    for max_pool_size in POOL_SIZES {
        let case = Case::new(&deployment, max_pool_size).await;
        let connections = usize::try_from(max_pool_size).unwrap();
        // One that has been and gone leaves nothing behind.
        let mut transaction = Transaction::new(&case).await;
        transaction.run(increment(0)).await;
        transaction.end("commitTransaction").await;
        let hold = case.hold_finds().await;
        let reads = Sent::many(&case, &doc! { "find": "held" }, 2 * connections).await;
        hold.reaches(connections).await;
        case.proxy.waits(connections).await;
        hold.release().await;
        for reply in join_all(reads.into_iter().map(Sent::reply)).await {
            assert_eq!(reply.get_f64("ok").unwrap(), 1.0, "{reply}");
        }
    }
}
