//! Clients whose connection string does not fit what they are shown: they say hello, see something else than they were told to
//! look for, hang up at once, and tell nobody but their application. Seen from here: over and over a socket on which nothing
//! but a hello was sent, closed within moments, and never a command from the same application on the same host.
//!
//! Healthy ones are told apart: their monitors stay, and those that come and go send commands over other sockets. Some of
//! theirs close at once as well: a driver that reads another address in our hello than it has dialled goes there instead, and
//! so does whoever looks whether we are there. So a hasty end says nothing while another socket of theirs is open.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ends::Ends;
use super::session::Session;
use crate::reply::{ClientMetadata, ClientState, Shown};
use crate::upstream::pool::lock;

/// Who does not like what he sees leaves within milliseconds.
const HASTY: Duration = Duration::from_secs(1);

/// So many times is no accident.
const TIMES: u32 = 3;

/// What lies further apart does not belong together.
const WITHIN: Duration = Duration::from_secs(600);

/// Different ones that are remembered, some 100 bytes each; the one heard of longest ago gives way, those without a socket
/// first.
const MAX_KNOWN: usize = 256;

/// Whom sockets have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Who {
    host: Option<IpAddr>,
    client: Arc<ClientMetadata>,
}

#[derive(Debug)]
struct Known {
    who: Who,
    /// Each open socket of theirs on which a hello came has a copy: how many there are is how many are open.
    sockets: Arc<()>,
    last_command: Option<Instant>,
    /// Hasty ends since the last sign that all is well, and when the last of them was.
    hasty: u32,
    last: Instant,
    /// Named already, since the last quiet time.
    told: bool,
}

impl Known {
    fn is_connected(&self) -> bool {
        Arc::strong_count(&self.sockets) > 1
    }

    fn heard(&self) -> Instant {
        self.last_command.map_or(self.last, |command| command.max(self.last))
    }
}

/// All clients of a listener that were heard of lately.
#[derive(Debug, Default)]
pub(super) struct Misfits(Vec<Known>);

/// What one socket has done so far.
#[derive(Debug, Default)]
pub(super) struct Doings {
    first_hello: Option<Instant>,
    command: bool,
    /// See [`Known::sockets`].
    _open: Option<Arc<()>>,
}

impl Doings {
    /// Of a client that has been here before.
    pub(super) fn before() -> Self {
        Self { command: true, ..Self::default() }
    }

    /// True for the first command.
    pub(super) fn command(&mut self) -> bool {
        !std::mem::replace(&mut self.command, true)
    }
}

impl<S> Session<S> {
    /// The client has said hello.
    pub(super) fn greeted(&mut self) {
        if self.doings.first_hello.is_none() {
            self.doings = lock(&self.shared.misfits).greeted(&self.state, &self.ends, Instant::now());
        }
    }

    /// The client has closed its socket. One that has done so time after time, and nothing else, is named: its driver tells
    /// the application no more than that there is no server.
    pub(super) fn left(&mut self) {
        let doings = std::mem::take(&mut self.doings);
        let misfit = lock(&self.shared.misfits).left(&self.state, &self.ends, doings, Instant::now());
        let (Some(times), Some(client), Some((told, _))) = (misfit, &self.state.metadata, self.told) else { return };
        let host = self.ends.host().map_or_else(|| self.ends.to_string(), |host| host.to_string());
        let set = self.shared.facts.borrow().as_ref().and_then(|facts| facts.shown_set.clone());
        let advice = match told {
            Shown::ReplicaSet => "let its `replicaSet=` be the name of the set, or leave it out",
            Shown::Mongos | Shown::Standalone => {
                "leave `replicaSet=` out of its connection string, or set presentation = \"replica-set\" here"
            }
        };
        tracing::warn!(
            client = %host, application = client.application.as_deref(), driver = %client.driver_name,
            version = %client.driver_version, times, shown = ?told, set = set.as_ref().map(|set| set.name.as_str()),
            "a client says hello and hangs up, again and again, and never sends a command: its connection string does not \
             seem to fit; {advice}"
        );
    }
}

impl Misfits {
    /// The first hello over a socket, which has done nothing else so far.
    fn greeted(&mut self, state: &ClientState, ends: &Ends, now: Instant) -> Doings {
        let open = self.known(state, ends, now).map(|known| known.sockets.clone());
        Doings { first_hello: Some(now), command: false, _open: open }
    }

    /// The first command over a socket.
    pub(super) fn works(&mut self, state: &ClientState, ends: &Ends, now: Instant) {
        if let Some(known) = self.known(state, ends, now) {
            (known.last_command, known.hasty) = (Some(now), 0);
        }
    }

