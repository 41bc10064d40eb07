//! What looks stuck or leaked on a server: transactions and commands that take long, cursors that nobody reads, pins that are
//! older than any server would keep them, and connections in use that no command accounts for.
//!
//! Each suspicion is told once and not again before it has gone: once per episode, not once per look.

use std::time::Duration;

use super::long_held::Look;
use crate::routing::pins::Group;
use crate::telemetry::labels::CommandLabel;
use crate::upstream::in_use::Use;

/// By then a server ends a transaction, as it is set by default (`transactionLifetimeLimitSeconds`).
const SERVERS_END_TRANSACTIONS: Duration = Duration::from_secs(60);

/// Something that looks stuck or leaked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Transactions that have been open for long.
    OpenTransactions(Group),
    /// Cursors that have not been asked for long, and do not wait for data.
    IdleCursors(Group),
    /// Cursors that should have been forgotten: a fault of ours.
    StuckCursors(Group),
    /// Connections that one command has had for long, and the oldest of them.
    LongCommands(Group, CommandLabel),
    /// Connections in use that no command, errand or ping accounts for: a fault of ours.
    Unaccounted(Group),
}

impl Suspicion {
    /// In a few words, the same each time.
    pub fn what(&self) -> &'static str {
        match self {
            Self::OpenTransactions(_) => "transactions are open for long",
            Self::IdleCursors(_) => "cursors are open for long and not read",
            Self::StuckCursors(_) => "cursors are remembered for longer than servers keep them",
            Self::LongCommands(..) => "connections are in use for long by one command",
            Self::Unaccounted(_) => "connections are in use and no command uses them",
        }
    }

    /// How many, and since when.
    pub fn group(&self) -> Group {
        match self {
            Self::OpenTransactions(group)
            | Self::IdleCursors(group)
            | Self::StuckCursors(group)
            | Self::LongCommands(group, _)
            | Self::Unaccounted(group) => *group,
        }
    }

    /// True for what looks like a leak, or like a fault that nobody ends: worth to wake somebody. What merely takes long may
    /// be meant to.
    pub fn is_alarming(&self) -> bool {
        match self {
            Self::OpenTransactions(group) => group.oldest >= SERVERS_END_TRANSACTIONS,
            Self::StuckCursors(_) | Self::Unaccounted(_) => true,
            Self::IdleCursors(_) | Self::LongCommands(..) => false,
        }
    }

    /// Which command, where it is about one.
    pub fn command(&self) -> Option<CommandLabel> {
        match self {
            Self::LongCommands(_, command) => Some(*command),
            Self::OpenTransactions(_) | Self::IdleCursors(_) | Self::StuckCursors(_) | Self::Unaccounted(_) => None,
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
        let own = self.uses.iter().filter(|it| it.work.command.is_none()).count();
        let own = u32::try_from(own).unwrap_or(u32::MAX);
        self.in_use.saturating_sub(self.operations.saturating_add(own))
    }
}

/// What one look alone can tell.
pub fn at_a_look(look: &Look) -> Vec<Suspicion> {
    let mut suspicions = Vec::new();
    let groups = [
        (look.held.transactions, Suspicion::OpenTransactions as fn(Group) -> Suspicion),
        (look.held.idle_cursors, Suspicion::IdleCursors),
        (look.overlooked, Suspicion::StuckCursors),
    ];
    suspicions.extend(groups.into_iter().filter(|(group, _)| group.count > 0).map(|(group, kind)| kind(group)));
    if let Some((command, longest)) = look.long_commands().max_by_key(|(_, it)| it.age) {
        let group = Group { count: look.long_commands().count(), oldest: longest.age };
        suspicions.push(Suspicion::LongCommands(group, command));
    }
    suspicions
}

