//! What the program is built of: where it comes from, under which licences, and what of it runs while it is built.
//!
//! Advisories are not looked up here: their database is in no package registry. `docs/security.md` says how to do that.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Licences as packages state them, of which each leaves us a choice that goes with ours. A new text wants to be read first.
const LICENCES: &[&str] = &[
    "(MIT OR Apache-2.0) AND Apache-2.0",
    "(MIT OR Apache-2.0) AND Unicode-3.0",
    "0BSD OR MIT OR Apache-2.0",
    "Apache-2.0",
    "Apache-2.0 / MIT",
    "Apache-2.0 AND ISC",
    "Apache-2.0 OR ISC OR MIT",
    "Apache-2.0 OR MIT",
    "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
    "BSD-2-Clause OR Apache-2.0 OR MIT",
    "BSD-3-Clause",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT AND BSD-3-Clause",
    "MIT OR Apache-2.0",
    "MIT OR Zlib OR Apache-2.0",
    "MIT/Apache-2.0",
    "Unicode-3.0",
    "Unlicense OR MIT",
    "Zlib",
    "Zlib OR Apache-2.0 OR MIT",
];

/// There in several versions, as others want them so. Each more is code twice, and twice as much to keep an eye on.
const SEVERAL_VERSIONS: &[&str] = &["getrandom", "linux-raw-sys", "rand", "rand_core", "rustix", "syn", "synstructure"];

/// Packages with a program that runs while they are built, each of which was looked at: they compile C that they bring along,
/// ask the compiler what it can do, or copy files of their own. None of them fetches anything.
const BUILD_SCRIPTS: &[&str] = &[
    "ahash",
    "crc32c",
    "crc32fast",
    "crossbeam-epoch",
    "crossbeam-utils",
    "crunchy",
    "getrandom",
    "httparse",
    "icu_normalizer_data",
    "icu_properties_data",
    "libc",
    "num-traits",
    "oid-registry",
    "parking_lot_core",
    "portable-atomic",
    "proc-macro2",
    "procfs",
    "prometheus",
    "quote",
    "radium",
    "ring",
    "rlimit",
    "rustc_version_runtime",
    "rustix",
    "rustls",
    "serde",
    "serde_core",
    "serde_json",
    "snap",
    "thiserror",
    "tiny-keccak",
    "zerocopy",
    "zmij",
    "zstd-safe",
    "zstd-sys",
];

/// What is built for other systems is not fetched either.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).current_dir(root()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Name and version of all that goes into the program, or runs to build it.
fn built_of() -> BTreeSet<(String, String)> {
    let tree = cargo(&[
        "tree",
        "--locked",
        "--offline",
        "--edges",
        "normal,build",
        "--target",
        TARGET,
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let package = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        Some((name.to_owned(), rest.split(' ').next()?.to_owned()))
    };
    tree.lines().filter_map(package).filter(|(name, _)| name != env!("CARGO_PKG_NAME")).collect()
}

/// What cargo knows of each of them.
fn packages() -> Vec<Value> {
    let metadata = cargo(&["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", TARGET]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let built_of = built_of();
    let text = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let all = metadata["packages"].as_array().unwrap();
    let of = all.iter().filter(|package| built_of.contains(&(text(package, "name"), text(package, "version"))));
    let packages: Vec<Value> = of.cloned().collect();
    assert_eq!(packages.len(), built_of.len());
    assert!(packages.len() > 100, "{}", packages.len());
    packages
}

fn names(packages: &[Value]) -> impl Iterator<Item = &str> {
    packages.iter().map(|package| package["name"].as_str().unwrap())
}

#[test]
fn everything_comes_from_one_registry_and_is_pinned_by_its_hash() {
    for lock in ["Cargo.lock", "tests/drivers/rust/Cargo.lock"] {
        let lock: PathBuf = root().join(lock);
        let table: toml::Table = std::fs::read_to_string(&lock).unwrap().parse().unwrap();
        let mut sources = BTreeSet::new();
        for package in table["package"].as_array().unwrap() {
            let name = package["name"].as_str().unwrap();
            let Some(source) = package.get("source").and_then(toml::Value::as_str) else {
                assert!(["mongomux", "drivers-rust"].contains(&name), "{name} is a path on this machine");
                continue;
            };
            assert!(source.starts_with("registry+"), "{name} comes from {source}");
            let hash = package.get("checksum").and_then(toml::Value::as_str).unwrap_or_default();
            assert_eq!(hash.len(), 64, "{name} is not pinned");
            sources.insert(source.to_owned());
        }
        assert_eq!(sources.len(), 1, "{}: {sources:?}", lock.display());
    }
}

#[test]
fn licences_go_with_ours() {
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(LICENCES.contains(&licence), "{}: {licence}", package["name"]);
    }
}

#[test]
fn what_is_there_twice_is_known() {
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for (name, _) in built_of() {
        *versions.entry(name).or_default() += 1;
    }
    let several: Vec<&str> = versions.iter().filter(|(_, count)| **count > 1).map(|(name, _)| name.as_str()).collect();
    assert_eq!(several, SEVERAL_VERSIONS);
}

#[test]
fn what_runs_while_the_program_is_built_is_known() {
    let packages = packages();
    let runs = |package: &&Value| {
        let targets = package["targets"].as_array().unwrap();
        targets.iter().any(|target| target["kind"].as_array().unwrap().contains(&"custom-build".into()))
    };
    let running: Vec<Value> = packages.iter().filter(runs).cloned().collect();
    let running: BTreeSet<&str> = names(&running).collect();
    assert_eq!(running.into_iter().collect::<Vec<_>>(), BUILD_SCRIPTS);
}

/// Two ways to do the same cryptography, or TLS by another library, would be two to keep up to date.
#[test]
fn there_is_one_tls_library_and_one_provider() {
    let packages = packages();
    let names: BTreeSet<&str> = names(&packages).collect();
    assert!(names.contains("rustls") && names.contains("ring"));
    for other in ["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "boring"] {
        assert!(!names.contains(other), "{other}");
    }
}
