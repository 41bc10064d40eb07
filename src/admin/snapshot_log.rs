//! A line per server in the log now and then, so that a log alone tells how a pool did last night. And what takes
//! long, with a warning where it looks leaked: the tables are bounded, so that looking through them takes a millisecond or two at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::long_held::Look;
use super::suspicions::{LastLook, Suspicion, Usage, at_a_look};
use crate::breaker::BreakerState;
use crate::config::Address;
use crate::routing::pins::Group;
use crate::tasks::Tasks;
use crate::telemetry::labels::Label;
use crate::upstream::Cluster;
use crate::upstream::pool::{PoolSnapshot, lock};

/// What a line tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    pool: PoolSnapshot,
    breaker: BreakerState,
    pins: (usize, usize),
}

impl Line {
    /// A server at rest that was at rest has nothing to say.
    fn is_news(&self, before: Option<&Self>) -> bool {
        let waiting = self.pool.waiting.iter().sum::<usize>();
        self.pool.counts.in_use > 0 || waiting > 0 || before != Some(self)
    }
}

/// Logs after each `interval`, which may be another one each time, how each server's pool stands, unless it is unused and unchanged, until the tasks are cancelled.
/// Tells what takes long, and warns of what looks leaked.
pub fn log_snapshots(clusters: Vec<Arc<Cluster>>, interval: impl Fn() -> Duration + Send + 'static, tasks: &Tasks) {
    let cancelled = tasks.clone();
    tasks.spawn("log snapshots", async move {
        // Of the servers there were last time, so it grows no larger than they are.
        let mut before = BTreeMap::new();
        loop {
            // Nothing is lost when an arm loses.
            tokio::select! {
                () = tokio::time::sleep(interval()) => before = log_all(&clusters, before, Instant::now()),
                () = cancelled.cancelled() => return,
            }
        }
    });
}

/// What is remembered of a server from one look to the next.
struct Seen {
    at: Instant,
    line: Line,
    look: LastLook,
}

type Servers = BTreeMap<(usize, Address), Seen>;

fn log_all(clusters: &[Arc<Cluster>], mut before: Servers, now: Instant) -> Servers {
    let mut servers = Servers::new();
    for (index, cluster) in clusters.iter().enumerate() {
        for server in cluster.servers() {
            let pins = lock(&cluster.pins).count_on(&server.address);
            let line = Line { pool: server.pool.snapshot(), breaker: server.health.state(), pins };
            let key = (index, (*server.address).clone());
            let last = before.remove(&key);
            if line.is_news(last.as_ref().map(|last| &last.line)) {
                log(&cluster.name, &server.address, &line, now);
            }
            let (at, mut look) = last.map_or((now, LastLook::default()), |last| (last.at, last.look));
            let held = Look::at(cluster, &server, now);
            let usage = Usage { in_use: line.pool.counts.in_use, operations: server.operations(), uses: &held.uses };
            for suspicion in look.next(at_a_look(&held), usage, now.duration_since(at)) {
                tell(&cluster.name, &server.address, &suspicion);
            }
            servers.insert(key, Seen { at: now, line, look });
        }
    }
    servers
}

fn tell(cluster: &str, server: &Address, suspicion: &Suspicion) {
    let (Group { count, oldest }, what) = (suspicion.group(), suspicion.what());
    let command = suspicion.command().map(Label::as_str);
    let oldest_seconds = oldest.as_secs();
    if suspicion.is_alarming() {
        tracing::warn!(cluster, %server, count, oldest_seconds, command, "{what}");
    } else {
        tracing::info!(cluster, %server, count, oldest_seconds, command, "{what}");
    }
}

