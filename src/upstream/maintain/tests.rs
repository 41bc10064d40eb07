//! Hours of a pool's life in milliseconds: warm, idle, old, out of reach, and back.

use tokio::time::sleep;

use super::*;
use crate::admission::Lane;
use crate::breaker::BreakerState;
use crate::config::BackoffConfig;
use crate::upstream::pool::{CheckOutError, ClusterBound};
use crate::upstream::scripted::{Dial, Ping, Rig, Setup, Work, ms, settle, within_ten_seconds, work};

const FAILURE: Outcome = Outcome::Failure(Failure::Network);

/// Never trips.
fn without_breaker(mut setup: Setup) -> Setup {
    setup.breaker.consecutive_failures = 1_000_000;
    setup.breaker.minimum_samples = 1_000_000;
    setup
}

fn trip(rig: &Rig) {
    while rig.health.all_closed() {
        rig.health.command_ended(FAILURE, Instant::now());
    }
}

fn available(rig: &Rig) -> u32 {
    rig.counts().available
}

#[tokio::test(start_paused = true)]
async fn a_ready_pool_is_filled_to_its_minimum_at_the_pace_of_max_connecting() {
    let setup = Setup::new(5, 9);
    setup.server.dials(|_| Dial::Accept(ms(100)));
    let rig = setup.start_paused();
    sleep(ms(3_000)).await;
    assert_eq!(rig.server.dialed().len(), 0, "a paused pool opens nothing");
    rig.pool.ready();
    for expected in [(0, 2), (2, 2), (4, 1), (5, 0), (5, 0)] {
        settle().await;
        assert_eq!((available(&rig), rig.counts().pending), expected);
        sleep(ms(99)).await;
    }
    rig.check_serves(9).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_warm_connection_that_the_server_closed_is_replaced_in_the_background() {
    let rig = Setup::new(3, 5).start();
    settle().await;
    rig.server.kick();
    sleep(ms(1_100)).await;
    assert_eq!((available(&rig), rig.server.open()), (3, 3));
    assert_eq!(rig.closed(ConnectionClosed::Error), 3);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn demand_is_met_within_max_connecting_by_a_storm_of_waiters() {
    let mut setup = Setup::new(0, 10);
    setup.pool.max_connecting = 3;
    setup.server.dials(|_| Dial::Accept(ms(50)));
    let rig = setup.start();
    let connections = futures_util::future::join_all((0..10).map(|_| rig.check_out())).await;
    assert!(connections.iter().all(Result::is_ok));
    let dialed = rig.server.dialed();
    assert_eq!(dialed.len(), 10);
    for four in dialed.windows(4) {
        assert!(four[3] - four[0] >= ms(50), "more than three at once");
    }
    drop(connections);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn idle_connections_above_the_minimum_close_after_max_idle_time() {
    let mut setup = Setup::new(2, 6);
    setup.pool.max_idle_time = ms(30_000);
    let rig = setup.start();
    drop(rig.check_out_many(6).await);
    sleep(ms(20_000)).await;
    // Used again: the others are the older ones.
    drop(rig.check_out_many(3).await);
    sleep(ms(9_000)).await;
    assert_eq!(rig.server.open(), 6);
    sleep(ms(3_000)).await;
    assert_eq!((rig.server.open(), available(&rig)), (3, 3));
    sleep(ms(20_000)).await;
    assert_eq!((rig.server.open(), available(&rig)), (2, 2));
    sleep(ms(600_000)).await;
    assert_eq!((rig.server.open(), rig.server.dialed().len()), (2, 6), "the minimum stays");
    assert_eq!(rig.closed(ConnectionClosed::Idle), 4);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn old_connections_are_replaced_first_where_there_is_room() {
    let mut setup = Setup::new(3, 4);
    setup.pool.max_lifetime = ms(100_000);
    setup.server.dials(|_| Dial::Accept(ms(2_500)));
    let rig = setup.start();
    sleep(ms(10_000)).await;
    let mut fewest = u32::MAX;
    for _ in 0..1_500 {
        sleep(ms(100)).await;
        fewest = fewest.min(available(&rig));
    }
    assert_eq!(fewest, 3, "kept warm");
    assert_eq!(rig.closed(ConnectionClosed::Lifetime), 3);
    assert_eq!((rig.server.peak(), rig.server.dialed().len()), (4, 6), "one at a time");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn old_connections_are_replaced_without_room_too() {
    let mut setup = Setup::new(1, 1);
    setup.pool.max_lifetime = ms(100_000);
    let rig = setup.start();
    for generation in 1..5 {
        sleep(ms(102_000)).await;
        assert_eq!((available(&rig), rig.server.peak()), (1, 1));
        assert!(rig.closed(ConnectionClosed::Lifetime) >= generation);
    }
    rig.check_serves(1).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn lifetimes_differ_by_a_tenth_at_most() {
    let mut setup = Setup::new(20, 20);
    setup.pool.max_lifetime = ms(1_000_000);
    let rig = setup.start();
    settle().await;
    let connections = rig.check_out_many(20).await;
    let mut ages: Vec<_> = connections.iter().map(|connection| connection.expires - Instant::now()).collect();
    ages.sort();
    assert!(ages[0] >= ms(899_000) && ages[19] <= ms(1_000_000), "{ages:?}");
    assert!(ages[19] - ages[0] >= ms(10_000), "spread: {ages:?}");
    drop(connections);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_use_outlives_all_limits_and_ends_when_it_comes_back() {
    let mut setup = Setup::new(0, 2);
    (setup.pool.max_lifetime, setup.pool.max_idle_time) = (ms(10_000), ms(1_000));
    let rig = setup.start();
    let mut connection = rig.check_out().await.unwrap();
    assert_eq!(work(&mut connection, 1, Work::take(60_000)).await.unwrap(), 1);
    assert_eq!(work(&mut connection, 2, Work::take(60_000)).await.unwrap(), 2);
    drop(connection);
    settle().await;
    assert_eq!((rig.server.open(), rig.closed(ConnectionClosed::Lifetime)), (0, 1));
    rig.check_serves(2).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_serves_who_waits_until_its_replacement_is_there() {
    let mut setup = Setup::new(1, 2);
    setup.pool.max_lifetime = ms(10_000);
    setup.server.dials(|number| Dial::Accept(ms(if number == 1 { 0 } else { 5_000 })));
    let rig = setup.start();
    settle().await;
    let held = rig.check_out().await.unwrap();
    sleep(ms(10_000)).await;
    let began = Instant::now();
    let (waited, ()) = tokio::join!(rig.check_out(), async { drop(held) });
    assert!(began.elapsed() < ms(10), "handed over, old as it is");
    drop(waited.unwrap());
    settle().await;
    assert_eq!(rig.closed(ConnectionClosed::Lifetime), 1, "nobody waits now");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn no_replacement_is_tried_while_the_server_cannot_be_reached() {
    let mut setup = without_breaker(Setup::new(1, 2));
    setup.pool.max_lifetime = ms(10_000);
    setup.server.dials(|number| if number == 1 { Dial::Accept(ms(0)) } else { Dial::Refuse });
    let rig = setup.start();
    sleep(ms(310_000)).await;
    assert_eq!(available(&rig), 1, "an old connection is better than none");
    // Five minutes at 30 s, half of that on average, after the first doublings.
    let dialed = rig.server.dialed().len();
    assert!((10..=80).contains(&dialed), "{dialed}");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn none_that_works_is_let_go_while_the_server_lets_nobody_in() {
    let setup = without_breaker(Setup::new(1, 5));
    setup.server.dials(|number| if number <= 3 { Dial::Accept(ms(0)) } else { Dial::Break(ms(0)) });
    let rig = setup.start();
    drop(rig.check_out_many(3).await);
    assert_eq!(rig.pool.reconnect(), 3);
    for _ in 0..1_000 {
        drop(rig.check_out_many(3).await);
        sleep(ms(10)).await;
    }
    assert_eq!((rig.server.open(), rig.closed(ConnectionClosed::Lifetime)), (3, 0));
    assert!(rig.server.dialed().len() > 4, "it was tried");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn those_in_use_whenever_it_is_looked_are_replaced_once_their_successors_are_there() {
    let rig = Setup::new(1, 5).start();
    let mut held = rig.check_out_many(3).await;
    assert_eq!(rig.pool.reconnect(), 3);
    let mut fewest = u32::MAX;
    for _ in 0..1_000 {
        drop(held.remove(0));
        held.push(rig.check_out().await.unwrap());
        sleep(ms(10)).await;
        fewest = fewest.min(rig.counts().in_use + rig.counts().available);
    }
    assert!(held.iter().all(|connection| connection.id > 3), "{held:?}");
    assert_eq!((fewest, rig.server.peak(), rig.closed(ConnectionClosed::Lifetime)), (3, 4, 3));
    drop(held);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn attempts_back_off_with_full_jitter_up_to_the_maximum() {
    let setup = without_breaker(Setup::new(0, 1));
    setup.server.dials(|_| Dial::Refuse);
    let rig = setup.start();
    let waits = rig.pool.check_out(Lane::Regular, Instant::now() + ms(900_000)).await;
    assert_eq!(waits.unwrap_err(), CheckOutError::Timeout);
    let dialed = rig.server.dialed();
    let mut shares = Vec::new();
    for (number, pair) in dialed.windows(2).enumerate() {
        let bound = ms(100).saturating_mul(1 << number.min(20)).min(ms(30_000));
        let gap = pair[1] - pair[0];
        assert!(gap <= bound + ms(2), "attempt {number}: {gap:?} of {bound:?}");
        shares.push(gap.as_secs_f64() / bound.as_secs_f64());
    }
    // Evenly drawn: with 40 draws and more, missing a half has a chance below one in 10^12.
    assert!(shares.len() > 40, "{}", shares.len());
    assert!(shares.iter().any(|share| *share < 0.5) && shares.iter().any(|share| *share > 0.5), "{shares:?}");
    assert!(rig.pool.snapshot().last_connect_error.is_some());

    // A heartbeat ends the wait, a success starts over.
    rig.server.dials(|_| Dial::Accept(ms(0)));
    rig.pool.connect_soon();
    let began = Instant::now();
    rig.check_serves(1).await;
    assert!(began.elapsed() < ms(200));
    assert_eq!(rig.pool.snapshot().last_connect_error, None);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn five_failures_open_the_breaker_evict_who_waits_and_stop_the_dialing() {
    let mut setup = Setup::new(0, 3);
    setup.breaker.open_initial = ms(60_000);
    setup.server.dials(|_| Dial::Refuse);
    let rig = setup.start();
    let outcomes = futures_util::future::join_all((0..4).map(|_| rig.check_out())).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(CheckOutError::Cleared))), "{outcomes:?}");
    assert_eq!(rig.health.state(), BreakerState::Open);
    let dialed = rig.server.dialed().len();
    assert!((5..=6).contains(&dialed), "two at once, five to trip: {dialed}");
    sleep(ms(25_000)).await;
    assert_eq!(rig.server.dialed().len(), dialed);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_over_a_new_connection_closes_the_breaker_and_ends_the_back_off() {
    let mut setup = Setup::new(4, 4);
    // So that only the probe can bring the pool back.
    setup.reconnect = BackoffConfig { initial: ms(3_600_000), max: ms(3_600_000) };
    setup.breaker.consecutive_failures = 1;
    setup.server.dials(|number| if number <= 2 { Dial::Refuse } else { Dial::Accept(ms(0)) });
    let rig = setup.start();
    settle().await;
    assert_eq!(rig.health.state(), BreakerState::Open);
    sleep(ms(1_100)).await;
    assert_eq!(rig.health.state(), BreakerState::Closed);
    assert_eq!(available(&rig), 4);
    rig.check_serves(4).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_a_hello_and_a_ping_over_an_available_connection_or_a_new_one_and_a_ping() {
    let rig = Setup::new(1, 2).start();
    settle().await;
    rig.server.dials(|_| Dial::Refuse);
    rig.server.answer_pings(Ping::Close);
    trip(&rig);
    sleep(ms(1_100)).await;
    assert_eq!((rig.server.pings(), rig.server.dialed().len(), rig.health.state()), (1, 1, BreakerState::Open));
    rig.server.answer_pings(Ping::Answer);
    rig.server.dials(|_| Dial::Accept(ms(0)));
    sleep(ms(4_000)).await;
    assert_eq!(rig.health.state(), BreakerState::Closed);
    trip(&rig);
    sleep(ms(5_000)).await;
    assert_eq!((rig.server.pings(), rig.health.state()), (4, BreakerState::Closed));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_not_wasted_on_connections_that_died_with_the_old_server() {
    let rig = Setup::new(0, 9).start();
    drop(rig.check_out_many(9).await);
    // Tripped and restarted at the same moment, before anybody could notice.
    trip(&rig);
    rig.server.kick();
    rig.health.heartbeat_succeeded();
    rig.pool.connect_soon();
    settle().await;
    assert_eq!((rig.server.pings(), rig.health.state()), (1, BreakerState::Closed));
    rig.check_serves(9).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_makes_the_probe_early() {
    let mut setup = Setup::new(1, 1);
    setup.breaker.open_initial = ms(60_000);
    let rig = setup.start();
    settle().await;
    trip(&rig);
    sleep(ms(20_000)).await;
    assert_eq!(rig.health.state(), BreakerState::Open);
    rig.health.heartbeat_succeeded();
    rig.pool.connect_soon();
    settle().await;
    assert_eq!((rig.health.state(), rig.server.pings()), (BreakerState::Closed, 2));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_recheck_greets_past_back_off_and_breaker() {
    let mut setup = Setup::new(0, 2);
    setup.reconnect = BackoffConfig { initial: ms(3_600_000), max: ms(3_600_000) };
    setup.breaker.open_initial = ms(60_000);
    setup.server.dials(|_| Dial::Refuse);
    let rig = setup.start();
    trip(&rig);
    for attempts in 1..5 {
        rig.pool.recheck();
        settle().await;
        assert_eq!(rig.server.dialed().len(), attempts);
    }
    assert_eq!(rig.pool.snapshot().last_connect_error, None, "a look does not add to the back-off");
    rig.server.dials(|_| Dial::Accept(ms(0)));
    rig.pool.clear(false);
    rig.pool.recheck();
    settle().await;
    assert_eq!((rig.greeted.load(Ordering::Relaxed), available(&rig)), (1, 1));
    assert_eq!(rig.health.state(), BreakerState::Open, "one look is no probe");
    rig.end().await;
}

#[test]
fn a_probe_that_finds_no_place_waits_for_one() {
    let test = async {
        for closed in [false, true] {
            let rig = Setup::new(0, 1).start();
            let held = rig.check_out().await.unwrap();
            trip(&rig);
            sleep(ms(30_000)).await;
            assert_eq!((rig.server.dialed().len(), rig.health.state()), (1, BreakerState::HalfOpen));
            if closed {
                rig.pool.close();
                sleep(ms(30_000)).await;
            }
            drop(held);
            sleep(ms(1_100)).await;
            assert_eq!(rig.health.all_closed(), !closed);
            rig.end().await;
        }
    };
    assert!(within_ten_seconds(test), "failed, or went on and on");
}

#[tokio::test(start_paused = true)]
async fn a_probe_finds_a_place_though_another_server_has_all_of_the_cluster() {
    let bound = ClusterBound::new(Some(2));
    let rig = |min| {
        let mut setup = Setup::new(min, 2);
        setup.bound = bound.clone();
        setup.start()
    };
    let (warm, refused) = (rig(2), rig(0));
    settle().await;
    assert_eq!(bound.open(), 2);
    trip(&refused);
    sleep(ms(3_000)).await;
    assert_eq!(refused.health.state(), BreakerState::Closed);
    refused.end().await;
    warm.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_hanging_dial_ends_at_connect_timeout_and_its_socket_counts_until_the_server_has_noticed() {
    for (dial, ended_after) in [(Dial::Hang, ms(10_000)), (Dial::Break(ms(200)), ms(200))] {
        let mut setup = without_breaker(Setup::new(0, 1));
        setup.reconnect = BackoffConfig { initial: ms(1), max: ms(1) };
        setup.server.notice_after(ms(900));
        setup.server.dials(move |number| if number == 1 { dial } else { Dial::Accept(ms(0)) });
        let rig = setup.start();
        let began = Instant::now();
        let waits = rig.pool.check_out(Lane::Regular, began + ms(60_000)).await;
        assert!(began.elapsed() >= ended_after && began.elapsed() <= ended_after + ms(1_100), "{:?}", began.elapsed());
        assert_eq!(rig.server.peak(), 1);
        drop(waits);
        rig.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_health_check_pings_a_pool_in_use_and_no_other() {
    let mut setup = Setup::new(2, 2);
    setup.health_check = ms(30_000);
    let rig = setup.start();
    sleep(ms(300_000)).await;
    assert_eq!(rig.server.pings(), 0);
    for _ in 0..5 {
        rig.check_serves(1).await;
        sleep(ms(60_000)).await;
    }
    assert_eq!(rig.server.pings(), 5);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_ping_that_hangs_costs_its_connection_only() {
    let mut setup = Setup::new(3, 3);
    setup.health_check = ms(30_000);
    let rig = setup.start();
    settle().await;
    rig.check_serves(3).await;
    rig.server.answer_pings(Ping::Hang);
    let mut busy = rig.check_out().await.unwrap();
    sleep(ms(30_000)).await;
    assert_eq!((rig.server.pings(), rig.counts().in_use), (1, 2));
    // The rest goes on meanwhile.
    drop(rig.check_out().await.unwrap());
    assert_eq!(work(&mut busy, 1, Work::take(12_000)).await.unwrap(), 1);
    drop(busy);
    assert_eq!(rig.closed(ConnectionClosed::Error), 1);
    assert_eq!((rig.health.state(), rig.counts().available), (BreakerState::Closed, 3));
    rig.check_serves(3).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_program_waits_for_no_server() {
    let mut setup = Setup::new(0, 4);
    setup.health_check = ms(30_000);
    setup.server.dials(|number| if number == 1 { Dial::Accept(ms(0)) } else { Dial::Hang });
    let rig = setup.start();
    rig.server.answer_pings(Ping::Hang);
    drop(rig.check_out().await.unwrap());
    sleep(ms(30_010)).await;
    rig.pool.recheck();
    sleep(ms(20)).await;
    assert_eq!((rig.counts().pending, rig.counts().in_use), (1, 1));
    rig.tasks.cancel();
    assert_eq!(rig.tasks.join_all(ms(100)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_pool_that_is_full_asks_no_other_pool_for_room() {
    let bound = ClusterBound::new(Some(3));
    let rig = |max| {
        let mut setup = Setup::new(0, max);
        setup.bound = bound.clone();
        setup.start()
    };
    let (full, other) = (rig(1), rig(2));
    let held = full.check_out().await.unwrap();
    drop(other.check_out_many(2).await);
    // Waits for its own pool, which is at its size: nobody else can help.
    assert_eq!(full.check_out().await.unwrap_err(), CheckOutError::Timeout);
    assert_eq!(other.closed(ConnectionClosed::Idle), 0);
    drop(held);
    full.end().await;
    other.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_new_connections_still_serves_over_those_it_has() {
    let mut setup = Setup::new(1, 3);
    setup.breaker.open_initial = ms(60_000);
    setup.server.dials(|number| if number == 1 { Dial::Accept(ms(0)) } else { Dial::Refuse });
    let rig = setup.start();
    let mut held = rig.check_out().await.unwrap();
    let waits = rig.check_out();
    let serves = async {
        while rig.health.all_closed() {
            sleep(ms(100)).await;
        }
        assert!(rig.health.closed(Judgement::Commands) && rig.pool.has_connections());
        assert_eq!(work(&mut held, 1, Work::default()).await.unwrap(), 1);
        drop(held);
    };
    let (waited, ()) = tokio::join!(waits, serves);
    assert_eq!(work(&mut waited.unwrap(), 2, Work::default()).await.unwrap(), 2, "who waits has a turn");
    let dialed = rig.server.dialed().len();
    sleep(ms(20_000)).await;
    assert_eq!(rig.server.dialed().len(), dialed, "and nobody dials");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_pool_is_proof_enough_that_connections_can_be_had() {
    let rig = Setup::new(1, 1).start();
    settle().await;
    while !rig.health.connected(Outcome::Failure(Failure::Connect)) {}
    sleep(ms(1_100)).await;
    assert!(rig.health.all_closed(), "{:?}", rig.health.state());
    assert_eq!(rig.server.dialed().len(), 1);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_recheck_uses_a_connection_that_is_there_and_needs_no_turn_of_max_connecting() {
    let rig = Setup::new(1, 3).start();
    settle().await;
    rig.pool.recheck();
    settle().await;
    assert_eq!((rig.server.dialed().len(), rig.server.pings()), (1, 1));
    let held = rig.check_out().await.unwrap();
    // Two attempts that hang: as many as may be under way.
    rig.server.dials(|number| if number <= 3 { Dial::Hang } else { Dial::Accept(ms(0)) });
    let (first, second) = (rig.check_out(), rig.check_out());
    let recheck = async {
        sleep(ms(100)).await;
        assert_eq!(rig.counts().pending, 2);
        drop(held);
        rig.pool.recheck();
    };
    let (first, second, ()) = tokio::join!(first, second, recheck);
    assert!(first.is_ok() || second.is_ok());
    drop((first, second));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn rechecks_do_not_pile_up_on_a_server_that_hangs() {
    let setup = without_breaker(Setup::new(0, 5));
    setup.server.dials(|_| Dial::Hang);
    let rig = setup.start();
    for _ in 0..120 {
        rig.pool.recheck();
        sleep(ms(500)).await;
        assert!(rig.counts().pending <= 1, "{:?}", rig.counts());
    }
    // One every two seconds, for a minute.
    assert!((20..=31).contains(&rig.server.dialed().len()), "{}", rig.server.dialed().len());
    rig.server.dials(|_| Dial::Accept(ms(0)));
    sleep(ms(4_000)).await;
    let greeted = rig.greeted.load(Ordering::Relaxed);
    rig.pool.recheck();
    settle().await;
    assert_eq!(rig.greeted.load(Ordering::Relaxed), greeted + 1, "found as soon as it is back");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_connections_come_back_spread_over_a_second() {
    for (size, initial) in [(10, 100), (100, 100), (10, 20)] {
        let mut setup = Setup::new(size, size);
        setup.pool.max_connecting = size;
        setup.reconnect.initial = ms(initial);
        let rig = setup.start();
        settle().await;
        assert_eq!(available(&rig), size, "at the start nobody waits");
        assert!(!rig.pool.is_recovering());
        for _ in 0..5 {
            rig.pool.clear(false);
            assert!(rig.pool.is_recovering());
            sleep(ms(60_000)).await;
            let before = rig.server.dialed().len();
            rig.pool.ready();
            rig.pool.connect_soon();
            let began = Instant::now();
            while rig.pool.is_recovering() {
                sleep(ms(1)).await;
            }
            assert_eq!(available(&rig), size);
            let dialed = &rig.server.dialed()[before..];
            assert_eq!(dialed.len(), usize::try_from(size).unwrap());
            let (mean, took) = (ms(1_000 / u64::from(size)).min(ms(initial)) * size, began.elapsed());
            assert!(
                took >= mean / 4 && took <= 2 * mean + ms(initial + 10),
                "{took:?} for {size}, {mean:?} on average"
            );
        }
        rig.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_server_comes_back_while_connections_are_in_use_keeps_its_bound() {
    let rig = Setup::new(2, 3).start();
    let mut held = rig.check_out_many(3).await;
    let busy = work(&mut held[0], 1, Work::take(60_000));
    let reopens = async {
        sleep(ms(100)).await;
        rig.pool.close();
        assert!(!rig.pool.has_ended());
        sleep(ms(5_000)).await;
        assert!(rig.pool.reopen());
        assert!(rig.check_out().await.is_err(), "not before its server is known to be up");
        rig.pool.ready();
        assert_eq!(rig.check_out().await.unwrap_err(), CheckOutError::Timeout, "all places are taken");
    };
    let (worked, ()) = tokio::join!(busy, reopens);
    assert_eq!(worked.unwrap(), 1, "in use, it went on");
    drop(held);
    rig.check_serves(3).await;
    assert_eq!(rig.server.peak(), 3);
    rig.pool.close();
    sleep(ms(5_000)).await;
    assert!(rig.pool.has_ended() && !rig.pool.reopen());
    rig.end().await;
}
