//! A replica set as the proxy sees it: members with roles that come and go, and what commands do to the data.
//!
//! Replication takes no time here and loses nothing: what is lost or done twice is then the work of the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Bson, Document, doc};
use mongomux::config::Address;
use mongomux::tasks::Tasks;
use mongomux::topology::TopologyVersion;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::chance::Chance;
use crate::network::{End, Network};
use crate::truth::{Token, Truth};

/// Session and number of a transaction, or of a write that may be sent again.
pub(crate) type Numbered = (Vec<u8>, i64);

/// Servers end a transaction that is older.
const TRANSACTION_LIFETIME: Duration = Duration::from_secs(60);

pub(crate) struct Set {
    pub(crate) members: Vec<Member>,
    pub(crate) network: Network,
    pub(crate) chance: Chance,
    pub(crate) truth: Truth,
    pub(crate) tasks: Tasks,
    pub(crate) bounds: Bounds,
    /// Of a hundred replies, so many are not what they should be.
    pub(crate) mangled_percent: AtomicU64,
    data: Mutex<Data>,
}

/// How many connections there may be.
pub(crate) struct Bounds {
    pub(crate) of_server: usize,
    pub(crate) of_all: Option<usize>,
}

#[derive(Default)]
struct Data {
    /// Writes that may be sent again and were executed.
    retryable: BTreeSet<Numbered>,
    committed: BTreeSet<Numbered>,
    last_cursor: i64,
    term: i64,
    last_reply: Option<Document>,
}

pub(crate) struct Member {
    pub(crate) address: Address,
    state: Mutex<State>,
    /// Rises with each change that whoever watches it is told of.
    pub(crate) version: watch::Sender<u64>,
}

/// What a member is now.
pub(crate) struct State {
    pub(crate) up: bool,
    /// Rises with each start.
    pub(crate) start: u64,
    pub(crate) primary: bool,
    pub(crate) term: i64,
    pub(crate) topology_version: TopologyVersion,
    pub(crate) frozen_until: Instant,
    /// Dials get no answer before.
    pub(crate) unreachable_until: Instant,
    /// When whoever watches it lost it.
    pub(crate) lost: Option<Instant>,
    /// Its pool was cleared between these, for the last time.
    pub(crate) cleared: Option<(Instant, Instant)>,
    cursors: BTreeMap<i64, Cursor>,
    transactions: BTreeMap<Numbered, Transaction>,
    /// Sessions with a command under way: the next one waits.
    busy: BTreeSet<Vec<u8>>,
}

struct Cursor {
    batches_left: u32,
    awaits_data: bool,
}

struct Transaction {
    statements: Vec<Token>,
    began: Instant,
}

/// What a command is, as a server looks at it.
pub(crate) struct Request<'a> {
    pub(crate) name: &'a str,
    pub(crate) document: &'a Document,
    pub(crate) token: Option<Token>,
    numbered: Option<Numbered>,
    in_transaction: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn new(document: &'a Document) -> Self {
        let name = document.keys().next().map_or("", String::as_str);
        let session = match document.get_document("lsid").ok().and_then(|lsid| lsid.get("id")) {
            Some(Bson::Binary(id)) => Some(id.bytes.clone()),
            _ => None,
        };
        let number = document.get_i64("txnNumber").ok();
        Self {
            name,
            document,
            token: document.get_i64("comment").ok(),
            numbered: session.zip(number),
            in_transaction: document.get_bool("autocommit").is_ok_and(|it| !it),
        }
    }

    fn is_write(&self) -> bool {
        matches!(self.name, "insert" | "update")
    }

    /// The transaction of which it is a statement, and not the end.
    fn statement_of(&self) -> Option<&Numbered> {
        self.numbered.as_ref().filter(|_| self.in_transaction && !self.is_retryable())
    }

    /// It may be sent again, and drivers do where a label says so.
    fn is_retryable(&self) -> bool {
        self.numbered.is_some()
            && (!self.in_transaction || matches!(self.name, "commitTransaction" | "abortTransaction"))
    }
}

