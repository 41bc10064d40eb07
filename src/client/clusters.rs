//! The clusters behind one listener, and which of them carries out a command.
//!
//! Almost always there is one, and nothing is looked up.

use std::sync::Arc;

use tokio::time::Instant;

use crate::command::{Command, Handling};
use crate::config::Databases;
use crate::reply::errors::{self, ErrorReply};
use crate::upstream::Cluster;
use crate::upstream::pool::lock;
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

    /// True where not all commands go to the same one.
    pub(super) fn are_several(&self) -> bool {
        self.routes.is_some()
    }

    /// The one that carries out a command.
    ///
    /// # Errors
    /// What the client reads where there is no such one.
    pub(super) fn of(&self, command: &Command, frame: &Frame) -> Result<&Arc<Cluster>, ErrorReply> {
        match &self.routes {
            None => Ok(&self.default),
            Some(routes) => self.chosen(routes, command, frame),
        }
    }

    fn chosen<'a>(
        &'a self,
        routes: &'a Routes,
        command: &Command,
        frame: &Frame,
    ) -> Result<&'a Arc<Cluster>, ErrorReply> {
        let database = command.database(frame);
        let of_database = |name: &str| routes.databases.destination(name).unwrap_or(&self.default);
        let ends_transaction = command.spec.handling == Handling::EndTransaction;
        // The results of a bulkWrite are a cursor on `admin`, whatever they are about.
        let on_cursor = matches!(command.spec.handling, Handling::GetMore | Handling::KillCursors);
        let on_results = database == "admin" && on_cursor;
        let now = Instant::now();
        let (about, cluster) = match command.named_databases(frame).split_first() {
            None => (database, of_database(database)),
            Some((first, others)) => {
                let cluster = of_database(first);
                if let Some(other) = others.iter().find(|other| !Arc::ptr_eq(of_database(other), cluster)) {
                    let named = |name: &'_ str| of_database(name).name.clone();
                    let name = command.spec.name;
                    return Err(errors::two_clusters(name, (first, &named(first)), (other, &named(other))));
                }
                (*first, cluster)
            }
        };
        if let Some(id) = command.session.transaction() {
            // Where it was started. Its end is told on `admin`, whatever it was about.
            let runs_in = self.all().find(|cluster| lock(&cluster.pins).transaction(id, now).is_some());
            return match runs_in {
                Some(runs_in) if ends_transaction || on_results || Arc::ptr_eq(runs_in, cluster) => Ok(runs_in),
                Some(runs_in) => Err(errors::second_cluster(&runs_in.name, about, &cluster.name)),
                None if command.spec.name == "commitTransaction" => Err(errors::commit_of_unknown_cluster()),
                // Nothing of it was ever sent, or its server has forgotten it as well.
                None if ends_transaction => Err(errors::transaction_of_no_cluster()),
                None => Ok(cluster),
            };
        }
        if on_results {
            let id = match command.spec.handling {
                Handling::GetMore => command.cursor_id(frame),
                _ => command.cursors_to_kill(frame).first().copied(),
            };
            let holds = |cluster: &&Arc<Cluster>| id.is_some_and(|id| lock(&cluster.pins).cursor(id, now).is_some());
            return Ok(self.all().find(holds).unwrap_or(cluster));
        }
        Ok(cluster)
    }

    /// True for commands about sessions, which every cluster has for itself.
    pub(super) fn all_have_to_hear(&self, command: &Command) -> bool {
        self.are_several() && matches!(command.spec.name, "refreshSessions" | "killSessions")
    }
}
