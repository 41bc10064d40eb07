//! The users of a file, for `auth = "users"`.
//!
//! Passwords in the clear become verifiers when the file is read, on a thread that may block, and are wiped then. Their salts are
//! those that decoys of the same name have: so a file that is read again changes nothing for users that have not changed, and
//! that there is a user does not show by its salt.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::auth::identity::UserName;
use crate::auth::scram_server::Decoys;
use crate::auth::users::{Boxed, Proof, UserRecord, UserSource, UsersUnavailable, Verifier};
use crate::auth::{Identity, LoggedIn, Mechanism, Realm, UpstreamLogin};
use crate::config::system::read_secret;
use crate::config::uri::Credential;
use crate::config::users_file::{self, EXTERNAL, FileUser};
use crate::config::{ConfigError, ConfigErrors};
use crate::reload::Reload;
use crate::tasks::{Tasks, compute};
use crate::telemetry::{EventKind, Events};
use crate::upstream::pool::lock;

/// The users of a file.
pub struct FileUsers {
    path: PathBuf,
    decoys: Arc<Decoys>,
    identities: Realm,
    current: Mutex<Users>,
}

#[derive(Clone)]
struct User {
    record: Arc<UserRecord>,
    upstream: Option<Arc<Credential>>,
}

type Users = HashMap<UserName, User>;

impl FileUsers {
    /// Reads the file.
    ///
    /// # Errors
    /// Every mistake in it.
    pub async fn load(path: &Path, decoys: Arc<Decoys>, identities: Realm) -> Result<Arc<Self>, ConfigErrors> {
        let users = read_elsewhere(path, &decoys).await?;
        tracing::info!(file = %path.display(), users = users.len(), "read the users file");
        Ok(Arc::new(Self { path: path.to_owned(), decoys, identities, current: Mutex::new(users) }))
    }

    /// Reads the file again whenever it changes. A broken one changes nothing, and is told of.
    pub fn follow(self: &Arc<Self>, events: Arc<Events>, reload: &Reload, tasks: &Tasks) {
        let users = self.clone();
        reload.watch(vec![self.path.clone()], tasks, move || {
            let (users, events) = (users.clone(), events.clone());
            async move {
                let success = users.read_again().await;
                let how = if success { "was read again" } else { "cannot be used: the users stay as they were" };
                events.record(EventKind::User, None, None, &format!("the users file {} {how}", users.path.display()));
                success
            }
        });
    }

    /// Whether it could be read.
    async fn read_again(&self) -> bool {
        match read_elsewhere(&self.path, &self.decoys).await {
            Ok(users) => {
                self.replace(users);
                true
            }
            Err(errors) => {
                for error in &errors.0 {
                    tracing::error!(%error, "the users file is not read: the users stay as they were");
                }
                false
            }
        }
    }

    fn replace(&self, users: Users) {
        let (mut revoked, count) = (0_usize, users.len());
        {
            let mut current = lock(&self.current);
            // Under the lock under which users are admitted: nobody is admitted by what was read before once this is over.
            for LoggedIn { identity, .. } in self.identities.all() {
                match (current.get(&identity.user), users.get(&identity.user)) {
                    (Some(old), Some(new)) if old.record.proves_as(&new.record) && old.goes_as(new) => {
                        self.renew(&identity, new);
                    }
                    _ => {
                        self.identities.revoke(&identity);
                        revoked += 1;
                    }
                }
            }
            *current = users;
        }
        tracing::info!(file = %self.path.display(), users = count, revoked, "read the users file again");
    }

    /// What its connections log in with may be another password of the same kind of user.
    fn renew(&self, identity: &Identity, user: &User) {
        if user.upstream.is_some() {
            // It is known already, so there is room for it.
            drop(self.identities.admit(&identity.user, user.record.clone(), user.login(), Instant::now()));
        }
    }
}

