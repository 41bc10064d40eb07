//! What the compiler is told to refuse, here and in the programs beside the tests, is what the project has decided on: an entry
//! that is taken out of a manifest is taken out of the lists below as well, with its reason in the commit.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Lints of the compiler and how severe each is at least.
const RUST: &[(&str, &str)] =
    &[("unsafe_code", "forbid"), ("rust_2018_idioms", "warn"), ("missing_docs", "warn"), ("unreachable_pub", "warn")];

/// The same of clippy. By name, so that a new toolchain brings no surprises.
const CLIPPY: &[(&str, &str)] = &[
    ("await_holding_lock", "deny"),
    ("unwrap_used", "warn"),
    ("cast_possible_truncation", "warn"),
    ("cast_possible_wrap", "warn"),
    ("cast_sign_loss", "warn"),
    ("let_underscore_must_use", "warn"),
    ("large_futures", "warn"),
    ("unused_async", "warn"),
    ("manual_let_else", "warn"),
    ("use_self", "warn"),
    ("dbg_macro", "warn"),
    ("todo", "warn"),
    ("print_stdout", "warn"),
    ("print_stderr", "warn"),
    ("allow_attributes_without_reason", "warn"),
    ("incompatible_msrv", "warn"),
];

/// What may not be named, through `.clippy.toml`.
const BANNED: &[&str] = &[
    "std::env::remove_var",
    "std::env::set_var",
    "std::time::Instant",
    "tokio::spawn",
    "tokio::sync::mpsc::unbounded_channel",
    "tokio::task::spawn",
];

/// Bytes from a socket are looked at here: no index and no sum may end the program.
const NO_PANIC: &str = "#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]";

/// Directories without manifests of ours.
const NOT_OURS: &[&str] = &[".git", "node_modules", "target"];

/// The macro of a fuzz target exports a function under a fixed name, which counts as unsafe code.
const EXPORTS: &str = "tests/fuzz/Cargo.toml";

const SEVERITIES: &[&str] = &["allow", "warn", "deny", "forbid"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest() -> Table {
    read("Cargo.toml").parse().unwrap()
}

/// How severe each lint of a table is.
fn severities(lints: &Value) -> BTreeMap<&str, usize> {
    let severity = |level: &Value| {
        let level = level.as_str().or_else(|| level["level"].as_str()).unwrap();
        SEVERITIES.iter().position(|severity| *severity == level).unwrap()
    };
    lints.as_table().unwrap().iter().map(|(name, level)| (name.as_str(), severity(level))).collect()
}

#[test]
fn the_list_of_lints_is_complete() {
    let manifest = manifest();
    for (tool, list) in [("rust", RUST), ("clippy", CLIPPY)] {
        let found = severities(&manifest["lints"][tool]);
        for (name, least) in list {
            let severe = found.get(name).copied() >= SEVERITIES.iter().position(|severity| severity == least);
            assert!(severe, "{tool}: {name} is to be {least:?} at least");
        }
        assert!(found.values().all(|severity| *severity > 0), "{tool}: nothing is allowed everywhere: {found:?}");
    }
}

#[test]
fn no_program_of_ours_may_be_unsafe() {
    let manifests = manifests();
    assert!(manifests.len() > 1, "{manifests:?}");
    for path in manifests.iter().filter(|path| *path != Path::new(EXPORTS)) {
        let manifest: Table = read(path).parse().unwrap();
        let level = manifest.get("lints").and_then(|lints| lints.get("rust")?.get("unsafe_code")?.as_str());
        assert_eq!(level, Some("forbid"), "{}", path.display());
    }
}

/// Those of the repository, by their paths in it.
fn manifests() -> Vec<PathBuf> {
    let (mut directories, mut found) = (vec![root().to_owned()], Vec::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                let name = entry.file_name();
                directories.extend((!NOT_OURS.iter().any(|other| name == *other)).then(|| entry.path()));
            } else if entry.file_name() == "Cargo.toml" {
                found.push(entry.path().strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn what_is_banned_stays_banned_and_has_a_reason() {
    let clippy: Table = read(".clippy.toml").parse().unwrap();
    let entries = ["disallowed-types", "disallowed-methods"].map(|list| clippy[list].as_array().unwrap());
    let mut banned = Vec::new();
    for entry in entries.into_iter().flatten() {
        let reason = entry["reason"].as_str().unwrap_or_default();
        assert!(reason.len() > 10, "{entry}: {reason:?}");
        banned.push(entry["path"].as_str().unwrap());
    }
    banned.sort_unstable();
    assert_eq!(banned, BANNED);
}

#[test]
fn bytes_of_others_are_read_without_panics() {
    assert!(read("src/wire.rs").lines().any(|line| line == NO_PANIC));
}

/// An overflow ends a task instead of going on with a wrong number, and a back-trace has lines.
#[test]
fn the_release_is_built_with_checks() {
    let release = &manifest()["profile"]["release"];
    assert_eq!(release["overflow-checks"].as_bool(), Some(true));
    assert_eq!(release["debug"].as_str(), Some("line-tables-only"));
    assert_eq!(release["lto"].as_str(), Some("thin"));
    assert!(release.get("panic").is_none(), "a panic is to end one task, not the process");
}

/// `rust-version` is what is built with (`.ci/run` says so when it is not); who reads of it elsewhere reads the same.
#[test]
fn the_oldest_compiler_is_named_the_same_everywhere() {
    let manifest = manifest();
    let version = manifest["package"]["rust-version"].as_str().unwrap();
    for (file, text) in [
        ("README.md", format!("with Rust ({version} or newer)")),
        ("Dockerfile", format!("ARG RUST_IMAGE=rust:{version}-")),
        (".ci/run", format!("needed are Rust {version},")),
    ] {
        assert!(read(file).contains(&text), "{file} does not say {text:?}");
    }
}
