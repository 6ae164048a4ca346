//! Every option of a worker, its default and its bounds.

mod server;
mod warning;

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;

use crate::acquire::Entry;
use crate::error::BuildError;
use crate::event::StatusLevel;
use crate::observe;
use crate::store::key::Key;
use crate::store::memory::Memory;
use crate::store::redis::Replicas;
use crate::store::{GRAIN, Pace, millis};
use crate::terms::Terms;
use crate::worker::LockingWorker;
use server::Server;
pub use warning::Warning;

/// Describes a [`LockingWorker`]. Made by [`LockingWorker::builder`].
///
/// | option | default | bounds |
/// |---|---|---|
/// | [`url`](Self::url), [`host`](Self::host), [`port`](Self::port), [`client`](Self::client), [`in_memory`](Self::in_memory) | `localhost:6379` | |
/// | [`lock_timeout`](Self::lock_timeout) | 5 s | 1 ms to 100 years |
/// | [`max_attempts`](Self::max_attempts) | 5 | at least 1 |
/// | [`retention`](Self::retention) | twice the lock timeout | 1 ms to 100 years |
/// | [`status_level`](Self::status_level) | `Normal` | |
/// | [`label`](Self::label) | `host:pid` | 1 to 255 bytes |
/// | [`rejoin`](Self::rejoin) | `false` | |
/// | [`margin`](Self::margin) | a tenth of the lock timeout, at most 2 s | 0 to half the lock timeout |
/// | [`renew`](Self::renew), [`renew_every`](Self::renew_every) | not renewed | 1 ms to half of what the margin leaves of the lock timeout |
/// | [`stall_limit`](Self::stall_limit) | the greater of 60 s and ten lock timeouts | the lock timeout to 100 years |
/// | [`max_hold`](Self::max_hold) | 1 hour, or the lock timeout if that is longer | the lock timeout to 100 years |
/// | [`answer_timeout`](Self::answer_timeout) | a quarter of the lock timeout, from 50 ms to 1.5 s | 10 ms to 1 minute |
/// | [`replicas`](Self::replicas) | none | at least 1, within 1 ms to the lock timeout |
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    key: Vec<u8>,
    server: Server,
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
    /// The longest label, in bytes.
    pub const MAX_LABEL: usize = 255;

    /// The shortest lock timeout and retention: what the server can tell apart, 1 ms.
    pub const MIN_DURATION: Duration = GRAIN;

    /// The longest lock timeout and retention: 100 years. The server keeps time in ms as 64-bit
    /// numbers, and would refuse what overflows them.
    pub const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

    /// How long a guard is renewed at most, unless [`max_hold`](Self::max_hold) says otherwise or the
    /// lock timeout is longer: 1 hour.
    pub const DEFAULT_MAX_HOLD: Duration = Duration::from_secs(3_600);

    /// The longest margin by default: 2 s. For terms over 199.7 s it is 1 % of the term plus 3 ms.
    pub const MAX_DEFAULT_MARGIN: Duration = Duration::from_secs(2);

    /// The least stall limit by default: 60 s.
    pub const DEFAULT_STALL_LIMIT: Duration = Duration::from_secs(60);

    /// The shortest [`answer_timeout`](Self::answer_timeout): 10 ms.
    pub const MIN_ANSWER_TIMEOUT: Duration = Duration::from_millis(10);

    /// The longest [`answer_timeout`](Self::answer_timeout): 1 minute.
    pub const MAX_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

    pub(crate) fn new(key: &[u8]) -> Self {
        Self {
            key: key.to_vec(),
            server: Server::default(),
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

    /// Where the server is: `redis://user:password@host:port/database`, `redis-cluster://…`,
    /// `redis-sentinel://…`, `redis+unix://…`, and the same with `rediss` or `valkey`; [fred] has
    /// the details.
    ///
    /// With sentinels, name all of them: only those that are named are listened to. Their user must be allowed
    /// `SUBSCRIBE`, `SENTINEL MASTER` and `SENTINEL GET-MASTER-ADDR-BY-NAME`.
    ///
    /// This, [`client`](Self::client), [`in_memory`](Self::in_memory), and [`host`](Self::host) with
    /// [`port`](Self::port) exclude each other: the last one counts.
    ///
    /// [fred]: https://docs.rs/fred/10.1.0/fred/types/config/struct.Config.html#method.from_url
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.server = Server::Url(url.into());
        self
    }

    /// The server's host name or IP address.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        let (_, port) = self.server.address();
        let host = host.into();
        self.server = Server::Address { host, port };
        self
    }

    /// The server's port.
    pub fn port(mut self, port: u16) -> Self {
        let (host, _) = self.server.address();
        self.server = Server::Address { host, port };
        self
    }

    /// Sends commands over this client, which must be connected and have a reconnect policy.
    ///
    /// Subscriptions get a connection of their own to the same server, with the same credentials.
    /// The client stays the caller's: it is not closed with the worker.
    ///
    /// In a cluster, let its configuration have [`ClusterDiscoveryPolicy::UseCache`], which `fred` does not have by
    /// default: else it finds no way back when the nodes that it was configured with have died, whatever other
    /// nodes there are.
    ///
    /// With sentinels, it is made to reconnect when they tell of another master; `fred` by itself stays with the old
    /// one until that ends the connection. That cuts off the caller's own commands that are on their way: `fred` sends
    /// them again, although they may have run, unless `max_command_attempts` is 1 (its default is 3). And it counts
    /// as a lost connection does: a [`ReconnectPolicy`] with a limit may end the client.
    ///
    /// [`ReconnectPolicy`]: https://docs.rs/fred/10.1.0/fred/types/config/enum.ReconnectPolicy.html
    /// [`ClusterDiscoveryPolicy::UseCache`]: https://docs.rs/fred/10.1.0/fred/types/config/enum.ClusterDiscoveryPolicy.html
    pub fn client(mut self, client: Client) -> Self {
        self.server = Server::Client(client);
        self
    }

    /// Competes within this process only; for unit tests, above all.
    pub fn in_memory(mut self, memory: &Memory) -> Self {
        self.server = Server::Memory(memory.clone());
        self
    }

    /// The lease: how long the holder has to settle its guard before others may take over.
    /// Rounded up to whole milliseconds.
    ///
    /// On the holder's side it ends earlier, by the [`margin`](Self::margin): one of less than 4 ms
    /// is over before it begins.
    pub fn lock_timeout(mut self, lock_timeout: Duration) -> Self {
        self.lock_timeout = lock_timeout;
        self
    }

    /// How long before the lease ends on the server it ends for its holder: the time that the
    /// holder has to notice, on a machine that is loaded, and to stop. A tenth of the lock timeout
    /// by default, and at most 2 s. Whatever is set, it is never less than 1 % of the term plus
    /// 3 ms, by which clocks and timers may differ.
    ///
    /// Of a shorter term, such as that of a grant that was handed over and is not confirmed yet,
    /// the margin is as large a share as it is of the lock timeout.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = Some(margin);
        self
    }

    /// How many attempts are made before the run is given up. A run keeps the number of the
    /// participant that began it.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = max_attempts;
        self
    }

    /// How long an outcome is remembered, and with it the attempts of a run that nobody works on.
    /// After that the key is free for the next run. Rounded up to whole milliseconds; a run keeps
    /// the retention of the participant that began it.
    ///
    /// It is also the longest outage after which a waiting participant still learns the outcome of
    /// its run; after a longer one it begins the next.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// How much progress is reported.
    pub fn status_level(mut self, status_level: StatusLevel) -> Self {
        self.status_level = status_level;
        self
    }

    /// What this participant is called in the events of the others; `HOST:PID` by default, which all streams of a
    /// process share.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Whether a stream whose own attempt failed waits in line again, instead of ending with
    /// [`LockEvent::Failed`](crate::LockEvent::Failed).
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
    /// let attempts: Vec<_> = guards.map(|guard| guard.attempt()).collect().await; // each is dropped
    /// assert_eq!(attempts, [1, 2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rejoin(mut self, rejoin: bool) -> Self {
        self.rejoin = rejoin;
        self
    }

    /// Renews the lease of a guard while the work goes on, after a third of it each time, so that a
    /// renewal that fails can be tried again.
    ///
    /// Renewal begins when any method of the guard is first called
    /// ([`WorkGuard::run`](crate::WorkGuard::run) is the one to wrap the work in): a guard that
    /// lies forgotten in a buffer ends with its lease. It ends with the guard, or after
    /// [`max_hold`](Self::max_hold). On a server, one thread of the process does it for all guards
    /// of all workers, over a connection for each `build()`: no blocked thread of the runtime costs
    /// a guard its lease, for as long as [`stall_limit`](Self::stall_limit). It ends when the
    /// runtime shuts down. Waiters are told by push, and send no command because of it.
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

    /// Like [`renew`](Self::renew), with a period of one's own: at most half of what the
    /// [`margin`](Self::margin) leaves of the lock timeout, so that a renewal that fails can be
    /// tried again.
    pub fn renew_every(mut self, period: Duration) -> Self {
        self.renewal = Renewal::Every(period);
        self
    }

    /// How long renewals and extensions keep a guard at most, from its grant: one that is leaked,
    /// or whose work hangs, ends then as if it had not been renewed.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = Some(max_hold);
        self
    }

    /// How long the runtime that the worker was built on may not run before the guard is renewed no
    /// longer; the greater of 60 s and ten lock timeouts by default.
    ///
    /// Renewal does not need that runtime: a thread that is blocked, or all of them, cost no guard
    /// its lease. This is the bound on it, so that a process that hangs for ever does not hold the
    /// work for ever. The runtime is asked to run a small task each time that a guard is renewed;
    /// when none has run for so long, the guard is lost at the end of its lease with
    /// [`LeaseLost::Stalled`](crate::LeaseLost::Stalled).
    ///
    /// Without renewal, and in memory, it has no effect.
    pub fn stall_limit(mut self, stall_limit: Duration) -> Self {
        self.stall_limit = Some(stall_limit);
        self
    }

    /// Counts a grant, a renewal and a completion only when so many replicas have acknowledged it
    /// within the timeout ([`WAIT`]), so that a failover to one of those does not forget it.
    ///
    /// A grant that they do not acknowledge is given back without being counted; the stream reports
    /// [`Error::NotReplicated`](crate::Error::NotReplicated), and tries again. A renewal is tried
    /// again until the lease ends. A completion is
    /// [`SettleError::Unknown`](crate::SettleError::Unknown): it has happened, the other participants
    /// are told so, and a failover may forget it. Failures are not waited for.
    ///
    /// It costs a third connection, and two commands more a grant, a renewal and a completion. One
    /// wait holds up the others on that connection: let the timeout be short against the lease. It
    /// narrows what can be lost, and does not exclude it: `WAIT` makes Redis no consistent store, and a
    /// failover may choose a replica that was not among those.
    ///
    /// [`WAIT`]: https://redis.io/docs/latest/commands/wait/
    pub fn replicas(mut self, count: u32, timeout: Duration) -> Self {
        self.replicas = Some((count, timeout));
        self
    }

    /// How long a connection may owe an answer before it is examined. The same server is then asked
    /// on a new connection. If the new one is answered and the old one is not, the old one has died
    /// in silence, and is made anew; a server that is merely stalled keeps its connections.
    ///
    /// A quarter of the lock timeout by default, from 50 ms to 1.5 s. With more than that, a
    /// connection that dies in silence may cost a guard that is renewed its lease. Let it be longer
    /// than the largest result or checkpoint takes to travel. In memory it has no effect.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = Some(timeout);
        self
    }

    /// Checks every option, connects, and makes sure that the server can be used.
    ///
    /// # Errors
    ///
    /// [`BuildError`], which names the option, its value and its bounds, or the server and what it
    /// said. Nothing is written to the server.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind: connections on their way are made, and end at once.
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
        observe::describe();
        let connecting = self
            .server
            .connect(&key, replicas, pace, renew_every.is_some());
        let (hub, warnings) = connecting.await?;
        warnings.iter().for_each(observe::warned);
        let entry = Entry {
            hub,
            key,
            terms: Arc::new(Terms {
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

/// The duration in whole milliseconds, rounded up.
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
    // A host name has at most 64 characters on Linux, 255 elsewhere: leave room for the pid.
    while host.len() > Builder::MAX_LABEL - 16 {
        host.pop();
    }
    format!("{host}:{}", std::process::id())
}
