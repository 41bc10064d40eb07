//! A client as drivers are, and as programs are that use them: one command at a time over a socket, and now and then it leaves, at
//! any moment.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::message::{self, MORE_TO_COME, NoMessage};
use crate::network::End;
use crate::server::cursor_of;
use crate::truth::Token;
use crate::world::World;

/// How much later than promised an answer may be here: what the network takes, and a round of timers.
const SLACK: Duration = Duration::from_millis(1_500);

/// How much longer than `maxTimeMS` a server has to say itself that the time is over.
const MAX_TIME_GRACE: Duration = Duration::from_secs(1);

/// Longest time that a server, or the network to it, may make a command wait once it is sent.
const IN_SERVERS: Duration = Duration::from_secs(75);

struct Client {
    world: Arc<World>,
    number: usize,
    socket: Option<(End, Arc<Notify>)>,
    session: Vec<u8>,
    transaction_number: i64,
    cursors: Vec<i64>,
    request_id: i32,
    /// The proxy may still be at a command before, which it gives no reply to.
    behind: bool,
}

/// How a command is meant.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meant {
    Read,
    Write,
    /// May be sent again.
    RetryableWrite,
    /// Executed once the transaction is.
    Statement,
    Commit,
    Other,
}

/// What came of it.
enum Answer {
    Done(Document),
    Failed(Document),
    /// There is no socket any more.
    Gone,
}

/// Carries out the commands of client `number`.
pub(crate) async fn run(world: Arc<World>, number: usize) {
    let mut client = Client::new(world.clone(), number);
    let chance = &world.chance;
    for _ in 0..world.plan.commands {
        sleep(chance.ms(0..chance.pick(&[2, 100, 1_500]))).await;
        match chance.range(0..100) {
            0..20 => client.find(0, false).await,
            20..30 => client.find(1 + chance.below(3) as i32, false).await,
            30..35 => client.find(0, true).await,
            35..50 => client.next_batch().await,
            50..53 => client.kill_cursors().await,
            53..65 => client.write().await,
            65..77 => client.retryable_write().await,
            77..80 => client.unacknowledged_write().await,
            80..92 => client.transaction().await,
            92..94 => client.leave_half_way().await,
            94..96 => client.send_nonsense().await,
            96..98 => client.be_cancelled().await,
            _ => client.socket = None,
        }
    }
    world.truth().note(format_args!("client {number} has done its work"));
}

