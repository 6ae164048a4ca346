use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::FusedStream;
use pin_project::pin_project;

use crate::acquire::{LockEvent, Status};

/// The stream of [`LockStreamExt::inspect_status`](crate::LockStreamExt::inspect_status).
#[pin_project]
#[must_use = "streams do nothing unless polled"]
pub struct InspectStatus<St, I> {
    #[pin]
    events: St,
    inspect: I,
}

impl<St, I> InspectStatus<St, I> {
    pub(super) fn new(events: St, inspect: I) -> Self {
        Self { events, inspect }
    }
}

impl<St, I> Stream for InspectStatus<St, I>
where
    St: Stream<Item = LockEvent>,
    I: FnMut(&Status),
{
    type Item = LockEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LockEvent>> {
        let this = self.project();
        let event = ready!(this.events.poll_next(cx));
        if let Some(LockEvent::Status(status)) = &event {
            (this.inspect)(status);
        }
        Poll::Ready(event)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.events.size_hint()
    }
}

impl<St, I> FusedStream for InspectStatus<St, I>
where
    St: FusedStream<Item = LockEvent>,
    I: FnMut(&Status),
{
    fn is_terminated(&self) -> bool {
        self.events.is_terminated()
    }
}

impl<St: fmt::Debug, I> fmt::Debug for InspectStatus<St, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InspectStatus")
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}
