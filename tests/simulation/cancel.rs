//! A session that is dropped after each of its polls, one after the other, in the middle of each kind of command: whatever it held
//! is given back, nobody else gets its reply, and nothing is left on the servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::chance::Chance;
use crate::client;
use crate::message::{self, MORE_TO_COME, Message};
use crate::network::End;
use crate::server::cursor_of;
use crate::truth::Truth;
use crate::world::{Plan, World};

/// No command takes so many polls.
const MOST: usize = 300;

/// The client that is dropped, and the one that stays.
const VICTIM: usize = 0;
const BYSTANDER: usize = 1;

/// What happens meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Situation {
    /// Nothing.
    Free,
    /// The only connection is taken.
    Queue,
    /// There is no primary for a while.
    NoPrimary,
    /// The server is killed while it has the command.
    Killed,
}

pub(crate) const SITUATIONS: [Situation; 4] =
    [Situation::Free, Situation::Queue, Situation::NoPrimary, Situation::Killed];

/// Each takes its own way through the session.
pub(crate) const COMMANDS: [&str; 12] = [
    "find",
    "find and leave a cursor",
    "getMore",
    "killCursors",
    "insert",
    "insert that may be sent again",
    "update of many",
    "insert without an answer",
    "first statement of a transaction",
    "next statement of a transaction",
    "commitTransaction",
    "endSessions",
];

fn lsid() -> Document {
    doc! { "id": Binary { subtype: BinarySubtype::Uuid, bytes: vec![7; 16] } }
}

fn numbered(mut command: Document) -> Document {
    command.extend(doc! { "lsid": lsid(), "txnNumber": 1_i64 });
    command
}

fn statement(command: Document) -> Document {
    let mut command = numbered(command);
    command.insert("autocommit", false);
    command
}

struct Socket {
    end: End,
    last_id: i32,
}

impl Socket {
    async fn greeted(mut end: End) -> Self {
        let hello = doc! { "hello": 1, "helloOk": true, "$db": "admin" };
        end.write_all(&message::encode(1, 0, 0, &hello)).await.expect("a session");
        message::read(&mut end).await.expect("a greeting");
        Self { end, last_id: 1 }
    }

    async fn send(&mut self, world: &World, mut command: Document, flags: u32) -> i64 {
        let token = world.truth().next_token();
        command.insert("comment", token);
        if !command.contains_key("$db") {
            command.insert("$db", "test");
        }
        {
            let mut facts = world.truth().facts();
            *facts.sent.entry(token).or_default() += 1;
        }
        self.last_id += 1;
        // It may be gone already.
        self.end.write_all(&message::encode(self.last_id, 0, flags, &command)).await.unwrap_or_default();
        token
    }

    async fn exchange(&mut self, world: &World, command: Document) -> Message {
        self.send(world, command, 0).await;
        message::read(&mut self.end).await.expect("a reply")
    }
}

/// The command, with what has to be there before it.
async fn command(world: &World, name: &str) -> (Document, u32) {
    let insert = || doc! { "insert": "c", "documents": [{ "x": 1 }] };
    let mut before = Socket::greeted(world.connect(BYSTANDER, Arc::new(Notify::new())).await).await;
    let mut cursor = async || {
        let found = before.exchange(world, doc! { "find": "c", "filter": {}, "batches": 3 }).await.document;
        let id = cursor_of(&found).expect("a cursor");
        world.truth().facts().answered.extend(found.get_i64("token").ok());
        id
    };
    match name {
        "find" => (doc! { "find": "c", "filter": {} }, 0),
        "find and leave a cursor" => (doc! { "find": "c", "filter": {}, "batches": 3 }, 0),
        "getMore" => (doc! { "getMore": cursor().await, "collection": "c" }, 0),
        "killCursors" => (doc! { "killCursors": "c", "cursors": [cursor().await] }, 0),
        "insert" => (insert(), 0),
        "insert that may be sent again" => (numbered(insert()), 0),
        "update of many" => {
            (doc! { "update": "c", "updates": [{ "q": {}, "u": { "$set": { "x": 1 } }, "multi": true }] }, 0)
        }
        "insert without an answer" => {
            let mut insert = insert();
            insert.insert("writeConcern", doc! { "w": 0 });
            (insert, MORE_TO_COME)
        }
        "first statement of a transaction" => {
            let mut first = statement(insert());
            first.insert("startTransaction", true);
            (first, 0)
        }
        "next statement of a transaction" | "commitTransaction" => {
            let mut first = statement(insert());
            first.insert("startTransaction", true);
            before.exchange(world, first).await;
            if name == "commitTransaction" {
                let mut commit = statement(doc! { "commitTransaction": 1 });
                commit.insert("$db", "admin");
                (commit, 0)
            } else {
                (statement(insert()), 0)
            }
        }
        "endSessions" => (doc! { "endSessions": [lsid()], "$db": "admin" }, 0),
        other => unreachable!("{other} is not in the list"),
    }
}

