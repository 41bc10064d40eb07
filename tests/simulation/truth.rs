//! What has really happened, and what of it breaks a promise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Names one command of one client, in the command and in the reply to it.
pub(crate) type Token = i64;

/// Lines that are kept of what has happened.
const LINES: usize = 4_000;

pub(crate) struct Truth {
    began: Instant,
    facts: Mutex<Facts>,
    /// Prints lines as they come.
    aloud: bool,
}

/// All that is known.
#[derive(Default)]
pub(crate) struct Facts {
    lines: VecDeque<String>,
    hash: std::hash::DefaultHasher,
    violations: Vec<String>,
    /// How often clients have sent a command.
    pub(crate) sent: BTreeMap<Token, u32>,
    /// When it was sent first.
    pub(crate) first_sent: BTreeMap<Token, Instant>,
    /// The last transaction, or write with a number, that a client has begun in a session: with it the one before is given up, which
    /// the server learns of if it gets that far.
    pub(crate) last_number: BTreeMap<Vec<u8>, i64>,
    /// How often servers have got it whole.
    pub(crate) delivered: BTreeMap<Token, u32>,
    /// How often it has changed the data.
    pub(crate) effects: BTreeMap<Token, u32>,
    /// Clients were told that it was done.
    pub(crate) acknowledged: BTreeSet<Token>,
    /// Clients were told that it certainly was not.
    pub(crate) refused: BTreeSet<Token>,
    /// Of these it is not counted how often they are delivered.
    pub(crate) resent_by_proxy: BTreeSet<Token>,
    /// The proxy has read of these cursors to the end of the reply, for it has gone on over the same connection.
    pub(crate) cursors_delivered: BTreeSet<i64>,
    /// Of which command a cursor is.
    pub(crate) cursors: BTreeMap<i64, Token>,
    /// Clients have their replies.
    pub(crate) answered: BTreeSet<Token>,
    /// Clients left without: what the proxy had sent them before and in all.
    pub(crate) left: Vec<(Token, u64, Arc<AtomicU64>)>,
    /// Time that went by at once.
    pub(crate) jumped: Duration,
    last_token: Token,
}

impl Truth {
    pub(crate) fn new(aloud: bool) -> Self {
        Self { began: Instant::now(), facts: Mutex::default(), aloud }
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what happens.
    pub(crate) fn note(&self, line: std::fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {line}", self.began.elapsed().as_secs_f64());
        if self.aloud {
            println!("{line}");
        }
        let mut facts = self.facts();
        line.hash(&mut facts.hash);
        if facts.lines.len() == LINES {
            facts.lines.pop_front();
        }
        facts.lines.push_back(line);
    }

    /// A promise is broken.
    pub(crate) fn broken(&self, promise: std::fmt::Arguments<'_>) {
        self.note(format_args!("BROKEN: {promise}"));
        self.facts().violations.push(promise.to_string());
    }

    /// The proxy has told of it, or cannot know that it has not.
    fn may_be_told(facts: &Facts, token: Token) -> bool {
        let by_chance =
            |(of, before, sent): &(Token, u64, Arc<AtomicU64>)| *of == token && sent.load(Ordering::Relaxed) > *before;
        facts.answered.contains(&token) || facts.left.iter().any(by_chance)
    }

    /// Those of `open` of which the proxy knows that nobody else does.
    pub(crate) fn lost_cursors(&self, open: &BTreeSet<i64>) -> Vec<i64> {
        let facts = self.facts();
        let read = open.intersection(&facts.cursors_delivered);
        read.filter(|id| !Self::may_be_told(&facts, facts.cursors[id])).copied().collect()
    }

    pub(crate) fn next_token(&self) -> Token {
        let mut facts = self.facts();
        facts.last_token += 1;
        facts.last_token
    }

    /// What was broken first, and what came before that.
    pub(crate) fn verdict(&self, lines: usize) -> Result<(), String> {
        let facts = self.facts();
        let Some(first) = facts.violations.first() else { return Ok(()) };
        let skipped = facts.lines.len().saturating_sub(lines);
        let story: Vec<&str> = facts.lines.iter().skip(skipped).map(String::as_str).collect();
        Err(format!("{}\n\n{} broken promises; the first: {first}", story.join("\n"), facts.violations.len()))
    }

    /// The same for the same run.
    pub(crate) fn hash(&self) -> u64 {
        self.facts().hash.clone().finish()
    }

    /// The account at the end of a run.
    pub(crate) fn settle(&self) {
        let mut wrong = Vec::new();
        {
            let facts = self.facts();
            for (token, count) in facts.effects.iter().filter(|(_, count)| **count > 1) {
                wrong.push(format!("command {token} was executed {count} times"));
            }
            for token in facts.acknowledged.iter().filter(|token| !facts.effects.contains_key(token)) {
                wrong.push(format!("command {token} was acknowledged and never executed"));
            }
            for token in facts.refused.iter().filter(|token| facts.effects.contains_key(token)) {
                wrong.push(format!("command {token} was executed, and its client told that it was not"));
            }
            for (token, delivered) in &facts.delivered {
                let sent = facts.sent.get(token).copied().unwrap_or_default();
                if *delivered > sent && !facts.resent_by_proxy.contains(token) {
                    wrong.push(format!("command {token} was sent {sent} times and reached servers {delivered} times"));
                }
            }
        }
        wrong.iter().for_each(|wrong| self.broken(format_args!("{wrong}")));
    }
}
