//! How a bench runs that also judges what it sees.
#![allow(clippy::print_stdout, reason = "a measurement prints its result")]

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

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
