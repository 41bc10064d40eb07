//! The pools of connections to the servers.

pub mod pool_state;
