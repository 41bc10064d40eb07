//! How a bench runs that also judges what it sees.
#![allow(clippy::print_stdout, reason = "a measurement prints its result")]

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, fs};

/// Of `/proc/PID/stat`: what Linux tells all programs, whatever it counts in itself.
const TICKS_PER_SECOND: f64 = 100.0;

/// Runs a measurement, with as many descriptors as there may be, and tells what it has found wrong; 1 if there is anything.
pub fn run(measure: impl Future<Output = Vec<String>>) -> ExitCode {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(measure);
    for what in &wrong {
        println!("WRONG: {what}");
    }
    ExitCode::from(u8::from(!wrong.is_empty()))
}

/// Builds the program as its users do. The one that cargo has built for this bench has what the tests want of the libraries,
/// too: tokio with a clock that can be stopped, which costs time whenever somebody asks for it.
pub fn build() -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--bin", "mongomux", "--message-format", "json"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    // What cargo has told this bench about its package would make build scripts run anew, and all that depends on them.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            build.env_remove(name);
        }
    }
    let output = build.output()?;
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = messages.filter_map(|message| Some(message["executable"].as_str()?.to_owned())).next_back();
    Ok(executable.ok_or("the program could not be built")?.into())
}

/// Processor time of a process since its start.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; user and system time are the 12th and 13th field after it.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS_PER_SECOND
}

/// The most memory that a process has held at once.
pub fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The value that this share of all is below; zero of none.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index within the list"
)]
pub fn quantile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort_unstable();
    values.get((values.len() as f64 * share) as usize).or(values.last()).copied().unwrap_or_default()
}
