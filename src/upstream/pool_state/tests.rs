use proptest::prelude::*;

use super::*;

const REGULAR: Claim =
    Claim { lane: Lane::Regular, level: Level::Normal, locks: false, tenant: Tenant::COMMON, user: UserId::SERVICE };

const BOUNDS: PoolBounds = PoolBounds {
    max_pool_size: 4,
    min_pool_size: 1,
    max_user_connections: None,
    max_connecting: 2,
    max_in_flight: 4,
    discipline: QueueDiscipline::Fifo,
    contended: false,
};

/// A connection of the model: its number and its generation.
type Fake = (u32, u64);

fn ready_pool(connections: u32) -> PoolState<Fake, u32> {
    let mut pool = PoolState::new(BOUNDS);
    pool.ready();
    for number in 0..connections {
        let generation = pool.start_extra().unwrap();
        assert!(pool.connected((number, generation), generation, Instant::now()).is_empty());
    }
    pool
}

fn back(pool: &mut PoolState<Fake, u32>, connection: Fake) -> Vec<u32> {
    pool.check_in(connection, 0, REGULAR.into(), Instant::now()).into_vec()
}

#[test]
fn the_connection_used_last_is_used_next() {
    let mut pool = ready_pool(2);
    let CheckOut::Now(last) = pool.check_out(REGULAR) else { panic!("two are available") };
    assert_eq!(last.0, 1);
    back(&mut pool, last);
    assert_eq!(pool.check_out(REGULAR), CheckOut::Now((1, 0)));
}

#[test]
fn newcomers_do_not_overtake_who_waits() {
    let mut pool = ready_pool(1);
    let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("one is available") };
    assert_eq!(pool.check_out(REGULAR), CheckOut::Wait);
    let ticket = pool.enqueue(REGULAR, Instant::now(), 7).0;
    assert_eq!(back(&mut pool, connection), [7]);
    assert_eq!(pool.check_out(REGULAR), CheckOut::Wait, "the connection is promised");
    assert_eq!(pool.poll(ticket, |_| {}), Waiting::Handed((0, 0)));
}

#[test]
fn a_waiter_that_leaves_passes_its_connection_on() {
    let mut pool = ready_pool(1);
    let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("one is available") };
    let (first, second) = (pool.enqueue(REGULAR, Instant::now(), 1).0, pool.enqueue(REGULAR, Instant::now(), 2).0);
    assert_eq!(back(&mut pool, connection), [1]);
    let orphan = pool.leave(first).unwrap();
    assert_eq!(back(&mut pool, orphan), [2]);
    assert_eq!(pool.poll(second, |_| {}), Waiting::Handed((0, 0)));
}

#[test]
fn how_long_the_queue_takes_follows_from_how_long_commands_take() {
    let (mut pool, now) = (ready_pool(1), Instant::now());
    let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("one is available") };
    (0..8).for_each(|number| drop(pool.enqueue(REGULAR, now, number)));
    assert_eq!(pool.drains_in(), None, "nothing is known");
    let held = Held { claim: REGULAR, time: Some(Duration::from_millis(100)) };
    pool.check_in(connection, 0, held, now);
    pool.enqueue(REGULAR, now, 8);
    assert_eq!(pool.drains_in(), Some(Duration::from_millis(200)), "eight wait for four connections");
}

