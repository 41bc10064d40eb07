//! Who clients are once they have logged in, and how each of them logs in upstream.
//!
//! A user that has logged in is an [`Identity`], however many sockets it has, as long as what it proves itself by stays the same. What
//! the proxy learnt at the log-in is kept in memory as long as one of them is open and [`RETENTION`] longer, as there may be cursors
//! and transactions to clean up; it is wiped then. The user's number stays the same whatever becomes of that: what it has open on
//! servers is its own when it comes back.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::scram::{KeyId, SaltedKeys};
use super::users::UserRecord;
use crate::config::uri::Credential;

/// A user is forgotten this long after its last socket.
pub const RETENTION: Duration = Duration::from_secs(300);

/// Users that are known at once.
pub const MAX_IDENTITIES: usize = 20_000;

/// Numbers that are remembered: as many users have ever logged in, mostly.
const MAX_NUMBERS: usize = 10 * MAX_IDENTITIES;

/// The number of a user in this process, whenever it logs in.
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
    /// Its name and database in one.
    pub shown: String,
    /// Whose upstream connections carry its commands: its own, or [`UserId::SERVICE`].
    pub upstream: UserId,
    revoked: AtomicBool,
}

impl Identity {
    /// True where servers cannot tell it from other users.
    pub fn shares_connections(&self) -> bool {
        self.upstream == UserId::SERVICE
    }

    /// True once the user was dropped, or its password changed: whoever is logged in has to do so again.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
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
    /// What it has proven itself by.
    record: Arc<UserRecord>,
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
    /// Those that are not revoked.
    by_id: HashMap<UserId, Entry>,
    /// By realm and name, and over whose connections they went.
    numbers: HashMap<(u32, UserName), UserId>,
    upstream: HashMap<UserId, UserId>,
}

/// The users of one source: those of another one may have the same names.
#[derive(Clone)]
pub struct Realm {
    identities: Arc<Identities>,
    number: u32,
}

/// A user that is logged in.
pub struct LoggedIn {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// What it has proven itself by.
    pub record: Arc<UserRecord>,
}

impl Realm {
    /// A user has logged in, by what `record` says. What it logs in upstream with is what counts from now on for all its sockets.
    /// Whoever has logged in as it by something else has to do so again.
    ///
    /// # Errors
    /// [`TooManyUsers`].
    pub fn admit(
        &self,
        user: &UserName,
        record: Arc<UserRecord>,
        login: UpstreamLogin,
        now: Instant,
    ) -> Result<Arc<Identity>, TooManyUsers> {
        self.identities.admit((self.number, user.clone()), record, login, now)
    }

    /// All of them.
    pub fn all(&self) -> Vec<LoggedIn> {
        let known = self.identities.known();
        let own = known.by_id.values().filter(|entry| entry.realm == self.number);
        let logged_in =
            |Entry { identity, record, .. }: &Entry| LoggedIn { identity: identity.clone(), record: record.clone() };
        own.map(logged_in).collect()
    }

    /// As [`Identities::revoke`].
    pub fn revoke(&self, identity: &Identity) {
        self.identities.revoke(identity);
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
        name: (u32, UserName),
        record: Arc<UserRecord>,
        login: UpstreamLogin,
        now: Instant,
    ) -> Result<Arc<Identity>, TooManyUsers> {
        let known = &mut *self.known();
        let id = known.number(&name);
        let shares = matches!(login, UpstreamLogin::Service);
        if let Some(entry) = known.by_id.get_mut(&id) {
            if shares == entry.identity.shares_connections() && entry.record.proves_as(&record) {
                (entry.login, entry.used) = (Arc::new(login), now);
                return Ok(entry.identity.clone());
            }
            entry.identity.revoked.store(true, Ordering::Release);
            known.by_id.remove(&id);
        }
        if known.by_id.len() >= MAX_IDENTITIES {
            return Err(TooManyUsers);
        }
        let (realm, user) = name;
        let (shown, upstream) = (user.to_string(), if shares { UserId::SERVICE } else { id });
        known.upstream.insert(id, upstream);
        let identity = Arc::new(Identity { id, user, shown, upstream, revoked: AtomicBool::new(false) });
        known.by_id.insert(id, Entry { realm, identity: identity.clone(), record, login: Arc::new(login), used: now });
        Ok(identity)
    }

    /// How to log in upstream for a user. `None` for one that is not known any more, or was revoked.
    pub fn login_of(&self, id: UserId) -> Option<Arc<UpstreamLogin>> {
        self.known().by_id.get(&id).map(|entry| entry.login.clone())
    }

    /// The user with that number, as it is logged in now.
    pub fn of(&self, id: UserId) -> Option<Arc<Identity>> {
        self.known().by_id.get(&id).map(|entry| entry.identity.clone())
    }

    /// Over whose connections something is done for a user that may have gone. `None` where they would be its own, and there can be
    /// none.
    pub fn upstream_of(&self, id: UserId) -> Option<UserId> {
        let known = self.known();
        match known.upstream.get(&id) {
            Some(&UserId::SERVICE) | None => Some(UserId::SERVICE),
            Some(own) => known.by_id.contains_key(&id).then_some(*own),
        }
    }

