//! Log setup, and keeping passwords out of the log. What is logged, and at which level, is said where it happens.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::str::FromStr;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use tokio::time::Instant;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt as format, reload};

pub use super::levels::{Levels, LevelsError};
use super::repeats::{FewOfAKind, Repeats, Untold, WINDOW};
use crate::tasks::Tasks;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Names of all formats.
    pub const NAMES: &[&str] = &["text", "json"];
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json"),
        }
    }
}

/// The target of lines that tell who gave an order on the admin port.
pub const AUDIT: &str = "audit";

/// The target of lines about upstream connections and their pools: the component `connection` of the drivers' logging
/// specification.
pub const CONNECTION: &str = "mongomux::connection";

/// The target of lines about servers and heartbeats: its component `topology`.
pub const TOPOLOGY: &str = "mongomux::topology";

/// The target of lines about how commands find a server: its component `serverSelection`.
pub const SERVER_SELECTION: &str = "mongomux::server_selection";

/// The target of lines about commands on their way to a server: its component `command`.
pub const COMMAND: &str = "mongomux::command";

/// The target of lines about commands that took long.
pub const SLOW: &str = "mongomux::slow";

/// The target of lines that stand for others that were not written.
pub const REPEATED: &str = "mongomux::repeated";

/// The log of this process.
static LOG: OnceLock<Log> = OnceLock::new();

static REPEATS: LazyLock<Repeats> = LazyLock::new(Repeats::default);

struct Log {
    /// What was in force when the process started.
    first: Levels,
    now: Mutex<Levels>,
    filter: reload::Handle<Targets, Registry>,
}

/// What [`set_levels`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelsSet {
    /// In force until then.
    pub before: Levels,
    /// In force from then on.
    pub now: Levels,
}

/// This process has no log that [`init`] has set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log of this process is not ours to change")]
pub struct NotOurs;

/// Sends the log to stderr from now on.
///
/// # Errors
/// A log has been set up before.
pub fn init(levels: Levels, format: LogFormat) -> Result<(), TryInitError> {
    let (filter, handle) = reload::Layer::new(levels.filter());
    let writer = || Redacting(io::stderr());
    let layer = match format {
        LogFormat::Text => format::layer().with_writer(writer).with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => format::layer().with_writer(writer).json().flatten_event(true).boxed(),
    };
    // Which lines are wanted comes first: what is not written is not counted either.
    let layer = FewOfAKind { log: layer, repeats: &REPEATS }.with_filter(filter);
    tracing_subscriber::registry().with(layer).try_init()?;
    LOG.get_or_init(|| Log { first: levels.clone(), now: Mutex::new(levels), filter: handle });
    Ok(())
}

/// Puts other levels in force; `None` for those that the process was started with.
///
/// # Errors
/// [`NotOurs`].
pub fn set_levels(levels: Option<Levels>) -> Result<LevelsSet, NotOurs> {
    let log = LOG.get().ok_or(NotOurs)?;
    let levels = levels.unwrap_or_else(|| log.first.clone());
    // Held meanwhile, so that of two at once the last one told is the one in force.
    let mut now = log.now.lock().unwrap_or_else(PoisonError::into_inner);
    log.filter.reload(levels.filter()).map_err(|_| NotOurs)?;
    let before = std::mem::replace(&mut *now, levels);
    Ok(LevelsSet { before, now: now.clone() })
}

/// Tells every few seconds how many lines were not written since they were equal to others.
pub fn tell_repeated(tasks: &Tasks) {
    let (cancelled, mut due) = (tasks.clone(), tokio::time::interval(WINDOW));
    tasks.spawn("repeated lines", async move {
        loop {
            // Nothing is lost when an arm loses: a tick that is due stays due.
            tokio::select! {
                _ = due.tick() => tell_repeated_now(),
                () = cancelled.cancelled() => return,
            }
        }
    });
}

/// Tells how many lines were not written until now.
pub fn tell_repeated_now() {
    for Untold { subject, target, warn, count } in REPEATS.take(Instant::now()) {
        let (message, about) = (&subject.message, &subject.about);
        if warn {
            tracing::warn!(target: REPEATED, repeated = count, of = target, about, "again: {message}");
        } else {
            tracing::info!(target: REPEATED, repeated = count, of = target, about, "again: {message}");
        }
    }
}

/// The last line of defence: whatever a log line was made of, no credentials leave through it.
struct Redacting<W>(W);

