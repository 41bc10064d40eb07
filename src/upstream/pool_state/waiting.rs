//! Those who wait: how they join and leave, whose turn it is when something comes back, and who is told that it takes long.

use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{PoolState, PoolStatus, Waiting, Woken, count};
use crate::admission::claim::Entry;
use crate::admission::codel::Codel;
use crate::admission::fair_line::Pick;
use crate::admission::{Claim, Lane, Ticket, WaitQueue};
use crate::auth::UserId;
use crate::upstream::holders::Owned;

/// Between two looks at the queue, in numbers of its places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patrol {
    /// Those before this one know that they wait for long.
    told: u64,
    /// Those before this one were there at the last look.
    seen: u64,
}

impl<C: Owned, W> PoolState<C, W> {
    /// Joins the queue. Returns who is to be woken: those who have waited too long in a queue that stands.
    pub fn enqueue(&mut self, claim: Claim, now: Instant, waker: W) -> (Ticket, Woken<W>) {
        debug_assert!(self.status == PoolStatus::Ready, "nobody waits for a pool that gives out nothing");
        let ticket = self.queue.push(claim, now, waker);
        (ticket, self.shed_late(now))
    }

    /// Joins the queue again at the old place, `since` then: what was handed over had died. Returns who is to be woken.
    ///
    /// # Errors
    /// The status, when that is not [`PoolStatus::Ready`] any more.
    pub fn rejoin(&mut self, ticket: Ticket, since: Instant, now: Instant, waker: W) -> Result<Woken<W>, PoolStatus> {
        if self.status != PoolStatus::Ready {
            return Err(self.status);
        }
        self.queue.rejoin(ticket, since, waker);
        Ok(self.hand_over(now))
    }

    /// Looks whether a waiter's turn has come; renews its waker if not.
    pub fn poll(&mut self, ticket: Ticket, waker: impl FnOnce(&mut W)) -> Waiting<C> {
        if let Some(index) = self.handed.iter().position(|(handed, _)| *handed == ticket) {
            return Waiting::Handed(self.handed.swap_remove(index).1);
        }
        match self.queue.get_mut(ticket) {
            Some(place) => {
                waker(place);
                Waiting::Queued
            }
            None if !self.shed.is_empty() && self.shed.remove(&ticket) => Waiting::Shed,
            None => Waiting::Evicted(self.status),
        }
    }

    /// Leaves the queue. A connection that was handed over meanwhile comes back: the caller checks it in.
    #[must_use]
    pub fn leave(&mut self, ticket: Ticket) -> Option<C> {
        if self.queue.remove(ticket).is_none() {
            self.shed.remove(&ticket);
        }
        let index = self.handed.iter().position(|(handed, _)| *handed == ticket)?;
        Some(self.handed.swap_remove(index).1)
    }

    /// Who waits.
    pub fn waiting(&self) -> Vec<W>
    where
        W: Clone,
    {
        self.queue.between(0..u64::MAX).cloned().collect()
    }

    /// Evicts who waits, so that they are routed anew; connections stay.
    pub fn evict(&mut self) -> Vec<W> {
        self.queue.drain()
    }

    /// Evicts those who wait for a connection of that user, as none can be had.
    pub fn evict_user(&mut self, user: UserId) -> Vec<W> {
        self.queue.drain_user(user)
    }

    /// Somebody has joined. True when that calls for [`PoolState::patrol`] again, from time to time.
    pub fn begin_patrol(&mut self) -> bool {
        let begins = self.patrol.is_none();
        if begins {
            let next = self.queue.next_sequence();
            self.patrol = Some(Patrol { told: next.saturating_sub(1), seen: next });
        }
        begins
    }

    /// There will be no looks at the queue any more.
    pub fn end_patrol(&mut self) {
        self.patrol_has_ended = true;
    }

    /// True when who waits has to see to its own time from the start.
    pub fn patrol_has_ended(&self) -> bool {
        self.patrol_has_ended
    }

    /// True while looks at the queue are to be made.
    pub fn is_patrolled(&self) -> bool {
        self.patrol.is_some()
    }

