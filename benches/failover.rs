//! What a fail-over and an outage cost the clients, and the program itself: the program in front of a replica set of three
//! whose primary steps down or is killed, and whose members are then all away for a while.
//!
//! `cargo bench --bench failover`; `MONGOMUX_OUTAGE_SECONDS` (60) sets how long the outage lasts. Needs a `mongod` as the
//! tests do. Times count from the moment in which a member says that it is primary, as heard on sockets that ask it every
//! 4 ms. A write is acknowledged by a majority, and until a new primary's secondaries follow it nobody gets that: so a write
//! that asks the new primary directly stands beside those that go through the proxy, and so does a read.
//!
//! Attempts to connect are counted by the system for the whole network namespace: with others at work on the machine, run it
//! in one of its own (`unshare -rn sh -c 'ip link set lo up; cargo bench --bench failover'`).
//!
//! Ends with 1 when something is wrong: a lost socket, a lost or doubled write, a wrong reply, more connections than the
//! bound, a command that was not answered in time. Goals that are missed are told.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints its result")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::process::ExitCode;

use bson::doc;
use futures_util::future::{join, try_join_all};
use mongomux::config::limits::{MAX_POOL_SIZE, SERVER_SELECTION_TIMEOUT, WAIT_QUEUE_TIMEOUT};
use mongomux::sandbox::census::Census;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use support::bench::{cpu_seconds, peak_kib};
use support::elections::{Elected, Elections};
use support::ledger::{self, Ledger, Load};
use support::program::Program;
use tokio::time::{Duration, Instant, sleep, sleep_until};

const STEP_DOWNS: usize = 5;
const KILLS: usize = 3;
const MAX_TIME: Duration = Duration::from_secs(3);

/// What the clients may take to notice an answer on a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// The proxy gives a server this much longer than `maxTimeMS`.
const MAX_TIME_GRACE: Duration = Duration::from_secs(1);

const NORMAL: Duration = Duration::from_secs(10);
const SECONDS_AFTER: u64 = 8;
const PAUSE_BETWEEN: Duration = Duration::from_secs(4);

// The goals.
const FIRST_SUCCESS: Duration = Duration::from_millis(250);
const RECOVERY: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    support::bench::run(measure())
}

