//! The schema of the configuration file and its reference are what the table of keys says, and the schema tells right from wrong.
//!
//! With `MONGOMUX_REGENERATE=1` the files are written instead of compared: `MONGOMUX_REGENERATE=1 cargo test --test config_reference`.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

use std::path::{Path, PathBuf};

use mongomux::config::keys;
use serde_json::Value;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn agrees(name: &str, expected: &str) {
    if std::env::var_os("MONGOMUX_REGENERATE").is_some() {
        std::fs::write(path(name), expected).unwrap();
    }
    let found = std::fs::read_to_string(path(name)).unwrap_or_default();
    let differing = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{name} is not what the table of keys says (line {:?}): MONGOMUX_REGENERATE=1 cargo test --test config_reference",
        differing.map(|line| line + 1)
    );
}

#[test]
fn the_reference_is_what_the_table_says() {
    agrees("docs/configuration.md", &keys::reference());
}

#[test]
fn the_schema_is_what_the_table_says() {
    let text = serde_json::to_string_pretty(&keys::schema()).unwrap();
    agrees("config/mongomux.schema.json", &format!("{text}\n"));
}

fn as_json(text: &str) -> Value {
    serde_json::to_value(text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}"))).unwrap()
}

#[test]
fn samples_are_right_by_the_schema_and_mistakes_are_not() {
    let validator = jsonschema::draft202012::new(&keys::schema()).unwrap();
    for entry in std::fs::read_dir(path("config")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "toml") {
            let text = std::fs::read_to_string(&file).unwrap();
            let bare = text.lines().map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
                _ => line,
            });
            let bare = bare.collect::<Vec<_>>().join("\n");
            for text in [text, bare] {
                let wrong: Vec<_> = validator.iter_errors(&as_json(&text)).map(|error| error.to_string()).collect();
                assert_eq!(wrong, [""; 0], "{}", file.display());
            }
        }
    }
    for wrong in [
        "max_pool_sise = 1",
        "max_pool_size = 0",
        "max_pool_size = \"many\"",
        "socket_timeout_ms = 9",
        "breaker.window = 1",
        "retry = \"both\"",
        "listen = []",
        "admin = \"9627\"",
        "upstream = \"mysql://db\"",
        "degraded_reads = [\"shop\"]",
        "[[cluster]]\nmax_clients = 1",
        "max_pool_size = 1\n[[cluster]]\nname = \"a\"",
        "[[listener]]\nmax_pool_size = 1",
        "[[tenant]]\nweight = 2",
        "[[priority]]\napplication = \"a\"",
        "[cluster]\nname = \"a\"",
    ] {
        assert!(!validator.is_valid(&as_json(wrong)), "{wrong}");
    }
}
