//! Values of a TOML file with their places, and every mistake in them: what was found, and what would be right. Which keys
//! there are is not here but in `file.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::keys::{Choice, Key, Kind, either};
use super::limits::Limit;
use crate::telemetry::logs::{MASK, redact};

/// A value, and where it was said.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) place: String,
    pub(super) key: String,
}

impl<T> Found<T> {
    pub(super) fn of(place: &str, key: &str, value: T) -> Self {
        Self { value, place: place.to_owned(), key: key.to_owned() }
    }

    /// Where it was said, and no more.
    pub(super) fn place_only(&self) -> Found<()> {
        Found::of(&self.place, &self.key, ())
    }

    /// A mistake in this value.
    pub(super) fn error(&self, problem: String) -> ConfigError {
        ConfigError { place: self.place.clone(), key: self.key.clone(), problem }
    }
}

/// Limits by key; `None` for a value that was refused, so that it causes no further mistakes.
pub(super) type Values = BTreeMap<&'static str, Found<Option<u64>>>;

/// What keys say that hold no secret, and where.
pub(super) type Said = BTreeMap<&'static str, Found<toml::Value>>;

/// A file, and the mistakes that were found in it so far.
pub(super) struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    /// With the offset of each, for sorting.
    mistakes: Vec<(usize, ConfigError)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        Self { name, text, mistakes: Vec::new() }
    }

    /// All mistakes in the order of their lines.
    pub(super) fn into_mistakes(mut self) -> impl Iterator<Item = ConfigError> {
        self.mistakes.sort_by_key(|&(start, _)| start);
        self.mistakes.into_iter().map(|(_, error)| error)
    }

    pub(super) fn place(&self, span: &Range<usize>) -> String {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        format!("{}:{line}", self.name)
    }

    pub(super) fn refuse(&mut self, span: Range<usize>, key: &str, problem: String) {
        let place = self.place(&span);
        self.mistakes.push((span.start, ConfigError { place, key: key.to_owned(), problem }));
    }

    pub(super) fn limit(&mut self, limit: &'static Limit, path: &str, value: &Spanned<DeValue<'_>>, out: &mut Values) {
        let accepted = integer(value).and_then(|value| u64::try_from(value).ok()).filter(|&value| limit.accepts(value));
        if accepted.is_none() {
            self.refuse(value.span(), path, format!("found {}, expected {}", Shown(value), limit.range()));
        }
        out.insert(limit.key, self.found(path, value, accepted));
    }

    pub(super) fn found<T>(&self, path: &str, at: &Spanned<DeValue<'_>>, value: T) -> Found<T> {
        Found { value, place: self.place(&at.span()), key: path.to_owned() }
    }

    /// Remembers what a key says, for whoever asks what is in force.
    pub(super) fn note(&self, key: &'static Key, value: &Spanned<DeValue<'_>>, said: &mut Said) {
        if !matches!(key.kind, Kind::ConnectionString { .. }) {
            said.insert(key.name, self.found(key.name, value, plain(value)));
        }
    }

    pub(super) fn text_of<'v>(&mut self, path: &str, value: &'v Spanned<DeValue<'_>>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.refuse(value.span(), path, format!("found {}, expected a text in quotes", Shown(value)));
        }
        text
    }

    pub(super) fn parsed<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        text: &str,
    ) -> Option<T> {
        text.parse().map_err(|error: T::Err| self.refuse(value.span(), path, error.to_string())).ok()
    }

    /// A list of texts, or one of them by itself; `what` they are, and how many there may be.
    pub(super) fn list<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        what: &str,
        counts: RangeInclusive<usize>,
    ) -> Option<Vec<T>> {
        let one = std::slice::from_ref(value);
        let values: &[Spanned<DeValue<'_>>] = value.get_ref().as_array().map_or(one, |array| array);
        if !counts.contains(&values.len()) {
            let (found, least, most) = (values.len(), counts.start(), counts.end());
            self.refuse(value.span(), path, format!("found {found} {what}, expected {least} to {most}"));
            return None;
        }
        let parsed: Vec<Option<T>> = values
            .iter()
            .map(|value| self.text_of(path, value).and_then(|text| self.parsed(path, value, text)))
            .collect();
        parsed.into_iter().collect()
    }

    pub(super) fn choice<T: Choice>(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<T> {
        self.one_of(path, value, T::CHOICES)
    }

    pub(super) fn one_of<T: Copy>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let text = value.get_ref().as_str();
        let chosen = choices.iter().find(|(word, _)| text == Some(word));
        if chosen.is_none() {
            let words: Vec<&str> = choices.iter().map(|&(word, _)| word).collect();
            let near = text.and_then(|text| nearest(text, words.iter().copied()));
            let hint = near.map_or_else(String::new, |near| format!(", did you mean \"{near}\"?"));
            self.refuse(value.span(), path, format!("found {}, expected {}{hint}", Shown(value), either(&words)));
        }
        chosen.map(|&(_, chosen)| chosen)
    }

    pub(super) fn flag(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<bool> {
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.refuse(value.span(), path, format!("found {}, expected true or false", Shown(value)));
        }
        flag
    }

    pub(super) fn table<'v>(&mut self, path: &str, value: &'v Spanned<DeValue<'v>>) -> Option<&'v DeTable<'v>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.refuse(value.span(), path, format!("found {}, expected a table", Shown(value)));
        }
        table
    }

    /// `[[key]]`, `key` in double brackets: at least one table and at most so many, each with its place.
    pub(super) fn tables<'v>(
        &mut self,
        key: &str,
        value: &'v Spanned<DeValue<'v>>,
        most: usize,
    ) -> Vec<(String, &'v DeTable<'v>)> {
        let Some(array) = value.get_ref().as_array() else {
            self.refuse(
                value.span(),
                key,
                format!("found {}, expected [[{key}]] tables, in double brackets", Shown(value)),
            );
            return Vec::new();
        };
        if array.is_empty() || array.len() > most {
            self.refuse(value.span(), key, format!("found {} [[{key}]] tables, expected 1 to {most}", array.len()));
        }
        let mut tables = Vec::new();
        for (index, item) in array.iter().enumerate() {
            if let Some(table) = self.table(&format!("{key}[{}]", index + 1), item) {
                tables.push((self.place(&item.span()), table));
            }
        }
        tables
    }
}

