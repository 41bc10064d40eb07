//! Walking documents in place, beside the `bson` crate.

use bson::RawDocument;
use mongomux::wire::document::{find, take_out};
use mongomux::wire::{Element, Elements};

/// The first byte says which fields are taken out, the others are the document.
pub fn check(data: &[u8]) {
    let Some((choice, document)) = data.split_first() else { return };
    let Ok(elements) = Elements::new(document) else {
        assert!(RawDocument::from_bytes(document).is_err(), "what is no document to us is none to others");
        return;
    };
    let walked: Vec<_> = elements.collect();
    let sound = walked.iter().all(Result::is_ok);
    let elements: Vec<Element<'_>> = walked.into_iter().map_while(Result::ok).collect();
    lie_side_by_side(document, &elements, sound);
    agree_with_bson(document, &elements, sound);
    for element in &elements {
        let first = elements.iter().find(|other| other.name == element.name);
        assert_eq!(find(document, element.name).as_ref(), first);
    }

    let gone: Vec<&[u8]> =
        (0_u8..8).zip(&elements).filter(|(bit, _)| choice & (1 << bit) != 0).map(|(_, element)| element.name).collect();
    let mut copy = document.to_vec();
    let taken_out = take_out(&mut copy, &gone);
    assert_eq!(taken_out.is_ok(), sound);
    if let Ok(length) = taken_out {
        copy.truncate(length);
        let left: Vec<&Element<'_>> = elements.iter().filter(|element| !gone.contains(&element.name)).collect();
        assert_eq!(copy, built(&left), "the others stay, byte for byte and in their order");
    }
}

/// A document of these fields.
pub(super) fn built(elements: &[&Element<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for element in elements {
        bytes.push(element.kind);
        bytes.extend_from_slice(element.name);
        bytes.push(0);
        bytes.extend_from_slice(element.value);
    }
    bytes.push(0);
    let length = i32::try_from(bytes.len()).unwrap();
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// No byte is in two fields, and where the document is sound none is outside of all.
fn lie_side_by_side(document: &[u8], elements: &[Element<'_>], sound: bool) {
    let mut end = 4;
    for element in elements {
        assert_eq!(element.offset, end + 1 + element.name.len() + 1);
        end = element.offset + element.value.len();
        assert_eq!(document.get(element.offset..end), Some(element.value));
    }
    assert!(end < document.len());
    if sound {
        assert_eq!(built(&elements.iter().collect::<Vec<_>>()), document);
    }
}

/// The crate reads what we read, as far as both take it: it insists on UTF-8 in names, and looks into the values.
fn agree_with_bson(document: &[u8], elements: &[Element<'_>], sound: bool) {
    let theirs = RawDocument::from_bytes(document).unwrap();
    let mut read = 0;
    for (our, their) in elements.iter().zip(theirs.iter()) {
        let Ok((name, value)) = their else { break };
        assert_eq!(our.name, name.as_str().as_bytes());
        assert_eq!(our.kind, value.element_type() as u8);
        assert_eq!(our.as_str(), value.as_str());
        assert_eq!(our.as_i64(), value.as_i64());
        assert_eq!(our.as_double().map(f64::to_bits), value.as_f64().map(f64::to_bits));
        let inside = value.as_document().map(RawDocument::as_bytes).or(value.as_array().map(|array| array.as_bytes()));
        assert_eq!(our.as_document(), inside);
        if let Some(time) = value.as_timestamp() {
            let ours = our.as_timestamp().unwrap().0;
            assert_eq!(ours, u64::from(time.time) << 32 | u64::from(time.increment));
        }
        read += 1;
    }
    if !sound {
        assert!(theirs.iter().skip(read).any(|their| their.is_err()), "what is malformed to us is so to others");
    }
}
