//! The hub's task: passes messages to the state of each key, its calls to the store, and the
//! answers and events of the store back to it.
//!
//! While any key is subscribed to, the task pings: [`Store::ping`] shows that everything published
//! before has arrived. A lost connection, a failed ping and a lagging receiver lead to a *resync*:
//! one claim for each key that has waiters, and one read for each key that has only watchers.
//!
//! Timers are Tokio's. Leases on a server go by the machine's clock, which counts sleep
//! (`clock.rs`). While this process holds a grant, the task compares the two once a second. It also
//! reads the wall clock, which shows that a virtual machine was paused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes_utils::Str;
use futures::channel::mpsc::UnboundedSender;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue;

use super::batcher::{Batcher, Queue};
use super::key_state::{
    Answer, Call, Fresh, KeyState, OutageKind, Output, Report, Turn, WatchItem,
};
use super::message::{Ended, Message, NotSettled, OutageId, Renewal, Settlement, Update};
use super::{Grant, Id, WeakHandle};
use crate::clock::Stamp;
use crate::error::{Error, LeaseLost};
use crate::keeper::News;
use crate::key::Key;
use crate::lease::Lease;
use crate::outcome::Reason;
use crate::protocol::record::Token;
use crate::protocol::{Op, Reply};
use crate::retry::jittered;
use crate::store::{BatchKey, Store, StoreEvent};
use crate::telemetry::{self, Settled};

/// Longest time for which a timer is set: the delay queue has a bound, and firing early is
/// harmless.
const FAR: Duration = Duration::from_secs(3_600);

/// Interval at which the clock of leases is compared with that of timers, while this process holds
/// a lease.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// Least difference between the two clocks that shows that the timers stood still. It exceeds the
/// time between two reads.
const STOOD_STILL: Duration = Duration::from_millis(50);

/// Most messages that are taken from the inbox at once.
const BATCH: usize = 128;

/// Most subscriptions in flight. Each is a call of its own, and the client library keeps several
/// KiB for each unanswered one.
const SUBSCRIBING: usize = 256;

/// Runs the hub until no handle is left and every request is answered.
pub(super) async fn run<S: Store>(
    mut store: S,
    mut inbox: mpsc::UnboundedReceiver<Message>,
    handle: WeakHandle,
) {
    let mut heard = store.hear();
    let clock = handle.clock;
    let mut hub = Hub {
        store,
        handle,
        runs: HashMap::new(),
        timers: DelayQueue::new(),
        in_flight: FuturesUnordered::new(),
        calls: Batcher::default(),
        subscriptions: Queue::default(),
        outputs: Vec::new(),
        mailboxes: BTreeMap::new(),
        subscribed: 0,
        holding: 0,
        compared: clock.stamp(),
        woken: 0,
        deferred: Vec::new(),
        connected: true,
        pinging: false,
        ping_is_due: false,
        tracker: TaskTracker::new(),
    };
    let mut pings = tokio::time::interval(hub.store.ping_period());
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut comparisons = tokio::time::interval(COMPARE_EVERY);
    comparisons.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(BATCH);
    let mut open = true;
    let mut hears = true;

    while open || !hub.is_idle() {
        if hub.ping_is_due && hub.wants_ping() {
            pings.reset();
            hub.ping();
        }
        tokio::select! {
            taken = inbox.recv_many(&mut batch, BATCH), if open => {
                open = taken > 0;
                let now = hub.stamp();
                for message in batch.drain(..) {
                    hub.asked(message, now);
                }
            }
            Some(done) = hub.in_flight.next(), if !hub.in_flight.is_empty() => hub.done(done),
            news = heard.next(), if hears => match news {
                Some(news) => hub.heard(news),
                None => hears = false,
            },
            Some(due) = hub.timers.next(), if !hub.timers.is_empty() => {
                hub.fire(&due.into_inner());
            }
            _ = comparisons.tick(), if hub.wants_comparison() => hub.compare_clocks(),
            _ = pings.tick(), if hub.wants_ping() => hub.ping(),
        }
        let deferred = std::mem::take(&mut hub.deferred);
        if std::mem::take(&mut hub.woken) > 1 || !deferred.is_empty() {
            // Streams and guards that were answered together are about to send requests again.
            // They run first, so that their requests leave in one batch. So does the new holder,
            // before the waiters are notified.
            tokio::task::yield_now().await;
            let now = hub.stamp();
            // Takes the messages that are there now. More may keep coming, and would hold up the
            // rest of the loop.
            for _ in 0..inbox.len() {
                if let Ok(message) = inbox.try_recv() {
                    hub.asked(message, now);
                }
            }
            for key in deferred {
                hub.with_known(&key, now, KeyState::notify_deferred);
            }
        }
        hub.send();
    }
    hub.store.close().await;
}

