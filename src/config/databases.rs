//! Which databases go where: `{ logs = "logs", "audit_*" = "logs" }`. An exact name beats every pattern, and of the patterns
//! that match, the longest.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::limits::MAX_DATABASE_BYTES;
use super::namespaces::is_database;

/// Those that every cluster has for itself: no entry sends them anywhere.
const OF_EVERY_CLUSTER: [&str; 3] = ["admin", "config", "local"];

/// A destination for some databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Databases<T> {
    exact: BTreeMap<String, T>,
    /// The longest first.
    prefixes: Vec<(String, T)>,
}

/// One name, or all that begin alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DatabasePattern {
    /// `logs`
    Exact(String),
    /// `audit_*`, without the star.
    Prefix(String),
}

/// Why a text is no [`DatabasePattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} names no database: expected a name, or the beginning of names and a `*`{hint}")]
pub struct DatabasePatternError {
    found: String,
    hint: String,
}

impl<T> Databases<T> {
    /// Where `database` goes; `None` when nothing is said about it, and for `admin`, `config` and `local`.
    pub fn destination(&self, database: &str) -> Option<&T> {
        if OF_EVERY_CLUSTER.contains(&database) {
            return None;
        }
        let by_prefix = || self.prefixes.iter().find(|(prefix, _)| database.starts_with(prefix));
        self.exact.get(database).or_else(|| by_prefix().map(|(_, destination)| destination))
    }

    /// True when nothing is said about any database.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }

    /// Every destination, once for each entry.
    pub fn destinations(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.prefixes.iter().map(|(_, destination)| destination))
    }

    /// The same with other destinations.
    pub fn map<U>(&self, mut to: impl FnMut(&T) -> U) -> Databases<U> {
        Databases {
            exact: self.exact.iter().map(|(name, destination)| (name.clone(), to(destination))).collect(),
            prefixes: self.prefixes.iter().map(|(prefix, destination)| (prefix.clone(), to(destination))).collect(),
        }
    }
}

impl<T> FromIterator<(DatabasePattern, T)> for Databases<T> {
    fn from_iter<I: IntoIterator<Item = (DatabasePattern, T)>>(entries: I) -> Self {
        let mut databases = Self { exact: BTreeMap::new(), prefixes: Vec::new() };
        for (pattern, destination) in entries {
            match pattern {
                DatabasePattern::Exact(name) => drop(databases.exact.insert(name, destination)),
                DatabasePattern::Prefix(prefix) => databases.prefixes.push((prefix, destination)),
            }
        }
        databases.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        databases
    }
}

/// `audit_* -> logs, metrics -> numbers`
impl<T: fmt::Display> fmt::Display for Databases<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = self.exact.iter().map(|(name, to)| (name, "", to));
        let all = exact.chain(self.prefixes.iter().map(|(prefix, to)| (prefix, "*", to)));
        for (index, (name, star, to)) in all.enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{name}{star} -> {to}")?;
        }
        Ok(())
    }
}

impl FromStr for DatabasePattern {
    type Err = DatabasePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Shown short: a text that is much too long says nothing by its end.
        let refuse = |hint: String| DatabasePatternError { found: text.chars().take(60).collect(), hint };
        let (name, is_prefix) = text.strip_suffix('*').map_or((text, false), |prefix| (prefix, true));
        if text == "*" {
            return Err(refuse("; all that nothing else is said about go to the `cluster` of the listener".to_owned()));
        }
        if name.len() > MAX_DATABASE_BYTES {
            return Err(refuse(format!(", of at most {MAX_DATABASE_BYTES} bytes")));
        }
        if name.contains('*') {
            return Err(refuse("; a `*` stands at the end, once".to_owned()));
        }
        if !is_database(name) {
            return Err(refuse(String::new()));
        }
        if !is_prefix && OF_EVERY_CLUSTER.contains(&name) {
            return Err(refuse(
                "; every cluster has one of this name, and that of the listener's `cluster` is served".to_owned(),
            ));
        }
        let name = name.to_owned();
        Ok(if is_prefix { Self::Prefix(name) } else { Self::Exact(name) })
    }
}

impl fmt::Display for DatabasePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn databases(entries: &[(&str, &'static str)]) -> Databases<&'static str> {
        entries.iter().map(|(pattern, to)| (pattern.parse().unwrap(), *to)).collect()
    }

    #[test]
    fn exact_beats_prefix_and_the_longest_prefix_wins() {
        let databases = databases(&[
            ("a*", "short"),
            ("audit_*", "long"),
            ("audit_2026", "exact"),
            ("logs", "logs"),
            ("aud*", "mid"),
        ]);
        for (database, expected) in [
            ("audit_2026", Some("exact")),
            ("audit_2025", Some("long")),
            ("audit_", Some("long")),
            ("audit", Some("mid")),
            ("apples", Some("short")),
            ("logs", Some("logs")),
            ("logs2", None),
            ("Logs", None),
            ("", None),
        ] {
            assert_eq!(databases.destination(database).copied(), expected, "{database}");
        }
        assert_eq!(databases.map(|to| to.len()).destination("audit_2025"), Some(&4));
        assert_eq!(databases.destinations().count(), 5);
        let shown = "audit_2026 -> exact, logs -> logs, audit_* -> long, aud* -> mid, a* -> short";
        assert_eq!(databases.to_string(), shown);
    }

    #[test]
    fn what_every_cluster_has_goes_nowhere_else() {
        let databases = databases(&[("a*", "x"), ("config*", "x"), ("loc*", "x")]);
        assert_eq!(["admin", "config", "local"].map(|name| databases.destination(name)), [None; 3]);
        assert_eq!(databases.destination("administration"), Some(&"x"));
        for name in ["admin", "config", "local"] {
            let told = name.parse::<DatabasePattern>().unwrap_err().to_string();
            assert!(told.ends_with("that of the listener's `cluster` is served"), "{told}");
        }
    }

    #[test]
    fn patterns_are_shown_as_they_were_written_and_others_refused() {
        for text in ["logs", "audit_*", "a-b", "X"] {
            assert_eq!(text.parse::<DatabasePattern>().unwrap().to_string(), text);
        }
        for (wrong, hint) in [
            ("", "`*`"),
            ("*", "`cluster` of the listener"),
            ("**", "at the end, once"),
            ("*logs", "at the end, once"),
            ("a*b", "at the end, once"),
            ("a.b", "`*`"),
            ("a b", "`*`"),
            ("a/*", "`*`"),
            ("$x", "`*`"),
        ] {
            let told = wrong.parse::<DatabasePattern>().unwrap_err().to_string();
            assert!(told.ends_with(hint) && told.starts_with(&format!("{wrong:?}")), "{told}");
        }
        let long = "x".repeat(MAX_DATABASE_BYTES + 1).parse::<DatabasePattern>().unwrap_err().to_string();
        assert!(long.ends_with("at most 63 bytes") && long.len() < 180, "{long}");
    }
}
