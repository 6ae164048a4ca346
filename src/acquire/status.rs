//! Progress reports, in the words that users of the preceding Node.js module know.

use std::fmt;

/// The level of detail of progress reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StatusLevel {
    /// Only the changes that concern this participant.
    #[default]
    Normal,
    /// Also every step that leads to such a change.
    Verbose,
}

/// A progress report. `Display` formats it as a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// The record changed while this stream waited for an attempt. Verbose.
    CheckingWork {
        /// Number of that attempt.
        attempt: u32,
    },
    /// That attempt was not completed, and this stream is the next holder. Verbose.
    NotCompleted {
        /// Number of that attempt.
        attempt: u32,
    },
    /// This stream takes over. Verbose.
    Reacquiring,
    /// The attempts counted before this stream's own. Verbose.
    AttemptCount {
        /// Number of those attempts.
        attempts: u32,
    },
    /// This stream has been granted the work after waiting, or its attempt is not the first.
    /// Normal.
    ThisIsAttempt {
        /// Number of this stream's attempt.
        attempt: u32,
    },
    /// Another participant took over. Verbose.
    AttemptIncremented {
        /// The last attempt that this stream knew of.
        expected: u32,
        /// The current attempt.
        actual: u32,
    },
    /// Another participant completed the work. Normal.
    WorkCompleted {
        /// Label of that participant.
        holder: String,
    },
    /// The record that this stream waited for is gone, and a new run begins. Verbose.
    KeyGone,
    /// The run gave up. Normal.
    GaveUp,
}

impl Status {
    /// Returns the lowest level at which it is reported.
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