struct Hub<S> {
    store: S,
    handle: WeakHandle,
    /// Runs by `Key::line`, the name that the store's messages carry.
    runs: HashMap<Str, Entry>,
    timers: DelayQueue<Key>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    calls: Batcher<Queued>,
    subscriptions: Queue<(Key, Subscribe)>,
    /// Buffer for the outputs of an act. Empty between two acts.
    outputs: Vec<Output<Caller>>,
    /// Mailboxes of the participants and watchers.
    mailboxes: BTreeMap<Id, Mailbox>,
    /// Number of keys whose messages are wanted.
    subscribed: usize,
    /// Number of keys of which this process has a grant.
    holding: usize,
    /// Readings of the two clocks at their last comparison.
    compared: Stamp,
    /// Number of calls answered in this turn of the loop.
    woken: usize,
    /// Keys whose waiters still have to be notified of the latest record.
    deferred: Vec<Key>,
    /// Whether the subscriber is connected and heard the last ping.
    connected: bool,
    pinging: bool,
    /// Whether a connection is new. A ping then checks at once that the subscriber hears what the
    /// commands publish.
    ping_is_due: bool,
    /// Tracker of calls. Each call holds a token until it is answered; a call that follows from it
    /// takes the token over.
    tracker: TaskTracker,
}

struct Entry {
    key: Key,
    state: KeyState<Caller>,
    timer: Option<(Instant, delay_queue::Key)>,
    /// The outage of the hub's calls, as telemetry counts it.
    outage: Option<telemetry::Outage>,
    /// The same, of the keeper's renewals.
    renewal_outage: Option<telemetry::Outage>,
}

/// The way back to a participant or watcher.
enum Mailbox {
    Participant(UnboundedSender<Update>),
    Watcher(UnboundedSender<WatchItem>),
}

/// What goes with a call until it is answered.
#[derive(Default)]
struct Caller {
    /// Its place in the tracker. The hub adds it when the call is queued.
    ticket: Option<TaskTrackerToken>,
    reply: Option<ReplyTo>,
}

/// The way back to a guard or a worker that waits for an answer. It may have stopped waiting.
enum ReplyTo {
    Renewal(oneshot::Sender<Result<(), Error>>),
    Settlement(oneshot::Sender<Result<(), NotSettled>>),
    Operation(oneshot::Sender<Result<Reply, Error>>),
}

impl From<ReplyTo> for Caller {
    fn from(reply: ReplyTo) -> Self {
        let (ticket, reply) = (None, Some(reply));
        Self { ticket, reply }
    }
}

impl Fresh for WeakHandle {
    fn token(&mut self) -> Token {
        Token::random()
    }

    fn outage(&mut self) -> OutageId {
        self.outage_id()
    }

    fn jittered(&mut self, delay: Duration) -> Duration {
        jittered(delay)
    }
}

/// A call that waits for its turn, and its operation.
struct Queued {
    key: Key,
    call: Call<Caller>,
    op: Op,
}

type Answered = (Queued, Result<Reply, Error>);

/// A completed request to the store.
enum Done {
    /// A batch: its batch key, the number of requests taken from the queue, an instant before it
    /// left, and the answers.
    Calls(BatchKey, usize, Stamp, Vec<Answered>),
    Subscribed(Key, Result<(), Error>),
    Unsubscribed(Key),
    Ping(Result<(), Error>),
    /// The answer went directly to the caller.
    Told,
}

impl<S: Store> Hub<S> {
    fn is_idle(&self) -> bool {
        self.runs.is_empty() && self.in_flight.is_empty()
    }

    fn stamp(&self) -> Stamp {
        self.handle.clock.stamp()
    }

