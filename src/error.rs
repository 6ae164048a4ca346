//! What can go wrong, by the step that failed.

use std::sync::Arc;
use std::time::Duration;

use crate::event::MaxAttempts;
use crate::guard::WorkGuard;
use crate::store::key::Key;

/// A name that cannot be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It has no bytes.
    #[error("the key is empty; it needs at least 1 byte")]
    Empty,
    /// It is longer than [`Key::MAX_LEN`].
    #[error("the key has {len} bytes; at most {max} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// It contains `}` but no hash tag, so that nothing beside it could share its cluster slot.
    #[error(
        "the key {key:?} contains `}}` without a hash tag like `{{tag}}` of its own, so its side keys could not share its cluster slot"
    )]
    NotColocatable {
        /// The key.
        key: String,
    },
}

/// Why [`Builder::build`](crate::Builder::build) made no worker.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The thread that renews leases cannot be started: the process or its user may have no more.
    #[error(
        "the thread that renews leases cannot be started; see the limit on processes \
         (ulimit -u, pids)"
    )]
    Thread(#[source] Arc<std::io::Error>),
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A duration is outside its bounds.
    #[error("{option} is {value:?}; it must be from {min:?} to {max:?}")]
    Duration {
        /// The builder's method.
        option: &'static str,
        /// What it was given.
        value: Duration,
        /// The smallest allowed.
        min: Duration,
        /// The largest allowed.
        max: Duration,
    },
    /// `max_attempts` is 0.
    #[error("max_attempts is 0; it must be at least 1")]
    NoAttempts,
    /// `replicas` asks for none.
    #[error("replicas is 0; it must be at least 1, or not be called")]
    NoReplicas,
    /// `replicas` is asked of the memory store.
    #[error("the memory store has no replicas; `replicas` and `in_memory` exclude each other")]
    ReplicasInMemory,
    /// The label is empty or too long.
    #[error("the label has {len} bytes; it must have from 1 to {max}")]
    Label {
        /// Its length in bytes.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// The address is no URL of a server.
    #[error("{url:?} is not the URL of a server")]
    Url {
        /// What was given, less its credentials.
        url: String,
        /// What is wrong with it.
        #[source]
        source: fred::error::Error,
    },
    /// The URL asks for something that this build leaves out.
    #[error("{url:?} needs one of the features {features}, none of which is enabled")]
    Feature {
        /// What was given, less its credentials.
        url: String,
        /// The features, any of which will do.
        features: &'static str,
    },
    /// The client has no reconnect policy: after its first disconnect it would hang for ever.
    #[error("the client given has no reconnect policy; set one with `Builder::set_policy`")]
    NoReconnectPolicy,
    /// The client given is in another database than its configuration says: after its next
    /// reconnect it would be in that one.
    #[error(
        "the client given has selected database {selected}, and its configuration says \
         {configured}; set `Config::database` instead of SELECT"
    )]
    Database {
        /// The database that the configuration says, 0 unless it says any.
        configured: u64,
        /// The database that the server says it is in.
        selected: u64,
    },
    /// No connection was made.
    #[error("cannot connect to {server}")]
    Connect {
        /// Where to.
        server: String,
        /// Why not.
        #[source]
        source: fred::error::Error,
    },
    /// The server is older than Redis 7.0, and refuses the scripts.
    #[error("{server} is Redis {version}; 7.0 is the oldest that can be used")]
    OldServer {
        /// The server's address.
        server: String,
        /// The Redis version that it says it is.
        version: String,
        /// What it said to a script.
        #[source]
        source: Error,
    },
    /// The server answered, and will not serve this key.
    #[error("the server cannot be used")]
    Server(#[from] Error),
}