    /// A client has closed its socket. `Some` with how often that was when it is time to say so.
    fn left(&mut self, state: &ClientState, ends: &Ends, doings: Doings, now: Instant) -> Option<u32> {
        let hello = doings.first_hello.filter(|_| !doings.command && !state.load_balanced)?;
        drop(doings);
        let known = self.known(state, ends, now)?;
        if now.duration_since(hello) > HASTY {
            // Who does not like what he sees does not stay.
            known.hasty = 0;
            return None;
        }
        // The second is a monitor of one that came, sent its commands and left.
        if known.is_connected() || known.last_command.is_some_and(|command| command >= hello) {
            return None;
        }
        if now.duration_since(known.last) > WITHIN {
            (known.hasty, known.told) = (0, false);
        }
        // All that end at once are one time: processes that were started together.
        if known.hasty > 0 && now.duration_since(known.last) < HASTY {
            return None;
        }
        known.hasty = known.hasty.saturating_add(1);
        known.last = now;
        (known.hasty >= TIMES && !std::mem::replace(&mut known.told, true)).then_some(known.hasty)
    }

    /// The one with whom this socket belongs. `None` for one that did not say who it is, which no driver does.
    fn known(&mut self, state: &ClientState, ends: &Ends, now: Instant) -> Option<&mut Known> {
        let who = Who { host: ends.host(), client: state.metadata.clone()? };
        let index = match self.0.iter().position(|known| known.who == who) {
            Some(index) => index,
            None => {
                let sockets = Arc::default();
                let known = Known { who, sockets, last_command: None, hasty: 0, last: now, told: false };
                if self.0.len() < MAX_KNOWN {
                    self.0.push(known);
                    self.0.len() - 1
                } else {
                    let places = self.0.iter().enumerate();
                    let (oldest, _) = places.min_by_key(|(_, known)| (known.is_connected(), known.heard()))?;
                    self.0[oldest] = known;
                    oldest
                }
            }
        };
        self.0.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn client(application: &str) -> ClientState {
        let metadata = ClientMetadata {
            application: Some(application.into()),
            driver_name: "PyMongo".into(),
            driver_version: "4".into(),
            platform: None,
        };
        ClientState { metadata: Some(Arc::new(metadata)), ..ClientState::default() }
    }

    fn from(host: u8) -> Ends {
        Ends::Tcp { peer: ([10, 0, 0, host], 5).into(), local: ([10, 0, 0, 0], 27016).into() }
    }

    /// Says hello and leaves so much later.
    fn hangs_up(misfits: &mut Misfits, who: (&ClientState, &Ends), at: Instant, after: Duration) -> Option<u32> {
        let doings = misfits.greeted(who.0, who.1, at);
        misfits.left(who.0, who.1, doings, at + after)
    }

    /// Who hangs up time after time, and at which time that is told.
    fn told_at(misfits: &mut Misfits, who: (&ClientState, &Ends), from: Instant, times: u32) -> Vec<u32> {
        let told = |n: &u32| hangs_up(misfits, who, from + *n * 5 * SECOND, SECOND / 100).is_some();
        (1..=times).filter(told).collect()
    }

    #[test]
    fn who_hangs_up_three_times_is_told_of_once() {
        let (mut misfits, shop, host, now) = (Misfits::default(), client("shop"), from(1), Instant::now());
        let told: Vec<_> =
            (0..6).map(|n| hangs_up(&mut misfits, (&shop, &host), now + n * 30 * SECOND, SECOND / 100)).collect();
        assert_eq!(told, [None, None, Some(3), None, None, None]);
        // The next episode.
        let later = now + 3 * WITHIN;
        let told: Vec<_> =
            (0..4).map(|n| hangs_up(&mut misfits, (&shop, &host), later + n * SECOND, SECOND / 100)).collect();
        assert_eq!(told, [None, None, Some(3), None]);
    }

    #[test]
    fn different_clients_are_not_one() {
        let (mut misfits, now) = (Misfits::default(), Instant::now());
        for n in 0..2 {
            for who in [(&client("a"), &from(1)), (&client("b"), &from(1)), (&client("a"), &from(2))] {
                assert_eq!(hangs_up(&mut misfits, who, now + n * SECOND, SECOND / 100), None);
            }
        }
        let nobody = ClientState::default();
        for n in 0..9 {
            assert_eq!(hangs_up(&mut misfits, (&nobody, &from(1)), now + n * SECOND, SECOND / 100), None);
        }
    }

    #[test]
    fn the_healthy_are_left_alone() {
        let (shop, host, now) = (client("shop"), from(1), Instant::now());
        let who = (&shop, &host);
        // Monitors that stay for a while.
        let mut misfits = Misfits::default();
        for n in 0..9 {
            assert_eq!(hangs_up(&mut misfits, who, now + n * 5 * SECOND, 2 * SECOND), None);
        }
        // Short-lived ones: a monitor, and meanwhile a command over another socket.
        for n in 0..9 {
            let at = now + n * 5 * SECOND;
            misfits.works(&shop, &host, at + SECOND / 100);
            assert_eq!(hangs_up(&mut misfits, who, at, SECOND / 50), None);
        }
        // Hasty ones in between commands.
        for n in 0..9 {
            let at = now + n * 50 * SECOND;
            assert_eq!(hangs_up(&mut misfits, who, at, SECOND / 100), None);
            assert_eq!(hangs_up(&mut misfits, who, at + 5 * SECOND, SECOND / 100), None);
            misfits.works(&shop, &host, at + 10 * SECOND);
        }
        // One that sent something itself, or takes us for a load balancer and has no monitor.
        let balanced = ClientState { load_balanced: true, ..client("shop") };
        for n in 0..9 {
            let at = now + n * 5 * SECOND;
            let mut spoke = misfits.greeted(&shop, &host, at);
            assert!(spoke.command() && !spoke.command());
            assert_eq!(misfits.left(&shop, &host, spoke, at + SECOND / 100), None);
            assert_eq!(hangs_up(&mut misfits, (&balanced, &host), at, SECOND / 100), None);
        }
        // Once in a long while.
        for n in 1..9 {
            assert_eq!(hangs_up(&mut misfits, who, now + n * 2 * WITHIN, SECOND / 100), None);
        }
    }

    #[test]
    fn hasty_ends_say_nothing_while_another_socket_is_open() {
        let (shop, host, now) = (client("shop"), from(1), Instant::now());
        let who = (&shop, &host);
        // A pool from long ago, and whoever looks now and then whether we are there.
        let mut misfits = Misfits::default();
        let mut pooled = misfits.greeted(&shop, &host, now);
        pooled.command();
        misfits.works(&shop, &host, now);
        let later = now + WITHIN;
        assert!(told_at(&mut misfits, who, later, 9).is_empty());
        assert_eq!(misfits.left(&shop, &host, pooled, later + 60 * SECOND), None);
        assert_eq!(told_at(&mut misfits, who, later + 60 * SECOND, 9), [3]);
        // Its process is started again and again, and sends nothing, but stays.
        let mut misfits = Misfits::default();
        for n in 0..9 {
            let at = now + n * 20 * SECOND;
            assert_eq!(hangs_up(&mut misfits, who, at, SECOND / 100), None);
            assert_eq!(hangs_up(&mut misfits, who, at + SECOND, 10 * SECOND), None);
        }
        // Many that are started at once do so once.
        let mut misfits = Misfits::default();
        for n in 0..2 {
            let greeted: Vec<_> = (0..8).map(|_| misfits.greeted(&shop, &host, now + n * 20 * SECOND)).collect();
            for (after, doings) in (1..).zip(greeted) {
                let at = now + n * 20 * SECOND + after * SECOND / 100;
                assert_eq!(misfits.left(&shop, &host, doings, at), None);
                assert_eq!(hangs_up(&mut misfits, who, at, SECOND / 1000), None);
            }
        }
        assert_eq!(told_at(&mut misfits, who, now + 60 * SECOND, 4), [1], "the third time");
    }

    #[test]
    fn who_works_in_between_is_not_told_of_again_before_a_quiet_time() {
        let (shop, host, now) = (client("shop"), from(1), Instant::now());
        let (mut misfits, who) = (Misfits::default(), (&shop, &host));
        assert_eq!(told_at(&mut misfits, who, now, 5), [3]);
        for n in 1..9 {
            misfits.works(&shop, &host, now + n * 60 * SECOND);
            assert!(told_at(&mut misfits, who, now + n * 60 * SECOND, 5).is_empty());
        }
        assert_eq!(told_at(&mut misfits, who, now + 3 * WITHIN, 5), [3]);
    }

    #[test]
    fn who_is_connected_is_remembered() {
        let (mut misfits, host, now) = (Misfits::default(), from(1), Instant::now());
        let shop = client("shop");
        let pooled = misfits.greeted(&shop, &host, now);
        for n in 0..2_000 {
            hangs_up(&mut misfits, (&client(&n.to_string()), &host), now + n * SECOND / 100, SECOND / 1000);
        }
        assert!(told_at(&mut misfits, (&shop, &host), now + 20 * SECOND, 5).is_empty());
        drop(pooled);
        // More than can be remembered at once, all of them connected.
        let all: Vec<_> = (0..1_000).map(|n| misfits.greeted(&client(&n.to_string()), &host, now)).collect();
        assert_eq!((misfits.0.len(), all.len()), (MAX_KNOWN, 1_000));
    }

    #[test]
    fn the_memory_is_bounded_and_those_heard_of_last_are_kept() {
        let (mut misfits, host, now) = (Misfits::default(), from(1), Instant::now());
        for n in 0..1_000 {
            hangs_up(&mut misfits, (&client(&n.to_string()), &host), now + n * SECOND / 100, SECOND / 1000);
        }
        assert_eq!(misfits.0.len(), MAX_KNOWN);
        let (last, at) = (client("999"), now + 11 * SECOND);
        assert_eq!(hangs_up(&mut misfits, (&last, &host), at, SECOND / 100), None);
        assert_eq!(hangs_up(&mut misfits, (&last, &host), at + SECOND, SECOND / 100), Some(3));
    }
}
