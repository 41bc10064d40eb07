//! Looks whether something was written on servers that somebody waits for and that nobody asks anything.
//!
//! Who waits for data here, in a crowd, learns from any reply of the server that something was written (`long_polls`). While
//! there are no replies, a ping over an idle connection brings one.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Cluster, Server};
use super::maintain;

/// A write that nobody told us of is noticed after this on average. A ping costs a server some 30 µs.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Runs until the program ends.
pub(super) async fn run(cluster: Arc<Cluster>) {
    loop {
        let waited_for = cluster.servers().into_iter().filter(|server| server.long_polls.parked() > 0);
        let waited_for: Vec<_> = waited_for.collect();
        if waited_for.is_empty() {
            cluster.somebody_parks.notified().await;
        }
        for server in waited_for.into_iter().filter(|server| server.long_polls.wants_news()) {
            look(&cluster, server);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Pings a server in a task of its own, unless the last ping is still under way or all connections are busy: then news come
/// by themselves.
fn look(cluster: &Arc<Cluster>, server: Arc<Server>) {
    let Some(looking) = server.long_polls.start_looking() else { return };
    let Some(mut connection) = server.pool.borrow_spare() else { return };
    let cluster = cluster.clone();
    cluster.tasks.clone().spawn("look for writes", async move {
        let generation = connection.generation;
        // Nothing is lost at the end of the program.
        let answer = tokio::select! {
            answer = maintain::ping(&mut connection) => answer,
            () = cluster.tasks.cancelled() => return,
        };
        match answer {
            Ok(Some(time)) => server.long_polls.heard(time),
            Ok(None) => {}
            Err(error) => cluster.network_error(&server, generation, &error.to_string()),
        }
        drop(looking);
    });
}
