//! Replies of servers: what is kept of them, and what their clients read instead.

use bson::RawDocument;
use mongomux::reply::{Batch, ReplyFacts, StateChangeKind, cluster_time, inspect};
use mongomux::wire::document::find;
use mongomux::wire::op_msg::{flag, reply_document};
use mongomux::wire::{Element, Elements, Frame, OpCode, encode};

use super::document::built;

/// Clients never read of cluster time where they are not to.
const CLUSTER_TIME: [&[u8]; 2] = [b"$clusterTime", b"operationTime"];

/// Where a state change may be told.
const LOOKED_AT: [&[u8]; 7] =
    [b"code", b"codeName", b"errmsg", b"topologyVersion", b"writeErrors", b"writeConcernError", b"cursor"];

/// The first byte says whether the reply is a bulkWrite's, and whether the rest is its document or its body.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let bulk_write = choice & 1 != 0;
    let body = if choice & 2 != 0 { rest.to_vec() } else { [&[0; 5], rest].concat() };
    let reply = Frame::build(1, 2, OpCode::Msg, &body);
    let message = reply.bytes();

    if let Ok(inspected) = inspect(message, bulk_write) {
        let (flags, document) = reply_document(message).expect("it was read");
        assert_eq!(flags & flag::REQUIRED, 0);
        assert_eq!(ReplyFacts::read(document), Ok(inspected.facts));
        let shown = inspected.rewritten.as_ref().map_or(document, |rewritten| rewritten.as_bytes());
        hides_state_changes(document, shown, bulk_write);
        if let Some(change) = inspected.state_change {
            assert!(inspected.rewritten.is_some(), "what the topology hears of no client does");
            assert_eq!(StateChangeKind::of(change.code), Some(change.kind));
        }
    }
    loses_cluster_time(message);
    if let Some((_, document)) = reply_document(message)
        && let Some(batch) = Batch::read(document, Some(3))
    {
        assert!(batch.documents <= document.len() / 2, "a document that is none has a byte of type and a name");
        assert!(!batch.is_whole || batch.documents < 3);
    }
}

/// Neither as a code nor in words, where drivers look for it; and once hidden there is nothing more to hide.
fn hides_state_changes(came: &[u8], shown: &[u8], bulk_write: bool) {
    let elements = |document| Elements::new(document).unwrap().map(Result::unwrap);
    let all_but = |document, but: &[&[u8]]| {
        let kept: Vec<_> = elements(document).filter(|element| !but.contains(&element.name)).collect();
        built(&kept.iter().collect::<Vec<_>>())
    };
    assert_eq!(all_but(shown, &LOOKED_AT), all_but(came, &LOOKED_AT), "all else stays");
    let again = inspect(encode::op_msg(1, 2, RawDocument::from_bytes(shown).unwrap()).bytes(), bulk_write).unwrap();
    assert_eq!((again.rewritten, again.state_change), (None, None), "once is enough");

    // No server sends the others, and what is malformed goes on as it came.
    let once = |name: &[u8]| elements(came).filter(|element| element.name == name).count() == 1;
    let is_looked_at = |element: &Element<'_>| LOOKED_AT.contains(&element.name);
    let sound = elements(came).filter(is_looked_at).filter_map(|element| element.as_document()).all(is_sound);
    if once(b"ok") && once(b"code") && sound && find(shown, b"ok").unwrap().as_truth() == Some(false) {
        let code = find(shown, b"code").and_then(|code| code.as_number()).and_then(|code| i32::try_from(code).ok());
        assert!(code.is_none_or(|code| StateChangeKind::of(code).is_none()), "{code:?}");
    }
}

fn is_sound(document: &[u8]) -> bool {
    let mut elements = Elements::new(document).into_iter().flatten();
    Elements::new(document).is_ok()
        && elements.all(|element| element.is_ok_and(|element| element.as_document().is_none_or(is_sound)))
}

fn loses_cluster_time(message: &[u8]) {
    let Some((_, came)) = reply_document(message) else { return };
    let mut copy = message.to_vec();
    let length = cluster_time::take_out(&mut copy).unwrap_or(message.len());
    copy.truncate(length);
    let (_, left) = reply_document(&copy).expect("it is a reply still");
    assert_eq!(i32::from_le_bytes(*copy.first_chunk().unwrap()), i32::try_from(copy.len()).unwrap());
    // In a message of one sound document, which is what servers send.
    let alone = message.ends_with(came) && message.len() == came.len() + 21;
    let sound = Elements::new(came).is_ok_and(|mut elements| elements.all(|element| element.is_ok()));
    if alone && sound {
        assert!(CLUSTER_TIME.iter().all(|name| find(left, name).is_none()));
        let kept: Vec<_> = Elements::new(came).unwrap().map(Result::unwrap).collect();
        let kept: Vec<_> = kept.iter().filter(|element| !CLUSTER_TIME.contains(&element.name)).collect();
        assert_eq!(left, built(&kept));
    }
}