impl User {
    fn login(&self) -> UpstreamLogin {
        self.upstream.clone().map_or(UpstreamLogin::Service, UpstreamLogin::Credential)
    }

    /// True when the commands of both go upstream as the same user.
    fn goes_as(&self, other: &Self) -> bool {
        let who = |user: &Self| user.upstream.as_ref().map(|it| (it.username.clone(), it.source.clone()));
        who(self) == who(other)
    }
}

impl UserSource for FileUsers {
    fn find<'a>(&'a self, user: &'a UserName) -> Boxed<'a, Result<Option<Arc<UserRecord>>, UsersUnavailable>> {
        let found = lock(&self.current).get(user).map(|user| user.record.clone());
        Box::pin(std::future::ready(Ok(found)))
    }

    fn admit(&self, user: &UserName, record: &UserRecord, _: Proof) -> Result<Arc<Identity>, UsersUnavailable> {
        let current = lock(&self.current);
        let known = current.get(user).filter(|known| known.record.proves_as(record));
        let known = known.ok_or_else(|| UsersUnavailable("the user has changed just now".to_owned()))?;
        let admitted = self.identities.admit(user, known.record.clone(), known.login(), Instant::now());
        admitted.map_err(|error| UsersUnavailable(error.to_string()))
    }

    fn takes_other_than_scram(&self) -> bool {
        true
    }
}

/// [`read`] on a thread that may block.
async fn read_elsewhere(path: &Path, decoys: &Arc<Decoys>) -> Result<Users, ConfigErrors> {
    let (file, salts) = (path.to_owned(), decoys.clone());
    // Nobody ends it but the runtime, with everything else.
    let ended = |_| ConfigErrors(Vec::new());
    compute(move || read(&file, &salts)).await.map_err(ended)?
}

/// Reads and checks a users file, and derives what is to be derived. Takes milliseconds for each password.
///
/// # Errors
/// Every mistake in it.
fn read(path: &Path, decoys: &Decoys) -> Result<Users, ConfigErrors> {
    let text = read_secret(path).map_err(|error| ConfigErrors(vec![error]))?;
    let mut errors = Vec::new();
    let users = users_file::read(&path.display().to_string(), &text, &mut errors);
    drop(text);
    let users = users.into_iter().filter_map(|user| made_of(user, decoys, &mut errors)).collect();
    if errors.is_empty() { Ok(users) } else { Err(ConfigErrors(errors)) }
}

