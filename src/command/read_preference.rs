//! `$readPreference`, as drivers send it to a mongos, read into a [`ReadPreference`].
//!
//! Values are checked as a server checks them, with its error codes (seen on 6.0.5). The document itself is forwarded
//! unchanged; which server suits it is decided in `topology::selection`. `hedge` and unknown fields are the server's business.

use std::time::Duration;

use bson::raw::RawBsonRef;
use bson::{RawDocument, rawdoc};

use crate::wire::Elements;

/// The smallest `maxStalenessSeconds` that servers and drivers accept: lag is known only as often as heartbeats and the
/// no-op writes of an idle primary tell it.
const MIN_MAX_STALENESS: Duration = Duration::from_secs(90);

/// Which members of a replica set may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadPreferenceMode {
    /// The primary only.
    #[default]
    Primary,
    /// The primary if there is one, else a secondary.
    PrimaryPreferred,
    /// A secondary only.
    Secondary,
    /// A secondary if one suits, else the primary.
    SecondaryPreferred,
    /// Any data-bearing member.
    Nearest,
}

/// One tag set: a server suits when it has all of these tags; the empty set suits every server.
pub type TagSet = Vec<(String, String)>;

/// Which server may answer a read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadPreference {
    /// Kinds of members.
    pub mode: ReadPreferenceMode,
    /// Tried in this order; the first that suits any server decides. None at all suits every server.
    pub tag_sets: Vec<TagSet>,
    /// How far a secondary may lag behind, at least 90 s.
    pub max_staleness: Option<Duration>,
}

/// Why a `$readPreference` is not valid, with the code a server answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ReadPreferenceError {
    /// Server error code.
    pub code: i32,
    /// Its name.
    pub code_name: &'static str,
    /// In words.
    pub message: String,
}

