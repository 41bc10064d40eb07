//! OP_COMPRESSED: another message inside, compressed. Inflation is bounded before and while it happens.
//!
//! Which compressor a peer may use is negotiated in `hello`; as the server does, every known one is accepted here
//! whether it was negotiated or not. Charging the inflated bytes to a memory limit is the caller's
//! ([`inflated_bytes`]).

use std::cell::RefCell;

use bytes::{BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::{Frame, FrameError};
use super::header::{HEADER_LEN, MessageHeader, OpCode, split_i32};
use crate::config::CompressorName;
use crate::config::limits::{COMPRESS_INLINE_BYTES, ZLIB_INLINE_BYTES};

/// Bytes between the header of an OP_COMPRESSED and the compressed ones: opcode, size, compressor.
pub const PREFIX_LEN: usize = 9;

/// The level at which the server's own zlib runs, and the default of drivers.
const ZLIB_LEVEL: u32 = 6;

/// Up to so many bytes zstd works in a context that its thread keeps: a new one costs more than the work itself (8 us
/// against 4 for a command). Larger ones are not worth the memory, and go to threads that come and go.
const KEPT_CONTEXT_BYTES: usize = 64 * 1024;

thread_local! {
    static ZSTD: RefCell<Option<(zstd::bulk::Compressor<'static>, zstd::bulk::Decompressor<'static>)>> =
        const { RefCell::new(None) };
}

/// How the bytes of a message are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compressor {
    /// Raw block format, not framed.
    Snappy,
    /// RFC 1950.
    Zlib,
    /// RFC 8878.
    Zstd,
}

impl Compressor {
    /// All of them, the fastest first.
    pub const ALL: [Self; 3] = [Self::Snappy, Self::Zlib, Self::Zstd];

    /// Reads the id in a message. `None` for the reserved ids and for 0, which means "not compressed" and which the
    /// server refuses, too.
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|compressor| compressor.id() == id)
    }

    /// The id in a message.
    pub fn id(self) -> u8 {
        match self {
            Self::Snappy => 1,
            Self::Zlib => 2,
            Self::Zstd => 3,
        }
    }

    /// Reads the name in `hello` and in connection strings.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|compressor| compressor.name() == name)
    }

    /// The name in `hello` and in connection strings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snappy => "snappy",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

impl From<CompressorName> for Compressor {
    fn from(name: CompressorName) -> Self {
        match name {
            CompressorName::Snappy => Self::Snappy,
            CompressorName::Zlib => Self::Zlib,
            CompressorName::Zstd => Self::Zstd,
        }
    }
}

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deflation {
    /// With what.
    pub compressor: Compressor,
    /// How hard zlib tries, 0 to 9. Opening does not depend on it.
    pub zlib_level: u32,
}

impl From<Compressor> for Deflation {
    /// As the server does it.
    fn from(compressor: Compressor) -> Self {
        Self { compressor, zlib_level: ZLIB_LEVEL }
    }
}

/// Why an OP_COMPRESSED cannot be opened. The sender is at fault and its connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// Opcode, size or compressor are missing.
    #[error("the compressed message ends before its data")]
    Truncated,
    /// An id that is reserved, or 0.
    #[error("compressor id {0} is not supported")]
    Compressor(u8),
    /// A compressed message in a compressed message.
    #[error("a compressed message is compressed once more")]
    Nested,
    /// The size is negative, or the message would be over the limit.
    #[error("uncompressed size {found} is outside 0 to {limit}")]
    Size {
        /// What the message says.
        found: i32,
        /// The largest size that is allowed, bytes.
        limit: usize,
    },
    /// The data is damaged, or it inflates to another size than the message says.
    #[error("the compressed data is damaged or does not inflate to {0} bytes")]
    Data(usize),
}

/// What stands before the compressed bytes, checked.
struct Prefix {
    op_code: OpCode,
    uncompressed: usize,
    compressor: Compressor,
}

/// Bytes of the message inside, header included: what opening it will take from memory. `body` is what follows the header
/// of an OP_COMPRESSED, its first [`PREFIX_LEN`] bytes at least.
///
/// # Errors
/// As [`decompress`], without looking at the data.
pub fn inflated_bytes(body: &[u8], max_message_bytes: usize) -> Result<usize, DecompressError> {
    let (prefix, _) = read_prefix(body, max_message_bytes)?;
    Ok(HEADER_LEN.saturating_add(prefix.uncompressed))
}

