//! Who clients are once they have logged in, and how each of them logs in upstream.
//!
//! A user that has logged in is an [`Identity`], however many sockets it has. What the proxy learnt at the log-in is kept in
//! memory as long as one of them is open and [`RETENTION`] longer, as there may be cursors and transactions to clean up; it is
//! wiped then.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::scram::{KeyId, SaltedKeys};
use crate::config::uri::Credential;

/// A user is forgotten this long after its last socket.
pub const RETENTION: Duration = Duration::from_secs(300);

/// Users that are known at once.
pub const MAX_IDENTITIES: usize = 20_000;

/// The number of a user in this process, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UserId(u32);

impl UserId {
    /// Whoever the connection string names, or nobody: the proxy itself, and all clients that have no connections of their own.
    pub const SERVICE: Self = Self(0);

    /// Comes after all others.
    pub const LAST: Self = Self(u32::MAX);

    /// The one with that number, for tests.
    #[cfg(test)]
    pub(crate) fn numbered(number: u32) -> Self {
        Self(number)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A user's name, and the database that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserName {
    /// `admin` mostly; `$external` for who is known elsewhere.
    pub database: String,
    /// As it was typed.
    pub name: String,
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.database)
    }
}

/// A user that has logged in.
#[derive(Debug)]
pub struct Identity {
    /// Its number.
    pub id: UserId,
    /// Its name.
    pub user: UserName,
    /// Whose upstream connections carry its commands: its own, or [`UserId::SERVICE`].
    pub upstream: UserId,
    revoked: AtomicBool,
}

impl Identity {
    /// True once the user was dropped, or its password changed: whoever is logged in has to do so again.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }
}

/// How the proxy logs in upstream for a user.
#[derive(Debug, Clone)]
pub enum UpstreamLogin {
    /// Not at all: its commands go over the connections of [`UserId::SERVICE`].
    Service,
    /// With what the user's own log-in has proven to know.
    Keys(UserKeys),
    /// With a credential of the configuration.
    Credential(Arc<Credential>),
}

/// The keys that one password gives with one salt: enough to log in wherever the same salt is stored.
#[derive(Debug, Clone)]
pub struct UserKeys {
    /// Mechanism, salt and iterations.
    pub id: KeyId,
    /// What the password became.
    pub keys: Arc<SaltedKeys>,
}

struct Entry {
    realm: u32,
    identity: Arc<Identity>,
    login: Arc<UpstreamLogin>,
    /// When it was last seen in use.
    used: Instant,
}

/// All users that have logged in of late, of all sources.
#[derive(Default)]
pub struct Identities(Mutex<Known>);

#[derive(Default)]
struct Known {
    last_id: u32,
    last_realm: u32,
    by_id: HashMap<UserId, Entry>,
    /// Those that are not revoked, by realm.
    by_name: HashMap<(u32, UserName), UserId>,
}

/// The users of one source: those of another one may have the same names.
#[derive(Clone)]
pub struct Realm {
    identities: Arc<Identities>,
    number: u32,
}

impl Realm {
    /// A user has logged in. What it logs in upstream with is what counts from now on for all its sockets.
    ///
    /// # Errors
    /// [`TooManyUsers`].
    pub fn admit(&self, user: &UserName, login: UpstreamLogin, now: Instant) -> Result<Arc<Identity>, TooManyUsers> {
        self.identities.admit(self.number, user, login, now)
    }

    /// All of them that are not revoked, with what they log in upstream with.
    pub fn all(&self) -> Vec<(Arc<Identity>, Arc<UpstreamLogin>)> {
        let known = self.identities.known();
        let current = known.by_id.values().filter(|it| it.realm == self.number && !it.identity.is_revoked());
        current.map(|entry| (entry.identity.clone(), entry.login.clone())).collect()
    }

    /// As [`Identities::login_of`].
    pub fn login_of(&self, id: UserId) -> Option<Arc<UpstreamLogin>> {
        self.identities.login_of(id)
    }

    /// As [`Identities::revoke`].
    pub fn revoke(&self, id: UserId) {
        self.identities.revoke(id);
    }
}

/// There are [`MAX_IDENTITIES`] already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_IDENTITIES} users are logged in, which is as many as there may be")]
pub struct TooManyUsers;

impl Identities {
    /// Room for the users of one more source.
    pub fn realm(self: &Arc<Self>) -> Realm {
        let number = {
            let mut known = self.known();
            known.last_realm += 1;
            known.last_realm
        };
        Realm { identities: self.clone(), number }
    }

