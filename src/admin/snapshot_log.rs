//! A line per server in the log now and then, so that a log alone tells how a pool did last night.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::breaker::BreakerState;
use crate::config::Address;
use crate::tasks::Tasks;
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

/// Logs every `interval` how each server's pool stands, unless it is unused and unchanged, until the tasks are cancelled.
pub fn log_snapshots(clusters: Vec<Arc<Cluster>>, interval: Duration, tasks: &Tasks) {
    let cancelled = tasks.clone();
    tasks.spawn("log snapshots", async move {
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Of the servers there were last time, so it grows no larger than they are.
        let mut before = BTreeMap::new();
        loop {
            // Nothing is lost when an arm loses: a tick that is due stays due.
            tokio::select! {
                now = ticks.tick() => before = log_all(&clusters, &before, now),
                () = cancelled.cancelled() => return,
            }
        }
    });
}

type Lines = BTreeMap<(usize, Address), Line>;

fn log_all(clusters: &[Arc<Cluster>], before: &Lines, now: Instant) -> Lines {
    let mut lines = Lines::new();
    for (index, cluster) in clusters.iter().enumerate() {
        for server in cluster.servers() {
            let pins = lock(&cluster.pins).count_on(&server.address);
            let line = Line { pool: server.pool.snapshot(), breaker: server.health.state(), pins };
            let key = (index, (*server.address).clone());
            if line.is_news(before.get(&key)) {
                log(&cluster.config.name, &server.address, &line, now);
            }
            lines.insert(key, line);
        }
    }
    lines
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
    use super::super::stats::tests::pool;
    use super::*;

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

    #[tokio::test]
    async fn servers_are_remembered_as_long_as_they_are_there() {
        let (fixture, server) = Fixture::standalone().await;
        let clusters = [fixture.cluster.clone()];
        let lines = log_all(&clusters, &Lines::new(), Instant::now());
        let (key, line) = lines.first_key_value().unwrap();
        assert_eq!((lines.len(), key.1.to_string()), (1, server));
        assert!(!line.is_news(Some(line)), "at rest");
        assert_eq!(log_all(&[], &lines, Instant::now()).len(), 0);
        log_snapshots(clusters.to_vec(), Duration::from_secs(60), &fixture.tasks);
        fixture.end().await;
    }
}
