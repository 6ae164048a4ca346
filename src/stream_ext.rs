//! Combinators for streams of events: the trait, and an adapter a file.

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

use crate::event::{LockEvent, Status};
use crate::guard::WorkGuard;

pub use guards::Guards;
pub use inspect_status::InspectStatus;
pub use run::{IntoResult, Run};
pub use to_outcome::ToOutcome;
#[cfg(feature = "tracing")]
pub use trace::Trace;
pub use without_status::WithoutStatus;

/// What can be done with every stream of [`LockEvent`]s, beside what `StreamExt` of `futures` or `tokio-stream` does.
///
/// The adapters hold no guard: one that has been yielded lives on when the adapter is dropped. Only [`run`](Self::run)
/// keeps the guard that it works under. What becomes of a guard that a dropped stream was about to yield, its own docs
/// say; for [`Acquire`](crate::Acquire), it goes to the next in line and is not counted.
///
/// Take a stream by reference to go on with it afterwards: `(&mut events).outcome().await`.
pub trait LockStreamExt: Stream<Item = LockEvent> {
    /// Only the guards, of which there is one each time that it is our turn. Ends when the stream does.
    ///
    /// All other events are passed over, errors too: look at them before, with
    /// [`inspect`](https://docs.rs/futures/latest/futures/stream/trait.StreamExt.html#method.inspect).
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
    /// let guard = guards.next().await.expect("nobody else is there");
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

    /// How it ends for us: drives the stream to its terminal event.
    ///
    /// For the rest of a stream whose guard has been taken out, or one behind which others work. It is no way to look
    /// on: it takes part, and a guard that comes along is dropped, which fails the attempt;
    /// [`LockingWorker::watch`](crate::LockingWorker::watch) looks on.
    ///
    /// # Errors
    ///
    /// The fatal [`Error`](crate::Error) that ended the stream. Others are passed over.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the stream; taken by reference, the stream can be gone on with.
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

    /// Does the work each time that it is our turn, and says how it ends: drives the stream to its terminal event.
    ///
    /// The work is given its guard, and its result decides: `Ok` completes the run (with what
    /// [`IntoResult`] makes of it), `Err` fails the attempt for that reason. When the lease is lost, the work is
    /// dropped at that moment, as by [`WorkGuard::run`]. While it goes on, the stream is not polled.
    ///
    /// Without [`Builder::rejoin`](crate::Builder::rejoin) there is one attempt of ours at most.
    ///
    /// # Errors
    ///
    /// The fatal [`Error`](crate::Error) that ended the stream. Others are passed over. A result longer than
    /// [`WorkGuard::MAX_RESULT`] is a failed attempt.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work and then its guard, whoever else has a clone of it: the attempt fails with
    /// the reason "dropped". A settlement that is on its way goes its way.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory, Outcome};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("report").in_memory(&memory).rejoin(true).build().await?;
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

    /// Everything but [`LockEvent::Status`].
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

    /// Shows each status to `inspect`, and yields every event.
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

    /// Tells of each event as it passes here, at the level `TRACE`, and yields them all.
    ///
    /// [`Acquire`](crate::Acquire) tells of what happens by itself, in spans; this is to see what arrives at one place
    /// of a composition. A result is not told.
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
