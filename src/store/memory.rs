//! The transitions in plain Rust, in one process.
//!
//! This is the executable form of the protocol: `tests/equivalence.rs` compares every answer with
//! the scripts'.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use futures::channel::mpsc;
use tokio::time::Instant;

use super::key::Key;
use super::record::{Cause, Frame, Previous, Record, State, Token};
use super::{Failure, Heard, Op, Outcome, Reply, Store};
use crate::error::Error;

/// A store in this process: for unit tests, and for programs that have one process only.
///
/// Workers built on clones of one `Memory` see the same keys and compete as they would on a
/// server. It keeps time by [`tokio::time`], so that under a paused clock a run of five attempts
/// and their leases takes no time at all.
///
/// # Examples
///
/// ```
/// use futures::StreamExt;
/// use redis_locking_worker::{LockEvent, LockingWorker, Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = Memory::new();
/// let worker = LockingWorker::builder("report").in_memory(&memory).build().await?;
/// let mut events = worker.acquire();
/// while let Some(event) = events.next().await {
///     if let LockEvent::Acquired(guard) = event {
///         guard.done().await?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Server>>);

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets a key at once, as a server does that is flushed or runs out of memory.
    pub fn remove(&self, key: &Key) -> bool {
        self.lock().entries.remove(key).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        // Every transition writes its changes in one go at its end: a panic leaves none half done.
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("keys", &self.lock().entries.len())
            .finish()
    }
}

/// One hub's connection to a [`Memory`].
#[derive(Clone)]
pub struct MemoryStore {
    memory: Memory,
    hearer: Arc<Mutex<Option<mpsc::UnboundedReceiver<Heard>>>>,
    watcher: mpsc::UnboundedSender<Heard>,
    id: u64,
}

impl MemoryStore {
    /// Connects.
    pub fn new(memory: &Memory) -> Self {
        let (watcher, hearer) = mpsc::unbounded();
        let id = {
            let mut server = memory.lock();
            server.connections += 1;
            server.connections
        };
        Self {
            memory: memory.clone(),
            hearer: Arc::new(Mutex::new(Some(hearer))),
            watcher,
            id,
        }
    }

    /// The milliseconds until a key is forgotten, and how many wait in its line.
    pub fn life(&self, key: &Key) -> Option<(u64, usize)> {
        let server = self.memory.lock();
        let now = server.now() / 1_000;
        let entry = server
            .entries
            .get(key)
            .filter(|entry| entry.expires > now)?;
        Some((entry.expires - now, entry.line.len()))
    }

    /// The server's time, in µs since the Unix epoch.
    pub fn now(&self) -> u64 {
        self.memory.lock().now()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

impl Store for MemoryStore {
    async fn apply(&self, key: &Key, op: &Op) -> Result<Reply, Error> {
        Ok(self.memory.lock().apply(key, op))
    }

    async fn watch(&self, key: &Key) -> Result<(), Error> {
        let mut server = self.memory.lock();
        let watchers = server.watchers.entry(key.clone()).or_default();
        watchers.retain(|watcher| watcher.id != self.id);
        watchers.push(Watcher {
            id: self.id,
            tell: self.watcher.clone(),
        });
        Ok(())
    }

    async fn unwatch(&self, key: &Key) {
        let mut server = self.memory.lock();
        if let Some(watchers) = server.watchers.get_mut(key) {
            watchers.retain(|watcher| watcher.id != self.id);
            if watchers.is_empty() {
                server.watchers.remove(key);
            }
        }
    }

    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }

    fn hear(&mut self) -> impl Stream<Item = Heard> + Send + Unpin + 'static {
        let mut hearer = self
            .hearer
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        hearer.take().expect("a store has one hearer")
    }

    async fn close(&self) {
        let mut server = self.memory.lock();
        server.watchers.retain(|_, watchers| {
            watchers.retain(|watcher| watcher.id != self.id);
            !watchers.is_empty()
        });
    }
}

#[derive(Default)]
struct Server {
    entries: HashMap<Key, Entry>,
    watchers: HashMap<Key, Vec<Watcher>>,
    connections: u64,
    /// Expired entries are forgotten when they are next asked for, and all of them when this many
    /// have gathered.
    sweep_at: usize,
    clock: Clock,
}

struct Entry {
    record: Record,
    line: Line,
    /// Server time in ms at which both are forgotten.
    expires: u64,
}

struct Watcher {
    id: u64,
    tell: mpsc::UnboundedSender<Heard>,
}

/// Wall-clock time that moves with Tokio's clock.
struct Clock {
    started: Instant,
    epoch: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            epoch: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }
}

/// The waiting tokens, first come first served. The set makes joining twice cheap.
#[derive(Default)]
struct Line {
    queue: VecDeque<(Token, Arc<str>)>,
    members: HashSet<(Token, Arc<str>)>,
}

