//! Which open transactions one client's socket has used, so that their pins can be told when it is gone.
//!
//! A driver sends the statements of a transaction over any of its sockets, and may go on over a new one. So a transaction
//! is nobody's only when all of them are gone.

use tokio::time::Instant;

use super::pins::{PinSerial, Pins};
use crate::command::TransactionId;
use crate::config::limits::MAX_TRANSACTIONS_PER_SOCKET;

/// The open transactions that one socket has used. Each is counted in its pin once, until [`SocketUses::leave_all`].
#[derive(Debug, Default)]
pub struct SocketUses(Vec<(TransactionId, PinSerial)>);

impl SocketUses {
    /// A statement of this transaction has come.
    pub fn uses(&mut self, id: TransactionId, pins: &mut Pins, now: Instant) {
        let known = self.0.iter().position(|(it, _)| it.session == id.session);
        let counted = known.map(|index| self.0[index]).filter(|(it, _)| *it == id).map(|(_, serial)| serial);
        let Some(serial) = pins.join(id, counted, now) else { return };
        if let Some(index) = known {
            // The newer transaction of a session has ended the older one.
            self.0[index] = (id, serial);
            return;
        }
        if self.0.len() >= MAX_TRANSACTIONS_PER_SOCKET {
            self.forget_ended(pins);
        }
        // Beyond the bound it has joined and never leaves: better open for the server's time than aborted under a client.
        if self.0.len() < MAX_TRANSACTIONS_PER_SOCKET {
            self.0.push((id, serial));
        }
    }

    /// The transaction has ended, so there is nothing to leave.
    pub fn ended(&mut self, id: TransactionId) {
        self.0.retain(|(it, _)| *it != id);
    }

    /// Those that have ended otherwise are not remembered.
    pub fn forget_ended(&mut self, pins: &Pins) {
        self.0.retain(|(id, serial)| pins.is_open(*id, *serial));
    }

    /// The socket is gone.
    pub fn leave_all(&mut self, pins: &mut Pins, now: Instant) {
        self.0.drain(..).for_each(|(id, serial)| pins.leave(id, serial, now));
    }

    /// The socket is gone, and its client cannot go on over another one.
    pub fn abandon_all(&mut self, pins: &mut Pins, now: Instant) {
        self.0.drain(..).for_each(|(id, serial)| pins.abandon(id, serial, now));
    }

    /// True when no transaction is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Address;
    use crate::config::limits::ORPHANED_TRANSACTION_GRACE as GRACE;

    const SECOND: Duration = Duration::from_secs(1);

    fn transaction(session: u8, number: i64) -> TransactionId {
        TransactionId { session: [session; 16].into(), number }
    }

    fn server() -> Arc<Address> {
        Arc::new(Address::tcp("127.0.0.1", 1))
    }

