//! The public handle that takes part in runs.

use std::sync::Arc;

use crate::acquire::{Acquire, AcquireConfig};
use crate::client::Snapshot;
use crate::client::Watch;
use crate::client::{Builder, Warning};
use crate::error::Error;
use crate::key::{Key, KeyError};
use crate::protocol::Op;

/// Takes part in the runs of one key.
///
/// Cloning and [`with_key`](Self::with_key) are cheap and share the connections: one for commands
/// and one for subscriptions, however many keys and streams there are. [`Builder::replicas`] adds
/// one. The first guard with [renewal](Builder::renew) adds another. The connections close when the
/// last worker, stream and guard has been dropped.
#[derive(Clone, Debug)]
pub struct LockingWorker {
    entry: AcquireConfig,
    warnings: Arc<[Warning]>,
}

impl LockingWorker {
    /// Returns a [`Builder`] for a worker on this key.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use redis_locking_worker::{LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("nightly-report")
    ///     .in_memory(&memory) // on a server: .url("redis://127.0.0.1:6379")
    ///     .lock_timeout(Duration::from_secs(30))
    ///     .label("billing-7")
    ///     .build()
    ///     .await?;
    /// assert_eq!(worker.key().as_bytes(), b"nightly-report");
    /// assert_eq!(worker.label(), "billing-7");
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(key: impl AsRef<[u8]>) -> Builder {
        Builder::new(key.as_ref())
    }

    pub(crate) fn new(entry: AcquireConfig, warnings: Arc<[Warning]>) -> Self {
        Self { entry, warnings }
    }

    /// Returns the key that this worker competes for.
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// Returns this worker's label.
    pub fn label(&self) -> &str {
        &self.entry.terms.label
    }

    /// Returns the warnings that [`Builder::build`] found, such as a server that may evict locks.
    ///
    /// A service may log them, or refuse to start. The list is empty where the server does not
    /// permit `INFO`, and in memory.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Joins the current run for this key, or starts one.
    ///
    /// Nothing happens until the stream is polled. Each call takes part on its own: two streams of
    /// one worker compete with each other.
    pub fn acquire(&self) -> Acquire {
        Acquire::new(self.entry.clone())
    }

    /// Like [`acquire`](Self::acquire), but `rejoin` replaces [`Builder::rejoin`].
    pub(crate) fn acquire_with(&self, rejoin: bool) -> Acquire {
        Acquire::new(AcquireConfig {
            rejoin,
            ..self.entry.clone()
        })
    }

    /// Reads the state of the run and its waiters.
    ///
    /// It reads the record, and then the queue if there is a holder. It writes nothing. Still, a
    /// caller that only inspects needs all permissions of a worker: `build()` checks them.
    ///
    /// # Errors
    ///
    /// Returns the [`Error`] of the server, fatal or not. Nothing is retried.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt;
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory, RunState};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("report").in_memory(&memory).label("a").build().await?;
    /// assert_eq!(worker.inspect().await?.state, RunState::Free);
    /// let guard = worker.acquire().guards().next().await;
    /// let run = worker.inspect().await?;
    /// assert_eq!((run.state, run.attempt, &run.holder[..]), (RunState::Held, 1, "a"));
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn inspect(&self) -> Result<Snapshot, Error> {
        let (hub, key) = (&self.entry.hub, &self.entry.key);
        let reply = hub.ask(key, Op::Inspect).await?;
        let mut snapshot = Snapshot::of(&reply.frame);
        snapshot.line = Some(match snapshot.state.is_owned() {
            true => hub.line(key, Snapshot::MAX_LINE).await?,
            false => Vec::new(),
        });
        Ok(snapshot)
    }

    /// Watches the key: returns a stream of its transitions and takes no part in them.
    ///
    /// The stream yields the current state of the run, and then each transition, renewals included.
    /// It yields one [`Error`] for each outage of the server, and after it the state of the run at
    /// that time. If messages are lost, or an answer overtakes them, the stream may skip
    /// transitions. It never skips the last state.
    ///
    /// Between two polls the stream keeps every item, so that none is lost. An item can hold a
    /// checkpoint of up to 64 KiB or a result of up to 1 MiB. Drop a stream that you no longer
    /// poll.
    ///
    /// The server sends the transitions as messages. The stream sends a command when it starts,
    /// after an outage, and when a record should have expired. It writes nothing. Still, a caller
    /// that only watches needs all permissions of a worker: `build()` checks them.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt;
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory, RunState};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("report").in_memory(&memory).build().await?;
    /// let mut watch = worker.watch();
    /// assert_eq!(watch.next().await.unwrap()?.state, RunState::Free);
    /// worker.acquire().run(async |_| Ok::<_, String>(())).await?;
    /// assert_eq!(watch.next().await.unwrap()?.state, RunState::Held);
    /// assert_eq!(watch.next().await.unwrap()?.state, RunState::Completed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch(&self) -> Watch {
        Watch::new(self.entry.hub.clone(), self.entry.key.clone())
    }

    /// Starts the run anew, by force, and returns whether there was a run.
    ///
    /// The holder loses the work, and a recorded outcome is forgotten. If there are waiters, the
    /// first is granted attempt 1; otherwise the next participant that comes gets it. The new run
    /// keeps the bounds of the old one. It does not keep its reasons, checkpoint and result. The
    /// fencing token continues to rise, so a resource that checks it rejects late writes of the old
    /// holder.
    ///
    /// The old holder learns of its loss from a message if its process also waits for the key, and
    /// otherwise from its next renewal or its settlement. Until then its guard is valid by its own
    /// clock, at the longest until the lease would have ended.
    ///
    /// The call is unconditional: the holder at the time of its execution loses the work. That may
    /// be a healthy successor of the holder that you saw. If you repeat the call after
    /// [`Error::Unavailable`], it may clear twice, and the second time it ends a run that began
    /// after the first. Call [`inspect`](Self::inspect) before you repeat it.
    ///
    /// # Errors
    ///
    /// Returns the [`Error`] of the server, fatal or not. Nothing is retried. After
    /// [`Error::Unavailable`] the run may have been cleared.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the call takes effect even if the future is dropped. The drop only loses the
    /// answer.
    pub async fn clear(&self) -> Result<bool, Error> {
        let window = self.entry.terms.window();
        let reply = self
            .entry
            .hub
            .ask(&self.entry.key, Op::Clear { window })
            .await?;
        Ok(reply.ok)
    }

    /// Returns this worker for another key, on the same connections.
    ///
    /// # Errors
    ///
    /// Returns a [`KeyError`] as [`Key::new`] does.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("report").in_memory(&memory).build().await?;
    /// for region in ["north", "south"] {
    ///     let worker = worker.with_key(format!("report:{region}"))?;
    ///     worker.acquire().run(|_| async { Ok::<_, std::io::Error>(()) }).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_key(&self, key: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let mut worker = self.clone();
        worker.entry.key = Key::new(key)?;
        Ok(worker)
    }

    /// Waits until the server has answered everything that streams and guards requested before.
    ///
    /// A stream or guard that is dropped only leaves a message for the worker's task. Before a
    /// process ends, it should drop them all and await this method. Otherwise the next participant
    /// may have to wait for the end of a lease. If the server does not answer, this method takes no
    /// longer than the leases, and at least 5 s.
    ///
    /// Workers that share the connections continue. The connections close with the last of them.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only ends the wait.
    pub async fn close(self) {
        self.entry.hub.drain().await;
    }
}
