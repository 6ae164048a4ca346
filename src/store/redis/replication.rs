//! What counts only once replicas have it: a connection that waits for them.
//!
//! `WAIT` holds up whatever is behind it on its connection, and speaks of what was written on that
//! connection before. So the writes that need it have a connection of their own, where they only hold
//! up each other.

use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as FredError;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Options};
use fred::types::{ClusterHash, CustomCommand};

use super::connection::{client, establish};
use super::{COMMAND_TIMEOUT, once};

/// How many replicas have to acknowledge a write, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// At least 1.
    pub count: u32,
    /// In whole milliseconds.
    pub timeout: Duration,
}

#[derive(Clone)]
pub(super) struct Replication {
    pub(super) client: Client,
    pub(super) replicas: Replicas,
}

impl Replication {
    pub(super) async fn connect(config: Config, replicas: Replicas) -> Result<Self, FredError> {
        let client = client(config)?;
        establish(&client).await?;
        Ok(Self { client, replicas })
    }

    /// How many replicas of the slot's master have acknowledged everything written before.
    pub(super) async fn wait(&self, slot: u16) -> Result<u32, FredError> {
        let Replicas { count, timeout } = self.replicas;
        let wait = CustomCommand::new_static("WAIT", ClusterHash::Custom(slot), false);
        let options = Options {
            timeout: Some(timeout + COMMAND_TIMEOUT),
            ..once()
        };
        let args = vec![count.to_string(), timeout.as_millis().to_string()];
        self.client.with_options(&options).custom(wait, args).await
    }
}
