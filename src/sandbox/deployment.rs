//! Throw-away deployments: a standalone, or a replica set of 1 to 7 members on this machine.

use std::path::PathBuf;
use std::slice;

use bson::{Document, doc};
use futures_util::future::try_join_all;
use tokio::time::{Duration, Instant, sleep};

use super::find;
use super::mongod::{Mongod, MongodError, MongodOptions};
use super::wire_client::WireClient;

/// Name of every replica set made here.
pub const REPLICA_SET: &str = "mongomux";

/// Longest wait for an election, and for the members of a new set to be in step.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// How often members are asked for their state.
const STATE_POLL: Duration = Duration::from_millis(50);

/// What the members of a new set use until it is in step: with the server's defaults that takes ten seconds more.
const QUICK_ELECTION: Duration = Duration::from_millis(500);
const QUICK_HEARTBEAT: Duration = Duration::from_millis(200);

/// What kind of deployment, and how its servers are started.
#[derive(Debug, Clone, Default)]
pub struct DeploymentOptions {
    /// The server program; `None` to look for it as [`find::mongod`] does.
    pub mongod: Option<PathBuf>,
    /// Members of the replica set; 0 for a standalone.
    pub members: usize,
    /// Clients must authenticate; see [`MongodOptions::key`].
    pub auth: bool,
    /// Fail points; see [`MongodOptions::test_commands`].
    pub test_commands: bool,
    /// How long secondaries miss a primary before they elect another; `None` for the server's 10 s. Below 1 s a busy
    /// machine elects for no reason.
    pub election_timeout: Option<Duration>,
    /// Further arguments of every server.
    pub arguments: Vec<String>,
}

impl DeploymentOptions {
    /// For tests: fail points, and elections in about two seconds instead of twelve. 0 members for a standalone.
    pub fn for_tests(members: usize) -> Self {
        let election_timeout = Some(Duration::from_secs(1));
        Self { members, test_commands: true, election_timeout, ..Self::default() }
    }
}

/// Running servers; dropping it kills them and removes their files.
#[derive(Debug)]
pub struct Deployment {
    members: Vec<Mongod>,
    replica_set: bool,
}

impl Deployment {
    /// A standalone, started [for tests](DeploymentOptions::for_tests).
    pub async fn standalone() -> Result<Self, MongodError> {
        Self::start(DeploymentOptions::for_tests(0)).await
    }

    /// A replica set of `members` (1 to 7), started [for tests](DeploymentOptions::for_tests), with a primary and every
    /// other member a secondary.
    pub async fn replica_set(members: usize) -> Result<Self, MongodError> {
        Self::start(DeploymentOptions::for_tests(members)).await
    }

    /// Starts what `options` say and waits until it is ready for work: a replica set has a primary, and every other
    /// member is a secondary.
    ///
    /// # Cancel safety
    /// Dropping the future kills what it started.
    pub async fn start(options: DeploymentOptions) -> Result<Self, MongodError> {
        let mut server = MongodOptions::new(find::mongod(options.mongod.as_deref()).await?);
        let replica_set = options.members > 0;
        server.replica_set = replica_set.then(|| REPLICA_SET.to_owned());
        // Base64 digits only, which hexadecimal ones are.
        server.key = options.auth.then(|| format!("{:032x}", rand::random::<u128>()));
        server.test_commands = options.test_commands;
        server.arguments.clone_from(&options.arguments);
        let servers = (0..options.members.max(1)).map(|_| Mongod::start(server.clone()));
        let deployment = Self { members: try_join_all(servers).await?, replica_set };
        if replica_set {
            deployment.initiate(&options).await?;
        }
        Ok(deployment)
    }

