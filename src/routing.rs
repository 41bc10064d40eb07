//! Which server a command goes to: by what it is bound to (a cursor, a transaction), else by what it asks for.

pub mod pins;
pub mod route;
pub mod socket_uses;

pub use pins::{CursorLife, CursorPin, Ended, PinError, Pins};
pub use route::{Lost, Route, route};
pub use socket_uses::SocketUses;