/// True for a message of `length` bytes, with `inside` in it, that is opened for so long that others should not wait for it.
/// What is damaged may be long and promise little.
pub fn takes_long_to_open(length: usize, inside: usize) -> bool {
    length.max(inside) > COMPRESS_INLINE_BYTES
}

/// True for a message of `length` bytes that is compressed for so long that others should not wait for it.
pub fn takes_long_to_compress(length: usize, compressor: Compressor) -> bool {
    let inline = match compressor {
        Compressor::Zlib => ZLIB_INLINE_BYTES,
        Compressor::Snappy | Compressor::Zstd => COMPRESS_INLINE_BYTES,
    };
    length > inline
}

/// Opens an OP_COMPRESSED: the message inside, with the ids of the outer one, and the compressor for the reply.
///
/// # Errors
/// [`DecompressError`]; nothing larger than `max_message_bytes` is ever inflated.
pub fn decompress(frame: &Frame, max_message_bytes: usize) -> Result<(Frame, Compressor), DecompressError> {
    let (mut message, compressor) = open(frame.bytes(), max_message_bytes)?;
    let inside = message.len().saturating_sub(HEADER_LEN);
    match Frame::decode(&mut message, max_message_bytes) {
        Ok(Some(inner)) => Ok((inner, compressor)),
        Ok(None) | Err(FrameError::Length { .. } | FrameError::Tls) => Err(DecompressError::Data(inside)),
    }
}

/// As [`decompress`], for a whole message that is no frame.
///
/// # Errors
/// As [`decompress`].
pub fn open(wrapped: &[u8], max_message_bytes: usize) -> Result<(BytesMut, Compressor), DecompressError> {
    let (_, body) = wrapped.split_at_checked(HEADER_LEN).ok_or(DecompressError::Truncated)?;
    let (prefix, data) = read_prefix(body, max_message_bytes)?;
    let failed = || DecompressError::Data(prefix.uncompressed);
    // The buffer is as long as the data may become: that is the bound while inflating. Its pages come zeroed from the
    // system and take memory only as they are written, so that a false size costs nothing.
    let mut message = BytesMut::zeroed(HEADER_LEN.saturating_add(prefix.uncompressed));
    let header = MessageHeader::parse(wrapped, usize::MAX).ok().flatten().ok_or(DecompressError::Truncated)?;
    write_header(&mut message, header.request_id, header.response_to, prefix.op_code).ok_or_else(failed)?;
    let output = message.get_mut(HEADER_LEN..).ok_or_else(failed)?;
    if inflate(prefix.compressor, data, output) != Some(prefix.uncompressed) {
        return Err(failed());
    }
    Ok((message, prefix.compressor))
}

/// Bytes that [`compress`] takes from memory at most for a message of `length` bytes, whatever is in it.
pub fn compressed_bound(length: usize, compressor: Compressor) -> usize {
    let bound = match compressor {
        Compressor::Snappy => snap::raw::max_compress_len(length),
        // Incompressible input grows by five bytes per 16 KiB.
        Compressor::Zlib => length.saturating_add(length / 1024).saturating_add(64),
        Compressor::Zstd => zstd::compress_bound(length),
    };
    bound.saturating_add(HEADER_LEN).saturating_add(PREFIX_LEN)
}

/// Wraps a whole message into an OP_COMPRESSED with the same ids. What cannot be wrapped within `max_message_bytes`
/// comes back as it is, since an uncompressed reply is always legal.
pub fn compress(message: &[u8], how: impl Into<Deflation>, max_message_bytes: usize) -> BytesMut {
    wrap(message, how.into()).filter(|wrapped| wrapped.len() <= max_message_bytes).unwrap_or_else(|| message.into())
}

