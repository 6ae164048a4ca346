//! Requests to the store. Each contains what the machine needs when the answer comes.
//!
//! A withdrawal also gives back a held grant. If its participant has gone, one command then gives
//! back the grant of a claim, whether the claim's answer arrived or not (`protocol::transition`).

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Id;
use super::grants::Settling;
use super::renewal::RenewOrigin;
use crate::lease::Lease;
use crate::lease::RunConfig;
use crate::protocol::record::Token;
use crate::protocol::{Op, Outcome};

/// A request to the store.
#[derive(Clone, Debug, Hash)]
pub(in crate::hub) enum Request {
    /// Takes the key, or joins its queue.
    Claim {
        id: Id,
        token: Token,
        terms: Arc<RunConfig>,
    },
    /// Restarts a lease.
    Renew(Renew),
    /// Ends a grant.
    Settle(Settling),
    /// Leaves the queue, or gives back a grant that was not used.
    Withdraw(Withdraw),
    /// Reads the record for the watchers.
    Read,
    /// Executes an operation for a caller that takes no part in the run.
    Execute(Op),
}

#[derive(Clone, Debug, Hash)]
pub(in crate::hub) struct Renew {
    pub(super) lease: Arc<Lease>,
    /// Length of the lease in ms, before the longest hold shortens it.
    pub(super) length: u64,
    pub(super) checkpoint: Option<Bytes>,
    /// Number of the grant's checkpoints when this was requested. A newer checkpoint replaces this
    /// one.
    pub(super) nth: u64,
    pub(super) origin: RenewOrigin,
}

#[derive(Clone, Debug, Hash)]
pub(in crate::hub) struct Withdraw {
    pub(super) token: Token,
    pub(super) terms: Arc<RunConfig>,
    /// Fencing token of the grant of this token that must stay as it is.
    pub(super) except_fence: Option<u64>,
    pub(super) retry_until: Instant,
}

impl Request {
    pub(super) fn is_claim(&self) -> bool {
        matches!(self, Request::Claim { .. })
    }

    /// Returns the operation as it is now. A renewal that waits in the queue may have less left of
    /// its longest hold when it leaves.
    pub(in crate::hub) fn op(&self) -> Op {
        match self {
            Request::Claim { token, terms, .. } => Op::Claim {
                token: *token,
                label: terms.label.clone(),
                lease: terms.lease,
                max_attempts: terms.max_attempts,
                retention: terms.retention,
            },
            Request::Renew(renew) => Op::Renew {
                fence: renew.lease.fence,
                lease: renew.lease.restartable_for(renew.length),
                checkpoint: renew.checkpoint.clone(),
            },
            Request::Settle(settling) => Op::Settle {
                fence: settling.lease.fence,
                outcome: settling.outcome.clone(),
                window: settling.lease.terms.window(),
            },
            Request::Withdraw(withdraw) => Op::Withdraw {
                token: withdraw.token,
                label: withdraw.terms.label.clone(),
                except_fence: withdraw.except_fence,
                window: withdraw.terms.window(),
            },
            Request::Read => Op::Inspect,
            Request::Execute(op) => op.clone(),
        }
    }
}

impl Settling {
    /// Whether the settlement waits for replicas. The server may apply it and then refuse the wait.
    pub(super) fn is_replicated(&self) -> bool {
        matches!(self.outcome, Outcome::Done(_)) && self.lease.terms.replicated
    }
}
