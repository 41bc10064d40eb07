//! Random lives of pools: whatever happens in whichever order, the bounds hold and nothing is lost.
//!
//! `STORM_SEED` runs one seed instead of all.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::admission::{Level, Tenant};
use crate::auth::UserId;
use crate::breaker::{Failure, Outcome};
use crate::config::{BackoffConfig, QueueDiscipline};
use crate::telemetry::labels::Label as _;
use crate::upstream::scripted::{Dial, Gauge, Ping, Rig, Server, Setup, Work, ms, within_ten_seconds, work};

/// Storms in one run of the tests; with them it takes some seconds.
const STORMS: u64 = 60;
/// Clients of one pool.
const CLIENTS: u64 = 10;
/// Commands of one client.
const ROUNDS: i32 = 30;

fn seeds() -> Vec<u64> {
    match std::env::var("STORM_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..STORMS).collect(),
    }
}

fn millis(random: &mut SmallRng, most: u64) -> std::time::Duration {
    ms(random.random_range(0..=most))
}

/// A pool with random bounds, and a server that is slow, fails, hangs, and takes its time to notice an end.
fn start(random: &mut SmallRng, bound: &Arc<ClusterBound>, servers: &Arc<Gauge>) -> Rig {
    let max = random.random_range(1..=6);
    let mut setup = Setup::new(random.random_range(0..=max), max);
    setup.bound = bound.clone();
    setup.server = Server::new(servers.clone(), if random.random_bool(0.2) { 16 } else { 64 * 1024 });
    setup.pool.max_connecting = random.random_range(1..=3);
    setup.pool.max_idle_time = ms(random.random_range(200..3_000));
    setup.pool.max_lifetime = ms(random.random_range(1_000..9_000));
    setup.pool.connect_timeout = ms(random.random_range(100..2_000));
    setup.max_in_flight = random.random_bool(0.3).then(|| random.random_range(1..=max));
    if random.random_bool(0.5) {
        setup.discipline = QueueDiscipline::Codel { target: ms(20), interval: ms(200) };
    }
    setup.health_check = ms(random.random_range(100..2_000));
    setup.reconnect = BackoffConfig { initial: ms(1), max: ms(random.random_range(1..500)) };
    // With 0.2 s for a command before it, less than the second for which a closed connection counts.
    setup.server.notice_after(millis(random, 700));
    let (mut dials, trouble) = (SmallRng::seed_from_u64(random.random()), random.random_range(0.0..0.6));
    setup.server.dials(move |_| match dials.random_range(0..4) {
        _ if !dials.random_bool(trouble) => Dial::Accept(millis(&mut dials, 200)),
        0 => Dial::Accept(millis(&mut dials, 2_000)),
        1 => Dial::Refuse,
        2 => Dial::Break(millis(&mut dials, 500)),
        _ => Dial::Hang,
    });
    setup.start_paused()
}

/// Whatever a command may ask for.
fn claim(random: &mut SmallRng) -> Claim {
    let id = random.random_range(0..3);
    // No less than one: nobody is locked out by its own bound.
    let max_in_flight = if id == 2 { random.random_range(1..3) } else { u16::MAX };
    Claim {
        lane: Lane::ALL[random.random_range(0..Lane::ALL.len())],
        level: Level::ALL[random.random_range(0..Level::ALL.len())],
        locks: random.random_bool(0.4),
        tenant: Tenant { id, weight: id + 1, max_in_flight },
        user: UserId::SERVICE,
    }
}

/// One client: what it is promised is checked here.
async fn client(pool: Pool, mut random: SmallRng, number: i32) {
    for round in 0..ROUNDS {
        sleep(millis(&mut random, 150)).await;
        let deadline = Instant::now() + millis(&mut random, 2_000);
        let check_out = pool.check_out(claim(&mut random), deadline);
        let patience = if random.random_bool(0.2) { millis(&mut random, 300) } else { ms(60_000) };
        let Ok(outcome) = timeout(patience, check_out).await else { continue };
        assert!(Instant::now() <= deadline + ms(2), "answered {:?} late", Instant::now() - deadline);
        let Ok(mut connection) = outcome else { continue };
        let id = number * 1_000 + round;
        // From now on, until the last reply or until something breaks.
        let _transaction = random.random_bool(0.3).then(|| pool.transaction_begun(UserId::SERVICE));
        let take = millis(&mut random, 200);
        let padding = if random.random_bool(0.1) { 50_000 } else { 0 };
        match random.random_range(0..12) {
            0 => drop(connection),
            1 => connection.discard(ConnectionClosed::Error),
            2 | 3 => {
                // Leaves in the middle, or just does not.
                let command = work(&mut connection, id, Work { take, then: "answer", padding });
                drop(timeout(millis(&mut random, 200), command).await);
            }
            4 => {
                let then = ["close", "half", "stray", "twice", "hang"][random.random_range(0..5)];
                let command = work(&mut connection, id, Work { take, then, padding });
                if let Ok(outcome) = timeout(ms(300), command).await {
                    outcome.unwrap_err();
                }
            }
            _ => {
                for _ in 0..random.random_range(1..3) {
                    if let Ok(echo) = work(&mut connection, id, Work { take, then: "answer", padding }).await {
                        assert_eq!(echo, id, "somebody else's reply");
                    } else {
                        // Kicked or interrupted.
                        break;
                    }
                }
            }
        }
    }
}