/// Runs one command whose session is dropped after so many polls. `Ok(false)` when it was done before that.
///
/// # Errors
/// What is broken.
pub(crate) async fn drop_after(polls: usize, name: &str, situation: Situation) -> Result<bool, String> {
    let world = World::build(Chance::new(1), Plan::of_one_connection(), Truth::new(false));
    client::probe(world.clone(), BYSTANDER).await;
    let (mut command, flags) = command(&world, name).await;
    let armed = Arc::new(AtomicBool::new(false));
    let (end, dropped) = world.connect_for(VICTIM, polls, armed.clone()).await;
    let mut victim = Socket::greeted(end).await;
    let mut held = None;
    match situation {
        Situation::Free => {}
        Situation::Queue => {
            let mut holder = Socket::greeted(world.connect(BYSTANDER, Arc::new(Notify::new())).await).await;
            holder.send(&world, doc! { "find": "c", "filter": {}, "delayMS": 200 }, 0).await;
            sleep(Duration::from_millis(50)).await;
            held = Some(holder);
        }
        Situation::NoPrimary => {
            world.set.step_down(0);
            sleep(Duration::from_millis(50)).await;
        }
        Situation::Killed => {
            command.insert("delayMS", 100);
        }
    }
    armed.store(true, Ordering::Relaxed);
    let sent_to_it = victim.end.sent_by_other();
    let sent_before = sent_to_it.load(Ordering::Relaxed);
    let token = victim.send(&world, command, flags).await;
    match situation {
        Situation::Free | Situation::Queue => {}
        Situation::NoPrimary => {
            sleep(Duration::from_millis(300)).await;
            world.set.elect();
        }
        Situation::Killed => {
            sleep(Duration::from_millis(60)).await;
            world.set.kill(0);
            sleep(Duration::from_millis(300)).await;
            world.set.elect();
            world.set.start(0);
        }
    }
    // Of a reply that was on its way to it nobody can know how much it has read.
    world.truth().facts().left.push((token, sent_before, sent_to_it));
    if flags == 0 {
        match timeout(Duration::from_secs(20), message::read(&mut victim.end)).await {
            Ok(Ok(reply)) => {
                if reply.document.get_i64("token").is_ok_and(|of| of != token) {
                    world.truth().broken(format_args!("the reply to another command came: {}", reply.document));
                }
                world.truth().facts().answered.insert(token);
            }
            Ok(Err(_)) => {}
            Err(_) => world.truth().broken(format_args!("neither an answer nor an end")),
        }
    } else {
        sleep(Duration::from_secs(1)).await;
    }
    let dropped = dropped.load(Ordering::Relaxed);
    if let Some(mut holder) = held {
        let found = message::read(&mut holder.end).await.map(|reply| reply.document);
        if !found.as_ref().is_ok_and(|found| found.get_i64("token").is_ok_and(|of| of != token)) {
            world.truth().broken(format_args!("who held the connection got {found:?}"));
        }
    }
    drop(victim);
    if timeout(Duration::from_secs(30), client::probe(world.clone(), BYSTANDER)).await.is_err() {
        world.truth().broken(format_args!("the one that stays is not served any more"));
    }
    // Orphans are let alone for five seconds.
    sleep(Duration::from_secs(10)).await;
    world.look_for_leaks().await;
    world.end().await;
    world.truth().verdict(60).map(|()| dropped)
}

/// Drops the session of one command in one situation after each of its polls; returns how many there were.
pub(crate) fn after_each_poll(name: &str, situation: Situation) -> usize {
    for polls in 0..MOST {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
        match runtime.block_on(drop_after(polls, name, situation)) {
            Ok(true) => {}
            Ok(false) => return polls,
            Err(story) => panic!("{name}, {situation:?}, dropped after {polls} polls:\n{story}"),
        }
    }
    panic!("{name}, {situation:?}: not done after {MOST} polls")
}
