//! Sockets over pipes with a clock that stands still: what is charged when, who waits, and who is given up.

use std::pin::pin;

use bson::rawdoc;
use futures_util::poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

use super::*;
use crate::config::ClientConfig;
use crate::config::MemoryShares;
use crate::wire::{Compressor, encode};

const SECOND: Duration = Duration::from_secs(1);
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
const STALL: Duration = Duration::from_secs(30);

fn bounds(memory: Arc<MemoryBudget>) -> Arc<SocketBounds> {
    let limits = ClientConfig {
        max_clients_per_address: None,
        max_clients: 10,
        idle_timeout: Some(Duration::from_secs(100)),
        handshake_timeout: Duration::from_secs(10),
        failed_log_ins: None,
        stall_timeout: STALL,
        max_message_bytes: 48_000_000,
    };
    Arc::new(SocketBounds {
        limits: Arc::new(ClientLimits::from_pointee(limits)),
        memory,
        room_timeout: Box::new(|| ROOM_TIMEOUT),
        registry: Arc::default(),
    })
}

fn memory(requests: usize, small: usize) -> Arc<MemoryBudget> {
    MemoryBudget::new(MemoryShares { requests, replies: 0, small })
}

fn socket(memory: &Arc<MemoryBudget>) -> (ClientSocket<DuplexStream>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (ClientSocket::new(ours, bounds(memory.clone())), theirs)
}

fn ping(id: i32) -> Vec<u8> {
    encode::op_msg(id, 0, &rawdoc! {"ping": 1, "$db": "admin"}).bytes().to_vec()
}

fn large(bytes: usize) -> Vec<u8> {
    Frame::build(5, 0, OpCode::Msg, &vec![2; bytes - HEADER_LEN]).bytes().to_vec()
}

async fn next_id<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut ClientSocket<S>) -> i32 {
    match socket.next().await.unwrap() {
        Incoming::Message(frame, charge) => {
            assert!(charge.bytes() >= frame.bytes().len());
            frame.header().request_id
        }
        Incoming::TooMuch { .. } => panic!("there is memory"),
    }
}

fn holds_nothing<S>(socket: &ClientSocket<S>, memory: &MemoryBudget) -> bool {
    socket.pending.capacity() == 0 && socket.held.is_none() && memory.used() == 0
}

/// Plenty of memory, and so little that only heads are read ahead.
fn much_and_little() -> [Arc<MemoryBudget>; 2] {
    [MemoryBudget::plenty(), memory(0, 1 << 20)]
}

#[tokio::test(start_paused = true)]
async fn pipelined_and_split_messages_come_out_in_order() {
    for memory in much_and_little() {
        let (mut socket, mut client) = socket(&memory);
        let bytes: Vec<u8> = (1..=3).flat_map(ping).collect();
        for split in 0..bytes.len() {
            client.write_all(&bytes[..split]).await.unwrap();
            timeout(SECOND, socket.left()).await.unwrap_err();
            assert!(socket.pending.len() <= HEAD_BYTES && memory.used() == 0);
            client.write_all(&bytes[split..]).await.unwrap();
            for id in 1..=3 {
                assert_eq!(next_id(&mut socket).await, id, "split at {split}");
                let ahead = socket.pending.len();
                assert!(ahead <= HEAD_BYTES || memory.used() == ahead, "{} for {ahead}", memory.used());
            }
        }
        assert!(holds_nothing(&socket, &memory), "while idle");
    }
}

