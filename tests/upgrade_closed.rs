//! One process takes over from another, and clients' sockets cannot be handed over: they are closed while they are idle.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]
#![allow(clippy::print_stdout, reason = "what was counted is told")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bson::{Document, doc};
use futures_util::future::join_all;
use mongomux::config::Address;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::sandbox::wire_client::WireError;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::certificates::{Authority, TlsClient, Wish};
use support::hold::eventually;
use support::log_in::logged_in;
use support::succession::Place;
use support::{first_batch, new_lsid, next_batch};
use tokio::time::Duration;

const REPLACED: usize = 4;

/// Clients that go on until they are told to stop, and what they have seen.
#[derive(Default)]
struct Work {
    over: AtomicBool,
    answered: AtomicUsize,
    /// Sent, and the socket ended without a reply.
    crossed: AtomicUsize,
}

impl Work {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// As many more answers as `count`.
    async fn progress(&self, count: usize) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("answers", async || self.answered.load(Ordering::Relaxed) >= before + count).await;
    }

    /// Increments that nobody may send again, over a socket that is opened anew when it was closed. Returns how many were
    /// acknowledged.
    async fn increments(&self, name: usize, tls: &TlsClient, address: &Address) -> i32 {
        let mut random = SmallRng::seed_from_u64(name as u64);
        let number = i32::try_from(name).unwrap();
        let mut acknowledged = 0;
        while self.goes_on() {
            let mut client = tls.greeted(address).await.expect("an open door");
            while self.goes_on() {
                tokio::time::sleep(Duration::from_micros(random.random_range(0..6_000))).await;
                let update = doc! { "q": { "_id": number }, "u": { "$inc": { "n": 1 } }, "upsert": true };
                match client.command("closed", doc! { "update": "counters", "updates": [update] }).await {
                    Ok(_) => {
                        acknowledged += 1;
                        self.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(WireError::Closed { unread_bytes: 0 }) => {
                        self.crossed.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Err(error) => panic!("not closed gently: {error}"),
                }
            }
        }
        acknowledged
    }

    /// What drivers send again. Returns how many documents were inserted.
    async fn driver(&self, name: usize, uri: &str) -> i32 {
        let client = mongodb::Client::with_uri_str(uri).await.unwrap();
        let documents = client.database("closed").collection::<Document>("documents");
        let mut inserted = 0;
        while self.goes_on() {
            documents
                .insert_one(doc! { "by": i64::try_from(name).expect("a few"), "n": inserted })
                .await
                .expect("an insert");
            inserted += 1;
            let found = documents
                .find_one(doc! { "by": i64::try_from(name).expect("a few"), "n": inserted - 1 })
                .await
                .expect("a find");
            assert!(found.is_some(), "{inserted} of {name}");
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        inserted
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_that_crosses_the_close_of_a_tls_socket_is_executed_and_drivers_go_on() {
    let deployment = support::replica_set(1).await;
    let authority = Authority::new();
    let certificate = authority.sign("own.pem", &Wish::default());
    let settings =
        format!("drain_timeout_ms = 6_000\ntls = true\ntls_certificate_key_file = \"{}\"\n", certificate.display());
    let mut place = Place::new(&deployment.uri(), &settings);
    let (mut program, address) = place.first().await;
    let tls = TlsClient::new(&authority);
    let work = Work::default();
    let driver_uri = format!("mongodb://{address}/?tls=true&tlsCAFile={}", authority.file().display());
    let replaced = async {
        for _ in 0..REPLACED {
            work.progress(100).await;
            program = place.next(&mut program).await;
        }
        work.progress(100).await;
        work.over.store(true, Ordering::Relaxed);
    };
    let raw = join_all((0..40).map(|name| work.increments(name, &tls, &address)));
    let drivers = join_all((0..4).map(|name| work.driver(name, &driver_uri)));
    let (acknowledged, inserted, ()) = tokio::join!(raw, drivers, replaced);

    let crossed = work.crossed.load(Ordering::Relaxed);
    println!("{} requests were answered, {crossed} crossed the close", acknowledged.iter().sum::<i32>());
    assert!(crossed >= 20 * REPLACED, "{crossed}");
    let mut direct = support::client(&deployment.members()[0]).await;
    let counters = doc! { "find": "counters", "sort": { "_id": 1 }, "batchSize": 1_000 };
    let counters = first_batch(&direct.command("closed", counters).await.unwrap());
    let counted: Vec<i32> = counters.iter().map(|counter| counter.get_i32("n").unwrap()).collect();
    assert_eq!(counted, acknowledged, "each is answered, or not executed");
    let documents = direct.command("closed", doc! { "count": "documents" }).await.unwrap();
    assert_eq!(documents.get_i32("n").unwrap(), inserted.iter().sum::<i32>());
    program.terminate();
    assert_eq!(program.ended().await.0, 0);
}

const PASSWORD: &str = "correct-horse_7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_logged_in_does_so_again() {
    let options = DeploymentOptions { auth: true, ..DeploymentOptions::for_tests(1) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    support::first_user(&deployment, "root", PASSWORD).await;
    let member = deployment.members()[0].address();
    let mut root = logged_in(&member, "admin.root", PASSWORD).await;
    let documents: Vec<Document> = (0..9).map(|id| doc! { "_id": id }).collect();
    root.command("closed", doc! { "insert": "many", "documents": documents }).await;
    root.command("closed", doc! { "create": "moved" }).await;

    let mut place =
        Place::new(&format!("mongodb://root:{PASSWORD}@{member}/?replicaSet=mongomux&authSource=admin"), "");
    let users = place.path().join("users.toml");
    let text =
        "[[user]]\nname = \"app\"\npassword = \"correct-horse_7\"\nroles = [{ role = \"root\", db = \"admin\" }]\n";
    std::fs::write(&users, text).unwrap();
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).unwrap();
    place.settings = format!("drain_timeout_ms = 4_000\nauth = \"users\"\nusers_file = \"{}\"\n", users.display());
    let (mut program, address) = place.first().await;
    let work = Work::default();
    let uri = format!("mongodb://app:{PASSWORD}@{address}/?authSource=admin");
    let replaced = async {
        let mut stays = logged_in(&address, "admin.app", PASSWORD).await;
        let mut idle = logged_in(&address, "admin.app", PASSWORD).await;
        work.progress(20).await;
        let lsid = new_lsid();
        let within = |mut command: Document| {
            command.extend(doc! { "lsid": &lsid, "txnNumber": 1_i64, "autocommit": false });
            command
        };
        let insert = |id: i32| doc! { "insert": "moved", "documents": [{ "_id": id }] };
        let mut begin = within(insert(1));
        begin.insert("startTransaction", true);
        assert_eq!(stays.command("closed", begin).await.get_f64("ok").unwrap(), 1.0);
        let found = stays.command("closed", doc! { "find": "many", "batchSize": 2 }).await;
        let id = found.get_document("cursor").unwrap().get_i64("id").unwrap();

        let mut next = place.start();
        next.line("took over").await;
        let mut again = logged_in(&address, "admin.app", PASSWORD).await;
        let more = again.command("closed", doc! { "getMore": id, "collection": "many" }).await;
        assert_eq!(next_batch(&more).len(), 7, "{more}");
        let inserted = again.command("closed", within(insert(2))).await;
        assert_eq!(inserted.get_f64("ok").unwrap(), 1.0, "{inserted}");
        assert_eq!(idle.answer().await, None, "an idle socket is closed");
        let committed = stays.command("admin", within(doc! { "commitTransaction": 1 })).await;
        assert_eq!(committed.get_f64("ok").unwrap(), 1.0, "{committed}");
        assert_eq!(stays.answer().await, None, "then it is closed as well");
        let (code, log, _) = program.ended().await;
        assert_eq!(code, 0, "{log}");
        let count = again.command("closed", doc! { "count": "moved" }).await;
        assert_eq!(count.get_i32("n").unwrap(), 2, "{count}");

        work.progress(20).await;
        let last = place.next(&mut next).await;
        work.progress(20).await;
        work.over.store(true, Ordering::Relaxed);
        assert_eq!(again.answer().await, None);
        last
    };
    let (inserted, mut last) = tokio::join!(join_all((0..3).map(|name| work.driver(name, &uri))), replaced);
    last.terminate();
    assert_eq!(last.ended().await.0, 0);
    let documents = root.command("closed", doc! { "count": "documents" }).await;
    assert_eq!(documents.get_i32("n").unwrap(), inserted.iter().sum::<i32>());
}
