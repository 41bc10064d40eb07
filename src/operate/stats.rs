//! `mongomux stats`: one look at `/stats`, as a table. No I/O here but the question.

use super::Look;
use super::page::{Page, Piece, Tone};
use super::port::{AskError, Port};
use super::table::{Column, KEEP, Table};
use crate::admin::rules::RulesStats;
use crate::admin::stats::{ClusterStats, Connections, PinStats, ServerStats, Stats, Status, WaitQueueStats};

/// Asks for the numbers of this moment.
///
/// # Errors
/// [`AskError`]
pub async fn ask(port: &Port) -> Result<Stats, AskError> {
    port.read(port.get("/stats").await?)
}

/// All of it.
pub fn page(stats: &Stats, look: Look) -> Page {
    let mut page = Page::default();
    page.lines.push(headline(stats));
    for cluster in &stats.clusters {
        page.gap();
        write_cluster(&mut page, cluster, look);
    }
    for listener in stats.listeners.iter().filter(|listener| listener.rules != RulesStats::default()) {
        page.gap();
        page.item("rules: ", &format!("listener {}: {}", listener.address, listener.rules), Tone::Warn, look.width);
    }
    if stats.surplus_clients > 0 {
        page.gap();
        let surplus = format!(
            "{} client sockets beyond max_clients: their commands are answered that there is no room",
            stats.surplus_clients
        );
        page.item("! ", &surplus, Tone::Warn, look.width);
    }
    page
}

/// The program itself, in a line.
pub(super) fn headline(stats: &Stats) -> Vec<Piece> {
    let clients = stats.clusters.iter().fold(0, |sum: usize, cluster| sum.saturating_add(cluster.clients));
    let up = duration(stats.uptime_seconds.saturating_mul(1_000));
    let mut line = vec![
        Piece::new(format!("mongomux {}", stats.version), Tone::Title),
        Piece::plain(format!("  up {up}  clients {clients}")),
    ];
    if stats.draining {
        line.push(Piece::new("  draining", Tone::Warn));
    }
    line
}

/// A cluster, in a line.
pub(super) fn cluster_line(cluster: &ClusterStats) -> Vec<Piece> {
    let mut line = vec![
        Piece::new(format!("cluster {}", cluster.name), Tone::Title),
        Piece::plain("  "),
        status(cluster.status),
        Piece::plain(format!("  clients {}  ", cluster.clients)),
        Piece::new(&cluster.upstream, Tone::Faint),
    ];
    if cluster.mode != "normal" {
        line.push(Piece::new(format!("  mode {}", cluster.mode), Tone::Warn));
    }
    line.extend(cluster.paused.iter().map(|pause| Piece::new(format!("  {pause}"), Tone::Warn)));
    line
}

fn write_cluster(page: &mut Page, cluster: &ClusterStats, look: Look) {
    page.lines.push(cluster_line(cluster));
    if let Some(problem) = &cluster.problem {
        page.item("  ! ", problem, Tone::Bad, look.width);
    }
    page.lines.extend(servers(cluster).lines(look.width));
    let waits = format!(
        "{} waiting, at most {}; {} bytes of requests",
        cluster.wait_queue.length,
        cluster.wait_queue_size,
        cluster.wait_queue.bytes.unwrap_or_default()
    );
    page.item("queue: ", &waits, queue_tone(cluster), look.width);
    for server in &cluster.servers {
        let reasons = [("breaker", &server.breaker_reason), ("error", &server.error)];
        for (what, why) in reasons.into_iter().filter_map(|(what, why)| Some((what, why.as_ref()?))) {
            page.item("  ! ", &format!("{}: {what}: {why}", server.address), Tone::Bad, look.width);
        }
    }
    let advices =
        cluster.servers.iter().flat_map(|server| server.recommendations.iter().map(move |it| (Some(server), it)));
    for (server, advice) in cluster.recommendations.iter().map(|it| (None, it)).chain(advices) {
        let about = server.map(|server| format!("{}: ", server.address)).unwrap_or_default();
        page.item("  * ", &format!("{about}{advice}"), Tone::Warn, look.width);
    }
}

/// The servers of a cluster, and their sum where there are several.
fn servers(cluster: &ClusterStats) -> Table {
    let rows = cluster.servers.iter().map(server_row);
    let mut rows: Vec<Vec<Piece>> = rows.collect();
    if cluster.servers.len() > 1 {
        rows.push(sum_row(cluster));
    }
    Table { columns: server_columns(), rows }
}

/// As [`server_row`] fills them.
pub(super) fn server_columns() -> Vec<Column> {
    let mut columns = vec![Column::words("SERVER", KEEP), Column::words("ROLE", 60), Column::words("STATUS", KEEP)];
    columns.extend(pool_columns());
    columns.push(Column::words("BREAKER", 75));
    columns.extend(pin_columns());
    columns.push(Column::words("VERSION", 20));
    columns
}

