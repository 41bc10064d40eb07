//! How many connections of one pool each user has. Which of them give one up for another user is decided in `turnover`.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::auth::UserId;

/// What a pool has to know about its connections.
pub trait Owned {
    /// Whose it is.
    fn user(&self) -> UserId;

    /// Since when.
    fn established(&self) -> Instant;

    /// When it was last used.
    fn last_used(&self) -> Instant;
}

impl<C: Owned> Owned for Box<C> {
    fn user(&self) -> UserId {
        (**self).user()
    }

    fn established(&self) -> Instant {
        (**self).established()
    }

    fn last_used(&self) -> Instant {
        (**self).last_used()
    }
}

/// Connections of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holding {
    /// Available or in use.
    pub open: u32,
    /// Being established.
    pub pending: u32,
    /// Its transactions that are open on the server.
    pub transactions: u32,
}

impl Holding {
    /// All of them.
    pub fn total(self) -> u32 {
        self.open + self.pending
    }
}

/// The users that have connections, or are about to.
#[derive(Debug, Default)]
pub struct Holders {
    of: BTreeMap<UserId, Holding>,
    /// Users that a server has not taken a moment ago.
    held_off: BTreeMap<UserId, Instant>,
}

impl Holders {
    /// What a user has.
    pub fn of(&self, user: UserId) -> Holding {
        self.of.get(&user).copied().unwrap_or_default()
    }

    /// What each user has that has something.
    pub fn all(&self) -> impl Iterator<Item = (UserId, Holding)> {
        self.of.iter().map(|(user, holding)| (*user, *holding))
    }

    /// The most that any user has open.
    pub fn most_open(&self) -> u32 {
        self.of.values().map(|holding| holding.open).max().unwrap_or_default()
    }

    /// One is being established.
    pub fn began(&mut self, user: UserId) {
        self.of.entry(user).or_default().pending += 1;
    }

    /// What was being established is there.
    pub fn connected(&mut self, user: UserId) {
        self.change(user, |holding| {
            holding.pending -= 1;
            holding.open += 1;
        });
    }

    /// What was being established did not come about.
    pub fn failed(&mut self, user: UserId) {
        self.change(user, |holding| holding.pending -= 1);
    }

    /// An open one is being closed.
    pub fn ended(&mut self, user: UserId) {
        self.change(user, |holding| holding.open -= 1);
    }

    /// A transaction of that user is open from now on.
    pub fn transaction_begun(&mut self, user: UserId) {
        self.of.entry(user).or_default().transactions += 1;
    }

    /// One less is.
    pub fn transaction_ended(&mut self, user: UserId) {
        self.change(user, |holding| holding.transactions = holding.transactions.saturating_sub(1));
    }

    /// Nothing is established for that user until then.
    pub fn hold_off(&mut self, user: UserId, until: Instant) {
        self.held_off.insert(user, until);
    }

    /// True while nothing is.
    pub fn is_held_off(&self, user: UserId) -> bool {
        self.held_off.contains_key(&user)
    }

    /// Forgets who is not held off any more.
    pub fn forget_held_off(&mut self, now: Instant) {
        self.held_off.retain(|_, until| now < *until);
    }

    fn change(&mut self, user: UserId, change: impl FnOnce(&mut Holding)) {
        let holding = self.of.entry(user).or_default();
        change(holding);
        if *holding == Holding::default() {
            self.of.remove(&user);
        }
    }
}

/// Connections of tests that know nothing of users.
#[cfg(test)]
mod fakes {
    use super::*;

    macro_rules! of_the_service {
        ($($fake:ty),*) => {$(
            impl Owned for $fake {
                fn user(&self) -> UserId {
                    UserId::SERVICE
                }

                fn established(&self) -> Instant {
                    Instant::now()
                }

                fn last_used(&self) -> Instant {
                    Instant::now()
                }
            }
        )*};
    }

    of_the_service!(u32, (u32, u64));
}