fn wrap(message: &[u8], how: Deflation) -> Option<BytesMut> {
    let compressor = how.compressor;
    let (header, body) = message.split_at_checked(HEADER_LEN)?;
    let (_, ids) = split_i32(header)?;
    let (request_id, ids) = split_i32(ids)?;
    let (response_to, op_code) = split_i32(ids)?;
    let (op_code, _) = split_i32(op_code)?;
    // Compressed in its place: no second copy. What stays untouched of the bound takes no memory from the system.
    let mut wrapped = BytesMut::zeroed(compressed_bound(body.len(), compressor));
    let (_, mut prefix) = wrapped.split_at_mut_checked(HEADER_LEN)?;
    prefix.put_i32_le(op_code);
    prefix.put_i32_le(i32::try_from(body.len()).ok()?);
    prefix.put_u8(compressor.id());
    let data = deflate(how, body, prefix)?;
    wrapped.truncate(HEADER_LEN.checked_add(PREFIX_LEN)?.checked_add(data)?);
    write_header(&mut wrapped, request_id, response_to, OpCode::Compressed)?;
    Some(wrapped)
}

fn read_prefix(body: &[u8], max_message_bytes: usize) -> Result<(Prefix, &[u8]), DecompressError> {
    let (op_code, rest) = split_i32(body).ok_or(DecompressError::Truncated)?;
    let (size, rest) = split_i32(rest).ok_or(DecompressError::Truncated)?;
    let (id, data) = rest.split_first().ok_or(DecompressError::Truncated)?;
    let compressor = Compressor::from_id(*id).ok_or(DecompressError::Compressor(*id))?;
    let op_code = OpCode::from_wire(op_code);
    if op_code == OpCode::Compressed {
        return Err(DecompressError::Nested);
    }
    let limit = max_message_bytes.saturating_sub(HEADER_LEN);
    match usize::try_from(size) {
        Ok(uncompressed) if uncompressed <= limit => Ok((Prefix { op_code, uncompressed, compressor }, data)),
        _ => Err(DecompressError::Size { found: size, limit }),
    }
}

/// Writes the header at the start of a message that is complete but for it.
fn write_header(message: &mut BytesMut, request_id: i32, response_to: i32, op_code: OpCode) -> Option<()> {
    let length = i32::try_from(message.len()).ok()?;
    let mut place = message.get_mut(..HEADER_LEN)?;
    [length, request_id, response_to, op_code.to_wire()].into_iter().for_each(|number| place.put_i32_le(number));
    Some(())
}

/// How many bytes `data` inflates to; `None` when it is damaged or does not fit into `output`.
fn inflate(compressor: Compressor, data: &[u8], output: &mut [u8]) -> Option<usize> {
    match compressor {
        Compressor::Snappy => snap::raw::Decoder::new().decompress(data, output).ok(),
        Compressor::Zlib => {
            let mut zlib = Decompress::new(true);
            let status = zlib.decompress(data, output, FlushDecompress::Finish).ok()?;
            if status == Status::StreamEnd { usize::try_from(zlib.total_out()).ok() } else { None }
        }
        Compressor::Zstd if output.len() <= KEPT_CONTEXT_BYTES => {
            with_zstd(|_, opener| opener.decompress_to_buffer(data, output).ok())
        }
        Compressor::Zstd => zstd::bulk::Decompressor::new().ok()?.decompress_to_buffer(data, output).ok(),
    }
}

/// How many bytes of `output` the compressed `body` fills; `None` when it does not fit.
fn deflate(how: Deflation, body: &[u8], output: &mut [u8]) -> Option<usize> {
    match how.compressor {
        Compressor::Snappy => snap::raw::Encoder::new().compress(body, output).ok(),
        Compressor::Zlib => {
            let mut zlib = Compress::new(Compression::new(how.zlib_level), true);
            let status = zlib.compress(body, output, FlushCompress::Finish).ok()?;
            if status == Status::StreamEnd { usize::try_from(zlib.total_out()).ok() } else { None }
        }
        Compressor::Zstd if body.len() <= KEPT_CONTEXT_BYTES => {
            with_zstd(|packer, _| packer.compress_to_buffer(body, output).ok())
        }
        Compressor::Zstd => zstd::bulk::compress_to_buffer(body, output, zstd::DEFAULT_COMPRESSION_LEVEL).ok(),
    }
}

