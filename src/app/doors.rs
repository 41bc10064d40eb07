//! Where the clients of each listener log in: one place for each source of users, whichever listeners ask there.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::auth::Identities;
use crate::auth::scram_server::Decoys;
use crate::auth::users::UserSource;
use crate::client::file_users::FileUsers;
use crate::client::log_in::LogIns;
use crate::client::shared::ClientLimits;
use crate::config::{Auth, ClusterConfig, Config, ConfigErrors, ListenerConfig};
use crate::reload::Reload;
use crate::tasks::{Tasks, compute};
use crate::telemetry::metrics::Metrics;
use crate::upstream::users::UpstreamUsers;
use crate::upstream::{Cluster, rotation};

/// The users files, read before anything listens.
pub(super) struct UsersOfFiles {
    users: HashMap<PathBuf, Arc<FileUsers>>,
    decoys: Arc<Decoys>,
}

impl UsersOfFiles {
    /// Reads the files that the listeners of `config` name.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(super) async fn read(config: &Config, identities: &Arc<Identities>) -> Result<Self, ConfigErrors> {
        let decoys = Arc::new(decoys(config).await);
        let (mut users, mut errors) = (HashMap::new(), Vec::new());
        for file in users_files(&config.listeners) {
            match FileUsers::load(file, decoys.clone(), identities.realm()).await {
                Ok(read) => drop(users.insert(file.to_owned(), read)),
                Err(ConfigErrors(more)) => errors.extend(more),
            }
        }
        if errors.is_empty() { Ok(Self { users, decoys }) } else { Err(ConfigErrors(errors)) }
    }
}

/// Where clients log in.
pub(super) struct Doors {
    of_files: HashMap<PathBuf, Arc<LogIns>>,
    /// By the name of the cluster.
    of_clusters: HashMap<String, Arc<LogIns>>,
    decoys: Arc<Decoys>,
    limits: Arc<ClientLimits>,
    metrics: Arc<Metrics>,
}

impl Doors {
    pub(super) fn new(
        files: UsersOfFiles,
        limits: Arc<ClientLimits>,
        metrics: Arc<Metrics>,
        reload: &Reload,
        tasks: &Tasks,
    ) -> Self {
        let UsersOfFiles { users, decoys } = files;
        let (of_files, of_clusters) = (HashMap::new(), HashMap::new());
        let mut doors = Self { of_files, of_clusters, decoys, limits, metrics };
        for (file, users) in users {
            users.follow(doors.metrics.events.clone(), reload, tasks);
            let door = doors.to(users);
            doors.of_files.insert(file, door);
        }
        doors
    }

    /// Where the clients of a listener that leads to `cluster` log in; `None` where they do not.
    pub(super) fn of(&mut self, auth: &Auth, cluster: &Arc<Cluster>) -> Option<Arc<LogIns>> {
        match auth {
            Auth::None => None,
            Auth::Users(file) => self.of_files.get(file).cloned(),
            Auth::Upstream => {
                let name = &cluster.name;
                if let Some(known) = self.of_clusters.get(name) {
                    return Some(known.clone());
                }
                let door = self.to(UpstreamUsers::new(cluster.clone()));
                self.of_clusters.insert(name.clone(), door.clone());
                Some(door)
            }
        }
    }

    fn to(&self, source: Arc<dyn UserSource>) -> Arc<LogIns> {
        LogIns::new(source, self.decoys.clone(), self.limits.clone(), self.metrics.clone())
    }
}

/// What those get who are not known. By a secret that outlives the process, where there is one: else whoever asks before a
/// restart and after it, or asks two instances, sees whose salts change.
async fn decoys(config: &Config) -> Decoys {
    let by_chance = || Decoys::new(rand::random());
    if config.listeners.iter().all(|listener| matches!(listener.auth, Auth::None)) {
        return by_chance();
    }
    let passwords: Vec<_> = config.clusters.iter().filter_map(upstream_password).collect();
    let derived = compute(move || Decoys::of_passwords(passwords.iter().map(|password| password.as_str()))).await;
    derived.ok().flatten().unwrap_or_else(by_chance)
}

/// The password that stands in the connection string now, or in the file that has it. That a file cannot be read is told
/// when the cluster starts.
fn upstream_password(cluster: &ClusterConfig) -> Option<Zeroizing<String>> {
    let configured = cluster.upstream.credential.clone()?;
    match &cluster.credential_file {
        Some(file) => rotation::read(file, &configured).ok()?.password,
        None => configured.password,
    }
}

fn users_files(listeners: &[ListenerConfig]) -> BTreeSet<&Path> {
    let named = listeners.iter().filter_map(|listener| match &listener.auth {
        Auth::Users(file) => Some(file.as_path()),
        Auth::None | Auth::Upstream => None,
    });
    named.collect()
}
