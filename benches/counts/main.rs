//! Instructions, allocations and system calls per command.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints its result")]

mod callgrind;
mod profile;
#[path = "../../tests/support/mod.rs"]
mod support;
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use callgrind::Watched;
use clap::{Parser, ValueEnum};
use mongomux::tasks::Tasks;
use workload::{Case, Clients, Server};

/// Parts that a case is counted in; the median of them is its cost, so that what the program does now and then does not count.
const PARTS: usize = 5;

/// Lines of each table of a profile, unless said otherwise.
const TOP: usize = 40;

#[derive(Debug, Parser)]
struct Arguments {
    /// Shows where the instructions go
    #[arg(long)]
    profile: bool,
    /// Only these cases
    #[arg(long, value_enum, value_delimiter = ',')]
    cases: Vec<Case>,
    /// This program, instead of building the one in the tree
    #[arg(long)]
    mongomux: Option<PathBuf>,
    /// Lines of each table of a profile
    #[arg(long, default_value_t = TOP)]
    top: usize,
    /// What cargo says to benches
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    support::bench::run(measure(arguments))
}

async fn measure(arguments: Arguments) -> Vec<String> {
    let program = arguments.mongomux.clone().unwrap_or_else(build);
    let cases = if arguments.cases.is_empty() { Case::value_variants().to_vec() } else { arguments.cases.clone() };
    let tasks = Tasks::new();
    let server = Server::start(&tasks);
    let mut watched = Watched::run(&program, &[&server.uri()]);
    let address = watched.program.address().await;
    println!("| case | instructions | allocations | system calls | readings of the clock |");
    println!("| --- | --- | --- | --- | --- |");
    for case in cases {
        let mut clients = Clients::connect(case, &address).await;
        clients.work(case.count()).await;
        watched.dump().await;
        for _ in 0..PARTS {
            clients.work(case.count()).await;
            let dump = watched.dump().await;
            let per = |count: u64| count as f64 / case.count() as f64;
            println!(
                "| {} | {:.1} | {:.3} | {:.3} | {:.3} |",
                case.name(),
                per(dump.instructions),
                per(dump.allocations()),
                per(dump.system_calls()),
                per(dump.clock_readings())
            );
            if arguments.profile {
                profile::print(&dump, case.count(), arguments.top);
                break;
            }
        }
    }
    Vec::new()
}

/// Builds the program as users do.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built =
        Command::new(env!("CARGO")).args(["build", "--release", "--bin", "mongomux"]).current_dir(root).status();
    assert!(built.expect("cargo").success(), "the program cannot be built");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("release/mongomux")
}
