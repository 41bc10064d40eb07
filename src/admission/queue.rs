//! The wait queue of one server and one user, by lane.
//!
//! Statements of open transactions go first: they hold locks that others wait for. Who waits for data takes turns with all
//! others. Among the others levels go one after the other and tenants by their shares, each in order of arrival; what the
//! proxy does for itself comes last. Whoever comes last by a rule comes all the same, after it was passed over a few times.
//!
//! How long anybody may wait is the caller's business, who calls [`WaitQueue::remove`]; how many is `admit`'s.

use std::ops::Range;

use tokio::time::Instant;

use super::claim::{Entry, Lane, Level, Ticket};
use super::fair_line::{FairLine, Pick};
use super::line::Line;

/// Whoever comes last by a rule is passed over so many times at most: it gets about a tenth of what there is.
const PASSED_OVER: u32 = 9;

const LEVELS: usize = Level::ALL.len();

/// Who waits for a connection of one server.
#[derive(Debug)]
pub struct WaitQueue<T> {
    transactions: Line<Entry<T>>,
    long_polls: Line<Entry<T>>,
    background: Line<Entry<T>>,
    regular: [FairLine<T>; LEVELS],
    /// The last one taken was of [`Lane::Await`].
    long_poll_went: bool,
    /// How often each level, and after them the background, was passed over since it went.
    passed_over: [u32; LEVELS + 1],
}

