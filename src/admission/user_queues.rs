//! The wait queues of one server, one for each user who has connections of its own. Where clients share those of the
//! connection string there is one.
//!
//! What is free belongs to a user, so only those in that user's queue can have it. Which user is to get a further connection is
//! the pool's business.

#[cfg(test)]
mod model;

use std::collections::BTreeMap;
use std::ops::Range;

use tokio::time::Instant;

use super::claim::{Claim, Entry, Lane, Ticket};
use super::fair_line::Pick;
use super::queue::WaitQueue;
#[cfg(test)]
use super::{
    claim::{Level, Tenant},
    tenant_use::TenantTable,
};
use crate::auth::UserId;

/// Who waits for a connection of one server, by user.
#[derive(Debug)]
pub struct UserQueues<T> {
    /// Always there, as its room is used again.
    service: WaitQueue<T>,
    /// Those in which somebody waits.
    others: BTreeMap<UserId, WaitQueue<T>>,
    next_sequence: u64,
}

impl<T> Default for UserQueues<T> {
    fn default() -> Self {
        Self { service: WaitQueue::new(), others: BTreeMap::new(), next_sequence: 0 }
    }
}

impl<T> UserQueues<T> {
    /// Joins at the end of its user's queue.
    pub fn push(&mut self, claim: Claim, since: Instant, waiter: T) -> Ticket {
        let ticket = Ticket { claim, sequence: self.next_sequence };
        self.next_sequence += 1;
        self.rejoin(ticket, since, waiter);
        ticket
    }

    /// Takes the place again that [`UserQueues::pop`] has ended: what the waiter got was of no use.
    pub fn rejoin(&mut self, ticket: Ticket, since: Instant, waiter: T) {
        let queue = match ticket.claim.user {
            UserId::SERVICE => &mut self.service,
            user => self.others.entry(user).or_default(),
        };
        queue.insert(ticket, since, waiter);
    }

    /// Takes whoever is next of that user's, of those whose lane may have one more, by `allowed`.
    pub fn pop(&mut self, user: UserId, allowed: impl Fn(Lane) -> bool, pick: Pick<'_>) -> Option<(Ticket, Entry<T>)> {
        let next = self.queue_mut(user)?.pop(allowed, pick);
        self.tidy(user);
        next
    }

