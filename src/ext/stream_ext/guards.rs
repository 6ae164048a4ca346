use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::FusedStream;
use pin_project::pin_project;

use crate::acquire::LockEvent;
use crate::guard::WorkGuard;

/// The stream of [`LockStreamExt::guards`](crate::LockStreamExt::guards).
#[pin_project]
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Guards<St> {
    #[pin]
    events: St,
}

impl<St> Guards<St> {
    pub(super) fn new(events: St) -> Self {
        Self { events }
    }
}

impl<St: Stream<Item = LockEvent>> Stream for Guards<St> {
    type Item = WorkGuard;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WorkGuard>> {
        let mut events = self.project().events;
        loop {
            match ready!(events.as_mut().poll_next(cx)) {
                Some(LockEvent::Acquired(guard)) => return Poll::Ready(Some(guard)),
                Some(_) => {}
                None => return Poll::Ready(None),
            }
        }
    }
}

impl<St: FusedStream<Item = LockEvent>> FusedStream for Guards<St> {
    fn is_terminated(&self) -> bool {
        self.events.is_terminated()
    }
}
