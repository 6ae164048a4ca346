//! The handle that takes part in runs.

use crate::acquire::{Acquire, Entry};
use crate::builder::Builder;
use crate::error::KeyError;
use crate::store::key::Key;

/// Takes part in the runs of one key, over connections that it may share with other keys.
///
/// Cloning and [`with_key`](Self::with_key) are cheap and share the connections: one for commands
/// and one for subscriptions, however many keys and streams there are. They end with the last
/// worker, stream and guard.
#[derive(Clone, Debug)]
pub struct LockingWorker {
    entry: Entry,
}

impl LockingWorker {
    /// Begins to describe a worker on the key.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use redis_locking_worker::LockingWorker;
    ///
    /// # async fn example() -> Result<(), redis_locking_worker::BuildError> {
    /// let worker = LockingWorker::builder("nightly-report")
    ///     .url("redis://127.0.0.1:6379")
    ///     .lock_timeout(Duration::from_secs(30))
    ///     .build()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(key: impl AsRef<[u8]>) -> Builder {
        Builder::new(key.as_ref())
    }

    pub(crate) fn new(entry: Entry) -> Self {
        Self { entry }
    }

    /// The key it competes for.
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// What it calls itself.
    pub fn label(&self) -> &str {
        &self.entry.terms.label
    }

    /// Takes part in the key's run, or begins one.
    ///
    /// Nothing happens until the stream is polled. Each call takes part on its own: two streams of
    /// one worker compete with each other.
    pub fn acquire(&self) -> Acquire {
        Acquire::new(self.entry.clone())
    }

    /// The same worker on another key, over the same connections.
    ///
    /// # Errors
    ///
    /// [`KeyError`] as for [`Key::new`].
    pub fn with_key(&self, key: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let mut entry = self.entry.clone();
        entry.key = Key::new(key)?;
        Ok(Self { entry })
    }

    /// Waits until everything that dropped streams and guards have signalled before is answered.
    ///
    /// Dropping a stream or a guard only leaves a message for the worker's task. A process that is
    /// about to end drops them all, and awaits this, so that the next participant need not wait for
    /// a lease to end. When the server gives no answer, it takes no longer than the leases, and 5 s
    /// at least.
    ///
    /// Workers that share the connections go on; the connections end with the last of them.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing but that nobody waits.
    pub async fn close(self) {
        self.entry.hub.drain().await;
    }
}
