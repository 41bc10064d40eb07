//! The 16 bytes before every message, and what they may say.

use super::frame::FrameError;

/// Bytes of a message header.
pub const HEADER_LEN: usize = 16;

/// Which message follows a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpCode {
    /// Answer to a legacy query.
    Reply,
    /// Legacy write.
    Update,
    /// Legacy write.
    Insert,
    /// Legacy query; drivers still greet with it.
    Query,
    /// Legacy cursor batch.
    GetMore,
    /// Legacy write.
    Delete,
    /// Legacy cursor end.
    KillCursors,
    /// Another message, compressed.
    Compressed,
    /// The message of today.
    Msg,
    /// Reserved, internal, or not of this protocol.
    Other(i32),
}

impl OpCode {
    /// Reads the code of a header.
    pub fn from_wire(code: i32) -> Self {
        match code {
            1 => Self::Reply,
            2001 => Self::Update,
            2002 => Self::Insert,
            2004 => Self::Query,
            2005 => Self::GetMore,
            2006 => Self::Delete,
            2007 => Self::KillCursors,
            2012 => Self::Compressed,
            2013 => Self::Msg,
            other => Self::Other(other),
        }
    }

    /// The code as it stands in a header.
    pub fn to_wire(self) -> i32 {
        match self {
            Self::Reply => 1,
            Self::Update => 2001,
            Self::Insert => 2002,
            Self::Query => 2004,
            Self::GetMore => 2005,
            Self::Delete => 2006,
            Self::KillCursors => 2007,
            Self::Compressed => 2012,
            Self::Msg => 2013,
            Self::Other(other) => other,
        }
    }
}

/// A header whose length was checked against the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageHeader {
    /// Bytes of the whole message, header included; at least [`HEADER_LEN`], at most the limit it was checked with.
    pub length: usize,
    /// Chosen by the sender; a reply names it in `response_to`.
    pub request_id: i32,
    /// `request_id` of the message this one answers, 0 in requests.
    pub response_to: i32,
    /// What follows.
    pub op_code: OpCode,
}

impl MessageHeader {
    /// Reads a header from the start of `bytes`; `None` means that fewer than 16 have arrived.
    ///
    /// The length is checked as soon as its four bytes are there, so that a bad one is found before more is read.
    ///
    /// # Errors
    /// [`FrameError::Length`] for a length below 16 or above `max_message_bytes`, and [`FrameError::Tls`] for what would pass
    /// for a large message, of which more never comes.
    pub fn parse(bytes: &[u8], max_message_bytes: usize) -> Result<Option<Self>, FrameError> {
        let Some((length, rest)) = split_i32(bytes) else { return Ok(None) };
        let length = match usize::try_from(length) {
            Ok(length) if (HEADER_LEN..=max_message_bytes).contains(&length) => length,
            _ if begins_tls(bytes) => return Err(FrameError::Tls),
            _ => return Err(FrameError::Length { found: length, limit: max_message_bytes }),
        };
        let header: Option<Self> = (|| {
            let (request_id, rest) = split_i32(rest)?;
            let (response_to, rest) = split_i32(rest)?;
            let (op_code, _) = split_i32(rest)?;
            Some(Self { length, request_id, response_to, op_code: OpCode::from_wire(op_code) })
        })();
        match header {
            // No message of an unknown kind is that large; those of known ones are what they say.
            Some(Self { op_code: OpCode::Other(_), .. }) if begins_tls(bytes) => Err(FrameError::Tls),
            header => Ok(header),
        }
    }
}

/// True for the record header of a TLS handshake. Read as a length it says 66,326 bytes at least.
fn begins_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 0x03, 0x01..=0x03, ..])
}

/// The little-endian `i32` at the start of `bytes`, and what follows it.
pub(crate) fn split_i32(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((i32::from_le_bytes(*number), rest))
}

/// The little-endian `i64` at the start of `bytes`, and what follows it.
pub(crate) fn split_i64(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((i64::from_le_bytes(*number), rest))
}

/// The bytes of a C string at the start of `bytes` without its NUL, and what follows the NUL.
pub(crate) fn split_cstring(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (text, rest) = bytes.split_at_checked(position_of_nul(bytes)?)?;
    Some((text, rest.get(1..)?))
}

