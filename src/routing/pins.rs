//! What binds commands to a server: cursors and transactions. Not to a connection, neither needs one of its own.
//!
//! Bounded and expiring. At the bound a new pin is refused, a living one is never dropped: its client could not go on.

mod long_held;
mod moves;
mod statements;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::auth::UserId;
use crate::command::{SessionId, TransactionId};
use crate::config::Address;
use crate::config::limits::{CURSOR_PIN_EXPIRY, MAX_CURSOR_PINS, MAX_TRANSACTION_PINS, ORPHANED_TRANSACTION_GRACE};
use crate::telemetry::Application;
use crate::wire::Timestamp;
pub use long_held::{HeldCursor, HeldPins, HeldTransaction, Holds};
pub use moves::{MovedCursor, MovedTransaction};
use statements::Statements;
pub use statements::{StatementSerial, WasIdle};

/// A cursor of a session lives as long as the session: 30 minutes, and a margin.
const SESSION_PIN_EXPIRY: Duration = Duration::from_secs(33 * 60);

/// A cursor with `noCursorTimeout` lives as long as its session, which its client keeps alive by `refreshSessions` or by
/// whatever else it does in it. That is not followed: a day is longer than one client will pause between two batches.
const NO_TIMEOUT_PIN_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// Servers end a transaction 60 s after its start by default; where it is set higher, one that was idle for longer than
/// this is looked for on the primary, which is where it runs anyway unless that changed.
const TRANSACTION_PIN_EXPIRY: Duration = Duration::from_secs(120);

/// By default a server has ended by then what was idle for so long. Where it has not, nothing is kept for it any more.
const ROOM_EXPIRY: Duration = Duration::from_secs(65);

/// Cursors are looked through for expired ones every few seconds. One that has been idle for longer than its expiry by
/// this was overlooked.
const OVERLOOKED: Duration = Duration::from_secs(60);

/// A commit may be repeated for a while after the transaction has ended.
const ENDED_TRANSACTION_EXPIRY: Duration = Duration::from_secs(120);

/// How long a server keeps a cursor that is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CursorLife {
    /// As long as it keeps any.
    Plain,
    /// As long as the session that it belongs to.
    Session,
    /// It was asked not to time it out.
    NoTimeout,
}

/// Where a cursor lives, and what kind it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorPin {
    /// The server that made it.
    pub server: Arc<Address>,
    /// Who made it.
    pub user: UserId,
    /// Its `getMore` waits for data.
    pub awaits_data: bool,
    /// Made by a change stream, whose driver resumes after some errors.
    pub change_stream: bool,
    /// How long it can live.
    pub life: CursorLife,
    /// Of the client that made it.
    pub application: Application,
    /// Of one that waits for data: up to where everything that was written has been delivered, as far as is known.
    pub caught_up: Option<Timestamp>,
}

#[derive(Debug)]
struct PinnedCursor {
    pin: CursorPin,
    since: Instant,
    last_used: Instant,
    /// Another process of ours knows of it.
    told: bool,
}

impl PinnedCursor {
    /// How long it may be idle.
    fn expiry(&self) -> Duration {
        match self.pin.life {
            CursorLife::Plain => CURSOR_PIN_EXPIRY,
            CursorLife::Session => SESSION_PIN_EXPIRY,
            CursorLife::NoTimeout => NO_TIMEOUT_PIN_EXPIRY,
        }
    }
}

/// What a server keeps free for an open transaction, as long as this lives.
pub struct Room(#[expect(dead_code, reason = "is given back when it is dropped")] Box<dyn Send + Sync>);

impl Room {
    /// Kept by whatever `kept` does when it is dropped.
    pub fn new(kept: impl Send + Sync + 'static) -> Self {
        Self(Box::new(kept))
    }
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Room").finish_non_exhaustive()
    }
}

/// Tells the pin of a transaction from earlier and later ones of the same session, whatever their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinSerial(u64);

