//! Who is let on in which mode; who may wait, how many, and in which order; and how many bytes may be buffered for all of
//! them together.

pub mod admit;
pub mod claim;
pub mod codel;
pub mod fair_line;
pub mod gradient;
pub mod line;
pub mod memory;
pub mod mode;
pub mod pauses;
pub mod queue;
pub mod shares;
pub mod switch;
pub mod tenant_use;
pub mod tenants;
pub mod user_queues;

pub use admit::{Admission, AdmitError, Newcomer, Permit};
pub use claim::{Claim, Lane, Level, Tenant, Ticket};
pub use gradient::Gradient;
pub use memory::{MemoryBudget, Reservation};
pub use mode::{Mode, Orders};
pub use pauses::{Pauses, TooManyPauses};
pub use queue::WaitQueue;
pub use switch::ModeSwitch;
pub use tenants::Tenants;
pub use user_queues::UserQueues;
