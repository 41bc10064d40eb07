//! Lines that say the same again and again: the first few of a time are written, the others counted, and the count told.
//!
//! Only INFO and WARN are kept short. ERROR means that we stop, the audit has to be whole, and whoever asks for DEBUG wants
//! to read all of it.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::logs::{AUDIT, REPEATED};

/// As many equal lines are written in each [`WINDOW`]: a server that comes and goes a few times is told whole.
const BURST: u32 = 10;

/// How often the counts are told.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// As many different lines are told apart. Beyond that, all of one place in the code count as equal.
const MAX_DIFFERENT: usize = 1024;

/// As much of a line's text is kept to say what was repeated.
const MAX_TEXT_BYTES: usize = 256;

/// What makes two lines of one place in the code different: whom they are about, not what else they say.
const ABOUT: [&str; 5] = ["server", "cluster", "listener", "address", "event"];

/// The lines of the present window.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<Key, Told>>);

/// Lines with the same one are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    place: Identifier,
    subject: Subject,
}

/// What a line is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) message: String,
    pub(super) about: String,
}

#[derive(Debug)]
struct Told {
    since: Instant,
    lines: u32,
    untold: u64,
    target: &'static str,
    warn: bool,
}

/// Lines that were not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Untold {
    pub(super) subject: Subject,
    pub(super) target: &'static str,
    pub(super) warn: bool,
    pub(super) count: u64,
}

impl Repeats {
    fn lets(&self, event: &Event<'_>) -> bool {
        let metadata = event.metadata();
        if !matches!(*metadata.level(), Level::INFO | Level::WARN) || [AUDIT, REPEATED].contains(&metadata.target()) {
            return true;
        }
        let mut subject = Subject::default();
        event.record(&mut subject);
        self.admit(metadata, subject, Instant::now())
    }

    /// True when the line is to be written.
    fn admit(&self, metadata: &Metadata<'static>, subject: Subject, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Key { place: metadata.callsite(), subject };
        if told.len() >= MAX_DIFFERENT && !told.contains_key(&key) {
            key.subject = Subject::default();
        }
        let (target, warn) = (metadata.target(), *metadata.level() == Level::WARN);
        let entry = told.entry(key).or_insert(Told { since: now, lines: 0, untold: 0, target, warn });
        if now.saturating_duration_since(entry.since) >= WINDOW {
            (entry.since, entry.lines) = (now, 0);
        }
        if entry.lines < BURST {
            entry.lines += 1;
            return true;
        }
        entry.untold += 1;
        false
    }

    /// What was not written since the last time, to be told now.
    pub(super) fn take(&self, now: Instant) -> Vec<Untold> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut untold = Vec::new();
        told.retain(|key, entry| {
            if entry.untold > 0 {
                let (subject, count) = (key.subject.clone(), std::mem::take(&mut entry.untold));
                untold.push(Untold { subject, target: entry.target, warn: entry.warn, count });
            }
            now.saturating_duration_since(entry.since) < WINDOW
        });
        drop(told);
        untold.sort_by(|one, other| (one.target, &one.subject.about).cmp(&(other.target, &other.subject.about)));
        untold
    }
}

/// Around a log, so that it is written few lines that are equal. Shared with who tells the counts.
///
/// A layer and no filter: what a filter refuses by what an event says is remembered for the thread, and where nobody else wants
/// the event, its next one is refused unseen.
pub(super) struct FewOfAKind<S> {
    pub(super) log: Box<dyn Layer<S> + Send + Sync>,
    pub(super) repeats: &'static Repeats,
}

impl<S: Subscriber> Layer<S> for FewOfAKind<S> {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if self.repeats.lets(event) {
            self.log.on_event(event, context);
        }
    }

    // Ours opens none, but libraries may.
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.log.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.log.on_record(id, values, context);
    }
}

impl Visit for Subject {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "message" => &mut self.message,
            name if ABOUT.contains(&name) => &mut self.about,
            _ => return,
        };
        let separator = if text.is_empty() { "" } else { " " };
        // What is over the bound is cut off, which is no error.
        _ = write!(Bounded(text), "{separator}{value:?}");
    }
}