    fn asked(&mut self, message: Message, now: Stamp) {
        match message {
            Message::Join {
                key,
                id,
                terms,
                mailbox,
            } => {
                self.mailboxes.insert(id, Mailbox::Participant(mailbox));
                self.with(&key, now, |state, turn| state.join(id, terms, turn));
            }
            Message::Observe { key, id, mailbox } => {
                self.mailboxes.insert(id, Mailbox::Watcher(mailbox));
                self.with(&key, now, |state, turn| state.add_watcher(id, turn));
            }
            Message::Ask { key, op, answer } => {
                let caller = ReplyTo::Operation(answer).into();
                self.with(&key, now, |state, turn| state.execute(op, caller, turn));
            }
            Message::Line { key, most, answer } => {
                let store = self.store.clone();
                let asking = async move {
                    let _ = answer.send(store.line(&key, most).await);
                    Done::Told
                };
                self.in_flight.push(asking.boxed());
            }
            Message::Leave { key, id } => {
                self.with_known(&key, now, |state, turn| state.leave(id, turn));
            }
            Message::Confirm(lease) => {
                let key = lease.key.clone();
                self.with_known(&key, now, |state, turn| state.confirm(lease, turn));
            }
            Message::Expired(lease) => {
                self.with_known(&lease.key, now, |state, turn| {
                    state.lose(&lease, LeaseLost::Expired, turn);
                });
            }
            Message::Kept(News::Lost(lease)) => {
                self.with_known(&lease.key, now, |state, turn| state.lost(&lease, turn));
            }
            Message::Kept(News::Due(lease)) => {
                let key = lease.key.clone();
                self.with_known(&key, now, |state, turn| state.renew_for_keeper(lease, turn));
            }
            Message::Kept(News::Failing(lease, error)) => {
                self.with_known(&lease.key, now, |state, turn| {
                    state.renewals_fail(&lease, error, turn);
                });
            }
            Message::Kept(News::Working(lease)) => {
                self.with_known(&lease.key, now, |state, turn| {
                    state.renewals_work(&lease, turn)
                });
            }
            Message::Renew(Renewal {
                lease,
                length,
                checkpoint,
                reply,
            }) => {
                let (key, caller) = (lease.key.clone(), ReplyTo::Renewal(reply).into());
                self.with_known(&key, now, |state, turn| {
                    state.extend(lease, length, checkpoint, caller, turn);
                });
            }
            Message::Fenced { key, script, reply } => {
                let (store, ticket) = (self.store.clone(), self.tracker.token());
                let run = async move {
                    let _until_answered = ticket;
                    let ran = store.fenced(&key, &script).await;
                    // The guard may have stopped waiting. The script runs all the same.
                    let _ = reply.send(ran);
                    Done::Told
                };
                self.in_flight.push(run.boxed());
            }
            Message::Return(lease) => {
                self.with(&lease.key, now, |state, turn| state.give_back(&lease, turn));
            }
            Message::Settle(Settlement {
                lease,
                outcome,
                reply,
            }) => {
                let key = lease.key.clone();
                let caller = reply.map(|reply| ReplyTo::Settlement(reply).into());
                let caller = caller.unwrap_or_default();
                self.with(&key, now, |state, turn| {
                    state.settle(lease, outcome, caller, turn);
                });
            }
            Message::Drain(drained) => {
                let tracker = std::mem::take(&mut self.tracker);
                tracker.close();
                // The caller may have stopped waiting.
                let _ = drained.send(tracker);
            }
        }
    }

    fn done(&mut self, done: Done) {
        let now = self.stamp();
        match done {
            Done::Calls(lane, items, sent, answers) => {
                self.calls.answered(lane, items);
                self.woken += answers.len();
                for (Queued { key, call, .. }, result) in answers {
                    self.with_known(&key, now, |state, turn| {
                        state.answered(call, result, sent, turn);
                    });
                }
            }
            Done::Subscribed(key, result) => {
                self.subscriptions.answered(1);
                self.with_known(&key, now, |state, turn| state.subscribed(result, turn));
            }
            Done::Unsubscribed(key) => {
                self.subscriptions.answered(1);
                self.with_known(&key, now, KeyState::unsubscribed);
            }
            Done::Told => {}
            Done::Ping(result) => {
                self.pinging = false;
                let connected = result.is_ok();
                if connected != self.connected {
                    telemetry::resync(if connected { "answered" } else { "unanswered" });
                    self.missed(connected);
                }
            }
        }
    }

