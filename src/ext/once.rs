//! One computation and one result for a whole fleet, on top of the stream.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;

#[cfg(doc)]
use crate::client::Builder;
use crate::client::LockingWorker;
use crate::error::Error;
use crate::ext::{IntoResult, LockStreamExt};
use crate::guard::WorkGuard;
use crate::outcome::{Completed, GaveUp, Outcome};

/// Failure of [`LockingWorker::once`](crate::LockingWorker::once).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError {
    /// The run gave up: this is its last failure.
    #[error("given up after {} attempts: {}", .0.attempts, .0.reason)]
    GaveUp(GaveUp),
    /// The stream ended with this error.
    #[error(transparent)]
    Stream(#[from] Error),
    /// The result is not of the requested type: the participants disagree on the type.
    #[cfg(feature = "json")]
    #[error("the result is of another type")]
    Json(#[from] serde_json::Error),
}

impl LockingWorker {
    /// Computes a result once for the whole fleet and returns it to every caller.
    ///
    /// The holder executes the work with its guard; the other callers wait for the result. If the
    /// work fails, or if the guard is lost, the next waiter takes over, up to `max_attempts`. A
    /// lost guard also stops the work. The same caller may become the holder again. Until the
    /// retention ends, later callers get the result without any work.
    ///
    /// The work's future decides, even if a clone of the guard exists elsewhere: `Ok` completes the
    /// run, `Err` fails the attempt. The lease limits the time of the work, unless the worker was
    /// built with [`Builder::renew`]. In an outage of the server this method waits for its end.
    ///
    /// # Errors
    ///
    /// Returns [`OnceError::GaveUp`] with the reason of the last failure when no attempt is left,
    /// and [`OnceError::Stream`] when the server refuses. A result longer than
    /// [`WorkGuard::MAX_RESULT`] is a failed attempt.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue. If this caller is the holder, the drop stops the work,
    /// the attempt fails with the reason "dropped", and the next waiter takes over.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("rates").in_memory(&memory).build().await?;
    /// let rates = worker
    ///     .once(|guard| async move {
    ///         // Work that takes long, or that two processes must not do at once.
    ///         Ok::<_, std::io::Error>(format!("fetched at attempt {}", guard.attempt()))
    ///     })
    ///     .await?;
    /// assert_eq!(rates, "fetched at attempt 1");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn once<W, F, T, E>(&self, work: W) -> Result<Bytes, OnceError>
    where
        W: FnMut(Arc<WorkGuard>) -> F,
        F: Future<Output = Result<T, E>>,
        T: IntoResult,
        E: Display,
    {
        let completed = computed(self, work).await?;
        Ok(completed.result)
    }

    /// Computes a result once like [`once`](Self::once), for any type that JSON can carry.
    ///
    /// # Errors
    ///
    /// As for [`once`](Self::once), and [`OnceError::Json`] when the recorded result of another
    /// participant is not of this type. A result is a failed attempt if it cannot be read back from
    /// JSON. For example, JSON has no NaN and stores `null` instead.
    ///
    /// # Cancel safety
    ///
    /// As for [`once`](Self::once).
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("rates").in_memory(&memory).build().await?;
    /// let fetch = async |_| Ok::<_, std::io::Error>(vec![("EUR".to_owned(), 1.08)]);
    /// assert_eq!(worker.once_json(fetch).await?[0].1, 1.08);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "json")]
    pub async fn once_json<W, F, T, E>(&self, work: W) -> Result<T, OnceError>
    where
        W: FnMut(Arc<WorkGuard>) -> F,
        F: Future<Output = Result<T, E>>,
        T: serde::Serialize + serde::de::DeserializeOwned,
        E: Display,
    {
        computed_json(self, work).await
    }
}

/// Takes part until the run is over, and executes the work in each attempt that is granted to us.
async fn computed<W, F, T, E>(worker: &LockingWorker, work: W) -> Result<Completed, OnceError>
where
    W: FnMut(Arc<WorkGuard>) -> F,
    F: Future<Output = Result<T, E>>,
    T: IntoResult,
    E: Display,
{
    // A caller whose own attempt failed also needs the result, so its stream rejoins.
    let events = worker.acquire_with(true);
    match events.run(work).await? {
        Outcome::Completed(completed) => Ok(completed),
        Outcome::GaveUp(gave_up) => Err(OnceError::GaveUp(gave_up)),
        // A stream that rejoins ends with neither.
        Outcome::Failed(_) | Outcome::Left => Err(Error::Stopped.into()),
    }
}

#[cfg(feature = "json")]
async fn computed_json<W, F, T, E>(worker: &LockingWorker, mut work: W) -> Result<T, OnceError>
where
    W: FnMut(Arc<WorkGuard>) -> F,
    F: Future<Output = Result<T, E>>,
    T: serde::Serialize + serde::de::DeserializeOwned,
    E: Display,
{
    let work = |guard| {
        let working = work(guard);
        async {
            let result = working.await.map_err(|reason| reason.to_string())?;
            let text = serde_json::to_vec(&result).map_err(|error| error.to_string())?;
            // serde_json writes a NaN as null without an error. Only a result that can be read back
            // counts, since every participant must be able to read it.
            let read = serde_json::from_slice::<T>(&text);
            read.map(|_| text).map_err(|error| error.to_string())
        }
    };
    let completed = computed(worker, work).await?;
    Ok(serde_json::from_slice(&completed.result)?)
}
