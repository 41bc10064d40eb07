//! What looks stuck or leaked on a server: pins that are older than any server would keep them, connections that one
//! command has had for very long, and connections in use that no command accounts for.
//!
//! Each suspicion is told once and not again before it has gone: once per episode, not once per look.

use std::time::Duration;

use crate::config::limits::LONG_COMMAND;
use crate::routing::pins::{Group, Overdue};
use crate::telemetry::labels::CommandLabel;
use crate::upstream::in_use::Use;

/// Something that looks stuck or leaked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Transactions that are open for longer than a server keeps them by default.
    OpenTransactions(Group),
    /// Cursors that should have been forgotten: a fault of ours.
    StuckCursors(Group),
    /// Connections that one command has had for very long, and the oldest of them.
    LongCommands(Group, CommandLabel),
    /// Connections in use that no command, errand or ping accounts for: a fault of ours.
    Unaccounted(Group),
}

impl Suspicion {
    /// In a few words, the same each time.
    pub fn what(&self) -> &'static str {
        match self {
            Self::OpenTransactions(_) => "transactions are open for longer than servers keep them",
            Self::StuckCursors(_) => "cursors are remembered for longer than servers keep them",
            Self::LongCommands(..) => "connections are in use for long by one command",
            Self::Unaccounted(_) => "connections are in use and no command uses them",
        }
    }

    /// How many, and since when.
    pub fn group(&self) -> Group {
        match self {
            Self::OpenTransactions(group)
            | Self::StuckCursors(group)
            | Self::LongCommands(group, _)
            | Self::Unaccounted(group) => *group,
        }
    }

    /// Which command, where it is about one.
    pub fn command(&self) -> Option<CommandLabel> {
        match self {
            Self::LongCommands(_, command) => Some(*command),
            Self::OpenTransactions(_) | Self::StuckCursors(_) | Self::Unaccounted(_) => None,
        }
    }
}

/// What was found on one server at the last look.
#[derive(Debug, Clone, Default)]
pub struct LastLook {
    unaccounted_since: Option<Duration>,
    pub(super) told: Vec<Suspicion>,
}

/// How a server's connections are in use at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Usage<'a> {
    /// In use, by the pool's count.
    pub in_use: u32,
    /// Commands and errands that are counted on the server.
    pub operations: u32,
    /// As far as it is known what for.
    pub uses: &'a [Use],
}

impl Usage<'_> {
    fn unaccounted(&self) -> u32 {
        let own = self.uses.iter().filter(|it| it.command.is_none()).count();
        let own = u32::try_from(own).unwrap_or(u32::MAX);
        self.in_use.saturating_sub(self.operations.saturating_add(own))
    }
}

/// What one look alone can tell.
pub fn at_a_look(overdue: &Overdue, uses: &[Use]) -> Vec<Suspicion> {
    let mut suspicions = Vec::new();
    if overdue.transactions.count > 0 {
        suspicions.push(Suspicion::OpenTransactions(overdue.transactions));
    }
    if overdue.cursors.count > 0 {
        suspicions.push(Suspicion::StuckCursors(overdue.cursors));
    }
    let long = || uses.iter().filter_map(|it| it.command.map(|command| (it.age, command)));
    let long = || long().filter(|(age, _)| *age >= LONG_COMMAND);
    if let Some((oldest, command)) = long().max_by_key(|(age, _)| *age) {
        suspicions.push(Suspicion::LongCommands(Group { count: long().count(), oldest }, command));
    }
    suspicions
}

impl LastLook {
    /// Takes down this look, `interval` after the last one. Returns what is suspicious and was not told yet.
    pub fn next(&mut self, mut suspicions: Vec<Suspicion>, usage: Usage<'_>, interval: Duration) -> Vec<Suspicion> {
        let unaccounted = usage.unaccounted();
        // A single look may come between two steps of a hand-over.
        match (unaccounted, self.unaccounted_since) {
            (0, _) => self.unaccounted_since = None,
            (_, None) => self.unaccounted_since = Some(Duration::ZERO),
            (_, Some(before)) => {
                let oldest = before + interval;
                self.unaccounted_since = Some(oldest);
                let count = usize::try_from(unaccounted).unwrap_or(usize::MAX);
                suspicions.push(Suspicion::Unaccounted(Group { count, oldest }));
            }
        }
        let told = std::mem::replace(&mut self.told, suspicions.clone());
        let is_new =
            |it: &Suspicion| !told.iter().any(|told| std::mem::discriminant(told) == std::mem::discriminant(it));
        suspicions.retain(is_new);
        suspicions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(45);

    fn group(count: usize, seconds: u64) -> Group {
        Group { count, oldest: Duration::from_secs(seconds) }
    }

    fn command(command: CommandLabel, age: Duration) -> Use {
        Use { command: Some(command), age }
    }

    const AT_REST: Usage<'_> = Usage { in_use: 0, operations: 0, uses: &[] };

    #[test]
    fn each_kind_is_found_and_a_server_that_is_well_is_not_suspected() {
        let short = command(CommandLabel::Find, LONG_COMMAND - Duration::from_millis(1));
        assert_eq!(at_a_look(&Overdue::default(), &[short]), []);
        let ping = Use { command: None, age: 2 * LONG_COMMAND };
        assert_eq!(at_a_look(&Overdue::default(), &[ping]), [], "pings have limits of their own");
        let overdue = Overdue { cursors: group(3, 700), transactions: group(2, 95) };
        let uses = [
            short,
            command(CommandLabel::Aggregate, LONG_COMMAND),
            command(CommandLabel::CreateIndexes, 3 * LONG_COMMAND),
        ];
        let expected = [
            Suspicion::OpenTransactions(group(2, 95)),
            Suspicion::StuckCursors(group(3, 700)),
            Suspicion::LongCommands(Group { count: 2, oldest: 3 * LONG_COMMAND }, CommandLabel::CreateIndexes),
        ];
        assert_eq!(at_a_look(&overdue, &uses), expected);
    }

    #[test]
    fn an_episode_is_told_once() {
        let mut last = LastLook::default();
        let open = |count| vec![Suspicion::OpenTransactions(group(count, 100))];
        assert_eq!(last.next(open(1), AT_REST, LOOK), open(1));
        assert_eq!(last.next(open(5), AT_REST, LOOK), []);
        let both = vec![open(5)[0], Suspicion::StuckCursors(group(1, 900))];
        assert_eq!(last.next(both.clone(), AT_REST, LOOK), both[1..], "another kind is news");
        assert_eq!(last.next(Vec::new(), AT_REST, LOOK), []);
        assert_eq!(last.next(open(1), AT_REST, LOOK), open(1), "a new episode");
    }

    #[test]
    fn connections_that_nobody_accounts_for_are_told_after_two_looks() {
        let mut last = LastLook::default();
        let leaks = |in_use| Usage { in_use, operations: 1, uses: &[Use { command: None, age: Duration::ZERO }] };
        let mut look = |in_use| last.next(Vec::new(), leaks(in_use), LOOK);
        assert_eq!(look(2), [], "one command, one ping");
        assert_eq!(look(4), []);
        assert_eq!(look(3), [Suspicion::Unaccounted(group(1, 45))]);
        assert_eq!(look(3), [], "told");
        assert_eq!(look(2), []);
        assert_eq!((look(3), look(2), look(3)), (vec![], vec![], vec![]), "never two looks in a row");
    }
}
