//! Building the messages that the proxy sends in its own name.

use bson::RawDocument;

use super::frame::Frame;
use super::header::OpCode;

/// An OP_MSG with one document and no flags.
pub fn op_msg(request_id: i32, response_to: i32, document: &RawDocument) -> Frame {
    let mut body = Vec::with_capacity(document.as_bytes().len().saturating_add(5));
    body.extend_from_slice(&[0; 5]);
    body.extend_from_slice(document.as_bytes());
    Frame::build(request_id, response_to, OpCode::Msg, &body)
}

/// Writes another response id into a whole message.
pub fn set_response_to(message: &mut [u8], response_to: i32) {
    if let Some(place) = message.get_mut(8..).and_then(<[u8]>::first_chunk_mut) {
        *place = response_to.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::wire::OpMsg;

    #[test]
    fn what_is_built_can_be_parsed() {
        let document = rawdoc! {"ok": 1.0};
        let mut frame = op_msg(3, 4, &document);
        let parsed = OpMsg::parse(&mut frame).unwrap();
        assert_eq!(parsed.document(&frame), document.as_bytes());
        assert_eq!((frame.header().request_id, frame.header().response_to), (3, 4));
    }
}