    fn orphans(pins: &mut Pins, now: Instant) -> Vec<TransactionId> {
        pins.take_orphans(usize::MAX, now).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn a_transaction_is_orphaned_once_its_last_socket_has_been_gone_for_long_enough() {
        let (mut pins, now, id) = (Pins::default(), Instant::now(), transaction(1, 5));
        let (mut one, mut two) = (SocketUses::default(), SocketUses::default());
        pins.pin_transaction(id, server(), now).unwrap();
        for _ in 0..2 {
            one.uses(id, &mut pins, now);
            two.uses(id, &mut pins, now);
        }
        one.leave_all(&mut pins, now);
        assert_eq!(orphans(&mut pins, now + 20 * SECOND), [], "one of two is there still");
        let gone = now + 20 * SECOND;
        two.leave_all(&mut pins, gone);
        assert_eq!(orphans(&mut pins, gone + GRACE - SECOND), []);
        let taken = pins.take_orphans(usize::MAX, gone + GRACE);
        assert_eq!(taken[0].0, id);
        assert_eq!((&taken[0].1.server, taken[0].1.open_for), (&server(), 20 * SECOND + GRACE));
        assert_eq!(pins.count(), (0, 0), "it counts no more");
        assert_eq!(orphans(&mut pins, gone + 2 * GRACE), [], "once");
        assert!(pins.transaction(id, gone + GRACE).is_some(), "a late commit goes where it can be answered");
    }

    #[test]
    fn what_was_abandoned_is_orphaned_as_soon_as_nobody_uses_it_and_once() {
        let (mut pins, now, id) = (Pins::default(), Instant::now(), transaction(1, 5));
        let (mut socket, mut statement) = (SocketUses::default(), SocketUses::default());
        pins.pin_transaction(id, server(), now).unwrap();
        socket.uses(id, &mut pins, now);
        statement.uses(id, &mut pins, now);
        socket.abandon_all(&mut pins, now);
        assert!(socket.is_empty());
        assert_eq!(orphans(&mut pins, now + 10 * GRACE), [], "a statement is on its way");
        statement.leave_all(&mut pins, now);
        assert_eq!(orphans(&mut pins, now), [id]);
        pins.reopen_transaction(id, None, now);
        assert_eq!(orphans(&mut pins, now), [], "what kept it from being aborted may take a while");
        assert_eq!(orphans(&mut pins, now + GRACE), [id]);
        // Of an ended one, or of a later one of the session, nothing is left to abandon.
        let next = transaction(1, 6);
        pins.pin_transaction(next, server(), now).unwrap();
        let mut socket = SocketUses::default();
        socket.uses(next, &mut pins, now);
        pins.end_transaction(next, now).unwrap();
        socket.abandon_all(&mut pins, now);
        assert_eq!(orphans(&mut pins, now + GRACE), []);
    }

    #[test]
    fn a_socket_that_comes_back_in_time_keeps_the_transaction() {
        let (mut pins, now, id) = (Pins::default(), Instant::now(), transaction(1, 5));
        let (mut old, mut new) = (SocketUses::default(), SocketUses::default());
        pins.pin_transaction(id, server(), now).unwrap();
        old.uses(id, &mut pins, now);
        old.leave_all(&mut pins, now);
        new.uses(id, &mut pins, now + GRACE - SECOND);
        assert_eq!(orphans(&mut pins, now + 10 * GRACE), []);
        pins.end_transaction(id, now + 10 * GRACE).unwrap();
        new.leave_all(&mut pins, now + 10 * GRACE);
        assert_eq!(orphans(&mut pins, now + 20 * GRACE), [], "committed");
    }

    #[test]
    fn an_abort_that_came_to_nothing_is_tried_again_while_the_transaction_can_be_open() {
        let (mut pins, mut now, id) = (Pins::default(), Instant::now(), transaction(1, 5));
        let mut socket = SocketUses::default();
        pins.pin_transaction(id, server(), now).unwrap();
        socket.uses(id, &mut pins, now);
        let mut aborts = 0;
        while pins.end_transaction(id, now).is_some() {
            aborts += 1;
            now += 10 * SECOND;
            pins.reopen_transaction(id, None, now);
            assert_eq!(orphans(&mut pins, now), []);
        }
        assert_eq!(aborts, 12, "two minutes long");
        pins.pin_transaction(transaction(1, 6), server(), now).unwrap();
        pins.reopen_transaction(id, None, now);
        assert_eq!(orphans(&mut pins, now + GRACE), [transaction(1, 6)], "the next one of its session has replaced it");

        // Whoever comes back to it counts again, whatever was counted before.
        pins.pin_transaction(id, server(), now).unwrap();
        socket.uses(id, &mut pins, now);
        pins.end_transaction(id, now).unwrap();
        pins.reopen_transaction(id, None, now);
        socket.uses(id, &mut pins, now);
        assert_eq!(orphans(&mut pins, now + 10 * GRACE), []);
    }

    #[test]
    fn no_more_are_taken_than_can_be_seen_to() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        for session in 0..10 {
            pins.pin_transaction(transaction(session, 1), server(), now).unwrap();
        }
        let mut taken = BTreeSet::new();
        for expected in [4, 4, 2, 0] {
            let some = pins.take_orphans(4, now + GRACE);
            assert_eq!(some.len(), expected);
            taken.extend(some.into_iter().map(|(id, _)| id));
        }
        assert_eq!(taken.len(), 10);
    }

