//! Coordinates one unit of work across many processes: one process does it, the others wait.
//!
//! A [`Key`] names the unit of work. [`LockingWorker::acquire`] takes part in the current run of
//! that key and returns a stream of [`LockEvent`]s. One participant becomes the holder and receives
//! [`LockEvent::Acquired`] with a [`WorkGuard`]. The others learn who the holder is and wait in a
//! queue. [`WorkGuard::done`] completes the work for all participants. If the guard is dropped, the
//! attempt fails and the first waiter takes over at once. If the holder's process dies, the first
//! waiter takes over when the lease ends. After `max_attempts` failed attempts the run gives up.
//! The server remembers the outcome for the *retention*. After that the key is free for the next
//! run.
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
//! | **take part** | |
//! | compete for the work and receive every event | [`LockingWorker::acquire`] |
//! | do the work in each granted attempt, and get the outcome | [`LockStreamExt::run`] |
//! | compute a result once in the fleet | [`LockingWorker::once`], `once_json` for any type |
//! | do each job of a stream once in the fleet | [`ClaimExt::claim_each`] |
//! | compete for many keys over the same connections | [`LockingWorker::with_key`] |
//! | compete again after a failed attempt of this stream | [`Builder::rejoin`] |
//! | receive only the guards | [`LockStreamExt::guards`] |
//! | receive only the outcome | [`LockStreamExt::outcome`] |
//! | receive no progress reports | [`LockStreamExt::without_status`] |
//! | handle progress reports elsewhere | [`LockStreamExt::inspect_status`] |
//! | use an existing connection | [`Builder::client`] |
//! | replace a dead connection sooner or later | [`Builder::answer_timeout`] |
//! | test without a server | [`Builder::in_memory`] |
//! | test the loss of a record | [`Memory::remove`] |
//! | **while the work goes on** | |
//! | work for longer than the lease | [`Builder::renew`], or [`WorkGuard::extend`] |
//! | limit the renewal of a guard that hangs | [`Builder::max_hold`], [`Builder::stall_limit`] |
//! | leave more time between the lease's end here and on the server | [`Builder::margin`] |
//! | stop the work when the lease is lost | [`WorkGuard::run`], [`WorkGuard::lost`] |
//! | stop several tasks when the lease is lost | [`WorkGuard::cancellation_token`] |
//! | check whether the guard is still valid | [`WorkGuard::check`], [`WorkGuard::is_valid`] |
//! | read how long the guard stays valid | [`WorkGuard::remaining`] |
//! | know whether another attempt could follow | [`WorkGuard::is_last_attempt`] |
//! | let the next attempt resume | [`WorkGuard::checkpoint`], [`WorkGuard::previous`] |
//! | reject a late write to a Redis key | [`WorkGuard::fenced`] |
//! | reject a late write to a store that compares tokens | [`WorkGuard::fencing_token`] |
//! | lose less in a failover to a replica | [`Builder::replicas`] |
//! | **settle the attempt** | |
//! | complete the work, with or without a result | [`WorkGuard::done_with`], [`WorkGuard::done`] |
//! | let another participant try | [`WorkGuard::fail`], or drop the guard |
//! | end the run without another attempt | [`WorkGuard::fail_permanently`] |
//! | hand the work off before this process ends | [`WorkGuard::hand_off`] |
//! | wait for pending messages before this process ends | [`LockingWorker::close`] |
//! | start the next run sooner or later | [`Builder::retention`] |
//! | recognise the last event of a stream | [`LockEvent::is_terminal`], [`Error::is_fatal`] |
//! | **watch, or intervene** | |
//! | see the state of a run and its waiters | [`LockingWorker::inspect`] |
//! | see each transition without taking part | [`LockingWorker::watch`] |
//! | start a run anew, by force | [`LockingWorker::clear`] |
//! | learn what may cost the worker its locks | [`LockingWorker::warnings`] |
//!
//! # The states of a run
//!
//! The server keeps one record for each key. A solid arrow is one atomic script. A dashed arrow is
//! the expiry of the record on the server. *n* is the number of the last counted attempt.
//! [`LockingWorker::clear`], which the picture omits, leads from every state except absent to
//! granted(1) if there is a waiter, and to open(0) if there is none. [`Acquire`] shows the events
//! that a stream yields in these states.
//!
// The attribute includes the picture itself: a link would need network access and an address that
// docs.rs would have to know. Only rustdoc includes it, so that editors do not show its source as
// text.
#![cfg_attr(doc, doc = include_str!("../docs/states.svg"))]
//!
//! # Telemetry
//!
//! With the features `tracing` and `metrics`, the crate emits [spans, events and metrics].
//!
//! [spans, events and metrics]:
//!   https://docs.rs/crate/redis-locking-worker/latest/source/docs/observability.md
//!
//! # Guarantees
//!
//! * By the server's clock, at most one grant of a key is valid at a time.
//! * [`WorkGuard::is_valid`] turns false on this machine's clock before the lease ends on the
//!   server, even if the machine slept. This assumes that the two clocks drift apart by less than
//!   the [`margin`](Builder::margin). [`WorkGuard::lost`] and the other signals of a lost lease are
//!   equally early, if the process gets CPU time.
//! * [`LockingWorker::clear`] is the exception to these two: the guard of the old holder stays
//!   valid by its own clock until a message or an answer reports the loss, or until its lease would
//!   have ended.
//! * [`WorkGuard::fencing_token`] rises with every grant of a key.
//! * `Ok` from [`WorkGuard::done`] means that the server recorded this guard's completion of the
//!   run. At most one guard completes a run.
//! * A waiter learns of a failure from one message, and takes over from a dead holder when the
//!   lease ends. If the message is lost, timers of the waiter find the failure.
//! * A stream yields exactly one terminal event. In an outage of the server it yields one
//!   [`LockEvent::Error`] and continues afterwards.
//! * A stream, guard or future that is dropped leaves nothing behind.
//!
//! # When not to use it
//!
//! * The work must *never* happen twice and its effects cannot be fenced. No lock with a lease can
//!   promise that, because a process can pause for longer than any lease.
//! * The record must survive the failure of any one server. Redis replicates asynchronously, and a
//!   failover may lose the last writes. Consensus systems (etcd, ZooKeeper) promise more.
//! * A producer sends many different jobs to workers. That needs a queue: here each participant
//!   brings the work along, if only as a stream of jobs that every process of the fleet has.
//!
//! # Features
//!
//! No feature is on by default.
//!
//! * `json` adds `LockingWorker::once_json`.
//! * `tracing` and `metrics` add telemetry.
//! * `enable-rustls`, `enable-rustls-ring`, `enable-native-tls`, `unix-sockets`, `sentinel-auth`
//!   and `credential-provider` enable the feature of [`fred`] with the same name.
//!
//! # More
//!
//! The crate `locking-worker` is [a command line][cli] on top of this one.
//!
//! These pages come with the source:
//!
//! * [migration from the Node.js module][migration]
//! * [other locks, and when to use them instead][comparison]
//! * [the purpose of a fencing token][fencing]
//! * [the guarantees, and how they are tested][reliability]
//! * [measurements][performance]
//! * [the architecture][architecture]
//!
//! [cli]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/cli.md
//! [architecture]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/architecture.md
//! [comparison]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/comparison.md
//! [fencing]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/fencing.md
//! [migration]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/migration.md
//! [performance]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/performance.md
//! [reliability]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/reliability.md
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![cfg_attr(docsrs, feature(doc_cfg))]

