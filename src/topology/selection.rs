//! Server selection, as the specifications `server-selection` and `max-staleness` have it: suitable servers → staleness →
//! tag sets → latency window → two at random, of which the less busy one.
//!
//! It runs once per command, so it allocates nothing: every step is a filter over the few servers of a topology, and a step
//! that needs to know about all of them walks them once more. Waiting for a server is the caller's part.

use std::time::Duration;

use super::description::{ServerDescription, ServerKind, TopologyDescription, TopologyKind};
use crate::command::read_preference::{ReadPreference, ReadPreferenceMode};
use crate::config::Address;

/// What a command needs.
#[derive(Debug, Clone, Copy)]
pub enum Criteria<'a> {
    /// The primary, or any mongos, or the one server.
    Write,
    /// Whatever the client's read preference allows.
    Read(&'a ReadPreference),
    /// What [`Criteria::Write`] finds; a secondary while that is nothing and no server is about to be the primary.
    PrimaryElseSecondary,
}

static ANY_SECONDARY: ReadPreference =
    ReadPreference { mode: ReadPreferenceMode::Secondary, tag_sets: Vec::new(), max_staleness: None };

/// Everything that selection depends on besides the topology and the command.
#[derive(Clone, Copy)]
pub struct Selector<'a> {
    /// Servers that must not be chosen, because their breaker is open.
    pub refused: &'a dyn Fn(&Address) -> bool,
    /// Servers that should not be chosen, because this very command has just failed there.
    pub deprioritised: &'a dyn Fn(&Address) -> bool,
    /// How busy a server is; of two candidates the smaller number wins.
    pub in_flight: &'a dyn Fn(&Address) -> u32,
    /// How old a heartbeat may be; part of the estimate of a secondary's staleness.
    pub heartbeat_frequency: Duration,
    /// Servers this much slower than the fastest are still candidates.
    pub local_threshold: Duration,
    /// Random numbers, drawn only where there is a choice.
    pub random: &'a dyn Fn() -> (u64, u64),
}

/// Why no server was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SelectionFailure {
    /// Waiting does not help before the servers are upgraded; the description has the text.
    #[error("the servers' versions are not supported")]
    Incompatible,
    /// No server suits now: wait for a change of the topology.
    #[error("no suitable server")]
    NoSuitableServer,
    /// Servers would suit, but the breaker of each is open.
    #[error("all suitable servers are refused by their breakers")]
    AllRefused,
}

