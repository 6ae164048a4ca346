//! The work in one's hands.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fred::error::ErrorKind;
use fred::types::{FromValue, MultipleKeys, MultipleValues, Value};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::error::{FencedError, LeaseLost, RenewError, SettleError};
use crate::event::{self, Completed, Failed, GaveUp, PreviousAttempt, Reason};
use crate::hub::Grant;
use crate::lease::Lease;
use crate::store::key::Key;
use crate::store::{Failure, GRAIN, Outcome, millis};
use crate::telemetry::Within;

/// The right to do the work, for as long as its lease lasts.
///
/// Complete the work with [`done`](Self::done), or report that it failed with
/// [`fail`](Self::fail). Dropping the guard is a failure too, with the reason "dropped", or
/// "panicked" while the thread is unwinding, or why it was [lost](Self::lost) if it was: the attempt
/// is counted, and another participant takes over at once.
///
/// Dropping is synchronous, never blocks and never panics, on any thread, inside a runtime or not:
/// it leaves a message for the worker's task, which tells the server. Once that task's runtime has
/// shut down, the thread that renews leases tells it, if the worker renews; otherwise, and when the
/// process dies, the end of the lease does the same.
///
/// # Validity
///
/// The lease is the server's: after it ends, another participant may be granted the work. Before
/// that, on this process's clock and whether the server can be reached or not,
/// [`is_valid`](Self::is_valid) turns false, [`lost`](Self::lost) resolves, the
/// [`cancellation_token`](Self::cancellation_token) is cancelled, and [`run`](Self::run) stops the
/// work. That is for good, but it is not the end of the attempt: as long as nobody took over,
/// [`done`](Self::done) may still complete the work.
///
/// A process can be paused at any point, though, and go on when its lease is long over. What must
/// never be written twice has to be protected by the [`fencing_token`](Self::fencing_token), or
/// written by [`fenced`](Self::fenced).
///
/// # Renewal
///
/// With [`Builder::renew`](crate::Builder::renew) the lease is restarted again and again, from the
/// first call of any method here until the guard is settled, dropped or lost, or has been held for
/// [`Builder::max_hold`](crate::Builder::max_hold).
#[must_use = "dropping the guard fails the attempt"]
pub struct WorkGuard {
    grant: Grant,
    settled: AtomicBool,
}

impl WorkGuard {
    /// The longest result, in bytes: every waiting process is sent it.
    pub const MAX_RESULT: usize = 1 << 20;

    /// The longest checkpoint, in bytes: every renewal and every message carries it.
    pub const MAX_CHECKPOINT: usize = 64 << 10;

    /// The longest reason, in bytes; a longer one is cut at a character's end.
    pub const MAX_REASON: usize = 1 << 10;

    pub(crate) fn new(grant: Grant) -> Self {
        grant.give();
        Self {
            grant,
            settled: AtomicBool::new(false),
        }
    }

    /// Whatever is asked of the guard shows that somebody works with it.
    fn lease(&self) -> &Lease {
        self.grant.in_use();
        &self.grant.lease
    }

    /// The lease, for whoever only tells of it: that is no use of the guard.
    #[cfg(feature = "tracing")]
    pub(crate) fn told(&self) -> &Lease {
        &self.grant.lease
    }

    /// Whose work it is.
    pub fn key(&self) -> &Key {
        &self.lease().key
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.lease().attempt
    }

    /// Whether the run is given up if this attempt fails.
    pub fn is_last_attempt(&self) -> bool {
        let lease = self.lease();
        lease.attempt >= lease.max_attempts
    }

    /// The attempt before this one, with what it left behind; `None` if this is the run's first.
    pub fn previous(&self) -> Option<&PreviousAttempt> {
        self.lease().previous.as_ref()
    }

    /// A number that is higher than that of every earlier holder of this key.
    ///
    /// Pass it along with every write to a store of your own, and have that store refuse a number
    /// lower than the highest it has seen: then a holder that was paused past its lease cannot
    /// overwrite its successor's work ([Kleppmann 2016]). It rises across runs, and even after the
    /// server has lost the record, because it is at least the server's clock in µs; unless that is set back, or
    /// the clock of a server that follows it is behind.
    ///
    /// [The page on fencing] shows what happens without.
    ///
    /// [The page on fencing]: https://docs.rs/crate/redis-locking-worker/latest/source/docs/fencing.md
    /// [Kleppmann 2016]: https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html
    pub fn fencing_token(&self) -> u64 {
        self.lease().fence
    }

    /// What is left of the lease by this process's clock, less a margin for its drift.
    ///
    /// It is counted from before the lease was asked for, so that it ends here before it ends on
    /// the server.
    pub fn remaining(&self) -> Duration {
        self.lease().remaining()
    }

