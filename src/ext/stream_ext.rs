//! The public extension trait for streams of events. Each adapter has its own file.

mod guards;
mod inspect_status;
mod run;
mod to_outcome;
#[cfg(feature = "tracing")]
mod trace;
mod without_status;

use std::fmt::Display;
use std::sync::Arc;

use futures::Stream;

use crate::acquire::{LockEvent, Status};
use crate::guard::WorkGuard;

pub use guards::Guards;
pub use inspect_status::InspectStatus;
pub use run::{IntoResult, Run};
pub use to_outcome::ToOutcome;
#[cfg(feature = "tracing")]
pub use trace::Trace;
pub use without_status::WithoutStatus;

/// Extension methods for streams of [`LockEvent`]s.
///
/// They complement the `StreamExt` traits of `futures` and `tokio-stream`.
///
/// The adapters keep no guard: a guard that an adapter has yielded lives on when the adapter is
/// dropped. Only [`run`](Self::run) keeps the guard of its current attempt. If a stream is dropped
/// just before it yields a guard, its own documentation says what happens to the grant: with
/// [`Acquire`](crate::Acquire), the first waiter gets it and the attempt is not counted.
///
/// To use a stream again afterwards, pass it by reference: `(&mut events).outcome().await`.
pub trait LockStreamExt: Stream<Item = LockEvent> {
    /// Yields only the guards, one for each attempt that is granted to this stream.
    ///
    /// It skips all other events, errors included. To see them, call [`inspect`] first. It ends
    /// with the stream.
    ///
    /// [`inspect`]:
    /// https://docs.rs/futures/latest/futures/stream/trait.StreamExt.html#method.inspect
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the stream. The guards that it has yielded live on.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt;
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("report").in_memory(&memory).build().await?;
    /// let mut guards = worker.acquire().guards();
    /// let guard = guards.next().await.expect("a free key");
    /// assert_eq!(guard.attempt(), 1);
    /// guard.done().await?;
    /// assert!(guards.next().await.is_none());
    /// # Ok(())
    /// # }
    /// ```
    fn guards(self) -> Guards<Self>
    where
        Self: Sized,
    {
        Guards::new(self)
    }

    /// Drives the stream to its terminal event and returns the outcome of the participation.
    ///
    /// Use it for the rest of a stream whose guard you have taken, or while other processes work.
    /// Do not use it to watch a run: it takes part, and it drops a guard that it receives, which
    /// fails the attempt. [`LockingWorker::watch`](crate::LockingWorker::watch) does not take part.
    ///
    /// # Errors
    ///
    /// Returns the fatal [`Error`](crate::Error) that ended the stream. It skips other errors.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the stream. A stream that was passed by reference remains usable.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockEvent, LockStreamExt, LockingWorker, Memory, Outcome};
    /// use futures::StreamExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("report").in_memory(&memory).build().await?;
    /// let mut events = worker.acquire();
    /// if let Some(LockEvent::Acquired(guard)) = events.next().await {
    ///     guard.done_with("42").await?;
    /// }
    /// let Outcome::Completed(completed) = events.outcome().await? else { panic!() };
    /// assert_eq!(completed.result, "42");
    /// # Ok(())
    /// # }
    /// ```
    fn outcome(self) -> ToOutcome<Self>
    where
        Self: Sized,
    {
        ToOutcome::new(self)
    }

    /// Does the work in each attempt that is granted to this stream, and returns the outcome of the
    /// participation.
    ///
    /// The work receives its guard, and its result decides. `Ok` completes the run with the bytes
    /// that [`IntoResult`] returns. `Err` fails the attempt with that reason. When the lease is
    /// lost, the work is dropped at that moment, as in [`WorkGuard::run`]. During the work the
    /// stream is not polled.
    ///
    /// Without [`Builder::rejoin`](crate::Builder::rejoin) this stream makes at most one attempt.
    ///
    /// # Errors
    ///
    /// Returns the fatal [`Error`](crate::Error) that ended the stream. It skips other errors. A
    /// result longer than [`WorkGuard::MAX_RESULT`] is a failed attempt.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work and then settles its guard, even if a clone of the guard
    /// exists: the attempt fails with the reason "dropped". A settlement in flight continues.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory, Outcome};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let builder = LockingWorker::builder("report").in_memory(&memory);
    /// let worker = builder.rejoin(true).build().await?;
    /// let outcome = worker
    ///     .acquire()
    ///     .run(|guard| async move {
    ///         match guard.attempt() {
    ///             1 => Err("the first time never works"),
    ///             _ => Ok(()),
    ///         }
    ///     })
    ///     .await?;
    /// let Outcome::Completed(completed) = outcome else { panic!() };
    /// assert_eq!(completed.attempt, 2);
    /// # Ok(())
    /// # }
    /// ```
    fn run<W, F, T, E>(self, work: W) -> Run<Self, W, F>
    where
        Self: Sized,
        W: FnMut(Arc<WorkGuard>) -> F,
        F: Future<Output = Result<T, E>>,
        T: IntoResult,
        E: Display,
    {
        Run::new(self, work)
    }

    /// Yields every event except [`LockEvent::Status`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the stream. The guards that it has yielded live on.
    fn without_status(self) -> WithoutStatus<Self>
    where
        Self: Sized,
    {
        WithoutStatus::new(self)
    }

    /// Calls `inspect` with each status, and yields every event.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the stream. The guards that it has yielded live on.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory, StatusLevel};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("report")
    ///     .in_memory(&memory)
    ///     .status_level(StatusLevel::Verbose)
    ///     .build()
    ///     .await?;
    /// let events = worker.acquire().inspect_status(|status| println!("{status}"));
    /// events.run(|_guard| async { Ok::<_, std::io::Error>("done") }).await?;
    /// # Ok(())
    /// # }
    /// ```
    fn inspect_status<I>(self, inspect: I) -> InspectStatus<Self, I>
    where
        Self: Sized,
        I: FnMut(&Status),
    {
        InspectStatus::new(self, inspect)
    }

    /// Emits a `tracing` event at level `TRACE` for each event, and yields every event.
    ///
    /// [`Acquire`](crate::Acquire) has telemetry of its own, in spans. This adapter shows the
    /// events that arrive at one place of a composition. It does not record results.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the stream. The guards that it has yielded live on.
    #[cfg(feature = "tracing")]
    fn trace(self) -> Trace<Self>
    where
        Self: Sized,
    {
        Trace::new(self)
    }
}

impl<S: Stream<Item = LockEvent> + ?Sized> LockStreamExt for S {}
