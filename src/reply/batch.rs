//! What the batch of a `getMore` that waits for data tells: whether it brought anything, and how far its cursor has come.

use crate::wire::Timestamp;
use crate::wire::document::{Elements, find};

/// A batch of this size or more may have been cut off by the server, which sends 16 MiB at most.
const SURELY_WHOLE_BYTES: usize = 1 << 20;

/// How a resume token begins: a key string whose first field is a timestamp.
const TOKEN_START: &str = "82";

/// Seconds and increment in a resume token, hexadecimal digits of each.
const HALF_DIGITS: usize = 8;

/// One batch of a cursor that lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Documents in it.
    pub documents: usize,
    /// All that there was when the server looked is in it: it was cut off neither by its size nor by `batchSize`.
    pub is_whole: bool,
    /// How far a change stream has come: the moment in its `postBatchResumeToken`.
    pub resume_time: Option<Timestamp>,
}

impl Batch {
    /// Reads the document of a reply to a `getMore` that asked for `batch_size` documents at most. `None` for an error, and
    /// where the cursor has ended.
    pub fn read(document: &[u8], batch_size: Option<i64>) -> Option<Self> {
        let cursor = find(document, b"cursor")?.as_document()?;
        if find(cursor, b"id")?.as_i64()? == 0 {
            return None;
        }
        let batch = find(cursor, b"nextBatch")?.as_document()?;
        let documents = Elements::new(batch).ok()?.count();
        let cut_off =
            batch_size.and_then(|size| usize::try_from(size).ok()).is_some_and(|size| size > 0 && documents >= size);
        let token = || find(find(cursor, b"postBatchResumeToken")?.as_document()?, b"_data")?.as_str();
        let is_whole = !cut_off && batch.len() < SURELY_WHOLE_BYTES;
        Some(Self { documents, is_whole, resume_time: token().and_then(token_time) })
    }
}

/// The moment at which a resume token stands, as servers have written it since 4.2.
fn token_time(token: &str) -> Option<Timestamp> {
    let time = token.strip_prefix(TOKEN_START)?;
    let half = |from: usize| u32::from_str_radix(time.get(from..from.checked_add(HALF_DIGITS)?)?, 16).ok();
    let (seconds, increment) = (half(0)?, half(HALF_DIGITS)?);
    Some(Timestamp((u64::from(seconds) << 32) | u64::from(increment)))
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};

    use super::*;

    fn reply(cursor: Document) -> Vec<u8> {
        doc! {"cursor": cursor, "ok": 1.0}.to_vec().unwrap()
    }

    fn read(cursor: Document, batch_size: Option<i64>) -> Option<Batch> {
        Batch::read(&reply(cursor), batch_size)
    }

    #[test]
    fn an_empty_batch_tells_how_far_its_stream_has_come() {
        let token = doc! {"_data": "826B070748000000032B0229296E04"};
        let batch = read(doc! {"nextBatch": [], "postBatchResumeToken": token, "id": 5_i64, "ns": "a.b"}, None);
        let resume_time = Some(Timestamp((0x6B07_0748 << 32) | 3));
        assert_eq!(batch, Some(Batch { documents: 0, is_whole: true, resume_time }));
        // A tailable cursor has none.
        let batch = read(doc! {"nextBatch": [{}, {}], "id": 5_i64}, None);
        assert_eq!(batch, Some(Batch { documents: 2, is_whole: true, resume_time: None }));
    }

    #[test]
    fn a_batch_that_may_have_been_cut_off_is_not_whole() {
        let two = || doc! {"nextBatch": [{}, {}], "id": 5_i64};
        let whole = |batch_size| read(two(), batch_size).unwrap().is_whole;
        assert!(whole(None) && whole(Some(0)) && whole(Some(3)));
        assert!(!whole(Some(2)) && !whole(Some(1)));
        let large = doc! {"nextBatch": [{"x": "y".repeat(SURELY_WHOLE_BYTES)}], "id": 5_i64};
        assert!(!read(large, None).unwrap().is_whole);
    }

    #[test]
    fn what_is_no_batch_of_a_living_cursor_is_none() {
        assert_eq!(read(doc! {"nextBatch": [], "id": 0_i64}, None), None);
        assert_eq!(read(doc! {"firstBatch": [], "id": 1_i64}, None), None);
        assert_eq!(Batch::read(&doc! {"ok": 0.0, "code": 43}.to_vec().unwrap(), None), None);
    }

    #[test]
    fn tokens_of_another_form_have_no_time() {
        for token in ["", "82", "826B0707480000000", "816B07074800000003", "82zzzzzzzz00000003", "82é"] {
            assert_eq!(token_time(token), None, "{token}");
        }
        assert_eq!(token_time("82000000010000000200"), Some(Timestamp((1 << 32) | 2)));
    }

    #[test]
    fn no_damaged_byte_causes_a_panic() {
        let token = doc! {"_data": "826B070748000000032B0229296E04"};
        let good = reply(doc! {"nextBatch": [{"a": 1}], "postBatchResumeToken": token, "id": 5_i64});
        for position in 0..good.len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut damaged = good.clone();
                damaged[position] = value;
                std::hint::black_box(Batch::read(&damaged, Some(1)));
            }
        }
    }
}
