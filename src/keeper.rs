//! The keeper renews the leases of guards that are in use, and ends the leases that it cannot
//! renew. Each worker that renews, with its clones, has one.
//!
//! A guard reports directly to the keeper that it is in use, and not by way of the hub, which a
//! blocked thread can hold up. The keeper also renews for a completion that the hub has not sent
//! yet. It tells the hub of a lease that is lost, and of renewals that fail, which are an outage of
//! the key like any other.
//!
//! For runs on a server, the keeper works in a thread that all keepers of the process share, and
//! has a connection of its own. A blocked thread of the user's runtime then ends no lease, not even
//! if all its threads are blocked. The connections of that runtime would not do, because the tasks
//! that drive them are blocked with it. In memory, the keeper is a task on the hub's runtime, with
//! the same clock.
//!
//! The keeper must not keep leases without the user's runtime for ever: a process that hangs would
//! hold the work for ever. So the keeper asks that runtime to run a task, each time that it wakes.
//! It stops renewing if the runtime has run none for
//! [`RunConfig::stall_limit`](crate::lease::RunConfig::stall_limit). When that runtime has shut
//! down, no lease is renewed, and the keeper settles the guards that are dropped then.

mod thread;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::clock::{Clock, Moment, Stamp};
use crate::error::{Error, LeaseLost};
use crate::key::Key;
use crate::lease::Lease;
use crate::protocol::record::loss;
use crate::protocol::{GRAIN, Op, Outcome, Reply};
use crate::retry::{RETRY_FIRST, jittered, next_delay};
use crate::store::Store;
use crate::telemetry::{self, Observers};
pub(crate) use thread::runtime;

/// The period at which the keeper reads the clock while it keeps a lease. Timers stand still while
/// the machine sleeps, so they alone would miss the end of a lease.
const LOOK: Duration = Duration::from_secs(1);

/// The maximum of renewals in one call. A larger call would hold up the server for others.
const MOST: usize = 128;

/// The number of kept leases at which the keeper first removes those whose guards are settled. It
/// would remove each one when its renewal is due, but that may be much later.
const SWEEP: usize = 1_024;

/// The minimum time for which a settlement is retried. It is retried until the lease ends, if that
/// is later.
const PATIENCE: Duration = Duration::from_secs(5);

/// A handle to the keeper of one hub. The keeper ends with the last handle.
#[derive(Clone)]
pub(crate) struct Keeper(Arc<Inner>);

struct Inner {
    tasks: mpsc::UnboundedSender<Task>,
    /// The runtime of the keeper.
    runtime: Handle,
    /// The keeper's task, which starts with the first lease.
    begin: Mutex<Option<BoxFuture<'static, ()>>>,
    /// Whether the keeper works on after the hub's runtime has shut down.
    outlives_hub: bool,
}

/// A handle that does not keep the keeper alive.
#[derive(Clone, Default)]
pub(crate) struct WeakKeeper(Weak<Inner>);

enum Task {
    Keep(Arc<Lease>),
    /// Ends a grant whose hub has gone.
    Settle(Arc<Lease>, Outcome),
}

/// A message from the keeper to the hub.
pub(crate) enum News {
    /// The lease is lost.
    Lost(Arc<Lease>),
    /// A renewal is due, and the keeper has no connection yet. The hub has one.
    Due(Arc<Lease>),
    /// The last renewal of the lease failed.
    Failing(Arc<Lease>, Error),
    /// Renewals work again, or none will follow.
    Working(Arc<Lease>),
}

impl Keeper {
    /// Returns a keeper on the hub's runtime.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime.
    pub(crate) fn beside<S: Store>(
        store: S,
        clock: Clock,
        tell: impl Fn(News) + Send + 'static,
    ) -> Self {
        let (tasks, asked) = mpsc::unbounded_channel();
        let connect = move || std::future::ready(Ok::<_, Error>(store.clone()));
        let run = run(connect, asked, clock, None, tell);
        Self(Arc::new(Inner {
            tasks,
            runtime: Handle::current(),
            begin: Mutex::new(Some(run.boxed())),
            outlives_hub: false,
        }))
    }

