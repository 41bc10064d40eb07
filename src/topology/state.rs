//! How news change the topology: the monitor's description, with an overlay of what our own connections have seen.
//!
//! The driver's monitors do not hear of errors on our connections. A server that has just failed us, or said that it is not
//! what the monitor thinks, is *suspect*: shown as unknown until somebody has heard from it again. The description that
//! everybody else sees is always [`TopologyState::effective`]; what was discovered stays as it is underneath.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::description::{Hello, ServerDescription, ServerKind, TopologyDescription, TopologyKind, TopologyVersion};
use crate::config::Address;

/// All that is known about one upstream.
#[derive(Debug, Default)]
pub struct TopologyState {
    /// The driver's view; details that it does not tell are in `observed`.
    discovered: TopologyDescription,
    /// Keys are always those of `discovered.servers`, which bounds it.
    observed: BTreeMap<Address, Observed>,
    /// Whoever answered last, even if the driver then dropped it: explains an empty topology.
    last_hello: Option<(Address, Hello)>,
}

#[derive(Debug, Default)]
struct Observed {
    /// The last reply and when it came.
    hello: Option<(Hello, Instant)>,
    suspicion: Option<Suspicion>,
    /// Moving average of our own connections' samples since the server became known.
    round_trip_time: Option<Duration>,
    /// Answered since it was lost last.
    reached: bool,
    failures: u64,
    timeouts: u64,
}

#[derive(Debug)]
struct Suspicion {
    reason: String,
    /// Replies that are older do not end it.
    topology_version: Option<TopologyVersion>,
    /// A reply has ended it and told of another kind than the driver's view shows, which follows the reply in a moment.
    answered: bool,
}

impl Suspicion {
    fn outlasts(&self, reply: Option<TopologyVersion>) -> bool {
        reply.zip(self.topology_version).is_some_and(|(reply, mark)| reply.is_older_than(mark))
    }
}

/// What whoever watches the servers has learnt.
#[derive(Debug, Clone)]
pub enum News {
    /// The topology as it is now.
    Described(TopologyDescription),
    /// A server answered a heartbeat.
    Answered(Address, Hello),
    /// A server did not.
    Lost {
        /// Which.
        address: Address,
        /// It was silent; else it refused, or the connection broke.
        timed_out: bool,
    },
}

impl TopologyState {
    /// Takes in news.
    pub fn learn(&mut self, news: News, now: Instant) {
        match news {
            News::Described(description) => self.discovered(description),
            News::Answered(address, hello) => self.heartbeat_succeeded(&address, hello, now),
            News::Lost { address, timed_out } => self.heartbeat_failed(&address, timed_out),
        }
    }

    /// The driver published a description. Counters and replies of servers that are still part of it are kept.
    pub fn discovered(&mut self, mut description: TopologyDescription) {
        // Trouble is over when a server was found in spite of it.
        if !description.servers.values().any(ServerDescription::is_known) {
            description.trouble = description.trouble.or_else(|| self.discovered.trouble.take());
        }
        self.observed.retain(|address, _| description.servers.contains_key(address));
        for (address, server) in &description.servers {
            let observed = self.observed.entry(address.clone()).or_default();
            if !server.is_known() {
                observed.round_trip_time = None;
            }
            if !server.is_known() || observed.hello.as_ref().is_some_and(|(hello, _)| hello.kind == server.kind) {
                observed.suspicion.take_if(|suspicion| suspicion.answered);
            }
        }
        self.discovered = description;
    }

    /// Monitoring starts anew, or cannot start: no server is known, for this reason.
    pub fn restart(&mut self, trouble: Option<String>) {
        *self = Self { discovered: TopologyDescription { trouble, ..Default::default() }, ..Self::default() };
    }

