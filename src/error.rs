//! The public errors, by the operation that failed.

use std::sync::Arc;
use std::time::Duration;

use crate::guard::WorkGuard;
use crate::key::Key;
use crate::outcome::GaveUp;

/// Rejection of a name that cannot be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key has no bytes.
    #[error("the key is empty; it needs at least 1 byte")]
    Empty,
    /// The key is longer than [`Key::MAX_LEN`].
    #[error("the key has {len} bytes; at most {max} are allowed")]
    TooLong {
        /// Length of the key in bytes.
        len: usize,
        /// Maximum length in bytes.
        max: usize,
    },
    /// The key contains `}` but no hash tag, so its side keys could not share its cluster slot.
    #[error(
        "the key {key:?} contains `}}` without a hash tag like `{{tag}}` of its own, so its side keys could not share its cluster slot"
    )]
    NotColocatable {
        /// The key.
        key: String,
    },
}

/// Failure of [`Builder::build`](crate::Builder::build).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The thread that renews leases cannot be started: the process or its user may have reached
    /// its limit.
    #[error(
        "the thread that renews leases cannot be started; see the limit on processes (ulimit -u, pids)"
    )]
    Thread(#[source] Arc<std::io::Error>),
    /// The key is invalid.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A duration is outside its bounds.
    #[error("{option} is {value:?}; it must be from {min:?} to {max:?}")]
    Duration {
        /// Name of the builder's method.
        option: &'static str,
        /// The given value.
        value: Duration,
        /// Minimum of the option.
        min: Duration,
        /// Maximum of the option.
        max: Duration,
    },
    /// `max_attempts` is 0.
    #[error("max_attempts is 0; it must be at least 1")]
    NoAttempts,
    /// `replicas` was called with a count of 0.
    #[error("replicas is 0; it must be at least 1, or not be called")]
    NoReplicas,
    /// `replicas` was combined with the memory store, which has none.
    #[error("the memory store has no replicas; `replicas` and `in_memory` exclude each other")]
    ReplicasInMemory,
    /// The label is empty or too long.
    #[error("the label has {len} bytes; it must have from 1 to {max}")]
    Label {
        /// Length of the label in bytes.
        len: usize,
        /// Maximum length in bytes.
        max: usize,
    },
    /// The given text is not the URL of a server.
    #[error("{url:?} is not the URL of a server")]
    Url {
        /// The given URL without its credentials.
        url: String,
        /// The cause.
        #[source]
        source: fred::error::Error,
    },
    /// The URL needs a feature that is not enabled.
    #[error("{url:?} needs one of the features {features}, none of which is enabled")]
    Feature {
        /// The given URL without its credentials.
        url: String,
        /// The features, of which any one is sufficient.
        features: &'static str,
    },
    /// The client has no reconnect policy: after its first disconnect it would hang for ever.
    #[error("the client given has no reconnect policy; set one with `Builder::set_policy`")]
    NoReconnectPolicy,
    /// The client has selected another database than its configuration names. After its next
    /// reconnect it would use the configured one.
    #[error(
        "the client given has selected database {selected}, and its configuration says \
         {configured}; set `Config::database` instead of SELECT"
    )]
    Database {
        /// The configured database; 0 if the configuration names none.
        configured: u64,
        /// The database that the server reports for the client.
        selected: u64,
    },
    /// The connection failed.
    #[error("cannot connect to {server}")]
    Connect {
        /// Address of the server.
        server: String,
        /// The cause.
        #[source]
        source: fred::error::Error,
    },
    /// The server is older than Redis 7.0 and refuses the scripts.
    #[error("{server} is Redis {version}; 7.0 is the oldest that can be used")]
    OldServer {
        /// The server's address.
        server: String,
        /// The Redis version that the server reports.
        version: String,
        /// The server's answer to a script.
        #[source]
        source: Error,
    },
    /// The server answered but cannot serve this key.
    #[error("the server cannot be used")]
    Server(#[from] Error),
}

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
        source: fred::error::Error,
    },
    /// The server refuses. Causes are a missing permission, a wrong password or a version before
    /// 7.0.
    #[error("the server refuses to serve {key}")]
    Refused {
        /// The key.
        key: Key,
        /// Error of the server.
        #[source]
        source: fred::error::Error,
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
        "{acknowledged} of the {wanted} replicas asked for acknowledged a write to {key} within {timeout:?}"
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
        "the lease is {value:?}; it must be from {min:?} to {max:?}, what is left of the longest hold"
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

/// Failure of a fenced script.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FencedError {
    /// The guard no longer holds the work. The script did not execute.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// A key is in another cluster slot than the lock, and no script can access both. The script
    /// did not execute. A common hash tag puts both in one slot, for example the lock `{7}:lock`
    /// and the key `{7}:total`.
    #[error("{key:?} is in slot {slot} of the cluster, the lock in slot {wanted}")]
    OtherSlot {
        /// The script's key.
        key: String,
        /// Slot of that key.
        slot: u16,
        /// Slot of the lock.
        wanted: u16,
    },
    /// The worker is in memory, where scripts cannot execute.
    #[error("the memory store runs no scripts")]
    NoScripts,
    /// The keys or arguments cannot be sent, or the answer cannot be converted to the requested
    /// type.
    #[error("what goes to the script or comes from it is of another type")]
    Type(#[source] fred::error::Error),
    /// The script failed. Its earlier writes remain.
    #[error("the script failed")]
    Script(#[source] fred::error::Error),
    /// The server did not answer: the script may or may not have executed. It is not retried.
    #[error("the server gave no answer; the script may or may not have run")]
    Unknown(#[source] Error),
}

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

/// Failure of [`LockingWorker::once`](crate::LockingWorker::once).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError {
    /// The run gave up: this is its last failure.
    #[error("given up after {} attempts: {}", .0.attempts, .0.reason)]
    GaveUp(GaveUp),
    /// The stream ended with this error.
    #[error(transparent)]
    Stream(#[from] Error),
    /// The result is not of the requested type: the participants disagree on the type.
    #[cfg(feature = "json")]
    #[error("the result is of another type")]
    Json(#[from] serde_json::Error),
}
