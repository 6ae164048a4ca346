//! What counts only once replicas have it: a connection that waits for them.
//!
//! `WAIT` holds up whatever is behind it on its connection, and speaks of what was written on that
//! connection before. So the writes that need it have a connection of their own, where they only hold
//! up each other.

use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::error::Error as FredError;
use fred::interfaces::ClientLike;
use fred::types::config::Config;
use fred::types::{ClusterHash, CustomCommand, Value};

use super::connection::{client, establish};
use super::{Key, Script, names};

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
        let client = client(config, replicas.timeout)?;
        establish(&client).await?;
        Ok(Self { client, replicas })
    }

    /// Runs the script, which writes, and waits for the replicas of its server; the script's answer,
    /// and how many have acknowledged it.
    ///
    /// Both are sent at once: after a reconnect in between, the server would know of nothing to wait
    /// for.
    pub(super) async fn run(&self, key: &Key, script: &Script) -> Result<(Value, u32), FredError> {
        match self.send(key, "EVALSHA", &script.sha).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                self.send(key, "EVAL", &script.source).await
            }
            answers => answers,
        }
    }

    async fn send(
        &self,
        key: &Key,
        eval: &'static str,
        script: &Bytes,
    ) -> Result<(Value, u32), FredError> {
        let slot = ClusterHash::Custom(key.slot());
        let eval = CustomCommand::new_static(eval, slot.clone(), false);
        let head = [Value::Bytes(script.clone()), Value::Integer(3)];
        let wait = CustomCommand::new_static("WAIT", slot, false);
        let Replicas { count, timeout } = self.replicas;
        let (count, timeout) = (count.to_string(), timeout.as_millis().to_string());

        let pipeline = self.client.pipeline();
        let args: Vec<Value> = head.into_iter().chain(names(key)).collect();
        let _: Value = pipeline.custom(eval, args).await?;
        let _: Value = pipeline.custom(wait, vec![count, timeout]).await?;
        pipeline.all().await
    }
}
