//! The budget against what its rules say in plain arithmetic: random clients that come, wait, leave and give back.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Wake, Waker};

use proptest::prelude::*;

use super::*;

const SMALL: usize = SMALL_MESSAGE_BYTES;

fn shares(requests: usize, replies: usize, small: usize) -> MemoryShares {
    MemoryShares { requests, replies, small }
}

/// What does not come fails instead of hanging.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(1), future).await.expect("a wake-up was lost")
}

/// Notes that it was woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// Somebody in a line.
struct Waiter {
    kind: Kind,
    bytes: usize,
    future: Pin<Box<dyn Future<Output = Reservation>>>,
    woken: Arc<Flag>,
}

impl Waiter {
    fn new(budget: &Arc<MemoryBudget>, kind: Kind, bytes: usize) -> Self {
        let budget = budget.clone();
        let woken = Arc::new(Flag::default());
        woken.0.store(true, SeqCst);
        Self { kind, bytes, future: Box::pin(async move { budget.reserve(kind, bytes).await }), woken }
    }

    /// Polled only if it was woken: a lost wake-up leaves it waiting for ever.
    fn poll(&mut self) -> Option<Reservation> {
        if !self.woken.0.swap(false, SeqCst) {
            return None;
        }
        match self.future.as_mut().poll(&mut Context::from_waker(&Waker::from(self.woken.clone()))) {
            Poll::Ready(reservation) => Some(reservation),
            Poll::Pending => None,
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask(Kind, usize),
    Try(Kind, usize),
    ReadAhead(usize),
    /// One who waits gives up.
    Leave(usize),
    /// One who holds memory gives it back.
    Free(usize),
    /// One who holds memory gives a part back, or passes it on.
    Shrink(usize, usize),
    Split(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let ask = prop_oneof![
        (SMALL + 1..=9 * SMALL).prop_map(|bytes| (Kind::Request, bytes)),
        (1..=8 * SMALL).prop_map(|bytes| (Kind::Reply, bytes)),
        (1..=SMALL).prop_map(|bytes| (Kind::Small, bytes)),
    ];
    prop_oneof![
        4 => ask.clone().prop_map(|(kind, bytes)| Step::Ask(kind, bytes)),
        2 => ask.prop_map(|(kind, bytes)| Step::Try(kind, bytes)),
        1 => (1..=2 * SMALL).prop_map(Step::ReadAhead),
        1 => any::<usize>().prop_map(Step::Leave),
        4 => any::<usize>().prop_map(Step::Free),
        1 => (any::<usize>(), 0..=9 * SMALL).prop_map(|(which, bytes)| Step::Shrink(which, bytes)),
        1 => (any::<usize>(), 0..=9 * SMALL).prop_map(|(which, bytes)| Step::Split(which, bytes)),
    ]
}

/// Who waits and who holds what, in the order of arrival.
struct World {
    budget: Arc<MemoryBudget>,
    shares: MemoryShares,
    waiters: BTreeMap<usize, Waiter>,
    held: Vec<Reservation>,
    next: usize,
    backwards: bool,
}

impl World {
    fn new(backwards: bool) -> Self {
        let shares = shares(12 * SMALL, 8 * SMALL, 2 * SMALL);
        let (waiters, held) = (BTreeMap::new(), Vec::new());
        Self { budget: MemoryBudget::new(shares), shares, waiters, held, next: 0, backwards }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask(kind, bytes) => {
                self.waiters.insert(self.next, Waiter::new(&self.budget, kind, bytes));
                self.next += 1;
            }
            Step::Try(kind, bytes) => {
                let expected = self.line(kind).is_none() && self.takes(kind, bytes);
                let tried = self.budget.try_reserve(kind, bytes);
                assert_eq!(tried.is_some(), expected);
                self.held.extend(tried);
            }
            Step::ReadAhead(bytes) => {
                let spare = self.shares.largest_request();
                let expected = self.line(Kind::Request).is_none() && self.free(Kind::Request) >= bytes + spare;
                let ahead = self.budget.try_read_ahead(bytes);
                assert_eq!(ahead.is_some(), expected);
                self.held.extend(ahead);
            }
            Step::Leave(which) => {
                if let Some(key) = self.waiters.keys().nth(which % self.waiters.len().max(1)).copied() {
                    self.waiters.remove(&key);
                }
            }
            Step::Free(which) if !self.held.is_empty() => {
                self.held.swap_remove(which % self.held.len());
            }
            Step::Shrink(which, bytes) if !self.held.is_empty() => {
                let count = self.held.len();
                self.held[which % count].shrink_to(bytes);
            }
            Step::Split(which, bytes) if !self.held.is_empty() => {
                let count = self.held.len();
                let rest = self.held[which % count].split_off(bytes);
                self.held.push(rest);
            }
            Step::Free(_) | Step::Shrink(..) | Step::Split(..) => {}
        }
        self.settle();
        self.check();
    }

    /// Polls whoever was woken, until nobody is.
    fn settle(&mut self) {
        loop {
            let mut keys: Vec<usize> = self.waiters.keys().copied().collect();
            if self.backwards {
                keys.reverse();
            }
            let Some((key, reservation)) =
                keys.into_iter().find_map(|key| Some((key, self.waiters.get_mut(&key)?.poll()?)))
            else {
                if self.waiters.values().any(|waiter| waiter.woken.0.load(SeqCst)) { continue } else { return }
            };
            let granted = self.waiters.remove(&key).unwrap();
            assert_eq!(reservation.bytes(), granted.bytes);
            let earlier = self.waiters.range(..key).find(|(_, waiter)| waiter.kind == granted.kind);
            assert!(
                earlier.is_none(),
                "{:?} was served before {earlier:?}",
                granted.kind,
                earlier = earlier.map(|e| e.0)
            );
            self.held.push(reservation);
        }
    }

    /// Whoever is next in a line.
    fn line(&self, kind: Kind) -> Option<&Waiter> {
        self.waiters.values().find(|waiter| waiter.kind == kind)
    }

    fn size(&self, kind: Kind) -> usize {
        match kind {
            Kind::Request => self.shares.requests,
            Kind::Reply => self.shares.replies,
            Kind::Small => self.shares.small,
        }
    }

    fn free(&self, kind: Kind) -> usize {
        let taken: usize = self.held.iter().filter(|held| held.source == kind).map(Reservation::bytes).sum();
        self.size(kind).checked_sub(taken).expect("a share is never exceeded")
    }

    /// Whether there is memory for one of this kind whose turn it is.
    fn takes(&self, kind: Kind, bytes: usize) -> bool {
        let lent = kind != Kind::Request && self.line(Kind::Request).is_none();
        self.free(kind) >= bytes || lent && self.free(Kind::Request) >= bytes
    }

    fn check(&self) {
        let sum: usize = self.held.iter().map(Reservation::bytes).sum();
        assert_eq!(self.budget.used(), sum);
        assert!(sum <= self.budget.limit());
        for kind in [Kind::Request, Kind::Reply, Kind::Small] {
            assert_eq!(self.budget.share(kind).free.load(SeqCst), self.free(kind), "{kind:?}");
            if let Some(head) = self.line(kind) {
                assert!(!self.takes(kind, head.bytes), "{kind:?} waits for {} bytes that are free", head.bytes);
            }
        }
    }
}

proptest! {
    #[test]
    fn the_limit_the_order_and_every_wake_up_hold(
        steps in proptest::collection::vec(step(), 1..120),
        backwards in any::<bool>(),
    ) {
        let mut world = World::new(backwards);
        for step in steps {
            world.step(step);
        }
        // Whoever waits gets what he asked for, as soon as others give back.
        while !(world.held.is_empty() && world.waiters.is_empty()) {
            assert!(!world.held.is_empty(), "they wait for nobody");
            world.step(Step::Free(0));
        }
        prop_assert_eq!(world.budget.used(), 0);
        prop_assert_eq!(world.budget.waiting.load(SeqCst), 0);
        prop_assert!(world.budget.try_request(world.shares.requests).is_some());
    }
}

#[test]
fn each_kind_has_a_share_that_others_cannot_take() {
    let budget = MemoryBudget::new(shares(10 * SMALL, 5 * SMALL, SMALL));
    let request = budget.try_request(10 * SMALL).unwrap();
    assert!(budget.try_request(SMALL + 1).is_none());
    let reply = budget.try_reply(5 * SMALL).unwrap();
    assert!(budget.try_reply(1).is_none());
    let hello = budget.try_request(SMALL).unwrap();
    assert!(budget.try_request(1).is_none());
    assert_eq!((budget.used(), budget.limit()), (16 * SMALL, 16 * SMALL));
    // What requests do not need is lent.
    drop((request, hello));
    let replies = budget.try_reply(9 * SMALL).unwrap();
    let small = budget.try_request(SMALL).unwrap();
    assert!(budget.try_request(SMALL + 1).is_none());
    drop((reply, replies, small));
    assert_eq!(budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_request_is_not_starved_by_later_ones() {
    let budget = MemoryBudget::new(shares(10 * SMALL, SMALL, SMALL));
    let held = budget.try_request(5 * SMALL).unwrap();
    let mut large = pin!(budget.request(9 * SMALL));
    assert!(futures_util::poll!(&mut large).is_pending());
    // There is room for each of these, but not before the one that waits. Small ones have their own.
    assert!(budget.try_request(SMALL + 1).is_none() && budget.try_read_ahead(1).is_none());
    assert!(budget.try_reply(2 * SMALL).is_none());
    let small = budget.try_request(SMALL).unwrap();
    assert_eq!(small.source, Kind::Small);
    drop(held);
    assert_eq!(soon(large).await.unwrap().bytes(), 9 * SMALL);
    assert_eq!(soon(budget.request(10 * SMALL)).await.unwrap().bytes(), 10 * SMALL);
    assert!(budget.request(10 * SMALL + 1).await.is_none(), "it would wait for ever");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_at_any_poll_passes_its_turn_on() {
    for polls in 0..4 {
        let budget = MemoryBudget::new(shares(10 * SMALL, SMALL, SMALL));
        let mut held = budget.try_request(10 * SMALL).unwrap();
        let mut first = Box::pin(budget.request(8 * SMALL));
        let mut second = Box::pin(budget.request(2 * SMALL));
        for _ in 0..polls {
            assert!(futures_util::poll!(&mut first).is_pending());
            // Told each time, and each time not enough.
            held.shrink_to(held.bytes() - SMALL);
        }
        assert!(polls < 3 || futures_util::poll!(&mut second).is_pending(), "it is not its turn");
        drop(first);
        held.shrink_to(8 * SMALL);
        assert_eq!(soon(second).await.unwrap().bytes(), 2 * SMALL);
        drop(held);
        assert_eq!((budget.used(), budget.waiting.load(SeqCst)), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_waits_for_its_share_or_for_a_loan() {
    let budget = MemoryBudget::new(shares(4 * SMALL, 4 * SMALL, SMALL));
    let replies = budget.try_reply(3 * SMALL).unwrap();
    let requests = budget.try_request(3 * SMALL).unwrap();
    let mut waiting = Box::pin(budget.reply(4 * SMALL));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(requests);
    let lent = soon(waiting).await;
    assert_eq!(lent.source, Kind::Request);
    let mut again = Box::pin(budget.reply(4 * SMALL));
    assert!(futures_util::poll!(&mut again).is_pending());
    drop(replies);
    assert_eq!(soon(again).await.source, Kind::Reply);
    let largest = budget.reply(usize::MAX);
    assert_eq!(soon(largest).await.bytes(), budget.largest_reply());
}