impl Selector<'_> {
    /// Chooses a server.
    ///
    /// # Errors
    /// When none suits; [`SelectionFailure`] says whether waiting or a breaker is the reason.
    pub fn select<'d>(
        &self,
        topology: &'d TopologyDescription,
        criteria: Criteria<'_>,
    ) -> Result<&'d ServerDescription, SelectionFailure> {
        if topology.compatibility_error.is_some() {
            return Err(SelectionFailure::Incompatible);
        }
        if matches!(criteria, Criteria::PrimaryElseSecondary) {
            let primary = self.select(topology, Criteria::Write);
            return match primary {
                Err(why) if !topology.is_primary_in_doubt() => {
                    self.select(topology, Criteria::Read(&ANY_SECONDARY)).map_err(|_| why)
                }
                found => found,
            };
        }
        let allowed = |address: &Address| !(self.refused)(address);
        let preferred = |address: &Address| allowed(address) && !(self.deprioritised)(address);
        if let Some(server) =
            self.choose(topology, criteria, &preferred).or_else(|| self.choose(topology, criteria, &allowed))
        {
            return Ok(server);
        }
        match self.choose(topology, criteria, &|_| true) {
            Some(_) => Err(SelectionFailure::AllRefused),
            None => Err(SelectionFailure::NoSuitableServer),
        }
    }

    fn choose<'d>(
        &self,
        topology: &'d TopologyDescription,
        criteria: Criteria<'_>,
        admitted: &dyn Fn(&Address) -> bool,
    ) -> Option<&'d ServerDescription> {
        let usable = || topology.servers.values().filter(|it| topology.is_usable(it) && admitted(&it.address));
        match (topology.kind, criteria) {
            (TopologyKind::Unknown, _) => None,
            // A read preference is the mongos' business, and of a single server there is no choice.
            (TopologyKind::Single | TopologyKind::Sharded, _) => self.among(usable()),
            (_, Criteria::Write | Criteria::PrimaryElseSecondary) => of_kind(usable(), ServerKind::RsPrimary).next(),
            (_, Criteria::Read(preference)) => {
                let primary = || of_kind(usable(), ServerKind::RsPrimary).next();
                let secondary = || self.matching(topology, preference, of_kind(usable(), ServerKind::RsSecondary));
                match preference.mode {
                    ReadPreferenceMode::Primary => primary(),
                    ReadPreferenceMode::PrimaryPreferred => primary().or_else(secondary),
                    ReadPreferenceMode::Secondary => secondary(),
                    ReadPreferenceMode::SecondaryPreferred => secondary().or_else(primary),
                    ReadPreferenceMode::Nearest => self.matching(topology, preference, usable()),
                }
            }
        }
    }

    /// Staleness, then tag sets, then the choice among what is left.
    fn matching<'d>(
        &self,
        topology: &TopologyDescription,
        preference: &ReadPreference,
        candidates: impl Iterator<Item = &'d ServerDescription> + Clone,
    ) -> Option<&'d ServerDescription> {
        let bound = preference.max_staleness.map(|limit| (limit, Freshest::of(topology)));
        let fresh = candidates.filter(|server| {
            bound.as_ref().is_none_or(|(limit, freshest)| {
                freshest.staleness(server, self.heartbeat_frequency).is_some_and(|staleness| staleness <= *limit)
            })
        });
        if preference.tag_sets.is_empty() {
            return self.among(fresh);
        }
        preference.tag_sets.iter().find_map(|tags| self.among(fresh.clone().filter(|server| has_tags(server, tags))))
    }

    /// Latency window, then two at random.
    fn among<'d>(
        &self,
        candidates: impl Iterator<Item = &'d ServerDescription> + Clone,
    ) -> Option<&'d ServerDescription> {
        let nearest = candidates.clone().filter_map(|server| server.round_trip_time).min().unwrap_or_default();
        let limit = nearest.saturating_add(self.local_threshold);
        // A server whose time is not measured yet is as good as any.
        let mut window = candidates.filter(|server| server.round_trip_time.is_none_or(|time| time <= limit));
        match window.clone().count() {
            0 => None,
            1 => window.next(),
            count => {
                let random = (self.random)();
                let first = pick(random.0, count);
                // One of the others: counted without the first, then stepping over it.
                let second = pick(random.1, count - 1);
                let second = if second < first { second } else { second + 1 };
                let (first, second) = (window.clone().nth(first)?, window.nth(second)?);
                let busier = (self.in_flight)(&first.address) > (self.in_flight)(&second.address);
                Some(if busier { second } else { first })
            }
        }
    }
}

/// What staleness is measured against.
enum Freshest<'d> {
    Primary(&'d ServerDescription),
    /// The newest write that any secondary has, ms since the epoch.
    Secondaries(Option<i64>),
}

impl<'d> Freshest<'d> {
    fn of(topology: &'d TopologyDescription) -> Self {
        topology.primary().map(Self::Primary).unwrap_or_else(|| {
            let secondaries = of_kind(topology.servers.values(), ServerKind::RsSecondary);
            Self::Secondaries(secondaries.filter_map(last_write_ms).max())
        })
    }

