//! What is in force, each value with where it comes from: to be shown, compared, or used as a file. No secret stands in it, so `Debug`
//! and JSON may go anywhere.

mod show;
#[cfg(test)]
mod tests;

use serde::Serialize;
use serde::ser::{SerializeMap as _, SerializeStruct as _, Serializer};
use sha2::{Digest as _, Sha256};
use toml::Value;

use super::keys::{self, Change, Choice, Key, Kind, Place};
use super::layers::Layers;
use super::reader::Said;
use super::uri::Upstream;
use crate::telemetry::logs::MASK;

/// The whole configuration.
#[derive(Clone, Default, Serialize)]
pub struct Effective {
    /// What the program has once.
    pub program: Settings,
    /// Each cluster.
    pub clusters: Vec<Table>,
    /// Each listener, by address.
    pub listeners: Vec<Table>,
}

/// What one cluster or listener has.
#[derive(Clone, Serialize)]
pub struct Table {
    /// Name of the cluster, or the address that was asked for.
    pub name: String,
    /// What is in force for it.
    pub settings: Settings,
}

/// Each key that may stand there, in the order of the reference.
#[derive(Clone, Default)]
pub struct Settings(Vec<Setting>);

/// One key.
#[derive(Clone)]
pub struct Setting {
    /// Which.
    pub key: &'static Key,
    /// What it says; `None` if it is not set and has no default.
    pub value: Option<Value>,
    /// Who says that: file and line, a flag, ...
    pub origin: String,
    /// What the value does not show.
    secret: Option<Secret>,
}

/// Tells two secrets apart, and no more.
#[derive(Clone, PartialEq, Eq)]
struct Secret {
    credential: [u8; 32],
    key_password: [u8; 32],
    /// The credential is read again when the file changes that it stands in.
    read_again: bool,
}

/// A setting that is not what it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// `max_clients`, `cluster[shop].max_pool_size`, `listener[127.0.0.1:27016].read_only`
    pub path: String,
    /// What it was.
    pub from: Option<Value>,
    /// What it is to be.
    pub to: Option<Value>,
    /// It can be taken over by a running program; else it needs a restart.
    pub live: bool,
}

/// What has to change for `old` to become `new`.
pub fn difference(old: &Effective, new: &Effective) -> Vec<Difference> {
    let mut found = Vec::new();
    old.program.compare("", &new.program, &mut found);
    compare_tables("cluster", &old.clusters, &new.clusters, &mut found);
    compare_tables("listener", &old.listeners, &new.listeners, &mut found);
    found
}

fn compare_tables(what: &str, old: &[Table], new: &[Table], found: &mut Vec<Difference>) {
    // Of several that are called alike, as those that ask the system for a port, the first is compared with the first.
    let mut left: Vec<&Table> = new.iter().collect();
    let whole = |table: &Table| Some(Value::String(table.name.clone()));
    for table in old {
        let path = format!("{what}[{}]", table.name);
        match left.iter().position(|other| other.name == table.name) {
            Some(at) => table.settings.compare(&format!("{path}."), &left.remove(at).settings, found),
            None => found.push(Difference { path, from: whole(table), to: None, live: false }),
        }
    }
    let added = |table: &&Table| Difference {
        path: format!("{what}[{}]", table.name),
        from: None,
        to: whole(table),
        live: false,
    };
    found.extend(left.iter().map(added));
}

impl Effective {
    /// What is in force in a running program once it has read `new`: the rest waits for a restart.
    pub fn taking_over(&self, new: &Self) -> Self {
        let tables = |old: &[Table], new: &[Table]| {
            let of = |name: &str| new.iter().find(|table| table.name == name).map(|table| &table.settings);
            let taken = |table: &Table| Table {
                name: table.name.clone(),
                settings: of(&table.name).map_or_else(|| table.settings.clone(), |new| table.settings.taking_over(new)),
            };
            old.iter().map(taken).collect()
        };
        Self {
            program: self.program.taking_over(&new.program),
            clusters: tables(&self.clusters, &new.clusters),
            listeners: tables(&self.listeners, &new.listeners),
        }
    }
}

impl Settings {
    fn taking_over(&self, new: &Self) -> Self {
        let one = |(old, new): (&Setting, &Setting)| if new.key.change == Change::Live { new } else { old }.clone();
        Self(self.0.iter().zip(&new.0).map(one).collect())
    }

