//! Any JSON as lines for people: fields below each other, lists of alike things as tables. No I/O here.

use serde_json::{Map, Value};

use super::page::{Page, Piece, Tone};
use super::table::{Column, KEEP, Table};

/// Deeper than anything that is told; what is deeper stays JSON.
const DEEPEST: usize = 6;

/// Adds `value` below what `page` has.
pub(super) fn write(page: &mut Page, value: &Value, width: Option<usize>) {
    write_at(page, value, 0, width);
}

fn write_at(page: &mut Page, value: &Value, depth: usize, width: Option<usize>) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if depth < DEEPEST => {
            for (name, value) in fields {
                if is_short(value) {
                    page.item(&format!("{indent}{name}: "), &short(value), Tone::Plain, width);
                } else {
                    page.line(format!("{indent}{name}:"), Tone::Plain);
                    write_at(page, value, depth + 1, width);
                }
            }
        }
        Value::Array(items) if depth < DEEPEST => match table(items) {
            Some(table) => {
                let room = width.map(|width| width.saturating_sub(indent.len()));
                page.lines.extend(table.lines(room).into_iter().map(|mut line| {
                    line.insert(0, Piece::plain(&indent));
                    line
                }));
            }
            None => {
                for item in items {
                    if is_short(item) {
                        page.item(&format!("{indent}- "), &short(item), Tone::Plain, width);
                    } else {
                        page.line(format!("{indent}-"), Tone::Faint);
                        write_at(page, item, depth + 1, width);
                    }
                }
            }
        },
        other => page.item(&indent, &short(other), Tone::Plain, width),
    }
}

/// Things that are alike: objects of short values, more than one name among them.
fn table(items: &[Value]) -> Option<Table> {
    let rows: Option<Vec<&Map<String, Value>>> = items.iter().map(Value::as_object).collect();
    let rows = rows.filter(|rows| !rows.is_empty() && rows.iter().all(|row| row.values().all(is_short)))?;
    let mut names: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| row.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    if names.len() < 2 {
        return None;
    }
    let columns = names.iter().map(|name| {
        let numbers = rows.iter().filter_map(|row| row.get(*name)).all(|value| value.is_number() || value.is_null());
        Column { title: (*name).to_owned(), right: numbers, rank: KEEP }
    });
    let cell = |row: &Map<String, Value>, name: &str| Piece::plain(row.get(name).map(short).unwrap_or_default());
    let cells = rows.iter().map(|row| names.iter().map(|name| cell(row, name)).collect());
    Some(Table { columns: columns.collect(), rows: cells.collect() })
}

fn is_short(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        _ => true,
    }
}

pub(super) fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            items.iter().map(short).collect::<Vec<_>>().join(", ")
        }
        Value::Object(fields) if fields.is_empty() => "none".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(value: &Value) -> String {
        let mut page = Page::default();
        write(&mut page, value, None);
        page.render(false)
    }

    #[test]
    fn fields_stand_below_each_other_and_what_is_alike_in_a_table() {
        let value = json!({
            "mode": "read-only", "clusters": ["a", "b"], "nothing": null, "empty": [],
            "servers": [{"address": "db:1", "open": 10}, {"address": "db:22", "open": 3, "note": "new"}],
            "inner": {"deep": {"x": true}},
        });
        let expected = "mode: read-only\nclusters: a, b\nnothing: -\nempty: none\nservers:\n  address  open  note\n  \
                        db:1       10\n  db:22       3  new\ninner:\n  deep:\n    x: true";
        let mut shown: Vec<String> = text(&value).lines().map(str::to_owned).collect();
        let mut expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        // Objects have no order of their own here.
        shown.sort();
        expected.sort();
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_deeper_than_anything_stays_json() {
        let mut value = json!({"z": 1});
        for _ in 0..50 {
            value = json!({"y": value});
        }
        assert_eq!(text(&value).lines().count(), DEEPEST + 1);
        assert_eq!(text(&json!([[1, 2], {"a": {"b": 1}}])), "- 1, 2\n-\n  a:\n    b: 1");
        assert_eq!(text(&json!("done")), "done");
    }
}
