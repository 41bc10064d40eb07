//! Where the instructions of one dump went, in tables to read.
//!
//! Functions are those that the linker left: what was inlined counts as its caller. The table by file sees through that.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "tables of figures that are far below 2^52")]

use std::cmp::Reverse;

use crate::callgrind::{Cost, Dump};

/// In front of the names of files that are not ours: what lies behind the last of them that is found tells enough.
const ROOTS: [&str; 4] = ["/src/index.crates.io-", "/library/", "/sysdeps/", "/src/"];

/// Prints the tables, `top` lines of each, per command where there were `count`.
pub(crate) fn print(dump: &Dump, count: usize, top: usize) {
    let per = |cost: u64| cost as f64 / count as f64;
    let functions = |title: &str, by: fn(&Cost) -> u64| {
        println!("\n{title}\n   inclusive     itself    calls   allocs    sysc.  function");
        let mut functions: Vec<_> = dump.functions.iter().filter(|(_, cost)| by(cost) > 0).collect();
        functions.sort_by_key(|(_, cost)| Reverse(by(cost)));
        for (name, cost) in functions.into_iter().take(top) {
            let Cost { itself, inclusive, calls, allocations, system_calls } = *cost;
            let (inclusive, itself, calls) = (per(inclusive), per(itself), per(calls));
            let (allocations, system_calls) = (per(allocations), per(system_calls));
            println!("{inclusive:12.1} {itself:10.1} {calls:8.2} {allocations:8.2} {system_calls:8.2}  {name}");
        }
    };
    // What was begun before, as `main` was, holds everything.
    let called = |cost: &Cost| if cost.calls > 0 { cost.inclusive } else { 0 };
    functions("Instructions with those of what is called", called);
    functions("Instructions of the function itself", |cost| cost.itself);
    functions("Who allocates", |cost| cost.allocations);
    functions("System calls", |cost| cost.system_calls);
    println!("\nInstructions by file of the source\n      itself  file");
    let mut files: Vec<_> = dump.files.iter().collect();
    files.sort_by_key(|(_, cost)| Reverse(**cost));
    for (name, cost) in files.into_iter().take(top) {
        println!("{:12.1}  {}", per(*cost), short(name));
    }
}

fn short(file: &str) -> &str {
    let cut = ROOTS.iter().filter_map(|root| file.rfind(root)).min();
    cut.map_or(file, |at| &file[at + 1..])
}
