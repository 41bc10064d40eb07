//! A server's reply, looked at once it is whole: what the session has to act on, and what the client reads.
//!
//! Almost every reply goes out as it came, with another id in its header. Only state-change errors are rewritten.

use bson::RawDocumentBuf;

use super::cloak::{Cloaked, StateChange, cloak};
use super::facts::ReplyFacts;
use crate::wire::op_msg::{flag, reply_document};

/// The reply is not what a server sends to a request without flags: the connection cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reply is no sound OP_MSG with one document")]
pub struct MalformedReply;

/// What is in a reply.
#[derive(Debug)]
pub struct Inspected {
    /// What it says about itself.
    pub facts: ReplyFacts,
    /// What the client reads instead; `None` for the reply as it came.
    pub rewritten: Option<RawDocumentBuf>,
    /// What the topology must hear.
    pub state_change: Option<StateChange>,
}

/// Looks at a whole reply message. `bulk_write` says that its batch holds the results of a bulkWrite's statements.
///
/// # Errors
/// [`MalformedReply`]
pub fn inspect(message: &[u8], bulk_write: bool) -> Result<Inspected, MalformedReply> {
    let (flags, document) = reply_document(message).ok_or(MalformedReply)?;
    if flags & flag::REQUIRED != 0 {
        return Err(MalformedReply);
    }
    let facts = ReplyFacts::read(document).map_err(|_| MalformedReply)?;
    if (facts.may_need_cloak() || bulk_write)
        && let Some(Cloaked { document, state_change }) = cloak(document, bulk_write)
    {
        return Ok(Inspected { facts, rewritten: Some(document), state_change });
    }
    Ok(Inspected { facts, rewritten: None, state_change: None })
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::wire::{Frame, OpCode, encode};

    #[test]
    fn a_good_reply_goes_out_as_it_came() {
        let reply = encode::op_msg(1, 2, &rawdoc! {"cursor": {"firstBatch": [], "id": 9_i64, "ns": "a.b"}, "ok": 1.0});
        let inspected = inspect(reply.bytes(), false).unwrap();
        assert!(inspected.rewritten.is_none() && inspected.facts.ok);
        assert_eq!(inspected.facts.cursor_id, Some(9));
    }

    #[test]
    fn a_state_change_is_rewritten_and_told() {
        let reply = encode::op_msg(1, 2, &rawdoc! {"ok": 0.0, "code": 10107, "errmsg": "not primary"});
        let inspected = inspect(reply.bytes(), false).unwrap();
        assert_eq!(inspected.rewritten.unwrap().get_i32("code").unwrap(), 6);
        assert_eq!(inspected.state_change.unwrap().code, 10107);
    }

    #[test]
    fn more_to_come_and_broken_documents_are_malformed() {
        let mut body = vec![2, 0, 0, 0, 0];
        body.extend_from_slice(rawdoc! {"ok": 1.0}.as_bytes());
        assert!(inspect(Frame::build(1, 2, OpCode::Msg, &body).bytes(), false).is_err());
        assert!(inspect(Frame::build(1, 2, OpCode::Msg, &body[..9]).bytes(), false).is_err());
        assert!(inspect(Frame::build(1, 2, OpCode::Msg, &[]).bytes(), false).is_err());
    }
}