    /// How far a server may be behind; zero for the primary, `None` where it cannot be told.
    fn staleness(&self, server: &ServerDescription, heartbeat_frequency: Duration) -> Option<Duration> {
        let lag_ms = match self {
            _ if server.kind == ServerKind::RsPrimary => return Some(Duration::ZERO),
            Self::Primary(primary) => {
                // (S.lastUpdate - S.lastWriteDate) - (P.lastUpdate - P.lastWriteDate), in an order in which no clock
                // is compared with another.
                let written_later = last_write_ms(primary)?.saturating_sub(last_write_ms(server)?);
                let (seen, primary_seen) = (server.last_update?, primary.last_update?);
                let seen_later = ms(seen.saturating_duration_since(primary_seen));
                let seen_earlier = ms(primary_seen.saturating_duration_since(seen));
                written_later.saturating_add(seen_later).saturating_sub(seen_earlier)
            }
            Self::Secondaries(newest) => (*newest)?.saturating_sub(last_write_ms(server)?),
        };
        let staleness_ms = lag_ms.saturating_add(ms(heartbeat_frequency));
        // Clocks that jump can make it negative: then it is not stale.
        Some(Duration::from_millis(u64::try_from(staleness_ms).unwrap_or(0)))
    }
}

fn last_write_ms(server: &ServerDescription) -> Option<i64> {
    server.last_write.map(bson::DateTime::timestamp_millis)
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn of_kind<'d>(
    servers: impl Iterator<Item = &'d ServerDescription> + Clone,
    kind: ServerKind,
) -> impl Iterator<Item = &'d ServerDescription> + Clone {
    servers.filter(move |server| server.kind == kind)
}

fn has_tags(server: &ServerDescription, tags: &[(String, String)]) -> bool {
    tags.iter().all(|tag| server.tags.contains(tag))
}