    /// Who was there at the last look already and waits still: each is named once.
    pub fn patrol(&mut self) -> Vec<W>
    where
        W: Clone,
    {
        let Some(Patrol { told, seen }) = self.patrol else { return Vec::new() };
        let next = Patrol { told: seen, seen: self.queue.next_sequence() };
        self.patrol = (!self.queue.is_empty()).then_some(next);
        self.queue.between(told..seen).cloned().collect()
    }

    /// How long those who wait now will take, if each holds a connection as long as commands did of late, and as far as they may
    /// wait at all; `None` before the first did.
    pub fn drains_in(&self) -> Option<Duration> {
        let turns = count(self.queue.len()) / self.limit.max(1);
        let drains_in = self.tenants.mean_held().map(|held| held.saturating_mul(turns));
        let patience = self.codel.as_ref().and_then(Codel::patience);
        drains_in.map(|drains_in| drains_in.min(patience.unwrap_or(drains_in)))
    }

    /// Gives what is available to whoever may have it, in the order of the queue. More than one can go after one has come:
    /// it may have been what several bounds were waiting for.
    pub(super) fn hand_over(&mut self, now: Instant) -> Woken<W> {
        let mut woken = self.shed_late(now);
        let newest_first = self.codel.as_ref().is_some_and(Codel::stands);
        while let Some((ticket, entry)) = self.next_to_go(newest_first) {
            let Some(connection) = self.take_available(ticket.claim.user) else { break };
            self.begin(ticket.claim, now.saturating_duration_since(entry.since));
            self.handed.push((ticket, connection));
            woken.push(entry.waiter);
        }
        woken
    }

    /// Takes the next one out of the queue of a user that has an available connection: of those who may go, who has waited
    /// longest, transactions first.
    fn next_to_go(&mut self, newest_first: bool) -> Option<(Ticket, Entry<W>)> {
        // Of a pool that is not ready it always is.
        if self.queue.is_empty() {
            return None;
        }
        let (shares, in_use) = (self.shares(), self.in_use);
        let mut users = SmallVec::<[UserId; 4]>::new();
        let has_waiters = |user: &UserId| self.queue.of(*user).is_some_and(|queue| !queue.is_empty());
        for user in self.available.iter().rev().map(Owned::user).filter(has_waiters) {
            if !users.contains(&user) {
                users.push(user);
            }
        }
        let turns: &[bool] = if users.len() > 1 {
            users.sort_by_key(|user| self.queue.of(*user).and_then(WaitQueue::oldest));
            &[true, false]
        } else {
            &[false]
        };
        for only_transactions in turns {
            for user in &users {
                let own = self.own_share(*user);
                let pick = Pick { may_lock: shares.allow_locks() && own.locks, newest_first, tenants: &self.tenants };
                let allowed = |lane| {
                    (lane == Lane::Transaction || !only_transactions && own.others) && shares.allow(lane, &in_use)
                };
                if let Some(next) = self.queue.pop(*user, allowed, pick) {
                    return Some(next);
                }
            }
        }
        None
    }

    /// Looks how the queue does, where somebody wants to know, and refuses who has waited too long for that.
    fn shed_late(&mut self, now: Instant) -> Woken<W> {
        let mut woken = Woken::new();
        let shares = self.shares();
        let Some(codel) = &mut self.codel else { return woken };
        loop {
            let pick = Pick { may_lock: shares.allow_locks(), newest_first: false, tenants: &self.tenants };
            // Who may not go whatever is free says nothing about how the queue does.
            let oldest = self.queue.oldest_regular(pick);
            let head = oldest.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
            // Whoever has just come is not an empty queue.
            codel.observe(if oldest.is_some() { head.max(Duration::from_nanos(1)) } else { head }, now);
            let late = oldest.filter(|_| codel.patience().is_some_and(|patience| head > patience));
            let Some((ticket, _)) = late else { return woken };
            let Some(entry) = self.queue.remove(ticket) else { return woken };
            codel.refused();
            self.shed.insert(ticket);
            woken.push(entry.waiter);
        }
    }
}
