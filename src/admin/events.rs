//! What `/events` tells: the last things that happened, newest first.

use serde::{Deserialize, Serialize};

use crate::config::limits::MAX_EVENTS;
use crate::telemetry::labels::Label as _;
use crate::telemetry::{Event, EventKind, Events};

/// One thing that happened, or several equal ones in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStats {
    /// When, the last time: RFC 3339.
    pub at: String,
    /// One of a closed set: `breaker`, `reload`, ...
    pub kind: String,
    /// The cluster that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The server that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// In words.
    pub text: String,
    /// How often in a row.
    pub count: u64,
}

/// Which of them are asked for.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    kind: Option<String>,
    cluster: Option<String>,
    limit: Option<usize>,
}

impl EventStats {
    fn of(event: Event) -> Self {
        Self {
            // Fails for years beyond 9999 only.
            at: event.at.try_to_rfc3339_string().unwrap_or_default(),
            kind: event.kind.as_str().to_owned(),
            cluster: event.cluster.map(String::from),
            server: event.server.map(String::from),
            text: event.text.into(),
            count: event.count,
        }
    }
}

impl EventQuery {
    /// The cluster that is meant; all without one.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// What is asked for, newest first.
    ///
    /// # Errors
    /// When there is no such kind; says which there are.
    pub fn answer(&self, events: &Events) -> Result<Vec<EventStats>, String> {
        let kind = self.kind.as_deref().map(|name| EventKind::from_text(name).ok_or_else(|| unknown_kind(name)));
        let kind = kind.transpose()?;
        let wanted = |event: &Event| {
            kind.is_none_or(|kind| event.kind == kind)
                && (self.cluster.is_none() || event.cluster.as_deref() == self.cluster.as_deref())
        };
        let found = events.last(self.limit.unwrap_or(MAX_EVENTS), wanted);
        Ok(found.into_iter().map(EventStats::of).collect())
    }
}

fn unknown_kind(name: &str) -> String {
    let all: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
    format!("kind: found {name:?}, expected one of {}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_reads_as_documented_and_can_be_read_back() {
        let events = Events::default();
        events.record(EventKind::PoolCleared, Some("shop"), Some("db:1"), "lost");
        events.record(EventKind::Drain, None, None, "by order");
        events.record(EventKind::Drain, None, None, "by order");
        let told = EventQuery::default().answer(&events).unwrap();
        let shown = serde_json::to_value(&told).unwrap();
        assert_eq!(serde_json::from_value::<Vec<EventStats>>(shown.clone()).unwrap(), told);
        let at = |index: usize| &shown[index]["at"];
        let expected = json!([
            {"at": at(0), "kind": "drain", "text": "by order", "count": 2},
            {"at": at(1), "kind": "pool_cleared", "cluster": "shop", "server": "db:1", "text": "lost", "count": 1},
        ]);
        assert_eq!(shown, expected);
        assert!(bson::DateTime::parse_rfc3339_str(at(0).as_str().unwrap()).is_ok());
    }

    #[test]
    fn one_may_ask_for_some() {
        let events = Events::default();
        for (kind, cluster) in
            [(EventKind::Mode, "a"), (EventKind::Breaker, "a"), (EventKind::Breaker, "b"), (EventKind::Breaker, "a")]
        {
            events.record(kind, Some(cluster), None, kind.as_str());
        }
        let ask = |kind: Option<&str>, cluster: Option<&str>, limit| {
            let query = EventQuery { kind: kind.map(str::to_owned), cluster: cluster.map(str::to_owned), limit };
            query.answer(&events).map(|found| found.len())
        };
        assert_eq!(ask(None, None, None), Ok(4));
        assert_eq!(ask(Some("breaker"), None, None), Ok(3));
        assert_eq!(ask(Some("breaker"), Some("a"), None), Ok(2));
        assert_eq!(ask(Some("breaker"), Some("a"), Some(1)), Ok(1));
        assert_eq!(ask(None, Some("c"), None), Ok(0));
        let told = ask(Some("braker"), None, None).unwrap_err();
        assert!(told.starts_with("kind: found \"braker\", expected one of connected, ") && told.contains("breaker"));
    }
}
