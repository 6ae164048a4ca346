//! The events of a stream.

use super::status::Status;
use crate::error::Error;
use crate::guard::WorkGuard;
use crate::outcome::{Completed, Failed, GaveUp, Locked, Outcome};
use crate::telemetry::Yielded;

/// The events of one participation, in the order in which they happen.
///
/// A stream yields any number of `Acquired`, `Locked`, `Status` and retryable `Error` events, then
/// exactly one terminal event ([`LockEvent::is_terminal`]), and then it ends.
#[derive(Debug)]
#[non_exhaustive]
pub enum LockEvent {
    /// This stream has been granted the work. Dropping the guard fails the attempt.
    Acquired(WorkGuard),
    /// Another participant is the holder. The stream yields one event for each grant.
    Locked(Locked),
    /// A progress report, in the words of the Node.js module that preceded this crate.
    Status(Status),
    /// The work is complete. Terminal.
    Completed(Completed),
    /// The run gave up. Terminal.
    GaveUp(GaveUp),
    /// This stream's own attempt ended without completing the work, and the others continue.
    /// Terminal.
    Failed(Failed),
    /// An error. Terminal if [`Error::is_fatal`].
    Error(Error),
}

impl LockEvent {
    /// Returns what telemetry reports of it.
    pub(super) fn told(&self) -> Option<Yielded<'_>> {
        Some(match self {
            LockEvent::Acquired(_) | LockEvent::Status(_) => return None,
            LockEvent::Locked(locked) => Yielded::Locked(locked),
            LockEvent::Completed(completed) => Yielded::Completed(completed),
            LockEvent::GaveUp(gave_up) => Yielded::GaveUp(gave_up),
            LockEvent::Failed(failed) => Yielded::Failed(failed),
            LockEvent::Error(error) => Yielded::Error(error),
        })
    }

    /// Whether the stream ends after this event.
    pub fn is_terminal(&self) -> bool {
        match self {
            LockEvent::Acquired(_) | LockEvent::Locked(_) | LockEvent::Status(_) => false,
            LockEvent::Completed(_) | LockEvent::GaveUp(_) | LockEvent::Failed(_) => true,
            LockEvent::Error(error) => error.is_fatal(),
        }
    }
}

impl Outcome {
    /// Returns the outcome that follows from a stream's next event, if the event is terminal.
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
