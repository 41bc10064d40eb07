//! The wait queue of one server, by lane. First come, first served, except that statements of open transactions go
//! first: they hold locks that others wait for.
//!
//! How long anybody may wait is the caller's business, who calls [`WaitQueue::remove`]; how many is `admit`'s.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::telemetry::labels::Label;

pub use crate::telemetry::labels::Lane;

const LANES: usize = <Lane as Label>::ALL.len();

/// A place in the queue. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    lane: Lane,
    sequence: u64,
}

/// Who waits for a connection of one server.
#[derive(Debug)]
pub struct WaitQueue<T> {
    /// Per lane in order of arrival; sequence numbers are of the whole queue, so lanes can be compared.
    lanes: [BTreeMap<u64, (Instant, T)>; LANES],
    next_sequence: u64,
    /// The last one taken was of [`Lane::Await`].
    long_poll_went: bool,
}

impl<T> WaitQueue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        Self { lanes: Default::default(), next_sequence: 0, long_poll_went: false }
    }

    /// Joins at the end.
    pub fn push(&mut self, lane: Lane, now: Instant, waiter: T) -> Ticket {
        let ticket = Ticket { lane, sequence: self.next_sequence };
        self.next_sequence += 1;
        self.rejoin(ticket, now, waiter);
        ticket
    }

    /// Takes the place again that [`WaitQueue::pop`] has ended: what the waiter got was of no use.
    pub fn rejoin(&mut self, ticket: Ticket, since: Instant, waiter: T) {
        self.lanes[ticket.lane as usize].insert(ticket.sequence, (since, waiter));
    }

    /// Takes whoever is next.
    pub fn pop(&mut self) -> Option<(Ticket, T)> {
        let first = |lane: Lane| self.lanes[lane as usize].first_key_value().map(|(sequence, _)| (*sequence, lane));
        let others = || Lane::ALL.iter().filter(|lane| **lane != Lane::Await).filter_map(|lane| first(*lane)).min();
        let turns =
            || if self.long_poll_went { others().or(first(Lane::Await)) } else { first(Lane::Await).or_else(others) };
        let (sequence, lane) = first(Lane::Transaction).or_else(turns)?;
        self.long_poll_went = lane == Lane::Await;
        let ticket = Ticket { lane, sequence };
        self.remove(ticket).map(|waiter| (ticket, waiter))
    }

    /// Leaves the queue; `None` if that ticket is not waiting any more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        self.lanes[ticket.lane as usize].remove(&ticket.sequence).map(|(_, waiter)| waiter)
    }

    /// The waiter with that ticket, if it still waits.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        self.lanes[ticket.lane as usize].get_mut(&ticket.sequence).map(|(_, waiter)| waiter)
    }

    /// Empties the queue.
    pub fn drain(&mut self) -> Vec<T> {
        self.lanes.iter_mut().flat_map(|lane| std::mem::take(lane).into_values()).map(|(_, waiter)| waiter).collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(BTreeMap::len).sum()
    }

    /// How many wait in one lane.
    pub fn lane_len(&self, lane: Lane) -> usize {
        self.lanes[lane as usize].len()
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(BTreeMap::is_empty)
    }

    /// When the one who has waited longest joined.
    pub fn oldest(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|lane| lane.first_key_value()).map(|(_, (since, _))| *since).min()
    }
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn transactions_go_first_and_all_others_in_order() {
        let mut queue = WaitQueue::new();
        let now = Instant::now();
        for (lane, waiter) in [(Lane::Background, 1), (Lane::Regular, 2), (Lane::Background, 3), (Lane::Transaction, 4)]
        {
            queue.push(lane, now, waiter);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, waiter)| waiter).collect();
        assert_eq!(order, [4, 1, 2, 3]);
    }

    #[test]
    fn who_waits_for_data_takes_turns_with_all_others() {
        let mut queue = WaitQueue::new();
        let now = Instant::now();
        for waiter in 1..=4 {
            queue.push(Lane::Regular, now, waiter);
        }
        for waiter in 11..=12 {
            queue.push(Lane::Await, now, waiter);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, waiter)| waiter).collect();
        assert_eq!(order, [11, 1, 12, 2, 3, 4]);
    }

    #[test]
    fn who_rejoins_has_its_old_place() {
        let mut queue = WaitQueue::new();
        let (early, late) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(1));
        let first = queue.push(Lane::Regular, early, 1);
        let second = queue.push(Lane::Background, late, 2);
        assert_eq!(queue.pop(), Some((first, 1)));
        assert_eq!(queue.oldest(), Some(late));
        queue.rejoin(first, early, 3);
        assert_eq!((queue.oldest(), queue.len()), (Some(early), 2));
        assert_eq!((queue.pop(), queue.pop()), (Some((first, 3)), Some((second, 2))));
    }

    proptest! {
        /// Against a plain list of who waits.
        #[test]
        fn behaves_like_a_list(operations in prop::collection::vec((0_u8..3, 0_usize..4, 0_usize..20), 1..200)) {
            let mut queue = WaitQueue::new();
            let mut model: Vec<(Ticket, u32)> = Vec::new();
            let mut long_poll_went = false;
            let now = Instant::now();
            for (step, (operation, lane, index)) in operations.into_iter().enumerate() {
                let waiter = u32::try_from(step).unwrap();
                match operation {
                    0 => {
                        let ticket = queue.push(Lane::ALL[lane], now, waiter);
                        model.push((ticket, waiter));
                    }
                    1 => {
                        let first = |wanted: &dyn Fn(Lane) -> bool| model.iter().position(|(ticket, _)| wanted(ticket.lane));
                        let turn = first(&|lane| (lane == Lane::Await) != long_poll_went);
                        let next = first(&|lane| lane == Lane::Transaction).or(turn).or(first(&|_| true));
                        let expected = next.map(|next| model.remove(next));
                        if let Some((ticket, _)) = expected {
                            long_poll_went = ticket.lane == Lane::Await;
                        }
                        prop_assert_eq!(queue.pop(), expected);
                    }
                    _ if index < model.len() => {
                        let (ticket, waiter) = model.remove(index);
                        prop_assert_eq!(queue.remove(ticket), Some(waiter));
                        prop_assert_eq!(queue.remove(ticket), None);
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
            }
        }
    }
}
