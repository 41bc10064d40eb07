//! What an operator can do about it: a few rules from numbers to plain words. Silence means that nothing is to be done.

use std::time::Duration;

use super::stats::{ClusterStats, ServerStats, Status};
use super::suspicions::Suspicion;
use crate::config::limits::{MAX_CURSOR_PINS, MAX_TRANSACTION_PINS};
use crate::routing::pins::Group;
use crate::telemetry::labels::Label as _;
use crate::upstream::shortage::Shortage;

/// From this share of a bound on, percent, it is time to say so: there is still room to act.
const NEARLY_FULL_PERCENT: usize = 80;

/// About one server. `shortage`: why no further command may use it now.
pub fn for_server(server: &ServerStats, shortage: Option<Shortage>) -> Vec<String> {
    let mut advice = Vec::new();
    let (waiting, active) = (server.wait_queue.length, server.connections.active);
    let error = server.error.as_deref();
    if server.breaker != "closed" {
        let reason = server.breaker_reason.as_deref().unwrap_or("too many failures");
        let why = error.map_or_else(|| reason.to_owned(), |error| format!("{reason} ({error})"));
        let state = server.breaker.replace('_', "-");
        advice.push(format!("The circuit breaker is {state}: {why}. It closes by itself once the server answers."));
    } else if server.status == Status::Down || error.is_some() {
        let why = error.unwrap_or("it has not answered yet");
        advice
            .push(format!("Connecting does not work: {why}. Check that the server runs and can be reached from here."));
    }
    let limit = server.limit;
    advice.extend(shortage.map(|shortage| match (shortage, waiting) {
        (Shortage::Adaptive, 0) => {
            format!("{limit} commands are in flight, as many as the server is given (adaptive_limit): the next has to wait.")
        }
        (Shortage::Adaptive, _) => format!(
            "{waiting} commands wait, as the server is given {limit} at once (adaptive_limit): find the slow commands, or give \
             the server more."
        ),
        (Shortage::InFlight, 0) => {
            format!("{active} commands are in flight, as many as may be (max_in_flight): the next has to wait.")
        }
        (Shortage::InFlight, _) => format!(
            "{waiting} commands wait and {active} are in flight, as many as may be: raise max_in_flight, or find the slow \
             commands."
        ),
        (_, 0) => format!("All {active} connections are in use: the next command has to wait."),
        (_, _) => format!(
            "{waiting} commands wait and all {active} connections are in use: raise max_pool_size, or find the slow commands."
        ),
    }));
    advice
}

/// About something that looks stuck or leaked on a server.
pub fn for_suspicion(suspicion: &Suspicion) -> String {
    match suspicion {
        Suspicion::OpenTransactions(Group { count, oldest }) => format!(
            "{count} transactions are open for long, the oldest for {oldest:.0?}: servers end them after 60 s, and they \
             hold locks until then. Commit or abort them sooner; longHeld says whose they are."
        ),
        Suspicion::IdleCursors(Group { count, oldest }) => format!(
            "{count} cursors are open and have not been read for up to {oldest:.0?}: read them to the end or close them; \
             longHeld says whose they are."
        ),
        Suspicion::LongCommands(Group { count, oldest }, command) => format!(
            "{count} connections are in use for long by one command, the longest for {oldest:.0?} by `{}`: find out with \
             currentOp what it does, or give such commands a proxy of their own.",
            command.as_str()
        ),
        Suspicion::StuckCursors(Group { count, oldest }) => format!(
            "{count} cursors are remembered that have been idle for up to {oldest:.0?}: a fault of the proxy, please \
             report it."
        ),
        Suspicion::Unaccounted(Group { count, oldest }) => format!(
            "{count} connections have been in use for {oldest:.0?} and no command uses them: a fault of the proxy, please \
             report it."
        ),
    }
}

/// About a cluster as a whole.
pub fn for_cluster(cluster: &ClusterStats) -> Vec<String> {
    let mut advice = Vec::new();
    if cluster.mode != "normal" {
        let mode = &cluster.mode;
        advice
            .push(format!("It is in {mode} mode by order: POST /admin/mode with {{\"mode\": \"normal\"}} ends that."));
    }
    advice.extend(cluster.paused.iter().map(|pause| {
        let what = match &pause.database {
            Some(database) => format!("New commands on the database {database} are held"),
            None => "New commands are held".to_owned(),
        };
        let until = match pause.remaining_ms {
            Some(ms) => format!("for another {:.0?}, or until POST /admin/resume", Duration::from_millis(ms)),
            None => "until somebody says POST /admin/resume".to_owned(),
        };
        format!("{what} by order, {until}. Each waits as long as it would for a server, and then fails.")
    }));
    if let Some(problem) = &cluster.problem {
        advice.push(if problem.starts_with("no primary") {
            format!(
                "Writes wait for a primary ({problem}). An election takes seconds; if it takes longer, check that a \
                     majority of the members is up and can reach each other."
            )
        } else {
            format!("No server takes writes: {problem}.")
        });
    }
    advice.extend(cluster.fleet.warning.clone());
    advice.extend(cluster.pooling.advice());
    let (waiting, limit) = (cluster.wait_queue.length, cluster.wait_queue_size);
    if nearly_full(waiting, limit) {
        advice.push(format!("{waiting} commands wait; beyond {limit} they are refused as overload."));
    }
    if nearly_full(cluster.pins.cursors, MAX_CURSOR_PINS) {
        advice.push(format!(
            "{} cursors are open, of at most {MAX_CURSOR_PINS}: close cursors that are not read to their end.",
            cluster.pins.cursors
        ));
    }
    if nearly_full(cluster.pins.transactions, MAX_TRANSACTION_PINS) {
        advice.push(format!(
            "{} transactions are open, of at most {MAX_TRANSACTION_PINS}: commit or abort them sooner.",
            cluster.pins.transactions
        ));
    }
    advice
}