/// An index below `count`, which is small: the bias of a remainder does not show.
fn pick(random: u64, count: usize) -> usize {
    usize::try_from(random % count as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use ReadPreferenceMode::*;
    use bson::DateTime;
    use tokio::time::Instant;

    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(10);

    fn address(port: u16) -> Address {
        Address::tcp("h", port)
    }

    fn server(port: u16, kind: ServerKind) -> ServerDescription {
        let round_trip_time = Some(Duration::from_millis(1));
        ServerDescription { kind, round_trip_time, ..ServerDescription::unknown(address(port)) }
    }

    fn topology(kind: TopologyKind, servers: impl IntoIterator<Item = ServerDescription>) -> TopologyDescription {
        let servers = servers.into_iter().map(|server| (server.address.clone(), server)).collect();
        TopologyDescription { kind, servers, ..Default::default() }
    }

    /// Port 1 primary, 2 and 3 secondaries, 4 arbiter, 5 hidden, 6 unknown.
    fn members(with_primary: bool) -> TopologyDescription {
        use ServerKind::*;
        let first = if with_primary { RsPrimary } else { Unknown };
        let kind = if with_primary { TopologyKind::ReplicaSetWithPrimary } else { TopologyKind::ReplicaSetNoPrimary };
        let kinds = [first, RsSecondary, RsSecondary, RsArbiter, RsOther, Unknown];
        topology(kind, (1..).zip(kinds).map(|(port, kind)| server(port, kind)))
    }

    /// All servers that can come out, over all random numbers that matter.
    fn outcomes(selector: &Selector<'_>, topology: &TopologyDescription, criteria: Criteria<'_>) -> Vec<u16> {
        let mut ports = std::collections::BTreeSet::new();
        for first in 0..12 {
            for second in 0..12 {
                if let Ok(server) = (Selector { random: &|| (first, second), ..*selector }).select(topology, criteria)
                    && let Address::Tcp { port, .. } = server.address
                {
                    ports.insert(port);
                }
            }
        }
        ports.into_iter().collect()
    }

    fn plain() -> Selector<'static> {
        Selector {
            refused: &|_| false,
            deprioritised: &|_| false,
            in_flight: &|_| 0,
            heartbeat_frequency: HEARTBEAT,
            local_threshold: Duration::from_millis(15),
            random: &|| (0, 0),
        }
    }

    #[test]
    fn each_mode_finds_its_servers_in_each_topology() {
        use ServerKind::{Mongos, RsOther, Standalone, Unknown};
        let topologies = [
            members(true),
            members(false),
            topology(TopologyKind::ReplicaSetWithPrimary, [server(1, ServerKind::RsPrimary)]),
            topology(TopologyKind::Sharded, [server(1, Mongos), server(2, Mongos), server(3, Unknown)]),
            topology(TopologyKind::Single, [server(1, Standalone)]),
            topology(TopologyKind::Single, [server(1, RsOther)]),
            topology(TopologyKind::Single, [server(1, Unknown)]),
            topology(TopologyKind::Unknown, [server(1, Unknown)]),
        ];
        type Row = (Option<ReadPreferenceMode>, [&'static [u16]; 8]);
        let rows: [Row; 6] = [
            (None, [&[1], &[], &[1], &[1, 2], &[1], &[1], &[], &[]]),
            (Some(Primary), [&[1], &[], &[1], &[1, 2], &[1], &[1], &[], &[]]),
            (Some(PrimaryPreferred), [&[1], &[2, 3], &[1], &[1, 2], &[1], &[1], &[], &[]]),
            (Some(Secondary), [&[2, 3], &[2, 3], &[], &[1, 2], &[1], &[1], &[], &[]]),
            (Some(SecondaryPreferred), [&[2, 3], &[2, 3], &[1], &[1, 2], &[1], &[1], &[], &[]]),
            (Some(Nearest), [&[1, 2, 3], &[2, 3], &[1], &[1, 2], &[1], &[1], &[], &[]]),
        ];
        for (mode, expected) in rows {
            let preference = mode.map(ReadPreference::new);
            let criteria = preference.as_ref().map_or(Criteria::Write, Criteria::Read);
            for (index, topology) in topologies.iter().enumerate() {
                assert_eq!(outcomes(&plain(), topology, criteria), expected[index], "{mode:?} in topology {index}");
            }
        }
    }

    #[test]
    fn the_first_tag_set_that_suits_anybody_decides() {
        let tags = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let mut topology = members(true);
        for (port, pairs) in [
            (1, [("dc", "a"), ("disk", "ssd")]),
            (2, [("dc", "a"), ("disk", "hdd")]),
            (3, [("dc", "b"), ("disk", "ssd")]),
        ] {
            topology.servers.get_mut(&address(port)).unwrap().tags = tags(&pairs);
        }
        let found = |mode, tag_sets: &[&[(&str, &str)]]| {
            let tag_sets = tag_sets.iter().map(|set| tags(set)).collect();
            let preference = ReadPreference { mode, tag_sets, max_staleness: None };
            outcomes(&plain(), &topology, Criteria::Read(&preference))
        };
        assert_eq!(found(Nearest, &[&[("dc", "a")]]), [1, 2]);
        assert_eq!(found(Secondary, &[&[("dc", "a")]]), [2]);
        assert_eq!(found(Nearest, &[&[("dc", "a"), ("disk", "ssd")]]), [1]);
        assert_eq!(found(Secondary, &[&[("dc", "z")], &[("dc", "b")], &[]]), [3]);
        assert_eq!(found(Secondary, &[&[("dc", "z")], &[]]), [2, 3]);
        assert_eq!(found(Secondary, &[&[("dc", "z")]]), [0_u16; 0]);
        // The primary is taken without regard to tags where the mode falls back to it.
        assert_eq!(found(SecondaryPreferred, &[&[("dc", "z")]]), [1]);
        assert_eq!(found(PrimaryPreferred, &[&[("dc", "z")]]), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn stale_secondaries_are_left_out() {
        let now = Instant::now();
        let with = |with_primary, writes: [i64; 3], seen_ago: [u64; 3]| {
            let mut topology = members(with_primary);
            for (port, (write, ago)) in (1..).zip(writes.into_iter().zip(seen_ago)) {
                let server = topology.servers.get_mut(&address(port)).unwrap();
                server.last_write = Some(DateTime::from_millis(1_000_000 + write));
                server.last_update = Some(now + Duration::from_millis(100_000 - ago));
            }
            topology
        };
        let found = |topology: &TopologyDescription, mode| {
            let max_staleness = Some(Duration::from_secs(90));
            let preference = ReadPreference { max_staleness, ..ReadPreference::new(mode) };
            outcomes(&plain(), topology, Criteria::Read(&preference))
        };
        // 10 s of the 90 s go to the heartbeat: 80 s behind is in, a millisecond more is out.
        let edge = with(true, [80_000, 0, -1], [0, 0, 0]);
        assert_eq!(found(&edge, Secondary), [2]);
        assert_eq!(found(&edge, Nearest), [1, 2]);
        // What a server wrote is compared as of when it was seen: an older look at it excuses an older write ...
        assert_eq!(found(&with(true, [85_000, 0, 0], [0, 5_000, 4_999]), Secondary), [2]);
        // ... and an older look at the primary makes it count more.
        assert_eq!(found(&with(true, [75_000, 0, 1], [5_001, 0, 0]), Secondary), [3]);
        // Without a primary the freshest secondary is the measure.
        assert_eq!(found(&with(false, [900_000, 0, 80_001], [0, 0, 0]), Secondary), [3]);
        assert_eq!(found(&with(false, [900_000, 0, 80_000], [0, 0, 0]), Secondary), [2, 3]);
        // Whoever tells nothing about its writes cannot be trusted to be fresh.
        let mut silent = with(true, [0, 0, 0], [0, 0, 0]);
        silent.servers.get_mut(&address(2)).unwrap().last_write = None;
        assert_eq!(found(&silent, Secondary), [3]);
        // Stale secondaries do not hide the primary from a mode that falls back to it.
        assert_eq!(found(&with(true, [900_000, 0, 0], [0, 0, 0]), SecondaryPreferred), [1]);
    }

    #[test]
    fn staleness_comes_before_tags_and_tags_before_latency() {
        let mut topology = members(false);
        let tag = ("dc".to_owned(), "a".to_owned());
        for (port, write, rtt) in [(2, 0, 1), (3, 200_000, 500)] {
            let server = topology.servers.get_mut(&address(port)).unwrap();
            server.last_write = Some(DateTime::from_millis(write));
            server.round_trip_time = Some(Duration::from_millis(rtt));
            server.tags = if port == 2 { vec![tag.clone()] } else { Vec::new() };
        }
        let mut preference = ReadPreference { tag_sets: vec![vec![tag], Vec::new()], ..ReadPreference::new(Secondary) };
        assert_eq!(outcomes(&plain(), &topology, Criteria::Read(&preference)), [2]);
        preference.max_staleness = Some(Duration::from_secs(90));
        assert_eq!(outcomes(&plain(), &topology, Criteria::Read(&preference)), [3]);
    }

    #[test]
    fn servers_far_slower_than_the_fastest_suitable_one_are_left_out() {
        let nearest = ReadPreference::new(Nearest);
        let mut topology = members(true);
        for (port, ms) in [(1, 100), (2, 115), (3, 116), (4, 1)] {
            topology.servers.get_mut(&address(port)).unwrap().round_trip_time = Some(Duration::from_millis(ms));
        }
        assert_eq!(outcomes(&plain(), &topology, Criteria::Read(&nearest)), [1, 2]);
        let narrow = Selector { local_threshold: Duration::ZERO, ..plain() };
        assert_eq!(outcomes(&narrow, &topology, Criteria::Read(&nearest)), [1]);
        topology.servers.get_mut(&address(3)).unwrap().round_trip_time = None;
        assert_eq!(outcomes(&plain(), &topology, Criteria::Read(&nearest)), [1, 2, 3]);
        assert_eq!(outcomes(&plain(), &topology, Criteria::Write), [1], "the primary, however far");
    }

    #[test]
    fn of_two_at_random_the_less_busy_one_is_taken() {
        let nearest = ReadPreference::new(Nearest);
        let load = |address: &Address| match address {
            Address::Tcp { port: 1, .. } => 9,
            Address::Tcp { port: 2, .. } => 5,
            _ => 0,
        };
        let busy = Selector { in_flight: &load, ..plain() };
        let chosen = |random| {
            let selector = Selector { random, ..busy };
            selector.select(&members(true), Criteria::Read(&nearest)).unwrap().address.clone()
        };
        // Of three candidates, the pairs (1,2), (1,3), (3,1), (2,3): the busiest never wins, the pair decides the rest.
        assert_eq!(chosen(&|| (0, 0)), address(2));
        assert_eq!(chosen(&|| (0, 1)), address(3));
        assert_eq!(chosen(&|| (2, 0)), address(3));
        assert_eq!(chosen(&|| (1, 1)), address(3));
        assert_eq!(outcomes(&busy, &members(true), Criteria::Read(&nearest)), [2, 3]);
    }

    #[test]
    fn deprioritised_servers_are_a_last_resort_and_refused_ones_none() {
        let first = |address: &Address| *address == self::address(1);
        let (write, nearest) = (Criteria::Write, ReadPreference::new(Nearest));
        let soft = Selector { deprioritised: &first, ..plain() };
        assert_eq!(outcomes(&soft, &members(true), Criteria::Read(&nearest)), [2, 3]);
        assert_eq!(outcomes(&soft, &members(true), write), [1]);

        let hard = Selector { refused: &first, ..plain() };
        assert_eq!(outcomes(&hard, &members(true), Criteria::Read(&nearest)), [2, 3]);
        assert_eq!(hard.select(&members(true), write), Err(SelectionFailure::AllRefused));
        assert_eq!(hard.select(&members(false), write), Err(SelectionFailure::NoSuitableServer));
        let preferred = ReadPreference::new(PrimaryPreferred);
        assert_eq!(outcomes(&hard, &members(true), Criteria::Read(&preferred)), [2, 3]);

        // A retry must not land on an open breaker just because the other server is deprioritised.
        let others = |address: &Address| *address != self::address(1);
        let both = Selector { refused: &first, deprioritised: &others, ..plain() };
        assert_eq!(outcomes(&both, &members(true), Criteria::Read(&nearest)), [2, 3]);
    }

    #[test]
    fn a_secondary_stands_in_for_a_primary_only_while_there_is_none() {
        let degraded = Criteria::PrimaryElseSecondary;
        assert_eq!(outcomes(&plain(), &members(true), degraded), [1]);
        // The sixth was not heard from yet: it may be the primary.
        assert_eq!(outcomes(&plain(), &members(false), degraded), [0_u16; 0]);
        let lost = |topology: &mut TopologyDescription, port| {
            topology.servers.get_mut(&address(port)).unwrap().error = Some("refused".to_owned());
        };
        let mut without = members(false);
        lost(&mut without, 6);
        assert_eq!(outcomes(&plain(), &without, degraded), [0_u16; 0], "the first one was not heard from either");
        lost(&mut without, 1);
        assert_eq!(outcomes(&plain(), &without, degraded), [2, 3]);
        for (suspected, found) in [(ServerKind::RsPrimary, &[][..]), (ServerKind::RsSecondary, &[2, 3])] {
            let mut doubtful = without.clone();
            doubtful.servers.get_mut(&address(1)).unwrap().suspected = Some(suspected);
            assert_eq!(outcomes(&plain(), &doubtful, degraded), found, "{suspected:?}");
        }

        let mut with = members(true);
        lost(&mut with, 6);
        let first = |address: &Address| *address == self::address(1);
        // One that this very command failed on is still there; one that its breaker refuses is not.
        assert_eq!(outcomes(&Selector { deprioritised: &first, ..plain() }, &with, degraded), [1]);
        assert_eq!(outcomes(&Selector { refused: &first, ..plain() }, &with, degraded), [2, 3]);
        // Where nobody stands in, it is as it is for a write.
        let all = Selector { refused: &|_| true, ..plain() };
        assert_eq!(all.select(&with, degraded), Err(SelectionFailure::AllRefused));
        assert_eq!(all.select(&without, degraded), Err(SelectionFailure::NoSuitableServer));
        let sharded = topology(TopologyKind::Sharded, [server(1, ServerKind::Mongos)]);
        assert_eq!(outcomes(&plain(), &sharded, degraded), [1]);
    }

    #[test]
    fn incompatible_servers_get_nothing() {
        let mut topology = members(true);
        topology.compatibility_error = Some("too old".to_owned());
        assert_eq!(plain().select(&topology, Criteria::Write), Err(SelectionFailure::Incompatible));
    }
}
