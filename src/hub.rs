//! The hub: one task for a worker and its clones that calls the store for every stream and guard.
//!
//! Streams and guards only send it messages, which never blocks and works on any thread, even
//! outside a runtime. Dropping one of them is therefore enough and cannot fail: the hub finishes
//! the requests in flight, and gives back unused grants.
//!
//! * A stream owns a [`Participant`]: an identity and a mailbox. Dropped, it sends `Leave`.
//! * A guard owns a [`Grant`]: the shared lease and a way to send messages. Dropped, it sends
//!   `Settle`. A grant of which no guard was made sends `Return` when it is dropped, so that an
//!   answer that no stream takes finds its own way back.
//! * The hub alone uses the worker's store. It keeps one `KeyState` for each key that this process
//!   takes part in or watches. It ends when the last handle is gone and every request is answered.
//! * A `KeyState` decides. It is told of messages, answers, events and the time, and returns what
//!   follows. It does no I/O.
//! * The keeper holds weak references to leases. Their guards and the `KeyState` own them.

mod batcher;
mod key_state;
mod message;
mod process;
mod task;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use futures::Stream;
use futures::channel::mpsc as mailbox;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::error::{Error, LeaseLost};
use crate::keeper::{Keeper, News, WeakKeeper};
use crate::key::Key;
use crate::lease::RunConfig;
use crate::lease::{Id, Lease};
use crate::protocol::{Op, Outcome, Reply};
use crate::store::values::Value;
use crate::store::{FencedError, FencedScript, Store};
use crate::telemetry::Outages;
use key_state::WatchItem;
pub(crate) use message::{Ended, NotRenewed, NotSettled, OutageId, Update};
use message::{Message, Renewal, Settlement};
pub use process::{InFlight, Options, Process, Told};

/// A handle to the hub. The hub closes its connections and ends once the last handle is gone and
/// every request is answered.
#[derive(Clone)]
pub(crate) struct Handle {
    messages: mpsc::UnboundedSender<Message>,
    ids: Arc<AtomicU64>,
    keeper: Keeper,
}

/// The inbox of a hub that does not run yet. The keeper is made before the hub, and reports to this
/// inbox.
pub(crate) struct Inbox {
    messages: mpsc::UnboundedSender<Message>,
    inbox: mpsc::UnboundedReceiver<Message>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        Self { messages, inbox }
    }

    /// Returns the function by which a keeper reports to the hub. It does not keep the hub alive.
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
    /// Starts a hub and its keeper for runs in memory, on the current runtime.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn in_memory<S: Store>(store: S) -> Self {
        let (inbox, clock) = (Inbox::new(), Clock::tokio());
        let keeper = Keeper::beside(store.clone(), clock, inbox.teller());
        Self::spawn(store, inbox, clock, keeper)
    }

    /// Starts a hub on the current runtime, with the clock and the keeper of its leases.
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

    /// Joins the current run of a key, or starts one.
    pub(crate) fn join(&self, key: &Key, terms: &Arc<RunConfig>) -> Participant {
        let (mailbox, updates) = mailbox::unbounded();
        let participant = Participant {
            key: key.clone(),
            id: self.ids.fetch_add(1, Ordering::Relaxed),
            updates,
            hub: self.clone(),
        };
        self.send(Message::Join {
            key: key.clone(),
            id: participant.id,
            terms: terms.clone(),
            mailbox,
        });
        participant
    }

    /// Observes a key without taking part.
    pub(crate) fn observe(&self, key: &Key) -> WatchHandle {
        let (mailbox, sights) = mailbox::unbounded();
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        self.send(Message::Observe {
            key: key.clone(),
            id,
            mailbox,
        });
        WatchHandle {
            key: key.clone(),
            id,
            sights,
            hub: self.clone(),
        }
    }

    /// Runs one operation, once.
    ///
    /// # Errors
    ///
    /// Returns the error of the store; nothing is tried again.
    pub(crate) async fn ask(&self, key: &Key, op: Op) -> Result<Reply, Error> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Ask {
            key: key.clone(),
            op,
            answer,
        });
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// Returns the labels of the first `most` waiters, in the order of the queue.
    pub(crate) async fn line(&self, key: &Key, most: u32) -> Result<Vec<String>, Error> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Line {
            key: key.clone(),
            most,
            answer,
        });
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// Waits until every earlier request is answered, or the hub has stopped retrying it.
    pub(crate) async fn drain(&self) {
        let (drained, answer) = oneshot::channel();
        self.send(Message::Drain(drained));
        // Without a hub there is no request left.
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

    /// Sends a message to the hub, which fails only when the hub's runtime has shut down.
    ///
    /// The keeper then settles a grant, if it outlives the hub. Everything else that is left on the
    /// server ends with its lease.
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

/// The hub's handle to itself, which does not keep it alive.
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

    /// Returns a new outage id.
    fn outage_id(&self) -> OutageId {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

/// A participant in a run. Dropping it leaves the run.
#[derive(Debug)]
pub(crate) struct Participant {
    key: Key,
    id: Id,
    /// Updates from the hub. They end with the participation, or when the hub has gone.
    updates: mailbox::UnboundedReceiver<Update>,
    hub: Handle,
}

impl Stream for Participant {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        Pin::new(&mut self.updates).poll_next(cx)
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        // Empties the mailbox: a grant in it gives itself back when it is dropped. A closed
        // mailbox shows that the participation has ended, so there is nothing to leave.
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

/// An observer of a key. Dropping it ends the observation.
#[derive(Debug)]
pub(crate) struct WatchHandle {
    key: Key,
    id: Id,
    /// Items from the hub. They end with a fatal error, or when the hub has gone.
    sights: mailbox::UnboundedReceiver<WatchItem>,
    hub: Handle,
}

impl Stream for WatchHandle {
    type Item = WatchItem;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        Pin::new(&mut self.sights).poll_next(cx)
    }
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        let key = self.key.clone();
        self.hub.send(Message::Leave { key, id: self.id });
    }
}

/// A grant. Dropped before a guard is made of it, it goes to the next waiter, and its attempt is
/// not counted.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) lease: Arc<Lease>,
    /// Whether the grant is confirmed, or its confirmation was requested. With replicas, a grant
    /// that came by push counts as unconfirmed.
    confirmed: bool,
    used: AtomicBool,
    hub: Handle,
}

