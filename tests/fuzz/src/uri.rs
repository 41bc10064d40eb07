//! Connection strings: what is shown of one has no password in it, and reads as the same.

use mongomux::config::uri::Upstream;

/// Stands for a password; nothing else that is said may contain it.
const PASSWORD: &str = "s3cr3tpw";

/// The bytes are the string; and, in another turn, what stands around a user and a password.
pub fn check(data: &[u8]) {
    let Some(text) = std::str::from_utf8(data).ok().filter(|text| !text.contains(PASSWORD)) else { return };
    taken_or_told(text);
    taken_or_told(&format!("mongodb://{text}"));
    let (before, after) = text.split_at(text.floor_char_boundary(text.len() / 2));
    // Behind a question mark it would be part of an option.
    if !text.contains("://") && !before.contains('?') {
        taken_or_told(&format!("mongodb://u{before}:{PASSWORD}@{after}"));
    }
}

fn taken_or_told(text: &str) {
    match Upstream::parse(text) {
        Ok(upstream) => {
            for shown in [&upstream.redacted, &format!("{upstream:?}"), &format!("{:?}", upstream.credential)] {
                assert!(!shown.contains(PASSWORD), "{shown}");
            }
            assert!(upstream.warnings.iter().all(|warning| !warning.contains(PASSWORD)));
            assert_eq!(upstream.is_srv, upstream.seeds.is_empty());
            assert!(upstream.app_name.as_ref().is_none_or(|name| name.len() <= 128));
            assert!(!upstream.direct_connection || upstream.seeds.len() <= 1);
            assert!(upstream.overrides.max_pool_size != Some(0) && upstream.overrides.max_connecting != Some(0));
        }
        Err(mistakes) => {
            let told = mistakes.to_string();
            assert!(!told.is_empty(), "who is refused is told why");
            assert!(!told.contains(PASSWORD), "{told}");
        }
    }
}
