//! The header of the PROXY protocol: it is read to its last byte and no further.

use futures_util::FutureExt as _;
use mongomux::client::proxy_header::{self, HeaderError};

use super::allocations;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The bytes are what comes; and, in another turn, what comes behind the signature.
pub fn check(data: &[u8]) {
    taken(data);
    taken(&[SIGNATURE, data].concat());
}

fn taken(came: &[u8]) {
    let mut rest = came;
    let read = allocations::within(4096, || {
        // What is there is there at once.
        proxy_header::take(&mut rest).now_or_never().expect("nothing waits for a slice")
    });
    let taken = came.len() - rest.len();
    let claimed = came.first_chunk::<16>().map(|head| 16 + usize::from(u16::from_be_bytes([head[14], head[15]])));
    match read {
        Ok(_) => {
            assert!(came.starts_with(SIGNATURE));
            assert_eq!(Some(taken), claimed, "to its last byte and no further");
        }
        Err(HeaderError::Missing) => assert!(!came.starts_with(SIGNATURE) && taken == 16),
        Err(HeaderError::TooLong(length)) => assert_eq!((taken, Some(length)), (16, claimed)),
        Err(HeaderError::Broken) => assert_eq!(Some(taken), claimed),
        Err(HeaderError::Ended(_)) => assert!(claimed.is_none_or(|claimed| claimed > came.len())),
    }
}
