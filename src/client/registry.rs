//! Who is connected, for an operator who looks at clients or ends one.
//!
//! What is kept of a client is what it takes to name it, and to wake its task: some dozen bytes, written when it comes, greets
//! and logs in, and never with a command. Who is at work is told by the desks, of which there are as many as clients at work.
//!
//! A client that is to go finds out at its socket, which looks as if the other end had left: so whatever it has under way ends
//! as it does for a client that vanishes. What tells it is one number, which is 0 almost always; only while it is not, each
//! client that is woken looks for itself.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use super::ends::Ends;
use super::leaves::Leaves;
use crate::auth::Identity;
use crate::reply::ClientMetadata;
use crate::upstream::pool::lock;

/// For each client that may go so many are woken: some are at work, or cannot go yet.
const WOKEN_PER_LEAVE: usize = 4;

/// The clients of one listener that have begun to speak MongoDB's protocol.
#[derive(Debug)]
pub struct Registry {
    entries: Mutex<Entries>,
    /// Clients that are to go and are still here.
    killed: AtomicUsize,
    leaves: Leaves,
    desks: Mutex<Vec<Weak<AtWork>>>,
    started: Instant,
}

/// Who is at work at one desk: the number of its client, 0 while it is free.
#[derive(Debug, Default)]
pub(super) struct AtWork(AtomicU64);

/// The place of a client in the registry; small enough for the gap that it fills in a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(NonZeroU32);

