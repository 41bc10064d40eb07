//! Waiting, leaving, dying and clearing, at the seams of the pool.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::poll;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;
use crate::upstream::connection::ReceiveError;
use crate::upstream::scripted::{Dial, Rig, Server, Setup, Work, ms, settle, work};
use crate::upstream::shortage::Shortage;

/// Waits for a connection for a minute.
fn wait(rig: &Rig, lane: Lane) -> impl Future<Output = Result<PooledConnection, CheckOutError>> + use<> {
    let (pool, deadline) = (rig.pool.clone(), Instant::now() + ms(60_000));
    async move { pool.check_out(lane, deadline).await }
}

macro_rules! assert_pending {
    ($future:expr) => {
        assert!(poll!(&mut $future).is_pending())
    };
}

macro_rules! assert_ready {
    ($future:expr) => {
        match poll!(&mut $future) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("not ready"),
        }
    };
}

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_order_and_one_that_leaves_frees_its_place() {
    let rig = Setup::new(0, 1).start();
    let held = rig.check_out().await.unwrap();
    let mut first = pin!(wait(&rig, Lane::Regular));
    let mut second = Box::pin(wait(&rig, Lane::Background));
    let mut third = pin!(wait(&rig, Lane::Background));
    let mut transaction = pin!(wait(&rig, Lane::Transaction));
    assert_pending!(first);
    assert_pending!(second);
    assert_pending!(third);
    assert_pending!(transaction);
    assert_eq!(rig.waiting(), 4);
    drop(second);
    assert_eq!(rig.waiting(), 3);
    drop(held);
    assert_pending!(first);
    assert_pending!(third);
    drop(assert_ready!(transaction).unwrap());
    assert_pending!(third);
    // Who comes now does not overtake, though the connection is not in use.
    assert!(rig.pool.try_check_out(Lane::Regular, Instant::now()).unwrap().is_none());
    drop(assert_ready!(first).unwrap());
    drop(assert_ready!(third).unwrap());
    assert_eq!((rig.waiting(), rig.server.peak()), (0, 1));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_answered_at_its_deadline_and_not_later() {
    let rig = Setup::new(0, 1).start();
    let held = rig.check_out().await.unwrap();
    let began = Instant::now();
    assert_eq!(rig.pool.check_out(Lane::Regular, began + ms(300)).await.unwrap_err(), CheckOutError::Timeout);
    assert!(began.elapsed() <= ms(302), "{:?}", began.elapsed());
    assert_eq!(rig.waiting(), 0);
    drop(held);
    rig.check_serves(1).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_keeps_its_deadline_when_nobody_looks_after_it_any_more() {
    let rig = Setup::new(0, 1).start();
    let held = rig.check_out().await.unwrap();
    let began = Instant::now();
    // In tasks of their own, so that nobody polls one for the other.
    let mut waiters = JoinSet::new();
    let mut join = |limit| {
        let pool = rig.pool.clone();
        waiters
            .spawn(async move { (pool.check_out(Lane::Regular, began + limit).await.unwrap_err(), began.elapsed()) });
    };
    join(ms(300));
    settle().await;
    rig.tasks.cancel();
    settle().await;
    join(ms(400));
    for limit in [ms(300), ms(400)] {
        let (error, waited) = waiters.join_next().await.unwrap().unwrap();
        assert_eq!(error, CheckOutError::Timeout);
        assert!((limit..=limit + ms(2)).contains(&waited), "{waited:?}");
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn who_is_told_to_look_keeps_its_place() {
    let rig = Setup::new(0, 1).start();
    let held = rig.check_out().await.unwrap();
    let (mut first, mut second) = (pin!(wait(&rig, Lane::Regular)), pin!(wait(&rig, Lane::Regular)));
    assert_pending!(first);
    assert_pending!(second);
    rig.pool.wake_waiting();
    assert_pending!(second);
    assert_pending!(first);
    drop(held);
    assert_pending!(second);
    drop(assert_ready!(first).unwrap());
    drop(assert_ready!(second).unwrap());
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_check_out_dropped_after_any_number_of_polls_loses_nothing() {
    /// What happens while somebody waits.
    const EVENTS: [fn(&Rig, &mut Vec<PooledConnection>); 6] = [
        |_, held| drop(held.pop()),
        |_, held| held.pop().into_iter().for_each(|held| held.discard(ConnectionClosed::Error)),
        |rig, held| {
            rig.server.kick();
            held.pop();
        },
        |rig, _| rig.pool.clear(false),
        |rig, _| {
            rig.pool.clear(true);
            rig.pool.ready();
        },
        |rig, _| rig.pool.evict(),
    ];
    for event in EVENTS {
        for polls in 0..8 {
            let rig = Setup::new(0, 2).start();
            let mut held = rig.check_out_many(2).await;
            let mut dropped = Box::pin(wait(&rig, Lane::Regular));
            for poll in 0..polls {
                if poll == 2 {
                    event(&rig, &mut held);
                }
                if poll > 3 {
                    settle().await;
                }
                if poll!(&mut dropped).is_ready() {
                    break;
                }
            }
            drop(dropped);
            drop(held);
            settle().await;
            rig.pool.ready();
            rig.check_serves(2).await;
            assert!(rig.server.peak() <= 2);
            rig.end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_kept_for_an_open_transaction_and_for_all_once_it_has_ended() {
    let rig = Setup::new(0, 3).start();
    let mut held = rig.check_out_many(3).await;
    let transaction = rig.pool.transaction_begun(crate::auth::UserId::SERVICE);
    let mut writes = pin!(wait(&rig, Lane::Regular));
    let mut statement = pin!(wait(&rig, Lane::Transaction));
    assert!(poll!(&mut writes).is_pending() && poll!(&mut statement).is_pending());
    held.pop();
    let Poll::Ready(Ok(statement)) = poll!(&mut statement) else { panic!("it goes first") };
    held.pop();
    let Poll::Ready(Ok(other)) = poll!(&mut writes) else { panic!("two are for all") };
    drop(statement);
    let mut writes = pin!(wait(&rig, Lane::Regular));
    assert!(poll!(&mut writes).is_pending(), "one is idle, and kept");
    assert!(rig.pool.try_check_out(Lane::Regular, Instant::now()).unwrap().is_none());
    let statement = rig.pool.try_check_out(Lane::Transaction, Instant::now()).unwrap().expect("it is for this one");
    drop(statement);
    assert!(poll!(&mut writes).is_pending(), "and kept again");
    drop(transaction);
    assert!(matches!(poll!(&mut writes), Poll::Ready(Ok(_))), "nothing else has happened");
    drop((other, held));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn beside_a_transaction_a_single_connection_carries_what_waits_for_no_lock() {
    let write = Claim { locks: true, ..Lane::Regular.into() };
    // Also where a bound over all servers leaves but one.
    for (max, bound) in [(1, None), (4, Some(1))] {
        let mut setup = Setup::new(0, max);
        setup.bound = ClusterBound::new(bound);
        let rig = setup.start();
        drop(rig.check_out().await.unwrap());
        let transaction = rig.pool.transaction_begun(crate::auth::UserId::SERVICE);
        let (pool, deadline) = (rig.pool.clone(), Instant::now() + ms(10_000));
        let mut waits = Box::pin(async move { pool.check_out(write, deadline).await });
        assert!(poll!(&mut waits).is_pending(), "{max}");
        for lane in [Lane::Regular, Lane::Transaction, Lane::Await, Lane::Background] {
            drop(rig.pool.try_check_out(lane, Instant::now()).unwrap().expect("free"));
        }
        assert!(poll!(&mut waits).is_pending());
        drop(transaction);
        assert!(matches!(poll!(&mut waits), Poll::Ready(Ok(_))));
        rig.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handed_connection_passes_on_when_its_waiter_leaves() {
    let rig = Setup::new(0, 1).start();
    let held = rig.check_out().await.unwrap();
    let mut leaves = Box::pin(wait(&rig, Lane::Regular));
    let mut next = pin!(wait(&rig, Lane::Regular));
    assert_pending!(leaves);
    assert_pending!(next);
    drop(held);
    drop(leaves);
    drop(assert_ready!(next).unwrap());
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_command_dropped_after_any_number_of_polls_leaks_no_reply() {
    for polls in 0..60 {
        let mut setup = Setup::new(0, 1);
        // So small a pipe that every message takes many polls, in both directions.
        setup.server = Server::new(Arc::default(), 9);
        let rig = setup.start();
        let mut connection = rig.check_out().await.unwrap();
        {
            let mut command = pin!(work(&mut connection, 1, Work::default()));
            for _ in 0..polls {
                if poll!(&mut command).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        drop(connection);
        let mut connection = rig.check_out().await.unwrap();
        assert_eq!(work(&mut connection, 2, Work::default()).await.unwrap(), 2);
        drop(connection);
        assert_eq!(rig.server.peak(), 1);
        rig.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_server_closed_while_idle_is_not_handed_out() {
    let rig = Setup::new(0, 3).start();
    drop(rig.check_out_many(3).await);
    rig.server.kick();
    tokio::task::yield_now().await;
    let mut connection = rig.check_out().await.unwrap();
    assert_eq!(connection.id, 4);
    assert_eq!(work(&mut connection, 7, Work::default()).await.unwrap(), 7);
    assert_eq!(rig.closed(ConnectionClosed::Error), 3);
    drop(connection);
    rig.check_serves(3).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn none_of_many_dead_connections_is_handed_out() {
    // More than the runtime lets one poll read.
    let mut setup = Setup::new(0, 300);
    setup.pool.max_connecting = 100;
    let rig = setup.start();
    drop(rig.check_out_many(300).await);
    rig.server.kick();
    settle().await;
    assert!(rig.pool.try_check_out(Lane::Regular, Instant::now()).unwrap().is_none());
    settle().await;
    assert_eq!(rig.counts().total(), 0);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_carried_nothing_since_a_command_that_was_not_answered_is_not_handed_out() {
    let rig = Setup::new(0, 4).start();
    let mut connections = rig.check_out_many(4).await;
    let hanging = connections.pop().unwrap();
    drop(connections);
    sleep(ms(1_000)).await;
    let sent = Instant::now();
    sleep(ms(1_000)).await;
    // One of the three proves meanwhile that it works.
    let used = rig.check_out().await.unwrap().id;
    rig.pool.doubt_idle_since(sent);
    hanging.discard(ConnectionClosed::Error);
    settle().await;
    assert_eq!((rig.counts().available, rig.closed(ConnectionClosed::Error)), (1, 3));
    assert_eq!(rig.check_out().await.unwrap().id, used);
    rig.check_serves(4).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_dies_after_it_was_handed_over_costs_nobody_its_turn() {
    let rig = Setup::new(0, 1).start();
    let held = rig.check_out().await.unwrap();
    let mut first = pin!(wait(&rig, Lane::Regular));
    let mut second = pin!(wait(&rig, Lane::Regular));
    assert_pending!(first);
    assert_pending!(second);
    drop(held);
    rig.server.kick();
    settle().await;
    assert_pending!(first);
    settle().await;
    assert_pending!(second);
    let connection = assert_ready!(first).unwrap();
    assert_eq!(connection.id, 2);
    drop(connection);
    drop(assert_ready!(second).unwrap());
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn bytes_that_nobody_asked_for_end_a_connection() {
    let rig = Setup::new(0, 1).start();
    let mut connection = rig.check_out().await.unwrap();
    assert!(matches!(work(&mut connection, 1, Work::then("twice")).await, Err(ReceiveError::TrailingBytes(_))));
    drop(connection);
    let mut connection = rig.check_out().await.unwrap();
    assert_eq!(connection.id, 2);
    assert_eq!(work(&mut connection, 2, Work::default()).await.unwrap(), 2);
    drop(connection);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn clearing_evicts_who_waits_even_who_has_been_handed_a_connection() {
    for close in [false, true] {
        let rig = Setup::new(0, 2).start();
        let mut held = rig.check_out_many(2).await;
        let mut handed = pin!(wait(&rig, Lane::Regular));
        let mut waits = pin!(wait(&rig, Lane::Regular));
        assert_pending!(handed);
        assert_pending!(waits);
        drop(held.pop());
        let expected = if close {
            rig.pool.close();
            CheckOutError::Closed
        } else {
            rig.pool.clear(false);
            CheckOutError::Cleared
        };
        assert_eq!(assert_ready!(waits).unwrap_err(), expected);
        assert_eq!(assert_ready!(handed).unwrap_err(), expected);
        assert_eq!(rig.check_out().await.unwrap_err(), expected);
        assert_eq!(rig.pool.try_check_out(Lane::Regular, Instant::now()).unwrap_err(), expected);
        // The one in use is left alone until it comes back.
        settle().await;
        assert_eq!(rig.server.open(), 1);
        assert_eq!(work(&mut held[0], 5, Work::default()).await.unwrap(), 5);
        drop(held);
        settle().await;
        assert_eq!((rig.server.open(), rig.counts().total()), (0, 0));
        let reason = if close { ConnectionClosed::PoolClosed } else { ConnectionClosed::Stale };
        assert_eq!(rig.closed(reason), 2);
        rig.check_at_rest();
        if !close {
            rig.pool.ready();
            rig.check_serves(2).await;
        }
        rig.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_cleared_once_per_generation() {
    let rig = Setup::new(0, 2).start();
    let held = rig.check_out_many(2).await;
    let generation = held[0].generation;
    rig.pool.clear_generation(generation);
    rig.pool.ready();
    drop(held);
    let newer = rig.check_out().await.unwrap();
    assert!(newer.generation > generation);
    rig.pool.clear_generation(generation);
    drop(newer);
    assert_eq!(rig.counts().available, 1);
    rig.end().await;
}

#[test]
fn two_failures_of_one_generation_clear_once_also_side_by_side() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let rig = runtime.block_on(async { Setup::new(0, 1).start() });
    for round in 0..2_000 {
        let start = std::sync::Barrier::new(2);
        let fail = || {
            start.wait();
            rig.pool.clear_generation(round);
        };
        std::thread::scope(|scope| {
            scope.spawn(fail);
            scope.spawn(fail);
        });
        assert_eq!(rig.pool.0.state().generation(), round + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_fails_what_hangs_and_nothing_else() {
    let rig = Setup::new(0, 2).start();
    let mut hanging = rig.check_out().await.unwrap();
    {
        let mut command = pin!(work(&mut hanging, 1, Work::then("hang")));
        assert_pending!(command);
        settle().await;
        rig.pool.clear(false);
        settle().await;
        assert_pending!(command);
        rig.pool.clear(true);
        assert!(matches!(assert_ready!(command), Err(ReceiveError::Interrupted)));
    }
    drop(hanging);
    rig.pool.ready();
    let mut fresh = rig.check_out().await.unwrap();
    assert_eq!(work(&mut fresh, 2, Work::default()).await.unwrap(), 2);
    drop(fresh);
    settle().await;
    rig.check_serves(2).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_has_arrived_is_not_lost_to_an_interrupt() {
    let rig = Setup::new(0, 1).start();
    let mut connection = rig.check_out().await.unwrap();
    {
        let mut command = pin!(work(&mut connection, 1, Work::default()));
        assert_pending!(command);
        settle().await;
        rig.pool.clear(true);
        assert_eq!(assert_ready!(command).unwrap(), 1);
    }
    drop(connection);
    settle().await;
    assert_eq!(rig.counts().total(), 0);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_closed_in_the_middle_keeps_its_place_until_the_server_has_noticed() {
    let deaf = Work::then("deaf");
    for (command, freed_after) in [(Work::take(300), ms(300)), (Work::take(5_000), ms(1_000)), (deaf, ms(1_000))] {
        let rig = Setup::new(0, 1).start();
        let mut connection = rig.check_out().await.unwrap();
        assert!(tokio::time::timeout(ms(1), work(&mut connection, 1, command)).await.is_err());
        let began = Instant::now();
        drop(connection);
        assert_eq!((rig.counts().available, rig.counts().closing), (0, 1));
        let next = rig.check_out().await.unwrap();
        let waited = began.elapsed();
        assert!(waited + ms(2) >= freed_after && waited <= freed_after + ms(2), "{command:?}: {waited:?}");
        assert_eq!(rig.server.peak() > 1, freed_after == ms(1_000));
        drop(next);
        rig.server.kick();
        settle().await;
        rig.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn fewer_commands_than_connections_may_be_in_flight() {
    let mut setup = Setup::new(3, 3);
    setup.max_in_flight = Some(2);
    let rig = setup.start();
    settle().await;
    assert_eq!(rig.counts().available, 3);
    let mut held = rig.check_out_many(2).await;
    let snapshot = rig.pool.snapshot();
    assert_eq!((snapshot.most_in_use, snapshot.shortage), (2, Some(Shortage::InFlight)));
    let mut waits = pin!(wait(&rig, Lane::Regular));
    assert_pending!(waits);
    settle().await;
    assert_pending!(waits);
    held.pop().unwrap().discard(ConnectionClosed::Error);
    drop(assert_ready!(waits).unwrap());
    assert_eq!(rig.pool.usage().totals().waits[Shortage::InFlight.index()], 1);
    drop(held);
    rig.check_serves(2).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_adapts_lets_more_go_at_once_and_what_is_idle_then_is_closed() {
    let mut setup = Setup::new(1, 8);
    (setup.adaptive_limit, setup.pool.max_idle_time) = (true, ms(5_000));
    let rig = setup.start();
    settle().await;
    assert_eq!(rig.pool.snapshot().limit, 1);
    let held = rig.check_out_many(1).await;
    let mut waits = pin!(wait(&rig, Lane::Regular));
    assert_pending!(waits);
    settle().await;
    assert_pending!(waits);
    let began = Instant::now();
    for (lane, limit) in [(Lane::Await, 1), (Lane::Regular, 2)] {
        for n in 0..10 {
            rig.pool.answered(lane, ms(5), began + ms(n * 20));
        }
        assert_eq!(rig.pool.snapshot().limit, limit);
    }
    settle().await;
    drop(assert_ready!(waits).unwrap());
    drop(held);
    assert_eq!(rig.counts().available, 2);
    tokio::time::sleep(ms(7_000)).await;
    assert_eq!(rig.counts().available, 1, "the minimum");
    rig.check_serves(2).await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_bound_of_a_cluster_holds_and_idle_connections_elsewhere_make_room() {
    let bound = ClusterBound::new(Some(3));
    let both = Arc::default();
    let rig = |min_pool_size| {
        let mut setup = Setup::new(min_pool_size, 3);
        setup.bound = bound.clone();
        setup.server = Server::new(Arc::clone(&both), 64 * 1024);
        setup.start()
    };
    // The first wants to be kept warm with all that the bound allows.
    let (warm, other) = (rig(3), rig(0));
    settle().await;
    assert_eq!((warm.counts().available, bound.open()), (3, 3));
    for rig in [&other, &warm, &other] {
        rig.check_serves(3).await;
    }
    tokio::time::sleep(ms(2_000)).await;
    assert_eq!((both.peak(), bound.open()), (3, 3));
    warm.end().await;
    other.end().await;
    assert_eq!(bound.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_always_busy_leaves_one_place_to_another() {
    let bound = ClusterBound::new(Some(2));
    let rig = || {
        let mut setup = Setup::new(0, 2);
        setup.bound = bound.clone();
        setup.start()
    };
    let (busy, other) = (rig(), rig());
    let (mut clients, stop) = (JoinSet::new(), Tasks::new());
    for _ in 0..6 {
        let (pool, stop) = (busy.pool.clone(), stop.clone());
        clients.spawn(async move {
            while !stop.is_cancelled() {
                let mut connection = pool.check_out(Lane::Regular, Instant::now() + ms(60_000)).await.unwrap();
                work(&mut connection, 1, Work::take(20)).await.unwrap();
            }
        });
    }
    tokio::time::sleep(ms(500)).await;
    assert_eq!(busy.counts().in_use, 2);
    let mut connection = other.check_out().await.unwrap();
    assert_eq!(work(&mut connection, 3, Work::default()).await.unwrap(), 3);
    assert_eq!(busy.counts().in_use, 1, "one is enough");
    drop(connection);
    stop.cancel();
    clients.join_all().await;
    busy.end().await;
    other.end().await;
    assert_eq!(bound.open(), 0);
}

/// The seams between threads, which a paused clock on one thread cannot show.
#[test]
fn threads_share_a_pool() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    runtime.block_on(async {
        let rig = Setup::new(0, 3).start();
        let mut clients = JoinSet::new();
        for client in 0..12 {
            let pool = rig.pool.clone();
            clients.spawn(async move {
                for round in 0..300 {
                    let deadline = Instant::now() + Duration::from_secs(60);
                    let check_out = pool.check_out(Lane::Regular, deadline);
                    let mut connection = if (client + round) % 7 == 0 {
                        let mut check_out = pin!(check_out);
                        match poll!(&mut check_out) {
                            Poll::Ready(connection) => connection.unwrap(),
                            Poll::Pending => continue,
                        }
                    } else {
                        check_out.await.unwrap()
                    };
                    if (client + round) % 31 == 0 {
                        connection.discard(ConnectionClosed::Error);
                    } else {
                        assert_eq!(work(&mut connection, round, Work::default()).await.unwrap(), round);
                    }
                }
            });
        }
        clients.join_all().await;
        assert!(rig.server.peak() <= 3, "{}", rig.server.peak());
        rig.check_serves(3).await;
        rig.end().await;
    });
}

#[tokio::test(start_paused = true)]
async fn a_slow_dial_does_not_keep_a_waiter_from_a_connection_that_comes_back() {
    let setup = Setup::new(0, 2);
    setup.server.dials(|number| if number == 1 { Dial::Accept(Duration::ZERO) } else { Dial::Hang });
    let rig = setup.start();
    let held = rig.check_out().await.unwrap();
    let mut waits = pin!(wait(&rig, Lane::Regular));
    assert_pending!(waits);
    settle().await;
    assert_eq!(rig.counts().pending, 1);
    drop(held);
    drop(assert_ready!(waits).unwrap());
    rig.end().await;
}
