//! What has happened, in lines, newest first. No I/O here.

use serde_json::Value;

use super::page::{Line, Piece, Tone};

/// The newest of what `/events` has told, each in a line.
pub(super) fn lines(told: Option<&Value>, most: usize) -> Vec<Line> {
    told.and_then(Value::as_array).into_iter().flatten().take(most).map(line).collect()
}

/// When, what, where, in words, and how often in a row.
fn line(event: &Value) -> Line {
    let text = |name: &str| event.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let parts = [
        ("at", Tone::Faint),
        ("kind", Tone::Title),
        ("cluster", Tone::Plain),
        ("server", Tone::Plain),
        ("text", Tone::Plain),
    ];
    let parts = parts.into_iter().filter_map(|(name, tone)| Some(Piece::new(text(name)?, tone)));
    let often = event.get("count").and_then(Value::as_u64).filter(|count| *count > 1);
    let often = often.map(|count| Piece::new(format!("{count} times"), Tone::Warn));
    let mut line = Line::new();
    for piece in parts.chain(often) {
        if !line.is_empty() {
            line.push(Piece::plain("  "));
        }
        line.push(piece);
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::operate::page::Page;

    #[test]
    fn the_newest_are_told_each_in_a_line() {
        let told = json!([
            {"at": "2026-01-01T00:00:02Z", "kind": "breaker", "cluster": "default", "server": "db:1", "text": "open", "count": 3},
            {"at": "2026-01-01T00:00:01Z", "kind": "reload", "text": "", "count": 1},
            {"kind": "old"},
        ]);
        let text = Page { lines: lines(Some(&told), 2) }.render(false);
        assert_eq!(text, "2026-01-01T00:00:02Z  breaker  default  db:1  open  3 times\n2026-01-01T00:00:01Z  reload");
        assert_eq!(lines(Some(&told), 9).len(), 3);
        assert!(lines(None, 9).is_empty() && lines(Some(&json!("none")), 9).is_empty());
    }
}
