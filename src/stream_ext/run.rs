use std::fmt;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use pin_project::pin_project;
use tokio::sync::oneshot;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::error::{Error, SettleError};
use crate::event::{LockEvent, Outcome};
use crate::guard::{WorkGuard, failure};
use crate::store;
use crate::telemetry::Within;

/// What work is completed with: nothing, or bytes that every participant gets in
/// [`Completed::result`](crate::Completed::result).
pub trait IntoResult {
    /// The bytes.
    fn into_result(self) -> Bytes;
}

impl IntoResult for () {
    fn into_result(self) -> Bytes {
        Bytes::new()
    }
}

macro_rules! into_result {
    ($($bytes:ty),*) => {$(
        impl IntoResult for $bytes {
            fn into_result(self) -> Bytes {
                self.into()
            }
        }
    )*};
}

into_result!(
    Bytes,
    BytesMut,
    Vec<u8>,
    Box<[u8]>,
    String,
    &'static [u8],
    &'static str
);

/// Future of [`LockStreamExt::run`](crate::LockStreamExt::run).
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Run<St, W, F> {
    // Before the events: the work stops first.
    #[pin]
    turn: Turn<F>,
    #[pin]
    events: St,
    work: W,
    /// What the server has recorded of our attempt. It is the outcome if the stream says nothing
    /// more.
    recorded: Option<Outcome>,
}

/// What it waits for.
#[pin_project(project = Project, project_replace = Replace)]
enum Turn<F> {
    /// The next event. Goes to `Working` when it is our turn.
    Waiting,
    /// The work, or the loss of its lease. Goes to `Settling`, or back to `Waiting` when the lease is lost: nobody
    /// waits for what a lost attempt has to say.
    Working {
        // In this order: when the guard ends, the work must have.
        #[pin]
        work: Within<F>,
        #[pin]
        lost: WaitForCancellationFutureOwned,
        guard: Held,
    },
    /// The server's answer, whatever it is: the stream tells how the run goes on. Goes to `Waiting`.
    Settling {
        answer: oneshot::Receiver<Result<(), SettleError>>,
        /// What the server has recorded if it agrees.
        outcome: Option<Outcome>,
    },
}

impl<St, W, F> Run<St, W, F> {
    pub(crate) fn new(events: St, work: W) -> Self {
        Self {
            turn: Turn::Waiting,
            events,
            work,
            recorded: None,
        }
    }
}

impl<St, W, F, T, E> Future for Run<St, W, F>
where
    St: Stream<Item = LockEvent>,
    W: FnMut(Arc<WorkGuard>) -> F,
    F: Future<Output = Result<T, E>>,
    T: IntoResult,
    E: Display,
{
    type Output = Result<Outcome, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.turn.as_mut().project() {
                Project::Waiting => match ready!(this.events.as_mut().poll_next(cx)) {
                    Some(LockEvent::Acquired(guard)) => {
                        *this.recorded = None;
                        let guard = Held(Arc::new(guard));
                        Turn::Working {
                            lost: guard.0.cancellation_token().cancelled_owned(),
                            work: guard.0.begin(|| (this.work)(guard.0.clone())),
                            guard,
                        }
                    }
                    // It was cut short, as with `take_until`, and what it would have told was
                    // settled.
                    None if this.recorded.is_some() => {
                        let recorded = this.recorded.take().unwrap_or(Outcome::Left);
                        return Poll::Ready(Ok(recorded));
                    }
                    event => {
                        if matches!(event, Some(LockEvent::Locked(_))) {
                            // Another attempt has begun, which we wait for.
                            *this.recorded = None;
                        }
                        match Outcome::of(event) {
                            Some(outcome) => return Poll::Ready(outcome),
                            None => continue,
                        }
                    }
                },
                Project::Working { work, lost, guard } => {
                    // Once it is lost the work is not polled again.
                    let worked = match lost.poll(cx) {
                        Poll::Ready(()) => None,
                        Poll::Pending => {
                            let _panics = OnPanic(&guard.0);
                            Some(ready!(work.poll(cx)))
                        }
                    };
                    // The work has gone before the server hears that it is over.
                    let turn = this.turn.as_mut().project_replace(Turn::Waiting);
                    match (turn, worked) {
                        (Replace::Working { guard, .. }, Some(worked)) => {
                            let settlement = settlement(worked);
                            let outcome = Some(guard.0.outcome_of(&settlement));
                            let answer = guard.0.send(settlement);
                            Turn::Settling { answer, outcome }
                        }
                        _ => continue,
                    }
                }
                Project::Settling { answer, outcome } => {
                    if let Ok(Ok(())) = ready!(Pin::new(answer).poll(cx)) {
                        *this.recorded = outcome.take();
                    }
                    Turn::Waiting
                }
            };
            this.turn.as_mut().project_replace(next);
        }
    }
}

impl<St: fmt::Debug, W, F> fmt::Debug for Run<St, W, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

/// Ends the guard, whoever else still has a hold of it.
struct Held(Arc<WorkGuard>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Work that panics is over at once, however long the future stays that has polled it.
struct OnPanic<'a>(&'a WorkGuard);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandon();
        }
    }
}

/// What becomes of a run whose work has ended so.
fn settlement<T: IntoResult, E: Display>(worked: Result<T, E>) -> store::Outcome {
    let result = match worked {
        Ok(result) => result.into_result(),
        Err(reason) => return failure(reason.to_string()),
    };
    let (len, max) = (result.len(), WorkGuard::MAX_RESULT);
    match len <= max {
        true => store::Outcome::Done(result),
        false => failure(format!(
            "the result has {len} bytes; at most {max} are allowed"
        )),
    }
}
