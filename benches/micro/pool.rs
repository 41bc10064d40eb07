//! Taking a connection and giving it back.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use divan::{Bencher, black_box};
use mongomux::admission::Lane;
use mongomux::upstream::{CheckOutError, Pool, PooledConnection};
use tokio::time::Instant;

use crate::rig::{CONNECTIONS, Rig};

/// In line for a connection.
const WAITERS: usize = 64;

static SHARED: LazyLock<(Rig, Pool)> = LazyLock::new(|| {
    let rig = Rig::new();
    let pool = rig.pool();
    (rig, pool)
});

/// One of idle connections, by one thread and by several at once.
#[divan::bench(threads = [1, 2, 4])]
fn check_out_and_in(bencher: Bencher<'_, '_>) {
    let (_, pool) = &*SHARED;
    let now = Instant::now();
    bencher.bench(|| {
        let connection = pool.try_check_out(black_box(Lane::Regular), now).expect("a pool that is ready");
        assert!(connection.is_some(), "there are more connections than threads");
    });
}

/// A connection comes back and goes to the first of many who wait, and another one begins to.
#[divan::bench]
fn hand_over(bencher: Bencher<'_, '_>) {
    let rig = Rig::new();
    let pool = rig.pool();
    let deadline = Instant::now() + Duration::from_secs(3_600);
    let waiter = || Box::pin(pool.check_out(Lane::Regular, deadline));
    let held: Vec<_> = (0..CONNECTIONS).map(|_| taken(poll(&mut waiter()))).collect();
    let mut line: VecDeque<_> = (0..WAITERS).map(|_| waiter()).collect();
    for waiter in &mut line {
        assert!(poll(waiter).is_pending(), "all connections are taken");
    }
    let mut held = VecDeque::from(held);
    bencher.with_inputs(waiter).bench_local_values(|mut newcomer| {
        assert!(poll(&mut newcomer).is_pending(), "others were first");
        line.push_back(newcomer);
        drop(held.pop_front());
        let first = line.pop_front();
        held.push_back(taken(poll(&mut first.expect("many"))));
    });
}

fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn taken(polled: Poll<Result<PooledConnection, CheckOutError>>) -> PooledConnection {
    let Poll::Ready(Ok(connection)) = polled else { panic!("no connection although it is its turn") };
    connection
}
