//! The one-command trial: a throw-away MongoDB, a proxy in front of it, thousands of clients, and what the server counts.
//!
//! The proxy is handed in as a function from a connection string to a [`Proxy`], so that nothing here depends on how it is
//! built. Clients and counts use a [wire client](wire_client) of their own and judge the proxy from outside. Whatever way
//! a run ends, its processes and files are gone afterwards. The parts below also carry the integration tests.

pub mod census;
pub mod deployment;
pub mod find;
mod guardian;
pub mod load;
pub mod mongod;
pub mod summary;
pub mod view;
pub mod wire_client;
mod worker;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::pin::Pin;

use bson::doc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval_at, sleep_until};

pub use summary::Summary;

use crate::config::Address;
use census::Census;
use deployment::{Deployment, DeploymentOptions};
use find::FindError;
use load::{Load, LoadOptions};
use mongod::MongodError;
use view::{Frame, View};

/// Commands per second that the clients aim at together: lively, and a fraction of what two cores carry.
pub const COMMANDS_PER_SECOND: u32 = 3_000;

/// Open files of this process besides the sockets of clients: upstream connections, monitors, admin, logs.
const OTHER_FILES: u64 = 200;

/// How often the view is drawn.
const VIEW_INTERVAL: Duration = Duration::from_secs(1);

/// How a trial is run.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// Client sockets.
    pub clients: usize,
    /// How long the clients work; `None` until a signal.
    pub duration: Option<Duration>,
    /// Members of the replica set, 1 to 7.
    pub members: usize,
    /// The server program; `None` to look for it.
    pub mongod: Option<PathBuf>,
    /// Commands per second of all clients together.
    pub commands_per_second: u32,
    /// Plans the same work as a run before; `None` for a new plan.
    pub seed: Option<u64>,
    /// The output is a terminal that can be drawn over.
    pub terminal: bool,
}

impl Default for SandboxOptions {
    fn default() -> Self {
        Self {
            clients: 2_000,
            duration: None,
            members: 1,
            mongod: None,
            commands_per_second: COMMANDS_PER_SECOND,
            seed: None,
            terminal: false,
        }
    }
}

