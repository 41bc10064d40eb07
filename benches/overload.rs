//! What becomes of demand beyond capacity: commands that arrive whatever happened to those before them, at 0.5 to 10 times of
//! what ten connections can do, and again at 0.5 times.
//!
//! `cargo bench --bench overload`. Needs a `mongod` as the tests do, and some 6,500 descriptors per process. It holds each command
//! for 10 ms (a fail point), so that connections are what is scarce, not the processors that load, program and server share.
//! Each discipline of the queue meets clients that report an overload and clients that back off and send again as current
//! drivers do. `MONGOMUX_SEED`, `MONGOMUX_SECONDS` (of each phase) and `MONGOMUX_DISCIPLINES` change the load.
//!
//! Ends with 1 when a goal is missed, see `judge`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints its result")]
#![allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::process::ExitCode;

use bson::doc;
use mongomux::sandbox::deployment::Deployment;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use support::bench::{cpu_seconds, peak_kib, quantile};
use support::open_loop::{Answer, Attempt, Crowd, Flow, RETRIES, Refusal};
use support::program::Program;
use support::{client, fail_command, raw};
use tokio::time::{Duration, Instant};

const DATABASE: &str = "bench";
const DOCUMENTS: i32 = 200;

/// As many commands may wait, and some more may be on their way.
const SOCKETS: usize = 6_000;

/// Of the program.
const CONNECTIONS: usize = 10;
const QUEUE_LIMIT: Duration = Duration::from_millis(500);
const QUEUE_SIZE: usize = 4_000;
/// Twice `codel.target_ms`.
const STANDING_LIMIT: Duration = Duration::from_millis(40);

/// What the server does with each command at the least.
const HELD_MS: i32 = 10;

/// Sockets of the closed loop that measures the capacity.
const SATURATING: usize = 4 * CONNECTIONS;
const CAPACITY_TIME: Duration = Duration::from_secs(2);

/// Times of the capacity.
const LOADS: [f64; 6] = [0.5, 0.9, 1.1, 2.0, FLOOD, AFTERWARDS];
const FLOOD: f64 = 10.0;
const AFTERWARDS: f64 = 0.5;

/// In which arrivals after the flood are looked at together.
const WINDOW: Duration = Duration::from_millis(100);

// The goals.
const GOODPUT: f64 = 0.95;
const AT_ONCE: Duration = Duration::from_millis(10);
const IN_TIME: Duration = Duration::from_millis(10);
const NORMAL_AGAIN: Duration = Duration::from_secs(1);
/// Whoever is refused waits three times, and twice for a pause of up to two and four times the longest hint, which is the limit of
/// waits: 4.5 s for what was in the flood, and as long again for the newcomers that its retries have displaced.
const RETRIES_END: Duration = QUEUE_LIMIT.saturating_mul(2 * (3 + 2 + 4));
const REFUSING_COST: f64 = 0.2;
/// Of memory for each command that waits: its message, its place and its share of the sockets' buffers.
const WAITING_KIB: u64 = 8;

/// Clocks of program and load tell milliseconds, and each is late by one.
const TICKS: Duration = Duration::from_millis(2);

/// A load that is later than this does not measure the program.
const LATE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    support::bench::run(measure())
}

