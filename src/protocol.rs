//! The protocol: the record of a key, its text, and its transitions. No I/O, no channels, no clock.

pub(crate) mod record;
mod request;
pub(crate) mod transition;

pub use request::{Failure, Op, Outcome, Reply};
pub(crate) use request::{GRAIN, millis};