/// Takes as much text as there is room for.
struct Bounded<'a>(&'a mut String);

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_TEXT_BYTES.saturating_sub(self.0.len());
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Remembers the messages that come through.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut subject = Subject::default();
            event.record(&mut subject);
            self.0.lock().unwrap().push(format!("{} {}", subject.message, subject.about));
        }
    }

    fn listen(act: impl FnOnce(&'static Repeats)) -> Vec<String> {
        let repeats: &'static Repeats = Box::leak(Box::default());
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(FewOfAKind { log: lines.clone().boxed(), repeats });
        tracing::subscriber::with_default(subscriber, || act(repeats));
        std::mem::take(&mut *lines.0.lock().unwrap())
    }

    fn counted(repeats: &Repeats) -> Vec<(String, u64)> {
        let untold = repeats.take(Instant::now()).into_iter();
        untold.map(|it| (format!("{} {}", it.subject.message, it.subject.about), it.count)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_equal_lines_a_few_are_written_and_all_are_counted() {
        const ROUNDS: u32 = 3;
        let repeats: &'static Repeats = Box::leak(Box::default());
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(FewOfAKind { log: lines.clone().boxed(), repeats });
        let _guard = tracing::subscriber::set_default(subscriber);
        let mut told = 0;
        for round in 0..ROUNDS {
            for attempt in 0..10_000 {
                tracing::warn!(server = "db:1", round, attempt, "cannot connect");
            }
            told += counted(repeats).iter().map(|(_, count)| count).sum::<u64>();
            tokio::time::advance(WINDOW).await;
        }
        let written = lines.0.lock().unwrap().len();
        assert_eq!(written, (BURST * ROUNDS) as usize);
        assert_eq!(told + written as u64, u64::from(ROUNDS) * 10_000);
        assert_eq!(counted(repeats), [], "nothing is told twice");
        assert!(repeats.0.lock().unwrap().is_empty(), "what is over is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn without_anybody_who_tells_the_counts_lines_come_back_and_no_count_is_lost() {
        let repeats: &'static Repeats = Box::leak(Box::default());
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(FewOfAKind { log: lines.clone().boxed(), repeats });
        let _guard = tracing::subscriber::set_default(subscriber);
        for _ in 0..2 {
            (0..100).for_each(|_| tracing::info!("again"));
            tokio::time::advance(WINDOW).await;
        }
        assert_eq!(lines.0.lock().unwrap().len(), 2 * BURST as usize);
        assert_eq!(counted(repeats), [("again ".to_owned(), 200 - 2 * u64::from(BURST))]);
    }

    #[tokio::test(start_paused = true)]
    async fn other_servers_and_other_events_are_other_lines() {
        let lines = listen(|repeats| {
            for (server, event) in [("db:1", "connected"), ("db:1", "disconnected"), ("db:2", "connected")] {
                (0..20).for_each(|_| tracing::info!(server, event, "{event}"));
            }
            let each = |text: &str| (text.to_owned(), u64::from(20 - BURST));
            let all = ["connected \"db:1\" \"connected\"", "disconnected \"db:1\" \"disconnected\""];
            let all = all.into_iter().chain(["connected \"db:2\" \"connected\""]);
            assert_eq!(counted(repeats), all.map(each).collect::<Vec<_>>());
        });
        assert_eq!(lines.len(), 3 * BURST as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_orders_and_details_are_never_left_out() {
        let lines = listen(|repeats| {
            for _ in 0..1_000 {
                tracing::error!("an error");
                tracing::debug!("a detail");
                tracing::info!(target: AUDIT, "an order");
                tracing::info!(target: REPEATED, "a count");
            }
            assert_eq!(counted(repeats), []);
        });
        assert_eq!(lines.len(), 4_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_counts_are_right_beyond_it() {
        const LINES: usize = 5 * MAX_DIFFERENT;
        let lines = listen(|repeats| {
            for number in 0..LINES {
                tracing::info!(server = number, "first");
            }
            (0..LINES).for_each(|number| tracing::info!("{number}"));
            assert_eq!(repeats.0.lock().unwrap().len(), MAX_DIFFERENT + 2);
            let untold: u64 = counted(repeats).iter().map(|(_, count)| count).sum();
            assert_eq!(untold, u64::try_from(2 * LINES - MAX_DIFFERENT).unwrap() - 2 * u64::from(BURST));
        });
        assert_eq!(lines.len(), MAX_DIFFERENT + 2 * BURST as usize);
    }

    #[test]
    fn texts_are_cut_off_between_characters() {
        let mut text = String::new();
        _ = write!(Bounded(&mut text), "{}", "ä".repeat(MAX_TEXT_BYTES));
        assert_eq!(text, "ä".repeat(MAX_TEXT_BYTES / 2));
    }
}
