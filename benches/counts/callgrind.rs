//! The program under callgrind: a dump of its counters on demand, and what stands in a dump.
//!
//! A dump is read line by line as "Callgrind Format Specification" in the manual of valgrind describes it, in the form that the
//! options below ask for: costs by line of source, names written out once.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use crate::support::PATIENCE;
use crate::support::program::Program;

/// What allocates: Rust's global allocator and everything else end in one of these functions of the C library.
const ALLOCATING: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];

/// Has the C library copy in a loop of instructions. The one that copies anything at once counts once for each byte, and whether
/// the library uses it depends on the processor.
const PLAIN_COPIES: &str = "glibc.cpu.x86_rep_movsb_threshold=1000000000";

/// Reads the clock: a system call under valgrind, which hides the page that lets programs do without one.
const CLOCK: &str = "clock_gettime";

/// What one function has done between two dumps.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// Instructions of its own.
    pub(crate) itself: u64,
    /// Instructions, those of what it called among them.
    pub(crate) inclusive: u64,
    /// How often it was called.
    pub(crate) calls: u64,
    /// How often it called what allocates.
    pub(crate) allocations: u64,
    /// By itself.
    pub(crate) system_calls: u64,
}

/// What the program has done between two dumps, all its threads together; what the kernel did for it is not in it.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    pub(crate) instructions: u64,
    /// By name.
    pub(crate) functions: HashMap<String, Cost>,
    /// Instructions by file of the source, wherever they were inlined to.
    pub(crate) files: HashMap<String, u64>,
}

impl Dump {
    /// Calls of what allocates.
    pub(crate) fn allocations(&self) -> u64 {
        self.functions.values().map(|cost| cost.allocations).sum()
    }

    /// System calls, but for readings of the clock, which are none outside of valgrind.
    pub(crate) fn system_calls(&self) -> u64 {
        self.functions.iter().filter(|(name, _)| *name != CLOCK).map(|(_, cost)| cost.system_calls).sum()
    }

    /// Readings of the clock.
    pub(crate) fn clock_readings(&self) -> u64 {
        self.functions.get(CLOCK).map_or(0, |cost| cost.system_calls)
    }

    /// Reads a dump whose events are instructions, system calls and anything else.
    pub(crate) fn parse(text: &str) -> Self {
        let mut dump = Self::default();
        let (mut functions, mut files) = (Names::default(), Names::default());
        let (mut function, mut file, mut called) = (String::new(), String::new(), String::new());
        let mut is_call = false;
        for line in text.lines() {
            if let Some(totals) = line.strip_prefix("totals: ") {
                dump.instructions = numbers(totals).next().expect("instructions");
            } else if let Some((key, value)) = line.split_once('=') {
                match key {
                    "fn" => function = functions.name(value),
                    "cfn" => called = functions.name(value),
                    "fl" | "fi" | "fe" => file = files.name(value),
                    // The file of what is called: not wanted, but it may be the one place where its name is written out.
                    "cfi" | "cfl" => drop(files.name(value)),
                    "calls" => {
                        let calls = numbers(value).next().expect("a count");
                        dump.functions.entry(called.clone()).or_default().calls += calls;
                        if ALLOCATING.contains(&called.as_str()) {
                            dump.functions.entry(function.clone()).or_default().allocations += calls;
                        }
                        is_call = true;
                    }
                    _ => {}
                }
            } else if let Some((_, costs)) = line.split_once(' ').filter(|_| line.starts_with(is_position)) {
                let mut costs = numbers(costs);
                let instructions = costs.next().expect("instructions");
                let cost = dump.functions.entry(function.clone()).or_default();
                // The line after `calls=` is what was called, not what the function did itself.
                if std::mem::take(&mut is_call) {
                    // What calls itself has its instructions once.
                    cost.inclusive += if called == function { 0 } else { instructions };
                } else {
                    cost.inclusive += instructions;
                    cost.itself += instructions;
                    cost.system_calls += costs.next().unwrap_or_default();
                    *dump.files.entry(file.clone()).or_default() += instructions;
                }
            }
        }
        let sum: u64 = dump.functions.values().map(|cost| cost.itself).sum();
        assert_eq!(sum, dump.instructions, "every instruction belongs to a function");
        dump
    }
}

/// True for what a line of costs begins with: a number of a line, or how far it is from that of the line before.
fn is_position(first: char) -> bool {
    first.is_ascii_digit() || matches!(first, '+' | '-' | '*')
}

fn numbers(text: &str) -> impl Iterator<Item = u64> {
    text.split(' ').map(|number| number.parse().expect("a number"))
}

/// Names that are written `(7) name` where they come first and `(7)` from then on.
#[derive(Default)]
struct Names(HashMap<String, String>);

impl Names {
    fn name(&mut self, text: &str) -> String {
        match text.split_once(' ') {
            Some((number, name)) => {
                // Without the version of the symbol.
                let name = name.split('@').next().unwrap_or_default().to_owned();
                self.0.insert(number.to_owned(), name.clone());
                name
            }
            None => self.0.get(text).cloned().unwrap_or_default(),
        }
    }
}

/// The program, running under callgrind.
pub(crate) struct Watched {
    pub(crate) program: Program,
    /// Where dumps and the ends of valgrind's pipe are; goes with it.
    directory: tempfile::TempDir,
    dumps: usize,
}

impl Watched {
    /// `program run` with `arguments` and ports of its own.
    pub(crate) fn run(program: &Path, arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("mongomux-counts-").tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        let mut command = Command::new("valgrind");
        command
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("GLIBC_TUNABLES", PLAIN_COPIES)
            .args(["--tool=callgrind", "--collect-systime=yes", "--dump-line=yes", "--dump-instr=no"])
            .arg(format!("--callgrind-out-file={}", at("out")))
            .arg(format!("--vgdb-prefix={}", at("vgdb")))
            .arg(program)
            .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(arguments);
        Self { program: Program::spawn(command), directory, dumps: 0 }
    }

    /// What was counted since the last dump, or since the start.
    pub(crate) async fn dump(&mut self) -> Dump {
        let dumped = Command::new("vgdb")
            .arg(format!("--vgdb-prefix={}", self.directory.path().join("vgdb").display()))
            .arg(format!("--pid={}", self.program.pid()))
            .arg("dump")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let vgdb = timeout(PATIENCE, dumped).await.expect("vgdb asks the program for its counters within a while");
        let vgdb = vgdb.unwrap_or_else(|error| panic!("vgdb, a part of valgrind: {error}"));
        self.dumps += 1;
        let file = self.last_dump();
        let text = fs::read_to_string(&file).unwrap_or_else(|error| {
            let said = String::from_utf8_lossy(&vgdb.stderr);
            panic!("no dump in {}: {error}; vgdb said: {said}\n{}", file.display(), self.program.log())
        });
        Dump::parse(&text)
    }

    /// The file of the last dump.
    pub(crate) fn last_dump(&self) -> PathBuf {
        self.directory.path().join(format!("out.{}", self.dumps))
    }
}
