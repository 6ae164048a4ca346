//! The protocol: the record of a key, its text, and its transitions. No I/O, no channels, no clock.
//!
//! [`transition::apply`] is the executable specification. The memory store calls it, the model in
//! `proof/tests/model.rs` drives it, and the scripts in `src/store/redis/` do the same on a server.

pub(crate) mod record;
mod request;
pub(crate) mod transition;

pub(crate) use request::{ClaimReply, GRAIN, millis};
pub use request::{Failure, Op, Outcome, Reply};
