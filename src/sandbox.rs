//! Stub.

pub mod census;
pub mod deployment;
pub mod find;
mod guardian;
pub mod mongod;
pub mod wire_client;
