//! How `memory_limit_bytes` is divided: into shares that add up to it, so that whoever keeps to his share keeps the limit.

use super::limits::{LARGEST_REPLY_BYTES, MEMORY_LIMIT_BYTES};

/// The small ones' share is one part in this many. At the default limit that is 33 MB: one message of every client.
const SMALL_PART: u64 = 16;
/// The replies' share is at least one part in this many.
const REPLY_PART: u64 = 4;

/// Shares of the memory for buffered messages, bytes. Together they are the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryShares {
    /// For requests. Replies and small requests may use what is free of it, while no request waits for it.
    pub requests: usize,
    /// For replies alone, and never less than one largest reply: a request that is being carried out cannot block its own
    /// reply.
    pub replies: usize,
    /// For small requests alone: hello is among them, and is answered whatever others do.
    pub small: usize,
}

impl MemoryShares {
    /// Divides `limit` bytes.
    pub const fn of(limit: u64) -> Self {
        let (requests, replies, small) = divide(limit);
        Self { requests: size(requests), replies: size(replies), small: size(small) }
    }

    /// The least limit at which replies have a share of so many bytes, where that is more than one largest reply.
    pub const fn least_for_replies_of(bytes: u64) -> u64 {
        bytes.saturating_mul(REPLY_PART)
    }

    /// All of them together.
    pub const fn limit(&self) -> usize {
        self.requests.saturating_add(self.replies).saturating_add(self.small)
    }

    /// Largest request that is promised room: three quarters of the requests' share. The rest of the share is for what
    /// came in one read with an earlier request, so that even all of that together leaves room for the largest.
    pub const fn largest_request(&self) -> usize {
        self.requests - self.requests / 4
    }
}

const fn divide(limit: u64) -> (u64, u64, u64) {
    let small = limit / SMALL_PART;
    let quarter = limit / REPLY_PART;
    let replies = if quarter > LARGEST_REPLY_BYTES { quarter } else { LARGEST_REPLY_BYTES };
    (limit.saturating_sub(small).saturating_sub(replies), replies, small)
}

/// On a machine that cannot address so much, all that it can.
#[expect(clippy::cast_possible_truncation, reason = "looked at just before")]
const fn size(bytes: u64) -> usize {
    if bytes > usize::MAX as u64 { usize::MAX } else { bytes as usize }
}

const _: () = assert!(
    MemoryShares::of(MEMORY_LIMIT_BYTES.min).largest_request() as u64 >= super::limits::MAX_MESSAGE_BYTES.min,
    "one largest request and one largest reply must fit together"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limits::{MAX_MESSAGE_BYTES, SMALL_MESSAGE_BYTES};

    #[test]
    fn shares_add_up_and_hold_the_largest_messages_at_every_limit() {
        let limits = [MEMORY_LIMIT_BYTES.min, 64 << 20, 93_500_000, MEMORY_LIMIT_BYTES.default, MEMORY_LIMIT_BYTES.max];
        for limit in limits {
            let shares = MemoryShares::of(limit);
            assert_eq!(shares.limit() as u64, limit);
            assert!(shares.largest_request() as u64 >= MAX_MESSAGE_BYTES.min, "{shares:?}");
            assert!(shares.replies as u64 >= LARGEST_REPLY_BYTES, "{shares:?}");
            assert!(shares.small >= 100 * SMALL_MESSAGE_BYTES, "{shares:?}");
        }
        let shares = MemoryShares::of(MEMORY_LIMIT_BYTES.default);
        assert_eq!((shares.replies, shares.small), (128 << 20, 32 << 20));
        assert!(MemoryShares::of(93_500_000).largest_request() as u64 >= MAX_MESSAGE_BYTES.max);
        let least = MemoryShares::least_for_replies_of(40_000_000);
        assert_eq!((MemoryShares::of(least).replies, MemoryShares::of(least - 4).replies), (40_000_000, 39_999_999));
    }
}
