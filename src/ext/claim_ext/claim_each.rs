use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{Fuse, FusedStream};
use futures::{Stream, StreamExt};
use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::ClaimError;
use crate::acquire::Acquire;
use crate::acquire::LockEvent;
use crate::client::LockingWorker;
use crate::error::Error;
use crate::guard::WorkGuard;

/// The stream of [`ClaimExt::claim_each`](crate::ClaimExt::claim_each).
#[pin_project]
#[must_use = "streams do nothing unless polled"]
pub struct ClaimEach<St: Stream, N> {
    #[pin]
    jobs: Fuse<St>,
    key_of: N,
    worker: LockingWorker,
    concurrency: NonZeroUsize,
    /// The jobs that occupy a place, at most `concurrency`, in the order in which they were taken.
    taken: Vec<Taken<St::Item>>,
    /// The index to poll first: behind the job that was last ready. If many jobs are ready at once,
    /// one round reaches them all.
    next: usize,
    later: Later<St::Item>,
    /// The timer for the postponed jobs. It exists from the first poll on.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the worker has stopped, so that nothing more can be won.
    stopped: bool,
}

/// A job that occupies one of our places.
struct Taken<T> {
    job: T,
    worker: LockingWorker,
    events: Acquire,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    /// Its claim has no answer yet. Leads to `Waiting` or `Ours`.
    Claiming,
    /// Another participant holds it, as far as we know until this time, and we are in its queue.
    /// We give up this place for any job that may be free. Leads to `Ours`.
    Waiting { until: Instant },
    /// Its guard has been yielded, and reports all errors from here on. If the attempt fails, the
    /// job is claimed again.
    Ours,
}

/// Postponed jobs, which are in no queue, ordered by the time of their next claim.
struct Later<T> {
    jobs: BTreeMap<(Instant, u64), (T, LockingWorker)>,
    /// Number of jobs postponed so far. It orders jobs that are due at the same time.
    count: u64,
}

impl<T> Later<T> {
    fn push(&mut self, due: Instant, job: T, worker: LockingWorker) {
        self.jobs.insert((due, self.count), (job, worker));
        self.count += 1;
    }

    fn due(&self) -> Option<Instant> {
        self.jobs.keys().next().map(|(due, _)| *due)
    }

    fn pop(&mut self) -> Option<(T, LockingWorker)> {
        self.jobs.pop_first().map(|(_, job)| job)
    }
}

/// The next step for a job, which follows from its events.
enum Step {
    Won(WorkGuard),
    Failed(Error),
    Again,
    Over,
}

impl<T> Taken<T> {
    fn new(job: T, worker: LockingWorker) -> Self {
        Self {
            job,
            events: worker.acquire_with(false),
            worker,
            stage: Stage::Claiming,
        }
    }

    fn waits_until(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waiting { until } => Some(until),
            Stage::Claiming | Stage::Ours => None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        while let Poll::Ready(event) = self.events.poll_next_unpin(cx) {
            match event {
                Some(LockEvent::Acquired(guard)) => {
                    self.stage = Stage::Ours;
                    return Poll::Ready(Step::Won(guard));
                }
                Some(LockEvent::Locked(locked)) => {
                    let until = Instant::now() + locked.remaining;
                    self.stage = Stage::Waiting { until };
                }
                Some(LockEvent::Failed(_)) => return Poll::Ready(Step::Again),
                Some(LockEvent::Error(error)) if error.is_fatal() => {
                    return Poll::Ready(match self.stage {
                        Stage::Ours => Step::Over,
                        Stage::Claiming | Stage::Waiting { .. } => Step::Failed(error),
                    });
                }
                Some(LockEvent::Status(_) | LockEvent::Error(_)) => {}
                Some(LockEvent::Completed(_) | LockEvent::GaveUp(_)) | None => {
                    return Poll::Ready(Step::Over);
                }
            }
        }
        Poll::Pending
    }
}

impl<St: Stream, N> ClaimEach<St, N> {
    pub(super) fn new(jobs: St, worker: LockingWorker, key_of: N) -> Self {
        Self {
            jobs: jobs.fuse(),
            key_of,
            worker,
            concurrency: NonZeroUsize::MIN,
            taken: Vec::new(),
            next: 0,
            later: Later {
                jobs: BTreeMap::new(),
                count: 0,
            },
            timer: None,
            stopped: false,
        }
    }

    /// Sets the maximum number of jobs that the stream claims, waits for, or has yielded guards of;
    /// by default 1.
    ///
    /// With a larger number, take each guard as soon as it is ready and do the jobs concurrently
    /// ([`buffer_unordered`], [`try_for_each_concurrent`], tasks). The lease of a won job that you
    /// do not take expires, and that counts as an attempt.
    ///
    /// [`buffer_unordered`]:
    /// https://docs.rs/futures/latest/futures/stream/trait.StreamExt.html#method.buffer_unordered
    /// [`try_for_each_concurrent`]:
    /// https://docs.rs/futures/latest/futures/stream/trait.TryStreamExt.html
    pub fn concurrency(mut self, jobs: NonZeroUsize) -> Self {
        self.concurrency = jobs;
        self
    }
}

