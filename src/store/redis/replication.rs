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

use super::batch::{Batch, decode, names};
use super::connection::{client, establish};
use super::{Key, Script, explain};
use crate::error::Error;
use crate::store::Reply;

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

    /// Turns what the replicas do not acknowledge in time into an error.
    pub(super) async fn prove(
        &self,
        batch: &Batch<'_>,
        touch: &Script,
        results: &mut [Result<Reply, Error>],
    ) {
        let written: Vec<(&Key, &mut Result<Reply, Error>)> = batch
            .keys()
            .zip(results)
            .filter(|(_, result)| result.as_ref().is_ok_and(|reply| reply.ok))
            .collect();
        if written.is_empty() {
            return;
        }
        let keys: Vec<&Key> = written.iter().map(|(key, _)| *key).collect();
        let proof = match self.wait(batch.slot(), touch, &keys).await {
            Ok((touched, acknowledged)) => {
                decode(touched, keys.len()).map(|touched| (touched, acknowledged))
            }
            Err(error) => Err(error),
        };
        let (touched, acknowledged) = match proof {
            Ok(proof) => proof,
            Err(error) => (vec![Err(error); keys.len()], 0),
        };
        let Replicas { count, timeout } = self.replicas;
        for ((key, result), touched) in written.into_iter().zip(touched) {
            let touched = match touched {
                Ok(touched) => touched,
                Err(error) => {
                    *result = Err(explain(key, error));
                    continue;
                }
            };
            // After a failover in between, another master's replicas have acknowledged whatever that one
            // has, which need not be this.
            let written = result.as_ref().ok().and_then(Reply::record);
            let stands = match (touched.record(), written) {
                (Some(now), Some(then)) => now.fence == then.fence && now.order() >= then.order(),
                _ => false,
            };
            let acknowledged = if stands { acknowledged } else { 0 };
            if acknowledged < count {
                *result = Err(Error::NotReplicated {
                    key: key.clone(),
                    wanted: count,
                    acknowledged,
                    timeout,
                });
            }
        }
    }

    /// Runs the script, which writes, and waits for the replicas of its server; the script's answer,
    /// and how many have acknowledged it.
    ///
    /// Both are sent at once: after a reconnect in between, the server would know of nothing to wait
    /// for.
    async fn wait(
        &self,
        slot: u16,
        script: &Script,
        keys: &[&Key],
    ) -> Result<(Value, u32), FredError> {
        match self.send(slot, "EVALSHA", &script.sha, keys).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                self.send(slot, "EVAL", &script.source, keys).await
            }
            answers => answers,
        }
    }

    async fn send(
        &self,
        slot: u16,
        eval: &'static str,
        script: &Bytes,
        keys: &[&Key],
    ) -> Result<(Value, u32), FredError> {
        let slot = ClusterHash::Custom(slot);
        let eval = CustomCommand::new_static(eval, slot.clone(), false);
        let names: Vec<Value> = names(keys.iter().copied()).collect();
        let head = [script.clone().into(), names.len().to_string().into()];
        let wait = CustomCommand::new_static("WAIT", slot, false);
        let Replicas { count, timeout } = self.replicas;
        let (count, timeout) = (count.to_string(), timeout.as_millis().to_string());

        let pipeline = self.client.pipeline();
        let args: Vec<Value> = head.into_iter().chain(names).collect();
        let _: Value = pipeline.custom(eval, args).await?;
        let _: Value = pipeline.custom(wait, vec![count, timeout]).await?;
        pipeline.all().await
    }
}
