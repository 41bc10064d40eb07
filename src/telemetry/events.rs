//! The last things that happened, for who asks what went on before: an election, a breaker, an order. Logs tell more of each;
//! these are at hand where nobody reads logs.
//!
//! What is recorded happens seldom, and never with a command: each costs a lock and a few short texts. The bound is on their
//! number, so that a storm of one kind leaves room for what was before it: equal ones in a row count as one.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bson::DateTime;

use super::labels::EventKind;
use crate::config::limits::{EVENT_TEXT_CHARS, MAX_EVENTS};

/// One thing that happened, or several equal ones in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, the last time.
    pub at: DateTime,
    /// Of which kind it is.
    pub kind: EventKind,
    /// To which cluster, where it was one.
    pub cluster: Option<Box<str>>,
    /// To which server, where it was one.
    pub server: Option<Box<str>>,
    /// In words.
    pub text: Box<str>,
    /// How often in a row.
    pub count: u64,
}

impl Event {
    fn is_again(&self, other: &Self) -> bool {
        (self.kind, &self.cluster, &self.server, &self.text) == (other.kind, &other.cluster, &other.server, &other.text)
    }
}

/// The last [`MAX_EVENTS`] of them.
#[derive(Debug, Default)]
pub struct Events(Mutex<VecDeque<Event>>);

impl Events {
    /// It has happened now; `text` never holds what is secret.
    pub fn record(&self, kind: EventKind, cluster: Option<&str>, server: Option<&str>, text: &str) {
        let text: String = text.chars().take(EVENT_TEXT_CHARS).collect();
        let (cluster, server, text) = (cluster.map(Box::from), server.map(Box::from), text.into_boxed_str());
        self.keep(Event { at: DateTime::now(), kind, cluster, server, text, count: 1 });
    }

    fn keep(&self, event: Event) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.back_mut().filter(|last| last.is_again(&event)) {
            Some(last) => (last.at, last.count) = (event.at, last.count.saturating_add(1)),
            None => {
                if kept.len() >= MAX_EVENTS {
                    kept.pop_front();
                }
                kept.push_back(event);
            }
        }
    }

    /// The last `most` of those that `wanted` names, newest first.
    pub fn last(&self, most: usize, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().filter(|event| wanted(event)).take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(events: &Events) -> Vec<(String, u64)> {
        events.last(usize::MAX, |_| true).into_iter().map(|event| (event.text.into(), event.count)).collect()
    }

    #[test]
    fn equal_ones_in_a_row_are_one_and_the_newest_comes_first() {
        let events = Events::default();
        let broke = || events.record(EventKind::Error, Some("shop"), Some("db:1"), "connection broke");
        (0..3).for_each(|_| broke());
        events.record(EventKind::Error, Some("shop"), Some("db:2"), "connection broke");
        broke();
        let expected = [("connection broke", 1), ("connection broke", 1), ("connection broke", 3)];
        assert_eq!(texts(&events), expected.map(|(text, count)| (text.to_owned(), count)));
        for (again, differs) in [
            ((EventKind::Breaker, Some("shop"), Some("db:1"), "connection broke"), "kind"),
            ((EventKind::Breaker, Some("mail"), Some("db:1"), "connection broke"), "cluster"),
            ((EventKind::Breaker, None, None, "connection broke"), "no place"),
            ((EventKind::Breaker, None, None, "connection healed"), "text"),
        ] {
            let before = texts(&events).len();
            let (kind, cluster, server, text) = again;
            events.record(kind, cluster, server, text);
            assert_eq!(texts(&events).len(), before + 1, "another {differs} is another event");
        }
    }

    #[test]
    fn an_event_in_a_row_has_the_time_of_the_last_one() {
        let events = Events::default();
        let at = |millis| Event {
            at: DateTime::from_millis(millis),
            kind: EventKind::Mode,
            cluster: None,
            server: None,
            text: "x".into(),
            count: 1,
        };
        events.keep(at(1_000));
        events.keep(at(2_000));
        let [event] = &events.last(9, |_| true)[..] else { panic!("one event") };
        assert_eq!((event.at.timestamp_millis(), event.count), (2_000, 2));
    }

    #[test]
    fn the_oldest_makes_room_and_texts_have_an_end() {
        let events = Events::default();
        (0..MAX_EVENTS + 3).for_each(|number| events.record(EventKind::Action, None, None, &number.to_string()));
        let kept = texts(&events);
        assert_eq!(kept.len(), MAX_EVENTS);
        assert_eq!((kept[0].0.as_str(), kept[MAX_EVENTS - 1].0.as_str()), ("502", "3"));
        events.record(EventKind::Action, None, None, &"ä".repeat(EVENT_TEXT_CHARS + 1));
        assert_eq!(texts(&events)[0].0.chars().count(), EVENT_TEXT_CHARS);
    }

    #[test]
    fn who_asks_for_some_gets_those() {
        let events = Events::default();
        for number in 0..9 {
            let kind = if number % 3 == 0 { EventKind::Drain } else { EventKind::Mode };
            events.record(kind, None, None, &number.to_string());
        }
        let drains = events.last(2, |event| event.kind == EventKind::Drain);
        assert_eq!(drains.iter().map(|event| &*event.text).collect::<Vec<_>>(), ["6", "3"]);
    }
}