#[derive(Debug)]
struct PinnedTransaction {
    number: i64,
    serial: PinSerial,
    server: Arc<Address>,
    open: bool,
    /// Sockets that have used it and are open, and commands that outlived theirs.
    sockets: u32,
    /// Its client can only go on over a socket that is gone.
    abandoned: bool,
    since: Instant,
    /// Also when a socket was gone.
    last_used: Instant,
    /// While it is open.
    room: Option<Room>,
    statements: Statements,
    /// Of the client that began it, once that is known.
    application: Option<Application>,
}

impl PinnedTransaction {
    fn is_orphan(&self, now: Instant) -> bool {
        let for_long = now.duration_since(self.last_used) >= ORPHANED_TRANSACTION_GRACE;
        self.open && self.sockets == 0 && (self.abandoned || for_long)
    }

    fn end(&mut self, now: Instant) -> Ended {
        self.open = false;
        self.last_used = now;
        Ended { server: self.server.clone(), open_for: now.duration_since(self.since), room: self.room.take() }
    }
}

/// A transaction that was open until now.
#[derive(Debug)]
pub struct Ended {
    /// Where it ran.
    pub server: Arc<Address>,
    /// How long it was open.
    pub open_for: Duration,
    /// What was kept free for it: for its abort, where that is still to come.
    pub room: Option<Room>,
}

/// How many of something, and the age of the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Group {
    /// How many.
    pub count: usize,
    /// Of the one that is oldest.
    pub oldest: Duration,
}

impl Group {
    fn add(&mut self, age: Duration) {
        (self.count, self.oldest) = (self.count + 1, self.oldest.max(age));
    }

    /// Of things that are so old.
    pub fn of(ages: impl Iterator<Item = Duration>) -> Self {
        let mut all = Self::default();
        ages.for_each(|age| all.add(age));
        all
    }
}

/// Why there is no pin for a new cursor or transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// As many as there may be.
    #[error("{limit} are open already, which is the limit")]
    Full {
        /// The bound.
        limit: usize,
    },
    /// Another server uses the same cursor id.
    #[error("another server has a cursor of the same id")]
    Collision,
}

/// Pins of one cluster.
#[derive(Debug, Default)]
pub struct Pins {
    cursors: HashMap<i64, PinnedCursor>,
    /// Ordered, so that those of one UUID stand together.
    transactions: BTreeMap<SessionId, PinnedTransaction>,
    last_serial: u64,
}

impl Pins {
    /// Remembers a cursor.
    ///
    /// # Errors
    /// [`PinError`]; then the cursor cannot be continued and is to be killed.
    pub fn pin_cursor(&mut self, id: i64, pin: CursorPin, now: Instant) -> Result<(), PinError> {
        match self.cursors.get(&id) {
            Some(existing) if existing.pin.server != pin.server => return Err(PinError::Collision),
            None if self.cursors.len() >= MAX_CURSOR_PINS => return Err(PinError::Full { limit: MAX_CURSOR_PINS }),
            _ => {}
        }
        self.cursors.insert(id, PinnedCursor { pin, since: now, last_used: now, told: false });
        Ok(())
    }

    /// True when somebody else has a transaction open in a session of that UUID.
    pub fn is_used_by_another(&self, session: SessionId) -> bool {
        let SessionId { id, user } = session;
        let same = SessionId { id, user: UserId::SERVICE }..=SessionId { id, user: UserId::LAST };
        self.transactions.range(same).any(|(other, pin)| other.user != user && pin.open)
    }

    /// True when one of these cursors is somebody else's.
    pub fn has_of_another(&self, ids: &[i64], user: UserId) -> bool {
        ids.iter().any(|id| self.cursors.get(id).is_some_and(|cursor| cursor.pin.user != user))
    }

    /// Where a cursor lives; using it keeps it.
    pub fn cursor(&mut self, id: i64, now: Instant) -> Option<&CursorPin> {
        let cursor = self.cursors.get_mut(&id)?;
        cursor.last_used = now;
        Some(&cursor.pin)
    }

