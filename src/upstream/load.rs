//! How busy a cluster is, in words and in time: for those who are refused.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::in_use::Use;
use super::pool::lock;
use crate::telemetry::labels::{CommandLabel, Label as _};

/// It is looked at no more often than this: a flood is refused with the same words, and a refusal is to be cheap.
const FRESH: Duration = Duration::from_millis(100);

/// So many commands are named, those first that have most connections.
const NAMED: usize = 3;

/// How busy a cluster was a moment ago.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Load {
    /// How many connections there are, and what has them.
    pub holders: String,
    /// How long those who wait now will take, at the pace of late; `None` while nothing is known of that.
    pub drains_in: Option<Duration>,
}

/// The last look.
#[derive(Debug, Default)]
pub(super) struct LastLoad(Mutex<Option<(Instant, Arc<Load>)>>);

impl Cluster {
    /// How busy it is, a tenth of a second ago at most.
    pub fn load(&self, now: Instant) -> Arc<Load> {
        let mut last = lock(&self.last_load.0);
        if let Some((at, load)) = &*last
            && now.duration_since(*at) < FRESH
        {
            return load.clone();
        }
        let load = Arc::new(self.look(now));
        *last = Some((now, load.clone()));
        load
    }

    fn look(&self, now: Instant) -> Load {
        let (mut in_use, mut most, mut uses, mut drains_in) = (0, 0, Vec::new(), None);
        for server in self.servers() {
            let pool = server.pool.snapshot();
            in_use += pool.counts.in_use;
            most += pool.most_in_use;
            uses.extend(server.pool.uses(now));
            drains_in = drains_in.max(pool.drains_in);
        }
        // Nobody waits longer than that.
        let drains_in = drains_in.map(|drains_in: Duration| drains_in.min(self.config().wait_queue_timeout));
        let most = most.min(self.config().max_upstream_connections.unwrap_or(u32::MAX));
        Load { holders: holders(in_use, most, &uses), drains_in }
    }
}

fn holders(in_use: u32, most: u32, uses: &[Use]) -> String {
    let mut groups: Vec<(CommandLabel, usize, Duration)> = Vec::new();
    for (command, age) in uses.iter().filter_map(|it| it.work.command.map(|command| (command, it.age))) {
        match groups.iter_mut().find(|(other, ..)| *other == command) {
            Some((_, count, oldest)) => (*count, *oldest) = (*count + 1, (*oldest).max(age)),
            None => groups.push((command, 1, age)),
        }
    }
    groups.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    let mut text = format!("{in_use} of at most {most} upstream connections are in use");
    for (index, (command, count, oldest)) in groups.iter().take(NAMED).enumerate() {
        let (separator, command) = (if index == 0 { ", by" } else { "," }, command.as_str());
        // A string takes whatever is written to it.
        write!(text, "{separator} {count} {command} (for up to {} ms)", oldest.as_millis()).unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::ApplicationId;
    use crate::upstream::in_use::Work;

    #[test]
    fn the_words_name_what_has_most_connections() {
        let of = |command, age| {
            let work = Work::command(command, ApplicationId::UNNAMED);
            Use { work, age: Duration::from_millis(age) }
        };
        assert_eq!(holders(0, 10, &[]), "0 of at most 10 upstream connections are in use");
        let uses = [
            of(CommandLabel::Update, 7),
            of(CommandLabel::Find, 20),
            of(CommandLabel::Find, 1_200),
            Use { work: Work::OWN, age: Duration::from_secs(9) },
            of(CommandLabel::Count, 1),
            of(CommandLabel::Distinct, 1),
        ];
        assert_eq!(
            holders(10, 10, &uses),
            "10 of at most 10 upstream connections are in use, by 2 find (for up to 1200 ms), 1 update (for up to 7 ms), \
             1 count (for up to 1 ms)"
        );
    }
}
