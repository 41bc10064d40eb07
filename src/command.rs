//! Stub.

pub mod read_preference;
