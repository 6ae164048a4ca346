//! What building a worker returns when it fails.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ServerError};
use crate::key::KeyError;
use crate::store::redis::ConnectError;

/// Failure of [`Builder::build`](crate::Builder::build).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The thread that renews leases cannot be started: the process or its user may have reached
    /// its limit.
    #[error(
        "the thread that renews leases cannot be started; see the limit on processes \
         (ulimit -u, pids)"
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
        source: ServerError,
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
        source: ServerError,
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

impl From<ConnectError> for BuildError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Url { url, source } => Self::Url { url, source },
            ConnectError::Feature { url, features } => Self::Feature { url, features },
            ConnectError::NoReconnectPolicy => Self::NoReconnectPolicy,
            ConnectError::Connect { server, source } => Self::Connect { server, source },
        }
    }
}