    #[test]
    fn what_one_socket_is_remembered_to_use_is_bounded() {
        let (mut pins, now, mut socket) = (Pins::default(), Instant::now(), SocketUses::default());
        let all = u8::try_from(MAX_TRANSACTIONS_PER_SOCKET).unwrap();
        for session in 0..=all {
            pins.pin_transaction(transaction(session, 1), server(), now).unwrap();
            socket.uses(transaction(session, 1), &mut pins, now);
        }
        assert_eq!(socket.0.len(), MAX_TRANSACTIONS_PER_SOCKET);
        // Those that others have ended make room.
        pins.end_transaction(transaction(0, 1), now).unwrap();
        pins.pin_transaction(transaction(200, 1), server(), now).unwrap();
        socket.uses(transaction(200, 1), &mut pins, now);
        assert!(socket.0.iter().any(|(id, _)| *id == transaction(200, 1)));
        socket.leave_all(&mut pins, now);
        assert_eq!(orphans(&mut pins, now + GRACE).len(), MAX_TRANSACTIONS_PER_SOCKET, "not the one beyond the bound");
        assert_eq!(pins.count().1, 1);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Start(usize, u8, i64),
        Use(usize, u8, i64),
        End(usize, u8, i64),
        EndElsewhere(u8, i64),
        Close(usize),
        Pass(u64),
        Expire,
        Take,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (socket, session, number) = (0..3_usize, 0..3_u8, 1..4_i64);
        let step = prop_oneof![
            3 => (socket.clone(), session.clone(), number.clone()).prop_map(|(s, l, n)| Step::Start(s, l, n)),
            4 => (socket.clone(), session.clone(), number.clone()).prop_map(|(s, l, n)| Step::Use(s, l, n)),
            1 => (socket.clone(), session.clone(), number.clone()).prop_map(|(s, l, n)| Step::End(s, l, n)),
            1 => (session, number).prop_map(|(l, n)| Step::EndElsewhere(l, n)),
            3 => socket.prop_map(Step::Close),
            3 => (1..8_u64).prop_map(Step::Pass),
            1 => Just(Step::Pass(130)),
            1 => Just(Step::Expire),
            2 => Just(Step::Take),
        ];
        prop::collection::vec(step, 1..80)
    }

    /// A transaction that is open, the naive way: with the names of those who use it.
    struct Open {
        number: i64,
        sockets: BTreeSet<usize>,
        last_used: Instant,
    }

    proptest! {
        #[test]
        fn the_count_is_that_of_a_model_with_names(steps in steps()) {
            let (mut pins, mut now) = (Pins::default(), Instant::now());
            let mut sockets: [SocketUses; 3] = Default::default();
            let mut model: BTreeMap<u8, Open> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Start(socket, session, number) => {
                        let id = transaction(session, number);
                        pins.pin_transaction(id, server(), now).unwrap();
                        sockets[socket].uses(id, &mut pins, now);
                        let again = model.remove(&session).filter(|open| open.number == number);
                        let mut open = again.unwrap_or(Open { number, sockets: BTreeSet::new(), last_used: now });
                        open.sockets.insert(socket);
                        open.last_used = now;
                        model.insert(session, open);
                    }
                    Step::Use(socket, session, number) => {
                        sockets[socket].uses(transaction(session, number), &mut pins, now);
                        if let Some(open) = model.get_mut(&session).filter(|open| open.number == number) {
                            open.sockets.insert(socket);
                            open.last_used = now;
                        }
                    }
                    Step::End(socket, session, number) => {
                        let ended = pins.end_transaction(transaction(session, number), now).is_some();
                        sockets[socket].ended(transaction(session, number));
                        prop_assert_eq!(ended, model.get(&session).is_some_and(|open| open.number == number));
                        model.retain(|it, open| *it != session || open.number != number);
                    }
                    Step::EndElsewhere(session, number) => {
                        pins.end_transaction(transaction(session, number), now);
                        model.retain(|it, open| *it != session || open.number != number);
                    }
                    Step::Close(socket) => {
                        sockets[socket].leave_all(&mut pins, now);
                        for open in model.values_mut().filter(|open| open.sockets.contains(&socket)) {
                            open.sockets.remove(&socket);
                            open.last_used = now;
                        }
                    }
                    Step::Pass(seconds) => now += Duration::from_secs(seconds),
                    Step::Expire => {
                        pins.expire(now);
                        model.retain(|_, open| now.duration_since(open.last_used) < Duration::from_secs(120));
                    }
                    Step::Take => {
                        let found: BTreeSet<_> = orphans(&mut pins, now).into_iter().collect();
                        let orphaned = model.extract_if(.., |_, open| {
                            open.sockets.is_empty() && now.duration_since(open.last_used) >= GRACE
                        });
                        let expected: BTreeSet<_> =
                            orphaned.map(|(session, open)| transaction(session, open.number)).collect();
                        prop_assert_eq!(found, expected);
                    }
                }
                prop_assert_eq!(pins.count().1, model.len());
                prop_assert!(sockets.iter().all(|socket| socket.0.len() <= 3), "one of each session");
            }
        }
    }
}
