//! Every key of the configuration file: where it may stand, what it may say, what it means, and whether a running program takes a
//! change of it over. What is refused as unknown, what is suggested instead, the schema, the reference and the effective
//! configuration all follow from these tables; how a key is read is in `file.rs` and beside it.
//!
//! A new key is a line in one of the tables below and an arm where it is read. If it is a number, its bounds are in `limits.rs`.

mod cluster;
mod listener;
mod program;
mod reference;
mod schema;

use toml::Value;

use super::limits::Limit;
pub use reference::reference;
pub use schema::schema;

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// At the top of the file, once for the whole program.
    Program,
    /// In a `[[cluster]]` table, or at the top of the file where there is one cluster only.
    Cluster,
    /// In a `[[cluster]]` table only.
    ClusterTable,
    /// Beside `listen`: in a `[[listener]]` table, in a `[[cluster]]` table, or at the top of the file.
    Listener,
    /// In a `[[listener]]` table only.
    ListenerTable,
    /// In a `[[tenant]]` table of a cluster.
    Tenant,
    /// In a `[[priority]]` table of a cluster.
    Priority,
}

/// What happens to a running program whose file says something else when it is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is in force at once.
    Live,
    /// It is in force after a restart.
    Restart,
}

/// What a key may say.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A whole number.
    Number(Limit),
    /// True or false; false unless it says something else.
    Flag,
    /// One of a few words.
    Choice {
        /// The words.
        words: fn() -> Vec<&'static str>,
        /// The one that holds where nothing is said, if it is always the same.
        default: Option<&'static str>,
    },
    /// Any text, which is at most so many bytes long.
    Text {
        /// What it is.
        what: &'static str,
        /// Its longest, bytes.
        most: usize,
    },
    /// A connection string, which may hold a password.
    ConnectionString {
        /// What holds where nothing is said.
        default: &'static str,
    },
    /// A path.
    File,
    /// `host:port` or `unix:/path`.
    Address {
        /// What holds where nothing is said.
        default: Option<(&'static str, u16)>,
    },
    /// A list, or one entry of it by itself.
    List {
        /// What it is a list of.
        of: Item,
        /// Entries, at the least.
        least: usize,
        /// Entries, at most.
        most: usize,
    },
    /// A table from patterns of databases to names of clusters.
    Databases,
    /// Tables in double brackets, each with keys of its own.
    Tables {
        /// What stands in them.
        of: &'static [Place],
        /// How many there may be.
        most: usize,
    },
}

/// What stands in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// `host:port` or `unix:/path`.
    Address,
    /// `snappy`, `zlib`, `zstd`.
    Compressor,
    /// A command's name, or a group of commands.
    Command,
    /// `database.collection`, `database.*`, `*`.
    Namespace,
    /// A name, or its beginning and `*`.
    Database,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// As it is written; a dot stands for a sub-table.
    pub name: &'static str,
    /// Where it may stand.
    pub place: Place,
    /// What it may say.
    pub kind: Kind,
    /// Whether a change is taken over.
    pub change: Change,
    /// What it means, for operators.
    pub meaning: &'static str,
}

impl Key {
    const fn new(place: Place, name: &'static str, kind: Kind, change: Change, meaning: &'static str) -> Self {
        Self { name, place, kind, change, meaning }
    }

    const fn number(place: Place, limit: Limit, change: Change, meaning: &'static str) -> Self {
        Self::new(place, limit.key, Kind::Number(limit), change, meaning)
    }

    /// Its bounds, if it is a number.
    pub const fn limit(&self) -> Option<&Limit> {
        match &self.kind {
            Kind::Number(limit) => Some(limit),
            _ => None,
        }
    }

    /// What it may say, in words.
    pub fn range(&self) -> String {
        match self.kind {
            Kind::Number(limit) => limit.range(),
            Kind::Flag => "true or false".to_owned(),
            Kind::Choice { words, .. } => either(&words()),
            Kind::Text { what, .. } => what.to_owned(),
            Kind::ConnectionString { .. } => "a connection string".to_owned(),
            Kind::File => "the path of a file".to_owned(),
            Kind::Address { .. } => Item::Address.words().to_owned(),
            Kind::List { of, least, most } => format!("a list of {least} to {most}: {}", of.words()),
            Kind::Databases => {
                "a table: names of databases, or their beginning with `*`, and the cluster of each".to_owned()
            }
            Kind::Tables { most, .. } => format!("1 to {most} [[{}]] tables", self.name),
        }
    }

