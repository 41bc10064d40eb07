//! Which commands share connections while a team switches to pooling step by step: `pooled_clients_percent` and
//! `pooled_databases`. Those that do not go over connections of their client's own.

use super::fairness::NamePattern;

/// A command shares connections when its client is of the share and its database is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolingConfig {
    /// How many of a hundred clients.
    pub clients_percent: u32,
    /// Of which databases; of all where none is named.
    pub databases: Vec<NamePattern>,
}

/// How far connections are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingMode {
    /// By all commands.
    Pooled,
    /// By some.
    Partly,
    /// By none.
    Observe,
}

impl PoolingConfig {
    /// Of the patterns the one for everything says what none says.
    pub(super) fn new(clients_percent: u32, databases: Vec<NamePattern>) -> Self {
        let everything = databases.iter().any(NamePattern::is_everything);
        Self { clients_percent, databases: if everything { Vec::new() } else { databases } }
    }

    /// How far connections are shared.
    pub fn mode(&self) -> PoolingMode {
        match self.clients_percent {
            0 => PoolingMode::Observe,
            100.. if self.databases.is_empty() => PoolingMode::Pooled,
            _ => PoolingMode::Partly,
        }
    }

    /// True for a client of the share. It stays in it when the share grows.
    pub fn pools_client(&self, number: i64) -> bool {
        place_of(number) < self.clients_percent
    }

    /// The databases in words.
    pub fn databases_told(&self) -> String {
        if self.databases.is_empty() {
            return "*".to_owned();
        }
        self.databases.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// True for a database that is named.
    pub fn pools_database(&self, database: &str) -> bool {
        self.databases.is_empty() || self.databases.iter().any(|named| named.matches(database))
    }
}

/// Where a client stands among a hundred: always the same for one, and spread evenly over any that come one after the other,
/// also where drivers open sockets of several kinds by turns (multiples of the golden ratio).
fn place_of(number: i64) -> u32 {
    let spread = number.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15);
    u32::try_from((u128::from(spread) * 100) >> 64).expect("less than a hundred")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooling(clients_percent: u32, databases: &[&str]) -> PoolingConfig {
        PoolingConfig::new(clients_percent, databases.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_share_is_as_large_as_it_says_whoever_counts() {
        for (first, step) in [(1, 1), (2, 2), (7, 3), (1, 5), (1_000_000, 7), (3, 100)] {
            for percent in [0, 1, 5, 50, 99, 100] {
                let config = pooling(percent, &[]);
                let clients = (0..1_000).map(|index| first + step * index);
                let pooled = clients.filter(|number| config.pools_client(*number)).count();
                assert!(
                    pooled.abs_diff(10 * percent as usize) <= 20,
                    "{pooled} of 1000 for {percent} % ({first}, {step})"
                );
            }
        }
        let few = (1..=20).filter(|number| pooling(50, &[]).pools_client(*number)).count();
        assert!((9..=11).contains(&few), "{few} of 20");
    }

    #[test]
    fn a_share_that_grows_keeps_whom_it_has() {
        for number in 1..1_000 {
            let pooled: Vec<bool> = (0..=100).map(|percent| pooling(percent, &[]).pools_client(number)).collect();
            assert!(pooled.is_sorted(), "client {number} is out again");
            assert_eq!((pooled[0], pooled[100]), (false, true));
        }
    }

    #[test]
    fn databases_are_all_or_those_that_are_named() {
        let some = pooling(100, &["shop", "cms_*"]);
        for (database, named) in [("shop", true), ("shops", false), ("cms_de", true), ("cms", false), ("admin", false)]
        {
            assert_eq!((some.pools_database(database), pooling(100, &[]).pools_database(database)), (named, true));
        }
        assert_eq!(pooling(100, &["shop", "*"]), pooling(100, &[]));
    }

    #[test]
    fn it_is_all_or_nothing_or_something_between() {
        for (percent, databases, mode) in [
            (100, &[][..], PoolingMode::Pooled),
            (100, &["*"], PoolingMode::Pooled),
            (99, &[], PoolingMode::Partly),
            (100, &["shop"], PoolingMode::Partly),
            (0, &[], PoolingMode::Observe),
            (0, &["shop"], PoolingMode::Observe),
        ] {
            assert_eq!(pooling(percent, databases).mode(), mode, "{percent} {databases:?}");
        }
    }
}
