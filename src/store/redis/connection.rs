//! The two connections, and what they have in common.

use std::pin::pin;
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{
    ClusterDiscoveryPolicy, Config, ReconnectPolicy, Server, ServerConfig, UnresponsiveConfig,
};
use fred::types::{Builder, RespVersion};
use futures::FutureExt;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::COMMAND_TIMEOUT;

/// How long both connections have to stand, handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that may wait for the hub before it hears of a gap instead.
const MESSAGES: usize = 8_192;

/// How long a server may say nothing to what it was asked before its connection counts as dead.
const SILENCE: Duration = Duration::from_secs(3);

/// A client that reconnects for ever and notices a dead server; `blocked` is how much longer one of its
/// commands may take by itself.
pub(super) fn client(mut config: Config, blocked: Duration) -> Result<Client, FredError> {
    config.version = RespVersion::RESP3;
    if let ServerConfig::Clustered { policy, .. } = &mut config.server {
        // Else the cluster is out of reach for ever when the one node that the URL names has died.
        *policy = ClusterDiscoveryPolicy::UseCache;
    }
    Builder::from_config(config)
        .set_policy(ReconnectPolicy::new_exponential(0, 20, 1_000, 2))
        .with_performance_config(|performance| {
            performance.broadcast_channel_capacity = MESSAGES;
            performance.default_command_timeout = blocked + COMMAND_TIMEOUT;
        })
        .with_connection_config(|connection| {
            connection.max_command_attempts = 1;
            connection.connection_timeout = COMMAND_TIMEOUT;
            connection.internal_command_timeout = COMMAND_TIMEOUT;
            connection.unresponsive = UnresponsiveConfig {
                max_timeout: Some(blocked + SILENCE),
                interval: Duration::from_millis(500),
            };
        })
        .build()
}

/// A client of our own, and the task that drives it.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    task: AbortHandle,
    /// Where it was connected first, if that is known.
    pub(super) first: Option<Server>,
}

impl Connection {
    /// Goes on for as long as it takes.
    pub(super) fn begin(client: &Client) -> Self {
        Self {
            client: client.clone(),
            task: client.connect().abort_handle(),
            first: None,
        }
    }

    pub(super) async fn establish(client: &Client) -> Result<Self, FredError> {
        let mut connects = client.reconnect_rx();
        let mut connected = pin!(client.wait_for_connect());
        // It listens before there is something to hear.
        let early = connected.as_mut().now_or_never();
        let mut own = Self::begin(client);
        let connected = match early {
            Some(connected) => Ok(connected),
            None => timeout(CONNECT_TIMEOUT, connected).await,
        };
        let connected = connected.unwrap_or_else(|_| {
            let text = format!("no connection within {CONNECT_TIMEOUT:?}");
            Err(FredError::new(ErrorKind::Timeout, text))
        });
        match connected {
            Ok(()) => {
                own.first = connects.try_recv().ok();
                Ok(own)
            }
            Err(error) => {
                own.close().await;
                Err(error)
            }
        }
    }

    /// Dropping it is not enough: its task and connection would live on. Nor is `quit`, which a client that is
    /// just connecting does not hear.
    pub(super) async fn close(&self) {
        let _ = timeout(Duration::from_secs(1), self.client.quit()).await;
        self.task.abort();
    }
}