    /// True for what has to stand in every table of its kind.
    const fn is_needed(&self) -> bool {
        match self.place {
            Place::Tenant => matches!(self.kind, Kind::Text { .. }),
            Place::Priority => true,
            Place::Program | Place::Cluster | Place::ClusterTable | Place::Listener | Place::ListenerTable => false,
        }
    }

    /// What holds where nothing is said; `None` where that is nothing, or depends on something else.
    pub fn default(&self) -> Option<Value> {
        match self.kind {
            Kind::Number(limit) => Some(Value::Integer(i64::try_from(limit.default).unwrap_or(i64::MAX))),
            Kind::Flag => Some(Value::Boolean(false)),
            Kind::Choice { default, .. } => default.map(Value::from),
            Kind::ConnectionString { default } => Some(Value::from(default)),
            Kind::Address { default } => default.map(|(host, port)| Value::String(format!("{host}:{port}"))),
            Kind::Text { .. } | Kind::File | Kind::List { .. } | Kind::Databases | Kind::Tables { .. } => None,
        }
    }
}

impl Item {
    /// What an entry is.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Address => "host:port or unix:/path",
            Self::Compressor => "\"snappy\", \"zlib\" or \"zstd\"",
            Self::Command => "names of commands, or the groups \"read\", \"write\" and \"admin\"",
            Self::Namespace => "\"database.collection\", \"database.*\" or \"*\"",
            Self::Database => "names of databases, or their beginning and `*`",
        }
    }
}

/// A type whose values are words in the file.
pub(super) trait Choice: Copy + PartialEq + 'static {
    /// Each word, and what it means.
    const CHOICES: &'static [(&'static str, Self)];
}

/// The words of a [`Choice`].
pub(super) fn words_of<T: Choice>() -> Vec<&'static str> {
    T::CHOICES.iter().map(|&(word, _)| word).collect()
}

/// `"a" or "b"`
pub(super) fn either(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
}

/// All of them, in the order in which they are told of.
pub fn all() -> impl Iterator<Item = &'static Key> {
    [program::KEYS, cluster::KEYS, listener::KEYS].into_iter().flatten()
}

/// Those that may stand there.
pub fn at(place: Place) -> impl Iterator<Item = &'static Key> {
    all().filter(move |key| key.place == place)
}

/// The bounds of all numbers that may stand there.
pub fn limits(place: Place) -> impl Iterator<Item = &'static Limit> {
    at(place).filter_map(Key::limit)
}

/// The bounds of the number of that name, if it may stand there.
pub(super) fn limit(place: Place, name: &str) -> Option<&'static Limit> {
    named(place, name).and_then(Key::limit)
}

/// The key of that name, if it may stand there.
pub fn named(place: Place, name: &str) -> Option<&'static Key> {
    at(place).find(|key| key.name == name)
}

/// True for what stands before the dot of numbers: `breaker`, `reconnect`, `codel`.
pub(super) fn is_table_of_numbers(name: &str) -> bool {
    limits(Place::Cluster).any(|limit| limit.key.split_once('.').is_some_and(|(table, _)| table == name))
}

/// True for what each of several clusters says for itself.
pub(super) fn is_of_clusters(name: &str) -> bool {
    [Place::Cluster, Place::Listener].into_iter().any(|place| named(place, name).is_some()) || is_table_of_numbers(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::limits;
    use super::*;

    #[test]
    fn no_key_is_there_twice_where_it_could_be_meant_twice() {
        for places in [
            &[Place::Program, Place::Cluster, Place::Listener][..],
            &[Place::Cluster, Place::ClusterTable, Place::Listener],
            &[Place::Listener, Place::ListenerTable],
            &[Place::Tenant],
            &[Place::Priority],
        ] {
            let names: Vec<&str> = places.iter().flat_map(|&place| at(place)).map(|key| key.name).collect();
            assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "{places:?}");
        }
    }

    #[test]
    fn numbers_end_in_their_unit_and_every_key_is_told_of() {
        for key in all() {
            assert!(key.meaning.ends_with('.') && key.meaning.len() > 20, "{}", key.name);
            if let Some(limit) = key.limit() {
                assert_eq!(key.name.ends_with("_ms"), limit.unit == limits::MS, "{}", key.name);
                assert_eq!(key.name.ends_with("_bytes"), limit.unit == limits::BYTES, "{}", key.name);
                assert!(limit.accepts(limit.default), "{}", key.name);
            }
        }
    }
}
