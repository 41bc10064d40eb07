//! Opens the listeners: each with what its clients are shown, where they log in, what they may do, and where their commands go.

use std::sync::Arc;

use bson::oid::ObjectId;
use tokio::sync::watch;

use super::certificates::Certificates;
use super::doors::Doors;
use super::upgrade::{Door, Role};
use crate::admin::Ruled;
use crate::client::facade::{self, Offer};
use crate::client::shared::{Activity, ClientLimits};
use crate::client::{
    BindError, BoundSocket, ClientShared, ClientTls, Clusters, GivenSocket, Places, RulesInForce, Shift, listener,
};
use crate::config::{Address, ListenerConfig};
use crate::tasks::Tasks;
use crate::telemetry::labels::CertificateSide;
use crate::upstream::{Cluster, Liveness};

/// What all listeners share.
pub(super) struct Surroundings<'a> {
    pub(super) clusters: &'a [Arc<Cluster>],
    pub(super) limits: &'a Arc<ClientLimits>,
    pub(super) activity: &'a Arc<Activity>,
    pub(super) places: &'a Arc<Places>,
    pub(super) certificates: &'a Certificates,
    pub(super) shift: &'a watch::Sender<Shift>,
    pub(super) tasks: &'a Tasks,
    pub(super) service_id: ObjectId,
}

/// Those that are open, as others see them.
#[derive(Default)]
pub(super) struct Listeners {
    /// For the admin port.
    pub(super) ruled: Vec<Ruled>,
    /// By the address that the configuration says.
    pub(super) rules: Vec<(Address, Arc<RulesInForce>)>,
    /// Each with whether its clients' sockets can come from another process.
    pub(super) shared: Vec<(Arc<ClientShared>, bool)>,
    /// For the next process.
    pub(super) doors: Vec<Door>,
}

impl Listeners {
    /// Opens one more, on a socket that is bound.
    pub(super) fn open(
        &mut self,
        listener: ListenerConfig,
        socket: Arc<BoundSocket>,
        tls: Option<Arc<ClientTls>>,
        doors: &mut Doors,
        surroundings: &Surroundings<'_>,
    ) {
        let Surroundings { clusters, limits, activity, places, certificates, shift, tasks, service_id } = *surroundings;
        let behind = behind(&listener, clusters);
        let offer = Offer {
            presentation: behind.default().config().presentation,
            shown_set: behind.default().config().shown_set.clone().map(Arc::new),
            compressors: facade::compressors(&listener.compressors),
            max_message_bytes: limits.load().max_message_bytes,
            service_id,
        };
        let facts = facade::follow(&behind, offer, tasks);
        let rules = RulesInForce::new(listener.rules);
        self.rules.push((listener.listen.clone(), rules.clone()));
        let log_ins = doors.of(&listener.auth, behind.default());
        let address = socket.address().clone();
        let shared =
            ClientShared::new(address.clone(), behind, rules.clone(), limits.clone(), facts, activity.clone(), log_ins);
        let (cluster, databases) = (&listener.cluster, &listener.databases);
        let proxied = listener.proxy_protocol;
        let encrypted = tls.is_some();
        tracing::info!(%cluster, %databases, proxied, encrypted, %address, "listening");
        if let Some(tls) = &tls {
            certificates.watch_listener(CertificateSide::Client, format!("listener {address}"), tls);
        }
        let clients = shared.bounds.registry.clone();
        let ruled = Ruled { address, cluster: listener.cluster, rules, clients };
        ruled.warn_of_unknown_commands();
        self.ruled.push(ruled);
        self.doors.push(Door::new(Role::Clients, &socket));
        self.shared.push((shared.clone(), !encrypted));
        tasks.spawn("listen", listener::serve(socket, proxied, tls, shared, places.clone(), shift.subscribe()));
    }
}

/// A socket that listens: the one that was given, or one that is bound now.
pub(super) async fn bound_or_given(
    address: &Address,
    given: Option<GivenSocket>,
    liveness: Liveness,
) -> Result<Arc<BoundSocket>, BindError> {
    let socket = match given {
        Some(given) => BoundSocket::given(given, liveness),
        None => BoundSocket::bind(address, liveness).await,
    };
    socket.map(Arc::new)
}

/// The clusters that a listener leads to.
fn behind(listener: &ListenerConfig, clusters: &[Arc<Cluster>]) -> Clusters {
    let named = |name: &String| {
        let found = clusters.iter().find(|cluster| cluster.name == *name);
        found.expect("a configuration names clusters that it has").clone()
    };
    Clusters::new(named(&listener.cluster), listener.databases.map(named))
}
