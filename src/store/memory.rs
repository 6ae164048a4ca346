//! The store in this process: it keeps the records, and `protocol::transition` does the rest.
//!
//! `proof/tests/it/equivalence.rs` compares every answer with that of the scripts.

mod server;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::Stream;
use futures::channel::mpsc;

use super::values::Value;
use super::{BatchKey, FencedError, FencedScript, Store, StoreEvent};
use crate::error::Error;
use crate::key::Key;
use crate::protocol::{Op, Reply};
use server::{Server, Watcher};

/// A store in this process, for unit tests and for programs of one process.
///
/// Workers that are built on clones of one `Memory` see the same keys and compete as they would on
/// a server. The store measures time with [`tokio::time`]. Under a paused clock, a run of five
/// attempts and their leases takes no real time.
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
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes a key's record at once, as an eviction or a flush of a server does. Returns whether
    /// the key had one.
    pub fn remove(&self, key: &Key) -> bool {
        self.lock().entries.remove(key).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        // A panic leaves no half-done record: `Server::apply` takes a record out of the map and
        // puts it back once its transition is complete.
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
    hearer: Arc<Mutex<Option<mpsc::UnboundedReceiver<StoreEvent>>>>,
    watcher: mpsc::UnboundedSender<StoreEvent>,
    id: u64,
}

impl MemoryStore {
    /// Connects to the store.
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

    /// Returns the milliseconds until a key's record expires, and the length of its queue.
    pub fn life(&self, key: &Key) -> Option<(u64, usize)> {
        let server = self.memory.lock();
        let now = server.now() / 1_000;
        let entry = server
            .entries
            .get(key)
            .filter(|entry| entry.expires > now)?;
        Some((entry.expires - now, entry.line.len()))
    }

    /// Returns the server's time, in µs since the Unix epoch.
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
    fn lane(&self, _: &Key, _: &Op) -> BatchKey {
        0
    }

    async fn apply_all(&self, asked: &[(&Key, &Op)]) -> Vec<Result<Reply, Error>> {
        let mut server = self.memory.lock();
        let answers = asked.iter().map(|(key, op)| Ok(server.apply(key, op)));
        answers.collect()
    }

    async fn fenced(&self, _: &Key, _: &FencedScript) -> Result<Value, FencedError> {
        Err(FencedError::NoScripts)
    }

    async fn line(&self, key: &Key, most: u32) -> Result<Vec<String>, Error> {
        let server = self.memory.lock();
        let now = server.now() / 1_000;
        let entry = server.entries.get(key).filter(|entry| entry.expires > now);
        let labels = entry.map(|entry| entry.line.labels().take(most as usize).collect());
        Ok(labels.unwrap_or_default())
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

    fn hear(&mut self) -> impl Stream<Item = StoreEvent> + Send + Unpin + 'static {
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
