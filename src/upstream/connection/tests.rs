//! Replies in every wrong shape, at every split point.

use std::pin::pin;

use bson::rawdoc;
use futures_util::poll;
use tokio::io::{AsyncReadExt, DuplexStream};

use super::*;
use crate::config::MemoryShares;
use crate::wire::encode;

/// A connection that has sent its first request, and the server's end of it.
async fn asked(memory: &Arc<MemoryBudget>) -> (Connection, DuplexStream) {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let mut connection = Connection::new(Box::new(ours), memory.clone(), 1_000_000);
    ask(&mut connection, &mut theirs).await;
    (connection, theirs)
}

/// Sends a request and takes it from the pipe.
async fn ask(connection: &mut Connection, server: &mut DuplexStream) {
    let request = encode::op_msg(connection.next_request_id(), 0, &rawdoc! {"ping": 1});
    connection.send(request.bytes()).await.unwrap();
    assert!(!connection.is_between_messages());
    let mut taken = vec![0; request.bytes().len()];
    server.read_exact(&mut taken).await.unwrap();
    assert_eq!(taken, request.bytes());
}

/// Takes the reply; one that does not come fails instead of hanging.
async fn receive(connection: &mut Connection) -> Result<(), ReceiveError> {
    tokio::time::timeout(Duration::from_secs(10), connection.receive()).await.expect("neither a reply nor an error")
}

/// A reply to request `response_to` of about `bytes` bytes.
fn reply(response_to: i32, bytes: usize) -> Vec<u8> {
    encode::op_msg(77, response_to, &rawdoc! {"ok": 1.0, "padding": "x".repeat(bytes)}).bytes().to_vec()
}

fn budget() -> Arc<MemoryBudget> {
    MemoryBudget::plenty()
}

