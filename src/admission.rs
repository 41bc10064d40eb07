//! Who is let on in which mode; who may wait, how many, and in which order; and how many bytes may be buffered for all of
//! them together.

pub mod admit;
pub mod memory;
pub mod mode;
pub mod queue;
pub mod switch;

pub use admit::{Admission, AdmitError, Permit};
pub use memory::{MemoryBudget, Reservation};
pub use mode::Mode;
pub use queue::{Lane, Ticket, WaitQueue};
pub use switch::ModeSwitch;
