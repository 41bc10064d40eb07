//! The proxy in a world of its own: clients, servers and the network between them in one thread, under a clock that only moves when
//! nobody works, and one seed for all that is left to chance. Whatever goes wrong there can be seen again.
#![allow(clippy::print_stdout, reason = "the story of a run that is looked at")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "all numbers here are small"
)]

mod cancel;
mod chance;
mod client;
mod faults;
mod message;
mod network;
mod server;
mod set;
mod truth;
mod watch;
mod world;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::time::Duration;

/// Seeds of each run of the tests, the same each time: new ones are for `tests/simulation/run`.
const SEEDS: u64 = 100;

/// A run takes milliseconds. One that takes so long, by the clock on the wall, never lets the other clock move.
const STUCK: Duration = Duration::from_secs(60);

/// After so many runs it says how far it is.
const TOLD: u64 = 1_000;

/// Lines of the story that are shown.
const LINES: usize = 1_500;

thread_local! {
    /// What has panicked in this thread: a task takes nobody along.
    pub(crate) static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Writes panics down.
fn hear_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANIC.set(Some(panic.to_string()));
            before(panic);
        }));
    });
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: found `{text}`, expected a number")))
}

/// In which order tokio looks at what is ready at the same time is no part of a seed, unless tokio was built to let it be chosen.
const ORDERS: u64 = if cfg!(tokio_unstable) { 100 } else { 1 };

/// How the run of a seed is seen again.
fn replay(seed: u64, order: u64) -> String {
    if cfg!(tokio_unstable) {
        format!("tests/simulation/run --seed {seed} --order {order}")
    } else {
        format!("tests/simulation/run --seed {seed}")
    }
}

fn run(seed: u64, order: u64, aloud: bool) -> world::Outcome {
    hear_panics();
    let (done, outcome) = mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("seed {seed}"));
    let running = thread.spawn(move || done.send(world::run(seed, order, aloud, LINES)).expect("somebody listens"));
    let running = running.expect("a thread");
    match outcome.recv_timeout(STUCK) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            panic!("seed {seed} stands still; again with\n  {}", replay(seed, order))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            drop(running.join());
            panic!("seed {seed} panicked; again with\n  {}", replay(seed, order))
        }
    }
}

/// Runs the seeds on two threads; the first that fails ends it.
fn run_all(seeds: std::ops::Range<u64>) -> u64 {
    let (next, delivered) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let failed: Mutex<Option<(u64, String)>> = Mutex::default();
    let failure = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failure().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, 0, false);
                    if (seed - seeds.start) % TOLD == TOLD - 1 {
                        println!("{} runs", seed - seeds.start + 1);
                    }
                    delivered.fetch_add(outcome.delivered, Ordering::Relaxed);
                    if let Err(story) = outcome.verdict {
                        failure().get_or_insert((seed, story));
                    }
                }
            });
        }
    });
    if let Some((seed, story)) = failure().take() {
        panic!("seed {seed}:\n{story}\n\nagain with\n  {}", replay(seed, 0));
    }
    delivered.into_inner()
}

/// Runs one seed aloud, in that order, or in the first of many that breaks a promise.
fn again(seed: u64, order: Option<u64>) {
    let breaks = |order: &u64| run(seed, *order, false).verdict.is_err();
    let order = order.or_else(|| (0..ORDERS).find(breaks)).unwrap_or(0);
    let outcome = run(seed, order, true);
    outcome.verdict.unwrap_or_else(|_| panic!("a promise was broken; again with\n  {}", replay(seed, order)));
}

#[test]
fn no_promise_is_broken() {
    if let Some(seed) = number("SIMULATION_SEED") {
        return again(seed, number("SIMULATION_ORDER"));
    }
    let first = number("SIMULATION_FIRST").unwrap_or(0);
    let count = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    println!("seeds {first} to {}", first + count - 1);
    let delivered = run_all(first..first + count);
    println!("{count} runs, {delivered} commands reached servers");
    assert!(delivered > count, "hardly a command reached a server");
}

/// What makes a replay worth something.
#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        assert_eq!(run(seed, 0, false).hash, run(seed, 0, false).hash, "seed {seed}");
    }
}

/// Commands take twenty polls or so: the pieces in which messages come and go make some more.
#[test]
fn a_session_that_is_dropped_anywhere_leaves_nothing() {
    let mut polls = 0;
    for situation in cancel::SITUATIONS {
        for command in cancel::COMMANDS {
            polls += cancel::after_each_poll(command, situation);
        }
    }
    println!("dropped after each of {polls} polls");
    assert!(polls > 4 * 12 * 2, "{polls} polls");
}
