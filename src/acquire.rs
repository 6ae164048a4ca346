//! One participation in one run, as a stream.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::FusedStream;
use pin_project::pin_project;

use crate::error::Error;
use crate::event::{Failed, LockEvent, Locked, Reason, Status, StatusLevel};
use crate::guard::WorkGuard;
use crate::hub::{Ended, Grant, Handle, OutageId, Participant, Update};
use crate::store::key::Key;
use crate::telemetry::Participation;
use crate::terms::RunConfig;

/// What a stream needs to take part.
#[derive(Clone, Debug)]
pub(crate) struct AcquireConfig {
    pub(crate) hub: Handle,
    pub(crate) key: Key,
    pub(crate) terms: Arc<RunConfig>,
    pub(crate) status_level: StatusLevel,
    pub(crate) rejoin: bool,
}

/// One participation in one run: what [`LockingWorker::acquire`](crate::LockingWorker::acquire)
/// returns.
///
/// It joins the race when it is first polled, yields any number of other events and then exactly
/// one terminal event ([`LockEvent::is_terminal`]), and `None` for ever after that.
///
#[cfg_attr(doc, doc = include_str!("../docs/events.svg"))]
///
/// # Cancel safety
///
/// Dropping it at any point leaves nothing behind: a claim on its way is given back when its answer
/// comes, a place in the waiting line is given up, and a grant that was not yielded yet goes to the
/// next in line without being counted. A [`WorkGuard`] that it has yielded lives on by itself.
///
/// A stream that is not polled keeps its place; a grant that comes to it meanwhile is lost after
/// the confirm window (500 ms, or the lease if that is shorter), and it waits in line again.
#[pin_project]
#[must_use = "streams do nothing unless polled"]
pub struct Acquire {
    entry: AcquireConfig,
    /// Taken while it takes part.
    #[pin]
    seat: Option<Participant>,
    state: State,
    /// What the last piece of news has brought and is not yielded yet.
    events: VecDeque<LockEvent>,
    /// The attempt that somebody else was last known to be at.
    seen: Option<u32>,
    /// The last outage that was yielded.
    outage: Option<OutageId>,
    observed: Participation,
}

#[derive(Debug)]
enum State {
    /// Takes no part yet, or not any more in an attempt of its own. Goes to `Watching`.
    Idle,
    /// Waits for its turn. Goes to `Granted` when the work is, by way of `Confirming` if
    /// little is left of the grant by the time it is polled, or if replicas have to acknowledge it,
    /// and to `Finished` when the run ends.
    Watching,
    /// Waits for the grant to be confirmed. Goes to `Granted`, or to `Idle` when the grant is lost.
    Confirming {
        grant: Grant,
        /// It has been `Granted` before.
        again: bool,
    },
    /// Yields the guard next, behind what is told of it before. Until then it is nobody's attempt: dropped with the
    /// stream, the grant goes back uncounted. Goes to `Working`; to `Idle` if the grant is lost by then; and once to
    /// `Confirming`, if little is left of it by then.
    Granted { grant: Grant, again: bool },
    /// Waits for its guard to be settled or lost. Goes to `Finished`, or to `Idle` to rejoin.
    Working {
        attempt: u32,
        /// The lease is over. Unless the guard has been settled all the same, that is the end.
        lost: bool,
    },
    /// Yields `None` for ever.
    Finished,
}

impl Acquire {
    pub(crate) fn new(entry: AcquireConfig) -> Self {
        Self {
            entry,
            seat: None,
            state: State::Idle,
            events: VecDeque::new(),
            seen: None,
            outage: None,
            observed: Participation::default(),
        }
    }

    /// What a piece of news means in this state.
    fn take(&mut self, state: State, update: Update) -> State {
        match (state, update) {
            (State::Watching, Update::Locked(locked)) => {
                self.locked(locked);
                State::Watching
            }
            (State::Watching, Update::Granted(mut grant)) if grant.is_doubtful() => {
                grant.confirm();
                let again = false;
                State::Confirming { grant, again }
            }
            (State::Watching, Update::Granted(grant)) => self.granted(grant),
            (State::Confirming { grant, again }, Update::Confirmed) => match again {
                false => self.granted(grant),
                true => State::Granted { grant, again },
            },
            (State::Granted { .. }, Update::Lost) => State::Idle,
            (State::Confirming { .. }, Update::Lost) => State::Idle,
            (State::Working { attempt, .. }, Update::Lost) => State::Working {
                attempt,
                lost: true,
            },
            (State::Working { .. }, Update::Settled(ended)) => self.settled(ended),
            (State::Watching, Update::Ended(ended)) => self.ended(ended),
            (state, Update::Unavailable(error, outage)) => {
                // A stream that rejoins is told again of an outage that goes on.
                if self.outage.replace(outage) != Some(outage) {
                    self.events.push_back(LockEvent::Error(error));
                }
                state
            }
            (_, Update::Refused(error)) => {
                self.events.push_back(LockEvent::Error(error));
                State::Finished
            }
            // What belongs to a grant that has gone.
            (state, _) => state,
        }
    }