/// Does to a pool what the rest of the program may do.
async fn trouble(pool: Pool, health: Arc<Health>, server: Arc<Server>, mut random: SmallRng) {
    for _ in 0..80 {
        sleep(millis(&mut random, 120)).await;
        match random.random_range(0..15) {
            0 => pool.clear(false),
            1 => pool.clear(true),
            2 => pool.clear_generation(random.random_range(0..8)),
            3 => pool.evict(),
            4 | 5 => pool.recheck(),
            6 => server.kick(),
            7 if health.command_ended(Outcome::Failure(Failure::Network), Instant::now()) => pool.evict(),
            7 => {}
            8 if health.connected(Outcome::Failure(Failure::Connect)) => pool.evict(),
            8 => {}
            9 => server.answer_pings([Ping::Answer, Ping::Close, Ping::Hang][random.random_range(0..3)]),
            10 => health.heartbeat_succeeded(),
            11 => pool.connect_soon(),
            _ => pool.ready(),
        }
    }
}

/// The storm is over: the servers are well, and the monitor says so.
async fn calm(rigs: &[Rig]) {
    for rig in rigs {
        rig.server.dials(|_| Dial::Accept(ms(5)));
        rig.server.notice_after(ms(0));
        rig.server.answer_pings(Ping::Answer);
        rig.pool.ready();
    }
    // What was begun before may still fail, and trip the breaker again.
    for _ in 0..8 {
        for rig in rigs {
            rig.health.heartbeat_succeeded();
            rig.pool.connect_soon();
        }
        sleep(ms(500)).await;
    }
    for rig in rigs {
        assert!(rig.health.all_closed(), "{:?} {:?}", rig.health.state(), rig.pool.snapshot());
    }
}

async fn storm(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let limit = random.random_bool(0.6).then(|| random.random_range(1..=8));
    let (bound, servers) = (ClusterBound::new(limit), Arc::new(Gauge::default()));
    let rigs = [start(&mut random, &bound, &servers), start(&mut random, &bound, &servers)];
    let mut tasks = JoinSet::new();
    for (index, rig) in (0..).zip(&rigs) {
        rig.pool.ready();
        let (pool, health, server) = (rig.pool.clone(), rig.health.clone(), rig.server.clone());
        tasks.spawn(trouble(pool, health, server, SmallRng::seed_from_u64(random.random())));
        for number in 0..CLIENTS {
            let number = index * 100 + i32::try_from(number).unwrap();
            tasks.spawn(client(rig.pool.clone(), SmallRng::seed_from_u64(random.random()), number));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    for rig in &rigs {
        assert!(rig.server.peak() <= rig.pool.snapshot().max_pool_size, "{} connections", rig.server.peak());
    }
    assert!(servers.peak() <= limit.unwrap_or(u32::MAX), "{} connections of all servers", servers.peak());
    calm(&rigs).await;
    for rig in &rigs {
        let bounds = *rig.pool.0.state().bounds();
        rig.check_serves(bounds.max_in_flight.min(limit.unwrap_or(u32::MAX))).await;
        assert!(rig.server.peak() <= bounds.max_pool_size);
    }
    assert!(servers.peak() <= limit.unwrap_or(u32::MAX));
    for rig in &rigs {
        rig.end().await;
    }
    assert_eq!(bound.open(), 0);
}

#[test]
fn in_any_storm_the_bounds_hold_and_nothing_is_lost() {
    for seed in seeds() {
        assert!(within_ten_seconds(storm(seed)), "failed, or went on and on: replay with STORM_SEED={seed}");
    }
}
