//! What the hub is asked, and what it tells.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use futures::channel::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::run::WatchItem;
use super::{Grant, Id, Lease, RunConfig};
use crate::error::{Error, LeaseLost};
use crate::keeper::News;
use crate::key::Key;
use crate::outcome::{Completed, Failed, GaveUp, Locked};
use crate::protocol::{Op, Outcome, Reply};
use crate::store::{FencedError, FencedScript};

/// Tells outages apart.
pub(crate) type OutageId = u64;

pub(super) enum Message {
    Join {
        key: Key,
        id: Id,
        terms: Arc<RunConfig>,
        mailbox: UnboundedSender<Update>,
    },
    /// Look on.
    Observe {
        key: Key,
        id: Id,
        mailbox: UnboundedSender<WatchItem>,
    },
    Leave {
        key: Key,
        id: Id,
    },
    /// Carry this out for somebody who takes no part.
    Ask {
        key: Key,
        op: Op,
        answer: oneshot::Sender<Result<Reply, Error>>,
    },
    /// Who waits.
    Line {
        key: Key,
        most: u32,
        answer: oneshot::Sender<Result<Vec<String>, Error>>,
    },
    /// Restart a lease, which also confirms a grant that was handed over.
    Confirm(Arc<Lease>),
    /// A guard was made of it when its time was over.
    Expired(Arc<Lease>),
    /// What the keeper does.
    Kept(News),
    Renew(Renewal),
    Fenced {
        key: Key,
        script: FencedScript,
        reply: oneshot::Sender<Result<Value, FencedError>>,
    },
    /// A grant that nobody began to work on.
    Return(Arc<Lease>),
    Settle(Settlement),
    /// Answered with the tracker of everything asked so far.
    Drain(oneshot::Sender<TaskTracker>),
}

/// A restart of a lease, as its holder wants it.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) lease: Arc<Lease>,
    /// How long it lasts from now on at least, in ms; `None` for the usual length.
    pub(super) length: Option<u64>,
    pub(super) checkpoint: Option<Bytes>,
    /// Dropped unanswered when the lease is lost.
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
}

/// The end of a grant, as its holder wants it.
#[derive(Debug)]
pub(super) struct Settlement {
    pub(super) lease: Arc<Lease>,
    pub(super) outcome: Outcome,
    /// Dropped unanswered when the runtime dies.
    pub(super) reply: Option<oneshot::Sender<Result<(), NotSettled>>>,
}

/// What a participant is told.
#[derive(Debug)]
pub(crate) enum Update {
    Locked(Locked),
    Granted(Grant),
    Confirmed,
    /// The lease is over; it may still be settled in time.
    Lost,
    /// Its own grant was settled.
    Settled(Ended),
    /// Somebody else ended the run.
    Ended(Ended),
    /// The server refuses.
    Refused(Error),
    /// The server does not serve, in this outage.
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
