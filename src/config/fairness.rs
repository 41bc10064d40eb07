//! Who competes with whom for connections, with which share, and who goes first: `fair_by`, `[[tenant]]`, `[[priority]]`.

use std::fmt;
use std::str::FromStr;

/// What tells tenants apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FairBy {
    /// Nothing: all commands are one tenant's.
    None,
    /// The application's name (`appName` in its connection string).
    Application,
    /// The user that a client has logged in as.
    User,
    /// The database of the command.
    Database,
    /// The client's address, without its port.
    Address,
}

/// How much a command matters beside others that wait for the same connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Level {
    /// Before all others.
    High,
    /// As most.
    #[default]
    Normal,
    /// After all others, though never left out.
    Low,
}

impl Level {
    /// The first to go first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}

/// A name, or all that begin alike: `batch`, `batch-*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    text: Box<str>,
    prefix: bool,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found {0:?}, expected 1 to 128 bytes, a name or its beginning with `*` at the end")]
pub struct NamePatternError(String);

/// The longest name that drivers may send.
pub(super) const MAX_NAME_BYTES: usize = 128;

impl FromStr for NamePattern {
    type Err = NamePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_suffix('*');
        let plain = name.unwrap_or(text);
        if text.is_empty() || plain.len() > MAX_NAME_BYTES || plain.contains('*') {
            return Err(NamePatternError(text.chars().take(2 * MAX_NAME_BYTES).collect()));
        }
        Ok(Self { text: plain.into(), prefix: name.is_some() })
    }
}

impl NamePattern {
    /// True where it means every name.
    pub fn is_everything(&self) -> bool {
        self.prefix && self.text.is_empty()
    }

    /// True for a name that it means.
    pub fn matches(&self, name: &str) -> bool {
        if self.prefix { name.starts_with(&*self.text) } else { *self.text == *name }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.prefix { "*" } else { "" })
    }
}

/// What a tenant may have; `None` leaves it to what all may have. The most that a number can say is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantBounds {
    /// Share of the connections' time relative to others, 1 where nothing is said.
    pub weight: Option<u16>,
    /// Commands in flight on one server.
    pub max_in_flight: Option<u16>,
    /// Waiting commands of the cluster.
    pub max_waiting: Option<usize>,
}

/// One `[[tenant]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRule {
    /// Who.
    pub name: NamePattern,
    /// What they may have, each by itself.
    pub bounds: TenantBounds,
}

/// One `[[priority]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityRule {
    /// Which applications.
    pub application: NamePattern,
    /// How much they matter.
    pub level: Level,
}

/// How the commands of one cluster share its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FairnessConfig {
    /// What tells tenants apart.
    pub by: FairBy,
    /// What each may have where no rule says more.
    pub all: TenantBounds,
    /// The first that matches counts.
    pub tenants: Vec<TenantRule>,
    /// The first that matches counts.
    pub priorities: Vec<PriorityRule>,
}

impl FairnessConfig {
    /// What the tenant of that name may have.
    pub fn bounds_of(&self, name: &str) -> TenantBounds {
        let own = self.tenants.iter().find(|rule| rule.name.matches(name)).map(|rule| rule.bounds).unwrap_or_default();
        TenantBounds {
            weight: own.weight.or(self.all.weight),
            max_in_flight: own.max_in_flight.or(self.all.max_in_flight),
            max_waiting: own.max_waiting.or(self.all.max_waiting),
        }
    }

    /// How much commands of that application matter.
    pub fn level_of(&self, application: &str) -> Level {
        let rule = self.priorities.iter().find(|rule| rule.application.matches(application));
        rule.map(|rule| rule.level).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_is_a_name_or_its_beginning() {
        for (text, name, matches) in [
            ("web", "web", true),
            ("web", "web2", false),
            ("web*", "web", true),
            ("web*", "web-2", true),
            ("web*", "we", false),
            ("*", "", true),
        ] {
            assert_eq!(pattern(text).matches(name), matches, "{text} {name}");
            assert_eq!(pattern(text).to_string(), text);
        }
        for wrong in ["", "a*b", "**", &"x".repeat(129)] {
            assert!(wrong.parse::<NamePattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_rule_counts_and_leaves_to_all_what_it_does_not_say() {
        let rule = |name, weight| {
            let bounds = TenantBounds { weight, ..TenantBounds::default() };
            TenantRule { name: pattern(name), bounds }
        };
        let all = TenantBounds { max_in_flight: Some(7), ..TenantBounds::default() };
        let priority = |application, level| PriorityRule { application: pattern(application), level };
        let config = FairnessConfig {
            by: FairBy::Application,
            all,
            tenants: vec![rule("web-a", Some(5)), rule("web*", Some(3))],
            priorities: vec![priority("batch-urgent", Level::High), priority("batch*", Level::Low)],
        };
        let of = |name| config.bounds_of(name);
        assert_eq!((of("web-a").weight, of("web-b").weight, of("other").weight), (Some(5), Some(3), None));
        assert_eq!((of("web-a").max_in_flight, of("other").max_in_flight), (Some(7), Some(7)));
        let levels = ["batch-urgent", "batch-2", "web"].map(|name| config.level_of(name));
        assert_eq!(levels, [Level::High, Level::Low, Level::Normal]);
    }
}
