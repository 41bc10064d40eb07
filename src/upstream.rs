//! The pools of connections to the servers.

pub mod backoff;
pub mod pool_state;