#[tokio::test(start_paused = true)]
async fn a_reply_split_at_every_byte_is_the_same_reply() {
    let whole = reply(1, 30);
    for split in 0..=whole.len() {
        let (mut connection, mut server) = asked(&budget()).await;
        server.write_all(&whole[..split]).await.unwrap();
        if split < whole.len() {
            assert!(poll!(pin!(connection.receive())).is_pending(), "{split}");
            assert!(!connection.is_between_messages());
        }
        server.write_all(&whole[split..]).await.unwrap();
        receive(&mut connection).await.unwrap();
        assert_eq!(connection.reply(), whole);
        assert!(connection.is_between_messages() && connection.is_alive());
        connection.clear_reply();
        ask(&mut connection, &mut server).await;
        server.write_all(&reply(2, 0)).await.unwrap();
        receive(&mut connection).await.unwrap();
        assert_eq!(connection.reply(), reply(2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_byte_by_byte_with_the_future_dropped_each_time() {
    for size in [0, 40_000] {
        let memory = budget();
        let whole = reply(1, size);
        let (mut connection, mut server) = asked(&memory).await;
        for part in whole.chunks(whole.len().div_ceil(100)) {
            assert!(poll!(pin!(connection.receive())).is_pending());
            server.write_all(part).await.unwrap();
        }
        receive(&mut connection).await.unwrap();
        assert_eq!(connection.reply(), whole);
        connection.clear_reply();
        assert_eq!(memory.used(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_in_the_middle_of_a_reply_is_found_at_every_byte() {
    let whole = reply(1, 30);
    for split in 0..whole.len() {
        let (mut connection, mut server) = asked(&budget()).await;
        server.write_all(&whole[..split]).await.unwrap();
        drop(server);
        assert!(matches!(receive(&mut connection).await, Err(ReceiveError::Closed)), "{split}");
        assert!(!connection.is_between_messages() && !connection.is_alive());
    }
    // All of it and then the end: a reply, and a connection that is not used again.
    let (mut connection, mut server) = asked(&budget()).await;
    server.write_all(&whole).await.unwrap();
    drop(server);
    receive(&mut connection).await.unwrap();
    assert_eq!(connection.reply(), whole);
    assert!(!connection.is_alive());
}

#[tokio::test(start_paused = true)]
async fn more_than_one_reply_is_an_error_at_every_byte() {
    let (whole, second) = (reply(1, 30), reply(1, 0));
    for more in 1..=second.len() {
        let (mut connection, mut server) = asked(&budget()).await;
        server.write_all(&[&whole[..], &second[..more]].concat()).await.unwrap();
        assert!(matches!(receive(&mut connection).await, Err(ReceiveError::TrailingBytes(bytes)) if bytes == more));
        assert!(!connection.is_between_messages());
        // The same, when the rest arrives later.
        let (mut connection, mut server) = asked(&budget()).await;
        server.write_all(&whole).await.unwrap();
        receive(&mut connection).await.unwrap();
        server.write_all(&second[..more]).await.unwrap();
        assert!(!connection.is_alive());
    }
}

#[tokio::test(start_paused = true)]
async fn what_answers_another_request_is_an_error() {
    let mut compressed = reply(1, 0);
    compressed[12..16].copy_from_slice(&2012_i32.to_le_bytes());
    for (wrong, op_code, response_to) in
        [(reply(2, 0), 2013, 2), (reply(0, 0), 2013, 0), (reply(-1, 50_000), 2013, -1), (compressed, 2012, 1)]
    {
        let memory = budget();
        let (mut connection, mut server) = asked(&memory).await;
        server.write_all(&wrong).await.unwrap();
        let error = receive(&mut connection).await.unwrap_err();
        let expected = (op_code, response_to, 1);
        assert!(
            matches!(error, ReceiveError::Unexpected { op_code, response_to, expected: asked }
                if (op_code, response_to, asked) == expected),
            "{error}"
        );
        assert!(!connection.is_between_messages());
        assert_eq!(memory.used(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_message_is_an_error_as_soon_as_it_shows() {
    for length in [0, 15, -1, i32::MAX, 1_000_001] {
        let (mut connection, mut server) = asked(&budget()).await;
        server.write_all(&length.to_le_bytes()).await.unwrap();
        assert!(matches!(receive(&mut connection).await, Err(ReceiveError::Frame(_))), "{length}");
        assert!(!connection.is_between_messages());
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_reply_takes_its_memory_along_and_leaves_the_connection_usable() {
    let memory = budget();
    let (mut connection, mut server) = asked(&memory).await;
    let large = reply(1, 300_000);
    server.write_all(&large).await.unwrap();
    receive(&mut connection).await.unwrap();
    assert_eq!(memory.used(), large.len());
    let taken = connection.take_reply(1_000);
    assert_eq!(taken.bytes, large[1_000..]);
    assert!(connection.reply().is_empty());
    assert!(connection.buffer.capacity() <= 2 * CONNECTION_BUFFER_BYTES);
    assert_eq!(memory.used(), large.len(), "it is still there");

    // A small one is copied, and costs no budget.
    ask(&mut connection, &mut server).await;
    let small = reply(2, 100);
    server.write_all(&small).await.unwrap();
    receive(&mut connection).await.unwrap();
    assert_eq!(connection.take_reply(10).bytes, small[10..]);
    drop(taken);
    assert_eq!(memory.used(), 0);

    // One that is forgotten gives its memory back at once.
    ask(&mut connection, &mut server).await;
    server.write_all(&reply(3, 300_000)).await.unwrap();
    receive(&mut connection).await.unwrap();
    connection.clear_reply();
    assert_eq!(memory.used(), 0);
    assert!(connection.buffer.capacity() <= 2 * CONNECTION_BUFFER_BYTES);
    assert!(connection.is_between_messages() && connection.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_large_reply_waits_for_memory_and_may_be_dropped_meanwhile() {
    let memory = MemoryBudget::new(MemoryShares { requests: 0, replies: 400_000, small: 0 });
    let (mut connection, mut server) = asked(&memory).await;
    let large = reply(1, 300_000);
    let held = memory.try_reply(200_000).unwrap();
    server.write_all(&large).await.unwrap();
    for _ in 0..3 {
        assert!(poll!(pin!(connection.receive())).is_pending());
        assert_eq!(memory.used(), 200_000, "nothing is kept of what is not enough");
    }
    drop(held);
    receive(&mut connection).await.unwrap();
    assert_eq!((connection.reply(), memory.used()), (&large[..], large.len()));
    connection.clear_reply();
    assert_eq!(memory.used(), 0);
}

/// The rest of a small reply is copied out of the connection's own buffer: it needs memory first, and waits for it there.
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_small_reply_waits_for_memory_and_may_be_dropped_meanwhile() {
    let memory = MemoryBudget::new(MemoryShares { requests: 0, replies: 1_000, small: 0 });
    let (mut connection, mut server) = asked(&memory).await;
    let small = reply(1, 500);
    server.write_all(&small).await.unwrap();
    receive(&mut connection).await.unwrap();
    let held = memory.try_reply(900).unwrap();
    for _ in 0..3 {
        assert!(poll!(pin!(connection.reserve_rest(100))).is_pending());
        assert_eq!((memory.used(), connection.reply()), (900, &small[..]));
    }
    drop(held);
    connection.reserve_rest(100).await;
    let taken = connection.take_reply(100);
    assert_eq!((&taken.bytes[..], memory.used()), (&small[100..], small.len() - 100));
    assert!(connection.buffer.capacity() >= CONNECTION_BUFFER_BYTES && connection.is_between_messages());
    drop(taken);
    assert_eq!(memory.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_put_in_the_place_of_a_reply_takes_over_its_memory() {
    let memory = MemoryBudget::new(MemoryShares { requests: 0, replies: 500_000, small: 0 });
    let (mut connection, mut server) = asked(&memory).await;
    let large = reply(1, 300_000);
    server.write_all(&large).await.unwrap();
    receive(&mut connection).await.unwrap();
    // Smaller: a part of it is free again.
    assert!(connection.replace_reply(reply(1, 200_000)[..].into(), None));
    assert_eq!(memory.used(), reply(1, 200_000).len());
    // Larger: there is not so much beside it, and nothing changes.
    assert!(!connection.replace_reply(reply(1, 400_000)[..].into(), None));
    assert_eq!((connection.reply(), memory.used()), (&reply(1, 200_000)[..], reply(1, 200_000).len()));
    let room = memory.try_reply(250_000);
    assert!(connection.replace_reply(reply(1, 210_000)[..].into(), room));
    assert_eq!((connection.reply(), memory.used()), (&reply(1, 210_000)[..], reply(1, 210_000).len()));
    // Small: the connection's own buffer is enough.
    assert!(connection.replace_reply(reply(1, 10)[..].into(), None));
    assert_eq!((connection.reply(), memory.used()), (&reply(1, 10)[..], 0));
    assert!(connection.is_between_messages());
    let (mut connection, mut server) = asked(&memory).await;
    server.write_all(&reply(1, 10)).await.unwrap();
    receive(&mut connection).await.unwrap();
    assert!(connection.replace_reply(reply(1, 300_000)[..].into(), None), "from small to large");
    assert_eq!(memory.used(), large.len());
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_can_never_find_memory_is_an_error_at_once() {
    let memory = MemoryBudget::new(MemoryShares { requests: 0, replies: 400_000, small: 0 });
    let (mut connection, mut server) = asked(&memory).await;
    server.write_all(&reply(1, 400_000)[..16]).await.unwrap();
    assert!(matches!(receive(&mut connection).await, Err(ReceiveError::Frame(_))));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_not_written_whole_ends_the_connection() {
    let memory = budget();
    let request = encode::op_msg(1, 0, &rawdoc! {"insert": "x".repeat(1_000)});
    // The server goes before, or in the middle.
    for read in [0, 100] {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut connection = Connection::new(Box::new(ours), memory.clone(), 1_000_000);
        connection.next_request_id();
        let server = async {
            theirs.read_exact(&mut vec![0; read]).await.unwrap();
            drop(theirs);
        };
        let (sent, ()) = futures_util::join!(connection.send(request.bytes()), server);
        sent.unwrap_err();
        assert!(!connection.is_between_messages());
    }
    // The caller goes in the middle.
    let (ours, _theirs) = tokio::io::duplex(64);
    let mut connection = Connection::new(Box::new(ours), memory.clone(), 1_000_000);
    assert!(connection.is_between_messages());
    assert!(poll!(pin!(connection.send(request.bytes()))).is_pending());
    assert!(!connection.is_between_messages());
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_ends_sending_receiving_and_every_later_use() {
    let memory = budget();
    let (ours, _theirs) = tokio::io::duplex(64);
    let mut connection = Connection::new(Box::new(ours), memory.clone(), 1_000_000);
    let interrupt = connection.interrupt();
    let request = encode::op_msg(1, 0, &rawdoc! {"insert": "x".repeat(1_000)});
    {
        let mut sending = pin!(connection.send(request.bytes()));
        assert!(poll!(&mut sending).is_pending());
        interrupt.raise();
        let sent = tokio::time::timeout(Duration::from_secs(1), sending).await;
        sent.expect("a server that does not read must not hold a command").unwrap_err();
    }
    assert!(!connection.is_between_messages());

    let (mut connection, _server) = asked(&memory).await;
    let interrupt = connection.interrupt();
    let mut receiving = pin!(connection.receive());
    assert!(poll!(&mut receiving).is_pending());
    interrupt.raise();
    let received = tokio::time::timeout(Duration::from_secs(1), receiving).await;
    assert!(matches!(received, Ok(Err(ReceiveError::Interrupted))));

    // One that is idle is not handed out any more.
    let (ours, _theirs) = tokio::io::duplex(64);
    let mut connection = Connection::new(Box::new(ours), memory, 1_000_000);
    assert!(connection.is_alive());
    connection.interrupt().raise();
    assert!(!connection.is_alive() && !connection.is_between_messages());
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_nobody_cleared_does_not_answer_the_next_request() {
    let (mut connection, mut server) = asked(&budget()).await;
    server.write_all(&reply(1, 10)).await.unwrap();
    receive(&mut connection).await.unwrap();
    ask(&mut connection, &mut server).await;
    assert!(poll!(pin!(connection.receive())).is_pending());
    server.write_all(&reply(2, 20)).await.unwrap();
    receive(&mut connection).await.unwrap();
    assert_eq!(connection.reply(), reply(2, 20));
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_the_server_a_second_at_most() {
    for (server_takes, closed_after) in [(300, 300), (5_000, 1_000)] {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let connection = Connection::new(Box::new(ours), budget(), 1_000_000);
        let began = Instant::now();
        let server = async {
            // Bytes that still come do not end the wait early.
            theirs.write_all(&[0; 10]).await.unwrap();
            assert_eq!(theirs.read(&mut [0; 10]).await.unwrap(), 0);
            tokio::time::sleep(Duration::from_millis(server_takes)).await;
            drop(theirs);
        };
        let close = async {
            connection.close().await;
            began.elapsed()
        };
        let (waited, ()) = futures_util::join!(close, server);
        assert_eq!(waited.as_millis(), closed_after);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_measured_from_the_last_byte_and_not_from_the_first() {
    let (mut connection, mut server) = asked(&budget()).await;
    connection.socket_timeout = Some(Duration::from_secs(1));
    let drip = async {
        for byte in reply(1, 0) {
            tokio::time::sleep(Duration::from_millis(900)).await;
            server.write_all(&[byte]).await.unwrap();
        }
    };
    let (received, ()) = tokio::join!(connection.receive(), drip);
    received.expect("slow, and never silent for long");

    ask(&mut connection, &mut server).await;
    let error = connection.receive().await.unwrap_err();
    assert!(matches!(error, ReceiveError::Silent(_)), "{error}");
    assert!(!connection.is_between_messages());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_nothing_is_silent_too() {
    let (ours, _theirs) = tokio::io::duplex(8);
    let mut connection = Connection::new(Box::new(ours), budget(), 1_000_000);
    connection.socket_timeout = Some(Duration::from_secs(1));
    let request = encode::op_msg(connection.next_request_id(), 0, &rawdoc! {"ping": 1});
    let error = connection.send(request.bytes()).await.unwrap_err();
    assert_eq!(error.0.kind(), io::ErrorKind::TimedOut);
    assert!(!connection.is_between_messages());
}

/// A reply that is compressed with zstd, and the message inside.
fn packed_reply(response_to: i32, bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let inside = reply(response_to, bytes);
    (op_compressed::compress(&inside, Compressor::Zstd, 1_000_000).to_vec(), inside)
}

/// As [`asked`], where compression was agreed on.
async fn asked_compressed(memory: &Arc<MemoryBudget>) -> (Connection, DuplexStream) {
    let (mut connection, server) = asked(memory).await;
    connection.compression = Some(Compressor::Zstd.into());
    (connection, server)
}

#[tokio::test]
async fn a_compressed_reply_split_at_every_byte_comes_out_in_both_forms() {
    let memory = budget();
    for (bytes, step) in [(30, 1), (200_000, 7)] {
        let (packed, inside) = packed_reply(1, bytes);
        for split in (0..packed.len()).step_by(step) {
            for compressor in [None, Some(Compressor::Snappy), Some(Compressor::Zstd)] {
                let (mut connection, mut server) = asked_compressed(&memory).await;
                server.write_all(&packed[..split]).await.unwrap();
                assert!(poll!(pin!(connection.receive())).is_pending(), "{split}");
                assert!(!connection.is_between_messages() && connection.has_reply() == (split > 0));
                server.write_all(&packed[split..]).await.unwrap();
                receive(&mut connection).await.unwrap();
                assert!(connection.reply() == inside && connection.is_between_messages());
                assert_eq!(connection.received_bytes(), packed.len());
                let both = packed.len() + inside.len();
                assert_eq!(memory.used(), if both > CONNECTION_BUFFER_BYTES { both } else { 0 });
                let as_it_came = connection.choose_form(compressor);
                assert_eq!(as_it_came, compressor == Some(Compressor::Zstd));
                let chosen = if as_it_came { &packed } else { &inside };
                assert!(connection.reply() == chosen);
                assert_eq!(memory.used(), if both > CONNECTION_BUFFER_BYTES { chosen.len() } else { 0 });
                connection.clear_reply();
                assert!(!connection.has_reply() && memory.used() == 0);
                ask(&mut connection, &mut server).await;
            }
        }
    }
}

#[tokio::test]
async fn a_large_compressed_reply_may_be_dropped_while_it_is_opened() {
    let memory = budget();
    let (packed, inside) = packed_reply(1, 900_000);
    for polls in 0..5 {
        let (mut connection, mut server) = asked_compressed(&memory).await;
        server.write_all(&packed).await.unwrap();
        for _ in 0..polls {
            // Whether it is done by then is up to the other thread.
            if poll!(pin!(connection.receive())).is_ready() {
                break;
            }
            assert!(connection.has_reply() && !connection.is_between_messages(), "no command may follow yet");
        }
        if !connection.is_between_messages() {
            receive(&mut connection).await.unwrap();
        }
        assert!(connection.reply() == inside, "{polls}");
        assert_eq!(memory.used(), packed.len() + inside.len());
        drop(connection);
        assert_eq!(memory.used(), 0);
    }
    // One that nobody waits for any more gives its memory back once the other thread is done.
    let (mut connection, mut server) = asked_compressed(&memory).await;
    server.write_all(&packed).await.unwrap();
    // Whether it is done by then is up to the other thread once more.
    drop(poll!(pin!(connection.receive())));
    drop(connection);
    let freed = async {
        while memory.used() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the memory comes back");
}

#[tokio::test(start_paused = true)]
async fn compressed_replies_that_make_no_sense_are_errors_before_their_bytes_are_read() {
    let short = MemoryBudget::new(MemoryShares { requests: 1_000_000, replies: 150_000, small: 1_000 });
    let head = |response_to: i32, op_code: i32, size: i32, id: u8| {
        let parts = [80_000, 77, response_to, 2012, op_code, size].map(i32::to_le_bytes).concat();
        [&parts[..], &[id]].concat()
    };
    for (what, head, memory) in [
        ("another request", head(2, 2013, 100, 3), budget()),
        ("more than a message may have", head(1, 2013, 1_000_000, 3), budget()),
        ("less than nothing", head(1, 2013, -1, 3), budget()),
        ("no known compressor", head(1, 2013, 100, 8), budget()),
        ("one inside another", head(1, 2012, 100, 3), budget()),
        ("more than replies may ever take", head(1, 2013, 70_000, 3), short),
    ] {
        let (mut connection, mut server) = asked_compressed(&memory).await;
        server.write_all(&head).await.unwrap();
        receive(&mut connection).await.expect_err(what);
        assert!(!connection.is_between_messages() && memory.used() == 0, "{what}");
    }
    let (mut connection, mut server) = asked(&budget()).await;
    server.write_all(&packed_reply(1, 30).0).await.unwrap();
    assert!(
        matches!(receive(&mut connection).await, Err(ReceiveError::Unexpected { op_code: 2012, .. })),
        "not agreed"
    );
}