    /// Whether no other worker can have been granted the work yet. Once this is false it stays so.
    ///
    /// It counts the time for which the machine slept, on Linux, Android and macOS; elsewhere only
    /// as far as the system's monotonic clock does. A virtual machine that was paused is told by
    /// its wall clock: by how much that has gone ahead of the other clock, if by more than the
    /// margin, is time that has passed.
    pub fn is_valid(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// Whether the work may go on: for before each effect, where an error is easier to pass on than
    /// a flag.
    ///
    /// # Errors
    ///
    /// [`LeaseLost`], which says why it may not. That is for good.
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
            // Of a guard that has nothing left the reason is known.
            return Err(lease.why_lost().cloned().unwrap_or(LeaseLost::Expired));
        }
        Ok(())
    }

    /// Resolves when the guard is lost, settled or dropped, and says why.
    ///
    /// It outlives the guard, and can be awaited in another task. It needs no answer from the
    /// server: without one it resolves earlier than the lease ends there, by the
    /// [`margin`](crate::Builder::margin). For a guard that is renewed that takes no more than CPU
    /// for the process; for another, a runtime that runs its timers. After the machine slept it
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

    /// A token that is cancelled when the guard is lost, settled or dropped, for work that is spread
    /// over tasks. Cancelling it does nothing to the guard.
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

    /// Runs the work, and drops it at the moment when the guard is lost.
    ///
    /// # Errors
    ///
    /// [`LeaseLost`], which says why. The guard is still there: dropping it is a failure, unless
    /// somebody else has taken over.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work, and leaves the guard as it is.
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
            // Once it is lost the work is not polled again.
            biased;
            lost = self.lost() => Err(lost),
            output = self.begin(|| work) => Ok(output),
        }
    }

    /// Has the lease last this long from now on at least; it is never shortened. Rounded up to whole
    /// milliseconds.
    ///
    /// # Errors
    ///
    /// [`RenewError::Lease`] when it is shorter than 1 ms or longer than what is left of
    /// [`Builder::max_hold`](crate::Builder::max_hold), [`RenewError::Lost`] when the guard is lost,
    /// which it also is if the server gives no answer until the lease ends, [`RenewError::Refused`]
    /// when the server refuses.
    ///
    /// # Cancel safety
    ///
    /// Once polled it goes its way, and dropping the future only loses its answer.
    pub async fn extend(&self, lease: Duration) -> Result<(), RenewError> {
        let (min, max) = (GRAIN, self.lease().hold_remaining());
        if lease < min || lease > max {
            return Err(RenewError::Lease {
                value: lease,
                min,
                max,
            });
        }
        self.grant.renew(Some(millis(lease)), None).await
    }

    /// Leaves this for whoever makes the next attempt, should this one fail: it finds the last
    /// checkpoint of the run in [`previous`](Self::previous). Restarts the lease.
    ///
    /// # Errors
    ///
    /// [`RenewError::CheckpointTooLarge`] when it is longer than
    /// [`MAX_CHECKPOINT`](Self::MAX_CHECKPOINT); otherwise as [`extend`](Self::extend).
    ///
    /// # Cancel safety
    ///
    /// Once polled it goes its way, and dropping the future only loses its answer.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory, Outcome};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("import").in_memory(&memory).rejoin(true).build().await?;
    /// let import = worker.acquire().run(|guard| async move {
    ///     match guard.previous() {
    ///         None => {
    ///             guard.checkpoint("up to line 1000").await.map_err(|error| error.to_string())?;
    ///             Err("disk full".to_owned())
    ///         }
    ///         Some(previous) => {
    ///             assert_eq!(previous.reason.to_string(), "disk full");
    ///             Ok(previous.checkpoint.clone()) // goes on from there
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
        self.grant.renew(None, Some(checkpoint)).await
    }

    /// Runs a Lua script on the server if this guard still holds the work, in one step: nobody can
    /// take over in between.
    ///
    /// It sees its own `KEYS` and `ARGV`, as with `EVAL`. Whatever it writes is on the same server as
    /// the lock; in a cluster its keys must be in the lock's slot, which a common hash tag sees to. It
    /// holds even past the end of the lease, as long as nobody took over. It is sent once: a script
    /// whose answer is lost may have run.
    ///
    /// # Errors
    ///
    /// [`FencedError`]; of its variants only `Script` and `Unknown` mean that the script may have
    /// written anything, and `Type` if it is the answer that cannot be converted.
    ///
    /// # Cancel safety
    ///
    /// Once polled it goes its way, and dropping the future loses its answer. If the guard is settled
    /// or dropped before the script has got there, it does not run.
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
        A::Error: Into<fred::error::Error> + Send,
    {
        self.grant.in_use();
        let args = args.try_into();
        let args = arguments(args.map_err(|error| FencedError::Type(error.into()))?)?;
        let keys = keys.into().inner().into_iter().map(Value::from).collect();
        let ran = self.grant.fenced(script.to_owned(), keys, args);
        ran.await?.convert().map_err(FencedError::Type)
    }

    /// Completes the work for the whole fleet.
    ///
    /// `Ok` means that the server's record says that this guard completed the run. It may, even
    /// past the end of the lease, as long as nobody took over.
    ///
    /// # Errors
    ///
    /// [`SettleError::Lost`] when somebody else took over or the record has gone,
    /// [`SettleError::Refused`] when the server refuses, [`SettleError::Unknown`] when it gives no
    /// answer until the lease ends, or for 5 s if that is later.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll, the future drops the guard and the attempt fails. After
    /// that the completion goes its way, and only its answer is lost.
    pub async fn done(self) -> Result<(), SettleError> {
        self.settle(Outcome::Done(Bytes::new())).await
    }

    /// Completes the work and shares its result with every participant, in
    /// [`Completed`](crate::Completed).
    ///
    /// # Errors
    ///
    /// As [`done`](Self::done); and [`SettleError::ResultTooLarge`] with the guard in it when the
    /// result is longer than [`MAX_RESULT`](Self::MAX_RESULT).
    ///
    /// # Cancel safety
    ///
    /// As [`done`](Self::done).
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

    /// Fails the attempt for a reason; another participant takes over, if attempts are left.
    ///
    /// # Errors
    ///
    /// As [`done`](Self::done). The attempt ends with its lease in any case.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll, the future drops the guard, which fails the attempt without
    /// the reason. After that it goes its way, and only its answer is lost.
    pub async fn fail(self, reason: impl Into<String>) -> Result<(), SettleError> {
        self.settle(failure(reason.into())).await
    }

    /// Fails the run: no other attempt is made, however many are left.
    ///
    /// # Errors
    ///
    /// As [`done`](Self::done).
    ///
    /// # Cancel safety
    ///
    /// As [`fail`](Self::fail).
    pub async fn fail_permanently(self, reason: impl Into<String>) -> Result<(), SettleError> {
        let reason = shorten(reason.into());
        self.settle(Outcome::FailPermanently(reason)).await
    }

    /// Gives the work to the next in line, as when this process is about to end. The attempt is
    /// not counted: the successor makes it again.
    ///
    /// # Errors
    ///
    /// As [`done`](Self::done).
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll, the future drops the guard, which fails the attempt. After
    /// that it goes its way, and only its answer is lost.
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

    /// The work, begun and going on within the grant's span.
    pub(crate) fn begin<F>(&self, work: impl FnOnce() -> F) -> Within<F> {
        self.grant.lease.work.around(work)
    }

    /// Ends it; the answer is the server's.
    async fn settle(&self, outcome: Outcome) -> Result<(), SettleError> {
        self.send(outcome)
            .await
            .unwrap_or(Err(SettleError::Stopped))
    }

    /// How our part in the run ends if the server records this.
    pub(crate) fn outcome_of(&self, settlement: &Outcome) -> event::Outcome {
        let lease = &self.grant.lease;
        let reason = match settlement {
            Outcome::Done(result) => {
                return event::Outcome::Completed(Completed {
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
            true => event::Outcome::GaveUp(GaveUp {
                attempts: lease.attempt,
                holder: lease.terms.label.to_string(),
                reason,
            }),
            false => event::Outcome::Failed(Failed {
                attempt: lease.attempt,
                reason,
            }),
        }
    }

    /// Ends it, whether or not anybody waits for the answer. Only the first end counts.
    pub(crate) fn send(&self, outcome: Outcome) -> oneshot::Receiver<Result<(), SettleError>> {
        let (reply, answer) = oneshot::channel();
        if self.settled.swap(true, Ordering::Relaxed) {
            let _ = reply.send(Err(LeaseLost::Settled.into()));
        } else {
            self.grant.settle(outcome, Some(reply));
        }
        answer
    }

    /// Ends it without waiting for an answer, if it has not been settled.
    pub(crate) fn abandon(&self) {
        if !self.settled.swap(true, Ordering::Relaxed) {
            let failure = match (std::thread::panicking(), self.grant.lease.why_lost()) {
                (true, _) => Failure::Panicked,
                // If the server can still be told, it was not the drop.
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
        // Not by the methods: a guard that is only logged is not in use.
        let lease = &self.grant.lease;
        f.debug_struct("WorkGuard")
            .field("key", &lease.key)
            .field("attempt", &lease.attempt)
            .field("fencing_token", &lease.fence)
            .field("remaining", &lease.remaining())
            .finish_non_exhaustive()
    }
}

/// What can be sent. A null is none of it: the server ends the connection that all guards share.
fn arguments(args: Value) -> Result<Vec<Value>, FencedError> {
    let args = match args {
        Value::Null => return Ok(Vec::new()),
        Value::Array(args) => args,
        arg => vec![arg],
    };
    for (nth, arg) in args.iter().enumerate() {
        if !matches!(
            arg,
            Value::String(_)
                | Value::Bytes(_)
                | Value::Integer(_)
                | Value::Double(_)
                | Value::Boolean(_)
        ) {
            let details = format!("argument {} is of the type {:?}", nth + 1, arg.kind());
            let error = fred::error::Error::new(ErrorKind::InvalidArgument, details);
            return Err(FencedError::Type(error));
        }
    }
    Ok(args)
}

/// A failure for this reason.
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
