//! Users of MongoDB, looked up where they live (`auth = "upstream"`): nothing has to be kept in step.
//!
//! The service's own user asks for what the server verifies a log-in with. That is enough to verify one here, and a client that
//! has proven to know its password has given away the key that logs in upstream as it, as long as the password is the same. So
//! rights and audit stay MongoDB's, and nobody's password is ever known here.
//!
//! What was looked up is good for `user_refresh_ms`; after each such time all who are logged in are looked up again, and those who
//! were dropped or have another password have to log in anew. Where it is the proxy that carries such a change out, at once. What
//! is known by then decides about a proof, not what was known when the log-in began.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bson::raw::{RawArrayBuf, RawDocument};
use bson::rawdoc;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::errand::Errand;
use super::pool::lock;
use crate::admission::Lane;
use crate::auth::scram::{KeyId, Mechanism, SaltedKeys};
use crate::auth::users::{Boxed, Proof, UserRecord, UserSource, UsersUnavailable, Verifier};
use crate::auth::{Identity, LoggedIn, Realm, UpstreamLogin, UserId, UserKeys, UserName};
use crate::telemetry::EventKind;

/// Users that are remembered, those that do not exist included.
const MAX_REMEMBERED: usize = 10_000;

/// Users looked up at once. Whoever tries names must not take the pool from those who work.
const MAX_LOOKING_UP: usize = 4;

/// Users asked for in one command.
const BATCH: usize = 100;

/// While nobody can be asked, what was looked up so many times `user_refresh_ms` ago still counts.
const STALE_REFRESHES: u32 = 4;

/// What could not be looked at again is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Says that users were changed through us, to those who remember what they were.
#[derive(Debug, Default)]
pub struct UserChanges {
    count: AtomicU64,
    told: Notify,
}

impl UserChanges {
    /// Some user may be another one now.
    pub fn happened(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.told.notify_one();
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }
}

/// The users of a cluster.
pub struct UpstreamUsers {
    cluster: Arc<Cluster>,
    realm: Realm,
    remembered: Mutex<HashMap<UserName, Arc<Slot>>>,
    looking_up: Semaphore,
}

/// What is known about one user.
#[derive(Default)]
struct Slot {
    /// Held while it is looked up, so that a storm of log-ins asks once.
    looking: tokio::sync::Mutex<()>,
    known: Mutex<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    record: Option<Arc<UserRecord>>,
    since: Instant,
    changes: u64,
}

impl UpstreamUsers {
    /// Those of `cluster`; follows how they change.
    pub fn new(cluster: Arc<Cluster>) -> Arc<Self> {
        let looking_up = Semaphore::new(MAX_LOOKING_UP);
        let users = Arc::new(Self {
            cluster: cluster.clone(),
            realm: cluster.identities.realm(),
            remembered: Mutex::default(),
            looking_up,
        });
        let follows = users.clone();
        cluster.tasks.spawn("follow users", async move {
            let interval = follows.cluster.config().user_refresh;
            let mut next = interval;
            loop {
                // Nothing is lost when an arm loses: the notice is kept, and all are looked up anyway.
                tokio::select! {
                    () = tokio::time::sleep(next) => {}
                    () = follows.cluster.user_changes.told.notified() => {}
                    () = follows.cluster.tasks.cancelled() => return,
                }
                follows.forget_old();
                next = if follows.look_again().await { interval } else { RETRY.min(interval) };
            }
        });
        users
    }

    async fn look_up(&self, user: &UserName) -> Result<Option<Arc<UserRecord>>, UsersUnavailable> {
        let slot = self.slot(user);
        let _one_at_a_time = slot.looking.lock().await;
        let (now, changes) = (Instant::now(), self.cluster.user_changes.count());
        let refresh = self.cluster.config().user_refresh;
        let known = lock(&slot.known).clone();
        if let Some(known) = &known
            && known.changes == changes
            && now.duration_since(known.since) < refresh
        {
            return Ok(known.record.clone());
        }
        let _one_of_few = self.looking_up.acquire().await;
        match self.ask(std::slice::from_ref(user), Errand::Reading).await {
            Ok(mut found) => {
                let record = found.remove(user).map(Arc::new);
                *lock(&slot.known) = Some(Known { record: record.clone(), since: now, changes });
                Ok(record)
            }
            // Old knowledge is better than none for a while: log-ins go on through an election.
            Err(error) => {
                let stale = known.filter(|known| now.duration_since(known.since) < refresh * STALE_REFRESHES);
                stale.map(|known| known.record).ok_or(error)
            }
        }
    }