    /// Leaves; `None` if that ticket is not waiting any more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Entry<T>> {
        let removed = self.queue_mut(ticket.claim.user)?.remove(ticket);
        self.tidy(ticket.claim.user);
        removed
    }

    /// The waiter with that ticket, if it still waits.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        self.queue_mut(ticket.claim.user)?.get_mut(ticket)
    }

    /// Empties all queues.
    pub fn drain(&mut self) -> Vec<T> {
        let others = std::mem::take(&mut self.others).into_values();
        let mut all = self.service.drain();
        all.extend(others.flat_map(|mut queue| queue.drain()));
        all
    }

    /// Empties the queue of a user.
    pub fn drain_user(&mut self, user: UserId) -> Vec<T> {
        let drained = self.queue_mut(user).map(WaitQueue::drain).unwrap_or_default();
        self.tidy(user);
        drained
    }

    /// The users for whom somebody waits, and their queues.
    pub fn users(&self) -> impl Iterator<Item = (UserId, &WaitQueue<T>)> {
        let service = (!self.service.is_empty()).then_some((UserId::SERVICE, &self.service));
        service.into_iter().chain(self.others.iter().map(|(user, queue)| (*user, queue)))
    }

    /// The queue of a user; `None` if nobody waits there, and it is not the service's.
    pub fn of(&self, user: UserId) -> Option<&WaitQueue<T>> {
        match user {
            UserId::SERVICE => Some(&self.service),
            user => self.others.get(&user),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.all().map(WaitQueue::len).sum()
    }

    /// How many wait in one lane.
    pub fn lane_len(&self, lane: Lane) -> usize {
        self.all().map(|queue| queue.lane_len(lane)).sum()
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.others.is_empty() && self.service.is_empty()
    }

    /// The number of the next place at the end.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Who waits in the places of these numbers.
    pub fn between(&self, places: Range<u64>) -> impl Iterator<Item = &T> {
        self.all().flat_map(move |queue| queue.between(places.clone()))
    }

    /// When the one who has waited longest joined.
    pub fn oldest(&self) -> Option<Instant> {
        self.all().filter_map(WaitQueue::oldest).min()
    }

    /// The one of [`Lane::Regular`] who has waited longest of those that may go, and since when.
    pub fn oldest_regular(&self, pick: Pick<'_>) -> Option<(Ticket, Instant)> {
        self.all().filter_map(|queue| queue.oldest_regular(pick)).min_by_key(|(ticket, _)| ticket.sequence)
    }

    /// Waiting commands of each tenant that has some in [`Lane::Regular`].
    pub fn tenants(&self) -> impl Iterator<Item = (u16, usize)> {
        self.all().flat_map(WaitQueue::tenants)
    }

    fn all(&self) -> impl Iterator<Item = &WaitQueue<T>> {
        std::iter::once(&self.service).chain(self.others.values())
    }

    fn queue_mut(&mut self, user: UserId) -> Option<&mut WaitQueue<T>> {
        match user {
            UserId::SERVICE => Some(&mut self.service),
            user => self.others.get_mut(&user),
        }
    }

    fn tidy(&mut self, user: UserId) {
        if user != UserId::SERVICE && self.others.get(&user).is_some_and(WaitQueue::is_empty) {
            self.others.remove(&user);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(user: u32) -> Claim {
        Claim { user: UserId::numbered(user), ..Lane::Regular.into() }
    }

    #[test]
    fn what_is_free_goes_to_its_user_and_places_are_numbered_over_all() {
        let (mut queues, now, tenants) = (UserQueues::default(), Instant::now(), TenantTable::default());
        let pick = Pick { may_lock: true, newest_first: false, tenants: &tenants };
        let tickets = [(0, 10), (1, 11), (2, 12), (1, 13)].map(|(user, waiter)| queues.push(of(user), now, waiter));
        let mut next = |user| queues.pop(UserId::numbered(user), |_| true, pick).map(|(_, entry)| entry.waiter);
        assert_eq!([next(1), next(3), next(2), next(2)], [Some(11), None, Some(12), None]);
        assert_eq!((queues.len(), queues.next_sequence()), (2, 4));
        assert_eq!(queues.between(0..3).copied().collect::<Vec<_>>(), [10]);
        assert_eq!(queues.users().map(|(user, _)| user).collect::<Vec<_>>(), [0, 1].map(UserId::numbered));
        queues.rejoin(tickets[1], now, 21);
        assert_eq!(queues.drain_user(UserId::numbered(1)).len(), 2);
        assert!(queues.of(UserId::numbered(1)).is_none() && queues.remove(tickets[3]).is_none());
        assert_eq!(queues.drain(), [10]);
        assert!(queues.is_empty());
    }

    #[test]
    fn what_is_asked_of_all_takes_in_the_queues_of_all_users() {
        let (mut queues, start, table) = (UserQueues::default(), Instant::now(), TenantTable::default());
        let at = |seconds| start + std::time::Duration::from_secs(seconds);
        let pick = Pick { may_lock: true, newest_first: false, tenants: &table };
        assert_eq!((queues.oldest(), queues.oldest_regular(pick), queues.len()), (None, None, 0));
        let poll = queues.push(Claim { lane: Lane::Await, ..of(1) }, at(1), 10);
        let second = queues.push(of(2), at(2), 20);
        let tenant = Tenant { id: 3, ..Tenant::COMMON };
        let last = queues.push(Claim { tenant, ..of(0) }, at(3), 30);
        assert_eq!((queues.oldest(), queues.oldest_regular(pick)), (Some(at(1)), Some((second, at(2)))));
        assert_eq!([Lane::Await, Lane::Regular, Lane::Background].map(|lane| queues.lane_len(lane)), [1, 2, 0]);
        let mut waiting: Vec<_> = queues.tenants().collect();
        waiting.sort_unstable();
        assert_eq!(waiting, [(0, 1), (3, 1)]);
        *queues.get_mut(poll).unwrap() += 1;
        assert_eq!(queues.get_mut(last).copied(), Some(30));
        assert_eq!(queues.remove(poll).map(|entry| entry.waiter), Some(11));
        assert!(queues.get_mut(poll).is_none() && queues.of(UserId::numbered(1)).is_none());
        assert_eq!(queues.users().count(), 2);
        assert_eq!(queues.drain_user(UserId::SERVICE), [30]);
        assert!(!queues.is_empty() && queues.users().count() == 1);
        assert_eq!(queues.drain(), [20]);
        assert!(queues.is_empty());
    }

    proptest! {
        #[test]
        fn behave_like_a_list(operations in prop::collection::vec((0_u8..4, 0_u8..4, 0_u8..20, any::<u8>()), 1..300)) {
            model::run(&operations);
        }
    }
}
