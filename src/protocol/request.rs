//! Requests of a transition, and the replies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::record::{Record, RecordSnapshot, Token};

/// One transition. All durations are in whole milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Take the key, or join its queue.
    Claim {
        /// The claimer's token. Each token is for one grant.
        token: Token,
        /// The claimer's label.
        label: Arc<str>,
        /// The lease of the grant.
        lease: u64,
        /// The maximum of attempts of the run, if this claim starts one.
        max_attempts: u32,
        /// The retention of the run, if this claim starts one.
        retention: u64,
    },
    /// End a grant.
    Settle {
        /// The fencing token of the grant.
        fence: u64,
        /// The way in which the grant ends.
        outcome: Outcome,
        /// The time that a successor has to confirm its grant.
        window: u64,
    },
    /// Restart the lease of a grant, which never shortens it. Confirms a grant that was pushed.
    Renew {
        /// The fencing token of the grant.
        fence: u64,
        /// The new lease.
        lease: u64,
        /// The checkpoint for a successor. `None` keeps the present one.
        checkpoint: Option<Bytes>,
    },
    /// Leave the queue, or give back a grant that its holder has not begun to work on.
    Withdraw {
        /// The token that leaves.
        token: Token,
        /// The label that the token claimed with.
        label: Arc<str>,
        /// The fencing token of the one grant of this token that the withdrawal leaves as it is:
        /// the one that a stream or a guard has, or had.
        except_fence: Option<u64>,
        /// The time that a successor has to confirm its grant.
        window: u64,
    },
    /// Start the run anew, even if a holder works on it. The head of the queue gets the first
    /// grant.
    Clear {
        /// The time that the head of the queue has to confirm its grant.
        window: u64,
    },
    /// Read the record. Changes nothing.
    Inspect,
}

impl Op {
    /// Returns the part of the operation that may be long.
    pub(crate) fn payload(&self) -> &[u8] {
        match self {
            Op::Settle { outcome, .. } => match outcome {
                Outcome::Done(result) => result,
                Outcome::Fail(Failure::Reason(reason)) | Outcome::FailPermanently(reason) => {
                    reason.as_bytes()
                }
                Outcome::Fail(_) | Outcome::HandOff => &[],
            },
            Op::Renew { checkpoint, .. } => checkpoint.as_deref().unwrap_or_default(),
            Op::Claim { .. } | Op::Withdraw { .. } | Op::Clear { .. } | Op::Inspect => &[],
        }
    }
}

/// The way in which a grant ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The work is complete; the bytes are its result.
    Done(Bytes),
    /// The attempt failed, and it counts.
    Fail(Failure),
    /// The attempt failed, and the run gives up.
    FailPermanently(String),
    /// The next holder repeats the attempt, which does not count.
    HandOff,
}

/// The way in which an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The guard was dropped.
    Dropped,
    /// The guard was dropped while its thread panicked.
    Panicked,
    /// The holder gave a reason.
    Reason(String),
}

/// A store's answer to one transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// For `Claim`: whether the token holds the key. For `Inspect`: always true. For all others:
    /// whether the transition was applied, which is also true of a completion's duplicate.
    pub ok: bool,
    /// The record after the transition.
    pub frame: RecordSnapshot,
    /// The claimer's position in the queue, from 0. For `Inspect`: the length of the queue.
    pub position: Option<u64>,
}

/// The unit of all durations in a store.
pub(crate) const GRAIN: Duration = Duration::from_millis(1);

/// Converts to whole milliseconds, rounded up.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What a claim got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimReply {
    /// The token holds the key.
    Held,
    /// It waits at this position in the queue, from 0.
    Queued { position: u64 },
    /// The run is over, or the token's grant has ended.
    Refused,
}

impl Reply {
    /// Returns what the answered claim got.
    pub(crate) fn claim(&self) -> ClaimReply {
        match (self.ok, self.position) {
            (true, _) => ClaimReply::Held,
            (false, Some(position)) => ClaimReply::Queued { position },
            (false, None) => ClaimReply::Refused,
        }
    }

    /// Returns the record after the transition, if the key has one.
    pub fn record(&self) -> Option<&Record> {
        self.frame.record.as_deref()
    }
}
