//! Where connections come from and go to: places for those that are being established, and who is to get them; and those that
//! are closing.

use std::time::Duration;

use tokio::time::Instant;

use super::{Held, PoolState, PoolStatus, Woken, count};
use crate::admission::Lane;
use crate::admission::claim::Mean;
use crate::auth::UserId;
use crate::upstream::holders::Owned;

impl<C: Owned, W> PoolState<C, W> {
    /// Takes a place for a connection to be established; returns for which user, and its generation. `None` when there is no
    /// place, or no use for one more.
    pub fn start_connecting(&mut self) -> Option<(UserId, u64)> {
        let user = if self.has_room() { self.wanted_for()? } else { return None };
        Some((user, self.reserve_place(user)))
    }

    /// As [`PoolState::start_connecting`] for a connection of the service that nobody asked for: a probe, or the replacement of
    /// one whose lifetime is over.
    pub fn start_extra(&mut self) -> Option<u64> {
        self.has_room().then(|| self.reserve_place(UserId::SERVICE))
    }

    /// As [`PoolState::start_extra`], whatever else is being established: attempts to reach a server that is down must not
    /// keep the one out that finds it back.
    pub fn start_recheck(&mut self) -> Option<u64> {
        let room = self.status != PoolStatus::Closed && self.counts().total() < self.bounds.max_pool_size;
        room.then(|| self.reserve_place(UserId::SERVICE))
    }

    /// True while the bounds of this pool let one more be established.
    pub fn has_room(&self) -> bool {
        self.status != PoolStatus::Closed
            && self.counts().total() < self.bounds.max_pool_size
            && self.pending < self.bounds.max_connecting
    }

    /// True when no further connection can be established, whoever waits.
    pub fn is_full(&self) -> bool {
        self.counts().total() >= self.bounds.max_pool_size
    }

    /// True while more connections would be used, bounds aside.
    pub fn wants_connection(&self) -> bool {
        self.wanted_for().is_some()
    }

    fn wanted_for(&self) -> Option<UserId> {
        if self.status != PoolStatus::Ready {
            return None;
        }
        if let Some((user, _)) = self.neediest(false) {
            return Some(user);
        }
        let counts = self.counts();
        let open = counts.available + counts.in_use + counts.pending;
        (open < self.bounds.min_pool_size).then_some(UserId::SERVICE)
    }

    /// True when a place can only be had from another user, and not as many are on their way as can be used at once.
    pub(in crate::upstream) fn may_turn_over(&self) -> bool {
        let no_place = self.is_held_up || self.is_full();
        self.status == PoolStatus::Ready
            && self.may_connect
            && no_place
            && self.turned_over < self.bounds.max_connecting
    }

    /// Says whether connections can be established now.
    pub fn set_may_connect(&mut self, may_connect: bool, now: Instant) {
        self.may_connect = may_connect;
        self.holders.forget_held_off(now);
    }

    /// Nothing is established for that user until then.
    pub fn hold_off(&mut self, user: UserId, until: Instant) {
        self.holders.hold_off(user, until);
    }

    /// Says whether a bound over all pools is in the way of taking a place.
    pub fn set_held_up(&mut self, is_held_up: bool) {
        self.is_held_up = is_held_up;
    }

    /// Gives an idle connection of one user up for another one in need. Returns how many: one, or none.
    pub fn turn_over(&mut self, now: Instant) -> u32 {
        let Some(index) = self.idle_to_give(now) else { return 0 };
        let connection = self.available.remove(index);
        self.end(connection);
        self.turned_over += 1;
        1
    }

    fn reserve_place(&mut self, user: UserId) -> u64 {
        self.pending += 1;
        self.turned_over = self.turned_over.saturating_sub(1);
        self.holders.began(user);
        debug_assert!(self.counts().total() <= self.bounds.max_pool_size);
        self.generation
    }

    /// A place taken by `start_connecting` has its connection. Returns who is to be woken.
    pub fn connected(&mut self, connection: C, generation: u64, now: Instant) -> Woken<W> {
        self.pending -= 1;
        self.holders.connected(connection.user());
        let own = Held { claim: Lane::Background.into(), time: None };
        self.begin(own.claim, Duration::ZERO);
        if self.is_stale(generation) || self.is_over_bound() {
            return self.discard(connection, own, now);
        }
        // It is new, so that its user has it for a while.
        self.release(own);
        self.available.push(connection);
        self.hand_over(now)
    }

    /// A place taken by `start_connecting` is free again: there never was a socket.
    pub fn connect_failed(&mut self, user: UserId) {
        self.pending -= 1;
        self.holders.failed(user);
    }

    /// A place taken by `start_connecting` had a socket that is being closed. It stays taken until [`PoolState::closed`].
    pub fn connect_broken(&mut self, user: UserId) {
        self.pending -= 1;
        self.holders.failed(user);
        self.closing += 1;
    }

    /// A closing connection is gone: its place is free.
    pub fn closed(&mut self) {
        self.closing -= 1;
        if self.is_held_up {
            // The place is for whoever is first in line, who may be another pool; who needs one here asks again.
            self.is_held_up = false;
            self.turned_over = self.turned_over.saturating_sub(1);
        }
    }

    /// Connections that the maintenance task is to close.
    pub fn take_discarded(&mut self) -> Vec<C> {
        std::mem::take(&mut self.discarded)
    }

    /// Discards up to `most` available connections that `expired` names, those used longest ago first, and not more
    /// than leave `least` open. Returns how many.
    pub fn retire(&mut self, least: u32, most: u32, mut expired: impl FnMut(&mut C) -> bool) -> u32 {
        let (mut index, mut retired) = (0, 0);
        while index < self.available.len() && retired < most {
            if count(self.available.len()) + self.in_use.total() + self.pending <= least {
                break;
            }
            if expired(&mut self.available[index]) {
                let connection = self.available.remove(index);
                self.end(connection);
                retired += 1;
            } else {
                index += 1;
            }
        }
        retired
    }

    /// A connection was established in so long.
    pub fn took_to_connect(&mut self, time: Duration) {
        self.connect_time.add(time);
    }

    /// How long that takes.
    pub fn connect_time(&self) -> Mean {
        self.connect_time
    }
}