impl Grant {
    /// See [`Lease::is_doubtful`].
    pub(crate) fn is_doubtful(&self) -> bool {
        self.lease.is_doubtful(self.confirmed)
    }

    /// Requests a restart of the lease. [`Update::Confirmed`] or [`Update::Lost`] follows.
    pub(crate) fn confirm(&mut self) {
        self.confirmed = true;
        self.hub.send(Message::Confirm(self.lease.clone()));
    }

    /// Requests the confirmation, unless it was done or requested before.
    pub(crate) fn hold(&mut self) {
        if !self.confirmed {
            self.confirm();
        }
    }

    /// Marks the grant as given to its holder. From then on only [`Grant::settle`] or the end of
    /// its lease ends it.
    pub(crate) fn give(&self) {
        if !self.lease.give() {
            self.hub.send(Message::Expired(self.lease.clone()));
        }
    }

    /// Starts the renewal of the lease at the first call, if the worker renews.
    ///
    /// The message goes to the keeper directly. A thread that wakes the hub and then blocks keeps
    /// the hub from running until the thread goes on.
    pub(crate) fn in_use(&self) {
        // Relaxed: it matters only that one of the callers is the first.
        if self.lease.terms.renew_every.is_some() && !self.used.swap(true, Ordering::Relaxed) {
            self.hub.keeper.keep(&self.lease);
        }
    }

    /// Restarts the lease, for `length` ms or the usual length, and stores a checkpoint for the
    /// successor.
    pub(crate) async fn renew(
        &self,
        length: Option<u64>,
        checkpoint: Option<Bytes>,
    ) -> Result<(), NotRenewed> {
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
            Ok(answer) = answer => answer.map_err(NotRenewed::Refused),
            lost = self.lease.lost() => Err(NotRenewed::Lost(lost)),
        }
    }

    /// Runs a script of the caller's if the server still has this grant.
    pub(crate) async fn fenced(
        &self,
        source: String,
        keys: Vec<Value>,
        args: Vec<Value>,
    ) -> Result<Value, FencedError> {
        let (reply, answer) = oneshot::channel();
        self.hub.send(Message::Fenced {
            key: self.lease.key.clone(),
            script: FencedScript {
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

    /// Ends the grant. The answer goes to `reply`, if there is one.
    pub(crate) fn settle(
        &self,
        outcome: Outcome,
        reply: Option<oneshot::Sender<Result<(), NotSettled>>>,
    ) {
        if self.lease.is_foreign() {
            // This is a forked child: its channels are copies of the parent's, where the guard
            // lives on.
            self.lease.lose(LeaseLost::Forked);
            if let Some(reply) = reply {
                let _ = reply.send(Err(NotSettled::Lost(LeaseLost::Forked)));
            }
            return;
        }
        if matches!(outcome, Outcome::Done(_)) {
            self.lease.complete();
        }
        // Order matters: work under this grant stops before the server can grant the next one.
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