    fn locked(&mut self, locked: Locked) {
        let seen = self.seen.replace(locked.attempt);
        if let Some(expected) = seen {
            self.status(Status::CheckingWork { attempt: expected });
            let actual = locked.attempt;
            if actual > expected {
                self.status(Status::AttemptIncremented { expected, actual });
            }
        }
        self.events.push_back(LockEvent::Locked(locked));
    }

    fn granted(&mut self, mut grant: Grant) -> State {
        // Not when the guard is taken: whoever takes long over what comes before it may do so.
        grant.hold();
        let attempt = grant.lease.attempt;
        match self.seen {
            Some(seen) if attempt >= seen => {
                self.status(Status::CheckingWork { attempt: seen });
                self.status(Status::NotCompleted { attempt: seen });
                self.status(Status::Reacquiring);
                self.status(Status::AttemptCount {
                    attempts: attempt - 1,
                });
            }
            Some(_) => self.status(Status::KeyGone),
            None => {}
        }
        if self.seen.is_some() || attempt > 1 {
            self.status(Status::ThisIsAttempt { attempt });
        }
        let again = false;
        State::Granted { grant, again }
    }

    /// Our own attempt is over.
    fn settled(&mut self, ended: Ended) -> State {
        match ended {
            Ended::Failed(failed) if self.entry.rejoin => {
                self.seen = Some(failed.attempt);
                State::Idle
            }
            ended => {
                self.seen = None;
                self.ended(ended)
            }
        }
    }

    fn expired(&mut self, attempt: u32) -> State {
        let reason = Reason::Expired;
        self.settled(Ended::Failed(Failed { attempt, reason }))
    }

    fn ended(&mut self, ended: Ended) -> State {
        if let Some(attempt) = self.seen {
            self.status(Status::CheckingWork { attempt });
        }
        let event = match ended {
            Ended::Completed(completed) => {
                if self.seen.is_some() {
                    self.status(Status::WorkCompleted {
                        holder: completed.holder.clone(),
                    });
                }
                LockEvent::Completed(completed)
            }
            Ended::GaveUp(gave_up) => {
                self.status(Status::GaveUp);
                LockEvent::GaveUp(gave_up)
            }
            Ended::Failed(failed) => LockEvent::Failed(failed),
        };
        self.events.push_back(event);
        State::Finished
    }

    fn status(&mut self, status: Status) {
        if status.level() <= self.entry.status_level {
            self.events.push_back(LockEvent::Status(status));
        }
    }
}

impl Stream for Acquire {
    type Item = LockEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LockEvent>> {
        loop {
            let mut this = self.as_mut().project();
            if let Some(event) = this.events.pop_front() {
                this.observed.yields(&this.entry.key, &event);
                return Poll::Ready(Some(event));
            }
            let next = match this.state {
                State::Finished => return Poll::Ready(None),
                State::Idle => {
                    let AcquireConfig { key, terms, .. } = &this.entry;
                    this.observed.begin(key, &terms.label);
                    this.seat.set(Some(
                        this.entry.hub.join(&this.entry.key, &this.entry.terms),
                    ));
                    *this.state = State::Watching;
                    continue;
                }
                _ => this
                    .seat
                    .as_mut()
                    .as_pin_mut()
                    .map(|seat| seat.poll_next(cx)),
            };
            let this = &mut *self;
            let state = std::mem::replace(&mut this.state, State::Finished);
            this.state = match (state, next) {
                // Only now: answers to what was asked before are no news of how much is left.
                (
                    State::Granted {
                        mut grant,
                        again: false,
                    },
                    Some(Poll::Pending),
                ) if grant.is_doubtful() => {
                    grant.confirm();
                    let again = true;
                    State::Confirming { grant, again }
                }
                (State::Granted { grant, .. }, Some(Poll::Pending)) => {
                    let attempt = grant.lease.attempt;
                    this.observed.acquires(&grant.lease);
                    let guard = WorkGuard::new(grant);
                    this.events.push_back(LockEvent::Acquired(guard));
                    State::Working {
                        attempt,
                        lost: false,
                    }
                }
                // Only now, so that a settlement that made it in time is what counts.
                (
                    State::Working {
                        attempt,
                        lost: true,
                    },
                    Some(Poll::Pending),
                ) => this.expired(attempt),
                (state, Some(Poll::Pending)) => {
                    this.state = state;
                    // Many may wait for long: nothing is kept for events to come.
                    this.events = VecDeque::new();
                    return Poll::Pending;
                }
                (state, Some(Poll::Ready(Some(update)))) => this.take(state, update),
                (_, Some(Poll::Ready(None)) | None) => {
                    this.events.push_back(LockEvent::Error(Error::Stopped));
                    State::Finished
                }
            };
            if matches!(this.state, State::Idle | State::Finished) {
                this.seat = None;
            }
        }
    }
}

impl FusedStream for Acquire {
    fn is_terminated(&self) -> bool {
        self.events.is_empty() && matches!(self.state, State::Finished)
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("key", &self.entry.key)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
