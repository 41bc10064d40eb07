//! Lives of a pool, in which places, owners and waiters are followed one by one: the tests of this crate make them up at
//! random, and a fuzz target makes them of bytes. Compiled for these only, and so by what both of them can name.

use std::collections::BTreeSet;

use super::*;

/// A connection: its number and its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fake {
    number: u32,
    generation: u64,
}

impl Owned for Fake {
    fn user(&self) -> UserId {
        UserId::SERVICE
    }

    fn established(&self) -> Instant {
        Instant::now()
    }

    fn last_used(&self) -> Instant {
        Instant::now()
    }
}

/// A pool, and what is known of it.
struct Life {
    pool: PoolState<Fake, ()>,
    now: Instant,
    /// Bounds in force.
    max: u32,
    in_flight: u32,
    connecting: u32,
    /// What was there when the bounds were lowered may be there still.
    most: u32,
    most_in_use: u32,
    /// Generations of the connections that are being established.
    pending: Vec<u64>,
    used: Vec<(Fake, Claim)>,
    tickets: Vec<Ticket>,
    closing: u32,
    /// Number of the last connection.
    last: u32,
    transactions: u32,
}

/// Lives by these operations. Whoever waits beside a free connection is one who may not have it.
pub(super) fn live([max, in_flight, connecting]: [u8; 3], operations: &[(u8, u8)]) {
    let [max, in_flight, connecting] = [max, in_flight, connecting].map(|bound| u32::from(bound % 8).max(1));
    let bounds = PoolBounds {
        max_pool_size: max,
        min_pool_size: max / 2,
        max_user_connections: None,
        max_connecting: connecting,
        max_in_flight: in_flight,
        discipline: QueueDiscipline::Fifo,
        contended: false,
    };
    let mut life = Life {
        pool: PoolState::new(bounds),
        now: Instant::now(),
        max,
        in_flight,
        connecting,
        most: max,
        most_in_use: in_flight.min(max),
        pending: Vec::new(),
        used: Vec::new(),
        tickets: Vec::new(),
        closing: 0,
        last: 0,
        transactions: 0,
    };
    for (operation, with) in operations {
        life.step(operation % 24, usize::from(with % 8));
        // Waiters are polled some operations later: what was handed over may be cleared meanwhile.
        if with % 8 <= 4 {
            life.look_after(operation % 3 == 0);
        }
        life.is_within_bounds();
    }
}

/// Whom a command is for, of a few of all kinds.
fn claim(index: usize) -> Claim {
    let id = u16::try_from(index % 2).expect("0 or 1");
    let tenant = Tenant { id, weight: 1 + id, max_in_flight: if id == 0 { u16::MAX } else { 2 } };
    let lanes = [Lane::Transaction, Lane::Regular, Lane::Await, Lane::Background];
    let levels = [Level::High, Level::Normal, Level::Low];
    Claim { lane: lanes[index % 4], level: levels[index % 3], locks: index > 3, tenant, user: UserId::SERVICE }
}

/// Takes the one at `index`, counted round and round.
fn take<T>(from: &mut Vec<T>, index: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(index % from.len()))
}