    fn admit(
        &self,
        realm: u32,
        user: &UserName,
        login: UpstreamLogin,
        now: Instant,
    ) -> Result<Arc<Identity>, TooManyUsers> {
        let known = &mut *self.known();
        let name = (realm, user.clone());
        if let Some(entry) = known.by_name.get(&name).and_then(|id| known.by_id.get_mut(id)) {
            let own = !matches!(login, UpstreamLogin::Service);
            if own == (entry.identity.upstream != UserId::SERVICE) {
                (entry.login, entry.used) = (Arc::new(login), now);
                return Ok(entry.identity.clone());
            }
        }
        if known.by_id.len() >= MAX_IDENTITIES {
            return Err(TooManyUsers);
        }
        known.last_id += 1;
        let id = UserId(known.last_id);
        let upstream = if matches!(login, UpstreamLogin::Service) { UserId::SERVICE } else { id };
        let identity = Arc::new(Identity { id, user: user.clone(), upstream, revoked: AtomicBool::new(false) });
        known.by_name.insert(name, id);
        known.by_id.insert(id, Entry { realm, identity: identity.clone(), login: Arc::new(login), used: now });
        Ok(identity)
    }

    /// How to log in upstream for a user. `None` for one that is not known any more, or was revoked.
    pub fn login_of(&self, id: UserId) -> Option<Arc<UpstreamLogin>> {
        let known = self.known();
        known.by_id.get(&id).filter(|entry| !entry.identity.is_revoked()).map(|entry| entry.login.clone())
    }

    /// The user with that number.
    pub fn of(&self, id: UserId) -> Option<Arc<Identity>> {
        self.known().by_id.get(&id).map(|entry| entry.identity.clone())
    }

    /// The user was dropped, or its password changed: who is logged in as it has to do so again. Its keys are wiped.
    pub fn revoke(&self, id: UserId) {
        let known = &mut *self.known();
        let Some(entry) = known.by_id.get_mut(&id) else { return };
        entry.identity.revoked.store(true, Ordering::Relaxed);
        entry.login = Arc::new(UpstreamLogin::Service);
        let name = (entry.realm, entry.identity.user.clone());
        if known.by_name.get(&name) == Some(&id) {
            known.by_name.remove(&name);
        }
    }

    /// Forgets the users without a socket for [`RETENTION`]. To be called now and then.
    pub fn expire(&self, now: Instant) {
        let known = &mut *self.known();
        let mut forgotten = Vec::new();
        known.by_id.retain(|id, entry| {
            if Arc::strong_count(&entry.identity) > 1 {
                entry.used = now;
            }
            let keep = now.saturating_duration_since(entry.used) < RETENTION;
            if !keep {
                forgotten.push((*id, (entry.realm, entry.identity.user.clone())));
            }
            keep
        });
        for (id, name) in forgotten {
            if known.by_name.get(&name) == Some(&id) {
                known.by_name.remove(&name);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing above panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserName {
        UserName { database: "admin".to_owned(), name: name.to_owned() }
    }

    fn credential() -> UpstreamLogin {
        let credential = Credential {
            username: Some("a".to_owned()),
            source: "admin".to_owned(),
            password: Some(String::from("pencil").into()),
            mechanism: None,
        };
        UpstreamLogin::Credential(Arc::new(credential))
    }

    #[test]
    fn a_user_is_one_identity_however_often_it_logs_in() {
        let (all, now) = (Arc::new(Identities::default()), Instant::now());
        let realm = all.realm();
        let first = realm.admit(&user("a"), credential(), now).unwrap();
        let again = realm.admit(&user("a"), credential(), now).unwrap();
        let other = realm.admit(&user("b"), UpstreamLogin::Service, now).unwrap();
        assert_eq!((first.id, first.upstream), (again.id, again.id));
        assert_ne!(first.id, other.id);
        assert_eq!(other.upstream, UserId::SERVICE);
        assert!(matches!(*all.login_of(first.id).unwrap(), UpstreamLogin::Credential(_)));
        assert!(all.login_of(UserId(77)).is_none());
        let same_name = all.realm().admit(&user("a"), credential(), now).unwrap();
        assert_ne!(same_name.id, first.id, "of another source");
        assert_eq!(realm.all().len(), 2);
    }

    #[test]
    fn a_revoked_user_is_another_one_when_it_comes_back() {
        let (all, now) = (Arc::new(Identities::default()), Instant::now());
        let realm = all.realm();
        let first = realm.admit(&user("a"), credential(), now).unwrap();
        all.revoke(first.id);
        assert!(first.is_revoked() && all.login_of(first.id).is_none());
        let again = realm.admit(&user("a"), credential(), now).unwrap();
        assert!(again.id != first.id && !again.is_revoked());
        assert_eq!(realm.all().len(), 1);
    }

    #[test]
    fn who_has_gone_is_forgotten_after_a_while_and_nobody_else() {
        let (all, start) = (Arc::new(Identities::default()), Instant::now());
        let realm = all.realm();
        let here = realm.admit(&user("a"), credential(), start).unwrap();
        let gone = realm.admit(&user("b"), credential(), start).unwrap().id;
        all.expire(start + RETENTION - Duration::from_millis(1));
        assert!(all.login_of(gone).is_some());
        all.expire(start + RETENTION);
        assert!(all.login_of(gone).is_none() && all.login_of(here.id).is_some());
    }
}
