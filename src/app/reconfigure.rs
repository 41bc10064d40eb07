//! Another configuration for a running program: read as at its start, judged as a whole, and put in force as far as that can be
//! done while clients work. What cannot be is told, and waits for a restart.
//!
//! A configuration with any mistake changes nothing.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};

use super::files;
use crate::admin::ReloadAnswer;
use crate::client::shared::ClientLimits;
use crate::client::{Places, RulesInForce};
use crate::config::{
    Address, ClientConfig, ClusterConfig, Config, ConfigErrors, Effective, Times, Warning, difference,
};
use crate::reload::Reading;
use crate::tasks::Tasks;
use crate::telemetry::{EventKind, Metrics};
use crate::upstream::Cluster;

/// Reads the configuration anew, from where it was read at the start.
pub type Load = dyn Fn() -> Result<(Config, Vec<Warning>), ConfigErrors> + Send + Sync;

/// Puts other configurations in force, one after the other.
pub(super) struct Reconfigure {
    load: Box<Load>,
    /// What the program has begun with: what needs a restart is as it says.
    began: Effective,
    /// What was loaded last.
    last: Mutex<Config>,
    parts: Parts,
}

/// What a configuration is put in force in.
pub(super) struct Parts {
    pub(super) clusters: Vec<Arc<Cluster>>,
    /// By the address that was asked for.
    pub(super) rules: Vec<(Address, Arc<RulesInForce>)>,
    pub(super) limits: Arc<ClientLimits>,
    pub(super) places: Arc<Places>,
    pub(super) times: watch::Sender<Times>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reading: Reading,
    pub(super) tasks: Tasks,
    /// As it is told.
    pub(super) effective: Arc<ArcSwap<Effective>>,
}

impl Reconfigure {
    /// The program runs with `config`, which `load` would return again if nothing has changed.
    pub(super) fn new(load: Box<Load>, config: Config, parts: Parts) -> Arc<Self> {
        Arc::new(Self { load, began: config.effective.clone(), last: Mutex::new(config), parts })
    }

    /// Loads the configuration again and puts it in force.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing was changed then.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed before the last wait.
    pub(super) async fn now(&self) -> Result<ReloadAnswer, ConfigErrors> {
        let mut last = self.last.lock().await;
        let Parts { metrics, reading, .. } = &self.parts;
        let loaded = match (self.load)() {
            Ok((config, warnings)) => {
                let checked = files::check(&config).await;
                // Of a file that is watched already it is told by who watches it, also that it is good again.
                let is_new = !difference(&last.effective, &config.effective).is_empty();
                reading.ended(checked.is_ok() || !is_new);
                checked.map(|()| (config, warnings))
            }
            Err(errors) => {
                reading.ended(false);
                Err(errors)
            }
        };
        let (config, warnings) = loaded.inspect_err(|errors| {
            tracing::error!(%errors, "the configuration stays as it was");
            metrics.events.record(EventKind::Reload, None, None, &format!("refused: {errors}"));
        })?;
        let changed = difference(&last.effective, &config.effective);
        let answer = ReloadAnswer {
            applied: changed.into_iter().filter(|change| change.live).collect(),
            needs_restart: difference(&self.began, &config.effective).into_iter().filter(|it| !it.live).collect(),
            warnings: warnings.into_iter().map(|warning| warning.0).collect(),
        };
        self.parts.apply(&last, &config);
        self.parts.effective.store(Arc::new(self.began.taking_over(&config.effective)));
        *last = config;
        for warning in &answer.warnings {
            tracing::warn!("{warning}");
        }
        for change in &answer.applied {
            tracing::info!(%change, "configuration changed");
        }
        for change in &answer.needs_restart {
            tracing::warn!(%change, "a change of the configuration needs a restart");
        }
        let (applied, needs_restart) = (answer.applied.len(), answer.needs_restart.len());
        tracing::info!(applied, needs_restart, "the configuration was loaded again");
        let told = format!("{applied} changes applied, {needs_restart} need a restart");
        metrics.events.record(EventKind::Reload, None, None, &told);
        Ok(answer)
    }
}

impl Parts {
    /// Puts all of `new` in force that can be.
    fn apply(&self, old: &Config, new: &Config) {
        for cluster in &self.clusters {
            if let Some(config) = new.clusters.iter().find(|config| config.name == cluster.name) {
                cluster.reconfigure(live_of_cluster(&cluster.config(), config.clone()));
            }
        }
        for (address, rules) in &self.rules {
            let said = |config: &Config| {
                config.listeners.iter().find(|it| it.listen == *address).map(|listener| listener.rules.clone())
            };
            // What was ordered meanwhile stays, unless the file says something new.
            if let Some(new) = said(new).filter(|new| said(old).as_ref() != Some(new)) {
                rules.change(|rules| *rules = new);
            }
        }
        let client = live_of_clients(&self.limits.load(), new.client.clone());
        self.places.resize(&client, &self.tasks);
        self.limits.store(Arc::new(client));
        self.times.send_replace(new.times);
    }
}

/// `new`, but for what needs a restart.
fn live_of_cluster(old: &ClusterConfig, new: ClusterConfig) -> ClusterConfig {
    ClusterConfig {
        upstream: old.upstream.clone(),
        credential_file: old.credential_file.clone(),
        presentation: old.presentation,
        shown_set: old.shown_set.clone(),
        heartbeat_frequency: old.heartbeat_frequency,
        adaptive_limit: old.adaptive_limit,
        ..new
    }
}

fn live_of_clients(old: &ClientConfig, new: ClientConfig) -> ClientConfig {
    ClientConfig {
        // Sockets are counted by address from their beginning on.
        max_clients_per_address: old.max_clients_per_address,
        // Clients were told.
        max_message_bytes: old.max_message_bytes,
        ..new
    }
}
