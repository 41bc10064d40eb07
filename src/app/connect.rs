//! `mongomux check --connect`: walks to every server that the connection string names, and to those that they tell of, as a connection
//! of the proxy would; says how long each step took, and in plain words what to look at where one failed.

mod advice;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bson::RawDocument;
use futures_util::future::join_all;
use serde::{Serialize, Serializer};
use tokio::time::{Instant, timeout};

use super::files::{Files, FilesOfCluster};
use crate::admission::MemoryBudget;
use crate::config::uri::Upstream;
use crate::config::{Address, ClusterConfig, Config, ConfigErrors, MemoryShares};
use crate::topology::description::{Hello, ServerKind};
use crate::topology::monitor::Monitor;
use crate::upstream::connection::Connection;
use crate::upstream::handshake::{ConnectError, Reached, UpstreamDialer};
use crate::upstream::maintain;

/// Servers of one cluster that are walked to: more than a replica set may have.
const MAX_SERVERS: usize = 64;

/// How it went, for each cluster.
#[derive(Debug, Serialize)]
pub struct Walked {
    /// In the order of the configuration.
    pub clusters: Vec<WalkedCluster>,
}

/// How it went for one cluster.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WalkedCluster {
    name: String,
    upstream: String,
    /// What is wrong with all of it.
    problem: Option<String>,
    /// Where writes can go.
    writable: Vec<String>,
    servers: Vec<WalkedServer>,
}

/// How it went for one server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WalkedServer {
    address: String,
    /// Who names it.
    named_by: String,
    /// What it says that it is.
    role: Option<&'static str>,
    /// Those that were taken, the one that failed included.
    steps: Vec<Step>,
    problem: Option<Problem>,
}

/// One step, and how long it took.
#[derive(Debug, Serialize)]
struct Step {
    step: Stage,
    ms: f64,
}

/// Where it ended, and why.
#[derive(Debug, Serialize)]
struct Problem {
    step: Stage,
    error: String,
    advice: String,
}

/// The steps to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Dns,
    Tcp,
    Tls,
    Hello,
    Authentication,
    Ping,
}

impl Walked {
    /// True when every server could be reached, and each cluster has one that takes writes.
    pub fn passed(&self) -> bool {
        self.clusters.iter().all(|it| {
            it.problem.is_none() && !it.writable.is_empty() && it.servers.iter().all(|server| server.problem.is_none())
        })
    }
}

/// Walks to all servers of all clusters.
///
/// # Errors
/// The files that the configuration names cannot be used.
pub async fn connect(config: &Config) -> Result<Walked, ConfigErrors> {
    let files = Files::read(config, &std::sync::Arc::default()).await?;
    let memory = MemoryShares::of(config.memory_limit_bytes as u64);
    let clusters = config.clusters.iter().zip(files.clusters);
    let clusters =
        clusters.map(|(cluster, files)| walk_cluster(cluster, files, memory, config.client.max_message_bytes));
    Ok(Walked { clusters: join_all(clusters).await })
}

async fn walk_cluster(
    config: &ClusterConfig,
    files: FilesOfCluster,
    memory: MemoryShares,
    max_message_bytes: usize,
) -> WalkedCluster {
    let mut walked = WalkedCluster {
        name: config.name.clone(),
        upstream: config.upstream.redacted.clone(),
        problem: None,
        writable: Vec::new(),
        servers: Vec::new(),
    };
    let within = config.pool.connect_timeout;
    let mut upstream = config.upstream.clone();
    if let Some(credential) = files.credential {
        upstream.credential = Some(credential);
    }
    // Without SRV there is nothing to be asked for.
    if upstream.is_srv {
        match timeout(within, upstream.without_srv()).await {
            Ok(Ok(resolved)) => upstream = resolved,
            Ok(Err(error)) => {
                walked.problem = Some(format!("{error}: {}", advice::SRV));
                return walked;
            }
            Err(_) => {
                let late = advice::late(within);
                walked.problem = Some(format!("SRV and TXT: {late}: {}", advice::SRV));
                return walked;
            }
        }
    }
    let memory = MemoryBudget::new(memory);
    let monitor = Monitor::idle(&upstream);
    let dialer =
        UpstreamDialer::new(&upstream, files.tls, monitor, std::sync::Arc::default(), memory, max_message_bytes);
    let by = if config.upstream.is_srv { "SRV record" } else { "connection string" };
    let mut next: Vec<(Address, String)> = upstream.seeds.iter().map(|seed| (seed.clone(), by.to_owned())).collect();
    let mut known: BTreeSet<String> = next.iter().map(|(address, _)| plain(address)).collect();
    while !next.is_empty() {
        let round = next.drain(..).map(|(address, by)| Walk::to(&dialer, &upstream, address, by, within));
        for (server, told) in join_all(round).await {
            let named_by = format!("told by {}", server.address);
            if told.writable && server.problem.is_none() {
                walked.writable.push(server.address.clone());
            }
            walked.servers.push(server);
            for member in told.members.into_iter().filter(|_| !upstream.direct_connection) {
                if known.len() < MAX_SERVERS && known.insert(plain(&member)) {
                    next.push((member, named_by.clone()));
                }
            }
        }
    }
    if walked.writable.is_empty() {
        walked.problem = Some("no server here takes writes: there is no primary that could be used".to_owned());
    }
    walked
}