async fn measure() -> Vec<String> {
    let seed = std::env::var("MONGOMUX_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let seconds = std::env::var("MONGOMUX_SECONDS").map_or(5, |seconds| seconds.parse().unwrap());
    let disciplines = std::env::var("MONGOMUX_DISCIPLINES").unwrap_or_else(|_| "fifo,codel".to_owned());
    println!("MONGOMUX_SEED={seed}");
    let deployment = Deployment::replica_set(1).await.unwrap();
    let server = &deployment.members()[0];
    let documents: Vec<_> = (0..DOCUMENTS).map(|id| doc! { "_id": id, "text": "x".repeat(80) }).collect();
    client(server).await.command(DATABASE, doc! { "insert": "things", "documents": documents }).await.unwrap();
    let held = doc! {
        "failCommands": ["find"], "blockConnection": true, "blockTimeMS": HELD_MS, "appName": "mongomux",
    };
    fail_command(server, 0, held).await;
    let mut wrong = Vec::new();
    for discipline in disciplines.split(',') {
        for (clients, retries) in [("clients that report an overload", 0), ("drivers that back off", RETRIES)] {
            let name = format!("{discipline}, {clients}");
            println!("\n{name}");
            let mut random = SmallRng::seed_from_u64(seed);
            let run = run(&deployment, discipline, retries, Duration::from_secs(seconds), &mut random).await;
            wrong.extend(run.judge(discipline, retries).into_iter().map(|what| format!("{name}: {what}")));
        }
    }
    wrong
}

/// The program from start to end under one kind of load.
struct Run {
    /// Of a command that finds a connection at once while all others are in use, nearly always less.
    service: Duration,
    phases: Vec<Phase>,
    /// From the end of the flood to the first time in which latency was as before.
    normal_again: Option<Duration>,
    /// How long after the end of the flood anybody was still sending again.
    echo: Duration,
    /// Before the flood, and at last.
    peaks_kib: [u64; 2],
}

async fn run(deployment: &Deployment, discipline: &str, retries: u32, length: Duration, random: &mut SmallRng) -> Run {
    let settings = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "max_pool_size = {CONNECTIONS}\nmin_pool_size = {CONNECTIONS}\nwait_queue_timeout_ms = {}\n\
         wait_queue_size = {QUEUE_SIZE}\nqueue_discipline = \"{discipline}\"\n",
        QUEUE_LIMIT.as_millis(),
    );
    fs::write(settings.path(), text).unwrap();
    let path = settings.path().to_str().unwrap();
    let proxy = Program::run(&["--log", "info", "--config", path, &deployment.uri()]);
    let address = proxy.address().await;
    let messages = (0..DOCUMENTS)
        .map(|id| raw::command(doc! { "find": "things", "filter": { "_id": id }, "limit": 1, "$db": DATABASE }))
        .collect();
    let crowd = Crowd::open(&address, "overload", SOCKETS, messages, retries).await;
    // Each has a connection at once, and all are in use.
    let service = quantile(crowd.saturate(CONNECTIONS, CAPACITY_TIME).await, 0.99);
    let saturated = crowd.saturate(SATURATING, CAPACITY_TIME).await;
    let capacity = saturated.len() as f64 / CAPACITY_TIME.as_secs_f64();
    println!(
        "capacity: {capacity:.0} commands a second with {SATURATING} sockets that wait for their replies; p99 of {CONNECTIONS} such \
         sockets: {service:.1?}"
    );
    println!(
        "| load | arrivals/s | sent/s | served/s | served p50 / p99 | refused at once | refused as the queue stands | \
         refused at the limit | load late, p99 | program CPU | mongod CPU | peak of memory |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let pids = (proxy.pid(), deployment.members()[0].pid().unwrap());
    let (mut phases, mut before, mut unsettled) = (Vec::new(), 0, None);
    for load in LOADS {
        if load == FLOOD {
            before = peak_kib(pids.0);
        }
        let cpu = [cpu_seconds(pids.0), cpu_seconds(pids.1)];
        // Who backs off comes back long after the flood.
        let length = if unsettled.is_some() && retries > 0 { length * 3 } else { length };
        let flow = crowd.send(load * capacity, length, random).await;
        let cpu = [cpu_seconds(pids.0) - cpu[0], cpu_seconds(pids.1) - cpu[1]];
        // What the flood has left behind is what the phase after it is there for.
        if load == FLOOD {
            unsettled = Some((flow, cpu));
            continue;
        }
        if let Some((flow, cpu)) = unsettled.take() {
            phases.push(Phase::of(FLOOD, flow, cpu, pids.0).await);
        }
        phases.push(Phase::of(load, flow, cpu, pids.0).await);
    }
    for phase in &phases {
        phase.print();
    }
    let [normal, .., flood, after] = &phases[..] else { unreachable!("there are more loads") };
    // Newcomers that the retries have displaced send again as well.
    let again = flood.sent.iter().chain(&after.sent).filter(|attempt| attempt.retry > 0);
    let echo = again.map(|attempt| attempt.due.saturating_duration_since(flood.ended)).max();
    let run = Run {
        service,
        normal_again: normal_again(after, quantile(normal.served(), 0.99)),
        echo: echo.unwrap_or_default(),
        peaks_kib: [before, peak_kib(pids.0)],
        phases,
    };
    run.print();
    run
}

/// A time of one load.
struct Phase {
    load: f64,
    began: Instant,
    ended: Instant,
    sent: Vec<Attempt>,
    unsent: usize,
    /// Of program and server until the last arrival.
    cpu_seconds: [f64; 2],
    peak_kib: u64,
}

impl Phase {
    async fn of(load: f64, flow: Flow, cpu_seconds: [f64; 2], proxy: u32) -> Self {
        let (began, ended) = (flow.began, flow.ended);
        let (sent, unsent) = flow.settled().await;
        Self { load, began, ended, sent, unsent, cpu_seconds, peak_kib: peak_kib(proxy) }
    }

    fn took(&self, matches: impl Fn(Answer) -> bool) -> Vec<Duration> {
        self.sent.iter().filter(|attempt| matches(attempt.answer)).map(|attempt| attempt.took).collect()
    }

    fn served(&self) -> Vec<Duration> {
        self.took(|answer| answer == Answer::Served)
    }

    fn refused(&self, when: Refusal) -> Vec<Duration> {
        self.took(|answer| matches!(answer, Answer::Refused { refusal, .. } if refusal == when))
    }

    /// Answers per second that came before the last arrival.
    fn rate(&self, matches: impl Fn(Answer) -> bool) -> f64 {
        let count = self.sent.iter().filter(|sent| matches(sent.answer) && sent.answered() <= self.ended).count();
        count as f64 / self.seconds()
    }

    fn goodput(&self) -> f64 {
        self.rate(|answer| answer == Answer::Served)
    }

    /// What the load itself has added to what it measures, nearly always less.
    fn late(&self) -> Duration {
        quantile(self.sent.iter().map(|sent| sent.late).collect(), 0.99)
    }

    fn seconds(&self) -> f64 {
        (self.ended - self.began).as_secs_f64()
    }

    fn print(&self) {
        let per_second = |count: usize| count as f64 / self.seconds();
        let pair = |of: Vec<Duration>| {
            let millis = |at| quantile(of.clone(), at).as_secs_f64() * 1e3;
            if of.is_empty() { String::new() } else { format!("{:.1} / {:.1} ms", millis(0.5), millis(0.99)) }
        };
        let refused = |when| {
            let refused = self.refused(when);
            match refused.len() {
                0 => String::new(),
                count => format!("{:.1} %, {}", share(count, self.sent.len()), pair(refused)),
            }
        };
        println!(
            "| {} x | {:.0} | {:.0} | {:.0} | {} | {} | {} | {} | {:.1} ms | {:.0} % | {:.0} % | {:.1} MB |",
            self.load,
            per_second(self.arrivals()),
            per_second(self.sent.len()),
            self.goodput(),
            pair(self.served()),
            refused(Refusal::AtOnce),
            refused(Refusal::Standing),
            refused(Refusal::AtTheLimit),
            self.late().as_secs_f64() * 1e3,
            self.cpu_seconds[0] / self.seconds() * 100.0,
            self.cpu_seconds[1] / self.seconds() * 100.0,
            self.peak_kib as f64 / 1e3,
        );
    }
}

impl Phase {
    fn arrivals(&self) -> usize {
        self.sent.iter().filter(|attempt| attempt.retry == 0).count() + self.unsent
    }
}

impl Run {
    fn flood(&self) -> &Phase {
        self.phases.iter().find(|phase| phase.load == FLOOD).expect("one of the loads")
    }

    fn peak_goodput(&self) -> f64 {
        self.phases.iter().map(Phase::goodput).fold(0.0, f64::max)
    }

    /// What the program and the server need to serve a command, seconds: from the phases before the first refusal.
    fn serving_cost(&self) -> [f64; 2] {
        let calm = &self.phases[..2];
        let served: f64 = calm.iter().map(|phase| phase.goodput() * phase.seconds()).sum();
        [0, 1].map(|process| calm.iter().map(|phase| phase.cpu_seconds[process]).sum::<f64>() / served)
    }

    /// What the program needs to refuse a command, seconds: what it needed in the flood beside serving.
    fn refusing_cost(&self) -> f64 {
        let flood = self.flood();
        let refused = flood.rate(|answer| matches!(answer, Answer::Refused { .. })) * flood.seconds();
        let serving = flood.goodput() * flood.seconds() * self.serving_cost()[0];
        (flood.cpu_seconds[0] - serving).max(0.0) / refused
    }

    fn print(&self) {
        let [program, server] = self.serving_cost();
        let refusing = self.refusing_cost();
        println!(
            "serving a command takes {:.0} us of the program and {:.0} us of mongod, refusing one {:.0} us: {:.0} % of the \
             program's share, {:.0} % of both",
            program * 1e6,
            server * 1e6,
            refusing * 1e6,
            refusing / program * 100.0,
            refusing / (program + server) * 100.0,
        );
        println!(
            "goodput in the flood: {:.1} % of the peak; latency as before {} after its end; commands were sent again for \
             {:.1?}; memory: {:.1} MB before the flood, {:.1} MB at most",
            self.flood().goodput() / self.peak_goodput() * 100.0,
            self.normal_again.map_or("never".to_owned(), |after| format!("{after:.1?}")),
            self.echo,
            self.peaks_kib[0] as f64 / 1e3,
            self.peaks_kib[1] as f64 / 1e3,
        );
    }

    /// The goals that are missed.
    fn judge(&self, discipline: &str, retries: u32) -> Vec<String> {
        let flood = self.flood();
        let mut missed = Vec::new();
        let mut goal = |what: &str, value: String, reached: bool| {
            if !reached {
                missed.push(format!("{what}: {value}"));
            }
        };
        let goodput = flood.goodput() / self.peak_goodput();
        goal("goodput in the flood at 95 % of the peak", format!("{goodput:.3}"), goodput >= GOODPUT);
        let served = quantile(flood.served(), 0.99);
        let most = QUEUE_LIMIT + self.service + flood.late() + TICKS;
        goal("p99 of the served within limit and service time", format!("{served:.1?} of {most:.1?}"), served <= most);
        let must = if discipline == "codel" { Refusal::Standing } else { Refusal::AtOnce };
        let refused = flood.refused(must).len();
        goal("the flood is refused early", format!("{must:?}: {refused}"), refused > 0);
        for (when, limit) in [
            (Refusal::AtOnce, AT_ONCE),
            (Refusal::Standing, STANDING_LIMIT + IN_TIME),
            (Refusal::AtTheLimit, QUEUE_LIMIT + IN_TIME),
        ] {
            let median = quantile(flood.refused(when), 0.5);
            goal("median of refusals in time", format!("{when:?}: {median:.1?}"), median <= limit);
        }
        let grown = self.peaks_kib[1] - self.peaks_kib[0];
        goal("memory of who waits", format!("{grown} KiB"), grown <= QUEUE_SIZE as u64 * WAITING_KIB);
        // Who sends again goes on with the flood.
        let most = RETRIES_END * retries.min(1);
        goal("the retries end", format!("{:.1?} of {most:.1?}", self.echo), self.echo <= most);
        // What waited at the end is looked at in windows.
        let again = self.normal_again.is_some_and(|after| after <= self.echo + NORMAL_AGAIN + WINDOW);
        goal("latency as before a second after the retries", format!("{:?}", self.normal_again), again);
        let [program, server] = self.serving_cost();
        let cost = self.refusing_cost() / (program + server);
        goal("refusing below 20 % of serving", format!("{cost:.2}"), cost < REFUSING_COST);
        for phase in &self.phases {
            let load = phase.load;
            let wrong = phase.sent.iter().filter_map(|sent| match sent.answer {
                Answer::Wrong(code) => Some(code),
                _ => None,
            });
            let wrong: Vec<i32> = wrong.collect();
            goal("no other errors", format!("{load} x: {wrong:?}"), wrong.is_empty());
            goal("a socket for each arrival", format!("{load} x: {} have none", phase.unsent), phase.unsent == 0);
            let late = phase.late();
            goal("the load itself is in time", format!("{load} x: p99 {late:.1?} late"), late <= LATE);
        }
        missed
    }
}

/// From the first arrival after the flood to the first of them that were served as before: nine of ten within `normal`, as the
/// slowest of a hundred is no measure of 50.
fn normal_again(after: &Phase, normal: Duration) -> Option<Duration> {
    let windows = (0..).map(|window| WINDOW * window).take_while(|start| after.began + *start + WINDOW <= after.ended);
    windows.into_iter().find(|start| {
        let window = after.began + *start..after.began + *start + WINDOW;
        let within: Vec<_> = after.sent.iter().filter(|sent| sent.retry == 0 && window.contains(&sent.due)).collect();
        let well = within.iter().filter(|sent| sent.answer == Answer::Served && sent.took <= normal).count();
        well * 10 >= within.len() * 9
    })
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}