    fn slot(&self, user: &UserName) -> Arc<Slot> {
        let mut remembered = lock(&self.remembered);
        if let Some(slot) = remembered.get(user) {
            return slot.clone();
        }
        if remembered.len() >= MAX_REMEMBERED {
            // Those that nobody is looking at now; what is good for half a minute is cheap to lose.
            remembered.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        remembered.entry(user.clone()).or_default().clone()
    }

    /// Forgets what counts no more.
    fn forget_old(&self) {
        let (now, most) = (Instant::now(), self.cluster.config().user_refresh * STALE_REFRESHES);
        lock(&self.remembered).retain(|_, slot| {
            let counts = lock(&slot.known).as_ref().is_some_and(|known| now.duration_since(known.since) < most);
            counts || Arc::strong_count(slot) > 1
        });
    }

    /// Looks all up who are logged in. Those who are gone, or have another password, have to log in anew. False when somebody
    /// could not be looked up.
    async fn look_again(&self) -> bool {
        for some in self.realm.all().chunks(BATCH) {
            let names: Vec<UserName> = some.iter().map(|logged_in| logged_in.identity.user.clone()).collect();
            // A secondary may not know yet what has changed.
            let (since, changes) = (Instant::now(), self.cluster.user_changes.count());
            let Ok(found) = self.ask(&names, Errand::Primary).await else { return false };
            for LoggedIn { identity, record, .. } in some {
                // Whoever logs in next is judged by it as well.
                let stored = found.get(&identity.user).cloned().map(Arc::new);
                *lock(&self.slot(&identity.user).known) = Some(Known { record: stored, since, changes });
                if !found.get(&identity.user).is_some_and(|stored| stored.proves_as(record)) {
                    tracing::info!(user = %identity.user, "dropped, or has another password: has to log in again");
                    let told = format!("{} was dropped, or has another password", identity.user);
                    let (events, cluster) = (&self.cluster.metrics.events, &self.cluster.name);
                    events.record(EventKind::User, Some(cluster), None, &told);
                    self.cluster.revoke(identity);
                }
            }
        }
        true
    }

    async fn ask(&self, users: &[UserName], errand: Errand) -> Result<HashMap<UserName, UserRecord>, UsersUnavailable> {
        let names: RawArrayBuf =
            users.iter().map(|user| rawdoc! { "user": user.name.as_str(), "db": user.database.as_str() }).collect();
        let command = rawdoc! {
            "usersInfo": names, "showCredentials": true, "$db": "admin",
            "$readPreference": { "mode": "primaryPreferred" },
        };
        let reply = self.cluster.run(errand, UserId::SERVICE, Lane::Regular, &command).await;
        let Some(reply) = reply else {
            let why = self.cluster.problem(&self.cluster.topology());
            return Err(UsersUnavailable(format!("users cannot be looked up: {why}")));
        };
        if reply.get_f64("ok").ok() != Some(1.0) {
            let said = reply.get_str("errmsg").unwrap_or("no reason given");
            tracing::warn!(
                cluster = %self.cluster.name,
                "users cannot be looked up, the user in the connection string needs a role with viewUser, such as \
                 userAdminAnyDatabase: {said}"
            );
            return Err(UsersUnavailable(
                "the proxy may not look up users: the user in its connection string needs a role with viewUser"
                    .to_owned(),
            ));
        }
        Ok(records(&reply))
    }
}

impl UserSource for UpstreamUsers {
    fn find<'a>(&'a self, user: &'a UserName) -> Boxed<'a, Result<Option<Arc<UserRecord>>, UsersUnavailable>> {
        Box::pin(self.look_up(user))
    }

