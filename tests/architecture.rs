//! Reads `src/` and checks what the compiler does not: the order in which modules import each other, which files are
//! pure, and where what may be named. Test modules are exempt, comments and strings are not looked at.
//!
//! Code is read as paths: `use tokio::{spawn, time::Instant}` is `tokio::spawn` and `tokio::time::Instant`, and an
//! expression `Instant::now()` is `Instant::now`. That is enough for rules about names and needs no parser of Rust. What
//! is renamed (`use tokio as t`) is seen where it is imported, under its own name.
#![allow(clippy::unwrap_used, reason = "all of this program is a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The path of a command: each stage may import those before it.
const STAGES: &[&str] = &[
    "wire",
    "auth",
    "command",
    "topology",
    "breaker",
    "routing",
    "admission",
    "upstream",
    "reply",
    "client",
    "admin",
    "operate",
    "app",
    "sandbox",
    "trial",
    "main",
];

/// May be imported by every stage and import none.
const LEAVES: &[&str] = &["cli", "config", "reload", "tasks", "telemetry", "tls"];

/// Files, and directories with all that is in them, that take bytes and times and give decisions: no I/O, no clock, no
/// spawn, no randomness, no log.
const PURE: &[&str] = &[
    "wire/",
    "auth/",
    "command/",
    "topology/description.rs",
    "topology/selection.rs",
    "topology/state.rs",
    "breaker/",
    "routing/",
    "admission/claim.rs",
    "admission/codel.rs",
    "admission/fair_line.rs",
    "admission/gradient.rs",
    "admission/line.rs",
    "admission/mode.rs",
    "admission/queue.rs",
    "admission/shares.rs",
    "admission/tenant_use.rs",
    "admission/tenants.rs",
    "admission/user_queues.rs",
    "upstream/backoff.rs",
    "upstream/holders.rs",
    "upstream/pool_state.rs",
    "upstream/pool_state/",
    "upstream/shortage.rs",
    "upstream/turnover.rs",
    "reply/",
    "client/catch_up.rs",
    "client/knocks.rs",
    "client/pace.rs",
    "admin/advice.rs",
    "admin/suspicions.rs",
    "upstream/cancels.rs",
    "upstream/in_use.rs",
    "upstream/usage.rs",
    "admin/history.rs",
    "admin/series.rs",
    "admin/trends.rs",
    "operate/diag/masking.rs",
    "operate/events.rs",
    "operate/page.rs",
    "operate/readable.rs",
    "operate/series.rs",
    "operate/table.rs",
    "operate/top/model.rs",
    "operate/top/moment.rs",
];

/// What pure files do not name: a path that begins with the first part and, where there is one, goes on with the second.
const IMPURE: &[&str] = &[
    // I/O. Traits of `std::io` over buffers are fine, so only what opens something is listed.
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::env",
    "std::thread",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "socket2",
    "rustix",
    "mongodb",
    "axum",
    "hyper",
    // Logs are I/O as well, and the caller knows better what is worth a line.
    "tracing",
    "println",
    "eprintln",
    // Clocks.
    "SystemTime::now",
    "Instant::now",
    "DateTime::now",
    "std::time::SystemTime",
    "std::time::Instant",
    // Randomness; an ObjectId has a clock as well.
    "rand",
    "getrandom",
    "ObjectId::new",
    "Uuid::new",
    "RandomState",
];

/// Of tokio a pure file uses the type of a time, and nothing else.
const PURE_TOKIO: &str = "tokio::time::Instant";

/// Where the `mongodb` crate is named: connection strings and monitoring. The data path is ours.
const NAMES_MONGODB: &[&str] = &["config/uri.rs", "topology/monitor.rs"];

/// The one place that starts tasks.
const SPAWNS: &str = "tasks.rs";

/// Sets of tasks that end with whoever holds the set, and so need no list: the trial's clients and counters, which stand
/// outside of the proxy and judge it.
const HOLDS_JOIN_SETS: &[&str] = &["sandbox/census.rs", "sandbox/load.rs"];

/// Where work goes to a thread that may block, and why: it burns CPU for longer than other clients should wait.
const SPAWNS_BLOCKING: &[(&str, &str)] = &[
    ("tasks.rs", "inflating and deflating large messages, within one bound"),
    ("upstream/handshake.rs", "deriving keys takes thousands of hash rounds"),
    ("sandbox", "the trial unpacks, starts and waits for processes"),
];

