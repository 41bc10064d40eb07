//! Settings that do nothing where they stand. They are no mistakes, and who wrote them should know.

use super::fairness::FairBy;
use super::layers::Layers;
use super::limits;
use super::{ClusterConfig, PoolingMode, QueueDiscipline};

/// What to say about the settings of one cluster. `log_ins`: whether clients log in anywhere.
pub(super) fn of_cluster(cluster: &ClusterConfig, layers: &Layers<'_>, log_ins: bool) -> Vec<String> {
    let mut said = Vec::new();
    let fairness = &cluster.fairness;
    let by = match fairness.by {
        FairBy::None => Some("none"),
        FairBy::User if !log_ins => Some("user"),
        FairBy::User | FairBy::Application | FairBy::Database | FairBy::Address => None,
    };
    if fairness.by == FairBy::User && !log_ins {
        said.push(
            "fair_by = \"user\" tells nobody apart, as no client logs in to the proxy (auth = \"none\"): all share alike".to_owned(),
        );
    }
    // A rule for all, `*`, is for those without a name as well.
    if let (Some(by), Some(rule)) = (by, fairness.tenants.iter().find(|rule| !rule.name.matches(""))) {
        said.push(format!("[[tenant]] `{}` is for nobody, as fair_by = \"{by}\" gives no client a name", rule.name));
    }
    match cluster.queue_discipline {
        QueueDiscipline::Fifo => {
            let codel = [limits::CODEL_TARGET, limits::CODEL_INTERVAL];
            // Who writes down a default asks for nothing.
            let asked = codel.iter().filter(|limit| layers.value(limit) != limit.default);
            said.extend(asked.map(|limit| format!("{} does nothing without queue_discipline = \"codel\"", limit.key)));
        }
        QueueDiscipline::Codel { target, .. } if 2 * target >= cluster.wait_queue_timeout => said.push(format!(
            "queue_discipline = \"codel\" refuses nobody: wait_queue_timeout_ms ({}) is over before a wait of twice \
             codel.target_ms ({})",
            cluster.wait_queue_timeout.as_millis(),
            target.as_millis()
        )),
        QueueDiscipline::Codel { .. } => (),
    }
    let pooling = &cluster.pooling;
    if pooling.mode() == PoolingMode::Observe && !pooling.databases.is_empty() {
        said.push(
            "pooled_databases does nothing with pooled_clients_percent = 0: no client shares connections".to_owned(),
        );
    }
    if let (true, Some(most)) = (pooling.mode() != PoolingMode::Pooled, cluster.max_upstream_connections) {
        said.push(format!(
            "max_upstream_connections ({most}) bounds what is shared only: the own connections of clients come on top, until \
             pooled_clients_percent is 100 and pooled_databases names all"
        ));
    }
    let pool = &cluster.pool;
    let most = pool.max_pool_size.min(cluster.max_in_flight.unwrap_or(u32::MAX));
    if cluster.adaptive_limit && pool.min_pool_size.max(1) >= most {
        said.push(format!(
            "adaptive_limit has nothing to adapt: it is never below min_pool_size ({}), and never above {most}, which \
             max_pool_size and max_in_flight allow",
            pool.min_pool_size
        ));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::super::system::Text;
    use super::super::{Config, Sources, Warning};

    fn warnings(text: &str) -> Vec<String> {
        let file = Some(Text { name: "mongomux.toml".to_owned(), text: text.to_owned() });
        let loaded = Config::load(&Sources { file, ..Sources::default() });
        loaded.unwrap_or_else(|errors| panic!("{errors}")).1.iter().map(Warning::to_string).collect()
    }

    #[test]
    fn who_writes_what_does_nothing_is_told() {
        for (text, parts) in [
            ("fair_by = \"user\"", &["cluster default: fair_by = \"user\" tells nobody apart"][..]),
            ("fair_by = \"none\"\n[[tenant]]\nname = \"web\"", &["[[tenant]] `web` is for nobody"]),
            ("fair_by = \"user\"\n[[tenant]]\nname = \"web\"", &["fair_by = \"user\" tells", "`web` is for nobody"]),
            ("codel.target_ms = 30", &["codel.target_ms does nothing"]),
            ("codel.target_ms = 30\ncodel.interval_ms = 900", &["codel.target_ms does", "codel.interval_ms does"]),
            ("queue_discipline = \"codel\"\nwait_queue_timeout_ms = 40", &["codel\" refuses nobody"]),
            ("adaptive_limit = true\nmin_pool_size = 10", &["never below min_pool_size (10), and never above 10"]),
            ("adaptive_limit = true\nmin_pool_size = 0\nmax_in_flight = 1", &["adaptive_limit has nothing to adapt"]),
            ("pooled_clients_percent = 0\npooled_databases = [\"shop\"]", &["pooled_databases does nothing with"]),
            (
                "pooled_databases = \"shop\"\nmax_upstream_connections = 30",
                &["max_upstream_connections (30) bounds what is shared only"],
            ),
            (
                "wait_queue_bytes = 268435457",
                &["mongomux.toml:1: wait_queue_bytes: found 268435457, of which 268435456"],
            ),
        ] {
            let told = warnings(text);
            assert_eq!(told.len(), parts.len(), "{text}: {told:?}");
            told.iter().zip(parts).for_each(|(told, part)| assert!(told.contains(part), "{text}: {told}"));
        }
    }

    #[test]
    fn what_does_something_is_no_matter() {
        for text in [
            "fair_by = \"none\"\n[[tenant]]\nname = \"*\"\nmax_waiting = 9",
            "[[tenant]]\nname = \"web\"",
            "fair_by = \"user\"\nauth = \"upstream\"\nupstream = \"mongodb://proxy:secret@db/\"\n[[tenant]]\nname = \"web\"",
            "fair_by = \"user\"\nauth = \"users\"\nusers_file = \"users.toml\"",
            "queue_discipline = \"codel\"\ncodel.target_ms = 30\nwait_queue_timeout_ms = 61",
            "adaptive_limit = true\nmin_pool_size = 9",
            "adaptive_limit = true\nmin_pool_size = 0\nmax_in_flight = 2",
            "wait_queue_bytes = 268435456",
            "codel.target_ms = 20",
            "pooled_clients_percent = 0",
            "pooled_databases = [\"shop\", \"*\"]\nmax_upstream_connections = 30",
        ] {
            assert_eq!(warnings(text), [""; 0], "{text}");
        }
    }
}
