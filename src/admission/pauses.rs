//! What is paused: all of a cluster, or some of its databases. New commands wait until it goes on; what is open goes on as ever.
//!
//! Each pause may end by itself. Nothing here waits: whoever pauses sees to [`Pauses::expire`].

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::config::limits::MAX_PAUSED_DATABASES;

/// What is paused, and until when; `None` is until somebody has it go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses {
    whole: Option<Option<Instant>>,
    databases: BTreeMap<Box<str>, Option<Instant>>,
}

/// More databases are paused than may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_PAUSED_DATABASES} databases are paused, and no more may be: pause the whole cluster")]
pub struct TooManyPauses;

impl Pauses {
    /// Pauses a database, or all of them. A pause that was there before ends when this one does.
    ///
    /// # Errors
    /// [`TooManyPauses`]
    pub fn pause(&mut self, database: Option<&str>, until: Option<Instant>) -> Result<(), TooManyPauses> {
        let Some(database) = database else {
            self.whole = Some(until);
            return Ok(());
        };
        if self.databases.len() >= MAX_PAUSED_DATABASES && !self.databases.contains_key(database) {
            return Err(TooManyPauses);
        }
        self.databases.insert(database.into(), until);
        Ok(())
    }

    /// Ends the pause of a database, or all pauses.
    pub fn resume(&mut self, database: Option<&str>) {
        match database {
            Some(database) => drop(self.databases.remove(database)),
            None => *self = Self::default(),
        }
    }

    /// Ends those whose time is over.
    pub fn expire(&mut self, now: Instant) {
        let over = |until: &Option<Instant>| until.is_some_and(|until| until <= now);
        if self.whole.as_ref().is_some_and(over) {
            self.whole = None;
        }
        self.databases.retain(|_, until| !over(until));
    }

    /// When the next of them ends by itself.
    pub fn next_end(&self) -> Option<Instant> {
        self.all().filter_map(|(_, until)| until).min()
    }

    /// True where nothing is paused.
    pub fn is_empty(&self) -> bool {
        self.whole.is_none() && self.databases.is_empty()
    }

    /// True where all of the cluster is paused.
    pub fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// True where commands that use `database` wait.
    pub fn holds(&self, database: &str) -> bool {
        self.whole.is_some() || self.databases.contains_key(database)
    }

    /// All of them: the database, or `None` for the whole cluster, and when it goes on by itself.
    pub fn all(&self) -> impl Iterator<Item = (Option<&str>, Option<Instant>)> {
        let whole = self.whole.iter().map(|until| (None, *until));
        whole.chain(self.databases.iter().map(|(database, until)| (Some(&**database), *until)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pause_holds_its_database_until_it_ends_or_is_ended() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        let soon = now + Duration::from_secs(1);
        pauses.pause(Some("shop"), Some(soon)).unwrap();
        pauses.pause(Some("mail"), None).unwrap();
        assert!(pauses.holds("shop") && pauses.holds("mail") && !pauses.holds("other") && !pauses.is_whole());
        assert_eq!(pauses.next_end(), Some(soon));
        pauses.expire(now);
        assert!(pauses.holds("shop"));
        pauses.expire(soon);
        assert!(!pauses.holds("shop") && pauses.holds("mail"));
        pauses.pause(None, Some(soon)).unwrap();
        assert!(pauses.holds("other"));
        assert_eq!(pauses.all().collect::<Vec<_>>(), [(None, Some(soon)), (Some("mail"), None)]);
        pauses.pause(None, None).unwrap();
        pauses.expire(soon);
        assert!(pauses.is_whole(), "the newer word counts");
        pauses.resume(Some("mail"));
        assert!(pauses.holds("mail"), "the whole is paused");
        pauses.resume(None);
        assert!(pauses.is_empty());
    }

    #[test]
    fn their_number_has_a_bound() {
        let mut pauses = Pauses::default();
        for number in 0..MAX_PAUSED_DATABASES {
            pauses.pause(Some(&number.to_string()), None).unwrap();
        }
        assert_eq!(pauses.pause(Some("more"), None), Err(TooManyPauses));
        assert_eq!(pauses.pause(Some("7"), None), Ok(()), "it is there already");
        assert_eq!(pauses.pause(None, None), Ok(()));
    }
}
