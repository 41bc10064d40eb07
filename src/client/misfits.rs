//! Clients whose connection string does not fit what they are shown: they say hello, see something else than they were told to
//! look for, hang up at once, and tell nobody but their application. Seen from here: over and over a socket on which nothing
//! but a hello was sent, closed within moments, and never a command from the same application on the same host.
//!
//! Healthy ones are told apart: their monitors stay, and those that come and go send commands over other sockets.

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

/// Different ones that are remembered, some 100 bytes each; the one heard of longest ago gives way.
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
    last_command: Option<Instant>,
    /// Hasty ends since the last command, and when the last of them was.
    hasty: u32,
    last: Instant,
    told: bool,
}

/// All clients of a listener that were heard of lately.
#[derive(Debug, Default)]
pub(super) struct Misfits(Vec<Known>);

/// What one socket has done so far.
#[derive(Debug, Default)]
pub(super) struct Doings {
    first_hello: Option<Instant>,
    command: bool,
}

impl Doings {
    pub(super) fn hello(&mut self, now: Instant) {
        self.first_hello.get_or_insert(now);
    }

    /// True for the first command.
    pub(super) fn command(&mut self) -> bool {
        !std::mem::replace(&mut self.command, true)
    }
}

impl<S> Session<S> {
    /// The client has closed its socket. One that has done so time after time, and nothing else, is named: its driver tells
    /// the application no more than that there is no server.
    pub(super) fn left(&self) {
        let misfit = lock(&self.shared.misfits).left(&self.state, &self.ends, &self.doings, Instant::now());
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
    /// The first command over a socket.
    pub(super) fn works(&mut self, state: &ClientState, ends: &Ends, now: Instant) {
        if let Some(known) = self.known(state, ends, now) {
            (known.last_command, known.hasty, known.told) = (Some(now), 0, false);
        }
    }

    /// A client has closed its socket. `Some` with how often that was when it is time to say so.
    pub(super) fn left(&mut self, state: &ClientState, ends: &Ends, doings: &Doings, now: Instant) -> Option<u32> {
        let hello = doings.first_hello.filter(|_| !doings.command && !state.load_balanced)?;
        if now.duration_since(hello) > HASTY {
            return None;
        }
        let known = self.known(state, ends, now)?;
        // A monitor of one that came, sent its commands and left.
        if known.last_command.is_some_and(|command| command >= hello) {
            return None;
        }
        if now.duration_since(known.last) > WITHIN {
            (known.hasty, known.told) = (0, false);
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
                let known = Known { who, last_command: None, hasty: 0, last: now, told: false };
                if self.0.len() < MAX_KNOWN {
                    self.0.push(known);
                    self.0.len() - 1
                } else {
                    let heard =
                        |known: &Known| known.last_command.map_or(known.last, |command| command.max(known.last));
                    let oldest = (0..self.0.len()).min_by_key(|index| heard(&self.0[*index]))?;
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
        };
        ClientState { metadata: Some(Arc::new(metadata)), ..ClientState::default() }
    }

    fn from(host: u8) -> Ends {
        Ends::Tcp { peer: ([10, 0, 0, host], 5).into(), local: ([10, 0, 0, 0], 27016).into() }
    }

    fn greeted(at: Instant) -> Doings {
        let mut doings = Doings::default();
        doings.hello(at);
        doings
    }

    /// Says hello and leaves so much later.
    fn hangs_up(misfits: &mut Misfits, who: (&ClientState, &Ends), at: Instant, after: Duration) -> Option<u32> {
        misfits.left(who.0, who.1, &greeted(at), at + after)
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
        let mut spoke = greeted(now);
        assert!(spoke.command() && !spoke.command());
        let balanced = ClientState { load_balanced: true, ..client("shop") };
        for _ in 0..9 {
            assert_eq!(misfits.left(&shop, &host, &spoke, now + SECOND / 100), None);
            assert_eq!(misfits.left(&balanced, &host, &greeted(now), now + SECOND / 100), None);
        }
        // Once in a long while.
        for n in 1..9 {
            assert_eq!(hangs_up(&mut misfits, who, now + n * 2 * WITHIN, SECOND / 100), None);
        }
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
