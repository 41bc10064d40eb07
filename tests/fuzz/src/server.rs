//! What a server may send, to a connection that greets it, logs in and asks something.
//!
//! A connection is given out only to a server that has proved itself, a reply only to the request that it answers; and nothing
//! is kept of whoever was hung up on.

use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use bson::{RawDocument, rawdoc};
use mongomux::admission::MemoryBudget;
use mongomux::auth::{Identities, UserId};
use mongomux::config::MemoryShares;
use mongomux::config::uri::Upstream;
use mongomux::topology::monitor::Monitor;
use mongomux::upstream::Connection;
use mongomux::upstream::handshake::{ConnectError, MIN_WIRE_VERSION, UpstreamDialer};
use mongomux::wire::{Frame, MessageHeader, OpCode, encode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

/// Largest message, bytes: small, so that a fuzzer gets there.
const LIMIT: usize = 32 * 1024;

/// Virtual time that a server has for all of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a server goes on.
#[derive(Debug, Arbitrary)]
struct Server {
    logs_in: bool,
    compresses: bool,
    replies: Vec<Reply>,
}

/// What is sent when something was asked.
#[derive(Debug, Arbitrary)]
enum Reply {
    /// A sound hello, with more fields.
    Hello(Vec<u8>),
    /// A message that answers, of an op code that may do so or not.
    Message { op_code: u8, body: Vec<u8> },
    /// Any bytes at all.
    Bytes(Vec<u8>),
}

/// What the server does is made of the bytes.
pub fn check(data: &[u8]) {
    let Ok(server) = Server::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let memory = MemoryBudget::new(MemoryShares { requests: 0, replies: 2 * LIMIT, small: 0 });
    runtime.block_on(async {
        let connecting = tokio::time::timeout(PATIENCE, connect(&server, &memory));
        if let Ok(Ok((connection, theirs, left))) = connecting.await {
            assert!(!server.logs_in, "a server that does not know the password is taken for the right one");
            assert!(connection.greeting.max_wire_version >= MIN_WIRE_VERSION);
            drop(tokio::time::timeout(PATIENCE, ask(connection, theirs, left)).await);
        }
    });
    assert_eq!(memory.used(), 0);
}

type Connected<'a> = (Connection, DuplexStream, &'a [Reply]);

async fn connect<'a>(server: &'a Server, memory: &Arc<MemoryBudget>) -> Result<Connected<'a>, ConnectError> {
    let user = if server.logs_in { "user:password@" } else { "" };
    let compressors = if server.compresses { "?compressors=zstd,zlib,snappy" } else { "" };
    let upstream = Upstream::parse(&format!("mongodb://{user}localhost/{compressors}")).unwrap();
    let monitor = Monitor::idle(&upstream);
    let dialer = UpstreamDialer::new(&upstream, None, monitor, Arc::new(Identities::default()), memory.clone(), LIMIT);
    let (ours, mut theirs) = tokio::io::duplex(LIMIT);
    let connecting = dialer.connect_over(Box::new(ours), UserId::SERVICE);
    let mut replies = server.replies.iter();
    let answering = async {
        while let Some(asked) = request(&mut theirs).await {
            let Some(reply) = replies.next() else { break };
            answer(&mut theirs, asked, reply).await;
        }
        // What is asked now is answered by nobody.
        drop(theirs.shutdown().await);
        std::future::pending::<()>().await;
    };
    let connection = tokio::select! {
        biased;
        connection = connecting => connection?,
        () = answering => unreachable!("it never ends"),
    };
    Ok((connection, theirs, replies.as_slice()))
}

/// Asks something, and hangs up.
async fn ask(mut connection: Connection, mut theirs: DuplexStream, replies: &[Reply]) {
    let id = connection.next_request_id();
    let ping = encode::op_msg(id, 0, &rawdoc! {"ping": 1, "$db": "admin"});
    let answering = async {
        if let (Some(asked), Some(reply)) = (request(&mut theirs).await, replies.first()) {
            answer(&mut theirs, asked, reply).await;
        }
        drop(theirs.shutdown().await);
        std::future::pending::<()>().await;
    };
    let asked = tokio::select! {
        biased;
        asked = connection.exchange(ping.bytes()) => asked.map(<[u8]>::to_vec),
        () = answering => unreachable!("it never ends"),
    };
    let Ok(answer) = asked else { return assert!(!connection.is_between_messages(), "nobody uses it again") };
    let header = MessageHeader::parse(&answer, LIMIT).unwrap().unwrap();
    assert_eq!((header.response_to, header.op_code, header.length), (id, OpCode::Msg, answer.len()));
}

/// The id of the next request.
async fn request(theirs: &mut DuplexStream) -> Option<i32> {
    let mut head = [0; 16];
    theirs.read_exact(&mut head).await.ok()?;
    let header = MessageHeader::parse(&head, usize::MAX).ok()??;
    let mut rest = vec![0; header.length - head.len()];
    theirs.read_exact(&mut rest).await.ok()?;
    Some(header.request_id)
}

async fn answer(theirs: &mut DuplexStream, asked: i32, reply: &Reply) {
    let bytes = match reply {
        Reply::Hello(more) => {
            let mut hello = rawdoc! {"ok": 1.0, "maxWireVersion": 17, "compression": ["zlib", "snappy", "zstd"]};
            for (name, value) in RawDocument::from_bytes(more).into_iter().flatten().map_while(Result::ok) {
                hello.append(name, value);
            }
            encode::op_msg(1, asked, &hello).bytes().to_vec()
        }
        Reply::Message { op_code, body } => {
            let op_codes = [OpCode::Msg, OpCode::Compressed, OpCode::Reply, OpCode::Other(3)];
            Frame::build(1, asked, op_codes[usize::from(op_code % 4)], body).bytes().to_vec()
        }
        Reply::Bytes(bytes) => bytes.clone(),
    };
    // Whoever has hung up takes nothing.
    drop(theirs.write_all(&bytes).await);
}
