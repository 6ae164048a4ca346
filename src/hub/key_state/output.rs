//! The outputs of an act. The machine only returns them, and the hub's task executes them.

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

/// An item for a watcher.
pub(in crate::hub) type WatchItem = Result<RecordSnapshot, Error>;

/// The context of one act: its time, the source of the values that the machine does not make
/// itself, and the list of its outputs.
pub(in crate::hub) struct Turn<'a, C> {
    pub(in crate::hub) now: Stamp,
    /// Clock of the leases that the act makes.
    pub(in crate::hub) clock: Clock,
    pub(in crate::hub) fresh: &'a mut dyn Fresh,
    pub(in crate::hub) outputs: &'a mut Vec<Output<C>>,
}

/// The source of values that are random, or unique in the process.
pub(in crate::hub) trait Fresh {
    /// Returns a token that no participant has had.
    fn token(&mut self) -> Token;

    /// Returns the id of a new outage.
    fn outage(&mut self) -> OutageId;

    /// Returns a random time between half of the delay and all of it.
    fn jittered(&mut self, delay: Duration) -> Duration;
}

/// A request to the store, and its caller: an opaque value that stays with the request until it is
/// answered. A retry, or a request that follows from the answer, takes the caller over.
#[derive(Clone, Debug, Hash)]
pub(in crate::hub) struct Call<C> {
    pub(in crate::hub) caller: C,
    pub(in crate::hub) request: Request,
}

impl<C> Call<C> {
    /// Whether the request can lose its purpose while it waits to be sent. See
    /// [`KeyState::still_wants`](super::KeyState::still_wants).
    pub(in crate::hub) fn is_renewal(&self) -> bool {
        matches!(self.request, Request::Renew(_))
    }
}

/// An instruction to the hub. The order of an act's outputs matters: a stream is notified before
/// its guard gets an answer.
pub(in crate::hub) enum Output<C> {
    Call(Call<C>),
    Subscribe,
    Unsubscribe,
    /// Notify a participant.
    Notify(Id, Update),
    /// Give a participant its grant. If the participant has left, the hub calls
    /// [`KeyState::undelivered`](super::KeyState::undelivered) at once.
    Grant {
        lease: Arc<Lease>,
        confirmed: bool,
    },
    /// Send an item to a watcher.
    Show(Id, WatchItem),
    /// Close the mailbox of a participant or watcher.
    Close(Id),
    /// Answer the request of a caller.
    Answer(C, Answer),
    /// The request of the caller is over, and nothing more follows from it.
    Release(C),
    /// End a settlement: send the update to its stream, then the result to its caller.
    Settled {
        lease: Arc<Lease>,
        update: Update,
        caller: C,
        result: Result<(), NotSettled>,
    },
    Report(Report),
}

/// The answer to a guard that restarts its lease, or to a caller that takes no part in the run.
pub(in crate::hub) enum Answer {
    Renewed(Result<(), Error>),
    Executed(Result<Reply, Error>),
}

/// A report to telemetry.
pub(in crate::hub) enum Report {
    Granted {
        lease: Arc<Lease>,
        record: Arc<Record>,
        remaining: Duration,
        /// Time of the last answered request, and the server's time in its answer, in µs.
        server_time: Option<(Instant, u64)>,
    },
    Renewed(Arc<Lease>),
    OutageBegan(OutageKind, Error),
    /// The server answers again.
    OutageOver(OutageKind),
    /// The outage goes on, but this process has no request left for the key.
    OutageLeft(OutageKind),
}

/// The kind of an outage of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum OutageKind {
    /// The hub's calls fail.
    Calls,
    /// The keeper's renewals fail.
    Renewals,
}

impl<C> Turn<'_, C> {
    pub(super) fn notify(&mut self, id: Id, update: Update) {
        self.outputs.push(Output::Notify(id, update));
    }

    /// Ends a participation or a watch.
    pub(super) fn close(&mut self, id: Id) {
        self.outputs.push(Output::Close(id));
    }

    /// Lets the caller of an answered request go, once the outputs before this one are carried out.
    pub(super) fn release(&mut self, caller: Option<C>) {
        self.outputs.extend(caller.map(Output::Release));
    }

    pub(super) fn report(&mut self, report: Report) {
        self.outputs.push(Output::Report(report));
    }
}
