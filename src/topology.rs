//! What is known about the upstream servers, and which of them suits a command.
//!
//! ```text
//! mongodb client ── events ──► monitor ──► state ── watch ──► Arc<TopologyDescription> ──► selection
//! our own errors ── suspect ─────────────────┘
//! ```
//!
//! The `mongodb` crate watches the servers, and nothing else here talks to them. [`state`] folds its events, and what our own
//! connections have seen, into one immutable [`TopologyDescription`]. Whoever needs the topology holds that.

pub mod description;
pub mod monitor;
pub mod selection;
pub mod state;

pub use description::{ServerDescription, ServerKind, TopologyDescription, TopologyKind, TopologyVersion};
pub use monitor::{Monitor, MonitorSettings, WaitingGuard};
pub use selection::{Criteria, SelectionFailure, Selector};
pub use state::News;
