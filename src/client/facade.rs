//! What clients are shown: follows the upstream, remembers it while that is away, and never guesses.

use std::sync::Arc;

use bson::oid::ObjectId;
use futures_util::future::select_all;
use tokio::sync::watch;

use super::clusters::Clusters;
use crate::config::{CompressorName, Presentation, ShownSet};
use crate::reply::{Compressors, Facts, Shown};
use crate::tasks::Tasks;
use crate::topology::{ServerKind, TopologyDescription};
use crate::wire::Compressor;

/// Highest wire version that is passed on: 8.0. Newer servers may have commands and fields that nobody has tried yet.
const MAX_WIRE_VERSION: i32 = 25;

/// What a hello says that no upstream tells.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What clients are to take us for.
    pub presentation: Presentation,
    /// The set that they are shown, where they are shown one.
    pub shown_set: Option<Arc<ShownSet>>,
    /// What they may compress with.
    pub compressors: Compressors,
    /// Largest message that they may send.
    pub max_message_bytes: usize,
    /// Fixed for the life of the process: drivers tell proxies behind one load balancer apart by it.
    pub service_id: ObjectId,
}

/// The compressors of these names.
pub fn compressors(names: &[CompressorName]) -> Compressors {
    names.iter().copied().map(Compressor::from).collect()
}

/// Publishes what a hello says, from the first time that the upstream was seen.
pub fn follow(clusters: &Clusters, offer: Offer, tasks: &Tasks) -> watch::Receiver<Option<Facts>> {
    let (publish, facts) = watch::channel(None);
    let mut topologies: Vec<_> = clusters.all().map(|cluster| cluster.monitor().subscribe()).collect();
    let tasks_of_program = tasks.clone();
    tasks.spawn("follow facts", async move {
        loop {
            let current: Vec<_> = topologies.iter_mut().map(|topology| topology.borrow_and_update().clone()).collect();
            if let Some(seen) = facts_of(&current, &offer) {
                publish.send_if_modified(|known| replace(known, seen));
            }
            // Nothing is lost when an arm loses: the watch keeps its newest value.
            let change = select_all(topologies.iter_mut().map(|topology| Box::pin(topology.changed())));
            tokio::select! {
                (changed, ..) = change => if changed.is_err() { return },
                () = tasks_of_program.cancelled() => return,
            }
        }
    });
    facts
}

fn replace(known: &mut Option<Facts>, seen: Facts) -> bool {
    if known.as_ref() == Some(&seen) {
        return false;
    }
    match known {
        Some(before) if before.presentation != seen.presentation => {
            tracing::warn!(
                before = ?before.presentation, now = ?seen.presentation,
                "the upstream is of another kind now; clients that knew the old one are closed and must be restarted"
            );
        }
        Some(_) => tracing::info!(max_wire_version = seen.max_wire_version, "the upstream's versions changed"),
        None => tracing::info!(
            presentation = ?seen.presentation, max_wire_version = seen.max_wire_version, "the upstream is known"
        ),
    }
    *known = Some(seen);
    true
}

