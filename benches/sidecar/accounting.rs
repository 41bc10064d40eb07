//! What the kernel knows of a process: processor time and memory.

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::support::bench;

/// A process whose resources are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Process(u32);

impl Process {
    /// The process of this id.
    pub fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// This one: the load generator.
    pub fn current() -> Self {
        Self(std::process::id())
    }

    /// Processor time of all its threads, those that have ended included.
    pub fn cpu(self) -> io::Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(self.0).map_err(io::Error::other)?))?;
        Ok(clock_gettime(clock)?.into())
    }

    /// Memory that it holds. Added up page by page: `VmRSS` lags behind by up to some hundred KiB.
    pub fn resident_kib(self) -> io::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
        let value = line.and_then(|line| line.split_whitespace().next()).and_then(|value| value.parse().ok());
        value.ok_or_else(|| io::Error::other("no Rss in smaps_rollup"))
    }

    /// The most memory that it has held since [`Self::forget_peak`].
    pub fn peak_kib(self) -> u64 {
        bench::peak_kib(self.0)
    }

    /// Its peak is what it holds now.
    pub fn forget_peak(self) -> io::Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.0), "5")
    }
}
