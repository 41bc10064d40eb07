//! What has been held for long: for whoever looks, and asks what holds a server's locks and memory.

use std::time::Duration;

use tokio::time::Instant;

use super::{Group, Pins};
use crate::config::Address;
use crate::telemetry::Application;

/// What a transaction does with what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A statement of it is on its way.
    Working,
    /// None is, for so long.
    Idle(Duration),
    /// None is, and every socket that used it has gone.
    Abandoned(Duration),
}

/// A transaction that has been open for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldTransaction {
    /// Since its start.
    pub age: Duration,
    /// What it does.
    pub holds: Holds,
    /// Whose it is, where that is known.
    pub application: Option<Application>,
}

/// A cursor that has been open for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldCursor {
    /// Since its start.
    pub age: Duration,
    /// Since it was asked last.
    pub idle: Duration,
    /// It waits for data: it is meant to be open for long.
    pub awaits_data: bool,
    /// Whose it is.
    pub application: Application,
}

/// What has been held for long on one server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldPins {
    /// Transactions that have been open for long.
    pub transactions: Group,
    /// Cursors that have been open for long.
    pub cursors: Group,
    /// Those among them that were not asked for long, and do not wait for data; the age is how long.
    pub idle_cursors: Group,
    /// The oldest transactions, oldest first.
    pub oldest_transactions: Vec<HeldTransaction>,
    /// The oldest cursors, oldest first.
    pub oldest_cursors: Vec<HeldCursor>,
}

impl Pins {
    /// What has been open on a server for `limit` or longer, and of each kind the oldest, up to `most`. Looks at all pins, at
    /// the ages first.
    pub fn long_held_on(&self, server: &Address, limit: Duration, most: usize, now: Instant) -> HeldPins {
        let mut held = HeldPins::default();
        let (mut transactions, mut cursors) = (Oldest::new(most), Oldest::new(most));
        for pin in self.transactions.values() {
            let age = now.duration_since(pin.since);
            if pin.open && age >= limit && *pin.server == *server {
                held.transactions.add(age);
                transactions.offer(age, pin);
            }
        }
        for cursor in self.cursors.values() {
            let age = now.duration_since(cursor.since);
            if age >= limit && *cursor.pin.server == *server {
                held.cursors.add(age);
                let idle = now.duration_since(cursor.last_used);
                if idle >= limit && !cursor.pin.awaits_data {
                    held.idle_cursors.add(idle);
                }
                cursors.offer(age, cursor);
            }
        }
        let transactions = transactions.into_sorted().into_iter().map(|(age, pin)| HeldTransaction {
            age,
            holds: match pin.statements.idle(now) {
                None => Holds::Working,
                Some(idle) if pin.sockets == 0 => Holds::Abandoned(idle),
                Some(idle) => Holds::Idle(idle),
            },
            application: pin.application.clone(),
        });
        held.oldest_transactions = transactions.collect();
        let cursors = cursors.into_sorted().into_iter().map(|(age, cursor)| HeldCursor {
            age,
            idle: now.duration_since(cursor.last_used),
            awaits_data: cursor.pin.awaits_data,
            application: cursor.pin.application.clone(),
        });
        held.oldest_cursors = cursors.collect();
        held
    }
}

/// The oldest of many, without a list of all of them.
struct Oldest<T> {
    most: usize,
    kept: Vec<(Duration, T)>,
}

impl<T> Oldest<T> {
    fn new(most: usize) -> Self {
        Self { most, kept: Vec::new() }
    }

    fn offer(&mut self, age: Duration, item: T) {
        if self.kept.len() < self.most {
            self.kept.push((age, item));
        } else if let Some(youngest) = self.kept.iter_mut().min_by_key(|(age, _)| *age)
            && youngest.0 < age
        {
            *youngest = (age, item);
        }
    }

