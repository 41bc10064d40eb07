//! How a bench runs that also judges what it sees.
#![allow(clippy::print_stdout, reason = "a measurement prints its result")]

use std::process::ExitCode;

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
