//! More change streams than a pool could hold: each sees every event once and in order, as soon as it would directly, and
//! their server is asked only when there may be something.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]
#![allow(clippy::print_stdout, reason = "tells the seed")]

mod support;

use bson::{Bson, Document, doc};
use futures_util::future::join_all;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::{Request, WireClient};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::hold::eventually;
use support::proxy::{Proxy, proxy};
use support::{PATIENCE, client, connect, fail_point, first_batch, next_batch};
use tokio::time::{Duration, Instant, timeout};

const DATABASE: &str = "streams";

/// Longer than any test.
const LONG_MS: i32 = 600_000;

/// A pool that the streams of each test are a crowd for.
const SMALL: &str = "max_pool_size = 4\nmin_pool_size = 4";

async fn pair(settings: &str) -> (Deployment, Proxy) {
    let deployment = support::replica_set(1).await;
    let proxy = proxy(&deployment.uri(), settings).await;
    (deployment, proxy)
}

/// A change stream over a socket of its own.
struct Stream {
    client: WireClient,
    collection: String,
    id: i64,
    /// Of the reply that came last.
    token: String,
}

impl Stream {
    async fn open(proxy: &Proxy, collection: &str) -> Self {
        let mut client = connect(proxy.address()).await;
        let watch = doc! { "aggregate": collection, "pipeline": [{ "$changeStream": {} }], "cursor": {} };
        let reply = client.command(DATABASE, watch).await.unwrap();
        assert_eq!(first_batch(&reply), [], "opened before anything is written");
        let id = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
        let mut stream = Self { client, collection: collection.to_owned(), id, token: String::new() };
        stream.token = token(&reply);
        stream
    }

    async fn open_many(proxy: &Proxy, collection: &str, count: usize) -> Vec<Self> {
        join_all((0..count).map(|_| Self::open(proxy, collection))).await
    }

    fn get_more(&self, wait_ms: Option<i32>) -> Request {
        let mut command = doc! { "getMore": self.id, "collection": &self.collection };
        if let Some(wait) = wait_ms {
            command.insert("maxTimeMS", wait);
        }
        Request::new(DATABASE, command)
    }

    /// Asks, and hears nothing yet.
    async fn ask(&mut self, wait_ms: i32) -> i32 {
        let request = self.get_more(Some(wait_ms));
        self.client.send(&request).await.unwrap()
    }

    async fn answer(&mut self, request: i32) -> Document {
        let reply = timeout(PATIENCE, self.client.receive(request)).await.expect("an answer").unwrap();
        reply.document().unwrap()
    }

    /// The numbers of the documents of the next batch.
    async fn next(&mut self, wait_ms: Option<i32>) -> Vec<i32> {
        let request = self.get_more(wait_ms);
        let reply = timeout(PATIENCE, self.client.exchange(&request)).await.expect("an answer").unwrap();
        let reply = reply.document().unwrap();
        self.token = token(&reply);
        numbers(&reply)
    }
}

fn token(reply: &Document) -> String {
    let cursor = reply.get_document("cursor").unwrap_or_else(|_| panic!("no cursor in {reply}"));
    cursor.get_document("postBatchResumeToken").unwrap().get_str("_data").unwrap().to_owned()
}

fn numbers(reply: &Document) -> Vec<i32> {
    next_batch(reply).iter().map(|event| event.get_document("documentKey").unwrap().get_i32("_id").unwrap()).collect()
}

async fn insert(client: &mut WireClient, collection: &str, number: i32) {
    let insert = doc! { "insert": collection, "documents": [{ "_id": number }], "writeConcern": { "w": 1 } };
    client.command(DATABASE, insert).await.unwrap();
}

async fn create(server: &Mongod, collections: &[&str]) {
    let mut client = client(server).await;
    for collection in collections {
        client.command(DATABASE, doc! { "create": *collection }).await.unwrap();
    }
}

/// How often a server has run a command.
async fn count(client: &mut WireClient, command: &str) -> i64 {
    let status = client.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let commands = status.get_document("metrics").unwrap().get_document("commands").unwrap();
    match commands.get_document(command).unwrap().get("total") {
        Some(Bson::Int32(count)) => (*count).into(),
        Some(Bson::Int64(count)) => *count,
        other => panic!("{other:?}"),
    }
}

async fn open_cursors(client: &mut WireClient) -> i64 {
    let status = client.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let open = status.get_document("metrics").unwrap().get_document("cursor").unwrap().get_document("open").unwrap();
    open.get_i64("total").unwrap()
}

fn parked(proxy: &Proxy) -> usize {
    proxy.clusters()[0].servers().iter().map(|server| server.long_polls.parked()).sum()
}

async fn await_parked(proxy: &Proxy, count: usize) {
    eventually("all streams wait in the proxy", async || parked(proxy) == count).await;
}