    fn admit(&self, user: &UserName, record: &UserRecord, proof: Proof) -> Result<Arc<Identity>, UsersUnavailable> {
        let Proof::Scram { id, client_key } = proof else {
            return Err(UsersUnavailable("without SCRAM there is nothing to log in upstream with".to_owned()));
        };
        let changed = || UsersUnavailable("the user has changed just now".to_owned());
        let stored = record.verifier(id.mechanism()).filter(|stored| stored.id == id).ok_or_else(changed)?;
        let slot = self.slot(user);
        // What is known now decides, and nobody may look the user up anew before it is admitted by that. That some user was changed
        // since is no reason to refuse this one: who is logged in is looked up again at once.
        let known = lock(&slot.known);
        let current = known.as_ref().and_then(|known| known.record.clone()).filter(|now| now.proves_as(record));
        let current = current.ok_or_else(changed)?;
        let keys = Arc::new(SaltedKeys::new(client_key, stored.server_key.clone()));
        let login = UpstreamLogin::Keys(UserKeys { id, keys });
        self.realm.admit(user, current, login, Instant::now()).map_err(|error| UsersUnavailable(error.to_string()))
    }

    fn takes_other_than_scram(&self) -> bool {
        false
    }
}

impl Cluster {
    /// A user was dropped, or has another password: whoever is logged in as it has to do so again, and its connections end.
    pub fn revoke(&self, identity: &Identity) {
        self.identities.revoke(identity);
        self.servers().iter().for_each(|server| server.pool.revoke(identity.id));
    }
}

/// The users in a reply to usersInfo.
fn records(reply: &RawDocument) -> HashMap<UserName, UserRecord> {
    let users = reply.get_array("users").into_iter().flatten().flatten();
    users.filter_map(|user| record(user.as_document()?)).collect()
}

fn record(user: &RawDocument) -> Option<(UserName, UserRecord)> {
    let name = UserName { database: user.get_str("db").ok()?.to_owned(), name: user.get_str("user").ok()?.to_owned() };
    let credentials = user.get_document("credentials").ok();
    let verifier = |mechanism: Mechanism| verifier(mechanism, credentials?.get_document(mechanism.name()).ok()?);
    let roles = user.get_array("roles").into_iter().flatten().flatten().filter_map(|role| {
        let role = role.as_document()?;
        Some((role.get_str("role").ok()?.to_owned(), role.get_str("db").ok()?.to_owned()))
    });
    let record = UserRecord {
        sha1: verifier(Mechanism::Sha1),
        sha256: verifier(Mechanism::Sha256),
        by_certificate: false,
        roles: roles.collect(),
    };
    Some((name, record))
}

fn verifier(mechanism: Mechanism, stored: &RawDocument) -> Option<Verifier> {
    let decoded = |key| BASE64.decode(stored.get_str(key).ok()?).ok();
    let iterations = u32::try_from(stored.get_i32("iterationCount").ok()?).ok()?;
    Some(Verifier {
        id: KeyId::new(mechanism, decoded("salt")?, iterations),
        stored_key: decoded("storedKey")?.into(),
        server_key: decoded("serverKey")?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_tells_about_its_users_is_read() {
        let stored = rawdoc! {
            "iterationCount": 15_000, "salt": "W22ZaJ0SNY7soEsUEjb6gQ==",
            "storedKey": "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
            "serverKey": "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        };
        let reply = rawdoc! {
            "users": [
                {
                    "_id": "admin.a", "user": "a", "db": "admin", "credentials": { "SCRAM-SHA-256": stored },
                    "roles": [{ "role": "read", "db": "test" }], "mechanisms": ["SCRAM-SHA-256"],
                },
                { "_id": "$external.CN=b", "user": "CN=b", "db": "$external", "roles": [] },
            ],
            "ok": 1.0,
        };
        let mut found = records(&reply);
        let name = |database: &str, name: &str| UserName { database: database.to_owned(), name: name.to_owned() };
        let a = found.remove(&name("admin", "a")).unwrap();
        assert_eq!(a.roles, [("read".to_owned(), "test".to_owned())]);
        assert!(a.sha1.is_none());
        let verifier = a.verifier(Mechanism::Sha256).unwrap();
        assert_eq!((verifier.id.iterations(), verifier.id.salt().len()), (15_000, 16));
        assert_eq!(verifier.stored_key.expose().len(), 32);
        let b = found.remove(&name("$external", "CN=b")).unwrap();
        assert_eq!(b, UserRecord::default());
    }
}
