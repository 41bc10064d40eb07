//! The memory for buffered messages has one bound, and nobody can take it for long from the others.
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use futures_util::future::join_all;
use mongomux::config::MemoryShares;
use mongomux::config::limits::MEMORY_LIMIT_BYTES;
use mongomux::sandbox::wire_client::{HEADER_BYTES, MORE_TO_COME, Request, WireClient};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::hold::eventually;
use support::large::{all, bytes, half_sent, large, sixteen_megabytes, slow_reader};
use support::proxy::{Proxy, proxy};
use support::{PATIENCE, connect, first_batch, raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// The least memory there may be: room for one largest request and one largest reply.
const LEAST: &str = "memory_limit_bytes = 42000000\n";

/// Nobody is shed where a test expects to wait.
const PATIENT: &str = "wait_queue_timeout_ms = 60000\n";

/// Who serves others meanwhile does it over the same connection.
const ONE: &str = "max_pool_size = 1\nmin_pool_size = 1\n";

/// Far above what an answer takes on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

fn shares() -> MemoryShares {
    MemoryShares::of(MEMORY_LIMIT_BYTES.min)
}

/// The most that was buffered, looked at between all that happens on this thread.
struct Most {
    bytes: Arc<AtomicUsize>,
    _sampler: JoinSet<()>,
}

impl Most {
    fn watch(proxy: &Proxy) -> Self {
        let (most, memory) = (Arc::new(AtomicUsize::new(0)), proxy.clusters()[0].memory.clone());
        let (bytes, mut sampler) = (most.clone(), JoinSet::new());
        sampler.spawn(async move {
            loop {
                most.fetch_max(memory.used(), Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        Self { bytes, _sampler: sampler }
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[track_caller]
fn assert_shed(reply: &Document) {
    assert_eq!(reply.get_i32("code").unwrap(), 462, "{reply}");
    assert_eq!(support::labels(reply), ["SystemOverloadedError", "RetryableError"], "{reply}");
}

#[tokio::test]
async fn large_requests_and_replies_of_many_clients_all_pass_at_the_least_limit() {
    let deployment = support::standalone().await;
    sixteen_megabytes(&deployment.members()[0]).await;
    let proxy = proxy(&deployment.uri(), &format!("{LEAST}{PATIENT}max_pool_size = 4")).await;
    let most = Most::watch(&proxy);
    let served = join_all((0..12).map(|id| {
        let address = proxy.address();
        async move {
            let mut client = connect(address).await;
            let insert = Request::new("test", doc! { "insert": "other" });
            let insert = insert.sequence("documents", vec![doc! { "_id": id, "data": bytes(9_000_000) }]);
            let inserted = client.exchange(&insert).await.unwrap().document().unwrap();
            assert_eq!(inserted.get_i32("n").unwrap(), 1, "{inserted}");
            let found = client.exchange(&Request::new("test", all())).await.unwrap();
            assert_eq!(first_batch(&found.document().unwrap()).len(), 4);
        }
    }));
    timeout(3 * PATIENCE, served).await.expect("all are served");
    assert!(most.bytes() <= shares().limit(), "{}", most.bytes());
    assert!(most.bytes() > shares().requests, "it came to the limit: {}", most.bytes());
    assert_eq!(proxy.shed("memory"), 0.0);
    proxy.settles().await;
}

/// While their requests are held, and more wait for memory: the replies have a share of their own.
#[tokio::test]
async fn no_request_blocks_its_own_reply() {
    let deployment = support::standalone().await;
    support::client(&deployment.members()[0])
        .await
        .command("test", doc! { "insert": "c", "documents": [{}] })
        .await
        .unwrap();
    let proxy = proxy(&deployment.uri(), &format!("{LEAST}{PATIENT}max_pool_size = 4")).await;
    let most = Most::watch(&proxy);
    let echo = |client: usize| {
        // Those of one kind fill the requests' share alone, two of the other do together.
        let data = bytes(if client.is_multiple_of(2) { 16_000_000 } else { 11_000_000 });
        let project = doc! { "$project": { "data": { "$literal": data } } };
        doc! { "aggregate": "c", "pipeline": [project], "cursor": {} }
    };
    let served = join_all((0..8).map(|client| {
        let (address, command) = (proxy.address(), echo(client));
        async move {
            let reply = connect(address).await.exchange(&Request::new("test", command)).await.unwrap();
            let length = first_batch(&reply.document().unwrap())[0].get_binary_generic("data").unwrap().len();
            assert!(length >= 11_000_000);
        }
    }));
    timeout(3 * PATIENCE, served).await.expect("all are served");
    assert!(most.bytes() <= shares().limit(), "{}", most.bytes());
    assert!(most.bytes() > shares().requests, "a request and a reply at once: {}", most.bytes());
    proxy.settles().await;
}

#[tokio::test]
async fn a_request_without_memory_waits_and_is_then_read_to_its_end_and_answered() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), &format!("{LEAST}wait_queue_timeout_ms = 300")).await;
    let (hog, held) = half_sent(proxy.address(), &large(9, 16_000_000)).await;
    eventually("the announced length is charged", async || proxy.buffered() == held).await;
    let mut client = connect(proxy.address()).await;
    for round in 1..=2 {
        let began = Instant::now();
        assert_shed(&client.exchange(&large(1, 14_000_000)).await.unwrap().document().unwrap());
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert_eq!((proxy.shed("memory"), proxy.buffered()), (f64::from(round), held));
    }
    // Without an answer, too, the socket stands at the next message. This one finds room beside the other.
    client.send(&large(2, 14_000_000).flags(MORE_TO_COME)).await.unwrap();
    let reply = client.exchange(&large(3, 5_000_000)).await.unwrap().document().unwrap();
    assert_eq!(reply.get_i32("n").unwrap(), 1, "{reply}");
    assert_eq!(proxy.shed("memory"), 3.0);
    let found = client.command("test", doc! { "find": "c", "projection": { "_id": 1 } }).await.unwrap();
    assert_eq!(first_batch(&found), [doc! { "_id": 3 }]);
    drop(hog);
    proxy.settles().await;
}

#[tokio::test]
async fn a_half_sent_message_blocks_others_until_the_stall_timeout_only() {
    let deployment = support::standalone().await;
    let settings = format!("{LEAST}{PATIENT}client_stall_timeout_ms = 1500\nhandshake_timeout_ms = 60000");
    let proxy = proxy(&deployment.uri(), &settings).await;
    for drips in [false, true] {
        let mut hog = connect(proxy.address()).await;
        let message = large(9, 16_000_000).encode(1).unwrap();
        hog.send_raw(&message[..1000]).await.unwrap();
        eventually("it is charged", async || proxy.buffered() == message.len()).await;
        let drip = async {
            for byte in &message[1000..] {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if !drips || hog.send_raw(&[*byte]).await.is_err() {
                    break;
                }
            }
            std::future::pending().await
        };
        let mut other = connect(proxy.address()).await;
        let began = Instant::now();
        let answered = async {
            let id = i32::from(drips);
            let reply = other.exchange(&large(id, 14_000_000)).await.unwrap().document().unwrap();
            assert_eq!(reply.get_i32("n").unwrap(), 1, "{reply}");
        };
        tokio::select! {
            answered = timeout(PATIENCE, answered) => answered.expect("the other one loses its memory"),
            () = drip => {}
        }
        assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(proxy.clients_closed("stalled"), 1.0 + f64::from(i32::from(drips)));
    }
    proxy.settles().await;
}

#[tokio::test]
async fn hello_and_small_commands_are_answered_while_the_memory_is_full() {
    let deployment = support::standalone().await;
    sixteen_megabytes(&deployment.members()[0]).await;
    let proxy = proxy(&deployment.uri(), &format!("{LEAST}{PATIENT}handshake_timeout_ms = 60000")).await;
    // The replies' share but for less than a megabyte, then all of the requests' with more that wait for it.
    let reader = slow_reader(proxy.address(), all()).await;
    reader.readable().await.unwrap();
    let mut hogs = Vec::new();
    for _ in 0..10 {
        hogs.push(half_sent(proxy.address(), &large(9, 11_000_000)).await);
    }
    eventually("it is full", async || proxy.buffered() >= 38_000_000).await;
    for _ in 0..20 {
        let client = timeout(AT_ONCE, WireClient::connect_as(proxy.address(), "small")).await.expect("a hello at once");
        let mut client = client.unwrap();
        let insert = doc! { "insert": "small", "documents": [{ "data": bytes(3_000) }] };
        timeout(AT_ONCE, client.command("test", insert)).await.expect("at once").unwrap();
    }
    assert!(proxy.buffered() <= shares().limit());
    drop((reader, hogs));
    proxy.settles().await;
}

#[tokio::test]
async fn a_compressed_request_counts_twice_and_a_compressed_reply_passes_at_the_least_limit() {
    let deployment = support::standalone().await;
    sixteen_megabytes(&deployment.members()[0]).await;
    let proxy = proxy(&deployment.uri(), &format!("{LEAST}{PATIENT}")).await;
    let most = Most::watch(&proxy);
    let find = Request::new("test", all()).encode(1).unwrap();
    let readers = join_all((0..4).map(|_| {
        let (address, find) = (proxy.address(), raw::compressed(&find, 2));
        async move { raw::exchange(&mut raw::connect(address).await, &find).await }
    }));
    let found = timeout(PATIENCE, readers).await.expect("all are served");
    assert!(found.iter().all(|reply| first_batch(reply).len() == 4));
    let mut client = raw::connect(proxy.address()).await;
    let insert = raw::compressed(&large(9, 12_000_000).encode(1).unwrap(), 2);
    assert_eq!(raw::exchange(&mut client, &insert).await.get_i32("n").unwrap(), 1);
    // Noise does not get smaller, and both forms of it are too much for ever: told at once.
    let mut noise = vec![0; 12_000_000];
    SmallRng::seed_from_u64(7).fill(&mut noise[..]);
    let noise = bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: noise };
    let insert = Request::new("test", doc! { "insert": "c", "documents": [{ "_id": 10, "data": noise }] });
    let refused = raw::exchange(&mut client, &raw::compressed(&insert.encode(1).unwrap(), 1)).await;
    assert_shed(&refused);
    assert!(most.bytes() <= shares().limit() && most.bytes() >= 16_000_000, "{}", most.bytes());
    proxy.settles().await;
}

/// Both forms of a large reply need memory for a moment, and waiting for the second might never end.
#[tokio::test]
async fn a_reply_is_compressed_where_there_is_room_for_that() {
    let deployment = support::standalone().await;
    sixteen_megabytes(&deployment.members()[0]).await;
    let proxy = proxy(&deployment.uri(), &format!("{LEAST}{PATIENT}handshake_timeout_ms = 60000")).await;
    let find = raw::compressed(&Request::new("test", all()).encode(raw::REQUEST).unwrap(), 1);
    let compressors = async || {
        let observed = raw::observe(proxy.address(), &find).await;
        observed.replies.iter().map(|reply| (reply.ok, reply.compressor)).collect::<Vec<_>>()
    };
    assert_eq!(compressors().await, [(true, Some(1))]);
    let (hog, held) = half_sent(proxy.address(), &large(9, 16_000_000)).await;
    eventually("it is charged", async || proxy.buffered() == held).await;
    assert_eq!(compressors().await, [(true, None)]);
    drop(hog);
    eventually("it is free again", async || proxy.buffered() == 0).await;
    assert_eq!(compressors().await, [(true, Some(1))]);
}

/// Drivers split their batches by what hello says.
#[tokio::test]
async fn what_hello_announces_finds_room() {
    let deployment = support::standalone().await;
    let proxy = proxy(&deployment.uri(), LEAST).await;
    let mut client = WireClient::connect(proxy.address()).await.unwrap();
    let hello = client.hello("largest").await.unwrap();
    let largest = usize::try_from(hello.get_i32("maxMessageSizeBytes").unwrap()).unwrap();
    assert_eq!(largest, shares().largest_request());
    let around = large(1, 0).encode(1).unwrap().len();
    let half = (largest - around) / 2;
    let documents = vec![doc! { "_id": 1, "data": bytes(half) }, doc! { "data": bytes(half - 100) }];
    let insert = Request::new("test", doc! { "insert": "c" }).sequence("documents", documents);
    assert!((largest - 200..=largest).contains(&insert.encode(1).unwrap().len()));
    let reply = client.exchange(&insert).await.unwrap().document().unwrap();
    assert_eq!(reply.get_i32("n").unwrap(), 2, "{reply}");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_no_connection_and_is_closed() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    sixteen_megabytes(server).await;
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}{ONE}client_stall_timeout_ms = 1000")).await;
    let began = Instant::now();
    let mut stream = slow_reader(proxy.address(), all()).await;
    // The reply has begun to arrive, so it was taken whole.
    stream.readable().await.unwrap();

    let mut other = connect(proxy.address()).await;
    other.command("admin", doc! { "ping": 1 }).await.unwrap();
    assert!(proxy.buffered() >= 10_000_000, "the reply still waits for its client: {}", proxy.buffered());
    assert_eq!(proxy.pool().unwrap().counts.in_use, 0);
    assert_eq!(proxy.created(), 1, "served over the one connection");

    eventually("the slow client is closed", async || proxy.clients_closed("stalled") == 1.0).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    // What was buffered by the system still arrives, then the end: less than the whole reply.
    let mut taken = Vec::new();
    let ended = stream.read_to_end(&mut taken).await;
    assert!(taken.len() < 16_000_000, "{ended:?} after {} bytes", taken.len());
    proxy.settles().await;
}

/// All shares but the small one are full to the last hundreds of bytes. Replies that need none pass, and the rest of one
/// for which a socket has no room waits in its connection.
#[tokio::test]
async fn the_rest_of_a_small_reply_waits_for_room_and_nobody_is_closed() {
    let deployment = support::standalone().await;
    let mut direct = support::client(&deployment.members()[0]).await;
    sixteen_megabytes(&deployment.members()[0]).await;
    let settings = format!("{LEAST}{PATIENT}max_pool_size = 1\nhandshake_timeout_ms = 60000");
    let proxy = proxy(&deployment.uri(), &settings).await;
    let mut hogs = Vec::new();
    for claim in [shares().largest_request(), shares().requests - shares().largest_request()] {
        let mut hog = raw::connect(proxy.address()).await;
        hog.write_all(&raw::header(i32::try_from(claim).unwrap(), raw::OP_MSG)).await.unwrap();
        hog.write_all(&[0; 84]).await.unwrap();
        hogs.push(hog);
    }
    eventually("the requests' share is full", async || proxy.buffered() == shares().requests).await;
    let first = slow_reader(proxy.address(), all()).await;
    first.readable().await.unwrap();
    let left = shares().requests + shares().replies - proxy.buffered();
    let filler = Request::new("test", doc! { "insert": "filler", "documents": [{ "data": bytes(left - 300) }] });
    direct.exchange(&filler).await.unwrap();
    let second = slow_reader(proxy.address(), doc! { "find": "filler" }).await;
    second.readable().await.unwrap();
    let left = shares().requests + shares().replies - proxy.buffered();
    assert!(left < 300, "{left}");

    let small = Request::new("test", doc! { "insert": "small", "documents": [{ "data": bytes(30_000) }] });
    direct.exchange(&small).await.unwrap();
    let find = Request::new("test", doc! { "find": "small" });
    let mut client = slow_reader(proxy.address(), doc! { "ping": 1 }).await;
    for id in 2..=40 {
        client.write_all(&find.encode(id).unwrap()).await.unwrap();
    }
    let stands = async || {
        let before = proxy.metric("mongomux_commands_total{command=\"find\",outcome=\"completed\"}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let after = proxy.metric("mongomux_commands_total{command=\"find\",outcome=\"completed\"}");
        before == after && proxy.pool().unwrap().counts.in_use == 1
    };
    eventually("a rest waits in its connection", stands).await;
    assert!(shares().requests + shares().replies - proxy.buffered() < 300);
    drop(second);
    eventually("it is taken out", async || proxy.pool().unwrap().counts.in_use == 0).await;
    for _ in 1..=40 {
        let reply = timeout(PATIENCE, raw::next_document(&mut client)).await.unwrap();
        assert_eq!(reply.get_f64("ok").unwrap(), 1.0);
    }
    assert_eq!(proxy.metric("mongomux_client_connections_closed_total{reason=\"stalled\"}"), 0.0);
    drop((hogs, first, client));
    proxy.settles().await;
}

#[tokio::test]
async fn a_client_that_takes_single_bytes_of_its_reply_is_closed() {
    let deployment = support::standalone().await;
    sixteen_megabytes(&deployment.members()[0]).await;
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}client_stall_timeout_ms = 1000")).await;
    let mut stream = slow_reader(proxy.address(), all()).await;
    let drip = async {
        loop {
            if stream.read_exact(&mut [0]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let closed = eventually("it is closed", async || proxy.clients_closed("stalled") == 1.0);
    // What loses is dropped: the socket that drips.
    tokio::select! {
        () = drip => {}
        () = closed => {}
    }
    proxy.settles().await;
}

/// Over a real socket, whose buffers hide what a client takes: about 100 KB/s for much longer than the limit.
#[tokio::test]
async fn a_client_that_reads_steadily_is_not_taken_for_one_that_stands_still() {
    let deployment = support::standalone().await;
    sixteen_megabytes(&deployment.members()[0]).await;
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}client_stall_timeout_ms = 2000")).await;
    let mut stream = slow_reader(proxy.address(), all()).await;
    let mut part = vec![0; 10_000];
    for _ in 0..80 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.read_exact(&mut part).await.unwrap();
    }
    let mut rest = vec![0; 15_000_000];
    stream.read_exact(&mut rest).await.unwrap();
    assert_eq!(proxy.clients_closed("stalled"), 0.0);
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_everything() {
    let deployment = support::standalone().await;
    let server = &deployment.members()[0];
    sixteen_megabytes(server).await;
    let proxy = proxy(&deployment.uri(), &format!("{PATIENT}client_stall_timeout_ms = 500")).await;
    let mut stream = slow_reader(proxy.address(), all()).await;
    let began = Instant::now();
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.unwrap();
    let length = usize::try_from(i32::from_le_bytes(header[..4].try_into().unwrap())).unwrap();
    assert!(length > 16_000_000, "{length}");
    let mut reply = vec![0; length - HEADER_BYTES];
    // Each pause is shorter than the limit, all together are longer than it.
    for part in reply.chunks_mut(length / 10) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.read_exact(part).await.unwrap();
    }
    assert!(began.elapsed() > Duration::from_millis(500));
    assert_eq!(reply.iter().filter(|byte| **byte == 0x5A).count(), 16_000_000);
    assert_eq!(proxy.clients_closed("stalled"), 0.0);
    proxy.settles().await;
}
