//! Orders as they are written: to change the mode, `{"mode": "maintenance", "hold": false, "cluster": "shop"}`, and what is
//! logged, `{"level": "info,mongomux::connection=debug"}`.

use serde::Deserialize;

use crate::admission::Mode;
use crate::telemetry::logs::Levels;

/// An order that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeOrder {
    /// The mode to be.
    pub mode: Mode,
    /// Of which cluster; of all without a name.
    pub cluster: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    mode: Name,
    hold: Option<bool>,
    cluster: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Name {
    Normal,
    ReadOnly,
    Maintenance,
}

impl ModeOrder {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// What is wrong, where, and what would be right.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        const EXAMPLE: &str = r#"expected {"mode": "normal" | "read-only" | "maintenance"}, with "hold": true | false for maintenance and "cluster": "NAME" where one is meant"#;
        let Written { mode, hold, cluster } =
            serde_json::from_slice(body).map_err(|error| format!("body: {error}; {EXAMPLE}"))?;
        let mode = match (mode, hold) {
            (Name::Maintenance, hold) => Mode::Maintenance { hold: hold.unwrap_or(true) },
            (_, Some(_)) => return Err(format!("hold: found with a mode that holds nothing; {EXAMPLE}")),
            (Name::Normal, None) => Mode::Normal,
            (Name::ReadOnly, None) => Mode::ReadOnly,
        };
        Ok(Self { mode, cluster })
    }
}

/// An order to log other lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOrder {
    /// Which; `None` for those that the process was started with.
    pub levels: Option<Levels>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLog {
    // Without a default: to leave it out is a mistake, and to say null is not.
    level: serde_json::Value,
}

impl LogOrder {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// What is wrong, where, and what would be right.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        const EXAMPLE: &str = r#"expected {"level": "debug"}, {"level": "info,mongomux::connection=debug"}, or {"level": null} for what --log says"#;
        let WrittenLog { level } = serde_json::from_slice(body).map_err(|error| format!("body: {error}; {EXAMPLE}"))?;
        let levels = match level {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.parse().map_err(|error| format!("level: {error}"))?),
            _ => return Err(format!("level: found what is no text; {EXAMPLE}")),
        };
        Ok(Self { levels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_to_log_are_read_and_mistakes_are_told() {
        let read = |text: &str| LogOrder::parse(text.as_bytes()).map(|order| order.levels.map(|it| it.to_string()));
        assert_eq!(read(r#"{"level":"DEBUG"}"#), Ok(Some("debug".to_owned())));
        assert_eq!(read(r#"{"level":null}"#), Ok(None));
        for (text, told) in [
            ("", "body: "),
            ("{}", "missing field `level`"),
            (r#"{"level":"info","cluster":"shop"}"#, "unknown field `cluster`"),
            (r#"{"level":3}"#, "level: found what is no text"),
            (r#"{"level":"loud"}"#, "level: found \"loud\", expected one of off, error"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told) && error.contains("debug"), "{text}: {error}");
        }
    }

    #[test]
    fn orders_are_read() {
        let read = |text: &str| ModeOrder::parse(text.as_bytes()).map(|order| (order.mode, order.cluster));
        assert_eq!(read(r#"{"mode":"normal"}"#), Ok((Mode::Normal, None)));
        assert_eq!(read(r#"{"mode":"read-only","cluster":"shop"}"#), Ok((Mode::ReadOnly, Some("shop".to_owned()))));
        assert_eq!(read(r#"{"mode":"maintenance"}"#), Ok((Mode::Maintenance { hold: true }, None)));
        assert_eq!(read(r#" {"hold" : false, "mode":"maintenance"}"#), Ok((Mode::Maintenance { hold: false }, None)));
    }

    #[test]
    fn mistakes_are_told_with_their_place_and_what_is_right() {
        for (body, told) in [
            ("", "body: EOF while parsing a value at line 1 column 0"),
            ("{}", "missing field `mode` at line 1 column 2"),
            (
                r#"{"mode":"off"}"#,
                "unknown variant `off`, expected one of `normal`, `read-only`, `maintenance` at line 1",
            ),
            (
                r#"{"mode":"normal","for":1}"#,
                "unknown field `for`, expected one of `mode`, `hold`, `cluster` at line 1",
            ),
            (r#"{"mode":"maintenance","hold":1}"#, "invalid type: integer `1`, expected a boolean at line 1"),
            (r#"{"mode":"read-only","hold":true}"#, "hold: found with a mode that holds nothing"),
            (r#"["normal"]"#, "body: "),
            ("\u{0}", "expected value at line 1 column 1"),
        ] {
            let error = ModeOrder::parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(told) && error.contains(r#""normal" | "read-only" | "maintenance""#), "{error}");
        }
    }
}
