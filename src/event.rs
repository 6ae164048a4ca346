//! What a participant is told.

mod status;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::error::Error;
use crate::guard::WorkGuard;
use crate::store::record::{Cause, Previous, Record};

pub use status::{Status, StatusLevel};

/// What happens to a participant of a run, in the order in which it happens.
///
/// Any number of `Acquired`, `Locked`, `Status` and retryable `Error` events come first, then
/// exactly one terminal event ([`LockEvent::is_terminal`]), then the stream ends.
#[derive(Debug)]
#[non_exhaustive]
pub enum LockEvent {
    /// The work is ours to do. Dropping the guard fails the attempt.
    Acquired(WorkGuard),
    /// Somebody else has it; one event for each holder.
    Locked(Locked),
    /// Progress, in the words of the ancestor.
    Status(Status),
    /// The work is complete. Terminal.
    Completed(Completed),
    /// The run was given up. Terminal.
    GaveUp(GaveUp),
    /// Our own attempt failed and we stand aside for the others. Terminal.
    Failed(Failed),
    /// Something went wrong. Terminal if [`Error::is_fatal`].
    Error(Error),
}

impl LockEvent {
    /// Whether the stream ends after this event.
    pub fn is_terminal(&self) -> bool {
        match self {
            LockEvent::Acquired(_) | LockEvent::Locked(_) | LockEvent::Status(_) => false,
            LockEvent::Completed(_) | LockEvent::GaveUp(_) | LockEvent::Failed(_) => true,
            LockEvent::Error(error) => error.is_fatal(),
        }
    }
}

/// Somebody else holds the key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Locked {
    /// The attempt it is at, from 1.
    pub attempt: u32,
    /// The run's bound on attempts.
    pub max_attempts: u32,
    /// The holder's label.
    pub holder: String,
    /// The rest of its lease, or of the time it has to confirm a hand-over, when the news was sent.
    pub remaining: Duration,
    /// Our place in the waiting line, from 0, if the server has just told us.
    pub position: Option<u64>,
}

/// The work is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completed {
    /// Who completed it, by its [label](crate::Builder::label), which streams of one worker share. Whether it was ours
    /// is what [`WorkGuard::done`] says.
    pub holder: String,
    /// At which attempt, from 1.
    pub attempt: u32,
    /// What it was completed with; empty after a plain [`WorkGuard::done`].
    pub result: Bytes,
}

/// The run was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GaveUp {
    /// How many attempts were made.
    pub attempts: u32,
    /// Who made the last one.
    pub holder: String,
    /// How the last one ended.
    pub reason: Reason,
}

/// How a participation ended: what [`LockStreamExt::outcome`](crate::LockStreamExt::outcome) and
/// [`LockStreamExt::run`](crate::LockStreamExt::run) drive a stream to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The work is complete.
    Completed(Completed),
    /// The run was given up.
    GaveUp(GaveUp),
    /// Our own attempt failed and we stand aside for the others.
    Failed(Failed),
    /// The stream ended before that, as one does that was cut short with `take_until`.
    Left,
}

impl Outcome {
    /// What the stream's next event says of it, if anything.
    pub(crate) fn of(event: Option<LockEvent>) -> Option<Result<Self, Error>> {
        Some(Ok(match event {
            None => Outcome::Left,
            Some(LockEvent::Completed(completed)) => Outcome::Completed(completed),
            Some(LockEvent::GaveUp(gave_up)) => Outcome::GaveUp(gave_up),
            Some(LockEvent::Failed(failed)) => Outcome::Failed(failed),
            Some(LockEvent::Error(error)) if error.is_fatal() => return Some(Err(error)),
            Some(_) => return None,
        }))
    }
}

/// Our own attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failed {
    /// Which one, from 1.
    pub attempt: u32,
    /// How it ended.
    pub reason: Reason,
}

/// The attempt before ours, for whoever takes the work up where it was left.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousAttempt {
    /// Which one, from 1. It has our number when it was handed over and no attempt of the run has
    /// failed: a hand-off does not hide the last failure.
    pub attempt: u32,
    /// Who made it.
    pub holder: String,
    /// How it ended.
    pub reason: Reason,
    /// What was last left with [`WorkGuard::checkpoint`] in this run; empty if nothing.
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

/// How an attempt ended without completing the work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The guard was dropped.
    Dropped,
    /// The guard was dropped while panicking.
    Panicked,
    /// The holder said why.
    Failed(String),
    /// The lease ended.
    Expired,
    /// The holder passed it on; it was not counted.
    HandedOff,
    /// The record was removed, or lost by the server.
    Lost,
    /// The server gave no answer: the attempt may have been settled or not.
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