// `tests/it/layers.rs` has their order from the ground up: each imports only modules below it.
mod acquire;
mod client;
mod clock;
mod error;
mod ext;
mod guard;
mod hub;
mod keeper;
mod key;
mod lease;
mod outcome;
mod protocol;
mod retry;
mod store;
#[cfg(any(feature = "tracing", feature = "metrics"))]
mod telemetry;
#[cfg(not(any(feature = "tracing", feature = "metrics")))]
#[path = "telemetry/off.rs"]
mod telemetry;

pub use acquire::{Acquire, LockEvent, Status, StatusLevel};
pub use client::{BuildError, Builder, LockingWorker, RunState, Snapshot, Warning, Watch};
pub use error::{Error, LeaseLost, ServerError};
pub use ext::{ClaimError, ClaimExt, IntoResult, LockStreamExt, OnceError};
pub use guard::{RenewError, SettleError, WorkGuard};
pub use key::{Key, KeyError};
pub use outcome::{Completed, Failed, GaveUp, Locked, Outcome, PreviousAttempt, Reason};
pub use store::FencedError;
pub use store::memory::Memory;

/// The types that the methods of [`LockStreamExt`] and [`ClaimExt`] return.
pub mod adapters {
    pub use crate::ext::ClaimEach;
    #[cfg(feature = "tracing")]
    pub use crate::ext::Trace;
    pub use crate::ext::{Guards, InspectStatus, Run, ToOutcome, WithoutStatus};
}

/// The examples of the Markdown pages. They compile, and those that need no server also execute.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;

    #[doc = include_str!("../docs/fencing.md")]
    struct Fencing;

    #[doc = include_str!("../docs/migration.md")]
    struct Migration;
}

/// The internal parts, for this crate's own tests. They are not covered by semantic versioning.
#[doc(hidden)]
pub mod internals {
    pub use crate::hub::{InFlight, Options, Process, Told};
    pub use crate::protocol::record::{
        Cause, Malformed, Previous, Record, RecordSnapshot, State, Token,
    };
    pub use crate::protocol::transition::{Applied, Entry, apply};
    pub use crate::protocol::{Failure, Op, Outcome, Reply};
    pub use crate::store::memory::MemoryStore;
    pub use crate::store::redis::{RedisStore, Replicas};
    pub use crate::store::{BatchKey, FencedScript, Pace, Store, StoreEvent};
}
