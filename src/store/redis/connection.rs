//! The two connections, and what they have in common.

use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{
    ClusterDiscoveryPolicy, Config, ReconnectPolicy, ServerConfig, UnresponsiveConfig,
};
use fred::types::{Builder, RespVersion};
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

pub(super) async fn establish(client: &Client) -> Result<(), FredError> {
    let connected = match timeout(CONNECT_TIMEOUT, client.init()).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(FredError::new(
            ErrorKind::Timeout,
            format!("no connection within {CONNECT_TIMEOUT:?}"),
        )),
    };
    if connected.is_err() {
        quit(client).await;
    }
    connected
}

/// Without it the client's task and connection live on.
pub(super) async fn quit(client: &Client) {
    let _ = timeout(Duration::from_secs(1), client.quit()).await;
}
