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

use crate::acquire::LockEvent;
use crate::error::Error;
use crate::guard::{WorkGuard, failure};
use crate::hub::NotSettled;
use crate::outcome::Outcome;
use crate::protocol;
use crate::telemetry::Within;

/// The result of completed work: nothing, or bytes that every participant receives in
/// [`Completed::result`](crate::Completed::result).
pub trait IntoResult {
    /// Returns the bytes of the result.
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

/// The future of [`LockStreamExt::run`](crate::LockStreamExt::run).
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct Run<St, W, F> {
    // Declared before `events`, and so dropped first: the work stops before its stream.
    #[pin]
    turn: Turn<F>,
    #[pin]
    events: St,
    work: W,
    /// The end of our attempt as the server has recorded it. It becomes the outcome if the stream
    /// yields nothing more.
    recorded: Option<Outcome>,
}

/// What the future waits for.
#[pin_project(project = Project, project_replace = Replace)]
enum Turn<F> {
    /// The next event. Leads to `Working` with a guard.
    Waiting,
    /// The end of the work, or the loss of its lease. Leads to `Settling`, and after a loss to
    /// `Waiting`: the drop of the guard then settles it, and nothing waits for the answer.
    Working {
        // Declared before `guard`, and so dropped first: the work stops before its guard is
        // settled.
        #[pin]
        work: Within<F>,
        #[pin]
        lost: WaitForCancellationFutureOwned,
        guard: Held,
    },
    /// The server's answer to the settlement. Leads to `Waiting` whatever the answer is: the stream
    /// reports how the run continues.
    Settling {
        answer: oneshot::Receiver<Result<(), NotSettled>>,
        /// The end of our attempt if the server accepts the settlement.
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
                    // The stream was cut short, for example by `take_until`, after the server had
                    // recorded the end of our attempt.
                    None if this.recorded.is_some() => {
                        let recorded = this.recorded.take().unwrap_or(Outcome::Left);
                        return Poll::Ready(Ok(recorded));
                    }
                    event => {
                        if matches!(event, Some(LockEvent::Locked(_))) {
                            // Another attempt has begun, and we wait for its end.
                            *this.recorded = None;
                        }
                        match Outcome::of(event) {
                            Some(outcome) => return Poll::Ready(outcome),
                            None => continue,
                        }
                    }
                },
                Project::Working { work, lost, guard } => {
                    // The loss is polled first, so that the work is not polled again after it.
                    let worked = match lost.poll(cx) {
                        Poll::Ready(()) => None,
                        Poll::Pending => {
                            let _panics = OnPanic(&guard.0);
                            Some(ready!(work.poll(cx)))
                        }
                    };
                    // This drops the work before the server receives the settlement.
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

/// Settles the guard when it is dropped, even if a clone of the guard exists.
struct Held(Arc<WorkGuard>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Settles the guard when the work panics, even if the future that polled the work lives on.
struct OnPanic<'a>(&'a WorkGuard);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandon();
        }
    }
}

/// Returns the settlement for the result of the work.
fn settlement<T: IntoResult, E: Display>(worked: Result<T, E>) -> protocol::Outcome {
    let result = match worked {
        Ok(result) => result.into_result(),
        Err(reason) => return failure(reason.to_string()),
    };
    let (len, max) = (result.len(), WorkGuard::MAX_RESULT);
    match len <= max {
        true => protocol::Outcome::Done(result),
        false => failure(format!(
            "the result has {len} bytes; at most {max} are allowed"
        )),
    }
}
