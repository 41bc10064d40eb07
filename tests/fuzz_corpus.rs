//! Replays the corpora of the fuzz targets: what has been found before stays found. `docs/testing.md` says how more is found.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of this is a test")]
#![allow(unreachable_pub, reason = "the bodies are a library elsewhere")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "fuzz/src/lib.rs"]
mod targets;

/// So much of a corpus is kept, in files and in bytes of all corpora together: enough to reach what was ever reached.
const FILES: usize = 100;
const BYTES: u64 = 1 << 20;

macro_rules! replayed {
    ($($name:ident),*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(
            #[test]
            fn $name() {
                for file in files(stringify!($name)) {
                    println!("{}", file.display());
                    targets::$name::check(&fs::read(file).unwrap());
                }
            }
        )*
    };
}

replayed!(
    breaker,
    command,
    compressed,
    config,
    document,
    frame,
    hello,
    legacy,
    op_msg,
    pool,
    proxy_header,
    queue,
    reply,
    scram,
    server,
    session,
    uri
);

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn listed(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn files(target: &str) -> Vec<PathBuf> {
    listed(&fuzz().join("corpus").join(target))
}

#[test]
fn each_target_has_a_corpus_that_is_small_and_is_replayed() {
    let names = |directory: &str| -> BTreeSet<String> {
        let name = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        listed(&fuzz().join(directory)).iter().map(name).collect()
    };
    let replayed: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), replayed);
    assert_eq!(names("corpus"), replayed);
    let mut bytes = 0;
    for name in NAMES {
        let files = files(name);
        assert!((1..=FILES).contains(&files.len()), "{name}: {} files", files.len());
        bytes += files.iter().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>();
    }
    assert!(bytes <= BYTES, "{bytes} bytes");
}
