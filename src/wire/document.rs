//! Walking the top level of a BSON document in place.
//!
//! The `bson` crate reads documents wherever cost does not matter. Here every command and every reply passes, so this
//! walk touches names and lengths only, and it knows the offset of each value, so that a value can be patched without
//! rebuilding its document. It never recurses: a caller that wants a sub-document walks that one in turn.

use super::header::{split_cstring, split_i32, split_i64};

/// The bytes are no BSON document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed BSON document")]
pub struct MalformedDocument;

/// One field of a document, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// BSON type number.
    pub kind: u8,
    /// The name; not checked to be UTF-8.
    pub name: &'a [u8],
    /// The bytes of the value, without type and name.
    pub value: &'a [u8],
    /// Where `value` starts, counted from the start of the document.
    pub offset: usize,
}

/// BSON type numbers of the values we look at.
pub mod kind {
    #![allow(missing_docs, reason = "the names are the BSON specification's")]
    pub const DOUBLE: u8 = 0x01;
    pub const STRING: u8 = 0x02;
    pub const DOCUMENT: u8 = 0x03;
    pub const ARRAY: u8 = 0x04;
    pub const BINARY: u8 = 0x05;
    pub const UNDEFINED: u8 = 0x06;
    pub const OBJECT_ID: u8 = 0x07;
    pub const BOOL: u8 = 0x08;
    pub const NULL: u8 = 0x0A;
    pub const CODE_WITH_SCOPE: u8 = 0x0F;
    pub const INT32: u8 = 0x10;
    pub const TIMESTAMP: u8 = 0x11;
    pub const INT64: u8 = 0x12;
}

/// A moment of a replica set's oplog: seconds in the upper half, a count within the second in the lower one. Moments of one
/// set are in order; those of two have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Timestamp(pub u64);

impl<'a> Element<'a> {
    /// A moment of the oplog.
    pub fn as_timestamp(&self) -> Option<Timestamp> {
        if self.kind != kind::TIMESTAMP {
            return None;
        }
        self.value.first_chunk().map(|bytes| Timestamp(u64::from_le_bytes(*bytes)))
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&'a str> {
        if self.kind != kind::STRING {
            return None;
        }
        let (_, text) = split_i32(self.value)?;
        std::str::from_utf8(text.split_last()?.1).ok()
    }

    /// The bytes of a document or an array.
    pub fn as_document(&self) -> Option<&'a [u8]> {
        matches!(self.kind, kind::DOCUMENT | kind::ARRAY).then_some(self.value)
    }

    /// The bytes of a document that may have further ones in it, whatever it is there for.
    fn inside(&self) -> Option<&'a [u8]> {
        if self.kind != kind::CODE_WITH_SCOPE {
            return self.as_document();
        }
        let (_, code) = split_i32(self.value)?;
        let (length, code) = split_i32(code)?;
        code.get(usize::try_from(length).ok()?..)
    }

    /// An exact 64-bit integer.
    pub fn as_i64(&self) -> Option<i64> {
        if self.kind != kind::INT64 {
            return None;
        }
        split_i64(self.value).map(|(number, _)| number)
    }

    /// Any number, as the server reads options: fractions are cut off, what does not fit is clamped.
    pub fn as_number(&self) -> Option<i64> {
        match self.kind {
            kind::INT32 => split_i32(self.value).map(|(number, _)| i64::from(number)),
            kind::INT64 => self.as_i64(),
            #[expect(clippy::cast_possible_truncation, reason = "`as` clamps, which is what is wanted")]
            kind::DOUBLE => self.as_double().map(|number| number as i64),
            _ => None,
        }
    }

    /// A double, and no other number.
    pub fn as_double(&self) -> Option<f64> {
        if self.kind != kind::DOUBLE {
            return None;
        }
        self.value.first_chunk().map(|bytes| f64::from_le_bytes(*bytes))
    }

    /// Truth as the server reads it: booleans as they are, numbers unless zero; `None` for all other types.
    pub fn as_truth(&self) -> Option<bool> {
        match self.kind {
            kind::BOOL => self.value.first().map(|byte| *byte != 0),
            kind::DOUBLE => self.as_double().map(|number| number != 0.0),
            _ => self.as_number().map(|number| number != 0),
        }
    }

    /// The 16 bytes of a UUID.
    pub fn as_uuid(&self) -> Option<[u8; 16]> {
        if self.kind != kind::BINARY {
            return None;
        }
        let (_, rest) = split_i32(self.value)?;
        rest.get(1..)?.try_into().ok()
    }
}

/// The fields of one document in order. Stops after the first malformed one.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    document: &'a [u8],
    /// Offset of the next element.
    position: usize,
    /// Offset of the closing NUL.
    end: usize,
}

