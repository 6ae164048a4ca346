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
//! | **take part** | |
//! | compete for the work, and be told all that happens | [`LockingWorker::acquire`] |
//! | have the work done when it is our turn, and be told how it ends | [`LockStreamExt::run`] |
//! | have a result computed once by the fleet | [`LockingWorker::once`], `once_json` for any type |
//! | have each job of a stream done once by the fleet | [`ClaimExt::claim_each`] |
//! | compete for many keys, over the same connections | [`LockingWorker::with_key`] |
//! | compete again after a failure of our own | [`Builder::rejoin`] |
//! | see only the guards, or only how it ends | [`LockStreamExt::guards`], [`LockStreamExt::outcome`] |
//! | see no progress reports, or send them elsewhere | [`LockStreamExt::without_status`], [`LockStreamExt::inspect_status`] |
//! | use a connection that there is | [`Builder::client`] |
//! | leave a connection that died in silence sooner, or later | [`Builder::answer_timeout`] |
//! | test without a server | [`Builder::in_memory`]; [`Memory::remove`] loses a record as a server may |
//! | **while the work goes on** | |
//! | work for longer than the lease | [`Builder::renew`], or [`WorkGuard::extend`] |
//! | bound how long a guard that hangs is renewed | [`Builder::max_hold`], [`Builder::stall_limit`] |
//! | leave more time between the end here and on the server | [`Builder::margin`] |
//! | stop the work when the lease is lost | [`WorkGuard::run`], [`WorkGuard::lost`], [`WorkGuard::cancellation_token`] |
//! | look whether it still holds, and for how long | [`WorkGuard::check`], [`WorkGuard::is_valid`], [`WorkGuard::remaining`] |
//! | know whether anybody could try after us | [`WorkGuard::is_last_attempt`] |
//! | let the next attempt resume | [`WorkGuard::checkpoint`], [`WorkGuard::previous`] |
//! | keep a late write out | [`WorkGuard::fenced`], or [`WorkGuard::fencing_token`] with a store that compares |
//! | lose less when a replica takes over | [`Builder::replicas`] |
//! | **end it** | |
//! | complete the work, with or without a result | [`WorkGuard::done_with`], [`WorkGuard::done`] |
//! | let another participant try | [`WorkGuard::fail`], or drop the guard |
//! | have nobody try again | [`WorkGuard::fail_permanently`] |
//! | give the work away before this process ends | [`WorkGuard::hand_off`], then [`LockingWorker::close`] |
//! | have the next run begin sooner or later | [`Builder::retention`] |
//! | tell the last event from those before | [`LockEvent::is_terminal`], [`Error::is_fatal`] |
//! | **look on, or step in** | |
//! | see how a run is and who waits | [`LockingWorker::inspect`] |
//! | see each of its transitions, without a part in them | [`LockingWorker::watch`] |
//! | begin a run anew, by force | [`LockingWorker::clear`] |
//! | know what may cost the worker its locks | [`LockingWorker::warnings`] |
//!
//! # The states of a run
//!
//! The server keeps one record a key. An arrow is one atomic script, or, dashed, the server's forgetting; n is the last
//! attempt that was counted. Not drawn: [`LockingWorker::clear`] leads from each of them but absent to open(0), or to
//! granted(1) if somebody waits. What a stream makes of it all is drawn at [`Acquire`].
//!
// The picture itself, not a link to one: it needs no network, and no address that docs.rs would have to know. Only for
// rustdoc, so that editors do not show its source as text.
#![cfg_attr(doc, doc = include_str!("../docs/states.svg"))]
//!
//! # What can be observed
//!
//! With the features `tracing` and `metrics` it tells what happens in [spans, events and figures].
//!
//! [spans, events and figures]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/observability.md
//!
//! # What is promised
//!
//! * At most one grant of a key is valid at a time, by the server's clock. [`WorkGuard::is_valid`]
//!   turns false on this machine's clock before that, also if the machine slept, provided that the
//!   two clocks drift apart by less than the [`margin`](Builder::margin); so do [`WorkGuard::lost`]
//!   and the others, provided that the process gets CPU. [`LockingWorker::clear`] is the exception:
//!   a holder that it takes the work from is valid by its own clock until a message or an answer
//!   tells it, or its lease would have ended.
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
//! * For queues of many different jobs that somebody sends: here whoever asks has brought the work along, if only as a
//!   stream of jobs that all of the fleet have.
//!
//! # Features
//!
//! None is on by default. `cli` adds [the command `locking-worker`][cli]. `json` adds `LockingWorker::once_json`. `tracing` and `metrics`
//! tell what happens. `enable-rustls`, `enable-rustls-ring`,
//! `enable-native-tls`, `unix-sockets`, `sentinel-auth` and `credential-provider` are passed through to [`fred`].
//!
//! # More
//!
//! Pages that come with the source: [coming from the Node.js module][migration], [other locks, and when to use them
//! instead][comparison], [what a fencing token is for][fencing], [what is promised, and how it is tested][reliability],
//! [what was measured][performance], [the map of the house][architecture].
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

mod acquire;
mod builder;
mod claim_ext;
mod clock;
mod error;
mod event;
mod guard;
mod hub;
mod keeper;
mod lease;
mod once;
mod retry;
mod snapshot;
mod store;
mod stream_ext;
#[cfg(any(feature = "tracing", feature = "metrics"))]
mod telemetry;
#[cfg(not(any(feature = "tracing", feature = "metrics")))]
#[path = "telemetry/off.rs"]
mod telemetry;
mod terms;
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
    Completed, Failed, GaveUp, LockEvent, Locked, Outcome, PreviousAttempt, Reason, Status,
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
    #[cfg(feature = "tracing")]
    pub use crate::stream_ext::Trace;
    pub use crate::stream_ext::{Guards, InspectStatus, Run, ToOutcome, WithoutStatus};
}

/// The examples of the pages compile, and run where they need no server.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;

    #[doc = include_str!("../docs/fencing.md")]
    struct Fencing;

    #[doc = include_str!("../docs/migration.md")]
    struct Migration;
}

/// The parts under the public ones, for this crate's own tests. No promise is made about them.
#[doc(hidden)]
pub mod internals {
    pub use crate::store::memory::MemoryStore;
    pub use crate::store::record::{
        Cause, Malformed, Previous, Record, RecordSnapshot, State, Token,
    };
    pub use crate::store::redis::{RedisStore, Replicas};
    pub use crate::store::{
        BatchKey, Failure, FencedScript, Op, Outcome, Pace, Reply, Store, StoreEvent,
    };
}