    /// A cursor that waits for data has caught up so far.
    pub fn caught_up(&mut self, id: i64, caught_up: Option<Timestamp>) {
        if let Some(cursor) = self.cursors.get_mut(&id) {
            cursor.pin.caught_up = caught_up;
        }
    }

    /// Forgets a cursor of that server; returns what it was and how long it was pinned.
    pub fn unpin_cursor(&mut self, id: i64, server: &Address, now: Instant) -> Option<(CursorPin, Duration)> {
        self.cursors.get(&id).filter(|cursor| *cursor.pin.server == *server)?;
        self.cursors.remove(&id).map(|cursor| (cursor.pin, now.duration_since(cursor.since)))
    }

    /// Remembers where a transaction starts. It replaces an older one of the same session, which it ends on the server;
    /// one that is tried again on another server stays the same.
    ///
    /// # Errors
    /// [`PinError::Full`]
    pub fn pin_transaction(&mut self, id: TransactionId, server: Arc<Address>, now: Instant) -> Result<(), PinError> {
        if let Some(again) = self.open_transaction(id) {
            again.server = server;
            again.last_used = now;
            return Ok(());
        }
        if self.transactions.len() >= MAX_TRANSACTION_PINS && !self.transactions.contains_key(&id.session) {
            self.transactions.retain(|_, pin| pin.open);
            if self.transactions.len() >= MAX_TRANSACTION_PINS {
                return Err(PinError::Full { limit: MAX_TRANSACTION_PINS });
            }
        }
        let (number, serial) = (id.number, self.next_serial());
        let pin = PinnedTransaction {
            number,
            serial,
            server,
            open: true,
            sockets: 0,
            abandoned: false,
            since: now,
            last_used: now,
            room: None,
            statements: Statements::none(serial, now),
            application: None,
        };
        self.transactions.insert(id.session, pin);
        Ok(())
    }

    /// Keeps what `room` takes on the server as long as the transaction is open, in place of what was kept before.
    pub fn keep_room(&mut self, id: TransactionId, room: impl FnOnce() -> Room) {
        if let Some(pin) = self.open_transaction(id) {
            pin.room = Some(room());
        }
    }

    /// Where a transaction runs or ran; using it keeps it.
    pub fn transaction(&mut self, id: TransactionId, now: Instant) -> Option<Arc<Address>> {
        let pin = self.transactions.get_mut(&id.session).filter(|pin| pin.number == id.number)?;
        pin.last_used = now;
        Some(pin.server.clone())
    }

    /// A transaction was committed or aborted; its server is remembered for a while, as a commit may be repeated.
    /// Tells of it once.
    pub fn end_transaction(&mut self, id: TransactionId, now: Instant) -> Option<Ended> {
        Some(self.open_transaction(id)?.end(now))
    }

    /// A transaction that was taken for ended may be open still, and nobody's: it is an orphan from now on, and
    /// what was kept for it stays. Not for ever: what is older than any server keeps a transaction has ended.
    pub fn reopen_transaction(&mut self, id: TransactionId, room: Option<Room>, now: Instant) {
        let serial = self.next_serial();
        if let Some(pin) = self.transactions.get_mut(&id.session)
            && pin.number == id.number
            && now.duration_since(pin.since) < TRANSACTION_PIN_EXPIRY
        {
            (pin.serial, pin.open, pin.sockets, pin.room) = (serial, true, 0, room);
            // Not at once again: what kept it from being aborted may take a while.
            (pin.abandoned, pin.last_used) = (false, now);
        }
    }

    /// A socket uses an open transaction; it is counted unless `counted` says that it was. `None` when the transaction
    /// is not open, or not known.
    pub fn join(&mut self, id: TransactionId, counted: Option<PinSerial>, now: Instant) -> Option<PinSerial> {
        let pin = self.open_transaction(id)?;
        pin.last_used = now;
        if counted != Some(pin.serial) {
            pin.sockets = pin.sockets.saturating_add(1);
        }
        Some(pin.serial)
    }

