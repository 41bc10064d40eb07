//! How far clients share connections, while a team switches to that step by step.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::{PoolingConfig, PoolingMode};
use crate::upstream::Cluster;

/// What `/stats` tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolingStats {
    /// `pooled`: all commands share connections; `partly`: some; `observe`: none.
    pub mode: String,
    /// Of a hundred clients so many share them.
    pub pooled_percent: u32,
    /// Commands of these databases; all where none is named.
    pub pooled_databases: Vec<String>,
    /// Connections that belong to one client each.
    pub own_connections: u32,
    /// Those of them that carry a command now which does not wait for data.
    #[serde(default)]
    pub own_in_use: u32,
    /// As many of them were in use at once at most, on the server where that is most.
    pub own_in_use_peak: u32,
    /// Whether `max_pool_size` bounds how many connections there are.
    pub bound_holds: bool,
}

impl PoolingStats {
    /// Of a cluster as it is now.
    pub fn of(cluster: &Cluster, now: Instant) -> Self {
        let servers = cluster.servers();
        let own: Vec<(u32, u32)> = servers.iter().map(|server| server.pool.own_connections()).collect();
        let uses = servers.iter().flat_map(|server| server.pool.own_uses(now));
        let in_use = uses.filter(|it| it.work.command.is_some() && !it.work.waits).count();
        let open = own.iter().map(|(open, _)| open).sum();
        let peak = own.iter().map(|(_, peak)| *peak).max().unwrap_or_default();
        let in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
        Self { own_in_use: in_use, ..Self::new(&cluster.config().pooling, open, peak) }
    }

    fn new(pooling: &PoolingConfig, own_connections: u32, own_in_use_peak: u32) -> Self {
        let mode = match pooling.mode() {
            PoolingMode::Pooled => "pooled",
            PoolingMode::Partly => "partly",
            PoolingMode::Observe => "observe",
        };
        Self {
            mode: mode.to_owned(),
            pooled_percent: pooling.clients_percent,
            pooled_databases: pooling.databases.iter().map(ToString::to_string).collect(),
            own_connections,
            own_in_use: 0,
            own_in_use_peak,
            bound_holds: pooling.mode() == PoolingMode::Pooled && own_connections == 0,
        }
    }

    /// What to do about it, as long as the bound does not hold.
    pub fn advice(&self) -> Option<String> {
        if self.bound_holds {
            return None;
        }
        let Self { own_connections: own, own_in_use_peak: peak, pooled_percent: percent, .. } = self;
        let now = format!(
            "max_pool_size does not bound the connections: {own} belong to one client each, of which {peak} were in use at once at \
             most"
        );
        let next = match &*self.mode {
            "pooled" => "They end when their commands do".to_owned(),
            "observe" => "To share connections, begin with one database (pooled_databases) or a few clients \
                          (pooled_clients_percent)"
                .to_owned(),
            _ if self.pooled_databases.is_empty() => {
                format!(
                    "{percent} % of the clients share connections: raise pooled_clients_percent when they fare well"
                )
            }
            _ => format!(
                "{percent} % of the clients share connections, for {}: name more, or raise pooled_clients_percent, when they fare well",
                self.pooled_databases.join(", ")
            ),
        };
        Some(format!("{now}. {next}."))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stats(clients_percent: u32, databases: &[&str], own: u32) -> PoolingStats {
        let databases = databases.iter().map(|text| text.parse().unwrap()).collect();
        PoolingStats::new(&PoolingConfig { clients_percent, databases }, own, 9)
    }

    #[test]
    fn it_reads_as_documented() {
        let expected = json!({
            "mode": "partly", "pooledPercent": 5, "pooledDatabases": ["shop", "cms_*"], "ownConnections": 37,
            "ownInUse": 0, "ownInUsePeak": 9, "boundHolds": false,
        });
        assert_eq!(serde_json::to_value(stats(5, &["shop", "cms_*"], 37)).unwrap(), expected);
    }

    #[test]
    fn the_bound_holds_once_the_last_connection_of_a_client_is_gone() {
        let holds = |percent, databases, own| stats(percent, databases, own).bound_holds;
        assert!(holds(100, &[], 0) && !holds(100, &[], 1));
        assert!(!holds(99, &[], 0) && !holds(0, &[], 0) && !holds(100, &["shop"], 0), "the next command may open one");
    }

    #[test]
    fn the_next_step_is_named_as_long_as_there_is_one() {
        assert_eq!(stats(100, &[], 0).advice(), None);
        for (stats, words) in [
            (stats(0, &[], 37), "begin with one database (pooled_databases)"),
            (stats(5, &[], 37), "5 % of the clients share connections: raise pooled_clients_percent"),
            (stats(100, &["shop"], 37), "for shop: name more"),
            (stats(100, &[], 37), "They end when"),
        ] {
            let told = stats.advice().unwrap();
            let first = "max_pool_size does not bound the connections: 37 belong to one client each, of which 9";
            assert!(told.starts_with(first) && told.contains(words), "{told}");
        }
    }
}
