//! The two errors that all layers share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::key::Key;

/// An error that a stream yields as [`LockEvent::Error`](crate::LockEvent::Error).
///
/// A key that another participant holds is not an error but an event of its own.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server does not serve at the moment: it is unreachable, stopped, loading, out of memory
    /// or a replica. The stream continues by itself when the outage ends.
    #[error("the server does not serve {key} at the moment")]
    Unavailable {
        /// The key.
        key: Key,
        /// Error of the server or the connection.
        #[source]
        source: ServerError,
    },
    /// The server refuses. Causes are a missing permission, a wrong password or a version before
    /// 7.0.
    #[error("the server refuses to serve {key}")]
    Refused {
        /// The key.
        key: Key,
        /// Error of the server.
        #[source]
        source: ServerError,
    },
    /// The key, or a side key of it, holds a value of another type.
    #[error("{key} holds a value of another type")]
    WrongType {
        /// The key.
        key: Key,
    },
    /// The key holds a text that is not a lock record, or a record of an unknown version.
    #[error("{key} holds a value that this version cannot read ({found}); it is left as it is")]
    UnknownFormat {
        /// The key.
        key: Key,
        /// The version found, or the text found instead of one.
        found: String,
    },
    /// The server made a grant, but too few replicas acknowledged it in time. It does not count and
    /// is given back. The stream continues by itself.
    #[error(
        "{acknowledged} of the {wanted} replicas asked for acknowledged a write to {key} within \
         {timeout:?}"
    )]
    NotReplicated {
        /// The key.
        key: Key,
        /// Number of replicas required.
        wanted: u32,
        /// Number of replicas that acknowledged.
        acknowledged: u32,
        /// Time limit of the acknowledgement.
        timeout: Duration,
    },
    /// The runtime that the worker was built on has shut down, or the caller's client is closed or
    /// was never connected.
    #[error("the worker's runtime has shut down, or its client is not connected")]
    Stopped,
}

/// What the server or the connection to it reported, as an error of the client library.
///
/// `Display` and [`source`](std::error::Error::source) are those of that error.
#[derive(Clone)]
pub struct ServerError(Arc<dyn std::error::Error + Send + Sync>);

impl ServerError {
    /// Wraps an error.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into().into())
    }

    /// Returns the error of the client library, which can be downcast.
    pub fn get_ref(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for ServerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl Error {
    /// Whether the stream ends with this error.
    pub fn is_fatal(&self) -> bool {
        !self.is_retryable()
    }

    /// Whether the stream retries by itself, as after [`Error::Unavailable`] and
    /// [`Error::NotReplicated`].
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::Unavailable { .. } | Error::NotReplicated { .. }
        )
    }
}

/// The reason why a guard has lost its lease.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseLost {
    /// The lease ended, and no renewal had been requested.
    #[error("the lease was lost: it ended")]
    Expired,
    /// Another participant was granted the work after the lease had ended.
    #[error("the lease was lost: attempt {attempt} went to {holder}")]
    TakenOver {
        /// Label of that participant.
        holder: String,
        /// Number of its attempt.
        attempt: u32,
    },
    /// The record was removed, the server lost it, or
    /// [`LockingWorker::clear`](crate::LockingWorker::clear) started the run anew.
    #[error("the lease was lost: its record has gone")]
    RecordGone,
    /// The lease ended because no renewal succeeded.
    #[error("the lease was lost: no renewal got through before it ended")]
    Unreachable {
        /// Error of the last renewal that failed; `None` if no renewal was answered.
        #[source]
        source: Option<Error>,
    },
    /// The lease ended because the process stood still, or the runtime that the worker was built
    /// on.
    ///
    /// The process was stopped, or its machine slept, or the runtime hung for longer than
    /// [`Builder::stall_limit`](crate::Builder::stall_limit).
    #[error("the lease was lost: the process or its runtime did not run for {time:?}")]
    Stalled {
        /// Length of the standstill.
        time: Duration,
    },
    /// The guard is a copy in a forked process. The work belongs to the parent process.
    #[error("the lease belongs to the process that this one was forked from")]
    Forked,
    /// The work was held for the longest time allowed.
    #[error("the lease was lost: the work was held for {max_hold:?}, the longest allowed")]
    MaxHold {
        /// Value of [`Builder::max_hold`](crate::Builder::max_hold).
        max_hold: Duration,
    },
    /// The guard was settled or dropped.
    #[error("the guard was settled")]
    Settled,
    /// The runtime that the worker was built on has shut down. Nothing renews the lease, and its
    /// end cannot be reported.
    #[error("the lease was lost: the runtime that the worker was built on has shut down")]
    Stopped,
}
