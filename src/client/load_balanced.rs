//! What is done when the socket of a client closes that thinks of us as a load balancer: its driver goes on with a cursor or a
//! transaction over the socket that it began on, and over no other. So nobody can go on with them, and they are ended at once.

use std::sync::Arc;

use super::cursors::{OpenCursor, kill_together};
use super::session::Session;
use crate::config::limits::MAX_CURSORS_PER_SOCKET;
use crate::upstream::Cluster;

/// The cursors that a socket has open. Only sockets of such clients have any, so it is one pointer.
#[derive(Default)]
pub(super) struct OpenCursors(Option<Box<Held>>);

struct Held(Vec<(Arc<Cluster>, OpenCursor)>);

impl OpenCursors {
    /// A reply has left this cursor open. Beyond the bound it is left to the server's own limit.
    fn opened(&mut self, cursor: OpenCursor, cluster: &Arc<Cluster>) {
        let held = &mut self.0.get_or_insert_with(|| Box::new(Held(Vec::new()))).0;
        if held.len() < MAX_CURSORS_PER_SOCKET && held.iter().all(|(_, it)| it.id() != cursor.id()) {
            held.push((cluster.clone(), cursor));
        }
    }

    /// This cursor is no more.
    pub(super) fn ended(&mut self, id: i64) {
        if let Some(held) = &mut self.0 {
            held.0.retain(|(_, cursor)| cursor.id() != id);
        }
        self.0.take_if(|held| held.0.is_empty());
    }

    /// True when there is none.
    pub(super) fn are_none(&self) -> bool {
        self.0.is_none()
    }

    fn kill_all(&mut self) {
        let mut rest = self.0.take().map_or_else(Vec::new, |held| held.0);
        while let Some((cluster, _)) = rest.first() {
            let cluster = cluster.clone();
            let of_cluster = rest.extract_if(.., |(its, _)| Arc::ptr_eq(its, &cluster));
            kill_together(&cluster, of_cluster.map(|(_, cursor)| cursor));
        }
    }
}

impl<S> Session<S> {
    /// The client has got a reply that leaves this cursor open.
    pub(super) fn delivered(&mut self, cursor: Option<Box<OpenCursor>>, cluster: &Arc<Cluster>) {
        if let Some(cursor) = cursor
            && self.state.load_balanced
        {
            self.cursors.opened(*cursor, cluster);
        }
    }

    /// The socket is closed.
    pub(super) fn end_what_was_pinned(&mut self) {
        // First what holds locks: errands are bounded, and cursors may need many.
        if self.state.load_balanced {
            self.transactions.abort_all();
        }
        self.cursors.kill_all();
    }
}