impl<'a> Elements<'a> {
    /// Walks `document`, which must be one whole document and nothing more.
    ///
    /// # Errors
    /// [`MalformedDocument`] when the length field, the size of `document` and the closing NUL disagree.
    pub fn new(document: &'a [u8]) -> Result<Self, MalformedDocument> {
        let length = document_length(document)?;
        match document.split_last() {
            Some((0, body)) if length == document.len() => Ok(Self { document, position: 4, end: body.len() }),
            _ => Err(MalformedDocument),
        }
    }

    fn read(&mut self) -> Option<Element<'a>> {
        let rest = self.document.get(self.position..self.end)?;
        let (kind, rest) = rest.split_first()?;
        let (name, rest) = split_cstring(rest)?;
        let value = rest.get(..value_length(*kind, rest)?)?;
        let offset = self.end.checked_sub(rest.len())?;
        self.position = offset.checked_add(value.len())?;
        Some(Element { kind: *kind, name, value, offset })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, MalformedDocument>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position == self.end {
            return None;
        }
        let element = self.read().ok_or(MalformedDocument);
        if element.is_err() {
            self.position = self.end;
        }
        Some(element)
    }
}

/// The length that the document at the start of `bytes` claims, checked to lie within `bytes`.
///
/// # Errors
/// [`MalformedDocument`] when the length is impossible or longer than what is there.
pub fn document_length(bytes: &[u8]) -> Result<usize, MalformedDocument> {
    let (length, _) = split_i32(bytes).ok_or(MalformedDocument)?;
    match usize::try_from(length) {
        Ok(length) if (5..=bytes.len()).contains(&length) => Ok(length),
        _ => Err(MalformedDocument),
    }
}

/// The first field called `name`, if the document is sound up to there.
pub fn find<'a>(document: &'a [u8], name: &[u8]) -> Option<Element<'a>> {
    Elements::new(document).ok()?.map_while(Result::ok).find(|element| element.name == name)
}

/// True when in `document`, itself counted, no more than `most` documents stand one in the other. Whoever reads by recursion
/// has to ask first: there may be millions, and no stack has room for them.
pub fn nests_at_most(most: usize, document: &[u8]) -> bool {
    let mut open: Vec<Elements<'_>> = Elements::new(document).into_iter().collect();
    while open.len() <= most {
        let Some(innermost) = open.last_mut() else { return true };
        match innermost.next() {
            Some(Ok(element)) => open.extend(element.inside().and_then(|inside| Elements::new(inside).ok())),
            Some(Err(_)) | None => drop(open.pop()),
        }
    }
    false
}

/// Takes all fields of these names out of `document`, in its place and in one pass. Returns its new length; what is behind
/// that is left over.
///
/// # Errors
/// [`MalformedDocument`]; what is in `document` is then of no use.
pub fn take_out(document: &mut [u8], names: &[&[u8]]) -> Result<usize, MalformedDocument> {
    let end = Elements::new(document)?.end;
    let (mut read, mut written) = (4_usize, 4_usize);
    while read < end {
        let mut elements = Elements { document, position: read, end };
        let element = elements.read().ok_or(MalformedDocument)?;
        let (stays, next) = (!names.contains(&element.name), elements.position);
        if stays {
            if read != written {
                document.copy_within(read..next, written);
            }
            written = written.saturating_add(next.saturating_sub(read));
        }
        read = next;
    }
    let length = written.saturating_add(1);
    let prefix = i32::try_from(length).map_err(|_| MalformedDocument)?.to_le_bytes();
    if let Some(place) = document.first_chunk_mut() {
        *place = prefix;
    }
    if let Some(nul) = document.get_mut(written) {
        *nul = 0;
    }
    Ok(length)
}