/// As [`pool_cells`] fills them.
pub(super) fn pool_columns() -> [Column; 7] {
    [
        Column::numbers("ACTIVE", 90),
        Column::numbers("IDLE", 70),
        Column::numbers("PENDING", 50),
        Column::numbers("MAX", 80),
        Column::numbers("USED", KEEP),
        Column::numbers("WAITING", KEEP),
        Column::numbers("OLDEST", 65),
    ]
}

/// As [`pin_cells`] fills them.
pub(super) fn pin_columns() -> [Column; 2] {
    [Column::numbers("CURSORS", 30), Column::numbers("TXNS", 40)]
}

/// A server, in a line.
pub(super) fn server_row(server: &ServerStats) -> Vec<Piece> {
    let breaker = if server.breaker == "closed" { Tone::Plain } else { Tone::Bad };
    let mut row = vec![Piece::plain(&server.address), Piece::plain(&server.role), status(server.status)];
    row.extend(pool_cells(&server.connections, &server.wait_queue));
    row.push(Piece::new(&server.breaker, breaker));
    row.extend(pin_cells(&server.pins));
    row.push(Piece::plain(server.server_version.as_deref().unwrap_or("-")));
    row
}

fn sum_row(cluster: &ClusterStats) -> Vec<Piece> {
    let mut row = vec![Piece::new("all", Tone::Faint), Piece::default(), status(cluster.status)];
    row.extend(pool_cells(&cluster.connections, &cluster.wait_queue));
    row.push(Piece::default());
    row.extend(pin_cells(&cluster.pins));
    row
}

/// Connections, and who waits for one.
pub(super) fn pool_cells(connections: &Connections, queue: &WaitQueueStats) -> [Piece; 7] {
    let Connections { active, idle, pending, max, utilization, .. } = *connections;
    let used = Piece::new(format!("{utilization}%"), Tone::of_utilization(utilization));
    let [active, idle, pending, max] = [active, idle, pending, max].map(|count| Piece::plain(count.to_string()));
    [active, idle, pending, max, used, waiting(queue.length), oldest(queue.oldest_ms)]
}

/// Cursors and transactions.
pub(super) fn pin_cells(pins: &PinStats) -> [Piece; 2] {
    [pins.cursors, pins.transactions].map(|count| Piece::plain(count.to_string()))
}

/// In its colour.
pub(super) fn status(status: Status) -> Piece {
    match status {
        Status::Healthy => Piece::new("healthy", Tone::Good),
        Status::Degraded => Piece::new("degraded", Tone::Warn),
        Status::Down => Piece::new("down", Tone::Bad),
    }
}

/// Somebody who waits is worth a look.
pub(super) fn waiting(count: usize) -> Piece {
    Piece::new(count.to_string(), if count > 0 { Tone::Warn } else { Tone::Plain })
}

/// How long somebody has waited.
fn oldest(ms: u64) -> Piece {
    if ms == 0 { Piece::new("-", Tone::Faint) } else { Piece::new(duration(ms), Tone::Warn) }
}

fn queue_tone(cluster: &ClusterStats) -> Tone {
    match cluster.wait_queue.length {
        0 => Tone::Faint,
        length if length >= cluster.wait_queue_size => Tone::Bad,
        _ => Tone::Warn,
    }
}