impl LastLook {
    /// Takes down this look, `interval` after the last one. Returns what is suspicious and was not told yet, or not as an
    /// alarm.
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
        let is_new = |it: &Suspicion| {
            let same = |told: &&Suspicion| std::mem::discriminant(*told) == std::mem::discriminant(it);
            !told.iter().find(same).is_some_and(|told| told.is_alarming() || !it.is_alarming())
        };
        suspicions.retain(is_new);
        suspicions
    }
}

#[cfg(test)]
mod tests {
    use super::super::long_held::tests::look;
    use super::*;
    use crate::telemetry::ApplicationId;
    use crate::upstream::in_use::Work;

    const LOOK: Duration = Duration::from_secs(45);

    fn group(count: usize, seconds: u64) -> Group {
        Group { count, oldest: Duration::from_secs(seconds) }
    }

    fn command(command: CommandLabel, age: Duration) -> Use {
        Use { work: Work::command(command, ApplicationId::UNNAMED), age }
    }

    const AT_REST: Usage<'_> = Usage { in_use: 0, operations: 0, uses: &[] };

    #[test]
    fn each_kind_is_found_and_a_server_that_is_well_is_not_suspected() {
        let limit = look(&[]).limit;
        let short = command(CommandLabel::Find, limit - Duration::from_millis(1));
        let waits = Use { work: Work { waits: true, ..short.work }, age: 2 * limit };
        let ping = Use { work: Work::OWN, age: 2 * limit };
        assert_eq!(at_a_look(&look(&[short, waits, ping])), [], "what waits and what pings have limits of their own");
        let mut bad =
            look(&[short, command(CommandLabel::Aggregate, limit), command(CommandLabel::CreateIndexes, 3 * limit)]);
        bad.held.cursors = group(9, 800);
        assert_eq!(at_a_look(&bad).len(), 1, "that cursors are open says nothing");
        (bad.overlooked, bad.held.idle_cursors) = (group(3, 700), group(4, 44));
        bad.held.transactions = group(2, 95);
        let expected = [
            Suspicion::OpenTransactions(group(2, 95)),
            Suspicion::IdleCursors(group(4, 44)),
            Suspicion::StuckCursors(group(3, 700)),
            Suspicion::LongCommands(Group { count: 2, oldest: 3 * limit }, CommandLabel::CreateIndexes),
        ];
        assert_eq!(at_a_look(&bad), expected);
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
    fn only_what_looks_like_a_leak_is_alarming_and_is_told_when_it_becomes_so() {
        let long = Suspicion::LongCommands(group(9, 7_200), CommandLabel::CreateIndexes);
        let calm = [long, Suspicion::IdleCursors(group(9, 600)), Suspicion::OpenTransactions(group(9, 59))];
        assert!(!calm.iter().any(Suspicion::is_alarming));
        let open = |seconds| vec![Suspicion::OpenTransactions(group(1, seconds))];
        let alarming = [Suspicion::StuckCursors(group(1, 700)), Suspicion::Unaccounted(group(1, 45)), open(60)[0]];
        assert!(alarming.iter().all(Suspicion::is_alarming));
        let mut last = LastLook::default();
        assert_eq!(last.next(open(40), AT_REST, LOOK), open(40));
        assert_eq!(last.next(open(85), AT_REST, LOOK), open(85), "it is another matter now");
        assert_eq!(last.next(open(130), AT_REST, LOOK), []);
    }

    #[test]
    fn connections_that_nobody_accounts_for_are_told_after_two_looks() {
        let mut last = LastLook::default();
        let leaks = |in_use| Usage { in_use, operations: 1, uses: &[Use { work: Work::OWN, age: Duration::ZERO }] };
        let mut look = |in_use| last.next(Vec::new(), leaks(in_use), LOOK);
        assert_eq!(look(2), [], "one command, one ping");
        assert_eq!(look(4), []);
        assert_eq!(look(3), [Suspicion::Unaccounted(group(1, 45))]);
        assert_eq!(look(3), [], "told");
        assert_eq!(look(2), []);
        assert_eq!((look(3), look(2), look(3)), (vec![], vec![], vec![]), "never two looks in a row");
    }
}