fn log(cluster: &str, server: &Address, line: &Line, now: Instant) {
    let Line { pool, breaker, pins: (cursors, transactions) } = line;
    let oldest_ms = pool.oldest.map_or(0, |since| now.saturating_duration_since(since).as_millis());
    tracing::info!(
        cluster,
        %server,
        status = ?pool.status,
        in_use = pool.counts.in_use,
        available = pool.counts.available,
        pending = pool.counts.pending,
        max = pool.max_pool_size,
        created = pool.created,
        waiting = pool.waiting.iter().sum::<usize>(),
        oldest_ms,
        breaker = breaker.as_str(),
        cursors,
        transactions,
        "pool"
    );
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::super::sampler::ClusterHistory;
    use super::super::stats::of_cluster;
    use super::super::stats::tests::pool;
    use super::*;
    use crate::command::TransactionId;
    use crate::telemetry::ApplicationId;
    use crate::telemetry::labels::CommandLabel;
    use crate::upstream::in_use::Work;

    fn line(in_use: u32, available: u32, waiting: usize) -> Line {
        Line { pool: pool(in_use, available, waiting), breaker: BreakerState::Closed, pins: (0, 0) }
    }

    #[test]
    fn only_what_is_used_or_changed_is_worth_a_line() {
        let rest = line(0, 2, 0);
        assert!(rest.is_news(None), "a server that is new");
        assert!(!rest.is_news(Some(&rest)));
        assert!(line(0, 3, 0).is_news(Some(&rest)));
        assert!(Line { breaker: BreakerState::Open, ..rest.clone() }.is_news(Some(&rest)));
        assert!(Line { pins: (1, 0), ..rest.clone() }.is_news(Some(&rest)));
        let (busy, queued) = (line(1, 1, 0), line(0, 2, 1));
        assert!(busy.is_news(Some(&busy)) && queued.is_news(Some(&queued)));
    }

    /// As an operator sees it: in the log, of which only what was told is kept, and in `/stats`.
    #[tokio::test]
    async fn what_is_stuck_or_leaked_is_told() {
        let (fixture, _) = Fixture::standalone().await;
        let (clusters, now) = ([fixture.cluster.clone()], Instant::now());
        let server = fixture.cluster.servers().remove(0);
        let seconds = Duration::from_secs;
        let told = |servers: &Servers| servers.values().flat_map(|seen| seen.look.told.clone()).collect::<Vec<_>>();
        let look = |before, after| log_all(&clusters, before, now + seconds(after));

        let transaction = TransactionId { session: [1; 16].into(), number: 1 };
        lock(&fixture.cluster.pins).pin_transaction(transaction, server.address.clone(), now).unwrap();
        let leaked = server.pool.try_check_out(crate::admission::Lane::Regular, Instant::now()).unwrap().unwrap();
        let servers = look(Servers::new(), 20);
        assert_eq!(told(&servers), []);
        let servers = look(servers, 100);
        let group = |oldest| Group { count: 1, oldest: seconds(oldest) };
        let expected = [Suspicion::OpenTransactions(group(100)), Suspicion::Unaccounted(group(80))];
        assert_eq!(told(&servers), expected);
        let advice =
            &of_cluster(&fixture.cluster, &ClusterHistory::default(), now + seconds(100)).servers[0].recommendations;
        assert!(advice.len() == 1 && advice[0].contains("1 transactions are open for long"), "{advice:?}");

        // The connection is used by a command, and the transaction over.
        let operation = fixture.cluster.operation_on(&server.address).unwrap();
        leaked.in_use().begin(Work::command(CommandLabel::Find, ApplicationId::UNNAMED), now + seconds(130));
        lock(&fixture.cluster.pins).end_transaction(transaction, now + seconds(100)).unwrap();
        let servers = look(servers, 150);
        assert_eq!(told(&servers), []);
        let servers = look(servers, 400);
        assert_eq!(told(&servers), [Suspicion::LongCommands(group(270), CommandLabel::Find)]);
        let advice =
            &of_cluster(&fixture.cluster, &ClusterHistory::default(), now + seconds(400)).servers[0].recommendations;
        assert!(advice.len() == 1 && advice[0].contains("for 270s by `find`"), "{advice:?}");
        drop((leaked, operation));
        assert_eq!(told(&look(servers, 450)), []);
        fixture.end().await;
    }

    #[tokio::test]
    async fn servers_are_remembered_as_long_as_they_are_there() {
        let (fixture, server) = Fixture::standalone().await;
        let clusters = [fixture.cluster.clone()];
        let lines = log_all(&clusters, Servers::new(), Instant::now());
        let (key, Seen { line, .. }) = lines.first_key_value().unwrap();
        assert_eq!((lines.len(), key.1.to_string()), (1, server));
        assert!(!line.is_news(Some(line)), "at rest");
        assert_eq!(log_all(&[], lines, Instant::now()).len(), 0);
        log_snapshots(clusters.to_vec(), || Duration::from_secs(60), &fixture.tasks);
        fixture.end().await;
    }
}