#[test]
fn stages_import_only_what_is_to_their_left() {
    check(|file| {
        let own = file.module();
        let own_place = STAGES.iter().position(|stage| *stage == own);
        file.paths.iter().filter_map(move |path| {
            let imported = file.imported_module(path)?;
            if imported == own || LEAVES.contains(&imported.as_str()) {
                return None;
            }
            let Some(place) = STAGES.iter().position(|stage| *stage == imported) else {
                return Some(path.breaks(&format!("`{imported}` is no module of the map in tests/architecture.rs")));
            };
            match own_place {
                None => Some(path.breaks(&format!("`{own}` is a leaf and imports no stage, here `{imported}`"))),
                Some(own_place) if place > own_place => {
                    Some(path.breaks(&format!("`{own}` may not import `{imported}`, which is to its right")))
                }
                Some(_) => None,
            }
        })
    });
}

#[test]
fn the_map_is_that_of_the_crate_docs() {
    let lib = fs::read_to_string(source().join("lib.rs")).unwrap();
    let docs: String = lib.lines().filter_map(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("");
    let order = STAGES.iter().filter(|stage| **stage != "main").copied().collect::<Vec<_>>().join(" → ");
    assert!(
        docs.split_whitespace().collect::<Vec<_>>().join(" ").contains(&order),
        "src/lib.rs does not say `{order}`"
    );
    let declared = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let (leaves, stages): (Vec<&str>, Vec<&str>) = declared.partition(|module| LEAVES.contains(module));
    assert_eq!(leaves, LEAVES, "leaves are declared first, by name");
    assert_eq!(stages, STAGES[..STAGES.len() - 1], "stages are declared in the order of the map");
}

#[test]
fn pure_files_only_compute() {
    for entry in PURE {
        assert!(source().join(entry).exists(), "{entry} is listed as pure and does not exist");
    }
    check(|file| {
        let pure =
            PURE.iter().any(|entry| file.name == *entry || (entry.ends_with('/') && file.name.starts_with(entry)));
        file.paths.iter().filter(move |_| pure).filter_map(|path| {
            let text = path.text();
            let impure = IMPURE.iter().any(|name| path.names(name));
            let runtime = path.names("tokio") && text != PURE_TOKIO && !text.starts_with(&format!("{PURE_TOKIO}::"));
            let waits =
                path.segments.iter().any(|segment| segment == "await" || segment == "async" || segment == "spawn");
            (impure || runtime || waits)
                .then(|| path.breaks("this file is pure: no I/O, clock, spawn, log or randomness"))
        })
    });
}

#[test]
fn the_mongodb_crate_is_named_in_two_files() {
    check(|file| {
        let named = |path: &&CodePath| path.names("mongodb") && !NAMES_MONGODB.contains(&file.name.as_str());
        file.paths
            .iter()
            .filter(named)
            .map(|path| path.breaks(&format!("only {NAMES_MONGODB:?} name the mongodb crate")))
    });
}

#[test]
fn tasks_are_started_in_one_place() {
    check(|file| {
        file.paths.iter().filter_map(|path| {
            let any = |names: &[&str]| names.iter().any(|name| path.contains(name));
            let task = any(&["tokio::spawn", "task::spawn", "spawn_local", "LocalSet", "Handle::current"])
                || (path.contains("JoinSet") && !HOLDS_JOIN_SETS.contains(&file.name.as_str()));
            if task && file.name != SPAWNS {
                return Some(path.breaks("tasks are started through tasks.rs, so that each is awaited at the end"));
            }
            let blocking = any(&["spawn_blocking", "block_in_place", "thread::spawn", "thread::Builder"]);
            let allowed = SPAWNS_BLOCKING.iter().any(|(start, _)| file.name.starts_with(start));
            (blocking && !allowed)
                .then(|| path.breaks("work on other threads is listed in tests/architecture.rs, with its reason"))
        })
    });
}

/// Runs a rule over all files and fails with everything that breaks it.
#[track_caller]
fn check<'a, I: Iterator<Item = Broken> + 'a>(rule: impl Fn(&'a File) -> I) {
    let files: &'static [File] = Box::leak(read_all().into_boxed_slice());
    assert!(files.len() > 50, "src/ was not found as a whole");
    let broken = files.iter().flat_map(|file| {
        rule(file).map(|broken| format!("src/{}:{}: `{}`: {}", file.name, broken.line, broken.path, broken.rule))
    });
    let broken: Vec<String> = broken.collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// A rule that is broken.
struct Broken {
    line: usize,
    path: String,
    rule: String,
}

/// One file without its tests.
struct File {
    /// Below `src/`: `wire/frame.rs`.
    name: String,
    paths: Vec<CodePath>,
}

impl File {
    /// The top-level module that it belongs to.
    fn module(&self) -> String {
        let first = self.name.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first).to_owned()
    }

    /// The top-level module of our crate that a path leads to. `super` may lead there too.
    fn imported_module(&self, path: &CodePath) -> Option<String> {
        // `a/b.rs` is two modules deep, `a.rs` one; `main.rs` and `lib.rs` are the roots themselves.
        let depth = if self.name == "lib.rs" || self.name == "main.rs" { 0 } else { self.name.split('/').count() };
        let ups = path.segments.iter().take_while(|segment| *segment == "super").count();
        let rest = match path.segments[0].as_str() {
            "crate" | "mongomux" => &path.segments[1..],
            "super" if ups >= depth => &path.segments[ups..],
            _ => return None,
        };
        rest.first().cloned()
    }
}

/// `a::b::c` somewhere in code; a single word is a path, too.
#[derive(Debug, PartialEq)]
struct CodePath {
    line: usize,
    segments: Vec<String>,
}

impl CodePath {
    fn text(&self) -> String {
        self.segments.join("::")
    }

    /// True when the path begins with `name`.
    fn names(&self, name: &str) -> bool {
        let mut segments = self.segments.iter();
        name.split("::").all(|part| segments.next().is_some_and(|segment| segment == part))
            // `bson::DateTime::now` is `DateTime::now`, whatever it was reached by.
            || (name.starts_with(char::is_uppercase) && self.contains(name))
    }

    /// True when `name` is somewhere in the path.
    fn contains(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split("::").collect();
        self.segments.windows(parts.len()).any(|window| window.iter().map(String::as_str).eq(parts.iter().copied()))
    }

    fn breaks(&self, rule: &str) -> Broken {
        Broken { line: self.line, path: self.text(), rule: rule.to_owned() }
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read_all() -> Vec<File> {
    let (mut directories, mut texts) = (vec![source()], BTreeMap::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(source()).unwrap().to_str().unwrap().to_owned();
                texts.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    // Files that only tests are made of are declared as such by their parents.
    let mut test_files = Vec::new();
    let mut files = Vec::new();
    for (name, text) in &texts {
        let (code, test_modules) = without_tests(tokens(text));
        let directory = name.strip_suffix(".rs").unwrap();
        test_files.extend(test_modules.into_iter().map(|module| format!("{directory}/{module}.rs")));
        files.push(File { name: name.clone(), paths: paths(&code) });
    }
    files.retain(|file| !test_files.contains(&file.name));
    files
}

#[derive(Debug, Clone, PartialEq)]
struct Token {
    line: usize,
    /// An identifier, `::`, or one character.
    text: String,
}

/// Splits Rust into tokens; comments, strings, characters, lifetimes and numbers are left out.
fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    let starts = |at: usize, what: &str| bytes[at..].starts_with(what.as_bytes());
    while at < bytes.len() {
        let begin = at;
        let mut token = None;
        match bytes[at] {
            b'/' if starts(at, "//") => at += text[at..].find('\n').unwrap_or(text.len() - at),
            b'/' if starts(at, "/*") => at = block_comment(bytes, at),
            b'"' => at = string(bytes, at),
            b'\'' => at = character_or_lifetime(text, at),
            byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                at += bytes[at..].iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
                let word = &text[begin..at];
                let prefix = matches!(word, "b" | "c" | "r" | "br" | "cr");
                let hashes = bytes[at..].iter().take_while(|byte| **byte == b'#').count();
                if prefix && word.contains('r') && bytes.get(at + hashes) == Some(&b'"') {
                    let end = format!("\"{}", "#".repeat(hashes));
                    let body = at + hashes + 1;
                    at = body + text[body..].find(&end).expect("raw strings end") + end.len();
                } else if !(prefix && matches!(bytes.get(at), Some(b'"' | b'\''))) {
                    token = Some(word.to_owned());
                }
            }
            byte if byte.is_ascii_digit() => {
                at += bytes[at..].iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
            }
            b':' if starts(at, "::") => {
                at += 2;
                token = Some("::".to_owned());
            }
            byte => {
                at += 1;
                token = byte.is_ascii_punctuation().then(|| char::from(byte).to_string());
            }
        }
        tokens.extend(token.map(|text| Token { line, text }));
        line += bytes[begin..at].iter().filter(|byte| **byte == b'\n').count();
    }
    tokens
}

fn block_comment(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    loop {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
}

fn string(bytes: &[u8], mut at: usize) -> usize {
    at += 1;
    while bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn character_or_lifetime(text: &str, at: usize) -> usize {
    let mut rest = text[at + 1..].chars();
    match (rest.next(), rest.next()) {
        // An escape: the closing quote comes behind the escaped character, which may be a quote.
        (Some('\\'), Some(escaped)) => {
            let behind = at + 2 + escaped.len_utf8();
            behind + text[behind..].find('\'').expect("characters end") + 1
        }
        (Some(character), Some('\'')) => at + 2 + character.len_utf8(),
        _ => at + 1,
    }
}

/// Takes out every item behind `#[cfg(test)]`; returns also the names of modules that are declared so.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    let is = |at: usize, expected: &[&str]| {
        expected
            .iter()
            .enumerate()
            .all(|(offset, text)| tokens.get(at + offset).is_some_and(|token| token.text == *text))
    };
    let (mut kept, mut modules, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        if !is(at, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        // The item ends at its `;` or with its braces, whatever attributes and brackets come before.
        let mut depth = 0;
        loop {
            if is(at, &["mod"]) && is(at + 2, &[";"]) {
                modules.push(tokens[at + 1].text.clone());
            }
            let text = tokens[at].text.as_str();
            depth += i32::from(matches!(text, "{" | "(" | "[")) - i32::from(matches!(text, "}" | ")" | "]"));
            at += 1;
            if depth == 0 && matches!(text, ";" | "}") {
                break;
            }
        }
    }
    (kept, modules)
}

/// Every path in the code; a group behind `::` is every path in it.
fn paths(tokens: &[Token]) -> Vec<CodePath> {
    let (mut paths, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        at = path(tokens, at, &[], &mut paths).max(at + 1);
    }
    paths
}

/// Reads one path, or a tree of them, that continues `prefix`; returns where it ends.
fn path(tokens: &[Token], mut at: usize, prefix: &[String], paths: &mut Vec<CodePath>) -> usize {
    let text = |at: usize| tokens.get(at).map(|token| token.text.as_str());
    let is_word =
        |at: usize| text(at).is_some_and(|text| text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'));
    let (line, mut segments) = (tokens[at].line, prefix.to_vec());
    while is_word(at) {
        segments.push(tokens[at].text.clone());
        at += 1;
        if text(at) != Some("::") {
            break;
        }
        at += 1;
        if text(at) == Some("{") {
            at += 1;
            while text(at).is_some_and(|text| text != "}") {
                at = path(tokens, at, &segments, paths).max(at + 1);
            }
            return at + 1;
        }
    }
    if segments.len() > prefix.len() {
        paths.push(CodePath { line, segments });
    }
    at
}

mod of_this_test {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        paths(&without_tests(tokens(text)).0).iter().map(|path| format!("{}:{}", path.line, path.text())).collect()
    }

    #[test]
    fn groups_are_every_path_in_them() {
        assert_eq!(
            read("use crate::{\n    a::{b, c},\n    d as e,\n};\nlet x = f::g(h);"),
            [
                "1:use",
                "2:crate::a::b",
                "2:crate::a::c",
                "3:crate::d",
                "3:crate::as",
                "3:crate::e",
                "5:let",
                "5:x",
                "5:f::g",
                "5:h"
            ]
        );
    }

    #[test]
    fn comments_strings_characters_and_lifetimes_are_not_code() {
        let text = "a // x\n/* y /* z */ */ b \"c \\\" d\" r#\"e \" f\"# b'g' '\\'' '\"' 'h' i<'j> b\"k\" 0x1f l";
        assert_eq!(read(text), ["1:a", "2:b", "2:i", "2:j", "2:l"]);
    }

    #[test]
    fn tests_are_left_out_and_what_follows_is_not() {
        let text = "a\n#[cfg(test)]\n#[x(y)]\nmod tests { fn f() { b; } }\n#[cfg(test)]\nmod model;\n#[cfg(test)]\nfn g(h: [u8; 3]) {}\nc";
        let (code, modules) = without_tests(tokens(text));
        assert_eq!((read(text), modules), (vec!["1:a".to_owned(), "9:c".to_owned()], vec!["model".to_owned()]));
        assert_eq!(code.len(), 2);
    }

    #[test]
    fn the_rules_see_what_they_are_about() {
        let one = |text: &str| paths(&tokens(text)).remove(0);
        assert!(one("tokio::time::Instant::now()").names("Instant::now"));
        assert!(one("rand::random()").names("rand") && !one("operand").names("rand"));
        assert!(one("tokio::task::spawn_blocking").contains("spawn_blocking"));
        assert!(!one("tokio::task::spawn_blocking").contains("task::spawn"));
        let file = |name: &str| File { name: name.to_owned(), paths: Vec::new() };
        let imported = |name: &str, text: &str| file(name).imported_module(&one(text));
        assert_eq!(imported("wire/frame.rs", "crate::config::limits").as_deref(), Some("config"));
        assert_eq!(imported("wire/frame.rs", "super::header"), None);
        assert_eq!(imported("wire/frame.rs", "super::super::app").as_deref(), Some("app"));
        assert_eq!(imported("wire.rs", "super::app").as_deref(), Some("app"));
        assert_eq!(imported("main.rs", "mongomux::cli").as_deref(), Some("cli"));
    }
}
