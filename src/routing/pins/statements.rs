//! Which statements of a transaction are on their way, and transactions of which none has been for long.
//!
//! A transaction is idle only while no statement of it is on its way, from before it waits for a connection until its client
//! has the reply, or the server is done with it. One that is ended for being idle stays ended to its client, whatever the
//! server still thinks: no later statement of it is passed on, so that no commit can succeed that was answered as failed. One
//! that was asked to commit is never ended: it may have succeeded, although nobody has heard of it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Ended, PinSerial, Pins};
use crate::command::TransactionId;
use crate::telemetry::Application;

/// Tells the transaction that a statement was counted for from earlier and later ones of the same session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatementSerial(PinSerial);

/// The transaction was ended, since it had been idle for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was idle for {} ms and was aborted", .0.as_millis())]
pub struct WasIdle(pub Duration);

/// Those of one transaction.
#[derive(Debug)]
pub(super) struct Statements {
    serial: StatementSerial,
    on_their_way: u32,
    /// When the last one began or ended.
    last: Instant,
    commit_sent: bool,
    was_idle: Option<WasIdle>,
}

impl Statements {
    pub(super) fn none(pin: PinSerial, now: Instant) -> Self {
        Self { serial: StatementSerial(pin), on_their_way: 0, last: now, commit_sent: false, was_idle: None }
    }

    pub(super) fn commit_was_sent(&self) -> bool {
        self.commit_sent
    }

    /// How long none has been on its way; `None` while one is.
    pub(super) fn idle(&self, now: Instant) -> Option<Duration> {
        (self.on_their_way == 0).then(|| now.duration_since(self.last))
    }
}

impl Pins {
    /// A statement of this transaction is on its way from now on, until [`Pins::statement_ended`]; `None` where nobody here
    /// knows the transaction. It may be one that has ended: then its server says so.
    ///
    /// # Errors
    /// [`WasIdle`]: the statement must not be passed on.
    pub fn statement_begins(
        &mut self,
        id: TransactionId,
        application: &Application,
        now: Instant,
    ) -> Result<Option<StatementSerial>, WasIdle> {
        let Some(pin) = self.transactions.get_mut(&id.session).filter(|pin| pin.number == id.number) else {
            return Ok(None);
        };
        if let Some(was_idle) = pin.statements.was_idle {
            return Err(was_idle);
        }
        pin.application.get_or_insert_with(|| application.clone());
        pin.statements.on_their_way = pin.statements.on_their_way.saturating_add(1);
        pin.statements.last = now;
        Ok(Some(pin.statements.serial))
    }

    /// A statement is on its way no more. Nobody waits for a reply to it, and its server is done with it.
    pub fn statement_ended(&mut self, id: TransactionId, counted: StatementSerial, now: Instant) {
        if let Some(pin) = self.transactions.get_mut(&id.session).filter(|pin| pin.statements.serial == counted) {
            pin.statements.on_their_way = pin.statements.on_their_way.saturating_sub(1);
            pin.statements.last = now;
        }
    }

    /// The server may hear of a commit from now on.
    pub fn commit_is_sent(&mut self, id: TransactionId) {
        if let Some(pin) = self.transactions.get_mut(&id.session).filter(|pin| pin.number == id.number) {
            pin.statements.commit_sent = true;
        }
    }