/// Host names do not depend on case.
fn plain(address: &Address) -> String {
    address.to_string().to_lowercase()
}

/// What a server has told of itself and of others.
#[derive(Default)]
struct Told {
    members: Vec<Address>,
    kind: Option<ServerKind>,
    set_name: Option<String>,
    writable: bool,
}

impl Told {
    fn read(reply: &RawDocument) -> Self {
        let hello = Hello::read(reply);
        // Arbiters have neither data nor users: there is nothing to walk to.
        let listed = ["hosts", "passives"].into_iter().filter_map(|list| reply.get_array(list).ok());
        let members = listed.flat_map(|list| list.into_iter().flatten().filter_map(|host| host.as_str()?.parse().ok()));
        let writable = matches!(hello.kind, ServerKind::RsPrimary | ServerKind::Mongos | ServerKind::Standalone);
        Self { members: members.collect(), kind: Some(hello.kind), set_name: hello.set_name, writable }
    }
}

/// On the way to one server.
struct Walk {
    /// The next step.
    at: Stage,
    since: Instant,
    encrypted: bool,
    logs_in: bool,
    steps: Vec<Step>,
    told: Told,
}

impl Walk {
    async fn to(
        dialer: &UpstreamDialer,
        upstream: &Upstream,
        address: Address,
        named_by: String,
        within: Duration,
    ) -> (WalkedServer, Told) {
        let named = matches!(address, Address::Tcp { .. });
        let mut walk = Self {
            at: if named { Stage::Dns } else { Stage::Tcp },
            since: Instant::now(),
            encrypted: named && dialer.tls().is_some(),
            logs_in: upstream.credential.is_some(),
            steps: Vec::new(),
            told: Told::default(),
        };
        let ended = timeout(within, walk.steps_to(dialer, &address)).await;
        let failed = match ended {
            Ok(Ok(())) => walk.mismatch(upstream).map(|(error, advice)| (Stage::Hello, error, advice)),
            Ok(Err(error)) => {
                let advice = advice::on(walk.at, &error, upstream);
                Some((walk.at, error.to_string(), advice))
            }
            Err(_) => Some((walk.at, advice::late(within), advice::on_silence(walk.at))),
        };
        let problem = failed.map(|(step, error, mut advice)| {
            if step == Stage::Dns && named_by.starts_with("told") {
                advice = format!("{advice}. {}", advice::TOLD);
            }
            Problem { step, error, advice }
        });
        if problem.as_ref().is_some_and(|problem| problem.step == walk.at) {
            walk.ended();
        }
        let role = walk.told.kind.map(ServerKind::name);
        let server = WalkedServer { address: address.to_string(), named_by, role, steps: walk.steps, problem };
        (server, walk.told)
    }

    async fn steps_to(&mut self, dialer: &UpstreamDialer, address: &Address) -> Result<(), ConnectError> {
        let mut connection: Connection = dialer.connect_telling(address, &mut |reached| self.reached(reached)).await?;
        maintain::ping(&mut connection).await?;
        self.ended();
        connection.close().await;
        Ok(())
    }

    fn reached(&mut self, reached: Reached<'_>) {
        self.ended();
        self.at = match reached {
            Reached::Resolved => Stage::Tcp,
            Reached::Connected if self.encrypted => Stage::Tls,
            Reached::Connected | Reached::Encrypted => Stage::Hello,
            Reached::Greeted(reply) => {
                self.told = Told::read(reply);
                if self.logs_in { Stage::Authentication } else { Stage::Ping }
            }
            Reached::LoggedIn => Stage::Ping,
        };
    }

    /// The step is over.
    fn ended(&mut self) {
        let now = Instant::now();
        let ms = (now - self.since).as_secs_f64() * 1_000.0;
        self.steps.push(Step { step: self.at, ms: (ms * 1_000.0).round() / 1_000.0 });
        self.since = now;
    }

    /// What the server is and what the connection string says do not fit.
    fn mismatch(&self, upstream: &Upstream) -> Option<(String, String)> {
        advice::on_kind(self.told.kind?, self.told.set_name.as_deref(), upstream)
    }
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Dns => "DNS",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Hello => "hello",
            Self::Authentication => "authentication",
            Self::Ping => "ping",
        }
    }
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl fmt::Display for Walked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cluster in &self.clusters {
            writeln!(f, "cluster {}: {}", cluster.name, cluster.upstream)?;
            cluster.servers.iter().try_for_each(|server| write!(f, "{server}"))?;
            match &cluster.problem {
                Some(problem) => writeln!(f, "  FAILED: {problem}")?,
                None => writeln!(f, "  writes go to {}", cluster.writable.join(", "))?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for WalkedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.role.map(|role| format!(", {role}")).unwrap_or_default();
        writeln!(f, "  {} ({}){role}", self.address, self.named_by)?;
        let steps: Vec<String> = self.steps.iter().map(|it| format!("{} {:.1} ms", it.step.name(), it.ms)).collect();
        let verdict = if self.problem.is_some() { "" } else { ": ok" };
        writeln!(f, "    {}{verdict}", steps.join(", "))?;
        if let Some(Problem { step, error, advice }) = &self.problem {
            writeln!(f, "    FAILED at {}: {error}", step.name())?;
            writeln!(f, "      {advice}")?;
        }
        Ok(())
    }
}
