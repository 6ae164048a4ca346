//! Workers: how they are built, and what can be asked of a key without taking part in its run.

mod builder;
mod error;
mod snapshot;
mod watch;
mod worker;

pub use builder::{Builder, Warning};
pub use error::BuildError;
pub use snapshot::{RunState, Snapshot};
pub use watch::Watch;
pub use worker::LockingWorker;
