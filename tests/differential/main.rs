//! An application cannot tell that the proxy is there.
//!
//! The same random commands, byte for byte, go to a server and through the proxy to its twin, in lockstep over several
//! sockets each, and the replies are compared field by field. What has to differ is listed in `mask`, with the reasons.
//! What is sent is drawn from a seed, which is printed; `DIFFERENTIAL_SEED=<seed>` draws the same again, and
//! `DIFFERENTIAL_STEPS=<count>` more or fewer of it.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]
#![allow(unreachable_pub, reason = "modules of one program, written like a library")]
#![allow(clippy::print_stderr, reason = "the seed, for whoever has to replay a failure")]

mod breakage;
mod commands;
mod generate;
mod mask;
mod peer;
mod sessions;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use bson::{Bson, Document, doc};
use generate::{Generator, Sent};
use mask::Masks;
use peer::Peer;
use support::proxy::proxy;
use tokio::time::Instant;

/// Commands of a run that is part of all tests.
const STEPS: usize = 3_000;

/// Of one side; cursors and transactions move between them.
const SOCKETS: usize = 5;

/// A run ends when it has found so many.
const ENOUGH: usize = 12;

/// So few connections that everything shares them.
const SETTINGS: &str = "max_pool_size = 3\nmin_pool_size = 1";

fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, which is no number")),
        Err(_) => default,
    }
}

#[tokio::test]
async fn an_application_cannot_tell_that_the_proxy_is_there() {
    let seed: u64 = variable("DIFFERENTIAL_SEED", rand::random());
    let steps: usize = variable("DIFFERENTIAL_STEPS", STEPS);

    let (plain, proxied) = tokio::join!(support::replica_set(1), support::replica_set(1));
    let proxy = proxy(&proxied.uri(), SETTINGS).await;
    let direct = Peer::connect(&plain.members()[0].address(), SOCKETS).await;
    let through = Peer::connect(proxy.address(), SOCKETS).await;
    eprintln!(
        "DIFFERENTIAL_SEED={seed}: {} directly and {} through {}",
        direct.name(),
        proxied.members()[0].address(),
        through.name()
    );
    let generator = Generator::new(seed, SOCKETS);
    let masks = [direct.name(), proxied.members()[0].address().to_string()];
    let masks = masks.map(|name| Masks::new(name, generator.uuids()));
    let mut twins = Twins { peers: [direct, through], masks, generator, seen: BTreeMap::new() };
    let (began, mut differences) = (Instant::now(), Vec::new());
    for (database, command) in generate::preparation() {
        twins.both(database, &command).await;
    }
    for step in 0..steps {
        if let Some(difference) = twins.step().await {
            eprintln!("DIFFERENCE at step {step}: {difference}");
            differences.push(difference);
            if differences.len() == ENOUGH {
                break;
            }
        }
    }
    eprintln!("{steps} steps in {:?}; replies by command: {}", began.elapsed(), twins.summary());
    assert!(differences.is_empty(), "{} differences with DIFFERENTIAL_SEED={seed}", differences.len());
}

/// A server, and the proxy in front of its twin.
struct Twins {
    peers: [Peer; 2],
    masks: [Masks; 2],
    generator: Generator,
    /// How many of each command succeeded and failed.
    seen: BTreeMap<String, (usize, usize)>,
}

impl Twins {
    /// Sends the next message to both; tells how they differ.
    async fn step(&mut self) -> Option<String> {
        let sent = self.generator.next();
        if sent.reads_majority {
            // What was written before is committed by the majority, on both sides, before it is read.
            let insert = doc! { "insert": "barrier", "documents": [{}], "writeConcern": { "w": "majority" } };
            self.both(generate::DATABASE, &insert).await;
        }
        let messages = [sent.encode(0, self.generator.captured()), sent.encode(1, self.generator.captured())];
        let [direct, through] = &mut self.peers;
        let (first, second) = tokio::join!(
            direct.exchange(sent.socket, &messages[0], sent.barrier),
            through.exchange(sent.socket, &messages[1], sent.barrier),
        );
        let (Ok(direct), Ok(through)) = (&first, &second) else {
            panic!("hangs: directly {}, through {}\n{}", first.is_err(), second.is_err(), sent.describe())
        };
        let outcomes = [direct.clone(), through.clone()];
        let closed = outcomes.iter().any(|outcome| outcome.closed);
        if closed {
            // Where only one side may close, the other's socket would remember what it was told before.
            for peer in &mut self.peers {
                peer.replace(sent.socket).await;
            }
        }
        let replies = outcomes.each_ref().map(|outcome| outcome.replies.first().map(|it| mask::document(&it.document)));
        if let [Some(direct), Some(through)] = &replies {
            if let Some(ids) = self.generator.observe(&sent, [direct, through]) {
                for (masks, id) in self.masks.iter_mut().zip(ids.1) {
                    masks.cursor(id, ids.0);
                }
            }
            self.count(&sent, direct);
        }
        if outcomes.iter().all(|outcome| outcome.replies.is_empty() && !outcome.closed) {
            self.compare_contents(&sent).await;
        }
        let difference = mask::difference(&self.masks, &outcomes, sent.compare);
        if closed {
            // A proxy aborts transactions whose sockets have gone, a server does not look at sockets.
            let tidy = self.generator.tidy();
            self.both("admin", &tidy).await;
        }
        difference.map(|[direct, through]| format!("{}\n  direct  {direct}  through {through}", sent.describe()))
    }

    /// What a message without a reply has done shows in the collection that it names.
    async fn compare_contents(&mut self, sent: &Sent) {
        let database = sent.body.get_str("$db").unwrap_or_default();
        let Some((_, Bson::String(collection))) = sent.body.iter().next() else { return };
        let [direct, through] = &mut self.peers;
        let contents = [direct.contents(database, collection).await, through.contents(database, collection).await];
        let [direct, through] = [0, 1].map(|side: usize| {
            let masked = self.masks[side].mask(&doc! { "contents": contents[side].clone() });
            masked.to_vec().unwrap()
        });
        assert!(direct == through, "{}\n  directly {:?}\n  through {:?}", sent.describe(), contents[0], contents[1]);
    }

    async fn both(&mut self, database: &str, command: &Document) {
        let [direct, through] = &mut self.peers;
        let (first, second) =
            tokio::join!(direct.run(database, command.clone()), through.run(database, command.clone()));
        for reply in [first, second] {
            assert_eq!(reply.get_f64("ok").unwrap_or_default(), 1.0, "{command} {reply}");
        }
    }

    fn count(&mut self, sent: &Sent, reply: &Document) {
        let (good, bad) = self.seen.entry(sent.name()).or_default();
        *(if mask::succeeded(reply) { good } else { bad }) += 1;
    }

    fn summary(&self) -> String {
        self.seen.iter().map(|(name, (good, bad))| format!("{name} {good}+{bad} ")).collect()
    }
}