#[test]
fn a_queue_that_stands_refuses_who_has_waited_too_long_and_takes_the_newest() {
    let ms = Duration::from_millis;
    let discipline = QueueDiscipline::Codel { target: ms(20), interval: ms(500) };
    let mut pool: PoolState<Fake, u32> = PoolState::new(PoolBounds { discipline, ..BOUNDS });
    pool.ready();
    let (mut now, generation) = (Instant::now(), pool.start_extra().unwrap());
    assert!(pool.connected((0, generation), generation, now).is_empty());
    let CheckOut::Now(mut connection) = pool.check_out(REGULAR) else { panic!("one is available") };
    let (mut waits, mut refused, mut served) = (Vec::new(), Vec::new(), Vec::new());
    // Twice as many come as can go.
    for number in 0..600 {
        let (ticket, late) = pool.enqueue(REGULAR, now, number);
        refused.extend(late);
        waits.push((ticket, number));
        now += ms(5);
        if number % 2 == 1 {
            let mut woken = pool.check_in(connection, generation, REGULAR.into(), now).into_vec();
            let next = woken.pop().unwrap();
            refused.extend(woken);
            let (ticket, _) = waits[next as usize];
            let Waiting::Handed(handed) = pool.poll(ticket, |_| {}) else { panic!("{next} was woken") };
            (connection, _) = (handed, served.push(next));
        }
    }
    assert_eq!(served[..99], (0..99).collect::<Vec<_>>(), "in order as long as it may be a burst");
    assert_eq!(served[110..], (221..600).step_by(2).collect::<Vec<_>>(), "then the newest");
    assert!(refused.len() > 250 && refused.is_sorted(), "{refused:?}");
    assert_eq!(pool.queue().len() + refused.len() + served.len(), 600);
    assert_eq!(pool.poll(waits[refused[0] as usize].0, |_| {}), Waiting::Shed);
    assert_eq!(pool.leave(waits[refused[1] as usize].0), None);
    assert_eq!(pool.shed.len(), refused.len() - 2, "whoever knows is forgotten");
    let (held, now) = (Held { claim: REGULAR, time: Some(ms(1_000)) }, Instant::now());
    pool.check_in(connection, generation, held, now);
    (0..8).for_each(|number| drop(pool.enqueue(REGULAR, now, number)));
    assert_eq!(pool.drains_in(), Some(ms(40)), "nobody waits longer");
}

#[test]
fn who_waits_since_before_the_last_look_is_named_once() {
    let mut pool = ready_pool(0);
    let join = |pool: &mut PoolState<Fake, u32>, waiter| {
        pool.enqueue(REGULAR, Instant::now(), waiter);
        pool.begin_patrol()
    };
    assert!(join(&mut pool, 1) && pool.is_patrolled());
    assert!(!join(&mut pool, 2), "looks are made already");
    assert_eq!(pool.patrol(), [1], "the other one has come since");
    assert!(!join(&mut pool, 3));
    assert_eq!([pool.patrol(), pool.patrol(), pool.patrol()], [vec![2], vec![3], vec![]]);
    assert_eq!(pool.waiting(), [1, 2, 3]);
    pool.evict();
    assert!(pool.patrol().is_empty() && !pool.is_patrolled(), "nobody waits");
    assert!(join(&mut pool, 4));
}

#[test]
fn clearing_makes_stale_pauses_and_evicts() {
    let mut pool = ready_pool(2);
    let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("two are available") };
    let CheckOut::Now(other) = pool.check_out(REGULAR) else { panic!("two are available") };
    let ticket = pool.enqueue(REGULAR, Instant::now(), 9).0;
    let behind = pool.enqueue(REGULAR, Instant::now(), 8).0;
    assert_eq!(back(&mut pool, other), [9]);
    assert_eq!(pool.clear(), [8]);
    assert_eq!(pool.poll(ticket, |_| {}), Waiting::Evicted(PoolStatus::Paused), "handed over, and not taken yet");
    assert_eq!(pool.poll(behind, |_| {}), Waiting::Evicted(PoolStatus::Paused));
    assert_eq!(pool.check_out(REGULAR), CheckOut::Unavailable(PoolStatus::Paused));
    assert_eq!(pool.rejoin(ticket, Instant::now(), Instant::now(), 9), Err(PoolStatus::Paused));
    assert!(back(&mut pool, connection).is_empty());
    assert_eq!(pool.take_discarded(), [(0, 0), (1, 0)]);
    assert_eq!(pool.counts(), PoolCounts { closing: 2, ..PoolCounts::default() });
}

#[test]
fn establishment_follows_demand_within_its_pace() {
    let mut pool: PoolState<Fake, u32> = PoolState::new(BOUNDS);
    assert_eq!(pool.start_connecting(), None, "a paused pool asks for nothing");
    pool.ready();
    assert!(pool.start_connecting().is_some(), "the minimum");
    assert_eq!(pool.start_connecting(), None);
    for waiter in 0..10 {
        pool.enqueue(REGULAR, Instant::now(), waiter);
    }
    assert!(pool.start_connecting().is_some());
    assert_eq!(pool.start_connecting(), None, "two at once");
}

