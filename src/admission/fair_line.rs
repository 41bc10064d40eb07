//! Who waits in one lane at one level: each tenant in a line of its own, and deficit round-robin among them.
//!
//! A turn gives a tenant as much of the connections' time as its weight says, in units of what a command takes on average
//! ([`UNIT`]); what it did not use of it is kept for its next turn, as long as it goes on waiting (Shreedhar and Varghese,
//! "Efficient fair queueing using deficit round-robin", 1995).

use std::collections::VecDeque;
use std::ops::Range;

use foldhash::{HashMap, HashMapExt as _};
use tokio::time::Instant;

use super::claim::{Claim, Entry, Tenant, Ticket};
use super::line::Line;
use super::tenant_use::{TenantTable, UNIT};

/// The commands of one tenant.
#[derive(Debug)]
struct Commands<T> {
    /// Those that no open transaction can keep waiting on the server.
    free: Line<Entry<T>>,
    /// The others.
    locks: Line<Entry<T>>,
    tenant: Tenant,
    deficit: i64,
}

impl<T> Commands<T> {
    fn new(tenant: Tenant) -> Self {
        Self { free: Line::default(), locks: Line::default(), tenant, deficit: 0 }
    }

    fn len(&self) -> usize {
        self.free.len() + self.locks.len()
    }

    /// The next one that may go.
    fn next(&self, pick: Pick<'_>) -> Option<Ticket> {
        let end = |part: &Line<Entry<T>>| {
            let found = if pick.newest_first { part.last() } else { part.first() };
            found.map(|(sequence, entry)| Ticket { claim: entry.claim, sequence })
        };
        let ends = [end(&self.free), if pick.may_lock { end(&self.locks) } else { None }].into_iter().flatten();
        let order = |ticket: &Ticket| ticket.sequence;
        if pick.newest_first { ends.max_by_key(order) } else { ends.min_by_key(order) }
    }

    fn part(&mut self, locks: bool) -> &mut Line<Entry<T>> {
        if locks { &mut self.locks } else { &mut self.free }
    }
}

/// What decides about who goes next, beside the order.
#[derive(Debug, Clone, Copy)]
pub struct Pick<'a> {
    /// Those go, too, that an open transaction may keep waiting on the server.
    pub may_lock: bool,
    /// Whoever came last goes first, within a tenant.
    pub newest_first: bool,
    /// What the tenants have and what they cost.
    pub tenants: &'a TenantTable,
}

/// Tenants that wait, and their commands.
#[derive(Debug)]
pub struct FairLine<T> {
    /// Those with somebody waiting; the first one's turn it is.
    turns: VecDeque<u16>,
    /// The first one has got what its turn gives.
    granted: bool,
    lines: HashMap<u16, Commands<T>>,
    /// Of a tenant of which nobody waits any more, for the next one: its room is used again.
    spare: Option<Commands<T>>,
    len: usize,
}

impl<T> Default for FairLine<T> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), granted: false, lines: HashMap::new(), spare: None, len: 0 }
    }
}

