//! What was measured, as Markdown for people.

use super::results::{Figure, Measured, Memory, Results, Slice, Spread, Storm, ratio, spread};
use super::verdict;

/// Figures and how many digits they have, in the order of their columns.
type Columns<M> = [(Figure<M>, usize)];

/// Prints all of it.
pub fn print(results: &Results) {
    println!("### Conditions\n\n| | |\n| --- | --- |");
    for (what, value) in &results.conditions {
        println!("| {what} | {value} |");
    }
    verdict::print(results);
    print_ratios(results);
    for case in results.cases() {
        print_case(&results.targets, &results.of_case(case));
    }
    print_case(&results.targets, &results.many.iter().collect::<Vec<_>>());
    print_memory(&results.memory);
    print_storms(&results.targets, &results.storms.iter().collect::<Vec<_>>());
}

fn print_ratios(results: &Results) {
    println!("\n### Ratios within a round\n");
    println!("| | | proxy CPU : haproxy | proxy + mongod CPU : direct | ops/s : direct | p99 : direct |");
    println!("|{}", " --- |".repeat(6));
    let ratios: [(&str, Figure<Slice>); 4] = [
        ("haproxy", |it| it.proxy_us),
        ("direct", |it| Some(it.sum_us())),
        ("direct", |it| Some(it.per_second)),
        ("direct", |it| Some(it.p99_ms)),
    ];
    for case in results.cases() {
        let slices = results.of_case(case);
        for target in results.targets.iter().filter(|target| *target != "direct") {
            print!("| `{case}` | {target} |");
            for (to, figure) in ratios {
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
    println!("\n### A storm of connects: all at once, hello and first ping each\n");
    println!("| | all served, s | proxy us per client | mongod us per client |\n|{}", " --- |".repeat(4));
    print_rows(targets, storms, &[(|it| Some(it.seconds), 2), (|it| it.proxy_us, 0), (|it| Some(it.server_us), 0)]);
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
