//! The public handle of a holder to its granted attempt.
//!
//! A guard owns a `Grant`: the shared lease and a way to send messages to the hub. It owns no
//! task, timer or boxed future. Dropped, it sends `Settle`.
//!
//! The guard ends its lease locally before the message of a settlement leaves, and reports to the
//! keeper itself, at its first use, that the lease is to be renewed.
//!
//! `done()` asks the server even if the lease was lost: the server decides, and while no other
//! worker has taken over, it may still complete the run.

mod error;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::error::LeaseLost;
use crate::hub::{Grant, NotSettled};
use crate::key::Key;
use crate::lease::Lease;
use crate::outcome::{self, Completed, Failed, GaveUp, PreviousAttempt, Reason};
use crate::protocol::{Failure, GRAIN, Outcome, millis};
use crate::store::FencedError;
use crate::store::values::{self, ClientError, FromValue, MultipleKeys, MultipleValues};
use crate::telemetry::Within;
pub use error::{RenewError, SettleError};

/// The RAII handle to a granted attempt: the right to do the work, for as long as its lease lasts.
///
/// Complete the work with [`done`](Self::done), or report a failure with [`fail`](Self::fail).
/// Dropping the guard is a failure too: the attempt counts, and a waiter takes over at once. The
/// reason is "panicked" while the thread is unwinding. Otherwise it is the cause of the loss if the
/// guard was [lost](Self::lost) before, and else "dropped".
///
/// Dropping is synchronous, never blocks and never panics, on any thread, inside a runtime or not.
/// It leaves a message for the worker's task, which settles the attempt on the server. If the
/// runtime of that task has shut down, the thread that renews leases settles it, provided that the
/// worker renews. Otherwise, and when the process dies, the end of the lease does so.
///
/// # Validity
///
/// The server measures the lease: after it ends, the server may grant the work to another
/// participant. This process's clock ends the lease before that, whether the server can be reached
/// or not. Then [`is_valid`](Self::is_valid) turns false, [`lost`](Self::lost) resolves, the
/// [`cancellation_token`](Self::cancellation_token) is cancelled, and [`run`](Self::run) stops the
/// work. A lost guard stays lost, but its attempt is not over: as long as there is no successor,
/// [`done`](Self::done) may still complete the work.
///
/// A process can pause at any point, however, and continue long after its lease has ended. Protect
/// writes that must never happen twice by the [`fencing_token`](Self::fencing_token), or make them
/// with [`fenced`](Self::fenced).
///
/// # Renewal
///
/// With [`Builder::renew`](crate::Builder::renew), the library restarts the lease periodically.
/// Renewal starts with the first call of any method of the guard. It ends when the guard is
/// settled, dropped or lost, or after [`Builder::max_hold`](crate::Builder::max_hold).
#[must_use = "dropping the guard fails the attempt"]
pub struct WorkGuard {
    grant: Grant,
    settled: AtomicBool,
}

impl WorkGuard {
    /// Maximum length of a result, in bytes. The server sends a result to every waiting process.
    pub const MAX_RESULT: usize = 1 << 20;

    /// Maximum length of a checkpoint, in bytes. Every renewal and every message carries it.
    pub const MAX_CHECKPOINT: usize = 64 << 10;

    /// Maximum length of a reason, in bytes. A longer reason is cut at a character boundary.
    pub const MAX_REASON: usize = 1 << 10;

    pub(crate) fn new(grant: Grant) -> Self {
        grant.give();
        Self {
            grant,
            settled: AtomicBool::new(false),
        }
    }

    /// Returns the lease and marks the guard as in use, which starts its renewal. Every method that
    /// a holder calls does so.
    fn lease(&self) -> &Lease {
        self.grant.in_use();
        &self.grant.lease
    }

    /// Returns the lease for telemetry, which does not count as a use of the guard.
    #[cfg(feature = "tracing")]
    pub(crate) fn told(&self) -> &Lease {
        &self.grant.lease
    }

    /// Returns the key of the work.
    pub fn key(&self) -> &Key {
        &self.lease().key
    }