    /// What the file and other layers say about the keys of `places`, and what holds where they say nothing.
    pub(super) fn of(places: &[Place], said: &Said, layers: Option<&Layers<'_>>) -> Self {
        let keys = places.iter().flat_map(|&place| keys::at(place));
        let keys = keys.filter(|key| !matches!(key.kind, Kind::Tables { .. }) || key.place == Place::Cluster);
        let setting = |key: &'static Key| {
            let (value, origin) = match (key.limit().zip(layers), said.get(key.name)) {
                (Some((limit, layers)), _) => (Some(number(layers.value(limit))), layers.origin(limit)),
                (None, Some(found)) => (Some(found.value.clone()), found.place.clone()),
                (None, None) => (key.default(), "default".to_owned()),
            };
            Setting { key, value, origin, secret: None }
        };
        Self(keys.map(setting).collect())
    }

    /// Each setting.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter()
    }

    /// The setting of that key.
    pub fn named(&self, key: &str) -> Option<&Setting> {
        self.0.iter().find(|setting| setting.key.name == key)
    }

    /// Says something else than the file does.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>, origin: &str) {
        if let Some(setting) = self.found(key) {
            setting.value = Some(value.into());
            origin.clone_into(&mut setting.origin);
        }
    }

    /// As [`Self::set`], where nobody has asked for anything.
    pub(super) fn set_unless_said(&mut self, said: &Said, key: &str, value: impl Into<Value>, origin: &str) {
        if !said.contains_key(key) {
            self.set(key, value, origin);
        }
    }

    /// Tells what became of a number that could not be had.
    pub(super) fn adjust(&mut self, key: &str, value: u64, why: &str) {
        let value = number(value);
        if let Some(setting) = self.found(key).filter(|setting| setting.value.as_ref() != Some(&value)) {
            setting.value = Some(value);
            setting.origin = format!("{}, {why}", setting.origin);
        }
    }

    /// Says nothing about these keys.
    pub(super) fn clear(&mut self, which: impl Fn(&str) -> bool, why: &str) {
        for setting in self.0.iter_mut().filter(|setting| which(setting.key.name)) {
            setting.value = setting.key.default();
            why.clone_into(&mut setting.origin);
        }
    }

    /// The connection string, without what is nobody's business.
    pub(super) fn set_upstream(&mut self, upstream: &Upstream, read_again: bool, origin: &str) {
        // In the place of user and password, so that nobody takes this for all there is.
        let shown = match &upstream.credential {
            Some(_) => upstream.redacted.replacen("://", &format!("://{MASK}@"), 1),
            None => upstream.redacted.clone(),
        };
        let credential = upstream.credential.as_ref().map_or([0; 32], |it| {
            let password = it.password.as_ref().map_or("", |password| password.as_str());
            digest(&[it.username.as_deref().unwrap_or_default(), &it.source, password])
        });
        let key_password = upstream.tls.as_ref().and_then(|tls| tls.key_password.as_ref());
        let key_password = key_password.map_or([0; 32], |password| digest(&[password.expose()]));
        self.set("upstream", shown, origin);
        if let Some(setting) = self.found("upstream") {
            setting.secret = Some(Secret { credential, key_password, read_again });
        }
    }

    fn found(&mut self, key: &str) -> Option<&mut Setting> {
        let setting = self.0.iter_mut().find(|setting| setting.key.name == key);
        debug_assert!(setting.is_some(), "{key} is none of the table");
        setting
    }

    fn compare(&self, prefix: &str, other: &Self, found: &mut Vec<Difference>) {
        for (old, new) in self.0.iter().zip(&other.0) {
            debug_assert_eq!(old.key.name, new.key.name);
            let hidden = old.value == new.value && old.secret != new.secret;
            if old.value == new.value && !hidden {
                continue;
            }
            let live = if hidden { new.taken_over_from(old) } else { new.key.change == Change::Live };
            let to = if hidden { new.with_another_secret() } else { new.value.clone() };
            found.push(Difference { path: format!("{prefix}{}", new.key.name), from: old.value.clone(), to, live });
        }
    }
}

impl Setting {
    /// True when what is not shown is all that differs, and is read again by itself.
    fn taken_over_from(&self, old: &Self) -> bool {
        let (Some(new), Some(old)) = (&self.secret, &old.secret) else { return false };
        new.read_again && old.read_again && new.key_password == old.key_password
    }

    fn with_another_secret(&self) -> Option<Value> {
        let shown = self.value.as_ref().and_then(Value::as_str).unwrap_or_default();
        Some(Value::String(format!("{shown} (with another secret)")))
    }
}

/// The word of a choice.
pub(super) fn word_of<T: Choice>(value: T) -> &'static str {
    T::CHOICES.iter().find(|(_, other)| *other == value).map_or("", |&(word, _)| word)
}

fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Of parts that cannot run into each other.
fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for setting in &self.0 {
            map.serialize_entry(setting.key.name, setting)?;
        }
        map.end()
    }
}

impl Serialize for Setting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut shown = serializer.serialize_struct("Setting", 3)?;
        shown.serialize_field("value", &self.value)?;
        shown.serialize_field("origin", &self.origin)?;
        shown.serialize_field("reload", self.key.change.name())?;
        shown.end()
    }
}
