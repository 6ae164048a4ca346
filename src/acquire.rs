//! The stream of one participation in one run: a state machine over the updates of the hub.
//!
//! It owns a [`Participant`], which is an identity and a mailbox. It owns no task, no timer and no
//! boxed future. Its first poll sends `Join`, and its drop sends `Leave`.

mod event;
mod status;

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::FusedStream;
use pin_project::pin_project;

use crate::error::Error;
use crate::guard::WorkGuard;
use crate::hub::{Ended, Grant, Handle, OutageId, Participant, Update};
use crate::key::Key;
use crate::lease::RunConfig;
use crate::outcome::{Failed, Locked, Reason};
use crate::telemetry::Participation;
pub use event::LockEvent;
pub use status::{Status, StatusLevel};

/// Everything that a stream needs to take part.
#[derive(Clone, Debug)]
pub(crate) struct AcquireConfig {
    pub(crate) hub: Handle,
    pub(crate) key: Key,
    pub(crate) terms: Arc<RunConfig>,
    pub(crate) status_level: StatusLevel,
    pub(crate) rejoin: bool,
}

/// A stream of the events of one participation in one run.
///
/// [`LockingWorker::acquire`](crate::LockingWorker::acquire) returns it. It joins the run when it
/// is first polled. It yields any number of other events and then exactly one terminal event
/// ([`LockEvent::is_terminal`]). After that it yields `None` for ever.
///
#[cfg_attr(doc, doc = include_str!("../docs/events.svg"))]
///
/// # Cancel safety
///
/// Dropping it at any point leaves nothing behind. If the answer to a claim arrives later, the
/// grant is given back. The stream leaves the queue. A grant that it has not yielded yet goes to
/// the next waiter without being counted. A [`WorkGuard`] that it has yielded lives on
/// independently.
///
/// A stream that is not polled keeps its place in the queue. If it is granted the work meanwhile,
/// it loses the grant after the confirm window (500 ms, or the lease if that is shorter) and joins
/// the queue again.
#[pin_project]
#[must_use = "streams do nothing unless polled"]
pub struct Acquire {
    entry: AcquireConfig,
    /// The participation in the hub; `None` while the stream takes no part.
    #[pin]
    participant: Option<Participant>,
    state: State,
    /// Events of the last update that are not yielded yet.
    events: VecDeque<LockEvent>,
    /// The last attempt that the stream knew of: another holder's, or its own that failed before it
    /// rejoined.
    seen: Option<u32>,
    /// The last outage for which an error was yielded.
    outage: Option<OutageId>,
    observed: Participation,
}

#[derive(Debug)]
enum State {
    /// Takes no part: before the first poll, or between a lost or failed attempt and the next join.
    /// Leads to `Watching`.
    Idle,
    /// Waits for a grant. Leads to `Granted`, by way of `Confirming` if little is left of the grant
    /// when the stream is polled or if replicas must acknowledge it. Leads to `Finished` when the
    /// run ends.
    Waiting,
    /// Waits for the confirmation of the grant. Leads to `Granted`, or to `Idle` if the grant is
    /// lost.
    Confirming {
        grant: Grant,
        /// Whether the state was `Granted` before.
        again: bool,
    },
    /// Yields the guard next, after the events that precede it. Until then the attempt has no
    /// holder: if the stream is dropped, the grant is given back and not counted. Leads to
    /// `Working`; to `Idle` if the grant is lost first; and once to `Confirming`, if little is left
    /// of it.
    Granted { grant: Grant, again: bool },
    /// Waits until the guard is settled or lost. Leads to `Finished`, or to `Idle` to rejoin.
    Working {
        attempt: u32,
        /// Whether the lease is over. That ends the attempt, unless the guard was settled in time.
        lost: bool,
    },
    /// Yields `None` for ever.
    Finished,
}

impl Acquire {
    pub(crate) fn new(entry: AcquireConfig) -> Self {
        Self {
            entry,
            participant: None,
            state: State::Idle,
            events: VecDeque::new(),
            seen: None,
            outage: None,
            observed: Participation::default(),
        }
    }

    /// Returns the state that follows from an update of the hub.
    fn take(&mut self, state: State, update: Update) -> State {
        match (state, update) {
            (State::Waiting, Update::Locked(locked)) => {
                self.locked(locked);
                State::Waiting
            }
            (State::Waiting, Update::Granted(mut grant)) if grant.is_doubtful() => {
                grant.confirm();
                let again = false;
                State::Confirming { grant, again }
            }
            (State::Waiting, Update::Granted(grant)) => self.granted(grant),
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
            (State::Waiting, Update::Ended(ended)) => self.ended(ended),
            (state, Update::Unavailable(error, outage)) => {
                // The hub reports an outage in progress to each stream that joins, so a stream that
                // rejoins may receive it twice. It yields one error.
                if self.outage.replace(outage) != Some(outage) {
                    self.events.push_back(LockEvent::Error(error));
                }
                state
            }
            (_, Update::Refused(error)) => {
                self.events.push_back(LockEvent::Error(error));
                State::Finished
            }
            // The update belongs to a grant that is gone.
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
        // Confirms here and not when the guard is yielded: the caller may take long over the events
        // before it.
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

    /// Ends our own attempt: the stream rejoins after a failure if it may, and ends otherwise.
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
                if let Some(told) = event.told() {
                    this.observed.yields(&this.entry.key, told);
                }
                return Poll::Ready(Some(event));
            }
            let next = match this.state {
                State::Finished => return Poll::Ready(None),
                State::Idle => {
                    let AcquireConfig { key, terms, .. } = &this.entry;
                    this.observed.begin(key, &terms.label);
                    this.participant.set(Some(
                        this.entry.hub.join(&this.entry.key, &this.entry.terms),
                    ));
                    *this.state = State::Waiting;
                    continue;
                }
                _ => this
                    .participant
                    .as_mut()
                    .as_pin_mut()
                    .map(|participant| participant.poll_next(cx)),
            };
            let this = &mut *self;
            let state = std::mem::replace(&mut this.state, State::Finished);
            this.state = match (state, next) {
                // The mailbox is empty now. An answer in it would belong to an earlier
                // confirmation, and would be taken for the answer to this one.
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
                    let lease = &grant.lease;
                    this.observed
                        .acquires(lease.told(), lease.previous.as_ref());
                    let guard = WorkGuard::new(grant);
                    this.events.push_back(LockEvent::Acquired(guard));
                    State::Working {
                        attempt,
                        lost: false,
                    }
                }
                // The mailbox is empty now. A settlement in it would have been in time, and would
                // count.
                (
                    State::Working {
                        attempt,
                        lost: true,
                    },
                    Some(Poll::Pending),
                ) => this.expired(attempt),
                (state, Some(Poll::Pending)) => {
                    this.state = state;
                    // Many streams may wait for long, so a waiting stream keeps no capacity for
                    // events.
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
                this.participant = None;
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
