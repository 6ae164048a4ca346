//! What a key's record says, for those who take no part.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::event::PreviousAttempt;
use crate::store::record::{RecordSnapshot, State};

/// A run as it was at one instant of the server's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// How far it is.
    pub state: RunState,
    /// The attempt that is made, or was the last, from 1; 0 if none was.
    pub attempt: u32,
    /// The run's bound on attempts; 0 if there is no run.
    pub max_attempts: u32,
    /// Who has the work, or who completed it; empty if nobody.
    pub holder: String,
    /// The last holder's fencing token, or what the next one's exceeds; 0 if there is no run.
    pub fencing_token: u64,
    /// What was left then: of the lease (nothing, if its holder has died and nobody took over yet), of the time to
    /// confirm a hand-over, or of the time for which the outcome is remembered.
    pub remaining: Duration,
    /// The attempt before this one, or the last that failed.
    pub previous: Option<PreviousAttempt>,
    /// What the work was completed with.
    pub result: Bytes,
    /// Who waits, in order: the first [`MAX_LINE`](Self::MAX_LINE) of them. `None` if the server was not asked, as when
    /// the news came by push.
    pub line: Option<Vec<String>>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunState {
    /// There is none, or it has been forgotten.
    Free,
    /// Somebody has the work.
    Held,
    /// Somebody was given the work, and has not said yet that he knows.
    Granted,
    /// An attempt failed, and nobody has made the next yet; or the run was cleared.
    Open,
    /// The work is complete.
    Completed,
    /// No attempt is left.
    GaveUp,
}

impl Snapshot {
    /// How many of those who wait are named.
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
    /// Whether somebody has the work, and others may wait.
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
