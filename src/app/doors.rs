//! Where the clients of each listener log in: one place for each source of users, whichever listeners ask there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::auth::Identities;
use crate::auth::scram_server::Decoys;
use crate::auth::users::UserSource;
use crate::client::file_users::{self, FileUsers};
use crate::client::log_in::LogIns;
use crate::config::{Auth, Config, ConfigErrors, ListenerConfig};
use crate::reload::Reload;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Cluster;
use crate::upstream::users::UpstreamUsers;

/// The users file, read before anything listens.
pub(super) struct UsersOfFile {
    users: Option<Arc<FileUsers>>,
    decoys: Arc<Decoys>,
}

impl UsersOfFile {
    /// Reads the file that `listeners` name, if any does.
    ///
    /// # Errors
    /// Every mistake in it.
    pub(super) async fn read(listeners: &[ListenerConfig], identities: &Arc<Identities>) -> Result<Self, ConfigErrors> {
        let decoys = Arc::new(Decoys::new(rand::random()));
        let users = match users_file(listeners) {
            Some(file) => Some(FileUsers::load(file, decoys.clone(), identities.realm()).await?),
            None => None,
        };
        Ok(Self { users, decoys })
    }
}

/// Where clients log in.
pub(super) struct Doors {
    of_file: Option<Arc<LogIns>>,
    /// By the name of the cluster.
    of_clusters: HashMap<String, Arc<LogIns>>,
    decoys: Arc<Decoys>,
    most_failed: Option<u32>,
    metrics: Arc<Metrics>,
}

impl Doors {
    pub(super) fn new(
        file: UsersOfFile,
        most_failed: Option<u32>,
        metrics: Arc<Metrics>,
        reload: &Reload,
        tasks: &Tasks,
    ) -> Self {
        let UsersOfFile { users, decoys } = file;
        let mut doors = Self { of_file: None, of_clusters: HashMap::new(), decoys, most_failed, metrics };
        doors.of_file = users.map(|users| {
            users.follow(reload, tasks);
            doors.to(users)
        });
        doors
    }

    /// Where the clients of a listener that leads to `cluster` log in; `None` where they do not.
    pub(super) fn of(&mut self, auth: &Auth, cluster: &Arc<Cluster>) -> Option<Arc<LogIns>> {
        match auth {
            Auth::None => None,
            Auth::Users(_) => self.of_file.clone(),
            Auth::Upstream => {
                let name = &cluster.config.name;
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
        LogIns::new(source, self.decoys.clone(), self.most_failed, self.metrics.clone())
    }
}

/// The configuration has made sure that there is one at most.
fn users_file(listeners: &[ListenerConfig]) -> Option<&Path> {
    listeners.iter().find_map(|listener| match &listener.auth {
        Auth::Users(file) => Some(file.as_path()),
        Auth::None | Auth::Upstream => None,
    })
}

/// Whether the users file of a configuration is one.
///
/// # Errors
/// Every mistake in it.
pub fn check_users(config: &Config) -> Result<(), ConfigErrors> {
    users_file(&config.listeners).map_or(Ok(()), file_users::check)
}
