//! What was measured, as Markdown for people.

use super::disturbances;
use super::measure::PROGRAM;
use super::results::{Figure, Meanwhile, Measured, Memory, Purpose, Results, Slice, Spread, Storm, ratio, spread};
use super::verdict;

/// Each target while nothing disturbs it.
const CALM: &str = "calm";

/// Figures and how many digits they have, in the order of their columns.
type Columns<M> = [(Figure<M>, usize)];

/// Prints all of it.
pub fn print(results: &Results) {
    println!("### Conditions\n\n| | |\n| --- | --- |");
    for (what, value) in &results.conditions {
        println!("| {what} | {value} |");
    }
    if results.purpose == Purpose::References {
        verdict::print(results);
    }
    print_ratios(results);
    for case in results.cases() {
        print_case(&results.targets, &results.of_case(case));
    }
    print_case(&results.targets, &results.many.iter().collect::<Vec<_>>());
    print_memory(&results.memory);
    print_storms(&results.targets, &results.storms.iter().collect::<Vec<_>>());
    print_meanwhile(&results.targets, &results.meanwhile.iter().collect::<Vec<_>>());
}

fn print_ratios(results: &Results) {
    // What for the proxy's processor time, and what for everything else.
    let (of_proxy, others) = match results.purpose {
        Purpose::References => ("haproxy", "direct"),
        Purpose::Variants => (PROGRAM, PROGRAM),
        Purpose::Disturbances => (CALM, CALM),
    };
    let ratios: [(&str, &str, Figure<Slice>); 5] = [
        ("proxy CPU", of_proxy, |it| it.proxy_us),
        ("proxy + mongod CPU", others, |it| Some(it.sum_us())),
        ("ops/s", others, |it| Some(it.per_second)),
        ("p50", others, |it| Some(it.p50_ms)),
        ("p99", others, |it| Some(it.p99_ms)),
    ];
    println!("\n### Ratios within a round\n");
    print!("| | |");
    ratios.iter().for_each(|(what, to, _)| print!(" {what} : {to} |"));
    println!("\n|{}", " --- |".repeat(2 + ratios.len()));
    for case in results.cases() {
        let slices = results.of_case(case);
        for target in &results.targets {
            let named = |to| if to == CALM { disturbances::calm(target) } else { to };
            if target == named(others) {
                continue;
            }
            print!("| `{case}` | {target} |");
            for (_, to, figure) in ratios {
                let to = named(to);
                print_cell(ratio(&slices, target, to, figure).filter(|_| target != to), 2);
            }
            println!();
        }
    }
}

fn print_case(targets: &[String], slices: &[&Slice]) {
    let Some(first) = slices.first() else { return };
    println!("\n### {} (`{}`)\n", first.title, first.case);
    println!(
        "| | ops/s | p50 ms | p99 ms | p99.9 ms | proxy us | mongod us | proxy + mongod us | load us | peak MiB |\n|{}",
        " --- |".repeat(10)
    );
    print_rows(
        targets,
        slices,
        &[
            (|it| Some(it.per_second), 0),
            (|it| Some(it.p50_ms), 2),
            (|it| Some(it.p99_ms), 2),
            (|it| Some(it.p999_ms), 2),
            (|it| it.proxy_us, 1),
            (|it| Some(it.server_us), 1),
            (|it| Some(it.sum_us()), 1),
            (|it| Some(it.load_us), 1),
            (|it| it.peak_kib.map(|kib| kib as f64 / 1024.0), 1),
        ],
    );
}

fn print_storms(targets: &[String], storms: &[&Storm]) {
    if storms.is_empty() {
        return;
    }
    println!("\n### A storm of connects: all at once, hello and first ping each\n");
    println!("| | all served, s | proxy us per client | mongod us per client |\n|{}", " --- |".repeat(4));
    print_rows(targets, storms, &[(|it| Some(it.seconds), 2), (|it| it.proxy_us, 0), (|it| Some(it.server_us), 0)]);
}

fn print_meanwhile(targets: &[String], meanwhile: &[&Meanwhile]) {
    if meanwhile.is_empty() {
        return;
    }
    println!("\n### What disturbed them\n");
    println!("| | slow readers, MB/s | storm, all served, s |\n|{}", " --- |".repeat(3));
    print_rows(targets, meanwhile, &[(|it| Some(it.read), 1), (|it| Some(it.storm_seconds), 2)]);
}

fn print_rows<M: Measured>(targets: &[String], measured: &[&M], columns: &Columns<M>) {
    for target in targets.iter().filter(|target| measured.iter().any(|it| it.target() == *target)) {
        print!("| {target} |");
        for (figure, digits) in columns {
            print_cell(spread(measured, target, *figure), *digits);
        }
        println!();
    }
}

fn print_cell(spread: Option<Spread>, digits: usize) {
    match spread {
        Some(Spread { median, least, most }) => {
            print!(" **{median:.digits$}** ({least:.digits$}–{most:.digits$}) |");
        }
        None => print!(" |"),
    }
}

fn print_memory(memory: &[Memory]) {
    println!("\n### Idle clients\n");
    println!(
        "| | clients | bare MiB | with clients MiB | KiB per client | mongod, MiB more | connections at the server \
         | CPU while idle, ms/s |\n|{}",
        " --- |".repeat(8)
    );
    let mib = |kib: Option<u64>| kib.map(|kib| format!("{:.1}", kib as f64 / 1024.0)).unwrap_or_default();
    for it in memory {
        println!(
            "| {} | {} | {} | {} | {} | {:.0} | {} | {} |",
            it.target,
            it.clients,
            mib(it.bare_kib),
            mib(it.idle_kib),
            it.kib_per_client().map(|kib| format!("{kib:.2}")).unwrap_or_default(),
            it.server_kib as f64 / 1024.0,
            it.connections,
            it.idle_cpu_ms.map(|millis| format!("{millis:.2}")).unwrap_or_default(),
        );
    }
}