#[tokio::test]
async fn every_stream_of_a_crowd_sees_every_event_once_and_in_order() {
    const STREAMS: usize = 24;
    const WRITES: usize = 300;
    let seed = std::env::var("MONGOMUX_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("MONGOMUX_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (deployment, proxy) = pair("max_pool_size = 3\nmin_pool_size = 3").await;
    let collections = ["a", "b", "c"];
    create(&deployment.members()[0], &collections).await;
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        streams.push(Stream::open(&proxy, collections[number % collections.len()]).await);
    }
    let mut writers = [connect(proxy.address()).await, client(&deployment.members()[0]).await];
    let mut wanted = vec![Vec::new(); collections.len()];
    let mut plan = Vec::new();
    for number in 0..WRITES {
        let (which, writer) = (random.random_range(0..collections.len()), random.random_range(0..2));
        let number = i32::try_from(number).unwrap();
        wanted[which].push(number);
        plan.push((which, writer, number, Duration::from_micros(random.random_range(0..4_000))));
    }
    let waits: Vec<i32> = (0..STREAMS).map(|_| [1, 20, 300, LONG_MS][random.random_range(0..4)]).collect();
    let write = async {
        for (which, writer, number, pause) in plan {
            insert(&mut writers[writer], collections[which], number).await;
            tokio::time::sleep(pause).await;
        }
    };
    let read = join_all(streams.iter_mut().zip(waits).enumerate().map(async |(number, (stream, wait))| {
        let wanted = wanted[number % collections.len()].len();
        let mut seen = Vec::new();
        while seen.len() < wanted {
            seen.extend(stream.next(Some(wait)).await);
        }
        seen
    }));
    let ((), seen) = timeout(PATIENCE * 2, async { tokio::join!(write, read) }).await.expect("every event comes");
    for (number, seen) in seen.into_iter().enumerate() {
        assert_eq!(seen, wanted[number % collections.len()], "stream {number}");
    }
}

#[tokio::test]
async fn a_crowd_asks_only_when_something_was_written() {
    const STREAMS: usize = 20;
    let (deployment, proxy) = pair(SMALL).await;
    create(&deployment.members()[0], &["c"]).await;
    let mut streams = Stream::open_many(&proxy, "c", STREAMS).await;
    let requests = join_all(streams.iter_mut().map(|stream| stream.ask(LONG_MS))).await;
    await_parked(&proxy, STREAMS).await;
    let mut direct = client(&deployment.members()[0]).await;
    let (began, before) = (Instant::now(), count(&mut direct, "getMore").await);
    // Reads tell of no writes, however many there are.
    let mut finder = connect(proxy.address()).await;
    while began.elapsed() < Duration::from_secs(3) {
        finder.command(DATABASE, doc! { "find": "c" }).await.unwrap();
    }
    let asked = count(&mut direct, "getMore").await - before;
    // Once a second each, and once more for what the server writes to its own oplog.
    let most = i64::try_from(STREAMS).unwrap() * (i64::try_from(began.elapsed().as_secs()).unwrap() + 2);
    assert!(asked <= most, "asked {asked} times, {most} were due");
    // Nobody asks the server anything: the proxy looks itself.
    let before = count(&mut direct, "ping").await;
    eventually("pings", async || count(&mut direct, "ping").await - before >= 10).await;

    // Past the proxy: nobody tells it.
    insert(&mut direct, "c", 7).await;
    let replies = join_all(streams.iter_mut().zip(requests).map(async |(stream, id)| stream.answer(id).await)).await;
    assert!(replies.iter().all(|reply| numbers(reply) == [7]), "{replies:?}");
}

#[tokio::test]
async fn an_empty_batch_comes_in_its_time_and_tells_how_far_the_stream_has_come() {
    let (deployment, proxy) = pair(SMALL).await;
    create(&deployment.members()[0], &["c", "other"]).await;
    let mut streams = Stream::open_many(&proxy, "c", 6).await;
    let mut writer = connect(proxy.address()).await;
    for round in 0..3 {
        for wait in [Some(200), None] {
            let before: Vec<String> = streams.iter().map(|stream| stream.token.clone()).collect();
            // Two, as a new stream begins at the moment that the next write takes.
            for number in 0..2 {
                insert(&mut writer, "other", 4 * round + 2 * i32::from(wait.is_some()) + number).await;
            }
            let began = Instant::now();
            let batches = join_all(streams.iter_mut().map(|stream| stream.next(wait))).await;
            assert!(batches.iter().all(Vec::is_empty), "{batches:?}");
            let least = Duration::from_millis(wait.map_or(990, |_| 190));
            assert!(began.elapsed() >= least, "{wait:?}: after {:?}", began.elapsed());
            for (stream, before) in streams.iter().zip(before) {
                assert!(stream.token > before, "the token moves on with what others write");
            }
        }
    }
}

