//! What has been held for long on a server, as a list for people: commands in flight, open transactions and cursors, whose
//! they are and what keeps them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::limits::MAX_LONG_HELD_SHOWN;
use crate::routing::pins::{Group, HeldPins, Holds};
use crate::telemetry::ApplicationId;
use crate::telemetry::labels::{CommandLabel, Label as _, LongHeldKind};
use crate::upstream::in_use::{Use, Work};
use crate::upstream::pool::lock;
use crate::upstream::{Cluster, Server};

/// What `/stats` tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongHeldStats {
    /// All of them.
    pub count: usize,
    /// Commands and transactions first, which hold connections and locks; among them the oldest. Then cursors.
    pub items: Vec<LongHeldItem>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LongHeldItem {
    /// `command`, `cursor` or `transaction`.
    pub what: String,
    /// Which command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The application of its client, if that tells one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// What keeps it, in words.
    pub reason: String,
    /// Since it began.
    pub age_ms: u64,
    /// Since something was last done with it; absent while something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
}

/// One look at what a server's connections and pins are held for.
pub struct Look {
    /// Connections in use of which it is known what for.
    pub uses: Vec<Use>,
    /// Pins that have been held for long.
    pub held: HeldPins,
    /// Cursors that should have been forgotten.
    pub overlooked: Group,
    /// What is long.
    pub limit: Duration,
}

impl Look {
    /// At a server as it is now.
    pub fn at(cluster: &Cluster, server: &Server, now: Instant) -> Self {
        let limit = cluster.config().long_held;
        let mut uses = server.pool.uses(now);
        uses.extend(server.pool.own_uses(now));
        let pins = lock(&cluster.pins);
        let held = pins.long_held_on(&server.address, limit, MAX_LONG_HELD_SHOWN, now);
        Self { uses, held, overlooked: pins.overlooked_on(&server.address, now), limit }
    }

    /// Commands that have had a connection for long. Those that wait for data are meant to; their cursors are listed.
    pub fn long_commands(&self) -> impl Iterator<Item = (CommandLabel, Use)> {
        let long = self.uses.iter().filter(|it| it.age >= self.limit && !it.work.waits);
        long.filter_map(|it| it.work.command.map(|command| (command, *it)))
    }

    /// How many there are of each kind.
    pub fn count(&self, kind: LongHeldKind) -> usize {
        match kind {
            LongHeldKind::Command => self.long_commands().count(),
            LongHeldKind::Cursor => self.held.cursors.count,
            LongHeldKind::Transaction => self.held.transactions.count,
        }
    }

    /// As it is shown; `name` tells the application behind a number.
    pub fn stats(&self, name: impl Fn(ApplicationId) -> Option<String>) -> LongHeldStats {
        let commands = self.long_commands().map(|(command, it)| LongHeldItem {
            what: LongHeldKind::Command.as_str().to_owned(),
            command: Some(command.as_str().to_owned()),
            application: name(it.work.application),
            reason: running(command, it.work).to_owned(),
            age_ms: milliseconds(it.age),
            idle_ms: None,
        });
        let transactions = self.held.oldest_transactions.iter().map(|it| {
            let (reason, idle) = match it.holds {
                Holds::Working => ("a statement of the transaction is on its way", None),
                Holds::Idle(idle) => ("the transaction is open and idle, and holds its locks", Some(idle)),
                Holds::Abandoned(idle) => {
                    ("the transaction is open and its clients have gone: it will be aborted", Some(idle))
                }
            };
            LongHeldItem {
                what: LongHeldKind::Transaction.as_str().to_owned(),
                command: None,
                application: it.application.as_ref().and_then(|it| it.name()).map(str::to_owned),
                reason: reason.to_owned(),
                age_ms: milliseconds(it.age),
                idle_ms: idle.map(milliseconds),
            }
        });
        let cursors = self.held.oldest_cursors.iter().map(|it| {
            let reason = match it.awaits_data {
                true => "the cursor waits for data, as it is meant to",
                false if it.idle >= self.limit => "the cursor is open and not asked for more",
                false => "the cursor is being read",
            };
            LongHeldItem {
                what: LongHeldKind::Cursor.as_str().to_owned(),
                command: None,
                application: it.application.name().map(str::to_owned),
                reason: reason.to_owned(),
                age_ms: milliseconds(it.age),
                idle_ms: Some(milliseconds(it.idle)),
            }
        });
        let mut items: Vec<_> = commands.chain(transactions).collect();
        items.sort_by_key(|item| std::cmp::Reverse(item.age_ms));
        items.extend(cursors);
        items.truncate(MAX_LONG_HELD_SHOWN);
        LongHeldStats { count: LongHeldKind::ALL.iter().map(|kind| self.count(*kind)).sum(), items }
    }
}

