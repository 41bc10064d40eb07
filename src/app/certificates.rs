//! Certificates, keys and authorities of both legs and of the admin port: read again when their files change, and watched as they grow old.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::client::ClientTls;
use crate::reload::Reload;
use crate::tasks::Tasks;
use crate::telemetry::EventKind;
use crate::telemetry::labels::CertificateSide;
use crate::telemetry::metrics::Metrics;
use crate::topology::monitor::Monitor;
use crate::upstream::pool::lock;
use crate::upstream::tls::UpstreamTls;

/// Who renews certificates by hand needs a few working days.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// So often it is said, as long as it is true.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Those of all listeners and clusters, and of the admin port.
#[derive(Clone)]
pub(super) struct Certificates {
    reload: Reload,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    /// When each of ours expires, by side and by whose it is.
    expiries: Arc<Mutex<BTreeMap<(CertificateSide, String), SystemTime>>>,
}

impl Certificates {
    pub(super) fn new(reload: Reload, metrics: Arc<Metrics>, tasks: Tasks) -> Self {
        Self { reload, metrics, tasks, expiries: Arc::default() }
    }

    /// What clients of a listener are shown, or callers of the admin port.
    pub(super) fn watch_listener(&self, side: CertificateSide, whose: String, tls: &Arc<ClientTls>) {
        self.note(side, &whose, Some(tls.expires()));
        let (all, files, tls) = (self.clone(), tls.files(), tls.clone());
        self.reload.watch(files, &self.tasks, move || {
            let read = tls.reload().map(|()| Some(tls.expires()));
            ready(all.was_read(side, &whose, read))
        });
    }

    /// What servers of a cluster are shown, and who is to have signed theirs.
    pub(super) fn watch_cluster(&self, cluster: &str, tls: &Arc<UpstreamTls>, monitor: Monitor) {
        let whose = format!("cluster {cluster}");
        self.note(CertificateSide::Upstream, &whose, tls.expires());
        let (all, files, tls) = (self.clone(), tls.files(), tls.clone());
        self.reload.watch(files, &self.tasks, move || {
            let read = tls.reload().map(|()| tls.expires());
            let success = all.was_read(CertificateSide::Upstream, &whose, read);
            if success {
                monitor.renew();
            }
            ready(success)
        });
    }

    /// Says from now on, day by day, which certificates expire soon.
    pub(super) fn warn_in_time(&self) {
        let all = self.clone();
        self.tasks.spawn("certificates", async move {
            loop {
                tokio::select! {
                    // Either it is over, or it is time to look again.
                    () = all.tasks.cancelled() => return,
                    () = tokio::time::sleep(WARN_EVERY) => {}
                }
                let expiries = lock(&all.expiries).clone();
                expiries.into_iter().for_each(|((_, whose), expires)| warn(&whose, expires, SystemTime::now()));
            }
        });
    }

    /// Whether it could be read.
    fn was_read(
        &self,
        side: CertificateSide,
        whose: &str,
        read: Result<Option<SystemTime>, impl std::fmt::Display>,
    ) -> bool {
        match read {
            Ok(expires) => {
                tracing::info!(whose, "TLS files were read again");
                let told = format!("the TLS files of {whose} were read again");
                self.metrics.events.record(EventKind::Reload, None, None, &told);
                self.note(side, whose, expires);
                true
            }
            Err(error) => {
                tracing::error!(whose, %error, "TLS files cannot be used: those from before stay in force");
                let told = format!("the TLS files of {whose} cannot be used, those from before stay in force: {error}");
                self.metrics.events.record(EventKind::Reload, None, None, &told);
                false
            }
        }
    }

    fn note(&self, side: CertificateSide, whose: &str, expires: Option<SystemTime>) {
        let Some(expires) = expires else { return };
        warn(whose, expires, SystemTime::now());
        let mut expiries = lock(&self.expiries);
        expiries.insert((side, whose.to_owned()), expires);
        let first = expiries.iter().filter(|((of, _), _)| *of == side).map(|(_, expires)| *expires).min();
        let seconds = first.and_then(|first| first.duration_since(UNIX_EPOCH).ok()).unwrap_or_default().as_secs();
        self.metrics.tls_certificate_expiry[side].set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}

fn warn(whose: &str, expires: SystemTime, now: SystemTime) {
    match expires.duration_since(now) {
        Err(_) => tracing::warn!(whose, "our certificate has expired: nobody who checks it connects"),
        Ok(left) if left < WARN_BEFORE => {
            let days = left.as_secs() / (24 * 3600);
            tracing::warn!(whose, days, "our certificate expires soon");
        }
        Ok(_) => {}
    }
}