    fn heard(&mut self, heard: StoreEvent) {
        match heard {
            StoreEvent::Message { channel, frame } => {
                if let Some(entry) = self.runs.get(&channel) {
                    let (key, now) = (entry.key.clone(), self.stamp());
                    self.with_known(&key, now, |state, turn| state.heard(frame, turn));
                }
            }
            StoreEvent::Lagged => {
                telemetry::resync("lagged");
                self.missed(self.connected);
            }
            // The store repeats this event for as long as the connection is down.
            StoreEvent::Disconnected if !self.connected => {}
            StoreEvent::Disconnected => {
                telemetry::resync("disconnected");
                self.missed(false);
            }
            StoreEvent::Reconnected => {
                telemetry::resync("reconnected");
                self.connected = true;
                self.ping_is_due = true;
                self.with_all(KeyState::resubscribe);
            }
            StoreEvent::CommandsReconnected => {
                self.ping_is_due = true;
                // The new connection may lead to another server, which has not heard of our keys.
                self.missed(self.connected);
            }
        }
    }

    fn missed(&mut self, connected: bool) {
        self.connected = connected;
        self.with_all(|state, turn| state.missed(connected, turn));
    }

    fn fire(&mut self, key: &Key) {
        if let Some(entry) = self.runs.get_mut(key.line()) {
            entry.timer = None;
            let now = self.stamp();
            self.with_known(key, now, KeyState::fire);
        }
    }

    /// Compares the two clocks. While the machine sleeps, timers stand still and leases run on.
    fn compare_clocks(&mut self) {
        let clock = self.handle.clock;
        let before = std::mem::replace(&mut self.compared, clock.stamp());
        let timers = self
            .compared
            .instant
            .saturating_duration_since(before.instant);
        let leases = self.compared.moment.saturating_since(before.moment);
        // Only the wall clock shows that a virtual machine was paused. The bound of 1 ms is less
        // than any margin.
        let has_paused = self.compared.wall_lead - before.wall_lead > 1_000;
        if leases > timers + STOOD_STILL || has_paused {
            self.with_all(KeyState::woke);
        }
    }

    fn wants_comparison(&self) -> bool {
        self.holding > 0 && self.handle.clock.outlives_timers()
    }

    fn wants_ping(&self) -> bool {
        !self.pinging && self.subscribed > 0
    }

    fn ping(&mut self) {
        self.pinging = true;
        self.ping_is_due = false;
        let store = self.store.clone();
        self.in_flight
            .push(async move { Done::Ping(store.ping().await) }.boxed());
    }