    /// Ends up to `most` open transactions of which no statement has been on its way for `limit`.
    pub fn take_idle(&mut self, limit: Duration, most: usize, now: Instant) -> Vec<(TransactionId, Ended)> {
        let idle = self.transactions.iter_mut().filter_map(|(session, pin)| {
            let idle = pin.statements.idle(now).filter(|idle| *idle >= limit)?;
            // What was ended before and is open still is an orphan: that is not tried again at once.
            let spared = pin.statements.commit_sent || pin.statements.was_idle.is_some();
            (pin.open && !spared).then_some((session, pin, idle))
        });
        let ended = idle.take(most).map(|(session, pin, idle)| {
            pin.statements.was_idle = Some(WasIdle(idle));
            (TransactionId { session: *session, number: pin.number }, pin.end(now))
        });
        ended.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Address;
    use crate::telemetry::Applications;

    const LIMIT: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn transaction(session: u8, number: i64) -> TransactionId {
        TransactionId { session: [session; 16].into(), number }
    }

    fn server() -> Arc<Address> {
        Arc::new(Address::tcp("127.0.0.1", 1))
    }

    fn idle(pins: &mut Pins, now: Instant) -> Vec<TransactionId> {
        pins.take_idle(LIMIT, usize::MAX, now).into_iter().map(|(id, _)| id).collect()
    }

    fn begins(pins: &mut Pins, id: TransactionId, now: Instant) -> Result<Option<StatementSerial>, WasIdle> {
        pins.statement_begins(id, &Applications::default().unnamed(), now)
    }

    #[test]
    fn what_is_idle_is_ended_once_and_takes_no_more_statements() {
        let (mut pins, now, id) = (Pins::default(), Instant::now(), transaction(1, 5));
        pins.pin_transaction(id, server(), now).unwrap();
        let statement = begins(&mut pins, id, now).unwrap().unwrap();
        assert_eq!(idle(&mut pins, now + 5 * LIMIT), [], "its first statement is on its way");
        let ended = now + 5 * LIMIT;
        pins.statement_ended(id, statement, ended);
        assert_eq!(idle(&mut pins, ended + LIMIT - SECOND), []);
        let taken = pins.take_idle(LIMIT, usize::MAX, ended + LIMIT);
        assert_eq!((taken[0].0, taken[0].1.open_for), (id, 6 * LIMIT));
        assert_eq!((idle(&mut pins, ended + 2 * LIMIT), pins.count()), (vec![], (0, 0)), "once");
        assert_eq!(begins(&mut pins, id, ended + LIMIT), Err(WasIdle(LIMIT)));
        // Its server could not be asked to abort it: it is tried again, and its client still hears nothing else.
        pins.reopen_transaction(id, None, ended + LIMIT);
        assert_eq!(begins(&mut pins, id, ended + LIMIT), Err(WasIdle(LIMIT)));
        assert_eq!(pins.count(), (0, 1), "open again");
        assert_eq!(idle(&mut pins, ended + 2 * LIMIT), [], "it is an orphan from now on");
        assert_eq!(pins.take_orphans(usize::MAX, ended + 2 * LIMIT).len(), 1);
        // The next one of its session is another.
        let next = transaction(1, 6);
        assert_eq!(begins(&mut pins, next, ended + LIMIT), Ok(None));
        pins.pin_transaction(next, server(), ended + LIMIT).unwrap();
        assert!(begins(&mut pins, next, ended + LIMIT).unwrap().is_some());
    }

    #[test]
    fn what_was_asked_to_commit_is_not_ended() {
        let (mut pins, now, id) = (Pins::default(), Instant::now(), transaction(1, 5));
        pins.pin_transaction(id, server(), now).unwrap();
        let commit = begins(&mut pins, id, now).unwrap().unwrap();
        pins.commit_is_sent(id);
        pins.statement_ended(id, commit, now);
        assert_eq!(idle(&mut pins, now + 20 * LIMIT), [], "its reply may be lost");
        assert!(begins(&mut pins, id, now + 20 * LIMIT).unwrap().is_some(), "and is asked for again");
    }

    #[test]
    fn a_statement_counts_although_its_transaction_was_ended_meanwhile() {
        let (mut pins, now, id) = (Pins::default(), Instant::now(), transaction(1, 5));
        pins.pin_transaction(id, server(), now).unwrap();
        let one = begins(&mut pins, id, now).unwrap().unwrap();
        pins.end_transaction(id, now).unwrap();
        let two = begins(&mut pins, id, now).unwrap().unwrap();
        pins.reopen_transaction(id, None, now);
        assert_eq!(idle(&mut pins, now + LIMIT), []);
        pins.statement_ended(id, one, now);
        assert_eq!(idle(&mut pins, now + LIMIT), []);
        pins.statement_ended(id, two, now);
        assert_eq!(idle(&mut pins, now + LIMIT), [id]);
    }

    #[test]
    fn a_late_end_does_not_count_for_the_next_transaction() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        for number in [5, 6, 6] {
            let id = transaction(1, number);
            pins.pin_transaction(id, server(), now).unwrap();
            let late = begins(&mut pins, id, now).unwrap().unwrap();
            pins.end_transaction(id, now).unwrap();
            pins.pin_transaction(id, server(), now).unwrap();
            let _on_its_way = begins(&mut pins, id, now).unwrap().unwrap();
            pins.statement_ended(id, late, now);
            assert_eq!(idle(&mut pins, now + LIMIT), [], "of {number}");
            pins.end_transaction(id, now).unwrap();
        }
    }

