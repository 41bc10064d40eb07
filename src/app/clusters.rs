//! Starts a cluster: what watches its servers, what dials them, and what follows its files.

use std::sync::Arc;
use std::time::Duration;

use bson::oid::ObjectId;

use super::certificates::Certificates;
use super::files::FilesOfCluster;
use crate::admission::MemoryBudget;
use crate::auth::Identities;
use crate::config::{ClientConfig, ClusterConfig};
use crate::reload::Reload;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
use crate::topology::monitor::{Monitor, MonitorSettings};
use crate::upstream::handshake::UpstreamDialer;
use crate::upstream::{Cluster, rotation};

/// A monitor waits no longer than this for a reply, however long clients' connections may take: it is what tells a hung
/// server from a slow one.
const MONITOR_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What all clusters share.
pub(super) struct Surroundings<'a> {
    pub(super) client: &'a ClientConfig,
    pub(super) identities: Arc<Identities>,
    pub(super) memory: Arc<MemoryBudget>,
    pub(super) tasks: &'a Tasks,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) reload: &'a Reload,
    pub(super) certificates: &'a Certificates,
    pub(super) service_id: ObjectId,
}

pub(super) fn start(mut config: ClusterConfig, files: FilesOfCluster, surroundings: Surroundings<'_>) -> Arc<Cluster> {
    let Surroundings { client, identities, memory, tasks, metrics, reload, certificates, service_id } = surroundings;
    if let Some(credential) = files.credential {
        config.upstream.credential = Some(credential);
    }
    for warning in &config.upstream.warnings {
        tracing::warn!(cluster = %config.name, warning);
    }
    tracing::info!(cluster = %config.name, upstream = %config.upstream.redacted, "starting");
    let settings = MonitorSettings {
        heartbeat_frequency: config.heartbeat_frequency,
        connect_timeout: config.pool.connect_timeout.min(MONITOR_CONNECT_TIMEOUT),
        rebuild: config.reconnect,
        instance: service_id,
    };
    let monitor = Monitor::start(&config.upstream, settings, tasks);
    let (told, memory_of_it) = (identities.clone(), memory.clone());
    let most = client.max_message_bytes;
    let dialer = UpstreamDialer::new(&config.upstream, files.tls, monitor.clone(), told, memory_of_it, most);
    let dialer = Arc::new(dialer.of_instance(service_id));
    if let Some(tls) = dialer.tls() {
        certificates.watch_cluster(&config.name, tls, monitor.clone());
    }
    let followed = config.credential_file.clone().zip(config.upstream.credential.clone());
    let cluster = Cluster::new(config, monitor, dialer.clone(), identities, memory, tasks.clone(), metrics.clone());
    cluster.start();
    if let Some((file, credential)) = followed {
        rotation::follow(file, credential, dialer, cluster.clone(), reload, tasks);
    }
    cluster
}
