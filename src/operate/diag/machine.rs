//! The machine that `diag` runs on: what limits a proxy on it.

use std::path::Path;
use std::thread::available_parallelism;

use serde_json::{Value, json};

use crate::config::system::container_memory_bytes;

/// System, processors, memory and open files.
pub(super) fn look() -> Value {
    let system = rustix::system::uname();
    let words = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let files = rlimit::Resource::NOFILE.get().ok();
    // Where there is no limit an old kernel tells one near 2^63.
    let limit = container_memory_bytes(Path::new("/")).filter(|limit| *limit < 1 << 60);
    json!({
        "system": words(system.sysname()),
        "kernel": words(system.release()),
        "architecture": words(system.machine()),
        "distribution": distribution(),
        // As many as this process may use, which a container may limit.
        "processors": available_parallelism().ok().map(std::num::NonZero::get),
        "memoryBytes": memory_bytes(),
        "containerMemoryLimitBytes": limit,
        "openFilesSoft": files.map(|(soft, _)| soft),
        "openFilesHard": files.map(|(_, hard)| hard),
    })
}

/// What this program was built for.
pub(super) fn build() -> String {
    let kind = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!("{kind}, {} {}", std::env::consts::OS, std::env::consts::ARCH)
}

fn distribution() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
    kib.parse::<u64>().ok()?.checked_mul(1024)
}
