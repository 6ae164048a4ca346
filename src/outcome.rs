//! What a run, an attempt and a participation come to.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::protocol::record::{Cause, Previous, Record};

/// The holder of a key, as seen by a waiter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Locked {
    /// Number of the holder's attempt, from 1.
    pub attempt: u32,
    /// Maximum number of attempts of the run.
    pub max_attempts: u32,
    /// The holder's label.
    pub holder: String,
    /// Rest of the lease, or of the time to confirm a pushed grant, when the server sent the
    /// record.
    pub remaining: Duration,
    /// Position of this waiter in the queue, from 0, if the server has just reported it.
    pub position: Option<u64>,
}

/// The completion of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completed {
    /// [Label](crate::Builder::label) of the participant that completed the work.
    ///
    /// All streams of one worker share a label. Only
    /// [`WorkGuard::done`](crate::WorkGuard::done) tells whether a certain guard completed the
    /// work.
    pub holder: String,
    /// Number of the attempt that completed the work, from 1.
    pub attempt: u32,
    /// Result of the work; empty after a plain [`WorkGuard::done`](crate::WorkGuard::done).
    pub result: Bytes,
}

/// The end of a run without success.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GaveUp {
    /// Number of attempts made.
    pub attempts: u32,
    /// Label of the last holder.
    pub holder: String,
    /// How the last attempt ended.
    pub reason: Reason,
}

/// The end of one participation.
///
/// [`LockStreamExt::outcome`](crate::LockStreamExt::outcome) and
/// [`LockStreamExt::run`](crate::LockStreamExt::run) return it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The work is complete.
    Completed(Completed),
    /// The run gave up.
    GaveUp(GaveUp),
    /// This stream's own attempt ended without completing the work, and the others continue.
    Failed(Failed),
    /// The stream ended before its terminal event, for example because `take_until` cut it short.
    Left,
}

/// The end of this stream's own attempt without completing the work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failed {
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// How the attempt ended.
    pub reason: Reason,
}

/// The attempt before a grant, for a holder that resumes the work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousAttempt {
    /// Number of the attempt, from 1.
    ///
    /// It equals the number of the grant if the attempt was handed off and no attempt of the run
    /// has failed. After a failure, hand-offs do not replace the failed attempt here.
    pub attempt: u32,
    /// Label of its holder.
    pub holder: String,
    /// How the attempt ended.
    pub reason: Reason,
    /// The last [`WorkGuard::checkpoint`](crate::WorkGuard::checkpoint) of this run; empty if there
    /// was none.
    pub checkpoint: Bytes,
}

impl PreviousAttempt {
    pub(crate) fn of(record: &Record) -> Option<Self> {
        let previous = record.previous.as_ref()?;
        Some(Self {
            attempt: previous.attempt,
            holder: previous.holder.clone(),
            reason: previous.into(),
            checkpoint: record.checkpoint.clone(),
        })
    }
}

/// The reason why an attempt ended without completing the work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The holder dropped the guard.
    Dropped,
    /// The guard was dropped during a panic.
    Panicked,
    /// The holder reported a failure with this reason.
    Failed(String),
    /// The lease ended.
    Expired,
    /// The holder handed the work off, which does not count as an attempt.
    HandedOff,
    /// The record was removed, or the server lost it.
    Lost,
    /// The server did not answer: it may or may not have settled the attempt.
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Dropped => "dropped",
            Reason::Panicked => "panicked",
            Reason::Failed(text) => text,
            Reason::Expired => "expired",
            Reason::HandedOff => "handed off",
            Reason::Lost => "lost",
            Reason::Unknown => "unknown",
        })
    }
}

impl From<&Previous> for Reason {
    fn from(previous: &Previous) -> Self {
        match previous.cause {
            Cause::Dropped => Reason::Dropped,
            Cause::Panicked => Reason::Panicked,
            Cause::Failed => Reason::Failed(previous.reason.clone()),
            Cause::Expired => Reason::Expired,
            Cause::HandedOff => Reason::HandedOff,
        }
    }
}
