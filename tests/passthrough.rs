//! The Rust driver in front of the proxy, unchanged but for its connection string.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex};

use bson::{Document, doc};
use futures_util::future::join_all;
use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use futures_util::{StreamExt as _, TryStreamExt as _};
use mongodb::event::EventHandler;
use mongodb::event::cmap::CmapEvent;
use mongodb::event::sdam::SdamEvent;
use mongodb::options::{ClientOptions, FullDocumentType, ReturnDocument};
use mongodb::{Client, IndexModel, ServerType, TopologyType};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::{MORE_TO_COME, Request};
use support::proxy::{Proxy, proxy};
use tokio::time::{Duration, timeout};

/// Longest wait for something that is expected.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a driver told of its pool and its servers.
#[derive(Default)]
struct Seen {
    pool_cleared: usize,
    connections_failed: usize,
    server_types: Vec<ServerType>,
    topology_types: Vec<TopologyType>,
}

/// A server, a proxy, a driver, and what the driver saw.
struct Through {
    deployment: Deployment,
    proxy: Proxy,
    client: Client,
    seen: Arc<Mutex<Seen>>,
}

impl Through {
    async fn replica_set(settings: &str) -> Self {
        Self::new(support::replica_set(1).await, settings).await
    }

    async fn new(deployment: Deployment, settings: &str) -> Self {
        let proxy = proxy(&deployment.uri(), settings).await;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut options = ClientOptions::parse(proxy.uri()).await.unwrap();
        let (pool, servers) = (seen.clone(), seen.clone());
        options.cmap_event_handler = Some(EventHandler::callback(move |event| {
            let mut seen = pool.lock().unwrap();
            match event {
                CmapEvent::PoolCleared(_) => seen.pool_cleared += 1,
                CmapEvent::ConnectionCheckoutFailed(_) => seen.connections_failed += 1,
                _ => {}
            }
        }));
        options.sdam_event_handler = Some(EventHandler::callback(move |event| {
            let mut seen = servers.lock().unwrap();
            match event {
                SdamEvent::ServerDescriptionChanged(event) => {
                    seen.server_types.push(event.new_description.server_type())
                }
                SdamEvent::TopologyDescriptionChanged(event) => {
                    seen.topology_types.push(event.new_description.topology_type());
                }
                _ => {}
            }
        }));
        let client = Client::with_options(options).unwrap();
        Self { deployment, proxy, client, seen }
    }

    fn collection(&self, name: &str) -> mongodb::Collection<Document> {
        self.client.database("passthrough").collection(name)
    }

    /// The driver took us for one mongos all the time, and lost nothing.
    fn was_calm(&self) {
        let seen = self.seen.lock().unwrap();
        assert_eq!((seen.pool_cleared, seen.connections_failed), (0, 0));
        assert!(seen.server_types.iter().all(|server| *server == ServerType::Mongos), "{:?}", seen.server_types);
        assert_eq!(seen.server_types.len(), 1, "it never changed: {:?}", seen.server_types);
        assert_eq!(seen.topology_types.last(), Some(&TopologyType::Sharded));
    }
}

#[tokio::test]
async fn the_rust_driver_connects_and_sees_a_mongos() {
    let through = Through::replica_set("").await;
    let hello = through.client.database("admin").run_command(doc! {"hello": 1}).await.unwrap();
    assert_eq!(hello.get_str("msg").unwrap(), "isdbgrid");
    let things = through.collection("things");
    things.insert_one(doc! {"_id": 1, "word": "one"}).await.unwrap();
    assert_eq!(things.find_one(doc! {"_id": 1}).await.unwrap(), Some(doc! {"_id": 1, "word": "one"}));
    through.was_calm();
}

#[tokio::test]
async fn a_standalone_is_seen_as_a_standalone() {
    let through = Through::new(support::standalone().await, "").await;
    let things = through.collection("things");
    things.insert_one(doc! {"_id": 1}).await.unwrap();
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 1);
    let seen = through.seen.lock().unwrap();
    assert_eq!((seen.pool_cleared, &*seen.server_types), (0, &[ServerType::Standalone][..]));
    assert_eq!(seen.topology_types.last(), Some(&TopologyType::Single));
}

