//! The program beside what else there is, end to end: no proxy, a plain 1:1 relay, a bare pool, HAProxy where it is installed, and whatever
//! proxy is named. Throughput, latency, processor time of proxy and server for each command, memory of idle clients, and storms
//! of connects; all of it in one run whose slices take turns, against a `mongod` of its own, with every reply checked.
//!
//! `cargo bench --bench sidecar -- --help` tells the options. Needs a `mongod` as the tests do, and some 20,000 descriptors per
//! process. [docs/performance.md](../docs/performance.md) says how to read what comes out.
//!
//! Ends with 1 when a reply was wrong, an insert was lost or doubled, or the server counted more connections than the bound.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a measurement that prints its result")]
#![allow(unreachable_pub, missing_docs, reason = "modules of one program")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures for people, and indices that were usize before"
)]

#[path = "sidecar/accounting.rs"]
mod accounting;
#[path = "sidecar/cases.rs"]
mod cases;
#[path = "sidecar/chart.rs"]
mod chart;
#[path = "sidecar/crowd.rs"]
mod crowd;
#[path = "sidecar/disturbances.rs"]
mod disturbances;
#[path = "sidecar/load.rs"]
mod load;
#[path = "sidecar/measure.rs"]
mod measure;
#[path = "sidecar/pooler.rs"]
mod pooler;
#[path = "sidecar/references.rs"]
mod references;
#[path = "sidecar/relay.rs"]
mod relay;
#[path = "sidecar/report.rs"]
mod report;
#[path = "sidecar/results.rs"]
mod results;
#[path = "sidecar/slow_readers.rs"]
mod slow_readers;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "sidecar/variants.rs"]
mod variants;
#[path = "sidecar/verdict.rs"]
mod verdict;
#[path = "sidecar/witness.rs"]
mod witness;
#[path = "sidecar/work.rs"]
mod work;

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use rand::SeedableRng;
use rand::rngs::StdRng;

use accounting::Process;
use cases::{Case, DEFAULT_CASES};
use measure::{PROGRAM, Run};
use references::{Kind, Reference, Server, Setup};
use results::{Purpose, Results};
use variants::Ways;
use witness::Witness;

/// Compares the program with other ways to the server
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,

    /// What is measured: COMMAND@SHAPE, separated by commas
    #[arg(
        long, value_name = "CASES", value_delimiter = ',', default_value = DEFAULT_CASES,
        default_value_if("variants", "true", variants::CASES)
    )]
    cases: Vec<Case>,

    /// The program in other set-ups beside the plain one, instead of other proxies: clients and server over unix sockets, TLS
    /// to the server, two threads
    #[arg(long, conflicts_with_all = ["proxies", "charts", "disturbed"])]
    variants: bool,

    /// What ordinary clients notice of slow readers and of a storm of new clients, through the program and without
    #[arg(long, conflicts_with_all = ["charts", "cases"])]
    disturbed: bool,

    /// Which targets, by name and separated by commas; all by default
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    targets: Vec<String>,

    /// Another proxy: NAME=COMMAND, with {listen} and {upstream} (both HOST:PORT) in COMMAND; may be given several times
    #[arg(long = "proxy", value_name = "NAME=COMMAND")]
    proxies: Vec<Reference>,

    /// The program, instead of the one that `cargo build --release` makes
    #[arg(long, value_name = "PATH")]
    mongomux: Option<PathBuf>,

    /// How often every case is measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// How long, in each round and for each target
    #[arg(long, value_name = "MS", default_value_t = 800)]
    slice: u64,

    /// Client sockets of each target
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    sockets: usize,

    /// Client sockets of the program alone, afterwards; 0 to leave that out
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    many: usize,

    /// Of the arrivals in an open loop
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Writes everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draws charts into this directory
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,

    /// What cargo gives to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn purpose(&self) -> Purpose {
        match (self.variants, self.disturbed) {
            (true, _) => Purpose::Variants,
            (_, true) => Purpose::Disturbances,
            _ => Purpose::References,
        }
    }

    fn wants(&self, target: &str) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|it| it == target)
    }
}

