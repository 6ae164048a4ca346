//! One piece of work, a fleet of processes: each wants to do it, one does.
//!
//! A unit of work is named by a [`Key`]. [`LockingWorker::acquire`] takes part in its run and
//! returns a stream of [`LockEvent`]s. One participant gets [`LockEvent::Acquired`] with a
//! [`WorkGuard`]; the others are told who has it and wait in line. [`WorkGuard::done`] completes
//! the work for all of them. Dropping the guard fails the attempt and the next in line takes over
//! at once; when a process dies, it does so at the end of the lease. After `max_attempts` failures
//! the run is given up. The outcome is remembered for the *retention*; after that the key is free
//! for the next run.
//!
//! # Example
//!
//! ```
//! use futures::StreamExt;
//! use redis_locking_worker::{LockEvent, LockingWorker, Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // On a server: `.url("redis://127.0.0.1:6379")`.
//! let memory = Memory::new();
//! let worker = LockingWorker::builder("report").in_memory(&memory).label("a").build().await?;
//!
//! let mut events = worker.acquire();
//! while let Some(event) = events.next().await {
//!     match event {
//!         LockEvent::Acquired(guard) => guard.done_with("42").await?,
//!         LockEvent::Completed(completed) => {
//!             assert_eq!((&completed.holder[..], &completed.result[..]), ("a", &b"42"[..]));
//!         }
//!         other => panic!("{other:?}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Which call
//!
//! | to | call |
//! |---|---|
//! | take part in a run | [`LockingWorker::acquire`] |
//! | have the work done when it is our turn, and see the events | [`LockStreamExt::run`] |
//! | have a result computed once by the fleet | [`LockingWorker::once`] |
//! | the same for many keys, over the same connections | [`LockingWorker::with_key`] |
//! | have each job of a stream done once by the fleet | [`ClaimExt::claim_each`] |
//! | complete the work | [`WorkGuard::done`], [`WorkGuard::done_with`] |
//! | work for longer than the lease | [`Builder::renew`], or [`WorkGuard::extend`] |
//! | stop the work when the lease is lost | [`WorkGuard::run`], [`WorkGuard::lost`], [`WorkGuard::cancellation_token`] |
//! | let the next attempt resume | [`WorkGuard::checkpoint`], [`WorkGuard::previous`] |
//! | keep a late write out | [`WorkGuard::fenced`], or [`WorkGuard::fencing_token`] with a store that compares |
//! | lose less when a replica takes over | [`Builder::replicas`] |
//! | let another participant try | [`WorkGuard::fail`], or drop the guard |
//! | have nobody try again | [`WorkGuard::fail_permanently`] |
//! | give the work away before this process ends | [`WorkGuard::hand_off`], then [`LockingWorker::close`] |
//! | see how a run is, or look on | [`LockingWorker::inspect`], [`LockingWorker::watch`] |
//! | begin a run anew, by force | [`LockingWorker::clear`] |
//! | know what may cost the worker its locks | [`LockingWorker::warnings`] |
//! | test without a server | [`Builder::in_memory`] |
//!
//! With the features `tracing` and `metrics` it tells what happens in [spans, events and figures].
//!
//! [spans, events and figures]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/observability.md
//!
//! # What is promised
//!
//! * At most one grant of a key is valid at a time, by the server's clock. [`WorkGuard::is_valid`]
//!   turns false on this process's clock before that, provided that the two clocks drift apart by
//!   less than 1 %; so do [`WorkGuard::lost`] and the others, provided that the runtime runs its
//!   timers in time.
//! * [`WorkGuard::fencing_token`] rises with every grant of a key.
//! * `Ok` from [`WorkGuard::done`] means that the server's record says that this guard completed
//!   the run. There is at most one such guard a run.
//! * A waiter hears of a failure by one push, and takes over from a dead holder at the end of its
//!   lease. If messages are lost it finds out by itself.
//! * A stream yields exactly one terminal event. The server's absence is one
//!   [`LockEvent::Error`] an outage, and the stream goes on afterwards.
//! * What is dropped leaves nothing behind.
//!
//! # When not to use it
//!
//! * Where work must *never* be done twice, and its effects cannot be fenced: no lock with a lease
//!   can promise that, because a process can be paused for longer than any lease.
//! * Where the record must survive the failure of any one server: Redis replicates asynchronously,
//!   and a failover may lose the last writes. Consensus systems (etcd, ZooKeeper) do better.
//! * For queues of many different jobs: this is one piece of work and many hands.
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acquire;
mod builder;
mod claim_ext;
mod error;
mod event;
mod guard;
mod hub;
#[cfg(any(feature = "tracing", feature = "metrics"))]
mod observe;
#[cfg(not(any(feature = "tracing", feature = "metrics")))]
#[path = "observe/off.rs"]
mod observe;
mod once;
mod snapshot;
mod store;
mod stream_ext;
mod watch;
mod worker;

pub use acquire::Acquire;
pub use builder::{Builder, Warning};
pub use claim_ext::ClaimExt;
pub use error::{
    BuildError, ClaimError, Error, FencedError, KeyError, LeaseLost, OnceError, RenewError,
    SettleError,
};
pub use event::{
    Completed, Failed, LockEvent, Locked, MaxAttempts, Outcome, PreviousAttempt, Reason, Status,
    StatusLevel,
};
pub use guard::WorkGuard;
pub use snapshot::{RunState, Snapshot};
pub use store::key::Key;
pub use store::memory::Memory;
pub use stream_ext::{IntoResult, LockStreamExt};
pub use watch::Watch;
pub use worker::LockingWorker;

/// What the methods of [`LockStreamExt`] and [`ClaimExt`] return.
pub mod adapters {
    pub use crate::claim_ext::ClaimEach;
    pub use crate::stream_ext::{Guards, InspectStatus, Run, ToOutcome, WithoutStatus};
}

/// The README's example compiles.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

/// The parts under the public ones, for this crate's own tests. No promise is made about them.
#[doc(hidden)]
pub mod internals {
    pub use crate::store::memory::MemoryStore;
    pub use crate::store::record::{Cause, Frame, Malformed, Previous, Record, State, Token};
    pub use crate::store::redis::{RedisStore, Replicas};
    pub use crate::store::{Failure, Guarded, Heard, Lane, Op, Outcome, Reply, Store};
}