/// Most names are shorter than eight bytes, which one subtraction looks at.
fn position_of_nul(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let (words, _) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The lowest byte whose top bit is set here is the first that is zero.
        let zeros = word.wrapping_sub(ONES) & !word & (ONES << 7);
        if zeros != 0 {
            return usize::try_from(zeros.trailing_zeros() / 8).ok()?.checked_add(index.checked_mul(8)?);
        }
    }
    let looked_at = words.len().checked_mul(8)?;
    bytes.get(looked_at..)?.iter().position(|byte| *byte == 0)?.checked_add(looked_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_c_string_ends_at_its_first_nul_wherever_that_is() {
        for length in 0..40 {
            for filling in [1, b'a', 0x7F, 0x80, 0xFF] {
                let mut bytes = vec![filling; length];
                assert_eq!(split_cstring(&bytes), None);
                bytes.extend_from_slice(&[0, 1, 0, 0x80]);
                assert_eq!(split_cstring(&bytes), Some((&vec![filling; length][..], &[1, 0, 0x80][..])));
            }
        }
    }

    fn header(length: i32) -> Vec<u8> {
        [length, 7, 9, 2013].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn reads_all_four_fields() {
        let header = MessageHeader::parse(&header(20), 48_000_000).unwrap().unwrap();
        assert_eq!(header, MessageHeader { length: 20, request_id: 7, response_to: 9, op_code: OpCode::Msg });
    }

    #[test]
    fn a_bad_length_is_found_from_four_bytes() {
        for length in [0, 15, -1, i32::MIN, i32::MAX, 48_000_001] {
            let error = MessageHeader::parse(&length.to_le_bytes(), 48_000_000).unwrap_err();
            assert_eq!(error, FrameError::Length { found: length, limit: 48_000_000 });
        }
        assert_eq!(MessageHeader::parse(&header(48_000_000)[..15], 48_000_000), Ok(None));
        assert!(MessageHeader::parse(&header(48_000_000), 48_000_000).unwrap().is_some());
    }

    #[test]
    fn what_begins_to_speak_tls_is_told_from_a_message_as_soon_as_can_be() {
        let hello = |version, op_code: i32| [&[0x16, 3, version, 2, 0][..], &[1; 7], &op_code.to_le_bytes()].concat();
        for version in 1..=3 {
            assert_eq!(MessageHeader::parse(&hello(version, 9)[..4], 1_000), Err(FrameError::Tls));
            // It may be a large message, as long as nothing is known of its kind.
            assert_eq!(MessageHeader::parse(&hello(version, 9)[..15], 48_000_000), Ok(None));
            assert_eq!(MessageHeader::parse(&hello(version, 9), 48_000_000), Err(FrameError::Tls));
            assert!(MessageHeader::parse(&hello(version, 2013), 48_000_000).unwrap().is_some());
        }
        for version in [0, 4] {
            let found = i32::from_le_bytes([0x16, 3, version, 2]);
            let error = FrameError::Length { found, limit: 1_000 };
            assert_eq!(MessageHeader::parse(&hello(version, 9), 1_000), Err(error));
            assert!(MessageHeader::parse(&hello(version, 9), 48_000_000).unwrap().is_some());
        }
        let unknown = [&20_i32.to_le_bytes()[..], &[0; 12]].concat();
        assert!(MessageHeader::parse(&unknown, 1_000).unwrap().is_some(), "of which only the kind is unknown");
    }

    #[test]
    fn a_number_needs_all_its_bytes() {
        assert_eq!(split_i32(&[1, 0, 0, 0x80, 7]), Some((i32::MIN + 1, &[7][..])));
        assert_eq!(split_i32(&[1, 0, 0]), None);
        assert_eq!(split_i64(&[2, 0, 0, 0, 0, 0, 0, 0x80, 7]), Some((i64::MIN + 2, &[7][..])));
        assert_eq!(split_i64(&[1; 7]), None);
    }

    #[test]
    fn op_codes_survive_the_round_trip() {
        for code in [0, 1, 2001, 2002, 2003, 2004, 2005, 2006, 2007, 2010, 2012, 2013, -5] {
            assert_eq!(OpCode::from_wire(code).to_wire(), code);
        }
    }
}
