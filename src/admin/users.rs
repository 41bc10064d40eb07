//! What `/stats` tells of the users of one server: where each has connections of its own, how many, and how many commands wait.

use serde::{Deserialize, Serialize};

use crate::auth::UserId;
use crate::upstream::pool::UserSnapshot;
use crate::upstream::{Cluster, Server};

/// So many are told of, those first that have or want most.
const MOST: usize = 20;

/// One user on one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserStats {
    /// With the database that holds it, `name@database`; empty for whoever the connection string names.
    pub name: String,
    /// Connections that are logged in as it.
    pub open: u32,
    /// Connections that are being established for it.
    pub pending: u32,
    /// Commands that wait for one.
    pub waiting: usize,
}

/// The users of a server that have or want most; none where all clients share the connections.
pub(super) fn of_server(cluster: &Cluster, server: &Server) -> Vec<UserStats> {
    let mut users = server.pool.users();
    if users.iter().all(|it| it.user == UserId::SERVICE) {
        return Vec::new();
    }
    users.sort_by_key(|it| std::cmp::Reverse((it.holding.total(), it.waiting)));
    let stats = users.into_iter().take(MOST).map(|UserSnapshot { user, holding, waiting }| UserStats {
        name: cluster.identities.of(user).map(|identity| identity.user.to_string()).unwrap_or_default(),
        open: holding.open,
        pending: holding.pending,
        waiting,
    });
    stats.collect()
}