impl<T> FairLine<T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Joins the line of its tenant, in the place that its sequence gives.
    pub fn insert(&mut self, sequence: u64, entry: Entry<T>) {
        let Claim { tenant, locks, .. } = entry.claim;
        let line = self.lines.entry(tenant.id).or_insert_with(|| {
            self.turns.push_back(tenant.id);
            let spare = self.spare.take();
            spare.map_or_else(|| Commands::new(tenant), |spare| Commands { tenant, deficit: 0, ..spare })
        });
        line.part(locks).insert(sequence, entry);
        self.len += 1;
    }

    /// The one in that place, if it still waits.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Entry<T>> {
        let line = self.lines.get_mut(&ticket.claim.tenant.id)?;
        line.part(ticket.claim.locks).get_mut(ticket.sequence)
    }

    /// Leaves.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Entry<T>> {
        let id = ticket.claim.tenant.id;
        let line = self.lines.get_mut(&id)?;
        let removed = line.part(ticket.claim.locks).remove(ticket.sequence)?;
        self.len -= 1;
        if line.len() == 0 {
            self.spare = self.lines.remove(&id);
            if self.turns.front() == Some(&id) {
                self.granted = false;
            }
            self.turns.retain(|tenant| *tenant != id);
        }
        Some(removed)
    }

    /// Takes whoever is next; `None` when none of those who wait may go.
    pub fn pop(&mut self, pick: Pick<'_>) -> Option<(Ticket, Entry<T>)> {
        // Alone there are no turns to take.
        if self.turns.len() == 1 {
            let id = *self.turns.front()?;
            let line = self.lines.get(&id)?;
            let ticket = line.next(pick).filter(|_| pick.tenants.has_room(line.tenant))?;
            return self.remove(ticket).map(|entry| (ticket, entry));
        }
        let mut barred = 0;
        // Ends: whoever may go gains at least one unit a round, and no command costs more than a few.
        while barred < self.turns.len() {
            let id = *self.turns.front()?;
            let line = self.lines.get_mut(&id)?;
            let has_room = pick.tenants.has_room(line.tenant);
            match line.next(pick).filter(|_| has_room) {
                None => barred += 1,
                Some(ticket) => {
                    barred = 0;
                    let cost = pick.tenants.cost(id);
                    if !self.granted {
                        self.granted = true;
                        // Who was kept from using its turn by its own bound has it still, and no further one.
                        if line.deficit < cost {
                            line.deficit += UNIT * i64::from(line.tenant.weight);
                        }
                    }
                    if line.deficit >= cost {
                        line.deficit -= cost;
                        return self.remove(ticket).map(|entry| (ticket, entry));
                    }
                }
            }
            self.granted = false;
            self.turns.rotate_left(1);
        }
        None
    }

    /// Who waits in the places of these numbers.
    pub fn between(&self, places: Range<u64>) -> impl Iterator<Item = &T> {
        let parts = self.lines.values().flat_map(|line| [&line.free, &line.locks]);
        parts.flat_map(move |part| part.between(places.clone()).map(|entry| &entry.waiter))
    }

    /// When the one who has waited longest joined.
    pub fn oldest(&self) -> Option<Instant> {
        let parts = self.lines.values().flat_map(|line| [&line.free, &line.locks]);
        parts.filter_map(|part| part.first()).map(|(_, entry)| entry.since).min()
    }

    /// The one who has waited longest of those that may go, and since when. Looks at each tenant that waits.
    pub fn oldest_of(&self, pick: Pick<'_>) -> Option<(Ticket, Instant)> {
        let lines = self.lines.values().filter(|line| pick.tenants.has_room(line.tenant));
        let parts = lines.flat_map(|line| [Some(&line.free), pick.may_lock.then_some(&line.locks)]).flatten();
        let first = parts.filter_map(|part| part.first()).min_by_key(|(sequence, _)| *sequence);
        first.map(|(sequence, entry)| (Ticket { claim: entry.claim, sequence }, entry.since))
    }

    /// Everybody, who leave.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        let lines = std::mem::take(self).lines.into_values();
        lines.flat_map(|line| line.free.into_values().chain(line.locks.into_values())).map(|entry| entry.waiter)
    }

    /// Waiting commands of each tenant that waits.
    pub fn waiting(&self) -> impl Iterator<Item = (u16, usize)> {
        self.lines.iter().map(|(tenant, line)| (*tenant, line.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::claim::Lane;
    use super::*;

    /// The tenant and the number of whoever is next.
    fn pop(line: &mut FairLine<u32>, pick: Pick<'_>) -> Option<(u16, u32)> {
        line.pop(pick).map(|(ticket, entry)| (ticket.claim.tenant.id, entry.waiter))
    }

    /// Odd ones may have to wait for locks.
    fn enter(line: &mut FairLine<u32>, tenant: Tenant, waiter: u32) -> Ticket {
        let claim = Claim { locks: waiter % 2 == 1, tenant, ..Lane::Regular.into() };
        line.insert(waiter.into(), Entry { claim, since: Instant::now(), waiter });
        Ticket { claim, sequence: waiter.into() }
    }

    fn join(line: &mut FairLine<u32>, id: u16, weight: u16, waiter: u32) -> Ticket {
        enter(line, Tenant { id, weight, ..Tenant::COMMON }, waiter)
    }

    fn pick(tenants: &TenantTable) -> Pick<'_> {
        Pick { may_lock: true, newest_first: false, tenants }
    }

    #[test]
    fn who_has_many_waiting_has_no_more_than_its_share() {
        let (mut line, tenants) = (FairLine::default(), TenantTable::default());
        for waiter in 0..1_900 {
            join(&mut line, 1, 1, waiter);
        }
        for waiter in 2_000..2_010 {
            join(&mut line, 2, 1, waiter);
        }
        let first: Vec<u16> = (0..20).map(|_| pop(&mut line, pick(&tenants)).unwrap().0).collect();
        assert_eq!(first, [1, 2].repeat(10));
        assert_eq!(pop(&mut line, pick(&tenants)), Some((1, 10)), "in order of arrival");
        assert_eq!(line.len(), 1_889);
    }

    #[test]
    fn weights_are_shares() {
        let (mut line, tenants) = (FairLine::default(), TenantTable::default());
        for waiter in 0..300 {
            join(&mut line, 1, 3, waiter);
            join(&mut line, 2, 1, waiter + 1_000);
        }
        let first: Vec<u16> = (0..200).map(|_| pop(&mut line, pick(&tenants)).unwrap().0).collect();
        assert_eq!(first.iter().filter(|tenant| **tenant == 1).count(), 150);
    }

    #[test]
    fn shares_are_of_time_not_of_commands() {
        let (mut line, mut tenants) = (FairLine::default(), TenantTable::default());
        let of = |id| Claim { tenant: Tenant { id, ..Tenant::COMMON }, ..Lane::Regular.into() };
        for (id, held) in [(1, 1), (2, 4)].into_iter().cycle().take(400) {
            tenants.begin(of(id), Duration::ZERO);
            tenants.end(of(id), Some(Duration::from_millis(held)));
        }
        for waiter in 0..500 {
            join(&mut line, 1, 1, waiter);
            join(&mut line, 2, 1, waiter + 1_000);
        }
        let first: Vec<u16> = (0..250).map(|_| pop(&mut line, pick(&tenants)).unwrap().0).collect();
        let quick = first.iter().filter(|tenant| **tenant == 1).count();
        assert!((195..=205).contains(&quick), "{quick} of 250, four to one");
    }

    #[test]
    fn who_may_not_lock_is_passed_over_and_keeps_its_place() {
        let (mut line, tenants) = (FairLine::default(), TenantTable::default());
        for waiter in [1, 3, 4, 5, 6] {
            join(&mut line, 1, 1, waiter);
        }
        let reads = Pick { may_lock: false, ..pick(&tenants) };
        assert_eq!(
            (pop(&mut line, reads), pop(&mut line, reads), pop(&mut line, reads)),
            (Some((1, 4)), Some((1, 6)), None)
        );
        assert_eq!(pop(&mut line, pick(&tenants)), Some((1, 1)));
        assert_eq!(pop(&mut line, Pick { newest_first: true, ..pick(&tenants) }), Some((1, 5)));
    }

    #[test]
    fn a_tenant_at_its_bound_is_passed_over() {
        let (mut line, mut tenants) = (FairLine::default(), TenantTable::default());
        let bounded = Tenant { id: 1, weight: 1, max_in_flight: 1 };
        for waiter in 0..4 {
            enter(&mut line, bounded, waiter);
        }
        let claim = Claim { tenant: bounded, ..Lane::Regular.into() };
        tenants.begin(claim, Duration::ZERO);
        assert_eq!(pop(&mut line, pick(&tenants)), None);
        join(&mut line, 2, 1, 9);
        assert_eq!(pop(&mut line, pick(&tenants)), Some((2, 9)));
        tenants.end(claim, None);
        assert_eq!(pop(&mut line, pick(&tenants)), Some((1, 0)));
    }

    #[test]
    fn nobody_inherits_the_turn_of_who_has_left() {
        let (mut line, tenants) = (FairLine::default(), TenantTable::default());
        join(&mut line, 1, 4, 0);
        for waiter in 10..20 {
            join(&mut line, 2, 1, waiter);
        }
        assert_eq!(pop(&mut line, pick(&tenants)), Some((1, 0)));
        for waiter in 20..30 {
            join(&mut line, 3, 1, waiter);
        }
        let next: Vec<u16> = (0..6).map(|_| pop(&mut line, pick(&tenants)).unwrap().0).collect();
        assert_eq!(next, [2, 3, 2, 3, 2, 3]);
    }

    #[test]
    fn a_turn_that_was_broken_off_is_only_finished() {
        let (mut line, mut tenants) = (FairLine::default(), TenantTable::default());
        let twice = Tenant { id: 1, weight: 2, max_in_flight: 1 };
        let claim = Claim { tenant: twice, ..Lane::Regular.into() };
        for waiter in 0..10 {
            enter(&mut line, twice, waiter);
            join(&mut line, 2, 1, waiter + 100);
        }
        let mut next = |tenants: &TenantTable| pop(&mut line, pick(tenants)).unwrap().0;
        assert_eq!(next(&tenants), 1);
        tenants.begin(claim, Duration::ZERO);
        assert_eq!([(); 3].map(|()| next(&tenants)), [2; 3], "it is at its bound");
        tenants.end(claim, None);
        assert_eq!([(); 8].map(|()| next(&tenants)), [1, 2, 1, 1, 2, 1, 1, 2]);
    }

    #[test]
    fn while_all_are_at_their_bounds_nobodys_turn_is_over() {
        let (mut line, mut tenants) = (FairLine::default(), TenantTable::default());
        let claims = [1, 2].map(|id| {
            let tenant = Tenant { id, weight: 1, max_in_flight: 1 };
            enter(&mut line, tenant, 10 * u32::from(id));
            Claim { tenant, ..Lane::Regular.into() }
        });
        claims.iter().for_each(|claim| tenants.begin(*claim, Duration::ZERO));
        assert_eq!(pop(&mut line, pick(&tenants)), None);
        claims.iter().for_each(|claim| tenants.end(*claim, None));
        assert_eq!(pop(&mut line, pick(&tenants)), Some((1, 10)));
    }

    #[test]
    fn who_waits_is_told_by_place_by_age_and_by_tenant() {
        let (mut line, mut tenants, start) = (FairLine::default(), TenantTable::default(), Instant::now());
        let at = |seconds: u32| start + Duration::from_secs(seconds.into());
        let (bounded, other) = (Tenant { id: 1, weight: 1, max_in_flight: 1 }, Tenant { id: 2, ..Tenant::COMMON });
        let tickets = [(bounded, 2), (other, 3), (other, 4), (bounded, 5)].map(|(tenant, waiter)| {
            let claim = Claim { locks: waiter % 2 == 1, tenant, ..Lane::Regular.into() };
            line.insert(waiter.into(), Entry { claim, since: at(waiter), waiter });
            Ticket { claim, sequence: waiter.into() }
        });
        let between = |line: &FairLine<u32>, places| {
            let mut found: Vec<u32> = line.between(places).copied().collect();
            found.sort_unstable();
            found
        };
        assert_eq!(between(&line, 0..9), [2, 3, 4, 5]);
        assert_eq!(between(&line, 3..5), [3, 4]);
        let mut waiting: Vec<_> = line.waiting().collect();
        waiting.sort_unstable();
        assert_eq!(waiting, [(1, 2), (2, 2)]);
        assert_eq!((line.oldest(), line.oldest_of(pick(&tenants))), (Some(at(2)), Some((tickets[0], at(2)))));
        tenants.begin(tickets[0].claim, Duration::ZERO);
        assert_eq!(line.oldest_of(pick(&tenants)), Some((tickets[1], at(3))), "a tenant at its bound may not go");
        let reads = Pick { may_lock: false, ..pick(&tenants) };
        assert_eq!(line.oldest_of(reads), Some((tickets[2], at(4))));
        line.get_mut(tickets[1]).unwrap().waiter = 30;
        assert_eq!(line.remove(tickets[0]).map(|entry| entry.waiter), Some(2));
        assert_eq!(line.oldest(), Some(at(3)));
        let mut left: Vec<u32> = line.drain().collect();
        left.sort_unstable();
        assert_eq!(left, [4, 5, 30]);
        assert!(line.is_empty() && line.get_mut(tickets[1]).is_none() && line.remove(tickets[1]).is_none());
    }

    #[test]
    fn who_is_held_back_by_its_own_bound_saves_no_turns() {
        let (mut line, mut tenants) = (FairLine::default(), TenantTable::default());
        let bounded = Tenant { id: 1, weight: 4, max_in_flight: 1 };
        let claim = Claim { tenant: bounded, ..Lane::Regular.into() };
        for waiter in 0..3_000 {
            enter(&mut line, bounded, waiter);
        }
        for _ in 0..1_000 {
            assert!(pop(&mut line, pick(&tenants)).is_some());
            tenants.begin(claim, Duration::ZERO);
            assert_eq!(pop(&mut line, pick(&tenants)), None);
            tenants.end(claim, None);
        }
        for waiter in 10_000..10_100 {
            join(&mut line, 2, 4, waiter);
        }
        let first: Vec<u16> = (0..80).map(|_| pop(&mut line, pick(&tenants)).unwrap().0).collect();
        let saver = first.iter().filter(|tenant| **tenant == 1).count();
        assert!((36..=48).contains(&saver), "{saver} of 80");
    }

    proptest! {
        /// Whatever joins and leaves: nobody is lost, each tenant is served in order, and as long as two wait neither is
        /// served more than its weight and one command's cost ahead of the other.
        #[test]
        fn conserves_keeps_order_and_is_fair(
            weights in prop::collection::vec(1_u16..5, 2..5),
            operations in prop::collection::vec((0_u8..5, 0_usize..8), 1..400)
        ) {
            let (mut line, tenants) = (FairLine::default(), TenantTable::default());
            let mut model: Vec<Vec<Ticket>> = vec![Vec::new(); weights.len()];
            // Served in units of the weight, since the two began to wait beside each other.
            let mut served = vec![vec![0.0_f64; weights.len()]; weights.len()];
            for (sequence, (operation, index)) in (0_u32..).zip(operations) {
                let tenant = index % weights.len();
                match operation {
                    0..3 => {
                        let id = u16::try_from(tenant).unwrap();
                        model[tenant].push(join(&mut line, id, weights[tenant], sequence));
                    }
                    3 if !model[tenant].is_empty() => {
                        let at = index % model[tenant].len();
                        let ticket = model[tenant].remove(at);
                        prop_assert!(line.remove(ticket).is_some());
                        prop_assert!(line.remove(ticket).is_none());
                    }
                    _ => {
                        let waiting: Vec<bool> = model.iter().map(|line| !line.is_empty()).collect();
                        let Some((ticket, _)) = line.pop(pick(&tenants)) else {
                            prop_assert!(!waiting.contains(&true), "somebody may go");
                            continue;
                        };
                        let tenant = usize::from(ticket.claim.tenant.id);
                        prop_assert_eq!(model[tenant].remove(0), ticket, "in order of arrival");
                        for other in 0..weights.len() {
                            if waiting[other] && other != tenant {
                                served[tenant][other] += 1.0 / f64::from(weights[tenant]);
                            }
                        }
                    }
                }
                for one in 0..weights.len() {
                    for other in 0..weights.len() {
                        if model[one].is_empty() || model[other].is_empty() {
                            (served[one][other], served[other][one]) = (0.0, 0.0);
                        }
                        let ahead = served[one][other] - served[other][one];
                        prop_assert!(ahead <= 2.0 + 1e-9, "{one} is {ahead} turns ahead of {other}");
                    }
                }
                prop_assert_eq!(line.len(), model.iter().map(Vec::len).sum::<usize>());
                prop_assert_eq!(line.is_empty(), line.oldest().is_none());
            }
        }
    }
}