/// What a stream reports as [`LockEvent::Error`](crate::LockEvent::Error).
///
/// A busy lock is an event of its own, never an error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server does not serve at the moment: unreachable, stopped, loading, out of memory, a
    /// replica. The stream goes on by itself once it does.
    #[error("the server does not serve {key} at the moment")]
    Unavailable {
        /// The key.
        key: Key,
        /// What the server or the connection said.
        #[source]
        source: fred::error::Error,
    },
    /// The server refuses: a missing permission, a wrong password, a version before 7.0.
    #[error("the server refuses to serve {key}")]
    Refused {
        /// The key.
        key: Key,
        /// What the server said.
        #[source]
        source: fred::error::Error,
    },
    /// The key, or a key beside it, holds a value of another type.
    #[error("{key} holds a value of another type")]
    WrongType {
        /// The key.
        key: Key,
    },
    /// The key holds a text that is no lock record, or one of an unknown version.
    #[error("{key} holds a value that this version cannot read ({found}); it is left as it is")]
    UnknownFormat {
        /// The key.
        key: Key,
        /// The version found, or what was found instead.
        found: String,
    },
    /// A grant was made, and too few replicas have acknowledged it in time: it does not count and is
    /// given back. The stream goes on by itself.
    #[error(
        "{acknowledged} of the {wanted} replicas asked for acknowledged a write to {key} within {timeout:?}"
    )]
    NotReplicated {
        /// The key.
        key: Key,
        /// How many were asked for.
        wanted: u32,
        /// How many did.
        acknowledged: u32,
        /// How long they had.
        timeout: Duration,
    },
    /// The runtime that the worker was built on has shut down, or the client that it was given is
    /// closed or was never connected.
    #[error("the worker's runtime has shut down, or its client is not connected")]
    Stopped,
}

impl Error {
    /// Whether the stream ends with this error.
    pub fn is_fatal(&self) -> bool {
        !self.is_retryable()
    }

    /// Whether the stream is trying again by itself: after [`Error::Unavailable`] and
    /// [`Error::NotReplicated`].
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::Unavailable { .. } | Error::NotReplicated { .. }
        )
    }
}

/// Why a guard could not be settled as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The lease was lost before: somebody else took over, or the record has gone.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// The server refused; the lease's end settles the attempt as a failure.
    #[error("the server refused")]
    Refused(#[source] Error),
    /// No answer in time: it may or may not have happened. Or too few replicas have acknowledged a
    /// completion: it has happened, and may be forgotten in a failover.
    #[error("not known to be done within {waited:?}")]
    Unknown {
        /// How long it was tried.
        waited: Duration,
        /// The last failure.
        #[source]
        source: Error,
    },
    /// The result is too large. The guard is still held and comes back, so that the work is not
    /// lost; dropping it fails the attempt.
    #[error("the result has {len} bytes; at most {max} are allowed")]
    ResultTooLarge {
        /// The result's length in bytes.
        len: usize,
        /// The bound.
        max: usize,
        /// The guard.
        guard: Box<WorkGuard>,
    },
    /// The runtime that the worker was built on has shut down; the lease's end settles the attempt.
    #[error("the runtime that the worker was built on has shut down")]
    Stopped,
}

/// Why a guard holds its lease no longer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseLost {
    /// The lease ended, and nothing was asked to renew it.
    #[error("the lease was lost: it ended")]
    Expired,
    /// Another participant was granted the work after the lease had ended.
    #[error("the lease was lost: attempt {attempt} went to {holder}")]
    TakenOver {
        /// Its label.
        holder: String,
        /// Which attempt it was granted.
        attempt: u32,
    },
    /// The record has been removed, or the server has lost it; or the run was begun anew, by
    /// [`LockingWorker::clear`](crate::LockingWorker::clear).
    #[error("the lease was lost: its record has gone")]
    RecordGone,
    /// The lease ended because no renewal got through.
    #[error("the lease was lost: no renewal got through before it ended")]
    Unreachable {
        /// What was said to the last one that was answered.
        #[source]
        source: Option<Error>,
    },
    /// The lease ended because the process, or the runtime that the worker was built on, did not
    /// run for so long: it was stopped, or its machine slept, or the runtime hung for longer than
    /// [`Builder::stall_limit`](crate::Builder::stall_limit).
    #[error("the lease was lost: the process or its runtime did not run for {time:?}")]
    Stalled {
        /// For how long nothing ran.
        time: Duration,
    },
    /// The guard is a copy, in a process that was forked from the one which holds the work.
    #[error("the lease belongs to the process that this one was forked from")]
    Forked,
    /// The work was held for as long as it may be.
    #[error("the lease was lost: the work was held for {max_hold:?}, the longest allowed")]
    MaxHold {
        /// The builder's bound.
        max_hold: Duration,
    },
    /// The guard was settled or dropped.
    #[error("the guard was settled")]
    Settled,
    /// The runtime that the worker was built on has shut down: nothing renews the lease, and nobody
    /// can be told of its end.
    #[error("the lease was lost: the runtime that the worker was built on has shut down")]
    Stopped,
}

