//! Which server a command goes to: by what it is bound to (a cursor, a transaction), else by what it asks for.

pub mod pins;
pub mod route;

pub use pins::{CursorPin, PinError, Pins};
pub use route::{Lost, Route, route};
