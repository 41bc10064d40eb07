//! Which lines are written: a level for all, and others for some targets, as in `info,mongomux::connection=debug`.

use std::fmt;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::logs::{AUDIT, REPEATED};

/// As many directives are taken: each is looked at for every place in the code that logs.
const MAX_DIRECTIVES: usize = 32;

/// As many bytes of text are taken.
const MAX_BYTES: usize = 1024;

/// Which lines are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    level: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

/// Why a text says no levels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LevelsError {
    /// No level.
    #[error("found {0:?}, expected one of off, error, warn, info, debug, trace, as in info,mongomux::connection=debug")]
    Level(String),
    /// No target.
    #[error("found {0:?} before `=`, expected a target such as mongomux::connection")]
    Target(String),
    /// Two levels for everything.
    #[error("found two levels without a target, expected one at most")]
    Twice,
    /// More than is taken.
    #[error("found more than {MAX_DIRECTIVES} directives or {MAX_BYTES} bytes")]
    TooMany,
}

impl Default for Levels {
    fn default() -> Self {
        Self { level: LevelFilter::INFO, targets: Vec::new() }
    }
}

impl Levels {
    /// What lets exactly these lines on.
    pub(super) fn filter(&self) -> Targets {
        let level = self.level;
        // Libraries are heard from WARN on only: their INFO is not our operator's.
        let libraries = level.min(LevelFilter::WARN);
        // Whoever wants to read warnings only still wants to know who gave orders, and what was left out.
        let always = if level == LevelFilter::OFF { level } else { level.max(LevelFilter::INFO) };
        Targets::new()
            .with_default(libraries)
            .with_target(env!("CARGO_CRATE_NAME"), level)
            .with_target(AUDIT, always)
            .with_target(REPEATED, always)
            .with_targets(self.targets.iter().cloned())
    }
}

impl FromStr for Levels {
    type Err = LevelsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_BYTES || text.split(',').count() > MAX_DIRECTIVES {
            return Err(LevelsError::TooMany);
        }
        let (mut general, mut targets) = (None, Vec::new());
        for directive in text.split(',').map(str::trim) {
            match directive.split_once('=') {
                Some((target, level)) if is_target(target) => targets.push((target.to_owned(), level_of(level)?)),
                Some((target, _)) => return Err(LevelsError::Target(target.to_owned())),
                None if general.replace(level_of(directive)?).is_some() => return Err(LevelsError::Twice),
                None => {}
            }
        }
        Ok(Self { level: general.unwrap_or(LevelFilter::INFO), targets })
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)?;
        self.targets.iter().try_for_each(|(target, level)| write!(f, ",{target}={level}"))
    }
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
}

fn level_of(text: &str) -> Result<LevelFilter, LevelsError> {
    const NAMES: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let known = NAMES.iter().any(|name| text.eq_ignore_ascii_case(name));
    let level = if known { text.parse().ok() } else { None };
    level.ok_or_else(|| LevelsError::Level(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_read_as_they_print() {
        for (text, printed) in [
            ("debug", "debug"),
            ("INFO", "info"),
            ("warn, mongomux::connection=trace", "warn,mongomux::connection=trace"),
            ("mongomux::slow=off", "info,mongomux::slow=off"),
        ] {
            let levels: Levels = text.parse().unwrap();
            assert_eq!(levels.to_string(), printed);
            assert_eq!(printed.parse::<Levels>().unwrap(), levels);
        }
    }

    #[test]
    fn mistakes_are_told() {
        let level = |found: &str| LevelsError::Level(found.to_owned());
        let many = vec!["a=info"; MAX_DIRECTIVES + 1].join(",");
        for (text, error) in [
            ("", level("")),
            ("loud", level("loud")),
            ("3", level("3")),
            ("info,", level("")),
            ("mongomux::connection", level("mongomux::connection")),
            ("a=b=info", level("b=info")),
            ("=info", LevelsError::Target(String::new())),
            ("a[b]=info", LevelsError::Target("a[b]".to_owned())),
            ("info,debug", LevelsError::Twice),
            (&many, LevelsError::TooMany),
        ] {
            assert_eq!(text.parse::<Levels>(), Err(error), "{text}");
        }
    }

    #[test]
    fn libraries_say_little_and_orders_are_always_told() {
        let lets =
            |text: &str, target: &str, level| text.parse::<Levels>().unwrap().filter().would_enable(target, &level);
        assert!(lets("debug", "mongomux::client", Level::DEBUG) && !lets("debug", "hyper", Level::INFO));
        assert!(lets("debug", "hyper", Level::WARN) && lets("warn,hyper=debug", "hyper::proto", Level::DEBUG));
        assert!(
            lets("error", AUDIT, Level::INFO)
                && lets("error", REPEATED, Level::INFO)
                && !lets("off", AUDIT, Level::INFO)
        );
        let connections = "info,mongomux::connection=debug";
        assert!(lets(connections, super::super::logs::CONNECTION, Level::DEBUG));
        assert!(!lets(connections, super::super::logs::TOPOLOGY, Level::DEBUG));
    }
}