impl<T> WaitQueue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        Self {
            transactions: Line::default(),
            long_polls: Line::default(),
            background: Line::default(),
            regular: Default::default(),
            long_poll_went: false,
            passed_over: [0; LEVELS + 1],
        }
    }

    /// Takes a place, mostly the one at the end.
    pub fn insert(&mut self, ticket: Ticket, since: Instant, waiter: T) {
        let Ticket { claim, sequence } = ticket;
        let entry = Entry { claim, since, waiter };
        match self.plain(claim.lane) {
            Some(line) => line.insert(sequence, entry),
            None => self.regular[claim.level as usize].insert(sequence, entry),
        }
    }

    /// Takes whoever is next of those whose lane may have one more, by `allowed`.
    pub fn pop(&mut self, allowed: impl Fn(Lane) -> bool, pick: Pick<'_>) -> Option<(Ticket, Entry<T>)> {
        if allowed(Lane::Transaction)
            && let Some(next) = self.pop_first(Lane::Transaction)
        {
            return Some(next);
        }
        let polls = !self.long_polls.is_empty() && allowed(Lane::Await);
        if polls && !self.long_poll_went {
            self.long_poll_went = true;
            return self.pop_first(Lane::Await);
        }
        let other = self.pop_other(allowed(Lane::Regular), allowed(Lane::Background), pick);
        if other.is_some() {
            self.long_poll_went = false;
            return other;
        }
        if polls { self.pop_first(Lane::Await) } else { None }
    }

    /// True when somebody may go of those whose lane may have one more.
    pub fn may_go(&self, allowed: impl Fn(Lane) -> bool, pick: Pick<'_>) -> bool {
        let plain = [
            (Lane::Transaction, &self.transactions),
            (Lane::Await, &self.long_polls),
            (Lane::Background, &self.background),
        ];
        plain.iter().any(|(lane, line)| !line.is_empty() && allowed(*lane))
            || allowed(Lane::Regular) && self.regular.iter().any(|line| line.oldest_of(pick).is_some())
    }

    /// Of the levels of [`Lane::Regular`] and then of [`Lane::Background`], but for whom they have passed over too often.
    fn pop_other(&mut self, regular: bool, background: bool, pick: Pick<'_>) -> Option<(Ticket, Entry<T>)> {
        // All of them: the first may be one that may not go now.
        let passed_over = self.passed_over;
        let overdue = (0..=LEVELS).rev().filter(|place| passed_over[*place] >= PASSED_OVER);
        let (place, next) = overdue.chain(0..=LEVELS).find_map(|place| {
            let next = match self.regular.get_mut(place) {
                Some(line) if regular => line.pop(pick),
                None if background => self.pop_first(Lane::Background),
                _ => None,
            };
            next.map(|next| (place, next))
        })?;
        self.passed_over[place] = 0;
        for later in place + 1..=LEVELS {
            let waits = self.regular.get(later).map_or(!self.background.is_empty(), |line| !line.is_empty());
            self.passed_over[later] = if waits { self.passed_over[later] + 1 } else { 0 };
        }
        Some(next)
    }

    fn pop_first(&mut self, lane: Lane) -> Option<(Ticket, Entry<T>)> {
        let (sequence, entry) = self.plain(lane)?.pop_first()?;
        Some((Ticket { claim: entry.claim, sequence }, entry))
    }

    /// Leaves the queue; `None` if that ticket is not waiting any more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Entry<T>> {
        match self.plain(ticket.claim.lane) {
            Some(line) => line.remove(ticket.sequence),
            None => self.regular[ticket.claim.level as usize].remove(ticket),
        }
    }

    /// The waiter with that ticket, if it still waits.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        let entry = match ticket.claim.lane {
            Lane::Regular => self.regular[ticket.claim.level as usize].get_mut(ticket),
            lane => self.plain(lane)?.get_mut(ticket.sequence),
        };
        entry.map(|entry| &mut entry.waiter)
    }

    /// Empties the queue.
    pub fn drain(&mut self) -> Vec<T> {
        let plain = [&mut self.transactions, &mut self.long_polls, &mut self.background];
        let plain = plain.into_iter().flat_map(|line| std::mem::take(line).into_values()).map(|entry| entry.waiter);
        plain.chain(self.regular.iter_mut().flat_map(FairLine::drain)).collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        [Lane::Transaction, Lane::Regular, Lane::Await, Lane::Background].map(|lane| self.lane_len(lane)).iter().sum()
    }

    /// How many wait in one lane.
    pub fn lane_len(&self, lane: Lane) -> usize {
        match lane {
            Lane::Transaction => self.transactions.len(),
            Lane::Regular => self.regular.iter().map(FairLine::len).sum(),
            Lane::Await => self.long_polls.len(),
            Lane::Background => self.background.len(),
        }
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Who waits in the places of these numbers.
    pub fn between(&self, places: Range<u64>) -> impl Iterator<Item = &T> {
        let plain = [&self.transactions, &self.long_polls, &self.background].into_iter();
        let plain = plain.flat_map({
            let places = places.clone();
            move |line| line.between(places.clone()).map(|entry| &entry.waiter)
        });
        plain.chain(self.regular.iter().flat_map(move |line| line.between(places.clone())))
    }

    /// When the one who has waited longest joined.
    pub fn oldest(&self) -> Option<Instant> {
        let plain = [&self.transactions, &self.long_polls, &self.background].into_iter();
        let plain = plain.filter_map(|line| line.first()).map(|(_, entry)| entry.since);
        plain.chain(self.regular.iter().filter_map(FairLine::oldest)).min()
    }

    /// The one of [`Lane::Regular`] who has waited longest of those that may go, and since when.
    pub fn oldest_regular(&self, pick: Pick<'_>) -> Option<(Ticket, Instant)> {
        self.regular.iter().filter_map(|line| line.oldest_of(pick)).min_by_key(|(ticket, _)| ticket.sequence)
    }

    /// Waiting commands of each tenant that has some in [`Lane::Regular`].
    pub fn tenants(&self) -> impl Iterator<Item = (u16, usize)> {
        self.regular.iter().flat_map(FairLine::waiting)
    }

    /// The line of a lane that knows neither levels nor tenants.
    fn plain(&mut self, lane: Lane) -> Option<&mut Line<Entry<T>>> {
        match lane {
            Lane::Transaction => Some(&mut self.transactions),
            Lane::Regular => None,
            Lane::Await => Some(&mut self.long_polls),
            Lane::Background => Some(&mut self.background),
        }
    }
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::claim::{Claim, Tenant};
    use super::super::tenant_use::TenantTable;
    use super::*;

    /// A queue that numbers those who come.
    #[derive(Default)]
    struct Numbered {
        queue: WaitQueue<u32>,
        next: u64,
    }

    impl Numbered {
        fn push(&mut self, claim: Claim, since: Instant, waiter: u32) -> Ticket {
            let ticket = Ticket { claim, sequence: self.next };
            self.next += 1;
            self.queue.insert(ticket, since, waiter);
            ticket
        }
    }

    impl std::ops::Deref for Numbered {
        type Target = WaitQueue<u32>;

        fn deref(&self) -> &WaitQueue<u32> {
            &self.queue
        }
    }

    impl std::ops::DerefMut for Numbered {
        fn deref_mut(&mut self) -> &mut WaitQueue<u32> {
            &mut self.queue
        }
    }

    fn pop(queue: &mut WaitQueue<u32>) -> Option<u32> {
        let pick = Pick { may_lock: true, newest_first: false, tenants: &TenantTable::default() };
        queue.pop(|_| true, pick).map(|(_, entry)| entry.waiter)
    }

    fn order(queue: &mut WaitQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| pop(queue)).collect()
    }

    #[test]
    fn transactions_go_first_and_the_proxy_itself_last() {
        let mut queue = Numbered::default();
        let now = Instant::now();
        for (lane, waiter) in [(Lane::Background, 1), (Lane::Regular, 2), (Lane::Background, 3), (Lane::Transaction, 4)]
        {
            queue.push(lane.into(), now, waiter);
        }
        assert_eq!(order(&mut queue), [4, 2, 1, 3]);
    }

    #[test]
    fn who_waits_for_data_takes_turns_with_all_others() {
        let mut queue = Numbered::default();
        let now = Instant::now();
        for waiter in 1..=4 {
            queue.push(Lane::Regular.into(), now, waiter);
        }
        for waiter in 11..=12 {
            queue.push(Lane::Await.into(), now, waiter);
        }
        assert_eq!(order(&mut queue), [11, 1, 12, 2, 3, 4]);
    }

    #[test]
    fn levels_go_in_their_order_and_none_is_left_out() {
        let mut queue = Numbered::default();
        for _ in 0..100 {
            for level in Level::ALL {
                queue.push(Claim { level, ..Lane::Regular.into() }, Instant::now(), level as u32);
            }
            queue.push(Lane::Background.into(), Instant::now(), 3);
        }
        let first: Vec<u32> = (0..100).map(|_| pop(&mut queue).unwrap()).collect();
        let count = |what| first.iter().filter(|waiter| **waiter == what).count();
        assert_eq!((count(0), count(1), count(2), count(3)), (73, 8, 9, 10), "{first:?}");
        assert_eq!(first[..9], [0; 9]);
    }

    #[test]
    fn who_may_not_go_does_not_hide_others_that_were_passed_over() {
        let (mut queue, mut tenants) = (Numbered::default(), TenantTable::default());
        let bounded = Tenant { id: 1, weight: 1, max_in_flight: 1 };
        let low = Claim { level: Level::Low, tenant: bounded, ..Lane::Regular.into() };
        tenants.begin(low, std::time::Duration::ZERO);
        queue.push(low, Instant::now(), 2);
        for _ in 0..300 {
            queue.push(Claim { level: Level::High, ..Lane::Regular.into() }, Instant::now(), 0);
            queue.push(Lane::Regular.into(), Instant::now(), 1);
        }
        let pick = |tenants| Pick { may_lock: true, newest_first: false, tenants };
        let went: Vec<u32> = (0..200).map(|_| queue.pop(|_| true, pick(&tenants)).unwrap().1.waiter).collect();
        let normal = went.iter().filter(|waiter| **waiter == 1).count();
        assert_eq!((normal, went.contains(&2)), (20, false), "{went:?}");
    }

    #[test]
    fn whoever_waits_can_be_told_of_changed_and_sent_away_in_each_lane() {
        let (lanes, tenants) =
            ([Lane::Transaction, Lane::Regular, Lane::Await, Lane::Background], TenantTable::default());
        let pick = Pick { may_lock: true, newest_first: false, tenants: &tenants };
        for one in lanes {
            let (mut queue, since) = (Numbered::default(), Instant::now());
            assert!(queue.is_empty() && !queue.may_go(|_| true, pick) && queue.oldest().is_none());
            let ticket = queue.push(one.into(), since, 7);
            assert_eq!(lanes.map(|lane| queue.lane_len(lane)), lanes.map(|lane| usize::from(lane == one)));
            assert_eq!(lanes.map(|lane| queue.may_go(|it| it == lane, pick)), lanes.map(|lane| lane == one));
            assert_eq!((queue.len(), queue.is_empty(), queue.oldest()), (1, false, Some(since)));
            assert_eq!(queue.oldest_regular(pick), (one == Lane::Regular).then_some((ticket, since)));
            assert_eq!(queue.tenants().collect::<Vec<_>>(), vec![(0, 1); usize::from(one == Lane::Regular)]);
            *queue.get_mut(ticket).unwrap() = 8;
            assert_eq!(queue.between(0..1).copied().collect::<Vec<_>>(), [8]);
            assert_eq!(queue.between(1..9).count(), 0);
            let other = Ticket { sequence: 1, ..ticket };
            assert!(queue.get_mut(other).is_none() && queue.remove(other).is_none());
            assert_eq!(queue.drain(), [8]);
            assert!(queue.is_empty() && queue.remove(ticket).is_none());
        }
    }

    #[test]
    fn of_several_the_oldest_is_told_whatever_its_lane_and_level() {
        let (mut queue, start, tenants) = (Numbered::default(), Instant::now(), TenantTable::default());
        let at = |seconds| start + std::time::Duration::from_secs(seconds);
        let pick = Pick { may_lock: true, newest_first: false, tenants: &tenants };
        let low = queue.push(Claim { level: Level::Low, ..Lane::Regular.into() }, at(2), 1);
        queue.push(Claim { level: Level::High, ..Lane::Regular.into() }, at(3), 2);
        let poll = queue.push(Lane::Await.into(), at(1), 3);
        assert_eq!((queue.oldest(), queue.oldest_regular(pick)), (Some(at(1)), Some((low, at(2)))));
        queue.remove(poll);
        assert_eq!(queue.oldest(), Some(at(2)));
    }

    #[test]
    fn who_rejoins_has_its_old_place() {
        let mut queue = Numbered::default();
        let (early, late) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(1));
        let first = queue.push(Lane::Regular.into(), early, 1);
        queue.push(Lane::Regular.into(), late, 2);
        assert_eq!(pop(&mut queue), Some(1));
        assert_eq!(queue.oldest(), Some(late));
        queue.insert(first, early, 3);
        assert_eq!((queue.oldest(), queue.len()), (Some(early), 2));
        assert_eq!(order(&mut queue), [3, 2]);
    }
}
