//! The places of client sockets: `max_clients` regular ones, and a few beyond, whose sockets are served but for their commands
//! to upstream.
//!
//! Who comes later becomes regular later: a regular place that is given back goes to the surplus socket that has waited
//! longest, whether or not it has something to send. So a surplus socket need not ask, and a stream of newcomers cannot
//! starve it; and listeners wait for any place at all, in the order in which they came, so neither do the two starve each
//! other.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::addresses::{Addresses, Seat};
use crate::config::ClientConfig;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
use crate::upstream::permits;
use crate::upstream::pool::lock;

/// The places of all listeners.
pub struct Places {
    /// Free places of either kind.
    room: Arc<Semaphore>,
    /// Every ticket below this one is regular, or has left. Changed with `state` held only.
    regular_below: AtomicU64,
    state: Mutex<State>,
    /// Where each address may have so many only.
    addresses: Option<Arc<Addresses>>,
    metrics: Arc<Metrics>,
}

/// Free regular places are there only while nobody is surplus.
struct State {
    /// `max_clients`
    limit: usize,
    free: usize,
    /// Regular sockets beyond the limit, which was lowered. None is free then.
    excess: usize,
    next_ticket: u64,
    /// Tickets of the sockets without a regular place, all of them at least `regular_below`.
    surplus: BTreeSet<u64>,
}

impl Places {
    /// All of them free.
    pub fn new(config: &ClientConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        let limit = config.max_clients;
        let state = State { limit, free: limit, excess: 0, next_ticket: 0, surplus: BTreeSet::new() };
        let room = Arc::new(Semaphore::new(limit + config.surplus_clients()));
        let addresses = config.max_clients_per_address.map(Addresses::new);
        let regular_below = AtomicU64::new(0);
        Arc::new(Self { room, regular_below, state: Mutex::new(state), addresses, metrics })
    }

    /// A place, regular if one is free, else surplus; waits while there is none at all.
    ///
    /// # Cancel safety
    /// Safe: whoever is dropped leaves the line.
    pub async fn take(self: &Arc<Self>) -> Place {
        let room = self.room.acquire().await.expect("the semaphore is never closed");
        // Given back by the place.
        room.forget();
        Place { places: self.clone(), ticket: self.enter(), seat: None }
    }

    /// Clients that have a place, the surplus ones included.
    pub fn taken(&self) -> usize {
        let state = lock(&self.state);
        state.regular() + state.surplus.len()
    }

    /// Puts another `max_clients` in force. Who is regular stays so, and nobody is closed: those that are too many leave no place
    /// behind.
    pub fn resize(&self, config: &ClientConfig, tasks: &Tasks) {
        let mut state = lock(&self.state);
        let (before, regular) = (state.limit, state.regular());
        state.limit = config.max_clients;
        state.free = state.limit.saturating_sub(regular);
        state.excess = regular.saturating_sub(state.limit);
        while state.free > 0
            && let Some(promoted) = state.surplus.pop_first()
        {
            state.free -= 1;
            self.regular_below.store(promoted + 1, Ordering::Relaxed);
        }
        let room = |limit| limit + ClientConfig::surplus_of(limit);
        permits::resize(&self.room, room(before), room(state.limit), tasks);
        self.show(&state);
    }

    fn enter(&self) -> u64 {
        let mut state = lock(&self.state);
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        if state.free > 0 {
            debug_assert!(state.surplus.is_empty(), "who waits longer goes first");
            state.free -= 1;
            self.regular_below.store(state.next_ticket, Ordering::Relaxed);
        } else {
            state.surplus.insert(ticket);
        }
        self.show(&state);
        ticket
    }

    fn leave(&self, ticket: u64) {
        let mut state = lock(&self.state);
        if !state.surplus.remove(&ticket) {
            if state.excess > 0 {
                state.excess -= 1;
            } else if let Some(promoted) = state.surplus.pop_first() {
                self.regular_below.store(promoted + 1, Ordering::Relaxed);
            } else {
                state.free += 1;
            }
        }
        debug_assert!(state.free <= state.limit, "a place was given back twice");
        self.show(&state);
    }

    fn show(&self, state: &State) {
        self.metrics.client_connections_surplus.set(i64::try_from(state.surplus.len()).unwrap_or(i64::MAX));
    }
}

impl State {
    fn regular(&self) -> usize {
        self.limit - self.free + self.excess
    }
}

/// The place of one socket, given back when it is dropped.
pub struct Place {
    places: Arc<Places>,
    ticket: u64,
    /// Among those of its address, where that is bounded. Boxed, as it mostly is not.
    seat: Option<Box<Seat>>,
}

/// What a place tells about why it is not a regular one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// Sockets that there are.
    pub clients: usize,
    /// As many may have commands upstream.
    pub limit: usize,
    /// These are those of the client's address alone.
    pub of_address: bool,
}

impl Place {
    /// A number for its connection, as servers give one: no two of the process have the same.
    pub fn number(&self) -> i64 {
        i64::try_from(self.ticket).unwrap_or(i64::MAX).saturating_add(1)
    }

    /// True as soon as it is one of the `max_clients`, and from then on.
    pub fn is_regular(&self) -> bool {
        self.ticket < self.places.regular_below.load(Ordering::Relaxed)
            && self.seat.as_ref().is_none_or(|seat| seat.is_regular())
    }

