//! What the program is to reach, and whether it does. Ratios are medians of the rounds; of several cases the worst one counts.

use super::measure::PROGRAM;
use super::results::{Figure, Results, Slice, Spread, Storm, ratio, spread};

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn is_reached(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
        }
    }

    /// Positive where it is missed, the more the worse.
    fn miss(self, figure: f64) -> f64 {
        match self {
            Self::AtMost(limit) => figure - limit,
            Self::AtLeast(limit) => limit - figure,
        }
    }
}

/// A figure of some cases, relative to another target.
struct Compared {
    what: &'static str,
    cases: &'static [&'static str],
    to: &'static str,
    figure: Figure<Slice>,
    goal: Goal,
}

const PROXY: Figure<Slice> = |it| it.proxy_us;
const SUM: Figure<Slice> = |it| Some(it.sum_us());
const THROUGHPUT: Figure<Slice> = |it| Some(it.per_second);
const P99: Figure<Slice> = |it| Some(it.p99_ms);

const TURN: &[&str] = &["find-100B@turn", "insert-100B@turn"];

const COMPARED: [Compared; 9] = [
    Compared {
        what: "CPU per command, 64 fixed sockets, 100 B",
        cases: &["find-100B@64", "insert-100B@64"],
        to: "haproxy",
        figure: PROXY,
        goal: Goal::AtMost(1.0),
    },
    Compared {
        what: "CPU per command of proxy and server, in turn, find 100 B",
        cases: &["find-100B@turn"],
        to: "direct",
        figure: SUM,
        goal: Goal::AtMost(1.0),
    },
    Compared {
        what: "CPU per command, open loop, find 100 B",
        cases: &["find-100B@open"],
        to: "haproxy",
        figure: PROXY,
        goal: Goal::AtMost(1.1),
    },
    Compared {
        what: "CPU per command, 64 fixed sockets, 16 KiB",
        cases: &["find-16KiB@64", "insert-16KiB@64"],
        to: "haproxy",
        figure: PROXY,
        goal: Goal::AtMost(1.0),
    },
    Compared {
        what: "CPU per command, all cases",
        cases: &[],
        to: "mongobetween",
        figure: PROXY,
        goal: Goal::AtMost(0.35),
    },
    Compared {
        what: "throughput, in turn, 100 B",
        cases: TURN,
        to: "direct",
        figure: THROUGHPUT,
        goal: Goal::AtLeast(1.1),
    },
    Compared {
        what: "throughput, 64 fixed sockets, find 100 B",
        cases: &["find-100B@64"],
        to: "direct",
        figure: THROUGHPUT,
        goal: Goal::AtLeast(0.95),
    },
    Compared { what: "p99, in turn, 100 B", cases: TURN, to: "direct", figure: P99, goal: Goal::AtMost(0.25) },
    Compared {
        what: "p99, open loop, find 100 B",
        cases: &["find-100B@open"],
        to: "direct",
        figure: P99,
        goal: Goal::AtMost(1.5),
    },
];

/// Prints a row for each goal that this run has a figure for.
pub fn print(results: &Results) {
    println!("\n### Goals\n\n| {PROGRAM} | measured | goal | reached |\n| --- | --- | --- | --- |");
    for compared in &COMPARED {
        let cases = if compared.cases.is_empty() { &results.cases() } else { compared.cases };
        let ratios = cases.iter().filter_map(|case| {
            let slices = results.of_case(case);
            Some((*case, ratio(&slices, PROGRAM, compared.to, compared.figure)?.median))
        });
        let what = format!("{}, of that of {}", compared.what, compared.to);
        print_worst(&what, ratios, "x", compared.goal);
    }
    let clients = results.memory.iter().filter(|memory| memory.target == PROGRAM);
    let clients = clients.filter_map(|memory| Some((format!("{} clients", memory.clients), memory.kib_per_client()?)));
    print_worst("memory per idle client", clients, "KiB", Goal::AtMost(1.5));
    let of_program = results.slices.iter().filter(|slice| slice.target == PROGRAM);
    let peaks = of_program.filter_map(|slice| Some((&slice.case, slice.peak_kib? as f64 / 1024.0)));
    print_worst("peak of memory under load", peaks, "MiB", Goal::AtMost(32.0));
    let storms: Vec<&Storm> = results.storms.iter().collect();
    let only = |spread: Option<Spread>| spread.map(|spread| ("storm", spread.median));
    let time = ratio(&storms, PROGRAM, "direct", |it| Some(it.seconds));
    print_worst("time of a storm, of that of direct", only(time), "x", Goal::AtMost(0.8));
    let server = spread(&storms, PROGRAM, |it| Some(it.server_us));
    print_worst("CPU of mongod per client of a storm", only(server), "us", Goal::AtMost(50.0));
}

fn print_worst<N: AsRef<str>>(what: &str, figures: impl IntoIterator<Item = (N, f64)>, unit: &str, goal: Goal) {
    let worst = figures.into_iter().max_by(|(_, one), (_, other)| goal.miss(*one).total_cmp(&goal.miss(*other)));
    let Some((case, figure)) = worst else { return };
    let (relation, limit) = match goal {
        Goal::AtMost(limit) => ("≤", limit),
        Goal::AtLeast(limit) => ("≥", limit),
    };
    let reached = if goal.is_reached(figure) { "yes" } else { "**no**" };
    println!("| {what} | {figure:.2} {unit} ({}) | {relation} {limit} {unit} | {reached} |", case.as_ref());
}
