//! What of the connections may be in use at once, and by whom: the limit in force, what is kept for transactions, and what a pool can do
//! without.

use tokio::time::Instant;

use super::{PoolState, Woken, count};
use crate::admission::shares::Shares;
use crate::admission::{Claim, Lane};
use crate::auth::UserId;
use crate::upstream::holders::Owned;

/// What commands may begin that go on with no transaction.
#[derive(Debug, Clone, Copy)]
pub(in crate::upstream) struct OwnShare {
    /// Any of them.
    pub(in crate::upstream) others: bool,
    /// Those that may have to wait for its locks.
    pub(in crate::upstream) locks: bool,
}

impl<C: Owned, W> PoolState<C, W> {
    /// Commands that may be in flight at once, beside those that wait for data: these keep no server busy.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Sets [`PoolState::limit`], `max_in_flight` at most. Returns who is to be woken: there may be room for more now.
    pub fn set_limit(&mut self, limit: u32, now: Instant) -> Woken<W> {
        self.limit = limit.min(self.bounds.max_in_flight);
        self.hand_over(now)
    }

    /// Connections that are in use beside those of commands that wait for data.
    pub fn busy(&self) -> u32 {
        self.in_use.total() - self.in_use.of(Lane::Await)
    }

    /// Connections that may be in use at once as things stand, those of commands that wait for data included.
    pub fn most_in_use(&self) -> u32 {
        self.limit.saturating_add(self.in_use.of(Lane::Await)).min(self.bounds.max_in_flight)
    }

    /// What there is to share now.
    pub fn shares(&self) -> Shares {
        let open = || count(self.available.len()) + self.in_use.total();
        let reach = if self.bounds.contended { open() } else { u32::MAX };
        let (limit, most) = (self.most_in_use(), self.bounds.max_in_flight);
        Shares { limit, most, reach, open_transactions: self.open_transactions }
    }

    /// What a user with a bound of its own may do while it has a transaction open: as of the whole pool, of its own connections one
    /// is for that.
    pub(in crate::upstream) fn own_share(&self, user: UserId) -> OwnShare {
        let bound = self.own_bound(user).map(|most| (most, self.holders.of(user)));
        let Some((most, holding)) = bound.filter(|(_, holding)| holding.transactions > 0) else {
            return OwnShare { others: true, locks: true };
        };
        let idle = self.available.iter().filter(|connection| connection.user() == user).count();
        let in_use = holding.open - count(idle);
        OwnShare { others: most == 1 || in_use + 1 < most, locks: most > 1 }
    }

    /// The bound on the connections of that user, if it has one: the service has that of the pool.
    pub(in crate::upstream) fn own_bound(&self, user: UserId) -> Option<u32> {
        self.bounds.max_user_connections.filter(|_| user != UserId::SERVICE)
    }

    pub(super) fn may_begin(&self, claim: Claim) -> bool {
        let (shares, own) = (self.shares(), self.own_share(claim.user));
        shares.allow(claim.lane, &self.in_use)
            && (claim.lane == Lane::Transaction || own.others)
            && (claim.lane != Lane::Regular
                || (!claim.locks || shares.allow_locks() && own.locks) && self.tenants.has_room(claim.tenant))
    }

    /// True while the share of the proxy's own work lets it have one more.
    pub fn may_borrow(&self) -> bool {
        self.shares().allow(Lane::Background, &self.in_use)
    }

    /// True when all others share one connection, as another one is kept for a transaction.
    pub fn is_cramped(&self) -> bool {
        let shares = self.shares();
        shares.kept() > 0 && shares.limit.min(shares.reach) - shares.kept() == 1
    }

    /// True when the pool can do with one connection less: nobody waits, and what is idle is not all kept for a transaction.
    pub fn can_spare_idle(&self) -> bool {
        self.queue.is_empty() && count(self.available.len()) > self.shares().kept()
    }

    /// True when the pool needs a connection although others need theirs: it has none, or a transaction waits for one.
    pub fn is_in_need(&self) -> bool {
        self.counts().total() == 0 || self.queue.lane_len(Lane::Transaction) > 0
    }

    /// True when the pool can give one up for another that is in need: it has more, beside what is kept for transactions.
    pub fn can_give(&self) -> bool {
        self.counts().total() > 1 + self.shares().kept()
    }
}
