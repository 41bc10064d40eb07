//! What the program is built of comes from one place, is pinned, and is what the manifest says. Licences, duplicates, build scripts and
//! known holes are looked at by `cargo deny`, see `.ci/deny`.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What is built for other systems is not fetched either.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What cargo knows of packages.
fn metadata(of: &[&str]) -> Value {
    let arguments = [&["metadata", "--format-version", "1", "--locked"], of].concat();
    let output = Command::new(env!("CARGO")).current_dir(root()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Name and version of each package in a lock file; what stands behind a `+` tells no versions apart.
fn locked(lock: &str) -> BTreeSet<(String, String)> {
    let table: toml::Table = std::fs::read_to_string(root().join(lock)).unwrap().parse().unwrap();
    let text = |package: &toml::Value, key: &str| package[key].as_str().unwrap().split('+').next().unwrap().to_owned();
    table["package"].as_array().unwrap().iter().map(|it| (text(it, "name"), text(it, "version"))).collect()
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

/// The lowest versions that the manifest allows are those that are built and tested, so that each of its requirements is true, and
/// every build is one with lowest versions. Who raises a version in `Cargo.lock` raises it in `Cargo.toml`.
#[test]
fn the_lowest_versions_are_those_that_are_tested() {
    let locked = locked("Cargo.lock");
    let metadata = metadata(&["--no-deps"]);
    let dependencies = metadata["packages"][0]["dependencies"].as_array().unwrap();
    assert!(dependencies.len() > 50, "{}", dependencies.len());
    for dependency in dependencies {
        let (name, required) = (dependency["name"].as_str().unwrap(), dependency["req"].as_str().unwrap());
        let versions: Vec<&str> =
            locked.iter().filter(|package| package.0 == name).map(|package| &*package.1).collect();
        let lowest = required.strip_prefix('^').unwrap_or(required);
        assert!(versions.contains(&lowest), "Cargo.toml has {name} = {required:?}, Cargo.lock has {versions:?}");
    }
}

#[test]
fn nothing_needs_a_newer_compiler_than_we_do() {
    let number = |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap()).collect() };
    let ours = number(env!("CARGO_PKG_RUST_VERSION"));
    let metadata = metadata(&["--all-features", "--filter-platform", TARGET]);
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{}", packages.len());
    for package in packages {
        if let Some(needed) = package["rust_version"].as_str() {
            assert!(number(needed) <= ours, "{} needs Rust {needed}", package["name"]);
        }
    }
}
