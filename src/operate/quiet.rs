//! `mongomux admin pause --wait`: looks at `/stats` until nothing runs any more of what is paused. What goes on in spite of a
//! pause keeps it waiting where it ends by itself, as transactions do; long polls and open cursors may last for ever.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::port::{AskError, Port};
use super::stats;
use crate::admin::stats::{ClusterStats, LaneStats, ServerStats, Stats};
use crate::telemetry::labels::{Label as _, Lane};

/// Most commands end sooner.
const FIRST_STEP: Duration = Duration::from_millis(20);
/// Often enough for people, and seldom enough for an hour of it.
const LONGEST_STEP: Duration = Duration::from_secs(1);
/// So many looks in a row find nothing: a command that was let on just before the pause has a connection by the second.
const LOOKS: u32 = 2;

/// What a look finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Somebody has ended the pause, or its time is over.
    Over,
    Runs(Running),
}

/// What still runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Running {
    commands: u32,
    transactions: usize,
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands in flight, {} open transactions", self.commands, self.transactions)
    }
}

/// Waits as long as the pause lasts; `answer` is what was answered to its order, and is told what has become of it.
///
/// # Errors
/// [`AskError::NotQuiet`] when the pause ends first.
pub(super) async fn wait(port: &Port, mut answer: Value, timeout: Duration) -> Result<Value, AskError> {
    let paused: Vec<String> = port.read(answer["paused"].clone())?;
    let (began, mut step, mut quiet, mut last) = (Instant::now(), FIRST_STEP, 0, Running::default());
    while quiet < LOOKS {
        match look(&stats::ask(port).await?, &paused) {
            Found::Over => return Err(AskError::NotQuiet(last)),
            Found::Runs(_) if began.elapsed() >= timeout => return Err(AskError::NotQuiet(last)),
            Found::Runs(running) => {
                quiet = if running == Running::default() { quiet + 1 } else { 0 };
                last = running;
            }
        }
        sleep_until((Instant::now() + step).min(began + timeout)).await;
        step = if quiet > 0 { FIRST_STEP } else { (step * 2).min(LONGEST_STEP) };
    }
    answer["inFlight"] = json!(0);
    answer["waitedMs"] = json!(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    Ok(answer)
}

fn look(stats: &Stats, paused: &[String]) -> Found {
    let mut all = Running::default();
    for name in paused {
        let cluster = stats.clusters.iter().find(|cluster| cluster.name == *name);
        let held = cluster.filter(|cluster| cluster.paused.iter().any(|pause| pause.database.is_none()));
        let Some(cluster) = held else { return Found::Over };
        all.commands += commands(cluster);
        all.transactions += cluster.pins.transactions;
    }
    Found::Runs(all)
}

/// Those of clients. Pings are the proxy's own, and long polls wait for data that may never come.
fn commands(cluster: &ClusterStats) -> u32 {
    let counts = |lane: &&LaneStats| [Lane::Transaction, Lane::Regular].iter().any(|it| it.as_str() == lane.lane);
    let of = |server: &ServerStats| match &server.lanes[..] {
        // Of an older proxy, which does not tell them apart.
        [] => server.connections.active,
        lanes => lanes.iter().filter(counts).map(|lane| lane.active).sum(),
    };
    cluster.servers.iter().map(of).sum::<u32>() + cluster.pooling.own_in_use
}

#[cfg(test)]
mod tests {
    use super::super::stats::tests::told;
    use super::*;
    use crate::admin::stats::{PauseStats, PinStats};

    fn paused() -> Stats {
        let mut stats = told();
        let cluster = &mut stats.clusters[0];
        cluster.paused = vec![PauseStats { database: None, remaining_ms: Some(900) }];
        cluster.pins.transactions = 0;
        for server in &mut cluster.servers {
            server.lanes = Lane::ALL
                .iter()
                .map(|lane| LaneStats { lane: lane.as_str().to_owned(), active: 0, waiting: 5 })
                .collect();
        }
        stats
    }

    fn found(change: impl FnOnce(&mut ClusterStats)) -> Found {
        let mut stats = paused();
        change(&mut stats.clusters[0]);
        look(&stats, &["default".to_owned()])
    }

    #[test]
    fn what_runs_of_what_is_paused_counts_and_nothing_else() {
        let runs = |commands, transactions| Found::Runs(Running { commands, transactions });
        assert_eq!(found(|_| ()), runs(0, 0));
        for (lane, counts) in [("transaction", 1), ("regular", 1), ("await", 0), ("background", 0)] {
            let found = found(|cluster| {
                cluster.servers[1].lanes.iter_mut().filter(|it| it.lane == lane).for_each(|it| it.active = 1);
            });
            assert_eq!(found, runs(counts, 0), "{lane}");
        }
        assert_eq!(found(|cluster| cluster.pins = PinStats { cursors: 3, transactions: 2 }), runs(0, 2));
        assert_eq!(found(|cluster| cluster.pooling.own_in_use = 4), runs(4, 0));
        assert_eq!(found(|cluster| cluster.servers[0].lanes.clear()), runs(10, 0), "an older proxy tells no lanes");
    }

    #[test]
    fn a_pause_that_is_over_holds_nothing() {
        assert_eq!(found(|cluster| cluster.paused.clear()), Found::Over);
        assert_eq!(found(|cluster| cluster.paused[0].database = Some("shop".to_owned())), Found::Over);
        assert_eq!(look(&paused(), &["default".to_owned(), "logs".to_owned()]), Found::Over);
    }
}
