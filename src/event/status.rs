//! Progress reports, in the words that the ancestor's users know.

use std::fmt;

/// How much progress is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StatusLevel {
    /// What changes for this participant.
    #[default]
    Normal,
    /// Every step that leads there too.
    Verbose,
}

/// A progress report; its `Display` is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Something happened to the attempt that somebody else was at. Verbose.
    CheckingWork {
        /// That attempt.
        attempt: u32,
    },
    /// That attempt has failed, and the work is coming to us. Verbose.
    NotCompleted {
        /// That attempt.
        attempt: u32,
    },
    /// We take over. Verbose.
    Reacquiring,
    /// The attempts counted before ours. Verbose.
    AttemptCount {
        /// Their number.
        attempts: u32,
    },
    /// We have it, and it was somebody's before, or is not the first attempt. Normal.
    ThisIsAttempt {
        /// Our attempt.
        attempt: u32,
    },
    /// Another participant took over. Verbose.
    AttemptIncremented {
        /// The attempt we knew of.
        expected: u32,
        /// The attempt that is being made now.
        actual: u32,
    },
    /// Somebody else completed the work. Normal.
    WorkCompleted {
        /// Its label.
        holder: String,
    },
    /// The record we waited for is no longer there, and a new run begins. Verbose.
    KeyGone,
    /// The attempts are used up. Normal.
    GaveUp,
}

impl Status {
    /// The level from which on it is reported.
    pub fn level(&self) -> StatusLevel {
        match self {
            Status::ThisIsAttempt { .. } | Status::WorkCompleted { .. } | Status::GaveUp => {
                StatusLevel::Normal
            }
            _ => StatusLevel::Verbose,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::CheckingWork { attempt } => {
                write!(f, "Checking status of work from attempt #{attempt}")
            }
            Status::NotCompleted { attempt } => write!(
                f,
                "Work was not completed, trying to reacquire lock for attempt #{attempt}"
            ),
            Status::Reacquiring => f.write_str("Trying to reacquire lock"),
            Status::AttemptCount { attempts } => write!(f, "Current attempt count: {attempts}"),
            Status::ThisIsAttempt { attempt } => write!(f, "This is attempt #{attempt}"),
            Status::AttemptIncremented { expected, actual } => write!(
                f,
                "Attempt count has been incremented (expected {expected}, but it's {actual}), \
                 someone else got the lock"
            ),
            Status::WorkCompleted { holder } => {
                write!(f, "Work completed successfully by {holder}")
            }
            Status::KeyGone => f.write_str(
                "Lock key is gone, someone else completed the work and deleted the lock",
            ),
            Status::GaveUp => f.write_str("Exceeded maximum attempts, giving up!"),
        }
    }
}
