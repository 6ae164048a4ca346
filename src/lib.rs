//! One piece of work, a fleet of processes: each wants to do it, one does.
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod acquire;
mod builder;
mod error;
mod event;
mod guard;
mod hub;
mod store;
mod worker;

pub use acquire::Acquire;
pub use builder::Builder;
pub use error::{BuildError, Error, KeyError, SettleError};
pub use event::{Completed, Failed, LockEvent, Locked, MaxAttempts, Reason, Status, StatusLevel};
pub use guard::WorkGuard;
pub use store::key::Key;
pub use store::memory::Memory;
pub use worker::LockingWorker;

/// The parts under the public ones, for this crate's own tests. No promise is made about them.
#[doc(hidden)]
pub mod internals {
    pub use crate::store::memory::MemoryStore;
    pub use crate::store::record::{Cause, Frame, Malformed, Previous, Record, State, Token};
    pub use crate::store::redis::RedisStore;
    pub use crate::store::{Failure, Heard, Op, Outcome, Reply, Store};
}