impl Slot {
    fn of(index: usize) -> Option<Self> {
        u32::try_from(index.checked_add(1)?).ok().and_then(NonZeroU32::new).map(Self)
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Free places are a list, so that they need no room of their own.
#[derive(Debug)]
enum Entry {
    Taken(Client),
    Free { next: Option<Slot> },
}

#[derive(Debug)]
struct Client {
    number: u64,
    /// Of its task, which is the same all its life.
    waker: Waker,
    metadata: Option<Arc<ClientMetadata>>,
    user: Option<Arc<Identity>>,
    /// Since the start of the program, seconds.
    since: u32,
    port: u16,
    host: Option<IpAddr>,
    killed: bool,
}

#[derive(Debug, Default)]
struct Entries {
    /// As many as there were at once at most.
    all: Vec<Entry>,
    free: Option<Slot>,
    /// Where the next look for some who may go begins.
    next: usize,
}

/// One client as it is now.
#[derive(Debug, Clone)]
pub struct ClientSnapshot {
    /// Its number: the `connectionId` that its hello was told.
    pub number: u64,
    /// Where it is; `None` for one at a unix socket.
    pub address: Option<(IpAddr, u16)>,
    /// What it has told of itself.
    pub metadata: Option<Arc<ClientMetadata>>,
    /// Who it has logged in as.
    pub user: Option<Arc<Identity>>,
    /// Since when it is here.
    pub age: Duration,
    /// True from the first byte of a command to the last of its reply.
    pub active: bool,
}

/// Clients that have told the same of themselves.
#[derive(Debug, Clone)]
pub struct ClientGroup {
    /// What they have told.
    pub metadata: Option<Arc<ClientMetadata>>,
    /// Who they have logged in as.
    pub user: Option<Arc<Identity>>,
    /// How many they are.
    pub clients: usize,
    /// As many are at work.
    pub active: usize,
    /// Since when the first of them is here.
    pub oldest: Duration,
}

impl Default for Registry {
    fn default() -> Self {
        let (entries, killed, desks) = (Mutex::default(), AtomicUsize::new(0), Mutex::default());
        Self { entries, killed, leaves: Leaves::default(), desks, started: Instant::now() }
    }
}

impl Registry {
    /// A client has come, with that number and that task.
    pub(super) fn enter(&self, number: i64, ends: &Ends, waker: Waker) -> Slot {
        let since = u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX);
        let number = number.unsigned_abs();
        let (host, port) = (ends.host(), ends.port().unwrap_or_default());
        let client = Client { number, waker, metadata: None, user: None, since, port, host, killed: false };
        lock(&self.entries).add(client)
    }

    /// The client has gone.
    pub(super) fn leave(&self, slot: Slot) {
        // Dropped once the lock is free: it may be the last to hold its task.
        let gone = lock(&self.entries).remove(slot);
        if gone.is_some_and(|client| client.killed) {
            self.killed.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The client has told what it is.
    pub(super) fn greeted(&self, slot: Slot, metadata: Arc<ClientMetadata>) {
        lock(&self.entries).change(slot, |client| client.metadata = Some(metadata));
    }

    /// The client has logged in, or out.
    pub(super) fn is_user(&self, slot: Slot, user: Option<Arc<Identity>>) {
        lock(&self.entries).change(slot, |client| client.user = user);
    }

    /// A desk where clients of this listener work.
    pub(super) fn desk(&self) -> Arc<AtWork> {
        let desk = Arc::new(AtWork::default());
        let mut desks = lock(&self.desks);
        if desks.len() == desks.capacity() {
            desks.retain(|desk| desk.strong_count() > 0);
        }
        desks.push(Arc::downgrade(&desk));
        desk
    }

    /// True when the client is to go.
    pub(super) fn is_killed(&self, slot: Option<Slot>) -> bool {
        // One look, as this is on the path of every command. Who is told to go is woken after it was set.
        self.killed.load(Ordering::Acquire) > 0 && slot.is_some_and(|slot| lock(&self.entries).is_killed(slot))
    }

    /// Lets some of the clients go to the next process, so that all have gone after as many `turns`; in a `hurry` also those that
    /// have only just become idle.
    pub fn let_go(&self, turns: usize, hurry: bool) {
        let (some, woken) = lock(&self.entries).some(turns);
        self.leaves.give(some, hurry);
        woken.into_iter().for_each(Waker::wake);
    }

    /// A client has nothing to do, for a while already if it was `idle` before: true when it goes to the next process.
    pub(super) fn may_go(&self, idle: bool) -> bool {
        self.leaves.take(idle)
    }

    /// Ends all clients that `wanted` names; returns how many those are. Who was told to go already counts as well.
    pub fn kill(&self, wanted: impl Fn(u64, Option<&ClientMetadata>) -> bool) -> usize {
        let told = lock(&self.entries).kill(wanted, &self.killed);
        let count = told.len();
        told.into_iter().for_each(Waker::wake);
        count
    }

    /// Each client, in the order in which they came.
    pub fn clients(&self) -> Vec<ClientSnapshot> {
        let (at_work, now) = (self.at_work(), self.started.elapsed());
        let mut clients: Vec<ClientSnapshot> = {
            let entries = lock(&self.entries);
            let snapshot = |client: &Client| ClientSnapshot {
                number: client.number,
                address: client.host.map(|host| (host, client.port)),
                metadata: client.metadata.clone(),
                user: client.user.clone(),
                age: age(client, now),
                active: at_work.contains(&client.number),
            };
            entries.clients().map(snapshot).collect()
        };
        clients.sort_unstable_by_key(|client| client.number);
        clients
    }

    /// The clients by what they have told, in no order.
    pub fn groups(&self) -> Vec<ClientGroup> {
        let (at_work, now) = (self.at_work(), self.started.elapsed());
        let mut groups = HashMap::new();
        for client in lock(&self.entries).clients() {
            // What many have told is kept once, so that the place in memory tells most of them apart; the others are for
            // who shows them to put together.
            let key = (client.metadata.as_ref().map(Arc::as_ptr), client.user.as_ref().map(Arc::as_ptr));
            let group = groups.entry(key).or_insert_with(|| ClientGroup {
                metadata: client.metadata.clone(),
                user: client.user.clone(),
                clients: 0,
                active: 0,
                oldest: Duration::ZERO,
            });
            group.clients += 1;
            group.active += usize::from(at_work.contains(&client.number));
            group.oldest = group.oldest.max(age(client, now));
        }
        groups.into_values().collect()
    }

    fn at_work(&self) -> HashSet<u64> {
        let desks = lock(&self.desks);
        let numbers = desks.iter().filter_map(Weak::upgrade).map(|desk| desk.0.load(Ordering::Relaxed));
        numbers.filter(|number| *number != 0).collect()
    }
}

impl AtWork {
    /// That client takes the desk.
    pub(super) fn begins(&self, number: i64) {
        self.0.store(number.unsigned_abs(), Ordering::Relaxed);
    }

    /// It leaves the desk.
    pub(super) fn ends(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

fn age(client: &Client, now: Duration) -> Duration {
    now.saturating_sub(Duration::from_secs(client.since.into()))
}

impl Entries {
    fn add(&mut self, client: Client) -> Slot {
        if let Some(slot) = self.free
            && let Some(entry) = self.all.get_mut(slot.index())
            && let Entry::Free { next } = *entry
        {
            self.free = next;
            *entry = Entry::Taken(client);
            return slot;
        }
        let slot = Slot::of(self.all.len()).expect("fewer sockets than that can be open");
        self.all.push(Entry::Taken(client));
        slot
    }

    fn remove(&mut self, slot: Slot) -> Option<Client> {
        let entry = self.all.get_mut(slot.index())?;
        match std::mem::replace(entry, Entry::Free { next: self.free }) {
            Entry::Taken(client) => {
                self.free = Some(slot);
                Some(client)
            }
            free @ Entry::Free { .. } => {
                debug_assert!(false, "a place is given back once");
                *entry = free;
                None
            }
        }
    }

    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut Client)) {
        if let Some(Entry::Taken(client)) = self.all.get_mut(slot.index()) {
            change(client);
        }
    }

    fn is_killed(&self, slot: Slot) -> bool {
        matches!(self.all.get(slot.index()), Some(Entry::Taken(client)) if client.killed)
    }

    fn kill(&mut self, wanted: impl Fn(u64, Option<&ClientMetadata>) -> bool, killed: &AtomicUsize) -> Vec<Waker> {
        let all = self.all.iter_mut().filter_map(|entry| match entry {
            Entry::Taken(client) if wanted(client.number, client.metadata.as_deref()) => Some(client),
            _ => None,
        });
        let told = all.map(|client| {
            if !std::mem::replace(&mut client.killed, true) {
                killed.fetch_add(1, Ordering::Release);
            }
            client.waker.clone()
        });
        told.collect()
    }

    /// A share of the clients, and the tasks of a few more than that, in turn.
    fn some(&mut self, turns: usize) -> (usize, Vec<Waker>) {
        let some = self.clients().count().div_ceil(turns.max(1));
        let (mut woken, all) = (Vec::new(), self.all.len());
        for _ in 0..all {
            if woken.len() == some * WOKEN_PER_LEAVE {
                break;
            }
            if let Some(Entry::Taken(client)) = self.all.get(self.next % all) {
                woken.push(client.waker.clone());
            }
            self.next = (self.next + 1) % all;
        }
        (some, woken)
    }

    fn clients(&self) -> impl Iterator<Item = &Client> {
        self.all.iter().filter_map(|entry| match entry {
            Entry::Taken(client) => Some(client),
            Entry::Free { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;

    fn ends(port: u16) -> Ends {
        Ends::Tcp { peer: ([10, 0, 0, 1], port).into(), local: ([10, 0, 0, 2], 27016).into() }
    }

    fn metadata(application: &str) -> Arc<ClientMetadata> {
        let (driver_name, driver_version) = ("d".into(), "1".into());
        Arc::new(ClientMetadata { application: Some(application.into()), driver_name, driver_version, platform: None })
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Each byte is a byte for every idle client.
    #[test]
    fn a_client_takes_little() {
        assert!(size_of::<Entry>() <= 64, "{} bytes", size_of::<Entry>());
        assert_eq!(size_of::<Option<Slot>>(), 4, "it fits where a socket has room");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_here_is_shown_with_what_is_known() {
        let registry = Registry::default();
        let first = registry.enter(7, &ends(1), Waker::noop().clone());
        tokio::time::advance(Duration::from_secs(5)).await;
        let second = registry.enter(3, &Ends::Unix("/s".into()), Waker::noop().clone());
        registry.greeted(first, metadata("shop"));
        let desk = registry.desk();
        desk.begins(7);
        let shown: Vec<_> = registry
            .clients()
            .into_iter()
            .map(|it| {
                let application = it.metadata.and_then(|metadata| metadata.application.clone());
                (it.number, it.address, application, it.age.as_secs(), it.active)
            })
            .collect();
        let address = Some(("10.0.0.1".parse().unwrap(), 1));
        assert_eq!(shown, [(3, None, None, 0, false), (7, address, Some("shop".into()), 5, true)]);
        desk.ends();
        assert!(registry.clients().iter().all(|client| !client.active));
        desk.begins(3);
        drop(desk);
        assert!(registry.clients().iter().all(|client| !client.active), "a desk that is gone tells nothing");
        registry.leave(first);
        registry.leave(second);
        assert!(registry.clients().is_empty() && registry.groups().is_empty());
    }

    #[test]
    fn clients_that_have_told_the_same_are_one_group() {
        let registry = Registry::default();
        let (shop, mail) = (metadata("shop"), metadata("mail"));
        for (number, told) in [(1, Some(&shop)), (2, Some(&mail)), (3, Some(&shop)), (4, None)] {
            let slot = registry.enter(number, &ends(1), Waker::noop().clone());
            if let Some(metadata) = told {
                registry.greeted(slot, metadata.clone());
            }
        }
        let desk = registry.desk();
        desk.begins(3);
        let mut groups: Vec<_> = registry
            .groups()
            .into_iter()
            .map(|it| (it.metadata.and_then(|metadata| metadata.application.clone()), it.clients, it.active))
            .collect();
        groups.sort();
        assert_eq!(groups, [(None, 1, 0), (Some("mail".into()), 1, 0), (Some("shop".into()), 2, 1)]);
    }

    #[test]
    fn only_who_is_to_go_is_told_and_woken() {
        let registry = Registry::default();
        let woken: Vec<Arc<Woken>> = (0..3).map(|_| Arc::default()).collect();
        let slots: Vec<Slot> =
            (1..).zip(&woken).map(|(number, woken)| registry.enter(number, &ends(1), woken.clone().into())).collect();
        let killed = || -> Vec<bool> { slots.iter().map(|slot| registry.is_killed(Some(*slot))).collect() };
        assert_eq!(registry.kill(|number, _| number == 9), 0);
        assert_eq!(killed(), [false; 3]);
        assert_eq!(registry.kill(|number, _| number == 2), 1);
        assert_eq!(registry.kill(|number, _| number == 2), 1, "again is no mistake");
        assert_eq!(killed(), [false, true, false]);
        assert!(!registry.is_killed(None), "who is not listed cannot be named");
        let awake: Vec<bool> = woken.iter().map(|woken| woken.0.load(Ordering::Relaxed)).collect();
        assert_eq!(awake, [false, true, false]);
        registry.leave(slots[1]);
        assert_eq!(registry.killed.load(Ordering::Relaxed), 0, "nobody looks for himself any more");
        let next = registry.enter(4, &ends(1), Waker::noop().clone());
        assert_eq!(next, slots[1], "its place is taken again");
        assert!(!registry.is_killed(Some(next)), "the next one there is somebody else");
    }

    proptest! {
        /// Against a map: who enters is there until it leaves, and places are taken again.
        #[test]
        fn nobody_is_lost_or_mistaken(steps in proptest::collection::vec((0_u8..3, 0_usize..20), 0..200)) {
            let registry = Registry::default();
            let mut here: BTreeMap<u64, (Slot, bool)> = BTreeMap::new();
            let (mut number, mut most) = (0_i64, 0);
            for (what, which) in steps {
                let chosen = here.keys().nth(which).copied();
                match (what, chosen) {
                    (0, _) => {
                        number += 1;
                        let slot = registry.enter(number, &ends(1), Waker::noop().clone());
                        here.insert(number.unsigned_abs(), (slot, false));
                    }
                    (1, Some(gone)) => registry.leave(here.remove(&gone).unwrap().0),
                    (_, Some(killed)) => {
                        prop_assert_eq!(registry.kill(|number, _| number == killed), 1);
                        here.get_mut(&killed).unwrap().1 = true;
                    }
                    (_, None) => {}
                }
                most = most.max(here.len());
                let numbers: Vec<u64> = registry.clients().iter().map(|client| client.number).collect();
                prop_assert_eq!(numbers, here.keys().copied().collect::<Vec<_>>());
                for (slot, killed) in here.values() {
                    prop_assert_eq!(registry.is_killed(Some(*slot)), *killed);
                }
                let to_go = here.values().filter(|(_, killed)| *killed).count();
                prop_assert_eq!(registry.killed.load(Ordering::Relaxed), to_go);
                prop_assert_eq!(lock(&registry.entries).all.len(), most);
            }
        }
    }
}
