use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::FusedStream;
use pin_project::pin_project;

use crate::acquire::LockEvent;

/// The stream of [`LockStreamExt::trace`](crate::LockStreamExt::trace).
#[pin_project]
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Trace<St> {
    #[pin]
    events: St,
}

impl<St> Trace<St> {
    pub(super) fn new(events: St) -> Self {
        Self { events }
    }
}

/// Emits one event. Its fields differ by the kind of lock event.
macro_rules! tell {
    ($event:literal $(, $($fields:tt)+)?) => {
        tracing::trace!(target: "redis_locking_worker", event = $event, $($($fields)+,)? "passes")
    };
}

fn tell(event: Option<&LockEvent>) {
    match event {
        Some(LockEvent::Acquired(guard)) => {
            // Reads the lease directly: a method of the guard would mark it as in use and start its
            // renewal.
            let lease = guard.told();
            let (key, attempt, fence) = (&lease.key, lease.attempt, lease.fence);
            tell!("acquired", key = %key, attempt, fencing_token = fence);
        }
        Some(LockEvent::Locked(locked)) => {
            tell!("locked", attempt = locked.attempt, holder = locked.holder);
        }
        Some(LockEvent::Status(status)) => tell!("status", status = %status),
        Some(LockEvent::Completed(completed)) => {
            tell!(
                "completed",
                attempt = completed.attempt,
                holder = completed.holder
            );
        }
        Some(LockEvent::GaveUp(gave_up)) => {
            let reason = &gave_up.reason;
            tell!("gave up", attempt = gave_up.attempts, holder = gave_up.holder, %reason);
        }
        Some(LockEvent::Failed(failed)) => {
            tell!("failed", attempt = failed.attempt, reason = %failed.reason);
        }
        Some(LockEvent::Error(error)) => {
            let error: &(dyn Error + 'static) = error;
            tell!("error", error);
        }
        None => tell!("end"),
    }
}

impl<St: Stream<Item = LockEvent>> Stream for Trace<St> {
    type Item = LockEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LockEvent>> {
        let event = ready!(self.project().events.poll_next(cx));
        tell(event.as_ref());
        Poll::Ready(event)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.events.size_hint()
    }
}

impl<St: FusedStream<Item = LockEvent>> FusedStream for Trace<St> {
    fn is_terminated(&self) -> bool {
        self.events.is_terminated()
    }
}