fn nearly_full(count: usize, limit: usize) -> bool {
    count > 0 && count.saturating_mul(100) >= limit.saturating_mul(NEARLY_FULL_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::super::stats::tests::{cluster, server};
    use super::super::stats::{ClusterStats, FleetStats, PauseStats, PinStats, WaitQueueStats};
    use super::*;

    #[test]
    fn who_is_well_hears_nothing() {
        assert_eq!(server(9, 0).recommendations, [""; 0]);
        assert_eq!(for_cluster(&cluster(vec![server(9, 0)])), [""; 0]);
    }

    #[test]
    fn a_pause_that_somebody_forgot_is_told_with_what_ends_it() {
        let paused = |database: Option<&str>, remaining_ms| {
            let pause = PauseStats { database: database.map(str::to_owned), remaining_ms };
            for_cluster(&ClusterStats { paused: vec![pause], ..cluster(vec![server(0, 0)]) }).concat()
        };
        let said = paused(None, None);
        assert!(said.starts_with("New commands are held by order, until somebody says POST /admin/resume"), "{said}");
        let said = paused(Some("shop"), Some(12_000));
        assert!(said.starts_with("New commands on the database shop are held by order, for another 12s"), "{said}");
    }

    #[test]
    fn a_full_pool_with_a_queue_asks_for_more_or_for_faster_commands() {
        let said = server(10, 37).recommendations.join(" ");
        assert!(said.contains("37 commands wait") && said.contains("max_pool_size"), "{said}");
        let said = server(10, 0).recommendations;
        assert_eq!(said, ["All 10 connections are in use: the next command has to wait."]);
    }

    #[test]
    fn what_may_be_in_flight_is_named_where_that_is_the_bound() {
        let said =
            |shortage, waiting| for_server(&ServerStats { limit: 5, ..server(5, waiting) }, Some(shortage)).concat();
        for (shortage, key) in [(Shortage::Adaptive, "adaptive_limit"), (Shortage::InFlight, "max_in_flight")] {
            for (waiting, words) in [(0, "5 "), (7, "7 commands wait")] {
                let said = said(shortage, waiting);
                assert!(said.starts_with(words) && said.contains(key) && !said.contains("max_pool_size"), "{said}");
            }
        }
    }

    #[test]
    fn an_open_breaker_names_the_last_error() {
        let open = ServerStats {
            breaker: "open".to_owned(),
            breaker_reason: Some("connections cannot be established".to_owned()),
            status: Status::Down,
            error: Some("authentication as `a` failed".to_owned()),
            ..server(0, 0)
        };
        let said = for_server(&open, None);
        assert_eq!(said.len(), 1, "one cause, one advice: {said:?}");
        let both = "breaker is open: connections cannot be established (authentication as `a` failed)";
        assert!(said[0].contains(both), "{said:?}");
    }

    #[test]
    fn a_server_out_of_reach_is_told_with_its_error() {
        let down = ServerStats {
            status: Status::Down,
            error: Some("Connection refused (os error 111)".to_owned()),
            ..server(0, 0)
        };
        assert!(for_server(&down, None)[0].contains("Connection refused"));
    }

    #[test]
    fn a_mode_is_not_forgotten() {
        let said = for_cluster(&ClusterStats { mode: "read-only".to_owned(), ..cluster(Vec::new()) });
        assert!(said.len() == 1 && said[0].contains("read-only mode") && said[0].contains("/admin/mode"), "{said:?}");
    }

    #[test]
    fn what_is_said_of_the_fleet_is_advice_as_well() {
        let fleet = FleetStats { warning: Some("9 sidecars are too many".to_owned()), ..FleetStats::default() };
        let said = for_cluster(&ClusterStats { fleet, ..cluster(Vec::new()) });
        assert_eq!(said, ["9 sidecars are too many"]);
    }

    #[test]
    fn a_set_without_a_primary_is_no_broken_connection() {
        let without = |problem: &str| ClusterStats { problem: Some(problem.to_owned()), ..cluster(Vec::new()) };
        assert!(for_cluster(&without("no primary: h:1: secondary"))[0].starts_with("Writes wait for a primary"));
        assert!(for_cluster(&without("no server: h:1: refused"))[0].starts_with("No server takes writes: no server"));
    }

    #[test]
    fn bounds_are_told_before_they_are_reached() {
        let pinned = |cursors, transactions| {
            for_cluster(&ClusterStats { pins: PinStats { cursors, transactions }, ..cluster(Vec::new()) })
        };
        assert_eq!(pinned(79_999, 7_999), [""; 0]);
        assert!(pinned(80_000, 0)[0].contains("80000 cursors"));
        assert!(pinned(0, 8_000)[0].contains("8000 transactions"));
        let waiting = |length, wait_queue_size| {
            let wait_queue = WaitQueueStats { length, ..WaitQueueStats::default() };
            for_cluster(&ClusterStats { wait_queue, wait_queue_size, ..cluster(Vec::new()) })
        };
        assert_eq!(waiting(7, 10), [""; 0]);
        assert_eq!(waiting(0, 1), [""; 0]);
        assert!(waiting(8, 10)[0].contains("beyond 10"));
    }
}
