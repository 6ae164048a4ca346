//! The public view of a key's record, for callers that take no part in the run.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::outcome::PreviousAttempt;
use crate::protocol::record::{RecordSnapshot, State};

/// State of a run at one instant of the server's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Stage that the run has reached.
    pub state: RunState,
    /// Number of the current or last attempt, from 1; 0 if there was none.
    pub attempt: u32,
    /// Maximum number of attempts of the run; 0 if there is no run.
    pub max_attempts: u32,
    /// Label of the holder, or of the participant that completed the work; empty if there is
    /// neither.
    pub holder: String,
    /// Fencing token of the last grant; 0 if there is no run.
    ///
    /// After [`LockingWorker::clear`](crate::LockingWorker::clear) it belongs to no grant, and the
    /// next grant gets a higher one.
    pub fencing_token: u64,
    /// Time that was left at that instant, which depends on the state.
    ///
    /// It is the rest of the lease, of the time to confirm a pushed grant, or of the retention. It
    /// is zero if the lease has ended and no successor has taken over yet.
    pub remaining: Duration,
    /// The attempt before the current one, or the last that failed.
    pub previous: Option<PreviousAttempt>,
    /// Result of the completed work.
    pub result: Bytes,
    /// Labels of the waiters in the order of the queue, at most [`MAX_LINE`](Self::MAX_LINE) of
    /// them.
    ///
    /// It is `None` if the server was not asked for the queue, such as when a message brought the
    /// record.
    pub line: Option<Vec<String>>,
}

/// Stage of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunState {
    /// There is no run, or the server has forgotten it.
    Free,
    /// A holder has the work.
    Held,
    /// A waiter has been granted the work and has not confirmed yet.
    Granted,
    /// An attempt failed or was handed off, or the run was cleared, and there is no next attempt
    /// yet.
    Open,
    /// The work is complete.
    Completed,
    /// The run gave up: no further attempt is made.
    GaveUp,
}

impl Snapshot {
    /// Maximum number of waiters that a snapshot lists.
    pub const MAX_LINE: u32 = 1_000;

    pub(crate) fn of(frame: &RecordSnapshot) -> Self {
        let Some(record) = frame.record.as_deref() else {
            return Self {
                state: RunState::Free,
                attempt: 0,
                max_attempts: 0,
                holder: String::new(),
                fencing_token: 0,
                remaining: Duration::ZERO,
                previous: None,
                result: Bytes::new(),
                line: None,
            };
        };
        Self {
            state: record.state.into(),
            attempt: record.attempt,
            max_attempts: record.max_attempts,
            holder: record.holder.clone(),
            fencing_token: record.fence,
            remaining: record.remaining(frame.at),
            previous: PreviousAttempt::of(record),
            result: record.result.clone(),
            line: None,
        }
    }
}

impl From<State> for RunState {
    fn from(state: State) -> Self {
        match state {
            State::Held => RunState::Held,
            State::Granted => RunState::Granted,
            State::Open => RunState::Open,
            State::Done => RunState::Completed,
            State::GaveUp => RunState::GaveUp,
        }
    }
}

impl RunState {
    /// Whether there is a holder or a pushed grant, so that others may be waiting.
    pub fn is_owned(self) -> bool {
        matches!(self, RunState::Held | RunState::Granted)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RunState::Free => "free",
            RunState::Held => "held",
            RunState::Granted => "granted",
            RunState::Open => "open",
            RunState::Completed => "completed",
            RunState::GaveUp => "given up",
        })
    }
}
