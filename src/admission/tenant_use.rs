//! What each tenant has of one pool, how long it holds a connection, and how long it waited for one.

use std::time::Duration;

use super::claim::{Claim, Lane, Mean, Tenant};

/// The cost of a command that holds its connection as long as commands do on average.
pub const UNIT: i64 = 1_024;

/// No command counts for less or for more than this share or multiple of the average one: a tenant's turn stays short, and
/// comes.
const SPREAD: i64 = 8;

/// Waits up to this are told apart by quarters of an octave.
const SHORTEST: Duration = Duration::from_micros(16);

const BUCKETS: usize = 96;

/// How long commands waited, in buckets that grow by a fifth each.
#[derive(Debug, Clone)]
pub struct Waits {
    counts: [u64; BUCKETS],
}

impl Default for Waits {
    fn default() -> Self {
        Self { counts: [0; BUCKETS] }
    }
}

impl Waits {
    fn add(&mut self, wait: Duration) {
        self.counts[Self::bucket(wait)] += 1;
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the number of buckets")]
    fn bucket(wait: Duration) -> usize {
        if wait <= SHORTEST {
            return 0;
        }
        let octaves = (wait.as_secs_f64() / SHORTEST.as_secs_f64()).log2();
        ((octaves * 4.0).ceil() as usize).min(BUCKETS - 1)
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The wait that this share of all was not longer than, at most a fifth too much; `None` before the first.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank among counts"
    )]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        let octaves = u32::try_from(bucket).map_or(0.0, f64::from) / 4.0;
        Some(if bucket == 0 { Duration::ZERO } else { SHORTEST.mul_f64(octaves.exp2()) })
    }
}

/// What one tenant has of a pool.
#[derive(Debug, Clone, Default)]
pub struct TenantUse {
    /// Connections in use.
    pub in_use: u32,
    /// Those of them that count against its own bound: whoever waits for data or goes on with a transaction is not held to it.
    bounded: u32,
    /// How long it holds one.
    pub held: Mean,
    /// How long its commands waited for one.
    pub waits: Waits,
}

/// All tenants of a pool, by their number.
#[derive(Debug, Default)]
pub struct TenantTable {
    tenants: Vec<TenantUse>,
    held: Mean,
}

impl TenantTable {
    fn of(&mut self, tenant: Tenant) -> &mut TenantUse {
        let index = usize::from(tenant.id);
        if index >= self.tenants.len() {
            self.tenants.resize_with(index + 1, TenantUse::default);
        }
        &mut self.tenants[index]
    }

    /// It gets a connection, after a wait.
    pub fn begin(&mut self, claim: Claim, waited: Duration) {
        let used = self.of(claim.tenant);
        used.in_use += 1;
        used.bounded += u32::from(claim.lane == Lane::Regular);
        used.waits.add(waited);
    }

    /// It gives a connection back that it has held for so long; `None` where that is no measure.
    pub fn end(&mut self, claim: Claim, held: Option<Duration>) {
        let used = self.of(claim.tenant);
        used.in_use -= 1;
        used.bounded -= u32::from(claim.lane == Lane::Regular);
        if let Some(held) = held {
            used.held.add(held);
            self.held.add(held);
        }
    }

    /// True while its own bound lets it have one more.
    pub fn has_room(&self, tenant: Tenant) -> bool {
        let bound = tenant.max_in_flight;
        bound == u16::MAX || self.tenants.get(usize::from(tenant.id)).is_none_or(|used| used.bounded < bound.into())
    }

    /// What its next command is expected to take of the connections' time, [`UNIT`] being the average.
    #[expect(clippy::cast_possible_truncation, reason = "clamped below")]
    pub fn cost(&self, id: u16) -> i64 {
        let held = self.tenants.get(usize::from(id)).and_then(|used| used.held.seconds());
        match (held, self.held.seconds()) {
            (Some(own), Some(all)) if all > 0.0 => ((own / all * 1_024.0) as i64).clamp(UNIT / SPREAD, UNIT * SPREAD),
            _ => UNIT,
        }
    }

    /// How long a command holds a connection, on average; `None` before the first.
    pub fn mean_held(&self) -> Option<Duration> {
        self.held.get()
    }

