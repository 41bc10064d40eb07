//! The clients: who listens for them, their sockets, and the path of each of their commands.

pub mod abandoned;
pub mod acquire;
pub mod bound;
mod caller;
mod catch_up;
pub mod clusters;
pub mod cursors;
pub mod degraded;
pub mod deliver;
pub mod desks;
mod ends;
pub mod exchange;
pub mod execute;
pub mod facade;
pub mod held;
pub mod listener;
mod load_balanced;
pub mod long_poll;
mod misfits;
mod pace;
mod packing;
pub mod places;
mod proxy_header;
pub mod session;
pub mod shared;
pub mod socket;
mod spare;
pub mod tls;
mod tls_socket;
pub mod transactions;

pub use bound::{BindError, BoundSocket};
pub use clusters::Clusters;
pub use ends::Ends;
pub use places::Places;
pub use shared::ClientShared;
pub use tls::{ClientTls, ClientTlsError, PeerCertificate};
