//! A client's log-in: two messages through a session, and what the proofs cost. The client's own proof is in it, as dear as ours.

use std::sync::Arc;

use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};
use divan::Bencher;
use mongomux::auth::identity::UserName;
use mongomux::auth::scram::ScramClient;
use mongomux::auth::scram_server::Decoys;
use mongomux::auth::users::{Boxed, Proof, UserRecord, UserSource, UsersUnavailable, Verifier};
use mongomux::auth::{ClientNonce, Identities, Identity, Mechanism, Realm, SaltedKeys, UpstreamLogin};
use mongomux::client::log_in::LogIns;
use mongomux::client::shared::ClientLimits;
use mongomux::config::ClientConfig;
use tokio::time::Instant;

use crate::path::{client, exchange};
use crate::rig::{PIPE_BYTES, Rig};
use crate::support::raw;

/// One user.
struct One(Arc<UserRecord>, Realm);

impl UserSource for One {
    fn find<'a>(&'a self, _: &'a UserName) -> Boxed<'a, Result<Option<Arc<UserRecord>>, UsersUnavailable>> {
        Box::pin(std::future::ready(Ok(Some(self.0.clone()))))
    }

    fn admit(&self, user: &UserName, _: &UserRecord, _: Proof) -> Result<Arc<Identity>, UsersUnavailable> {
        Ok(self.1.admit(user, self.0.clone(), UpstreamLogin::Service, Instant::now()).expect("there is one"))
    }

    fn takes_other_than_scram(&self) -> bool {
        true
    }
}

/// The same user logs in over and over on one socket.
#[divan::bench(args = ["SCRAM-SHA-1", "SCRAM-SHA-256"])]
fn log_in(bencher: Bencher<'_, '_>, name: &str) {
    let mechanism = if name == "SCRAM-SHA-1" { Mechanism::Sha1 } else { Mechanism::Sha256 };
    let rig = Rig::new();
    let mut record = UserRecord::default();
    record.set(Verifier::derive(mechanism, "user", "pencil", vec![7; 28], 15_000).expect("a password"));
    let source = Arc::new(One(Arc::new(record), Arc::new(Identities::default()).realm()));
    let metrics = rig.cluster.metrics.clone();
    let limits = Arc::new(ClientLimits::from_pointee(ClientConfig { failed_log_ins: None, ..rig.client.clone() }));
    let log_ins = LogIns::new(source, Arc::new(Decoys::new([1; 32])), limits, metrics);
    let mut socket = rig.runtime.block_on(client(&rig, Some(log_ins)));
    let (mut reply, mut keys) = (vec![0; PIPE_BYTES], None);
    let mut once = || rig.runtime.block_on(conversation(&mut socket, mechanism, &mut keys, &mut reply));
    once();
    bencher.bench_local(once);
}

async fn conversation(
    socket: &mut tokio::io::DuplexStream,
    mechanism: Mechanism,
    keys: &mut Option<SaltedKeys>,
    reply: &mut [u8],
) {
    let client = ScramClient::new(mechanism, "user", "pencil", ClientNonce::from_random([3; 24])).expect("a password");
    let payload = |bytes: Vec<u8>| Binary { subtype: BinarySubtype::Generic, bytes };
    let start = doc! {
        "saslStart": 1, "mechanism": mechanism.name(), "payload": payload(client.client_first()),
        "options": { "skipEmptyExchange": true }, "$db": "admin",
    };
    let length = exchange(socket, &raw::command(start), reply).await;
    let first = Document::from_reader(&reply[21..length]).expect("a document");
    let challenge =
        client.on_server_first(first.get_binary_generic("payload").expect("a payload")).expect("a challenge");
    let keys = keys.get_or_insert_with(|| challenge.derivation().derive());
    let (proof, _) = challenge.client_final(keys);
    let next = doc! { "saslContinue": 1, "conversationId": 1, "payload": payload(proof), "$db": "admin" };
    let length = exchange(socket, &raw::command(next), reply).await;
    let last = Document::from_reader(&reply[21..length]).expect("a document");
    assert!(last.get_bool("done").expect("logged in"), "{last}");
}
