//! A combinator for streams of jobs.

mod claim_each;

use futures::Stream;

use crate::worker::LockingWorker;

pub use claim_each::ClaimEach;

/// What a fleet can do with a stream of jobs that each of its processes has: ticks of a clock, messages, a list of
/// files.
pub trait ClaimExt: Stream {
    /// Works off each job once: yields those that this process has won, each with its guard.
    ///
    /// Each job is a run of its own, under the key that `key_of` gives it, on the worker's connections and its terms.
    /// Whoever wins it yields it; when the guard fails, or is lost, somebody of the fleet yields it again, up to
    /// `max_attempts`, and that may be this stream: so jobs are [`Clone`]. A job whose run is over, completed or given
    /// up by anybody, is passed over. The stream ends when that of the jobs has, and all of their runs are over.
    ///
    /// `key_of` is called once for each job, when there is a place for it, which may be late: let the job itself say
    /// what it is, and not the clock. The ticks of an [`IntervalStream`] are instants, which no two processes share: map
    /// them to the number of their time slot, as `examples/cron.rs` does.
    ///
    /// [`IntervalStream`]: https://docs.rs/tokio-stream/latest/tokio_stream/wrappers/struct.IntervalStream.html
    ///
    /// It wins no more jobs at a time than [`ClaimEach::concurrency`] says: one, unless told otherwise. What others
    /// work on is put off in favour of what is free, and looked at again when their leases end. While there is nothing
    /// else, it waits in line. A server that does not serve is waited for.
    ///
    /// Such a look at what others work on joins the line, and costs 5 commands at most: a claim, a subscription, a
    /// claim again once that stands, a withdrawal, and the end of the subscription.
    ///
    /// A job's outcome is remembered for the [retention](crate::Builder::retention), twice the lock timeout by default.
    /// After it the job is free for the next run, and whoever comes to it then does it again. So let the retention be
    /// longer than the time from when the first process comes to a job until the last does, or comes back to it. No
    /// process comes to a job, new or put off, before one of its places is free: that may take as long as your longest
    /// job, or several of them. What is longer than the whole stream takes is always long enough.
    ///
    /// # Errors
    ///
    /// [`ClaimError`](crate::ClaimError), with the job in it, when `key_of` gives no valid key or the server refuses
    /// it. The stream goes on with the next. No job comes back once its guard has been yielded: the guard's settlement
    /// says what the server refused, and the stream does not look at that job again.
    ///
    /// After [`Error::Stopped`](crate::Error::Stopped) nothing more can be won: each job that was taken from the stream
    /// and not yielded comes back with that error, and then it ends. `(&mut jobs).claim_each(…)` leaves you the rest.
    ///
    /// # Panics
    ///
    /// When it is first polled outside a Tokio runtime, or within one without its clock.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives up what it has claimed and not yielded, which is not counted, and its places in line. The
    /// guards that it has yielded live on.
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