    /// A socket that was counted is gone.
    pub fn leave(&mut self, id: TransactionId, counted: PinSerial, now: Instant) {
        if let Some(pin) = self.open_transaction(id).filter(|pin| pin.serial == counted) {
            pin.sockets = pin.sockets.saturating_sub(1);
            pin.last_used = now;
        }
    }

    /// As [`Pins::leave`], and no other socket will come: it is an orphan as soon as nobody uses it.
    pub fn abandon(&mut self, id: TransactionId, counted: PinSerial, now: Instant) {
        self.leave(id, counted, now);
        if let Some(pin) = self.open_transaction(id).filter(|pin| pin.serial == counted) {
            pin.abandoned = true;
        }
    }

    /// True while the transaction is open that `serial` was given for.
    pub fn is_open(&self, id: TransactionId, serial: PinSerial) -> bool {
        self.transactions.get(&id.session).is_some_and(|pin| pin.open && pin.serial == serial)
    }

    /// Ends up to `most` open transactions whose last socket has been gone for long enough: nobody can end them any more,
    /// and they hold locks.
    pub fn take_orphans(&mut self, most: usize, now: Instant) -> Vec<(TransactionId, Ended)> {
        let orphans = self.transactions.iter_mut().filter(|(_, pin)| pin.is_orphan(now)).take(most);
        orphans.map(|(session, pin)| (TransactionId { session: *session, number: pin.number }, pin.end(now))).collect()
    }

    fn next_serial(&mut self) -> PinSerial {
        self.last_serial += 1;
        PinSerial(self.last_serial)
    }

    fn open_transaction(&mut self, id: TransactionId) -> Option<&mut PinnedTransaction> {
        self.transactions.get_mut(&id.session).filter(|pin| pin.number == id.number && pin.open)
    }

    /// Forgets what has not been used for longer than the server would keep it.
    pub fn expire(&mut self, now: Instant) {
        self.cursors.retain(|_, cursor| now.duration_since(cursor.last_used) < cursor.expiry());
        self.transactions.retain(|_, pin| {
            if pin.statements.idle(now).is_some_and(|idle| idle >= ROOM_EXPIRY) {
                pin.room = None;
            }
            let limit = if pin.open { TRANSACTION_PIN_EXPIRY } else { ENDED_TRANSACTION_EXPIRY };
            now.duration_since(pin.last_used) < limit
        });
    }

    /// Pins of all servers: cursors and open transactions.
    pub fn count(&self) -> (usize, usize) {
        (self.cursors.len(), self.transactions.values().filter(|pin| pin.open).count())
    }

    /// Pins on one server: cursors and open transactions.
    pub fn count_on(&self, server: &Address) -> (usize, usize) {
        let cursors = self.cursors.values().filter(|cursor| *cursor.pin.server == *server).count();
        let transactions = self.transactions.values().filter(|pin| pin.open && *pin.server == *server).count();
        (cursors, transactions)
    }

    /// Cursors on one server that should have been forgotten, as they have been idle for longer than their expiry. Looks at
    /// all of them, at the ages first.
    pub fn overlooked_on(&self, server: &Address, now: Instant) -> Group {
        Group::of(self.cursors.values().filter_map(|cursor| {
            let idle = now.duration_since(cursor.last_used);
            (idle >= cursor.expiry() + OVERLOOKED && *cursor.pin.server == *server).then_some(idle)
        }))
    }

