//! The messages to the hub, and its updates to participants.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::key_state::WatchItem;
use super::{Grant, Id, Lease, RunConfig};
use crate::error::{Error, LeaseLost};
use crate::keeper::News;
use crate::key::Key;
use crate::outcome::{Completed, Failed, GaveUp, Locked};
use crate::protocol::{Op, Outcome, Reply};
use crate::store::values::Value;
use crate::store::{FencedError, FencedScript};

/// Identifies an outage.
pub(crate) type OutageId = u64;

pub(super) enum Message {
    Join {
        key: Key,
        id: Id,
        terms: Arc<RunConfig>,
        mailbox: UnboundedSender<Update>,
    },
    /// Observe a key without taking part.
    Observe {
        key: Key,
        id: Id,
        mailbox: UnboundedSender<WatchItem>,
    },
    Leave {
        key: Key,
        id: Id,
    },
    /// Execute one operation for a caller that takes no part in the run.
    Ask {
        key: Key,
        op: Op,
        answer: oneshot::Sender<Result<Reply, Error>>,
    },
    /// Read the labels of the waiters.
    Line {
        key: Key,
        most: u32,
        answer: oneshot::Sender<Result<Vec<String>, Error>>,
    },
    /// Restart a lease, which also confirms a pushed grant.
    Confirm(Arc<Lease>),
    /// A guard was made of a grant whose lease had ended.
    Expired(Arc<Lease>),
    /// A report of the keeper.
    Kept(News),
    Renew(Renewal),
    Fenced {
        key: Key,
        script: FencedScript,
        reply: oneshot::Sender<Result<Value, FencedError>>,
    },
    /// Give back a grant of which no guard was made.
    Return(Arc<Lease>),
    Settle(Settlement),
    /// Return the tracker of all calls so far.
    Drain(oneshot::Sender<TaskTracker>),
}

/// A holder's request to restart its lease.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) lease: Arc<Lease>,
    /// Least length of the lease from now on, in ms; `None` for the usual length.
    pub(super) length: Option<u64>,
    pub(super) checkpoint: Option<Bytes>,
    /// Dropped unanswered when the lease is lost.
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
}

/// A holder's request to end its grant.
#[derive(Debug)]
pub(super) struct Settlement {
    pub(super) lease: Arc<Lease>,
    pub(super) outcome: Outcome,
    /// Dropped unanswered when the runtime dies.
    pub(super) reply: Option<oneshot::Sender<Result<(), NotSettled>>>,
}

/// An update from the hub to a participant.
#[derive(Debug)]
pub(crate) enum Update {
    Locked(Locked),
    Granted(Grant),
    Confirmed,
    /// The lease is lost. The server may still accept its settlement.
    Lost,
    /// The participant's own grant was settled.
    Settled(Ended),
    /// Another participant ended the run.
    Ended(Ended),
    /// The server refuses: a fatal error.
    Refused(Error),
    /// The server does not answer, in this outage: a transient error.
    Unavailable(Error, OutageId),
}

/// Why a lease was not renewed.
pub(crate) enum NotRenewed {
    Lost(LeaseLost),
    Refused(Error),
}

/// Why a grant was not settled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotSettled {
    #[error(transparent)]
    Lost(LeaseLost),
    #[error("the server refused")]
    Refused(#[source] Error),
    #[error("not known to be done within {waited:?}")]
    Unknown {
        waited: Duration,
        #[source]
        source: Error,
    },
}

/// How a participation ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Completed(Completed),
    GaveUp(GaveUp),
    Failed(Failed),
}
