//! Every option of a worker, with its default and its bounds.

mod server;
mod warning;

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;

use crate::acquire::AcquireConfig;
use crate::acquire::StatusLevel;
use crate::client::BuildError;
use crate::client::LockingWorker;
use crate::key::Key;
use crate::lease::RunConfig;
use crate::protocol::{GRAIN, millis};
use crate::store::Pace;
use crate::store::memory::Memory;
use crate::store::redis::{Replicas, ServerAddress};
use crate::telemetry;
use server::Target;
pub use warning::Warning;

/// Configures and builds a [`LockingWorker`]. [`LockingWorker::builder`] returns one.
///
/// | option | default | bounds |
/// |---|---|---|
/// | [`url`], [`host`], [`port`], [`client`], [`in_memory`] | `localhost:6379` | |
/// | [`lock_timeout`] | 5 s | 1 ms to 100 years |
/// | [`max_attempts`] | 5 | at least 1 |
/// | [`retention`] | twice the lock timeout | 1 ms to 100 years |
/// | [`status_level`] | `Normal` | |
/// | [`label`] | `host:pid` | 1 to 255 bytes |
/// | [`rejoin`] | `false` | |
/// | [`margin`] | a tenth of the lock timeout, at most 2 s | 0 to half the lock timeout |
/// | [`renew`], [`renew_every`] | no renewal | 1 ms to (lock timeout − margin) / 2 |
/// | [`stall_limit`] | the greater of 60 s and ten lock timeouts | the lock timeout to 100 years |
/// | [`max_hold`] | the greater of 1 hour and the lock timeout | the lock timeout to 100 years |
/// | [`answer_timeout`] | a quarter of the lock timeout, 50 ms to 1.5 s | 10 ms to 1 minute |
/// | [`replicas`] | none | at least 1; timeout from 1 ms to the lock timeout |
///
/// [`url`]: Self::url
/// [`host`]: Self::host
/// [`port`]: Self::port
/// [`client`]: Self::client
/// [`in_memory`]: Self::in_memory
/// [`lock_timeout`]: Self::lock_timeout
/// [`max_attempts`]: Self::max_attempts
/// [`retention`]: Self::retention
/// [`status_level`]: Self::status_level
/// [`label`]: Self::label
/// [`rejoin`]: Self::rejoin
/// [`margin`]: Self::margin
/// [`renew`]: Self::renew
/// [`renew_every`]: Self::renew_every
/// [`stall_limit`]: Self::stall_limit
/// [`max_hold`]: Self::max_hold
/// [`answer_timeout`]: Self::answer_timeout
/// [`replicas`]: Self::replicas
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    key: Vec<u8>,
    server: Target,
    lock_timeout: Duration,
    max_attempts: u32,
    retention: Option<Duration>,
    status_level: StatusLevel,
    label: Option<String>,
    rejoin: bool,
    margin: Option<Duration>,
    renewal: Renewal,
    max_hold: Option<Duration>,
    stall_limit: Option<Duration>,
    replicas: Option<(u32, Duration)>,
    answer_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Renewal {
    None,
    Automatic,
    Every(Duration),
}

impl Builder {
    /// Maximum length of a label, in bytes.
    pub const MAX_LABEL: usize = 255;

    /// Minimum lock timeout and retention: 1 ms, the resolution of the server's expiry.
    pub const MIN_DURATION: Duration = GRAIN;

    /// Maximum lock timeout and retention: 100 years.
    ///
    /// The server keeps times as 64-bit numbers of ms and would refuse a value that overflows them.
    pub const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

    /// Default of [`max_hold`](Self::max_hold): 1 hour, or the lock timeout if that is longer.
    pub const DEFAULT_MAX_HOLD: Duration = Duration::from_secs(3_600);

    /// Maximum of the default margin: 2 s.
    ///
    /// For a term longer than 199.7 s the minimum of every margin, 1 % of the term plus 3 ms, is
    /// larger.
    pub const MAX_DEFAULT_MARGIN: Duration = Duration::from_secs(2);