/// Bytes of the value of type `kind` at the start of `rest`.
fn value_length(kind: u8, rest: &[u8]) -> Option<usize> {
    let prefixed = |extra: usize, least: i32| {
        let (length, _) = split_i32(rest)?;
        if length < least {
            return None;
        }
        usize::try_from(length).ok()?.checked_add(extra)
    };
    match kind {
        0x06 | 0x0A | 0x7F | 0xFF => Some(0),
        0x08 => Some(1),
        0x10 => Some(4),
        0x01 | 0x09 | 0x11 | 0x12 => Some(8),
        0x07 => Some(12),
        0x13 => Some(16),
        // Text counts its NUL, but not its own length field.
        0x02 | 0x0D | 0x0E => prefixed(4, 1),
        0x0C => prefixed(16, 1),
        // Documents, arrays and code with scope count themselves whole.
        0x03 | 0x04 => prefixed(0, 5),
        0x0F => prefixed(0, 14),
        0x05 => prefixed(5, 0),
        0x0B => {
            let (pattern, after) = split_cstring(rest)?;
            let (options, _) = split_cstring(after)?;
            pattern.len().checked_add(options.len())?.checked_add(2)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bson::{doc, oid::ObjectId};

    use super::*;

    fn every_type() -> Vec<u8> {
        let document = doc! {
            "double": 1.5, "text": "words", "document": {"a": 1}, "array": [1, 2], "binary": bson::Uuid::from_bytes([7; 16]),
            "id": ObjectId::from_bytes([1; 12]), "true": true, "date": bson::DateTime::from_millis(5), "null": null,
            "regex": bson::Regex { pattern: "a.b".try_into().unwrap(), options: "i".try_into().unwrap() },
            "code": bson::Bson::JavaScriptCode("x".into()), "symbol": bson::Bson::Symbol("s".into()),
            "scope": bson::JavaScriptCodeWithScope { code: "y".into(), scope: doc! {"v": 1} },
            "int32": -3, "timestamp": bson::Timestamp { time: 1, increment: 2 }, "int64": i64::MIN,
            "decimal": bson::Decimal128::from_bytes([3; 16]), "min": bson::Bson::MinKey, "max": bson::Bson::MaxKey,
            "undefined": bson::Bson::Undefined,
        };
        document.to_vec().unwrap()
    }

    #[test]
    fn documents_in_documents_are_counted_by_depth() {
        let flat = doc! {"a": {}, "b": [], "c": {"d": 1}};
        let code = |scope| bson::JavaScriptCodeWithScope { code: "x".into(), scope };
        let scoped = doc! {"a": [code(doc! {"b": {"c": code(doc! {})}})]};
        for (document, depth) in [(doc! {}, 1), (flat, 2), (doc! {"a": [{"b": [{}]}], "z": 1}, 5), (scoped, 5)] {
            let bytes = document.to_vec().unwrap();
            assert!(nests_at_most(depth, &bytes), "{document}");
            assert!(!nests_at_most(depth - 1, &bytes), "{document}");
        }
        let mut deep = vec![5, 0, 0, 0, 0];
        for _ in 0..10_000 {
            let length = i32::try_from(deep.len() + 7).unwrap();
            deep = [&length.to_le_bytes(), &[kind::ARRAY, 0][..], &deep, &[0]].concat();
        }
        assert!(nests_at_most(10_001, &deep) && !nests_at_most(10_000, &deep));
    }

    #[test]
    fn fields_are_taken_out_wherever_they_stand() {
        let whole = bson::Document::from_reader(every_type().as_slice()).unwrap();
        let names: Vec<&str> = whole.keys().map(String::as_str).collect();
        let sets: [&[&str]; 6] = [&[], &names[..1], &names[5..6], &names[names.len() - 2..], &["absent"], &names];
        for gone in sets {
            let mut bytes = every_type();
            let gone_bytes: Vec<&[u8]> = gone.iter().map(|name| name.as_bytes()).collect();
            let length = take_out(&mut bytes, &gone_bytes).unwrap();
            let mut expected = whole.clone();
            gone.iter().for_each(|name| drop(expected.remove(name)));
            let left = bson::Document::from_reader(&bytes[..length]).unwrap();
            assert_eq!(left.to_vec().unwrap(), expected.to_vec().unwrap(), "without {gone:?}");
        }
        let inner = doc! {"a": {"x": 1}, "x": 2, "b": [{"x": 3}], "x2": 4};
        let mut bytes = inner.to_vec().unwrap();
        let length = take_out(&mut bytes, &[b"x"]).unwrap();
        let left = bson::Document::from_reader(&bytes[..length]).unwrap();
        assert_eq!(left, doc! {"a": {"x": 1}, "b": [{"x": 3}], "x2": 4}, "at the top level only");
        assert_eq!(take_out(&mut [9, 0, 0, 0, 0], &[]), Err(MalformedDocument));
    }

    #[test]
    fn walks_every_type_as_the_bson_crate_does() {
        let bytes = every_type();
        let ours: Vec<_> = Elements::new(&bytes).unwrap().map(Result::unwrap).collect();
        let theirs: Vec<_> = bson::RawDocument::from_bytes(&bytes)
            .unwrap()
            .iter()
            .map(|element| element.unwrap().0.as_str().to_owned())
            .collect();
        assert_eq!(ours.iter().map(|element| String::from_utf8_lossy(element.name)).collect::<Vec<_>>(), theirs);
        for element in ours {
            assert_eq!(&bytes[element.offset..element.offset + element.value.len()], element.value);
        }
    }

    #[test]
    fn values_read_as_they_were_written() {
        let bytes = every_type();
        assert_eq!(find(&bytes, b"text").unwrap().as_str(), Some("words"));
        assert_eq!(find(&bytes, b"int64").unwrap().as_i64(), Some(i64::MIN));
        assert_eq!(find(&bytes, b"int32").unwrap().as_i64(), None);
        assert_eq!(find(&bytes, b"int32").unwrap().as_number(), Some(-3));
        assert_eq!(find(&bytes, b"double").unwrap().as_number(), Some(1));
        assert_eq!(find(&bytes, b"double").unwrap().as_truth(), Some(true));
        assert_eq!(find(&bytes, b"true").unwrap().as_truth(), Some(true));
        assert_eq!(find(&bytes, b"null").unwrap().as_truth(), None);
        assert_eq!(find(&bytes, b"binary").unwrap().as_uuid(), Some([7; 16]));
        assert_eq!(find(&bytes, b"text").unwrap().as_uuid(), None);
        assert!(find(&bytes, b"absent").is_none());
    }

    #[test]
    fn truth_is_what_the_server_takes_for_it() {
        let values = doc! {
            "true": true, "false": false, "one": 1, "zero": 0, "long": 2_i64, "no": 0_i64, "half": 0.5, "nothing": 0.0,
            "minus": -0.0, "text": "x", "document": {},
        };
        let bytes = values.to_vec().unwrap();
        let truth: Vec<_> = Elements::new(&bytes).unwrap().map(|element| element.unwrap().as_truth()).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(truth, [yes, no, yes, no, yes, no, yes, no, no, None, None]);
    }

    #[test]
    fn only_a_value_of_the_kind_that_was_asked_for_is_read() {
        let bytes = every_type();
        let read = |what: fn(&Element<'_>) -> bool| {
            let elements = Elements::new(&bytes).unwrap().map(Result::unwrap).filter(what);
            elements.map(|element| String::from_utf8_lossy(element.name).into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(read(|it| it.as_timestamp().is_some()), "timestamp");
        assert_eq!(read(|it| it.as_str().is_some()), "text");
        assert_eq!(read(|it| it.as_document().is_some()), "document array");
        assert_eq!(read(|it| it.as_i64().is_some()), "int64");
        assert_eq!(read(|it| it.as_number().is_some()), "double int32 int64");
        assert_eq!(read(|it| it.as_double().is_some()), "double");
        assert_eq!(read(|it| it.as_truth().is_some()), "double true int32 int64");
        assert_eq!(read(|it| it.as_uuid().is_some()), "binary");
        assert_eq!(find(&bytes, b"timestamp").unwrap().as_timestamp(), Some(Timestamp(1 << 32 | 2)));
        assert_eq!(find(&bytes, b"double").unwrap().as_double(), Some(1.5));
        assert_eq!(find(&bytes, b"document").unwrap().as_document(), Some(&doc! {"a": 1}.to_vec().unwrap()[..]));
    }

    #[test]
    fn the_least_of_each_kind_is_read_and_what_claims_to_be_less_is_malformed() {
        let single = |kind: u8, length: i32, size: usize| {
            let mut bytes = i32::try_from(size + 8).unwrap().to_le_bytes().to_vec();
            bytes.extend_from_slice(&[kind, b'a', 0]);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.resize(size + 8, 0);
            Elements::new(&bytes).unwrap().next().unwrap().map(|element| element.value.len())
        };
        for (kind, length, size) in [
            (kind::STRING, 1, 5),
            (0x0D, 1, 5),
            (0x0E, 1, 5),
            (0x0C, 1, 17),
            (kind::DOCUMENT, 5, 5),
            (kind::ARRAY, 5, 5),
            (kind::CODE_WITH_SCOPE, 14, 14),
            (kind::BINARY, 0, 5),
        ] {
            assert_eq!(single(kind, length, size), Ok(size), "{kind:#x}");
            assert_eq!(single(kind, length - 1, size), Err(MalformedDocument), "{kind:#x}");
            assert_eq!(single(kind, length + 1, size), Err(MalformedDocument), "{kind:#x} is longer than its document");
        }
        assert_eq!(single(0x14, 0, 5), Err(MalformedDocument), "nobody knows how long it is");
    }

    #[test]
    fn truncated_and_stretched_documents_are_malformed() {
        let bytes = every_type();
        for length in 0..bytes.len() {
            assert_eq!(Elements::new(&bytes[..length]).err(), Some(MalformedDocument), "{length}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Elements::new(&longer).err(), Some(MalformedDocument));
    }

    #[test]
    fn no_flipped_byte_reads_outside_the_document() {
        let bytes = every_type();
        for position in 4..bytes.len() {
            for value in [0x00, 0x01, 0x7F, 0x80, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[position] = value;
                if let Ok(elements) = Elements::new(&damaged) {
                    let read: usize = elements.map_while(Result::ok).map(|element| element.value.len()).sum();
                    assert!(read < damaged.len());
                }
            }
        }
    }
}