    fn with_all(&mut self, act: impl Fn(&mut KeyState<Caller>, &mut Turn<'_, Caller>)) {
        let now = self.stamp();
        let keys: Vec<Key> = self.runs.values().map(|entry| entry.key.clone()).collect();
        for key in keys {
            self.with_known(&key, now, &act);
        }
    }

    /// Acts on the state of a key. Creates it if there is none.
    fn with(
        &mut self,
        key: &Key,
        now: Stamp,
        act: impl FnOnce(&mut KeyState<Caller>, &mut Turn<'_, Caller>),
    ) {
        if !self.runs.contains_key(key.line()) {
            let entry = Entry {
                key: key.clone(),
                state: KeyState::new(key.clone(), self.connected),
                timer: None,
                outage: None,
                renewal_outage: None,
            };
            self.runs.insert(key.line().clone(), entry);
        }
        self.with_known(key, now, act);
    }

    /// Acts on the state of a key if there is one, carries out what follows, and sets its timer.
    fn with_known(
        &mut self,
        key: &Key,
        now: Stamp,
        act: impl FnOnce(&mut KeyState<Caller>, &mut Turn<'_, Caller>),
    ) {
        let Some(entry) = self.runs.get_mut(key.line()) else {
            return;
        };
        self.subscribed -= usize::from(entry.state.wants_messages());
        self.holding -= usize::from(entry.state.is_holding());
        let had_deferred = entry.state.has_deferred();
        // All keys share one list: it is empty between two acts.
        let mut outputs = std::mem::take(&mut self.outputs);
        let mut turn = Turn {
            now,
            clock: self.handle.clock,
            fresh: &mut self.handle,
            outputs: &mut outputs,
        };
        entry.state.act(&mut turn, act);
        self.subscribed += usize::from(entry.state.wants_messages());
        self.holding += usize::from(entry.state.is_holding());

        let deadline = entry.state.deadline();
        if deadline != entry.timer.as_ref().map(|(at, _)| *at) {
            if let Some((_, timer)) = entry.timer.take() {
                self.timers.remove(&timer);
            }
            entry.timer = deadline.map(|at| {
                let capped = at.min(now.instant + FAR);
                (capped, self.timers.insert_at(key.clone(), capped))
            });
        }
        // Once, however many records arrive before the waiters are notified.
        if entry.state.has_deferred() && !had_deferred {
            self.deferred.push(key.clone());
        }
        let is_over = entry.state.is_over();
        for output in outputs.drain(..) {
            self.carry_out(key, output, now);
        }
        self.outputs = outputs;
        // Only a grant leads to another act, and a state with a grant is not over.
        if is_over {
            self.runs.remove(key.line());
        }
    }

    fn carry_out(&mut self, key: &Key, output: Output<Caller>, now: Stamp) {
        match output {
            Output::Call(mut call) => {
                let tracker = &self.tracker;
                let ticket = &mut call.caller.ticket;
                ticket.get_or_insert_with(|| tracker.token());
                let (key, op) = (key.clone(), call.request.op());
                let (lane, bytes) = (self.store.lane(&key, &op), op.payload().len());
                self.calls.push(lane, bytes, Queued { key, call, op });
            }
            Output::Subscribe => self.subscriptions.push(0, (key.clone(), Subscribe::Begin)),
            Output::Unsubscribe => self.subscriptions.push(0, (key.clone(), Subscribe::End)),
            Output::Notify(id, update) => self.notify(id, update),
            Output::Grant { lease, confirmed } => self.grant(lease, confirmed, now),
            Output::Show(id, item) => {
                if let Some(Mailbox::Watcher(mailbox)) = self.mailboxes.get(&id) {
                    // A watcher that has gone needs no news: its leaving is on its way.
                    let _ = mailbox.unbounded_send(item);
                }
            }
            Output::Close(id) => {
                self.mailboxes.remove(&id);
            }
            // Its ticket lasted until here, so a caller of `close` finds what came before.
            Output::Release(caller) => drop(caller),
            Output::Answer(caller, answer) => match (caller.reply, answer) {
                (Some(ReplyTo::Renewal(reply)), Answer::Renewed(answer)) => {
                    let _ = reply.send(answer);
                }
                (Some(ReplyTo::Operation(reply)), Answer::Executed(answer)) => {
                    let _ = reply.send(answer);
                }
                _ => debug_assert!(false, "an answer to another question"),
            },
            Output::Settled {
                lease,
                update,
                caller,
                result,
            } => {
                telemetry::settled(lease.told(), settled(&result, &update));
                // The stream before the guard: once the guard's future resolves, the stream has its
                // end.
                self.notify(lease.id, update);
                if let Some(ReplyTo::Settlement(reply)) = caller.reply {
                    let _ = reply.send(result);
                }
            }
            Output::Report(report) => self.report(key, report),
        }
    }

    /// Tells a participant. One that has gone needs no news: its leaving is on its way.
    fn notify(&self, id: Id, update: Update) {
        if let Some(Mailbox::Participant(mailbox)) = self.mailboxes.get(&id) {
            let _ = mailbox.unbounded_send(update);
        }
    }

    /// Gives a participant its grant. If the participant has gone, the grant is given back here and
    /// now: its own way back would be behind all that was asked after the drop.
    fn grant(&mut self, lease: Arc<Lease>, confirmed: bool, now: Stamp) {
        let mailbox = match self.mailboxes.get(&lease.id) {
            Some(Mailbox::Participant(mailbox)) => Some(mailbox),
            _ => None,
        };
        // Without a handle there is no stream.
        let mut undelivered = None;
        if let (Some(mailbox), Some(hub)) = (mailbox, self.handle.upgrade()) {
            let grant = Grant {
                lease: lease.clone(),
                confirmed,
                used: AtomicBool::new(false),
                hub,
            };
            match mailbox.unbounded_send(Update::Granted(grant)) {
                Ok(()) => return,
                Err(error) => undelivered = Some(error),
            }
        }
        self.with_known(&lease.key, now, |state, turn| {
            state.undelivered(&lease, turn)
        });
        // So that the drop of the grant does not give it back again.
        lease.give();
        drop(undelivered);
    }

    fn report(&mut self, key: &Key, report: Report) {
        match report {
            Report::Granted {
                lease,
                record,
                remaining,
                server_time,
            } => telemetry::granted(&lease.work, &record, remaining, server_time),
            Report::Renewed(lease) => telemetry::renewed(lease.told()),
            Report::OutageBegan(outages, error) => {
                let begun = self.handle.outages.begin(key, &error);
                if let Some(outage) = self.outage(key, outages) {
                    *outage = Some(begun);
                }
            }
            Report::OutageOver(outages) => {
                if let Some(outage) = self.outage(key, outages).and_then(Option::take) {
                    outage.over();
                }
            }
            Report::OutageLeft(outages) => {
                if let Some(outage) = self.outage(key, outages) {
                    *outage = None;
                }
            }
        }
    }

    fn outage(&mut self, key: &Key, outages: OutageKind) -> Option<&mut Option<telemetry::Outage>> {
        let entry = self.runs.get_mut(key.line())?;
        Some(match outages {
            OutageKind::Calls => &mut entry.outage,
            OutageKind::Renewals => &mut entry.renewal_outage,
        })
    }

    /// Sends the calls and subscriptions that may leave now.
    fn send(&mut self) {
        while let Some((lane, mut calls)) = self.calls.next_call() {
            let items = calls.len();
            // A renewal may have become needless while it was queued.
            calls.retain_mut(|Queued { key, call, op }| {
                let mut wanted = true;
                if call.is_renewal() {
                    let now = self.stamp();
                    self.with_known(key, now, |state, _| wanted = state.still_wants(call));
                    // A lease that waited for its turn may have less left of its longest hold.
                    *op = call.request.op();
                }
                wanted
            });
            if calls.is_empty() {
                self.calls.answered(lane, items);
                continue;
            }
            let (store, clock) = (self.store.clone(), self.handle.clock);
            let sending = async move {
                let sent = clock.stamp();
                let asked: Vec<(&Key, &Op)> =
                    calls.iter().map(|call| (&call.key, &call.op)).collect();
                let results = store.apply_all(&asked).await;
                debug_assert_eq!(results.len(), calls.len(), "an answer to each");
                Done::Calls(lane, items, sent, calls.into_iter().zip(results).collect())
            };
            self.in_flight.push(sending.boxed());
        }
        while let Some((key, subscribe)) = self.subscriptions.next(SUBSCRIBING) {
            let store = self.store.clone();
            let sending = async move {
                match subscribe {
                    Subscribe::Begin => {
                        let result = store.watch(&key).await;
                        Done::Subscribed(key, result)
                    }
                    Subscribe::End => {
                        store.unwatch(&key).await;
                        Done::Unsubscribed(key)
                    }
                }
            };
            self.in_flight.push(sending.boxed());
        }
    }
}

enum Subscribe {
    Begin,
    End,
}

/// Returns what telemetry reports of a settlement.
fn settled<'a>(result: &'a Result<(), NotSettled>, update: &'a Update) -> Settled<'a> {
    match (result, update) {
        (Ok(()), Update::Settled(Ended::Failed(failed))) => match &failed.reason {
            Reason::HandedOff => Settled::HandedOff,
            reason => Settled::Failed(reason),
        },
        (Ok(()), Update::Settled(Ended::GaveUp(gave_up))) => Settled::Failed(&gave_up.reason),
        (Ok(()), _) => Settled::Completed,
        (Err(error), Update::Settled(Ended::Failed(failed))) => match error {
            NotSettled::Lost(_) => Settled::Lost(&failed.reason, error),
            _ => Settled::Unknown(&failed.reason, error),
        },
        (Err(error), _) => Settled::Refused(error),
    }
}