    /// Splits cursor ids by the server that holds them; ids that nobody knows come last, without a server.
    pub fn split(&self, ids: &[i64]) -> Vec<(Option<Arc<Address>>, Vec<i64>)> {
        let mut groups: Vec<(Option<Arc<Address>>, Vec<i64>)> = Vec::new();
        for id in ids {
            let server = self.cursors.get(id).map(|cursor| cursor.pin.server.clone());
            match groups.iter_mut().find(|(known, _)| *known == server) {
                Some((_, members)) => members.push(*id),
                None => groups.push((server, vec![*id])),
            }
        }
        groups.sort_by_key(|(server, _)| server.is_none());
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Applications;

    fn server(port: u16) -> Arc<Address> {
        Arc::new(Address::tcp("127.0.0.1", port))
    }

    fn cursor(port: u16) -> CursorPin {
        CursorPin {
            user: UserId::SERVICE,
            server: server(port),
            awaits_data: false,
            change_stream: false,
            life: CursorLife::Plain,
            application: Applications::default().unnamed(),
            caught_up: None,
        }
    }

    const TRANSACTION: TransactionId =
        TransactionId { session: SessionId { id: [1; 16], user: UserId::SERVICE }, number: 5 };

    #[test]
    fn a_cursor_is_found_until_it_ends_or_expires() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        pins.pin_cursor(7, cursor(1), now).unwrap();
        let later = now + CURSOR_PIN_EXPIRY - Duration::from_secs(1);
        pins.expire(later);
        assert_eq!(pins.cursor(7, later).unwrap().server, server(1));
        pins.expire(later + CURSOR_PIN_EXPIRY - Duration::from_secs(1));
        assert_eq!(pins.count(), (1, 0), "using it kept it");
        pins.expire(later + CURSOR_PIN_EXPIRY);
        assert_eq!(pins.cursor(7, later), None);
        pins.pin_cursor(8, cursor(1), now).unwrap();
        assert_eq!(pins.unpin_cursor(8, &server(2), now), None, "one of the same id, elsewhere");
        let unpinned = pins.unpin_cursor(8, &server(1), now + Duration::from_secs(3));
        assert_eq!(unpinned, Some((cursor(1), Duration::from_secs(3))));
        assert_eq!(pins.unpin_cursor(8, &server(1), now), None);
    }

