//! Increments that nobody may send twice: what writers were told of them, held against what the server has in the end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bson::{Document, doc};
use futures_util::future::{join, join_all};
use mongomux::config::Address;

use super::hold::eventually;
use super::proxy::Proxy;
use super::{assert_cloaked, code_and_labels, connect, first_batch};

/// Each with a counter and a socket of its own.
pub const WRITERS: i64 = 20;

/// What became of increments.
#[derive(Debug, Default, Clone, Copy)]
pub struct Increments {
    /// Done.
    pub acknowledged: i64,
    /// Done or not, nobody knows.
    pub unknown: i64,
    /// Not done: the labels say that it may be sent again.
    pub refused: i64,
}

/// Increments a document of its own without a `txnNumber`, over one socket, until told to stop.
async fn increment(
    address: &Address,
    worker: i64,
    concern: &Document,
    over: &AtomicBool,
    done: &AtomicU64,
) -> Increments {
    let mut client = connect(address).await;
    let mut increments = Increments::default();
    while !over.load(Ordering::Relaxed) {
        let update = doc! {
            "update": "counters", "writeConcern": concern,
            "updates": [{ "q": { "_id": worker }, "u": { "$inc": { "n": 1_i64 } } }],
        };
        let reply = client.reply("test", update).await.expect("no socket is ever closed");
        assert_cloaked(&reply);
        match (reply.get_i32("n"), reply.get_document("writeConcernError")) {
            (Ok(1), Err(_)) => increments.acknowledged += 1,
            // Done, but perhaps not to last.
            (Ok(1), Ok(_)) => increments.unknown += 1,
            _ => {
                let (code, labels) = code_and_labels(&reply);
                assert!([6, 64, 11601, 462].contains(&code), "{reply}");
                match labels.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                    [] => increments.unknown += 1,
                    ["SystemOverloadedError", "RetryableError"] => increments.refused += 1,
                    _ => panic!("nothing else may say that it can be sent again: {reply}"),
                }
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    increments
}

/// Lets writers increment while `trouble` happens, which hears how many answers there were, and holds them against what
/// the server has then. Returns the sum.
pub async fn count_through(proxy: &Proxy, concern: Document, trouble: impl AsyncFnOnce(&AtomicU64)) -> Increments {
    let mut client = connect(proxy.address()).await;
    let counters: Vec<Document> = (0..WRITERS).map(|worker| doc! { "_id": worker, "n": 0_i64 }).collect();
    let insert = doc! { "insert": "counters", "documents": counters, "writeConcern": concern.clone() };
    client.command("test", insert).await.unwrap();
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let writers = join_all((0..WRITERS).map(|worker| increment(proxy.address(), worker, &concern, &over, &done)));
    let trouble = async {
        trouble(&done).await;
        over.store(true, Ordering::Relaxed);
    };
    let (increments, ()) = join(writers, trouble).await;
    let reply = client.command("test", doc! { "find": "counters", "batchSize": 1000 }).await.unwrap();
    let mut sum = Increments::default();
    for counter in first_batch(&reply) {
        let (worker, n) = (counter.get_i64("_id").unwrap(), counter.get_i64("n").unwrap());
        let told = increments[usize::try_from(worker).unwrap()];
        assert!(
            (told.acknowledged..=told.acknowledged + told.unknown).contains(&n),
            "writer {worker}: {told:?}, {n} there"
        );
        assert!(told.acknowledged > 0, "writer {worker} wrote");
        sum.acknowledged += told.acknowledged;
        sum.unknown += told.unknown;
        sum.refused += told.refused;
    }
    sum
}

/// Waits for so many more answers.
pub async fn more(done: &AtomicU64, by: u64) {
    let before = done.load(Ordering::Relaxed);
    eventually("progress", async || done.load(Ordering::Relaxed) >= before + by).await;
}
