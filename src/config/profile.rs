//! Profiles: named starting points for the size of the proxy's surroundings. A profile sets some limits; every other
//! source of configuration beats it, the defaults apart.

use std::fmt;
use std::str::FromStr;

use super::limits::{self, Limit};

/// A named set of values, lowest in precedence but for the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// A sidecar beside a few hundred to a few thousand clients.
    #[default]
    Default,
    /// A workstation: connections may rest longer between two looks at the screen.
    Development,
    /// Little traffic, with room for bursts.
    Low,
    /// A busy service.
    Medium,
    /// A very busy service.
    High,
    /// As `high`, with connections kept longer.
    Production,
    /// For clusters that must take a lost member's load at once.
    HighAvailability,
    /// One virtual CPU: long queues would only be waited out in vain.
    Constrained,
    /// A background worker that talks to the database alone.
    Worker,
    /// Functions that come in bursts and freeze in between: nothing kept warm, few commands at once.
    Serverless,
}

impl Profile {
    /// Every profile.
    pub const ALL: &[Self] = &[
        Self::Default,
        Self::Development,
        Self::Low,
        Self::Medium,
        Self::High,
        Self::Production,
        Self::HighAvailability,
        Self::Constrained,
        Self::Worker,
        Self::Serverless,
    ];

    /// Name in the file and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Development => "development",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Production => "production",
            Self::HighAvailability => "high-availability",
            Self::Constrained => "constrained",
            Self::Worker => "worker",
            Self::Serverless => "serverless",
        }
    }

    /// What the profile says about `limit`, in the unit of that limit.
    pub fn value(self, limit: &Limit) -> Option<u64> {
        self.values().iter().find(|(ours, _)| ours.key == limit.key).map(|&(_, value)| value)
    }

    fn values(self) -> &'static [(Limit, u64)] {
        use limits::{MAX_IDLE_TIME as IDLE, MAX_POOL_SIZE as MAX, MIN_POOL_SIZE as MIN, WAIT_QUEUE_TIMEOUT as WAIT};
        match self {
            Self::Default => &[(MAX, 10), (MIN, 2), (IDLE, 30_000), (WAIT, 5_000)],
            Self::Development => &[(MAX, 10), (MIN, 2), (IDLE, 60_000), (WAIT, 5_000)],
            Self::Low => &[(MAX, 20), (MIN, 2)],
            Self::Medium => &[(MAX, 50), (MIN, 10)],
            Self::High => &[(MAX, 200), (MIN, 50)],
            Self::Production => &[(MAX, 200), (MIN, 50), (IDLE, 45_000), (WAIT, 5_000)],
            Self::HighAvailability => &[(MAX, 300), (MIN, 100), (limits::CONNECT_TIMEOUT, 10_000)],
            Self::Constrained => &[(MAX, 20), (MIN, 5), (IDLE, 30_000), (WAIT, 3_000)],
            Self::Worker => &[(MAX, 5), (MIN, 1)],
            Self::Serverless => {
                &[(MAX, 5), (MIN, 0), (WAIT, 10_000), (limits::MAX_IN_FLIGHT, 3), (limits::COMMAND_TIMEOUT, 6_000)]
            }
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is no [`Profile`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found `{0}`, expected one of {names}", names = Profile::ALL.iter().map(|p| p.name()).collect::<Vec<_>>().join(", "))]
pub struct UnknownProfile(String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|profile| profile.name() == text).ok_or_else(|| UnknownProfile(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_reads_as_it_prints_and_stays_within_the_limits() {
        for &profile in Profile::ALL {
            assert_eq!(profile.name().parse(), Ok(profile));
            for (limit, value) in profile.values() {
                assert!(limit.accepts(*value), "{profile}: {} = {value}", limit.key);
            }
            assert!(profile.value(&limits::MIN_POOL_SIZE) <= profile.value(&limits::MAX_POOL_SIZE), "{profile}");
        }
    }

    #[test]
    fn the_default_profile_says_what_the_defaults_say() {
        for (limit, value) in Profile::Default.values() {
            assert_eq!(limit.default, *value, "{}", limit.key);
        }
    }

    #[test]
    fn an_unknown_profile_is_told_the_known_ones() {
        let error = "huge".parse::<Profile>().unwrap_err().to_string();
        assert!(error.contains("`huge`") && error.contains("constrained, worker, serverless"), "{error}");
    }
}
