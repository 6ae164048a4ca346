//! Every option of a worker, its default and its bounds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ServerConfig};

use crate::acquire::Entry;
use crate::error::BuildError;
use crate::event::StatusLevel;
use crate::hub::{Handle, Terms};
use crate::store::key::Key;
use crate::store::memory::{Memory, MemoryStore};
use crate::store::redis::RedisStore;
use crate::store::{Op, Store};
use crate::worker::LockingWorker;

const DEFAULT_HOST: &str = "localhost";
const DEFAULT_PORT: u16 = 6379;

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
}

#[derive(Clone)]
enum Server {
    Address { host: String, port: u16 },
    Url(String),
    Client(Client),
    Memory(Memory),
}

impl Builder {
    /// The longest label, in bytes.
    pub const MAX_LABEL: usize = 255;

    /// The shortest lock timeout and retention: what the server can tell apart.
    pub const MIN_DURATION: Duration = Duration::from_millis(1);

    /// The longest lock timeout and retention: 100 years. The server keeps time in ms as 64-bit
    /// numbers, and would refuse what overflows them.
    pub const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

    pub(crate) fn new(key: &[u8]) -> Self {
        Self {
            key: key.to_vec(),
            server: Server::Address {
                host: DEFAULT_HOST.to_owned(),
                port: DEFAULT_PORT,
            },
            lock_timeout: Duration::from_secs(5),
            max_attempts: 5,
            retention: None,
            status_level: StatusLevel::default(),
            label: None,
            rejoin: false,
        }
    }