    fn into_sorted(mut self) -> Vec<(Duration, T)> {
        self.kept.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::command::TransactionId;
    use crate::routing::{CursorLife, CursorPin};
    use crate::telemetry::Applications;

    fn server(port: u16) -> Arc<Address> {
        Arc::new(Address::tcp("127.0.0.1", port))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn what_has_been_open_for_long_is_found_with_what_it_does() {
        let (mut pins, start, all) = (Pins::default(), Instant::now(), Applications::default());
        let shop = all.named("shop");
        let id = |session| TransactionId { session: [session; 16].into(), number: 1 };
        for (session, port) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 1)] {
            pins.pin_transaction(id(session), server(port), start + seconds(session.into())).unwrap();
        }
        let working = pins.statement_begins(id(1), &shop, start + seconds(5)).unwrap().unwrap();
        for session in [1, 2] {
            pins.join(id(session), None, start + seconds(5)).unwrap();
        }
        pins.end_transaction(id(5), start + seconds(6)).unwrap();
        let held = pins.long_held_on(&server(1), LIMIT, 9, start + seconds(32));
        let transaction = |age, holds, application: Option<&Application>| HeldTransaction {
            age: seconds(age),
            holds,
            application: application.cloned(),
        };
        let expected = [transaction(31, Holds::Working, Some(&shop)), transaction(30, Holds::Idle(seconds(30)), None)];
        assert_eq!(held.oldest_transactions, expected);
        assert_eq!(held.transactions, Group { count: 2, oldest: seconds(31) });
        pins.statement_ended(id(1), working, start + seconds(40));
        let held = pins.long_held_on(&server(1), LIMIT, 9, start + seconds(50));
        assert_eq!(held.oldest_transactions[0], transaction(49, Holds::Idle(seconds(10)), Some(&shop)));
        assert_eq!(held.oldest_transactions[2], transaction(47, Holds::Abandoned(seconds(47)), None));
    }

    #[test]
    fn cursors_are_long_held_by_their_age_and_idle_by_their_last_use() {
        let (mut pins, start, all) = (Pins::default(), Instant::now(), Applications::default());
        let pin = |awaits_data| CursorPin {
            user: crate::auth::UserId::SERVICE,
            server: server(1),
            awaits_data,
            change_stream: awaits_data,
            life: CursorLife::Session,
            application: all.named("shop"),
            caught_up: None,
        };
        pins.pin_cursor(1, pin(true), start).unwrap();
        pins.pin_cursor(2, pin(false), start + seconds(1)).unwrap();
        pins.pin_cursor(3, pin(false), start + seconds(2)).unwrap();
        pins.cursor(3, start + seconds(20)).unwrap();
        assert_eq!(pins.long_held_on(&server(1), LIMIT, 9, start + seconds(29)), HeldPins::default());
        assert_eq!(pins.long_held_on(&server(2), LIMIT, 9, start + seconds(99)), HeldPins::default());
        let held = pins.long_held_on(&server(1), LIMIT, 9, start + seconds(40));
        let found = held.oldest_cursors.iter().map(|it| (it.age.as_secs(), it.idle.as_secs(), it.awaits_data));
        assert_eq!(found.collect::<Vec<_>>(), [(40, 40, true), (39, 39, false), (38, 20, false)]);
        assert_eq!(held.cursors, Group { count: 3, oldest: seconds(40) });
        assert_eq!(held.idle_cursors, Group { count: 1, oldest: seconds(39) }, "one is asked now and then, one waits");
        assert_eq!(held.oldest_cursors[0].application.name(), Some("shop"));
    }

    #[test]
    fn of_many_the_oldest_are_shown_and_all_are_counted() {
        let (mut pins, start) = (Pins::default(), Instant::now());
        for session in 0..50_u8 {
            // In no order of age, whatever the order in the table.
            let since = start + seconds(u64::from(session) * 7 % 50);
            let id = TransactionId { session: [session; 16].into(), number: 1 };
            pins.pin_transaction(id, server(1), since).unwrap();
        }
        let held = pins.long_held_on(&server(1), LIMIT, 20, start + seconds(100));
        let ages: Vec<u64> = held.oldest_transactions.iter().map(|it| it.age.as_secs()).collect();
        assert_eq!(ages, (81..=100).rev().collect::<Vec<_>>());
        assert_eq!(held.transactions, Group { count: 50, oldest: seconds(100) });
    }
}
