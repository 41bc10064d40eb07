//! Who is primary, asked of the members themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::doc;
use bson::oid::ObjectId;
use mongomux::config::Address;
use mongomux::sandbox::wire_client::{WireClient, WireError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::{PATIENCE, connect};

/// Between two questions to a member.
const POLL: Duration = Duration::from_millis(4);

/// A primary, as it said itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elected {
    /// Who it is.
    pub member: Address,
    /// Grows with every election.
    pub election: ObjectId,
    /// When it was heard first.
    pub at: Instant,
}

/// Asks every member all the time, on a socket of its own each, until it is dropped.
pub struct Elections {
    latest: watch::Receiver<Option<Elected>>,
    dials: Arc<AtomicU64>,
    _askers: JoinSet<()>,
}

impl Elections {
    /// Starts to ask.
    pub fn watch(members: impl IntoIterator<Item = Address>) -> Self {
        let (tell, latest) = watch::channel(None);
        let dials = Arc::new(AtomicU64::new(0));
        let mut askers = JoinSet::new();
        for member in members {
            askers.spawn(ask(member, tell.clone(), dials.clone()));
        }
        Self { latest, dials, _askers: askers }
    }

    /// Waits for the first primary of all.
    pub async fn current(&self) -> Elected {
        self.wait_for(|_| true).await
    }

    /// Waits for the primary that follows `before`.
    pub async fn next(&self, before: &Elected) -> Elected {
        self.wait_for(|elected| elected.election > before.election).await
    }

    /// Sockets opened so far, to tell them from those of others.
    pub fn dials(&self) -> u64 {
        self.dials.load(Ordering::Relaxed)
    }

    async fn wait_for(&self, suits: impl Fn(&Elected) -> bool) -> Elected {
        let mut latest = self.latest.clone();
        let found = timeout(2 * PATIENCE, latest.wait_for(|elected| elected.as_ref().is_some_and(&suits))).await;
        found.expect("an election in time").expect("the askers run").clone().expect("it suits")
    }
}

impl Elected {
    /// How long after the election the first write was acknowledged by a majority to somebody who asks the new primary
    /// itself, at once: what is beyond that is the proxy's.
    pub async fn first_direct_write(&self) -> Duration {
        self.direct_writes(0).await[0]
    }

    /// The same for writes that follow each other closely, until a last one after so many seconds.
    pub async fn direct_writes(&self, seconds: u64) -> Vec<Duration> {
        let mut client = connect(&self.member).await;
        let mut acknowledged = Vec::new();
        loop {
            let insert = doc! { "insert": "c", "documents": [{ "x": 1 }], "writeConcern": { "w": "majority" } };
            client.command("direct", insert).await.expect("a write on the new primary");
            acknowledged.push(self.at.elapsed());
            if self.at.elapsed() >= Duration::from_secs(seconds) {
                return acknowledged;
            }
            sleep(POLL).await;
        }
    }
}

async fn ask(member: Address, tell: watch::Sender<Option<Elected>>, dials: Arc<AtomicU64>) {
    loop {
        dials.fetch_add(1, Ordering::Relaxed);
        // Ends when the member does.
        drop(ask_until_it_ends(&member, &tell).await);
        sleep(POLL).await;
    }
}

async fn ask_until_it_ends(member: &Address, tell: &watch::Sender<Option<Elected>>) -> Result<(), WireError> {
    let mut client = WireClient::connect(member).await?;
    loop {
        let hello = client.command("admin", doc! { "hello": 1 }).await?;
        if let (Ok(true), Ok(election)) = (hello.get_bool("isWritablePrimary"), hello.get_object_id("electionId")) {
            tell.send_if_modified(|latest| {
                // One that was paused takes itself for primary for a moment longer.
                let is_news = latest.as_ref().is_none_or(|latest| latest.election < election);
                if is_news {
                    *latest = Some(Elected { member: member.clone(), election, at: Instant::now() });
                }
                is_news
            });
        }
        sleep(POLL).await;
    }
}
