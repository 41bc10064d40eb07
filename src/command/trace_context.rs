//! W3C's trace context, as applications put it into the comment of a command: `{comment: {traceparent: "00-..."}}`, or a text
//! that is one or contains one; else in the `$comment` of what is looked for. What is wrong anywhere is ignored: a comment is the application's own.

use super::parse::Command;
use crate::telemetry::otlp::TraceContext;
use crate::wire::document::find;
use crate::wire::{Element, Frame};

/// Length of `00-<32>-<16>-<2>`.
const LENGTH: usize = 55;

/// W3C asks for at least this much to be passed on.
const MAX_STATE_BYTES: usize = 512;

/// W3C's bound on the members of a `tracestate`.
const MAX_STATE_MEMBERS: usize = 32;

/// Where commands say what they look for.
const FILTERS: [&[u8]; 2] = [b"filter", b"query"];

/// A text is searched this far.
const MAX_COMMENT_BYTES: usize = 1024;

impl Command {
    /// The span that it was sent in, if its comment says so.
    pub fn trace_context(&self, frame: &Frame) -> Option<TraceContext> {
        of_command(self.document(frame))
    }
}

fn of_command(document: &[u8]) -> Option<TraceContext> {
    let looked_for = || FILTERS.iter().find_map(|name| find(find(document, name)?.as_document()?, b"$comment"));
    of_comment(&find(document, b"comment").or_else(looked_for)?)
}

fn of_comment(comment: &Element<'_>) -> Option<TraceContext> {
    if let Some(document) = comment.as_document() {
        let mut context = parse(find(document, b"traceparent")?.as_str()?.as_bytes())?;
        let state = find(document, b"tracestate").and_then(|state| state.as_str());
        context.state = state.filter(|state| is_state(state)).unwrap_or_default().to_owned();
        return Some(context);
    }
    in_text(comment.as_str()?)
}

/// The first one in a text, where it stands as a word of its own.
fn in_text(text: &str) -> Option<TraceContext> {
    let bytes = &text.as_bytes()[..text.len().min(MAX_COMMENT_BYTES)];
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    bytes.windows(LENGTH).enumerate().find_map(|(start, window)| {
        let stands_alone = !start.checked_sub(1).is_some_and(|before| is_part(&bytes[before]))
            && !bytes.get(start + LENGTH).is_some_and(is_part);
        if stands_alone { parse(window) } else { None }
    })
}

/// A `traceparent` and nothing else.
fn parse(text: &[u8]) -> Option<TraceContext> {
    if text.len() < LENGTH || [2, 35, 52].iter().any(|&at| text[at] != b'-') {
        return None;
    }
    let [version] = hex::<1>(&text[..2])?;
    // Later versions may have more to say, after what we know.
    let ends = text.len() == LENGTH || version > 0 && text[LENGTH] == b'-';
    let (trace_id, span_id) = (hex::<16>(&text[3..35])?, hex::<8>(&text[36..52])?);
    let [flags] = hex::<1>(&text[53..LENGTH])?;
    let sound = ends && version != 0xFF && trace_id != [0; 16] && span_id != [0; 8];
    sound.then(|| TraceContext { trace_id, span_id, sampled: flags & 1 == 1, state: String::new() })
}

/// Lower case only, as W3C has it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn is_state(text: &str) -> bool {
    text.len() <= MAX_STATE_BYTES
        && text.split(',').count() <= MAX_STATE_MEMBERS
        && text.split(',').all(|member| member.trim().split_once('=').is_some_and(|(key, _)| !key.is_empty()))
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, rawdoc};

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn of(document: &RawDocumentBuf) -> Option<TraceContext> {
        of_command(document.as_bytes())
    }

    #[test]
    fn the_context_is_found_in_documents_and_texts() {
        let whole = of(&rawdoc! {"comment": {"traceparent": PARENT, "tracestate": "a=1,b=2"}}).unwrap();
        assert_eq!((whole.trace_id[0], whole.span_id[7], whole.sampled), (0x0a, 0x31, true));
        assert_eq!(whole.state, "a=1,b=2");
        for text in [
            PARENT.to_owned(),
            format!("traceparent={PARENT}"),
            format!("route=/orders,traceparent='{PARENT}',x='ä'"),
            format!("{{\"traceparent\":\"{PARENT}\"}}"),
        ] {
            let found = of(&rawdoc! {"comment": text.as_str()}).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(found, TraceContext { state: String::new(), ..whole.clone() }, "{text}");
        }
        for filter in [
            rawdoc! {"filter": {"a": 1, "$comment": PARENT}},
            rawdoc! {"query": {"$comment": {"traceparent": PARENT}}},
            rawdoc! {"filter": {"$comment": "another one"}, "comment": PARENT},
        ] {
            assert_eq!(of(&filter).map(|found| found.span_id), Some(whole.span_id), "{filter:?}");
        }
        assert_eq!(of(&rawdoc! {"filter": {"a": PARENT}}), None, "a value is none of it");
        let not_sampled = PARENT.replace("-01", "-00");
        assert!(!of(&rawdoc! {"comment": {"traceparent": not_sampled}}).unwrap().sampled);
        let later = format!("cc-{}-more", &PARENT[3..]);
        assert!(of(&rawdoc! {"comment": {"traceparent": later}}).is_some());
    }

    #[test]
    fn what_is_wrong_is_ignored() {
        for wrong in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &PARENT[1..],
            &format!("{PARENT}-more"),
            &format!("{PARENT}0"),
            &format!("0{PARENT}"),
            &PARENT.replacen("00-", "ff-", 1),
            &PARENT.replace('-', "_"),
            &PARENT.replace("b7ad6b7169203331", "0000000000000000"),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("0af", "0ag"),
            &format!("{}{PARENT}", " ".repeat(MAX_COMMENT_BYTES)),
            "äöü",
        ] {
            assert_eq!(of(&rawdoc! {"comment": {"traceparent": wrong}}), None, "{wrong}");
            assert_eq!(of(&rawdoc! {"comment": wrong}), None, "{wrong}");
        }
        assert_eq!(of(&rawdoc! {"comment": 5}), None);
        assert_eq!(of(&rawdoc! {"comment": {"traceparent": 5}}), None);
        assert_eq!(of(&rawdoc! {"comment": {"tracestate": "a=1"}}), None);
        for state in
            ["no equals", "a=1,,b=2", "=1", "a=ä", &vec!["a=1"; 33].join(","), &format!("a={}", "1".repeat(512))]
        {
            let found = of(&rawdoc! {"comment": {"traceparent": PARENT, "tracestate": state}}).unwrap();
            assert_eq!(found.state, "", "{state}");
        }
    }
}
