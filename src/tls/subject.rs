//! The subject of a certificate, as MongoDB writes it where it is the name of a user: RFC 2253, the last part first, with the
//! short names of OpenSSL and everything that is not ASCII as `\` and two hexadecimal digits.

use std::fmt::Write as _;

use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::Tag;
use x509_parser::parse_x509_certificate;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Types that OpenSSL has a short name for; the others are written as numbers.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.3", "mail"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
    ("1.2.840.113549.1.9.8", "unstructuredAddress"),
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.16", "postalAddress"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.18", "postOfficeBox"),
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.72", "role"),
    ("2.5.4.97", "organizationIdentifier"),
    ("1.3.6.1.4.1.311.60.2.1.1", "jurisdictionL"),
    ("1.3.6.1.4.1.311.60.2.1.2", "jurisdictionST"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionC"),
];

/// The subject of a certificate; `None` if it has none, or one that is no text.
pub fn of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    rfc2253(parsed.subject()).filter(|subject| !subject.is_empty())
}

fn rfc2253(name: &X509Name<'_>) -> Option<String> {
    let mut written = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (index, part) in parts.into_iter().rev().enumerate() {
        let attributes: Vec<_> = part.iter().collect();
        for (place, attribute) in attributes.into_iter().rev().enumerate() {
            written.push_str(match (index, place) {
                (0, 0) => "",
                (_, 0) => ",",
                _ => "+",
            });
            let number = attribute.attr_type().to_id_string();
            let short = SHORT_NAMES.iter().find(|(id, _)| *id == number);
            written.push_str(short.map_or(&number, |(_, name)| name));
            written.push('=');
            escape(&text(attribute)?, &mut written);
        }
    }
    Some(written)
}

/// A value as UTF-8, whatever kind of string it is.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let (value, bytes) = (attribute.attr_value(), attribute.attr_value().data);
    match value.tag() {
        Tag::BmpString => {
            let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            String::from_utf16(&units.collect::<Vec<_>>()).ok().filter(|_| bytes.len() % 2 == 0)
        }
        Tag::UniversalString => {
            let mut letters = bytes.chunks(4).map(|four| Some(u32::from_be_bytes(four.try_into().ok()?)));
            letters
                .try_fold(String::new(), |text, letter| Some(text + char::from_u32(letter?)?.encode_utf8(&mut [0; 4])))
        }
        // As OpenSSL takes it: Latin-1.
        Tag::T61String => Some(bytes.iter().copied().map(char::from).collect()),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::VisibleString | Tag::NumericString => {
            String::from_utf8(bytes.to_vec()).ok()
        }
        _ => None,
    }
}

fn escape(text: &str, written: &mut String) {
    let last = text.len().saturating_sub(1);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => written.push('\\'),
            b' ' if index == 0 || index == last => written.push('\\'),
            b'#' if index == 0 => written.push('\\'),
            _ => {}
        }
        if byte.is_ascii() && !byte.is_ascii_control() {
            written.push(char::from(byte));
        } else {
            write!(written, "\\{byte:02X}").expect("writing to a String cannot fail");
        }
    }
}
