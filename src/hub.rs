//! One task a process and server that speaks to the store for every stream and guard.
//!
//! Streams and guards only send it messages, which never blocks and works on any thread, so that
//! dropping either of them is enough: whatever is in flight is finished, or given back, here.

mod lanes;
mod message;
mod run;
mod task;
#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use futures::Stream;
use futures::channel::mpsc as mailbox;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::error::{Error, FencedError, LeaseLost, RenewError, SettleError};
use crate::keeper::{Keeper, News, WeakKeeper};
use crate::lease::{Id, Lease};
use crate::observe::Outages;
use crate::store::key::Key;
use crate::store::{Guarded, Op, Outcome, Reply, Store};
use crate::terms::Terms;
pub(crate) use message::{Ended, OutageId, Update};
use message::{Message, Renewal, Settlement};
use run::Sight;

/// The way to the hub. The hub ends, and its connections with it, once the last handle is gone and
/// everything asked of it is answered.
#[derive(Clone)]
pub(crate) struct Handle {
    messages: mpsc::UnboundedSender<Message>,
    ids: Arc<AtomicU64>,
    keeper: Keeper,
}

/// A hub that does not run yet: its way in, so that a keeper can be made that tells it what it
/// does.
pub(crate) struct Inbox {
    messages: mpsc::UnboundedSender<Message>,
    inbox: mpsc::UnboundedReceiver<Message>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        Self { messages, inbox }
    }

    /// How a keeper tells the hub what it does. It does not keep the hub alive.
    pub(crate) fn teller(&self) -> impl Fn(News) + Send + use<> {
        let messages = self.messages.downgrade();
        move |news| {
            if let Some(messages) = messages.upgrade() {
                let _ = messages.send(Message::Kept(news));
            }
        }
    }
}

impl Handle {
    /// Starts a hub for runs in memory on the current runtime, with its keeper beside it.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn in_memory<S: Store>(store: S) -> Self {
        let (inbox, clock) = (Inbox::new(), Clock::tokio());
        let keeper = Keeper::beside(store.clone(), clock, inbox.teller());
        Self::spawn(store, inbox, clock, keeper)
    }

    /// Starts a hub on the current runtime, whose leases are judged by this clock and kept by this
    /// keeper.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn spawn<S: Store>(store: S, inbox: Inbox, clock: Clock, keeper: Keeper) -> Self {
        let Inbox { messages, inbox } = inbox;
        let hub = Self {
            messages,
            ids: Arc::default(),
            keeper,
        };
        tokio::spawn(task::run(store, inbox, hub.downgrade(clock)));
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

    /// Looks on, without taking part.
    pub(crate) fn observe(&self, key: &Key) -> Lookout {
        let (mailbox, sights) = mailbox::unbounded();
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        self.send(Message::Observe {
            key: key.clone(),
            id,
            mailbox,
        });
        Lookout {
            key: key.clone(),
            id,
            sights,
            hub: self.clone(),
        }
    }

    /// Has this carried out once.
    ///
    /// # Errors
    ///
    /// Whatever the store says; nothing is tried again.
    pub(crate) async fn ask(&self, key: &Key, op: Op) -> Result<Reply, Error> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Ask {
            key: key.clone(),
            op,
            answer,
        });
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// The labels of those who wait, in their order; not more than so many.
    pub(crate) async fn line(&self, key: &Key, most: u32) -> Result<Vec<String>, Error> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Line {
            key: key.clone(),
            most,
            answer,
        });
        answered.await.unwrap_or(Err(Error::Stopped))
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

    fn downgrade(&self, clock: Clock) -> WeakHandle {
        WeakHandle {
            messages: self.messages.downgrade(),
            ids: self.ids.clone(),
            keeper: self.keeper.downgrade(),
            clock,
            outages: Outages::default(),
        }
    }

    /// Fails only when the hub's runtime has shut down. The keeper then ends a grant that is
    /// dropped, if it works on; everything else that is left on the server ends with its lease.
    fn send(&self, message: Message) {
        if let Err(mpsc::error::SendError(Message::Settle(settlement))) =
            self.messages.send(message)
        {
            self.keeper.settle(&settlement.lease, settlement.outcome);
        }
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
    keeper: WeakKeeper,
    clock: Clock,
    outages: Outages,
}

impl WeakHandle {
    fn upgrade(&self) -> Option<Handle> {
        let messages = self.messages.upgrade()?;
        let ids = self.ids.clone();
        let keeper = self.keeper.upgrade()?;
        Some(Handle {
            messages,
            ids,
            keeper,
        })
    }

