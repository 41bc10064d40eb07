//! Clients that are slow, greedy, huge or mad cost at most themselves.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, its helpers included, that prints its seed")]

mod support;

use std::fmt::Write as _;

use bson::{Document, doc};
use futures_util::future::join_all;
use mongomux::sandbox::wire_client::WireClient;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::pair::Pair;
use support::proxy::Proxy;
use support::raw::{self, Observed, observe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, Instant, interval, timeout};

/// Longest wait for something that is expected.
const PATIENCE: Duration = Duration::from_secs(20);

/// Mutated messages of one run.
const MUTANTS: u32 = 4000;

fn closed(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("mongomux_client_connections_closed_total{{reason=\"{reason}\"}}"))
}

fn buffered(proxy: &Proxy) -> usize {
    proxy.clusters()[0].memory.used()
}

/// Waits until `buffered` bytes are.
async fn await_buffered(proxy: &Proxy, bytes: usize) {
    let reached = async {
        while buffered(proxy) != bytes {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reached = timeout(PATIENCE, reached).await;
    assert!(reached.is_ok(), "{} bytes are buffered, not {bytes}", buffered(proxy));
}

/// Sends one byte after the other until the peer closes; returns how long it took.
async fn drip(proxy: &Proxy, bytes: &[u8], pause: Duration) -> Duration {
    let (mut read, mut write) = raw::connect(proxy.address()).await.into_split();
    let started = Instant::now();
    let send = async {
        let mut ticks = interval(pause);
        for byte in bytes {
            ticks.tick().await;
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await
    };
    let mut reply = [0; 1];
    let ended = async {
        tokio::select! {
            () = send => unreachable!("it waits for ever"),
            read = read.read(&mut reply) => assert!(matches!(read, Ok(0) | Err(_)), "a reply to half a message"),
        }
    };
    timeout(PATIENCE, ended).await.expect("a client that never finishes its message is closed");
    started.elapsed()
}

#[tokio::test]
async fn half_messages_are_given_up_and_slow_ones_served() {
    let mut pair = Pair::new("handshake_timeout_ms = 400\nclient_stall_timeout_ms = 600\n").await;
    let ping = raw::command(doc! { "ping": 1, "$db": "admin" });
    // One byte at a time never stands still, and is over the handshake's time all the same.
    let handshake = Duration::from_millis(400);
    let slow = (0..100).map(|_| drip(&pair.proxy, &ping, Duration::from_millis(40)));
    let silent = (0..100).map(|_| drip(&pair.proxy, &[], handshake));
    for took in join_all(slow).await.into_iter().chain(join_all(silent).await) {
        assert!(took >= handshake.mul_f64(0.95) && took < PATIENCE / 2, "{took:?}");
    }
    assert_eq!(closed(&pair.proxy, "handshake_timeout"), 200.0);
    // After its first message a client may be slow, but not stand still in the middle of one.
    let mut client = WireClient::connect_as(pair.proxy.address(), "slow").await.unwrap();
    let mut ticks = interval(Duration::from_millis(20));
    let began = Instant::now();
    for part in raw::command(doc! { "ping": 1, "comment": "x".repeat(12_000), "$db": "admin" }).chunks(200) {
        ticks.tick().await;
        client.send_raw(part).await.unwrap();
    }
    assert!(began.elapsed() > Duration::from_millis(1000));
    client.receive(raw::REQUEST).await.unwrap();
    client.send_raw(&ping[..ping.len() - 1]).await.unwrap();
    let (started, ended) = (Instant::now(), timeout(PATIENCE, client.read_message()).await.unwrap());
    assert!(ended.is_err() && started.elapsed() >= Duration::from_millis(570), "{:?}", started.elapsed());
    assert_eq!(closed(&pair.proxy, "stalled"), 1.0);
    pair.is_calm("slow clients").await;
}

/// A client that asks and does not read what it asked for holds no upstream connection, and is given up.
#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up() {
    let mut pair = Pair::new("client_stall_timeout_ms = 500\n").await;
    let mut client = support::connect(pair.proxy.address()).await;
    let documents: Vec<Document> = (0..15).map(|_| doc! { "a": "x".repeat(1_000_000) }).collect();
    client.command("hostile", doc! { "insert": "large", "documents": documents }).await.unwrap();
    let mut greedy: Vec<_> =
        join_all((0..5).map(|_| WireClient::connect_as(pair.proxy.address(), "greedy"))).await.into_iter().collect();
    let find = raw::command(doc! { "find": "large", "batchSize": 100, "singleBatch": true, "$db": "hostile" });
    for client in &mut greedy {
        client.as_mut().unwrap().send_raw(&find.repeat(3)).await.unwrap();
    }
    // The only upstream connection is free although nobody reads.
    pair.is_calm("clients that read nothing").await;
    let given_up = async {
        while closed(&pair.proxy, "stalled") < 5.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, given_up).await.expect("all are given up");
    await_buffered(&pair.proxy, 0).await;
    pair.is_calm("clients that were given up").await;
}

/// What headers claim counts, and not beyond the limit: those for whom there is no room are not read on. All others are
/// served, and those that claim are given up.
#[tokio::test]
async fn huge_claims_of_many_sockets_keep_to_the_limit() {
    // Takes its time, and would keep the proxy from all else.
    let bomb = raw::compressed_as(raw::OP_MSG, 40_000_000, 2, &raw::deflate(2, &vec![0; 60_000_000]));
    let mut pair = Pair::new("handshake_timeout_ms = 3000\nwait_queue_timeout_ms = 500").await;
    let claim = [raw::header(48_000_000, raw::OP_MSG), vec![0; 84]].concat();
    let sockets = 400;
    let mut open = Vec::new();
    for _ in 0..sockets {
        let mut socket = raw::connect(pair.proxy.address()).await;
        socket.write_all(&claim).await.unwrap();
        open.push(socket);
    }
    // Seven fit into what requests may take.
    await_buffered(&pair.proxy, 7 * 48_000_000).await;
    pair.is_calm("huge claims").await;
    await_buffered(&pair.proxy, 0).await;
    let given_up = async {
        while closed(&pair.proxy, "handshake_timeout") < f64::from(sockets) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, given_up).await.expect("all are given up");
    drop(open);
    // A compressed message may claim a size as well, and is found out at once.
    let ends = join_all((0..20).map(|_| observe(pair.proxy.address(), &bomb))).await;
    assert!(ends.iter().any(|end| *end == Observed::closed()), "{ends:?}");
    // Those for whom there was no room at that moment were told so.
    let no_room = Observed::error(462, "IngressRequestRateLimitExceeded");
    assert!(ends.iter().all(|end| *end == Observed::closed() || *end == no_room), "{ends:?}");
    await_buffered(&pair.proxy, 0).await;
    pair.is_calm("bombs").await;
}

/// When a half message takes the memory of others, their small commands are served.
#[tokio::test]
async fn half_messages_do_not_take_the_memory_of_others() {
    let mut pair = Pair::new("memory_limit_bytes = 64000000\nmax_message_bytes = 32000000").await;
    let half = [raw::header(32_000_000, raw::OP_MSG), vec![0; 31_999_900]].concat();
    let mut hog = raw::connect(pair.proxy.address()).await;
    hog.write_all(&half).await.unwrap();
    await_buffered(&pair.proxy, 32_000_000).await;
    let mut client = support::connect(pair.proxy.address()).await;
    client.command("hostile", doc! { "insert": "c", "documents": [{ "a": 1 }] }).await.unwrap();
    pair.is_calm("half messages").await;
}

/// An insert that fills a message of 48,000,000 bytes to the last.
fn largest() -> Vec<u8> {
    let insert = raw::body(&doc! { "insert": "largest", "$db": "hostile" });
    let large = doc! { "a": "x".repeat(15_900_000) };
    let so_far =
        raw::op_msg(0, &[&insert, &raw::sequence("documents", &[large.clone(), large.clone(), doc! { "a": "" }])]);
    let rest = doc! { "a": "x".repeat(48_000_000 - so_far.len()) };
    raw::op_msg(0, &[&insert, &raw::sequence("documents", &[large.clone(), large, rest])])
}

#[tokio::test]
async fn the_largest_messages_pass() {
    let mut pair = Pair::new("").await;
    let message = largest();
    assert_eq!(message.len(), 48_000_000);
    let server = observe(&pair.direct(), &message).await;
    assert_eq!(observe(pair.proxy.address(), &message).await, server);
    let mut client = support::connect(pair.proxy.address()).await;
    let count = client.command("hostile", doc! { "count": "largest" }).await.unwrap();
    assert_eq!(count.get_i32("n").unwrap(), 6);

    // 45 MB in small documents, and as many statements as there may be.
    let documents: Vec<Document> = (0..100_000).map(|id| doc! { "_id": id, "a": "x".repeat(440) }).collect();
    let insert = mongomux::sandbox::wire_client::Request::new("hostile", doc! { "insert": "many", "ordered": false });
    let insert = insert.sequence("documents", documents);
    assert!(insert.encode(1).unwrap().len() > 45_000_000);
    let reply = client.exchange(&insert).await.unwrap().document().unwrap();
    assert_eq!(reply.get_i32("n").unwrap(), 100_000, "{:?}", reply.get("writeErrors"));
    pair.is_calm("large messages").await;
}

/// A document that holds one that holds one, and so on, `depth` times: `name` is what all of them are called.
fn bottomless(name: &str, kind: u8, depth: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Length, type, name, and the NUL at the end.
    let each = 4 + 1 + name.len() + 1 + 1;
    for level in (0..depth).rev() {
        bytes.extend_from_slice(&i32::try_from(5 + (level + 1) * each).unwrap().to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
    }
    bytes.extend_from_slice(&[5, 0, 0, 0, 0]);
    bytes.resize(bytes.len() + depth, 0);
    bytes
}

/// A command with a field of bytes that no library would make.
fn with_field(first: &Document, name: &str, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = first.to_vec().unwrap();
    bytes.pop();
    bytes.push(kind);
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(value);
    bytes.push(0);
    let length = i32::try_from(bytes.len()).unwrap();
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// What is nested without end exhausts no stack, wherever the proxy looks into a message; under rules it looks deepest.
#[tokio::test]
async fn documents_without_a_bottom_are_read_in_no_time() {
    const DEPTH: usize = 300_000;
    const DOCUMENT: u8 = 3;
    const ARRAY: u8 = 4;
    for rules in ["", "read_only = true\ndeny_namespaces = [\"shop.*\"]\ndeny_commands = [\"mapReduce\"]\n"] {
        let mut pair = Pair::new(rules).await;
        let command = |name: &str| doc! { name: "c", "$db": "hostile" };
        let cases = [
            (command("find"), "filter", DOCUMENT, bottomless("a", DOCUMENT, DEPTH)),
            (command("find"), "lsid", DOCUMENT, bottomless("id", DOCUMENT, DEPTH)),
            (command("find"), "$readPreference", DOCUMENT, bottomless("tags", ARRAY, DEPTH)),
            (command("find"), "readConcern", DOCUMENT, bottomless("level", DOCUMENT, DEPTH)),
            (command("aggregate"), "pipeline", ARRAY, bottomless("0", DOCUMENT, DEPTH)),
            (command("aggregate"), "pipeline", ARRAY, bottomless("$facet", ARRAY, DEPTH)),
            (command("aggregate"), "pipeline", ARRAY, bottomless("pipeline", ARRAY, DEPTH)),
            (command("mapReduce"), "out", DOCUMENT, bottomless("db", DOCUMENT, DEPTH)),
            (doc! { "hello": 1, "$db": "admin" }, "client", DOCUMENT, bottomless("driver", DOCUMENT, DEPTH)),
            (doc! { "hello": 1, "$db": "admin" }, "compression", ARRAY, bottomless("0", ARRAY, DEPTH)),
            (
                doc! { "hello": 1, "$db": "admin" },
                "speculativeAuthenticate",
                DOCUMENT,
                bottomless("a", DOCUMENT, DEPTH),
            ),
            (doc! { "hello": 1, "$db": "admin" }, "topologyVersion", DOCUMENT, bottomless("a", DOCUMENT, DEPTH)),
            (doc! { "bulkWrite": 1, "$db": "admin" }, "nsInfo", ARRAY, bottomless("0", DOCUMENT, DEPTH)),
            (doc! { "killCursors": "c", "$db": "d" }, "cursors", ARRAY, bottomless("0", ARRAY, DEPTH)),
            (doc! { "endSessions": [], "$db": "d" }, "lsid", DOCUMENT, bottomless("a", DOCUMENT, DEPTH)),
        ];
        for (first, name, kind, value) in cases {
            let document = with_field(&first, name, kind, &value);
            observe(pair.proxy.address(), &raw::op_msg(0, &[&[&[0], &document[..]].concat()])).await;
            let op_query = [&[0; 4][..], b"admin.$cmd\0", &[0; 4], &(-1_i32).to_le_bytes(), &document].concat();
            observe(pair.proxy.address(), &raw::message(raw::OP_QUERY, &op_query)).await;
            pair.is_calm(&format!("{first} with {name} without a bottom")).await;
        }
        // Explained, explained, and explained again.
        let explained = bottomless("explain", DOCUMENT, DEPTH);
        let mut document = with_field(&doc! {}, "explain", DOCUMENT, &explained);
        document.pop();
        document.extend_from_slice(b"\x02$db\0\x02\0\0\0d\0\0");
        let length = i32::try_from(document.len()).unwrap();
        document[..4].copy_from_slice(&length.to_le_bytes());
        observe(pair.proxy.address(), &raw::op_msg(0, &[&[&[0], &document[..]].concat()])).await;
        pair.is_calm("explain without a bottom").await;
    }
}

/// Whole, sound messages of every kind.
fn sound() -> Vec<Vec<u8>> {
    let lsid = doc! { "id": bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![7; 16] } };
    let commands = [
        doc! { "find": "c", "filter": { "a": { "$in": [1, "two", 3.0] } }, "limit": 3_i64, "maxTimeMS": 1000, "$db": "fuzz" },
        doc! { "aggregate": "c", "pipeline": [{ "$match": { "a": 1 } }, { "$limit": 1 }], "cursor": {}, "$db": "fuzz" },
        doc! { "aggregate": "c", "pipeline": [
            { "$lookup": { "from": "c", "pipeline": [{ "$unionWith": { "coll": "d", "pipeline": [{ "$facet": { "a": [{ "$limit": 1 }] } }] } }], "as": "x" } },
        ], "cursor": {}, "$db": "fuzz" },
        doc! { "explain": { "find": "c" }, "$db": "fuzz" },
        doc! { "update": "c", "updates": [{ "q": { "a": 1 }, "u": { "$inc": { "a": 1 } } }], "$db": "fuzz" },
        doc! { "delete": "c", "deletes": [{ "q": { "a": 99 }, "limit": 1 }], "$db": "fuzz" },
        doc! { "findAndModify": "c", "query": { "a": 1 }, "update": { "$set": { "b": 1 } }, "$db": "fuzz" },
        doc! { "getMore": 77_i64, "collection": "c", "batchSize": 5, "$db": "fuzz" },
        doc! { "killCursors": "c", "cursors": [77_i64, 78_i64], "$db": "fuzz" },
        doc! { "hello": 1, "helloOk": true, "client": { "driver": { "name": "a", "version": "1" }, "os": { "type": "b" } }, "$db": "admin" },
        doc! { "insert": "c", "documents": [{ "a": 1 }], "lsid": lsid.clone(), "txnNumber": 1_i64, "$db": "fuzz" },
        doc! { "find": "c", "lsid": lsid.clone(), "txnNumber": 2_i64, "startTransaction": true, "autocommit": false, "$db": "fuzz" },
        doc! { "abortTransaction": 1, "lsid": lsid.clone(), "txnNumber": 2_i64, "autocommit": false, "$db": "admin" },
        doc! { "endSessions": [lsid], "$db": "admin" },
        doc! { "count": "c", "$readPreference": { "mode": "nearest", "tags": [{ "a": "b" }, {}] }, "$db": "fuzz" },
    ];
    let documents = raw::sequence("documents", &[doc! { "a": 1 }, doc! { "a": 2 }]);
    let insert = raw::body(&doc! { "insert": "c", "$db": "fuzz" });
    let plain: Vec<_> = commands.into_iter().map(raw::command).collect();
    let packed: Vec<_> = (1..=3).map(|id| raw::compressed(&plain[0], id)).collect();
    let others = [
        raw::op_msg(0, &[&documents, &insert]),
        raw::op_msg(2, &[&insert, &documents]),
        raw::with_checksum(raw::op_msg(1, &[&insert, &documents]), 0),
        raw::query("admin.$cmd", &doc! { "isMaster": 1, "helloOk": true }),
        raw::query("fuzz.c", &doc! { "a": 1 }),
    ];
    plain.into_iter().chain(packed).chain(others).collect()
}

fn mutate(message: &mut Vec<u8>, random: &mut SmallRng) {
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..message.len());
        let value = random.random();
        match random.random_range(0..7) {
            0 => message[at] ^= 1 << random.random_range(0..8),
            1 => message[at] = value,
            2 => message[at] = [0, 1, 0x7F, 0x80, 0xFF][random.random_range(0..5)],
            3 => message.insert(at, value),
            4 if message.len() > 17 => drop(message.remove(at)),
            5 => message.truncate(at.max(16)),
            _ => {
                let end = random.random_range(at..message.len().min(at + 64)) + 1;
                message.extend_from_within(at..end);
            }
        }
    }
}

/// Sends a mutant on a socket of its own. Most have a length that is true, and a ping behind them must be answered, or
/// the socket closed; the others, and garbage, end with the sending side closed.
async fn release(proxy: &Proxy, random: &mut SmallRng, sound: &[Vec<u8>], sent: &mut String) {
    let mut message = sound[random.random_range(0..sound.len())].clone();
    let framed = random.random_bool(0.8);
    if random.random_bool(0.02) {
        message = (0..random.random_range(1..2000)).map(|_| random.random()).collect();
    } else {
        mutate(&mut message, random);
    }
    if framed && message.len() >= 16 {
        let length = i32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&length.to_le_bytes());
    }
    sent.clear();
    message.iter().for_each(|byte| write!(sent, "{byte:02x}").unwrap());
    if framed && message.len() >= 16 {
        observe(proxy.address(), &message).await;
        return;
    }
    let mut socket = raw::connect(proxy.address()).await;
    // A peer that closes early is a good end, too.
    let _written = socket.write_all(&message).await.is_ok() && socket.shutdown().await.is_ok();
    let end = async { while matches!(socket.read(&mut [0; 4096]).await, Ok(1..)) {} };
    timeout(PATIENCE, end).await.unwrap_or_else(|_| panic!("the proxy hangs on {sent}"));
}

