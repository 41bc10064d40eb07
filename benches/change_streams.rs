//! What many change streams cost those who only read, and how late their events come: 500 streams on one collection, an event
//! for all of them every half second, and 1,500 clients that find one document each from time to time; directly, and through
//! the program with ten connections, in turn.
//!
//! `cargo bench --bench change_streams`. Needs a `mongod` as the tests do. `MONGOMUX_STREAMS`, `MONGOMUX_FINDERS`,
//! `MONGOMUX_SECONDS` (of each round), `MONGOMUX_ROUNDS`, `MONGOMUX_EVENT_MS` and `MONGOMUX_NOISE` (writes a second to another
//! collection, past the program) change the load. Load, server and program share the machine.
//!
//! Ends with 1 when a stream missed an event or got one twice, or when the server saw more connections than the bound.
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
use support::bench::cpu_seconds;
use support::program::Program;
use tokio::sync::{Barrier, watch};
use tokio::time::{Duration, Instant, sleep, timeout};

const DATABASE: &str = "bench";
const DOCUMENTS: i32 = 1_000;

/// Each finder has a pause of this length on average.
const PAUSE: Duration = Duration::from_millis(1_500);

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_secs(3);

/// The last event reaches everybody within this.
const LAST_EVENT: Duration = Duration::from_secs(20);

/// `max_pool_size` by default.
const CONNECTIONS: usize = 10;

struct Load {
    streams: usize,
    finders: usize,
    length: Duration,
    rounds: usize,
    event_pause: Duration,
    noise: u64,
}

/// What one round has shown; times in microseconds.
struct Round {
    finds: Histogram<u64>,
    events: Histogram<u64>,
    wrong: Vec<String>,
    server_seconds: f64,
    proxy_seconds: f64,
    get_mores: i64,
}

