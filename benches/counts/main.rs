//! What a command costs the program: instructions, allocations and system calls, counted and not timed. A busy machine does not
//! change them, and two runs agree within half a percent, so a change of the code that costs a few hundred instructions shows.
//!
//! ```text
//! cargo bench --profile dev --bench counts                          # a table
//! cargo bench --profile dev --bench counts -- --check               # fails where a figure is over the recorded one by 5 %
//! cargo bench --profile dev --bench counts -- --record              # writes the figures to benches/counts/recorded.toml
//! cargo bench --profile dev --bench counts -- --profile --cases find_100     # where the instructions go
//! ```
//!
//! What is measured is the program as `cargo build --release` makes it, not this bench: hence `--profile dev`, which spares the
//! second build with all optimisations. `--mongomux FILE` measures another build; its functions show their lines if it has them.
//!
//! The program runs under callgrind (valgrind and its `vgdb` have to be installed), in front of a server of this bench that
//! answers always the same, with clients of this bench that send their next message when the program rests. Its counters are
//! dumped before and after each of a few parts of the work, so that start-up, discovery and hello are not in them; the median of
//! the parts is the figure. What is counted:
//!
//! * *instructions* of all threads outside of the kernel, which takes more than these: so
//! * *system calls*, each worth thousands of instructions;
//! * *allocations*: calls of `malloc` and its like, whoever calls them;
//! * *readings of the clock*: about 20 ns each, in few instructions. Under valgrind they are system calls, and counted out there.
//!
//! A figure depends on the compiler and a little on the C library: `recorded.toml` names both, and `--check` says where they
//! differ. One that is lower than recorded is told, and to be recorded with the change that made it so.
#![allow(clippy::print_stdout, reason = "a measurement that prints its result")]

mod callgrind;
mod profile;
mod recorded;
#[path = "../../tests/support/mod.rs"]
mod support;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use callgrind::Watched;
use clap::{Parser, ValueEnum};
use mongomux::tasks::Tasks;
use recorded::{Figures, Findings, Recorded};
use support::canned::Server;
use workload::{Case, Clients};

/// Parts that a case is counted in; the median of them is its figure, so that what the program does now and then is not in it.
const PARTS: usize = 5;

#[derive(Debug, Parser)]
struct Arguments {
    /// Fails where a command costs more than was recorded
    #[arg(long, group = "what")]
    check: bool,
    /// Records what commands cost
    #[arg(long, group = "what", conflicts_with = "cases")]
    record: bool,
    /// Shows where the instructions go
    #[arg(long, group = "what")]
    profile: bool,
    /// Lines of each table of a profile
    #[arg(long, default_value_t = 40)]
    top: usize,
    /// Only these cases
    #[arg(long, value_enum, value_delimiter = ',')]
    cases: Vec<Case>,
    /// This program, instead of the one that is built here
    #[arg(long)]
    mongomux: Option<PathBuf>,
    /// What cargo says to benches
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    support::bench::run(measure(arguments))
}

async fn measure(arguments: Arguments) -> Vec<String> {
    let program = arguments.mongomux.clone().map_or_else(support::bench::build, Ok).expect("the program");
    let cases = if arguments.cases.is_empty() { Case::value_variants() } else { &arguments.cases };
    let tasks = Tasks::new();
    let server = Server::start(&tasks);
    let mut watched = Watched::run(&program, &[&server.uri()]);
    let address = watched.program.address().await;
    let mut all = Vec::new();
    println!("| case | instructions | allocations | system calls | readings of the clock |");
    println!("| --- | --- | --- | --- | --- |");
    for case in cases {
        let mut clients = Clients::connect(*case, &address, watched.program.pid()).await;
        clients.work().await;
        // What was counted until here is nobody's.
        watched.dump().await;
        let mut parts = Vec::new();
        for part in 1..=PARTS {
            clients.work().await;
            let dump = watched.dump().await;
            parts.push(Figures::of(&dump, case.count()));
            if arguments.profile && part == PARTS {
                profile::print(&dump, case.count(), arguments.top);
            }
        }
        let Figures { instructions, allocations, system_calls, clock_readings } = Figures::median(&parts);
        println!(
            "| {} | {instructions:.0} | {allocations:.2} | {system_calls:.2} | {clock_readings:.2} |",
            case.name()
        );
        all.push((case.name(), Figures::median(&parts)));
    }
    if arguments.record {
        Recorded::write(&all);
    }
    if arguments.check { check(&all) } else { Vec::new() }
}

/// Compares with what was recorded; what is too much.
fn check(all: &[(String, Figures)]) -> Vec<String> {
    let recorded = Recorded::read();
    let mut findings = Findings::default();
    for (case, figures) in all {
        recorded.compare(case, figures, &mut findings);
    }
    // Nothing at all was found where the library's functions have other names: then nothing was checked either.
    if all.iter().any(|(_, figures)| figures.clock_readings == 0.0) {
        findings.wrong.push("no reading of the clock was recognised".to_owned());
    }
    if all.iter().any(|(case, _)| *case == Case::Visit.name()) && all.iter().all(|(_, it)| it.allocations == 0.0) {
        findings.wrong.push("no allocation was recognised".to_owned());
    }
    recorded.compare_tools(&mut findings);
    for change in &findings.less {
        println!("LESS: {change}");
    }
    for note in &findings.notes {
        println!("NOTE: {note}");
    }
    if !findings.less.is_empty() || !findings.wrong.is_empty() {
        println!("What is meant to be so is recorded with the change that made it so: {}", recorded::HOW);
    }
    findings.wrong
}