    #[test]
    fn a_cursor_is_remembered_for_as_long_as_its_server_keeps_it() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        let lives = [
            (CursorLife::Plain, CURSOR_PIN_EXPIRY),
            (CursorLife::Session, SESSION_PIN_EXPIRY),
            (CursorLife::NoTimeout, NO_TIMEOUT_PIN_EXPIRY),
        ];
        for (id, (life, expiry)) in (1..).zip(lives) {
            pins.pin_cursor(id, CursorPin { life, ..cursor(1) }, now).unwrap();
            let last_use = now + expiry - Duration::from_secs(1);
            pins.expire(last_use);
            assert!(pins.cursor(id, last_use).is_some(), "{life:?}");
            pins.expire(last_use + expiry);
            assert_eq!(pins.cursor(id, last_use), None, "{life:?} is not for ever");
        }
    }

    #[test]
    fn the_same_id_on_two_servers_is_a_collision() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        pins.pin_cursor(7, cursor(1), now).unwrap();
        assert_eq!(pins.pin_cursor(7, cursor(2), now), Err(PinError::Collision));
        assert_eq!(pins.pin_cursor(7, cursor(1), now), Ok(()));
        assert_eq!(pins.cursor(7, now).unwrap().server, server(1));
    }

    #[test]
    fn a_living_pin_is_never_dropped_for_a_new_one() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        for number in 0..MAX_TRANSACTION_PINS {
            let mut session = [0; 16];
            session[..8].copy_from_slice(&number.to_le_bytes());
            pins.pin_transaction(TransactionId { session: session.into(), number: 1 }, server(1), now).unwrap();
        }
        let full = Err(PinError::Full { limit: MAX_TRANSACTION_PINS });
        assert_eq!(pins.pin_transaction(TransactionId { session: [9; 16].into(), number: 1 }, server(1), now), full);
        pins.end_transaction(TransactionId { session: [0; 16].into(), number: 1 }, now);
        assert!(pins.pin_transaction(TransactionId { session: [9; 16].into(), number: 1 }, server(1), now).is_ok());
    }

    #[test]
    fn a_transaction_is_found_by_number_and_after_its_end() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        pins.pin_transaction(TRANSACTION, server(1), now).unwrap();
        assert_eq!(pins.transaction(TransactionId { number: 4, ..TRANSACTION }, now), None);
        assert_eq!(pins.count(), (0, 1));
        assert!(pins.end_transaction(TRANSACTION, now).is_some());
        assert!(pins.end_transaction(TRANSACTION, now).is_none());
        assert_eq!(pins.transaction(TRANSACTION, now), Some(server(1)), "a commit may be repeated");
        assert_eq!(pins.count(), (0, 0));
        pins.expire(now + ENDED_TRANSACTION_EXPIRY);
        assert_eq!(pins.transaction(TRANSACTION, now), None);
    }

    #[test]
    fn room_is_kept_while_a_transaction_is_open_and_not_for_ever() {
        let (mut pins, now, kept) = (Pins::default(), Instant::now(), Arc::new(()));
        let is_kept = || Arc::strong_count(&kept) > 1;
        let begin = |pins: &mut Pins, id, now| {
            pins.pin_transaction(id, server(1), now).unwrap();
            pins.keep_room(id, || Room::new(kept.clone()));
            assert!(is_kept());
        };
        begin(&mut pins, TRANSACTION, now);
        let ended = pins.end_transaction(TRANSACTION, now).unwrap();
        assert!(is_kept(), "for its abort");
        pins.reopen_transaction(TRANSACTION, ended.room, now);
        assert!(is_kept(), "it is open again");
        let next = TransactionId { number: 6, ..TRANSACTION };
        begin(&mut pins, next, now);
        assert_eq!(Arc::strong_count(&kept), 2, "the older one of the session has ended");
        drop(pins.end_transaction(next, now));
        assert!(!is_kept());
        pins.keep_room(next, || unreachable!("it has ended"));
        let last = TransactionId { number: 7, ..TRANSACTION };
        begin(&mut pins, last, now);
        let statement = pins.statement_begins(last, &Applications::default().unnamed(), now).unwrap().unwrap();
        pins.expire(now + 2 * ROOM_EXPIRY - Duration::from_secs(11));
        assert!(is_kept(), "a statement is on its way");
        let idle_since = now + Duration::from_secs(30);
        pins.transaction(last, idle_since);
        pins.statement_ended(last, statement, idle_since);
        pins.expire(idle_since + ROOM_EXPIRY - Duration::from_secs(1));
        assert!(is_kept());
        pins.expire(idle_since + ROOM_EXPIRY);
        assert!(!is_kept() && pins.transaction(last, idle_since).is_some());
    }

    #[test]
    fn a_cursor_that_should_be_gone_is_overlooked() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        pins.pin_cursor(1, cursor(1), now).unwrap();
        pins.pin_cursor(2, CursorPin { life: CursorLife::Session, ..cursor(1) }, now).unwrap();
        pins.pin_cursor(3, cursor(2), now).unwrap();
        let on = |pins: &Pins, port, seconds| pins.overlooked_on(&server(port), now + Duration::from_secs(seconds));
        let group = |count, seconds| Group { count, oldest: Duration::from_secs(seconds) };
        assert_eq!(on(&pins, 1, 719), Group::default());
        assert_eq!((on(&pins, 1, 720), on(&pins, 2, 720)), (group(1, 720), group(1, 720)));
        assert_eq!(on(&pins, 1, 3_000), group(2, 3_000));
        pins.expire(now + Duration::from_secs(3_000));
        assert_eq!(on(&pins, 1, 3_000), Group::default());
    }

    #[test]
    fn cursor_ids_are_split_by_server() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        for (id, port) in [(1, 10), (2, 20), (3, 10)] {
            pins.pin_cursor(id, cursor(port), now).unwrap();
        }
        let groups = pins.split(&[1, 9, 2, 3]);
        assert_eq!(groups, [(Some(server(10)), vec![1, 3]), (Some(server(20)), vec![2]), (None, vec![9])]);
    }
}
