//! Scripts that run only while a grant stands.

use super::redis::values::Value;
use crate::error::{Error, LeaseLost, ServerError};

/// A script of the caller's that runs only if a grant still stands.
#[derive(Clone, Debug)]
pub struct FencedScript {
    /// The fencing token of the grant.
    pub fence: u64,
    /// The attempt of the grant.
    pub attempt: u32,
    /// The Lua source, as for `EVAL`.
    pub source: String,
    /// The script's `KEYS`.
    pub keys: Vec<Value>,
    /// The script's `ARGV`.
    pub args: Vec<Value>,
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
    Type(#[source] ServerError),
    /// The script failed. Its earlier writes remain.
    #[error("the script failed")]
    Script(#[source] ServerError),
    /// The server did not answer: the script may or may not have executed. It is not retried.
    #[error("the server gave no answer; the script may or may not have run")]
    Unknown(#[source] Error),
}
