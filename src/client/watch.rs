//! The public stream that watches a key without taking part.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::FusedStream;

use crate::client::Snapshot;
use crate::error::Error;
use crate::hub::{Handle, WatchHandle};
use crate::key::Key;

/// A stream of a key's transitions. [`LockingWorker::watch`](crate::LockingWorker::watch) returns
/// it.
///
/// It starts at its first poll and yields the current state of the run. Then it yields each
/// transition, renewals included. It ends only after a fatal [`Error`]. If messages are lost, or an
/// answer overtakes them, it may skip transitions. It never skips the last state.
///
/// # Cancel safety
///
/// Dropping it at any point leaves nothing behind.
#[must_use = "streams do nothing unless polled"]
pub struct Watch {
    key: Key,
    state: State,
}

enum State {
    /// The stream has requested nothing yet. Leads to `Watching`.
    Idle(Handle),
    /// The stream receives the transitions. Leads to `Finished` after a fatal error.
    Watching(WatchHandle),
    /// The stream yields `None` for ever.
    Finished,
}

impl Watch {
    pub(crate) fn new(hub: Handle, key: Key) -> Self {
        let state = State::Idle(hub);
        Self { key, state }
    }
}

impl Stream for Watch {
    type Item = Result<Snapshot, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let sight = match &mut this.state {
                State::Finished => return Poll::Ready(None),
                State::Idle(hub) => {
                    this.state = State::Watching(hub.observe(&this.key));
                    continue;
                }
                State::Watching(lookout) => match Pin::new(lookout).poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(sight) => sight.unwrap_or(Err(Error::Stopped)),
                },
            };
            if sight.as_ref().is_err_and(Error::is_fatal) {
                this.state = State::Finished;
            }
            return Poll::Ready(Some(sight.map(|frame| Snapshot::of(&frame))));
        }
    }
}

impl FusedStream for Watch {
    fn is_terminated(&self) -> bool {
        matches!(self.state, State::Finished)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
