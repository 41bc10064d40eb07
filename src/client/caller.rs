//! Who sends a command, as far as that decides about its share of the connections.

use std::sync::Arc;

use super::ends::Ends;
use crate::admission::{Level, Tenant};
use crate::auth::Identity;
use crate::config::{FairBy, FairnessConfig};
use crate::reply::ClientState;
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, OwnConnections};

/// Who sends a command.
pub(super) struct Caller<'a> {
    /// What it has told of itself.
    pub(super) state: &'a ClientState,
    /// Where its socket comes from.
    pub(super) ends: &'a Ends,
    /// As whom it has logged in.
    pub(super) identity: Option<&'a Arc<Identity>>,
    /// Its own connections, if the command goes over one of them.
    pub(super) own: Option<Arc<OwnConnections>>,
}

impl Caller<'_> {
    fn application(&self) -> &str {
        let metadata = self.state.metadata.as_ref();
        metadata.and_then(|metadata| metadata.application.as_deref()).unwrap_or_default()
    }

    /// Its tenant, and how much its command matters.
    pub(super) fn stands<'d>(
        &self,
        cluster: &Cluster,
        fairness: &FairnessConfig,
        database: impl FnOnce() -> &'d str,
    ) -> (Tenant, Level) {
        let level = fairness.level_of(self.application());
        let tenant = |name: &str| lock(&cluster.tenants).of(name);
        let tenant = match fairness.by {
            FairBy::None => Tenant::COMMON,
            FairBy::Application => tenant(self.application()),
            FairBy::User => self.identity.map_or(Tenant::COMMON, |identity| tenant(&identity.shown)),
            FairBy::Database => tenant(database()),
            FairBy::Address => tenant(&self.ends.host().map(|host| host.to_string()).unwrap_or_default()),
        };
        (tenant, level)
    }
}
