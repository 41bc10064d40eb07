//! The servers: their pools, their breakers, and the connections that carry commands to them.

pub mod backoff;
mod bound;
pub mod cancels;
mod checking_out;
pub mod cluster;
pub mod connection;
pub mod episode;
pub mod errand;
pub mod handshake;
pub mod health;
pub mod holders;
pub mod in_use;
pub mod liveness;
mod load;
pub mod long_polls;
mod lookout;
pub mod maintain;
mod opening;
pub mod pool;
pub mod pool_state;
pub mod rotation;
#[cfg(test)]
mod scripted;
pub mod settling;
pub mod shortage;
pub mod tls;
mod turnover;
pub mod usage;
pub mod users;

pub use checking_out::CheckingOut;
pub use cluster::{Cluster, Operation, SelectError, Server};
pub use connection::{Connection, ReceiveError, Reply, SendError};
pub use errand::Errand;
pub use liveness::Liveness;
pub use load::Load;
pub use long_polls::{LongPolls, Place};
pub use pool::{CheckOutError, ClusterBound, Pool, PooledConnection};
pub use settling::Turn;