/// What a listener is follows its first cluster; the highest version is what all clusters speak that are known. `None` while no
/// server of the first one is known.
fn facts_of(topologies: &[Arc<TopologyDescription>], offer: &Offer) -> Option<Facts> {
    let topology = topologies.first()?;
    let Offer { presentation, compressors, max_message_bytes, service_id, ref shown_set } = *offer;
    let own = topology.wire_versions()?;
    let others = topologies.iter().skip(1).filter_map(|topology| topology.wire_versions());
    let (min_wire_version, max_wire_version) = others.fold(own, |all, it| (all.0.max(it.0), all.1.min(it.1)));
    let standalone = topology.data_bearing().all(|server| server.kind == ServerKind::Standalone);
    let presentation = match presentation {
        Presentation::Auto if standalone => Shown::Standalone,
        Presentation::Auto | Presentation::Mongos => Shown::Mongos,
        Presentation::Standalone => Shown::Standalone,
        Presentation::ReplicaSet => Shown::ReplicaSet,
    };
    let max_wire_version = max_wire_version.min(MAX_WIRE_VERSION);
    let max_message_bytes = i32::try_from(max_message_bytes).unwrap_or(i32::MAX);
    let shown_set = shown_set.clone();
    Some(Facts {
        presentation,
        shown_set,
        min_wire_version,
        max_wire_version,
        service_id,
        compressors,
        max_message_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Address;
    use crate::topology::ServerDescription;

    fn topology(servers: &[(ServerKind, i32)]) -> TopologyDescription {
        let describe = |(port, (kind, max_wire_version)): (u16, &(ServerKind, i32))| {
            let address = Address::tcp("127.0.0.1", port);
            let unknown = ServerDescription::unknown(address.clone());
            (address, ServerDescription { kind: *kind, max_wire_version: *max_wire_version, ..unknown })
        };
        let servers = (1..).zip(servers).map(describe).collect();
        TopologyDescription { servers, ..TopologyDescription::default() }
    }

    fn shown(servers: &[(ServerKind, i32)], presentation: Presentation) -> Option<(Shown, i32)> {
        let (compressors, service_id) = (Compressors::default(), ObjectId::from_bytes([0; 12]));
        let offer = Offer { presentation, compressors, max_message_bytes: 48_000_000, service_id, shown_set: None };
        let facts = facts_of(&[Arc::new(topology(servers))], &offer)?;
        Some((facts.presentation, facts.max_wire_version))
    }

    #[test]
    fn the_kind_follows_the_upstream_and_is_never_guessed() {
        use ServerKind::{RsArbiter, RsPrimary, RsSecondary, Standalone, Unknown};
        assert_eq!(shown(&[(Standalone, 17)], Presentation::Auto), Some((Shown::Standalone, 17)));
        assert_eq!(shown(&[(RsPrimary, 17)], Presentation::Auto), Some((Shown::Mongos, 17)));
        assert_eq!(shown(&[(ServerKind::Mongos, 17)], Presentation::Auto), Some((Shown::Mongos, 17)));
        assert_eq!(shown(&[(Unknown, 0), (RsArbiter, 17)], Presentation::Auto), None);
        assert_eq!(
            shown(&[(RsSecondary, 21), (RsPrimary, 17), (Unknown, 0)], Presentation::Auto),
            Some((Shown::Mongos, 17))
        );
        assert_eq!(shown(&[(RsPrimary, 99)], Presentation::Auto), Some((Shown::Mongos, MAX_WIRE_VERSION)));
        assert_eq!(shown(&[(RsPrimary, 17)], Presentation::Standalone), Some((Shown::Standalone, 17)));
        assert_eq!(shown(&[(RsPrimary, 17)], Presentation::ReplicaSet), Some((Shown::ReplicaSet, 17)));
        assert_eq!(shown(&[(ServerKind::Mongos, 17)], Presentation::ReplicaSet), Some((Shown::ReplicaSet, 17)));
        assert_eq!(shown(&[], Presentation::Mongos), None, "the wire version is not known by configuration");
    }

    #[test]
    fn several_clusters_speak_what_all_of_them_speak_and_look_like_the_first() {
        use ServerKind::{RsPrimary, Standalone, Unknown};
        let facts = |clusters: &[(ServerKind, i32)]| {
            let topologies: Vec<_> = clusters.iter().map(|server| Arc::new(topology(&[*server]))).collect();
            let (compressors, service_id) = (Compressors::default(), ObjectId::from_bytes([0; 12]));
            let presentation = Presentation::Auto;
            let offer = Offer { presentation, compressors, max_message_bytes: 48_000_000, service_id, shown_set: None };
            facts_of(&topologies, &offer).map(|facts| (facts.presentation, facts.max_wire_version))
        };
        assert_eq!(facts(&[(RsPrimary, 21), (RsPrimary, 17)]), Some((Shown::Mongos, 17)));
        assert_eq!(facts(&[(RsPrimary, 17), (RsPrimary, 21)]), Some((Shown::Mongos, 17)));
        assert_eq!(facts(&[(RsPrimary, 21), (Unknown, 0)]), Some((Shown::Mongos, 21)), "which is not waited for");
        assert_eq!(facts(&[(Standalone, 21), (RsPrimary, 21)]), Some((Shown::Standalone, 21)));
        assert_eq!(facts(&[(Unknown, 0), (RsPrimary, 21)]), None);
    }
}
