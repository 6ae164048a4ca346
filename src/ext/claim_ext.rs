//! The public trait for streams of jobs.

mod claim_each;
mod error;

use futures::Stream;

use crate::client::LockingWorker;

pub use claim_each::ClaimEach;
pub use error::ClaimError;

/// Extension methods for a stream of jobs that every process of a fleet has, such as ticks of a
/// clock, messages or a list of files.
pub trait ClaimExt: Stream {
    /// Claims each job of this stream, so that the fleet does it once.
    ///
    /// The returned stream yields each job that this process has won, together with its guard.
    ///
    /// Each job is a run of its own, under the key that `key_of` returns. It uses the connections
    /// and the options of the worker. The stream of the process that wins the job yields it. If the
    /// guard fails or is lost, a stream of the fleet yields the job again, up to `max_attempts`.
    /// That may be this stream, so jobs are [`Clone`]. A job whose run is over is skipped, whether
    /// the run was completed or gave up. The stream ends when the stream of jobs has ended and all
    /// runs of its jobs are over.
    ///
    /// `key_of` is called once for each job, when a place for the job is free, which may be late.
    /// So derive the key from the job itself and not from the clock. The ticks of an
    /// [`IntervalStream`] are instants, which differ between processes: map them to the number of
    /// their time slot, as `examples/cron.rs` does.
    ///
    /// [`IntervalStream`]:
    ///   https://docs.rs/tokio-stream/latest/tokio_stream/wrappers/struct.IntervalStream.html
    ///
    /// The stream wins at most [`ClaimEach::concurrency`] jobs at a time, by default one. It
    /// prefers jobs that may be free. It postpones a job that another participant holds, and claims
    /// it again when that holder's lease ends. When no other job is left, it waits in the queue of
    /// a postponed job. In an outage of the server it waits for the end of the outage.
    ///
    /// Each claim of a postponed job joins its queue and costs at most 5 commands: a claim, a
    /// subscription, a second claim once the server has acknowledged the subscription, a
    /// withdrawal, and the end of the subscription.
    ///
    /// The server remembers the outcome of a job for the [retention](crate::Builder::retention), by
    /// default twice the lock timeout. After that, a process that comes to the job does it again.
    /// So choose a retention that is longer than the time between the first process that comes to a
    /// job and the last that comes, or comes back, to it. A process comes to a new or postponed job
    /// only when one of its places is free. That may take as long as your longest job, or several
    /// of them. A retention that is longer than the whole stream takes is always sufficient.
    ///
    /// # Errors
    ///
    /// Yields a [`ClaimError`](crate::ClaimError) with the job in it, when `key_of` returns an
    /// invalid key or the server refuses the job. The stream continues with the next job. It yields
    /// no error for a job whose guard it has yielded: if the server refuses such a job, the
    /// settlement of the guard reports it, and the stream does not claim the job again.
    ///
    /// After [`Error::Stopped`](crate::Error::Stopped) nothing more can be won. The stream returns
    /// each job that it has taken and not yielded with that error, and then ends. Use
    /// `(&mut jobs).claim_each(…)` to keep the jobs that it has not taken.
    ///
    /// # Panics
    ///
    /// Panics when it is first polled outside a Tokio runtime, or in a runtime without a timer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the stream gives back grants that it has not yielded, which do not count as
    /// attempts, and leaves the queues. The guards that it has yielded live on.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::{StreamExt, stream};
    /// use redis_locking_worker::{ClaimExt, LockingWorker, Memory};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("import")
    ///     .in_memory(&memory)
    ///     .retention(Duration::from_secs(24 * 3_600))
    ///     .build()
    ///     .await?;
    /// let files = stream::iter(["a.csv", "b.csv", "a.csv"]);
    /// let mut claimed = files.claim_each(&worker, |file| format!("import:{file}"));
    /// let mut imported = Vec::new();
    /// while let Some(claimed) = claimed.next().await {
    ///     let (file, guard) = claimed?;
    ///     imported.push(file);
    ///     guard.done().await?;
    /// }
    /// assert_eq!(imported, ["a.csv", "b.csv"]);
    /// # Ok(())
    /// # }
    /// ```
    fn claim_each<N, K>(self, worker: &LockingWorker, key_of: N) -> ClaimEach<Self, N>
    where
        Self: Sized,
        Self::Item: Clone,
        N: FnMut(&Self::Item) -> K,
        K: AsRef<[u8]>,
    {
        ClaimEach::new(self, worker.clone(), key_of)
    }
}

impl<S: Stream + ?Sized> ClaimExt for S {}
