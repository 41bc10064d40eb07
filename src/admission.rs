//! Who may wait, how many, and in which order; and how many bytes may be buffered for all of them together.

pub mod admit;
pub mod memory;
pub mod queue;

pub use admit::{Admission, AdmitError, Permit};
pub use memory::{MemoryBudget, Reservation};
pub use queue::{Lane, Ticket, WaitQueue};
