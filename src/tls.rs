//! What both legs need of TLS: certificates and keys out of files, and the names in them. Nothing here speaks it: that is
//! `client/tls.rs` and `upstream/tls.rs`.

pub mod files;
pub mod subject;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use files::{FileError, FileErrors};

/// The one implementation of the algorithms: named wherever a setting is made, as there is no default for the process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