    /// Where the server is: `redis://user:password@host:port/database`, `redis-cluster://…`,
    /// `redis-sentinel://…`, `redis+unix://…`, and the same with `rediss` or `valkey`; [fred] has
    /// the details.
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
        let (_, port) = self.address();
        let host = host.into();
        self.server = Server::Address { host, port };
        self
    }

    /// The server's port.
    pub fn port(mut self, port: u16) -> Self {
        let (host, _) = self.address();
        self.server = Server::Address { host, port };
        self
    }

    fn address(&self) -> (String, u16) {
        match &self.server {
            Server::Address { host, port } => (host.clone(), *port),
            _ => (DEFAULT_HOST.to_owned(), DEFAULT_PORT),
        }
    }

    /// Sends commands over this client, which must be connected and have a reconnect policy.
    ///
    /// Subscriptions get a connection of their own to the same server, with the same credentials.
    /// The client stays the caller's: it is not closed with the worker.
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
    pub fn lock_timeout(mut self, lock_timeout: Duration) -> Self {
        self.lock_timeout = lock_timeout;
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

    /// What this participant is called in the events of the others.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Whether a stream whose own attempt failed waits in line again, instead of ending with
    /// [`LockEvent::Failed`](crate::LockEvent::Failed).
    pub fn rejoin(mut self, rejoin: bool) -> Self {
        self.rejoin = rejoin;
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
    pub async fn build(self) -> Result<LockingWorker, BuildError> {
        let key = Key::new(&self.key)?;
        let lease = millis("lock_timeout", self.lock_timeout)?;
        let retention = match self.retention {
            Some(retention) => millis("retention", retention)?,
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
        let hub = match self.server {
            Server::Memory(memory) => Handle::spawn(MemoryStore::new(&memory)),
            Server::Address { host, port } => probed(with_address(host, port).await?, &key).await?,
            Server::Url(url) => probed(with_url(&url).await?, &key).await?,
            Server::Client(client) => probed(with_client(client).await?, &key).await?,
        };
        Ok(LockingWorker::new(Entry {
            hub,
            key,
            terms: Arc::new(Terms {
                lease,
                max_attempts: self.max_attempts,
                retention,
                label: label.into(),
            }),
            status_level: self.status_level,
            rejoin: self.rejoin,
        }))
    }
}

/// Finds out now what would end every stream: an old server, a missing permission, a key in other
/// use.
async fn probed(store: RedisStore, key: &Key) -> Result<Handle, BuildError> {
    match store.apply(key, &Op::Inspect).await {
        Ok(_) => Ok(Handle::spawn(store)),
        Err(error) => {
            store.close().await;
            Err(error.into())
        }
    }
}

fn millis(option: &'static str, value: Duration) -> Result<u64, BuildError> {
    let (min, max) = (Builder::MIN_DURATION, Builder::MAX_DURATION);
    if value < min || value > max {
        return Err(BuildError::Duration {
            option,
            value,
            min,
            max,
        });
    }
    Ok(value.as_nanos().div_ceil(1_000_000) as u64)
}

fn default_label() -> String {
    let mut host = gethostname::gethostname().to_string_lossy().into_owned();
    // A host name has at most 64 characters on Linux, 255 elsewhere: leave room for the pid.
    while host.len() > Builder::MAX_LABEL - 16 {
        host.pop();
    }
    format!("{host}:{}", std::process::id())
}

async fn with_url(url: &str) -> Result<RedisStore, BuildError> {
    let server = redact(url);
    let config = parse(url, &server)?;
    let connected = RedisStore::connect(config).await;
    connected.map_err(|source| BuildError::Connect { server, source })
}

async fn with_address(host: String, port: u16) -> Result<RedisStore, BuildError> {
    let server = ServerConfig::new_centralized(host.clone(), port);
    let connected = RedisStore::connect(Config {
        server,
        ..Config::default()
    })
    .await;
    connected.map_err(|source| BuildError::Connect {
        server: format!("{host}:{port}"),
        source,
    })
}

async fn with_client(client: Client) -> Result<RedisStore, BuildError> {
    if client.client_reconnect_policy().is_none() {
        return Err(BuildError::NoReconnectPolicy);
    }
    let hosts = client.client_config().server.hosts();
    let server = hosts
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let connected = RedisStore::with_client(client).await;
    connected.map_err(|source| BuildError::Connect { server, source })
}

const TLS: bool = cfg!(any(
    feature = "enable-rustls",
    feature = "enable-rustls-ring",
    feature = "enable-native-tls"
));

/// Refuses what fred would misunderstand: it takes any scheme, and without a TLS feature it
/// connects to `rediss://` in plain text.
fn parse(url: &str, shown: &str) -> Result<Config, BuildError> {
    let invalid = |source| BuildError::Url {
        url: shown.to_owned(),
        source,
    };
    let missing = |features| BuildError::Feature {
        url: shown.to_owned(),
        features,
    };
    let (scheme, _) = url.split_once("://").unwrap_or_default();
    let end = scheme.find(['-', '+']).unwrap_or(scheme.len());
    let (base, suffix) = scheme.split_at(end);
    let tls = matches!(base, "rediss" | "valkeys");
    if !(tls || matches!(base, "redis" | "valkey"))
        || !matches!(suffix, "" | "-cluster" | "-sentinel" | "+unix")
    {
        let known = "the scheme must be redis, rediss, valkey or valkeys, \
                     alone or with -cluster, -sentinel or +unix";
        return Err(invalid(FredError::new(ErrorKind::Url, known)));
    }
    if tls && !TLS {
        return Err(missing(
            "enable-rustls, enable-rustls-ring, enable-native-tls",
        ));
    }
    if suffix == "+unix" && !cfg!(feature = "unix-sockets") {
        return Err(missing("unix-sockets"));
    }
    Config::from_url(url).map_err(invalid)
}

/// The URL less what may be secret: its user, password and query.
fn redact(url: &str) -> String {
    let (plain, query) = url
        .split_once('?')
        .map_or((url, ""), |(plain, _)| (plain, "?…"));
    let (scheme, rest) = plain.split_once("://").unwrap_or(("", plain));
    let separator = if plain.contains("://") { "://" } else { "" };
    let (user, rest) = rest
        .rsplit_once('@')
        .map_or(("", rest), |(_, rest)| ("…@", rest));
    [scheme, separator, user, rest, query].concat()
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Address { host, port } => write!(f, "{host}:{port}"),
            Server::Url(url) => f.write_str(&redact(url)),
            Server::Client(client) => write!(f, "client {}", client.id()),
            Server::Memory(memory) => memory.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url_has_no_secrets() {
        for (url, shown) in [
            ("redis://h:1/3", "redis://h:1/3"),
            ("redis://:pw@h:1/3", "redis://…@h:1/3"),
            ("redis://u:p@w@h", "redis://…@h"),
            (
                "redis-sentinel://h?sentinelPassword=pw",
                "redis-sentinel://h?…",
            ),
            ("u:pw@h", "…@h"),
        ] {
            assert_eq!(redact(url), shown);
        }
    }
}