    /// A number for an outage, which tells it apart from the others.
    fn outage_id(&self) -> OutageId {
        self.ids.fetch_add(1, Ordering::Relaxed)
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
        // A grant that is in it finds its own way back. A run that has ended lets go of the mailbox.
        let ended = loop {
            match self.updates.try_recv() {
                Ok(update) => drop(update),
                Err(mailbox::TryRecvError::Empty) => break false,
                Err(mailbox::TryRecvError::Closed) => break true,
            }
        };
        if !ended {
            let key = self.key.clone();
            self.hub.send(Message::Leave { key, id: self.id });
        }
    }
}

/// A look at a key from outside. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Lookout {
    key: Key,
    id: Id,
    /// Ends with a fatal error, or when the hub has gone.
    sights: mailbox::UnboundedReceiver<Sight>,
    hub: Handle,
}

impl Stream for Lookout {
    type Item = Sight;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Sight>> {
        Pin::new(&mut self.sights).poll_next(cx)
    }
}

impl Drop for Lookout {
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
    /// Whether the server has been told that its holder knows of it; with replicas, whether they
    /// have acknowledged it.
    confirmed: bool,
    used: AtomicBool,
    hub: Handle,
}

impl Grant {
    /// Whether it has to be confirmed before anybody relies on it: little is left of it, or nothing
    /// counts that no replica has.
    pub(crate) fn is_doubtful(&self) -> bool {
        let enough = Duration::from_millis(self.lease.terms.window() / 4);
        let doubtful = self.lease.is_lost() || self.lease.left_after_pauses() < enough;
        doubtful || (self.lease.terms.replicated && !self.confirmed)
    }

    /// Restarts the lease; [`Update::Confirmed`] or [`Update::Lost`] follows.
    pub(crate) fn confirm(&mut self) {
        self.confirmed = true;
        self.hub.send(Message::Confirm(self.lease.clone()));
    }

    /// Sees to it that it is confirmed.
    pub(crate) fn hold(&mut self) {
        if !self.confirmed {
            self.confirm();
        }
    }

    /// Gives it to its holder: from here on only [`Grant::settle`] or its lease ends it.
    pub(crate) fn give(&self) {
        if !self.lease.give() {
            self.hub.send(Message::Expired(self.lease.clone()));
        }
    }

    /// Begins to renew it, if it shall be. The keeper is told itself: a hub that is woken by a
    /// thread which then blocks does not run before that thread goes on.
    pub(crate) fn in_use(&self) {
        // Relaxed: it matters only that one of the callers is the first.
        if self.lease.terms.renew_every.is_some() && !self.used.swap(true, Ordering::Relaxed) {
            self.hub.keeper.keep(&self.lease);
        }
    }

    /// Restarts the lease, for this many ms or the usual length, and leaves this for a successor.
    pub(crate) async fn renew(
        &self,
        length: Option<u64>,
        checkpoint: Option<Bytes>,
    ) -> Result<(), RenewError> {
        let (reply, answer) = oneshot::channel();
        self.hub.send(Message::Renew(Renewal {
            lease: self.lease.clone(),
            length,
            checkpoint,
            reply,
        }));
        tokio::select! {
            // An answer that came in time counts.
            biased;
            Ok(answer) = answer => answer,
            lost = self.lease.lost() => Err(lost.into()),
        }
    }

    /// Runs a script of the user's if the grant stands.
    pub(crate) async fn fenced(
        &self,
        source: String,
        keys: Vec<Value>,
        args: Vec<Value>,
    ) -> Result<Value, FencedError> {
        let (reply, answer) = oneshot::channel();
        self.hub.send(Message::Fenced {
            key: self.lease.key.clone(),
            script: Guarded {
                fence: self.lease.fence,
                attempt: self.lease.attempt,
                source,
                keys,
                args,
            },
            reply,
        });
        answer.await.unwrap_or(Err(LeaseLost::Stopped.into()))
    }

    /// Ends it; without a reply nobody waits for the answer.
    pub(crate) fn settle(
        &self,
        outcome: Outcome,
        reply: Option<oneshot::Sender<Result<(), SettleError>>>,
    ) {
        if self.lease.is_foreign() {
            // Its channels are copies of the parent's, where the guard lives on.
            self.lease.lose(LeaseLost::Forked);
            if let Some(reply) = reply {
                let _ = reply.send(Err(LeaseLost::Forked.into()));
            }
            return;
        }
        if matches!(outcome, Outcome::Done(_)) {
            self.lease.complete();
        }
        // What still works in its name stops before the server hears that others may begin.
        self.lease.lose(LeaseLost::Settled);
        self.hub.send(Message::Settle(Settlement {
            lease: self.lease.clone(),
            outcome,
            reply,
        }));
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if !self.lease.is_given() && !self.lease.is_foreign() {
            self.hub.send(Message::Return(self.lease.clone()));
        }
    }
}
