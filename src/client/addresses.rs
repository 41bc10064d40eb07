//! How many sockets each address has, where that is bounded.
//!
//! As with `max_clients`, a tenth more than there may be are served but for their commands to upstream, since a driver that is
//! closed right after it connected takes the server for dead. Those beyond that are closed all the same: they cannot wait in the
//! system's backlog, where others stand behind them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::config::limits::SURPLUS_CLIENTS_SHARE;
use crate::upstream::pool::lock;

/// The sockets of all addresses. As many addresses are known as have a socket open.
#[derive(Debug)]
pub(super) struct Addresses {
    limit: usize,
    taken: Mutex<HashMap<IpAddr, Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    regular: usize,
    surplus: usize,
}

impl Addresses {
    /// `limit` sockets of each.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// A seat for a socket of `host`; `None` when there is none left.
    pub(super) fn enter(self: &Arc<Self>, host: IpAddr) -> Option<Seat> {
        let host = whole(host);
        let mut all = lock(&self.taken);
        let taken = all.entry(host).or_default();
        let regular = taken.regular < self.limit;
        if regular {
            taken.regular += 1;
        } else if taken.surplus < self.limit.div_ceil(SURPLUS_CLIENTS_SHARE) {
            taken.surplus += 1;
        } else {
            return None;
        }
        Some(Seat { addresses: self.clone(), host, regular: AtomicBool::new(regular) })
    }
}

/// Whoever has one IPv6 address mostly has all that begin alike.
fn whole(host: IpAddr) -> IpAddr {
    match host.to_canonical() {
        IpAddr::V6(host) => Ipv6Addr::from_bits(host.to_bits() & !u128::from(u64::MAX)).into(),
        host @ IpAddr::V4(_) => host,
    }
}

/// A socket among those of its address, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    addresses: Arc<Addresses>,
    host: IpAddr,
    regular: AtomicBool,
}

impl Seat {
    /// Its commands go upstream. One beyond the limit takes the place of one that has left, whoever asks first.
    pub(super) fn is_regular(&self) -> bool {
        if self.regular.load(Ordering::Relaxed) {
            return true;
        }
        let mut all = lock(&self.addresses.taken);
        let Some(taken) = all.get_mut(&self.host).filter(|taken| taken.regular < self.addresses.limit) else {
            return false;
        };
        taken.regular += 1;
        taken.surplus -= 1;
        self.regular.store(true, Ordering::Relaxed);
        true
    }

    /// How many its address has, and how many of them may have commands upstream.
    pub(super) fn of_its_address(&self) -> (usize, usize) {
        let all = lock(&self.addresses.taken);
        (all.get(&self.host).map_or(0, |taken| taken.regular + taken.surplus), self.addresses.limit)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = lock(&self.addresses.taken);
        let Entry::Occupied(mut entry) = all.entry(self.host) else { return };
        let taken = entry.get_mut();
        let count = if *self.regular.get_mut() { &mut taken.regular } else { &mut taken.surplus };
        debug_assert!(*count > 0, "a seat was given back twice");
        *count = count.saturating_sub(1);
        if taken.regular + taken.surplus == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_tenth_more_is_let_in_and_takes_the_place_of_who_leaves() {
        let addresses = Addresses::new(10);
        let mut seats: Vec<Seat> = (0..11).map(|_| addresses.enter(host("10.0.0.1")).unwrap()).collect();
        assert!(addresses.enter(host("10.0.0.1")).is_none());
        assert!(addresses.enter(host("10.0.0.2")).unwrap().is_regular());
        let surplus = seats.pop().unwrap();
        assert!(seats.iter().all(Seat::is_regular) && !surplus.is_regular());
        assert_eq!(surplus.of_its_address(), (11, 10));
        drop(seats.pop());
        assert!(surplus.is_regular());
        let next = addresses.enter(host("10.0.0.1")).unwrap();
        assert!(!next.is_regular() && addresses.enter(host("10.0.0.1")).is_none());
        drop((seats, surplus, next));
        assert!(lock(&addresses.taken).is_empty(), "nobody is remembered");
    }

    #[test]
    fn one_address_is_one_however_it_is_written_and_a_network_of_ipv6_is_one_as_well() {
        let addresses = Addresses::new(1);
        let all = |texts: [&str; 3]| texts.map(|text| addresses.enter(host(text)));
        let [first, second, third] = all(["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1"]);
        assert!(first.is_some_and(|seat| seat.is_regular()) && second.is_some() && third.is_none());
        let kept = all(["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:0:9::"]);
        assert!(kept[2].is_none());
        assert!(addresses.enter(host("2001:db8:0:1::1")).is_some());
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_seats_that_there_are(
            limit in 1_usize..15,
            steps in proptest::collection::vec((0_u8..3, any::<bool>(), 0_usize..20), 0..200),
        ) {
            let addresses = Addresses::new(limit);
            let mut seats: Vec<(u8, Seat)> = Vec::new();
            for (of, enters, which) in steps {
                let count = |seats: &[(u8, Seat)]| seats.iter().filter(|(other, _)| *other == of).count();
                if enters {
                    let seat = addresses.enter(IpAddr::from([10, 0, 0, of]));
                    // Who has left its place to nobody yet keeps the surplus full.
                    prop_assert!(seat.is_some() || count(&seats) + 1 > limit);
                    seats.extend(seat.map(|seat| (of, seat)));
                } else if which < seats.len() {
                    drop(seats.remove(which));
                }
                prop_assert!(count(&seats) <= limit + limit.div_ceil(10));
                let regular = seats.iter().filter(|(other, seat)| *other == of && seat.is_regular()).count();
                prop_assert_eq!(regular, count(&seats).min(limit));
            }
            drop(seats);
            prop_assert!(lock(&addresses.taken).is_empty());
        }
    }
}
