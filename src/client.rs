//! Stub.
pub mod socket;
