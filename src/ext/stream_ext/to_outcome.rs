use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use pin_project::pin_project;

use crate::acquire::LockEvent;
use crate::error::Error;
use crate::outcome::Outcome;

/// The future of [`LockStreamExt::outcome`](crate::LockStreamExt::outcome).
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ToOutcome<St> {
    #[pin]
    events: St,
}

impl<St> ToOutcome<St> {
    pub(super) fn new(events: St) -> Self {
        Self { events }
    }
}

impl<St: Stream<Item = LockEvent>> Future for ToOutcome<St> {
    type Output = Result<Outcome, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut events = self.project().events;
        loop {
            // This drops a guard that the stream yields, as documented.
            let event = ready!(events.as_mut().poll_next(cx));
            if let Some(outcome) = Outcome::of(event) {
                return Poll::Ready(outcome);
            }
        }
    }
}