fn running(command: CommandLabel, work: Work) -> &'static str {
    match command {
        _ if work.application == ApplicationId::OWN => "a command of the proxy's own runs on the server",
        CommandLabel::CreateIndexes => "an index is being built",
        CommandLabel::CommitTransaction => "the commit waits for its write concern",
        _ => "the command runs on the server",
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::routing::pins::{HeldCursor, HeldTransaction};
    use crate::telemetry::Applications;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Of a server without pins.
    pub(in crate::admin) fn look(uses: &[Use]) -> Look {
        Look { uses: uses.to_vec(), held: HeldPins::default(), overlooked: Group::default(), limit: LIMIT }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_held_for_long_reads_as_documented() {
        let all = Applications::default();
        let shop = all.named("shop");
        let uses = [
            (Work::command(CommandLabel::Aggregate, shop.id()), 31),
            (Work::command(CommandLabel::CreateIndexes, ApplicationId::UNNAMED), 300),
            (Work::command(CommandLabel::KillCursors, ApplicationId::OWN), 40),
            (Work::command(CommandLabel::Find, shop.id()), 29),
            (Work { waits: true, ..Work::command(CommandLabel::GetMore, shop.id()) }, 500),
            (Work::OWN, 600),
        ];
        let mut look = look(&uses.map(|(work, age)| Use { work, age: seconds(age) }));
        look.held.transactions = Group { count: 1, oldest: seconds(50) };
        let (application, holds) = (Some(shop.clone()), Holds::Idle(seconds(45)));
        look.held.oldest_transactions = vec![HeldTransaction { age: seconds(50), holds, application }];
        look.held.cursors = Group { count: 2, oldest: seconds(900) };
        look.held.oldest_cursors = vec![
            HeldCursor { age: seconds(900), idle: seconds(1), awaits_data: true, application: shop.clone() },
            HeldCursor { age: seconds(60), idle: seconds(33), awaits_data: false, application: all.unnamed() },
        ];
        let stats = look.stats(|id| all.name(id).map(String::from));
        let expected = json!({"count": 6, "items": [
            {"what": "command", "command": "createIndexes", "reason": "an index is being built", "ageMs": 300_000},
            {"what": "transaction", "application": "shop", "ageMs": 50_000, "idleMs": 45_000,
             "reason": "the transaction is open and idle, and holds its locks"},
            {"what": "command", "command": "killCursors", "ageMs": 40_000,
             "reason": "a command of the proxy's own runs on the server"},
            {"what": "command", "command": "aggregate", "application": "shop", "ageMs": 31_000,
             "reason": "the command runs on the server"},
            {"what": "cursor", "application": "shop", "ageMs": 900_000, "idleMs": 1_000,
             "reason": "the cursor waits for data, as it is meant to"},
            {"what": "cursor", "ageMs": 60_000, "idleMs": 33_000, "reason": "the cursor is open and not asked for more"},
        ]});
        assert_eq!(serde_json::to_value(&stats).unwrap(), expected);
        assert_eq!(serde_json::from_value::<LongHeldStats>(expected).unwrap(), stats);
    }

    #[test]
    fn the_list_is_bounded_and_the_number_is_not() {
        let work = Work::command(CommandLabel::Find, ApplicationId::UNNAMED);
        let uses: Vec<_> = (0..50).map(|number| Use { work, age: LIMIT + seconds(number) }).collect();
        let stats = look(&uses).stats(|_| None);
        assert_eq!((stats.count, stats.items.len()), (50, MAX_LONG_HELD_SHOWN));
        assert_eq!((stats.items[0].age_ms, stats.items[19].age_ms), (79_000, 60_000));
    }
}
