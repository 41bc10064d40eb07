//! Log setup, and keeping passwords out of the log. What is logged, and at which level, is said where it happens.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt as format};

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

/// Sends the log to stderr from now on. Libraries are heard from WARN on only: their INFO is not our operator's.
///
/// # Errors
/// A log has been set up before.
pub fn init(level: LevelFilter, format: LogFormat) -> Result<(), TryInitError> {
    let libraries = level.min(LevelFilter::WARN);
    // Whoever wants to read warnings only still wants to know who gave orders.
    let audit = if level == LevelFilter::OFF { level } else { level.max(LevelFilter::INFO) };
    let targets =
        Targets::new().with_default(libraries).with_target(env!("CARGO_CRATE_NAME"), level).with_target(AUDIT, audit);
    let writer = || Redacting(io::stderr());
    let layer = match format {
        LogFormat::Text => format::layer().with_writer(writer).with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => format::layer().with_writer(writer).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).try_init()
}

/// The last line of defence: whatever a log line was made of, no credentials leave through it.
struct Redacting<W>(W);

impl<W: Write> Write for Redacting<W> {
    // The formatter hands over one whole line per call, so a connection string never comes in two pieces.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match redact(&String::from_utf8_lossy(line)) {
            Cow::Borrowed(_) => self.0.write_all(line)?,
            Cow::Owned(redacted) => self.0.write_all(redacted.as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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
