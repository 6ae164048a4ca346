//! What the methods of a guard return when they fail.

use std::time::Duration;

use super::WorkGuard;
use crate::error::{Error, LeaseLost};
use crate::hub::{NotRenewed, NotSettled};

/// Failure to settle a guard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The lease was lost before: another participant took over, or the record is gone.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// The server refused. The attempt fails when its lease ends.
    #[error("the server refused")]
    Refused(#[source] Error),
    /// The outcome is unknown: the server did not answer in time and may or may not have settled
    /// the attempt. Or too few replicas acknowledged a completion: the server has recorded it, but
    /// a failover may lose it.
    #[error("not known to be done within {waited:?}")]
    Unknown {
        /// Time for which the settlement was tried.
        waited: Duration,
        /// Error of the last try.
        #[source]
        source: Error,
    },
    /// The result is too large. The guard is returned and still holds the work, so that the work is
    /// not lost. Dropping the guard fails the attempt.
    #[error("the result has {len} bytes; at most {max} are allowed")]
    ResultTooLarge {
        /// Length of the result in bytes.
        len: usize,
        /// Maximum length in bytes.
        max: usize,
        /// The guard, which is not settled.
        guard: Box<WorkGuard>,
    },
    /// The runtime that the worker was built on has shut down. The attempt fails when its lease
    /// ends.
    #[error("the runtime that the worker was built on has shut down")]
    Stopped,
}

impl From<NotSettled> for SettleError {
    fn from(error: NotSettled) -> Self {
        match error {
            NotSettled::Lost(reason) => SettleError::Lost(reason),
            NotSettled::Refused(error) => SettleError::Refused(error),
            NotSettled::Unknown { waited, source } => SettleError::Unknown { waited, source },
        }
    }
}

/// Failure to renew, extend or checkpoint a guard.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenewError {
    /// The lease was lost, before the request or during it.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// The server refused. The lease ends as it would have ended without the request.
    #[error("the server refused")]
    Refused(#[source] Error),
    /// The requested lease is outside its bounds. Nothing was sent, and the lease is unchanged.
    #[error(
        "the lease is {value:?}; it must be from {min:?} to {max:?}, what is left of the longest \
         hold"
    )]
    Lease {
        /// The requested lease.
        value: Duration,
        /// Minimum lease.
        min: Duration,
        /// Rest of [`Builder::max_hold`](crate::Builder::max_hold).
        max: Duration,
    },
    /// The checkpoint is too large. Nothing was sent: the lease and the last checkpoint are
    /// unchanged.
    #[error("the checkpoint has {len} bytes; at most {max} are allowed")]
    CheckpointTooLarge {
        /// Length of the checkpoint in bytes.
        len: usize,
        /// Maximum length in bytes.
        max: usize,
    },
}

impl From<NotRenewed> for RenewError {
    fn from(error: NotRenewed) -> Self {
        match error {
            NotRenewed::Lost(reason) => RenewError::Lost(reason),
            NotRenewed::Refused(error) => RenewError::Refused(error),
        }
    }
}
