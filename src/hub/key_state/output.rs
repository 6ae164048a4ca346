//! What follows from an act: the machine only says it, and the hub's task does it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Id;
use super::request::Request;
use crate::clock::{Clock, Stamp};
use crate::error::Error;
use crate::hub::message::{NotSettled, OutageId, Update};
use crate::lease::Lease;
use crate::protocol::Reply;
use crate::protocol::record::{Record, RecordSnapshot, Token};

/// An item of a watcher.
pub(in crate::hub) type WatchItem = Result<RecordSnapshot, Error>;

/// One act of a machine: its time, the values that the machine does not make itself, and the list
/// of what follows from it.
pub(in crate::hub) struct Turn<'a, C> {
    pub(in crate::hub) now: Stamp,
    /// The clock of the leases that the act makes.
    pub(in crate::hub) clock: Clock,
    pub(in crate::hub) fresh: &'a mut dyn Fresh,
    pub(in crate::hub) outputs: &'a mut Vec<Output<C>>,
}

/// Values that are random, or new to a whole process.
pub(in crate::hub) trait Fresh {
    /// Returns a token that no stream has had.
    fn token(&mut self) -> Token;

    /// Returns the id of an outage that begins.
    fn outage(&mut self) -> OutageId;

    /// Returns from half the delay to the whole.
    fn jittered(&mut self, delay: Duration) -> Duration;
}

/// One request on its way to the store, and its caller: an opaque value that goes with the request
/// until it is answered. A retry and a request that follows from an answer take the caller over.
#[derive(Clone, Debug, Hash)]
pub(in crate::hub) struct Call<C> {
    pub(in crate::hub) caller: C,
    pub(in crate::hub) request: Request,
}

impl<C> Call<C> {
    /// Whether time can make the request needless. See
    /// [`KeyState::still_wants`](super::KeyState::still_wants).
    pub(in crate::hub) fn is_renewal(&self) -> bool {
        matches!(self.request, Request::Renew(_))
    }
}

/// A task for the hub. The order of the outputs of an act matters: a stream is told before its
/// guard.
pub(in crate::hub) enum Output<C> {
    Call(Call<C>),
    Subscribe,
    Unsubscribe,
    /// Tell a participant.
    Notify(Id, Update),
    /// Give a participant its grant. If it has gone, [`KeyState::give_back`](super::KeyState::give_back)
    /// follows at once.
    Grant {
        lease: Arc<Lease>,
        confirmed: bool,
    },
    /// Tell a watcher.
    Show(Id, WatchItem),
    /// Nothing more is told to this participant or watcher.
    Close(Id),
    /// A request of the caller was answered.
    Answer(C, Answer),
    /// A settlement is over: tell its stream the update, then its caller the result.
    Settled {
        lease: Arc<Lease>,
        update: Update,
        caller: C,
        result: Result<(), NotSettled>,
    },
    Report(Report),
}

/// The answer to a caller that takes no part in the run, or that holds the key.
pub(in crate::hub) enum Answer {
    Renewed(Result<(), Error>),
    Executed(Result<Reply, Error>),
}

/// News for telemetry.
pub(in crate::hub) enum Report {
    Granted {
        lease: Arc<Lease>,
        record: Arc<Record>,
        remaining: Duration,
        /// The time of the last answered request, and the server's time in its answer, in µs.
        server_time: Option<(Instant, u64)>,
    },
    Renewed(Arc<Lease>),
    OutageBegan(Outages, Error),
    /// The server serves again.
    OutageOver(Outages),
    /// This process has lost interest in the key.
    OutageLeft(Outages),
}

/// The two kinds of outages of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Outages {
    /// The hub's own calls fail.
    Calls,
    /// The keeper's renewals fail.
    Renewals,
}

impl<C> Turn<'_, C> {
    pub(super) fn notify(&mut self, id: Id, update: Update) {
        self.outputs.push(Output::Notify(id, update));
    }

    /// Ends a participation or an observation.
    pub(super) fn close(&mut self, id: Id) {
        self.outputs.push(Output::Close(id));
    }

    pub(super) fn report(&mut self, report: Report) {
        self.outputs.push(Output::Report(report));
    }
}