impl<W: Write> Write for Redacting<W> {
    // The formatter hands over one whole line per call, so a connection string never comes in two pieces.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        match one_line(&redact(&text)) {
            Cow::Borrowed(shown) if shown.len() == line.len() => self.0.write_all(line)?,
            shown => self.0.write_all(shown.as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What somebody else has said does not look like lines of ours.
fn one_line(text: &str) -> Cow<'_, str> {
    let (line, end) = text.strip_suffix('\n').map_or((text, ""), |line| (line, "\n"));
    if line.contains(['\n', '\r']) {
        Cow::Owned(line.replace('\r', "\\r").replace('\n', "\\n") + end)
    } else {
        Cow::Borrowed(text)
    }
}

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// Options of a connection string whose values are secrets, in lower case, with their `=`.
const SECRET_OPTIONS: &[&str] = &["password=", "authmechanismproperties="];

/// `text` with the credentials of every connection string in it masked: `mongodb://***@host`, and the values of
/// options that carry secrets. A text that is no valid connection string is masked rather too much than too little.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut secrets: Vec<std::ops::Range<usize>> = Vec::new();
    for (scheme, separator) in text.match_indices("://") {
        let start = scheme + separator.len();
        // Up to the last @ before the string ends: an unescaped @ or / in a password must not show the rest of it.
        let rest = until(&text[start..], |c| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>'));
        let rest = rest.find("://").map_or(rest, |next| &rest[..next]);
        if let Some(end) = rest.rfind('@') {
            secrets.push(start..start + end);
        }
    }
    let lower = text.to_ascii_lowercase();
    for option in SECRET_OPTIONS {
        for (at, _) in lower.match_indices(option) {
            let start = at + option.len();
            let value = until(&text[start..], |c| c.is_whitespace() || matches!(c, '&' | '"' | '\'' | '`' | '<' | '>'));
            secrets.push(start..start + value.len());
        }
    }
    secrets.retain(|secret| !secret.is_empty());
    if secrets.is_empty() {
        return Cow::Borrowed(text);
    }
    secrets.sort_by_key(|secret| (secret.start, secret.end));
    let mut masked = String::with_capacity(text.len());
    let mut shown = 0;
    for secret in secrets {
        if secret.start >= shown {
            masked.push_str(&text[shown..secret.start]);
            masked.push_str(MASK);
        }
        shown = shown.max(secret.end);
    }
    masked.push_str(&text[shown..]);
    Cow::Owned(masked)
}

fn until(text: &str, ends: impl Fn(char) -> bool) -> &str {
    text.find(ends).map_or(text, |end| &text[..end])
}

/// A value whose `Display` is redacted, for log fields: `tracing::info!(error = %Redacted(&error))`.
pub struct Redacted<'a, T>(pub &'a T);

impl<T: fmt::Display> fmt::Display for Redacted<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_masked_wherever_they_stand() {
        for (text, expected) in [
            ("mongodb://user:pass@host/db", "mongodb://***@host/db"),
            ("mongodb+srv://user:pass@host", "mongodb+srv://***@host"),
            ("to mongodb://u:p@a:1,b:2/?x=y failed", "to mongodb://***@a:1,b:2/?x=y failed"),
            ("{\"uri\":\"mongodb://u:p@a\",\"mail\":\"x@y\"}", "{\"uri\":\"mongodb://***@a\",\"mail\":\"x@y\"}"),
            ("mongodb://a/,mongodb://u:p@b and mongodb://v@c", "mongodb://a/,mongodb://***@b and mongodb://***@c"),
            ("mongodb://user@host", "mongodb://***@host"),
        ] {
            assert_eq!(redact(text), expected);
        }
    }

    #[test]
    fn badly_escaped_passwords_are_masked_whole() {
        assert_eq!(redact("mongodb://user:p@ss@host"), "mongodb://***@host");
        assert_eq!(redact("mongodb://user:p/ss?x#y@host/db"), "mongodb://***@host/db");
        assert_eq!(redact("mongodb://user:paß@host"), "mongodb://***@host");
    }

    #[test]
    fn options_that_carry_secrets_are_masked() {
        assert_eq!(
            redact("mongodb://h/?tlsCertificateKeyFilePassword=s3cret&w=1&proxyPassword=x"),
            "mongodb://h/?tlsCertificateKeyFilePassword=***&w=1&proxyPassword=***"
        );
        assert_eq!(
            redact("mongodb://u:p@h/?authMechanismProperties=AWS_SESSION_TOKEN:abc&a=b"),
            "mongodb://***@h/?authMechanismProperties=***&a=b"
        );
        // Both rules at once: one mask, and nothing of either secret.
        assert_eq!(redact("mongodb://h/?proxyPassword=a@b&w=1"), "mongodb://***&w=1");
    }

    #[test]
    fn a_text_without_secrets_is_not_touched() {
        for text in ["", "mongodb://host:27017/?maxPoolSize=5", "mail me@example.net", "password=", "http://x/"] {
            assert!(matches!(redact(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn log_lines_pass_through_the_mask() {
        let mut writer = Redacting(Vec::new());
        writer.write_all(b"connecting to mongodb://root:hunter2@db:27017\n").unwrap();
        writer.write_all(b"ready\n").unwrap();
        assert_eq!(String::from_utf8(writer.0).unwrap(), "connecting to mongodb://***@db:27017\nready\n");
    }

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        let mut writer = Redacting(Vec::new());
        let forged = "WARN cannot connect: no\r\n2026-01-01 INFO audit: mongodb://root:hunter2@db obeyed\n";
        assert_eq!(writer.write(forged.as_bytes()).unwrap(), forged.len());
        let expected = "WARN cannot connect: no\\r\\n2026-01-01 INFO audit: mongodb://***@db obeyed\n";
        assert_eq!(String::from_utf8(writer.0).unwrap(), expected);
    }

    #[test]
    fn events_are_formatted_as_whole_lines_and_masked() {
        use std::sync::{Arc, Mutex};

        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<Vec<u8>>>>);
        impl Write for Shared {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().push(line.to_vec());
                Ok(line.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Shared::default();
        let sink = lines.clone();
        let layer = format::layer().with_writer(move || Redacting(sink.clone())).json().flatten_event(true);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(upstream = "mongodb://root:hunter2@db", "cluster ready");
        });
        let lines = lines.0.lock().unwrap();
        assert_eq!(lines.len(), 1, "one write per event is what the mask relies on");
        let line: serde_json::Value = serde_json::from_slice(&lines[0]).unwrap();
        assert_eq!(line["upstream"], "mongodb://***@db");
        assert_eq!(line["message"], "cluster ready");
    }
}
