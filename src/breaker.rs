//! The circuit breaker of one server: whether it gets traffic now.
//!
//! It is fed by failures to connect, to shake hands and to keep a connection, and by commands that were answered. An
//! error reply is an answer, and time spent in our own queues says nothing about a server: neither counts as a failure.
//! Running the probe, logging transitions and counting them is the caller's.

pub mod retry_budget;
pub mod state;
pub mod window;

pub use retry_budget::RetryBudget;
pub use state::{Admission, Breaker, BreakerState, Failure, Outcome, ProbeId, Reason, Transition, TripReason};
