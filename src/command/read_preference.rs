//! `$readPreference`, as drivers send it to a mongos, read into a [`ReadPreference`].
//!
//! Values are checked as a server checks them (seen on 6.0.5); what is wrong with one is left to the server to say. The
//! document itself is forwarded unchanged; which server suits it is decided in `topology::selection`. `hedge` and unknown
//! fields are the server's business.

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

impl ReadPreference {
    /// Without tags and without a limit of staleness.
    pub fn new(mode: ReadPreferenceMode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Reads the value of `$readPreference`. `None` for one that a server refuses: a missing or unknown mode, values of
    /// wrong types, tags or staleness with mode `primary`, a staleness below 90 s.
    pub fn parse(document: &RawDocument) -> Option<Self> {
        let mut mode = None;
        let mut tag_sets = Vec::new();
        let mut max_staleness = None;
        for element in document {
            let (key, value) = element.ok()?;
            match key.as_str() {
                "mode" => mode = Some(parse_mode(value)?),
                "tags" => tag_sets = parse_tag_sets(value)?,
                "maxStalenessSeconds" => max_staleness = parse_max_staleness(value)?,
                _ => {}
            }
        }
        let mode = mode?;
        let is_tagged = tag_sets.iter().any(|tags: &TagSet| !tags.is_empty());
        if mode == ReadPreferenceMode::Primary && (is_tagged || max_staleness.is_some()) {
            return None;
        }
        Some(Self { mode, tag_sets, max_staleness })
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

fn parse_mode(value: RawBsonRef<'_>) -> Option<ReadPreferenceMode> {
    match value.as_str()? {
        "primary" => Some(ReadPreferenceMode::Primary),
        "primaryPreferred" => Some(ReadPreferenceMode::PrimaryPreferred),
        "secondary" => Some(ReadPreferenceMode::Secondary),
        "secondaryPreferred" => Some(ReadPreferenceMode::SecondaryPreferred),
        "nearest" => Some(ReadPreferenceMode::Nearest),
        _ => None,
    }
}

fn parse_tag_sets(value: RawBsonRef<'_>) -> Option<Vec<TagSet>> {
    value.as_array()?.into_iter().map(|set| parse_tag_set(set.ok()?)).collect()
}

fn parse_tag_set(value: RawBsonRef<'_>) -> Option<TagSet> {
    let tag = |element: Result<(&bson::raw::CStr, RawBsonRef<'_>), bson::error::Error>| {
        let (name, value) = element.ok()?;
        Some((name.as_str().to_owned(), value.as_str()?.to_owned()))
    };
    value.as_document()?.into_iter().map(tag).collect()
}

/// -1 and 0 stand for no limit. The outer `None` is for what a server refuses.
fn parse_max_staleness(value: RawBsonRef<'_>) -> Option<Option<Duration>> {
    let seconds = match value {
        RawBsonRef::Int32(seconds) => i64::from(seconds),
        RawBsonRef::Int64(seconds) => seconds,
        RawBsonRef::Double(seconds) => whole_seconds(seconds)?,
        _ => return None,
    };
    if matches!(seconds, -1 | 0) {
        return Some(None);
    }
    let staleness = Duration::from_secs(u64::try_from(seconds).ok()?);
    (staleness >= MIN_MAX_STALENESS).then_some(Some(staleness))
}

/// Drivers in languages without integers send doubles; the range of an `i32` (68 years) is exact in both.
fn whole_seconds(seconds: f64) -> Option<i64> {
    let in_range = seconds.fract() == 0.0 && seconds >= f64::from(i32::MIN) && seconds <= f64::from(i32::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in the range of i32")]
    in_range.then_some(seconds as i64)
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, rawdoc};

    use super::*;

    fn parse(document: &RawDocumentBuf) -> Option<ReadPreference> {
        ReadPreference::parse(document)
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
            assert_eq!(parse(&rawdoc! { "mode": name }), Some(ReadPreference::new(mode)));
        }
        assert_eq!(parse(&rawdoc! { "mode": "Primary" }), None);
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
        let seconds = |n| Some(Some(Duration::from_secs(n)));
        assert_eq!(staleness(rawdoc! { "mode": "secondary", "maxStalenessSeconds": 90 }), seconds(90));
        assert_eq!(staleness(rawdoc! { "mode": "secondary", "maxStalenessSeconds": 120_i64 }), seconds(120));
        assert_eq!(staleness(rawdoc! { "mode": "secondary", "maxStalenessSeconds": 100.0 }), seconds(100));
        assert_eq!(staleness(rawdoc! { "mode": "secondary", "maxStalenessSeconds": -1 }), Some(None));
        assert_eq!(staleness(rawdoc! { "mode": "primary", "maxStalenessSeconds": 0 }), Some(None));
    }

    #[test]
    fn mistakes_are_left_to_the_server() {
        for document in [
            rawdoc! {},
            rawdoc! { "mode": 1 },
            rawdoc! { "mode": "secondary", "tags": "x" },
            rawdoc! { "mode": "secondary", "tags": null },
            rawdoc! { "mode": "primary", "tags": [{ "a": "b" }] },
            rawdoc! { "mode": "primary", "maxStalenessSeconds": 100 },
            rawdoc! { "mode": "secondary", "maxStalenessSeconds": -2 },
            rawdoc! { "mode": "secondary", "maxStalenessSeconds": 89 },
            rawdoc! { "mode": "secondary", "maxStalenessSeconds": 90.5 },
            rawdoc! { "mode": "secondary", "maxStalenessSeconds": f64::NAN },
            rawdoc! { "mode": "secondary", "maxStalenessSeconds": 1e300 },
            rawdoc! { "mode": "secondary", "maxStalenessSeconds": "x" },
        ] {
            assert_eq!(parse(&document), None, "{document:?}");
        }
        assert!(parse(&rawdoc! { "mode": "primary", "tags": [{}] }).is_some());
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
    fn broken_bytes_are_no_preference() {
        let mut bytes = rawdoc! { "mode": "nearest" }.into_bytes();
        bytes[4] = 0x7e;
        let document = RawDocument::from_bytes(&bytes).unwrap();
        assert_eq!(ReadPreference::parse(document), None);
    }
}