#[test]
fn nothing_is_established_for_whoever_waits_beside_an_idle_connection() {
    let mut pool = ready_pool(2);
    let claim = Claim { tenant: Tenant { id: 1, weight: 1, max_in_flight: 1 }, ..REGULAR };
    assert!(matches!(pool.check_out(claim), CheckOut::Now(_)));
    assert_eq!(pool.check_out(claim), CheckOut::Wait, "the bound of its tenant");
    pool.enqueue(claim, Instant::now(), 1);
    assert!(pool.has_available(UserId::SERVICE) && !pool.has_available(UserId::numbered(1)));
    assert_eq!(pool.start_connecting(), None);
}

#[test]
fn a_higher_limit_hands_over_and_a_lower_one_lets_nobody_on_but_takes_nothing() {
    let mut pool = ready_pool(3);
    let now = Instant::now();
    assert!(pool.set_limit(1, now).is_empty());
    let CheckOut::Now(first) = pool.check_out(REGULAR) else { panic!("one may be in use") };
    assert_eq!(pool.check_out(REGULAR), CheckOut::Wait);
    let tickets = [1, 2].map(|waiter| pool.enqueue(REGULAR, now, waiter).0);
    assert_eq!(pool.set_limit(2, now).into_vec(), [1]);
    assert!(matches!(pool.poll(tickets[0], |_| {}), Waiting::Handed(_)));
    assert!(pool.set_limit(1, now).is_empty());
    assert_eq!((pool.busy(), pool.limit()), (2, 1));
    assert!(back(&mut pool, first).is_empty(), "one is in use still");
    assert_eq!(pool.set_limit(100, now).into_vec(), [2]);
    assert_eq!(pool.limit(), BOUNDS.max_in_flight);
}

#[test]
fn who_waits_for_data_does_not_count_against_the_limit() {
    let mut pool = ready_pool(3);
    assert!(pool.set_limit(1, Instant::now()).is_empty());
    assert!(matches!(pool.check_out(Lane::Await.into()), CheckOut::Now(_)));
    assert!(matches!(pool.check_out(REGULAR), CheckOut::Now(_)), "a server is not busy with who waits");
    assert_eq!((pool.busy(), pool.check_out(REGULAR)), (1, CheckOut::Wait));
}

#[test]
fn another_discipline_is_in_force_at_once() {
    let (mut pool, start) = (ready_pool(0), Instant::now());
    let at = |millis| start + Duration::from_millis(millis);
    let discipline = QueueDiscipline::Codel { target: Duration::from_millis(20), interval: Duration::from_millis(500) };
    let refused = |pool: &mut PoolState<Fake, u32>, millis| pool.enqueue(REGULAR, at(millis), 0).1.len();
    assert_eq!([0, 600, 1_200].map(|millis| refused(&mut pool, millis)), [0; 3], "in order of arrival nobody is");
    pool.set_bounds(PoolBounds { discipline, ..BOUNDS }, 4, at(1_200));
    refused(&mut pool, 1_300);
    // Other bounds with the same discipline do not begin anew to look at the queue.
    pool.set_bounds(PoolBounds { discipline, max_pool_size: 3, ..BOUNDS }, 4, at(1_300));
    assert_eq!(refused(&mut pool, 1_701), 4, "whoever has waited longer than 40 ms");
    assert_eq!([1_741, 1_742].map(|millis| refused(&mut pool, millis)), [0, 1], "not as long");
    pool.set_bounds(BOUNDS, 4, at(1_742));
    assert_eq!([1_800, 2_400, 3_000].map(|millis| refused(&mut pool, millis)), [0; 3]);
}