impl<St, N, K> Stream for ClaimEach<St, N>
where
    St: Stream,
    St::Item: Clone,
    N: FnMut(&St::Item) -> K,
    K: AsRef<[u8]>,
{
    type Item = Result<(St::Item, WorkGuard), ClaimError<St::Item>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        // Created at the first poll, so that a poll outside a runtime panics at once and not only
        // when other participants hold jobs.
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now())));
        let mut unpolled = this.taken.len();
        loop {
            if *this.stopped {
                // Each poll returns one of the jobs that were taken and not yielded.
                let left = this.later.pop().map(|(job, _)| {
                    let source = Error::Stopped;
                    Err(ClaimError::Refused { job, source })
                });
                return Poll::Ready(left);
            }
            while unpolled > 0 {
                let nth = *this.next % this.taken.len();
                *this.next = nth + 1;
                unpolled -= 1;
                let taken = &mut this.taken[nth];
                let Poll::Ready(step) = taken.poll(cx) else {
                    continue;
                };
                if let Step::Won(guard) = step {
                    return Poll::Ready(Some(Ok((taken.job.clone(), guard))));
                }
                let Taken { job, worker, .. } = this.taken.remove(nth);
                *this.next = nth;
                match step {
                    Step::Failed(source) => {
                        if matches!(source, Error::Stopped) {
                            *this.stopped = true;
                            for taken in this.taken.drain(..) {
                                if !matches!(taken.stage, Stage::Ours) {
                                    this.later.push(Instant::now(), taken.job, taken.worker);
                                }
                            }
                        }
                        return Poll::Ready(Some(Err(ClaimError::Refused { job, source })));
                    }
                    // The server has already granted the job to the first waiter. If there was
                    // none, the job is free.
                    Step::Again => this.later.push(Instant::now(), job, worker),
                    Step::Won(_) | Step::Over => {}
                }
            }

            let full = this.taken.len() >= this.concurrency.get();
            let mut taken = this.taken.iter().enumerate();
            let waiting = match full {
                true => taken.find_map(|(nth, taken)| Some((nth, taken.waits_until()?))),
                false => None,
            };
            if full && waiting.is_none() {
                return Poll::Pending;
            }
            // A place is free, or a waiting job gives up its place for one that may be free. Jobs
            // that are due come first: a stream that always has more jobs would otherwise delay
            // them for ever.
            let now = Instant::now();
            let next = if this.later.due().is_some_and(|due| due <= now) {
                this.later.pop()
            } else {
                match this.jobs.as_mut().poll_next(cx) {
                    Poll::Ready(Some(job)) => match this.worker.with_key((this.key_of)(&job)) {
                        Ok(worker) => Some((job, worker)),
                        Err(source) => {
                            return Poll::Ready(Some(Err(ClaimError::Key { job, source })));
                        }
                    },
                    Poll::Ready(None) | Poll::Pending => None,
                }
            };
            // No job is known to be free, so we wait in the queues of postponed jobs, as many as we
            // have places.
            let next = match next {
                None if !full => this.later.pop(),
                next => next,
            };
            match next {
                Some((job, worker)) => {
                    if let Some((nth, until)) = waiting {
                        // `until` may have passed, since we receive no renewals. The next claim
                        // finds a later time.
                        let Taken { job, worker, .. } = this.taken.remove(nth);
                        this.later.push(until, job, worker);
                    }
                    *this.next = this.taken.len();
                    unpolled = 1;
                    this.taken.push(Taken::new(job, worker));
                }
                None if this.taken.is_empty() && this.jobs.is_done() => {
                    return Poll::Ready(None);
                }
                None => {
                    let Some(due) = this.later.due() else {
                        return Poll::Pending;
                    };
                    if timer.deadline() != due {
                        timer.as_mut().reset(due);
                    }
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl<St, N, K> FusedStream for ClaimEach<St, N>
where
    St: Stream,
    St::Item: Clone,
    N: FnMut(&St::Item) -> K,
    K: AsRef<[u8]>,
{
    fn is_terminated(&self) -> bool {
        let over = self.stopped || self.jobs.is_done();
        over && self.taken.is_empty() && self.later.jobs.is_empty()
    }
}

impl<St: Stream, N> fmt::Debug for ClaimEach<St, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClaimEach")
            .field("worker", &self.worker)
            .field("taken", &self.taken.len())
            .field("later", &self.later.jobs.len())
            .finish_non_exhaustive()
    }
}
