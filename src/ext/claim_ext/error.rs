//! What a stream of jobs yields for a job that it cannot claim.

use crate::error::Error;
use crate::key::KeyError;

/// Failure of [`ClaimExt::claim_each`](crate::ClaimExt::claim_each) to claim a job, with that job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError<T> {
    /// The key derived from the job is invalid.
    #[error("no key for the job")]
    Key {
        /// The job.
        job: T,
        /// The cause.
        source: KeyError,
    },
    /// The server refuses the job, or the worker has stopped.
    #[error("the job cannot be claimed")]
    Refused {
        /// The job.
        job: T,
        /// The cause, which is [fatal](Error::is_fatal).
        source: Error,
    },
}

impl<T> ClaimError<T> {
    /// Returns the job.
    pub fn into_job(self) -> T {
        match self {
            ClaimError::Key { job, .. } | ClaimError::Refused { job, .. } => job,
        }
    }
}
