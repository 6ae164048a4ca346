//! One task a process and server that speaks to the store for every stream and guard.
//!
//! Streams and guards only send it messages, which never blocks and works on any thread, so that
//! dropping either of them is enough: whatever is in flight is finished, or given back, here.

mod message;
mod run;
mod task;
#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::channel::mpsc as mailbox;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::SettleError;
use crate::store::key::Key;
use crate::store::record::{Record, Token};
use crate::store::{Outcome, Store};
pub(crate) use message::{Ended, Update};
use message::{Id, Message, Settlement};

/// How long a waiter has to confirm a grant that was handed to it, if its lease is not shorter.
const CONFIRM_WINDOW: Duration = Duration::from_millis(500);

/// What a participant asks for.
#[derive(Debug)]
pub(crate) struct Terms {
    /// The lease, in whole ms.
    pub(crate) lease: u64,
    pub(crate) max_attempts: u32,
    /// In whole ms.
    pub(crate) retention: u64,
    pub(crate) label: Arc<str>,
}

impl Terms {
    /// How long a successor has to confirm, in ms.
    fn window(&self) -> u64 {
        self.lease.min(CONFIRM_WINDOW.as_millis() as u64)
    }
}

/// The way to the hub. The hub ends, and its connections with it, once the last handle is gone and
/// everything asked of it is answered.
#[derive(Clone)]
pub(crate) struct Handle {
    messages: mpsc::UnboundedSender<Message>,
    ids: Arc<AtomicU64>,
}

impl Handle {
    /// Starts a hub on the current runtime.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn spawn<S: Store>(store: S) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        let hub = Self {
            messages,
            ids: Arc::default(),
        };
        tokio::spawn(task::run(store, inbox, hub.downgrade()));
        hub
    }

    /// Takes part in the run of a key.
    pub(crate) fn join(&self, key: &Key, terms: &Arc<Terms>) -> Seat {
        let (mailbox, updates) = mailbox::unbounded();
        let seat = Seat {
            key: key.clone(),
            id: self.ids.fetch_add(1, Ordering::Relaxed),
            updates,
            hub: self.clone(),
        };
        self.send(Message::Join {
            key: key.clone(),
            id: seat.id,
            terms: terms.clone(),
            mailbox,
        });
        seat
    }

    /// Resolves once everything that was signalled before is answered, or given up on.
    pub(crate) async fn drain(&self) {
        let (drained, answer) = oneshot::channel();
        self.send(Message::Drain(drained));
        // A hub that has gone has nothing left to answer.
        if let Ok(tracker) = answer.await {
            tracker.wait().await;
        }
    }

    fn downgrade(&self) -> WeakHandle {
        WeakHandle {
            messages: self.messages.downgrade(),
            ids: self.ids.clone(),
        }
    }

    /// Fails only when the hub's runtime has shut down. Whatever is left on the server then ends
    /// with its lease.
    fn send(&self, message: Message) {
        let _ = self.messages.send(message);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// The hub's own handle, which does not keep it alive.
#[derive(Clone)]
struct WeakHandle {
    messages: mpsc::WeakUnboundedSender<Message>,
    ids: Arc<AtomicU64>,
}

impl WeakHandle {
    fn upgrade(&self) -> Option<Handle> {
        let messages = self.messages.upgrade()?;
        let ids = self.ids.clone();
        Some(Handle { messages, ids })
    }
}

/// A participation. Dropping it leaves the run.
#[derive(Debug)]
pub(crate) struct Seat {
    key: Key,
    id: Id,
    /// Ends when the hub has gone.
    updates: mailbox::UnboundedReceiver<Update>,
    hub: Handle,
}

impl Stream for Seat {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        Pin::new(&mut self.updates).poll_next(cx)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let key = self.key.clone();
        self.hub.send(Message::Leave { key, id: self.id });
    }
}

/// A grant on its way to somebody who works on it. Dropped before, it goes to the next in line and
/// is not counted.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) lease: Arc<Lease>,
    /// Whether it was handed over, and its holder has yet to confirm it.
    handed_over: bool,
    given: bool,
    hub: Handle,
}

impl Grant {
    /// Whether so little is left that it should be renewed before anybody relies on it.
    pub(crate) fn is_stale(&self) -> bool {
        let enough = Duration::from_millis(self.lease.terms.window() / 4);
        self.lease.remaining() < enough
    }

    /// Restarts the lease; [`Update::Confirmed`] or [`Update::Lost`] follows.
    pub(crate) fn confirm(&mut self) {
        self.handed_over = false;
        self.hub.send(Message::Confirm(self.lease.clone()));
    }

    /// Gives it to its holder: from here on only [`Grant::settle`] or its lease ends it.
    pub(crate) fn give(&mut self) {
        self.given = true;
        if self.handed_over {
            self.confirm();
        }
    }

    /// Ends it; without a reply nobody waits for the answer.
    pub(crate) fn settle(
        &self,
        outcome: Outcome,
        reply: Option<oneshot::Sender<Result<(), SettleError>>>,
    ) {
        self.hub.send(Message::Settle(Settlement {
            lease: self.lease.clone(),
            outcome,
            reply,
        }));
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if !self.given {
            self.hub.send(Message::Return(self.lease.clone()));
        }
    }
}

/// A grant, and how long it is good for on this process's clock; its hub and its guard share it.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) key: Key,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) fence: u64,
    token: Token,
    terms: Arc<Terms>,
    /// The participation it was granted to.
    id: Id,
    began: Instant,
    /// In µs after `began`; [`Lease::LOST`] for ever once lost.
    ends: AtomicU64,
}

impl Lease {
    const LOST: u64 = 0;

    fn new(
        key: &Key,
        record: &Record,
        id: Id,
        token: Token,
        terms: Arc<Terms>,
        deadline: Instant,
    ) -> Self {
        let lease = Self {
            key: key.clone(),
            attempt: record.attempt,
            max_attempts: record.max_attempts,
            fence: record.fence,
            token,
            terms,
            id,
            began: Instant::now(),
            ends: AtomicU64::new(Self::LOST + 1),
        };
        lease.restart(deadline);
        lease
    }

    /// Moves the end, unless the lease was lost meanwhile.
    fn restart(&self, deadline: Instant) {
        let ends = deadline.saturating_duration_since(self.began).as_micros();
        let ends = u64::try_from(ends).unwrap_or(u64::MAX).max(Self::LOST + 1);
        let alive = |now| (now != Self::LOST).then_some(ends);
        // Relaxed: the number is all that is shared.
        let _ = self
            .ends
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, alive);
    }

    fn lose(&self) {
        self.ends.store(Self::LOST, Ordering::Relaxed);
    }

    fn deadline(&self) -> Instant {
        self.began + Duration::from_micros(self.ends.load(Ordering::Relaxed))
    }

    /// What is left; zero once it has ended or was lost.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline().saturating_duration_since(Instant::now())
    }
}
