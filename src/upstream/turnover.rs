//! Connections change hands: where a pool is full, a user that has none, or few, gets the place of one that belongs to another.
//!
//! A connection logs in once and for one user, so this costs a new one. Whoever has one keeps it for a slice of time, as a
//! processor is shared: nobody waits much longer than the slices of those before, and a slice is a multiple of what the change
//! costs, so that most of the time is for commands. What its user does not need changes hands at once; what was used last goes last; and whoever has most gives first.

use std::time::Duration;

use tokio::time::Instant;

use super::holders::{Holding, Owned};
use super::pool_state::PoolState;
use crate::admission::fair_line::Pick;
use crate::admission::{Lane, WaitQueue};
use crate::auth::UserId;

/// A user keeps a connection at least so long while it has use for it.
const SLICE: Duration = Duration::from_millis(50);

/// Longer where a new connection takes long: so many times as long ...
const SLICE_PER_CONNECT: u32 = 4;

/// ... up to this, or nobody would have a turn before the patience of those who wait is over.
const LONGEST_SLICE: Duration = Duration::from_millis(500);

/// What was idle for so long its user has no use for: longer than it takes a busy client to send its next command.
pub(super) const IDLE_GRACE: Duration = Duration::from_millis(5);

/// Whoever has waited so long is not kept waiting for those who have most, but gets what comes next.
const LONG_WAIT: Duration = Duration::from_millis(500);

impl<C: Owned, W> PoolState<C, W> {
    /// How long a user keeps a connection that others need.
    fn slice(&self) -> Duration {
        let connect = self.connect_time().get().unwrap_or_default();
        connect.saturating_mul(SLICE_PER_CONNECT).clamp(SLICE, LONGEST_SLICE)
    }

    /// The user that a further connection is for, and whether one of its transactions waits for it. With `able`, only where somebody
    /// could use it at once: what is taken from somebody else must not lie idle.
    pub(super) fn neediest(&self, able: bool) -> Option<(UserId, bool)> {
        let (counts, shares) = (self.counts(), self.shares());
        let kept_back = shares.open_transactions > 0 && shares.reach < shares.limit;
        let need = |(user, queue): (UserId, &WaitQueue<W>)| {
            let holding = self.holders().of(user);
            let transaction = has_transaction(queue);
            let most = if transaction { shares.most } else { shares.limit };
            // Those who wait beside an available one may not have any, unless for that there are too few.
            let too_few = !self.has_available(user) || kept_back;
            let in_need = too_few
                && queue.len() > holding.pending as usize
                && counts.in_use < most
                && self.own_bound(user).is_none_or(|most| holding.total() < most)
                && !self.holders().is_held_off(user);
            let may_go = in_need && self.may_go(user, queue);
            let only_own = queue.lane_len(Lane::Background) == queue.len();
            let order = (!transaction, !may_go, only_own, holding.total(), queue.oldest());
            (in_need && (may_go || !able)).then_some((order, (user, transaction)))
        };
        self.queue().users().filter_map(need).min_by_key(|(order, _)| *order).map(|(_, needy)| needy)
    }

    /// True when somebody of that user could go if there was a connection.
    fn may_go(&self, user: UserId, queue: &WaitQueue<W>) -> bool {
        let (shares, own, in_use) = (self.shares(), self.own_share(user), self.lanes_in_use());
        let may_lock = shares.allow_locks() && own.locks;
        let pick = Pick { may_lock, newest_first: false, tenants: self.tenants() };
        queue.may_go(|lane| (lane == Lane::Transaction || own.others) && shares.allow(lane, &in_use), pick)
    }

    /// How long a user keeps a connection that it does not use: longer where it is the last one for what it has open.
    fn grace(&self, connection: &C) -> Duration {
        let Holding { open, transactions, .. } = self.holders().of(connection.user());
        if transactions > 0 && open == 1 { self.slice() } else { IDLE_GRACE }
    }