impl Line {
    fn len(&self) -> usize {
        self.queue.len()
    }

    /// Joins, unless already there; the place from 0.
    fn join(&mut self, member: (Token, Arc<str>)) -> usize {
        if self.members.insert(member.clone()) {
            self.queue.push_back(member);
            return self.queue.len() - 1;
        }
        self.queue
            .iter()
            .position(|other| *other == member)
            .unwrap_or(0)
    }

    fn leave(&mut self, member: &(Token, Arc<str>)) -> bool {
        let left = self.members.remove(member);
        if left {
            self.queue.retain(|other| other != member);
        }
        left
    }

    fn pop(&mut self) -> Option<(Token, Arc<str>)> {
        let head = self.queue.pop_front()?;
        self.members.remove(&head);
        Some(head)
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.members.clear();
    }
}

impl Server {
    fn now(&self) -> u64 {
        (self.clock.epoch + self.clock.started.elapsed()).as_micros() as u64
    }

    fn apply(&mut self, key: &Key, op: &Op) -> Reply {
        let at = self.now();
        let now = at / 1_000;
        let entry = self.entries.remove(key).filter(|entry| entry.expires > now);
        let (entry, ok, position, changed) = match (entry, op) {
            (Some(entry), op) => {
                let mut run = Run {
                    entry,
                    at,
                    now,
                    changed: false,
                };
                let (ok, position) = run.apply(op);
                (Some(run.entry), ok, position, run.changed)
            }
            (
                None,
                Op::Claim {
                    token,
                    label,
                    lease,
                    max_attempts,
                    retention,
                },
            ) => {
                let mut run = Run::begin(*max_attempts, *retention, at, now);
                run.grant(State::Held, 1, (*token, label.clone()), *lease);
                (Some(run.entry), true, None, true)
            }
            (None, Op::Inspect) => (None, true, Some(0), false),
            (None, _) => (None, false, None, false),
        };
        let record = entry.as_ref().map(|entry| Arc::new(entry.record.clone()));
        if let Some(mut entry) = entry {
            if changed {
                entry.expires = now + life(&entry.record, now);
                self.sweep(now);
            }
            self.entries.insert(key.clone(), entry);
        }
        let frame = Frame { at, record };
        if changed {
            self.publish(key, &frame);
        }
        Reply {
            ok,
            frame,
            position,
        }
    }

    fn sweep(&mut self, now: u64) {
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, entry| entry.expires > now);
            self.sweep_at = (2 * self.entries.len()).max(1_024);
        }
    }

    fn publish(&mut self, key: &Key, frame: &Frame) {
        let Some(watchers) = self.watchers.get_mut(key) else {
            return;
        };
        // A hub whose runtime has shut down has not said so.
        watchers.retain(|watcher| {
            let message = Heard::Message {
                channel: key.channel().clone(),
                frame: Some(frame.clone()),
            };
            watcher.tell.unbounded_send(message).is_ok()
        });
    }
}

/// How long a record lives from now: a lease is remembered for the retention after its end.
fn life(record: &Record, now: u64) -> u64 {
    match record.state.is_owned() {
        true => record.until - now + record.retention,
        false => record.retention,
    }
}

/// One transition of one record, at one instant.
struct Run {
    entry: Entry,
    /// The server's time, in µs and in ms.
    at: u64,
    now: u64,
    changed: bool,
}

impl Run {
    fn begin(max_attempts: u32, retention: u64, at: u64, now: u64) -> Self {
        let record = Record {
            state: State::Open,
            attempt: 0,
            max_attempts,
            fence: 0,
            renewal: 0,
            until: now,
            retention,
            owner: None,
            last: None,
            previous: None,
            holder: String::new(),
            checkpoint: bytes::Bytes::new(),
            result: bytes::Bytes::new(),
        };
        let entry = Entry {
            record,
            line: Line::default(),
            expires: now,
        };
        Self {
            entry,
            at,
            now,
            changed: true,
        }
    }

    fn apply(&mut self, op: &Op) -> (bool, Option<u64>) {
        match op {
            Op::Claim {
                token,
                label,
                lease,
                ..
            } => self.claim((*token, label.clone()), *lease),
            Op::Settle {
                fence,
                outcome,
                window,
            } => (self.settle(*fence, outcome, *window), None),
            Op::Renew {
                fence,
                lease,
                checkpoint,
            } => {
                let stands = self.is_owned_by(*fence);
                if stands {
                    self.hold(*lease);
                    if let Some(checkpoint) = checkpoint {
                        self.entry.record.checkpoint = checkpoint.clone();
                    }
                }
                (stands, None)
            }
            Op::Withdraw {
                token,
                label,
                window,
            } => {
                let waited = self.entry.line.leave(&(*token, label.clone()));
                let owned = self.is_owned() && self.entry.record.owner == Some(*token);
                if owned {
                    self.pass_on(self.entry.record.attempt, *window);
                }
                (waited || owned, None)
            }
            Op::Inspect => (true, Some(self.entry.line.len() as u64)),
        }
    }

