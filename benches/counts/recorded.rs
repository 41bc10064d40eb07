//! The figures that were recorded, and how new ones compare with them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde::Deserialize;

use crate::callgrind::Dump;

/// Part of the tree, and of each commit that changes what commands cost.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts/recorded.toml");

/// How the figures are recorded.
pub(crate) const HOW: &str = "cargo bench --profile dev --bench counts -- --record";

/// More than this beyond a figure is too much; so much less ought to be recorded.
const TOLERANCE: f64 = 0.05;

/// What the program does now and then is spread over many commands and never a whole one.
const LEAST: f64 = 0.05;

/// What one command costs, on average.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Figures {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
    pub(crate) system_calls: f64,
    pub(crate) clock_readings: f64,
}

impl Figures {
    /// Of what was counted over `count` commands.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(crate) fn of(dump: &Dump, count: usize) -> Self {
        let per = |sum: u64| sum as f64 / count as f64;
        Self {
            instructions: per(dump.instructions),
            allocations: per(dump.allocations()),
            system_calls: per(dump.system_calls()),
            clock_readings: per(dump.clock_readings()),
        }
    }

    /// The median of each figure; of at least one.
    pub(crate) fn median(all: &[Self]) -> Self {
        let median = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<f64> = all.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Self {
            instructions: median(|figures| figures.instructions),
            allocations: median(|figures| figures.allocations),
            system_calls: median(|figures| figures.system_calls),
            clock_readings: median(|figures| figures.clock_readings),
        }
    }

    fn named(&self) -> [(&'static str, f64); 4] {
        [
            ("instructions", self.instructions),
            ("allocations", self.allocations),
            ("system_calls", self.system_calls),
            ("clock_readings", self.clock_readings),
        ]
    }
}

/// The file.
#[derive(Debug, Deserialize)]
pub(crate) struct Recorded {
    /// What the figures were taken with.
    tools: BTreeMap<String, String>,
    cases: BTreeMap<String, Figures>,
}

/// What a comparison has found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Too much.
    pub(crate) wrong: Vec<String>,
    /// Less than there was: it is not kept so before it is recorded.
    pub(crate) less: Vec<String>,
    /// What may explain a difference.
    pub(crate) notes: Vec<String>,
}

impl Recorded {
    pub(crate) fn read() -> Self {
        let text = fs::read_to_string(FILE).unwrap_or_else(|error| panic!("{FILE}: {error}; {HOW}"));
        toml::from_str(&text).unwrap_or_else(|error| panic!("{FILE}: {error}; {HOW}"))
    }

    /// Writes the file anew.
    pub(crate) fn write(cases: &[(String, Figures)]) {
        let mut text = format!("# What one command costs, written by `{HOW}`.\n\n[tools]\n");
        for (tool, version) in tools() {
            writeln!(text, "{tool} = {version:?}").expect("a string takes all");
        }
        for (case, figures) in cases {
            writeln!(text, "\n[cases.{case}]").expect("a string takes all");
            for (name, figure) in figures.named() {
                let digits = if name == "instructions" { 0 } else { 2 };
                writeln!(text, "{name} = {figure:.digits$}").expect("a string takes all");
            }
        }
        fs::write(FILE, text).unwrap_or_else(|error| panic!("{FILE}: {error}"));
    }

    pub(crate) fn compare(&self, case: &str, figures: &Figures, findings: &mut Findings) {
        let Some(recorded) = self.cases.get(case) else {
            findings.wrong.push(format!("{case} is not in {FILE}"));
            return;
        };
        for ((name, now), (_, then)) in figures.named().into_iter().zip(recorded.named()) {
            let name = name.replace('_', " ");
            let percent = if then > 0.0 { format!(", {:+.1} %", (now / then - 1.0) * 100.0) } else { String::new() };
            let change = format!("{case}: {now:.2} {name} per command, {then} were recorded{percent}");
            if now > then * (1.0 + TOLERANCE) + LEAST {
                findings.wrong.push(change);
            } else if now < then * (1.0 - TOLERANCE) - LEAST {
                findings.less.push(change);
            }
        }
    }

    /// Says where other tools than those of the figures are at work.
    pub(crate) fn compare_tools(&self, findings: &mut Findings) {
        for (tool, now) in tools() {
            let then = self.tools.get(tool).map_or("nothing", String::as_str);
            if then != now {
                findings
                    .notes
                    .push(format!("the figures are from {then}, this is {now}: some difference comes from that"));
            }
        }
    }
}

/// What has a part in the figures beside the code.
fn tools() -> [(&'static str, String); 3] {
    let says = |command: &[&str]| {
        let output = Command::new(command[0]).args(&command[1..]).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", command[0]));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    [
        ("compiler", says(&["rustc", "--version"])),
        ("libc", says(&["getconf", "GNU_LIBC_VERSION"])),
        ("valgrind", says(&["valgrind", "--version"])),
    ]
}