/// Writes until a write goes through.
pub(crate) async fn probe(world: Arc<World>, number: usize) {
    let mut client = Client::new(world.clone(), number);
    loop {
        let (command, token) = client.command(doc! { "insert": "c", "documents": [{ "x": 1 }] });
        if let Answer::Done(_) = client.exchange(command, token, Meant::Write, true).await {
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

impl Client {
    fn new(world: Arc<World>, number: usize) -> Self {
        let session = world.chance.bytes::<16>().to_vec();
        Self {
            world,
            number,
            socket: None,
            session,
            transaction_number: 0,
            cursors: Vec::new(),
            request_id: 0,
            behind: false,
        }
    }

    /// A command with what names it.
    fn command(&self, mut command: Document) -> (Document, Token) {
        let token = self.world.truth().next_token();
        command.insert("$db", "test");
        command.insert("comment", token);
        (command, token)
    }

    fn lsid(&self) -> Document {
        doc! { "id": Binary { subtype: BinarySubtype::Uuid, bytes: self.session.clone() } }
    }

    async fn find(&mut self, batches: i32, awaits_data: bool) {
        let mut find = doc! { "find": "c", "filter": {} };
        if awaits_data {
            find.extend(doc! { "tailable": true, "awaitData": true });
        }
        if batches > 0 {
            find.insert("batches", batches);
        }
        if self.world.chance.percent(40) {
            find.insert("$readPreference", doc! { "mode": "secondaryPreferred" });
        }
        if self.world.chance.percent(30) && !awaits_data {
            find.insert("maxTimeMS", self.world.chance.range(50..4_000) as i64);
        }
        let (find, token) = self.command(find);
        if let Answer::Done(reply) = self.exchange(find, token, Meant::Read, false).await {
            self.remember_cursor(&reply);
        }
    }

    fn remember_cursor(&mut self, reply: &Document) {
        if let Some(id) = cursor_of(reply) {
            self.cursors.push(id);
        }
    }

    async fn next_batch(&mut self) {
        let Some(id) = self.cursors.pop() else { return self.find(2, false).await };
        let (command, token) = self.command(doc! { "getMore": id, "collection": "c" });
        if let Answer::Done(reply) = self.exchange(command, token, Meant::Read, false).await {
            self.remember_cursor(&reply);
        }
    }

    async fn kill_cursors(&mut self) {
        let Some(id) = self.cursors.pop() else { return };
        let (command, token) = self.command(doc! { "killCursors": "c", "cursors": [id] });
        self.exchange(command, token, Meant::Other, false).await;
    }

    async fn write(&mut self) {
        let command = if self.world.chance.percent(70) {
            doc! { "insert": "c", "documents": [{ "x": 1 }] }
        } else {
            doc! { "update": "c", "updates": [{ "q": {}, "u": { "$set": { "x": 1 } }, "multi": true }] }
        };
        let (mut command, token) = self.command(command);
        if self.world.chance.percent(20) {
            command.insert("maxTimeMS", self.world.chance.range(50..4_000) as i64);
        }
        self.exchange(command, token, Meant::Write, false).await;
    }

    /// As drivers do it: once more if a label says that it may be, or if the socket is gone.
    async fn retryable_write(&mut self) {
        self.transaction_number += 1;
        let (mut command, token) = self.command(doc! { "insert": "c", "documents": [{ "x": 1 }] });
        command.insert("lsid", self.lsid());
        command.insert("txnNumber", self.transaction_number);
        for _ in 0..2 {
            match self.exchange(command.clone(), token, Meant::RetryableWrite, false).await {
                Answer::Done(_) => return,
                Answer::Failed(error) if !has_label(&error, "RetryableWriteError") => return,
                Answer::Failed(_) | Answer::Gone => {}
            }
        }
    }

    async fn unacknowledged_write(&mut self) {
        let (mut command, token) = self.command(doc! { "insert": "c", "documents": [{ "x": 1 }] });
        command.insert("writeConcern", doc! { "w": 0 });
        // The proxy may do it again after a state change, which the server has told it of.
        self.world.truth().facts().resent_by_proxy.insert(token);
        self.behind = self.send(&command, token, MORE_TO_COME).await;
    }

    async fn transaction(&mut self) {
        self.transaction_number += 1;
        let mut first = true;
        for _ in 0..self.world.chance.range(1..5) {
            let command = if self.world.chance.percent(60) {
                doc! { "insert": "c", "documents": [{ "x": 1 }] }
            } else {
                doc! { "find": "c", "filter": {} }
            };
            let (mut command, token) = self.command(command);
            self.in_transaction(&mut command);
            if std::mem::take(&mut first) {
                command.insert("startTransaction", true);
            }
            match self.exchange(command, token, Meant::Statement, false).await {
                Answer::Done(_) => {}
                // Whoever drives it gives up, and most tell the server so.
                Answer::Failed(_) if self.world.chance.percent(80) => break,
                Answer::Failed(_) | Answer::Gone => return,
            }
            sleep(self.world.chance.ms(0..self.world.chance.pick(&[2, 300]))).await;
        }
        if self.world.chance.percent(15) {
            return;
        }
        let end = if self.world.chance.percent(70) { "commitTransaction" } else { "abortTransaction" };
        let (mut command, token) = self.command(doc! { end: 1 });
        self.in_transaction(&mut command);
        command.insert("$db", "admin");
        for _ in 0..2 {
            match self.exchange(command.clone(), token, Meant::Commit, false).await {
                Answer::Done(_) => return,
                Answer::Failed(error) if !has_label(&error, "RetryableWriteError") => return,
                Answer::Failed(_) | Answer::Gone => {}
            }
        }
    }

    fn in_transaction(&self, command: &mut Document) {
        command.insert("lsid", self.lsid());
        command.insert("txnNumber", self.transaction_number);
        command.insert("autocommit", false);
    }

    async fn leave_half_way(&mut self) {
        let (command, token) = self.command(doc! { "insert": "c", "documents": [{ "x": 1 }] });
        if !self.is_connected().await {
            return;
        }
        let bytes = message::encode(1, 0, 0, &command);
        let cut = 1 + self.world.chance.below(bytes.len() - 1);
        self.world.truth().note(format_args!("client {} leaves after {cut} bytes of {token}", self.number));
        if let Some((socket, _)) = &mut self.socket {
            socket.write_all(&bytes[..cut]).await.unwrap_or_default();
            sleep(self.world.chance.ms(0..300)).await;
        }
        self.leave();
    }

    async fn send_nonsense(&mut self) {
        if !self.is_connected().await {
            return;
        }
        let bytes = self.world.chance.bytes::<40>();
        if let Some((socket, _)) = &mut self.socket {
            socket.write_all(&bytes).await.unwrap_or_default();
            drop(timeout(Duration::from_secs(2), message::read(socket)).await);
        }
        self.leave();
    }

    /// The session is dropped at some moment of the next command.
    async fn be_cancelled(&mut self) {
        let Some((_, cancel)) = &self.socket else { return };
        let (cancel, pause) = (cancel.clone(), self.world.chance.ms(0..40));
        self.world.truth().note(format_args!(
            "the session of client {} is dropped in {} ms",
            self.number,
            pause.as_millis()
        ));
        self.world.set.tasks.spawn("cancel", async move {
            sleep(pause).await;
            cancel.notify_one();
        });
        self.write().await;
        self.socket = None;
    }

    fn leave(&mut self) {
        if let Some((socket, _)) = self.socket.take()
            && self.world.chance.percent(50)
        {
            socket.abort();
        }
    }

    /// Connects and greets, if there is no socket.
    async fn is_connected(&mut self) -> bool {
        if self.socket.is_some() {
            return true;
        }
        let cancel = Arc::new(Notify::new());
        let mut socket = self.world.connect(self.number, cancel.clone()).await;
        let hello = doc! { "hello": 1, "helloOk": true, "client": { "driver": { "name": "sim", "version": "1" },
        "os": { "type": "none" } }, "$db": "admin" };
        let greeting = async {
            socket.write_all(&message::encode(1, 0, 0, &hello)).await.ok()?;
            message::read(&mut socket).await.ok()
        };
        match timeout(Duration::from_secs(60), greeting).await {
            Ok(Some(_)) => {
                self.socket = Some((socket, cancel));
                true
            }
            Ok(None) => false,
            Err(_) => {
                self.world.truth().broken(format_args!("client {} was not greeted", self.number));
                false
            }
        }
    }

    async fn send(&mut self, command: &Document, token: Token, flags: u32) -> bool {
        if !self.is_connected().await {
            return false;
        }
        self.request_id += 1;
        let bytes = message::encode(self.request_id, 0, flags, command);
        let name = command.keys().next().cloned().unwrap_or_default();
        self.world.truth().note(format_args!("client {} sends {name} {token}", self.number));
        {
            let mut facts = self.world.truth().facts();
            *facts.sent.entry(token).or_default() += 1;
            facts.first_sent.entry(token).or_insert_with(Instant::now);
            facts.refused.remove(&token);
            if let Ok(number) = command.get_i64("txnNumber") {
                facts.last_number.insert(self.session.clone(), number);
            }
        }
        let Some((socket, _)) = &mut self.socket else { return false };
        if socket.write_all(&bytes).await.is_err() {
            self.socket = None;
            return false;
        }
        true
    }

    /// Sends a command and judges the answer.
    async fn exchange(&mut self, command: Document, token: Token, meant: Meant, patient: bool) -> Answer {
        let world = self.world.clone();
        let (began, jumped) = (Instant::now(), world.truth().facts().jumped);
        let late = if world.chance.percent(10) { world.chance.ms(0..2_000) } else { Duration::ZERO };
        let leaves =
            (!patient && world.chance.percent(8)).then(|| world.chance.ms(0..world.chance.pick(&[5, 50, 1_000])));
        if world.plan.retry_by_proxy {
            // Also a write that cannot be done twice, where a server has said that it did nothing.
            world.truth().facts().resent_by_proxy.insert(token);
        }
        if !self.send(&command, token, 0).await {
            return Answer::Gone;
        }
        let Some((socket, _)) = &mut self.socket else { return Answer::Gone };
        let sent_to_us = socket.sent_by_other();
        let sent_before = sent_to_us.load(Ordering::Relaxed);
        sleep(late).await;
        let reading = message::read(socket);
        let reply = match leaves {
            Some(after) => match timeout(after, reading).await {
                Ok(reply) => reply,
                Err(_) => {
                    world.truth().note(format_args!("client {} leaves, waiting for {token}", self.number));
                    world.truth().facts().left.push((token, sent_before, sent_to_us));
                    self.leave();
                    return Answer::Gone;
                }
            },
            None => reading.await,
        };
        let took = began.elapsed() - late;
        let jumped = world.truth().facts().jumped - jumped;
        let reply = match reply {
            Ok(reply) => reply,
            Err(NoMessage::Closed | NoMessage::Broken) => {
                world.truth().note(format_args!("client {} lost its socket, waiting for {token}", self.number));
                world.truth().facts().left.push((token, sent_before, sent_to_us));
                self.socket = None;
                return Answer::Gone;
            }
            Err(NoMessage::Malformed(what)) => {
                world.truth().broken(format_args!("client {} got no message: {what}", self.number));
                self.socket = None;
                return Answer::Gone;
            }
        };
        if !std::mem::take(&mut self.behind) {
            self.judge_time(&command, &reply.document, token, took.saturating_sub(jumped));
        }
        if reply.response_to != self.request_id {
            let (number, is) = (self.number, reply.response_to);
            world.truth().broken(format_args!("client {number} got a reply to {is}, it waits for {}", self.request_id));
        }
        self.judge(token, meant, reply.document)
    }

    fn judge_time(&self, command: &Document, reply: &Document, token: Token, took: Duration) {
        let truth = self.world.truth();
        let plan = &self.world.plan;
        let unsent = plan.server_selection_timeout + plan.wait_queue_timeout + SLACK;
        let was_sent = plan.retry_by_proxy || !is_refusal(reply);
        let most = if was_sent { 2 * unsent + IN_SERVERS } else { unsent };
        if took > most {
            let (took, most) = (took.as_millis(), most.as_millis());
            truth.broken(format_args!("command {token} was answered after {took} ms, {most} may be"));
        }
        if let Ok(limit) = command.get_i64("maxTimeMS") {
            let most = Duration::from_millis(limit as u64) + MAX_TIME_GRACE + SLACK;
            if took > most {
                truth.broken(format_args!(
                    "command {token} with maxTimeMS {limit} was answered after {} ms",
                    took.as_millis()
                ));
            }
        }
    }

    fn judge(&self, token: Token, meant: Meant, reply: Document) -> Answer {
        let truth = self.world.truth();
        truth.facts().answered.insert(token);
        let succeeded = reply.get_f64("ok").is_ok_and(|ok| ok == 1.0);
        match reply.get_i64("token") {
            Ok(of) if of == token => {}
            Ok(of) => {
                truth.broken(format_args!("client {} got the reply to {of} for its command {token}", self.number));
            }
            // Of all commands here, the proxy answers these itself.
            Err(_) if succeeded && meant != Meant::Other => {
                truth.broken(format_args!("command {token} was acknowledged, by no server: {reply}"));
            }
            Err(_) => {}
        }
        if succeeded {
            truth.note(format_args!("client {}: {token} is done", self.number));
            if matches!(meant, Meant::Write | Meant::RetryableWrite) {
                truth.facts().acknowledged.insert(token);
            }
            return Answer::Done(reply);
        }
        let code = reply.get_i32("code").unwrap_or_default();
        let text = reply.get_str("errmsg").unwrap_or_default();
        let labels = reply.get_array("errorLabels").cloned().unwrap_or_default();
        truth.note(format_args!("client {}: {token} failed with {code} {labels:?}: {text}", self.number));
        if is_refusal(&reply) && truth.facts().sent[&token] == 1 {
            truth.facts().refused.insert(token);
        }
        Answer::Failed(reply)
    }
}

/// It says that certainly nothing was executed.
fn is_refusal(error: &Document) -> bool {
    has_label(error, "NoWritesPerformed") || has_label(error, "SystemOverloadedError")
}

fn has_label(error: &Document, label: &str) -> bool {
    error.get_array("errorLabels").is_ok_and(|labels| labels.iter().any(|it| it.as_str() == Some(label)))
}
