//! How long a grant is good for on this process's clock; its hub and its guard share it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Terms;
use super::message::Id;
use crate::error::LeaseLost;
use crate::event::PreviousAttempt;
use crate::observe::{self, Work};
use crate::store::key::Key;
use crate::store::record::{Record, Token};

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) key: Key,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) fence: u64,
    pub(crate) previous: Option<PreviousAttempt>,
    pub(crate) work: Work,
    pub(super) token: Token,
    pub(super) terms: Arc<Terms>,
    /// The participation it was granted to.
    pub(super) id: Id,
    began: Instant,
    /// In µs after `began`.
    ends: AtomicU64,
    /// Whether a guard was made of it.
    given: AtomicBool,
    /// Set once, and for ever; then the guard is not valid, whatever `ends` says.
    lost: OnceLock<LeaseLost>,
    cancelled: CancellationToken,
}

impl Lease {
    pub(super) fn new(
        key: &Key,
        record: &Record,
        id: Id,
        token: Token,
        terms: Arc<Terms>,
        deadline: Instant,
    ) -> Self {
        let lease = Self {
            key: key.clone(),
            attempt: record.attempt,
            max_attempts: record.max_attempts,
            fence: record.fence,
            previous: PreviousAttempt::of(record),
            work: Work::default(),
            token,
            terms,
            id,
            began: Instant::now(),
            ends: AtomicU64::new(0),
            given: AtomicBool::new(false),
            lost: OnceLock::new(),
            cancelled: CancellationToken::new(),
        };
        lease.restart(deadline);
        lease
    }

    pub(super) fn restart(&self, deadline: Instant) {
        // A server whose clock was set back keeps a lease for longer than was asked.
        let deadline = deadline.min(self.hold_ends());
        let ends = deadline.saturating_duration_since(self.began).as_micros();
        // Relaxed: the number is all that is shared.
        let ends = u64::try_from(ends).unwrap_or(u64::MAX);
        self.ends.store(ends, Ordering::Relaxed);
    }

    /// Ends it for its holder; only the first reason counts.
    pub(super) fn lose(&self, reason: LeaseLost) {
        // The reason before the signal: whoever is woken finds it.
        if self.lost.set(reason).is_ok() {
            self.cancelled.cancel();
            if let Some(reason) = self.lost.get() {
                observe::ended(self, reason);
            }
        }
    }

    /// A guard is made of it, which is lost from the start if the time is over. Whether it is good.
    pub(super) fn give(&self) -> bool {
        // Marked first, and then the clock; the hub looks at the clock first, and then at the mark. So
        // one of the two sees that a guard outlives its lease.
        self.given.store(true, Ordering::SeqCst);
        let good = Instant::now() < self.deadline();
        if !good {
            self.lose(LeaseLost::Expired);
        }
        good
    }

    pub(super) fn is_given(&self) -> bool {
        self.given.load(Ordering::SeqCst)
    }

    pub(super) fn deadline(&self) -> Instant {
        self.began + Duration::from_micros(self.ends.load(Ordering::Relaxed))
    }

    /// No renewal reaches further.
    pub(super) fn hold_ends(&self) -> Instant {
        self.began + self.terms.max_hold
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    pub(crate) fn why_lost(&self) -> Option<&LeaseLost> {
        self.lost.get()
    }

    /// What is left; zero once it has ended or was lost.
    pub(crate) fn remaining(&self) -> Duration {
        match self.lost.get() {
            Some(_) => Duration::ZERO,
            None => self.deadline().saturating_duration_since(Instant::now()),
        }
    }

    /// What is left until no renewal reaches further.
    pub(crate) fn hold_remaining(&self) -> Duration {
        self.hold_ends().saturating_duration_since(Instant::now())
    }

    /// Cancelled when it is lost. Cancelling it does not lose it.
    pub(crate) fn cancellation(&self) -> CancellationToken {
        self.cancelled.child_token()
    }

    /// Resolves when it is lost.
    pub(crate) async fn lost(&self) -> LeaseLost {
        self.cancelled.cancelled().await;
        let reason = self.lost.get();
        reason.expect("set before the signal").clone()
    }
}