    /// True when the connection that has just come back, the last one of the available, is to be closed for a user in need.
    pub(super) fn last_gives_way(&self, now: Instant) -> bool {
        let Some(connection) = self.available().last() else { return false };
        let owner = connection.user();
        if self.queue().users().all(|(user, _)| user == owner) {
            return false;
        }
        let turn_is_over = now.saturating_duration_since(connection.established()) >= self.slice();
        if !turn_is_over && self.queue().lane_len(Lane::Transaction) == 0 || !self.may_turn_over() {
            return false;
        }
        let Some((user, urgent)) = self.neediest(true).filter(|(user, _)| *user != owner) else { return false };
        let own = self.queue().of(owner);
        // As urgent on both sides is as good as on none.
        let urgent = urgent && !own.is_some_and(has_transaction);
        if urgent || !turn_is_over {
            return urgent;
        }
        if own.is_none_or(WaitQueue::is_empty) {
            return true;
        }
        let (has, other) = (self.holders().of(owner).open, self.holders().of(user).total());
        let waits_long = || {
            let oldest = self.queue().of(user).and_then(WaitQueue::oldest);
            oldest.is_some_and(|since| now.saturating_duration_since(since) >= LONG_WAIT)
        };
        has > other && (has == self.holders().most_open() || waits_long())
    }

    /// The idle connection that a user in need is to get the place of, by its index.
    pub(super) fn idle_to_give(&self, now: Instant) -> Option<usize> {
        if self.queue().is_empty() || !self.may_turn_over() {
            return None;
        }
        let (user, urgent) = self.neediest(true)?;
        let others = self.available().iter().enumerate().filter(|(_, connection)| connection.user() != user);
        let slice = self.slice();
        let given = others.filter(|(_, connection)| {
            let for_so_long = |since: Instant| now.saturating_duration_since(since);
            urgent
                || for_so_long(connection.last_used()) >= self.grace(connection)
                || for_so_long(connection.established()) >= slice && self.grace(connection) == IDLE_GRACE
        });
        // Of those who have most, the one that was used longest ago; last what an open transaction may need next.
        let order = |(_, connection): &(usize, &C)| {
            let holding = self.holders().of(connection.user());
            let spare = holding.open > 1 || holding.transactions == 0;
            (spare, holding.open, std::cmp::Reverse(connection.last_used()))
        };
        given.max_by_key(order).map(|(index, _)| index)
    }

    /// True while somebody waits for a place that an idle connection of another user has: it is to be looked at again soon.
    pub(super) fn awaits_turnover(&self) -> bool {
        !self.available().is_empty()
            && self.may_turn_over()
            && self.neediest(true).is_some_and(|(user, _)| self.available().iter().any(|it| it.user() != user))
    }
}