/// `850ms`, `12s`, `5m 3s`, `3h 12m`, `4d 2h`: its two largest units.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1_000;
    let two = |large: u64, large_unit: &str, small: u64, unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small}{unit}"),
    };
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admin::rules::ListenerStats;
    use crate::admin::stats::PauseStats;
    use serde_json::json;

    /// What a proxy with two members has told.
    pub(crate) fn told() -> Stats {
        let server = |address: &str, role: &str, active: u32, waiting: u32| {
            json!({
                "address": address, "status": if waiting > 0 { "degraded" } else { "healthy" }, "role": role,
                "serverVersion": "7.0", "active": active, "idle": 10 - active, "pending": 0, "closing": 0, "min": 2,
                "max": 10, "utilization": active * 10, "limit": 10,
                "waitQueue": {"length": waiting, "oldestMs": waiting * 100}, "breaker": "closed", "breakerReason": null,
                "events": {"connected": 1, "error": 0, "disconnected": 0, "reconnected": 0},
                "pins": {"cursors": 3, "transactions": 1},
                "tenants": [
                    {"name": "shop", "weight": 1, "active": active, "waiting": waiting, "served": 1000 * active,
                     "waitMedianMs": 1.5, "waitP99Ms": 20.0, "heldMs": 2.5},
                    {"name": "", "weight": 1, "active": 0, "waiting": 0, "served": 7,
                     "waitMedianMs": 0.0, "waitP99Ms": 0.0, "heldMs": 0.0},
                ],
                "users": [], "longHeld": {"count": 0, "items": []}, "error": null,
                "recommendations": if waiting > 0 { vec!["raise max_pool_size"] } else { vec![] },
            })
        };
        let stats = json!({
            "version": "0.1.0", "uptimeSeconds": 11_520, "draining": false, "surplusClients": 0, "listeners": [],
            "clusters": [{
                "name": "default", "upstream": "mongodb://db1.example:27017/", "mode": "normal", "status": "degraded",
                "problem": null, "active": 12, "idle": 8, "pending": 0, "closing": 0, "min": 4, "max": 20,
                "utilization": 60, "waitQueue": {"length": 34, "oldestMs": 3400, "bytes": 9000}, "waitQueueSize": 4000,
                "pins": {"cursors": 6, "transactions": 2}, "clients": 1999, "recommendations": [],
                "servers": [
                    server("db1.example:27017", "primary", 10, 34), server("db2.example:27017", "secondary", 2, 0),
                ],
            }],
        });
        serde_json::from_value(stats).unwrap()
    }

    #[test]
    fn a_snapshot_is_a_table_with_what_is_wrong_below() {
        let expected = "\
mongomux 0.1.0  up 3h 12m  clients 1999

cluster default  degraded  clients 1999  mongodb://db1.example:27017/
SERVER             ROLE       STATUS    ACTIVE  IDLE  PENDING  MAX  USED  WAITING  OLDEST  BREAKER  CURSORS  TXNS  VERSION
db1.example:27017  primary    degraded      10     0        0   10  100%       34      3s  closed         3     1  7.0
db2.example:27017  secondary  healthy        2     8        0   10   20%        0       -  closed         3     1  7.0
all                           degraded      12     8        0   20   60%       34      3s                 6     2
queue: 34 waiting, at most 4000; 9000 bytes of requests
  * db1.example:27017: raise max_pool_size";
        assert_eq!(page(&told(), Look { width: None, colour: false }).render(false), expected);
    }

    #[test]
    fn a_narrow_terminal_gets_what_matters() {
        let look = Look { width: Some(60), colour: true };
        let text = page(&told(), look).render(false);
        let titles = text.lines().find(|line| line.starts_with("SERVER")).unwrap();
        assert_eq!(titles, "SERVER             STATUS    ACTIVE  MAX  USED  WAITING");
        assert!(page(&told(), look).render(true).contains("\x1b[1;31m100%\x1b[0m"));
    }

    #[test]
    fn a_queue_that_is_full_is_bad_and_one_that_is_not_worth_a_look() {
        let mut cluster = told().clusters.remove(0);
        for (length, tone) in [(0, Tone::Faint), (1, Tone::Warn), (3_999, Tone::Warn), (4_000, Tone::Bad)] {
            cluster.wait_queue.length = length;
            assert_eq!(queue_tone(&cluster), tone, "{length}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_server_and_the_reason() {
        let mut stats = told();
        stats.draining = true;
        stats.surplus_clients = 3;
        let rules = RulesStats {
            read_only: true,
            deny_commands: vec!["insert".to_owned(), "update".to_owned()],
            ..RulesStats::default()
        };
        let listener =
            |address: &str, rules| ListenerStats { address: address.into(), cluster: "default".into(), rules };
        stats.listeners = vec![listener("127.0.0.1:27016", rules), listener("unix:/free", RulesStats::default())];
        let cluster = &mut stats.clusters[0];
        let pause =
            |database: Option<&str>, remaining_ms| PauseStats { database: database.map(str::to_owned), remaining_ms };
        cluster.paused = vec![pause(None, None), pause(Some("shop"), Some(12_000))];
        (cluster.mode, cluster.problem) = ("maintenance".to_owned(), Some("no server: db1: refused".to_owned()));
        (cluster.servers[0].breaker, cluster.servers[0].breaker_reason) = ("open".into(), Some("timeouts".into()));
        cluster.servers[1].error = Some("Connection refused".to_owned());
        let text = page(&stats, Look { width: None, colour: false }).render(false);
        for line in [
            "  draining",
            "  mode maintenance",
            "  paused  paused (database shop) for another 12s",
            "rules: listener 127.0.0.1:27016: read-only; denied commands: insert, update",
            "  ! no server: db1: refused",
            "  ! db1.example:27017: breaker: timeouts",
            "  ! db2.example:27017: error: Connection refused",
            "! 3 client sockets beyond max_clients",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("unix:/free"), "without rules there is nothing to say: {text}");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (ms, told) in [
            (0, "0ms"),
            (850, "850ms"),
            (12_999, "12s"),
            (60_000, "1m"),
            (303_000, "5m 3s"),
            (11_520_000, "3h 12m"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(duration(ms), told);
        }
    }
}
