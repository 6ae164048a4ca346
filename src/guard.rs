//! The work in one's hands.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::error::SettleError;
use crate::hub::Grant;
use crate::store::key::Key;
use crate::store::{Failure, Outcome};

/// The right to do the work, for as long as its lease lasts.
///
/// Complete the work with [`done`](Self::done), or report that it failed with
/// [`fail`](Self::fail). Dropping the guard is a failure too, with the reason "dropped", or
/// "panicked" while the thread is unwinding: the attempt is counted, and another participant takes
/// over at once.
///
/// Dropping is synchronous, never blocks and never panics, on any thread, inside a runtime or not:
/// it leaves a message for the worker's task, which tells the server. Once that task's runtime has
/// shut down, or when the process dies, the end of the lease does the same.
///
/// # Validity
///
/// The lease is the server's: after it ends, another participant may be granted the work.
/// [`is_valid`](Self::is_valid) turns false on this process's clock before that, but work that is
/// under way does not stop by itself. What must never be written twice has to be protected by the
/// [`fencing_token`](Self::fencing_token).
#[must_use = "dropping the guard fails the attempt"]
pub struct WorkGuard {
    grant: Grant,
    settled: bool,
}

impl WorkGuard {
    /// The longest result, in bytes: every waiting process is sent it.
    pub const MAX_RESULT: usize = 1 << 20;

    /// The longest reason, in bytes; a longer one is cut at a character's end.
    pub const MAX_REASON: usize = 1 << 10;

    pub(crate) fn new(mut grant: Grant) -> Self {
        grant.give();
        Self {
            grant,
            settled: false,
        }
    }

    /// Whose work it is.
    pub fn key(&self) -> &Key {
        &self.grant.lease.key
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.grant.lease.attempt
    }

    /// Whether the run is given up if this attempt fails.
    pub fn is_last_attempt(&self) -> bool {
        self.grant.lease.attempt >= self.grant.lease.max_attempts
    }

    /// A number that is higher than that of every earlier holder of this key.
    ///
    /// Pass it along with every write to a store of your own, and have that store refuse a number
    /// lower than the highest it has seen: then a holder that was paused past its lease cannot
    /// overwrite its successor's work ([Kleppmann 2016]). It rises across runs, and even after the
    /// server has lost the record, because it is at least the server's clock in µs.
    ///
    /// [Kleppmann 2016]: https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html
    pub fn fencing_token(&self) -> u64 {
        self.grant.lease.fence
    }

    /// What is left of the lease by this process's clock, less a margin for its drift.
    ///
    /// It is counted from before the lease was asked for, so that it ends here before it ends on
    /// the server.
    pub fn remaining(&self) -> Duration {
        self.grant.lease.remaining()
    }

    /// Whether nobody else can have been granted the work yet.
    pub fn is_valid(&self) -> bool {
        !self.remaining().is_zero()
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
        let reason = Failure::Reason(shorten(reason.into()));
        self.settle(Outcome::Fail(reason)).await
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
    pub async fn hand_off(self) -> Result<(), SettleError> {
        self.settle(Outcome::HandOff).await
    }

    async fn settle(mut self, outcome: Outcome) -> Result<(), SettleError> {
        let (reply, answer) = oneshot::channel();
        self.settled = true;
        self.grant.settle(outcome, Some(reply));
        answer.await.unwrap_or(Err(SettleError::Stopped))
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        if !self.settled {
            let failure = match std::thread::panicking() {
                true => Failure::Panicked,
                false => Failure::Dropped,
            };
            self.grant.settle(Outcome::Fail(failure), None);
        }
    }
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkGuard")
            .field("key", self.key())
            .field("attempt", &self.attempt())
            .field("fencing_token", &self.fencing_token())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
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
