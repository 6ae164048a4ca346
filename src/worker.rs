//! The handle that takes part in runs.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;

use crate::acquire::{Acquire, AcquireConfig};
use crate::builder::{Builder, Warning};
use crate::error::{Error, KeyError, OnceError};
use crate::guard::WorkGuard;
use crate::once;
use crate::snapshot::Snapshot;
use crate::store::Op;
use crate::store::key::Key;
use crate::stream_ext::IntoResult;
use crate::watch::Watch;

/// Takes part in the runs of one key, over connections that it may share with other keys.
///
/// Cloning and [`with_key`](Self::with_key) are cheap and share the connections: one for commands
/// and one for subscriptions (one more with [`Builder::replicas`], and one more from the first
/// guard that [renewal](Builder::renew) keeps), however many keys and streams there are. They end
/// with the last worker, stream and guard.
#[derive(Clone, Debug)]
pub struct LockingWorker {
    entry: AcquireConfig,
    warnings: Arc<[Warning]>,
}

impl LockingWorker {
    /// Begins to describe a worker on the key.
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
    /// assert_eq!((worker.key().as_bytes(), worker.label()), (&b"nightly-report"[..], "billing-7"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(key: impl AsRef<[u8]>) -> Builder {
        Builder::new(key.as_ref())
    }

    pub(crate) fn new(entry: AcquireConfig, warnings: Arc<[Warning]>) -> Self {
        Self { entry, warnings }
    }

    /// The key it competes for.
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// What it calls itself.
    pub fn label(&self) -> &str {
        &self.entry.terms.label
    }

    /// What was found when it was built that may cost it its locks: a server that may evict them, for one. A service
    /// may log them, or refuse to start.
    ///
    /// Empty where the server does not permit `INFO`, and in memory.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Takes part in the key's run, or begins one.
    ///
    /// Nothing happens until the stream is polled. Each call takes part on its own: two streams of
    /// one worker compete with each other.
    pub fn acquire(&self) -> Acquire {
        Acquire::new(self.entry.clone())
    }

    /// The same, and whatever the worker was told about rejoining, the stream ends with its attempt.
    pub(crate) fn acquire_once(&self) -> Acquire {
        Acquire::new(AcquireConfig {
            rejoin: false,
            ..self.entry.clone()
        })
    }

    /// Has the work done once by the whole fleet, and returns the result that everybody gets.
    ///
    /// Whoever wins runs the work with its guard; the others wait for the result. If the work fails,
    /// or the guard is lost (which stops it), somebody else is next, up to `max_attempts`; that may be
    /// us again. Whoever comes later gets the result without any work until the retention ends.
    ///
    /// The work's future decides: `Ok` completes the run, `Err` fails the attempt, whoever else has a
    /// clone of the guard. The lease is the bound on its time, unless the worker was built with
    /// [`Builder::renew`]. While the server does not serve, this waits until it does.
    ///
    /// # Errors
    ///
    /// [`OnceError::GaveUp`] with the reason of the last failure when no attempt is left,
    /// [`OnceError::Stream`] when the server refuses. A result longer than
    /// [`WorkGuard::MAX_RESULT`] is a failed attempt.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up our place in line; if it is our turn, it stops the work, the
    /// attempt fails with the reason "dropped", and somebody else is next.
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("rates").in_memory(&memory).build().await?;
    /// let rates = worker
    ///     .once(|guard| async move {
    ///         // Whatever takes long, or must not be done by two at a time.
    ///         Ok::<_, std::io::Error>(format!("fetched at attempt {}", guard.attempt()))
    ///     })
    ///     .await?;
    /// assert_eq!(rates, "fetched at attempt 1");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn once<W, F, T, E>(&self, work: W) -> Result<Bytes, OnceError>
    where
        W: FnMut(Arc<WorkGuard>) -> F,
        F: Future<Output = Result<T, E>>,
        T: IntoResult,
        E: Display,
    {
        let completed = once::once(self.entry.clone(), work).await?;
        Ok(completed.result)
    }

    /// Like [`once`](Self::once), with a result of any type, which travels as JSON.
    ///
    /// # Errors
    ///
    /// As [`once`](Self::once); and [`OnceError::Json`] when what somebody else has completed the work
    /// with is not of this type. A result that JSON cannot express, so that it cannot be read back (a
    /// NaN is written as `null`), is a failed attempt.
    ///
    /// # Cancel safety
    ///
    /// As [`once`](Self::once).
    ///
    /// # Examples
    ///
    /// ```
    /// use redis_locking_worker::{LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("rates").in_memory(&memory).build().await?;
    /// let fetch = async |_| Ok::<_, std::io::Error>(vec![("EUR".to_owned(), 1.08)]);
    /// assert_eq!(worker.once_json(fetch).await?[0].1, 1.08);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "json")]
    pub async fn once_json<W, F, T, E>(&self, work: W) -> Result<T, OnceError>
    where
        W: FnMut(Arc<WorkGuard>) -> F,
        F: Future<Output = Result<T, E>>,
        T: serde::Serialize + serde::de::DeserializeOwned,
        E: Display,
    {
        once::once_json(self.entry.clone(), work).await
    }

    /// The run as it is now, and who waits: the record, and the line right after it.
    ///
    /// It writes nothing, but who only looks needs all of a worker's permissions too: `build()` checks them.
    ///
    /// # Errors
    ///
    /// The [`Error`] of the server, fatal or not; nothing is tried again.
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

    /// Looks on: a stream of the key's transitions that takes no part in them.
    ///
    /// It yields the run as it is, and then what becomes of it, renewals too. What happens while the server is out of
    /// reach is one [`Error`] an outage; after it comes the run as it is then. When messages are lost, or overtaken by
    /// an answer, transitions may be passed over; the last state never is.
    ///
    /// Between two polls nothing is lost, which has its price: all that it was told is kept until then, each with its
    /// checkpoint of up to 64 KiB or its result of up to 1 MiB. Drop one that you do not poll any more.
    ///
    /// The server sends messages for it, and is asked when it begins, after an outage, and when a record should have
    /// been forgotten. It writes nothing, but who only looks needs all of a worker's permissions too: `build()` checks
    /// them.
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

    /// Begins the run anew, by force: whoever has the work loses it, and an outcome is forgotten. Whether there was a
    /// run.
    ///
    /// The first in line, if anybody waits, is given attempt 1; otherwise the next to come is. The bounds stay those of
    /// the run; its reasons, checkpoint and result go. The fencing token goes on rising, so that what the old holder
    /// does too late is refused. That holder hears of its loss by push if anybody of its process waits, else by its next
    /// renewal, or when it settles; without either its guard is valid by its own clock until the lease would have ended.
    ///
    /// It is unconditional: whoever has the work when it gets there loses it, and that may be a healthy successor of the
    /// one that you have looked at. Repeated after [`Error::Unavailable`] it may clear twice, and the second time what
    /// has begun since the first: [`inspect`](Self::inspect) before.
    ///
    /// # Errors
    ///
    /// The [`Error`] of the server, fatal or not; nothing is tried again. After [`Error::Unavailable`] it may have
    /// happened.
    ///
    /// # Cancel safety
    ///
    /// Once polled it goes its way, and dropping the future only loses its answer.
    pub async fn clear(&self) -> Result<bool, Error> {
        let window = self.entry.terms.window();
        let reply = self
            .entry
            .hub
            .ask(&self.entry.key, Op::Clear { window })
            .await?;
        Ok(reply.ok)
    }

    /// The same worker on another key, over the same connections.
    ///
    /// # Errors
    ///
    /// [`KeyError`] as for [`Key::new`].
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
