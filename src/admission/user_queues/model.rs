//! Queues beside a plain list of who waits: the tests of this crate make up at random who comes and goes, and a fuzz target
//! makes it of bytes. Compiled for these only, and so by what both of them can name.

use super::*;

const LANES: [Lane; 4] = [Lane::Transaction, Lane::Regular, Lane::Await, Lane::Background];

/// Whatever the rules, nobody is lost or served twice, each tenant's commands of one lane and level go in order, and nobody
/// goes whose lane may not. An operation is what it is, a lane, whom it is about, and the lanes that may go.
pub(super) fn run(operations: &[(u8, u8, u8, u8)]) {
    let mut queues: UserQueues<usize> = UserQueues::default();
    let mut list: Vec<(Ticket, usize)> = Vec::new();
    let (now, tenants) = (Instant::now(), TenantTable::default());
    for (step, (operation, lane, index, mask)) in operations.iter().enumerate() {
        match operation % 4 {
            0 | 1 => {
                let ticket = queues.push(claim(*lane, *index), now, step);
                list.push((ticket, step));
            }
            2 => {
                let allowed = |lane: Lane| LANES.iter().zip(0..).any(|(it, bit)| *it == lane && mask & (1 << bit) != 0);
                let pick = Pick { may_lock: index % 2 == 0, newest_first: false, tenants: &tenants };
                let Some((ticket, waiter, place)) = goes(&mut queues, &mut list, allowed, pick) else { continue };
                // Now and then what it gets is of no use.
                if mask & 0xC0 == 0xC0 {
                    queues.rejoin(ticket, now, waiter);
                    list.insert(place, (ticket, waiter));
                }
            }
            _ if usize::from(*index) < list.len() => {
                let (ticket, waiter) = list.remove((*index).into());
                assert_eq!(queues.get_mut(ticket).copied(), Some(waiter));
                assert_eq!(queues.remove(ticket).map(|entry| entry.waiter), Some(waiter));
                assert!(queues.remove(ticket).is_none());
            }
            _ => {}
        }
        assert_eq!((queues.len(), queues.is_empty()), (list.len(), list.is_empty()));
        for lane in LANES {
            assert_eq!(queues.lane_len(lane), list.iter().filter(|(ticket, _)| ticket.claim.lane == lane).count());
        }
        assert_eq!(queues.between(0..u64::MAX).count(), list.len());
    }
    let mut left = queues.drain();
    left.sort_unstable();
    let mut listed: Vec<_> = list.into_iter().map(|(_, waiter)| waiter).collect();
    listed.sort_unstable();
    assert_eq!(left, listed);
}

/// Whom a command is for, of a few of all kinds.
fn claim(lane: u8, index: u8) -> Claim {
    let level = [Level::High, Level::Normal, Level::Low][usize::from(index / 3 % 3)];
    let tenant = Tenant { id: u16::from(index % 3), ..Tenant::COMMON };
    Claim { level, locks: index % 2 == 1, tenant, ..LANES[usize::from(lane % 4)].into() }
}

/// Takes whoever is next, who has to be the first of its like; returns where it stood.
fn goes(
    queues: &mut UserQueues<usize>,
    list: &mut Vec<(Ticket, usize)>,
    allowed: impl Fn(Lane) -> bool,
    pick: Pick<'_>,
) -> Option<(Ticket, usize, usize)> {
    let may = |claim: Claim| allowed(claim.lane) && (pick.may_lock || !claim.locks || claim.lane != Lane::Regular);
    let somebody = list.iter().any(|(ticket, _)| may(ticket.claim));
    assert_eq!(queues.of(UserId::SERVICE).map(|queue| queue.may_go(&allowed, pick)), Some(somebody));
    let Some((ticket, entry)) = queues.pop(UserId::SERVICE, &allowed, pick) else {
        assert!(!somebody, "somebody may go");
        return None;
    };
    assert!(may(ticket.claim));
    let place = list.iter().position(|(other, _)| {
        let (same, claim) = (other.claim.lane == ticket.claim.lane, ticket.claim);
        let apart = other.claim.level == claim.level && other.claim.tenant == claim.tenant;
        same && may(other.claim) && (claim.lane != Lane::Regular || apart)
    });
    let place = place.expect("who goes was there");
    assert_eq!(list.remove(place), (ticket, entry.waiter));
    let transaction = list.iter().any(|(other, _)| other.claim.lane == Lane::Transaction);
    assert!(ticket.claim.lane == Lane::Transaction || !(transaction && allowed(Lane::Transaction)));
    Some((ticket, entry.waiter, place))
}