#[derive(Subcommand)]
enum Role {
    /// Is the relay that the program is compared with
    #[command(hide = true)]
    Relay { listen: SocketAddr, upstream: SocketAddr },
    /// Is the bare pool that the program is compared with
    #[command(hide = true)]
    Pooler { listen: SocketAddr, upstream: SocketAddr },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = rlimit::increase_nofile_limit(u64::MAX).map_err(Into::into).and_then(|_| match options.role {
        Some(Role::Pooler { listen, upstream }) => Ok(pooler::run(listen, upstream).map(|()| Results::default())?),
        Some(Role::Relay { listen, upstream }) => Ok(relay::run(listen, upstream).map(|()| Results::default())?),
        None => measure(&options),
    });
    match done {
        Ok(results) => {
            results.wrong.iter().for_each(|what| println!("WRONG: {what}"));
            ExitCode::from(u8::from(!results.wrong.is_empty()))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<Results, Box<dyn Error>> {
    let is_needed = options.variants || options.wants(PROGRAM);
    let program = is_needed.then(|| options.mongomux.clone().map_or_else(support::bench::build, Ok)).transpose()?;
    let ways = options.variants.then(Ways::prepare).transpose()?;
    let mut wishes = DeploymentOptions::for_tests(1);
    wishes.arguments = ways.as_ref().map(Ways::arguments).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deployment = runtime.block_on(Deployment::start(wishes))?;
    let references = match (&ways, &program) {
        (Some(ways), Some(program)) => ways.references(program, &deployment),
        _ => references(options, program.as_deref()),
    };
    let references = wanted(references, options)?;
    let member = &deployment.members()[0];
    let server = Server {
        address: member.address().to_string().parse()?,
        uri: deployment.uri(),
        process: Process::new(member.pid().ok_or("the server has ended")?),
    };
    let mut witness = Witness::new(runtime, &member.address())?;
    witness.prepare()?;
    let mut run = Run {
        server,
        witness,
        random: StdRng::seed_from_u64(options.seed),
        results: Results { purpose: options.purpose(), ..Results::default() },
        slice: Duration::from_millis(options.slice),
        rounds: options.rounds,
        programs: references.iter().filter(|reference| matches!(reference.kind, Kind::Mongomux(_))).count(),
    };
    conditions(&mut run, options)?;
    if run.results.purpose == Purpose::Disturbances {
        run.disturb(&references, options.sockets)?;
    } else {
        run.compare(&references, &options.cases, options.sockets)?;
    }
    if run.results.purpose == Purpose::References
        && options.many > options.sockets
        && let Some(program) = references.iter().find(|reference| reference.name == PROGRAM)
    {
        run.crowd(program, "find-100B@turn".parse()?, options.sockets, options.many)?;
    }
    report::print(&run.results);
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&run.results)?)?;
    }
    if let Some(directory) = &options.charts {
        chart::write(&run.results, directory)?;
    }
    Ok(run.results)
}

/// What else there is, and the program last.
fn references(options: &Options, program: Option<&Path>) -> Vec<Reference> {
    let named = |name: &str, kind| Reference { name: name.to_owned(), kind };
    let own = [("direct", Kind::Direct), ("relay", Kind::Own("relay")), ("pooler", Kind::Own("pooler"))];
    let mut all: Vec<Reference> = own.into_iter().map(|(name, kind)| named(name, kind)).collect();
    if references::haproxy_version().is_some() {
        all.push(named("haproxy", Kind::Haproxy));
    }
    if options.disturbed && options.targets.is_empty() {
        all.retain(|reference| reference.kind == Kind::Direct);
    }
    all.extend(options.proxies.iter().cloned());
    all.extend(program.map(|program| named(PROGRAM, Kind::Mongomux(Setup::plain(program)))));
    all
}

/// Those that are asked for.
fn wanted(mut all: Vec<Reference>, options: &Options) -> Result<Vec<Reference>, String> {
    if let Some(unknown) = options.targets.iter().find(|target| all.iter().all(|it| it.name != **target)) {
        return Err(format!("no target {unknown}"));
    }
    all.retain(|reference| options.wants(&reference.name));
    Ok(all)
}

fn conditions(run: &mut Run, options: &Options) -> Result<(), Box<dyn Error>> {
    let read = |path| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let conditions = &mut run.results.conditions;
    conditions.insert("processors", std::thread::available_parallelism()?.to_string());
    conditions.insert("kernel", read("/proc/sys/kernel/osrelease")?);
    let load = read("/proc/loadavg")?;
    conditions.insert("load average before", load.split(' ').next().unwrap_or_default().to_owned());
    conditions.insert("mongod", run.witness.version()?);
    conditions.insert("haproxy", references::haproxy_version().unwrap_or_else(|| "none".to_owned()));
    conditions.insert("rounds", options.rounds.to_string());
    conditions.insert("slice, ms", options.slice.to_string());
    conditions.insert("client sockets", options.sockets.to_string());
    conditions.insert("seed", options.seed.to_string());
    Ok(())
}
