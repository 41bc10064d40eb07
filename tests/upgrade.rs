//! One process takes over from another while clients work: none of them notices.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bson::{Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::wire_client::WireClient;
use support::hold::eventually;
use support::ledger::{self, Load};
use support::program::Program;
use support::succession::Place;
use support::{connect, first_batch, new_lsid, next_batch};
use tokio::net::UnixStream;
use tokio::time::Duration;

/// How often something was done, and whether it is to go on.
#[derive(Default)]
struct Work {
    over: AtomicBool,
    cursors: AtomicUsize,
    transactions: AtomicUsize,
    connects: AtomicUsize,
}

impl Work {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Cursors in many batches, each asked for over another socket than the one before.
    async fn cursors(&self, address: &Address) {
        let mut sockets = [connect(address).await, connect(address).await, connect(address).await];
        while self.goes_on() {
            let find = doc! { "find": "many", "batchSize": 2, "sort": { "_id": 1 } };
            let reply = sockets[0].command("upgrade", find).await.expect("a first batch");
            let mut documents = first_batch(&reply);
            let mut id = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
            let mut turn = 0;
            while id != 0 {
                turn += 1;
                tokio::time::sleep(Duration::from_millis(15)).await;
                let more = doc! { "getMore": id, "collection": "many", "batchSize": 2 };
                let reply = sockets[turn % 3].command("upgrade", more).await.expect("a next batch");
                documents.extend(next_batch(&reply));
                id = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
            }
            let ids: Vec<i32> = documents.iter().map(|document| document.get_i32("_id").unwrap()).collect();
            assert_eq!(ids, (0..40).collect::<Vec<_>>());
            self.cursors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Transactions in several statements, likewise.
    async fn transactions(&self, address: &Address) {
        let mut sockets = [connect(address).await, connect(address).await, connect(address).await];
        let lsid = new_lsid();
        for number in 1_i64.. {
            if !self.goes_on() {
                return;
            }
            let within = |mut command: Document| {
                command.extend(doc! { "lsid": &lsid, "txnNumber": number, "autocommit": false });
                command
            };
            for statement in 0..6_usize {
                let mut insert = doc! { "insert": "moved", "documents": [{ "n": number }] };
                if statement == 0 {
                    insert.insert("startTransaction", true);
                }
                sockets[statement % 3].command("upgrade", within(insert)).await.expect("a statement");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            sockets[1].command("admin", within(doc! { "commitTransaction": 1 })).await.expect("a commit");
            self.transactions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sockets that are opened all the time.
    async fn connects(&self, address: &Address) {
        while self.goes_on() {
            let mut client = WireClient::connect_as(address, "newcomer").await.expect("a connect");
            client.command("admin", doc! { "ping": 1 }).await.expect("an answer");
            self.connects.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A change stream sees every insert of transactions.
    async fn stream(&self, address: &Address) -> usize {
        let mut client = connect(address).await;
        let watch = doc! {
            "aggregate": "moved", "pipeline": [{ "$changeStream": {} }], "cursor": {},
        };
        let reply = client.command("upgrade", watch).await.expect("a change stream");
        let id = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
        let mut seen = 0;
        loop {
            let last = !self.goes_on();
            let more = doc! { "getMore": id, "collection": "moved", "maxTimeMS": 700 };
            let batch = next_batch(&client.command("upgrade", more).await.expect("the stream goes on"));
            seen += batch.len();
            if last && batch.is_empty() {
                return seen;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_that_the_program_is_replaced_time_and_again() {
    let deployment = support::replica_set(3).await;
    let primary = deployment.await_primary().await.unwrap();
    let mut direct = support::client(&deployment.members()[primary]).await;
    let documents: Vec<Document> = (0..40).map(|id| doc! { "_id": id }).collect();
    let concern = doc! { "w": 3 };
    direct
        .command("upgrade", doc! { "insert": "many", "documents": documents, "writeConcern": &concern })
        .await
        .unwrap();
    direct.command("upgrade", doc! { "create": "moved", "writeConcern": concern }).await.unwrap();
    let mut place = Place::new(&deployment.uri(), "drain_timeout_ms = 8_000");
    let (mut program, address) = place.first().await;
    let work = Work::default();
    let load = Load { drivers: 2, workers: 6, retrying: 4, plain: 8, probes: 2, ..Load::default() };
    let books = ledger::keep(&address, &load, async |ledger| {
        let replaced = async {
            ledger.progress(30).await;
            for _ in 0..3 {
                program = place.next(&mut program).await;
                ledger.progress(30).await;
            }
            work.over.store(true, Ordering::Relaxed);
        };
        let (_, _, _, _, seen) = tokio::join!(
            replaced,
            work.cursors(&address),
            work.transactions(&address),
            work.connects(&address),
            work.stream(&address)
        );
        assert_eq!(seen, 6 * work.transactions.load(Ordering::Relaxed));
    })
    .await;
    let [cursors, transactions, connects] =
        [&work.cursors, &work.transactions, &work.connects].map(|count| count.load(Ordering::Relaxed));
    assert!(cursors > 3 && transactions > 3 && connects > 30, "{cursors} {transactions} {connects}");
    assert_eq!(books.notes.errors, Vec::<String>::new());
    let wrong = books.audit(&deployment.uri()).await;
    assert!(wrong.is_empty() && books.unknown() == (0, 0), "{wrong:#?} {:?}", books.unknown());
    let find = doc! { "aggregate": "moved", "pipeline": [{ "$count": "n" }], "cursor": {} };
    let counted = first_batch(&direct.command("upgrade", find).await.unwrap());
    assert_eq!(counted[0].get_i32("n").unwrap(), 6 * i32::try_from(transactions).unwrap());
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn a_socket_goes_on_in_the_next_process_with_all_that_is_known_of_it() {
    let deployment = support::standalone().await;
    let mut place = Place::new(&deployment.uri(), "drain_timeout_ms = 5_000");
    let (mut program, address) = place.first().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(connect(&address).await);
    }
    let mut program = place.next(&mut program).await;
    for client in &mut clients {
        client.command("admin", doc! { "ping": 1 }).await.expect("it did not notice");
    }
    let page = support::http(&place.admin(), "GET", "/metrics", "").await;
    assert!(page.contains("mongomux_client_connections_opened_total 20\n"), "{page}");
    drop(clients);
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

#[tokio::test]
async fn who_does_not_get_ready_changes_nothing() {
    let deployment = support::standalone().await;
    let mut place = Place::new(&deployment.uri(), "drain_timeout_ms = 5_000");
    let (mut program, address) = place.first().await;
    assert_eq!(std::fs::metadata(place.socket()).unwrap().mode() & 0o777, 0o600);
    let mut client = connect(&address).await;
    let (code, log, _) = place.start_with("max_pool_size = 0", &place.uri).ended().await;
    assert_eq!(code, 2, "{log}");
    // One whose certificate is missing has the sockets already.
    let missing = "drain_timeout_ms = 5_000\ntls = true\ntls_certificate_key_file = \"/no/such/file\"\n";
    let (code, log, _) = place.start_with(missing, &place.uri).ended().await;
    assert_eq!(code, 2, "{log}");
    // One that finds no server is killed before it gives up.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let waiting = place.start_with(&place.settings, &format!("mongodb://{closed}/"));
    waiting.line("admin port").await;
    drop(waiting);
    // One that is told to end meanwhile does not take over first.
    let mut ends = place.start_with(&place.settings, &format!("mongodb://{closed}/"));
    ends.line("admin port").await;
    ends.terminate();
    let (code, log, _) = ends.ended().await;
    assert!(code == 0 && log.contains("told to end before it has begun"), "{code}: {log}");
    // One that lives gives up in the end.
    let (code, log, _) = place.start_with(&place.settings, &format!("mongodb://{closed}/")).ended().await;
    assert!(code == 1 && log.contains("it reaches no server that it can use, and this one does"), "{code}: {log}");
    eventually("all are given up", async || program.log().matches("does not take over").count() == 4).await;
    client.command("admin", doc! { "ping": 1 }).await.expect("it is served as before");
    connect(&address).await.command("admin", doc! { "ping": 1 }).await.expect("so are new ones");
    // A stranger to the protocol.
    drop(UnixStream::connect(place.socket()).await.unwrap());
    let mut next = place.next(&mut program).await;
    client.command("admin", doc! { "ping": 1 }).await.expect("it did not notice");
    let ready = support::http(&place.admin(), "GET", "/readyz", "").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    drop(client);
    next.terminate();
    assert_eq!(next.ended().await.0, 0);
    assert!(!place.socket().exists());
}

#[tokio::test]
async fn a_unix_listener_keeps_its_file() {
    let deployment = support::standalone().await;
    let mut place = Place::new(&deployment.uri(), "drain_timeout_ms = 5_000");
    let path = place.path().join("clients.sock");
    place.listen = format!("unix:{}", path.display());
    let (mut program, address) = place.first().await;
    let mut client = connect(&address).await;
    let mut next = place.next(&mut program).await;
    client.command("admin", doc! { "ping": 1 }).await.expect("it did not notice");
    connect(&address).await.command("admin", doc! { "ping": 1 }).await.expect("the file is there");
    let mut last = place.next(&mut next).await;
    drop(client);
    last.terminate();
    assert_eq!(last.ended().await.0, 0);
    assert!(!path.exists());
}

/// Connections of programs like ours that a server has, monitors left aside.
async fn connections(direct: &mut WireClient) -> usize {
    let look = doc! { "$currentOp": { "allUsers": true, "idleConnections": true } };
    let ours = doc! { "$match": { "clientMetadata.driver.name": "mongomux" } };
    let ask = doc! { "aggregate": 1, "pipeline": [look, ours], "cursor": { "batchSize": 1_000 } };
    first_batch(&direct.command("admin", ask).await.unwrap()).len()
}

fn cursor_of(reply: &Document) -> i64 {
    reply.get_document("cursor").unwrap().get_i64("id").unwrap()
}

/// Who has a transaction open stays where it is, and the old process with it.
#[tokio::test]
async fn each_process_goes_on_with_what_the_other_began() {
    let deployment = support::replica_set(3).await;
    let primary = deployment.await_primary().await.unwrap();
    let mut direct = support::client(&deployment.members()[primary]).await;
    let concern = doc! { "w": 3 };
    let documents: Vec<Document> = (0..9).map(|id| doc! { "_id": id }).collect();
    let many = doc! { "insert": "many", "documents": documents, "writeConcern": &concern };
    direct.command("upgrade", many).await.unwrap();
    direct.command("upgrade", doc! { "create": "moved", "writeConcern": concern }).await.unwrap();

    let mut place = Place::new(&deployment.uri(), "drain_timeout_ms = 20_000\nmin_pool_size = 3\nmax_pool_size = 20");
    let (mut program, address) = place.first().await;
    let (mut stays, mut at_old) = (connect(&address).await, connect(&address).await);
    // Both processes use all that they may at one time or another.
    let mut crowd = Vec::new();
    for _ in 0..15 {
        crowd.push(connect(&address).await);
    }
    let hold = support::hold::hold_finds(&deployment.members()[primary], "upgrade.many").await;
    let asked = crowd.iter_mut().map(|client| client.command("upgrade", doc! { "find": "many" }));
    let (asked, ()) = tokio::join!(futures_util::future::join_all(asked), async {
        hold.reaches(15).await;
        hold.release().await;
    });
    asked.into_iter().for_each(|reply| assert_eq!(first_batch(&reply.unwrap()).len(), 9));
    assert!(connections(&mut direct).await >= 15);

    let lsid = new_lsid();
    let within = |mut command: Document, number: i64| {
        command.extend(doc! { "lsid": &lsid, "txnNumber": number, "autocommit": false });
        command
    };
    let other = new_lsid();
    let mut keeps = doc! { "insert": "moved", "documents": [{ "_id": "keeps" }], "startTransaction": true };
    keeps.extend(doc! { "lsid": &other, "txnNumber": 1_i64, "autocommit": false });
    stays.command("upgrade", keeps).await.unwrap();
    let begins = doc! { "insert": "moved", "documents": [{ "_id": 1 }], "startTransaction": true };
    at_old.command("upgrade", within(begins, 1)).await.unwrap();
    // On a secondary: without what is known, nobody would find it there.
    let elsewhere = doc! { "find": "many", "batchSize": 2, "$readPreference": { "mode": "secondary" } };
    let mut cursors = Vec::new();
    for _ in 0..3 {
        cursors.push(cursor_of(&at_old.command("upgrade", elsewhere.clone()).await.unwrap()));
    }

    let mut next = place.start();
    next.line("took over").await;
    let mut at_new = connect(&address).await;
    let more = |id: i64, size: i32| doc! { "getMore": id, "collection": "many", "batchSize": size };
    let batch = at_new.command("upgrade", more(cursors[0], 3)).await.expect("a cursor of the old one");
    assert_eq!(next_batch(&batch).len(), 3);
    let kill = doc! { "killCursors": "many", "cursors": [cursors[1], cursors[2], 77_i64] };
    let killed = at_new.command("upgrade", kill).await.unwrap();
    let listed = |name: &str| killed.get_array(name).unwrap().len();
    assert_eq!([listed("cursorsKilled"), listed("cursorsNotFound")], [2, 1], "{killed}");
    let made = cursor_of(&at_new.command("upgrade", elsewhere).await.unwrap());
    let batch = stays.command("upgrade", more(made, 100)).await.expect("a cursor of the new one");
    assert_eq!(next_batch(&batch).len(), 7);
    let insert = doc! { "insert": "moved", "documents": [{ "_id": 2 }] };
    at_new.command("upgrade", within(insert, 1)).await.expect("a transaction of the old one");
    eventually("the connections that the old one does not need are closed", async || {
        // Three of the new one, and the one that each of the old one's clients may still use.
        connections(&mut direct).await <= 3 + 2
    })
    .await;
    assert!(!program.log().contains("drained"), "the old one is there all the time");

    stays
        .command("admin", doc! { "commitTransaction": 1, "lsid": &other, "txnNumber": 1_i64, "autocommit": false })
        .await
        .unwrap();
    assert_eq!(program.ended().await.0, 0);
    let insert = doc! { "insert": "moved", "documents": [{ "_id": 3 }] };
    at_new.command("upgrade", within(insert, 1)).await.expect("nobody has aborted it");
    at_new.command("admin", within(doc! { "commitTransaction": 1 }, 1)).await.unwrap();
    let batch = at_new.command("upgrade", more(cursors[0], 100)).await.expect("it is known for good");
    assert_eq!(next_batch(&batch).len(), 4);
    for client in [&mut stays, &mut at_old].into_iter().chain(&mut crowd) {
        client.command("admin", doc! { "ping": 1 }).await.expect("it did not notice");
    }
    let found = at_new.command("upgrade", doc! { "count": "moved" }).await.unwrap();
    assert_eq!(found.get_i32("n").unwrap(), 4);
    drop((stays, at_old, at_new, crowd));
    next.terminate();
    assert_eq!(next.ended().await.0, 0);
}

#[tokio::test]
async fn where_the_socket_cannot_be_one_line_says_why() {
    let nowhere = tempfile::tempdir().unwrap().path().join("gone/upgrade.sock");
    let mut program = Program::run(&["--upgrade-socket", nowhere.to_str().unwrap(), "mongodb://127.0.0.1:1/"]);
    let (code, log, _) = program.ended().await;
    let said = format!("mongomux: cannot listen on unix:{}: No such file or directory", nowhere.display());
    assert!(code == 1 && log.lines().any(|line| line.starts_with(&said)), "{code}: {log}");
    assert!(!log.contains("ERROR"), "nothing else is wrong: {log}");
}