/// Why a lease could not be restarted as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenewError {
    /// It was lost, before or meanwhile.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// The server refused; the lease ends as it would have.
    #[error("the server refused")]
    Refused(#[source] Error),
    /// The new lease is outside its bounds. Nothing was sent; the lease is as it was.
    #[error(
        "the lease is {value:?}; it must be from {min:?} to {max:?}, what is left of the longest hold"
    )]
    Lease {
        /// What was asked for.
        value: Duration,
        /// The smallest allowed.
        min: Duration,
        /// What is left of [`Builder::max_hold`](crate::Builder::max_hold).
        max: Duration,
    },
    /// The checkpoint is too large. Nothing was sent; the lease and the last checkpoint are as they
    /// were.
    #[error("the checkpoint has {len} bytes; at most {max} are allowed")]
    CheckpointTooLarge {
        /// Its length in bytes.
        len: usize,
        /// The bound.
        max: usize,
    },
}

/// Why a fenced script brought no result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FencedError {
    /// The grant does not stand any more. The script did not run.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// A key lies in another slot of the cluster than the lock, so that no script can have both. The
    /// script did not run. A common hash tag brings them together: lock `{7}:lock`, key `{7}:total`.
    #[error("{key:?} is in slot {slot} of the cluster, the lock in slot {wanted}")]
    OtherSlot {
        /// The script's key.
        key: String,
        /// Its slot.
        slot: u16,
        /// The slot of the lock.
        wanted: u16,
    },
    /// The worker is in memory, where there are no scripts.
    #[error("the memory store runs no scripts")]
    NoScripts,
    /// The keys or arguments cannot be sent, or the answer is not of the type asked for.
    #[error("what goes to the script or comes from it is of another type")]
    Type(#[source] fred::error::Error),
    /// The script failed. What it had written before stays written.
    #[error("the script failed")]
    Script(#[source] fred::error::Error),
    /// No answer: it may or may not have run. It is not repeated.
    #[error("the server gave no answer; the script may or may not have run")]
    Unknown(#[source] Error),
}

/// Why [`ClaimExt::claim_each`](crate::ClaimExt::claim_each) cannot claim a job, which is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError<T> {
    /// What the job was to be claimed under is no key.
    #[error("no key for the job")]
    Key {
        /// The job.
        job: T,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The server refuses it, or the worker has stopped.
    #[error("the job cannot be claimed")]
    Refused {
        /// The job.
        job: T,
        /// Why; it is [fatal](Error::is_fatal).
        source: Error,
    },
}

impl<T> ClaimError<T> {
    /// The job.
    pub fn into_job(self) -> T {
        match self {
            ClaimError::Key { job, .. } | ClaimError::Refused { job, .. } => job,
        }
    }
}

/// Why [`LockingWorker::once`](crate::LockingWorker::once) brought no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError {
    /// All attempts failed; the last one for this reason.
    #[error("given up after {} attempts: {}", .0.attempts, .0.reason)]
    GaveUp(MaxAttempts),
    /// The stream ended with this error.
    #[error(transparent)]
    Stream(#[from] Error),
    /// The result is not of the type asked for: the fleet does not agree on it.
    #[cfg(feature = "json")]
    #[error("the result is of another type")]
    Json(#[from] serde_json::Error),
}
