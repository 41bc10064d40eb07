//! The parts of a command's path one by one, and all of it without a socket: times beside allocations.
//!
//! `cargo bench --bench micro`, or `cargo bench --bench micro -- find` for those whose name holds `find`. Times are for comparing
//! two builds on one quiet machine; what must not grow is watched by `cargo bench --bench counts`, which counts instead.

mod log_in;
mod path;
mod pool;
mod rig;
#[path = "../../tests/support/mod.rs"]
mod support;
mod wire;

use divan::AllocProfiler;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}