    /// A monitor got a reply. It ends a suspicion, unless the reply is from before what raised it. The driver's view follows
    /// the reply in a moment: until then a primary that says that it is none any more is suspect. Or it would be a primary once
    /// more in between, and fail a second time who has waited for the next one.
    pub fn heartbeat_succeeded(&mut self, address: &Address, hello: Hello, now: Instant) {
        self.last_hello = Some((address.clone(), hello.clone()));
        let Some(observed) = self.observed.get_mut(address) else { return };
        let shown = self.discovered.servers.get(address).map_or(ServerKind::Unknown, |server| server.kind);
        match &mut observed.suspicion {
            Some(suspicion) if suspicion.outlasts(hello.topology_version) => {}
            Some(suspicion) if shown != ServerKind::Unknown && shown != hello.kind => suspicion.answered = true,
            Some(_) => observed.suspicion = None,
            None if shown == ServerKind::RsPrimary && shown != hello.kind => {
                let topology_version = hello.topology_version;
                let reason = format!("was {}, now says it is {}", shown.name(), hello.kind.name());
                observed.suspicion = Some(Suspicion { reason, topology_version, answered: true });
            }
            None => {}
        }
        observed.hello = Some((hello, now));
        observed.reached = true;
    }

    /// A monitor lost its server. The first failure counts, those after it have nothing more to lose. What kind the
    /// server has is no matter: a primary that hangs is unknown to the driver as soon as the others have elected a new
    /// one, and commands may still wait for the old one.
    pub fn heartbeat_failed(&mut self, address: &Address, timed_out: bool) {
        let Some(observed) = self.observed.get_mut(address) else { return };
        if std::mem::take(&mut observed.reached) {
            observed.failures += 1;
            observed.timeouts += u64::from(timed_out);
        }
    }

    /// A connection of ours failed, or its server reported a change of state. Ignored when the error is not newer than
    /// the server's last reply. Returns whether the server is suspect now and was not before.
    pub fn suspect(&mut self, address: &Address, reason: &str, topology_version: Option<TopologyVersion>) -> bool {
        let Some(observed) = self.observed.get_mut(address) else { return false };
        let known = observed.hello.as_ref().and_then(|(hello, _)| hello.topology_version);
        if let (Some(error), Some(known)) = (topology_version, known)
            && (error == known || error.is_older_than(known))
        {
            return false;
        }
        let was_trusted = observed.suspicion.is_none();
        observed.round_trip_time = None;
        let reason = reason.to_owned();
        observed.suspicion = Some(Suspicion { reason, topology_version, answered: false });
        was_trusted
    }

    /// A connection of ours got a `hello` reply. It clears the server when it agrees with the monitor, and makes it
    /// suspect when it does not; a reply older than the last one changes nothing. The round trip, where it was measured
    /// on an established connection, is a better sample than the driver's, whose first ones include connecting.
    pub fn heard(&mut self, address: &Address, hello: Hello, round_trip: Option<Duration>, now: Instant) {
        let (Some(server), Some(observed)) = (self.discovered.servers.get(address), self.observed.get_mut(address))
        else {
            return;
        };
        let known = observed.hello.as_ref().and_then(|(hello, _)| hello.topology_version);
        if let (Some(reply), Some(known)) = (hello.topology_version, known)
            && reply.is_older_than(known)
        {
            return;
        }
        if server.kind == hello.kind {
            if let Some(sample) = round_trip {
                observed.round_trip_time = Some(moving_average(observed.round_trip_time, sample));
            }
            self.heartbeat_succeeded(address, hello, now);
        } else if server.is_known() {
            let reason = format!("was {}, now says it is {}", server.kind.name(), hello.kind.name());
            self.suspect(address, &reason, hello.topology_version);
        }
    }

    /// The driver's current average; meaningless, and so ignored, while the server is unknown.
    pub fn round_trip_time(&mut self, address: &Address, average: Duration) {
        if let Some(server) = self.discovered.servers.get_mut(address)
            && server.is_known()
        {
            server.round_trip_time = Some(average);
        }
    }