#[test]
fn a_smaller_pool_ends_what_was_used_longest_ago_and_what_is_in_use_when_it_is_back() {
    let (mut pool, now) = (ready_pool(4), Instant::now());
    let CheckOut::Now(busy) = pool.check_out(REGULAR) else { panic!("four are available") };
    assert!(!pool.is_over_bound());
    assert!(pool.set_bounds(PoolBounds { max_pool_size: 2, ..BOUNDS }, 9, now).is_empty());
    assert_eq!((pool.available(), pool.limit()), (&[(2, 0)][..], 4));
    assert_eq!(pool.take_discarded(), [(0, 0), (1, 0)]);
    pool.set_bounds(PoolBounds { max_pool_size: 0, ..BOUNDS }, 1, now);
    assert!(pool.is_over_bound() && pool.available().is_empty());
    assert_eq!(pool.limit(), 1);
    back(&mut pool, busy);
    assert_eq!(pool.take_discarded(), [(2, 0), (3, 0)]);
    assert!(!pool.is_over_bound(), "what is closing is on its way out");
    assert_eq!(pool.counts(), PoolCounts { closing: 4, ..PoolCounts::default() });
}

#[test]
fn when_all_is_to_end_nobody_who_waits_is_evicted() {
    let (mut pool, now) = (ready_pool(2), Instant::now());
    let CheckOut::Now(busy) = pool.check_out(REGULAR) else { panic!("two are available") };
    let pending = pool.start_extra().unwrap();
    pool.end_all();
    assert_eq!((pool.generation(), pool.available().len()), (1, 0));
    let ticket = pool.enqueue(REGULAR, now, 5).0;
    assert!(back(&mut pool, busy).is_empty() && pool.connected((7, pending), pending, now).is_empty());
    assert_eq!(pool.take_discarded(), [(0, 0), (1, 0), (7, 0)]);
    assert_eq!(pool.poll(ticket, |_| {}), Waiting::Queued);
    pool.end_all();
    assert_eq!(pool.generation(), 2, "no two are the same");
}

#[test]
fn whoever_rejoins_is_served_at_once_if_something_is_there() {
    let (mut pool, now) = (ready_pool(1), Instant::now());
    let CheckOut::Now(connection) = pool.check_out(REGULAR) else { panic!("one is available") };
    let [first, second] = [1, 2].map(|waiter| pool.enqueue(REGULAR, now, waiter).0);
    assert_eq!(back(&mut pool, connection), [1]);
    let Waiting::Handed(dead) = pool.poll(first, |_| {}) else { panic!("it was woken") };
    assert!(pool.rejoin(first, now, now, 3).unwrap().is_empty(), "nothing is free");
    assert_eq!(back(&mut pool, dead), [3], "before the second");
    assert_eq!(pool.poll(second, |waiter| *waiter = 4), Waiting::Queued);
    assert_eq!(pool.waiting(), [4], "its waker was renewed");
    let connection = pool.leave(first).unwrap();
    assert_eq!(pool.leave(second), None);
    back(&mut pool, connection);
    assert_eq!(pool.rejoin(first, now, now, 6).unwrap().into_vec(), [6]);
}

#[test]
fn a_pool_is_ready_once_and_is_opened_again_only_while_something_of_it_is_left() {
    let mut pool: PoolState<Fake, u32> = PoolState::new(BOUNDS);
    assert_eq!(pool.status(), PoolStatus::Paused);
    assert!(pool.ready() && !pool.ready());
    assert_eq!(pool.status(), PoolStatus::Ready);
    assert!(!pool.reopen(), "it is open");
    let generation = pool.start_extra().unwrap();
    pool.connected((0, generation), generation, Instant::now());
    let CheckOut::Now(busy) = pool.check_out(REGULAR) else { panic!("one is available") };
    pool.enqueue(REGULAR, Instant::now(), 3);
    assert_eq!((pool.close(), pool.generation()), (vec![3], 1));
    assert!(!pool.ready() && pool.start_extra().is_none() && pool.start_recheck().is_none(), "closed is for good");
    assert_eq!(pool.check_out(REGULAR), CheckOut::Unavailable(PoolStatus::Closed));
    assert!(pool.reopen() && pool.status() == PoolStatus::Paused);
    back(&mut pool, busy);
    assert_eq!(pool.take_discarded(), [(0, 0)], "what is from before is stale");
    pool.closed();
    pool.close();
    assert!(!pool.reopen(), "nobody looks after it any more");
}

