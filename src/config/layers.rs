//! The value of a limit where several sources name one: connection string, file, profile, default. No I/O.

use std::time::Duration;

use super::Profile;
use super::limits::Limit;
use super::reader::{Found, Values};

/// The sources of limits, highest first.
pub(super) struct Layers<'a> {
    pub(super) uri: &'a Values,
    pub(super) file: &'a Values,
    pub(super) profile: Profile,
}

impl<'a> Layers<'a> {
    /// What somebody asked for in so many words.
    pub(super) fn asked(&self, limit: &Limit) -> Option<&'a Found<Option<u64>>> {
        self.uri.get(limit.key).or_else(|| self.file.get(limit.key))
    }

    /// False if the value asked for was refused: then nothing else is to be blamed on it.
    pub(super) fn is_sound(&self, limit: &Limit) -> bool {
        self.asked(limit).is_none_or(|found| found.value.is_some())
    }

    pub(super) fn value(&self, limit: &Limit) -> u64 {
        let asked = self.asked(limit).and_then(|found| found.value);
        asked.or_else(|| self.profile.value(limit)).unwrap_or(limit.default)
    }

    /// Who says so.
    pub(super) fn origin(&self, limit: &Limit) -> String {
        if let Some(option) = self.uri.get(limit.key) {
            return format!("{} of the connection string", option.key);
        }
        match self.file.get(limit.key) {
            Some(found) => found.place.clone(),
            None if self.profile != Profile::Default && self.profile.value(limit).is_some() => {
                format!("profile {}", self.profile)
            }
            None => "default".to_owned(),
        }
    }

    pub(super) fn count(&self, limit: &Limit) -> u32 {
        saturating_u32(self.value(limit))
    }

    pub(super) fn count_or_off(&self, limit: &Limit) -> Option<u32> {
        Some(self.count(limit)).filter(|&count| count > 0)
    }

    pub(super) fn size(&self, limit: &Limit) -> usize {
        saturating_usize(self.value(limit))
    }

    pub(super) fn duration(&self, limit: &Limit) -> Duration {
        ms(self.value(limit))
    }

    pub(super) fn duration_or_off(&self, limit: &Limit) -> Option<Duration> {
        Some(self.duration(limit)).filter(|time| !time.is_zero())
    }
}

pub(super) const fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

pub(super) fn saturating_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

pub(super) fn saturating_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