    #[test]
    fn no_more_are_taken_than_can_be_seen_to() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        (0..10).for_each(|session| pins.pin_transaction(transaction(session, 1), server(), now).unwrap());
        let taken = [4, 4, 4].map(|most| pins.take_idle(LIMIT, most, now + LIMIT).len());
        assert_eq!(taken, [4, 4, 2]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Start(u8, i64),
        Begin(u8, i64),
        Finish(usize),
        Commit(u8, i64),
        End(u8, i64),
        Reopen(u8, i64),
        Pass(u64),
        Take,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (session, number) = (0..3_u8, 1..4_i64);
        let step = prop_oneof![
            3 => (session.clone(), number.clone()).prop_map(|(l, n)| Step::Start(l, n)),
            5 => (session.clone(), number.clone()).prop_map(|(l, n)| Step::Begin(l, n)),
            5 => (0..8_usize).prop_map(Step::Finish),
            1 => (session.clone(), number.clone()).prop_map(|(l, n)| Step::Commit(l, n)),
            1 => (session.clone(), number.clone()).prop_map(|(l, n)| Step::End(l, n)),
            1 => (session, number).prop_map(|(l, n)| Step::Reopen(l, n)),
            3 => (1..12_u64).prop_map(Step::Pass),
            3 => Just(Step::Take),
        ];
        prop::collection::vec(step, 1..100)
    }

    /// A transaction, the naive way: with the names of its statements on their way.
    struct Known {
        number: i64,
        open: bool,
        refuses: bool,
        commit_sent: bool,
        on_their_way: BTreeSet<usize>,
        last: Instant,
        since: Instant,
    }

    proptest! {
        #[test]
        fn only_what_has_no_statement_on_its_way_is_ended(steps in steps()) {
            let (mut pins, mut now) = (Pins::default(), Instant::now());
            let mut model: BTreeMap<u8, Known> = BTreeMap::new();
            let mut under_way: Vec<(usize, TransactionId, StatementSerial)> = Vec::new();
            for (name, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Start(session, number) => {
                        pins.pin_transaction(transaction(session, number), server(), now).unwrap();
                        let again = model.get(&session).is_some_and(|it| it.number == number && it.open);
                        if !again {
                            let (on_their_way, last) = (BTreeSet::new(), now);
                            let (open, refuses, commit_sent) = (true, false, false);
                            let new = Known { number, open, refuses, commit_sent, on_their_way, last, since: now };
                            model.insert(session, new);
                        }
                    }
                    Step::Begin(session, number) => {
                        let begun = begins(&mut pins, transaction(session, number), now);
                        match model.get_mut(&session).filter(|it| it.number == number) {
                            None => prop_assert_eq!(begun, Ok(None)),
                            Some(known) if known.refuses => prop_assert!(begun.is_err()),
                            Some(known) => {
                                under_way.push((name, transaction(session, number), begun.unwrap().unwrap()));
                                known.on_their_way.insert(name);
                                known.last = now;
                            }
                        }
                    }
                    Step::Finish(which) if which < under_way.len() => {
                        let (name, id, serial) = under_way.swap_remove(which);
                        pins.statement_ended(id, serial, now);
                        for known in model.values_mut().filter(|it| it.on_their_way.contains(&name)) {
                            known.on_their_way.remove(&name);
                            known.last = now;
                        }
                    }
                    Step::Finish(_) => {}
                    Step::Commit(session, number) => {
                        pins.commit_is_sent(transaction(session, number));
                        if let Some(known) = model.get_mut(&session).filter(|it| it.number == number) {
                            known.commit_sent = true;
                        }
                    }
                    Step::End(session, number) => {
                        pins.end_transaction(transaction(session, number), now);
                        if let Some(known) = model.get_mut(&session).filter(|it| it.number == number) {
                            known.open = false;
                        }
                    }
                    Step::Reopen(session, number) => {
                        pins.reopen_transaction(transaction(session, number), None, now);
                        let young = |it: &&mut Known| now.duration_since(it.since) < Duration::from_secs(120);
                        if let Some(known) = model.get_mut(&session).filter(|it| it.number == number).filter(young) {
                            known.open = true;
                        }
                    }
                    Step::Pass(seconds) => now += Duration::from_secs(seconds),
                    Step::Take => {
                        let found: BTreeSet<_> = idle(&mut pins, now).into_iter().collect();
                        let mut expected = BTreeSet::new();
                        for (session, known) in &mut model {
                            let quiet = known.on_their_way.is_empty() && now.duration_since(known.last) >= LIMIT;
                            if known.open && quiet && !known.commit_sent && !known.refuses {
                                (known.open, known.refuses) = (false, true);
                                expected.insert(transaction(*session, known.number));
                            }
                        }
                        prop_assert_eq!(found, expected);
                    }
                }
                prop_assert_eq!(pins.count().1, model.values().filter(|it| it.open).count());
            }
        }
    }
}