    fn claim(&mut self, member: (Token, Arc<str>), lease: u64) -> (bool, Option<u64>) {
        let record = &self.entry.record;
        let over = self.now >= record.until;
        match record.state {
            State::Held | State::Granted if record.owner == Some(member.0) => {
                if record.state == State::Granted {
                    self.hold(lease);
                }
                return (true, None);
            }
            _ if record.last == Some(member.0) => return (false, None),
            State::Done | State::Exhausted => return (false, None),
            State::Held | State::Granted if !over => {
                return (false, Some(self.entry.line.join(member) as u64));
            }
            State::Granted => {
                let attempt = record.attempt;
                self.take(attempt, member, lease);
                return (true, None);
            }
            State::Held => self.remember(Cause::Expired, ""),
            State::Open => {}
        }
        let attempt = self.entry.record.attempt;
        if attempt >= self.entry.record.max_attempts {
            self.exhaust();
            return (false, None);
        }
        self.take(attempt + 1, member, lease);
        (true, None)
    }

    fn settle(&mut self, fence: u64, outcome: &Outcome, window: u64) -> bool {
        let record = &self.entry.record;
        if record.state == State::Done && record.fence == fence {
            return matches!(outcome, Outcome::Done(_));
        }
        if !self.is_owned_by(fence) {
            return false;
        }
        let attempt = record.attempt;
        let last = attempt >= record.max_attempts;
        match outcome {
            Outcome::Done(result) => {
                self.entry.record.state = State::Done;
                self.entry.record.result = result.clone();
                self.entry.record.until = self.now + self.entry.record.retention;
                self.entry.line.clear();
                self.changed = true;
            }
            Outcome::HandOff => {
                self.remember(Cause::HandedOver, "");
                self.pass_on(attempt, window);
            }
            Outcome::Fail(failure) => {
                match failure {
                    Failure::Dropped => self.remember(Cause::Dropped, ""),
                    Failure::Panicked => self.remember(Cause::Panicked, ""),
                    Failure::Reason(reason) => self.remember(Cause::Failed, reason),
                }
                match last {
                    true => self.exhaust(),
                    false => self.pass_on(attempt + 1, window),
                }
            }
            Outcome::FailPermanently(reason) => {
                self.remember(Cause::Failed, reason);
                self.exhaust();
            }
        }
        true
    }

    fn is_owned(&self) -> bool {
        self.entry.record.state.is_owned()
    }

    fn is_owned_by(&self, fence: u64) -> bool {
        self.is_owned() && self.entry.record.fence == fence
    }

    fn take(&mut self, attempt: u32, member: (Token, Arc<str>), lease: u64) {
        self.entry.line.leave(&member);
        self.grant(State::Held, attempt, member, lease);
    }

    fn grant(&mut self, state: State, attempt: u32, member: (Token, Arc<str>), lease: u64) {
        self.disown();
        let record = &mut self.entry.record;
        record.state = state;
        record.attempt = attempt;
        record.owner = Some(member.0);
        record.holder = member.1.to_string();
        record.fence = self.at.max(record.fence + 1);
        record.renewal = 0;
        record.until = self.now + lease;
        self.changed = true;
    }

    fn hold(&mut self, lease: u64) {
        let record = &mut self.entry.record;
        record.state = State::Held;
        record.until = self.now + lease;
        record.renewal += 1;
        self.changed = true;
    }

    fn remember(&mut self, cause: Cause, reason: &str) {
        let record = &mut self.entry.record;
        record.previous = Some(Previous {
            attempt: record.attempt,
            cause,
            holder: record.holder.clone(),
            reason: reason.to_owned(),
        });
    }

    fn disown(&mut self) {
        let record = &mut self.entry.record;
        record.last = record.owner.take().or(record.last);
        record.holder.clear();
    }

    fn exhaust(&mut self) {
        self.disown();
        self.entry.record.state = State::Exhausted;
        self.entry.record.until = self.now + self.entry.record.retention;
        self.entry.line.clear();
        self.changed = true;
    }

    fn pass_on(&mut self, attempt: u32, window: u64) {
        if let Some(head) = self.entry.line.pop() {
            self.grant(State::Granted, attempt, head, window);
            return;
        }
        self.disown();
        let record = &mut self.entry.record;
        record.state = State::Open;
        record.attempt = attempt - 1;
        record.until = self.now + record.retention;
        self.changed = true;
    }
}