#[tokio::test]
async fn documents_are_created_read_updated_and_deleted() {
    let through = Through::replica_set("max_pool_size = 2").await;
    let things = through.collection("things");
    let documents = (0..100).map(|id| doc! { "_id": id, "even": id % 2 == 0, "word": "x" });
    assert_eq!(things.insert_many(documents).await.unwrap().inserted_ids.len(), 100);
    let duplicate = things.insert_one(doc! { "_id": 5 }).await.unwrap_err();
    assert!(duplicate.to_string().contains("E11000"), "{duplicate}");
    let updated = things.update_many(doc! { "even": true }, doc! { "$set": { "word": "y" } }).await.unwrap();
    assert_eq!((updated.matched_count, updated.modified_count), (50, 50));
    let found = things.find_one_and_update(doc! { "_id": 7 }, doc! { "$inc": { "n": 1 } });
    let found = found.return_document(ReturnDocument::After).await.unwrap().unwrap();
    assert_eq!(found.get_i32("n").unwrap(), 1);
    things.replace_one(doc! { "_id": 200 }, doc! { "word": "new" }).upsert(true).await.unwrap();
    assert_eq!(things.delete_many(doc! { "even": true }).await.unwrap().deleted_count, 50);
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 51);
    assert_eq!(things.estimated_document_count().await.unwrap(), 51);
    assert_eq!(things.distinct("word", doc! {}).await.unwrap().len(), 2);
    things.create_index(IndexModel::builder().keys(doc! { "word": 1 }).build()).await.unwrap();
    assert_eq!(things.list_index_names().await.unwrap(), ["_id_", "word_1"]);
    let database = through.client.database("passthrough");
    assert_eq!(database.list_collection_names().await.unwrap(), ["things"]);
    assert!(through.client.list_database_names().await.unwrap().contains(&"passthrough".to_owned()));
    let groups =
        things.aggregate([doc! { "$group": { "_id": "$word", "n": { "$sum": 1 } } }, doc! { "$sort": { "_id": 1 } }]);
    let groups: Vec<Document> = groups.await.unwrap().try_collect().await.unwrap();
    assert_eq!(groups, [doc! { "_id": "new", "n": 1 }, doc! { "_id": "x", "n": 50 }]);
    things.drop().await.unwrap();
    assert!(database.list_collection_names().await.unwrap().is_empty());
    through.was_calm();
}

#[tokio::test]
async fn a_cursor_brings_ten_thousand_documents_in_a_hundred_batches() {
    let through = Through::replica_set("max_pool_size = 2").await;
    let things = through.collection("things");
    things.insert_many((0..10_000).map(|id| doc! { "_id": id })).await.unwrap();
    let get_more = "mongomux_commands_total{command=\"getMore\",outcome=\"completed\"}";
    let mut cursor = things.find(doc! {}).batch_size(100).sort(doc! { "_id": 1 }).await.unwrap();
    let mut expected = 0;
    while let Some(document) = cursor.try_next().await.unwrap() {
        assert_eq!(document.get_i32("_id").unwrap(), expected);
        expected += 1;
    }
    assert_eq!(expected, 10_000);
    assert!((99.0..=101.0).contains(&through.proxy.metric(get_more)), "{}", through.proxy.metric(get_more));
    // One that is dropped half way is killed by the driver.
    let mut cursor = things.aggregate([doc! { "$match": {} }]).batch_size(10).await.unwrap();
    cursor.try_next().await.unwrap();
    drop(cursor);
    let killed = "mongomux_commands_total{command=\"killCursors\",outcome=\"completed\"}";
    timeout(PATIENCE, async {
        while through.proxy.metric(killed) < 1.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("killCursors");
    assert_eq!(through.proxy.clusters()[0].pins.lock().unwrap().count().0, 0);
    through.was_calm();
}

#[tokio::test]
async fn transactions_commit_and_abort() {
    let through = Through::replica_set("max_pool_size = 2").await;
    let things = through.collection("things");
    through.client.database("passthrough").create_collection("things").await.unwrap();
    let mut session = through.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    things.insert_one(doc! { "_id": 1 }).session(&mut session).await.unwrap();
    things.insert_one(doc! { "_id": 2 }).session(&mut session).await.unwrap();
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 0);
    assert_eq!(things.count_documents(doc! {}).session(&mut session).await.unwrap(), 2);
    session.commit_transaction().await.unwrap();
    session.commit_transaction().await.unwrap();
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 2);
    session.start_transaction().await.unwrap();
    things.delete_many(doc! {}).session(&mut session).await.unwrap();
    session.abort_transaction().await.unwrap();
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 2);
    through.was_calm();
}