fn made_of(user: FileUser, decoys: &Decoys, errors: &mut Vec<ConfigError>) -> Option<(UserName, User)> {
    let name = UserName { database: user.database.clone(), name: user.name.clone() };
    let mut record = UserRecord { roles: user.roles.clone(), ..UserRecord::default() };
    for (place, text) in &user.verifiers {
        match Verifier::parse(text) {
            Ok(verifier) if record.verifier(verifier.id.mechanism()).is_none() => record.set(verifier),
            Ok(verifier) => {
                let problem = format!("there are two for {}", verifier.id.mechanism());
                errors.push(user.error(place, "verifiers", problem));
            }
            Err(error) => errors.push(user.error(place, "verifiers", error.to_string())),
        }
    }
    if let Some(password) = &user.password {
        for mechanism in [Mechanism::Sha1, Mechanism::Sha256] {
            let salt = decoys.salt(mechanism, &name.to_string());
            // One that SCRAM-SHA-256 does not allow is one of SCRAM-SHA-1 all the same.
            let derived = Verifier::derive(mechanism, &name.name, password, salt, mechanism.usual_iterations());
            derived.into_iter().for_each(|verifier| record.set(verifier));
        }
    }
    record.by_certificate = name.database == EXTERNAL && user.password.is_none() && user.verifiers.is_empty();
    Some((name, User { record: Arc::new(record), upstream: user.upstream.map(Arc::new) }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;
    use crate::auth::Identities;
    use crate::telemetry::Metrics;

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn name(name: &str) -> UserName {
        UserName { database: "admin".to_owned(), name: name.to_owned() }
    }

    async fn users(path: &Path, identities: &Arc<Identities>) -> Arc<FileUsers> {
        FileUsers::load(path, Arc::new(Decoys::new([1; 32])), identities.realm())
            .await
            .unwrap_or_else(|e| panic!("{e}"))
    }

    fn of(user: &str, password: &str) -> String {
        format!("[[user]]\nname = \"{user}\"\npassword = \"{password}\"\n")
    }

    #[tokio::test]
    async fn who_is_removed_or_has_another_password_is_revoked_and_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.toml");
        let own = |password: &str| format!("upstream = {{ username = \"u\", password = \"{password}\" }}\n");
        let all = [of("same", "a"), of("changed", "a"), of("removed", "a"), of("own", "a") + &own("x")].concat();
        write(&path, &all);
        let identities = Arc::default();
        let users = users(&path, &identities).await;
        let names = ["same", "changed", "removed", "own"];
        let mut admitted = Vec::new();
        for user in names {
            let record = users.find(&name(user)).await.unwrap().unwrap();
            assert!(record.sha1.as_ref().unwrap().fits(user, "a") && record.sha256.as_ref().unwrap().fits(user, "a"));
            admitted.push((users.admit(&name(user), &record, Proof::Password).unwrap(), record));
        }
        let revoked = || admitted.iter().map(|(identity, _)| identity.is_revoked()).collect::<Vec<_>>();
        users.read_again().await;
        assert_eq!(revoked(), [false; 4], "nothing has changed");
        write(&path, "[[user]]\nname = 1\n");
        users.read_again().await;
        assert_eq!(revoked(), [false; 4], "a broken file changes nothing");
        assert!(users.find(&name("same")).await.unwrap().is_some());
        write(&path, &[of("same", "a"), of("changed", "b"), of("own", "a") + &own("y")].concat());
        users.read_again().await;
        assert_eq!(revoked(), [false, true, true, false]);
        assert!(users.find(&name("removed")).await.unwrap().is_none());
        let login = identities.login_of(admitted[3].0.id).unwrap();
        let UpstreamLogin::Credential(credential) = &*login else { panic!("{login:?}") };
        assert_eq!(
            credential.password.as_ref().map(|it| it.as_str()),
            Some("y"),
            "what is dialled from here on uses the new one"
        );
        let late = users.admit(&name("changed"), &admitted[1].1, Proof::Password);
        assert!(late.is_err(), "by what is stored no more");
    }

    #[tokio::test]
    async fn a_change_is_seen_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.toml");
        write(&path, &of("a", "x"));
        let (users, reload, tasks) = (users(&path, &Arc::default()).await, Reload::new(Metrics::new()), Tasks::new());
        users.follow(Arc::default(), &reload, &tasks);
        write(&path, &of("longer", "x"));
        reload.now();
        let seen = async {
            while users.find(&name("longer")).await.unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
        tasks.cancel();
    }

    #[tokio::test]
    async fn mistakes_in_verifiers_are_told_where_they_stand_and_not_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.toml");
        let good = Verifier::derive(Mechanism::Sha1, "a", "x", vec![0; 16], 4096).unwrap().to_text();
        write(
            &path,
            &format!(
                "[[user]]\nname = \"a\"\nverifiers = [\n\"hush\",\n\"{good}\"]\n\
                               [[user]]\nname = \"b\"\nverifiers = [\"{good}\",\n\"{good}\"]\n"
            ),
        );
        let check = || read(&path, &Decoys::new([1; 32])).map(drop).unwrap_err().to_string();
        let told = check();
        assert!(told.contains(":4: user[1].verifiers: expected SCRAM-SHA-256$"), "{told}");
        assert!(told.contains(":9: user[2].verifiers: there are two for SCRAM-SHA-1"), "{told}");
        assert!(!told.contains("hush") && !told.contains(&good), "{told}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(check().contains("chmod 600"));
    }
}
