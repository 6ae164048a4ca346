use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::FusedStream;
use pin_project::pin_project;

use crate::acquire::LockEvent;

/// The stream of [`LockStreamExt::without_status`](crate::LockStreamExt::without_status).
#[pin_project]
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct WithoutStatus<St> {
    #[pin]
    events: St,
}

impl<St> WithoutStatus<St> {
    pub(super) fn new(events: St) -> Self {
        Self { events }
    }
}

impl<St: Stream<Item = LockEvent>> Stream for WithoutStatus<St> {
    type Item = LockEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LockEvent>> {
        let mut events = self.project().events;
        loop {
            match ready!(events.as_mut().poll_next(cx)) {
                Some(LockEvent::Status(_)) => {}
                event => return Poll::Ready(event),
            }
        }
    }
}

impl<St: FusedStream<Item = LockEvent>> FusedStream for WithoutStatus<St> {
    fn is_terminated(&self) -> bool {
        self.events.is_terminated()
    }
}