    /// What each has, by its number.
    pub fn all(&self) -> &[TenantUse] {
        &self.tenants
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const A: Tenant = Tenant { id: 1, weight: 1, max_in_flight: 2 };
    const B: Tenant = Tenant { id: 5, weight: 1, max_in_flight: u16::MAX };

    fn of(tenant: Tenant) -> Claim {
        Claim { tenant, ..Lane::Regular.into() }
    }

    #[test]
    fn a_tenant_has_as_many_as_it_may() {
        let mut table = TenantTable::default();
        // Neither counts against its bound.
        for lane in [Lane::Await, Lane::Transaction] {
            table.begin(Claim { lane, ..of(A) }, Duration::ZERO);
        }
        for _ in 0..2 {
            assert!(table.has_room(A));
            table.begin(of(A), Duration::ZERO);
        }
        assert!(!table.has_room(A) && table.has_room(B));
        table.end(of(A), None);
        assert!(table.has_room(A));
        assert_eq!(table.all()[1].in_use, 3);
    }

    #[test]
    fn who_holds_longer_costs_more_within_bounds() {
        let mut table = TenantTable::default();
        assert_eq!(table.cost(A.id), UNIT, "nothing is known");
        for (tenant, held) in [(A, MS), (B, MS * 3)].into_iter().cycle().take(400) {
            table.begin(of(tenant), Duration::ZERO);
            table.end(of(tenant), Some(held));
        }
        let (cheap, dear) = (table.cost(A.id), table.cost(B.id));
        assert!((2.9..3.1).contains(&(dear as f64 / cheap as f64)), "{cheap} {dear}");
        assert_eq!(table.cost(7), UNIT, "a newcomer");
        for _ in 0..400 {
            table.begin(of(B), Duration::ZERO);
            table.end(of(B), Some(MS * 1_000));
        }
        assert_eq!(table.cost(A.id), UNIT / SPREAD);
    }

    #[test]
    fn nobody_costs_more_than_eight_times_the_average_and_what_takes_no_time_costs_one() {
        let mut table = TenantTable::default();
        let mut hold = |tenant, held| {
            table.begin(of(tenant), Duration::ZERO);
            table.end(of(tenant), Some(held));
            table.cost(tenant.id)
        };
        assert_eq!(hold(A, Duration::ZERO), UNIT);
        assert_eq!(hold(B, MS * 1_000), UNIT * SPREAD, "it is all that takes time");
        assert_eq!(hold(A, MS), UNIT / SPREAD);
    }

    #[test]
    fn what_says_nothing_about_the_time_does_not_change_the_mean() {
        let mut table = TenantTable::default();
        assert_eq!(table.mean_held(), None);
        for held in [Some(MS * 16), None, Some(MS * 32)] {
            table.begin(of(A), Duration::ZERO);
            table.end(of(A), held);
        }
        assert_eq!(table.mean_held(), Some(MS * 17), "a new one weighs a sixteenth");
        assert_eq!(table.all()[1].held.get(), Some(MS * 17));
        assert_eq!((table.all()[1].in_use, table.all()[1].waits.count()), (0, 3));
    }

    #[test]
    fn waits_are_told_apart_by_quarters_of_an_octave() {
        let told = |micros| {
            let mut waits = Waits::default();
            waits.add(Duration::from_micros(micros));
            waits.quantile(1.0).unwrap()
        };
        assert_eq!([0, 15, 16].map(told), [Duration::ZERO; 3]);
        assert_eq!([32, 64, 1_024].map(told), [32, 64, 1_024].map(Duration::from_micros));
        assert!((Duration::from_micros(38)..Duration::from_micros(39)).contains(&told(33)), "{:?}", told(33));
    }

    #[test]
    fn quantiles_are_right_to_a_fifth() {
        let mut waits = Waits::default();
        assert_eq!(waits.quantile(0.5), None);
        (0..100).for_each(|_| waits.add(Duration::ZERO));
        assert_eq!(waits.quantile(0.99), Some(Duration::ZERO));
        (1..=900).for_each(|wait| waits.add(MS * wait));
        for (share, exact) in [(0.5, MS * 400), (0.95, MS * 850)] {
            let told = waits.quantile(share).unwrap();
            assert!((exact..=exact.mul_f64(1.2)).contains(&told), "{share}: {told:?} for {exact:?}");
        }
        waits.add(Duration::from_secs(100_000));
        assert!(waits.quantile(1.0).unwrap() > Duration::from_secs(100));
        assert_eq!(waits.count(), 1_001);
    }
}