fn has_transaction<W>(queue: &WaitQueue<W>) -> bool {
    queue.lane_len(Lane::Transaction) > 0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::admission::{Claim, Ticket};
    use crate::config::QueueDiscipline;
    use crate::upstream::pool_state::{CheckOut, PoolBounds, Waiting};

    const MS: Duration = Duration::from_millis(1);

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Fake {
        user: UserId,
        established: Instant,
        last_used: Instant,
        generation: u64,
        /// What it was taken for last.
        lane: Lane,
    }

    impl Fake {
        fn new(user: UserId, generation: u64, now: Instant) -> Self {
            Self { user, established: now, last_used: now, generation, lane: Lane::Background }
        }
    }

    impl Owned for Fake {
        fn user(&self) -> UserId {
            self.user
        }

        fn established(&self) -> Instant {
            self.established
        }

        fn last_used(&self) -> Instant {
            self.last_used
        }
    }

    fn bounds(max_pool_size: u32) -> PoolBounds {
        PoolBounds {
            max_pool_size,
            min_pool_size: 0,
            max_user_connections: None,
            max_connecting: 2,
            max_in_flight: max_pool_size,
            discipline: QueueDiscipline::Fifo,
            contended: false,
        }
    }

    fn of(user: u32) -> Claim {
        Claim { user: UserId::numbered(user), ..Lane::Regular.into() }
    }

    /// A pool, its clock, and what its owner has to do for it: everything at once.
    struct Model {
        pool: PoolState<Fake, u32>,
        now: Instant,
    }

    impl Model {
        fn new(bounds: PoolBounds) -> Self {
            let mut pool = PoolState::new(bounds);
            pool.ready();
            Self { pool, now: Instant::now() }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.maintain();
        }

        /// Closes, gives up and establishes until there is nothing more to do.
        fn maintain(&mut self) {
            for round in 0.. {
                assert!(round < 1_000, "connections change hands for nothing");
                let discarded = self.pool.take_discarded();
                discarded.iter().for_each(|_| self.pool.closed());
                let given = self.pool.turn_over(self.now);
                if let Some((user, generation)) = self.pool.start_connecting() {
                    let fake = Fake::new(user, generation, self.now);
                    self.pool.connected(fake, generation, self.now);
                } else if discarded.is_empty() && given == 0 {
                    break;
                }
            }
        }

        fn wait(&mut self, claim: Claim) -> Ticket {
            let ticket = self.pool.enqueue(claim, self.now, 0).0;
            self.maintain();
            ticket
        }

        fn take(&mut self, ticket: Ticket) -> Option<Fake> {
            match self.pool.poll(ticket, |_| {}) {
                Waiting::Handed(mut connection) => {
                    connection.lane = ticket.claim.lane;
                    assert_eq!(connection.user, ticket.claim.user, "nobody gets another user's connection");
                    Some(connection)
                }
                _ => None,
            }
        }

        fn get(&mut self, claim: Claim) -> Fake {
            match self.pool.check_out(claim) {
                CheckOut::Now(connection) => Fake { lane: claim.lane, ..connection },
                _ => {
                    let ticket = self.wait(claim);
                    self.take(ticket).unwrap()
                }
            }
        }

        fn back(&mut self, mut connection: Fake) {
            connection.last_used = self.now;
            let (generation, claim) = (connection.generation, Claim { lane: connection.lane, ..of(0) });
            self.pool.check_in(connection, generation, claim.into(), self.now);
            self.maintain();
        }

        fn open(&self, user: u32) -> u32 {
            self.pool.holders().of(UserId::numbered(user)).open
        }
    }

    #[test]
    fn a_user_waits_for_a_connection_of_its_own_whatever_others_leave_idle() {
        let mut model = Model::new(bounds(2));
        let first = model.get(of(1));
        model.back(first);
        let other = model.get(of(2));
        assert_eq!((other.user, model.open(1), model.open(2)), (UserId::numbered(2), 1, 1));
    }

    #[test]
    fn what_is_idle_changes_hands_after_a_moment() {
        let mut model = Model::new(bounds(1));
        let first = model.get(of(1));
        model.back(first);
        let ticket = model.wait(of(2));
        assert!(model.take(ticket).is_none() && model.pool.awaits_turnover(), "its user may be about to use it");
        model.pass(IDLE_GRACE);
        assert!(model.take(ticket).is_some());
        assert_eq!((model.open(1), model.open(2)), (0, 1));
        assert!(!model.pool.awaits_turnover());
    }

    #[test]
    fn of_idle_ones_that_of_whoever_has_most_and_has_used_it_longest_ago_goes() {
        let mut model = Model::new(bounds(3));
        let all = [1, 1, 2].map(|user| model.get(of(user)));
        for connection in all {
            model.pass(MS);
            model.back(connection);
        }
        model.pass(SLICE);
        let connection = model.get(of(3));
        assert_eq!([1, 2, 3].map(|user| model.open(user)), [1, 1, 1]);
        model.back(connection);
        model.pass(IDLE_GRACE);
        let _connection = model.get(of(4));
        assert_eq!([1, 2, 3, 4].map(|user| model.open(user)), [0, 1, 1, 1], "the one of user 1 was used longest ago");
    }

    #[test]
    fn a_busy_user_keeps_its_connection_for_a_slice_and_gives_it_up_then() {
        let mut model = Model::new(bounds(1));
        let mut connection = model.get(of(1));
        let (own, other) = (model.wait(of(1)), model.wait(of(2)));
        model.pass(SLICE - MS);
        model.back(connection);
        connection = model.take(own).unwrap();
        assert!(model.take(other).is_none());
        let own = model.wait(of(1));
        model.pass(MS);
        model.back(connection);
        connection = model.take(other).unwrap();
        model.pass(SLICE);
        model.back(connection);
        assert!(model.take(own).is_some(), "and it is the first one's turn again");
    }

    #[test]
    fn a_slice_is_longer_where_connections_take_long() {
        let model = |connect: Duration| {
            let mut model = Model::new(bounds(1));
            model.pool.took_to_connect(connect);
            model.pool.slice()
        };
        assert_eq!([1, 12, 30, 10_000].map(|ms| model(MS * ms)), [50, 50, 120, 500].map(|ms| MS * ms));
    }

    #[test]
    fn whoever_has_most_gives_first_unless_that_takes_long() {
        let mut model = Model::new(bounds(4));
        let mut of_one: Vec<Fake> = (0..3).map(|_| model.get(of(1))).collect();
        let of_two = model.get(of(2));
        let waiting = [1, 2, 3].map(|user| model.wait(of(user)));
        model.pass(SLICE);
        model.back(of_two);
        let of_two = model.take(waiting[1]).expect("it has less than others");
        model.back(of_one.pop().unwrap());
        let of_three = model.take(waiting[2]).unwrap();
        assert_eq!([1, 2, 3].map(|user| model.open(user)), [2, 1, 1]);
        // The others of user 1 are in use for ever.
        let later = model.wait(of(4));
        model.pass(MS);
        let _also = (model.wait(of(2)), model.wait(of(3)));
        model.pass(LONG_WAIT - 2 * MS);
        model.back(of_two);
        assert!(model.take(later).is_none());
        model.pass(MS);
        model.back(of_three);
        assert!(model.take(later).is_some());
    }

    #[test]
    fn a_transaction_does_not_wait_for_a_slice_to_end() {
        let mut model = Model::new(bounds(2));
        let busy = [model.get(of(1)), model.get(of(1))];
        let _own = [model.wait(of(1)), model.wait(of(1))];
        let statement = model.wait(Claim { lane: Lane::Transaction, ..of(2) });
        let [first, _second] = busy;
        model.back(first);
        assert!(model.take(statement).is_some());
    }

    #[test]
    fn no_more_is_given_up_than_can_be_established_at_once() {
        let mut model = Model::new(PoolBounds { max_connecting: 1, ..bounds(2) });
        let busy = [model.get(of(1)), model.get(of(1))];
        let _waiting = [model.wait(of(2)), model.wait(of(2))];
        model.pass(SLICE);
        for connection in busy {
            let generation = connection.generation;
            model.pool.check_in(connection, generation, of(1).into(), model.now);
        }
        assert_eq!((model.pool.take_discarded().len(), model.open(1)), (1, 1));
    }

    #[test]
    fn a_user_has_no_more_than_its_own_bound() {
        let mut model = Model::new(PoolBounds { max_user_connections: Some(2), ..bounds(5) });
        let _two = [model.get(of(1)), model.get(of(1))];
        let ticket = model.wait(of(1));
        model.pass(10 * LONG_WAIT);
        assert!(model.take(ticket).is_none());
        let _other = model.get(of(2));
        assert_eq!([1, 2].map(|user| model.open(user)), [2, 1]);
    }

    #[test]
    fn nothing_is_taken_for_whoever_could_not_use_it() {
        let mut model = Model::new(bounds(2));
        let (idle, busy) = (model.get(of(1)), model.get(of(2)));
        model.pool.transaction_begun(UserId::numbered(1));
        model.back(idle);
        // One of both is kept for the transaction, so that nobody but that may go.
        let barred = [model.wait(of(2)), model.wait(of(3))];
        for _ in 0..20 {
            model.pass(SLICE);
        }
        assert_eq!([1, 2, 3].map(|user| model.open(user)), [1, 1, 0]);
        assert!(!model.pool.awaits_turnover());
        model.pool.transaction_ended(UserId::numbered(1), model.now);
        model.pass(MS);
        assert!(model.take(barred[1]).is_some(), "it has none at all");
        model.back(busy);
        assert!(model.take(barred[0]).is_some());
    }

    #[test]
    fn the_last_connection_of_an_open_transaction_goes_last() {
        let mut model = Model::new(bounds(2));
        let (first, second) = (model.get(of(1)), model.get(of(2)));
        model.pool.transaction_begun(UserId::numbered(1));
        model.back(first);
        model.pass(MS);
        model.back(second);
        model.pass(IDLE_GRACE);
        let _third = model.get(of(3));
        assert_eq!([1, 2, 3].map(|user| model.open(user)), [1, 0, 1]);
    }

    #[test]
    fn a_transaction_can_go_on_within_its_users_own_bound() {
        for most in [1, 2] {
            let mut model = Model::new(PoolBounds { max_user_connections: Some(most), ..bounds(5) });
            let first = model.get(of(1));
            model.pool.transaction_begun(UserId::numbered(1));
            model.back(first);
            let write = Claim { locks: true, ..of(1) };
            if most == 1 {
                assert_eq!(
                    model.pool.check_out(write),
                    CheckOut::Wait,
                    "it might wait for the transaction, and keep it waiting"
                );
                let barred = model.wait(write);
                let read = model.get(of(1));
                model.back(read);
                assert!(model.take(barred).is_none(), "nor when something has come back");
            } else {
                let _write = model.get(write);
                let another = model.wait(of(1));
                assert!(model.take(another).is_none(), "the other one is for the transaction");
            }
            let statement = model.get(Claim { lane: Lane::Transaction, ..of(1) });
            model.back(statement);
            let _other_user = model.get(Claim { locks: true, ..of(2) });
        }
    }

    #[test]
    fn a_user_that_is_held_off_takes_nothing_from_others() {
        let mut model = Model::new(bounds(1));
        let idle = model.get(of(1));
        model.back(idle);
        model.pool.hold_off(UserId::numbered(2), model.now + 10 * SLICE);
        let ticket = model.wait(of(2));
        model.pass(9 * SLICE);
        assert_eq!(model.open(1), 1);
        model.pass(SLICE);
        model.pool.set_may_connect(true, model.now);
        model.maintain();
        assert!(model.take(ticket).is_some());
    }

    #[test]
    fn nothing_is_given_up_for_what_cannot_be_had() {
        let mut model = Model::new(bounds(1));
        let idle = model.get(of(1));
        model.back(idle);
        model.pool.set_may_connect(false, model.now);
        let _ticket = model.wait(of(2));
        model.pass(10 * SLICE);
        assert_eq!(model.open(1), 1);
    }

    #[test]
    fn the_waiters_of_one_user_are_evicted_and_nobody_else() {
        let mut model = Model::new(bounds(1));
        let _busy = model.get(of(1));
        let (gone, stays) = (model.wait(of(2)), model.wait(of(3)));
        assert_eq!(model.pool.evict_user(UserId::numbered(2)).len(), 1);
        assert!(matches!(model.pool.poll(gone, |_| {}), Waiting::Evicted(_)));
        assert_eq!(model.pool.poll(stays, |_| {}), Waiting::Queued);
    }

    #[test]
    fn of_users_who_all_have_an_idle_one_transactions_go_first_and_then_who_has_waited_longest() {
        let mut model = Model::new(PoolBounds { max_in_flight: 1, ..bounds(3) });
        for user in [1, 2, 3] {
            let connection = model.get(of(user));
            model.back(connection);
        }
        let mut connection = model.get(of(3));
        let [longest, shorter] = [2, 1].map(|user| {
            model.pass(MS);
            model.wait(of(user))
        });
        let statement = model.wait(Claim { lane: Lane::Transaction, ..of(1) });
        for next in [statement, longest, shorter] {
            model.back(connection);
            connection = model.take(next).expect("it is its turn");
        }
    }

    #[test]
    fn a_bound_over_all_pools_is_a_reason_to_give_one_up_until_a_place_is_free() {
        let mut model = Model::new(bounds(9));
        let idle = [1; 4].map(|user| model.get(of(user)));
        idle.into_iter().for_each(|connection| model.back(connection));
        model.now += IDLE_GRACE;
        for _ in 0..4 {
            model.pool.enqueue(of(2), model.now, 0);
        }
        let now = model.now;
        assert_eq!((model.pool.turn_over(now), model.pool.awaits_turnover()), (0, false), "there is room");
        model.pool.set_held_up(true);
        assert!(model.pool.awaits_turnover());
        assert_eq!([(); 3].map(|()| model.pool.turn_over(now)), [1, 1, 0], "no more than can be established at once");
        model.pool.closed();
        assert_eq!(model.pool.turn_over(now), 0, "there may be a place again");
        model.pool.set_held_up(true);
        assert_eq!([(); 2].map(|()| model.pool.turn_over(now)), [1, 0]);
        assert_eq!(model.open(1), 1);
    }

    #[test]
    fn ten_times_as_many_busy_users_as_connections_all_get_their_turn() {
        let mut model = Model::new(bounds(4));
        let users = 40;
        let mut tickets: Vec<Ticket> = (0..users * 3).map(|number| model.wait(of(1 + number % users))).collect();
        let (mut served, mut longest) = (BTreeMap::<UserId, u32>::new(), BTreeMap::<UserId, Instant>::new());
        let (mut used, mut gap) = (Vec::<Fake>::new(), Duration::ZERO);
        for _ in 0..4_000 {
            model.pass(MS);
            for connection in std::mem::take(&mut used) {
                model.back(connection);
            }
            for ticket in std::mem::take(&mut tickets) {
                let Some(connection) = model.take(ticket) else {
                    tickets.push(ticket);
                    continue;
                };
                let user = connection.user;
                *served.entry(user).or_default() += 1;
                let last = longest.insert(user, model.now).unwrap_or(model.now);
                gap = gap.max(model.now - last);
                used.push(connection);
                let again = model.pool.enqueue(ticket.claim, model.now, 0).0;
                tickets.push(again);
            }
        }
        let turns = users / 4 + 2;
        assert_eq!(served.len(), users as usize);
        assert!(gap <= SLICE * turns + LONG_WAIT, "{gap:?}");
        let (least, most) = (served.values().min().unwrap(), served.values().max().unwrap());
        assert!(most <= &(2 * least), "{least} to {most}");
    }

    proptest! {
        /// Random lives of a pool of several users: the bounds hold, what a user has is what is counted, nobody gets what is
        /// another's, and whoever can be served is served once all others are idle for a moment.
        #[test]
        fn the_bounds_hold_and_nobody_is_left_out(
            max in 1_u32..5, own in 1_u32..5, operations in prop::collection::vec((0_u8..8, 0_u32..5, 0_usize..8), 1..200)
        ) {
            let mut model = Model::new(PoolBounds { max_user_connections: Some(own), ..bounds(max) });
            let (mut used, mut tickets, mut pending) = (Vec::<Fake>::new(), Vec::<Ticket>::new(), Vec::<(UserId, u64)>::new());
            for (operation, user, index) in operations {
                let lane = if index == 7 { Lane::Transaction } else { Lane::Regular };
                match operation {
                    0 | 1 => match model.pool.check_out(Claim { lane, ..of(user) }) {
                        CheckOut::Now(connection) => used.push(Fake { lane, ..connection }),
                        _ => tickets.push(model.pool.enqueue(Claim { lane, ..of(user) }, model.now, 0).0),
                    },
                    2 if !used.is_empty() => {
                        let mut connection = used.swap_remove(index % used.len());
                        connection.last_used = model.now;
                        let (generation, claim) = (connection.generation, Claim { lane: connection.lane, ..of(0) });
                        model.pool.check_in(connection, generation, claim.into(), model.now);
                    }
                    3 => drop(model.pool.turn_over(model.now)),
                    4 => pending.extend(model.pool.start_connecting()),
                    5 if !pending.is_empty() => {
                        let (user, generation) = pending.swap_remove(index % pending.len());
                        let fake = Fake::new(user, generation, model.now);
                        model.pool.connected(fake, generation, model.now);
                    }
                    6 => model.pool.take_discarded().iter().for_each(|_| model.pool.closed()),
                    _ => model.now += MS * u32::try_from(index).unwrap() * 10,
                }
                let mut left = Vec::new();
                for ticket in tickets {
                    match model.take(ticket) {
                        Some(connection) => used.push(connection),
                        None => left.push(ticket),
                    }
                }
                tickets = left;
                let counts = model.pool.counts();
                prop_assert!(counts.total() <= max);
                for (user, Holding { open, pending: connecting, .. }) in model.pool.holders().all() {
                    prop_assert!(user == UserId::SERVICE || open + connecting <= own, "{user} has {open} and {connecting}");
                    let idle = model.pool.available().iter().filter(|it| it.user() == user).count();
                    let busy = used.iter().filter(|it| it.user == user).count();
                    prop_assert_eq!(open as usize, idle + busy);
                    prop_assert_eq!(connecting as usize, pending.iter().filter(|(of, _)| *of == user).count());
                }
            }
            // All that is under way ends, and each who waits is served in turn.
            for (user, generation) in pending {
                let fake = Fake::new(user, generation, model.now);
                model.pool.connected(fake, generation, model.now);
            }
            for _ in 0..100 + tickets.len() {
                for connection in std::mem::take(&mut used) {
                    model.back(connection);
                }
                model.pass(SLICE);
                tickets.retain(|ticket| match model.take(*ticket) {
                    Some(connection) => { used.push(connection); false }
                    None => true,
                });
            }
            prop_assert!(tickets.is_empty(), "{} were left out", tickets.len());
        }
    }
}