/// `MONGOMUX_FUZZ_SEED` repeats a run.
#[tokio::test]
async fn mutated_messages_harm_nobody() {
    let seed = std::env::var("MONGOMUX_FUZZ_SEED").map_or_else(|_| rand::random::<u64>(), |seed| seed.parse().unwrap());
    println!("MONGOMUX_FUZZ_SEED={seed}");
    // Half of the runs look into all of them.
    let rules =
        if seed.is_multiple_of(2) { "deny_namespaces = [\"shop.*\"]\ndeny_commands = [\"mapReduce\"]\n" } else { "" };
    let mut pair = Pair::new(rules).await;
    // On a set that is this new, a write that finds nothing to change waits until one that does is committed.
    let first = doc! { "insert": "c", "documents": [{ "a": 1 }] };
    support::connect(&pair.direct()).await.command("fuzz", first).await.unwrap();
    let sound = sound();
    let mut random = SmallRng::seed_from_u64(seed);
    for round in 0..MUTANTS / 100 {
        let mut sent = String::new();
        for _ in 0..100 {
            release(&pair.proxy, &mut random, &sound, &mut sent).await;
        }
        pair.is_calm(&format!("round {round} with MONGOMUX_FUZZ_SEED={seed}, last {sent}")).await;
    }
    await_buffered(&pair.proxy, 0).await;
    let clients = pair.proxy.metric("mongomux_client_connections{state=\"active\"}");
    assert_eq!(clients, 0.0, "MONGOMUX_FUZZ_SEED={seed}");
}