#[tokio::test]
async fn a_change_stream_tells_of_every_change_in_order() {
    let through = Through::replica_set("max_pool_size = 2").await;
    let things = through.collection("things");
    let mut stream = things.watch().full_document(FullDocumentType::UpdateLookup).await.unwrap();
    for id in 0..20 {
        things.insert_one(doc! { "_id": id }).await.unwrap();
    }
    things.update_one(doc! { "_id": 3 }, doc! { "$set": { "word": "new" } }).await.unwrap();
    for id in 0..20 {
        let event = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(event.full_document.unwrap().get_i32("_id").unwrap(), id);
    }
    let event = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(event.full_document, Some(doc! { "_id": 3, "word": "new" }));
    // From the token of that event on, by another stream.
    let token = stream.resume_token();
    drop(stream);
    things.insert_one(doc! { "_id": 100 }).await.unwrap();
    let mut resumed = things.watch().resume_after(token).await.unwrap();
    let event = timeout(PATIENCE, resumed.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(event.full_document, Some(doc! { "_id": 100 }));
    through.was_calm();
}

#[tokio::test]
async fn large_documents_pass() {
    let through = Through::replica_set("max_pool_size = 2").await;
    // In the small cache of our servers a retryable write of this size does not fit, with a proxy or without.
    let cache = doc! { "setParameter": 1, "wiredTigerEngineRuntimeConfig": "cache_size=1G" };
    support::client(&through.deployment.members()[0]).await.command("admin", cache).await.unwrap();
    let things = through.collection("things");
    let text: String = ('a'..='z').cycle().take(15_000_000).collect();
    things.insert_one(doc! { "_id": 1, "text": &text }).await.unwrap();
    let reads = join_all((0..3).map(|_| things.find_one(doc! { "_id": 1 }).into_future()));
    for found in reads.await {
        assert!(found.unwrap().unwrap().get_str("text").unwrap() == text, "the document differs");
    }
    through.was_calm();
}

#[tokio::test]
async fn files_pass() {
    let through = Through::replica_set("max_pool_size = 2").await;
    let bucket = through.client.database("passthrough").gridfs_bucket(None);
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|index| index.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut upload = bucket.open_upload_stream("file").await.unwrap();
    upload.write_all(&bytes).await.unwrap();
    upload.close().await.unwrap();
    let mut download = bucket.open_download_stream_by_name("file").await.unwrap();
    let mut back = Vec::with_capacity(bytes.len());
    download.read_to_end(&mut back).await.unwrap();
    assert!(back == bytes, "the file differs");
    through.was_calm();
}

/// A write without a reply is done before the next command of the same socket. The driver knows no such writes.
#[tokio::test]
async fn an_unacknowledged_write_is_read_back() {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), "max_pool_size = 2").await;
    let mut client = support::connect(proxy.address()).await;
    for id in 0..200 {
        let insert = doc! { "insert": "things", "documents": [{ "_id": id }], "writeConcern": { "w": 0 } };
        let silent = Request::new("passthrough", insert).flags(MORE_TO_COME);
        client.send(&silent).await.unwrap();
        // One that fails, without a word.
        client.send(&silent).await.unwrap();
        let found = client.command("passthrough", doc! { "find": "things", "filter": { "_id": id } }).await.unwrap();
        assert_eq!(support::first_batch(&found), [doc! { "_id": id }]);
    }
    // Without the flag a reply is waited for, whatever the write concern says.
    let insert = doc! { "insert": "things", "documents": [{ "_id": 1000 }], "writeConcern": { "w": 0 } };
    assert_eq!(client.command("passthrough", insert).await.unwrap().get_f64("ok").unwrap(), 1.0);
}

#[tokio::test]
async fn fifty_tasks_share_two_connections() {
    let through = Through::replica_set("max_pool_size = 2\nmin_pool_size = 2\nmax_idle_time_ms = 0").await;
    let tasks = (0..50).map(|task| {
        let things = through.collection("things");
        async move {
            for turn in 0..20 {
                let id = task * 1000 + turn;
                things.insert_one(doc! { "_id": id, "task": task }).await.unwrap();
                let found = things.find_one(doc! { "_id": id }).await.unwrap();
                assert_eq!(found, Some(doc! { "_id": id, "task": task }), "somebody else's reply");
                things.update_one(doc! { "_id": id }, doc! { "$inc": { "n": 1 } }).await.unwrap();
            }
            let mine: Vec<Document> =
                things.find(doc! { "task": task }).batch_size(7).await.unwrap().try_collect().await.unwrap();
            assert!(mine.iter().all(|found| found.get_i32("n").unwrap() == 1));
            mine.len()
        }
    });
    let counts = timeout(PATIENCE, join_all(tasks)).await.expect("fifty tasks get through");
    assert_eq!(counts, [20; 50]);
    let [server] = through.deployment.members() else { panic!("one server") };
    assert_eq!(support::connections(server, "mongomux").await, 2);
    through.was_calm();
}