#[tokio::test]
async fn a_cursor_that_is_killed_while_it_waits_is_told() {
    let (deployment, proxy) = pair(SMALL).await;
    create(&deployment.members()[0], &["c"]).await;
    let mut streams = Stream::open_many(&proxy, "c", 5).await;
    let requests = join_all(streams.iter_mut().map(|stream| stream.ask(LONG_MS))).await;
    await_parked(&proxy, 5).await;
    let mut other = connect(proxy.address()).await;
    let kill = doc! { "killCursors": "c", "cursors": [streams[2].id] };
    let killed = other.command(DATABASE, kill).await.unwrap();
    assert_eq!(killed.get_array("cursorsKilled").unwrap().len(), 1, "{killed}");
    let told = streams[2].answer(requests[2]).await;
    assert_eq!(told.get_i32("code").unwrap(), 43, "{told}");
    insert(&mut other, "c", 1).await;
    for number in [0, 1, 3, 4] {
        assert_eq!(numbers(&streams[number].answer(requests[number]).await), [1]);
    }
}

#[tokio::test]
async fn those_who_wait_for_a_server_that_dies_are_told() {
    let (mut deployment, proxy) = pair(SMALL).await;
    create(&deployment.members()[0], &["c"]).await;
    let mut streams = Stream::open_many(&proxy, "c", 5).await;
    let requests = join_all(streams.iter_mut().map(|stream| stream.ask(LONG_MS))).await;
    await_parked(&proxy, 5).await;
    deployment.member(0).kill().await.unwrap();
    let replies = join_all(streams.iter_mut().zip(requests).map(async |(stream, id)| stream.answer(id).await)).await;
    for reply in replies {
        // Either makes drivers resume.
        let labels = support::labels(&reply);
        let code = reply.get_i32("code").unwrap_or_default();
        assert!(code == 43 || labels.iter().any(|label| label == "ResumableChangeStreamError"), "{reply}");
    }
}

#[tokio::test]
async fn what_no_majority_has_yet_is_not_missed() {
    const STREAMS: usize = 12;
    let deployment = support::replica_set(3).await;
    let primary = deployment.await_primary().await.unwrap();
    let proxy = proxy(&deployment.uri(), SMALL).await;
    create(&deployment.members()[primary], &["c"]).await;
    let secondaries: Vec<&Mongod> =
        deployment.members().iter().enumerate().filter(|(index, _)| *index != primary).map(|(_, it)| it).collect();
    let mut streams = Stream::open_many(&proxy, "c", STREAMS).await;
    let requests = join_all(streams.iter_mut().map(|stream| stream.ask(LONG_MS))).await;
    await_parked(&proxy, STREAMS).await;
    for secondary in &secondaries {
        fail_point(secondary, "rsSyncApplyStop", "alwaysOn".into(), doc! {}).await;
    }
    let mut writer = connect(proxy.address()).await;
    insert(&mut writer, "c", 5).await;
    let mut direct = client(&deployment.members()[primary]).await;
    let before = count(&mut direct, "getMore").await;
    // Asked in vain, and again.
    let twice = i64::try_from(STREAMS * 2).unwrap();
    eventually("the server is asked", async || count(&mut direct, "getMore").await - before >= twice).await;
    for secondary in &secondaries {
        fail_point(secondary, "rsSyncApplyStop", "off".into(), doc! {}).await;
    }
    let replies = join_all(streams.iter_mut().zip(requests).map(async |(stream, id)| stream.answer(id).await)).await;
    assert!(replies.iter().all(|reply| numbers(reply) == [5]), "{replies:?}");
}

#[tokio::test]
async fn the_cursor_of_a_client_that_left_while_it_waited_is_killed() {
    let (deployment, proxy) = pair(SMALL).await;
    create(&deployment.members()[0], &["c"]).await;
    let mut streams = Stream::open_many(&proxy, "c", 5).await;
    let requests = join_all(streams.iter_mut().map(|stream| stream.ask(LONG_MS))).await;
    await_parked(&proxy, 5).await;
    // Its driver begins anew from its token, and would leave one cursor more behind each time.
    let left = streams.remove(1).client;
    drop(left);
    let mut direct = client(&deployment.members()[0]).await;
    eventually("four cursors", async || open_cursors(&mut direct).await == 4).await;
    insert(&mut direct, "c", 3).await;
    for (stream, request) in streams.iter_mut().zip([requests[0], requests[2], requests[3], requests[4]]) {
        assert_eq!(numbers(&stream.answer(request).await), [3]);
    }
}

#[tokio::test]
async fn streams_from_before_a_restart_go_on_and_make_no_crowd_wait() {
    let (deployment, old) = pair(SMALL).await;
    create(&deployment.members()[0], &["c"]).await;
    let mut streams = Stream::open_many(&old, "c", 12).await;
    old.drain().await;
    let new = proxy(&deployment.uri(), SMALL).await;
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.client = connect(new.address()).await;
        // The first answer tells what the cursor is.
        let wait = (number % 2 == 0).then_some(20);
        assert_eq!(stream.next(wait).await, [0; 0]);
    }
    let requests = join_all(streams.iter_mut().map(|stream| stream.ask(LONG_MS))).await;
    await_parked(&new, 12).await;
    insert(&mut connect(new.address()).await, "c", 1).await;
    let replies = join_all(streams.iter_mut().zip(requests).map(async |(stream, id)| stream.answer(id).await)).await;
    assert!(replies.iter().all(|reply| numbers(reply) == [1]), "{replies:?}");
}