impl Life {
    fn step(&mut self, operation: u8, index: usize) {
        let (pool, now) = (&mut self.pool, self.now);
        match operation {
            0 => {
                pool.ready();
            }
            1 | 2 => self.pending.extend(pool.start_connecting().map(|(_, generation)| generation)),
            3 => self.pending.extend(pool.start_extra()),
            4 | 5 => {
                let Some(generation) = take(&mut self.pending, index) else { return };
                self.last += 1;
                pool.connected(Fake { number: self.last, generation }, generation, now);
            }
            6 => {
                let Some(_) = take(&mut self.pending, index) else { return };
                pool.connect_failed(UserId::SERVICE);
            }
            7 | 8 => match pool.check_out(claim(index)) {
                CheckOut::Now(connection) => self.used.push((connection, claim(index))),
                CheckOut::Wait => self.tickets.push(pool.enqueue(claim(index), now, ()).0),
                CheckOut::Unavailable(_) => {}
            },
            9 => {
                let Some((connection, claim)) = take(&mut self.used, index) else { return };
                pool.check_in(connection, connection.generation, claim.into(), now);
            }
            10 => {
                let Some((connection, claim)) = take(&mut self.used, index) else { return };
                pool.discard(connection, claim.into(), now);
            }
            11 => {
                let Some(ticket) = take(&mut self.tickets, index) else { return };
                if let Some(connection) = pool.leave(ticket) {
                    pool.check_in(connection, connection.generation, ticket.claim.into(), now);
                }
            }
            12 if index == 0 => drop(pool.clear()),
            12 if index == 1 => drop(pool.evict()),
            12 if index == 2 => pool.end_all(),
            12 if index == 3 => {
                pool.close();
                pool.reopen();
            }
            13 => drop(pool.retire(pool.bounds().min_pool_size, 3, |connection| connection.number % 2 == 0)),
            14 => {
                let Some(_) = take(&mut self.pending, index) else { return };
                pool.connect_broken(UserId::SERVICE);
                self.closing += 1;
            }
            15 => {
                pool.transaction_begun(UserId::SERVICE);
                self.transactions += 1;
            }
            16 if self.transactions > 0 => {
                pool.transaction_ended(UserId::SERVICE, now);
                self.transactions -= 1;
            }
            17 => {
                let Some(connection) = pool.borrow_available() else { return };
                self.used.push((connection, Lane::Background.into()));
                // What the pool does for itself is bound by what is idle, and by nothing else.
                self.most_in_use = self.most_in_use.max(pool.counts().in_use);
            }
            18 => {
                let (limit, before) = (count(index + 1), pool.counts().in_use);
                pool.set_limit(limit, now);
                let after = pool.counts().in_use;
                assert!(after == before || pool.busy() <= limit, "a lower one lets nobody on");
            }
            19 => {
                (self.max, self.in_flight) = (count(index + 1), count(index + 1).min(self.in_flight));
                let bounds = PoolBounds { max_pool_size: self.max, max_in_flight: self.in_flight, ..*pool.bounds() };
                pool.set_bounds(bounds, self.in_flight, now);
                let counts = pool.counts();
                assert!(
                    counts.total() - counts.closing <= self.max || counts.available == 0,
                    "what is idle goes at once"
                );
            }
            20 => self.now += Duration::from_millis(1) * count(index * index),
            _ => {}
        }
    }

    /// Looks at all who wait, and at what is to be closed.
    fn look_after(&mut self, one_is_closed: bool) {
        let (pool, used) = (&mut self.pool, &mut self.used);
        self.tickets.retain(|ticket| match pool.poll(*ticket, |()| {}) {
            Waiting::Handed(connection) => {
                used.push((connection, ticket.claim));
                false
            }
            Waiting::Queued => true,
            Waiting::Evicted(_) | Waiting::Shed => false,
        });
        self.closing += count(pool.take_discarded().len());
        if one_is_closed && self.closing > 0 {
            self.closing -= 1;
            pool.closed();
        }
        self.agrees();
        self.lets_nobody_wait();
    }

    fn is_within_bounds(&mut self) {
        let counts = self.pool.counts();
        self.most = self.max.max(self.most.min(counts.total()));
        self.most_in_use = self.in_flight.min(self.max).max(self.most_in_use.min(counts.in_use));
        assert!(counts.total() <= self.most);
        assert!(counts.in_use <= self.most_in_use);
        assert!(counts.pending <= self.connecting);
    }

    fn agrees(&self) {
        let counts = self.pool.counts();
        assert_eq!(counts.in_use, count(self.used.len()));
        assert_eq!(counts.pending, count(self.pending.len()));
        assert_eq!(counts.closing, self.closing);
        assert_eq!(self.pool.queue().len(), self.tickets.len());
        let distinct: BTreeSet<_> = self.used.iter().map(|(connection, _)| connection.number).collect();
        assert_eq!(distinct.len(), self.used.len(), "one connection has one owner");
        let bounded = |claim: &Claim| claim.tenant.id == 1 && claim.lane == Lane::Regular;
        assert!(self.used.iter().filter(|(_, claim)| bounded(claim)).count() <= 2, "the bound of a tenant");
    }

    fn lets_nobody_wait(&self) {
        let counts = self.pool.counts();
        if self.pool.status() != PoolStatus::Ready || counts.available == 0 {
            return;
        }
        let in_use = |lane: Lane| count(self.used.iter().filter(|(_, claim)| claim.lane == lane).count());
        let waits = self.tickets.iter().any(|ticket| ticket.claim.lane == Lane::Transaction);
        let any = counts.in_use < self.in_flight.min(self.max);
        assert!(!any || !waits, "a transaction waits beside a free connection");
        let in_flight = (self.pool.limit() + in_use(Lane::Await)).min(self.in_flight);
        let free = counts.in_use < in_flight;
        let is_plain = |claim: Claim| claim.lane == Lane::Regular && !claim.locks && claim.tenant.id == 0;
        let plain = self.tickets.iter().any(|ticket| is_plain(ticket.claim));
        let kept = if in_flight > 1 { self.transactions.min(1) } else { 0 };
        let others = counts.in_use - in_use(Lane::Transaction);
        assert!(!free || !plain || others + kept >= in_flight, "nobody waits beside a free connection");
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("there are few")
}