    /// The connection string of the whole deployment.
    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(|member| member.address().to_string()).collect();
        let query = if self.replica_set { format!("?replicaSet={REPLICA_SET}") } else { String::new() };
        format!("mongodb://{}/{query}", hosts.join(","))
    }

    /// All servers, in the order of the connection string.
    pub fn members(&self) -> &[Mongod] {
        &self.members
    }

    /// All servers, to kill or restart them.
    pub fn members_mut(&mut self) -> slice::IterMut<'_, Mongod> {
        self.members.iter_mut()
    }

    /// One server; the standalone is 0.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn member(&mut self, index: usize) -> &mut Mongod {
        &mut self.members[index]
    }

    /// Index of the member that is the writable primary now and is known as such to itself; 0 in a standalone.
    pub async fn primary(&self) -> Option<usize> {
        for (index, member) in self.members.iter().enumerate() {
            if hello(member).await.is_some_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false)) {
                return Some(index);
            }
        }
        None
    }

    /// Waits for a primary, as after a fail-over, and returns its index.
    pub async fn await_primary(&self) -> Result<usize, MongodError> {
        let deadline = Instant::now() + ELECTION_TIMEOUT;
        loop {
            if let Some(index) = self.primary().await {
                return Ok(index);
            }
            self.wait(deadline, "no primary").await?;
        }
    }

    /// Waits until every running member is primary or secondary, and one is primary.
    pub async fn await_members(&self) -> Result<usize, MongodError> {
        let deadline = Instant::now() + ELECTION_TIMEOUT;
        loop {
            let mut ready = true;
            for member in self.members.iter().filter(|member| member.pid().is_some()) {
                let state = hello(member).await;
                let is = |field| state.as_ref().is_some_and(|hello| hello.get_bool(field).unwrap_or(false));
                ready &= is("isWritablePrimary") || is("secondary");
            }
            if ready && let Some(index) = self.primary().await {
                return Ok(index);
            }
            self.wait(deadline, "members are neither primary nor secondary").await?;
        }
    }

    /// One poll further, or the end of patience.
    async fn wait(&self, deadline: Instant, what: &'static str) -> Result<(), MongodError> {
        if Instant::now() >= deadline {
            let log = self.members.first().map(|member| member.log_tail(12)).unwrap_or_default();
            return Err(MongodError::NoElection { what, waited: ELECTION_TIMEOUT, log });
        }
        sleep(STATE_POLL).await;
        Ok(())
    }

    async fn initiate(&self, options: &DeploymentOptions) -> Result<(), MongodError> {
        let members: Vec<Document> = (0_i32..)
            .zip(&self.members)
            .map(|(id, member)| doc! { "_id": id, "host": member.address().to_string() })
            .collect();
        let mut config = doc! {
            "_id": REPLICA_SET,
            "version": 1,
            "members": members,
            "settings": {
                "electionTimeoutMillis": millis(QUICK_ELECTION),
                "heartbeatIntervalMillis": millis(QUICK_HEARTBEAT),
            },
        };
        let first = &self.members[0];
        command(first, "replSetInitiate", doc! { "replSetInitiate": &config }).await?;
        let primary = self.await_members().await?;
        if options.auth {
            // A second configuration would need a user, and there is none yet.
            return Ok(());
        }
        let mut settings = Document::new();
        if let Some(election) = options.election_timeout {
            settings.insert("electionTimeoutMillis", millis(election));
            settings.insert("heartbeatIntervalMillis", millis(QUICK_HEARTBEAT));
        }
        config.insert("settings", settings);
        config.insert("version", 2);
        // Forced, as the set may still be settling the "newly added" state of its members.
        let reconfigure = doc! { "replSetReconfig": config, "force": true };
        command(&self.members[primary], "replSetReconfig", reconfigure).await?;
        self.await_members().await.map(drop)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// `None` when the member does not run, hangs or refuses.
async fn hello(member: &Mongod) -> Option<Document> {
    member.pid()?;
    let ask = async { WireClient::connect(&member.address()).await?.command("admin", doc! { "hello": 1 }).await };
    // One that is paused accepts and never answers.
    tokio::time::timeout(Duration::from_secs(1), ask).await.ok()?.ok()
}

async fn command(member: &Mongod, what: &'static str, command: Document) -> Result<Document, MongodError> {
    let run = async { WireClient::connect(&member.address()).await?.command("admin", command).await };
    run.await.map_err(|source| MongodError::Command { what, source })
}