impl ReadPreference {
    /// Without tags and without a limit of staleness.
    pub fn new(mode: ReadPreferenceMode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Reads the value of `$readPreference`.
    ///
    /// # Errors
    /// As a server would answer: a missing or unknown mode, values of wrong types, tags or staleness with mode
    /// `primary`, a staleness below 90 s.
    pub fn parse(document: &RawDocument) -> Result<Self, ReadPreferenceError> {
        let mut mode = None;
        let mut tag_sets = Vec::new();
        let mut max_staleness = None;
        for element in document {
            let (key, value) = element.map_err(|error| failed_to_parse(error.to_string()))?;
            match key.as_str() {
                "mode" => mode = Some(parse_mode(value)?),
                "tags" => tag_sets = parse_tag_sets(value)?,
                "maxStalenessSeconds" => max_staleness = parse_max_staleness(value)?,
                _ => {}
            }
        }
        let mode = mode.ok_or_else(|| error(4, "NoSuchKey", "Missing expected field \"mode\""))?;
        if mode == ReadPreferenceMode::Primary {
            if tag_sets.iter().any(|tags: &TagSet| !tags.is_empty()) {
                return Err(bad_value("Only empty tags are allowed with primary read preference"));
            }
            if max_staleness.is_some() {
                return Err(bad_value("maxStalenessSeconds can not be set for the primary mode"));
            }
        }
        Ok(Self { mode, tag_sets, max_staleness })
    }
}

/// `document` with a read preference that lets a secondary answer, in the place of any it has. All other fields stay as
/// they are, byte for byte and in their order.
pub(super) fn with_primary_preferred(document: &[u8]) -> Vec<u8> {
    let preference = rawdoc! {"$readPreference": {"mode": "primaryPreferred"}};
    let mut rebuilt = vec![0; size_of::<i32>()];
    let mut begin = rebuilt.len();
    for element in Elements::new(document).into_iter().flatten().map_while(Result::ok) {
        let end = element.offset + element.value.len();
        if element.name != b"$readPreference" {
            rebuilt.extend_from_slice(&document[begin..end]);
        }
        begin = end;
    }
    // With the NUL that ends a document, and without its length.
    rebuilt.extend_from_slice(&preference.as_bytes()[size_of::<i32>()..]);
    let length = i32::try_from(rebuilt.len()).expect("a command is shorter than a message may be");
    rebuilt[..size_of::<i32>()].copy_from_slice(&length.to_le_bytes());
    rebuilt
}

fn parse_mode(value: RawBsonRef<'_>) -> Result<ReadPreferenceMode, ReadPreferenceError> {
    match value.as_str() {
        Some("primary") => Ok(ReadPreferenceMode::Primary),
        Some("primaryPreferred") => Ok(ReadPreferenceMode::PrimaryPreferred),
        Some("secondary") => Ok(ReadPreferenceMode::Secondary),
        Some("secondaryPreferred") => Ok(ReadPreferenceMode::SecondaryPreferred),
        Some("nearest") => Ok(ReadPreferenceMode::Nearest),
        Some(other) => Err(bad_value(format!(
            "Could not parse $readPreference mode '{other}'. Only the modes 'primary', 'primaryPreferred', 'secondary', \
             'secondaryPreferred', and 'nearest' are supported."
        ))),
        None => Err(type_mismatch("mode", "string")),
    }
}

fn parse_tag_sets(value: RawBsonRef<'_>) -> Result<Vec<TagSet>, ReadPreferenceError> {
    let array = value.as_array().ok_or_else(|| type_mismatch("tags", "array"))?;
    array.into_iter().map(|set| parse_tag_set(set.map_err(|error| failed_to_parse(error.to_string()))?)).collect()
}

fn parse_tag_set(value: RawBsonRef<'_>) -> Result<TagSet, ReadPreferenceError> {
    let document = value.as_document().ok_or_else(|| type_mismatch("tags", "array of objects"))?;
    let tag = |element: Result<(&bson::raw::CStr, RawBsonRef<'_>), bson::error::Error>| {
        let (name, value) = element.map_err(|error| failed_to_parse(error.to_string()))?;
        let value = value.as_str().ok_or_else(|| type_mismatch("tags", "array of objects of strings"))?;
        Ok((name.as_str().to_owned(), value.to_owned()))
    };
    document.into_iter().map(tag).collect()
}

/// -1 and 0 stand for no limit.
fn parse_max_staleness(value: RawBsonRef<'_>) -> Result<Option<Duration>, ReadPreferenceError> {
    let seconds = match value {
        RawBsonRef::Int32(seconds) => i64::from(seconds),
        RawBsonRef::Int64(seconds) => seconds,
        RawBsonRef::Double(seconds) => whole_seconds(seconds)
            .ok_or_else(|| bad_value("Expected field \"maxStalenessSeconds\" to be a whole number of seconds"))?,
        _ => return Err(type_mismatch("maxStalenessSeconds", "numeric type")),
    };
    if matches!(seconds, -1 | 0) {
        return Ok(None);
    }
    let seconds =
        u64::try_from(seconds).map_err(|_| bad_value("maxStalenessSeconds must be a non-negative integer"))?;
    let staleness = Duration::from_secs(seconds);
    if staleness < MIN_MAX_STALENESS {
        let message = format!("maxStalenessSeconds value can not be less than {}", MIN_MAX_STALENESS.as_secs());
        return Err(error(160, "MaxStalenessOutOfRange", message));
    }
    Ok(Some(staleness))
}

/// Drivers in languages without integers send doubles; the range of an `i32` (68 years) is exact in both.
fn whole_seconds(seconds: f64) -> Option<i64> {
    let in_range = seconds.fract() == 0.0 && seconds >= f64::from(i32::MIN) && seconds <= f64::from(i32::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in the range of i32")]
    in_range.then_some(seconds as i64)
}

fn error(code: i32, code_name: &'static str, message: impl Into<String>) -> ReadPreferenceError {
    ReadPreferenceError { code, code_name, message: message.into() }
}

fn bad_value(message: impl Into<String>) -> ReadPreferenceError {
    error(2, "BadValue", message)
}

fn failed_to_parse(message: String) -> ReadPreferenceError {
    error(9, "FailedToParse", message)
}

fn type_mismatch(field: &str, expected: &str) -> ReadPreferenceError {
    error(14, "TypeMismatch", format!("\"{field}\" had the wrong type. Expected {expected}"))
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, rawdoc};

    use super::*;

    fn parse(document: &RawDocumentBuf) -> Result<ReadPreference, i32> {
        ReadPreference::parse(document).map_err(|error| error.code)
    }

    #[test]
    fn every_mode_is_known_by_its_exact_name() {
        use ReadPreferenceMode::*;
        for (name, mode) in [
            ("primary", Primary),
            ("primaryPreferred", PrimaryPreferred),
            ("secondary", Secondary),
            ("secondaryPreferred", SecondaryPreferred),
            ("nearest", Nearest),
        ] {
            assert_eq!(parse(&rawdoc! { "mode": name }), Ok(ReadPreference::new(mode)));
        }
        assert_eq!(parse(&rawdoc! { "mode": "Primary" }), Err(2));
    }

    #[test]
    fn tag_sets_keep_their_order() {
        let document = rawdoc! { "mode": "nearest", "tags": [{ "dc": "a", "disk": "ssd" }, {}], "hedge": {}, "new": 1 };
        let tags = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let parsed = parse(&document).unwrap();
        assert_eq!(parsed.tag_sets, [tags(&[("dc", "a"), ("disk", "ssd")]), tags(&[])] as [TagSet; 2]);
    }

    #[test]
    fn staleness_is_a_whole_number_of_any_numeric_type() {
        let staleness = |document: RawDocumentBuf| parse(&document).map(|it| it.max_staleness);
        let seconds = |n| Ok(Some(Duration::from_secs(n)));
        assert_eq!(staleness(rawdoc! { "mode": "secondary", "maxStalenessSeconds": 90 }), seconds(90));
        assert_eq!(staleness(rawdoc! { "mode": "secondary", "maxStalenessSeconds": 120_i64 }), seconds(120));
        assert_eq!(staleness(rawdoc! { "mode": "secondary", "maxStalenessSeconds": 100.0 }), seconds(100));
        assert_eq!(staleness(rawdoc! { "mode": "secondary", "maxStalenessSeconds": -1 }), Ok(None));
        assert_eq!(staleness(rawdoc! { "mode": "primary", "maxStalenessSeconds": 0 }), Ok(None));
    }

    #[test]
    fn mistakes_get_the_codes_of_a_server() {
        for (document, code) in [
            (rawdoc! {}, 4),
            (rawdoc! { "mode": 1 }, 14),
            (rawdoc! { "mode": "secondary", "tags": "x" }, 14),
            (rawdoc! { "mode": "secondary", "tags": null }, 14),
            (rawdoc! { "mode": "primary", "tags": [{ "a": "b" }] }, 2),
            (rawdoc! { "mode": "primary", "maxStalenessSeconds": 100 }, 2),
            (rawdoc! { "mode": "secondary", "maxStalenessSeconds": -2 }, 2),
            (rawdoc! { "mode": "secondary", "maxStalenessSeconds": 89 }, 160),
            (rawdoc! { "mode": "secondary", "maxStalenessSeconds": 90.5 }, 2),
            (rawdoc! { "mode": "secondary", "maxStalenessSeconds": f64::NAN }, 2),
            (rawdoc! { "mode": "secondary", "maxStalenessSeconds": 1e300 }, 2),
            (rawdoc! { "mode": "secondary", "maxStalenessSeconds": "x" }, 14),
        ] {
            assert_eq!(parse(&document), Err(code), "{document:?}");
        }
        assert!(parse(&rawdoc! { "mode": "primary", "tags": [{}] }).is_ok());
    }

    #[test]
    fn the_preference_for_a_secondary_replaces_any_other_and_nothing_else() {
        let mode = || rawdoc! { "mode": "primaryPreferred" };
        for (before, after) in [
            (rawdoc! { "find": "c", "$db": "d" }, rawdoc! { "find": "c", "$db": "d", "$readPreference": mode() }),
            (
                rawdoc! { "find": "c", "$readPreference": { "mode": "primary" }, "maxTimeMS": 5, "$db": "d" },
                rawdoc! { "find": "c", "maxTimeMS": 5, "$db": "d", "$readPreference": mode() },
            ),
            (
                rawdoc! { "find": "c", "filter": { "$readPreference": 1 }, "$readPreference": 1, "$readPreference": 2 },
                rawdoc! { "find": "c", "filter": { "$readPreference": 1 }, "$readPreference": mode() },
            ),
        ] {
            assert_eq!(with_primary_preferred(before.as_bytes()), after.as_bytes(), "{before:?}");
        }
    }

    #[test]
    fn broken_bytes_are_an_error() {
        let mut bytes = rawdoc! { "mode": "nearest" }.into_bytes();
        bytes[4] = 0x7e;
        let document = RawDocument::from_bytes(&bytes).unwrap();
        assert_eq!(ReadPreference::parse(document).unwrap_err().code, 9);
    }
}
