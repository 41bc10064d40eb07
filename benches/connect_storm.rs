//! What 5,000 clients that connect within a second cost those who are at work: how long each of them takes to have its hello
//! and one answer, and how late the finds of 50 others come meanwhile; directly, and through the program with ten connections,
//! in turn.
//!
//! `cargo bench --bench connect_storm`. Needs a `mongod` as the tests do, and about 10,500 descriptors per process.
//! `MONGOMUX_STORM`, `MONGOMUX_FINDERS` and `MONGOMUX_ROUNDS` change the load. Load, server and program share the machine.
//!
//! Ends with 1 when somebody got no answer, or a wrong one, or when the server saw more connections than the bound.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints its result")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use bson::{Document, doc};
use hdrhistogram::Histogram;
use mongomux::config::Address;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::WireClient;
use mongomux::tasks::Tasks;
use support::counts::Bound;
use support::program::Program;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, sleep_until};

const DATABASE: &str = "bench";
const DOCUMENTS: i32 = 1_000;

/// The storm comes evenly within this.
const LENGTH: Duration = Duration::from_secs(1);

/// Between two finds of one finder, on average.
const PAUSE: Duration = Duration::from_millis(50);

/// Before the storm, to compare with; the first half is a warm-up.
const QUIET: Duration = Duration::from_secs(4);

/// After a round, for what its sockets leave to do.
const REST: Duration = Duration::from_secs(2);

/// `max_pool_size` by default.
const CONNECTIONS: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Quiet,
    Storm,
    End,
}

/// What one round has shown; times in microseconds.
struct Round {
    quiet: Histogram<u64>,
    finds: Histogram<u64>,
    newcomers: Histogram<u64>,
    all_served: Duration,
    wrong: usize,
}

fn main() -> ExitCode {
    support::bench::run(measure())
}

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn measure() -> Vec<String> {
    let (storm, finders) = (setting("MONGOMUX_STORM", 5_000), setting("MONGOMUX_FINDERS", 50));
    let deployment = Deployment::replica_set(1).await.unwrap();
    let server = &deployment.members()[0];
    let mut setup = support::client(server).await;
    let documents: Vec<Document> = (0..DOCUMENTS).map(|id| doc! { "_id": id, "text": "x".repeat(80) }).collect();
    setup.command(DATABASE, doc! { "insert": "things", "documents": documents }).await.unwrap();
    let proxy = Program::run(&["--log", "info", &deployment.uri()]);
    let listening = proxy.address().await;
    let bound = Bound::watch(server).await;
    println!("{storm} clients connect, greet and find within {LENGTH:?}; {finders} finders find every {PAUSE:?}");
    println!("| | newcomer p50 / p99 / last, ms | all served after, s | find p50 / p99 before, ms | during, ms |");
    println!("| --- | --- | --- | --- | --- |");
    let mut wrong = Vec::new();
    for _ in 0..setting("MONGOMUX_ROUNDS", 3) {
        for (name, address) in [("direct", server.address()), ("proxy", listening.clone())] {
            let round = run(&address, storm, finders).await;
            let millis = |of: &Histogram<u64>, quantile| of.value_at_quantile(quantile) as f64 / 1e3;
            println!(
                "| {name} | {:.1} / {:.0} / {:.0} | {:.2} | {:.1} / {:.1} | {:.1} / {:.0} |",
                millis(&round.newcomers, 0.5),
                millis(&round.newcomers, 0.99),
                millis(&round.newcomers, 1.0),
                round.all_served.as_secs_f64(),
                millis(&round.quiet, 0.5),
                millis(&round.quiet, 0.99),
                millis(&round.finds, 0.5),
                millis(&round.finds, 0.99),
            );
            if round.wrong > 0 {
                wrong.push(format!("{name}: {} clients got no answer, or a wrong one", round.wrong));
            }
            sleep(REST).await;
        }
    }
    if bound.most() > CONNECTIONS {
        wrong.push(format!("{} connections of the proxy", bound.most()));
    }
    wrong
}

async fn run(address: &Address, storm: u32, finders: u32) -> Round {
    let new = || Arc::new(Mutex::new(Histogram::<u64>::new(3).unwrap()));
    let (quiet, finds, newcomers) = (new(), new(), new());
    let wrong = Arc::new(Mutex::new(0));
    let (phase, phases) = watch::channel(Phase::WarmUp);
    let tasks = Tasks::new();
    for _ in 0..finders {
        let mut client = support::connect(address).await;
        let (phases, quiet, finds, wrong) = (phases.clone(), quiet.clone(), finds.clone(), wrong.clone());
        tasks.spawn("finder", async move {
            while *phases.borrow() != Phase::End {
                sleep(PAUSE.mul_f64(-f64::ln(1.0 - rand::random::<f64>()))).await;
                let asked = Instant::now();
                let during = *phases.borrow();
                if !find(&mut client).await {
                    *wrong.lock().unwrap() += 1;
                    return;
                }
                match during {
                    Phase::Quiet => record(&quiet, asked),
                    Phase::Storm => record(&finds, asked),
                    Phase::WarmUp | Phase::End => {}
                }
            }
        });
    }
    sleep(QUIET / 2).await;
    phase.send_replace(Phase::Quiet);
    sleep(QUIET / 2).await;
    phase.send_replace(Phase::Storm);
    let began = Instant::now();
    let connected = Arc::new(Mutex::new(Vec::new()));
    let newcomer_tasks = Tasks::new();
    for number in 0..storm {
        let (address, newcomers, connected, wrong) =
            (address.clone(), newcomers.clone(), connected.clone(), wrong.clone());
        newcomer_tasks.spawn("newcomer", async move {
            let due = began + LENGTH / storm * number;
            sleep_until(due).await;
            if let Ok(mut client) = WireClient::connect_as(&address, "mongomux bench").await
                && find(&mut client).await
            {
                record(&newcomers, due);
                connected.lock().unwrap().push(client);
            } else {
                *wrong.lock().unwrap() += 1;
            }
        });
    }
    let late = newcomer_tasks.join_all(Duration::from_secs(60)).await;
    let all_served = began.elapsed();
    phase.send_replace(Phase::End);
    tasks.join_all(Duration::from_secs(20)).await;
    let wrong = *wrong.lock().unwrap() + late;
    let take = |histogram: Arc<Mutex<Histogram<u64>>>| histogram.lock().unwrap().clone();
    Round { quiet: take(quiet), finds: take(finds), newcomers: take(newcomers), all_served, wrong }
}

/// Finds one document; true if it is the one that was asked for.
async fn find(client: &mut WireClient) -> bool {
    let id = rand::random_range(0..DOCUMENTS);
    let find = doc! { "find": "things", "filter": { "_id": id }, "limit": 1 };
    let found = client.command(DATABASE, find).await;
    found.is_ok_and(
        |reply| matches!(&support::first_batch(&reply)[..], [it] if it.get_i32("_id").is_ok_and(|it| it == id)),
    )
}

fn record(histogram: &Mutex<Histogram<u64>>, since: Instant) {
    histogram.lock().unwrap().record(u64::try_from(since.elapsed().as_micros()).unwrap()).unwrap();
}
