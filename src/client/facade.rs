//! What clients are shown: follows the upstream, remembers it while that is away, and never guesses.

use bson::oid::ObjectId;
use tokio::sync::watch;

use crate::config::Presentation;
use crate::reply::{Compressors, Facts, Shown};
use crate::tasks::Tasks;
use crate::topology::monitor::Monitor;
use crate::topology::{ServerKind, TopologyDescription};
use crate::wire::Compressor;

/// Highest wire version that is passed on: 8.0. Newer servers may have commands and fields that nobody has tried yet.
const MAX_WIRE_VERSION: i32 = 25;

/// Publishes what a hello says, from the first time that the upstream was seen.
pub fn follow(
    monitor: &Monitor,
    presentation: Presentation,
    max_message_bytes: usize,
    tasks: &Tasks,
) -> watch::Receiver<Option<Facts>> {
    let (publish, facts) = watch::channel(None);
    let mut topology = monitor.subscribe();
    // Fixed for the life of the process: drivers tell proxies behind one load balancer apart by it.
    let service_id = ObjectId::new();
    let tasks_of_program = tasks.clone();
    tasks.spawn("follow facts", async move {
        loop {
            let current = topology.borrow_and_update().clone();
            if let Some(seen) = facts_of(&current, presentation, service_id, max_message_bytes) {
                publish.send_if_modified(|known| replace(known, seen));
            }
            // Nothing is lost when an arm loses: the watch keeps its newest value.
            tokio::select! {
                changed = topology.changed() => if changed.is_err() { return },
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

/// `None` while no server is known.
fn facts_of(
    topology: &TopologyDescription,
    presentation: Presentation,
    service_id: ObjectId,
    max_message_bytes: usize,
) -> Option<Facts> {
    let (min_wire_version, max_wire_version) = topology.wire_versions()?;
    let standalone = topology.data_bearing().all(|server| server.kind == ServerKind::Standalone);
    let presentation = match presentation {
        Presentation::Auto if standalone => Shown::Standalone,
        Presentation::Auto | Presentation::Mongos => Shown::Mongos,
        Presentation::Standalone => Shown::Standalone,
    };
    let max_wire_version = max_wire_version.min(MAX_WIRE_VERSION);
    let compressors: Compressors = Compressor::ALL.into_iter().collect();
    let max_message_bytes = i32::try_from(max_message_bytes).unwrap_or(i32::MAX);
    Some(Facts { presentation, min_wire_version, max_wire_version, service_id, compressors, max_message_bytes })
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
        let facts = facts_of(&topology(servers), presentation, ObjectId::from_bytes([0; 12]), 48_000_000)?;
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
        assert_eq!(shown(&[], Presentation::Mongos), None, "the wire version is not known by configuration");
    }
}