fn integer(value: &Spanned<DeValue<'_>>) -> Option<i64> {
    let number = value.get_ref().as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A value without its places.
fn plain(value: &Spanned<DeValue<'_>>) -> toml::Value {
    match value.get_ref() {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(_) => toml::Value::Integer(integer(value).unwrap_or_default()),
        DeValue::Float(number) => toml::Value::Float(number.as_str().parse().unwrap_or_default()),
        DeValue::Boolean(flag) => toml::Value::Boolean(*flag),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        DeValue::Array(items) => toml::Value::Array(items.iter().map(plain).collect()),
        DeValue::Table(table) => {
            toml::Value::Table(table.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value))).collect())
        }
    }
}

/// A value in a message: short, and without passwords.
pub(super) struct Shown<'a>(pub(super) &'a Spanned<DeValue<'a>>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 60;
        match self.0.get_ref() {
            DeValue::String(text) => {
                let redacted = redact(text);
                // A connection string without its scheme is none, and has a password all the same.
                let short: String = match text.rsplit_once('@') {
                    Some((_, after)) if !text.contains("://") => format!("{MASK}@{after}"),
                    _ => redacted.into_owned(),
                };
                let short: String = short.chars().take(LONGEST).collect();
                write!(f, "{short:?}")
            }
            DeValue::Integer(number) => match number.radix() {
                10 => f.write_str(number.as_str()),
                radix => write!(f, "{} (base {radix})", number.as_str()),
            },
            DeValue::Float(number) => f.write_str(number.as_str()),
            DeValue::Boolean(flag) => write!(f, "{flag}"),
            DeValue::Datetime(time) => write!(f, "{time}"),
            DeValue::Array(_) => f.write_str("a list"),
            DeValue::Table(_) => f.write_str("a table"),
        }
    }
}

/// The known key that `name` was most likely meant to be, if it is near enough.
pub(crate) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // `maxPoolSize` and `max-pool-size` are spellings, not mistakes of letters.
    let plain = |key: &str| key.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let name = plain(name);
    let distance = |key: &str| edit_distance(name.as_bytes(), plain(key).as_bytes());
    let tolerated = 1 + name.len() / 5;
    known.map(|key| (distance(key), key)).filter(|&(distance, _)| distance <= tolerated).min().map(|(_, key)| key)
}

/// Levenshtein's distance: letters to insert, drop or change.
fn edit_distance(from: &[u8], to: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        row[0] = left;
        for (j, b) in to.iter().enumerate() {
            left = (diagonal + usize::from(a != b)).min(left + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], left);
        }
    }
    row[to.len()]
}
