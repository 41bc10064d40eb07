//! What a command that waits for a connection is short of: only that is worth to be raised.

use super::holders::Owned;
use super::pool_state::{PoolBounds, PoolState};
use crate::admission::{Claim, Lane};

/// What a command waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// All connections of the pool are in use: `max_pool_size`.
    Pool,
    /// As many are in flight as may be: `max_in_flight`.
    InFlight,
    /// As many are in flight as the server is given at once: `adaptive_limit`.
    Adaptive,
    /// Other servers' connections leave none: `max_upstream_connections`.
    Cluster,
    /// Its tenant has all that it may have: `tenant_max_in_flight`, or that of a `[[tenant]]`.
    Tenant,
    /// It may have to wait for the locks of a transaction, whose statements the only connection is kept for.
    Transaction,
    /// None of these: a connection is being established, or its lane has its share.
    Other,
}

impl Shortage {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Pool, Self::InFlight, Self::Adaptive, Self::Cluster, Self::Tenant, Self::Transaction, Self::Other];

    /// Its number.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Of a pool of which no further connection may be in use, whoever asks; `None` while one may.
    pub(super) fn of_pool<C: Owned, W>(state: &PoolState<C, W>) -> Option<Self> {
        let (bounds, in_use) = (state.bounds(), state.counts().in_use);
        match () {
            () if in_use >= bounds.max_in_flight => Some(Self::of_bounds(bounds)),
            () if state.busy() >= state.limit() => Some(Self::Adaptive),
            () => None,
        }
    }

    fn of_bounds(bounds: &PoolBounds) -> Self {
        if bounds.max_in_flight < bounds.max_pool_size { Self::InFlight } else { Self::Pool }
    }

    /// Of a command that has to wait; `exhausted`: a bound over several pools leaves no further connection.
    pub(super) fn of_claim<C: Owned, W>(state: &PoolState<C, W>, claim: Claim, exhausted: bool) -> Self {
        if let Some(shortage) = Self::of_pool(state) {
            return shortage;
        }
        let (bounds, counts) = (state.bounds(), state.counts());
        let others_have_it = exhausted && counts.total() < bounds.max_pool_size;
        match () {
            () if claim.lane == Lane::Regular && !state.tenants().has_room(claim.tenant) => Self::Tenant,
            // What is idle is another user's.
            () if counts.available > 0 && !state.has_available(claim.user) => {
                if others_have_it {
                    Self::Cluster
                } else if state.is_full() {
                    Self::Pool
                } else {
                    Self::Other
                }
            }
            () if counts.available > 0 && claim.lane != Lane::Regular => Self::Other,
            () if counts.available > 0 && claim.locks && !state.shares().allow_locks() => Self::Transaction,
            () if others_have_it => Self::Cluster,
            // What there is is kept for open transactions: of a larger pool there would be more for others.
            () if counts.available > 0 && state.limit() < bounds.max_in_flight => Self::Adaptive,
            () if counts.available > 0 => Self::of_bounds(bounds),
            () => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::admission::{Level, Tenant};
    use crate::auth::UserId;
    use crate::config::QueueDiscipline;
    use crate::upstream::pool_state::CheckOut;

    const READ: Claim = Claim {
        lane: Lane::Regular,
        level: Level::Normal,
        locks: false,
        tenant: Tenant::COMMON,
        user: UserId::SERVICE,
    };
    const WRITE: Claim = Claim { locks: true, ..READ };

    /// A pool with so many connections, all of them idle.
    fn pool(open: u32, max_in_flight: u32, max_pool_size: u32) -> PoolState<u32, u32> {
        let (min_pool_size, max_connecting, discipline) = (1, 1, QueueDiscipline::Fifo);
        let mut pool = PoolState::new(PoolBounds {
            max_pool_size,
            min_pool_size,
            max_user_connections: None,
            max_connecting,
            max_in_flight,
            discipline,
            contended: false,
        });
        pool.ready();
        for number in 0..open {
            let generation = pool.start_extra().unwrap();
            pool.connected(number, generation, Instant::now());
        }
        pool
    }

    /// With so many of them in use for that.
    fn used(mut pool: PoolState<u32, u32>, claim: Claim, count: u32) -> PoolState<u32, u32> {
        (0..count).for_each(|_| assert!(matches!(pool.check_out(claim), CheckOut::Now(_))));
        pool
    }

    #[test]
    fn a_full_pool_is_short_of_what_its_bound_is() {
        assert_eq!(Shortage::of_pool(&used(pool(3, 3, 3), READ, 2)), None);
        assert_eq!(Shortage::of_pool(&used(pool(3, 3, 3), READ, 3)), Some(Shortage::Pool));
        assert_eq!(Shortage::of_pool(&used(pool(3, 3, 5), READ, 3)), Some(Shortage::InFlight));
        let mut adaptive = used(pool(8, 8, 8), Lane::Await.into(), 2);
        adaptive.set_limit(2, Instant::now());
        assert_eq!(Shortage::of_pool(&adaptive), None, "who waits for data takes nothing of what a server is given");
        assert_eq!(Shortage::of_pool(&used(adaptive, READ, 2)), Some(Shortage::Adaptive));
    }

    #[test]
    fn who_waits_beside_what_is_free_is_short_of_something_else() {
        let tenant = Claim { tenant: Tenant { id: 1, weight: 1, max_in_flight: 2 }, ..READ };
        let bounded = used(pool(4, 4, 4), tenant, 2);
        assert_eq!(Shortage::of_claim(&bounded, tenant, false), Shortage::Tenant);
        let full = used(bounded, READ, 2);
        assert_eq!(Shortage::of_claim(&full, tenant, false), Shortage::Pool, "all the others have the rest");

        let mut one = pool(1, 1, 1);
        one.transaction_begun(UserId::SERVICE);
        assert_eq!(one.check_out(WRITE), CheckOut::Wait);
        assert_eq!(Shortage::of_claim(&one, WRITE, false), Shortage::Transaction);
        let mut kept = used(pool(3, 3, 3), READ, 2);
        kept.transaction_begun(UserId::SERVICE);
        assert_eq!(kept.check_out(READ), CheckOut::Wait);
        assert_eq!(Shortage::of_claim(&kept, READ, false), Shortage::Pool, "in a larger one there was room beside it");
        assert_eq!(Shortage::of_claim(&kept, Lane::Await.into(), false), Shortage::Other, "its lane's share");
    }

    #[test]
    fn a_pool_that_may_not_grow_is_short_of_the_bound_over_all() {
        let grows = || used(pool(2, 5, 5), READ, 2);
        assert_eq!(Shortage::of_claim(&grows(), READ, true), Shortage::Cluster);
        assert_eq!(Shortage::of_claim(&grows(), READ, false), Shortage::Other, "a connection is on its way");
        assert_eq!(Shortage::of_claim(&used(pool(5, 5, 5), READ, 5), READ, true), Shortage::Pool);
    }
}
