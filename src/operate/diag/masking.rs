//! The last line of defence before a bundle is pasted where others read it. What it is made of shows no secrets; here nothing is
//! taken on trust. No I/O here.

use serde_json::Value;

use crate::operate::page::Page;
use crate::telemetry::logs::{MASK, redact};

/// Fields whose texts are secrets whatever they say, by a part of their name in lower case.
const SECRET: &[&str] =
    &["password", "passphrase", "secret", "token", "verifier", "credential", "privatekey", "private_key"];

/// And those of them that say where one is, or how many there are.
const HARMLESS_ENDS: &[&str] = &["file", "_ms", "seconds", "count", "total"];

/// Masks what may be a secret in any text of `value`.
pub(super) fn mask(value: &mut Value) {
    match value {
        Value::String(text) => *text = masked(text),
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::Object(fields) => {
            // `{"key": ..., "value": ...}` as well as `{key: value}`.
            let named = fields.get("key").and_then(Value::as_str).is_some_and(is_secret);
            for (name, value) in fields {
                if is_secret(name) || (named && name == "value") { mask_whole(value) } else { mask(value) }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text without what may be a secret in it.
pub(super) fn masked(text: &str) -> String {
    redact(text).into_owned()
}

/// The same for what was put into words before.
pub(super) fn mask_page(page: &mut Page) {
    for piece in page.lines.iter_mut().flatten() {
        piece.text = masked(&piece.text);
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|secret| name.contains(secret)) && !HARMLESS_ENDS.iter().any(|end| name.ends_with(end))
}

fn mask_whole(value: &mut Value) {
    match value {
        Value::String(text) if !text.is_empty() => MASK.clone_into(text),
        Value::Number(_) => *value = Value::from(MASK),
        Value::Array(items) => items.iter_mut().for_each(mask_whole),
        // `{"value": ..., "origin": ...}`
        Value::Object(fields) => fields.values_mut().for_each(mask_whole),
        Value::String(_) | Value::Null | Value::Bool(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_called_a_secret_or_looks_like_one_is_masked() {
        let mut value = json!({
            "upstream": "mongodb://root:hush@db:1/?x=1", "upstream_password_file": "/run/secrets/p",
            "adminToken": "hush", "users": [{"name": "app", "password": "hush", "verifiers": ["hush"]}],
            "tls_key_password": {"value": "hush", "origin": "file"}, "tokens": 5, "empty": {"password": ""},
            "settings": [{"key": "upstream_password", "value": "hush", "origin": "file"}],
            "note": ["see mongodb://a:hush@b, please"],
        });
        mask(&mut value);
        assert!(!value.to_string().contains("hush"), "{value}");
        assert_eq!(value["upstream"], "mongodb://***@db:1/?x=1");
        assert_eq!(
            (&value["upstream_password_file"], &value["users"][0]["name"]),
            (&json!("/run/secrets/p"), &json!("app"))
        );
        assert_eq!(value["empty"]["password"], "");
    }
}