/// Polls `next` once per byte and drops it each time: nothing is lost, and nothing is held in the end.
#[tokio::test(start_paused = true)]
async fn a_read_that_is_dropped_at_every_byte_loses_nothing() {
    for memory in much_and_little() {
        let (mut socket, mut client) = socket(&memory);
        let bytes = [ping(1), ping(2)].concat();
        let mut ids = Vec::new();
        for byte in &bytes {
            client.write_all(&[*byte]).await.unwrap();
            while let Poll::Ready(incoming) = poll!(pin!(socket.next())) {
                let Incoming::Message(frame, _) = incoming.unwrap() else { panic!("there is memory") };
                ids.push(frame.header().request_id);
            }
        }
        assert_eq!(ids, [1, 2]);
        assert!(holds_nothing(&socket, &memory));
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_message_is_charged_before_its_body_comes() {
    let memory = MemoryBudget::plenty();
    let (mut socket, mut client) = socket(&memory);
    let message = large(3_000_000);
    // From its head on, not before.
    client.write_all(&message[..HEAD_BYTES - 1]).await.unwrap();
    assert!(poll!(pin!(socket.next())).is_pending());
    assert_eq!(memory.used(), 0);
    client.write_all(&message[HEAD_BYTES - 1..500_000]).await.unwrap();
    assert!(timeout(SECOND, socket.next()).await.is_err());
    assert_eq!(memory.used(), message.len());
    assert!(socket.pending.capacity() <= 1_500_000, "charged is not allocated: {}", socket.pending.capacity());
    let (rest, received) = tokio::join!(client.write_all(&message[500_000..]), socket.next());
    rest.unwrap();
    let Ok(Incoming::Message(frame, charge)) = received else { panic!("there is memory") };
    assert_eq!((frame.bytes(), memory.used()), (&message[..], message.len()));
    drop(charge);
    assert!(holds_nothing(&socket, &memory));
}

#[tokio::test(start_paused = true)]
async fn a_compressed_message_is_charged_with_both_of_its_forms() {
    let inside = encode::op_msg(7, 0, &rawdoc! {"insert": "x".repeat(200_000), "$db": "d"}).bytes().to_vec();
    let message = op_compressed::compress(&inside, Compressor::Zlib, 48_000_000);
    assert!(message.len() < 10_000);
    for memory in [MemoryBudget::plenty(), memory(inside.len() + message.len(), 0)] {
        let (mut socket, mut client) = socket(&memory);
        client.write_all(&message[..HEAD_BYTES]).await.unwrap();
        assert!(poll!(pin!(socket.next())).is_pending());
        assert_eq!(memory.used(), inside.len() + message.len());
        client.write_all(&message[HEAD_BYTES..]).await.unwrap();
        // In one read as well.
        let mut whole = op_compressed::compress(&inside, Compressor::Zlib, 48_000_000);
        whole.extend_from_slice(&ping(8));
        client.write_all(&whole).await.unwrap();
        for _ in 0..2 {
            let Incoming::Message(frame, charge) = socket.next().await.unwrap() else { panic!("there is memory") };
            assert_eq!((frame.bytes(), charge.bytes()), (&message[..], inside.len() + message.len()));
        }
        if memory.limit() > 1_000_000 {
            assert_eq!(next_id(&mut socket).await, 8);
            assert!(holds_nothing(&socket, &memory));
        }
    }
    // Both would never fit together.
    let memory = memory(inside.len(), 4096);
    let (mut socket, mut client) = socket(&memory);
    client.write_all(&message).await.unwrap();
    let Incoming::TooMuch { needed_bytes, .. } = socket.next().await.unwrap() else { panic!("there is none") };
    assert_eq!((needed_bytes, memory.used()), (inside.len() + message.len(), 0));
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_memory_is_not_read_and_goes_on_when_there_is() {
    for split in [HEAD_BYTES, 1000] {
        let memory = memory(1_000_000, 8192);
        let held = memory.try_request(900_000).unwrap();
        let (ours, mut client) = tokio::io::duplex(2000);
        let mut socket = ClientSocket::new(ours, bounds(memory.clone()));
        let message = large(200_000);
        let receiver = async {
            let began = Instant::now();
            let Incoming::Message(frame, charge) = socket.next().await.unwrap() else {
                panic!("there was memory in time")
            };
            assert_eq!((frame.bytes(), charge.bytes()), (&message[..], message.len()));
            assert_eq!(began.elapsed(), ROOM_TIMEOUT - SECOND);
        };
        let sender = async {
            client.write_all(&message[..split]).await.unwrap();
            let mut rest = pin!(client.write_all(&message[split..]));
            assert!(timeout(ROOM_TIMEOUT - SECOND, &mut rest).await.is_err(), "the system holds the rest back");
            assert_eq!(memory.used(), 900_000);
            drop(held);
            rest.await.unwrap();
        };
        tokio::join!(receiver, sender);
        assert!(holds_nothing(&socket, &memory));
    }
}

#[tokio::test(start_paused = true)]
async fn who_waited_too_long_is_thrown_away_and_the_next_one_served() {
    // The message comes byte by byte at first, or in one piece.
    for split in [1, HEAD_BYTES, 70_000] {
        let memory = memory(2_000_000, 8192);
        let mut held = memory.try_request(1_500_000).unwrap();
        let (mut socket, mut client) = socket(&memory);
        let sender = async {
            client.write_all(&large(1_000_000)[..split]).await.unwrap();
            client.write_all(&large(1_000_000)[split..]).await.unwrap();
            client.write_all(&ping(6)).await.unwrap();
        };
        let receiver = async {
            let began = Instant::now();
            let Incoming::TooMuch { head, needed_bytes } = socket.next().await.unwrap() else { panic!("{split}") };
            assert_eq!(began.elapsed(), ROOM_TIMEOUT);
            assert_eq!((head.header().request_id, needed_bytes), (5, 1_000_000));
            assert_eq!(head.body()[..4], [2; 4], "the flags are kept");
            assert_eq!(memory.used(), 1_500_000);
            assert_eq!(next_id(&mut socket).await, 6);
        };
        tokio::join!(sender, receiver);
        assert!(socket.held.is_none() && socket.pending.capacity() == 0);
        held.shrink_to(0);
        assert_eq!(memory.used(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_does_not_wait() {
    let memory = memory(900_000, 8192);
    let (mut socket, mut client) = socket(&memory);
    client.write_all(&large(1_000_000)).await.unwrap();
    let began = Instant::now();
    assert!(matches!(socket.next().await, Ok(Incoming::TooMuch { needed_bytes: 1_000_000, .. })));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_small_message_passes_those_that_wait() {
    let memory = memory(1_000_000, 8192);
    let _held = memory.try_request(1_000_000).unwrap();
    let (mut waiting, mut client) = self::socket(&memory);
    client.write_all(&large(500_000)).await.unwrap();
    let mut next = pin!(waiting.next());
    assert!(poll!(&mut next).is_pending());
    let (mut socket, mut other) = socket(&memory);
    other.write_all(&ping(3)).await.unwrap();
    assert_eq!(timeout(SECOND, next_id(&mut socket)).await.unwrap(), 3);
    assert!(poll!(&mut next).is_pending());
}

/// The wait for memory, dropped after each number of polls: its place is free again, and the message is not lost.
#[tokio::test(start_paused = true)]
async fn a_wait_for_memory_that_is_dropped_leaves_the_line() {
    for polls in 1..5 {
        let memory = memory(1_000_000, 8192);
        let mut held = memory.try_request(1_000_000).unwrap();
        let (mut socket, mut client) = socket(&memory);
        client.write_all(&large(500_000)).await.unwrap();
        for _ in 0..polls {
            assert!(poll!(pin!(socket.next())).is_pending());
            held.shrink_to(held.bytes() - 10);
        }
        held.shrink_to(500_000);
        let other = memory.try_request(500_000).expect("nobody waits");
        assert_eq!(memory.used(), 1_000_000);
        drop((held, other));
        assert_eq!(next_id(&mut socket).await, 5);
        assert!(holds_nothing(&socket, &memory));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_drips_loses_its_memory_and_a_slow_one_does_not() {
    for (bytes, pause, served) in [(1, 100, false), (1_900, 1000, false), (4_096, 1000, true), (65_536, 16_000, true)] {
        let memory = MemoryBudget::plenty();
        let (mut socket, mut client) = socket(&memory);
        client.write_all(&ping(1)).await.unwrap();
        assert_eq!(next_id(&mut socket).await, 1);
        let message = large(1_000_000);
        let (began, sender) = (Instant::now(), async {
            for part in message.chunks(bytes) {
                client.write_all(part).await.unwrap();
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        });
        // What loses is dropped: the sender.
        let received = tokio::select! {
            received = socket.next() => received,
            () = async { sender.await; std::future::pending().await } => unreachable!(),
        };
        if served {
            assert!(matches!(received, Ok(Incoming::Message(..))), "{bytes} bytes every {pause} ms");
            assert!(began.elapsed() > STALL);
        } else {
            assert!(matches!(received, Err(ReadEnd::Timeout(ClientClosed::Stalled))));
            // Counted from its head on.
            assert!(began.elapsed() <= STALL + 3 * SECOND, "{:?}", began.elapsed());
        }
        drop((received, socket));
        assert_eq!(memory.used(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_the_handshake_does_not_run_while_there_is_no_memory() {
    let memory = memory(1_000_000, 8192);
    let held = memory.try_request(1_000_000).unwrap();
    let (mut socket, mut client) = socket(&memory);
    let message = large(500_000);
    client.write_all(&message[..1000]).await.unwrap();
    let sender = async {
        tokio::time::sleep(ROOM_TIMEOUT - SECOND).await;
        drop(held);
        // Later than the time from accept, and in time without the wait.
        tokio::time::sleep(Duration::from_secs(9)).await;
        client.write_all(&message[1000..]).await.unwrap();
    };
    let ((), id) = tokio::join!(sender, next_id(&mut socket));
    assert_eq!(id, 5);
}

#[tokio::test(start_paused = true)]
async fn each_silence_has_its_own_limit() {
    let (mut socket, mut client) = socket(&MemoryBudget::plenty());
    let started = Instant::now();
    client.write_all(&ping(1)[..10]).await.unwrap();
    assert!(matches!(socket.next().await, Err(ReadEnd::Timeout(ClientClosed::HandshakeTimeout))));
    assert_eq!(started.elapsed().as_secs(), 10);
    client.write_all(&ping(1)[10..]).await.unwrap();
    assert_eq!(next_id(&mut socket).await, 1);
    assert!(matches!(socket.next().await, Err(ReadEnd::Timeout(ClientClosed::Idle))));
    assert_eq!(started.elapsed().as_secs(), 110);
    client.write_all(&ping(2)[..10]).await.unwrap();
    assert!(matches!(socket.next().await, Err(ReadEnd::Timeout(ClientClosed::Stalled))));
    assert_eq!(started.elapsed().as_secs(), 140);
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_has_taken_and_not_passed_on_is_a_rest() {
    // As TLS does: it takes all, and holds what the system does not take.
    let (ours, mut theirs) = tokio::io::duplex(100);
    let mut socket =
        ClientSocket::new(tokio::io::BufStream::with_capacity(10, 1000, ours), bounds(MemoryBudget::plenty()));
    assert_eq!(socket.write_now(&[1; 90]).await.unwrap(), None);
    assert_eq!(socket.write_now(&[2; 90]).await.unwrap(), Some(90));
    let mut read = vec![0; 180];
    let (written, all) = tokio::join!(socket.write_all(&[][..]), theirs.read_exact(&mut read));
    written.unwrap();
    assert_eq!((all.unwrap(), &read[90..]), (180, &[2; 90][..]));
    // And who does not read is given up, with nothing left to hand over but what is held.
    assert_eq!(socket.write_now(&[3; 150]).await.unwrap(), Some(150));
    assert!(matches!(socket.write_all(&[][..]).await, Err(ReadEnd::Timeout(ClientClosed::Stalled))));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_or_next_to_nothing_is_given_up() {
    for taken_every_second in [0, 1, 1_900, 5_000] {
        let (ours, mut theirs) = tokio::io::duplex(100);
        let mut socket = ClientSocket::new(ours, bounds(MemoryBudget::plenty()));
        assert_eq!(socket.write_now(&[1; 1000]).await.unwrap(), Some(100));
        let began = Instant::now();
        let reader = async {
            loop {
                tokio::time::sleep(SECOND).await;
                theirs.read_exact(&mut vec![0; taken_every_second]).await.unwrap();
            }
        };
        let reply = vec![1; 500_000];
        let written = tokio::select! {
            written = socket.write_all(&reply[..]) => written,
            () = reader => unreachable!(),
        };
        if taken_every_second < 2_000 {
            assert!(matches!(written, Err(ReadEnd::Timeout(ClientClosed::Stalled))), "{taken_every_second}");
            assert!(began.elapsed() <= STALL + SECOND, "{:?}", began.elapsed());
        } else {
            written.unwrap();
            assert!(began.elapsed() > 3 * STALL);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_is_noticed_while_its_command_runs() {
    let (mut socket, client) = socket(&MemoryBudget::plenty());
    assert!(timeout(SECOND, socket.left()).await.is_err());
    drop(client);
    socket.left().await;
    assert!(matches!(socket.next().await, Err(ReadEnd::Left)));
}
