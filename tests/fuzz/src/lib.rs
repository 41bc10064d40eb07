//! What the fuzz targets do with their bytes, once for libFuzzer and once for `cargo test`, which replays the corpora
//! (`tests/fuzz_corpus.rs`). `docs/testing.md` says what each of them asserts.
//!
//! A body takes bytes, which are as good or bad as a fuzzer makes them, and panics when a promise is broken. It looks at no
//! clock, and does no I/O but over pipes in memory.
#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod allocations;
pub mod breaker;
pub mod command;
pub mod compressed;
pub mod config;
pub mod document;
pub mod frame;
pub mod hello;
pub mod legacy;
pub mod op_msg;
pub mod pool;
pub mod proxy_header;
pub mod queue;
pub mod reply;
pub mod scram;
pub mod server;
pub mod session;
pub mod uri;