    /// Returns a keeper in the process's thread, with a store of its own. The store connects when
    /// there is a lease to keep.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime.
    pub(crate) fn apart<S, C, F>(
        runtime: Handle,
        connect: C,
        clock: Clock,
        observers: Observers,
        tell: impl Fn(News) + Send + 'static,
    ) -> Self
    where
        S: Store,
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, Error>> + Send + 'static,
    {
        let (tasks, asked) = mpsc::unbounded_channel();
        let probe = Probe::new(Handle::current(), clock);
        let run = run(connect, asked, clock, Some(probe), tell);
        // The keeper's telemetry goes to the subscribers of the thread that built the worker.
        let run = observers.follow(run);
        Self(Arc::new(Inner {
            tasks,
            runtime,
            begin: Mutex::new(Some(run.boxed())),
            outlives_hub: true,
        }))
    }

    /// Returns the keeper of a hub that renews no lease.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime.
    pub(crate) fn idle() -> Self {
        let (tasks, _) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            tasks,
            runtime: Handle::current(),
            begin: Mutex::new(None),
            outlives_hub: false,
        }))
    }

    /// Renews the lease from now on.
    pub(crate) fn keep(&self, lease: &Arc<Lease>) {
        lease.keep();
        if !self.ask(Task::Keep(lease.clone())) {
            // The keeper has ended and renews no lease.
            lease.lose(LeaseLost::Stopped);
        }
    }

    /// Ends a grant for a hub that has gone, if the keeper works on without the hub.
    pub(crate) fn settle(&self, lease: &Arc<Lease>, outcome: Outcome) {
        if self.0.outlives_hub {
            // If the keeper has ended, the lease ends the grant.
            let _ = self.ask(Task::Settle(lease.clone(), outcome));
        }
    }

    /// Hands a task to the keeper. Returns whether the keeper still runs.
    fn ask(&self, task: Task) -> bool {
        let begin = self
            .0
            .begin
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if let Some(run) = begin {
            self.0.runtime.spawn(run);
        }
        self.0.tasks.send(task).is_ok()
    }

    pub(crate) fn downgrade(&self) -> WeakKeeper {
        WeakKeeper(Arc::downgrade(&self.0))
    }
}