#[test]
fn clearing_a_closed_pool_leaves_it_closed_and_each_time_makes_stale() {
    let mut pool = ready_pool(1);
    pool.clear();
    pool.clear();
    assert_eq!((pool.generation(), pool.status()), (2, PoolStatus::Paused));
    pool.close();
    pool.clear();
    assert_eq!((pool.generation(), pool.status()), (4, PoolStatus::Closed));
}

#[test]
fn what_finds_a_server_back_waits_for_no_other_attempt() {
    let mut pool = ready_pool(0);
    assert!(pool.has_room());
    assert_eq!([(); 3].map(|()| pool.start_extra().is_some()), [true, true, false], "two at once");
    assert!(!pool.has_room());
    assert_eq!([(); 3].map(|()| pool.start_recheck().is_some()), [true, true, false], "four altogether");
    assert!(pool.is_full());
    pool.connect_failed(UserId::SERVICE);
    assert!(!pool.is_full() && !pool.has_room(), "three are being established");
    pool.connect_broken(UserId::SERVICE);
    assert_eq!((pool.counts().pending, pool.counts().closing), (2, 1));
    pool.connect_failed(UserId::SERVICE);
    assert!(pool.has_room());
}

#[test]
fn connections_are_wanted_up_to_the_minimum_and_for_those_who_wait() {
    let (mut pool, now) = (ready_pool(0), Instant::now());
    pool.set_bounds(PoolBounds { min_pool_size: 2, ..BOUNDS }, 4, now);
    assert!(pool.wants_connection());
    let generation = pool.start_connecting().unwrap().1;
    assert!(pool.wants_connection(), "one is on its way");
    pool.connected((0, generation), generation, now);
    pool.start_connecting();
    assert!(!pool.wants_connection());
    let CheckOut::Now(_busy) = pool.check_out(REGULAR) else { panic!("one is available") };
    assert!(!pool.wants_connection(), "one is in use, one on its way");
    pool.enqueue(REGULAR, now, 1);
    assert!(!pool.wants_connection(), "the one on its way is for that");
    pool.enqueue(REGULAR, now, 2);
    assert!(pool.wants_connection());
    pool.clear();
    assert!(!pool.wants_connection(), "a paused pool asks for nothing");
}

#[test]
fn so_many_are_retired_as_may_be_those_used_longest_ago_first_and_the_least_stays() {
    let mut pool = ready_pool(4);
    let even = |connection: &mut Fake| connection.0.is_multiple_of(2);
    assert_eq!(pool.count_available(|connection| connection.0 > 0), 3);
    assert_eq!(pool.retire(4, 9, |_| true), 0);
    assert_eq!(pool.retire(0, 0, |_| true), 0);
    assert_eq!(pool.retire(0, 1, even), 1);
    assert_eq!(pool.available(), [(1, 0), (2, 0), (3, 0)]);
    assert_eq!(pool.take_discarded(), [(0, 0)]);
    pool.closed();
    let CheckOut::Now(_busy) = pool.check_out(REGULAR) else { panic!("three are available") };
    assert!(pool.start_extra().is_some());
    assert_eq!(pool.retire(3, 9, |_| true), 1, "one in use and one on its way are open as well");
    assert_eq!(pool.available(), [(2, 0)]);
    assert_eq!(pool.retire(0, 9, |_| false), 0);
    assert_eq!(pool.retire(0, 9, even), 1);
    assert_eq!(pool.take_discarded(), [(1, 0), (2, 0)]);
}

#[test]
fn what_the_pool_does_for_itself_has_a_share_and_is_nobodys() {
    let mut pool = ready_pool(4);
    assert!(pool.may_borrow());
    let ping = pool.borrow_available().unwrap();
    assert_eq!(ping, (3, 0));
    assert!(!pool.may_borrow(), "a quarter of four");
    assert!(pool.tenants().all().is_empty());
    let own = Held { claim: Lane::Background.into(), time: Some(Duration::from_secs(1)) };
    pool.check_in(ping, 0, own, Instant::now());
    assert!(pool.may_borrow() && pool.tenants().all().is_empty());
    let CheckOut::Now(busy) = pool.check_out(REGULAR) else { panic!("four are available") };
    assert_eq!(pool.tenants().all()[0].in_use, 1);
    back(&mut pool, busy);
    assert_eq!((pool.tenants().all()[0].in_use, pool.tenants().mean_held()), (0, None));
}