    /// Why the driver has dropped the server that answered last; `None` when it has not.
    pub fn explain_drop(&self) -> Option<String> {
        let (address, hello) = self.last_hello.as_ref().filter(|(it, _)| !self.discovered.servers.contains_key(it))?;
        let kind = hello.kind.name();
        Some(match (&self.discovered.set_name, &hello.set_name) {
            (Some(wanted), Some(found)) if wanted != found => {
                format!("{address} belongs to replica set `{found}`, not to `{wanted}`")
            }
            (Some(wanted), None) => format!("{address} is a {kind}, not a member of replica set `{wanted}`"),
            (None, None) if hello.kind == ServerKind::Standalone => {
                format!("{address} is a standalone, which cannot be one of several hosts")
            }
            _ => format!("{address}, a {kind}, does not fit the other servers"),
        })
    }

    /// True when no server is left to watch, or none was named yet.
    pub fn is_empty(&self) -> bool {
        self.discovered.servers.is_empty()
    }

    /// What everybody sees: the driver's view, completed by the replies, with suspects unknown.
    pub fn effective(&self) -> TopologyDescription {
        let mut topology = self.discovered.clone();
        for (address, server) in &mut topology.servers {
            if let Some(observed) = self.observed.get(address) {
                observed.complete(server);
            }
        }
        if topology.kind == TopologyKind::ReplicaSetWithPrimary && topology.primary().is_none() {
            topology.kind = TopologyKind::ReplicaSetNoPrimary;
        }
        // While others work, a server that does not fit is nobody's problem.
        if topology.trouble.is_none() && !self.discovered.servers.values().any(ServerDescription::is_known) {
            topology.trouble = self.explain_drop();
        }
        topology
    }
}

impl Observed {
    fn complete(&self, server: &mut ServerDescription) {
        server.heartbeat_failures = self.failures;
        server.heartbeat_timeouts = self.timeouts;
        // Replies from before a failure say nothing about a server that is unknown now.
        if !server.is_known() {
            return;
        }
        if let Some(suspicion) = &self.suspicion {
            let address = server.address.clone();
            *server = ServerDescription {
                error: Some(suspicion.reason.clone()),
                suspected: Some(server.kind),
                heartbeat_failures: self.failures,
                heartbeat_timeouts: self.timeouts,
                ..ServerDescription::unknown(address)
            };
        } else if let Some((hello, arrived)) = &self.hello {
            server.topology_version = hello.topology_version;
            server.last_write = hello.last_write;
            server.last_update = Some(*arrived);
            server.round_trip_time = self.round_trip_time.or(server.round_trip_time);
            server.logical_session_timeout_minutes = hello.logical_session_timeout_minutes;
            let or_default = |told: Option<i32>, default: &mut i32| *default = told.unwrap_or(*default);
            or_default(hello.max_bson_object_size, &mut server.max_bson_object_size);
            or_default(hello.max_message_size, &mut server.max_message_size);
            or_default(hello.max_write_batch_size, &mut server.max_write_batch_size);
        }
    }
}

/// The specification's: a fifth of the new sample, the first one as it is.
fn moving_average(average: Option<Duration>, sample: Duration) -> Duration {
    average.map_or(sample, |average| average * 4 / 5 + sample / 5)
}

#[cfg(test)]
mod tests {
    use bson::oid::ObjectId;

    use super::*;

    const PROCESS: ObjectId = ObjectId::from_bytes([7; 12]);

    fn address(port: u16) -> Address {
        Address::tcp("h", port)
    }

    fn version(counter: i64) -> Option<TopologyVersion> {
        Some(TopologyVersion { process_id: PROCESS, counter })
    }

    fn hello(kind: ServerKind, counter: i64) -> Hello {
        Hello { kind, topology_version: version(counter), max_message_size: Some(99), ..Hello::default() }
    }

    fn description(kind: TopologyKind, servers: &[(u16, ServerKind)]) -> TopologyDescription {
        let server =
            |&(port, kind)| (address(port), ServerDescription { kind, ..ServerDescription::unknown(address(port)) });
        TopologyDescription { kind, servers: servers.iter().map(server).collect(), ..Default::default() }
    }