impl WeakKeeper {
    pub(crate) fn upgrade(&self) -> Option<Keeper> {
        self.0.upgrade().map(Keeper)
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

/// Asks the user's runtime for a sign of life: a task that any of its threads may run.
struct Probe {
    runtime: Handle,
    clock: Clock,
    seen: Arc<Mutex<Moment>>,
    asked: Option<JoinHandle<()>>,
}

impl Probe {
    fn new(runtime: Handle, clock: Clock) -> Self {
        Self {
            runtime,
            clock,
            seen: Arc::new(Mutex::new(clock.now())),
            asked: None,
        }
    }

    fn see(seen: &Mutex<Moment>, clock: Clock) {
        let mut seen = seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *seen = clock.now();
    }

    /// Returns how long the runtime has given no sign of life.
    fn silence(&self) -> Duration {
        let seen = *self
            .seen
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        self.clock.now().saturating_since(seen)
    }

    /// Asks again, unless the runtime has not run the last task yet.
    fn ask(&mut self) {
        if self.asked.as_ref().is_none_or(JoinHandle::is_finished) {
            let (seen, clock) = (self.seen.clone(), self.clock);
            let sign = async move { Self::see(&seen, clock) };
            self.asked = Some(self.runtime.spawn(sign));
        }
    }
}

/// One kept lease.
struct Kept {
    /// The lease, which its guard and its hub keep alive.
    lease: Weak<Lease>,
    /// The time of the next action.
    at: Moment,
    /// Whether a renewal is in flight.
    asked: bool,
    /// Whether the server refuses renewals, so that the lease just ends in time.
    refused: bool,
    /// Whether the last renewal failed.
    failing: bool,
    /// The delay after the next failure.
    delay: Duration,
}

/// Identifies one kept lease.
type Id = u64;

/// The result of one call. Renewals have the time at which they were sent.
enum Done {
    Renewed(Stamp, Vec<(Id, Arc<Lease>, Result<Reply, Error>)>),
    Settled,
}

struct Work<S, T> {
    clock: Clock,
    store: Option<S>,
    /// The error of the last attempt to connect, while there is no store.
    refused: Option<Error>,
    probe: Option<Probe>,
    tell: T,
    kept: HashMap<Id, Kept>,
    due: BTreeSet<(Moment, Id)>,
    next: Id,
    /// The number of kept leases at which the next sweep happens.
    sweep_at: usize,
    /// The settlements that wait for the connection.
    settling: Vec<(Arc<Lease>, Outcome)>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    wall_lead: i64,
}

/// Keeps leases until no handle is left, and all renewals and settlements are finished.
async fn run<S, C, F, T>(
    connect: C,
    mut tasks: mpsc::UnboundedReceiver<Task>,
    clock: Clock,
    probe: Option<Probe>,
    tell: T,
) where
    S: Store,
    C: Fn() -> F,
    F: Future<Output = Result<S, Error>>,
    T: Fn(News),
{
    let mut work = Work::new(clock, probe, tell);
    let mut delay = RETRY_FIRST;
    let after = async |wait| {
        sleep(wait).await;
        connect().await
    };
    let mut connecting = pin!(after(Duration::ZERO));
    let mut open = true;
    while open || !work.in_flight.is_empty() || !work.settling.is_empty() {
        let wake = work.wakes_in();
        tokio::select! {
            task = tasks.recv(), if open => match task {
                Some(task) => work.begin(task),
                None => open = false,
            },
            connected = &mut connecting, if work.store.is_none() => match connected {
                Ok(store) => work.store = Some(store),
                Err(error) => {
                    work.refused = Some(error);
                    connecting.set(after(jittered(delay)));
                    delay = next_delay(delay);
                }
            },
            Some(done) = work.in_flight.next(), if !work.in_flight.is_empty() => work.done(done),
            () = sleep(wake.unwrap_or_default()), if wake.is_some() => {}
        }
        work.act();
    }
    if let Some(store) = &work.store {
        store.close().await;
    }
}

impl<S: Store, T: Fn(News)> Work<S, T> {
    fn new(clock: Clock, probe: Option<Probe>, tell: T) -> Self {
        Self {
            clock,
            store: None,
            refused: None,
            probe,
            tell,
            kept: HashMap::new(),
            due: BTreeSet::new(),
            next: 0,
            sweep_at: SWEEP,
            settling: Vec::new(),
            in_flight: FuturesUnordered::new(),
            wall_lead: clock.wall_lead(),
        }
    }

    fn begin(&mut self, task: Task) {
        match task {
            Task::Keep(lease) => {
                if let Some(probe) = &self.probe {
                    // A guard was used just now, which is a sign of life of its process.
                    Probe::see(&probe.seen, self.clock);
                }
                self.sweep();
                let id = self.next;
                self.next += 1;
                // Pauses after this moment are noticed when they happen.
                let at = next_of(&lease, self.clock.now());
                let kept = Kept {
                    lease: Arc::downgrade(&lease),
                    at,
                    asked: false,
                    refused: false,
                    failing: false,
                    delay: RETRY_FIRST,
                };
                self.kept.insert(id, kept);
                self.due.insert((at, id));
            }
            Task::Settle(lease, outcome) => self.settling.push((lease, outcome)),
        }
    }

    fn sweep(&mut self) {
        if self.kept.len() >= self.sweep_at {
            let is_over = |kept: &Kept| kept.lease.upgrade().is_none_or(|lease| !lease.is_wanted());
            let over = self.kept.iter().filter(|(_, kept)| is_over(kept));
            for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.forget(id);
            }
            self.sweep_at = SWEEP.max(2 * self.kept.len());
        }
    }

    /// Returns when there is something to do.
    fn wakes_in(&self) -> Option<Duration> {
        let due = self
            .due
            .first()
            .map(|(at, _)| at.saturating_since(self.clock.now()));
        match due {
            // The settlements expire, so look again in time.
            None => (!self.settling.is_empty()).then_some(LOOK),
            Some(due) if self.clock.outlives_timers() => Some(due.min(LOOK)),
            due => due,
        }
    }

    fn requeue(&mut self, id: Id, at: Moment) {
        if let Some(kept) = self.kept.get_mut(&id) {
            self.due.remove(&(kept.at, id));
            kept.at = at;
            self.due.insert((at, id));
        }
    }

    fn forget(&mut self, id: Id) {
        if let Some(kept) = self.kept.remove(&id) {
            self.due.remove(&(kept.at, id));
        }
    }

    fn act(&mut self) {
        if let Some(probe) = self.probe.as_mut().filter(|_| !self.kept.is_empty()) {
            probe.ask();
        }
        let now = self.clock.now();
        self.notice_pause(now);
        let mut due = Vec::new();
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id));
            if let Some(lease) = self.attend(id, now) {
                due.push((id, lease));
            }
        }
        self.renew(due);
        self.settle();
    }

    /// Re-examines the leases if the wall clock shows that the virtual machine was paused.
    fn notice_pause(&mut self, now: Moment) {
        let wall_lead = self.clock.wall_lead();
        let before = std::mem::replace(&mut self.wall_lead, wall_lead);
        // A pause below 1 ms is less than any margin.
        if wall_lead.saturating_sub(before) < 1_000 {
            return;
        }
        let paused = |(_, kept): &(&Id, &Kept)| {
            let lease = kept.lease.upgrade();
            !kept.asked && lease.is_some_and(|lease| lease.may_have_paused())
        };
        let paused: Vec<Id> = self.kept.iter().filter(paused).map(|(id, _)| *id).collect();
        for id in paused {
            self.requeue(id, now);
        }
    }

    /// Handles a lease whose time has come. Returns it if it has to be renewed now.
    fn attend(&mut self, id: Id, now: Moment) -> Option<Arc<Lease>> {
        let kept = self.kept.get_mut(&id)?;
        let Some(lease) = kept.lease.upgrade().filter(|lease| lease.is_wanted()) else {
            self.kept.remove(&id);
            return None;
        };
        let ends = lease.ends();
        let has_paused = lease.may_have_paused();
        // After a pause, ask the server first: it may only be that the wall clock was set.
        let tried = kept.asked || kept.refused || kept.failing;
        if ends <= now || has_paused && tried && lease.remaining().is_zero() {
            self.kept.remove(&id);
            lease.expire();
            (self.tell)(News::Lost(lease));
            return None;
        }
        let due = lease.renewal_due();
        let look_again = if has_paused {
            ends.min(now + LOOK / 2)
        } else {
            ends
        };
        // The lease was restarted in another way (extended or confirmed), or no renewal reaches
        // further.
        let is_served = due.is_none_or(|due| due > now && !has_paused);
        if is_served && !kept.asked && std::mem::take(&mut kept.failing) {
            (self.tell)(News::Working(lease.clone()));
        }
        let at = match due {
            _ if kept.asked || kept.refused => look_again,
            None => look_again,
            Some(due) if due > now && !has_paused => due.min(ends),
            Some(_) => match stall(self.probe.as_ref(), &lease) {
                Some(silence) => {
                    lease.stalled(silence);
                    // The runtime may run again before the lease ends.
                    let again = lease.terms.renew_every.unwrap_or(LOOK).min(LOOK / 4);
                    ends.min(now + again)
                }
                // There is no connection yet, or the server accepts no more clients. The hub has a
                // connection.
                None if self.store.is_none() => {
                    lease.asked(self.refused.as_ref().map(|error| about(error, &lease.key)));
                    (self.tell)(News::Due(lease));
                    let delay = jittered(kept.delay);
                    kept.delay = next_delay(kept.delay);
                    look_again.min(now + delay)
                }
                None => {
                    kept.asked = true;
                    lease.asked(None);
                    kept.at = look_again;
                    self.due.insert((look_again, id));
                    return Some(lease);
                }
            },
        };
        kept.at = at;
        self.due.insert((at, id));
        None
    }

    fn renew(&mut self, leases: Vec<(Id, Arc<Lease>)>) {
        let Some(store) = &self.store else {
            return;
        };
        let mut lanes: HashMap<_, Vec<_>> = HashMap::new();
        for (id, lease) in leases {
            let op = Op::Renew {
                fence: lease.fence,
                lease: lease.restartable_for(lease.terms.lease),
                checkpoint: None,
            };
            let lane = store.lane(&lease.key, &op);
            lanes.entry(lane).or_default().push((id, lease, op));
        }
        for mut renewals in lanes.into_values() {
            while !renewals.is_empty() {
                let rest = renewals.split_off(renewals.len().min(MOST));
                let together = std::mem::replace(&mut renewals, rest);
                let (store, clock) = (store.clone(), self.clock);
                let asking = async move {
                    let stamp = clock.stamp();
                    let asked: Vec<_> = together
                        .iter()
                        .map(|(_, lease, op)| (&lease.key, op))
                        .collect();
                    let answers = store.apply_all(&asked).await;
                    let answered = together.into_iter().zip(answers);
                    let answered = answered.map(|((id, lease, _), answer)| (id, lease, answer));
                    Done::Renewed(stamp, answered.collect())
                };
                self.in_flight.push(asking.boxed());
            }
        }
    }

    fn done(&mut self, done: Done) {
        let Done::Renewed(stamp, answers) = done else {
            return;
        };
        for (id, lease, answer) in answers {
            self.renewed(id, lease, answer, stamp);
        }
    }

    fn renewed(&mut self, id: Id, lease: Arc<Lease>, answer: Result<Reply, Error>, asked: Stamp) {
        let now = self.clock.now();
        let kept = self.kept.get_mut(&id);
        let error = match &answer {
            Ok(reply) => match reply.record().filter(|_| reply.ok) {
                Some(record) => {
                    let left = record.remaining(reply.frame.at);
                    lease.on_server_time(asked, reply.frame.at);
                    if lease.restart(record.renewal, asked, left) {
                        telemetry::renewed(lease.told());
                    }
                    None
                }
                // A lease that is being settled is lost already, so this is no news.
                None => {
                    if lease.lose(loss(reply.record(), lease.attempt)) {
                        (self.tell)(News::Lost(lease));
                    }
                    return self.forget(id);
                }
            },
            Err(error) => Some(error),
        };
        // The lease ended while the renewal was in flight.
        let Some(kept) = kept else {
            return;
        };
        kept.asked = false;
        let Some(error) = error else {
            kept.delay = RETRY_FIRST;
            let at = next_of(&lease, now);
            if std::mem::take(&mut kept.failing) {
                (self.tell)(News::Working(lease));
            }
            return self.requeue(id, at);
        };
        lease.asked(Some(error.clone()));
        if error.is_fatal() {
            kept.refused = true;
            let ends = lease.ends();
            // A refusal is an answer, so the server works.
            if std::mem::take(&mut kept.failing) {
                (self.tell)(News::Working(lease));
            }
            return self.requeue(id, ends);
        }
        if !std::mem::replace(&mut kept.failing, true) {
            (self.tell)(News::Failing(lease.clone(), error.clone()));
        }
        let delay = jittered(kept.delay);
        kept.delay = next_delay(kept.delay);
        // However long the delay has grown, one more attempt must fit before the lease ends.
        let half = lease.ends().saturating_since(now) / 2;
        self.requeue(
            id,
            match half > GRAIN {
                true => now + delay.min(half),
                false => lease.ends(),
            },
        );
    }

    /// Ends the grants whose hubs have gone.
    fn settle(&mut self) {
        let Some(store) = &self.store else {
            let now = self.clock.now();
            self.settling
                .retain(|(lease, _)| now < lease.ends() + PATIENCE);
            return;
        };
        for (lease, outcome) in self.settling.drain(..) {
            let (store, clock) = (store.clone(), self.clock);
            let settling = async move {
                let op = Op::Settle {
                    fence: lease.fence,
                    outcome,
                    window: lease.terms.window(),
                };
                let until = lease.ends().max(clock.now() + PATIENCE);
                let mut delay = RETRY_FIRST;
                while let Err(error) = store.apply(&lease.key, &op).await {
                    if error.is_fatal() || clock.now() >= until {
                        break;
                    }
                    sleep(jittered(delay)).await;
                    delay = next_delay(delay);
                }
                Done::Settled
            };
            self.in_flight.push(settling.boxed());
        }
    }
}