    /// Minimum of the default stall limit: 60 s.
    pub const DEFAULT_STALL_LIMIT: Duration = Duration::from_secs(60);

    /// Minimum [`answer_timeout`](Self::answer_timeout): 10 ms.
    pub const MIN_ANSWER_TIMEOUT: Duration = Duration::from_millis(10);

    /// Maximum [`answer_timeout`](Self::answer_timeout): 1 minute.
    pub const MAX_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

    pub(crate) fn new(key: &[u8]) -> Self {
        Self {
            key: key.to_vec(),
            server: Target::default(),
            lock_timeout: Duration::from_secs(5),
            max_attempts: 5,
            retention: None,
            status_level: StatusLevel::default(),
            label: None,
            rejoin: false,
            margin: None,
            renewal: Renewal::None,
            max_hold: None,
            stall_limit: None,
            replicas: None,
            answer_timeout: None,
        }
    }

    /// Sets the server by its URL.
    ///
    /// The forms are `redis://user:password@host:port/database`, `redis-cluster://…`,
    /// `redis-sentinel://…` and `redis+unix://…`. The schemes `rediss`, `valkey` and `valkeys`
    /// work in the same way. [fred] documents the details.
    ///
    /// With sentinels, name all of them: the worker listens only to those that the URL names. Their
    /// user needs permission for `SUBSCRIBE`, `SENTINEL MASTER` and
    /// `SENTINEL GET-MASTER-ADDR-BY-NAME`.
    ///
    /// This method, [`client`](Self::client), [`in_memory`](Self::in_memory), and
    /// [`host`](Self::host) with [`port`](Self::port) exclude each other. The last call counts.
    ///
    /// [fred]: https://docs.rs/fred/10.1.0/fred/types/config/struct.Config.html#method.from_url
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.server = Target::Server(ServerAddress::Url(url.into()));
        self
    }

    /// Sets the server's host name or IP address.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        let (_, port) = self.server.address();
        let host = host.into();
        self.server = Target::Server(ServerAddress::Address { host, port });
        self
    }

    /// Sets the server's port.
    pub fn port(mut self, port: u16) -> Self {
        let (host, _) = self.server.address();
        self.server = Target::Server(ServerAddress::Address { host, port });
        self
    }

    /// Sets a connected client, which then sends the worker's commands.
    ///
    /// The client must be connected and must have a reconnect policy. The worker opens a second
    /// connection to the same server with the same credentials, for subscriptions. The client still
    /// belongs to the caller: the worker does not close it.
    ///
    /// In a cluster, configure the client with [`ClusterDiscoveryPolicy::UseCache`]. With its
    /// default policy, `fred` dials only the nodes of its configuration. Once these have died it
    /// never reconnects, even if other nodes are alive.
    ///
    /// With sentinels, the worker makes the client reconnect when a sentinel reports another
    /// master. `fred` alone stays with the old master until that closes the connection. The
    /// reconnect interrupts the caller's own commands that are in flight. `fred` sends them again
    /// although they may have run already, unless `max_command_attempts` is 1 (its default is 3).
    /// The reconnect counts like a lost connection: a [`ReconnectPolicy`] with a limit may end the
    /// client.
    ///
    /// [`ReconnectPolicy`]: https://docs.rs/fred/10.1.0/fred/types/config/enum.ReconnectPolicy.html
    /// [`ClusterDiscoveryPolicy::UseCache`]:
    ///   https://docs.rs/fred/10.1.0/fred/types/config/enum.ClusterDiscoveryPolicy.html
    pub fn client(mut self, client: Client) -> Self {
        self.server = Target::Server(ServerAddress::Client(client));
        self
    }

    /// Uses a store in this process instead of a server, above all for unit tests.
    pub fn in_memory(mut self, memory: &Memory) -> Self {
        self.server = Target::Memory(memory.clone());
        self
    }

    /// Sets the lease: how long a holder may take to settle its guard before another worker may
    /// take over.
    ///
    /// The value is rounded up to whole milliseconds. On the holder's side the lease ends earlier,
    /// by the [`margin`](Self::margin). A lease of less than 4 ms ends on the holder's side before
    /// it begins.
    pub fn lock_timeout(mut self, lock_timeout: Duration) -> Self {
        self.lock_timeout = lock_timeout;
        self
    }

    /// Sets how much earlier the lease ends for its holder than on the server.
    ///
    /// In this time the holder notices the end and stops, even on a loaded machine. The default is
    /// a tenth of the lock timeout, at most 2 s. The margin of a term is never less than 1 % of the
    /// term plus 3 ms: clocks and timers may differ by that much.
    ///
    /// For a term shorter than the lock timeout, the margin shrinks in proportion. An example is
    /// the term of a pushed grant that its holder has not confirmed yet.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = Some(margin);
        self
    }

    /// Sets how many attempts a run makes before it gives up.
    ///
    /// A run keeps the number of the participant that started it.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = max_attempts;
        self
    }

    /// Sets how long the server remembers an outcome.
    ///
    /// It is also how long the server remembers the attempts of a run that has no holder. After
    /// that the key is free for the next run. The value is rounded up to whole milliseconds. A run
    /// keeps the retention of the participant that started it.
    ///
    /// The retention is also the longest outage after which a waiter still learns the outcome of
    /// its run. After a longer outage the waiter starts the next run.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Sets how detailed the progress reports are.
    pub fn status_level(mut self, status_level: StatusLevel) -> Self {
        self.status_level = status_level;
        self
    }

    /// Sets the name of this participant in the events of the others.
    ///
    /// The default is `HOST:PID`, which all streams of a process share.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets whether a stream whose own attempt failed joins the queue again.
    ///
    /// By default it ends with [`LockEvent::Failed`](crate::LockEvent::Failed).
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt;
    /// use redis_locking_worker::{LockStreamExt, LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let builder = LockingWorker::builder("report").in_memory(&memory).max_attempts(3);
    /// let worker = builder.rejoin(true).build().await?;
    /// let guards = worker.acquire().guards();
    /// // Each guard is dropped, which fails its attempt.
    /// let attempts: Vec<_> = guards.map(|guard| guard.attempt()).collect().await;
    /// assert_eq!(attempts, [1, 2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rejoin(mut self, rejoin: bool) -> Self {
        self.rejoin = rejoin;
        self
    }

    /// Renews the lease of a guard while the work goes on.
    ///
    /// The period is a third of the lock timeout, or half of what the [`margin`](Self::margin)
    /// leaves of it if that is shorter. So a failed renewal can be retried before the lease ends.
    ///
    /// Renewal starts with the first call of any method of the guard
    /// ([`WorkGuard::run`](crate::WorkGuard::run) is the one to wrap the work in). The lease of a
    /// guard that lies unused in a buffer therefore ends. Renewal stops when the guard ends, after
    /// [`max_hold`](Self::max_hold), or when the runtime shuts down.
    ///
    /// On a server, one thread of the process renews all guards of all workers, over one connection
    /// for each `build()`. A blocked thread of the runtime therefore costs no guard its lease, for
    /// as long as [`stall_limit`](Self::stall_limit). Waiters learn of a renewal from a message and
    /// send no command because of it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures::StreamExt;
    /// use redis_locking_worker::{LockEvent, LockingWorker, Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = Memory::new();
    /// let worker = LockingWorker::builder("report")
    ///     .in_memory(&memory)
    ///     .lock_timeout(Duration::from_secs(5))
    ///     .renew()
    ///     .build()
    ///     .await?;
    /// let mut events = worker.acquire();
    /// while let Some(event) = events.next().await {
    ///     if let LockEvent::Acquired(guard) = event {
    ///         let work = async { tokio::time::sleep(Duration::from_secs(60)).await };
    ///         guard.run(work).await?;
    ///         guard.done().await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn renew(mut self) -> Self {
        self.renewal = Renewal::Automatic;
        self
    }

    /// Renews the lease like [`renew`](Self::renew), with the given period.
    ///
    /// The period is at most half of what the [`margin`](Self::margin) leaves of the lock timeout,
    /// so that a failed renewal can be retried before the lease ends.
    pub fn renew_every(mut self, period: Duration) -> Self {
        self.renewal = Renewal::Every(period);
        self
    }

    /// Sets how long renewals and extensions can keep a guard, counted from its grant.
    ///
    /// When this time is over, the lease of a guard that leaked, or whose work hangs, ends as if it
    /// had not been renewed.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = Some(max_hold);
        self
    }

    /// Sets how long the worker's runtime may stand still before its guards are no longer renewed.
    ///
    /// The worker's runtime is the one that called [`build`](Self::build). The default is the
    /// greater of 60 s and ten lock timeouts.
    ///
    /// Renewal does not need that runtime: blocked threads, even all of them, cost no guard its
    /// lease. This limit ensures that a process that hangs for ever does not hold the work for
    /// ever. With each renewal the library asks the runtime to poll a small task. If the runtime
    /// has polled none for this long, the guard is lost at the end of its lease with
    /// [`LeaseLost::Stalled`](crate::LeaseLost::Stalled).
    ///
    /// The option has no effect without renewal, and none in memory.
    pub fn stall_limit(mut self, stall_limit: Duration) -> Self {
        self.stall_limit = Some(stall_limit);
        self
    }

    /// Requires that replicas acknowledge a grant, a renewal and a completion.
    ///
    /// It counts only when `count` replicas have acknowledged it within `timeout` ([`WAIT`]). A
    /// failover to one of them then does not lose it. A failed attempt does not wait for replicas.
    ///
    /// If too few replicas acknowledge in time:
    ///
    /// * A grant is given back and not counted as an attempt. The stream reports
    ///   [`Error::NotReplicated`](crate::Error::NotReplicated) and tries again.
    /// * A renewal is retried until the lease ends.
    /// * A completion is reported as [`SettleError::Unknown`](crate::SettleError::Unknown). The
    ///   server has recorded it and has told the other participants, but a failover may lose it.
    ///
    /// The option costs a third connection, and two more commands for each grant, renewal and
    /// completion. One wait delays the others on that connection, so choose a timeout that is short
    /// compared with the lease. The option makes a loss less likely and does not exclude it: `WAIT`
    /// does not make Redis a consistent store, and a failover may promote a replica that did not
    /// acknowledge.
    ///
    /// [`WAIT`]: https://redis.io/docs/latest/commands/wait/
    pub fn replicas(mut self, count: u32, timeout: Duration) -> Self {
        self.replicas = Some((count, timeout));
        self
    }

    /// Sets how long a connection may owe an answer before the worker examines it.
    ///
    /// To examine it, the worker asks the same server on a new connection and on the old one. If
    /// the server answers only on the new one, the old connection is dead and the worker replaces
    /// it. If it answers on neither, the server is stalled and the connection stays.
    ///
    /// The default is a quarter of the lock timeout, from 50 ms to 1.5 s. With a longer timeout, a
    /// connection that dies in silence may cost a renewed guard its lease. The timeout should be
    /// longer than the transfer of the largest result or checkpoint. The option has no effect in
    /// memory.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = Some(timeout);
        self
    }

    /// Checks every option, connects, and verifies that the server can serve the key.
    ///
    /// # Errors
    ///
    /// Returns a [`BuildError`]. It names the option with its value and bounds, or the server with
    /// its answer. Nothing is written to the server.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind: connections that are being opened are closed as
    /// soon as they are open.
    pub async fn build(self) -> Result<LockingWorker, BuildError> {
        let key = Key::new(&self.key)?;
        let (min, max) = (Self::MIN_DURATION, Self::MAX_DURATION);
        let lease = within("lock_timeout", self.lock_timeout, min, max)?;
        let retention = match self.retention {
            Some(retention) => within("retention", retention, min, max)?,
            None => 2 * lease,
        };
        if self.max_attempts == 0 {
            return Err(BuildError::NoAttempts);
        }
        let label = self.label.unwrap_or_else(default_label);
        if label.is_empty() || label.len() > Self::MAX_LABEL {
            return Err(BuildError::Label {
                len: label.len(),
                max: Self::MAX_LABEL,
            });
        }
        let margin = match self.margin {
            Some(margin) => {
                within("margin", margin, Duration::ZERO, self.lock_timeout / 2)?;
                margin
            }
            None => (self.lock_timeout / 10).min(Self::MAX_DEFAULT_MARGIN),
        };
        let longest = (self.lock_timeout - margin) / 2;
        let renew_every = match self.renewal {
            Renewal::None => None,
            Renewal::Automatic => Some(longest.min(self.lock_timeout / 3)),
            Renewal::Every(period) => {
                within("renew_every", period, min, longest)?;
                Some(period)
            }
        };
        let stall_limit = match self.stall_limit {
            Some(limit) => {
                within("stall_limit", limit, self.lock_timeout, max)?;
                limit
            }
            None => (10 * self.lock_timeout).max(Self::DEFAULT_STALL_LIMIT),
        };
        let max_hold = match self.max_hold {
            Some(max_hold) => {
                within("max_hold", max_hold, self.lock_timeout, max)?;
                max_hold
            }
            None => Self::DEFAULT_MAX_HOLD.max(self.lock_timeout),
        };
        let replicas = match self.replicas {
            None => None,
            Some((0, _)) => return Err(BuildError::NoReplicas),
            Some((count, timeout)) => {
                let timeout = within("replicas' timeout", timeout, min, self.lock_timeout)?;
                let timeout = Duration::from_millis(timeout);
                Some(Replicas { count, timeout })
            }
        };
        let mut pace = Pace::of(self.lock_timeout);
        if let Some(timeout) = self.answer_timeout {
            let (min, max) = (Self::MIN_ANSWER_TIMEOUT, Self::MAX_ANSWER_TIMEOUT);
            within("answer_timeout", timeout, min, max)?;
            pace.answer = timeout;
        }
        telemetry::describe();
        let connecting = self
            .server
            .connect(&key, replicas, pace, renew_every.is_some());
        let (hub, warnings) = connecting.await?;
        warnings.iter().for_each(telemetry::warned);
        let entry = AcquireConfig {
            hub,
            key,
            terms: Arc::new(RunConfig {
                lease,
                max_attempts: self.max_attempts,
                retention,
                label: label.into(),
                margin,
                renew_every,
                max_hold,
                stall_limit,
                replicated: replicas.is_some(),
            }),
            status_level: self.status_level,
            rejoin: self.rejoin,
        };
        Ok(LockingWorker::new(entry, warnings.into()))
    }
}

/// Returns the duration in whole milliseconds, rounded up, if it is within its bounds.
fn within(
    option: &'static str,
    value: Duration,
    min: Duration,
    max: Duration,
) -> Result<u64, BuildError> {
    if value < min || value > max {
        return Err(BuildError::Duration {
            option,
            value,
            min,
            max,
        });
    }
    Ok(millis(value))
}

fn default_label() -> String {
    let mut host = gethostname::gethostname().to_string_lossy().into_owned();
    // A host name has at most 64 characters on Linux and 255 elsewhere. This leaves room for the
    // pid.
    while host.len() > Builder::MAX_LABEL - 16 {
        host.pop();
    }
    format!("{host}:{}", std::process::id())
}