/// Returns what is wrong.
async fn measure() -> Vec<String> {
    let load = Load {
        drivers: 50,
        workers: 10,
        retrying: 0,
        plain: 20,
        max_time: Some(MAX_TIME),
        pause: Duration::from_secs(3),
        ..Load::default()
    };
    let outage = std::env::var("MONGOMUX_OUTAGE_SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let deployment = Deployment::replica_set(3).await.unwrap();
    let uri = deployment.uri();
    let proxy = Program::run(&["--log", "info", &uri]);
    let address = proxy.address().await;
    println!(
        "{} clients of the Rust driver with {} sockets each, {} raw sockets that never send again (maxTimeMS {}), {} probes; \
         every socket 5 commands each {:?} on average, 2 of them writes with w:majority; election timeout 1 s",
        load.drivers,
        load.workers,
        load.plain,
        MAX_TIME.as_millis(),
        load.probes,
        load.pause,
    );
    let mut bench = Some(Bench {
        elections: Elections::watch(deployment.members().iter().map(Mongod::address)),
        counts: Census::start(deployment.members().iter().map(Mongod::address)),
        deployment,
        proxy,
        most: 0,
    });
    let books = ledger::keep(&address, &load, async |ledger| {
        let bench = bench.as_mut().unwrap();
        ledger.progress(1_000).await;
        println!("| trouble | first read | first write | without a proxy | errors of retryable work | sockets lost |");
        println!("| --- | --- | --- | --- | --- | --- |");
        let mut rounds = Vec::new();
        for _ in 0..STEP_DOWNS {
            rounds.push(bench.round("step-down", ledger, async |bench| bench.step_down().await).await);
        }
        summarise("step-down", &rounds);
        rounds.clear();
        for _ in 0..KILLS {
            let primary = bench.deployment.await_primary().await.unwrap();
            rounds.push(bench.round("kill -9", ledger, async |bench| bench.kill(primary).await).await);
            bench.deployment.member(primary).restart().await.unwrap();
        }
        summarise("kill -9", &rounds);
        bench.outage(Duration::from_secs(outage), ledger).await;
        bench.deployment.await_members().await.unwrap();
    })
    .await;
    let bench = bench.unwrap();
    let mut wrong = books.audit(&uri).await;
    let notes = &books.notes;
    println!(
        "{} writes acknowledged; unknown outcome: {} retryable, {} not; slowest answer {:.1?}, with maxTimeMS {:.1?}; \
         at most {} connections per server",
        notes.acknowledged.len(),
        books.unknown().0,
        books.unknown().1,
        notes.slowest,
        notes.slowest_limited,
        bench.most(),
    );
    let deadline = Duration::from_millis(SERVER_SELECTION_TIMEOUT.default + WAIT_QUEUE_TIMEOUT.default);
    for (took, deadline) in [(notes.slowest, deadline), (notes.slowest_limited, MAX_TIME + MAX_TIME_GRACE)] {
        if took > deadline + SLACK {
            wrong.push(format!("a command was answered after {took:?}, its deadline was {deadline:?}"));
        }
    }
    if bench.most() > usize::try_from(MAX_POOL_SIZE.default).unwrap() {
        wrong.push(format!("{} connections to one server", bench.most()));
    }
    wrong
}

struct Bench {
    deployment: Deployment,
    elections: Elections,
    counts: Census,
    proxy: Program,
    /// Connections that a server counted at most, before `counts`.
    most: usize,
}

/// What became of the clients in one fail-over.
struct Round {
    read: Duration,
    written: Duration,
    direct: Duration,
    errors: usize,
    sockets_lost: usize,
}

impl Round {
    fn print(&self, what: &str) {
        let Self { read, written, direct, errors, sockets_lost } = self;
        let [read, written, direct] = [read, written, direct].map(Duration::as_millis);
        println!("| {what} | {read} ms | {written} ms | {direct} ms | {errors} | {sockets_lost} |");
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn summarise(what: &str, rounds: &[Round]) {
    let of = |time: fn(&Round) -> Duration| median(rounds.iter().map(time).collect());
    let median = Round {
        read: of(|round| round.read),
        written: of(|round| round.written),
        direct: of(|round| round.direct),
        errors: rounds.iter().map(|round| round.errors).sum(),
        sockets_lost: rounds.iter().map(|round| round.sockets_lost).sum(),
    };
    median.print(&format!("{what}: median, sum"));
    goal("no error of retryable work", median.errors == 0);
    goal("no socket lost", median.sockets_lost == 0);
    let first = |round: &Round| round.read.min(round.written);
    goal("first success within 250 ms of the election, median", of(first) <= FIRST_SUCCESS);
    // Its majority is the new primary's own business.
    let beyond = |round: &Round| round.read.min(round.written).saturating_sub(round.direct);
    goal(
        "first success within 250 ms of the first one without a proxy, each",
        rounds.iter().map(beyond).max() <= Some(FIRST_SUCCESS),
    );
}

fn goal(what: &str, met: bool) {
    println!("goal: {what}: {}", if met { "met" } else { "MISSED" });
}

impl Bench {
    async fn round(&mut self, what: &str, ledger: &Ledger, trouble: impl AsyncFnOnce(&mut Self)) -> Round {
        let (errors, lost) = losses(ledger);
        let before = self.elections.current().await;
        trouble(self).await;
        let elected = self.elections.next(&before).await;
        let ((read, written), direct) = join(ledger.first_after(elected.at), elected.first_direct_write()).await;
        self.deployment.await_members().await.unwrap();
        sleep(PAUSE_BETWEEN).await;
        let (errors_then, lost_then) = losses(ledger);
        let round = Round { read, written, direct, errors: errors_then - errors, sockets_lost: lost_then - lost };
        round.print(what);
        for error in ledger.notes().errors[errors..].iter().take(2) {
            println!("for example: {error}");
        }
        round
    }

    async fn step_down(&mut self) {
        let primary = self.deployment.await_primary().await.unwrap();
        let mut admin = support::client(&self.deployment.members()[primary]).await;
        let step_down = doc! { "replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 5, "force": true };
        admin.command("admin", step_down).await.unwrap();
    }

    async fn kill(&mut self, member: usize) {
        self.deployment.member(member).kill().await.unwrap();
    }

    async fn outage(&mut self, length: Duration, ledger: &Ledger) {
        let before = self.elections.current().await;
        let (errors, lost) = losses(ledger);
        let start = Instant::now();
        let normal = self.watch(NORMAL).await;
        let rate = rate(ledger, start, NORMAL);
        // Its sockets would be counted as attempts.
        self.most = self.most();
        self.counts = Census::start([]);
        try_join_all(self.deployment.members_mut().map(Mongod::kill)).await.unwrap();
        let away = self.watch(length).await;
        try_join_all(self.deployment.members_mut().map(Mongod::restart)).await.unwrap();
        self.counts = Census::start(self.deployment.members().iter().map(Mongod::address));
        let elected = self.elections.next(&before).await;
        let after = ledger.first_after(elected.at);
        let ((read, written), direct) = join(after, elected.direct_writes(SECONDS_AFTER)).await;
        sleep_until(elected.at + NORMAL).await;
        let recovered = recovery(ledger, &elected, rate);
        let (errors_then, lost_then) = losses(ledger);
        println!("outage of {length:?}, from the end of the last member to the start of the first:");
        println!("| what | {NORMAL:?} before | outage |");
        println!("| --- | --- | --- |");
        println!("| CPU seconds per second | {:.4} | {:.4} |", normal.cpu, away.cpu);
        println!(
            "| attempts to connect per second, monitoring included | {:.1} | {:.1} |",
            normal.attempts, away.attempts
        );
        println!("| peak of resident memory | {} KiB | {} KiB |", normal.peak_kib, away.peak_kib);
        println!("| errors of retryable work | | {} |", errors_then - errors);
        println!("| sockets lost | | {} |", lost_then - lost);
        let [read, written] = [read, written].map(|time| time.as_millis());
        println!("after the first primary: first read {read} ms, first write {written} ms");
        println!("| second | commands that succeeded ({rate:.0} before) | writes of one client without a proxy |");
        println!("| --- | --- | --- |");
        for second in 0..SECONDS_AFTER {
            let through = rate_from(ledger, &elected, Duration::from_secs(second));
            println!("| {second} | {through:.0} | {} |", direct.iter().filter(|at| at.as_secs() == second).count());
        }
        println!("90 % of the rate before: after {recovered:.1?}");
        goal("proxy CPU in the outage below normal load", away.cpu < normal.cpu);
        goal("throughput back within 2 s", recovered.is_some_and(|recovered| recovered <= RECOVERY));
        goal("no socket lost", lost_then == lost);
    }

    /// What the program needs for so long.
    async fn watch(&self, time: Duration) -> Needs {
        let (cpu, opens) = (cpu_seconds(self.proxy.pid()), self.foreign_opens());
        sleep(time).await;
        Needs {
            cpu: (cpu_seconds(self.proxy.pid()) - cpu) / time.as_secs_f64(),
            attempts: per_second(self.foreign_opens() - opens, time),
            peak_kib: peak_kib(self.proxy.pid()),
        }
    }

    /// Connections that others than we have begun to open in this network namespace: the fifth number of the second line
    /// of `Tcp:`, and our own questions who is primary.
    fn foreign_opens(&self) -> u64 {
        let table = fs::read_to_string("/proc/net/snmp").unwrap();
        let numbers = table.lines().filter_map(|line| line.strip_prefix("Tcp: ")).nth(1).unwrap();
        numbers.split(' ').nth(4).unwrap().parse::<u64>().unwrap() - self.elections.dials()
    }

    fn most(&self) -> usize {
        self.counts.counts().iter().map(|server| server.most_data).max().unwrap_or_default().max(self.most)
    }
}

fn losses(ledger: &Ledger) -> (usize, usize) {
    let notes = ledger.notes();
    (notes.errors.len(), notes.sockets_lost)
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Commands of writers that succeeded, per second.
fn rate(ledger: &Ledger, from: Instant, time: Duration) -> f64 {
    let count = ledger.notes().succeeded.iter().filter(|at| (from..from + time).contains(*at)).count();
    per_second(count as u64, time)
}

fn rate_from(ledger: &Ledger, elected: &Elected, after: Duration) -> f64 {
    rate(ledger, elected.at + after, Duration::from_secs(1))
}

/// When the first second begins in which almost as much succeeded as before.
fn recovery(ledger: &Ledger, elected: &Elected, rate_before: f64) -> Option<Duration> {
    let mut starts = (0..80).map(|tenth| Duration::from_millis(100) * tenth);
    starts.find(|start| rate_from(ledger, elected, *start) >= 0.9 * rate_before)
}

/// What the program needed, per second where that makes sense.
struct Needs {
    cpu: f64,
    attempts: f64,
    /// Of the whole run so far.
    peak_kib: u64,
}