impl<S, T> Drop for Work<S, T> {
    /// Loses the remaining leases. The keeper's runtime has gone or panicked, and no task renews
    /// them.
    fn drop(&mut self) {
        for lease in self.kept.values().filter_map(|kept| kept.lease.upgrade()) {
            lease.lose(LeaseLost::Stopped);
        }
    }
}

/// Returns the same error for another key.
fn about(error: &Error, key: &Key) -> Error {
    match error {
        Error::Unavailable { source, .. } => Error::Unavailable {
            key: key.clone(),
            source: source.clone(),
        },
        error => error.clone(),
    }
}

/// Returns the time of the next action for a lease. It is now if the machine may have been paused
/// since the lease was asked for.
fn next_of(lease: &Lease, now: Moment) -> Moment {
    let ends = lease.ends();
    match lease.may_have_paused() {
        true => now,
        false => lease.renewal_due().map_or(ends, |due| due.min(ends)),
    }
}

/// Returns how long the worker's runtime has not run, if that is longer than the limit.
fn stall(probe: Option<&Probe>, lease: &Lease) -> Option<Duration> {
    let silence = probe?.silence();
    (silence > lease.terms.stall_limit).then_some(silence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::{lease, record};
    use crate::protocol::record::{Record, RecordSnapshot};
    use crate::store::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn leases_that_are_settled_are_forgotten_long_before_they_are_due() {
        let mut work = Work::<MemoryStore, _>::new(Clock::tokio(), None, |_| {});
        let in_use: Vec<_> = (0..10).map(|_| Arc::new(lease(PATIENCE).0)).collect();
        in_use
            .iter()
            .for_each(|lease| work.begin(Task::Keep(lease.clone())));
        // Their hub still holds them.
        let settled: Vec<_> = (0..10 * SWEEP)
            .map(|_| Arc::new(lease(PATIENCE).0))
            .collect();
        for lease in &settled {
            lease.lose(LeaseLost::Settled);
            work.begin(Task::Keep(lease.clone()));
        }
        assert!(work.kept.len() <= SWEEP);
        assert_eq!(work.kept.len(), work.due.len());
        let kept = work.kept.values().filter_map(|kept| kept.lease.upgrade());
        assert_eq!(kept.filter(|lease| lease.is_wanted()).count(), in_use.len());
    }

    /// What a paused virtual machine did not count, the server did.
    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_not_for_longer_than_the_longest_hold_by_the_servers_time() {
        let mut work = Work::<MemoryStore, _>::new(Clock::tokio(), None, |_| {});
        let (lease, clock) = lease(PATIENCE);
        let (lease, asked) = (Arc::new(lease), clock.stamp());
        work.begin(Task::Keep(lease.clone()));
        let before = lease.restartable_for(u64::MAX);
        let at = lease.fence + 4_000_000;
        let record = Arc::new(Record {
            renewal: 1,
            until: at / 1_000 + 5_000,
            ..record()
        });
        let frame = RecordSnapshot {
            at,
            record: Some(record),
        };
        let reply = Reply {
            ok: true,
            frame,
            position: None,
        };
        work.renewed(0, lease.clone(), Ok(reply), asked);
        assert_eq!(before - lease.restartable_for(u64::MAX), 4_000);
    }
}