#[test]
fn who_waits_for_data_says_nothing_about_how_long_commands_take() {
    let (mut pool, now) = (ready_pool(2), Instant::now());
    for (lane, expected) in [(Lane::Await, None), (Lane::Regular, Some(Duration::from_secs(3)))] {
        let CheckOut::Now(connection) = pool.check_out(lane.into()) else { panic!("two are available") };
        pool.check_in(connection, 0, Held { claim: lane.into(), time: Some(Duration::from_secs(3)) }, now);
        assert_eq!(pool.tenants().mean_held(), expected, "{lane:?}");
    }
}

#[test]
fn where_other_pools_may_have_the_places_only_what_is_open_is_certain() {
    let mut pool = ready_pool(2);
    assert_eq!(pool.shares().reach, u32::MAX);
    pool.set_bounds(PoolBounds { contended: true, ..BOUNDS }, 4, Instant::now());
    assert_eq!(pool.shares().reach, 2);
    let CheckOut::Now(_busy) = pool.check_out(REGULAR) else { panic!("two are available") };
    assert_eq!(pool.shares().reach, 2, "those in use included");
    pool.transaction_begun(UserId::SERVICE);
    assert_eq!(pool.check_out(REGULAR), CheckOut::Wait, "the other one is kept");
    assert!(matches!(pool.check_out(Lane::Transaction.into()), CheckOut::Now(_)));
}

#[test]
fn a_pool_knows_when_it_is_cramped_and_what_it_can_do_without() {
    let (mut pool, now) = (ready_pool(2), Instant::now());
    let state =
        |pool: &PoolState<Fake, u32>| (pool.is_cramped(), pool.can_spare_idle(), pool.is_in_need(), pool.can_give());
    assert!(ready_pool(0).is_in_need() && !ready_pool(0).can_give() && !ready_pool(0).can_spare_idle());
    assert_eq!(state(&ready_pool(1)), (false, true, false, false), "the last one is not for others");
    let mut single = ready_pool(1);
    single.set_limit(1, now);
    assert!(!single.is_cramped(), "nothing is kept");
    assert_eq!(state(&pool), (false, true, false, true));
    pool.transaction_begun(UserId::SERVICE);
    assert_eq!(state(&pool), (false, true, false, false), "one is kept, and one its own");
    pool.set_limit(2, now);
    assert!(pool.is_cramped(), "all others share one");
    pool.set_bounds(PoolBounds { contended: true, ..BOUNDS }, 4, now);
    assert!(pool.is_cramped(), "two are certain");
    let CheckOut::Now(_busy) = pool.check_out(REGULAR) else { panic!("two are available") };
    assert!(!pool.can_spare_idle(), "what is idle is kept");
    assert_eq!(pool.check_out(REGULAR), CheckOut::Wait);
    pool.enqueue(REGULAR, now, 1);
    assert!(!pool.is_in_need());
    pool.enqueue(Lane::Transaction.into(), now, 2);
    assert!(pool.is_in_need());
    pool.evict();
    pool.transaction_ended(UserId::SERVICE, now);
    assert_eq!(state(&pool), (false, true, false, true));
}

#[test]
fn whoever_waits_sees_to_its_own_time_once_there_are_no_looks_any_more() {
    let mut pool = ready_pool(0);
    assert!(!pool.patrol_has_ended());
    pool.end_patrol();
    assert!(pool.patrol_has_ended());
}

proptest! {
    #[test]
    fn no_place_and_no_connection_is_lost(
        max in 1_u8..6, in_flight in 1_u8..6, connecting in 1_u8..4, operations in prop::collection::vec(any::<(u8, u8)>(), 1..400)
    ) {
        model::live([max, in_flight, connecting], &operations);
    }
}