/// Works in the contexts of this thread.
fn with_zstd<T>(
    work: impl FnOnce(&mut zstd::bulk::Compressor<'static>, &mut zstd::bulk::Decompressor<'static>) -> Option<T>,
) -> Option<T> {
    ZSTD.with_borrow_mut(|kept| {
        if kept.is_none() {
            let packer = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL).ok()?;
            *kept = Some((packer, zstd::bulk::Decompressor::new().ok()?));
        }
        let (packer, opener) = kept.as_mut()?;
        work(packer, opener)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 48_000_000;

    #[test]
    fn either_form_may_make_a_message_long_and_zlib_is_slow() {
        assert!(!takes_long_to_open(65_536, 65_536));
        assert!(takes_long_to_open(65_537, 30) && takes_long_to_open(30, 65_537));
        assert!(takes_long_to_compress(8_193, Compressor::Zlib) && !takes_long_to_compress(8_192, Compressor::Zlib));
        for fast in [Compressor::Snappy, Compressor::Zstd] {
            assert!(takes_long_to_compress(65_537, fast) && !takes_long_to_compress(65_536, fast));
        }
    }

    fn bodies() -> Vec<Vec<u8>> {
        let mut noise = 1_u32;
        let mut random = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        };
        vec![vec![], vec![7], vec![0; 100_000], b"mongomux ".repeat(50), (0..300_000).map(|_| random()).collect()]
    }

    fn open(message: BytesMut) -> Result<(Frame, Compressor), DecompressError> {
        let frame = Frame::copy_into(bytes::BytesMut::with_capacity, &message, LIMIT).unwrap().unwrap();
        assert_eq!(frame.header().op_code, OpCode::Compressed);
        decompress(&frame, LIMIT)
    }

    fn deflated(compressor: Compressor, body: &[u8]) -> Vec<u8> {
        let mut data = vec![0; compressed_bound(body.len(), compressor)];
        let length = deflate(compressor.into(), body, &mut data).unwrap();
        data.truncate(length);
        data
    }

    /// An OP_COMPRESSED by hand.
    fn sealed(op_code: i32, size: i32, id: u8, data: &[u8]) -> Frame {
        let mut body = [op_code.to_le_bytes(), size.to_le_bytes()].concat();
        body.push(id);
        body.extend_from_slice(data);
        Frame::build(1, 0, OpCode::Compressed, &body)
    }

    #[test]
    fn ids_and_names_survive_the_round_trip() {
        for compressor in Compressor::ALL {
            assert_eq!(Compressor::from_id(compressor.id()), Some(compressor));
            assert_eq!(Compressor::from_name(compressor.name()), Some(compressor));
        }
        assert!([0, 4, 7, 255].into_iter().all(|id| Compressor::from_id(id).is_none()));
        assert_eq!(Compressor::from_name("noop"), None);
    }

    #[test]
    fn every_message_comes_out_as_it_went_in() {
        for compressor in Compressor::ALL {
            for body in bodies() {
                let message = Frame::build(3, 4, OpCode::Msg, &body);
                let wrapped = compress(message.bytes(), compressor, LIMIT);
                let frame = Frame::copy_into(bytes::BytesMut::with_capacity, &wrapped, LIMIT).unwrap().unwrap();
                assert_eq!((frame.header().request_id, frame.header().response_to), (3, 4));
                assert_eq!(inflated_bytes(frame.body(), LIMIT), Ok(message.bytes().len()));
                let (inner, used) = open(wrapped).unwrap();
                assert_eq!((inner.bytes(), used), (message.bytes(), compressor));
                assert_eq!(inner.header(), message.header());
            }
        }
    }

    #[test]
    fn what_gets_no_smaller_is_wrapped_all_the_same_and_within_the_bound() {
        let noise: Vec<u8> = bodies().pop().unwrap().into_iter().cycle().take(1 << 20).collect();
        for compressor in Compressor::ALL {
            let message = Frame::build(3, 4, OpCode::Msg, &noise);
            let how = Deflation { compressor, zlib_level: 0 };
            let wrapped = compress(message.bytes(), how, LIMIT);
            let bound = compressed_bound(noise.len(), compressor);
            assert!(wrapped.len() <= bound && bound < noise.len() + noise.len() / 5, "{compressor:?}: {bound}");
            let exact = compress(message.bytes(), how, wrapped.len());
            assert_eq!(open(exact).unwrap().0.bytes(), message.bytes(), "{compressor:?}");
            let room = wrapped.len() - 1;
            assert_eq!(compress(message.bytes(), how, room), message.bytes(), "{compressor:?} in {room}");
        }
        assert!(compressed_bound(0, Compressor::Zlib) < 128);
    }

    #[test]
    fn each_name_of_the_configuration_is_a_compressor() {
        let names = [CompressorName::Snappy, CompressorName::Zlib, CompressorName::Zstd];
        assert_eq!(names.map(Compressor::from), Compressor::ALL);
    }

    #[test]
    fn what_does_not_fit_wrapped_stays_as_it_is() {
        let message = Frame::build(3, 4, OpCode::Msg, b"short");
        for compressor in Compressor::ALL {
            assert_eq!(compress(message.bytes(), compressor, message.bytes().len()), message.bytes());
            assert_eq!(compress(b"no header", compressor, LIMIT), b"no header"[..]);
        }
    }

    #[test]
    fn a_wrong_size_is_refused_in_both_directions() {
        for compressor in Compressor::ALL {
            for body in bodies() {
                let data = deflated(compressor, &body);
                let size = i32::try_from(body.len()).unwrap();
                for wrong in [size - 1, size + 1, size * 2 + 100].into_iter().filter(|wrong| *wrong >= 0) {
                    let error = decompress(&sealed(2013, wrong, compressor.id(), &data), LIMIT).unwrap_err();
                    assert_eq!(error, DecompressError::Data(usize::try_from(wrong).unwrap()), "{compressor:?} {size}");
                }
            }
        }
    }

    #[test]
    fn bombs_end_at_the_limit() {
        let limit = 1_000_000;
        for compressor in Compressor::ALL {
            let data = deflated(compressor, &vec![0; 20_000_000]);
            let honest = decompress(&sealed(2013, 20_000_000, compressor.id(), &data), limit).unwrap_err();
            assert_eq!(honest, DecompressError::Size { found: 20_000_000, limit: limit - 16 });
            let lying = decompress(&sealed(2013, 999_984, compressor.id(), &data), limit).unwrap_err();
            assert_eq!(lying, DecompressError::Data(999_984));
            let exact = deflated(compressor, &vec![0; limit - 16]);
            decompress(&sealed(2013, 999_984, compressor.id(), &exact), limit).unwrap();
        }
    }

    #[test]
    fn what_must_not_be_inside_is_refused() {
        let data = deflated(Compressor::Snappy, b"body");
        assert_eq!(decompress(&sealed(2012, 4, 1, &data), LIMIT).unwrap_err(), DecompressError::Nested);
        for id in [0, 4, 7, 255] {
            assert_eq!(decompress(&sealed(2013, 4, id, b"body"), LIMIT).unwrap_err(), DecompressError::Compressor(id));
        }
        for size in [-1, i32::MIN, 48_000_000, 47_999_985, i32::MAX] {
            let error = decompress(&sealed(2013, size, 1, &data), LIMIT).unwrap_err();
            assert_eq!(error, DecompressError::Size { found: size, limit: 47_999_984 });
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        for compressor in Compressor::ALL {
            let whole = compress(Frame::build(1, 0, OpCode::Msg, &bodies()[3]).bytes(), compressor, LIMIT);
            for length in 16..whole.len() {
                let cut = Frame::build(1, 0, OpCode::Compressed, &whole[16..length]);
                assert!(decompress(&cut, LIMIT).is_err(), "{compressor:?} cut at {length}");
            }
        }
    }

    #[test]
    fn no_damaged_byte_causes_a_panic() {
        for compressor in Compressor::ALL {
            let whole = compress(Frame::build(1, 0, OpCode::Msg, &bodies()[3]).bytes(), compressor, LIMIT);
            for position in 16..whole.len() {
                for damage in [1, 0x80, 0xFF] {
                    let mut body = whole[16..].to_vec();
                    body[position - 16] ^= damage;
                    if let Ok((inner, _)) = decompress(&Frame::build(1, 0, OpCode::Compressed, &body), LIMIT) {
                        assert_eq!(inner.bytes().len(), inner.header().length);
                    }
                }
            }
        }
    }
}
