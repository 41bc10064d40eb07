//! The clusters behind one listener, and which of them carries out a command.
//!
//! Almost always there is one, and nothing is looked up.

use std::sync::Arc;

use crate::command::Command;
use crate::config::Databases;
use crate::reply::errors::ErrorReply;
use crate::upstream::Cluster;
use crate::wire::Frame;

/// The clusters behind one listener.
pub struct Clusters {
    /// Has all that no route says anything about.
    default: Arc<Cluster>,
    routes: Option<Routes>,
}

/// Where a listener leads beside its default.
struct Routes {
    databases: Databases<Arc<Cluster>>,
    /// Each once, without the default.
    others: Vec<Arc<Cluster>>,
}

impl Clusters {
    /// All to `default`, but for `databases`.
    pub fn new(default: Arc<Cluster>, databases: Databases<Arc<Cluster>>) -> Self {
        let mut others: Vec<Arc<Cluster>> = Vec::new();
        for cluster in databases.destinations() {
            if !std::iter::once(&default).chain(&others).any(|known| Arc::ptr_eq(known, cluster)) {
                others.push(cluster.clone());
            }
        }
        let routes = (!others.is_empty()).then_some(Routes { databases, others });
        Self { default, routes }
    }

    /// The one that has all that no route says anything about.
    pub fn default(&self) -> &Arc<Cluster> {
        &self.default
    }

    /// Each of them, the default first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        std::iter::once(&self.default).chain(self.routes.iter().flat_map(|routes| &routes.others))
    }

    /// The one that carries out a command.
    ///
    /// # Errors
    /// What the client reads where there is no such one.
    pub(super) fn of(&self, command: &Command, frame: &Frame) -> Result<&Arc<Cluster>, ErrorReply> {
        match &self.routes {
            None => Ok(&self.default),
            Some(routes) => Ok(routes.databases.destination(command.database(frame)).unwrap_or(&self.default)),
        }
    }
}
