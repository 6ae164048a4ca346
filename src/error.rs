//! What can go wrong, by the step that failed.

use std::time::Duration;

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
    /// No connection was made.
    #[error("cannot connect to {server}")]
    Connect {
        /// Where to.
        server: String,
        /// Why not.
        #[source]
        source: fred::error::Error,
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
    #[error("{key} holds {found}, which this version cannot read; it is left as it is")]
    UnknownFormat {
        /// The key.
        key: Key,
        /// The version found, or what was found instead.
        found: String,
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

    /// Whether the stream is trying again by itself; only [`Error::Unavailable`] is.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }
}

/// Why a guard could not be settled as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The lease was lost before: somebody else took over, or the record has gone.
    #[error("the lease of attempt {attempt} was lost, {}", Successor(.holder, .successor))]
    Lost {
        /// The attempt that was lost.
        attempt: u32,
        /// Who holds the key now, or who completed the work, if anybody.
        holder: Option<String>,
        /// The attempt that the record tells of now; `None` when there is no record.
        successor: Option<u32>,
    },
    /// The server refused; the lease's end settles the attempt as a failure.
    #[error("the server refused")]
    Refused(#[source] Error),
    /// No answer in time: it may or may not have happened.
    #[error("no answer within {waited:?}; it may or may not have happened")]
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

/// The tail of "the lease was lost".
struct Successor<'a>(&'a Option<String>, &'a Option<u32>);

impl std::fmt::Display for Successor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0, self.1) {
            (Some(holder), Some(attempt)) => write!(f, "attempt {attempt} is with {holder}"),
            (_, Some(attempt)) => write!(f, "the record is at attempt {attempt}"),
            (_, None) => f.write_str("the record has gone"),
        }
    }
}
