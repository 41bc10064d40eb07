//! How many connections of a pool each lane may have in use, of the `n` that may be in use at all.
//!
//! | lane | may have in use |
//! | --- | --- |
//! | `transaction` | all that there may be, also beyond an adaptive limit, and goes first |
//! | all others together | `n` while no transaction is open on the server, else `n` less what is kept for transactions: one for each that is open, up to a tenth of `n` and one at least |
//! | `await` of those | half of `n`, one at least |
//! | `background` of those | a quarter of `n`, one at least |
//!
//! Of a single connection nothing can be kept. While a transaction is open it carries the transaction's statements and
//! reads from outside, which no lock keeps waiting; writes from outside, and other transactions that begin, wait here.

use super::claim::Lane;
use crate::telemetry::labels::Label as _;

const LANES: usize = Lane::ALL.len();

/// Half of the connections that may be in use, and one at least: what may wait for data, or on a primary without followers.
pub const fn half_of(connections: u32) -> u32 {
    at_least_one(connections / 2)
}

const fn at_least_one(connections: u32) -> u32 {
    if connections == 0 { 1 } else { connections }
}

/// Connections in use, by lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InUse([u32; LANES]);

impl InUse {
    /// One more.
    pub fn begin(&mut self, lane: Lane) {
        self.0[lane.index()] += 1;
    }

    /// One less.
    pub fn end(&mut self, lane: Lane) {
        self.0[lane.index()] -= 1;
    }

    /// By that lane.
    pub fn of(&self, lane: Lane) -> u32 {
        self.0[lane.index()]
    }

    /// By all lanes.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }
}

/// What there is to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// In use at once, by all lanes but that of transactions.
    pub limit: u32,
    /// In use at once, whatever adapts: a limit that falls while a transaction is open must not lock out its commit.
    pub most: u32,
    /// Connections that are certain: fewer than `limit` where other pools may have what a bound over all of them allows.
    pub reach: u32,
    /// Transactions that are open on the server.
    pub open_transactions: u32,
}

impl Shares {
    /// Kept for transactions now.
    pub fn kept(&self) -> u32 {
        let reach = self.limit.min(self.reach);
        if reach <= 1 { 0 } else { self.open_transactions.min(at_least_one(reach / 10)) }
    }

    /// True when one more of that lane may be in use, whatever else holds a command back.
    pub fn allow(&self, lane: Lane, in_use: &InUse) -> bool {
        if in_use.total() >= if lane == Lane::Transaction { self.most } else { self.limit } {
            return false;
        }
        let others = || in_use.total() - in_use.of(Lane::Transaction);
        let room_for_others = || self.kept() == 0 || others() < self.limit.min(self.reach) - self.kept();
        match lane {
            Lane::Transaction => true,
            Lane::Regular => room_for_others(),
            Lane::Await => in_use.of(lane) < half_of(self.limit) && room_for_others(),
            Lane::Background => in_use.of(lane) < at_least_one(self.limit / 4) && room_for_others(),
        }
    }

    /// True when what may have to wait for the locks of a transaction can be sent: there is another connection for the
    /// statement that frees them.
    pub fn allow_locks(&self) -> bool {
        self.open_transactions == 0 || self.kept() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(limit: u32, open_transactions: u32) -> Shares {
        Shares { limit, most: limit, reach: u32::MAX, open_transactions }
    }

    /// As many of a lane as may be in use at once, beside those of `beside`.
    fn most(shares: Shares, lane: Lane, beside: &[(Lane, u32)]) -> u32 {
        let mut in_use = InUse::default();
        for (lane, count) in beside {
            (0..*count).for_each(|_| in_use.begin(*lane));
        }
        let before = in_use.of(lane);
        while shares.allow(lane, &in_use) {
            in_use.begin(lane);
        }
        in_use.of(lane) - before
    }

    #[test]
    fn the_documented_numbers() {
        // Of n: kept at most, others while a transaction is open, await, background.
        for (limit, kept, others, awaiting, background) in
            [(1, 0, 1, 1, 1), (2, 1, 1, 1, 1), (10, 1, 9, 5, 2), (200, 20, 180, 100, 50)]
        {
            let (idle, busy) = (shares(limit, 0), shares(limit, 1_000));
            assert_eq!((idle.kept(), busy.kept()), (0, kept), "{limit}");
            assert_eq!(most(idle, Lane::Regular, &[]), limit, "an idle lane costs nothing");
            assert_eq!(most(busy, Lane::Regular, &[]), others, "{limit}");
            assert_eq!(most(idle, Lane::Await, &[]), awaiting, "{limit}");
            assert_eq!(most(idle, Lane::Background, &[]), background, "{limit}");
            assert_eq!(most(busy, Lane::Transaction, &[(Lane::Regular, others)]), limit - others, "{limit}");
            assert_eq!(most(busy, Lane::Transaction, &[]), limit, "{limit}");
            assert_eq!(busy.allow_locks(), limit > 1);
            assert!(idle.allow_locks());
        }
    }

    #[test]
    fn what_has_ended_is_not_in_use_any_more() {
        let mut in_use = InUse::default();
        [Lane::Regular, Lane::Regular, Lane::Await].into_iter().for_each(|lane| in_use.begin(lane));
        in_use.end(Lane::Regular);
        assert_eq!((in_use.of(Lane::Regular), in_use.of(Lane::Await), in_use.total()), (1, 1, 2));
    }

    #[test]
    fn one_is_kept_for_each_transaction_up_to_a_tenth() {
        let kept: Vec<u32> = [0, 1, 2, 3, 9].map(|open| shares(30, open).kept()).into();
        assert_eq!(kept, [0, 1, 2, 3, 3]);
    }

    #[test]
    fn lanes_share_what_is_left() {
        let busy = shares(10, 1);
        assert_eq!(most(busy, Lane::Await, &[(Lane::Regular, 6)]), 3);
        assert_eq!(most(busy, Lane::Regular, &[(Lane::Await, 5), (Lane::Background, 2)]), 2);
        assert_eq!(
            most(busy, Lane::Regular, &[(Lane::Transaction, 8)]),
            2,
            "who uses more than is kept takes from all"
        );
    }

    #[test]
    fn a_limit_that_fell_does_not_lock_out_a_transaction() {
        let fell = Shares { most: 20, ..shares(18, 1) };
        let mut in_use = InUse::default();
        (0..18).for_each(|_| in_use.begin(Lane::Regular));
        assert!(fell.allow(Lane::Transaction, &in_use));
        assert!([Lane::Regular, Lane::Await, Lane::Background].iter().all(|lane| !fell.allow(*lane, &in_use)));
    }

    #[test]
    fn what_cannot_be_opened_cannot_be_kept() {
        let bounded = Shares { reach: 2, ..shares(10, 1) };
        assert_eq!(most(bounded, Lane::Regular, &[]), 1);
        let single = Shares { reach: 1, ..bounded };
        assert!(!single.allow_locks() && single.allow(Lane::Regular, &InUse::default()));
    }
}