impl Member {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it runs again.
    pub(crate) async fn thaw(&self) {
        loop {
            let until = self.state().frozen_until;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn tell(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

impl State {
    fn changed(&mut self) {
        self.topology_version.counter += 1;
    }

    pub(crate) fn topology_version(&self) -> Document {
        doc! { "processId": self.topology_version.process_id, "counter": self.topology_version.counter }
    }
}

impl Set {
    pub(crate) fn new(
        addresses: &[Address],
        chance: Chance,
        truth: Truth,
        bounds: Bounds,
        network: Network,
        mangled_percent: u64,
    ) -> Arc<Self> {
        let members = addresses.iter().enumerate().map(|(number, address)| Member {
            address: address.clone(),
            state: Mutex::new(State {
                up: true,
                start: 0,
                primary: number == 0,
                term: 1,
                topology_version: TopologyVersion { process_id: process_id(&chance), counter: 1 },
                frozen_until: Instant::now(),
                unreachable_until: Instant::now(),
                lost: None,
                cleared: None,
                cursors: BTreeMap::new(),
                transactions: BTreeMap::new(),
                busy: BTreeSet::new(),
            }),
            version: watch::Sender::default(),
        });
        let data = Mutex::new(Data { term: 1, last_cursor: 1_000, ..Data::default() });
        Arc::new(Self {
            members: members.collect(),
            network,
            chance,
            truth,
            tasks: Tasks::new(),
            bounds,
            mangled_percent: AtomicU64::new(mangled_percent),
            data,
        })
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the member at that address.
    pub(crate) fn number_of(&self, address: &Address) -> usize {
        let number = self.members.iter().position(|member| member.address == *address);
        number.expect("a member of the set")
    }

    pub(crate) fn primary(&self) -> Option<usize> {
        let now = Instant::now();
        self.members.iter().position(|member| {
            let state = member.state();
            state.up && state.primary && state.frozen_until <= now
        })
    }

    /// The process ends, with all that only it knew.
    pub(crate) fn kill(&self, number: usize) {
        self.truth.note(format_args!("server {number} is killed"));
        let member = &self.members[number];
        {
            let mut state = member.state();
            (state.up, state.primary) = (false, false);
            state.start += 1;
            state.frozen_until = Instant::now();
            state.cursors.clear();
            state.transactions.clear();
            state.busy.clear();
        }
        self.network.reset(crate::network::Far::Server(number), 100);
        member.tell();
    }

    pub(crate) fn start(&self, number: usize) {
        self.truth.note(format_args!("server {number} starts"));
        let member = &self.members[number];
        {
            let mut state = member.state();
            state.up = true;
            state.topology_version = TopologyVersion { process_id: process_id(&self.chance), counter: 1 };
        }
        member.tell();
    }

    pub(crate) fn freeze(&self, number: usize, time: Duration) {
        self.truth.note(format_args!("server {number} stands still for {} ms", time.as_millis()));
        let mut state = self.members[number].state();
        state.frozen_until = state.frozen_until.max(Instant::now() + time);
    }

    pub(crate) fn step_down(&self, number: usize) {
        self.truth.note(format_args!("server {number} steps down"));
        {
            let mut state = self.members[number].state();
            state.primary = false;
            state.transactions.clear();
            state.changed();
        }
        self.members[number].tell();
    }

    /// One that is well becomes the primary, if there is none; who was it and could not be asked learns of that when it can.
    pub(crate) fn elect(&self) {
        if self.primary().is_some() {
            return;
        }
        let now = Instant::now();
        let well: Vec<usize> = (0..self.members.len())
            .filter(|number| {
                let state = self.members[*number].state();
                state.up && state.frozen_until <= now
            })
            .collect();
        if well.is_empty() {
            return;
        }
        let chosen = self.chance.pick(&well);
        for (number, member) in self.members.iter().enumerate() {
            if number != chosen && member.state().primary {
                self.step_down(number);
            }
        }
        self.truth.note(format_args!("server {chosen} is the primary"));
        let term = {
            let mut data = self.data();
            data.term += 1;
            data.term
        };
        {
            let mut state = self.members[chosen].state();
            (state.primary, state.term) = (true, term);
            state.changed();
        }
        self.members[chosen].tell();
    }

    pub(crate) fn hello(&self, number: usize) -> Document {
        let state = self.members[number].state();
        let hosts: Vec<String> = self.members.iter().map(|member| member.address.to_string()).collect();
        doc! {
            "isWritablePrimary": state.primary, "secondary": !state.primary, "setName": "rs", "hosts": hosts,
            "me": self.members[number].address.to_string(), "topologyVersion": state.topology_version(),
            "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
            "logicalSessionTimeoutMinutes": 30, "minWireVersion": 0, "maxWireVersion": 17, "readOnly": false, "ok": 1.0,
        }
    }

    /// The reply before this one, of any server to any client.
    pub(crate) fn last_reply(&self, this: &Document) -> Option<Document> {
        self.data().last_reply.replace(this.clone())
    }

    /// A connection from before the server was lost, or its pool was cleared, carries nothing that a client has sent since.
    pub(crate) fn check_generation(&self, number: usize, made: Instant, command: &Document) {
        let Some(token) = Request::new(command).token else { return };
        let Some(sent) = self.truth.facts().first_sent.get(&token).copied() else { return };
        let (lost, cleared) = {
            let state = self.members[number].state();
            (state.lost, state.cleared)
        };
        if lost.is_some_and(|lost| made < lost && lost < sent) {
            self.truth
                .broken(format_args!("command {token} came over a connection from before server {number} was lost"));
        }
        if cleared.is_some_and(|(after, before)| made < after && before < sent) {
            self.truth.broken(format_args!(
                "command {token} came over a connection from before the pool of server {number} was cleared"
            ));
        }
    }

    /// What a command does, all at once.
    pub(crate) fn execute(&self, number: usize, request: &Request<'_>) -> Document {
        match request.name {
            "hello" | "isMaster" | "ismaster" => return self.hello(number),
            "ping" => return doc! { "ok": 1.0 },
            "killCursors" => return self.kill_cursors(number, request),
            "getMore" => return self.get_more(number, request),
            _ => {}
        }
        if request.name == "find" && !request.in_transaction {
            return self.find(number, request);
        }
        if !request.is_write() && !request.in_transaction {
            return doc! { "ok": 1.0 };
        }
        self.check_transaction(number, request);
        if !self.members[number].state().primary {
            return self.state_error(number, 10107, "NotWritablePrimary", request);
        }
        match &request.numbered {
            Some(numbered) if request.in_transaction => self.in_transaction(number, request, numbered),
            Some(numbered) => {
                if self.data().retryable.insert(numbered.clone()) {
                    self.effect(request);
                    return doc! { "n": 1, "ok": 1.0 };
                }
                doc! { "n": 1, "retriedStmtIds": [0], "ok": 1.0 }
            }
            None => {
                self.effect(request);
                doc! { "n": 1, "ok": 1.0 }
            }
        }
    }

    fn effect(&self, request: &Request<'_>) {
        if let Some(token) = request.token {
            *self.truth.facts().effects.entry(token).or_default() += 1;
        }
    }

    fn find(&self, number: usize, request: &Request<'_>) -> Document {
        let mode =
            request.document.get_document("$readPreference").and_then(|it| it.get_str("mode")).unwrap_or("primary");
        if !self.members[number].state().primary && mode == "primary" {
            return self.state_error(number, 13435, "NotPrimaryNoSecondaryOk", request);
        }
        let batches_left = request.document.get_i32("batches").unwrap_or_default() as u32;
        let awaits_data = request.document.get_bool("awaitData").unwrap_or_default();
        let id = if batches_left > 0 || awaits_data {
            let id = {
                let mut data = self.data();
                data.last_cursor += 1;
                data.last_cursor
            };
            self.truth.note(format_args!("server {number} opens cursor {id} for {:?}", request.token));
            self.truth.facts().cursors.extend(request.token.map(|token| (id, token)));
            self.members[number].state().cursors.insert(id, Cursor { batches_left, awaits_data });
            id
        } else {
            0
        };
        let batch = vec![doc! { "x": "y".repeat(self.chance.below(400)) }; 1 + self.chance.below(3)];
        doc! { "cursor": { "firstBatch": batch, "id": id, "ns": "test.c" }, "ok": 1.0 }
    }

    fn get_more(&self, number: usize, request: &Request<'_>) -> Document {
        let id = request.document.get_i64("getMore").unwrap_or_default();
        let mut state = self.members[number].state();
        let Some(cursor) = state.cursors.get_mut(&id) else {
            drop(state);
            let elsewhere = self.members.iter().position(|member| member.state().cursors.contains_key(&id));
            if let Some(elsewhere) = elsewhere {
                self.truth.broken(format_args!("cursor {id} of server {elsewhere} was asked for at server {number}"));
            }
            return error(43, "CursorNotFound", &[]);
        };
        if !cursor.awaits_data {
            cursor.batches_left -= 1;
            if cursor.batches_left == 0 {
                state.cursors.remove(&id);
                return doc! { "cursor": { "nextBatch": [], "id": 0_i64, "ns": "test.c" }, "ok": 1.0 };
            }
        }
        doc! { "cursor": { "nextBatch": [{ "x": 1 }], "id": id, "ns": "test.c" }, "ok": 1.0 }
    }

    /// Waits until no other command of the session is under way, and keeps others out. False when whoever has sent it is gone
    /// before that: then it is not carried out.
    pub(crate) async fn check_out_session(&self, number: usize, request: &Request<'_>, end: &End) -> bool {
        let Some((session, _)) = &request.numbered else { return true };
        while !self.members[number].state().busy.insert(session.clone()) {
            if end.is_over() {
                return false;
            }
            sleep(Duration::from_millis(2)).await;
        }
        true
    }

    pub(crate) fn check_in_session(&self, number: usize, request: &Request<'_>) {
        if let Some((session, _)) = &request.numbered {
            self.members[number].state().busy.remove(session);
        }
    }

    /// True when a `getMore` waits for data that does not come.
    pub(crate) fn awaits_data(&self, number: usize, request: &Request<'_>) -> bool {
        let id = request.document.get_i64("getMore").unwrap_or_default();
        request.name == "getMore"
            && self.members[number].state().cursors.get(&id).is_some_and(|cursor| cursor.awaits_data)
    }

    fn kill_cursors(&self, number: usize, request: &Request<'_>) -> Document {
        let ids = request.document.get_array("cursors").cloned().unwrap_or_default();
        let mut state = self.members[number].state();
        let (killed, unknown): (Vec<_>, Vec<_>) =
            ids.into_iter().partition(|id| id.as_i64().is_some_and(|id| state.cursors.remove(&id).is_some()));
        let none: Vec<Bson> = Vec::new();
        doc! {
            "cursorsKilled": killed, "cursorsNotFound": unknown, "cursorsAlive": &none, "cursorsUnknown": &none, "ok": 1.0,
        }
    }

    /// A transaction goes on where it has begun. Its end may be asked for elsewhere, where it may have been told of.
    fn check_transaction(&self, number: usize, request: &Request<'_>) {
        let begins = request.document.get_bool("startTransaction").unwrap_or_default();
        let Some(numbered) = request.statement_of().filter(|_| !begins) else { return };
        let has = |member: &Member| {
            let state = member.state();
            state.up && state.transactions.contains_key(numbered)
        };
        if let Some(other) = self.members.iter().position(has).filter(|other| *other != number) {
            self.truth.broken(format_args!("a transaction of server {other} went on at server {number}"));
        }
    }

    fn in_transaction(&self, number: usize, request: &Request<'_>, numbered: &Numbered) -> Document {
        let now = Instant::now();
        let mut state = self.members[number].state();
        state.transactions.retain(|_, open| now.duration_since(open.began) < TRANSACTION_LIFETIME);
        if request.document.get_bool("startTransaction").unwrap_or_default() {
            state.transactions.retain(|(session, _), _| *session != numbered.0);
            let open = Transaction { statements: request.token.into_iter().collect(), began: now };
            state.transactions.insert(numbered.clone(), open);
            return doc! { "n": 1, "ok": 1.0 };
        }
        let gone = |labels: &[&str]| error(251, "NoSuchTransaction", labels);
        match request.name {
            "commitTransaction" => {
                if let Some(open) = state.transactions.remove(numbered) {
                    let mut facts = self.truth.facts();
                    for token in open.statements {
                        *facts.effects.entry(token).or_default() += 1;
                    }
                    self.data().committed.insert(numbered.clone());
                    return doc! { "ok": 1.0 };
                }
                if self.data().committed.contains(numbered) {
                    return doc! { "ok": 1.0 };
                }
                gone(&["TransientTransactionError"])
            }
            "abortTransaction" => match state.transactions.remove(numbered) {
                Some(_) => doc! { "ok": 1.0 },
                None => gone(&[]),
            },
            _ => {
                if let Some(open) = state.transactions.get_mut(numbered) {
                    open.statements.extend(request.token.filter(|_| request.is_write()));
                    return doc! { "n": 1, "ok": 1.0 };
                }
                gone(&["TransientTransactionError"])
            }
        }
    }

    /// A statement that fails ends its transaction, as servers have it; what ends it anyway may be sent again.
    pub(crate) fn end_by_error(&self, number: usize, request: &Request<'_>) {
        if let Some(numbered) = request.statement_of() {
            self.members[number].state().transactions.remove(numbered);
        }
    }

    /// An error that tells of the state of the member.
    pub(crate) fn state_error(&self, number: usize, code: i32, name: &str, request: &Request<'_>) -> Document {
        let label: &[&str] = if request.is_retryable() {
            &["RetryableWriteError"]
        } else if request.in_transaction {
            &["TransientTransactionError"]
        } else {
            &[]
        };
        let mut error = error(code, name, label);
        error.insert("topologyVersion", self.members[number].state().topology_version());
        error
    }

    /// Transactions that are open, but for those that their clients have given up for a later one: where, and their statements.
    pub(crate) fn open_transactions(&self) -> Vec<String> {
        let (now, facts) = (Instant::now(), self.truth.facts());
        let counts = |((session, number), open): &(&Numbered, &Transaction)| {
            let young = now.duration_since(open.began) < TRANSACTION_LIFETIME;
            young && facts.last_number.get(session).is_none_or(|last| number >= last)
        };
        let mut told = Vec::new();
        for (number, member) in self.members.iter().enumerate() {
            let state = member.state();
            let open = state.transactions.iter().filter(counts);
            told.extend(open.map(|(_, open)| format!("{:?} on server {number}", open.statements)));
        }
        told
    }

    /// Cursors that are open.
    pub(crate) fn open_cursors(&self) -> BTreeSet<i64> {
        self.members.iter().flat_map(|member| member.state().cursors.keys().copied().collect::<Vec<_>>()).collect()
    }
}

/// An error as a server tells it.
pub(crate) fn error(code: i32, name: &str, labels: &[&str]) -> Document {
    let mut error = doc! { "ok": 0.0, "errmsg": "as the simulation wants it", "code": code, "codeName": name };
    if !labels.is_empty() {
        error.insert("errorLabels", labels);
    }
    error
}

fn process_id(chance: &Chance) -> ObjectId {
    ObjectId::from_bytes(chance.bytes())
}
