//! `[[tenant]]` and `[[priority]]` in the file.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fairness::{Level, NamePattern, PriorityRule, TenantBounds, TenantRule};
use super::keys::{self, Place};
use super::layers::saturating_usize;
use super::limits;
use super::reader::{Reader, Values};

impl Reader<'_> {
    pub(super) fn tenants(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Vec<TenantRule> {
        self.rules(path, value, |reader, prefix, table| {
            let (mut name, mut values) = (None, Values::new());
            for (key, value) in table {
                let path = format!("{prefix}{}", key.get_ref());
                match keys::limit(Place::Tenant, key.get_ref()) {
                    Some(limit) => reader.limit(limit, &path, value, &mut values),
                    None if key.get_ref() == "name" => name = Some(reader.pattern(&path, value)),
                    None => reader.unknown(prefix, key.get_ref(), key.span(), &[Place::Tenant]),
                }
            }
            let given = |key| values.get(key).and_then(|found| found.value);
            // Off is not the same as unsaid: the bounds of all do not hold then.
            let bound = |key| given(key).map(|most| if most == 0 { u64::MAX } else { most });
            let bounds = TenantBounds {
                weight: given("weight").and_then(|weight| weight.try_into().ok()),
                max_in_flight: bound("max_in_flight").map(|most| most.try_into().unwrap_or(u16::MAX)),
                max_waiting: bound("max_waiting").map(saturating_usize),
            };
            let name = name.ok_or("name")?;
            Ok(name.map(|name| TenantRule { name, bounds }))
        })
    }

    pub(super) fn priorities(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Vec<PriorityRule> {
        self.rules(path, value, |reader, prefix, table| {
            let (mut application, mut level) = (None, None);
            for (key, value) in table {
                let path = format!("{prefix}{}", key.get_ref());
                match key.get_ref().as_ref() {
                    "application" => application = Some(reader.pattern(&path, value)),
                    "level" => level = Some(reader.choice::<Level>(&path, value)),
                    name => reader.unknown(prefix, name, key.span(), &[Place::Priority]),
                }
            }
            let (application, level) = (application.ok_or("application")?, level.ok_or("level")?);
            Ok(application.zip(level).map(|(application, level)| PriorityRule { application, level }))
        })
    }

    /// The rules of all tables; `read` makes one of each, or names the key that is missing.
    fn rules<T>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        read: impl Fn(&mut Self, &str, &DeTable<'_>) -> Result<Option<T>, &'static str>,
    ) -> Vec<T> {
        let mut rules = Vec::new();
        for (index, (_, table)) in self.tables(path, value, limits::MAX_FAIRNESS_RULES).into_iter().enumerate() {
            let prefix = format!("{path}[{}].", index + 1);
            match read(self, &prefix, table) {
                Ok(rule) => rules.extend(rule),
                Err(key) => {
                    let span = value.get_ref().as_array().and_then(|tables| tables.get(index)).map(Spanned::span);
                    self.refuse(span.unwrap_or_default(), &format!("{prefix}{key}"), "missing".to_owned());
                }
            }
        }
        rules
    }

    fn pattern(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<NamePattern> {
        self.text_of(path, value).and_then(|text| self.parsed(path, value, text))
    }
}
