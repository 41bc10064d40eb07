//! A whole command: from the pipe of its client through a session to the pipe of the server, and back.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bson::oid::ObjectId;
use divan::Bencher;
use futures_util::FutureExt as _;
use mongomux::client::facade::{self, Offer};
use mongomux::client::log_in::LogIns;
use mongomux::client::session::Session;
use mongomux::client::shared::{Activity, ClientLimits};
use mongomux::client::{ClientShared, Clusters, Ends, Places};
use mongomux::config::{Address, Databases};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::rig::{PIPE_BYTES, Rig};
use crate::support::canned::{self, LARGE, SMALL};

/// What both ends of the pipes do is in it: a few hundred nanoseconds, and the three allocations of the server.
#[divan::bench(args = ["ping", "find", "find_16k", "insert", "insert_16k"])]
fn command(bencher: Bencher<'_, '_>, command: &str) {
    let request = match command {
        "ping" => canned::ping(),
        "find" => canned::find(SMALL),
        "find_16k" => canned::find(LARGE),
        "insert" => canned::insert(SMALL),
        "insert_16k" => canned::insert(LARGE),
        other => unreachable!("{other} is not in the list"),
    };
    let rig = Rig::new();
    let mut client = rig.runtime.block_on(client(&rig, None));
    let mut reply = vec![0; PIPE_BYTES];
    rig.runtime.block_on(exchange(&mut client, &canned::hello(), &mut reply));
    bencher.bench_local(|| rig.runtime.block_on(exchange(&mut client, &request, &mut reply)));
}

/// A client at the other end of a session's pipe.
pub(crate) async fn client(rig: &Rig, log_ins: Option<Arc<LogIns>>) -> DuplexStream {
    let offer = Offer {
        presentation: rig.cluster.config().presentation,
        shown_set: None,
        compressors: facade::compressors(&[]),
        max_message_bytes: rig.client.max_message_bytes,
        service_id: ObjectId::new(),
    };
    let clusters = Clusters::new(rig.cluster.clone(), Databases::from_iter([]));
    let facts = facade::follow(&clusters, offer, &rig.tasks);
    let limits = Arc::new(ClientLimits::from_pointee(rig.client.clone()));
    let nowhere = Address::tcp("127.0.0.1", 0);
    let shared =
        ClientShared::new(nowhere, clusters, Arc::default(), limits, facts, Arc::new(Activity::default()), log_ins);
    let places = Places::new(&rig.client, rig.cluster.metrics.clone());
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let session = Session::new(theirs, Ends::Tcp { peer: nobody, local: nobody }, shared, places.take().await);
    rig.tasks.spawn("client", session.run(Arc::default()).map(drop));
    ours
}

/// Sends a request and reads its whole reply, which is that long.
pub(crate) async fn exchange(client: &mut DuplexStream, request: &[u8], reply: &mut [u8]) -> usize {
    client.write_all(request).await.expect("a session that goes on");
    client.read_exact(&mut reply[..4]).await.expect("a reply");
    let length = u32::from_le_bytes(reply[..4].try_into().expect("four bytes")) as usize;
    client.read_exact(&mut reply[4..length]).await.expect("the rest of it");
    assert_eq!(reply[8..12], request[4..8], "a reply to somebody else");
    length
}