    /// The user was dropped, or its password changed: whoever is logged in as it by that has to do so again. Its keys are wiped.
    pub fn revoke(&self, identity: &Identity) {
        identity.revoked.store(true, Ordering::Release);
        let known = &mut *self.known();
        // Who has logged in since is somebody else.
        if known.by_id.get(&identity.id).is_some_and(|entry| entry.identity.is_revoked()) {
            known.by_id.remove(&identity.id);
        }
    }

    /// Forgets the users without a socket for [`RETENTION`]. To be called now and then.
    pub fn expire(&self, now: Instant) {
        self.known().by_id.retain(|_, entry| {
            if Arc::strong_count(&entry.identity) > 1 {
                entry.used = now;
            }
            now.saturating_duration_since(entry.used) < RETENTION
        });
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing above panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn number(&mut self, name: &(u32, UserName)) -> UserId {
        if let Some(id) = self.numbers.get(name) {
            return *id;
        }
        self.last_id += 1;
        let id = UserId(self.last_id);
        if self.numbers.len() < MAX_NUMBERS {
            self.numbers.insert(name.clone(), id);
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::Mechanism;
    use crate::auth::users::Verifier;

    fn user(name: &str) -> UserName {
        UserName { database: "admin".to_owned(), name: name.to_owned() }
    }

    fn credential() -> UpstreamLogin {
        let credential = Credential {
            username: Some("a".to_owned()),
            source: "admin".to_owned(),
            password: Some("pencil".to_owned().into()),
            mechanism: None,
        };
        UpstreamLogin::Credential(Arc::new(credential))
    }

    /// What is stored of a user with that salt.
    fn record(salt: u8) -> Arc<UserRecord> {
        let id = KeyId::new(Mechanism::Sha256, vec![salt; 28], 15_000);
        let sha256 = Verifier { id, stored_key: vec![1; 32].into(), server_key: vec![2; 32].into() };
        Arc::new(UserRecord { sha256: Some(sha256), ..UserRecord::default() })
    }

    struct Rig {
        all: Arc<Identities>,
        realm: Realm,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let all = Arc::new(Identities::default());
            Self { realm: all.realm(), all, now: Instant::now() }
        }

        fn admit(&self, name: &str, salt: u8) -> Arc<Identity> {
            self.realm.admit(&user(name), record(salt), credential(), self.now).unwrap()
        }
    }

    #[test]
    fn a_user_is_one_identity_however_often_it_logs_in() {
        let rig = Rig::new();
        let (first, again) = (rig.admit("a", 1), rig.admit("a", 1));
        let other = rig.realm.admit(&user("b"), record(1), UpstreamLogin::Service, rig.now).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_ne!(first.id, other.id);
        assert_eq!((first.upstream, other.upstream), (first.id, UserId::SERVICE));
        assert!(matches!(*rig.all.login_of(first.id).unwrap(), UpstreamLogin::Credential(_)));
        assert!(rig.all.login_of(UserId(77)).is_none());
        let same_name = rig.all.realm().admit(&user("a"), record(1), credential(), rig.now).unwrap();
        assert_ne!(same_name.id, first.id, "of another source");
        assert_eq!(rig.realm.all().len(), 2);
    }

    #[test]
    fn whoever_proves_itself_by_something_else_ends_who_was_there_before() {
        let rig = Rig::new();
        let first = rig.admit("a", 1);
        let second = rig.admit("a", 2);
        assert!(first.is_revoked() && !second.is_revoked());
        assert_eq!(first.id, second.id, "what it has open is its own");
        rig.all.revoke(&first);
        assert!(!second.is_revoked() && rig.all.login_of(second.id).is_some(), "who came later is not meant");
        let shares = rig.realm.admit(&user("a"), record(2), UpstreamLogin::Service, rig.now).unwrap();
        assert!(second.is_revoked() && !shares.is_revoked());
    }

    #[test]
    fn a_revoked_user_is_gone_and_may_come_back() {
        let rig = Rig::new();
        let first = rig.admit("a", 1);
        rig.all.revoke(&first);
        assert!(first.is_revoked() && rig.all.login_of(first.id).is_none() && rig.realm.all().is_empty());
        assert_eq!(rig.all.upstream_of(first.id), None, "nothing can be done for it");
        let again = rig.admit("a", 1);
        assert!(again.id == first.id && !again.is_revoked());
        assert_eq!(rig.all.upstream_of(again.id), Some(again.id));
    }

    #[test]
    fn who_has_gone_is_forgotten_after_a_while_and_nobody_else() {
        let rig = Rig::new();
        let here = rig.admit("a", 1);
        let gone = rig.admit("b", 1).id;
        let shares = rig.realm.admit(&user("c"), record(1), UpstreamLogin::Service, rig.now).unwrap().id;
        rig.all.expire(rig.now + RETENTION - Duration::from_millis(1));
        assert!(rig.all.login_of(gone).is_some());
        rig.all.expire(rig.now + RETENTION);
        assert!(rig.all.login_of(gone).is_none() && rig.all.login_of(here.id).is_some());
        assert_eq!(rig.all.upstream_of(gone), None);
        assert_eq!(
            rig.all.upstream_of(shares),
            Some(UserId::SERVICE),
            "who shared connections can be cleaned up after"
        );
        assert_eq!(rig.admit("b", 1).id, gone);
    }
}