/// The proxy under trial.
pub struct Proxy {
    /// Where clients connect.
    pub address: Address,
    /// Where its admin port listens, where it has one.
    pub admin: Option<Address>,
    /// What it says about itself, for the view and for the bound; called once a second.
    pub stats: Box<dyn Fn() -> ProxyStats + Send>,
    /// Ends it and waits for the end; awaited once the clients have left. Not polled when a run fails or is interrupted
    /// twice: dropping it must end the proxy as well.
    pub stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What a proxy says about its pools, all servers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProxyStats {
    /// Upstream connections in use.
    pub in_use: usize,
    /// Upstream connections idle.
    pub idle: usize,
    /// Upstream connections being established.
    pub pending: usize,
    /// Bound of data connections per server.
    pub max_pool_size: u32,
    /// Commands waiting.
    pub queue: usize,
}

/// Why a trial did not come to a summary.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The limit of open files is too low for the clients.
    #[error(
        "{clients} clients need {needed} open files (two sockets each, and {OTHER_FILES}), and the limit is {limit}: \
         raise it (ulimit -n {needed}) or ask for fewer with --clients"
    )]
    TooFewFiles {
        /// Sockets asked for.
        clients: usize,
        /// Open files they need.
        needed: u64,
        /// Open files allowed.
        limit: u64,
    },
    /// No MongoDB.
    #[error(transparent)]
    Deployment(#[from] MongodError),
    /// The proxy did not start.
    #[error("the proxy did not start: {0}")]
    Proxy(#[source] Box<dyn Error + Send + Sync>),
    /// The output could not be written, or the signals not be heard.
    #[error("output or signals: {0}")]
    Io(#[from] io::Error),
    /// A signal came before the clients worked, or a second one before they had stopped.
    #[error("interrupted")]
    Interrupted,
}

/// Runs a trial: starts everything, lets the clients work, stops everything, writes the summary to `out`.
///
/// A first SIGINT, SIGTERM or SIGHUP ends the work early, with a summary; a second one ends the rest at once.
///
/// # Errors
/// [`SandboxError`] when there is nothing to sum up. A run that shows the proxy failing is a [`Summary`] that has not
/// [passed](Summary::passed).
///
/// # Cancel safety
/// Dropping the future kills the servers, cuts the clients off and drops the proxy.
pub async fn run<F, E>(
    options: SandboxOptions,
    out: &mut (dyn Write + Send),
    start_proxy: impl FnOnce(String) -> F,
) -> Result<Summary, SandboxError>
where
    F: Future<Output = Result<Proxy, E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let mut signals = Signals::listen()?;
    check_open_files(options.clients, rlimit::Resource::NOFILE.get_soft()?)?;
    let members = options.members.max(1);
    writeln!(out, "starting a throw-away MongoDB (replica set, members: {members}) ...")?;
    out.flush()?;
    let start = async {
        let deployment = DeploymentOptions { mongod: options.mongod.clone(), members, ..DeploymentOptions::default() };
        let deployment = Deployment::start(deployment).await?;
        let primary = &deployment.members()[deployment.await_primary().await?];
        let prepared = worker::prepare(&primary.address()).await;
        prepared.map_err(|source| MongodError::Command { what: "create the collection", source })?;
        let proxy = start_proxy(deployment.uri()).await.map_err(|error| SandboxError::Proxy(error.into()))?;
        Ok::<_, SandboxError>((deployment, proxy))
    };
    let (deployment, proxy) = tokio::select! {
        started = start => started?,
        // What has started so far is dropped with the future, and ends with it.
        () = signals.next() => return Err(SandboxError::Interrupted),
    };
    introduce(out, &options, &deployment, &proxy)?;
    let work = work(&options, out, &deployment, &proxy, &mut signals).await?;
    let finish = async {
        let summary = work.finish(&options, proxy.stats.as_ref()).await;
        proxy.stop.await;
        summary
    };
    let summary = tokio::select! {
        summary = finish => summary,
        () = signals.next() => return Err(SandboxError::Interrupted),
    };
    // Before the summary: who reads it may rely on nothing being left.
    drop(deployment);
    write!(out, "\n{summary}")?;
    out.flush()?;
    Ok(summary)
}

fn introduce(
    out: &mut dyn Write,
    options: &SandboxOptions,
    deployment: &Deployment,
    proxy: &Proxy,
) -> Result<(), io::Error> {
    writeln!(out, "  MongoDB        {}", deployment.uri())?;
    for member in deployment.members() {
        writeln!(out, "  mongod         {} (process {})", member.address(), member.pid().unwrap_or_default())?;
    }
    writeln!(out, "  proxy          {}", proxy.address)?;
    writeln!(out, "  try it         mongosh \"{}\"", connection_string(&proxy.address))?;
    if let Some(admin) = &proxy.admin {
        writeln!(out, "  admin          {}", admin_url(admin))?;
    }
    let end = options.duration.map_or_else(|| "until Ctrl-C".to_owned(), |duration| format!("for {duration:?}"));
    writeln!(out, "{} clients work against the proxy {end}.\n", options.clients)?;
    out.flush()
}

/// Work that was stopped from outside and waits to be summed up.
struct Work {
    load: Load,
    census: Census,
    started: Instant,
    seed: u64,
    max_pool_size: u32,
}

/// Lets the clients work until the time is over or a signal comes.
async fn work(
    options: &SandboxOptions,
    out: &mut dyn Write,
    deployment: &Deployment,
    proxy: &Proxy,
    signals: &mut Signals,
) -> Result<Work, SandboxError> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let started = Instant::now();
    let census = Census::start(deployment.members().iter().map(mongod::Mongod::address));
    let load = Load::start(LoadOptions {
        address: proxy.address.clone(),
        clients: options.clients,
        commands_per_second: options.commands_per_second,
        seed,
        // One member loses nothing while it runs; of several, the primary may change, and what only the old one had
        // would be missing through no fault of the proxy.
        write_concern: (options.members <= 1).then(|| doc! { "w": 1 }),
    });
    let mut view = View::new(options.terminal);
    let mut ticks = interval_at(started + VIEW_INTERVAL, VIEW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let over = async {
        match options.duration {
            Some(duration) => sleep_until(started + duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let mut max_pool_size = 0;
    loop {
        // All arms are cancel safe: a tick that loses comes again.
        tokio::select! {
            () = &mut over => break,
            () = signals.next() => break,
            _ = ticks.tick() => {}
        }
        let stats = (proxy.stats)();
        max_pool_size = max_pool_size.max(stats.max_pool_size);
        let frame = Frame {
            elapsed: started.elapsed(),
            duration: options.duration,
            clients: options.clients,
            load: load.interval(),
            proxy: stats,
            servers: census.counts(),
        };
        view.draw(out, &frame)?;
    }
    Ok(Work { load, census, started, seed, max_pool_size })
}

impl Work {
    async fn finish(self, options: &SandboxOptions, stats: &(dyn Fn() -> ProxyStats + Send)) -> Summary {
        let elapsed = self.started.elapsed();
        let max_pool_size = self.max_pool_size.max(stats().max_pool_size);
        let load = self.load.stop().await;
        let servers = self.census.counts();
        Summary { clients: options.clients, elapsed, load, servers, max_pool_size, seed: self.seed }
    }
}

fn check_open_files(clients: usize, limit: u64) -> Result<(), SandboxError> {
    // The client's end and the proxy's end are both in this process.
    let needed = u64::try_from(clients).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(OTHER_FILES);
    if needed <= limit { Ok(()) } else { Err(SandboxError::TooFewFiles { clients, needed, limit }) }
}

/// What an application puts into its configuration to come through the proxy.
fn connection_string(address: &Address) -> String {
    match address {
        Address::Tcp { .. } => format!("mongodb://{address}/?directConnection=true"),
        Address::Unix(path) => {
            // The only characters of a path that would end the host part.
            let host = path.to_string_lossy().replace('%', "%25").replace('/', "%2F").replace('?', "%3F");
            format!("mongodb://{host}/?directConnection=true")
        }
    }
}

fn admin_url(address: &Address) -> String {
    match address {
        Address::Tcp { .. } => format!("http://{address}/"),
        Address::Unix(_) => address.to_string(),
    }
}

/// The signals that ask for the end.
struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> io::Result<Self> {
        let [interrupt, terminate, hang_up] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self([interrupt?, terminate?, hang_up?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hang_up] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

impl From<FindError> for SandboxError {
    fn from(error: FindError) -> Self {
        Self::Deployment(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_do_not_fit_are_told_with_numbers() {
        assert!(check_open_files(2_000, 4_200).is_ok());
        let error = check_open_files(2_000, 4_199).unwrap_err().to_string();
        assert!(error.contains("2000 clients need 4200 open files"), "{error}");
        assert!(error.contains("the limit is 4199"), "{error}");
    }

    #[test]
    fn connection_strings_can_be_pasted() {
        let unix = Address::Unix("/run/mongomux.sock".into());
        assert_eq!(connection_string(&unix), "mongodb://%2Frun%2Fmongomux.sock/?directConnection=true");
        let tcp = Address::tcp("127.0.0.1", 27016);
        assert_eq!(connection_string(&tcp), "mongodb://127.0.0.1:27016/?directConnection=true");
    }

    #[tokio::test]
    async fn a_server_that_cannot_start_ends_the_run() {
        let options =
            SandboxOptions { mongod: Some("/nowhere/mongod".into()), clients: 1, ..SandboxOptions::default() };
        let start = |_| async { Err::<Proxy, _>("not reached") };
        let mut out = Vec::new();
        let error = run(options, &mut out, start).await.unwrap_err().to_string();
        assert_eq!(error, "no mongod at /nowhere/mongod (named by --mongod)");
    }
}
