//! What a client may send, through the session that serves it, in front of servers that nobody finds.
//!
//! Each request is answered once and in its turn, or the socket is closed; and nothing is kept of whoever has left.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, os::fd::OwnedFd};

use bson::RawDocument;
use bytes::BytesMut;
use mongomux::admission::MemoryBudget;
use mongomux::auth::UserId;
use mongomux::client::desks::Desks;
use mongomux::client::leaving::ClientStream;
use mongomux::client::session::Session;
use mongomux::client::shared::{Activity, ClientLimits};
use mongomux::client::{ClientShared, Clusters, Ends, Places, RulesInForce};
use mongomux::config::{Address, Config, Databases, MemoryShares, Rules, Sources};
use mongomux::reply::{Facts, Shown};
use mongomux::tasks::Tasks;
use mongomux::telemetry::metrics::Metrics;
use mongomux::topology::monitor::Monitor;
use mongomux::upstream::handshake::{ConnectError, Dialer};
use mongomux::upstream::{Cluster, Connection};
use mongomux::wire::{Compressor, Frame, HEADER_LEN, MessageHeader, OpCode, op_compressed};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Virtual time that a client has; commands wait for a server much shorter.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Room on the way between client and proxy: a request or two.
const PIPE_BYTES: usize = 4096;

thread_local! {
    static PROXY: Proxy = Proxy::new();
}

/// One byte says in which parts the others come.
pub fn check(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    PROXY.with(|proxy| proxy.serve(stream, usize::from(*choice).max(1)));
}

/// A pipe as the socket of a client.
struct Piped(DuplexStream);

impl AsyncRead for Piped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Piped {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl ClientStream for Piped {
    const IS_PLAIN: bool = false;

    fn duplicate(&self) -> Option<OwnedFd> {
        None
    }

    fn has_unread(&self) -> bool {
        false
    }
}

/// Knows no server, so that nobody is dialled.
struct NoServers;

impl Dialer for NoServers {
    fn connect<'a>(
        &'a self,
        _: &'a Address,
        _: UserId,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send + 'a>> {
        Box::pin(std::future::ready(Err(ConnectError::Dial(io::ErrorKind::ConnectionRefused.into()))))
    }
}

/// All that sessions share, on a clock that goes on when nothing else does.
struct Proxy {
    runtime: Runtime,
    shared: Arc<ClientShared>,
    places: Arc<Places>,
    memory: Arc<MemoryBudget>,
}

impl Proxy {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let within = runtime.enter();
        let mut config = Config::load(&Sources::default()).unwrap().0;
        let memory = MemoryBudget::new(MemoryShares::of(config.memory_limit_bytes as u64));
        let metrics = Metrics::new();
        let of_cluster = config.clusters.remove(0);
        let monitor = Monitor::idle(&of_cluster.upstream);
        let (dialer, identities) = (Arc::new(NoServers), Arc::default());
        let cluster =
            Cluster::new(of_cluster, monitor, dialer, identities, memory.clone(), Tasks::new(), metrics.clone());
        let facts = Facts {
            presentation: Shown::Mongos,
            shown_set: None,
            min_wire_version: 0,
            max_wire_version: 17,
            service_id: bson::oid::ObjectId::from_bytes([7; 12]),
            compressors: Compressor::ALL.into_iter().collect(),
            max_message_bytes: 48_000_000,
        };
        let (_, facts) = watch::channel(Some(facts));
        let limits = Arc::new(ClientLimits::from_pointee(config.client.clone()));
        let shared = ClientShared::new(
            config.listeners[0].listen.clone(),
            Clusters::new(cluster, std::iter::empty().collect::<Databases<_>>()),
            RulesInForce::new(Rules::default()),
            limits,
            facts,
            Arc::new(Activity::default()),
            None,
        );
        let places = Places::new(&config.client, metrics);
        drop(within);
        Self { runtime, shared, places, memory }
    }

    fn serve(&self, stream: &[u8], part: usize) {
        let replies = self.runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let ends = Ends::Unix("/client".into());
            let session = Session::new(Piped(ours), ends, self.shared.clone(), self.places.take().await);
            let served = session.run(Arc::new(Desks::default()));
            let (mut from_proxy, mut to_proxy) = tokio::io::split(theirs);
            let sending = async {
                for part in stream.chunks(part) {
                    // Who is closed in the middle of it is told so below.
                    if to_proxy.write_all(part).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                drop(to_proxy.shutdown().await);
            };
            let mut replies = BytesMut::new();
            let receiving = async { while from_proxy.read_buf(&mut replies).await.is_ok_and(|read| read > 0) {} };
            let all = async { tokio::join!(served, sending, receiving) };
            tokio::time::timeout(PATIENCE, all).await.expect("a session ends with its client");
            replies
        });
        assert_eq!((self.memory.used(), self.places.taken()), (0, 0), "nothing is kept of who has left");
        are_answers(stream, replies);
    }
}

/// The replies are whole, sound, and each of them the answer to the next request, or to one after it.
fn are_answers(stream: &[u8], mut replies: BytesMut) {
    let mut asked = requests(stream).into_iter();
    while !replies.is_empty() {
        let reply = Frame::decode(&mut replies, 48_000_000).expect("we speak the protocol");
        let reply = reply.expect("no byte of a reply goes out before the last is there");
        let header = *reply.header();
        assert!(asked.any(|request| request == header.response_to), "nobody asked for {header:?}");
        let reply = match header.op_code {
            OpCode::Compressed => op_compressed::decompress(&reply, 48_000_000).expect("it can be opened").0,
            _ => reply,
        };
        let document = match reply.header().op_code {
            OpCode::Msg => &reply.bytes()[HEADER_LEN + 5..],
            OpCode::Reply => &reply.bytes()[HEADER_LEN + 20..],
            other => panic!("a client does not read {other:?}"),
        };
        let document = RawDocument::from_bytes(document).expect("one document to the end");
        assert!(document.iter().all(|element| element.is_ok()));
    }
}

/// The ids of the messages in the stream, in order, up to where it is none any more.
fn requests(mut stream: &[u8]) -> Vec<i32> {
    let mut ids = Vec::new();
    while let Ok(Some(MessageHeader { length, request_id, .. })) = MessageHeader::parse(stream, 48_000_000)
        && let Some(rest) = stream.get(length..)
    {
        ids.push(request_id);
        stream = rest;
    }
    ids
}