    /// Whose it is, once that is known. `None` when that address has too many already; then it is given back.
    #[must_use]
    pub fn of(mut self, host: Option<IpAddr>) -> Option<Self> {
        if let (Some(addresses), Some(host)) = (&self.places.addresses, host) {
            self.seat = Some(Box::new(addresses.enter(host)?));
        }
        Some(self)
    }

    /// With how many it shares what there is, if it is not regular.
    pub fn crowd(&self) -> Crowd {
        match &self.seat {
            Some(seat) if !seat.is_regular() => {
                let (clients, limit) = seat.of_its_address();
                Crowd { clients, limit, of_address: true }
            }
            _ => Crowd { clients: self.places.taken(), limit: lock(&self.places.state).limit, of_address: false },
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.leave(self.ticket);
        self.places.room.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Config, Sources};

    fn places(max_clients: usize) -> Arc<Places> {
        let (config, _) = Config::load(&Sources::default()).unwrap();
        Places::new(&ClientConfig { max_clients, ..config.client }, Metrics::new())
    }

    fn take(places: &Arc<Places>) -> Option<Place> {
        places.take().now_or_never()
    }

    fn regular(taken: &[Place]) -> Vec<bool> {
        taken.iter().map(Place::is_regular).collect()
    }

    #[test]
    fn a_tenth_more_is_surplus_rounded_up_and_one_at_least() {
        for (limit, surplus) in [(1, 1), (9, 1), (10, 1), (11, 2), (2_000, 200)] {
            let places = places(limit);
            let taken: Vec<Place> = std::iter::from_fn(|| take(&places)).collect();
            assert_eq!(taken.len(), limit + surplus);
            assert_eq!(taken.iter().filter(|place| place.is_regular()).count(), limit);
            assert_eq!(places.metrics.client_connections_surplus.get(), i64::try_from(surplus).unwrap());
            drop(taken);
            assert_eq!((places.taken(), places.metrics.client_connections_surplus.get()), (0, 0));
        }
    }

    #[test]
    fn who_has_waited_longest_becomes_regular_before_any_newcomer() {
        let places = places(11);
        let mut taken: Vec<Place> = (0..13).map(|_| take(&places).unwrap()).collect();
        drop(taken.remove(4));
        assert_eq!(regular(&taken[10..]), [true, false]);
        taken.push(take(&places).unwrap());
        assert_eq!(regular(&taken[10..]), [true, false, false]);
        // One that leaves as surplus has nothing to hand over.
        drop(taken.remove(11));
        assert_eq!(regular(&taken[10..]), [true, false]);
        drop(taken.remove(0));
        assert_eq!(regular(&taken), [true; 11]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_place_gets_the_next_one_of_either_kind_in_order() {
        let places = places(1);
        let (first, second) = (take(&places).unwrap(), take(&places).unwrap());
        let mut third = std::pin::pin!(places.take());
        let mut fourth = std::pin::pin!(places.take());
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        drop(second);
        assert!(fourth.as_mut().now_or_never().is_none(), "it came later");
        let third = tokio::time::timeout(Duration::from_secs(1), third).await.unwrap();
        assert!(!third.is_regular());
        drop(first);
        let fourth = tokio::time::timeout(Duration::from_secs(1), fourth).await.unwrap();
        assert!(third.is_regular() && !fourth.is_regular());
    }

    #[test]
    fn a_wait_that_is_dropped_takes_no_place() {
        let places = places(1);
        let taken = [take(&places).unwrap(), take(&places).unwrap()];
        let mut waits = Box::pin(places.take());
        assert!(waits.as_mut().now_or_never().is_none());
        drop((taken, waits));
        assert!(take(&places).is_some_and(|place| place.is_regular()));
        assert_eq!(places.taken(), 0);
    }

    proptest! {
        /// Against the obvious: those who came first are regular, up to the limit. Who was regular stays so when it is lowered.
        #[test]
        fn no_place_is_lost_or_taken_twice(
            limit in 1_usize..25,
            steps in proptest::collection::vec((0_u8..7, 0_usize..30), 0..300),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (_entered, tasks) = (runtime.enter(), Tasks::new());
            let (places, mut limit) = (places(limit), limit);
            let (mut taken, mut expected) = (Vec::<Place>::new(), Vec::<bool>::new());
            for (step, which) in steps {
                match step {
                    0..3 => {
                        let place = take(&places);
                        prop_assert_eq!(place.is_some(), taken.len() < limit + limit.div_ceil(10));
                        if let Some(place) = place {
                            taken.push(place);
                            expected.push(false);
                        }
                    }
                    3..6 if which < taken.len() => {
                        drop(taken.remove(which));
                        expected.remove(which);
                    }
                    6 => {
                        limit = which.max(1);
                        let (config, _) = Config::load(&Sources::default()).unwrap();
                        places.resize(&ClientConfig { max_clients: limit, ..config.client }, &tasks);
                    }
                    _ => {}
                }
                for index in 0..expected.len() {
                    let regular = expected.iter().filter(|regular| **regular).count();
                    expected[index] |= regular < limit;
                }
                // Who takes places back has its turn.
                runtime.block_on(async {
                    for _ in 0..3 {
                        tokio::task::yield_now().await;
                    }
                });
                prop_assert_eq!(regular(&taken), expected.clone());
                prop_assert_eq!(places.taken(), taken.len());
                let surplus = i64::try_from(expected.iter().filter(|regular| !**regular).count()).unwrap();
                prop_assert_eq!(places.metrics.client_connections_surplus.get(), surplus);
            }
        }
    }
}