    /// Returns the number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.lease().attempt
    }

    /// Whether the run gives up if this attempt fails.
    pub fn is_last_attempt(&self) -> bool {
        let lease = self.lease();
        lease.attempt >= lease.max_attempts
    }

    /// Returns the previous attempt with its checkpoint; `None` if this is the first of the run.
    pub fn previous(&self) -> Option<&PreviousAttempt> {
        self.lease().previous.as_ref()
    }

    /// Returns the fencing token: a number that is higher than that of every earlier grant of this
    /// key.
    ///
    /// Pass it along with every write to a store of your own, and let that store reject a number
    /// lower than the highest that it has seen. A holder that paused past its lease then cannot
    /// overwrite the work of its successor ([Kleppmann 2016]).
    ///
    /// The token rises across runs. It rises even after the server has lost the record, because it
    /// is at least the server's time in µs. It does not rise in that case if the server's clock
    /// was set back, or if the clock of a replica that took over is behind.
    ///
    /// [The page on fencing] shows what happens without it.
    ///
    /// [The page on fencing]:
    ///   https://docs.rs/crate/redis-locking-worker/latest/source/docs/fencing.md
    /// [Kleppmann 2016]:
    ///   https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html
    pub fn fencing_token(&self) -> u64 {
        self.lease().fence
    }

    /// Returns the rest of the lease by this process's clock, less the
    /// [`margin`](crate::Builder::margin).
    ///
    /// It counts from the time before the request for the lease was sent. So the lease ends here
    /// before it ends on the server.
    pub fn remaining(&self) -> Duration {
        self.lease().remaining()
    }

    /// Whether the lease still excludes every other worker. Once it is false it stays false.
    ///
    /// While it is true, the server has not granted the work to another worker, unless the run was
    /// [cleared](crate::LockingWorker::clear).
    ///
    /// The check counts the time in which the machine slept, on Linux, Android and macOS. On other
    /// systems it counts that time only if the monotonic clock does. The wall clock reveals the
    /// pause of a virtual machine: if it has gained more than the margin on the other clock, the
    /// gain counts as time that has passed.
    pub fn is_valid(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// Checks that the work may continue: an [`is_valid`](Self::is_valid) that returns an error.
    ///
    /// Call it before each effect.
    ///
    /// # Errors
    ///
    /// Returns the [`LeaseLost`] with the cause if the guard is lost, which is final.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LeaseLost, WorkGuard};
    ///
    /// async fn send(guard: &WorkGuard, invoices: Vec<String>) -> Result<(), LeaseLost> {
    ///     for invoice in invoices {
    ///         guard.check()?;
    ///         println!("{invoice}");
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn check(&self) -> Result<(), LeaseLost> {
        let lease = self.lease();
        if lease.remaining().is_zero() {
            // `remaining` has set the reason: a guard exists, so zero expires its lease.
            return Err(lease.why_lost().cloned().unwrap_or(LeaseLost::Expired));
        }
        Ok(())
    }

    /// Resolves with the cause when the guard is lost, settled or dropped.
    ///
    /// The future outlives the guard, and another task can await it. It needs no answer from the
    /// server: without one it resolves before the lease ends there, by the
    /// [`margin`](crate::Builder::margin). If the guard is renewed, the process only needs CPU time
    /// for that; otherwise a runtime must drive its timers. After the machine slept, the future
    /// resolves within a second.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub fn lost(&self) -> impl Future<Output = LeaseLost> + Send + use<> {
        self.grant.in_use();
        let lease = self.grant.lease.clone();
        async move { lease.lost().await }
    }

    /// Returns a token that is cancelled when the guard is lost, settled or dropped.
    ///
    /// It is meant for work that spans several tasks. Cancelling it does not affect the guard.
    ///
    /// # Examples
    ///
    /// ```
    /// # use futures::StreamExt;
    /// # use redis_locking_worker::{LockEvent, LockingWorker, Memory};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let worker = LockingWorker::builder("report").in_memory(&Memory::new()).build().await?;
    /// # let Some(LockEvent::Acquired(guard)) = worker.acquire().next().await else { panic!() };
    /// let token = guard.cancellation_token();
    /// let part = tokio::spawn(async move {
    ///     token.cancelled().await;
    ///     "stopped"
    /// });
    /// drop(guard);
    /// assert_eq!(part.await?, "stopped");
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancellation_token(&self) -> CancellationToken {
        self.lease().cancellation()
    }

    /// Polls the work until it ends, and drops it at once when the guard is lost.
    ///
    /// # Errors
    ///
    /// Returns the [`LeaseLost`] with the cause. The guard still exists: dropping it fails the
    /// attempt, unless another participant has taken over.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work and leaves the guard as it is.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use futures::StreamExt;
    /// # use redis_locking_worker::{LeaseLost, LockEvent, LockingWorker, Memory};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let worker = LockingWorker::builder("report").in_memory(&Memory::new()).build().await?;
    /// # let Some(LockEvent::Acquired(guard)) = worker.acquire().next().await else { panic!() };
    /// // The lease is 5 s, and nothing renews it.
    /// let work = tokio::time::sleep(Duration::from_secs(60));
    /// assert!(matches!(guard.run(work).await, Err(LeaseLost::Expired)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LeaseLost> {
        tokio::select! {
            // The loss is polled first, so that the work is not polled again after it.
            biased;
            lost = self.lost() => Err(lost),
            output = self.begin(|| work) => Ok(output),
        }
    }

    /// Extends the lease to end at least this long from now, and never shortens it.
    ///
    /// The value is rounded up to whole milliseconds.
    ///
    /// # Errors
    ///
    /// * [`RenewError::Lease`] if the value is shorter than 1 ms or longer than the rest of
    ///   [`Builder::max_hold`](crate::Builder::max_hold).
    /// * [`RenewError::Lost`] if the guard is lost. A guard is also lost if the server does not
    ///   answer until the lease ends.
    /// * [`RenewError::Refused`] if the server refuses.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the extension continues even if the future is dropped. The drop only loses the
    /// answer.
    pub async fn extend(&self, lease: Duration) -> Result<(), RenewError> {
        let (min, max) = (GRAIN, self.lease().hold_remaining());
        if lease < min || lease > max {
            return Err(RenewError::Lease {
                value: lease,
                min,
                max,
            });
        }
        let renewed = self.grant.renew(Some(millis(lease)), None).await;
        Ok(renewed?)
    }

    /// Saves a checkpoint for the next attempt, and restarts the lease.
    ///
    /// If this attempt fails, the next holder finds the last checkpoint of the run in
    /// [`previous`](Self::previous).
    ///
    /// # Errors
    ///
    /// [`RenewError::CheckpointTooLarge`] if it is longer than
    /// [`MAX_CHECKPOINT`](Self::MAX_CHECKPOINT); otherwise as for [`extend`](Self::extend).
    ///
    /// # Cancel safety
    ///
    /// Once polled, the request continues even if the future is dropped. The drop only loses the
    /// answer.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory, Outcome};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let builder = LockingWorker::builder("import").in_memory(&memory);
    /// let worker = builder.rejoin(true).build().await?;
    /// let import = worker.acquire().run(|guard| async move {
    ///     match guard.previous() {
    ///         None => {
    ///             guard.checkpoint("up to line 1000").await.map_err(|error| error.to_string())?;
    ///             Err("disk full".to_owned())
    ///         }
    ///         Some(previous) => {
    ///             assert_eq!(previous.reason.to_string(), "disk full");
    ///             Ok(previous.checkpoint.clone()) // resumes from there
    ///         }
    ///     }
    /// });
    /// let Outcome::Completed(completed) = import.await? else { panic!() };
    /// assert_eq!((completed.attempt, &completed.result[..]), (2, &b"up to line 1000"[..]));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn checkpoint(&self, checkpoint: impl Into<Bytes>) -> Result<(), RenewError> {
        self.grant.in_use();
        let checkpoint = checkpoint.into();
        if checkpoint.len() > Self::MAX_CHECKPOINT {
            return Err(RenewError::CheckpointTooLarge {
                len: checkpoint.len(),
                max: Self::MAX_CHECKPOINT,
            });
        }
        Ok(self.grant.renew(None, Some(checkpoint)).await?)
    }

    /// Executes a Lua script on the server if this guard still holds the work.
    ///
    /// The check and the script are one atomic step, so no other worker can take over in between.
    /// The script sees its own `KEYS` and `ARGV`, as with `EVAL`. It writes to the server that has
    /// the lock. In a cluster, its keys must be in the slot of the lock: give both a common hash
    /// tag. The script executes even after the lease has ended, as long as there is no successor.
    /// It is sent once: if its answer is lost, it may have executed.
    ///
    /// # Errors
    ///
    /// Returns a [`FencedError`]. The script may have written something only after `Script` and
    /// `Unknown`, and after `Type` if the answer could not be converted.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the script is sent even if the future is dropped; the drop loses the answer. If
    /// the guard is settled or dropped before the script reaches the server, the script does not
    /// execute.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{FencedError, WorkGuard};
    ///
    /// async fn add(guard: &WorkGuard, amount: i64) -> Result<i64, FencedError> {
    ///     guard
    ///         .fenced("return redis.call('INCRBY', KEYS[1], ARGV[1])", "total", amount)
    ///         .await
    /// }
    /// ```
    pub async fn fenced<R, K, A>(&self, script: &str, keys: K, args: A) -> Result<R, FencedError>
    where
        R: FromValue,
        K: Into<MultipleKeys> + Send,
        A: TryInto<MultipleValues> + Send,
        A::Error: Into<ClientError> + Send,
    {
        self.grant.in_use();
        let (keys, args) = (values::keys(keys), values::arguments(args)?);
        let ran = self.grant.fenced(script.to_owned(), keys, args);
        values::convert(ran.await?)
    }

    /// Completes the work for the whole fleet.
    ///
    /// `Ok` means that the server recorded this guard's completion of the run. That is possible
    /// even after the lease has ended, as long as there is no successor.
    ///
    /// # Errors
    ///
    /// * [`SettleError::Lost`] if another participant took over or the record is gone.
    /// * [`SettleError::Refused`] if the server refuses.
    /// * [`SettleError::Unknown`] if the server does not answer until the lease ends, or for 5 s if
    ///   that is later.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before its first poll, it drops the guard and the attempt fails.
    /// After the first poll the completion continues, and the drop only loses the answer.
    pub async fn done(self) -> Result<(), SettleError> {
        self.settle(Outcome::Done(Bytes::new())).await
    }

    /// Completes the work with a result, which every participant receives in
    /// [`Completed`](crate::Completed).
    ///
    /// # Errors
    ///
    /// As for [`done`](Self::done), and [`SettleError::ResultTooLarge`] with the guard in it if the
    /// result is longer than [`MAX_RESULT`](Self::MAX_RESULT).
    ///
    /// # Cancel safety
    ///
    /// As for [`done`](Self::done).
    pub async fn done_with(self, result: impl Into<Bytes>) -> Result<(), SettleError> {
        let result = result.into();
        if result.len() > Self::MAX_RESULT {
            return Err(SettleError::ResultTooLarge {
                len: result.len(),
                max: Self::MAX_RESULT,
                guard: Box::new(self),
            });
        }
        self.settle(Outcome::Done(result)).await
    }

    /// Fails the attempt with a reason. A waiter takes over if attempts are left.
    ///
    /// # Errors
    ///
    /// As for [`done`](Self::done). In any case the attempt ends with its lease.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before its first poll, it drops the guard, which fails the attempt
    /// without the reason. After the first poll the settlement continues, and the drop only loses
    /// the answer.
    pub async fn fail(self, reason: impl Into<String>) -> Result<(), SettleError> {
        self.settle(failure(reason.into())).await
    }

    /// Fails the run: no other attempt is made, even if attempts are left.
    ///
    /// # Errors
    ///
    /// As for [`done`](Self::done).
    ///
    /// # Cancel safety
    ///
    /// As for [`fail`](Self::fail).
    pub async fn fail_permanently(self, reason: impl Into<String>) -> Result<(), SettleError> {
        let reason = shorten(reason.into());
        self.settle(Outcome::FailPermanently(reason)).await
    }

    /// Hands the work off to the next participant without counting the attempt.
    ///
    /// Use it when this process is about to end. The successor makes the attempt again.
    ///
    /// # Errors
    ///
    /// As for [`done`](Self::done).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before its first poll, it drops the guard, which fails the attempt.
    /// After the first poll the settlement continues, and the drop only loses the answer.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt;
    /// use redis_locking_worker::{LockEvent, LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let builder = LockingWorker::builder("report").in_memory(&memory).max_attempts(1);
    /// let (leaving, staying) = (builder.clone().build().await?, builder.build().await?);
    /// let mut events = leaving.acquire();
    /// let Some(LockEvent::Acquired(guard)) = events.next().await else { panic!() };
    ///
    /// // On SIGTERM:
    /// guard.hand_off().await?;
    /// drop(events);
    /// leaving.close().await;
    ///
    /// let Some(LockEvent::Acquired(guard)) = staying.acquire().next().await else { panic!() };
    /// assert_eq!((guard.attempt(), guard.is_last_attempt()), (1, true));
    /// guard.done().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn hand_off(self) -> Result<(), SettleError> {
        self.settle(Outcome::HandOff).await
    }

    /// Starts the work within the grant's span and returns a future that stays within it.
    pub(crate) fn begin<F>(&self, work: impl FnOnce() -> F) -> Within<F> {
        self.grant.lease.work.around(work)
    }

    /// Settles the grant and waits for the server's answer.
    async fn settle(&self, outcome: Outcome) -> Result<(), SettleError> {
        match self.send(outcome).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(SettleError::Stopped),
        }
    }

    /// Returns the outcome of our participation if the server records this settlement.
    pub(crate) fn outcome_of(&self, settlement: &Outcome) -> outcome::Outcome {
        let lease = &self.grant.lease;
        let reason = match settlement {
            Outcome::Done(result) => {
                return outcome::Outcome::Completed(Completed {
                    holder: lease.terms.label.to_string(),
                    attempt: lease.attempt,
                    result: result.clone(),
                });
            }
            Outcome::HandOff => Reason::HandedOff,
            Outcome::Fail(Failure::Dropped) => Reason::Dropped,
            Outcome::Fail(Failure::Panicked) => Reason::Panicked,
            Outcome::Fail(Failure::Reason(text)) | Outcome::FailPermanently(text) => {
                Reason::Failed(text.clone())
            }
        };
        let is_last = lease.attempt >= lease.max_attempts;
        let counts = matches!(settlement, Outcome::Fail(_)) && is_last;
        match counts || matches!(settlement, Outcome::FailPermanently(_)) {
            true => outcome::Outcome::GaveUp(GaveUp {
                attempts: lease.attempt,
                holder: lease.terms.label.to_string(),
                reason,
            }),
            false => outcome::Outcome::Failed(Failed {
                attempt: lease.attempt,
                reason,
            }),
        }
    }

    /// Sends the settlement even if the caller drops the answer. Only the first settlement counts.
    pub(crate) fn send(&self, outcome: Outcome) -> oneshot::Receiver<Result<(), NotSettled>> {
        let (reply, answer) = oneshot::channel();
        // Relaxed: it matters only that one of the calls is the first.
        if self.settled.swap(true, Ordering::Relaxed) {
            let _ = reply.send(Err(NotSettled::Lost(LeaseLost::Settled)));
        } else {
            self.grant.settle(outcome, Some(reply));
        }
        answer
    }

    /// Fails the attempt, without an answer, if the guard has not been settled.
    pub(crate) fn abandon(&self) {
        if !self.settled.swap(true, Ordering::Relaxed) {
            let failure = match (std::thread::panicking(), self.grant.lease.why_lost()) {
                (true, _) => Failure::Panicked,
                // The loss came before the drop, so it is the reason, if the server accepts the
                // settlement at all.
                (false, Some(why)) => Failure::Reason(why.to_string()),
                (false, None) => Failure::Dropped,
            };
            self.grant.settle(Outcome::Fail(failure), None);
        }
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Reads the lease directly: a method of the guard would mark it as in use and start its
        // renewal.
        let lease = &self.grant.lease;
        f.debug_struct("WorkGuard")
            .field("key", &lease.key)
            .field("attempt", &lease.attempt)
            .field("fencing_token", &lease.fence)
            .field("remaining", &lease.remaining())
            .finish_non_exhaustive()
    }
}

/// Returns a failed attempt with this reason, cut to the maximum length.
pub(crate) fn failure(reason: String) -> Outcome {
    Outcome::Fail(Failure::Reason(shorten(reason)))
}

fn shorten(mut reason: String) -> String {
    let end = (0..=WorkGuard::MAX_REASON)
        .rev()
        .find(|at| reason.is_char_boundary(*at));
    if reason.len() > WorkGuard::MAX_REASON {
        reason.truncate(end.unwrap_or(0));
    }
    reason
}