    /// A primary at port 1 and a secondary at port 2, both heard at version 5.
    fn replica_set() -> TopologyState {
        let mut state = TopologyState::default();
        let members = [(1, ServerKind::RsPrimary), (2, ServerKind::RsSecondary)];
        state.discovered(description(
            TopologyKind::ReplicaSetNoPrimary,
            &members.map(|(p, _)| (p, ServerKind::Unknown)),
        ));
        for (port, kind) in members {
            state.heartbeat_succeeded(&address(port), hello(kind, 5), Instant::now());
        }
        state.discovered(description(TopologyKind::ReplicaSetWithPrimary, &members));
        state
    }

    fn kind_of(state: &TopologyState, port: u16) -> ServerKind {
        state.effective().servers[&address(port)].kind
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_completes_what_the_driver_tells() {
        let server = replica_set().effective().servers[&address(1)].clone();
        assert_eq!((server.kind, server.max_message_size), (ServerKind::RsPrimary, 99));
        assert_eq!((server.topology_version, server.last_update), (version(5), Some(Instant::now())));
    }

    #[test]
    fn a_suspect_primary_is_unknown_until_its_next_heartbeat() {
        let mut state = replica_set();
        assert!(state.suspect(&address(1), "connection reset", None));
        assert!(!state.suspect(&address(1), "connection reset", None), "already suspect");
        let seen = state.effective();
        assert_eq!((seen.kind, seen.primary()), (TopologyKind::ReplicaSetNoPrimary, None));
        assert_eq!(seen.problem().unwrap(), "no primary: h:1: connection reset; h:2: secondary");

        // Neither the other server's heartbeat nor an unchanged description clears it.
        state.heartbeat_succeeded(&address(2), hello(ServerKind::RsSecondary, 5), Instant::now());
        state.discovered(state.discovered.clone());
        let server = state.effective().servers[&address(1)].clone();
        assert_eq!((server.kind, server.suspected), (ServerKind::Unknown, Some(ServerKind::RsPrimary)));

        state.heartbeat_succeeded(&address(1), hello(ServerKind::RsPrimary, 5), Instant::now());
        let seen = state.effective();
        assert_eq!(seen.servers[&address(1)].suspected, None);
        assert_eq!((seen.kind, kind_of(&state, 1)), (TopologyKind::ReplicaSetWithPrimary, ServerKind::RsPrimary));
    }

    #[test]
    fn errors_that_are_not_newer_than_the_last_reply_are_ignored() {
        let mut state = replica_set();
        assert!(!state.suspect(&address(1), "not primary", version(4)));
        assert!(!state.suspect(&address(1), "not primary", version(5)));
        assert_eq!(kind_of(&state, 1), ServerKind::RsPrimary);
        assert!(state.suspect(&address(1), "not primary", version(6)));
        let restarted = Some(TopologyVersion { process_id: ObjectId::from_bytes([8; 12]), counter: 0 });
        assert!(replica_set().suspect(&address(1), "not primary", restarted));
        assert!(!state.suspect(&address(9), "never heard of", None));
    }

    #[test]
    fn a_heartbeat_from_before_the_error_does_not_clear_it() {
        let mut state = replica_set();
        state.suspect(&address(1), "not primary", version(6));
        state.heartbeat_succeeded(&address(1), hello(ServerKind::RsPrimary, 5), Instant::now());
        assert_eq!(kind_of(&state, 1), ServerKind::Unknown);
        state.heartbeat_succeeded(&address(1), hello(ServerKind::RsPrimary, 6), Instant::now());
        assert_eq!(kind_of(&state, 1), ServerKind::RsPrimary);
    }

    #[test]
    fn a_primary_that_has_stepped_down_is_none_before_the_driver_shows_it() {
        let view = |kind| description(TopologyKind::ReplicaSetNoPrimary, &[(1, kind), (2, ServerKind::RsSecondary)]);
        let mut state = replica_set();
        state.suspect(&address(1), "interrupted", None);
        state.heartbeat_succeeded(&address(1), hello(ServerKind::RsSecondary, 6), Instant::now());
        assert_eq!(kind_of(&state, 1), ServerKind::Unknown, "the driver's view is from before");
        state.discovered(view(ServerKind::RsPrimary));
        assert_eq!(kind_of(&state, 1), ServerKind::Unknown, "it was published for another reason");
        state.discovered(view(ServerKind::RsSecondary));
        assert_eq!(kind_of(&state, 1), ServerKind::RsSecondary);

        // Suspect again in between: what was heard before says nothing about that.
        state.suspect(&address(1), "interrupted", None);
        state.heartbeat_succeeded(&address(1), hello(ServerKind::RsPrimary, 7), Instant::now());
        state.suspect(&address(1), "reset", None);
        state.discovered(view(ServerKind::RsPrimary));
        assert_eq!(kind_of(&state, 1), ServerKind::Unknown);
        state.heartbeat_succeeded(&address(1), hello(ServerKind::RsPrimary, 7), Instant::now());
        assert_eq!(kind_of(&state, 1), ServerKind::RsPrimary);

        // The driver does not believe it, and finds it again later.
        state.suspect(&address(1), "interrupted", None);
        state.heartbeat_succeeded(&address(1), hello(ServerKind::RsSecondary, 8), Instant::now());
        state.discovered(view(ServerKind::Unknown));
        state.discovered(view(ServerKind::RsPrimary));
        assert_eq!(kind_of(&state, 1), ServerKind::RsPrimary);
    }

    #[test]
    fn a_primary_that_says_that_it_is_none_is_none_before_the_driver_knows() {
        let (mut state, now) = (replica_set(), Instant::now());
        state.heartbeat_succeeded(&address(1), hello(ServerKind::RsSecondary, 6), now);
        assert_eq!(kind_of(&state, 1), ServerKind::Unknown);
        let members = [(1, ServerKind::RsSecondary), (2, ServerKind::RsSecondary)];
        state.discovered(description(TopologyKind::ReplicaSetNoPrimary, &members));
        assert_eq!(kind_of(&state, 1), ServerKind::RsSecondary);
        // The other way round nothing is lost by waiting for the driver.
        state.heartbeat_succeeded(&address(2), hello(ServerKind::RsPrimary, 6), now);
        assert_eq!(kind_of(&state, 2), ServerKind::RsSecondary);
    }

    #[test]
    fn our_own_hello_clears_or_confirms() {
        let mut state = replica_set();
        state.suspect(&address(1), "connection reset", None);
        state.heard(&address(1), hello(ServerKind::RsPrimary, 5), None, Instant::now());
        assert_eq!(kind_of(&state, 1), ServerKind::RsPrimary);

        state.heard(&address(1), hello(ServerKind::RsSecondary, 4), None, Instant::now());
        assert_eq!(kind_of(&state, 1), ServerKind::RsPrimary, "older than what the monitor has");
        state.heard(&address(1), hello(ServerKind::RsSecondary, 6), None, Instant::now());
        let seen = state.effective();
        assert_eq!(seen.servers[&address(1)].error.as_deref(), Some("was primary, now says it is secondary"));
        state.heard(&address(9), hello(ServerKind::RsPrimary, 6), None, Instant::now());
    }

    #[test]
    fn a_hung_primary_is_lost_although_a_new_one_made_it_unknown_first() {
        let mut state = replica_set();
        let members = [(1, ServerKind::Unknown), (2, ServerKind::RsPrimary)];
        state.discovered(description(TopologyKind::ReplicaSetWithPrimary, &members));
        state.heartbeat_failed(&address(1), true);
        state.heartbeat_failed(&address(1), true);
        assert_eq!(state.effective().servers[&address(1)].heartbeat_timeouts, 1);
    }

    #[test]
    fn losses_are_counted_once_per_loss_and_survive_descriptions() {
        let mut state = replica_set();
        state.heartbeat_failed(&address(1), true);
        state.discovered(description(
            TopologyKind::ReplicaSetNoPrimary,
            &[(1, ServerKind::Unknown), (2, ServerKind::RsSecondary)],
        ));
        state.heartbeat_failed(&address(1), true);
        state.heartbeat_failed(&address(2), false);
        let seen = state.effective();
        let losses =
            |port| (seen.servers[&address(port)].heartbeat_failures, seen.servers[&address(port)].heartbeat_timeouts);
        assert_eq!((losses(1), losses(2)), ((1, 1), (1, 0)));
        assert_eq!(seen.servers[&address(1)].last_update, None, "replies from before the loss are not shown");
    }

    #[test]
    fn averages_belong_to_known_servers() {
        let mut state = replica_set();
        let average = Duration::from_millis(3);
        state.round_trip_time(&address(1), average);
        assert_eq!(state.effective().servers[&address(1)].round_trip_time, Some(average));
        state.suspect(&address(1), "reset", None);
        assert_eq!(state.effective().servers[&address(1)].round_trip_time, None);
        state.discovered(description(TopologyKind::ReplicaSetNoPrimary, &[(1, ServerKind::Unknown)]));
        state.round_trip_time(&address(1), average);
        assert_eq!(state.effective().servers[&address(1)].round_trip_time, None);
    }

    #[test]
    fn trouble_lasts_until_a_server_is_known() {
        let mut state = TopologyState::default();
        state.restart(Some("wrong set".to_owned()));
        state.discovered(description(TopologyKind::Unknown, &[(1, ServerKind::Unknown)]));
        assert_eq!(state.effective().problem().as_deref(), Some("wrong set"));
        state.discovered(description(TopologyKind::Single, &[(1, ServerKind::Standalone)]));
        assert_eq!(state.effective().problem(), None);
    }

    #[test]
    fn our_own_samples_win_until_the_server_is_lost() {
        let mut state = replica_set();
        let ms = Duration::from_millis;
        let hear = |state: &mut TopologyState, sample| {
            state.heard(&address(1), hello(ServerKind::RsPrimary, 5), sample, Instant::now());
            state.effective().servers[&address(1)].round_trip_time
        };
        state.round_trip_time(&address(1), ms(1400));
        assert_eq!(hear(&mut state, None), Some(ms(1400)));
        assert_eq!(hear(&mut state, Some(ms(10))), Some(ms(10)));
        assert_eq!(hear(&mut state, Some(ms(20))), Some(ms(12)));
        state.suspect(&address(1), "reset", None);
        assert_eq!(hear(&mut state, Some(ms(50))), Some(ms(50)));
    }

    #[test]
    fn a_dropped_server_is_explained_where_nothing_else_works() {
        let explain = |wanted: Option<&str>, hello| {
            let mut state = TopologyState::default();
            state.heartbeat_succeeded(&address(1), hello, Instant::now());
            let mut left = description(TopologyKind::Unknown, &[(2, ServerKind::Unknown)]);
            left.set_name = wanted.map(ToOwned::to_owned);
            state.discovered(left);
            state.effective().problem().unwrap()
        };
        let member = Hello { set_name: Some("rs0".to_owned()), ..hello(ServerKind::RsPrimary, 1) };
        assert_eq!(explain(Some("rs9"), member), "h:1 belongs to replica set `rs0`, not to `rs9`");
        let alone = || hello(ServerKind::Standalone, 1);
        assert_eq!(explain(Some("rs9"), alone()), "h:1 is a standalone, not a member of replica set `rs9`");
        assert_eq!(explain(None, alone()), "h:1 is a standalone, which cannot be one of several hosts");

        let mut works = replica_set();
        works.heartbeat_succeeded(&address(9), alone(), Instant::now());
        assert_eq!(works.effective().trouble, None);
    }
}