fn main() -> ExitCode {
    support::bench::run(measure())
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

async fn measure() -> Vec<String> {
    let size = |name, default| usize::try_from(setting(name, default)).unwrap();
    let load = Load {
        streams: size("MONGOMUX_STREAMS", 500),
        finders: size("MONGOMUX_FINDERS", 1_500),
        length: Duration::from_secs(setting("MONGOMUX_SECONDS", 12)),
        rounds: size("MONGOMUX_ROUNDS", 2),
        event_pause: Duration::from_millis(setting("MONGOMUX_EVENT_MS", 500)),
        noise: setting("MONGOMUX_NOISE", 0),
    };
    let deployment = Deployment::replica_set(1).await.unwrap();
    let server = &deployment.members()[0];
    let mut setup = support::client(server).await;
    let documents: Vec<_> = (0..DOCUMENTS).map(|id| doc! { "_id": id, "text": "x".repeat(80) }).collect();
    setup.command(DATABASE, doc! { "insert": "things", "documents": documents }).await.unwrap();
    let proxy = Program::run(&["--log", "info", &deployment.uri()]);
    let listening = proxy.address().await;
    println!(
        "{} streams, an event for all every {:?}; {} finders, {:.0} finds/s; {} other writes/s; rounds of {:?}",
        load.streams,
        load.event_pause,
        load.finders,
        f64::from(u32::try_from(load.finders).unwrap()) / PAUSE.as_secs_f64(),
        load.noise,
        load.length,
    );
    println!("| | find p50 / p99, ms | event median / p99, ms | getMore/s | mongod CPU | proxy CPU |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut wrong = Vec::new();
    let (mut finds, mut events) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..load.rounds {
        for (way, address) in [server.address(), listening.clone()].iter().enumerate() {
            let pids = (server.pid().unwrap(), proxy.pid());
            let round = run(&load, address, &server.address(), pids).await;
            let name = ["direct", "proxy"][way];
            let millis = |of: &Histogram<u64>, quantile| {
                Duration::from_micros(of.value_at_quantile(quantile)).as_secs_f64() * 1e3
            };
            let per_second = |amount: f64| amount / load.length.as_secs_f64();
            println!(
                "| {name} | {:.1} / {:.1} | {:.0} / {:.0} | {:.0} | {:.0} % | {:.0} % |",
                millis(&round.finds, 0.5),
                millis(&round.finds, 0.99),
                millis(&round.events, 0.5),
                millis(&round.events, 0.99),
                per_second(round.get_mores as f64),
                per_second(round.server_seconds) * 100.0,
                per_second(round.proxy_seconds) * 100.0,
            );
            finds[way].push(millis(&round.finds, 0.99));
            events[way].push(millis(&round.events, 0.5));
            wrong.extend(round.wrong.into_iter().map(|what| format!("{name}: {what}")));
        }
    }
    for (what, values) in [("find p99", finds), ("event median", events)] {
        let [direct, proxy] = values.map(|values| values.iter().sum::<f64>() / values.len() as f64);
        println!("{what}: proxy / direct = {:.2}", proxy / direct);
    }
    let seen = support::connections(server, "mongomux").await;
    if seen > CONNECTIONS {
        wrong.push(format!("{seen} connections of the proxy"));
    }
    wrong
}

async fn run(load: &Load, address: &Address, server: &Address, (server_pid, proxy_pid): (u32, u32)) -> Round {
    let new = || Arc::new(Mutex::new(Histogram::<u64>::new(3).unwrap()));
    let (finds, events) = (new(), new());
    let mut setup = support::connect(server).await;
    setup.command(DATABASE, doc! { "drop": "events" }).await.ok();
    setup.command(DATABASE, doc! { "create": "events" }).await.unwrap();
    let tasks = Tasks::new();
    let ready = Arc::new(Barrier::new(load.streams + load.finders + 1));
    let (phase, phases) = watch::channel(Phase::WarmUp);
    let began = Instant::now();
    let seen = Arc::new(Mutex::new(vec![Vec::new(); load.streams]));
    for number in 0..load.streams {
        let (address, ready, events, seen, phases) =
            (address.clone(), ready.clone(), events.clone(), seen.clone(), phases.clone());
        tasks.spawn("stream", async move {
            let mut client = support::connect(&address).await;
            let pipeline = [doc! { "$changeStream": {} }];
            let watch = doc! { "aggregate": "events", "pipeline": pipeline.to_vec(), "cursor": {} };
            let reply = client.command(DATABASE, watch).await.unwrap();
            let id = reply.get_document("cursor").unwrap().get_i64("id").unwrap();
            ready.wait().await;
            loop {
                let reply = client.command(DATABASE, doc! { "getMore": id, "collection": "events" }).await;
                let Ok(reply) = reply else { return };
                for event in support::next_batch(&reply) {
                    // The end of the collection is an event, too.
                    let Ok(document) = event.get_document("fullDocument") else { return };
                    let written = u64::try_from(document.get_i64("at").unwrap()).unwrap();
                    let now = u64::try_from(began.elapsed().as_micros()).unwrap();
                    if *phases.borrow() == Phase::Measure {
                        events.lock().unwrap().record(now - written).unwrap();
                    }
                    seen.lock().unwrap()[number].push(document.get_i32("_id").unwrap());
                }
            }
        });
    }
    for _ in 0..load.finders {
        let (address, ready, finds, phases) = (address.clone(), ready.clone(), finds.clone(), phases.clone());
        tasks.spawn("finder", async move {
            let mut client = support::connect(&address).await;
            ready.wait().await;
            while *phases.borrow() != Phase::End {
                sleep(PAUSE.mul_f64(-f64::ln(1.0 - rand::random::<f64>()))).await;
                let asked = Instant::now();
                let filter = doc! { "_id": rand::random_range(0..DOCUMENTS) };
                let found = client.command(DATABASE, doc! { "find": "things", "filter": filter, "limit": 1 }).await;
                assert_eq!(support::first_batch(&found.unwrap()).len(), 1);
                if *phases.borrow() == Phase::Measure {
                    let took = u64::try_from(asked.elapsed().as_micros()).unwrap();
                    finds.lock().unwrap().record(took).unwrap();
                }
            }
        });
    }
    ready.wait().await;
    if load.noise > 0 {
        let (server, noise, phases) = (server.clone(), load.noise, phases.clone());
        tasks.spawn("noise", async move {
            let mut client = support::connect(&server).await;
            while *phases.borrow() != Phase::End {
                client.command(DATABASE, doc! { "insert": "noise", "documents": [{}] }).await.unwrap();
                sleep(Duration::from_micros(1_000_000 / noise)).await;
            }
        });
    }
    let mut writer = support::connect(address).await;
    let mut inserted = 0;
    let mut write = async |writer: &mut WireClient| {
        let at = i64::try_from(began.elapsed().as_micros()).unwrap();
        let document = doc! { "_id": inserted, "at": at };
        writer.command(DATABASE, doc! { "insert": "events", "documents": [document] }).await.unwrap();
        inserted += 1;
        sleep(load.event_pause.mul_f64(0.5 + rand::random::<f64>())).await;
    };
    let warm_up = Instant::now();
    while warm_up.elapsed() < WARM_UP {
        write(&mut writer).await;
    }
    phase.send_replace(Phase::Measure);
    let (server_before, proxy_before, get_mores_before) =
        (cpu_seconds(server_pid), cpu_seconds(proxy_pid), get_mores(&mut setup).await);
    let start = Instant::now();
    while start.elapsed() < load.length {
        write(&mut writer).await;
    }
    let (server_seconds, proxy_seconds) =
        (cpu_seconds(server_pid) - server_before, cpu_seconds(proxy_pid) - proxy_before);
    let get_mores = get_mores(&mut setup).await - get_mores_before;
    phase.send_replace(Phase::End);
    let wanted: Vec<i32> = (0..inserted).collect();
    let all = async {
        while seen.lock().unwrap().iter().any(|seen| seen.len() < wanted.len()) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let mut wrong = Vec::new();
    if timeout(LAST_EVENT, all).await.is_err() {
        wrong.push("events are missing".to_owned());
    }
    let odd = seen.lock().unwrap().iter().filter(|seen| **seen != wanted).count();
    if odd > 0 {
        wrong.push(format!("{odd} streams did not see every event once and in order"));
    }
    // Ends the streams: their cursors with the collection.
    setup.command(DATABASE, doc! { "drop": "events" }).await.unwrap();
    tasks.join_all(Duration::from_secs(20)).await;
    let take = |histogram: Arc<Mutex<Histogram<u64>>>| histogram.lock().unwrap().clone();
    Round { finds: take(finds), events: take(events), wrong, server_seconds, proxy_seconds, get_mores }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measure,
    End,
}

async fn get_mores(client: &mut WireClient) -> i64 {
    let status: Document = client.command("admin", doc! { "serverStatus": 1 }).await.unwrap();
    let counters = status.get_document("opcounters").unwrap();
    counters.get_i64("getmore").or_else(|_| counters.get_i32("getmore").map(i64::from)).unwrap()
}
