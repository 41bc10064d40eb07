//! Lists of namespaces as they stand in the file: `["shop.catalog", "cms.*", "*"]`.

use std::fmt;
use std::str::FromStr;

use super::limits::MAX_NAMESPACE_BYTES;

/// Collections that were named, one by one or by the database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespaces(Vec<Namespace>);

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespace {
    /// `*`: all there is.
    Everything,
    /// `shop.*`: a whole database.
    Database(String),
    /// `shop.catalog`: one collection; its name may hold further dots.
    Collection {
        /// `shop`
        database: String,
        /// `catalog`
        collection: String,
    },
}

/// Why a text is no [`Namespace`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no namespace: expected \"database.collection\", \"database.*\" or \"*\"{hint}")]
pub struct NamespaceError {
    found: String,
    hint: String,
}

impl Namespaces {
    /// True when nothing is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when this collection was named, by itself or with its database.
    pub fn names(&self, database: &str, collection: &str) -> bool {
        self.0.iter().any(|namespace| match namespace {
            Namespace::Collection { database: named, collection: of } => named == database && of == collection,
            wider => wider.holds(database),
        })
    }

    /// True when the whole database was named.
    pub fn names_all_of(&self, database: &str) -> bool {
        self.0.iter().any(|namespace| namespace.holds(database))
    }

    /// True when the database was named, or any of its collections.
    pub fn names_any_of(&self, database: &str) -> bool {
        self.0.iter().any(|namespace| match namespace {
            Namespace::Collection { database: named, .. } => named == database,
            wider => wider.holds(database),
        })
    }

    /// True when all there is was named.
    pub fn names_everything(&self) -> bool {
        self.0.contains(&Namespace::Everything)
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = &Namespace> {
        self.0.iter()
    }
}

impl From<Vec<Namespace>> for Namespaces {
    fn from(namespaces: Vec<Namespace>) -> Self {
        Self(namespaces)
    }
}

impl Namespace {
    fn holds(&self, database: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Database(named) => named == database,
            Self::Collection { .. } => false,
        }
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Shown short: a text that is much too long says nothing by its end.
        let refuse = |hint: String| NamespaceError { found: text.chars().take(60).collect(), hint };
        if text == "*" {
            return Ok(Self::Everything);
        }
        if text.len() > MAX_NAMESPACE_BYTES {
            return Err(refuse(format!(", of at most {MAX_NAMESPACE_BYTES} bytes")));
        }
        let Some((database, collection)) = text.split_once('.') else {
            let whole = if is_database(text) { format!("; all of a database is \"{text}.*\"") } else { String::new() };
            return Err(refuse(whole));
        };
        match collection {
            _ if !is_database(database) => Err(refuse(String::new())),
            "*" => Ok(Self::Database(database.to_owned())),
            "" => Err(refuse(String::new())),
            // A pattern that looks as if it worked would leave out what it was written for.
            _ if collection.contains(['*', '\0']) => Err(refuse("; a `*` stands for a whole name only".to_owned())),
            _ => Ok(Self::Collection { database: database.to_owned(), collection: collection.to_owned() }),
        }
    }
}

/// As servers on Linux see it, but for the star.
pub(super) fn is_database(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '.', ' ', '"', '$', '*', '\0'])
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("*"),
            Self::Database(database) => write!(f, "{database}.*"),
            Self::Collection { database, collection } => write!(f, "{database}.{collection}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Namespaces {
        Namespaces(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn each_form_names_what_it_says_and_nothing_else() {
        let collections =
            [("shop", "catalog"), ("shop", "catalog.old"), ("shop", "orders"), ("cms", "pages"), ("sho", "p")];
        for (texts, named, whole) in [
            (&[][..], [false; 5], [false; 2]),
            (&["shop.catalog"], [true, false, false, false, false], [false; 2]),
            (&["shop.catalog.old"], [false, true, false, false, false], [false; 2]),
            (&["shop.*"], [true, true, true, false, false], [true, false]),
            (&["*"], [true; 5], [true; 2]),
            (&["cms.*", "shop.orders"], [false, false, true, true, false], [false, true]),
        ] {
            let list = list(texts);
            assert_eq!(collections.map(|(database, collection)| list.names(database, collection)), named, "{texts:?}");
            assert_eq!(["shop", "cms"].map(|database| list.names_all_of(database)), whole, "{texts:?}");
            assert_eq!(list.is_empty(), texts.is_empty());
            assert_eq!(list.names_everything(), texts.contains(&"*"));
            let any = |database: &str| texts.iter().any(|it| *it == "*" || it.split('.').next() == Some(database));
            assert_eq!(
                ["shop", "cms"].map(|database| list.names_any_of(database)),
                ["shop", "cms"].map(any),
                "{texts:?}"
            );
        }
    }

    #[test]
    fn entries_are_shown_as_they_were_written() {
        for text in ["*", "shop.*", "shop.catalog", "shop.fs.chunks"] {
            assert_eq!(text.parse::<Namespace>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_namespace_is_told_what_would_be_one() {
        let told = |text: &str| text.parse::<Namespace>().unwrap_err().to_string();
        assert_eq!(
            told("shop"),
            "\"shop\" is no namespace: expected \"database.collection\", \"database.*\" or \"*\"; all of a database is \
             \"shop.*\""
        );
        for wrong in ["", ".", "shop.", ".catalog", "*.catalog", "sh op.c", "a$b.c", "**", "shop.cat*", "shop.**"] {
            assert!(told(wrong).contains("expected \"database.collection\""), "{wrong}");
        }
        assert!(told("shop.cat*").ends_with("stands for a whole name only"));
        let long = told(&format!("shop.{}", "x".repeat(MAX_NAMESPACE_BYTES)));
        assert!(long.ends_with("at most 255 bytes") && long.len() < 200, "{long}");
    }
}
